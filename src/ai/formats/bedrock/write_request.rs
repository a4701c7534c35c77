//! Writes a request for Converse. The model is in the path, and only decides here what it takes beside the common fields.
//!
//! Instructions all go into `system`, messages of one role in a row become one, results of tools first in it. Converse wants
//! `tools` wherever messages speak of them; where the caller leaves them out, those that were called stand in without a schema.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Maker;
use crate::ai::chat::{
    CacheMark, ChatRequest, Dropped, Effort, Failure, FailureKind, OutputFormat, Part, Role, Source, ToolChoice,
    ToolResult,
};
use crate::ai::formats::Format;
use crate::ai::formats::anthropic::thinking::{self, Plan, Thinking};
use crate::ai::formats::anthropic::write_request::{Sampling, note_unknown, path_of, schema, stop_sequences};
use crate::ai::formats::arguments::Arguments;
use crate::ai::quirks::{Quirk, Quirks};
use crate::ai::tool_ids;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    messages: Vec<Message<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<Block<'a>>,
    #[serde(skip_serializing_if = "InferenceConfig::is_empty")]
    inference_config: InferenceConfig<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_config: Option<ToolConfig<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig<'a>>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    additional_model_request_fields: Map<String, Value>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Vec<Block<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Block<'a> {
    Text(&'a str),
    Image(Media<'a>),
    Document(Document<'a>),
    Audio(Media<'a>),
    Video(Media<'a>),
    ToolUse(ToolUse<'a>),
    ToolResult(ToolResultBlock<'a>),
    ReasoningContent(ReasoningContent<'a>),
    CachePoint(CachePoint),
}

#[derive(Serialize)]
struct Media<'a> {
    format: &'a str,
    source: MediaSource<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum MediaSource<'a> {
    Bytes(&'a str),
    S3Location { uri: &'a str },
}

#[derive(Serialize)]
struct Document<'a> {
    format: &'static str,
    name: String,
    source: MediaSource<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ToolUse<'a> {
    tool_use_id: Cow<'a, str>,
    name: &'a str,
    input: Arguments<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ToolResultBlock<'a> {
    tool_use_id: Cow<'a, str>,
    content: Vec<Block<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum ReasoningContent<'a> {
    ReasoningText { text: &'a str, signature: &'a str },
    RedactedContent(&'a str),
}

#[derive(Serialize)]
struct CachePoint {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InferenceConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop_sequences: Vec<&'a str>,
}

impl InferenceConfig<'_> {
    fn is_empty(&self) -> bool {
        let numbers = self.max_tokens.is_some() || self.temperature.is_some() || self.top_p.is_some();
        !numbers && self.stop_sequences.is_empty()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ToolConfig<'a> {
    tools: Vec<Tool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Choice<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Tool<'a> {
    ToolSpec(ToolSpec<'a>),
    CachePoint(CachePoint),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ToolSpec<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    input_schema: InputSchema<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

#[derive(Serialize)]
struct InputSchema<'a> {
    json: Cow<'a, Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Choice<'a> {
    Auto {},
    Any {},
    Tool { name: &'a str },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutputConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text_format: Option<TextFormat<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    effort: Option<&'static str>,
}

#[derive(Serialize)]
struct TextFormat<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    structure: Structure<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Structure<'a> {
    json_schema: JsonSchema<'a>,
}

#[derive(Serialize)]
struct JsonSchema<'a> {
    /// As text.
    schema: String,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
}

pub(super) fn write(
    request: &ChatRequest,
    model: &str,
    quirks: Quirks,
    dropped: &mut Dropped,
) -> Result<Vec<u8>, Failure> {
    let maker = Maker::of(model);
    let (system, messages) = conversation(request, maker, dropped);
    if messages.is_empty() {
        return Err(Failure::invalid(
            "messages",
            "Bedrock needs a message beside the instructions of the application.",
        ));
    }
    let mut additional = Map::new();
    let plan = reasoning(request, maker, quirks, &mut additional, dropped);
    let sampling = Sampling::of(request, &plan, quirks, dropped);
    top_k(sampling.top_k, maker, &mut additional, dropped);
    rest(request, maker, &mut additional, dropped);
    note_unknown(request, dropped);
    if request.user.is_some() {
        dropped.add("user");
    }
    let output_config = OutputConfig { text_format: text_format(request, quirks, dropped), effort: plan.effort };
    let body = Body {
        messages,
        system,
        inference_config: InferenceConfig {
            max_tokens: plan.max_tokens,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            stop_sequences: match maker {
                Maker::Anthropic => stop_sequences(&request.stop, dropped),
                _ => request.stop.iter().map(String::as_str).filter(|text| !text.is_empty()).collect(),
            },
        },
        tool_config: tool_config(request, maker, dropped),
        output_config: (output_config.text_format.is_some() || output_config.effort.is_some()).then_some(output_config),
        additional_model_request_fields: additional,
    };
    serde_json::to_vec(&body)
        .map_err(|error| Failure::new(FailureKind::Server, format!("The request cannot be written: {error}")))
}

/// No caller speaks Converse, so that all of it is noted; Claude itself knows the betas of Anthropic's callers.
fn rest(request: &ChatRequest, maker: Maker, additional: &mut Map<String, Value>, dropped: &mut Dropped) {
    for (path, value) in &request.rest {
        let betas = path == "anthropic_beta" && request.dialect == Some(Format::Anthropic);
        match betas && maker == Maker::Anthropic {
            true => drop(additional.insert(path.clone(), value.clone())),
            false => dropped.add(path.clone()),
        }
    }
}

fn conversation<'a>(
    request: &'a ChatRequest,
    maker: Maker,
    dropped: &mut Dropped,
) -> (Vec<Block<'a>>, Vec<Message<'a>>) {
    let mut writer = Writer { maker, dropped, documents: BTreeSet::new() };
    let mut system = Vec::new();
    let mut messages: Vec<Message<'a>> = Vec::with_capacity(request.messages.len());
    for (index, message) in request.messages.iter().enumerate() {
        let role = match message.role {
            Role::System => {
                writer.system(&message.parts, index, &mut system);
                continue;
            }
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        let mut blocks = Vec::with_capacity(message.parts.len());
        // All results have to be before what the user says to them.
        let (results, others): (Vec<&Part>, Vec<&Part>) =
            message.parts.iter().partition(|part| matches!(part, Part::ToolResult(_)));
        for part in results.into_iter().chain(others) {
            writer.part(part, message.role, index, &mut blocks);
        }
        match messages.last_mut() {
            _ if blocks.is_empty() => {}
            Some(last) if last.role == role => last.content.append(&mut blocks),
            _ => messages.push(Message { role, content: blocks }),
        }
    }
    (system, messages)
}

struct Writer<'d> {
    maker: Maker,
    dropped: &'d mut Dropped,
    /// Names that are given; each may be only once.
    documents: BTreeSet<String>,
}

impl Writer<'_> {
    fn system<'a>(&mut self, parts: &'a [Part], message: usize, into: &mut Vec<Block<'a>>) {
        for part in parts {
            match part {
                Part::Text { .. } => self.part(part, Role::System, message, into),
                _ => self.note(part, message),
            }
        }
    }

    /// Appends the block of a part, and the cache's mark after it.
    fn part<'a>(&mut self, part: &'a Part, role: Role, message: usize, into: &mut Vec<Block<'a>>) {
        let assistant = role == Role::Assistant;
        let (block, cache) = match part {
            Part::Text { text, .. } if text.is_empty() => return,
            Part::Text { text, cache } => (Some(Block::Text(text)), *cache),
            Part::Refusal { text } if text.is_empty() => return,
            Part::Refusal { text } => (Some(Block::Text(text)), None),
            Part::Image { source, cache, .. } => (media(source, image_format).map(Block::Image), *cache),
            Part::Audio { source } => (media(source, audio_format).map(Block::Audio), None),
            Part::Video { source } => (media(source, video_format).map(Block::Video), None),
            Part::Document { source, name, cache } => (self.document(source, name.as_deref()), *cache),
            Part::ToolCall(call) if assistant => {
                let input = Arguments(&call.arguments);
                (Some(Block::ToolUse(ToolUse { tool_use_id: tool_id(&call.id), name: &call.name, input })), call.cache)
            }
            Part::ToolResult(result) if !assistant => (Some(self.tool_result(result, message)), result.cache),
            Part::Reasoning(thought) if assistant => {
                let content = match (&thought.encrypted, &thought.signature) {
                    (Some(data), _) if !data.contains(':') => Some(ReasoningContent::RedactedContent(data)),
                    (None, Some(signature)) if !signature.is_empty() => {
                        Some(ReasoningContent::ReasoningText { text: &thought.text, signature })
                    }
                    _ => None,
                };
                (content.map(Block::ReasoningContent), None)
            }
            _ => (None, None),
        };
        match block {
            Some(block) => into.push(block),
            None => return self.note(part, message),
        }
        if let Some(mark) = cache {
            match self.maker.caches() {
                true => into.push(Block::CachePoint(cache_point(mark))),
                false => self.dropped.add("cache_control"),
            }
        }
    }

    fn tool_result<'a>(&mut self, result: &'a ToolResult, message: usize) -> Block<'a> {
        let mut content = Vec::with_capacity(result.content.len());
        for part in &result.content {
            match part {
                Part::Text { .. } | Part::Image { .. } | Part::Document { .. } | Part::Video { .. } => {
                    self.part(part, Role::User, message, &mut content);
                }
                _ => self.note(part, message),
            }
        }
        // A result holds no marks of its own; that of the last of its parts is after it, as good as there.
        content.retain(|block| !matches!(block, Block::CachePoint(_)));
        if content.is_empty() {
            content.push(Block::Text(" "));
        }
        Block::ToolResult(ToolResultBlock {
            tool_use_id: tool_id(&result.id),
            content,
            status: result.is_error.then_some("error"),
        })
    }

    fn document<'a>(&mut self, source: &'a Source, name: Option<&str>) -> Option<Block<'a>> {
        let (format, source) = match source {
            Source::Data { media_type, base64 } => (document_format(media_type)?, MediaSource::Bytes(base64)),
            Source::Url(uri) if uri.starts_with("s3://") => {
                let extension = uri.rsplit('.').next().unwrap_or_default();
                let known = DOCUMENT_FORMATS.iter().find(|(_, format)| *format == extension);
                (known.map_or("pdf", |(_, format)| format), MediaSource::S3Location { uri })
            }
            Source::Url(_) | Source::File { .. } => return None,
        };
        let wanted = document_name(name.unwrap_or("document"));
        let mut name = wanted.clone();
        let mut count = 1;
        while !self.documents.insert(name.clone()) {
            count += 1;
            name = format!("{wanted} {count}");
        }
        Some(Block::Document(Document { format, name, source }))
    }

    fn note(&mut self, part: &Part, message: usize) {
        self.dropped.add(path_of(message, part));
    }
}

fn cache_point(mark: CacheMark) -> CachePoint {
    CachePoint { kind: "default", ttl: mark.long.then_some("1h") }
}

/// Bytes, or a place in S3; Bedrock fetches nothing else.
fn media<'a>(source: &'a Source, format: fn(&'a str) -> Option<&'a str>) -> Option<Media<'a>> {
    match source {
        Source::Data { media_type, base64 } => {
            Some(Media { format: format(media_type)?, source: MediaSource::Bytes(base64) })
        }
        Source::Url(uri) if uri.starts_with("s3://") => {
            let format = uri.rsplit('.').next().filter(|extension| !extension.contains('/'))?;
            let format = if format == "jpg" { "jpeg" } else { format };
            Some(Media { format, source: MediaSource::S3Location { uri } })
        }
        Source::Url(_) | Source::File { .. } => None,
    }
}

fn image_format(media_type: &str) -> Option<&str> {
    match media_type.strip_prefix("image/")? {
        "jpg" => Some("jpeg"),
        format @ ("png" | "jpeg" | "gif" | "webp") => Some(format),
        _ => None,
    }
}

fn audio_format(media_type: &str) -> Option<&str> {
    match media_type.strip_prefix("audio/")? {
        "x-wav" | "wave" | "vnd.wave" => Some("wav"),
        "mpeg" => Some("mp3"),
        "x-m4a" => Some("m4a"),
        "x-flac" => Some("flac"),
        format => Some(format),
    }
}

fn video_format(media_type: &str) -> Option<&str> {
    match media_type.strip_prefix("video/")? {
        "quicktime" => Some("mov"),
        "x-matroska" => Some("mkv"),
        "x-flv" => Some("flv"),
        "x-ms-wmv" => Some("wmv"),
        "3gpp" => Some("three_gp"),
        format => Some(format),
    }
}

const DOCUMENT_FORMATS: [(&str, &str); 9] = [
    ("application/pdf", "pdf"),
    ("text/csv", "csv"),
    ("application/msword", "doc"),
    ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", "docx"),
    ("application/vnd.ms-excel", "xls"),
    ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "xlsx"),
    ("text/html", "html"),
    ("text/markdown", "md"),
    ("text/plain", "txt"),
];

