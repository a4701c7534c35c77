//! An answer that came whole, on its way to the caller.

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;

use super::attempt::Attempt;
use super::failed::Failed;
use super::{JSON, Serving, cached, dropped_header, guard, told};
use crate::ai::chat::{ChatAnswer, FailureKind, Stop, Usage};
use crate::ai::{tokens, usage};
use crate::filters::filter::Answer;
use crate::proxy::answer;

/// A whole answer: what it says, and how the provider wrote it.
pub struct Whole {
    pub answer: ChatAnswer,
    pub body: Bytes,
}

/// Sends an answer; or a failure if it is none that the caller shall have.
pub async fn send(serving: &mut Serving<'_>, attempt: &Attempt<'_>, whole: Whole) -> pingora::Result<Option<Failed>> {
    if let Err(failed) = before(attempt, &whole) {
        return Ok(Some(failed));
    }
    let ask = &attempt.ask;
    ask.target.state.began(attempt.started.elapsed());
    let mut dropped = ask.dropped.clone();
    let body = match (ask.passing, serving.call.decoded()) {
        (true, _) => whole.body,
        (false, Ok(request)) => serving.call.caller.encode_answer(&whole.answer, request, &mut dropped).into(),
        (false, Err(failure)) => return Ok(Some(failure.into())),
    };
    // It was made, whether or not the guardrails let the caller have it, and wait for it.
    if let Some(record) = serving.record() {
        usage::settle(record, &ask.provider.spec, &ask.target.model, whole.answer.usage.as_ref());
    }
    let (body, withheld) = match serving.call.is_guarded() {
        true => guard::answer(serving, &whole.answer, body).await?,
        false => (body, false),
    };
    if serving.call.keep.is_some() && !withheld {
        // What a guardrail has masked is masked in both forms.
        let seen = match serving.call.is_guarded() {
            true => serving.call.format.provider().and_then(|format| format.decode_answer(&body).ok()),
            false => Some(whole.answer.clone()),
        };
        seen.into_iter().for_each(|answer| cached::keep(serving, answer, Some(body.clone())));
    }
    let untold = whole.answer.usage.is_none().then(|| whole.answer.texts());
    let mut headers = vec![(CONTENT_TYPE, JSON)];
    headers.extend(dropped_header(&dropped));
    if let Some(record) = serving.record() {
        let stop = whole.answer.choices.first().map(|choice| choice.stop);
        record.finish = stop.map(|stop| if withheld { Stop::Filtered } else { stop }.name());
        if let Some(traced) = &mut record.traced {
            (traced.response_id, traced.response_model) = (Some(whole.answer.id), Some(whole.answer.model));
        }
        headers.extend(told(record));
    }
    let sent = answer::send(serving.session, serving.ctx, Answer { status: StatusCode::OK, headers, body }).await;
    if let Some(said) = untold {
        // The caller has its answer, and does not wait for this.
        let model = &*ask.target.model;
        let input = tokens::count_prompt(serving.call.head.body().clone(), model).await;
        let output = tokens::count_text(said, model).await;
        if let Some(record) = serving.record() {
            usage::counted(record, &ask.provider.spec, model, &Usage { input, output, ..Usage::default() });
        }
    }
    sent?;
    Ok(None)
}

/// Sees every whole answer before it is sent.
fn before(attempt: &Attempt<'_>, whole: &Whole) -> Result<(), Failed> {
    let filtered = || whole.answer.choices.iter().all(|choice| choice.stop == Stop::Filtered);
    if attempt.ask.fallback_on_filter && filtered() {
        let failed = Failed::new(FailureKind::ContentFilter, "the provider's filter refused to answer");
        return Err(Failed { again: true, billed: whole.answer.usage.map(Box::new), ..failed });
    }
    Ok(())
}
