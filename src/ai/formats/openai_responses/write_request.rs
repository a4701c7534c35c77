//! Requests to providers that speak Responses.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::SIGNATURE;
use super::wire::{OutContent, encrypted_content};
use crate::ai::chat::{
    ChatRequest, Dropped, Effort, Failure, FailureKind, Message, OutputFormat, Part, Reasoning, Role, Source, Thought,
    Tool, ToolChoice, ToolResult,
};
use crate::ai::formats::Format;
use crate::ai::quirks::{Quirk, Quirks};
use crate::ai::tool_ids;

#[derive(Serialize, Default)]
struct Body<'r> {
    model: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<Cow<'r, str>>,
    input: Vec<Item<'r>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<WrittenTool<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    text: Map<String, Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    reasoning: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallel_tool_calls: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'r str>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum WrittenTool<'r> {
    Function {
        #[serde(rename = "type")]
        kind: &'static str,
        name: &'r str,
        #[serde(skip_serializing_if = "Option::is_none")]
        description: Option<&'r str>,
        parameters: Cow<'r, Value>,
        /// Responses hold a schema strictly where they are told nothing, other dialects do not.
        strict: bool,
    },
    BuiltIn(&'r Value),
}

#[derive(Serialize)]
#[serde(untagged)]
enum Item<'r> {
    Known(KnownItem<'r>),
    /// Of the caller's, who speaks Responses too.
    Kept(&'r Value),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum KnownItem<'r> {
    Message { role: &'static str, content: Contents<'r> },
    FunctionCall { call_id: &'r str, name: &'r str, arguments: &'r str },
    FunctionCallOutput { call_id: &'r str, output: Contents<'r> },
    Reasoning { summary: Vec<OutContent<'r>>, encrypted_content: String },
}

#[derive(Serialize)]
#[serde(untagged)]
enum Contents<'r> {
    Text(&'r str),
    In(Vec<InContent<'r>>),
    Out(Vec<OutContent<'r>>),
}

#[derive(Serialize)]
#[serde(tag = "type")]
enum InContent<'r> {
    #[serde(rename = "input_text")]
    Text { text: &'r str },
    #[serde(rename = "input_image")]
    Image {
        #[serde(skip_serializing_if = "Option::is_none")]
        image_url: Option<Cow<'r, str>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        file_id: Option<&'r str>,
        detail: &'r str,
    },
    #[serde(rename = "input_file")]
    File {
        #[serde(skip_serializing_if = "Option::is_none")]
        filename: Option<&'r str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        file_data: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        file_url: Option<&'r str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        file_id: Option<&'r str>,
    },
    #[serde(rename = "input_audio")]
    Audio { input_audio: Audio<'r> },
}

#[derive(Serialize)]
struct Audio<'r> {
    data: &'r str,
    format: &'r str,
}

pub fn encode(request: &ChatRequest, model: &str, quirks: Quirks, dropped: &mut Dropped) -> Result<Vec<u8>, Failure> {
    let mut body = Body {
        model,
        max_output_tokens: request.max_tokens,
        temperature: request.temperature,
        top_p: request.top_p,
        stream: request.stream,
        user: request.user.as_deref(),
        ..Body::default()
    };
    match request.parallel_tools {
        Some(_) if quirks.has(Quirk::NoParallelToolCalls) => dropped.add("parallel_tool_calls"),
        parallel => body.parallel_tool_calls = parallel,
    }
    let mut writer =
        Writer { developer: if quirks.has(Quirk::NoDeveloperRole) { "system" } else { "developer" }, dropped };
    writer.write_messages(&request.messages, &mut body);
    write_tools(request, quirks, &mut body, dropped);
    write_output(request.output.as_ref(), quirks, &mut body, dropped);
    write_reasoning(request.reasoning.as_ref(), quirks, &mut body, dropped);
    write_rest(request, &mut body, dropped);
    let unknown = [
        ("top_k", request.top_k.is_some()),
        ("frequency_penalty", request.frequency_penalty.is_some()),
        ("presence_penalty", request.presence_penalty.is_some()),
        ("seed", request.seed.is_some()),
        ("stop", !request.stop.is_empty()),
        ("n", request.choices.is_some_and(|count| count > 1)),
    ];
    unknown.into_iter().filter(|(_, asked)| *asked).for_each(|(name, _)| dropped.add(name));
    serde_json::to_vec(&body)
        .map_err(|error| Failure::new(FailureKind::InvalidRequest, format!("The request cannot be written: {error}")))
}

struct Writer<'d> {
    /// The role of instructions that stand within the conversation.
    developer: &'static str,
    dropped: &'d mut Dropped,
}

impl Writer<'_> {
    fn write_messages<'r>(&mut self, messages: &'r [Message], body: &mut Body<'r>) {
        for (index, message) in messages.iter().enumerate() {
            match message.role {
                Role::System => match text_of(&message.parts) {
                    // What stands first is the request's own field.
                    Some(text) if index == 0 => {
                        self.note_marks(&message.parts);
                        body.instructions = Some(text);
                    }
                    _ => self.write_said(index, self.developer, message, &mut body.input),
                },
                Role::User => self.write_said(index, "user", message, &mut body.input),
                Role::Assistant => self.write_answered(index, message, &mut body.input),
            }
        }
    }

    fn note_marks(&mut self, parts: &[Part]) {
        if parts.iter().any(|part| matches!(part, Part::Text { cache: Some(_), .. })) {
            self.dropped.add("cache_control");
        }
    }

    /// Results of tools are items of their own, before what is said with them.
    fn write_said<'r>(&mut self, index: usize, role: &'static str, message: &'r Message, input: &mut Vec<Item<'r>>) {
        for part in &message.parts {
            if let Part::ToolResult(result) = part {
                self.write_result(index, result, input);
            }
        }
        let mut contents = Vec::new();
        for (at, part) in message.parts.iter().enumerate() {
            if !matches!(part, Part::ToolResult(_)) {
                self.write_content(index, at, part, &mut contents);
            }
        }
        if !contents.is_empty() {
            input.push(Item::Known(KnownItem::Message { role, content: plain(contents) }));
        }
    }

    fn write_result<'r>(&mut self, index: usize, result: &'r ToolResult, input: &mut Vec<Item<'r>>) {
        if result.is_error {
            self.dropped.add(format!("messages[{index}].is_error"));
        }
        if result.cache.is_some() {
            self.dropped.add("cache_control");
        }
        let mut contents = Vec::with_capacity(result.content.len());
        for (at, part) in result.content.iter().enumerate() {
            self.write_content(index, at, part, &mut contents);
        }
        let output = if contents.is_empty() { Contents::Text("") } else { plain(contents) };
        let call_id = tool_ids::bare(&result.id);
        input.push(Item::Known(KnownItem::FunctionCallOutput { call_id, output }));
    }

    fn write_content<'r>(&mut self, index: usize, at: usize, part: &'r Part, contents: &mut Vec<InContent<'r>>) {
        let cache = match part {
            Part::Text { cache, .. } | Part::Image { cache, .. } | Part::Document { cache, .. } => cache.is_some(),
            _ => false,
        };
        if cache {
            self.dropped.add("cache_control");
        }
        let written = match part {
            Part::Text { text, .. } | Part::Refusal { text } => Some(InContent::Text { text }),
            Part::Image { source, detail, .. } => {
                let detail = detail.as_deref().unwrap_or("auto");
                Some(match source {
                    Source::Url(url) => InContent::Image { image_url: Some(url.into()), file_id: None, detail },
                    Source::Data { media_type, base64 } => {
                        let url = data_url(media_type, base64);
                        InContent::Image { image_url: Some(url.into()), file_id: None, detail }
                    }
                    Source::File { id } => InContent::Image { image_url: None, file_id: Some(id), detail },
                })
            }
            Part::Document { source, name, .. } => {
                let file =
                    |filename, file_data, file_url, file_id| InContent::File { filename, file_data, file_url, file_id };
                let name = name.as_deref();
                Some(match source {
                    Source::Url(url) => file(None, None, Some(url.as_str()), None),
                    Source::Data { media_type, base64 } => {
                        // Data without a name is refused.
                        let name = name.unwrap_or(if media_type == "application/pdf" {
                            "document.pdf"
                        } else {
                            "document.txt"
                        });
                        file(Some(name), Some(data_url(media_type, base64)), None, None)
                    }
                    Source::File { id } => file(None, None, None, Some(id.as_str())),
                })
            }
            Part::Audio { source: Source::Data { media_type, base64 } } => {
                let format = media_type.strip_prefix("audio/").unwrap_or(media_type);
                let format = match format {
                    "mpeg" => "mp3",
                    "x-wav" | "wave" => "wav",
                    format => format,
                };
                Some(InContent::Audio { input_audio: Audio { data: base64, format } })
            }
            _ => None,
        };
        match written {
            Some(content) => contents.push(content),
            None => self.dropped.add(format!("messages[{index}].content[{at}]")),
        }
    }

    fn write_answered<'r>(&mut self, index: usize, message: &'r Message, input: &mut Vec<Item<'r>>) {
        let mut contents = Vec::new();
        let flush = |contents: &mut Vec<OutContent<'r>>, input: &mut Vec<Item<'r>>| {
            if !contents.is_empty() {
                let content = Contents::Out(std::mem::take(contents));
                input.push(Item::Known(KnownItem::Message { role: "assistant", content }));
            }
        };
        let mut parts = message.parts.iter().enumerate().peekable();
        while let Some((at, part)) = parts.next() {
            match part {
                Part::Text { text, cache } => {
                    if cache.is_some() {
                        self.dropped.add("cache_control");
                    }
                    contents.push(OutContent::text(text));
                }
                Part::Refusal { text } => contents.push(OutContent::Refusal { refusal: text }),
                Part::ToolCall(call) => {
                    flush(&mut contents, input);
                    if call.cache.is_some() {
                        self.dropped.add("cache_control");
                    }
                    let arguments = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
                    let call_id = tool_ids::bare(&call.id);
                    input.push(Item::Known(KnownItem::FunctionCall { call_id, name: &call.name, arguments }));
                }
                Part::Reasoning(thought) => {
                    flush(&mut contents, input);
                    // Other dialects hold what is shown of a thought, and what is not, apart.
                    let secret = match parts.peek() {
                        Some((_, Part::Reasoning(next)))
                            if next.text.is_empty() && next.encrypted.is_some() && thought.encrypted.is_none() =>
                        {
                            let encrypted = next.encrypted.as_deref();
                            parts.next();
                            encrypted
                        }
                        _ => thought.encrypted.as_deref(),
                    };
                    self.write_thought(index, at, thought, secret, input);
                }
                _ => self.dropped.add(format!("messages[{index}].content[{at}]")),
            }
        }
        flush(&mut contents, input);
    }

    /// Without what only this provider can read, a thought is refused.
    fn write_thought<'r>(
        &mut self,
        index: usize,
        at: usize,
        thought: &'r Thought,
        encrypted: Option<&'r str>,
        input: &mut Vec<Item<'r>>,
    ) {
        let foreign = |encrypted: &str| encrypted.starts_with("gemini:") || encrypted.starts_with(SIGNATURE);
        match encrypted_content(None, encrypted).filter(|encrypted| !foreign(encrypted)) {
            Some(encrypted_content) => {
                let summary = match thought.text.as_str() {
                    "" => Vec::new(),
                    text => vec![OutContent::SummaryText { text }],
                };
                input.push(Item::Known(KnownItem::Reasoning { summary, encrypted_content }));
            }
            None => self.dropped.add(format!("messages[{index}].content[{at}]")),
        }
    }
}

