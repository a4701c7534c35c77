//! From the configuration to an [`Upstream`], or to every problem it has.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use http::{HeaderName, uri};

use super::address::Address;
use super::breaker::Breaker;
use super::clock::Moment;
use super::ejection::Ejection;
use super::health::Checks;
use super::retry::Retry;
use super::set::{TargetSet, Template, Written};
use super::state::lock;
use super::sticky::Sticky;
use super::target::Limits;
use super::tls::{Tls, server_name};
use super::{Rules, Shared, Upstream};
use crate::config::units::Duration;
use crate::config::upstream::{self as config, Balance, HashOn, Protocol, SameSite};
use crate::config::{Environment, Problems};

const MAX_WEIGHT: u32 = 10_000;
const MAX_ATTEMPTS: u32 = 10;
const MAX_STREAMS: usize = 1000;

/// What a configuration refers to outside of itself.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Relative paths are relative to it.
    pub folder: &'a Path,
    pub environment: &'a Environment<'a>,
}

impl Upstream {
    /// Compiles an upstream, taking over what `previous`, the one of this name that is in service, has learnt.
    ///
    /// It changes nothing for `previous`, so that a configuration may still be refused afterwards; once it is in
    /// service, call [`Upstream::activate`]. `path` is the upstream's place in the document. `None` if there is a
    /// problem.
    pub fn compile(
        name: &str,
        config: &config::Upstream,
        previous: Option<&Arc<Upstream>>,
        surroundings: Surroundings<'_>,
        path: &str,
        problems: &mut Problems,
    ) -> Option<Arc<Upstream>> {
        let before = problems.0.len();
        let now = Moment::now();
        let written = targets(config, path, problems);
        let tls = config.tls.as_ref().map(|tls| Tls::load(tls, surroundings.folder, &format!("{path}.tls"), problems));
        check_tls(config, &written, path, problems);
        check_balance(config, path, problems);
        check_health(config, path, problems);
        check_bounds(config, path, problems);
        let sticky = config.sticky.as_ref().map(|sticky| {
            let path = format!("{path}.sticky");
            check_sticky(sticky, &path, problems);
            let secret = sticky.secret.as_ref().and_then(|secret| {
                secret.resolve(surroundings.folder, surroundings.environment, &format!("{path}.secret"), problems)
            });
            Sticky::new(sticky, secret.as_ref(), name)
        });
        if problems.0.len() > before {
            return None;
        }

        let template = Template {
            group_key: group_key(name, config.protocol, tls.as_ref()),
            tls,
            protocol: config.protocol,
            keep_alive: config.keep_alive.idle.get(),
            max_streams: config.max_streams,
            check_port: config.health.active.as_ref().and_then(|active| active.port),
            balance: config.balance.clone(),
        };
        let state = previous.map(|previous| previous.shared.state.clone()).unwrap_or_default();
        let resolved = lock(&state.resolved).clone();
        let known = previous.map(|previous| previous.set.load().states()).unwrap_or_default();
        let shared = Arc::new(Shared { name: name.into(), rules: rules(config, sticky), state });
        let set = TargetSet::build(&shared, &template, &written, &resolved, &known, now);
        let upstream = Upstream {
            shared,
            set: ArcSwap::from_pointee(set),
            rebuilding: Mutex::new(()),
            template,
            written,
            checks: config.health.active.clone().map(Checks::new),
        };
        if previous.is_none() {
            upstream.activate(now);
        }
        Some(Arc::new(upstream))
    }

    /// Puts the upstream into service in place of the one it was compiled after. To be called when the snapshot that
    /// holds it is published; [`super::Supervisor::follow`] does it.
    pub fn activate(&self, now: Moment) {
        let state = &self.shared.state;
        // The judgement of a rule that is gone must not outlive it: nobody would ever revise it.
        if self.shared.rules.breaker.is_none() {
            state.breaker.close();
        }
        lock(&state.resolved).retain(|text, _| self.written.iter().any(|target| target.text == *text));
        self.refresh(now);
        for target in &self.set.load().targets {
            if self.checks.is_none() {
                target.state.forget_checks();
            }
            if self.shared.rules.ejection.is_none() {
                target.state.eject(Moment::NEVER);
            }
        }
    }
}

fn rules(config: &config::Upstream, sticky: Option<Sticky>) -> Rules {
    Rules {
        limits: Limits {
            connect: config.timeouts.connect.get(),
            first_byte: config.timeouts.first_byte.get(),
            idle: config.timeouts.idle.get(),
            total: config.timeouts.total.map(Duration::get),
        },
        requests_per_target: config.limits.requests_per_target.unwrap_or(u32::MAX),
        requests: config.limits.requests,
        slow_start_millis: config.slow_start.map(|time| time.get().as_millis() as u64),
        hash_on: match &config.balance {
            Balance::ConsistentHash(hash) => Some(hash.on.clone()),
            _ => None,
        },
        sticky,
        breaker: config.breaker.as_ref().map(Breaker::new),
        ejection: config.health.passive.as_ref().map(Ejection::new),
        retry: Retry::new(&config.retry),
    }
}

