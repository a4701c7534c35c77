//! Identifies callers by tokens that only their authority can read: it is asked about each (RFC 7662).

use std::sync::Arc;

use async_trait::async_trait;
use http::HeaderValue;
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::credentials::{Place, Presented, WrittenPlace, presented};
use super::flights::Flights;
use super::grants::{ConsumerRule, Grants, WrittenConsumer, WrittenRoles};
use super::jwt::token::{LONGEST, Refusal};
use super::jwt::unix_now;
use super::remembered::{Digest, Remembered};
use super::{Authenticator, Verdict};
use crate::authority::{ClientAuth, ClientAuthMethod, Http, HttpOptions, Url, json};
use crate::config::SecretRef;
use crate::config::units::Duration;
use crate::error::{Error, Reason};
use crate::filters::filter::{Compiled, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::identity::{Claims, Credential, Identity};

/// The kind of [`Credential`] that tokens are.
const KIND: &str = "oauth2_introspection";

/// Identifies the caller by a token that its authority is asked about (RFC 7662). Answers are kept for a short time; while
/// the authority does not answer, tokens that are not known are answered 503: nobody is let in unverified.
///
/// ```yaml
/// oauth2_introspection:
///   endpoint: https://login.example.com/oauth2/introspect
///   client_id: headgate
///   client_secret: env:INTROSPECTION_SECRET
///   cache: 30s
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the authority is asked.
    pub endpoint: String,
    /// The gateway's name at the authority.
    #[schemars(length(min = 1))]
    pub client_id: String,
    /// What it proves that with.
    pub client_secret: SecretRef,
    /// How it does that: `client_secret_basic` (default) or `client_secret_post`.
    #[serde(default)]
    pub client_auth: ClientAuthMethod,
    /// The `iss` that the answer must have. Default: any, or none.
    pub issuer: Option<String>,
    /// The answer must name one of these in `aud`. Default: any, or none.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// How long a good answer is kept, and never beyond the token's own end: a token that was revoked may be accepted that
    /// long. Up to 1h; 0s asks each time. Default: 30s.
    #[serde(default = "cache")]
    pub cache: Duration,
    /// How long it is remembered that a token is no good. Up to 1h. Default: 10s.
    #[serde(default = "cache_negative")]
    pub cache_negative: Duration,
    /// How many tokens are remembered. Default: 16384.
    #[serde(default = "remember")]
    #[schemars(range(max = 1048576))]
    pub remember: u32,
    /// How many questions may be open at once; further tokens are answered 503. Default: 100.
    #[serde(default = "concurrency")]
    #[schemars(range(min = 1, max = 10000))]
    pub concurrency: u32,
    /// Where to look for the token: `bearer`, `header`, `query`, `cookie`. Default: bearer. Two that differ are refused.
    #[serde(default = "bearer")]
    pub from: Vec<WrittenPlace>,
    /// Whether the token goes on to the origin.
    #[serde(default)]
    pub keep: bool,
    /// Which consumer a token is of.
    #[serde(default)]
    pub consumer: WrittenConsumer,
    /// Scopes that callers must have, all of them, by the answer's `scope` or as consumers; others get 403.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Roles that callers must have, one of them; others get 403.
    pub roles: Option<WrittenRoles>,
    /// How the authority is called.
    #[serde(default)]
    pub http: HttpOptions,
}

fn cache() -> Duration {
    Duration::from_secs(30)
}

fn cache_negative() -> Duration {
    Duration::from_secs(10)
}

fn remember() -> u32 {
    16384
}

fn concurrency() -> u32 {
    100
}

fn bearer() -> Vec<WrittenPlace> {
    vec![WrittenPlace::Bearer]
}

pub struct Introspection {
    places: Box<[Place]>,
    keep: bool,
    /// `None` where filters are only compiled to be looked at.
    http: Option<Http>,
    inquiry: Arc<Inquiry>,
}

