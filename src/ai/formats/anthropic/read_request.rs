//! Reads what an Anthropic caller asks.
//!
//! What the neutral form does not know goes into `rest` by its path: whole tools that run at Anthropic, blocks of unknown
//! types, members of known ones.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::ai::chat::{
    self, CacheMark, ChatRequest, Effort, Failure, OutputFormat, Part, Reasoning, Role, Source, Thought, ToolCall,
    ToolChoice, ToolResult,
};
use crate::ai::formats::{Format, PathFacts, tolerant};

#[derive(Deserialize, Default)]
#[serde(default)]
struct Request<'b> {
    model: Option<String>,
    #[serde(deserialize_with = "tolerant::count")]
    max_tokens: Option<u64>,
    #[serde(borrow)]
    system: Content<'b>,
    #[serde(borrow)]
    messages: Option<Vec<Message<'b>>>,
    tools: Option<Vec<Tool>>,
    #[serde(borrow)]
    tool_choice: Option<Choice<'b>>,
    #[serde(borrow)]
    thinking: Option<Thinking<'b>>,
    output_config: Option<OutputConfig>,
    /// Where structured output was while it was a beta.
    output_format: Option<Value>,
    #[serde(deserialize_with = "tolerant::real")]
    temperature: Option<f64>,
    #[serde(deserialize_with = "tolerant::real")]
    top_p: Option<f64>,
    #[serde(deserialize_with = "tolerant::count")]
    top_k: Option<u64>,
    stop_sequences: Option<Vec<String>>,
    metadata: Option<Metadata>,
    stream: Option<bool>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Message<'b> {
    #[serde(borrow, deserialize_with = "tolerant::text")]
    role: Option<Cow<'b, str>>,
    #[serde(borrow)]
    content: Content<'b>,
}

#[derive(Default)]
enum Content<'b> {
    #[default]
    Nothing,
    Text(String),
    Blocks(Vec<Block<'b>>),
}

impl<'de: 'b, 'b> Deserialize<'de> for Content<'b> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either<'b>(PhantomData<&'b ()>);
        impl<'de: 'b, 'b> Visitor<'de> for Either<'b> {
            type Value = Content<'b>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of blocks")
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Content::Text(text.to_owned()))
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Content::Nothing)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut blocks = Vec::new();
                while let Some(block) = items.next_element()? {
                    blocks.push(block);
                }
                Ok(Content::Blocks(blocks))
            }
        }
        from.deserialize_any(Either(PhantomData))
    }
}

