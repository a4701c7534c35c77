//! The process itself: threads, how it is replaced and stopped, and the admin listener.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::units::Duration;

/// The process: read at the start; a change takes effect with the next `headgate upgrade`.
///
/// ```yaml
/// server:
///   threads: auto
///   drain: { delay: 5s, timeout: 1m }
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Worker threads: `auto` for one per core that this process may use, or a number.
    pub threads: Threads,
    /// Whether an idle worker takes over work that waits at another. `false` costs less per request, but a connection
    /// stays with its worker: for many connections of like, small requests.
    pub work_stealing: bool,
    /// How the process stops, and hands over to its successor.
    pub drain: Drain,
    /// How a new binary takes over from this one.
    pub upgrade: Upgrade,
}

impl Default for Server {
    fn default() -> Self {
        Server {
            threads: Threads::default(),
            work_stealing: true,
            drain: Drain::default(),
            upgrade: Upgrade::default(),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Threads {
    /// One per core that the process may run on.
    #[default]
    Auto,
    Count(usize),
}

/// On SIGTERM readiness fails first, then listeners close, then requests in flight may finish.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// How long listeners go on accepting after readiness has failed, so that load balancers notice. Behind one, set
    /// it to a little more than its check interval.
    pub delay: Duration,
    /// A kept-alive connection without a request for this long is closed during a drain.
    pub idle: Duration,
    /// Whatever is not finished after this time is cut: long downloads, streams, WebSockets.
    pub timeout: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Drain { delay: Duration::from_secs(0), idle: Duration::from_secs(2), timeout: Duration::from_secs(30) }
    }
}

/// Where the running process and its successor meet. The folder should belong to the gateway's user alone.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Upgrade {
    /// Unix socket over which the listening sockets are handed over. Default: `headgate.sock` in the runtime folder:
    /// `$RUNTIME_DIRECTORY`, else `$XDG_RUNTIME_DIR/headgate`, else `/run/headgate`.
    pub socket: Option<PathBuf>,
    /// File that holds the process id, for `headgate upgrade` to find the running process. Default: `headgate.pid` in
    /// the runtime folder.
    pub pid_file: Option<PathBuf>,
}

/// The admin listener: health, status, metrics, reload. It has no authentication of its own.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// IP address and port.
    #[schemars(extend("format" = "socket-address"))]
    pub address: SocketAddr,
    /// Allows an address that other machines can reach. Whoever reaches it can read the metrics and trigger a reload.
    pub allow_remote: bool,
}

impl Default for Admin {
    fn default() -> Self {
        Admin { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9080)), allow_remote: false }
    }
}

impl Threads {
    /// The number of worker threads.
    pub fn count(self) -> usize {
        match self {
            // As limited by affinity and cgroups.
            Threads::Auto => std::thread::available_parallelism().map_or(1, usize::from),
            Threads::Count(count) => count,
        }
    }
}

impl Upgrade {
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| runtime_folder().join("headgate.sock"))
    }

    pub fn pid_file(&self) -> PathBuf {
        self.pid_file.clone().unwrap_or_else(|| runtime_folder().join("headgate.pid"))
    }
}

/// What systemd calls the runtime directory of a unit, else the user's, else `/run/headgate`.
fn runtime_folder() -> PathBuf {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match (folder("RUNTIME_DIRECTORY"), folder("XDG_RUNTIME_DIR")) {
        (Some(unit), _) => unit,
        (None, Some(user)) => user.join("headgate"),
        (None, None) => PathBuf::from("/run/headgate"),
    }
}

/// More threads than any machine has cores are a mistake.
const MOST_THREADS: usize = 1024;

impl<'de> Deserialize<'de> for Threads {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl Visitor<'_> for Written {
            type Value = Threads;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "`auto` or a number from 1 to {MOST_THREADS}")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Threads, E> {
                if text == "auto" {
                    Ok(Threads::Auto)
                } else {
                    Err(E::invalid_value(serde::de::Unexpected::Str(text), &self))
                }
            }
            fn visit_u64<E: Error>(self, count: u64) -> Result<Threads, E> {
                match usize::try_from(count) {
                    Ok(count @ 1..=MOST_THREADS) => Ok(Threads::Count(count)),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Unsigned(count), &self)),
                }
            }
        }

        deserializer.deserialize_any(Written)
    }
}

impl Serialize for Threads {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Threads::Auto => serializer.serialize_str("auto"),
            Threads::Count(count) => serializer.serialize_u64(*count as u64),
        }
    }
}

impl JsonSchema for Threads {
    fn schema_name() -> Cow<'static, str> {
        "Threads".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "const": "auto", "description": "One per core." },
            { "type": "integer", "minimum": 1, "maximum": MOST_THREADS },
        ] })
    }
}
