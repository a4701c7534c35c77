//! An answer whose caller has left, read on for its usage: of a provider that bills all of it anyway.
//!
//! It goes on in a task of its own, which the caller's request does not wait for. Such tasks are limited in number, and each in
//! time and bytes. What cannot be read on is settled as far as it came.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use pingora::connectors::http::Connector;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::Serving;
use super::attempt::Attempt;
use super::budget::Bill;
use crate::ai::budget::{self, Reservation, User};
use crate::ai::catalog::ProviderSpec;
use crate::ai::chat::{ChatEvent, Stop, Usage};
use crate::ai::formats::{EventDecoder, Provider as Spoken};
use crate::ai::stream::{Deframer, Framing};
use crate::ai::tokens::{self, Said};
use crate::ai::usage;
use crate::config::ai::OnDisconnect;
use crate::snapshot::ai::Models;
use crate::telemetry::exchange::AiCall;

/// Answers that are read on at one time.
const MOST: usize = 256;
/// How much of one, and for how long.
const MOST_BYTES: usize = 16 << 20;
const LONGEST: Duration = Duration::from_secs(120);

static READING: Semaphore = Semaphore::const_new(MOST);

/// What is left of an exchange when its caller is gone.
struct Rest {
    http: HttpSession,
    connector: Arc<Connector>,
    peer: HttpPeer,
    /// Of a stream that has begun to be read.
    begun: Option<Begun>,
    spoken: &'static dyn Spoken,
    /// Whether a stream was asked for.
    stream: bool,
    /// What was asked, to be counted if the provider does not tell.
    body: Bytes,
    models: Arc<Models>,
    spec: Arc<ProviderSpec>,
    model: Arc<str>,
}

/// What was seen of a stream.
pub struct Begun {
    pub deframer: Box<dyn Deframer>,
    pub decoder: Box<dyn EventDecoder>,
    pub usage: Option<Usage>,
    pub stop: Option<Stop>,
    pub said: Said,
}

/// The caller has left while a provider worked. If the provider bills all of its answer, that is read on, and the call is settled
/// then; otherwise it is settled now, with what was sent and what came.
pub async fn left(serving: &mut Serving<'_>, attempt: &mut Attempt<'_>, begun: Option<Begun>, bill: &mut Bill) {
    let (provider, model) = (attempt.ask.provider, attempt.ask.target.model.clone());
    let body = serving.call.head.body().clone();
    let Some(record) = serving.ctx.exchange.ai.as_mut().filter(|record| record.tokens.is_none()) else { return };
    if attempt.http.is_none() {
        // Nobody was asked yet.
        return;
    }
    let drains = provider.on_disconnect == OnDisconnect::Drain;
    let Some((http, peer)) = drains.then(|| attempt.leave()).flatten() else {
        let input = tokens::count_prompt(body, &model).await;
        usage::counted(record, &provider.spec, &model, &Usage { input, ..Usage::default() });
        return;
    };
    record.drained = true;
    let record = (**record).clone();
    let ctx = &mut *serving.ctx;
    let owing = Owing {
        of_call: ctx.reservation.take().map(|reservation| *reservation),
        of_attempt: bill.paid.take(),
        record,
        user: ctx.exchange.consumer().cloned(),
    };
    let rest = Rest {
        http,
        peer,
        connector: serving.proxy.connector.clone(),
        begun,
        spoken: attempt.ask.spoken,
        stream: serving.call.stream,
        body,
        models: serving.ai.models.clone(),
        spec: provider.spec.clone(),
        model,
    };
    // If too many are read on already, this one is settled as it is.
    tokio::spawn(finish(rest, owing, READING.try_acquire().ok()));
}

/// What is settled in the end.
struct Owing {
    of_call: Option<Reservation>,
    of_attempt: Option<Reservation>,
    record: AiCall,
    user: User,
}

