//! Spans on their way to a collector: OTLP over HTTP, as protobuf, from a thread of its own.
//!
//! The messages are those of `opentelemetry-proto`, the connection is Pingora's. A collector that is slow or gone costs
//! spans, which are counted, and no request.

use std::collections::BTreeMap;
use std::io;
use std::net::ToSocketAddrs;
use std::sync::{Arc, Mutex, PoisonError, mpsc as sync_mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Uri};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use pingora::connectors::http::v1::Connector;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;
use prometheus::IntCounter;
use prost::Message;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, sleep_until, timeout};

use super::{Attempt, Trace};
use crate::config::Problems;
use crate::config::telemetry::{HeaderText, Tracing as Config};
use crate::telemetry::exchange::{AiCall, TracedCall};
use crate::telemetry::metrics::{Metrics, Outcome};
use crate::telemetry::redact::Redaction;
use crate::variables::{Scope, original_target, split_target};

/// Spans in one delivery; the default of OpenTelemetry's own batch processor.
const BATCH: usize = 512;
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How long a closing exporter may take for what is left.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// An answer of a collector is a few bytes.
const MAX_ANSWER: usize = 64 << 10;

/// Where and how spans are sent.
#[derive(Clone, PartialEq)]
pub struct Plan {
    tls: bool,
    host: String,
    port: u16,
    /// Host and port as in the address.
    authority: String,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    resource: Vec<(String, String)>,
    queue: usize,
    interval: Duration,
    timeout: Duration,
}

impl std::fmt::Debug for Plan {
    // Headers may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").field("authority", &self.authority).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Plan {
    pub fn compile(config: &Config, endpoint: &str, path: &str, problems: &mut Problems) -> Option<Plan> {
        let before = problems.0.len();
        if !(1..=1 << 20).contains(&config.queue) {
            problems.add(format!("{path}.queue"), "has to be between 1 and 1048576");
        }
        for (name, duration) in [("interval", config.interval), ("timeout", config.timeout)] {
            if duration.get().is_zero() {
                problems.add(format!("{path}.{name}"), "has to be more than 0");
            }
        }
        let headers = headers(&config.headers, &format!("{path}.headers"), problems);
        let Some((tls, uri)) = parse_endpoint(endpoint) else {
            let message = format!("`{endpoint}` is not an address such as http://collector:4318/v1/traces");
            problems.add(format!("{path}.endpoint"), message);
            return None;
        };
        let host = uri.host().unwrap_or_default();
        let mut resource = BTreeMap::from([
            ("service.name".to_owned(), config.service_name.clone()),
            ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ]);
        resource.extend(config.attributes.clone());
        let plan = Plan {
            tls,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: uri.authority().map(ToString::to_string).unwrap_or_default(),
            path: match uri.path_and_query().map(|path| path.as_str()) {
                // What the OTLP specification appends to an address without a path.
                None | Some("/") => "/v1/traces".to_owned(),
                Some(path) => path.to_owned(),
            },
            headers,
            resource: resource.into_iter().collect(),
            queue: config.queue,
            interval: config.interval.get(),
            timeout: config.timeout.get(),
        };
        (problems.0.len() == before).then_some(plan)
    }
}

fn parse_endpoint(endpoint: &str) -> Option<(bool, Uri)> {
    let uri: Uri = endpoint.parse().ok()?;
    let tls = match uri.scheme_str()? {
        "http" => false,
        "https" => true,
        _ => return None,
    };
    let authority = uri.authority()?;
    (!authority.host().is_empty() && !authority.as_str().contains('@')).then_some((tls, uri))
}

fn headers(
    written: &BTreeMap<String, HeaderText>,
    path: &str,
    problems: &mut Problems,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::new();
    for (name, HeaderText(text)) in written {
        let place = format!("{path}.{name}");
        let value = match (text.strip_prefix("env:"), text.strip_prefix("file:")) {
            (Some(variable), _) => {
                std::env::var(variable).map_err(|_| format!("the environment has no variable `{variable}`"))
            }
            (_, Some(file)) => {
                std::fs::read_to_string(file).map_err(|error| format!("`{file}` cannot be read: {error}"))
            }
            _ => Ok(text.clone()),
        };
        match (HeaderName::from_bytes(name.as_bytes()), value.map(|value| HeaderValue::from_str(value.trim()))) {
            (Ok(name), Ok(Ok(value))) => headers.push((name, value)),
            (Err(_), _) => problems.add(place, "is not a name that a header can have"),
            (_, Err(message)) => problems.add(place, message),
            (_, Ok(Err(_))) => problems.add(place, "is not a value that a header can have"),
        }
    }
    headers
}

