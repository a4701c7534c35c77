//! The first phase: make sure there is exactly one way to read the request, and write that way into it. The listener has
//! seen to its framing.
//!
//! What leaves here is canonical: host, path and client address are decided once, and what is matched, authorised and
//! forwarded are the same bytes.

use std::borrow::Cow;
use std::fmt::Write;

use bytes::Bytes;
use http::header::{CONNECTION, COOKIE, FORWARDED, HOST, PROXY_AUTHORIZATION};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use super::answer::X_REQUEST_ID;
use super::context::Context;
use crate::error::{Error, Reason, Result};
use crate::listener::{ConnectionState, is_trusted};
use crate::routing::{host, path};
use crate::snapshot::OwnedHeaders;
use crate::telemetry::exchange::{Exchange, Scheme};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What only a proxy in front of us may say of a client, and what we do not say ourselves. `Proxy-Authorization` is
/// meant for us, not for the origin.
const NEVER_FROM_CLIENTS: [HeaderName; 7] = [
    FORWARDED,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("true-client-ip"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-real-ip"),
];

/// Longest request id kept from a client.
const MAX_REQUEST_ID: usize = 128;

/// Checks the request and makes it canonical. After an error nothing may be forwarded.
pub fn receive(session: &mut Session, ctx: &mut Context) -> Result<()> {
    let Some(connection) = ctx.connection.clone() else { return Err(Reason::Internal.into()) };
    let connection = &*connection;
    let settings = connection.settings();
    let limits = &settings.limits;
    ctx.exchange.listener = connection.listener().name().clone();
    ctx.exchange.scheme = scheme(connection);
    ctx.exchange.certificate = connection.tls.as_ref().and_then(|tls| tls.client_certificate.clone());
    let seen = look_at(&session.req_header().headers);
    ctx.exchange.request_id = if seen.claims { request_id(&session.req_header().headers) } else { new_request_id() };
    // Pingora frames the body by the head as it stands when it first looks: that has to be before anything changes it.
    ctx.exchange.has_body = !session.is_body_empty();
    // The connection bounds how slowly a client may send or take; Pingora's own timer per read is not needed.
    session.set_read_timeout(None);
    if connection.draining() {
        session.set_keepalive(None);
    }
    let head = session.req_header_mut();
    let trusted = is_trusted(connection.peer, &settings.trusted_proxies);
    ctx.exchange.client = if trusted { connection.client_address(&head.headers) } else { connection.peer };
    if head.headers.len() > limits.header_count as usize || seen.bytes > limits.header_size.get() as usize {
        return Err(Reason::HeadersTooLarge.into());
    }
    if head.raw_path().len() as u64 > limits.uri.get() {
        return Err(Reason::UriTooLong.into());
    }
    let target = canonical_target(head, &mut ctx.exchange)?;
    // Pingora's form of a head holds every name twice, once as it was written, and pays for it at each change, copy and
    // write. Names are case-insensitive (RFC 9110, section 5.1): from here on they are lower case, as in HTTP/2.
    let mut plain = Parts::from(std::mem::replace(head, nothing()));
    if let Some(snapshot) = &ctx.snapshot {
        drop_owned(&mut plain.headers, &snapshot.owned_headers, &seen);
    }
    let made = make_canonical(&mut plain, target, &seen, connection, trusted, &mut ctx.exchange);
    *session.req_header_mut() = plain.into();
    made
}

/// A head that stands in for one which is being changed.
fn nothing() -> RequestHeader {
    http::Request::new(()).into_parts().0.into()
}

/// Drops what only the gateway may say, such as who the caller is: also where no filter will say it, and also from a
/// proxy that is trusted to know the client's address.
fn drop_owned(headers: &mut HeaderMap, owned: &OwnedHeaders, seen: &Seen) {
    let prefixed = owned.prefixed.iter().filter(|_| seen.claims);
    for name in prefixed.chain(&owned.others) {
        headers.remove(name);
    }
}

/// Writes the one way to read the request into it.
fn make_canonical(
    head: &mut Parts,
    target: Option<PathAndQuery>,
    seen: &Seen,
    connection: &ConnectionState,
    trusted: bool,
    exchange: &mut Exchange,
) -> Result<()> {
    canonical_host(head, exchange)?;
    // Requests of our own may be for a host of another certificate.
    if !connection.is_internal() && connection.tls.as_ref().is_some_and(|tls| !tls.serves(&exchange.host)) {
        return Err(Reason::Misdirected.into());
    }
    if let Some(target) = target {
        let mut parts = std::mem::take(&mut head.uri).into_parts();
        parts.path_and_query = Some(target);
        if head.version < Version::HTTP_2 {
            (parts.scheme, parts.authority) = (None, None);
        }
        head.uri = Uri::from_parts(parts).map_err(|_| Error::new(Reason::BadPath))?;
    }
    if seen.confusable {
        drop_confusable_names(&mut head.headers);
    }
    if seen.connection {
        drop_nominated(&mut head.headers);
    }
    if seen.claims && !trusted {
        for name in &NEVER_FROM_CLIENTS {
            head.headers.remove(name);
        }
    }
    if head.version == Version::HTTP_2 {
        join_cookies(&mut head.headers);
    }
    forwarding_headers(head, connection, seen.claims && trusted, exchange)
}

/// What one pass over the headers finds out.
struct Seen {
    /// Of names and values as HTTP/1.1 writes them.
    bytes: usize,
    /// A name has an underscore.
    confusable: bool,
    /// Some name is one that proxies say of clients, or looks like one; `X-Request-Id` is among them.
    claims: bool,
    /// There is a `Connection` field.
    connection: bool,
}

fn look_at(headers: &HeaderMap) -> Seen {
    let mut seen = Seen { bytes: 0, confusable: false, claims: false, connection: false };
    for (name, value) in headers {
        let name = name.as_str().as_bytes();
        seen.bytes += name.len() + value.len() + 4;
        seen.confusable |= memchr::memchr(b'_', name).is_some();
        seen.connection |= name == b"connection";
        seen.claims |= matches!(name, [b'x', b'-', ..] | b"forwarded" | b"proxy-authorization" | b"true-client-ip");
    }
    seen
}

pub fn scheme(connection: &ConnectionState) -> Scheme {
    if connection.tls.is_some() { Scheme::Https } else { Scheme::Http }
}

/// The client's id if it is one that is safe to log and to pass on, else a new one (UUID version 7, so that ids sort by
/// time).
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    let safe = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        !bytes.is_empty()
            && bytes.len() <= MAX_REQUEST_ID
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b'+' | b'='))
    };
    if let Some(given) = headers.get(X_REQUEST_ID).filter(safe) {
        return given.clone();
    }
    new_request_id()
}

