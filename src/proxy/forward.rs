//! Attempts at targets: which one, how it went, and whether another may do better.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use http::header::{CONTENT_TYPE, TE, TRANSFER_ENCODING};
use http::{HeaderValue, StatusCode};
use pingora::ErrorSource;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::HttpPeer;
use pingora::proxy::Session;

use super::context::{Attempt, Context};
use super::failure;
use crate::error::{Error, Reason, Result};
use crate::listener::Expired;
use crate::snapshot::Origin;
use crate::telemetry::metrics::Outcome as Counted;
use crate::upstream::{Cause, Failure, Moment, Outcome, PickRequest};

/// Interim answers (1xx) passed on for one request; an origin that sends more is not going to answer.
pub const MOST_INTERIM: u32 = 8;

/// Binds the request to its origin and chooses the target of the first attempt.
pub fn begin(origin: Arc<Origin>, session: &Session, ctx: &mut Context) -> Result<()> {
    ctx.exchange.upstream = Some(origin.upstream.name().clone());
    ctx.limits = Some(origin.upstream.limits(&ctx.controls.timeouts));
    ctx.origin = Some(origin);
    pick(session, ctx)
}

/// Chooses the target of the next attempt.
fn pick(session: &Session, ctx: &mut Context) -> Result<()> {
    let Some(origin) = &ctx.origin else { return Err(Reason::Internal.into()) };
    let upstream = &origin.upstream;
    let head = session.req_header();
    // The clock costs as much as the pick: the first attempt begins with the request, unless a filter has waited.
    let started = match ctx.exchange.attempts == 0 && !ctx.waited {
        true => ctx.exchange.started,
        false => Instant::now(),
    };
    let key = upstream.hash_key(head, ctx.exchange.client);
    let sticky = upstream.sticky_value(head);
    let request = PickRequest { key: key.as_deref(), sticky, tried: &ctx.tried };
    let pick = upstream.pick(&request, Moment::at(started))?;
    let cookie = upstream.set_cookie(pick.target(), sticky);
    ctx.sticky_cookie = cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok());
    ctx.exchange.target = Some(pick.target().name().clone());
    ctx.attempt = Some(Attempt { pick, started, begun: false, deadline: None });
    Ok(())
}

/// The peer of an attempt.
pub fn peer(session: &mut Session, ctx: &mut Context) -> pingora::Result<Box<HttpPeer>> {
    if ctx.attempt.as_ref().is_none_or(|attempt| attempt.begun) {
        start_over(session, ctx).map_err(|error| failure::fail(ctx, error))?;
    }
    let mut timeouts = ctx.controls.timeouts;
    if let Some(limits) = ctx.limits
        && let Some(total) = limits.total
    {
        let left = total.saturating_sub(ctx.exchange.started.elapsed());
        if left.is_zero() {
            return Err(failure::fail(ctx, Reason::UpstreamTimeout.into()));
        }
        timeouts.connect = Some(limits.connect.min(left));
        timeouts.first_byte = Some(limits.first_byte.min(left));
        timeouts.idle = Some(limits.idle.min(left));
    }
    let (Some(attempt), Some(origin)) = (ctx.attempt.as_mut(), &ctx.origin) else {
        return Err(failure::fail(ctx, Reason::Internal.into()));
    };
    attempt.begun = true;
    ctx.exchange.attempts += 1;
    if let Some(observation) = &mut ctx.observation {
        observation.attempt_started(&origin.metrics, attempt.pick.target().name(), attempt.started);
    }
    let mut peer = attempt.pick.target().peer(&timeouts);
    if session.is_body_empty() {
        // A head alone always fits the socket's buffer; the timer around the write would be for nothing.
        peer.options.write_timeout = None;
    }
    Ok(peer)
}

/// Makes the request as new, for another target.
fn start_over(session: &Session, ctx: &mut Context) -> Result<()> {
    ctx.attempt = None;
    ctx.received = 0;
    for transform in &mut ctx.controls.request_body {
        transform.restart();
    }
    pick(session, ctx)
}

/// The last changes to what one attempt sends.
pub fn request_head(head: &mut RequestHeader, ctx: &Context) {
    // Taken away with what belongs to the client's connection, but a gRPC server may insist on it.
    if head.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
        let _ = head.insert_header(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(observation) = &ctx.observation {
        observation.propagate(head);
    }
}

/// The attempt has a connection; from here on its answer is waited for.
pub fn connected(reused: bool, fd: RawFd, ctx: &mut Context) {
    let Some(attempt) = &mut ctx.attempt else { return };
    ctx.exchange.upstream_connect = (!reused).then(|| attempt.started.elapsed());
    if ctx.limits.is_some_and(|limits| limits.total.is_some() || limits.first_byte < limits.idle) {
        let spent = ctx.exchange.started.elapsed();
        attempt.deadline = attempt.pick.target().watch(fd, &ctx.controls.timeouts, spent);
    }
}

/// Refuses a 101: WebSockets have a way of their own, and nobody asked for any other protocol.
pub fn not_switching(head: &ResponseHeader, ctx: &mut Context) -> pingora::Result<()> {
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(failure::fail(ctx, Reason::UpstreamProtocol.into()));
    }
    Ok(())
}

