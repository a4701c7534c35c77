//! Looking at an answer that comes in pieces, before the caller sees them.
//!
//! Each text of each choice goes through a [`Window`]. Arguments of tools are kept until they are complete, so that they can
//! be read as what they are. Where a guardrail can only say something of a whole answer, all of it is kept until then.

use std::sync::Arc;

use super::texts::{self, Place};
use super::window::{Hits, Window};
use super::{Guardrail, note, whole};
use crate::ai::chat::{ChatEvent, PartKind, Stop};
use crate::config::guardrails::{Action, Role, Side};
use crate::telemetry::exchange::Verdict;

/// What is kept of the arguments of one call of a tool.
const MOST_ARGUMENTS: usize = 1 << 20;
/// What is kept of an answer that is looked at as a whole.
const MOST_KEPT: usize = 4 << 20;
/// Parts and choices beyond are not a model's doing; nothing of them is let through.
const MOST_PARTS: usize = 4096;

const SIDE: Side = Side::Output;

/// A guardrail that has to be asked, and what it is asked about.
type Open = (Arc<Guardrail>, Vec<(Place, String)>);

/// One answer that is looked at.
pub struct StreamGuard {
    guardrails: Vec<Arc<Guardrail>>,
    /// Those of them that look at texts, and at the arguments of tools.
    of_texts: Vec<Arc<Guardrail>>,
    of_tools: Vec<Arc<Guardrail>>,
    parts: Vec<Part>,
    /// Choices that have begun, and whether they have stopped.
    choices: Vec<(u32, bool)>,
    /// All of the answer is kept until it is complete.
    whole: bool,
    kept: Vec<ChatEvent>,
    kept_bytes: usize,
    /// Somebody has to be asked about the whole answer: those that were not yet.
    to_ask: Vec<Arc<Guardrail>>,
    complete: bool,
    ended: bool,
    withheld: bool,
    pub verdicts: Vec<Verdict>,
}

struct Part {
    choice: u32,
    kind: Kind,
    open: bool,
    window: Window,
    /// Arguments so far; of texts, what has been let through, where that is looked at as a whole.
    text: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    /// Thoughts and refusals.
    Aside,
    Arguments,
    Other,
}

impl StreamGuard {
    /// `None` if none of the guardrails looks at answers.
    pub fn new(guardrails: &[Arc<Guardrail>]) -> Option<StreamGuard> {
        let guardrails: Vec<_> = guardrails.iter().filter(|guardrail| guardrail.is_on(SIDE)).cloned().collect();
        if guardrails.is_empty() {
            return None;
        }
        let scanning = |tool: bool| {
            let place = Place { role: Role::Assistant, tool, message: 0 };
            let looks =
                move |guardrail: &&Arc<Guardrail>| guardrail.scanner().is_some() && guardrail.looks_at(SIDE, place);
            guardrails.iter().filter(looks).cloned().collect()
        };
        Some(StreamGuard {
            of_texts: scanning(false),
            of_tools: scanning(true),
            parts: Vec::new(),
            choices: Vec::new(),
            whole: guardrails.iter().any(|guardrail| guardrail.wants_whole() && guardrail.action != Action::Log),
            kept: Vec::new(),
            kept_bytes: 0,
            to_ask: guardrails.iter().filter(|guardrail| guardrail.remote().is_some()).cloned().collect(),
            complete: false,
            ended: false,
            withheld: false,
            verdicts: Vec::new(),
            guardrails,
        })
    }

