//! Streamed answers of providers that speak Responses.
//!
//! What an item holds comes in deltas, or whole when it is done, or only with the last event: each is taken where the earlier
//! ones were left out.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::{Response, image_type};
use super::failure;
use super::wire::{BETWEEN_THOUGHTS, Item, TextOr};
use crate::ai::chat::{ChatEvent, Failure, FailureKind, PartKind, Usage};
use crate::ai::formats::{EventDecoder, made_up, tolerant};
use crate::ai::stream::Frame;

/// The most items of one answer.
const MOST_ITEMS: usize = 10_000;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Event<'e> {
    #[serde(borrow, rename = "type", deserialize_with = "tolerant::text")]
    kind: Option<Cow<'e, str>>,
    #[serde(borrow, deserialize_with = "tolerant::raw")]
    response: Option<Cow<'e, RawValue>>,
    #[serde(borrow, deserialize_with = "tolerant::raw")]
    item: Option<Cow<'e, RawValue>>,
    #[serde(deserialize_with = "tolerant::count")]
    output_index: Option<u64>,
    #[serde(deserialize_with = "tolerant::count")]
    content_index: Option<u64>,
    #[serde(deserialize_with = "tolerant::count")]
    summary_index: Option<u64>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    delta: Option<Cow<'e, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    text: Option<Cow<'e, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    refusal: Option<Cow<'e, str>>,
    #[serde(borrow, deserialize_with = "tolerant::raw")]
    arguments: Option<Cow<'e, RawValue>>,
    #[serde(borrow, deserialize_with = "tolerant::raw")]
    error: Option<Cow<'e, RawValue>>,
}

#[derive(Default)]
pub struct Decoder {
    started: bool,
    over: bool,
    called: bool,
    next_part: u32,
    items: Vec<ItemState>,
}

struct ItemState {
    output_index: u64,
    done: bool,
    parts: Vec<PartState>,
}

struct PartState {
    place: Place,
    number: u32,
    open: bool,
    has_text: bool,
    /// Of a thought's texts, the last that came.
    summary_index: u64,
}

/// Where in its item a part is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Text(u64),
    Refusal(u64),
    Thought,
    Call,
}

impl EventDecoder for Decoder {
    fn decode(&mut self, frame: &Frame<'_>, events: &mut Vec<ChatEvent>) {
        if self.over || frame.data.trim_ascii() == b"[DONE]" {
            return;
        }
        let Ok(event) = serde_json::from_slice::<Event<'_>>(frame.data) else {
            let message = "The provider sent an event that cannot be read.";
            return self.fail(Failure::new(FailureKind::Server, message), events);
        };
        let kind = event.kind.as_deref().or(frame.event).unwrap_or_default();
        match kind {
            "error" => {
                // Its members stand in the event itself, or in its `error`.
                let all = std::str::from_utf8(frame.data).unwrap_or_default();
                let failure = failure::inside(event.error.as_ref().map_or(all, |error| error.get()));
                self.fail(failure, events);
            }
            "response.created" | "response.in_progress" | "response.queued" => {
                self.start(event.response.as_deref(), events)
            }
            "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled" => {
                self.complete(event.response.as_deref(), events);
            }
            "" if event.error.is_some() => {
                self.fail(failure::inside(event.error.as_ref().map_or("", |error| error.get())), events);
            }
            _ => self.take(kind, &event, events),
        }
    }

    fn finish(&mut self, events: &mut Vec<ChatEvent>) {
        if !self.over {
            self.fail(Failure::new(FailureKind::Server, "The provider's stream broke off."), events);
        }
    }
}

impl Decoder {
    fn fail(&mut self, failure: Failure, events: &mut Vec<ChatEvent>) {
        self.over = true;
        events.push(ChatEvent::Error(failure));
    }

    fn start(&mut self, response: Option<&RawValue>, events: &mut Vec<ChatEvent>) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let response = response.and_then(|raw| serde_json::from_str::<Response<'_>>(raw.get()).ok());
        let response = response.unwrap_or_default();
        events.push(ChatEvent::Start {
            id: response.id.map(Cow::into_owned).unwrap_or_default(),
            model: response.model.map(Cow::into_owned).unwrap_or_default(),
            created: response.created_at.unwrap_or(0),
        });
    }

