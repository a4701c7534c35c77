//! Which filters a route runs, in which order, and where each was attached.

use std::sync::Arc;

use http::HeaderName;

use super::authenticate::{Gate, IdentityHeaders};
use super::authorise::subscription::Subscribed;
use super::callers::CallerFilters;
use super::filter::{Compiled, OnResponse, RequestStep};
use super::find;
use super::limit::plan::{PlanQuotas, Plans};
use super::limit::usage::Limit;
use super::registry::Site;
use super::stage::Stage;
use crate::config::FilterEntry;
use crate::config::service::{Access, Require};
use crate::identity::{Consumer, ServiceId};

/// Where a filter was written. An inner place wins over an outer one: the order of declaration is outer to inner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Gateway,
    Service,
    Route,
    Plan,
    Consumer,
}

impl Place {
    pub fn as_str(self) -> &'static str {
        match self {
            Place::Gateway => "gateway",
            Place::Service => "service",
            Place::Route => "route",
            Place::Plan => "plan",
            Place::Consumer => "consumer",
        }
    }
}

/// One written filter, compiled; routes below its place share it.
#[derive(Clone)]
pub struct Attached {
    pub name: &'static str,
    pub stage: Stage,
    pub place: Place,
    compiled: Compiled,
}

impl Attached {
    /// What consumers can be shown of it.
    pub fn limit(&self) -> Option<&Arc<dyn Limit>> {
        self.compiled.limit.as_ref()
    }

    /// What it does with requests.
    pub fn request(&self) -> Option<&RequestStep> {
        self.compiled.request.as_ref()
    }

    /// Headers that only the gateway may set.
    pub fn owned_headers(&self) -> &[HeaderName] {
        &self.compiled.owned_headers
    }
}

/// Compiles the `filters:` list of one place; `at` is the place of the list.
pub fn attach(place: Place, entries: &[FilterEntry], at: &mut Site<'_>) -> Vec<Attached> {
    let mut attached = Vec::with_capacity(entries.len());
    for (i, entry) in entries.iter().enumerate() {
        let path = format!("{}[{i}].{}", at.path, entry.name);
        let Some(definition) = find(&entry.name) else {
            at.problems.unknown(path, "filter", &entry.name, super::REGISTRY.iter().map(|d| d.name));
            continue;
        };
        if place >= Place::Plan && definition.stage <= Stage::Authenticate {
            let message = format!(
                "`{}` runs before anybody knows who calls (stage {}); write it on the gateway, a service or a route",
                entry.name,
                definition.stage.as_str()
            );
            at.problems.add(path, message);
            continue;
        }
        if let Some(compiled) = (definition.compile)(&entry.config, &mut at.at(&path)) {
            attached.push(Attached { name: definition.name, stage: definition.stage, place, compiled });
        }
    }
    attached
}

/// What a service says of its callers beside its filters.
#[derive(Clone)]
pub struct Rules {
    pub service: ServiceId,
    pub access: Option<Access>,
    pub require: Require,
    /// What origins are told of callers.
    pub headers: IdentityHeaders,
    /// What the plans of its subscribers allow.
    pub plans: Option<Arc<Plans>>,
    /// What stands on plans and consumers; `None` if nothing does.
    pub callers: Option<Arc<CallerFilters>>,
}

