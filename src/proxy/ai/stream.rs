//! A streamed answer on its way from a provider to the caller.
//!
//! Nothing is sent until the first content has come: before it an attempt may still fail unseen. Then the answer is the
//! caller's, whatever happens; what goes wrong becomes an error event in its dialect.

use std::time::Instant;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Version};
use pingora::http::ResponseHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::proxy::Session;

use super::attempt::{Attempt, Ended, Wait, Waited, late};
use super::{Call, dropped_header, told};
use crate::ai::chat::{ChatEvent, Failure, FailureKind, PartKind, Stop, Usage};
use crate::ai::formats::{EventDecoder, EventEncoder};
use crate::ai::stream::{Deframer, Frame, Framing, Unframed, sse};
use crate::ai::usage;
use crate::proxy::answer::{X_REQUEST_ID, filter_response};
use crate::proxy::context::Context;

/// Held back before the first content; a provider that sends more without any is not going to say something.
const MOST_HELD: usize = 1 << 20;

/// Keeps proxies in front from collecting the stream (nginx).
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Passes the stream on. The error means that the caller is gone.
#[allow(clippy::too_many_arguments, reason = "the parts of one exchange, each used once")]
pub async fn relay(
    attempt: &Attempt<'_>,
    framing: Framing,
    session: &mut Session,
    ctx: &mut Context,
    call: &Call<'_>,
    http: &mut HttpSession,
    wait: &mut Wait,
    started: Instant,
) -> pingora::Result<Ended> {
    let Some(mut relay) = Relay::new(attempt, framing, call) else {
        return Ok(failed(Failure::new(FailureKind::Server, "the call was not read")));
    };
    let served = relay.run(attempt, session, ctx, call, http, wait, started).await;
    if let (true, Some(record)) = (relay.sent, &mut ctx.exchange.ai) {
        usage::settle(record, &attempt.provider.spec, &attempt.target.model, relay.usage.as_ref());
        record.finish = relay.stop.map(Stop::name);
    }
    served
}

struct Relay {
    deframer: Box<dyn Deframer>,
    decoder: Box<dyn EventDecoder>,
    /// Writes what the provider says in the caller's words; also the errors of a stream that otherwise passes as it is.
    encoder: Box<dyn EventEncoder>,
    passing: bool,
    hides_usage: bool,
    events: Vec<ChatEvent>,
    /// For the caller, not sent yet.
    out: Vec<u8>,
    /// The head of the answer is sent: there is no way back.
    sent: bool,
    content: bool,
    ended: bool,
    failure: Option<Failure>,
    usage: Option<Usage>,
    stop: Option<Stop>,
}

