//! Requests of Gemini, both ways.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::answer::{arguments, write_blob, write_thought};
use super::wire::{Blob, Content, FileData, FunctionCall, FunctionResponse, Part as Wire};
use super::{schema, signature};
use crate::ai::chat::{
    ChatRequest, Dropped, Effort, Failure, FailureKind, Message, OutputFormat, Part, Reasoning, Role, Source, Thought,
    Tool, ToolCall, ToolChoice, ToolResult,
};
use crate::ai::formats::{Format, PathFacts, tolerant};
use crate::ai::tool_ids;

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Body<'b> {
    #[serde(borrow, deserialize_with = "tolerant::list")]
    contents: Vec<Content<'b>>,
    #[serde(borrow, alias = "system_instruction")]
    system_instruction: Option<Content<'b>>,
    #[serde(borrow, deserialize_with = "tolerant::list")]
    tools: Vec<WrittenTool<'b>>,
    #[serde(borrow, alias = "tool_config")]
    tool_config: Option<ToolConfig<'b>>,
    #[serde(borrow, alias = "generation_config")]
    generation_config: Option<GenerationConfig<'b>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct WrittenTool<'b> {
    #[serde(borrow, alias = "function_declarations", deserialize_with = "tolerant::list")]
    function_declarations: Vec<Declaration<'b>>,
    /// Tools that Google runs.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Declaration<'b> {
    #[serde(borrow, deserialize_with = "tolerant::text")]
    name: Option<Cow<'b, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    description: Option<Cow<'b, str>>,
    parameters: Option<Value>,
    #[serde(alias = "parameters_json_schema")]
    parameters_json_schema: Option<Value>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ToolConfig<'b> {
    #[serde(borrow, alias = "function_calling_config")]
    function_calling_config: Option<CallingConfig<'b>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct CallingConfig<'b> {
    #[serde(borrow, deserialize_with = "tolerant::text")]
    mode: Option<Cow<'b, str>>,
    #[serde(alias = "allowed_function_names", deserialize_with = "tolerant::list")]
    allowed_function_names: Vec<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct GenerationConfig<'b> {
    #[serde(alias = "max_output_tokens", deserialize_with = "tolerant::count")]
    max_output_tokens: Option<u64>,
    #[serde(deserialize_with = "tolerant::real")]
    temperature: Option<f64>,
    #[serde(alias = "top_p", deserialize_with = "tolerant::real")]
    top_p: Option<f64>,
    #[serde(alias = "top_k", deserialize_with = "tolerant::count")]
    top_k: Option<u64>,
    #[serde(alias = "presence_penalty", deserialize_with = "tolerant::real")]
    presence_penalty: Option<f64>,
    #[serde(alias = "frequency_penalty", deserialize_with = "tolerant::real")]
    frequency_penalty: Option<f64>,
    #[serde(deserialize_with = "tolerant::integer")]
    seed: Option<i64>,
    #[serde(alias = "stop_sequences", deserialize_with = "tolerant::default")]
    stop_sequences: Vec<String>,
    #[serde(alias = "candidate_count", deserialize_with = "tolerant::count")]
    candidate_count: Option<u64>,
    #[serde(borrow, alias = "response_mime_type", deserialize_with = "tolerant::text")]
    response_mime_type: Option<Cow<'b, str>>,
    #[serde(alias = "response_schema")]
    response_schema: Option<Value>,
    #[serde(alias = "response_json_schema")]
    response_json_schema: Option<Value>,
    #[serde(borrow, alias = "thinking_config")]
    thinking_config: Option<ThinkingConfig<'b>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ThinkingConfig<'b> {
    #[serde(alias = "include_thoughts")]
    include_thoughts: Option<bool>,
    #[serde(alias = "thinking_budget", deserialize_with = "tolerant::integer")]
    thinking_budget: Option<i64>,
    #[serde(borrow, alias = "thinking_level", deserialize_with = "tolerant::text")]
    thinking_level: Option<Cow<'b, str>>,
}

pub fn decode(body: &[u8], path: PathFacts<'_>) -> Result<ChatRequest, Failure> {
    let body: Body<'_> = tolerant::request(body)?;
    let mut request = ChatRequest {
        model: path.model.unwrap_or_default().to_owned(),
        stream: path.stream.unwrap_or(false),
        // Every stream of Gemini tells its usage.
        stream_usage: true,
        rest: body.rest,
        dialect: Some(Format::Gemini),
        ..ChatRequest::default()
    };
    if request.model.is_empty() {
        return Err(Failure::invalid("model", "The path names no model."));
    }
    if body.contents.is_empty() {
        return Err(Failure::invalid("contents", "`contents` is missing or empty."));
    }
    if let Some(system) = body.system_instruction {
        let parts = system.parts.into_iter().filter_map(|part| part.text);
        let parts = parts.map(|text| Part::Text { text: text.into_owned(), cache: None }).collect();
        request.messages.push(Message { role: Role::System, parts });
    }
    let mut conversation = Conversation { request: &mut request, unanswered: VecDeque::new(), calls: 0 };
    for (index, content) in body.contents.into_iter().enumerate() {
        conversation.take(index, content)?;
    }
    for (index, tool) in body.tools.into_iter().enumerate() {
        take_tool(index, tool, &mut request)?;
    }
    if let Some(config) = body.tool_config {
        take_tool_config(config, &mut request);
    }
    if let Some(config) = body.generation_config {
        take_generation_config(config, &mut request);
    }
    Ok(request)
}

/// Reads contents in order, and gives ids to calls and results that have none.
struct Conversation<'r> {
    request: &'r mut ChatRequest,
    /// Ids and names of calls whose results have not come.
    unanswered: VecDeque<(String, String)>,
    calls: usize,
}

impl Conversation<'_> {
    fn take(&mut self, index: usize, content: Content<'_>) -> Result<(), Failure> {
        let role = match content.role.as_deref().unwrap_or("user") {
            "model" | "assistant" => Role::Assistant,
            "user" | "function" | "tool" | "" => Role::User,
            "system" => Role::System,
            role => {
                let message = format!("`{role}` is no role; roles are `user` and `model`.");
                return Err(Failure::invalid(format!("contents[{index}].role"), message));
            }
        };
        let joined = match self.request.messages.last() {
            // Libraries keep each event of a stream as a content of its own.
            Some(last) if role == Role::Assistant => last.role == role,
            Some(last) => last.role == role && last.parts.iter().all(|part| matches!(part, Part::ToolResult(_))),
            None => false,
        };
        let mut parts = match joined {
            true => self.request.messages.pop().map(|message| message.parts).unwrap_or_default(),
            false => Vec::new(),
        };
        if role == Role::Assistant && !joined {
            self.unanswered.clear();
        }
        for (at, part) in content.parts.into_iter().enumerate() {
            self.take_part(part, role, &mut parts, || format!("contents[{index}].parts[{at}]"));
        }
        self.request.messages.push(Message { role, parts });
        Ok(())
    }

    fn take_part(&mut self, part: Wire<'_>, role: Role, into: &mut Vec<Part>, path: impl Fn() -> String) {
        let known = part.text.is_some()
            || part.inline_data.is_some()
            || part.file_data.is_some()
            || part.function_call.is_some()
            || part.function_response.is_some();
        for (name, value) in part.rest {
            self.request.rest.insert(format!("{}.{name}", path()), value);
        }
        let signature = part.thought_signature.as_deref();
        if let Some(call) = part.function_call {
            into.push(self.take_call(call, signature));
            return;
        }
        if part.thought {
            return take_thought(part.text, signature, into);
        }
        if let Some(text) = part.text {
            match into.last_mut() {
                Some(Part::Text { text: before, .. }) if role == Role::Assistant => before.push_str(&text),
                _ if text.is_empty() && role == Role::Assistant => {}
                _ => into.push(Part::Text { text: text.into_owned(), cache: None }),
            }
        } else if let Some(blob) = part.inline_data {
            let media_type = blob.mime_type.map(Cow::into_owned).unwrap_or_default();
            let base64 = blob.data.map(standard_base64).unwrap_or_default();
            let name = blob.display_name.map(Cow::into_owned);
            into.push(of_media_type(&media_type.clone(), Source::Data { media_type, base64 }, name));
        } else if let Some(file) = part.file_data {
            into.push(take_file(file));
        } else if let Some(result) = part.function_response {
            into.push(self.take_result(result));
        } else if !known && signature.is_none() {
            return;
        }
        if signature.is_some() {
            into.push(Part::Reasoning(signature::thought(String::new(), signature)));
        }
    }

    fn take_call(&mut self, call: FunctionCall<'_>, signature: Option<&str>) -> Part {
        let id = match call.id.filter(|id| !id.is_empty()) {
            Some(id) => id.into_owned(),
            None => self.next_id(),
        };
        let name = call.name.map(Cow::into_owned).unwrap_or_default();
        self.unanswered.push_back((id.clone(), name.clone()));
        Part::ToolCall(ToolCall {
            id,
            name,
            arguments: call.args.map(|args| args.get().to_owned()).unwrap_or_default(),
            signature: signature.map(str::to_owned),
            cache: None,
        })
    }

    /// The same for the same conversation, so that providers find its beginning in their caches when it is sent again.
    fn next_id(&mut self) -> String {
        self.calls += 1;
        format!("call_{}", self.calls)
    }

    fn take_result(&mut self, result: FunctionResponse<'_>) -> Part {
        let name = result.name.map(Cow::into_owned).unwrap_or_default();
        let given = result.id.filter(|id| !id.is_empty());
        let place = match &given {
            Some(id) => self.unanswered.iter().position(|(call, _)| *call == **id),
            None => self
                .unanswered
                .iter()
                .position(|(_, called)| *called == name)
                .or_else(|| (!self.unanswered.is_empty()).then_some(0)),
        };
        let call = place.and_then(|place| self.unanswered.remove(place)).map(|(id, _)| id);
        let id = match given.map(Cow::into_owned).or(call) {
            Some(id) => id,
            None => self.next_id(),
        };
        let (text, is_error) = result.response.map(|response| result_text(&response)).unwrap_or_default();
        let mut content = vec![Part::Text { text, cache: None }];
        for part in result.parts {
            if let Some(blob) = part.inline_data {
                let media_type = blob.mime_type.map(Cow::into_owned).unwrap_or_default();
                let base64 = blob.data.map(standard_base64).unwrap_or_default();
                let name = blob.display_name.map(Cow::into_owned);
                content.push(of_media_type(&media_type.clone(), Source::Data { media_type, base64 }, name));
            } else if let Some(file) = part.file_data {
                content.push(take_file(file));
            }
        }
        Part::ToolResult(ToolResult {
            id,
            name: Some(name).filter(|name| !name.is_empty()),
            content,
            is_error,
            cache: None,
        })
    }
}

