//! One route's path: its grammar, its rank among others, and what its parameters stood for.

use std::cmp::Reverse;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use super::captures::Captures;
use super::path::{self, PathMode};

/// Compiled size up to which a regular expression of a configuration is accepted, in bytes.
pub(super) const REGEX_LIMIT: usize = 1 << 20;

/// What a route's path has to be.
#[derive(Debug)]
pub(super) enum PathRule {
    Segments(Pattern),
    Regex(Regex),
}

/// A path as segments, and what may follow them.
#[derive(Debug)]
pub(super) struct Pattern {
    pub segments: Box<[Segment]>,
    pub end: End,
}

#[derive(Debug)]
pub(super) enum Segment {
    Literal(Box<str>),
    /// One parameter, with the text around it in the same segment; it stands for at least one character.
    Parameter {
        before: Box<str>,
        name: Arc<str>,
        after: Box<str>,
    },
}

#[derive(Debug)]
pub(super) enum End {
    /// The path ends here.
    Closed,
    /// At least one more character follows; it is captured.
    Rest(Arc<str>),
    /// Any further segments may follow.
    Open,
}

/// Orders the paths of one host and priority: the least one wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PathRank {
    Closed(Box<[SegmentRank]>),
    /// Before open ends, as in nginx: else the route that takes the rest of a host would hide every regex.
    Regex(Reverse<usize>, Box<str>),
    Open(Box<[SegmentRank]>),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SegmentRank {
    Literal(Box<str>),
    /// Most text first, then most text before the parameter.
    Affixed(Reverse<usize>, Reverse<usize>, Box<str>, Box<str>),
    Parameter,
    Rest,
    Open,
}

impl PathRule {
    /// The rule of a route that names no path.
    pub fn any() -> Self {
        PathRule::Segments(Pattern { segments: Box::default(), end: End::Open })
    }

    pub fn regex(written: &str) -> Result<Self, String> {
        anchored(written).and_then(|anchored| {
            let built = RegexBuilder::new(&anchored).size_limit(REGEX_LIMIT).build();
            built.map(PathRule::Regex).map_err(|error| regex_error(&error))
        })
    }

    pub fn rank(&self) -> PathRank {
        match self {
            PathRule::Regex(regex) => PathRank::Regex(Reverse(regex.as_str().len()), regex.as_str().into()),
            PathRule::Segments(pattern) => {
                let mut ranks: Vec<_> = pattern.segments.iter().map(Segment::rank).collect();
                match pattern.end {
                    End::Closed => return PathRank::Closed(ranks.into()),
                    End::Rest(_) => ranks.push(SegmentRank::Rest),
                    End::Open => ranks.push(SegmentRank::Open),
                }
                PathRank::Open(ranks.into())
            }
        }
    }

    /// True only if this path is known to match whatever `other` matches.
    pub fn covers(&self, other: &PathRule) -> bool {
        match (self, other) {
            (PathRule::Segments(a), PathRule::Segments(b)) => a.covers(b),
            (PathRule::Segments(a), PathRule::Regex(_)) => a.segments.is_empty() && matches!(a.end, End::Open),
            (PathRule::Regex(a), PathRule::Segments(b)) => b.literal_path().is_some_and(|path| a.is_match(&path)),
            (PathRule::Regex(a), PathRule::Regex(b)) => a.as_str() == b.as_str(),
        }
    }

    /// What the names of this rule stand for in a path that it matches.
    pub fn captures(&self, path: &str) -> Captures {
        match self {
            PathRule::Segments(pattern) => pattern.captures(path),
            // Group 0 is the whole match.
            PathRule::Regex(regex) if regex.captures_len() == 1 => Captures::default(),
            PathRule::Regex(regex) => {
                let Some(found) = regex.captures(path) else { return Captures::default() };
                let named = regex.capture_names().flatten();
                Captures(named.filter_map(|name| Some((name.into(), found.name(name)?.as_str().into()))).collect())
            }
        }
    }
}

/// Binds a regular expression to the start of what it is matched with.
pub(super) fn anchored(written: &str) -> Result<String, String> {
    // Parsed on its own first: `a)|(b` would escape from the group around it.
    Regex::new(written).map_err(|error| regex_error(&error))?;
    Ok(format!("^(?:{written})"))
}

pub(super) fn regex_error(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(limit) => format!("the regular expression needs more than {limit} bytes"),
        other => format!("not a regular expression: {}", other.to_string().trim().replace('\n', "; ")),
    }
}

