//! Where a provider differs from the format it says it speaks: declared by name in its file, honoured by the format.

use schemars::JsonSchema;
use serde::Deserialize;

/// One deviation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quirk {
    /// Knows `max_tokens` only, not `max_completion_tokens`.
    MaxTokens,
    /// Knows the role `system` only, not `developer`.
    NoDeveloperRole,
    /// Refuses `stream_options`.
    NoStreamOptions,
    /// Refuses `parallel_tool_calls`.
    NoParallelToolCalls,
    /// Refuses `tool_choice: required`.
    NoRequiredTool,
    /// Knows `response_format: json_object` only, not schemas.
    NoJsonSchema,
    /// Refuses `reasoning_effort`.
    NoReasoningEffort,
    /// Takes `cache_control` on parts of messages.
    CacheControl,
    /// Takes texts only as a string, not as a list of parts.
    StringContent,
    /// Thinks as it sees fit, and takes an effort instead of a budget of tokens (Anthropic's newer models).
    AdaptiveThinking,
    /// Refuses `temperature`, `top_p` and `top_k`.
    NoSampling,
    /// Anthropic's format as Amazon Bedrock hosts it: the model and whether to stream are in the path.
    AnthropicOnBedrock,
    /// Anthropic's format as Google Vertex hosts it: the model is in the path.
    AnthropicOnVertex,
    /// Takes thoughts of earlier answers back as `reasoning_content`.
    ReasoningContent,
    /// Takes `reasoning` with an effort or a budget instead of `reasoning_effort`, and thoughts with their signatures back as
    /// `reasoning_details`.
    ReasoningDetails,
    /// Takes Gemini's thought signatures back in `extra_content` of tool calls.
    ThoughtSignatures,
    /// Takes ids of tool calls only of nine letters and digits.
    ShortToolIds,
    /// Takes `top_k`.
    TopK,
    /// Takes `video_url` parts.
    VideoParts,
    /// Calls the seed `random_seed`.
    RandomSeed,
    /// Refuses `user`.
    NoUser,
    /// Ranks documents as Voyage does: `top_k` instead of `top_n`, and `data` instead of `results`.
    RerankTopK,
}

/// The deviations of one provider.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quirks(u32);

impl Quirks {
    pub fn has(self, quirk: Quirk) -> bool {
        self.0 & (1 << quirk as u32) != 0
    }
}

impl FromIterator<Quirk> for Quirks {
    fn from_iter<T: IntoIterator<Item = Quirk>>(quirks: T) -> Self {
        Quirks(quirks.into_iter().fold(0, |all, quirk| all | 1 << quirk as u32))
    }
}
