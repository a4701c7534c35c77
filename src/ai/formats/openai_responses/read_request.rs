//! Requests of callers who speak Responses.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::wire::{Content, Item, TextOr};
use crate::ai::chat::{
    CacheMark, ChatRequest, Effort, Failure, FailureKind, Message, OutputFormat, Part, Reasoning, Role, Source, Tool,
    ToolCall, ToolChoice, ToolResult,
};
use crate::ai::formats::{Format, tolerant};

#[derive(Deserialize, Default)]
#[serde(default)]
struct Body<'b> {
    #[serde(borrow, deserialize_with = "tolerant::text")]
    model: Option<Cow<'b, str>>,
    /// Items are read one by one, so that one of an unknown type can be kept as it is.
    #[serde(borrow)]
    input: TextOr<'b, &'b RawValue>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    instructions: Option<Cow<'b, str>>,
    #[serde(borrow, deserialize_with = "tolerant::list")]
    tools: Vec<&'b RawValue>,
    tool_choice: Option<Value>,
    text: Option<Text>,
    #[serde(borrow)]
    reasoning: Option<WrittenReasoning<'b>>,
    #[serde(deserialize_with = "tolerant::count")]
    max_output_tokens: Option<u64>,
    parallel_tool_calls: Option<bool>,
    #[serde(deserialize_with = "tolerant::real")]
    temperature: Option<f64>,
    #[serde(deserialize_with = "tolerant::real")]
    top_p: Option<f64>,
    #[serde(deserialize_with = "tolerant::default")]
    stream: bool,
    user: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Text {
    format: Option<TextFormat>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TextFormat {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    description: Option<String>,
    schema: Option<Value>,
    strict: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WrittenReasoning<'b> {
    #[serde(borrow, deserialize_with = "tolerant::text")]
    effort: Option<Cow<'b, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    summary: Option<Cow<'b, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    generate_summary: Option<Cow<'b, str>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WrittenTool<'b> {
    #[serde(borrow, rename = "type", deserialize_with = "tolerant::text")]
    kind: Option<Cow<'b, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    name: Option<Cow<'b, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    description: Option<Cow<'b, str>>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

pub fn decode(body: &[u8]) -> Result<ChatRequest, Failure> {
    let body: Body<'_> = tolerant::request(body)?;
    let mut request = ChatRequest {
        model: body.model.map(Cow::into_owned).unwrap_or_default(),
        parallel_tools: body.parallel_tool_calls,
        max_tokens: body.max_output_tokens,
        temperature: body.temperature,
        top_p: body.top_p,
        stream: body.stream,
        // The last event always tells it.
        stream_usage: true,
        user: body.user,
        rest: body.rest,
        dialect: Some(Format::OpenAiResponses),
        ..ChatRequest::default()
    };
    if request.model.is_empty() {
        return Err(Failure::invalid("model", "`model` is missing."));
    }
    if let Some(instructions) = body.instructions {
        request.messages.push(message(Role::System, vec![text(instructions)]));
    }
    match body.input {
        TextOr::Text(input) => request.messages.push(message(Role::User, vec![text(input)])),
        TextOr::List(items) => {
            for (index, item) in items.into_iter().enumerate() {
                take_item(index, item, &mut request)?;
            }
        }
    }
    for (index, tool) in body.tools.into_iter().enumerate() {
        take_tool(index, tool, &mut request)?;
    }
    if let Some(choice) = body.tool_choice {
        take_tool_choice(choice, &mut request);
    }
    if let Some(text) = body.text {
        take_text(text, &mut request)?;
    }
    if let Some(reasoning) = body.reasoning {
        take_reasoning(reasoning, &mut request)?;
    }
    Ok(request)
}

fn message(role: Role, parts: Vec<Part>) -> Message {
    Message { role, parts }
}

fn text(text: Cow<'_, str>) -> Part {
    Part::Text { text: text.into_owned(), cache: None }
}

fn unreadable(path: String, error: &serde_json::Error) -> Failure {
    let message = format!("`{path}` cannot be read: {error}");
    Failure::invalid(path, message)
}

fn take_item(index: usize, raw: &RawValue, request: &mut ChatRequest) -> Result<(), Failure> {
    let item = serde_json::from_str::<Item<'_>>(raw.get());
    let kind = item.as_ref().map(|item| item.kind().to_owned()).unwrap_or_default();
    match (kind.as_str(), item) {
        ("message", Ok(item)) => {
            let role = match item.role.as_deref().unwrap_or("user") {
                "user" => Role::User,
                "assistant" => Role::Assistant,
                "system" | "developer" => Role::System,
                role => {
                    let message = format!("`{role}` is no role; roles are `user`, `assistant`, `system`, `developer`.");
                    return Err(Failure::invalid(format!("input[{index}].role"), message));
                }
            };
            let parts = take_contents(item.content, &format!("input[{index}].content"), request)?;
            join(role, parts, request);
        }
        ("function_call", Ok(item)) => {
            let arguments = item.arguments();
            let call = ToolCall {
                id: item.call_id.or(item.id).map(Cow::into_owned).unwrap_or_default(),
                name: item.name.map(Cow::into_owned).unwrap_or_default(),
                arguments,
                ..ToolCall::default()
            };
            if call.id.is_empty() {
                return Err(Failure::invalid(format!("input[{index}].call_id"), "A call has no `call_id`."));
            }
            join(Role::Assistant, vec![Part::ToolCall(call)], request);
        }
        ("function_call_output", Ok(item)) => {
            let Some(id) = item.call_id.filter(|id| !id.is_empty()) else {
                return Err(Failure::invalid(format!("input[{index}].call_id"), "A call's output has no `call_id`."));
            };
            let content = take_contents(item.output, &format!("input[{index}].output"), request)?;
            let name = item.name.map(Cow::into_owned);
            let result = ToolResult { id: id.into_owned(), name, content, ..ToolResult::default() };
            join(Role::User, vec![Part::ToolResult(result)], request);
        }
        ("reasoning", Ok(item)) => join(Role::Assistant, vec![Part::Reasoning(item.thought())], request),
        _ => {
            // An item reference may go without a type; what is no object at all, or amiss in a known type, is a mistake.
            let value: Value =
                serde_json::from_str(raw.get()).map_err(|error| unreadable(format!("input[{index}]"), &error))?;
            let Value::Object(mut item) = value else {
                return Err(Failure::invalid(format!("input[{index}]"), "An item is an object."));
            };
            match item.get("type").and_then(Value::as_str) {
                kind if matches!(kind, Some("message" | "function_call" | "function_call_output" | "reasoning"))
                    || kind.is_none() && item.contains_key("role") =>
                {
                    return Err(match serde_json::from_str::<Item<'_>>(raw.get()) {
                        Err(error) => unreadable(format!("input[{index}]"), &error),
                        Ok(_) => Failure::invalid(format!("input[{index}]"), "The item cannot be read."),
                    });
                }
                None if item.contains_key("id") => {
                    item.insert("type".into(), "item_reference".into());
                }
                _ => {}
            }
            request.rest.insert(format!("input[{index}]"), Value::Object(item));
        }
    }
    Ok(())
}

/// Items of one turn of the model are one message; results of tools are one with what the user says after them.
fn join(role: Role, mut parts: Vec<Part>, request: &mut ChatRequest) {
    match request.messages.last_mut() {
        Some(last)
            if last.role == role
                && (role == Role::Assistant
                    || role == Role::User && last.parts.iter().all(|part| matches!(part, Part::ToolResult(_)))) =>
        {
            last.parts.append(&mut parts);
        }
        _ => request.messages.push(message(role, parts)),
    }
}

fn take_contents(
    contents: TextOr<'_, Content<'_>>,
    path: &str,
    request: &mut ChatRequest,
) -> Result<Vec<Part>, Failure> {
    let contents = match contents {
        TextOr::Text(words) => return Ok(vec![text(words)]),
        TextOr::List(contents) => contents,
    };
    let mut parts = Vec::with_capacity(contents.len());
    for (at, content) in contents.into_iter().enumerate() {
        let wrong = |what: &str| Err(Failure::invalid(format!("{path}[{at}]"), what));
        let cache = content.prompt_cache_breakpoint.map(|mark| CacheMark { long: mark.ttl.as_deref() == Some("12h") });
        match content.kind.as_deref().unwrap_or_default() {
            "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text" | "" => {
                let Some(text) = content.text else { return wrong("A text has no `text`.") };
                parts.push(Part::Text { text: text.into_owned(), cache });
            }
            "refusal" => {
                parts.push(Part::Refusal { text: content.refusal.map(Cow::into_owned).unwrap_or_default() });
            }
            "input_image" => {
                let source = match (content.image_url, content.file_id) {
                    (Some(url), _) => of_url(&url),
                    (None, Some(id)) => Source::File { id: id.into_owned() },
                    (None, None) => return wrong("An image has neither `image_url` nor `file_id`."),
                };
                parts.push(Part::Image { source, detail: content.detail.map(Cow::into_owned), cache });
            }
            "input_file" => {
                let name = content.filename.map(Cow::into_owned);
                let source = match (content.file_data, content.file_url, content.file_id) {
                    (Some(data), ..) => match of_url(&data) {
                        Source::Url(base64) => Source::Data { media_type: "application/pdf".into(), base64 },
                        source => source,
                    },
                    (_, Some(url), _) => of_url(&url),
                    (.., Some(id)) => Source::File { id: id.into_owned() },
                    _ => return wrong("A file has none of `file_data`, `file_url`, `file_id`."),
                };
                parts.push(Part::Document { source, name, cache });
            }
            "input_audio" => {
                let audio = content.input_audio.unwrap_or_default();
                let media_type = match audio.format.as_deref() {
                    Some("mp3") => "audio/mpeg".to_owned(),
                    Some(format) => format!("audio/{format}"),
                    None => return wrong("A recording has no `format`."),
                };
                let base64 = audio.data.map(Cow::into_owned).unwrap_or_default();
                parts.push(Part::Audio { source: Source::Data { media_type, base64 } });
            }
            kind => {
                request
                    .rest
                    .insert(format!("{path}[{at}]"), Value::Object(Map::from_iter([("type".into(), kind.into())])));
            }
        }
    }
    Ok(parts)
}

/// A `data:` URL is its bytes.
fn of_url(url: &str) -> Source {
    let data = url.strip_prefix("data:").and_then(|data| data.split_once(";base64,"));
    match data {
        Some((media_type, base64)) => {
            // Parameters such as a character set say nothing that a provider wants to know.
            let media_type = media_type.split(';').next().unwrap_or_default().to_owned();
            Source::Data { media_type, base64: base64.to_owned() }
        }
        None => Source::Url(url.to_owned()),
    }
}

fn take_tool(index: usize, raw: &RawValue, request: &mut ChatRequest) -> Result<(), Failure> {
    let unreadable = |error: serde_json::Error| unreadable(format!("tools[{index}]"), &error);
    let tool: WrittenTool<'_> = serde_json::from_str(raw.get()).map_err(unreadable)?;
    if tool.kind.as_deref() != Some("function") {
        let built_in: Value = serde_json::from_str(raw.get()).map_err(unreadable)?;
        request.rest.insert(format!("tools[{index}]"), built_in);
        return Ok(());
    }
    let Some(name) = tool.name.filter(|name| !name.is_empty()) else {
        return Err(Failure::invalid(format!("tools[{index}].name"), "A function has no name."));
    };
    request.tools.push(Tool {
        name: name.into_owned(),
        description: tool.description.map(Cow::into_owned),
        parameters: tool.parameters,
        strict: tool.strict,
        cache: None,
    });
    Ok(())
}

fn take_tool_choice(choice: Value, request: &mut ChatRequest) {
    let word = |name: &str| choice.get(name).and_then(Value::as_str);
    request.tool_choice = match (choice.as_str(), word("type")) {
        (Some("auto"), _) => Some(ToolChoice::Auto),
        (Some("none"), _) => Some(ToolChoice::None),
        (Some("required"), _) => Some(ToolChoice::Any),
        (_, Some("function")) => word("name").map(|name| ToolChoice::Tool(name.to_owned())),
        (_, Some("allowed_tools")) => {
            let tools = choice.get("tools").and_then(Value::as_array);
            let names: Vec<&str> =
                tools.into_iter().flatten().filter_map(|tool| tool.get("name").and_then(Value::as_str)).collect();
            // Which tools may be called is said by offering no others.
            request.tools.retain(|tool| names.contains(&tool.name.as_str()));
            match word("mode") {
                Some("required") => Some(ToolChoice::Any),
                _ => Some(ToolChoice::Auto),
            }
        }
        _ if choice.is_null() => None,
        // Some built-in tool.
        _ => {
            request.rest.insert("tool_choice".into(), choice);
            None
        }
    };
}

fn take_text(text: Text, request: &mut ChatRequest) -> Result<(), Failure> {
    for (name, value) in text.rest {
        request.rest.insert(format!("text.{name}"), value);
    }
    let Some(format) = text.format else { return Ok(()) };
    request.output = match (format.kind.as_str(), format.schema) {
        ("json_object", _) => Some(OutputFormat::Json),
        ("json_schema", Some(schema)) => Some(OutputFormat::Schema {
            name: format.name.unwrap_or_else(|| "response".into()),
            description: format.description,
            schema,
            strict: format.strict,
        }),
        ("json_schema", None) => {
            return Err(Failure::invalid("text.format.schema", "The format `json_schema` has no `schema`."));
        }
        ("text" | "", _) => None,
        (kind, _) => {
            let message = format!("`{kind}` is no format; formats are `text`, `json_object`, `json_schema`.");
            return Err(Failure::invalid("text.format.type", message));
        }
    };
    Ok(())
}

fn take_reasoning(reasoning: WrittenReasoning<'_>, request: &mut ChatRequest) -> Result<(), Failure> {
    for (name, value) in reasoning.rest {
        request.rest.insert(format!("reasoning.{name}"), value);
    }
    let effort = match reasoning.effort.as_deref() {
        None => None,
        Some("none") => Some(Effort::None),
        Some("minimal") => Some(Effort::Minimal),
        Some("low") => Some(Effort::Low),
        Some("medium") => Some(Effort::Medium),
        Some("high") => Some(Effort::High),
        Some("xhigh") => Some(Effort::ExtraHigh),
        Some("max") => Some(Effort::Max),
        Some(effort) => {
            let kind = FailureKind::InvalidRequest;
            let message = format!("`{effort}` is no effort; efforts are none, minimal, low, medium, high, xhigh, max.");
            return Err(Failure { param: Some("reasoning.effort".into()), ..Failure::new(kind, message) });
        }
    };
    let summary = reasoning.summary.or(reasoning.generate_summary);
    let shown = summary.map(|summary| summary != "none");
    if effort.is_some() || shown.is_some() {
        request.reasoning = Some(Reasoning { effort, budget: None, shown });
    }
    Ok(())
}