fn new_request_id() -> HeaderValue {
    let millis = coarse_millis();
    let mut random = [0; 10];
    random[..8].copy_from_slice(&fastrand::u64(..).to_ne_bytes());
    random[8..].copy_from_slice(&fastrand::u16(..).to_ne_bytes());
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid().hyphenated().encode_lower(&mut text);
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&text)).unwrap_or(HeaderValue::from_static("-"))
}

/// Milliseconds since 1970, as of the kernel's last tick: exact enough to sort by, and a tenth of the precise clock's cost.
fn coarse_millis() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call only writes the struct passed to it.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &mut time) };
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// Decides the host from `:authority`, an absolute target or `Host`, which Pingora has found to agree, and writes its
/// canonical form back.
fn canonical_host(head: &mut Parts, exchange: &mut Exchange) -> Result<()> {
    let bad_host = |_| Error::new(Reason::BadHost);
    let written = match (head.uri.authority(), head.headers.get(HOST)) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host.to_str().map_err(|_| Error::new(Reason::BadHost))?,
        (None, None) => "",
    };
    let default_port = exchange.scheme.default_port();
    if written.is_empty() {
        // RFC 9112, section 3.2: only HTTP/1.0 may leave it out.
        if head.version != Version::HTTP_10 {
            return Err(Reason::BadHost.into());
        }
        exchange.port = default_port;
        return Ok(());
    }
    let host = host::normalise(written).map_err(bad_host)?;
    exchange.host = host.name.as_ref().to_owned();
    exchange.port = host.port_or(default_port);
    if matches!(host.name, Cow::Borrowed(_)) && host.name.len() == name_length(written, host.port) {
        return Ok(());
    }
    let mut text = exchange.host.clone();
    if let Some(port) = host.port {
        let _ = write!(text, ":{port}");
    }
    if head.uri.authority().is_some() {
        let mut parts = std::mem::take(&mut head.uri).into_parts();
        parts.authority = Authority::try_from(text.as_str()).ok();
        head.uri = Uri::from_parts(parts).map_err(|_| Error::new(Reason::BadHost))?;
    }
    if head.headers.contains_key(HOST) {
        head.headers.insert(HOST, HeaderValue::try_from(text).map_err(|_| Error::new(Reason::BadHost))?);
    }
    Ok(())
}

/// How long the name is in an authority as it was written, with whatever the canonical form drops at its end.
fn name_length(written: &str, port: Option<u16>) -> usize {
    match port {
        Some(_) => written.rfind(':').unwrap_or(written.len()),
        None => written.len(),
    }
}

