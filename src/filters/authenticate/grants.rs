//! What a token has to say of its bearer: whose it is, and what it may be used for.

use std::sync::Arc;

use http::HeaderValue;
use http::header::WWW_AUTHENTICATE;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Reason};
use crate::filters::registry::Site;
use crate::identity::{Claims, Consumer, Directory, Identity};

/// Which consumer a token is of.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenConsumer {
    /// The claim that says it; nested ones with dots. Default: `sub`.
    pub claim: String,
    /// What its value is. Default: `subject`.
    pub by: ConsumerKey,
    /// Whether tokens that belong to no consumer are refused. Default: true. Without it, whoever the issuer has given a
    /// token to is let in.
    pub required: bool,
}

/// What consumers are found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConsumerKey {
    /// The `subject` of a consumer's `jwt` credentials.
    Subject,
    /// The consumer's name.
    Name,
}

impl Default for WrittenConsumer {
    fn default() -> Self {
        WrittenConsumer { claim: "sub".into(), by: ConsumerKey::Subject, required: true }
    }
}

/// Roles that callers must have.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrittenRoles {
    /// The claim that lists them, such as `realm_access.roles`. Default: `roles`.
    #[serde(default = "roles")]
    pub claim: String,
    /// One of these is enough.
    #[schemars(length(min = 1))]
    pub any: Vec<String>,
}

fn roles() -> String {
    "roles".into()
}

/// The compiled form of a [`WrittenConsumer`].
pub struct ConsumerRule {
    claim: String,
    by: ConsumerKey,
    required: bool,
    directory: Arc<Directory>,
}

impl ConsumerRule {
    pub fn new(written: &WrittenConsumer, directory: Arc<Directory>) -> Self {
        ConsumerRule { claim: written.claim.clone(), by: written.by, required: written.required, directory }
    }

    /// Who the claims are about. Lists say nothing: their parts could be put together to another's name.
    pub fn subject(&self, claims: &Claims) -> Option<String> {
        match claims.get(&self.claim)? {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// The consumer of a subject; none where none is required.
    pub fn find(&self, issuer: &str, subject: Option<&str>) -> Result<Option<Arc<Consumer>>, &'static str> {
        let find = |subject: &str| match self.by {
            ConsumerKey::Subject => self.directory.jwt_subject(issuer, subject),
            ConsumerKey::Name => self.directory.consumer(subject),
        };
        match subject.and_then(find) {
            Some(consumer) => Ok(Some(consumer.clone())),
            None if self.required => Err("the token belongs to no consumer"),
            None => Ok(None),
        }
    }
}

/// What a token must be good for.
pub struct Grants {
    scopes: Box<[String]>,
    roles: Option<WrittenRoles>,
    /// What is asked for, as RFC 6750, section 3, writes it.
    challenge: HeaderValue,
}

impl Grants {
    pub fn compile(scopes: Vec<String>, roles: Option<WrittenRoles>, at: &mut Site<'_>) -> Self {
        // RFC 6749, section 3.3.
        let valid = |scope: &str| {
            !scope.is_empty() && scope.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
        };
        for (i, scope) in scopes.iter().enumerate().filter(|(_, scope)| !valid(scope)) {
            at.problems.add(format!("{}.scopes[{i}]", at.path), format!("`{scope}` is not a scope"));
        }
        let mut text = "Bearer error=\"insufficient_scope\"".to_owned();
        if !scopes.is_empty() {
            text += &format!(", scope=\"{}\"", scopes.join(" "));
        }
        let challenge = HeaderValue::from_str(&text);
        let challenge = challenge.unwrap_or(HeaderValue::from_static("Bearer error=\"insufficient_scope\""));
        Grants { scopes: scopes.into(), roles, challenge }
    }

    pub fn suffice(&self, identity: &Identity) -> bool {
        let role = |roles: &WrittenRoles| {
            let claims = identity.claims.as_deref();
            claims.is_some_and(|claims| claims.words(&roles.claim).any(|own| roles.any.iter().any(|role| role == own)))
        };
        self.scopes.iter().all(|scope| identity.has_scope(scope)) && self.roles.as_ref().is_none_or(role)
    }

    /// The answer to a token that is good, and not good enough.
    pub fn refusal(&self) -> Error {
        let detail = "the token does not allow this";
        Error::with(Reason::Forbidden, detail).header(WWW_AUTHENTICATE, self.challenge.clone())
    }
}
