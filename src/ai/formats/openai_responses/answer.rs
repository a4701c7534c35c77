//! Whole answers of Responses, both ways, and the response that streams begin and end with.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::failure::{self, OutError};
use super::wire::{Item, OutContent, OutItem, TextOr, WrittenUsage, encrypted_content};
use super::write_request::word;
use crate::ai::chat::{
    ChatAnswer, ChatRequest, Choice, Dropped, Failure, FailureKind, OutputFormat, Part, Source, Stop, ToolCall,
    ToolChoice, Usage,
};
use crate::ai::formats::{Format, made_up, tolerant};

/// A response as a provider sends it.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Response<'w> {
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub id: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub model: Option<Cow<'w, str>>,
    #[serde(deserialize_with = "tolerant::integer")]
    pub created_at: Option<i64>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub status: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::raw")]
    pub error: Option<Cow<'w, RawValue>>,
    #[serde(borrow)]
    pub incomplete_details: Option<Incomplete<'w>>,
    #[serde(borrow, deserialize_with = "tolerant::list")]
    pub output: Vec<&'w RawValue>,
    #[serde(deserialize_with = "tolerant::default")]
    pub usage: Option<WrittenUsage>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Incomplete<'w> {
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub reason: Option<Cow<'w, str>>,
}

impl Response<'_> {
    /// What went wrong, if the response says so.
    pub fn failure(&self) -> Option<Failure> {
        match (&self.error, self.status.as_deref()) {
            (Some(error), _) => Some(failure::inside(error.get())),
            (None, Some("failed")) => Some(Failure::new(FailureKind::Server, "The provider's response failed.")),
            (None, Some("cancelled")) => {
                Some(Failure::new(FailureKind::Server, "The provider's response was cancelled."))
            }
            _ => None,
        }
    }

    pub fn stop(&self, called: bool) -> Stop {
        let reason = self.incomplete_details.as_ref().and_then(|details| details.reason.as_deref());
        match (self.status.as_deref(), reason) {
            (_, Some("max_output_tokens")) => Stop::MaxTokens,
            (_, Some("content_filter")) => Stop::Filtered,
            _ if called => Stop::ToolUse,
            _ => Stop::End,
        }
    }
}

pub fn decode(body: &[u8]) -> Result<ChatAnswer, Failure> {
    let response: Response<'_> = serde_json::from_slice(body)
        .map_err(|error| Failure::new(FailureKind::Server, format!("The provider's answer cannot be read: {error}")))?;
    if let Some(failure) = response.failure() {
        return Err(failure);
    }
    if matches!(response.status.as_deref(), Some("queued" | "in_progress")) {
        return Err(Failure::new(FailureKind::Server, "The provider answered before its response was complete."));
    }
    let mut rest = Map::new();
    let mut parts = Vec::new();
    for (index, raw) in response.output.iter().enumerate() {
        read_item(index, raw, &mut parts, &mut rest);
    }
    let called = parts.iter().any(|part| matches!(part, Part::ToolCall(_)));
    let stop = response.stop(called);
    Ok(ChatAnswer {
        usage: response.usage.as_ref().map(Usage::from),
        id: response.id.map(Cow::into_owned).unwrap_or_default(),
        model: response.model.map(Cow::into_owned).unwrap_or_default(),
        created: response.created_at.unwrap_or(0),
        choices: vec![Choice { parts, stop, stop_sequence: None }],
        rest,
    })
}

fn read_item(index: usize, raw: &RawValue, parts: &mut Vec<Part>, rest: &mut Map<String, Value>) {
    let item = serde_json::from_str::<Item<'_>>(raw.get()).unwrap_or_default();
    match item.kind() {
        "message" => match item.content {
            TextOr::Text(text) => parts.push(Part::Text { text: text.into_owned(), cache: None }),
            TextOr::List(contents) => {
                for (at, content) in contents.into_iter().enumerate() {
                    if let Some(annotations) = content.annotations
                        && annotations.as_array().is_none_or(|annotations| !annotations.is_empty())
                        && !annotations.is_null()
                    {
                        rest.insert(format!("output[{index}].content[{at}].annotations"), annotations);
                    }
                    match (content.text, content.refusal) {
                        (Some(text), _) => parts.push(Part::Text { text: text.into_owned(), cache: None }),
                        (_, Some(text)) => parts.push(Part::Refusal { text: text.into_owned() }),
                        _ => {}
                    }
                }
            }
        },
        "function_call" => {
            let arguments = item.arguments();
            let id = item.call_id.or(item.id).filter(|id| !id.is_empty());
            parts.push(Part::ToolCall(ToolCall {
                id: id.map_or_else(|| made_up("call_"), Cow::into_owned),
                name: item.name.map(Cow::into_owned).unwrap_or_default(),
                arguments,
                ..ToolCall::default()
            }));
        }
        "reasoning" => {
            let thought = item.thought();
            if !thought.text.is_empty() || thought.encrypted.is_some() || thought.signature.is_some() {
                parts.push(Part::Reasoning(thought));
            }
        }
        "image_generation_call" => {
            let base64 = item.result.and_then(|result| serde_json::from_str::<String>(result.get()).ok());
            let media_type = image_type(item.output_format.as_deref());
            parts.extend(base64.map(|base64| Part::Image {
                source: Source::Data { media_type, base64 },
                detail: None,
                cache: None,
            }));
        }
        _ => {
            if let Ok(item) = serde_json::from_str(raw.get()) {
                rest.insert(format!("output[{index}]"), item);
            }
        }
    }
}

