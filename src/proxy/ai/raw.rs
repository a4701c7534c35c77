//! What passes to a provider as it is, in both directions: any path of it that a route allows, and what it keeps for callers.
//!
//! Bodies are not held: they stream, and nothing is tried twice. Only the key is the gateway's, and what belongs to the caller's
//! own credentials and connection stays here.

use std::sync::Arc;
use std::time::Instant;

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, header};
use pingora::proxy::Session;

use super::budget::{self, Asked, Bill, Size};
use super::failed::refused_by;
use super::outgoing::{Body, Outgoing, Unsent};
use super::refusal::Refusal;
use super::{PROVIDER, body, realtime, refusal, relay};
use crate::ai::catalog;
use crate::ai::chat::{Failure, FailureKind};
use crate::ai::cost::Cost;
use crate::ai::endpoint::Endpoint;
use crate::ai::formats::Format;
use crate::ai::keys::{self, Key};
use crate::ai::metering::Found;
use crate::ai::operation::{Kind, Operation, Stored};
use crate::ai::usage;
use crate::error::Reason;
use crate::proxy::context::Context;
use crate::proxy::{Proxy, answer, tunnel};
use crate::snapshot::Origin;
use crate::snapshot::ai::{AiBackend, Provider};
use crate::telemetry::exchange::AiCall;
use crate::upstream::drop_connection_fields;

/// Headers of callers that are about themselves, their credentials or their connection.
const OWN: [&str; 22] = [
    "authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "x-goog-user-project",
    "x-amz-date",
    "x-amz-security-token",
    "x-amz-content-sha256",
    "openai-organization",
    "openai-project",
    "cookie",
    "host",
    "content-length",
    "expect",
    "accept-encoding",
    "user-agent",
    "forwarded",
    "via",
    "x-real-ip",
    "origin",
    "referer",
    "x-request-id",
];
const OWN_PREFIXES: [&str; 3] = ["x-forwarded-", "headgate-", "sec-"];

/// Parameters of a query that say who pays, or which provider is meant.
const OWN_PARAMETERS: [&str; 5] = ["provider", "key", "api_key", "api-key", "access_token"];

/// Where something goes.
pub struct To<'a> {
    pub provider: &'a Provider,
    pub endpoint: &'a Endpoint,
    pub origin: &'a Arc<Origin>,
    pub key: Option<&'a Key>,
    /// Path and query.
    pub target: String,
    pub operation: Operation<'a>,
}

/// Answers a call of `/passthrough/{provider}/…`.
pub async fn passthrough(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    ai: &AiBackend,
    name: &str,
    path: &str,
) -> pingora::Result<()> {
    let operation = Operation::Passthrough { provider: name, path };
    let Some(provider) = ai.passthrough().find(|provider| *provider.name == *name) else {
        let message = format!("`{}` is no provider that may be reached here", shown(name));
        return refusal::send(session, ctx, Format::OpenAiChat, &Failure::new(FailureKind::NotFound, message).into())
            .await;
    };
    let found = provider.speaking(Format::OpenAiChat).or_else(|| provider.endpoints().next());
    let Some((endpoint, origin)) = found else {
        return answer::send_error(session, ctx, Reason::RouteNotFound.into()).await;
    };
    let Some(target) = endpoint.path_below_root(path) else {
        return answer::send_error(session, ctx, Reason::BadPath.into()).await;
    };
    let target = with_query(target, session, &[]);
    let to = match pay(provider, endpoint, origin, target, operation) {
        Ok(to) => to,
        Err(failure) => return refusal::send(session, ctx, Format::OpenAiChat, &failure.into()).await,
    };
    if session.is_upgrade_req() && tunnel::asked_for(session) {
        enter(ctx, &to);
        let mut to = to;
        let bill = match reserve(ctx, ai, &mut to, &Size::of_length(None)).await {
            Ok(bill) => bill,
            Err(refusal) => return refusal::send(session, ctx, Format::OpenAiChat, &refusal).await,
        };
        let served = realtime::tunnel(proxy, session, ctx, to).await;
        bill.settle(ctx);
        return served;
    }
    pass(proxy, session, ctx, ai, to).await
}

/// Answers a call about what a provider keeps.
pub async fn stored(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    ai: &AiBackend,
    stored: Stored<'_>,
) -> pingora::Result<()> {
    let found = keeper(session, ai, stored.kind).and_then(|(provider, endpoint, origin)| {
        let path = match stored.kind {
            Kind::Files => below(provider, catalog::Operation::Files, stored.path),
            Kind::Batches => below(provider, catalog::Operation::Batches, stored.path),
            Kind::Responses => stored.path.to_owned(),
        };
        let target = with_query(endpoint.path(&path), session, &OWN_PARAMETERS);
        pay(provider, endpoint, origin, target, Operation::Stored(stored))
    });
    match found {
        Ok(to) => pass(proxy, session, ctx, ai, to).await,
        Err(failure) => refusal::send(session, ctx, Format::OpenAiChat, &failure.into()).await,
    }
}

