//! A streamed answer on its way from a provider to the caller.
//!
//! Nothing is sent until the first content has come: before it an attempt may still fail unseen. Then the answer is the
//! caller's, whatever happens; what goes wrong becomes an error event in its dialect.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Version};
use memchr::memmem;
use pingora::http::ResponseHeader;
use pingora::protocols::http::client::HttpSession;
use serde::de::IgnoredAny;

use super::attempt::{Ask, Attempt};
use super::cached::Place;
use super::call::Call;
use super::drain::Begun;
use super::failed::Failed;
use super::{Serving, cached, dropped_header, guard, told};
use crate::ai::answers::replay::Recorder;
use crate::ai::chat::{ChatEvent, Failure, FailureKind, PartKind, Stop, Usage};
use crate::ai::formats::{Caller, EventDecoder, EventEncoder};
use crate::ai::guardrails::stream::StreamGuard;
use crate::ai::stream::event_stream::EXCEPTION;
use crate::ai::stream::reframe::Reframer;
use crate::ai::stream::{Deframer, Frame, Framing, Unframed};
use crate::ai::tokens::{self, Said};
use crate::ai::usage;
use crate::config::ai::OnDisconnect;
use crate::proxy::answer::{X_REQUEST_ID, filter_response};
use crate::proxy::tunnel::unless_client_leaves;

/// Held back before the first content; a provider that sends more without any is not going to say something.
const MOST_HELD: usize = 1 << 20;

/// The most bytes that end an event before its last byte.
const LONGEST_END: usize = 3;

/// Keeps proxies in front from collecting the stream (nginx).
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Sends a stream whose first content has come, to its end. The error means that the caller is gone.
/// What of it can be read on then is in `begun`.
pub async fn send(
    serving: &mut Serving<'_>,
    attempt: &mut Attempt<'_>,
    mut relay: Relay,
    begun: &mut Option<Begun>,
) -> pingora::Result<()> {
    // Whether what was said is counted exactly, where the provider does not tell.
    relay.said.keep(serving.ctx.reservation.is_some());
    attempt.ask.target.state.began(attempt.started.elapsed());
    if let Some(record) = serving.record() {
        record.first_token = record.started.map(|started| started.elapsed());
    }
    let sent = match begin(serving, &attempt.ask).await {
        Ok(()) => relay.run(serving, attempt).await,
        Err(gone) => Err(gone),
    };
    let (spec, model) = (&attempt.ask.provider.spec, &attempt.ask.target.model);
    let on_disconnect = attempt.ask.provider.on_disconnect;
    // The last report is complete if it came with the end, or after it, and that was the provider's own.
    let withheld = relay.guard.as_ref().is_some_and(|guard| guard.withheld());
    let told = relay.usage.filter(|_| relay.stop.is_some() && !withheld);
    let counted = match told {
        Some(_) => None,
        None if sent.is_err() && !relay.ended && on_disconnect == OnDisconnect::Drain => {
            *begun = Some(relay.leave());
            None
        }
        None => Some(relay.count(&serving.call, model).await),
    };
    if let Some(record) = serving.record() {
        record.guardrails.extend(relay.guard.iter_mut().flat_map(|guard| guard.verdicts.drain(..)));
        match &counted {
            Some(counted) => usage::counted(record, spec, model, counted),
            None => usage::settle(record, spec, model, told.as_ref()),
        }
        record.finish = relay.stop.map(Stop::name);
        if let (Some(traced), Some((id, model))) = (&mut record.traced, relay.identity) {
            (traced.response_id, traced.response_model) = (Some(id), Some(model));
        }
    }
    if let Some(recorder) = relay.recorder {
        cached::keep_stream(serving, recorder);
    }
    sent
}

/// How the events of a provider reach the caller.
enum Way {
    /// As they are, byte by byte.
    Raw,
    /// Each as it is, framed as the caller wants it.
    Framed(Reframer),
    /// In the caller's words.
    Translated,
}

impl Way {
    /// The way that changes least. What is looked at is written anew.
    fn of(ask: &Ask<'_>, from: Framing, into: Framing, guarded: bool) -> Way {
        match ask.passing && !guarded {
            true if from == into && !ask.hides_usage => Way::Raw,
            true => Way::Framed(Reframer::new(into)),
            false => Way::Translated,
        }
    }
}

