//! What is known of a target and of an upstream beyond its configuration; kept across reloads by name and address.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::clock::Moment;
use super::discovery::dns::Resolved;
use super::latency::Latency;
use super::{breaker, retry};

/// Counters and health of one target. Hot fields are atomics on their own cache lines; nothing here is ever locked.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct TargetState {
    pub(super) in_flight: AtomicU32,
    pub(super) requests: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) consecutive_failures: AtomicU32,
    pub(super) latency: Latency,
    /// Time to first byte in microseconds and answers, since targets were last judged for slowness.
    pub(super) slow_micros: AtomicU64,
    pub(super) slow_answers: AtomicU32,

    /// When the current or last ejection ends.
    ejected_until: AtomicU64,
    /// Ejections in succession.
    pub(super) ejections: AtomicU32,

    unhealthy: AtomicBool,
    /// Checks in a row that contradict `unhealthy`.
    contradictions: AtomicU32,
    checked: AtomicBool,
    last_check: AtomicU64,
    /// Why the last check failed.
    check_error: Mutex<Option<Arc<str>>>,

    /// When it became able to take requests, for slow start; 0 is long ago.
    since: AtomicU64,
}

impl TargetState {
    pub(super) fn new(since: Moment, now: Moment) -> Self {
        TargetState {
            in_flight: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            consecutive_failures: AtomicU32::new(0),
            latency: Latency::new(now),
            slow_micros: AtomicU64::new(0),
            slow_answers: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            unhealthy: AtomicBool::new(false),
            contradictions: AtomicU32::new(0),
            checked: AtomicBool::new(false),
            last_check: AtomicU64::new(0),
            check_error: Mutex::new(None),
            since: AtomicU64::new(since.as_millis()),
        }
    }

    pub(super) fn healthy(&self) -> bool {
        !self.unhealthy.load(Relaxed)
    }

    pub(super) fn ejected(&self, now: Moment) -> bool {
        self.ejected_until() > now
    }

    pub(super) fn ejected_until(&self) -> Moment {
        Moment::from_millis(self.ejected_until.load(Relaxed))
    }

    pub(super) fn eject(&self, until: Moment) {
        self.ejected_until.store(until.as_millis(), Relaxed);
        self.consecutive_failures.store(0, Relaxed);
    }

    /// In service: neither found unhealthy nor ejected.
    pub(super) fn in_service(&self, now: Moment) -> bool {
        self.healthy() && !self.ejected(now)
    }

    /// Since when it has been in service.
    pub(super) fn in_service_since(&self) -> Moment {
        Moment::from_millis(self.since.load(Relaxed)).max(self.ejected_until())
    }

    /// When it was last checked; `None` if never.
    pub(super) fn last_check(&self) -> Option<Moment> {
        Some(Moment::from_millis(self.last_check.load(Relaxed))).filter(|at| *at != Moment::NEVER)
    }

    pub(super) fn begin_check(&self, now: Moment) {
        self.last_check.store(now.as_millis(), Relaxed);
    }

    pub(super) fn check_error(&self) -> Option<Arc<str>> {
        lock(&self.check_error).clone()
    }

    /// Applies the result of one active check; tells the new health if it changed. The first check decides at once.
    /// Not called by two threads at a time for one target.
    pub(super) fn check_ended(
        &self,
        result: &Result<(), String>,
        healthy_after: u32,
        unhealthy_after: u32,
        now: Moment,
    ) -> Option<bool> {
        *lock(&self.check_error) = result.as_ref().err().map(|error| error.as_str().into());
        let first = !self.checked.swap(true, Relaxed);
        if result.is_ok() == self.healthy() {
            self.contradictions.store(0, Relaxed);
            return None;
        }
        let contradictions = self.contradictions.fetch_add(1, Relaxed) + 1;
        if !first && contradictions < if result.is_ok() { healthy_after } else { unhealthy_after } {
            return None;
        }
        self.contradictions.store(0, Relaxed);
        if result.is_ok() {
            self.since.store(now.as_millis(), Relaxed);
        }
        self.unhealthy.store(result.is_err(), Relaxed);
        Some(result.is_ok())
    }

    /// Believes the target healthy, when it is no longer checked.
    pub(super) fn forget_checks(&self) {
        self.unhealthy.store(false, Relaxed);
        self.checked.store(false, Relaxed);
        self.contradictions.store(0, Relaxed);
        *lock(&self.check_error) = None;
    }
}

/// What an upstream knows beyond its configuration.
#[derive(Default)]
pub(super) struct UpstreamState {
    /// Counted only where there is a limit, as it is one cache line for all threads.
    pub(super) in_flight: AtomicU32,
    pub(super) breaker: breaker::State,
    pub(super) budget: retry::Budget,
    /// The targets of the newest set, among which ejections are counted.
    pub(super) members: ArcSwap<Vec<Arc<TargetState>>>,
    /// Held while ejecting, which is rare, so that two threads do not exceed the share together.
    pub(super) ejecting: Mutex<()>,
    /// When targets are next judged for slowness.
    pub(super) next_judgement: AtomicU64,
    /// What names stood for when they were last resolved, by the address as it is written.
    pub(super) resolved: Mutex<HashMap<String, Vec<Resolved>>>,
    /// Retries that the budget refused.
    pub(super) retries_refused: AtomicU64,
}

/// Locks even when a thread has panicked with the lock held: all that is kept under locks here is replaced whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_check_decides_and_later_ones_need_their_thresholds() {
        let at = Moment::from_millis;
        let state = TargetState::new(Moment::NEVER, at(1));
        let check =
            |good: bool, now| state.check_ended(&if good { Ok(()) } else { Err("refused".into()) }, 2, 3, at(now));
        assert!(state.healthy(), "believed healthy until checked");
        assert_eq!(check(false, 10), Some(false));
        assert_eq!(state.check_error().as_deref(), Some("refused"));
        assert_eq!((check(true, 20), check(false, 30), check(true, 40)), (None, None, None));
        assert_eq!(check(true, 50), Some(true));
        assert_eq!(state.in_service_since(), at(50), "slow start begins here");
        assert_eq!((check(false, 60), check(false, 70)), (None, None));
        assert!(state.healthy());
        assert_eq!(check(false, 80), Some(false));
    }
}