/// The target's answer has begun. One that is worth another attempt is not passed on.
pub fn answered(session: &Session, head: &ResponseHeader, ctx: &mut Context) -> pingora::Result<()> {
    let status = head.status.as_u16();
    if head.status.is_informational() && status != 101 {
        ctx.interim += 1;
        return match ctx.interim > MOST_INTERIM {
            true => Err(failure::fail(ctx, Reason::UpstreamProtocol.into())),
            false => Ok(()),
        };
    }
    // Pingora would pass a body on whose coding it cannot read, and its end with it.
    if head.headers.get_all(TRANSFER_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(failure::fail(ctx, Reason::UpstreamProtocol.into()));
    }
    let (Some(attempt), Some(origin)) = (ctx.attempt.as_mut(), &ctx.origin) else { return Ok(()) };
    let now = Instant::now();
    let first_byte = now.saturating_duration_since(attempt.started);
    attempt.pick.report(Outcome::Answered { status, first_byte }, Moment::at(now));
    ctx.exchange.upstream_first_byte = Some(first_byte);
    if let Some(observation) = &mut ctx.observation {
        let target = attempt.pick.target().name();
        observation.attempt_finished(&origin.metrics, target, Counted::of_status(status), Some(status), now);
    }
    if let Some(deadline) = &attempt.deadline {
        deadline.answered();
    }
    if !origin.upstream.retries_on_status(status) || session.retry_buffer_truncated() {
        return Ok(());
    }
    let method = &session.req_header().method;
    if origin.upstream.may_retry(method, ctx.exchange.attempts, Cause::Status(status), Moment::at(now)) {
        ctx.tried.push(attempt.pick.target().id());
        ctx.retrying = true;
        let mut again = failure::carrier(Reason::UpstreamProtocol);
        again.set_retry(true);
        return Err(again);
    }
    Ok(())
}

/// No connection could be made; nothing was sent, so any request may go to another target.
pub fn connect_failed(session: &Session, ctx: &mut Context, mut error: Box<pingora::Error>) -> Box<pingora::Error> {
    let again = Failure::of(&error).is_some_and(|failure| retry(session, ctx, failure, false));
    error.set_retry(again);
    error
}

/// The attempt broke off after its connection was made.
pub fn attempt_failed(
    session: &Session,
    ctx: &mut Context,
    mut error: Box<pingora::Error>,
    reused: bool,
) -> Box<pingora::Error> {
    if std::mem::take(&mut ctx.retrying) {
        return error;
    }
    let out_of_time = ctx.attempt.as_ref().and_then(|a| a.deadline.as_ref()).is_some_and(|deadline| deadline.passed());
    let failure = match ctx.connection.as_ref().and_then(|connection| connection.expired()) {
        _ if out_of_time => Some(Failure::Timeout),
        Some(Expired::Body) => {
            ctx.failure = Some(Reason::RequestTimeout.into());
            None
        }
        Some(Expired::Malformed) => {
            ctx.failure = Some(Error::with(Reason::BadRequest, "the chunks of the body are malformed"));
            None
        }
        _ if ctx.failure.is_some() || *error.esource() == ErrorSource::Downstream => None,
        _ => Failure::of(&error),
    };
    let unanswered = session.response_written().is_none();
    // A pooled connection that the target had closed meanwhile says nothing about the target.
    let stale = reused && failure == Some(Failure::Reset) && unanswered;
    let repeatable = unanswered && !session.retry_buffer_truncated();
    let again = failure.is_some_and(|failure| retry(session, ctx, failure, stale) && repeatable);
    if let (false, Some(failure)) = (again, failure) {
        ctx.failure = Some(failure.reason().into());
    }
    error.set_retry(again);
    error
}

/// Enters a failure into the target's record and asks whether another attempt is allowed.
fn retry(session: &Session, ctx: &mut Context, failure: Failure, stale: bool) -> bool {
    let clock = Instant::now();
    let now = Moment::at(clock);
    let (Some(attempt), Some(origin)) = (ctx.attempt.as_mut(), &ctx.origin) else { return false };
    let target = attempt.pick.target();
    if let Some(observation) = &mut ctx.observation {
        let outcome = Counted::of_failure(failure.reason());
        observation.attempt_finished(&origin.metrics, target.name(), outcome, None, clock);
    }
    if !stale {
        ctx.tried.push(target.id());
        attempt.pick.report(Outcome::Failed(failure), now);
    }
    let method = &session.req_header().method;
    origin.upstream.may_retry(method, ctx.exchange.attempts, Cause::Failed(failure), now)
}
