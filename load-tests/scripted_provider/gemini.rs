//! Gemini's generateContent.

use serde_json::{Value, json};

use super::asked::{Asked, Choice, all, list, shown, text, texts};
use super::said::{Dialect, Event, Part, Said};
use super::script::{Ending, Usage};

pub struct Gemini;

impl Dialect for Gemini {
    fn asked(&self, request: &Value) -> Asked {
        let mut asked = Asked { parallel: true, ..Asked::default() };
        asked.system = texts(&request["systemInstruction"]["parts"]);
        for content in all(request, "contents") {
            asked.results.clear();
            let role = if text(content, "role") == "model" { "assistant" } else { "user" };
            for part in all(content, "parts").filter(|part| part["thought"] != json!(true)) {
                let (call, result) = (&part["functionCall"], &part["functionResponse"]);
                let piece = if call.is_object() {
                    format!("call {} {}", text(call, "name"), call["args"])
                } else if result.is_object() {
                    let response = &result["response"];
                    // Texts stand in a member, since Gemini takes only objects.
                    let said = ["output", "result", "content"].iter().find_map(|member| response[*member].as_str());
                    let said = said.map_or_else(|| response.to_string(), str::to_owned);
                    asked.results.push(said.clone());
                    format!("result of {}: {said}", text(result, "name"))
                } else if part["inlineData"].is_object() {
                    let data = &part["inlineData"];
                    // Google takes both ways of writing names, and its libraries use both.
                    let media_type = [text(data, "mimeType"), text(data, "mime_type")].concat();
                    let kind = match media_type.split('/').next() {
                        Some("image") => "image",
                        Some("audio") => "audio",
                        _ => "document",
                    };
                    format!("{kind} {}", shown(&media_type, text(data, "data")))
                } else if part["fileData"].is_object() {
                    format!("image {}", text(&part["fileData"], "fileUri"))
                } else {
                    format!("text {}", text(part, "text"))
                };
                asked.add(role, piece);
            }
        }
        let alone = std::slice::from_ref(&request["tools"]);
        let tools = request["tools"].as_array().map_or(alone, Vec::as_slice);
        for function in tools.iter().flat_map(|tool| all(tool, "functionDeclarations")) {
            let names = ["parametersJsonSchema", "parameters_json_schema", "parameters"];
            let schema = names.iter().find_map(|name| function.get(*name)).cloned().unwrap_or_default();
            asked.tools.push((text(function, "name").to_owned(), schema));
        }
        let choice = &request["toolConfig"]["functionCallingConfig"];
        asked.choice = match (text(choice, "mode"), choice["allowedFunctionNames"].as_array().map(Vec::as_slice)) {
            ("NONE", _) => Choice::None,
            ("ANY", Some([only])) => Choice::Tool(only.as_str().unwrap_or_default().to_owned()),
            ("ANY", _) => Choice::Any,
            _ => Choice::Auto,
        };
        let config = &request["generationConfig"];
        asked.schema = ["responseJsonSchema", "response_json_schema", "responseSchema"]
            .iter()
            .find_map(|member| config.get(*member))
            .cloned();
        asked.max_tokens = config["maxOutputTokens"].as_u64();
        asked.temperature = config["temperature"].as_f64();
        asked.stop = list(&config["stopSequences"]);
        asked
    }

    fn whole(&self, said: &Said<'_>) -> Value {
        let parts: Vec<Value> = said.parts.iter().flat_map(parts).collect();
        response(said, &parts, true)
    }

    fn stream(&self, said: &Said<'_>) -> Vec<Event> {
        let mut events = Vec::new();
        for part in &said.parts {
            match part {
                Part::Thought { pieces, .. } => events.extend(pieces.iter().map(|piece| {
                    Event::data(&response(said, &[json!({ "text": piece, "thought": true })], false), true)
                })),
                Part::Text { pieces } => events.extend(
                    pieces.iter().map(|piece| Event::data(&response(said, &[json!({ "text": piece })], false), true)),
                ),
                // Calls come whole.
                Part::Tool { .. } => events.push(Event::data(&response(said, &parts(part), false), true)),
            }
        }
        events.push(Event::data(&response(said, &[json!({ "text": "" })], true), false));
        events
    }

    fn error(&self, status: u16, message: &str) -> Value {
        let name = match status {
            400 => "INVALID_ARGUMENT",
            401 => "UNAUTHENTICATED",
            403 => "PERMISSION_DENIED",
            404 => "NOT_FOUND",
            429 => "RESOURCE_EXHAUSTED",
            500 => "INTERNAL",
            504 => "DEADLINE_EXCEEDED",
            _ => "UNAVAILABLE",
        };
        json!({ "error": { "code": status, "message": message, "status": name } })
    }

    fn error_event(&self, status: u16, message: &str) -> Event {
        Event::data(&self.error(status, message), false)
    }
}

fn parts(part: &Part) -> Vec<Value> {
    match part {
        Part::Thought { .. } => vec![json!({ "text": part.whole(), "thought": true })],
        Part::Text { .. } => vec![json!({ "text": part.whole() })],
        Part::Tool { name, .. } => {
            let arguments: Value = serde_json::from_str(&part.whole()).unwrap_or_default();
            let call = json!({ "name": name, "args": arguments });
            vec![json!({ "functionCall": call, "thoughtSignature": super::said::SIGNATURE })]
        }
    }
}

fn response(said: &Said<'_>, parts: &[Value], last: bool) -> Value {
    let mut candidate = json!({ "index": 0, "content": { "role": "model", "parts": parts } });
    if last {
        candidate["finishReason"] = match said.ending {
            Ending::Natural => "STOP",
            Ending::Filtered => "SAFETY",
            Ending::Length => "MAX_TOKENS",
        }
        .into();
    }
    let mut response = json!({
        "candidates": [candidate], "modelVersion": said.model, "responseId": "script",
        "createTime": "2025-11-24T16:00:00Z",
    });
    if let Some(counted) = said.usage {
        response["usageMetadata"] = usage(counted);
    }
    response
}

/// Gemini counts thoughts apart.
fn usage(usage: Usage) -> Value {
    let mut counted = json!({
        "promptTokenCount": usage.input, "candidatesTokenCount": usage.output.saturating_sub(usage.thoughts),
        "totalTokenCount": usage.input + usage.output,
    });
    if usage.cached > 0 {
        counted["cachedContentTokenCount"] = usage.cached.into();
    }
    if usage.thoughts > 0 {
        counted["thoughtsTokenCount"] = usage.thoughts.into();
    }
    counted
}
