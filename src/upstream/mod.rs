//! The origin side: targets, balance, health, retries.
//!
//! An [`Upstream`] is compiled from its configuration once; what it learns (health, counters, circuit) is carried over
//! to the next one by upstream name and target address. A request asks it for a [`Pick`], connects to the pick's
//! [`Target::peer`], reports how it went, and drops the pick when the answer is complete. That path takes no lock and
//! allocates nothing but the peer.

mod address;
mod balance;
mod breaker;
mod clock;
mod compile;
mod deadline;
pub mod discovery;
mod ejection;
mod failure;
mod form;
mod health;
mod latency;
pub mod mirror;
pub mod probe;
mod retry;
mod set;
mod state;
mod status;
mod sticky;
mod supervisor;
mod target;
mod tls;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::atomic::Ordering::*;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use http::Method;
use pingora::http::RequestHeader;

pub use self::breaker::BreakerState;
pub use self::clock::Moment;
pub use self::compile::Surroundings;
pub use self::deadline::Deadline;
pub use self::discovery::dns::Resolved;
pub use self::failure::Failure;
pub use self::form::{drop_connection_fields, request_form};
pub use self::retry::Cause;
pub use self::status::{Status, TargetStatus};
pub use self::supervisor::Supervisor;
pub use self::target::{Limits, Outcome, Pick, Target, TargetId, Timeouts};

use self::balance::Ask;
use self::breaker::{Breaker, Permit};
use self::discovery::dns::Name;
use self::ejection::Ejection;
use self::health::Checks;
use self::retry::Retry;
use self::set::{TargetSet, Template, Written};
use self::state::{UpstreamState, lock};
use self::sticky::Sticky;
use crate::config::upstream::{HashOn, StatusRange};
use crate::error::{Error, Reason, Result};

/// A named set of targets, ready to be picked from.
pub struct Upstream {
    shared: Arc<Shared>,
    set: ArcSwap<TargetSet>,
    /// Held while a new set is built, never by requests.
    rebuilding: Mutex<()>,
    template: Template,
    written: Vec<Written>,
    checks: Option<Checks>,
}

/// The part of an upstream that its targets know.
struct Shared {
    name: Arc<str>,
    rules: Rules,
    state: Arc<UpstreamState>,
}

/// The configuration in the form that requests use.
struct Rules {
    limits: Limits,
    /// `u32::MAX`: no limit.
    requests_per_target: u32,
    requests: Option<u32>,
    slow_start_millis: Option<u64>,
    hash_on: Option<HashOn>,
    sticky: Option<Sticky>,
    breaker: Option<Breaker>,
    ejection: Option<Ejection>,
    retry: Retry,
}

/// What a target is picked by.
#[derive(Clone, Copy, Default)]
pub struct PickRequest<'a> {
    /// From [`Upstream::hash_key`]; needed for consistent hashing only.
    pub key: Option<&'a [u8]>,
    /// From [`Upstream::sticky_value`].
    pub sticky: Option<&'a str>,
    /// Targets that this request has failed at. They are avoided while there is another one.
    pub tried: &'a [TargetId],
}

impl Upstream {
    pub fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    /// Chooses a target and takes a place among its requests in flight.
    ///
    /// A lower tier is used before a higher one, and a target that has not been tried before one that has. Errors are
    /// `CircuitOpen`, `NoHealthyTarget` (none is in service), and `UpstreamOverloaded` (those in service are at their
    /// limit, or the upstream is).
    pub fn pick(&self, request: &PickRequest<'_>, now: Moment) -> Result<Pick> {
        let shared = &*self.shared;
        if request.tried.is_empty() {
            shared.rules.retry.deposit(&shared.state.budget);
        }
        let permit = match &shared.rules.breaker {
            Some(breaker) => breaker.admit(&shared.state.breaker, now).ok_or(Reason::CircuitOpen)?,
            None => Permit::Normal,
        };
        let picked = shared.enter().and_then(|()| self.choose(request, now).inspect_err(|_| shared.leave()));
        match picked {
            Ok(target) => {
                target.state.requests.fetch_add(1, Relaxed);
                Ok(Pick::new(target, permit))
            }
            Err(error) => {
                shared.state.breaker.release(permit);
                Err(error)
            }
        }
    }

