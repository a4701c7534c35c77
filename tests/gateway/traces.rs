//! Traces: off unless asked for, the client's context continued, spans delivered, and nobody harmed by a bad collector.
#![cfg(feature = "otlp")]

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;

use crate::support::origin::Received;
use crate::support::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn traced(settings: &str) -> String {
    let interval = if settings.contains("interval") { "" } else { "interval: 50ms," };
    format!(
        "
tracing: {{ endpoint: 'http://{{{{collector}}}}/v1/traces', {interval} {settings} }}
access_log: {{ to: {{ file: '{{{{dir}}}}/access.log' }}, format: json }}
upstreams: {{ origin: {{ targets: [{{ address: '{{{{origin}}}}' }}] }} }}
services: {{ s: {{ routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }} }} }}
"
    )
}

/// An OTLP collector, an origin, and a gateway between them.
struct Site {
    collector: Origin,
    origin: Origin,
    gateway: Gateway,
}

async fn site(settings: &str) -> Site {
    let collector = Origin::start(|_| Reply::with(200, &[("Content-Type", "application/x-protobuf")], "")).await;
    let origin = Origin::named("a").await;
    let builder = Gateway::builder(&traced(settings)).origin(&origin);
    let gateway = builder.with("collector", collector.address).start().await;
    Site { collector, origin, gateway }
}

impl Site {
    /// The `traceparent` of the origin's last request: trace, span and flags.
    fn sent_on(&self) -> (String, String, String) {
        let request = self.origin.requests().pop().expect("a request at the origin");
        assert_eq!(request.headers.all("traceparent").count(), 1, "{:?}", request.headers);
        let value = request.headers.get("traceparent").unwrap().to_owned();
        let parts: Vec<&str> = value.split('-').collect();
        let [version, trace, span, flags] = parts[..] else { panic!("traceparent is {value:?}") };
        assert_eq!((version, trace.len(), span.len(), flags.len()), ("00", 32, 16, 2), "{value:?}");
        (trace.into(), span.into(), flags.into())
    }

    /// Waits for at least `n` spans.
    async fn spans(&self, n: usize) -> Vec<Span> {
        let all = || self.collector.requests().iter().flat_map(spans).collect::<Vec<_>>();
        let enough = eventually(PATIENCE, || async { all().len() >= n }).await;
        assert!(enough, "{n} spans were expected at the collector, {} came: {:#?}", all().len(), all());
        all()
    }
}

