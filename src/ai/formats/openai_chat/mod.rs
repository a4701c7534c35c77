//! OpenAI's chat completions, which most other providers speak too, each with deviations of its own.
//!
//! What the format has no place for is written where OpenAI-compatible gateways have agreed on one: `reasoning_content`,
//! `reasoning_details` with the signatures of thoughts, `cache_control` on parts. A provider is given those only if its
//! quirks say that it takes them.

mod answer;
mod failure;
mod read_request;
mod read_stream;
#[cfg(test)]
mod tests;
mod thoughts;
pub(super) mod usage;
mod write_request;
mod write_stream;

use http::HeaderMap;

pub(super) use failure::inside as failure_inside;

use super::{Caller, EventDecoder, EventEncoder, PathFacts, Provider};
use crate::ai::chat::{ChatAnswer, ChatRequest, Dropped, Failure, Stop};
use crate::ai::quirks::Quirks;
use crate::ai::stream::Framing;

pub struct OpenAiChat;

impl Caller for OpenAiChat {
    fn decode_request(&self, body: &[u8], path: PathFacts<'_>) -> Result<ChatRequest, Failure> {
        read_request::read(body, path)
    }

    fn encode_answer(&self, answer: &ChatAnswer, request: &ChatRequest, dropped: &mut Dropped) -> Vec<u8> {
        answer::write(answer, request, dropped)
    }

    fn encoder(&self, request: &ChatRequest) -> Box<dyn EventEncoder> {
        Box::new(write_stream::Encoder::new(request))
    }

    fn encode_failure(&self, failure: &Failure, _request_id: &str) -> Vec<u8> {
        failure::write(failure)
    }

    fn framing(&self) -> Framing {
        Framing::Sse
    }
}

impl Provider for OpenAiChat {
    fn encode_request(
        &self,
        request: &ChatRequest,
        model: &str,
        quirks: Quirks,
        dropped: &mut Dropped,
    ) -> Result<Vec<u8>, Failure> {
        Ok(write_request::write(request, model, quirks, dropped))
    }

    fn decode_answer(&self, body: &[u8]) -> Result<ChatAnswer, Failure> {
        answer::read(body)
    }

    fn decoder(&self) -> Box<dyn EventDecoder> {
        Box::<read_stream::Decoder>::default()
    }

    fn decode_failure(&self, status: u16, _headers: &HeaderMap, body: &[u8]) -> Failure {
        failure::read(status, body)
    }

    fn framing(&self) -> Framing {
        Framing::Sse
    }
}

/// What a provider's word for the end of an answer means. Engines have words of their own; one that is not known is an end
/// like any other. Several providers say `stop` although tools are to be called: that calls were seen counts for more.
pub(super) fn stop_of(finish_reason: &str, calls_seen: bool, refused: bool) -> Stop {
    match finish_reason {
        "length" | "max_tokens" | "insufficient_system_resource" => Stop::MaxTokens,
        "model_context_window_exceeded" | "model_length" => Stop::ContextFull,
        "content_filter" | "content_filtered" | "safety" | "sensitive" => Stop::Filtered,
        "tool_calls" | "tool_use" | "function_call" => Stop::ToolUse,
        _ if calls_seen => Stop::ToolUse,
        _ if refused => Stop::Filtered,
        _ => Stop::End,
    }
}

/// OpenAI's word. `refused` says that the model itself wrote a refusal, which OpenAI calls an ordinary end.
pub(super) fn finish_reason(stop: Stop, refused: bool, legacy: bool) -> &'static str {
    match stop {
        Stop::MaxTokens | Stop::ContextFull => "length",
        Stop::ToolUse if legacy => "function_call",
        Stop::ToolUse => "tool_calls",
        Stop::Filtered if !refused => "content_filter",
        Stop::End | Stop::Filtered | Stop::Paused | Stop::Malformed => "stop",
    }
}

/// Seconds since 1970, for a provider that does not say when its answer was made.
pub(super) fn created_or_now(created: i64) -> i64 {
    if created > 0 {
        return created;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or_default())
}

/// What kind of recording bytes are, by how they begin in base64. OpenAI's answers do not say it.
fn audio_type(base64: &str) -> &'static str {
    match base64.get(..4) {
        Some("UklG") => "audio/wav",
        Some("T2dn") => "audio/ogg",
        Some("Zkxh") => "audio/flac",
        Some("SUQz" | "//uQ" | "//vQ" | "//NE") => "audio/mpeg",
        _ => "audio/pcm",
    }
}
