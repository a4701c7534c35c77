//! Follows names in the DNS: resolves them in the background and reports when the set of addresses changes.
//!
//! Nothing here is on the way of a request. What one resolution does is in [`query`]; this file decides when to
//! resolve again and what to believe:
//!
//! - an answer holds for its time to live, within the configured bounds, plus up to a tenth so that many names do not
//!   come due together;
//! - while the DNS fails (no answer, SERVFAIL, garbage), the last good answer stays for as long as it takes, and
//!   questions back off to one every 30 seconds;
//! - when the DNS says that the name does not exist or has no addresses, the last good answer stays for
//!   [`stale`](Dns::stale), because a zone emptied by mistake is more frequent than a service that really left;
//!   after that the set is empty.

mod query;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use self::query::{Memory, Outcome, Sources};
use crate::config::dns::Dns;
use crate::config::{Problems, units};

/// The longest pause between two questions while the DNS fails or denies a name.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// DNS servers are not asked more often than this, whatever an answer's time to live says.
const LEAST_TTL: Duration = Duration::from_millis(10);

/// A name to follow, written `host:port` or `srv:_service._proto.name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// The A and AAAA records of `name`, each with `port`. The name may be an address already.
    Host { name: String, port: u16 },
    /// The SRV records of `name`, and the addresses of the hosts they list.
    Srv { name: String },
}

/// One address that a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resolved {
    pub address: SocketAddr,
    /// 1 for hosts. The SRV weight otherwise, at least 1; each address of a listed host carries the whole of it.
    pub weight: u32,
    /// 0 for hosts. The rank of the SRV priority otherwise: 0 is used first.
    pub tier: u8,
}

/// How names are resolved: what [`Dns`] says, and the files of the system.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolverConfig {
    pub servers: Vec<SocketAddr>,
    pub search: Vec<String>,
    pub ndots: usize,
    /// Says what `servers` does not, and is read again when it changes.
    pub resolv_conf: PathBuf,
    /// Consulted before the DNS, and read again when it changes.
    pub hosts: PathBuf,
    pub min_ttl: Duration,
    pub max_ttl: Duration,
    pub stale: Duration,
    pub timeout: Duration,
}

/// Counts over all names since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Resolutions, whatever their outcome.
    pub resolutions: AtomicU64,
    /// Resolutions that failed, or that had to fill a gap from memory.
    pub failures: AtomicU64,
    /// Resolutions that said that there is no such name or no address.
    pub denials: AtomicU64,
    /// Times that a followed set of addresses changed.
    pub changes: AtomicU64,
}

/// Called with the whole new set, sorted by address, whenever it changes. Must return quickly, and must not call
/// [`Resolver::follow`].
pub type Callback = Arc<dyn Fn(&[Resolved]) + Send + Sync>;

/// Resolves and follows names. Cheap to clone.
#[derive(Clone)]
pub struct Resolver {
    inner: Arc<Inner>,
}

struct Inner {
    config: ArcSwap<ResolverConfig>,
    /// Wakes those who follow names when the configuration has changed.
    configured: Notify,
    runtime: Handle,
    sources: Mutex<Sources>,
    followed: Mutex<HashMap<Name, Weak<Followed>>>,
    counters: Counters,
}

/// Keeps a name followed; dropping the last handle of a name ends its questions.
pub struct FollowHandle {
    followed: Arc<Followed>,
    listener: u64,
}

/// What is known about a followed name.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// `None` until the first resolution that found or denied the name.
    pub targets: Option<Arc<[Resolved]>>,
    /// Why the latest resolution did not succeed.
    pub trouble: Option<String>,
}

/// One followed name, shared by all its handles, so that a reload keeps the answer and asks nothing twice.
struct Followed {
    name: Name,
    resolver: Weak<Inner>,
    status: watch::Sender<Status>,
    listeners: Mutex<Vec<(u64, Callback)>>,
    next_listener: AtomicU64,
    /// Held while listeners are called, so that none gets an older set after a newer one.
    delivery: Mutex<()>,
    task: Mutex<Option<AbortHandle>>,
}

