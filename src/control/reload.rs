//! Replacing the configuration while requests run: all of it, or nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use crate::config::Problems;

/// Reads, compiles and publishes the configuration; returns the revision that requests run on from now.
pub type Publish = dyn Fn() -> Result<u64, Problems> + Send + Sync;

/// Runs reloads one at a time and remembers how the last one went.
pub struct Reloader {
    publish: Box<Publish>,
    running: Mutex<()>,
    last: RwLock<Outcome>,
    succeeded: AtomicU64,
    refused: AtomicU64,
}

/// How a reload went.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub at: SystemTime,
    /// The revision that requests run on since then; unchanged by a refused reload.
    pub revision: u64,
    /// Why it was refused; empty if it was published.
    pub problems: Problems,
}

impl Reloader {
    /// `revision` is what start-up published.
    pub fn new(revision: u64, publish: Box<Publish>) -> Self {
        Reloader {
            publish,
            running: Mutex::new(()),
            last: RwLock::new(Outcome { at: SystemTime::now(), revision, problems: Problems::default() }),
            succeeded: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Loads the configuration again. On any problem the old one keeps serving, and the log says why.
    ///
    /// Reads files and compiles: call it from a thread that may block.
    pub fn reload(&self, cause: &str) -> Outcome {
        let _one_at_a_time = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.last().revision;
        // A panic in here must not end reloading for the rest of the process's life.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.publish)())).unwrap_or_else(|_| {
            let mut problems = Problems::default();
            problems.add("(configuration)", "compiling it failed; this is a defect of Headgate");
            Err(problems)
        });
        let (revision, problems) = match result {
            Ok(revision) => {
                self.succeeded.fetch_add(1, Ordering::Relaxed);
                log::info!("configuration reloaded ({cause}): revision {revision}");
                (revision, Problems::default())
            }
            Err(problems) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                log::error!("configuration refused ({cause}), revision {before} keeps serving:");
                for problem in &problems.0 {
                    log::error!("  {problem}");
                }
                (before, problems)
            }
        };
        let outcome = Outcome { at: SystemTime::now(), revision, problems };
        *self.last.write().unwrap_or_else(PoisonError::into_inner) = outcome.clone();
        outcome
    }

    pub fn last(&self) -> Outcome {
        self.last.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reloads published and refused since the process started.
    pub fn counts(&self) -> (u64, u64) {
        (self.succeeded.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_reload_keeps_the_revision_and_says_why() {
        let reloader = Reloader::new(1, {
            let calls = AtomicU64::new(0);
            Box::new(move || match calls.fetch_add(1, Ordering::Relaxed) {
                0 => Ok(2),
                1 => {
                    let mut problems = Problems::default();
                    problems.add("upstreams", "wrong");
                    Err(problems)
                }
                _ => panic!("defect"),
            })
        });
        assert!(reloader.reload("test").problems.is_empty());
        let refused = reloader.reload("test");
        assert_eq!((refused.revision, refused.problems.0.len()), (2, 1));
        let panicked = reloader.reload("test");
        assert_eq!((panicked.revision, panicked.problems.0.len()), (2, 1), "a panic is a refusal too");
        assert_eq!(reloader.counts(), (1, 2));
    }
}
