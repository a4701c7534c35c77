//! A stream as a whole answer, and a whole answer as a stream.

use crate::ai::chat::{ChatAnswer, ChatEvent, Choice, Part, PartKind, Source, Stop, Thought, ToolCall};

/// Collects the events of a stream.
pub struct Recorder {
    answer: ChatAnswer,
    /// By its number: which choice, and the part.
    parts: Vec<(u32, Part)>,
    stops: Vec<(u32, Stop, Option<String>)>,
    size: usize,
    most: usize,
    ended: bool,
}

impl Recorder {
    /// Gives up on an answer that is longer than `most` bytes.
    pub fn new(most: usize) -> Recorder {
        Recorder { answer: ChatAnswer::default(), parts: Vec::new(), stops: Vec::new(), size: 0, most, ended: false }
    }

    pub fn push(&mut self, event: &ChatEvent) {
        if self.size > self.most {
            return;
        }
        match event {
            ChatEvent::Start { id, model, created } => {
                self.answer.id.clone_from(id);
                self.answer.model.clone_from(model);
                self.answer.created = *created;
            }
            ChatEvent::PartStart { choice, kind, .. } => {
                self.parts.push((*choice, empty(kind)));
                self.size += 64;
            }
            ChatEvent::Delta { part, text } => {
                self.size += text.len();
                if let Some(to) = self.parts.get_mut(*part as usize).and_then(|(_, part)| text_of(part)) {
                    to.push_str(text);
                }
            }
            ChatEvent::Signature { part, signature } => match self.parts.get_mut(*part as usize) {
                Some((_, Part::Reasoning(thought))) => thought.signature = Some(signature.clone()),
                Some((_, Part::ToolCall(call))) => call.signature = Some(signature.clone()),
                _ => {}
            },
            ChatEvent::PartEnd { .. } => {}
            ChatEvent::Stop { choice, stop, stop_sequence } => self.stops.push((*choice, *stop, stop_sequence.clone())),
            ChatEvent::Usage(usage) => self.answer.usage.get_or_insert_default().absorb(usage),
            ChatEvent::End => self.ended = true,
            ChatEvent::Error(_) => self.size = usize::MAX,
        }
    }

    /// The answer, if it came to its end.
    pub fn finish(mut self) -> Option<ChatAnswer> {
        if !self.ended || self.size > self.most || self.stops.is_empty() {
            return None;
        }
        self.stops.sort_by_key(|(choice, ..)| *choice);
        let choices = self.stops.into_iter().map(|(number, stop, stop_sequence)| {
            let parts = self.parts.iter().filter(|(choice, _)| *choice == number).map(|(_, part)| part.clone());
            Choice { parts: parts.collect(), stop, stop_sequence }
        });
        self.answer.choices = choices.collect();
        Some(self.answer)
    }
}

fn empty(kind: &PartKind) -> Part {
    let data = |media_type: &String| Source::Data { media_type: media_type.clone(), base64: String::new() };
    match kind {
        PartKind::Text => Part::Text { text: String::new(), cache: None },
        PartKind::Refusal => Part::Refusal { text: String::new() },
        PartKind::Reasoning => Part::Reasoning(Thought::default()),
        PartKind::Encrypted(data) => Part::Reasoning(Thought { encrypted: Some(data.clone()), ..Thought::default() }),
        PartKind::ToolCall { id, name } => {
            Part::ToolCall(ToolCall { id: id.clone(), name: name.clone(), ..ToolCall::default() })
        }
        PartKind::Image { media_type } => Part::Image { source: data(media_type), detail: None, cache: None },
        PartKind::Audio { media_type } => Part::Audio { source: data(media_type) },
    }
}

fn text_of(part: &mut Part) -> Option<&mut String> {
    match part {
        Part::Text { text, .. } | Part::Refusal { text } => Some(text),
        Part::Reasoning(thought) => Some(&mut thought.text),
        Part::ToolCall(call) => Some(&mut call.arguments),
        Part::Image { source: Source::Data { base64, .. }, .. }
        | Part::Audio { source: Source::Data { base64, .. } } => Some(base64),
        _ => None,
    }
}

