//! The running gateway: what is published, what goes on in the background, and how both change with a reload.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use pingora::connectors::http::Connector;
use prometheus::Registry;
use serde_json::json;

use super::source::Source as Configured;
use super::{inspect, low_priority, memory};
use crate::config::watch::Watch;
use crate::config::{Config, Loaded, Problems};
use crate::control::admin::Views;
use crate::filters::lasting::Lasting;
use crate::filters::limit::usage::Shown;
use crate::identity::Consumer;
use crate::limits::Ledger;
use crate::listener::{Ending, ListenerState, Settings};
use crate::snapshot::{Backend, Ground, Published, Snapshot, compile};
use crate::telemetry::metrics::{BreakerState as BreakerMetric, Gathered, Metrics, Source};
use crate::telemetry::{Plan, Telemetry};
use crate::upstream::discovery::dns::{Resolver, ResolverConfig};
use crate::upstream::mirror::{Mirror, MirrorSettings};
use crate::upstream::probe::Connectors;
use crate::upstream::{BreakerState, Moment, Supervisor, Upstream};

/// Consumers in one answer of `/usage`.
const USAGE_PAGE: usize = 1000;

/// Everything that lives as long as the process.
pub struct Gateway {
    source: Configured,
    pub published: Arc<Published>,
    pub telemetry: Arc<Telemetry>,
    pub listeners: BTreeMap<String, Arc<ListenerState>>,
    pub mirror: Mirror,
    /// For what does not go through Pingora's proxying: copies of requests, and upgrades.
    pub connector: Arc<Connector>,
    lasting: Arc<Lasting>,
    resolver: Resolver,
    supervisor: Supervisor,
    revision: AtomicU64,
    watch: ArcSwapOption<Watch>,
    /// Health checks, name resolution, mirrored requests and what filters need run here, so that they never take a worker's time.
    runtime: tokio::runtime::Runtime,
}

/// A configuration that has compiled whole, ready to be put into service.
struct Generation {
    snapshot: Snapshot,
    telemetry: Plan,
    listeners: Vec<(Arc<ListenerState>, Settings)>,
    dns: ResolverConfig,
    /// How often what was used of quotas is written.
    usage_interval: Duration,
    /// How long the use of models is kept.
    usage_kept: Duration,
    files: Vec<PathBuf>,
}

impl Gateway {
    /// Compiles the first configuration and starts what runs beside requests. Nothing listens yet.
    pub fn start(source: Configured, loaded: &Loaded<Config>) -> Result<Arc<Gateway>, Problems> {
        let config = &loaded.config;
        let mut problems = Problems::default();
        let internal = |message: String| {
            let mut problems = Problems::default();
            problems.add("(start)", message);
            problems
        };
        let metrics = Metrics::new(Registry::new()).map_err(|error| internal(format!("metrics: {error}")))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("background")
            .enable_all()
            .build()
            .map_err(|error| internal(format!("cannot start the background runtime: {error}")))?;
        let lasting = Arc::new(Lasting::new(Some(runtime.handle().clone())));
        let ground =
            Ground { around: inspect::around(loaded, &*source.environment), metrics: &metrics, lasting: &lasting };
        let snapshot = compile(config, ground, None, &mut problems);
        let mut listeners = BTreeMap::new();
        for (name, listener) in &config.listeners {
            let place = format!("listeners.{name}");
            let state = ListenerState::new(name, listener, &config.server.drain, &place, &mut problems);
            listeners.extend(state.map(|state| (name.clone(), state)));
        }
        inspect::check_listeners(config, &mut problems);
        let plan = inspect::telemetry_plan(config, &mut problems);
        let dns = ResolverConfig::compile(&config.dns, "dns", &mut problems);
        open_usage(snapshot.as_ref(), loaded, &lasting, &mut problems);
        let (Some(snapshot), Some(plan), true) = (snapshot, plan, problems.is_empty()) else {
            return Err(placed(problems, loaded));
        };
        let telemetry = Telemetry::start(metrics, plan).map_err(|error| {
            problems.add("access_log", error.to_string());
            placed(problems, loaded)
        })?;
        telemetry.metrics().reload_succeeded();
        warn(loaded);
        if snapshot.counts_together() {
            lasting.keep_quotas(snapshot.fleet.as_ref(), config.usage.interval.get());
        }
        if snapshot.models.is_some() {
            lasting.ledger.keep(config.usage.interval.get(), config.usage.keep.get());
        }

        let resolver = Resolver::new(dns, runtime.handle().clone());
        let supervisor = Supervisor::new(runtime.handle().clone(), resolver.clone(), Arc::new(Connectors::new()));
        let connector = Arc::new(Connector::new(None));
        let mirror = Mirror::new(MirrorSettings::default(), connector.clone());
        let gateway = Arc::new(Gateway {
            source,
            revision: AtomicU64::new(snapshot.revision),
            published: Arc::new(Published::new(snapshot)),
            telemetry: Arc::new(telemetry),
            listeners,
            mirror,
            connector,
            lasting,
            resolver,
            supervisor,
            watch: ArcSwapOption::empty(),
            runtime,
        });
        gateway.telemetry.metrics().add_source(StateMetrics(Arc::downgrade(&gateway)));
        gateway.follow_upstreams();
        Ok(gateway)
    }

