//! Ollama's native chat (`/api/chat`), spoken by providers only. Streams are lines of JSON.

use std::mem;

use http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::reading::{Count, Embedded, Text};
use super::writing::{Joined, List, Object, object};
use super::{EventDecoder, Provider};
use crate::ai::chat::{
    ChatAnswer, ChatEvent, ChatRequest, Choice, Dropped, Effort, Failure, FailureKind, Message, OutputFormat, Part,
    PartKind, Reasoning, Role, Source, Stop, Thought, ToolCall, ToolChoice, ToolResult, Usage,
};
use crate::ai::quirks::Quirks;
use crate::ai::stream::{Frame, Framing};
use crate::ai::tool_ids;

pub struct Ollama;

impl Provider for Ollama {
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
        let line: WireLine<'_> = serde_json::from_slice(body).map_err(|_| unreadable())?;
        line.into_answer()
    }

    fn decoder(&self) -> Box<dyn EventDecoder> {
        Box::<Decoder>::default()
    }

    fn decode_failure(&self, status: u16, _headers: &HeaderMap, body: &[u8]) -> Failure {
        let error = serde_json::from_slice::<WireError>(body).ok().and_then(|wire| wire.error);
        let message = error.unwrap_or_else(|| format!("the provider answered with status {status}"));
        failure(message, FailureKind::of_status(status))
    }

    fn framing(&self) -> Framing {
        Framing::JsonLines
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
        match &request.output {
            None => {}
            Some(OutputFormat::Json) => o.set("format", "json"),
            Some(OutputFormat::Schema { schema, .. }) => o.set("format", schema),
        }
        write_options(request, o);
        if let Some(reasoning) = &request.reasoning {
            write_think(reasoning, o);
        }
        // It streams where it is not told otherwise.
        o.set("stream", &request.stream);
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
    let mut rest = Vec::new();
    for (at, part) in message.parts.iter().enumerate() {
        match part {
            Part::ToolResult(result) => write_result(index, result, list, dropped),
            _ => rest.push((at, part)),
        }
    }
    if rest.is_empty() && !message.parts.is_empty() {
        return;
    }
    let (mut texts, mut images, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (at, part) in rest {
        match part {
            Part::Text { text, cache } => {
                if cache.is_some() {
                    dropped.add(format!("messages[{index}].cache_control"));
                }
                texts.push(text.as_str());
            }
            Part::Refusal { text } => texts.push(text.as_str()),
            Part::Image { source: Source::Data { base64, .. }, .. } => images.push(base64),
            Part::Reasoning(thought) if !thought.text.is_empty() => thoughts.push(thought.text.as_str()),
            Part::ToolCall(call) => calls.push(call),
            _ => dropped.add(format!("messages[{index}].content[{at}]")),
        }
    }
    let role = match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    list.object(|o| {
        o.set("role", role);
        match (message.role, texts.as_slice()) {
            (_, [text]) => o.set("content", text),
            (Role::Assistant, texts) => o.set("content", &texts.concat()),
            (_, texts) => o.set("content", &texts.join("\n")),
        }
        if !thoughts.is_empty() {
            o.set("thinking", &Joined(&thoughts));
        }
        if !images.is_empty() {
            o.set("images", &images);
        }
        if !calls.is_empty() {
            o.list("tool_calls", |list| {
                for call in calls {
                    write_call(index, call, list, dropped);
                }
            });
        }
    });
}

fn write_call(index: usize, call: &ToolCall, list: &mut List<'_>, dropped: &mut Dropped) {
    list.object(|o| {
        o.set("id", tool_ids::bare(&call.id));
        o.object("function", |o| {
            o.set("name", &call.name);
            let arguments = call.arguments.trim();
            match serde_json::from_str::<&RawValue>(arguments) {
                Ok(document) if document.get().starts_with('{') => o.raw("arguments", document.get()),
                // It takes objects only, and what a model once wrote wrongly cannot be mended.
                _ => {
                    if !arguments.is_empty() {
                        dropped.add(format!("messages[{index}].tool_calls.function.arguments"));
                    }
                    o.raw("arguments", "{}");
                }
            }
        });
    });
}

fn write_result(index: usize, result: &ToolResult, list: &mut List<'_>, dropped: &mut Dropped) {
    let (mut texts, mut images) = (Vec::new(), Vec::new());
    for part in &result.content {
        match part {
            Part::Text { text, .. } => texts.push(text.as_str()),
            Part::Image { source: Source::Data { base64, .. }, .. } => images.push(base64),
            _ => dropped.add(format!("messages[{index}].content")),
        }
    }
    if result.is_error {
        dropped.add(format!("messages[{index}].is_error"));
    }
    list.object(|o| {
        o.set("role", "tool");
        o.set("content", &texts.join("\n"));
        o.set_some("tool_name", &result.name);
        o.set("tool_call_id", tool_ids::bare(&result.id));
        if !images.is_empty() {
            o.set("images", &images);
        }
    });
}

/// Models cannot be made to call; they can be kept from it by giving them nothing to call.
fn write_tools(request: &ChatRequest, o: &mut Object<'_>, dropped: &mut Dropped) {
    match request.tool_choice {
        Some(ToolChoice::None) => return,
        Some(ToolChoice::Any | ToolChoice::Tool(_)) => dropped.add("tool_choice"),
        Some(ToolChoice::Auto) | None => {}
    }
    if request.tools.is_empty() {
        return;
    }
    if request.parallel_tools == Some(false) {
        dropped.add("parallel_tool_calls");
    }
    o.list("tools", |list| {
        for (index, tool) in request.tools.iter().enumerate() {
            if tool.cache.is_some() {
                dropped.add(format!("tools[{index}].cache_control"));
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
}

fn write_options(request: &ChatRequest, o: &mut Object<'_>) {
    let mut options = Vec::new();
    object(&mut options, |o| {
        o.set_some("num_predict", &request.max_tokens);
        o.set_some("temperature", &request.temperature);
        o.set_some("top_p", &request.top_p);
        o.set_some("top_k", &request.top_k);
        o.set_some("frequency_penalty", &request.frequency_penalty);
        o.set_some("presence_penalty", &request.presence_penalty);
        o.set_some("seed", &request.seed);
        if !request.stop.is_empty() {
            o.set("stop", &request.stop);
        }
    });
    if options != b"{}" {
        o.raw("options", &String::from_utf8_lossy(&options));
    }
}

/// Some models know three levels, the others only whether to think; those take any level as a yes.
fn write_think(reasoning: &Reasoning, o: &mut Object<'_>) {
    match (reasoning.effort, reasoning.budget) {
        (Some(Effort::None), _) | (None, Some(0)) => o.set("think", &false),
        (Some(Effort::Minimal | Effort::Low), _) => o.set("think", "low"),
        (Some(Effort::Medium), _) => o.set("think", "medium"),
        (Some(Effort::High | Effort::ExtraHigh | Effort::Max), _) => o.set("think", "high"),
        (None, _) => o.set("think", &true),
    }
}

// Answers.

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireLine<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    created_at: Option<Text<'a>>,
    #[serde(borrow)]
    message: Option<WireMessage<'a>>,
    done: Option<bool>,
    #[serde(borrow)]
    done_reason: Option<Text<'a>>,
    prompt_eval_count: Option<Count>,
    eval_count: Option<Count>,
    error: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireMessage<'a> {
    #[serde(borrow)]
    content: Option<Text<'a>>,
    #[serde(borrow)]
    thinking: Option<Text<'a>>,
    #[serde(borrow)]
    tool_calls: Option<Vec<WireCall<'a>>>,
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
struct WireError {
    error: Option<String>,
}

impl WireLine<'_> {
    fn into_answer(mut self) -> Result<ChatAnswer, Failure> {
        if let Some(error) = self.error {
            return Err(failure(error, FailureKind::Server));
        }
        let Some(message) = self.message.take() else { return Err(unreadable()) };
        let mut parts = Vec::new();
        if let Some(thinking) = message.thinking.filter(|text| !text.is_empty()) {
            parts.push(Part::Reasoning(Thought { text: thinking.into_owned(), ..Thought::default() }));
        }
        if let Some(content) = message.content.filter(|text| !text.is_empty()) {
            parts.push(Part::Text { text: content.into_owned(), cache: None });
        }
        let calls = message.tool_calls.unwrap_or_default();
        parts.extend(calls.into_iter().filter_map(WireCall::read).map(Part::ToolCall));
        let called = parts.iter().any(|part| matches!(part, Part::ToolCall(_)));
        Ok(ChatAnswer {
            created: self.created(),
            usage: self.usage(),
            choices: vec![Choice {
                parts,
                stop: stop_of(self.done_reason.as_deref().unwrap_or_default(), called),
                stop_sequence: None,
            }],
            model: self.model.map(Text::into_owned).unwrap_or_default(),
            ..ChatAnswer::default()
        })
    }

    fn created(&self) -> i64 {
        let written = self.created_at.as_deref().and_then(|time| time.parse::<jiff::Timestamp>().ok());
        written.map_or(0, jiff::Timestamp::as_second)
    }

    fn usage(&self) -> Option<Usage> {
        // A prompt that the engine has kept from the call before is not counted.
        let (input, output) = (self.prompt_eval_count.unwrap_or_default().0, self.eval_count?.0);
        Some(Usage { input, output, ..Usage::default() })
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

fn stop_of(done_reason: &str, called: bool) -> Stop {
    match done_reason {
        "length" => Stop::MaxTokens,
        _ if called => Stop::ToolUse,
        _ => Stop::End,
    }
}

// Streams.

#[derive(Default)]
struct Decoder {
    started: bool,
    ended: bool,
    parts: u32,
    /// The part that is being written, and whether it is a thought.
    open: Option<(u32, bool)>,
    called: bool,
}

impl EventDecoder for Decoder {
    fn decode(&mut self, frame: &Frame<'_>, events: &mut Vec<ChatEvent>) {
        if self.ended {
            return;
        }
        match serde_json::from_slice::<WireLine<'_>>(frame.data) {
            Ok(WireLine { error: Some(error), .. }) => self.fail(failure(error, FailureKind::Server), events),
            Ok(line) => self.line(line, events),
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
    fn line(&mut self, mut line: WireLine<'_>, events: &mut Vec<ChatEvent>) {
        if !mem::replace(&mut self.started, true) {
            let model = line.model.as_deref().unwrap_or_default().to_owned();
            events.push(ChatEvent::Start { id: String::new(), model, created: line.created() });
        }
        let message = line.message.take().unwrap_or_default();
        self.write(message.thinking, true, events);
        self.write(message.content, false, events);
        for call in message.tool_calls.unwrap_or_default().into_iter().filter_map(WireCall::read) {
            self.close(events);
            self.called = true;
            let part = self.begin(PartKind::ToolCall { id: call.id, name: call.name }, events);
            if !call.arguments.is_empty() {
                events.push(ChatEvent::Delta { part, text: call.arguments });
            }
            events.push(ChatEvent::PartEnd { part });
        }
        if line.done == Some(true) {
            self.close(events);
            let stop = stop_of(line.done_reason.as_deref().unwrap_or_default(), self.called);
            events.push(ChatEvent::Stop { choice: 0, stop, stop_sequence: None });
            events.extend(line.usage().map(ChatEvent::Usage));
            events.push(ChatEvent::End);
            self.ended = true;
        }
    }

    fn write(&mut self, text: Option<Text<'_>>, thought: bool, events: &mut Vec<ChatEvent>) {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return };
        let part = match self.open {
            Some((part, open)) if open == thought => part,
            _ => {
                self.close(events);
                let part = self.begin(if thought { PartKind::Reasoning } else { PartKind::Text }, events);
                self.open = Some((part, thought));
                part
            }
        };
        events.push(ChatEvent::Delta { part, text: text.into_owned() });
    }

    fn begin(&mut self, kind: PartKind, events: &mut Vec<ChatEvent>) -> u32 {
        let part = self.parts;
        self.parts += 1;
        events.push(ChatEvent::PartStart { part, choice: 0, kind });
        part
    }

    fn close(&mut self, events: &mut Vec<ChatEvent>) {
        if let Some((part, _)) = self.open.take() {
            events.push(ChatEvent::PartEnd { part });
        }
    }

    fn fail(&mut self, failure: Failure, events: &mut Vec<ChatEvent>) {
        events.push(ChatEvent::Error(failure));
        self.ended = true;
    }
}

// Errors: `{"error": "text"}`, wherever they come.

fn failure(message: String, kind: FailureKind) -> Failure {
    let lower = message.to_ascii_lowercase();
    let kind = match kind {
        FailureKind::InvalidRequest | FailureKind::Server if lower.contains("context length") => {
            FailureKind::ContextLength
        }
        FailureKind::Server if lower.contains("not found") => FailureKind::NotFound,
        kind => kind,
    };
    Failure::new(kind, message)
}

fn unreadable() -> Failure {
    Failure::new(FailureKind::Server, "the provider sent something that cannot be read")
}
