//! Whole answers.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Map;
use serde_json::value::RawValue;

use crate::ai::chat::{ChatAnswer, Choice, Failure, FailureKind, Part, Source, Stop, Thought, ToolCall, Usage};
use crate::ai::formats::tolerant;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Answer<'b> {
    #[serde(borrow)]
    output: Option<Output<'b>>,
    #[serde(rename = "stopReason", borrow, deserialize_with = "tolerant::text")]
    stop_reason: Option<Cow<'b, str>>,
    usage: Option<TokenUsage>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Output<'b> {
    #[serde(borrow)]
    message: Option<Message<'b>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Message<'b> {
    #[serde(borrow)]
    content: Option<Vec<Block<'b>>>,
}

/// A block has one of these.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Block<'b> {
    text: Option<String>,
    #[serde(borrow)]
    tool_use: Option<ToolUse<'b>>,
    reasoning_content: Option<ReasoningContent>,
    citations_content: Option<CitationsContent>,
    image: Option<Image>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ToolUse<'b> {
    tool_use_id: Option<String>,
    name: Option<String>,
    #[serde(borrow, deserialize_with = "tolerant::raw")]
    input: Option<Cow<'b, RawValue>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ReasoningContent {
    reasoning_text: Option<ReasoningText>,
    redacted_content: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ReasoningText {
    text: Option<String>,
    signature: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CitationsContent {
    content: Option<Vec<CitedText>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CitedText {
    text: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Image {
    format: Option<String>,
    source: Option<ImageSource>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ImageSource {
    bytes: Option<String>,
}

/// Tokens; those of the cache are beside `inputTokens`.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct TokenUsage {
    #[serde(deserialize_with = "tolerant::count")]
    input_tokens: Option<u64>,
    #[serde(deserialize_with = "tolerant::count")]
    output_tokens: Option<u64>,
    #[serde(deserialize_with = "tolerant::count")]
    cache_read_input_tokens: Option<u64>,
    #[serde(deserialize_with = "tolerant::count")]
    cache_write_input_tokens: Option<u64>,
    cache_details: Option<Vec<CacheDetail>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct CacheDetail {
    ttl: Option<String>,
    #[serde(deserialize_with = "tolerant::count")]
    input_tokens: Option<u64>,
}

impl TokenUsage {
    pub fn neutral(&self) -> Usage {
        let cache_read = self.cache_read_input_tokens.unwrap_or_default();
        let cache_write = self.cache_write_input_tokens.unwrap_or_default();
        let long = self.cache_details.iter().flatten().filter(|detail| detail.ttl.as_deref() == Some("1h"));
        let long = long.filter_map(|detail| detail.input_tokens).fold(0, u64::saturating_add);
        Usage {
            input: self.input_tokens.unwrap_or_default().saturating_add(cache_read).saturating_add(cache_write),
            output: self.output_tokens.unwrap_or_default(),
            cache_read,
            cache_write,
            cache_write_long: long.min(cache_write),
            ..Usage::default()
        }
    }
}

pub(super) fn read(body: &[u8]) -> Result<ChatAnswer, Failure> {
    let unreadable = || Failure::new(FailureKind::Server, "The provider's answer cannot be read.");
    let answer: Answer<'_> = serde_json::from_slice(body).map_err(|_| unreadable())?;
    let message = answer.output.and_then(|output| output.message).ok_or_else(unreadable)?;
    let parts = message.content.unwrap_or_default().into_iter().filter_map(part).collect();
    let stop = answer.stop_reason.as_deref().map(stop).unwrap_or_default();
    Ok(ChatAnswer {
        id: String::new(),
        model: String::new(),
        created: 0,
        choices: vec![Choice { parts, stop, stop_sequence: None }],
        usage: answer.usage.map(|usage| usage.neutral()),
        rest: Map::new(),
    })
}

fn part(block: Block<'_>) -> Option<Part> {
    if let Some(text) = block.text {
        return Some(Part::Text { text, cache: None });
    }
    if let Some(call) = block.tool_use {
        return Some(Part::ToolCall(ToolCall {
            id: call.tool_use_id.unwrap_or_default(),
            name: call.name.unwrap_or_default(),
            arguments: call.input.map(|input| input.get().to_owned()).unwrap_or_default(),
            ..ToolCall::default()
        }));
    }
    if let Some(reasoning) = block.reasoning_content {
        let shown = reasoning.reasoning_text.unwrap_or_default();
        return Some(Part::Reasoning(Thought {
            text: shown.text.unwrap_or_default(),
            signature: shown.signature.filter(|signature| !signature.is_empty()),
            encrypted: reasoning.redacted_content,
        }));
    }
    if let Some(cited) = block.citations_content {
        let text = cited.content.unwrap_or_default().into_iter().filter_map(|text| text.text).collect();
        return Some(Part::Text { text, cache: None });
    }
    let image = block.image?;
    let media_type = ["image/", image.format.as_deref().unwrap_or("png")].concat();
    let source = Source::Data { media_type, base64: image.source?.bytes? };
    Some(Part::Image { source, detail: None, cache: None })
}

/// What `stopReason` means; an unknown one is an end.
pub(super) fn stop(reason: &str) -> Stop {
    match reason {
        "tool_use" => Stop::ToolUse,
        "max_tokens" => Stop::MaxTokens,
        "model_context_window_exceeded" => Stop::ContextFull,
        "guardrail_intervened" | "content_filtered" => Stop::Filtered,
        "malformed_model_output" | "malformed_tool_use" => Stop::Malformed,
        _ => Stop::End,
    }
}