/// Keeps connections of different upstreams, or of one before and after its TLS changed, apart in Pingora's pool,
/// which by itself regards neither authorities nor protocol.
fn group_key(name: &str, protocol: Protocol, tls: Option<&Tls>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, protocol as u8, tls.map(|tls| &tls.fingerprint)).hash(&mut hasher);
    hasher.finish()
}

fn targets(config: &config::Upstream, path: &str, problems: &mut Problems) -> Vec<Written> {
    if config.targets.is_empty() {
        problems.add(format!("{path}.targets"), "is empty; name at least one target");
    } else if config.targets.iter().all(|target| target.weight == 0) {
        problems.add(format!("{path}.targets"), "all have weight 0, so none would receive a request");
    }
    let mut seen: HashMap<Address, usize> = HashMap::new();
    let mut written = Vec::new();
    for (i, target) in config.targets.iter().enumerate() {
        let path = format!("{path}.targets[{i}]");
        if target.weight > MAX_WEIGHT {
            problems.add(format!("{path}.weight"), format!("is more than {MAX_WEIGHT}"));
        }
        if target.backup && target.tier > 1 {
            problems.add(format!("{path}.backup"), "is the same as `tier: 1`, but another tier is given");
        }
        let address = match Address::parse(&target.address) {
            Ok(address) => address,
            Err(error) => {
                problems.add(format!("{path}.address"), format!("`{}`: {error}", target.address));
                continue;
            }
        };
        if let Some(first) = seen.insert(address.clone(), i) {
            problems
                .add(format!("{path}.address"), format!("is the address of targets[{first}] too; use its `weight`"));
        }
        written.push(Written {
            text: target.address.clone(),
            address,
            weight: target.weight,
            tier: target.tier.max(u8::from(target.backup)),
            name: target.name.as_deref().map(Into::into),
        });
    }
    written
}

fn check_tls(config: &config::Upstream, written: &[Written], path: &str, problems: &mut Problems) {
    match (config.protocol, &config.tls) {
        (Protocol::Http2, None) => {
            problems.add(format!("{path}.protocol"), "http2 needs `tls`; for clear text write `h2c`");
        }
        (Protocol::H2c, Some(_)) => {
            problems.add(format!("{path}.protocol"), "h2c is clear text; with `tls` write `http2`");
        }
        _ => {}
    }
    let Some(config::Tls { sni: None, .. }) = &config.tls else {
        return;
    };
    for target in written {
        // Without a name Pingora would verify nothing, and say nothing.
        if !target.address.server_name().is_some_and(|name| server_name(&name)) {
            problems.add(
                format!("{path}.tls.sni"),
                format!("is needed: `{}` has no name that a certificate could be checked against", target.text),
            );
        }
    }
}

fn check_balance(config: &config::Upstream, path: &str, problems: &mut Problems) {
    let Balance::ConsistentHash(hash) = &config.balance else {
        return;
    };
    let hash_path = format!("{path}.balance.consistent_hash");
    let on = format!("{hash_path}.on");
    match &hash.on {
        HashOn::Header(name) if HeaderName::from_bytes(name.as_bytes()).is_err() => {
            problems.add(format!("{on}.header"), format!("`{name}` is not a header name"));
        }
        HashOn::Cookie(name) if !token(name) => {
            problems.add(format!("{on}.cookie"), format!("`{name}` is not a cookie name"));
        }
        HashOn::Query(name) if name.is_empty() => problems.add(format!("{on}.query"), "is empty"),
        _ => {}
    }
    if hash.bounded_load.is_some_and(|factor| !(factor > 1.0 && factor.is_finite())) {
        problems.add(format!("{hash_path}.bounded_load"), "must be more than 1, such as 1.25");
    }
    if config.slow_start.is_some() {
        problems.add(format!("{path}.slow_start"), "has no effect with `consistent_hash`");
    }
}

fn check_sticky(sticky: &config::Sticky, path: &str, problems: &mut Problems) {
    if !token(&sticky.cookie) {
        problems.add(format!("{path}.cookie"), format!("`{}` is not a cookie name", sticky.cookie));
    }
    let printable = sticky.path.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b';');
    if !sticky.path.starts_with('/') || !printable {
        problems.add(format!("{path}.path"), "must begin with `/` and hold no `;`");
    }
    if sticky.same_site == SameSite::None && !sticky.secure {
        problems.add(format!("{path}.same_site"), "`none` needs `secure: true`; browsers drop the cookie otherwise");
    }
}