impl Pattern {
    /// Reads `/a/{name}/x-{name}.y/{*rest}`. The text in it is brought into canonical form.
    pub fn closed(written: &str) -> Result<Self, String> {
        let mut texts = split(written)?;
        let end = match texts.last().and_then(|last| last.strip_prefix("{*")?.strip_suffix('}')) {
            Some(name) => {
                texts.pop();
                End::Rest(parameter_name(name)?.into())
            }
            None => End::Closed,
        };
        Pattern { segments: segments(&texts)?, end }.with_distinct_names()
    }

    /// Reads a prefix; a slash at its end changes nothing.
    pub fn open(written: &str) -> Result<Self, String> {
        let mut texts = split(written)?;
        if texts.last() == Some(&"") {
            texts.pop();
        }
        Pattern { segments: segments(&texts)?, end: End::Open }.with_distinct_names()
    }

    fn with_distinct_names(self) -> Result<Self, String> {
        let mut names: Vec<&str> = self.names().map(|name| &**name).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("the name `{}` is used twice", pair[0])),
            None => Ok(self),
        }
    }

    fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let inner = self.segments.iter().filter_map(|segment| match segment {
            Segment::Parameter { name, .. } => Some(name),
            Segment::Literal(_) => None,
        });
        inner.chain(match &self.end {
            End::Rest(name) => Some(name),
            End::Closed | End::Open => None,
        })
    }

    /// The one path that this matches, if there is only one.
    pub fn literal_path(&self) -> Option<String> {
        let mut path = String::new();
        for segment in &self.segments {
            let Segment::Literal(text) = segment else { return None };
            path.push('/');
            path.push_str(text);
        }
        matches!(self.end, End::Closed).then_some(path)
    }

    fn covers(&self, other: &Pattern) -> bool {
        let shared = self.segments.len();
        if shared > other.segments.len() || !self.segments.iter().zip(&other.segments).all(|(a, b)| a.covers(b)) {
            return false;
        }
        let beyond = &other.segments[shared..];
        match self.end {
            End::Open => true,
            End::Closed => beyond.is_empty() && matches!(other.end, End::Closed),
            End::Rest(_) => match beyond {
                [] => matches!(other.end, End::Rest(_)),
                [Segment::Literal(only)] => !only.is_empty() || matches!(other.end, End::Rest(_)),
                _ => true,
            },
        }
    }

    fn captures(&self, path: &str) -> Captures {
        if self.names().next().is_none() {
            return Captures::default();
        }
        let mut values = Vec::new();
        let mut rest = path.get(1..).unwrap_or_default();
        for segment in &self.segments {
            let (text, beyond) = rest.split_once('/').unwrap_or((rest, ""));
            if let Segment::Parameter { before, name, after } = segment {
                let value = text.get(before.len()..text.len().saturating_sub(after.len())).unwrap_or_default();
                values.push((Arc::clone(name), value.into()));
            }
            rest = beyond;
        }
        if let End::Rest(name) = &self.end {
            values.push((Arc::clone(name), rest.into()));
        }
        Captures(values)
    }
}

impl Segment {
    fn rank(&self) -> SegmentRank {
        match self {
            Segment::Literal(text) => SegmentRank::Literal(text.clone()),
            Segment::Parameter { before, after, .. } if before.is_empty() && after.is_empty() => SegmentRank::Parameter,
            Segment::Parameter { before, after, .. } => SegmentRank::Affixed(
                Reverse(before.len() + after.len()),
                Reverse(before.len()),
                before.clone(),
                after.clone(),
            ),
        }
    }

    fn covers(&self, other: &Segment) -> bool {
        match (self, other) {
            (Segment::Literal(a), Segment::Literal(b)) => a == b,
            (Segment::Literal(_), Segment::Parameter { .. }) => false,
            (Segment::Parameter { before, after, .. }, Segment::Literal(text)) => {
                text.len() > before.len() + after.len() && text.starts_with(&**before) && text.ends_with(&**after)
            }
            (Segment::Parameter { before, after, .. }, Segment::Parameter { before: b, after: a, .. }) => {
                b.starts_with(&**before) && a.ends_with(&**after)
            }
        }
    }
}

fn split(written: &str) -> Result<Vec<&str>, String> {
    let inner = written.strip_prefix('/').ok_or("a path starts with `/`")?;
    let texts: Vec<&str> = inner.split('/').collect();
    if texts[..texts.len() - 1].contains(&"") {
        return Err("repeated slashes become one before a request is matched; write one".into());
    }
    Ok(texts)
}

fn segments(texts: &[&str]) -> Result<Box<[Segment]>, String> {
    texts.iter().map(|text| segment(text)).collect()
}

