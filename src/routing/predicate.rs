//! The conditions of a route beside host and path.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use http::Method;
use http::header::{COOKIE, HeaderMap, HeaderName};
use ipnet::IpNet;
use regex::bytes::{Regex, RegexBuilder};

use super::Lookup;
use super::pattern::{REGEX_LIMIT, anchored, regex_error};
use crate::config::{Problems, RouteMatch, ValueMatch};

/// A set of methods. The usual ones are bits, so that the common test costs one instruction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Methods {
    any: bool,
    usual: u16,
    others: BTreeSet<String>,
}

const USUAL: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];
const GET: u16 = 1 << 2;
const HEAD: u16 = 1 << 3;

fn usual_bit(method: &Method) -> Option<u16> {
    Some(match *method {
        Method::CONNECT => 1,
        Method::DELETE => 1 << 1,
        Method::GET => GET,
        Method::HEAD => HEAD,
        Method::OPTIONS => 1 << 4,
        Method::PATCH => 1 << 5,
        Method::POST => 1 << 6,
        Method::PUT => 1 << 7,
        Method::TRACE => 1 << 8,
        _ => return None,
    })
}

impl Methods {
    pub fn compile(written: &[String], place: &str, problems: &mut Problems) -> Self {
        let mut methods = Methods { any: written.is_empty(), ..Methods::default() };
        for (i, word) in written.iter().enumerate() {
            let upper = word.to_ascii_uppercase();
            match Method::from_bytes(word.as_bytes()) {
                Ok(_) if *word != upper => problems.0.push(crate::config::Problem {
                    path: format!("{place}.methods[{i}]"),
                    message: format!("methods are case-sensitive, and no client sends `{word}`"),
                    suggestion: Some(upper),
                    source: None,
                }),
                Ok(method) => match usual_bit(&method) {
                    Some(GET) => methods.usual |= GET | HEAD,
                    Some(bit) => methods.usual |= bit,
                    None => drop(methods.others.insert(upper)),
                },
                Err(_) => problems.add(format!("{place}.methods[{i}]"), format!("`{word}` is not a method")),
            }
        }
        methods
    }

    pub fn contains(&self, method: &Method) -> bool {
        self.any
            || match usual_bit(method) {
                Some(bit) => self.usual & bit != 0,
                None => self.others.contains(method.as_str()),
            }
    }

    /// Routes that name HEAD itself stand before those that have it by GET.
    pub fn rank(&self) -> u8 {
        match self {
            Methods { any: true, .. } => 2,
            Methods { usual, .. } if usual & (GET | HEAD) == HEAD => 0,
            _ => 1,
        }
    }

    pub fn covers(&self, other: &Methods) -> bool {
        self.any || !other.any && other.usual & !self.usual == 0 && other.others.is_subset(&self.others)
    }

    pub fn intersection(&self, other: &Methods) -> Methods {
        match (self.any, other.any) {
            (true, _) => other.clone(),
            (_, true) => self.clone(),
            _ => Methods {
                any: false,
                usual: self.usual & other.usual,
                others: self.others.intersection(&other.others).cloned().collect(),
            },
        }
    }

    pub fn add(&mut self, other: &Methods) {
        self.any |= other.any;
        self.usual |= other.usual;
        self.others.extend(other.others.iter().cloned());
    }

    pub fn is_empty(&self) -> bool {
        !self.any && self.usual == 0 && self.others.is_empty()
    }
}

impl fmt::Display for Methods {
    /// Sorted and separated by commas, as in the header field `Allow`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.any {
            return f.write_str("any method");
        }
        let usual = (0..).zip(USUAL).filter(|(bit, _)| self.usual & (1 << bit) != 0).map(|(_, name)| name);
        let mut all: Vec<&str> = usual.chain(self.others.iter().map(String::as_str)).collect();
        all.sort_unstable();
        f.write_str(&all.join(", "))
    }
}

/// The conditions that are neither host, path nor method. All must hold.
#[derive(Debug, Default)]
pub(super) struct Predicates {
    headers: Vec<(HeaderName, ValueRule)>,
    query: Vec<(String, ValueRule)>,
    cookies: Vec<(String, ValueRule)>,
    /// Empty: any client.
    client: Vec<IpNet>,
}

#[derive(Debug)]
enum ValueRule {
    Exact(String),
    Prefix(String),
    Regex(Regex),
    Present,
    Absent,
}

/// Orders routes that differ in their conditions only: the least one wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PredicateRank {
    headers: CountRank,
    query: CountRank,
    cookies: CountRank,
    /// Length of the shortest network prefix, in terms of IPv6.
    client: Reverse<Option<u8>>,
}

/// How many, and how many of them exact.
type CountRank = Reverse<(usize, usize)>;