fn spans(delivery: &Received) -> Vec<Span> {
    let message = ExportTraceServiceRequest::decode(delivery.body.as_slice()).expect("an OTLP message");
    let of_scopes = message.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    of_scopes.flat_map(|scope| scope.spans).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of_kind(spans: &[Span], kind: SpanKind) -> &Span {
    spans.iter().find(|span| span.kind == kind as i32).unwrap_or_else(|| panic!("no {kind:?} span in {spans:#?}"))
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

fn sampled(flags: &str) -> Call {
    Call::get("/").header("traceparent", &format!("00-{TRACE}-{PARENT}-{flags}")).header("tracestate", "vendor=x")
}

#[tokio::test]
async fn a_clients_trace_is_continued_to_the_origin_and_the_collector() {
    let site = site("").await;
    site.gateway.call(&sampled("01")).await;
    let (trace, span, flags) = site.sent_on();
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"));
    assert_ne!(span, PARENT, "the origin's parent is the gateway");
    assert_eq!(site.origin.last().await.headers.get("tracestate"), Some("vendor=x"));

    let spans = site.spans(2).await;
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "{spans:#?}");
    let (server, client) = (of_kind(&spans, SpanKind::Server), of_kind(&spans, SpanKind::Client));
    assert_eq!(hex(&server.parent_span_id), PARENT);
    assert_eq!(client.parent_span_id, server.span_id);
    assert_eq!(hex(&client.span_id), span, "the origin continues the span of the attempt");
    assert_eq!(attribute(server, "http.response.status_code").as_deref(), Some("200"));
    assert_eq!(attribute(server, "http.route").as_deref(), Some("s/all"));
    assert!(server.end_time_unix_nano >= client.end_time_unix_nano && server.start_time_unix_nano > 0);

    let delivery = site.collector.last().await;
    assert_eq!((delivery.method.as_str(), delivery.target.as_str()), ("POST", "/v1/traces"));
    assert_eq!(delivery.headers.get("content-type"), Some("application/x-protobuf"));
    assert_eq!(site.gateway.access_log(1).await[0]["trace_id"], TRACE, "the log names the trace");
}

#[tokio::test]
async fn requests_without_a_context_begin_a_trace_of_their_own() {
    let site = site("sample: 100%").await;
    site.gateway.get("/one").await;
    let one = site.sent_on();
    site.gateway.get("/two").await;
    assert_ne!(site.sent_on().0, one.0, "each request is a trace");
    let spans = site.spans(4).await;
    let server = spans.iter().find(|span| hex(&span.trace_id) == one.0 && span.kind == SpanKind::Server as i32);
    assert_eq!(server.expect("the first trace").parent_span_id, Vec::<u8>::new());
}

#[tokio::test]
async fn without_a_collector_there_are_no_traces_and_contexts_pass_untouched() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    gateway.call(&sampled("01")).await;
    let headers = origin.last().await.headers;
    assert_eq!(headers.get("traceparent"), Some(format!("00-{TRACE}-{PARENT}-01").as_str()));
    assert_eq!(headers.get("tracestate"), Some("vendor=x"));
    gateway.get("/").await;
    assert_eq!(origin.requests().pop().unwrap().headers.get("traceparent"), None);
}

#[tokio::test]
async fn what_is_not_sampled_is_not_exported() {
    let site = site("sample: 0%").await;
    site.gateway.get("/").await;
    assert_eq!(site.sent_on().2, "00", "the origin learns that nobody records");
    site.gateway.call(&sampled("00")).await;
    assert_eq!((site.sent_on().0.as_str(), site.sent_on().2.as_str()), (TRACE, "00"), "the client's decision stands");
    // The one that is sampled comes last, so that the others would have come before it.
    site.gateway.call(&sampled("01")).await;
    let spans = site.spans(2).await;
    assert_eq!(spans.len(), 2, "{spans:#?}");
}

#[tokio::test]
async fn contexts_of_untrusted_clients_can_be_ignored() {
    let site = site("sample: 100%, parent: ignore").await;
    site.gateway.call(&sampled("01")).await;
    assert_ne!(site.sent_on().0, TRACE);
}