fn document_format(media_type: &str) -> Option<&'static str> {
    let known = DOCUMENT_FORMATS.iter().find(|(known, _)| *known == media_type).map(|(_, format)| *format);
    known.or(media_type.starts_with("text/").then_some("txt"))
}

/// A name of the characters that Bedrock takes: letters, digits, single spaces, hyphens, parentheses, brackets.
fn document_name(name: &str) -> String {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let mut out = String::with_capacity(stem.len());
    for letter in stem.chars().take(200) {
        match letter {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '(' | ')' | '[' | ']' => out.push(letter),
            _ if out.is_empty() || out.ends_with(' ') => {}
            _ => out.push(' '),
        }
    }
    out.truncate(out.trim_end().len());
    if out.is_empty() { "document".to_owned() } else { out }
}

/// An id of at most 64 letters, digits and `_.:-`. Longer ones are told apart by a hash of their whole.
fn tool_id(id: &str) -> Cow<'_, str> {
    const LONGEST: usize = 64;
    let id = tool_ids::bare(id);
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.' | ':' | '-');
    if id.len() <= LONGEST && id.chars().all(allowed) {
        return Cow::Borrowed(id);
    }
    let mut short: String =
        id.chars().take(LONGEST - 17).map(|letter| if allowed(letter) { letter } else { '_' }).collect();
    if id.len() > LONGEST {
        let mut hasher = std::hash::DefaultHasher::new();
        id.hash(&mut hasher);
        short.push_str(&format!("_{:016x}", hasher.finish()));
    }
    Cow::Owned(short)
}

