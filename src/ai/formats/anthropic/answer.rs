//! Whole answers, both ways.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::block::{Block, tool_id};
use super::failure;
use super::usage::{Usage, Written};
use crate::ai::chat::{ChatAnswer, ChatRequest, Choice, Dropped, Failure, FailureKind, Part, Stop, Thought, ToolCall};
use crate::ai::formats::arguments::Arguments;
use crate::ai::formats::{made_up, tolerant};
use crate::ai::tool_ids;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Message<'b> {
    #[serde(rename = "type", borrow, deserialize_with = "tolerant::text")]
    kind: Option<Cow<'b, str>>,
    id: Option<String>,
    model: Option<String>,
    #[serde(borrow)]
    content: Option<Vec<Read<'b>>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    stop_reason: Option<Cow<'b, str>>,
    stop_sequence: Option<String>,
    stop_details: Option<StopDetails>,
    usage: Option<Usage>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Read<'b> {
    #[serde(rename = "type", borrow, deserialize_with = "tolerant::text")]
    kind: Option<Cow<'b, str>>,
    text: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    data: Option<String>,
    id: Option<String>,
    name: Option<String>,
    #[serde(borrow, deserialize_with = "tolerant::raw")]
    input: Option<Cow<'b, RawValue>>,
    citations: Option<Value>,
}

/// What came with a refusal.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct StopDetails {
    pub explanation: Option<String>,
}

pub(super) fn read(body: &[u8]) -> Result<ChatAnswer, Failure> {
    let unreadable = |_| {
        failure::read_unexpected(body)
            .unwrap_or_else(|| Failure::new(FailureKind::Server, "The provider's answer cannot be read."))
    };
    let message: Message<'_> = serde_json::from_slice(body).map_err(unreadable)?;
    let Some(content) = message.content.filter(|_| message.kind.as_deref() != Some("error")) else {
        let unexpected = || Failure::new(FailureKind::Server, "The provider's answer is no message.");
        return Err(failure::read_unexpected(body).unwrap_or_else(unexpected));
    };
    let mut rest = Map::new();
    let mut parts = Vec::with_capacity(content.len());
    for (index, block) in content.into_iter().enumerate() {
        parts.extend(part(block, index, &mut rest));
    }
    let refusal = message.stop_details.and_then(|details| details.explanation).filter(|text| !text.is_empty());
    parts.extend(refusal.map(|text| Part::Refusal { text }));
    Ok(ChatAnswer {
        id: message.id.unwrap_or_default(),
        model: message.model.unwrap_or_default(),
        created: 0,
        choices: vec![Choice {
            parts,
            stop: message.stop_reason.as_deref().map(stop).unwrap_or_default(),
            stop_sequence: message.stop_sequence,
        }],
        usage: message.usage.map(|usage| usage.neutral()),
        rest,
    })
}

/// The part that a block is; what tools of Anthropic's own say is named in `rest`.
fn part(block: Read<'_>, index: usize, rest: &mut Map<String, Value>) -> Option<Part> {
    let part = match block.kind.as_deref().unwrap_or_default() {
        "text" => Part::Text { text: block.text.unwrap_or_default(), cache: None },
        "tool_use" => Part::ToolCall(ToolCall {
            id: block.id.unwrap_or_default(),
            name: block.name.unwrap_or_default(),
            arguments: block.input.map(|input| input.get().to_owned()).unwrap_or_default(),
            ..ToolCall::default()
        }),
        "thinking" => Part::Reasoning(Thought {
            text: block.thinking.unwrap_or_default(),
            signature: block.signature.filter(|signature| !signature.is_empty()),
            encrypted: None,
        }),
        "redacted_thinking" => Part::Reasoning(Thought { encrypted: block.data, ..Thought::default() }),
        other => {
            rest.insert(format!("content[{index}]"), serde_json::json!({ "type": other }));
            return None;
        }
    };
    if let Some(citations) = block.citations.filter(|citations| !citations.is_null()) {
        rest.insert(format!("content[{index}].citations"), citations);
    }
    Some(part)
}

/// What `stop_reason` means; an unknown one is an end.
pub(super) fn stop(reason: &str) -> Stop {
    match reason {
        "max_tokens" => Stop::MaxTokens,
        "model_context_window_exceeded" => Stop::ContextFull,
        "tool_use" => Stop::ToolUse,
        "refusal" => Stop::Filtered,
        "pause_turn" => Stop::Paused,
        _ => Stop::End,
    }
}

