//! Whole answers of Gemini, both ways, and the words for why they end and what they cost, which streams share.

use std::borrow::Cow;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::wire::{
    Answer, Blob, Candidate, Content, FunctionCall, ModalityTokens, Part as Wire, PromptFeedback, UsageMetadata,
};
use super::{failure, signature};
use crate::ai::chat::{
    ChatAnswer, Choice, Dropped, Failure, FailureKind, Part, Source, Stop, Thought, ToolCall, Usage,
};
use crate::ai::formats::{made_up, provider_words};
use crate::ai::tool_ids;

pub fn decode(body: &[u8]) -> Result<ChatAnswer, Failure> {
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(failure::decode(500, body));
    }
    let answer: Answer<'_> = serde_json::from_slice(body)
        .map_err(|error| Failure::new(FailureKind::Server, format!("The provider's answer cannot be read: {error}")))?;
    if let Some(error) = &answer.error {
        return Err(failure::decode_error(error.get()));
    }
    if answer.candidates.is_empty() {
        return Err(match answer.prompt_feedback.as_ref().and_then(blocked) {
            Some(blocked) => blocked,
            None => Failure::new(FailureKind::Server, "The provider answered without a candidate."),
        });
    }
    let mut rest = Map::new();
    Ok(ChatAnswer {
        id: answer.response_id.map(Cow::into_owned).unwrap_or_default(),
        model: answer.model_version.map(Cow::into_owned).unwrap_or_default(),
        created: answer.create_time.as_deref().and_then(seconds).unwrap_or(0),
        usage: answer.usage_metadata.as_ref().map(usage),
        choices: answer.candidates.into_iter().zip(0..).map(|(one, index)| choice(one, index, &mut rest)).collect(),
        rest,
    })
}

/// Why a prompt was blocked, if it was.
pub fn blocked(feedback: &PromptFeedback<'_>) -> Option<Failure> {
    let reason = feedback.block_reason.as_deref()?;
    let message = match feedback.block_reason_message.as_deref() {
        Some(message) => provider_words::fit(FailureKind::ContentFilter, message),
        None => format!("The provider blocked the prompt: {reason}"),
    };
    Some(Failure::new(FailureKind::ContentFilter, message))
}

pub fn seconds(time: &str) -> Option<i64> {
    Some(time.parse::<jiff::Timestamp>().ok()?.as_second())
}

fn choice(candidate: Candidate<'_>, index: usize, rest: &mut Map<String, Value>) -> Choice {
    /// Told with every answer, and of no use to those who did not ask.
    const COMMENTARY: &[&str] = &["safetyRatings", "avgLogprobs", "tokenCount", "finishMessage"];
    for (name, value) in candidate.rest {
        if !COMMENTARY.contains(&name.as_str()) {
            rest.insert(format!("candidates[{index}].{name}"), value);
        }
    }
    let mut parts = Vec::new();
    for (mut part, at) in candidate.content.into_iter().flat_map(|content| content.parts).zip(0..) {
        for (name, value) in std::mem::take(&mut part.rest) {
            rest.insert(format!("candidates[{index}].content.parts[{at}].{name}"), value);
        }
        read_part(part, &mut parts);
    }
    let called = parts.iter().any(|part| matches!(part, Part::ToolCall(_)));
    Choice { parts, stop: stop(candidate.finish_reason.as_deref(), called), stop_sequence: None }
}

fn read_part(part: Wire<'_>, into: &mut Vec<Part>) {
    let signature = part.thought_signature.as_deref();
    if let Some(call) = part.function_call {
        let id = match call.id.filter(|id| !id.is_empty()) {
            Some(id) => id.into_owned(),
            None => made_up("call_"),
        };
        into.push(Part::ToolCall(ToolCall {
            id: signature.map_or_else(|| id.clone(), |signature| tool_ids::signed(&id, signature)),
            name: call.name.map(Cow::into_owned).unwrap_or_default(),
            arguments: call.args.map(|args| args.get().to_owned()).unwrap_or_default(),
            signature: signature.map(str::to_owned),
            cache: None,
        }));
        return;
    }
    if part.thought {
        let text = part.text.map(Cow::into_owned).unwrap_or_default();
        into.push(Part::Reasoning(signature::thought(text, signature)));
        return;
    }
    match (part.text, part.inline_data) {
        (Some(text), _) if !text.is_empty() => match into.last_mut() {
            Some(Part::Text { text: before, .. }) => before.push_str(&text),
            _ => into.push(Part::Text { text: text.into_owned(), cache: None }),
        },
        (_, Some(blob)) => into.extend(media(blob)),
        // Code that was run, results of searches: nothing that other dialects know.
        _ => {}
    }
    if signature.is_some() {
        into.push(Part::Reasoning(signature::thought(String::new(), signature)));
    }
}

