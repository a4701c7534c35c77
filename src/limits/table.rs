//! Counters by key: found without a lock, made when they are first needed, removed when they say nothing any more.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Keys are hashes already, made with a secret of this process.
#[derive(Default, Clone)]
pub struct AsIs;

pub struct AsIsHasher(u64);

impl BuildHasher for AsIs {
    type Hasher = AsIsHasher;

    fn build_hasher(&self) -> AsIsHasher {
        AsIsHasher(0)
    }
}

impl Hasher for AsIsHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// A counter that can be retired: from then on it takes nothing, and whoever holds it looks for its successor.
pub trait Cell: Send + Sync {
    /// Retires the cell if a new one would be as good; false if it is in use, true also if it is retired already.
    fn retire(&self, now: u64) -> bool;
}

/// Cells by key. At most `most` of them: what comes beyond shares cells, so that it is limited more, never less.
pub struct Table<C> {
    cells: papaya::HashMap<u64, C, AsIs>,
    count: AtomicUsize,
    most: usize,
}

/// How many cells stand in for all keys beyond the most.
const SHARED: u64 = 4096;

impl<C: Cell> Table<C> {
    pub fn new(most: usize) -> Self {
        Table { cells: papaya::HashMap::with_hasher(AsIs), count: AtomicUsize::new(0), most }
    }

    /// Calls `work` with the key's cell until it has an answer: `None` means that the cell has been retired.
    pub fn with<T>(&self, key: u64, make: impl Fn() -> C, work: impl Fn(&C) -> Option<T>) -> T {
        let cells = self.cells.pin();
        let mut key = key;
        loop {
            if let Some(cell) = cells.get(&key) {
                if let Some(answer) = work(cell) {
                    return answer;
                }
                self.remove(key);
                continue;
            }
            if self.is_full() && key >= SHARED {
                key %= SHARED;
                continue;
            }
            if cells.try_insert(key, make()).is_ok() {
                self.count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Looks at a cell without making one.
    pub fn peek<T>(&self, key: u64, look: impl FnOnce(&C) -> T) -> Option<T> {
        let cells = self.cells.pin();
        cells.get(&key).or_else(|| cells.get(&(key % SHARED))).map(look)
    }

    /// Removes every cell that says no more than a new one would; the others are shown to `kept`.
    pub fn sweep(&self, now: u64, mut kept: impl FnMut(&C)) {
        let cells = self.cells.pin();
        for (key, cell) in &cells {
            match cell.retire(now) {
                true => self.remove(*key),
                false => kept(cell),
            }
        }
    }

    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether keys that have no cell yet share one.
    pub fn is_full(&self) -> bool {
        self.len() >= self.most
    }

    /// Removes a retired cell; another may have come in its place meanwhile, and stays.
    fn remove(&self, key: u64) {
        let removed = self.cells.pin().remove_if(&key, |_, cell| cell.retire(0)).is_ok_and(|removed| removed.is_some());
        if removed {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