fn tool_config<'a>(request: &'a ChatRequest, maker: Maker, dropped: &mut Dropped) -> Option<ToolConfig<'a>> {
    let called = called_tools(request);
    // There is no way to forbid tools but to leave them out, which only works as long as no message speaks of them.
    if request.tool_choice == Some(ToolChoice::None) && called.is_empty() {
        return None;
    }
    let mut tools = Vec::with_capacity(request.tools.len());
    for tool in &request.tools {
        tools.push(Tool::ToolSpec(ToolSpec {
            name: &tool.name,
            description: tool.description.as_deref().filter(|text| !text.is_empty()),
            input_schema: InputSchema { json: schema(tool.parameters.as_ref()) },
            strict: tool.strict,
        }));
        match tool.cache {
            Some(mark) if maker == Maker::Anthropic => tools.push(Tool::CachePoint(cache_point(mark))),
            Some(_) => dropped.add("cache_control"),
            None => {}
        }
    }
    if tools.is_empty() {
        let named = called.into_iter().map(|name| {
            let input_schema = InputSchema { json: schema(None) };
            Tool::ToolSpec(ToolSpec { name, description: None, input_schema, strict: None })
        });
        tools.extend(named);
    }
    if tools.is_empty() {
        return None;
    }
    let tool_choice = match &request.tool_choice {
        None => None,
        Some(ToolChoice::None) => {
            dropped.add("tool_choice");
            None
        }
        Some(ToolChoice::Auto) => Some(Choice::Auto {}),
        Some(ToolChoice::Any) => Some(Choice::Any {}),
        Some(ToolChoice::Tool(name)) => Some(Choice::Tool { name }),
    };
    if request.parallel_tools == Some(false) {
        dropped.add("parallel_tool_calls");
    }
    Some(ToolConfig { tools, tool_choice })
}