/// What a model can answer with besides text.
fn media(blob: Blob<'_>) -> Option<Part> {
    let media_type = blob.mime_type.map(Cow::into_owned).unwrap_or_default();
    let audio = media_type.starts_with("audio/");
    let source = Source::Data { media_type, base64: blob.data?.into_owned() };
    Some(match audio {
        true => Part::Audio { source },
        false => Part::Image { source, detail: None, cache: None },
    })
}

/// Why an answer ended; `called` says whether it holds calls of tools, for which Gemini has no reason of its own.
pub fn stop(reason: Option<&str>, called: bool) -> Stop {
    match reason.unwrap_or_default() {
        "MAX_TOKENS" => Stop::MaxTokens,
        "SAFETY"
        | "RECITATION"
        | "LANGUAGE"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "MODEL_ARMOR"
        | "IMAGE_SAFETY"
        | "IMAGE_PROHIBITED_CONTENT"
        | "IMAGE_RECITATION"
        | "IMAGE_OTHER"
        | "ESCALATION" => Stop::Filtered,
        "MALFORMED_FUNCTION_CALL"
        | "UNEXPECTED_TOOL_CALL"
        | "TOO_MANY_TOOL_CALLS"
        | "MALFORMED_RESPONSE"
        | "MISSING_THOUGHT_SIGNATURE" => Stop::Malformed,
        "CONTINUATION" => Stop::Paused,
        _ if called => Stop::ToolUse,
        _ => Stop::End,
    }
}

pub fn finish_reason(stop: Stop) -> &'static str {
    match stop {
        Stop::End | Stop::ToolUse => "STOP",
        Stop::MaxTokens | Stop::ContextFull => "MAX_TOKENS",
        Stop::Filtered => "SAFETY",
        Stop::Paused => "OTHER",
        Stop::Malformed => "MALFORMED_FUNCTION_CALL",
    }
}

pub fn usage(told: &UsageMetadata) -> Usage {
    let count = |tokens: Option<i64>| tokens.unwrap_or(0).max(0) as u64;
    let audio = |details: &[ModalityTokens]| {
        let audio = details.iter().filter(|detail| detail.modality.as_deref() == Some("AUDIO"));
        audio.map(|detail| count(detail.token_count)).sum()
    };
    let input = count(told.prompt_token_count).saturating_add(count(told.tool_use_prompt_token_count));
    let thoughts = count(told.thoughts_token_count);
    Usage {
        input,
        output: match (told.candidates_token_count, told.total_token_count) {
            (None, Some(total)) => count(Some(total)).saturating_sub(input).max(thoughts),
            (answer, _) => count(answer).saturating_add(thoughts),
        },
        cache_read: count(told.cached_content_token_count),
        reasoning: thoughts,
        audio_input: audio(&told.prompt_tokens_details),
        audio_output: audio(&told.candidates_tokens_details),
        ..Usage::default()
    }
}

pub fn usage_metadata(usage: &Usage) -> UsageMetadata {
    let tokens = |count: u64| Some(i64::try_from(count).unwrap_or(i64::MAX));
    let some = |count: u64| (count > 0).then(|| tokens(count)).flatten();
    let details = |all: u64, audio: u64| match audio {
        0 => Vec::new(),
        audio => [("TEXT", all.saturating_sub(audio)), ("AUDIO", audio)]
            .into_iter()
            .map(|(name, count)| ModalityTokens { modality: Some(name.into()), token_count: tokens(count) })
            .collect(),
    };
    let answer = usage.output.saturating_sub(usage.reasoning);
    UsageMetadata {
        prompt_token_count: tokens(usage.input),
        candidates_token_count: tokens(answer),
        total_token_count: tokens(usage.input.saturating_add(usage.output)),
        cached_content_token_count: some(usage.cache_read),
        tool_use_prompt_token_count: None,
        thoughts_token_count: some(usage.reasoning),
        prompt_tokens_details: details(usage.input, usage.audio_input),
        candidates_tokens_details: details(answer, usage.audio_output),
    }
}