/// A stream between its two ends.
pub struct Relay {
    deframer: Box<dyn Deframer>,
    decoder: Box<dyn EventDecoder>,
    /// Writes what the provider says in the caller's words; also the errors of a stream that otherwise passes as it is.
    encoder: Box<dyn EventEncoder>,
    caller: &'static dyn Caller,
    way: Way,
    /// Looks at everything before the caller sees it.
    guard: Option<Box<StreamGuard>>,
    /// Takes down what the caller sees, to be kept.
    recorder: Option<Recorder>,
    hides_usage: bool,
    events: Vec<ChatEvent>,
    /// For the caller, not sent yet.
    out: Vec<u8>,
    /// How much of it are whole events. What passes raw is cut anywhere, and half an event can neither be taken back nor be
    /// followed by one that tells of an error.
    whole: usize,
    /// Whether something came that the caller has asked for.
    content: bool,
    /// What still comes means nothing.
    ended: bool,
    /// Nothing comes any more.
    over: bool,
    failure: Option<Failure>,
    usage: Option<Usage>,
    stop: Option<Stop>,
    /// What the model has said, for the case that the provider does not tell how many tokens it was.
    said: Said,
    /// The provider's id of the answer and name of the model.
    identity: Option<(String, String)>,
}

impl Relay {
    /// Reads a stream until its first content.
    pub async fn open(
        ask: &Ask<'_>,
        framing: Framing,
        call: &Call<'_>,
        http: &mut HttpSession,
    ) -> Result<Relay, Failed> {
        let mut relay = Relay::new(ask, framing, call)?;
        while !relay.content {
            relay.step(http.read_response_body().await);
            let failed = match relay.failure.take() {
                Some(failure) => failure.into(),
                None if relay.content => break,
                None if relay.over => Failed::new(FailureKind::Server, "the provider's answer is empty"),
                None if relay.held() > MOST_HELD => {
                    Failed::new(FailureKind::Server, "the provider's answer has no content")
                }
                None => continue,
            };
            return Err(Failed { billed: relay.usage.map(Box::new), ..failed });
        }
        Ok(relay)
    }

    fn new(ask: &Ask<'_>, framing: Framing, call: &Call<'_>) -> Result<Relay, Failure> {
        let nothing = Default::default();
        let guard = StreamGuard::new(&call.guardrails).map(Box::new);
        let encoder = match ask.passing && guard.is_none() {
            true => call.caller.encoder(&nothing),
            false => call.caller.encoder(call.decoded()?),
        };
        Ok(Relay {
            deframer: framing.deframer(),
            decoder: ask.spoken.decoder(),
            encoder,
            caller: call.caller,
            way: Way::of(ask, framing, call.caller.framing(), guard.is_some()),
            guard,
            recorder: call.keep.as_ref().map(Place::recorder),
            hides_usage: ask.hides_usage,
            events: Vec::new(),
            out: Vec::new(),
            whole: 0,
            content: false,
            ended: false,
            over: false,
            failure: None,
            usage: None,
            stop: None,
            said: Said::new(true),
            identity: None,
        })
    }

    /// What has been seen until now, for whoever reads on.
    fn leave(&mut self) -> Begun {
        let decoder = std::mem::replace(&mut self.decoder, Box::new(Nothing));
        let deframer = std::mem::replace(&mut self.deframer, Box::new(Nothing));
        Begun { deframer, decoder, usage: self.usage, stop: self.stop, said: std::mem::take(&mut self.said) }
    }

    /// What has been used, as far as the provider did not tell: what was sent to it, and what it has said until now.
    async fn count(&mut self, call: &Call<'_>, model: &str) -> Usage {
        let told = self.usage.unwrap_or_default();
        let input = match told.input {
            0 => tokens::count_prompt(call.head.body().clone(), model).await,
            told => told,
        };
        let output = std::mem::take(&mut self.said).count(model).await.max(told.output);
        Usage { input, output, ..told }
    }

    /// Passes on what has come and what comes.
    async fn run(&mut self, serving: &mut Serving<'_>, attempt: &mut Attempt<'_>) -> pingora::Result<()> {
        loop {
            if let Some(guard) = &mut self.guard {
                let mut events = Vec::new();
                guard::ask_about(serving, guard, &mut events).await?;
                self.write(&events);
            }
            let last = self.over || self.failure.is_some();
            let bytes = self.sendable(last);
            if last || !bytes.is_empty() {
                let written = serving.session.write_response_body(Some(bytes), last).await;
                written.map_err(|error| error.into_down())?;
            }
            let Some(http) = attempt.http.as_mut().filter(|_| !last) else { return Ok(()) };
            let piece = unless_client_leaves(serving.session, http.read_response_body()).await?;
            self.step(piece);
        }
    }

