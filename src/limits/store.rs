//! Where what was used of quotas is kept: SQLite, in a file beside the configuration.
//!
//! The store is added to, never set: two processes that share it during an upgrade, or after a crash, cannot undo each
//! other's counts, and nothing is counted twice.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};

/// Changes with the layout of the file. A newer one is refused: what is in it would be misread.
const SCHEMA: i64 = 2;

/// Who uses what, and apart from it the amounts, which change every second: a hundred thousand of them take 300 pages instead
/// of 1,500, and adding to one 1.3 us instead of 8. Ids are never given twice, since processes remember them.
const LAYOUT: &str = "
    CREATE TABLE counter (
        id INTEGER PRIMARY KEY AUTOINCREMENT, quota TEXT NOT NULL, caller TEXT NOT NULL,
        start INTEGER NOT NULL, end INTEGER NOT NULL, UNIQUE (quota, caller, start)
    ) STRICT;
    CREATE INDEX counter_end ON counter (end);
    CREATE TABLE amount (id INTEGER PRIMARY KEY, used INTEGER NOT NULL) STRICT;
    CREATE VIEW usage AS SELECT quota, caller, start, end, used FROM counter JOIN amount USING (id);";

/// The first layout had all in one table.
const FROM_1: &str = "
    INSERT INTO counter (quota, caller, start, end) SELECT quota, caller, start, end FROM usage_1;
    INSERT INTO amount SELECT id, used FROM counter JOIN usage_1 USING (quota, caller, start);
    DROP TABLE usage_1;";

/// How long another process may hold the file. During an upgrade two write to it in turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is over is kept for this long, for whoever looks back.
const KEPT: i64 = 400 * 86_400;
const PRUNE: [&str; 2] = [
    "DELETE FROM amount WHERE id IN (SELECT id FROM counter WHERE end < unixepoch() - ?1)",
    "DELETE FROM counter WHERE end < unixepoch() - ?1",
];

/// One caller's use of one quota in one period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    pub quota: String,
    pub caller: String,
    pub start: i64,
    pub end: i64,
    pub used: u64,
}

/// Where an amount stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row(pub i64);

impl Row {
    /// SQLite counts from 1.
    pub const UNKNOWN: Row = Row(0);
}

/// The file, opened.
pub struct Store {
    connection: Connection,
    path: PathBuf,
    /// Device and number of the file that was opened.
    file: Option<(u64, u64)>,
    /// Made with the file and kept in it: what it is called where several files are counted together.
    id: String,
    /// Of the content, when it was last added to. It changes when another process writes.
    version: i64,
}

