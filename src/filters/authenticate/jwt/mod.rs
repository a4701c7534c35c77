//! Identifies callers by JSON Web Tokens.

mod issuer;
pub mod keys;
pub mod token;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use http::HeaderValue;
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use self::issuer::{Issuer, Source};
pub use self::issuer::{WrittenAlgorithm, WrittenIssuer};
use self::keys::{Choice, Keys};
use self::token::{Refusal, Token};
use super::credentials::{Place, Presented, WrittenPlace, presented};
use super::grants::{ConsumerRule, Grants, WrittenConsumer, WrittenRoles};
use super::remembered::Remembered;
use super::{Authenticator, Verdict};
use crate::config::units;
use crate::error::{Error, Reason};
use crate::filters::filter::{Compiled, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::identity::{Claims, Credential, Identity};

/// The kind of [`Credential`] that tokens are.
const KIND: &str = "jwt";

/// RFC 8725 has no figure; more than a minute is no skew but a clock that is wrong.
const MOST_LEEWAY: Duration = Duration::from_secs(60);

/// Identifies the caller by a token that an issuer has signed (RFC 7519). Signature, issuer, audience and times are always
/// checked, by the rules of RFC 8725; a token that was verified is remembered until it expires.
///
/// ```yaml
/// jwt:
///   issuers:
///     - issuer: https://login.example.com
///       audiences: [orders]
///       algorithms: [RS256]
///       jwks_url: https://login.example.com/.well-known/jwks.json
///   scopes: [orders:read]
/// ```
///
/// While an issuer's keys could not be fetched yet, its tokens are answered 503: nobody is let in unverified.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whose tokens are accepted.
    #[schemars(length(min = 1))]
    pub issuers: Vec<WrittenIssuer>,
    /// Where to look for the token: `bearer`, `header`, `query`, `cookie`. Default: bearer. Two that differ are refused.
    #[serde(default = "bearer")]
    pub from: Vec<WrittenPlace>,
    /// Whether the token goes on to the origin.
    #[serde(default)]
    pub keep: bool,
    /// How far clocks may be apart, up to 60s. Default: 0.
    #[serde(default = "no_time")]
    pub leeway: units::Duration,
    /// The `typ` that tokens must have, such as `at+jwt` (RFC 9068). Default: any.
    pub typ: Option<String>,
    /// Claims that tokens must have besides `iss`, `aud` and `exp`.
    #[serde(default)]
    pub required_claims: Vec<String>,
    /// Which consumer a token is of.
    #[serde(default)]
    pub consumer: WrittenConsumer,
    /// Scopes that callers must have, all of them, by the token's `scope` or `scp` or as consumers; others get 403.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Roles that callers must have, one of them; others get 403.
    pub roles: Option<WrittenRoles>,
    /// How many verified tokens are remembered; each takes about 2 KiB. Default: 16384.
    #[serde(default = "remember")]
    #[schemars(range(max = 1048576))]
    pub remember: u32,
    /// How long a request waits for keys that are being fetched. Default: 1s.
    #[serde(default = "wait")]
    pub wait: units::Duration,
}

fn bearer() -> Vec<WrittenPlace> {
    vec![WrittenPlace::Bearer]
}

fn no_time() -> units::Duration {
    units::Duration::from_secs(0)
}

fn remember() -> u32 {
    16384
}

fn wait() -> units::Duration {
    units::Duration::from_secs(1)
}

pub struct Jwt {
    issuers: Box<[Issuer]>,
    places: Box<[Place]>,
    keep: bool,
    leeway: i64,
    typ: Option<String>,
    required_claims: Box<[String]>,
    consumer: ConsumerRule,
    grants: Grants,
    remembered: Remembered<Verified>,
    wait: Duration,
}

