//! Writes a request for a provider.

use std::borrow::Cow;

use ring::digest;
use serde_json::Value;

use super::super::writing::{Joined, List, Object, data_url, object};
use super::thoughts;
use crate::ai::chat::{
    CacheMark, ChatRequest, Dropped, Effort, Message, OutputFormat, Part, Reasoning, Role, Source, Thought, Tool,
    ToolCall, ToolChoice, ToolResult,
};
use crate::ai::formats::Format;
use crate::ai::quirks::{Quirk, Quirks};
use crate::ai::tool_ids;

/// OpenAI refuses longer ids of tool calls.
const LONGEST_ID: usize = 40;

/// Fields that OpenAI's two dialects share by name and meaning.
const SHARED_WITH_RESPONSES: &[&str] = &[
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "top_logprobs",
];

pub fn write(request: &ChatRequest, model: &str, quirks: Quirks, dropped: &mut Dropped) -> Vec<u8> {
    let mut out = Vec::with_capacity(estimate(request));
    let mut writer = Writer { quirks, dropped };
    object(&mut out, |o| {
        o.set("model", model);
        o.list("messages", |list| {
            for (index, message) in request.messages.iter().enumerate() {
                writer.message(index, message, list);
            }
        });
        writer.tools(request, o);
        writer.settings(request, o);
        writer.output(request, o);
        if let Some(reasoning) = &request.reasoning {
            writer.reasoning(reasoning, o);
        }
        if request.stream {
            o.set("stream", &true);
            // Asked for whether the caller wants to know or not: what was used has to be counted.
            if !quirks.has(Quirk::NoStreamOptions) {
                o.object("stream_options", |o| o.set("include_usage", &true));
            }
        }
        writer.rest(request, o);
    });
    out
}

/// About as much as the texts take; growing while writing would copy them again.
fn estimate(request: &ChatRequest) -> usize {
    let of_part = |part: &Part| match part {
        Part::Text { text, .. } | Part::Refusal { text } => text.len(),
        Part::Image { source, .. }
        | Part::Document { source, .. }
        | Part::Audio { source }
        | Part::Video { source } => match source {
            Source::Data { base64, .. } => base64.len(),
            Source::Url(text) | Source::File { id: text } => text.len(),
        },
        Part::ToolCall(call) => call.arguments.len() + 64,
        Part::ToolResult(_) | Part::Reasoning(_) => 256,
    };
    let parts = request.messages.iter().flat_map(|message| &message.parts);
    512 + 512 * request.tools.len() + parts.map(|part| of_part(part) + 64).sum::<usize>()
}

struct Writer<'w> {
    quirks: Quirks,
    dropped: &'w mut Dropped,
}

