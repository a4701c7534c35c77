//! Calls of tools: the filters for them, and those that are requests to this gateway.

use std::borrow::Cow;

use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use serde_json::Value;

use super::Exchange;
use super::request::Asked;
use crate::ai::mcp::message::{self, RpcError};
use crate::ai::mcp::operation;
use crate::error::{Error, Reason};
use crate::filters::filter::{Flow, Request, RequestStep};
use crate::filters::stage::Stage;
use crate::proxy::answer::X_REQUEST_ID;
use crate::proxy::context::Context;
use crate::proxy::internal::Unanswered;
use crate::snapshot::mcp::RouteTool;

/// Headers of the caller's request that are about that request, or say what its body is.
const NOT_PASSED_ON: [&str; 19] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-unmodified-since",
    "keep-alive",
    "origin",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Exchange<'_> {
    /// Whether a caller may call a tool. Only what costs nothing to ask is asked: a filter that has to wait, or counts,
    /// decides when the tool is called.
    pub(super) fn may_see(&self, session: &mut Session, ctx: &mut Context, tool: &str) -> bool {
        let mut request =
            Request { head: session.req_header_mut(), exchange: &mut ctx.exchange, controls: &mut ctx.controls };
        let steps = self.backend.steps(tool).filter(|(stage, _)| *stage == Stage::Authorise);
        let refused = steps.into_iter().any(|(_, step)| match step {
            RequestStep::Now(filter) => !matches!(filter.on_request(&mut request), Flow::Continue),
            RequestStep::Perhaps(_) | RequestStep::Later(_) => false,
        });
        ctx.exchange.cause = None;
        !refused
    }

    /// Runs the filters for a tool; an error is for the caller.
    async fn filter(&self, session: &mut Session, ctx: &mut Context, tool: &str) -> Result<(), Error> {
        for (_, step) in self.backend.steps(tool) {
            let mut request =
                Request { head: session.req_header_mut(), exchange: &mut ctx.exchange, controls: &mut ctx.controls };
            let flow = match step {
                RequestStep::Now(filter) => filter.on_request(&mut request),
                RequestStep::Perhaps(filter) => match filter.on_request(&mut request) {
                    Some(flow) => flow,
                    None => filter.wait(&mut request).await,
                },
                RequestStep::Later(filter) => filter.on_request(&mut request).await,
            };
            match flow {
                Flow::Continue => {}
                Flow::Refuse(error) => return Err(error),
                Flow::Answer(_) => return Err(Reason::Forbidden.into()),
            }
        }
        Ok(())
    }

    pub(super) async fn call_tool(&self, asked: &mut Asked<'_>, mut message: Value) -> pingora::Result<()> {
        let Some(name) = message.pointer("/params/name").and_then(Value::as_str).map(str::to_owned) else {
            let error = RpcError::new(message::INVALID_PARAMS, "`params.name` is missing");
            return asked.refuse(&error).await;
        };
        if let Some(call) = &mut asked.ctx.exchange.mcp {
            call.name = Some(name.chars().take(128).collect::<String>().into());
        }
        let own = self.backend.tools.get(name.as_str());
        let server = match own {
            Some(_) => None,
            None => self.server_of_tool(asked, &name).await?,
        };
        if own.is_none() && server.is_none() {
            return asked.refuse(&unknown(&name)).await;
        }
        if let Some(call) = &mut asked.ctx.exchange.mcp {
            call.known = true;
            call.server = server.as_ref().map(|server| server.name.clone());
        }
        if let Err(error) = self.filter(asked.session, asked.ctx, &name).await {
            asked.ctx.exchange.reason = Some(error.reason);
            // Who may not call a tool does not learn that it is there.
            let said = match error.reason {
                Reason::Forbidden => unknown(&name),
                _ => refusal(&error),
            };
            return asked.refuse(&said).await;
        }
        match (own, server) {
            (Some(tool), _) => {
                let arguments = message.pointer_mut("/params/arguments").map(Value::take);
                Box::pin(self.call_route(asked, tool, arguments)).await
            }
            (None, Some(server)) => {
                let theirs = name.strip_prefix(&*server.prefix).unwrap_or(&name).to_owned();
                if let Some(place) = message.pointer_mut("/params/name") {
                    *place = theirs.into();
                }
                Box::pin(self.relay(asked, &server, &message)).await
            }
            (None, None) => asked.refuse(&unknown(&name)).await,
        }
    }

    /// Calls a route as the caller would.
    async fn call_route(
        &self,
        asked: &mut Asked<'_>,
        tool: &RouteTool,
        arguments: Option<Value>,
    ) -> pingora::Result<()> {
        let made = tool.operation.request(arguments.as_ref());
        let made =
            made.map(|made| (request_head(asked.session, asked.ctx, tool, &made), made.body.map(|(_, body)| body)));
        let (head, body) = match made {
            Ok((Some(head), body)) => (head, body),
            Ok((None, _)) => {
                let result = operation::error("the arguments make no request");
                return asked.answer(result).await;
            }
            // What a model got wrong it can put right.
            Err(why) => return asked.answer(operation::error(&why)).await,
        };
        let Some(connection) = asked.ctx.connection.clone() else {
            let error = RpcError::new(message::INTERNAL, "the request has no connection");
            return asked.refuse(&error).await;
        };
        let (proxy, client, most) = (self.proxy, asked.ctx.exchange.client, self.backend.max_answer);
        let calling = proxy.internal.call(&connection, client, head, body, most);
        let cancelled = asked.held.cancelled(asked.id);
        let timeout = self.backend.timeout;
        let work = async {
            tokio::select! {
                answered = tokio::time::timeout(timeout, calling) => Some(answered),
                () = cancelled => None,
            }
        };
        let result = match asked.wait(work).await? {
            None => {
                let error = RpcError::new(message::CANCELLED, "the request was cancelled");
                return asked.refuse(&error).await;
            }
            Some(Err(_)) => operation::error("the tool did not answer in time"),
            Some(Ok(Err(Unanswered::TooLong))) => operation::error("the tool's answer is longer than is taken"),
            Some(Ok(Err(Unanswered::BrokenOff))) => operation::error("the tool's answer broke off"),
            Some(Ok(Ok(answered))) => {
                let text = |name: HeaderName| answered.headers.get(name).and_then(|value| value.to_str().ok());
                operation::result(answered.status, text(CONTENT_TYPE), text(LOCATION), &answered.body)
            }
        };
        asked.answer(result).await
    }
}

