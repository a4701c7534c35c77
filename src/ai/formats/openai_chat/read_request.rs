//! Reads a caller's request.

use serde_json::{Map, Value};

use super::super::reading::{self, Embedded, Text, TextOr, Whole, is_empty, take_text, wire_object};
use super::thoughts::{self, Detail};
use crate::ai::chat::{
    CacheMark, ChatRequest, Effort, Failure, Message, OutputFormat, Part, Reasoning, Role, Source, Tool, ToolCall,
    ToolChoice, ToolResult,
};
use crate::ai::formats::{Format, PathFacts};
use crate::ai::tool_ids;

wire_object! {
    struct WireRequest<'a> {
        "model" => model: String,
        "messages" => messages: Vec<WireMessage<'a>>,
        "tools" => tools: Vec<WireTool<'a>>,
        "functions" => functions: Vec<WireFunction<'a>>,
        "tool_choice" => tool_choice: Value,
        "function_call" => function_call: Value,
        "parallel_tool_calls" => parallel_tool_calls: bool,
        "response_format" => response_format: Value,
        "reasoning_effort" => reasoning_effort: Text<'a>,
        "reasoning" => reasoning: Value,
        "max_completion_tokens" => max_completion_tokens: Whole,
        "max_tokens" => max_tokens: Whole,
        "temperature" => temperature: f64,
        "top_p" => top_p: f64,
        "top_k" => top_k: Whole,
        "frequency_penalty" => frequency_penalty: f64,
        "presence_penalty" => presence_penalty: f64,
        "seed" => seed: Whole,
        "stop" => stop: TextOr<'a, String>,
        "n" => n: Whole,
        "stream" => stream: bool,
        "stream_options" => stream_options: Map<String, Value>,
        "user" => user: String,
    }
}

wire_object! {
    struct WireMessage<'a> {
        "role" => role: Text<'a>,
        "content" => content: TextOr<'a, WirePart<'a>>,
        "tool_calls" => tool_calls: Vec<WireToolCall<'a>>,
        "tool_call_id" => tool_call_id: String,
        "name" => name: String,
        "function_call" => function_call: WireFunctionCall<'a>,
        "refusal" => refusal: String,
        "audio" => audio: Map<String, Value>,
        "reasoning_content" => reasoning_content: String,
        "reasoning" => reasoning: String,
        "reasoning_details" => reasoning_details: Vec<Detail<'a>>,
        "thinking_blocks" => thinking_blocks: Vec<Detail<'a>>,
        "cache_control" => cache_control: Value,
    }
}

wire_object! {
    struct WirePart<'a> {
        "type" => kind: Text<'a>,
        "text" => text: String,
        "image_url" => image_url: WireUrl<'a>,
        "video_url" => video_url: WireUrl<'a>,
        "input_audio" => input_audio: WireAudio<'a>,
        "file" => file: WireFile<'a>,
        "refusal" => refusal: String,
        "cache_control" => cache_control: Value,
    }
}

wire_object! {
    struct WireUrl<'a> {
        "url" => url: Text<'a>,
        "detail" => detail: String,
    }
}

wire_object! {
    struct WireAudio<'a> {
        "data" => data: String,
        "format" => format: Text<'a>,
    }
}

wire_object! {
    struct WireFile<'a> {
        "file_id" => file_id: String,
        "file_data" => file_data: Text<'a>,
        "filename" => filename: String,
    }
}

wire_object! {
    struct WireToolCall<'a> {
        "id" => id: String,
        "type" => kind: Text<'a>,
        "function" => function: WireFunctionCall<'a>,
        "index" => index: Value,
        "extra_content" => extra_content: Value,
    }
}

wire_object! {
    struct WireFunctionCall<'a> {
        "name" => name: String,
        "arguments" => arguments: Embedded<'a>,
    }
}

wire_object! {
    struct WireTool<'a> {
        "type" => kind: Text<'a>,
        "function" => function: WireFunction<'a>,
        "cache_control" => cache_control: Value,
    }
}

wire_object! {
    struct WireFunction<'a> {
        "name" => name: String,
        "description" => description: String,
        "parameters" => parameters: Value,
        "strict" => strict: bool,
        "cache_control" => cache_control: Value,
    }
}

