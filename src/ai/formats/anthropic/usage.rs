//! Tokens: Anthropic counts those of its cache beside `input_tokens`, the neutral form among them.

use serde::{Deserialize, Serialize};

use crate::ai::chat;
use crate::ai::formats::tolerant;

/// As it is read. In a stream the counts grow; a later event leaves out what has not changed.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct Usage {
    #[serde(deserialize_with = "tolerant::count")]
    input_tokens: Option<u64>,
    #[serde(deserialize_with = "tolerant::count")]
    cache_creation_input_tokens: Option<u64>,
    #[serde(deserialize_with = "tolerant::count")]
    cache_read_input_tokens: Option<u64>,
    cache_creation: Option<CacheCreation>,
    #[serde(deserialize_with = "tolerant::count")]
    output_tokens: Option<u64>,
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct CacheCreation {
    #[serde(deserialize_with = "tolerant::count")]
    ephemeral_5m_input_tokens: Option<u64>,
    #[serde(deserialize_with = "tolerant::count")]
    ephemeral_1h_input_tokens: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct OutputDetails {
    #[serde(deserialize_with = "tolerant::count")]
    thinking_tokens: Option<u64>,
}

impl Usage {
    /// Takes over what a later event says.
    pub fn update(&mut self, later: Usage) {
        self.input_tokens = later.input_tokens.or(self.input_tokens);
        self.cache_creation_input_tokens = later.cache_creation_input_tokens.or(self.cache_creation_input_tokens);
        self.cache_read_input_tokens = later.cache_read_input_tokens.or(self.cache_read_input_tokens);
        self.cache_creation = later.cache_creation.or(self.cache_creation);
        self.output_tokens = later.output_tokens.or(self.output_tokens);
        self.output_tokens_details = later.output_tokens_details.or(self.output_tokens_details);
    }

    pub fn neutral(&self) -> chat::Usage {
        let by_age = self.cache_creation.unwrap_or_default();
        let long = by_age.ephemeral_1h_input_tokens.unwrap_or_default();
        let short = by_age.ephemeral_5m_input_tokens.unwrap_or_default();
        let cache_write = self.cache_creation_input_tokens.unwrap_or(long.saturating_add(short));
        let cache_read = self.cache_read_input_tokens.unwrap_or_default();
        chat::Usage {
            input: self.input_tokens.unwrap_or_default().saturating_add(cache_read).saturating_add(cache_write),
            output: self.output_tokens.unwrap_or_default(),
            cache_read,
            cache_write,
            cache_write_long: long.min(cache_write),
            reasoning: self.output_tokens_details.and_then(|details| details.thinking_tokens).unwrap_or_default(),
            ..chat::Usage::default()
        }
    }
}

/// As it is written.
#[derive(Serialize)]
pub(super) struct Written {
    input_tokens: u64,
    cache_creation_input_tokens: u64,
    cache_read_input_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_creation: Option<WrittenCreation>,
    output_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens_details: Option<WrittenDetails>,
}

#[derive(Serialize)]
struct WrittenCreation {
    ephemeral_5m_input_tokens: u64,
    ephemeral_1h_input_tokens: u64,
}

#[derive(Serialize)]
struct WrittenDetails {
    thinking_tokens: u64,
}

impl Written {
    pub fn of(usage: &chat::Usage) -> Written {
        Written {
            input_tokens: usage.input.saturating_sub(usage.cache_read).saturating_sub(usage.cache_write),
            cache_creation_input_tokens: usage.cache_write,
            cache_read_input_tokens: usage.cache_read,
            cache_creation: (usage.cache_write > 0).then(|| WrittenCreation {
                ephemeral_5m_input_tokens: usage.cache_write.saturating_sub(usage.cache_write_long),
                ephemeral_1h_input_tokens: usage.cache_write_long,
            }),
            output_tokens: usage.output,
            output_tokens_details: (usage.reasoning > 0).then_some(WrittenDetails { thinking_tokens: usage.reasoning }),
        }
    }
}
