//! From a configuration to a [`Snapshot`], or to every problem it has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::{Backend, MirrorTo, Origin, OwnedHeaders, Route, Snapshot, Split, Standings};
use super::{ai, mcp};
use crate::config::service::Access;
use crate::config::{self, Config, FilterEntry, Problems};
use crate::filters::authenticate::IdentityHeaders;
use crate::filters::callers::CallerFilters;
use crate::filters::chain::{Attached, Chain, Place, Rules, attach};
use crate::filters::filter::RequestStep;
use crate::filters::lasting::Lasting;
use crate::filters::limit::plan::Plans;
use crate::filters::limit::usage::Limit;
use crate::filters::registry::{Site, compile_backend};
use crate::identity::{Directory, ServiceId};
use crate::limits::{Fleet, fleet};
use crate::routing::{self, Router};
use crate::telemetry::exchange::RouteName;
use crate::telemetry::metrics::Metrics;
use crate::upstream::{Surroundings, Upstream};
use crate::variables::Template;

/// What a configuration is compiled upon.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    pub around: Surroundings<'a>,
    pub metrics: &'a Metrics,
    pub lasting: &'a Arc<Lasting>,
}

/// Compiles a configuration. Health, counters and circuit state of `previous` go on by name. Changes nothing outside
/// what it returns, so a configuration with problems leaves no trace.
pub fn compile(
    config: &Config,
    ground: Ground<'_>,
    previous: Option<&Snapshot>,
    problems: &mut Problems,
) -> Option<Snapshot> {
    let Ground { around, metrics, lasting } = ground;
    let before = problems.0.len();
    let mut origins = compile_origins(config, ground, previous, problems);
    let models = ai::compile(config, ground, previous, &mut origins, problems);
    let directory = Arc::new(Directory::compile(config, around.folder, around.environment, problems));
    let fleet = compile_fleet(config, around, lasting, problems);
    let interval = config.usage.interval.get();
    if !(Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&interval) {
        problems.add("usage.interval", "what was used is written every 10ms at the most, and every 1h at the least");
    }
    let headers = identity_headers(config, problems);
    let mut limits: Vec<Arc<dyn Limit>> = Vec::new();
    let mut owned: Vec<HeaderName> = headers.iter().map(|(name, _)| name.clone()).collect();
    let callers = {
        let mut site = Site { path: "", problems, around, directory: &directory, lasting, fleet: fleet.as_ref() };
        CallerFilters::compile(config, &mut site)
    };
    if let Some(callers) = &callers {
        limits.push(callers.clone());
        owned.extend(callers.all().flat_map(Attached::owned_headers).cloned());
    }
    let mut attach = |place, entries: &[FilterEntry], path: &str, problems: &mut Problems| {
        let attached = attach(
            place,
            entries,
            &mut Site { path, problems, around, directory: &directory, lasting, fleet: fleet.as_ref() },
        );
        limits.extend(attached.iter().filter_map(|filter| filter.limit().cloned()));
        owned.extend(attached.iter().flat_map(|filter| filter.owned_headers()).cloned());
        attached
    };
    let gateway = attach(Place::Gateway, &config.filters, "filters", problems);
    let mut plans_of_services = Vec::new();
    let mut routes = Vec::new();
    let mut matches = Vec::new();
    for (index, (service_name, service)) in config.services.iter().enumerate() {
        let path = format!("services.{service_name}");
        let filters = attach(Place::Service, &service.filters, &format!("{path}.filters"), problems);
        // What the routes of a service have alike they share: with many routes, requests then find it in the cache.
        let shared_name: Arc<str> = service_name.as_str().into();
        let service_id = ServiceId(index as u32);
        let mut site = Site { path: &path, problems, around, directory: &directory, lasting, fleet: fleet.as_ref() };
        let plans = Plans::compile(config, service_id, service_name, &mut site);
        plans_of_services.extend(plans.clone());
        let rules = Rules {
            plans,
            callers: callers.clone(),
            service: service_id,
            access: service.access,
            require: service.require,
            headers: headers.clone(),
        };
        let shared_chain = Arc::new(Chain::join(&[&gateway, &filters], &rules));
        for (route_name, route) in &service.routes {
            let path = format!("{path}.routes.{route_name}");
            let own = attach(Place::Route, &route.filters, &format!("{path}.filters"), problems);
            let layers: [&[Attached]; 3] = [&gateway, &filters, &own];
            let chain = if own.is_empty() { shared_chain.clone() } else { Arc::new(Chain::join(&layers, &rules)) };
            if matches!(service.access, Some(Access::Authenticated | Access::Subscribers)) && !chain.authenticates {
                let message =
                    "the service asks who calls, but no filter on this route authenticates; add one, such as `api_key`";
                problems.add(&path, message);
            }
            let name = Arc::new(RouteName { service: shared_name.clone(), route: route_name.as_str().into() });
            matches.push(written_match(service_name, service, route_name, route, &path));
            let backend = if let config::Backend::Mcp(tools) = &route.backend {
                let path = format!("{path}.backend.mcp");
                let rules = tools.rules.iter().enumerate().map(|(i, rule)| {
                    attach(Place::Route, &rule.filters, &format!("{path}.rules[{i}].filters"), problems)
                });
                let rules = rules.collect();
                let name = format!("{service_name}/{route_name}");
                let mut ground = mcp::Ground { config, route: &name, metrics, previous, origins: &mut origins };
                let mut site =
                    Site { path: &path, problems, around, directory: &directory, lasting, fleet: fleet.as_ref() };
                mcp::backend(tools, rules, &mut ground, &mut site).map(|tools| Backend::Mcp(Box::new(tools)))
            } else {
                let path = format!("{path}.backend");
                let site =
                    Site { path: &path, problems, around, directory: &directory, lasting, fleet: fleet.as_ref() };
                compile_backend_of(config, &route.backend, &origins, models.as_ref(), site)
            };
            let mirror = route.mirror.as_ref().and_then(|mirror| {
                let origin = find(config, &origins, &mirror.upstream, format!("{path}.mirror.upstream"), problems)?;
                Some(MirrorTo { origin, share: mirror.share })
            });
            let Some(backend) = backend else { continue };
            let metrics = metrics.route(&name.service, &name.route);
            routes.push(Route { name, chain, backend, mirror, metrics });
        }
    }
    let written: Vec<_> = matches
        .iter()
        .map(|(name, place, rule)| routing::Route { name: name.as_str(), place: place.as_str(), rule })
        .collect();
    let router = Router::build(&written, problems);
    if problems.0.len() > before {
        return None;
    }
    let revision = previous.map_or(1, |previous| previous.revision + 1);
    limits.extend(plans_of_services.into_iter().map(|plans| plans as Arc<dyn Limit>));
    let budgets = models.as_ref().and_then(|models| models.budgets.clone());
    let budgets = budgets.map(|budgets| Arc::new(Standings(budgets)));
    limits.extend(budgets.clone().map(|budgets| budgets as Arc<dyn Limit>));
    let owned_headers = OwnedHeaders::new(owned);
    Some(Snapshot {
        revision,
        router,
        routes: routes.into(),
        origins,
        directory,
        owned_headers,
        limits: limits.into(),
        models,
        budgets,
        fleet,
    })
}