/// The text of a result, and whether it is an error. An object's only member `output` or `error` is what Google says to put a
/// plain result into.
fn result_text(response: &RawValue) -> (String, bool) {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Plain {
        output: Option<String>,
        error: Option<String>,
    }
    match serde_json::from_str::<Plain>(response.get()) {
        Ok(Plain { output: Some(output), error: None }) => (output, false),
        Ok(Plain { output: None, error: Some(error) }) => (error, true),
        _ => (response.get().to_owned(), false),
    }
}

/// A thought's text comes in pieces where the library kept the events of a stream; its signature ends it.
fn take_thought(text: Option<Cow<'_, str>>, signature: Option<&str>, into: &mut Vec<Part>) {
    let thought = signature::thought(text.map(Cow::into_owned).unwrap_or_default(), signature);
    match into.last_mut() {
        Some(Part::Reasoning(before)) if before.signature.is_none() && before.encrypted.is_none() => {
            before.text.push_str(&thought.text);
            before.signature = thought.signature;
            before.encrypted = thought.encrypted;
        }
        _ => into.push(Part::Reasoning(thought)),
    }
}

fn take_file(file: FileData<'_>) -> Part {
    let uri = file.file_uri.map(Cow::into_owned).unwrap_or_default();
    let media_type = file.mime_type.map(Cow::into_owned);
    let media_type = media_type.or_else(|| media_type_of(&uri).map(str::to_owned)).unwrap_or_default();
    let uploaded = !uri.starts_with("http") || uri.contains("generativelanguage.googleapis.com/");
    let source = if uploaded { Source::File { id: uri } } else { Source::Url(uri) };
    of_media_type(&media_type, source, None)
}

