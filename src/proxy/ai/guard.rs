//! Shows calls and answers to the guardrails, and asks whom those have to ask.

use std::sync::Arc;

use bytes::Bytes;

use super::Serving;
use super::refusal::Refusal;
use super::side_call::SideCall;
use crate::ai::chat::{ChatAnswer, ChatEvent, Choice, Dropped, Failure, FailureKind, Part, Stop};
use crate::ai::guardrails::remote::{Opinion, Question, Who};
use crate::ai::guardrails::stream::StreamGuard;
use crate::ai::guardrails::texts::{self, Place, Unambiguous};
use crate::ai::guardrails::{Checked, Guardrail, check, check_answers, check_model, note};
use crate::config::guardrails::{Action, OnError, Side};
use crate::proxy::tunnel::unless_client_leaves;
use crate::snapshot::ai::Virtual;
use crate::telemetry::exchange::Verdict;

/// Looks at a call before any provider is asked, and masks what is to be masked. The outer error means that the caller is gone.
pub async fn call(serving: &mut Serving<'_>, model: &Virtual) -> pingora::Result<Result<(), Refusal>> {
    let of_route = &serving.ai.guardrails;
    if of_route.is_empty() && model.guardrails.is_empty() {
        return Ok(Ok(()));
    }
    let of_model = model.guardrails.iter().filter(|own| !of_route.iter().any(|other| Arc::ptr_eq(own, other)));
    serving.call.guardrails = of_route.iter().chain(of_model).cloned().collect();
    let mut verdicts = Vec::new();
    let looked = look_at_call(serving, &mut verdicts).await;
    if let Some(record) = serving.record() {
        record.guardrails.append(&mut verdicts);
    }
    looked
}

async fn look_at_call(serving: &mut Serving<'_>, verdicts: &mut Vec<Verdict>) -> pingora::Result<Result<(), Refusal>> {
    let guardrails = serving.call.guardrails.clone();
    if let Some(guardrail) = check_model(&guardrails, &serving.call.name, verdicts).and_then(|i| guardrails.get(i)) {
        return Ok(Err(refused(guardrail)));
    }
    if !guardrails.iter().any(|guardrail| guardrail.is_on(Side::Input)) {
        return Ok(Ok(()));
    }
    let Unambiguous(mut document) = match serde_json::from_slice(serving.call.head.body()) {
        Ok(document) => document,
        Err(error) => {
            let message = format!("the body is not a call that can be read: {error}");
            return Ok(Err(Failure::invalid("", message).into()));
        }
    };
    let Checked { blocked, mut changed } = check(&guardrails, Side::Input, &mut document, verdicts);
    if let Some(guardrail) = blocked.and_then(|i| guardrails.get(i)) {
        return Ok(Err(refused(guardrail)));
    }
    for guardrail in guardrails.iter().filter(|guardrail| guardrail.is_on(Side::Input)) {
        match ask_about_document(serving, guardrail, Side::Input, &mut document, verdicts).await? {
            Looked::Fine => {}
            Looked::Changed => changed = true,
            Looked::Blocked => return Ok(Err(refused(guardrail))),
        }
    }
    if changed && let Err(failure) = serving.call.rewrite(document.to_string().into()) {
        return Ok(Err(failure.into()));
    }
    Ok(Ok(()))
}

/// Looks at a whole answer in the caller's dialect. Returns what the caller gets, and whether the answer was withheld.
pub async fn answer(serving: &mut Serving<'_>, answer: &ChatAnswer, body: Bytes) -> pingora::Result<(Bytes, bool)> {
    let mut verdicts = Vec::new();
    let looked = look_at_answer(serving, answer, &body, &mut verdicts).await?;
    if let Some(record) = serving.record() {
        record.guardrails.append(&mut verdicts);
    }
    Ok(match looked {
        Ok(None) => (body, false),
        Ok(Some(masked)) => (masked, false),
        Err(guardrail) => (withheld(serving, answer, guardrail.as_deref()), true),
    })
}

/// The error is the guardrail that withholds it; none if it cannot be read, and so cannot be looked at.
async fn look_at_answer(
    serving: &mut Serving<'_>,
    answer: &ChatAnswer,
    body: &Bytes,
    verdicts: &mut Vec<Verdict>,
) -> pingora::Result<Result<Option<Bytes>, Option<Arc<Guardrail>>>> {
    let guardrails = serving.call.guardrails.clone();
    let Ok(Unambiguous(mut document)) = serde_json::from_slice(body) else { return Ok(Err(None)) };
    let Checked { blocked, mut changed } = check(&guardrails, Side::Output, &mut document, verdicts);
    let texts: Vec<String> = answer.choices.iter().filter_map(said).collect();
    let blocked = blocked.or_else(|| check_answers(&guardrails, texts.iter().map(String::as_str), verdicts));
    if let Some(guardrail) = blocked.and_then(|i| guardrails.get(i)) {
        return Ok(Err(Some(guardrail.clone())));
    }
    for guardrail in guardrails.iter().filter(|guardrail| guardrail.is_on(Side::Output)) {
        match ask_about_document(serving, guardrail, Side::Output, &mut document, verdicts).await? {
            Looked::Fine => {}
            Looked::Changed => changed = true,
            Looked::Blocked => return Ok(Err(Some(guardrail.clone()))),
        }
    }
    Ok(Ok(changed.then(|| document.to_string().into())))
}

/// The text of a choice; `None` if it calls tools instead.
fn said(choice: &Choice) -> Option<String> {
    let mut text = String::new();
    let mut calls = false;
    for part in &choice.parts {
        match part {
            Part::Text { text: more, .. } => text += more,
            Part::ToolCall(_) => calls = true,
            _ => {}
        }
    }
    (!text.is_empty() || !calls).then_some(text)
}