impl Writer<'_> {
    fn message(&mut self, index: usize, message: &Message, list: &mut List<'_>) {
        match message.role {
            Role::System => self.parts_message("system", index, message.parts.iter(), list),
            Role::Assistant => self.assistant(index, &message.parts, list),
            Role::User => {
                let mut images = Vec::new();
                for part in &message.parts {
                    if let Part::ToolResult(result) = part {
                        self.tool_result(index, result, &mut images, list);
                    }
                }
                // A tool's message holds text only: what it shows comes with the user's message after it.
                let others = message.parts.iter().filter(|part| !matches!(part, Part::ToolResult(_)));
                let mut parts = images.into_iter().chain(others).peekable();
                if parts.peek().is_some() || message.parts.is_empty() {
                    self.parts_message("user", index, parts, list);
                }
            }
        }
    }

    fn parts_message<'p>(
        &mut self,
        role: &str,
        index: usize,
        parts: impl Iterator<Item = &'p Part>,
        list: &mut List<'_>,
    ) {
        list.object(|o| {
            o.set("role", role);
            self.content(index, parts, o);
        });
    }

    fn content<'p>(&mut self, index: usize, parts: impl Iterator<Item = &'p Part>, o: &mut Object<'_>) {
        let parts: Vec<&Part> = parts.collect();
        let marks = self.quirks.has(Quirk::CacheControl);
        let texts: Option<Vec<&str>> = parts.iter().map(|part| plain_text(part, marks)).collect();
        match texts.as_deref() {
            Some([]) => o.set("content", ""),
            Some([text]) => o.set("content", text),
            Some(texts) if self.quirks.has(Quirk::StringContent) => o.set("content", &texts.join("\n")),
            _ => {
                return o.list("content", |list| {
                    for (at, part) in parts.into_iter().enumerate() {
                        self.part(index, at, part, list);
                    }
                });
            }
        }
        for part in parts {
            if let Part::Text { cache: Some(_), .. } = part {
                self.dropped.add(format!("messages[{index}].cache_control"));
            }
        }
    }

    fn part(&mut self, index: usize, at: usize, part: &Part, list: &mut List<'_>) {
        let mut lost = || self.dropped.add(format!("messages[{index}].content[{at}]"));
        match part {
            Part::Text { text, cache } => list.object(|o| {
                o.set("type", "text");
                o.set("text", text);
                self.cache(index, cache, o);
            }),
            Part::Image { source: Source::File { .. }, .. } => lost(),
            Part::Image { source, detail, cache } => list.object(|o| {
                o.set("type", "image_url");
                o.object("image_url", |o| {
                    url(source, o);
                    o.set_some("detail", detail);
                });
                self.cache(index, cache, o);
            }),
            Part::Document { source: Source::Url(_), .. } => lost(),
            Part::Document { source, name, cache } => list.object(|o| {
                o.set("type", "file");
                o.object("file", |o| match source {
                    Source::Data { media_type, base64 } => {
                        o.set("filename", name.as_deref().unwrap_or("document.pdf"));
                        o.set("file_data", &Joined(&data_url(media_type, base64)));
                    }
                    Source::File { id } | Source::Url(id) => o.set("file_id", id),
                });
                self.cache(index, cache, o);
            }),
            Part::Audio { source: Source::Data { media_type, base64 } } => list.object(|o| {
                o.set("type", "input_audio");
                o.object("input_audio", |o| {
                    o.set("data", base64);
                    o.set("format", format_of_audio(media_type));
                });
            }),
            Part::Video { source: source @ (Source::Url(_) | Source::Data { .. }) }
                if self.quirks.has(Quirk::VideoParts) =>
            {
                list.object(|o| {
                    o.set("type", "video_url");
                    o.object("video_url", |o| url(source, o));
                });
            }
            Part::Refusal { text } => list.object(|o| {
                o.set("type", "text");
                o.set("text", text);
            }),
            Part::Audio { .. } | Part::Video { .. } | Part::ToolCall(_) | Part::ToolResult(_) | Part::Reasoning(_) => {
                lost()
            }
        }
    }

    fn cache(&mut self, index: usize, mark: &Option<CacheMark>, o: &mut Object<'_>) {
        let Some(mark) = mark else { return };
        if !self.quirks.has(Quirk::CacheControl) {
            return self.dropped.add(format!("messages[{index}].cache_control"));
        }
        o.object("cache_control", |o| {
            o.set("type", "ephemeral");
            if mark.long {
                o.set("ttl", "1h");
            }
        });
    }

    fn assistant(&mut self, index: usize, parts: &[Part], list: &mut List<'_>) {
        let (mut texts, mut calls, mut refusal, mut said) = (Vec::new(), Vec::new(), None, Vec::new());
        let mut thoughts: Vec<&Thought> = Vec::new();
        let mut marked = false;
        for (at, part) in parts.iter().enumerate() {
            match part {
                Part::Text { text, cache } => {
                    marked |= cache.is_some();
                    texts.push(part);
                    said.push(text.as_str());
                }
                Part::ToolCall(call) => calls.push(call),
                Part::Reasoning(thought) => thoughts.push(thought),
                Part::Refusal { text } => refusal = Some(text),
                Part::Audio { source: Source::File { .. } } => {}
                _ => self.dropped.add(format!("messages[{index}].content[{at}]")),
            }
        }
        list.object(|o| {
            o.set("role", "assistant");
            match said.as_slice() {
                [] if calls.is_empty() && refusal.is_none() => o.set("content", ""),
                [] => o.set("content", &None::<&str>),
                _ if marked && self.quirks.has(Quirk::CacheControl) => self.content(index, texts.into_iter(), o),
                texts => {
                    o.set("content", &Joined(texts));
                    if marked {
                        self.dropped.add(format!("messages[{index}].cache_control"));
                    }
                }
            }
            o.set_some("refusal", &refusal);
            for part in parts {
                if let Part::Audio { source: Source::File { id } } = part {
                    o.object("audio", |o| o.set("id", id));
                }
            }
            if !thoughts.is_empty() {
                self.thoughts(index, &thoughts, o);
            }
            if !calls.is_empty() {
                o.list("tool_calls", |list| {
                    for call in calls {
                        self.tool_call(index, call, list);
                    }
                });
            }
        });
    }

    fn thoughts(&mut self, index: usize, thoughts: &[&Thought], o: &mut Object<'_>) {
        if self.quirks.has(Quirk::ReasoningDetails) {
            return o.list("reasoning_details", |list| {
                for (at, thought) in thoughts.iter().enumerate() {
                    thoughts::write(thought, at, list);
                }
            });
        }
        if !self.quirks.has(Quirk::ReasoningContent) {
            return self.dropped.add(format!("messages[{index}].reasoning"));
        }
        let texts: Vec<&str> = thoughts.iter().map(|thought| thought.text.as_str()).collect();
        o.set("reasoning_content", &Joined(&texts));
        if thoughts.iter().any(|thought| thoughts::has_proof(thought)) {
            self.dropped.add(format!("messages[{index}].reasoning.signature"));
        }
    }

    fn tool_call(&mut self, index: usize, call: &ToolCall, list: &mut List<'_>) {
        list.object(|o| {
            o.set("id", &self.tool_id(&call.id));
            o.set("type", "function");
            o.object("function", |o| {
                o.set("name", &call.name);
                o.set("arguments", if call.arguments.trim().is_empty() { "{}" } else { &call.arguments });
            });
            match &call.signature {
                Some(signature) if self.quirks.has(Quirk::ThoughtSignatures) => o.object("extra_content", |o| {
                    o.object("google", |o| o.set("thought_signature", signature));
                }),
                // It is another vendor's, and is in the id for when that one is asked again.
                _ => {}
            }
            if call.cache.is_some() {
                self.dropped.add(format!("messages[{index}].cache_control"));
            }
        });
    }

    fn tool_result<'p>(
        &mut self,
        index: usize,
        result: &'p ToolResult,
        shown: &mut Vec<&'p Part>,
        list: &mut List<'_>,
    ) {
        let mut texts = Vec::new();
        for part in &result.content {
            match part {
                Part::Text { text, .. } => texts.push(text.as_str()),
                other => shown.push(other),
            }
        }
        list.object(|o| {
            o.set("role", "tool");
            o.set("tool_call_id", &self.tool_id(&result.id));
            match texts.as_slice() {
                [text] => o.set("content", text),
                texts => o.set("content", &texts.join("\n")),
            }
            self.cache(index, &result.cache, o);
        });
        if result.is_error {
            self.dropped.add(format!("messages[{index}].is_error"));
        }
    }

    /// The id as the provider takes it: the same for a call and its result, whatever made it.
    fn tool_id<'i>(&self, id: &'i str) -> Cow<'i, str> {
        let bare = tool_ids::bare(id);
        if self.quirks.has(Quirk::ShortToolIds) {
            let fits = bare.len() == 9 && bare.bytes().all(|byte| byte.is_ascii_alphanumeric());
            return if fits { bare.into() } else { digest_of(bare, 9).into() };
        }
        match bare.len() > LONGEST_ID {
            true => format!("call_{}", digest_of(bare, 24)).into(),
            false => bare.into(),
        }
    }

    fn tools(&mut self, request: &ChatRequest, o: &mut Object<'_>) {
        if request.tools.is_empty() {
            return;
        }
        o.list("tools", |list| {
            for (index, tool) in request.tools.iter().enumerate() {
                self.tool(index, tool, list);
            }
        });
        match &request.tool_choice {
            None => {}
            Some(ToolChoice::Auto) => o.set("tool_choice", "auto"),
            Some(ToolChoice::None) => o.set("tool_choice", "none"),
            Some(ToolChoice::Any) if self.quirks.has(Quirk::NoRequiredTool) => self.dropped.add("tool_choice"),
            Some(ToolChoice::Any) => o.set("tool_choice", "required"),
            Some(ToolChoice::Tool(name)) => o.object("tool_choice", |o| {
                o.set("type", "function");
                o.object("function", |o| o.set("name", name));
            }),
        }
        match request.parallel_tools {
            Some(false) if self.quirks.has(Quirk::NoParallelToolCalls) => self.dropped.add("parallel_tool_calls"),
            Some(parallel) if !self.quirks.has(Quirk::NoParallelToolCalls) => o.set("parallel_tool_calls", &parallel),
            _ => {}
        }
    }

    fn tool(&mut self, index: usize, tool: &Tool, list: &mut List<'_>) {
        list.object(|o| {
            o.set("type", "function");
            o.object("function", |o| {
                o.set("name", &tool.name);
                o.set_some("description", &tool.description);
                o.set_some("parameters", &tool.parameters);
                o.set_some("strict", &tool.strict);
            });
            match &tool.cache {
                Some(_) if !self.quirks.has(Quirk::CacheControl) => {
                    self.dropped.add(format!("tools[{index}].cache_control"));
                }
                mark => self.cache(index, mark, o),
            }
        });
    }

    fn settings(&mut self, request: &ChatRequest, o: &mut Object<'_>) {
        let limit = if self.quirks.has(Quirk::MaxTokens) { "max_tokens" } else { "max_completion_tokens" };
        o.set_some(limit, &request.max_tokens);
        o.set_some("temperature", &request.temperature);
        o.set_some("top_p", &request.top_p);
        match request.top_k {
            Some(_) if !self.quirks.has(Quirk::TopK) => self.dropped.add("top_k"),
            top_k => o.set_some("top_k", &top_k),
        }
        o.set_some("frequency_penalty", &request.frequency_penalty);
        o.set_some("presence_penalty", &request.presence_penalty);
        let seed = if self.quirks.has(Quirk::RandomSeed) { "random_seed" } else { "seed" };
        o.set_some(seed, &request.seed);
        match request.stop.as_slice() {
            [] => {}
            [text] => o.set("stop", text),
            texts => o.set("stop", texts),
        }
        o.set_some("n", &request.choices);
        match &request.user {
            Some(_) if self.quirks.has(Quirk::NoUser) => self.dropped.add("user"),
            user => o.set_some("user", user),
        }
    }

    fn output(&mut self, request: &ChatRequest, o: &mut Object<'_>) {
        match &request.output {
            None => {}
            Some(OutputFormat::Json) => o.object("response_format", |o| o.set("type", "json_object")),
            Some(OutputFormat::Schema { .. }) if self.quirks.has(Quirk::NoJsonSchema) => {
                self.dropped.add("response_format.json_schema");
                o.object("response_format", |o| o.set("type", "json_object"));
            }
            Some(OutputFormat::Schema { name, description, schema, strict }) => o.object("response_format", |o| {
                o.set("type", "json_schema");
                o.object("json_schema", |o| {
                    o.set("name", if name.is_empty() { "answer" } else { name });
                    o.set_some("description", description);
                    o.set("schema", schema);
                    o.set_some("strict", strict);
                });
            }),
        }
    }

    fn reasoning(&mut self, reasoning: &Reasoning, o: &mut Object<'_>) {
        if self.quirks.has(Quirk::ReasoningDetails) {
            return o.object("reasoning", |o| {
                match (reasoning.effort, reasoning.budget) {
                    (_, Some(budget)) => o.set("max_tokens", &budget),
                    (Some(Effort::None), None) => o.set("enabled", &false),
                    (Some(effort), None) => o.set("effort", word(effort)),
                    (None, None) => o.set("enabled", &true),
                }
                o.set_some("exclude", &reasoning.shown.map(|shown| !shown));
            });
        }
        let effort = reasoning.effort.or(reasoning.budget.map(effort_of_budget));
        match effort {
            None => {}
            Some(_) if self.quirks.has(Quirk::NoReasoningEffort) => self.dropped.add("reasoning_effort"),
            Some(effort) => o.set("reasoning_effort", word(effort)),
        }
    }

    fn rest(&mut self, request: &ChatRequest, o: &mut Object<'_>) {
        for (name, value) in &request.rest {
            let carried = match request.dialect {
                // A path leads into something that was read, and is written anew.
                Some(Format::OpenAiChat) => !name.contains(['.', '[']),
                Some(Format::OpenAiResponses) => SHARED_WITH_RESPONSES.contains(&name.as_str()),
                _ => false,
            };
            match carried && *value != Value::Null {
                true => o.set(name, value),
                false => self.dropped.add(name.clone()),
            }
        }
    }
}