/// Names of the tools that the messages speak of.
fn called_tools(request: &ChatRequest) -> BTreeSet<&str> {
    let parts = request.messages.iter().flat_map(|message| &message.parts);
    let names = parts.filter_map(|part| match part {
        Part::ToolCall(call) => Some(call.name.as_str()),
        _ => None,
    });
    names.collect()
}

fn text_format<'a>(request: &'a ChatRequest, quirks: Quirks, dropped: &mut Dropped) -> Option<TextFormat<'a>> {
    match request.output.as_ref()? {
        OutputFormat::Schema { name, description, schema, .. } if !quirks.has(Quirk::NoJsonSchema) => {
            let description = description.as_deref();
            let json_schema = JsonSchema { schema: schema.to_string(), name, description };
            Some(TextFormat { kind: "json_schema", structure: Structure { json_schema } })
        }
        _ => {
            dropped.add("response_format");
            None
        }
    }
}

/// How much the model shall think, in the words of its maker.
fn reasoning(
    request: &ChatRequest,
    maker: Maker,
    quirks: Quirks,
    additional: &mut Map<String, Value>,
    dropped: &mut Dropped,
) -> Plan {
    let unplanned = Plan { max_tokens: request.max_tokens, ..Plan::default() };
    let Some(reasoning) = &request.reasoning else { return unplanned };
    let effort = reasoning.effort.or(reasoning.budget.map(thinking::effort_of));
    match (maker, effort) {
        (Maker::Anthropic, _) => {
            let plan = thinking::plan(request, quirks.has(Quirk::AdaptiveThinking), dropped);
            let written = plan.thinking.and_then(|thinking| serde_json::to_value(thinking).ok());
            // Off is what they are unless told otherwise, and older models do not know the field.
            if let Some(thinking) = written.filter(|_| plan.thinking != Some(Thinking::Disabled)) {
                additional.insert("thinking".to_owned(), thinking);
            }
            return plan;
        }
        (Maker::OpenAi, Some(effort)) => {
            // The open models know three, and always think.
            let effort = match thinking::name(effort) {
                "xhigh" | "max" => "high",
                effort => effort,
            };
            additional.insert("reasoning_effort".to_owned(), Value::from(effort));
        }
        // They do not think unless told to.
        (Maker::Nova | Maker::NovaTwo | Maker::Mistral | Maker::Other, Some(Effort::None)) => {}
        (Maker::NovaTwo, Some(effort)) => {
            let effort = match thinking::name(effort) {
                "xhigh" | "max" => "high",
                effort => effort,
            };
            additional.insert("reasoningConfig".to_owned(), json!({ "type": "enabled", "maxReasoningEffort": effort }));
        }
        _ => dropped.add("reasoning"),
    }
    unplanned
}

fn top_k(top_k: Option<u64>, maker: Maker, additional: &mut Map<String, Value>, dropped: &mut Dropped) {
    let Some(top_k) = top_k else { return };
    match maker {
        Maker::Anthropic | Maker::Mistral => {
            additional.insert("top_k".to_owned(), Value::from(top_k));
        }
        Maker::Nova | Maker::NovaTwo => {
            additional.insert("inferenceConfig".to_owned(), json!({ "topK": top_k }));
        }
        Maker::OpenAi | Maker::Other => dropped.add("top_k"),
    }
}
