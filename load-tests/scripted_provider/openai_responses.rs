//! OpenAI's Responses.

use serde_json::{Value, json};

use super::asked::{Asked, Choice, all, shown_url, text, texts};
use super::said::{Dialect, Event, Part, Said};
use super::script::{Ending, Usage};

pub struct OpenAiResponses;

const ID: &str = "resp_script";
const CREATED: u64 = 1_764_000_000;

impl Dialect for OpenAiResponses {
    fn asked(&self, request: &Value) -> Asked {
        let mut asked = Asked { parallel: request["parallel_tool_calls"] != json!(false), ..Asked::default() };
        asked.system.extend(request["instructions"].as_str().map(str::to_owned));
        if let Some(said) = request["input"].as_str() {
            asked.add("user", format!("text {said}"));
        }
        for item in all(request, "input") {
            match (text(item, "type"), text(item, "role")) {
                ("function_call", _) => {
                    asked.results.clear();
                    asked.add("assistant", format!("call {} {}", text(item, "name"), text(item, "arguments")));
                }
                ("function_call_output", _) => {
                    let said = texts(&item["output"]).concat();
                    asked.add("user", format!("result of {}: {said}", text(item, "call_id")));
                    asked.results.push(said);
                }
                ("reasoning", _) => {}
                (_, "system" | "developer") => asked.system.extend(texts(&item["content"])),
                (_, role) => {
                    asked.results.clear();
                    content(&mut asked, role, &item["content"]);
                }
            }
        }
        for tool in all(request, "tools").filter(|tool| text(tool, "type") == "function") {
            asked.tools.push((text(tool, "name").to_owned(), tool["parameters"].clone()));
        }
        asked.choice = match &request["tool_choice"] {
            Value::String(word) if word == "none" => Choice::None,
            Value::String(word) if word == "required" => Choice::Any,
            Value::Object(_) => Choice::Tool(text(&request["tool_choice"], "name").to_owned()),
            _ => Choice::Auto,
        };
        let format = &request["text"]["format"];
        asked.schema = (text(format, "type") == "json_schema").then(|| format["schema"].clone());
        asked.max_tokens = request["max_output_tokens"].as_u64();
        asked.temperature = request["temperature"].as_f64();
        asked
    }

    fn whole(&self, said: &Said<'_>) -> Value {
        let output = said.parts.iter().enumerate().map(|(number, part)| item(number, part, "completed"));
        response(said, ending(said), output.collect::<Vec<_>>().into(), true)
    }

    fn stream(&self, said: &Said<'_>) -> Vec<Event> {
        let mut events = Events::default();
        let begun = response(said, "in_progress", json!([]), false);
        events.push(json!({ "type": "response.created", "response": begun }), false);
        events.push(json!({ "type": "response.in_progress", "response": begun }), false);
        for (number, part) in said.parts.iter().enumerate() {
            events.part(number, part);
        }
        let last = match said.ending {
            Ending::Natural => "response.completed",
            Ending::Filtered | Ending::Length => "response.incomplete",
        };
        events.push(json!({ "type": last, "response": self.whole(said) }), false);
        events.0
    }

    fn error(&self, status: u16, message: &str) -> Value {
        super::openai_chat::OpenAiChat.error(status, message)
    }

    fn error_event(&self, _: u16, message: &str) -> Event {
        let error =
            json!({ "type": "error", "code": "server_error", "message": message, "param": null, "sequence_number": 1 });
        Event::named(&error, false)
    }
}

#[derive(Default)]
struct Events(Vec<Event>);

impl Events {
    fn push(&mut self, mut event: Value, content: bool) {
        event["sequence_number"] = self.0.len().into();
        self.0.push(Event::named(&event, content));
    }

