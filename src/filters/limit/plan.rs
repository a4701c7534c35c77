//! What a consumer's plan allows on a service: rates and quota, counted per consumer and service.

use std::sync::Arc;

use super::quota::{Meter, time_zone};
use super::rate_limit::{conclude, leased, shown};
use super::report::{Report, Told};
use super::usage::{Limit, Shown};
use crate::config::Config;
use crate::config::consumer::SubscriptionState;
use crate::config::units::Share;
use crate::filters::filter::{Flow, OnRequest, Request};
use crate::filters::registry::Site;
use crate::identity::{Consumer, ServiceId, limit_key};
use crate::limits::{Caller, Limiter, OnFailure, Rates, Together, gcra};

/// The part of a plan's burst that a gateway of a fleet leases at once.
const LEASE: Share = Share(0.1);

/// The plans of a configuration as they hold on one service.
pub struct Plans {
    service: ServiceId,
    /// By the number of the plan; `None` where it limits nothing.
    plans: Box<[Option<Allowance>]>,
}

struct Allowance {
    rates: Option<(Limiter, Report)>,
    quota: Option<Meter>,
}

impl Plans {
    /// `None` if no plan limits anything.
    pub fn compile(config: &Config, service: ServiceId, name: &str, at: &mut Site<'_>) -> Option<Arc<Plans>> {
        let plans: Box<[_]> = config
            .plans
            .iter()
            .map(|(plan, written)| {
                let rates = written.rate.as_ref().map(|rates| {
                    let label = format!("{name}/{plan}");
                    let written = rates.as_slice();
                    // Counters go by service and rate, so that a change of plan, or of its name, gives nobody a second burst.
                    let rates: Rates = written
                        .iter()
                        .map(|rate| gcra::Rate::new(limit_key(&format!("plan of {name} {rate}")), *rate, None))
                        .collect();
                    let labels: Vec<_> = written.iter().map(|rate| format!("{label} {rate}")).collect();
                    let policies =
                        labels.iter().zip(&rates).map(|(label, rate)| (label.as_str(), rate.amount, rate.window));
                    let report = Report::new(policies, Told::default(), &at.lasting.counters);
                    let together = at.fleet.map(|fleet| Together {
                        fleet: fleet.clone(),
                        leases: rates.iter().map(|rate| leased(rate, LEASE)).collect(),
                        exact: false,
                        on_failure: OnFailure::Local,
                    });
                    // In Redis too, they go by service and rate.
                    let names = written.iter().map(|rate| format!("{name} {rate}").into()).collect();
                    (Limiter::new(rates, names, at.lasting.rates.clone(), together), report)
                });
                let quota = written.quota.and_then(|amount| {
                    let path = format!("plans.{plan}");
                    let zone = time_zone(written.time_zone.as_deref(), &mut at.at(&path))?;
                    // The plan is not part of the name: who changes it goes on counting.
                    let name = format!("{name}/{}", amount.period.as_str());
                    Some(Meter::new(&name, amount, zone, written.soft, Told::default(), at))
                });
                (rates.is_some() || quota.is_some()).then_some(Allowance { rates, quota })
            })
            .collect();
        plans.iter().any(Option::is_some).then(|| Arc::new(Plans { service, plans }))
    }

    fn allowance(&self, consumer: &Consumer) -> Option<&Allowance> {
        let subscription = consumer.subscription(self.service)?;
        let approved = subscription.state == SubscriptionState::Approved;
        self.plans.get(subscription.plan.0 as usize).filter(|_| approved)?.as_ref()
    }
}

impl Limit for Plans {
    fn shown(&self, consumer: &Consumer) -> Vec<Shown> {
        let Some(allowance) = self.allowance(consumer) else { return Vec::new() };
        let rates = allowance.rates.iter();
        let rates = rates.flat_map(|(limiter, report)| shown(limiter, report, consumer.key));
        rates.chain(allowance.quota.iter().map(|meter| meter.shown(consumer.key))).collect()
    }

    fn counts(&self) -> bool {
        self.plans.iter().flatten().any(|allowance| allowance.quota.is_some())
    }
}

/// The rates of plans.
impl OnRequest for Plans {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        let Some(consumer) = request.exchange.consumer().cloned() else { return Flow::Continue };
        let Some(allowance) = self.allowance(&consumer) else { return Flow::Continue };
        let words = || format!("consumer:{}", consumer.name());
        if let Some((limiter, report)) = &allowance.rates {
            let mut telling = report.begin();
            let caller = Caller { key: consumer.key, words: &words };
            let taken = limiter.take(&caller, &mut telling);
            // Plans never wait for Redis.
            return conclude(taken.unwrap_or(Ok(())), report, telling, request);
        }
        Flow::Continue
    }
}

/// The quotas of plans, as a step of their own: the last of the limits, so that a request which another one refuses has
/// used up nothing.
pub struct PlanQuotas(pub Arc<Plans>);

impl OnRequest for PlanQuotas {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        let Some(consumer) = request.exchange.consumer().cloned() else { return Flow::Continue };
        match self.0.allowance(&consumer).and_then(|allowance| allowance.quota.as_ref()) {
            Some(meter) => meter.take(consumer.key, || format!("consumer:{}", consumer.name()), request),
            None => Flow::Continue,
        }
    }
}
