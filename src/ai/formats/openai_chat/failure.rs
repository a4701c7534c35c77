//! Errors, as OpenAI and as those who imitate it write them.

use serde_json::Value;

use super::super::writing::{Object, object};
use crate::ai::chat::{Failure, FailureKind};

/// In characters. Longer messages are cut: some providers put a whole prompt into them.
const LONGEST_MESSAGE: usize = 2000;

/// An answer whose status says that it is an error.
pub fn read(status: u16, body: &[u8]) -> Failure {
    match serde_json::from_slice::<Value>(body) {
        Ok(document) => of_document(&document, Some(status)),
        // A text may come from anywhere on the way, and may tell of it.
        Err(_) => Failure::new(FailureKind::of_status(status), format!("the provider answered with status {status}")),
    }
}

/// An error inside of what looks like an answer.
pub fn inside(error: &Value) -> Failure {
    of_document(error, None)
}

fn of_document(document: &Value, status: Option<u16>) -> Failure {
    // Some send a list of one.
    let document = document.get(0).unwrap_or(document);
    let error = document.get("error").filter(|error| !error.is_null()).unwrap_or(document);
    // `{"error": "text"}`, `{"error": {…}}`, `{"message": …}` (Mistral, Cohere), `{"detail": …}` (FastAPI).
    let message = [error.as_str(), text(error, "message"), text(document, "message"), text(error, "detail")];
    let message = message.into_iter().flatten().find(|message| !message.is_empty());
    let validation = || Some(error.get("detail")?.get(0)?.get("msg")?.as_str()?.to_owned());
    let message = message.map(str::to_owned).or_else(validation);
    let word = text(error, "type").or_else(|| text(error, "error_type")).or_else(|| text(document, "error_type"));
    let inner = error.get("innererror").and_then(|inner| text(inner, "code"));
    let code = text(error, "code");
    let number = error.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
    let kind = known(code, word, inner, message.as_deref().unwrap_or_default())
        .or(status.map(FailureKind::of_status))
        .or(number.filter(|code| (400..600).contains(code)).map(FailureKind::of_status))
        .unwrap_or(FailureKind::Server);
    let mut message = match (kind, message) {
        // Providers repeat a part of the key.
        (FailureKind::Authentication, _) => "the provider refused the gateway's credentials".to_owned(),
        (_, Some(message)) => message,
        (_, None) => match status {
            Some(status) => format!("the provider answered with status {status}"),
            None => "the provider sent an error without a message".to_owned(),
        },
    };
    if let Some((end, _)) = message.char_indices().nth(LONGEST_MESSAGE) {
        message.truncate(end);
    }
    let number = number.map(|code| code.to_string()).filter(|_| status.is_none());
    Failure { kind, message, code: code.map(str::to_owned).or(number), param: text(error, "param").map(str::to_owned) }
}

fn text<'v>(value: &'v Value, name: &str) -> Option<&'v str> {
    value.get(name)?.as_str()
}

/// What words say that a status does not.
fn known(code: Option<&str>, word: Option<&str>, inner: Option<&str>, message: &str) -> Option<FailureKind> {
    for word in [code, word, inner].into_iter().flatten() {
        let kind = match word {
            "context_length_exceeded" | "model_max_prompt_tokens_exceeded" | "exceed_context_size_error" => {
                FailureKind::ContextLength
            }
            "content_filter"
            | "content_policy_violation"
            | "ResponsibleAIPolicyViolation"
            | "data_inspection_failed" => FailureKind::ContentFilter,
            "insufficient_quota" | "billing_hard_limit_reached" | "billing_not_active" | "credits_exhausted" => {
                FailureKind::QuotaExceeded
            }
            "invalid_api_key" | "authentication_error" | "invalid_authentication_error" => FailureKind::Authentication,
            "permission_error" | "permission_denied" => FailureKind::Permission,
            "model_not_found" | "DeploymentNotFound" | "not_found_error" => FailureKind::NotFound,
            "rate_limit_exceeded" | "rate_limit_error" | "rate_limit_reached_error" => FailureKind::RateLimited,
            "overloaded_error" | "engine_overloaded_error" | "engine_overloaded" | "model_overloaded" => {
                FailureKind::Overloaded
            }
            "timeout" | "timeout_error" => FailureKind::Timeout,
            "server_error" | "internal_error" | "api_error" => FailureKind::Server,
            // Too general to say more than the message does.
            _ => continue,
        };
        return Some(kind);
    }
    let words = ["context length", "context window", "context size", "prompt is too long", "too many tokens"];
    let lower = message.to_ascii_lowercase();
    if words.iter().any(|words| lower.contains(words)) {
        return Some(FailureKind::ContextLength);
    }
    (word == Some("invalid_request_error") && code.is_none_or(str::is_empty)).then_some(FailureKind::InvalidRequest)
}

/// The error as OpenAI's clients expect it: all four members, always.
pub fn write(failure: &Failure) -> Vec<u8> {
    let mut out = Vec::with_capacity(128 + failure.message.len());
    object(&mut out, |o| member(failure, o));
    out
}

/// `error`, which ends streams too.
pub fn member(failure: &Failure, o: &mut Object<'_>) {
    let (kind, code) = words(failure.kind);
    o.object("error", |o| {
        o.set("message", &failure.message);
        o.set("type", kind);
        o.set("param", &failure.param);
        o.set("code", &failure.code.as_deref().or(code));
    });
}

/// OpenAI's type, and its code where there is a usual one.
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
        FailureKind::Server => ("server_error", None),
    }
}
