//! Speech both ways: a WebSocket to a provider, opened with the gateway's key. What is said in it passes as it is; of what the
//! provider says its usage is read.

use std::time::Instant;

use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{HeaderMap, HeaderValue};
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use super::budget::{self, Asked, Bill, Size};
use super::fallback::payable;
use super::raw::{To, caller_headers, is_websocket_header};
use super::refusal::{self, no_such_model};
use super::{guard, request};
use crate::ai::catalog;
use crate::ai::chat::{Failure, FailureKind, Usage};
use crate::ai::endpoint::{query_value, show_key};
use crate::ai::formats::Format;
use crate::ai::keys;
use crate::ai::metering::{self, Found};
use crate::ai::operation::Operation;
use crate::ai::stream::websocket::Messages;
use crate::ai::targets::{self, Target};
use crate::ai::usage;
use crate::error::{Error, Reason};
use crate::proxy::context::Context;
use crate::proxy::tunnel::{self, Made};
use crate::proxy::{Proxy, answer, forward};
use crate::snapshot::ai::AiBackend;
use crate::telemetry::exchange::AiCall;

/// Subprotocols in which browsers, who cannot set headers, show keys and accounts.
const SECRET_PROTOCOLS: [&str; 3] = ["openai-insecure-api-key.", "openai-organization.", "openai-project."];

/// Answers a call of `/realtime`.
pub async fn answer(proxy: &Proxy, session: &mut Session, ctx: &mut Context, ai: &AiBackend) -> pingora::Result<()> {
    let format = Format::OpenAiChat;
    if !tunnel::asked_for(session) {
        let error = Error::with(Reason::BadRequest, "a call of `realtime` opens a WebSocket");
        return answer::send_error(session, ctx, error).await;
    }
    let query = session.req_header().uri.query().unwrap_or_default().to_owned();
    let named = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "model");
    let Some(name) = named.map(|(_, value)| value.into_owned()).filter(|name| !name.is_empty()) else {
        return refusal::send(session, ctx, format, &Failure::invalid("model", "the call names no model").into()).await;
    };
    let Some(resolved) = ai.allows(&name).then(|| ai.models.resolve(&name)).flatten() else {
        return refusal::send(session, ctx, format, &no_such_model(&name).into()).await;
    };
    if !resolved.get().guardrails.is_empty() {
        return refusal::send(session, ctx, format, &guard::cannot_look().into()).await;
    }
    let record = AiCall::new(&name, format.name(), true);
    let record = AiCall { operation: Operation::Realtime.name(), started: Some(Instant::now()), ..record };
    ctx.exchange.ai = Some(Box::new(record));
    let model = resolved.get();
    let size = Size { output: None, ..Size::nothing() };
    if let Err(refusal) = budget::reserve(ctx, ai, format, &name, Asked::Targets(&model.targets), &size).await {
        return refusal::send(session, ctx, format, &refusal).await;
    }
    let serves = |target: &Target| {
        budget::permits(ctx, &ai.models, target)
            && ai.models.provider(&target.provider).is_some_and(|provider| {
                provider.spec.serves(catalog::Operation::Realtime)
                    && provider.speaking(Format::OpenAiChat).is_some()
                    && payable(provider, target, &[])
            })
    };
    let found = targets::choose(&model.targets, model.strategy, serves);
    let found = found.and_then(|target| {
        let provider = ai.models.provider(&target.provider)?;
        let (endpoint, origin) = provider.speaking(Format::OpenAiChat)?;
        Some((target, provider, endpoint, origin))
    });
    let Some((target, provider, endpoint, origin)) = found else {
        let failure = Failure::new(FailureKind::NotFound, "no provider of this model serves realtime");
        return refusal::send(session, ctx, format, &failure.into()).await;
    };
    let key = keys::choose(&provider.keys, &target.model, &[]);
    let asked = Asked::Targets(std::slice::from_ref(target));
    let paid = match budget::reserve_attempt(ctx, &ai.models, provider, key, asked, &size).await {
        Ok(paid) => paid,
        Err(failure) => return refusal::send(session, ctx, format, &failure.into()).await,
    };
    let bill = Bill::open(ctx, paid);
    if let Some(record) = &mut ctx.exchange.ai {
        record.provider = provider.name.clone();
        record.provider_kind = provider.otel_name.clone();
        record.model = target.model.clone();
        record.key = key.map(|key| key.name.clone());
        record.attempts = 1;
    }
    let mut path = endpoint.path(provider.spec.path(catalog::Operation::Realtime));
    path += "?model=";
    path += &query_value(&target.model);
    for pair in query.split('&') {
        let name = pair.split('=').next().unwrap_or_default();
        if !pair.is_empty() && !["model", "key", "api_key", "api-key", "access_token"].contains(&name) {
            path += "&";
            path += pair;
        }
    }
    let _in_flight = target.state.enter();
    let to = To { provider, endpoint, origin, key, target: path, operation: Operation::Realtime };
    let served = tunnel(proxy, session, ctx, to).await;
    bill.settle(ctx);
    served
}