impl Predicates {
    pub fn compile(written: &RouteMatch, place: &str, problems: &mut Problems) -> Self {
        let mut headers = Vec::new();
        for (name, value) in &written.headers {
            let place = format!("{place}.headers.{name}");
            let rule = ValueRule::compile(value, &place, problems);
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(known) if headers.iter().any(|(other, _)| *other == known) => {
                    problems.add(place, "this header is named twice; upper and lower case are the same");
                }
                Ok(known) => headers.extend(rule.map(|rule| (known, rule))),
                Err(_) => problems.add(place, format!("`{name}` is not the name of a header")),
            }
        }
        let mut named =
            |kind: &str, values: &std::collections::BTreeMap<String, ValueMatch>| -> Vec<(String, ValueRule)> {
                let rules = values.iter().filter_map(|(name, value)| {
                    Some((name.clone(), ValueRule::compile(value, &format!("{place}.{kind}.{name}"), problems)?))
                });
                rules.collect()
            };
        let (query, cookies) = (named("query", &written.query), named("cookies", &written.cookies));
        Predicates { headers, query, cookies, client: networks(&written.client, place, problems) }
    }

    pub fn hold(&self, request: &Lookup<'_>) -> bool {
        self.headers.iter().all(|(name, rule)| {
            rule.holds(request.headers.get_all(name).iter().map(|value| Cow::Borrowed(value.as_bytes())))
        }) && self.query.iter().all(|(name, rule)| rule.holds(parameters(request.query, name)))
            && self.cookies.iter().all(|(name, rule)| rule.holds(cookies(request.headers, name)))
            && (self.client.is_empty() || {
                // A client that comes by IPv4 to an IPv6 socket is still that IPv4 client.
                let client = request.client.to_canonical();
                self.client.iter().any(|network| network.contains(&client))
            })
    }

    pub fn rank(&self) -> PredicateRank {
        let narrow = self.client.iter().map(|network| match network {
            IpNet::V4(v4) => v4.prefix_len() + 96,
            IpNet::V6(v6) => v6.prefix_len(),
        });
        PredicateRank {
            headers: count(&self.headers),
            query: count(&self.query),
            cookies: count(&self.cookies),
            client: Reverse(narrow.min()),
        }
    }

    /// True only if these are known to hold whenever `other` do.
    pub fn covers(&self, other: &Predicates) -> bool {
        implied(&self.headers, &other.headers)
            && implied(&self.query, &other.query)
            && implied(&self.cookies, &other.cookies)
            && (self.client.is_empty()
                || !other.client.is_empty()
                    && other.client.iter().all(|inner| self.client.iter().any(|outer| outer.contains(inner))))
    }
}

fn count<N>(rules: &[(N, ValueRule)]) -> CountRank {
    let exact = rules.iter().filter(|(_, rule)| matches!(rule, ValueRule::Exact(_))).count();
    Reverse((rules.len(), exact))
}

fn implied<N: PartialEq>(rules: &[(N, ValueRule)], by: &[(N, ValueRule)]) -> bool {
    rules.iter().all(|(name, rule)| by.iter().any(|(other, premise)| other == name && rule.follows_from(premise)))
}

impl ValueRule {
    fn compile(written: &ValueMatch, place: &str, problems: &mut Problems) -> Option<Self> {
        Some(match written {
            ValueMatch::Exact(value) => ValueRule::Exact(value.clone()),
            ValueMatch::Prefix(value) => ValueRule::Prefix(value.clone()),
            ValueMatch::Present => ValueRule::Present,
            ValueMatch::Absent => ValueRule::Absent,
            ValueMatch::Regex(value) => {
                let built = anchored(value).and_then(|anchored| {
                    let built = RegexBuilder::new(&anchored).size_limit(REGEX_LIMIT).build();
                    built.map_err(|error| regex_error(&error))
                });
                match built {
                    Ok(regex) => ValueRule::Regex(regex),
                    Err(message) => {
                        problems.add(format!("{place}.regex"), message);
                        return None;
                    }
                }
            }
        })
    }

    fn holds<'v>(&self, mut values: impl Iterator<Item = Cow<'v, [u8]>>) -> bool {
        match self {
            ValueRule::Absent => values.next().is_none(),
            ValueRule::Present => values.next().is_some(),
            ValueRule::Exact(wanted) => values.any(|value| *value == *wanted.as_bytes()),
            ValueRule::Prefix(wanted) => values.any(|value| value.starts_with(wanted.as_bytes())),
            ValueRule::Regex(regex) => values.any(|value| regex.is_match(&value)),
        }
    }

    fn follows_from(&self, premise: &ValueRule) -> bool {
        match (self, premise) {
            (ValueRule::Absent, ValueRule::Absent) => true,
            (ValueRule::Absent, _) | (_, ValueRule::Absent) => false,
            (ValueRule::Present, _) => true,
            (_, ValueRule::Exact(value)) => self.holds([Cow::Borrowed(value.as_bytes())].into_iter()),
            (ValueRule::Prefix(wanted), ValueRule::Prefix(value)) => value.starts_with(&**wanted),
            (ValueRule::Regex(a), ValueRule::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// Parses addresses and networks; a bare address is a network of one.
fn networks(written: &[String], place: &str, problems: &mut Problems) -> Vec<IpNet> {
    let mut networks = Vec::with_capacity(written.len());
    for (i, text) in written.iter().enumerate() {
        match text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
            Ok(network) => networks.push(network.trunc()),
            Err(_) => problems.add(
                format!("{place}.client[{i}]"),
                format!("`{text}` is not an IP address or a network such as 10.0.0.0/8"),
            ),
        }
    }
    networks
}

/// The decoded values of one query parameter.
fn parameters<'v>(query: Option<&'v str>, name: &str) -> impl Iterator<Item = Cow<'v, [u8]>> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (*decoded(key) == *name.as_bytes()).then(|| decoded(value))
    })
}

/// Undoes the encoding of forms: `+` is a space. A malformed percent sign stands for itself.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|b| matches!(b, b'%' | b'+')) {
        return Cow::Borrowed(bytes);
    }
    let digit = |at: usize| bytes.get(at).and_then(|&b| char::from(b).to_digit(16));
    let (mut plain, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                plain.push((high << 4 | low) as u8);
                at += 2;
            }
            (b'+', ..) => plain.push(b' '),
            (byte, ..) => plain.push(byte),
        }
        at += 1;
    }
    Cow::Owned(plain)
}

/// The values of one cookie, as they were sent.
fn cookies<'v>(headers: &'v HeaderMap, name: &str) -> impl Iterator<Item = Cow<'v, [u8]>> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|&b| b == b';'));
    pairs.filter_map(move |pair| {
        let pair = pair.trim_ascii();
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(Cow::Borrowed(value))
    })
}
