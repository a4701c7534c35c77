//! The answer to a POST or GET: JSON if the answer is all there is, a stream of events if there is more.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use serde_json::Value;

use super::{JSON, NO_STORE, SESSION_ID, accepted_types};
use crate::ai::mcp::events::Event;
use crate::filters::filter::Answer;
use crate::proxy::answer::{self, X_REQUEST_ID, filter_response};
use crate::proxy::context::Context;
use crate::proxy::tunnel::unless_client_leaves;

/// Keeps proxies in front from collecting the stream (nginx).
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// After so long without a word a stream says that it is still there, so that nobody on the way takes it for dead.
pub const HEARTBEAT: Duration = Duration::from_secs(15);

/// The answer to one request.
pub struct Reply {
    json: bool,
    events: bool,
    begun: bool,
    session: Option<HeaderValue>,
    /// Of several messages, the answers that have not been sent.
    batch: Option<Vec<Value>>,
}

impl Reply {
    /// `None` if the client takes nothing that could be sent.
    pub fn for_accept(headers: &HeaderMap) -> Option<Reply> {
        let (json, events) = accepted_types(headers);
        (json || events).then_some(Reply { json, events, begun: false, session: None, batch: None })
    }

    /// Whether there may be more than the answer.
    pub fn may_stream(&self) -> bool {
        self.events
    }

    /// Whether the answer is a stream already.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Tells the client the id of its session.
    pub fn tell_session(&mut self, id: &str) {
        self.session = HeaderValue::from_str(id).ok();
    }

    pub fn begin_batch(&mut self) {
        self.batch = Some(Vec::new());
    }

    /// Ends the answer to several messages; false if there is nothing to answer.
    pub async fn end_batch(&mut self, session: &mut Session, ctx: &mut Context) -> pingora::Result<bool> {
        let answers = self.batch.take().unwrap_or_default();
        if self.begun {
            session.write_response_body(None, true).await.map_err(|error| error.into_down())?;
            return Ok(true);
        }
        if answers.is_empty() {
            return Ok(false);
        }
        self.whole(session, ctx, Value::Array(answers).to_string().into()).await?;
        Ok(true)
    }

    /// Waits for something while there is someone to answer; the error means that there is not.
    pub async fn wait<T>(
        &mut self,
        session: &mut Session,
        ctx: &mut Context,
        work: impl Future<Output = T>,
    ) -> pingora::Result<T> {
        let mut work = pin!(work);
        loop {
            let patient = tokio::time::timeout(HEARTBEAT, work.as_mut());
            match unless_client_leaves(session, patient).await? {
                Ok(done) => return Ok(done),
                Err(_) if self.events => self.heartbeat(session, ctx).await?,
                Err(_) => {}
            }
        }
    }

    /// Says that the stream is still there.
    pub async fn heartbeat(&mut self, session: &mut Session, ctx: &mut Context) -> pingora::Result<()> {
        self.begin(session, ctx).await?;
        self.write(session, Bytes::from_static(b": still there\n\n"), false).await
    }

    /// Sends a message that is not the answer. A client that takes no events does without.
    pub async fn event(&mut self, session: &mut Session, ctx: &mut Context, event: &Event) -> pingora::Result<()> {
        if !self.events {
            return Ok(());
        }
        self.begin(session, ctx).await?;
        let mut out = Vec::with_capacity(event.data.len() + 64);
        event.write(&mut out);
        self.write(session, out.into(), false).await
    }

    /// Sends the answer. The last thing that is said, except in a batch.
    pub async fn finish(&mut self, session: &mut Session, ctx: &mut Context, answer: Value) -> pingora::Result<()> {
        self.finish_as(session, ctx, answer, None).await
    }

    /// The same, for an answer that has an id on its stream.
    pub async fn finish_as(
        &mut self,
        session: &mut Session,
        ctx: &mut Context,
        answer: Value,
        id: Option<String>,
    ) -> pingora::Result<()> {
        if let Some(call) = &mut ctx.exchange.mcp {
            call.error = answer.pointer("/error/code").and_then(Value::as_i64);
            call.tool_failed = answer.pointer("/result/isError") == Some(&Value::Bool(true));
        }
        if !self.begun && self.json {
            if let Some(batch) = &mut self.batch {
                batch.push(answer);
                return Ok(());
            }
            return self.whole(session, ctx, answer.to_string().into()).await;
        }
        self.begin(session, ctx).await?;
        let mut out = Vec::new();
        // Those that came before the stream had to begin.
        for answer in self.batch.iter_mut().flat_map(std::mem::take) {
            Event { data: answer.to_string().into(), ..Event::default() }.write(&mut out);
        }
        Event { data: answer.to_string().into(), id, ..Event::default() }.write(&mut out);
        let last = self.batch.is_none();
        self.write(session, out.into(), last).await
    }

    /// Ends a stream without an answer, which the client will get elsewhere.
    pub async fn end(&mut self, session: &mut Session) -> pingora::Result<()> {
        match self.batch {
            Some(_) => Ok(()),
            None => session.write_response_body(None, true).await.map_err(|error| error.into_down()),
        }
    }

    async fn whole(&mut self, session: &mut Session, ctx: &mut Context, body: Bytes) -> pingora::Result<()> {
        let mut headers = vec![(CONTENT_TYPE, JSON), (CACHE_CONTROL, NO_STORE)];
        headers.extend(self.session.take().map(|id| (SESSION_ID, id)));
        answer::send(session, ctx, Answer { status: StatusCode::OK, headers, body }).await
    }

    /// Begins the stream, unless it has begun.
    pub async fn begin(&mut self, session: &mut Session, ctx: &mut Context) -> pingora::Result<()> {
        if std::mem::replace(&mut self.begun, true) {
            return Ok(());
        }
        let mut head = ResponseHeader::build(200, Some(8))?;
        head.insert_header(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))?;
        head.insert_header(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"))?;
        head.insert_header(X_ACCEL_BUFFERING, HeaderValue::from_static("no"))?;
        head.insert_header(X_REQUEST_ID, ctx.exchange.request_id.clone())?;
        if session.req_header().version == Version::HTTP_11 {
            head.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
        }
        if let Some(id) = self.session.take() {
            head.insert_header(SESSION_ID, id)?;
        }
        ctx.exchange.status = 200;
        filter_response(session, ctx, &mut head);
        session.write_response_header(Box::new(head), false).await.map_err(|error| error.into_down())
    }

    async fn write(&mut self, session: &mut Session, bytes: Bytes, last: bool) -> pingora::Result<()> {
        session.write_response_body(Some(bytes), last).await.map_err(|error| error.into_down())
    }
}