/// The queue before a collector, and the thread that empties it.
pub struct Exporter {
    queue: mpsc::Sender<Span>,
    dropped: IntCounter,
    closing: Arc<Notify>,
    finished: Mutex<sync_mpsc::Receiver<()>>,
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}

impl Exporter {
    pub fn start(plan: &Plan, metrics: &Metrics) -> io::Result<Exporter> {
        // A runtime of its own: requests' runtimes may come and go, and must not share their threads with this.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (queue, spans) = mpsc::channel(plan.queue);
        let (done, finished) = sync_mpsc::channel();
        let closing = Arc::new(Notify::new());
        let delivery = Delivery {
            plan: plan.clone(),
            spans,
            closing: closing.clone(),
            is_closing: false,
            sent: metrics.spans_sent.clone(),
            dropped: metrics.spans_dropped.clone(),
            reported: None,
        };
        std::thread::Builder::new().name("traces".to_owned()).spawn(move || {
            runtime.block_on(delivery.run());
            // The other side is gone if nobody waits.
            let _ = done.send(());
        })?;
        Ok(Exporter { queue, dropped: metrics.spans_dropped.clone(), closing, finished: Mutex::new(finished) })
    }

    pub fn send(&self, spans: Vec<Span>) {
        for span in spans {
            if self.queue.try_send(span).is_err() {
                self.dropped.inc();
            }
        }
    }

    pub fn close(&self) {
        self.closing.notify_one();
        let finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        // An error that says the thread has ended is as good.
        let _ = finished.recv_timeout(CLOSE_WITHIN);
    }
}

/// What the thread works with.
struct Delivery {
    plan: Plan,
    spans: mpsc::Receiver<Span>,
    closing: Arc<Notify>,
    is_closing: bool,
    sent: IntCounter,
    dropped: IntCounter,
    reported: Option<Instant>,
}

/// Why a delivery failed, and whether the same one may be taken later.
struct Failure {
    message: String,
    again: bool,
}

impl Delivery {
    async fn run(mut self) {
        // Made when it is first needed: it reads the certificates of the system.
        let mut connector = None;
        while let Some(batch) = self.next_batch().await {
            let connector = connector.get_or_insert_with(|| Connector::new(None));
            self.deliver(connector, batch).await;
        }
    }

    /// Waits for spans, and then for more of them until the batch is full or the interval is over. `None`: the end.
    async fn next_batch(&mut self) -> Option<Vec<Span>> {
        let mut batch = Vec::new();
        let Delivery { spans, closing, is_closing, plan, .. } = self;
        // Counts from the first span, which itself is waited for without end.
        let mut due = Instant::now();
        loop {
            let room = BATCH - batch.len();
            let first = batch.is_empty();
            tokio::select! {
                biased;
                count = spans.recv_many(&mut batch, room) => {
                    if count == 0 || batch.len() == BATCH {
                        break;
                    }
                    if first {
                        due = Instant::now() + plan.interval;
                    }
                }
                () = closing.notified(), if !*is_closing => {
                    *is_closing = true;
                    // What is in the queue still comes out of it.
                    spans.close();
                }
                () = sleep_until(due.into()), if !first => break,
            }
        }
        (!batch.is_empty()).then_some(batch)
    }

    async fn deliver(&mut self, connector: &Connector, batch: Vec<Span>) {
        let count = batch.len() as u64;
        let message = Bytes::from(self.request(batch).encode_to_vec());
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let result = match timeout(self.plan.timeout, post(&self.plan, connector, message.clone())).await {
                Ok(result) => result,
                Err(_) => Err(Failure { message: "no answer in time".to_owned(), again: true }),
            };
            match result {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    self.sent.inc_by(count - rejected);
                    self.dropped.inc_by(rejected);
                    return;
                }
                Err(failure) if failure.again && attempt < ATTEMPTS && !self.is_closing => {
                    // A close ends the pause, and the attempt after it is the last.
                    tokio::select! {
                        () = sleep(pause) => pause *= 4,
                        () = self.closing.notified() => {
                            self.is_closing = true;
                            self.spans.close();
                        }
                    }
                }
                Err(failure) => {
                    self.dropped.inc_by(count);
                    self.report(&failure);
                    return;
                }
            }
        }
    }

    fn report(&mut self, failure: &Failure) {
        if self.reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            log::warn!("cannot send traces to {}: {}; spans are dropped", self.plan.authority, failure.message);
            self.reported = Some(Instant::now());
        }
    }

    fn request(&self, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let scope = InstrumentationScope {
            name: "headgate".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        };
        let attributes = self.plan.resource.iter().map(|(name, value)| text(name, value.as_str())).collect();
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes, ..Default::default() }),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..Default::default() }],
                ..Default::default()
            }],
        }
    }
}

