//! The circuit breaker of one upstream: closed, open, half-open. Atomics only; counts may be off by the few requests
//! that finish while a slice of the window is being reused.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use std::time::Duration;

use super::clock::Moment;
use crate::config::upstream as config;

/// What `/status` and metrics show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    Open,
    /// Lets a few requests through to see whether the upstream has recovered.
    HalfOpen,
}

impl BreakerState {
    pub fn label(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
        }
    }
}

/// The window is counted in this many slices, which bounds how long an old result lingers.
const SLICES: usize = 10;

#[derive(Default)]
struct Slice {
    /// Which slice of time the counts belong to.
    epoch: AtomicU64,
    total: AtomicU32,
    failed: AtomicU32,
}

/// What survives a reload.
#[derive(Default)]
pub(super) struct State {
    slices: [Slice; SLICES],
    /// 0 while closed; else when half-open begins.
    open_until: AtomicU64,
    /// Counts openings, so that a probation of an earlier one does not decide a later one.
    generation: AtomicU32,
    probes_started: AtomicU32,
    probes_succeeded: AtomicU32,
}

/// The permission to send one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permit {
    Normal,
    /// On probation, in this generation.
    Probe(u32),
}

/// The rules, as compiled from the configuration.
#[derive(Debug)]
pub(super) struct Breaker {
    share: f64,
    min_requests: u32,
    slice_millis: u64,
    open_for: Duration,
    probes: u32,
    pub(super) statuses: Vec<config::StatusRange>,
}

impl Breaker {
    pub(super) fn new(config: &config::Breaker) -> Self {
        Breaker {
            share: config.failures.fraction(),
            min_requests: config.min_requests.max(1),
            slice_millis: (config.window.get().as_millis() as u64 / SLICES as u64).max(1),
            open_for: config.open_for.get(),
            probes: config.half_open_requests.max(1),
            statuses: config.statuses.clone(),
        }
    }

    /// `None`: the circuit is open.
    pub(super) fn admit(&self, state: &State, now: Moment) -> Option<Permit> {
        match state.get(now) {
            BreakerState::Closed => Some(Permit::Normal),
            BreakerState::Open => None,
            BreakerState::HalfOpen => {
                let generation = state.generation.load(Acquire);
                let more = |started| (started < self.probes).then_some(started + 1);
                state.probes_started.fetch_update(AcqRel, Acquire, more).ok()?;
                Some(Permit::Probe(generation))
            }
        }
    }

    pub(super) fn record(&self, state: &State, permit: Permit, failed: bool, now: Moment) {
        match permit {
            Permit::Normal => self.count(state, failed, now),
            Permit::Probe(generation) if generation != state.generation.load(Acquire) => {}
            Permit::Probe(_) if failed => self.open(state, now),
            Permit::Probe(_) => {
                if state.probes_succeeded.fetch_add(1, AcqRel) + 1 >= self.probes {
                    state.close();
                }
            }
        }
    }

    fn count(&self, state: &State, failed: bool, now: Moment) {
        // Requests sent before the circuit opened say nothing about the upstream's recovery.
        if state.open_until.load(Acquire) != 0 {
            return;
        }
        let epoch = now.as_millis() / self.slice_millis;
        let slice = &state.slices[(epoch % SLICES as u64) as usize];
        let seen = slice.epoch.load(Acquire);
        if seen != epoch && slice.epoch.compare_exchange(seen, epoch, AcqRel, Acquire).is_ok() {
            slice.total.store(0, Release);
            slice.failed.store(0, Release);
        }
        slice.total.fetch_add(1, AcqRel);
        if failed {
            slice.failed.fetch_add(1, AcqRel);
            let (total, failed) = self.sum(state, epoch);
            if total >= self.min_requests && f64::from(failed) >= self.share * f64::from(total) {
                self.open(state, now);
            }
        }
    }

    fn sum(&self, state: &State, epoch: u64) -> (u32, u32) {
        let current = |slice: &&Slice| epoch.saturating_sub(slice.epoch.load(Acquire)) < SLICES as u64;
        state.slices.iter().filter(current).fold((0, 0), |(total, failed), slice| {
            (total + slice.total.load(Acquire), failed + slice.failed.load(Acquire))
        })
    }

    fn open(&self, state: &State, now: Moment) {
        state.generation.fetch_add(1, AcqRel);
        state.probes_succeeded.store(0, Release);
        state.probes_started.store(0, Release);
        state.open_until.store((now + self.open_for).as_millis().max(1), Release);
    }
}

