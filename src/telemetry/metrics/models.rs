//! What is counted of calls of models: by provider, model and operation, and by who called.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::counts::Histogram;
use super::families::{self, Gathered};
use crate::telemetry::exchange::{AiCall, Tokens};

/// More models than this are counted together as `other`.
const MOST_MODELS: usize = 2000;
/// More consumers than this are counted together as `other`.
const MOST_CONSUMERS: usize = 1000;
const OTHER: &str = "other";

/// Of `gen_ai.client.token.usage`, as OpenTelemetry advises; of the durations below likewise.
const TOKENS: &[u64] =
    &[1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216, 67_108_864];
/// Microseconds.
const DURATION: &[u64] = &[
    10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 640_000, 1_280_000, 2_560_000, 5_120_000, 10_240_000, 20_480_000,
    40_960_000, 81_920_000,
];
const FIRST_TOKEN: &[u64] = &[
    1_000, 5_000, 10_000, 20_000, 40_000, 60_000, 80_000, 100_000, 250_000, 500_000, 750_000, 1_000_000, 2_500_000,
    5_000_000, 7_500_000, 10_000_000,
];
const PER_TOKEN: &[u64] = &[
    10_000, 25_000, 50_000, 75_000, 100_000, 150_000, 200_000, 300_000, 400_000, 500_000, 750_000, 1_000_000, 2_500_000,
];

type Map<K, V> = papaya::HashMap<K, V, foldhash::fast::RandomState>;

/// All models that have been called, and who has called.
#[derive(Default)]
pub struct Models {
    /// By provider, model and operation.
    models: Map<(Arc<str>, Arc<str>, &'static str), ModelCounts>,
    consumers: Map<Arc<str>, ConsumerCounts>,
    /// By guardrail, side and action: all three are of the configuration.
    guardrails: Map<(Arc<str>, &'static str, &'static str), AtomicU64>,
}

struct ModelCounts {
    provider_kind: Arc<str>,
    calls: AtomicU64,
    failed: AtomicU64,
    /// Attempts beyond the first of each call.
    fallbacks: AtomicU64,
    input: AtomicU64,
    output: AtomicU64,
    cache_read: AtomicU64,
    cache_write: AtomicU64,
    reasoning: AtomicU64,
    cost_nanos: AtomicU64,
    /// Answered calls whose cost is unknown.
    unpriced: AtomicU64,
    input_usage: Histogram,
    output_usage: Histogram,
    duration: Histogram,
    first_token: Histogram,
    per_token: Histogram,
}

#[derive(Default)]
struct ConsumerCounts {
    calls: AtomicU64,
    input: AtomicU64,
    output: AtomicU64,
    cost_nanos: AtomicU64,
}

impl ModelCounts {
    fn new(call: &AiCall) -> ModelCounts {
        ModelCounts {
            provider_kind: call.provider_kind.clone(),
            calls: AtomicU64::default(),
            failed: AtomicU64::default(),
            fallbacks: AtomicU64::default(),
            input: AtomicU64::default(),
            output: AtomicU64::default(),
            cache_read: AtomicU64::default(),
            cache_write: AtomicU64::default(),
            reasoning: AtomicU64::default(),
            cost_nanos: AtomicU64::default(),
            unpriced: AtomicU64::default(),
            input_usage: Histogram::new(TOKENS),
            output_usage: Histogram::new(TOKENS),
            duration: Histogram::new(DURATION),
            first_token: Histogram::new(FIRST_TOKEN),
            per_token: Histogram::new(PER_TOKEN),
        }
    }

    fn record(&self, call: &AiCall) {
        add(&self.calls, 1);
        add(&self.fallbacks, u64::from(call.attempts.saturating_sub(1)));
        if !call.is_answered() {
            add(&self.failed, 1);
        }
        if let Some(tokens) = call.tokens {
            add(&self.input, tokens.input);
            add(&self.output, tokens.output);
            add(&self.cache_read, tokens.cache_read);
            add(&self.cache_write, tokens.cache_write);
            add(&self.reasoning, tokens.reasoning);
            self.input_usage.observe(tokens.input);
            self.output_usage.observe(tokens.output);
        }
        match call.cost {
            Some(nanos) => add(&self.cost_nanos, nanos),
            None if call.is_answered() => add(&self.unpriced, 1),
            None => {}
        }
        let Some(duration) = call.duration else { return };
        self.duration.observe(duration.as_micros() as u64);
        let Some(first_token) = call.first_token else { return };
        self.first_token.observe(first_token.as_micros() as u64);
        // The first token is the one that was waited for.
        if let Some(others) = call.tokens.map(|tokens| tokens.output).filter(|output| *output > 1) {
            let generating = duration.saturating_sub(first_token);
            self.per_token.observe(generating.as_micros() as u64 / (others - 1));
        }
    }

