//! The composition root: the only place that sees every part, and puts them together.

pub mod ai;
mod gateway;
mod inspect;
pub mod keys;
mod low_priority;
mod memory;
mod run;
mod shutdown;
mod source;
mod systemd;
pub mod upgrade;

use std::path::Path;

pub use inspect::{check, explain, schema};
pub use run::run;

use crate::config::{Config, Loaded};

/// Loads a configuration, or says everything that is wrong with it.
fn load(path: &Path) -> Result<Loaded<Config>, String> {
    Config::load(path, inspect::config_schema()).map_err(|problems| problems.to_string())
}
