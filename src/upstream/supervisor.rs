//! What goes on in the background for the upstreams in service: following names, and checking health.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::Upstream;
use super::clock::Moment;
use super::discovery::dns::{Callback, FollowHandle, Resolver};
use super::health::{Checker, Means};
use super::probe::Connectors;
use super::state::lock;

/// Keeps the targets of the upstreams in service known and checked. Dropping it ends that.
pub struct Supervisor {
    runtime: Handle,
    resolver: Resolver,
    means: Means,
    followed: Mutex<HashMap<Arc<str>, Followed>>,
}

/// One upstream name, through all reloads.
struct Followed {
    upstream: Arc<ArcSwap<Upstream>>,
    changed: Arc<Notify>,
    checker: Option<AbortHandle>,
    names: HashMap<String, FollowHandle>,
}

impl Supervisor {
    /// `runtime` does the work and must outlive this.
    pub fn new(runtime: Handle, resolver: Resolver, connectors: Arc<Connectors>) -> Self {
        Supervisor { runtime, resolver, means: Means::new(connectors), followed: Mutex::default() }
    }

    /// Takes these as the upstreams in service, each name once. To be called for each snapshot that is published, and
    /// may be called as often as one likes: names and checks whose upstream stays go on undisturbed.
    pub fn follow(&self, upstreams: &[Arc<Upstream>]) {
        let mut followed = lock(&self.followed);
        let mut before = std::mem::take(&mut *followed);
        for upstream in upstreams {
            let mut entry = before.remove(upstream.name()).unwrap_or_else(|| Followed::new(upstream));
            entry.upstream.store(upstream.clone());
            upstream.activate(Moment::now());
            self.follow_names(&mut entry, upstream);
            self.check(&mut entry, upstream);
            followed.insert(upstream.name().clone(), entry);
        }
    }

    fn follow_names(&self, entry: &mut Followed, upstream: &Upstream) {
        let mut before = std::mem::take(&mut entry.names);
        for (text, name) in upstream.names() {
            let handle = match before.remove(text) {
                Some(handle) => handle,
                None => self.resolver.follow(name, entry.on_change(text)),
            };
            entry.names.insert(text.to_owned(), handle);
        }
    }

    fn check(&self, entry: &mut Followed, upstream: &Upstream) {
        if upstream.checks.is_none() {
            entry.stop_checks();
        } else if entry.checker.is_some() {
            entry.changed.notify_one();
        } else {
            let checker = Checker::new(entry.upstream.clone(), entry.changed.clone(), self.means.clone());
            entry.checker = Some(self.runtime.spawn(checker.run()).abort_handle());
        }
    }
}

impl Followed {
    fn new(upstream: &Arc<Upstream>) -> Self {
        Followed {
            upstream: Arc::new(ArcSwap::new(upstream.clone())),
            changed: Arc::new(Notify::new()),
            checker: None,
            names: HashMap::new(),
        }
    }

    fn on_change(&self, text: &str) -> Callback {
        let (current, changed, text) = (self.upstream.clone(), self.changed.clone(), text.to_owned());
        Arc::new(move |resolved| {
            let mut upstream = current.load_full();
            upstream.update_targets(&text, resolved.to_vec(), Moment::now());
            // A reload meanwhile may have built its targets just before this change.
            while !Arc::ptr_eq(&upstream, &current.load()) {
                upstream = current.load_full();
                upstream.refresh(Moment::now());
            }
            changed.notify_one();
        })
    }

    fn stop_checks(&mut self) {
        if let Some(checker) = self.checker.take() {
            checker.abort();
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.stop_checks();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::upstream::discovery::dns::ResolverConfig;
    use crate::upstream::tests::try_compile;

    fn supervisor() -> Supervisor {
        Supervisor::new(
            Handle::current(),
            Resolver::new(ResolverConfig::default(), Handle::current()),
            Arc::new(Connectors::new()),
        )
    }

    /// An origin that answers every request with the status it was told last, and counts them.
    #[derive(Clone)]
    struct Origin {
        address: String,
        status: Arc<Mutex<u16>>,
        asked: Arc<Mutex<u32>>,
    }

    impl Origin {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let origin = Origin { address, status: Arc::new(Mutex::new(200)), asked: Arc::default() };
            let answers = origin.clone();
            tokio::spawn(async move {
                while let Ok((mut socket, _)) = listener.accept().await {
                    let mut request = [0; 4096];
                    let _ = socket.read(&mut request).await;
                    *lock(&answers.asked) += 1;
                    let status = *lock(&answers.status);
                    let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                    let _ = socket.write_all(answer.as_bytes()).await;
                }
            });
            origin
        }

        fn set(&self, status: u16) {
            *lock(&self.status) = status;
        }
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        for _ in 0..500 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: not within 5 s");
    }

    fn config(addresses: &[&str], interval: &str) -> serde_json::Value {
        let targets: Vec<_> = addresses.iter().map(|address| serde_json::json!({ "address": address })).collect();
        serde_json::json!({
            "targets": targets,
            "health": { "active": {
                "http": { "path": "/healthz" }, "interval": interval, "healthy_after": 2, "unhealthy_after": 2,
            }},
        })
    }

    fn healthy(upstream: &Upstream) -> Vec<bool> {
        upstream.status(Moment::now()).targets.iter().map(|target| target.healthy).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_unhealthy_target_is_found_and_taken_back() {
        let (good, bad) = (Origin::start().await, Origin::start().await);
        bad.set(500);
        let upstream = try_compile(config(&[&good.address, &bad.address], "20ms"), None).unwrap();
        let supervisor = supervisor();
        supervisor.follow(std::slice::from_ref(&upstream));
        until("the bad one is out", || healthy(&upstream) == [true, false]).await;
        let error = upstream.status(Moment::now()).targets[1].check_error.clone().unwrap();
        assert!(error.contains("500"), "{error}");
        bad.set(200);
        until("it is back", || healthy(&upstream) == [true, true]).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn checks_keep_their_pace_through_a_storm_of_reloads_and_end_with_their_upstream() {
        let origin = Origin::start().await;
        let supervisor = supervisor();
        let mut upstream = try_compile(config(&[&origin.address], "200ms"), None).unwrap();
        for _ in 0..100 {
            supervisor.follow(std::slice::from_ref(&upstream));
            upstream = try_compile(config(&[&origin.address], "200ms"), Some(&upstream)).unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let asked = *lock(&origin.asked);
        assert!((3..=10).contains(&asked), "{asked} checks in about a second");
        origin.set(503);
        until("checks go on for the newest", || healthy(&upstream) == [false]).await;
        supervisor.follow(&[]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let asked = *lock(&origin.asked);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(*lock(&origin.asked), asked, "nobody asks for an upstream that is gone");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn names_are_followed_and_their_targets_checked() {
        let origin = Origin::start().await;
        let port = origin.address.rsplit_once(':').unwrap().1;
        let upstream = try_compile(config(&[&format!("localhost:{port}")], "20ms"), None).unwrap();
        let supervisor = supervisor();
        supervisor.follow(std::slice::from_ref(&upstream));
        until("localhost is resolved", || {
            upstream.targets().iter().any(|target| **target.address() == *origin.address)
        })
        .await;
        until("its target is checked", || *lock(&origin.asked) > 2).await;
    }
}
