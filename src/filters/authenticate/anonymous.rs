//! Lets in callers that present no credentials, as a consumer of their own or as nobody.

use std::sync::Arc;

use http::HeaderValue;
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Authenticator, Verdict};
use crate::filters::filter::{Compiled, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::identity::{Consumer, Credential, Identity};

/// Lets in callers without credentials. Who presents bad ones is refused all the same: such a caller would not learn that
/// they are bad. It comes after every other filter that authenticates, wherever it is written.
///
/// ```yaml
/// anonymous: { consumer: guest }
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The consumer that such callers are, with its team, subscriptions and limits. Default: none.
    pub consumer: Option<String>,
}

pub struct Anonymous {
    consumer: Option<Arc<Consumer>>,
}

impl FilterKind for Anonymous {
    const NAME: &'static str = "anonymous";
    const STAGE: Stage = Stage::Authenticate;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let Some(name) = config.consumer else {
            return Some(Compiled::authenticator(Anonymous { consumer: None }));
        };
        let consumer = at.directory.consumer(&name).cloned();
        if consumer.is_none() {
            let known = at.directory.consumers().map(|consumer| consumer.name());
            at.problems.unknown(format!("{}.consumer", at.path), "consumer", &name, known);
        }
        Some(Compiled::authenticator(Anonymous { consumer: Some(consumer?) }))
    }
}

impl Authenticator for Anonymous {
    fn authenticate(&self, _: &mut Request<'_>) -> Verdict {
        let (consumer, credential) = (self.consumer.clone(), Credential::default());
        Verdict::Identified(Identity { consumer, credential, claims: None, anonymous: true })
    }

    fn strip(&self, _: &mut RequestHeader) {}

    fn challenge(&self) -> Option<HeaderValue> {
        None
    }

    fn is_fallback(&self) -> bool {
        true
    }
}