/// What questions are asked with, and their answers: it outlives requests that have given up waiting.
struct Inquiry {
    endpoint: Url,
    client: ClientAuth,
    issuer: Option<String>,
    audiences: Box<[String]>,
    cache: i64,
    cache_negative: i64,
    consumer: ConsumerRule,
    grants: Grants,
    remembered: Remembered<Answer>,
    /// Questions that are being asked.
    flights: Arc<Flights<Answer>>,
}

/// What the authority says of a token.
#[derive(Clone)]
enum Answer {
    Active {
        identity: Identity,
        sufficient: bool,
    },
    Refused(Refusal),
    /// It says nothing.
    None,
}

impl FilterKind for Introspection {
    const NAME: &'static str = "oauth2_introspection";
    const STAGE: Stage = Stage::Authenticate;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let before = at.problems.0.len();
        let path = at.path;
        let places = Place::compile_all(&config.from, &format!("{path}.from"), at.problems);
        for (name, time) in [("cache", config.cache), ("cache_negative", config.cache_negative)] {
            if time > Duration::from_secs(3600) {
                at.problems.add(format!("{path}.{name}"), "at most 1h: for as long, a revoked token is accepted");
            }
        }
        let (folder, environment) = (at.around.folder, at.around.environment);
        let secret = config.client_secret.resolve(folder, environment, &format!("{path}.client_secret"), at.problems);
        let endpoint = config.http.url(&config.endpoint, &format!("{path}.endpoint"), at.problems)?;
        let http = config.http.client(&endpoint, folder, at.lasting.background(), &format!("{path}.http"), at.problems);
        let grants = Grants::compile(config.scopes, config.roles, at);
        let inquiry = Inquiry {
            endpoint,
            client: ClientAuth { id: config.client_id, secret, method: config.client_auth },
            issuer: config.issuer,
            audiences: config.audiences.into(),
            cache: config.cache.get().as_secs() as i64,
            cache_negative: config.cache_negative.get().as_secs() as i64,
            consumer: ConsumerRule::new(&config.consumer, at.directory.clone()),
            grants,
            remembered: Remembered::new(config.remember as usize),
            flights: Flights::new(config.concurrency as usize),
        };
        let filter = Introspection { places, keep: config.keep, http, inquiry: Arc::new(inquiry) };
        (at.problems.0.len() == before).then(|| Compiled::authenticator(filter))
    }
}

impl Introspection {
    /// The token of a request, or what is said of it already.
    fn token(&self, head: &RequestHeader) -> Result<String, Verdict> {
        let token = match presented(head, &self.places) {
            Presented::Nothing => return Err(Verdict::Absent),
            Presented::Ambiguous => return Err(Verdict::Invalid("several tokens were presented")),
            Presented::One(token) => token,
        };
        if token.len() > LONGEST {
            return Err(Verdict::Invalid("the token is too long"));
        }
        // RFC 6749, appendix A.12: nobody has to be asked about anything else.
        match std::str::from_utf8(&token) {
            Ok(text) if !text.is_empty() && text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) => {
                Ok(text.to_owned())
            }
            _ => Err(Verdict::Invalid("this is not a token")),
        }
    }
}

impl Inquiry {
    fn verdict(&self, answer: &Answer) -> Verdict {
        match answer {
            Answer::Active { identity, sufficient: true } => Verdict::Identified(identity.clone()),
            Answer::Active { .. } => Verdict::Forbidden(self.grants.refusal()),
            Answer::Refused(why) => Verdict::Invalid(why),
            Answer::None => Verdict::Unavailable(Error::new(Reason::AuthorityUnavailable)),
        }
    }

