//! The seam every filter is written against: what it sees of a request, and what it may decide.
//!
//! A filter implements [`OnRequest`] or [`OnRequestAsync`], and [`OnResponse`] if it has something to do on the way back.
//! It sees headers and the facts of the exchange, never the proxy, so that it is tested without one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};

use super::authenticate::Authenticator;
use super::limit::usage::Limit;
use crate::error::{Error, Result};
use crate::telemetry::exchange::Exchange;
use crate::upstream::Timeouts;

/// A request on its way to its backend.
pub struct Request<'a> {
    /// What will be forwarded; a filter changes it in place. Path and host are canonical already.
    pub head: &'a mut RequestHeader,
    /// What is known of the request; filters that authenticate add who calls.
    pub exchange: &'a mut Exchange,
    pub controls: &'a mut Controls,
}

/// An answer on its way to the client, from a backend or from the gateway itself.
pub struct Response<'a> {
    pub head: &'a mut ResponseHeader,
    /// The request as it was forwarded.
    pub request: &'a RequestHeader,
    pub exchange: &'a Exchange,
    pub controls: &'a mut Controls,
}

/// What a filter decides about a request.
pub enum Flow {
    Continue,
    /// Answer now; no later filter and no backend sees the request.
    Answer(Answer),
    /// Refuse; the gateway writes the error document.
    Refuse(Error),
}

/// An answer that a filter or a backend makes itself.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Bytes,
}

/// What a filter asks of the later phases of this one request.
#[derive(Default)]
pub struct Controls {
    /// Largest request body let through, in bytes.
    pub body_limit: Option<u64>,
    /// Time limits on the origin instead of the upstream's.
    pub timeouts: Timeouts,
    /// Applied in order to each chunk of the request body. A retry sends the body again: [`BodyTransform::restart`].
    pub request_body: Vec<Box<dyn BodyTransform>>,
    /// Applied in order to each chunk of the answer's body.
    pub response_body: Vec<Box<dyn BodyTransform>>,
    /// Say how long each chunk of the request body has to wait before it goes on; the longest counts.
    pub request_pace: Vec<Box<dyn Pace>>,
    /// The same for the answer's body.
    pub response_pace: Vec<Box<dyn Pace>>,
    /// Set where the client cannot receive trailers: they become the end of the body.
    pub trailers_in_body: Option<Box<dyn TrailersInBody>>,
    /// What an authority says of the caller, for the origin: added once all credentials have been taken out.
    pub caller_headers: Vec<(HeaderName, HeaderValue)>,
    /// Sent with the answer, whoever makes it.
    pub answer_headers: Vec<(HeaderName, HeaderValue)>,
    /// Cookies that the filter which puts them here sets on the answer.
    pub cookies: Vec<HeaderValue>,
    /// Kept until the exchange has ended, whichever way it does: their end gives back what they stand for.
    pub held: Vec<Box<dyn Send + Sync>>,
}

/// Changes a body as it streams by. It keeps its own state and holds back as little as it can.
pub trait BodyTransform: Send + Sync {
    /// Replaces one chunk. `last` is true exactly once; the chunk may be empty then. An empty result sends nothing yet.
    fn chunk(&mut self, chunk: Bytes, last: bool) -> Result<Bytes>;

    /// Forgets everything: the body is sent once more from its start, to another target.
    fn restart(&mut self) {}
}

/// Slows a body down.
pub trait Pace: Send + Sync {
    /// Accounts for a chunk; returns how long it has to wait, if it has to.
    fn pace(&self, bytes: usize) -> Option<Duration>;
}

/// Writes trailers as the last piece of a body.
pub trait TrailersInBody: Send + Sync {
    fn encode(&self, trailers: &HeaderMap) -> Bytes;

    /// The media type of a body that ends so.
    fn content_type(&self) -> String;
}

/// A filter that decides at once.
pub trait OnRequest: Send + Sync {
    fn on_request(&self, request: &mut Request<'_>) -> Flow;
}

/// A filter that decides at once most times, and has to wait for something now and then.
#[async_trait]
pub trait OnRequestPerhaps: Send + Sync {
    /// `None` if it has to wait; the request is unchanged then.
    fn on_request(&self, request: &mut Request<'_>) -> Option<Flow>;

    /// Called after the other has returned `None`.
    async fn wait(&self, request: &mut Request<'_>) -> Flow;
}

/// A filter that has to wait for something. It costs a boxed future per request: prefer [`OnRequest`].
#[async_trait]
pub trait OnRequestAsync: Send + Sync {
    async fn on_request(&self, request: &mut Request<'_>) -> Flow;
}

/// A filter that changes answers. Answers of the gateway itself pass it too, so that a browser may read a refusal.
pub trait OnResponse: Send + Sync {
    fn on_response(&self, response: &mut Response<'_>);
}

/// The request side of a compiled filter.
#[derive(Clone)]
pub enum RequestStep {
    Now(Arc<dyn OnRequest>),
    Perhaps(Arc<dyn OnRequestPerhaps>),
    Later(Arc<dyn OnRequestAsync>),
}

/// A filter in the form that requests run on.
#[derive(Clone, Default)]
pub struct Compiled {
    pub request: Option<RequestStep>,
    pub response: Option<Arc<dyn OnResponse>>,
    /// Finds out who calls; a route's chain puts all of them together into one step.
    pub authenticator: Option<Arc<dyn Authenticator>>,
    /// What consumers can be shown of it.
    pub limit: Option<Arc<dyn Limit>>,
    /// Headers that only the gateway may set: what clients send under these names is dropped on every route.
    pub owned_headers: Vec<HeaderName>,
}

impl Compiled {
    pub fn on_request(filter: impl OnRequest + 'static) -> Self {
        Compiled { request: Some(RequestStep::Now(Arc::new(filter))), ..Compiled::default() }
    }

    pub fn on_request_perhaps(filter: impl OnRequestPerhaps + 'static) -> Self {
        Compiled { request: Some(RequestStep::Perhaps(Arc::new(filter))), ..Compiled::default() }
    }

    pub fn authenticator(filter: impl Authenticator + 'static) -> Self {
        Compiled { authenticator: Some(Arc::new(filter)), ..Compiled::default() }
    }

    /// A limit that consumers can be shown their part of.
    pub fn limit(filter: impl OnRequest + Limit + 'static) -> Self {
        let filter = Arc::new(filter);
        Compiled { request: Some(RequestStep::Now(filter.clone())), limit: Some(filter), ..Compiled::default() }
    }

    pub fn limit_perhaps(filter: impl OnRequestPerhaps + Limit + 'static) -> Self {
        let filter = Arc::new(filter);
        Compiled { request: Some(RequestStep::Perhaps(filter.clone())), limit: Some(filter), ..Compiled::default() }
    }

    /// With headers that only the gateway may set.
    pub fn owning(mut self, headers: impl IntoIterator<Item = HeaderName>) -> Self {
        self.owned_headers.extend(headers);
        self
    }

    pub fn on_request_async(filter: impl OnRequestAsync + 'static) -> Self {
        Compiled { request: Some(RequestStep::Later(Arc::new(filter))), ..Compiled::default() }
    }

    pub fn on_response(filter: impl OnResponse + 'static) -> Self {
        Compiled { response: Some(Arc::new(filter)), ..Compiled::default() }
    }

    pub fn on_both(filter: impl OnRequest + OnResponse + 'static) -> Self {
        let filter = Arc::new(filter);
        Compiled { request: Some(RequestStep::Now(filter.clone())), response: Some(filter), ..Compiled::default() }
    }
}
