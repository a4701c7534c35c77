//! One attempt at one provider: the exchange with it, up to the first content of its answer.
//!
//! Nothing of it touches the caller: it can be given up at any time, and another one made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;

use super::call::Call;
use super::failed::{self, Failed};
use super::stream::Relay;
use super::whole::Whole;
use super::{Serving, request};
use crate::ai::chat::{Dropped, Failure, FailureKind};
use crate::ai::endpoint::Endpoint;
use crate::ai::formats::anthropic::hosted::{self, Host};
use crate::ai::formats::{Format, Provider as Spoken};
use crate::ai::keys::Key;
use crate::ai::quirks::Quirk;
use crate::ai::stream::Framing;
use crate::ai::targets::{InFlight, Target};
use crate::proxy::Proxy;
use crate::proxy::context::Context;
use crate::proxy::forward::MOST_INTERIM;
use crate::snapshot::Origin;
use crate::snapshot::ai::{Provider, Virtual};
use crate::telemetry::metrics::Outcome as Counted;
use crate::upstream::{Failure as Unanswered, Limits, Moment, Outcome, Pick, PickRequest, Timeouts, request_form};

/// The longest whole answer that is taken.
pub const LONGEST: usize = 64 << 20;
/// Of an answer that is an error.
pub const LONGEST_ERROR: usize = 256 << 10;

/// What is asked of whom.
pub struct Ask<'a> {
    pub provider: &'a Provider,
    pub target: &'a Target,
    pub key: Option<&'a Key>,
    pub endpoint: &'a Endpoint,
    pub spoken: &'static dyn Spoken,
    pub body: Bytes,
    /// What the request could not carry.
    pub dropped: Dropped,
    /// Caller and provider speak the same: what is not about the gateway passes as it is.
    pub passing: bool,
    /// The usage of a stream was asked for by the gateway, and is not for the caller.
    pub hides_usage: bool,
    pub fallback_on_filter: bool,
    first_token: Option<Duration>,
    origin: &'a Arc<Origin>,
}

impl<'a> Ask<'a> {
    /// Writes the request for a target.
    pub fn prepare(
        provider: &'a Provider,
        target: &'a Target,
        key: Option<&'a Key>,
        call: &mut Call<'_>,
        model: &Virtual,
    ) -> Result<Ask<'a>, Failure> {
        let found = provider.endpoint(call.format, &target.model);
        let found = found.and_then(|(endpoint, origin)| Some((endpoint, origin, endpoint.format.provider()?)));
        let Some((endpoint, origin, spoken)) = found else {
            return Err(Failure::new(FailureKind::NotFound, format!("{} serves no chat", provider.name)));
        };
        let mut dropped = Dropped::default();
        let quirks = provider.spec.quirks();
        let passing = endpoint.format == call.format;
        let hides_usage = passing
            && call.stream
            && matches!(call.format, Format::OpenAiChat | Format::OpenAiCompletions)
            && !call.head.asks_for_usage()
            && !quirks.has(Quirk::NoStreamOptions);
        if call.is_guarded() {
            // What is looked at is written anew.
            call.request()?;
        }
        let body = match passing {
            // Gemini's callers write the model in the path.
            true if call.format == Format::Gemini => call.head.body().clone(),
            true => {
                let body = call.head.passed_on(Some(&target.model), hides_usage);
                match Host::of(quirks).filter(|_| call.format == Format::Anthropic) {
                    Some(host) => hosted::adapt(&body, host, &call.betas())?.into(),
                    None => body,
                }
            }
            false => {
                let request = call.request()?;
                if endpoint.format != Format::OpenAiResponses {
                    request.refuse_stored_state()?;
                }
                spoken.encode_request(request, &target.model, quirks, &mut dropped)?.into()
            }
        };
        Ok(Ask {
            provider,
            target,
            key,
            endpoint,
            spoken,
            body,
            dropped,
            passing,
            hides_usage,
            fallback_on_filter: model.fallback_on_filter,
            first_token: model.first_token,
            origin,
        })
    }
}

/// An exchange that is under way.
pub struct Attempt<'a> {
    pub ask: Ask<'a>,
    pub started: Instant,
    /// The connection, once there is one.
    pub http: Option<HttpSession>,
    /// What is sent, until it is.
    head: Option<RequestHeader>,
    pick: Pick,
    peer: Box<HttpPeer>,
    learnt: Learnt,
    _in_flight: InFlight,
}

/// What there is to send to the caller.
pub enum Opened {
    Whole(Box<Whole>),
    Stream(Box<Relay>),
}

