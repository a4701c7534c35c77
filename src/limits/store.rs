//! Where what was used of quotas is kept: SQLite, in a file beside the configuration.
//!
//! The store is added to, never set: two processes that share it during an upgrade, or after a crash, cannot undo each
//! other's counts, and nothing is counted twice.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};

/// Changes with the layout of the file. A newer one is refused: what is in it would be misread.
const SCHEMA: i64 = 1;

/// How long another process may hold the file. During an upgrade two write to it in turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is over is kept for this long, for whoever looks back.
const KEPT: i64 = 400 * 86_400;
const PRUNE: &str = "DELETE FROM usage WHERE end < unixepoch() - ?1";

/// One caller's use of one quota in one period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    pub quota: String,
    pub caller: String,
    pub start: i64,
    pub end: i64,
    pub used: u64,
}

/// The file, opened.
pub struct Store {
    connection: Connection,
    path: PathBuf,
}

/// Why the file is of no use, as a sentence for whoever operates the gateway.
#[derive(Debug, thiserror::Error)]
#[error("the usage store {path} {what}")]
pub struct StoreError {
    path: String,
    what: String,
}

impl StoreError {
    pub(super) fn redis(address: &str) -> StoreError {
        StoreError { path: format!("in Redis at {address}"), what: "cannot be reached".to_owned() }
    }

    /// Neither a file nor a Redis is there to write to.
    pub(super) fn none() -> StoreError {
        StoreError { path: "(none)".to_owned(), what: "is not open".to_owned() }
    }
}

