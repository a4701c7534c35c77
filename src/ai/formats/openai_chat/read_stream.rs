//! Reads a provider's stream.
//!
//! A choice is closed at the stream's end, not by its `finish_reason`: some providers send more after it, and whether it means
//! that tools are to be called is known only when all calls were seen.

use std::mem;

use serde::Deserialize;
use serde_json::Value;

use super::super::reading::{Count, Embedded, Text, TextOr, is_empty};
use super::answer::{WireFunction, WireMessage, WireToolCall};
use super::read_request::thought_signature;
use super::usage::WireUsage;
use super::{audio_type, failure, stop_of};
use crate::ai::chat::{ChatEvent, Failure, FailureKind, PartKind};
use crate::ai::formats::EventDecoder;
use crate::ai::stream::Frame;
use crate::ai::tool_ids;

/// More choices or calls than this are not a model's doing.
const MOST_CHOICES: u64 = 128;
const MOST_CALLS: usize = 1024;
/// Arguments that come before the name of their call are kept until then.
const LONGEST_UNNAMED: usize = 1 << 20;

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireChunk<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    model: Option<Text<'a>>,
    created: Option<Count>,
    #[serde(borrow)]
    choices: Option<Vec<WireChoice<'a>>>,
    usage: Option<WireUsage>,
    error: Option<Value>,
    /// Groq.
    x_groq: Option<GroqUsage>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GroqUsage {
    usage: Option<WireUsage>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireChoice<'a> {
    index: Count,
    /// Missing in Azure's chunks about filters.
    #[serde(borrow)]
    delta: Option<WireMessage<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Text<'a>>,
    stop_reason: Option<Value>,
    /// Moonshot.
    usage: Option<WireUsage>,
    error: Option<Value>,
}

#[derive(Default)]
pub struct Decoder {
    id: String,
    model: String,
    created: i64,
    started: bool,
    ended: bool,
    parts: u32,
    choices: Vec<Choice>,
}

#[derive(Default)]
struct Choice {
    index: u32,
    /// The one of text, refusal and thought that is being written.
    open: Option<(Kind, u32)>,
    audio: Option<u32>,
    calls: Vec<Call>,
    refused: bool,
    finish: Option<String>,
    stop_sequence: Option<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Refusal,
    Reasoning,
}

#[derive(Default)]
struct Call {
    index: Option<i64>,
    id: String,
    /// `None` until its name is known.
    part: Option<u32>,
    unnamed: String,
}

impl EventDecoder for Decoder {
    fn decode(&mut self, frame: &Frame<'_>, events: &mut Vec<ChatEvent>) {
        let data = frame.data.trim_ascii();
        if self.ended || data.is_empty() {
            return;
        }
        if data == b"[DONE]" {
            return self.end(events);
        }
        match serde_json::from_slice::<WireChunk<'_>>(data) {
            Ok(chunk) if frame.event != Some("error") || chunk.error.is_some() => self.chunk(chunk, events),
            Ok(_) => match serde_json::from_slice::<Value>(data) {
                Ok(error) => self.fail(failure::inside(&error), events),
                Err(_) => self.fail(unreadable(), events),
            },
            Err(_) => self.fail(unreadable(), events),
        }
    }

    fn finish(&mut self, events: &mut Vec<ChatEvent>) {
        if self.ended {
            return;
        }
        // Some providers leave `[DONE]` out. An answer whose choices have all ended is whole without it.
        let whole = !self.choices.is_empty() && self.choices.iter().all(|choice| choice.finish.is_some());
        match whole {
            true => self.end(events),
            false => self.fail(Failure::new(FailureKind::Server, "the provider's stream broke off"), events),
        }
    }
}

fn unreadable() -> Failure {
    Failure::new(FailureKind::Server, "the provider's stream holds an event that cannot be read")
}

impl Decoder {
    fn chunk(&mut self, chunk: WireChunk<'_>, events: &mut Vec<ChatEvent>) {
        let choices = chunk.choices.unwrap_or_default();
        let error = chunk.error.as_ref().or(choices.iter().find_map(|choice| choice.error.as_ref()));
        if let Some(error) = error.filter(|error| !is_empty(error)) {
            return self.fail(failure::inside(error), events);
        }
        if !self.started {
            self.id = chunk.id.map(Text::into_owned).filter(|id| !id.is_empty()).unwrap_or(mem::take(&mut self.id));
            let model = chunk.model.map(Text::into_owned).filter(|model| !model.is_empty());
            self.model = model.unwrap_or(mem::take(&mut self.model));
            self.created =
                chunk.created.map_or(0, |created| i64::try_from(created.0).unwrap_or_default()).max(self.created);
            // Azure's first chunk tells of filters, without a choice and without an id.
            if !choices.is_empty() {
                self.start(events);
            }
        }
        for mut choice in choices {
            let usage = choice.usage.take();
            self.choice(choice, events);
            self.usage(usage, events);
        }
        self.usage(chunk.usage.or(chunk.x_groq.and_then(|groq| groq.usage)), events);
    }

