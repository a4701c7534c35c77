//! Quotas: amounts per calendar period, counted in memory and kept in a store.
//!
//! What is used is added to the store every so often, in the background. A crash loses at most what came in since then; a
//! stop and an upgrade lose nothing. While the store does not take anything, counting goes on in memory.
//!
//! In a fleet each gateway keeps what it has counted in its own store as ever, and tells Redis the totals of that file: a
//! part for each file, so that nothing is counted twice, however often it is told, and whoever joins a fleet or leaves it
//! goes on with what is in the file. A gateway that has no file has its part for as long as the process lives.

mod lease;
mod reserve;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
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
use lease::Lease;
pub use reserve::Reserved;

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
    /// As far as this process knows, with what others have counted and with what is reserved.
    used: AtomicU64,
    /// What is not in the store yet.
    pending: AtomicU64,
    /// Of the warning of the soft limit, so that it comes once.
    warned: AtomicBool,
    kept: Box<Kept>,
}

/// What only the writing of a count needs.
struct Kept {
    quota: Arc<str>,
    caller: Box<str>,
    window: Window,
    /// What the store holds, of this process and of others; without one, what it would hold.
    stored: AtomicU64,
    /// In a fleet, what Redis was last told.
    told: AtomicU64,
    /// In a fleet, the most that the other gateways are known to have counted.
    others: AtomicU64,
    /// Its place in the store; 0 until it is known.
    row: AtomicI64,
    /// Of what is used, what is not settled yet.
    reserved: AtomicU64,
    /// In a fleet, what may be reserved without asking Redis.
    lease: OnceLock<Arc<Lease>>,
}

impl Counted {
    fn new(quota: Arc<str>, caller: &str, window: Window) -> Counted {
        let [used, pending, stored, told, others, reserved] = std::array::from_fn(|_| AtomicU64::new(0));
        let (row, warned, lease) = Default::default();
        let kept = Kept { quota, caller: caller.into(), window, stored, told, others, row, reserved, lease };
        Counted { used, pending, warned, kept: Box::new(kept) }
    }

    fn usage(&self, used: u64) -> Usage {
        let (quota, caller) = (self.kept.quota.to_string(), self.kept.caller.to_string());
        Usage { quota, caller, start: self.kept.window.start, end: self.kept.window.end, used }
    }

    /// What this gateway has counted, in its file and beyond.
    fn part(&self) -> u64 {
        self.kept.stored.load(Ordering::Relaxed).saturating_add(self.pending.load(Ordering::Relaxed))
    }

    /// Takes note of what the store holds, and of what other gateways have counted. A total only ever grows: what was
    /// served does not become unserved when a file is replaced by an older one, or a Redis emptied.
    fn learn(&self, stored: u64, others: u64) {
        self.kept.stored.store(stored, Ordering::Relaxed);
        let others = self.kept.others.fetch_max(others, Ordering::Relaxed).max(others);
        let known = self.part().saturating_add(others);
        // After what is used: a settlement in between lets it seem less for a moment, never more.
        self.used.fetch_max(known.saturating_add(self.kept.reserved.load(Ordering::SeqCst)), Ordering::SeqCst);
    }

    fn is_told(&self) {
        if let Some(lease) = self.kept.lease.get() {
            lease.told();
        }
    }

    /// Forgets what was in the store, since another one takes its place, and returns it. Rows of that one are others, and
    /// Redis may know its part by another name.
    fn leave_store(&self) -> u64 {
        let Kept { told, others, row, stored, .. } = &*self.kept;
        row.store(Row::UNKNOWN.0, Ordering::Relaxed);
        [told, others].into_iter().for_each(|known| known.store(0, Ordering::Relaxed));
        stored.swap(0, Ordering::Relaxed)
    }
}

type Cells = papaya::HashMap<u64, Counted, AsIs>;

/// All quotas of this process.
#[derive(Clone)]
pub struct Quotas {
    cells: Arc<Cells>,
    /// The keys of cells with something pending, so that writing does not look at all the others.
    dirty: Arc<SegQueue<u64>>,
    /// Leases that whoever writes does not know of yet.
    new_leases: Arc<SegQueue<Arc<Lease>>>,
    books: Arc<Mutex<Books>>,
    /// Is told, too, in a fleet.
    fleet: Arc<ArcSwapOption<Fleet>>,
    state: Arc<State>,
}

/// What only whoever writes needs.
struct Books {
    store: Option<(PathBuf, Store)>,
    /// In a fleet, the keys of cells of which Redis may not know all.
    untold: Keys,
    /// In a fleet, what may be spent without asking Redis.
    leases: Vec<Arc<Lease>>,
}