/// A single text as a string, which the simplest imitations want.
fn plain(contents: Vec<InContent<'_>>) -> Contents<'_> {
    match contents[..] {
        [InContent::Text { text }] => Contents::Text(text),
        _ => Contents::In(contents),
    }
}

fn text_of(parts: &[Part]) -> Option<Cow<'_, str>> {
    match parts {
        [Part::Text { text, .. }] => Some(text.into()),
        _ => {
            let texts: Option<Vec<&str>> = parts
                .iter()
                .map(|part| match part {
                    Part::Text { text, .. } => Some(text.as_str()),
                    _ => None,
                })
                .collect();
            texts.map(|texts| texts.join("\n\n").into())
        }
    }
}

fn data_url(media_type: &str, base64: &str) -> String {
    ["data:", media_type, ";base64,", base64].concat()
}

fn write_tools<'r>(request: &'r ChatRequest, quirks: Quirks, body: &mut Body<'r>, dropped: &mut Dropped) {
    for Tool { name, description, parameters, strict, cache } in &request.tools {
        if cache.is_some() {
            dropped.add("cache_control");
        }
        body.tools.push(WrittenTool::Function {
            kind: "function",
            name,
            description: description.as_deref(),
            parameters: match parameters {
                Some(parameters) => Cow::Borrowed(parameters),
                None => Cow::Owned(json!({"type": "object", "properties": {}})),
            },
            strict: strict.unwrap_or(request.dialect == Some(Format::OpenAiResponses)),
        });
    }
    body.tool_choice = match &request.tool_choice {
        None => None,
        Some(ToolChoice::Auto) => Some("auto".into()),
        Some(ToolChoice::None) => Some("none".into()),
        Some(ToolChoice::Any) if quirks.has(Quirk::NoRequiredTool) => {
            dropped.add("tool_choice");
            None
        }
        Some(ToolChoice::Any) => Some("required".into()),
        Some(ToolChoice::Tool(name)) => Some(json!({"type": "function", "name": name})),
    };
}