/// Opens a WebSocket to a provider and serves it to its end. The record of the call is begun.
pub async fn tunnel(proxy: &Proxy, session: &mut Session, ctx: &mut Context, to: To<'_>) -> pingora::Result<()> {
    let Some(head) = opening(session, &to) else {
        return answer::send_error(session, ctx, Reason::Internal.into()).await;
    };
    if let Err(error) = forward::begin(to.origin.clone(), session, ctx).and_then(|()| tunnel::possible(ctx)) {
        return answer::send_error(session, ctx, error).await;
    }
    let (mut messages, mut all) = (Messages::default(), Found::default());
    let mut tap = |bytes: &[u8]| messages.push(bytes, &mut |message| take(message, &mut all));
    let made = Made { head, tap: &mut tap };
    let served = tunnel::run(proxy, session, ctx, Some(made)).await;
    let opened = ctx.exchange.status == 101 || session.response_written().is_some_and(|head| head.status == 101);
    if let (true, Some(record)) = (opened, &mut ctx.exchange.ai) {
        record.served = true;
        if record.model.is_empty() {
            record.model = all.model.as_deref().unwrap_or_default().into();
        }
        let model = record.model.clone();
        usage::settle_found(record, &to.provider.spec, &model, &all);
    }
    served
}

/// The request for the WebSocket; `None` if it would not be legal.
fn opening(session: &Session, to: &To<'_>) -> Option<RequestHeader> {
    let To { provider, endpoint, key, .. } = *to;
    let mut headers = HeaderMap::new();
    caller_headers(session, &mut headers);
    let mut head = RequestHeader::build_no_case("GET", to.target.as_bytes(), Some(16)).ok()?;
    for (name, value) in &headers {
        head.append_header(name.clone(), value.clone()).ok()?;
    }
    let sent = &session.req_header().headers;
    // Extensions, such as compression, are between the caller and us; without them usage can be read.
    for (name, value) in sent.iter().filter(|(name, _)| is_websocket_header(name) && **name != SEC_WEBSOCKET_PROTOCOL) {
        head.append_header(name.clone(), value.clone()).ok()?;
    }
    let offered = sent.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offered = offered.flat_map(|value| value.split(',')).map(str::trim);
    let kept: Vec<&str> =
        offered.filter(|one| !SECRET_PROTOCOLS.iter().any(|secret| one.starts_with(secret))).collect();
    if !kept.is_empty() {
        head.insert_header(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(&kept.join(", ")).ok()?).ok()?;
    }
    request::provider_headers(provider, &mut head)?;
    if let Some(key) = key {
        (key.signer().is_none() && show_key(&mut head, &provider.spec.credential, key.expose())).then_some(())?;
    }
    crate::upstream::request_form(&mut head, &endpoint.authority, false, endpoint.https).ok()?;
    Some(head)
}

/// Adds what a message of the provider says: each answer of a conversation has a usage of its own.
fn take(message: &[u8], all: &mut Found) {
    let says = |word: &[u8]| memchr::memmem::find(message, word).is_some();
    if !says(b"response.done") && !says(b"usageMetadata") {
        return;
    }
    let mut one = Found::default();
    metering::document(message, &mut one);
    if let Some(usage) = one.usage {
        add(all.usage.get_or_insert_default(), &usage);
    }
    all.model = one.model.or(all.model.take());
}

fn add(sum: &mut Usage, more: &Usage) {
    let plus = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
    plus(&mut sum.input, more.input);
    plus(&mut sum.output, more.output);
    plus(&mut sum.cache_read, more.cache_read);
    plus(&mut sum.reasoning, more.reasoning);
    plus(&mut sum.audio_input, more.audio_input);
    plus(&mut sum.audio_output, more.audio_output);
}
