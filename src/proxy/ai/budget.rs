//! Budgets in the way of a call: reserved before anybody is asked, settled when the call is over.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

use super::attempt::Ask;
use super::call::Call;
use super::refusal::Refusal;
use crate::ai::budget::{
    self, Budgets, Caller, Demand, Measure, Refusal as Exceeded, RefusalKind, Reservation, Standing,
};
use crate::ai::chat::{Failure, FailureKind, Usage};
use crate::ai::cost::{Cost, Money, Used};
use crate::ai::formats::Format;
use crate::ai::keys::Key;
use crate::ai::targets::Target;
use crate::ai::{tokens, usage};
use crate::error::Reason;
use crate::proxy::context::Context;
use crate::snapshot::Snapshot;
use crate::snapshot::ai::{AiBackend, Models, Provider};
use crate::telemetry::exchange::{AiCall, Lost};

/// How large a call is, as far as it says.
#[derive(Clone, Copy)]
pub struct Size<'b> {
    /// The body, where its texts can be counted if the estimate of them does not fit.
    pub prompt: Option<&'b Bytes>,
    /// Tokens of the prompt, estimated.
    pub input: u64,
    /// The most tokens of an answer; `None` leaves it to the model.
    pub output: Option<u64>,
    /// How many answers are asked for.
    pub choices: u64,
    /// What else is billed, such as images and letters.
    pub more: Used,
}

impl<'b> Size<'b> {
    /// Of a chat.
    pub fn of(call: &'b Call<'_>) -> Size<'b> {
        let size = Size::of_prompt(call.head.body());
        Size { output: call.head.max_tokens, choices: call.head.choices, ..size }
    }

    /// Of a call that is billed by its prompt alone.
    pub fn of_prompt(body: &'b Bytes) -> Size<'b> {
        Size { prompt: Some(body), input: tokens::estimate_body(body.len()), ..Size::nothing() }
    }

    /// Of a call that nobody bills.
    pub fn nothing() -> Size<'b> {
        Size { prompt: None, input: 0, output: Some(0), choices: 1, more: Used::default() }
    }

    /// Of something of which only the length is known.
    pub fn of_length(length: Option<u64>) -> Size<'b> {
        let input = tokens::estimate_body(usize::try_from(length.unwrap_or(0)).unwrap_or(usize::MAX));
        Size { input, output: None, ..Size::nothing() }
    }

    fn is_nothing(&self) -> bool {
        self.input == 0 && self.output == Some(0) && self.more == Used::default()
    }

    /// What it may be billed for. Whether by tokens, or by pieces, seconds and letters, is up to the model.
    fn used(&self, input: u64, output: u64) -> impl Iterator<Item = Used> + use<> {
        let (more, of) = (self.more, |input, output| Usage { input, output, ..Usage::default() });
        let some = more != Used::default();
        let pictures = more.images.saturating_mul(PICTURE);
        let drawn = Used { image_output: pictures, ..Used::from(of(input, output.saturating_add(pictures))) };
        [
            Some(Used { tokens: of(input, output), ..more }),
            some.then(|| Used::from(of(input, output))).filter(|_| more.images == 0),
            some.then_some(more),
            (more.images > 0).then_some(drawn),
        ]
        .into_iter()
        .flatten()
    }
}