/// What is learnt of the provider meanwhile.
#[derive(Default)]
struct Learnt {
    /// Time to the connection; `None` if one was reused.
    connect: Option<Duration>,
    first_byte: Option<Duration>,
    /// How the head of the answer came, or why it did not.
    end: Option<(Counted, Option<u16>, Instant)>,
}

impl<'a> Attempt<'a> {
    /// Begins an attempt, and enters it into the record.
    pub fn begin(ask: Ask<'a>, serving: &mut Serving<'_>) -> Result<Attempt<'a>, Failed> {
        let started = Instant::now();
        let ctx = &mut *serving.ctx;
        ctx.exchange.attempts += 1;
        ctx.exchange.upstream = Some(ask.origin.upstream.name().clone());
        ctx.origin = Some(ask.origin.clone());
        if let Some(record) = &mut ctx.exchange.ai {
            record.attempts += 1;
            record.provider = ask.provider.name.clone();
            record.provider_kind = ask.provider.otel_name.clone();
            record.model = ask.target.model.clone();
            record.key = ask.key.map(|key| key.name.clone());
        }
        let picked = ask.origin.upstream.pick(&PickRequest::default(), Moment::at(started));
        let pick = picked.map_err(|error| {
            ask.target.state.failed();
            Failed::new(FailureKind::Overloaded, format!("{}: {}", ask.provider.name, error.reason.title()))
        })?;
        ctx.exchange.target = Some(pick.target().name().clone());
        let head = request::head(&ask, &serving.call);
        let mut head = head.ok_or_else(|| Failed::new(FailureKind::Server, "the request could not be written"))?;
        if let Some(observation) = &mut ctx.observation {
            observation.attempt_started(&ask.origin.metrics, pick.target().name(), started);
            observation.attempt_asks(&ask.provider.otel_name, &ask.target.model);
            observation.propagate(&mut head);
        }
        let peer = pick.target().peer(&Timeouts::default());
        let _in_flight = ask.target.state.enter();
        Ok(Attempt { ask, started, http: None, head: Some(head), pick, peer, learnt: Learnt::default(), _in_flight })
    }

    /// Asks, and reads until there is something to send to the caller.
    pub async fn open(&mut self, proxy: &Proxy, call: &Call<'_>) -> Result<Opened, Failed> {
        let Some(patience) = self.ask.first_token else { return self.exchange(proxy, call).await };
        let until = self.started + patience;
        match tokio::time::timeout_at(until.into(), self.exchange(proxy, call)).await {
            Ok(opened) => opened,
            Err(_) => {
                if self.learnt.end.is_none() {
                    self.unanswered(Unanswered::Timeout);
                }
                Err(Failed::late())
            }
        }
    }

    /// Tells what was learnt to the record of the request.
    pub fn note(&self, ctx: &mut Context) {
        ctx.exchange.upstream_connect = self.learnt.connect;
        ctx.exchange.upstream_first_byte = self.learnt.first_byte;
        if let (Some(observation), Some((outcome, status, at))) = (&mut ctx.observation, self.learnt.end) {
            observation.attempt_finished(&self.ask.origin.metrics, self.pick.target().name(), outcome, status, at);
        }
    }

    /// Gives the connection away, to be read on.
    pub fn leave(&mut self) -> Option<(HttpSession, HttpPeer)> {
        Some((self.http.take()?, (*self.peer).clone()))
    }

    /// Gives the connection back, if it can serve another call.
    pub async fn close(&mut self, proxy: &Proxy) {
        let Some(mut http) = self.http.take() else { return };
        // Over HTTP/1.1, Pingora can be asked whether an answer is done only once its head is there.
        let answered = self.learnt.first_byte.is_some();
        // An HTTP/2 session always goes back, or its connection never counts as idle again; what is unfinished is reset.
        if http.as_http2().is_some() || (answered && http.response_done()) {
            proxy.connector.release_http_session(http, &*self.peer, self.peer.options.idle_timeout).await;
        }
    }

    async fn exchange(&mut self, proxy: &Proxy, call: &Call<'_>) -> Result<Opened, Failed> {
        let connected = proxy.connector.get_http_session(&*self.peer).await;
        let (http, reused) = connected.map_err(|error| self.broken(&error.into_up()))?;
        self.learnt.connect = (!reused).then(|| self.started.elapsed());
        let limits = self.ask.origin.upstream.limits(&Timeouts::default());
        let asked = self.send(http, &limits).await?;
        let head = asked.map_err(|error| self.broken(&error.into_up()))?;
        self.answered(head.status.as_u16());
        let Some(http) = &mut self.http else { return Err(Failed::late()) };
        http.set_read_timeout(Some(limits.idle));
        match framing(&head).filter(|_| call.stream && head.status.is_success()) {
            Some(framing) => Ok(Opened::Stream(Box::new(Relay::open(&self.ask, framing, call, http).await?))),
            None => Ok(Opened::Whole(Box::new(whole(&self.ask, call, http, &head).await?))),
        }
    }

    /// Sends the request, and waits for the head of the answer.
    async fn send(&mut self, http: HttpSession, limits: &Limits) -> Result<pingora::Result<ResponseHeader>, Failed> {
        let http = self.http.insert(http);
        http.set_write_timeout(Some(limits.idle));
        http.set_read_timeout(Some(limits.first_byte));
        let (authority, body) = (&self.ask.endpoint.authority, self.ask.body.clone());
        let written = self.head.take().and_then(|mut head| {
            let Ask { provider, endpoint, key, body, .. } = &self.ask;
            request::pay(provider, endpoint, *key, std::slice::from_ref(body), &mut head)?;
            request_form(&mut head, authority, http.as_http2().is_some(), self.peer.is_tls()).ok()?;
            Some(head)
        });
        let head = written.ok_or_else(|| Failed::new(FailureKind::Server, "the request could not be written"))?;
        Ok(ask(http, head, body).await)
    }

    /// The head of the provider's answer is there.
    fn answered(&mut self, status: u16) {
        let now = Instant::now();
        let first_byte = now - self.started;
        self.pick.report(Outcome::Answered { status, first_byte }, Moment::at(now));
        self.learnt.first_byte = Some(first_byte);
        self.learnt.end = Some((Counted::of_status(status), Some(status), now));
    }

    /// The exchange broke before there was an answer.
    fn broken(&mut self, error: &pingora::Error) -> Failed {
        let why = Unanswered::of(error).unwrap_or(Unanswered::Reset);
        self.unanswered(why);
        Failed::unanswered(self.ask.provider, why)
    }

    fn unanswered(&mut self, why: Unanswered) {
        let now = Instant::now();
        self.pick.report(Outcome::Failed(why), Moment::at(now));
        self.learnt.end = Some((Counted::of_failure(why.reason()), None, now));
    }
}

