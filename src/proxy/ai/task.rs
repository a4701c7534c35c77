//! Calls of models beyond chat: vectors, ranks, images, speech, moderation, and how many tokens a chat would have.
//!
//! They name a model as chats do, and go from target to target as chats do. A provider that speaks the caller's dialect gets
//! what the caller wrote, but for the model, and its answer passes as it comes; others are asked in their own words.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use pingora::proxy::Session;

use super::budget::{self, Asked, Bill, Size};
use super::call::SHOWN;
use super::failed::{Failed, refused_by};
use super::fallback::{Chosen, Tried, nobody};
use super::outgoing::{Body, Outgoing, Unsent};
use super::refusal::{self, no_such_model};
use super::{JSON, body, dropped_header, guard, relay, told};
use crate::ai::catalog;
use crate::ai::chat::{ChatRequest, Dropped, Failure, FailureKind};
use crate::ai::cost::Used;
use crate::ai::endpoint::Endpoint;
use crate::ai::form::{self, Form};
use crate::ai::formats::embeddings::{self, Dialect};
use crate::ai::formats::{Format, PathFacts, bedrock, rerank};
use crate::ai::metering::Found;
use crate::ai::operation::{Operation, Task};
use crate::ai::passing::Head;
use crate::ai::targets::Target;
use crate::ai::{count, usage};
use crate::filters::filter::Answer;
use crate::proxy::context::Context;
use crate::proxy::{Proxy, answer};
use crate::snapshot::Origin;
use crate::snapshot::ai::{AiBackend, Provider, Virtual};
use crate::telemetry::exchange::AiCall;

/// What the prompt and the pictures of a form are taken for.
const IN_FORM: u64 = 4000;
/// Bytes of a millisecond of a recording that is compressed well.
const LEAST_BYTES: u64 = 4;

/// Tells that tokens were not counted but estimated.
const ESTIMATED: HeaderName = HeaderName::from_static("headgate-ai-estimated");

/// Answers a call.
pub async fn answer(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    ai: &AiBackend,
    operation: Operation<'_>,
) -> pingora::Result<()> {
    let format = operation.format();
    let (body, _held) = match body::read(proxy, session, ctx, &ai.models).await? {
        Ok(read) => read,
        Err(error) => return answer::send_error(session, ctx, error).await,
    };
    let headers = &session.req_header().headers;
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let call = match Call::read(operation, content_type.as_deref(), &body, ai) {
        Ok(call) => call,
        Err(failure) => return refusal::send(session, ctx, format, &failure.into()).await,
    };
    let name = call.name.clone();
    let Some(resolved) = ai.allows(&name).then(|| ai.models.resolve(&name)).flatten() else {
        return refusal::send(session, ctx, format, &no_such_model(&name).into()).await;
    };
    if !resolved.get().guardrails.is_empty() {
        return refusal::send(session, ctx, format, &guard::cannot_look().into()).await;
    }
    let record = AiCall::new(&name, format.name(), call.stream);
    let record = AiCall { operation: operation.name(), started: Some(Instant::now()), ..record };
    ctx.exchange.ai = Some(Box::new(record));
    let asked = Asked::Targets(&resolved.get().targets);
    if let Err(refusal) = budget::reserve(ctx, ai, format, &name, asked, &call.size()).await {
        return refusal::send(session, ctx, format, &refusal).await;
    }
    attempts(proxy, session, ctx, ai, resolved.get(), call).await
}

/// What is asked.
struct Call<'c> {
    operation: Operation<'c>,
    format: Format,
    name: String,
    stream: bool,
    written: Written<'c>,
    /// In the form that belongs to no vendor, once a provider of another format has to be asked.
    vectors: Option<embeddings::Request>,
    ranks: Option<rerank::Request>,
    chat: Option<ChatRequest>,
}

/// How the caller has written it.
enum Written<'c> {
    Json(Head),
    Form {
        form: Form,
        content_type: &'c str,
    },
    /// The model is in the path.
    Gemini(&'c Bytes),
}

