//! Answers that the gateway writes itself, and the one place where errors become them.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use std::time::Duration;

use super::ai;
use super::context::Context;
use crate::ai::formats::Format;
use crate::error::{Error, Fault, Reason};
use crate::filters::filter::{Answer, Response};
use crate::snapshot::Backend;

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request body that the client has begun to send is read to its end, so that the connection can serve the next
/// request, if it is declared no longer than this and comes within [`DRAIN_TIME`].
const DRAIN_BYTES: u64 = 1 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Sends an answer of the gateway's own, through the response filters of the matched route.
///
/// The client's connection stays open, except where the request left it in a state that cannot be trusted.
pub async fn send(session: &mut Session, ctx: &mut Context, answer: Answer) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(answer.status, Some(answer.headers.len() + 4))?;
    for (name, value) in answer.headers {
        head.append_header(name, value)?;
    }
    let bodiless = matches!(answer.status.as_u16(), 204 | 304) || answer.status.is_informational();
    if !bodiless {
        head.insert_header(CONTENT_LENGTH, answer.body.len())?;
    }
    head.insert_header(X_REQUEST_ID, ctx.exchange.request_id.clone())?;
    ctx.exchange.status = answer.status.as_u16();
    filter_response(session, ctx, &mut head);

    let without_body = bodiless || answer.body.is_empty() || session.req_header().method == Method::HEAD;
    finish_request_body(session);
    session.write_response_header(Box::new(head), without_body).await?;
    let body = if without_body { Bytes::new() } else { answer.body };
    session.write_response_body(Some(body), true).await
}

/// Sends the answer that an error maps to. A gRPC caller gets its own dialect: status 200 and `grpc-status`.
pub async fn send_error(session: &mut Session, ctx: &mut Context, error: Error) -> pingora::Result<()> {
    ctx.exchange.reason = Some(error.reason);
    if is_grpc(&session.req_header().headers) {
        return send_grpc_error(session, ctx, &error).await;
    }
    let request_id = ctx.exchange.request_id.clone();
    let made = match dialect(session, ctx) {
        Some(format) => ai::in_dialect(format, &error, &String::from_utf8_lossy(request_id.as_bytes())),
        None => None,
    };
    send(session, ctx, made.unwrap_or_else(|| problem(&error, &request_id))).await
}

/// How callers of a route to models speak: their libraries understand no other errors.
fn dialect(session: &Session, ctx: &Context) -> Option<Format> {
    let snapshot = ctx.snapshot.as_ref()?;
    let Backend::Ai(_) = ctx.route(snapshot)?.backend else { return None };
    let path = session.req_header().uri.path();
    Some(ai::operation(session, path)?.format())
}

/// 405 with the methods that the path does have (RFC 9110, section 15.5.6).
pub async fn send_method_not_allowed(session: &mut Session, ctx: &mut Context, allow: &str) -> pingora::Result<()> {
    let error = Error::new(Reason::MethodNotAllowed);
    ctx.exchange.reason = Some(error.reason);
    let mut answer = problem(&error, &ctx.exchange.request_id);
    if let Ok(allow) = HeaderValue::from_str(allow) {
        answer.headers.push((ALLOW, allow));
    }
    send(session, ctx, answer).await
}

/// Runs the response side of the route's filters; every answer passes here once, whoever made it.
pub fn filter_response(session: &Session, ctx: &mut Context, head: &mut ResponseHeader) {
    for (name, value) in ctx.controls.answer_headers.drain(..) {
        let _ = head.append_header(name, value);
    }
    let Some(snapshot) = ctx.snapshot.clone() else { return };
    let Some(route) = ctx.route(&snapshot) else { return };
    let own = ctx.chain.clone();
    let chain = own.as_ref().unwrap_or(&route.chain);
    if chain.response.is_empty() {
        return;
    }
    let mut response =
        Response { head, request: session.req_header(), exchange: &ctx.exchange, controls: &mut ctx.controls };
    for filter in &chain.response {
        filter.on_response(&mut response);
    }
}

/// The problem document (RFC 9457) of an error.
pub fn problem(error: &Error, request_id: &HeaderValue) -> Answer {
    let reason = error.reason;
    let mut document = serde_json::json!({
        "type": format!("urn:headgate:problem:{}", reason.label()),
        "title": reason.title(),
        "status": reason.status(),
        "request_id": String::from_utf8_lossy(request_id.as_bytes()),
    });
    if let Some(detail) = &error.detail {
        document["detail"] = detail.as_ref().into();
    }
    for (name, value) in &error.members {
        document[*name] = value.clone();
    }
    let mut headers = vec![(CONTENT_TYPE, PROBLEM_JSON), (CACHE_CONTROL, NO_STORE)];
    if let Ok(status) = HeaderValue::from_str(&format!("headgate; error={}", reason.proxy_status())) {
        headers.push((PROXY_STATUS, status));
    }
    headers.extend(error.headers.iter().cloned());
    Answer {
        status: StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        headers,
        body: document.to_string().into(),
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
        && !headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc-web"))
}

async fn send_grpc_error(session: &mut Session, ctx: &mut Context, error: &Error) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(StatusCode::OK, Some(4))?;
    head.insert_header(CONTENT_TYPE, "application/grpc")?;
    head.insert_header(X_REQUEST_ID, ctx.exchange.request_id.clone())?;
    ctx.exchange.status = 200;
    filter_response(session, ctx, &mut head);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(grpc_status(error.reason)));
    trailers.insert("grpc-message", HeaderValue::from_static(error.reason.title()));
    finish_request_body(session);
    session.write_response_header(Box::new(head), false).await?;
    match &ctx.controls.trailers_in_body {
        Some(in_body) => session.write_response_body(Some(in_body.encode(&trailers)), true).await,
        None => session.as_downstream_mut().write_response_trailers(trailers).await,
    }
}

/// The gRPC status of a refusal, by the mapping that gRPC defines for HTTP statuses, except where the reason says more.
fn grpc_status(reason: Reason) -> u16 {
    const INVALID_ARGUMENT: u16 = 3;
    const DEADLINE_EXCEEDED: u16 = 4;
    const PERMISSION_DENIED: u16 = 7;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match reason.status() {
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 | 405 => UNIMPLEMENTED,
        413 | 429 => RESOURCE_EXHAUSTED,
        408 | 504 => DEADLINE_EXCEEDED,
        502 | 503 => UNAVAILABLE,
        _ if reason.fault() == Fault::Client => INVALID_ARGUMENT,
        _ => INTERNAL,
    }
}

/// Lets an answer that comes before the request body has ended keep the connection, if the rest is short.
fn finish_request_body(session: &mut Session) {
    let head = session.req_header();
    // A client that waits for 100 Continue may or may not send the body now: only closing is unambiguous.
    let waits = head.headers.contains_key(http::header::EXPECT);
    let declared = head.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if waits || declared.is_some_and(|length| length > DRAIN_BYTES) {
        return;
    }
    session.set_total_drain_timeout(Some(DRAIN_TIME));
    session.set_close_on_response_before_downstream_finish(false);
}