/// A block of any type.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Block<'b> {
    #[serde(rename = "type", borrow, deserialize_with = "tolerant::text")]
    kind: Option<Cow<'b, str>>,
    text: Option<String>,
    #[serde(borrow)]
    source: Option<BlockSource<'b>>,
    title: Option<String>,
    id: Option<String>,
    name: Option<String>,
    #[serde(borrow, deserialize_with = "tolerant::raw")]
    input: Option<Cow<'b, RawValue>>,
    tool_use_id: Option<String>,
    #[serde(borrow)]
    content: Content<'b>,
    is_error: Option<bool>,
    thinking: Option<String>,
    signature: Option<String>,
    data: Option<String>,
    cache_control: Option<CacheControl>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct BlockSource<'b> {
    #[serde(rename = "type", borrow, deserialize_with = "tolerant::text")]
    kind: Option<Cow<'b, str>>,
    media_type: Option<String>,
    data: Option<String>,
    url: Option<String>,
    file_id: Option<String>,
    #[serde(borrow)]
    content: Content<'b>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CacheControl {
    ttl: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Tool {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<String>,
    description: Option<String>,
    input_schema: Option<Value>,
    strict: Option<bool>,
    cache_control: Option<CacheControl>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Choice<'b> {
    #[serde(rename = "type", borrow, deserialize_with = "tolerant::text")]
    kind: Option<Cow<'b, str>>,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Thinking<'b> {
    #[serde(rename = "type", borrow, deserialize_with = "tolerant::text")]
    kind: Option<Cow<'b, str>>,
    #[serde(deserialize_with = "tolerant::count")]
    budget_tokens: Option<u64>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    display: Option<Cow<'b, str>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct OutputConfig {
    effort: Option<String>,
    format: Option<Value>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata {
    user_id: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

pub(super) fn read(body: &[u8], path: PathFacts<'_>) -> Result<ChatRequest, Failure> {
    let request: Request<'_> = tolerant::request(body)?;
    let mut rest = Rest(request.rest);
    let mut read = ChatRequest {
        model: path.model.map(str::to_owned).or(request.model).unwrap_or_default(),
        max_tokens: request.max_tokens,
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        stop: request.stop_sequences.unwrap_or_default(),
        stream: path.stream.or(request.stream).unwrap_or_default(),
        // Anthropic's streams always tell it.
        stream_usage: true,
        dialect: Some(Format::Anthropic),
        ..ChatRequest::default()
    };
    if read.model.is_empty() {
        return Err(Failure::invalid("model", "model: Field required"));
    }
    messages(request.system, request.messages.unwrap_or_default(), &mut read, &mut rest)?;
    tools(request.tools.unwrap_or_default(), &mut read, &mut rest);
    if let Some(choice) = request.tool_choice {
        tool_choice(choice, &mut read)?;
    }
    let config = request.output_config.unwrap_or_default();
    output_format(config.format.or(request.output_format), &mut read, &mut rest);
    reasoning(request.thinking, config.effort, &mut read, &mut rest);
    rest.add_all("output_config", config.rest);
    if let Some(metadata) = request.metadata {
        read.user = metadata.user_id;
        rest.add_all("metadata", metadata.rest);
    }
    rest.0.retain(|_, value| !value.is_null());
    read.rest = rest.0;
    Ok(read)
}

/// What the neutral form has no place for, by path.
struct Rest(Map<String, Value>);

impl Rest {
    fn add(&mut self, path: impl fmt::Display, value: Value) {
        self.0.insert(path.to_string(), value);
    }

    fn add_all(&mut self, path: impl fmt::Display, members: Map<String, Value>) {
        for (name, value) in members {
            if !value.is_null() {
                self.add(format_args!("{path}.{name}"), value);
            }
        }
    }
}

/// Where a block is.
#[derive(Clone, Copy)]
enum Place {
    System(usize),
    Message(usize, usize),
    Result(usize, usize, usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::System(block) => write!(f, "system[{block}]"),
            Place::Message(message, block) => write!(f, "messages[{message}].content[{block}]"),
            Place::Result(message, block, inner) => write!(f, "messages[{message}].content[{block}].content[{inner}]"),
        }
    }
}

fn messages(
    system: Content<'_>,
    messages: Vec<Message<'_>>,
    read: &mut ChatRequest,
    rest: &mut Rest,
) -> Result<(), Failure> {
    if messages.is_empty() {
        return Err(Failure::invalid("messages", "messages: at least one message is required"));
    }
    read.messages.reserve(messages.len() + 1);
    let parts = parts(system, Place::System, rest)?;
    if !parts.is_empty() {
        read.messages.push(chat::Message { role: Role::System, parts });
    }
    for (index, message) in messages.into_iter().enumerate() {
        let role = match message.role.as_deref() {
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("system") => Role::System,
            _ => {
                let path = format!("messages[{index}].role");
                let message = format!("{path}: Input should be 'user', 'assistant' or 'system'");
                return Err(Failure::invalid(path, message));
            }
        };
        let parts = self::parts(message.content, |block| Place::Message(index, block), rest)?;
        read.messages.push(chat::Message { role, parts });
    }
    Ok(())
}

fn parts(content: Content<'_>, place: impl Fn(usize) -> Place, rest: &mut Rest) -> Result<Vec<Part>, Failure> {
    match content {
        Content::Nothing => Ok(Vec::new()),
        Content::Text(text) => Ok(vec![Part::Text { text, cache: None }]),
        Content::Blocks(blocks) => {
            let mut parts = Vec::with_capacity(blocks.len());
            for (index, block) in blocks.into_iter().enumerate() {
                parts.extend(part(block, place(index), rest)?);
            }
            Ok(parts)
        }
    }
}

/// The part that a block is; `None` if it went into `rest`.
fn part(block: Block<'_>, place: Place, rest: &mut Rest) -> Result<Option<Part>, Failure> {
    let Some(kind) = block.kind.as_deref() else {
        return Err(Failure::invalid(format!("{place}.type"), format!("{place}.type: Field required")));
    };
    let cache = mark(&block.cache_control);
    let part = match kind {
        "text" => Part::Text { text: block.text.unwrap_or_default(), cache },
        "image" => match block.source.map(|source| source.neutral()) {
            Some(Ok(source)) => Part::Image { source, detail: None, cache },
            other => return not_carried(kind, other, place, rest),
        },
        "document" => match block.source.map(|source| source.neutral()) {
            Some(Ok(source)) => Part::Document { source, name: block.title, cache },
            other => return not_carried(kind, other, place, rest),
        },
        "tool_use" => Part::ToolCall(ToolCall {
            id: block.id.unwrap_or_default(),
            name: block.name.unwrap_or_default(),
            arguments: block.input.map(|input| input.get().to_owned()).unwrap_or_default(),
            signature: None,
            cache,
        }),
        "tool_result" => {
            let inner = |inner| match place {
                Place::Message(message, block) | Place::Result(message, block, _) => {
                    Place::Result(message, block, inner)
                }
                Place::System(_) => place,
            };
            Part::ToolResult(ToolResult {
                id: block.tool_use_id.unwrap_or_default(),
                name: None,
                content: parts(block.content, inner, rest)?,
                is_error: block.is_error.unwrap_or_default(),
                cache,
            })
        }
        "thinking" => Part::Reasoning(Thought {
            text: block.thinking.unwrap_or_default(),
            signature: block.signature.filter(|signature| !signature.is_empty()),
            encrypted: None,
        }),
        "redacted_thinking" => Part::Reasoning(Thought { encrypted: block.data, ..Thought::default() }),
        _ => {
            rest.add(place, whole(block));
            return Ok(None);
        }
    };
    for (name, value) in block.rest {
        // A tool that was called by the model itself, as all others are.
        let usual = value.is_null() || (name == "caller" && value["type"] == "direct");
        if !usual {
            rest.add(format_args!("{place}.{name}"), value);
        }
    }
    Ok(Some(part))
}

/// A block whose source is missing is the caller's mistake, and one whose source is unknown goes into `rest`.
fn not_carried(
    kind: &str,
    source: Option<Result<Source, Value>>,
    place: Place,
    rest: &mut Rest,
) -> Result<Option<Part>, Failure> {
    match source {
        Some(Err(source)) => {
            rest.add(place, serde_json::json!({ "type": kind, "source": source }));
            Ok(None)
        }
        _ => Err(Failure::invalid(format!("{place}.source"), format!("{place}.source: Field required"))),
    }
}

/// A block of an unknown type, put together again.
fn whole(block: Block<'_>) -> Value {
    let mut members = Map::new();
    let texts = [
        ("type", block.kind.map(Cow::into_owned)),
        ("id", block.id),
        ("name", block.name),
        ("tool_use_id", block.tool_use_id),
        ("text", block.text),
        ("title", block.title),
        ("thinking", block.thinking),
        ("signature", block.signature),
        ("data", block.data),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            members.insert(name.to_owned(), Value::String(text));
        }
    }
    if let Some(input) = block.input.and_then(|input| serde_json::from_str(input.get()).ok()) {
        members.insert("input".to_owned(), input);
    }
    if let Some(mark) = block.cache_control {
        members.insert("cache_control".to_owned(), mark.whole());
    }
    if let Some(content) = block.content.whole() {
        members.insert("content".to_owned(), content);
    }
    members.extend(block.rest);
    Value::Object(members)
}

impl Content<'_> {
    fn whole(self) -> Option<Value> {
        match self {
            Content::Nothing => None,
            Content::Text(text) => Some(Value::String(text)),
            Content::Blocks(blocks) => Some(blocks.into_iter().map(whole).collect()),
        }
    }

    /// All texts, if there are no other blocks.
    fn text(self) -> Result<String, Value> {
        match self {
            Content::Nothing => Ok(String::new()),
            Content::Text(text) => Ok(text),
            Content::Blocks(blocks) if blocks.iter().all(|block| block.kind.as_deref() == Some("text")) => {
                Ok(blocks.into_iter().filter_map(|block| block.text).collect::<Vec<_>>().join("\n"))
            }
            Content::Blocks(blocks) => Err(blocks.into_iter().map(whole).collect()),
        }
    }
}

