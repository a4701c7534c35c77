//! What filters keep longer than a configuration: it is made once in the life of the process, and every snapshot's
//! filters build upon it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pingora_limits::rate::Rate;
use tokio::runtime::Handle;

use super::limit::shield;
use crate::identity::limit_key;
use crate::limits::{Counters, Quotas, RateLimiter, quota};

/// How often callers who have not come for long enough are forgotten.
const SWEEP: Duration = Duration::from_secs(10);
use std::sync::Arc;

use tokio::runtime::Handle;

use super::authenticate::basic_auth::Passwords;
use super::authenticate::hmac::Replays;
use super::authenticate::jwt::keys::Keys;
use crate::authority::Kept;

/// Shared by the filters of all snapshots.
#[derive(Default)]
pub struct Lasting {
    background: Option<Handle>,
    pub rates: RateLimiter,
    pub quotas: Quotas,
    /// What is counted of limits, for the metrics.
    pub counters: Counters,
    shields: Mutex<HashMap<(String, usize, Duration), Arc<Rate>>>,
    pub passwords: Arc<Passwords>,
    /// The signatures of requests that were accepted.
    pub signatures: Replays,
    /// What issuers of tokens have published.
    pub key_sets: Kept<Keys>,
}

impl Lasting {
    /// `background` runs what must not take a worker's time. Without it, as in `headgate check`, nothing is begun.
    pub fn new(background: Option<Handle>) -> Self {
        let lasting = Lasting { background, ..Lasting::default() };
        if let Some(background) = &lasting.background {
            let rates = lasting.rates.clone();
            background.spawn(async move {
                loop {
                    tokio::time::sleep(SWEEP).await;
                    rates.sweep();
                }
            });
        }
        lasting
        Lasting { background, ..Lasting::default() }
    }

    /// Where work beside requests runs; `None` if filters are only compiled to be looked at.
    pub fn background(&self) -> Option<&Handle> {
        self.background.as_ref()
    }

    /// Opens the store of quotas, and begins to write to it every `interval` if it was not open yet.
    pub fn open_usage(&self, file: &Path, interval: Duration) -> Result<(), String> {
        let opened = self.quotas.open(file, |quota, caller| (limit_key(quota), limit_key(caller)))?;
        if opened {
            quota::keep(self.quotas.clone(), interval);
        }
        Ok(())
    }

    /// The counts of the shield of that name, the same as before unless its measures have changed.
    pub fn shield(&self, name: &str, slots: usize, interval: Duration) -> Arc<Rate> {
        let mut shields = self.shields.lock().unwrap_or_else(PoisonError::into_inner);
        shields.retain(|(known, ..), counts| known != name || Arc::strong_count(counts) > 1);
        shields.entry((name.to_owned(), slots, interval)).or_insert_with(|| shield::counts(slots, interval)).clone()
    }
}
