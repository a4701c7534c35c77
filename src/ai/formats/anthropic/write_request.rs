//! Writes a request for a provider that speaks Anthropic's format.
//!
//! Instructions of the application all go into `system`, also those that stand between messages, since not every model takes
//! them there. Messages of one role in a row become one, results of tools first in it.

use std::borrow::Cow;
use std::iter::Peekable;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::{Map, Value};

use super::block::{Block, CacheControl, Content, Source, tool_id};
use super::hosted::Host;
use super::thinking::{self, Plan, Thinking};
use crate::ai::chat::{self, ChatRequest, Dropped, Failure, OutputFormat, Part, Role, ToolChoice, ToolResult};
use crate::ai::formats::Format;
use crate::ai::formats::arguments::Arguments;
use crate::ai::quirks::{Quirk, Quirks};

/// Tokens of an answer where the caller sets no limit: Anthropic wants one. All models that are sold allow it.
pub const ANSWER_TOKENS: u64 = 8000;

#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    anthropic_version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    max_tokens: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
    #[serde(skip_serializing_if = "Content::is_empty")]
    system: Content<'a>,
    messages: Vec<Message<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Choice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<Thinking>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop_sequences: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata<'a>>,
    #[serde(flatten)]
    rest: Members<'a>,
}

/// Members in their order.
struct Members<'a>(Vec<(&'a str, &'a Value)>);

impl Serialize for Members<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().copied())
    }
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Content<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Tool<'a> {
    Custom {
        name: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        description: Option<&'a str>,
        input_schema: Cow<'a, Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        strict: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<CacheControl>,
    },
    Carried(&'a Value),
}

#[derive(Serialize)]
struct Choice<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    disable_parallel_tool_use: bool,
}

#[derive(Serialize, Default)]
struct OutputConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    effort: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<SchemaFormat<'a>>,
}

#[derive(Serialize)]
struct SchemaFormat<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    schema: &'a Value,
}

#[derive(Serialize)]
struct Metadata<'a> {
    user_id: &'a str,
}

pub(super) fn write(
    request: &ChatRequest,
    model: &str,
    quirks: Quirks,
    dropped: &mut Dropped,
) -> Result<Vec<u8>, Failure> {
    let host = Host::of(quirks);
    let plan = thinking::plan(request, quirks.has(Quirk::AdaptiveThinking), dropped);
    let mut carried = Carried::of(request, host, dropped);
    let (system, messages) = conversation(request, &mut carried, dropped);
    if messages.is_empty() {
        return Err(Failure::invalid(
            "messages",
            "Anthropic needs a message beside the instructions of the application.",
        ));
    }
    let tools = tools(request, carried.tools);
    let sampling = Sampling::of(request, &plan, quirks, dropped);
    let output_config = OutputConfig { effort: plan.effort, format: output_format(request, quirks, dropped) };
    note_unknown(request, dropped);
    let body = Body {
        anthropic_version: host.map(Host::version),
        model: host.is_none().then_some(model),
        max_tokens: plan.max_tokens.unwrap_or(ANSWER_TOKENS),
        stream: request.stream && host != Some(Host::Bedrock),
        system,
        messages,
        tool_choice: tool_choice(request, !tools.is_empty(), dropped),
        tools,
        thinking: plan.thinking,
        output_config: (output_config.effort.is_some() || output_config.format.is_some()).then_some(output_config),
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        stop_sequences: stop_sequences(&request.stop, dropped),
        metadata: request.user.as_deref().map(|user_id| Metadata { user_id }),
        rest: Members(carried.members),
    };
    serde_json::to_vec(&body)
        .map_err(|error| Failure::new(chat::FailureKind::Server, format!("The request cannot be written: {error}")))
}

/// What an Anthropic caller wrote that the neutral form does not know.
struct Carried<'a> {
    members: Vec<(&'a str, &'a Value)>,
    tools: Vec<&'a Value>,
    /// By the indexes of message and block in the caller's request, ascending.
    blocks: Peekable<std::vec::IntoIter<(usize, usize, &'a Value)>>,
}

