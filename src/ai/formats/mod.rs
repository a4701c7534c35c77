//! Wire formats, one module each, to and from the neutral form ([`crate::ai::chat`]).
//!
//! A format that callers speak implements [`Caller`], one that providers speak implements [`Provider`]; most do both. Meaning
//! is here, framing is in [`crate::ai::stream`]. Nothing in here knows of connections, keys or routes.

pub mod anthropic;
mod arguments;
pub mod bedrock;
mod cohere;
pub mod embeddings;
mod gemini;
mod ollama;
mod openai_chat;
mod openai_completions;
mod openai_responses;
mod provider_words;
pub(super) mod reading;
pub mod rerank;
mod tolerant;
pub(super) mod writing;

use http::HeaderMap;
use schemars::JsonSchema;
use serde::Deserialize;

use super::chat::{ChatAnswer, ChatEvent, ChatRequest, Dropped, Failure};
use super::quirks::Quirks;
use super::stream::{Frame, Framing};

/// A format by its name in configurations and provider files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    #[serde(rename = "openai_chat")]
    OpenAiChat,
    #[serde(rename = "openai_responses")]
    OpenAiResponses,
    Anthropic,
    Gemini,
    Bedrock,
    Cohere,
    Ollama,
    /// The legacy completions, at the address of `openai_chat` where a provider has them.
    #[serde(skip)]
    OpenAiCompletions,
}

impl Format {
    /// Those that have addresses of their own.
    pub fn all() -> impl Iterator<Item = Format> {
        use Format::*;
        [OpenAiChat, OpenAiResponses, Anthropic, Gemini, Bedrock, Cohere, Ollama].into_iter()
    }

    /// Its name in configurations, provider files, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Format::OpenAiChat => "openai_chat",
            Format::OpenAiResponses => "openai_responses",
            Format::Anthropic => "anthropic",
            Format::Gemini => "gemini",
            Format::Bedrock => "bedrock",
            Format::Cohere => "cohere",
            Format::Ollama => "ollama",
            Format::OpenAiCompletions => "openai_completions",
        }
    }

    /// `None` if callers do not speak it.
    pub fn caller(self) -> Option<&'static dyn Caller> {
        match self {
            Format::OpenAiChat => Some(&openai_chat::OpenAiChat),
            Format::OpenAiResponses => Some(&openai_responses::OpenAiResponses),
            Format::Anthropic => Some(&anthropic::Anthropic),
            Format::Gemini => Some(&gemini::GEMINI),
            Format::OpenAiCompletions => Some(&openai_completions::OpenAiCompletions),
            Format::Bedrock | Format::Cohere | Format::Ollama => None,
        }
    }

    /// Gemini's streams come as one JSON array where the caller does not ask for server-sent events.
    pub fn caller_of_arrays(self) -> Option<&'static dyn Caller> {
        match self {
            Format::Gemini => Some(&gemini::GEMINI_ARRAY),
            _ => None,
        }
    }

    /// `None` if providers do not speak it.
    pub fn provider(self) -> Option<&'static dyn Provider> {
        match self {
            Format::OpenAiChat => Some(&openai_chat::OpenAiChat),
            Format::Anthropic => Some(&anthropic::Anthropic),
            Format::Bedrock => Some(&bedrock::Bedrock),
            Format::OpenAiResponses => Some(&openai_responses::OpenAiResponses),
            Format::Gemini => Some(&gemini::GEMINI),
            Format::Cohere => Some(&cohere::Cohere),
            Format::Ollama => Some(&ollama::Ollama),
            Format::OpenAiCompletions => Some(&openai_completions::OpenAiCompletions),
        }
    }
}

/// An id for what a provider gave none, such as a tool call: `prefix`, usually with its `_` or `-`, and 24 random letters.
pub fn made_up(prefix: &str) -> String {
    let mut id = String::with_capacity(prefix.len() + 24);
    id.push_str(prefix);
    id.extend((0..24).map(|_| fastrand::alphanumeric()));
    id
}

/// How a format is spoken with callers.
pub trait Caller: Sync {
    /// Reads a request. `model` and `stream` are what the path says, for formats that write them there.
    fn decode_request(&self, body: &[u8], path: PathFacts<'_>) -> Result<ChatRequest, Failure>;

    /// Writes a whole answer. What the format has no place for is noted.
    fn encode_answer(&self, answer: &ChatAnswer, request: &ChatRequest, dropped: &mut Dropped) -> Vec<u8>;

    /// A new writer for one streamed answer.
    fn encoder(&self, request: &ChatRequest) -> Box<dyn EventEncoder>;

    /// The body of an answer that is an error; the status is [`Failure`]'s.
    fn encode_failure(&self, failure: &Failure, request_id: &str) -> Vec<u8>;

    /// How streamed answers are framed.
    fn framing(&self) -> Framing;
}

/// How a format is spoken with providers.
pub trait Provider: Sync {
    /// Writes a request for the provider's model `model`. What the format has no place for is noted; what it cannot do without is a failure
    /// of the caller.
    fn encode_request(
        &self,
        request: &ChatRequest,
        model: &str,
        quirks: Quirks,
        dropped: &mut Dropped,
    ) -> Result<Vec<u8>, Failure>;

    /// Reads a whole answer. An answer that is an error although its status says otherwise is a failure.
    fn decode_answer(&self, body: &[u8]) -> Result<ChatAnswer, Failure>;

    /// A new reader for one streamed answer.
    fn decoder(&self) -> Box<dyn EventDecoder>;

    /// Reads an answer whose status says that it is an error.
    fn decode_failure(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> Failure;

    /// How streamed answers are framed.
    fn framing(&self) -> Framing;
}

/// What the path of a request says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathFacts<'p> {
    pub model: Option<&'p str>,
    pub stream: Option<bool>,
}

/// Reads the frames of one stream, in order.
pub trait EventDecoder: Send {
    /// Appends the events of a frame. A frame that cannot be read appends [`ChatEvent::Error`].
    fn decode(&mut self, frame: &Frame<'_>, events: &mut Vec<ChatEvent>);

    /// The stream is over; appends what is still owed: `End`, or an error if it broke off.
    fn finish(&mut self, events: &mut Vec<ChatEvent>);
}

/// Writes the events of one stream, in order, framing included.
pub trait EventEncoder: Send {
    /// Appends the bytes of an event. Some events have none.
    fn encode(&mut self, event: &ChatEvent, out: &mut Vec<u8>);
}