    fn start(&mut self, events: &mut Vec<ChatEvent>) {
        if !mem::replace(&mut self.started, true) {
            let (id, model) = (mem::take(&mut self.id), mem::take(&mut self.model));
            events.push(ChatEvent::Start { id, model, created: self.created });
        }
    }

    fn usage(&mut self, usage: Option<WireUsage>, events: &mut Vec<ChatEvent>) {
        if let Some(usage) = usage {
            self.start(events);
            events.push(ChatEvent::Usage(usage.read()));
        }
    }

    fn choice(&mut self, wire: WireChoice<'_>, events: &mut Vec<ChatEvent>) {
        if wire.index.0 >= MOST_CHOICES {
            return self.fail(unreadable(), events);
        }
        let index = wire.index.0 as u32;
        let at = match self.choices.iter().position(|choice| choice.index == index) {
            Some(at) => at,
            None => {
                self.choices.push(Choice { index, ..Choice::default() });
                self.choices.len() - 1
            }
        };
        let Some(choice) = self.choices.get_mut(at) else { return };
        if let Some(delta) = wire.delta {
            let read = choice.delta(delta, &mut self.parts, events);
            if read.is_err() {
                return self.fail(unreadable(), events);
            }
        }
        if let Some(finish) = wire.finish_reason.filter(|finish| !finish.is_empty()) {
            choice.finish.get_or_insert_with(|| finish.into_owned());
        }
        if let Some(Value::String(text)) = wire.stop_reason {
            choice.stop_sequence = Some(text);
        }
    }

    fn end(&mut self, events: &mut Vec<ChatEvent>) {
        self.start(events);
        for choice in &mut self.choices {
            choice.end(&mut self.parts, events);
        }
        events.push(ChatEvent::End);
        self.ended = true;
    }

    fn fail(&mut self, failure: Failure, events: &mut Vec<ChatEvent>) {
        if !mem::replace(&mut self.ended, true) {
            events.push(ChatEvent::Error(failure));
        }
    }
}

/// A stream that no model would send.
struct Excess;

impl Choice {
    fn delta(
        &mut self,
        mut delta: WireMessage<'_>,
        parts: &mut u32,
        events: &mut Vec<ChatEvent>,
    ) -> Result<(), Excess> {
        self.thought(&mut delta, parts, events);
        match delta.content {
            None => {}
            Some(TextOr::Text(text)) => self.write(Kind::Text, text, parts, events),
            Some(TextOr::List(items)) => {
                for item in items {
                    if let Some(thought) = item.thought() {
                        self.write(Kind::Reasoning, thought, parts, events);
                    }
                    if let Some(text) = item.text {
                        self.write(Kind::Text, text, parts, events);
                    }
                }
            }
        }
        if let Some(text) = delta.refusal {
            self.refused |= !text.is_empty();
            self.write(Kind::Refusal, text, parts, events);
        }
        if let Some(audio) = delta.audio {
            if let Some(data) = audio.data.filter(|data| !data.is_empty()) {
                let choice = self.index;
                let part = *self.audio.get_or_insert_with(|| {
                    begin(choice, PartKind::Audio { media_type: audio_type(&data).to_owned() }, parts, events)
                });
                events.push(ChatEvent::Delta { part, text: data.into_owned() });
            }
            if let Some(transcript) = audio.transcript {
                self.write(Kind::Text, transcript, parts, events);
            }
        }
        for image in delta.images.unwrap_or_default() {
            if let Some((media_type, base64)) = image.data() {
                let part = begin(self.index, PartKind::Image { media_type: media_type.to_owned() }, parts, events);
                events.push(ChatEvent::Delta { part, text: base64.to_owned() });
                events.push(ChatEvent::PartEnd { part });
            }
        }
        for call in delta.tool_calls.unwrap_or_default() {
            self.call(call, parts, events)?;
        }
        if let Some(function) = delta.function_call {
            // Legacy: there is one, and it has no id.
            self.call(
                WireToolCall { index: Some(0.0), function: Some(function), ..WireToolCall::default() },
                parts,
                events,
            )?;
        }
        Ok(())
    }

    fn thought(&mut self, delta: &mut WireMessage<'_>, parts: &mut u32, events: &mut Vec<ChatEvent>) {
        let plain = delta.reasoning_content.take().or(delta.reasoning.take()).filter(|text| !text.is_empty());
        // OpenRouter says the same twice: as text, and in details.
        let spoken = plain.is_some();
        if let Some(text) = plain {
            self.write(Kind::Reasoning, text, parts, events);
        }
        for mut detail in delta.reasoning_details.take().or(delta.thinking_blocks.take()).unwrap_or_default() {
            match detail.words() {
                Some(text) if !spoken => self.write(Kind::Reasoning, text, parts, events),
                _ => {}
            }
            if let Some(data) = detail.sealed() {
                self.close(events);
                let part = begin(self.index, PartKind::Encrypted(data.into_owned()), parts, events);
                events.push(ChatEvent::PartEnd { part });
            }
            if let Some(signature) = detail.proof() {
                let part = self.open(Kind::Reasoning, parts, events);
                events.push(ChatEvent::Signature { part, signature: signature.into_owned() });
            }
        }
    }

