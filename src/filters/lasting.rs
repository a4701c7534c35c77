//! What filters keep longer than a configuration: it is made once in the life of the process, and every snapshot's
//! filters build upon it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;

use super::authenticate::basic_auth::Passwords;
use super::authenticate::hmac::Replays;
use super::authenticate::jwt::keys::Keys;
use super::authenticate::oidc::provider::Provider;
use crate::authority::Kept;
use crate::identity::limit_key;
use crate::limits::{Counters, Fleet, Ledger, Quotas, RateLimiter, fleet, quota};

/// How often callers who have not come for long enough are forgotten.
const SWEEP: Duration = Duration::from_secs(10);

/// State by its type and by the place of the filter that keeps it.
type Places = HashMap<(TypeId, Box<str>), Weak<dyn Any + Send + Sync>>;

/// Shared by the filters of all snapshots.
pub struct Lasting {
    background: Option<Handle>,
    pub rates: RateLimiter,
    pub quotas: Quotas,
    /// What consumers have used of models.
    pub ledger: Ledger,
    /// Whether a thread writes what was used of quotas.
    keeping: Once,
    /// What is counted of limits, for the metrics.
    pub counters: Counters,
    http: OnceLock<Option<reqwest::Client>>,
    places: Mutex<Places>,
    fleets: Mutex<Vec<Weak<Fleet>>>,
    pub passwords: Arc<Passwords>,
    /// The signatures of requests that were accepted.
    pub signatures: Replays,
    /// What issuers of tokens have published.
    pub key_sets: Kept<Keys>,
    /// What OpenID providers have published.
    pub providers: Kept<Provider>,
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
            ledger: Ledger::default(),
            keeping: Once::new(),
            places: Mutex::default(),
            counters: Counters::default(),
            http: OnceLock::new(),
            fleets: Mutex::default(),
            passwords: Arc::default(),
            signatures: Replays::default(),
            key_sets: Kept::default(),
            providers: Kept::default(),
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

    /// Opens the store of quotas, unless it is open. Nothing is written to it before [`Lasting::keep_quotas`].
    /// The use of models is kept in the same file, if there are any.
    pub fn open_usage(&self, file: &Path, models: bool) -> Result<(), String> {
        self.quotas.open(file, |quota, caller| (limit_key(quota), limit_key(caller)))?;
        if models { self.ledger.open(file) } else { Ok(()) }
    }

    /// Writes what is used of quotas every `interval` from now on: to the store, and to a fleet's Redis.
    pub fn keep_quotas(&self, fleet: Option<&Arc<Fleet>>, interval: Duration) {
        self.quotas.share(fleet);
        self.quotas.set_interval(interval);
        self.keeping.call_once(|| quota::keep(self.quotas.clone()));
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
                fleet.sweep().await;
                drop(fleet);
                tokio::time::sleep(fleet::SWEEP).await;
            }
        });
        Ok(Some(fleet))
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
    /// What the filter at a place of the configuration has kept so far, or else what `make` makes. It is kept as long as
    /// any snapshot has a filter there, so that a reload goes on with the same counters.
    pub fn kept<T: Any + Send + Sync>(&self, place: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (TypeId::of::<T>(), Box::from(place));
        if let Some(found) = places.get(&key).and_then(Weak::upgrade).and_then(|found| found.downcast::<T>().ok()) {
            return found;
        }
        // Now and then: a hundred thousand consumers may have a filter each.
        if places.len() == places.capacity() {
            places.retain(|_, weak| weak.strong_count() > 0);
        }
        let made = Arc::new(make());
        let weak: Weak<T> = Arc::downgrade(&made);
        places.insert(key, weak);
        made
    }
}
