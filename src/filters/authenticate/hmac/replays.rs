//! Which signatures were accepted already, until they are too old to be accepted again. In this process's memory: another
//! node, and this one after a restart, know nothing of them.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use foldhash::fast::RandomState;

/// Signatures remembered at once: with a window of five minutes, of 3500 requests a second.
const MOST: usize = 1 << 20;
const SHARDS: usize = 64;

/// Stands for what was signed.
pub type Mark = [u8; 16];

/// The signatures of a process, whichever filter has verified them.
pub struct Replays(Box<[Mutex<Shard>]>);

#[derive(Default)]
struct Shard {
    seen: HashSet<Mark, RandomState>,
    /// With the second from which on each is too old, about in that order.
    by_age: VecDeque<(i64, Mark)>,
}

/// Why a signature must not be accepted.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    SeenBefore,
    /// It could not be remembered; accepting it would be accepting it twice.
    NoRoom,
}

impl Default for Replays {
    fn default() -> Self {
        Replays(std::iter::repeat_with(Mutex::default).take(SHARDS).collect())
    }
}

impl Replays {
    /// Remembers a signature until `until`, unless it has been seen.
    pub fn accept(&self, mark: Mark, until: i64, now: i64) -> Result<(), Refused> {
        let Some(shard) = self.0.get(usize::from(mark[0]) % SHARDS) else { return Err(Refused::NoRoom) };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        // Two at a time: what is forgotten keeps up with what comes, and nobody waits for a sweep.
        for _ in 0..2 {
            shard.forget_one(now);
        }
        if shard.seen.contains(&mark) {
            return Err(Refused::SeenBefore);
        }
        if shard.seen.len() >= MOST / SHARDS {
            return Err(Refused::NoRoom);
        }
        shard.seen.insert(mark);
        shard.by_age.push_back((until, mark));
        Ok(())
    }
}

impl Shard {
    fn forget_one(&mut self, now: i64) {
        if let Some((until, mark)) = self.by_age.front().copied()
            && until < now
        {
            self.by_age.pop_front();
            self.seen.remove(&mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(n: usize) -> Mark {
        let mut mark = [0; 16];
        mark[8..].copy_from_slice(&n.to_be_bytes());
        mark
    }

    #[test]
    fn a_signature_is_accepted_once_until_it_is_too_old() {
        let replays = Replays::default();
        assert_eq!(replays.accept(mark(1), 100, 0), Ok(()));
        assert_eq!(replays.accept(mark(2), 100, 0), Ok(()));
        for now in [0, 50, 100] {
            assert_eq!(replays.accept(mark(1), 100, now), Err(Refused::SeenBefore), "at {now}");
        }
        // The clock is put back: what was seen still counts.
        assert_eq!(replays.accept(mark(2), 100, -1000), Err(Refused::SeenBefore));
        assert_eq!(replays.accept(mark(1), 300, 101), Ok(()), "too old to be accepted, and so forgotten");
    }

    #[test]
    fn memory_is_bounded_and_what_cannot_be_remembered_is_refused() {
        let replays = Replays::default();
        // All of one shard.
        for n in 0..MOST / SHARDS {
            assert_eq!(replays.accept(mark(n), 10, 0), Ok(()));
        }
        assert_eq!(replays.accept(mark(MOST), 10, 0), Err(Refused::NoRoom));
        assert_eq!(replays.accept(mark(0), 10, 10), Err(Refused::SeenBefore));
        assert_eq!(replays.accept(mark(MOST), 20, 11), Ok(()), "the old ones make room");
    }

    #[test]
    fn of_many_threads_with_the_same_signature_one_is_accepted() {
        let replays = Replays::default();
        let accepted = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..1000).filter(|n| replays.accept(mark(*n), 10, 0).is_ok()).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!(accepted, 1000);
    }
}
