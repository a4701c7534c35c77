//! Why a budget does not let a call pass.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Budget, Measure};
use crate::ai::cost::Money;
use crate::limits::{Counter, Exceeded, Standing};

/// Why a budget does not let a call pass.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The name of the budget.
    pub budget: Box<str>,
    pub measure: Measure,
    pub kind: Kind,
    counter: Arc<Counter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What is left does not suffice.
    Exceeded {
        standing: Standing,
        retry_after: Duration,
        /// There is more within a minute: asking again is worth it.
        soon: bool,
    },
    /// The model has no price, so that nobody could say when the money is spent.
    UnknownPrice,
}

impl Refusal {
    pub(super) fn exceeded(budget: &Budget, exceeded: Exceeded) -> Refusal {
        let Exceeded { standing, retry_after, .. } = exceeded;
        Refusal::new(budget, Kind::Exceeded { standing, retry_after, soon: budget.is_of_a_minute() })
    }

    pub(super) fn unknown_price(budget: &Budget) -> Refusal {
        Refusal::new(budget, Kind::UnknownPrice)
    }

    fn new(budget: &Budget, kind: Kind) -> Refusal {
        let (name, measure, counter) = (budget.quota.name().into(), budget.measure, budget.counter.clone());
        Refusal { budget: name, measure, kind, counter }
    }

    /// It holds: metrics count it.
    pub fn count(&self) {
        self.counter.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a smaller call might pass.
    pub fn is_about_size(&self) -> bool {
        self.measure != Measure::Requests && matches!(self.kind, Kind::Exceeded { .. })
    }

    /// What the caller is told.
    pub fn message(&self) -> String {
        let Refusal { budget, measure, kind, .. } = self;
        match kind {
            Kind::UnknownPrice => {
                format!("The price of this model is unknown, and the budget `{budget}` holds calls of known price only")
            }
            Kind::Exceeded { standing, .. } => {
                let (left, all) = match measure {
                    Measure::Cost => {
                        (format!("${}", Money(standing.remaining)), format!("${}", Money(standing.amount)))
                    }
                    _ => (standing.remaining.to_string(), standing.amount.to_string()),
                };
                let what = match measure {
                    Measure::Requests => " requests",
                    Measure::Tokens => " tokens",
                    Measure::Cost => "",
                };
                format!("The budget `{budget}` has {left} of {all}{what} left, which is less than this call may use")
            }
        }
    }
}
