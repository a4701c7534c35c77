//! Whole answers, both ways.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::made_up;
use super::super::reading::{Count, Embedded, Text, TextOr, is_empty};
use super::super::writing::{Joined, List, Object, data_url, object};
use super::read_request::thought_signature;
use super::thoughts::{self, Detail};
use super::usage::{self, WireUsage};
use super::{audio_type, created_or_now, failure, finish_reason, stop_of};
use crate::ai::chat::{
    ChatAnswer, ChatRequest, Choice, Dropped, Failure, FailureKind, Part, Source, Stop, Thought, ToolCall,
};
use crate::ai::tool_ids;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireAnswer<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    model: Option<Text<'a>>,
    created: Option<Count>,
    #[serde(borrow)]
    choices: Option<Vec<WireChoice<'a>>>,
    usage: Option<WireUsage>,
    error: Option<Value>,
    service_tier: Option<Value>,
    system_fingerprint: Option<Value>,
    /// Perplexity.
    citations: Option<Value>,
    search_results: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireChoice<'a> {
    #[serde(borrow)]
    message: Option<WireMessage<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Text<'a>>,
    /// vLLM: the text that ended the answer, or the number of a token.
    stop_reason: Option<Value>,
    logprobs: Option<Value>,
    /// OpenRouter.
    error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireMessage<'a> {
    #[serde(borrow)]
    pub content: Option<TextOr<'a, WirePart<'a>>>,
    #[serde(borrow)]
    pub refusal: Option<Text<'a>>,
    #[serde(borrow)]
    pub reasoning_content: Option<Text<'a>>,
    #[serde(borrow)]
    pub reasoning: Option<Text<'a>>,
    #[serde(borrow)]
    pub reasoning_details: Option<Vec<Detail<'a>>>,
    #[serde(borrow)]
    pub thinking_blocks: Option<Vec<Detail<'a>>>,
    #[serde(borrow)]
    pub tool_calls: Option<Vec<WireToolCall<'a>>>,
    #[serde(borrow)]
    pub function_call: Option<WireFunction<'a>>,
    #[serde(borrow)]
    pub audio: Option<WireAudio<'a>>,
    #[serde(borrow)]
    pub images: Option<Vec<WireImage<'a>>>,
    annotations: Option<Value>,
}

/// Mistral writes content as parts, thoughts among them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WirePart<'a> {
    #[serde(borrow)]
    pub text: Option<Text<'a>>,
    #[serde(borrow)]
    pub refusal: Option<Text<'a>>,
    #[serde(borrow)]
    pub thinking: Option<TextOr<'a, WireThinking<'a>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireThinking<'a> {
    #[serde(borrow)]
    text: Option<Text<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireToolCall<'a> {
    pub index: Option<f64>,
    #[serde(borrow)]
    pub id: Option<Text<'a>>,
    #[serde(borrow)]
    pub function: Option<WireFunction<'a>>,
    pub extra_content: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireFunction<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub arguments: Option<Embedded<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireAudio<'a> {
    #[serde(borrow)]
    pub id: Option<Text<'a>>,
    #[serde(borrow)]
    pub data: Option<Text<'a>>,
    #[serde(borrow)]
    pub transcript: Option<Text<'a>>,
    expires_at: Option<Value>,
}

/// OpenRouter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireImage<'a> {
    #[serde(borrow)]
    image_url: Option<WireUrl<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireUrl<'a> {
    #[serde(borrow)]
    url: Option<Text<'a>>,
}

impl WireThinking<'_> {
    fn words(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }
}

impl<'a> WirePart<'a> {
    /// The words of a thought.
    pub fn thought(&self) -> Option<String> {
        match self.thinking.as_ref()? {
            TextOr::Text(text) => Some(text.to_string()),
            TextOr::List(items) => Some(items.iter().map(WireThinking::words).collect()),
        }
    }
}