pub fn encode(answer: &ChatAnswer, dropped: &mut Dropped) -> Vec<u8> {
    answer.rest.keys().for_each(|name| dropped.add(name.clone()));
    let candidates = answer.choices.iter().zip(0..).map(|(choice, index)| {
        let mut parts = Vec::with_capacity(choice.parts.len());
        for (at, part) in choice.parts.iter().enumerate() {
            match part {
                Part::Text { text, .. } | Part::Refusal { text } => {
                    parts.push(Wire { text: Some(text.as_str().into()), ..Wire::default() });
                }
                Part::Reasoning(thought) => write_thought(thought, &mut parts),
                Part::ToolCall(call) => parts.push(write_call(call)),
                Part::Image { source, .. } | Part::Audio { source } => match source {
                    Source::Data { media_type, base64 } => parts.push(write_blob(media_type, base64)),
                    _ => dropped.add(format!("choices[{index}].parts[{at}]")),
                },
                _ => dropped.add(format!("choices[{index}].parts[{at}]")),
            }
        }
        Candidate {
            content: Some(Content { parts, role: Some("model".into()) }),
            finish_reason: Some(finish_reason(choice.stop).into()),
            index: Some(index),
            rest: Map::new(),
        }
    });
    let written = Answer {
        candidates: candidates.collect(),
        usage_metadata: answer.usage.as_ref().map(usage_metadata),
        model_version: Some(answer.model.as_str().into()),
        response_id: Some(answer.id.as_str().into()),
        ..Answer::default()
    };
    serde_json::to_vec(&written).unwrap_or_default()
}

/// A thought, or a signature of the part before it.
pub fn write_thought<'t>(thought: &'t Thought, parts: &mut Vec<Wire<'t>>) {
    let signature = signature::for_caller(thought.signature.as_deref(), thought.encrypted.as_deref());
    let of_text =
        thought.text.is_empty() && thought.encrypted.as_deref().is_some_and(|text| text.starts_with(signature::OWN));
    match parts.last_mut() {
        Some(part) if of_text && part.text.is_some() && part.thought_signature.is_none() => {
            part.thought_signature = signature;
        }
        _ => parts.push(Wire {
            text: Some(thought.text.as_str().into()),
            thought: !of_text,
            thought_signature: signature,
            ..Wire::default()
        }),
    }
}

fn write_call(call: &ToolCall) -> Wire<'_> {
    let signature = call.signature.as_deref().map(Cow::Borrowed);
    Wire {
        thought_signature: signature.or_else(|| tool_ids::signature(&call.id).map(Cow::Owned)),
        function_call: Some(FunctionCall {
            id: Some(tool_ids::bare(&call.id).into()),
            name: Some(call.name.as_str().into()),
            args: Some(arguments(&call.arguments)),
            ..FunctionCall::default()
        }),
        ..Wire::default()
    }
}

pub fn write_blob<'b>(media_type: &'b str, base64: &'b str) -> Wire<'b> {
    Wire {
        inline_data: Some(Blob { mime_type: Some(media_type.into()), data: Some(base64.into()), display_name: None }),
        ..Wire::default()
    }
}

/// Arguments as a JSON object on one line. What a model wrote amiss is kept as the text that it is.
pub fn arguments(text: &str) -> Cow<'_, RawValue> {
    let trimmed = text.trim();
    if trimmed.starts_with('{') {
        if !trimmed.contains(['\n', '\r']) {
            if let Ok(raw) = serde_json::from_str::<&RawValue>(trimmed) {
                return Cow::Borrowed(raw);
            }
        } else if let Some(raw) = on_one_line(trimmed) {
            return Cow::Owned(raw);
        }
    }
    let kept = match trimmed {
        "" | "null" => serde_json::Map::new(),
        _ => serde_json::Map::from_iter([("arguments".to_owned(), text.into())]),
    };
    Cow::Owned(serde_json::value::to_raw_value(&kept).unwrap_or_else(|_| RawValue::NULL.to_owned()))
}

/// Line ends are no part of a JSON document's meaning: inside of texts they are escaped.
fn on_one_line(json: &str) -> Option<Box<RawValue>> {
    RawValue::from_string(json.replace(['\n', '\r'], " ")).ok()
}
