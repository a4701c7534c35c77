//! Looking at a configuration without serving it: `check`, `explain`, `schema`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use prometheus::Registry;

use crate::config::listener::Listener;
use crate::config::service::Access;
use crate::config::{
    Backend, Config, ConfigSchema, Environment, FilterEntry, FilterSchema, Loaded, Problems, RouteMatch, nearest,
    process_environment,
};
use crate::filters::REGISTRY;
use crate::filters::authenticate::mtls::Mtls;
use crate::filters::chain::Place;
use crate::filters::limit::rate_limit::RateLimit;
use crate::filters::registry::FilterKind;
use crate::listener::{self, ListenerState};
use crate::snapshot::{Ground, Route, Snapshot, compile};
use crate::telemetry::Plan;
use crate::telemetry::metrics::Metrics;
use crate::upstream::Surroundings;
use crate::upstream::discovery::dns::ResolverConfig;

/// Pingora hands over at most 32 sockets in an upgrade; the admin listener is one of them.
const MOST_LISTENERS: usize = 31;

/// The schema of the whole configuration, filters included; made once.
pub fn config_schema() -> &'static ConfigSchema {
    static SCHEMA: OnceLock<ConfigSchema> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let filters: Vec<_> =
            REGISTRY.iter().map(|filter| FilterSchema { name: filter.name, schema: filter.schema }).collect();
        ConfigSchema::of::<Config>(&filters)
    })
}

/// `headgate schema`.
pub fn schema() -> &'static serde_json::Value {
    config_schema().as_value()
}

/// `headgate check`: every problem of a configuration, as one text.
pub fn check(path: &Path) -> Result<(), String> {
    let (problems, warnings) = match Config::load(path, config_schema()) {
        Err(problems) => (problems, Problems::default()),
        Ok(loaded) => (examine(&loaded, &process_environment).1, warnings(&loaded)),
    };
    for warning in &warnings.0 {
        println!("warning: {warning}");
    }
    match problems.0.len() {
        0 => {
            println!("{}: no problems", path.display());
            Ok(())
        }
        count => {
            let noun = if count == 1 { "problem" } else { "problems" };
            Err(format!("{problems}\n{count} {noun} in {}", path.display()))
        }
    }
}

/// What a configuration compiles to, and what compiling finds, without taking anything into service.
pub fn examine(loaded: &Loaded<Config>, environment: &Environment) -> (Option<Snapshot>, Problems) {
    let config = &loaded.config;
    let mut problems = Problems::default();
    let snapshot = match Metrics::new(Registry::new()) {
        Ok(metrics) => {
            let ground = Ground { around: around(loaded, environment), metrics: &metrics, lasting: &Arc::default() };
            compile(config, ground, None, &mut problems)
        }
        Err(error) => {
            problems.add("(metrics)", error.to_string());
            None
        }
    };
    for (name, listener) in &config.listeners {
        ListenerState::new(name, listener, &config.server.drain, &format!("listeners.{name}"), &mut problems);
    }
    check_listeners(config, &mut problems);
    telemetry_plan(config, &mut problems);
    ResolverConfig::compile(&config.dns, "dns", &mut problems);
    loaded.sources.place_all(&mut problems);
    problems.sort();
    (snapshot, problems)
}

/// What works as it is written, and is a risk that somebody should have decided to take.
pub fn warnings(loaded: &Loaded<Config>) -> Problems {
    let mut warnings = Problems::default();
    for (name, upstream) in &loaded.config.upstreams {
        if upstream.tls.as_ref().is_some_and(|tls| !tls.verify) {
            let message = "nobody checks who answers: whoever is on the way to the origin can pretend to be it; \
                           give its authority as `ca` instead";
            warnings.add(format!("upstreams.{name}.tls.verify"), message);
        }
    }
    if loaded.config.redis.is_none() {
        let everywhere = limits_of_fleets(&loaded.config);
        for path in everywhere {
            warnings
                .add(path, "without `redis`, this gateway keeps the limit by itself, exactly, and this says nothing");
        }
    }
    if loaded.config.admin.allow_remote {
        let message = "the admin listener has no authentication: whoever reaches it reads all metrics";
        warnings.add("admin.allow_remote", message);
    }
    loaded.sources.place_all(&mut warnings);
    warnings.sort();
    warnings
}

