//! Tools for agents: the exchange with a caller by the Model Context Protocol over streamable HTTP.
//!
//! A message comes by POST and is answered with JSON, or with a stream of events as soon as there is more to say than the
//! answer. A GET listens for what servers say by themselves, DELETE ends a session.

mod federation;
mod listen;
mod reply;
mod request;
mod server;
mod tool;

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use pingora::proxy::Session;
use serde_json::{Value, json};

use self::reply::Reply;
use self::request::Asked;
use super::context::Context;
use super::{Proxy, answer, body};
use crate::ai::mcp::Version;
use crate::ai::mcp::message::{self, Message, RpcError, classify};
use crate::ai::mcp::session::{Beginning, Session as McpSession};
use crate::error::{Error, Reason};
use crate::filters::filter::Answer;
use crate::snapshot::Backend;
use crate::snapshot::mcp::{McpBackend, UNIT};
use crate::telemetry::exchange::McpCall;

pub const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// Between two pieces of a body.
const PIECE: Duration = Duration::from_secs(60);
/// In one batch, which costs the sender little.
const MOST_IN_BATCH: usize = 50;

/// Answers a request of a route whose backend is `mcp`.
pub async fn run(proxy: &Proxy, session: &mut Session, ctx: &mut Context) -> pingora::Result<()> {
    let Some(snapshot) = ctx.snapshot.clone() else {
        return answer::send_error(session, ctx, Reason::Internal.into()).await;
    };
    let Some(Backend::Mcp(backend)) = ctx.route(&snapshot).map(|route| &route.backend) else {
        return answer::send_error(session, ctx, Reason::Internal.into()).await;
    };
    if ctx.connection.as_ref().is_none_or(|connection| connection.is_internal()) {
        return answer::send_error(session, ctx, Error::with(Reason::Forbidden, "a tool does not call tools")).await;
    }
    if !may_call(backend, &session.req_header().headers, ctx) {
        let error = Error::with(Reason::Forbidden, "pages of this origin may not call");
        ctx.exchange.cause = Some("the origin is not allowed");
        return answer::send_error(session, ctx, error).await;
    }
    let exchange = Exchange { proxy, backend };
    match session.req_header().method {
        Method::POST => exchange.post(session, ctx).await,
        Method::GET => exchange.get(session, ctx).await,
        Method::DELETE => exchange.delete(session, ctx).await,
        _ => {
            let error = Error::new(Reason::MethodNotAllowed);
            let error = error.header(ALLOW, HeaderValue::from_static("GET, POST, DELETE"));
            answer::send_error(session, ctx, error).await
        }
    }
}

/// Whether the page that calls, if one does, may. A page could have had its name resolved to this gateway's address, so
/// that `Host` says nothing.
fn may_call(backend: &McpBackend, headers: &HeaderMap, ctx: &Context) -> bool {
    headers.get_all(ORIGIN).iter().all(|origin| {
        let Ok(origin) = origin.to_str() else { return false };
        let url = origin.parse::<Uri>().ok().filter(|url| matches!(url.scheme_str(), Some("http" | "https")));
        let host = url.as_ref().and_then(Uri::host);
        let of_this_machine =
            ctx.exchange.client.is_loopback() && matches!(host, Some("localhost" | "127.0.0.1" | "[::1]"));
        of_this_machine || backend.allows_origin(origin)
    })
}

/// What answers are made with.
struct Exchange<'e> {
    proxy: &'e Proxy,
    backend: &'e McpBackend,
}

/// A request that is refused before it is a message: a status, and the error in words of JSON-RPC.
struct Refused(StatusCode, RpcError);

