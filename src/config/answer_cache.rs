//! Caches of answers as they are written.

use schemars::JsonSchema;
use serde::Deserialize;

use super::units::{Duration, Size};

/// Answers that are given again to who asks the same: the same body, whatever the order of its members, the white space and
/// whether it is streamed. Only whole, successful answers are kept, as the guardrails let them through.
///
/// ```yaml
/// cache: { ttl: 1h, scope: team }
/// ```
///
/// A request's `Cache-Control` is obeyed: `no-cache` asks the provider anew, `no-store` also keeps nothing, `max-age` limits the
/// age, and with `only-if-cached` no provider is asked (504 if there is no answer). The header `headgate-ai-cache` says `hit`,
/// `miss` or `bypass`, `Age` how old an answer is. A hit costs nothing.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AnswerCache {
    /// How long an answer is given again.
    pub ttl: Duration,
    /// Who shares answers.
    pub scope: CacheScope,
    /// Keeps only answers to calls that ask for `temperature: 0` or name a `seed`. Default: all, since who asks for the same text
    /// again rarely wants another answer.
    pub deterministic_only: bool,
    /// The longest answer that is kept.
    pub max_answer: Size,
    /// Gives an answer also to who asks something similar. Default: only to who asks the same.
    pub semantic: Option<Semantic>,
}

/// Compares what users have said last by its meaning; all else of a call has to be the same: tenant, model, instructions, the
/// conversation before and the parameters. The header `headgate-ai-cache` says `semantic`.
///
/// ```yaml
/// cache: { semantic: { model: openai/text-embedding-3-small, threshold: 0.95 } }
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Semantic {
    /// The model of embeddings, as `provider/model`; the provider has an address of the format `openai_chat`. It is asked about
    /// every call that is not answered otherwise; what that costs is not part of the call's cost.
    pub model: String,
    /// How similar two questions have to be: the cosine of their embeddings.
    #[serde(default = "threshold")]
    #[schemars(range(min = 0.5, max = 1.0))]
    pub threshold: f64,
    /// How long the embedding may take. Later, or when it fails, the call is a miss.
    #[serde(default = "patience")]
    pub timeout: Duration,
}

fn threshold() -> f64 {
    0.95
}

fn patience() -> Duration {
    Duration::from_secs(2)
}

impl Default for AnswerCache {
    fn default() -> Self {
        AnswerCache {
            ttl: Duration::from_secs(3600),
            scope: CacheScope::Consumer,
            deterministic_only: false,
            max_answer: Size::mib(1),
            semantic: None,
        }
    }
}

/// Who shares answers. Those of callers that nobody knows are kept only where all share them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheScope {
    /// Each consumer has its own.
    #[default]
    Consumer,
    /// The consumers of a team; one without a team has its own.
    Team,
    /// All who may call the route.
    Shared,
}
