//! Streamed answers to callers who speak Responses: each part is an item, and every event has its number.

use serde::Serialize;

use super::answer::{Ids, OutResponse, created, echo, status, write_response};
use super::failure::{self, OutError};
use super::wire::{OutContent, OutItem, WrittenUsage, encrypted_content};
use crate::ai::chat::{ChatEvent, ChatRequest, Failure, FailureKind, PartKind, Stop, Usage};
use crate::ai::formats::EventEncoder;
use crate::ai::stream::LONGEST;

pub struct Encoder {
    echo: String,
    ids: Ids,
    model: String,
    created: i64,
    sequence: u64,
    started: bool,
    over: bool,
    /// Parts that have begun, and whose items have not been ended.
    open: Vec<Open>,
    /// Items that are done, as they were written, by their places.
    done: Vec<Option<Vec<u8>>>,
    /// Bytes of texts that are held for the last event.
    held: usize,
    stop: Stop,
    usage: Option<Usage>,
}

struct Open {
    part: u32,
    output_index: usize,
    id: String,
    kind: PartKind,
    text: String,
    signature: Option<String>,
    /// A thought whose text is over, but that may still get its encrypted form.
    waiting: bool,
}

impl Open {
    fn item(&self) -> OutItem<'_> {
        let (id, text) = (self.id.as_str(), self.text.as_str());
        let message = |content| OutItem::Message { id, status: "completed", role: "assistant", content: vec![content] };
        match &self.kind {
            PartKind::Text | PartKind::Audio { .. } => message(OutContent::text(text)),
            PartKind::Refusal => message(OutContent::Refusal { refusal: text }),
            PartKind::Reasoning | PartKind::Encrypted(_) => {
                let encrypted = match &self.kind {
                    PartKind::Encrypted(encrypted) => Some(encrypted.as_str()),
                    _ => None,
                };
                let summary = if text.is_empty() { Vec::new() } else { vec![OutContent::SummaryText { text }] };
                let encrypted_content = encrypted_content(self.signature.as_deref(), encrypted);
                OutItem::Reasoning { id, summary, encrypted_content }
            }
            PartKind::ToolCall { id: call_id, name } => {
                let arguments = if text.is_empty() { "{}" } else { text };
                OutItem::FunctionCall { id, status: "completed", call_id, name, arguments }
            }
            PartKind::Image { .. } => OutItem::ImageGenerationCall { id, status: "completed", result: Some(text) },
        }
    }

    /// The item before anything of it has come.
    fn begun(&self) -> OutItem<'_> {
        let (id, status) = (self.id.as_str(), "in_progress");
        match &self.kind {
            PartKind::Text | PartKind::Refusal | PartKind::Audio { .. } => {
                OutItem::Message { id, status, role: "assistant", content: Vec::new() }
            }
            PartKind::Reasoning | PartKind::Encrypted(_) => {
                OutItem::Reasoning { id, summary: Vec::new(), encrypted_content: None }
            }
            PartKind::ToolCall { id: call_id, name } => {
                OutItem::FunctionCall { id, status, call_id, name, arguments: "" }
            }
            PartKind::Image { .. } => OutItem::ImageGenerationCall { id, status, result: None },
        }
    }

    fn at(&self) -> At<'_> {
        At { item_id: &self.id, output_index: self.output_index }
    }
}

/// The item that an event is about.
#[derive(Serialize, Clone, Copy)]
struct At<'e> {
    item_id: &'e str,
    output_index: usize,
}

#[derive(Serialize)]
struct ItemEvent<'e> {
    output_index: usize,
    item: OutItem<'e>,
}

#[derive(Serialize)]
struct PartEvent<'e> {
    #[serde(flatten)]
    at: At<'e>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary_index: Option<u32>,
    part: OutContent<'e>,
}

/// A delta or a whole text; those that are absent are not members of the event.
#[derive(Serialize)]
struct TextEvent<'e> {
    item_id: &'e str,
    output_index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary_index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<[(); 0]>,
}

impl<'e> TextEvent<'e> {
    fn of(open: &'e Open) -> TextEvent<'e> {
        let thought = open.kind == PartKind::Reasoning;
        let call = matches!(open.kind, PartKind::ToolCall { .. });
        TextEvent {
            item_id: &open.id,
            output_index: open.output_index,
            content_index: (!thought && !call).then_some(0),
            summary_index: thought.then_some(0),
            delta: None,
            text: None,
            refusal: None,
            arguments: None,
            logprobs: (open.kind == PartKind::Text).then_some([]),
        }
    }
}

#[derive(Serialize)]
struct ErrorEvent<'e> {
    code: Option<&'e str>,
    message: &'e str,
    param: Option<&'e str>,
    /// OpenAI's Python library raises at an event with this member, others read it first.
    error: OutError<'e>,
}

