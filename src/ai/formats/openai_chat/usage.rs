//! Tokens as OpenAI counts them: what was cached is part of the prompt's, what was thought part of the answer's.

use serde::Deserialize;

use super::super::reading::Count;
use super::super::writing::Object;
use crate::ai::chat::Usage;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireUsage {
    prompt_tokens: Option<Count>,
    completion_tokens: Option<Count>,
    total_tokens: Option<Count>,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<CompletionDetails>,
    /// DeepSeek.
    prompt_cache_hit_tokens: Option<Count>,
    /// Moonshot, Together.
    cached_tokens: Option<Count>,
    /// LiteLLM.
    cache_creation_input_tokens: Option<Count>,
    /// Perplexity.
    reasoning_tokens: Option<Count>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PromptDetails {
    cached_tokens: Option<Count>,
    cache_write_tokens: Option<Count>,
    /// LiteLLM.
    cache_creation_tokens: Option<Count>,
    audio_tokens: Option<Count>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CompletionDetails {
    reasoning_tokens: Option<Count>,
    audio_tokens: Option<Count>,
}

impl WireUsage {
    pub fn read(&self) -> Usage {
        let first = |counts: &[Option<Count>]| {
            counts.iter().flatten().map(|count| count.0).find(|count| *count > 0).unwrap_or(0)
        };
        let (prompt, completion) = (self.prompt_tokens_details.as_ref(), self.completion_tokens_details.as_ref());
        let input = first(&[self.prompt_tokens]);
        let mut output = first(&[self.completion_tokens]);
        let reasoning = first(&[completion.and_then(|details| details.reasoning_tokens), self.reasoning_tokens]);
        // xAI counts thoughts beside the answer; its total tells.
        let beside = input.saturating_add(output).saturating_add(reasoning);
        if reasoning > output || (reasoning > 0 && first(&[self.total_tokens]) == beside) {
            output = output.saturating_add(reasoning);
        }
        Usage {
            input,
            output,
            cache_read: first(&[
                prompt.and_then(|details| details.cached_tokens),
                self.prompt_cache_hit_tokens,
                self.cached_tokens,
            ])
            .min(input),
            cache_write: first(&[
                prompt.and_then(|details| details.cache_write_tokens),
                prompt.and_then(|details| details.cache_creation_tokens),
                self.cache_creation_input_tokens,
            ])
            .min(input),
            cache_write_long: 0,
            reasoning,
            audio_input: first(&[prompt.and_then(|details| details.audio_tokens)]),
            audio_output: first(&[completion.and_then(|details| details.audio_tokens)]),
        }
    }
}

pub fn write(usage: &Usage, o: &mut Object<'_>) {
    o.object("usage", |o| {
        o.set("prompt_tokens", &usage.input);
        o.set("completion_tokens", &usage.output);
        o.set("total_tokens", &usage.input.saturating_add(usage.output));
        o.object("prompt_tokens_details", |o| {
            o.set("cached_tokens", &usage.cache_read);
            if usage.cache_write > 0 {
                o.set("cache_write_tokens", &usage.cache_write);
            }
            o.set("audio_tokens", &usage.audio_input);
        });
        o.object("completion_tokens_details", |o| {
            o.set("reasoning_tokens", &usage.reasoning);
            o.set("audio_tokens", &usage.audio_output);
            o.set("accepted_prediction_tokens", &0);
            o.set("rejected_prediction_tokens", &0);
        });
    });
}