impl Store {
    /// Opens the file, or makes it. A file that is damaged, foreign, newer or not writable is an error: to begin with an
    /// empty one instead would give everybody a new quota.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let fail = |what: String| StoreError { path: path.display().to_string(), what };
        let explain = |error: rusqlite::Error| fail(sentence(&error));
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
            return Err(fail(format!("cannot be made: there is no folder {}", folder.display())));
        }
        let existed = path.exists();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(explain)?;
        connection.busy_timeout(PATIENCE).map_err(explain)?;
        let check =
            |connection: &Connection| connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        match check(&connection).map_err(explain)?.as_str() {
            "ok" => {}
            damage => {
                return Err(fail(format!(
                    "is damaged: {damage}; restore it from a backup, or move it away to begin anew"
                )));
            }
        }
        // WAL: readers such as backups do not wait; FULL: what is committed survives a loss of power.
        connection.pragma_update(None, "journal_mode", "WAL").map_err(explain)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(explain)?;
        let mut store = Store { connection, path: path.to_owned() };
        store.prepare(existed).map_err(explain)?.map_err(fail)?;
        if !existed {
            log::info!("made the usage store {}", path.display());
        }
        Ok(store)
    }

    fn prepare(&mut self, existed: bool) -> rusqlite::Result<Result<(), String>> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?;
        match version {
            SCHEMA => {}
            0 if !existed || tables == 0 => {
                transaction.execute_batch(
                    "CREATE TABLE usage (
                        quota TEXT NOT NULL, caller TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL,
                        used INTEGER NOT NULL, PRIMARY KEY (quota, caller, start)
                    ) WITHOUT ROWID, STRICT;
                    CREATE INDEX usage_end ON usage (end);",
                )?;
                transaction.pragma_update(None, "user_version", SCHEMA)?;
            }
            0 => return Ok(Err("is a database of something else; name another file".to_owned())),
            other => {
                return Ok(Err(format!("was written by a newer headgate (layout {other}, this one knows {SCHEMA})")));
            }
        }
        // Fails now, and not with the first count, if the file may not be written.
        transaction.execute(PRUNE, [KEPT])?;
        transaction.commit()?;
        Ok(Ok(()))
    }

    /// Removes what nobody looks back at any more.
    pub fn prune(&mut self) -> Result<(), StoreError> {
        self.connection.execute(PRUNE, [KEPT]).map(drop).map_err(|error| self.error(&error))
    }

    /// What was used in periods that are not over at `now`.
    pub fn current(&self, now: i64) -> Result<Vec<Usage>, StoreError> {
        let read = || {
            let mut statement =
                self.connection.prepare("SELECT quota, caller, start, end, used FROM usage WHERE end > ?1")?;
            let rows = statement.query_map([now], |row| {
                let used: i64 = row.get(4)?;
                let used = used.max(0) as u64;
                Ok(Usage { quota: row.get(0)?, caller: row.get(1)?, start: row.get(2)?, end: row.get(3)?, used })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|error| self.error(&error))
    }

    /// Adds what was used, all or nothing, and returns the totals in the same order.
    pub fn add(&mut self, used: &[Usage]) -> Result<Vec<u64>, StoreError> {
        let mut write = || {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut totals = Vec::with_capacity(used.len());
            {
                let mut add = transaction.prepare_cached(
                    "INSERT INTO usage (quota, caller, start, end, used) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT DO UPDATE SET used = min(used + excluded.used, 9223372036854775807) RETURNING used",
                )?;
                let mut look = transaction
                    .prepare_cached("SELECT used FROM usage WHERE quota = ?1 AND caller = ?2 AND start = ?3")?;
                for row in used {
                    let total: Option<i64> = match row.used {
                        0 => look.query_row(params![row.quota, row.caller, row.start], |row| row.get(0)).optional()?,
                        some => {
                            let some = i64::try_from(some).unwrap_or(i64::MAX);
                            Some(add.query_row(params![row.quota, row.caller, row.start, row.end, some], |row| {
                                row.get(0)
                            })?)
                        }
                    };
                    totals.push(total.unwrap_or(0).max(0) as u64);
                }
            }
            transaction.commit()?;
            Ok(totals)
        };
        write().map_err(|error: rusqlite::Error| self.error(&error))
    }

    fn error(&self, error: &rusqlite::Error) -> StoreError {
        StoreError { path: self.path.display().to_string(), what: sentence(error) }
    }
}

fn sentence(error: &rusqlite::Error) -> String {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            format!("is damaged or no database ({error}); restore it from a backup, or move it away to begin anew")
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            format!("cannot be written ({error}); give this user the right to, or name another file as `usage.file`")
        }
        Some(ErrorCode::CannotOpen) => {
            format!("cannot be opened ({error}); check the rights of its folder, or name another file as `usage.file`")
        }
        Some(ErrorCode::DiskFull) => format!("has no room: the disk is full ({error})"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => format!("is held by another process ({error})"),
        _ => format!("does not work: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(caller: &str, start: i64, used: u64) -> Usage {
        Usage { quota: "q".into(), caller: caller.into(), start, end: i64::MAX, used }
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let folder =
                std::env::temp_dir().join(format!("headgate-store-{}-{}", std::process::id(), fastrand::u64(..)));
            std::fs::create_dir(&folder).unwrap();
            Folder(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_added_is_there_again_and_adds_up_over_two_processes() {
        let folder = Folder::new();
        let file = folder.0.join("usage.db");
        let mut one = Store::open(&file).unwrap();
        let mut two = Store::open(&file).unwrap();
        assert_eq!(one.add(&[usage("a", 1, 5), usage("b", 1, 1)]).unwrap(), [5, 1]);
        assert_eq!(two.add(&[usage("a", 1, 2), usage("a", 2, 1), usage("c", 1, 0)]).unwrap(), [7, 1, 0]);
        assert_eq!(one.add(&[usage("a", 1, 0)]).unwrap(), [7]);
        drop((one, two));
        let mut found = Store::open(&file).unwrap().current(0).unwrap();
        found.sort_by_key(|usage| (usage.caller.clone(), usage.start));
        assert_eq!(found, [usage("a", 1, 7), usage("a", 2, 1), usage("b", 1, 1)]);
    }

    #[test]
    fn what_could_not_be_written_is_written_when_it_can() {
        let folder = Folder::new();
        let file = folder.0.join("usage.db");
        let mut store = Store::open(&file).unwrap();
        let other = Connection::open(&file).unwrap();
        other
            .execute_batch("CREATE TRIGGER full BEFORE INSERT ON usage BEGIN SELECT RAISE(FAIL, 'full'); END")
            .unwrap();
        store.add(&[usage("a", 1, 5)]).unwrap_err();
        store.add(&[usage("a", 1, 5)]).unwrap_err();
        other.execute_batch("DROP TRIGGER full").unwrap();
        assert_eq!(store.add(&[usage("a", 1, 5)]).unwrap(), [5]);
        let sum: i64 = other.query_row("SELECT sum(used) FROM usage", [], |row| row.get(0)).unwrap();
        assert_eq!(sum, 5);
    }

    #[test]
    fn a_file_that_is_of_no_use_is_refused_with_a_sentence() {
        let folder = Folder::new();
        let file = |name: &str| folder.0.join(name);
        std::fs::write(file("text.db"), "this is no database, but long enough to look at: ".repeat(100)).unwrap();
        Connection::open(file("foreign.db")).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
        Connection::open(file("newer.db")).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
        let mut store = Store::open(&file("cut.db")).unwrap();
        let many: Vec<_> = (0..5000).map(|n| usage(&n.to_string(), 1, 1)).collect();
        store.add(&many).unwrap();
        drop(store);
        let whole = std::fs::read(file("cut.db")).unwrap();
        let mut torn = whole.clone();
        torn[whole.len() / 2..whole.len() / 2 + 8192].fill(0x5a);
        std::fs::write(file("cut.db"), torn).unwrap();
        for (name, words) in [
            ("text.db", "no database"),
            ("foreign.db", "something else"),
            ("newer.db", "newer headgate"),
            ("cut.db", "damaged"),
            ("none/usage.db", "no folder"),
            ("", "cannot be opened"),
        ] {
            let error = Store::open(&file(name)).err().unwrap_or_else(|| panic!("{name} was opened")).to_string();
            assert!(error.contains(words), "{name}: {error}");
        }
    }
}