    /// Takes an event and appends those that the caller may see.
    pub fn push(&mut self, event: ChatEvent, out: &mut Vec<ChatEvent>) {
        if self.ended || self.complete {
            return;
        }
        match event {
            ChatEvent::PartStart { part, choice, kind } => self.start(part, choice, kind, out),
            ChatEvent::Delta { part, text } => self.delta(part, text, out),
            ChatEvent::PartEnd { part } => {
                if self.flush(part, out) {
                    self.emit(ChatEvent::PartEnd { part }, out);
                }
            }
            ChatEvent::Stop { choice, .. } => {
                if self.close_parts(Some(choice), out) {
                    self.choice(choice).1 = true;
                    self.emit(event, out);
                }
            }
            ChatEvent::End => {
                if self.close_parts(None, out) {
                    self.end(out);
                }
            }
            // What is held back is lost with what would have made it certain.
            ChatEvent::Error(_) => {
                self.ended = true;
                out.push(event);
            }
            ChatEvent::Start { .. } => out.push(event),
            ChatEvent::Usage(_) | ChatEvent::Signature { .. } => self.emit(event, out),
        }
    }

    /// The next that has to be asked, and about what.
    pub fn question(&self) -> Option<Open> {
        let guardrail = self.to_ask.first().filter(|_| self.complete && !self.ended)?;
        let place = |part: &Part| Place {
            role: Role::Assistant,
            tool: part.kind == Kind::Arguments,
            message: part.choice as usize,
        };
        let texts = self.parts.iter().filter(|part| !part.text.is_empty()).map(|part| (place(part), part.text.clone()));
        let texts = texts.filter(|(place, _)| guardrail.looks_at(SIDE, *place)).collect();
        Some((guardrail.clone(), texts))
    }

    /// The one that was asked has nothing against the answer.
    pub fn passed(&mut self, out: &mut Vec<ChatEvent>) {
        self.to_ask.remove(0);
        if self.to_ask.is_empty() {
            self.release(out);
        }
    }

    /// The one that was asked wants these texts instead of those that it was asked about.
    pub fn replaced(&mut self, texts: Vec<String>, out: &mut Vec<ChatEvent>) {
        let Some((guardrail, asked)) = self.question() else { return };
        note(&mut self.verdicts, &guardrail, SIDE, Action::Mask.name(), 1);
        let looked_at = |part: &Part| {
            let place = Place { role: Role::Assistant, tool: part.kind == Kind::Arguments, message: 0 };
            !part.text.is_empty() && guardrail.looks_at(SIDE, place)
        };
        let mut new = asked.iter().map(|(_, text)| text).zip(texts);
        for (i, part) in self.parts.iter_mut().enumerate().filter(|(_, part)| looked_at(part)) {
            let Some((_, text)) = new.next() else { break };
            let mut first = true;
            self.kept.retain_mut(|event| match event {
                ChatEvent::Delta { part, text: old } if *part as usize == i => {
                    *old = if first { text.clone() } else { String::new() };
                    std::mem::take(&mut first)
                }
                _ => true,
            });
            part.text = text;
        }
        self.passed(out);
    }

    /// The one that was asked has found what it looks for.
    pub fn found(&mut self, out: &mut Vec<ChatEvent>) {
        let Some(guardrail) = self.to_ask.first().cloned() else { return };
        note(&mut self.verdicts, &guardrail, SIDE, guardrail.action.name(), 1);
        match guardrail.action {
            Action::Log => self.passed(out),
            _ => self.withhold(&guardrail, out),
        }
    }

    /// The one that was asked has not answered.
    pub fn unanswered(&mut self, block: bool, out: &mut Vec<ChatEvent>) {
        let Some(guardrail) = self.to_ask.first().cloned() else { return };
        note(&mut self.verdicts, &guardrail, SIDE, "error", 1);
        match block && guardrail.action != Action::Log {
            true => self.withhold(&guardrail, out),
            false => self.passed(out),
        }
    }

    fn start(&mut self, part: u32, choice: u32, kind: PartKind, out: &mut Vec<ChatEvent>) {
        let known = match &kind {
            PartKind::Text => Kind::Text,
            PartKind::Refusal | PartKind::Reasoning => Kind::Aside,
            PartKind::ToolCall { .. } => Kind::Arguments,
            PartKind::Encrypted(_) | PartKind::Image { .. } | PartKind::Audio { .. } => Kind::Other,
        };
        if part as usize != self.parts.len() || self.parts.len() >= MOST_PARTS {
            return;
        }
        self.choice(choice);
        self.parts.push(Part { choice, kind: known, open: true, window: Window::default(), text: String::new() });
        self.emit(ChatEvent::PartStart { part, choice, kind }, out);
    }