impl<'c> Call<'c> {
    fn read(
        operation: Operation<'c>,
        content_type: Option<&'c str>,
        body: &'c Bytes,
        ai: &AiBackend,
    ) -> Result<Call<'c>, Failure> {
        let path_model = match operation {
            Operation::Embeddings { model, .. } => model,
            Operation::CountTokens { path, .. } => path.model,
            _ => None,
        };
        let written = match content_type {
            _ if path_model.is_some() => Written::Gemini(body),
            Some(content_type) if form::is_form(content_type) => {
                Written::Form { form: Form::read(content_type, body)?, content_type }
            }
            _ => Written::Json(Head::read(body)?),
        };
        let (named, stream) = match &written {
            Written::Json(head) => (head.model(), head.stream),
            Written::Form { form, .. } => (form.model(), form.stream),
            Written::Gemini(_) => (path_model, false),
        };
        let usual = match operation {
            Operation::Task(task) => task.usual_model(),
            // A default model is one to chat with.
            Operation::CountTokens { .. } => ai.default_model(),
            _ => None,
        };
        let name = named.or(usual).map(str::to_owned);
        let name = name.ok_or_else(|| Failure::invalid("model", "the call names no model"))?;
        let format = operation.format();
        Ok(Call { operation, format, name, stream, written, vectors: None, ranks: None, chat: None })
    }

    fn body(&self) -> &Bytes {
        match &self.written {
            Written::Json(head) => head.body(),
            Written::Gemini(body) => body,
            Written::Form { form, .. } => form.body(),
        }
    }

    /// What the caller wrote, with the provider's name of the model.
    fn passed_on(&self, model: &str) -> Vec<Bytes> {
        match &self.written {
            Written::Json(head) => vec![head.passed_on(Some(model), false)],
            Written::Form { form, .. } => form.passed_on(model),
            Written::Gemini(body) => match self.operation {
                Operation::Embeddings { .. } => vec![embeddings::rename(body, model)],
                _ => vec![(*body).clone()],
            },
        }
    }

    fn content_type(&self) -> HeaderValue {
        match &self.written {
            Written::Form { content_type, .. } => HeaderValue::from_str(content_type).unwrap_or(JSON),
            _ => JSON,
        }
    }

    fn vectors(&mut self, dialect: Dialect) -> Result<&embeddings::Request, Failure> {
        if self.vectors.is_none() {
            self.vectors = Some(dialect.decode(self.body())?);
        }
        self.vectors.as_ref().ok_or_else(unread)
    }

    fn ranks(&mut self) -> Result<&rerank::Request, Failure> {
        if self.ranks.is_none() {
            self.ranks = Some(rerank::read_request(self.body())?);
        }
        self.ranks.as_ref().ok_or_else(unread)
    }

    fn chat(&mut self, path: PathFacts<'_>) -> Result<&ChatRequest, Failure> {
        if self.chat.is_none() {
            let caller = self.format.caller().ok_or_else(unread)?;
            self.chat = Some(caller.decode_request(&count::unwrap_gemini(self.body()), path)?);
        }
        self.chat.as_ref().ok_or_else(unread)
    }

    /// What budgets reserve for it.
    fn size(&self) -> Size<'_> {
        let body = self.body();
        let is_form = matches!(self.written, Written::Form { .. });
        let of_prompt = if is_form { Size { input: IN_FORM, ..Size::nothing() } } else { Size::of_prompt(body) };
        match self.operation {
            Operation::CountTokens { .. } => Size::nothing(),
            Operation::Task(Task::ImageGeneration | Task::ImageEdit | Task::ImageVariation) => {
                let images = if let Written::Json(head) = &self.written { head.choices } else { 1 };
                Size { more: Used { images, ..Used::default() }, ..of_prompt }
            }
            Operation::Task(Task::Speech) => {
                Size { more: Used { characters: self.characters(), ..Used::default() }, ..of_prompt }
            }
            Operation::Task(Task::Transcription | Task::Translation) => {
                // As long as it may be for its size: nobody looks into recordings.
                let milliseconds = body.len() as u64 / LEAST_BYTES;
                let more = Used { milliseconds, ..Used::default() };
                Size { input: milliseconds / 100, output: Some(milliseconds / 200), more, ..Size::nothing() }
            }
            _ => of_prompt,
        }
    }

    /// Letters of a text that is to be spoken, which is what speech is billed by.
    fn characters(&self) -> u64 {
        #[derive(serde::Deserialize)]
        struct Spoken<'s> {
            #[serde(borrow)]
            input: std::borrow::Cow<'s, str>,
        }
        match self.operation {
            Operation::Task(Task::Speech) => serde_json::from_slice::<Spoken<'_>>(self.body())
                .map_or(0, |spoken| spoken.input.chars().count() as u64),
            _ => 0,
        }
    }
}

fn unread() -> Failure {
    Failure::new(FailureKind::Server, "the call was not read")
}

/// What one provider is asked.
struct Ask<'a> {
    endpoint: &'a Endpoint,
    origin: &'a Arc<Origin>,
    target: String,
    /// One exchange each.
    bodies: Vec<Vec<Bytes>>,
    content_type: HeaderValue,
    dropped: Dropped,
    /// The answer is written anew for the caller; otherwise it passes.
    translated: bool,
}

