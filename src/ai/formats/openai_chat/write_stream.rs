//! Writes a stream for a caller.

use std::mem;

use serde::Serialize;

use super::super::made_up;
use super::super::writing::{Object, object};
use super::{answer, created_or_now, failure, finish_reason, usage};
use crate::ai::chat::{ChatEvent, ChatRequest, PartKind, Source, Usage};
use crate::ai::formats::EventEncoder;
use crate::ai::stream::sse;

/// OpenAI's client stops reading at it.
const DONE: &[u8] = b"[DONE]";

pub struct Encoder {
    /// The model that was asked for, where the provider does not say which one answers.
    asked: String,
    with_usage: bool,
    legacy: bool,
    /// `data: {"id":…,"created":…,"model":…`: the same in every chunk.
    head: Vec<u8>,
    parts: Vec<Part>,
    choices: Vec<Choice>,
    usage: Option<Usage>,
    ended: bool,
}

struct Part {
    choice: u32,
    kind: PartKind,
    /// Of calls, the place among the calls of the choice.
    call: usize,
    /// Of images, what has come.
    base64: String,
    begun: bool,
}

#[derive(Default)]
struct Choice {
    index: u32,
    calls: usize,
    refused: bool,
    thoughts: usize,
}

impl Encoder {
    pub fn new(request: &ChatRequest) -> Encoder {
        Encoder {
            asked: request.model.clone(),
            with_usage: request.stream_usage,
            legacy: request.legacy_functions,
            head: Vec::new(),
            parts: Vec::new(),
            choices: Vec::new(),
            usage: None,
            ended: false,
        }
    }

    fn begin(&mut self, id: &str, model: &str, created: i64) {
        self.head.clear();
        self.head.extend_from_slice(b"data: ");
        object(&mut self.head, |o| {
            match id.is_empty() {
                true => o.set("id", &made_up("chatcmpl-")),
                false => o.set("id", id),
            }
            o.set("object", "chat.completion.chunk");
            o.set("created", &created_or_now(created));
            o.set("model", if model.is_empty() { self.asked.as_str() } else { model });
        });
        // The rest of the chunk goes on where the object ends.
        self.head.pop();
    }

    fn chunk(&self, choice: u32, finish: Option<&str>, out: &mut Vec<u8>, delta: impl FnOnce(&mut Object<'_>)) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b",\"choices\":[{\"index\":");
        out.extend_from_slice(itoa::Buffer::new().format(choice).as_bytes());
        out.extend_from_slice(b",\"delta\":");
        object(out, delta);
        out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":");
        match finish {
            Some(word) => {
                out.push(b'"');
                out.extend_from_slice(word.as_bytes());
                out.push(b'"');
            }
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(match self.with_usage {
            true => b"}],\"usage\":null}\n\n",
            false => b"}]}\n\n",
        });
    }

    fn member<T: Serialize + ?Sized>(&self, choice: u32, name: &str, value: &T, out: &mut Vec<u8>) {
        self.chunk(choice, None, out, |o| o.set(name, value));
    }

    /// The choice's state; its first chunk tells the role.
    fn choice(&mut self, index: u32, out: &mut Vec<u8>) -> usize {
        if let Some(at) = self.choices.iter().position(|choice| choice.index == index) {
            return at;
        }
        self.chunk(index, None, out, |o| {
            o.set("role", "assistant");
            o.set("content", "");
            o.set("refusal", &None::<&str>);
        });
        self.choices.push(Choice { index, ..Choice::default() });
        self.choices.len() - 1
    }

    fn part_start(&mut self, choice: u32, kind: &PartKind, out: &mut Vec<u8>) {
        let at = self.choice(choice, out);
        let Some(state) = self.choices.get_mut(at) else { return };
        let call = state.calls;
        match kind {
            PartKind::ToolCall { .. } => state.calls += 1,
            PartKind::Refusal => state.refused = true,
            PartKind::Reasoning | PartKind::Encrypted(_) => state.thoughts += 1,
            _ => {}
        }
        let thought = state.thoughts;
        match kind {
            PartKind::ToolCall { id, name } => self.call_start(choice, call, id, name, out),
            PartKind::Encrypted(data) => self.detail(choice, thought, "reasoning.encrypted", "data", data, out),
            _ => {}
        }
        self.parts.push(Part { choice, kind: kind.clone(), call, base64: String::new(), begun: false });
    }

    fn call_start(&self, choice: u32, call: usize, id: &str, name: &str, out: &mut Vec<u8>) {
        let function = |o: &mut Object<'_>| {
            o.set("name", name);
            o.set("arguments", "");
        };
        match (self.legacy, call) {
            (true, 0) => self.chunk(choice, None, out, |o| o.object("function_call", function)),
            // There is room for one call only.
            (true, _) => {}
            (false, _) => self.chunk(choice, None, out, |o| {
                o.list("tool_calls", |list| {
                    list.object(|o| {
                        o.set("index", &call);
                        o.set("id", id);
                        o.set("type", "function");
                        o.object("function", function);
                    });
                });
            }),
        }
    }

