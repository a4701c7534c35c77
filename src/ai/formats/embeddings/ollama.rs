//! Ollama's `/api/embed`.

use serde::Deserialize;

use super::super::reading::Count;
use super::super::writing::object;
use super::{Answer, Request, unreadable};
use crate::ai::chat::{Dropped, Failure};

pub fn write_request(request: &Request, model: &str, dropped: &mut Dropped) -> Result<Vec<u8>, Failure> {
    let texts = request.texts()?;
    if request.task.is_some() {
        dropped.add("taskType");
    }
    let mut out = Vec::with_capacity(256);
    object(&mut out, |o| {
        o.set("model", model);
        o.set("input", &texts);
        o.set_some("dimensions", &request.dimensions);
    });
    Ok(out)
}

#[derive(Deserialize)]
struct WireAnswer {
    embeddings: Vec<Vec<f32>>,
    prompt_eval_count: Option<Count>,
}

pub fn read_answer(body: &[u8]) -> Result<Answer, Failure> {
    let wire: WireAnswer = serde_json::from_slice(body).map_err(unreadable)?;
    Ok(Answer { vectors: wire.embeddings, input_tokens: wire.prompt_eval_count.map(|count| count.0) })
}
