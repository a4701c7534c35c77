//! The head of a backend's answer on its way to the client.

use http::HeaderMap;
use http::header::{CONNECTION, CONTENT_LENGTH, SET_COOKIE, TRANSFER_ENCODING, UPGRADE};
use http::response::Parts;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::answer::{X_REQUEST_ID, filter_response};
use super::context::Context;

/// What belongs to the origin's connection, and means nothing or worse on the client's (RFC 9110, section 7.6.1).
/// `Transfer-Encoding` is not among them here: Pingora reads it to frame the body anew.
const HOP_BY_HOP: [&str; 3] = ["proxy-authenticate", "keep-alive", "proxy-connection"];

/// The head of a backend's answer.
pub fn head(session: &mut Session, head: &mut ResponseHeader, ctx: &mut Context) -> pingora::Result<()> {
    let upgraded = head.status.as_u16() == 101;
    if head.status.is_informational() && !upgraded {
        return Ok(());
    }
    let reason = own_reason(head);
    // As with requests: without the second map for the case of names, every change costs half.
    let mut plain = Parts::from(std::mem::replace(head, nothing()));
    change(&mut plain.headers, upgraded, ctx);
    *head = plain.into();
    if let Some(reason) = reason {
        head.set_reason_phrase(Some(&reason))?;
    }
    filter_response(session, ctx, head);
    if let Some(connection) = &ctx.connection {
        if upgraded {
            connection.upgraded();
        }
        // The process is about to end this connection; a client that is told does not send another request into it.
        if connection.draining() {
            session.set_keepalive(None);
        }
    }
    Ok(())
}

/// A head that stands in for one which is being changed.
fn nothing() -> ResponseHeader {
    http::Response::new(()).into_parts().0.into()
}

/// The reason phrase, if it is not the usual one of its status.
fn own_reason(head: &ResponseHeader) -> Option<String> {
    head.get_reason_phrase().filter(|reason| Some(*reason) != head.status.canonical_reason()).map(str::to_owned)
}

fn change(headers: &mut HeaderMap, upgraded: bool, ctx: &mut Context) {
    // Room also for what Pingora adds: Date and Connection.
    headers.reserve(3);
    drop_hop_by_hop(headers, upgraded);
    headers.insert(X_REQUEST_ID, ctx.exchange.request_id.clone());
    for cookie in [ctx.split_cookie.take(), ctx.sticky_cookie.take()].into_iter().flatten() {
        headers.append(SET_COOKIE, cookie);
    }
}

fn drop_hop_by_hop(headers: &mut HeaderMap, upgraded: bool) {
    // Few origins name any; an upgrade needs the two that it consists of.
    if !upgraded && let Some(named) = headers.get(CONNECTION).filter(|named| *named != "keep-alive").cloned() {
        let framing =
            |name: &str| [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|f| name.eq_ignore_ascii_case(f.as_str()));
        for name in named.to_str().unwrap_or_default().split(',').map(str::trim).filter(|name| !framing(name)) {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
        headers.remove(UPGRADE);
    }
    if headers.keys().any(|name| HOP_BY_HOP.contains(&name.as_str())) {
        for name in HOP_BY_HOP {
            headers.remove(name);
        }
    }
}
