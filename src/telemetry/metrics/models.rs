//! What is counted of calls of models, by provider and model.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::counts::Durations;
use super::families::{self, Gathered};
use crate::telemetry::exchange::AiCall;

/// More models than this are counted together as `other`.
const MOST: usize = 2000;
const OTHER: &str = "other";

/// All models that have been called.
#[derive(Default)]
pub struct Models {
    counts: papaya::HashMap<(Arc<str>, Arc<str>), Counts, foldhash::fast::RandomState>,
}

#[derive(Default)]
struct Counts {
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
    first_token: Durations,
}

impl Models {
    /// Counts a finished call. Callers may ask for models that do not exist: a name is counted by itself only once its provider
    /// has answered for it.
    pub fn record(&self, call: &AiCall) {
        if call.provider.is_empty() {
            return;
        }
        let counts = self.counts.pin();
        let key = (call.provider.clone(), call.model.clone());
        let known = counts.get(&key);
        let found = match known {
            Some(found) => found,
            None if call.finish.is_some() && counts.len() < MOST => counts.get_or_insert_with(key, Counts::default),
            None => counts.get_or_insert_with((call.provider.clone(), OTHER.into()), Counts::default),
        };
        let add = |counter: &AtomicU64, amount: u64| {
            counter.fetch_add(amount, Ordering::Relaxed);
        };
        add(&found.calls, 1);
        add(&found.fallbacks, u64::from(call.attempts.saturating_sub(1)));
        if call.finish.is_none() {
            add(&found.failed, 1);
        }
        if let Some(tokens) = call.tokens {
            add(&found.input, tokens.input);
            add(&found.output, tokens.output);
            add(&found.cache_read, tokens.cache_read);
            add(&found.cache_write, tokens.cache_write);
            add(&found.reasoning, tokens.reasoning);
        }
        match call.cost {
            Some(nanos) => add(&found.cost_nanos, nanos),
            None if call.finish.is_some() => add(&found.unpriced, 1),
            None => {}
        }
        if let Some(first_token) = call.first_token {
            found.first_token.observe(first_token);
        }
    }

    pub fn collect(&self, out: &mut Gathered) {
        for ((provider, model), counts) in &self.counts.pin() {
            let labels = [("provider", &**provider), ("model", &**model)];
            let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
            out.add(families::AI_CALLS, &labels, read(&counts.calls));
            out.add(families::AI_FAILURES, &labels, read(&counts.failed));
            out.add(families::AI_FALLBACKS, &labels, read(&counts.fallbacks));
            out.add(families::AI_COST, &labels, read(&counts.cost_nanos) / 1e9);
            out.add(families::AI_UNPRICED, &labels, read(&counts.unpriced));
            let tokens = [
                ("input", &counts.input),
                ("output", &counts.output),
                ("cache_read", &counts.cache_read),
                ("cache_write", &counts.cache_write),
                ("reasoning", &counts.reasoning),
            ];
            for (kind, counter) in tokens {
                out.add(families::AI_TOKENS, &[labels[0], labels[1], ("type", kind)], read(counter));
            }
            out.histogram(families::AI_FIRST_TOKEN, &labels, Durations::total([&counts.first_token].into_iter()));
        }
    }
}