impl FilterKind for Jwt {
    const NAME: &'static str = "jwt";
    const STAGE: Stage = Stage::Authenticate;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let before = at.problems.0.len();
        let places = Place::compile_all(&config.from, &format!("{}.from", at.path), at.problems);
        if config.leeway.get() > MOST_LEEWAY {
            at.problems.add(format!("{}.leeway", at.path), "at most 60s: set the clocks instead");
        }
        if config.wait.get() > Duration::from_secs(10) {
            at.problems.add(format!("{}.wait", at.path), "at most 10s: callers would pile up");
        }
        let mut issuers: Vec<Issuer> = Vec::with_capacity(config.issuers.len());
        for (i, written) in config.issuers.iter().enumerate() {
            let path = format!("{}.issuers[{i}]", at.path);
            if issuers.iter().any(|known| known.name == written.issuer) {
                at.problems.add(format!("{path}.issuer"), format!("`{}` is written twice", written.issuer));
            }
            issuers.extend(Issuer::compile(written, &path, at));
        }
        let jwt = Jwt {
            issuers: issuers.into(),
            places,
            keep: config.keep,
            leeway: config.leeway.get().as_secs() as i64,
            typ: config.typ,
            required_claims: config.required_claims.into(),
            consumer: ConsumerRule::new(&config.consumer, at.directory.clone()),
            grants: Grants::compile(config.scopes, config.roles, at),
            remembered: Remembered::new(config.remember as usize),
            wait: config.wait.get(),
        };
        (at.problems.0.len() == before).then(|| Compiled::authenticator(jwt))
    }
}

/// What was found out about a token.
struct Verified {
    /// Which issuer it is from, and the revision of the keys it was verified with.
    issuer: usize,
    revision: u64,
    identity: Identity,
    /// Whether it may be used here; it is a good token in any case.
    sufficient: bool,
}

/// What came of a token that was not known.
enum Failed {
    Invalid(Refusal),
    /// Its issuer has a fetch of keys on the way that may bring the one that is needed.
    Wait(usize),
    /// Its issuer's keys are not there.
    Unavailable,
}

impl From<Refusal> for Failed {
    fn from(why: Refusal) -> Self {
        Failed::Invalid(why)
    }
}

impl Jwt {
    fn judge(&self, token: &[u8], now: i64) -> Result<Verdict, Failed> {
        // Nobody has to hash what is no token.
        if token.len() > token::LONGEST {
            return Err(Failed::Invalid("the token is too long"));
        }
        let digest = self.remembered.digest(token);
        let look = |known: &Verified| self.is_current(known).then(|| self.verdict(known));
        if let Some(verdict) = self.remembered.find(&digest, now, look).flatten() {
            return Ok(verdict);
        }
        let (verified, until) = self.verify(token, now)?;
        let verdict = self.verdict(&verified);
        self.remembered.remember(digest, verified, until, now);
        Ok(verdict)
    }

    /// Whether the keys that it was verified with are still those of its issuer.
    fn is_current(&self, known: &Verified) -> bool {
        self.issuers.get(known.issuer).is_some_and(|own| own.keys.revision() == known.revision)
    }

    fn verdict(&self, verified: &Verified) -> Verdict {
        match verified.sufficient {
            true => Verdict::Identified(verified.identity.clone()),
            false => Verdict::Forbidden(self.grants.refusal()),
        }
    }

