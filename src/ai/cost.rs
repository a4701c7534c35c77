//! What a call costs: tokens and everything else that is billed, times the prices of its model.

use std::fmt;

use super::catalog::price::{Multiple, Prices, TokenPrice, UnitPrice};
use super::chat::Usage;

/// Nano-dollars. A sum beyond the largest one stays the largest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money(pub u64);

impl Money {
    pub const ZERO: Money = Money(0);

    pub fn from_dollars(dollars: u64) -> Money {
        Money(dollars.saturating_mul(NANOS))
    }

    pub fn nanos(self) -> u64 {
        self.0
    }

    pub fn saturating_add(self, other: Money) -> Money {
        Money(self.0.saturating_add(other.0))
    }

    pub fn saturating_sub(self, other: Money) -> Money {
        Money(self.0.saturating_sub(other.0))
    }
}

const NANOS: u64 = 1_000_000_000;

/// Dollars with as many digits as it takes, without a sign of the currency: `0.00125`.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, mut rest, mut digits) = (self.0 / NANOS, self.0 % NANOS, 9);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        while rest % 10 == 0 {
            rest /= 10;
            digits -= 1;
        }
        write!(f, "{whole}.{rest:0digits$}")
    }
}

/// The cost of a call. What is not known is not zero: a budget cannot hold it, and a report has to say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    Known(Money),
    /// The model has no price, or none for something that was used.
    Unknown,
}

impl Cost {
    pub fn known(self) -> Option<Money> {
        match self {
            Cost::Known(money) => Some(money),
            Cost::Unknown => None,
        }
    }
}

/// What one call has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    pub tokens: Usage,
    /// Of the input, tokens of images.
    pub image_input: u64,
    /// Of the output, tokens of images.
    pub image_output: u64,
    /// Images that were made.
    pub images: u64,
    /// The length of the recording that was heard.
    pub milliseconds: u64,
    /// Characters of the text that was spoken.
    pub characters: u64,
    /// Searches in the web.
    pub searches: u64,
    pub class: ServiceClass,
}

impl From<Usage> for Used {
    fn from(tokens: Usage) -> Self {
        Used { tokens, ..Used::default() }
    }
}

/// How urgent a call is to its provider.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ServiceClass {
    #[default]
    Standard,
    Batch,
    /// It may wait.
    Flex,
    /// It goes before others.
    Priority,
}

/// The cost of what was used, rounded up to a nano-dollar.
pub fn cost(used: &Used, prices: &Prices) -> Cost {
    match pico_dollars(used, prices) {
        Some(pico) => Cost::Known(Money(u64::try_from(pico.div_ceil(1000)).unwrap_or(u64::MAX))),
        None => Cost::Unknown,
    }
}

fn pico_dollars(used: &Used, prices: &Prices) -> Option<u128> {
    let tokens = times(tokens(used, prices)?, multiple(used.class, prices)?);
    let others = images(used, prices)?
        .saturating_add(recording(used, prices)?)
        .saturating_add(speech(used, prices)?)
        .saturating_add(each(used.searches, prices.search)?);
    Some(tokens.saturating_add(others).saturating_add(prices.request.map_or(0, UnitPrice::pico).into()))
}

/// Tokens of the kinds that are billed alike. Counts that overlap (audio that was read from a cache) are billed as both:
/// rather a little too much than too little.
fn tokens(used: &Used, prices: &Prices) -> Option<u128> {
    let usage = &used.tokens;
    let rates = Rates::of(usage.input, prices);
    let special_input = [usage.cache_read, usage.cache_write, usage.audio_input, used.image_input];
    let special_output = [usage.reasoning, usage.audio_output, used.image_output];
    let text_input = special_input.iter().fold(usage.input, |rest, part| rest.saturating_sub(*part));
    let text_output = special_output.iter().fold(usage.output, |rest, part| rest.saturating_sub(*part));
    let cache_write_long = usage.cache_write_long.min(usage.cache_write);
    let cache_write = rates.cache_write.or(rates.input);
    [
        (text_input, rates.input),
        (usage.cache_read, rates.cache_read.or(rates.input)),
        (usage.cache_write - cache_write_long, cache_write),
        (cache_write_long, rates.cache_write_long.or(cache_write)),
        (usage.audio_input, prices.audio_input.or(rates.input)),
        (used.image_input, prices.image_input.or(rates.input)),
        (text_output, rates.output),
        (usage.reasoning, rates.reasoning.or(rates.output)),
        (usage.audio_output, prices.audio_output.or(rates.output)),
        (used.image_output, prices.image_output.or(rates.output)),
    ]
    .into_iter()
    .try_fold(0u128, |sum, (count, price)| match (count, price) {
        (0, _) => Some(sum),
        (_, None) => None,
        (count, Some(price)) => Some(sum.saturating_add(u128::from(count) * u128::from(price.pico()))),
    })
}