impl<'a> Carried<'a> {
    /// What is of another dialect, or stands where it cannot be put back, is noted.
    fn of(request: &'a ChatRequest, host: Option<Host>, dropped: &mut Dropped) -> Carried<'a> {
        let own = request.dialect == Some(Format::Anthropic);
        let system = own_system(request);
        let (mut members, mut tools, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
        for (path, value) in &request.rest {
            if path == "anthropic_version" {
                // Written for those who want it.
            } else if own && path == "anthropic_beta" && host != Some(Host::Bedrock) {
                // A header everywhere else.
                dropped.add("anthropic_beta");
            } else if own && !path.contains(['.', '[']) {
                members.push((path.as_str(), value));
            } else if own && path.starts_with("tools[") && path.ends_with(']') {
                tools.push(value);
            } else if let Some((message, block)) = own.then(|| place(path)).flatten()
                && request.messages.get(message + system).is_some_and(|message| message.role != Role::System)
            {
                blocks.push((message, block, value));
            } else {
                dropped.add(path.clone());
            }
        }
        blocks.sort_by_key(|(message, block, _)| (*message, *block));
        Carried { members, tools, blocks: blocks.into_iter().peekable() }
    }

    /// The blocks that stand in `message` where `into` has come to.
    fn next(&mut self, message: usize, into: &mut Vec<Block<'a>>) {
        while let Some((_, _, value)) = self.blocks.next_if(|(of, block, _)| *of == message && *block <= into.len()) {
            into.push(Block::Carried(value));
        }
    }

    /// All further blocks of `message`.
    fn remaining(&mut self, message: usize, into: &mut Vec<Block<'a>>) {
        while let Some((_, _, value)) = self.blocks.next_if(|(of, _, _)| *of == message) {
            into.push(Block::Carried(value));
        }
    }
}

/// `messages[2].content[1]` as numbers; `None` for anything else, a member of that block too.
fn place(path: &str) -> Option<(usize, usize)> {
    let (message, block) = path.strip_prefix("messages[")?.strip_suffix(']')?.split_once("].content[")?;
    Some((message.parse().ok()?, block.parse().ok()?))
}

/// How many messages here stand before the first one of an Anthropic caller's `messages`: its `system`, if it has one.
fn own_system(request: &ChatRequest) -> usize {
    request.messages.first().is_some_and(|message| message.role == Role::System) as usize
}

fn conversation<'a>(
    request: &'a ChatRequest,
    carried: &mut Carried<'a>,
    dropped: &mut Dropped,
) -> (Content<'a>, Vec<Message<'a>>) {
    let mut system = Vec::new();
    let mut messages: Vec<Message<'a>> = Vec::with_capacity(request.messages.len());
    let own_system = own_system(request);
    for (index, message) in request.messages.iter().enumerate() {
        let role = match message.role {
            Role::System => {
                system.extend(message.parts.iter().filter_map(|part| system_block(part, index, dropped)));
                continue;
            }
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        let in_request = index.saturating_sub(own_system);
        let mut blocks = Vec::with_capacity(message.parts.len());
        for part in &message.parts {
            carried.next(in_request, &mut blocks);
            blocks.extend(block(part, message.role, index, dropped));
        }
        carried.remaining(in_request, &mut blocks);
        match messages.last_mut() {
            _ if blocks.is_empty() => {}
            Some(last) if last.role == role => last.content.0.append(&mut blocks),
            _ => messages.push(Message { role, content: Content(blocks) }),
        }
    }
    for message in &mut messages {
        // All results have to be before what the user says to them. The sort is stable.
        if message.role == "user" {
            message.content.0.sort_by_key(|block| !matches!(block, Block::ToolResult { .. }));
        }
    }
    (Content(system), messages)
}

fn system_block<'a>(part: &'a Part, message: usize, dropped: &mut Dropped) -> Option<Block<'a>> {
    match part {
        Part::Text { text, cache } => text_block(text, *cache),
        _ => note(message, part, dropped),
    }
}

/// A text; Anthropic refuses empty ones.
fn text_block(text: &str, cache: Option<chat::CacheMark>) -> Option<Block<'_>> {
    (!text.is_empty()).then(|| Block::Text { text, cache_control: CacheControl::of(cache) })
}