/// Google's libraries write base64 in the alphabet for URLs (RFC 4648, section 5), which others do not read.
fn standard_base64(data: Cow<'_, str>) -> String {
    if !data.contains(['-', '_']) && data.len().is_multiple_of(4) {
        return data.into_owned();
    }
    let mut standard: String = data
        .chars()
        .map(|c| match c {
            '-' => '+',
            '_' => '/',
            other => other,
        })
        .collect();
    while !standard.len().is_multiple_of(4) {
        standard.push('=');
    }
    standard
}

fn of_media_type(media_type: &str, source: Source, name: Option<String>) -> Part {
    match media_type.split('/').next().unwrap_or_default() {
        "image" => Part::Image { source, detail: None, cache: None },
        "audio" => Part::Audio { source },
        "video" => Part::Video { source },
        _ => Part::Document { source, name, cache: None },
    }
}

/// What a file's name says it is.
fn media_type_of(uri: &str) -> Option<&'static str> {
    let path = uri.split(['?', '#']).next()?;
    let (_, extension) = path.rsplit_once('.')?;
    Some(match extension.to_ascii_lowercase().as_str() {
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "gif" => "image/gif",
        "heic" => "image/heic",
        "pdf" => "application/pdf",
        "txt" | "md" => "text/plain",
        "csv" => "text/csv",
        "html" => "text/html",
        "json" => "application/json",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wav",
        "ogg" => "audio/ogg",
        "flac" => "audio/flac",
        "mp4" => "video/mp4",
        "mov" => "video/quicktime",
        "webm" => "video/webm",
        _ => return None,
    })
}

