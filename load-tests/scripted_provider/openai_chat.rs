//! OpenAI's chat completions.

use serde_json::{Value, json};

use super::asked::{Asked, Choice, all, list, shown_url, text, texts};
use super::said::{Dialect, Event, Part, Said};
use super::script::{Ending, Usage};

pub struct OpenAiChat;

const ID: &str = "chatcmpl-script";
const CREATED: u64 = 1_764_000_000;

impl Dialect for OpenAiChat {
    fn asked(&self, request: &Value) -> Asked {
        let mut asked = Asked { parallel: request["parallel_tool_calls"] != json!(false), ..Asked::default() };
        for message in all(request, "messages") {
            match text(message, "role") {
                "system" | "developer" => asked.system.extend(texts(&message["content"])),
                "tool" => {
                    let said = texts(&message["content"]).concat();
                    asked.add("user", format!("result of {}: {said}", text(message, "tool_call_id")));
                    asked.results.push(said);
                }
                role => {
                    asked.results.clear();
                    content(&mut asked, role, &message["content"]);
                    for call in all(message, "tool_calls") {
                        let function = &call["function"];
                        asked.add(role, format!("call {} {}", text(function, "name"), text(function, "arguments")));
                    }
                }
            }
        }
        for tool in all(request, "tools") {
            let function = &tool["function"];
            asked.tools.push((text(function, "name").to_owned(), function["parameters"].clone()));
        }
        asked.choice = match &request["tool_choice"] {
            Value::String(word) if word == "none" => Choice::None,
            Value::String(word) if word == "required" => Choice::Any,
            Value::Object(_) => Choice::Tool(text(&request["tool_choice"]["function"], "name").to_owned()),
            _ => Choice::Auto,
        };
        let format = &request["response_format"];
        asked.schema = match text(format, "type") {
            "json_schema" => Some(format["json_schema"]["schema"].clone()),
            _ => None,
        };
        asked.max_tokens = request["max_completion_tokens"].as_u64().or(request["max_tokens"].as_u64());
        asked.temperature = request["temperature"].as_f64();
        asked.stop = list(&request["stop"]);
        asked
    }

    fn whole(&self, said: &Said<'_>) -> Value {
        let mut message = json!({ "role": "assistant", "content": null, "refusal": null });
        let mut calls = Vec::new();
        for part in &said.parts {
            match part {
                Part::Thought { .. } => message["reasoning_content"] = part.whole().into(),
                Part::Text { .. } => message["content"] = part.whole().into(),
                Part::Tool { id, name, .. } => {
                    calls.push(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": part.whole() } }));
                }
            }
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        let mut answer = json!({
            "id": ID, "object": "chat.completion", "created": CREATED, "model": said.model,
            "choices": [{ "index": 0, "message": message, "logprobs": null, "finish_reason": finish(said) }],
        });
        if let Some(counted) = said.usage {
            answer["usage"] = usage(counted);
        }
        answer
    }

    fn stream(&self, said: &Said<'_>) -> Vec<Event> {
        let chunk = |choices: Value, content| {
            let mut chunk = json!({
                "id": ID, "object": "chat.completion.chunk", "created": CREATED, "model": said.model, "choices": choices,
            });
            if said.stream_usage {
                chunk["usage"] = Value::Null;
            }
            Event::data(&chunk, content)
        };
        let delta =
            |delta: Value, content| chunk(json!([{ "index": 0, "delta": delta, "finish_reason": null }]), content);
        let mut events = vec![delta(json!({ "role": "assistant", "content": "" }), false)];
        let mut calls = 0;
        for part in &said.parts {
            match part {
                Part::Thought { pieces, .. } => {
                    events.extend(pieces.iter().map(|piece| delta(json!({ "reasoning_content": piece }), true)));
                }
                Part::Text { pieces } => {
                    events.extend(pieces.iter().map(|piece| delta(json!({ "content": piece }), true)));
                }
                Part::Tool { id, name, pieces } => {
                    let begun = json!({ "index": calls, "id": id, "type": "function", "function": { "name": name, "arguments": "" } });
                    events.push(delta(json!({ "tool_calls": [begun] }), true));
                    events.extend(pieces.iter().map(|piece| {
                        delta(json!({ "tool_calls": [{ "index": calls, "function": { "arguments": piece } }] }), true)
                    }));
                    calls += 1;
                }
            }
        }
        events.push(chunk(json!([{ "index": 0, "delta": {}, "finish_reason": finish(said) }]), false));
        if let (true, Some(counted)) = (said.stream_usage, said.usage) {
            let chunk = json!({
                "id": ID, "object": "chat.completion.chunk", "created": CREATED, "model": said.model, "choices": [],
                "usage": usage(counted),
            });
            events.push(Event::data(&chunk, false));
        }
        events.push(Event { bytes: b"data: [DONE]\n\n".to_vec(), content: false });
        events
    }

    fn error(&self, status: u16, message: &str) -> Value {
        let kind = match status {
            401 => "authentication_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        };
        json!({ "error": { "message": message, "type": kind, "param": null, "code": null } })
    }

    fn error_event(&self, status: u16, message: &str) -> Event {
        Event::data(&self.error(status, message), false)
    }
}

fn content(asked: &mut Asked, role: &str, content: &Value) {
    if let Some(said) = content.as_str() {
        return asked.add(role, format!("text {said}"));
    }
    for part in content.as_array().into_iter().flatten() {
        let piece = match text(part, "type") {
            "image_url" => format!("image {}", shown_url(text(&part["image_url"], "url"))),
            "file" => format!("document {}", shown_url(text(&part["file"], "file_data"))),
            "input_audio" => {
                let audio = &part["input_audio"];
                format!(
                    "audio {}",
                    super::asked::shown(&format!("audio/{}", text(audio, "format")), text(audio, "data"))
                )
            }
            _ => format!("text {}", text(part, "text")),
        };
        asked.add(role, piece);
    }
}

fn finish(said: &Said<'_>) -> &'static str {
    match said.ending {
        Ending::Filtered => "content_filter",
        Ending::Length => "length",
        Ending::Natural if said.calls_tools() => "tool_calls",
        Ending::Natural => "stop",
    }
}

fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.input, "completion_tokens": usage.output, "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": { "cached_tokens": usage.cached, "audio_tokens": 0 },
        "completion_tokens_details": { "reasoning_tokens": usage.thoughts, "audio_tokens": 0 },
    })
}