impl<'a> Ask<'a> {
    fn prepare(call: &mut Call<'_>, provider: &'a Provider, model: &str) -> Result<Ask<'a>, Failure> {
        match call.operation {
            Operation::Embeddings { dialect, .. } => Ask::vectors(call, provider, model, dialect),
            Operation::CountTokens { path, .. } => Ask::count(call, provider, model, path),
            Operation::Task(Task::Rerank) => Ask::ranks(call, provider, model),
            Operation::Task(task) => Ask::task(call, provider, model, task),
            _ => Err(unread()),
        }
    }

    /// What the caller wrote goes on as it is.
    fn passing(
        call: &Call<'_>,
        (endpoint, origin): (&'a Endpoint, &'a Arc<Origin>),
        target: String,
        model: &str,
    ) -> Ask<'a> {
        let (bodies, content_type) = (vec![call.passed_on(model)], call.content_type());
        Ask { endpoint, origin, target, bodies, content_type, dropped: Dropped::default(), translated: false }
    }

    fn translated(
        (endpoint, origin): (&'a Endpoint, &'a Arc<Origin>),
        target: String,
        bodies: Vec<Bytes>,
        dropped: Dropped,
    ) -> Ask<'a> {
        let bodies = bodies.into_iter().map(|body| vec![body]).collect();
        Ask { endpoint, origin, target, bodies, content_type: JSON, dropped, translated: true }
    }

    fn vectors(call: &mut Call<'_>, provider: &'a Provider, model: &str, dialect: Dialect) -> Result<Ask<'a>, Failure> {
        serves(provider, catalog::Operation::Embeddings)?;
        let path = |endpoint: &Endpoint, method: &str| match endpoint.format {
            Format::Gemini => endpoint.gemini_path(model, method),
            Format::Cohere => endpoint.path("/embed"),
            Format::Ollama => endpoint.path("/api/embed"),
            Format::Bedrock => endpoint.path(&bedrock::path(model, bedrock::Operation::Invoke)),
            _ => endpoint.path(provider.spec.path(catalog::Operation::Embeddings)),
        };
        if let Some(same) = provider.speaking(dialect.format()) {
            let method = if dialect == Dialect::Gemini { "embedContent" } else { "batchEmbedContents" };
            return Ok(Ask::passing(call, same, path(same.0, method), model));
        }
        let mut others = provider.endpoints().filter(|(endpoint, _)| embeddings::is_spoken(endpoint.format, model));
        let other = others.next().ok_or_else(|| serves_no(provider, catalog::Operation::Embeddings))?;
        let mut dropped = Dropped::default();
        let request = call.vectors(dialect)?;
        let bodies = embeddings::encode(request, other.0.format, model, dialect, &mut dropped)?;
        Ok(Ask::translated(other, path(other.0, "batchEmbedContents"), bodies, dropped))
    }

    fn ranks(call: &mut Call<'_>, provider: &'a Provider, model: &str) -> Result<Ask<'a>, Failure> {
        serves(provider, catalog::Operation::Rerank)?;
        let found = provider.speaking(Format::Cohere).or_else(|| provider.speaking(Format::OpenAiChat));
        let at = found.ok_or_else(|| serves_no(provider, catalog::Operation::Rerank))?;
        let path = at.0.path(provider.spec.path(catalog::Operation::Rerank));
        let form = rerank::Form::of(at.0.format, provider.spec.quirks());
        if form == rerank::Form::Common || call.ranks()?.passes(form) {
            return Ok(Ask::passing(call, at, path, model));
        }
        let mut dropped = Dropped::default();
        let body = call.ranks()?.encode(form, model, &mut dropped)?;
        Ok(Ask::translated(at, path, vec![body], dropped))
    }

    fn task(call: &Call<'_>, provider: &'a Provider, model: &str, task: Task) -> Result<Ask<'a>, Failure> {
        serves(provider, task.wants())?;
        let at = provider.speaking(Format::OpenAiChat).ok_or_else(|| serves_no(provider, task.wants()))?;
        let path = at.0.path(task.path().unwrap_or(provider.spec.path(task.wants())));
        Ok(Ask::passing(call, at, path, model))
    }

    fn count(
        call: &mut Call<'_>,
        provider: &'a Provider,
        model: &str,
        path: PathFacts<'_>,
    ) -> Result<Ask<'a>, Failure> {
        let quirks = provider.spec.quirks();
        let counts = |at: &(&'a Endpoint, &'a Arc<Origin>)| count::path(at.0, model, quirks);
        if let Some(same) = provider.speaking(call.format)
            && let Some(target) = counts(&same)
        {
            return Ok(Ask::passing(call, same, target, model));
        }
        let found = provider.endpoints().find_map(|at| Some((counts(&at)?, at)));
        let (target, at) =
            found.ok_or_else(|| Failure::new(FailureKind::NotFound, format!("{} counts no tokens", provider.name)))?;
        let mut dropped = Dropped::default();
        let body = count::prompt(call.chat(path)?, at.0.format, model, quirks, &mut dropped)?;
        Ok(Ask::translated(at, target, vec![body], Dropped::default()))
    }
}

