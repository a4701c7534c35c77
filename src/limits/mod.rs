//! How much: rates, quotas, and where what was used is counted.
//!
//! On the hot path: a request within its limits costs a look into a table and an atomic operation for each of them. No
//! lock is shared between threads, and no store is waited for.

pub mod calendar;
pub mod fleet;
pub mod gcra;
pub mod ledger;
pub mod limiter;
pub mod quota;
pub mod store;
mod table;

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use fleet::Fleet;
pub use gcra::{RateLimiter, Rates};
pub use ledger::Ledger;
pub use limiter::{Caller, Limiter, OnFailure, Tell, Together};
pub use quota::{Quota, Quotas};

/// How one limit stands for one caller, after it has been asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The most there is in the window, or in the burst.
    pub amount: u64,
    pub remaining: u64,
    /// Until all of it is there again.
    pub reset: Duration,
    /// The time that `amount` is for.
    pub window: Duration,
}

/// Why a request may not go on, and when it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exceeded {
    /// Which of several rates it was.
    pub index: usize,
    pub standing: Standing,
    pub retry_after: Duration,
}

/// What is counted of one limit, for the metrics.
#[derive(Debug, Default)]
pub struct Counter {
    /// Requests refused.
    pub refused: AtomicU64,
    /// Callers that have passed the soft limit of a quota.
    pub warned: AtomicU64,
}

/// The counters of all limits by their names; they go on over reloads.
#[derive(Debug, Default)]
pub struct Counters(Mutex<Vec<(Arc<str>, Arc<Counter>)>>);

impl Counters {
    /// The counter of that name, the same every time.
    pub fn named(&self, name: &str) -> Arc<Counter> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, counter)) = all.iter().find(|(known, _)| **known == *name) {
            return counter.clone();
        }
        let counter = Arc::new(Counter::default());
        all.push((name.into(), counter.clone()));
        counter
    }

    /// For each limit, what was refused and how many callers were warned.
    pub fn read(&self) -> Vec<(Arc<str>, u64, u64)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        all.iter().map(|(name, counter)| (name.clone(), read(&counter.refused), read(&counter.warned))).collect()
    }
}

/// Seconds for a header, rounded up: who comes back then is not too early.
pub fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Appends an item of `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11): `"name";r=50;t=30`.
pub fn write_rate_limit(name: &str, standing: &Standing, out: &mut String) {
    let mut digits = itoa::Buffer::new();
    separate(out);
    quote(name, out);
    out.push_str(";r=");
    out.push_str(digits.format(standing.remaining));
    out.push_str(";t=");
    out.push_str(digits.format(whole_seconds(standing.reset)));
}

/// Appends an item of `RateLimit-Policy`: `"name";q=100;w=60`.
pub fn write_policy(name: &str, amount: u64, window: Duration, out: &mut String) {
    separate(out);
    quote(name, out);
    let _ = write!(out, ";q={amount};w={}", whole_seconds(window));
}

fn separate(out: &mut String) {
    if !out.is_empty() {
        out.push_str(", ");
    }
}

/// A structured-field string (RFC 8941, section 3.3.3); names are ASCII.
fn quote(name: &str, out: &mut String) {
    out.push('"');
    for character in name.chars().filter(|c| (' '..='~').contains(c)) {
        if matches!(character, '"' | '\\') {
            out.push('\\');
        }
        out.push(character);
    }
    out.push('"');
}
