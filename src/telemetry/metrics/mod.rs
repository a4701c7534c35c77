//! Metrics: counted where requests run, read when somebody scrapes.
//!
//! What every request touches is counted in shards of its own (see `shard`); the `prometheus` crate has what
//! changes seldom, collects everything and writes the text. A series lives as long as its handle, which the snapshot that
//! names the route or upstream holds: a reload that keeps the name keeps the counters, one that drops it drops the series.

mod counts;
mod families;
mod models;
mod process;
mod tools;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use http::Method;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use super::exchange::Exchange;
use super::shard::Sharded;
use crate::error::Reason;
pub use counts::Outcome;
use counts::{Durations, Requests};
pub use families::{BreakerState, Gathered};

/// More targets than this at one upstream are counted together as `other`: discovery may bring new addresses for ever.
const MAX_TARGETS: usize = 1024;

/// All metrics of the process. Cheap to clone.
#[derive(Clone)]
#[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "spans are counted by their exporter"))]
pub struct Metrics {
    registry: Registry,
    shared: Arc<Shared>,
    /// Of requests that found no route.
    unrouted: Arc<RouteMetrics>,
    reloads: IntCounterVec,
    last_reload_successful: IntGauge,
    last_reload_timestamp: IntGauge,
    pub(crate) access_log_dropped: IntCounter,
    pub(crate) spans_sent: IntCounter,
    pub(crate) spans_dropped: IntCounter,
}

#[derive(Default)]
struct Shared {
    routes: Mutex<Routes>,
    upstreams: Mutex<Upstreams>,
    sources: Mutex<Vec<Box<dyn Source>>>,
    models: models::Models,
    tools: tools::Tools,
    /// Each shard is counted by the requests that began on it, so that they share no count of references either.
    totals: Sharded<Arc<Totals>>,
}

/// By service and route.
type Routes = HashMap<(Arc<str>, Arc<str>), Weak<RouteMetrics>>;
type Upstreams = HashMap<Arc<str>, Weak<UpstreamMetrics>>;

/// Something whose state is read when somebody scrapes: health of targets, connections of listeners.
pub trait Source: Send + Sync {
    fn collect(&self, out: &mut Gathered);
}

/// One shard of what is counted for the whole process.
#[repr(align(128))]
struct Totals {
    in_flight: AtomicI64,
    answers: [AtomicU64; Reason::ALL.len()],
}

impl Default for Totals {
    fn default() -> Self {
        Totals { in_flight: AtomicI64::new(0), answers: [const { AtomicU64::new(0) }; Reason::ALL.len()] }
    }
}

/// What is counted for one route.
pub struct RouteMetrics {
    service: Arc<str>,
    route: Arc<str>,
    counts: Sharded<RouteCounts>,
}

/// What an ordinary request writes to comes first and lies in two neighbouring cache lines, of which the processor fetches
/// both at once: with thousands of routes, none of them is in its cache.
#[derive(Default)]
#[repr(C)]
struct RouteCounts {
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    requests: Requests,
    durations: Durations,
}

impl RouteMetrics {
    fn new(service: Arc<str>, route: Arc<str>) -> Self {
        RouteMetrics { service, route, counts: Sharded::new() }
    }

    fn record(&self, method: &Method, exchange: &Exchange) {
        let counts = self.counts.local();
        counts.requests.add(method, exchange.status);
        counts.durations.observe(exchange.duration);
        counts.request_bytes.fetch_add(exchange.request_bytes, Ordering::Relaxed);
        counts.response_bytes.fetch_add(exchange.response_bytes, Ordering::Relaxed);
    }
}

/// What is counted for one upstream.
pub struct UpstreamMetrics {
    name: Arc<str>,
    counts: Sharded<UpstreamCounts>,
    targets: ArcSwap<Targets>,
}

type Targets = HashMap<Arc<str>, Arc<Sharded<TargetCounts>>, foldhash::fast::RandomState>;

#[derive(Default)]
struct UpstreamCounts {
    durations: Durations,
    retries: AtomicU64,
}

#[derive(Default)]
struct TargetCounts([AtomicU64; Outcome::ALL.len()]);

impl UpstreamMetrics {
    /// Counts one attempt at a target: how it ended, and after which time from its start to the answer's headers or to
    /// the failure.
    pub fn attempt(&self, target: &str, outcome: Outcome, duration: Duration) {
        self.counts.local().durations.observe(duration);
        let known = self.targets.load();
        let add = |counts: &Sharded<TargetCounts>| {
            counts.local().0[outcome as usize].fetch_add(1, Ordering::Relaxed);
        };
        match known.get(target) {
            Some(counts) => add(counts),
            None => add(&self.add_target(target)),
        }
    }

