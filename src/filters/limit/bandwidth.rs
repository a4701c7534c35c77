//! Bounds the bytes per second that all requests of a key send and get together.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Deserialize;

use super::key::{By, Key};
use crate::config::units::{Size, Throughput};
use crate::filters::filter::{Compiled, Flow, OnRequest, Pace, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;

/// A wait shorter than the timer's tick is carried over to the next chunk.
const SHORTEST_WAIT: Duration = Duration::from_millis(2);

/// Slows bodies down to what a key may send or get per second. All requests of a key share it, the first come first
/// served, piece by piece of up to 64 KiB; none is refused. Both directions count by themselves. What the gateway
/// answers itself and what goes through a WebSocket is not slowed down. A `total` time limit goes on meanwhile.
///
/// ```yaml
/// bandwidth:
///   response: 1MiB/s
///   request: 256KiB/s
///   by: consumer
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// For the bodies of answers.
    pub response: Option<Throughput>,
    /// For the bodies of requests.
    pub request: Option<Throughput>,
    /// What comes through at once after a rest, so that small answers do not wait. Left out: a tenth of a second's
    /// worth.
    pub burst: Option<Size>,
    /// What shares. A request without it shares with those of its client's address.
    #[serde(default)]
    pub by: By,
}

pub struct Bandwidth {
    response: Option<Speed>,
    request: Option<Speed>,
    key: Key,
    meters: Arc<Meters>,
}

impl FilterKind for Bandwidth {
    const NAME: &'static str = "bandwidth";
    const STAGE: Stage = Stage::Limit;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        if config.response.is_none() && config.request.is_none() {
            at.problems.add(at.path, "neither `response` nor `request` is set, so this filter would do nothing");
            return None;
        }
        let key = Key::compile(&config.by, at)?;
        let speed = |throughput: Throughput| Speed::new(throughput, config.burst);
        let (response, request) = (config.response.map(speed), config.request.map(speed));
        let meters = at.lasting.kept(at.path, Meters::default);
        Some(Compiled::on_request(Bandwidth { response, request, key, meters }))
    }
}

impl OnRequest for Bandwidth {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        let key = self.key.of_or_address(request);
        let pace = |speed: Speed, way| -> Box<dyn Pace> { Box::new(Paced { speed, meter: self.meters.of(key, way) }) };
        request.controls.response_pace.extend(self.response.map(|speed| pace(speed, Way::Response)));
        request.controls.request_pace.extend(self.request.map(|speed| pace(speed, Way::Request)));
        Flow::Continue
    }
}

#[derive(Clone, Copy)]
struct Speed {
    bytes_per_second: u64,
    burst: Duration,
}

impl Speed {
    fn new(throughput: Throughput, burst: Option<Size>) -> Self {
        let bytes_per_second = throughput.get();
        let burst = match burst {
            Some(size) => time_for(size.get(), bytes_per_second),
            None => Duration::from_millis(100),
        };
        Speed { bytes_per_second, burst }
    }
}