pub fn read(body: &[u8], path: PathFacts<'_>) -> Result<ChatRequest, Failure> {
    let mut wire: WireRequest<'_> = reading::request(body)?;
    let mut rest = std::mem::take(&mut wire.rest);
    rest.retain(|_, value| !value.is_null());
    let model = path.model.map(str::to_owned).or(wire.model).filter(|model| !model.is_empty());
    let (tools, legacy) = match (wire.tools, wire.functions) {
        (Some(tools), _) => (tools_of(tools, &mut rest), false),
        (None, Some(functions)) => (functions.into_iter().filter_map(|function| tool(function, None)).collect(), true),
        (None, None) => (Vec::new(), false),
    };
    let mut request = ChatRequest {
        model: model.ok_or_else(|| Failure::invalid("model", "the model is missing"))?,
        tools,
        legacy_functions: legacy,
        // A legacy answer has room for one call.
        parallel_tools: if legacy { Some(false) } else { wire.parallel_tool_calls },
        max_tokens: match wire.max_completion_tokens {
            Some(limit) => count("max_completion_tokens", Some(limit))?,
            None => count("max_tokens", wire.max_tokens)?,
        },
        temperature: wire.temperature,
        top_p: wire.top_p,
        top_k: count("top_k", wire.top_k)?,
        frequency_penalty: wire.frequency_penalty,
        presence_penalty: wire.presence_penalty,
        seed: wire.seed.map(|seed| seed.0),
        stop: match wire.stop {
            Some(TextOr::Text(text)) => vec![text.into_owned()],
            Some(TextOr::List(texts)) => texts,
            None => Vec::new(),
        },
        choices: count("n", wire.n)?.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
        stream: path.stream.or(wire.stream).unwrap_or_default(),
        user: wire.user,
        dialect: Some(Format::OpenAiChat),
        ..ChatRequest::default()
    };
    let choice = if legacy { wire.function_call } else { wire.tool_choice };
    request.tool_choice = match choice {
        Some(choice) => tool_choice(choice, &mut request.tools)?,
        None => None,
    };
    request.output = wire.response_format.and_then(|format| output(format, &mut rest));
    request.reasoning = reasoning(wire.reasoning_effort, wire.reasoning, &mut rest);
    if let Some(mut options) = wire.stream_options {
        request.stream_usage = options.remove("include_usage") == Some(Value::Bool(true));
        keep("stream_options", options, &mut rest);
    }
    request.messages = messages(wire.messages.unwrap_or_default(), &mut rest)?;
    if request.messages.is_empty() {
        return Err(Failure::invalid("messages", "there is no message"));
    }
    request.rest = rest;
    Ok(request)
}

fn count(name: &'static str, number: Option<Whole>) -> Result<Option<u64>, Failure> {
    match number {
        Some(number) => {
            number.count().map(Some).ok_or_else(|| Failure::invalid(name, "a number below 0 makes no sense"))
        }
        None => Ok(None),
    }
}

/// Remembers members by the path of their object.
fn keep(path: &str, members: Map<String, Value>, rest: &mut Map<String, Value>) {
    for (name, value) in members {
        if !is_empty(&value) && value != Value::Bool(false) {
            rest.insert(format!("{path}.{name}"), value);
        }
    }
}

fn cache_mark(written: Option<Value>) -> Option<CacheMark> {
    let written = written.filter(|value| !value.is_null())?;
    Some(CacheMark { long: written.get("ttl").and_then(Value::as_str) == Some("1h") })
}

// Messages.

fn messages(wire: Vec<WireMessage<'_>>, rest: &mut Map<String, Value>) -> Result<Vec<Message>, Failure> {
    let mut messages: Vec<Message> = Vec::with_capacity(wire.len());
    for (index, mut wire) in wire.into_iter().enumerate() {
        if !wire.rest.is_empty() {
            // Providers' answers come back with annotations that only told the caller something.
            wire.rest.remove("annotations");
            keep(&format!("messages[{index}]"), std::mem::take(&mut wire.rest), rest);
        }
        let role = match wire.role.as_deref() {
            Some("system" | "developer") => Role::System,
            Some("assistant") => Role::Assistant,
            Some("user" | "tool" | "function") => Role::User,
            Some(other) => {
                return Err(Failure::invalid(format!("messages[{index}].role"), format!("`{other}` is no role")));
            }
            None => return Err(Failure::invalid(format!("messages[{index}].role"), "the role is missing")),
        };
        let is_result = matches!(wire.role.as_deref(), Some("tool" | "function"));
        let parts = match role {
            Role::Assistant => assistant(index, wire, rest)?,
            _ if is_result => vec![tool_result(index, wire, &messages, rest)?],
            _ => {
                if let Some(name) = wire.name.take() {
                    rest.insert(format!("messages[{index}].name"), name.into());
                }
                let mut parts = parts(index, wire.content, rest)?;
                mark_last(&mut parts, wire.cache_control);
                parts
            }
        };
        // Results of tools begin the user's next message.
        match messages.last_mut() {
            Some(last) if role == Role::User && last.role == Role::User && only_results(last) => {
                last.parts.extend(parts)
            }
            _ => messages.push(Message { role, parts }),
        }
    }
    Ok(messages)
}

