//! The models of providers behind one name, and which of them takes a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::config::ai::Strategy;

/// One model of one provider.
#[derive(Clone)]
pub struct Target {
    /// As the configuration calls it.
    pub provider: Arc<str>,
    /// As the provider calls it.
    pub model: Arc<str>,
    pub weight: u32,
    pub priority: u32,
    /// What a million tokens of input and a quarter of a million of output cost, in nano-dollars; `None` if unknown.
    pub price: Option<u64>,
    pub state: Arc<TargetState>,
}

/// What is learnt of a target, also over reloads.
#[derive(Debug, Default)]
pub struct TargetState {
    in_flight: AtomicU32,
    /// Microseconds to the first content, as a moving average that rises at once and falls slowly; 0 if nothing is known.
    first_token: AtomicU32,
}

/// A call under way at a target; ends when it is dropped.
pub struct InFlight(Arc<TargetState>);

impl TargetState {
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// The first content came after this time.
    pub fn began(&self, after: Duration) {
        let new = u32::try_from(after.as_micros()).unwrap_or(u32::MAX).max(1);
        // Lost updates do no harm: the next answer is one too.
        let old = self.first_token.load(Ordering::Relaxed);
        let kept = if new >= old { new } else { old - (old - new) / 8 };
        self.first_token.store(kept, Ordering::Relaxed);
    }

    /// An attempt failed: it is slow until it has proved otherwise.
    pub fn failed(&self) {
        self.began(Duration::from_secs(10));
    }

    fn load(&self, weight: u32) -> f64 {
        f64::from(self.in_flight.load(Ordering::Relaxed) + 1) / f64::from(weight)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Chooses among the usable targets of the lowest priority that has any.
pub fn choose<'t>(targets: &'t [Target], strategy: Strategy, usable: impl Fn(&Target) -> bool) -> Option<&'t Target> {
    let usable: Vec<&Target> = targets.iter().filter(|target| target.weight > 0 && usable(target)).collect();
    let priority = usable.iter().map(|target| target.priority).min()?;
    let mut tier = usable.into_iter().filter(|target| target.priority == priority);
    let least = |tier: &mut dyn Iterator<Item = &'t Target>, of: &dyn Fn(&Target) -> f64| {
        tier.min_by(|a, b| of(a).total_cmp(&of(b)))
    };
    match strategy {
        Strategy::InOrder => tier.next(),
        Strategy::LeastBusy => least(&mut tier, &|target| target.state.load(target.weight)),
        // One of which nothing is known is tried first.
        Strategy::LowestLatency => least(&mut tier, &|target| {
            f64::from(target.state.first_token.load(Ordering::Relaxed)) * target.state.load(target.weight)
        }),
        Strategy::Cheapest => least(&mut tier, &|target| target.price.map_or(f64::INFINITY, |price| price as f64)),
        Strategy::Weighted => {
            let tier: Vec<&Target> = tier.collect();
            let mut left = fastrand::u64(..tier.iter().map(|target| u64::from(target.weight)).sum::<u64>());
            tier.iter()
                .find(|target| {
                    let chosen = left < u64::from(target.weight);
                    left = left.wrapping_sub(u64::from(target.weight));
                    chosen
                })
                .copied()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(model: &str, weight: u32, priority: u32, price: Option<u64>) -> Target {
        Target { provider: "p".into(), model: model.into(), weight, priority, price, state: Arc::default() }
    }

    fn chosen(targets: &[Target], strategy: Strategy) -> &str {
        &choose(targets, strategy, |_| true).unwrap().model
    }

    #[test]
    fn a_lower_priority_goes_first_and_weight_zero_never() {
        let targets = [target("never", 0, 0, None), target("second", 1, 2, None), target("first", 1, 1, None)];
        assert_eq!(chosen(&targets, Strategy::Weighted), "first");
        let rest = choose(&targets, Strategy::Weighted, |target| &*target.model != "first").unwrap();
        assert_eq!(&*rest.model, "second");
        assert!(choose(&targets, Strategy::Weighted, |_| false).is_none());
    }

    #[test]
    fn each_strategy_chooses_by_its_own_measure() {
        let targets = [target("a", 1, 0, None), target("b", 1, 0, Some(10)), target("c", 1, 0, Some(5))];
        assert_eq!(chosen(&targets, Strategy::InOrder), "a");
        assert_eq!(chosen(&targets, Strategy::Cheapest), "c", "an unknown price is not a low one");
        let busy = [targets[0].state.enter(), targets[1].state.enter()];
        assert_eq!(chosen(&targets, Strategy::LeastBusy), "c");
        drop(busy);
        assert_eq!(chosen(&targets, Strategy::LeastBusy), "a");
        targets[0].state.failed();
        targets[1].state.began(Duration::from_millis(300));
        targets[2].state.began(Duration::from_millis(500));
        assert_eq!(chosen(&targets, Strategy::LowestLatency), "b");
    }

    #[test]
    fn weights_divide_the_calls() {
        let targets = [target("a", 3, 0, None), target("b", 1, 0, None)];
        let a = (0..4000).filter(|_| chosen(&targets, Strategy::Weighted) == "a").count();
        assert!((2800..3200).contains(&a), "{a} of 4000");
    }
}