    fn part(&mut self, number: usize, part: &Part) {
        let begun = match item(number, part, "in_progress") {
            Value::Object(mut item) => {
                for (member, empty) in [("content", json!([])), ("summary", json!([])), ("arguments", json!(""))] {
                    item.entry(member).and_modify(|value| *value = empty);
                }
                Value::Object(item)
            }
            other => other,
        };
        let done = item(number, part, "completed");
        let id = done["id"].clone();
        self.push(json!({ "type": "response.output_item.added", "output_index": number, "item": begun }), false);
        match part {
            Part::Thought { pieces, .. } => {
                let place = json!({ "item_id": id, "output_index": number, "summary_index": 0 });
                let summary = |text: &str| json!({ "type": "summary_text", "text": text });
                self.at(&place, "reasoning_summary_part.added", &[("part", summary(""))], false);
                for piece in pieces {
                    self.at(&place, "reasoning_summary_text.delta", &[("delta", json!(piece))], true);
                }
                self.at(&place, "reasoning_summary_text.done", &[("text", json!(part.whole()))], false);
                self.at(&place, "reasoning_summary_part.done", &[("part", summary(&part.whole()))], false);
            }
            Part::Text { pieces } => {
                let place = json!({ "item_id": id, "output_index": number, "content_index": 0 });
                self.at(&place, "content_part.added", &[("part", output_text(""))], false);
                for piece in pieces {
                    self.at(&place, "output_text.delta", &[("delta", json!(piece)), ("logprobs", json!([]))], true);
                }
                self.at(&place, "output_text.done", &[("text", json!(part.whole())), ("logprobs", json!([]))], false);
                self.at(&place, "content_part.done", &[("part", output_text(&part.whole()))], false);
            }
            Part::Tool { name, pieces, .. } => {
                let place = json!({ "item_id": id, "output_index": number });
                for piece in pieces {
                    self.at(&place, "function_call_arguments.delta", &[("delta", json!(piece))], true);
                }
                let whole = [("arguments", json!(part.whole())), ("name", json!(name))];
                self.at(&place, "function_call_arguments.done", &whole, false);
            }
        }
        self.push(json!({ "type": "response.output_item.done", "output_index": number, "item": done }), false);
    }

    fn at(&mut self, place: &Value, kind: &str, members: &[(&str, Value)], content: bool) {
        let mut event = json!({ "type": format!("response.{kind}") });
        for (name, value) in place.as_object().into_iter().flatten() {
            event[name] = value.clone();
        }
        for (name, value) in members {
            event[*name] = value.clone();
        }
        self.push(event, content);
    }
}

fn output_text(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn item(number: usize, part: &Part, status: &str) -> Value {
    match part {
        Part::Thought { signature, .. } => json!({
            "id": format!("rs_{number}"), "type": "reasoning", "encrypted_content": signature,
            "summary": [{ "type": "summary_text", "text": part.whole() }],
        }),
        Part::Text { .. } => json!({
            "id": format!("msg_{number}"), "type": "message", "role": "assistant", "status": status,
            "content": [output_text(&part.whole())],
        }),
        Part::Tool { id, name, .. } => json!({
            "id": format!("fc_{number}"), "type": "function_call", "status": status, "call_id": id, "name": name,
            "arguments": part.whole(),
        }),
    }
}

fn ending(said: &Said<'_>) -> &'static str {
    match said.ending {
        Ending::Natural => "completed",
        Ending::Filtered | Ending::Length => "incomplete",
    }
}

fn response(said: &Said<'_>, status: &str, output: Value, complete: bool) -> Value {
    let incomplete = match said.ending {
        _ if !complete => Value::Null,
        Ending::Natural => Value::Null,
        Ending::Filtered => json!({ "reason": "content_filter" }),
        Ending::Length => json!({ "reason": "max_output_tokens" }),
    };
    let usage = said.usage.filter(|_| complete).map_or(Value::Null, usage);
    json!({
        "id": ID, "object": "response", "created_at": CREATED, "status": status, "error": null,
        "incomplete_details": incomplete, "instructions": null, "max_output_tokens": null, "model": said.model,
        "output": output, "parallel_tool_calls": true, "previous_response_id": null, "store": false, "temperature": 1.0,
        "text": { "format": { "type": "text" } }, "tool_choice": "auto", "tools": [], "top_p": 1.0,
        "truncation": "disabled", "usage": usage, "metadata": {},
    })
}

fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.input, "input_tokens_details": { "cached_tokens": usage.cached },
        "output_tokens": usage.output, "output_tokens_details": { "reasoning_tokens": usage.thoughts },
        "total_tokens": usage.input + usage.output,
    })
}

fn content(asked: &mut Asked, role: &str, content: &Value) {
    if let Some(said) = content.as_str() {
        return asked.add(role, format!("text {said}"));
    }
    for part in content.as_array().into_iter().flatten() {
        let piece = match text(part, "type") {
            "input_image" => format!("image {}", shown_url(text(part, "image_url"))),
            "input_file" => format!("document {}", shown_url(text(part, "file_data"))),
            _ => format!("text {}", text(part, "text")),
        };
        asked.add(role, piece);
    }
}