/// How a stop is written. `refused` and `calls` say what the answer holds: other dialects end such answers as any.
pub(super) fn stop_reason(stop: Stop, stop_sequence: Option<&str>, refused: bool, calls: bool) -> &'static str {
    match stop {
        Stop::End if refused => "refusal",
        Stop::End if calls => "tool_use",
        Stop::End if stop_sequence.is_some() => "stop_sequence",
        Stop::End | Stop::Malformed => "end_turn",
        Stop::MaxTokens => "max_tokens",
        Stop::ContextFull => "model_context_window_exceeded",
        Stop::ToolUse => "tool_use",
        Stop::Filtered => "refusal",
        Stop::Paused => "pause_turn",
    }
}

#[derive(Serialize)]
struct WrittenMessage<'a> {
    id: Cow<'a, str>,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<Block<'a>>,
    stop_reason: &'static str,
    stop_sequence: Option<&'a str>,
    usage: Written,
}

/// The answer's id, or one of our own.
pub(super) fn message_id(id: &str) -> Cow<'_, str> {
    match id.is_empty() {
        true => Cow::Owned(made_up("msg_")),
        false => Cow::Borrowed(id),
    }
}

pub(super) fn write(answer: &ChatAnswer, request: &ChatRequest, dropped: &mut Dropped) -> Vec<u8> {
    let mut content = Vec::new();
    let (mut refused, mut calls) = (false, false);
    let first = answer.choices.first();
    for part in first.into_iter().flat_map(|choice| &choice.parts) {
        refused |= matches!(part, Part::Refusal { .. });
        calls |= matches!(part, Part::ToolCall(_));
        blocks(part, &mut content, dropped);
    }
    if answer.choices.len() > 1 {
        dropped.add("choices");
    }
    for path in answer.rest.keys() {
        dropped.add(path.clone());
    }
    let stop_sequence = first.and_then(|choice| choice.stop_sequence.as_deref());
    let message = WrittenMessage {
        id: message_id(&answer.id),
        kind: "message",
        role: "assistant",
        model: if answer.model.is_empty() { &request.model } else { &answer.model },
        content,
        stop_reason: stop_reason(first.map(|choice| choice.stop).unwrap_or_default(), stop_sequence, refused, calls),
        stop_sequence,
        usage: Written::of(&answer.usage.unwrap_or_default()),
    };
    // Texts and numbers can always be written.
    serde_json::to_vec(&message).unwrap_or_default()
}

fn blocks<'a>(part: &'a Part, into: &mut Vec<Block<'a>>, dropped: &mut Dropped) {
    match part {
        Part::Text { text, .. } | Part::Refusal { text } => {
            if !text.is_empty() {
                into.push(Block::Text { text, cache_control: None });
            }
        }
        Part::ToolCall(call) => into.push(Block::ToolUse {
            id: answered_id(&call.id, call.signature.as_deref()),
            name: &call.name,
            input: Arguments(&call.arguments),
            cache_control: None,
        }),
        Part::Reasoning(thought) => {
            if !thought.text.is_empty() || thought.signature.is_some() {
                let signature = thought.signature.as_deref().unwrap_or_default();
                into.push(Block::Thinking { thinking: &thought.text, signature });
            }
            if let Some(data) = &thought.encrypted {
                into.push(Block::RedactedThinking { data });
            }
        }
        Part::Image { .. } => dropped.add("content.image"),
        Part::Document { .. } => dropped.add("content.document"),
        Part::Audio { .. } => dropped.add("content.audio"),
        Part::Video { .. } => dropped.add("content.video"),
        Part::ToolResult(_) => dropped.add("content.tool_result"),
    }
}

/// A call's id as the caller is to replay it: with the signature that a provider wants to see again in it. One whose
/// signature has its own place gets it here.
pub(super) fn answered_id<'a>(id: &'a str, signature: Option<&str>) -> Cow<'a, str> {
    match signature {
        _ if id.is_empty() => Cow::Owned(made_up("toolu_")),
        Some(signature) if tool_ids::signature(id).is_none() => Cow::Owned(tool_ids::signed(id, signature)),
        _ if tool_ids::signature(id).is_some() => Cow::Borrowed(id),
        _ => tool_id(id),
    }
}