async fn finish(mut rest: Rest, mut owing: Owing, permit: Option<SemaphorePermit<'static>>) {
    let mut begun = rest.begun.take();
    let whole = match &permit {
        Some(_) => tokio::time::timeout(LONGEST, read(&mut rest, &mut begun)).await.unwrap_or(None),
        None => None,
    };
    let told = match (&whole, &begun) {
        (Some(answer), _) => answer.usage,
        (None, Some(begun)) => begun.usage.filter(|_| begun.stop.is_some()),
        (None, None) => None,
    };
    let record = &mut owing.record;
    match told {
        Some(told) => usage::settle(record, &rest.spec, &rest.model, Some(&told)),
        None => {
            let part = begun.as_ref().and_then(|begun| begun.usage).unwrap_or_default();
            let input = match part.input {
                0 => tokens::count_prompt(rest.body.clone(), &rest.model).await,
                told => told,
            };
            let output = match (whole, begun) {
                (Some(answer), _) => tokens::count_text(answer.texts(), &rest.model).await,
                (None, Some(begun)) => begun.said.count(&rest.model).await,
                (None, None) => 0,
            };
            let output = output.max(part.output);
            usage::counted(record, &rest.spec, &rest.model, &Usage { input, output, ..part });
        }
    }
    let of_attempt = AiCall { lost: Default::default(), ..record.clone() };
    if let Some(paid) = owing.of_attempt {
        paid.settle(&budget::spent(&of_attempt));
    }
    budget::settle(owing.of_call, record);
    budget::note_use(&rest.models.ledger, owing.user.as_ref(), record);
    let Rest { mut http, connector, peer, .. } = rest;
    if http.response_done() || http.as_http2().is_some() {
        connector.release_http_session(http, &peer, peer.options.idle_timeout).await;
    }
}

/// Reads what is left. A whole answer is returned; of a stream it is noted in `begun`.
async fn read(rest: &mut Rest, begun: &mut Option<Begun>) -> Option<crate::ai::chat::ChatAnswer> {
    let http = &mut rest.http;
    while http.response_header().is_none_or(|head| head.status.is_informational()) {
        http.read_response_header().await.ok()?;
    }
    let head = http.response_header()?;
    if !head.status.is_success() {
        return None;
    }
    let framing = head.headers.get(CONTENT_TYPE).and_then(|kind| Framing::of_content_type(kind.to_str().ok()?));
    if let (None, true, Some(framing)) = (&begun, rest.stream, framing) {
        *begun = Some(Begun {
            deframer: framing.deframer(),
            decoder: rest.spoken.decoder(),
            usage: None,
            stop: None,
            said: Said::new(true),
        });
    }
    let (mut whole, mut length) = (BytesMut::new(), 0);
    while let Some(piece) = http.read_response_body().await.ok()? {
        length += piece.len();
        if length > MOST_BYTES {
            return None;
        }
        match begun {
            Some(begun) => {
                if !begun.take(&piece) {
                    return None;
                }
            }
            None => whole.extend_from_slice(&piece),
        }
    }
    match begun {
        Some(begun) => {
            begun.end();
            None
        }
        None => rest.spoken.decode_answer(&whole).ok(),
    }
}

impl Begun {
    /// Takes a piece; false if nothing more is to be learnt.
    fn take(&mut self, piece: &[u8]) -> bool {
        let Begun { deframer, decoder, usage, stop, said } = self;
        let (mut events, mut ended) = (Vec::new(), false);
        let taken = deframer.push(piece, &mut |frame| {
            events.clear();
            decoder.decode(&frame, &mut events);
            ended |= note(&events, usage, stop, said);
        });
        taken.is_ok() && !ended
    }

    fn end(&mut self) {
        let Begun { deframer, decoder, usage, stop, said } = self;
        let mut events = Vec::new();
        let _ = deframer.finish(&mut |frame| decoder.decode(&frame, &mut events));
        decoder.finish(&mut events);
        note(&events, usage, stop, said);
    }
}

/// True if the answer is at its end.
fn note(events: &[ChatEvent], usage: &mut Option<Usage>, stop: &mut Option<Stop>, said: &mut Said) -> bool {
    let mut ended = false;
    for event in events {
        match event {
            ChatEvent::Usage(told) => usage.get_or_insert_default().absorb(told),
            ChatEvent::Stop { stop: told, .. } => *stop = Some(*told),
            ChatEvent::Delta { text, .. } => said.add(text),
            ChatEvent::End | ChatEvent::Error(_) => ended = true,
            _ => {}
        }
    }
    ended
}
