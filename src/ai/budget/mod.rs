//! What may be used of models: calls, tokens and money, per consumer, team, plan, model, provider and key of a provider.
//!
//! A call reserves what it may use at most ([`Budgets::reserve`]) before a provider is asked, and is settled with what it has
//! used when it is over, however it ends ([`settle`], in one place for all operations). Between both, nobody else can be
//! admitted to what is reserved. Amounts are whole numbers: calls, tokens, nano-dollars.

mod compile;
mod refusal;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

pub use refusal::{Kind as RefusalKind, Refusal};

use super::cost::{Cost, Money};
use crate::config::budget::{BudgetBy, UnknownPrice};
use crate::config::units::Period;
use crate::identity::{Consumer, PlanId, ServiceId, limit_key};
pub use crate::limits::Standing;
use crate::limits::ledger::Used as Noted;
use crate::limits::quota::{Quota, Reserved};
use crate::limits::{Counter, Ledger, Quotas, gcra};
use crate::telemetry::exchange::AiCall;

/// What a budget counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    Requests,
    Tokens,
    /// Nano-dollars.
    Cost,
}

impl Measure {
    /// Its name in configurations and in names of budgets.
    pub fn as_str(self) -> &'static str {
        match self {
            Measure::Requests => "requests",
            Measure::Tokens => "tokens",
            Measure::Cost => "cost",
        }
    }
}

/// One budget, compiled.
pub struct Budget {
    quota: Quota,
    measure: Measure,
    whose: Whose,
    unknown_price: UnknownPrice,
    counter: Arc<Counter>,
}

/// Who is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    By(BudgetBy),
    /// Of a consumer, or of its plan.
    Consumer,
    Team,
}

type List = Box<[Budget]>;

/// All budgets of a configuration.
pub struct Budgets {
    quotas: Quotas,
    overall: List,
    /// By the keys of consumers and teams.
    consumers: HashMap<u64, List>,
    teams: HashMap<u64, List>,
    plans: HashMap<(ServiceId, PlanId), List>,
    /// By the names that callers use.
    models: HashMap<Box<str>, List>,
    /// By the names of providers, and of their keys.
    providers: HashMap<Box<str>, List>,
    keys: HashMap<Box<str>, List>,
    /// What is reserved for the answer of a call that says no limit, at most.
    reserved_output: Option<u64>,
}

/// Whose use of models is noted.
pub type User = Option<Arc<Consumer>>;

/// Who makes a call, and of what.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    pub consumer: Option<&'a Arc<Consumer>>,
    /// The service whose subscription decides about the plan.
    pub service: Option<ServiceId>,
    pub address: IpAddr,
    /// The name that was asked for.
    pub model: &'a str,
}

/// What a call may use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Of the prompt and of the answer.
    pub tokens: u64,
    /// Unknown if not one of those who may answer has a known price.
    pub cost: Cost,
}

/// What a call has used, when it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// Whether a provider was asked at all.
    pub asked: bool,
    pub tokens: u64,
    pub cost: Cost,
}

/// What is reserved for one call. It is settled once; dropped before that, it is taken to be used up if a provider was asked,
/// and given back if not.
pub struct Reservation {
    budgets: Arc<Budgets>,
    held: SmallVec<[Held; 4]>,
    pub demand: Demand,
    /// Only models with a known price may be called.
    pub known_prices_only: bool,
    /// Whether a provider was asked.
    asked: bool,
    /// How the caller stands at the tightest budget of a minute, of calls and of tokens.
    pub requests: Option<Standing>,
    pub tokens: Option<Standing>,
}

struct Held {
    /// `None` once it is settled.
    reserved: Option<Reserved>,
    measure: Measure,
    amount: u64,
    unknown_price: UnknownPrice,
}

impl Budgets {
    /// Whether any budget holds for a call, without regard to who is asked for it.
    pub fn hold_for(&self, caller: &Caller<'_>) -> bool {
        self.lists_of(caller).into_iter().flatten().any(|list| !list.is_empty())
    }

    /// What to reserve for an answer of which the call says no limit; `known` is the model's own.
    pub fn output_without_limit(&self, known: Option<u64>) -> u64 {
        let usual = known.unwrap_or(OUTPUT);
        self.reserved_output.map_or(usual, |most| usual.min(most))
    }

