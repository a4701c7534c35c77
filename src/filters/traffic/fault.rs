//! Injects faults, to see whether callers cope with them.

use async_trait::async_trait;
use http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::units::{Duration, Share};
use crate::error::{Error, Reason};
use crate::filters::filter::{Answer, Compiled, Flow, OnRequestAsync, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;

/// Delays or aborts a share of the requests. Both may be drawn for the same one; the delay comes first.
///
/// ```yaml
/// fault:
///   delay: { time: 200ms, share: 10% }
///   abort: { status: 503, share: 1% }
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub delay: Option<Delay>,
    pub abort: Option<Abort>,
}

/// Holds a request back before it goes on.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    pub time: Duration,
    /// Of the requests, 100% if left out.
    #[serde(default = "all")]
    pub share: Share,
}

/// Answers instead of the backend.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    /// The status of the answer, from 200 to 599.
    pub status: u16,
    /// Of the requests, 100% if left out.
    #[serde(default = "all")]
    pub share: Share,
}

fn all() -> Share {
    Share(1.0)
}

pub struct Fault {
    delay: Option<Delay>,
    abort: Option<(StatusCode, Share)>,
}

impl FilterKind for Fault {
    const NAME: &'static str = "fault";
    const STAGE: Stage = Stage::Transform;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let (path, problems) = (at.path, &mut *at.problems);
        let abort = match &config.abort {
            None => None,
            Some(abort) => match StatusCode::from_u16(abort.status) {
                Ok(status) if (200..600).contains(&abort.status) => Some((status, abort.share)),
                _ => {
                    problems
                        .add(format!("{path}.abort.status"), "the status of a final answer lies between 200 and 599");
                    return None;
                }
            },
        };
        if config.delay.is_none() && abort.is_none() {
            problems.add(path, "neither `delay` nor `abort` is set, so this filter would do nothing");
            return None;
        }
        Some(Compiled::on_request_async(Fault { delay: config.delay, abort }))
    }
}

#[async_trait]
impl OnRequestAsync for Fault {
    async fn on_request(&self, _: &mut Request<'_>) -> Flow {
        if let Some(delay) = self.delay.as_ref().filter(|delay| delay.share.draw()) {
            tokio::time::sleep(delay.time.get()).await;
        }
        match self.abort.filter(|(_, share)| share.draw()) {
            Some((status, _)) if status.as_u16() == Reason::FaultInjected.status() => {
                Flow::Refuse(Error::new(Reason::FaultInjected))
            }
            Some((status, _)) => Flow::Answer(Answer { status, headers: Vec::new(), body: Default::default() }),
            None => Flow::Continue,
        }
    }
}