    /// Counts an attempt that is not a request's first.
    pub fn retry(&self) {
        self.counts.local().retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets the targets that are not among these; called when the set of targets has changed.
    pub fn retain_targets(&self, keep: impl Fn(&str) -> bool) {
        self.targets.rcu(|known| {
            let kept = known.iter().filter(|(target, _)| keep(target));
            kept.map(|(target, counts)| (target.clone(), counts.clone())).collect::<Targets>()
        });
    }

    #[cold]
    fn add_target(&self, target: &str) -> Arc<Sharded<TargetCounts>> {
        let fresh = Arc::new(Sharded::new());
        let mut name: Arc<str> = Arc::from(target);
        self.targets.rcu(|known| {
            if known.len() >= MAX_TARGETS && !known.contains_key(target) {
                name = Arc::from("other");
            }
            let mut known = Targets::clone(known);
            known.entry(name.clone()).or_insert_with(|| fresh.clone());
            known
        });
        self.targets.load().get(&name).cloned().unwrap_or(fresh)
    }
}

/// Counts its request as in flight until it is dropped. Not left to the last phase of a request, since a panic or a broken
/// request header ends one without it.
pub struct InFlight(Arc<Totals>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Registers everything with the registry; an error means that it has metrics of these names already.
    pub fn new(registry: Registry) -> prometheus::Result<Metrics> {
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let reloads = IntCounterVec::new(
            Opts::new(
                "headgate_config_reloads_total",
                "Reloads of the configuration, by whether they were taken or refused.",
            ),
            &["result"],
        )?;
        registry.register(Box::new(reloads.clone()))?;
        for result in ["success", "failure"] {
            // Present from the start, so that the first failure is an increase.
            reloads.with_label_values(&[result]);
        }
        let build =
            IntGaugeVec::new(Opts::new("headgate_build_info", "Always 1; its labels tell the build."), &["version"])?;
        registry.register(Box::new(build.clone()))?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);

        let shared = Arc::new(Shared::default());
        registry.register(Box::new(SharedCollector { shared: shared.clone(), descs: families::descs()? }))?;
        registry.register(Box::new(process::Process::new()?))?;

        let unrouted = Arc::new(RouteMetrics::new("-".into(), "-".into()));
        shared.routes().insert(("-".into(), "-".into()), Arc::downgrade(&unrouted));
        Ok(Metrics {
            shared,
            unrouted,
            reloads,
            last_reload_successful: gauge(
                "headgate_config_last_reload_successful",
                "1 if the last attempt to load the configuration was taken, 0 if it was refused.",
            )?,
            last_reload_timestamp: gauge(
                "headgate_config_last_reload_timestamp_seconds",
                "Time at which a configuration was last taken.",
            )?,
            access_log_dropped: counter(
                "headgate_access_log_dropped_total",
                "Lines of the access log that were dropped because their destination was full, failing or too slow.",
            )?,
            spans_sent: counter("headgate_trace_spans_sent_total", "Spans that the collector has taken.")?,
            spans_dropped: counter(
                "headgate_trace_spans_dropped_total",
                "Spans that were dropped because the collector was failing or too slow.",
            )?,
            registry,
        })
    }

    /// The handle of a route: the one of this name that is in use, or a new one.
    pub fn route(&self, service: &Arc<str>, route: &Arc<str>) -> Arc<RouteMetrics> {
        let mut routes = self.shared.routes();
        let key = (service.clone(), route.clone());
        if let Some(known) = routes.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        let fresh = Arc::new(RouteMetrics::new(service.clone(), route.clone()));
        routes.insert(key, Arc::downgrade(&fresh));
        fresh
    }

    /// The handle of an upstream: the one of this name that is in use, or a new one.
    pub fn upstream(&self, name: &Arc<str>) -> Arc<UpstreamMetrics> {
        let mut upstreams = self.shared.upstreams();
        if let Some(known) = upstreams.get(name).and_then(Weak::upgrade) {
            return known;
        }
        let fresh = Arc::new(UpstreamMetrics {
            name: name.clone(),
            counts: Sharded::new(),
            targets: ArcSwap::from_pointee(Targets::default()),
        });
        upstreams.insert(name.clone(), Arc::downgrade(&fresh));
        fresh
    }

    /// Adds something to be read at every scrape.
    pub fn add_source(&self, source: impl Source + 'static) {
        self.shared.sources().push(Box::new(source));
    }

    pub fn request_started(&self) -> InFlight {
        let totals = self.shared.totals.local();
        totals.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(totals.clone())
    }

