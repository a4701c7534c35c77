//! Answers that were given before: looked for when a call has been looked at, kept when an answer is complete.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AGE, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::json;

use super::side_call::SideCall;
use super::{JSON, Serving, told};
use crate::ai::answers::Kept;
use crate::ai::answers::control::Control;
use crate::ai::answers::key::Key;
use crate::ai::answers::replay::{self, Recorder};
use crate::ai::answers::similar::{self, Vector};
use crate::ai::chat::{ChatAnswer, Dropped, Failure, FailureKind, Stop};
use crate::ai::formats::Format;
use crate::ai::guardrails::texts::Unambiguous;
use crate::config::answer_cache::CacheScope;
use crate::filters::filter::Answer;
use crate::proxy::answer;
use crate::proxy::tunnel::unless_client_leaves;

pub const CACHE: HeaderName = HeaderName::from_static("headgate-ai-cache");

/// Members of a call of Responses that make its answer depend on what the provider keeps, or do something else than answer.
const STATEFUL: [&str; 3] = ["previous_response_id", "conversation", "background"];

/// Where the answer to a call will be kept.
pub struct Place {
    key: Key,
    ttl: Duration,
    /// In bytes.
    most: usize,
    /// What all calls have in common that are alike but for what was said last, and what that is.
    alike: Option<(Key, String)>,
    /// The embedding of it, once it is known.
    vector: Option<Vector>,
}

impl Place {
    pub fn recorder(&self) -> Recorder {
        Recorder::new(self.most)
    }
}

/// Answers from what is kept, if it can. True if it did.
pub async fn answer(serving: &mut Serving<'_>) -> pingora::Result<bool> {
    let Some(place) = place(serving) else { return Ok(false) };
    let control = Control::read(&serving.session.req_header().headers);
    let answers = &serving.ai.models.answers;
    let counts = &answers.counts;
    let Some(place) = place.filter(|_| !control.no_store) else {
        counts.bypassed.fetch_add(1, Ordering::Relaxed);
        return nothing_kept(serving, "bypass", &control).await;
    };
    if control.no_cache {
        counts.bypassed.fetch_add(1, Ordering::Relaxed);
        serving.call.keep = Some(place);
        return nothing_kept(serving, "bypass", &control).await;
    }
    match answers.get(&place.key, control.max_age) {
        Some(kept) => {
            counts.hits.fetch_add(1, Ordering::Relaxed);
            send(serving, &kept, "hit").await.map(|()| true)
        }
        None => {
            let mut place = place;
            if let Some(kept) = similar(serving, &mut place, &control).await? {
                counts.similar.fetch_add(1, Ordering::Relaxed);
                return send(serving, &kept, "semantic").await.map(|()| true);
            }
            counts.misses.fetch_add(1, Ordering::Relaxed);
            serving.call.keep = Some(place);
            nothing_kept(serving, "miss", &control).await
        }
    }
}

/// The answer to a similar question. Whoever cannot be asked for an embedding leaves it a miss.
async fn similar(
    serving: &mut Serving<'_>,
    place: &mut Place,
    control: &Control,
) -> pingora::Result<Option<Arc<Kept>>> {
    let ai = serving.ai;
    let Some(semantic) = ai.cache.as_ref().and_then(|cache| cache.semantic.as_ref()) else { return Ok(None) };
    let Some((alike, newest)) = &place.alike else { return Ok(None) };
    let body = json!({ "model": semantic.model, "input": newest, "encoding_format": "float" }).to_string();
    let side_call = ai.models.provider(&semantic.provider).and_then(|provider| {
        SideCall::to_provider(provider, "/embeddings", &semantic.model, body.into(), semantic.timeout)
    });
    let Some(side_call) = side_call else { return Ok(None) };
    let answered = unless_client_leaves(serving.session, side_call.make(serving.proxy)).await?;
    let vector = match answered.and_then(|body| Vector::read(&body)) {
        Ok(vector) => vector,
        Err(error) => {
            log::warn!("{}: no embedding by {}: {error}", semantic.provider, semantic.model);
            return Ok(None);
        }
    };
    let answers = &ai.models.answers;
    let near = answers.similar.find(alike, &vector, semantic.threshold);
    let kept = near.iter().find_map(|key| answers.get(key, control.max_age));
    place.vector = Some(vector);
    Ok(kept)
}

/// A provider is to be asked, unless the caller does not want that.
async fn nothing_kept(serving: &mut Serving<'_>, state: &'static str, control: &Control) -> pingora::Result<bool> {
    if let Some(record) = serving.record() {
        record.cache = Some(state);
    }
    if !control.only_if_cached {
        return Ok(false);
    }
    // RFC 9111, section 5.2.1.7: 504.
    let failure = Failure::new(FailureKind::Timeout, "no answer to this call is kept, and the caller wants no other");
    serving.refuse(&failure.into()).await.map(|()| true)
}

