use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prometheus::Registry;
use prost::Message;

use super::*;
use crate::telemetry::exchange::tests::{exchange, request};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

struct Received {
    head: String,
    message: ExportTraceServiceRequest,
}

impl Received {
    fn spans(&self) -> &[Span] {
        &self.message.resource_spans[0].scope_spans[0].spans
    }
}

/// A collector that answers with these statuses in turn, and with the last one ever after.
fn collector(statuses: &'static [u16]) -> (SocketAddr, mpsc::Receiver<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut statuses = statuses.iter();
        let mut status = 200;
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            while let Some(received) = read_message(&mut stream) {
                status = statuses.next().copied().unwrap_or(status);
                write!(stream.get_mut(), "HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").unwrap();
                if sender.send(received).is_err() {
                    return;
                }
            }
        }
    });
    (address, receiver)
}

fn read_message(stream: &mut impl BufRead) -> Option<Received> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Received { head: lower, message: ExportTraceServiceRequest::decode(&*body).unwrap() })
}

fn plan(yaml: &str) -> Plan {
    let mut problems = Problems::default();
    let plan = Plan::compile(&serde_yaml::from_str(yaml).unwrap(), "tracing", &mut problems);
    plan.unwrap_or_else(|| panic!("{:?}", problems.0))
}

fn tracer(yaml: &str) -> (Tracer, Metrics) {
    let metrics = Metrics::new(Registry::new()).unwrap();
    (Tracer::start(plan(yaml), &metrics).unwrap(), metrics)
}

fn finish(tracer: &Tracer, trace: &Trace) {
    let (exchange, request) = (exchange(), request());
    let scope = Scope { exchange: &exchange, request: &request, response: None };
    tracer.finish(trace, &scope, &Redaction::default());
}

fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a Value> {
    span.attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

fn text(value: &str) -> Option<Value> {
    Some(Value::StringValue(value.to_owned()))
}

fn header<'a>(head: &'a RequestHeader, name: &str) -> Option<&'a str> {
    head.headers.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn spans_of_a_retried_request_reach_the_collector() {
    let (address, received) = collector(&[200]);
    let yaml = format!(
        "{{ endpoint: 'http://{address}', headers: {{ x-tenant: acme }}, interval: 10ms, attributes: {{ zone: a }} }}"
    );
    let (tracer, metrics) = tracer(&yaml);
    let mut request = request();
    request.insert_header("traceparent", PARENT).unwrap();
    request.insert_header("tracestate", "vendor=x").unwrap();
    let mut trace = tracer.begin(&request);
    let mut forwarded = Vec::new();
    for (target, outcome, status) in
        [("10.0.0.1:80", Outcome::Refused, None), ("10.0.0.2:80", Outcome::Answered, Some(200))]
    {
        let mut head = request.clone();
        trace.attempt_started(&Arc::from(target));
        trace.propagate(&mut head);
        assert_eq!(header(&head, "tracestate"), Some("vendor=x"));
        forwarded.push(header(&head, "traceparent").unwrap().to_owned());
        trace.attempt_finished(outcome, status);
    }
    finish(&tracer, &trace);

    let received = received.recv_timeout(Duration::from_secs(10)).expect("a delivery");
    assert!(received.head.starts_with("post /v1/traces http/1.1\r\n"), "{}", received.head);
    assert!(received.head.contains("x-tenant: acme"));
    let resource = &received.message.resource_spans[0].resource.as_ref().unwrap().attributes;
    assert_eq!(
        resource.iter().map(|attribute| &*attribute.key).collect::<Vec<_>>(),
        ["service.name", "service.version", "zone"]
    );
    let [server, first, second] = received.spans() else { panic!("{} spans", received.spans().len()) };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(format!("00-{}-{}-01", hex(&server.trace_id), hex(&server.parent_span_id)), PARENT);
    assert_eq!(server.trace_state, "vendor=x");
    assert_eq!(server.name, "GET shop/list");
    assert_eq!(server.end_time_unix_nano - server.start_time_unix_nano, 1_002_003_000);
    for (key, value) in [
        ("http.request.method", text("GET")),
        ("http.route", text("shop/list")),
        ("http.response.status_code", Some(Value::IntValue(200))),
        ("url.path", text("/orders/7")),
        ("url.query", text("page=2&token=***")),
        ("server.address", text("api.example.com")),
        ("client.address", text("2001:db8::1")),
        ("error.type", None),
    ] {
        assert_eq!(attribute(server, key), value.as_ref(), "{key}");
    }
    for (span, sent) in [(first, &forwarded[0]), (second, &forwarded[1])] {
        assert_eq!(span.parent_span_id, server.span_id);
        assert_eq!(*sent, format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id)));
    }
    assert_eq!(attribute(first, "error.type"), text("refused").as_ref());
    assert_eq!(attribute(second, "http.request.resend_count"), Some(&Value::IntValue(1)));
    assert_eq!(attribute(second, "server.port"), Some(&Value::IntValue(80)));
    tracer.close();
    assert_eq!((metrics.spans_sent.get(), metrics.spans_dropped.get()), (3, 0));
}

