//! What a limit counts by: from the written `by` to the key of one request.
//!
//! On the hot path: a key is a number. Only claims, expressions and headers in several lines allocate for it.

use std::borrow::Cow;
use std::fmt::Write;
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

use foldhash::fast::RandomState;
use http::HeaderName;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::filters::expression::Expression;
use crate::filters::filter::Request;
use crate::filters::registry::Site;
use crate::identity::Consumer;
use crate::telemetry::redact::Redaction;
use crate::variables::{Scope, write_address};

/// A longer value is shown as its digest.
const LONGEST_SHOWN: usize = 64;

/// What requests have in common that count together.
///
/// A request without it, as one that nobody has authenticated has no consumer, counts by its client's address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The consumer, whichever of its credentials it uses.
    #[default]
    Consumer,
    /// The API key, token or certificate.
    Credential,
    /// The consumer's team.
    Team,
    /// The client's address; of IPv6 the first 64 bits, since a client has all addresses below them.
    Address,
    /// The client's network, by the number of bits that count.
    Network(Network),
    Route,
    Service,
    /// All together.
    Gateway,
    /// The value of this header. A client may send any: only what a filter has checked or set bounds anybody.
    Header(String),
    /// The claim of this name, or path of names with dots.
    Claim(String),
    /// What an expression of CEL makes of the request: a text, a whole number or a truth value.
    Cel(String),
}

/// How much of an address counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Bits of IPv4 addresses.
    #[schemars(range(max = 32))]
    pub v4: u8,
    /// Bits of IPv6 addresses.
    #[schemars(range(max = 128))]
    pub v6: u8,
}

impl Default for Network {
    fn default() -> Self {
        Network { v4: 32, v6: 64 }
    }
}

impl Network {
    fn of(self, address: IpAddr) -> IpAddr {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.v4.min(32))).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.v6.min(128))).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        }
    }

    /// How many bits of an address count.
    fn bits(self, address: IpAddr) -> u8 {
        if address.to_canonical().is_ipv4() { self.v4 } else { self.v6 }
    }

    fn write(self, address: IpAddr, out: &mut String) {
        let network = self.of(address);
        write_address(network, out);
        let (bits, all) = if network.is_ipv4() { (self.v4, 32) } else { (self.v6, 128) };
        if bits < all {
            // Writing to a String cannot fail.
            _ = write!(out, "/{bits}");
        }
    }
}

/// The compiled form of [`By`].
pub struct Key {
    by: Compiled,
    seed: RandomState,
}

enum Compiled {
    Consumer,
    Credential,
    Team,
    Network(Network),
    Route,
    Service,
    Gateway,
    Header(HeaderName),
    Claim(String),
    Cel(Expression),
}

impl Key {
    /// Compiles what was written at the `by` of a filter; reports what is wrong with it there.
    pub fn compile(by: &By, at: &mut Site<'_>) -> Option<Key> {
        let by = match by {
            By::Consumer => Compiled::Consumer,
            By::Credential => Compiled::Credential,
            By::Team => Compiled::Team,
            By::Address => Compiled::Network(Network::default()),
            By::Network(network) => Compiled::Network(*network),
            By::Route => Compiled::Route,
            By::Service => Compiled::Service,
            By::Gateway => Compiled::Gateway,
            By::Claim(name) => Compiled::Claim(name.clone()),
            By::Cel(text) => match Expression::compile(text) {
                Ok(expression) => Compiled::Cel(expression),
                Err(message) => {
                    at.problems.add(format!("{}.by.cel", at.path), message);
                    return None;
                }
            },
            By::Header(name) => match HeaderName::from_bytes(name.as_bytes()) {
                Ok(header) if !name.contains('_') => Compiled::Header(header),
                Ok(_) => {
                    let message = "headers with an underscore in their name never arrive";
                    at.problems.add(format!("{}.by.header", at.path), message);
                    return None;
                }
                Err(_) => {
                    let message = format!("`{name}` is not a name for a header");
                    at.problems.add(format!("{}.by.header", at.path), message);
                    return None;
                }
            },
        };
        Some(Key { by, seed: seed() })
    }

