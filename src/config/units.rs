//! Values that people write with a unit: durations, sizes, rates, shares.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

use super::budget::{BudgetAmount, MoneyAmount};

/// A length of time: a number and one of `ms`, `s`, `m`, `h`, `d`, as in `500ms` or `5s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub time::Duration);

impl Duration {
    pub const fn from_secs(secs: u64) -> Self {
        Duration(time::Duration::from_secs(secs))
    }
    pub const fn from_millis(millis: u64) -> Self {
        Duration(time::Duration::from_millis(millis))
    }
    pub fn get(self) -> time::Duration {
        self.0
    }
}

/// A number of bytes: a number and one of `B`, `KiB`, `MiB`, `GiB`, as in `8MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    pub const fn kib(n: u64) -> Self {
        Size(n << 10)
    }
    pub const fn mib(n: u64) -> Self {
        Size(n << 20)
    }
    pub fn get(self) -> u64 {
        self.0
    }
}

/// Bytes in a time: a size and `/s`, as in `1MiB/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Throughput(pub u64);

impl Throughput {
    /// Bytes per second.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// A share of the whole, written as a percentage: `5%`, `0.1%`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Share(pub f64);

/// A point in time: `2027-06-30T12:00:00Z`, or a date, which stands for its first moment in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub jiff::Timestamp);

/// An amount in a time: `100/s`, `5000/min`, `10/30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub amount: u64,
    pub per: time::Duration,
}

/// An amount in a calendar period: `1000000/month`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaAmount {
    pub amount: u64,
    pub period: Period,
}

/// A period of the calendar. Weeks begin on Monday (ISO 8601).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Of budgets only.
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Period {
    /// Those of quotas.
    pub const ALL: [(&str, Period); 5] = [
        ("hour", Period::Hour),
        ("day", Period::Day),
        ("week", Period::Week),
        ("month", Period::Month),
        ("year", Period::Year),
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Period::Minute => "min",
            _ => Period::ALL.iter().find(|(_, period)| *period == self).map_or("", |(word, _)| word),
        }
    }
}

/// One rate, or several that hold together.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Rates {
    One(Rate),
    Several(#[schemars(length(min = 1))] Vec<Rate>),
}

impl Rates {
    pub fn as_slice(&self) -> &[Rate] {
        match self {
            Rates::One(rate) => std::slice::from_ref(rate),
            Rates::Several(rates) => rates,
        }
    }
}

impl Share {
    /// The share as a fraction between 0 and 1.
    pub fn fraction(self) -> f64 {
        self.0
    }

    /// Decides one event: true for this share of all calls.
    pub fn draw(self) -> bool {
        self.0 >= 1.0 || fastrand::f64() < self.0
    }
}

/// Splits `12.5ms` into its number and its unit.
fn split_unit(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse::<f64>().ok()?;
    Some((number, text[end..].trim()))
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not a duration; write a number and a unit, such as 500ms, 5s, 10m, 1h or 1d");
        let (number, unit) = split_unit(text).ok_or_else(wrong)?;
        let millis = match unit {
            "ms" => number,
            "s" => number * 1e3,
            "m" => number * 60e3,
            "h" => number * 3600e3,
            "d" => number * 86400e3,
            _ => return Err(wrong()),
        };
        // A century; beyond it, arithmetic on instants may overflow.
        if millis > 3.2e12 {
            return Err(format!("`{text}` is too long a duration"));
        }
        Ok(Duration(time::Duration::from_micros((millis * 1e3).round() as u64)))
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size; write a number and a unit, such as 512B, 64KiB, 8MiB or 1GiB");
        let (number, unit) = split_unit(text).ok_or_else(wrong)?;
        let factor = match unit {
            "B" | "" => 1u64,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        let bytes = number * factor as f64;
        if bytes > (1u64 << 50) as f64 {
            return Err(format!("`{text}` is too large a size"));
        }
        Ok(Size(bytes.round() as u64))
    }
}

impl FromStr for Throughput {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a throughput; write a size per second, such as 512KiB/s or 1MiB/s");
        let size = text.strip_suffix("/s").ok_or_else(wrong)?.trim().parse::<Size>().map_err(|_| wrong())?;
        match size.get() {
            0 => Err(format!("`{text}`: nothing would ever come through")),
            bytes => Ok(Throughput(bytes)),
        }
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a share; write a percentage between 0% and 100%");
        let percent = text.strip_suffix('%').and_then(|n| n.trim().parse::<f64>().ok()).ok_or_else(wrong)?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(wrong());
        }
        Ok(Share(percent / 100.0))
    }
}

impl FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at_midnight = || {
            // A time without its offset would be read as a date too.
            let date = text.parse::<jiff::civil::Date>().ok().filter(|_| text.len() == "2027-06-30".len())?;
            jiff::tz::TimeZone::UTC.to_timestamp(date.to_datetime(jiff::civil::Time::midnight())).ok()
        };
        text.parse::<jiff::Timestamp>()
            .ok()
            .or_else(at_midnight)
            .map(Timestamp)
            .ok_or_else(|| format!("`{text}` is not a time; write a date such as 2027-06-30, or 2027-06-30T12:00:00Z"))
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a rate; write an amount and a time, such as 100/s, 5000/min or 10/30s");
        let (amount, per) = text.split_once('/').ok_or_else(wrong)?;
        let amount = amount.trim().parse::<u64>().map_err(|_| wrong())?;
        let per = match per.trim() {
            "s" | "sec" | "second" => Duration::from_secs(1),
            "m" | "min" | "minute" => Duration::from_secs(60),
            "h" | "hour" => Duration::from_secs(3600),
            "d" | "day" => Duration::from_secs(86400),
            other => other.parse().map_err(|_| wrong())?,
        };
        // A day is the longest that a bucket makes sense for; beyond it, there are quotas.
        if amount == 0 || per.get().is_zero() || per.get() > time::Duration::from_secs(86400) {
            return Err(format!("`{text}`: a rate is at least 1, in a time of at most a day; for longer, use a quota"));
        }
        if amount > 1_000_000_000 {
            return Err(format!("`{text}` is too large a rate"));
        }
        Ok(Rate { amount, per: per.get() })
    }
}

