//! What the failure of an attempt means: for the caller, for the key, and for whether another attempt may do better.

use std::time::Duration;

use http::HeaderMap;

use super::attempt::Ask;
use super::refusal::Refusal;
use crate::ai::chat::{Failure, FailureKind, Usage};
use crate::ai::formats::Provider as Spoken;
use crate::ai::keys::Key;
use crate::ai::retry_after;
use crate::snapshot::ai::Provider;
use crate::upstream::Failure as Unanswered;

/// An attempt that did not come to an answer.
pub struct Failed {
    pub failure: Failure,
    /// Whether another attempt may do better.
    pub again: bool,
    pub retry_after: Option<Duration>,
    /// It was the key that was refused.
    pub about_key: bool,
    /// What the provider bills all the same.
    pub billed: Option<Box<Usage>>,
}

impl Failed {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Failed {
        Failure::new(kind, message).into()
    }

    /// There was no answer.
    pub fn unanswered(provider: &Provider, why: Unanswered) -> Failed {
        let kind = match why {
            Unanswered::ConnectTimeout | Unanswered::Timeout => FailureKind::Timeout,
            _ => FailureKind::Server,
        };
        Failed::new(kind, format!("{}: {}", provider.name, why.reason().title()))
    }

    /// The first content did not come in time.
    pub fn late() -> Failed {
        Failed::new(FailureKind::Timeout, "the answer did not begin in time")
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        let again = may_be_tried_again(failure.kind);
        Failed { failure, again, retry_after: None, about_key: false, billed: None }
    }
}

impl From<Failed> for Refusal {
    fn from(failed: Failed) -> Self {
        Refusal { failure: failed.failure, retry_after: failed.retry_after }
    }
}

/// Whether somebody else may answer what this one did not. What the caller did wrong is wrong everywhere.
pub fn may_be_tried_again(kind: FailureKind) -> bool {
    match kind {
        FailureKind::InvalidRequest | FailureKind::TooLarge | FailureKind::ContentFilter => false,
        // Of the provider, with our key: another provider, or another key, may be better off.
        FailureKind::Authentication | FailureKind::Permission | FailureKind::NotFound => true,
        FailureKind::ContextLength
        | FailureKind::RateLimited
        | FailureKind::QuotaExceeded
        | FailureKind::Overloaded
        | FailureKind::Timeout
        | FailureKind::Server => true,
    }
}

/// What an answer means whose status says that it is an error. A key that was refused rests from now on.
pub fn refused(ask: &Ask<'_>, status: u16, headers: &HeaderMap, body: &[u8]) -> Failed {
    let failed = refused_by(ask.provider, ask.key, ask.spoken, status, headers, body);
    let again = failed.again || (ask.fallback_on_filter && failed.failure.kind == FailureKind::ContentFilter);
    Failed { again, ..failed }
}

/// The same, of whatever was asked.
pub fn refused_by(
    provider: &Provider,
    key: Option<&Key>,
    spoken: &dyn Spoken,
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
) -> Failed {
    let mut failure = spoken.decode_failure(status, headers, body);
    if let Some(kind) = provider.spec.failure_kind(status, failure.code.as_deref()) {
        failure.kind = kind;
    }
    let retry_after = retry_after::read(headers);
    let about_key = Key::concerns(status) && key.is_some();
    if let (true, Some(key)) = (about_key, key) {
        key.refused(status, retry_after);
    }
    if matches!(failure.kind, FailureKind::Authentication | FailureKind::Permission) {
        // It is our key that was refused, not the caller's; and what is said of it may hold a part of it.
        log::warn!("{}: key {} was refused with {status}", provider.name, key.map_or("-", |key| &key.name));
        failure = Failure::new(FailureKind::Server, format!("{} refused the gateway's key", provider.name));
    }
    Failed { retry_after, about_key, ..failure.into() }
}