/// The places of rate limits that say something about a fleet.
fn limits_of_fleets(config: &Config) -> Vec<String> {
    let lists = filter_lists(config);
    let entries = lists.iter().flat_map(|(path, filters)| filters.iter().enumerate().map(move |entry| (path, entry)));
    let limits = entries.filter(|(_, (_, entry))| entry.name == RateLimit::NAME);
    let words = ["lease", "exact", "on_redis_failure"];
    let says = |(path, (i, entry)): (&String, (usize, &FilterEntry))| {
        let word = words.iter().find(|word| entry.config.get(word).is_some())?;
        Some(format!("{path}[{i}].{}.{word}", RateLimit::NAME))
    };
    limits.filter_map(says).collect()
}

/// Every list of filters, with its place.
fn filter_lists(config: &Config) -> Vec<(String, &[FilterEntry])> {
    let mut lists = vec![("filters".to_owned(), config.filters.as_slice())];
    for (name, service) in &config.services {
        lists.push((format!("services.{name}.filters"), &service.filters));
        let routes = service.routes.iter();
        lists.extend(routes.map(|(route, it)| (format!("services.{name}.routes.{route}.filters"), &*it.filters)));
    }
    lists.extend(config.plans.iter().map(|(name, plan)| (format!("plans.{name}.filters"), &*plan.filters)));
    let consumers = config.consumers.iter().filter(|(_, consumer)| !consumer.filters.is_empty());
    lists.extend(consumers.map(|(name, consumer)| (format!("consumers.{name}.filters"), &*consumer.filters)));
    lists
}

/// What the configuration refers to outside of itself.
pub fn around<'s>(loaded: &'s Loaded<Config>, environment: &'s Environment<'s>) -> Surroundings<'s> {
    Surroundings { folder: &loaded.folder, environment }
}

/// What no single listener can know: how many there are, whether two share an address, and what filters want of them.
pub fn check_listeners(config: &Config, problems: &mut Problems) {
    check_certificates_are_asked_for(config, problems);
    if config.listeners.len() > MOST_LISTENERS {
        let message = format!("an upgrade hands over at most {MOST_LISTENERS} listeners and the admin listener");
        problems.add("listeners", message);
    }
    let admin = config.admin.address.to_string();
    let mut taken = std::collections::BTreeMap::from([(admin.as_str(), "admin")]);
    for (name, listener) in &config.listeners {
        if let Some(other) = taken.insert(&listener.address, name) {
            problems.add(format!("listeners.{name}.address"), format!("`{other}` listens there already"));
        }
    }
    if !config.admin.allow_remote && !config.admin.address.ip().is_loopback() {
        problems.add(
            "admin.address",
            "other machines could reach this address; use a loopback address, or say `allow_remote: true`",
        );
    }
}

/// A filter that waits for certificates where no client is asked for one would refuse everybody.
fn check_certificates_are_asked_for(config: &Config, problems: &mut Problems) {
    let asks = |listener: &Listener| listener.tls.as_ref().is_some_and(|tls| tls.client_certificates.is_some());
    if config.listeners.values().any(asks) {
        return;
    }
    for (place, filters) in filter_lists(config) {
        for (i, filter) in filters.iter().enumerate().filter(|(_, filter)| filter.name == Mtls::NAME) {
            let message =
                "no listener asks clients for certificates: write `client_certificates` below a listener's `tls`";
            problems.add(format!("{place}[{i}].{}", filter.name), message);
        }
    }
}

pub fn telemetry_plan(config: &Config, problems: &mut Problems) -> Option<Plan> {
    let access_log = config.access_log.clone().unwrap_or_else(crate::config::telemetry::AccessLog::off);
    let tracing = config.tracing.clone().unwrap_or_default();
    Plan::compile(&access_log, &tracing, problems)
}

