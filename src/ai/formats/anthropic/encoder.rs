//! Writes a stream for an Anthropic caller.
//!
//! Blocks never overlap here, while parts may: a part that begins while another is open waits, with all that comes for it,
//! until that one has ended. `message_start` waits for the first content, since the usage in it is often told just after.
//! Runs for every token: deltas are written straight into the output.

use std::collections::VecDeque;

use serde::Serialize;

use super::answer::{answered_id, message_id, stop_reason};
use super::failure;
use super::usage::Written;
use crate::ai::chat::{ChatEvent, ChatRequest, Failure, FailureKind, PartKind, Stop, Usage};
use crate::ai::formats::EventEncoder;
use crate::ai::stream::{LONGEST, sse};

pub(super) struct Encoder {
    /// What to call the model if the provider does not say.
    asked_model: String,
    id: String,
    model: String,
    usage: Usage,
    started: bool,
    ended: bool,
    open: Option<Part>,
    waiting: VecDeque<Part>,
    /// Bytes that wait.
    held: usize,
    blocks: u64,
    refused: bool,
    calls: bool,
    stop: Option<(Stop, Option<String>)>,
}

struct Part {
    part: u32,
    kind: PartKind,
    /// What came while it waited.
    text: String,
    /// Written just before the block stops, as one: callers replace an earlier one by a later one.
    signature: String,
    ended: bool,
}

impl Encoder {
    pub fn new(request: &ChatRequest) -> Encoder {
        Encoder {
            asked_model: request.model.clone(),
            id: String::new(),
            model: String::new(),
            usage: Usage::default(),
            started: false,
            ended: false,
            open: None,
            waiting: VecDeque::new(),
            held: 0,
            blocks: 0,
            refused: false,
            calls: false,
            stop: None,
        }
    }
}

impl EventEncoder for Encoder {
    fn encode(&mut self, event: &ChatEvent, out: &mut Vec<u8>) {
        if self.ended {
            return;
        }
        match event {
            ChatEvent::Start { id, model, .. } => {
                self.id.clone_from(id);
                self.model.clone_from(model);
            }
            ChatEvent::Usage(usage) => self.usage.absorb(usage),
            ChatEvent::PartStart { part, choice: 0, kind } => self.part_start(*part, kind, out),
            ChatEvent::Delta { part, text } => self.delta(*part, text, out),
            ChatEvent::Signature { part, signature } => {
                let waiting = self.waiting.iter_mut();
                if let Some(part) = self.open.iter_mut().chain(waiting).find(|known| known.part == *part) {
                    part.signature.push_str(signature);
                }
            }
            ChatEvent::PartEnd { part } => self.part_end(*part, out),
            ChatEvent::Stop { choice: 0, stop, stop_sequence } => {
                self.close_all(out);
                self.stop = Some((*stop, stop_sequence.clone()));
            }
            // Anthropic answers once.
            ChatEvent::PartStart { .. } | ChatEvent::Stop { .. } => {}
            ChatEvent::End => self.end(out),
            ChatEvent::Error(failure) => self.fail(failure, out),
        }
    }
}

impl Encoder {
    fn start(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let model = if self.model.is_empty() { &self.asked_model } else { &self.model };
        let message = Message {
            id: &message_id(&self.id),
            kind: "message",
            role: "assistant",
            model,
            content: [],
            stop_reason: None,
            stop_sequence: None,
            usage: Written::of(&self.usage),
        };
        write("message_start", &MessageStart { kind: "message_start", message }, out);
    }

    fn part_start(&mut self, part: u32, kind: &PartKind, out: &mut Vec<u8>) {
        match kind {
            // There is no block for them in an answer.
            PartKind::Image { .. } | PartKind::Audio { .. } => return,
            PartKind::Refusal => self.refused = true,
            PartKind::ToolCall { .. } => self.calls = true,
            PartKind::Text | PartKind::Reasoning | PartKind::Encrypted(_) => {}
        }
        self.start(out);
        let part = Part { part, kind: kind.clone(), text: String::new(), signature: String::new(), ended: false };
        match self.open {
            None => self.open(part, out),
            Some(_) => {
                self.waiting.push_back(part);
                self.hold(size_of::<Part>(), out);
            }
        }
    }

