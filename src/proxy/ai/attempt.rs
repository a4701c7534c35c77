//! One attempt at one provider: the exchange with it, up to the point from which there is no other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;

use super::{Call, JSON, dropped_header, stream, told};
use crate::ai::chat::{ChatAnswer, Dropped, Failure, FailureKind};
use crate::ai::credentials::sigv4::{SigV4, Unsigned};
use crate::ai::endpoint::{Endpoint, show_key};
use crate::ai::formats::anthropic::hosted::{self, Host};
use crate::ai::formats::{Format, Provider as Spoken};
use crate::ai::keys::Key;
use crate::ai::stream::Framing;
use crate::ai::targets::{InFlight, Target};
use crate::ai::{retry_after, usage};
use crate::filters::filter::Answer;
use crate::proxy::context::Context;
use crate::proxy::forward::MOST_INTERIM;
use crate::proxy::tunnel::unless_client_leaves;
use crate::proxy::{Proxy, answer};
use crate::snapshot::Origin;
use crate::snapshot::ai::{Provider, Virtual};
use crate::telemetry::metrics::Outcome as Counted;
use crate::upstream::{Failure as Unanswered, Moment, Outcome, Pick, PickRequest, Timeouts, request_form};

/// The longest whole answer that is taken.
const LONGEST: usize = 64 << 20;
/// Of an answer that is an error.
const LONGEST_ERROR: usize = 256 << 10;

/// Headers of callers that providers of the same format are shown.
const SHOWN: [&str; 4] = ["anthropic-version", "anthropic-beta", "openai-beta", "idempotency-key"];

/// How an attempt ended.
pub enum Ended {
    /// The caller has its answer, or what could be sent of it.
    Served,
    Failed {
        failure: Failure,
        /// Whether another attempt may do better.
        again: bool,
        retry_after: Option<Duration>,
        /// It was the key that was refused.
        about_key: bool,
    },
}

impl Ended {
    fn failed(failure: Failure) -> Ended {
        let again = may_be_tried_again(failure.kind);
        Ended::Failed { failure, again, retry_after: None, about_key: false }
    }
}

/// Whether somebody else may answer what this one did not. What the caller did wrong is wrong everywhere.
fn may_be_tried_again(kind: FailureKind) -> bool {
    match kind {
        FailureKind::InvalidRequest | FailureKind::TooLarge | FailureKind::ContentFilter => false,
        // Of the provider, with our key: another provider, or another key, may be better off.
        FailureKind::Authentication | FailureKind::Permission | FailureKind::NotFound => true,
        FailureKind::ContextLength
        | FailureKind::RateLimited
        | FailureKind::QuotaExceeded
        | FailureKind::Overloaded
        | FailureKind::Timeout
        | FailureKind::Server => true,
    }
}

/// All that is needed to ask.
pub struct Attempt<'a> {
    pub provider: &'a Provider,
    pub target: &'a Target,
    pub endpoint: &'a Endpoint,
    pub spoken: &'static dyn Spoken,
    pub dropped: Dropped,
    /// Caller and provider speak the same: what is not about the gateway passes as it is.
    pub passing: bool,
    /// The usage of a stream was asked for by the gateway, and is not for the caller.
    pub hides_usage: bool,
    origin: &'a Arc<Origin>,
    key: Option<&'a Key>,
    body: Bytes,
    first_token: Option<Duration>,
    fallback_on_filter: bool,
}

