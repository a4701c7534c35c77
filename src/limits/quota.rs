//! Quotas: amounts per calendar period, counted in memory and kept in a store.
//!
//! What is used is added to the store every so often, in the background. A crash loses at most what came in since then; a
//! stop and an upgrade lose nothing. While the store does not take anything, counting goes on in memory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_queue::SegQueue;
use jiff::tz::TimeZone;

use super::calendar::{self, Window};
use super::fleet::Fleet;
use super::gcra::mix;
use super::store::{Row, Store, StoreError, Usage};
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

/// What one caller has used of one quota in one period. What a request needs of it comes first, in one line of the cache.
struct Counted {
    /// As far as this process knows, with what others have added to the store.
    used: AtomicU64,
    /// Of it, what is not in the store yet.
    pending: AtomicU64,
    /// Of it, what this process has counted.
    own: AtomicU64,
    /// Of the warning of the soft limit, so that it comes once.
    warned: AtomicBool,
    kept: Box<Kept>,
}

/// What only the writing of a count needs.
struct Kept {
    quota: Arc<str>,
    caller: Box<str>,
    window: Window,
    /// What the store held when it was last asked.
    stored: AtomicU64,
    /// In a fleet, the most that the others are known to have counted.
    others: AtomicU64,
    /// Its place in the store; 0 until it is known.
    row: AtomicI64,
}

impl Counted {
    fn new(quota: Arc<str>, caller: &str, window: Window) -> Counted {
        let [used, pending, own, stored, others] = std::array::from_fn(|_| AtomicU64::new(0));
        let (row, warned) = Default::default();
        let kept = Kept { quota, caller: caller.into(), window, stored, others, row };
        Counted { used, pending, own, warned, kept: Box::new(kept) }
    }

    fn usage(&self, used: u64) -> Usage {
        let (quota, caller) = (self.kept.quota.to_string(), self.kept.caller.to_string());
        Usage { quota, caller, start: self.kept.window.start, end: self.kept.window.end, used }
    }

    /// Learns what the store holds of it: what is more than this process has added is of others.
    fn learn(&self, total: u64) {
        let before = self.kept.stored.swap(total, Ordering::Relaxed);
        self.used.fetch_add(total.saturating_sub(before), Ordering::Relaxed);
    }
}

type Cells = papaya::HashMap<u64, Counted, AsIs>;