/// Saturates at some centuries.
fn time_for(bytes: u64, bytes_per_second: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// One body, on its key's meter.
struct Paced {
    speed: Speed,
    meter: Arc<Meter>,
}

impl Pace for Paced {
    fn pace(&self, bytes: usize) -> Option<Duration> {
        let wait = self.meter.take(bytes, self.speed, now());
        (wait >= SHORTEST_WAIT).then_some(wait)
    }
}

/// When all that was let through so far will have gone at the speed of its key, in nanoseconds of [`now`].
#[derive(Default)]
struct Meter(AtomicU64);

impl Meter {
    /// Accounts for these bytes; returns how long they wait.
    fn take(&self, bytes: usize, speed: Speed, now: Duration) -> Duration {
        let now = nanos(now);
        let cost = nanos(time_for(bytes as u64, speed.bytes_per_second));
        let after = |gone: u64| gone.max(now).saturating_add(cost);
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |gone| Some(after(gone)));
        let (Ok(before) | Err(before)) = before;
        Duration::from_nanos(after(before) - now).saturating_sub(speed.burst)
    }

    /// Whether a new one would be the same.
    fn is_at_rest(&self, now: Duration) -> bool {
        self.0.load(Ordering::Relaxed) <= nanos(now)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Time since the first call.
fn now() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    Request,
    Response,
}

/// The meters of all keys. Those that are at rest and that no request uses are dropped now and then, so that there are
/// never more than about twice as many as are of use.
#[derive(Default)]
pub struct Meters(Mutex<Known>);

#[derive(Default)]
struct Known {
    meters: HashMap<(u64, Way), Arc<Meter>, foldhash::fast::RandomState>,
    /// Tidied up when there are as many as this.
    tidy_at: usize,
}

impl Meters {
    fn of(&self, key: u64, way: Way) -> Arc<Meter> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = known.meters.get(&(key, way)) {
            return meter.clone();
        }
        if known.meters.len() >= known.tidy_at {
            let now = now();
            known.meters.retain(|_, meter| Arc::strong_count(meter) > 1 || !meter.is_at_rest(now));
            known.tidy_at = (2 * known.meters.len()).max(1024);
        }
        known.meters.entry((key, way)).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn speed(bytes_per_second: u64) -> Speed {
        Speed::new(Throughput(bytes_per_second), None)
    }

    #[test]
    fn what_is_more_than_the_burst_waits_for_its_time() {
        let meter = Meter::default();
        let speed = speed(1000);
        assert_eq!(meter.take(100, speed, MS), Duration::ZERO, "the burst");
        assert_eq!(meter.take(100, speed, MS), 100 * MS);
        assert_eq!(meter.take(300, speed, MS), 400 * MS, "after what was let through before it");
        assert_eq!(meter.take(0, speed, 201 * MS), 200 * MS);
        assert_eq!(meter.take(100, speed, 10_000 * MS), Duration::ZERO, "rest is not saved up beyond the burst");
        assert_eq!(meter.take(100, speed, 10_000 * MS), 100 * MS);
    }

    #[test]
    fn no_size_and_no_speed_overflows() {
        let meter = Meter::default();
        for _ in 0..3 {
            assert!(meter.take(usize::MAX, speed(1), MS) > Duration::from_secs(1 << 30));
        }
        assert_eq!(Meter::default().take(1 << 20, speed(u64::MAX), MS), Duration::ZERO);
    }

    #[test]
    fn a_million_keys_that_come_and_go_leave_nothing() {
        let meters = Meters::default();
        for key in 0..1_000_000 {
            meters.of(key, Way::Response);
        }
        assert!(meters.0.lock().unwrap().meters.len() <= 1024);
    }

    #[test]
    fn a_debt_is_not_forgotten() {
        let meters = Meters::default();
        meters.of(7, Way::Response).take(1 << 30, speed(1), now());
        for key in 10..100_000 {
            meters.of(key, Way::Response);
        }
        assert!(!meters.of(7, Way::Response).is_at_rest(now()));
        assert!(meters.of(7, Way::Request).is_at_rest(now()), "each way by itself");
    }

    #[test]
    #[ignore = "a measurement: cargo nextest run --release --run-ignored all a_chunk_takes --no-capture"]
    fn a_chunk_takes() {
        let meters = Meters::default();
        let paced = Paced { speed: speed(1 << 40), meter: meters.of(7, Way::Response) };
        let began = Instant::now();
        for _ in 0..1_000_000 {
            std::hint::black_box(&paced).pace(std::hint::black_box(1000));
        }
        eprintln!("{:>6.1} ns for one chunk", began.elapsed().as_nanos() as f64 / 1e6);
        let began = Instant::now();
        for key in 0..1_000_000 {
            std::hint::black_box(meters.of(key % 1000, Way::Response));
        }
        eprintln!("{:>6.1} ns for the meter of a request", began.elapsed().as_nanos() as f64 / 1e6);
    }
}