impl FromStr for QuotaAmount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a quota; write an amount and a period: hour, day, week, month or year");
        let (amount, period) = text.split_once('/').ok_or_else(wrong)?;
        let amount = amount.trim().parse::<u64>().map_err(|_| wrong())?;
        let (_, period) = *Period::ALL.iter().find(|(word, _)| *word == period.trim()).ok_or_else(wrong)?;
        if amount > i64::MAX as u64 {
            return Err(format!("`{text}` is too large a quota"));
        }
        Ok(QuotaAmount { amount, period })
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.per.as_secs() {
            1 if self.per.subsec_nanos() == 0 => write!(f, "{}/s", self.amount),
            60 if self.per.subsec_nanos() == 0 => write!(f, "{}/min", self.amount),
            _ => write!(f, "{}/{}", self.amount, Duration(self.per)),
        }
    }
}

impl fmt::Display for QuotaAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.amount, self.period.as_str())
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            m if m % 1000 != 0 || m == 0 => write!(f, "{m}ms"),
            m if m % 60_000 != 0 => write!(f, "{}s", m / 1000),
            m if m % 3_600_000 != 0 => write!(f, "{}m", m / 60_000),
            m => write!(f, "{}h", m / 3_600_000),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b if b % 1024 != 0 || b == 0 => write!(f, "{b}B"),
            b if b % (1 << 20) != 0 => write!(f, "{}KiB", b >> 10),
            b if b % (1 << 30) != 0 => write!(f, "{}MiB", b >> 20),
            b => write!(f, "{}GiB", b >> 30),
        }
    }
}

impl fmt::Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size(self.0))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0 * 100.0)
    }
}

/// Gives a unit type its strict decoding from a string, its encoding for defaults, and its schema; the schema's
/// `format` is what `check` uses to test a written value (see [`check_format`]).
macro_rules! written_as_string {
    ($($type:ident = $format:literal;)*) => {
        $(
            impl<'de> Deserialize<'de> for $type {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    let text = Cow::<str>::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                }
            }
            impl serde::Serialize for $type {
                fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.collect_str(self)
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
                    json_schema!({ "type": "string", "format": $format })
                }
            }
        )*

        /// Tests a string against one of this project's own schema formats. Unknown formats pass.
        pub fn check_format(format: &str, text: &str) -> Result<(), String> {
            match format {
                $($format => text.parse::<$type>().map(drop),)*
                _ => Ok(()),
            }
        }
    };
}

written_as_string! {
    Duration = "headgate-duration";
    Size = "headgate-size";
    Throughput = "headgate-throughput";
    Share = "headgate-share";
    Timestamp = "headgate-timestamp";
    Rate = "headgate-rate";
    QuotaAmount = "headgate-quota";
    BudgetAmount = "headgate-budget";
    MoneyAmount = "headgate-money-budget";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_known_unit() {
        assert_eq!("500ms".parse::<Duration>().unwrap().get(), time::Duration::from_millis(500));
        assert_eq!("1.5s".parse::<Duration>().unwrap().get(), time::Duration::from_millis(1500));
        for wrong in ["5", "5 parsecs", "", "s", "-1s", "99999999999d"] {
            assert!(wrong.parse::<Duration>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_powers_of_two() {
        assert_eq!("8MiB".parse::<Size>().unwrap(), Size::mib(8));
        assert!("8MB".parse::<Size>().is_err());
        assert_eq!("1MiB/s".parse::<Throughput>().map(Throughput::get), Ok(1 << 20));
        for wrong in ["1MiB", "0B/s", "/s", "1MiB/min", "1MB/s"] {
            assert!(wrong.parse::<Throughput>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_and_quotas_need_an_amount_and_a_known_time() {
        let rate = |text: &str| text.parse::<Rate>().map(|rate| (rate.amount, rate.per.as_millis()));
        assert_eq!(rate("100/s"), Ok((100, 1000)));
        assert_eq!(rate("5000/min"), Ok((5000, 60_000)));
        assert_eq!(rate("10/500ms"), Ok((10, 500)));
        for wrong in ["100", "0/s", "/s", "1/", "1/0s", "1/2d", "-1/s", "1.5/s", "1/month", "99999999999/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
        let quota = |text: &str| text.parse::<QuotaAmount>();
        assert_eq!(quota("1000000/month"), Ok(QuotaAmount { amount: 1_000_000, period: Period::Month }));
        for wrong in ["1/s", "1/months", "month", "-1/day", "99999999999999999999/day"] {
            assert!(quota(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_date_is_its_first_moment() {
        let at = |text: &str| text.parse::<Timestamp>().map(|at| at.0.as_second());
        assert_eq!(at("1970-01-02"), Ok(86400));
        assert_eq!(at("1970-01-01T01:00:00+01:00"), Ok(0));
        for wrong in ["", "1970-13-01", "tomorrow", "1970-01-01T00:00:00"] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_displayed_parses_to_the_same_value() {
        for text in ["500ms", "5s", "10m", "2h", "0ms"] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), text);
        }
        for text in ["512B", "64KiB", "8MiB", "1GiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
            let text = format!("{text}/s");
            assert_eq!(text.parse::<Throughput>().unwrap().to_string(), text);
        }
    }
}
