//! How much a Claude shall think: from an effort or a budget to what the model takes, within `max_tokens`.
//!
//! | effort | minimal | low | medium | high | xhigh | max |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | tokens of thought | 1024 | 2048 | 4096 | 8192 | 16384 | 24000 |
//!
//! An effort never takes more than half of `max_tokens`, so that an answer is left; a budget that the caller wrote is only cut
//! where it would leave none. Below 1024 tokens a model does not think at all.

use serde::Serialize;

use super::write_request::ANSWER_TOKENS;
use crate::ai::chat::{ChatRequest, Dropped, Effort, Part, Role, ToolChoice};

const LEAST_BUDGET: u64 = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Thinking {
    Enabled {
        budget_tokens: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        display: Option<&'static str>,
    },
    Adaptive {
        #[serde(skip_serializing_if = "Option::is_none")]
        display: Option<&'static str>,
    },
    Disabled,
}

/// What is written of [`ChatRequest::reasoning`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Plan {
    pub thinking: Option<Thinking>,
    /// `output_config.effort`
    pub effort: Option<&'static str>,
    /// Large enough for the budget and an answer; `None` if neither the caller nor a budget needs one.
    pub max_tokens: Option<u64>,
}

impl Plan {
    /// Whether the model will think.
    pub fn thinks(&self) -> bool {
        matches!(self.thinking, Some(Thinking::Enabled { .. } | Thinking::Adaptive { .. }))
    }
}

/// `adaptive`: the model takes an effort instead of a budget. What cannot be is noted as `reasoning`.
pub fn plan(request: &ChatRequest, adaptive: bool, dropped: &mut Dropped) -> Plan {
    let mut plan = Plan { max_tokens: request.max_tokens, ..Plan::default() };
    let Some(reasoning) = &request.reasoning else { return plan };
    if reasoning.effort == Some(Effort::None) || reasoning.budget == Some(0) {
        plan.thinking = Some(Thinking::Disabled);
        return plan;
    }
    if matches!(request.tool_choice, Some(ToolChoice::Any | ToolChoice::Tool(_))) {
        // A model that thinks chooses its tools itself.
        dropped.add("reasoning");
        return plan;
    }
    let display = reasoning.shown.map(|shown| if shown { "summarized" } else { "omitted" });
    let budget = match (reasoning.budget, reasoning.effort) {
        _ if adaptive => None,
        (Some(budget), _) => Some(fit(budget, request.max_tokens, |max| budget >= max)),
        (None, Some(effort)) => Some(fit(budget_of(effort), request.max_tokens, |max| budget_of(effort) > max / 2)),
        (None, None) => None,
    };
    let Some(budget) = budget else {
        plan.thinking = Some(Thinking::Adaptive { display });
        plan.effort = reasoning.effort.or(reasoning.budget.map(effort_of)).map(name);
        return plan;
    };
    match budget {
        Some(budget_tokens) if may_think_with_budget(request) => {
            plan.thinking = Some(Thinking::Enabled { budget_tokens, display });
            plan.effort = reasoning.budget.and(reasoning.effort).map(name);
            plan.max_tokens = request.max_tokens.or(Some(budget_tokens.saturating_add(ANSWER_TOKENS)));
        }
        _ => dropped.add("reasoning"),
    }
    plan
}

/// The budget within `max_tokens`, halved where it is too much; `None` if too little is left to think.
fn fit(budget: u64, max_tokens: Option<u64>, too_much: impl Fn(u64) -> bool) -> Option<u64> {
    match max_tokens {
        Some(max) if max <= LEAST_BUDGET => None,
        Some(max) if too_much(max) => Some((max / 2).max(LEAST_BUDGET)),
        _ => Some(budget.max(LEAST_BUDGET)),
    }
}

/// With a budget, an answer that called tools has to begin with the thoughts that led to it. Callers of other dialects cannot
/// replay them, and the model goes on without thinking rather than not at all.
fn may_think_with_budget(request: &ChatRequest) -> bool {
    let last = request.messages.iter().rfind(|message| message.role == Role::Assistant);
    let Some(last) = last else { return true };
    let calls = last.parts.iter().any(|part| matches!(part, Part::ToolCall(_)));
    let thoughts = last.parts.iter().any(|part| match part {
        Part::Reasoning(thought) => thought.signature.is_some() || thought.encrypted.is_some(),
        _ => false,
    });
    // Only where the results of those tools are what the model goes on from.
    let answered = request.messages.last().is_some_and(|message| {
        message.role == Role::User && message.parts.iter().any(|part| matches!(part, Part::ToolResult(_)))
    });
    !calls || thoughts || !answered
}

fn budget_of(effort: Effort) -> u64 {
    match effort {
        Effort::None | Effort::Minimal => LEAST_BUDGET,
        Effort::Low => 2048,
        Effort::Medium => 4096,
        Effort::High => 8192,
        Effort::ExtraHigh => 16384,
        // With the tokens of an answer, the 32,000 that the smallest thinking model allows.
        Effort::Max => 24_000,
    }
}

/// The effort whose budget is nearest, from below.
pub fn effort_of(budget: u64) -> Effort {
    [Effort::Max, Effort::ExtraHigh, Effort::High, Effort::Medium, Effort::Low]
        .into_iter()
        .find(|effort| budget >= budget_of(*effort))
        .unwrap_or(Effort::Minimal)
}

/// Its name in `output_config`, which knows none below `low`.
pub fn name(effort: Effort) -> &'static str {
    match effort {
        Effort::None | Effort::Minimal | Effort::Low => "low",
        Effort::Medium => "medium",
        Effort::High => "high",
        Effort::ExtraHigh => "xhigh",
        Effort::Max => "max",
    }
}