/// The text of a part that is nothing but a text.
fn plain_text(part: &Part, marks: bool) -> Option<&str> {
    match part {
        Part::Text { text, cache } if cache.is_none() || !marks => Some(text),
        _ => None,
    }
}

fn url(source: &Source, o: &mut Object<'_>) {
    match source {
        Source::Data { media_type, base64 } => o.set("url", &Joined(&data_url(media_type, base64))),
        Source::Url(url) | Source::File { id: url } => o.set("url", url),
    }
}

fn format_of_audio(media_type: &str) -> &str {
    match media_type {
        "audio/mpeg" | "audio/mp3" => "mp3",
        "audio/wav" | "audio/x-wav" | "audio/wave" | "audio/vnd.wave" => "wav",
        other => other.strip_prefix("audio/").unwrap_or(other),
    }
}

fn word(effort: Effort) -> &'static str {
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

/// OpenAI knows no budgets. The borders lie between the budgets that are usual for an effort: 1, 4, 16 and 32 thousand.
fn effort_of_budget(budget: u64) -> Effort {
    match budget {
        0 => Effort::None,
        1..=2048 => Effort::Low,
        2049..=8192 => Effort::Medium,
        8193..=24576 => Effort::High,
        _ => Effort::ExtraHigh,
    }
}

/// The first letters and digits of a text's digest: an id that is the same for the same text, without state.
fn digest_of(text: &str, length: usize) -> String {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(length).map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect()
}