    /// Loads the configuration again and puts it into service, all of it or nothing; returns its revision.
    pub fn reload(&self) -> Result<u64, Problems> {
        let outcome = low_priority::run(|| {
            let next = self.load_next();
            memory::give_back();
            next
        })
        .and_then(|generation| self.put_into_service(generation));
        match &outcome {
            Ok(_) => self.telemetry.metrics().reload_succeeded(),
            Err(_) => self.telemetry.metrics().reload_failed(),
        }
        outcome
    }

    fn load_next(&self) -> Result<Generation, Problems> {
        let loaded = self.source.load()?;
        let config = &loaded.config;
        let mut problems = Problems::default();
        let current = self.published.current();
        let around = inspect::around(&loaded, &*self.source.environment);
        let ground = Ground { around, metrics: self.telemetry.metrics(), lasting: &self.lasting };
        let snapshot = compile(config, ground, Some(&current), &mut problems);
        inspect::check_listeners(config, &mut problems);
        let mut listeners = Vec::new();
        for (name, listener) in &config.listeners {
            let place = format!("listeners.{name}");
            match self.listeners.get(name) {
                Some(state) => {
                    let settings = state.prepare(listener, &config.server.drain, &place, &mut problems);
                    listeners.extend(settings.map(|settings| (state.clone(), settings)));
                }
                None => problems.add(place, "a listener is added only by `headgate upgrade` or a restart"),
            }
        }
        for name in self.listeners.keys().filter(|name| !config.listeners.contains_key(*name)) {
            let message = format!("the listener `{name}` is removed only by `headgate upgrade` or a restart");
            problems.add("listeners", message);
        }
        let plan = inspect::telemetry_plan(config, &mut problems);
        let dns = ResolverConfig::compile(&config.dns, "dns", &mut problems);
        open_usage(snapshot.as_ref(), &loaded, &self.lasting, &mut problems);
        match (snapshot, plan, problems.is_empty()) {
            (Some(snapshot), Some(telemetry), true) => {
                warn(&loaded);
                let files = inspect::referenced_files(&loaded);
                let (usage_interval, usage_kept) = (config.usage.interval.get(), config.usage.keep.get());
                Ok(Generation { snapshot, telemetry, listeners, dns, usage_interval, usage_kept, files })
            }
            _ => Err(placed(problems, &loaded)),
        }
    }

    fn put_into_service(&self, generation: Generation) -> Result<u64, Problems> {
        // The one step that may still fail, so it comes first: the log's file has to be opened.
        self.telemetry.apply(generation.telemetry).map_err(|error| {
            let mut problems = Problems::default();
            problems.add("access_log", error.to_string());
            problems
        })?;
        for (listener, settings) in generation.listeners {
            listener.apply(settings);
        }
        self.resolver.configure(generation.dns);
        if generation.snapshot.counts_together() {
            self.lasting.keep_quotas(generation.snapshot.fleet.as_ref(), generation.usage_interval);
        }
        if generation.snapshot.models.is_some() {
            self.lasting.ledger.keep(generation.usage_interval, generation.usage_kept);
        }
        let revision = generation.snapshot.revision;
        let before = self.published.publish(generation.snapshot);
        self.runtime.spawn(drop_when_unused(before));
        self.revision.store(revision, Ordering::Release);
        self.follow_upstreams();
        if let Some(watch) = self.watch.load().as_ref() {
            watch.follow(generation.files);
        }
        Ok(revision)
    }

    fn follow_upstreams(&self) {
        let snapshot = self.published.current();
        let upstreams: Vec<_> = snapshot.origins.values().map(|origin| origin.upstream.clone()).collect();
        self.supervisor.follow(&upstreams);
    }

    /// Reloads whenever a file of the configuration, or one it refers to, changes.
    pub fn watch_files(&self, files: Vec<PathBuf>, on_change: impl FnMut() + Send + 'static) {
        let Some(path) = self.source.watched() else { return };
        match Watch::start(path, on_change) {
            Ok(watch) => {
                watch.follow(files);
                self.watch.store(Some(Arc::new(watch)));
            }
            Err(error) => log::error!("cannot watch {}: {error}; reload by SIGHUP", path.display()),
        }
    }

    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Client connections open now, over all listeners.
    pub fn connections(&self) -> usize {
        self.listeners.values().map(|listener| listener.counters.active()).sum()
    }