    fn arguments(&self, choice: u32, call: usize, text: &str, out: &mut Vec<u8>) {
        match (self.legacy, call) {
            (true, 0) => self.chunk(choice, None, out, |o| o.object("function_call", |o| o.set("arguments", text))),
            (true, _) => {}
            (false, _) => self.chunk(choice, None, out, |o| {
                o.list("tool_calls", |list| {
                    list.object(|o| {
                        o.set("index", &call);
                        o.object("function", |o| o.set("arguments", text));
                    });
                });
            }),
        }
    }

    fn detail(&self, choice: u32, thought: usize, kind: &str, name: &str, text: &str, out: &mut Vec<u8>) {
        self.chunk(choice, None, out, |o| {
            o.list("reasoning_details", |list| {
                list.object(|o| {
                    o.set("type", kind);
                    o.set(name, text);
                    o.set("index", &thought.saturating_sub(1));
                });
            });
        });
    }

    fn delta(&mut self, part: u32, text: &str, out: &mut Vec<u8>) {
        let Some(state) = self.parts.get_mut(part as usize) else { return };
        let first = !mem::replace(&mut state.begun, true);
        let (choice, call) = (state.choice, state.call);
        match &state.kind {
            PartKind::Text => self.member(choice, "content", text, out),
            PartKind::Refusal => self.member(choice, "refusal", text, out),
            PartKind::Reasoning => self.member(choice, "reasoning_content", text, out),
            PartKind::ToolCall { .. } => self.arguments(choice, call, text, out),
            PartKind::Image { .. } => state.base64.push_str(text),
            PartKind::Audio { .. } => self.chunk(choice, None, out, |o| {
                o.object("audio", |o| {
                    if first {
                        o.set("id", &made_up("audio_"));
                    }
                    o.set("data", text);
                });
            }),
            PartKind::Encrypted(_) => {}
        }
    }

    fn part_end(&mut self, part: u32, out: &mut Vec<u8>) {
        let Some(state) = self.parts.get_mut(part as usize) else { return };
        let base64 = mem::take(&mut state.base64);
        let (choice, call, begun) = (state.choice, state.call, state.begun);
        match &state.kind {
            // Callers parse the arguments as JSON, which nothing is not.
            PartKind::ToolCall { .. } if !begun => self.arguments(choice, call, "{}", out),
            PartKind::Image { media_type } => {
                let source = Source::Data { media_type: media_type.clone(), base64 };
                self.chunk(choice, None, out, |o| o.list("images", |list| answer::write_image(&source, list)));
            }
            _ => {}
        }
    }

    fn signature(&self, part: u32, signature: &str, out: &mut Vec<u8>) {
        // That of a call is in its id.
        let Some(Part { choice, kind: PartKind::Reasoning, .. }) = self.parts.get(part as usize) else { return };
        let thoughts = self.choices.iter().find(|state| state.index == *choice).map_or(0, |state| state.thoughts);
        self.detail(*choice, thoughts, "reasoning.text", "signature", signature, out);
    }

    fn end(&self, out: &mut Vec<u8>) {
        if let Some(usage) = self.usage.as_ref().filter(|_| self.with_usage) {
            out.extend_from_slice(&self.head);
            out.extend_from_slice(b",\"choices\":[],");
            let mut members = Vec::with_capacity(256);
            object(&mut members, |o| usage::write(usage, o));
            out.extend_from_slice(members.get(1..).unwrap_or_default());
            out.extend_from_slice(b"\n\n");
        }
        sse::write(None, DONE, out);
    }
}

impl EventEncoder for Encoder {
    fn encode(&mut self, event: &ChatEvent, out: &mut Vec<u8>) {
        if self.ended {
            return;
        }
        match event {
            ChatEvent::Start { id, model, created } => self.begin(id, model, *created),
            ChatEvent::PartStart { choice, kind, .. } => self.part_start(*choice, kind, out),
            ChatEvent::Delta { part, text } => self.delta(*part, text, out),
            ChatEvent::Signature { part, signature } => self.signature(*part, signature, out),
            ChatEvent::PartEnd { part } => self.part_end(*part, out),
            ChatEvent::Stop { choice, stop, .. } => {
                let at = self.choice(*choice, out);
                let refused = self.choices.get(at).is_some_and(|choice| choice.refused);
                self.chunk(*choice, Some(finish_reason(*stop, refused, self.legacy)), out, |_| {});
            }
            ChatEvent::Usage(usage) => self.usage.get_or_insert_default().absorb(usage),
            ChatEvent::End => {
                self.ended = true;
                self.end(out);
            }
            ChatEvent::Error(failure) => {
                self.ended = true;
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(&failure::write(failure));
                out.extend_from_slice(b"\n\n");
            }
        }
    }
}
