//! One request to a provider, whatever it asks for: written, sent, and waited for up to the head of the answer.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;

use super::attempt::{LONGEST, LONGEST_ERROR, answer_head, read_whole};
use super::body;
use super::failed::Failed;
use super::request::{self, GATEWAY};
use crate::ai::chat::{Failure, FailureKind};
use crate::ai::endpoint::Endpoint;
use crate::ai::keys::Key;
use crate::error::{Error, Reason};
use crate::proxy::context::Context;
use crate::proxy::tunnel::unless_client_leaves;
use crate::proxy::{Proxy, body as filtered};
use crate::snapshot::Origin;
use crate::snapshot::ai::Provider;
use crate::telemetry::metrics::Outcome as Counted;
use crate::upstream::{Failure as Unanswered, Moment, Outcome, Pick, PickRequest, Timeouts, request_form};

/// A request to a provider.
pub struct Outgoing<'a> {
    pub provider: &'a Provider,
    pub endpoint: &'a Endpoint,
    pub origin: &'a Arc<Origin>,
    pub key: Option<&'a Key>,
    /// As the record of the call names it.
    pub model: Arc<str>,
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// None of them about connections, credentials, or the length of the body.
    pub headers: HeaderMap,
    pub body: Body,
    /// It goes on with the attempt before, of which it is a part.
    pub follows: bool,
}

/// What is sent.
pub enum Body {
    None,
    /// One after the other.
    Pieces(Vec<Bytes>),
    /// What the caller sends, as it comes, up to `most` bytes. Whether filters leave its length as it is declared is known.
    Caller {
        length: Option<u64>,
        most: u64,
    },
}

/// An exchange whose answer has begun.
pub struct Exchange {
    pub http: HttpSession,
    pub head: ResponseHeader,
    /// The provider answers although the caller is still sending: its connection is not watched, and not kept.
    early: bool,
    peer: Box<HttpPeer>,
}

/// Why an exchange came to nothing.
pub enum Unsent {
    /// The provider did not answer, or not well.
    Provider(Failed),
    /// What the caller sends is refused.
    Caller(Error),
}

impl From<Failure> for Unsent {
    fn from(failure: Failure) -> Unsent {
        Unsent::Provider(failure.into())
    }
}