/// The connection to the Redis that the configuration names.
fn compile_fleet(
    config: &Config,
    around: Surroundings<'_>,
    lasting: &Lasting,
    problems: &mut Problems,
) -> Option<Arc<Fleet>> {
    let redis = config.redis.as_ref()?;
    let password = redis
        .password
        .as_ref()
        .map(|password| password.resolve(around.folder, around.environment, "redis.password", problems));
    let settings = fleet::Settings {
        url: redis.url.clone(),
        username: redis.username.clone(),
        password: password.flatten(),
        prefix: redis.prefix.clone(),
        timeout: redis.timeout.get(),
        gateways: redis.gateways,
    };
    lasting.fleet(settings).unwrap_or_else(|message| {
        problems.add("redis.url", message);
        None
    })
}

/// What origins are told of callers: the names of the headers, and their texts.
fn identity_headers(config: &Config, problems: &mut Problems) -> IdentityHeaders {
    let mut headers = Vec::new();
    for (name, text) in &config.identity.headers {
        let path = format!("identity.headers.{name}");
        match (HeaderName::from_bytes(name.as_bytes()), Template::parse(text)) {
            (Err(_), _) => problems.add(path, "this is not a name for a header"),
            (_, Err(message)) => problems.add(path, message),
            (Ok(name), Ok(template)) => headers.push((name, template)),
        }
    }
    headers.into()
}