/// Where an answer is kept. `None` if the route keeps none; none inside if it keeps none to this call.
fn place(serving: &Serving<'_>) -> Option<Option<Place>> {
    let cache = serving.ai.cache.as_ref()?;
    let exchange = &serving.ctx.exchange;
    let consumer = exchange.consumer();
    let tenant = match (cache.settings.scope, consumer) {
        (CacheScope::Shared, _) => String::new(),
        (CacheScope::Team, Some(consumer)) if consumer.team.is_some() => {
            format!("team:{}", consumer.team.as_ref().map_or("", |team| &team.name))
        }
        (CacheScope::Team | CacheScope::Consumer, Some(consumer)) => format!("consumer:{}", consumer.name()),
        (_, None) => return Some(None),
    };
    let Ok(Unambiguous(body)) = serde_json::from_slice(serving.call.head.body()) else { return Some(None) };
    if serving.call.format == Format::OpenAiResponses && STATEFUL.iter().any(|name| !body[*name].is_null()) {
        return Some(None);
    }
    let settings = body.get("generationConfig").unwrap_or(&body);
    let fixed = settings["temperature"].as_f64() == Some(0.0) || settings["seed"].is_number();
    if cache.settings.deterministic_only && !fixed {
        return Some(None);
    }
    let (service, route) = exchange.names();
    let shown: Vec<u8> = serving
        .call
        .shown
        .iter()
        .flat_map(|(name, value)| [name.as_str().as_bytes(), b":", value.as_bytes(), b"\n"].concat())
        .collect();
    let call = &serving.call;
    let about = [
        tenant.as_bytes(),
        &cache.version,
        service.as_bytes(),
        route.as_bytes(),
        call.format.name().as_bytes(),
        call.name.as_bytes(),
        &shown,
    ];
    let key = Key::of(&about, &body);
    let alike = cache.semantic.as_ref().and_then(|_| {
        let mut rest = body;
        let newest = similar::take_newest(&mut rest)?;
        Some((Key::of(&about, &rest), newest))
    });
    let most = usize::try_from(cache.settings.max_answer.get()).unwrap_or(usize::MAX);
    Some(Some(Place { key, ttl: cache.settings.ttl.get(), most, alike, vector: None }))
}

/// Keeps a streamed answer, as the caller got it.
pub fn keep_stream(serving: &mut Serving<'_>, recorder: Recorder) {
    if let Some(answer) = recorder.finish() {
        keep(serving, answer, None);
    }
}

/// Keeps an answer; `body` is how the caller got it, where that was whole.
pub fn keep(serving: &mut Serving<'_>, answer: ChatAnswer, body: Option<Bytes>) {
    let Some(place) = serving.call.keep.take() else { return };
    let complete = |stop: Stop| matches!(stop, Stop::End | Stop::MaxTokens | Stop::ToolUse);
    if answer.choices.is_empty() || !answer.choices.iter().all(|choice| complete(choice.stop)) {
        return;
    }
    let Some(record) = serving.record() else { return };
    let (provider, model) = (record.provider.clone(), record.model.clone());
    let kept = Kept { answer, body, provider, model, at: Instant::now(), ttl: place.ttl };
    if kept.weight() <= place.most {
        let answers = &serving.ai.models.answers;
        answers.keep(place.key, kept);
        if let (Some((alike, _)), Some(vector)) = (place.alike, place.vector) {
            answers.similar.remember(alike, vector, place.key);
        }
    }
}

/// Sends an answer that was kept, whole or as a stream, whichever way it came.
async fn send(serving: &mut Serving<'_>, kept: &Kept, state: &'static str) -> pingora::Result<()> {
    let mut headers = vec![(AGE, HeaderValue::from(kept.at.elapsed().as_secs()))];
    if let Some(record) = serving.record() {
        record.cache = Some(state);
        record.provider = kept.provider.clone();
        record.model = kept.model.clone();
        record.finish = kept.answer.choices.first().map(|choice| choice.stop.name());
        // Nobody has been asked, and nothing was used.
        record.cost = Some(0);
        headers.extend(told(record));
    }
    let call = &mut serving.call;
    if let Err(failure) = call.request() {
        return serving.refuse(&failure.into()).await;
    }
    let nothing = Default::default();
    let request = call.decoded().unwrap_or(&nothing);
    let body: Bytes = match (call.stream, &kept.body) {
        (true, _) => {
            let mut encoder = call.caller.encoder(request);
            let mut out = Vec::new();
            replay::events(&kept.answer).iter().for_each(|event| encoder.encode(event, &mut out));
            headers.push((CONTENT_TYPE, HeaderValue::from_static(call.caller.framing().content_type())));
            headers.push((CACHE_CONTROL, HeaderValue::from_static("no-cache")));
            out.into()
        }
        (false, Some(body)) => body.clone(),
        (false, None) => call.caller.encode_answer(&kept.answer, request, &mut Dropped::default()).into(),
    };
    if !call.stream {
        headers.push((CONTENT_TYPE, JSON));
    }
    answer::send(serving.session, serving.ctx, Answer { status: StatusCode::OK, headers, body }).await
}
