//! Calls of models: answered in the request phase, by exchanges with providers over Pingora's own client.
//!
//! A call is read whole, so that it can be tried again elsewhere. Until the first content of an answer has come nothing is
//! sent to the caller, and any failure may be followed by another attempt; afterwards none is.

mod attempt;
mod body;
mod list;
mod stream;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use pingora::proxy::Session;

use self::attempt::{Attempt, Ended};
use super::context::Context;
use super::{Proxy, answer};
use crate::ai::chat::{ChatRequest, Dropped, Failure, FailureKind};
use crate::ai::formats::{Caller, Format, PathFacts};
use crate::ai::keys;
use crate::ai::operation::Operation;
use crate::ai::passing::Head;
use crate::ai::targets::{self, Target};
use crate::error::{Error, Reason};
use crate::filters::filter::Answer;
use crate::snapshot::Backend;
use crate::snapshot::ai::{AiBackend, Provider, Virtual};
use crate::telemetry::exchange::AiCall;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const DROPPED: HeaderName = HeaderName::from_static("headgate-ai-dropped");
const PROVIDER: HeaderName = HeaderName::from_static("headgate-ai-provider");
const MODEL: HeaderName = HeaderName::from_static("headgate-ai-model");
const ATTEMPTS: HeaderName = HeaderName::from_static("headgate-ai-attempts");

/// Answers a request of a route whose backend is `ai`.
pub async fn run(proxy: &Proxy, session: &mut Session, ctx: &mut Context) -> pingora::Result<()> {
    let Some(snapshot) = ctx.snapshot.clone() else {
        return answer::send_error(session, ctx, Reason::Internal.into()).await;
    };
    let Some(Backend::Ai(ai)) = ctx.route(&snapshot).map(|route| &route.backend) else {
        return answer::send_error(session, ctx, Reason::Internal.into()).await;
    };
    let path = session.req_header().uri.path().to_owned();
    match operation(session, &path) {
        None => answer::send_error(session, ctx, Reason::RouteNotFound.into()).await,
        Some(Operation::Models { format }) => answer::send(session, ctx, list::all(ai, format)).await,
        Some(Operation::Model { format, name }) => match list::one(ai, format, name) {
            Some(found) => answer::send(session, ctx, found).await,
            None => refuse(session, ctx, format, &no_such_model(name), None).await,
        },
        Some(Operation::Chat { format, path }) => Box::pin(chat(proxy, session, ctx, ai, format, path)).await,
    }
}

/// What a request asks for, if its path is that of a call.
pub fn operation<'p>(session: &Session, path: &'p str) -> Option<Operation<'p>> {
    let head = session.req_header();
    Operation::of(&head.method, path, head.headers.contains_key("anthropic-version"))
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

fn no_such_model(name: &str) -> Failure {
    let shown: String = name.chars().take(128).collect();
    Failure {
        code: Some("model_not_found".to_owned()),
        ..Failure::new(FailureKind::NotFound, format!("The model `{shown}` does not exist or may not be called here"))
    }
}

/// Answers with a failure in the caller's dialect.
async fn refuse(
    session: &mut Session,
    ctx: &mut Context,
    format: Format,
    failure: &Failure,
    retry_after: Option<std::time::Duration>,
) -> pingora::Result<()> {
    let request_id = String::from_utf8_lossy(ctx.exchange.request_id.as_bytes()).into_owned();
    ctx.exchange.reason = Some(reason(failure.kind));
    let Some(mut answer) = failed(format, failure, &request_id) else {
        return answer::send_error(session, ctx, reason(failure.kind).into()).await;
    };
    if let Some(wait) = retry_after {
        answer.headers.push((RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil() as u64)));
    }
    if let Some(call) = &ctx.exchange.ai {
        answer.headers.extend(told(call));
    }
    answer::send(session, ctx, answer).await
}