/// Sends one message; returns the number of spans that the collector did not want.
async fn post(plan: &Plan, connector: &Connector, message: Bytes) -> Result<u64, Failure> {
    let failed = |error: Box<pingora::Error>| Failure { message: error.to_string(), again: true };
    let mut peer = HttpPeer::new(resolve(plan).await?, plan.tls, plan.host.clone());
    peer.options.connection_timeout = Some(plan.timeout);
    peer.options.read_timeout = Some(plan.timeout);
    peer.options.write_timeout = Some(plan.timeout);

    let (mut session, _) = connector.get_http_session(&peer).await.map_err(failed)?;
    let head = head(plan, message.len()).map_err(failed)?;
    session.write_request_header(Box::new(head)).await.map_err(failed)?;
    session.write_body(&message).await.map_err(failed)?;
    session.finish_body().await.map_err(failed)?;
    session.read_response().await.map_err(failed)?;
    session.respect_keepalive();
    let status = session.get_status().map_or(0, |status| status.as_u16());
    let mut answer = Vec::new();
    while let Some(chunk) = session.read_body_bytes().await.map_err(failed)? {
        if answer.len() + chunk.len() > MAX_ANSWER {
            return Err(Failure { message: "the answer is too long".to_owned(), again: false });
        }
        answer.extend_from_slice(&chunk);
    }
    connector.release_http_session(session, &peer, Some(Duration::from_secs(60))).await;
    match status {
        200..=299 => Ok(rejected(&answer)),
        // Those that the OTLP specification calls retryable.
        429 | 502..=504 => Err(Failure { message: format!("it answers {status}"), again: true }),
        _ => Err(Failure { message: format!("it answers {status}"), again: false }),
    }
}

async fn resolve(plan: &Plan) -> Result<std::net::SocketAddr, Failure> {
    let name = (plan.host.clone(), plan.port);
    // The resolver of the system blocks. It is asked anew each time, so that a collector may move.
    let found = tokio::task::spawn_blocking(move || name.to_socket_addrs().map(|mut addresses| addresses.next())).await;
    match found {
        Ok(Ok(Some(address))) => Ok(address),
        Ok(Err(error)) => Err(Failure { message: error.to_string(), again: true }),
        _ => Err(Failure { message: "its name has no address".to_owned(), again: true }),
    }
}

fn head(plan: &Plan, length: usize) -> pingora::Result<RequestHeader> {
    let mut head = RequestHeader::build("POST", plan.path.as_bytes(), Some(8))?;
    head.insert_header(http::header::HOST, &plan.authority)?;
    head.insert_header(http::header::CONTENT_TYPE, "application/x-protobuf")?;
    head.insert_header(http::header::CONTENT_LENGTH, length)?;
    head.insert_header(http::header::USER_AGENT, concat!("headgate/", env!("CARGO_PKG_VERSION")))?;
    for (name, value) in &plan.headers {
        head.insert_header(name, value)?;
    }
    Ok(head)
}

fn rejected(answer: &[u8]) -> u64 {
    let answer = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
    answer.partial_success.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0))
}

/// The spans of a finished request by the semantic conventions for HTTP: the gateway's own, and one for each attempt. Those of
/// attempts that ask a model follow the conventions for generative AI too.
pub fn spans(trace: &Trace, scope: &Scope<'_>, redaction: &Redaction) -> Vec<Span> {
    let mut spans = Vec::with_capacity(1 + trace.attempts.len());
    spans.push(server_span(trace, scope, redaction));
    let attempts = trace.attempts.iter().enumerate();
    spans.extend(attempts.map(|(resend, attempt)| client_span(trace, scope, attempt, resend)));
    spans
}

