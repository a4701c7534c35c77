//! Quotas: amounts per calendar period, counted in memory and kept in a store.
//!
//! What is used is added to the store every so often, in the background. A crash loses at most what came in since then; a
//! stop and an upgrade lose nothing. While the store does not take anything, counting goes on in memory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    /// Of the warning of the soft limit, so that it comes once.
    warned: AtomicU64,
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
    /// When it last took everything, in seconds since 1970.
    written: AtomicI64,
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
            let name = names.entry(usage.quota).or_insert_with_key(|name| name.as_str().into()).clone();
            let window = Window { start: usage.start, end: usage.end };
            let counted = Counted {
                quota: name,
                caller: usage.caller.into(),
                window,
                used: usage.used.into(),
                pending: 0.into(),
                own: 0.into(),
                stored: usage.used.into(),
                warned: 0.into(),
            };
            cells.insert(mix(mix(quota, window.start as u64), caller), Arc::new(counted));
        }
        *store = Some((path.to_owned(), opened));
        Ok(())
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
            None => cells.get_or_insert_with(key, || {
                Arc::new(Counted {
                    quota: quota.name.clone(),
                    caller: name().into(),
                    window,
                    used: 0.into(),
                    pending: 0.into(),
                    own: 0.into(),
                    stored: 0.into(),
                    warned: 0.into(),
                })
            }),
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

    /// Gives back what [`Quotas::take`] took, for a request that another limit refuses.
    pub fn give_back(&self, quota: &Quota, caller: u64) {
        let key = quota.key(caller, quota.window(unix_now()));
        if let Some(cell) = self.cells.pin().get(&key) {
            // Only what is not in the store yet can be taken back: there, amounts are added and never removed.
            let taken =
                cell.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |pending| pending.checked_sub(1));
            if taken.is_ok() {
                cell.used.fetch_sub(1, Ordering::Relaxed);
                cell.own.fetch_sub(1, Ordering::Relaxed);
            }
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
        let fleet = self.fleet.load_full();
        if store.is_none() && fleet.is_none() {
            return Ok(());
        }
        let now = unix_now();
        let cells = self.cells.pin();
        let (mut counted, mut usages) = (Vec::new(), Vec::new());
        for (key, cell) in &cells {
            let pending = cell.pending.swap(0, Ordering::Relaxed);
            if pending == 0 && cell.window.end + AFTERWARDS < now {
                cells.remove(key);
                continue;
            }
            if pending > 0 {
                usages.push(Usage {
                    quota: cell.quota.to_string(),
                    caller: cell.caller.to_string(),
                    start: cell.window.start,
                    end: cell.window.end,
                    used: pending,
                });
                counted.push(cell.clone());
            }
        }
        if usages.is_empty() {
            return Ok(());
        }
        let totals = match (&fleet, &mut *store) {
            (Some(fleet), _) => together(fleet, &counted, &usages),
            (None, Some((_, store))) => store.add(&usages),
            (None, None) => return Ok(()),
        };
        match totals {
            Ok(totals) => {
                for ((cell, usage), total) in counted.iter().zip(&usages).zip(totals) {
                    let before = cell.stored.swap(total, Ordering::Relaxed);
                    // What is more than we have added is of others.
                    let others = total.saturating_sub(before.saturating_add(usage.used));
                    cell.used.fetch_add(others, Ordering::Relaxed);
                }
                self.state.writes.fetch_add(1, Ordering::Relaxed);
                self.state.written.store(now, Ordering::Relaxed);
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

    pub fn state(&self) -> &State {
        &self.state
    }
}

/// Tells Redis what this process has counted in all, and learns what all have.
fn together(fleet: &Fleet, counted: &[Arc<Counted>], usages: &[Usage]) -> Result<Vec<u64>, StoreError> {
    let own: Vec<Usage> = counted
        .iter()
        .zip(usages)
        .map(|(cell, usage)| Usage { used: cell.own.load(Ordering::Relaxed), ..usage.clone() })
        .collect();
    fleet.handle().block_on(fleet.count(&own)).map_err(|_| StoreError::redis(&fleet.settings.url))
}

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

/// Writes to the store every `interval`, for as long as the process lives.
pub fn keep(quotas: Quotas, interval: Duration) {
    let thread = std::thread::Builder::new().name("usage".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(interval);
            let _ = quotas.flush();
        }
    });
    if let Err(error) = thread {
        log::error!("cannot start the thread that keeps what was used: {error}");
    }
}

fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
