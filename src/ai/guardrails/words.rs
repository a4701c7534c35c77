//! Words and phrases in one automaton, found in the folded text.

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, MatchKind};

use super::folded::{Folded, Folding};
use super::scanner::Found;

pub struct Words {
    automaton: AhoCorasick,
    /// The folded words, sorted: whether a text begins one of them.
    sorted: Box<[Box<str>]>,
    longest: usize,
    whole_words: bool,
}

impl Words {
    /// An error says which word is wrong, and how.
    pub fn new<'w>(words: impl IntoIterator<Item = &'w str>, whole_words: bool) -> Result<Words, (usize, String)> {
        let mut sorted: Vec<Box<str>> = Vec::new();
        for (i, word) in words.into_iter().enumerate() {
            let folded = Folded::new(word, Folding::Words).text;
            match folded.trim() {
                "" => return Err((i, "there is nothing in it that could be found".to_owned())),
                folded => sorted.push(folded.into()),
            }
        }
        sorted.sort_unstable();
        sorted.dedup();
        let longest = sorted.iter().map(|word| word.len()).max().unwrap_or_default();
        let automaton = AhoCorasickBuilder::new()
            // Each is looked at: one that is no whole word may hide another.
            .match_kind(MatchKind::Standard)
            .build(sorted.iter().map(|word| word.as_bytes()))
            .map_err(|error| (0, error.to_string()))?;
        Ok(Words { automaton, sorted: sorted.into(), longest, whole_words })
    }

    pub fn find(&self, text: &str, from: usize, each: &mut dyn FnMut(Found)) {
        let folded = Folded::new(text, Folding::Words);
        let mut last: Option<Found> = None;
        for found in self.automaton.find_overlapping_iter(&folded.text) {
            if self.whole_words && !is_whole(&folded.text, found.start(), found.end()) {
                continue;
            }
            let (start, end) = (folded.start(found.start()), folded.end(found.end()));
            if start < from {
                continue;
            }
            // They come by their ends. Those that touch are one.
            match &mut last {
                Some(last) if start <= last.end => {
                    last.start = last.start.min(start);
                    last.end = last.end.max(end);
                }
                _ => {
                    if let Some(done) = last.replace(Found { start, end, what: None }) {
                        each(done);
                    }
                }
            }
        }
        last.into_iter().for_each(each);
    }

    pub fn contains(&self, text: &str) -> bool {
        let mut found = false;
        self.find(text, 0, &mut |_| found = true);
        found
    }

    /// The first place from which on the rest of the text may be the beginning of a word.
    pub fn open(&self, text: &str, from: usize) -> usize {
        let folded = Folded::new(text, Folding::Words);
        let most = folded.text.len().saturating_sub(self.longest);
        for (at, _) in folded.text.char_indices().skip_while(|(at, _)| *at < most) {
            let start = folded.start(at);
            let Some(rest) = folded.text.get(at..).filter(|_| start >= from) else { continue };
            // White space at the end may be more than one character, and is one in the word.
            if self.begins(rest) {
                return start;
            }
        }
        text.len()
    }

    fn begins(&self, rest: &str) -> bool {
        let at = self.sorted.partition_point(|word| **word < *rest);
        self.sorted.get(at).is_some_and(|word| word.starts_with(rest))
    }
}

fn is_whole(text: &str, start: usize, end: usize) -> bool {
    let word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let before = text.get(..start).and_then(|before| before.chars().next_back());
    let after = text.get(end..).and_then(|after| after.chars().next());
    !word(before) && !word(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(words: &[&str], whole: bool, text: &str) -> Vec<String> {
        let words = Words::new(words.iter().copied(), whole).unwrap();
        let mut all = Vec::new();
        words.find(text, 0, &mut |found| all.push(text[found.start..found.end].to_owned()));
        all
    }

    #[test]
    fn words_are_found_however_they_are_written() {
        let words = ["Bluebird", "merger with ACME", "art", "art gallery"];
        assert_eq!(found(&words, true, "the Blue\u{200b}bird, a BLUEBIRD"), ["Blue\u{200b}bird", "BLUEBIRD"]);
        assert_eq!(found(&words, true, "Merger\n  with Ａcme!"), ["Merger\n  with Ａcme"]);
        assert_eq!(
            found(&words, true, "party starts, an art galleryx"),
            ["art"],
            "whole words, and none hides another"
        );
        assert_eq!(found(&words, false, "party"), ["art"]);
        assert_eq!(found(&["北京"], false, "在北京的"), ["北京"]);
        assert!(Words::new(["ok", "\u{200b}"], true).is_err_and(|(i, _)| i == 1));
    }

    #[test]
    fn what_may_become_a_word_is_known() {
        let words = Words::new(["bluebird", "a b"], true).unwrap();
        for (text, open) in [("see blue", 4), ("see bluex", 9), ("see", 3), ("x a  ", 2), ("bluebird", 0), ("", 0)] {
            assert_eq!(words.open(text, 0), open, "{text:?}");
        }
        assert_eq!(words.open("blueb", 5), 5);
    }
}