/// Files that the configuration takes certificates and keys from: a change of one is a change of the configuration.
pub fn referenced_files(loaded: &Loaded<Config>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for listener in loaded.config.listeners.values() {
        files.extend(listener::files(listener).into_iter().map(PathBuf::from));
    }
    for upstream in loaded.config.upstreams.values() {
        let Some(tls) = &upstream.tls else { continue };
        files.extend([&tls.ca, &tls.certificate, &tls.key].into_iter().flatten().cloned());
    }
    for route in loaded.config.services.values().flat_map(|service| service.routes.values()) {
        if let Backend::Mcp(tools) = &route.backend {
            files.extend(tools.openapi.iter().map(|document| PathBuf::from(&document.file)));
        }
    }
    files
}

/// `headgate explain`: what one route does, for one consumer if it is named.
pub fn explain(path: &Path, wanted: &str, caller: Option<&str>) -> Result<(), String> {
    let loaded = super::load(path)?;
    let snapshot = match examine(&loaded, &process_environment) {
        (Some(snapshot), problems) if problems.is_empty() => snapshot,
        (_, problems) => return Err(problems.to_string()),
    };
    let config = &loaded.config;
    let all = config.services.iter().flat_map(|(service, written)| {
        written.routes.iter().map(move |(route, rule)| (format!("{service}/{route}"), service, written, rule))
    });
    let found: Vec<_> = all
        .clone()
        .filter(|(name, ..)| name == wanted || name.rsplit_once('/').is_some_and(|(_, route)| route == wanted))
        .collect();
    let (name, service_name, service, route) = match found.as_slice() {
        [one] => one,
        [] => {
            let names: Vec<_> = all.map(|(name, ..)| name).collect();
            let hint = nearest(wanted, names.iter().map(String::as_str));
            let hint =
                hint.map_or_else(|| format!("; there are: {}", names.join(", ")), |n| format!("; did you mean {n}?"));
            return Err(format!("there is no route {wanted}{hint}"));
        }
        several => {
            let names: Vec<_> = several.iter().map(|(name, ..)| name.as_str()).collect();
            return Err(format!("{wanted} names several routes; say which: {}", names.join(", ")));
        }
    };
    let is_it = |known: &&Route| format!("{}/{}", known.name.service, known.name.route) == *name;
    let chain = snapshot.routes.iter().find(is_it).map(|route| route.chain.clone()).unwrap_or_default();
    let caller = match caller {
        None => None,
        Some(name) => Some(snapshot.directory.consumer(name).ok_or_else(|| {
            let hint = nearest(name, config.consumers.keys().map(String::as_str));
            format!("there is no consumer {name}{}", hint.map_or_else(String::new, |n| format!("; did you mean {n}?")))
        })?),
    };
    let of_caller = caller.and_then(|caller| chain.of_caller(caller)).map(Arc::new);
    let plan = || caller?.subscription(snapshot.directory.service_id(service_name)?);
    let plan = plan().map_or("", |subscription| snapshot.directory.plan(subscription.plan));
    let elsewhere = callers_with_filters(config, service_name).filter(|_| chain.authenticates && caller.is_none());
    let chain = of_caller.unwrap_or(chain);

    let mut text = String::new();
    let _ = writeln!(text, "route    {name}");
    if let Some(version) = &service.version {
        let _ = writeln!(text, "version  {version}");
    }
    let mut rule = route.matches.clone();
    if rule.host.is_none() && rule.hosts.is_empty() {
        rule.hosts = service.hosts.clone();
    }
    let _ = writeln!(text, "match    {}", describe(&rule));
    let access = match (service.access, chain.authenticates) {
        (Some(Access::Subscribers), _) => "subscribers of the service",
        (Some(Access::Open), true) => "everyone; whoever presents credentials is identified by them",
        (Some(Access::Authenticated), _) | (None, true) => "whoever a filter identifies",
        (Some(Access::Open) | None, false) => "everyone",
    };
    let _ = writeln!(text, "access   {access}");
    let _ = writeln!(text, "filters  in the order a request passes them; answers pass in the reverse order");
    if chain.filters.is_empty() {
        let _ = writeln!(text, "  (none)");
    }
    for (filter, stage, place) in &chain.filters {
        let place = match place {
            Place::Gateway => "the gateway".to_owned(),
            Place::Service => format!("service {service_name}"),
            Place::Route => "this route".to_owned(),
            Place::Plan => format!("plan {plan}"),
            Place::Consumer => format!("consumer {}", caller.map_or("", |caller| caller.name())),
        };
        let _ = writeln!(text, "  {:<12} {filter:<16} from {place}", stage.as_str());
    }
    if let Some(elsewhere) = elsewhere {
        let _ = writeln!(text, "  {elsewhere}; `--consumer NAME` shows what one of its callers passes");
    }
    let backend = match &route.backend {
        Backend::Upstream(upstream) => format!("upstream {upstream}"),
        Backend::Split(split) => {
            let shares = split.targets.iter().map(|target| format!("{} ({})", target.upstream, target.weight));
            format!("split over {}", shares.collect::<Vec<_>>().join(", "))
        }
        Backend::Respond(respond) => format!("respond {}", respond.status),
        Backend::Redirect(redirect) => format!("redirect {}", redirect.status.get()),
        Backend::Ai(route) if route.models.is_empty() => "all models".to_owned(),
        Backend::Ai(route) => format!("models {}", route.models.join(", ")),
        Backend::Mcp(mcp) => {
            let tools: Vec<&str> = mcp.tools.keys().map(String::as_str).collect();
            let files = mcp.openapi.iter().map(|document| document.file.as_str());
            let servers = mcp.servers.keys().map(String::as_str);
            let parts = tools.into_iter().chain(files).chain(servers).collect::<Vec<_>>();
            format!("tools {}", parts.join(", "))
        }
    };
    let _ = writeln!(text, "backend  {backend}");
    if let Some(mirror) = &route.mirror {
        let _ = writeln!(text, "mirror   {} of the requests to upstream {}", mirror.share, mirror.upstream);
    }
    print!("{text}");
    Ok(())
}