fn only_results(message: &Message) -> bool {
    !message.parts.is_empty() && message.parts.iter().all(|part| matches!(part, Part::ToolResult(_)))
}

fn parts(
    index: usize,
    content: Option<TextOr<'_, WirePart<'_>>>,
    rest: &mut Map<String, Value>,
) -> Result<Vec<Part>, Failure> {
    match content {
        None => Ok(Vec::new()),
        Some(TextOr::Text(text)) => Ok(vec![Part::Text { text: text.into_owned(), cache: None }]),
        Some(TextOr::List(wire)) => {
            let mut parts = Vec::with_capacity(wire.len());
            for (at, wire) in wire.into_iter().enumerate() {
                let path = || format!("messages[{index}].content[{at}]");
                parts.extend(part(wire, path, rest)?);
            }
            Ok(parts)
        }
    }
}

fn part(
    mut wire: WirePart<'_>,
    path: impl Fn() -> String,
    rest: &mut Map<String, Value>,
) -> Result<Option<Part>, Failure> {
    let cache = cache_mark(wire.cache_control);
    let read = match wire.kind.as_deref() {
        Some("text" | "input_text" | "output_text") | None => wire.text.map(|text| Part::Text { text, cache }),
        Some("refusal") => wire.refusal.map(|text| Part::Refusal { text }),
        Some("image_url") => match wire.image_url {
            Some(WireUrl { url: Some(url), detail, rest: members, .. }) => {
                keep(&path(), members, rest);
                Some(Part::Image { source: source(url, &path)?, detail, cache })
            }
            _ => None,
        },
        Some("video_url") => match wire.video_url {
            Some(WireUrl { url: Some(url), .. }) => Some(Part::Video { source: source(url, &path)? }),
            _ => None,
        },
        Some("input_audio") => match wire.input_audio {
            Some(WireAudio { data: Some(base64), format, .. }) => {
                let media_type = media_type_of_audio(format.as_deref().unwrap_or("wav"));
                Some(Part::Audio { source: Source::Data { media_type, base64 } })
            }
            _ => None,
        },
        Some("file") => match wire.file {
            Some(WireFile { file_id: Some(id), filename, .. }) => {
                Some(Part::Document { source: Source::File { id }, name: filename, cache })
            }
            Some(WireFile { file_data: Some(data), filename, .. }) => {
                let source = match data.starts_with("data:") || data.starts_with("http") {
                    true => source(data, &path)?,
                    false => Source::Data { media_type: "application/pdf".into(), base64: data.into_owned() },
                };
                Some(Part::Document { source, name: filename, cache })
            }
            _ => None,
        },
        // A kind that has no place here: it is named to whoever cannot be given it.
        Some(kind) => {
            wire.rest.insert("type".into(), kind.into());
            rest.insert(path(), Value::Object(wire.rest));
            return Ok(None);
        }
    };
    keep(&path(), wire.rest, rest);
    match read {
        Some(part) => Ok(Some(part)),
        None => Err(Failure::invalid(path(), "the part does not hold what its type says")),
    }
}

fn source(url: Text<'_>, path: impl Fn() -> String) -> Result<Source, Failure> {
    let Some(data) = url.strip_prefix("data:") else { return Ok(Source::Url(url.into_owned())) };
    match data.split_once(";base64,") {
        Some((media_type, base64)) => {
            let media_type = media_type.split(';').next().unwrap_or_default().to_owned();
            Ok(Source::Data { media_type, base64: base64.to_owned() })
        }
        None => Err(Failure::invalid(path(), "a `data:` URL has to be `data:<media type>;base64,<data>`")),
    }
}

fn media_type_of_audio(format: &str) -> String {
    match format {
        "mp3" => "audio/mpeg".into(),
        format => format!("audio/{format}"),
    }
}

