//! Choosing one of a tier's targets. Hot: no lock, no allocation.
//!
//! Each algorithm proposes targets by its own rule; one that may not be used now (see [`Ask::usable`]) is passed over in
//! the way that keeps the algorithm's distribution among the rest.

mod hash;
mod lots;
mod schedule;

use std::sync::Arc;

use super::clock::Moment;
use super::target::{Target, TargetId};
use crate::config::upstream::Balance;
use hash::Ring;
use lots::{Lots, reduced};
use schedule::Schedule;

/// Up to this many targets, the least loaded is found by looking at all.
const SCAN: usize = 16;

/// What is asked of a tier.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) now: Moment,
    pub(super) key: Option<&'a [u8]>,
    /// Targets that have failed this request.
    pub(super) tried: &'a [TargetId],
}

impl Ask<'_> {
    fn usable(&self, target: &Target) -> bool {
        target.available(self.now) && !self.tried.contains(&target.id())
    }

    /// As [`Self::usable`], but turns down targets in slow start as often as their ramp demands.
    fn admits(&self, target: &Target) -> bool {
        self.usable(target) && {
            let ramp = target.ramp(self.now);
            ramp >= 1.0 || fastrand::f32() < ramp
        }
    }

    /// What the target can take now, relative to others.
    fn capacity(&self, target: &Target) -> f32 {
        target.weight() as f32 * target.ramp(self.now)
    }

    fn load(&self, target: &Target) -> f32 {
        target.in_flight() as f32 / self.capacity(target)
    }

    /// Expected time to an answer: how long the target takes, times those who wait already.
    fn expected_wait(&self, target: &Target) -> f32 {
        target.latency(self.now) * (target.in_flight() + 1) as f32 / self.capacity(target)
    }
}

/// Targets of one tier that take new requests, with what the algorithm prepared for them.
pub(super) struct Tier {
    targets: Vec<Arc<Target>>,
    lots: Lots,
    method: Method,
}

enum Method {
    RoundRobin(Schedule),
    Random,
    LeastConnections,
    PeakEwma,
    Hash { ring: Ring, bounded_load: Option<f64> },
}

impl Tier {
    /// Prepares a tier; targets of weight 0 must have been left out.
    pub(super) fn new(targets: Vec<Arc<Target>>, balance: &Balance) -> Self {
        let weights: Vec<u32> = targets.iter().map(|target| target.weight()).collect();
        let method = match balance {
            Balance::RoundRobin => Method::RoundRobin(Schedule::new(&weights)),
            Balance::Random => Method::Random,
            Balance::LeastConnections => Method::LeastConnections,
            Balance::PeakEwma => Method::PeakEwma,
            Balance::ConsistentHash(hash) => {
                Method::Hash { ring: Ring::new(&targets), bounded_load: hash.bounded_load }
            }
        };
        // SRV weights multiplied with written ones can be large.
        Tier { lots: Lots::new(&reduced(&weights, 1 << 24)), targets, method }
    }

    /// Chooses a usable target, if there is one.
    pub(super) fn choose(&self, ask: &Ask<'_>) -> Option<&Arc<Target>> {
        if self.targets.is_empty() {
            return None;
        }
        let chosen = match &self.method {
            Method::RoundRobin(schedule) => self.in_turn(schedule, ask),
            Method::Random => self.at_random(ask),
            Method::LeastConnections if self.targets.len() <= SCAN => self.least_loaded(ask),
            Method::LeastConnections => self.better_of_two(ask, |target| ask.load(target)),
            Method::PeakEwma => self.better_of_two(ask, |target| ask.expected_wait(target)),
            Method::Hash { ring, bounded_load } => match ask.key {
                Some(key) => self.on_ring(ring, key, *bounded_load, ask),
                None => self.at_random(ask),
            },
        };
        // Every rule may miss the last usable target among many unusable ones; this does not.
        chosen.or_else(|| self.any_usable(ask))
    }

    fn in_turn(&self, schedule: &Schedule, ask: &Ask<'_>) -> Option<&Arc<Target>> {
        // A target that is passed over gives up its turn, so that its share is spread over all others.
        (0..2 * self.targets.len()).map(|_| &self.targets[schedule.next()]).find(|target| ask.admits(target))
    }

    fn at_random(&self, ask: &Ask<'_>) -> Option<&Arc<Target>> {
        (0..4).map(|_| &self.targets[self.lots.draw()]).find(|target| ask.admits(target))
    }

    /// Of equals, as when nothing is in flight, one is drawn by capacity; the first would otherwise get everything.
    fn least_loaded(&self, ask: &Ask<'_>) -> Option<&Arc<Target>> {
        let mut least = f32::INFINITY;
        let mut equals = 0.0;
        let mut best = None;
        for target in self.targets.iter().filter(|target| ask.usable(target)) {
            let (load, capacity) = (ask.load(target), ask.capacity(target));
            if load > least {
                continue;
            }
            equals = if load < least { capacity } else { equals + capacity };
            if load < least || fastrand::f32() * equals < capacity {
                best = Some(target);
            }
            least = load;
        }
        best
    }

    /// The power of two choices: nearly as good as looking at all, and no herd runs to the best one.
    fn better_of_two(&self, ask: &Ask<'_>, cost: impl Fn(&Target) -> f32) -> Option<&Arc<Target>> {
        let draw = |not: Option<usize>| {
            (0..4).map(|_| self.lots.draw()).find(|&i| Some(i) != not && ask.admits(&self.targets[i]))
        };
        let first = draw(None)?;
        let Some(second) = draw(Some(first)) else {
            return Some(&self.targets[first]);
        };
        let (first, second) = (&self.targets[first], &self.targets[second]);
        Some(if cost(second) < cost(first) { second } else { first })
    }

    fn on_ring(&self, ring: &Ring, key: &[u8], bounded_load: Option<f64>, ask: &Ask<'_>) -> Option<&Arc<Target>> {
        let within = |target: &Target, per_weight: f64| {
            f64::from(target.in_flight() + 1) <= (per_weight * f64::from(target.weight())).ceil()
        };
        match bounded_load {
            None => ring.walk(key, |i| ask.usable(&self.targets[i])).map(|i| &self.targets[i]),
            Some(factor) => {
                let (load, weight) = self
                    .targets
                    .iter()
                    .filter(|target| ask.usable(target))
                    .fold((1.0, 0.0), |(l, w), t| (l + f64::from(t.in_flight()), w + f64::from(t.weight())));
                let per_weight = factor * load / f64::max(weight, 1.0);
                ring.walk(key, |i| {
                    let target = &self.targets[i];
                    ask.usable(target) && within(target, per_weight)
                })
                .map(|i| &self.targets[i])
                .or_else(|| self.least_loaded(ask))
            }
        }
    }

    /// One of all usable targets by weight, in two passes.
    fn any_usable(&self, ask: &Ask<'_>) -> Option<&Arc<Target>> {
        let usable = || self.targets.iter().filter(|target| ask.usable(target));
        let total: u64 = usable().map(|target| u64::from(target.weight())).sum();
        let mut lot = fastrand::u64(..total.max(1));
        // Availability may change between the passes; the last one seen then has to do.
        let mut last = None;
        for target in usable() {
            last = Some(target);
            match lot.checked_sub(u64::from(target.weight())) {
                Some(rest) => lot = rest,
                None => break,
            }
        }
        last
    }
}

#[cfg(test)]
mod tests;
