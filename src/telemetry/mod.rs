//! What can be seen of the gateway at work: metrics, access log, traces.
//!
//! The proxy calls [`Telemetry::begin`] when a request comes in, tells the [`Observation`] of each attempt at a target, and
//! calls [`Telemetry::finish`] once at the end. None of it waits for anything.

pub mod access_log;
pub(crate) mod clock;
pub(crate) mod escape;
pub mod exchange;
pub mod metrics;
pub mod redact;
pub(crate) mod shard;
#[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "only the exporter reads all of a trace"))]
pub mod tracing;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use pingora::http::RequestHeader;

use crate::config::Problems;
use crate::config::telemetry::{AccessLog, Destination, Tracing};
use crate::variables::Scope;
use access_log::{Line, Writer};
use metrics::{InFlight, Metrics, Outcome, RouteMetrics, UpstreamMetrics};
use tracing::{Trace, Tracer};

/// What the configuration says of access log and traces, compiled; nothing is opened or started yet.
#[derive(Debug)]
pub struct Plan {
    access_log: access_log::Plan,
    tracing: Option<tracing::Plan>,
}

impl Plan {
    /// Reports every problem, below `access_log` and `tracing`, and returns `None` if there was one.
    pub fn compile(access_log: &AccessLog, tracing: &Tracing, problems: &mut Problems) -> Option<Plan> {
        let before = problems.0.len();
        let access_log = access_log::Plan::compile(access_log, "access_log", problems);
        let tracing = tracing::Plan::compile(tracing, "tracing", problems);
        let access_log = access_log.filter(|_| problems.0.len() == before)?;
        Some(Plan { access_log, tracing })
    }
}

/// All that observes requests; one for the process.
pub struct Telemetry {
    metrics: Metrics,
    running: ArcSwap<Running>,
    /// One change at a time.
    changing: Mutex<()>,
}

struct Running {
    log: access_log::Plan,
    writer: Option<Arc<Writer>>,
    tracer: Option<Arc<Tracer>>,
}

impl Telemetry {
    /// Opens the log's destination and starts what works in the background. Call it after a process has become a daemon:
    /// threads do not survive a fork.
    pub fn start(metrics: Metrics, plan: Plan) -> io::Result<Telemetry> {
        let running = Running::start(plan, None, &metrics)?;
        Ok(Telemetry { metrics, running: ArcSwap::from_pointee(running), changing: Mutex::new(()) })
    }

    /// Takes a new plan. What it does not change goes on; if its destination cannot be opened, everything does.
    pub fn apply(&self, plan: Plan) -> io::Result<()> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let running = Running::start(plan, Some(&self.running.load()), &self.metrics)?;
        self.running.store(Arc::new(running));
        Ok(())
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Opens the access log's file again (SIGUSR1).
    pub fn reopen_log(&self) {
        if let Some(writer) = &self.running.load().writer {
            writer.reopen();
        }
    }

    /// Writes and sends what is left; takes four seconds at most. For the end of the process.
    pub fn close(&self) {
        let running = self.running.load_full();
        if let Some(writer) = &running.writer {
            writer.close();
        }
        if let Some(tracer) = &running.tracer {
            tracer.close();
        }
    }

    /// Begins to observe a request, with its headers as the client sent them.
    pub fn begin(&self, request: &RequestHeader) -> Observation {
        let trace = self.running.load().tracer.as_ref().map(|tracer| Box::new(tracer.begin(request)));
        Observation { _in_flight: self.metrics.request_started(), trace, attempts: 0, open: None }
    }

    /// Ends the observation of a request: counts, logs and traces it. `scope.exchange` is complete.
    pub fn finish(&self, mut observation: Observation, counted: Counted<'_>, scope: &Scope<'_>) {
        if let (Some(upstream), Some(target), true) =
            (counted.upstream, &scope.exchange.target, observation.open.is_some())
        {
            // An attempt without an end was cut short with its request.
            observation.attempt_finished(upstream, target, Outcome::Cancelled, None, Instant::now());
        }
        self.metrics.request_finished(counted.route, &scope.request.method, scope.exchange);
        let running = self.running.load();
        let trace = observation.trace.as_deref();
        if let Some(writer) = &running.writer {
            let id = trace.filter(|trace| trace.is_sampled()).map(|trace| trace.id().hex());
            let trace_id = id.as_ref().map(|id| id.as_str());
            running.log.log(&Line { scope: *scope, at: SystemTime::now(), trace_id }, writer);
        }
        if let (Some(trace), Some(tracer)) = (trace, &running.tracer) {
            tracer.finish(trace, scope, running.log.redaction());
        }
    }
}

impl Running {
    /// Starts what `before` does not already do.
    fn start(plan: Plan, before: Option<&Running>, metrics: &Metrics) -> io::Result<Running> {
        let Plan { access_log: log, tracing } = plan;
        let kept = before.and_then(|before| before.writer.clone()).filter(|writer| writer.serves(&log.to, log.buffer));
        let writer = match kept {
            Some(writer) => Some(writer),
            None => Writer::start(&log.to, log.buffer, metrics.access_log_dropped.clone())
                .map_err(|error| describe(&log.to, &error))?
                .map(Arc::new),
        };
        let kept = before.and_then(|before| before.tracer.clone());
        let tracer = match (tracing, kept) {
            (Some(plan), Some(tracer)) if tracer.serves(&plan) => Some(tracer),
            (Some(plan), _) => Some(Arc::new(Tracer::start(plan, metrics)?)),
            (None, _) => None,
        };
        Ok(Running { log, writer, tracer })
    }
}