    fn delta(&mut self, part: u32, text: &str, out: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        match &self.open {
            Some(open) if open.part == part => write_delta(self.blocks, &open.kind, text, out),
            _ => {
                let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.part == part) else { return };
                waiting.text.push_str(text);
                self.hold(text.len(), out);
            }
        }
    }

    /// More waits.
    fn hold(&mut self, bytes: usize, out: &mut Vec<u8>) {
        self.held += bytes;
        if self.held > LONGEST {
            let message = "The provider's answer is out of order further than it can be kept.";
            self.fail(&Failure::new(FailureKind::Server, message), out);
        }
    }

    fn part_end(&mut self, part: u32, out: &mut Vec<u8>) {
        match &self.open {
            Some(open) if open.part == part => {
                self.close(out);
                self.open_next(out);
            }
            _ => {
                if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.part == part) {
                    waiting.ended = true;
                }
            }
        }
    }

    /// Writes what waits, up to a part that has not ended.
    fn open_next(&mut self, out: &mut Vec<u8>) {
        while self.open.is_none()
            && let Some(next) = self.waiting.pop_front()
        {
            let ended = next.ended;
            self.held = self.held.saturating_sub(size_of::<Part>() + next.text.len());
            self.open(next, out);
            if ended {
                self.close(out);
            }
        }
    }

    fn open(&mut self, mut part: Part, out: &mut Vec<u8>) {
        let block = match &part.kind {
            PartKind::ToolCall { id, name } => Block::ToolUse { id: &answered_id(id, None), name, input: Nothing {} },
            PartKind::Reasoning => Block::Thinking { thinking: "", signature: "" },
            PartKind::Encrypted(data) => Block::RedactedThinking { data },
            _ => Block::Text { text: "" },
        };
        let start = BlockStart { kind: "content_block_start", index: self.blocks, content_block: block };
        write("content_block_start", &start, out);
        let text = std::mem::take(&mut part.text);
        if !text.is_empty() {
            write_delta(self.blocks, &part.kind, &text, out);
        }
        self.open = Some(part);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        let Some(part) = self.open.take() else { return };
        // The signature of a tool's call is in its id.
        if !part.signature.is_empty() && part.kind == PartKind::Reasoning {
            delta(self.blocks, "signature_delta\",\"signature\":", &part.signature, out);
        }
        out.extend_from_slice(b"event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":");
        out.extend_from_slice(itoa::Buffer::new().format(self.blocks).as_bytes());
        out.extend_from_slice(b"}\n\n");
        self.blocks += 1;
    }

    fn close_all(&mut self, out: &mut Vec<u8>) {
        for waiting in &mut self.waiting {
            waiting.ended = true;
        }
        self.close(out);
        self.open_next(out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.ended = true;
        self.start(out);
        self.close_all(out);
        let (stop, stop_sequence) = self.stop.take().unwrap_or_default();
        let stop_sequence = stop_sequence.as_deref();
        let stop_reason = stop_reason(stop, stop_sequence, self.refused, self.calls);
        let delta = Delta { stop_reason, stop_sequence };
        write("message_delta", &MessageDelta { kind: "message_delta", delta, usage: Written::of(&self.usage) }, out);
        sse::write(Some("message_stop"), b"{\"type\":\"message_stop\"}", out);
    }

    fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>) {
        self.ended = true;
        self.waiting = VecDeque::new();
        sse::write(Some("error"), &failure::write(failure, None), out);
    }
}

fn write_delta(index: u64, kind: &PartKind, text: &str, out: &mut Vec<u8>) {
    let name = match kind {
        PartKind::ToolCall { .. } => "input_json_delta\",\"partial_json\":",
        PartKind::Reasoning => "thinking_delta\",\"thinking\":",
        PartKind::Encrypted(_) => return,
        _ => "text_delta\",\"text\":",
    };
    delta(index, name, text, out);
}

fn delta(index: u64, name: &str, text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":");
    out.extend_from_slice(itoa::Buffer::new().format(index).as_bytes());
    out.extend_from_slice(b",\"delta\":{\"type\":\"");
    out.extend_from_slice(name.as_bytes());
    json(text, out);
    out.extend_from_slice(b"}}\n\n");
}

fn write(event: &str, data: &impl Serialize, out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(event.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    json(data, out);
    out.extend_from_slice(b"\n\n");
}

fn json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    // Texts and numbers can always be written, and memory takes everything.
    let _ = serde_json::to_writer(out, value);
}

#[derive(Serialize)]
struct MessageStart<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: Message<'a>,
}

#[derive(Serialize)]
struct Message<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: &'a str,
    content: [(); 0],
    stop_reason: Option<&'a str>,
    stop_sequence: Option<&'a str>,
    usage: Written,
}

#[derive(Serialize)]
struct BlockStart<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    index: u64,
    content_block: Block<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block<'a> {
    Text { text: &'a str },
    Thinking { thinking: &'a str, signature: &'a str },
    RedactedThinking { data: &'a str },
    ToolUse { id: &'a str, name: &'a str, input: Nothing },
}

/// `{}`
#[derive(Serialize)]
struct Nothing {}

#[derive(Serialize)]
struct MessageDelta<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    delta: Delta<'a>,
    usage: Written,
}

#[derive(Serialize)]
struct Delta<'a> {
    stop_reason: &'a str,
    stop_sequence: Option<&'a str>,
}
