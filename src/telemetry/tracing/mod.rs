//! Traces: the W3C trace context of a request, its spans, and their way to a collector.

mod context;
#[cfg(feature = "otlp")]
mod otlp;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;

pub use context::{SpanId, TraceId};
use context::{TraceState, traceparent};

use super::metrics::{Metrics, Outcome};
use super::redact::Redaction;
use crate::config::telemetry::{Parent, Tracing as Config};
use crate::config::{Problems, units::Share};
use crate::variables::Scope;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// How requests are traced; compiled from the configuration without touching the collector.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    sample: Share,
    parent: Parent,
    #[cfg(feature = "otlp")]
    export: otlp::Plan,
}

impl Plan {
    /// `None` if traces are off, or if there was a problem. `path` is the place in the document.
    pub fn compile(config: &Config, path: &str, problems: &mut Problems) -> Option<Plan> {
        let endpoint = config.endpoint.as_deref()?;
        #[cfg(feature = "otlp")]
        let plan = otlp::Plan::compile(config, endpoint, path, problems).map(|export| Plan {
            sample: config.sample,
            parent: config.parent,
            export,
        });
        #[cfg(not(feature = "otlp"))]
        let plan = {
            let message = format!("cannot send to `{endpoint}`: this binary was built without the feature `otlp`");
            problems.add(format!("{path}.endpoint"), message);
            None
        };
        plan
    }
}

/// Begins traces and hands finished ones to the exporter.
#[derive(Debug)]
pub struct Tracer {
    plan: Plan,
    #[cfg(feature = "otlp")]
    exporter: otlp::Exporter,
}

impl Tracer {
    /// Starts the exporter's thread; it begins to look for the collector with the first span.
    pub fn start(plan: Plan, metrics: &Metrics) -> std::io::Result<Tracer> {
        #[cfg(not(feature = "otlp"))]
        let _ = metrics;
        Ok(Tracer {
            #[cfg(feature = "otlp")]
            exporter: otlp::Exporter::start(&plan.export, metrics)?,
            plan,
        })
    }

    /// Whether this tracer does what a new one for this plan would do.
    pub fn serves(&self, plan: &Plan) -> bool {
        self.plan == *plan
    }

    /// Continues the client's trace if it sent a valid context, else begins one.
    pub fn begin(&self, request: &RequestHeader) -> Trace {
        let follow = self.plan.parent == Parent::Follow;
        let parent = follow.then(|| context::parent(request.headers.get_all(TRACEPARENT).iter())).flatten();
        let (id, state, sampled) = match &parent {
            Some(parent) => {
                let state = TraceState::of(request.headers.get_all(TRACESTATE).iter());
                (parent.trace, state, parent.sampled)
            }
            // State without a valid parent means nothing (Trace Context, section 3.3.1).
            None => (TraceId::random(), TraceState::default(), self.plan.sample.draw()),
        };
        Trace {
            id,
            span: SpanId::random(),
            parent: parent.map(|parent| parent.span),
            state,
            sampled,
            at: SystemTime::now(),
            attempts: Vec::new(),
        }
    }

    /// Hands over a finished trace. Never waits; what the exporter has no room for is dropped and counted.
    pub fn finish(&self, trace: &Trace, scope: &Scope<'_>, redaction: &Redaction) {
        if trace.sampled {
            #[cfg(feature = "otlp")]
            self.exporter.send(otlp::spans(trace, scope, redaction));
            #[cfg(not(feature = "otlp"))]
            let _ = (scope, redaction);
        }
    }

    /// Sends what is left, or gives up after two seconds.
    pub fn close(&self) {
        #[cfg(feature = "otlp")]
        self.exporter.close();
    }
}

/// The trace of one request.
#[derive(Debug)]
pub struct Trace {
    id: TraceId,
    /// Of the gateway's span.
    span: SpanId,
    parent: Option<SpanId>,
    state: TraceState,
    sampled: bool,
    at: SystemTime,
    attempts: Vec<Attempt>,
}

/// One attempt at a target.
#[derive(Debug)]
struct Attempt {
    span: SpanId,
    target: Arc<str>,
    at: SystemTime,
    started: Instant,
    /// The provider, as OpenTelemetry calls it, and the model, if it asks one.
    asks: Option<(Arc<str>, Arc<str>)>,
    /// How it ended, after which time, and with which status if it was answered.
    end: Option<(Outcome, std::time::Duration, Option<u16>)>,
}

impl Trace {
    pub fn id(&self) -> TraceId {
        self.id
    }

    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// Begins the span of an attempt at a target.
    pub fn attempt_started(&mut self, target: &Arc<str>) {
        if self.sampled {
            let (at, started) = (SystemTime::now(), Instant::now());
            self.attempts.push(Attempt {
                span: SpanId::random(),
                target: target.clone(),
                at,
                started,
                asks: None,
                end: None,
            });
        }
    }

    pub fn attempt_asks(&mut self, provider_kind: &Arc<str>, model: &Arc<str>) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.asks = Some((provider_kind.clone(), model.clone()));
        }
    }

    /// Puts the context into what is about to be sent; its parent is the span of the attempt under way, if there is one.
    pub fn propagate(&self, head: &mut RequestHeader) {
        let span = self.attempts.last().map_or(self.span, |attempt| attempt.span);
        set(head, TRACEPARENT, Some(traceparent(self.id, span, self.sampled)));
        set(head, TRACESTATE, self.state.header());
    }

    pub fn attempt_finished(&mut self, outcome: Outcome, status: Option<u16>) {
        if let Some(attempt) = self.attempts.last_mut().filter(|attempt| attempt.end.is_none()) {
            attempt.end = Some((outcome, attempt.started.elapsed(), status));
        }
    }
}

fn set(head: &mut RequestHeader, name: HeaderName, value: Option<HeaderValue>) {
    match value {
        // Fails only for a value that is no header value, which a `HeaderValue` is.
        Some(value) => _ = head.insert_header(name, value),
        None => _ = head.remove_header(&name),
    }
}

#[cfg(all(test, feature = "otlp"))]
mod tests;
