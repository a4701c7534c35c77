//! Looking at a whole call or a whole answer.

use std::sync::Arc;

use serde_json::Value;

use super::texts::{self, Place};
use super::window::Hits;
use super::{Guardrail, note};
use crate::config::guardrails::{Action, Role, Side};
use crate::telemetry::exchange::Verdict;

/// What became of a document.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// The guardrail that blocks it, by its place.
    pub blocked: Option<usize>,
    /// Something was masked.
    pub changed: bool,
}

/// Looks at everything that can be told from the texts alone, masks what is to be masked and notes what was found.
pub fn check(guardrails: &[Arc<Guardrail>], side: Side, document: &mut Value, verdicts: &mut Vec<Verdict>) -> Checked {
    let mut checked = Checked::default();
    // What blocks goes first: it sees what was written, and nothing is masked in vain.
    let scanning = |blocks: bool| {
        let of = move |guardrail: &&Arc<Guardrail>| {
            guardrail.is_on(side) && guardrail.scanner().is_some() && (guardrail.action == Action::Block) == blocks
        };
        guardrails.iter().filter(of).cloned().collect::<Vec<_>>()
    };
    for guardrails_of_kind in [scanning(true), scanning(false)] {
        if guardrails_of_kind.is_empty() {
            continue;
        }
        let mut blocking = None;
        texts::walk(document, side, &mut |place, text| {
            if blocking.is_none() {
                let found = scan(&guardrails_of_kind, side, place, text, verdicts);
                blocking = found.0;
                checked.changed |= found.1;
            }
        });
        if let Some(blocking) = blocking {
            checked.blocked = guardrails.iter().position(|guardrail| Arc::ptr_eq(guardrail, &blocking));
            return checked;
        }
    }
    if side == Side::Input {
        checked.blocked = topics(guardrails, document, verdicts);
    }
    checked
}

/// Looks at one text. Says which guardrail blocks it, and whether it was changed.
fn scan(
    guardrails: &[Arc<Guardrail>],
    side: Side,
    place: Place,
    text: &mut String,
    verdicts: &mut Vec<Verdict>,
) -> (Option<Arc<Guardrail>>, bool) {
    let own: Vec<Arc<Guardrail>> =
        guardrails.iter().filter(|guardrail| guardrail.looks_at(side, place)).cloned().collect();
    let hits = Hits::find(&own, text, 0);
    if hits.is_empty() {
        return (None, false);
    }
    hits.by_guardrail(&mut |i, count| {
        if let Some(guardrail) = own.get(i) {
            note(verdicts, guardrail, side, guardrail.action.name(), count);
        }
    });
    if let Some(blocking) = hits.blocking(&own).and_then(|i| own.get(i)) {
        return (Some(blocking.clone()), false);
    }
    let mut masked = String::with_capacity(text.len());
    hits.mask(&own, text, 0, text.len(), &mut masked);
    let changed = masked != *text;
    *text = masked;
    (None, changed)
}

fn topics(guardrails: &[Arc<Guardrail>], document: &mut Value, verdicts: &mut Vec<Verdict>) -> Option<usize> {
    if !guardrails.iter().any(|guardrail| guardrail.is_about_topics()) {
        return None;
    }
    let said: Vec<(Place, String)> = texts::collect(document, Side::Input);
    let said: Vec<_> = said.into_iter().filter(|(place, _)| place.role == Role::User).collect();
    let newest = said.last().map_or(0, |(place, _)| place.message);
    let join = |texts: &mut dyn Iterator<Item = &(Place, String)>| {
        texts.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n")
    };
    let all = join(&mut said.iter());
    let newest = join(&mut said.iter().filter(|(place, _)| place.message == newest));
    let mut blocked = None;
    for (i, guardrail) in guardrails.iter().enumerate() {
        if guardrail.is_on(Side::Input) && guardrail.refuses_topic(&newest, &all) {
            note(verdicts, guardrail, Side::Input, guardrail.action.name(), 1);
            blocked = blocked.or((guardrail.action == Action::Block).then_some(i));
        }
    }
    blocked
}

/// Looks whether the name of a model is against a guardrail.
pub fn check_model(guardrails: &[Arc<Guardrail>], model: &str, verdicts: &mut Vec<Verdict>) -> Option<usize> {
    let mut blocked = None;
    for (i, guardrail) in guardrails.iter().enumerate() {
        if guardrail.refuses_model(model) {
            note(verdicts, guardrail, Side::Input, guardrail.action.name(), 1);
            blocked = blocked.or((guardrail.action == Action::Block).then_some(i));
        }
    }
    blocked
}

/// Looks whether what an answer says is what it has to look like. An answer that calls tools says nothing yet.
pub fn check_answers<'a>(
    guardrails: &[Arc<Guardrail>],
    answers: impl Iterator<Item = &'a str> + Clone,
    verdicts: &mut Vec<Verdict>,
) -> Option<usize> {
    let mut blocked = None;
    for (i, guardrail) in guardrails.iter().enumerate() {
        if guardrail.is_on(Side::Output) && answers.clone().any(|answer| guardrail.refuses_answer(answer)) {
            note(verdicts, guardrail, Side::Output, guardrail.action.name(), 1);
            blocked = blocked.or((guardrail.action == Action::Block).then_some(i));
        }
    }
    blocked
}
