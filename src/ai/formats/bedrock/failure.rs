//! Errors: their name is in the header `x-amzn-errortype`, or in the body's `__type`, or is that of a stream's exception.

use std::borrow::Cow;

use http::HeaderMap;
use serde::Deserialize;

use crate::ai::chat::{Failure, FailureKind};
use crate::ai::formats::tolerant;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Body<'b> {
    #[serde(rename = "__type", borrow, deserialize_with = "tolerant::text")]
    kind: Option<Cow<'b, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    message: Option<Cow<'b, str>>,
    /// Some services of AWS begin it so.
    #[serde(rename = "Message", borrow, deserialize_with = "tolerant::text")]
    capital: Option<Cow<'b, str>>,
}

/// Reads an answer whose status says that it is an error.
pub fn read(status: u16, headers: &HeaderMap, body: &[u8]) -> Failure {
    let header = headers.get("x-amzn-errortype").and_then(|value| value.to_str().ok());
    let body: Body<'_> = serde_json::from_slice(body).unwrap_or_default();
    let name = header.or(body.kind.as_deref()).map(bare);
    named(name, body.message.or(body.capital).as_deref(), FailureKind::of_status(status))
}

/// Reads an exception of a stream. Its data is a JSON document, or the message itself.
pub fn exception(name: &str, data: &[u8]) -> Failure {
    let body = serde_json::from_slice::<Body<'_>>(data).ok();
    let text = std::str::from_utf8(data).ok().map(Cow::Borrowed).filter(|_| body.is_none());
    let message = body.and_then(|body| body.message.or(body.capital)).or(text);
    named(Some(bare(name)), message.as_deref(), FailureKind::Server)
}

/// `com.amazonaws.bedrock#ThrottlingException:http://internal.amazon.com/` without what is around the name.
fn bare(name: &str) -> &str {
    let name = name.split(':').next().unwrap_or(name);
    name.rsplit('#').next().unwrap_or(name)
}

fn named(name: Option<&str>, message: Option<&str>, otherwise: FailureKind) -> Failure {
    let message = message.unwrap_or_default();
    let about = |words: &[&str]| words.iter().any(|words| message.contains(words));
    // Answers call it `ThrottlingException`, streams `throttlingException`.
    let is = |known: &str| name.is_some_and(|name| name.eq_ignore_ascii_case(known));
    let any = |known: &[&str]| known.iter().any(|known| is(known));
    let kind = if any(&["ThrottlingException", "TooManyRequestsException"]) {
        // "Too many tokens per day, please wait before trying again."
        if about(&["per day"]) { FailureKind::QuotaExceeded } else { FailureKind::RateLimited }
    } else if is("ServiceQuotaExceededException") {
        FailureKind::QuotaExceeded
    } else if is("ValidationException") {
        match about(&["too long", "too many input tokens", "exceed context limit", "maximum context length"]) {
            true => FailureKind::ContextLength,
            false => FailureKind::InvalidRequest,
        }
    } else if is("AccessDeniedException") {
        FailureKind::Permission
    } else if any(&[
        "UnrecognizedClientException",
        "InvalidSignatureException",
        "IncompleteSignatureException",
        "InvalidClientTokenId",
        "MissingAuthenticationTokenException",
        "ExpiredTokenException",
    ]) {
        FailureKind::Authentication
    } else if is("ResourceNotFoundException") {
        FailureKind::NotFound
    } else if is("ModelTimeoutException") {
        FailureKind::Timeout
    } else if any(&["ServiceUnavailableException", "ModelNotReadyException"]) {
        FailureKind::Overloaded
    } else if any(&["InternalServerException", "InternalFailure", "ModelErrorException", "ModelStreamErrorException"]) {
        FailureKind::Server
    } else {
        otherwise
    };
    let message = match kind {
        // AWS names the account and the role here, which are not the caller's to know.
        FailureKind::Permission => "The provider does not let the gateway use this model.".to_owned(),
        FailureKind::Authentication => "The provider does not accept the gateway's credentials.".to_owned(),
        _ if message.is_empty() => "The provider failed without saying why.".to_owned(),
        _ => message.to_owned(),
    };
    Failure { code: name.map(str::to_owned), ..Failure::new(kind, message) }
}
