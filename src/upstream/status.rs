//! How an upstream is doing, for `/status` and metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

use super::Upstream;
use super::clock::Moment;

/// One upstream, at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub name: Arc<str>,
    /// `closed`, `open` or `half_open`; absent without a breaker.
    pub breaker: Option<&'static str>,
    /// Whether the targets' certificates are verified; absent without TLS.
    pub tls_verified: Option<bool>,
    /// Retries refused by the budget since the start.
    pub retries_refused: u64,
    pub targets: Vec<TargetStatus>,
}

/// One target, at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct TargetStatus {
    pub name: Arc<str>,
    pub address: Arc<str>,
    pub weight: u32,
    pub tier: u16,
    /// As active checks found it; true without them.
    pub healthy: bool,
    /// Why the last active check failed.
    pub check_error: Option<Arc<str>>,
    /// Taken out of service by passive health.
    pub ejected: bool,
    pub in_flight: u32,
    /// Attempts sent to it since the start.
    pub requests: u64,
    /// Attempts that failed, or were answered by a status that counts as a failure: those of passive health, without it
    /// 502 to 504.
    pub failures: u64,
    /// Moving average of the time to the first byte.
    pub first_byte_seconds: f64,
}

impl Upstream {
    pub fn status(&self, now: Moment) -> Status {
        let targets = self.set.load();
        Status {
            name: self.shared.name.clone(),
            breaker: self.shared.rules.breaker.as_ref().map(|_| self.shared.state.breaker.get(now).label()),
            tls_verified: self.template.tls.as_ref().map(|tls| tls.verify),
            retries_refused: self.shared.state.retries_refused.load(Relaxed),
            targets: targets
                .targets
                .iter()
                .map(|target| TargetStatus {
                    name: target.name.clone(),
                    address: target.address.clone(),
                    weight: target.weight,
                    tier: target.tier,
                    healthy: target.state.healthy(),
                    check_error: target.state.check_error(),
                    ejected: target.state.ejected(now),
                    in_flight: target.in_flight(),
                    requests: target.state.requests.load(Relaxed),
                    failures: target.state.failures.load(Relaxed),
                    first_byte_seconds: f64::from(target.latency(now)) / 1e6,
                })
                .collect(),
        }
    }
}