/// The path of a provider for what callers know under the usual one.
fn below(provider: &Provider, operation: catalog::Operation, path: &str) -> String {
    let rest = path.strip_prefix(operation.usual_path()).unwrap_or_default();
    format!("{}{rest}", provider.spec.path(operation))
}

/// The provider that is meant: the one that the call names, or the route's first that keeps such things.
fn keeper<'a>(
    session: &Session,
    ai: &'a AiBackend,
    kind: Kind,
) -> Result<(&'a Provider, &'a Endpoint, &'a Arc<Origin>), Failure> {
    let keeps = |provider: &'a Provider| {
        let (format, serves) = match kind {
            Kind::Files => (Format::OpenAiChat, provider.spec.serves(catalog::Operation::Files)),
            Kind::Batches => (Format::OpenAiChat, provider.spec.serves(catalog::Operation::Batches)),
            Kind::Responses => (Format::OpenAiResponses, true),
        };
        let (endpoint, origin) = provider.speaking(format).filter(|_| serves)?;
        Some((provider, endpoint, origin))
    };
    let named = named(session);
    let is_meant = |provider: &&Provider| named.as_deref().is_none_or(|named| *provider.name == *named);
    let mut listed = ai.passthrough().filter(is_meant).filter_map(keeps);
    if let Some(found) = listed.next() {
        return Ok(found);
    }
    // Who knows the id of an answer has made it; files and batches are listed to everybody who holds the provider's key.
    if kind == Kind::Responses {
        let mut reached = ai.models.providers().filter(is_meant).filter(|provider| ai.reaches(provider));
        let first = reached.find_map(keeps);
        let another = reached.find_map(keeps);
        match (first, another) {
            (Some(found), None) => return Ok(found),
            (Some(_), Some(_)) => {
                let message = "several providers keep responses: name one in the header `headgate-ai-provider`";
                return Err(Failure::invalid("provider", message));
            }
            _ => {}
        }
    }
    let message = match &named {
        Some(name) => format!("`{}` keeps no {} that may be reached here", shown(name), kind.name()),
        None => format!("no provider keeps {} that may be reached here", kind.name()),
    };
    Err(Failure::new(FailureKind::NotFound, message))
}

/// The provider that a call names, in a header or its query.
fn named(session: &Session) -> Option<String> {
    let head = session.req_header();
    let of_header = head.headers.get(PROVIDER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let of_query = || {
        let pairs = head.uri.query().unwrap_or_default().split('&');
        pairs
            .filter_map(|pair| pair.split_once('='))
            .find(|(name, _)| *name == "provider")
            .map(|(_, value)| value.to_owned())
    };
    of_header.or_else(of_query)
}

fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

/// Chooses the key, if the provider wants one.
fn pay<'a>(
    provider: &'a Provider,
    endpoint: &'a Endpoint,
    origin: &'a Arc<Origin>,
    target: String,
    operation: Operation<'a>,
) -> Result<To<'a>, Failure> {
    // Keys for some models only are not for everything.
    let key = keys::choose(&provider.keys, "", &[]);
    if key.is_none() && !provider.keys.is_empty() {
        return Err(Failure::new(FailureKind::Overloaded, format!("no key of {} can be used now", provider.name)));
    }
    Ok(To { provider, endpoint, origin, key, target, operation })
}

/// The caller's query without what says who pays; `others` are left out too.
fn with_query(path: String, session: &Session, others: &[&str]) -> String {
    let query = session.req_header().uri.query().unwrap_or_default();
    let own = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default();
        // `provider` may mean something to the provider itself, unless it was read here.
        let credentials = OWN_PARAMETERS.iter().skip(1).chain(others);
        !pair.is_empty() && !credentials.into_iter().any(|own| name.eq_ignore_ascii_case(own))
    };
    let left: Vec<&str> = query.split('&').filter(own).collect();
    match left.is_empty() {
        true => path,
        false => format!("{path}?{}", left.join("&")),
    }
}

/// The caller's headers that a provider is sent.
pub fn caller_headers(session: &Session, to: &mut HeaderMap) {
    let mut head = session.req_header().clone();
    drop_connection_fields(&mut head);
    for (name, value) in &head.headers {
        let text = name.as_str();
        if !OWN.contains(&text) && !OWN_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
            to.append(name.clone(), value.clone());
        }
    }
}

fn enter(ctx: &mut Context, to: &To<'_>) {
    let record = AiCall::new("", Format::OpenAiChat.name(), false);
    ctx.exchange.ai = Some(Box::new(AiCall {
        operation: to.operation.name(),
        started: Some(Instant::now()),
        provider: to.provider.name.clone(),
        provider_kind: to.provider.otel_name.clone(),
        ..record
    }));
}

