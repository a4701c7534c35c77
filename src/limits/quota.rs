//! Quotas: amounts per calendar period, counted in memory and kept in a store.
//!
//! What is used is added to the store every so often, in the background. A crash loses at most what came in since then; a
//! stop and an upgrade lose nothing. While the store does not take anything, counting goes on in memory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::tz::TimeZone;

use super::calendar::{self, Window};
use super::fleet::Fleet;
use super::gcra::mix;
use super::store::{Store, StoreError, Usage};
use super::table::AsIs;
use super::{Exceeded, Standing};
use crate::config::units::QuotaAmount;

/// One quota, compiled.
pub struct Quota {
    /// What it is called in the store; the same name in every configuration is the same quota.
    name: Arc<str>,
    id: u64,
    pub amount: QuotaAmount,
    zone: TimeZone,
    /// Callers who have used this much are warned of.
    pub soft: Option<u64>,
    window: ArcSwap<Window>,
}

impl Quota {
    pub fn new(name: &str, id: u64, amount: QuotaAmount, zone: TimeZone, soft: Option<u64>) -> Quota {
        let none = Window { start: 0, end: 0 };
        Quota { name: name.into(), id, amount, zone, soft, window: ArcSwap::from_pointee(none) }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long the present period is.
    pub fn length(&self) -> Duration {
        self.window(unix_now()).length()
    }

    /// The period that holds `now`. It is looked up in the calendar once per period.
    fn window(&self, now: i64) -> Window {
        let known = **self.window.load();
        if known.contains(now) {
            return known;
        }
        // Beyond the calendar's years, one period without an end.
        let found =
            calendar::window(self.amount.period, &self.zone, now).unwrap_or(Window { start: i64::MIN, end: i64::MAX });
        self.window.store(Arc::new(found));
        found
    }

    fn key(&self, caller: u64, window: Window) -> u64 {
        mix(mix(self.id, window.start as u64), caller)
    }
}

/// What one caller has used of one quota in one period.
struct Counted {
    quota: Arc<str>,
    caller: Box<str>,
    window: Window,
    /// As far as this process knows, with what others have added to the store.
    used: AtomicU64,
    /// Of it, what is not in the store yet.
    pending: AtomicU64,
    /// Of it, what this process has counted.
    own: AtomicU64,
    /// What the store held when it was last asked.
    stored: AtomicU64,
    /// In a fleet, the most that the others are known to have counted.
    others: AtomicU64,
    /// Of the warning of the soft limit, so that it comes once.
    warned: AtomicU64,
}

impl Counted {
    fn new(quota: Arc<str>, caller: &str, window: Window) -> Counted {
        let [used, pending, own, stored, others, warned] = std::array::from_fn(|_| AtomicU64::new(0));
        Counted { quota, caller: caller.into(), window, used, pending, own, stored, others, warned }
    }
}

type Cells = papaya::HashMap<u64, Arc<Counted>, AsIs>;

/// All quotas of this process.
#[derive(Clone)]
pub struct Quotas {
    cells: Arc<Cells>,
    store: Arc<Mutex<Option<(PathBuf, Store)>>>,
    /// Takes the place of the store in a fleet.
    fleet: Arc<ArcSwapOption<Fleet>>,
    state: Arc<State>,
}

/// What is shown of the store.
#[derive(Default)]
pub struct State {
    /// Why the store took nothing the last time; empty if it did.
    failure: RwLock<String>,
    pub failures: AtomicU64,
    pub writes: AtomicU64,
    /// Milliseconds between two writes.
    interval: AtomicU64,
}

impl Default for Quotas {
    fn default() -> Self {
        Quotas {
            cells: Arc::new(papaya::HashMap::with_hasher(AsIs)),
            store: Arc::default(),
            fleet: Arc::default(),
            state: Arc::default(),
        }
    }
}

/// How a quota answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub standing: Standing,
    /// With this request the caller has passed the soft limit.
    pub warn: bool,
}