fn take_tool(index: usize, tool: WrittenTool<'_>, request: &mut ChatRequest) -> Result<(), Failure> {
    for (name, value) in tool.rest {
        request.rest.insert(format!("tools[{index}].{name}"), value);
    }
    for (at, declaration) in tool.function_declarations.into_iter().enumerate() {
        let path = || format!("tools[{index}].functionDeclarations[{at}]");
        let Some(name) = declaration.name.filter(|name| !name.is_empty()) else {
            return Err(Failure::invalid(format!("{}.name", path()), "A function has no name."));
        };
        for (name, value) in declaration.rest {
            request.rest.insert(format!("{}.{name}", path()), value);
        }
        let parameters = declaration.parameters.as_ref().map(schema::from_gemini);
        request.tools.push(Tool {
            name: name.into_owned(),
            description: declaration.description.map(Cow::into_owned),
            parameters: declaration.parameters_json_schema.or(parameters),
            strict: None,
            cache: None,
        });
    }
    Ok(())
}

fn take_tool_config(config: ToolConfig<'_>, request: &mut ChatRequest) {
    for (name, value) in config.rest {
        request.rest.insert(format!("toolConfig.{name}"), value);
    }
    let Some(calling) = config.function_calling_config else { return };
    for (name, value) in calling.rest {
        request.rest.insert(format!("toolConfig.functionCallingConfig.{name}"), value);
    }
    let mut allowed = calling.allowed_function_names;
    let mode = calling.mode.as_deref().unwrap_or_default();
    request.tool_choice = match mode {
        "AUTO" | "VALIDATED" => Some(ToolChoice::Auto),
        "NONE" => Some(ToolChoice::None),
        "ANY" if allowed.len() == 1 => allowed.pop().map(ToolChoice::Tool),
        "ANY" => Some(ToolChoice::Any),
        _ => None,
    };
    // Which of several tools may be called is said by offering no others.
    if !allowed.is_empty() {
        request.tools.retain(|tool| allowed.contains(&tool.name));
    }
    if mode == "VALIDATED" {
        request.rest.insert("toolConfig.functionCallingConfig.mode".into(), mode.into());
    }
}

fn take_generation_config(config: GenerationConfig<'_>, request: &mut ChatRequest) {
    for (name, value) in config.rest {
        request.rest.insert(format!("generationConfig.{name}"), value);
    }
    request.max_tokens = config.max_output_tokens;
    request.temperature = config.temperature;
    request.top_p = config.top_p;
    request.top_k = config.top_k;
    request.presence_penalty = config.presence_penalty;
    request.frequency_penalty = config.frequency_penalty;
    request.seed = config.seed;
    request.stop = config.stop_sequences;
    request.choices = config.candidate_count.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let written = config.response_schema.as_ref().map(schema::from_gemini);
    let schema = config.response_json_schema.or(written).filter(|schema| !schema.is_null());
    request.output = match (config.response_mime_type.as_deref(), schema) {
        (Some("application/json") | None, Some(schema)) => {
            Some(OutputFormat::Schema { name: "response".into(), description: None, schema, strict: None })
        }
        (Some("application/json"), None) => Some(OutputFormat::Json),
        (None | Some("text/plain"), None) => None,
        (Some(other), schema) => {
            request.rest.insert("generationConfig.responseMimeType".into(), other.into());
            schema.into_iter().for_each(|schema| {
                request.rest.insert("generationConfig.responseJsonSchema".into(), schema);
            });
            None
        }
    };
    request.reasoning = config.thinking_config.map(|thinking| Reasoning {
        effort: match (thinking.thinking_level.as_deref(), thinking.thinking_budget) {
            (Some(level), _) => effort_of_level(level),
            (None, Some(0)) => Some(Effort::None),
            _ => None,
        },
        // -1 leaves it to the model.
        budget: thinking.thinking_budget.filter(|budget| *budget > 0).map(|budget| budget as u64),
        shown: thinking.include_thoughts,
    });
}