/// The canonical path with the query as it was, if that differs from what was sent. `OPTIONS *` asks about the server
/// and has no path.
fn canonical_target(head: &RequestHeader, exchange: &mut Exchange) -> Result<Option<PathAndQuery>> {
    let raw = head.raw_path();
    if raw == b"*" && head.method == Method::OPTIONS {
        return Ok(None);
    }
    // An absolute target (`GET http://host/path`) is the same request as its path under that host.
    let absolute = !raw.starts_with(b"/");
    let target = if absolute { below_authority(raw)? } else { raw };
    let end = memchr::memchr(b'?', target).unwrap_or(target.len());
    let (written, query) = (&target[..end], &target[end..]);
    if memchr::memchr(b'#', target).is_some() {
        return Err(Error::with(Reason::BadPath, "the target has a fragment"));
    }
    let canonical = path::canonical(written, path::PathMode::default())?;
    // Borrowed and shorter is the beginning of what was written: `/a/b/..` is `/a/`.
    if matches!(canonical, Cow::Borrowed(_)) && canonical.len() == written.len() && !absolute {
        return Ok(None);
    }
    let query = std::str::from_utf8(query).map_err(|_| Error::new(Reason::BadPath))?;
    exchange.original_target = Some(String::from_utf8_lossy(raw).into());
    PathAndQuery::try_from(format!("{canonical}{query}")).map(Some).map_err(|_| Error::new(Reason::BadPath))
}

/// The path and query of an absolute target; its authority was compared with `Host` when the request was read.
fn below_authority(raw: &[u8]) -> Result<&[u8]> {
    let scheme = ["http://", "https://"]
        .iter()
        .find(|scheme| raw.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes())));
    let Some(scheme) = scheme else {
        return Err(Error::with(Reason::BadPath, "the target does not begin with a slash"));
    };
    let rest = &raw[scheme.len()..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    match &rest[end..] {
        [] => Ok(b"/"),
        path if path[0] == b'/' => Ok(path),
        // `http://host?query` has an empty path, which is `/`; nobody but an attacker writes it.
        _ => Err(Error::with(Reason::BadPath, "the target has no path")),
    }
}

/// Drops headers whose name has an underscore: an origin that speaks CGI reads `X_User` and `X-User` as one name, so it
/// could be told by a client what only the gateway may say. nginx does the same.
fn drop_confusable_names(headers: &mut HeaderMap) {
    let confusable = |name: &&HeaderName| memchr::memchr(b'_', name.as_str().as_bytes()).is_some();
    while let Some(name) = headers.keys().find(confusable).cloned() {
        headers.remove(&name);
    }
}

/// Drops the fields that `Connection` says end here, before we set ours: a client must not be able to have them dropped.
/// What is left of it is an upgrade, or nothing; whether the connection goes on was decided when the head was read.
fn drop_nominated(headers: &mut HeaderMap) {
    let lines: Vec<HeaderValue> = headers.get_all(CONNECTION).iter().cloned().collect();
    let mut upgrade = false;
    for name in lines.iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).map(str::trim) {
        match name.to_ascii_lowercase().as_str() {
            "upgrade" => upgrade = true,
            "" | "close" | "keep-alive" | "te" | "host" | "content-length" | "transfer-encoding" => {}
            nominated => drop(headers.remove(nominated)),
        }
    }
    match upgrade {
        true => headers.insert(CONNECTION, HeaderValue::from_static("Upgrade")),
        false => headers.remove(CONNECTION),
    };
}

/// HTTP/2 clients may split `Cookie` for compression; HTTP/1.1 knows one line (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let lines: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Tells the origin who the client is and what it asked for. What a client writes here itself is replaced; only what a
/// trusted proxy has written is kept and continued.
fn forwarding_headers(
    head: &mut Parts,
    connection: &ConnectionState,
    continued: bool,
    exchange: &Exchange,
) -> Result<()> {
    let headers = &mut head.headers;
    headers.reserve(4);
    let said = |headers: &HeaderMap, name: &HeaderName| continued && headers.contains_key(name);
    let addresses = match said(headers, &X_FORWARDED_FOR) {
        true => continue_addresses(headers, connection)?,
        false => connection.peer_value().clone(),
    };
    headers.insert(X_FORWARDED_FOR, addresses);
    if !said(headers, &X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(exchange.scheme.as_str()));
    }
    if !said(headers, &X_FORWARDED_HOST) {
        let authority = head.uri.authority().map(Authority::as_str);
        let host = headers.get(HOST).cloned().or_else(|| HeaderValue::from_str(authority?).ok());
        match host {
            Some(host) => headers.insert(X_FORWARDED_HOST, host),
            None => headers.remove(X_FORWARDED_HOST),
        };
    }
    headers.insert(X_REQUEST_ID, exchange.request_id.clone());
    Ok(())
}

/// What the proxies before us have said of the way to the client, and the last of them as we see it.
fn continue_addresses(headers: &HeaderMap, connection: &ConnectionState) -> Result<HeaderValue> {
    let mut addresses = String::with_capacity(64);
    for line in headers.get_all(X_FORWARDED_FOR) {
        let _ = write!(addresses, "{}, ", String::from_utf8_lossy(line.as_bytes()));
    }
    let _ = write!(addresses, "{}", connection.peer);
    HeaderValue::try_from(addresses).map_err(|_| Error::new(Reason::BadRequest))
}
