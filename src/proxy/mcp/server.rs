//! The exchange with an MCP server: opening a session for a caller's, sending messages, reading what comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use serde_json::{Value, json};

use super::{JSON, PROTOCOL_VERSION, SESSION_ID};
use crate::ai::mcp::Version;
use crate::ai::mcp::events::{Event, Events};
use crate::ai::mcp::session::{ServerSession, Session as McpSession};
use crate::proxy::forward::MOST_INTERIM;
use crate::snapshot::mcp::{Kind, List, McpServer};
use crate::telemetry::metrics::Outcome as Counted;
use crate::upstream::{Failure, Moment, Outcome, Pick, PickRequest, Timeouts, request_form};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Revisions that servers may answer with. The oldest has the same messages.
const SPOKEN: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
/// Pages and items of one list; a server that has more is not going to end.
const MOST_PAGES: usize = 100;
const MOST_ITEMS: usize = 10_000;
/// How long the gateway's own questions may take, and the farewell to a session.
const QUESTION: Duration = Duration::from_secs(30);
const GOODBYE: Duration = Duration::from_secs(5);

/// Why a server did not answer as it should.
#[derive(Debug, Clone, PartialEq)]
pub enum Trouble {
    /// It has ended the session.
    SessionEnded,
    /// It has no stream to listen to.
    NoStream,
    /// In words that callers may see.
    Failed(String),
}

impl Trouble {
    fn failed(why: impl Into<String>) -> Trouble {
        Trouble::Failed(why.into())
    }

    pub fn message(&self, server: &McpServer) -> String {
        let why = match self {
            Trouble::SessionEnded => "has ended the session",
            Trouble::NoStream => "has no stream",
            Trouble::Failed(why) => why,
        };
        format!("the server {} {why}", server.name)
    }
}

/// One caller's way to one server.
#[derive(Clone)]
pub struct Link {
    pub server: Arc<McpServer>,
    pub caller: Arc<McpSession>,
    pub connector: Arc<Connector>,
    /// The longest message.
    pub most: usize,
}

/// An answer whose head has come.
pub struct Answering {
    /// Until it is given back.
    http: Option<HttpSession>,
    peer: Box<HttpPeer>,
    connector: Arc<Connector>,
    head: ResponseHeader,
    events: Option<Events>,
    found: std::collections::VecDeque<Event>,
    most: usize,
    /// Its place among the requests of the target.
    _pick: Pick,
}

impl Link {
    /// The session with the server; opened, if there is none.
    pub async fn session(&self) -> Result<Arc<ServerSession>, Trouble> {
        let place = self.caller.server(&self.server.name);
        let opened = place.get_or_try_init(|| async {
            let opening = tokio::time::timeout(QUESTION, self.open()).await;
            opening.unwrap_or_else(|_| Err(Trouble::failed("did not answer in time"))).map(Arc::new)
        });
        opened.await.cloned()
    }

    async fn open(&self) -> Result<ServerSession, Trouble> {
        let message = json!({
            "jsonrpc": "2.0", "id": "headgate", "method": "initialize",
            "params": {
                "protocolVersion": self.caller.version.as_str(),
                "capabilities": self.caller.capabilities,
                "clientInfo": self.caller.client,
            },
        });
        let mut answering = self.ask(None, Method::POST, Some(&message), None).await?;
        let id = answering.head.headers.get(SESSION_ID).cloned();
        let answer = answering.answer_to(&Value::from("headgate")).await?;
        let result = answer.get("result").ok_or(Trouble::failed("takes no session"))?;
        let version = result.get("protocolVersion").and_then(Value::as_str).unwrap_or("");
        if !SPOKEN.contains(&version) {
            return Err(Trouble::failed("speaks another revision of the protocol"));
        }
        let capabilities = result.get("capabilities").cloned().unwrap_or_else(|| json!({}));
        let opened = ServerSession { id, version: version.to_owned(), capabilities };
        let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        self.tell(&opened, &initialized).await?;
        if let (Some(level), true) = (self.caller.level(), opened.capabilities.get("logging").is_some()) {
            let message = json!({
                "jsonrpc": "2.0", "id": "headgate", "method": "logging/setLevel", "params": { "level": level },
            });
            let mut answering = self.ask(Some(&opened), Method::POST, Some(&message), None).await?;
            let _ = answering.answer_to(&Value::from("headgate")).await;
        }
        Ok(opened)
    }

    /// Sends a message in the session; if the server has ended it, once more in a new one.
    pub async fn send(&self, message: &Value) -> Result<Answering, Trouble> {
        let opened = self.session().await?;
        match self.ask(Some(&opened), Method::POST, Some(message), None).await {
            Err(Trouble::SessionEnded) => {
                self.caller.forget(&self.server.name, &opened);
                let opened = self.session().await?;
                self.ask(Some(&opened), Method::POST, Some(message), None).await
            }
            answering => answering,
        }
    }

    /// Sends a message that has no answer.
    pub async fn tell(&self, opened: &ServerSession, message: &Value) -> Result<(), Trouble> {
        let telling = async {
            let mut answering = self.ask(Some(opened), Method::POST, Some(message), None).await?;
            answering.whole().await.map(drop)
        };
        tokio::time::timeout(QUESTION, telling).await.unwrap_or(Ok(()))
    }