pub fn image_type(format: Option<&str>) -> String {
    format!("image/{}", format.unwrap_or("png"))
}

/// What a response repeats of its request, written once for all events of a stream: members of an object, without brackets.
pub fn echo(request: &ChatRequest) -> String {
    let kept = |name: &str| request.rest.get(name).filter(|_| request.dialect == Some(Format::OpenAiResponses));
    let mut tools: Vec<Value> = Vec::with_capacity(request.tools.len());
    for tool in &request.tools {
        tools.push(json!({
            "type": "function", "name": tool.name, "description": tool.description, "parameters": tool.parameters,
            "strict": tool.strict.unwrap_or(true),
        }));
    }
    let built_in = request.rest.iter().filter(|(path, _)| path.starts_with("tools["));
    tools.extend(built_in.map(|(_, tool)| tool.clone()));
    let tool_choice = match (&request.tool_choice, kept("tool_choice")) {
        (_, Some(choice)) => choice.clone(),
        (None | Some(ToolChoice::Auto), _) => "auto".into(),
        (Some(ToolChoice::None), _) => "none".into(),
        (Some(ToolChoice::Any), _) => "required".into(),
        (Some(ToolChoice::Tool(name)), _) => json!({"type": "function", "name": name}),
    };
    let format = match &request.output {
        None => json!({"type": "text"}),
        Some(OutputFormat::Json) => json!({"type": "json_object"}),
        Some(OutputFormat::Schema { name, description, schema, strict }) => {
            json!({"type": "json_schema", "name": name, "description": description, "schema": schema, "strict": strict.unwrap_or(false)})
        }
    };
    let reasoning = request.reasoning.clone().unwrap_or_default();
    let echo = json!({
        "background": false,
        "instructions": null,
        "max_output_tokens": request.max_tokens,
        "metadata": kept("metadata").cloned().unwrap_or_else(|| json!({})),
        "parallel_tool_calls": request.parallel_tools.unwrap_or(true),
        "previous_response_id": null,
        "reasoning": {"effort": reasoning.effort.map(word), "summary": reasoning.shown.filter(|shown| *shown).map(|_| "auto")},
        "service_tier": kept("service_tier").cloned().unwrap_or_else(|| "default".into()),
        "store": false,
        "temperature": request.temperature,
        "text": {"format": format},
        "tool_choice": tool_choice,
        "tools": tools,
        "top_p": request.top_p,
        "truncation": kept("truncation").cloned().unwrap_or_else(|| "disabled".into()),
        "user": request.user,
    });
    let echo = echo.to_string();
    echo.get(1..echo.len() - 1).unwrap_or_default().to_owned()
}

/// What changes of a response while it comes.
#[derive(Serialize)]
pub struct OutResponse<'w> {
    pub id: &'w str,
    pub object: &'static str,
    pub created_at: i64,
    pub status: &'static str,
    pub error: Option<OutError<'w>>,
    pub incomplete_details: Option<OutIncomplete>,
    pub model: &'w str,
    pub usage: Option<WrittenUsage>,
}

#[derive(Serialize)]
pub struct OutIncomplete {
    pub reason: &'static str,
}

/// Appends a response; `output` are its items, written, with commas between them.
pub fn write_response(response: &OutResponse<'_>, output: &[u8], echo: &str, out: &mut Vec<u8>) {
    let before = out.len();
    if serde_json::to_writer(&mut *out, response).is_err() || out.pop() != Some(b'}') {
        out.truncate(before);
        out.extend_from_slice(b"{\"object\":\"response\"");
    }
    out.extend_from_slice(b",\"output\":[");
    out.extend_from_slice(output);
    out.extend_from_slice(b"],");
    out.extend_from_slice(echo.as_bytes());
    out.push(b'}');
}

