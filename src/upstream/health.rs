//! Active health: asks every target of an upstream, in the background.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::Upstream;
use super::clock::Moment;
use super::probe::{Connectors, GrpcProbe, GrpcProbeSettings, HttpProbe, HttpProbeSettings, Probe, TcpProbe};
use super::target::{Target, TargetId};
use crate::config::upstream::ActiveHealth;

/// Checks under way at a time, in the whole process.
const PARALLEL: usize = 64;

/// How the targets of an upstream are checked.
#[derive(Debug)]
pub(super) struct Checks(ActiveHealth);

impl Checks {
    pub(super) fn new(config: ActiveHealth) -> Self {
        Checks(config)
    }

    /// The probe for targets whose name is `authority`.
    fn probe(&self, authority: &str, connectors: &Arc<Connectors>) -> Result<Arc<dyn Probe>, String> {
        let ActiveHealth { http, grpc, timeout, .. } = &self.0;
        let timeout = timeout.get();
        Ok(match (http, grpc) {
            (Some(http), _) => {
                let expect: Vec<String> = http.expect.iter().map(|r| format!("{}-{}", r.from, r.to)).collect();
                let settings = HttpProbeSettings {
                    path: http.path.clone(),
                    host: http.host.as_deref().unwrap_or(authority).to_owned(),
                    expect: expect.join(",").parse()?,
                    body_contains: http.contains.clone(),
                    timeout,
                    ..Default::default()
                };
                Arc::new(HttpProbe::new(settings, connectors.clone())?)
            }
            (None, Some(grpc)) => {
                let settings =
                    GrpcProbeSettings { service: grpc.service.clone(), authority: authority.to_owned(), timeout };
                Arc::new(GrpcProbe::new(settings, connectors.clone())?)
            }
            (None, None) => Arc::new(TcpProbe::new(timeout, connectors.clone())),
        })
    }

    /// When a target is due: after the interval, give or take a tenth that differs from check to check.
    fn due(&self, target: &Target, now: Moment) -> Moment {
        let Some(last) = target.state.last_check() else {
            return now;
        };
        let interval = self.0.interval.get();
        let spread = target.id().0.wrapping_add(last.as_millis()).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        last + interval.mul_f64(0.9 + 0.2 * (spread as f64 / f64::from(u32::MAX)))
    }
}

/// Checks the targets of one upstream, whatever object stands for it at the time.
pub(super) struct Checker {
    upstream: Arc<ArcSwap<Upstream>>,
    changed: Arc<Notify>,
    means: Means,
    running: JoinSet<()>,
    under_way: HashMap<Id, TargetId>,
}

/// What all checks of the process share.
#[derive(Clone)]
pub(super) struct Means {
    connectors: Arc<Connectors>,
    parallel: Arc<Semaphore>,
}

impl Means {
    pub(super) fn new(connectors: Arc<Connectors>) -> Self {
        Means { connectors, parallel: Arc::new(Semaphore::new(PARALLEL)) }
    }
}

impl Checker {
    /// `changed` tells that another object stands for the upstream.
    pub(super) fn new(upstream: Arc<ArcSwap<Upstream>>, changed: Arc<Notify>, means: Means) -> Self {
        Checker { upstream, changed, means, running: JoinSet::new(), under_way: HashMap::new() }
    }

    /// Checks until dropped, which ends the checks under way.
    pub(super) async fn run(mut self) {
        loop {
            let pause = self.start_due();
            tokio::select! {
                () = self.changed.notified() => {}
                Some(ended) = self.running.join_next_with_id() => {
                    let id = match ended {
                        Ok((id, ())) => id,
                        Err(error) => {
                            // A check that panicked tells nothing about its target.
                            log::error!("health check of {}: {error}", self.upstream.load().name());
                            error.id()
                        }
                    };
                    self.under_way.remove(&id);
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Starts the checks that are due; tells how long to wait for the next.
    fn start_due(&mut self) -> Duration {
        let now = now();
        let upstream = self.upstream.load_full();
        let Some(checks) = &upstream.checks else {
            return Duration::from_secs(1);
        };
        // Also how soon targets that a name has come to stand for are noticed.
        let mut pause = checks.0.interval.get().min(Duration::from_secs(1));
        for target in upstream.targets() {
            if self.under_way.values().any(|id| *id == target.id()) {
                continue;
            }
            let due = checks.due(&target, now);
            if due > now {
                pause = pause.min(Duration::from_millis(due.millis_since(now)));
                continue;
            }
            target.state.begin_check(now);
            let id = target.id();
            let check = check(upstream.clone(), target, self.means.clone());
            self.under_way.insert(self.running.spawn(check).id(), id);
        }
        pause.max(Duration::from_millis(1))
    }
}

async fn check(upstream: Arc<Upstream>, target: Arc<Target>, means: Means) {
    let Some(checks) = &upstream.checks else {
        return;
    };
    let result = match checks.probe(&target.authority, &means.connectors) {
        Ok(probe) => {
            // Closed never; if it were, checking on is right.
            let _turn = means.parallel.acquire().await;
            probe.run(target.check_peer()).await
        }
        Err(error) => Err(error),
    };
    let ActiveHealth { healthy_after, unhealthy_after, .. } = checks.0;
    match target.state.check_ended(&result, healthy_after, unhealthy_after, now()) {
        Some(true) => log::info!("upstream {}: target {} is healthy", upstream.name(), target.name()),
        Some(false) => {
            let why = result.err().unwrap_or_default();
            log::warn!("upstream {}: target {} is unhealthy: {why}", upstream.name(), target.name());
        }
        None => {}
    }
}

/// By tokio's clock, which a test can hold.
fn now() -> Moment {
    Moment::at(Instant::now().into_std())
}