    /// Finds out whether a token is good, and the second from which on it is not.
    fn verify(&self, token: &[u8], now: i64) -> Result<(Verified, i64), Failed> {
        let token = Token::read(token)?;
        let issuer = token.text("iss").and_then(|name| self.issuers.iter().position(|known| known.name == name));
        let index = issuer.ok_or("the token is of an unknown issuer")?;
        let issuer = &self.issuers[index];
        if !issuer.algorithms.contains(&token.algorithm) {
            return Err(Failed::Invalid("the token's algorithm is not accepted"));
        }
        let revision = match &issuer.keys {
            Source::Written(keys) => {
                signed(&token, keys)?.ok_or("the token is signed with an unknown key")?;
                0
            }
            Source::Published(keys) => {
                let Some(current) = keys.current() else {
                    return Err(if keys.begins() { Failed::Wait(index) } else { Failed::Unavailable });
                };
                if signed(&token, &current.value)?.is_none() {
                    return Err(match keys.ask() {
                        true => Failed::Wait(index),
                        false => Failed::Invalid("the token is signed with an unknown key"),
                    });
                }
                current.revision
            }
        };
        let until = self.check(&token, issuer, now)?;
        let claims = Claims::new(token.claims);
        let subject = self.consumer.subject(&claims);
        let credential =
            Credential::named(KIND, &format!("{} {}", issuer.name, subject.as_deref().unwrap_or_default()));
        let consumer = self.consumer.find(&issuer.name, subject.as_deref())?;
        let identity = Identity { consumer, credential, claims: Some(Arc::new(claims)), anonymous: false };
        let sufficient = self.grants.suffice(&identity);
        Ok((Verified { issuer: index, revision, identity, sufficient }, until))
    }

    /// Checks what a token says that is signed by its issuer; returns the second from which on it is refused.
    fn check(&self, token: &Token<'_>, issuer: &Issuer, now: i64) -> Result<i64, Refusal> {
        if self.typ.as_deref().is_some_and(|kind| !token.is_of_kind(kind)) {
            return Err("the token is of another type");
        }
        let until = token.valid_until(now, self.leeway)?;
        if !token.is_for(&issuer.audiences) {
            return Err("the token is for another audience");
        }
        let has = |claim: &String| token.claims.get(claim).is_some_and(|value| !value.is_null());
        match self.required_claims.iter().all(has) {
            true => Ok(until),
            false => Err("the token lacks a claim that is required"),
        }
    }

    /// Runs `judge` on what the request presents.
    fn look(&self, head: &RequestHeader) -> Result<Verdict, Failed> {
        match presented(head, &self.places) {
            Presented::Nothing => Ok(Verdict::Absent),
            Presented::Ambiguous => Err(Failed::Invalid("several tokens were presented")),
            Presented::One(token) => self.judge(&token, unix_now()),
        }
    }
}

/// Verifies the signature; `None` if the keys lack the one that the token names.
fn signed(token: &Token<'_>, keys: &Keys) -> Result<Option<()>, Refusal> {
    match keys.choose(token.key_id.as_deref(), token.algorithm) {
        Choice::Key(key) if token.is_signed_by(key) => Ok(Some(())),
        Choice::Key(_) => Err("the token's signature is wrong"),
        Choice::Unknown => Ok(None),
        Choice::Unfit => Err("the token's algorithm is not that of its key"),
        Choice::Ambiguous => Err("the token does not say which key it is signed with"),
    }
}

/// Seconds since 1970.
pub fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(i64::MAX, |since| since.as_secs() as i64)
}

#[async_trait]
impl Authenticator for Jwt {
    fn authenticate(&self, request: &mut Request<'_>) -> Verdict {
        match self.look(request.head) {
            Ok(verdict) => verdict,
            Err(Failed::Invalid(why)) => Verdict::Invalid(why),
            Err(Failed::Wait(_)) => Verdict::Wait,
            Err(Failed::Unavailable) => unavailable(),
        }
    }

    async fn authenticate_later(&self, request: &mut Request<'_>) -> Verdict {
        let outcome = match self.look(request.head) {
            Err(Failed::Wait(issuer)) => {
                if let Some(Source::Published(keys)) = self.issuers.get(issuer).map(|issuer| &issuer.keys) {
                    keys.settled(self.wait).await;
                }
                self.look(request.head)
            }
            outcome => outcome,
        };
        match outcome {
            Ok(verdict) => verdict,
            Err(Failed::Invalid(why)) => Verdict::Invalid(why),
            // The fetch takes longer than anybody may wait.
            Err(Failed::Wait(issuer)) if self.has_keys(issuer) => {
                Verdict::Invalid("the token is signed with an unknown key")
            }
            Err(Failed::Wait(_) | Failed::Unavailable) => unavailable(),
        }
    }