/// How an answer is framed, if it is a stream.
fn framing(head: &ResponseHeader) -> Option<Framing> {
    Framing::of_content_type(head.headers.get(CONTENT_TYPE)?.to_str().ok()?)
}

/// Reads an answer that is not a stream.
async fn whole(ask: &Ask<'_>, call: &Call<'_>, http: &mut HttpSession, head: &ResponseHeader) -> Result<Whole, Failed> {
    let success = head.status.is_success();
    let most = if success { LONGEST } else { LONGEST_ERROR };
    let body = match read_whole(http, most).await {
        Ok(Some(body)) => body,
        Ok(None) if success => return Err(Failed::new(FailureKind::Server, "the provider's answer is too long")),
        Ok(None) => Bytes::new(),
        Err(_) => return Err(Failed::new(FailureKind::Server, "the provider's answer broke off")),
    };
    if !success {
        return Err(failed::refused(ask, head.status.as_u16(), &head.headers, &body));
    }
    let answer = ask.spoken.decode_answer(&body)?;
    match call.stream {
        // Whoever waits for a stream gets one, also of a provider that has not understood.
        true => Err(Failed::new(FailureKind::Server, "the provider did not answer with a stream")),
        false => Ok(Whole { answer, body }),
    }
}

async fn ask(http: &mut HttpSession, head: RequestHeader, body: Bytes) -> pingora::Result<ResponseHeader> {
    http.write_request_header(Box::new(head)).await?;
    http.write_request_body(body, true).await?;
    http.finish_request_body().await?;
    answer_head(http).await
}

/// The first head that is more than an interim one.
pub async fn answer_head(http: &mut HttpSession) -> pingora::Result<ResponseHeader> {
    for _ in 0..=MOST_INTERIM {
        http.read_response_header().await?;
        if let Some(head) = http.response_header().filter(|head| !head.status.is_informational()) {
            return Ok(head.clone());
        }
    }
    Err(pingora::Error::explain(pingora::ErrorType::InvalidHTTPHeader, "interim answers only"))
}

/// `None` if it is longer than `most`.
pub async fn read_whole(http: &mut HttpSession, most: usize) -> pingora::Result<Option<Bytes>> {
    let Some(first) = http.read_response_body().await? else { return Ok(Some(Bytes::new())) };
    let mut whole = BytesMut::new();
    let mut next = Some(first);
    while let Some(piece) = next {
        if whole.len() + piece.len() > most {
            return Ok(None);
        }
        if whole.is_empty() && http.response_done() {
            return Ok(Some(piece));
        }
        whole.extend_from_slice(&piece);
        next = http.read_response_body().await?;
    }
    Ok(Some(whole.freeze()))
}
