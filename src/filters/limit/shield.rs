//! Keeps single addresses from taking more than their part, in memory that does not grow.

use std::sync::Arc;

use pingora_limits::rate::Rate;
use schemars::JsonSchema;
use serde::Deserialize;

use super::key::{By, Key};
use super::report::{Report, Told, place};
use crate::config::units::{self, Size};
use crate::error::Reason;
use crate::filters::filter::{Compiled, Flow, OnRequest, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::limits::{Exceeded, Standing};

/// Refuses clients that send too many requests, by their address, before anything is known of them. It is cheap, and its
/// memory is fixed whatever the number of addresses: for floods. For limits that are exact, take `rate_limit`.
///
/// Counts are estimates that may be too high, never too low: among very many addresses a client may be counted with others.
/// Of IPv6, the first 64 bits count.
///
/// ```yaml
/// shield:
///   rate: 200/s
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The most requests of one address in a time; counts begin anew when it is over.
    pub rate: units::Rate,
    /// For the counts. With more of it, fewer addresses are counted together: the default is good for a million addresses at a
    /// time.
    #[serde(default = "default_memory")]
    pub memory: Size,
}

fn default_memory() -> Size {
    Size::mib(4)
}

/// Rows of the count-min sketch: each makes it four times less likely that a client is counted with others.
const HASHES: usize = 4;
/// Pingora counts the present interval and the one before.
const INTERVALS: usize = 2;

pub struct Shield {
    rate: units::Rate,
    counts: Arc<Rate>,
    key: Key,
    report: Report,
}

impl FilterKind for Shield {
    const NAME: &'static str = "shield";
    const STAGE: Stage = Stage::Guard;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let slots = config.memory.get() as usize / (HASHES * INTERVALS * size_of::<isize>());
        if !(64..=1 << 27).contains(&slots) {
            at.problems.add(format!("{}.memory", at.path), "the counts take between 4KiB and 8GiB");
            return None;
        }
        let name = place(at.path, Self::NAME);
        let policy = [(name.as_str(), config.rate.amount, config.rate.per)];
        let report = Report::new(policy.into_iter(), Told::Nothing, &at.lasting.counters);
        // Other measures count anew.
        let place = format!("{name} {slots} {:?}", config.rate.per);
        let make = || Rate::new_with_estimator_config(config.rate.per, HASHES, slots);
        let counts = at.lasting.kept(&place, make);
        let key = Key::compile(&By::Address, at)?;
        Some(Compiled::on_request(Shield { rate: config.rate, counts, key, report }))
    }
}

impl OnRequest for Shield {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        let count = self.counts.observe(&self.key.of_or_address(request), 1);
        if u64::try_from(count).is_ok_and(|count| count <= self.rate.amount) {
            return Flow::Continue;
        }
        let window = self.rate.per;
        let standing = Standing { amount: self.rate.amount, remaining: 0, reset: window, window };
        let exceeded = Exceeded { index: 0, standing, retry_after: window };
        Flow::Refuse(self.report.refuse(Reason::RateLimited, &exceeded, request))
    }
}
