//! Answers that were given before, by what was asked.

pub mod control;
pub mod key;
pub mod replay;
pub mod similar;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use moka::sync::Cache;

use self::key::Key;
use self::similar::Similar;
use super::chat::ChatAnswer;
use crate::telemetry::metrics::{Gathered, Source};

/// All answers that are kept, bounded by their bytes. Those that are used least go first.
pub struct Answers {
    kept: Cache<Key, Arc<Kept>>,
    /// In bytes.
    pub size: u64,
    /// Questions that they are the answers to.
    pub similar: Similar,
    pub counts: Counts,
}

/// How often answers were looked for, by what came of it.
#[derive(Default)]
pub struct Counts {
    pub hits: AtomicU64,
    pub similar: AtomicU64,
    pub misses: AtomicU64,
    pub bypassed: AtomicU64,
}

/// One answer.
pub struct Kept {
    pub answer: ChatAnswer,
    /// As the caller got it, where it was whole: it may hold what the neutral form has no place for.
    pub body: Option<Bytes>,
    pub provider: Arc<str>,
    pub model: Arc<str>,
    pub at: Instant,
    pub ttl: Duration,
}

impl Answers {
    pub fn new(size: u64) -> Answers {
        let weigh = |_: &Key, kept: &Arc<Kept>| u32::try_from(kept.weight()).unwrap_or(u32::MAX);
        let kept = Cache::builder().max_capacity(size).weigher(weigh).build();
        // Embeddings are short beside answers; they may take as much again.
        Answers { kept, size, similar: Similar::new(size), counts: Counts::default() }
    }

    /// An answer that may still be given, and is no older than that.
    pub fn get(&self, key: &Key, max_age: Option<Duration>) -> Option<Arc<Kept>> {
        let kept = self.kept.get(key)?;
        let age = kept.at.elapsed();
        if age >= kept.ttl {
            self.kept.invalidate(key);
            return None;
        }
        max_age.is_none_or(|most| age <= most).then_some(kept)
    }

    pub fn keep(&self, key: Key, kept: Kept) {
        self.kept.insert(key, Arc::new(kept));
    }
}

impl Kept {
    /// What it takes, about: texts, and a little for each part.
    pub fn weight(&self) -> usize {
        let body = self.body.as_ref().map_or(0, Bytes::len);
        let parts: usize =
            self.answer.choices.iter().map(|choice| choice.parts.iter().map(replay::size).sum::<usize>()).sum();
        512 + body + parts
    }
}

/// Tells the metrics of answers as long as they are kept.
pub struct Report(pub std::sync::Weak<Answers>);

impl Source for Report {
    fn collect(&self, out: &mut Gathered) {
        let Some(answers) = self.0.upgrade() else { return };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        answers.kept.run_pending_tasks();
        let counts = &answers.counts;
        out.answer_cache(
            [
                ("hit", read(&counts.hits)),
                ("semantic", read(&counts.similar)),
                ("miss", read(&counts.misses)),
                ("bypass", read(&counts.bypassed)),
            ],
            answers.kept.weighted_size(),
            answers.kept.entry_count(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_by_its_bytes_and_by_time() {
        let answers = Answers::new(100_000);
        let kept = |ttl| Kept {
            answer: ChatAnswer::default(),
            body: Some(Bytes::from(vec![b'x'; 10_000])),
            provider: "p".into(),
            model: "m".into(),
            at: Instant::now(),
            ttl: Duration::from_secs(ttl),
        };
        for n in 0..100u8 {
            answers.keep(Key([n; 32]), kept(60));
        }
        answers.kept.run_pending_tasks();
        assert!(answers.kept.weighted_size() <= 100_000, "{}", answers.kept.weighted_size());
        let key = Key([200; 32]);
        let answers = Answers::new(100_000);
        answers.keep(key, kept(60));
        assert!(answers.get(&key, None).is_some());
        assert!(answers.get(&key, Some(Duration::from_secs(60))).is_some());
        answers.keep(key, kept(0));
        assert!(answers.get(&key, None).is_none());
    }
}
