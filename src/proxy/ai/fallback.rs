//! From target to target, until one has answered or none is left that may.

use std::sync::Arc;
use std::time::Duration;

use super::Serving;
use super::attempt::{Ask, Attempt, Opened};
use super::budget::{self, Asked, Bill, Size};
use super::failed::{Failed, may_be_tried_again};
use super::refusal::Refusal;
use super::{drain, stream, whole};
use crate::ai::budget::Reservation;
use crate::ai::chat::{Failure, FailureKind};
use crate::ai::keys::{self, Key};
use crate::ai::targets::{self, Target};
use crate::proxy::context::Context;
use crate::proxy::tunnel::unless_client_leaves;
use crate::snapshot::ai::{Models, Provider, Virtual};

/// Answers the caller. The error means that it is gone.
pub async fn answer(serving: &mut Serving<'_>, model: &Virtual) -> pingora::Result<()> {
    let mut tried = Tried::default();
    let mut left = model.attempts;
    while left > 0 {
        let Some((provider, target, key)) = tried.next(serving.ctx, &serving.ai.models, model) else { break };
        let ask = match Ask::prepare(provider, target, key, &mut serving.call, model) {
            Ok(ask) => ask,
            // What one provider cannot be asked another may be.
            Err(failure) => {
                tried.cannot(target, failure);
                left -= 1;
                continue;
            }
        };
        let size = Size::of(&serving.call);
        let asked = Asked::Targets(std::slice::from_ref(target));
        let paid = match budget::reserve_attempt(serving.ctx, &serving.ai.models, provider, key, asked, &size).await {
            Ok(paid) => paid,
            Err(failure) => {
                tried.unpaid(provider, target, key, failure);
                continue;
            }
        };
        left -= 1;
        let failed = match attempt(serving, ask, paid).await? {
            None => return Ok(()),
            Some(failed) => failed,
        };
        let again = failed.again;
        tried.failed(model, provider, target, key, failed);
        if !again {
            break;
        }
    }
    let refusal = tried.last.unwrap_or_else(|| nobody(&serving.ai.models, model));
    serving.refuse(&refusal).await
}

/// One attempt; `None` if the caller has its answer, or what could be sent of it.
async fn attempt(
    serving: &mut Serving<'_>,
    ask: Ask<'_>,
    paid: Option<Reservation>,
) -> pingora::Result<Option<Failed>> {
    let mut attempt = match Attempt::begin(ask, serving) {
        Ok(attempt) => attempt,
        Err(failed) => return Ok(Some(failed)),
    };
    let (mut bill, mut begun) = (Bill::open(serving.ctx, paid), None);
    let opened = unless_client_leaves(serving.session, attempt.open(serving.proxy, &serving.call)).await;
    attempt.note(serving.ctx);
    let ended = match opened {
        Ok(Ok(Opened::Whole(answer))) => whole::send(serving, &attempt, *answer).await,
        Ok(Ok(Opened::Stream(relay))) => stream::send(serving, &mut attempt, *relay, &mut begun).await.map(|()| None),
        Ok(Err(failed)) => Ok(Some(failed)),
        Err(gone) => Err(gone),
    };
    match &ended {
        Ok(None) => {}
        Ok(Some(failed)) => bill.failed(serving.ctx, &attempt.ask, failed.billed.as_deref()),
        Err(_) => drain::left(serving, &mut attempt, begun, &mut bill).await,
    }
    bill.settle(serving.ctx);
    attempt.close(serving.proxy).await;
    if let Ok(Some(failed)) = &ended {
        let (ask, message) = (&attempt.ask, &failed.failure.message);
        log::debug!(
            "request {:?}: {} {}: {message}",
            serving.ctx.exchange.request_id,
            ask.provider.name,
            ask.target.model
        );
        if may_be_tried_again(failed.failure.kind) {
            ask.target.state.failed();
        }
    }
    ended
}

/// Who is asked, for which model, and with which key.
pub type Chosen<'m> = (&'m Provider, &'m Target, Option<&'m Key>);

/// What has been tried for a call.
#[derive(Default)]
pub struct Tried {
    keys: Vec<Arc<str>>,
    given_up: Vec<Target>,
    pub last: Option<Refusal>,
}

impl Tried {
    /// Who is asked next, and with which key.
    pub fn next<'m>(&self, ctx: &Context, models: &'m Models, model: &'m Virtual) -> Option<Chosen<'m>> {
        let usable = |target: &Target| {
            budget::permits(ctx, models, target)
                && !self.given_up.iter().any(|other| other.provider == target.provider && other.model == target.model)
                && models.provider(&target.provider).is_some_and(|provider| payable(provider, target, &self.keys))
        };
        let target = targets::choose(&model.targets, model.strategy, usable)?;
        let provider = models.provider(&target.provider)?;
        Some((provider, target, keys::choose(&provider.keys, &target.model, &self.keys)))
    }

    /// A target cannot be asked for this at all.
    pub fn cannot(&mut self, target: &Target, failure: Failure) {
        self.given_up.push(target.clone());
        self.last = Some(failure.into());
    }

    /// The budget of a key or of its provider does not suffice: as if the key rested.
    pub fn unpaid(&mut self, provider: &Provider, target: &Target, key: Option<&Key>, failure: Failure) {
        match key.filter(|_| provider.keys.len() > 1) {
            Some(key) => {
                self.keys.push(key.name.clone());
                self.last = Some(failure.into());
            }
            None => self.cannot(target, failure),
        }
    }

    /// An attempt has failed.
    pub fn failed(&mut self, model: &Virtual, provider: &Provider, target: &Target, key: Option<&Key>, failed: Failed) {
        match (failed.about_key, key) {
            (true, Some(key)) if provider.keys.len() > 1 => self.keys.push(key.name.clone()),
            // Another try at the same one helps only where there is no other and nothing was said against it.
            _ if model.targets.len() > 1 || !failed.again || failed.about_key => self.given_up.push(target.clone()),
            _ => {}
        }
        self.last = Some(failed.into());
    }
}

/// Whether there is a key for a target, or it needs none.
pub fn payable(provider: &Provider, target: &Target, tried: &[Arc<str>]) -> bool {
    provider.keys.is_empty() || keys::choose(&provider.keys, &target.model, tried).is_some()
}

/// Every key rests: asking again makes sense when the first of them has rested.
pub fn nobody(models: &Models, model: &Virtual) -> Refusal {
    let rest = |target: &Target| keys::first_rested(&models.provider(&target.provider)?.keys, &target.model);
    let failure = Failure::new(FailureKind::Overloaded, "no provider of this model can be asked at the moment");
    let rested = model.targets.iter().filter(|target| target.weight > 0).filter_map(rest).min();
    Refusal { failure, retry_after: rested.map(|rest| rest.max(Duration::from_secs(1))) }
}
