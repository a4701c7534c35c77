//! Cohere's chat (`/v2/chat`), spoken by providers only.
//!
//! What the model says before it calls tools is its `tool_plan` there, and a text like any other here.

use std::mem;

use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::reading::{Count, Embedded, Text, TextOr};
use super::writing::{Joined, List, Object, data_url, object};
use super::{EventDecoder, Provider};
use crate::ai::chat::{
    ChatAnswer, ChatEvent, ChatRequest, Choice, Dropped, Effort, Failure, FailureKind, Message, OutputFormat, Part,
    PartKind, Reasoning, Role, Source, Stop, Thought, Tool, ToolCall, ToolChoice, ToolResult, Usage,
};
use crate::ai::quirks::Quirks;
use crate::ai::stream::{Frame, Framing};
use crate::ai::tool_ids;

pub struct Cohere;

impl Provider for Cohere {
    fn encode_request(
        &self,
        request: &ChatRequest,
        model: &str,
        _quirks: Quirks,
        dropped: &mut Dropped,
    ) -> Result<Vec<u8>, Failure> {
        Ok(write_request(request, model, dropped))
    }

    fn decode_answer(&self, body: &[u8]) -> Result<ChatAnswer, Failure> {
        let wire: WireAnswer<'_> = serde_json::from_slice(body).map_err(|_| unreadable())?;
        wire.read()
    }

    fn decoder(&self) -> Box<dyn EventDecoder> {
        Box::<Decoder>::default()
    }

    fn decode_failure(&self, status: u16, _headers: &HeaderMap, body: &[u8]) -> Failure {
        let message = serde_json::from_slice::<WireError>(body).ok().and_then(|wire| wire.message);
        let kind = match status {
            // Its own status for a token that it does not know.
            498 => FailureKind::Authentication,
            status => FailureKind::of_status(status),
        };
        failure(kind, message.unwrap_or_else(|| format!("the provider answered with status {status}")))
    }

    fn framing(&self) -> Framing {
        Framing::Sse
    }
}

// Requests.

fn write_request(request: &ChatRequest, model: &str, dropped: &mut Dropped) -> Vec<u8> {
    let mut out = Vec::with_capacity(2048);
    object(&mut out, |o| {
        o.set("model", model);
        o.list("messages", |list| {
            for (index, message) in request.messages.iter().enumerate() {
                write_message(index, message, list, dropped);
            }
        });
        write_tools(request, o, dropped);
        o.set_some("max_tokens", &request.max_tokens);
        o.set_some("temperature", &request.temperature);
        o.set_some("p", &request.top_p);
        o.set_some("k", &request.top_k);
        o.set_some("frequency_penalty", &request.frequency_penalty);
        o.set_some("presence_penalty", &request.presence_penalty);
        o.set_some("seed", &request.seed);
        if !request.stop.is_empty() {
            o.set("stop_sequences", &request.stop);
        }
        match &request.output {
            None => {}
            Some(OutputFormat::Json) => o.object("response_format", |o| o.set("type", "json_object")),
            Some(OutputFormat::Schema { schema, .. }) => o.object("response_format", |o| {
                o.set("type", "json_object");
                o.set("json_schema", schema);
            }),
        }
        if let Some(reasoning) = &request.reasoning {
            write_thinking(reasoning, o);
        }
        if request.stream {
            o.set("stream", &true);
        }
    });
    if request.choices.is_some_and(|choices| choices > 1) {
        dropped.add("n");
    }
    if request.user.is_some() {
        dropped.add("user");
    }
    for (name, value) in &request.rest {
        if !value.is_null() {
            dropped.add(name.clone());
        }
    }
    out
}

fn write_message(index: usize, message: &Message, list: &mut List<'_>, dropped: &mut Dropped) {
    for part in &message.parts {
        if let Part::ToolResult(result) = part {
            write_result(index, result, list, dropped);
        }
    }
    let others = || message.parts.iter().enumerate().filter(|(_, part)| !matches!(part, Part::ToolResult(_)));
    if others().next().is_none() && !message.parts.is_empty() {
        return;
    }
    if message.role == Role::Assistant {
        return write_assistant(index, others(), list, dropped);
    }
    list.object(|o| {
        o.set("role", if message.role == Role::System { "system" } else { "user" });
        if let [Part::Text { text, cache: None }] = message.parts.as_slice() {
            return o.set("content", text);
        }
        o.list("content", |list| {
            for (at, part) in others() {
                write_part(index, at, part, list, dropped);
            }
        });
    });
}