#[tokio::test]
async fn contexts_that_are_none_are_replaced() {
    let site = site("sample: 100%").await;
    for value in [
        "nonsense".to_owned(),
        format!("00-{}-{PARENT}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("ff-{TRACE}-{PARENT}-01"),
        format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
        format!("00-{TRACE}-{PARENT}-01-more"),
    ] {
        assert_eq!(site.gateway.call(&Call::get("/").header("traceparent", &value)).await.status, 200);
        assert_ne!(site.sent_on().0, TRACE, "{value:?}");
    }
}

#[tokio::test]
async fn secrets_stay_out_of_spans() {
    let site = site("sample: 100%").await;
    let canary = "canary-77aa";
    let call = Call::get(&format!("/?token={canary}&page=2")).header("Authorization", &format!("Bearer {canary}"));
    site.gateway.call(&call).await;
    site.spans(2).await;
    for delivery in site.collector.requests() {
        assert!(!String::from_utf8_lossy(&delivery.body).contains(canary), "{:#?}", spans(&delivery));
    }
}

#[tokio::test]
async fn each_attempt_is_a_span() {
    let site_yaml = traced("sample: 100%").replace(
        "targets: [{ address: '{{origin}}' }]",
        "targets: [{ address: '{{nobody}}' }, { address: '{{origin}}' }], retry: { attempts: 2 }",
    );
    let collector = Origin::start(|_| Reply::ok("")).await;
    let origin = Origin::named("a").await;
    let builder = Gateway::builder(&site_yaml).origin(&origin).with("collector", collector.address);
    let site = Site { collector, origin, gateway: builder.start().await };
    // Round robin: at least one of two requests meets the target where nobody listens.
    for _ in 0..2 {
        assert_eq!(site.gateway.get("/").await.status, 200);
    }
    let spans = site.spans(5).await;
    let failed: Vec<&Span> = spans.iter().filter(|span| attribute(span, "error.type").is_some()).collect();
    assert!(failed.iter().any(|span| span.kind == SpanKind::Client as i32), "{spans:#?}");
    assert!(
        spans.iter().any(|span| attribute(span, "http.request.resend_count").as_deref() == Some("1")),
        "{spans:#?}"
    );
}

#[tokio::test]
async fn a_collector_in_trouble_fails_no_request_and_losses_are_counted() {
    for trouble in [None, Some(500)] {
        let collector = Origin::start(move |_| match trouble {
            Some(status) => Reply::with(status, &[], ""),
            None => Reply::silence(),
        })
        .await;
        let origin = Origin::named("a").await;
        let yaml = traced("sample: 100%, queue: 8, timeout: 200ms");
        let builder = Gateway::builder(&yaml).origin(&origin).with("collector", collector.address);
        let gateway = builder.start().await;
        let mut client = gateway.connect().await;
        for _ in 0..100 {
            assert_eq!(client.get("/").await.unwrap().status, 200, "{trouble:?}");
        }
        let lost = gateway.metric_becomes("headgate_trace_spans_dropped_total", &[], |dropped| dropped >= 1.0).await;
        assert!(lost, "{trouble:?}");
    }
}

#[tokio::test]
async fn spans_are_delivered_before_the_process_leaves() {
    let mut site = site("sample: 100%, interval: 60s").await;
    site.gateway.get("/").await;
    site.gateway.signal(libc::SIGTERM);
    assert!(site.gateway.exit(PATIENCE).await.is_some());
    assert_eq!(site.spans(2).await.len(), 2);
}

/// Two providers of OpenAI's format, of which the first fails.
const MODELS: &str = "
tracing: { endpoint: 'http://{{collector}}/v1/traces', interval: 50ms }
consumers: { mobile: { credentials: [{ api_key: { hash: '{{hash}}' } }] } }
services:
  ai:
    routes: { all: { match: { path_prefix: / }, backend: { ai: {} } } }
    filters: [{ api_key: {} }]
ai:
  providers:
    first: { provider: openai, base_urls: { openai_chat: 'http://{{down}}/v1' }, keys: [{ secret: env:KEY }] }
    second: { provider: mistral, base_urls: { openai_chat: 'http://{{origin}}/v1' }, keys: [{ secret: env:KEY }] }
  models:
    smart: { strategy: in_order, targets: [{ model: first/gpt-4o }, { model: second/mistral-large-latest }] }
";

#[tokio::test]
async fn a_call_of_a_model_is_traced_and_counted_by_the_conventions_for_generative_ai() {
    let collector = Origin::start(|_| Reply::with(200, &[("Content-Type", "application/x-protobuf")], "")).await;
    let down = Origin::start(|_| Reply::with(500, &[], "{}")).await;
    let origin = Origin::start(|_| {
        let chunk = |more: &str| {
            format!(
                "data: {{\"id\":\"cmpl-7\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"large-2\",{more}}}\n\n"
            )
        };
        let parts = [
            chunk(r#""choices":[{"index":0,"delta":{"role":"assistant","content":"Hello"},"finish_reason":null}]"#),
            chunk(r#""choices":[{"index":0,"delta":{},"finish_reason":"stop"}]"#),
            chunk(r#""choices":[],"usage":{"prompt_tokens":50,"completion_tokens":20,"total_tokens":70}"#),
            "data: [DONE]\n\n".to_owned(),
        ];
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Reply::chunked(&[("Content-Type", "text/event-stream")], &parts, &[])
    })
    .await;
    let key = "k-e-y";
    let gateway = Gateway::builder(MODELS)
        .origin(&origin)
        .with("down", down.address)
        .with("collector", collector.address)
        .with("hash", crate::support::gateway::key_hash(key))
        .environment("KEY", "sk-1")
        .start()
        .await;
    let site = Site { collector, origin, gateway };
    let body = r#"{"model":"smart","messages":[{"role":"user","content":"my secret"}],"stream":true,"max_tokens":9,"temperature":0.5,"stop":["X"]}"#;
    let call = Call::post("/v1/chat/completions", body)
        .header("X-Api-Key", key)
        .header("traceparent", &format!("00-{TRACE}-{PARENT}-01"));
    assert_eq!(site.gateway.call(&call).await.status, 200);

    let spans = site.spans(3).await;
    let named =
        |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {spans:#?}"));
    let (first, second) = (named("chat gpt-4o"), named("chat mistral-large-latest"));
    assert_eq!((first.kind, second.kind), (SpanKind::Client as i32, SpanKind::Client as i32));
    let of = |span, key: &str| attribute(span, key).unwrap_or_else(|| panic!("{key}: {span:#?}"));
    assert_eq!((of(first, "gen_ai.provider.name"), of(first, "error.type")), ("openai".into(), "500".into()));
    assert_eq!(attribute(first, "gen_ai.usage.input_tokens"), None, "it has answered nothing");
    for (key, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "mistral_ai"),
        ("gen_ai.request.model", "mistral-large-latest"),
        ("gen_ai.request.max_tokens", "9"),
        ("gen_ai.request.temperature", "DoubleValue(0.5)"),
        ("gen_ai.request.stream", "BoolValue(true)"),
        ("gen_ai.response.id", "cmpl-7"),
        ("gen_ai.response.model", "large-2"),
        ("gen_ai.usage.input_tokens", "50"),
        ("gen_ai.usage.output_tokens", "20"),
        ("headgate.ai.requested_model", "smart"),
    ] {
        assert_eq!(of(second, key), value, "{key}");
    }
    assert!(of(second, "gen_ai.response.finish_reasons").contains("stop"));
    assert!(of(second, "gen_ai.request.stop_sequences").contains('X'));
    assert!(of(second, "gen_ai.response.time_to_first_chunk").starts_with("DoubleValue(0."));
    assert!(!format!("{spans:?}").contains("my secret"), "what is said is nobody's business");

    let labels = [
        ("provider", "second"),
        ("gen_ai_provider_name", "mistral_ai"),
        ("gen_ai_request_model", "mistral-large-latest"),
        ("gen_ai_operation_name", "chat"),
    ];
    let count = |name: &'static str| site.gateway.metric(name, &labels);
    assert_eq!(count("gen_ai_client_operation_duration_seconds_count").await, 1.0);
    assert_eq!(count("gen_ai_server_time_to_first_token_seconds_count").await, 1.0);
    assert_eq!(count("gen_ai_server_time_per_output_token_seconds_count").await, 1.0);
    let tokens = |kind| [labels[0], labels[1], labels[2], labels[3], ("gen_ai_token_type", kind)];
    assert_eq!(site.gateway.metric("gen_ai_client_token_usage_sum", &tokens("input")).await, 50.0);
    assert_eq!(site.gateway.metric("gen_ai_client_token_usage_sum", &tokens("output")).await, 20.0);
    let consumer = [("consumer", "mobile"), ("type", "output")];
    assert_eq!(site.gateway.metric("headgate_ai_consumer_tokens_total", &consumer).await, 20.0);
}