/// A route's name, the place of its match, and the match with the service's hosts where it names none.
fn written_match(
    service_name: &str,
    service: &config::service::Service,
    route_name: &str,
    route: &config::service::Route,
    path: &str,
) -> (String, String, config::RouteMatch) {
    let mut rule = route.matches.clone();
    if rule.host.is_none() && rule.hosts.is_empty() {
        rule.hosts = service.hosts.clone();
    }
    (format!("{service_name}/{route_name}"), format!("{path}.match"), rule)
}

fn compile_origins(
    config: &Config,
    ground: Ground<'_>,
    previous: Option<&Snapshot>,
    problems: &mut Problems,
) -> BTreeMap<String, Arc<Origin>> {
    let mut origins = BTreeMap::new();
    for (name, written) in &config.upstreams {
        let before = previous.and_then(|previous| previous.origins.get(name)).map(|origin| &origin.upstream);
        let path = format!("upstreams.{name}");
        if let Some(upstream) = Upstream::compile(name, written, before, ground.around, &path, problems) {
            let metrics = ground.metrics.upstream(upstream.name());
            origins.insert(name.clone(), Arc::new(Origin { upstream, metrics }));
        }
    }
    origins
}

fn compile_backend_of(
    config: &Config,
    backend: &config::Backend,
    origins: &BTreeMap<String, Arc<Origin>>,
    models: Option<&Arc<ai::Models>>,
    mut at: Site<'_>,
) -> Option<Backend> {
    let path = at.path;
    match backend {
        config::Backend::Upstream(name) => {
            find(config, origins, name, format!("{path}.upstream"), at.problems).map(Backend::Upstream)
        }
        config::Backend::Split(split) => {
            let mut find =
                |name: &str, path: String, problems: &mut Problems| find(config, origins, name, path, problems);
            Split::compile(split, &mut find, &format!("{path}.split"), at.problems).map(Backend::Split)
        }
        config::Backend::Respond(respond) => {
            answering(compile_backend::<crate::filters::transform::respond::Respond>(respond, &mut at))
        }
        config::Backend::Redirect(redirect) => {
            answering(compile_backend::<crate::filters::transform::redirect::Redirect>(redirect, &mut at))
        }
        config::Backend::Ai(route) => ai::backend(route, models, &format!("{path}.ai"), at.problems).map(Backend::Ai),
        // Compiled where the filters of its rules are.
        config::Backend::Mcp(_) => None,
    }
}

/// The request side of a filter that answers by itself, as a backend.
fn answering(compiled: Option<crate::filters::filter::Compiled>) -> Option<Backend> {
    match compiled?.request? {
        RequestStep::Now(filter) => Some(Backend::Answer(filter)),
        RequestStep::Perhaps(_) | RequestStep::Later(_) => None,
    }
}

fn find(
    config: &Config,
    origins: &BTreeMap<String, Arc<Origin>>,
    name: &str,
    path: String,
    problems: &mut Problems,
) -> Option<Arc<Origin>> {
    // One that is written but did not compile has its own problems; naming it is none.
    if !config.upstreams.contains_key(name) {
        problems.unknown(path, "upstream", name, config.upstreams.keys().map(String::as_str));
    }
    origins.get(name).cloned()
}