    /// Writes what was used of quotas and gives back what was leased, before the process ends.
    pub fn settle(&self) {
        // A failure is logged and counted where it happens.
        let _ = self.lasting.quotas.flush();
        if let Err(error) = self.lasting.ledger.flush() {
            log::error!("the use of models since the last write is lost: {error}");
        }
        if let Some(fleet) = &self.published.current().fleet {
            fleet.close();
        }
    }

    /// Why the store of quotas takes nothing, or `ok`.
    fn usage_store(&self) -> String {
        self.lasting.quotas.state().failure().unwrap_or_else(|| "ok".to_owned())
    }

    pub fn reopen_logs(&self) {
        self.telemetry.reopen_log();
    }
}

impl Views for Gateway {
    fn status(&self) -> serde_json::Value {
        let now = Moment::now();
        let snapshot = self.published.current();
        let upstreams: Vec<_> = snapshot.origins.values().map(|origin| origin.upstream.status(now)).collect();
        let listeners: Vec<_> = self
            .listeners
            .iter()
            .map(|(name, listener)| {
                json!({
                    "name": name,
                    "address": listener.settings().address(),
                    "connections": listener.counters.active(),
                })
            })
            .collect();
        json!({
            "routes": snapshot.routes.len(),
            "consumers": snapshot.directory.consumers().count(),
            "listeners": listeners,
            "upstreams": upstreams,
            "usage_store": self.usage_store(),
        })
    }

    fn usage(&self, consumer: Option<&str>, after: &str, days: u32) -> Option<serde_json::Value> {
        let snapshot = self.published.current();
        let about_models = |document: &mut serde_json::Value, consumer: Option<&str>| {
            if let Some(models) = &snapshot.models {
                document["models"] = use_of_models(&models.ledger, consumer, days);
            }
        };
        let of = |consumer: &Consumer| -> Vec<Shown> {
            snapshot.limits.iter().flat_map(|limit| limit.shown(consumer)).collect()
        };
        let entry = |consumer: &Consumer, limits: Vec<Shown>| {
            let limits: Vec<_> = limits.iter().map(Shown::json).collect();
            json!({ "consumer": consumer.name(), "limits": limits })
        };
        if let Some(name) = consumer {
            let consumer = snapshot.directory.consumer(name)?;
            let mut document =
                json!({ "consumers": [entry(consumer, of(consumer))], "usage_store": self.usage_store() });
            about_models(&mut document, Some(name));
            return Some(document);
        }
        let mut names: Vec<_> = snapshot.directory.consumers().filter(|consumer| consumer.name() > after).collect();
        names.sort_by(|a, b| a.name().cmp(b.name()));
        let used = names.into_iter().map(|consumer| (consumer, of(consumer)));
        let mut used = used.filter(|(_, limits)| limits.iter().any(Shown::is_touched));
        let page: Vec<_> = used.by_ref().take(USAGE_PAGE).map(|(consumer, limits)| entry(consumer, limits)).collect();
        let next = page.last().filter(|_| used.next().is_some()).map(|last| last["consumer"].clone());
        let mut document = json!({ "consumers": page, "usage_store": self.usage_store() });
        if let Some(next) = next {
            document["after"] = next;
        }
        if let Some(budgets) = &snapshot.budgets {
            document["budgets"] = budgets.of_all().iter().map(Shown::json).collect();
        }
        about_models(&mut document, None);
        Some(document)
    }

    fn metrics(&self) -> String {
        self.telemetry.metrics().render().unwrap_or_else(|error| {
            log::error!("metrics cannot be rendered: {error}");
            String::new()
        })
    }
}

/// State that is read at each scrape: health, breakers, mirrors, DNS, connections, certificates.
struct StateMetrics(std::sync::Weak<Gateway>);