impl WireImage<'_> {
    /// Media type and base64.
    pub fn data(&self) -> Option<(&str, &str)> {
        let (media_type, base64) = self.url()?.strip_prefix("data:")?.split_once(";base64,")?;
        Some((media_type, base64))
    }

    fn url(&self) -> Option<&str> {
        self.image_url.as_ref()?.url.as_deref()
    }

    fn source(&self) -> Option<Source> {
        match self.data() {
            Some((media_type, base64)) => {
                Some(Source::Data { media_type: media_type.to_owned(), base64: base64.to_owned() })
            }
            None => Some(Source::Url(self.url()?.to_owned())),
        }
    }
}

pub fn read(body: &[u8]) -> Result<ChatAnswer, Failure> {
    let unreadable = |error: serde_json::Error| {
        Failure::new(FailureKind::Server, format!("the provider's answer is no answer: {error}"))
    };
    let wire: WireAnswer<'_> = serde_json::from_slice(body).map_err(unreadable)?;
    let choices = wire.choices.unwrap_or_default();
    let error = wire.error.as_ref().or(choices.iter().find_map(|choice| choice.error.as_ref()));
    if let Some(error) = error.filter(|error| !is_empty(error)) {
        return Err(failure::inside(error));
    }
    if choices.is_empty() {
        // Some say what is wrong without an `error` around it.
        return Err(match serde_json::from_slice::<Value>(body) {
            Ok(document) if document.get("message").is_some() || document.get("detail").is_some() => {
                failure::inside(&document)
            }
            _ => Failure::new(FailureKind::Server, "the provider's answer holds no choice"),
        });
    }
    let mut rest = Map::new();
    let mut keep = |path: String, value: Option<Value>| {
        if let Some(value) = value.filter(|value| !is_empty(value)) {
            rest.insert(path, value);
        }
    };
    let mut read = Vec::with_capacity(choices.len());
    for (index, mut choice) in choices.into_iter().enumerate() {
        let mut message = choice.message.take().unwrap_or_default();
        keep(format!("choices[{index}].logprobs"), choice.logprobs.take());
        keep(format!("choices[{index}].message.annotations"), message.annotations.take());
        if let Some(audio) = &mut message.audio {
            keep(format!("choices[{index}].message.audio.id"), audio.id.as_deref().map(Value::from));
            keep(format!("choices[{index}].message.audio.expires_at"), audio.expires_at.take());
        }
        read.push(read_choice(choice, message));
    }
    keep("service_tier".into(), wire.service_tier);
    keep("system_fingerprint".into(), wire.system_fingerprint);
    keep("citations".into(), wire.citations);
    keep("search_results".into(), wire.search_results);
    Ok(ChatAnswer {
        id: wire.id.map(Text::into_owned).unwrap_or_default(),
        model: wire.model.map(Text::into_owned).unwrap_or_default(),
        created: wire.created.map_or(0, |created| i64::try_from(created.0).unwrap_or_default()),
        choices: read,
        usage: wire.usage.map(|usage| usage.read()),
        rest,
    })
}

