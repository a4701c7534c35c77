//! Regular expressions over a text or its folded form, and whether the end of a text may be the beginning of a match.

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::meta::Regex;
use regex_automata::nfa::thompson;
use regex_automata::util::pool::Pool;
use regex_automata::{Anchored, Input, MatchKind, PatternSet};
use regex_syntax::hir::{Capture, Hir, HirKind, Repetition};

use super::folded::{Folded, Folding};
use super::scanner::Found;

/// What all patterns of one guardrail may take, compiled, and each by itself.
const LARGEST: usize = 32 << 20;
const LARGEST_PATTERN: usize = 2 << 20;
/// Of the automaton that is made while texts are looked at, for each that looks at a time.
const LAZY: usize = 2 << 20;
/// Steps that may be spent on whether the end of a text is the beginning of something. Beyond it is taken to be.
const MOST_STEPS: usize = 1 << 20;

/// One expression, and what else has to be true of what it matches.
pub struct Written<'p> {
    pub expression: &'p str,
    pub what: Option<&'static str>,
    /// How much of it is: `None` if nothing.
    pub valid: fn(&str) -> Option<usize>,
}

pub struct Patterns {
    /// Tells in one pass which of them are in a text.
    all: Regex,
    each: Box<[Pattern]>,
    beginnings: DFA,
    caches: Pool<Cache, Box<dyn Fn() -> Cache + Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe>>,
    folding: Option<Folding>,
}

struct Pattern {
    regex: Regex,
    what: Option<&'static str>,
    valid: fn(&str) -> Option<usize>,
}

