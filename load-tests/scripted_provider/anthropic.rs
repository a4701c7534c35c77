//! Anthropic's Messages.

use serde_json::{Value, json};

use super::asked::{Asked, Choice, all, list, shown, text, texts};
use super::said::{Dialect, Event, Part, Said};
use super::script::{Ending, Usage};

pub struct Anthropic;

const ID: &str = "msg_script";

impl Dialect for Anthropic {
    fn asked(&self, request: &Value) -> Asked {
        let mut asked = Asked { parallel: true, ..Asked::default() };
        asked.system = texts(&request["system"]);
        for message in all(request, "messages") {
            asked.results.clear();
            let role = text(message, "role");
            if let Some(said) = message["content"].as_str() {
                asked.add(role, format!("text {said}"));
            }
            for block in all(message, "content") {
                let source = &block["source"];
                let data = || match text(source, "type") {
                    "url" => text(source, "url").to_owned(),
                    _ => shown(text(source, "media_type"), text(source, "data")),
                };
                let piece = match text(block, "type") {
                    "image" => format!("image {}", data()),
                    "document" => format!("document {}", data()),
                    "tool_use" => format!("call {} {}", text(block, "name"), block["input"]),
                    "tool_result" => {
                        let said = texts(&block["content"]).concat();
                        asked.results.push(said.clone());
                        format!("result of {}: {said}", text(block, "tool_use_id"))
                    }
                    "thinking" | "redacted_thinking" => continue,
                    _ => format!("text {}", text(block, "text")),
                };
                asked.add(role, piece);
            }
        }
        for tool in all(request, "tools") {
            asked.tools.push((text(tool, "name").to_owned(), tool["input_schema"].clone()));
        }
        let choice = &request["tool_choice"];
        asked.parallel = choice["disable_parallel_tool_use"] != json!(true);
        asked.choice = match text(choice, "type") {
            "none" => Choice::None,
            "any" => Choice::Any,
            "tool" => Choice::Tool(text(choice, "name").to_owned()),
            _ => Choice::Auto,
        };
        let format = match &request["output_config"]["format"] {
            Value::Null => &request["output_format"],
            format => format,
        };
        asked.schema = (text(format, "type") == "json_schema").then(|| format["schema"].clone());
        asked.max_tokens = request["max_tokens"].as_u64();
        asked.temperature = request["temperature"].as_f64();
        asked.stop = list(&request["stop_sequences"]);
        asked
    }

    fn whole(&self, said: &Said<'_>) -> Value {
        let blocks: Vec<Value> = said.parts.iter().map(|part| block(part, false)).collect();
        let mut message = begun(said);
        message["content"] = blocks.into();
        message["stop_reason"] = stop(said).into();
        if let Some(counted) = said.usage {
            message["usage"] = usage(counted);
        }
        message
    }

    fn stream(&self, said: &Said<'_>) -> Vec<Event> {
        let mut message = begun(said);
        if let Some(counted) = said.usage {
            message["usage"] = usage(Usage { output: 1, ..counted });
        }
        let mut events = vec![
            Event::named(&json!({ "type": "message_start", "message": message }), false),
            Event::named(&json!({ "type": "ping" }), false),
        ];
        for (index, part) in said.parts.iter().enumerate() {
            let start = json!({ "type": "content_block_start", "index": index, "content_block": block(part, true) });
            events.push(Event::named(&start, matches!(part, Part::Tool { .. })));
            let mut delta = |delta: Value, content| {
                let event = json!({ "type": "content_block_delta", "index": index, "delta": delta });
                events.push(Event::named(&event, content));
            };
            match part {
                Part::Thought { pieces, signature } => {
                    for piece in pieces {
                        delta(json!({ "type": "thinking_delta", "thinking": piece }), true);
                    }
                    delta(json!({ "type": "signature_delta", "signature": signature }), false);
                }
                Part::Text { pieces } => {
                    for piece in pieces {
                        delta(json!({ "type": "text_delta", "text": piece }), true);
                    }
                }
                Part::Tool { pieces, .. } => {
                    for piece in pieces {
                        delta(json!({ "type": "input_json_delta", "partial_json": piece }), true);
                    }
                }
            }
            events.push(Event::named(&json!({ "type": "content_block_stop", "index": index }), false));
        }
        let mut last =
            json!({ "type": "message_delta", "delta": { "stop_reason": stop(said), "stop_sequence": null } });
        last["usage"] = said.usage.map_or_else(|| json!({ "output_tokens": 0 }), usage);
        events.push(Event::named(&last, false));
        events.push(Event::named(&json!({ "type": "message_stop" }), false));
        events
    }

    fn error(&self, status: u16, message: &str) -> Value {
        let kind = match status {
            400 => "invalid_request_error",
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            529 => "overloaded_error",
            _ => "api_error",
        };
        json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": "req_script" })
    }

    fn error_event(&self, status: u16, message: &str) -> Event {
        Event::named(&self.error(status, message), false)
    }
}

fn begun(said: &Said<'_>) -> Value {
    json!({
        "id": ID, "type": "message", "role": "assistant", "model": said.model, "content": [], "stop_reason": null,
        "stop_sequence": null, "usage": { "input_tokens": 0, "output_tokens": 0 },
    })
}

fn block(part: &Part, begun: bool) -> Value {
    match part {
        Part::Thought { .. } if begun => json!({ "type": "thinking", "thinking": "", "signature": "" }),
        Part::Thought { signature, .. } => {
            json!({ "type": "thinking", "thinking": part.whole(), "signature": signature })
        }
        Part::Text { .. } => json!({ "type": "text", "text": if begun { String::new() } else { part.whole() } }),
        Part::Tool { id, name, .. } => {
            let whole = || serde_json::from_str(&part.whole()).unwrap_or_default();
            json!({ "type": "tool_use", "id": id, "name": name, "input": if begun { json!({}) } else { whole() } })
        }
    }
}

fn stop(said: &Said<'_>) -> &'static str {
    match said.ending {
        Ending::Filtered => "refusal",
        Ending::Length => "max_tokens",
        Ending::Natural if said.calls_tools() => "tool_use",
        Ending::Natural => "end_turn",
    }
}

/// Anthropic counts what came from the cache apart.
fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.input.saturating_sub(usage.cached), "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0, "output_tokens": usage.output,
    })
}