impl Resolver {
    /// Reads no file and asks nothing yet. All work is done on `runtime`, which must outlive the resolver.
    pub fn new(config: ResolverConfig, runtime: Handle) -> Self {
        let inner = Inner {
            config: ArcSwap::from_pointee(config),
            configured: Notify::new(),
            runtime,
            sources: Mutex::default(),
            followed: Mutex::default(),
            counters: Counters::default(),
        };
        Resolver { inner: Arc::new(inner) }
    }

    /// Takes another configuration. If it differs, every followed name is resolved again at once; what was known of it
    /// stays until then.
    pub fn configure(&self, config: ResolverConfig) {
        if **self.inner.config.load() != config {
            self.inner.config.store(Arc::new(config));
            self.inner.configured.notify_waiters();
        }
    }

    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// Resolves `name` once, now. The error is one line for the operator.
    pub async fn resolve_once(&self, name: Name, timeout: Duration) -> Result<Vec<Resolved>, String> {
        let inner = self.inner.clone();
        // On the resolver's own runtime, where its connections to the servers live.
        let mut work = self.inner.runtime.spawn(async move { inner.resolve(&name, &mut Memory::default()).await });
        match tokio::time::timeout(timeout, &mut work).await {
            Ok(Ok(Outcome::Found { targets, .. })) => Ok(targets),
            Ok(Ok(Outcome::Denied { why, .. } | Outcome::Failed { why })) => Err(why),
            Ok(Err(_)) => Err("the resolver was shut down".into()),
            Err(_) => {
                work.abort();
                Err(no_answer(timeout))
            }
        }
    }

    /// Follows `name` until the handle is dropped. `callback` is called at once if the name is followed already and
    /// known, and then, from the resolver's runtime, on each change. It may be called once more while the handle is
    /// being dropped.
    pub fn follow(&self, name: Name, callback: Callback) -> FollowHandle {
        let followed = self.followed(name);
        let listener = followed.next_listener.fetch_add(1, Ordering::Relaxed);
        let delivery = lock(&followed.delivery);
        lock(&followed.listeners).push((listener, callback.clone()));
        let known = followed.status.borrow().targets.clone();
        if let Some(targets) = known {
            call(&followed.name, &callback, &targets);
        }
        drop(delivery);
        FollowHandle { followed, listener }
    }

    fn followed(&self, name: Name) -> Arc<Followed> {
        let mut all = lock(&self.inner.followed);
        if let Some(followed) = all.get(&name).and_then(Weak::upgrade) {
            return followed;
        }
        let followed = Arc::new(Followed {
            name: name.clone(),
            resolver: Arc::downgrade(&self.inner),
            status: watch::Sender::default(),
            listeners: Mutex::default(),
            next_listener: AtomicU64::new(0),
            delivery: Mutex::default(),
            task: Mutex::default(),
        });
        let task = self.inner.runtime.spawn(keep_following(Arc::downgrade(&followed), self.inner.clone()));
        *lock(&followed.task) = Some(task.abort_handle());
        all.insert(name, Arc::downgrade(&followed));
        followed
    }
}

impl FollowHandle {
    pub fn status(&self) -> Status {
        self.followed.status.borrow().clone()
    }

    /// Waits until the name is known, or until it is clear within `timeout` that it is not.
    pub async fn settled(&self, timeout: Duration) -> Result<Arc<[Resolved]>, String> {
        let mut status = self.followed.status.subscribe();
        let known = status.wait_for(|status| status.targets.is_some());
        match tokio::time::timeout(timeout, known).await {
            Ok(Ok(status)) => Ok(status.targets.clone().unwrap_or_default()),
            _ => Err(self.status().trouble.unwrap_or_else(|| "no answer yet".into())),
        }
    }
}

impl Drop for FollowHandle {
    fn drop(&mut self) {
        lock(&self.followed.listeners).retain(|(id, _)| *id != self.listener);
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
        if let Some(resolver) = self.resolver.upgrade() {
            let mut all = lock(&resolver.followed);
            // A new one may stand under the name by now.
            if all.get(&self.name).is_some_and(|weak| weak.strong_count() == 0) {
                all.remove(&self.name);
            }
        }
    }
}

