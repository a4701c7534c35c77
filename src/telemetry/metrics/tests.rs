use super::*;
use crate::telemetry::exchange::tests::exchange;

fn metrics() -> Metrics {
    Metrics::new(Registry::new()).unwrap()
}

fn arc(text: &str) -> Arc<str> {
    Arc::from(text)
}

/// The value of the sample that a line begins with.
fn sample(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

struct Health;

impl Source for Health {
    fn collect(&self, out: &mut Gathered) {
        out.target_healthy("orders", "10.0.0.1:80", false);
        out.target_healthy("orders", "10.0.0.2:80", true);
        out.breaker_state("orders", BreakerState::HalfOpen);
        out.connections_active("http", 3);
        out.connections_accepted("http", 10);
        out.connections_rejected("http", "too_many", 2);
        out.certificate_expiry("https", "*.example.com", 1_800_000_000);
    }
}

#[test]
fn finished_requests_are_counted_by_route_method_and_status() {
    let metrics = metrics();
    let route = metrics.route(&arc("shop"), &arc("list"));
    let mut exchange = exchange();
    exchange.reason = None;
    metrics.request_finished(Some(&route), &Method::GET, &exchange);
    metrics.request_finished(Some(&route), &Method::GET, &exchange);
    exchange.status = 404;
    exchange.reason = Some(Reason::RouteNotFound);
    metrics.request_finished(None, &Method::POST, &exchange);
    let text = metrics.render().unwrap();
    for (series, value) in [
        (r#"headgate_requests_total{service="shop",route="list",method="GET",status="200"}"#, 2.0),
        (r#"headgate_requests_total{service="-",route="-",method="POST",status="404"}"#, 1.0),
        (r#"headgate_request_duration_seconds_bucket{service="shop",route="list",le="1"}"#, 0.0),
        (r#"headgate_request_duration_seconds_bucket{service="shop",route="list",le="2.5"}"#, 2.0),
        (r#"headgate_request_duration_seconds_bucket{service="shop",route="list",le="+Inf"}"#, 2.0),
        (r#"headgate_request_duration_seconds_count{service="shop",route="list"}"#, 2.0),
        (r#"headgate_request_duration_seconds_sum{service="shop",route="list"}"#, 2.004006),
        (r#"headgate_request_bytes_total{service="shop",route="list"}"#, 24.0),
        (r#"headgate_response_bytes_total{service="shop",route="list"}"#, 6912.0),
        (r#"headgate_gateway_answers_total{reason="route_not_found"}"#, 1.0),
    ] {
        assert_eq!(sample(&text, series), Some(value), "{series}\n{text}");
    }
}

#[test]
fn attempts_are_counted_by_target_and_outcome() {
    let metrics = metrics();
    let orders = metrics.upstream(&arc("orders"));
    let (a, b) = ("a:80", "b:80");
    orders.attempt(a, Outcome::of_failure(Reason::UpstreamRefused), Duration::from_millis(1));
    orders.retry();
    orders.attempt(b, Outcome::of_status(200), Duration::from_millis(20));
    let text = metrics.render().unwrap();
    for (series, value) in [
        (r#"headgate_upstream_attempts_total{upstream="orders",target="a:80",outcome="refused"}"#, 1.0),
        (r#"headgate_upstream_attempts_total{upstream="orders",target="b:80",outcome="answered"}"#, 1.0),
        (r#"headgate_upstream_retries_total{upstream="orders"}"#, 1.0),
        (r#"headgate_upstream_duration_seconds_count{upstream="orders"}"#, 2.0),
    ] {
        assert_eq!(sample(&text, series), Some(value), "{series}\n{text}");
    }
    orders.retain_targets(|target| target == "b:80");
    let text = metrics.render().unwrap();
    assert!(!text.contains("a:80") && text.contains("b:80"));
}

#[test]
fn outcomes_are_listed_in_the_order_of_their_counters() {
    for (at, outcome) in Outcome::ALL.iter().enumerate() {
        assert_eq!(*outcome as usize, at);
    }
    for (at, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, at);
    }
}

#[test]
fn labels_that_strangers_choose_are_bounded() {
    let metrics = metrics();
    let route = metrics.route(&arc("s"), &arc("r"));
    let mut exchange = exchange();
    exchange.reason = None;
    for i in 0..=1200u16 {
        exchange.status = i;
        let method = Method::from_bytes(format!("METHOD{i}").as_bytes()).unwrap();
        metrics.request_finished(Some(&route), &method, &exchange);
    }
    let text = metrics.render().unwrap();
    let series = text.lines().filter(|line| line.starts_with("headgate_requests_total{")).count();
    assert!(series < 100, "{series} series");
    assert!(text.contains(r#"method="other",status="4xx""#) && text.contains(r#"status="none""#), "{text}");

    let upstream = metrics.upstream(&arc("u"));
    for i in 0..MAX_TARGETS + 10 {
        upstream.attempt(&format!("t{i}"), Outcome::Answered, Duration::ZERO);
    }
    let text = metrics.render().unwrap();
    let other = r#"headgate_upstream_attempts_total{upstream="u",target="other",outcome="answered"}"#;
    assert_eq!(sample(&text, other), Some(10.0));
}

#[test]
fn counters_live_as_long_as_a_snapshot_names_them() {
    let metrics = metrics();
    let (service, name) = (arc("s"), arc("r"));
    let exchange = exchange();
    let series = r#"headgate_requests_total{service="s",route="r",method="GET",status="200"}"#;

    let before = metrics.route(&service, &name);
    metrics.request_finished(Some(&before), &Method::GET, &exchange);
    let after_reload = metrics.route(&service, &name);
    drop(before);
    metrics.request_finished(Some(&after_reload), &Method::GET, &exchange);
    assert_eq!(sample(&metrics.render().unwrap(), series), Some(2.0));

    drop(after_reload);
    assert_eq!(sample(&metrics.render().unwrap(), series), None);
}

#[test]
fn requests_in_flight_end_with_their_guard_on_any_thread() {
    let metrics = metrics();
    let (first, second) = (metrics.request_started(), metrics.request_started());
    assert_eq!(sample(&metrics.render().unwrap(), "headgate_requests_in_flight"), Some(2.0));
    std::thread::spawn(move || drop(first)).join().unwrap();
    drop(second);
    assert_eq!(sample(&metrics.render().unwrap(), "headgate_requests_in_flight"), Some(0.0));
}

#[test]
fn reloads_are_told_by_result() {
    let metrics = metrics();
    metrics.reload_succeeded();
    metrics.reload_failed();
    let text = metrics.render().unwrap();
    assert_eq!(sample(&text, "headgate_config_last_reload_successful"), Some(0.0));
    assert_eq!(sample(&text, r#"headgate_config_reloads_total{result="failure"}"#), Some(1.0));
    assert!(sample(&text, "headgate_config_last_reload_timestamp_seconds").unwrap() > 1.7e9);
    assert!(text.contains("headgate_build_info{version="));
}

#[test]
fn a_scrape_is_valid_whatever_the_names_are() {
    let metrics = metrics();
    metrics.add_source(Health);
    let route = metrics.route(&arc("a\"b\\c\nd"), &arc("é"));
    metrics.request_finished(Some(&route), &Method::GET, &exchange());
    let text = metrics.render().unwrap();
    assert!(text.contains(r#"service="a\"b\\c\nd",route="é""#), "{text}");
    assert!(text.contains(r#"headgate_upstream_breaker_state{upstream="orders"} 1"#));

    let line = regex::Regex::new(r#"^[a-z_]+(\{([a-z_]+="([^"\\\n]|\\[\\"n])*",?)*\})? [0-9.e+-]+$"#).unwrap();
    let (mut families, mut series) = (std::collections::HashSet::new(), std::collections::HashSet::new());
    let mut family = String::new();
    for text in text.lines() {
        if let Some(declared) = text.strip_prefix("# TYPE ") {
            family = declared.split(' ').next().unwrap().to_owned();
            assert!(families.insert(family.clone()), "{family} is declared twice");
        } else if !text.starts_with("# HELP ") {
            assert!(line.is_match(text), "{text}");
            assert!(text.starts_with(&family), "{text} stands below {family}");
            assert!(series.insert(text.rsplit_once(' ').unwrap().0.to_owned()), "{text} appears twice");
            assert!(family.starts_with("headgate_") || family.starts_with("process_"));
        }
    }
}
