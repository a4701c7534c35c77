//! Budgets as they are written, compiled.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::tz::TimeZone;

use super::{Budget, Budgets, List, Measure, Whose};
use crate::config::budget::{Budget as Written, BudgetBy};
use crate::config::units::QuotaAmount;
use crate::config::{Config, Problems};
use crate::identity::{PlanId, ServiceId, limit_key};
use crate::limits::{Counters, Quotas};

impl Budgets {
    /// The budgets of a configuration; `None` if it has none.
    pub fn compile(
        config: &Config,
        quotas: &Quotas,
        counters: &Counters,
        problems: &mut Problems,
    ) -> Option<Arc<Budgets>> {
        let ai = config.ai.as_ref()?;
        let mut compiler = Compiler { counters, problems };
        let mut list = |written: &[Written], path: String, place: &str, whose: Whose| {
            compiler.list(written, &format!("{path}.budgets"), place, whose)
        };
        let all = Whose::By(BudgetBy::All);
        let some = |list: &List| !list.is_empty();
        let mut consumers = HashMap::new();
        for (name, consumer) in config.consumers.iter().filter(|(_, consumer)| !consumer.budgets.is_empty()) {
            // The name of the consumer is who is counted, and no part of the budget's.
            let budgets = list(&consumer.budgets, format!("consumers.{name}"), "consumer", Whose::Consumer);
            consumers.insert(limit_key(&format!("consumer:{name}")), budgets);
        }
        let mut teams = HashMap::new();
        for (name, team) in config.teams.iter().filter(|(_, team)| !team.budgets.is_empty()) {
            let budgets = list(&team.budgets, format!("teams.{name}"), "team", Whose::Team);
            teams.insert(limit_key(&format!("team:{name}")), budgets);
        }
        let mut plans = HashMap::new();
        for ((name, plan), id) in config.plans.iter().zip((0..).map(PlanId)) {
            if plan.budgets.is_empty() {
                continue;
            }
            for (service, service_id) in config.services.keys().zip((0..).map(ServiceId)) {
                // The plan is not part of the name: who changes it goes on counting.
                let budgets =
                    list(&plan.budgets, format!("plans.{name}"), &format!("service:{service}"), Whose::Consumer);
                plans.insert((service_id, id), budgets);
            }
        }
        let mut models = HashMap::new();
        for (name, model) in &ai.models {
            let budgets = list(&model.budgets, format!("ai.models.{name}"), &format!("model:{name}"), all);
            models.extend(some(&budgets).then(|| (name.as_str().into(), budgets)));
        }
        let (mut providers, mut keys) = (HashMap::new(), HashMap::new());
        for (name, provider) in &ai.providers {
            let path = format!("ai.providers.{name}");
            let budgets = list(&provider.budgets, path.clone(), &format!("provider:{name}"), all);
            providers.extend(some(&budgets).then(|| (name.as_str().into(), budgets)));
            for (i, key) in provider.keys.iter().enumerate() {
                let called = format!("{name}[{i}]");
                let budgets = list(&key.budgets, format!("{path}.keys[{i}]"), &format!("key:{called}"), all);
                keys.extend(some(&budgets).then(|| (called.into(), budgets)));
            }
        }
        let overall = list(&ai.budgets, "ai".to_owned(), "ai", all);
        let budgets = Budgets {
            quotas: quotas.clone(),
            overall,
            consumers,
            teams,
            plans,
            models,
            providers,
            keys,
            reserved_output: ai.reserved_output,
        };
        (!budgets.is_empty()).then(|| Arc::new(budgets))
    }

    fn is_empty(&self) -> bool {
        self.overall.is_empty()
            && self.consumers.is_empty()
            && self.teams.is_empty()
            && self.plans.is_empty()
            && self.models.is_empty()
            && self.providers.is_empty()
            && self.keys.is_empty()
    }
}

struct Compiler<'c> {
    counters: &'c Counters,
    problems: &'c mut Problems,
}

impl Compiler<'_> {
    fn list(&mut self, written: &[Written], path: &str, place: &str, whose: Whose) -> List {
        let mut list: Vec<Budget> = Vec::new();
        for (i, written) in written.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let Some(budget) = self.budget(written, &path, place, whose) else { continue };
            if list.iter().any(|other| other.quota.name() == budget.quota.name()) {
                let message =
                    format!("another budget of this list is called `{}`; give one a `name`", budget.quota.name());
                self.problems.add(&path, message);
            }
            list.push(budget);
        }
        list.into()
    }

    /// `place` is what its name begins with if it has none of its own.
    fn budget(&mut self, written: &Written, path: &str, place: &str, whose: Whose) -> Option<Budget> {
        let (measure, amount, period) = match (written.requests, written.tokens, written.cost) {
            (Some(requests), None, None) => (Measure::Requests, requests.amount, requests.period),
            (None, Some(tokens), None) => (Measure::Tokens, tokens.amount, tokens.period),
            (None, None, Some(cost)) => (Measure::Cost, cost.nano_dollars, cost.period),
            _ => {
                self.problems.add(path, "write one of `requests`, `tokens` and `cost`; each is a budget of its own");
                return None;
            }
        };
        let whose = match (whose, written.by) {
            (Whose::By(_), by) => Whose::By(by),
            (fixed, BudgetBy::All) => fixed,
            (_, _) => {
                let message = "here it is the consumer's, or the team's; `by` is for budgets of `ai`, its models, providers and keys";
                self.problems.add(format!("{path}.by"), message);
                return None;
            }
        };
        let zone = match written.time_zone.as_deref() {
            None => TimeZone::UTC,
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(_) => {
                    let message = format!("`{name}` is not a time zone; write a name such as Europe/Berlin");
                    self.problems.add(format!("{path}.time_zone"), message);
                    return None;
                }
            },
        };
        let by = match whose {
            Whose::By(BudgetBy::Consumer) => " by consumer",
            Whose::By(BudgetBy::Team) => " by team",
            _ => "",
        };
        let usual = || format!("{place}/{}/{}{by}", measure.as_str(), period.as_str());
        let name = written.name.clone().unwrap_or_else(usual);
        let quota = crate::limits::Quota::new(&name, limit_key(&name), QuotaAmount { amount, period }, zone, None);
        let counter = self.counters.named(&name);
        Some(Budget { quota, measure, whose, unknown_price: written.unknown_price, counter })
    }
}
