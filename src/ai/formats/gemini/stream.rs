//! Streamed answers of Gemini, both ways: every event is a whole answer that holds what is new.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::{Map, Value};

use super::answer;
use super::wire::{Answer, Blob, Candidate, Content, FunctionCall, Part as Wire, PartialArg, PromptFeedback};
use super::{failure, signature};
use crate::ai::chat::{ChatEvent, Failure, FailureKind, PartKind, Stop, Usage};
use crate::ai::formats::{EventDecoder, EventEncoder, made_up};
use crate::ai::stream::{Frame, Framing, LONGEST, json_array, sse};
use crate::ai::tool_ids;

/// The most candidates; Gemini makes 8.
const MOST_CHOICES: usize = 128;

/// Reads a stream. A candidate's reason to end is held until the stream ends: some models tell it with every event.
#[derive(Default)]
pub struct Decoder {
    started: bool,
    failed: bool,
    next_part: u32,
    choices: Vec<ChoiceState>,
}

#[derive(Default)]
struct ChoiceState {
    /// The part that more text may come for, and whether it is a thought.
    open: Option<(u32, bool)>,
    called: bool,
    reason: Option<String>,
    /// A call whose arguments come in pieces.
    pieces: Option<Pieces>,
}

struct Pieces {
    part: u32,
    arguments: Value,
    /// Bytes of texts in it.
    length: usize,
}

impl EventDecoder for Decoder {
    fn decode(&mut self, frame: &Frame<'_>, events: &mut Vec<ChatEvent>) {
        if self.failed || frame.data.trim_ascii() == b"[DONE]" {
            return;
        }
        let first = frame.data.trim_ascii_start().first();
        let answer = match first {
            Some(b'[') => return self.fail(failure::decode(500, frame.data), events),
            _ => serde_json::from_slice::<Answer<'_>>(frame.data),
        };
        let Ok(answer) = answer else {
            let message = "The provider sent an event that cannot be read.";
            return self.fail(Failure::new(FailureKind::Server, message), events);
        };
        if let Some(error) = &answer.error {
            return self.fail(failure::decode_error(error.get()), events);
        }
        if !std::mem::replace(&mut self.started, true) {
            events.push(ChatEvent::Start {
                id: answer.response_id.as_deref().unwrap_or_default().to_owned(),
                model: answer.model_version.as_deref().unwrap_or_default().to_owned(),
                created: answer.create_time.as_deref().and_then(answer::seconds).unwrap_or(0),
            });
        }
        if let Some(usage) = &answer.usage_metadata {
            events.push(ChatEvent::Usage(answer::usage(usage)));
        }
        if answer.candidates.is_empty()
            && let Some(blocked) = answer.prompt_feedback.as_ref().and_then(answer::blocked)
        {
            return self.fail(blocked, events);
        }
        for (candidate, position) in answer.candidates.into_iter().zip(0..) {
            self.take(candidate, position, events);
        }
    }

    fn finish(&mut self, events: &mut Vec<ChatEvent>) {
        if self.failed {
            return;
        }
        if self.choices.is_empty() || self.choices.iter().any(|choice| choice.reason.is_none()) {
            return self.fail(Failure::new(FailureKind::Server, "The provider's stream broke off."), events);
        }
        let mut choices = std::mem::take(&mut self.choices);
        for (state, choice) in choices.iter_mut().zip(0..) {
            end_pieces(state, events);
            end_part(state, events);
            let stop = answer::stop(state.reason.as_deref(), state.called);
            events.push(ChatEvent::Stop { choice, stop, stop_sequence: None });
        }
        self.failed = true;
        events.push(ChatEvent::End);
    }
}

impl Decoder {
    fn fail(&mut self, failure: Failure, events: &mut Vec<ChatEvent>) {
        self.failed = true;
        events.push(ChatEvent::Error(failure));
    }

    fn take(&mut self, candidate: Candidate<'_>, position: u64, events: &mut Vec<ChatEvent>) {
        let choice = candidate.index.unwrap_or(position) as usize;
        if choice >= MOST_CHOICES {
            return;
        }
        if choice >= self.choices.len() {
            self.choices.resize_with(choice + 1, ChoiceState::default);
        }
        for part in candidate.content.into_iter().flat_map(|content| content.parts) {
            self.take_part(part, choice, events);
        }
        if let (Some(reason), Some(state)) = (candidate.finish_reason, self.choices.get_mut(choice))
            && state.reason.as_deref() != Some(&*reason)
        {
            state.reason = Some(reason.into_owned());
        }
    }