fn check_health(config: &config::Upstream, path: &str, problems: &mut Problems) {
    if let Some(active) = &config.health.active {
        let path = format!("{path}.health.active");
        match [active.http.is_some(), active.tcp.is_some(), active.grpc.is_some()].iter().filter(|set| **set).count() {
            1 => {}
            0 => problems.add(&path, "does not say how to check; write one of `http: {}`, `tcp: {}`, `grpc: {}`"),
            _ => problems.add(&path, "has more than one of `http`, `tcp` and `grpc`"),
        }
        if let Some(http) = &active.http {
            if !http.path.starts_with('/') || http.path.parse::<uri::PathAndQuery>().is_err() {
                problems.add(format!("{path}.http.path"), format!("`{}` is not a path beginning with `/`", http.path));
            }
            if let Some(host) = &http.host
                && host.parse::<uri::Authority>().is_err()
            {
                problems.add(format!("{path}.http.host"), format!("`{host}` is not a host"));
            }
            if http.expect.is_empty() || http.expect.iter().any(|range| range.from < 200) {
                problems.add(format!("{path}.http.expect"), "must list statuses from 200 to 599");
            }
        }
        positive(active.interval, &format!("{path}.interval"), problems);
        positive(active.timeout, &format!("{path}.timeout"), problems);
        at_least_one(active.healthy_after, &format!("{path}.healthy_after"), problems);
        at_least_one(active.unhealthy_after, &format!("{path}.unhealthy_after"), problems);
        if active.port == Some(0) {
            problems.add(format!("{path}.port"), "0 cannot be connected to");
        }
        if active.port.is_some() && config.targets.iter().any(|target| target.address.starts_with("unix:")) {
            problems.add(format!("{path}.port"), "cannot be used with targets that are Unix sockets");
        }
    }
    if let Some(passive) = &config.health.passive {
        let path = format!("{path}.health.passive");
        at_least_one(passive.consecutive_failures, &format!("{path}.consecutive_failures"), problems);
        positive(passive.eject_for, &format!("{path}.eject_for"), problems);
        if passive.max_eject_for < passive.eject_for {
            problems.add(format!("{path}.max_eject_for"), "is less than `eject_for`");
        }
        if let Some(slow) = &passive.slow {
            if !(slow.factor > 1.0 && slow.factor.is_finite()) {
                problems.add(format!("{path}.slow.factor"), "must be more than 1");
            }
            at_least_one(slow.min_requests, &format!("{path}.slow.min_requests"), problems);
            positive(slow.window, &format!("{path}.slow.window"), problems);
        }
    }
}

fn check_bounds(config: &config::Upstream, path: &str, problems: &mut Problems) {
    if let Some(breaker) = &config.breaker {
        let path = format!("{path}.breaker");
        if breaker.failures.fraction() <= 0.0 {
            problems.add(format!("{path}.failures"), "must be more than 0%");
        }
        at_least_one(breaker.min_requests, &format!("{path}.min_requests"), problems);
        at_least_one(breaker.half_open_requests, &format!("{path}.half_open_requests"), problems);
        positive(breaker.window, &format!("{path}.window"), problems);
        positive(breaker.open_for, &format!("{path}.open_for"), problems);
    }
    for (limit, name) in
        [(config.limits.requests_per_target, "requests_per_target"), (config.limits.requests, "requests")]
    {
        if let Some(limit) = limit {
            at_least_one(limit, &format!("{path}.limits.{name}"), problems);
        }
    }
    if !(1..=MAX_ATTEMPTS).contains(&config.retry.attempts) {
        problems.add(format!("{path}.retry.attempts"), format!("must be from 1 (no retries) to {MAX_ATTEMPTS}"));
    }
    if !(1..=MAX_STREAMS).contains(&config.max_streams) {
        problems.add(format!("{path}.max_streams"), format!("must be from 1 to {MAX_STREAMS}"));
    }
    let timeouts = &config.timeouts;
    for (time, name) in [
        (Some(timeouts.connect), "timeouts.connect"),
        (Some(timeouts.first_byte), "timeouts.first_byte"),
        (Some(timeouts.idle), "timeouts.idle"),
        (timeouts.total, "timeouts.total"),
        (Some(config.keep_alive.idle), "keep_alive.idle"),
        (config.slow_start, "slow_start"),
    ] {
        if let Some(time) = time {
            positive(time, &format!("{path}.{name}"), problems);
        }
    }
}

fn positive(time: Duration, path: &str, problems: &mut Problems) {
    if time.get().as_millis() == 0 {
        problems.add(path, "must be at least 1ms");
    }
}

fn at_least_one(number: u32, path: &str, problems: &mut Problems) {
    if number == 0 {
        problems.add(path, "must be at least 1");
    }
}

/// A token (RFC 9110, section 5.6.2), which cookie names are.
fn token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}
