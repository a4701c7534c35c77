//! Rates, by the generic cell rate algorithm: one number per caller, and no timer.
//!
//! The number is the theoretical arrival time (TAT): the moment at which everything admitted so far would have come in at
//! exactly the rate. A request is admitted if its TAT lies no further ahead than the burst.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::table::{Cell, Table};
use super::{Exceeded, Standing};
use crate::config::units;

/// Callers that are told apart at one time, over all limits. A cell takes some 60 bytes.
const MOST_CELLS: usize = 2_000_000;

/// One rate, compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tells limits apart in the keys of cells: another rate, or the same elsewhere, counts anew.
    pub id: u64,
    /// Nanoseconds between two requests at exactly this rate, rounded up, so that never too many pass.
    interval: u64,
    /// Nanoseconds that the TAT may lie ahead.
    tolerance: u64,
    pub burst: u64,
    pub amount: u64,
    pub window: Duration,
}

impl Rate {
    /// `id` says whose rate it is; `burst` is how many may come at once, by default the whole amount.
    pub fn new(id: u64, rate: units::Rate, burst: Option<u64>) -> Rate {
        let burst = burst.unwrap_or(rate.amount).max(1);
        let interval = (rate.per.as_nanos() as u64).div_ceil(rate.amount).max(1);
        // A century ahead is as good as for ever, and does not overflow.
        let tolerance = interval.saturating_mul(burst).min(1 << 61);
        Rate { id, interval, tolerance, burst, amount: rate.amount, window: rate.per }
    }

    /// The part of one of several gateways, which counts by itself.
    pub(super) fn share(&self, gateways: u64) -> Rate {
        let part = |amount: u64| amount.div_ceil(gateways).max(1);
        let (interval, burst) = (self.interval.saturating_mul(gateways), part(self.burst));
        let tolerance = interval.saturating_mul(burst).min(1 << 61);
        Rate { id: mix(self.id, gateways), interval, tolerance, burst, amount: part(self.amount), window: self.window }
    }

    /// Microseconds between two requests, and those that the TAT may lie ahead.
    pub(super) fn micros(&self) -> (f64, f64) {
        (self.interval as f64 / 1e3, self.tolerance as f64 / 1e3)
    }

    /// How long so many requests take at exactly this rate.
    pub(super) fn nanos(&self, count: u64) -> u64 {
        self.interval.saturating_mul(count).min(1 << 61)
    }

    /// How many may come at once while the TAT lies so far ahead.
    pub(super) fn free(&self, ahead: u64) -> u64 {
        self.tolerance.saturating_sub(ahead) / self.interval
    }

    fn key(&self, caller: u64) -> u64 {
        mix(self.id, caller)
    }

    fn standing(&self, tat: u64, now: u64) -> Standing {
        let ahead = tat.saturating_sub(now);
        Standing {
            amount: self.burst,
            remaining: self.free(ahead),
            reset: Duration::from_nanos(ahead),
            window: self.window,
        }
    }
}

/// Several rates that hold together.
pub type Rates = Box<[Rate]>;

/// Two numbers that are as good as random as one that is, too.
pub fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xd6e8_feb8_6659_fd93 | 1);
    (product as u64) ^ (product >> 64) as u64 ^ b.rotate_left(32)
}

/// The TAT of one caller, in nanoseconds of [`RateLimiter::now`].
struct Tat(AtomicU64);

const RETIRED: u64 = u64::MAX;

impl Cell for Tat {
    fn retire(&self, now: u64) -> bool {
        let tat = self.0.load(Ordering::Relaxed);
        // One whose time has come says the same as none at all.
        tat == RETIRED
            || (tat <= now && self.0.compare_exchange(tat, RETIRED, Ordering::Relaxed, Ordering::Relaxed).is_ok())
    }
}

impl Tat {
    /// Admits `count` requests or says what stands against it; `None` if the cell is retired.
    fn take(&self, rate: &Rate, count: u64, now: u64) -> Option<Result<Standing, Exceeded>> {
        let mut tat = self.0.load(Ordering::Relaxed);
        loop {
            if tat == RETIRED {
                return None;
            }
            let next = tat.max(now) + rate.interval.saturating_mul(count).min(1 << 61);
            if next - now > rate.tolerance {
                let retry_after = Duration::from_nanos(next - now - rate.tolerance);
                return Some(Err(Exceeded { index: 0, standing: rate.standing(tat, now), retry_after }));
            }
            match self.0.compare_exchange_weak(tat, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(Ok(rate.standing(next, now))),
                Err(current) => tat = current,
            }
        }
    }

    /// Takes an admission back; a retired cell has nothing left of it.
    fn give_back(&self, rate: &Rate, count: u64) {
        let step = rate.interval.saturating_mul(count).min(1 << 61);
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tat| {
            (tat != RETIRED).then(|| tat.saturating_sub(step))
        });
    }
}

/// Counts all rates of this process. They go on over reloads.
#[derive(Clone)]
pub struct RateLimiter {
    cells: Arc<Table<Tat>>,
    start: Instant,
}

impl Default for RateLimiter {
    fn default() -> Self {
        RateLimiter { cells: Arc::new(Table::new(MOST_CELLS)), start: Instant::now() }
    }
}

impl RateLimiter {
    /// Nanoseconds on the clock of the cells, which is monotonic: nobody gains by setting the time.
    pub fn now(&self) -> u64 {
        // From a second on, so that 0 is before everything.
        self.start.elapsed().as_nanos() as u64 + 1_000_000_000
    }

