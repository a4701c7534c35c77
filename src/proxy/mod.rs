//! One request, in Pingora's order: the implementation of `ProxyHttp` as a table of contents.
//!
//! Each hook is a line or two over the file of its phase. What a request carries between them is [`Context`].

mod ai;
mod answer;
mod body;
mod context;
mod failure;
mod finish;
mod forward;
mod internal;
mod mcp;
mod mirror;
mod receive;
mod refuse;
mod respond;
mod route;
mod tunnel;

use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::HttpPeer;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

pub use context::Context;
pub use internal::Internal;
pub use refuse::Refuse;

use crate::snapshot::Published;
use crate::telemetry::Telemetry;
use crate::upstream::mirror::Mirror;

/// The data plane. Each listener has one; they share everything.
pub struct Proxy {
    published: Arc<Published>,
    telemetry: Arc<Telemetry>,
    mirror: Mirror,
    connector: Arc<Connector>,
    internal: Internal,
}

impl Proxy {
    /// `connector` makes the connections for what does not go through Pingora's proxying; `internal` serves the requests
    /// of the gateway to itself.
    pub fn new(
        published: &Arc<Published>,
        telemetry: &Arc<Telemetry>,
        mirror: &Mirror,
        connector: &Arc<Connector>,
        internal: &Internal,
    ) -> Self {
        Proxy {
            published: published.clone(),
            telemetry: telemetry.clone(),
            mirror: mirror.clone(),
            connector: connector.clone(),
            internal: internal.clone(),
        }
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    /// Boxed: Pingora moves it through several of its futures, and each would have room for it.
    type CTX = Box<Context>;

    fn new_ctx(&self) -> Box<Context> {
        Box::default()
    }

    /// None of Pingora's modules: each one costs an allocation per request even when it is off.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    /// Receive, route, filter, and answer if the backend is the gateway itself. An upgrade is served here to its end.
    fn request_filter<'p, 's, 'c, 'f>(
        &'p self,
        session: &'s mut Session,
        ctx: &'c mut Box<Context>,
    ) -> Pin<Box<dyn Future<Output = pingora::Result<bool>> + Send + 'f>>
    where
        'p: 'f,
        's: 'f,
        'c: 'f,
        Self: 'f,
    {
        route::run(self, session, ctx)
    }

    /// Per attempt: which target, over which connection.
    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Box<Context>) -> pingora::Result<Box<HttpPeer>> {
        forward::peer(session, ctx)
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        _: &HttpPeer,
        fd: RawFd,
        _: Option<&Digest>,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<()> {
        forward::connected(reused, fd, ctx);
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        head: &mut RequestHeader,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<()> {
        forward::request_head(head, ctx);
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<()> {
        body::request(self, body, end_of_stream, ctx)?;
        if let Some(pause) = body::request_pause(body, ctx) {
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<()> {
        forward::not_switching(head, ctx)?;
        forward::answered(session, head, ctx)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<()> {
        respond::head(session, head, ctx)
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<Option<Duration>> {
        body::response(body, end_of_stream, ctx)
    }

    async fn response_trailer_filter(
        &self,
        _: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<Option<Bytes>> {
        Ok(ctx.controls.trailers_in_body.as_ref().map(|in_body| in_body.encode(trailers)))
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _: &HttpPeer,
        ctx: &mut Box<Context>,
        error: Box<pingora::Error>,
    ) -> Box<pingora::Error> {
        forward::connect_failed(session, ctx, error)
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        error: Box<pingora::Error>,
        ctx: &mut Box<Context>,
        reused: bool,
    ) -> Box<pingora::Error> {
        forward::attempt_failed(session, ctx, error, reused)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &pingora::Error,
        ctx: &mut Box<Context>,
    ) -> FailToProxy {
        finish::fail(session, error, ctx).await
    }

    async fn logging(&self, session: &mut Session, error: Option<&pingora::Error>, ctx: &mut Box<Context>) {
        finish::record(self, session, error, ctx);
    }

    /// The access log and the metrics say it, once and without secrets.
    fn suppress_error_log(&self, _: &Session, _: &Box<Context>, _: &pingora::Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Box<Context>,
        _: &pingora::Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    /// Never the path and the query, which may carry secrets.
    fn request_summary(&self, _: &Session, ctx: &Box<Context>) -> String {
        String::from_utf8_lossy(ctx.exchange.request_id.as_bytes()).into_owned()
    }
}
