//! Upgrades to WebSocket: asked of the origin, and served to the end of the connection, beside Pingora's proxying.
//!
//! Pingora's own loop may take the origin's 101 before it has taken note of the end of the request, and then ends the
//! connection it has just switched. It also stops reading from a side while it writes to it, so that two sides that
//! both write much wait for each other for ever. No hook reaches either.
//!
//! Only WebSocket: to pass on `Upgrade: h2c` would let a client speak to the origin past every filter.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context as Waker, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Version};
use pingora::ErrorType::{InternalError, InvalidHTTPHeader, ReadError, WriteTimedout};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession as OriginSession;
use pingora::protocols::http::v1::client::HttpSession as OriginHttp1;
use pingora::protocols::http::v1::server::HttpSession as ClientHttp1;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::{Stream, UniqueID};
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::context::Context;
use super::{Proxy, body, failure, forward, respond};
use crate::error::{Error, Reason, Result};
use crate::upstream::drop_connection_fields;

const WEBSOCKET: &[u8] = b"websocket";

/// Read from the origin at a time.
const PIECE: usize = 16 << 10;

/// How long an origin is waited for when its side is closed; over TLS it has to take a last record.
const GOODBYE: Duration = Duration::from_secs(1);

/// Whether this is a request for a WebSocket as RFC 6455, section 4.1, has it.
pub fn asked_for(session: &mut Session) -> bool {
    let head = session.req_header();
    head.method == Method::GET
        && names_websocket(&head.headers)
        && tokens(&head.headers, CONNECTION.as_str()).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
        && session.is_body_empty()
}

/// Turns any other upgrade into the ordinary request that it is where the upgrade is not made (RFC 9110, section 7.8).
pub fn decline(session: &mut Session) {
    session.req_header_mut().remove_header(&UPGRADE);
}

/// Whether the chosen target can be asked: HTTP/2 has no upgrade.
pub fn possible(ctx: &Context) -> Result<()> {
    match &ctx.attempt {
        Some(attempt) if !attempt.pick.target().speaks_http1() => {
            Err(Error::with(Reason::UpstreamProtocol, "an upstream that speaks only HTTP/2 has no upgrade"))
        }
        _ => Ok(()),
    }
}

/// A request that the gateway has written in place of the client's, with a key of its own.
pub struct Made<'m> {
    /// In the form for HTTP/1.1.
    pub head: RequestHeader,
    /// Sees what the origin says in the WebSocket.
    pub tap: &'m mut Tap<'m>,
}

/// Sees bytes as they pass.
type Tap<'t> = dyn FnMut(&[u8]) + Send + 't;

/// Serves the request: attempt after attempt until a target has answered, then the answer or the WebSocket to its end. With
/// `made` the origin is sent that instead of the client's request.
pub async fn run(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    mut made: Option<Made<'_>>,
) -> pingora::Result<()> {
    loop {
        match attempt(proxy, session, ctx, &mut made).await {
            Err(error) if error.retry() => {}
            served => return served,
        }
    }
}

async fn attempt(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    made: &mut Option<Made<'_>>,
) -> pingora::Result<()> {
    let mut peer = forward::peer(session, ctx)?;
    peer.options.set_http_version(1, 1);
    let connecting = proxy.connector.get_http_session(&*peer);
    let (origin, reused) = match unless_client_leaves(session, connecting).await? {
        Ok((OriginSession::H1(origin), reused)) => (origin, reused),
        Ok(_) => return Err(failure::fail(ctx, Reason::UpstreamProtocol.into())),
        Err(error) => return Err(forward::connect_failed(session, ctx, error.into_up())),
    };
    forward::connected(reused, origin.id(), ctx);
    match exchange(proxy, session, ctx, origin, &peer, made).await {
        Ok(()) => Ok(()),
        Err(error) => Err(forward::attempt_failed(session, ctx, error, reused)),
    }
}

/// Sends the request and serves what comes back.
async fn exchange(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    mut origin: OriginHttp1,
    peer: &HttpPeer,
    made: &mut Option<Made<'_>>,
) -> pingora::Result<()> {
    origin.read_timeout = peer.options.read_timeout;
    origin.write_timeout = peer.options.write_timeout;
    let head = request_head(session, ctx, made.as_ref())?;
    origin.write_request_header(Box::new(head)).await.map_err(|e| e.into_up())?;
    body::request_sent(ctx);
    let head = unless_client_leaves(session, answer_head(&mut origin)).await?.map_err(|e| e.into_up())?;
    if made.is_some() && matches!(head.status.as_u16(), 401 | 403) {
        // What is said of the gateway's own key is not for clients.
        let error = Error::with(Reason::UpstreamProtocol, "the provider refused the gateway's key");
        return Err(failure::fail(ctx, error));
    }
    if head.status.as_u16() != 101 {
        forward::answered(session, &head, ctx)?;
        relay(session, ctx, &mut origin, head).await?;
        proxy.connector.release_http_session(OriginSession::H1(origin), peer, peer.options.idle_timeout).await;
        return Ok(());
    }
    if !origin.was_upgraded() || !names_websocket(&head.headers) {
        let what = "the origin switched to a protocol that was not offered";
        return Err(pingora::Error::explain(InvalidHTTPHeader, what).into_up());
    }
    forward::answered(session, &head, ctx)?;
    switch(session, ctx, origin, head, made).await
}

