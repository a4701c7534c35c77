//! Filters that stand on plans and consumers: known once a caller is, and only for callers who have any.

use std::collections::HashMap;
use std::sync::Arc;

use super::chain::{Attached, Place, attach};
use super::limit::usage::{Limit, Shown};
use super::registry::Site;
use crate::config::Config;
use crate::config::consumer::SubscriptionState;
use crate::identity::{Consumer, PlanId, ServiceId};

/// What stands on the plans and consumers of a configuration.
pub struct CallerFilters {
    /// By the number of the plan.
    plans: Box<[Box<[Attached]>]>,
    /// By [`Consumer::key`]; without those that have none.
    consumers: HashMap<u64, Box<[Attached]>, foldhash::fast::RandomState>,
}

impl CallerFilters {
    /// `None` if there are none.
    pub fn compile(config: &Config, at: &mut Site<'_>) -> Option<Arc<CallerFilters>> {
        let plans = config.plans.iter().map(|(name, plan)| {
            let path = format!("plans.{name}.filters");
            attach(Place::Plan, &plan.filters, &mut at.at(&path)).into()
        });
        let plans: Box<[Box<[Attached]>]> = plans.collect();
        let mut consumers = HashMap::default();
        for (name, consumer) in config.consumers.iter().filter(|(_, consumer)| !consumer.filters.is_empty()) {
            let path = format!("consumers.{name}.filters");
            let attached = attach(Place::Consumer, &consumer.filters, &mut at.at(&path));
            // One that has problems is not among the known.
            if let Some(known) = at.directory.consumer(name) {
                consumers.insert(known.key, attached.into());
            }
        }
        let any = !consumers.is_empty() || plans.iter().any(|filters| !filters.is_empty());
        any.then(|| Arc::new(CallerFilters { plans, consumers }))
    }

    /// What stands on the plan that a consumer calls a service under, and on itself; `None` if that is nothing.
    pub fn of(&self, consumer: &Consumer, service: ServiceId) -> Option<(&[Attached], &[Attached])> {
        let plan = consumer.subscription(service).filter(|it| it.state == SubscriptionState::Approved);
        let plan = plan.map_or(&[][..], |subscription| self.plan(subscription.plan));
        let own = self.consumers.get(&consumer.key).map_or(&[][..], |filters| filters);
        (!plan.is_empty() || !own.is_empty()).then_some((plan, own))
    }

    fn plan(&self, plan: PlanId) -> &[Attached] {
        self.plans.get(plan.0 as usize).map_or(&[], |filters| filters)
    }

    /// All of them, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Attached> {
        self.plans.iter().chain(self.consumers.values()).flatten()
    }
}

/// Shows consumers their part of the limits among their filters and those of their plans.
impl Limit for CallerFilters {
    fn shown(&self, consumer: &Consumer) -> Vec<Shown> {
        let mut plans: Vec<_> =
            consumer.subscriptions().iter().filter(|it| it.state == SubscriptionState::Approved).collect();
        plans.sort_by_key(|subscription| subscription.plan);
        plans.dedup_by_key(|subscription| subscription.plan);
        let of_plans = plans.into_iter().flat_map(|subscription| self.plan(subscription.plan));
        let own = self.consumers.get(&consumer.key).into_iter().flatten();
        of_plans.chain(own).filter_map(Attached::limit).flat_map(|limit| limit.shown(consumer)).collect()
    }

    fn counts(&self) -> bool {
        self.all().filter_map(Attached::limit).any(|limit| limit.counts())
    }
}
