//! Errors of Responses, both ways: as the body of an answer, inside of a response, and as an event.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::ai::chat::{Failure, FailureKind};
use crate::ai::formats::{provider_words, tolerant};

#[derive(Deserialize, Default)]
#[serde(default)]
struct Body<'f> {
    #[serde(borrow)]
    error: Option<Written<'f>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Written<'f> {
    #[serde(borrow, deserialize_with = "tolerant::text")]
    message: Option<Cow<'f, str>>,
    #[serde(borrow, rename = "type", deserialize_with = "tolerant::text")]
    kind: Option<Cow<'f, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    param: Option<Cow<'f, str>>,
    /// A text, or a status where providers imitate OpenAI.
    #[serde(borrow, deserialize_with = "tolerant::raw")]
    code: Option<Cow<'f, RawValue>>,
}

pub fn decode(status: u16, body: &[u8]) -> Failure {
    let body: Body<'_> = serde_json::from_slice(body).unwrap_or_default();
    of_written(Some(status), body.error.unwrap_or_default())
}

/// The `error` of a response or of an event.
pub fn inside(error: &str) -> Failure {
    of_written(None, serde_json::from_str(error).unwrap_or_default())
}

fn of_written(status: Option<u16>, written: Written<'_>) -> Failure {
    let code = written.code.as_deref().map(|code| match serde_json::from_str::<String>(code.get()) {
        Ok(code) => code,
        Err(_) => code.get().to_owned(),
    });
    let message = written.message.as_deref().unwrap_or_default();
    let kind = kind(code.as_deref(), written.kind.as_deref(), message)
        .or_else(|| status.map(FailureKind::of_status))
        .or_else(|| Some(FailureKind::of_status(code.as_deref()?.parse().ok()?)))
        .unwrap_or(FailureKind::Server);
    Failure {
        code,
        param: written.param.map(Cow::into_owned),
        ..Failure::new(kind, provider_words::fit(kind, message))
    }
}

/// What words say more exactly than a status does.
fn kind(code: Option<&str>, of_type: Option<&str>, message: &str) -> Option<FailureKind> {
    let kind = |word: &str| {
        Some(match word {
            "context_length_exceeded" => FailureKind::ContextLength,
            "content_filter"
            | "content_policy_violation"
            | "image_content_policy_violation"
            | "invalid_prompt"
            | "bio_policy" => FailureKind::ContentFilter,
            "insufficient_quota" | "billing_hard_limit_reached" | "billing_not_active" => FailureKind::QuotaExceeded,
            "invalid_api_key" | "authentication_error" => FailureKind::Authentication,
            "model_not_found" | "not_found_error" => FailureKind::NotFound,
            "rate_limit_exceeded" | "rate_limit_error" | "tokens" | "requests" => FailureKind::RateLimited,
            "overloaded_error" | "engine_overloaded" => FailureKind::Overloaded,
            "timeout" => FailureKind::Timeout,
            "server_error" => FailureKind::Server,
            word if word.contains("image") => FailureKind::InvalidRequest,
            _ => return None,
        })
    };
    let context = || message.contains("context window").then_some(FailureKind::ContextLength);
    let invalid =
        || (of_type == Some("invalid_request_error") && code.is_none()).then_some(FailureKind::InvalidRequest);
    code.and_then(kind).or_else(context).or_else(|| of_type.and_then(kind)).or_else(invalid)
}

#[derive(Serialize)]
pub struct OutError<'f> {
    pub message: &'f str,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub param: Option<&'f str>,
    pub code: Option<&'f str>,
}

pub fn written(failure: &Failure) -> OutError<'_> {
    let (kind, code) = words(failure.kind);
    OutError {
        message: &failure.message,
        kind,
        param: failure.param.as_deref(),
        code: failure.code.as_deref().or(code),
    }
}

pub fn encode(failure: &Failure) -> Vec<u8> {
    #[derive(Serialize)]
    struct Out<'f> {
        error: OutError<'f>,
    }
    serde_json::to_vec(&Out { error: written(failure) }).unwrap_or_default()
}

/// The code of an `error` inside a response, of which there is a closed list.
pub fn response_code(failure: &Failure) -> &'static str {
    match failure.kind {
        FailureKind::RateLimited | FailureKind::QuotaExceeded => "rate_limit_exceeded",
        FailureKind::InvalidRequest
        | FailureKind::ContextLength
        | FailureKind::ContentFilter
        | FailureKind::TooLarge => "invalid_prompt",
        _ => "server_error",
    }
}

fn words(kind: FailureKind) -> (&'static str, Option<&'static str>) {
    match kind {
        FailureKind::InvalidRequest | FailureKind::TooLarge => ("invalid_request_error", None),
        FailureKind::ContextLength => ("invalid_request_error", Some("context_length_exceeded")),
        FailureKind::ContentFilter => ("invalid_request_error", Some("content_filter")),
        FailureKind::Authentication => ("authentication_error", Some("invalid_api_key")),
        FailureKind::Permission => ("permission_error", None),
        FailureKind::NotFound => ("invalid_request_error", Some("model_not_found")),
        FailureKind::RateLimited => ("rate_limit_error", Some("rate_limit_exceeded")),
        FailureKind::QuotaExceeded => ("insufficient_quota", Some("insufficient_quota")),
        FailureKind::Overloaded => ("overloaded_error", None),
        FailureKind::Timeout => ("timeout_error", None),
        FailureKind::Server => ("server_error", Some("server_error")),
    }
}