    /// Counts a finished request. `route` is `None` if none was found.
    pub fn request_finished(&self, route: Option<&RouteMetrics>, method: &Method, exchange: &Exchange) {
        route.unwrap_or(&self.unrouted).record(method, exchange);
        if let Some(call) = &exchange.ai {
            self.shared.models.record(call, exchange.consumer().map(|consumer| consumer.name()));
        }
        if let Some(call) = &exchange.mcp {
            self.shared.tools.record(call, exchange.duration);
        }
        if let Some(reason) = exchange.reason {
            self.shared.totals.local().answers[reason as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records that a configuration was loaded at the start, or again.
    pub fn reload_succeeded(&self) {
        self.reloads.with_label_values(&["success"]).inc();
        self.last_reload_successful.set(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_reload_timestamp.set(now.as_secs() as i64);
    }

    /// Records that a configuration was refused.
    pub fn reload_failed(&self) {
        self.reloads.with_label_values(&["failure"]).inc();
        self.last_reload_successful.set(0);
    }

    /// Everything in the text format of Prometheus; its media type is [`prometheus::TEXT_FORMAT`].
    pub fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

impl Shared {
    // A panic elsewhere leaves these maps as whole as they were.
    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn upstreams(&self) -> MutexGuard<'_, Upstreams> {
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sources(&self) -> MutexGuard<'_, Vec<Box<dyn Source>>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The routes in use; those no snapshot names any more are forgotten.
    fn live_routes(&self) -> Vec<Arc<RouteMetrics>> {
        let mut live = Vec::new();
        self.routes().retain(|_, route| route.upgrade().map(|route| live.push(route)).is_some());
        live
    }

    fn live_upstreams(&self) -> Vec<Arc<UpstreamMetrics>> {
        let mut live = Vec::new();
        self.upstreams().retain(|_, upstream| upstream.upgrade().map(|upstream| live.push(upstream)).is_some());
        live
    }

    fn gather(&self) -> Gathered {
        let mut out = Gathered::default();
        self.gather_totals(&mut out);
        self.live_routes().iter().for_each(|route| route.gather(&mut out));
        self.live_upstreams().iter().for_each(|upstream| upstream.gather(&mut out));
        self.models.collect(&mut out);
        self.tools.collect(&mut out);
        self.sources().iter().for_each(|source| source.collect(&mut out));
        out
    }

    fn gather_totals(&self, out: &mut Gathered) {
        let in_flight: i64 = self.totals.iter().map(|part| part.in_flight.load(Ordering::Relaxed)).sum();
        out.add(families::REQUESTS_IN_FLIGHT, &[], in_flight as f64);
        for reason in Reason::ALL {
            let count = sum(self.totals.iter().map(|part| &part.answers[*reason as usize]));
            if count > 0 {
                out.add(families::GATEWAY_ANSWERS, &[("reason", reason.label())], count as f64);
            }
        }
    }
}

impl RouteMetrics {
    fn gather(&self, out: &mut Gathered) {
        let names = [("service", &*self.service), ("route", &*self.route)];
        let requests = Requests::total(self.counts.iter().map(|part| &part.requests));
        if requests.is_empty() {
            // Thousands of routes that nobody calls would make a scrape long.
            return;
        }
        for ((method, status), count) in requests {
            let labels = [names[0], names[1], ("method", method), ("status", &status)];
            out.add(families::REQUESTS, &labels, count as f64);
        }
        let durations = Durations::total(self.counts.iter().map(|part| &part.durations));
        out.histogram(families::REQUEST_DURATION, &names, durations);
        let bytes = sum(self.counts.iter().map(|part| &part.request_bytes));
        out.add(families::REQUEST_BYTES, &names, bytes as f64);
        let bytes = sum(self.counts.iter().map(|part| &part.response_bytes));
        out.add(families::RESPONSE_BYTES, &names, bytes as f64);
    }
}

impl UpstreamMetrics {
    fn gather(&self, out: &mut Gathered) {
        let name = ("upstream", &*self.name);
        for (target, counts) in self.targets.load().iter() {
            for outcome in Outcome::ALL {
                let count = sum(counts.iter().map(|part| &part.0[*outcome as usize]));
                if count > 0 {
                    let labels = [name, ("target", target), ("outcome", outcome.label())];
                    out.add(families::UPSTREAM_ATTEMPTS, &labels, count as f64);
                }
            }
        }
        out.add(families::UPSTREAM_RETRIES, &[name], sum(self.counts.iter().map(|part| &part.retries)) as f64);
        let durations = Durations::total(self.counts.iter().map(|part| &part.durations));
        out.histogram(families::UPSTREAM_DURATION, &[name], durations);
    }
}

fn sum<'a>(parts: impl Iterator<Item = &'a AtomicU64>) -> u64 {
    parts.map(|part| part.load(Ordering::Relaxed)).sum()
}

/// Shows the registry of the `prometheus` crate what is counted here.
struct SharedCollector {
    shared: Arc<Shared>,
    descs: Vec<Desc>,
}

impl Collector for SharedCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.shared.gather().into_families()
    }
}

#[cfg(test)]
mod tests;