/// Sends what the caller sends, and the caller what comes back.
async fn pass(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    ai: &AiBackend,
    to: To<'_>,
) -> pingora::Result<()> {
    enter(ctx, &to);
    let mut to = to;
    let head = session.req_header();
    let method = head.method.clone();
    let declared = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|declared| declared > ai.models.max_body) {
        return answer::send_error(session, ctx, Reason::BodyTooLarge.into()).await;
    }
    let size = if is_free(to.operation, &method) { Size::nothing() } else { Size::of_length(declared) };
    let bill = match reserve(ctx, ai, &mut to, &size).await {
        Ok(bill) => bill,
        Err(refusal) => return refusal::send(session, ctx, Format::OpenAiChat, &refusal).await,
    };
    let mut headers = HeaderMap::new();
    caller_headers(session, &mut headers);
    let mut held = None;
    let body = if session.as_downstream_mut().is_body_empty() {
        Body::None
    } else if to.key.is_some_and(|key| key.signer().is_some()) {
        // What is signed is known as a whole.
        match body::read(proxy, session, ctx, &ai.models).await? {
            Ok((whole, memory)) => {
                held = Some(memory);
                Body::Pieces(vec![whole])
            }
            Err(error) => return answer::send_error(session, ctx, error).await,
        }
    } else {
        let length = declared.filter(|_| ctx.controls.request_body.is_empty());
        Body::Caller { length, most: ai.models.max_body }
    };
    let To { provider, endpoint, origin, key, target, operation } = to;
    let model = "".into();
    let method_of_call = method.clone();
    let outgoing = Outgoing { provider, endpoint, origin, key, model, method, target, headers, body, follows: false };
    let sent = outgoing.send(proxy, session, ctx).await;
    drop(held);
    if sent.is_err() {
        budget::cut(ctx);
        bill.settle(ctx);
        return sent.map(drop);
    }
    let mut exchange = match sent? {
        Ok(exchange) => exchange,
        Err(Unsent::Caller(error)) => return answer::send_error(session, ctx, error).await,
        Err(Unsent::Provider(failed)) => {
            return refusal::send(session, ctx, Format::OpenAiChat, &failed.into()).await;
        }
    };
    let status = exchange.head.status;
    if let (401 | 403, Some(_), Some(spoken)) = (status.as_u16(), key, endpoint.format.provider()) {
        // What is said of the gateway's key is not for callers.
        let body = exchange.whole(session).await?.unwrap_or_default();
        let (status, headers) = (status.as_u16(), &exchange.head.headers);
        let failed = refused_by(provider, key, spoken, status, headers, &body);
        exchange.close(proxy).await;
        return refusal::send(session, ctx, Format::OpenAiChat, &failed.into()).await;
    }
    if let Some(key) = key.filter(|_| Key::concerns(status.as_u16())) {
        key.refused(status.as_u16(), crate::ai::retry_after::read(&exchange.head.headers));
    }
    let mut found = Found::default();
    let sent = relay::answer(&mut exchange, session, ctx, None, &mut found).await;
    exchange.close(proxy).await;
    if status.is_success() {
        settle(ctx, provider, operation, &method_of_call, found);
        match (&sent, &mut ctx.exchange.ai) {
            (Ok(()), Some(record)) => record.served = true,
            _ => budget::cut(ctx),
        }
    }
    bill.settle(ctx);
    sent
}

/// Reserves what a call may use with the budgets of its caller, and of the provider and a key of it that has one left.
async fn reserve(ctx: &mut Context, ai: &AiBackend, to: &mut To<'_>, size: &Size<'_>) -> Result<Bill, Refusal> {
    let asked = Asked::Any(to.provider);
    budget::reserve(ctx, ai, Format::OpenAiChat, "", asked, size).await?;
    let mut tried: Vec<Arc<str>> = Vec::new();
    loop {
        match budget::reserve_attempt(ctx, &ai.models, to.provider, to.key, asked, size).await {
            Ok(paid) => return Ok(Bill::open(ctx, paid)),
            Err(failure) => {
                tried.extend(to.key.map(|key| key.name.clone()));
                let another = to.key.and_then(|_| keys::choose(&to.provider.keys, "", &tried));
                to.key = Some(another.ok_or(failure)?);
            }
        }
    }
}

/// To look something up costs nothing, also if it tells what was used before.
fn is_free(operation: Operation<'_>, method: &Method) -> bool {
    let looks = matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS);
    looks
        || match operation {
            Operation::Stored(Stored { kind: Kind::Batches, path }) => path.ends_with("/cancel"),
            Operation::Stored(_) => true,
            _ => false,
        }
}

/// Enters what was used into the record.
fn settle(ctx: &mut Context, provider: &Provider, operation: Operation<'_>, method: &Method, found: Found) {
    let Some(record) = &mut ctx.exchange.ai else { return };
    if is_free(operation, method) {
        record.cost = Some(0);
        return;
    }
    if let Some(model) = &found.model {
        record.model = model.as_str().into();
    }
    let model = record.model.clone();
    usage::settle_found(record, &provider.spec, &model, &found);
    if let Cost::Unknown = found.cost(&provider.spec, &model) {
        record.cost = None;
    }
}

/// Headers of a WebSocket's opening that are the protocol's own.
pub fn is_websocket_header(name: &header::HeaderName) -> bool {
    matches!(name.as_str(), "sec-websocket-key" | "sec-websocket-version" | "sec-websocket-protocol")
}