/// Amounts that are being added, all or none of them.
pub struct Adding<'s> {
    transaction: Transaction<'s>,
    path: &'s Path,
    /// Of the content before anything is added, and when this process last added to it.
    version: i64,
    before: &'s mut i64,
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
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
            return Err(fail(format!("cannot be made: there is no folder {}", folder.display())));
        }
        let existed = path.exists();
        let store = Store::open_with(path, OpenFlags::SQLITE_OPEN_CREATE, existed)?;
        if !existed {
            log::info!("made the usage store {}", path.display());
        }
        Ok(store)
    }

    fn open_with(path: &Path, flags: OpenFlags, existed: bool) -> Result<Store, StoreError> {
        let fail = |what: String| StoreError { path: path.display().to_string(), what };
        let explain = |error: rusqlite::Error| fail(sentence(&error));
        let flags = flags | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
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
        let mut store = Store { connection, path: path.to_owned(), file: file_at(path), id: String::new(), version: 0 };
        store.prepare(existed).map_err(explain)?.map_err(fail)?;
        Ok(store)
    }

    /// Opens the file again if another one has taken its place: what is written to a file that was moved away is lost to
    /// the next process. True if it did: rows of the one before are nobody's, or somebody else's. If there is none, or one
    /// that a copy has only begun to fill, it is an error, and none is made, which would be empty.
    pub fn follow(&mut self) -> Result<bool, StoreError> {
        let present = file_at(&self.path);
        if present == self.file {
            return Ok(false);
        }
        let fail = |what: &str| StoreError { path: self.path.display().to_string(), what: what.to_owned() };
        if present.is_none() {
            return Err(fail("is gone; put it back, or restart the gateway to begin an empty one"));
        }
        if std::fs::metadata(&self.path).is_ok_and(|about| about.len() == 0) {
            return Err(fail("is empty; put back what was in it, or restart the gateway to begin anew"));
        }
        *self = Store::open_with(&self.path, OpenFlags::empty(), true)?;
        log::warn!("the usage store {} is another file than before", self.path.display());
        Ok(true)
    }

    fn prepare(&mut self, existed: bool) -> rusqlite::Result<Result<(), String>> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?;
        match version {
            SCHEMA => {}
            0 if !existed || tables == 0 => transaction.execute_batch(LAYOUT)?,
            1 => {
                transaction.execute_batch("ALTER TABLE usage RENAME TO usage_1; DROP INDEX usage_end;")?;
                transaction.execute_batch(LAYOUT)?;
                transaction.execute_batch(FROM_1)?;
            }
            0 => return Ok(Err("is a database of something else; name another file".to_owned())),
            other => {
                return Ok(Err(format!("was written by a newer headgate (layout {other}, this one knows {SCHEMA})")));
            }
        }
        if version != SCHEMA {
            transaction.pragma_update(None, "user_version", SCHEMA)?;
        }
        // Older files have none, in the first layout and in this one; older gateways do not look for it.
        transaction.execute_batch("CREATE TABLE IF NOT EXISTS file (id TEXT NOT NULL) STRICT")?;
        let id = transaction.query_row("SELECT id FROM file", [], |row| row.get(0)).optional()?;
        self.id = match id {
            Some(id) => id,
            None => {
                let id = format!("{:016x}", fastrand::u64(..));
                transaction.execute("INSERT INTO file (id) VALUES (?1)", [&id])?;
                id
            }
        };
        // Fails now, and not with the first count, if the file may not be written.
        prune(&transaction)?;
        transaction.commit()?;
        Ok(Ok(()))
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Removes what nobody looks back at any more.
    pub fn prune(&mut self) -> Result<(), StoreError> {
        let mut prune = || {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            prune(&transaction)?;
            transaction.commit()
        };
        prune().map_err(|error| error_of(&self.path, &error))
    }

    /// What was used in periods that are not over at `now`.
    pub fn current(&self, now: i64) -> Result<Vec<(Row, Usage)>, StoreError> {
        let read = || {
            let mut statement = self.connection.prepare(
                "SELECT quota, caller, start, end, used, id FROM counter JOIN amount USING (id) WHERE end > ?1",
            )?;
            let rows = statement.query_map([now], |row| {
                let used = positive(row.get(4)?);
                let (quota, caller) = (row.get(0)?, row.get(1)?);
                Ok((Row(row.get(5)?), Usage { quota, caller, start: row.get(2)?, end: row.get(3)?, used }))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|error| error_of(&self.path, &error))
    }

    /// Begins to add. What is added is in the file once it is committed.
    pub fn begin(&mut self) -> Result<Adding<'_>, StoreError> {
        let Store { connection, path, version: before, .. } = self;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let transaction = transaction.map_err(|error| error_of(path, &error))?;
        let version = transaction.pragma_query_value(None, "data_version", |row| row.get(0));
        let version = version.map_err(|error| error_of(path, &error))?;
        Ok(Adding { transaction, path, version, before })
    }
}