fn segment(text: &str) -> Result<Segment, String> {
    if text.starts_with("{*") {
        return Err(format!("`{text}` may only stand at the end of a `path`, as its last segment"));
    }
    if let Some(name) = text.strip_prefix(':').filter(|name| parameter_name(name).is_ok()) {
        return Err(format!("`:{name}` is not a parameter here; write `{{{name}}}`"));
    }
    let Some((before, inner)) = text.split_once('{') else {
        return Ok(Segment::Literal(literal(text)?));
    };
    let (name, after) = inner.split_once('}').ok_or_else(|| format!("a `{{` in `{text}` is not closed"))?;
    if after.contains('{') {
        return Err(format!("`{text}` has two parameters in one segment; use `path_regex`"));
    }
    Ok(Segment::Parameter { before: literal(before)?, name: parameter_name(name)?.into(), after: literal(after)? })
}

fn parameter_name(name: &str) -> Result<&str, String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit() || c == '-') || !name.bytes().all(legal) {
        return Err(format!("`{name}` is not a name; use letters, digits, `_` and `-`, and begin with a letter"));
    }
    Ok(name)
}

/// The text of a segment or of a part of one, as it stands in the canonical path of a request.
fn literal(text: &str) -> Result<Box<str>, String> {
    if text.contains('*') {
        return Err("`*` is not a wildcard here; write `{name}`, `{*rest}` or use `path_prefix`".into());
    }
    if text.contains('}') {
        return Err(format!("a `}}` in `{text}` closes nothing"));
    }
    if matches!(text, "." | "..") {
        return Err("dot segments are resolved before a request is matched, so this path would never match".into());
    }
    let path = format!("/{text}");
    let canonical = path::canonical(path.as_bytes(), PathMode { allow_encoded_slash: true })
        .map_err(|error| format!("no request has this path: {error}"))?;
    Ok(canonical.trim_start_matches('/').into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_would_never_match_as_meant_are_refused_with_the_remedy() {
        for (written, remedy) in [
            ("orders", "starts with `/`"),
            ("", "starts with `/`"),
            ("/api/*", "not a wildcard"),
            ("/users/:id", "write `{id}`"),
            ("/a//b", "repeated slashes"),
            ("/a/../b", "dot segments"),
            ("/{*rest}/x", "may only stand at the end"),
            ("/x{*rest}", "not a name"),
            ("/{a}-{b}", "two parameters"),
            ("/{a", "not closed"),
            ("/a}", "closes nothing"),
            ("/{}", "not a name"),
            ("/{1}", "not a name"),
            ("/{a}/{a}", "used twice"),
            ("/{a}/{*a}", "used twice"),
            ("/a\\b", "backslash"),
            ("/a?b=c", "query"),
            ("/a b", "space"),
        ] {
            let error = Pattern::closed(written).err().unwrap_or_else(|| panic!("{written} was accepted"));
            assert!(error.contains(remedy), "{written}: {error}");
        }
        assert!(Pattern::open("/a/{*rest}").is_err());
    }

    #[test]
    fn text_in_a_path_is_brought_into_the_form_that_requests_have() {
        assert_eq!(Pattern::closed("/caf\u{e9}/%7euser").unwrap().literal_path().unwrap(), "/caf%C3%A9/~user");
        assert_eq!(Pattern::closed("/").unwrap().literal_path().unwrap(), "/");
        assert_eq!(Pattern::open("/a/").unwrap().segments.len(), 1);
    }

    #[test]
    fn a_path_covers_another_only_if_it_matches_all_of_it() {
        let covers = |a: &str, b: &str| Pattern::closed(a).unwrap().covers(&Pattern::closed(b).unwrap());
        for (wide, narrow) in
            [("/{x}", "/a"), ("/{x}", "/v{y}"), ("/{*r}", "/a/b"), ("/a/{*r}", "/a/b/{*s}"), ("/v{x}", "/v1{y}.z")]
        {
            assert!(covers(wide, narrow), "{wide} covers {narrow}");
            assert!(!covers(narrow, wide), "{narrow} does not cover {wide}");
        }
        for (a, b) in [("/{*r}", "/"), ("/{x}", "/"), ("/v{x}", "/v"), ("/{x}", "/a/b"), ("/{x}/b", "/a/{y}")] {
            assert!(!covers(a, b), "{a} does not cover {b}");
        }
    }

    #[test]
    fn a_regex_cannot_leave_its_anchor() {
        assert!(PathRule::regex("/a)|(/b").is_err());
        let PathRule::Regex(regex) = PathRule::regex("/a|/b").unwrap() else { unreachable!() };
        assert!(regex.is_match("/b/x") && !regex.is_match("/x/b"));
        assert!(PathRule::regex("(/[a-z]{1,500}){500}").is_err(), "a regex of this size takes too much memory");
    }
}