/// The bytes of a part's texts.
pub fn size(part: &Part) -> usize {
    let own = match part {
        Part::Text { text, .. } | Part::Refusal { text } => text.len(),
        Part::Reasoning(thought) => {
            thought.text.len()
                + thought.signature.as_ref().map_or(0, String::len)
                + thought.encrypted.as_ref().map_or(0, String::len)
        }
        Part::ToolCall(call) => call.id.len() + call.name.len() + call.arguments.len(),
        Part::Image { source: Source::Data { base64, .. }, .. }
        | Part::Audio { source: Source::Data { base64, .. } } => base64.len(),
        _ => 0,
    };
    64 + own
}

/// The steps of a whole answer. A part that no stream can hold (an image by its address) is left out.
pub fn events(answer: &ChatAnswer) -> Vec<ChatEvent> {
    let mut events =
        vec![ChatEvent::Start { id: answer.id.clone(), model: answer.model.clone(), created: answer.created }];
    let mut number = 0;
    for (choice, said) in (0..).zip(&answer.choices) {
        for part in &said.parts {
            let Some((kind, text, signature)) = taken_apart(part) else { continue };
            events.push(ChatEvent::PartStart { part: number, choice, kind });
            if !text.is_empty() {
                events.push(ChatEvent::Delta { part: number, text: text.to_owned() });
            }
            if let Some(signature) = signature {
                events.push(ChatEvent::Signature { part: number, signature: signature.clone() });
            }
            events.push(ChatEvent::PartEnd { part: number });
            number += 1;
        }
        let stop_sequence = said.stop_sequence.clone();
        events.push(ChatEvent::Stop { choice, stop: said.stop, stop_sequence });
    }
    events.extend(answer.usage.map(ChatEvent::Usage));
    events.push(ChatEvent::End);
    events
}

fn taken_apart(part: &Part) -> Option<(PartKind, &str, Option<&String>)> {
    Some(match part {
        Part::Text { text, .. } => (PartKind::Text, text, None),
        Part::Refusal { text } => (PartKind::Refusal, text, None),
        Part::Reasoning(Thought { encrypted: Some(data), text, .. }) if text.is_empty() => {
            (PartKind::Encrypted(data.clone()), "", None)
        }
        Part::Reasoning(thought) => (PartKind::Reasoning, &thought.text, thought.signature.as_ref()),
        Part::ToolCall(call) => {
            let kind = PartKind::ToolCall { id: call.id.clone(), name: call.name.clone() };
            (kind, &call.arguments, call.signature.as_ref())
        }
        Part::Image { source: Source::Data { media_type, base64 }, .. } => {
            (PartKind::Image { media_type: media_type.clone() }, base64, None)
        }
        Part::Audio { source: Source::Data { media_type, base64 } } => {
            (PartKind::Audio { media_type: media_type.clone() }, base64, None)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ai::chat::Usage;

    #[test]
    fn a_stream_that_was_recorded_is_the_same_stream_again() {
        let tool = PartKind::ToolCall { id: "1".into(), name: "f".into() };
        let want = vec![
            ChatEvent::Start { id: "x".into(), model: "m".into(), created: 7 },
            ChatEvent::PartStart { part: 0, choice: 0, kind: PartKind::Reasoning },
            ChatEvent::Delta { part: 0, text: "hm".into() },
            ChatEvent::Signature { part: 0, signature: "s".into() },
            ChatEvent::PartEnd { part: 0 },
            ChatEvent::PartStart { part: 1, choice: 0, kind: PartKind::Text },
            ChatEvent::Delta { part: 1, text: "Hello".into() },
            ChatEvent::PartEnd { part: 1 },
            ChatEvent::PartStart { part: 2, choice: 0, kind: tool },
            ChatEvent::Delta { part: 2, text: "{}".into() },
            ChatEvent::PartEnd { part: 2 },
            ChatEvent::Stop { choice: 0, stop: Stop::ToolUse, stop_sequence: None },
            ChatEvent::Usage(Usage { input: 5, output: 2, ..Usage::default() }),
            ChatEvent::End,
        ];
        let record = |events: &[ChatEvent], most| {
            let mut recorder = Recorder::new(most);
            events.iter().for_each(|event| recorder.push(event));
            recorder.finish()
        };
        assert_eq!(events(&record(&want, 1000).unwrap()), want);
        assert_eq!(record(&want, 100), None, "too long");
        assert_eq!(record(&want[..want.len() - 1], 1000), None, "not complete");
    }
}
