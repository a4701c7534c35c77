//! Google's errors (`google.rpc.Status`) both ways.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::ai::chat::{Failure, FailureKind};
use crate::ai::formats::provider_words;
use crate::ai::formats::tolerant;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Body<'f> {
    #[serde(borrow)]
    error: Status<'f>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Status<'f> {
    #[serde(deserialize_with = "tolerant::integer")]
    code: Option<i64>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    message: Option<Cow<'f, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    status: Option<Cow<'f, str>>,
    #[serde(borrow, deserialize_with = "tolerant::list")]
    details: Vec<Detail<'f>>,
}

/// What is used of `ErrorInfo` and `QuotaFailure`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Detail<'f> {
    #[serde(borrow, deserialize_with = "tolerant::text")]
    reason: Option<Cow<'f, str>>,
    #[serde(borrow, deserialize_with = "tolerant::list")]
    violations: Vec<Violation<'f>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Violation<'f> {
    #[serde(borrow, rename = "quotaId", deserialize_with = "tolerant::text")]
    quota_id: Option<Cow<'f, str>>,
}

/// Reads the body of an answer that is an error: an object, or a list of one where a stream was asked for.
pub fn decode(status: u16, body: &[u8]) -> Failure {
    let first = body.trim_ascii_start().first();
    let error = match first {
        Some(b'[') => serde_json::from_slice::<Vec<Body<'_>>>(body).ok().and_then(|mut all| all.pop()),
        _ => serde_json::from_slice::<Body<'_>>(body).ok(),
    };
    of_status(status, error.unwrap_or_default().error)
}

/// Reads the `error` of an answer whose status is 200.
pub fn decode_error(error: &str) -> Failure {
    let status: Status<'_> = serde_json::from_str(error).unwrap_or_default();
    let code = status.code.and_then(|code| u16::try_from(code).ok()).filter(|code| *code >= 400);
    of_status(code.unwrap_or(500), status)
}

fn of_status(http: u16, status: Status<'_>) -> Failure {
    let message = status.message.as_deref().unwrap_or_default();
    let has = |reason: &str| status.details.iter().any(|detail| detail.reason.as_deref() == Some(reason));
    let daily = status
        .details
        .iter()
        .flat_map(|detail| &detail.violations)
        .any(|violation| violation.quota_id.as_deref().is_some_and(|id| id.contains("PerDay")));
    let kind = match status.status.as_deref() {
        // Google answers 400 to a key that it does not know.
        Some("INVALID_ARGUMENT") if has("API_KEY_INVALID") => FailureKind::Authentication,
        Some("INVALID_ARGUMENT" | "OUT_OF_RANGE") if message.contains("input token count") => {
            FailureKind::ContextLength
        }
        Some("INVALID_ARGUMENT" | "OUT_OF_RANGE" | "FAILED_PRECONDITION" | "UNIMPLEMENTED") => {
            FailureKind::InvalidRequest
        }
        Some("UNAUTHENTICATED") => FailureKind::Authentication,
        Some("PERMISSION_DENIED") => FailureKind::Permission,
        Some("NOT_FOUND") => FailureKind::NotFound,
        Some("RESOURCE_EXHAUSTED") if daily => FailureKind::QuotaExceeded,
        Some("RESOURCE_EXHAUSTED") => FailureKind::RateLimited,
        Some("UNAVAILABLE") => FailureKind::Overloaded,
        Some("DEADLINE_EXCEEDED") => FailureKind::Timeout,
        Some("INTERNAL" | "UNKNOWN" | "DATA_LOSS" | "ABORTED" | "CANCELLED") => FailureKind::Server,
        _ => FailureKind::of_status(http),
    };
    // Google's status says no more than the kind, and as a `code` of another dialect it would be an unknown one.
    Failure::new(kind, provider_words::fit(kind, message))
}

#[derive(Serialize)]
struct Written<'f> {
    error: WrittenStatus<'f>,
}

#[derive(Serialize)]
struct WrittenStatus<'f> {
    code: u16,
    message: &'f str,
    status: &'static str,
}

/// Writes the body of an error. Google's libraries know one by its first bytes, `{"error":`.
pub fn encode(failure: &Failure) -> Vec<u8> {
    let error = WrittenStatus { code: failure.kind.status(), message: &failure.message, status: name(failure.kind) };
    serde_json::to_vec(&Written { error }).unwrap_or_default()
}

fn name(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::InvalidRequest
        | FailureKind::ContextLength
        | FailureKind::ContentFilter
        | FailureKind::TooLarge => "INVALID_ARGUMENT",
        FailureKind::Authentication => "UNAUTHENTICATED",
        FailureKind::Permission => "PERMISSION_DENIED",
        FailureKind::NotFound => "NOT_FOUND",
        FailureKind::RateLimited | FailureKind::QuotaExceeded => "RESOURCE_EXHAUSTED",
        FailureKind::Overloaded => "UNAVAILABLE",
        FailureKind::Timeout => "DEADLINE_EXCEEDED",
        FailureKind::Server => "INTERNAL",
    }
}