impl BlockSource<'_> {
    /// The source, or as much of it as is known if it is none of ours.
    fn neutral(self) -> Result<Source, Value> {
        let plain =
            |text: String| Source::Data { media_type: "text/plain".to_owned(), base64: BASE64_STANDARD.encode(text) };
        match self.kind.as_deref() {
            Some("base64") => Ok(Source::Data {
                media_type: self.media_type.unwrap_or_default(),
                base64: self.data.unwrap_or_default(),
            }),
            Some("url") => Ok(Source::Url(self.url.unwrap_or_default())),
            Some("file") => Ok(Source::File { id: self.file_id.unwrap_or_default() }),
            Some("text") => Ok(plain(self.data.unwrap_or_default())),
            Some("content") => match self.content.text() {
                Ok(text) => Ok(plain(text)),
                Err(content) => Err(serde_json::json!({ "type": "content", "content": content })),
            },
            other => Err(serde_json::json!({ "type": other })),
        }
    }
}

impl CacheControl {
    fn whole(self) -> Value {
        let mut members = Map::new();
        members.insert("type".to_owned(), Value::String("ephemeral".to_owned()));
        members.extend(self.ttl.map(|ttl| ("ttl".to_owned(), Value::String(ttl))));
        Value::Object(members)
    }
}