impl Outgoing<'_> {
    /// Sends it. The outer error means that the caller is gone.
    pub async fn send(
        self,
        proxy: &Proxy,
        session: &mut Session,
        ctx: &mut Context,
    ) -> pingora::Result<Result<Exchange, Unsent>> {
        let started = Instant::now();
        self.enter(ctx);
        let mut pick = match self.origin.upstream.pick(&PickRequest::default(), Moment::at(started)) {
            Ok(pick) => pick,
            Err(error) => {
                let why = format!("{}: {}", self.provider.name, error.reason.title());
                return Ok(Err(Failure::new(FailureKind::Overloaded, why).into()));
            }
        };
        ctx.exchange.target = Some(pick.target().name().clone());
        if let Some(observation) = &mut ctx.observation {
            observation.attempt_started(&self.origin.metrics, pick.target().name(), started);
            observation.attempt_asks(&self.provider.otel_name, &self.model);
        }
        let peer = pick.target().peer(&Timeouts::default());
        let connecting = proxy.connector.get_http_session(&*peer);
        let connected = match self.body {
            // Its end has not been read, so that nothing else may be.
            Body::Caller { .. } => connecting.await,
            _ => unless_client_leaves(session, connecting).await?,
        };
        let (mut http, reused) = match connected {
            Ok(connected) => connected,
            Err(error) => return Ok(Err(self.broken(ctx, &mut pick, &error.into_up()).into())),
        };
        ctx.exchange.upstream_connect = (!reused).then(|| started.elapsed());
        let limits = self.origin.upstream.limits(&Timeouts::default());
        http.set_write_timeout(Some(limits.idle));
        http.set_read_timeout(Some(limits.first_byte));
        let Some(head) = self.head(ctx, http.as_http2().is_some(), peer.is_tls()) else {
            return Ok(Err(Failure::new(FailureKind::Server, "the request could not be written").into()));
        };
        let (head, early) = match self.exchange(proxy, session, ctx, &mut http, head).await? {
            Ok(answered) => answered,
            Err(Broken::Provider(error)) => return Ok(Err(self.broken(ctx, &mut pick, &error).into())),
            Err(Broken::Caller(error)) => return Ok(Err(Unsent::Caller(error))),
        };
        let now = Instant::now();
        let (status, first_byte) = (head.status.as_u16(), now - started);
        pick.report(Outcome::Answered { status, first_byte }, Moment::at(now));
        ctx.exchange.upstream_first_byte = Some(first_byte);
        if let Some(observation) = &mut ctx.observation {
            let target = pick.target().name();
            observation.attempt_finished(&self.origin.metrics, target, Counted::of_status(status), Some(status), now);
        }
        http.set_read_timeout(Some(limits.idle));
        Ok(Ok(Exchange { http, head, early, peer }))
    }

    /// Enters the attempt into the record.
    fn enter(&self, ctx: &mut Context) {
        ctx.exchange.attempts += u32::from(!self.follows);
        ctx.exchange.upstream = Some(self.origin.upstream.name().clone());
        ctx.origin = Some(self.origin.clone());
        if let Some(record) = &mut ctx.exchange.ai {
            record.attempts += u32::from(!self.follows);
            record.provider = self.provider.name.clone();
            record.provider_kind = self.provider.otel_name.clone();
            record.model = self.model.clone();
            record.key = self.key.map(|key| key.name.clone());
        }
    }

    /// The head as it is sent; `None` if it would not be legal.
    fn head(&self, ctx: &Context, http2: bool, tls: bool) -> Option<RequestHeader> {
        let mut head = RequestHeader::build_no_case(self.method.clone(), self.target.as_bytes(), Some(16)).ok()?;
        for (name, value) in &self.headers {
            head.append_header(name.clone(), value.clone()).ok()?;
        }
        head.insert_header(USER_AGENT, GATEWAY).ok()?;
        // What is metered has to be read.
        head.insert_header(ACCEPT_ENCODING, HeaderValue::from_static("identity")).ok()?;
        match &self.body {
            Body::None if matches!(self.method, Method::GET | Method::HEAD | Method::DELETE) => {}
            // A body that could be there, and is not, is said to be empty (RFC 9110, section 8.6).
            Body::None => {
                head.insert_header(CONTENT_LENGTH, HeaderValue::from(0)).ok()?;
            }
            Body::Pieces(pieces) => {
                let length: usize = pieces.iter().map(Bytes::len).sum();
                head.insert_header(CONTENT_LENGTH, HeaderValue::from(length)).ok()?;
            }
            Body::Caller { length: Some(length), .. } => {
                head.insert_header(CONTENT_LENGTH, HeaderValue::from(*length)).ok()?;
            }
            Body::Caller { length: None, .. } if http2 => {}
            Body::Caller { length: None, .. } => {
                head.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked")).ok()?;
            }
        }
        request::provider_headers(self.provider, &mut head)?;
        if let Some(observation) = &ctx.observation {
            observation.propagate(&mut head);
        }
        let pieces = if let Body::Pieces(pieces) = &self.body { pieces.as_slice() } else { &[] };
        request::pay(self.provider, self.endpoint, self.key, pieces, &mut head)?;
        request_form(&mut head, &self.endpoint.authority, http2, tls).ok()?;
        Some(head)
    }

    /// Sends head and body, and waits for the head of the answer.
    async fn exchange(
        &self,
        proxy: &Proxy,
        session: &mut Session,
        ctx: &mut Context,
        http: &mut HttpSession,
        head: RequestHeader,
    ) -> pingora::Result<Result<(ResponseHeader, bool), Broken>> {
        match &self.body {
            Body::Caller { most, .. } => {
                if let Err(error) = http.write_request_header(Box::new(head)).await {
                    return Ok(Err(Broken::Provider(error.into_up())));
                }
                match pass_on(proxy, session, ctx, http, *most).await? {
                    Ok(()) => {}
                    // A provider that refuses may have said why before it stopped listening.
                    Err(Broken::Provider(error)) => match answer_head(http).await {
                        Ok(head) => return Ok(Ok((head, true))),
                        Err(_) => return Ok(Err(Broken::Provider(error))),
                    },
                    Err(refused) => return Ok(Err(refused)),
                }
                let answered = unless_client_leaves(session, answer_head(http)).await?;
                Ok(answered.map(|head| (head, false)).map_err(|error| Broken::Provider(error.into_up())))
            }
            Body::Pieces(pieces) => {
                let asked = unless_client_leaves(session, ask(http, head, pieces)).await?;
                Ok(asked.map(|head| (head, false)).map_err(|error| Broken::Provider(error.into_up())))
            }
            Body::None => {
                let asked = unless_client_leaves(session, ask(http, head, &[])).await?;
                Ok(asked.map(|head| (head, false)).map_err(|error| Broken::Provider(error.into_up())))
            }
        }
    }

    /// The exchange broke before there was an answer.
    fn broken(&self, ctx: &mut Context, pick: &mut Pick, error: &pingora::Error) -> Failed {
        let now = Instant::now();
        let why = Unanswered::of(error).unwrap_or(Unanswered::Reset);
        pick.report(Outcome::Failed(why), Moment::at(now));
        if let Some(observation) = &mut ctx.observation {
            let outcome = Counted::of_failure(why.reason());
            observation.attempt_finished(&self.origin.metrics, pick.target().name(), outcome, None, now);
        }
        Failed::unanswered(self.provider, why)
    }
}