fn block<'a>(part: &'a Part, role: Role, message: usize, dropped: &mut Dropped) -> Option<Block<'a>> {
    let assistant = role == Role::Assistant;
    match part {
        Part::Text { text, cache } => text_block(text, *cache),
        Part::Refusal { text } => text_block(text, None),
        Part::Image { source, cache, .. } if !assistant => {
            Some(Block::Image { source: Source::of(source), cache_control: CacheControl::of(*cache) })
        }
        Part::Document { source, name, cache } if !assistant => {
            document(source, name.as_deref(), *cache).or_else(|| note(message, part, dropped))
        }
        Part::ToolCall(call) if assistant => Some(Block::ToolUse {
            id: tool_id(&call.id),
            name: &call.name,
            input: Arguments(&call.arguments),
            cache_control: CacheControl::of(call.cache),
        }),
        Part::ToolResult(result) if !assistant => Some(tool_result(result, message, dropped)),
        Part::Reasoning(thought) if assistant => {
            // A thought without proof that it is the model's own is refused, as is another provider's.
            match (&thought.encrypted, &thought.signature) {
                (Some(data), _) if !data.contains(':') => Some(Block::RedactedThinking { data }),
                (None, Some(signature)) if !signature.is_empty() => {
                    Some(Block::Thinking { thinking: &thought.text, signature })
                }
                _ => note(message, part, dropped),
            }
        }
        _ => note(message, part, dropped),
    }
}

fn tool_result<'a>(result: &'a ToolResult, message: usize, dropped: &mut Dropped) -> Block<'a> {
    let mut blocks = Vec::with_capacity(result.content.len());
    for part in &result.content {
        blocks.extend(match part {
            Part::ToolCall(_) | Part::ToolResult(_) | Part::Reasoning(_) => note(message, part, dropped),
            part => block(part, Role::User, message, dropped),
        });
    }
    Block::ToolResult {
        tool_use_id: tool_id(&result.id),
        content: Content(blocks),
        is_error: result.is_error,
        cache_control: CacheControl::of(result.cache),
    }
}

/// A document; texts are sent as such, since base64 is taken for PDF only. `None` if a text is none.
fn document<'a>(source: &'a chat::Source, title: Option<&'a str>, cache: Option<chat::CacheMark>) -> Option<Block<'a>> {
    let source = match source {
        chat::Source::Data { media_type, base64 } if media_type.starts_with("text/") => {
            let bytes = BASE64_STANDARD.decode(base64).ok()?;
            Source::Text { media_type: "text/plain", data: String::from_utf8(bytes).ok()? }
        }
        source => Source::of(source),
    };
    Some(Block::Document { source, title, cache_control: CacheControl::of(cache) })
}

/// Notes a part that has no place.
fn note<T>(message: usize, part: &Part, dropped: &mut Dropped) -> Option<T> {
    dropped.add(path_of(message, part));
    None
}

/// What a part that cannot be carried is called.
pub fn path_of(message: usize, part: &Part) -> String {
    let kind = match part {
        Part::Text { .. } => "text",
        Part::Image { .. } => "image",
        Part::Document { .. } => "document",
        Part::Audio { .. } => "audio",
        Part::Video { .. } => "video",
        Part::ToolCall(_) => "tool_call",
        Part::ToolResult(_) => "tool_result",
        Part::Reasoning(_) => "reasoning",
        Part::Refusal { .. } => "refusal",
    };
    format!("messages[{message}].{kind}")
}

fn tools<'a>(request: &'a ChatRequest, carried: Vec<&'a Value>) -> Vec<Tool<'a>> {
    let own = request.tools.iter().map(|tool| Tool::Custom {
        name: &tool.name,
        description: tool.description.as_deref(),
        input_schema: schema(tool.parameters.as_ref()),
        strict: tool.strict,
        cache_control: CacheControl::of(tool.cache),
    });
    own.chain(carried.into_iter().map(Tool::Carried)).collect()
}