    fn choice(&mut self, choice: u32) -> &mut (u32, bool) {
        let at = self.choices.iter().position(|(known, _)| *known == choice).unwrap_or_else(|| {
            self.choices.push((choice, false));
            self.choices.len() - 1
        });
        &mut self.choices[at]
    }

    fn delta(&mut self, part: u32, text: String, out: &mut Vec<ChatEvent>) {
        let Some(state) = self.parts.get_mut(part as usize) else { return };
        match state.kind {
            Kind::Other => self.emit(ChatEvent::Delta { part, text }, out),
            Kind::Arguments if self.of_tools.is_empty() && !self.whole => {
                self.emit(ChatEvent::Delta { part, text }, out)
            }
            Kind::Arguments if state.text.len() + text.len() > MOST_ARGUMENTS => self.too_long(out),
            Kind::Arguments => state.text.push_str(&text),
            Kind::Text | Kind::Aside => {
                self.through(part, &text, false, out);
            }
        }
    }

    /// Sends a text through its window. False if it is blocked.
    fn through(&mut self, part: u32, text: &str, last: bool, out: &mut Vec<ChatEvent>) -> bool {
        let Some(state) = self.parts.get_mut(part as usize) else { return true };
        let mut certain = String::new();
        let (guardrails, verdicts) = (&self.of_texts, &mut self.verdicts);
        let pushed = state.window.push(text, last, guardrails, &mut certain, &mut |i, count| {
            if let Some(guardrail) = guardrails.get(i) {
                note(verdicts, guardrail, SIDE, guardrail.action.name(), count);
            }
        });
        match pushed.map_err(|i| guardrails.get(i).cloned()) {
            Err(Some(guardrail)) => {
                self.withhold(&guardrail, out);
                return false;
            }
            Err(None) => return false,
            Ok(()) => {}
        }
        if !certain.is_empty() {
            if self.guardrails.iter().any(|guardrail| guardrail.wants_whole()) && state.text.len() < MOST_KEPT {
                state.text.push_str(&certain);
            }
            self.emit(ChatEvent::Delta { part, text: certain }, out);
        }
        !self.ended
    }

    /// A part is complete. False if it is blocked.
    fn flush(&mut self, part: u32, out: &mut Vec<ChatEvent>) -> bool {
        let Some(state) = self.parts.get_mut(part as usize).filter(|state| state.open) else { return false };
        state.open = false;
        match state.kind {
            Kind::Text | Kind::Aside => self.through(part, "", true, out),
            Kind::Arguments if !state.text.is_empty() => {
                let text = state.text.clone();
                self.arguments(part, text, out)
            }
            Kind::Arguments | Kind::Other => true,
        }
    }

    fn arguments(&mut self, part: u32, text: String, out: &mut Vec<ChatEvent>) -> bool {
        let (guardrails, verdicts) = (&self.of_tools, &mut self.verdicts);
        let mut blocking = None;
        let changed = texts::arguments(&text, &mut |text| {
            let hits = Hits::find(guardrails, text, 0);
            hits.by_guardrail(&mut |i, count| {
                if let Some(guardrail) = guardrails.get(i) {
                    note(verdicts, guardrail, SIDE, guardrail.action.name(), count);
                }
            });
            blocking = blocking.take().or(hits.blocking(guardrails).and_then(|i| guardrails.get(i)).cloned());
            let mut masked = String::with_capacity(text.len());
            hits.mask(guardrails, text, 0, text.len(), &mut masked);
            *text = masked;
        });
        if let Some(guardrail) = blocking {
            self.withhold(&guardrail, out);
            return false;
        }
        let text = changed.unwrap_or(text);
        if let Some(state) = self.parts.get_mut(part as usize) {
            state.text.clone_from(&text);
        }
        self.emit(ChatEvent::Delta { part, text }, out);
        !self.ended
    }