    /// Chooses a target and enters it.
    fn choose(&self, request: &PickRequest<'_>, now: Moment) -> Result<Arc<Target>> {
        let set = self.set.load();
        if let Some(target) = request.sticky.and_then(|value| set.by_sticky(value))
            && target.available(now)
            && !request.tried.contains(&target.id())
            && target.enter()
        {
            return Ok(target.clone());
        }
        // What the caller has tried is better than nothing, for instance where there is one target only.
        let preferences = [request.tried, &[]];
        for tried in &preferences[usize::from(request.tried.is_empty())..] {
            let ask = Ask { now, key: request.key, tried };
            for tier in &set.tiers {
                // Another thread may take the last place of the one chosen; it is then no longer available.
                while let Some(target) = tier.choose(&ask) {
                    if target.enter() {
                        return Ok(target.clone());
                    }
                }
            }
        }
        let full = set.targets.iter().any(|target| target.weight > 0 && target.state.in_service(now));
        Err(if full { Reason::UpstreamOverloaded } else { Reason::NoHealthyTarget }.into())
    }

    /// The key of this request for consistent hashing; `None` if the balance needs none or the request has none.
    pub fn hash_key<'r>(&self, head: &'r RequestHeader, client: IpAddr) -> Option<Cow<'r, [u8]>> {
        let key = match self.shared.rules.hash_on.as_ref()? {
            HashOn::Address => match client {
                IpAddr::V4(address) => Cow::Owned(address.octets().to_vec()),
                IpAddr::V6(address) => Cow::Owned(address.octets().to_vec()),
            },
            HashOn::Path => Cow::Borrowed(head.uri.path().as_bytes()),
            HashOn::Header(name) => Cow::Borrowed(head.headers.get(name)?.as_bytes()),
            HashOn::Cookie(name) => Cow::Borrowed(cookie(head, name)?.as_bytes()),
            HashOn::Query(name) => {
                let pairs = head.uri.query()?.split('&');
                let value = pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| key == name)?.1;
                Cow::Borrowed(value.as_bytes())
            }
        };
        Some(key).filter(|key| !key.is_empty())
    }

    /// The target that this request is bound to by its cookie, as [`PickRequest::sticky`] wants it.
    pub fn sticky_value<'r>(&self, head: &'r RequestHeader) -> Option<&'r str> {
        cookie(head, &self.shared.rules.sticky.as_ref()?.cookie)
    }

    /// The `Set-Cookie` that binds the client to the target, unless it is bound to it already.
    pub fn set_cookie(&self, target: &Target, sent: Option<&str>) -> Option<String> {
        let sticky = self.shared.rules.sticky.as_ref()?;
        (sent != Some(&target.sticky)).then(|| sticky.set_cookie(&target.sticky))
    }

    /// Decides whether a failed attempt is followed by another, after `attempts` of them; a yes has taken one retry from
    /// the budget. Whether the body can be sent again is for the caller to know.
    pub fn may_retry(&self, method: &Method, attempts: u32, cause: Cause, now: Moment) -> bool {
        let (rules, state) = (&self.shared.rules.retry, &self.shared.state);
        if !rules.allows(method, attempts, cause) {
            return false;
        }
        // A refused connection cost its target nothing: trying elsewhere does not multiply anyone's load.
        let affordable = cause == Cause::Failed(Failure::Connect) || rules.withdraw(&state.budget, now);
        if !affordable {
            state.retries_refused.fetch_add(1, Relaxed);
        }
        affordable
    }

    /// Whether an answer of this status may be worth another attempt; costs nothing, decides nothing.
    pub fn retries_on_status(&self, status: u16) -> bool {
        self.shared.rules.retry.retries_on_status(status)
    }

    /// The time limits of a request with these overrides.
    pub fn limits(&self, overrides: &Timeouts) -> Limits {
        self.shared.limits(overrides)
    }

    pub fn breaker_state(&self, now: Moment) -> BreakerState {
        self.shared.state.breaker.get(now)
    }

    /// The targets at present.
    pub fn targets(&self) -> Vec<Arc<Target>> {
        self.set.load().targets.clone()
    }

    /// The targets written as names, with their text, for the resolver to follow.
    fn names(&self) -> impl Iterator<Item = (&str, Name)> {
        self.written.iter().filter_map(|target| Some((target.text.as_str(), target.address.to_resolve()?)))
    }

    /// Replaces what the target written as `text` stands for. Targets that stay keep their health and counters; requests
    /// at those that go are not disturbed.
    pub fn update_targets(&self, text: &str, resolved: Vec<Resolved>, now: Moment) {
        lock(&self.shared.state.resolved).insert(text.to_owned(), resolved);
        self.refresh(now);
    }

    /// Builds the targets anew from what is known, which another upstream of this name (before a reload) may have
    /// learnt in the meantime.
    fn refresh(&self, now: Moment) {
        let _alone = lock(&self.rebuilding);
        let resolved = lock(&self.shared.state.resolved).clone();
        let known = self.set.load().states();
        let set = TargetSet::build(&self.shared, &self.template, &self.written, &resolved, &known, now);
        self.publish(set);
    }

    fn publish(&self, set: TargetSet) {
        let members = set.targets.iter().filter(|target| target.weight > 0).map(|target| target.state.clone());
        self.shared.state.members.store(Arc::new(members.collect()));
        self.set.store(Arc::new(set));
    }
}

