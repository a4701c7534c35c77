//! The counters of the hot path, one shard each, and how shards are added up.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::Method;

use crate::error::Reason;

/// Upper bounds of the histograms' buckets, in microseconds: half a millisecond to a minute.
pub const BOUNDS: [u64; 16] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];

/// A histogram of durations.
#[derive(Default)]
#[repr(C)]
pub struct Durations {
    /// Nanoseconds would overflow after 584 years, which ten thousand WebSockets have lived through in three weeks.
    sum_micros: AtomicU64,
    /// Not cumulative; the last one has no bound. Here after the sum, so that short durations stay near to it.
    buckets: [AtomicU64; BOUNDS.len() + 1],
}

/// A histogram that has been read: what all its shards come to.
pub struct Totals {
    /// Upper bounds of the buckets, in the unit of the metric.
    pub bounds: Vec<f64>,
    /// Not cumulative; one more than there are bounds.
    pub buckets: Vec<u64>,
    pub sum: f64,
}

/// A histogram of whatever is counted in whole numbers, with bounds of its own.
pub struct Histogram {
    bounds: &'static [u64],
    sum: AtomicU64,
    buckets: Box<[AtomicU64]>,
}

impl Histogram {
    pub fn new(bounds: &'static [u64]) -> Histogram {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, sum: AtomicU64::new(0), buckets }
    }

    pub fn observe(&self, amount: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < amount);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(amount, Ordering::Relaxed);
    }

    /// `of_one`: how many of what was counted are one of the metric's unit.
    pub fn totals(&self, of_one: f64) -> Totals {
        Totals {
            bounds: self.bounds.iter().map(|bound| *bound as f64 / of_one).collect(),
            buckets: self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect(),
            sum: self.sum.load(Ordering::Relaxed) as f64 / of_one,
        }
    }
}

impl Durations {
    pub fn observe(&self, duration: Duration) {
        let micros = duration.as_micros() as u64;
        // Most requests are short: the linear search ends early.
        let bucket = BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub fn total<'a>(shards: impl Iterator<Item = &'a Durations>) -> Totals {
        let bounds = BOUNDS.iter().map(|bound| *bound as f64 / 1e6).collect();
        let mut total = Totals { bounds, buckets: vec![0; BOUNDS.len() + 1], sum: 0.0 };
        for shard in shards {
            for (sum, bucket) in total.buckets.iter_mut().zip(&shard.buckets) {
                *sum += bucket.load(Ordering::Relaxed);
            }
            total.sum += shard.sum_micros.load(Ordering::Relaxed) as f64 / 1e6;
        }
        total
    }
}

/// Requests by method and status. Both are chosen by strangers, so both are reduced to short lists. A route sees few
/// combinations, the commonest first: a list that grows in place costs a fraction of a table of them all.
#[derive(Default)]
pub struct Requests {
    slots: [Slot; 3],
    more: OnceLock<Box<Requests>>,
}

#[derive(Default)]
struct Slot {
    /// 0: free. Never changes once it is set.
    key: AtomicU32,
    count: AtomicU64,
}

impl Requests {
    pub fn add(&self, method: &Method, status: u16) {
        let key = (method_index(method) + 1) << 16 | u32::from(bounded_status(status));
        let mut list = self;
        loop {
            if let Some(slot) = list.slots.iter().find(|slot| slot.claim(key)) {
                slot.count.fetch_add(1, Ordering::Relaxed);
                return;
            }
            list = list.more.get_or_init(Default::default);
        }
    }

    /// The counts by the labels of method and status.
    pub fn total<'a>(shards: impl Iterator<Item = &'a Requests>) -> BTreeMap<(&'static str, String), u64> {
        let mut total = BTreeMap::new();
        for shard in shards {
            let mut list = Some(shard);
            while let Some(part) = list {
                for slot in &part.slots {
                    let (key, count) = (slot.key.load(Ordering::Relaxed), slot.count.load(Ordering::Relaxed));
                    if key != 0 && count > 0 {
                        let method = METHODS[(key >> 16) as usize - 1];
                        *total.entry((method, status_label(key as u16))).or_default() += count;
                    }
                }
                list = part.more.get().map(|part| &**part);
            }
        }
        total
    }
}

impl Slot {
    /// Whether the slot is of this key, taking it if it is free.
    fn claim(&self, key: u32) -> bool {
        match self.key.load(Ordering::Relaxed) {
            0 => match self.key.compare_exchange(0, key, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => true,
                Err(other) => other == key,
            },
            known => known == key,
        }
    }
}

const METHODS: [&str; 10] = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE", "CONNECT", "other"];

fn method_index(method: &Method) -> u32 {
    METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1) as u32
}

/// Registered status codes and those in common use stay; of others only the class, 1 to 9, remains; 0 is no answer.
fn bounded_status(status: u16) -> u16 {
    match status {
        0
        | 100..=104
        | 200..=208
        | 226
        | 300..=308
        | 400..=418
        | 421..=426
        | 428
        | 429
        | 431
        | 451
        | 499
        | 500..=508
        | 510
        | 511
        | 520..=530 => status,
        other => (other / 100).clamp(1, 9),
    }
}

fn status_label(status: u16) -> String {
    match status {
        0 => "none".to_owned(),
        1..=9 => format!("{status}xx"),
        code => code.to_string(),
    }
}

/// How an attempt at a target ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The target answered, with a status below 500.
    Answered,
    /// The target answered with a status of 500 or above.
    ServerError,
    Refused,
    ConnectTimeout,
    Tls,
    Reset,
    Timeout,
    Protocol,
    /// The client left before the target answered.
    Cancelled,
    /// Anything else, for which the target need not be at fault.
    Other,
}

impl Outcome {
    pub const ALL: &[Outcome] = &[
        Outcome::Answered,
        Outcome::ServerError,
        Outcome::Refused,
        Outcome::ConnectTimeout,
        Outcome::Tls,
        Outcome::Reset,
        Outcome::Timeout,
        Outcome::Protocol,
        Outcome::Cancelled,
        Outcome::Other,
    ];

    pub fn of_status(status: u16) -> Self {
        if status >= 500 { Outcome::ServerError } else { Outcome::Answered }
    }

    pub fn of_failure(reason: Reason) -> Self {
        match reason {
            Reason::UpstreamRefused => Outcome::Refused,
            Reason::ConnectTimeout => Outcome::ConnectTimeout,
            Reason::UpstreamTls => Outcome::Tls,
            Reason::UpstreamReset => Outcome::Reset,
            Reason::UpstreamTimeout => Outcome::Timeout,
            Reason::UpstreamProtocol => Outcome::Protocol,
            Reason::ClientClosed => Outcome::Cancelled,
            _ => Outcome::Other,
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::ServerError => "server_error",
            Outcome::Refused => "refused",
            Outcome::ConnectTimeout => "connect_timeout",
            Outcome::Tls => "tls",
            Outcome::Reset => "reset",
            Outcome::Timeout => "timeout",
            Outcome::Protocol => "protocol",
            Outcome::Cancelled => "cancelled",
            Outcome::Other => "other",
        }
    }
}
