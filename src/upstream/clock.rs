//! Coarse time for state that many threads share: whole milliseconds, so that it fits an atomic.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A moment on the process's monotonic clock. Functions of this folder are given it, they never ask for it, so that a
/// test decides what time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Earlier than every real moment; as a stored value, "never".
    pub const NEVER: Moment = Moment(0);

    pub fn now() -> Self {
        Moment::at(Instant::now())
    }

    /// The same moment as `instant`, for callers that have read the clock already.
    pub fn at(instant: Instant) -> Self {
        static START: OnceLock<Instant> = OnceLock::new();
        let start = *START.get_or_init(Instant::now);
        // An offset, because an instant may have been taken just before the start was.
        Moment(instant.saturating_duration_since(start).as_millis() as u64 + 1)
    }

    pub const fn from_millis(millis: u64) -> Self {
        Moment(millis)
    }

    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Milliseconds since `earlier`, 0 if it is later.
    pub fn millis_since(self, earlier: Moment) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, time: Duration) -> Moment {
        Moment(self.0.saturating_add(time.as_millis() as u64))
    }
}
