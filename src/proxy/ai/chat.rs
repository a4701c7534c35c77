//! A chat call, from its body to the first provider that is asked.

use std::time::Instant;

use pingora::proxy::Session;

use super::budget::{self, Asked, Size};
use super::call::Call;
use super::refusal::{self, Refusal, no_such_model};
use super::{Serving, body, cached, fallback, guard};
use crate::ai::formats::{Format, PathFacts};
use crate::ai::operation::Operation;
use crate::error::Reason;
use crate::proxy::context::Context;
use crate::proxy::{Proxy, answer};
use crate::snapshot::ai::{AiBackend, Resolved};
use crate::telemetry::Observation;
use crate::telemetry::exchange::{AiCall, TracedCall};

/// Answers a chat call.
pub async fn answer(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    ai: &AiBackend,
    format: Format,
    path: PathFacts<'_>,
) -> pingora::Result<()> {
    let head = session.req_header();
    // Google's own libraries ask for events; who does not gets one array, as there.
    let array = path.stream == Some(true) && !head.uri.query().is_some_and(|query| query.contains("alt=sse"));
    let Some(caller) = format.caller_of_arrays().filter(|_| array).or(format.caller()) else {
        return answer::send_error(session, ctx, Reason::RouteNotFound.into()).await;
    };
    let (body, _held) = match body::read(proxy, session, ctx, &ai.models).await? {
        Ok(read) => read,
        Err(error) => return answer::send_error(session, ctx, error).await,
    };
    let headers = &session.req_header().headers;
    let call = match Call::read(format, caller, path, headers, &body, ai.default_model()) {
        Ok(call) => call,
        Err(failure) => return refusal::send(session, ctx, format, &failure.into()).await,
    };
    let mut serving = Serving { proxy, session, ctx, ai, call };
    let model = match before(&mut serving) {
        Ok(model) => model,
        Err(refusal) => return serving.refuse(&refusal).await,
    };
    if let Err(refusal) = guard::call(&mut serving, model.get()).await? {
        return serving.refuse(&refusal).await;
    }
    // What is given again costs nothing.
    if cached::answer(&mut serving).await? {
        return Ok(());
    }
    let (call, size) = (&serving.call, Size::of(&serving.call));
    match budget::reserve(serving.ctx, ai, call.format, &call.name, Asked::Targets(&model.get().targets), &size).await {
        Ok(()) => fallback::answer(&mut serving, model.get()).await,
        Err(refusal) => serving.refuse(&refusal).await,
    }
}

/// What is settled before any provider is asked: who may answer, and whether anybody shall.
fn before<'s>(serving: &mut Serving<'s>) -> Result<Resolved<'s>, Refusal> {
    let (ai, call) = (serving.ai, &mut serving.call);
    let found = ai.allows(&call.name).then(|| ai.models.resolve(&call.name)).flatten();
    let model = found.ok_or_else(|| no_such_model(&call.name))?;
    let record = AiCall::new(&call.name, call.format.name(), call.stream);
    let sampled = serving.ctx.observation.as_ref().is_some_and(Observation::is_sampled);
    // A call that cannot be read is refused by whoever has to read it.
    let traced = sampled.then(|| Box::new(call.request().map(TracedCall::from).unwrap_or_default()));
    let operation = Operation::Chat { format: serving.call.format, path: PathFacts::default() }.name();
    let started = Some(Instant::now());
    serving.ctx.exchange.ai = Some(Box::new(AiCall { operation, started, traced, ..record }));
    Ok(model)
}