impl Relay {
    fn new(attempt: &Attempt<'_>, framing: Framing, call: &Call<'_>) -> Option<Relay> {
        let nothing = Default::default();
        let encoder = match (attempt.passing, &call.request) {
            (true, _) => call.caller.encoder(&nothing),
            (false, request) => call.caller.encoder(request.as_ref()?),
        };
        Some(Relay {
            deframer: framing.deframer(),
            decoder: attempt.spoken.decoder(),
            encoder,
            passing: attempt.passing,
            hides_usage: attempt.hides_usage,
            events: Vec::new(),
            out: Vec::new(),
            sent: false,
            content: false,
            ended: false,
            failure: None,
            usage: None,
            stop: None,
        })
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one exchange, each used once")]
    async fn run(
        &mut self,
        attempt: &Attempt<'_>,
        session: &mut Session,
        ctx: &mut Context,
        call: &Call<'_>,
        http: &mut HttpSession,
        wait: &mut Wait,
        started: Instant,
    ) -> pingora::Result<Ended> {
        loop {
            let piece = match wait.during(session, http.read_response_body()).await? {
                Waited::Done(piece) => piece,
                Waited::TooLate => return Ok(late()),
                Waited::Broken(error) => {
                    log::debug!("{}: a stream broke off: {error}", attempt.provider.name);
                    self.break_off("the provider's answer broke off");
                    None
                }
            };
            let over = piece.is_none();
            match piece {
                Some(piece) => self.take(&piece),
                None => self.finish(),
            }
            if !self.sent {
                if let Some(failure) = self.failure.take() {
                    return Ok(failed(failure));
                }
                if over && !self.content {
                    return Ok(failed(Failure::new(FailureKind::Server, "the provider's answer is empty")));
                }
                if self.out.len() > MOST_HELD && !self.content {
                    return Ok(failed(Failure::new(FailureKind::Server, "the provider's answer has no content")));
                }
                if self.content {
                    wait.patience = None;
                    let after = started.elapsed();
                    attempt.target.state.began(after);
                    if let Some(record) = &mut ctx.exchange.ai {
                        record.first_token = record.started.map(|started| started.elapsed());
                    }
                    begin(attempt, session, ctx, call).await?;
                    self.sent = true;
                }
            }
            let last = over || self.failure.is_some();
            if self.sent && (last || !self.out.is_empty()) {
                let bytes = Bytes::from(std::mem::take(&mut self.out));
                session.write_response_body(Some(bytes), last).await.map_err(|error| error.into_down())?;
            }
            if last {
                return Ok(Ended::Served);
            }
        }
    }

    /// Takes a piece of the provider's stream.
    fn take(&mut self, piece: &[u8]) {
        let raw = self.passing && !self.hides_usage;
        if raw && !self.ended {
            self.out.extend_from_slice(piece);
        }
        let mut deframer = std::mem::replace(&mut self.deframer, Box::new(Nothing));
        let taken = deframer.push(piece, &mut |frame| self.frame(&frame));
        self.deframer = deframer;
        if let Err(error) = taken {
            self.break_off(&error.to_string());
        }
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        if self.ended {
            return;
        }
        self.events.clear();
        let mut events = std::mem::take(&mut self.events);
        self.decoder.decode(frame, &mut events);
        let only_usage = self.passing && self.hides_usage && matches!(events.as_slice(), [ChatEvent::Usage(_)]);
        if self.passing && self.hides_usage && !only_usage {
            sse::write(frame.event, frame.data, &mut self.out);
        }
        self.observe(&events);
        self.events = events;
    }

    fn observe(&mut self, events: &[ChatEvent]) {
        for event in events {
            match event {
                ChatEvent::PartStart { kind: PartKind::Text | PartKind::Reasoning | PartKind::Refusal, .. } => {}
                ChatEvent::PartStart { .. } => self.content = true,
                ChatEvent::Delta { text, .. } => self.content |= !text.is_empty(),
                // A model may say nothing and be done.
                ChatEvent::Stop { stop, .. } => {
                    self.stop = Some(*stop);
                    self.content = true;
                }
                ChatEvent::Usage(usage) => {
                    self.usage.get_or_insert_default().absorb(usage);
                }
                ChatEvent::Error(failure) => {
                    self.failure = Some(failure.clone());
                    self.ended = true;
                }
                ChatEvent::End => self.ended = true,
                ChatEvent::Start { .. } | ChatEvent::Signature { .. } | ChatEvent::PartEnd { .. } => {}
            }
            if !self.passing {
                self.encoder.encode(event, &mut self.out);
            }
        }
    }

    /// The provider's stream is over.
    fn finish(&mut self) {
        let mut deframer = std::mem::replace(&mut self.deframer, Box::new(Nothing));
        let rest = deframer.finish(&mut |frame| self.frame(&frame));
        self.deframer = deframer;
        if rest.is_err() {
            self.break_off("the provider's answer broke off");
        }
        if self.ended {
            return;
        }
        let mut events = Vec::new();
        self.decoder.finish(&mut events);
        self.observe(&events);
        if let (true, Some(ChatEvent::Error(failure))) = (self.passing, events.last()) {
            self.encoder.encode(&ChatEvent::Error(failure.clone()), &mut self.out);
        }
    }

    /// Nothing that makes sense will come any more.
    fn break_off(&mut self, why: &str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let failure = Failure::new(FailureKind::Server, why);
        self.encoder.encode(&ChatEvent::Error(failure.clone()), &mut self.out);
        self.failure = Some(failure);
    }
}

/// Stands in for a deframer that is being used.
struct Nothing;

impl Deframer for Nothing {
    fn push(&mut self, _: &[u8], _: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        Ok(())
    }
    fn finish(&mut self, _: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        Ok(())
    }
}

fn failed(failure: Failure) -> Ended {
    let again = !matches!(failure.kind, FailureKind::InvalidRequest | FailureKind::TooLarge);
    Ended::Failed { failure, again, retry_after: None, about_key: false }
}

/// Sends the head of the caller's answer.
async fn begin(
    attempt: &Attempt<'_>,
    session: &mut Session,
    ctx: &mut Context,
    call: &Call<'_>,
) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(200, Some(10))?;
    head.insert_header(CONTENT_TYPE, HeaderValue::from_static(call.caller.framing().content_type()))?;
    head.insert_header(CACHE_CONTROL, HeaderValue::from_static("no-cache"))?;
    head.insert_header(X_ACCEL_BUFFERING, HeaderValue::from_static("no"))?;
    head.insert_header(X_REQUEST_ID, ctx.exchange.request_id.clone())?;
    if session.req_header().version == Version::HTTP_11 {
        head.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
    }
    if let Some((name, value)) = dropped_header(&attempt.dropped) {
        head.insert_header(name, value)?;
    }
    if let Some(record) = &ctx.exchange.ai {
        for (name, value) in told(record) {
            head.insert_header(name, value)?;
        }
    }
    ctx.exchange.status = 200;
    filter_response(session, ctx, &mut head);
    session.write_response_header(Box::new(head), false).await.map_err(|error| error.into_down())
}
