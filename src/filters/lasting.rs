//! What filters keep longer than a configuration: it is made once in the life of the process, and every snapshot's
//! filters build upon it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError, Weak};
use std::time::Duration;

use pingora_limits::rate::Rate;
use tokio::runtime::Handle;

use super::authenticate::basic_auth::Passwords;
use super::authenticate::hmac::Replays;
use super::authenticate::jwt::keys::Keys;
use super::limit::shield;
use crate::authority::Kept;
use crate::identity::limit_key;
use crate::limits::{Counters, Fleet, Quotas, RateLimiter, fleet, quota};

/// How often callers who have not come for long enough are forgotten.
const SWEEP: Duration = Duration::from_secs(10);

/// Shared by the filters of all snapshots.
pub struct Lasting {
    background: Option<Handle>,
    pub rates: RateLimiter,
    pub quotas: Quotas,
    /// Whether a thread writes what was used of quotas.
    kept: Once,
    /// What is counted of limits, for the metrics.
    pub counters: Counters,
    http: OnceLock<Option<reqwest::Client>>,
    fleets: Mutex<Vec<Weak<Fleet>>>,
    shields: Mutex<HashMap<(String, usize, Duration), Arc<Rate>>>,
    pub passwords: Arc<Passwords>,
    /// The signatures of requests that were accepted.
    pub signatures: Replays,
    /// What issuers of tokens have published.
    pub key_sets: Kept<Keys>,
}

impl Default for Lasting {
    /// Without work beside requests.
    fn default() -> Self {
        Lasting::new(None)
    }
}

impl Lasting {
    /// `background` runs what must not take a worker's time. Without it, as in `headgate check`, nothing is begun.
    pub fn new(background: Option<Handle>) -> Self {
        let lasting = Lasting {
            background,
            rates: RateLimiter::default(),
            quotas: Quotas::default(),
            kept: Once::new(),
            counters: Counters::default(),
            http: OnceLock::new(),
            fleets: Mutex::default(),
            shields: Mutex::default(),
            passwords: Arc::default(),
            signatures: Replays::default(),
            key_sets: Kept::default(),
        };
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
    }

    /// Where work beside requests runs; `None` if filters are only compiled to be looked at.
    pub fn background(&self) -> Option<&Handle> {
        self.background.as_ref()
    }

    /// Opens the store of quotas, and begins to write to it every `interval` if it was not open yet.
    pub fn open_usage(&self, file: &Path, interval: Duration) -> Result<(), String> {
        self.quotas.open(file, |quota, caller| (limit_key(quota), limit_key(caller)))?;
        self.keep_quotas(interval);
        Ok(())
    }

    /// Counts quotas together with a fleet, or alone.
    pub fn share_quotas(&self, fleet: Option<&Arc<Fleet>>, interval: Duration) {
        self.quotas.share(fleet);
        if fleet.is_some() {
            self.keep_quotas(interval);
        }
    }

    fn keep_quotas(&self, interval: Duration) {
        self.kept.call_once(|| quota::keep(self.quotas.clone(), interval));
    }

    /// The connection to a fleet's Redis, the same as before unless its settings have changed. `None` if filters are only
    /// compiled to be looked at.
    pub fn fleet(&self, settings: fleet::Settings) -> Result<Option<Arc<Fleet>>, String> {
        let Some(background) = &self.background else { return fleet::check(&settings).map(|()| None) };
        let mut fleets = self.fleets.lock().unwrap_or_else(PoisonError::into_inner);
        fleets.retain(|fleet| fleet.strong_count() > 0);
        let known = fleets.iter().filter_map(Weak::upgrade).find(|fleet| fleet.settings == settings);
        if let Some(known) = known {
            return Ok(Some(known));
        }
        let fleet = Arc::new(Fleet::new(settings, background)?);
        fleets.push(Arc::downgrade(&fleet));
        let swept = Arc::downgrade(&fleet);
        background.spawn(async move {
            while let Some(fleet) = swept.upgrade() {
                fleet.sweep();
                drop(fleet);
                tokio::time::sleep(SWEEP).await;
            }
        });
        Ok(Some(fleet))
    }

    /// The counts of the shield of that name, the same as before unless its measures have changed.
    pub fn shield(&self, name: &str, slots: usize, interval: Duration) -> Arc<Rate> {
        let mut shields = self.shields.lock().unwrap_or_else(PoisonError::into_inner);
        shields.retain(|(known, ..), counts| known != name || Arc::strong_count(counts) > 1);
        shields.entry((name.to_owned(), slots, interval)).or_insert_with(|| shield::counts(slots, interval)).clone()
    }

    /// The client for services that filters ask. Its connections are kept open between questions. It follows no redirect,
    /// which could lead inside, and asks no proxy of the environment; time limits are up to who asks. `None` if the
    /// system's certificates cannot be read.
    pub fn http(&self) -> Option<&reqwest::Client> {
        let make = || {
            let client = reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .referer(false)
                .pool_idle_timeout(Duration::from_secs(30))
                .connect_timeout(Duration::from_secs(10));
            client.build().inspect_err(|error| log::error!("no client for HTTP: {error}")).ok()
        };
        self.http.get_or_init(make).as_ref()
    }
}