fn write_output(output: Option<&OutputFormat>, quirks: Quirks, body: &mut Body<'_>, dropped: &mut Dropped) {
    let format = match output {
        None => return,
        Some(OutputFormat::Json) => json!({"type": "json_object"}),
        Some(OutputFormat::Schema { .. }) if quirks.has(Quirk::NoJsonSchema) => {
            dropped.add("response_format.schema");
            json!({"type": "json_object"})
        }
        Some(OutputFormat::Schema { name, description, schema, strict }) => {
            let mut format = json!({"type": "json_schema", "name": name, "schema": schema});
            if let Some(description) = description {
                format["description"] = description.as_str().into();
            }
            if let Some(strict) = strict {
                format["strict"] = (*strict).into();
            }
            format
        }
    };
    body.text.insert("format".into(), format);
}

fn write_reasoning(reasoning: Option<&Reasoning>, quirks: Quirks, body: &mut Body<'_>, dropped: &mut Dropped) {
    let Some(reasoning) = reasoning else { return };
    let effort = match (reasoning.effort, reasoning.budget) {
        (Some(effort), _) => Some(effort),
        // The steps at which the vendors who know budgets put these words.
        (None, Some(..2_048)) => Some(Effort::Low),
        (None, Some(..16_384)) => Some(Effort::Medium),
        (None, Some(_)) => Some(Effort::High),
        (None, None) => None,
    };
    match effort {
        Some(_) if quirks.has(Quirk::NoReasoningEffort) => dropped.add("reasoning_effort"),
        Some(effort) => {
            body.reasoning.insert("effort".into(), word(effort).into());
        }
        None => {}
    }
    if reasoning.shown == Some(true) {
        body.reasoning.insert("summary".into(), "auto".into());
    }
}