impl Quotas {
    /// Opens the store, unless it is open. Another file than the one in use is an error: what was counted stays where it
    /// is until the process is replaced.
    pub fn open(&self, path: &Path, ids: impl Fn(&str, &str) -> (u64, u64)) -> Result<(), String> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((open, _)) = &*store {
            return match open == path {
                true => Ok(()),
                false => Err(format!("the usage store is {} until `headgate upgrade` or a restart", open.display())),
            };
        }
        let opened = Store::open(path).map_err(|error| error.to_string())?;
        let found = opened.current(unix_now()).map_err(|error| error.to_string())?;
        let cells = self.cells.pin();
        let mut names: HashMap<String, Arc<str>> = HashMap::new();
        for usage in found {
            let (quota, caller) = ids(&usage.quota, &usage.caller);
            let name = names.entry(usage.quota.clone()).or_insert_with_key(|name| name.as_str().into()).clone();
            let window = Window { start: usage.start, end: usage.end };
            let key = mix(mix(quota, window.start as u64), caller);
            let cell = cells.get_or_insert_with(key, || Arc::new(Counted::new(name.clone(), &usage.caller, window)));
            // What was counted meanwhile, in a fleet, and the file does not know yet, has to come into it.
            let known = cell.used.fetch_max(usage.used, Ordering::Relaxed);
            cell.stored.store(usage.used, Ordering::Relaxed);
            cell.pending.store(known.saturating_sub(usage.used), Ordering::Relaxed);
        }
        *store = Some((path.to_owned(), opened));
        Ok(())
    }

    /// How often what was used is written.
    pub fn set_interval(&self, interval: Duration) {
        self.state.interval.store(interval.as_millis() as u64, Ordering::Relaxed);
    }

    /// Counts together with a fleet from now on, or alone again.
    pub fn share(&self, fleet: Option<&Arc<Fleet>>) {
        self.fleet.store(fleet.cloned());
    }

    /// Uses one of a caller's quota, or says what stands against it. `name` is who the caller is, for the store.
    pub fn take(&self, quota: &Quota, caller: u64, name: impl Fn() -> String) -> Result<Taken, Exceeded> {
        let now = unix_now();
        let window = quota.window(now);
        let key = quota.key(caller, window);
        let cells = self.cells.pin();
        let cell = match cells.get(&key) {
            Some(cell) => cell,
            None => {
                let mut name = name();
                let mut key = key;
                // Whoever can make up callers must not fill memory and disk: those beyond the most share.
                if cells.len() >= MOST_CALLERS && !name.starts_with("consumer:") {
                    let part = caller % SHARED;
                    (key, name) = (quota.key(part, window), format!("others:{part}"));
                }
                cells.get_or_insert_with(key, || Arc::new(Counted::new(quota.name.clone(), &name, window)))
            }
        };
        let amount = quota.amount.amount;
        let taken =
            cell.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < amount).then(|| used + 1));
        let standing = |used: u64| Standing {
            amount,
            remaining: amount.saturating_sub(used),
            reset: window.left(now),
            window: window.length(),
        };
        match taken {
            Ok(before) => {
                cell.pending.fetch_add(1, Ordering::Relaxed);
                cell.own.fetch_add(1, Ordering::Relaxed);
                let passed = quota.soft.is_some_and(|soft| before + 1 >= soft);
                let warn = passed && cell.warned.swap(1, Ordering::Relaxed) == 0;
                Ok(Taken { standing: standing(before + 1), warn })
            }
            Err(used) => Err(Exceeded { index: 0, standing: standing(used), retry_after: window.left(now) }),
        }
    }

    /// How much a caller has used in the present period, and how it stands.
    pub fn standing(&self, quota: &Quota, caller: u64) -> (u64, Standing) {
        let now = unix_now();
        let window = quota.window(now);
        let used = self.cells.pin().get(&quota.key(caller, window)).map_or(0, |cell| cell.used.load(Ordering::Relaxed));
        let amount = quota.amount.amount;
        let remaining = amount.saturating_sub(used);
        (used, Standing { amount, remaining, reset: window.left(now), window: window.length() })
    }

    /// Adds to the store what was used since the last time, and learns what others have added. Blocks: call it from a
    /// thread that may.
    pub fn flush(&self) -> Result<(), StoreError> {
        // Held until the end: of two flushes at a time, nobody would know whose totals are newer.
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let now = unix_now();
        let (counted, usages) = self.take_pending(now);
        if usages.is_empty() {
            return Ok(());
        }
        let fleet = self.fleet.load_full();
        let written = match (&fleet, &mut *store) {
            (Some(fleet), _) => together(fleet, &counted, &usages),
            (None, Some((_, store))) => store.add(&usages).map(|totals| learn(&counted, &usages, &totals)),
            (None, None) => Err(StoreError::none()),
        };
        match written {
            Ok(()) => {
                self.state.writes.fetch_add(1, Ordering::Relaxed);
                self.state.recovered();
                Ok(())
            }
            Err(error) => {
                for (cell, usage) in counted.iter().zip(&usages) {
                    cell.pending.fetch_add(usage.used, Ordering::Relaxed);
                }
                self.state.failed(&error);
                Err(error)
            }
        }
    }

    /// What has to be written. Forgets periods that are over, and of which everything is written.
    fn take_pending(&self, now: i64) -> (Vec<Arc<Counted>>, Vec<Usage>) {
        let cells = self.cells.pin();
        let (mut counted, mut usages) = (Vec::new(), Vec::new());
        for (key, cell) in &cells {
            let pending = cell.pending.swap(0, Ordering::Relaxed);
            if pending > 0 {
                usages.push(Usage {
                    quota: cell.quota.to_string(),
                    caller: cell.caller.to_string(),
                    start: cell.window.start,
                    end: cell.window.end,
                    used: pending,
                });
                counted.push(cell.clone());
            } else if cell.window.end.saturating_add(AFTERWARDS) < now {
                cells.remove(key);
            }
        }
        (counted, usages)
    }

    /// Removes from the store what nobody looks back at any more.
    pub fn prune(&self) {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, store)) = &mut *store
            && let Err(error) = store.prune()
        {
            self.state.failed(&error);
        }
    }

    pub fn state(&self) -> &State {
        &self.state
    }
}