impl Encoder {
    pub fn new(request: &ChatRequest) -> Encoder {
        Encoder {
            echo: echo(request),
            ids: Ids::of(""),
            model: request.model.clone(),
            created: 0,
            sequence: 0,
            started: false,
            over: false,
            open: Vec::new(),
            done: Vec::new(),
            held: 0,
            stop: Stop::End,
            usage: None,
        }
    }

    /// Appends an event: its name and number, and the members of `body`, an object that is not empty.
    fn write(&mut self, kind: &str, body: &impl Serialize, out: &mut Vec<u8>) {
        self.begin_event(kind, out);
        let at = out.len();
        match serde_json::to_writer(&mut *out, body) {
            Ok(()) if out.get(at) == Some(&b'{') => out[at] = b',',
            _ => {
                out.truncate(at);
                out.push(b'}');
            }
        }
        out.extend_from_slice(b"\n\n");
    }

    fn begin_event(&mut self, kind: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\ndata: {\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"sequence_number\":");
        out.extend_from_slice(itoa::Buffer::new().format(self.sequence).as_bytes());
        self.sequence += 1;
    }

    fn write_response(&mut self, kind: &str, state: State<'_>, out: &mut Vec<u8>) {
        self.begin_event(kind, out);
        out.extend_from_slice(b",\"response\":");
        let output = self.done.iter().flatten().map(Vec::as_slice).collect::<Vec<_>>().join(&b',');
        let response = OutResponse {
            id: &self.ids.response,
            object: "response",
            created_at: self.created,
            status: state.status,
            error: state.error,
            incomplete_details: state.incomplete,
            model: &self.model,
            usage: self.usage.as_ref().filter(|_| state.status != "in_progress").map(WrittenUsage::from),
        };
        write_response(&response, &output, &self.echo, out);
        out.extend_from_slice(b"}\n\n");
    }

    fn start(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        self.created = created(self.created);
        for kind in ["response.created", "response.in_progress"] {
            self.write_response(kind, State { status: "in_progress", error: None, incomplete: None }, out);
        }
    }

    fn begin_part(&mut self, part: u32, kind: &PartKind, out: &mut Vec<u8>) {
        if let PartKind::Encrypted(encrypted) = kind
            && let Some(waiting) = self.open.iter_mut().find(|open| open.waiting)
        {
            waiting.kind = PartKind::Encrypted(encrypted.clone());
            return;
        }
        self.end_waiting(out);
        let prefix = match kind {
            PartKind::Text | PartKind::Refusal | PartKind::Audio { .. } => "msg_",
            PartKind::Reasoning | PartKind::Encrypted(_) => "rs_",
            PartKind::ToolCall { .. } => "fc_",
            PartKind::Image { .. } => "ig_",
        };
        let output_index = self.done.len();
        self.done.push(None);
        let id = self.ids.item(prefix, output_index);
        let open =
            Open { part, output_index, id, kind: kind.clone(), text: String::new(), signature: None, waiting: false };
        self.write("response.output_item.added", &ItemEvent { output_index, item: open.begun() }, out);
        match &open.kind {
            PartKind::Text | PartKind::Refusal => {
                self.write("response.content_part.added", &part_event(&open, ""), out)
            }
            PartKind::Reasoning => self.write("response.reasoning_summary_part.added", &part_event(&open, ""), out),
            _ => {}
        }
        self.open.push(open);
    }

    fn add(&mut self, part: u32, text: &str, out: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        let Some(place) = self.open.iter().position(|open| open.part == part && !open.waiting) else { return };
        self.held += text.len();
        if self.held > LONGEST {
            return self.fail(&Failure::new(FailureKind::Server, "The provider's answer is too long."), out);
        }
        let mut open = self.open.swap_remove(place);
        open.text.push_str(text);
        let delta = TextEvent { delta: Some(text), ..TextEvent::of(&open) };
        match open.kind {
            PartKind::Text => self.write("response.output_text.delta", &delta, out),
            PartKind::Refusal => self.write("response.refusal.delta", &delta, out),
            PartKind::Reasoning => self.write("response.reasoning_summary_text.delta", &delta, out),
            PartKind::ToolCall { .. } => self.write("response.function_call_arguments.delta", &delta, out),
            _ => {}
        }
        self.open.push(open);
    }

