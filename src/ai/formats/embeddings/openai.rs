//! OpenAI's embeddings, which most other providers speak too.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::super::reading::{self, Count, Text, TextOr, Whole, wire_object};
use super::super::writing::object;
use super::{Answer, Input, Request, Task, unreadable};
use crate::ai::chat::{Dropped, Failure};

wire_object! {
    struct WireRequest<'a> {
        "model" => model: Text<'a>,
        "input" => input: TextOr<'a, WireInput<'a>>,
        "encoding_format" => encoding_format: Text<'a>,
        "dimensions" => dimensions: Whole,
        // Not OpenAI's; several providers and libraries have agreed on it.
        "input_type" => input_type: Text<'a>,
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WireInput<'a> {
    Text(#[serde(borrow)] std::borrow::Cow<'a, str>),
    Token(u64),
    Tokens(Vec<u64>),
}

pub fn read_request(body: &[u8]) -> Result<Request, Failure> {
    let wire: WireRequest<'_> = reading::request(body)?;
    let inputs = match wire.input {
        None => Vec::new(),
        Some(TextOr::Text(text)) => vec![Input::Text(text.into_owned())],
        Some(TextOr::List(list)) => read_list(list)?,
    };
    let base64 = match wire.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(Failure::invalid("encoding_format", "`encoding_format` is `float` or `base64`")),
    };
    let dimensions = match wire.dimensions {
        None => None,
        Some(number) => {
            let count = number.count().filter(|count| *count > 0);
            Some(count.ok_or_else(|| Failure::invalid("dimensions", "`dimensions` is not above zero"))?)
        }
    };
    let mut rest = wire.rest;
    let task = wire.input_type.as_deref().map(task);
    if let (Some(None), Some(word)) = (task, wire.input_type) {
        rest.insert("input_type".to_owned(), word.into_owned().into());
    }
    Ok(Request { inputs, dimensions, task: task.flatten(), base64, rest })
}

/// A list of texts, one of lists of tokens, or tokens of a single text.
fn read_list(list: Vec<WireInput<'_>>) -> Result<Vec<Input>, Failure> {
    if matches!(list.first(), Some(WireInput::Token(_))) {
        let token = |one| match one {
            WireInput::Token(token) => Ok(token),
            _ => Err(Failure::invalid("input", "`input` mixes tokens and texts")),
        };
        return Ok(vec![Input::Tokens(list.into_iter().map(token).collect::<Result<_, _>>()?)]);
    }
    let input = |one| match one {
        WireInput::Text(text) => Ok(Input::Text(text.into_owned())),
        WireInput::Tokens(tokens) => Ok(Input::Tokens(tokens)),
        WireInput::Token(_) => Err(Failure::invalid("input", "`input` mixes tokens and texts")),
    };
    list.into_iter().map(input).collect()
}

fn task(word: &str) -> Option<Task> {
    match word {
        "query" | "search_query" => Some(Task::Query),
        "document" | "passage" | "search_document" => Some(Task::Document),
        "classification" => Some(Task::Classification),
        "clustering" => Some(Task::Clustering),
        _ => None,
    }
}

pub fn write_request(request: &Request, model: &str, dropped: &mut Dropped) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    if request.task.is_some() {
        dropped.add("taskType");
    }
    object(&mut out, |o| {
        o.set("model", model);
        let texts: Option<Vec<&str>> = request.texts().ok();
        match texts.as_deref() {
            Some([text]) => o.set("input", text),
            Some(texts) => o.set("input", texts),
            None => o.set("input", &tokens(request)),
        }
        o.set_some("dimensions", &request.dimensions);
        o.set("encoding_format", "float");
    });
    out
}

fn tokens(request: &Request) -> Vec<&[u64]> {
    fn tokens(input: &Input) -> Option<&[u64]> {
        match input {
            Input::Tokens(tokens) => Some(tokens),
            Input::Text(_) => None,
        }
    }
    request.inputs.iter().filter_map(tokens).collect()
}

#[derive(Deserialize)]
struct WireAnswer<'a> {
    #[serde(borrow)]
    data: Vec<WireVector<'a>>,
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct WireVector<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    embedding: TextOr<'a, f32>,
}

#[derive(Deserialize)]
struct WireUsage {
    prompt_tokens: Option<Count>,
    total_tokens: Option<Count>,
}

pub fn read_answer(body: &[u8]) -> Result<Answer, Failure> {
    let mut wire: WireAnswer<'_> = serde_json::from_slice(body).map_err(unreadable)?;
    wire.data.sort_by_key(|vector| vector.index);
    let vectors = wire.data.into_iter().map(|vector| match vector.embedding {
        TextOr::List(numbers) => Ok(numbers),
        TextOr::Text(text) => from_base64(&text),
    });
    let tokens = wire.usage.and_then(|usage| usage.prompt_tokens.or(usage.total_tokens)).map(|count| count.0);
    Ok(Answer { vectors: vectors.collect::<Result<_, _>>()?, input_tokens: tokens })
}

fn from_base64(text: &str) -> Result<Vec<f32>, Failure> {
    let bytes = STANDARD.decode(text).ok().filter(|bytes| bytes.len() % 4 == 0);
    let Some(bytes) = bytes else {
        return Err(Failure::new(crate::ai::chat::FailureKind::Server, "the provider's base64 holds no vector"));
    };
    let (numbers, _) = bytes.as_chunks::<4>();
    Ok(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect())
}

fn to_base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

pub fn write_answer(answer: &Answer, request: &Request, model: &str, tokens: u64) -> Vec<u8> {
    let numbers: usize = answer.vectors.iter().map(Vec::len).sum();
    let mut out = Vec::with_capacity(256 + 64 * answer.vectors.len() + 12 * numbers);
    object(&mut out, |o| {
        o.set("object", "list");
        o.list("data", |list| {
            for (index, vector) in answer.vectors.iter().enumerate() {
                list.object(|o| {
                    o.set("object", "embedding");
                    o.set("index", &index);
                    match request.base64 {
                        true => o.set("embedding", &to_base64(vector)),
                        false => o.set("embedding", vector),
                    }
                });
            }
        });
        o.set("model", model);
        o.object("usage", |o| {
            o.set("prompt_tokens", &tokens);
            o.set("total_tokens", &tokens);
        });
    });
    out
}
