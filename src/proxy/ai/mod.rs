//! Calls of models: answered in the request phase, by exchanges with providers over Pingora's own client.
//!
//! A call is read whole, so that it can be tried again elsewhere. Until the first content of an answer has come nothing is
//! sent to the caller, and any failure may be followed by another attempt; afterwards none is. In the order in which a call
//! meets them:
//!
//! - [`body`] reads it, and [`call`] makes out what is asked.
//! - [`chat`] settles what is to be settled before any provider is asked; [`budget`] reserves what the call may use.
//! - [`guard`] shows it, and later its answer, to the guardrails; whom those have to ask, [`side_call`] asks.
//! - [`cached`] gives the answer again that was given to the same call before.
//! - [`fallback`] goes from target to target; each [`attempt`] is one exchange up to the first content, its request written by
//!   [`request`], and [`failed`] says what its failure means.
//! - [`whole`] and [`stream`] send the answer: each shows it to whoever has to see it first.
//! - Calls beyond chat are answered by [`task`] where they name a model, by [`raw`] where they pass as they are, and by
//!   [`realtime`] where they are WebSockets; all over [`outgoing`] and [`relay`].
//! - [`drain`] reads on what a provider bills whose caller has left.
//! - [`refusal`] answers instead, and [`list`] says what there is to call.

mod attempt;
mod body;
pub mod budget;
mod cached;
mod call;
mod chat;
mod drain;
mod failed;
mod fallback;
mod guard;
mod list;
mod outgoing;
mod raw;
mod realtime;
mod refusal;
mod relay;
mod request;
mod side_call;
mod stream;
mod task;
mod whole;

use http::{HeaderName, HeaderValue};
use pingora::proxy::Session;

use self::call::Call;
pub use self::refusal::in_dialect;
use super::context::Context;
use super::{Proxy, answer};
use crate::ai::chat::Dropped;
use crate::ai::formats::Format;
use crate::ai::operation::Operation;
use crate::error::Reason;
use crate::snapshot::Backend;
use crate::snapshot::ai::AiBackend;
use crate::telemetry::exchange::AiCall;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const DROPPED: HeaderName = HeaderName::from_static("headgate-ai-dropped");
const PROVIDER: HeaderName = HeaderName::from_static("headgate-ai-provider");
const MODEL: HeaderName = HeaderName::from_static("headgate-ai-model");
const ATTEMPTS: HeaderName = HeaderName::from_static("headgate-ai-attempts");

/// One call that is being answered: who asks, for what, over which connection, and what is known of it.
struct Serving<'s> {
    proxy: &'s Proxy,
    session: &'s mut Session,
    ctx: &'s mut Context,
    ai: &'s AiBackend,
    call: Call<'s>,
}

impl Serving<'_> {
    /// The record of the call, for metrics and logs.
    fn record(&mut self) -> Option<&mut AiCall> {
        self.ctx.exchange.ai.as_deref_mut()
    }
}

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
            None => refusal::send(session, ctx, format, &refusal::no_such_model(name).into()).await,
        },
        // What nothing could be found in does not pass those who look.
        Some(operation) if !ai.guardrails.is_empty() && !matches!(operation, Operation::Chat { .. }) => {
            refusal::send(session, ctx, operation.format(), &guard::cannot_look().into()).await
        }
        Some(Operation::Chat { format, path }) => Box::pin(chat::answer(proxy, session, ctx, ai, format, path)).await,
        Some(operation @ (Operation::CountTokens { .. } | Operation::Embeddings { .. } | Operation::Task(_))) => {
            Box::pin(task::answer(proxy, session, ctx, ai, operation)).await
        }
        Some(Operation::Stored(stored)) => Box::pin(raw::stored(proxy, session, ctx, ai, stored)).await,
        Some(Operation::Passthrough { provider, path }) => {
            Box::pin(raw::passthrough(proxy, session, ctx, ai, provider, path)).await
        }
        Some(Operation::Realtime) => Box::pin(realtime::answer(proxy, session, ctx, ai)).await,
    }
}

/// What a request asks for, if its path is that of a call.
pub fn operation<'p>(session: &Session, path: &'p str) -> Option<Operation<'p>> {
    let head = session.req_header();
    let operation = Operation::of(&head.method, path, head.headers.contains_key("anthropic-version"))?;
    // Google's libraries ask for its list at OpenAI's path since they left `v1beta`.
    let google = || ["x-goog-api-client", "x-goog-api-key"].iter().any(|name| head.headers.contains_key(*name));
    Some(match operation {
        Operation::Models { format: Format::OpenAiChat } if google() => Operation::Models { format: Format::Gemini },
        Operation::Model { format: Format::OpenAiChat, name } if google() => {
            Operation::Model { format: Format::Gemini, name }
        }
        other => other,
    })
}

/// The headers that tell a caller who has answered.
fn told(call: &AiCall) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let text = |text: &str| HeaderValue::from_str(text).ok().filter(|value| !value.is_empty());
    let attempts = (call.attempts > 0).then(|| HeaderValue::from(call.attempts));
    let cache = call.cache.map(HeaderValue::from_static);
    let headers =
        [(PROVIDER, text(&call.provider)), (MODEL, text(&call.model)), (ATTEMPTS, attempts), (cached::CACHE, cache)];
    headers.into_iter().filter_map(|(name, value)| Some((name, value?)))
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
