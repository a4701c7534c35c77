//! The families of metrics that are collected at a scrape, in one list: name, kind, meaning.

use std::collections::BTreeMap;
use std::collections::HashMap;

use prometheus::core::Desc;
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};

use super::counts::Totals;

/// One family of metrics.
#[derive(Debug)]
pub struct Family {
    name: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    help: &'static str,
}

/// Declares each family as a constant, and the list of them all.
macro_rules! families {
    ($($id:ident = $name:literal, $kind:ident, [$($label:literal),*], $help:literal;)*) => {
        $(pub const $id: &Family = &Family {
            name: $name,
            kind: MetricType::$kind,
            labels: &[$($label),*],
            help: $help,
        };)*

        const ALL: &[&Family] = &[$($id,)*];
    };
}

families! {
    REQUESTS = "headgate_requests_total", COUNTER, ["service", "route", "method", "status"],
        "Finished requests. Status `none`: the client left before it could be answered.";
    REQUEST_DURATION = "headgate_request_duration_seconds", HISTOGRAM, ["service", "route"],
        "Time from the request's headers to the end of its answer.";
    REQUEST_BYTES = "headgate_request_bytes_total", COUNTER, ["service", "route"],
        "Bytes of request bodies received from clients.";
    RESPONSE_BYTES = "headgate_response_bytes_total", COUNTER, ["service", "route"],
        "Bytes of response bodies sent to clients.";
    REQUESTS_IN_FLIGHT = "headgate_requests_in_flight", GAUGE, [],
        "Requests that have begun and not ended.";
    GATEWAY_ANSWERS = "headgate_gateway_answers_total", COUNTER, ["reason"],
        "Requests that the gateway answered itself or that ended early, by reason.";
    UPSTREAM_ATTEMPTS = "headgate_upstream_attempts_total", COUNTER, ["upstream", "target", "outcome"],
        "Attempts at targets, by how they ended.";
    UPSTREAM_RETRIES = "headgate_upstream_retries_total", COUNTER, ["upstream"],
        "Attempts that were not their request's first.";
    UPSTREAM_DURATION = "headgate_upstream_duration_seconds", HISTOGRAM, ["upstream"],
        "Time from the start of an attempt to the headers of the answer, or to the failure.";
    TARGET_HEALTHY = "headgate_upstream_target_healthy", GAUGE, ["upstream", "target"],
        "1 if the target is given requests, 0 if it is taken out for its health.";
    BREAKER_STATE = "headgate_upstream_breaker_state", GAUGE, ["upstream"],
        "State of the circuit breaker: 0 closed, 1 half open, 2 open.";
    MIRRORED = "headgate_mirrored_requests_total", COUNTER, ["outcome"],
        "Copies of requests for mirrors: answered, failed, or dropped because too many were on their way.";
    DNS_RESOLUTIONS = "headgate_dns_resolutions_total", COUNTER, [],
        "Resolutions of the names of targets.";
    DNS_FAILURES = "headgate_dns_failures_total", COUNTER, [],
        "Resolutions to which the DNS gave no answer, or not a whole one.";
    DNS_DENIALS = "headgate_dns_denials_total", COUNTER, [],
        "Resolutions to which the DNS said that there is no such name, or that it has no address.";
    LIMIT_REFUSALS = "headgate_limit_refusals_total", COUNTER, ["limit"],
        "Requests refused by a limit.";
    QUOTA_WARNINGS = "headgate_quota_warnings_total", COUNTER, ["limit"],
        "Callers that have passed the soft limit of a quota.";
    LIMIT_CALLERS = "headgate_limit_callers", GAUGE, [],
        "Callers that rate limits remember.";
    USAGE_WRITES = "headgate_usage_store_writes_total", COUNTER, [],
        "Times that what was used of quotas was written to the store.";
    USAGE_FAILURES = "headgate_usage_store_failures_total", COUNTER, [],
        "Times that the store did not take what was used; it is kept in memory and tried again.";
    REDIS_UP = "headgate_redis_up", GAUGE, [],
        "1 if Redis answered when it was last asked.";
    REDIS_ANSWERS = "headgate_redis_answers_total", COUNTER, [],
        "Questions that Redis has answered.";
    REDIS_FAILURES = "headgate_redis_failures_total", COUNTER, [],
        "Questions that Redis has not answered, or not in time.";
    AI_CALLS = "headgate_ai_calls_total", COUNTER, ["provider", "model", "operation"],
        "Finished calls of models, by who was asked last.";
    AI_FAILURES = "headgate_ai_failures_total", COUNTER, ["provider", "model", "operation"],
        "Of them, those that no whole answer came of.";
    AI_FALLBACKS = "headgate_ai_fallbacks_total", COUNTER, ["provider", "model", "operation"],
        "Attempts beyond the first of a call, by who was asked last.";
    AI_TOKENS = "headgate_ai_tokens_total", COUNTER, ["provider", "model", "operation", "type"],
        "Tokens as providers report them. `input` includes those of the cache, `output` those of reasoning.";
    AI_COST = "headgate_ai_cost_dollars_total", COUNTER, ["provider", "model", "operation"],
        "What calls have cost, where it is known.";
    AI_UNPRICED = "headgate_ai_unpriced_calls_total", COUNTER, ["provider", "model", "operation"],
        "Answered calls whose cost is unknown.";
    AI_CONSUMER_CALLS = "headgate_ai_consumer_calls_total", COUNTER, ["consumer"],
        "Finished calls of models, by who called; the thousand first are counted by name.";
    AI_CONSUMER_TOKENS = "headgate_ai_consumer_tokens_total", COUNTER, ["consumer", "type"],
        "Tokens of these calls: `input` and `output`.";
    AI_CONSUMER_COST = "headgate_ai_consumer_cost_dollars_total", COUNTER, ["consumer"],
        "What these calls have cost, where it is known.";
    GEN_AI_TOKENS = "gen_ai_client_token_usage", HISTOGRAM,
        ["provider", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_operation_name", "gen_ai_token_type"],
        "Tokens of a call, by the semantic conventions of OpenTelemetry.";
    GEN_AI_DURATION = "gen_ai_client_operation_duration_seconds", HISTOGRAM,
        ["provider", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_operation_name"],
        "Time from a call to the end of its answer, all attempts included.";
    GEN_AI_FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds", HISTOGRAM,
        ["provider", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_operation_name"],
        "Time from a call to the first content of its streamed answer.";
    GEN_AI_PER_TOKEN = "gen_ai_server_time_per_output_token_seconds", HISTOGRAM,
        ["provider", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_operation_name"],
        "Time for each token of a streamed answer after its first content.";
    MCP_MESSAGES = "headgate_mcp_messages_total", COUNTER, ["method"],
        "Messages of callers of tools, by the method of the protocol.";
    MCP_CALLS = "headgate_mcp_tool_calls_total", COUNTER, ["server", "tool", "outcome"],
        "Calls of tools: `success`, `failure` if the tool says so, `error` if it gave no answer. The server of the gateway's own tools is `-`.";
    MCP_CALL_DURATION = "headgate_mcp_tool_call_duration_seconds", HISTOGRAM, ["server", "tool"],
        "Time from a call of a tool to the end of its answer.";
    MCP_SESSIONS = "headgate_mcp_sessions", GAUGE, ["service", "route"],
        "Sessions of callers of tools.";
    AI_CACHE = "headgate_ai_cache_lookups_total", COUNTER, ["result"],
        "Calls on routes that keep answers. `bypass`: the caller, or what it asks for, wants none that is kept.";
    AI_CACHE_BYTES = "headgate_ai_cache_bytes", GAUGE, [],
        "What the answers take that are kept, about.";
    AI_CACHE_ENTRIES = "headgate_ai_cache_entries", GAUGE, [],
        "Answers that are kept.";
    AI_GUARDRAILS = "headgate_ai_guardrail_verdicts_total", COUNTER, ["guardrail", "on", "action"],
        "Calls and answers in which a guardrail has found something, by what it did. `error`: it could not be asked.";
    CONNECTIONS_ACTIVE = "headgate_connections_active", GAUGE, ["listener"],
        "Open connections of clients.";
    CONNECTIONS_ACCEPTED = "headgate_connections_accepted_total", COUNTER, ["listener"],
        "Connections accepted.";
    CONNECTIONS_REJECTED = "headgate_connections_rejected_total", COUNTER, ["listener", "reason"],
        "Connections closed before a request, by reason.";
    CERTIFICATE_EXPIRY = "headgate_certificate_expiry_timestamp_seconds", GAUGE, ["listener", "host"],
        "Time at which a certificate expires.";
}

/// State of a circuit breaker, ordered by severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    Closed = 0,
    HalfOpen = 1,
    Open = 2,
}

/// What one scrape has found so far.
#[derive(Default)]
pub struct Gathered {
    found: BTreeMap<&'static str, (&'static Family, Vec<proto::Metric>)>,
}

impl Gathered {
    pub fn mcp_sessions(&mut self, service: &str, route: &str, sessions: usize) {
        self.add(MCP_SESSIONS, &[("service", service), ("route", route)], sessions as f64);
    }

    pub fn target_healthy(&mut self, upstream: &str, target: &str, healthy: bool) {
        self.add(TARGET_HEALTHY, &[("upstream", upstream), ("target", target)], f64::from(u8::from(healthy)));
    }

    pub fn breaker_state(&mut self, upstream: &str, state: BreakerState) {
        self.add(BREAKER_STATE, &[("upstream", upstream)], f64::from(state as u8));
    }

    /// `outcome` comes from a closed list of the mirror.
    pub fn mirrored(&mut self, outcome: &'static str, count: u64) {
        self.add(MIRRORED, &[("outcome", outcome)], count as f64);
    }

    pub fn dns(&mut self, resolutions: u64, failures: u64, denials: u64) {
        self.add(DNS_RESOLUTIONS, &[], resolutions as f64);
        self.add(DNS_FAILURES, &[], failures as f64);
        self.add(DNS_DENIALS, &[], denials as f64);
    }

    /// `limit` is a name of the configuration.
    pub fn limit(&mut self, limit: &str, refused: u64, warned: u64) {
        self.add(LIMIT_REFUSALS, &[("limit", limit)], refused as f64);
        self.add(QUOTA_WARNINGS, &[("limit", limit)], warned as f64);
    }

    pub fn callers(&mut self, count: u64) {
        self.add(LIMIT_CALLERS, &[], count as f64);
    }

    pub fn usage_store(&mut self, writes: u64, failures: u64) {
        self.add(USAGE_WRITES, &[], writes as f64);
        self.add(USAGE_FAILURES, &[], failures as f64);
    }

    pub fn redis(&mut self, up: bool, answers: u64, failures: u64) {
        self.add(REDIS_UP, &[], f64::from(u8::from(up)));
        self.add(REDIS_ANSWERS, &[], answers as f64);
        self.add(REDIS_FAILURES, &[], failures as f64);
    }

    pub fn answer_cache(&mut self, lookups: [(&'static str, u64); 4], bytes: u64, entries: u64) {
        for (result, count) in lookups {
            self.add(AI_CACHE, &[("result", result)], count as f64);
        }
        self.add(AI_CACHE_BYTES, &[], bytes as f64);
        self.add(AI_CACHE_ENTRIES, &[], entries as f64);
    }

    pub fn connections_active(&mut self, listener: &str, count: u64) {
        self.add(CONNECTIONS_ACTIVE, &[("listener", listener)], count as f64);
    }

    pub fn connections_accepted(&mut self, listener: &str, count: u64) {
        self.add(CONNECTIONS_ACCEPTED, &[("listener", listener)], count as f64);
    }

    /// `reason` comes from a closed list of the listener.
    pub fn connections_rejected(&mut self, listener: &str, reason: &'static str, count: u64) {
        self.add(CONNECTIONS_REJECTED, &[("listener", listener), ("reason", reason)], count as f64);
    }

    /// `host` is the name that the certificate is chosen for, `expires` in seconds since 1970.
    pub fn certificate_expiry(&mut self, listener: &str, host: &str, expires: i64) {
        self.add(CERTIFICATE_EXPIRY, &[("listener", listener), ("host", host)], expires as f64);
    }

    pub(super) fn add(&mut self, family: &'static Family, labels: &[(&'static str, &str)], value: f64) {
        let mut metric = labelled(family, labels);
        match family.kind {
            MetricType::COUNTER => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            _ => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        self.push(family, metric);
    }

    pub(super) fn histogram(&mut self, family: &'static Family, labels: &[(&'static str, &str)], totals: Totals) {
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(totals.bounds.len());
        for (bound, count) in totals.bounds.iter().zip(&totals.buckets) {
            cumulative += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(totals.buckets.iter().sum());
        histogram.set_sample_sum(totals.sum);
        let mut metric = labelled(family, labels);
        metric.set_histogram(histogram);
        self.push(family, metric);
    }

    fn push(&mut self, family: &'static Family, metric: proto::Metric) {
        self.found.entry(family.name).or_insert_with(|| (family, Vec::new())).1.push(metric);
    }

    pub(super) fn into_families(self) -> Vec<MetricFamily> {
        let family = |(family, metrics): (&Family, Vec<proto::Metric>)| {
            let mut out = MetricFamily::default();
            out.set_name(family.name.to_owned());
            out.set_help(family.help.to_owned());
            out.set_field_type(family.kind);
            out.set_metric(metrics);
            out
        };
        self.found.into_values().map(family).collect()
    }
}

fn labelled(family: &Family, labels: &[(&'static str, &str)]) -> proto::Metric {
    debug_assert!(labels.iter().map(|(name, _)| *name).eq(family.labels.iter().copied()), "{}", family.name);
    let pair = |(name, value): &(&'static str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    proto::Metric::from_label(labels.iter().map(pair).collect())
}

/// What the registry is told of these families, so that no other metric takes their names.
pub fn descs() -> prometheus::Result<Vec<Desc>> {
    let desc = |family: &&Family| {
        let labels = family.labels.iter().map(|label| (*label).to_owned()).collect();
        Desc::new(family.name.to_owned(), family.help.to_owned(), labels, HashMap::new())
    };
    ALL.iter().map(desc).collect()
}