/// A mark on a message is one on its end.
fn mark_last(parts: &mut [Part], written: Option<Value>) {
    let Some(mark) = cache_mark(written) else { return };
    if let Some(
        Part::Text { cache, .. }
        | Part::Image { cache, .. }
        | Part::Document { cache, .. }
        | Part::ToolCall(ToolCall { cache, .. })
        | Part::ToolResult(ToolResult { cache, .. }),
    ) = parts.last_mut()
    {
        cache.get_or_insert(mark);
    }
}

fn assistant(index: usize, wire: WireMessage<'_>, rest: &mut Map<String, Value>) -> Result<Vec<Part>, Failure> {
    let details = wire.reasoning_details.or(wire.thinking_blocks).unwrap_or_default();
    let thoughts = thoughts::read(details, wire.reasoning_content.or(wire.reasoning));
    let mut parts: Vec<Part> = thoughts.into_iter().map(Part::Reasoning).collect();
    parts.extend(self::parts(index, wire.content, rest)?);
    // Clients replay `content: ""` beside calls, and other vendors refuse an empty text.
    parts.retain(|part| !matches!(part, Part::Text { text, .. } if text.is_empty()));
    parts.extend(wire.refusal.filter(|text| !text.is_empty()).map(|text| Part::Refusal { text }));
    if let Some(mut audio) = wire.audio {
        parts.extend(take_text(&mut audio, "id").map(|id| Part::Audio { source: Source::File { id } }));
    }
    for (at, call) in wire.tool_calls.unwrap_or_default().into_iter().enumerate() {
        let path = || format!("messages[{index}].tool_calls[{at}]");
        match call.function {
            Some(WireFunctionCall { name: Some(name), arguments, .. }) => {
                let id = call.id.filter(|id| !id.is_empty()).unwrap_or_else(tool_ids::made_up);
                let signature = thought_signature(call.extra_content.as_ref()).or_else(|| tool_ids::signature(&id));
                let arguments = arguments.map(Embedded::into_text).unwrap_or_default();
                parts.push(Part::ToolCall(ToolCall { id, name, arguments, signature, cache: None }));
            }
            Some(_) => return Err(Failure::invalid(path(), "the call has no name")),
            // Custom tools have texts instead of arguments, and no other format has them.
            None => {
                rest.insert(path(), Value::Object(call.rest));
            }
        }
    }
    if let Some(WireFunctionCall { name: Some(name), arguments, .. }) = wire.function_call {
        let arguments = arguments.map(Embedded::into_text).unwrap_or_default();
        parts.push(Part::ToolCall(ToolCall { id: legacy_id(index, &name), name, arguments, ..ToolCall::default() }));
    }
    mark_last(&mut parts, wire.cache_control);
    Ok(parts)
}

/// Gemini's signature, where its OpenAI-compatible endpoint has it.
pub fn thought_signature(extra_content: Option<&Value>) -> Option<String> {
    let signature = extra_content?.get("google")?.get("thought_signature")?.as_str()?;
    Some(signature.to_owned())
}

/// Legacy calls have no ids: theirs is made of what is the same on every replay.
fn legacy_id(index: usize, name: &str) -> String {
    let letters = name.chars().filter(|letter| letter.is_ascii_alphanumeric() || "_-".contains(*letter)).take(24);
    format!("call_{index}_").chars().chain(letters).collect()
}

fn tool_result(
    index: usize,
    wire: WireMessage<'_>,
    before: &[Message],
    rest: &mut Map<String, Value>,
) -> Result<Part, Failure> {
    let called =
        before.iter().rev().flat_map(|message| &message.parts).find_map(|part| match (part, &wire.tool_call_id) {
            (Part::ToolCall(call), Some(id)) if call.id == *id => Some(call),
            // A legacy result names the function instead.
            (Part::ToolCall(call), None) if Some(&call.name) == wire.name.as_ref() => Some(call),
            _ => None,
        });
    let id = match (wire.tool_call_id, called, &wire.name) {
        (Some(id), _, _) => id,
        (None, Some(call), _) => call.id.clone(),
        (None, None, Some(name)) => legacy_id(index, name),
        (None, None, None) => {
            return Err(Failure::invalid(format!("messages[{index}].tool_call_id"), "the id is missing"));
        }
    };
    let called = called.map(|call| call.name.clone());
    let content = parts(index, wire.content, rest)?;
    let cache = cache_mark(wire.cache_control);
    Ok(Part::ToolResult(ToolResult { id, name: wire.name.or(called), content, is_error: false, cache }))
}

// Tools.

