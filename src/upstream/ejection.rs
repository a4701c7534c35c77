//! Passive health: takes targets out of service when real requests to them fail or are slow.

use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

use super::clock::Moment;
use super::state::{TargetState, UpstreamState, lock};
use crate::config::upstream as config;

/// The rules, as compiled from the configuration.
#[derive(Debug)]
pub(super) struct Ejection {
    consecutive_failures: u32,
    pub(super) statuses: Vec<config::StatusRange>,
    eject_for: Duration,
    max_eject_for: Duration,
    max_ejected: f64,
    slow: Option<Slow>,
}

#[derive(Debug)]
struct Slow {
    factor: f64,
    at_least_micros: u64,
    min_requests: u32,
    window: Duration,
}

impl Ejection {
    pub(super) fn new(config: &config::PassiveHealth) -> Self {
        Ejection {
            consecutive_failures: config.consecutive_failures.max(1),
            statuses: config.statuses.clone(),
            eject_for: config.eject_for.get(),
            max_eject_for: config.max_eject_for.get().max(config.eject_for.get()),
            max_ejected: config.max_ejected.fraction(),
            slow: config.slow.as_ref().map(|slow| Slow {
                factor: slow.factor,
                at_least_micros: slow.at_least.get().as_micros() as u64,
                min_requests: slow.min_requests.max(1),
                window: slow.window.get(),
            }),
        }
    }

    /// Applies one outcome; true if it ejected the target.
    pub(super) fn learn(&self, upstream: &UpstreamState, target: &TargetState, failed: bool, now: Moment) -> bool {
        if !failed {
            // Read first: in good times no cache line is written for it.
            if target.consecutive_failures.load(Relaxed) != 0 {
                target.consecutive_failures.store(0, Relaxed);
            }
            return false;
        }
        target.consecutive_failures.fetch_add(1, Relaxed) + 1 >= self.consecutive_failures
            && self.eject(upstream, target, now)
    }

    /// Counts the time to the first byte, and judges all targets when it is time to; tells how many were ejected.
    pub(super) fn time(
        &self,
        upstream: &UpstreamState,
        target: &TargetState,
        first_byte: Duration,
        now: Moment,
    ) -> usize {
        let Some(slow) = &self.slow else {
            return 0;
        };
        target.slow_micros.fetch_add(first_byte.as_micros() as u64, Relaxed);
        target.slow_answers.fetch_add(1, Relaxed);
        let due = upstream.next_judgement.load(Relaxed);
        if now.as_millis() < due {
            return 0;
        }
        let next = (now + slow.window).as_millis();
        // Who wins judges. The first time only starts the window.
        if upstream.next_judgement.compare_exchange(due, next, AcqRel, Relaxed).is_err() || due == 0 {
            return 0;
        }
        self.judge(slow, upstream, now)
    }

    fn judge(&self, slow: &Slow, upstream: &UpstreamState, now: Moment) -> usize {
        let members = upstream.members.load();
        let mut means: Vec<(u64, &Arc<TargetState>)> = members
            .iter()
            .filter_map(|target| {
                let answers = target.slow_answers.swap(0, Relaxed);
                let micros = target.slow_micros.swap(0, Relaxed);
                (answers >= slow.min_requests).then(|| (micros / u64::from(answers), target))
            })
            .collect();
        means.sort_unstable_by_key(|(mean, _)| *mean);
        // The lower one of an even number: of two targets, the faster is the measure.
        let Some(&(median, _)) = means.get(means.len().saturating_sub(1) / 2) else {
            return 0;
        };
        let limit = slow.at_least_micros.max((median as f64 * slow.factor) as u64);
        // Slowest first, should not all of them be allowed to go.
        means.iter().rev().filter(|(mean, target)| *mean > limit && self.eject(upstream, target, now)).count()
    }