    fn complete(&mut self, raw: Option<&RawValue>, events: &mut Vec<ChatEvent>) {
        self.start(raw, events);
        let response = raw.map(|raw| serde_json::from_str::<Response<'_>>(raw.get())).transpose();
        let Ok(Some(response)) = response else {
            let message = "The provider ended its stream with an event that cannot be read.";
            return self.fail(Failure::new(FailureKind::Server, message), events);
        };
        let usage = response.usage.as_ref().map(Usage::from).map(ChatEvent::Usage);
        if let Some(failure) = response.failure() {
            events.extend(usage);
            return self.fail(failure, events);
        }
        for (index, item) in (0..).zip(&response.output) {
            self.end_item(index, item, events);
        }
        for item in &mut self.items {
            end_parts(item, events);
        }
        events.push(ChatEvent::Stop { choice: 0, stop: response.stop(self.called), stop_sequence: None });
        events.extend(usage);
        self.over = true;
        events.push(ChatEvent::End);
    }

    fn take(&mut self, kind: &str, event: &Event<'_>, events: &mut Vec<ChatEvent>) {
        let output = event.output_index.unwrap_or(0);
        let content = event.content_index.unwrap_or(0);
        let summary = event.summary_index.unwrap_or(content);
        let (place, whole) = match kind {
            "response.output_text.delta" => (Place::Text(content), None),
            "response.output_text.done" => (Place::Text(content), Some(event.text.as_deref())),
            "response.refusal.delta" => (Place::Refusal(content), None),
            "response.refusal.done" => (Place::Refusal(content), Some(event.refusal.as_deref())),
            "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" => {
                return self.think(output, summary, event.delta.as_deref(), false, events);
            }
            "response.reasoning_summary_text.done" | "response.reasoning_text.done" => {
                return self.think(output, summary, event.text.as_deref(), true, events);
            }
            "response.function_call_arguments.delta" => (Place::Call, None),
            "response.function_call_arguments.done" => return self.take_arguments(output, event, events),
            "response.output_item.added" => return self.begin_item(output, event.item.as_deref(), events),
            "response.output_item.done" => {
                if let Some(item) = &event.item {
                    self.end_item(output, item, events);
                }
                return;
            }
            // Frames of parts say nothing that their contents do not; events of built-in tools have no counterpart.
            _ => return,
        };
        let (text, done) = match whole {
            None => (event.delta.as_deref(), false),
            Some(whole) => (whole, true),
        };
        let Some(part) = self.part(output, place, events) else { return };
        if let Some(text) = text.filter(|text| !text.is_empty()).filter(|_| !done || !part.has_text) {
            part.has_text = true;
            events.push(ChatEvent::Delta { part: part.number, text: text.to_owned() });
        }
        if done {
            end_part(part, events);
        }
    }

    /// Texts of one summary are one thought.
    fn think(&mut self, output: u64, index: u64, text: Option<&str>, done: bool, events: &mut Vec<ChatEvent>) {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return };
        let Some(part) = self.part(output, Place::Thought, events) else { return };
        let next = part.has_text && part.summary_index != index;
        if done && part.has_text && !next {
            return;
        }
        part.summary_index = index;
        part.has_text = true;
        let number = part.number;
        if next {
            events.push(ChatEvent::Delta { part: number, text: BETWEEN_THOUGHTS.to_owned() });
        }
        events.push(ChatEvent::Delta { part: number, text: text.to_owned() });
    }

    /// Some send no deltas but only this.
    fn take_arguments(&mut self, output: u64, event: &Event<'_>, events: &mut Vec<ChatEvent>) {
        let item = Item { arguments: event.arguments.as_deref().map(Cow::Borrowed), ..Item::default() };
        let arguments = item.arguments();
        let Some(part) = self.part(output, Place::Call, events) else { return };
        if !part.has_text && !arguments.is_empty() {
            part.has_text = true;
            events.push(ChatEvent::Delta { part: part.number, text: arguments });
        }
        end_part(part, events);
    }

    fn item(&mut self, output_index: u64) -> Option<&mut ItemState> {
        let place = match self.items.iter().rposition(|item| item.output_index == output_index) {
            Some(place) => place,
            None if self.items.len() < MOST_ITEMS => {
                self.items.push(ItemState { output_index, done: false, parts: Vec::new() });
                self.items.len() - 1
            }
            None => return None,
        };
        self.items.get_mut(place)
    }

    /// The part at a place, begun if it is new; `None` if it is over. A call is begun by its item only, which names it.
    fn part(&mut self, output: u64, place: Place, events: &mut Vec<ChatEvent>) -> Option<&mut PartState> {
        let known = self.item(output).filter(|item| !item.done)?.parts.iter().any(|part| part.place == place);
        if !known {
            let kind = match place {
                Place::Text(_) => PartKind::Text,
                Place::Refusal(_) => PartKind::Refusal,
                Place::Thought => PartKind::Reasoning,
                Place::Call => return None,
            };
            self.begin_part(output, place, kind, events);
        }
        self.item(output)?.parts.iter_mut().find(|part| part.place == place && part.open)
    }