/// An answer in place of one that nobody shall see.
fn withheld(serving: &mut Serving<'_>, answer: &ChatAnswer, guardrail: Option<&Guardrail>) -> Bytes {
    let text = guardrail.and_then(Guardrail::replacement);
    let parts = text.map(|text| Part::Text { text: text.to_owned(), cache: None });
    let choice =
        |_: &Choice| Choice { parts: parts.iter().cloned().collect(), stop: Stop::Filtered, stop_sequence: None };
    let answer = ChatAnswer {
        id: answer.id.clone(),
        model: answer.model.clone(),
        created: answer.created,
        choices: answer.choices.iter().map(choice).collect(),
        usage: answer.usage,
        rest: Default::default(),
    };
    let nothing = Default::default();
    let request = serving.call.decoded().unwrap_or(&nothing);
    serving.call.caller.encode_answer(&answer, request, &mut Dropped::default()).into()
}

/// Asks whoever has to be asked about a streamed answer that is complete.
pub async fn ask_about(
    serving: &mut Serving<'_>,
    guard: &mut StreamGuard,
    out: &mut Vec<ChatEvent>,
) -> pingora::Result<()> {
    while let Some((guardrail, texts)) = guard.question() {
        if texts.is_empty() {
            guard.passed(out);
            continue;
        }
        match ask(serving, &guardrail, Side::Output, &texts).await? {
            Ok(Opinion::Fine) => guard.passed(out),
            Ok(Opinion::Found) => guard.found(out),
            Ok(Opinion::Replace(_)) if guardrail.action == Action::Log => guard.found(out),
            Ok(Opinion::Replace(texts)) => guard.replaced(texts, out),
            Err(on_error) => guard.unanswered(on_error == OnError::Block, out),
        }
    }
    Ok(())
}

enum Looked {
    Fine,
    Changed,
    Blocked,
}

async fn ask_about_document(
    serving: &mut Serving<'_>,
    guardrail: &Guardrail,
    on: Side,
    document: &mut serde_json::Value,
    verdicts: &mut Vec<Verdict>,
) -> pingora::Result<Looked> {
    if guardrail.remote().is_none() {
        return Ok(Looked::Fine);
    }
    let mut asked = texts::collect(document, on);
    asked.retain(|(place, _)| guardrail.looks_at(on, *place));
    if asked.is_empty() {
        return Ok(Looked::Fine);
    }
    let only_logs = guardrail.action == Action::Log;
    let opinion = ask(serving, guardrail, on, &asked).await?;
    let action = match opinion {
        Ok(Opinion::Fine) => return Ok(Looked::Fine),
        Err(_) => "error",
        Ok(Opinion::Replace(_)) if !only_logs => Action::Mask.name(),
        Ok(_) => guardrail.action.name(),
    };
    note(verdicts, guardrail, on, action, 1);
    Ok(match opinion {
        _ if only_logs => Looked::Fine,
        Err(OnError::Allow) | Ok(Opinion::Fine) => Looked::Fine,
        Err(OnError::Block) | Ok(Opinion::Found) => Looked::Blocked,
        Ok(Opinion::Replace(texts)) => {
            let mut texts = texts.into_iter();
            texts::walk(document, on, &mut |place, text| {
                if guardrail.looks_at(on, place)
                    && let Some(new) = texts.next()
                {
                    *text = new;
                }
            });
            Looked::Changed
        }
    })
}

/// Asks; the inner error says what happens without an answer.
async fn ask(
    serving: &mut Serving<'_>,
    guardrail: &Guardrail,
    on: Side,
    texts: &[(Place, String)],
) -> pingora::Result<Result<Opinion, OnError>> {
    let Some(remote) = guardrail.remote() else { return Ok(Ok(Opinion::Fine)) };
    let request_id = String::from_utf8_lossy(serving.ctx.exchange.request_id.as_bytes()).into_owned();
    let question = Question {
        guardrail: &guardrail.name,
        on,
        model: &serving.call.name,
        consumer: serving.ctx.exchange.consumer().map(|consumer| consumer.name()),
        request_id: &request_id,
        texts,
    };
    let models = &serving.ai.models;
    let answered = match remote.ask(&question) {
        Err(error) => Err(error),
        Ok(body) => {
            let side_call = match &remote.who {
                Who::Moderation { provider, model, .. } => models
                    .provider(provider)
                    .and_then(|provider| SideCall::to_provider(provider, "/moderations", model, body, remote.timeout)),
                Who::Webhook { url, token } => models.webhook(url).and_then(|(endpoint, origin)| {
                    SideCall::to_service(endpoint, origin, token.as_ref(), body, remote.timeout)
                }),
            };
            match side_call {
                Some(side_call) => unless_client_leaves(serving.session, side_call.make(serving.proxy)).await?,
                None => Err("the request could not be written".to_owned()),
            }
        }
    };
    Ok(answered.and_then(|body| remote.opinion(&body, texts.len())).map_err(|error| {
        log::warn!("request {request_id}: the guardrail {} could not ask: {error}", guardrail.name);
        remote.on_error
    }))
}

/// The answer to calls beyond chat where there are guardrails, which know no such calls.
pub fn cannot_look() -> Failure {
    let message =
        "There are guardrails here, which only look at chat; this call needs a route and a model without them.";
    Failure::new(FailureKind::Permission, message)
}

fn refused(guardrail: &Guardrail) -> Refusal {
    let code = Some("content_policy_violation".to_owned());
    Failure { code, ..Failure::new(FailureKind::ContentFilter, guardrail.refusal()) }.into()
}