    fn take_part(&mut self, part: Wire<'_>, choice: usize, events: &mut Vec<ChatEvent>) {
        let Some(state) = self.choices.get_mut(choice) else { return };
        let signature = part.thought_signature.as_deref();
        if let Some(call) = part.function_call {
            return take_call(call, signature, state, choice as u32, &mut self.next_part, events);
        }
        let mut start = |kind: PartKind, events: &mut Vec<ChatEvent>| {
            let number = self.next_part;
            self.next_part += 1;
            events.push(ChatEvent::PartStart { part: number, choice: choice as u32, kind });
            number
        };
        if let Some(text) = part.text.filter(|text| !text.is_empty()) {
            let number = match state.open {
                Some((number, thought)) if thought == part.thought => number,
                _ => {
                    end_part(state, events);
                    let kind = if part.thought { PartKind::Reasoning } else { PartKind::Text };
                    let number = start(kind, events);
                    state.open = Some((number, part.thought));
                    number
                }
            };
            events.push(ChatEvent::Delta { part: number, text: text.into_owned() });
        }
        if let Some(Blob { mime_type, data: Some(data), .. }) = part.inline_data {
            end_part(state, events);
            let media_type = mime_type.map(Cow::into_owned).unwrap_or_default();
            let kind = match media_type.starts_with("audio/") {
                true => PartKind::Audio { media_type },
                false => PartKind::Image { media_type },
            };
            let number = start(kind, events);
            events.push(ChatEvent::Delta { part: number, text: data.into_owned() });
            events.push(ChatEvent::PartEnd { part: number });
        }
        if signature.is_some() {
            let thought = signature::thought(String::new(), signature);
            match (state.open, thought.signature, thought.encrypted) {
                (Some((number, true)), Some(signature), _) => {
                    events.push(ChatEvent::Signature { part: number, signature });
                    end_part(state, events);
                }
                (_, _, Some(encrypted)) => {
                    end_part(state, events);
                    let number = start(PartKind::Encrypted(encrypted), events);
                    events.push(ChatEvent::PartEnd { part: number });
                }
                _ => {}
            }
        }
    }
}

fn end_part(state: &mut ChoiceState, events: &mut Vec<ChatEvent>) {
    if let Some((part, _)) = state.open.take() {
        events.push(ChatEvent::PartEnd { part });
    }
}

/// Calls come whole, unless the caller wanted pieces of arguments; these are put together, since no other dialect has them by
/// paths.
fn take_call(
    call: FunctionCall<'_>,
    signature: Option<&str>,
    state: &mut ChoiceState,
    choice: u32,
    next_part: &mut u32,
    events: &mut Vec<ChatEvent>,
) {
    if let Some(pieces) = &mut state.pieces
        && call.name.as_deref().unwrap_or_default().is_empty()
    {
        add_pieces(pieces, &call.partial_args);
        if !call.will_continue {
            end_pieces(state, events);
        }
        return;
    }
    end_pieces(state, events);
    end_part(state, events);
    state.called = true;
    let part = *next_part;
    *next_part += 1;
    let id = match call.id.filter(|id| !id.is_empty()) {
        Some(id) => id.into_owned(),
        None => made_up("call_"),
    };
    let id = signature.map_or_else(|| id.clone(), |signature| tool_ids::signed(&id, signature));
    let name = call.name.map(Cow::into_owned).unwrap_or_default();
    events.push(ChatEvent::PartStart { part, choice, kind: PartKind::ToolCall { id, name } });
    if let Some(signature) = signature {
        events.push(ChatEvent::Signature { part, signature: signature.to_owned() });
    }
    if call.will_continue || !call.partial_args.is_empty() {
        let arguments = call.args.and_then(|args| serde_json::from_str(args.get()).ok());
        let mut pieces = Pieces { part, arguments: arguments.unwrap_or_else(|| Value::Object(Map::new())), length: 0 };
        add_pieces(&mut pieces, &call.partial_args);
        state.pieces = Some(pieces);
        if !call.will_continue {
            end_pieces(state, events);
        }
        return;
    }
    if let Some(args) = call.args {
        events.push(ChatEvent::Delta { part, text: args.get().to_owned() });
    }
    events.push(ChatEvent::PartEnd { part });
}

