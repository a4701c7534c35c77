//! Cohere's `embed`, of its own API and as Bedrock hosts its models.

use serde::Deserialize;

use super::super::reading::Count;
use super::super::writing::object;
use super::{Answer, Request, Task, unreadable};
use crate::ai::chat::{Dropped, Failure};

/// `model` is `None` where the path says it.
pub fn write_request(request: &Request, model: Option<&str>, dropped: &mut Dropped) -> Result<Vec<u8>, Failure> {
    let texts = request.texts()?;
    let input_type = match request.task {
        Some(Task::Query | Task::QuestionAnswering | Task::FactVerification | Task::CodeQuery) => "search_query",
        Some(Task::Classification) => "classification",
        Some(Task::Clustering) => "clustering",
        Some(Task::Similarity) => {
            dropped.add("taskType");
            "search_document"
        }
        // It has to be said, and whoever does not say it stores documents.
        Some(Task::Document) | None => "search_document",
    };
    let mut out = Vec::with_capacity(256);
    object(&mut out, |o| {
        o.set_some("model", &model);
        o.set("texts", &texts);
        o.set("input_type", input_type);
        o.set("embedding_types", &["float"]);
        o.set_some("output_dimension", &request.dimensions);
    });
    Ok(out)
}

#[derive(Deserialize)]
struct WireAnswer {
    embeddings: WireVectors,
    meta: Option<WireMeta>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WireVectors {
    ByType {
        float: Vec<Vec<f32>>,
    },
    /// Bedrock's older models.
    Plain(Vec<Vec<f32>>),
}

#[derive(Deserialize)]
struct WireMeta {
    billed_units: Option<WireUnits>,
}

#[derive(Deserialize)]
struct WireUnits {
    input_tokens: Option<Count>,
}

pub fn read_answer(body: &[u8]) -> Result<Answer, Failure> {
    let wire: WireAnswer = serde_json::from_slice(body).map_err(unreadable)?;
    let vectors = match wire.embeddings {
        WireVectors::ByType { float } => float,
        WireVectors::Plain(vectors) => vectors,
    };
    let tokens = wire.meta.and_then(|meta| meta.billed_units).and_then(|units| units.input_tokens);
    Ok(Answer { vectors, input_tokens: tokens.map(|count| count.0) })
}
