//! Limits how many requests a caller makes in a calendar period.

use std::sync::atomic::Ordering;

use http::HeaderName;
use http::HeaderValue;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::Deserialize;

use super::key::{By, Key};
use super::report::{Report, Told, place};
use super::usage::{Limit, Shown};
use crate::config::units::{QuotaAmount, Share};
use crate::error::Reason;
use crate::filters::filter::{Compiled, Flow, OnRequest, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::identity::{Consumer, limit_key};
use crate::limits::{self, Quotas};

/// Admits so many requests in a calendar period from each caller. One more is answered 429 until the period is over.
///
/// What was used is kept in the usage store (`usage`), and outlives restarts, crashes and upgrades: a crash loses at most
/// what came in since the last write, a second before by default.
///
/// ```yaml
/// quota:
///   amount: 1000000/month
///   time_zone: Europe/Berlin
///   soft: 80%
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Requests in a period: hour, day, week (from Monday), month or year.
    pub amount: QuotaAmount,
    /// Where periods begin and end: a name of the IANA database. Default: UTC.
    pub time_zone: Option<String>,
    /// What requests count together.
    #[serde(default)]
    pub by: By,
    /// From this share on, answers carry `X-Quota-Warning`, and the log says it once for each caller.
    pub soft: Option<Share>,
    /// What the quota is called in answers, logs, metrics and in the store: a quota of another name counts anew. Default:
    /// its place and period.
    #[schemars(length(min = 1, max = 64))]
    pub name: Option<String>,
    /// What answers tell of the quota.
    #[serde(default)]
    pub headers: Told,
}

pub struct Quota {
    meter: Meter,
    key: Key,
}

impl FilterKind for Quota {
    const NAME: &'static str = "quota";
    const STAGE: Stage = Stage::Limit;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let key = Key::compile(&config.by, at)?;
        let zone = time_zone(config.time_zone.as_deref(), at)?;
        let name =
            config.name.unwrap_or_else(|| format!("{}/{}", place(at.path, Self::NAME), config.amount.period.as_str()));
        let meter = Meter::new(&name, config.amount, zone, config.soft, config.headers, at);
        Some(Compiled::limit(Quota { meter, key }))
    }
}

impl OnRequest for Quota {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        match self.key.is_of_consumer().then(|| request.exchange.consumer().cloned()).flatten() {
            Some(consumer) => self.meter.take(consumer.key, || format!("consumer:{}", consumer.name()), request),
            None => {
                let words = self.key.text_or_address(request);
                self.meter.take(limit_key(&words), || words.clone(), request)
            }
        }
    }
}

impl Limit for Quota {
    fn shown(&self, consumer: &Consumer) -> Vec<Shown> {
        self.key.of_consumer(consumer).map(|caller| self.meter.shown(caller)).into_iter().collect()
    }

    fn counts(&self) -> bool {
        true
    }
}

/// The zone of that name, UTC without one.
pub fn time_zone(name: Option<&str>, at: &mut Site<'_>) -> Option<TimeZone> {
    let Some(name) = name else { return Some(TimeZone::UTC) };
    TimeZone::get(name)
        .map_err(|_| {
            let message = format!("`{name}` is not a time zone; write a name such as Europe/Berlin");
            at.problems.add(format!("{}.time_zone", at.path), message);
        })
        .ok()
}

/// A quota with what answers, logs and metrics are told of it.
pub struct Meter {
    quota: limits::Quota,
    quotas: Quotas,
    report: Report,
}

const X_QUOTA_WARNING: HeaderName = HeaderName::from_static("x-quota-warning");

impl Meter {
    pub fn new(
        name: &str,
        amount: QuotaAmount,
        zone: TimeZone,
        soft: Option<Share>,
        told: Told,
        at: &Site<'_>,
    ) -> Meter {
        let soft = soft.map(|share| (amount.amount as f64 * share.fraction()).ceil() as u64);
        let quota = limits::Quota::new(name, limit_key(name), amount, zone, soft);
        let report = Report::new([(name, amount.amount, quota.length())].into_iter(), told, &at.lasting.counters);
        Meter { quota, quotas: at.lasting.quotas.clone(), report }
    }

    pub fn shown(&self, caller: u64) -> Shown {
        let (used, standing) = self.quotas.standing(&self.quota, caller);
        Shown::quota(self.quota.name(), used, standing)
    }

    /// Counts a request of `caller`, whose name in the store is `name`.
    pub fn take(&self, caller: u64, name: impl Fn() -> String, request: &mut Request<'_>) -> Flow {
        match self.quotas.take(&self.quota, caller, &name) {
            Ok(taken) => {
                let mut telling = self.report.begin();
                telling.add(0, &taken.standing);
                telling.on_answer(request.controls);
                let used = taken.standing.amount - taken.standing.remaining;
                if self.quota.soft.is_some_and(|soft| used >= soft) {
                    let text = format!("{}; used={used}; of={}", self.quota.name(), taken.standing.amount);
                    request
                        .controls
                        .answer_headers
                        .extend(HeaderValue::try_from(text).ok().map(|text| (X_QUOTA_WARNING, text)));
                }
                if taken.warn {
                    log::warn!("{} has used {used} of {} ({})", name(), taken.standing.amount, self.quota.name());
                    if let Some(counter) = self.report.counter(0) {
                        counter.warned.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Flow::Continue
            }
            Err(exceeded) => Flow::Refuse(self.report.refuse(Reason::QuotaExceeded, &exceeded, request)),
        }
    }
}
