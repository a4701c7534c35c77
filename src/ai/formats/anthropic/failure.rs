//! Errors, both ways: `{"type":"error","error":{"type","message"},"request_id"}`.

use std::borrow::Cow;

use http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::hosted;
use crate::ai::chat::{Failure, FailureKind};
use crate::ai::formats::tolerant;

/// Tells a caller that a 429 is about money, and that asking again does not help.
const SPEND_LIMIT: &str = "enforced_spend_limit_reached";

#[derive(Deserialize, Default)]
#[serde(default)]
struct Body<'b> {
    #[serde(borrow)]
    error: Option<ErrorObject<'b>>,
    #[serde(borrow)]
    details: Option<Details<'b>>,
}

/// Also what an `error` event of a stream holds.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct ErrorObject<'b> {
    #[serde(rename = "type", borrow, deserialize_with = "tolerant::text")]
    kind: Option<Cow<'b, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    message: Option<Cow<'b, str>>,
    #[serde(borrow)]
    details: Option<Details<'b>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Details<'b> {
    #[serde(borrow, deserialize_with = "tolerant::text")]
    error_code: Option<Cow<'b, str>>,
}

impl ErrorObject<'_> {
    /// `status` is what the answer's status says where the type does not.
    pub fn failure(self, status: FailureKind) -> Failure {
        let code = self.details.and_then(|details| details.error_code).map(Cow::into_owned);
        let message = self.message.unwrap_or_default();
        let kind = match self.kind.as_deref() {
            _ if code.as_deref() == Some(SPEND_LIMIT) => FailureKind::QuotaExceeded,
            Some("invalid_request_error") => invalid_request(&message),
            Some("authentication_error") => FailureKind::Authentication,
            Some("billing_error") => FailureKind::QuotaExceeded,
            Some("permission_error") => FailureKind::Permission,
            Some("not_found_error") => FailureKind::NotFound,
            Some("request_too_large") => FailureKind::TooLarge,
            Some("rate_limit_error") => FailureKind::RateLimited,
            Some("overloaded_error") => FailureKind::Overloaded,
            Some("timeout_error") => FailureKind::Timeout,
            Some("api_error") => FailureKind::Server,
            _ if status == FailureKind::InvalidRequest => invalid_request(&message),
            _ => status,
        };
        let message = match message.is_empty() {
            true => "The provider failed without saying why.".to_owned(),
            false => message.into_owned(),
        };
        Failure { code, ..Failure::new(kind, message) }
    }
}

/// Anthropic has one type for all that is wrong with a request.
fn invalid_request(message: &str) -> FailureKind {
    let about = |words: &[&str]| words.iter().any(|words| message.contains(words));
    if about(&["prompt is too long", "exceed context limit", "Input is too long"]) {
        FailureKind::ContextLength
    } else if about(&["credit balance is too low", "usage limits"]) {
        FailureKind::QuotaExceeded
    } else if about(&["content filtering policy"]) {
        FailureKind::ContentFilter
    } else {
        FailureKind::InvalidRequest
    }
}

pub(super) fn read(status: u16, headers: &HeaderMap, body: &[u8]) -> Failure {
    let by_status = FailureKind::of_status(status);
    match serde_json::from_slice::<Body<'_>>(body) {
        Ok(Body { error: Some(mut error), details }) => {
            error.details = error.details.or(details);
            error.failure(by_status)
        }
        _ => hosted::failure(status, headers, body),
    }
}

/// Reads what a body with `"type":"error"` says although its status was another.
pub(super) fn read_unexpected(body: &[u8]) -> Option<Failure> {
    let body: Body<'_> = serde_json::from_slice(body).ok()?;
    body.error.map(|error| error.failure(FailureKind::Server))
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: WrittenError<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

#[derive(Serialize)]
struct WrittenError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<WrittenDetails<'a>>,
}

#[derive(Serialize)]
struct WrittenDetails<'a> {
    error_code: &'a str,
}

/// Writes a failure; `request_id` is left out in streams.
pub(super) fn write(failure: &Failure, request_id: Option<&str>) -> Vec<u8> {
    let kind = match failure.kind {
        FailureKind::InvalidRequest | FailureKind::ContextLength | FailureKind::ContentFilter => {
            "invalid_request_error"
        }
        FailureKind::Authentication => "authentication_error",
        FailureKind::Permission => "permission_error",
        FailureKind::NotFound => "not_found_error",
        FailureKind::TooLarge => "request_too_large",
        FailureKind::RateLimited | FailureKind::QuotaExceeded => "rate_limit_error",
        FailureKind::Overloaded => "overloaded_error",
        FailureKind::Timeout => "timeout_error",
        FailureKind::Server => "api_error",
    };
    let error_code = match failure.kind {
        FailureKind::QuotaExceeded => Some(SPEND_LIMIT),
        _ => failure.code.as_deref(),
    };
    let details = error_code.map(|error_code| WrittenDetails { error_code });
    let error = WrittenError { kind, message: &failure.message, details };
    // Texts and numbers can always be written.
    serde_json::to_vec(&Written { kind: "error", error, request_id }).unwrap_or_default()
}
