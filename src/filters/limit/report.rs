//! What answers, logs and metrics are told of a limit.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::error::{Error, Reason};
use crate::filters::filter::{Controls, Request};
use crate::limits::{self, Counter, Counters, Exceeded, Standing, Tell};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Which headers answers carry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers).
    #[default]
    Standard,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` (seconds), of the rate that is closest to its end.
    XRatelimit,
    Both,
    /// Only `Retry-After`, with a refusal.
    Nothing,
}

impl Told {
    fn standard(self) -> bool {
        matches!(self, Told::Standard | Told::Both)
    }

    fn x_ratelimit(self) -> bool {
        matches!(self, Told::XRatelimit | Told::Both)
    }
}

/// The names of a limit and of its parts, compiled.
pub struct Report {
    /// One for each rate.
    labels: Box<[(Arc<str>, Arc<Counter>)]>,
    policy: Option<HeaderValue>,
    told: Told,
}

impl Report {
    /// `policies` are the name, amount and window of each part.
    pub fn new<'p>(
        policies: impl Iterator<Item = (&'p str, u64, Duration)>,
        told: Told,
        counters: &Counters,
    ) -> Report {
        let (mut labels, mut policy) = (Vec::new(), String::new());
        for (name, amount, window) in policies {
            limits::write_policy(name, amount, window, &mut policy);
            labels.push((Arc::from(name), counters.named(name)));
        }
        Report { labels: labels.into(), policy: HeaderValue::from_str(&policy).ok().filter(|_| told.standard()), told }
    }

    pub fn label(&self, index: usize) -> &str {
        self.labels.get(index).map_or("", |(label, _)| label)
    }

    pub fn counter(&self, index: usize) -> Option<&Counter> {
        self.labels.get(index).map(|(_, counter)| &**counter)
    }

    /// Begins what one answer is told.
    pub fn begin(&self) -> Telling<'_> {
        let room = if self.told.standard() { 48 * self.labels.len() } else { 0 };
        Telling { report: self, text: String::with_capacity(room), tightest: None }
    }

    /// The refusal of a request that is beyond the limit, noted for log and metrics.
    pub fn refuse(&self, reason: Reason, exceeded: &Exceeded, request: &mut Request<'_>) -> Error {
        let Some((label, counter)) = self.labels.get(exceeded.index) else { return Error::new(reason) };
        counter.refused.fetch_add(1, Ordering::Relaxed);
        request.exchange.limit = Some(label.clone());
        let retry_after = limits::whole_seconds(exceeded.retry_after).max(1);
        let error = Error::new(reason)
            .member("limit", &**label)
            .member("retry_after", retry_after)
            .header(RETRY_AFTER, HeaderValue::from(retry_after));
        let mut telling = self.begin();
        telling.add(exceeded.index, &exceeded.standing);
        telling.headers().into_iter().fold(error, |error, (name, value)| error.header(name, value))
    }
}

/// What one answer is told of a limit.
pub struct Telling<'r> {
    report: &'r Report,
    text: String,
    tightest: Option<Standing>,
}

impl Tell for Telling<'_> {
    fn tell(&mut self, index: usize, standing: Standing) {
        self.add(index, &standing);
    }

    fn begin_anew(&mut self) {
        self.text.clear();
        self.tightest = None;
    }
}

impl Telling<'_> {
    pub fn add(&mut self, index: usize, standing: &Standing) {
        if self.report.told.standard() {
            limits::write_rate_limit(self.report.label(index), standing, &mut self.text);
        }
        if self.tightest.is_none_or(|known| standing.remaining < known.remaining) {
            self.tightest = Some(*standing);
        }
    }

    /// Has the headers sent with the answer, whoever makes it.
    pub fn on_answer(self, controls: &mut Controls) {
        if self.report.told != Told::Nothing {
            controls.answer_headers.extend(self.headers());
        }
    }

    fn headers(self) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::with_capacity(5);
        if self.report.told.standard() {
            headers.extend(self.report.policy.clone().map(|policy| (RATE_LIMIT_POLICY, policy)));
            // An empty list is written as no field at all (RFC 9651, section 3.1).
            let text = Some(self.text).filter(|text| !text.is_empty());
            headers.extend(text.and_then(|text| HeaderValue::try_from(text).ok()).map(|text| (RATE_LIMIT, text)));
        }
        if let (true, Some(standing)) = (self.report.told.x_ratelimit(), self.tightest) {
            headers.push((X_LIMIT, HeaderValue::from(standing.amount)));
            headers.push((X_REMAINING, HeaderValue::from(standing.remaining)));
            headers.push((X_RESET, HeaderValue::from(limits::whole_seconds(standing.reset))));
        }
        headers
    }
}

/// A place in the document as the name of a limit: `services.orders.filters[0].rate_limit` is `orders/rate_limit`.
pub fn place(path: &str, filter: &str) -> String {
    let outer = path.split("filters[").next().unwrap_or_default();
    let words = outer.split('.').filter(|word| !word.is_empty());
    let names: Vec<_> = words.filter(|word| !matches!(*word, "services" | "routes")).collect();
    match names.is_empty() {
        true => filter.to_owned(),
        false => format!("{}/{filter}", names.join("/")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_called_by_its_place() {
        for (path, name) in [
            ("filters[0].rate_limit", "rate_limit"),
            ("services.orders.filters[2].rate_limit", "orders/rate_limit"),
            ("services.orders.routes.list.filters[0].rate_limit", "orders/list/rate_limit"),
        ] {
            assert_eq!(place(path, "rate_limit"), name);
        }
    }
}
