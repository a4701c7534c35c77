//! What consumers have used of models, by day: kept beside the quotas, in the same file, for whoever looks back.
//!
//! Counting is an atomic operation for each number. What was counted is added to the file every so often, as that of quotas
//! is, and with the same bound on what a crash can lose. Without a file the days are there for as long as the process is.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, params};

use super::gcra::mix;
use super::quota::unix_now;
use super::table::AsIs;

/// Rows that are counted in memory at one time; what comes beyond is counted as `other`.
const MOST_ROWS: usize = 50_000;
const OTHER: &str = "other";

/// Rows of one answer.
pub const MOST_SHOWN: usize = 10_000;

/// How often the file is rid of days that are too old.
const PRUNE: Duration = Duration::from_secs(3600);
const DAY: i64 = 86_400;

/// Numbers of one row.
pub const NUMBERS: usize = 9;

/// What was used: of one call, or of many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    pub calls: u64,
    /// Calls that no provider has answered.
    pub failed: u64,
    pub input: u64,
    pub cache_read: u64,
    pub cache_write: u64,
    pub output: u64,
    pub reasoning: u64,
    /// Nano-dollars.
    pub cost: u64,
    /// Calls whose price is unknown; no part of `cost`.
    pub unpriced: u64,
}

impl Used {
    fn numbers(&self) -> [u64; NUMBERS] {
        let Used { calls, failed, input, cache_read, cache_write, output, reasoning, cost, unpriced } = *self;
        [calls, failed, input, cache_read, cache_write, output, reasoning, cost, unpriced]
    }

    fn of(numbers: [u64; NUMBERS]) -> Used {
        let [calls, failed, input, cache_read, cache_write, output, reasoning, cost, unpriced] = numbers;
        Used { calls, failed, input, cache_read, cache_write, output, reasoning, cost, unpriced }
    }

    fn plus(&self, other: &Used) -> Used {
        let (mut sum, other) = (self.numbers(), other.numbers());
        sum.iter_mut().zip(other).for_each(|(sum, more)| *sum = sum.saturating_add(more));
        Used::of(sum)
    }
}

/// The use of one model by one consumer on one day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Days since 1970, in UTC.
    pub day: i64,
    /// Empty for callers that are no consumers.
    pub consumer: String,
    /// `provider/model`.
    pub model: String,
    pub used: Used,
}

/// A row that is being counted. What the file has of it is taken off.
struct Counted {
    day: i64,
    consumer: Box<str>,
    model: Box<str>,
    numbers: [AtomicU64; NUMBERS],
}

#[derive(Default, Clone)]
pub struct Ledger(Arc<Shared>);

struct Shared {
    rows: papaya::HashMap<u64, Counted, AsIs>,
    /// The file, once it is open. Held while it is written to.
    file: Mutex<Option<File>>,
    days: AtomicU64,
    /// Milliseconds between two writes.
    interval: AtomicU64,
    keeping: Once,
}

impl Default for Shared {
    fn default() -> Self {
        Shared {
            rows: papaya::HashMap::with_hasher(AsIs),
            file: Mutex::default(),
            days: AtomicU64::new(1),
            interval: AtomicU64::new(1000),
            keeping: Once::new(),
        }
    }
}

struct File {
    path: PathBuf,
    connection: Connection,
    /// Device and number of the file that was opened: another may take its place.
    is: Option<(u64, u64)>,
}

impl Ledger {
    /// Opens the file, which the store of quotas has made. One that is open stays.
    pub fn open(&self, path: &Path) -> Result<(), String> {
        let mut file = self.file();
        if file.is_none() {
            *file = Some(File::open(path).map_err(|error| format!("the use of models cannot be kept: {error}"))?);
        }
        Ok(())
    }

    /// Adds to the file every `interval` from now on, and keeps days for so long.
    pub fn keep(&self, interval: Duration, kept: Duration) {
        self.0.interval.store(interval.as_millis() as u64, Ordering::Relaxed);
        self.0.days.store(kept.as_secs().div_ceil(DAY as u64).max(1), Ordering::Relaxed);
        self.0.keeping.call_once(|| {
            let ledger = self.clone();
            let thread = std::thread::Builder::new().name("ledger".to_owned()).spawn(move || ledger.run());
            if let Err(error) = thread {
                log::error!("cannot start the thread that keeps the use of models: {error}");
            }
        });
    }

