//! The routes of one host, arranged so that finding those whose path matches costs the same for ten as for thousands.
//!
//! Hot path. Routes are numbers here: their places in the order of precedence. Every node knows the least number below
//! it, so a search leaves out what cannot win any more. `matchit` is not used because it returns one match and has no
//! next best when a route's conditions fail, and because it refuses `/a/{x}` beside `/a/{*rest}`.

use foldhash::HashMap;
use regex::{Regex, RegexSet, RegexSetBuilder};

use super::pattern::{End, PathRule, Segment};

/// Memory that the regular expressions of one host may take together, in bytes.
const REGEX_SET_LIMIT: usize = 64 << 20;

/// Place of a route in the order of precedence; the least one wins.
pub(super) type Rank = u32;

/// Receives the routes whose path matches, in no particular order of groups; each group is ordered.
pub(super) trait Sink {
    /// False if a group that begins with this route need not be offered.
    fn wants(&self, first: Rank) -> bool;
    fn offer(&mut self, group: &[Rank]);
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// Paths without parameters.
    literal: HashMap<Box<str>, Vec<Rank>>,
    tree: Node,
    regexes: Vec<Rank>,
    /// `None` without regexes: even an empty set takes memory, and there may be thousands of hosts.
    regex_set: Option<RegexSet>,
}

#[derive(Debug)]
struct Node {
    /// Least rank here and below.
    least: Rank,
    literal: HashMap<Box<str>, Node>,
    /// Segments with text around a parameter, most text first.
    affixed: Vec<Affixed>,
    parameter: Option<Box<Node>>,
    closed: Vec<Rank>,
    rest: Vec<Rank>,
    open: Vec<Rank>,
}

/// Children whose text before and after the parameter has these lengths, found by hash whatever their number.
#[derive(Debug)]
struct Affixed {
    before: usize,
    after: usize,
    children: HashMap<Box<str>, HashMap<Box<str>, Node>>,
}

impl Default for Node {
    fn default() -> Self {
        Node {
            least: Rank::MAX,
            literal: HashMap::default(),
            affixed: Vec::new(),
            parameter: None,
            closed: Vec::new(),
            rest: Vec::new(),
            open: Vec::new(),
        }
    }
}

impl Table {
    /// Adds a route; they must be added in the order of their ranks.
    pub fn insert(&mut self, rank: Rank, rule: &PathRule) {
        let pattern = match rule {
            PathRule::Regex(_) => return self.regexes.push(rank),
            PathRule::Segments(pattern) => pattern,
        };
        if let Some(path) = pattern.literal_path() {
            return self.literal.entry(path.into()).or_default().push(rank);
        }
        let node = pattern.segments.iter().fold(self.tree.reach(rank), |node, segment| node.child(segment).reach(rank));
        match pattern.end {
            End::Closed => node.closed.push(rank),
            End::Rest(_) => node.rest.push(rank),
            End::Open => node.open.push(rank),
        }
    }

    /// Prepares the regular expressions, which must be those of the inserted routes in order.
    pub fn finish<'r>(&mut self, regexes: impl Iterator<Item = &'r Regex>) -> Result<(), String> {
        if !self.regexes.is_empty() {
            let set = RegexSetBuilder::new(regexes.map(Regex::as_str)).size_limit(REGEX_SET_LIMIT).build();
            let set = set.map_err(|_| "the regular expressions of this host are too large together".to_owned())?;
            self.regex_set = Some(set);
        }
        Ok(())
    }

    /// Offers every route whose path matches, apart from those that the sink does not want.
    pub fn search(&self, path: &str, sink: &mut impl Sink) {
        if let Some(group) = self.literal.get(path) {
            offer(group, sink);
        }
        if let Some(inner) = path.strip_prefix('/') {
            self.tree.search(Some(inner), sink);
        }
        let Some(set) = &self.regex_set else { return };
        if self.regexes.first().is_some_and(|&first| sink.wants(first)) {
            for index in &set.matches(path) {
                offer(&self.regexes[index..=index], sink);
            }
        }
    }
}

fn offer(group: &[Rank], sink: &mut impl Sink) {
    if group.first().is_some_and(|&first| sink.wants(first)) {
        sink.offer(group);
    }
}

impl Node {
    fn reach(&mut self, rank: Rank) -> &mut Self {
        self.least = self.least.min(rank);
        self
    }

    fn child(&mut self, segment: &Segment) -> &mut Node {
        match segment {
            Segment::Literal(text) => self.literal.entry(text.clone()).or_default(),
            Segment::Parameter { before, after, .. } if before.is_empty() && after.is_empty() => {
                self.parameter.get_or_insert_default()
            }
            Segment::Parameter { before, after, .. } => {
                let lengths = (before.len(), after.len());
                let known = self.affixed.iter().position(|affixed| (affixed.before, affixed.after) == lengths);
                let index = known.unwrap_or_else(|| {
                    let new = Affixed { before: lengths.0, after: lengths.1, children: HashMap::default() };
                    let at = self.affixed.partition_point(|other| other.before + other.after >= lengths.0 + lengths.1);
                    self.affixed.insert(at, new);
                    at
                });
                let children = &mut self.affixed[index].children;
                children.entry(before.clone()).or_default().entry(after.clone()).or_default()
            }
        }
    }

    /// `rest` is what follows the slash after this node's segment, `None` if the path ends with that segment.
    fn search(&self, rest: Option<&str>, sink: &mut impl Sink) {
        if !sink.wants(self.least) {
            return;
        }
        match rest {
            None => offer(&self.closed, sink),
            Some(rest) => {
                let (segment, beyond) = match memchr::memchr(b'/', rest.as_bytes()) {
                    Some(slash) => (&rest[..slash], Some(&rest[slash + 1..])),
                    None => (rest, None),
                };
                if let Some(node) = self.literal.get(segment) {
                    node.search(beyond, sink);
                }
                for node in self.affixed.iter().filter_map(|affixed| affixed.child(segment)) {
                    node.search(beyond, sink);
                }
                if let Some(node) = self.parameter.as_deref().filter(|_| !segment.is_empty()) {
                    node.search(beyond, sink);
                }
                if !rest.is_empty() {
                    offer(&self.rest, sink);
                }
            }
        }
        offer(&self.open, sink);
    }
}

impl Affixed {
    fn child(&self, segment: &str) -> Option<&Node> {
        // More, not as much: the parameter stands for at least one character.
        if segment.len() <= self.before + self.after {
            return None;
        }
        // A canonical path is ASCII; were it not, `get` refuses to cut a character in two.
        let before = segment.get(..self.before)?;
        let after = segment.get(segment.len() - self.after..)?;
        self.children.get(before)?.get(after)
    }
}