/// Who may be asked.
#[derive(Clone, Copy)]
pub enum Asked<'a> {
    Targets(&'a [Target]),
    /// Any model of it.
    Any(&'a Provider),
}

/// Reserves what a call may use with every budget of its caller, and of the name `model` that it asks for. To be called
/// once, before a provider is asked; what is reserved is settled when the request is over, by its record.
pub async fn reserve(
    ctx: &mut Context,
    ai: &AiBackend,
    format: Format,
    name: &str,
    asked: Asked<'_>,
    size: &Size<'_>,
) -> Result<(), Refusal> {
    let Some(budgets) = &ai.models.budgets else { return Ok(()) };
    let snapshot = ctx.snapshot.clone();
    let service = ctx.exchange.route.as_ref().zip(snapshot.as_ref());
    let service = service.and_then(|(route, snapshot)| snapshot.directory.service_id(&route.service));
    let caller = Caller { consumer: ctx.exchange.consumer(), service, address: ctx.exchange.client, model: name };
    if !budgets.hold_for(&caller) {
        return Ok(());
    }
    let wants = Wants { budgets, models: &ai.models, asked, size };
    match wants.reserve(&caller).await {
        Ok(None) => Ok(()),
        Ok(Some(reservation)) => {
            if let Some(record) = &mut ctx.exchange.ai {
                let Demand { tokens, cost } = reservation.demand;
                record.reserved = Some((tokens, cost.known().map(Money::nanos)));
            }
            ctx.controls.answer_headers.extend(told(format, reservation.requests, reservation.tokens));
            ctx.reservation = Some(Box::new(reservation));
            Ok(())
        }
        Err(refusal) => {
            if let RefusalKind::Exceeded { standing, soon: true, .. } = refusal.kind {
                let of = |measure| (refusal.measure == measure).then_some(standing);
                let headers = told(format, of(Measure::Requests), of(Measure::Tokens));
                ctx.controls.answer_headers.extend(headers);
            }
            Err(refuse(ctx, &refusal))
        }
    }
}

/// Reserves what one attempt may use with the budgets of its provider and key. An error passes them over: others are asked.
pub async fn reserve_attempt(
    ctx: &Context,
    models: &Models,
    provider: &Provider,
    key: Option<&Key>,
    asked: Asked<'_>,
    size: &Size<'_>,
) -> Result<Option<Reservation>, Failure> {
    let Some(budgets) = &models.budgets else { return Ok(None) };
    let caller = Caller { consumer: ctx.exchange.consumer(), service: None, address: ctx.exchange.client, model: "" };
    let demand = Wants { budgets, models, asked, size }.demand(size.input);
    let reserved = budgets.reserve_attempt(&provider.name, key.map(|key| &*key.name), &caller, demand).await;
    reserved.map_err(|refusal| {
        refusal.count();
        log::debug!("request {:?}: {}", ctx.exchange.request_id, refusal.message());
        // Whose money the gateway spends is not for callers.
        Failure::new(FailureKind::Overloaded, format!("{} has no budget left for this call", provider.name))
    })
}

/// Whether a target may be asked under the budgets of a call: one whose price is unknown may not where money is limited.
pub fn permits(ctx: &Context, models: &Models, target: &Target) -> bool {
    !ctx.reservation.as_ref().is_some_and(|reservation| reservation.known_prices_only)
        || models.provider(&target.provider).is_some_and(|provider| is_priced(provider, &target.model))
}

/// What one attempt has reserved, until it is over.
pub struct Bill {
    pub paid: Option<Reservation>,
    /// What the attempts before have lost.
    before: Lost,
}

impl Bill {
    /// A provider is about to be asked.
    pub fn open(ctx: &mut Context, mut paid: Option<Reservation>) -> Bill {
        if let Some(reservation) = &mut ctx.reservation {
            reservation.asks();
        }
        if let Some(paid) = &mut paid {
            paid.asks();
        }
        Bill { paid, before: ctx.exchange.ai.as_ref().map(|record| record.lost).unwrap_or_default() }
    }

    /// The attempt has failed; it may be billed all the same.
    pub fn failed(&mut self, ctx: &mut Context, ask: &Ask<'_>, billed: Option<&Usage>) {
        if let Some(record) = &mut ctx.exchange.ai {
            usage::lose(record, &ask.provider.spec, &ask.target.model, billed);
        }
    }

    /// Settles what the attempt has reserved.
    pub fn settle(self, ctx: &Context) {
        let (Some(paid), Some(record)) = (self.paid, &ctx.exchange.ai) else { return };
        let of_attempt = AiCall { lost: record.lost.since(&self.before), ..(**record).clone() };
        paid.settle(&budget::spent(&of_attempt));
    }
}

/// The end of a request: what its call has used is known now, and counts.
pub fn conclude(ctx: &mut Context, snapshot: Option<&Snapshot>) {
    let Some(record) = ctx.exchange.ai.as_ref().filter(|record| !record.drained) else { return };
    budget::settle(ctx.reservation.take().map(|reservation| *reservation), record);
    if let Some(models) = snapshot.and_then(|snapshot| snapshot.models.as_ref()) {
        budget::note_use(&models.ledger, ctx.exchange.consumer(), record);
    }
}

/// The caller has left, or the answer has broken off, and nobody knows what it has used: all that was reserved is taken to be.
pub fn cut(ctx: &mut Context) {
    if let Some(record) = &mut ctx.exchange.ai {
        record.cut = record.attempts > 0 && record.tokens.is_none() && record.cost.is_none_or(|cost| cost == 0);
    }
}

/// A call, as budgets look at it.
struct Wants<'w> {
    budgets: &'w Arc<Budgets>,
    models: &'w Models,
    asked: Asked<'w>,
    size: &'w Size<'w>,
}

