//! How many tokens a call would have: asked of a provider that counts for others, or estimated.
//!
//! An estimate is made of lengths alone, in time that does not depend on what the texts say, and rather too high than too low.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat::{ChatRequest, Dropped, Failure, FailureKind, Message, Part, Source};
use super::endpoint::Endpoint;
use super::formats::anthropic::hosted::Host;
use super::formats::reading::Count;
use super::formats::writing::object;
use super::formats::{Format, bedrock};
use super::quirks::Quirks;
use super::tokens;

/// An image or a page is worth about so many.
const IMAGE: u64 = 1_000;
/// What each message and each tool adds of its own.
const AROUND: u64 = 4;

/// Whether a provider counts, and where: the path of its method.
pub fn path(endpoint: &Endpoint, model: &str, quirks: Quirks) -> Option<String> {
    match endpoint.format {
        Format::Anthropic if Host::of(quirks).is_none() => Some(endpoint.path("/messages/count_tokens")),
        Format::Gemini => Some(endpoint.gemini_path(model, "countTokens")),
        Format::Bedrock => Some(endpoint.path(&bedrock::path(model, bedrock::Operation::CountTokens))),
        _ => None,
    }
}

/// The body of a request to count, of a chat request that was written in the provider's format.
pub fn encode(format: Format, model: &str, chat: &[u8]) -> Result<Bytes, Failure> {
    let unwritten = |_| Failure::new(FailureKind::Server, "the call cannot be written anew");
    let mut chat: Map<String, Value> = serde_json::from_slice(chat).map_err(unwritten)?;
    let body = match format {
        Format::Gemini => {
            chat.insert("model".to_owned(), format!("models/{model}").into());
            json!({ "generateContentRequest": chat })
        }
        Format::Bedrock => {
            chat.retain(|name, _| matches!(name.as_str(), "messages" | "system" | "toolConfig"));
            json!({ "input": { "converse": chat } })
        }
        _ => {
            let known = ["model", "messages", "system", "tools", "tool_choice", "thinking", "output_config"];
            chat.retain(|name, _| known.contains(&name.as_str()));
            Value::Object(chat)
        }
    };
    Ok(body.to_string().into())
}

#[derive(Deserialize)]
struct Counted {
    #[serde(alias = "totalTokens", alias = "inputTokens")]
    input_tokens: Count,
}

/// What a provider has counted.
pub fn decode(body: &[u8]) -> Result<u64, Failure> {
    let counted: Counted = serde_json::from_slice(body)
        .map_err(|error| Failure::new(FailureKind::Server, format!("the provider has counted nothing: {error}")))?;
    Ok(counted.input_tokens.0)
}

/// The answer in a caller's dialect.
pub fn answer(format: Format, tokens: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    let name = if format == Format::Gemini { "totalTokens" } else { "input_tokens" };
    object(&mut out, |o| o.set(name, &tokens));
    out
}

/// The tokens of a prompt.
pub fn estimate(request: &ChatRequest) -> u64 {
    let messages: u64 = request.messages.iter().map(message).sum();
    let tools = request.tools.iter().map(|tool| {
        let schema = tool.parameters.as_ref().map_or(0, |schema| tokens::estimate(&schema.to_string()));
        AROUND + tokens::estimate(&tool.name) + tool.description.as_deref().map_or(0, tokens::estimate) + schema
    });
    messages + tools.sum::<u64>()
}

fn message(message: &Message) -> u64 {
    AROUND + message.parts.iter().map(part).sum::<u64>()
}

fn part(part: &Part) -> u64 {
    match part {
        Part::Text { text, .. } | Part::Refusal { text } => tokens::estimate(text),
        Part::Image { .. } => IMAGE,
        // A page of a PDF is some fifty kilobytes.
        Part::Document { source, .. } => IMAGE * (1 + source_bytes(source) / 50_000),
        // A second of speech is some ten tokens, and 32 kilobytes at most.
        Part::Audio { source } | Part::Video { source } => 10 * (1 + source_bytes(source) / 32_000),
        Part::ToolCall(call) => AROUND + tokens::estimate(&call.name) + tokens::estimate(&call.arguments),
        Part::ToolResult(result) => AROUND + result.content.iter().map(self::part).sum::<u64>(),
        Part::Reasoning(thought) => tokens::estimate(&thought.text),
    }
}