/// What logs and metrics call a failure.
fn reason(kind: FailureKind) -> Reason {
    match kind {
        FailureKind::InvalidRequest | FailureKind::ContextLength | FailureKind::ContentFilter => Reason::BadRequest,
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

/// The headers that tell a caller who has answered.
fn told(call: &AiCall) -> Vec<(HeaderName, HeaderValue)> {
    let text = |text: &str| HeaderValue::from_str(text).ok().filter(|value| !value.is_empty());
    let attempts = (call.attempts > 0).then(|| HeaderValue::from(call.attempts));
    let headers = [(PROVIDER, text(&call.provider)), (MODEL, text(&call.model)), (ATTEMPTS, attempts)];
    headers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// One call that is being answered.
struct Call<'c> {
    format: Format,
    caller: &'static dyn Caller,
    path: PathFacts<'c>,
    body: &'c Bytes,
    head: &'c Head<'c>,
    /// In the neutral form, once a provider of another format has to be asked.
    request: Option<ChatRequest>,
    stream: bool,
    /// Of the caller's `anthropic-beta` header.
    betas: Vec<&'c str>,
}

impl Call<'_> {
    fn request(&mut self) -> Result<&ChatRequest, Failure> {
        if self.request.is_none() {
            self.request = Some(self.caller.decode_request(self.body, self.path)?);
        }
        self.request.as_ref().ok_or_else(|| Failure::new(FailureKind::Server, "the call was not read"))
    }
}

async fn chat(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    ai: &AiBackend,
    format: Format,
    path: PathFacts<'_>,
) -> pingora::Result<()> {
    // Google's own libraries ask for events; who does not gets one array, as there.
    let array =
        path.stream == Some(true) && !session.req_header().uri.query().is_some_and(|query| query.contains("alt=sse"));
    let Some(caller) = format.caller_of_arrays().filter(|_| array).or(format.caller()) else {
        return answer::send_error(session, ctx, Reason::RouteNotFound.into()).await;
    };
    let (body, _held) = match body::read(proxy, session, ctx, &ai.models).await? {
        Ok(read) => read,
        Err(error) => return answer::send_error(session, ctx, error).await,
    };
    let head = match Head::read(&body) {
        Ok(head) => head,
        Err(failure) => return refuse(session, ctx, format, &failure, None).await,
    };
    let named = path.model.or(head.model());
    let Some(name) = named.or(ai.default_model()).map(str::to_owned) else {
        return refuse(session, ctx, format, &Failure::invalid("model", "the call names no model"), None).await;
    };
    let name = name.as_str();
    // From here on it is as if the caller had written the default.
    let with_default = named.is_none().then(|| head.passed_on(&body, Some(name), false));
    let (body, head) = match &with_default {
        None => (&body, head),
        Some(body) => match Head::read(body) {
            Ok(head) => (body, head),
            Err(failure) => return refuse(session, ctx, format, &failure, None).await,
        },
    };
    let resolved = ai.allows(name).then(|| ai.models.resolve(name)).flatten();
    let Some(resolved) = resolved else {
        return refuse(session, ctx, format, &no_such_model(name), None).await;
    };
    let stream = path.stream.unwrap_or(head.stream);
    let mut record = AiCall::new(name, format.name(), stream);
    record.started = Some(Instant::now());
    ctx.exchange.ai = Some(Box::new(record));
    let betas =
        session.req_header().headers.get("anthropic-beta").and_then(|betas| betas.to_str().ok()).map(str::to_owned);
    let betas = betas.as_deref().map(|betas| betas.split(',').map(str::trim).collect()).unwrap_or_default();
    let mut call = Call { format, caller, path, body, head: &head, request: None, stream, betas };
    attempts(proxy, session, ctx, ai, resolved.get(), &mut call).await
}

/// Tries targets until one has answered, or none is left that may.
async fn attempts(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    ai: &AiBackend,
    model: &Virtual,
    call: &mut Call<'_>,
) -> pingora::Result<()> {
    let mut tried_keys: Vec<Arc<str>> = Vec::new();
    let mut given_up: Vec<Target> = Vec::new();
    let mut last: Option<(Failure, Option<std::time::Duration>)> = None;
    for _ in 0..model.attempts {
        let usable = |target: &Target| {
            !given_up.iter().any(|other| other.provider == target.provider && other.model == target.model)
                && ai.models.provider(&target.provider).is_some_and(|provider| payable(provider, target, &tried_keys))
        };
        let Some(target) = targets::choose(&model.targets, model.strategy, usable) else { break };
        let Some(provider) = ai.models.provider(&target.provider) else { break };
        let key = keys::choose(&provider.keys, &target.model, &tried_keys);
        let attempt = match Attempt::prepare(provider, target, key, call, model) {
            Ok(attempt) => attempt,
            // What one provider cannot be asked another may be.
            Err(failure) => {
                given_up.push(target.clone());
                last = Some((failure, None));
                continue;
            }
        };
        match attempt.run(proxy, session, ctx, call).await? {
            Ended::Served => return Ok(()),
            Ended::Failed { failure, again, retry_after, about_key } => {
                match (about_key, key) {
                    (true, Some(key)) if provider.keys.len() > 1 => tried_keys.push(key.name.clone()),
                    // Another try at the same one helps only where there is no other and nothing was said against it.
                    _ if model.targets.len() > 1 || !again || about_key => given_up.push(target.clone()),
                    _ => {}
                }
                last = Some((failure, retry_after));
                if !again {
                    break;
                }
            }
        }
    }
    let (failure, retry_after) = last.unwrap_or_else(|| {
        (Failure::new(FailureKind::Overloaded, "no provider of this model can be asked at the moment"), None)
    });
    refuse(session, ctx, call.format, &failure, retry_after).await
}

/// Whether there is a key for a target, or it needs none.
fn payable(provider: &Provider, target: &Target, tried: &[Arc<str>]) -> bool {
    provider.keys.is_empty() || keys::choose(&provider.keys, &target.model, tried).is_some()
}

/// The names of what was left out, as a header.
fn dropped_header(dropped: &Dropped) -> Option<(HeaderName, HeaderValue)> {
    if dropped.is_empty() {
        return None;
    }
    // A caller can name fields as it likes, and as many.
    let mut text = String::new();
    for field in dropped.iter() {
        if text.len() + field.len() > 1000 {
            text += ", ...";
            break;
        }
        if !text.is_empty() {
            text += ", ";
        }
        text.extend(field.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }));
    }
    Some((DROPPED, HeaderValue::from_str(&text).ok()?))
}
