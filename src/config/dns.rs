//! How the names of targets are resolved.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration as Time;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

use super::units::Duration;

/// The DNS, for targets that are written as names. `/etc/hosts` is looked at first.
///
/// ```yaml
/// dns:
///   servers: [10.0.0.2, "127.0.0.1:8600"]
///   stale: 10m
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Addresses of DNS servers; the port is 53 unless it is written. Default: servers, search list and options of
    /// `/etc/resolv.conf`, which is read again when it changes.
    pub servers: Vec<DnsServer>,
    /// Domains that are tried for a name with fewer dots than `ndots`. Only with `servers`.
    pub search: Vec<String>,
    /// A name with this many dots is asked for as it is first. Only with `servers`.
    pub ndots: usize,
    /// An answer holds at least this long, whatever its time to live says.
    pub min_ttl: Duration,
    /// An answer holds at most this long.
    pub max_ttl: Duration,
    /// How long the last good answer is used after the DNS has begun to say that there is no such name. While the DNS
    /// does not answer at all, the last good answer stays in use without end.
    pub stale: Duration,
    /// Bounds one resolution with all its questions.
    pub timeout: Duration,
}

impl Default for Dns {
    fn default() -> Self {
        Dns {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            min_ttl: Duration(Time::from_secs(1)),
            max_ttl: Duration(Time::from_secs(3600)),
            stale: Duration(Time::from_secs(3600)),
            timeout: Duration(Time::from_secs(10)),
        }
    }
}

/// Where a DNS server answers, over UDP and TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DnsServer(pub SocketAddr);

/// RFC 1035, section 4.2.
const PORT: u16 = 53;

impl<'de> Deserialize<'de> for DnsServer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let without_port = || text.parse::<IpAddr>().map(|address| SocketAddr::new(address, PORT));
        let address = text.parse().or_else(|_| without_port()).map_err(|_| {
            D::Error::custom(format!("`{text}` is no IP address; write 10.0.0.2, 10.0.0.2:53 or [2001:db8::2]:53"))
        })?;
        Ok(DnsServer(address))
    }
}

impl JsonSchema for DnsServer {
    fn schema_name() -> Cow<'static, str> {
        "DnsServer".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "IP address, with or without a port (default 53)." })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_an_address_with_or_without_a_port() {
        for (written, meant) in [
            ("10.0.0.2", "10.0.0.2:53"),
            ("10.0.0.2:8600", "10.0.0.2:8600"),
            ("'::1'", "[::1]:53"),
            ("'[::1]:5353'", "[::1]:5353"),
        ] {
            let DnsServer(address) = serde_yaml::from_str(written).unwrap();
            assert_eq!(address.to_string(), meant);
        }
        let refused = serde_yaml::from_str::<DnsServer>("dns.internal").unwrap_err().to_string();
        assert!(refused.contains("no IP address"), "{refused}");
    }
}