type Keys = HashSet<u64, AsIs>;

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
            new_leases: Arc::default(),
            books: Arc::new(Mutex::new(Books { store: None, untold: HashSet::with_hasher(AsIs), leases: Vec::new() })),
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
        let mut books = self.books();
        if let Some((open, _)) = &books.store {
            return match open == path {
                true => Ok(()),
                false => Err(format!("the usage store is {} until `headgate upgrade` or a restart", open.display())),
            };
        }
        let opened = Store::open(path).map_err(|error| error.to_string())?;
        let found = opened.current(unix_now()).map_err(|error| error.to_string())?;
        let cells = self.cells.pin();
        for (key, cell) in &cells {
            // What was counted in a fleet while there was no file comes into it.
            self.add_pending(*key, cell, cell.leave_store());
        }
        let mut names: HashMap<String, Arc<str>> = HashMap::new();
        for (row, usage) in found {
            let (quota, caller) = ids(&usage.quota, &usage.caller);
            let name = names.entry(usage.quota.clone()).or_insert_with_key(|name| name.as_str().into()).clone();
            let window = Window { start: usage.start, end: usage.end };
            let key = mix(mix(quota, window.start as u64), caller);
            let cell = cells.get_or_insert_with(key, || Counted::new(name.clone(), &usage.caller, window));
            cell.kept.row.store(row.0, Ordering::Relaxed);
            cell.learn(usage.used, 0);
        }
        self.tell_all_anew(&mut books.untold);
        books.store = Some((path.to_owned(), opened));
        Ok(())
    }

    /// How often what was used is written.
    pub fn set_interval(&self, interval: Duration) {
        self.state.interval.store(interval.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn is_open(&self) -> bool {
        self.books().store.is_some()
    }

    /// Counts together with a fleet from now on, or alone again.
    pub fn share(&self, fleet: Option<&Arc<Fleet>>) {
        // Not while a flush tells the one before.
        let mut books = self.books();
        let before = self.fleet.swap(fleet.cloned());
        if before.as_ref().map(Arc::as_ptr) != fleet.map(Arc::as_ptr) {
            self.tell_all_anew(&mut books.untold);
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Adds to the store what was used since the last time, tells the fleet, and learns what others have counted. Blocks:
    /// call it from a thread that may.
    pub fn flush(&self) -> Result<(), StoreError> {
        // Held until the end: of two flushes at a time, nobody would know whose totals are newer.
        let mut books = self.books();
        let Books { store, untold, leases } = &mut *books;
        let mut store = store.as_mut().map(|(_, store)| store);
        let fleet = self.fleet.load_full();
        let cells = self.cells.pin();
        // Not more than there are now: what comes in meanwhile is for the next time.
        let keys = (0..self.dirty.len()).map_while(|_| self.dirty.pop());
        let pending = keys.filter_map(|key| {
            let cell = cells.get(&key)?;
            Some(Pending { key, cell, used: cell.pending.swap(0, Ordering::Relaxed) })
        });
        let mut pending: Vec<Pending<'_>> = pending.collect();
        // As they lie in the file: a tenth less work for it than in the order in which they came.
        pending.sort_by_cached_key(|one| one.cell.kept.row.load(Ordering::Relaxed));
        if fleet.is_some() {
            untold.extend(pending.iter().map(|one| one.key));
        }
        let kept = match &mut store {
            Some(store) => self.keep(store, &pending, untold),
            None if fleet.is_none() && !pending.is_empty() => Err(StoreError::none()),
            None => {
                pending.iter().for_each(Pending::is_kept);
                Ok(())
            }
        };
        if kept.is_err() {
            pending.iter().for_each(|one| self.add_pending(one.key, one.cell, one.used));
        }
        let file = store.as_ref().map(|store| store.id());
        let told = match &fleet {
            Some(fleet) => {
                let told = self.tell(fleet, file, kept.is_ok(), untold);
                if told.is_ok() {
                    self.renew_leases(fleet, leases);
                }
                told
            }
            None => {
                untold.clear();
                Ok(false)
            }
        };
        let lost = "counting goes on in memory, and is lost if this process ends before the store works again";
        let late = "counting goes on in the usage store, and the other gateways learn of it when Redis answers again";
        match (kept, told) {
            (Ok(()), Ok(told)) => {
                if told || !pending.is_empty() {
                    self.state.writes.fetch_add(1, Ordering::Relaxed);
                    self.state.recovered();
                }
                Ok(())
            }
            (Err(error), _) => Err(self.state.failed(error, lost)),
            (Ok(()), Err(error)) => Err(self.state.failed(error, if store.is_some() { late } else { lost })),
        }
    }

    /// Adds to the store, if there is something to add.
    fn keep(&self, store: &mut Store, pending: &[Pending<'_>], untold: &mut Keys) -> Result<(), StoreError> {
        if pending.is_empty() {
            return Ok(());
        }
        let cells = self.cells.pin();
        if store.follow()? {
            // Their counts in the new file are learnt with the first that is added to it.
            for cell in cells.values() {
                cell.leave_store();
            }
            untold.extend(cells.keys());
        }
        if write(store, pending, &self.cells)? {
            untold.extend(cells.keys());
        }
        Ok(())
    }

    /// Tells Redis what it does not know of this gateway's counts; false if it knows all. `file` is the store's.
    fn tell(&self, fleet: &Fleet, file: Option<&str>, kept: bool, untold: &mut Keys) -> Result<bool, StoreError> {
        let cells = self.cells.pin();
        // What only memory has is told if the file does not take it. Otherwise it waits: of a process that crashes, Redis
        // would have more than the file, and what the next one adds to that would be in Redis already.
        let part = |cell: &Counted| match kept {
            true => cell.kept.stored.load(Ordering::Relaxed),
            false => cell.part(),
        };
        let parts = untold.iter().filter_map(|key| cells.get(key)).map(|cell| (cell, part(cell)));
        let (parts, known): (Vec<_>, Vec<_>) =
            parts.partition(|(cell, part)| cell.kept.told.load(Ordering::Relaxed) != *part);
        known.iter().for_each(|(cell, _)| cell.is_told());
        let mut emptied = false;
        for parts in parts.chunks(TOLD_AT_ONCE) {
            let usages: Vec<_> = parts.iter().map(|(cell, part)| cell.usage(*part)).collect();
            let totals = fleet.handle().block_on(fleet.count(file, &usages));
            let totals = totals.map_err(|_| StoreError::redis(&fleet.settings.url))?;
            for ((cell, part), total) in parts.iter().zip(totals) {
                emptied |= cell.kept.told.swap(*part, Ordering::Relaxed) > total.before;
                let others = total.sum.saturating_sub(total.before.max(*part));
                cell.is_told();
                cell.learn(cell.kept.stored.load(Ordering::Relaxed), others);
                cell.used.fetch_max(total.sum, Ordering::Relaxed);
            }
        }
        untold.clear();
        if emptied {
            log::warn!("Redis at {} has forgotten what it was told of quotas; it is told again", fleet.settings.url);
            self.tell_all_anew(untold);
        }
        Ok(!parts.is_empty())
    }

    fn tell_all_anew(&self, untold: &mut Keys) {
        for (key, cell) in &self.cells.pin() {
            cell.kept.told.store(0, Ordering::Relaxed);
            untold.insert(*key);
        }
    }

    /// Forgets periods that are over, and of which everything is written where it has to be.
    fn forget(&self) {
        // Not while a flush has in hand what may have to be put back.
        let _books = self.books();
        let (now, in_fleet) = (unix_now(), self.fleet.load().is_some());
        let over = |cell: &Counted| {
            let told = || cell.kept.told.load(Ordering::Relaxed) == cell.kept.stored.load(Ordering::Relaxed);
            cell.kept.window.end.saturating_add(AFTERWARDS) < now
                && cell.pending.load(Ordering::Relaxed) == 0
                && cell.kept.reserved.load(Ordering::SeqCst) == 0
                && (!in_fleet || told())
        };
        self.cells.pin().retain(|_, cell| !over(cell));
    }

    /// Removes from the store what nobody looks back at any more.
    pub fn prune(&self) {
        if let Some((_, store)) = &mut self.books().store
            && let Err(error) = store.prune()
        {
            self.state.failed(error, "what is too old stays in it");
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

impl Pending<'_> {
    fn is_kept(&self) {
        self.cell.kept.stored.fetch_add(self.used, Ordering::Relaxed);
        if let Some(lease) = self.cell.kept.lease.get() {
            lease.kept(self.used);
        }
    }
}

/// Adds to the store, and learns what other processes have added; true if there were any.
fn write(store: &mut Store, pending: &[Pending<'_>], cells: &Cells) -> Result<bool, StoreError> {
    let cells = cells.pin();
    let row = |cell: &Counted| Row(cell.kept.row.load(Ordering::Relaxed));
    let adding = store.begin()?;
    let mut learnt = Vec::new();
    for Pending { cell, used, .. } in pending {
        if !adding.add(row(cell), *used)? {
            let (row, total) = adding.insert(&cell.usage(*used))?;
            learnt.push((*cell, row, total));
        }
    }
    // Also what is in a file that has just been opened was written by others.
    let others = adding.others_have_written();
    if others {
        for cell in cells.values() {
            let row = match row(cell) {
                Row::UNKNOWN => adding.find(&cell.usage(0))?.unwrap_or(Row::UNKNOWN),
                known => known,
            };
            learnt.push((cell, row, adding.total(row)?));
        }
    }
    adding.commit()?;
    pending.iter().for_each(Pending::is_kept);
    for (cell, row, total) in learnt {
        cell.kept.row.store(row.0, Ordering::Relaxed);
        cell.learn(total, 0);
    }
    Ok(others)
}

/// Callers that are told apart at one time, beside consumers, of whom there are as many as the configuration has.
const MOST_CALLERS: usize = 500_000;
/// Counts of which Redis is told at one time.
const TOLD_AT_ONCE: usize = 500;

/// How many counts stand in for all callers beyond the most.
const SHARED: u64 = 1024;

/// Seconds for which a period's counts are kept in memory when it is over: a request may still be on its way.
const AFTERWARDS: i64 = 120;

impl State {
    fn failed(&self, error: StoreError, consequence: &str) -> StoreError {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut failure = self.failure.write().unwrap_or_else(PoisonError::into_inner);
        let message = error.to_string();
        // Once per failure: it is tried again every second.
        if *failure != message {
            log::error!("{message}; {consequence}");
            *failure = message;
        }
        error
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

pub(super) fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