impl Exchange<'_> {
    async fn post(&self, session: &mut Session, ctx: &mut Context) -> pingora::Result<()> {
        let headers = &session.req_header().headers;
        let is_json = headers
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/json"));
        if !is_json {
            let error = RpcError::new(message::INVALID_REQUEST, "messages are sent as application/json");
            return refuse(session, ctx, Refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, error)).await;
        }
        let Some(mut reply) = Reply::for_accept(headers) else { return not_acceptable(session, ctx).await };
        // What was read of the body is counted as long as it is worked on.
        let (bytes, _held) = match self.read_body(session, ctx).await? {
            Ok(read) => read,
            Err(error) => return answer::send_error(session, ctx, error).await,
        };
        let Ok(document) = serde_json::from_slice::<Value>(&bytes) else {
            let error = RpcError::new(message::PARSE_ERROR, "the message is no JSON document, or nested too deep");
            return refuse(session, ctx, Refused(StatusCode::BAD_REQUEST, error)).await;
        };
        drop(bytes);
        if let Value::Array(messages) = document {
            return self.batch(session, ctx, &mut reply, messages).await;
        }
        let kind = match classify(&document) {
            Ok(kind) => kind,
            Err(error) => return refuse(session, ctx, Refused(StatusCode::BAD_REQUEST, error)).await,
        };
        record(ctx, &kind);
        if let Err(error) = self.check_version(&session.req_header().headers) {
            return refuse(session, ctx, Refused(StatusCode::BAD_REQUEST, error)).await;
        }
        if let Message::Request { id, method } = &kind
            && method == "initialize"
        {
            return self.initialize(session, ctx, &mut reply, id, &document).await;
        }
        let held = match self.session_of(&session.req_header().headers, ctx) {
            Ok(held) => held,
            Err(refused) => return refuse(session, ctx, refused).await,
        };
        match kind {
            Message::Request { id, method } => {
                let mut asked = Asked { session, ctx, reply: &mut reply, held: &held, id: &id };
                self.request(&mut asked, &method, document).await
            }
            Message::Notification { method } => {
                self.notification(&held, &method, document);
                accepted(session, ctx).await
            }
            Message::Response { id } => {
                self.response(&held, &id, document);
                accepted(session, ctx).await
            }
        }
    }

    /// Several messages at once, which only the first revision has.
    async fn batch(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        reply: &mut Reply,
        messages: Vec<Value>,
    ) -> pingora::Result<()> {
        let mcp = McpCall { method: "batch".into(), ..McpCall::default() };
        ctx.exchange.mcp = Some(Box::new(mcp));
        let invalid = |why| Refused(StatusCode::BAD_REQUEST, RpcError::new(message::INVALID_REQUEST, why));
        let held = match self.session_of(&session.req_header().headers, ctx) {
            Ok(held) => held,
            Err(refused) => return refuse(session, ctx, refused).await,
        };
        if !held.version.has_batches() {
            return refuse(session, ctx, invalid("this revision of the protocol has no batches")).await;
        }
        if messages.is_empty() || messages.len() > MOST_IN_BATCH {
            return refuse(session, ctx, invalid("a batch holds between 1 and 50 messages")).await;
        }
        reply.begin_batch();
        for message in messages {
            match classify(&message) {
                Err(error) => reply.finish(session, ctx, error.answer(&Value::Null)).await?,
                Ok(Message::Request { id, method }) if method == "initialize" => {
                    let error = RpcError::new(message::INVALID_REQUEST, "`initialize` stands by itself");
                    reply.finish(session, ctx, error.answer(&id)).await?;
                }
                Ok(Message::Request { id, method }) => {
                    let mut asked = Asked { session, ctx, reply, held: &held, id: &id };
                    self.request(&mut asked, &method, message).await?;
                }
                Ok(Message::Notification { method }) => self.notification(&held, &method, message),
                Ok(Message::Response { id }) => self.response(&held, &id, message),
            }
        }
        match reply.end_batch(session, ctx).await? {
            true => Ok(()),
            false => accepted(session, ctx).await,
        }
    }

    /// The first message of a session.
    async fn initialize(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        reply: &mut Reply,
        id: &Value,
        message: &Value,
    ) -> pingora::Result<()> {
        let params = message.get("params").unwrap_or(&Value::Null);
        let version = Version::negotiate(params.get("protocolVersion").and_then(Value::as_str));
        let member = |name: &str| params.get(name).filter(|value| value.is_object()).cloned();
        let (owner, counted) = owner(ctx);
        let beginning = Beginning {
            owner: &owner,
            counted: &counted,
            version,
            client: member("clientInfo").unwrap_or_else(|| json!({ "name": "unknown", "version": "0" })),
            capabilities: member("capabilities").unwrap_or_else(|| json!({})),
        };
        let Ok(held) = self.backend.state.sessions.begin(beginning, &self.backend.bounds, Instant::now()) else {
            let error = Error::with(Reason::OutOfMemory, "there are too many sessions");
            return answer::send_error(session, ctx, error).await;
        };
        let mut capabilities = json!({ "tools": { "listChanged": true } });
        if !self.backend.servers.is_empty() {
            capabilities["resources"] = json!({ "subscribe": true, "listChanged": true });
            capabilities["prompts"] = json!({ "listChanged": true });
            capabilities["completions"] = json!({});
            capabilities["logging"] = json!({});
        }
        let mut result = json!({
            "protocolVersion": version.as_str(),
            "capabilities": capabilities,
            "serverInfo": { "name": &*self.backend.name, "version": env!("CARGO_PKG_VERSION") },
        });
        if let Some(instructions) = &self.backend.instructions {
            result["instructions"] = (**instructions).into();
        }
        reply.tell_session(&held.id);
        reply.finish(session, ctx, message::answer(id, result)).await
    }

    async fn get(&self, session: &mut Session, ctx: &mut Context) -> pingora::Result<()> {
        let call = McpCall { method: "listen".into(), ..McpCall::default() };
        ctx.exchange.mcp = Some(Box::new(call));
        let headers = &session.req_header().headers;
        let Some(mut reply) = Reply::for_accept(headers).filter(Reply::may_stream) else {
            return not_acceptable(session, ctx).await;
        };
        let found = self.check_version(headers).map_err(|error| Refused(StatusCode::BAD_REQUEST, error));
        match found.and_then(|()| self.session_of(headers, ctx)) {
            Ok(held) => self.listen(session, ctx, &mut reply, held).await,
            Err(refused) => refuse(session, ctx, refused).await,
        }
    }

    async fn delete(&self, session: &mut Session, ctx: &mut Context) -> pingora::Result<()> {
        let call = McpCall { method: "end".into(), ..McpCall::default() };
        ctx.exchange.mcp = Some(Box::new(call));
        match self.session_of(&session.req_header().headers, ctx) {
            Ok(held) => {
                self.end(&held);
                let nothing = Answer { status: StatusCode::NO_CONTENT, headers: Vec::new(), body: Bytes::new() };
                answer::send(session, ctx, nothing).await
            }
            Err(refused) => refuse(session, ctx, refused).await,
        }
    }

    /// The session that a request belongs to.
    fn session_of(&self, headers: &HeaderMap, ctx: &Context) -> Result<std::sync::Arc<McpSession>, Refused> {
        let Some(id) = headers.get(SESSION_ID) else {
            let error = RpcError::new(message::INVALID_REQUEST, "the header Mcp-Session-Id is missing");
            return Err(Refused(StatusCode::BAD_REQUEST, error));
        };
        let sessions = &self.backend.state.sessions;
        let found =
            id.to_str().ok().and_then(|id| sessions.find(id, &owner(ctx).0, &self.backend.bounds, Instant::now()));
        found.ok_or_else(|| {
            let error = RpcError::new(message::SESSION_NOT_FOUND, "there is no such session; begin another");
            Refused(StatusCode::NOT_FOUND, error)
        })
    }

    fn check_version(&self, headers: &HeaderMap) -> Result<(), RpcError> {
        let Some(asked) = headers.get(PROTOCOL_VERSION) else { return Ok(()) };
        let asked = asked.to_str().unwrap_or("?");
        if Version::parse(asked).is_some() {
            return Ok(());
        }
        let shown: String = asked.chars().take(32).collect();
        let spoken: Vec<&str> = Version::ALL.into_iter().map(Version::as_str).collect();
        let mut error = RpcError::new(message::UNSUPPORTED_VERSION, "this revision of the protocol is not spoken");
        error.data = Some(json!({ "supported": spoken, "requested": shown }));
        Err(error)
    }

    /// Reads the body, within bounds of size, time and memory. The outer error means that the client is gone.
    async fn read_body(
        &self,
        session: &mut Session,
        ctx: &mut Context,
    ) -> pingora::Result<Result<(Bytes, tokio::sync::OwnedSemaphorePermit), Error>> {
        let too_large = || Ok(Err(Reason::BodyTooLarge.into()));
        let full = || Ok(Err(Error::with(Reason::OutOfMemory, "too many messages are read at this moment")));
        let lend = |bytes: usize| {
            let permits = u32::try_from((bytes as u64).div_ceil(UNIT)).ok()?;
            self.backend.state.memory.clone().try_acquire_many_owned(permits).ok()
        };
        let declared =
            session.req_header().headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if declared.is_some_and(|length: u64| length > self.backend.max_body) {
            return too_large();
        }
        let Some(mut held) = lend(0) else { return full() };
        let mut whole = BytesMut::new();
        loop {
            let read = tokio::time::timeout(PIECE, session.downstream_session.read_request_body()).await;
            let Ok(read) = read else { return Ok(Err(Reason::RequestTimeout.into())) };
            let mut piece = read.map_err(|error| error.into_down())?;
            let last = piece.is_none() || session.as_downstream_mut().is_body_done();
            if let Err(error) = body::request(self.proxy, &mut piece, last, ctx) {
                return ctx.failure.take().map(Err).ok_or(error);
            }
            let piece = piece.unwrap_or_default();
            if (whole.len() + piece.len()) as u64 > self.backend.max_body {
                return too_large();
            }
            // As a document it takes several times as much; the bound is set for that.
            let Some(more) = lend(piece.len()) else { return full() };
            held.merge(more);
            whole.extend_from_slice(&piece);
            if last {
                return Ok(Ok((whole.freeze(), held)));
            }
        }
    }
}