    async fn ask(&self, http: &Http, digest: Digest, token: &str) -> Answer {
        let fields = [("token", token), ("token_type_hint", "access_token")];
        let reply = http.post_form(&self.endpoint, &fields, &self.client).await;
        let said = reply.and_then(|reply| match reply.status {
            200 => json::object(&reply.body).ok_or_else(|| "the answer is no JSON object".to_owned()),
            // RFC 7662, section 2.3: a token that is no good is no error.
            status => Err(format!("the answer is {status}")),
        });
        let now = unix_now();
        let (answer, until) = match said.and_then(|said| self.understand(said, now)) {
            Ok(understood) => understood,
            Err(error) => {
                log::warn!("introspection at {}: {error}", self.endpoint);
                return Answer::None;
            }
        };
        self.remembered.remember(digest, answer.clone(), until, now);
        answer
    }

    /// What an answer means, and up to which second it holds.
    fn understand(&self, mut said: serde_json::Map<String, Value>, now: i64) -> Result<(Answer, i64), String> {
        let refused = |why| Ok((Answer::Refused(why), now.saturating_add(self.cache_negative)));
        match said.remove("active") {
            Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => return refused("the authority says that the token is not active"),
            _ => return Err("the answer does not say whether the token is active".into()),
        }
        let expires = match said.get("exp") {
            None => i64::MAX,
            Some(Value::Number(time)) => time.as_f64().unwrap_or_default().ceil() as i64,
            Some(_) => return Err("`exp` of the answer is no number".into()),
        };
        if now >= expires {
            return refused("the token has expired");
        }
        if said.get("nbf").and_then(Value::as_f64).is_some_and(|begins| (now as f64) < begins) {
            return refused("the token is not valid yet");
        }
        let issuer = said.get("iss").and_then(Value::as_str).unwrap_or_default().to_owned();
        if self.issuer.as_ref().is_some_and(|wanted| *wanted != issuer) {
            return refused("the token is of another issuer");
        }
        let claims = Claims::new(said);
        let meant = |audience: &str| self.audiences.iter().any(|wanted| wanted == audience);
        let audience = match claims.get("aud") {
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).any(meant),
            Some(Value::String(one)) => meant(one),
            _ => false,
        };
        if !self.audiences.is_empty() && !audience {
            return refused("the token is for another audience");
        }
        let subject = self.consumer.subject(&claims);
        let bearer = subject.clone().or_else(|| claims.text("client_id")).unwrap_or_default();
        let credential = Credential::named(KIND, &format!("{issuer} {bearer}"));
        let consumer = match self.consumer.find(&issuer, subject.as_deref()) {
            Ok(consumer) => consumer,
            Err(why) => return refused(why),
        };
        let identity = Identity { consumer, credential, claims: Some(Arc::new(claims)), anonymous: false };
        let sufficient = self.grants.suffice(&identity);
        Ok((Answer::Active { identity, sufficient }, expires.min(now.saturating_add(self.cache))))
    }
}

#[async_trait]
impl Authenticator for Introspection {
    fn authenticate(&self, request: &mut Request<'_>) -> Verdict {
        let token = match self.token(request.head) {
            Ok(token) => token,
            Err(verdict) => return verdict,
        };
        let inquiry = &self.inquiry;
        let digest = inquiry.remembered.digest(token.as_bytes());
        let known = inquiry.remembered.find(&digest, unix_now(), |answer| inquiry.verdict(answer));
        known.unwrap_or(Verdict::Wait)
    }

    async fn authenticate_later(&self, request: &mut Request<'_>) -> Verdict {
        let token = match self.token(request.head) {
            Ok(token) => token,
            Err(verdict) => return verdict,
        };
        let digest = self.inquiry.remembered.digest(token.as_bytes());
        let Some(http) = self.http.clone() else { return self.inquiry.verdict(&Answer::None) };
        let background = http.background().clone();
        let inquiry = self.inquiry.clone();
        let ask = move || async move { inquiry.ask(&http, digest, &token).await };
        let answer = self.inquiry.flights.join(digest, &background, ask).await;
        self.inquiry.verdict(&answer.unwrap_or(Answer::None))
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
        Some(HeaderValue::from_static("Bearer error=\"invalid_token\""))
    }
}
