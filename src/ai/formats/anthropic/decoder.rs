//! Reads a provider's stream: `message_start`, blocks, `message_delta`, `message_stop`.
//!
//! What a well-behaved provider always sends is not insisted on where its absence leaves no doubt: names of events, the start
//! of a block of text, `message_stop` after a stop reason. A stream that ends without a stop reason has broken off.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::{self, StopDetails};
use super::failure::ErrorObject;
use super::usage::Usage;
use crate::ai::chat::{ChatEvent, Failure, FailureKind, PartKind, Stop};
use crate::ai::formats::{EventDecoder, bedrock, tolerant};
use crate::ai::stream::event_stream::EXCEPTION;
use crate::ai::stream::{Frame, reframe};

/// Blocks that are open at one time. Real providers open one; a hostile one opens no more than it takes to look through.
const MOST_OPEN: usize = 256;

#[derive(Default)]
pub(super) struct Decoder {
    started: bool,
    /// `End` or `Error` was told: nothing counts any more.
    ended: bool,
    stopped: bool,
    usage: Usage,
    /// Blocks that have begun and not stopped; rarely more than one.
    open: Vec<Open>,
    parts: u32,
}

struct Open {
    index: u64,
    /// `None` for blocks that the neutral form has no part for.
    part: Option<u32>,
}

/// An event of any type.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Event<'e> {
    #[serde(rename = "type", borrow, deserialize_with = "tolerant::text")]
    kind: Option<Cow<'e, str>>,
    message: Option<Start>,
    #[serde(deserialize_with = "tolerant::count")]
    index: Option<u64>,
    #[serde(borrow)]
    content_block: Option<Block<'e>>,
    #[serde(borrow)]
    delta: Option<Delta<'e>>,
    usage: Option<Usage>,
    #[serde(borrow)]
    error: Option<ErrorObject<'e>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Start {
    id: Option<String>,
    model: Option<String>,
    usage: Option<Usage>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Block<'e> {
    #[serde(rename = "type", borrow, deserialize_with = "tolerant::text")]
    kind: Option<Cow<'e, str>>,
    id: Option<String>,
    name: Option<String>,
    text: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    data: Option<String>,
    #[serde(borrow, deserialize_with = "tolerant::raw")]
    input: Option<Cow<'e, RawValue>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Delta<'e> {
    #[serde(rename = "type", borrow, deserialize_with = "tolerant::text")]
    kind: Option<Cow<'e, str>>,
    text: Option<String>,
    partial_json: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    stop_reason: Option<Cow<'e, str>>,
    stop_sequence: Option<String>,
    stop_details: Option<StopDetails>,
}

impl EventDecoder for Decoder {
    fn decode(&mut self, frame: &Frame<'_>, events: &mut Vec<ChatEvent>) {
        if self.ended {
            return;
        }
        match frame.event {
            Some(reframe::WRAPPED) => match reframe::unwrapped(frame.data) {
                Some(event) => self.event(None, &event, events),
                None => self.unreadable(events),
            },
            Some(name) if name.starts_with(EXCEPTION) => {
                self.fail(bedrock::exception(&name[EXCEPTION.len()..], frame.data), events);
            }
            name => self.event(name, frame.data, events),
        }
    }

    fn finish(&mut self, events: &mut Vec<ChatEvent>) {
        if self.ended {
            return;
        }
        match self.stopped {
            true => self.end(events),
            false => {
                let message = "The provider's stream broke off before the answer was complete.";
                self.fail(Failure::new(FailureKind::Server, message), events);
            }
        }
    }
}