fn serves(provider: &Provider, operation: catalog::Operation) -> Result<(), Failure> {
    match provider.spec.serves(operation) {
        true => Ok(()),
        false => Err(serves_no(provider, operation)),
    }
}

fn serves_no(provider: &Provider, operation: catalog::Operation) -> Failure {
    Failure::new(FailureKind::NotFound, format!("{} serves no {}", provider.name, operation.name()))
}

/// Tries targets until one has answered, or none is left that may.
async fn attempts(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    ai: &AiBackend,
    model: &Virtual,
    mut call: Call<'_>,
) -> pingora::Result<()> {
    let mut tried = Tried::default();
    let mut left = model.attempts;
    while left > 0 {
        let Some((provider, target, key)) = tried.next(ctx, &ai.models, model) else { break };
        let ask = match Ask::prepare(&mut call, provider, &target.model) {
            Ok(ask) => ask,
            // What one provider cannot be asked another may be.
            Err(failure) => {
                tried.cannot(target, failure);
                left -= 1;
                continue;
            }
        };
        let asked = Asked::Targets(std::slice::from_ref(target));
        let paid = match budget::reserve_attempt(ctx, &ai.models, provider, key, asked, &call.size()).await {
            Ok(paid) => paid,
            Err(failure) => {
                tried.unpaid(provider, target, key, failure);
                continue;
            }
        };
        left -= 1;
        let bill = Bill::open(ctx, paid);
        let ended = attempt(proxy, session, ctx, &mut call, (provider, target, key), ask).await;
        if ended.is_err() {
            budget::cut(ctx);
        }
        bill.settle(ctx);
        let failed = match ended? {
            Ended::Served => return Ok(()),
            Ended::Refused(error) => return answer::send_error(session, ctx, error).await,
            Ended::Failed(failed) => failed,
        };
        let again = failed.again;
        tried.failed(model, provider, target, key, failed);
        if !again {
            break;
        }
    }
    let refusal = tried.last.unwrap_or_else(|| nobody(&ai.models, model));
    if let Operation::CountTokens { path, .. } = call.operation
        && refusal.failure.kind != FailureKind::InvalidRequest
    {
        return estimate(session, ctx, &mut call, path).await;
    }
    refusal::send(session, ctx, call.format, &refusal).await
}

/// How an attempt ended.
enum Ended {
    /// The caller has its answer.
    Served,
    /// The caller's body was refused.
    Refused(crate::error::Error),
    Failed(Failed),
}