    /// The key of a request: equal for all that count together, in this process and across reloads. `None` if the
    /// request does not have what is counted by.
    pub fn of(&self, request: &Request<'_>) -> Option<u64> {
        let exchange = &*request.exchange;
        Some(match &self.by {
            Compiled::Consumer => exchange.consumer()?.key,
            Compiled::Team => exchange.consumer()?.team.as_ref()?.key,
            Compiled::Credential => {
                let credential = exchange.identity.as_ref()?.credential;
                if credential.kind.is_empty() {
                    return None;
                }
                self.hash("credential", (credential.kind, credential.id))
            }
            Compiled::Network(network) => {
                self.hash("address", (network.bits(exchange.client), network.of(exchange.client)))
            }
            Compiled::Route => self.hash("route", exchange.names()),
            Compiled::Service => self.hash("service", exchange.names().0),
            Compiled::Gateway => self.hash("gateway", ()),
            Compiled::Header(name) => self.hash("header", (name.as_str(), header(request, name)?)),
            Compiled::Claim(path) => self.hash("claim", (path, claim(request, path)?)),
            Compiled::Cel(expression) => self.hash("cel", expression.evaluate_text(&scope(request))?),
        })
    }

    /// Whether requests of a consumer count together, and only they.
    pub fn is_of_consumer(&self) -> bool {
        matches!(self.by, Compiled::Consumer)
    }

    /// The key of every request of a consumer; `None` if they do not have one and the same.
    pub fn of_consumer(&self, consumer: &Consumer) -> Option<u64> {
        match &self.by {
            Compiled::Consumer => Some(consumer.key),
            Compiled::Team => consumer.team.as_ref().map(|team| team.key),
            _ => None,
        }
    }

    /// The key of a request, by its client's address if it has no other.
    pub fn of_or_address(&self, request: &Request<'_>) -> u64 {
        self.of(request).unwrap_or_else(|| {
            let (network, client) = (Network::default(), request.exchange.client);
            self.hash("address", (network.bits(client), network.of(client)))
        })
    }

    /// The key in words, the same on every gateway: `consumer:mobile`, `address:2001:db8::/64`. Secrets and long values
    /// are shown as digests. `None` as with [`Key::of`].
    pub fn text(&self, request: &Request<'_>) -> Option<String> {
        let exchange = &*request.exchange;
        let mut out = String::new();
        match &self.by {
            Compiled::Consumer => join(&mut out, "consumer:", exchange.consumer()?.name()),
            Compiled::Team => join(&mut out, "team:", &exchange.consumer()?.team.as_ref()?.name),
            Compiled::Credential => {
                let credential = exchange.identity.as_ref()?.credential;
                if credential.kind.is_empty() {
                    return None;
                }
                out.push_str("credential:");
                credential.write(&mut out);
            }
            Compiled::Network(network) => address(*network, exchange.client, &mut out),
            Compiled::Route => {
                let (service, route) = exchange.names();
                // Writing to a String cannot fail.
                _ = write!(out, "route:{service}/{route}");
            }
            Compiled::Service => join(&mut out, "service:", exchange.names().0),
            Compiled::Gateway => out.push_str("gateway"),
            Compiled::Header(name) => {
                let value = header(request, name)?;
                let secret = Redaction::default().hides(name.as_str().as_bytes());
                _ = write!(out, "header:{}:{}", name.as_str(), shown(&value, secret));
            }
            Compiled::Claim(path) => {
                _ = write!(out, "claim:{path}:{}", shown(claim(request, path)?.as_bytes(), false));
            }
            Compiled::Cel(expression) => {
                let value = expression.evaluate_text(&scope(request))?;
                _ = write!(out, "cel:{}", shown(value.as_bytes(), false));
            }
        }
        Some(out)
    }

    /// The key in words, by the client's address if the request has no other.
    pub fn text_or_address(&self, request: &Request<'_>) -> String {
        self.text(request).unwrap_or_else(|| {
            let mut out = String::new();
            address(Network::default(), request.exchange.client, &mut out);
            out
        })
    }