fn read_choice(choice: WireChoice<'_>, message: WireMessage<'_>) -> Choice {
    let details = message.reasoning_details.or(message.thinking_blocks).unwrap_or_default();
    let plain = message.reasoning_content.or(message.reasoning).map(Text::into_owned);
    let mut parts: Vec<Part> = thoughts::read(details, plain).into_iter().map(Part::Reasoning).collect();
    let text = |text: String| (!text.is_empty()).then_some(Part::Text { text, cache: None });
    match message.content {
        None => {}
        Some(TextOr::Text(content)) => parts.extend(text(content.into_owned())),
        Some(TextOr::List(items)) => {
            for item in items {
                if let Some(thought) = item.thought().filter(|thought| !thought.is_empty()) {
                    parts.push(Part::Reasoning(Thought { text: thought, ..Thought::default() }));
                }
                parts.extend(item.refusal.map(|text| Part::Refusal { text: text.into_owned() }));
                parts.extend(item.text.map(Text::into_owned).and_then(text));
            }
        }
    }
    parts.extend(message.refusal.filter(|text| !text.is_empty()).map(|text| Part::Refusal { text: text.into_owned() }));
    if let Some(audio) = message.audio {
        parts.extend(audio.transcript.map(Text::into_owned).and_then(text));
        parts.extend(audio.data.filter(|data| !data.is_empty()).map(|data| Part::Audio {
            source: Source::Data { media_type: audio_type(&data).to_owned(), base64: data.into_owned() },
        }));
    }
    let images = message.images.unwrap_or_default();
    parts.extend(images.iter().filter_map(WireImage::source).map(|source| Part::Image {
        source,
        detail: None,
        cache: None,
    }));
    let calls = message.tool_calls.unwrap_or_default();
    parts.extend(calls.into_iter().filter_map(read_call).map(Part::ToolCall));
    if let Some(function) = message.function_call {
        parts.extend(read_function(function, tool_ids::made_up()).map(Part::ToolCall));
    }
    let calls_seen = parts.iter().any(|part| matches!(part, Part::ToolCall(_)));
    let refused = parts.iter().any(|part| matches!(part, Part::Refusal { .. }));
    Choice {
        parts,
        stop: stop_of(choice.finish_reason.as_deref().unwrap_or_default(), calls_seen, refused),
        stop_sequence: choice.stop_reason.and_then(|reason| reason.as_str().map(str::to_owned)),
    }
}

fn read_call(call: WireToolCall<'_>) -> Option<ToolCall> {
    let id = call.id.map(Text::into_owned).filter(|id| !id.is_empty()).unwrap_or_else(tool_ids::made_up);
    let mut read = read_function(call.function?, id)?;
    if let Some(signature) = thought_signature(call.extra_content.as_ref()) {
        read.id = tool_ids::signed(&read.id, &signature);
        read.signature = Some(signature);
    }
    Some(read)
}

fn read_function(function: WireFunction<'_>, id: String) -> Option<ToolCall> {
    let name = function.name.filter(|name| !name.is_empty())?.into_owned();
    let arguments = function.arguments.map(Embedded::into_text).unwrap_or_default();
    Some(ToolCall { id, name, arguments, ..ToolCall::default() })
}

/// Whether an answer of another provider may be written with this field of it.
fn is_written(path: &str) -> bool {
    matches!(path, "service_tier" | "system_fingerprint" | "citations" | "search_results")
        || path.ends_with("].logprobs")
        || path.ends_with("].message.annotations")
        || path.ends_with("].message.audio.id")
        || path.ends_with("].message.audio.expires_at")
}

pub fn write(answer: &ChatAnswer, request: &ChatRequest, dropped: &mut Dropped) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    object(&mut out, |o| {
        match answer.id.is_empty() {
            true => o.set("id", &made_up("chatcmpl-")),
            false => o.set("id", &answer.id),
        }
        o.set("object", "chat.completion");
        o.set("created", &created_or_now(answer.created));
        o.set("model", if answer.model.is_empty() { &request.model } else { &answer.model });
        o.list("choices", |list| {
            for (index, choice) in answer.choices.iter().enumerate() {
                write_choice(answer, index, choice, request, list, dropped);
            }
        });
        if let Some(usage) = &answer.usage {
            usage::write(usage, o);
        }
        for (path, value) in &answer.rest {
            match path.contains('[') {
                false if is_written(path) => o.set(path, value),
                _ if !is_written(path) => dropped.add(path.clone()),
                _ => {}
            }
        }
    });
    out
}

