//! Identifies callers by the signatures of their requests: HTTP Message Signatures (RFC 9421).
//!
//! [`input`] reads which components are signed, [`message`] makes the text again that was signed, [`digest`] holds the
//! body to what was signed of it, and [`replays`] knows which signatures have been used.

mod digest;
mod input;
mod message;
mod replays;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

pub use replays::Replays;

use super::{Authenticator, Verdict};
use crate::config::units;
use crate::error::{Error, Reason};
use crate::filters::filter::{Compiled, Request};
use crate::filters::lasting::Lasting;
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::identity::{Credential, Directory, HmacEntry, Identity};
use digest::{CONTENT_DIGEST, Expected};
use input::{Part, SIGNATURE, SIGNATURE_INPUT, Signature};
use message::Message;
use replays::Refused;

/// How far a client's clock may be ahead of ours.
const AHEAD: i64 = 30;

/// Identifies the consumer by the signature of its request (RFC 9421), made with a shared secret (`hmac-sha256`) or a
/// private key (`ed25519`, `ecdsa-p256-sha256`, `ecdsa-p384-sha384`, `rsa-pss-sha512`). The key decides the algorithm.
///
/// A signature has to say when it was `created` and by which `keyid`, and to cover what `required` lists. It is good for
/// one request: a client that sends the same request twice in a second adds a `nonce`. A body has to be covered by
/// `Content-Digest` (RFC 9530), and its end reaches the origin only when it has proved right; otherwise the answer is 400.
/// Targets and hosts are taken in the form in which the gateway matches and forwards them, and if the signature is not of
/// that, the target as it was sent. Used signatures are remembered in memory only: after a restart, and at another node,
/// one may be used once more until its window ends.
///
/// ```yaml
/// hmac: { window: 5m }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How old a signature may be.
    pub window: units::Duration,
    /// What every signature has to cover: derived components and headers. `@query` counts where there is a query, and
    /// `content-digest` where there is a body; `@target-uri` covers `@scheme`, `@authority`, `@path` and `@query`, and
    /// `@request-target` covers the last two.
    pub required: Vec<String>,
    /// Only signatures with this `tag` count, so that one made for another purpose is none here. Default: any.
    pub tag: Option<String>,
    /// Whether `Signature` and `Signature-Input` go on to the origin.
    pub keep: bool,
}

impl Default for Config {
    fn default() -> Self {
        let required = ["@method", "@authority", "@path", "@query", "content-digest"];
        Config {
            window: units::Duration(Duration::from_secs(300)),
            required: required.map(str::to_owned).into(),
            tag: None,
            keep: false,
        }
    }
}

pub struct Hmac {
    /// In seconds.
    window: i64,
    required: Box<[Part]>,
    tag: Option<String>,
    keep: bool,
    directory: Arc<Directory>,
    lasting: Arc<Lasting>,
}

impl FilterKind for Hmac {
    const NAME: &'static str = "hmac";
    const STAGE: Stage = Stage::Authenticate;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let window = config.window.get().as_secs();
        // What is remembered of a longer one would not fit.
        let fits = (1..=3600).contains(&window);
        if !fits {
            at.problems.add(format!("{}.window", at.path), "write a time from one second to an hour");
        }
        let mut required = Vec::with_capacity(config.required.len());
        for (i, name) in config.required.iter().enumerate() {
            match component(name) {
                Some(part) => required.push(part),
                None => {
                    let message =
                        format!("`{name}` is neither a header in lower case nor a component such as `@method`");
                    at.problems.add(format!("{}.required[{i}]", at.path), message);
                }
            }
        }
        let complete = fits && required.len() == config.required.len();
        complete.then(|| {
            Compiled::authenticator(Hmac {
                window: window as i64,
                required: required.into(),
                tag: config.tag,
                keep: config.keep,
                directory: at.directory.clone(),
                lasting: at.lasting.clone(),
            })
        })
    }
}

/// A component that can be required of every request.
fn component(name: &str) -> Option<Part> {
    Some(match name {
        "@method" => Part::Method,
        "@target-uri" => Part::TargetUri,
        "@authority" => Part::Authority,
        "@scheme" => Part::Scheme,
        "@request-target" => Part::RequestTarget,
        "@path" => Part::Path,
        "@query" => Part::Query,
        name if name.bytes().any(|byte| byte.is_ascii_uppercase()) => return None,
        name => Part::Field(HeaderName::from_bytes(name.as_bytes()).ok()?),
    })
}

impl Hmac {
    /// Tries the signatures in their order; the first that is good identifies the caller.
    fn verify(&self, request: &mut Request<'_>) -> Verdict {
        let signatures = match input::read(&request.head.headers) {
            None => return Verdict::Absent,
            Some(Err(why)) => return Verdict::Invalid(why),
            Some(Ok(signatures)) => signatures,
        };
        let mut first = None;
        for signature in signatures {
            let verdict = match signature {
                Ok(signature) => self.try_one(&signature, request).unwrap_or_else(Verdict::Invalid),
                Err(why) => Verdict::Invalid(why),
            };
            if !matches!(verdict, Verdict::Invalid(_)) {
                return verdict;
            }
            first.get_or_insert(verdict);
        }
        first.unwrap_or(Verdict::Invalid("there is no signature"))
    }