impl Followed {
    /// Makes `targets` the known set, and tells the listeners if that is a change.
    fn publish(&self, targets: Vec<Resolved>, counters: &Counters) {
        let _delivery = lock(&self.delivery);
        if self.status.borrow().targets.as_deref() == Some(&targets[..]) {
            return;
        }
        counters.changes.fetch_add(1, Ordering::Relaxed);
        match targets.len() {
            0 => log::warn!("{}: no targets", self.name),
            // Some services answer with a different few of their addresses each time.
            n => log::debug!("{}: {n} targets", self.name),
        }
        let targets: Arc<[Resolved]> = targets.into();
        self.status.send_modify(|status| status.targets = Some(targets.clone()));
        let listeners = lock(&self.listeners).clone();
        for (_, callback) in listeners {
            call(&self.name, &callback, &targets);
        }
    }

    /// Notes trouble or its end, and logs it only when it is news.
    fn note(&self, trouble: Option<String>) {
        let known = self.status.borrow().trouble.clone();
        match (&known, &trouble) {
            (None, Some(why)) => log::warn!("{}: {why}", self.name),
            (Some(_), None) => log::info!("{}: resolves again", self.name),
            // The wording may alternate from question to question, for example between two broken servers.
            _ => {}
        }
        if known != trouble {
            self.status.send_modify(|status| status.trouble = trouble);
        }
    }
}

/// Resolves the name again and again for as long as somebody holds a handle.
async fn keep_following(followed: Weak<Followed>, resolver: Arc<Inner>) {
    let Some(name) = followed.upgrade().map(|f| f.name.clone()) else { return };
    let mut memory = Memory::default();
    let mut failures = 0;
    let mut denied_since = None;
    loop {
        // Before the resolution, so that a change during it is not missed.
        let configured = resolver.configured.notified();
        let config = resolver.config.load_full();
        let outcome = resolver.resolve(&name, &mut memory).await;
        let Some(shared) = followed.upgrade() else { return };
        let pause = match outcome {
            Outcome::Found { targets, ttl, gap } => {
                denied_since = None;
                failures = if gap.is_some() { failures + 1 } else { 0 };
                shared.note(gap);
                shared.publish(targets, &resolver.counters);
                let due = config.hold(ttl);
                if failures > 0 { due.min(config.back_off(failures)) } else { due }
            }
            Outcome::Denied { why, ttl } => {
                failures = 0;
                let since = *denied_since.get_or_insert_with(Instant::now);
                let left = config.stale.saturating_sub(since.elapsed());
                shared.note(Some(why));
                // An empty set needs no grace, and a name never seen has nothing to keep.
                let has_targets = shared.status.borrow().targets.as_ref().is_some_and(|t| !t.is_empty());
                if !has_targets || left.is_zero() {
                    shared.publish(Vec::new(), &resolver.counters);
                    config.hold(ttl).min(MAX_PAUSE)
                } else {
                    config.hold(ttl).min(MAX_PAUSE).min(left)
                }
            }
            Outcome::Failed { why } => {
                failures += 1;
                shared.note(Some(why));
                config.back_off(failures)
            }
        };
        drop(shared);
        let _ = tokio::time::timeout(pause, configured).await;
    }
}

impl Inner {
    /// One bounded resolution, counted.
    async fn resolve(self: &Arc<Self>, name: &Name, memory: &mut Memory) -> Outcome {
        let inner = self.clone();
        let config = self.config.load_full();
        let timeout = config.timeout;
        let work = async {
            // Files may have to be read, which blocks.
            let snapshot = tokio::task::spawn_blocking(move || lock(&inner.sources).current(&config)).await.ok()?;
            Some(snapshot.resolve(name, memory).await)
        };
        let outcome = match tokio::time::timeout(timeout, work).await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Outcome::Failed { why: "the resolver is shutting down".into() },
            Err(_) => Outcome::Failed { why: no_answer(timeout) },
        };
        let counters = &self.counters;
        counters.resolutions.fetch_add(1, Ordering::Relaxed);
        match &outcome {
            Outcome::Found { gap: None, .. } => {}
            Outcome::Found { .. } | Outcome::Failed { .. } => drop(counters.failures.fetch_add(1, Ordering::Relaxed)),
            Outcome::Denied { .. } => drop(counters.denials.fetch_add(1, Ordering::Relaxed)),
        }
        outcome
    }
}