impl Patterns {
    /// An error says which expression is wrong, and how.
    pub fn new(written: &[Written<'_>], folding: Option<Folding>) -> Result<Patterns, (usize, String)> {
        let mut hirs = Vec::new();
        let mut each = Vec::new();
        for (i, pattern) in written.iter().enumerate() {
            let hir = regex_syntax::parse(pattern.expression).map_err(|error| (i, shown(&error)))?;
            if hir.properties().minimum_len().is_none_or(|least| least == 0) {
                return Err((i, "it matches the empty text, and so everything".to_owned()));
            }
            let regex = Regex::builder()
                .configure(Regex::config().nfa_size_limit(Some(LARGEST_PATTERN)).hybrid_cache_capacity(LAZY))
                .build_from_hir(&hir)
                .map_err(|error| (i, described(&error)))?;
            each.push(Pattern { regex, what: pattern.what, valid: pattern.valid });
            hirs.push(hir);
        }
        let all = Regex::builder()
            .configure(
                Regex::config().nfa_size_limit(Some(LARGEST)).hybrid_cache_capacity(LAZY).match_kind(MatchKind::All),
            )
            .build_many_from_hir(&hirs)
            .map_err(|error| (0, described(&error)))?;
        let hirs: Vec<Hir> = hirs.into_iter().map(without_looks).collect();
        let nfa = thompson::Compiler::new()
            .configure(
                thompson::Config::new().which_captures(thompson::WhichCaptures::None).nfa_size_limit(Some(LARGEST)),
            )
            .build_many_from_hir(&hirs)
            .map_err(|error| (0, error.to_string()))?;
        let beginnings = DFA::builder()
            .configure(
                DFA::config()
                    // Whatever may still match counts, not only what would be preferred.
                    .match_kind(MatchKind::All)
                    .cache_capacity(LAZY)
                    .skip_cache_capacity_check(true),
            )
            .build_from_nfa(nfa)
            .map_err(|error| (0, error.to_string()))?;
        let for_pool = beginnings.clone();
        let caches: Box<dyn Fn() -> Cache + Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe> =
            Box::new(move || for_pool.create_cache());
        Ok(Patterns { all, each: each.into(), beginnings, caches: Pool::new(caches), folding })
    }

    pub fn find(&self, text: &str, from: usize, each: &mut dyn FnMut(Found)) {
        match self.folding {
            None => self.find_raw(text, from, each),
            Some(folding) => {
                let folded = Folded::new(text, folding);
                self.find_raw(&folded.text, 0, &mut |found| {
                    let (start, end) = (folded.start(found.start), folded.end(found.end));
                    if start >= from {
                        each(Found { start, end, ..found });
                    }
                });
            }
        }
    }

    fn find_raw(&self, text: &str, from: usize, each: &mut dyn FnMut(Found)) {
        let mut which = PatternSet::new(self.all.pattern_len());
        self.all.which_overlapping_matches(&Input::new(text).range(from..), &mut which);
        for id in which.iter() {
            let Some(pattern) = self.each.get(id.as_usize()) else { continue };
            let mut at = from;
            while let Some(found) = pattern.regex.search(&Input::new(text).range(at..)) {
                let matched = text.get(found.range()).unwrap_or_default();
                at = match (pattern.valid)(matched) {
                    Some(length) => {
                        let end = found.start() + length;
                        each(Found { start: found.start(), end, what: pattern.what });
                        end.max(found.start() + 1)
                    }
                    // What is no match as a whole may hold one.
                    None => found.start() + matched.chars().next().map_or(1, char::len_utf8),
                };
            }
        }
    }

    pub fn open(&self, text: &str, from: usize) -> usize {
        match self.folding {
            None => self.open_raw(text, from),
            Some(folding) => {
                let folded = Folded::new(text, folding);
                let mut begin = 0;
                while begin < folded.text.len() && folded.start(begin) < from {
                    begin += folded.text.get(begin..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
                }
                folded.start(self.open_raw(&folded.text, begin))
            }
        }
    }

    fn open_raw(&self, text: &str, from: usize) -> usize {
        let mut cache = self.caches.get();
        let mut steps = MOST_STEPS;
        let rest = text.get(from..).unwrap_or_default();
        let open = rest.char_indices().find(|(at, _)| self.begins(text, from + at, &mut cache, &mut steps));
        open.map_or(text.len(), |(at, _)| from + at)
    }

    /// Whether everything from `at` on may be the beginning of a match, or of a longer one.
    fn begins(&self, text: &str, at: usize, cache: &mut Cache, steps: &mut usize) -> bool {
        let input = Input::new(text).range(at..).anchored(Anchored::Yes);
        let Ok(mut state) = self.beginnings.start_state_forward(cache, &input) else { return true };
        for byte in text.as_bytes().get(at..).unwrap_or_default() {
            match self.beginnings.next_state(cache, state, *byte) {
                Ok(next) if next.is_dead() => return false,
                Ok(next) if !next.is_quit() && *steps > 0 => state = next,
                _ => return true,
            }
            *steps -= 1;
        }
        true
    }
}

/// An expression that matches at least as much: without what it demands of what goes before and after.
fn without_looks(hir: Hir) -> Hir {
    match hir.into_kind() {
        HirKind::Empty | HirKind::Look(_) => Hir::empty(),
        HirKind::Literal(literal) => Hir::literal(literal.0),
        HirKind::Class(class) => Hir::class(class),
        HirKind::Repetition(repetition) => {
            let sub = Box::new(without_looks(*repetition.sub));
            Hir::repetition(Repetition { sub, ..repetition })
        }
        HirKind::Capture(capture) => {
            let sub = Box::new(without_looks(*capture.sub));
            Hir::capture(Capture { sub, ..capture })
        }
        HirKind::Concat(parts) => Hir::concat(parts.into_iter().map(without_looks).collect()),
        HirKind::Alternation(parts) => Hir::alternation(parts.into_iter().map(without_looks).collect()),
    }
}

/// The parser draws pictures over several lines; the last says what is wrong.
fn shown(error: &regex_syntax::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

fn described(error: &regex_automata::meta::BuildError) -> String {
    match error.size_limit() {
        Some(_) => "it is too large once compiled; make its repetitions smaller".to_owned(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ai::guardrails::pii::any;

    fn patterns(expressions: &[&str]) -> Patterns {
        let written: Vec<Written<'_>> =
            expressions.iter().map(|expression| Written { expression, what: None, valid: any }).collect();
        Patterns::new(&written, None).unwrap_or_else(|(i, error)| panic!("{i}: {error}"))
    }

    #[test]
    fn what_may_become_a_match_is_known() {
        let patterns = patterns(&[r"\bsecret\b", r"ab+c", r"\w+@example\.com"]);
        for (text, open) in [
            ("it is sec", 6),
            ("it is. ", 7),
            ("x abbb", 2),
            ("someone@exam", 0),
            ("some one@exa!", 13),
            ("a secret", 2),
            ("", 0),
        ] {
            assert_eq!(patterns.open(text, 0), open, "{text:?}");
        }
    }

    #[test]
    fn a_candidate_that_is_none_does_not_hide_another() {
        let written = [Written {
            expression: r"\d{2,4}",
            what: Some("even"),
            valid: |text| text.ends_with("42").then_some(text.len()),
        }];
        let patterns = Patterns::new(&written, None).unwrap_or_else(|_| panic!());
        let mut all = Vec::new();
        patterns.find("1420 99 7742", 0, &mut |found| all.push((found.start, found.end)));
        assert_eq!(all, [(8, 12)]);
    }

    #[test]
    fn expressions_that_cannot_be_used_are_refused_with_the_reason() {
        let refused = |expression| {
            let written = [Written { expression, what: None, valid: any }];
            Patterns::new(&written, None).err().map(|(_, error)| error).unwrap_or_default()
        };
        assert!(refused("a*").contains("empty"));
        assert!(refused("a(").contains("unclosed"));
        assert!(refused(r"(?:\pL{500}){500}").contains("too large"), "{}", refused(r"(?:\pL{500}){500}"));
        assert!(refused(r"(?=x)y").contains("look-around"));
    }
}
