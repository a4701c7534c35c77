//! Limits how many requests come in a time.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::key::{By, Key};
use super::report::{Report, Telling, Told, place};
use super::usage::{Limit, Shown};
use crate::config::units::{self, Share};
use crate::error::Reason;
use crate::filters::filter::{Compiled, Flow, OnRequestPerhaps, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::identity::{Consumer, limit_key};
use crate::limits::{Caller, Exceeded, Limiter, OnFailure, Rates, Together, gcra};

/// Admits so many requests in a time from each caller, with bursts, under one rate or under several that hold together. One
/// more is answered 429 with `Retry-After`.
///
/// A rate is kept by the generic cell rate algorithm: exact, whatever the number of threads, and without windows that
/// begin anew. In any time no more than the burst and the rate times that time are admitted.
///
/// ```yaml
/// rate_limit:
///   rate: [100/s, 5000/min]
///   by: consumer
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Requests in a time: `100/s`, `5000/min`, `10/30s`, or a list of them.
    pub rate: units::Rates,
    /// How many may come at once. Default: the whole amount of the rate. Only with a single rate.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub burst: Option<u64>,
    /// What requests count together.
    #[serde(default)]
    pub by: By,
    /// What the limit is called in answers, logs and metrics. Default: its place and the rate.
    #[schemars(length(min = 1, max = 64))]
    pub name: Option<String>,
    /// What answers tell of the limit.
    #[serde(default)]
    pub headers: Told,
    /// In a fleet: the part of the burst that a gateway leases from Redis at once, and may admit beyond the limit.
    #[serde(default = "default_lease")]
    pub lease: Share,
    /// In a fleet: asks Redis for each request and waits for its answer, so that nothing is admitted beyond the limit.
    #[serde(default)]
    pub exact: bool,
    /// In a fleet: what holds while Redis does not answer.
    #[serde(default)]
    pub on_redis_failure: OnRedisFailure,
}

fn default_lease() -> Share {
    Share(0.1)
}

/// What holds while Redis does not answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnRedisFailure {
    /// Each gateway admits its part: the limit divided by `redis.gateways`.
    #[default]
    Local,
    /// Everything is admitted.
    Allow,
    /// Nothing is.
    Deny,
}

pub struct RateLimit {
    limiter: Limiter,
    key: Key,
    report: Report,
}

impl FilterKind for RateLimit {
    const NAME: &'static str = "rate_limit";
    const STAGE: Stage = Stage::Limit;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let key = Key::compile(&config.by, at)?;
        let written = config.rate.as_slice();
        if config.burst.is_some() && written.len() > 1 {
            at.problems.add(format!("{}.burst", at.path), "a burst belongs to one rate; write a filter for each");
            return None;
        }
        let name = config.name.unwrap_or_else(|| place(at.path, Self::NAME));
        let labels = written.iter().map(|rate| format!("{name} {rate}"));
        let labels: Vec<_> = if written.len() == 1 { vec![name.clone()] } else { labels.collect() };
        let rates: Rates = written
            .iter()
            .map(|rate| gcra::Rate::new(limit_key(&identity(&name, rate, config.burst)), *rate, config.burst))
            .collect();
        let policies = labels.iter().zip(&rates).map(|(label, rate)| (label.as_str(), rate.amount, rate.window));
        let report = Report::new(policies, config.headers, &at.lasting.counters);
        let on_failure = match config.on_redis_failure {
            OnRedisFailure::Local => OnFailure::Local,
            OnRedisFailure::Allow => OnFailure::Allow,
            OnRedisFailure::Deny => OnFailure::Deny,
        };
        let together = at.fleet.map(|fleet| Together {
            fleet: fleet.clone(),
            leases: rates.iter().map(|rate| leased(rate, config.lease)).collect(),
            exact: config.exact,
            on_failure,
        });
        // In Redis too, another rate counts anew: gateways of one fleet may have different configurations for a while.
        let names = written.iter().map(|rate| identity(&name, rate, config.burst).into()).collect();
        let limiter = Limiter::new(rates, names, at.lasting.rates.clone(), together);
        Some(Compiled::limit_perhaps(RateLimit { limiter, key, report }))
    }
}

/// What a rate counts under: another rate, burst or name counts anew.
fn identity(name: &str, rate: &units::Rate, burst: Option<u64>) -> String {
    match burst {
        Some(burst) => format!("{name} {rate} burst {burst}"),
        None => format!("{name} {rate}"),
    }
}

/// How many requests a gateway leases at once.
pub fn leased(rate: &gcra::Rate, share: Share) -> u64 {
    ((rate.burst as f64 * share.fraction()) as u64).clamp(1, rate.burst)
}

#[async_trait]
impl OnRequestPerhaps for RateLimit {
    fn on_request(&self, request: &mut Request<'_>) -> Option<Flow> {
        let mut telling = self.report.begin();
        let taken = {
            let request = &*request;
            let words = || self.key.text_or_address(request);
            let caller = Caller { key: self.key.of_or_address(request), words: &words };
            self.limiter.take(&caller, &mut telling)?
        };
        Some(conclude(taken, &self.report, telling, request))
    }

    async fn wait(&self, request: &mut Request<'_>) -> Flow {
        let mut telling = self.report.begin();
        let words = self.key.text_or_address(request);
        let words = || words.clone();
        let caller = Caller { key: self.key.of_or_address(request), words: &words };
        let taken = self.limiter.wait(&caller, &mut telling).await;
        conclude(taken, &self.report, telling, request)
    }
}

/// Lets a request go on that is within its rates, and refuses it otherwise.
pub fn conclude(taken: Result<(), Exceeded>, report: &Report, telling: Telling<'_>, request: &mut Request<'_>) -> Flow {
    match taken {
        Ok(()) => {
            telling.on_answer(request.controls);
            Flow::Continue
        }
        Err(exceeded) => Flow::Refuse(report.refuse(Reason::RateLimited, &exceeded, request)),
    }
}

impl Limit for RateLimit {
    fn shown(&self, consumer: &Consumer) -> Vec<Shown> {
        let Some(caller) = self.key.of_consumer(consumer) else { return Vec::new() };
        shown(&self.limiter, &self.report, caller)
    }
}

/// How a caller stands at each of several rates.
pub fn shown(limiter: &Limiter, report: &Report, caller: u64) -> Vec<Shown> {
    let shown = |(index, standing)| Shown::rate(report.label(index), standing);
    limiter.standings(caller).enumerate().map(shown).collect()
}