    fn hash(&self, kind: &'static str, value: impl Hash) -> u64 {
        let mut hasher = self.seed.build_hasher();
        kind.hash(&mut hasher);
        value.hash(&mut hasher);
        hasher.finish()
    }
}

/// Drawn once: a reload has to find what was counted before it. Unknown outside: nobody can make two keys meet.
fn seed() -> RandomState {
    static SEED: OnceLock<RandomState> = OnceLock::new();
    SEED.get_or_init(RandomState::default).clone()
}

/// All values of a header as one line, which is the same header (RFC 9110, section 5.3). An empty one counts as none.
fn header<'r>(request: &'r Request<'_>, name: &HeaderName) -> Option<Cow<'r, [u8]>> {
    let mut lines = request.head.headers.get_all(name).iter();
    let first = lines.next()?.as_bytes();
    let mut value = Cow::Borrowed(first);
    for line in lines {
        let all = value.to_mut();
        all.extend_from_slice(b", ");
        all.extend_from_slice(line.as_bytes());
    }
    Some(value).filter(|value| !value.is_empty())
}

fn scope<'r>(request: &'r Request<'_>) -> Scope<'r> {
    Scope { exchange: request.exchange, request: request.head, response: None }
}

fn claim(request: &Request<'_>, path: &str) -> Option<String> {
    request.exchange.identity.as_ref()?.claims.as_ref()?.text(path)
}

fn join(out: &mut String, kind: &str, name: &str) {
    out.push_str(kind);
    out.push_str(name);
}

fn address(network: Network, client: IpAddr, out: &mut String) {
    out.push_str("address:");
    network.write(client, out);
}