    /// Ejects a target, unless it is out already or too many are.
    fn eject(&self, upstream: &UpstreamState, target: &TargetState, now: Moment) -> bool {
        let _alone = lock(&upstream.ejecting);
        if target.ejected(now) {
            return false;
        }
        let members = upstream.members.load();
        let ejected = members.iter().filter(|member| member.ejected(now)).count();
        // A hair more, since 0.29 * 100 is 28.999...
        let most = (self.max_ejected * members.len() as f64 + 1e-9).floor() as usize;
        if ejected >= most {
            return false;
        }
        let served = now.millis_since(target.ejected_until());
        let earlier = if served > self.max_eject_for.as_millis() as u64 { 0 } else { target.ejections.load(Relaxed) };
        target.ejections.store(earlier + 1, Relaxed);
        target.eject(now + self.eject_for.saturating_mul(earlier + 1).min(self.max_eject_for));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::units;

    fn at(millis: u64) -> Moment {
        Moment::from_millis(10_000_000 + millis)
    }

    fn upstream(targets: usize) -> (UpstreamState, Vec<Arc<TargetState>>) {
        let members: Vec<_> = (0..targets).map(|_| Arc::new(TargetState::new(Moment::NEVER, at(0)))).collect();
        let state = UpstreamState::default();
        state.members.store(Arc::new(members.clone()));
        (state, members)
    }

    fn rules() -> config::PassiveHealth {
        config::PassiveHealth { consecutive_failures: 3, ..Default::default() }
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_between_them_does_not() {
        let rules = Ejection::new(&rules());
        let (upstream, targets) = upstream(2);
        for failed in [true, true, false, true, true] {
            assert!(!rules.learn(&upstream, &targets[0], failed, at(0)));
        }
        assert!(rules.learn(&upstream, &targets[0], true, at(0)));
        assert!(targets[0].ejected(at(29_999)));
        assert!(!targets[0].ejected(at(30_000)), "back after eject_for");
    }

    #[test]
    fn never_more_than_the_share_is_ejected() {
        for (count, share, most) in [(1, 0.5, 0), (2, 0.5, 1), (3, 0.5, 1), (4, 0.5, 2), (100, 0.29, 29), (3, 1.0, 3)] {
            let rules = Ejection::new(&config::PassiveHealth { max_ejected: units::Share(share), ..rules() });
            let (upstream, targets) = upstream(count);
            for target in targets.iter().cycle().take(count * 5) {
                rules.learn(&upstream, target, true, at(0));
            }
            let ejected = targets.iter().filter(|target| target.ejected(at(1))).count();
            assert_eq!(ejected, most, "{share} of {count}");
        }
    }

    #[test]
    fn ejections_in_succession_last_longer_up_to_a_limit() {
        let rules = Ejection::new(&rules());
        let (upstream, targets) = upstream(2);
        let fail = |now| (0..3).any(|_| rules.learn(&upstream, &targets[0], true, now));
        let mut now = at(0);
        for seconds in [30, 60, 90, 120] {
            assert!(fail(now));
            now = targets[0].ejected_until();
            assert!(!targets[0].ejected(now));
            assert_eq!(now.millis_since(at(0)) % 30_000, 0);
            assert!(targets[0].ejected(Moment::from_millis(now.as_millis() - seconds * 1000)));
        }
        for _ in 0..20 {
            fail(now);
            let until = targets[0].ejected_until();
            assert!(until.millis_since(now) <= 300_000);
            now = until;
        }
        let now = now + Duration::from_secs(301);
        fail(now);
        assert_eq!(targets[0].ejected_until().millis_since(now), 30_000, "good conduct is remembered");
    }

    #[test]
    fn a_target_much_slower_than_the_others_is_ejected() {
        let slow = config::SlowTargets { min_requests: 5, ..Default::default() };
        let rules = Ejection::new(&config::PassiveHealth { slow: Some(slow), ..rules() });
        let (upstream, targets) = upstream(3);
        for second in 0..11 {
            for (target, millis) in targets.iter().zip([20, 500, 30]) {
                rules.time(&upstream, target, Duration::from_millis(millis), at(second * 1000));
            }
        }
        assert_eq!(targets.iter().map(|t| t.ejected(at(11_000))).collect::<Vec<_>>(), [false, true, false]);
    }

    #[test]
    fn fast_or_idle_targets_are_not_judged_slow() {
        let slow = config::SlowTargets { min_requests: 5, ..Default::default() };
        let rules = Ejection::new(&config::PassiveHealth { slow: Some(slow), ..rules() });
        let (upstream, targets) = upstream(3);
        for second in 0..11 {
            // 40 times the median, but below `at_least`.
            for (target, millis) in targets.iter().zip([2, 80, 2]) {
                rules.time(&upstream, target, Duration::from_millis(millis), at(second * 1000));
            }
        }
        assert!(targets.iter().all(|target| !target.ejected(at(11_000))));
    }
}