fn server_span(trace: &Trace, scope: &Scope<'_>, redaction: &Redaction) -> Span {
    let Scope { exchange, request, .. } = *scope;
    let (path, query) = split_target(original_target(scope));
    let method = method(request);
    let mut name = method.to_owned();
    let mut attributes = vec![
        text("http.request.method", method_attribute(method)),
        text("url.path", lossy(path)),
        text("url.scheme", exchange.scheme.as_str()),
        text("server.address", exchange.host.as_str()),
        number("server.port", u64::from(exchange.port)),
        text("client.address", exchange.client.to_string()),
        text("network.protocol.version", protocol_version(request)),
        number("http.request.body.size", exchange.request_bytes),
        number("http.response.body.size", exchange.response_bytes),
        text("headgate.request_id", lossy(exchange.request_id.as_bytes())),
        text("headgate.listener", &*exchange.listener),
    ];
    if let Some(query) = query {
        attributes.push(text("url.query", lossy(&redaction.query(query))));
    }
    if let Some(agent) = request.headers.get(http::header::USER_AGENT) {
        attributes.push(text("user_agent.original", lossy(agent.as_bytes())));
    }
    if let Some(route) = &exchange.route {
        let route = format!("{}/{}", route.service, route.route);
        name = format!("{name} {route}");
        attributes.push(text("http.route", route));
    }
    if let Some(upstream) = &exchange.upstream {
        attributes.push(text("headgate.upstream", &**upstream));
    }
    if exchange.status != 0 {
        attributes.push(number("http.response.status_code", u64::from(exchange.status)));
    }
    // What is the client's fault is no error of this span.
    let failed = exchange.status == 0 || exchange.status >= 500;
    if failed {
        let kind = exchange.reason.map_or_else(|| exchange.status.to_string(), |reason| reason.label().to_owned());
        attributes.push(text("error.type", kind));
    }
    Span {
        span_id: trace.span.bytes().to_vec(),
        parent_span_id: trace.parent.map(|parent| parent.bytes().to_vec()).unwrap_or_default(),
        name,
        kind: SpanKind::Server as i32,
        attributes,
        status: failed.then(error_status),
        ..common(trace, trace.at, exchange.duration)
    }
}

fn client_span(trace: &Trace, scope: &Scope<'_>, attempt: &Attempt, resend: usize) -> Span {
    let method = method(scope.request);
    // An attempt without an end was left by its client.
    let (outcome, mut duration, status) = attempt.end.unwrap_or((Outcome::Cancelled, attempt.started.elapsed(), None));
    let mut attributes = vec![text("http.request.method", method_attribute(method))];
    match attempt.target.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?))) {
        Some((host, port)) => {
            attributes.push(text("server.address", host));
            attributes.push(number("server.port", u64::from(port)));
        }
        None => attributes.push(text("server.address", &*attempt.target)),
    }
    if resend > 0 {
        attributes.push(number("http.request.resend_count", resend as u64));
    }
    if let Some(status) = status {
        attributes.push(number("http.response.status_code", u64::from(status)));
    }
    let failed = outcome != Outcome::Answered || status.is_some_and(|status| status >= 400);
    if failed {
        let kind = status.map_or_else(|| outcome.label().to_owned(), |status| status.to_string());
        attributes.push(text("error.type", kind));
    }
    let mut name = method.to_owned();
    if let (Some((provider, model)), Some(call)) = (&attempt.asks, &scope.exchange.ai) {
        name = format!("{} {model}", call.operation);
        attributes.push(text("gen_ai.operation.name", call.operation));
        attributes.push(text("gen_ai.provider.name", &**provider));
        attributes.push(text("gen_ai.request.model", &**model));
        attributes.push(text("headgate.ai.requested_model", &*call.requested));
        if call.stream {
            attributes.push(flag("gen_ai.request.stream", true));
        }
        if let Some(traced) = &call.traced {
            parameters(traced, &mut attributes);
        }
        // The answer is that of the last attempt, which lasts as long as it.
        if resend + 1 == trace.attempts.len() && outcome == Outcome::Answered {
            duration = attempt.started.elapsed();
            answer(call, &mut attributes);
        }
    }
    Span {
        span_id: attempt.span.bytes().to_vec(),
        parent_span_id: trace.span.bytes().to_vec(),
        name,
        kind: SpanKind::Client as i32,
        attributes,
        status: failed.then(error_status),
        ..common(trace, attempt.at, duration)
    }
}