fn effort_of_level(level: &str) -> Option<Effort> {
    Some(match level.to_ascii_uppercase().as_str() {
        "MINIMAL" => Effort::Minimal,
        "LOW" => Effort::Low,
        "MEDIUM" => Effort::Medium,
        "HIGH" => Effort::High,
        "XHIGH" => Effort::ExtraHigh,
        _ => return None,
    })
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Written<'r> {
    #[serde(skip_serializing_if = "Option::is_none")]
    system_instruction: Option<Content<'r>>,
    contents: Vec<Content<'r>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    tool_config: Map<String, Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    generation_config: Map<String, Value>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

pub fn encode(request: &ChatRequest, model: &str, dropped: &mut Dropped) -> Result<Vec<u8>, Failure> {
    request.refuse_stored_state()?;
    let mut written = Written::default();
    write_messages(request, model, &mut written, dropped);
    write_tools(request, &mut written, dropped);
    write_generation_config(request, model, &mut written.generation_config, dropped);
    write_rest(request, &mut written, dropped);
    if request.user.is_some() {
        dropped.add("user");
    }
    if written.contents.iter().all(|content| content.parts.is_empty()) {
        return Err(Failure::invalid(
            "messages",
            "Nothing is left to ask: there is no message that the provider can read.",
        ));
    }
    serde_json::to_vec(&written)
        .map_err(|error| Failure::new(FailureKind::InvalidRequest, format!("The request cannot be written: {error}")))
}

fn write_messages<'r>(request: &'r ChatRequest, model: &str, written: &mut Written<'r>, dropped: &mut Dropped) {
    let names = tool_names(request);
    let mut system = Content::default();
    for (index, message) in request.messages.iter().enumerate() {
        let role = match message.role {
            Role::System => {
                // All of it, wherever it stands: what the application says outranks where it says it.
                write_parts(index, &message.parts, &mut system.parts, dropped);
                continue;
            }
            Role::User => "user",
            Role::Assistant => "model",
        };
        let mut parts = Vec::with_capacity(message.parts.len());
        match message.role {
            Role::User => {
                let calls = written.contents.last().filter(|last| last.role.as_deref() == Some("model"));
                let order = calls.map(|_| calls_before(request, index)).unwrap_or_default();
                write_results(index, message, &order, &names, &mut parts, dropped);
            }
            _ => write_parts(index, &message.parts, &mut parts, dropped),
        }
        if message.role == Role::Assistant && needs_signatures(model) {
            sign_first_call(&mut parts);
        }
        match written.contents.last_mut() {
            // Results and calls have to stand in turns next to each other.
            Some(last) if last.role.as_deref() == Some(role) => last.parts.append(&mut parts),
            _ if parts.is_empty() => {}
            _ => written.contents.push(Content { parts, role: Some(role.into()) }),
        }
    }
    // Contents must not be empty.
    if written.contents.is_empty() {
        written.contents.push(Content { parts: std::mem::take(&mut system.parts), role: Some("user".into()) });
    }
    if !system.parts.is_empty() {
        written.system_instruction = Some(system);
    }
}

fn tool_names(request: &ChatRequest) -> HashMap<&str, &str> {
    let parts = request.messages.iter().flat_map(|message| &message.parts);
    let calls = parts.filter_map(|part| match part {
        Part::ToolCall(call) => Some((call.id.as_str(), call.name.as_str())),
        _ => None,
    });
    calls.collect()
}

/// The ids of the calls that a message answers, in their order.
fn calls_before(request: &ChatRequest, index: usize) -> Vec<&str> {
    let before = request.messages.iter().take(index).rev().filter(|message| message.role != Role::System);
    let turn: Vec<&Message> = before.take_while(|message| message.role == Role::Assistant).collect();
    let parts = turn.into_iter().rev().flat_map(|message| &message.parts);
    let calls = parts.filter_map(|part| match part {
        Part::ToolCall(call) => Some(call.id.as_str()),
        _ => None,
    });
    calls.collect()
}

