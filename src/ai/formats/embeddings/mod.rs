//! Vectors of texts: from the dialects of callers, through a form that belongs to no vendor, to those of providers.
//!
//! Callers speak OpenAI's embeddings and Gemini's `embedContent` and `batchEmbedContents`; providers speak OpenAI's, Gemini's,
//! Cohere's, Ollama's, and on Bedrock those of Titan and Cohere.

mod bedrock;
mod cohere;
mod gemini;
mod ollama;
mod openai;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Map, Value};

use super::Format;
use crate::ai::chat::{Dropped, Failure, FailureKind};

/// More vectors than this nobody asks for in one call, and no provider answers with.
const MOST: usize = 1 << 16;

/// How a caller asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    OpenAi,
    /// One text, by `embedContent`.
    Gemini,
    /// Several texts, by `batchEmbedContents`.
    GeminiBatch,
}

/// What a caller asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    pub inputs: Vec<Input>,
    /// The length of each vector; `None` is the model's own.
    pub dimensions: Option<u64>,
    pub task: Option<Task>,
    /// The caller wants the vectors as base64 of 32-bit floats.
    pub base64: bool,
    /// Fields that have no place here, by their names in the caller's dialect.
    pub rest: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    Text(String),
    /// Numbers of tokens, which mean something to one maker's models only.
    Tokens(Vec<u64>),
}

/// What the vectors are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    Query,
    Document,
    Similarity,
    Classification,
    Clustering,
    QuestionAnswering,
    FactVerification,
    CodeQuery,
}

/// What a provider has answered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// In the order of the inputs.
    pub vectors: Vec<Vec<f32>>,
    /// `None` if the provider does not tell.
    pub input_tokens: Option<u64>,
}

impl Dialect {
    /// The format whose errors the caller understands, and which a provider speaks that is asked in the same words.
    pub fn format(self) -> Format {
        match self {
            Dialect::OpenAi => Format::OpenAiChat,
            Dialect::Gemini | Dialect::GeminiBatch => Format::Gemini,
        }
    }

    /// Reads a caller's request.
    pub fn decode(self, body: &[u8]) -> Result<Request, Failure> {
        let request = match self {
            Dialect::OpenAi => openai::read_request(body)?,
            Dialect::Gemini => gemini::read_one(body)?,
            Dialect::GeminiBatch => gemini::read_batch(body)?,
        };
        match request.inputs.len() {
            0 => Err(Failure::invalid(self.input(), "there is nothing to make a vector of")),
            1..=MOST => Ok(request),
            _ => Err(Failure::invalid(self.input(), format!("more than {MOST} inputs"))),
        }
    }

    /// Writes the answer for a caller who asked for `model`. `tokens` were used, by the provider's word or an estimate.
    pub fn encode(self, answer: &Answer, request: &Request, model: &str, tokens: u64) -> Vec<u8> {
        match self {
            Dialect::OpenAi => openai::write_answer(answer, request, model, tokens),
            Dialect::Gemini => gemini::write_answer(answer, tokens, false),
            Dialect::GeminiBatch => gemini::write_answer(answer, tokens, true),
        }
    }

    fn input(self) -> &'static str {
        match self {
            Dialect::OpenAi => "input",
            Dialect::Gemini => "content",
            Dialect::GeminiBatch => "requests",
        }
    }
}

impl Request {
    /// The inputs as texts; tokens are refused.
    fn texts(&self) -> Result<Vec<&str>, Failure> {
        fn text(input: &Input) -> Result<&str, Failure> {
            match input {
                Input::Text(text) => Ok(text.as_str()),
                Input::Tokens(_) => {
                    Err(Failure::invalid("input", "the provider of this model takes texts only, not numbers of tokens"))
                }
            }
        }
        self.inputs.iter().map(text).collect()
    }

    /// Names what has no place with a provider of another format.
    fn drop_rest(&self, dropped: &mut Dropped) {
        for (name, value) in &self.rest {
            if !super::reading::is_empty(value) {
                dropped.add(name.clone());
            }
        }
    }