fn write_part(index: usize, at: usize, part: &Part, list: &mut List<'_>, dropped: &mut Dropped) {
    match part {
        Part::Text { text, cache } => {
            if cache.is_some() {
                dropped.add(format!("messages[{index}].cache_control"));
            }
            write_text(text, list);
        }
        Part::Refusal { text } => write_text(text, list),
        Part::Image { source: source @ (Source::Url(_) | Source::Data { .. }), detail, .. } => list.object(|o| {
            o.set("type", "image_url");
            o.object("image_url", |o| {
                match source {
                    Source::Data { media_type, base64 } => o.set("url", &Joined(&data_url(media_type, base64))),
                    Source::Url(url) | Source::File { id: url } => o.set("url", url),
                }
                o.set_some("detail", detail);
            });
        }),
        _ => dropped.add(format!("messages[{index}].content[{at}]")),
    }
}

fn write_text(text: &str, list: &mut List<'_>) {
    list.object(|o| {
        o.set("type", "text");
        o.set("text", text);
    });
}

fn write_assistant<'p>(
    index: usize,
    parts: impl Iterator<Item = (usize, &'p Part)>,
    list: &mut List<'_>,
    dropped: &mut Dropped,
) {
    let (mut texts, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for (at, part) in parts {
        match part {
            Part::Text { text, .. } | Part::Refusal { text } => texts.push(text.as_str()),
            Part::Reasoning(thought) if !thought.text.is_empty() => thoughts.push(thought.text.as_str()),
            Part::ToolCall(call) => calls.push(call),
            _ => dropped.add(format!("messages[{index}].content[{at}]")),
        }
    }
    list.object(|o| {
        o.set("role", "assistant");
        let plans = !calls.is_empty();
        if plans && !texts.is_empty() {
            o.set("tool_plan", &Joined(&texts));
        }
        match (plans, thoughts.is_empty()) {
            (true, true) => {}
            (false, true) => o.set("content", &texts.concat()),
            (_, false) => o.list("content", |list| {
                list.object(|o| {
                    o.set("type", "thinking");
                    o.set("thinking", &Joined(&thoughts));
                });
                if !plans && !texts.is_empty() {
                    write_text(&texts.concat(), list);
                }
            }),
        }
        if plans {
            o.list("tool_calls", |list| calls.into_iter().for_each(|call| write_call(call, list)));
        }
    });
}

fn write_call(call: &ToolCall, list: &mut List<'_>) {
    list.object(|o| {
        o.set("id", tool_ids::bare(&call.id));
        o.set("type", "function");
        o.object("function", |o| {
            o.set("name", &call.name);
            o.set("arguments", if call.arguments.trim().is_empty() { "{}" } else { &call.arguments });
        });
    });
}

fn write_result(index: usize, result: &ToolResult, list: &mut List<'_>, dropped: &mut Dropped) {
    let mut texts = Vec::new();
    for part in &result.content {
        match part {
            Part::Text { text, .. } => texts.push(text.as_str()),
            _ => dropped.add(format!("messages[{index}].content")),
        }
    }
    if result.is_error {
        dropped.add(format!("messages[{index}].is_error"));
    }
    list.object(|o| {
        o.set("role", "tool");
        o.set("tool_call_id", tool_ids::bare(&result.id));
        o.set("content", &texts.join("\n"));
    });
}

/// One tool cannot be forced among others: it is offered alone then.
fn write_tools(request: &ChatRequest, o: &mut Object<'_>, dropped: &mut Dropped) {
    let offered = |tool: &&Tool| match &request.tool_choice {
        Some(ToolChoice::Tool(name)) => tool.name == *name,
        _ => true,
    };
    if request.tools.is_empty() {
        return;
    }
    if request.parallel_tools == Some(false) {
        dropped.add("parallel_tool_calls");
    }
    o.list("tools", |list| {
        for tool in request.tools.iter().filter(offered) {
            if tool.cache.is_some() {
                dropped.add("tools.cache_control");
            }
            list.object(|o| {
                o.set("type", "function");
                o.object("function", |o| {
                    o.set("name", &tool.name);
                    o.set_some("description", &tool.description);
                    match &tool.parameters {
                        Some(schema) => o.set("parameters", schema),
                        None => o.raw("parameters", r#"{"type":"object","properties":{}}"#),
                    }
                });
            });
        }
    });
    match request.tool_choice {
        Some(ToolChoice::Any | ToolChoice::Tool(_)) => o.set("tool_choice", "REQUIRED"),
        Some(ToolChoice::None) => o.set("tool_choice", "NONE"),
        Some(ToolChoice::Auto) | None => {}
    }
    // It is one setting for all tools.
    if request.tools.iter().any(|tool| tool.strict == Some(true)) {
        o.set("strict_tools", &true);
    }
}

/// It knows budgets, not efforts.
fn write_thinking(reasoning: &Reasoning, o: &mut Object<'_>) {
    let budget = match (reasoning.budget, reasoning.effort) {
        (None, Some(Effort::None)) => Some(0),
        (Some(budget), _) => Some(budget),
        (None, Some(Effort::Minimal | Effort::Low)) => Some(1024),
        (None, Some(Effort::Medium)) => Some(4096),
        (None, Some(Effort::High)) => Some(16384),
        // As much as the model wants.
        (None, Some(Effort::ExtraHigh | Effort::Max) | None) => None,
    };
    o.object("thinking", |o| match budget {
        Some(0) => o.set("type", "disabled"),
        budget => {
            o.set("type", "enabled");
            o.set_some("token_budget", &budget);
        }
    });
}

// Answers.

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireAnswer<'a> {
    id: Option<String>,
    #[serde(borrow)]
    finish_reason: Option<Text<'a>>,
    #[serde(borrow)]
    message: Option<WireMessage<'a>>,
    usage: Option<WireUsage>,
    logprobs: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireMessage<'a> {
    #[serde(borrow)]
    content: Option<TextOr<'a, WireContent<'a>>>,
    #[serde(borrow)]
    tool_plan: Option<Text<'a>>,
    #[serde(borrow)]
    tool_calls: Option<Vec<WireCall<'a>>>,
    citations: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireContent<'a> {
    #[serde(borrow)]
    text: Option<Text<'a>>,
    #[serde(borrow)]
    thinking: Option<Text<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireCall<'a> {
    id: Option<String>,
    #[serde(borrow)]
    function: Option<WireFunction<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireFunction<'a> {
    name: Option<String>,
    #[serde(borrow)]
    arguments: Option<Embedded<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireUsage {
    billed_units: Option<WireTokens>,
    tokens: Option<WireTokens>,
    cached_tokens: Option<Count>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireTokens {
    input_tokens: Option<Count>,
    output_tokens: Option<Count>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireError {
    message: Option<String>,
}

impl WireAnswer<'_> {
    fn read(self) -> Result<ChatAnswer, Failure> {
        let Some(message) = self.message else { return Err(unreadable()) };
        let finish = self.finish_reason.as_deref().unwrap_or_default();
        if let Some(failure) = failed(finish, None) {
            return Err(failure);
        }
        let mut parts = Vec::new();
        let text = |text: Text<'_>| (!text.is_empty()).then(|| Part::Text { text: text.into_owned(), cache: None });
        match message.content {
            None => {}
            Some(TextOr::Text(content)) => parts.extend(text(content)),
            Some(TextOr::List(items)) => {
                for item in items {
                    if let Some(thinking) = item.thinking.filter(|text| !text.is_empty()) {
                        parts.push(Part::Reasoning(Thought { text: thinking.into_owned(), ..Thought::default() }));
                    }
                    parts.extend(item.text.and_then(text));
                }
            }
        }
        parts.extend(message.tool_plan.and_then(text));
        let calls = message.tool_calls.unwrap_or_default();
        parts.extend(calls.into_iter().filter_map(WireCall::read).map(Part::ToolCall));
        let mut rest = Map::new();
        let others = [("message.citations", message.citations), ("logprobs", self.logprobs)];
        rest.extend(others.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        let called = parts.iter().any(|part| matches!(part, Part::ToolCall(_)));
        Ok(ChatAnswer {
            id: self.id.unwrap_or_default(),
            choices: vec![Choice { parts, stop: stop_of(finish, called), stop_sequence: None }],
            usage: self.usage.and_then(|usage| usage.read()),
            rest,
            ..ChatAnswer::default()
        })
    }
}

impl WireCall<'_> {
    fn read(self) -> Option<ToolCall> {
        let function = self.function?;
        Some(ToolCall {
            id: self.id.filter(|id| !id.is_empty()).unwrap_or_else(tool_ids::made_up),
            name: function.name?,
            arguments: function.arguments.map(Embedded::into_text).unwrap_or_default(),
            ..ToolCall::default()
        })
    }
}

impl WireUsage {
    /// What is billed, which leaves out the tokens of the vendor's own instructions.
    fn read(&self) -> Option<Usage> {
        let tokens = self.billed_units.as_ref().or(self.tokens.as_ref())?;
        let input = tokens.input_tokens.unwrap_or_default().0;
        Some(Usage {
            input,
            output: tokens.output_tokens.unwrap_or_default().0,
            cache_read: self.cached_tokens.unwrap_or_default().0.min(input),
            ..Usage::default()
        })
    }
}

fn stop_of(finish_reason: &str, called: bool) -> Stop {
    match finish_reason {
        "MAX_TOKENS" => Stop::MaxTokens,
        "ERROR_LIMIT" => Stop::ContextFull,
        "ERROR_TOXIC" => Stop::Filtered,
        "TOOL_CALL" => Stop::ToolUse,
        _ if called => Stop::ToolUse,
        _ => Stop::End,
    }
}

/// The reasons to end that are failures.
fn failed(finish_reason: &str, message: Option<String>) -> Option<Failure> {
    let (kind, usual) = match finish_reason {
        "ERROR" => (FailureKind::Server, "the provider failed while it generated"),
        "TIMEOUT" => (FailureKind::Timeout, "the provider took too long to generate"),
        _ => return None,
    };
    Some(failure(kind, message.unwrap_or_else(|| usual.to_owned())))
}

// Streams.

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireEvent<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    id: Option<String>,
    #[serde(borrow)]
    delta: Option<WireDelta<'a>>,
    message: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireDelta<'a> {
    #[serde(borrow)]
    message: Option<WireDeltaMessage<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Text<'a>>,
    usage: Option<WireUsage>,
    error: Option<Value>,
}

/// Single where an answer has lists; lists only in the first event, where they are empty.
#[derive(Default, Deserialize)]
#[serde(default)]
struct WireDeltaMessage<'a> {
    #[serde(borrow)]
    content: Option<OneOrList<WireContent<'a>>>,
    #[serde(borrow)]
    tool_plan: Option<Text<'a>>,
    #[serde(borrow)]
    tool_calls: Option<OneOrList<WireCall<'a>>>,
}

struct OneOrList<T>(Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrList<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Either<T> {
            type Value = OneOrList<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("one or a list")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Some).map(OneOrList)
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let first = seq.next_element()?;
                while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
                Ok(OneOrList(first))
            }
            fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
                Ok(OneOrList(None))
            }
        }
        deserializer.deserialize_any(Either(std::marker::PhantomData))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Reasoning,
    ToolCall,
}