    fn strip(&self, head: &mut RequestHeader) {
        if !self.keep {
            self.places.iter().for_each(|place| place.strip(head));
        }
    }

    fn challenge(&self) -> Option<HeaderValue> {
        Some(HeaderValue::from_static("Bearer"))
    }

    fn challenge_to_invalid(&self) -> Option<HeaderValue> {
        // RFC 6750, section 3.1.
        Some(HeaderValue::from_static("Bearer error=\"invalid_token\""))
    }
}

impl Jwt {
    fn has_keys(&self, issuer: usize) -> bool {
        match self.issuers.get(issuer).map(|issuer| &issuer.keys) {
            Some(Source::Published(keys)) => keys.current().is_some(),
            _ => true,
        }
    }
}

fn unavailable() -> Verdict {
    Verdict::Unavailable(Error::new(Reason::AuthorityUnavailable))
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    use serde_json::json;

    use super::*;
    use crate::filters::filter::Controls;
    use crate::filters::registry::compile_alone;
    use crate::telemetry::exchange;

    /// A key in a file, which goes away with it, and tokens of its owner.
    struct Owner {
        file: std::path::PathBuf,
        key: EncodingKey,
    }

    impl Owner {
        fn new() -> Self {
            let pair = rcgen::KeyPair::generate().unwrap();
            let file = std::env::temp_dir().join(format!("headgate-jwt-{:016x}", fastrand::u64(..)));
            std::fs::write(&file, pair.public_key_pem()).unwrap();
            Owner { file, key: EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap() }
        }

        fn filter(&self) -> Arc<dyn Authenticator> {
            let issuer = json!({ "issuer": "i", "audiences": ["a"], "algorithms": ["ES256"], "public_key": self.file });
            let config = json!({ "issuers": [issuer], "consumer": { "required": false } });
            let (compiled, problems) = compile_alone::<Jwt>(serde_json::from_value(config).unwrap());
            compiled.and_then(|compiled| compiled.authenticator).unwrap_or_else(|| panic!("{problems}"))
        }

        fn request(&self, padding: usize) -> RequestHeader {
            let claims = json!({ "iss": "i", "aud": "a", "exp": i64::MAX, "sub": "u", "pad": "x".repeat(padding) });
            let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key).unwrap();
            let mut head = RequestHeader::build("GET", b"/", None).unwrap();
            head.insert_header("authorization", format!("Bearer {token}")).unwrap();
            head
        }
    }

    impl Drop for Owner {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.file);
        }
    }

    #[test]
    #[ignore = "a measurement: CARGO_PROFILE_DEV_OPT_LEVEL=3 cargo test --lib -- --ignored --nocapture measure_a_token"]
    fn measure_a_token_at_first_sight_and_again() {
        let owner = Owner::new();
        for padding in [150, 450, 1050] {
            let mut heads: Vec<_> = (0..100).map(|n| owner.request(padding + n)).collect();
            let (mut exchange, mut controls) = (exchange::tests::exchange(), Controls::default());
            let filter = owner.filter();
            let mut round = |times: u32| {
                let started = std::time::Instant::now();
                for _ in 0..times {
                    for head in &mut heads {
                        let mut request = Request { head, exchange: &mut exchange, controls: &mut controls };
                        let verdict = std::hint::black_box(filter.authenticate(&mut request));
                        assert!(matches!(verdict, Verdict::Identified(_)));
                    }
                }
                started.elapsed() / times / 100
            };
            let first = round(1);
            // The best of several: whatever else runs here only adds to it.
            let again = (0..20).map(|_| round(500)).min();
            let length = heads[0].headers["authorization"].len() - "Bearer ".len();
            println!("a token of {length} bytes: {first:?} at first sight, {:?} again", again.unwrap_or_default());
        }
    }
}
