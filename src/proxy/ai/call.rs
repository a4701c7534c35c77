//! What a caller asks of a model, as far as it is made out: the body's head at once, the rest when it is needed.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::cached::Place;
use crate::ai::chat::{ChatRequest, Failure, FailureKind};
use crate::ai::formats::{Caller, Format, PathFacts};
use crate::ai::guardrails::Guardrail;
use crate::ai::passing::Head;
use crate::config::guardrails::Side;

/// Headers of callers that providers of the same format are shown.
pub const SHOWN: [HeaderName; 4] = [
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
    HeaderName::from_static("idempotency-key"),
];

/// One call of a model.
pub struct Call<'p> {
    /// The caller's dialect.
    pub format: Format,
    pub caller: &'static dyn Caller,
    /// The name of the model that is asked for.
    pub name: Box<str>,
    /// With the body.
    pub head: Head,
    pub stream: bool,
    /// The caller's headers that a provider of the same format is shown.
    pub shown: Vec<(HeaderName, HeaderValue)>,
    /// What is looked for in it and in its answer.
    pub guardrails: Vec<Arc<Guardrail>>,
    /// Where its answer is to be kept.
    pub keep: Option<Place>,
    path: PathFacts<'p>,
    /// In the neutral form, once somebody has asked for it.
    request: Option<ChatRequest>,
}

impl<'p> Call<'p> {
    /// Makes out a call. One that names no model is for `default_model`, as if the caller had written that.
    pub fn read(
        format: Format,
        caller: &'static dyn Caller,
        path: PathFacts<'p>,
        headers: &HeaderMap,
        body: &Bytes,
        default_model: Option<&str>,
    ) -> Result<Call<'p>, Failure> {
        let mut head = Head::read(body)?;
        let named = path.model.or(head.model());
        let Some(name) = named.or(default_model) else {
            return Err(Failure::invalid("model", "the call names no model"));
        };
        let name: Box<str> = name.into();
        if named.is_none() {
            head = Head::read(&head.passed_on(Some(&name), false))?;
        }
        let stream = path.stream.unwrap_or(head.stream);
        let shown = SHOWN.iter().filter_map(|shown| Some((shown.clone(), headers.get(shown)?.clone()))).collect();
        Ok(Call { format, caller, name, head, stream, shown, guardrails: Vec::new(), keep: None, path, request: None })
    }

    /// Whether its answer is looked at before the caller sees it.
    pub fn is_guarded(&self) -> bool {
        self.guardrails.iter().any(|guardrail| guardrail.is_on(Side::Output))
    }

    /// Puts another body in place of the caller's.
    pub fn rewrite(&mut self, body: Bytes) -> Result<(), Failure> {
        self.head = Head::read(&body)?;
        self.request = None;
        Ok(())
    }

    /// The call in the neutral form.
    pub fn request(&mut self) -> Result<&ChatRequest, Failure> {
        if self.request.is_none() {
            self.request = Some(self.caller.decode_request(self.head.body(), self.path)?);
        }
        self.decoded()
    }

    /// The same, where it has been asked for before.
    pub fn decoded(&self) -> Result<&ChatRequest, Failure> {
        self.request.as_ref().ok_or_else(|| Failure::new(FailureKind::Server, "the call was not read"))
    }

    /// What the `anthropic-beta` header lists.
    pub fn betas(&self) -> Vec<&str> {
        let betas = self.shown.iter().find(|(name, _)| name == "anthropic-beta");
        let betas = betas.and_then(|(_, value)| value.to_str().ok()).unwrap_or_default();
        betas.split(',').map(str::trim).filter(|beta| !beta.is_empty()).collect()
    }
}