fn end_pieces(state: &mut ChoiceState, events: &mut Vec<ChatEvent>) {
    if let Some(pieces) = state.pieces.take() {
        events.push(ChatEvent::Delta { part: pieces.part, text: pieces.arguments.to_string() });
        events.push(ChatEvent::PartEnd { part: pieces.part });
    }
}

fn add_pieces(pieces: &mut Pieces, args: &[PartialArg<'_>]) {
    for arg in args {
        let (Some(path), true) = (arg.json_path.as_deref(), pieces.length < LONGEST) else { continue };
        pieces.length += path.len() + arg.string_value.as_deref().map_or(8, str::len);
        let Some(place) = place(&mut pieces.arguments, path) else { continue };
        match (arg.string_value.as_deref(), &arg.number_value, arg.bool_value) {
            (Some(more), ..) => match place {
                Value::String(text) => text.push_str(more),
                _ => *place = more.into(),
            },
            (_, Some(number), _) => *place = Value::Number(number.clone()),
            (.., Some(truth)) => *place = truth.into(),
            _ => {}
        }
    }
}

/// The value at a path such as `$.stops[0].city`, made if it is not there.
fn place<'v>(root: &'v mut Value, path: &str) -> Option<&'v mut Value> {
    const DEEPEST: usize = 64;
    const MOST_ITEMS: usize = 10_000;
    let mut at = root;
    let steps = path.trim_start_matches('$').split(['.', '[']).filter(|step| !step.is_empty());
    for (step, depth) in steps.zip(0..) {
        if depth >= DEEPEST {
            return None;
        }
        at = match step.strip_suffix(']') {
            Some(index) if index.bytes().all(|byte| byte.is_ascii_digit()) => {
                let index = index.parse::<usize>().ok().filter(|index| *index < MOST_ITEMS)?;
                if !at.is_array() {
                    *at = Value::Array(Vec::new());
                }
                let items = at.as_array_mut()?;
                while items.len() <= index {
                    items.push(Value::Null);
                }
                items.get_mut(index)?
            }
            name => {
                let name = name.unwrap_or(step).trim_matches(['\'', '"']);
                if !at.is_object() {
                    *at = Value::Object(Map::new());
                }
                at.as_object_mut()?.entry(name).or_insert(Value::Null)
            }
        };
    }
    Some(at)
}

/// Writes a stream. Texts go out as they come; calls and images once they are whole; reasons to end and usage last.
pub struct Encoder {
    framing: Framing,
    written: bool,
    over: bool,
    id: String,
    model: String,
    /// Parts that have begun and not ended, by their numbers.
    parts: HashMap<u32, Open>,
    /// Bytes that are held in `parts`.
    held: usize,
    stops: Vec<(u32, Stop)>,
    usage: Option<Usage>,
}

struct Open {
    choice: u32,
    kind: PartKind,
    /// What cannot be written before it is whole.
    held: String,
    signature: Option<String>,
}

impl Encoder {
    pub fn new(framing: Framing) -> Encoder {
        Encoder {
            framing,
            written: false,
            over: false,
            id: String::new(),
            model: String::new(),
            parts: HashMap::new(),
            held: 0,
            stops: Vec::new(),
            usage: None,
        }
    }

    fn write_part(&mut self, choice: u32, part: Wire<'_>, out: &mut Vec<u8>) {
        let content = Content { parts: vec![part], role: Some("model".into()) };
        let candidate = Candidate {
            content: Some(content),
            finish_reason: None,
            index: Some(choice.into()),
            ..Candidate::default()
        };
        self.write(Answer { candidates: vec![candidate], ..Answer::default() }, out);
    }

    fn write(&mut self, answer: Answer<'_>, out: &mut Vec<u8>) {
        let answer = Answer {
            model_version: Some(self.model.as_str().into()),
            response_id: Some(self.id.as_str().into()),
            ..answer
        };
        let begun = std::mem::replace(&mut self.written, true);
        let before = out.len();
        match self.framing {
            Framing::JsonArray => json_array::begin(begun, out),
            _ => out.extend_from_slice(b"data: "),
        }
        if serde_json::to_writer(&mut *out, &answer).is_err() {
            out.truncate(before);
        }
        match self.framing {
            Framing::JsonArray => {}
            _ => out.extend_from_slice(b"\n\n"),
        }
    }