    /// Completes the parts of a choice, or of all. False if one is blocked.
    fn close_parts(&mut self, choice: Option<u32>, out: &mut Vec<ChatEvent>) -> bool {
        for part in 0..self.parts.len() as u32 {
            let of = self.parts.get(part as usize).filter(|state| state.open);
            if of.is_none_or(|state| choice.is_some_and(|choice| choice != state.choice)) {
                continue;
            }
            if !self.flush(part, out) {
                return false;
            }
            self.emit(ChatEvent::PartEnd { part }, out);
        }
        !self.ended
    }

    /// Lets an event through, or keeps it.
    fn emit(&mut self, event: ChatEvent, out: &mut Vec<ChatEvent>) {
        if self.ended {
            return;
        }
        if !self.whole {
            return out.push(event);
        }
        self.kept_bytes += size_of::<ChatEvent>();
        if let ChatEvent::Delta { text, .. } = &event {
            self.kept_bytes += text.len();
        }
        match self.kept_bytes > MOST_KEPT {
            true => self.too_long(out),
            false => self.kept.push(event),
        }
    }

    /// All of the answer is there.
    fn end(&mut self, out: &mut Vec<ChatEvent>) {
        self.complete = true;
        let answers: Vec<String> = self
            .choices
            .iter()
            .map(|(choice, _)| {
                let own = self.parts.iter().filter(|part| part.choice == *choice && part.kind == Kind::Text);
                own.map(|part| part.text.as_str()).collect()
            })
            .filter(|text: &String| !text.is_empty() || !self.parts.iter().any(|part| part.kind == Kind::Arguments))
            .collect();
        let blocked = whole::check_answers(&self.guardrails, answers.iter().map(String::as_str), &mut self.verdicts);
        match blocked.and_then(|i| self.guardrails.get(i)).cloned() {
            Some(guardrail) => self.withhold(&guardrail, out),
            None if self.to_ask.is_empty() => self.release(out),
            None => {}
        }
    }

    fn release(&mut self, out: &mut Vec<ChatEvent>) {
        out.append(&mut self.kept);
        out.push(ChatEvent::End);
        self.ended = true;
    }

    /// Too long to be looked at: nobody can say that it is fine.
    fn too_long(&mut self, out: &mut Vec<ChatEvent>) {
        let first = self.guardrails.iter().find(|guardrail| guardrail.action != Action::Log);
        if let Some(guardrail) = first.or(self.guardrails.first()).cloned() {
            note(&mut self.verdicts, &guardrail, SIDE, "error", 1);
            self.withhold(&guardrail, out);
        }
    }

    /// Ends the answer without what was not let through.
    fn withhold(&mut self, guardrail: &Guardrail, out: &mut Vec<ChatEvent>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.withheld = true;
        // What the caller has not seen has not been.
        if self.whole {
            self.kept.clear();
            self.parts.clear();
            self.choices.iter_mut().for_each(|(_, stopped)| *stopped = false);
        }
        let open = self.parts.iter().enumerate().filter(|(_, part)| part.open);
        out.extend(open.map(|(part, _)| ChatEvent::PartEnd { part: part as u32 }));
        if self.choices.is_empty() {
            self.choices.push((0, false));
        }
        let mut part = self.parts.len() as u32;
        for (choice, _) in self.choices.iter().filter(|(_, stopped)| !stopped) {
            if let Some(text) = &guardrail.message {
                out.push(ChatEvent::PartStart { part, choice: *choice, kind: PartKind::Text });
                out.push(ChatEvent::Delta { part, text: text.to_string() });
                out.push(ChatEvent::PartEnd { part });
                part += 1;
            }
            out.push(ChatEvent::Stop { choice: *choice, stop: Stop::Filtered, stop_sequence: None });
        }
        out.push(ChatEvent::End);
    }

    /// Whether a guardrail has ended the answer.
    pub fn withheld(&self) -> bool {
        self.withheld
    }
}