/// A schema of arguments, which has to be one of an object.
pub fn schema(schema: Option<&Value>) -> Cow<'_, Value> {
    match schema {
        Some(Value::Object(members)) if members.contains_key("type") => Cow::Borrowed(schema.unwrap_or(&Value::Null)),
        Some(Value::Object(members)) => {
            let mut typed = Map::from_iter([("type".to_owned(), Value::from("object"))]);
            typed.extend(members.clone());
            Cow::Owned(Value::Object(typed))
        }
        _ => Cow::Owned(serde_json::json!({ "type": "object", "properties": {} })),
    }
}

/// Anthropic refuses a choice where there are no tools.
fn tool_choice<'a>(request: &'a ChatRequest, has_tools: bool, dropped: &mut Dropped) -> Option<Choice<'a>> {
    if !has_tools {
        if matches!(request.tool_choice, Some(ToolChoice::Any | ToolChoice::Tool(_))) {
            dropped.add("tool_choice");
        }
        return None;
    }
    let one_at_a_time = request.parallel_tools == Some(false);
    let (kind, name) = match &request.tool_choice {
        None if one_at_a_time => ("auto", None),
        None => return None,
        Some(ToolChoice::Auto) => ("auto", None),
        Some(ToolChoice::None) => ("none", None),
        Some(ToolChoice::Any) => ("any", None),
        Some(ToolChoice::Tool(name)) => ("tool", Some(name.as_str())),
    };
    Some(Choice { kind, name, disable_parallel_tool_use: one_at_a_time && kind != "none" })
}

fn output_format<'a>(request: &'a ChatRequest, quirks: Quirks, dropped: &mut Dropped) -> Option<SchemaFormat<'a>> {
    match &request.output {
        None => None,
        Some(OutputFormat::Schema { schema, .. }) if !quirks.has(Quirk::NoJsonSchema) => {
            Some(SchemaFormat { kind: "json_schema", schema })
        }
        Some(_) => {
            dropped.add("response_format");
            None
        }
    }
}

/// Which of the numbers that shape the choice of words the model takes.
#[derive(Default)]
pub struct Sampling {
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<u64>,
}

impl Sampling {
    pub fn of(request: &ChatRequest, plan: &Plan, quirks: Quirks, dropped: &mut Dropped) -> Sampling {
        let refused = quirks.has(Quirk::NoSampling);
        let mut note = |name: &'static str| -> Option<f64> {
            dropped.add(name);
            None
        };
        let temperature = match request.temperature {
            None => None,
            // The default, and the only one that goes with thinking.
            Some(1.0) => (!refused).then_some(1.0),
            Some(_) if refused || plan.thinks() => note("temperature"),
            // Others count to two.
            Some(warmer) if warmer > 1.0 => note("temperature").or(Some(1.0)),
            Some(temperature) => Some(temperature),
        };
        let top_p = match request.top_p {
            // It cuts nothing off, and newer models refuse it beside a temperature.
            None | Some(1.0..) => None,
            Some(top_p) if refused || (plan.thinks() && top_p < 0.95) => note("top_p"),
            Some(top_p) => Some(top_p),
        };
        let top_k = match request.top_k {
            Some(_) if refused || plan.thinks() => note("top_k").and(None),
            top_k => top_k,
        };
        Sampling { temperature, top_p, top_k }
    }
}

/// Stop texts; those of white space alone are refused.
pub fn stop_sequences<'a>(stop: &'a [String], dropped: &mut Dropped) -> Vec<&'a str> {
    let (texts, blank): (Vec<&str>, Vec<&str>) =
        stop.iter().map(String::as_str).partition(|text| !text.trim().is_empty());
    if !blank.is_empty() {
        dropped.add("stop");
    }
    texts
}

/// Notes what neither Anthropic nor Bedrock has a word for.
pub fn note_unknown(request: &ChatRequest, dropped: &mut Dropped) {
    let unknown = [
        ("frequency_penalty", request.frequency_penalty.is_some_and(|penalty| penalty != 0.0)),
        ("presence_penalty", request.presence_penalty.is_some_and(|penalty| penalty != 0.0)),
        ("seed", request.seed.is_some()),
        ("n", request.choices.is_some_and(|choices| choices > 1)),
    ];
    for (name, wanted) in unknown {
        if wanted {
            dropped.add(name);
        }
    }
}
