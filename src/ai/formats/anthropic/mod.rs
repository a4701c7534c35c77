//! Anthropic Messages: `POST /v1/messages`, spoken by callers, by Anthropic, and with small differences by Bedrock and Vertex.
//!
//! What Anthropic shows of its sources (`citations`) has no place in the neutral form, and is left out of translated answers.

mod answer;
mod block;
mod decoder;
mod encoder;
mod failure;
pub mod hosted;
mod read_request;
pub(super) mod thinking;
mod usage;
pub(super) mod write_request;

#[cfg(test)]
mod tests;

use http::HeaderMap;

use super::{Caller, EventDecoder, EventEncoder, PathFacts, Provider};
use crate::ai::chat::{ChatAnswer, ChatRequest, Dropped, Failure};
use crate::ai::quirks::Quirks;
use crate::ai::stream::Framing;

pub struct Anthropic;

impl Caller for Anthropic {
    fn decode_request(&self, body: &[u8], path: PathFacts<'_>) -> Result<ChatRequest, Failure> {
        read_request::read(body, path)
    }

    fn encode_answer(&self, answer: &ChatAnswer, request: &ChatRequest, dropped: &mut Dropped) -> Vec<u8> {
        answer::write(answer, request, dropped)
    }

    fn encoder(&self, request: &ChatRequest) -> Box<dyn EventEncoder> {
        Box::new(encoder::Encoder::new(request))
    }

    fn encode_failure(&self, failure: &Failure, request_id: &str) -> Vec<u8> {
        failure::write(failure, Some(request_id))
    }

    fn framing(&self) -> Framing {
        Framing::Sse
    }
}

impl Provider for Anthropic {
    fn encode_request(
        &self,
        request: &ChatRequest,
        model: &str,
        quirks: Quirks,
        dropped: &mut Dropped,
    ) -> Result<Vec<u8>, Failure> {
        write_request::write(request, model, quirks, dropped)
    }

    fn decode_answer(&self, body: &[u8]) -> Result<ChatAnswer, Failure> {
        answer::read(body)
    }

    fn decoder(&self) -> Box<dyn EventDecoder> {
        Box::<decoder::Decoder>::default()
    }

    fn decode_failure(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> Failure {
        failure::read(status, headers, body)
    }

    /// As Anthropic and Vertex do. Bedrock wraps the same events into an event stream, which the decoder reads too.
    fn framing(&self) -> Framing {
        Framing::Sse
    }
}