fn describe(to: &Destination, error: &io::Error) -> io::Error {
    let place = match to {
        Destination::File(path) => path.display().to_string(),
        other => format!("{other:?}").to_lowercase(),
    };
    io::Error::new(error.kind(), format!("cannot open the access log {place}: {error}"))
}

/// Where a request is counted: the handles that its snapshot holds.
#[derive(Clone, Copy, Default)]
pub struct Counted<'a> {
    /// `None` if no route was found.
    pub route: Option<&'a RouteMetrics>,
    /// Of the last attempt, if there was one.
    pub upstream: Option<&'a UpstreamMetrics>,
}

/// One request while it is under way.
pub struct Observation {
    _in_flight: InFlight,
    trace: Option<Box<Trace>>,
    attempts: u32,
    /// Start of the attempt under way.
    open: Option<Instant>,
}

impl Observation {
    /// Notes that an attempt at a target begins now, before it is connected to. The attempt before has been ended.
    pub fn attempt_started(&mut self, upstream: &UpstreamMetrics, target: &Arc<str>, now: Instant) {
        if self.attempts > 0 {
            upstream.retry();
        }
        self.attempts += 1;
        self.open = Some(now);
        if let Some(trace) = &mut self.trace {
            trace.attempt_started(target);
        }
    }

    /// Notes that the attempt under way asks a model, by what OpenTelemetry calls the provider.
    pub fn attempt_asks(&mut self, provider_kind: &Arc<str>, model: &Arc<str>) {
        if let Some(trace) = &mut self.trace {
            trace.attempt_asks(provider_kind, model);
        }
    }

    /// Whether the trace of this request is recorded.
    pub fn is_sampled(&self) -> bool {
        self.trace.as_ref().is_some_and(|trace| trace.is_sampled())
    }

    /// Puts the trace context into what is about to be sent to the target. Without traces it changes nothing: a context
    /// that the client sent passes as it is.
    pub fn propagate(&self, head: &mut RequestHeader) {
        if let Some(trace) = &self.trace {
            trace.propagate(head);
        }
    }

    /// Notes how the attempt under way ended: when the headers of its answer are there, or when it failed. Without one
    /// under way it does nothing.
    pub fn attempt_finished(
        &mut self,
        upstream: &UpstreamMetrics,
        target: &str,
        outcome: Outcome,
        status: Option<u16>,
        now: Instant,
    ) {
        let Some(started) = self.open.take() else { return };
        upstream.attempt(target, outcome, now.saturating_duration_since(started));
        if let Some(trace) = &mut self.trace {
            trace.attempt_finished(outcome, status);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prometheus::Registry;

    use super::*;
    use crate::telemetry::exchange::tests::{exchange, request, response};

    fn plan(access_log: &str) -> Plan {
        let access_log = serde_json::from_value(serde_yaml::from_str(access_log).unwrap()).unwrap();
        let mut problems = Problems::default();
        Plan::compile(&access_log, &Tracing::default(), &mut problems).unwrap_or_else(|| panic!("{:?}", problems.0))
    }

    fn to_file(path: &Path, format: &str) -> Plan {
        plan(&format!("{{ to: {{ file: '{}' }}, format: {format} }}", path.display()))
    }

    fn one_request(telemetry: &Telemetry) {
        let (exchange, request, response) = (exchange(), request(), response());
        let route = telemetry.metrics().route(&"shop".into(), &"list".into());
        let upstream = telemetry.metrics().upstream(&"orders".into());
        let mut observation = telemetry.begin(&request);
        observation.attempt_started(&upstream, &"a:80".into(), Instant::now());
        observation.attempt_finished(&upstream, "a:80", Outcome::Refused, None, Instant::now());
        observation.attempt_started(&upstream, &"b:80".into(), Instant::now());
        let scope = Scope { exchange: &exchange, request: &request, response: Some(&response) };
        telemetry.finish(observation, Counted { route: Some(&route), upstream: Some(&upstream) }, &scope);
        let text = telemetry.metrics().render().unwrap();
        for line in [
            r#"headgate_requests_total{service="shop",route="list",method="GET",status="200"} 1"#,
            r#"headgate_upstream_attempts_total{upstream="orders",target="a:80",outcome="refused"} 1"#,
            r#"headgate_upstream_attempts_total{upstream="orders",target="10.0.0.1:80",outcome="cancelled"} 1"#,
            r#"headgate_upstream_retries_total{upstream="orders"} 1"#,
            "headgate_requests_in_flight 0",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_reload_changes_the_format_and_keeps_the_writer() {
        let path = std::env::temp_dir().join(format!("headgate-telemetry-{}", fastrand::u64(..)));
        let telemetry = Telemetry::start(Metrics::new(Registry::new()).unwrap(), to_file(&path, "json")).unwrap();
        one_request(&telemetry);
        let before = telemetry.running.load().writer.clone().unwrap();
        telemetry.apply(to_file(&path, "combined")).unwrap();
        assert!(Arc::ptr_eq(&before, telemetry.running.load().writer.as_ref().unwrap()));
        assert!(telemetry.apply(to_file(Path::new("/nonexistent/log"), "json")).is_err(), "and nothing has changed");
        drop(before);
        one_request(&telemetry);
        telemetry.close();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("{\"time\":") && lines[1].starts_with("2001:db8::1 - mobile ["), "{text}");
    }

    #[test]
    fn without_a_log_requests_are_only_counted() {
        let telemetry = Telemetry::start(Metrics::new(Registry::new()).unwrap(), plan("{ to: off }")).unwrap();
        one_request(&telemetry);
    }
}