    fn try_one(&self, signature: &Signature, request: &mut Request<'_>) -> Result<Verdict, &'static str> {
        if self.tag.is_some() && signature.tag != self.tag {
            return Err("the signature has another tag");
        }
        let directory = self.directory.clone();
        let entry = directory.hmac(&signature.key_id).ok_or("the signing key is unknown")?;
        // RFC 9421, section 3.2: whatever says what the algorithm is has to agree.
        if signature.algorithm.as_deref().is_some_and(|algorithm| algorithm != entry.key.algorithm()) {
            return Err("the signature names another algorithm than its key has");
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let until = self.valid_until(signature, now)?;
        let has_body = request.exchange.has_body;
        let signed = self.signed(signature, entry, request)?;
        let covers_body = signature.components.iter().any(|component| match &component.part {
            Part::Field(name) | Part::Member(name, _) | Part::Binary(name) => *name == CONTENT_DIGEST,
            _ => false,
        });
        let expected = covers_body.then(|| Expected::read(&request.head.headers)).transpose()?;
        if !has_body && expected.as_ref().is_some_and(|expected| !expected.is_of_nothing()) {
            return Err("the body that was signed is not there");
        }
        // Last: whoever cannot sign must not be able to use up a signature.
        match self.lasting.signatures.accept(mark(&signed), until, now) {
            Ok(()) => {}
            Err(Refused::SeenBefore) => return Err("the signature was used before"),
            Err(Refused::NoRoom) => {
                let error = Error::new(Reason::AuthorityUnavailable);
                return Ok(Verdict::Unavailable(error.header(RETRY_AFTER, HeaderValue::from_static("5"))));
            }
        }
        if let (true, Some(expected)) = (has_body, expected) {
            request.controls.request_body.push(Box::new(expected.check()));
        }
        let credential = Credential::named(Hmac::NAME, &signature.key_id);
        Ok(Verdict::Identified(Identity::of(entry.consumer.clone(), credential)))
    }

    /// The last second at which the signature would be accepted.
    fn valid_until(&self, signature: &Signature, now: i64) -> Result<i64, &'static str> {
        let created = signature.created.ok_or("the signature does not say when it was created")?;
        if created > now.saturating_add(AHEAD) {
            return Err("the signature was created in the future");
        }
        // Integers of structured fields have fifteen digits at most.
        let until = created.saturating_add(self.window);
        if until < now {
            return Err("the signature is too old");
        }
        if signature.expires.is_some_and(|expires| expires <= now) {
            return Err("the signature has expired");
        }
        Ok(until)
    }

    /// The text whose signature it is, if it covers all that it has to.
    fn signed(&self, signature: &Signature, entry: &HmacEntry, request: &Request<'_>) -> Result<Vec<u8>, &'static str> {
        let message = Message::canonical(request.head, request.exchange);
        for part in &self.required {
            if !covers(signature, part, message.has_query(), request.exchange.has_body) {
                return Err("the signature does not cover all that it has to");
            }
        }
        let canonical = message.base(signature)?;
        if entry.key.verify(&canonical, &signature.bytes) {
            return Ok(canonical);
        }
        // What was sent means what is forwarded: the gateway makes the one from the other and from nothing else. The mark
        // is that of the canonical form all the same, so that one request is not accepted once in each form.
        let sent = message.with_sent_target(request.exchange).and_then(|message| message.base(signature).ok());
        match sent.is_some_and(|sent| entry.key.verify(&sent, &signature.bytes)) {
            true => Ok(canonical),
            false => Err("the signature is wrong"),
        }
    }
}

/// Whether a signature covers what it has to. A member of a field does not stand for the whole of it, except that one
/// digest is as good as all.
fn covers(signature: &Signature, part: &Part, has_query: bool, has_body: bool) -> bool {
    let any = |parts: &[Part]| parts.iter().any(|part| signature.covers(part));
    match part {
        Part::Query if !has_query => true,
        Part::Path | Part::Query => any(&[part.clone(), Part::TargetUri, Part::RequestTarget]),
        Part::Scheme | Part::Authority => any(&[part.clone(), Part::TargetUri]),
        Part::Field(name) if *name == CONTENT_DIGEST => {
            let member = |name: &str| Part::Member(CONTENT_DIGEST, name.to_owned());
            !has_body || any(&[part.clone(), member("sha-256"), member("sha-512"), Part::Binary(CONTENT_DIGEST)])
        }
        Part::Field(name) => any(&[part.clone(), Part::Binary(name.clone())]),
        part => signature.covers(part),
    }
}

/// Of what was signed and not of the signature: with some algorithms anybody can make another signature out of one.
fn mark(signed: &[u8]) -> replays::Mark {
    let digest = ring::digest::digest(&ring::digest::SHA256, signed);
    let mut mark = replays::Mark::default();
    for (to, from) in mark.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    mark
}

#[async_trait]
impl Authenticator for Hmac {
    fn authenticate(&self, request: &mut Request<'_>) -> Verdict {
        let headers = &request.head.headers;
        match headers.contains_key(SIGNATURE) || headers.contains_key(SIGNATURE_INPUT) {
            // A signature may be looked at once only, and this may be called again when another filter has to wait.
            true => Verdict::Wait,
            false => Verdict::Absent,
        }
    }

    async fn authenticate_later(&self, request: &mut Request<'_>) -> Verdict {
        self.verify(request)
    }

    fn strip(&self, head: &mut RequestHeader) {
        for name in [SIGNATURE, SIGNATURE_INPUT].iter().filter(|_| !self.keep) {
            if head.headers.contains_key(name) {
                head.remove_header(name);
            }
        }
    }

    /// No scheme is registered; the word is the one that clients of the drafts know.
    fn challenge(&self) -> Option<HeaderValue> {
        Some(HeaderValue::from_static("Signature"))
    }
}
