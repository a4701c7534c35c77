//! From host, path and predicates to a route: a pure data structure, built once per configuration.
//!
//! The order of precedence is documented where users read it, at [`RouteMatch`]. It does not depend on the request, so
//! [`Router::build`] sorts the routes once, and a lookup takes the first of them that matches: it finds the few whose
//! host and path match by hash and tree (`table`), and tries their conditions from the least number up. Routes that
//! share a host and a path are tried one after the other; all else is flat in the number of routes.

mod captures;
mod conflicts;
pub mod host;
pub mod path;
mod pattern;
mod predicate;
mod table;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashMap;
use http::{HeaderMap, Method};

pub use self::captures::Captures;
use self::pattern::{PathRank, PathRule, Pattern};
use self::predicate::{Methods, PredicateRank, Predicates};
use self::table::{Rank, Sink, Table};
use crate::config::{Problems, RouteMatch};

/// A route to build a [`Router`] from.
#[derive(Debug, Clone, Copy)]
pub struct Route<'a> {
    /// Decides between routes that are equal otherwise, and stands in problems: `orders/list`.
    pub name: &'a str,
    /// Place of the match in the document: `services.orders.routes.list.match`.
    pub place: &'a str,
    pub rule: &'a RouteMatch,
}

/// The facts of a request that routes are chosen by.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a> {
    /// As [`host::normalise`] returns it; empty if the request names none, which only routes for any host match.
    pub host: &'a str,
    /// As [`path::canonical`] returns it.
    pub path: &'a str,
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    /// Without question mark.
    pub query: Option<&'a str>,
    pub client: IpAddr,
}

/// Which route answers a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Route {
        /// Index of the route in the list that the router was built from.
        index: usize,
        captures: Captures,
    },
    /// Routes match all but the method.
    MethodNotAllowed {
        /// The methods they take, as the value of the header field `Allow`: sorted, and HEAD wherever GET is.
        allow: String,
    },
    Nothing,
}

/// All routes of a configuration.
#[derive(Debug, Default)]
pub struct Router {
    entries: Box<[Entry]>,
    hosts: HashMap<Box<str>, Table>,
    /// By what follows `*.`.
    domains: HashMap<Box<str>, Table>,
    any_host: Table,
}

/// A route on one host. Its index in [`Router::entries`] is its rank.
#[derive(Debug)]
struct Entry {
    route: usize,
    rule: Arc<Rule>,
}

/// What a route demands beside its host.
#[derive(Debug)]
struct Rule {
    path: PathRule,
    methods: Methods,
    predicates: Predicates,
}

/// A route on its way into the router.
#[derive(Debug)]
struct Draft<'a> {
    index: usize,
    source: Route<'a>,
    order: Order,
    rule: Arc<Rule>,
}

/// Orders the routes of one host, up to their names: the least one wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    priority: Reverse<i32>,
    path: PathRank,
    methods: u8,
    predicates: PredicateRank,
}

/// What a route writes as its host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum HostRule {
    Exact(String),
    /// Every name that ends with a dot and this.
    Below(String),
    Any,
}

impl Router {
    /// Compiles routes; what is wrong with them, what can never match and what ties is added to `problems`.
    ///
    /// A router built with problems lacks the routes that have some.
    pub fn build(routes: &[Route<'_>], problems: &mut Problems) -> Router {
        let mut hosts: BTreeMap<HostRule, Vec<Arc<Draft<'_>>>> = BTreeMap::new();
        for (index, route) in routes.iter().enumerate() {
            let written = HostRule::compile(route, problems);
            let Some(draft) = Draft::compile(index, *route, problems).map(Arc::new) else { continue };
            for host in written {
                hosts.entry(host).or_default().push(Arc::clone(&draft));
            }
        }
        for drafts in hosts.values_mut() {
            drafts.sort_by(|a, b| (&a.order, a.source.name).cmp(&(&b.order, b.source.name)));
        }
        conflicts::report(&hosts, problems);

        let mut router = Router::default();
        let mut entries = Vec::new();
        for (host, drafts) in hosts {
            let table = table_of(&drafts, &mut entries, problems);
            match host {
                HostRule::Exact(name) => drop(router.hosts.insert(name.into(), table)),
                HostRule::Below(name) => drop(router.domains.insert(name.into(), table)),
                HostRule::Any => router.any_host = table,
            }
        }
        router.entries = entries.into();
        router
    }

    /// Finds the route that answers a request. Allocates only for captures and for [`Found::MethodNotAllowed`].
    pub fn find(&self, request: &Lookup<'_>) -> Found {
        let mut first = First { router: self, request, best: None, other_method: false };
        for table in self.tables(request.host) {
            table.search(request.path, &mut first);
            if let Some(rank) = first.best {
                let entry = &self.entries[rank as usize];
                return Found::Route { index: entry.route, captures: entry.rule.path.captures(request.path) };
            }
        }
        if first.other_method { self.methods_instead(request) } else { Found::Nothing }
    }

    fn methods_instead(&self, request: &Lookup<'_>) -> Found {
        let mut taken = Taken { router: self, request, methods: Methods::default() };
        for table in self.tables(request.host) {
            table.search(request.path, &mut taken);
        }
        if taken.methods.is_empty() {
            return Found::Nothing;
        }
        Found::MethodNotAllowed { allow: taken.methods.to_string() }
    }

    /// The tables for a host, most specific first.
    fn tables<'t>(&'t self, host: &'t str) -> impl Iterator<Item = &'t Table> {
        let domains = if self.domains.is_empty() { "" } else { host };
        let dots = memchr::memchr_iter(b'.', domains.as_bytes());
        let below = dots.filter_map(move |dot| self.domains.get(&domains[dot + 1..]));
        self.hosts.get(host).into_iter().chain(below).chain([&self.any_host])
    }
}

fn table_of(drafts: &[Arc<Draft<'_>>], entries: &mut Vec<Entry>, problems: &mut Problems) -> Table {
    let mut table = Table::default();
    for draft in drafts {
        table.insert(entries.len() as Rank, &draft.rule.path);
        entries.push(Entry { route: draft.index, rule: Arc::clone(&draft.rule) });
    }
    let regexes = || {
        drafts.iter().filter_map(|draft| match &draft.rule.path {
            PathRule::Regex(regex) => Some((draft, regex)),
            PathRule::Segments(_) => None,
        })
    };
    if let (Err(message), Some((draft, _))) = (table.finish(regexes().map(|(_, regex)| regex)), regexes().next()) {
        problems.add(format!("{}.path_regex", draft.source.place), message);
    }
    table
}

/// Finds the first route that takes the request.
struct First<'r> {
    router: &'r Router,
    request: &'r Lookup<'r>,
    best: Option<Rank>,
    /// Some route was passed over for its method alone, or at least not for its path.
    other_method: bool,
}

impl Sink for First<'_> {
    fn wants(&self, first: Rank) -> bool {
        self.best.is_none_or(|best| first < best)
    }