    fn run(&self) {
        let (mut pruned, mut failed) = (Instant::now(), false);
        loop {
            std::thread::sleep(Duration::from_millis(self.0.interval.load(Ordering::Relaxed).max(10)));
            let mut kept = self.flush();
            if pruned.elapsed() > PRUNE {
                pruned = Instant::now();
                kept = kept.and_then(|()| self.prune());
            }
            match (&kept, failed) {
                // Once per failure: it is tried again every second.
                (Err(error), false) => log::error!("the use of models is not kept: {error}; it is counted in memory"),
                (Ok(()), true) => log::info!("the use of models is kept again"),
                _ => {}
            }
            failed = kept.is_err();
        }
    }

    fn file(&self) -> MutexGuard<'_, Option<File>> {
        self.0.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what a call has used. `key` stands for consumer and model, as a number that nobody can choose.
    pub fn count(&self, key: u64, consumer: &str, model: impl FnOnce() -> String, used: &Used) {
        let day = unix_now().div_euclid(DAY);
        let key = mix(key, day as u64);
        let rows = self.0.rows.pin();
        let row = match rows.get(&key) {
            Some(row) => row,
            None if rows.len() < MOST_ROWS => rows.get_or_insert_with(key, || Counted::new(day, consumer, &model())),
            None => rows.get_or_insert_with(mix(0, day as u64), || Counted::new(day, OTHER, OTHER)),
        };
        row.add(used);
    }

    /// Adds to the file what was counted since the last time. Blocks: call it from a thread that may.
    pub fn flush(&self) -> Result<(), rusqlite::Error> {
        let mut file = self.file();
        let Some(file) = &mut *file else { return Ok(()) };
        let rows = self.0.rows.pin();
        let taken: Vec<_> = rows.values().filter_map(|row| Some((row, row.take()?))).collect();
        let written = file.add(taken.iter().map(|(row, used)| (*row, used)));
        if written.is_err() {
            taken.iter().for_each(|(row, used)| row.add(used));
        }
        let today = unix_now().div_euclid(DAY);
        // A call may have looked a row up and not counted yet: those of yesterday stay for another day.
        rows.retain(|_, row| row.day >= today - 1 || !row.is_empty());
        written
    }

    fn prune(&self) -> Result<(), rusqlite::Error> {
        let before = unix_now().div_euclid(DAY) - self.0.days.load(Ordering::Relaxed) as i64;
        match &mut *self.file() {
            Some(file) => file.connection.execute("DELETE FROM model_use WHERE day <= ?1", [before]).map(drop),
            None => {
                self.0.rows.pin().retain(|_, row| row.day > before);
                Ok(())
            }
        }
    }

    /// The use of the last days, today's included, of all consumers or of one; the latest first. At most [`MOST_SHOWN`] rows.
    pub fn read(&self, consumer: Option<&str>, days: u32) -> Result<Vec<Row>, String> {
        let from = unix_now().div_euclid(DAY) - i64::from(days.max(1)) + 1;
        let file = self.file();
        let mut found = match &*file {
            Some(file) => file.read(consumer, from).map_err(|error| error.to_string())?,
            None => Vec::new(),
        };
        for row in self.0.rows.pin().values() {
            let of_it = consumer.is_none_or(|consumer| *consumer == *row.consumer);
            if row.day < from || !of_it || row.is_empty() {
                continue;
            }
            let known = found
                .iter_mut()
                .find(|known| known.day == row.day && *known.consumer == *row.consumer && *known.model == *row.model);
            match known {
                Some(known) => known.used = known.used.plus(&row.used()),
                None => found.push(Row {
                    day: row.day,
                    consumer: row.consumer.to_string(),
                    model: row.model.to_string(),
                    used: row.used(),
                }),
            }
        }
        found.sort_by(|a, b| (b.day, &a.consumer, &a.model).cmp(&(a.day, &b.consumer, &b.model)));
        found.truncate(MOST_SHOWN);
        Ok(found)
    }
}

impl Counted {
    fn new(day: i64, consumer: &str, model: &str) -> Counted {
        Counted { day, consumer: consumer.into(), model: model.into(), numbers: Default::default() }
    }