    fn write(&mut self, kind: Kind, text: impl IntoText, parts: &mut u32, events: &mut Vec<ChatEvent>) {
        let text = text.into_text();
        if !text.is_empty() {
            let part = self.open(kind, parts, events);
            events.push(ChatEvent::Delta { part, text });
        }
    }

    /// The open part, if it is of this kind; else a new one in its place.
    fn open(&mut self, kind: Kind, parts: &mut u32, events: &mut Vec<ChatEvent>) -> u32 {
        match self.open {
            Some((open, part)) if open == kind => part,
            _ => {
                self.close(events);
                let new = match kind {
                    Kind::Text => PartKind::Text,
                    Kind::Refusal => PartKind::Refusal,
                    Kind::Reasoning => PartKind::Reasoning,
                };
                let part = begin(self.index, new, parts, events);
                self.open = Some((kind, part));
                part
            }
        }
    }

    fn close(&mut self, events: &mut Vec<ChatEvent>) {
        if let Some((_, part)) = self.open.take() {
            events.push(ChatEvent::PartEnd { part });
        }
    }

    fn call(&mut self, wire: WireToolCall<'_>, parts: &mut u32, events: &mut Vec<ChatEvent>) -> Result<(), Excess> {
        self.close(events);
        let id = wire.id.filter(|id| !id.is_empty());
        // -1 has been seen where there is one call.
        let index = wire.index.map(|index| index as i64).filter(|index| *index >= 0);
        let known = self.calls.iter().rposition(|call| match (&id, index) {
            // A new id is a new call, even at an index that was used: some number them all 0.
            (Some(id), _) if !call.id.is_empty() && **id != *call.id => false,
            (_, Some(index)) => call.index == Some(index) || call.index.is_none(),
            (_, None) => true,
        });
        let at = match known {
            Some(at) => at,
            None if self.calls.len() >= MOST_CALLS => return Err(Excess),
            None => {
                self.calls.push(Call { index, ..Call::default() });
                self.calls.len() - 1
            }
        };
        let Some(call) = self.calls.get_mut(at) else { return Ok(()) };
        if let Some(id) = id {
            call.id = id.into_owned();
        }
        let WireFunction { name, arguments } = wire.function.unwrap_or_default();
        if let (None, Some(name)) = (call.part, name.filter(|name| !name.is_empty())) {
            if let Some(signature) = thought_signature(wire.extra_content.as_ref()) {
                call.id = tool_ids::signed(&call.id, &signature);
            }
            call.begin(self.index, name.into_owned(), parts, events);
        }
        let arguments = arguments.map(Embedded::into_text).unwrap_or_default();
        match call.part {
            Some(part) if !arguments.is_empty() => events.push(ChatEvent::Delta { part, text: arguments }),
            Some(_) => {}
            None if call.unnamed.len() + arguments.len() > LONGEST_UNNAMED => return Err(Excess),
            None => call.unnamed.push_str(&arguments),
        }
        Ok(())
    }

    fn end(&mut self, parts: &mut u32, events: &mut Vec<ChatEvent>) {
        self.close(events);
        if let Some(part) = self.audio.take() {
            events.push(ChatEvent::PartEnd { part });
        }
        for call in &mut self.calls {
            if call.part.is_none() {
                call.begin(self.index, String::new(), parts, events);
            }
            events.extend(call.part.map(|part| ChatEvent::PartEnd { part }));
        }
        let stop = stop_of(self.finish.as_deref().unwrap_or_default(), !self.calls.is_empty(), self.refused);
        events.push(ChatEvent::Stop { choice: self.index, stop, stop_sequence: self.stop_sequence.take() });
    }
}

impl Call {
    fn begin(&mut self, choice: u32, name: String, parts: &mut u32, events: &mut Vec<ChatEvent>) {
        if self.id.is_empty() {
            self.id = tool_ids::made_up();
        }
        let part = begin(choice, PartKind::ToolCall { id: self.id.clone(), name }, parts, events);
        self.part = Some(part);
        if !self.unnamed.is_empty() {
            events.push(ChatEvent::Delta { part, text: mem::take(&mut self.unnamed) });
        }
    }
}

fn begin(choice: u32, kind: PartKind, parts: &mut u32, events: &mut Vec<ChatEvent>) -> u32 {
    let part = *parts;
    *parts += 1;
    events.push(ChatEvent::PartStart { part, choice, kind });
    part
}

/// A text to keep, borrowed or not.
trait IntoText {
    fn into_text(self) -> String;
}

impl IntoText for Text<'_> {
    fn into_text(self) -> String {
        self.into_owned()
    }
}

impl IntoText for String {
    fn into_text(self) -> String {
        self
    }
}
