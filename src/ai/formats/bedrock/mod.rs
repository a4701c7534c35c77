//! Amazon Bedrock's Converse and ConverseStream, which providers speak.
//!
//! The model and whether to stream are in the path ([`path`]). Answers name neither themselves nor their model. Citations have
//! no place in the neutral form; of them the cited text is kept.

mod answer;
mod decoder;
mod failure;
mod write_request;

#[cfg(test)]
mod tests;

use http::HeaderMap;

pub(super) use failure::{exception, read as failure};

use super::{EventDecoder, Provider};
use crate::ai::chat::{ChatAnswer, ChatRequest, Dropped, Failure};
use crate::ai::credentials::sigv4::percent_encode;
use crate::ai::quirks::Quirks;
use crate::ai::stream::Framing;

pub struct Bedrock;

impl Provider for Bedrock {
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

    fn framing(&self) -> Framing {
        Framing::EventStream
    }
}

/// What is done with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Converse,
    ConverseStream,
    /// The body is in the model's own format.
    Invoke,
    InvokeStream,
    CountTokens,
}

/// The path of an operation. Ids of models hold `:`, and ARNs `/`, which have to be encoded.
pub fn path(model: &str, operation: Operation) -> String {
    let mut path = String::with_capacity(model.len() + 48);
    path.push_str("/model/");
    percent_encode(model, &mut path);
    path.push_str(match operation {
        Operation::Converse => "/converse",
        Operation::ConverseStream => "/converse-stream",
        Operation::Invoke => "/invoke",
        Operation::InvokeStream => "/invoke-with-response-stream",
        Operation::CountTokens => "/count-tokens",
    });
    path
}

/// Who made a model: it decides what goes into `additionalModelRequestFields`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Maker {
    Anthropic,
    /// The first Nova models do not think.
    Nova,
    NovaTwo,
    OpenAi,
    Mistral,
    Other,
}

impl Maker {
    /// Reads an id such as `eu.anthropic.claude-sonnet-4-20250514-v1:0`, alone or at the end of an ARN.
    fn of(model: &str) -> Maker {
        let id = model.rsplit('/').next().unwrap_or(model);
        let names = |name: &str| id.strip_prefix(name).is_some() || id.contains(&[".", name].concat());
        if names("anthropic.") {
            Maker::Anthropic
        } else if names("amazon.nova-2") {
            Maker::NovaTwo
        } else if names("amazon.nova") {
            Maker::Nova
        } else if names("openai.") {
            Maker::OpenAi
        } else if names("mistral.") {
            Maker::Mistral
        } else {
            Maker::Other
        }
    }

    /// Whether it keeps prompts up to a `cachePoint`.
    fn caches(self) -> bool {
        matches!(self, Maker::Anthropic | Maker::Nova | Maker::NovaTwo)
    }
}
