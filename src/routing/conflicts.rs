//! Routes that can never answer a request, and routes between which only their names decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::predicate::Methods;
use super::{Draft, HostRule, Route, Rule};
use crate::config::Problems;

/// Reports the conflicts among the routes of each host, which must be in order of precedence.
///
/// Only what can be proven is reported, so no configuration is refused without reason. Routes of different hosts are
/// never in conflict: the host decides first, and the one that wins is narrower.
pub(super) fn report(hosts: &BTreeMap<HostRule, Vec<Arc<Draft<'_>>>>, problems: &mut Problems) {
    // Routes that share several hosts are in the same conflict on each of them.
    let mut told = BTreeSet::new();
    for (host, drafts) in hosts {
        let (mut priority_start, mut path_start) = (0, 0);
        for (i, draft) in drafts.iter().enumerate() {
            if draft.order.priority != drafts[priority_start].order.priority {
                priority_start = i;
            }
            if (draft.order.priority, &draft.order.path)
                != (drafts[path_start].order.priority, &drafts[path_start].order.path)
            {
                path_start = i;
            }
            // Within one priority, a path that stands before another and covers it has the same shape.
            let equals = &drafts[path_start..i];
            let rivals = drafts[..priority_start].iter().chain(equals);
            let Some(conflict) = tie(draft, equals).or_else(|| shadow(draft, rivals)) else { continue };
            let places: Vec<&str> = conflict.winners.iter().map(|route| route.place).collect();
            if told.insert((draft.index, places)) {
                problems.add(draft.source.place, conflict.message(draft.source.name, host));
            }
        }
    }
}

struct Conflict<'d> {
    /// For which methods only the name decides; `None` if other rules put the winners first.
    tied: Option<Methods>,
    winners: Vec<Route<'d>>,
}

/// An earlier route that matches the same requests, and nothing but its name puts it first.
fn tie<'d>(draft: &Draft<'_>, equals: &[Arc<Draft<'d>>]) -> Option<Conflict<'d>> {
    equals.iter().find_map(|rival| {
        let same = rival.rule.predicates.covers(&draft.rule.predicates)
            && draft.rule.predicates.covers(&rival.rule.predicates)
            && rival.order == draft.order;
        let shared = same.then(|| rival.rule.methods.intersection(&draft.rule.methods))?;
        (!shared.is_empty()).then(|| Conflict { tied: Some(shared), winners: vec![rival.source] })
    })
}

/// Earlier routes that together match all that this one does.
fn shadow<'r, 'd: 'r>(draft: &Draft<'_>, rivals: impl Iterator<Item = &'r Arc<Draft<'d>>>) -> Option<Conflict<'d>> {
    let (mut taken, mut winners) = (Methods::default(), Vec::new());
    for rival in rivals.filter(|rival| rival.rule.covers_but_methods(&draft.rule)) {
        if rival.rule.methods.covers(&draft.rule.methods) {
            return Some(Conflict { tied: None, winners: vec![rival.source] });
        }
        if !rival.rule.methods.intersection(&draft.rule.methods).is_empty() {
            taken.add(&rival.rule.methods);
            winners.push(rival.source);
        }
    }
    (!winners.is_empty() && taken.covers(&draft.rule.methods)).then_some(Conflict { tied: None, winners })
}

impl Rule {
    fn covers_but_methods(&self, other: &Rule) -> bool {
        // Conditions first: where thousands of routes share a path, these tell them apart.
        self.predicates.covers(&other.predicates) && self.path.covers(&other.path)
    }
}

impl Conflict<'_> {
    fn message(&self, loser: &str, host: &HostRule) -> String {
        let winners: Vec<_> = self.winners.iter().map(|route| format!("`{}` ({})", route.name, route.place)).collect();
        let winners = winners.join(" and ");
        match &self.tied {
            Some(methods) => format!(
                "route `{loser}` ties with {winners} on {host} for {methods}: only their names decide which one \
                 answers; make one of them narrower, or give one a `priority`"
            ),
            None => format!(
                "route `{loser}` can never match on {host}: every request that it matches goes to {winners} first"
            ),
        }
    }
}
