//! Lets callers pass, or not, by what they are and what they ask for.

use std::collections::{BTreeMap, HashSet};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::error::Reason;
use crate::filters::expression::Expression;
use crate::filters::filter::{Compiled, Flow, OnRequest, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::identity::{Consumer, Identity};
use crate::telemetry::exchange::Exchange;
use crate::variables::Scope;

/// Admits or refuses by consumer, team, label and scope, and by a condition over request and caller for what lists
/// cannot say. A refused request is answered 403; which rule it was is in the log only, as `cause`.
///
/// Whoever is on a list of `deny` is refused. With `allow`, whoever is on none of its lists is refused; one suffices.
/// A `condition`, if there is one, has to hold in any case: one that cannot be evaluated does not.
///
/// ```yaml
/// acl:
///   allow:
///     teams: [apps]
///     labels: { tier: [paying, partner] }
///   deny:
///     consumers: [intern]
///   condition: request.method == 'GET' || 'orders:write' in scopes
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Callers that may pass. Left out: all that are not denied.
    pub allow: Option<Lists>,
    /// Callers that may not pass, whatever else they are.
    pub deny: Option<Lists>,
    /// An expression of CEL that has to be true. It knows `request`, `client`, `consumer`, `scopes`, `claims`,
    /// `credential`, `anonymous`, `path`, `service`, `route`, `listener` and `time`.
    pub condition: Option<String>,
}

/// Kinds of callers. One that is on any of the lists is meant.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Lists {
    /// By name.
    pub consumers: Vec<String>,
    /// By the consumer's team.
    pub teams: Vec<String>,
    /// By the values of the consumer's labels: one of those listed, of one of the labels.
    pub labels: BTreeMap<String, Vec<String>>,
    /// Callers with one of these scopes, of their own or by their token.
    pub scopes: Vec<String>,
    /// Callers with all of these scopes.
    pub all_scopes: Vec<String>,
}

impl Lists {
    fn is_empty(&self) -> bool {
        let Lists { consumers, teams, labels, scopes, all_scopes } = self;
        [consumers, teams, scopes, all_scopes].iter().all(|list| list.is_empty())
            && labels.values().all(|values| values.is_empty())
    }
}

pub struct Acl {
    allow: Option<Callers>,
    deny: Option<Callers>,
    condition: Option<Expression>,
}

type Names = HashSet<Box<str>, foldhash::fast::RandomState>;

/// The compiled form of [`Lists`].
struct Callers {
    consumers: Names,
    teams: Names,
    labels: Box<[(String, Names)]>,
    scopes: Box<[String]>,
    all_scopes: Box<[String]>,
}

/// Which list a caller is on.
#[derive(Clone, Copy)]
enum By {
    Consumer,
    Team,
    Label,
    Scope,
}

impl By {
    fn denied(self) -> &'static str {
        match self {
            By::Consumer => "the consumer is denied",
            By::Team => "the consumer's team is denied",
            By::Label => "a label of the consumer is denied",
            By::Scope => "a scope of the caller is denied",
        }
    }
}

impl FilterKind for Acl {
    const NAME: &'static str = "acl";
    const STAGE: Stage = Stage::Authorise;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let before = at.problems.0.len();
        if config.allow.is_none() && config.deny.is_none() && config.condition.is_none() {
            let message = "neither `allow` nor `deny` nor `condition` is set, so this filter would do nothing";
            at.problems.add(at.path, message);
        }
        let allow = config.allow.map(|lists| Callers::compile(lists, "allow", at));
        let deny = config.deny.map(|lists| Callers::compile(lists, "deny", at));
        let condition = config.condition.and_then(|text| match Expression::compile(&text) {
            Ok(condition) => Some(condition),
            Err(message) => {
                at.problems.add(format!("{}.condition", at.path), message);
                None
            }
        });
        (at.problems.0.len() == before).then(|| Compiled::on_request(Acl { allow, deny, condition }))
    }
}

impl Callers {
    fn compile(lists: Lists, which: &str, at: &mut Site<'_>) -> Callers {
        let path = format!("{}.{which}", at.path);
        if lists.is_empty() {
            at.problems.add(&path, "no caller is named, and nobody could be meant");
        }
        for (i, name) in lists.consumers.iter().enumerate() {
            if at.directory.consumer(name).is_none() {
                let known: Vec<&str> = at.directory.consumers().map(|consumer| consumer.name()).collect();
                at.problems.unknown(format!("{path}.consumers[{i}]"), "consumer", name, known);
            }
        }
        let names = |list: Vec<String>| list.into_iter().map(String::into_boxed_str).collect::<Names>();
        Callers {
            consumers: names(lists.consumers),
            teams: names(lists.teams),
            labels: lists.labels.into_iter().map(|(label, values)| (label, names(values))).collect(),
            scopes: lists.scopes.into(),
            all_scopes: lists.all_scopes.into(),
        }
    }

    /// Whether the caller is one of these, and by which list.
    fn find(&self, identity: &Identity) -> Option<By> {
        identity.consumer.as_deref().and_then(|consumer| self.find_consumer(consumer)).or_else(|| {
            let has = |scope: &String| identity.has_scope(scope);
            let all = !self.all_scopes.is_empty() && self.all_scopes.iter().all(has);
            (all || self.scopes.iter().any(has)).then_some(By::Scope)
        })
    }

    fn find_consumer(&self, consumer: &Consumer) -> Option<By> {
        if self.consumers.contains(consumer.name()) {
            return Some(By::Consumer);
        }
        if consumer.team.as_ref().is_some_and(|team| self.teams.contains(&team.name)) {
            return Some(By::Team);
        }
        let listed = |(label, values): &(String, Names)| consumer.label(label).is_some_and(|own| values.contains(own));
        self.labels.iter().any(listed).then_some(By::Label)
    }
}

impl Acl {
    /// Why the request may not pass, if it may not.
    fn objection(&self, exchange: &Exchange, request: &pingora::http::RequestHeader) -> Option<&'static str> {
        let identity = exchange.identity.as_ref();
        let listed = |callers: &Callers| identity.and_then(|identity| callers.find(identity));
        if let Some(by) = self.deny.as_ref().and_then(listed) {
            return Some(by.denied());
        }
        if self.allow.as_ref().is_some_and(|allow| listed(allow).is_none()) {
            return Some(match identity {
                Some(_) => "the caller is on no list of those allowed",
                None => "the caller is not known",
            });
        }
        match self.condition.as_ref()?.evaluate_bool(&Scope { exchange, request, response: None }) {
            Ok(true) => None,
            Ok(false) => Some("the condition does not hold"),
            Err(fault) => Some(fault.cause()),
        }
    }
}

impl OnRequest for Acl {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        let Some(objection) = self.objection(request.exchange, request.head) else { return Flow::Continue };
        request.exchange.cause = Some(objection);
        Flow::Refuse(Reason::Forbidden.into())
    }
}
