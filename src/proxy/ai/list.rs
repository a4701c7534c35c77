//! The models that can be called, as each dialect lists them.

use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::JSON;
use crate::ai::formats::Format;
use crate::filters::filter::Answer;
use crate::snapshot::ai::AiBackend;

/// All that may be called on a route.
pub fn all(ai: &AiBackend, format: Format) -> Answer {
    let names = ai.models.names().iter().filter(|known| ai.allows(&known.name));
    let models: Vec<Value> = names.map(|known| model(format, &known.name, &known.owner)).collect();
    answer(match format {
        Format::Anthropic => {
            let id = |model: Option<&Value>| model.map_or(Value::Null, |model| model["id"].clone());
            json!({ "first_id": id(models.first()), "last_id": id(models.last()), "has_more": false, "data": models })
        }
        Format::Gemini => json!({ "models": models }),
        _ => json!({ "object": "list", "data": models }),
    })
}

/// One of them; `None` if it may not be called.
pub fn one(ai: &AiBackend, format: Format, name: &str) -> Option<Answer> {
    let resolved = ai.allows(name).then(|| ai.models.resolve(name)).flatten()?;
    let owner = resolved.get().targets.first().map_or("headgate", |target| &target.provider);
    Some(answer(model(format, name, owner)))
}

fn model(format: Format, name: &str, owner: &str) -> Value {
    match format {
        // Nobody knows when; the official clients want a date.
        Format::Anthropic => {
            json!({ "type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z" })
        }
        Format::Gemini => json!({
            "name": format!("models/{name}"),
            "displayName": name,
            "supportedGenerationMethods": ["generateContent", "streamGenerateContent"],
        }),
        _ => json!({ "id": name, "object": "model", "created": 0, "owned_by": owner }),
    }
}

fn answer(document: Value) -> Answer {
    Answer { status: StatusCode::OK, headers: vec![(CONTENT_TYPE, JSON)], body: document.to_string().into() }
}
