//! Peak-EWMA: a moving average of the time to the first byte that jumps up at once and comes down slowly.

use std::sync::atomic::{AtomicU64, Ordering::*};

use super::clock::Moment;

/// After this time an observation has lost all but a third of its weight, and an unused target looks that much better.
const DECAY_MILLIS: f32 = 10_000.0;

/// Assumed of a target that has not answered yet: it is tried soon, but is not flooded before its first answer.
const UNKNOWN_MICROS: f32 = 10_000.0;

/// The average in microseconds (upper half, `f32`) and when it was taken in milliseconds (lower half, wrapping).
#[derive(Debug)]
pub(super) struct Latency(AtomicU64);

impl Latency {
    pub(super) fn new(now: Moment) -> Self {
        Latency(AtomicU64::new(pack(UNKNOWN_MICROS, now)))
    }

    /// The average in microseconds as it has decayed until now. Decay towards 0 brings a once slow target back into
    /// the draw.
    pub(super) fn get(&self, now: Moment) -> f32 {
        decayed(self.0.load(Relaxed), now).0
    }

    pub(super) fn observe(&self, micros: f32, now: Moment) {
        // Lost when two threads meet here: one observation less of many.
        let word = self.0.load(Relaxed);
        let (average, weight) = decayed(word, now);
        let last = f32::from_bits((word >> 32) as u32);
        let next = if micros > average { micros } else { last * weight + micros * (1.0 - weight) };
        let _ = self.0.compare_exchange(word, pack(next, now), Relaxed, Relaxed);
    }
}

fn pack(micros: f32, now: Moment) -> u64 {
    u64::from(micros.to_bits()) << 32 | (now.as_millis() & 0xffff_ffff)
}

/// The decayed average, and the weight that what was known keeps.
fn decayed(word: u64, now: Moment) -> (f32, f32) {
    let micros = f32::from_bits((word >> 32) as u32);
    let age = (now.as_millis() as u32).wrapping_sub(word as u32);
    // A stamp from a thread whose clock reading is a little newer would look weeks old.
    let age = if age > u32::MAX / 2 { 0 } else { age };
    if age == 0 {
        // The common case of a busy target is spared the exponential.
        return (micros, 1.0);
    }
    let weight = (-(age as f32) / DECAY_MILLIS).exp();
    (micros * weight, weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_count_at_once_and_fade_slowly() {
        let at = |millis: u64| Moment::from_millis(1_000_000 + millis);
        let latency = Latency::new(at(0));
        latency.observe(50_000.0, at(1));
        assert!((latency.get(at(1)) - 50_000.0).abs() < 1.0, "a peak is believed at once");
        for i in 0..100 {
            latency.observe(1_000.0, at(2 + i));
        }
        assert!(latency.get(at(102)) > 40_000.0, "a hundred fast answers in 100 ms do not undo it");
        for i in 0..60 {
            latency.observe(1_000.0, at(1_000 * i));
        }
        assert!(latency.get(at(60_000)) < 2_000.0, "a minute of fast answers does");
    }

    #[test]
    fn an_unused_target_looks_better_with_time() {
        let at = |millis: u64| Moment::from_millis(1_000_000 + millis);
        let latency = Latency::new(at(0));
        latency.observe(1_000_000.0, at(0));
        assert!(latency.get(at(60_000)) < 5_000.0);
        assert!(latency.get(Moment::from_millis(999_999)) > 900_000.0, "a stamp from the future is no age");
    }
}