impl State {
    pub(super) fn get(&self, now: Moment) -> BreakerState {
        match self.open_until.load(Acquire) {
            0 => BreakerState::Closed,
            until if now.as_millis() < until => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        }
    }

    /// Gives back a permit whose request ended without telling anything, for instance because the client left.
    pub(super) fn release(&self, permit: Permit) {
        if let Permit::Probe(generation) = permit
            && generation == self.generation.load(Acquire)
        {
            let _ = self.probes_started.fetch_update(AcqRel, Acquire, |started| started.checked_sub(1));
        }
    }

    pub(super) fn close(&self) {
        for slice in &self.slices {
            slice.total.store(0, Release);
            slice.failed.store(0, Release);
        }
        self.generation.fetch_add(1, AcqRel);
        self.open_until.store(0, Release);
        self.probes_started.store(0, Release);
        self.probes_succeeded.store(0, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::units::Share;

    fn breaker() -> Breaker {
        Breaker::new(&config::Breaker {
            failures: Share(0.5),
            min_requests: 10,
            window: crate::config::units::Duration::from_secs(10),
            open_for: crate::config::units::Duration::from_secs(5),
            half_open_requests: 2,
            ..Default::default()
        })
    }

    fn at(millis: u64) -> Moment {
        Moment::from_millis(1_000_000 + millis)
    }

    fn send(breaker: &Breaker, state: &State, failed: bool, now: Moment) -> bool {
        breaker.admit(state, now).inspect(|permit| breaker.record(state, *permit, failed, now)).is_some()
    }

    fn opened() -> (Breaker, State) {
        let (breaker, state) = (breaker(), State::default());
        for i in 0..10 {
            assert!(send(&breaker, &state, true, at(i)), "closed until there are enough requests to judge by");
        }
        assert_eq!(state.get(at(10)), BreakerState::Open);
        (breaker, state)
    }

    #[test]
    fn it_opens_at_the_share_and_not_below_it() {
        let (breaker, state) = (breaker(), State::default());
        for i in 0..100 {
            send(&breaker, &state, i % 5 > 2, at(i));
        }
        assert_eq!(state.get(at(100)), BreakerState::Closed, "40 % fail, 50 % are allowed");
        opened();
    }

    #[test]
    fn old_failures_leave_the_window() {
        let (breaker, state) = (breaker(), State::default());
        for i in 0..9 {
            send(&breaker, &state, true, at(i));
        }
        for i in 0..20 {
            send(&breaker, &state, false, at(11_000 + i));
        }
        send(&breaker, &state, true, at(11_500));
        assert_eq!(state.get(at(11_500)), BreakerState::Closed, "the nine failures are older than the window");
    }

    #[test]
    fn half_open_lets_few_through_and_closes_when_all_succeed() {
        let (breaker, state) = opened();
        assert_eq!(breaker.admit(&state, at(4000)), None, "open");
        let first = breaker.admit(&state, at(5100)).unwrap();
        let second = breaker.admit(&state, at(5100)).unwrap();
        assert_eq!(breaker.admit(&state, at(5100)), None, "two on probation are enough");
        breaker.record(&state, first, false, at(5200));
        assert_eq!(state.get(at(5200)), BreakerState::HalfOpen);
        breaker.record(&state, second, false, at(5200));
        assert_eq!(state.get(at(5200)), BreakerState::Closed);
        assert!(send(&breaker, &state, true, at(5300)));
        assert_eq!(state.get(at(5300)), BreakerState::Closed, "the failures before are forgotten");
    }

    #[test]
    fn one_failed_probe_opens_it_again_and_late_probes_do_not_count() {
        let (breaker, state) = opened();
        let first = breaker.admit(&state, at(5100)).unwrap();
        let late = breaker.admit(&state, at(5100)).unwrap();
        breaker.record(&state, first, true, at(5200));
        assert_eq!(state.get(at(5200)), BreakerState::Open);
        breaker.record(&state, late, false, at(5300));
        state.release(late);
        let next: Vec<_> = (0..3).map(|_| breaker.admit(&state, at(10_300)).is_some()).collect();
        assert_eq!(next, [true, true, false], "the late probe changed nothing in the new probation");
    }

    #[test]
    fn a_probe_that_learnt_nothing_is_given_back() {
        let (breaker, state) = opened();
        for _ in 0..5 {
            let permit = breaker.admit(&state, at(5100)).expect("a place on probation");
            state.release(permit);
        }
    }
}