fn request_head(session: &Session, ctx: &Context, made: Option<&Made<'_>>) -> pingora::Result<RequestHeader> {
    let mut head = made.map_or_else(|| session.req_header().clone(), |made| made.head.clone());
    let offered = session.req_header().headers.get(UPGRADE).cloned();
    drop_connection_fields(&mut head);
    forward::request_head(&mut head, ctx);
    head.insert_header(CONNECTION, HeaderValue::from_static("Upgrade"))?;
    head.insert_header(UPGRADE, offered.unwrap_or(HeaderValue::from_static("websocket")))?;
    Ok(head)
}

/// The first head that is more than an interim one.
async fn answer_head(origin: &mut OriginHttp1) -> pingora::Result<ResponseHeader> {
    for _ in 0..=forward::MOST_INTERIM {
        let head = *origin.read_resp_header_parts().await?;
        if !head.status.is_informational() || head.status.as_u16() == 101 {
            return Ok(head);
        }
    }
    Err(pingora::Error::explain(InvalidHTTPHeader, "the origin sends interim answers only"))
}

/// The origin answers as if nobody had spoken of an upgrade.
async fn relay(
    session: &mut Session,
    ctx: &mut Context,
    origin: &mut OriginHttp1,
    mut head: ResponseHeader,
) -> pingora::Result<()> {
    let mut last = origin.is_body_done();
    let framed = head.headers.contains_key(CONTENT_LENGTH) || head.headers.contains_key(TRANSFER_ENCODING);
    if !last && !framed {
        // Its end is where the origin closes; the client's connection need not close with it.
        head.set_version(Version::HTTP_11);
        head.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
    }
    respond::head(session, &mut head, ctx)?;
    session.write_response_header(Box::new(head), last).await.map_err(|e| e.into_down())?;
    if last {
        session.write_response_body(None, true).await.map_err(|e| e.into_down())?;
    }
    while !last {
        let read = unless_client_leaves(session, origin.read_body_bytes()).await?;
        let mut chunk = read.map_err(|e| e.into_up())?;
        last = origin.is_body_done();
        if let Some(pause) = body::response(&mut chunk, last, ctx)? {
            tokio::time::sleep(pause).await;
        }
        session.write_response_body(chunk, last).await.map_err(|e| e.into_down())?;
    }
    stop_clock(ctx);
    Ok(())
}

/// Both have agreed: from the end of this head on the bytes are theirs.
async fn switch(
    session: &mut Session,
    ctx: &mut Context,
    mut origin: OriginHttp1,
    mut head: ResponseHeader,
    made: &mut Option<Made<'_>>,
) -> pingora::Result<()> {
    // The limits on an answer are not for a WebSocket. Idle ones are ended on the client's side (`timeouts.upgraded`).
    stop_clock(ctx);
    origin.read_timeout = None;
    let patience = ctx.limits.map_or(Duration::MAX, |limits| limits.idle);
    respond::head(session, &mut head, ctx)?;
    session.write_response_header(Box::new(head), false).await.map_err(|e| e.into_down())?;
    let ServerSession::H1(client) = session.as_downstream_mut() else { return Err(not_switched()) };
    if !client.was_upgraded() {
        return Err(not_switched());
    }
    let mut made = made.take();
    // What came with the head is in the session's buffer and would be lost with it. It is there without waiting.
    let first = once(origin.read_body_bytes()).await;
    if let Some(first) = first.transpose().map_err(|e| e.into_up())?.flatten() {
        if let Some(made) = &mut made {
            (made.tap)(&first);
        }
        client.send_proxy_task(HttpTask::UpgradedBody(Some(first), false));
    }
    let tap = match &mut made {
        Some(made) => Some(&mut *made.tap as &mut Tap<'_>),
        None => None,
    };
    let mut tunnel = Tunnel {
        client,
        origin: origin.into_inner(),
        to_origin: Bytes::new(),
        unflushed: false,
        origin_takes: true,
        stalled: None,
        patience,
        tap,
    };
    let ended = poll_fn(|cx| tunnel.poll(cx)).await;
    let _ = tokio::time::timeout(GOODBYE, tunnel.origin.shutdown()).await;
    ended
}

/// Polls a future a single time.
async fn once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn not_switched() -> Box<pingora::Error> {
    pingora::Error::explain(InternalError, "the client's connection did not switch")
}

fn stop_clock(ctx: &mut Context) {
    if let Some(attempt) = &mut ctx.attempt {
        attempt.deadline = None;
    }
}

/// Waits for the origin for as long as there is someone to answer.
pub async fn unless_client_leaves<T>(session: &mut Session, work: impl Future<Output = T>) -> pingora::Result<T> {
    tokio::select! {
        biased;
        done = work => Ok(done),
        // Never anything but an error: the request has no body.
        left = session.as_downstream_mut().read_body_or_idle(true) => {
            let left = left.err().unwrap_or_else(|| pingora::Error::explain(ReadError, "input after the request"));
            Err(left.into_down())
        }
    }
}

/// Copies both ways at once. Neither way waits for the other, and each holds one piece that is not yet delivered.
struct Tunnel<'s> {
    client: &'s mut ClientHttp1,
    origin: Stream,
    /// Read from the client, not yet taken by the origin.
    to_origin: Bytes,
    unflushed: bool,
    /// The origin has not refused to be written to. It may still have something to say then.
    origin_takes: bool,
    /// Runs while the origin takes nothing. The client is not read meanwhile, so that its own time limit is not kept.
    stalled: Option<Pin<Box<Sleep>>>,
    patience: Duration,
    tap: Option<&'s mut Tap<'s>>,
}