fn mark(control: &Option<CacheControl>) -> Option<CacheMark> {
    control.as_ref().map(|control| CacheMark { long: control.ttl.as_deref() == Some("1h") })
}

fn tools(tools: Vec<Tool>, read: &mut ChatRequest, rest: &mut Rest) {
    read.tools.reserve(tools.len());
    for (index, tool) in tools.into_iter().enumerate() {
        if tool.kind.as_deref().is_none_or(|kind| kind == "custom") {
            rest.add_all(format_args!("tools[{index}]"), tool.rest);
            read.tools.push(chat::Tool {
                name: tool.name.unwrap_or_default(),
                description: tool.description,
                parameters: tool.input_schema,
                strict: tool.strict,
                cache: mark(&tool.cache_control),
            });
        } else {
            rest.add(format_args!("tools[{index}]"), tool.whole());
        }
    }
}

impl Tool {
    /// One that Anthropic runs or knows itself, put together again.
    fn whole(self) -> Value {
        let mut members = Map::new();
        for (name, text) in [("type", self.kind), ("name", self.name), ("description", self.description)] {
            members.extend(text.map(|text| (name.to_owned(), Value::String(text))));
        }
        members.extend(self.input_schema.map(|schema| ("input_schema".to_owned(), schema)));
        members.extend(self.strict.map(|strict| ("strict".to_owned(), Value::Bool(strict))));
        members.extend(self.cache_control.map(|mark| ("cache_control".to_owned(), mark.whole())));
        members.extend(self.rest);
        Value::Object(members)
    }
}

fn tool_choice(choice: Choice<'_>, read: &mut ChatRequest) -> Result<(), Failure> {
    read.tool_choice = Some(match (choice.kind.as_deref(), choice.name) {
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("any"), _) => ToolChoice::Any,
        (Some("none"), _) => ToolChoice::None,
        (Some("tool"), Some(name)) => ToolChoice::Tool(name),
        (Some("tool"), None) => {
            return Err(Failure::invalid("tool_choice.name", "tool_choice.name: Field required"));
        }
        _ => {
            let message = "tool_choice.type: Input should be 'auto', 'any', 'tool' or 'none'";
            return Err(Failure::invalid("tool_choice.type", message));
        }
    });
    read.parallel_tools = choice.disable_parallel_tool_use.map(|disabled| !disabled);
    Ok(())
}

fn output_format(format: Option<Value>, read: &mut ChatRequest, rest: &mut Rest) {
    let Some(mut format) = format.filter(|format| !format.is_null()) else { return };
    match format.get("type").and_then(Value::as_str) {
        Some("json_schema") if format["schema"].is_object() => {
            read.output = Some(OutputFormat::Schema {
                name: "answer".to_owned(),
                description: None,
                schema: format["schema"].take(),
                strict: Some(true),
            });
        }
        _ => rest.add("output_config.format", format),
    }
}

/// `thinking` says whether and with which budget, `output_config.effort` how much, of thought or not.
fn reasoning(thinking: Option<Thinking<'_>>, effort: Option<String>, read: &mut ChatRequest, rest: &mut Rest) {
    let known = match effort.as_deref() {
        Some("low") => Some(Effort::Low),
        Some("medium") => Some(Effort::Medium),
        Some("high") => Some(Effort::High),
        Some("xhigh") => Some(Effort::ExtraHigh),
        Some("max") => Some(Effort::Max),
        _ => None,
    };
    let off = thinking.as_ref().is_some_and(|thinking| thinking.kind.as_deref() == Some("disabled"));
    if let Some(effort) = effort.filter(|_| known.is_none() || off) {
        rest.add("output_config.effort", Value::String(effort));
    }
    let Some(thinking) = thinking else {
        read.reasoning = known.map(|effort| Reasoning { effort: Some(effort), ..Reasoning::default() });
        return;
    };
    let shown = match thinking.display.as_deref() {
        Some("summarized") => Some(true),
        Some("omitted") => Some(false),
        _ => None,
    };
    read.reasoning = Some(match thinking.kind.as_deref() {
        Some("enabled") => Reasoning { effort: known, budget: thinking.budget_tokens, shown },
        Some("disabled") => Reasoning { effort: Some(Effort::None), budget: None, shown: None },
        // How much it thinks is the model's business.
        Some("adaptive") => Reasoning { effort: known, budget: None, shown },
        other => {
            rest.add("thinking", serde_json::json!({ "type": other }));
            Reasoning { effort: known, budget: None, shown }
        }
    });
}