    /// How many bytes the inputs have, for an estimate; a token counts as four.
    pub fn bytes(&self) -> u64 {
        let bytes = |input: &Input| match input {
            Input::Text(text) => text.len() as u64,
            Input::Tokens(tokens) => 4 * tokens.len() as u64,
        };
        self.inputs.iter().map(bytes).sum()
    }
}

/// Whether a provider's format has vectors, for a model of this name.
pub fn is_spoken(format: Format, model: &str) -> bool {
    match format {
        Format::OpenAiChat | Format::Gemini | Format::Cohere | Format::Ollama => true,
        Format::Bedrock => bedrock::Family::of(model).is_some(),
        Format::Anthropic | Format::OpenAiResponses | Format::OpenAiCompletions => false,
    }
}

/// The bodies of the calls that together answer a request: one, but for models that take one text at a time.
pub fn encode(
    request: &Request,
    format: Format,
    model: &str,
    dialect: Dialect,
    dropped: &mut Dropped,
) -> Result<Vec<Bytes>, Failure> {
    let one = |body: Vec<u8>| vec![Bytes::from(body)];
    if format == Format::OpenAiChat && dialect == Dialect::OpenAi {
        return Err(Failure::new(FailureKind::Server, "the call need not be translated"));
    }
    request.drop_rest(dropped);
    match format {
        Format::OpenAiChat => Ok(one(openai::write_request(request, model, dropped))),
        Format::Gemini => Ok(one(gemini::write_request(request, model)?)),
        Format::Cohere => Ok(one(cohere::write_request(request, Some(model), dropped)?)),
        Format::Ollama => Ok(one(ollama::write_request(request, model, dropped)?)),
        Format::Bedrock => bedrock::write_requests(request, model, dropped),
        Format::Anthropic | Format::OpenAiResponses | Format::OpenAiCompletions => {
            Err(Failure::new(FailureKind::NotFound, "the provider of this model makes no vectors"))
        }
    }
}

/// Reads what a provider has answered, body by body, each with its headers. There have to be as many vectors as inputs.
pub fn decode(format: Format, model: &str, answers: &[(HeaderMap, Bytes)], wanted: usize) -> Result<Answer, Failure> {
    let mut all = Answer::default();
    for (headers, body) in answers {
        let one = match format {
            Format::Gemini => gemini::read_answer(body)?,
            Format::Cohere => cohere::read_answer(body)?,
            Format::Ollama => ollama::read_answer(body)?,
            Format::Bedrock => bedrock::read_answer(model, headers, body)?,
            _ => openai::read_answer(body)?,
        };
        all.vectors.extend(one.vectors);
        all.input_tokens = match (all.input_tokens, one.input_tokens) {
            (Some(sum), Some(more)) => Some(sum.saturating_add(more)),
            (known, other) => known.or(other),
        };
    }
    match all.vectors.len() == wanted {
        true => Ok(all),
        false => {
            let message = format!("the provider made {} vectors of {wanted} inputs", all.vectors.len());
            Err(Failure::new(FailureKind::Server, message))
        }
    }
}

/// What a caller of Gemini's dialect wrote, for a provider's model of this name: the requests of a batch repeat the path's.
pub fn rename(body: &Bytes, model: &str) -> Bytes {
    let Ok(mut document) = serde_json::from_slice::<Value>(body) else { return body.clone() };
    let name = Value::String(format!("models/{model}"));
    let mut changed = false;
    let mut set = |request: &mut Value| {
        if let Some(own) = request.get_mut("model").filter(|own| **own != name) {
            *own = name.clone();
            changed = true;
        }
    };
    match document.get_mut("requests").and_then(Value::as_array_mut) {
        Some(requests) => requests.iter_mut().for_each(&mut set),
        None => set(&mut document),
    }
    if changed { document.to_string().into() } else { body.clone() }
}

fn unreadable(error: serde_json::Error) -> Failure {
    Failure::new(FailureKind::Server, format!("the provider's answer holds no vectors: {error}"))
}
