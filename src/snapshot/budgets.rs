//! How consumers, and all of them together, stand at budgets of models, for whoever asks at the admin listener.

use std::sync::Arc;

use crate::ai::budget::{self, Budgets, Measure};
use crate::filters::limit::usage::{Limit, Shown, Unit};
use crate::identity::Consumer;

/// The budgets of a configuration, as a limit.
pub struct Standings(pub Arc<Budgets>);

impl Limit for Standings {
    fn shown(&self, consumer: &Consumer) -> Vec<Shown> {
        self.0.of_consumer(consumer).iter().map(shown).collect()
    }

    fn counts(&self) -> bool {
        self.0.last()
    }
}

impl Standings {
    /// The budgets that are nobody's in particular.
    pub fn of_all(&self) -> Vec<Shown> {
        self.0.of_all().iter().map(shown).collect()
    }
}

fn shown(one: &budget::Shown<'_>) -> Shown {
    let unit = match one.measure {
        Measure::Requests => Unit::Requests,
        Measure::Tokens => Unit::Tokens,
        Measure::Cost => Unit::NanoDollars,
    };
    Shown::budget(one.name, unit, one.used, one.standing)
}