    /// Reserves what a call may use with all budgets of its caller and model, or with none of them. `None` if there are none.
    pub async fn reserve(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        demand: Demand,
    ) -> Result<Option<Reservation>, Refusal> {
        let lists = self.lists_of(caller);
        self.reserve_with(lists.into_iter().flatten(), caller, demand).await
    }

    /// Reserves what one attempt may use of its provider and key.
    pub async fn reserve_attempt(
        self: &Arc<Self>,
        provider: &str,
        key: Option<&str>,
        caller: &Caller<'_>,
        demand: Demand,
    ) -> Result<Option<Reservation>, Refusal> {
        let key = key.and_then(|key| self.keys.get(key));
        let lists = [self.providers.get(provider), key];
        self.reserve_with(lists.into_iter().flatten(), caller, demand).await
    }

    fn lists_of(&self, caller: &Caller<'_>) -> [Option<&List>; 5] {
        let consumer = caller.consumer;
        let plan = consumer.zip(caller.service).and_then(|(consumer, service)| {
            let plan = consumer.approved_plan(service)?;
            self.plans.get(&(service, plan))
        });
        [
            consumer.and_then(|consumer| self.consumers.get(&consumer.key)),
            plan,
            consumer.and_then(|consumer| self.teams.get(&consumer.team.as_ref()?.key)),
            self.models.get(caller.model),
            Some(&self.overall),
        ]
    }

    async fn reserve_with(
        self: &Arc<Self>,
        lists: impl Iterator<Item = &List>,
        caller: &Caller<'_>,
        demand: Demand,
    ) -> Result<Option<Reservation>, Refusal> {
        let mut reservation: Option<Reservation> = None;
        for budget in lists.flat_map(|list| list.iter()) {
            let amount = match (budget.measure, demand.cost) {
                (Measure::Requests, _) => 1,
                (Measure::Tokens, _) => demand.tokens,
                (Measure::Cost, Cost::Known(money)) => money.nanos(),
                (Measure::Cost, Cost::Unknown) if budget.unknown_price == UnknownPrice::Allow => continue,
                (Measure::Cost, Cost::Unknown) => return Err(Refusal::unknown_price(budget)),
            };
            let taken = {
                let (key, words) = budget.who(caller);
                self.quotas.reserve(&budget.quota, key, &words, amount).await
            };
            let (reserved, standing) = match taken {
                Ok(taken) => taken,
                // What was reserved before is given back with the reservation.
                Err(exceeded) => return Err(Refusal::exceeded(budget, exceeded)),
            };
            let all = reservation.get_or_insert_with(|| Reservation::new(self, demand));
            all.add(budget, reserved, amount.min(standing.amount), standing);
        }
        Ok(reservation)
    }

    /// How a consumer stands at each budget that is its own, its plans' or its team's.
    pub fn of_consumer(&self, consumer: &Consumer) -> Vec<Shown<'_>> {
        let plans = consumer.subscriptions().iter().filter_map(|s| self.plans.get(&(s.service, s.plan)));
        let team = consumer.team.as_ref();
        let own = self.consumers.get(&consumer.key).into_iter().chain(plans).flat_map(|list| list.iter());
        let own = own.map(|budget| self.shown(budget, consumer.key));
        let teams = team.and_then(|team| Some((team.key, self.teams.get(&team.key)?)));
        let teams = teams.into_iter().flat_map(|(key, list)| list.iter().map(move |budget| self.shown(budget, key)));
        let others = self.overall.iter().chain(self.models.values().flat_map(|list| list.iter()));
        let others = others.filter_map(|budget| match budget.whose {
            Whose::By(BudgetBy::Consumer) => Some(self.shown(budget, consumer.key)),
            Whose::By(BudgetBy::Team) => Some(self.shown(budget, team.map_or(consumer.key, |team| team.key))),
            _ => None,
        });
        own.chain(teams).chain(others).collect()
    }

    /// How everybody together stands at each budget that is for everybody.
    pub fn of_all(&self) -> Vec<Shown<'_>> {
        let lists = self.models.values().chain(self.providers.values()).chain(self.keys.values());
        let budgets = lists.flat_map(|list| list.iter()).chain(&self.overall);
        let all = budgets.filter(|budget| budget.whose == Whose::By(BudgetBy::All));
        all.map(|budget| self.shown(budget, limit_key(ALL))).collect()
    }

    fn shown<'b>(&self, budget: &'b Budget, caller: u64) -> Shown<'b> {
        let (used, standing) = self.quotas.standing(&budget.quota, caller);
        Shown { name: budget.quota.name(), measure: budget.measure, used, standing }
    }

    /// Whether a store has to keep what is used.
    pub fn last(&self) -> bool {
        let of = |lists: &HashMap<Box<str>, List>| lists.values().flat_map(|list| list.iter()).any(Budget::lasts);
        let ids = |lists: &HashMap<u64, List>| lists.values().flat_map(|list| list.iter()).any(Budget::lasts);
        self.overall.iter().any(Budget::lasts)
            || of(&self.models)
            || of(&self.providers)
            || of(&self.keys)
            || ids(&self.consumers)
            || ids(&self.teams)
            || self.plans.values().flat_map(|list| list.iter()).any(Budget::lasts)
    }
}

