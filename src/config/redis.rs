//! The Redis (or Valkey) by which the limits of several gateways hold together.

use schemars::JsonSchema;
use serde::Deserialize;

use super::reference::SecretRef;
use super::units::Duration;

/// Makes several gateways a fleet: their limits and quotas hold together.
///
/// ```yaml
/// redis:
///   url: rediss://redis.internal:6379
///   password: env:REDIS_PASSWORD
///   gateways: 3
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// Where it is: `redis://HOST:PORT/DATABASE`, `rediss://` for TLS, `redis+unix:///PATH`. Passwords do not belong here.
    pub url: String,
    /// Default: the default user.
    pub username: Option<String>,
    pub password: Option<SecretRef>,
    /// Comes before every key.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// For one answer. A later one counts as none, and limits go by what they have for that.
    #[serde(default = "default_timeout")]
    pub timeout: Duration,
    /// How many gateways there are: while Redis does not answer, each admits its part of a limit.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10_000))]
    pub gateways: u32,
}

fn default_prefix() -> String {
    "headgate".to_owned()
}

fn default_timeout() -> Duration {
    Duration::from_millis(100)
}

fn one() -> u32 {
    1
}
