//! What is wrong with a configuration, and where.

use std::fmt;

/// One mistake in a configuration, with its place and, where one is near, the word that was probably meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Place in the document, such as `upstreams.orders.targets[1].address`.
    pub path: String,
    pub message: String,
    /// The nearest valid word, if one is near.
    pub suggestion: Option<String>,
    /// File and line, filled in by the loader that knows them. Lines count from 1; 0 stands for the whole file.
    pub source: Option<(String, usize)>,
}

/// All problems of one configuration; compiling goes on after the first, so that a user sees them all at once.
#[derive(Debug, Default, Clone)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    pub fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { path: path.into(), message: message.into(), suggestion: None, source: None });
    }

    /// Reports a name that refers to nothing, with the nearest of the names that exist.
    pub fn unknown<'a>(
        &mut self,
        path: impl Into<String>,
        kind: &str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) {
        self.0.push(Problem {
            path: path.into(),
            message: format!("there is no {kind} named `{name}`"),
            suggestion: nearest(name, known),
            source: None,
        });
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts the problems in the order of the files and lines they are in.
    pub fn sort(&mut self) {
        self.0.sort_by(|a, b| a.source.cmp(&b.source));
    }
}

/// One problem per line.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((file, line)) = &self.source {
            match line {
                0 => write!(f, "{file}: ")?,
                line => write!(f, "{file}:{line}: ")?,
            }
        }
        write!(f, "{}: {}", self.path, self.message)?;
        if let Some(word) = &self.suggestion {
            write!(f, " (did you mean `{word}`?)")?;
        }
        Ok(())
    }
}

/// The word of `known` that `word` was probably meant to be; case, `-` and `_` make no difference.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // Comparing costs the product of both lengths; no valid word is that long.
    if word.len() > 64 {
        return None;
    }
    let plain = |word: &str| word.to_ascii_lowercase().replace('-', "_");
    let word = plain(word);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

/// A written value as it may stand in a message: cut if long, and without characters that would act on a terminal.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 60;
    let mut shown: String = text.chars().take(MOST).flat_map(printable).collect();
    if text.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    shown
}

fn printable(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control().then(|| c.escape_default());
    let plain = (!c.is_control()).then_some(c);
    escaped.into_iter().flatten().chain(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_finds_its_neighbour() {
        assert_eq!(nearest("lisners", ["upstreams", "listeners"]), Some("listeners".into()));
        assert_eq!(nearest("Least-Connections", ["least_connections"]), Some("least_connections".into()));
        assert_eq!(nearest("xyz", ["upstreams", "listeners"]), None);
        assert_eq!(nearest(&"x".repeat(1 << 20), ["listeners"]), None, "a huge word costs nothing");
    }
}