pub fn word(effort: Effort) -> &'static str {
    match effort {
        Effort::None => "none",
        Effort::Minimal => "minimal",
        Effort::Low => "low",
        Effort::Medium => "medium",
        Effort::High => "high",
        Effort::ExtraHigh => "xhigh",
        Effort::Max => "max",
    }
}

/// Fields of chat completions that are the same in Responses.
const SHARED: &[&str] = &[
    "metadata",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "store",
    "top_logprobs",
];

/// What a caller of Responses wrote goes back to where it stood.
fn write_rest<'r>(request: &'r ChatRequest, body: &mut Body<'r>, dropped: &mut Dropped) {
    let own = request.dialect == Some(Format::OpenAiResponses);
    let chat = request.dialect == Some(Format::OpenAiChat);
    for (path, value) in &request.rest {
        let (parent, name) = path.split_once('.').unwrap_or(("", path));
        let index = |list: &str| path.strip_prefix(list)?.strip_prefix('[')?.strip_suffix(']')?.parse::<usize>().ok();
        if !own {
            match path.as_str() {
                name if chat && SHARED.contains(&name) => {
                    body.rest.insert(path.clone(), value.clone());
                }
                "verbosity" if chat => {
                    body.text.insert("verbosity".into(), value.clone());
                }
                _ if ChatRequest::says_nothing(path, value) => {}
                _ => dropped.add(path.clone()),
            }
        } else if let Some(index) = index("input") {
            let place = index.min(body.input.len());
            body.input.insert(place, Item::Kept(value));
        } else if index("tools").is_some() {
            body.tools.push(WrittenTool::BuiltIn(value));
        } else {
            match parent {
                "" if name == "tool_choice" => body.tool_choice = Some(value.clone()),
                "" => {
                    body.rest.insert(name.to_owned(), value.clone());
                }
                "text" => {
                    body.text.insert(name.to_owned(), value.clone());
                }
                "reasoning" => {
                    body.reasoning.insert(name.to_owned(), value.clone());
                }
                _ => dropped.add(path.clone()),
            }
        }
    }
    if !own {
        body.rest.entry("store").or_insert(Value::Bool(false));
        // Nothing is stored, so thoughts have to come along to be replayed. Models that do not think refuse to be asked.
        if request.reasoning.as_ref().is_some_and(|reasoning| reasoning.effort != Some(Effort::None)) {
            body.rest.insert("include".into(), json!(["reasoning.encrypted_content"]));
        }
    }
}