fn unknown(name: &str) -> RpcError {
    let shown: String = name.chars().take(128).collect();
    RpcError::new(message::INVALID_PARAMS, Cow::Owned(format!("Unknown tool: {shown}")))
}

/// The refusal of a filter, in words of JSON-RPC.
fn refusal(error: &Error) -> RpcError {
    let detail = error.detail.clone().unwrap_or(Cow::Borrowed(error.reason.title()));
    let mut said = RpcError::new(message::REFUSED, detail);
    let mut data = serde_json::json!({ "reason": error.reason.label(), "status": error.reason.status() });
    for (name, value) in &error.headers {
        if name == http::header::RETRY_AFTER {
            data["retry_after"] = value.to_str().ok().and_then(|wait| wait.parse::<u64>().ok()).into();
        }
    }
    said.data = Some(data);
    said
}

/// The head of the request that a call is: with the caller's own headers, so that it is known by its own credentials.
fn request_head(
    session: &Session,
    ctx: &Context,
    tool: &RouteTool,
    made: &operation::Request,
) -> Option<RequestHeader> {
    let operation = &tool.operation;
    let mut head = RequestHeader::build_no_case(operation.method.as_str(), made.target.as_bytes(), Some(24)).ok()?;
    let none = HeaderMap::new();
    for (name, value) in ctx.received_headers.as_deref().unwrap_or(&none) {
        let text = name.as_str();
        if !NOT_PASSED_ON.contains(&text) && !text.starts_with("mcp-") && !text.starts_with("x-forwarded-") {
            head.append_header(name.clone(), value.clone()).ok()?;
        }
    }
    let host = match &operation.host {
        Some(host) => HeaderValue::from_str(host).ok()?,
        None => match session.req_header().headers.get(HOST) {
            Some(host) => host.clone(),
            None => HeaderValue::from_str(session.req_header().uri.authority()?.as_str()).ok()?,
        },
    };
    head.insert_header(HOST, host).ok()?;
    head.insert_header(ACCEPT, HeaderValue::from_static("application/json, */*;q=0.8")).ok()?;
    head.insert_header(X_REQUEST_ID, ctx.exchange.request_id.clone()).ok()?;
    for (name, value) in &made.headers {
        head.insert_header(name.clone(), value.clone()).ok()?;
    }
    match &made.body {
        Some((kind, body)) => {
            head.insert_header(CONTENT_TYPE, HeaderValue::from_static(kind)).ok()?;
            head.insert_header(CONTENT_LENGTH, HeaderValue::from(body.len())).ok()?;
        }
        None if !operation.method.is_safe() => {
            head.insert_header(CONTENT_LENGTH, HeaderValue::from_static("0")).ok()?
        }
        None => {}
    }
    if let Some(observation) = &ctx.observation {
        observation.propagate(&mut head);
    }
    Some(head)
}