/// The status of a response, and why it is incomplete.
pub fn status(stop: Stop) -> (&'static str, Option<OutIncomplete>) {
    let incomplete = |reason| ("incomplete", Some(OutIncomplete { reason }));
    match stop {
        Stop::MaxTokens | Stop::ContextFull => incomplete("max_output_tokens"),
        Stop::Filtered => incomplete("content_filter"),
        Stop::End | Stop::ToolUse | Stop::Paused | Stop::Malformed => ("completed", None),
    }
}

/// Ids of a response and its items, made of the provider's id.
pub struct Ids {
    pub response: String,
    base: String,
}

impl Ids {
    pub fn of(id: &str) -> Ids {
        if id.is_empty() {
            return Ids::of(&made_up("resp_"));
        }
        let base: String =
            id.trim_start_matches("resp_").chars().filter(char::is_ascii_alphanumeric).take(64).collect();
        let response = if id.starts_with("resp_") { id.to_owned() } else { ["resp_", &base].concat() };
        Ids { response, base }
    }

    pub fn item(&self, prefix: &str, index: usize) -> String {
        format!("{prefix}{}{index:04x}", self.base)
    }
}

/// The present, where the provider does not tell when it answered.
pub fn created(told: i64) -> i64 {
    match told {
        0 => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64),
        told => told,
    }
}

pub fn encode(answer: &ChatAnswer, request: &ChatRequest, dropped: &mut Dropped) -> Vec<u8> {
    answer.rest.keys().for_each(|name| dropped.add(name.clone()));
    (1..answer.choices.len()).for_each(|index| dropped.add(format!("choices[{index}]")));
    let ids = Ids::of(&answer.id);
    let first = answer.choices.first();
    let mut output = Vec::new();
    let mut items = 0;
    for (at, part) in first.iter().flat_map(|choice| choice.parts.iter().enumerate()) {
        let before = output.len();
        if items > 0 {
            output.push(b',');
        }
        match write_part(part, &ids, items, &mut output) {
            true => items += 1,
            false => {
                output.truncate(before);
                dropped.add(format!("choices[0].parts[{at}]"));
            }
        }
    }
    let (status, incomplete_details) = status(first.map(|choice| choice.stop).unwrap_or_default());
    let response = OutResponse {
        id: &ids.response,
        object: "response",
        created_at: created(answer.created),
        status,
        error: None,
        incomplete_details,
        model: &answer.model,
        usage: answer.usage.as_ref().map(WrittenUsage::from),
    };
    let mut out = Vec::with_capacity(1_024 + output.len());
    write_response(&response, &output, &echo(request), &mut out);
    out
}

fn write_part(part: &Part, ids: &Ids, index: usize, out: &mut Vec<u8>) -> bool {
    let message = |content, out: &mut Vec<u8>| {
        let id = ids.item("msg_", index);
        write_item(&OutItem::Message { id: &id, status: "completed", role: "assistant", content: vec![content] }, out)
    };
    match part {
        Part::Text { text, .. } => message(OutContent::text(text), out),
        Part::Refusal { text } => message(OutContent::Refusal { refusal: text }, out),
        Part::ToolCall(call) => {
            let id = ids.item("fc_", index);
            let arguments = if call.arguments.is_empty() { "{}" } else { &call.arguments };
            let item =
                OutItem::FunctionCall { id: &id, status: "completed", call_id: &call.id, name: &call.name, arguments };
            write_item(&item, out)
        }
        Part::Reasoning(thought) => {
            let id = ids.item("rs_", index);
            let summary = match thought.text.as_str() {
                "" => Vec::new(),
                text => vec![OutContent::SummaryText { text }],
            };
            let encrypted_content = encrypted_content(thought.signature.as_deref(), thought.encrypted.as_deref());
            write_item(&OutItem::Reasoning { id: &id, summary, encrypted_content }, out)
        }
        Part::Image { source: Source::Data { base64, .. }, .. } => {
            let id = ids.item("ig_", index);
            write_item(&OutItem::ImageGenerationCall { id: &id, status: "completed", result: Some(base64) }, out)
        }
        _ => false,
    }
}

fn write_item(item: &OutItem<'_>, out: &mut Vec<u8>) -> bool {
    serde_json::to_writer(out, item).is_ok()
}
