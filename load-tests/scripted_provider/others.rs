//! What is asked beside answers of models: lists of models, embeddings, counts of tokens.

use serde_json::{Value, json};

/// Models that a list shows.
const MODELS: [&str; 4] = ["plain", "tools", "json", "echo"];

/// Answers by the path; `None` if nothing is there.
pub fn answer(method: &str, path: &str, anthropic: bool, body: &[u8]) -> Option<Value> {
    let request = || serde_json::from_slice::<Value>(body).unwrap_or_default();
    match method {
        "GET" | "HEAD" if path.ends_with("/models") => Some(models(path, anthropic)),
        "GET" | "HEAD" if path.ends_with("/health") => Some(json!({ "status": "ok" })),
        // Where it stands in for an engine: vLLM is found by this.
        "GET" | "HEAD" if path == "/version" => Some(json!({ "version": "script" })),
        "POST" if path.ends_with("/embeddings") => Some(embeddings(&request())),
        "POST" if path.ends_with(":embedContent") => Some(json!({ "embedding": { "values": vector("") } })),
        "POST" if path.ends_with(":batchEmbedContents") => {
            let count = request()["requests"].as_array().map_or(0, Vec::len);
            Some(json!({ "embeddings": vec![json!({ "values": vector("") }); count] }))
        }
        "POST" if path.ends_with(":countTokens") => Some(json!({ "totalTokens": 20 })),
        "POST" if path.ends_with("/messages/count_tokens") => Some(json!({ "input_tokens": 20 })),
        _ => None,
    }
}

fn models(path: &str, anthropic: bool) -> Value {
    let of = |write: fn(&str) -> Value| MODELS.iter().map(|name| write(name)).collect::<Vec<_>>();
    if path.contains("/v1beta/") {
        return json!({ "models": of(|name| json!({ "name": format!("models/{name}"), "displayName": name })) });
    }
    if anthropic {
        let model = |name: &str| json!({ "type": "model", "id": name, "display_name": name, "created_at": "2025-11-24T16:00:00Z" });
        return json!({ "data": of(model), "has_more": false, "first_id": MODELS[0], "last_id": MODELS[3] });
    }
    json!({ "object": "list", "data": of(|name| json!({ "id": name, "object": "model", "created": 1, "owned_by": "script" })) })
}

fn embeddings(request: &Value) -> Value {
    let inputs: Vec<String> = match &request["input"] {
        Value::Array(all) => all.iter().map(Value::to_string).collect(),
        one => vec![one.to_string()],
    };
    let base64 = request["encoding_format"] == "base64";
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, text)| json!({ "object": "embedding", "index": index, "embedding": encoded(&vector(text), base64) }))
        .collect();
    let tokens = 5 * inputs.len();
    json!({
        "object": "list", "data": data, "model": request["model"],
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    })
}

/// Eight numbers that depend on the text, and on nothing else.
fn vector(text: &str) -> Vec<f32> {
    let hash = crc32fast::hash(text.as_bytes());
    (0..8).map(|n| ((hash >> (n * 4)) & 0xf) as f32 / 16.0).collect()
}

fn encoded(vector: &[f32], base64: bool) -> Value {
    use base64::Engine;
    match base64 {
        false => json!(vector),
        true => {
            let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
            base64::engine::general_purpose::STANDARD.encode(bytes).into()
        }
    }
}
