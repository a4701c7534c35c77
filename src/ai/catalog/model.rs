//! A model as provider files write it: what it takes, what it makes, how much of it, and for how much.

use schemars::JsonSchema;
use serde::Deserialize;

use super::price::Prices;
use crate::ai::formats::Format;
use crate::config::units::Timestamp;

/// One model of a provider. What is not listed is not known.
///
/// ```yaml
/// gpt-4o: { context: 128000, max_output: 16384, input: [text, image], tools: true, prices: { input: 2.5, output: 10 } }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The provider's name of it: the key above.
    #[serde(skip)]
    pub name: String,
    #[serde(default)]
    pub mode: Mode,
    /// The most tokens of a prompt.
    #[schemars(range(min = 1))]
    pub context: Option<u64>,
    /// The most tokens of an answer.
    #[schemars(range(min = 1))]
    pub max_output: Option<u64>,
    /// What a prompt may hold.
    #[serde(default = "text")]
    pub input: Vec<Modality>,
    /// What an answer may hold.
    #[serde(default = "text")]
    pub output: Vec<Modality>,
    /// Whether it calls tools.
    pub tools: Option<bool>,
    /// Whether it keeps to a JSON schema.
    pub json_schema: Option<bool>,
    /// Whether it reasons before it answers.
    pub reasoning: Option<bool>,
    /// The formats it is served in. Default: all of the provider.
    #[serde(default)]
    pub formats: Vec<Format>,
    /// Default: unknown, which is not free.
    pub prices: Option<Prices>,
    /// The day from which the provider may not serve it any more.
    pub deprecated: Option<Timestamp>,
    /// Other names that the provider takes for it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Written by hand: `scripts/update-catalog` leaves it as it is.
    #[serde(default)]
    pub keep: bool,
}

/// What a model is called for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Chat,
    Completion,
    Embedding,
    Image,
    AudioSpeech,
    AudioTranscription,
    Moderation,
    Rerank,
    Realtime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Modality {
    Text,
    Image,
    Audio,
    Video,
    /// A PDF.
    Document,
}

fn text() -> Vec<Modality> {
    vec![Modality::Text]
}
