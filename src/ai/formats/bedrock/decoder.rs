//! Reads ConverseStream: `messageStart`, blocks, `messageStop`, and `metadata` with the usage last.
//!
//! Blocks of text and of thought have no start of their own: their first delta is it.

use serde::Deserialize;

use super::answer::{self, TokenUsage};
use super::failure;
use crate::ai::chat::{ChatEvent, Failure, FailureKind, PartKind};
use crate::ai::formats::{EventDecoder, tolerant};
use crate::ai::stream::Frame;
use crate::ai::stream::event_stream::EXCEPTION;

/// Blocks that are open at one time. Real providers open one; a hostile one opens no more than it takes to look through.
const MOST_OPEN: usize = 256;

#[derive(Default)]
pub(super) struct Decoder {
    started: bool,
    /// `End` or `Error` was told: nothing counts any more.
    ended: bool,
    stopped: bool,
    open: Vec<Open>,
    parts: u32,
}

struct Open {
    index: u64,
    part: u32,
}

/// An event of any type, whose name the framing tells.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Event {
    #[serde(deserialize_with = "tolerant::count")]
    content_block_index: Option<u64>,
    start: Option<Start>,
    delta: Option<Delta>,
    stop_reason: Option<String>,
    usage: Option<TokenUsage>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Start {
    tool_use: Option<ToolUseStart>,
    image: Option<ImageStart>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ToolUseStart {
    tool_use_id: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ImageStart {
    format: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Delta {
    text: Option<String>,
    tool_use: Option<ToolUseDelta>,
    reasoning_content: Option<ReasoningDelta>,
    image: Option<ImageDelta>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ToolUseDelta {
    input: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ReasoningDelta {
    text: Option<String>,
    signature: Option<String>,
    redacted_content: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ImageDelta {
    source: Option<ImageSource>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ImageSource {
    bytes: Option<String>,
}

impl EventDecoder for Decoder {
    fn decode(&mut self, frame: &Frame<'_>, events: &mut Vec<ChatEvent>) {
        let name = frame.event.unwrap_or_default();
        if self.ended {
            return;
        }
        if let Some(name) = name.strip_prefix(EXCEPTION) {
            return self.fail(failure::exception(name, frame.data), events);
        }
        let Ok(event) = serde_json::from_slice::<Event>(frame.data) else {
            let message = "The provider sent an event that cannot be read.";
            return self.fail(Failure::new(FailureKind::Server, message), events);
        };
        match name {
            "messageStart" => self.begin(events),
            "contentBlockStart" => self.block_start(event, events),
            "contentBlockDelta" => self.block_delta(event, events),
            "contentBlockStop" => {
                let index = event.content_block_index.unwrap_or_default();
                if let Some(place) = self.open.iter().position(|open| open.index == index) {
                    self.close(place, events);
                }
            }
            "messageStop" => {
                self.begin(events);
                self.close_all(events);
                if !std::mem::replace(&mut self.stopped, true) {
                    let stop = event.stop_reason.as_deref().map(answer::stop).unwrap_or_default();
                    events.push(ChatEvent::Stop { choice: 0, stop, stop_sequence: None });
                }
            }
            "metadata" => {
                self.begin(events);
                events.extend(event.usage.map(|usage| ChatEvent::Usage(usage.neutral())));
                if self.stopped {
                    self.end(events);
                }
            }
            _ => {}
        }
    }

    fn finish(&mut self, events: &mut Vec<ChatEvent>) {
        if self.ended {
            return;
        }
        if !self.stopped {
            let message = "The provider's stream broke off before the answer was complete.";
            return self.fail(Failure::new(FailureKind::Server, message), events);
        }
        self.end(events);
    }
}

impl Decoder {
    fn begin(&mut self, events: &mut Vec<ChatEvent>) {
        if !std::mem::replace(&mut self.started, true) {
            events.push(ChatEvent::Start { id: String::new(), model: String::new(), created: 0 });
        }
    }

    fn block_start(&mut self, event: Event, events: &mut Vec<ChatEvent>) {
        self.begin(events);
        let (index, start) = (event.content_block_index.unwrap_or_default(), event.start.unwrap_or_default());
        if let Some(call) = start.tool_use {
            let (id, name) = (call.tool_use_id.unwrap_or_default(), call.name.unwrap_or_default());
            self.open(index, PartKind::ToolCall { id, name }, events);
        } else if let Some(image) = start.image {
            let media_type = ["image/", image.format.as_deref().unwrap_or("png")].concat();
            self.open(index, PartKind::Image { media_type }, events);
        }
    }

    fn block_delta(&mut self, event: Event, events: &mut Vec<ChatEvent>) {
        self.begin(events);
        let (index, delta) = (event.content_block_index.unwrap_or_default(), event.delta.unwrap_or_default());
        if let Some(text) = delta.text {
            self.more(index, Some(PartKind::Text), text, events);
        }
        if let Some(call) = delta.tool_use {
            self.more(index, None, call.input.unwrap_or_default(), events);
        }
        if let Some(reasoning) = delta.reasoning_content {
            if let Some(data) = reasoning.redacted_content {
                self.part(index, Some(PartKind::Encrypted(data)), events);
            }
            if let Some(text) = reasoning.text {
                self.more(index, Some(PartKind::Reasoning), text, events);
            }
            if let Some(signature) = reasoning.signature
                && let Some(part) = self.part(index, Some(PartKind::Reasoning), events)
            {
                events.push(ChatEvent::Signature { part, signature });
            }
        }
        if let Some(bytes) = delta.image.and_then(|image| image.source?.bytes) {
            self.more(index, None, bytes, events);
        }
    }

    fn more(&mut self, index: u64, kind: Option<PartKind>, text: String, events: &mut Vec<ChatEvent>) {
        if let Some(part) = self.part(index, kind, events)
            && !text.is_empty()
        {
            events.push(ChatEvent::Delta { part, text });
        }
    }

    /// The part of a block; it begins here if it can begin with a delta.
    fn part(&mut self, index: u64, kind: Option<PartKind>, events: &mut Vec<ChatEvent>) -> Option<u32> {
        match self.open.iter().find(|open| open.index == index) {
            Some(open) => Some(open.part),
            None => Some(self.open(index, kind?, events)),
        }
    }

    fn open(&mut self, index: u64, kind: PartKind, events: &mut Vec<ChatEvent>) -> u32 {
        let same = self.open.iter().position(|open| open.index == index);
        if let Some(place) = same.or((self.open.len() >= MOST_OPEN).then_some(0)) {
            self.close(place, events);
        }
        let part = self.parts;
        self.parts += 1;
        self.open.push(Open { index, part });
        events.push(ChatEvent::PartStart { part, choice: 0, kind });
        part
    }

    fn close(&mut self, place: usize, events: &mut Vec<ChatEvent>) {
        let part = self.open.remove(place).part;
        events.push(ChatEvent::PartEnd { part });
    }

    fn close_all(&mut self, events: &mut Vec<ChatEvent>) {
        while !self.open.is_empty() {
            self.close(0, events);
        }
    }

    fn end(&mut self, events: &mut Vec<ChatEvent>) {
        self.ended = true;
        self.close_all(events);
        events.push(ChatEvent::End);
    }

    fn fail(&mut self, failure: Failure, events: &mut Vec<ChatEvent>) {
        self.ended = true;
        events.push(ChatEvent::Error(failure));
    }
}