/// The filters of one route, ready to run.
#[derive(Clone, Default)]
pub struct Chain {
    pub request: Box<[RequestStep]>,
    /// How many of the steps it takes to know who calls; 0 if nobody finds out.
    pub identified_after: usize,
    /// In the order they run, which is the reverse of the request side.
    pub response: Box<[Arc<dyn OnResponse>]>,
    /// Every filter in request order, for `explain`.
    pub filters: Box<[(&'static str, Stage, Place)]>,
    /// Whether a filter finds out who calls.
    pub authenticates: bool,
    /// What the chains of callers with filters of their own are made of.
    common: Option<Box<(Box<[Attached]>, Rules)>>,
}

impl Chain {
    /// Joins the filters of the places a route lies in, given from the outermost to the innermost.
    ///
    /// A filter written on an inner place replaces those of the same name on outer ones. Stage decides the order; inside
    /// a stage outer comes before inner, and the written order holds. All filters that authenticate become one step.
    pub fn join(places: &[&[Attached]], rules: &Rules) -> Chain {
        let mut filters: Vec<&Attached> = Vec::new();
        for (depth, place) in places.iter().enumerate() {
            let replaced = |name: &str| places[depth + 1..].iter().any(|inner| inner.iter().any(|f| f.name == name));
            filters.extend(place.iter().filter(|f| !replaced(f.name)));
        }
        // Of the limits, quotas last: a request that another limit refuses has used up none of them.
        let counts = |filter: &Attached| filter.limit().is_some_and(|limit| limit.counts());
        filters.sort_by_key(|filter| (filter.stage, counts(filter)));
        let authenticators: Vec<_> = filters.iter().filter_map(|f| f.compiled.authenticator.clone()).collect();
        let authenticates = !authenticators.is_empty();
        let (before, after) = filters.split_at(filters.partition_point(|f| f.stage <= Stage::Authenticate));
        let mut request: Vec<_> = before.iter().filter_map(|f| f.compiled.request.clone()).collect();
        let mut identified_after = 0;
        if authenticates {
            let gate = Gate::new(authenticators, rules.access, rules.require, rules.headers.clone());
            request.push(RequestStep::Perhaps(Arc::new(gate)));
            identified_after = request.len();
        }
        if rules.access == Some(Access::Subscribers) {
            request.push(RequestStep::Now(Arc::new(Subscribed { service: rules.service })));
        }
        let (authorise, after) = after.split_at(after.partition_point(|f| f.stage < Stage::Limit));
        let (limit, after) = after.split_at(after.partition_point(|f| f.stage == Stage::Limit));
        let steps =
            |filters: &[&Attached]| -> Vec<_> { filters.iter().filter_map(|f| f.compiled.request.clone()).collect() };
        request.extend(steps(authorise));
        // The rates of plans before other limits, which cost more to refuse; their quotas after them.
        let plans = rules.plans.as_ref().filter(|_| authenticates);
        request.extend(plans.map(|plans| RequestStep::Now(plans.clone())));
        request.extend(steps(limit));
        request.extend(
            plans.filter(|plans| plans.counts()).map(|plans| RequestStep::Now(Arc::new(PlanQuotas(plans.clone())))),
        );
        request.extend(steps(after));
        let own = authenticates && rules.callers.is_some();
        Chain {
            request: request.into(),
            identified_after,
            response: filters.iter().rev().filter_map(|f| f.compiled.response.clone()).collect(),
            filters: filters.iter().map(|f| (f.name, f.stage, f.place)).collect(),
            authenticates,
            common: own.then(|| Box::new((filters.into_iter().cloned().collect(), rules.clone()))),
        }
    }

    /// The chain of a caller with filters of its own or of its plan. Its steps up to `identified_after` are the same.
    /// `None` for everybody else.
    pub fn of_caller(&self, consumer: &Consumer) -> Option<Chain> {
        let (common, rules) = self.common.as_deref()?;
        let (plan, own) = rules.callers.as_ref()?.of(consumer, rules.service)?;
        Some(Chain::join(&[common, plan, own], rules))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(name: &'static str, stage: Stage, place: Place) -> Attached {
        Attached { name, stage, place, compiled: Compiled::default() }
    }

    #[test]
    fn inner_filter_replaces_outer_one_of_the_same_name_and_stage_decides_the_order() {
        let outer = [filter("headers", Stage::Transform, Place::Gateway), filter("cors", Stage::Guard, Place::Gateway)];
        let inner = [
            filter("rewrite", Stage::Transform, Place::Route),
            filter("headers", Stage::Transform, Place::Route),
            filter("ip_restriction", Stage::Guard, Place::Route),
        ];
        let rules = Rules {
            service: ServiceId(0),
            access: None,
            require: Require::Any,
            headers: Arc::new([]),
            plans: None,
            callers: None,
        };
        let chain = Chain::join(&[&outer, &inner], &rules);
        let order: Vec<_> = chain.filters.iter().map(|(name, _, place)| (*name, *place)).collect();
        assert_eq!(
            order,
            [
                ("cors", Place::Gateway),
                ("ip_restriction", Place::Route),
                ("rewrite", Place::Route),
                ("headers", Place::Route)
            ]
        );
    }
}