impl Source for StateMetrics {
    fn collect(&self, out: &mut Gathered) {
        let Some(gateway) = self.0.upgrade() else { return };
        let now = Moment::now();
        for origin in gateway.published.current().origins.values() {
            collect_upstream(&origin.upstream, now, out);
        }
        let copies = gateway.mirror.counters();
        for (outcome, count) in
            [("answered", &copies.answered), ("failed", &copies.failed), ("dropped", &copies.dropped)]
        {
            out.mirrored(outcome, count.load(Ordering::Relaxed));
        }
        let dns = gateway.resolver.counters();
        let [resolutions, failures, denials] =
            [&dns.resolutions, &dns.failures, &dns.denials].map(|count| count.load(Ordering::Relaxed));
        out.dns(resolutions, failures, denials);
        for (limit, refused, warned) in gateway.lasting.counters.read() {
            out.limit(&limit, refused, warned);
        }
        let usage = gateway.lasting.quotas.state();
        let [writes, failures] = [&usage.writes, &usage.failures].map(|count| count.load(Ordering::Relaxed));
        out.usage_store(writes, failures);
        if let Some(fleet) = &gateway.published.current().fleet {
            let [answers, failures] = [&fleet.answers, &fleet.failures].map(|count| count.load(Ordering::Relaxed));
            out.redis(fleet.is_up(), answers, failures);
        }
        out.callers(gateway.lasting.rates.callers() as u64);
        for route in &gateway.published.current().routes {
            if let Backend::Mcp(backend) = &route.backend {
                out.mcp_sessions(&route.name.service, &route.name.route, backend.state.sessions.len());
            }
        }
        for (name, listener) in &gateway.listeners {
            out.connections_active(name, listener.counters.active() as u64);
            out.connections_accepted(name, listener.counters.accepted());
            for ending in Ending::ALL {
                out.connections_rejected(name, ending.label(), listener.counters.ended(ending));
            }
            for certificate in listener.settings().certificates() {
                let expires = certificate.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
                let host = certificate.hosts.first().map_or("-", String::as_str);
                out.certificate_expiry(name, host, expires);
            }
        }
    }
}

fn collect_upstream(upstream: &Upstream, now: Moment, out: &mut Gathered) {
    let status = upstream.status(now);
    for target in &status.targets {
        out.target_healthy(&status.name, &target.name, target.healthy && !target.ejected);
    }
    if status.breaker.is_some() {
        let state = match upstream.breaker_state(now) {
            BreakerState::Closed => BreakerMetric::Closed,
            BreakerState::HalfOpen => BreakerMetric::HalfOpen,
            BreakerState::Open => BreakerMetric::Open,
        };
        out.breaker_state(&status.name, state);
    }
}

/// Keeps a snapshot until the last request that runs on it has ended, so that no request has to take it apart.
async fn drop_when_unused(snapshot: Arc<Snapshot>) {
    while Arc::strong_count(&snapshot) > 1 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let _ = tokio::task::spawn_blocking(move || {
        drop(snapshot);
        memory::give_back();
    })
    .await;
}

/// What was used of models, by consumer, model and day.
fn use_of_models(ledger: &Ledger, consumer: Option<&str>, days: u32) -> serde_json::Value {
    let rows = match ledger.read(consumer, days) {
        Ok(rows) => rows,
        Err(error) => return json!({ "error": error }),
    };
    let day = |day: i64| jiff::Timestamp::from_second(day * 86_400).map(|at| at.strftime("%Y-%m-%d").to_string());
    let rows = rows.iter().map(|row| {
        let used = &row.used;
        json!({
            "day": day(row.day).unwrap_or_default(),
            "consumer": (!row.consumer.is_empty()).then_some(&row.consumer),
            "model": row.model,
            "calls": used.calls,
            "failed_calls": used.failed,
            "input_tokens": used.input,
            "cache_read_tokens": used.cache_read,
            "cache_write_tokens": used.cache_write,
            "output_tokens": used.output,
            "reasoning_tokens": used.reasoning,
            "cost": used.cost as f64 / 1e9,
            "unpriced_calls": used.unpriced,
        })
    });
    rows.collect()
}

/// Opens the store that a configuration with quotas needs, or with models, if everything else in it is right.
fn open_usage(snapshot: Option<&Snapshot>, loaded: &Loaded<Config>, lasting: &Lasting, problems: &mut Problems) {
    let Some(snapshot) = snapshot.filter(|_| problems.is_empty()) else { return };
    if !snapshot.counts() && snapshot.models.is_none() {
        return;
    }
    let file = loaded.config.usage.file(&loaded.folder);
    let Err(message) = lasting.open_usage(&file, snapshot.models.is_some()) else { return };
    if !snapshot.counts() {
        log::warn!("{message}; the use of models is counted in memory alone");
        return;
    }
    // A gateway of a fleet need not have a place for a file. But one that is there is not passed over: what is in it counts.
    let is_new = !lasting.quotas.is_open() && matches!(file.try_exists(), Ok(false));
    match snapshot.fleet.is_some() && is_new {
        true => log::warn!("{message}; what this gateway counts is kept in Redis alone"),
        false => problems.add("usage.file", message),
    }
}

fn warn(loaded: &Loaded<Config>) {
    for warning in &inspect::warnings(loaded).0 {
        log::warn!("configuration: {warning}");
    }
}

fn placed(mut problems: Problems, loaded: &Loaded<Config>) -> Problems {
    loaded.sources.place_all(&mut problems);
    problems.sort();
    problems
}