    fn begin_part(&mut self, output: u64, place: Place, kind: PartKind, events: &mut Vec<ChatEvent>) {
        let number = self.next_part;
        let Some(item) = self.item(output) else { return };
        item.parts.push(PartState { place, number, open: true, has_text: false, summary_index: 0 });
        self.next_part += 1;
        self.start(None, events);
        events.push(ChatEvent::PartStart { part: number, choice: 0, kind });
    }

    fn begin_item(&mut self, output: u64, raw: Option<&RawValue>, events: &mut Vec<ChatEvent>) {
        let item = raw.and_then(|raw| serde_json::from_str::<Item<'_>>(raw.get()).ok()).unwrap_or_default();
        if item.kind() != "function_call" {
            return;
        }
        let new = self.item(output).is_some_and(|item| !item.done && item.parts.is_empty());
        if new {
            self.called = true;
            let id = item.call_id.or(item.id).filter(|id| !id.is_empty());
            let id = id.map_or_else(|| made_up("call_"), Cow::into_owned);
            let name = item.name.map(Cow::into_owned).unwrap_or_default();
            self.begin_part(output, Place::Call, PartKind::ToolCall { id, name }, events);
        }
    }

    /// An item is whole: what has not come of it is taken from it.
    fn end_item(&mut self, output: u64, raw: &RawValue, events: &mut Vec<ChatEvent>) {
        if self.item(output).is_none_or(|item| item.done) {
            return;
        }
        let item = serde_json::from_str::<Item<'_>>(raw.get()).unwrap_or_default();
        match item.kind() {
            "message" => {
                let contents = match item.content {
                    TextOr::List(contents) => contents,
                    TextOr::Text(_) => Vec::new(),
                };
                for (index, content) in (0..).zip(contents) {
                    let (place, text) = match (content.text, content.refusal) {
                        (Some(text), _) => (Place::Text(index), text),
                        (None, Some(text)) => (Place::Refusal(index), text),
                        _ => continue,
                    };
                    self.take_missed(output, place, &text, events);
                }
            }
            "function_call" => {
                self.begin_item(output, Some(raw), events);
                self.take_missed(output, Place::Call, &item.arguments(), events);
            }
            "reasoning" => {
                let thought = item.thought();
                if !thought.text.is_empty() {
                    self.take_missed(output, Place::Thought, &thought.text, events);
                }
                if let Some(signature) = thought.signature
                    && let Some(part) = self.part(output, Place::Thought, events)
                {
                    events.push(ChatEvent::Signature { part: part.number, signature });
                }
                if let Some(encrypted) = thought.encrypted {
                    self.end_open(output, events);
                    self.whole_part(PartKind::Encrypted(encrypted), None, events);
                }
            }
            "image_generation_call" => {
                let data = item.result.and_then(|result| serde_json::from_str::<String>(result.get()).ok());
                if let Some(data) = data {
                    let media_type = image_type(item.output_format.as_deref());
                    self.whole_part(PartKind::Image { media_type }, Some(data), events);
                }
            }
            _ => {}
        }
        self.end_open(output, events);
        if let Some(item) = self.item(output) {
            item.done = true;
        }
    }

    fn take_missed(&mut self, output: u64, place: Place, text: &str, events: &mut Vec<ChatEvent>) {
        if text.is_empty() {
            return;
        }
        if let Some(part) = self.part(output, place, events).filter(|part| !part.has_text) {
            part.has_text = true;
            events.push(ChatEvent::Delta { part: part.number, text: text.to_owned() });
        }
    }

    fn end_open(&mut self, output: u64, events: &mut Vec<ChatEvent>) {
        if let Some(item) = self.item(output) {
            end_parts(item, events);
        }
    }

    fn whole_part(&mut self, kind: PartKind, text: Option<String>, events: &mut Vec<ChatEvent>) {
        let part = self.next_part;
        self.next_part += 1;
        self.start(None, events);
        events.push(ChatEvent::PartStart { part, choice: 0, kind });
        events.extend(text.map(|text| ChatEvent::Delta { part, text }));
        events.push(ChatEvent::PartEnd { part });
    }
}

fn end_part(part: &mut PartState, events: &mut Vec<ChatEvent>) {
    if std::mem::take(&mut part.open) {
        events.push(ChatEvent::PartEnd { part: part.number });
    }
}

fn end_parts(item: &mut ItemState, events: &mut Vec<ChatEvent>) {
    item.parts.iter_mut().for_each(|part| end_part(part, events));
}
