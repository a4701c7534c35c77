//! Whether this process wants traffic.

use std::sync::atomic::{AtomicU8, Ordering};

/// The life of the process as a load balancer in front of it should see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Ready,
    /// No new traffic, please: what runs is finished, then the process exits.
    Draining,
}

/// Shared by the admin listener, which tells, and by the shutdown, which decides.
#[derive(Default)]
pub struct Readiness(AtomicU8);

impl Readiness {
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }

    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }
}