impl From<Failed> for Unsent {
    fn from(failed: Failed) -> Unsent {
        Unsent::Provider(failed)
    }
}

/// Whose end of an exchange broke.
enum Broken {
    Provider(Box<pingora::Error>),
    Caller(Error),
}

async fn ask(http: &mut HttpSession, head: RequestHeader, pieces: &[Bytes]) -> pingora::Result<ResponseHeader> {
    http.write_request_header(Box::new(head)).await?;
    if let Some((last, others)) = pieces.split_last() {
        for piece in others {
            http.write_request_body(piece.clone(), false).await?;
        }
        http.write_request_body(last.clone(), true).await?;
    }
    http.finish_request_body().await?;
    answer_head(http).await
}

/// Sends the caller's body on as it comes, through the filters of the route.
async fn pass_on(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    http: &mut HttpSession,
    most: u64,
) -> pingora::Result<Result<(), Broken>> {
    let mut sent = 0;
    loop {
        let read = tokio::time::timeout(body::PIECE, session.downstream_session.read_request_body()).await;
        let Ok(read) = read else { return Ok(Err(Broken::Caller(Reason::RequestTimeout.into()))) };
        let mut piece = read.map_err(|error| error.into_down())?;
        let last = piece.is_none() || session.as_downstream_mut().is_body_done();
        if let Err(error) = filtered::request(proxy, &mut piece, last, ctx) {
            return ctx.failure.take().map(|error| Err(Broken::Caller(error))).ok_or(error);
        }
        if let Some(pause) = filtered::request_pause(&piece, ctx) {
            tokio::time::sleep(pause).await;
        }
        let piece = piece.unwrap_or_default();
        sent += piece.len() as u64;
        if sent > most {
            return Ok(Err(Broken::Caller(Reason::BodyTooLarge.into())));
        }
        if !piece.is_empty() || last {
            // An empty piece ends nothing on HTTP/1.1; what ends is said below.
            let written = match piece.is_empty() {
                true => Ok(()),
                false => http.write_request_body(piece, last).await,
            };
            if let Err(error) = written {
                return Ok(Err(Broken::Provider(error.into_up())));
            }
        }
        if last {
            let ended = http.finish_request_body().await;
            return Ok(ended.map_err(|error| Broken::Provider(error.into_up())));
        }
    }
}

impl Exchange {
    /// Reads the whole answer; the inner error says why there is none. The outer one means that the caller is gone.
    pub async fn whole(&mut self, session: &mut Session) -> pingora::Result<Result<Bytes, Failed>> {
        let success = self.head.status.is_success();
        let most = if success { LONGEST } else { LONGEST_ERROR };
        let read = match self.early {
            true => read_whole(&mut self.http, most).await,
            false => unless_client_leaves(session, read_whole(&mut self.http, most)).await?,
        };
        Ok(match read {
            Ok(Some(body)) => Ok(body),
            Ok(None) if success => Err(Failed::new(FailureKind::Server, "the provider's answer is too long")),
            Ok(None) => Ok(Bytes::new()),
            Err(_) => Err(Failed::new(FailureKind::Server, "the provider's answer broke off")),
        })
    }

    /// The next piece of the answer.
    pub async fn piece(&mut self, session: &mut Session) -> pingora::Result<Option<Bytes>> {
        let read = match self.early {
            true => self.http.read_response_body().await,
            false => unless_client_leaves(session, self.http.read_response_body()).await?,
        };
        read.map_err(|error| error.into_up())
    }

    /// Gives the connection back, if it can serve another call.
    pub async fn close(mut self, proxy: &Proxy) {
        // An HTTP/2 session always goes back, or its connection never counts as idle again; what is unfinished is reset.
        if self.http.response_done() || self.http.as_http2().is_some() {
            let idle = self.peer.options.idle_timeout;
            proxy.connector.release_http_session(self.http, &*self.peer, idle).await;
        }
    }
}
