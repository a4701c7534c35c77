//! One limit by rates: kept by this gateway alone, or together with the others of its fleet.

use std::sync::Arc;

use super::fleet::{Fleet, LeaseKey, Unavailable};
use super::gcra::{Rate, RateLimiter, Rates};
use super::{Exceeded, Standing};

/// What holds while Redis does not answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Each gateway admits its share of the limit.
    #[default]
    Local,
    Allow,
    Deny,
}

/// How a limit is kept together with others.
pub struct Together {
    pub fleet: Arc<Fleet>,
    /// Requests leased at once, for each rate.
    pub leases: Box<[u64]>,
    /// Asks for every request, and waits.
    pub exact: bool,
    pub on_failure: OnFailure,
}

/// Rates with all that is needed to keep them.
pub struct Limiter {
    rates: Rates,
    /// The limits' names, the same on every gateway.
    names: Box<[Box<str>]>,
    local: RateLimiter,
    together: Option<(Together, Rates)>,
}

/// A caller, as a number for this process and in words for all.
pub struct Caller<'a> {
    pub key: u64,
    pub words: &'a (dyn Fn() -> String + Sync),
}

/// Is told how a caller stands at each rate that has admitted a request.
pub trait Tell {
    fn tell(&mut self, index: usize, standing: Standing);

    /// What was told until now does not count: the rates are asked again, in another way.
    fn begin_anew(&mut self);
}

/// What a limiter says of a request.
type Outcome = Result<(), Exceeded>;

impl Limiter {
    pub fn new(rates: Rates, names: Box<[Box<str>]>, local: RateLimiter, together: Option<Together>) -> Limiter {
        let together = together.map(|together| {
            let gateways = u64::from(together.fleet.settings.gateways.max(1));
            let shares = rates.iter().map(|rate| rate.share(gateways)).collect();
            (together, shares)
        });
        Limiter { rates, names, local, together }
    }

    /// Admits a request under all rates, or under none of them; `None` if only [`Limiter::wait`] can tell.
    pub fn take(&self, caller: &Caller<'_>, told: &mut impl Tell) -> Option<Outcome> {
        let Some((together, shares)) = &self.together else {
            return Some(self.alone(&self.rates, caller.key, told));
        };
        if together.exact {
            return None;
        }
        for (index, rate) in self.rates.iter().enumerate() {
            let key = LeaseKey { limit: &self.names[index], caller: caller.words, lease: together.leases[index] };
            match together.fleet.take(rate, &key, caller.key) {
                Ok(Ok(standing)) => told.tell(index, standing),
                Ok(Err(exceeded)) => {
                    self.rates[..index].iter().for_each(|rate| together.fleet.give_back(rate, caller.key));
                    return Some(Err(Exceeded { index, ..exceeded }));
                }
                Err(Unavailable) => {
                    self.rates[..index].iter().for_each(|rate| together.fleet.give_back(rate, caller.key));
                    return Some(self.without_redis(together, shares, caller.key, told));
                }
            }
        }
        Some(Ok(()))
    }

    /// Asks Redis about the request.
    pub async fn wait(&self, caller: &Caller<'_>, told: &mut (impl Tell + Send)) -> Outcome {
        let Some((together, shares)) = &self.together else {
            return self.alone(&self.rates, caller.key, told);
        };
        for (index, rate) in self.rates.iter().enumerate() {
            let key = LeaseKey { limit: &self.names[index], caller: caller.words, lease: 1 };
            match together.fleet.take_exactly(rate, &key).await {
                Ok(Ok(standing)) => told.tell(index, standing),
                Ok(Err(exceeded)) => {
                    for (rate, name) in self.rates[..index].iter().zip(&self.names) {
                        let key = LeaseKey { limit: name, ..key };
                        together.fleet.give_back_exactly(rate, &key).await;
                    }
                    return Err(Exceeded { index, ..exceeded });
                }
                Err(Unavailable) => return self.without_redis(together, shares, caller.key, told),
            }
        }
        Ok(())
    }

    fn alone(&self, rates: &[Rate], caller: u64, told: &mut impl Tell) -> Outcome {
        self.local.take(rates, caller, self.local.now(), &mut |index, standing| told.tell(index, standing))
    }

    fn without_redis(&self, together: &Together, shares: &[Rate], caller: u64, told: &mut impl Tell) -> Outcome {
        // Redis may have answered for some of the rates, and failed at the next.
        told.begin_anew();
        match together.on_failure {
            OnFailure::Local => self.alone(shares, caller, told),
            OnFailure::Allow => Ok(()),
            OnFailure::Deny => {
                let (amount, window) =
                    self.rates.first().map_or((0, Default::default()), |rate| (rate.burst, rate.window));
                let retry_after = std::time::Duration::from_secs(1);
                let standing = Standing { amount, remaining: 0, reset: retry_after, window };
                Err(Exceeded { index: 0, standing, retry_after })
            }
        }
    }

    /// How a caller stands at each rate, as far as this gateway knows.
    pub fn standings(&self, caller: u64) -> impl Iterator<Item = Standing> {
        let now = self.local.now();
        self.rates.iter().map(move |rate| {
            let leased = self.together.as_ref().and_then(|(together, _)| together.fleet.standing(rate, caller));
            leased.unwrap_or_else(|| self.local.standing(rate, caller, now))
        })
    }
}