fn write_choice(
    answer: &ChatAnswer,
    index: usize,
    choice: &Choice,
    request: &ChatRequest,
    list: &mut List<'_>,
    dropped: &mut Dropped,
) {
    let kept = |member: &str| match answer.rest.is_empty() {
        true => None,
        false => answer.rest.get(&format!("choices[{index}].{member}")),
    };
    let refused = choice.parts.iter().any(|part| matches!(part, Part::Refusal { .. }));
    list.object(|o| {
        o.set("index", &index);
        o.object("message", |o| write_message(choice, request, &kept, o, dropped));
        o.set("logprobs", &kept("logprobs"));
        o.set("finish_reason", finish_reason(choice.stop, refused, request.legacy_functions));
    });
    if choice.stop == Stop::Paused || choice.stop == Stop::Malformed {
        dropped.add(format!("choices[{index}].finish_reason"));
    }
}

fn write_message<'v>(
    choice: &Choice,
    request: &ChatRequest,
    kept: &impl Fn(&str) -> Option<&'v Value>,
    o: &mut Object<'_>,
    dropped: &mut Dropped,
) {
    let (mut texts, mut refusals, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut images, mut audio) = (Vec::new(), None);
    for part in &choice.parts {
        match part {
            Part::Text { text, .. } => texts.push(text.as_str()),
            Part::Refusal { text } => refusals.push(text.as_str()),
            Part::Reasoning(thought) => thoughts.push(thought),
            Part::ToolCall(call) => calls.push(call),
            Part::Image { source: source @ (Source::Data { .. } | Source::Url(_)), .. } => images.push(source),
            Part::Audio { source: Source::Data { base64, .. } } => audio = Some(base64),
            _ => dropped.add("choices.message.content"),
        }
    }
    let written = |texts: &[&str]| (!texts.is_empty()).then(|| texts.concat());
    o.set("role", "assistant");
    match texts.as_slice() {
        [] => o.set("content", &None::<&str>),
        texts => o.set("content", &Joined(texts)),
    }
    o.set("refusal", &written(&refusals));
    let spoken: Vec<&str> =
        thoughts.iter().map(|thought| thought.text.as_str()).filter(|text| !text.is_empty()).collect();
    if !spoken.is_empty() {
        o.set("reasoning_content", &Joined(&spoken));
    }
    if thoughts.iter().any(|thought| thoughts::has_proof(thought)) {
        o.list("reasoning_details", |list| {
            for (index, thought) in thoughts.iter().enumerate() {
                thoughts::write(thought, index, list);
            }
        });
    }
    o.set_some("annotations", &kept("message.annotations"));
    if let Some(base64) = audio {
        o.object("audio", |o| {
            match kept("message.audio.id") {
                Some(id) => o.set("id", id),
                None => o.set("id", &made_up("audio_")),
            }
            o.set("data", base64);
            o.set("expires_at", &kept("message.audio.expires_at").and_then(Value::as_i64).unwrap_or_default());
            o.set("transcript", &Joined(&texts));
        });
    }
    if !images.is_empty() {
        o.list("images", |list| images.into_iter().for_each(|source| write_image(source, list)));
    }
    match calls.as_slice() {
        [] => {}
        [call, others @ ..] if request.legacy_functions => {
            o.object("function_call", |o| write_function(call, o));
            if !others.is_empty() {
                dropped.add("choices.message.tool_calls");
            }
        }
        calls => o.list("tool_calls", |list| {
            for call in calls {
                list.object(|o| {
                    o.set("id", &call.id);
                    o.set("type", "function");
                    o.object("function", |o| write_function(call, o));
                });
            }
        }),
    }
}

fn write_function(call: &ToolCall, o: &mut Object<'_>) {
    o.set("name", &call.name);
    // Callers parse it as JSON, which nothing is not.
    o.set("arguments", if call.arguments.trim().is_empty() { "{}" } else { &call.arguments });
}

/// As OpenRouter has it; OpenAI's answers hold no images.
pub fn write_image(source: &Source, list: &mut List<'_>) {
    list.object(|o| {
        o.set("type", "image_url");
        o.object("image_url", |o| match source {
            Source::Data { media_type, base64 } => o.set("url", &Joined(&data_url(media_type, base64))),
            Source::Url(url) | Source::File { id: url } => o.set("url", url),
        });
    });
}
