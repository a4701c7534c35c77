//! How many tokens, how much money and how many calls of models may be used, as it is written.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::Deserialize;

use super::units::Period;

/// What may be used of models in a period: calls, tokens, or money. Exactly one of `requests`, `tokens` and `cost` is
/// written; several budgets hold together. A call reserves what it may use at most before a provider is asked, and is
/// settled with what it has used.
///
/// ```yaml
/// budgets:
///   - { tokens: 100000/min }
///   - { cost: 50/month, time_zone: Europe/Berlin }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Calls that a provider was asked for, whatever became of them.
    pub requests: Option<BudgetAmount>,
    /// Tokens of prompts and answers, those of caches and of reasoning included.
    pub tokens: Option<BudgetAmount>,
    /// US dollars, such as `50/month` or `0.25/day`.
    pub cost: Option<MoneyAmount>,
    /// Whose calls count together. Only on `ai`, its models, providers and keys: elsewhere it is the consumer, or the team.
    pub by: BudgetBy,
    /// Where days, weeks, months and years begin and end: a name of the IANA database. Default: UTC.
    pub time_zone: Option<String>,
    /// What a budget of money does with models whose price is unknown.
    pub unknown_price: UnknownPrice,
    /// What it is called in answers, logs, metrics and in the store: a budget of another name counts anew. Default: its place,
    /// what it counts, and the period.
    #[schemars(length(min = 1, max = 64))]
    pub name: Option<String>,
}

/// Whose calls count together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BudgetBy {
    /// Everybody's.
    #[default]
    All,
    /// Each consumer's; of callers who are none, each address's.
    Consumer,
    /// Each team's; of callers without one, each consumer's.
    Team,
}

/// What a budget of money does with models whose price is unknown. Their calls never count as free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownPrice {
    /// They are not called: nobody could say when the money is spent.
    #[default]
    Deny,
    /// They are called, and the budget does not hold them. `/usage` and metrics count them as calls of unknown price.
    Allow,
}

/// Consumers that are counted together.
///
/// ```yaml
/// teams:
///   apps: { budgets: [{ cost: 500/month }] }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Team {
    /// What all consumers of the team may use of models together.
    pub budgets: Vec<Budget>,
}

/// A number in a period: `100000/min`, `2000000/day`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetAmount {
    pub amount: u64,
    pub period: Period,
}

/// Dollars in a period: `50/month`, `0.25/day`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoneyAmount {
    pub nano_dollars: u64,
    pub period: Period,
}

/// Digits of a dollar that are kept.
const DIGITS: usize = 9;
const NANOS: u64 = 1_000_000_000;

fn period(word: &str) -> Option<Period> {
    let all = Period::ALL.iter().map(|(_, period)| *period).chain([Period::Minute]);
    all.into_iter().find(|period| period.as_str() == word.trim())
}

impl FromStr for BudgetAmount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not a budget; write a number and a period: min, hour, day, week, month or year");
        let (amount, word) = text.split_once('/').ok_or_else(wrong)?;
        let amount = amount.trim().parse::<u64>().map_err(|_| wrong())?;
        let period = period(word).ok_or_else(wrong)?;
        if amount > i64::MAX as u64 {
            return Err(format!("`{text}` is too large a budget"));
        }
        Ok(BudgetAmount { amount, period })
    }
}

impl FromStr for MoneyAmount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let periods = "min, hour, day, week, month or year";
            format!("`{text}` is not a budget of money; write dollars and a period ({periods}), such as 50/month")
        };
        let (dollars, word) = text.split_once('/').ok_or_else(wrong)?;
        let period = period(word).ok_or_else(wrong)?;
        // Never by way of a float: what is written is what is counted.
        let (whole, part) = dollars.trim().split_once('.').unwrap_or((dollars.trim(), "0"));
        let digits = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(part) {
            return Err(wrong());
        }
        if part.len() > DIGITS {
            return Err(format!("`{text}` has too many digits: a billionth of a dollar is the smallest step"));
        }
        let part: u64 = format!("{part:0<DIGITS$}").parse().map_err(|_| wrong())?;
        let whole = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(NANOS));
        let nano_dollars = whole.and_then(|whole| whole.checked_add(part)).filter(|nanos| *nanos <= i64::MAX as u64);
        let nano_dollars = nano_dollars.ok_or_else(|| format!("`{text}` is too large a budget"))?;
        Ok(MoneyAmount { nano_dollars, period })
    }
}

impl fmt::Display for BudgetAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.amount, self.period.as_str())
    }
}

impl fmt::Display for MoneyAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.nano_dollars / NANOS, self.nano_dollars % NANOS);
        match part {
            0 => write!(f, "{whole}/{}", self.period.as_str()),
            _ => {
                let digits = format!("{part:0DIGITS$}");
                write!(f, "{whole}.{}/{}", digits.trim_end_matches('0'), self.period.as_str())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_read_to_the_last_digit_without_floats() {
        let nanos = |text: &str| text.parse::<MoneyAmount>().map(|amount| amount.nano_dollars);
        for (text, want) in [
            ("50/month", 50 * NANOS),
            ("0.000001/day", 1_000),
            ("0.1/day", 100_000_000),
            ("12.345678901/year", 12_345_678_901),
            ("0/day", 0),
            ("9223372036/year", 9_223_372_036 * NANOS),
        ] {
            assert_eq!(nanos(text), Ok(want), "{text}");
            assert_eq!(text.parse::<MoneyAmount>().unwrap().to_string(), text);
        }
        for wrong in
            ["50", "$5/day", "-1/day", "1e3/day", ".5/day", "5./day", "1/s", "0.0000000001/day", "9223372037/day"]
        {
            assert!(nanos(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn amounts_are_whole_and_periods_have_names() {
        let amount = |text: &str| text.parse::<BudgetAmount>();
        assert_eq!(amount("100000/min"), Ok(BudgetAmount { amount: 100_000, period: Period::Minute }));
        assert_eq!(amount("5/day").map(|amount| amount.to_string()), Ok("5/day".to_owned()));
        for wrong in ["1.5/min", "1/minute", "1/s", "min", "", "-1/day"] {
            assert!(amount(wrong).is_err(), "{wrong}");
        }
    }
}
