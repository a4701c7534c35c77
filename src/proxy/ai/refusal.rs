//! Answers to calls that are no answers of models, in the dialect of the caller.

use std::time::Duration;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use pingora::proxy::Session;

use super::{JSON, Serving, budget, told};
use crate::ai::chat::{Failure, FailureKind};
use crate::ai::formats::Format;
use crate::error::{Error, Reason};
use crate::filters::filter::Answer;
use crate::proxy::answer;
use crate::proxy::context::Context;

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Why a call is not answered, and when asking again makes sense.
pub struct Refusal {
    pub failure: Failure,
    pub retry_after: Option<Duration>,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Refusal { failure, retry_after: None }
    }
}

impl Serving<'_> {
    /// Answers with a refusal.
    pub async fn refuse(&mut self, refusal: &Refusal) -> pingora::Result<()> {
        send(self.session, self.ctx, self.call.format, refusal).await
    }
}

/// Answers with a refusal in the caller's dialect.
pub async fn send(session: &mut Session, ctx: &mut Context, format: Format, refusal: &Refusal) -> pingora::Result<()> {
    let reason = budget::reason(&refusal.failure).unwrap_or(reason(refusal.failure.kind));
    let request_id = String::from_utf8_lossy(ctx.exchange.request_id.as_bytes()).into_owned();
    ctx.exchange.reason = Some(reason);
    let Some(mut answer) = failed(format, &refusal.failure, &request_id) else {
        return answer::send_error(session, ctx, reason.into()).await;
    };
    if let Some(wait) = refusal.retry_after {
        answer.headers.push((RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil() as u64)));
    }
    if let Some(call) = &ctx.exchange.ai {
        answer.headers.extend(told(call));
    }
    answer::send(session, ctx, answer).await
}

/// A refusal of the gateway in the words of a dialect; `None` if it has none.
pub fn in_dialect(format: Format, error: &Error, request_id: &str) -> Option<Answer> {
    let kind = match error.reason {
        Reason::Unauthenticated | Reason::InvalidCredentials => FailureKind::Authentication,
        Reason::Forbidden | Reason::NotSubscribed => FailureKind::Permission,
        Reason::RouteNotFound => FailureKind::NotFound,
        Reason::BodyTooLarge => FailureKind::TooLarge,
        Reason::QuotaExceeded => FailureKind::QuotaExceeded,
        reason => FailureKind::of_status(reason.status()),
    };
    let message = error.detail.as_deref().unwrap_or(error.reason.title());
    let mut answer = failed(format, &Failure::new(kind, message), request_id)?;
    answer.status = StatusCode::from_u16(error.reason.status()).unwrap_or(answer.status);
    answer.headers.extend(error.headers.iter().cloned());
    Some(answer)
}

pub fn no_such_model(name: &str) -> Failure {
    let shown: String = name.chars().take(128).collect();
    Failure {
        code: Some("model_not_found".to_owned()),
        ..Failure::new(FailureKind::NotFound, format!("The model `{shown}` does not exist or may not be called here"))
    }
}

/// A failure as an answer.
fn failed(format: Format, failure: &Failure, request_id: &str) -> Option<Answer> {
    let body = format.caller()?.encode_failure(failure, request_id);
    let mut headers = vec![(CONTENT_TYPE, JSON), (CACHE_CONTROL, NO_STORE)];
    if failure.kind == FailureKind::QuotaExceeded {
        // Official clients ask again otherwise, several times, for what cannot be had.
        headers.push((SHOULD_RETRY, HeaderValue::from_static("false")));
    }
    let status = StatusCode::from_u16(failure.kind.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    Some(Answer { status, headers, body: body.into() })
}

/// What logs and metrics call a failure.
fn reason(kind: FailureKind) -> Reason {
    match kind {
        FailureKind::InvalidRequest | FailureKind::ContextLength => Reason::BadRequest,
        FailureKind::ContentFilter => Reason::ContentFiltered,
        FailureKind::Authentication => Reason::InvalidCredentials,
        FailureKind::Permission => Reason::Forbidden,
        FailureKind::NotFound => Reason::ModelNotFound,
        FailureKind::TooLarge => Reason::BodyTooLarge,
        FailureKind::RateLimited => Reason::RateLimited,
        FailureKind::QuotaExceeded => Reason::QuotaExceeded,
        FailureKind::Overloaded => Reason::UpstreamOverloaded,
        FailureKind::Timeout => Reason::UpstreamTimeout,
        FailureKind::Server => Reason::UpstreamProtocol,
    }
}