/// Who a session belongs to, and who it is counted for.
fn owner(ctx: &Context) -> (String, String) {
    let identity = ctx.exchange.identity.as_ref().filter(|identity| !identity.anonymous);
    let owner = match identity {
        Some(identity) => match (&identity.consumer, &identity.claims) {
            (Some(consumer), _) => format!("consumer {}", consumer.name()),
            // A token of a user is renewed; who it is for stays the same.
            (None, Some(claims)) => match claims.text("sub") {
                Some(subject) => format!("subject {subject}"),
                None => format!("credential {}", identity.credential),
            },
            (None, None) => format!("credential {}", identity.credential),
        },
        None => String::new(),
    };
    let counted = if owner.is_empty() { format!("address {}", ctx.exchange.client) } else { owner.clone() };
    (owner, counted)
}

/// Notes what a message is, for the log.
fn record(ctx: &mut Context, message: &Message) {
    let method = match message {
        Message::Request { method, .. } | Message::Notification { method } => method.chars().take(64).collect(),
        Message::Response { .. } => "response".to_owned(),
    };
    ctx.exchange.mcp = Some(Box::new(McpCall { method: method.into(), ..McpCall::default() }));
}

/// A notification or response was taken.
async fn accepted(session: &mut Session, ctx: &mut Context) -> pingora::Result<()> {
    let taken = Answer { status: StatusCode::ACCEPTED, headers: Vec::new(), body: Bytes::new() };
    answer::send(session, ctx, taken).await
}

