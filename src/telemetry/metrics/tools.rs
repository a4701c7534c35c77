//! What is counted of messages to servers of tools, by method, and of calls, by tool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::counts::Durations;
use super::families::{self, Gathered};
use crate::telemetry::exchange::McpCall;

/// More tools than this are counted together as `other`: a server may list new ones for ever.
const MOST: usize = 2000;
const OTHER: &str = "other";

/// Methods that are counted by themselves; whatever else callers write is counted as `other`.
const METHODS: [&str; 20] = [
    "initialize",
    "ping",
    "tools/list",
    "tools/call",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "resources/subscribe",
    "resources/unsubscribe",
    "prompts/list",
    "prompts/get",
    "completion/complete",
    "logging/setLevel",
    "notifications/initialized",
    "notifications/cancelled",
    "notifications/progress",
    "batch",
    "response",
    "listen",
    OTHER,
];

/// All messages, and all tools that have been called.
#[derive(Default)]
pub struct Tools {
    messages: [AtomicU64; METHODS.len()],
    calls: papaya::HashMap<(Arc<str>, Box<str>), Counts, foldhash::fast::RandomState>,
}

#[derive(Default)]
struct Counts {
    succeeded: AtomicU64,
    /// The tool says that it has failed.
    failed: AtomicU64,
    /// There was no answer of the tool.
    refused: AtomicU64,
    durations: Durations,
}

impl Tools {
    /// Counts a finished message.
    pub fn record(&self, call: &McpCall, duration: Duration) {
        let method = METHODS.iter().position(|known| *known == &*call.method).unwrap_or(METHODS.len() - 1);
        if let Some(count) = self.messages.get(method) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if &*call.method != "tools/call" || !call.known {
            return;
        }
        let Some(name) = &call.name else { return };
        let server = call.server.clone().unwrap_or_else(|| "-".into());
        let calls = self.calls.pin();
        let key = (server.clone(), name.clone());
        let counts = match calls.get(&key) {
            Some(counts) => counts,
            None if calls.len() < MOST => calls.get_or_insert_with(key, Counts::default),
            None => calls.get_or_insert_with((server, OTHER.into()), Counts::default),
        };
        let outcome = match (call.error, call.tool_failed) {
            (Some(_), _) => &counts.refused,
            (None, true) => &counts.failed,
            (None, false) => &counts.succeeded,
        };
        outcome.fetch_add(1, Ordering::Relaxed);
        counts.durations.observe(duration);
    }

    pub fn collect(&self, out: &mut Gathered) {
        for (method, count) in METHODS.iter().zip(&self.messages) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                out.add(families::MCP_MESSAGES, &[("method", method)], count as f64);
            }
        }
        for ((server, tool), counts) in &self.calls.pin() {
            let labels = [("server", &**server), ("tool", &**tool)];
            let outcomes = [("success", &counts.succeeded), ("failure", &counts.failed), ("error", &counts.refused)];
            for (outcome, count) in outcomes {
                let count = count.load(Ordering::Relaxed) as f64;
                out.add(families::MCP_CALLS, &[labels[0], labels[1], ("outcome", outcome)], count);
            }
            out.histogram(families::MCP_CALL_DURATION, &labels, Durations::total([&counts.durations].into_iter()));
        }
    }
}
