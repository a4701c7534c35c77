//! Asks an HTTP service whether a request may pass, and who it is from.
//!
//! The client is the process's own pool of connections ([`Lasting::http`]), which speaks HTTP/1.1 strictly, follows no
//! redirect and asks no proxy of the environment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use pingora::http::RequestHeader;
use ring::digest;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{Authenticator, Verdict};
use crate::config::Problems;
use crate::config::units::{self, Size};
use crate::error::{Error, Reason};
use crate::filters::filter::{Answer, Compiled, Request};
use crate::filters::lasting::Lasting;
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::identity::{Consumer, Credential, Directory, Identity};
use crate::telemetry::exchange::Exchange;
use crate::variables::write_address;

/// Of all headers of one answer that go on. A request with more would be refused by most origins.
const MOST_COPIED: usize = 32 << 10;

/// What frames a message or belongs to one connection is not for others to say.
const NEVER_COPIED: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Asks an HTTP service about each request, as Traefik's ForwardAuth and nginx's `auth_request` do. It is sent the
/// headers of `send` and `X-Forwarded-Method`, `-Proto`, `-Host`, `-Uri` and `-For`, never the body. A 2xx lets the
/// request pass. Anything below 500 denies it with that answer: its status, some of its headers, its body; a login page
/// works. A service that cannot be asked, takes too long, answers 5xx or sends no valid answer fails closed: 503.
///
/// ```yaml
/// ext_auth:
///   url: http://127.0.0.1:9002/verify
///   copy: [x-user, x-groups]
///   consumer_header: x-consumer
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the service is asked: `http://` or `https://`, whose certificate the system's authorities vouch for.
    pub url: String,
    /// GET if left out. A body is never sent.
    #[serde(default)]
    pub method: AskWith,
    /// Headers of the request that the service is sent.
    #[serde(default = "credentials")]
    pub send: Vec<String>,
    /// Headers of the service's answer that go on to the origin. Clients can never send them themselves.
    #[serde(default)]
    pub copy: Vec<String>,
    /// Headers of the service's answer that go on to the client, such as `set-cookie`.
    #[serde(default)]
    pub copy_to_client: Vec<String>,
    /// Headers of a denial that the client gets.
    #[serde(default = "of_denials")]
    pub copy_from_denial: Vec<String>,
    /// The header of the service's answer that names the consumer. Left out: callers that pass are no consumers.
    pub consumer_header: Option<String>,
    /// For the service's whole answer.
    #[serde(default = "two_seconds")]
    pub timeout: units::Duration,
    /// Longest body of a denial; one that is longer is left out.
    #[serde(default = "body_size")]
    pub max_body: Size,
    /// Questions on their way at a time. Beyond it, the service counts as one that cannot be asked.
    #[serde(default = "in_flight")]
    #[schemars(range(min = 1))]
    pub max_in_flight: u32,
    /// What becomes of requests when the service cannot be asked.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Remembers who was let pass. Left out: the service is asked every time.
    pub cache: Option<Cache>,
}

/// The method the service is asked with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum AskWith {
    #[default]
    Get,
    Head,
    Post,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// They are refused: 503.
    #[default]
    Deny,
    /// They pass, as anonymous ones. Whoever can make the service fail passes too.
    Allow,
}

/// Requests that have let pass are remembered by all that the service was told of them. Denials are not, nor answers
/// with something for the client. A reload forgets everything.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// For this long a caller passes that the service would deny by now.
    pub ttl: units::Duration,
    /// Most requests remembered.
    #[serde(default = "entries")]
    #[schemars(range(min = 2, max = 1_000_000))]
    pub entries: u32,
    /// The service decides by the headers of `send` alone: what it said of one request of a caller holds for all.
    #[serde(default)]
    pub any_request: bool,
}

fn credentials() -> Vec<String> {
    vec![AUTHORIZATION.to_string(), COOKIE.to_string()]
}

fn of_denials() -> Vec<String> {
    [CONTENT_TYPE, LOCATION, SET_COOKIE, WWW_AUTHENTICATE].map(|name| name.to_string()).into()
}

fn two_seconds() -> units::Duration {
    units::Duration::from_secs(2)
}

fn body_size() -> Size {
    Size::kib(64)
}

fn in_flight() -> u32 {
    1000
}

fn entries() -> u32 {
    10_000
}

pub struct ExtAuth {
    url: reqwest::Url,
    method: Method,
    send: Box<[HeaderName]>,
    copy: Box<[HeaderName]>,
    copy_to_client: Box<[HeaderName]>,
    copy_from_denial: Box<[HeaderName]>,
    consumer_header: Option<HeaderName>,
    timeout: Duration,
    max_body: usize,
    permits: Semaphore,
    allow_on_failure: bool,
    cache: Option<Remembered>,
    directory: Arc<Directory>,
    lasting: Arc<Lasting>,
}

