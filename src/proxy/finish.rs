//! The end of an exchange: its last answer if it failed, and its record.

use pingora::proxy::{FailToProxy, Session};

use super::context::Context;
use super::{Proxy, ai, answer, failure};
use crate::error::{Error, Fault, Reason};
use crate::telemetry::Counted;
use crate::variables::Scope;

/// Answers an exchange that failed, if anyone is left to hear it and nothing was sent yet.
pub async fn fail(session: &mut Session, error: &pingora::Error, ctx: &mut Context) -> FailToProxy {
    let failure = ctx.failure.take().unwrap_or_else(|| Error::new(failure::reason(error)));
    let reason = failure.reason;
    ctx.exchange.reason = Some(reason);
    if failure.reason.fault() != Fault::Client {
        log::debug!("request {:?} failed: {failure}; {error}", ctx.exchange.request_id);
    }
    if reason == Reason::ClientClosed || session.response_written().is_some_and(|head| !head.status.is_informational())
    {
        return FailToProxy { error_code: 0, can_reuse_downstream: false };
    }
    // Pingora closes the client's connection after any failure past the request filter, so the answer has to say so.
    session.set_keepalive(None);
    if let Err(unsent) = answer::send_error(session, ctx, failure).await {
        log::debug!("request {:?}: error answer not sent: {unsent}", ctx.exchange.request_id);
    }
    FailToProxy { error_code: reason.status(), can_reuse_downstream: false }
}

/// Completes the record of the exchange and hands it to metrics, access log and traces. Runs for every request that
/// was received, also when the client left midway.
pub fn record(proxy: &Proxy, session: &mut Session, error: Option<&pingora::Error>, ctx: &mut Context) {
    ctx.attempt = None;
    ctx.controls.held.clear();
    let exchange = &mut ctx.exchange;
    exchange.duration = exchange.started.elapsed();
    if let Some(call) = &mut exchange.ai {
        call.duration = call.started.map(|started| started.elapsed());
    }
    exchange.request_bytes = session.body_bytes_read() as u64;
    exchange.response_bytes = session.body_bytes_sent() as u64;
    if let Some(head) = session.response_written() {
        exchange.status = head.status.as_u16();
    }
    if let (None, Some(error)) = (exchange.reason, error) {
        exchange.reason = Some(failure::reason(error));
    }
    let snapshot = ctx.snapshot.take();
    ai::budget::conclude(ctx, snapshot.as_deref());
    let route = snapshot.as_ref().and_then(|snapshot| ctx.route(snapshot));
    let Some(observation) = ctx.observation.take() else { return };
    let counted = Counted {
        route: route.map(|route| &*route.metrics),
        upstream: ctx.origin.as_ref().filter(|_| ctx.exchange.attempts > 0).map(|origin| &*origin.metrics),
    };
    let scope = Scope { exchange: &ctx.exchange, request: session.req_header(), response: session.response_written() };
    proxy.telemetry.finish(observation, counted, &scope);
}