/// What a step of one way came to.
enum Step {
    Moved,
    Ended,
}

impl Tunnel<'_> {
    /// Ready when either side has ended.
    fn poll(&mut self, cx: &mut Waker<'_>) -> Poll<pingora::Result<()>> {
        loop {
            let steps = [self.poll_up(cx)?, self.poll_down(cx)?];
            if steps.iter().any(|step| matches!(step, Poll::Ready(Step::Ended))) {
                return Poll::Ready(Ok(()));
            }
            if steps.iter().all(Poll::is_pending) {
                return Poll::Pending;
            }
        }
    }

    /// Client to origin. Reading into the session is safe to give up between polls, as Pingora's own loop does.
    fn poll_up(&mut self, cx: &mut Waker<'_>) -> Poll<pingora::Result<Step>> {
        if self.to_origin.has_remaining() || self.unflushed {
            return self.poll_deliver(cx).map_ok(|()| Step::Moved);
        }
        let read = ready!(pin!(self.client.read_body_bytes()).poll(cx));
        Poll::Ready(match read.map_err(|e| e.into_down())? {
            Some(piece) => {
                self.to_origin = piece;
                Ok(Step::Moved)
            }
            None => Ok(Step::Ended),
        })
    }

    /// Gives the origin what is there for it, within bounds of time. One that refuses is closing: what it has said last
    /// may still be on the way.
    fn poll_deliver(&mut self, cx: &mut Waker<'_>) -> Poll<pingora::Result<()>> {
        if self.origin_takes {
            match self.poll_write(cx) {
                Poll::Pending => {
                    let patience = self.patience;
                    let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                    ready!(stalled.as_mut().poll(cx));
                    let what = "the upgraded origin takes nothing";
                    return Poll::Ready(Err(pingora::Error::explain(WriteTimedout, what).into_up()));
                }
                Poll::Ready(written) => self.origin_takes = written.is_ok(),
            }
            self.stalled = None;
        }
        if !self.origin_takes {
            self.unflushed = false;
            self.to_origin.clear();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Waker<'_>) -> Poll<io::Result<()>> {
        let mut origin = Pin::new(&mut self.origin);
        if self.to_origin.is_empty() {
            ready!(origin.poll_flush(cx))?;
            self.unflushed = false;
            return Poll::Ready(Ok(()));
        }
        let written = ready!(origin.as_mut().poll_write(cx, &self.to_origin))?;
        self.to_origin.advance(written);
        self.unflushed = true;
        Poll::Ready(if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) })
    }

    /// Origin to client. The session remembers how far it has written, so that this too may be given up between polls.
    fn poll_down(&mut self, cx: &mut Waker<'_>) -> Poll<pingora::Result<Step>> {
        if self.client.has_pending_proxy_tasks() {
            let written = ready!(pin!(self.client.write_proxy_tasks()).poll(cx));
            return Poll::Ready(written.map(|_| Step::Moved).map_err(|e| e.into_down()));
        }
        let mut space = [MaybeUninit::uninit(); PIECE];
        let mut piece = ReadBuf::uninit(&mut space);
        if let Err(error) = ready!(Pin::new(&mut self.origin).poll_read(cx, &mut piece)) {
            return Poll::Ready(Err(pingora::Error::because(ReadError, "from the upgraded origin", error).into_up()));
        }
        if piece.filled().is_empty() {
            return Poll::Ready(Ok(Step::Ended));
        }
        if let Some(tap) = &mut self.tap {
            tap(piece.filled());
        }
        let piece = Bytes::copy_from_slice(piece.filled());
        self.client.send_proxy_task(HttpTask::UpgradedBody(Some(piece), false));
        Poll::Ready(Ok(Step::Moved))
    }
}

/// Whether the one protocol named is WebSocket.
fn names_websocket(headers: &HeaderMap) -> bool {
    let mut named = tokens(headers, UPGRADE.as_str());
    named.next().is_some_and(|name| name.eq_ignore_ascii_case(WEBSOCKET)) && named.next().is_none()
}

fn tokens<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h [u8]> {
    headers.get_all(name).into_iter().flat_map(|value| value.as_bytes().split(|b| *b == b',')).map(<[u8]>::trim_ascii)
}