    /// Listens to what the server says by itself, or takes a stream up again after an event.
    pub async fn listen(&self, opened: &ServerSession, after: Option<&str>) -> Result<Answering, Trouble> {
        let mut answering = self.ask(Some(opened), Method::GET, None, after).await?;
        if answering.events.is_none() {
            return Err(Trouble::NoStream);
        }
        // Who listens may hear nothing for hours.
        if let Some(http) = &mut answering.http {
            http.set_read_timeout(None);
        }
        Ok(answering)
    }

    /// Ends the session with the server.
    pub async fn end(&self, opened: &ServerSession) {
        if opened.id.is_some() {
            let _ = tokio::time::timeout(GOODBYE, async {
                if let Ok(mut answering) = self.ask(Some(opened), Method::DELETE, None, None).await {
                    let _ = answering.whole().await;
                }
            })
            .await;
        }
    }

    /// What the server lists, from before if that is young enough.
    pub async fn list(&self, kind: Kind) -> Result<Arc<List>, Trouble> {
        if let Some(known) = self.server.lists.get(kind, self.server.cache) {
            return Ok(known);
        }
        let listing = tokio::time::timeout(QUESTION, self.read_list(kind)).await;
        listing.unwrap_or_else(|_| Err(Trouble::failed("did not answer in time")))
    }

    async fn read_list(&self, kind: Kind) -> Result<Arc<List>, Trouble> {
        let mut items = Vec::new();
        let mut cursor: Option<Value> = None;
        if self.session().await?.capabilities.get(kind.capability()).is_none() {
            return Ok(self.server.lists.put(kind, items));
        }
        for _ in 0..MOST_PAGES {
            let mut message = json!({ "jsonrpc": "2.0", "id": "headgate", "method": kind.method() });
            if let Some(cursor) = &cursor {
                message["params"] = json!({ "cursor": cursor });
            }
            let mut answer = self.send(&message).await?.answer_to(&Value::from("headgate")).await?;
            if answer.pointer("/error/code").and_then(Value::as_i64) == Some(-32601) {
                break;
            }
            let Some(Value::Array(page)) = answer.pointer_mut(&format!("/result/{}", kind.member())).map(Value::take)
            else {
                return Err(Trouble::failed("answered with no list"));
            };
            items.extend(page.into_iter().filter(Value::is_object));
            cursor = answer.pointer("/result/nextCursor").filter(|cursor| cursor.is_string()).cloned();
            if cursor.is_none() || items.len() > MOST_ITEMS {
                break;
            }
        }
        items.truncate(MOST_ITEMS);
        Ok(self.server.lists.put(kind, items))
    }

    /// Makes a request and waits for the head of its answer.
    async fn ask(
        &self,
        opened: Option<&ServerSession>,
        method: Method,
        message: Option<&Value>,
        after: Option<&str>,
    ) -> Result<Answering, Trouble> {
        let origin = &self.server.origin;
        let started = Instant::now();
        let mut pick = match origin.upstream.pick(&PickRequest::default(), Moment::at(started)) {
            Ok(pick) => pick,
            Err(error) => return Err(Trouble::failed(format!("cannot be asked: {}", error.reason.title()))),
        };
        let peer = pick.target().peer(&Timeouts::default());
        let body = message.map(|message| Bytes::from(message.to_string()));
        let limits = origin.upstream.limits(&Timeouts::default());
        let exchange = async {
            let (mut http, _) = self.connector.get_http_session(&*peer).await?;
            http.set_write_timeout(Some(limits.idle));
            http.set_read_timeout(Some(limits.first_byte));
            let head = self.head(opened, &method, body.as_ref(), after, http.as_http2().is_some(), peer.is_tls());
            let head = head.ok_or_else(|| pingora::Error::new(pingora::ErrorType::InternalError))?;
            http.write_request_header(Box::new(head)).await?;
            if let Some(body) = body {
                http.write_request_body(body, true).await?;
            }
            http.finish_request_body().await?;
            let head = answer_head(&mut http).await?;
            http.set_read_timeout(Some(limits.idle));
            Ok::<_, Box<pingora::Error>>((http, head))
        };
        let exchanged = exchange.await;
        let now = Instant::now();
        let name = pick.target().name().clone();
        let (http, head) = match exchanged {
            Ok(answered) => answered,
            Err(error) => {
                let why = Failure::of(&error.into_up()).unwrap_or(Failure::Reset);
                pick.report(Outcome::Failed(why), Moment::at(now));
                origin.metrics.attempt(&name, Counted::of_failure(why.reason()), now - started);
                return Err(Trouble::failed(format!("cannot be asked: {}", why.reason().title())));
            }
        };
        let status = head.status.as_u16();
        pick.report(Outcome::Answered { status, first_byte: now - started }, Moment::at(now));
        origin.metrics.attempt(&name, Counted::of_status(status), now - started);
        let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
        let is_stream = kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("text/event-stream");
        let events = (is_stream && head.status.is_success()).then(|| Events::new(self.most));
        let mut answering = Answering {
            http: Some(http),
            peer,
            connector: self.connector.clone(),
            head,
            events,
            found: Default::default(),
            most: self.most,
            _pick: pick,
        };
        let in_session = opened.is_some_and(|opened| opened.id.is_some());
        match answering.head.status {
            StatusCode::NOT_FOUND if in_session => {
                let _ = answering.whole().await;
                Err(Trouble::SessionEnded)
            }
            _ => Ok(answering),
        }
    }