    fn end_part(&mut self, part: u32, out: &mut Vec<u8>) {
        let Some(place) = self.open.iter().position(|open| open.part == part && !open.waiting) else { return };
        let mut open = self.open.swap_remove(place);
        let text = open.text.as_str();
        let event = TextEvent::of(&open);
        match &open.kind {
            PartKind::Text => {
                self.write("response.output_text.done", &TextEvent { text: Some(text), ..event }, out);
                self.write("response.content_part.done", &part_event(&open, text), out);
            }
            PartKind::Refusal => {
                self.write("response.refusal.done", &TextEvent { refusal: Some(text), ..event }, out);
                self.write("response.content_part.done", &part_event(&open, text), out);
            }
            PartKind::Reasoning => {
                self.write("response.reasoning_summary_text.done", &TextEvent { text: Some(text), ..event }, out);
                self.write("response.reasoning_summary_part.done", &part_event(&open, text), out);
                open.waiting = true;
                return self.open.push(open);
            }
            PartKind::ToolCall { .. } => {
                let arguments = Some(if text.is_empty() { "{}" } else { text });
                self.write("response.function_call_arguments.done", &TextEvent { arguments, ..event }, out);
            }
            _ => {}
        }
        self.end_item(&open, out);
    }

    fn end_waiting(&mut self, out: &mut Vec<u8>) {
        while let Some(place) = self.open.iter().position(|open| open.waiting) {
            let open = self.open.swap_remove(place);
            self.end_item(&open, out);
        }
    }

    fn end_item(&mut self, open: &Open, out: &mut Vec<u8>) {
        let item = serde_json::to_vec(&open.item()).unwrap_or_default();
        self.begin_event("response.output_item.done", out);
        out.extend_from_slice(b",\"output_index\":");
        out.extend_from_slice(itoa::Buffer::new().format(open.output_index).as_bytes());
        out.extend_from_slice(b",\"item\":");
        out.extend_from_slice(&item);
        out.extend_from_slice(b"}\n\n");
        if let Some(place) = self.done.get_mut(open.output_index) {
            *place = Some(item);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.end_waiting(out);
        let open: Vec<u32> = self.open.iter().map(|open| open.part).collect();
        open.into_iter().for_each(|part| self.end_part(part, out));
        self.end_waiting(out);
        let (status, incomplete) = status(self.stop);
        let kind = if incomplete.is_some() { "response.incomplete" } else { "response.completed" };
        self.write_response(kind, State { status, error: None, incomplete }, out);
        self.over = true;
    }

    /// As OpenAI does: the error, and where a response has begun, that it failed.
    fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>) {
        let error = failure::written(failure);
        let event = ErrorEvent {
            code: error.code,
            message: error.message,
            param: error.param,
            error: failure::written(failure),
        };
        self.write("error", &event, out);
        if self.started {
            let error = OutError { code: Some(failure::response_code(failure)), ..failure::written(failure) };
            self.write_response(
                "response.failed",
                State { status: "failed", error: Some(error), incomplete: None },
                out,
            );
        }
        self.over = true;
    }
}

/// What a response is at the moment.
struct State<'s> {
    status: &'static str,
    error: Option<OutError<'s>>,
    incomplete: Option<super::answer::OutIncomplete>,
}

fn part_event<'e>(open: &'e Open, text: &'e str) -> PartEvent<'e> {
    let thought = open.kind == PartKind::Reasoning;
    PartEvent {
        at: open.at(),
        content_index: (!thought).then_some(0),
        summary_index: thought.then_some(0),
        part: match open.kind {
            PartKind::Refusal => OutContent::Refusal { refusal: text },
            PartKind::Reasoning => OutContent::SummaryText { text },
            _ => OutContent::text(text),
        },
    }
}

impl EventEncoder for Encoder {
    fn encode(&mut self, event: &ChatEvent, out: &mut Vec<u8>) {
        if self.over {
            return;
        }
        match event {
            ChatEvent::Start { id, model, created } => {
                self.ids = Ids::of(id);
                if !model.is_empty() {
                    self.model.clone_from(model);
                }
                self.created = *created;
                self.start(out);
            }
            // Responses have one answer, and no sounds.
            ChatEvent::PartStart { choice: 1.., .. } | ChatEvent::Stop { choice: 1.., .. } => {}
            ChatEvent::PartStart { kind: PartKind::Audio { .. }, .. } => {}
            ChatEvent::PartStart { part, kind, .. } => {
                self.start(out);
                self.begin_part(*part, kind, out);
            }
            ChatEvent::Delta { part, text } => self.add(*part, text, out),
            ChatEvent::Signature { part, signature } => {
                if let Some(open) = self.open.iter_mut().find(|open| open.part == *part) {
                    open.signature = Some(signature.clone());
                }
            }
            ChatEvent::PartEnd { part } => self.end_part(*part, out),
            ChatEvent::Stop { stop, .. } => self.stop = *stop,
            ChatEvent::Usage(usage) => self.usage.get_or_insert_default().absorb(usage),
            ChatEvent::End => {
                self.start(out);
                self.end(out);
            }
            ChatEvent::Error(failure) => self.fail(failure, out),
        }
    }
}
