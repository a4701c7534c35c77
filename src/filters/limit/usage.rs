//! What a consumer has used and has left, for whoever asks at the admin listener.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::identity::Consumer;
use crate::limits::{Standing, whole_seconds};

/// A limit that consumers can be shown their part of.
pub trait Limit: Send + Sync {
    /// How a consumer stands; nothing if the limit does not go by consumer.
    fn shown(&self, consumer: &Consumer) -> Vec<Shown>;

    /// Whether the usage store has to keep it.
    fn counts(&self) -> bool {
        false
    }
}

/// How a consumer stands at one limit.
pub struct Shown {
    limit: String,
    kind: &'static str,
    unit: Unit,
    used: u64,
    standing: Standing,
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Requests,
    Tokens,
    /// Shown in dollars.
    NanoDollars,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Requests => "requests",
            Unit::Tokens => "tokens",
            Unit::NanoDollars => "dollars",
        }
    }

    fn json(self, amount: u64) -> Value {
        match self {
            Unit::NanoDollars => json!(amount as f64 / 1e9),
            _ => amount.into(),
        }
    }
}

impl Shown {
    pub fn rate(limit: &str, standing: Standing) -> Shown {
        let used = standing.amount.saturating_sub(standing.remaining);
        Shown { limit: limit.to_owned(), kind: "rate", unit: Unit::Requests, used, standing }
    }

    pub fn quota(limit: &str, used: u64, standing: Standing) -> Shown {
        Shown { limit: limit.to_owned(), kind: "quota", unit: Unit::Requests, used, standing }
    }

    pub fn budget(limit: &str, unit: Unit, used: u64, standing: Standing) -> Shown {
        Shown { limit: limit.to_owned(), kind: "budget", unit, used, standing }
    }

    pub fn is_touched(&self) -> bool {
        self.used > 0
    }

    pub fn json(&self) -> Value {
        let Standing { amount, remaining, reset, window } = self.standing;
        json!({
            "limit": self.limit,
            "kind": self.kind,
            "unit": self.unit.name(),
            "amount": self.unit.json(amount),
            "used": self.unit.json(self.used),
            "remaining": self.unit.json(remaining),
            "window_seconds": whole_seconds(window),
            "reset": moment(reset),
        })
    }
}

/// The second at which all of it is there again.
fn moment(after: Duration) -> String {
    // Periods are counted in whole seconds of the wall clock; a fraction of the present one would come on top.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let at = i64::try_from(now + whole_seconds(after)).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
    at.map(|at| at.to_string()).unwrap_or_default()
}
