//! The head of a request to a provider: its path, what says who asks, and what shows who pays.

use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use pingora::http::RequestHeader;

use super::JSON;
use super::attempt::Ask;
use super::call::Call;
use crate::ai::catalog::Operation;
use crate::ai::credentials::sigv4::{SigV4, Unsigned};
use crate::ai::endpoint::show_key;
use crate::ai::formats::Format;

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
    let mut put = |name: HeaderName, value: HeaderValue| head.insert_header(name, value).is_ok();
    put(CONTENT_TYPE, JSON);
    put(CONTENT_LENGTH, HeaderValue::from(ask.body.len()));
    put(USER_AGENT, GATEWAY);
    let accept = if call.stream { ask.spoken.framing().content_type() } else { "application/json" };
    put(ACCEPT, HeaderValue::from_static(accept));
    for (name, value) in &spec.headers {
        let (name, value) = (HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?);
        put(name, value);
    }
    if ask.passing {
        for (name, value) in &call.shown {
            put(name.clone(), value.clone());
        }
    }
    Some(head)
}

/// Adds what shows who pays. What is added to the head afterwards is not signed, and need not be.
pub fn pay(ask: &Ask<'_>, head: &mut RequestHeader) -> Option<()> {
    let Some(key) = ask.key else { return Some(()) };
    match key.signer() {
        Some(signer) => sign(head, &ask.endpoint.authority, &ask.body, signer),
        None => show_key(head, &ask.provider.spec.credential, key.expose()).then_some(()),
    }
}

/// Signs a request as AWS wants it.
pub fn sign(head: &mut RequestHeader, authority: &str, body: &[u8], signer: &SigV4) -> Option<()> {
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