    fn offer(&mut self, group: &[Rank]) {
        for &rank in group.iter().take_while(|&&rank| self.best.is_none_or(|best| rank < best)) {
            let rule = &self.router.entries[rank as usize].rule;
            if !rule.methods.contains(self.request.method) {
                self.other_method = true;
            } else if rule.predicates.hold(self.request) {
                self.best = Some(rank);
                return;
            }
        }
    }
}

/// Collects the methods that the request could have had.
struct Taken<'r> {
    router: &'r Router,
    request: &'r Lookup<'r>,
    methods: Methods,
}

impl Sink for Taken<'_> {
    fn wants(&self, _: Rank) -> bool {
        true
    }

    fn offer(&mut self, group: &[Rank]) {
        for &rank in group {
            let rule = &self.router.entries[rank as usize].rule;
            // The method was refused by every rule that holds, so that none of these takes any method.
            if !rule.methods.contains(self.request.method) && rule.predicates.hold(self.request) {
                self.methods.add(&rule.methods);
            }
        }
    }
}

impl<'a> Draft<'a> {
    fn compile(index: usize, source: Route<'a>, problems: &mut Problems) -> Option<Self> {
        let RouteMatch { path, path_prefix, path_regex, .. } = source.rule;
        if [path, path_prefix, path_regex].into_iter().flatten().count() > 1 {
            problems.add(source.place, "only one of `path`, `path_prefix` and `path_regex` may be given");
            return None;
        }
        let methods = Methods::compile(&source.rule.methods, source.place, problems);
        let predicates = Predicates::compile(source.rule, source.place, problems);
        let (key, compiled) = match (path, path_prefix, path_regex) {
            (Some(path), ..) => ("path", Pattern::closed(path).map(PathRule::Segments)),
            (_, Some(prefix), _) => ("path_prefix", Pattern::open(prefix).map(PathRule::Segments)),
            (.., Some(regex)) => ("path_regex", PathRule::regex(regex)),
            (None, None, None) => ("path", Ok(PathRule::any())),
        };
        let path = compiled.map_err(|message| problems.add(format!("{}.{key}", source.place), message)).ok()?;
        let priority = Reverse(source.rule.priority);
        let order = Order { priority, path: path.rank(), methods: methods.rank(), predicates: predicates.rank() };
        Some(Draft { index, source, order, rule: Arc::new(Rule { path, methods, predicates }) })
    }
}

impl HostRule {
    fn compile(route: &Route<'_>, problems: &mut Problems) -> BTreeSet<HostRule> {
        let RouteMatch { host, hosts, .. } = route.rule;
        if host.is_some() && !hosts.is_empty() {
            problems.add(format!("{}.hosts", route.place), "only one of `host` and `hosts` may be given");
        }
        if host.is_none() && hosts.is_empty() {
            return BTreeSet::from([HostRule::Any]);
        }
        let single = host.iter().map(|written| (format!("{}.host", route.place), written));
        let several = hosts.iter().enumerate().map(|(i, written)| (format!("{}.hosts[{i}]", route.place), written));
        let rules = single.chain(several).filter_map(|(place, written)| {
            HostRule::parse(written).map_err(|message| problems.add(place, message)).ok()
        });
        rules.collect()
    }

    fn parse(written: &str) -> Result<Self, String> {
        let below = written.strip_prefix("*.");
        let name = below.unwrap_or(written);
        if name.contains('*') {
            return Err(format!("`{written}` is not a host; `*` may only stand at the start, as in `*.example.com`"));
        }
        let host = host::normalise(name).map_err(|error| format!("`{written}` is not a host: {error}"))?;
        if host.port.is_some() || name.ends_with(':') {
            return Err(format!("`{written}` has a port; a route is chosen by the name alone"));
        }
        let name = host.name.into_owned();
        Ok(if below.is_some() { HostRule::Below(name) } else { HostRule::Exact(name) })
    }
}

impl fmt::Display for HostRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostRule::Exact(name) => write!(f, "host `{name}`"),
            HostRule::Below(name) => write!(f, "host `*.{name}`"),
            HostRule::Any => f.write_str("any host"),
        }
    }
}