/// All quotas of this process.
#[derive(Clone)]
pub struct Quotas {
    cells: Arc<Cells>,
    /// The keys of cells with something pending, so that writing does not look at all the others.
    dirty: Arc<SegQueue<u64>>,
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
            dirty: Arc::default(),
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
        for (row, usage) in found {
            let (quota, caller) = ids(&usage.quota, &usage.caller);
            let name = names.entry(usage.quota.clone()).or_insert_with_key(|name| name.as_str().into()).clone();
            let window = Window { start: usage.start, end: usage.end };
            let key = mix(mix(quota, window.start as u64), caller);
            let cell = cells.get_or_insert_with(key, || Counted::new(name.clone(), &usage.caller, window));
            // What was counted meanwhile, in a fleet, and the file does not know yet, has to come into it.
            let known = cell.used.fetch_max(usage.used, Ordering::Relaxed);
            cell.kept.stored.store(usage.used, Ordering::Relaxed);
            cell.kept.row.store(row.0, Ordering::Relaxed);
            cell.pending.store(0, Ordering::Relaxed);
            self.add_pending(key, cell, known.saturating_sub(usage.used));
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
        let (key, cell) = match cells.get(&key) {
            Some(cell) => (key, cell),
            None => {
                let (mut key, mut name) = (key, name());
                // Whoever can make up callers must not fill memory and disk: those beyond the most share.
                if cells.len() >= MOST_CALLERS && !name.starts_with("consumer:") {
                    let part = caller % SHARED;
                    (key, name) = (quota.key(part, window), format!("others:{part}"));
                }
                (key, cells.get_or_insert_with(key, || Counted::new(quota.name.clone(), &name, window)))
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
                self.add_pending(key, cell, 1);
                cell.own.fetch_add(1, Ordering::Relaxed);
                let passed = quota.soft.is_some_and(|soft| before + 1 >= soft);
                let warn = passed && !cell.warned.swap(true, Ordering::Relaxed);
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

    fn add_pending(&self, key: u64, cell: &Counted, amount: u64) {
        if amount > 0 && cell.pending.fetch_add(amount, Ordering::Relaxed) == 0 {
            self.dirty.push(key);
        }
    }

    /// Adds to the store what was used since the last time, and learns what others have added. Blocks: call it from a
    /// thread that may.
    pub fn flush(&self) -> Result<(), StoreError> {
        // Held until the end: of two flushes at a time, nobody would know whose totals are newer.
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let cells = self.cells.pin();
        // Not more than there are now: what comes in meanwhile is for the next time.
        let keys = (0..self.dirty.len()).map_while(|_| self.dirty.pop());
        let pending = keys.filter_map(|key| {
            let cell = cells.get(&key)?;
            Some(Pending { key, cell, used: cell.pending.swap(0, Ordering::Relaxed) })
        });
        let pending: Vec<Pending<'_>> = pending.collect();
        if pending.is_empty() {
            return Ok(());
        }
        let fleet = self.fleet.load_full();
        let written = match (&fleet, &mut *store) {
            (Some(fleet), _) => together(fleet, &pending),
            (None, Some((_, store))) => write(store, &pending, &self.cells),
            (None, None) => Err(StoreError::none()),
        };
        match written {
            Ok(()) => {
                self.state.writes.fetch_add(1, Ordering::Relaxed);
                self.state.recovered();
                Ok(())
            }
            Err(error) => {
                pending.iter().for_each(|one| self.add_pending(one.key, one.cell, one.used));
                self.state.failed(&error);
                Err(error)
            }
        }
    }

    /// Forgets periods that are over, and of which everything is written.
    fn forget(&self) {
        let now = unix_now();
        let over = |cell: &Counted| {
            cell.kept.window.end.saturating_add(AFTERWARDS) < now && cell.pending.load(Ordering::Relaxed) == 0
        };
        self.cells.pin().retain(|_, cell| !over(cell));
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

/// What is to be written of one cell.
struct Pending<'c> {
    key: u64,
    cell: &'c Counted,
    used: u64,
}

/// Adds to the store, and learns what other processes have added if there were any.
fn write(store: &mut Store, pending: &[Pending<'_>], cells: &Cells) -> Result<(), StoreError> {
    let cells = cells.pin();
    let row = |cell: &Counted| Row(cell.kept.row.load(Ordering::Relaxed));
    if store.follow()? {
        cells.values().for_each(|cell| cell.kept.row.store(Row::UNKNOWN.0, Ordering::Relaxed));
    }
    let adding = store.begin()?;
    let mut learnt = Vec::new();
    for Pending { cell, used, .. } in pending {
        if !adding.add(row(cell), *used)? {
            let (row, total) = adding.insert(&cell.usage(*used))?;
            learnt.push((*cell, row, total));
        }
    }
    // Also what is in a file that has just been opened was written by others.
    if adding.others_have_written() {
        for cell in cells.values() {
            let row = match row(cell) {
                Row::UNKNOWN => adding.find(&cell.usage(0))?.unwrap_or(Row::UNKNOWN),
                known => known,
            };
            learnt.push((cell, row, adding.total(row)?));
        }
    }
    adding.commit()?;
    for one in pending {
        one.cell.kept.stored.fetch_add(one.used, Ordering::Relaxed);
    }
    for (cell, row, total) in learnt {
        cell.kept.row.store(row.0, Ordering::Relaxed);
        cell.learn(total);
    }
    Ok(())
}

/// Tells Redis what this process has counted in all, and learns what the others have.
fn together(fleet: &Fleet, pending: &[Pending<'_>]) -> Result<(), StoreError> {
    let all: Vec<Usage> = pending.iter().map(|one| one.cell.usage(one.cell.own.load(Ordering::Relaxed))).collect();
    let totals = fleet.handle().block_on(fleet.count(&all)).map_err(|_| StoreError::redis(&fleet.settings.url))?;
    for ((one, own), total) in pending.iter().zip(&all).zip(totals) {
        // The total falls when Redis is emptied; what the others have counted is not uncounted by that.
        let others = total.saturating_sub(own.used);
        let known = one.cell.kept.others.fetch_max(others, Ordering::Relaxed);
        one.cell.used.fetch_add(others.saturating_sub(known), Ordering::Relaxed);
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
        let (mut forgot, mut pruned) = (Instant::now(), Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(quotas.state.interval.load(Ordering::Relaxed).max(10)));
            let _ = quotas.flush();
            if forgot.elapsed() > FORGET {
                quotas.forget();
                forgot = Instant::now();
            }
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

/// How often memory is rid of periods that are over.
const FORGET: Duration = Duration::from_secs(60);

/// How often the store is rid of what is too old.
const PRUNE: Duration = Duration::from_secs(3600);

fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