    fn end_part(&mut self, part: u32, out: &mut Vec<u8>) {
        let Some(open) = self.parts.remove(&part) else { return };
        self.held -= open.held.len();
        let signature = open.signature.as_deref();
        let whole = match &open.kind {
            PartKind::ToolCall { id, name } => Wire {
                thought_signature: signature.map(Cow::Borrowed).or_else(|| tool_ids::signature(id).map(Cow::Owned)),
                function_call: Some(FunctionCall {
                    id: Some(tool_ids::bare(id).into()),
                    name: Some(name.as_str().into()),
                    args: Some(answer::arguments(&open.held)),
                    ..FunctionCall::default()
                }),
                ..Wire::default()
            },
            PartKind::Image { media_type } | PartKind::Audio { media_type } => {
                answer::write_blob(media_type, &open.held)
            }
            PartKind::Reasoning => match signature::for_caller(signature, None) {
                Some(signature) => {
                    Wire { text: Some("".into()), thought: true, thought_signature: Some(signature), ..Wire::default() }
                }
                None => return,
            },
            PartKind::Encrypted(thought) => Wire {
                text: Some("".into()),
                thought: !thought.starts_with(signature::OWN),
                thought_signature: signature::for_caller(None, Some(thought)),
                ..Wire::default()
            },
            PartKind::Text | PartKind::Refusal => return,
        };
        self.write_part(open.choice, whole, out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let open: Vec<u32> = self.parts.keys().copied().collect();
        open.into_iter().for_each(|part| self.end_part(part, out));
        let stops = std::mem::take(&mut self.stops);
        let candidates = stops.into_iter().map(|(choice, stop)| Candidate {
            content: Some(Content {
                parts: vec![Wire { text: Some("".into()), ..Wire::default() }],
                role: Some("model".into()),
            }),
            finish_reason: Some(answer::finish_reason(stop).into()),
            index: Some(choice.into()),
            ..Candidate::default()
        });
        let usage_metadata = self.usage.as_ref().map(answer::usage_metadata);
        self.write(Answer { candidates: candidates.collect(), usage_metadata, ..Answer::default() }, out);
        self.close(out);
    }

    fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>) {
        if failure.kind == FailureKind::ContentFilter && !self.written {
            let feedback = PromptFeedback {
                block_reason: Some("SAFETY".into()),
                block_reason_message: Some(failure.message.as_str().into()),
            };
            let usage_metadata = self.usage.as_ref().map(answer::usage_metadata);
            self.write(Answer { prompt_feedback: Some(feedback), usage_metadata, ..Answer::default() }, out);
            return self.close(out);
        }
        let body = failure::encode(failure);
        match self.framing {
            Framing::JsonArray => {
                json_array::begin(self.written, out);
                out.extend_from_slice(&body);
            }
            _ => sse::write(None, &body, out),
        }
        self.close(out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        self.over = true;
        if self.framing == Framing::JsonArray {
            out.extend_from_slice(json_array::END);
        }
    }
}

impl EventEncoder for Encoder {
    fn encode(&mut self, event: &ChatEvent, out: &mut Vec<u8>) {
        if self.over {
            return;
        }
        match event {
            ChatEvent::Start { id, model, .. } => {
                self.id.clone_from(id);
                self.model.clone_from(model);
            }
            ChatEvent::PartStart { part, choice, kind } => {
                let open = Open { choice: *choice, kind: kind.clone(), held: String::new(), signature: None };
                self.parts.insert(*part, open);
            }
            ChatEvent::Delta { part, text } => {
                let Some(open) = self.parts.get_mut(part) else { return };
                let (choice, thought) = (open.choice, open.kind == PartKind::Reasoning);
                match open.kind {
                    PartKind::Text | PartKind::Refusal | PartKind::Reasoning => {
                        let part = Wire { text: Some(text.as_str().into()), thought, ..Wire::default() };
                        self.write_part(choice, part, out);
                    }
                    _ if self.held + text.len() > LONGEST => {
                        self.fail(&Failure::new(FailureKind::Server, "The provider's answer is too long."), out);
                    }
                    _ => {
                        open.held.push_str(text);
                        self.held += text.len();
                    }
                }
            }
            ChatEvent::Signature { part, signature } => {
                if let Some(open) = self.parts.get_mut(part) {
                    open.signature = Some(signature.clone());
                }
            }
            ChatEvent::PartEnd { part } => self.end_part(*part, out),
            ChatEvent::Stop { choice, stop, .. } => self.stops.push((*choice, *stop)),
            ChatEvent::Usage(usage) => self.usage.get_or_insert_default().absorb(usage),
            ChatEvent::End => self.end(out),
            ChatEvent::Error(failure) => self.fail(failure, out),
        }
    }
}
