//! Values that people write with a unit: durations, sizes, rates, shares.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

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

/// A share of the whole, written as a percentage: `5%`, `0.1%`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Share(pub f64);

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
    Share = "headgate-share";
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
    }

    #[test]
    fn what_is_displayed_parses_to_the_same_value() {
        for text in ["500ms", "5s", "10m", "2h", "0ms"] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), text);
        }
        for text in ["512B", "64KiB", "8MiB", "1GiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }
}