/// The prices of a prompt's length.
struct Rates {
    input: Option<TokenPrice>,
    output: Option<TokenPrice>,
    reasoning: Option<TokenPrice>,
    cache_read: Option<TokenPrice>,
    cache_write: Option<TokenPrice>,
    cache_write_long: Option<TokenPrice>,
}

impl Rates {
    fn of(input: u64, prices: &Prices) -> Rates {
        let tier = prices.tiers.iter().rev().find(|tier| input > tier.above);
        Rates {
            input: tier.and_then(|tier| tier.input).or(prices.input),
            output: tier.and_then(|tier| tier.output).or(prices.output),
            reasoning: tier.and_then(|tier| tier.reasoning).or(prices.reasoning),
            cache_read: tier.and_then(|tier| tier.cache_read).or(prices.cache_read),
            cache_write: tier.and_then(|tier| tier.cache_write).or(prices.cache_write),
            cache_write_long: tier.and_then(|tier| tier.cache_write_long).or(prices.cache_write_long),
        }
    }
}

/// Tokens that the provider reports are what it bills; only without them do pieces, seconds and characters count.
fn images(used: &Used, prices: &Prices) -> Option<u128> {
    if used.image_output > 0 { Some(0) } else { each(used.images, prices.image) }
}

fn recording(used: &Used, prices: &Prices) -> Option<u128> {
    if has_tokens(used) { Some(0) } else { Some(each(used.milliseconds, prices.second)?.div_ceil(1000)) }
}

fn speech(used: &Used, prices: &Prices) -> Option<u128> {
    if has_tokens(used) { Some(0) } else { each(used.characters, prices.character) }
}

fn has_tokens(used: &Used) -> bool {
    used.tokens.input > 0 || used.tokens.output > 0
}

fn each(count: u64, price: Option<UnitPrice>) -> Option<u128> {
    match (count, price) {
        (0, _) => Some(0),
        (count, price) => Some(u128::from(count) * u128::from(price?.pico())),
    }
}

fn multiple(class: ServiceClass, prices: &Prices) -> Option<Multiple> {
    match class {
        ServiceClass::Standard => Some(Multiple::ONE),
        // They cost less or as much, never more.
        ServiceClass::Batch => prices.batch.or(Some(Multiple::ONE)),
        ServiceClass::Flex => prices.flex.or(Some(Multiple::ONE)),
        ServiceClass::Priority => prices.priority,
    }
}

