//! Gemini's `generateContent`, of AI Studio and of Vertex. Callers name the model, and whether they want a stream, in the path.
//!
//! - Tool calls have no ids, or ids that Vertex refuses: none are written, and results stand in the order of their calls.
//! - Signatures travel as [`signature`] and [`crate::ai::tool_ids`] say.
//! - Schemas are narrowed to what Gemini takes, see [`schema`].
//! - `RECITATION`, `LANGUAGE` and the filters of images are [`Stop::Filtered`](crate::ai::chat::Stop::Filtered): the text is withheld.

mod answer;
mod failure;
mod request;
mod schema;
mod signature;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

use http::HeaderMap;

use super::{Caller, EventDecoder, EventEncoder, PathFacts, Provider};
use crate::ai::chat::{ChatAnswer, ChatRequest, Dropped, Failure};
use crate::ai::quirks::Quirks;
use crate::ai::stream::Framing;

pub struct Gemini {
    /// How its callers want streams.
    framing: Framing,
}

/// With `alt=sse`, as all of Google's libraries ask.
pub static GEMINI: Gemini = Gemini { framing: Framing::Sse };

/// For callers who ask for a stream without `alt=sse`.
pub static GEMINI_ARRAY: Gemini = Gemini { framing: Framing::JsonArray };

impl Caller for Gemini {
    fn decode_request(&self, body: &[u8], path: PathFacts<'_>) -> Result<ChatRequest, Failure> {
        request::decode(body, path)
    }

    fn encode_answer(&self, answer: &ChatAnswer, _request: &ChatRequest, dropped: &mut Dropped) -> Vec<u8> {
        answer::encode(answer, dropped)
    }

    fn encoder(&self, _request: &ChatRequest) -> Box<dyn EventEncoder> {
        Box::new(stream::Encoder::new(self.framing))
    }

    fn encode_failure(&self, failure: &Failure, _request_id: &str) -> Vec<u8> {
        failure::encode(failure)
    }

    fn framing(&self) -> Framing {
        self.framing
    }
}

impl Provider for Gemini {
    fn encode_request(
        &self,
        request: &ChatRequest,
        model: &str,
        _quirks: Quirks,
        dropped: &mut Dropped,
    ) -> Result<Vec<u8>, Failure> {
        request::encode(request, model, dropped)
    }

    fn decode_answer(&self, body: &[u8]) -> Result<ChatAnswer, Failure> {
        answer::decode(body)
    }

    fn decoder(&self) -> Box<dyn EventDecoder> {
        Box::<stream::Decoder>::default()
    }

    fn decode_failure(&self, status: u16, _headers: &HeaderMap, body: &[u8]) -> Failure {
        failure::decode(status, body)
    }

    fn framing(&self) -> Framing {
        Framing::Sse
    }
}