impl Shared {
    fn limits(&self, overrides: &Timeouts) -> Limits {
        let own = &self.rules.limits;
        Limits {
            connect: overrides.connect.unwrap_or(own.connect),
            first_byte: overrides.first_byte.unwrap_or(own.first_byte),
            idle: overrides.idle.unwrap_or(own.idle),
            total: overrides.total.or(own.total),
        }
    }

    /// Takes a place among the upstream's requests in flight.
    fn enter(&self) -> Result<()> {
        let Some(limit) = self.rules.requests else {
            return Ok(());
        };
        if self.state.in_flight.fetch_add(1, AcqRel) < limit {
            return Ok(());
        }
        self.state.in_flight.fetch_sub(1, AcqRel);
        Err(Error::new(Reason::UpstreamOverloaded))
    }

    fn leave(&self) {
        if self.rules.requests.is_some() {
            self.state.in_flight.fetch_sub(1, AcqRel);
        }
    }

    /// Applies the outcome of one attempt to all that learns from it.
    fn learn(&self, target: &Target, permit: Permit, outcome: Outcome, now: Moment) {
        /// What a failure counts as in the moving average: enough to keep a target that fails fast from looking fast.
        const FAILURE_MICROS: f32 = 1_000_000.0;

        let failed = |statuses: &[StatusRange]| match outcome {
            Outcome::Answered { status, .. } => statuses.iter().any(|range| range.contains(status)),
            Outcome::Failed(_) => true,
        };
        // As passive health has it by default.
        let mut bad = failed(&[StatusRange { from: 502, to: 504 }]);
        if let Some(breaker) = &self.rules.breaker {
            breaker.record(&self.state.breaker, permit, failed(&breaker.statuses), now);
        }
        if let Some(ejection) = &self.rules.ejection {
            bad = failed(&ejection.statuses);
            if ejection.learn(&self.state, &target.state, bad, now) {
                log::warn!("upstream {}: target {} ejected: it failed repeatedly", self.name, target.name);
            }
            if let Outcome::Answered { first_byte, .. } = outcome {
                let slow = ejection.time(&self.state, &target.state, first_byte, now);
                if slow > 0 {
                    log::warn!("upstream {}: {slow} slow target(s) ejected", self.name);
                }
            }
        }
        if bad {
            target.state.failures.fetch_add(1, Relaxed);
        }
        let micros = match outcome {
            Outcome::Answered { first_byte, .. } if !bad => first_byte.as_micros() as f32,
            _ => FAILURE_MICROS,
        };
        target.state.latency.observe(micros, now);
    }
}

fn cookie<'r>(head: &'r RequestHeader, name: &str) -> Option<&'r str> {
    // HTTP/2 allows the header to be split (RFC 9113, section 8.2.3).
    let mut headers = head.headers.get_all(http::header::COOKIE).iter();
    headers.find_map(|value| sticky::cookie_value(value.to_str().ok()?, name))
}

#[cfg(test)]
mod tests;