/// Results first and in the order of their calls, since that is how they are matched; then what the user says.
fn write_results<'r>(
    index: usize,
    message: &'r Message,
    order: &[&str],
    names: &HashMap<&'r str, &'r str>,
    parts: &mut Vec<Wire<'r>>,
    dropped: &mut Dropped,
) {
    let mut results: Vec<&ToolResult> = message
        .parts
        .iter()
        .filter_map(|part| match part {
            Part::ToolResult(result) => Some(result),
            _ => None,
        })
        .collect();
    if results.len() > 1 {
        let places: HashMap<&str, usize> = order.iter().enumerate().map(|(place, id)| (*id, place)).collect();
        results.sort_by_key(|result| places.get(result.id.as_str()).copied().unwrap_or(usize::MAX));
    }
    let mut shown = Vec::new();
    for result in results {
        if result.cache.is_some() {
            dropped.add("cache_control");
        }
        let name = names.get(result.id.as_str()).copied().or(result.name.as_deref()).unwrap_or(&result.id);
        parts.push(Wire {
            function_response: Some(FunctionResponse {
                name: Some(name.into()),
                response: Some(response(result)),
                ..FunctionResponse::default()
            }),
            ..Wire::default()
        });
        for part in &result.content {
            // Only the newest models take pictures inside of results; all take them beside.
            if !matches!(part, Part::Text { .. }) {
                write_part(index, 0, part, &mut shown, dropped);
            }
        }
    }
    parts.append(&mut shown);
    for (at, part) in message.parts.iter().enumerate() {
        if !matches!(part, Part::ToolResult(_)) {
            write_part(index, at, part, parts, dropped);
        }
    }
}

/// A result as the object that it has to be.
fn response(result: &ToolResult) -> Cow<'_, RawValue> {
    let mut texts = result.content.iter().filter_map(|part| match part {
        Part::Text { text, .. } => Some(text.as_str()),
        _ => None,
    });
    let text = match (texts.next(), texts.next()) {
        (None, _) => Cow::Borrowed(""),
        (Some(only), None) => Cow::Borrowed(only),
        (Some(first), Some(second)) => {
            Cow::Owned([first, second].into_iter().chain(texts).collect::<Vec<_>>().join("\n"))
        }
    };
    if let (Cow::Borrowed(text), false) = (&text, result.is_error)
        && text.trim_start().starts_with('{')
        && let Ok(object) = serde_json::from_str::<&RawValue>(text)
    {
        return Cow::Borrowed(object);
    }
    let name = if result.is_error { "error" } else { "output" };
    let object = Map::from_iter([(name.to_owned(), Value::from(text.into_owned()))]);
    Cow::Owned(serde_json::value::to_raw_value(&object).unwrap_or_else(|_| RawValue::NULL.to_owned()))
}

fn write_parts<'r>(index: usize, from: &'r [Part], parts: &mut Vec<Wire<'r>>, dropped: &mut Dropped) {
    for (at, part) in from.iter().enumerate() {
        write_part(index, at, part, parts, dropped);
    }
}

fn write_part<'r>(index: usize, at: usize, part: &'r Part, parts: &mut Vec<Wire<'r>>, dropped: &mut Dropped) {
    let (source, cache) = match part {
        Part::Text { text, cache } => {
            if cache.is_some() {
                dropped.add("cache_control");
            }
            if !text.is_empty() {
                parts.push(Wire { text: Some(text.as_str().into()), ..Wire::default() });
            }
            return;
        }
        Part::Refusal { text } => {
            parts.push(Wire { text: Some(text.as_str().into()), ..Wire::default() });
            return;
        }
        Part::Reasoning(thought) => return write_own_thought(index, at, thought, parts, dropped),
        Part::ToolCall(call) => return write_call(call, parts, dropped),
        Part::ToolResult(_) => return dropped.add(format!("messages[{index}].content[{at}]")),
        Part::Image { source, detail, cache } => {
            if detail.as_deref().is_some_and(|detail| detail != "auto") {
                dropped.add(format!("messages[{index}].content[{at}].detail"));
            }
            (source, *cache)
        }
        Part::Document { source, cache, .. } => (source, *cache),
        Part::Audio { source } | Part::Video { source } => (source, None),
    };
    if cache.is_some() {
        dropped.add("cache_control");
    }
    match source {
        Source::Data { media_type, base64 } => {
            let mut wire = write_blob(media_type, base64);
            if let (Part::Document { name: Some(name), .. }, Some(Blob { display_name, .. })) =
                (part, &mut wire.inline_data)
                && !name.is_empty()
            {
                // Vertex refuses names that AI Studio takes, and neither shows them to the model.
                *display_name = None;
            }
            parts.push(wire);
        }
        Source::Url(uri) => parts.push(write_file(uri, media_type_of(uri))),
        Source::File { id } if id.contains("://") || id.starts_with("files/") => {
            parts.push(write_file(id, media_type_of(id)));
        }
        // Uploaded to another provider.
        Source::File { .. } => dropped.add(format!("messages[{index}].content[{at}]")),
    }
}