impl Wants<'_> {
    async fn reserve(&self, caller: &Caller<'_>) -> Result<Option<Reservation>, Exceeded> {
        let estimated = self.size.input;
        let refusal = match self.budgets.reserve(caller, self.demand(estimated)).await {
            Err(refusal) if refusal.is_about_size() => refusal,
            done => return done,
        };
        // Counting takes a while: only if it may change something.
        let least = self.demand(estimated / FEWEST);
        let hopeless = match (refusal.measure, &refusal.kind, least.cost) {
            (Measure::Tokens, RefusalKind::Exceeded { standing, .. }, _) => least.tokens > standing.remaining,
            (Measure::Cost, RefusalKind::Exceeded { standing, .. }, Cost::Known(money)) => {
                money.nanos() > standing.remaining
            }
            _ => true,
        };
        let (Asked::Targets([target, ..]), Some(prompt), false) = (self.asked, self.size.prompt, hopeless) else {
            return Err(refusal);
        };
        let counted = tokens::count_prompt(prompt.clone(), &target.model).await;
        match counted < estimated {
            true => self.budgets.reserve(caller, self.demand(counted)).await,
            false => Err(refusal),
        }
    }

    /// What the call uses at most, whoever answers.
    fn demand(&self, input: u64) -> Demand {
        let mut most = Demand { tokens: 0, cost: Cost::Unknown };
        match self.asked {
            _ if self.size.is_nothing() => most.cost = Cost::Known(Money::ZERO),
            Asked::Targets(targets) => {
                for target in targets {
                    let Some(provider) = self.models.provider(&target.provider) else { continue };
                    let known = || provider.spec.model(&target.model).and_then(|model| model.max_output);
                    let each = self.size.output.unwrap_or_else(|| self.budgets.output_without_limit(known()));
                    self.add(provider, &target.model, input, each, &mut most);
                }
            }
            Asked::Any(provider) => {
                let each = self.size.output.unwrap_or_else(|| self.budgets.output_without_limit(None));
                most.tokens = input.saturating_add(each);
                for model in provider.spec.models() {
                    self.add(provider, &model.name, input, each, &mut most);
                }
            }
        }
        most
    }

    fn add(&self, provider: &Provider, model: &str, input: u64, each: u64, most: &mut Demand) {
        let output = each.saturating_mul(self.size.choices.max(1));
        most.tokens = most.tokens.max(input.saturating_add(output));
        for used in self.size.used(input, output) {
            if let Cost::Known(money) = provider.spec.cost(model, &used) {
                most.cost = Cost::Known(most.cost.known().map_or(money, |known| known.max(money)));
            }
        }
    }
}

/// Tokens of a picture that is made, where nobody says how large it is.
const PICTURE: u64 = 6000;

/// An estimate is at most so many times as large as what it is of: of pictures it knows nothing.
const FEWEST: u64 = 64;

fn is_priced(provider: &Provider, model: &str) -> bool {
    // Of what has prices, nothing costs nothing.
    provider.spec.cost(model, &Used::default()).known().is_some()
}

fn refuse(ctx: &mut Context, refusal: &Exceeded) -> Refusal {
    refusal.count();
    ctx.exchange.limit = Some(Arc::from(&*refusal.budget));
    let (kind, retry_after) = match refusal.kind {
        RefusalKind::UnknownPrice => (FailureKind::Permission, None),
        // It is there again in a moment, and clients wait that long by themselves.
        RefusalKind::Exceeded { retry_after, soon: true, .. } => (FailureKind::RateLimited, Some(retry_after)),
        RefusalKind::Exceeded { retry_after, .. } => (FailureKind::QuotaExceeded, Some(retry_after)),
    };
    let code = match refusal.kind {
        RefusalKind::UnknownPrice => "price_unknown",
        RefusalKind::Exceeded { .. } => "budget_exceeded",
    };
    let failure = Failure { code: Some(code.to_owned()), ..Failure::new(kind, refusal.message()) };
    Refusal { failure, retry_after: retry_after.map(|wait| wait.max(Duration::from_secs(1))) }
}

/// What logs and metrics call the refusal of a budget; `None` if it is none.
pub fn reason(failure: &Failure) -> Option<Reason> {
    match failure.code.as_deref() {
        Some("price_unknown") if failure.kind == FailureKind::Permission => Some(Reason::PriceUnknown),
        Some("budget_exceeded") if failure.kind == FailureKind::QuotaExceeded => Some(Reason::BudgetExceeded),
        _ => None,
    }
}

/// What an answer is told of budgets of a minute, in the headers that libraries of the dialect read.
fn told(format: Format, requests: Option<Standing>, tokens: Option<Standing>) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::new();
    let both = [("requests", requests), ("tokens", tokens)];
    for (of, standing) in both.into_iter().filter_map(|(of, standing)| Some((of, standing?))) {
        let names = match format {
            Format::OpenAiChat | Format::OpenAiResponses => ["limit", "remaining", "reset"]
                .map(|what| HeaderName::from_bytes(format!("x-ratelimit-{what}-{of}").as_bytes())),
            Format::Anthropic => ["limit", "remaining", "reset"]
                .map(|what| HeaderName::from_bytes(format!("anthropic-ratelimit-{of}-{what}").as_bytes())),
            _ => return headers,
        };
        let reset = match format {
            Format::Anthropic => moment(standing.reset),
            // Go's durations.
            _ => format!("{}s", standing.reset.as_secs()),
        };
        let values = [standing.amount.to_string(), standing.remaining.to_string(), reset];
        let headers_of = names.into_iter().zip(values);
        headers.extend(headers_of.filter_map(|(name, value)| Some((name.ok()?, HeaderValue::try_from(value).ok()?))));
    }
    headers
}

fn moment(after: Duration) -> String {
    let after = i64::try_from(after.as_secs()).unwrap_or(0);
    let at = Timestamp::from_second(Timestamp::now().as_second().saturating_add(after));
    at.map(|at| at.to_string()).unwrap_or_default()
}