fn tools_of(wire: Vec<WireTool<'_>>, rest: &mut Map<String, Value>) -> Vec<Tool> {
    let mut tools = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        match wire.function.and_then(|function| tool(function, wire.cache_control)) {
            Some(tool) => tools.push(tool),
            None => {
                let mut members = wire.rest;
                members.insert("type".into(), wire.kind.map(Text::into_owned).into());
                rest.insert(format!("tools[{index}]"), Value::Object(members));
            }
        }
    }
    tools
}

fn tool(function: WireFunction<'_>, cache: Option<Value>) -> Option<Tool> {
    Some(Tool {
        name: function.name.filter(|name| !name.is_empty())?,
        description: function.description,
        parameters: function.parameters.filter(|schema| !schema.is_null()),
        strict: function.strict,
        cache: cache_mark(cache.or(function.cache_control)),
    })
}

/// What of `tools` may or must be called. Where only some of them are allowed, the others are taken away.
fn tool_choice(choice: Value, tools: &mut Vec<Tool>) -> Result<Option<ToolChoice>, Failure> {
    let name = |choice: &Value| choice.get("name").and_then(Value::as_str).map(str::to_owned);
    let mode = |word: &str| match word {
        "auto" => Some(ToolChoice::Auto),
        "none" => Some(ToolChoice::None),
        "required" | "any" => Some(ToolChoice::Any),
        _ => None,
    };
    let read = match &choice {
        Value::Null => return Ok(None),
        Value::String(word) => mode(word),
        Value::Object(members) => match members.get("type").and_then(Value::as_str) {
            Some("allowed_tools") => {
                let allowed = members.get("allowed_tools").unwrap_or(&choice);
                let names: Vec<&str> = allowed
                    .get("tools")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(|tool| tool.get("function").unwrap_or(tool).get("name")?.as_str())
                    .collect();
                tools.retain(|tool| names.contains(&tool.name.as_str()));
                allowed.get("mode").and_then(Value::as_str).and_then(mode)
            }
            _ => members.get("function").and_then(name).or_else(|| name(&choice)).map(ToolChoice::Tool),
        },
        _ => None,
    };
    read.map(Some).ok_or_else(|| Failure::invalid("tool_choice", "it is none of auto, none, required and a function"))
}

// What shall come out.

fn output(mut format: Value, rest: &mut Map<String, Value>) -> Option<OutputFormat> {
    match format.get("type").and_then(Value::as_str) {
        Some("text") | None => return None,
        Some("json_object") => return Some(OutputFormat::Json),
        Some("json_schema") => {
            if let Some(Value::Object(mut members)) = format.get_mut("json_schema").map(Value::take) {
                return Some(OutputFormat::Schema {
                    name: take_text(&mut members, "name").unwrap_or_default(),
                    description: take_text(&mut members, "description"),
                    schema: members.remove("schema").unwrap_or_else(|| Value::Object(Map::new())),
                    strict: members.get("strict").and_then(Value::as_bool),
                });
            }
        }
        Some(_) => {}
    }
    rest.insert("response_format".into(), format);
    None
}

/// From OpenAI's `reasoning_effort`, or from OpenRouter's `reasoning: {effort, max_tokens, exclude, enabled}`.
fn reasoning(effort: Option<Text<'_>>, object: Option<Value>, rest: &mut Map<String, Value>) -> Option<Reasoning> {
    if let Some(word) = effort {
        match effort_of(&word) {
            Some(effort) => return Some(Reasoning { effort: Some(effort), ..Reasoning::default() }),
            None => {
                rest.insert("reasoning_effort".into(), word.into_owned().into());
            }
        }
    }
    let object = object.filter(|object| !object.is_null())?;
    let reasoning = Reasoning {
        effort: match object.get("enabled") {
            Some(Value::Bool(false)) => Some(Effort::None),
            _ => object.get("effort").and_then(Value::as_str).and_then(effort_of),
        },
        budget: object.get("max_tokens").and_then(Value::as_u64),
        shown: object.get("exclude").and_then(Value::as_bool).map(|exclude| !exclude),
    };
    if reasoning == Reasoning::default() && object.get("enabled").is_none() {
        rest.insert("reasoning".into(), object);
        return None;
    }
    Some(reasoning)
}

fn effort_of(word: &str) -> Option<Effort> {
    Some(match word {
        "none" => Effort::None,
        "minimal" => Effort::Minimal,
        "low" => Effort::Low,
        "medium" => Effort::Medium,
        "high" => Effort::High,
        "xhigh" => Effort::ExtraHigh,
        "max" => Effort::Max,
        _ => return None,
    })
}