/// What the service has said.
enum Said {
    Pass(Arc<Pass>),
    Deny(Answer),
}

/// What a request that passes gets.
struct Pass {
    consumer: Option<Arc<Consumer>>,
    to_origin: Vec<(HeaderName, HeaderValue)>,
    to_client: Vec<(HeaderName, HeaderValue)>,
}

/// Why there is no decision; for the log.
type NoAnswer = &'static str;

impl FilterKind for ExtAuth {
    const NAME: &'static str = "ext_auth";
    const STAGE: Stage = Stage::Authenticate;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let before = at.problems.0.len();
        let path = at.path;
        let url = match url(&config.url) {
            Ok(url) => Some(url),
            Err(message) => {
                at.problems.add(format!("{path}.url"), message);
                None
            }
        };
        let mut names = |list: &[String], which: &str| names(list, &format!("{path}.{which}"), at.problems);
        let send = names(&config.send, "send");
        let copy = names(&config.copy, "copy");
        let copy_to_client = names(&config.copy_to_client, "copy_to_client");
        let copy_from_denial = names(&config.copy_from_denial, "copy_from_denial");
        let consumer_header = config.consumer_header.as_slice();
        let consumer_header = names(consumer_header, "consumer_header").first().cloned();
        let timeout = config.timeout.get();
        if timeout.is_zero() {
            at.problems.add(format!("{path}.timeout"), "no service answers in no time at all");
        }
        if at.problems.0.len() > before {
            return None;
        }
        // A header that the service is sent has to arrive from clients; ours replaces it once the service has spoken.
        let owned: Vec<HeaderName> = copy.iter().filter(|name| !send.contains(name)).cloned().collect();
        let filter = ExtAuth {
            url: url?,
            method: match config.method {
                AskWith::Get => Method::GET,
                AskWith::Head => Method::HEAD,
                AskWith::Post => Method::POST,
            },
            send,
            copy,
            copy_to_client,
            copy_from_denial,
            consumer_header,
            timeout,
            max_body: usize::try_from(config.max_body.get()).unwrap_or(usize::MAX),
            permits: Semaphore::new(config.max_in_flight as usize),
            allow_on_failure: config.on_failure == OnFailure::Allow,
            cache: config.cache.map(Remembered::new),
            directory: at.directory.clone(),
            lasting: at.lasting.clone(),
        };
        Some(Compiled::authenticator(filter).owning(owned))
    }
}

fn url(written: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(written).map_err(|error| {
        format!("`{written}` is not a URL ({error}); write one such as http://127.0.0.1:9002/verify")
    })?;
    match url.scheme() {
        "http" | "https" if url.has_host() && url.fragment().is_none() => Ok(url),
        _ => Err(format!("`{written}` is not an http:// or https:// URL")),
    }
}

fn names(list: &[String], path: &str, problems: &mut Problems) -> Box<[HeaderName]> {
    let mut names = Vec::with_capacity(list.len());
    for (i, written) in list.iter().enumerate() {
        match HeaderName::from_bytes(written.as_bytes()) {
            Ok(name) if NEVER_COPIED.contains(&name.as_str()) => {
                problems.add(format!("{path}[{i}]"), format!("`{name}` belongs to one connection and cannot go on"));
            }
            Ok(name) if written.contains('_') => {
                problems.add(format!("{path}[{i}]"), format!("`{name}`: origins may take `_` for `-`"));
            }
            Ok(name) => names.push(name),
            Err(_) => problems.add(format!("{path}[{i}]"), format!("`{written}` is not a name for a header")),
        }
    }
    names.into()
}

#[async_trait]
impl Authenticator for ExtAuth {
    fn authenticate(&self, request: &mut Request<'_>) -> Verdict {
        let Some(cache) = &self.cache else { return Verdict::Wait };
        match cache.get(&self.fingerprint(cache, request), Instant::now()) {
            Some(pass) => self.pass(&pass, request),
            None => Verdict::Wait,
        }
    }

