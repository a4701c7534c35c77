//! Identifies callers by API keys.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::credentials::{Place, Presented, WrittenPlace, presented};
use super::{Authenticator, Verdict};
use crate::filters::filter::{Compiled, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::identity::{Directory, Identity, api_key};

/// Identifies the consumer by a key of `headgate key create`. Keys are kept as keyed hashes only, and are taken out of the
/// request before it goes on.
///
/// ```yaml
/// api_key:
///   from: [{ header: x-api-key }, bearer]
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to look for the key: `bearer`, `header`, `query`, `cookie`. Two keys that differ are refused.
    pub from: Vec<WrittenPlace>,
    /// Whether the key goes on to the origin.
    pub keep: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { from: vec![WrittenPlace::Header("x-api-key".into())], keep: false }
    }
}

pub struct ApiKey {
    places: Box<[Place]>,
    keep: bool,
    directory: Arc<Directory>,
}

impl FilterKind for ApiKey {
    const NAME: &'static str = "api_key";
    const STAGE: Stage = Stage::Authenticate;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let places = Place::compile_all(&config.from, &format!("{}.from", at.path), at.problems);
        Some(Compiled::authenticator(ApiKey { places, keep: config.keep, directory: at.directory.clone() }))
    }
}

impl Authenticator for ApiKey {
    fn authenticate(&self, request: &mut Request<'_>) -> Verdict {
        let key = match presented(request.head, &self.places) {
            Presented::Nothing => return Verdict::Absent,
            Presented::Ambiguous => return Verdict::Invalid("several API keys were presented"),
            Presented::One(key) if key.len() > api_key::LONGEST => return Verdict::Invalid("the API key is too long"),
            Presented::One(key) => key,
        };
        // Unknown and expired keys take the same way, so that neither the answer nor its time tells them apart.
        let found = self.directory.api_key(&key);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(i64::MAX, |since| since.as_secs() as i64);
        match found {
            Some(found) if now < found.expires => {
                Verdict::Identified(Identity::of(found.consumer.clone(), found.hash.credential()))
            }
            Some(_) => Verdict::Invalid("the API key has expired"),
            None => Verdict::Invalid("the API key is unknown"),
        }
    }

    fn strip(&self, head: &mut RequestHeader) {
        if !self.keep {
            self.places.iter().for_each(|place| place.strip(head));
        }
    }

    fn challenge(&self) -> Option<HeaderValue> {
        // No scheme is registered for keys in a header of their own; `Bearer` is right where that is accepted.
        Some(match self.places.contains(&Place::Bearer) {
            true => HeaderValue::from_static("Bearer"),
            false => HeaderValue::from_static("ApiKey"),
        })
    }
}