/// Who may bring filters of its own to a service, in a line; `None` if nobody does.
fn callers_with_filters(config: &Config, service: &str) -> Option<String> {
    let subscribed = |plan: &str| {
        let mut all = config.consumers.values().filter_map(|consumer| consumer.subscriptions.get(service));
        all.any(|subscription| subscription.plan() == plan)
    };
    let plans = config.plans.iter().filter(|(name, plan)| !plan.filters.is_empty() && subscribed(name));
    let mut words: Vec<_> = plans.map(|(name, _)| format!("plan {name}")).collect();
    let mut consumers = config.consumers.iter().filter(|(_, consumer)| !consumer.filters.is_empty());
    words.extend(consumers.by_ref().take(3).map(|(name, _)| format!("consumer {name}")));
    match (words.is_empty(), consumers.count()) {
        (true, _) => None,
        (false, 0) => Some(format!("more with: {}", words.join(", "))),
        (false, others) => Some(format!("more with: {} and {others} other consumers", words.join(", "))),
    }
}

/// A match in a line: methods, hosts, path, and how many further conditions there are.
fn describe(rule: &RouteMatch) -> String {
    let methods = if rule.methods.is_empty() { "any method".to_owned() } else { rule.methods.join("|") };
    let hosts: Vec<&str> = rule.host.iter().chain(&rule.hosts).map(String::as_str).collect();
    let hosts = if hosts.is_empty() { "any host".to_owned() } else { hosts.join("|") };
    let path = match (&rule.path, &rule.path_prefix, &rule.path_regex) {
        (Some(path), ..) => format!("path {path}"),
        (_, Some(prefix), _) => format!("path prefix {prefix}"),
        (.., Some(regex)) => format!("path regex {regex}"),
        _ => "any path".to_owned(),
    };
    let mut text = format!("{methods}, {hosts}, {path}");
    let conditions = [
        (rule.headers.len(), "header"),
        (rule.query.len(), "query"),
        (rule.cookies.len(), "cookie"),
        (rule.client.len(), "client"),
    ];
    for (count, kind) in conditions.into_iter().filter(|(count, _)| *count > 0) {
        let plural = if count == 1 { "" } else { "s" };
        let _ = write!(text, ", {count} {kind} condition{plural}");
    }
    text
}
