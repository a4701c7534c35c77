//! Gives a route time limits of its own.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::units::Duration;
use crate::filters::filter::{Compiled, Flow, OnRequest, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::upstream::Timeouts;

/// Time limits on the origin that replace those of the upstream for the requests that pass here. What is left out keeps
/// the upstream's. A limit that passes before the answer began is answered 504; later, the answer is cut off.
///
/// ```yaml
/// timeout:
///   first_byte: 2s
///   total: 10s
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// For a connection to be made, TLS included.
    pub connect: Option<Duration>,
    /// For the answer to begin, after the request was sent.
    pub first_byte: Option<Duration>,
    /// Between two pieces of the answer.
    pub idle: Option<Duration>,
    /// For the whole exchange, retries included.
    pub total: Option<Duration>,
}

pub struct Timeout(Timeouts);

impl FilterKind for Timeout {
    const NAME: &'static str = "timeout";
    const STAGE: Stage = Stage::Transform;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let (path, problems) = (at.path, &mut *at.problems);
        let limits = [config.connect, config.first_byte, config.idle, config.total];
        if limits.iter().all(Option::is_none) {
            problems.add(path, "no limit is set, so this filter would do nothing");
            return None;
        }
        if limits.iter().flatten().any(|limit| limit.get().is_zero()) {
            problems.add(path, "a limit of no time at all would refuse every request");
            return None;
        }
        let [connect, first_byte, idle, total] = limits.map(|limit| limit.map(Duration::get));
        Some(Compiled::on_request(Timeout(Timeouts { connect, first_byte, idle, total })))
    }
}

impl OnRequest for Timeout {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        request.controls.timeouts = self.0;
        Flow::Continue
    }
}