#[derive(Default)]
struct Decoder {
    started: bool,
    ended: bool,
    parts: u32,
    open: Option<(Kind, u32)>,
    called: bool,
}

impl EventDecoder for Decoder {
    fn decode(&mut self, frame: &Frame<'_>, events: &mut Vec<ChatEvent>) {
        let data = frame.data.trim_ascii();
        if self.ended || data.is_empty() || data == b"[DONE]" {
            return;
        }
        match serde_json::from_slice::<WireEvent<'_>>(data) {
            Ok(event) => self.event(event, events),
            Err(_) => self.fail(unreadable(), events),
        }
    }

    fn finish(&mut self, events: &mut Vec<ChatEvent>) {
        if !self.ended {
            self.fail(Failure::new(FailureKind::Server, "the provider's stream broke off"), events);
        }
    }
}

impl Decoder {
    fn event(&mut self, event: WireEvent<'_>, events: &mut Vec<ChatEvent>) {
        let delta = event.delta.unwrap_or_default();
        let message = delta.message.unwrap_or_default();
        match event.kind.as_deref() {
            Some("message-start") => self.start(event.id.unwrap_or_default(), events),
            Some("content-start" | "content-delta") => {
                let content = message.content.and_then(|content| content.0).unwrap_or_default();
                self.write(Kind::Reasoning, content.thinking, events);
                self.write(Kind::Text, content.text, events);
            }
            Some("tool-plan-delta") => self.write(Kind::Text, message.tool_plan, events),
            Some("tool-call-start") => {
                if let Some(call) = message.tool_calls.and_then(|calls| calls.0) {
                    self.call(call, events);
                }
            }
            Some("tool-call-delta") => {
                let function = message.tool_calls.and_then(|calls| calls.0).and_then(|call| call.function);
                let arguments = function.and_then(|function| function.arguments).map(Embedded::into_text);
                if let (Some(text), Some((Kind::ToolCall, part))) =
                    (arguments.filter(|text| !text.is_empty()), self.open)
                {
                    events.push(ChatEvent::Delta { part, text });
                }
            }
            Some("content-end" | "tool-call-end") => self.close(events),
            Some("message-end") => {
                let finish = delta.finish_reason.as_deref().unwrap_or_default();
                let message = delta.error.and_then(|error| error.as_str().map(str::to_owned));
                match failed(finish, message) {
                    Some(failure) => self.fail(failure, events),
                    None => self.end(finish, delta.usage, events),
                }
            }
            Some(_) => {}
            // An error comes without a type.
            None => match event.message {
                Some(Value::String(message)) => self.fail(failure(FailureKind::Server, message), events),
                _ => self.fail(unreadable(), events),
            },
        }
    }