fn source_bytes(source: &Source) -> u64 {
    match source {
        Source::Data { base64, .. } => base64.len() as u64 / 4 * 3,
        Source::Url(_) | Source::File { .. } => 0,
    }
}

/// Gemini's callers may wrap the call that is to be counted.
pub fn unwrap_gemini(body: &Bytes) -> Bytes {
    #[derive(Deserialize)]
    struct Wrapped<'b> {
        #[serde(borrow, rename = "generateContentRequest", alias = "generate_content_request")]
        inner: &'b serde_json::value::RawValue,
    }
    match serde_json::from_slice::<Wrapped<'_>>(body) {
        Ok(wrapped) => body.slice_ref(wrapped.inner.get().as_bytes()),
        Err(_) => body.clone(),
    }
}

/// A chat request in a provider's format, of which only the prompt counts.
pub fn prompt(
    request: &ChatRequest,
    format: Format,
    model: &str,
    quirks: Quirks,
    dropped: &mut Dropped,
) -> Result<Bytes, Failure> {
    let spoken = format.provider().ok_or_else(|| Failure::new(FailureKind::NotFound, "the provider does not chat"))?;
    encode(format, model, &spoken.encode_request(request, model, quirks, dropped)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ai::formats::PathFacts;

    fn chat(format: Format, body: &Value) -> ChatRequest {
        let path = PathFacts { model: Some("m"), stream: Some(false) };
        format.caller().unwrap().decode_request(body.to_string().as_bytes(), path).unwrap()
    }

    fn asked(request: &ChatRequest, format: Format) -> Value {
        let body = prompt(request, format, "m", Quirks::default(), &mut Dropped::default()).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    #[test]
    fn each_provider_that_counts_is_asked_in_its_own_words() {
        let call = json!({ "model": "x", "system": "be brief", "messages": [{ "role": "user", "content": "Hi" }] });
        let request = chat(Format::Anthropic, &call);
        let gemini = asked(&request, Format::Gemini);
        assert_eq!(gemini["generateContentRequest"]["model"], "models/m");
        assert_eq!(gemini["generateContentRequest"]["contents"][0]["parts"][0]["text"], "Hi");
        let bedrock = asked(&request, Format::Bedrock);
        assert_eq!(bedrock["input"]["converse"]["messages"][0]["content"][0]["text"], "Hi");
        assert!(bedrock["input"]["converse"].get("inferenceConfig").is_none());
        let of_gemini = chat(Format::Gemini, &json!({ "contents": [{ "role": "user", "parts": [{ "text": "Hi" }] }] }));
        let anthropic = asked(&of_gemini, Format::Anthropic);
        assert_eq!((&anthropic["model"], anthropic.get("max_tokens")), (&json!("m"), None));
    }

    #[test]
    fn counts_are_read_and_told_in_each_dialect() {
        for body in [r#"{"input_tokens":7}"#, r#"{"totalTokens":7,"x":1}"#, r#"{"inputTokens":7}"#] {
            assert_eq!(decode(body.as_bytes()), Ok(7), "{body}");
        }
        assert!(decode(b"{}").is_err());
        assert_eq!(answer(Format::Anthropic, 7), br#"{"input_tokens":7}"#);
        assert_eq!(answer(Format::Gemini, 7), br#"{"totalTokens":7}"#);
    }

    #[test]
    fn an_estimate_grows_with_what_is_said() {
        let of = |text: &str| {
            estimate(&chat(Format::Anthropic, &json!({ "messages": [{ "role": "user", "content": text }] })))
        };
        assert_eq!(of(&"word ".repeat(100)), 4 + 125);
        assert_eq!(of("日本語"), 4 + 3);
        assert!(of("a") < of("a longer text"));
    }

    #[test]
    fn what_gemini_wraps_is_unwrapped_without_a_copy() {
        let body = Bytes::from_static(br#"{"generateContentRequest": {"contents": []}}"#);
        assert_eq!(unwrap_gemini(&body), br#"{"contents": []}"#.as_slice());
        let plain = Bytes::from_static(br#"{"contents": []}"#);
        assert_eq!(unwrap_gemini(&plain), plain);
    }
}
