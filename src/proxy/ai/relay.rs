//! An answer of a provider that passes as it comes, whatever it is: JSON, events, speech, a file. What it says of usage is read
//! on the way.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::outgoing::Exchange;
use super::told;
use crate::ai::metering::{Found, Meter};
use crate::proxy::answer::{X_REQUEST_ID, filter_response};
use crate::proxy::body;
use crate::proxy::context::Context;

/// Of an answer of a provider, callers are shown these headers, which are about the answer and not about the provider's
/// account, cookies or connection.
const SHOWN: [&str; 9] = [
    "content-type",
    "content-length",
    "content-disposition",
    "content-language",
    "content-range",
    "accept-ranges",
    "etag",
    "last-modified",
    "retry-after",
];

/// Those that say how much more may be asked for, by how they begin.
const SHOWN_PREFIXES: [&str; 2] = ["x-ratelimit-", "anthropic-ratelimit-"];

/// Passes an answer on. What was found in it is in `found`, also if the caller is gone or the answer broke off, which are the
/// errors.
pub async fn answer(
    exchange: &mut Exchange,
    session: &mut Session,
    ctx: &mut Context,
    more: Option<(HeaderName, HeaderValue)>,
    found: &mut Found,
) -> pingora::Result<()> {
    let mut meter = Meter::of(exchange.head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()));
    let sent = send(exchange, session, ctx, more, &mut meter).await;
    *found = meter.finish();
    sent
}

async fn send(
    exchange: &mut Exchange,
    session: &mut Session,
    ctx: &mut Context,
    more: Option<(HeaderName, HeaderValue)>,
    meter: &mut Meter,
) -> pingora::Result<()> {
    let status = exchange.head.status;
    let asked = session.req_header();
    let bodiless = asked.method == Method::HEAD || matches!(status.as_u16(), 204 | 304);
    let mut head = ResponseHeader::build(status, Some(12))?;
    copy(&exchange.head.headers, &mut head)?;
    if !bodiless && !head.headers.contains_key(CONTENT_LENGTH) && asked.version == Version::HTTP_11 {
        head.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
    }
    head.insert_header(X_REQUEST_ID, ctx.exchange.request_id.clone())?;
    if let Some((name, value)) = more {
        head.insert_header(name, value)?;
    }
    if let Some(record) = &ctx.exchange.ai {
        for (name, value) in told(record) {
            head.insert_header(name, value)?;
        }
    }
    ctx.exchange.status = status.as_u16();
    filter_response(session, ctx, &mut head);
    session.write_response_header(Box::new(head), bodiless).await.map_err(|error| error.into_down())?;
    if bodiless {
        session.write_response_body(None, true).await.map_err(|error| error.into_down())?;
        return Ok(());
    }
    loop {
        // One that breaks off must not end in order, or it would be taken for whole: the error ends the connection.
        let piece = exchange.piece(session).await?;
        if let Some(piece) = &piece {
            meter.push(piece);
        }
        let last = piece.is_none() || exchange.http.response_done();
        let mut piece = Some(piece.unwrap_or_default());
        if let Some(pause) = body::response(&mut piece, last, ctx)? {
            tokio::time::sleep(pause).await;
        }
        if last || piece.as_ref().is_some_and(|piece| !piece.is_empty()) {
            let piece: Option<Bytes> = piece;
            session.write_response_body(piece, last).await.map_err(|error| error.into_down())?;
        }
        if last {
            return Ok(());
        }
    }
}

fn copy(from: &HeaderMap, to: &mut ResponseHeader) -> pingora::Result<()> {
    for (name, value) in from {
        let shown =
            SHOWN.contains(&name.as_str()) || SHOWN_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix));
        if shown {
            to.append_header(name.clone(), value.clone())?;
        }
    }
    Ok(())
}
