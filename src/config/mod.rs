//! What the user wrote: strict structures without behaviour, read from YAML with every problem named.
//!
//! Text becomes a tree with places ([`document`]), the tree is compared with the schema ([`check`]), and only a tree
//! without problems is decoded. What the values mean together is found when a snapshot is compiled.

pub mod ai;
pub mod answer_cache;
pub mod backend;
pub mod budget;
pub mod check;
pub mod consumer;
pub mod dns;
pub mod document;
pub mod filter_entry;
pub mod guardrails;
pub mod listener;
pub mod mcp;
mod problem;
pub mod redis;
pub mod reference;
mod root;
pub mod route_match;
pub mod schema;
pub mod server;
pub mod service;
pub mod telemetry;
pub mod units;
pub mod upstream;
pub mod watch;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use backend::Backend;
pub use document::{Document, Sources};
pub use filter_entry::FilterEntry;
use problem::shown;
pub use problem::{Problem, Problems, nearest};
pub use reference::{Environment, Secret, SecretRef, process_environment};
pub use root::Config;
pub use route_match::{RouteMatch, ValueMatch};
pub use schema::{ConfigSchema, FilterSchema};

/// A decoded configuration, and where it was written.
#[derive(Debug)]
pub struct Loaded<T> {
    pub config: T,
    /// Places problems that are found later; see [`Sources::place_all`].
    pub sources: Sources,
    /// What relative paths in the configuration are relative to.
    pub folder: PathBuf,
}

/// Reads a YAML file, or the YAML files of a directory, into `T`. Every problem that can be seen without compiling is
/// reported. Relative paths in it are relative to its folder.
pub fn load<T: DeserializeOwned>(
    path: &Path,
    schema: &ConfigSchema,
    environment: &Environment,
) -> Result<Loaded<T>, Problems> {
    let mut problems = Problems::default();
    let document = document::read(path, environment, &mut problems);
    let folder = if path.is_dir() { Some(path) } else { path.parent() };
    decode(document, schema, folder.unwrap_or(Path::new("")), problems)
}

/// Reads a text; `name` stands for the file in problems. Relative paths in it are relative to the working directory.
pub fn load_str<T: DeserializeOwned>(
    name: &str,
    text: &str,
    schema: &ConfigSchema,
    environment: &Environment,
) -> Result<Loaded<T>, Problems> {
    let mut problems = Problems::default();
    let document = document::read_str(name, text, environment, &mut problems);
    decode(document, schema, Path::new(""), problems)
}

fn decode<T: DeserializeOwned>(
    document: Option<Document>,
    schema: &ConfigSchema,
    folder: &Path,
    mut problems: Problems,
) -> Result<Loaded<T>, Problems> {
    if let Some(document) = &document {
        check::check(document, schema, &mut problems);
    }
    if let (Some(Document { value, sources }), true) = (document, problems.is_empty()) {
        match serde_path_to_error::deserialize(value) {
            Ok(config) => return Ok(Loaded { config, sources, folder: folder.to_owned() }),
            Err(error) => {
                let path = error.path().to_string();
                // The decoder's message may repeat the value.
                let message = match sources.is_hidden(&path) {
                    true => "the value from the environment is not valid here".to_owned(),
                    false => error.inner().to_string(),
                };
                problems.add(if path == "." { document::ROOT.to_owned() } else { path }, message);
                sources.place_all(&mut problems);
            }
        }
    }
    problems.sort();
    if problems.0.len() >= document::MAX_PROBLEMS {
        problems.add(document::ROOT, "there are too many problems to show them all");
    }
    Err(problems)
}