/// Takes the totals of a store to which `usages` were added: what is more than we have added is of others.
fn learn(counted: &[Arc<Counted>], usages: &[Usage], totals: &[u64]) {
    for ((cell, usage), total) in counted.iter().zip(usages).zip(totals) {
        let before = cell.stored.swap(*total, Ordering::Relaxed);
        let others = total.saturating_sub(before.saturating_add(usage.used));
        cell.used.fetch_add(others, Ordering::Relaxed);
    }
}

/// Tells Redis what this process has counted in all, and learns what the others have.
fn together(fleet: &Fleet, counted: &[Arc<Counted>], usages: &[Usage]) -> Result<(), StoreError> {
    let own = |cell: &Arc<Counted>| cell.own.load(Ordering::Relaxed);
    let all: Vec<Usage> =
        counted.iter().zip(usages).map(|(cell, usage)| Usage { used: own(cell), ..usage.clone() }).collect();
    let totals = fleet.handle().block_on(fleet.count(&all)).map_err(|_| StoreError::redis(&fleet.settings.url))?;
    for ((cell, own), total) in counted.iter().zip(&all).zip(totals) {
        // The total falls when Redis is emptied; what the others have counted is not uncounted by that.
        let others = total.saturating_sub(own.used);
        let known = cell.others.fetch_max(others, Ordering::Relaxed);
        cell.used.fetch_add(others.saturating_sub(known), Ordering::Relaxed);
    }
    Ok(())
}

/// Callers that are told apart at one time, beside consumers, of whom there are as many as the configuration has.
const MOST_CALLERS: usize = 500_000;
/// How many counts stand in for all callers beyond the most.
const SHARED: u64 = 1024;

/// Seconds for which a period's counts are kept in memory when it is over: a request may still be on its way.
const AFTERWARDS: i64 = 120;

impl State {
    fn failed(&self, error: &StoreError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut failure = self.failure.write().unwrap_or_else(PoisonError::into_inner);
        let message = error.to_string();
        // Once per failure: it is tried again every second.
        if *failure != message {
            log::error!(
                "{message}; counting goes on in memory, and is lost if this process ends before the store works again"
            );
            *failure = message;
        }
    }

    fn recovered(&self) {
        let mut failure = self.failure.write().unwrap_or_else(PoisonError::into_inner);
        if !failure.is_empty() {
            log::info!("the usage store works again, and has everything");
            failure.clear();
        }
    }

    /// Why the store takes nothing, if it does not.
    pub fn failure(&self) -> Option<String> {
        let failure = self.failure.read().unwrap_or_else(PoisonError::into_inner);
        (!failure.is_empty()).then(|| failure.clone())
    }
}

/// Writes to the store as often as [`Quotas::set_interval`] says, for as long as the process lives.
pub fn keep(quotas: Quotas) {
    let thread = std::thread::Builder::new().name("usage".to_owned()).spawn(move || {
        let mut pruned = Instant::now();
        loop {
            std::thread::sleep(Duration::from_millis(quotas.state.interval.load(Ordering::Relaxed).max(10)));
            let _ = quotas.flush();
            if pruned.elapsed() > PRUNE {
                quotas.prune();
                pruned = Instant::now();
            }
        }
    });
    if let Err(error) = thread {
        log::error!("cannot start the thread that keeps what was used: {error}");
    }
}

/// How often the store is rid of what is too old.
const PRUNE: Duration = Duration::from_secs(3600);

fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
