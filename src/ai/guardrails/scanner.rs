//! What is found in a text by its form alone, at once and without asking anybody.

use super::patterns::Patterns;
use super::words::Words;

/// A place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub start: usize,
    pub end: usize,
    /// What it is, where the scanner knows several things.
    pub what: Option<&'static str>,
}

pub enum Scanner {
    Words(Words),
    Patterns(Box<Patterns>),
}

impl Scanner {
    /// Calls `each` with everything that begins at `from` or later; what stands before is only looked back at. Places of
    /// different patterns may overlap.
    pub fn find(&self, text: &str, from: usize, each: &mut dyn FnMut(Found)) {
        match self {
            Scanner::Words(words) => words.find(text, from, each),
            Scanner::Patterns(patterns) => patterns.find(text, from, each),
        }
    }

    /// The first place, from `from` on, at which something begins that more text could complete or make longer; the end of
    /// the text if there is none.
    pub fn open(&self, text: &str, from: usize) -> usize {
        match self {
            Scanner::Words(words) => words.open(text, from),
            Scanner::Patterns(patterns) => patterns.open(text, from),
        }
    }
}