/// How somebody stands at a budget.
pub struct Shown<'b> {
    pub name: &'b str,
    pub measure: Measure,
    /// With what is reserved at the moment.
    pub used: u64,
    pub standing: Standing,
}

/// What is reserved for an answer of which neither the call nor the catalogue says how long it can be.
const OUTPUT: u64 = 4096;

/// Everybody, in words.
const ALL: &str = "gateway";

impl Budget {
    fn is_of_a_minute(&self) -> bool {
        self.quota.amount.period == Period::Minute
    }

    fn lasts(&self) -> bool {
        !self.is_of_a_minute()
    }

    /// Whose use counts: as a number for this process, and in words for all gateways.
    fn who<'c>(&self, caller: &Caller<'c>) -> (u64, impl Fn() -> String + Sync + use<'c>) {
        let consumer = caller.consumer.map(Who::Consumer);
        let team =
            || caller.consumer.and_then(|consumer| consumer.team.as_ref()).map(|team| Who::Team(&team.name, team.key));
        let anybody = Who::Address(caller.address);
        let who = match self.whose {
            Whose::By(BudgetBy::All) => Who::All,
            Whose::By(BudgetBy::Consumer) | Whose::Consumer => consumer.unwrap_or(anybody),
            Whose::By(BudgetBy::Team) | Whose::Team => team().or(consumer).unwrap_or(anybody),
        };
        let key = match who {
            Who::Consumer(consumer) => consumer.key,
            Who::Team(_, key) => key,
            Who::All | Who::Address(_) => limit_key(&who.words()),
        };
        (key, move || who.words())
    }
}

#[derive(Clone, Copy)]
enum Who<'c> {
    All,
    Consumer(&'c Arc<Consumer>),
    Team(&'c str, u64),
    Address(IpAddr),
}

impl Who<'_> {
    fn words(&self) -> String {
        match self {
            Who::All => ALL.to_owned(),
            Who::Consumer(consumer) => format!("consumer:{}", consumer.name()),
            Who::Team(name, _) => format!("team:{name}"),
            // A client of IPv6 has a whole network of addresses.
            Who::Address(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
                Some(address) => format!("address:{address}"),
                None => {
                    let [a, b, c, d, ..] = address.segments();
                    format!("address:{a:x}:{b:x}:{c:x}:{d:x}::/64")
                }
            },
            Who::Address(address) => format!("address:{address}"),
        }
    }
}

impl Reservation {
    fn new(budgets: &Arc<Budgets>, demand: Demand) -> Reservation {
        Reservation {
            budgets: budgets.clone(),
            held: SmallVec::new(),
            demand,
            known_prices_only: false,
            asked: false,
            requests: None,
            tokens: None,
        }
    }

    fn add(&mut self, budget: &Budget, reserved: Reserved, amount: u64, standing: Standing) {
        let unknown_price = budget.unknown_price;
        self.held.push(Held { reserved: Some(reserved), measure: budget.measure, amount, unknown_price });
        self.known_prices_only |= budget.measure == Measure::Cost && unknown_price == UnknownPrice::Deny;
        let tightest = match budget.measure {
            Measure::Requests => &mut self.requests,
            Measure::Tokens => &mut self.tokens,
            Measure::Cost => return,
        };
        if budget.is_of_a_minute() && tightest.is_none_or(|known| standing.remaining < known.remaining) {
            *tightest = Some(standing);
        }
    }