    async fn authenticate_later(&self, request: &mut Request<'_>) -> Verdict {
        let question = self.question(request.head, request.exchange);
        let asked = tokio::time::timeout(self.timeout, self.ask(question)).await;
        match asked.unwrap_or(Err("the authority took too long")) {
            Ok(Said::Pass(pass)) => {
                if let Some(cache) = self.cache.as_ref().filter(|_| pass.to_client.is_empty()) {
                    cache.put(self.fingerprint(cache, request), &pass, Instant::now());
                }
                self.pass(&pass, request)
            }
            Ok(Said::Deny(answer)) => Verdict::Deny(answer),
            Err(_) if self.allow_on_failure => Verdict::Identified(Identity { anonymous: true, ..Identity::default() }),
            Err(why) => {
                request.exchange.cause = Some(why);
                Verdict::Unavailable(Error::new(Reason::AuthorityUnavailable))
            }
        }
    }

    /// What the service was shown may be meant for the origin too, and stays. What only the service says does not, also
    /// where it says nothing or was not asked.
    fn strip(&self, head: &mut RequestHeader) {
        for name in &self.copy {
            head.remove_header(name);
        }
    }

    fn challenge(&self) -> Option<HeaderValue> {
        None
    }
}

impl ExtAuth {
    fn pass(&self, pass: &Pass, request: &mut Request<'_>) -> Verdict {
        if self.consumer_header.is_some() && pass.consumer.is_none() {
            return Verdict::Invalid("the authority names no consumer that is known");
        }
        request.controls.caller_headers.extend(pass.to_origin.iter().cloned());
        request.controls.answer_headers.extend(pass.to_client.iter().cloned());
        let credential = match &pass.consumer {
            Some(consumer) => Credential::named(Self::NAME, consumer.name()),
            None => Credential::default(),
        };
        Verdict::Identified(Identity { consumer: pass.consumer.clone(), credential, ..Identity::default() })
    }

    /// The headers that the service is asked with.
    fn question(&self, head: &RequestHeader, exchange: &Exchange) -> HeaderMap {
        let mut question = HeaderMap::with_capacity(self.send.len() + 6);
        for name in &self.send {
            for value in head.headers.get_all(name) {
                question.append(name.clone(), value.clone());
            }
        }
        let mut address = String::new();
        write_address(exchange.client, &mut address);
        let method = head.method.as_str().as_bytes();
        for (name, value) in [
            ("x-forwarded-method", method),
            ("x-forwarded-proto", exchange.scheme.as_str().as_bytes()),
            ("x-forwarded-host", authority(head, exchange)),
            // As it was matched and will be forwarded: the service must not decide about another path.
            ("x-forwarded-uri", head.raw_path()),
            ("x-forwarded-for", address.as_bytes()),
            ("x-request-id", exchange.request_id.as_bytes()),
        ] {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                question.insert(HeaderName::from_static(name), value);
            }
        }
        question
    }

    async fn ask(&self, question: HeaderMap) -> Result<Said, NoAnswer> {
        let client = self.lasting.http().ok_or("the gateway has no client for HTTP")?;
        let _permit = self.permits.try_acquire().map_err(|_| "too many questions to the authority are on their way")?;
        let asked = client.request(self.method.clone(), self.url.clone()).headers(question).send().await;
        let answer = asked.map_err(|error| {
            // Without the URL, which may hold a secret.
            log::debug!("ext_auth: {}", error.without_url());
            "the authority gives no answer"
        })?;
        let status = answer.status();
        if status.is_server_error() || status.is_informational() {
            return Err("the authority has failed itself");
        }
        if !status.is_success() {
            return self.read_denial(answer).await.map(Said::Deny);
        }
        let pass = self.read_pass(answer.headers())?;
        // Only an answer that was read to its end leaves its connection for the next question.
        self.read_body(answer).await?;
        Ok(Said::Pass(Arc::new(pass)))
    }

    fn read_pass(&self, headers: &HeaderMap) -> Result<Pass, NoAnswer> {
        let consumer = match &self.consumer_header {
            None => None,
            Some(name) => {
                let mut named = headers.get_all(name).iter();
                match (named.next(), named.next()) {
                    (Some(name), None) => name.to_str().ok().and_then(|name| self.directory.consumer(name)).cloned(),
                    (None, _) => None,
                    (Some(_), Some(_)) => return Err("the authority names several consumers"),
                }
            }
        };
        Ok(Pass {
            consumer,
            to_origin: chosen(headers, &self.copy)?,
            to_client: chosen(headers, &self.copy_to_client)?,
        })
    }

    async fn read_denial(&self, answer: reqwest::Response) -> Result<Answer, NoAnswer> {
        let headers = chosen(answer.headers(), &self.copy_from_denial)?;
        let status = StatusCode::from_u16(answer.status().as_u16()).unwrap_or(StatusCode::FORBIDDEN);
        // A part of a page is worse than none.
        let body = self.read_body(answer).await?.unwrap_or_default();
        Ok(Answer { status, headers, body })
    }

    /// `None` if it is longer than it may be; the connection is given up with the rest of it.
    async fn read_body(&self, mut answer: reqwest::Response) -> Result<Option<Bytes>, NoAnswer> {
        let mut body = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.map_err(|_| "the authority's answer breaks off")? {
            if body.len() + chunk.len() > self.max_body {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body.freeze()))
    }

    /// Stands for all that the service would be told.
    fn fingerprint(&self, cache: &Remembered, request: &Request<'_>) -> Fingerprint {
        let mut digest = digest::Context::new(&digest::SHA256);
        let mut part = |bytes: &[u8]| {
            // With its length: two values must not be read as others.
            digest.update(&(bytes.len() as u64).to_be_bytes());
            digest.update(bytes);
        };
        for name in &self.send {
            let values = request.head.headers.get_all(name);
            part(&(values.iter().count() as u64).to_be_bytes());
            values.iter().for_each(|value| part(value.as_bytes()));
        }
        if !cache.any_request {
            let exchange = &*request.exchange;
            part(request.head.method.as_str().as_bytes());
            part(exchange.scheme.as_str().as_bytes());
            part(authority(request.head, exchange));
            part(request.head.raw_path());
            part(&exchange.client.to_canonical().to_string().into_bytes());
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest.finish().as_ref());
        fingerprint
    }
}