#[test]
fn the_client_decides_about_sampling_unless_it_is_ignored() {
    let with_parent = |flags: &str| {
        let mut request = request();
        request.insert_header("traceparent", PARENT.replace("-01", flags)).unwrap();
        request.insert_header("tracestate", "vendor=x").unwrap();
        request
    };
    let (all, _) = tracer("{ endpoint: 'http://127.0.0.1:1', sample: 100% }");
    let (none, _) = tracer("{ endpoint: 'http://127.0.0.1:1', sample: 0% }");
    let (deaf, _) = tracer("{ endpoint: 'http://127.0.0.1:1', sample: 0%, parent: ignore }");
    assert!(all.begin(&request()).is_sampled());
    assert!(!none.begin(&request()).is_sampled());
    assert!(!all.begin(&with_parent("-00")).is_sampled());
    assert!(none.begin(&with_parent("-01")).is_sampled());

    let request = with_parent("-01");
    let trace = deaf.begin(&request);
    assert!(!trace.is_sampled());
    let mut head = request.clone();
    trace.propagate(&mut head);
    assert_ne!(header(&head, "traceparent").unwrap()[3..35], PARENT[3..35], "a trace of our own");
    assert!(header(&head, "traceparent").unwrap().ends_with("-00"));
    assert_eq!(header(&head, "tracestate"), None, "state belongs to the parent that was ignored");
}

#[test]
fn an_invalid_context_is_replaced() {
    let (tracer, _) = tracer("{ endpoint: 'http://127.0.0.1:1', sample: 100% }");
    let mut request = request();
    request.insert_header("traceparent", "00-not-a-context").unwrap();
    let mut head = request.clone();
    let trace = tracer.begin(&request);
    trace.propagate(&mut head);
    assert_eq!(&header(&head, "traceparent").unwrap()[3..35], trace.id().hex().as_str());
}

#[test]
fn a_collector_that_is_busy_is_asked_again() {
    let (address, received) = collector(&[503, 200]);
    let (tracer, metrics) = tracer(&format!("{{ endpoint: 'http://{address}/x', sample: 100%, interval: 1ms }}"));
    finish(&tracer, &tracer.begin(&request()));
    for _ in 0..2 {
        assert_eq!(received.recv_timeout(Duration::from_secs(10)).expect("a delivery").spans().len(), 1);
    }
    tracer.close();
    assert_eq!((metrics.spans_sent.get(), metrics.spans_dropped.get()), (1, 0));
}

#[test]
fn a_collector_that_is_gone_costs_spans_and_no_time() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let yaml = format!("{{ endpoint: 'http://{address}', sample: 100%, queue: 10, interval: 1ms, timeout: 1s }}");
    let (tracer, metrics) = tracer(&yaml);
    let start = Instant::now();
    for _ in 0..2000 {
        finish(&tracer, &tracer.begin(&request()));
    }
    assert!(start.elapsed() < Duration::from_secs(5), "requests must not wait for the collector");
    assert!(metrics.spans_dropped.get() > 0);
    tracer.close();
    assert_eq!((metrics.spans_sent.get(), metrics.spans_dropped.get()), (0, 2000));
}

#[test]
fn mistakes_are_reported_together() {
    let mut problems = Problems::default();
    let yaml = "{ endpoint: 'collector:4318', queue: 0, interval: 0s, headers: { a b: x, c: 'env:HEADGATE_NO_SUCH', \
                d: 'file:/nonexistent' } }";
    let config: Config = serde_yaml::from_str(yaml).unwrap();
    assert!(Plan::compile(&config, "tracing", &mut problems).is_none());
    let paths: Vec<_> = problems.0.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "tracing.queue",
            "tracing.interval",
            "tracing.headers.a b",
            "tracing.headers.c",
            "tracing.headers.d",
            "tracing.endpoint"
        ]
    );
    assert!(Plan::compile(&Config::default(), "tracing", &mut Problems::default()).is_none(), "off by default");
    let secret: Config = serde_yaml::from_str("{ headers: { authorization: s3cret } }").unwrap();
    assert!(!format!("{secret:?}").contains("s3cret"));
}
