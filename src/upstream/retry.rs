//! Whether a failed attempt is followed by another: the rules, and the budget that keeps retries in proportion.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

use http::Method;

use super::clock::Moment;
use super::failure::Failure;
use crate::config::upstream::{self as config, RetryOn, StatusRange};

/// Why another attempt is considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Failed(Failure),
    /// The target answered, with this status, and nothing of it has reached the client.
    Status(u16),
}

/// The rules, as compiled from the configuration.
#[derive(Debug)]
pub(super) struct Retry {
    attempts: u32,
    on: Vec<RetryOn>,
    statuses: Vec<StatusRange>,
    non_idempotent: bool,
    deposit: u32,
    per_second: u32,
}

/// One retry, in the budget's money: a thousandth of it can be deposited.
const RETRY: u32 = 1000;
/// The most that quiet times save up for bad ones.
const SAVINGS: u32 = 100 * RETRY;

/// What survives a reload. The first retries of each second are free; the others are paid from what requests deposited.
#[derive(Default)]
pub(super) struct Budget {
    savings: AtomicU32,
    /// The second (upper half) and the free retries used in it (lower half).
    free: AtomicU64,
}

impl Retry {
    pub(super) fn new(config: &config::Retry) -> Self {
        Retry {
            attempts: config.attempts,
            on: config.on.clone(),
            statuses: config.statuses.clone(),
            non_idempotent: config.non_idempotent,
            deposit: (config.budget.share.fraction() * f64::from(RETRY)).round() as u32,
            per_second: config.budget.min_per_second,
        }
    }

    /// Counts a request, of which a share may later be retried.
    pub(super) fn deposit(&self, budget: &Budget) {
        // Mostly full, and then only read: no cache line moves between the threads.
        if self.attempts > 1 && budget.savings.load(Relaxed) < SAVINGS {
            budget.savings.fetch_add(self.deposit, Relaxed);
        }
    }

    /// Whether the rules allow another attempt after `attempts` of them; takes nothing from the budget.
    pub(super) fn allows(&self, method: &Method, attempts: u32, cause: Cause) -> bool {
        if attempts >= self.attempts {
            return false;
        }
        let (listed, unseen) = match cause {
            Cause::Failed(failure) => (self.on.contains(&failure.retry_on()), failure.before_request()),
            Cause::Status(status) => (self.statuses.iter().any(|range| range.contains(status)), false),
        };
        listed && (unseen || self.non_idempotent || method.is_idempotent())
    }

    pub(super) fn retries_on_status(&self, status: u16) -> bool {
        self.attempts > 1 && self.statuses.iter().any(|range| range.contains(status))
    }

    /// Takes one retry out of the budget; false if there is none.
    pub(super) fn withdraw(&self, budget: &Budget, now: Moment) -> bool {
        let second = now.as_millis() / 1000;
        let free = budget.free.fetch_update(AcqRel, Acquire, |word| {
            let used = if word >> 32 == second { word & 0xffff_ffff } else { 0 };
            (used < u64::from(self.per_second)).then_some(second << 32 | (used + 1))
        });
        free.is_ok() || budget.savings.fetch_update(AcqRel, Acquire, |savings| savings.checked_sub(RETRY)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::units::Share;

    fn retry(attempts: u32, share: f64, min_per_second: u32) -> Retry {
        Retry::new(&config::Retry {
            attempts,
            statuses: vec![StatusRange::one(503)],
            budget: config::RetryBudget { share: Share(share), min_per_second },
            ..Default::default()
        })
    }

    #[test]
    fn only_idempotent_requests_are_repeated_once_the_origin_may_have_seen_them() {
        let retry = retry(2, 0.2, 3);
        let reset = Cause::Failed(Failure::Reset);
        assert!(retry.allows(&Method::GET, 1, reset));
        assert!(retry.allows(&Method::PUT, 1, reset));
        assert!(!retry.allows(&Method::POST, 1, reset));
        assert!(!retry.allows(&Method::POST, 1, Cause::Status(503)));
        assert!(retry.allows(&Method::POST, 1, Cause::Failed(Failure::Connect)), "nothing was sent");
        assert!(!retry.allows(&Method::GET, 2, reset), "two attempts are all");
        assert!(!retry.allows(&Method::GET, 1, Cause::Failed(Failure::Timeout)), "not in the default list");
        assert!(retry.allows(&Method::GET, 1, Cause::Status(503)));
        assert!(!retry.allows(&Method::GET, 1, Cause::Status(502)));
    }

    #[test]
    fn retries_stay_within_the_share_of_requests_beyond_the_free_ones() {
        let (retry, budget) = (retry(2, 0.2, 0), Budget::default());
        let mut retried = 0;
        for i in 0..1000 {
            retry.deposit(&budget);
            retried += u32::from(retry.withdraw(&budget, Moment::from_millis(i)));
        }
        assert_eq!(retried, 200, "every request fails; a fifth of them is tried again");
    }

    #[test]
    fn some_retries_are_free_each_second() {
        let (retry, budget) = (retry(2, 0.0, 3), Budget::default());
        let second = |from: u64| (0..10).filter(|i| retry.withdraw(&budget, Moment::from_millis(from + i))).count();
        assert_eq!((second(5000), second(5500), second(6000)), (3, 0, 3));
    }

    #[test]
    fn savings_have_an_end() {
        let (retry, budget) = (retry(2, 1.0, 0), Budget::default());
        for _ in 0..100_000 {
            retry.deposit(&budget);
        }
        let spent = (0..1000).filter(|_| retry.withdraw(&budget, Moment::from_millis(1))).count();
        assert!((100..=101).contains(&spent), "{spent}");
    }
}