/// Host and port as the client named them.
fn authority<'r>(head: &'r RequestHeader, exchange: &'r Exchange) -> &'r [u8] {
    match (head.uri.authority(), head.headers.get(http::header::HOST)) {
        (Some(authority), _) => authority.as_str().as_bytes(),
        (None, Some(host)) => host.as_bytes(),
        (None, None) => exchange.host.as_bytes(),
    }
}

/// All values of the headers that go on.
fn chosen(headers: &HeaderMap, names: &[HeaderName]) -> Result<Vec<(HeaderName, HeaderValue)>, NoAnswer> {
    let mut chosen = Vec::new();
    let mut bytes = 0;
    for name in names {
        for value in headers.get_all(name) {
            bytes += name.as_str().len() + value.len() + 4;
            chosen.push((name.clone(), value.clone()));
        }
    }
    if bytes > MOST_COPIED { Err("the authority's headers are too large") } else { Ok(chosen) }
}

type Fingerprint = [u8; 32];

type Half = HashMap<Fingerprint, (Instant, Arc<Pass>)>;

/// Who was let pass, in two halves: when the young one is full the old one is forgotten, so that room is made at once
/// and what is in use stays.
struct Remembered {
    ttl: Duration,
    half: usize,
    any_request: bool,
    halves: Mutex<[Half; 2]>,
}

impl Remembered {
    fn new(config: Cache) -> Self {
        let half = (config.entries as usize / 2).max(1);
        Remembered { ttl: config.ttl.get(), half, any_request: config.any_request, halves: Mutex::default() }
    }

    fn get(&self, fingerprint: &Fingerprint, now: Instant) -> Option<Arc<Pass>> {
        let halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, pass) = halves.iter().find_map(|half| half.get(fingerprint))?;
        (now.saturating_duration_since(*since) < self.ttl).then(|| pass.clone())
    }

    fn put(&self, fingerprint: Fingerprint, pass: &Arc<Pass>, now: Instant) {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let [young, old] = &mut *halves;
        if young.len() >= self.half {
            *old = std::mem::take(young);
        }
        young.insert(fingerprint, (now, pass.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_ends() {
        let config = Cache { ttl: units::Duration::from_secs(10), entries: 100, any_request: false };
        let remembered = Remembered::new(config);
        let pass = Arc::new(Pass { consumer: None, to_origin: Vec::new(), to_client: Vec::new() });
        let began = Instant::now();
        for n in 0..1000u32 {
            let mut fingerprint = [0; 32];
            fingerprint[..4].copy_from_slice(&n.to_be_bytes());
            remembered.put(fingerprint, &pass, began);
            assert!(remembered.get(&fingerprint, began + Duration::from_secs(9)).is_some());
            assert!(remembered.get(&fingerprint, began + Duration::from_secs(10)).is_none());
        }
        let held: usize = remembered.halves.lock().unwrap().iter().map(HashMap::len).sum();
        assert!(held <= 100, "{held}");
    }

    #[test]
    fn only_urls_that_can_be_asked_are_taken() {
        for good in ["http://127.0.0.1:9002/verify", "https://auth.example/verify?realm=a", "http://[::1]:9002"] {
            assert!(url(good).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1:9002", "/verify", "ftp://a/", "file:///etc/passwd", "http://", "http://a/#b"] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }
}