async fn attempt(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    call: &mut Call<'_>,
    (provider, target, key): Chosen<'_>,
    ask: Ask<'_>,
) -> pingora::Result<Ended> {
    let started = Instant::now();
    let _in_flight = target.state.enter();
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, ask.content_type.clone());
    if let Some(accept) = session.req_header().headers.get(ACCEPT) {
        headers.insert(ACCEPT, accept.clone());
    }
    if !ask.translated {
        let sent = &session.req_header().headers;
        headers.extend(SHOWN.iter().filter_map(|shown| Some((shown.clone(), sent.get(shown)?.clone()))));
    }
    let mut answers: Vec<(HeaderMap, Bytes)> = Vec::with_capacity(ask.bodies.len());
    for pieces in ask.bodies {
        let outgoing = Outgoing {
            provider,
            endpoint: ask.endpoint,
            origin: ask.origin,
            key,
            model: target.model.clone(),
            method: Method::POST,
            target: ask.target.clone(),
            headers: headers.clone(),
            body: Body::Pieces(pieces),
            follows: !answers.is_empty(),
        };
        let mut exchange = match outgoing.send(proxy, session, ctx).await? {
            Ok(exchange) => exchange,
            Err(Unsent::Caller(error)) => return Ok(Ended::Refused(error)),
            Err(Unsent::Provider(failed)) => {
                target.state.failed();
                return Ok(Ended::Failed(failed));
            }
        };
        if !exchange.head.status.is_success() {
            let body = exchange.whole(session).await?.unwrap_or_default();
            let (status, headers) = (exchange.head.status.as_u16(), &exchange.head.headers);
            let failed = match ask.endpoint.format.provider() {
                Some(spoken) => refused_by(provider, key, spoken, status, headers, &body),
                None => Failed::new(FailureKind::of_status(status), format!("the provider answered with {status}")),
            };
            exchange.close(proxy).await;
            if failed.again {
                target.state.failed();
            }
            return Ok(Ended::Failed(failed));
        }
        if !ask.translated {
            target.state.began(started.elapsed());
            let dropped = dropped_header(&ask.dropped);
            let mut found = Found::default();
            let sent = relay::answer(&mut exchange, session, ctx, dropped, &mut found).await;
            exchange.close(proxy).await;
            settle(ctx, call, provider, target, found);
            if let (Ok(()), Some(record)) = (&sent, &mut ctx.exchange.ai) {
                record.served = true;
            }
            return sent.map(|()| Ended::Served);
        }
        let body = exchange.whole(session).await?;
        let head = exchange.head.headers.clone();
        exchange.close(proxy).await;
        match body {
            Ok(body) => answers.push((head, body)),
            Err(failed) => return Ok(Ended::Failed(failed)),
        }
    }
    let (body, found) = match translate(call, ask.endpoint.format, &target.model, &answers) {
        Ok(translated) => translated,
        Err(failure) => return Ok(Ended::Failed(failure.into())),
    };
    target.state.began(started.elapsed());
    settle(ctx, call, provider, target, found);
    let mut headers = vec![(CONTENT_TYPE, JSON)];
    headers.extend(dropped_header(&ask.dropped));
    if let Some(record) = &mut ctx.exchange.ai {
        record.served = true;
        headers.extend(told(record));
    }
    answer::send(session, ctx, Answer { status: StatusCode::OK, headers, body: body.into() }).await?;
    Ok(Ended::Served)
}

/// Writes what providers have answered for the caller.
fn translate(
    call: &Call<'_>,
    format: Format,
    model: &str,
    answers: &[(HeaderMap, Bytes)],
) -> Result<(Vec<u8>, Found), Failure> {
    let mut found = Found::default();
    let first = answers.first().map(|(_, body)| body).ok_or_else(unread)?;
    let body = match call.operation {
        Operation::Embeddings { dialect, .. } => {
            let request = call.vectors.as_ref().ok_or_else(unread)?;
            let made = embeddings::decode(format, model, answers, request.inputs.len())?;
            let tokens = made.input_tokens.unwrap_or_else(|| request.bytes().div_ceil(4));
            found.usage = Some(crate::ai::chat::Usage { input: tokens, ..Default::default() });
            dialect.encode(&made, request, model, tokens)
        }
        Operation::CountTokens { format, .. } => count::answer(format, count::decode(first)?),
        _ => {
            let request = call.ranks.as_ref().ok_or_else(unread)?;
            crate::ai::metering::document(first, &mut found);
            request.answer(first, model)?
        }
    };
    Ok((body, found))
}

/// Enters what was used into the record.
fn settle(ctx: &mut Context, call: &Call<'_>, provider: &Provider, target: &Target, mut found: Found) {
    let Some(record) = &mut ctx.exchange.ai else { return };
    if let Operation::CountTokens { .. } = call.operation {
        // Nobody bills it.
        record.cost = Some(0);
        return;
    }
    let characters = call.characters();
    if characters > 0 {
        found.used = Some(Used { characters, ..found.used.unwrap_or_default() });
    }
    usage::settle_found(record, &provider.spec, &target.model, &found);
}

/// Nobody counts: the answer is an estimate, and says so.
async fn estimate(
    session: &mut Session,
    ctx: &mut Context,
    call: &mut Call<'_>,
    path: PathFacts<'_>,
) -> pingora::Result<()> {
    let tokens = match call.chat(path) {
        Ok(request) => count::estimate(request),
        Err(failure) => return refusal::send(session, ctx, call.format, &failure.into()).await,
    };
    let mut headers = vec![(CONTENT_TYPE, JSON), (ESTIMATED, HeaderValue::from_static("true"))];
    if let Some(record) = &mut ctx.exchange.ai {
        record.served = true;
        record.cost = Some(0);
        headers.extend(told(record));
    }
    let body = count::answer(call.format, tokens).into();
    answer::send(session, ctx, Answer { status: StatusCode::OK, headers, body }).await
}