impl Decoder {
    fn event(&mut self, name: Option<&str>, data: &[u8], events: &mut Vec<ChatEvent>) {
        // Some hosts end as OpenAI does.
        if data == b"[DONE]" {
            return;
        }
        let Ok(event) = serde_json::from_slice::<Event<'_>>(data) else {
            return self.unreadable(events);
        };
        match event.kind.as_deref().or(name).unwrap_or_default() {
            "message_start" => self.start(event.message.unwrap_or_default(), events),
            "content_block_start" => self.block_start(event, events),
            "content_block_delta" => self.block_delta(event, events),
            "content_block_stop" => {
                let index = event.index.unwrap_or_default();
                if let Some(place) = self.open.iter().position(|open| open.index == index) {
                    self.close(place, events);
                }
            }
            "message_delta" => self.message_delta(event, events),
            "message_stop" => self.end(events),
            "error" => {
                let failure = event.error.unwrap_or_default().failure(FailureKind::Server);
                self.fail(failure, events);
            }
            // `ping`, and what is yet to be invented.
            _ => {}
        }
    }

    fn start(&mut self, message: Start, events: &mut Vec<ChatEvent>) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        events.push(ChatEvent::Start {
            id: message.id.unwrap_or_default(),
            model: message.model.unwrap_or_default(),
            created: 0,
        });
        self.count(message.usage, events);
    }

    /// Tells the start if the provider has not.
    fn begin(&mut self, events: &mut Vec<ChatEvent>) {
        if !self.started {
            self.start(Start::default(), events);
        }
    }

    fn block_start(&mut self, event: Event<'_>, events: &mut Vec<ChatEvent>) {
        self.begin(events);
        let (index, block) = (event.index.unwrap_or_default(), event.content_block.unwrap_or_default());
        let same = self.open.iter().position(|open| open.index == index);
        if let Some(place) = same.or((self.open.len() >= MOST_OPEN).then_some(0)) {
            self.close(place, events);
        }
        let (kind, text) = match block.kind.as_deref().unwrap_or_default() {
            "text" => (PartKind::Text, block.text),
            "thinking" => (PartKind::Reasoning, block.thinking),
            "redacted_thinking" => (PartKind::Encrypted(block.data.unwrap_or_default()), None),
            "tool_use" => {
                let kind =
                    PartKind::ToolCall { id: block.id.unwrap_or_default(), name: block.name.unwrap_or_default() };
                // Empty, since the arguments follow; some send them whole.
                let input = block.input.map(|input| input.get().to_owned());
                (kind, input.filter(|input| input.trim_start_matches(['{', ' ', '\n']) != "}"))
            }
            // Tools that run at Anthropic: callers of other dialects cannot have asked for them.
            _ => return self.open.push(Open { index, part: None }),
        };
        let part = self.open(index, kind, events);
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            events.push(ChatEvent::Delta { part, text });
        }
        if let Some(signature) = block.signature.filter(|signature| !signature.is_empty()) {
            events.push(ChatEvent::Signature { part, signature });
        }
    }

    fn open(&mut self, index: u64, kind: PartKind, events: &mut Vec<ChatEvent>) -> u32 {
        let part = self.parts;
        self.parts += 1;
        self.open.push(Open { index, part: Some(part) });
        events.push(ChatEvent::PartStart { part, choice: 0, kind });
        part
    }

    fn block_delta(&mut self, event: Event<'_>, events: &mut Vec<ChatEvent>) {
        self.begin(events);
        let (index, delta) = (event.index.unwrap_or_default(), event.delta.unwrap_or_default());
        let known = self.open.iter().find(|open| open.index == index).map(|open| open.part);
        let part = match (known, delta.kind.as_deref()) {
            (Some(Some(part)), _) => part,
            (None, Some("text_delta")) => self.open(index, PartKind::Text, events),
            (None, Some("thinking_delta")) => self.open(index, PartKind::Reasoning, events),
            _ => return,
        };
        let text = match delta.kind.as_deref() {
            Some("text_delta") => delta.text,
            Some("input_json_delta") => delta.partial_json,
            Some("thinking_delta") => delta.thinking,
            Some("signature_delta") => {
                let signature = delta.signature.unwrap_or_default();
                events.push(ChatEvent::Signature { part, signature });
                return;
            }
            _ => None,
        };
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            events.push(ChatEvent::Delta { part, text });
        }
    }

    fn close(&mut self, place: usize, events: &mut Vec<ChatEvent>) {
        if let Some(part) = self.open.remove(place).part {
            events.push(ChatEvent::PartEnd { part });
        }
    }

    fn message_delta(&mut self, event: Event<'_>, events: &mut Vec<ChatEvent>) {
        self.begin(events);
        self.count(event.usage, events);
        let delta = event.delta.unwrap_or_default();
        let Some(reason) = delta.stop_reason else { return };
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        self.close_all(events);
        if let Some(text) = delta.stop_details.and_then(|details| details.explanation).filter(|text| !text.is_empty()) {
            let part = self.open(u64::MAX, PartKind::Refusal, events);
            events.push(ChatEvent::Delta { part, text });
            self.close_all(events);
        }
        let stop = answer::stop(&reason);
        events.push(ChatEvent::Stop { choice: 0, stop, stop_sequence: delta.stop_sequence });
    }

    fn count(&mut self, usage: Option<Usage>, events: &mut Vec<ChatEvent>) {
        if let Some(usage) = usage {
            self.usage.update(usage);
            events.push(ChatEvent::Usage(self.usage.neutral()));
        }
    }

    fn close_all(&mut self, events: &mut Vec<ChatEvent>) {
        while !self.open.is_empty() {
            self.close(0, events);
        }
    }

    fn end(&mut self, events: &mut Vec<ChatEvent>) {
        self.begin(events);
        self.close_all(events);
        if !std::mem::replace(&mut self.stopped, true) {
            events.push(ChatEvent::Stop { choice: 0, stop: Stop::End, stop_sequence: None });
        }
        self.ended = true;
        events.push(ChatEvent::End);
    }

    fn unreadable(&mut self, events: &mut Vec<ChatEvent>) {
        self.fail(Failure::new(FailureKind::Server, "The provider sent an event that cannot be read."), events);
    }

    fn fail(&mut self, failure: Failure, events: &mut Vec<ChatEvent>) {
        self.ended = true;
        events.push(ChatEvent::Error(failure));
    }
}