fn write_file<'r>(uri: &'r str, media_type: Option<&'static str>) -> Wire<'r> {
    let file = FileData { mime_type: media_type.map(Cow::Borrowed), file_uri: Some(uri.into()) };
    Wire { file_data: Some(file), ..Wire::default() }
}

fn write_own_thought<'r>(
    index: usize,
    at: usize,
    thought: &'r Thought,
    parts: &mut Vec<Wire<'r>>,
    dropped: &mut Dropped,
) {
    let own = thought.encrypted.as_deref().is_some_and(|encrypted| encrypted.starts_with(signature::OWN));
    if own {
        return write_thought(thought, parts);
    }
    // Gemini refuses signatures that are not its own.
    if thought.signature.is_some() || thought.encrypted.is_some() {
        dropped.add(format!("messages[{index}].content[{at}].signature"));
    }
    if !thought.text.is_empty() {
        parts.push(Wire { text: Some(thought.text.as_str().into()), thought: true, ..Wire::default() });
    }
}

fn write_call<'r>(call: &'r ToolCall, parts: &mut Vec<Wire<'r>>, dropped: &mut Dropped) {
    if call.cache.is_some() {
        dropped.add("cache_control");
    }
    let signature = call.signature.as_deref().map(Cow::Borrowed);
    parts.push(Wire {
        thought_signature: signature.or_else(|| tool_ids::signature(&call.id).map(Cow::Owned)),
        function_call: Some(FunctionCall {
            name: Some(call.name.as_str().into()),
            args: Some(arguments(&call.arguments)),
            ..FunctionCall::default()
        }),
        ..Wire::default()
    });
}

/// Since Gemini 3 the first call of a turn is refused without its signature.
fn needs_signatures(model: &str) -> bool {
    generation(model).is_some_and(|generation| generation >= 3)
}

fn generation(model: &str) -> Option<u32> {
    let (_, version) = model.rsplit_once("gemini-")?;
    let digits = version.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

/// For calls of another provider's model, Google documents a word in the signature's place.
fn sign_first_call(parts: &mut [Wire<'_>]) {
    const UNSIGNED: &str = "skip_thought_signature_validator";
    if let Some(first) = parts.iter_mut().find(|part| part.function_call.is_some()) {
        first.thought_signature.get_or_insert(Cow::Borrowed(UNSIGNED));
    }
}

fn write_tools(request: &ChatRequest, written: &mut Written<'_>, dropped: &mut Dropped) {
    let mut declarations = Vec::with_capacity(request.tools.len());
    for (index, tool) in request.tools.iter().enumerate() {
        let mut declaration = Map::from_iter([("name".to_owned(), Value::from(tool.name.as_str()))]);
        if let Some(description) = &tool.description {
            declaration.insert("description".into(), description.as_str().into());
        }
        if let Some(parameters) = &tool.parameters {
            let mut lost = |keyword: &str| dropped.add(format!("tools[{index}].parameters.{keyword}"));
            let narrowed = schema::to_gemini(parameters, &mut lost);
            // An object without properties is refused; a function without parameters is not.
            let empty = |properties: &Value| properties.as_object().is_some_and(Map::is_empty);
            let takes_some = match narrowed.get("properties") {
                Some(properties) => !empty(properties),
                None => narrowed.get("anyOf").is_some(),
            };
            if takes_some {
                declaration.insert("parameters".into(), narrowed);
            }
        }
        if tool.strict == Some(true) {
            dropped.add(format!("tools[{index}].strict"));
        }
        if tool.cache.is_some() {
            dropped.add("cache_control");
        }
        declarations.push(Value::Object(declaration));
    }
    if !declarations.is_empty() {
        let declarations = Map::from_iter([("functionDeclarations".to_owned(), Value::Array(declarations))]);
        written.tools.push(Value::Object(declarations));
    }
    let calling = match &request.tool_choice {
        None => None,
        Some(_) if request.tools.is_empty() => None,
        Some(ToolChoice::Auto) => Some(serde_json::json!({"mode": "AUTO"})),
        Some(ToolChoice::None) => Some(serde_json::json!({"mode": "NONE"})),
        Some(ToolChoice::Any) => Some(serde_json::json!({"mode": "ANY"})),
        Some(ToolChoice::Tool(name)) => Some(serde_json::json!({"mode": "ANY", "allowedFunctionNames": [name]})),
    };
    if let Some(calling) = calling {
        written.tool_config.insert("functionCallingConfig".into(), calling);
    }
    if request.parallel_tools == Some(false) {
        dropped.add("parallel_tool_calls");
    }
}

fn write_generation_config(request: &ChatRequest, model: &str, config: &mut Map<String, Value>, dropped: &mut Dropped) {
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            config.insert(name.to_owned(), value);
        }
    };
    set("maxOutputTokens", request.max_tokens.map(Value::from));
    set("temperature", request.temperature.map(Value::from));
    set("topP", request.top_p.map(Value::from));
    set("topK", request.top_k.map(Value::from));
    set("frequencyPenalty", request.frequency_penalty.map(Value::from));
    set("presencePenalty", request.presence_penalty.map(Value::from));
    set("stopSequences", (!request.stop.is_empty()).then(|| request.stop.clone().into()));
    set("candidateCount", request.choices.filter(|count| *count != 1).map(Value::from));
    match request.seed.map(i32::try_from) {
        Some(Ok(seed)) => set("seed", Some(seed.into())),
        Some(Err(_)) => dropped.add("seed"),
        None => {}
    }
    match &request.output {
        None => {}
        Some(OutputFormat::Json) => set("responseMimeType", Some("application/json".into())),
        Some(OutputFormat::Schema { schema, .. }) => {
            set("responseMimeType", Some("application/json".into()));
            let mut lost = |keyword: &str| dropped.add(format!("response_format.schema.{keyword}"));
            set("responseSchema", Some(schema::to_gemini(schema, &mut lost)));
        }
    }
    if let Some(reasoning) = &request.reasoning {
        let thinking = thinking_config(reasoning, model);
        set("thinkingConfig", (!thinking.is_empty()).then_some(Value::Object(thinking)));
    }
}