impl Adding<'_> {
    /// Adds to an amount; false if it is not in the file.
    pub fn add(&self, row: Row, used: u64) -> Result<bool, StoreError> {
        let update = || {
            let mut update = self
                .transaction
                .prepare_cached("UPDATE amount SET used = min(used + ?2, 9223372036854775807) WHERE id = ?1")?;
            update.execute(params![row.0, stored(used)])
        };
        Ok(row != Row::UNKNOWN && self.explain(update())? > 0)
    }

    /// Where the amount of whoever it is of stands, if it does.
    pub fn find(&self, usage: &Usage) -> Result<Option<Row>, StoreError> {
        let find = || {
            let mut find = self
                .transaction
                .prepare_cached("SELECT id FROM counter WHERE quota = ?1 AND caller = ?2 AND start = ?3")?;
            find.query_row(params![usage.quota, usage.caller, usage.start], |row| Ok(Row(row.get(0)?))).optional()
        };
        self.explain(find())
    }

    /// Adds to the amount of whoever it is of, which may be new; says where it stands, and the total.
    pub fn insert(&self, usage: &Usage) -> Result<(Row, u64), StoreError> {
        let found = self.find(usage)?;
        let insert = || {
            let Usage { quota, caller, start, end, used } = usage;
            let id = match found {
                Some(row) => row.0,
                None => {
                    let mut insert = self
                        .transaction
                        .prepare_cached("INSERT INTO counter (quota, caller, start, end) VALUES (?1, ?2, ?3, ?4)")?;
                    insert.insert(params![quota, caller, start, end])?
                }
            };
            let mut add = self.transaction.prepare_cached(
                "INSERT INTO amount (id, used) VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET used = min(used + excluded.used, 9223372036854775807) RETURNING used",
            )?;
            Ok((Row(id), add.query_row(params![id, stored(*used)], |row| Ok(positive(row.get(0)?)))?))
        };
        self.explain(insert())
    }

    /// Whether another process has written since this one has last added something.
    pub fn others_have_written(&self) -> bool {
        *self.before != self.version
    }

    pub fn total(&self, row: Row) -> Result<u64, StoreError> {
        let select = || {
            let mut select = self.transaction.prepare_cached("SELECT used FROM amount WHERE id = ?1")?;
            select.query_row([row.0], |row| row.get(0)).optional()
        };
        Ok(self.explain(select())?.map_or(0, positive))
    }

    pub fn commit(self) -> Result<(), StoreError> {
        let path = self.path;
        self.transaction.commit().map_err(|error| error_of(path, &error))?;
        // Not before: what others have written is still to be learnt if this fails.
        *self.before = self.version;
        Ok(())
    }

    fn explain<T>(&self, result: rusqlite::Result<T>) -> Result<T, StoreError> {
        result.map_err(|error| error_of(self.path, &error))
    }
}

fn prune(connection: &Connection) -> rusqlite::Result<()> {
    PRUNE.iter().try_for_each(|statement| connection.execute(statement, [KEPT]).map(drop))
}

/// SQLite's numbers have a sign.
fn stored(used: u64) -> i64 {
    i64::try_from(used).unwrap_or(i64::MAX)
}

fn positive(used: i64) -> u64 {
    used.max(0) as u64
}

fn error_of(path: &Path, error: &rusqlite::Error) -> StoreError {
    StoreError { path: path.display().to_string(), what: sentence(error) }
}

