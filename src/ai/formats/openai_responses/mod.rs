//! OpenAI's Responses. Whole and streamed answers hold items: messages, calls of tools, reasoning.
//!
//! - Nothing is stored: providers are told `store: false` unless the caller of this same dialect says otherwise, and thoughts
//!   come and go as `encrypted_content`. That of other vendors' models holds their signature, as `signature:<signature>`.
//! - What goes on from stored state (`previous_response_id`, `conversation`, `item_reference` …) is for providers that speak
//!   Responses; others refuse it, see [`ChatRequest::refuse_stored_state`].
//! - Built-in tools, and items that stand for their calls, are kept in [`ChatRequest::rest`] as `tools[1]`, `input[3]`.

mod answer;
mod failure;
mod read_request;
mod read_stream;
#[cfg(test)]
mod tests;
mod wire;
mod write_request;
mod write_stream;

use http::HeaderMap;

use super::{Caller, EventDecoder, EventEncoder, PathFacts, Provider};
use crate::ai::chat::{ChatAnswer, ChatRequest, Dropped, Failure};
use crate::ai::quirks::Quirks;
use crate::ai::stream::Framing;

/// What `encrypted_content` begins with if it holds a signature of another vendor.
const SIGNATURE: &str = "signature:";

pub struct OpenAiResponses;

impl Caller for OpenAiResponses {
    fn decode_request(&self, body: &[u8], _path: PathFacts<'_>) -> Result<ChatRequest, Failure> {
        read_request::decode(body)
    }

    fn encode_answer(&self, answer: &ChatAnswer, request: &ChatRequest, dropped: &mut Dropped) -> Vec<u8> {
        answer::encode(answer, request, dropped)
    }

    fn encoder(&self, request: &ChatRequest) -> Box<dyn EventEncoder> {
        Box::new(write_stream::Encoder::new(request))
    }

    fn encode_failure(&self, failure: &Failure, _request_id: &str) -> Vec<u8> {
        failure::encode(failure)
    }

    fn framing(&self) -> Framing {
        Framing::Sse
    }
}

impl Provider for OpenAiResponses {
    fn encode_request(
        &self,
        request: &ChatRequest,
        model: &str,
        quirks: Quirks,
        dropped: &mut Dropped,
    ) -> Result<Vec<u8>, Failure> {
        write_request::encode(request, model, quirks, dropped)
    }

    fn decode_answer(&self, body: &[u8]) -> Result<ChatAnswer, Failure> {
        answer::decode(body)
    }

    fn decoder(&self) -> Box<dyn EventDecoder> {
        Box::<read_stream::Decoder>::default()
    }

    fn decode_failure(&self, status: u16, _headers: &HeaderMap, body: &[u8]) -> Failure {
        failure::decode(status, body)
    }

    fn framing(&self) -> Framing {
        Framing::Sse
    }
}