/// Budgets are those that Google's own OpenAI endpoint sets for these efforts.
fn thinking_config(reasoning: &Reasoning, model: &str) -> Map<String, Value> {
    let mut thinking = Map::new();
    let pro = model.contains("pro");
    if let Some(budget) = reasoning.budget {
        thinking.insert("thinkingBudget".into(), budget.into());
    } else if let Some(effort) = reasoning.effort {
        if generation(model).is_some_and(|generation| generation >= 3) {
            let level = match effort {
                // The large models always think.
                Effort::None | Effort::Minimal if pro => "LOW",
                Effort::None | Effort::Minimal => "MINIMAL",
                Effort::Low => "LOW",
                Effort::Medium => "MEDIUM",
                Effort::High | Effort::ExtraHigh | Effort::Max => "HIGH",
            };
            thinking.insert("thinkingLevel".into(), level.into());
        } else {
            let budget = match effort {
                Effort::None if pro => 128,
                Effort::None => 0,
                Effort::Minimal | Effort::Low => 1_024,
                Effort::Medium => 8_192,
                Effort::High | Effort::ExtraHigh | Effort::Max => 24_576,
            };
            thinking.insert("thinkingBudget".into(), budget.into());
        }
    }
    if let Some(shown) = reasoning.shown {
        thinking.insert("includeThoughts".into(), shown.into());
    }
    thinking
}

/// What a Gemini caller wrote goes back to where it stood; what others wrote has no place here.
fn write_rest(request: &ChatRequest, written: &mut Written<'_>, dropped: &mut Dropped) {
    for (path, value) in &request.rest {
        let own = request.dialect == Some(Format::Gemini);
        let (parent, name) = path.split_once('.').unwrap_or(("", path));
        match parent {
            _ if !own && ChatRequest::says_nothing(path, value) => {}
            _ if !own => dropped.add(path.clone()),
            "" => {
                written.rest.insert(name.to_owned(), value.clone());
            }
            "generationConfig" => {
                written.generation_config.insert(name.to_owned(), value.clone());
            }
            "toolConfig" => match name.strip_prefix("functionCallingConfig.") {
                Some(name) => {
                    let config = written.tool_config.entry("functionCallingConfig");
                    let config = config.or_insert_with(|| Value::Object(Map::new()));
                    if let Some(config) = config.as_object_mut() {
                        config.insert(name.to_owned(), value.clone());
                    }
                }
                None => {
                    written.tool_config.insert(name.to_owned(), value.clone());
                }
            },
            // A tool that Google runs: `tools[2].googleSearch`.
            tool if tool.starts_with("tools[") && !name.contains('.') => {
                written.tools.push(Value::Object(Map::from_iter([(name.to_owned(), value.clone())])));
            }
            _ => dropped.add(path.clone()),
        }
    }
}
