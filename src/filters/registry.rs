//! What makes a type a filter, and how a written filter is found and compiled.

use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;

use super::filter::Compiled;
use super::lasting::Lasting;
use super::stage::Stage;
use crate::config::Problems;
use crate::identity::Directory;
use crate::limits::Fleet;
use crate::upstream::Surroundings;

/// A policy that can be written in a configuration.
pub trait FilterKind {
    /// The word in YAML, metrics and `explain`.
    const NAME: &'static str;
    const STAGE: Stage;
    /// What the user writes below the name.
    type Config: DeserializeOwned + JsonSchema;

    /// Makes the form that requests run on; called once per attachment and reload. Reports every problem and returns
    /// `None` if there was one.
    fn compile(config: Self::Config, at: &mut Site<'_>) -> Option<Compiled>;
}

/// Where a filter is compiled, and what it may build upon.
pub struct Site<'a> {
    /// The filter's place in the document; its problems are reported there or below it.
    pub path: &'a str,
    pub problems: &'a mut Problems,
    pub around: Surroundings<'a>,
    /// Who may call.
    pub directory: &'a Arc<Directory>,
    pub lasting: &'a Arc<Lasting>,
    /// The other gateways whose limits hold together with ours.
    pub fleet: Option<&'a Arc<Fleet>>,
}

impl<'a> Site<'a> {
    /// A place at or below this one, for what is compiled as a part of it.
    pub fn at<'b>(&'b mut self, path: &'b str) -> Site<'b> {
        Site {
            path,
            problems: self.problems,
            around: self.around,
            directory: self.directory,
            lasting: self.lasting,
            fleet: self.fleet,
        }
    }
}

/// Compiles a filter by itself, for its tests; returns its problems too.
#[cfg(test)]
pub(super) fn compile_alone<F: FilterKind>(config: F::Config) -> (Option<Compiled>, Problems) {
    let mut problems = Problems::default();
    let around = Surroundings { folder: std::path::Path::new("."), environment: &|_| None };
    let (directory, lasting) = Default::default();
    let mut site =
        Site { path: F::NAME, problems: &mut problems, around, directory: &directory, lasting: &lasting, fleet: None };
    (F::compile(config, &mut site), problems)
}

/// One row of the registry: a [`FilterKind`] with its types erased.
pub struct Definition {
    pub name: &'static str,
    pub stage: Stage,
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    pub compile: fn(&serde_json::Value, &mut Site<'_>) -> Option<Compiled>,
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

fn compile<F: FilterKind>(written: &serde_json::Value, at: &mut Site<'_>) -> Option<Compiled> {
    // `- cors:` with nothing below it means all defaults.
    let written = if written.is_null() { serde_json::json!({}) } else { written.clone() };
    match serde_json::from_value::<F::Config>(written) {
        Ok(config) => F::compile(config, at),
        Err(error) => {
            at.problems.add(at.path, error.to_string());
            None
        }
    }
}

/// Compiles a filter that stands as the backend of a route, where its configuration is decoded already.
pub fn compile_backend<F: FilterKind>(config: &F::Config, at: &mut Site<'_>) -> Option<Compiled>
where
    F::Config: Clone,
{
    let path = format!("{}.{}", at.path, F::NAME);
    F::compile(config.clone(), &mut at.at(&path))
}