    fn collect(&self, provider: &str, model: &str, operation: &str, out: &mut Gathered) {
        let labels = [("provider", provider), ("model", model), ("operation", operation)];
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        out.add(families::AI_CALLS, &labels, read(&self.calls));
        out.add(families::AI_FAILURES, &labels, read(&self.failed));
        out.add(families::AI_FALLBACKS, &labels, read(&self.fallbacks));
        out.add(families::AI_COST, &labels, read(&self.cost_nanos) / 1e9);
        out.add(families::AI_UNPRICED, &labels, read(&self.unpriced));
        let tokens = [
            ("input", &self.input),
            ("output", &self.output),
            ("cache_read", &self.cache_read),
            ("cache_write", &self.cache_write),
            ("reasoning", &self.reasoning),
        ];
        for (kind, counter) in tokens {
            out.add(families::AI_TOKENS, &[labels[0], labels[1], labels[2], ("type", kind)], read(counter));
        }
        let [provider, kind, model, operation] = [
            ("provider", provider),
            ("gen_ai_provider_name", &*self.provider_kind),
            ("gen_ai_request_model", model),
            ("gen_ai_operation_name", operation),
        ];
        for (direction, usage) in [("input", &self.input_usage), ("output", &self.output_usage)] {
            let labels = [provider, kind, model, operation, ("gen_ai_token_type", direction)];
            out.histogram(families::GEN_AI_TOKENS, &labels, usage.totals(1.0));
        }
        let durations = [
            (families::GEN_AI_DURATION, &self.duration),
            (families::GEN_AI_FIRST_TOKEN, &self.first_token),
            (families::GEN_AI_PER_TOKEN, &self.per_token),
        ];
        for (family, durations) in durations {
            out.histogram(family, &[provider, kind, model, operation], durations.totals(1e6));
        }
    }
}

impl ConsumerCounts {
    fn record(&self, call: &AiCall) {
        add(&self.calls, 1);
        let tokens: Tokens = call.tokens.unwrap_or_default();
        add(&self.input, tokens.input);
        add(&self.output, tokens.output);
        add(&self.cost_nanos, call.cost.unwrap_or(0));
    }

    fn collect(&self, consumer: &str, out: &mut Gathered) {
        let consumer = ("consumer", consumer);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        out.add(families::AI_CONSUMER_CALLS, &[consumer], read(&self.calls));
        for (kind, counter) in [("input", &self.input), ("output", &self.output)] {
            out.add(families::AI_CONSUMER_TOKENS, &[consumer, ("type", kind)], read(counter));
        }
        out.add(families::AI_CONSUMER_COST, &[consumer], read(&self.cost_nanos) / 1e9);
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

impl Models {
    /// Counts a finished call. Callers may ask for models that do not exist: a name is counted by itself only once its provider
    /// has answered for it.
    pub fn record(&self, call: &AiCall, consumer: Option<&str>) {
        for verdict in &call.guardrails {
            let key = (verdict.guardrail.clone(), verdict.on, verdict.action);
            self.guardrails.pin().get_or_insert_with(key, AtomicU64::default).fetch_add(1, Ordering::Relaxed);
        }
        // An answer that was kept is no call of its provider.
        if call.provider.is_empty() || matches!(call.cache, Some("hit" | "semantic")) {
            return;
        }
        let models = self.models.pin();
        let key = (call.provider.clone(), call.model.clone(), call.operation);
        let known = models.get(&key);
        let found = match known {
            Some(found) => found,
            None if call.is_answered() && models.len() < MOST_MODELS => {
                models.get_or_insert_with(key, || ModelCounts::new(call))
            }
            None => {
                let other = (call.provider.clone(), OTHER.into(), call.operation);
                models.get_or_insert_with(other, || ModelCounts::new(call))
            }
        };
        found.record(call);
        let Some(consumer) = consumer else { return };
        let consumers = self.consumers.pin();
        match consumers.get(consumer) {
            Some(found) => found.record(call),
            None if consumers.len() < MOST_CONSUMERS => {
                consumers.get_or_insert_with(consumer.into(), ConsumerCounts::default).record(call);
            }
            None => consumers.get_or_insert_with(OTHER.into(), ConsumerCounts::default).record(call),
        }
    }

    pub fn collect(&self, out: &mut Gathered) {
        for ((provider, model, operation), counts) in &self.models.pin() {
            counts.collect(provider, model, operation, out);
        }
        for (consumer, counts) in &self.consumers.pin() {
            counts.collect(consumer, out);
        }
        for ((guardrail, on, action), count) in &self.guardrails.pin() {
            let labels = [("guardrail", &**guardrail), ("on", *on), ("action", *action)];
            out.add(families::AI_GUARDRAILS, &labels, count.load(Ordering::Relaxed) as f64);
        }
    }
}
