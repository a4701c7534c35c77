//! What a call has used, and what it costs.

use super::catalog::ProviderSpec;
use super::chat::{Stop, Usage};
use super::cost::{Cost, Money, Used};
use super::metering::Found;
use crate::telemetry::exchange::{AiCall, Tokens};

impl Stop {
    /// OpenAI's word for it, which logs use.
    pub fn name(self) -> &'static str {
        match self {
            Stop::End | Stop::Paused | Stop::Malformed => "stop",
            Stop::MaxTokens | Stop::ContextFull => "length",
            Stop::ToolUse => "tool_calls",
            Stop::Filtered => "content_filter",
        }
    }
}

/// Enters into the record of a call what was found in an answer that passed.
pub fn settle_found(record: &mut AiCall, spec: &ProviderSpec, model: &str, found: &Found) {
    if let Some(usage) = &found.usage {
        record.tokens = Some(Tokens::from(usage));
    }
    record.cost = found.cost(spec, model).known().map(Money::nanos);
}

impl From<&Usage> for Tokens {
    fn from(usage: &Usage) -> Tokens {
        Tokens {
            input: usage.input,
            output: usage.output,
            cache_read: usage.cache_read,
            cache_write: usage.cache_write,
            reasoning: usage.reasoning,
        }
    }
}

/// Enters into the record of a call what the provider says that it has used. What it does not say stays unknown.
pub fn settle(record: &mut AiCall, spec: &ProviderSpec, model: &str, usage: Option<&Usage>) {
    let Some(usage) = usage else { return };
    record.tokens = Some(Tokens::from(usage));
    record.cost = match spec.cost(model, &Used::from(*usage)) {
        Cost::Known(money) => Some(money.nanos()),
        Cost::Unknown => None,
    };
}

/// Enters what was counted here, because the provider did not tell it.
pub fn counted(record: &mut AiCall, spec: &ProviderSpec, model: &str, usage: &Usage) {
    settle(record, spec, model, Some(usage));
    record.counted = true;
}

/// Enters what an attempt has used that was billed and failed.
pub fn lose(record: &mut AiCall, spec: &ProviderSpec, model: &str, usage: Option<&Usage>) {
    let Some(usage) = usage else { return };
    let lost = &mut record.lost;
    lost.tokens = lost.tokens.plus(&Tokens::from(usage));
    match spec.cost(model, &Used::from(*usage)) {
        Cost::Known(money) => lost.cost = lost.cost.saturating_add(money.nanos()),
        Cost::Unknown => lost.unpriced = true,
    }
}
