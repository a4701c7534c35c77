//! What makes a type a filter, and how a written filter is found and compiled.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;

use super::filter::Compiled;
use super::stage::Stage;
use crate::config::Problems;

/// A policy that can be written in a configuration.
pub trait FilterKind {
    /// The word in YAML, metrics and `explain`.
    const NAME: &'static str;
    const STAGE: Stage;
    /// What the user writes below the name.
    type Config: DeserializeOwned + JsonSchema;

    /// Makes the form that requests run on; called once per attachment and reload. `path` is the place in the document.
    /// Reports every problem and returns `None` if there was one.
    fn compile(config: Self::Config, path: &str, problems: &mut Problems) -> Option<Compiled>;
}

/// One row of the registry: a [`FilterKind`] with its types erased.
pub struct Definition {
    pub name: &'static str,
    pub stage: Stage,
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    pub compile: fn(&serde_json::Value, &str, &mut Problems) -> Option<Compiled>,
}

impl Definition {
    pub const fn of<F: FilterKind>() -> Self {
        Definition {
            name: F::NAME,
            stage: F::STAGE,
            schema: |generator| generator.subschema_for::<F::Config>(),
            compile: compile::<F>,
        }
    }
}

fn compile<F: FilterKind>(written: &serde_json::Value, path: &str, problems: &mut Problems) -> Option<Compiled> {
    // `- cors:` with nothing below it means all defaults.
    let written = if written.is_null() { serde_json::json!({}) } else { written.clone() };
    match serde_json::from_value::<F::Config>(written) {
        Ok(config) => F::compile(config, path, problems),
        Err(error) => {
            problems.add(path, error.to_string());
            None
        }
    }
}

/// Compiles a filter that stands as the backend of a route, where its configuration is decoded already.
pub fn compile_backend<F: FilterKind>(config: &F::Config, path: &str, problems: &mut Problems) -> Option<Compiled>
where
    F::Config: Clone,
{
    F::compile(config.clone(), &format!("{path}.{}", F::NAME), problems)
}