/// What a call asks for, as the semantic conventions for generative AI name it.
fn parameters(call: &TracedCall, attributes: &mut Vec<KeyValue>) {
    let whole = |attributes: &mut Vec<KeyValue>, name, value: Option<u64>| {
        attributes.extend(value.map(|value| number(name, value)));
    };
    let real = |attributes: &mut Vec<KeyValue>, name, value: Option<f64>| {
        attributes.extend(value.map(|value| attribute(name, any_value::Value::DoubleValue(value))));
    };
    whole(attributes, "gen_ai.request.max_tokens", call.max_tokens);
    real(attributes, "gen_ai.request.temperature", call.temperature);
    real(attributes, "gen_ai.request.top_p", call.top_p);
    whole(attributes, "gen_ai.request.top_k", call.top_k);
    attributes.extend(call.seed.map(|seed| attribute("gen_ai.request.seed", any_value::Value::IntValue(seed))));
    real(attributes, "gen_ai.request.frequency_penalty", call.frequency_penalty);
    real(attributes, "gen_ai.request.presence_penalty", call.presence_penalty);
    // Said only where it is not one.
    whole(attributes, "gen_ai.request.choice.count", call.choices.filter(|count| *count != 1));
    if !call.stop_sequences.is_empty() {
        attributes.push(texts("gen_ai.request.stop_sequences", call.stop_sequences.iter().map(String::as_str)));
    }
    attributes.extend(call.response_id.as_ref().map(|id| text("gen_ai.response.id", id.as_str())));
    attributes.extend(call.response_model.as_ref().map(|model| text("gen_ai.response.model", model.as_str())));
}

/// What became of a call.
fn answer(call: &AiCall, attributes: &mut Vec<KeyValue>) {
    attributes.extend(call.finish.map(|finish| texts("gen_ai.response.finish_reasons", [finish].into_iter())));
    attributes.extend(call.first_token.map(|first| {
        let seconds = any_value::Value::DoubleValue(first.as_secs_f64());
        attribute("gen_ai.response.time_to_first_chunk", seconds)
    }));
    if let Some(tokens) = call.tokens {
        attributes.push(number("gen_ai.usage.input_tokens", tokens.input));
        attributes.push(number("gen_ai.usage.output_tokens", tokens.output));
        attributes.push(number("gen_ai.usage.cache_read.input_tokens", tokens.cache_read));
        attributes.push(number("gen_ai.usage.cache_creation.input_tokens", tokens.cache_write));
        attributes.push(number("gen_ai.usage.reasoning.output_tokens", tokens.reasoning));
    }
    attributes.extend(call.cost.map(|nanos| {
        let dollars = any_value::Value::DoubleValue(nanos as f64 / 1e9);
        attribute("headgate.ai.cost", dollars)
    }));
}

fn common(trace: &Trace, at: SystemTime, duration: Duration) -> Span {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Span {
        trace_id: trace.id.bytes().to_vec(),
        trace_state: trace.state.as_text(),
        // Sampled.
        flags: 1,
        start_time_unix_nano: since.as_nanos() as u64,
        end_time_unix_nano: (since + duration).as_nanos() as u64,
        ..Default::default()
    }
}

fn error_status() -> Status {
    Status { code: StatusCode::Error as i32, message: String::new() }
}

/// The method in a span's name; strangers choose methods, so that unknown ones share a name.
fn method(request: &RequestHeader) -> &'static str {
    const KNOWN: &[&str] = &["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE", "CONNECT"];
    KNOWN.iter().find(|known| **known == request.method.as_str()).copied().unwrap_or("HTTP")
}

fn method_attribute(method: &'static str) -> &'static str {
    if method == "HTTP" { "_OTHER" } else { method }
}

fn protocol_version(request: &RequestHeader) -> &'static str {
    match request.version {
        http::Version::HTTP_2 => "2",
        http::Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.into()))
}

fn texts<'t>(key: &str, values: impl Iterator<Item = &'t str>) -> KeyValue {
    let value = |text: &str| AnyValue { value: Some(any_value::Value::StringValue(text.to_owned())) };
    attribute(key, any_value::Value::ArrayValue(ArrayValue { values: values.map(value).collect() }))
}

fn flag(key: &str, value: bool) -> KeyValue {
    attribute(key, any_value::Value::BoolValue(value))
}

fn number(key: &str, value: u64) -> KeyValue {
    attribute(key, any_value::Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}