async fn not_acceptable(session: &mut Session, ctx: &mut Context) -> pingora::Result<()> {
    let why = "answers are application/json and text/event-stream; `Accept` has to name both";
    let error = RpcError::new(message::INVALID_REQUEST, why);
    refuse(session, ctx, Refused(StatusCode::NOT_ACCEPTABLE, error)).await
}

async fn refuse(session: &mut Session, ctx: &mut Context, refused: Refused) -> pingora::Result<()> {
    let Refused(status, error) = refused;
    ctx.exchange.reason = Some(Reason::BadRequest);
    if let Some(call) = &mut ctx.exchange.mcp {
        call.error = Some(error.code);
    }
    let headers = vec![(CONTENT_TYPE, JSON), (CACHE_CONTROL, NO_STORE)];
    let body = error.answer(&Value::Null).to_string().into();
    answer::send(session, ctx, Answer { status, headers, body }).await
}

/// The media types that a client takes, of the two that there are: JSON and events.
fn accepted_types(headers: &HeaderMap) -> (bool, bool) {
    let mut named = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok()).peekable();
    if named.peek().is_none() {
        return (true, true);
    }
    let (mut json, mut events) = (false, false);
    for range in named.flat_map(|line| line.split(',')) {
        match range.split(';').next().unwrap_or("").trim().to_ascii_lowercase().as_str() {
            "*/*" => (json, events) = (true, true),
            "application/json" | "application/*" => json = true,
            "text/event-stream" | "text/*" => events = true,
            _ => {}
        }
    }
    (json, events)
}
