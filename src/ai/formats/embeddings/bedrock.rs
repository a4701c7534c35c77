//! The models on Bedrock that make vectors, each in its maker's own words: Amazon's Titan, one text at a time, and Cohere's.

use bytes::Bytes;
use http::HeaderMap;
use serde::Deserialize;

use super::super::reading::Count;
use super::super::writing::object;
use super::{Answer, Request, cohere, unreadable};
use crate::ai::chat::{Dropped, Failure, FailureKind};

/// So many texts at most for a model that takes one at a time: each is an exchange of its own.
const MOST_ALONE: usize = 128;

/// Where Bedrock tells what a call has used, whatever the model.
const TOKENS: &str = "x-amzn-bedrock-input-token-count";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// The first, which knows no options.
    TitanV1,
    Titan,
    Cohere,
}

impl Family {
    /// By the name of a model, which may be an ARN or begin with a region.
    pub fn of(model: &str) -> Option<Family> {
        let is = |part: &str| model.contains(part);
        match () {
            () if is("titan-embed-text-v1") || is("titan-embed-g1-text") => Some(Family::TitanV1),
            () if is("titan-embed-text") => Some(Family::Titan),
            () if is("cohere.embed") => Some(Family::Cohere),
            () => None,
        }
    }
}

fn family(model: &str) -> Result<Family, Failure> {
    let none = || Failure::new(FailureKind::NotFound, "how this model of Bedrock makes vectors is not known");
    Family::of(model).ok_or_else(none)
}

pub fn write_requests(request: &Request, model: &str, dropped: &mut Dropped) -> Result<Vec<Bytes>, Failure> {
    let family = family(model)?;
    if family == Family::Cohere {
        return Ok(vec![cohere::write_request(request, None, dropped)?.into()]);
    }
    let texts = request.texts()?;
    if texts.len() > MOST_ALONE {
        let message = format!("this model takes one text at a time, and a call at most {MOST_ALONE} of them");
        return Err(Failure::invalid("input", message));
    }
    if request.task.is_some() {
        dropped.add("taskType");
    }
    if family == Family::TitanV1 && request.dimensions.is_some() {
        dropped.add("dimensions");
    }
    let body = |text: &str| {
        let mut out = Vec::with_capacity(text.len() + 64);
        object(&mut out, |o| {
            o.set("inputText", text);
            o.set_some("dimensions", &request.dimensions.filter(|_| family == Family::Titan));
        });
        Bytes::from(out)
    };
    Ok(texts.into_iter().map(body).collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireTitan {
    embedding: Vec<f32>,
    input_text_token_count: Option<Count>,
}

pub fn read_answer(model: &str, headers: &HeaderMap, body: &[u8]) -> Result<Answer, Failure> {
    let told = headers.get(TOKENS).and_then(|count| count.to_str().ok()?.parse().ok());
    let answer = match family(model)? {
        Family::Cohere => cohere::read_answer(body)?,
        Family::Titan | Family::TitanV1 => {
            let wire: WireTitan = serde_json::from_slice(body).map_err(unreadable)?;
            let tokens = wire.input_text_token_count.map(|count| count.0);
            Answer { vectors: vec![wire.embedding], input_tokens: tokens }
        }
    };
    Ok(Answer { input_tokens: answer.input_tokens.or(told), ..answer })
}