    fn start(&mut self, id: String, events: &mut Vec<ChatEvent>) {
        if !mem::replace(&mut self.started, true) {
            events.push(ChatEvent::Start { id, model: String::new(), created: 0 });
        }
    }

    fn write(&mut self, kind: Kind, text: Option<Text<'_>>, events: &mut Vec<ChatEvent>) {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return };
        let part = match self.open {
            Some((open, part)) if open == kind => part,
            _ => self.begin(kind, if kind == Kind::Reasoning { PartKind::Reasoning } else { PartKind::Text }, events),
        };
        events.push(ChatEvent::Delta { part, text: text.into_owned() });
    }

    fn call(&mut self, call: WireCall<'_>, events: &mut Vec<ChatEvent>) {
        let Some(call) = call.read() else { return };
        self.called = true;
        let part = self.begin(Kind::ToolCall, PartKind::ToolCall { id: call.id, name: call.name }, events);
        if !call.arguments.is_empty() {
            events.push(ChatEvent::Delta { part, text: call.arguments });
        }
    }

    fn begin(&mut self, kind: Kind, new: PartKind, events: &mut Vec<ChatEvent>) -> u32 {
        self.start(String::new(), events);
        self.close(events);
        let part = self.parts;
        self.parts += 1;
        events.push(ChatEvent::PartStart { part, choice: 0, kind: new });
        self.open = Some((kind, part));
        part
    }