impl ResolverConfig {
    /// Reports what cannot work. `path` is the place in the document.
    pub fn compile(dns: &Dns, path: &str, problems: &mut Problems) -> ResolverConfig {
        let config = ResolverConfig {
            servers: dns.servers.iter().map(|server| server.0).collect(),
            search: dns.search.clone(),
            ndots: dns.ndots,
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
            min_ttl: dns.min_ttl.get(),
            max_ttl: dns.max_ttl.get(),
            stale: dns.stale.get(),
            timeout: dns.timeout.get(),
        };
        if config.min_ttl < LEAST_TTL {
            problems.add(format!("{path}.min_ttl"), format!("needs at least {}", units::Duration(LEAST_TTL)));
        }
        if config.max_ttl < config.min_ttl {
            problems.add(format!("{path}.max_ttl"), "is shorter than `min_ttl`");
        }
        if config.timeout.is_zero() {
            problems.add(format!("{path}.timeout"), "must be longer than 0s");
        }
        for (i, domain) in config.search.iter().enumerate().filter(|(_, domain)| !query::is_name(domain)) {
            problems.add(format!("{path}.search[{i}]"), format!("`{domain}` is no domain name"));
        }
        if config.servers.is_empty() && !config.search.is_empty() {
            problems.add(format!("{path}.search"), "works only with `servers`; without, /etc/resolv.conf has the list");
        }
        config
    }

    /// How long an answer with this time to live holds.
    fn hold(&self, ttl: Duration) -> Duration {
        // `max` last: bounds that cross must not panic, as `clamp` would.
        ttl.min(self.max_ttl).max(self.min_ttl).mul_f64(1.0 + 0.1 * fastrand::f64())
    }

    /// How long to wait after so many failures in a row.
    fn back_off(&self, failures: u32) -> Duration {
        let doubled = self.min_ttl.saturating_mul(1 << failures.saturating_sub(1).min(16));
        doubled.min(MAX_PAUSE).mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}

fn no_answer(limit: Duration) -> String {
    format!("no answer within {}", units::Duration(limit))
}

fn call(name: &Name, callback: &Callback, targets: &[Resolved]) {
    // A panic must not end the task that follows the name for everybody.
    if std::panic::catch_unwind(AssertUnwindSafe(|| callback(targets))).is_err() {
        log::error!("{name}: a listener panicked");
    }
}

/// No invariant is ever broken while one of these locks is held, so poison means nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("srv:") {
            let labels: Vec<&str> = name.split('.').collect();
            let marked = labels.iter().take(2).all(|label| label.len() > 1 && label.starts_with('_'));
            if labels.len() < 3 || !marked || !query::is_name(name) {
                return Err(format!("`{text}` is not a service name; write srv:_service._proto.name"));
            }
            return Ok(Name::Srv { name: name.into() });
        }
        let wrong = || format!("`{text}` is not a host and a port; write name:port, as in orders.internal:8080");
        let (name, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let name = match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
            Some(inner) => inner.parse::<Ipv6Addr>().map(|_| inner).map_err(|_| wrong())?,
            None if query::is_name(name) => name,
            None => return Err(wrong()),
        };
        Ok(Name::Host { name: name.into(), port })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Host { name, port } if name.contains(':') => write!(f, "[{name}]:{port}"),
            Name::Host { name, port } => write!(f, "{name}:{port}"),
            Name::Srv { name } => write!(f, "srv:{name}"),
        }
    }
}