    fn head(
        &self,
        opened: Option<&ServerSession>,
        method: &Method,
        body: Option<&Bytes>,
        after: Option<&str>,
        http2: bool,
        tls: bool,
    ) -> Option<RequestHeader> {
        let server = &self.server;
        let mut head = RequestHeader::build_no_case(method.as_str(), server.path.as_bytes(), Some(12)).ok()?;
        let mut put = |name: HeaderName, value: HeaderValue| head.insert_header(name, value).is_ok();
        let accept = if *method == Method::GET { "text/event-stream" } else { "application/json, text/event-stream" };
        put(ACCEPT, HeaderValue::from_static(accept));
        put(USER_AGENT, HeaderValue::from_static(concat!("headgate/", env!("CARGO_PKG_VERSION"))));
        if let Some(body) = body {
            put(CONTENT_TYPE, JSON);
            put(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        if let Some(opened) = opened {
            if let Some(id) = &opened.id {
                put(SESSION_ID, id.clone());
            }
            if opened.version.as_str() >= Version::V2025_06_18.as_str() {
                put(PROTOCOL_VERSION, HeaderValue::from_str(&opened.version).ok()?);
            }
        }
        if let Some(after) = after {
            put(LAST_EVENT_ID, HeaderValue::from_str(after).ok()?);
        }
        for (name, value) in &server.headers {
            put(name.clone(), value.clone());
        }
        request_form(&mut head, &server.authority, http2, tls).ok()?;
        Some(head)
    }
}

impl Answering {
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    pub fn is_stream(&self) -> bool {
        self.events.is_some()
    }

    /// The whole body.
    pub async fn whole(&mut self) -> Result<Bytes, Trouble> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            if whole.len() + piece.len() > self.most {
                return Err(Trouble::failed("answered with more than is taken"));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// The next event of a stream; `None` at its end.
    pub async fn event(&mut self) -> Result<Option<Event>, Trouble> {
        loop {
            if let Some(event) = self.found.pop_front() {
                return Ok(Some(event));
            }
            let Some(piece) = self.piece().await? else { return Ok(None) };
            let Some(events) = &mut self.events else { return Ok(None) };
            let found = &mut self.found;
            if events.push(&piece, &mut |event| found.push_back(event)).is_err() {
                return Err(Trouble::failed("sent a message longer than is taken"));
            }
        }
    }

    /// The answer to a question of the gateway's own; what else is said is passed over.
    async fn answer_to(&mut self, id: &Value) -> Result<Value, Trouble> {
        let is_answer = |message: &Value| message.get("id") == Some(id) && message.get("method").is_none();
        if self.events.is_none() {
            let body = self.whole().await?;
            if !self.head.status.is_success() {
                return Err(Trouble::failed(format!("answered {}", self.head.status.as_u16())));
            }
            let message: Value = serde_json::from_slice(&body).map_err(|_| Trouble::failed("answered with no JSON"))?;
            return if is_answer(&message) { Ok(message) } else { Err(Trouble::failed("answered something else")) };
        }
        while let Some(event) = self.event().await? {
            if let Some(message) = serde_json::from_slice::<Value>(&event.data).ok().filter(is_answer) {
                // To its end, so that the connection can serve the next.
                let _ = tokio::time::timeout(Duration::from_millis(100), self.whole()).await;
                return Ok(message);
            }
        }
        Err(Trouble::failed("did not answer"))
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Trouble> {
        let Some(http) = &mut self.http else { return Ok(None) };
        http.read_response_body().await.map_err(|_| Trouble::failed("broke off"))
    }
}

impl Drop for Answering {
    /// Gives the connection back, whatever way the exchange ended: one of HTTP/2 that does not come back never counts as
    /// idle again. What is unfinished is reset there, and closed on HTTP/1.
    fn drop(&mut self) {
        let Some(mut http) = self.http.take() else { return };
        if http.response_done() || http.as_http2().is_some() {
            let (connector, peer) = (self.connector.clone(), self.peer.clone());
            tokio::spawn(async move {
                connector.release_http_session(http, &*peer, peer.options.idle_timeout).await;
            });
        }
    }
}

/// The first head that is more than an interim one.
async fn answer_head(http: &mut HttpSession) -> pingora::Result<ResponseHeader> {
    for _ in 0..=MOST_INTERIM {
        http.read_response_header().await?;
        if let Some(head) = http.response_header().filter(|head| !head.status.is_informational()) {
            return Ok(head.clone());
        }
    }
    Err(pingora::Error::explain(pingora::ErrorType::InvalidHTTPHeader, "interim answers only"))
}
