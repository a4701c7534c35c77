//! What a trace tells of a call.

use super::chat::ChatRequest;
use crate::telemetry::exchange::TracedCall;

impl From<&ChatRequest> for TracedCall {
    fn from(request: &ChatRequest) -> TracedCall {
        TracedCall {
            max_tokens: request.max_tokens,
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            seed: request.seed,
            frequency_penalty: request.frequency_penalty,
            presence_penalty: request.presence_penalty,
            choices: request.choices.map(u64::from),
            stop_sequences: request.stop.clone(),
            response_id: None,
            response_model: None,
        }
    }
}