    fn add(&self, used: &Used) {
        for (number, more) in self.numbers.iter().zip(used.numbers()) {
            if more > 0 {
                number.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    fn used(&self) -> Used {
        Used::of(std::array::from_fn(|i| self.numbers[i].load(Ordering::Relaxed)))
    }

    fn is_empty(&self) -> bool {
        self.used() == Used::default()
    }

    /// Takes what is counted, if there is something.
    fn take(&self) -> Option<Used> {
        if self.is_empty() {
            return None;
        }
        Some(Used::of(std::array::from_fn(|i| self.numbers[i].swap(0, Ordering::Relaxed))))
    }
}

const LAYOUT: &str = "CREATE TABLE IF NOT EXISTS model_use (
    day INTEGER NOT NULL, consumer TEXT NOT NULL, model TEXT NOT NULL,
    calls INTEGER NOT NULL, failed INTEGER NOT NULL, input INTEGER NOT NULL, cache_read INTEGER NOT NULL,
    cache_write INTEGER NOT NULL, output INTEGER NOT NULL, reasoning INTEGER NOT NULL, cost INTEGER NOT NULL,
    unpriced INTEGER NOT NULL, PRIMARY KEY (day, consumer, model)
) WITHOUT ROWID, STRICT";

const ADD: &str = "INSERT INTO model_use VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
    ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, failed = failed + excluded.failed,
    input = min(input + excluded.input, 9223372036854775807),
    cache_read = min(cache_read + excluded.cache_read, 9223372036854775807),
    cache_write = min(cache_write + excluded.cache_write, 9223372036854775807),
    output = min(output + excluded.output, 9223372036854775807),
    reasoning = min(reasoning + excluded.reasoning, 9223372036854775807),
    cost = min(cost + excluded.cost, 9223372036854775807), unpriced = unpriced + excluded.unpriced";

const READ: &str =
    "SELECT day, consumer, model, calls, failed, input, cache_read, cache_write, output, reasoning, cost, unpriced
    FROM model_use WHERE day >= ?1 AND (?2 IS NULL OR consumer = ?2) ORDER BY day DESC, consumer, model LIMIT ?3";

impl File {
    fn open(path: &Path) -> rusqlite::Result<File> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.execute(LAYOUT, [])?;
        Ok(File { path: path.to_owned(), connection, is: file_at(path) })
    }

    fn add<'r>(&mut self, rows: impl Iterator<Item = (&'r Counted, &'r Used)>) -> rusqlite::Result<()> {
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        if file_at(&self.path) != self.is {
            // What is written to a file that was moved away is lost to the next process.
            *self = File::open(&self.path)?;
        }
        let transaction = self.connection.transaction()?;
        {
            let mut add = transaction.prepare_cached(ADD)?;
            for (row, used) in rows {
                let [n0, n1, n2, n3, n4, n5, n6, n7, n8] =
                    used.numbers().map(|number| i64::try_from(number).unwrap_or(i64::MAX));
                add.execute(params![row.day, row.consumer, row.model, n0, n1, n2, n3, n4, n5, n6, n7, n8])?;
            }
        }
        transaction.commit()
    }

    fn read(&self, consumer: Option<&str>, from: i64) -> rusqlite::Result<Vec<Row>> {
        let mut read = self.connection.prepare_cached(READ)?;
        let rows = read.query_map(params![from, consumer, MOST_SHOWN as i64], |row| {
            let mut numbers = [0; NUMBERS];
            for (i, number) in numbers.iter_mut().enumerate() {
                *number = row.get::<_, i64>(i + 3)?.max(0) as u64;
            }
            Ok(Row { day: row.get(0)?, consumer: row.get(1)?, model: row.get(2)?, used: Used::of(numbers) })
        })?;
        rows.collect()
    }
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|about| (about.dev(), about.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(calls: u64, output: u64) -> Used {
        Used { calls, output, ..Used::default() }
    }

    #[test]
    fn what_is_counted_adds_up_in_memory_and_in_the_file() {
        let file = std::env::temp_dir().join(format!("headgate-ledger-{}", fastrand::u64(..)));
        super::super::store::Store::open(&file).unwrap();
        let ledger = Ledger::default();
        ledger.count(1, "app", || "p/m".to_owned(), &used(1, 10));
        assert_eq!(ledger.read(None, 1).unwrap()[0].used, used(1, 10), "without a file");
        ledger.open(&file).unwrap();
        ledger.flush().unwrap();
        ledger.count(1, "app", || "p/m".to_owned(), &used(1, 5));
        ledger.count(2, "other-app", || "p/m".to_owned(), &used(1, 1));
        let all = ledger.read(None, 1).unwrap();
        assert_eq!(all.iter().map(|row| row.used).collect::<Vec<_>>(), [used(2, 15), used(1, 1)]);
        assert_eq!(ledger.read(Some("other-app"), 1).unwrap().len(), 1);
        ledger.flush().unwrap();
        let again = Ledger::default();
        again.open(&file).unwrap();
        assert_eq!(again.read(Some("app"), 30).unwrap()[0].used, used(2, 15), "another process");
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn more_rows_than_memory_may_hold_are_counted_as_other() {
        let ledger = Ledger::default();
        for key in 1..=MOST_ROWS as u64 + 10 {
            ledger.count(key, "c", || key.to_string(), &used(1, 0));
        }
        let other =
            ledger.0.rows.pin().values().filter(|row| &*row.consumer == OTHER).map(|row| row.used().calls).sum::<u64>();
        assert_eq!(other, 10);
    }
}