fn times(pico: u128, multiple: Multiple) -> u128 {
    pico.saturating_mul(multiple.millionths().into()).div_ceil(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prices(yaml: &str) -> Prices {
        serde_yaml::from_str(yaml).unwrap()
    }

    fn nanos(used: impl Into<Used>, prices: &Prices) -> Option<u64> {
        cost(&used.into(), prices).known().map(Money::nanos)
    }

    fn usage(input: u64, output: u64) -> Usage {
        Usage { input, output, ..Usage::default() }
    }

    /// By hand, from the price lists of OpenAI, Anthropic and Google.
    #[test]
    fn three_real_calls_cost_what_their_price_lists_say() {
        let gpt_4o = prices("{ input: 2.5, output: 10, cache_read: 1.25 }");
        let call = Usage { cache_read: 1024, ..usage(2006, 300) };
        // 982 * 2.5 + 1024 * 1.25 + 300 * 10 = 2455 + 1280 + 3000 millionths of a dollar.
        assert_eq!(nanos(call, &gpt_4o), Some(6_735_000));

        let sonnet = prices("{ input: 3, output: 15, cache_read: 0.3, cache_write: 3.75, cache_write_long: 6 }");
        let call = Usage { cache_read: 100_000, cache_write: 3_000, cache_write_long: 1_000, ..usage(103_050, 503) };
        // 50 * 3 + 100000 * 0.3 + 2000 * 3.75 + 1000 * 6 + 503 * 15 = 150 + 30000 + 7500 + 6000 + 7545.
        assert_eq!(nanos(call, &sonnet), Some(51_195_000));

        let gemini = prices(
            "{ input: 1.25, output: 10, cache_read: 0.125, \
             tiers: [{ above: 200000, input: 2.5, output: 15, cache_read: 0.25 }] }",
        );
        let call = Usage { cache_read: 100_000, reasoning: 700, ..usage(250_000, 1_000) };
        // 150000 * 2.5 + 100000 * 0.25 + 1000 * 15 = 375000 + 25000 + 15000.
        assert_eq!(nanos(call, &gemini), Some(415_000_000));
    }

    #[test]
    fn a_tier_begins_with_the_first_token_above_it() {
        let prices = prices(
            "{ input: 1, output: 2, tiers: [{ above: 100, input: 10, output: 20 }, { above: 200, input: 100 }] }",
        );
        for (input, expected) in [(100, 102), (101, 1030), (200, 2020), (201, 20_102)] {
            let expected = expected * 1000;
            assert_eq!(nanos(usage(input, 1), &prices), Some(expected), "{input} tokens, the whole call by its tier");
        }
    }

    #[test]
    fn what_has_no_price_is_unknown_and_not_free() {
        let only_input = prices("{ input: 1 }");
        assert_eq!(nanos(usage(10, 0), &only_input), Some(10_000));
        assert_eq!(cost(&usage(10, 1).into(), &only_input), Cost::Unknown);
        assert_eq!(cost(&usage(1, 0).into(), &Prices::default()), Cost::Unknown);
        for used in [
            Used { images: 1, ..Used::default() },
            Used { milliseconds: 1, ..Used::default() },
            Used { characters: 1, ..Used::default() },
            Used { searches: 1, ..Used::default() },
            Used { class: ServiceClass::Priority, ..usage(1, 0).into() },
        ] {
            assert_eq!(cost(&used, &only_input), Cost::Unknown, "{used:?}");
        }
        assert_eq!(nanos(usage(10, 10), &prices("{ input: 0, output: 0 }")), Some(0), "a written 0 is free");
    }

    #[test]
    fn audio_reasoning_and_caches_have_their_own_prices_or_the_general_ones() {
        let call = Usage {
            audio_input: 10,
            audio_output: 10,
            cache_read: 10,
            cache_write: 10,
            reasoning: 10,
            ..usage(100, 100)
        };
        assert_eq!(nanos(call, &prices("{ input: 1, output: 2 }")), Some(300_000));
        let own = prices(
            "{ input: 1, output: 2, audio_input: 10, audio_output: 20, cache_read: 0.5, cache_write: 3, reasoning: 4 }",
        );
        // 70 + 100 + 5 + 30 of input, 160 + 200 + 40 of output.
        assert_eq!(nanos(call, &own), Some(605_000));
    }

    #[test]
    fn pieces_count_where_no_tokens_are_reported() {
        let image = prices("{ input: 5, image_output: 40, image: 0.04 }");
        assert_eq!(nanos(Used { images: 2, ..Used::default() }, &image), Some(80_000_000));
        let reported = Used { images: 2, image_output: 1000, ..usage(0, 1000).into() };
        assert_eq!(nanos(reported, &image), Some(40_000_000));
        let whisper = prices("{ second: 0.0001 }");
        assert_eq!(nanos(Used { milliseconds: 1500, ..Used::default() }, &whisper), Some(150_000));
        let speech = prices("{ character: 0.000015 }");
        assert_eq!(nanos(Used { characters: 1000, ..Used::default() }, &speech), Some(15_000_000));
        let rerank = prices("{ request: 0.002 }");
        assert_eq!(nanos(Used::default(), &rerank), Some(2_000_000));
        let searching = prices("{ input: 1, output: 1, search: 0.01 }");
        assert_eq!(nanos(Used { searches: 3, ..usage(1, 1).into() }, &searching), Some(30_002_000));
    }

    #[test]
    fn batches_cost_a_part_and_urgent_calls_a_multiple() {
        let prices = prices("{ input: 2.5, output: 10, batch: 0.5, priority: 1.7 }");
        let of = |class| nanos(Used { class, ..usage(1000, 0).into() }, &prices);
        assert_eq!(of(ServiceClass::Batch), Some(1_250_000));
        assert_eq!(of(ServiceClass::Priority), Some(4_250_000));
        assert_eq!(of(ServiceClass::Flex), Some(2_500_000), "without a price of its own it costs as much as others");
    }

    #[test]
    fn a_call_is_rounded_up_once_and_never_overflows() {
        assert_eq!(nanos(usage(1, 0), &prices("{ input: 0.0001 }")), Some(1));
        assert_eq!(nanos(usage(20, 0), &prices("{ input: 0.0001 }")), Some(2));
        let absurd = Usage { cache_read: u64::MAX, cache_write_long: u64::MAX, ..usage(u64::MAX, u64::MAX) };
        assert_eq!(nanos(absurd, &prices("{ input: 1000000, output: 1000000 }")), Some(u64::MAX));
    }

    #[test]
    fn money_is_displayed_in_dollars() {
        for (nanos, text) in
            [(0, "0"), (1, "0.000000001"), (6_735_000, "0.006735"), (12_000_000_000, "12"), (1_500_000_000, "1.5")]
        {
            assert_eq!(Money(nanos).to_string(), text);
        }
    }
}