/// A value of a request, safe to keep and to show.
fn shown(value: &[u8], secret: bool) -> Cow<'_, str> {
    let plain = |byte: &u8| byte.is_ascii_graphic();
    match std::str::from_utf8(value) {
        Ok(text) if !secret && value.len() <= LONGEST_SHOWN && value.iter().all(plain) => text.into(),
        _ => {
            let digest = ring::digest::digest(&ring::digest::SHA256, value);
            let digits = digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}"));
            digits.fold("sha256=".to_owned(), |text, digits| text + &digits).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pingora::http::RequestHeader;

    use super::*;
    use crate::config::Problems;
    use crate::filters::filter::Controls;
    use crate::telemetry::exchange::Exchange;
    use crate::telemetry::exchange::tests::exchange;
    use crate::upstream::Surroundings;

    fn compile(by: By) -> Result<Key, String> {
        let mut problems = Problems::default();
        let around = Surroundings { folder: std::path::Path::new("."), environment: &|_| None };
        let (directory, lasting) = Default::default();
        let mut at =
            Site { path: "f", problems: &mut problems, around, directory: &directory, lasting: &lasting, fleet: None };
        Key::compile(&by, &mut at).ok_or_else(|| format!("{problems:?}"))
    }

    /// The key and its text.
    fn key(by: &By, exchange: &mut Exchange, headers: &[(&'static str, &str)]) -> (Option<u64>, Option<String>) {
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in headers {
            head.append_header(*name, *value).unwrap();
        }
        let mut controls = Controls::default();
        let request = Request { head: &mut head, exchange, controls: &mut controls };
        let key = compile(by.clone()).unwrap();
        (key.of(&request), key.text(&request))
    }

    fn header() -> By {
        By::Header("x-tenant".into())
    }

    #[test]
    fn each_kind_has_its_key_and_its_words() {
        let mut exchange = exchange();
        let network = |v4, v6| By::Network(Network { v4, v6 });
        let by = |by: By, words: &str| (by, words.to_owned());
        let mut keys = Vec::new();
        for (by, words) in [
            by(By::Consumer, "consumer:mobile"),
            by(By::Team, "team:apps"),
            by(By::Credential, "credential:api_key:00000000000000ff"),
            by(By::Address, "address:2001:db8::/64"),
            by(network(32, 128), "address:2001:db8::1"),
            by(network(32, 16), "address:2001::/16"),
            by(network(32, 0), "address:::/0"),
            by(By::Route, "route:shop/list"),
            by(By::Service, "service:shop"),
            by(By::Gateway, "gateway"),
            by(header(), "header:x-tenant:acme"),
            by(By::Claim("email".into()), "claim:email:a@example.com"),
            by(By::Cel("request.method + ':' + consumer.team".into()), "cel:GET:apps"),
        ] {
            let (key, text) = key(&by, &mut exchange, &[("x-tenant", "acme")]);
            assert_eq!(text, Some(words), "{by:?}");
            keys.push(key.unwrap());
        }
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 13, "kinds do not meet");
    }

    #[test]
    fn a_client_with_a_whole_network_has_one_key() {
        let mut exchange = exchange();
        let mut of = |address: &str| {
            exchange.client = address.parse().unwrap();
            key(&By::Address, &mut exchange, &[]).0
        };
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:ffff:ffff:ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"), "the same client over a socket of both families");
    }

    #[test]
    fn who_has_no_such_thing_counts_by_address() {
        let mut nobody = exchange();
        nobody.identity = None;
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        head.append_header("x-tenant", "").unwrap();
        let mut controls = Controls::default();
        let request = Request { head: &mut head, exchange: &mut nobody, controls: &mut controls };
        let by_address = compile(By::Address).unwrap().of(&request);
        for by in [
            By::Consumer,
            By::Team,
            By::Credential,
            By::Claim("email".into()),
            By::Cel("consumer.team".into()),
            header(),
        ] {
            let key = compile(by.clone()).unwrap();
            assert_eq!((key.of(&request), key.text(&request)), (None, None), "{by:?}");
            assert_eq!(Some(key.of_or_address(&request)), by_address, "{by:?}");
            assert_eq!(key.text_or_address(&request), "address:2001:db8::/64");
        }
    }

    #[test]
    fn several_lines_are_one_value_and_secrets_are_not_shown() {
        let mut exchange = exchange();
        let mut of = |headers: &[(&'static str, &str)]| key(&header(), &mut exchange, headers);
        assert_eq!(of(&[("x-tenant", "a"), ("x-tenant", "b")]), of(&[("x-tenant", "a, b")]));
        assert_ne!(of(&[("x-tenant", "a")]), of(&[("x-tenant", "A")]));
        for long in ["a".repeat(65), "a b".to_owned(), "é".to_owned()] {
            let (_, text) = of(&[("x-tenant", &long)]);
            assert!(text.as_ref().is_some_and(|text| text.starts_with("header:x-tenant:sha256=")), "{text:?}");
        }
        let (_, text) = key(&By::Header("authorization".into()), &mut exchange, &[("authorization", "s3cret")]);
        assert!(text.is_some_and(|text| !text.contains("s3cret")));
        assert!(compile(By::Header("x_tenant".into())).is_err_and(|said| said.contains("underscore")));
        assert!(compile(By::Cel("consumer.teem".into())).is_err_and(|said| said.contains("f.by.cel")));
        assert!(compile(By::Header("a b".into())).is_err_and(|said| said.contains("f.by.header")));
    }

    #[test]
    fn keys_outlive_what_they_were_compiled_with() {
        let mut exchange = exchange();
        exchange.route =
            Some(Arc::new(crate::telemetry::exchange::RouteName { service: "s".into(), route: "r".into() }));
        assert_eq!(key(&By::Route, &mut exchange, &[]), key(&By::Route, &mut exchange, &[]));
    }

    #[test]
    #[ignore = "a measurement: cargo nextest run --release --run-ignored all a_key_takes --no-capture"]
    fn a_key_takes() {
        let mut exchange = exchange();
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        head.append_header("x-tenant", "acme").unwrap();
        let mut controls = Controls::default();
        let request = Request { head: &mut head, exchange: &mut exchange, controls: &mut controls };
        for by in [By::Consumer, By::Credential, By::Address, By::Route, header(), By::Claim("email".into())] {
            let key = compile(by.clone()).unwrap();
            let began = std::time::Instant::now();
            for _ in 0..1_000_000 {
                assert!(std::hint::black_box(&key).of(std::hint::black_box(&request)).is_some());
            }
            eprintln!("{:>6.1} ns  {by:?}", began.elapsed().as_nanos() as f64 / 1e6);
        }
    }
}