impl<'a> Attempt<'a> {
    /// Writes the request for a target.
    pub fn prepare(
        provider: &'a Provider,
        target: &'a Target,
        key: Option<&'a Key>,
        call: &mut Call<'_>,
        model: &Virtual,
    ) -> Result<Attempt<'a>, Failure> {
        let found = provider.endpoint(call.format, &target.model);
        let found = found.and_then(|(endpoint, origin)| Some((endpoint, origin, endpoint.format.provider()?)));
        let Some((endpoint, origin, spoken)) = found else {
            return Err(Failure::new(FailureKind::NotFound, format!("{} serves no chat", provider.name)));
        };
        let mut dropped = Dropped::default();
        let passing = endpoint.format == call.format;
        let hides_usage = passing && call.stream && call.format == Format::OpenAiChat && !call.head.asks_for_usage();
        let quirks = provider.spec.quirks();
        let asks = hides_usage && !quirks.has(crate::ai::quirks::Quirk::NoStreamOptions);
        let body = match passing {
            // Gemini's callers write the model in the path.
            true if call.format == Format::Gemini => call.body.clone(),
            true => {
                let body = call.head.passed_on(call.body, Some(&target.model), asks);
                match Host::of(quirks).filter(|_| call.format == Format::Anthropic) {
                    Some(host) => hosted::adapt(&body, host, &call.betas)?.into(),
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
        Ok(Attempt {
            provider,
            target,
            endpoint,
            spoken,
            dropped,
            passing,
            hides_usage: asks,
            origin,
            key,
            body,
            first_token: model.first_token,
            fallback_on_filter: model.fallback_on_filter,
        })
    }

    /// Asks, and answers the caller if the provider did. The error means that the caller is gone.
    pub async fn run(
        &self,
        proxy: &Proxy,
        session: &mut Session,
        ctx: &mut Context,
        call: &Call<'_>,
    ) -> pingora::Result<Ended> {
        let started = Instant::now();
        let _in_flight: InFlight = self.target.state.enter();
        ctx.exchange.attempts += 1;
        ctx.exchange.upstream = Some(self.origin.upstream.name().clone());
        ctx.origin = Some(self.origin.clone());
        if let Some(record) = &mut ctx.exchange.ai {
            record.attempts += 1;
            record.provider = self.provider.name.clone();
            record.model = self.target.model.clone();
            record.key = self.key.map(|key| key.name.clone());
        }
        let mut pick = match self.origin.upstream.pick(&PickRequest::default(), Moment::at(started)) {
            Ok(pick) => pick,
            Err(error) => {
                self.target.state.failed();
                let kind = FailureKind::Overloaded;
                return Ok(Ended::failed(Failure::new(
                    kind,
                    format!("{}: {}", self.provider.name, error.reason.title()),
                )));
            }
        };
        ctx.exchange.target = Some(pick.target().name().clone());
        if let Some(observation) = &mut ctx.observation {
            observation.attempt_started(&self.origin.metrics, pick.target().name(), started);
        }
        let ended = self.exchange(proxy, session, ctx, call, &mut pick, started).await?;
        if let Ended::Failed { failure, .. } = &ended {
            log::debug!(
                "request {:?}: {} {}: {}",
                ctx.exchange.request_id,
                self.provider.name,
                self.target.model,
                failure.message
            );
            if may_be_tried_again(failure.kind) {
                self.target.state.failed();
            }
        }
        Ok(ended)
    }

    async fn exchange(
        &self,
        proxy: &Proxy,
        session: &mut Session,
        ctx: &mut Context,
        call: &Call<'_>,
        pick: &mut Pick,
        started: Instant,
    ) -> pingora::Result<Ended> {
        let peer = pick.target().peer(&Timeouts::default());
        let connecting = proxy.connector.get_http_session(&*peer);
        let (mut http, reused) = match unless_client_leaves(session, connecting).await? {
            Ok(connected) => connected,
            Err(error) => return Ok(self.broken(ctx, pick, &error.into_up())),
        };
        ctx.exchange.upstream_connect = (!reused).then(|| started.elapsed());
        let limits = self.origin.upstream.limits(&Timeouts::default());
        http.set_write_timeout(Some(limits.idle));
        http.set_read_timeout(Some(limits.first_byte));
        let mut wait = Wait { patience: self.first_token.map(|patience| started + patience) };

        let Some(head) = self.request_head(session, ctx, call, &http, &peer) else {
            return Ok(Ended::failed(Failure::new(FailureKind::Server, "the request could not be written")));
        };
        let asked = wait.during(session, ask(&mut http, head, self.body.clone())).await?;
        let head = match asked {
            Waited::Done(()) => wait.during(session, answer_head(&mut http)).await?,
            Waited::Broken(error) => Waited::Broken(error),
            Waited::TooLate => Waited::TooLate,
        };
        let head = match head {
            Waited::Done(head) => head,
            Waited::Broken(error) => return Ok(self.broken(ctx, pick, &error)),
            Waited::TooLate => return Ok(self.too_late(ctx, pick)),
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
        let framing = self.framing(&head).filter(|_| call.stream && head.status.is_success());
        let ended = match framing {
            Some(framing) => stream::relay(self, framing, session, ctx, call, &mut http, &mut wait, started).await?,
            None => self.whole(session, ctx, call, &mut http, &mut wait, &head, started).await?,
        };
        // An HTTP/2 session always goes back, or its connection never counts as idle again; what is unfinished is reset.
        if http.response_done() || http.as_http2().is_some() {
            proxy.connector.release_http_session(http, &*peer, peer.options.idle_timeout).await;
        }
        Ok(ended)
    }

    /// How an answer is framed, if it is a stream.
    fn framing(&self, head: &ResponseHeader) -> Option<Framing> {
        Framing::of_content_type(head.headers.get(CONTENT_TYPE)?.to_str().ok()?)
    }

    fn request_head(
        &self,
        session: &Session,
        ctx: &Context,
        call: &Call<'_>,
        http: &HttpSession,
        peer: &HttpPeer,
    ) -> Option<RequestHeader> {
        let spec = &self.provider.spec;
        let own = spec.path(crate::ai::catalog::Operation::Chat);
        let path = self.endpoint.chat_path(&self.target.model, call.stream, Some(own), spec.quirks());
        let mut head = RequestHeader::build_no_case("POST", path.as_bytes(), Some(12)).ok()?;
        let mut put = |name: HeaderName, value: HeaderValue| head.insert_header(name, value).is_ok();
        put(CONTENT_TYPE, JSON);
        put(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        put(USER_AGENT, HeaderValue::from_static(concat!("headgate/", env!("CARGO_PKG_VERSION"))));
        let accept = if call.stream { self.spoken.framing().content_type() } else { "application/json" };
        put(ACCEPT, HeaderValue::from_static(accept));
        for (name, value) in &spec.headers {
            let (name, value) = (HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?);
            put(name, value);
        }
        if self.passing {
            let sent = &session.req_header().headers;
            for name in SHOWN {
                if let Some(value) = sent.get(name) {
                    put(HeaderName::from_static(name), value.clone());
                }
            }
        }
        if let Some(key) = self.key
            && key.signer().is_none()
            && !show_key(&mut head, &spec.credential, key.expose())
        {
            return None;
        }
        if let Some(observation) = &ctx.observation {
            observation.propagate(&mut head);
        }
        let authority = &self.endpoint.authority;
        if let Some(signer) = self.key.and_then(Key::signer) {
            sign(&mut head, &path, authority, &self.body, signer)?;
        }
        request_form(&mut head, authority, http.as_http2().is_some(), peer.is_tls()).ok()?;
        Some(head)
    }

    /// Reads an answer that is not a stream, and answers the caller.
    #[allow(clippy::too_many_arguments, reason = "the parts of one exchange, each used once")]
    async fn whole(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        call: &Call<'_>,
        http: &mut HttpSession,
        wait: &mut Wait,
        head: &ResponseHeader,
        started: Instant,
    ) -> pingora::Result<Ended> {
        let status = head.status.as_u16();
        let most = if head.status.is_success() { LONGEST } else { LONGEST_ERROR };
        let body = match wait.during(session, read_whole(http, most)).await? {
            Waited::Done(Some(body)) => body,
            Waited::Done(None) if head.status.is_success() => {
                return Ok(Ended::failed(Failure::new(FailureKind::Server, "the provider's answer is too long")));
            }
            Waited::Done(None) => Bytes::new(),
            Waited::Broken(_) => {
                return Ok(Ended::failed(Failure::new(FailureKind::Server, "the provider's answer broke off")));
            }
            Waited::TooLate => return Ok(late()),
        };
        if !head.status.is_success() {
            return Ok(self.refused(status, &head.headers, &body));
        }
        if call.stream {
            // Whoever waits for a stream gets one, also of a provider that has not understood.
            return match self.spoken.decode_answer(&body) {
                Ok(_) => {
                    Ok(Ended::failed(Failure::new(FailureKind::Server, "the provider did not answer with a stream")))
                }
                Err(failure) => Ok(Ended::failed(failure)),
            };
        }
        let decoded = match self.spoken.decode_answer(&body) {
            Ok(decoded) => decoded,
            Err(failure) => return Ok(Ended::failed(failure)),
        };
        if self.fallback_on_filter && is_filtered(&decoded) {
            return Ok(Ended::Failed {
                failure: Failure::new(FailureKind::ContentFilter, "the provider's filter refused to answer"),
                again: true,
                retry_after: None,
                about_key: false,
            });
        }
        self.target.state.began(started.elapsed());
        let mut dropped = self.dropped.clone();
        let body = match (self.passing, &call.request) {
            (true, _) => body,
            (false, Some(request)) => call.caller.encode_answer(&decoded, request, &mut dropped).into(),
            (false, None) => return Ok(Ended::failed(Failure::new(FailureKind::Server, "the call was not read"))),
        };
        let mut headers = vec![(CONTENT_TYPE, JSON)];
        headers.extend(dropped_header(&dropped));
        if let Some(record) = &mut ctx.exchange.ai {
            usage::settle(record, &self.provider.spec, &self.target.model, decoded.usage.as_ref());
            record.finish = decoded.choices.first().map(|choice| choice.stop.name());
            headers.extend(told(record));
        }
        answer::send(session, ctx, Answer { status: StatusCode::OK, headers, body }).await?;
        Ok(Ended::Served)
    }

    /// What an answer means whose status says that it is an error.
    fn refused(&self, status: u16, headers: &http::HeaderMap, body: &[u8]) -> Ended {
        let mut failure = self.spoken.decode_failure(status, headers, body);
        if let Some(kind) = self.provider.spec.failure_kind(status, failure.code.as_deref()) {
            failure.kind = kind;
        }
        let retry_after = retry_after::read(headers);
        let about_key = Key::concerns(status) && self.key.is_some();
        if let (true, Some(key)) = (about_key, self.key) {
            key.refused(status, retry_after);
        }
        if matches!(failure.kind, FailureKind::Authentication | FailureKind::Permission) {
            // It is our key that was refused, not the caller's; and what is said of it may hold a part of it.
            log::warn!(
                "{}: key {} was refused with {status}",
                self.provider.name,
                self.key.map_or("-", |key| &key.name)
            );
            failure = Failure::new(FailureKind::Server, format!("{} refused the gateway's key", self.provider.name));
        }
        let again =
            may_be_tried_again(failure.kind) || (self.fallback_on_filter && failure.kind == FailureKind::ContentFilter);
        Ended::Failed { failure, again, retry_after, about_key }
    }

    /// The exchange broke before there was an answer.
    fn broken(&self, ctx: &mut Context, pick: &mut Pick, error: &pingora::Error) -> Ended {
        let now = Instant::now();
        let why = Unanswered::of(error).unwrap_or(Unanswered::Reset);
        pick.report(Outcome::Failed(why), Moment::at(now));
        if let Some(observation) = &mut ctx.observation {
            let outcome = Counted::of_failure(why.reason());
            observation.attempt_finished(&self.origin.metrics, pick.target().name(), outcome, None, now);
        }
        let kind = match why {
            Unanswered::ConnectTimeout | Unanswered::Timeout => FailureKind::Timeout,
            _ => FailureKind::Server,
        };
        Ended::failed(Failure::new(kind, format!("{}: {}", self.provider.name, why.reason().title())))
    }

    /// The first content did not come in time.
    fn too_late(&self, ctx: &mut Context, pick: &mut Pick) -> Ended {
        let now = Instant::now();
        pick.report(Outcome::Failed(Unanswered::Timeout), Moment::at(now));
        if let Some(observation) = &mut ctx.observation {
            let outcome = Counted::of_failure(Unanswered::Timeout.reason());
            observation.attempt_finished(&self.origin.metrics, pick.target().name(), outcome, None, now);
        }
        late()
    }
}

pub fn late() -> Ended {
    Ended::failed(Failure::new(FailureKind::Timeout, "the answer did not begin in time"))
}

fn is_filtered(answer: &ChatAnswer) -> bool {
    answer.choices.iter().all(|choice| choice.stop == crate::ai::chat::Stop::Filtered)
}

/// How long a provider is waited for.
pub struct Wait {
    /// Until the first content; `None` for as long as the connection's own limits allow.
    pub patience: Option<Instant>,
}

pub enum Waited<T> {
    Done(T),
    Broken(Box<pingora::Error>),
    TooLate,
}

impl Wait {
    /// Waits for work at a provider while there is someone to answer; the error means that there is not.
    pub async fn during<T>(
        &mut self,
        session: &mut Session,
        work: impl Future<Output = pingora::Result<T>>,
    ) -> pingora::Result<Waited<T>> {
        let patient = async {
            match self.patience {
                Some(until) => match tokio::time::timeout_at(until.into(), work).await {
                    Ok(Ok(done)) => Waited::Done(done),
                    Ok(Err(error)) => Waited::Broken(error.into_up()),
                    Err(_) => Waited::TooLate,
                },
                None => match work.await {
                    Ok(done) => Waited::Done(done),
                    Err(error) => Waited::Broken(error.into_up()),
                },
            }
        };
        unless_client_leaves(session, patient).await
    }
}

/// Signs a request as AWS wants it. What is added afterwards is not signed, and need not be.
fn sign(head: &mut RequestHeader, target: &str, authority: &str, body: &[u8], signer: &SigV4) -> Option<()> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = [("host", authority), ("content-type", "application/json")];
    let signed = signer.sign(Unsigned { method: "POST", path, query, headers: &headers, body }, Timestamp::now());
    let mut put = |name: &'static str, text: &str| {
        let mut value = HeaderValue::from_str(text).ok()?;
        value.set_sensitive(true);
        head.insert_header(name, value).ok()
    };
    put("authorization", &signed.authorization)?;
    put("x-amz-date", &signed.date)?;
    signed.security_token.map_or(Some(()), |token| put("x-amz-security-token", token.expose()))
}

async fn ask(http: &mut HttpSession, head: RequestHeader, body: Bytes) -> pingora::Result<()> {
    http.write_request_header(Box::new(head)).await?;
    http.write_request_body(body, true).await?;
    http.finish_request_body().await
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

/// `None` if it is longer than `most`.
async fn read_whole(http: &mut HttpSession, most: usize) -> pingora::Result<Option<Bytes>> {
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
