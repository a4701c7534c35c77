//! Prices as provider files write them, kept as whole pico-dollars: nothing is lost by rounding.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

/// What a model costs, in US dollars. Of a model that lists prices, what is not listed is unknown, except where it says
/// otherwise below.
///
/// ```yaml
/// prices: { input: 1.25, output: 10, cache_read: 0.125, tiers: [{ above: 200000, input: 2.5, output: 15 }], batch: 0.5 }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// A million tokens of the prompt.
    pub input: Option<TokenPrice>,
    /// A million tokens of the answer.
    pub output: Option<TokenPrice>,
    /// A million tokens of reasoning. Default: as `output`.
    pub reasoning: Option<TokenPrice>,
    /// A million tokens read from the provider's cache. Default: as `input`.
    pub cache_read: Option<TokenPrice>,
    /// A million tokens written to the provider's cache. Default: as `input`.
    pub cache_write: Option<TokenPrice>,
    /// A million tokens written to the provider's cache for an hour. Default: as `cache_write`.
    pub cache_write_long: Option<TokenPrice>,
    /// A million tokens of audio in the prompt. Default: as `input`.
    pub audio_input: Option<TokenPrice>,
    /// A million tokens of audio in the answer. Default: as `output`.
    pub audio_output: Option<TokenPrice>,
    /// A million tokens of images in the prompt. Default: as `input`.
    pub image_input: Option<TokenPrice>,
    /// A million tokens of images in the answer. Default: as `output`.
    pub image_output: Option<TokenPrice>,
    /// An image that was made, where the provider reports no tokens for it.
    pub image: Option<UnitPrice>,
    /// A second of a recording, where the provider reports no tokens for it.
    pub second: Option<UnitPrice>,
    /// A character that was spoken, where the provider reports no tokens for it.
    pub character: Option<UnitPrice>,
    /// A call, whatever else it costs. Default: 0.
    pub request: Option<UnitPrice>,
    /// A search in the web that the model made.
    pub search: Option<UnitPrice>,
    /// Prices of calls with a long prompt, in ascending order of `above`.
    #[serde(default)]
    pub tiers: Vec<Tier>,
    /// What tokens of a batch cost, in parts of the price. Default: as much as others.
    pub batch: Option<Multiple>,
    /// What tokens of a call cost that may wait. Default: as much as others.
    pub flex: Option<Multiple>,
    /// What tokens of a call cost that goes before others.
    pub priority: Option<Multiple>,
}

/// The prices of a call whose prompt has more tokens, those of caches included. They hold for the whole call; what is not
/// listed costs as without the tier.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    #[schemars(range(min = 1))]
    pub above: u64,
    pub input: Option<TokenPrice>,
    pub output: Option<TokenPrice>,
    pub reasoning: Option<TokenPrice>,
    pub cache_read: Option<TokenPrice>,
    pub cache_write: Option<TokenPrice>,
    pub cache_write_long: Option<TokenPrice>,
}

/// Dollars for a million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenPrice(u64);

/// Dollars for one of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnitPrice(u64);

/// A part or a multiple of a price, such as 0.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Multiple(u64);

impl TokenPrice {
    /// Pico-dollars for one token.
    pub fn pico(self) -> u64 {
        self.0
    }
}

impl UnitPrice {
    /// Pico-dollars for one.
    pub fn pico(self) -> u64 {
        self.0
    }
}

impl Multiple {
    pub const ONE: Multiple = Multiple(MILLION as u64);

    pub fn millionths(self) -> u64 {
        self.0
    }
}

const MILLION: f64 = 1e6;

/// Multiplies a written number, if the product is whole as far as the 15 exact digits of a number of the document go.
fn whole(written: f64, scale: f64, most: f64) -> Result<u64, String> {
    if !(0.0..=most).contains(&written) {
        return Err(format!("must be between 0 and {most}"));
    }
    let product = written * scale;
    if (product - product.round()).abs() > 1e-6 + product * 1e-15 {
        return Err(format!("`{written}` has too many digits: the smallest step is {}", 1.0 / scale));
    }
    Ok(product.round() as u64)
}

macro_rules! written_as_number {
    ($($type:ident: $scale:expr, $most:expr;)*) => {
        $(
            impl<'de> Deserialize<'de> for $type {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    let written = f64::deserialize(deserializer)?;
                    whole(written, $scale, $most).map($type).map_err(serde::de::Error::custom)
                }
            }
            impl JsonSchema for $type {
                fn schema_name() -> Cow<'static, str> {
                    stringify!($type).into()
                }
                fn inline_schema() -> bool {
                    true
                }
                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    json_schema!({ "type": "number", "minimum": 0, "maximum": $most })
                }
            }
        )*
    };
}

written_as_number! {
    // A dollar for a million tokens is a million pico-dollars for one.
    TokenPrice: MILLION, 1e6;
    UnitPrice: 1e12, 1e3;
    Multiple: MILLION, 100.0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_kept_to_the_last_digit_or_refused() {
        let tokens = |text: &str| serde_json::from_str::<TokenPrice>(text).map(TokenPrice::pico);
        for (written, pico) in [("2.5", 2_500_000), ("10", 10_000_000), ("0.028", 28_000), ("0.000001", 1), ("0", 0)] {
            assert_eq!(tokens(written).unwrap(), pico, "{written}");
        }
        for wrong in ["-1", "0.0000005", "1e-9", "2.5000001", "1e9", "\"1\"", "null"] {
            assert!(tokens(wrong).is_err(), "{wrong}");
        }
        let unit = serde_json::from_str::<UnitPrice>("0.00003083").map(UnitPrice::pico);
        assert_eq!(unit.unwrap(), 30_830_000);
    }
}