    /// How much is held back, in whole events: how long one may be is up to the deframer.
    fn held(&self) -> usize {
        match self.way {
            Way::Raw => self.whole,
            _ => self.out.len(),
        }
    }

    /// Takes out what can be sent.
    fn sendable(&mut self, last: bool) -> Bytes {
        let rest = match self.way {
            Way::Raw if !last => self.out.split_off(self.whole),
            _ => Vec::new(),
        };
        self.whole = 0;
        std::mem::replace(&mut self.out, rest).into()
    }

    /// Takes the next piece of the provider's stream, or its end.
    fn step(&mut self, piece: pingora::Result<Option<Bytes>>) {
        match piece {
            Ok(Some(piece)) => self.take(&piece),
            Ok(None) => self.finish(),
            Err(error) => {
                log::debug!("a stream broke off: {error}");
                self.break_off("the provider's answer broke off");
                self.finish();
            }
        }
    }

    /// Takes a piece of the provider's stream.
    fn take(&mut self, piece: &[u8]) {
        if let (Way::Raw, false) = (&self.way, self.ended) {
            // An event may end with the first byte of the piece.
            let new = self.out.len().saturating_sub(LONGEST_END);
            self.out.extend_from_slice(piece);
            match self.caller.framing() {
                Framing::Sse => self.whole = end_of_events(&self.out[new..]).map_or(self.whole, |end| new + end),
                _ => self.whole = self.out.len(),
            }
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
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        self.decoder.decode(frame, &mut events);
        let only_usage = self.hides_usage && matches!(events.as_slice(), [ChatEvent::Usage(_)]);
        events.iter().for_each(|event| self.tell(event));
        if !only_usage {
            self.pass_on(frame, events.last());
        }
        self.events = events;
    }

    /// Passes a frame on that is not translated, where its last event is known.
    fn pass_on(&mut self, frame: &Frame<'_>, last: Option<&ChatEvent>) {
        if let Some(ChatEvent::Error(failure)) = last
            && serde_json::from_slice::<IgnoredAny>(frame.data).is_err()
        {
            return self.replace(frame, failure);
        }
        let Way::Framed(reframer) = &mut self.way else { return };
        match last {
            // What the hosting service says itself is not in the words of the format.
            Some(ChatEvent::Error(failure)) if frame.event.is_some_and(|event| event.starts_with(EXCEPTION)) => {
                self.tell_error(failure);
            }
            _ => reframer.write(frame, &mut self.out),
        }
    }

    /// Puts an error in the place of a frame that nobody can read: libraries choke on it, or pass over it and take what came
    /// before for all.
    fn replace(&mut self, frame: &Frame<'_>, failure: &Failure) {
        match self.way {
            Way::Raw => {
                if let Some(at) = memmem::rfind(&self.out, frame.data) {
                    self.whole = end_of_events(&self.out[..at]).unwrap_or(0);
                }
                self.tell_error(failure);
            }
            Way::Framed(_) => self.tell_error(failure),
            // The encoder has told it.
            Way::Translated => {}
        }
    }

    /// Sees every event before it is sent.
    fn tell(&mut self, event: &ChatEvent) {
        match event {
            ChatEvent::PartStart { kind: PartKind::Text | PartKind::Reasoning | PartKind::Refusal, .. } => {}
            ChatEvent::PartStart { .. } => self.content = true,
            ChatEvent::Delta { text, .. } => {
                self.said.add(text);
                self.content |= !text.is_empty();
            }
            // A model may say nothing and be done.
            ChatEvent::Stop { stop, .. } => {
                self.stop = Some(*stop);
                self.content = true;
            }
            ChatEvent::Usage(usage) => self.usage.get_or_insert_default().absorb(usage),
            ChatEvent::Error(failure) => {
                self.failure = Some(failure.clone());
                self.ended = true;
            }
            ChatEvent::End => self.ended = true,
            ChatEvent::Start { id, model, .. } => self.identity = Some((id.clone(), model.clone())),
            ChatEvent::Signature { .. } | ChatEvent::PartEnd { .. } => {}
        }
        match (&self.way, &mut self.guard) {
            (_, Some(guard)) => {
                let mut seen = Vec::new();
                guard.push(event.clone(), &mut seen);
                self.write(&seen);
            }
            (Way::Translated, None) => self.encoder.encode(event, &mut self.out),
            (Way::Raw | Way::Framed(_), None) => {}
        }
        if let (None, Some(recorder)) = (&self.guard, &mut self.recorder) {
            recorder.push(event);
        }
    }

    /// Writes what the guardrails have let through.
    fn write(&mut self, events: &[ChatEvent]) {
        for event in events {
            self.encoder.encode(event, &mut self.out);
            if let Some(recorder) = &mut self.recorder {
                recorder.push(event);
            }
        }
        self.look_at_guard();
    }

    /// Whether a guardrail has ended the answer: then nothing else is waited for.
    fn look_at_guard(&mut self) {
        if self.guard.as_ref().is_some_and(|guard| guard.withheld()) {
            self.stop = Some(Stop::Filtered);
            self.ended = true;
            self.over = true;
        }
    }

    /// The provider's stream is over.
    fn finish(&mut self) {
        self.over = true;
        let mut deframer = std::mem::replace(&mut self.deframer, Box::new(Nothing));
        let rest = deframer.finish(&mut |frame| self.frame(&frame));
        self.deframer = deframer;
        if rest.is_err() {
            self.break_off("the provider's answer broke off");
        }
        if !self.ended {
            let mut events = Vec::new();
            self.decoder.finish(&mut events);
            events.iter().for_each(|event| self.tell(event));
            if let (Way::Raw | Way::Framed(_), Some(ChatEvent::Error(failure))) = (&self.way, events.last()) {
                self.tell_error(&failure.clone());
            }
        }
        if let Way::Framed(reframer) = &mut self.way {
            reframer.finish(&mut self.out);
        }
    }

    /// Nothing that makes sense will come any more.
    fn break_off(&mut self, why: &str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let failure = Failure::new(FailureKind::Server, why);
        self.tell_error(&failure);
        self.failure = Some(failure);
    }

    /// Writes an error of which the provider has sent nothing that the caller would understand.
    fn tell_error(&mut self, failure: &Failure) {
        if let Way::Raw = self.way {
            self.out.truncate(self.whole);
        }
        match &mut self.way {
            Way::Framed(reframer) if self.caller.framing() == Framing::JsonArray => {
                let body = self.caller.encode_failure(failure, "");
                reframer.write(&Frame { event: None, data: &body }, &mut self.out);
                reframer.finish(&mut self.out);
            }
            _ => self.encoder.encode(&ChatEvent::Error(failure.clone()), &mut self.out),
        }
    }
}

/// Where the last whole event ends.
fn end_of_events(bytes: &[u8]) -> Option<usize> {
    // Mostly there is nothing behind it.
    if bytes.ends_with(b"\n\n") {
        return Some(bytes.len());
    }
    let ends = ["\n\n", "\r\n\r\n", "\r\r"];
    ends.iter().filter_map(|end| Some(memmem::rfind(bytes, end.as_bytes())? + end.len())).max()
}

/// Stands in for what is being used, or has been given away.
struct Nothing;

impl EventDecoder for Nothing {
    fn decode(&mut self, _: &Frame<'_>, _: &mut Vec<ChatEvent>) {}
    fn finish(&mut self, _: &mut Vec<ChatEvent>) {}
}

impl Deframer for Nothing {
    fn push(&mut self, _: &[u8], _: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        Ok(())
    }
    fn finish(&mut self, _: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        Ok(())
    }
}

/// Sends the head of the caller's answer.
async fn begin(serving: &mut Serving<'_>, ask: &Ask<'_>) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(200, Some(10))?;
    head.insert_header(CONTENT_TYPE, HeaderValue::from_static(serving.call.caller.framing().content_type()))?;
    head.insert_header(CACHE_CONTROL, HeaderValue::from_static("no-cache"))?;
    head.insert_header(X_ACCEL_BUFFERING, HeaderValue::from_static("no"))?;
    head.insert_header(X_REQUEST_ID, serving.ctx.exchange.request_id.clone())?;
    if serving.session.req_header().version == Version::HTTP_11 {
        head.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
    }
    if let Some((name, value)) = dropped_header(&ask.dropped) {
        head.insert_header(name, value)?;
    }
    for (name, value) in serving.record().map(|record| told(record)).into_iter().flatten() {
        head.insert_header(name, value)?;
    }
    serving.ctx.exchange.status = 200;
    filter_response(serving.session, serving.ctx, &mut head);
    serving.session.write_response_header(Box::new(head), false).await.map_err(|error| error.into_down())
}