    /// Admits a request of a caller under all rates, or under none of them. The standings are written in the order of
    /// the rates.
    pub fn take(
        &self,
        rates: &[Rate],
        caller: u64,
        now: u64,
        standings: &mut impl FnMut(usize, Standing),
    ) -> Result<(), Exceeded> {
        for (index, rate) in rates.iter().enumerate() {
            let make = || Tat(AtomicU64::new(now));
            match self.cells.with(rate.key(caller), make, |cell| cell.take(rate, 1, now)) {
                Ok(standing) => standings(index, standing),
                Err(exceeded) => {
                    self.give_back(&rates[..index], caller);
                    return Err(Exceeded { index, ..exceeded });
                }
            }
        }
        Ok(())
    }

    /// Takes back what [`RateLimiter::take`] has admitted, for a request that another limit refuses.
    pub fn give_back(&self, rates: &[Rate], caller: u64) {
        for rate in rates {
            self.cells.peek(rate.key(caller), |cell| cell.give_back(rate, 1));
        }
    }

    /// How a caller stands, without asking for anything.
    pub fn standing(&self, rate: &Rate, caller: u64, now: u64) -> Standing {
        let tat = self.cells.peek(rate.key(caller), |cell| cell.0.load(Ordering::Relaxed));
        rate.standing(tat.filter(|tat| *tat != RETIRED).unwrap_or(0), now)
    }

    /// Forgets callers who have not come for long enough. Called now and then, beside requests.
    pub fn sweep(&self) {
        self.cells.sweep(self.now(), |_| {});
    }

    /// Callers that are remembered, over all rates.
    pub fn callers(&self) -> usize {
        self.cells.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str, burst: Option<u64>) -> Rate {
        Rate::new(7, text.parse().unwrap(), burst)
    }

    fn admitted(limiter: &RateLimiter, rates: &[Rate], caller: u64, now: u64) -> bool {
        limiter.take(rates, caller, now, &mut |_, _| {}).is_ok()
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_burst_passes_at_once_and_then_the_rate() {
        let limiter = RateLimiter::default();
        let rates = [rate("10/s", Some(5))];
        let at = |now: u64| (0..100).filter(|_| admitted(&limiter, &rates, 1, now)).count();
        assert_eq!(at(SECOND), 5);
        assert_eq!(at(SECOND + 99_999_999), 0);
        assert_eq!(at(SECOND + 100_000_000), 1);
        assert_eq!(at(2 * SECOND), 5, "no more than the burst is saved up");
        assert!(admitted(&limiter, &rates, 2, 2 * SECOND), "another caller has its own");
    }

    #[test]
    fn what_one_rate_refuses_the_others_have_not_spent() {
        let limiter = RateLimiter::default();
        let rates = [Rate::new(1, "100/s".parse().unwrap(), None), Rate::new(2, "3/min".parse().unwrap(), None)];
        let refused = (0..10).filter_map(|_| limiter.take(&rates, 1, SECOND, &mut |_, _| {}).err()).collect::<Vec<_>>();
        assert_eq!(refused.len(), 7);
        assert!(refused.iter().all(|exceeded| exceeded.index == 1));
        assert_eq!(refused[0].retry_after, Duration::from_secs(20));
        assert_eq!(limiter.standing(&rates[0], 1, SECOND).remaining, 97);
    }

    #[test]
    fn a_standing_says_what_remains_and_when_it_is_whole_again() {
        let limiter = RateLimiter::default();
        let rates = [rate("60/min", Some(10))];
        let mut seen = None;
        for _ in 0..4 {
            limiter.take(&rates, 1, SECOND, &mut |_, standing| seen = Some(standing)).unwrap();
        }
        let expected =
            Standing { amount: 10, remaining: 6, reset: Duration::from_secs(4), window: Duration::from_secs(60) };
        assert_eq!(seen, Some(expected));
        assert_eq!(limiter.standing(&rates[0], 1, SECOND), expected);
        assert_eq!(limiter.standing(&rates[0], 9, SECOND).remaining, 10);
    }

    #[test]
    fn threads_together_get_no_more_than_one_would() {
        let limiter = RateLimiter::default();
        let rates = [rate("1000/s", Some(100))];
        let count = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for step in 0..20_000u64 {
                        // Ten milliseconds in all, seen by each thread at its own pace; sweeps go on beside it.
                        let now = SECOND + step * 500;
                        if admitted(&limiter, &rates, 1, now) {
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        if step % 1000 == 0 {
                            limiter.cells.sweep(now, |_| {});
                        }
                    }
                });
            }
        });
        let admitted = count.load(Ordering::Relaxed);
        assert!((109..=110).contains(&admitted), "{admitted}: a burst of 100, and 10 in ten milliseconds");
    }

    #[test]
    fn callers_who_stay_away_are_forgotten_and_one_who_still_owes_is_not() {
        let limiter = RateLimiter::default();
        let rates = [rate("1/s", Some(2))];
        assert!(admitted(&limiter, &rates, 1, SECOND));
        assert!(admitted(&limiter, &rates, 2, 9 * SECOND));
        limiter.cells.sweep(9 * SECOND, |_| {});
        assert_eq!(limiter.callers(), 1);
        assert_eq!(limiter.standing(&rates[0], 2, 9 * SECOND).remaining, 1);
    }

    #[test]
    fn beyond_the_most_callers_share_and_are_limited_still() {
        let limiter = RateLimiter { cells: Arc::new(Table::new(1000)), start: Instant::now() };
        let rates = [rate("1/s", Some(1))];
        let admitted = (0..100_000u64).filter(|n| admitted(&limiter, &rates, mix(*n, 1), SECOND)).count();
        assert!((1000..=1000 + 4096).contains(&admitted), "{admitted}");
        assert!(limiter.callers() <= 1000 + 4096);
    }
}
