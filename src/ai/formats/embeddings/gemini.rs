//! Gemini's `embedContent` and `batchEmbedContents`. Providers are asked by the latter, for one text too.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::reading::{self, Count, Text, Whole, wire_object};
use super::super::writing::{Object, object};
use super::{Answer, Input, Request, Task, unreadable};
use crate::ai::chat::Failure;

wire_object! {
    struct WireRequest<'a> {
        "model" => model: Text<'a>,
        "content" => content: WireContent<'a>,
        "taskType" => task: Text<'a>,
        "task_type" => task_snake: Text<'a>,
        "outputDimensionality" => dimensions: Whole,
        "output_dimensionality" => dimensions_snake: Whole,
    }
}

wire_object! {
    struct WireBatch<'a> {
        "requests" => requests: Vec<WireRequest<'a>>,
    }
}

wire_object! {
    struct WireContent<'a> {
        "parts" => parts: Vec<WirePart<'a>>,
        "role" => role: Text<'a>,
    }
}

wire_object! {
    struct WirePart<'a> {
        "text" => text: String,
    }
}

/// Each with its word.
const TASKS: [(Task, &str); 8] = [
    (Task::Query, "RETRIEVAL_QUERY"),
    (Task::Document, "RETRIEVAL_DOCUMENT"),
    (Task::Similarity, "SEMANTIC_SIMILARITY"),
    (Task::Classification, "CLASSIFICATION"),
    (Task::Clustering, "CLUSTERING"),
    (Task::QuestionAnswering, "QUESTION_ANSWERING"),
    (Task::FactVerification, "FACT_VERIFICATION"),
    (Task::CodeQuery, "CODE_RETRIEVAL_QUERY"),
];

pub fn read_one(body: &[u8]) -> Result<Request, Failure> {
    read(reading::request(body)?, "content")
}

/// The vectors of a batch are made alike; a batch that wants them of several lengths is refused.
pub fn read_batch(body: &[u8]) -> Result<Request, Failure> {
    let wire: WireBatch<'_> = reading::request(body)?;
    let mut all = Request { rest: wire.rest, ..Request::default() };
    for (index, request) in wire.requests.unwrap_or_default().into_iter().enumerate() {
        let place = format!("requests[{index}]");
        let one = read(request, &format!("{place}.content"))?;
        if index == 0 {
            (all.dimensions, all.task) = (one.dimensions, one.task);
        } else if all.dimensions != one.dimensions {
            let message = "the requests of one batch want vectors of several lengths";
            return Err(Failure::invalid(format!("{place}.outputDimensionality"), message));
        } else if all.task != one.task {
            all.rest.insert(format!("{place}.taskType"), Value::Bool(true));
        }
        all.inputs.extend(one.inputs);
        all.rest.extend(one.rest);
    }
    Ok(all)
}

fn read(wire: WireRequest<'_>, place: &str) -> Result<Request, Failure> {
    let mut rest: Map<String, Value> = wire.rest;
    let content = wire.content.unwrap_or_default();
    let mut text = String::new();
    for part in content.parts.unwrap_or_default() {
        match part.text {
            Some(more) => text.push_str(&more),
            None => return Err(Failure::invalid(place, "the provider of this model makes vectors of texts only")),
        }
    }
    let dimensions = wire.dimensions.or(wire.dimensions_snake).and_then(Whole::count).filter(|count| *count > 0);
    let word = wire.task.or(wire.task_snake).filter(|word| &**word != "TASK_TYPE_UNSPECIFIED");
    let task = word.as_deref().and_then(|word| TASKS.iter().find(|(_, own)| *own == word)).map(|(task, _)| *task);
    if let (None, Some(word)) = (task, word) {
        rest.insert("taskType".to_owned(), word.into_owned().into());
    }
    Ok(Request { inputs: vec![Input::Text(text)], dimensions, task, base64: false, rest })
}

pub fn write_request(request: &Request, model: &str) -> Result<Vec<u8>, Failure> {
    let texts = request.texts()?;
    let task = request.task.and_then(|task| TASKS.iter().find(|(own, _)| *own == task)).map(|(_, word)| *word);
    let mut out = Vec::with_capacity(256);
    object(&mut out, |o| {
        o.list("requests", |list| {
            for text in texts {
                list.object(|o| {
                    o.set("model", &format!("models/{model}"));
                    o.object("content", |o| o.list("parts", |list| list.object(|o| o.set("text", text))));
                    o.set_some("taskType", &task);
                    o.set_some("outputDimensionality", &request.dimensions);
                });
            }
        });
    });
    Ok(out)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireAnswer {
    embeddings: Vec<WireVector>,
    usage_metadata: Option<WireUsage>,
}

#[derive(Deserialize)]
struct WireVector {
    values: Vec<f32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireUsage {
    prompt_token_count: Option<Count>,
}

pub fn read_answer(body: &[u8]) -> Result<Answer, Failure> {
    let wire: WireAnswer = serde_json::from_slice(body).map_err(unreadable)?;
    Ok(Answer {
        vectors: wire.embeddings.into_iter().map(|vector| vector.values).collect(),
        input_tokens: wire.usage_metadata.and_then(|usage| usage.prompt_token_count).map(|count| count.0),
    })
}

pub fn write_answer(answer: &Answer, tokens: u64, batch: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let values = |vector: &Vec<f32>, o: &mut Object<'_>| o.set("values", vector);
    object(&mut out, |o| {
        match batch {
            true => o.list("embeddings", |list| {
                for vector in &answer.vectors {
                    list.object(|o| values(vector, o));
                }
            }),
            false => o.object("embedding", |o| {
                if let Some(vector) = answer.vectors.first() {
                    values(vector, o);
                }
            }),
        }
        o.object("usageMetadata", |o| o.set("promptTokenCount", &tokens));
    });
    out
}
