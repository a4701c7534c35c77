//! Copies of requests for a second upstream.

use bytes::{Bytes, BytesMut};
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use super::Proxy;
use super::context::Context;
use crate::snapshot::{MirrorTo, Origin};
use crate::upstream::{Moment, PickRequest, Timeouts};
use std::sync::Arc;

/// A request with a longer body is not copied: half a body is worth nothing, and copies must not cost memory.
const LONGEST_BODY: usize = 1 << 20;

/// A copy whose body is still coming in.
pub struct Pending {
    origin: Arc<Origin>,
    head: RequestHeader,
    body: BytesMut,
}

/// Decides whether this request is copied, and sends the copy at once if it has no body.
pub fn begin(proxy: &Proxy, mirror: &MirrorTo, session: &mut Session, ctx: &mut Context) {
    if session.is_upgrade_req() || !mirror.share.draw() {
        return;
    }
    let head = session.req_header().clone();
    if session.is_body_empty() {
        send(proxy, &mirror.origin, head, None, ctx);
    } else {
        ctx.mirror = Some(Box::new(Pending { origin: mirror.origin.clone(), head, body: BytesMut::new() }));
    }
}

/// Adds a piece of the body, and sends the copy with the last.
pub fn body(proxy: &Proxy, chunk: &Option<Bytes>, last: bool, ctx: &mut Context) {
    let Some(mut pending) = ctx.mirror.take() else { return };
    // The second attempt sends the body again; the copy is of the request, not of the attempts.
    if ctx.exchange.attempts > 1 && pending.body.is_empty() {
        return;
    }
    if let Some(chunk) = chunk {
        if pending.body.len() + chunk.len() > LONGEST_BODY {
            return;
        }
        pending.body.extend_from_slice(chunk);
    }
    if last {
        let Pending { origin, head, body } = *pending;
        send(proxy, &origin, head, Some(body.freeze()), ctx);
    } else {
        ctx.mirror = Some(pending);
    }
}

fn send(proxy: &Proxy, origin: &Origin, head: RequestHeader, body: Option<Bytes>, ctx: &Context) {
    let upstream = &origin.upstream;
    let key = upstream.hash_key(&head, ctx.exchange.client);
    let request = PickRequest { key: key.as_deref(), sticky: None, tried: &[] };
    // Whether the shadow is in a state to be asked is its own affair: without a target there is no copy.
    let Ok(pick) = upstream.pick(&request, Moment::now()) else { return };
    let peer = pick.target().peer(&Timeouts::default());
    proxy.mirror.send(*peer, head, body);
}
