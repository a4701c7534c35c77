//! How many tokens a text has: an estimate at once, and a count where it matters.
//!
//! Providers tell what they bill. Where they do not, and before a call is made, it is estimated from the text's length. For
//! OpenAI's models it can be counted exactly, by their own vocabularies, beside the threads that serve requests: a vocabulary
//! takes some 50 MiB and a fifth of a second when it is first needed.

mod prompt;
mod vocabulary;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

pub use prompt::prompt;
use vocabulary::Vocabulary;

/// Texts that are counted at one time. Others wait, for [`PATIENCE`] at most, and are estimated then.
const AT_ONCE: usize = 2;
const PATIENCE: Duration = Duration::from_secs(2);

/// Of a longer text the rest is estimated.
const LONGEST: usize = 2 << 20;

static COUNTING: Semaphore = Semaphore::const_new(AT_ONCE);

/// A prompt's tokens, by the length of its body: rather too many than too few, except of texts that are mostly digits or
/// random letters. Pictures and recordings in it count by their length too: [`count_prompt`] knows better.
pub fn estimate_body(length: usize) -> u64 {
    (length as u64).div_ceil(3)
}

/// A text's tokens: four ASCII characters are about one, and so is each other character.
pub fn estimate(text: &str) -> u64 {
    let ascii = text.bytes().filter(u8::is_ascii).count() as u64;
    let others = text.chars().filter(|c| !c.is_ascii()).count() as u64;
    ascii.div_ceil(4) + others
}

/// What is said in a stream, piece by piece: estimated as it comes, and kept for an exact count as far as that is short.
#[derive(Debug, Default)]
pub struct Said {
    ascii: u64,
    others: u64,
    text: String,
    /// What of it is kept at most.
    most: usize,
}

impl Said {
    /// `exact`: whether its beginning is kept, to be counted.
    pub fn new(exact: bool) -> Said {
        Said { most: if exact { KEPT } else { 0 }, ..Said::default() }
    }

    /// Whether what comes is kept, and what has come.
    pub fn keep(&mut self, exact: bool) {
        if !exact {
            (self.text, self.most) = (String::new(), 0);
        }
    }

    pub fn add(&mut self, text: &str) {
        let ascii = text.bytes().filter(u8::is_ascii).count();
        self.ascii += ascii as u64;
        self.others += if ascii == text.len() { 0 } else { text.chars().filter(|c| !c.is_ascii()).count() as u64 };
        let room = self.most.saturating_sub(self.text.len());
        if room >= text.len() {
            self.text.push_str(text);
        } else {
            // Nothing after a gap.
            self.most = 0;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.ascii + self.others == 0
    }

    pub fn estimate(&self) -> u64 {
        self.ascii.div_ceil(4) + self.others
    }

    /// The tokens, in the words of a model: what was kept is counted, and the rest has as many for its length.
    pub async fn count(self, model: &str) -> u64 {
        let (all, part) = (self.estimate(), estimate(&self.text));
        if self.text.is_empty() {
            return all;
        }
        let counted = count_text(self.text, model).await;
        match part {
            0 => all,
            _ => u64::try_from(u128::from(counted) * u128::from(all) / u128::from(part)).unwrap_or(u64::MAX),
        }
    }
}

/// Of a streamed answer this much is kept for an exact count.
const KEPT: usize = 16 << 10;

/// A text's tokens in the vocabulary of a model; an estimate if it has none that is known, or if too much is counted already.
pub async fn count_text(text: String, model: &str) -> u64 {
    let Some(vocabulary) = Vocabulary::of(model) else { return estimate(&text) };
    let text = Arc::new(text);
    let shared = text.clone();
    match beside(move || vocabulary.count(&shared, LONGEST)).await {
        Some(tokens) => tokens,
        None => estimate(&text),
    }
}

/// The tokens of a call's body in the words of a model: of all its texts, with a flat amount for each picture or recording.
pub async fn count_prompt(body: Bytes, model: &str) -> u64 {
    let (vocabulary, length) = (Vocabulary::of(model), body.len());
    let count = move || prompt(&body, |text| vocabulary.map_or_else(|| estimate(text), |v| v.count(text, LONGEST)));
    beside(count).await.flatten().unwrap_or_else(|| estimate_body(length))
}

/// Runs work on a thread that serves no requests; `None` if there is too much of it.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let permit = tokio::time::timeout(PATIENCE, COUNTING.acquire()).await.ok()?.ok()?;
    // A caller that leaves does not end the work: the permit stays with it.
    let done = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(permit);
        done
    });
    done.await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_in_pieces_is_estimated_as_what_is_said_at_once() {
        let text = "Grüße, 世界! ".repeat(3000);
        let mut said = Said::new(true);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let at = (1..=rest.len().min(11)).rev().find(|at| rest.is_char_boundary(*at)).unwrap_or(rest.len());
            said.add(&rest[..at]);
            rest = &rest[at..];
        }
        assert_eq!(said.estimate(), estimate(&text));
        assert!(said.text.len() <= KEPT && text.starts_with(&said.text));
    }

    #[tokio::test]
    async fn openais_texts_are_counted_by_their_own_vocabulary() {
        let text = "The quick brown fox jumps over the lazy dog.";
        assert_eq!(count_text(text.to_owned(), "gpt-4o").await, 10);
        assert_eq!(count_text(text.to_owned(), "a-model-of-tomorrow").await, estimate(text));
        let mut said = Said::new(true);
        said.add(text);
        assert_eq!(said.count("gpt-4o").await, 10);
    }

    #[tokio::test]
    async fn a_hostile_text_is_counted_in_bounded_time() {
        for text in ["a".repeat(400_000), " ".repeat(400_000), "9".repeat(400_000), "\u{301}".repeat(100_000)] {
            let begun = std::time::Instant::now();
            let tokens = count_text(text.clone(), "gpt-4o").await;
            assert!(tokens > 0 && begun.elapsed() < Duration::from_secs(20), "{:?} {:?}", &text[..4], begun.elapsed());
        }
    }
}
