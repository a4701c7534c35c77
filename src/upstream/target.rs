//! One target of an upstream, and a request's hold on it.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

use pingora::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora::upstreams::peer::HttpPeer;

use super::Shared;
use super::breaker::Permit;
use super::clock::Moment;
use super::deadline::Deadline;
use super::failure::Failure;
use super::state::TargetState;

/// Identifies a target of an upstream by both their names; the same before and after a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TargetId(pub(super) u64);

/// One origin server, ready to be connected to.
pub struct Target {
    pub(super) id: TargetId,
    pub(super) address: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) weight: u32,
    pub(super) tier: u16,
    /// What a `Host` names it by where none is configured.
    pub(super) authority: Arc<str>,
    /// What stands for it in the sticky cookie; empty without one.
    pub(super) sticky: Box<str>,
    /// Complete but for what a request overrides; cloning it is one copy of some 600 bytes, plus the name for TLS.
    pub(super) peer: HttpPeer,
    /// The peer that active checks go to, if it is another port.
    pub(super) check_peer: Option<HttpPeer>,
    pub(super) state: Arc<TargetState>,
    pub(super) shared: Arc<Shared>,
}

/// Time limits that a request has instead of its upstream's; `None` keeps the upstream's.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Option<Duration>,
    pub first_byte: Option<Duration>,
    pub idle: Option<Duration>,
    pub total: Option<Duration>,
}

impl Target {
    pub fn id(&self) -> TargetId {
        self.id
    }

    /// `10.0.0.1:9001` or `unix:/run/orders.sock`; resolved, where a name was written.
    pub fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// The name given in the configuration, else the address.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// `orders.internal:9001`, as it was written; for a Unix socket `localhost`.
    pub fn authority(&self) -> &Arc<str> {
        &self.authority
    }

    /// A peer for one attempt, with every timeout set.
    ///
    /// Pingora has one limit for every read, the first included. Over HTTP/1.1 it is the longer of `first_byte` and
    /// `idle`, and a [`Deadline`] keeps the shorter one and `total`; an HTTP/2 connection is shared, so that there the
    /// shorter of all three holds for every read.
    pub fn peer(&self, overrides: &Timeouts) -> Box<HttpPeer> {
        let mut peer = Box::new(self.peer.clone());
        if *overrides != Timeouts::default() {
            set_timeouts(&mut peer, &self.shared.limits(overrides));
        }
        peer
    }

    /// False if it is spoken to by HTTP/2 only.
    pub fn speaks_http1(&self) -> bool {
        self.peer.options.alpn.get_min_http_version() == 1
    }

    /// Watches over one attempt's connection, from when it is there; `None` if the peer's own timeouts suffice or the
    /// connection may be shared. `spent` is the time since the first attempt began. `fd` must be open.
    pub fn watch(&self, fd: RawFd, overrides: &Timeouts, spent: Duration) -> Option<Deadline> {
        if !http1_only(&self.peer) {
            return None;
        }
        let limits = self.shared.limits(overrides);
        let first_byte = Some(limits.first_byte).filter(|first_byte| *first_byte < limits.idle);
        let total = limits.total.map(|total| total.saturating_sub(spent));
        if first_byte.is_none() && total.is_none() {
            return None;
        }
        Deadline::arm(fd, first_byte, total)
            .inspect_err(|error| log::error!("upstream {}: no deadline: {error}", self.shared.name))
            .ok()
    }

    pub(super) fn check_peer(&self) -> &HttpPeer {
        self.check_peer.as_ref().unwrap_or(&self.peer)
    }

    pub(super) fn peer_address(&self) -> &PeerAddress {
        &self.peer._address
    }

    pub fn socket_address(&self) -> Option<SocketAddr> {
        self.peer._address.as_inet().copied()
    }

    pub fn weight(&self) -> u32 {
        self.weight
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.state.in_flight.load(Relaxed)
    }

    pub(super) fn latency(&self, now: Moment) -> f32 {
        self.state.latency.get(now)
    }

    /// May take a request: in service and below its limit.
    pub(super) fn available(&self, now: Moment) -> bool {
        self.state.in_service(now) && self.in_flight() < self.shared.rules.requests_per_target
    }

    /// The part of its full share that slow start grants it: rising from a tenth to 1.
    pub(super) fn ramp(&self, now: Moment) -> f32 {
        let Some(slow_start) = self.shared.rules.slow_start_millis else {
            return 1.0;
        };
        let since = self.state.in_service_since();
        // In service since it is known: it has nothing to warm up for.
        if since == Moment::NEVER {
            return 1.0;
        }
        let age = now.millis_since(since);
        (age as f32 / slow_start as f32).clamp(0.1, 1.0)
    }

    /// Takes a place among the requests in flight; false if another thread took the last.
    pub(super) fn enter(&self) -> bool {
        if self.state.in_flight.fetch_add(1, AcqRel) < self.shared.rules.requests_per_target {
            return true;
        }
        self.state.in_flight.fetch_sub(1, AcqRel);
        false
    }
}

/// Pingora's form of the limits.
pub(super) fn set_timeouts(peer: &mut HttpPeer, limits: &Limits) {
    let read = match http1_only(peer) {
        true => limits.first_byte.max(limits.idle),
        false => limits.first_byte.min(limits.idle),
    };
    // The total covers connecting and the TLS handshake; a second timer for the connection alone would be idle.
    let within_total = |limit: Duration| limits.total.map_or(limit, |total| limit.min(total));
    peer.options.total_connection_timeout = Some(within_total(limits.connect));
    peer.options.read_timeout = Some(within_total(read));
    peer.options.write_timeout = Some(limits.idle);
}

/// Whether no other request can be on the connection at the same time.
fn http1_only(peer: &HttpPeer) -> bool {
    peer.options.alpn.get_max_http_version() == 1
}

/// The time limits that hold for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub connect: Duration,
    pub first_byte: Duration,
    pub idle: Duration,
    pub total: Option<Duration>,
}

/// How an attempt ended, as far as the target is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, with this status, this long after the request was sent.
    Answered {
        status: u16,
        first_byte: Duration,
    },
    Failed(Failure),
}

/// A request's hold on a target. While it lives, the request counts as in flight there; drop it when the answer is
/// complete, or when the attempt is given up.
pub struct Pick {
    target: Arc<Target>,
    permit: Permit,
    reported: bool,
}

impl Pick {
    /// The caller has entered the target, and the upstream where its requests are limited.
    pub(super) fn new(target: Arc<Target>, permit: Permit) -> Self {
        Pick { target, permit, reported: false }
    }

    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// Tells how the attempt went, once: at the answer's header or when it failed. It feeds latency, ejection and
    /// breaker. An attempt that ends without a report, because the client left, counts for nothing.
    pub fn report(&mut self, outcome: Outcome, now: Moment) {
        if !std::mem::replace(&mut self.reported, true) {
            self.target.shared.learn(&self.target, self.permit, outcome, now);
        }
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.target.state.in_flight.fetch_sub(1, AcqRel);
        let shared = &self.target.shared;
        shared.leave();
        if !self.reported {
            shared.state.breaker.release(self.permit);
        }
    }
}
