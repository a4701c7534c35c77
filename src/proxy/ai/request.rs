//! The head of a request to a provider: its path, what says who asks, and what shows who pays.

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use pingora::http::RequestHeader;

use super::JSON;
use super::attempt::Ask;
use super::call::Call;
use crate::ai::catalog::Operation;
use crate::ai::credentials::sigv4::{SigV4, Unsigned};
use crate::ai::endpoint::{Endpoint, show_key};
use crate::ai::formats::Format;
use crate::ai::keys::Key;
use crate::snapshot::ai::Provider;

pub const GATEWAY: HeaderValue = HeaderValue::from_static(concat!("headgate/", env!("CARGO_PKG_VERSION")));

/// The head of what is asked, without what shows who pays. `None` if it would not be legal.
pub fn head(ask: &Ask<'_>, call: &Call<'_>) -> Option<RequestHeader> {
    let spec = &ask.provider.spec;
    let own = spec.path(match ask.endpoint.format {
        Format::OpenAiCompletions => Operation::Completions,
        _ => Operation::Chat,
    });
    let path = ask.endpoint.chat_path(&ask.target.model, call.stream, Some(own), spec.quirks());
    let mut head = RequestHeader::build_no_case("POST", path.as_bytes(), Some(12)).ok()?;
    // A file of a provider may say who asks, and what for; the caller's own words go before both.
    provider_headers(ask.provider, &mut head)?;
    let accept = if call.stream { ask.spoken.framing().content_type() } else { "application/json" };
    for (name, usual) in [(USER_AGENT, GATEWAY), (ACCEPT, HeaderValue::from_static(accept))] {
        if !head.headers.contains_key(&name) {
            head.insert_header(name, usual).ok()?;
        }
    }
    head.insert_header(CONTENT_TYPE, JSON).ok()?;
    head.insert_header(CONTENT_LENGTH, HeaderValue::from(ask.body.len())).ok()?;
    if ask.passing {
        for (name, value) in &call.shown {
            head.insert_header(name.clone(), value.clone()).ok()?;
        }
    }
    Some(head)
}

/// Headers that every call of a provider carries, unless the caller says something else.
pub fn provider_headers(provider: &Provider, head: &mut RequestHeader) -> Option<()> {
    for (name, value) in &provider.spec.headers {
        let (name, value) = (HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?);
        if !head.headers.contains_key(&name) {
            head.insert_header(name, value).ok()?;
        }
    }
    Some(())
}

/// Adds what shows who pays. What is added to the head afterwards is not signed, and need not be.
pub fn pay(
    provider: &Provider,
    endpoint: &Endpoint,
    key: Option<&Key>,
    body: &[Bytes],
    head: &mut RequestHeader,
) -> Option<()> {
    let Some(key) = key else { return Some(()) };
    match (key.signer(), body) {
        (Some(signer), [one]) => sign(head, &endpoint.authority, one, signer),
        (Some(signer), pieces) => sign(head, &endpoint.authority, &pieces.concat(), signer),
        (None, _) => show_key(head, &provider.spec.credential, key.expose()).then_some(()),
    }
}

/// Signs a request as AWS wants it.
fn sign(head: &mut RequestHeader, authority: &str, body: &[u8], signer: &SigV4) -> Option<()> {
    let target = head.uri.path_and_query()?;
    let (path, query) = (target.path(), target.query().unwrap_or_default());
    let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let mut headers = vec![("host", authority)];
    headers.extend(content_type.map(|value| ("content-type", value)));
    let method = head.method.as_str();
    let signed = signer.sign(Unsigned { method, path, query, headers: &headers, body }, Timestamp::now());
    let mut put = |name: &'static str, text: &str| {
        let mut value = HeaderValue::from_str(text).ok()?;
        value.set_sensitive(true);
        head.insert_header(name, value).ok()
    };
    put("authorization", &signed.authorization)?;
    put("x-amz-date", &signed.date)?;
    signed.security_token.map_or(Some(()), |token| put("x-amz-security-token", token.expose()))
}