    /// A provider is being asked: from now on the call counts, whatever becomes of it.
    pub fn asks(&mut self) {
        self.asked = true;
    }

    /// Replaces what was reserved by what was used.
    pub fn settle(mut self, spent: &Spent) {
        self.settle_with(|held| match (held.measure, spent.cost) {
            (Measure::Requests, _) => u64::from(spent.asked),
            (Measure::Tokens, _) => spent.tokens,
            (Measure::Cost, Cost::Known(money)) => money.nanos(),
            // What it was has no price, although the model has: nobody knows how much it is, and it is not nothing.
            (Measure::Cost, Cost::Unknown) if held.unknown_price == UnknownPrice::Deny => held.amount,
            (Measure::Cost, Cost::Unknown) => 0,
        });
    }

    fn settle_with(&mut self, used: impl Fn(&Held) -> u64) {
        for held in &mut self.held {
            let amount = used(held);
            if let Some(reserved) = held.reserved.take() {
                self.budgets.quotas.settle(reserved, amount);
            }
        }
    }
}

/// For a call that is cut off where nothing else can be done: what nobody has settled.
impl Drop for Reservation {
    fn drop(&mut self) {
        let asked = self.asked;
        self.settle_with(|held| if asked { held.amount } else { 0 });
    }
}

/// Settles a call that is over by its record, whichever operation it was.
pub fn settle(reservation: Option<Reservation>, record: &AiCall) {
    let Some(reservation) = reservation else { return };
    reservation.settle(&spent(record));
}

/// What a call has used, those of its attempts that were billed and failed included.
pub fn spent(record: &AiCall) -> Spent {
    let asked = record.attempts > 0;
    if let (true, Some((tokens, cost))) = (record.cut, record.reserved) {
        return Spent { asked, tokens, cost: cost.map_or(Cost::Unknown, |nanos| Cost::Known(Money(nanos))) };
    }
    let tokens = record.tokens.unwrap_or_default().plus(&record.lost.tokens);
    let own = match (record.tokens, record.cost) {
        (_, Some(nanos)) => Cost::Known(Money(nanos)),
        // Nothing was used.
        (None, None) if !record.is_answered() => Cost::Known(Money::ZERO),
        _ => Cost::Unknown,
    };
    let cost = match own {
        Cost::Known(money) if !record.lost.unpriced => Cost::Known(Money(record.lost.cost).saturating_add(money)),
        _ => Cost::Unknown,
    };
    Spent { asked, tokens: tokens.input.saturating_add(tokens.output), cost }
}

/// Notes what a call has used, by consumer, model and day. Names of models that no provider has answered for are not noted:
/// callers can make them up.
pub fn note_use(ledger: &Ledger, consumer: Option<&Arc<Consumer>>, record: &AiCall) {
    if record.provider.is_empty() {
        return;
    }
    let model = if record.is_answered() && !record.model.is_empty() { &*record.model } else { OTHER };
    let tokens = record.tokens.unwrap_or_default().plus(&record.lost.tokens);
    let unknown = record.cost.is_none() && (record.tokens.is_some() || record.is_answered());
    let unpriced = record.lost.unpriced || unknown;
    let used = Noted {
        calls: 1,
        failed: u64::from(!record.is_answered()),
        input: tokens.input,
        cache_read: tokens.cache_read,
        cache_write: tokens.cache_write,
        output: tokens.output,
        reasoning: tokens.reasoning,
        cost: record.cost.unwrap_or(0).saturating_add(record.lost.cost),
        unpriced: u64::from(unpriced),
    };
    let whose = consumer.map_or(0, |consumer| consumer.key);
    let key = gcra::mix(gcra::mix(whose, limit_key(&record.provider)), limit_key(model));
    let name = consumer.map_or("", |consumer| consumer.name());
    ledger.count(key, name, || format!("{}/{model}", record.provider), &used);
}

/// Stands for models that are not noted by themselves.
const OTHER: &str = "other";