/// Device and number of the file at a path, if there is one.
fn file_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|about| (about.dev(), about.ino()))
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

    fn add(store: &mut Store, usages: &[Usage]) -> Result<Vec<u64>, StoreError> {
        let adding = store.begin()?;
        let totals = usages.iter().map(|usage| Ok(adding.insert(usage)?.1)).collect::<Result<_, _>>()?;
        adding.commit()?;
        Ok(totals)
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
        assert_eq!(add(&mut one, &[usage("a", 1, 5), usage("b", 1, 1)]).unwrap(), [5, 1]);
        assert_eq!(add(&mut two, &[usage("a", 1, 2), usage("a", 2, 1), usage("c", 1, 0)]).unwrap(), [7, 1, 0]);
        assert_eq!(add(&mut one, &[usage("a", 1, 0)]).unwrap(), [7]);
        assert_eq!(one.id(), two.id(), "it is the file's");
        assert_ne!(one.id(), Store::open(&folder.0.join("other.db")).unwrap().id());
        drop((one, two));
        let found = Store::open(&file).unwrap().current(0).unwrap();
        let mut found: Vec<_> = found.into_iter().map(|(_, usage)| usage).collect();
        found.sort_by_key(|usage| (usage.caller.clone(), usage.start));
        assert_eq!(found, [usage("a", 1, 7), usage("a", 2, 1), usage("b", 1, 1), usage("c", 1, 0)]);
    }

    #[test]
    fn a_known_row_is_added_to_and_whoever_shares_the_file_is_told() {
        let folder = Folder::new();
        let file = folder.0.join("usage.db");
        let (mut one, mut two) = (Store::open(&file).unwrap(), Store::open(&file).unwrap());
        let adding = one.begin().unwrap();
        let (row, _) = adding.insert(&usage("a", 1, 5)).unwrap();
        adding.commit().unwrap();
        let adding = one.begin().unwrap();
        assert!(adding.add(row, 2).unwrap());
        assert!(!adding.add(Row(row.0 + 1), 2).unwrap(), "there is none");
        assert!(!adding.others_have_written(), "these are our own");
        adding.commit().unwrap();
        let adding = two.begin().unwrap();
        assert_eq!(adding.insert(&usage("a", 1, 1)).unwrap(), (row, 8));
        adding.commit().unwrap();
        let adding = one.begin().unwrap();
        assert!(adding.others_have_written());
        drop(adding);
        let adding = one.begin().unwrap();
        assert!(adding.others_have_written(), "it is not forgotten when nothing comes of the adding");
        assert_eq!(adding.total(row).unwrap(), 8);
        adding.commit().unwrap();
        assert!(!one.begin().unwrap().others_have_written(), "once");
    }

    #[test]
    fn a_file_of_the_first_layout_keeps_its_counts() {
        let folder = Folder::new();
        let file = folder.0.join("usage.db");
        let first = "
            CREATE TABLE usage (
                quota TEXT NOT NULL, caller TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL,
                used INTEGER NOT NULL, PRIMARY KEY (quota, caller, start)
            ) WITHOUT ROWID, STRICT;
            CREATE INDEX usage_end ON usage (end);
            INSERT INTO usage VALUES ('q', 'a', 1, 9223372036854775807, 5), ('q', 'b', 1, 9223372036854775807, 7);
            PRAGMA user_version = 1;";
        Connection::open(&file).unwrap().execute_batch(first).unwrap();
        let mut store = Store::open(&file).unwrap();
        assert_eq!(add(&mut store, &[usage("b", 1, 1), usage("a", 1, 1)]).unwrap(), [8, 6]);
        let id = store.id().to_owned();
        drop(store);
        let again = Store::open(&file).unwrap();
        assert_eq!(again.current(0).unwrap().len(), 2, "it is migrated once");
        assert_eq!(again.id(), id);
    }

    #[test]
    fn what_could_not_be_written_is_written_when_it_can() {
        let folder = Folder::new();
        let file = folder.0.join("usage.db");
        let mut store = Store::open(&file).unwrap();
        let other = Connection::open(&file).unwrap();
        other
            .execute_batch("CREATE TRIGGER full BEFORE INSERT ON amount BEGIN SELECT RAISE(FAIL, 'full'); END")
            .unwrap();
        add(&mut store, &[usage("a", 1, 5)]).unwrap_err();
        add(&mut store, &[usage("a", 1, 5)]).unwrap_err();
        other.execute_batch("DROP TRIGGER full").unwrap();
        assert_eq!(add(&mut store, &[usage("a", 1, 5)]).unwrap(), [5]);
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
        add(&mut store, &many).unwrap();
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