    fn close(&mut self, events: &mut Vec<ChatEvent>) {
        if let Some((_, part)) = self.open.take() {
            events.push(ChatEvent::PartEnd { part });
        }
    }

    fn end(&mut self, finish: &str, usage: Option<WireUsage>, events: &mut Vec<ChatEvent>) {
        self.start(String::new(), events);
        self.close(events);
        events.push(ChatEvent::Stop { choice: 0, stop: stop_of(finish, self.called), stop_sequence: None });
        events.extend(usage.and_then(|usage| usage.read()).map(ChatEvent::Usage));
        events.push(ChatEvent::End);
        self.ended = true;
    }

    fn fail(&mut self, failure: Failure, events: &mut Vec<ChatEvent>) {
        events.push(ChatEvent::Error(failure));
        self.ended = true;
    }
}

// Errors.

fn failure(kind: FailureKind, message: String) -> Failure {
    let lower = message.to_ascii_lowercase();
    match kind {
        FailureKind::Authentication => Failure::new(kind, "the provider refused the gateway's credentials"),
        FailureKind::InvalidRequest if lower.contains("too many tokens") || lower.contains("context length") => {
            Failure::new(FailureKind::ContextLength, message)
        }
        kind => Failure::new(kind, message),
    }
}

fn unreadable() -> Failure {
    Failure::new(FailureKind::Server, "the provider sent something that cannot be read")
}
