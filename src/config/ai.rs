//! Calls of models as they are written: providers with their keys, and the names that callers use.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::SecretRef;
use super::answer_cache::AnswerCache;
use super::budget::Budget;
use super::guardrails::Guardrail;
use super::units::{Duration, Size};
use super::upstream::{Timeouts, Tls};

/// The providers that are called, and the models that callers may ask for.
///
/// ```yaml
/// ai:
///   providers:
///     openai: { keys: [{ secret: env:OPENAI_API_KEY }] }
///     anthropic: { keys: [{ secret: env:ANTHROPIC_API_KEY }] }
///   models:
///     smart: { targets: [{ model: anthropic/claude-sonnet-4-5 }, { model: openai/gpt-5, priority: 1 }] }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ai {
    /// By the name that stands before `/` in names of models. What is known of each comes from the file of that name in
    /// `conf/providers`, or in `providers` beside the configuration.
    #[schemars(extend("propertyNames" = super::root::name_schema()))]
    pub providers: BTreeMap<String, Provider>,
    /// Names of your own, each for one or more models of providers. They go before names of providers' models.
    #[schemars(extend("propertyNames" = model_name_schema()))]
    pub models: BTreeMap<String, VirtualModel>,
    /// What is looked for in calls and answers, by names that routes and models refer to.
    #[schemars(extend("propertyNames" = super::root::name_schema()))]
    pub guardrails: BTreeMap<String, Guardrail>,
    /// What answers may take that routes keep (`cache`), all together. Those that are used least go first.
    pub cache_size: Size,
    /// The model of calls that name none.
    pub default_model: Option<String>,
    /// What may be used of all models together.
    pub budgets: Vec<Budget>,
    /// The most tokens that budgets reserve for the answer of a call that says no limit of its own. Default: as many as the
    /// model can answer with, and 4096 where that is unknown. A lower number lets more calls run at a time, each of which may
    /// use more than was reserved for it.
    #[schemars(range(min = 1))]
    pub reserved_output: Option<u64>,
    /// Bodies of calls are held in memory, for another attempt; longer ones are refused (413).
    pub max_body: Size,
    /// What all of them may take together; calls beyond it are refused (503).
    pub memory: Size,
}

impl Default for Ai {
    fn default() -> Self {
        Ai {
            providers: BTreeMap::new(),
            models: BTreeMap::new(),
            guardrails: BTreeMap::new(),
            cache_size: Size::mib(64),
            default_model: None,
            budgets: Vec::new(),
            reserved_output: None,
            max_body: Size::mib(32),
            memory: Size::mib(512),
        }
    }
}

/// A provider that is called.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Provider {
    /// The provider file it goes by. Default: the one of its own name.
    pub provider: Option<String>,
    /// What it is shown. Several share the calls, and one that is refused rests for a while. Default: none, for engines of
    /// your own.
    pub keys: Vec<ProviderKey>,
    /// Values for the variables of the file's addresses, such as `region`.
    pub variables: BTreeMap<String, String>,
    /// Addresses instead of the file's, by format, such as `openai_chat: http://127.0.0.1:9000/v1`.
    pub base_urls: BTreeMap<String, String>,
    /// Time limits of one attempt. `first_byte` covers all the thinking before a whole answer. Default: 600 seconds for it,
    /// 120 for `idle`.
    pub timeouts: Option<Timeouts>,
    /// How its certificate is checked. Default: against the system's authorities.
    pub tls: Option<Tls>,
    /// What happens with a call whose caller has left. Default: what the provider's file says.
    pub on_disconnect: Option<OnDisconnect>,
    /// What may be used of it. Calls beyond that go to other targets of their model.
    pub budgets: Vec<Budget>,
}

/// What happens with a call whose caller has left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnect {
    /// The provider stops when the connection ends, and bills what it has made.
    #[default]
    Cancel,
    /// The provider bills the whole answer anyway: it is read on for its usage, for two minutes and 16 MiB at most.
    Drain,
}

/// A key of a provider.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProviderKey {
    /// Where the key is kept.
    pub secret: SecretRef,
    /// Its part of the calls, relative to the other keys.
    #[serde(default = "one")]
    #[schemars(range(max = 10_000))]
    pub weight: u32,
    /// The models it is for, by the provider's names. Default: all.
    #[serde(default)]
    pub models: Vec<String>,
    /// What may be used of it. Calls beyond that show another key, or go to another target.
    #[serde(default)]
    pub budgets: Vec<Budget>,
}

/// A name of your own for models of providers.
///
/// ```yaml
/// smart:
///   targets: [{ model: anthropic/claude-sonnet-4-5, weight: 3 }, { model: openai/gpt-5 }, { model: gemini/gemini-2.5-pro, priority: 1 }]
///   first_token: 20s
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VirtualModel {
    #[schemars(length(min = 1))]
    pub targets: Vec<ModelTarget>,
    /// How one of the targets of a priority is chosen.
    #[serde(default)]
    pub strategy: Strategy,
    /// The most attempts of one call, over all targets.
    #[serde(default = "attempts")]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: u32,
    /// How long an attempt may take to the first content of its answer; then the next target is tried. Default: the
    /// provider's time limits only.
    pub first_token: Option<Duration>,
    /// Whether another target is tried when a provider's filter refuses.
    #[serde(default)]
    pub fallback_on_filter: bool,
    /// Guardrails of `ai.guardrails` that hold for its calls, besides those of the route.
    #[serde(default)]
    pub guardrails: Vec<String>,
    /// What may be used under this name.
    #[serde(default)]
    pub budgets: Vec<Budget>,
}

/// One model of a provider, as a target.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelTarget {
    /// `provider/model`.
    pub model: String,
    /// Its part of the calls, relative to the other targets of its priority.
    #[serde(default = "one")]
    #[schemars(range(max = 10_000))]
    pub weight: u32,
    /// Targets of a higher number are tried when those of lower ones have failed or cannot be used.
    #[serde(default)]
    pub priority: u32,
}

/// How a target is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// At random, by weight.
    #[default]
    Weighted,
    /// The first that is written.
    InOrder,
    /// The one with the fewest calls under way for its weight.
    LeastBusy,
    /// The one whose answers have begun soonest lately, times the calls under way.
    LowestLatency,
    /// The one whose tokens cost least.
    Cheapest,
}

fn one() -> u32 {
    1
}

fn attempts() -> u32 {
    3
}

/// Names of models hold what providers' do: slashes and colons too.
fn model_name_schema() -> serde_json::Value {
    serde_json::json!({
        "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.:/@-]{0,127}$",
        "description": "letters, digits, `_`, `-`, `.`, `:`, `/` and `@`, at most 128",
    })
}

/// Answers calls of models: chat completions, messages, generateContent and others, told apart by their paths.
///
/// ```yaml
/// ai: { models: [smart, openai/gpt-5-mini] }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AiRoute {
    /// The models that may be called here. Default: all.
    pub models: Vec<String>,
    /// The model of calls that name none. Default: `ai.default_model`.
    pub default_model: Option<String>,
    /// Providers of which callers here may reach everything, under `/passthrough/PROVIDER/…` and as `/files` and `/batches`: every
    /// model, and what other callers keep there. Default: none.
    pub passthrough: Vec<String>,
    /// Guardrails of `ai.guardrails` that hold for every call here.
    pub guardrails: Vec<String>,
    /// Gives answers again to who asks the same. Default: every call is a provider's.
    pub cache: Option<AnswerCache>,
}
