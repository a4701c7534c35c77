//! Bounds the size of request bodies.

use http::header::CONTENT_LENGTH;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::units::Size;
use crate::error::Reason;
use crate::filters::filter::{Compiled, Flow, OnRequest, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;

/// Answers 413 to request bodies longer than `size`: at once if the length is declared, else when the count passes it,
/// and then the origin's connection is dropped, so that it never takes a part for the whole.
///
/// ```yaml
/// body_limit:
///   size: 10MiB
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The longest body let through.
    pub size: Size,
}

pub struct BodyLimit {
    bytes: u64,
}

impl FilterKind for BodyLimit {
    const NAME: &'static str = "body_limit";
    const STAGE: Stage = Stage::Guard;
    type Config = Config;

    fn compile(config: Config, _: &mut Site<'_>) -> Option<Compiled> {
        Some(Compiled::on_request(BodyLimit { bytes: config.size.get() }))
    }
}

impl OnRequest for BodyLimit {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        let declared = request.head.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|length| length > self.bytes) {
            return Flow::Refuse(Reason::BodyTooLarge.into());
        }
        request.controls.body_limit = Some(self.bytes);
        Flow::Continue
    }
}
