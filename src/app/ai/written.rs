//! What was found, written as a configuration.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::json;

use super::Options;
use super::found::{AWS_KEY, Provider, Way};
use crate::identity::api_key::Hash;

/// Longer names, and those with other characters, are called as `provider/model` alone.
const LONGEST_NAME: usize = 128;

/// Who may call, and what belongs to one run of the process.
pub struct Caller<'c> {
    pub hash: Hash,
    /// The variable that holds what keys the hash.
    pub pepper: &'static str,
    /// For what a process needs files for.
    pub folder: &'c Path,
}

const HOW_TO_SAVE: &str = "\
# What `headgate ai` serves on this machine. Keys are named here, not written. To go on from it:
#   headgate ai --print-config > headgate.yaml
#   headgate key create me -c headgate.yaml       # put what that prints in the place of `consumers` below
#   headgate run -c headgate.yaml                 # and `headgate schema` says what else there is
";

/// The configuration to go on from.
pub fn to_be_saved(options: &Options, providers: &[Provider]) -> String {
    format!("{HOW_TO_SAVE}{}", document(options, providers, None))
}

/// The configuration. Without a caller nobody can call yet.
pub fn document(options: &Options, providers: &[Provider], caller: Option<&Caller<'_>>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, options, providers, caller);
    text
}

fn write(
    text: &mut String,
    options: &Options,
    providers: &[Provider],
    caller: Option<&Caller<'_>>,
) -> std::fmt::Result {
    writeln!(text, "listeners: {{ http: {{ address: \"{}\" }} }}", options.address)?;
    writeln!(text, "admin: {{ address: \"{}\" }}", options.admin)?;
    if let Some(caller) = caller {
        let file = |name: &str| json!(caller.folder.join(name).to_string_lossy());
        let (socket, pid_file) = (file("headgate.sock"), file("headgate.pid"));
        writeln!(text, "server: {{ upgrade: {{ socket: {socket}, pid_file: {pid_file} }} }}")?;
        writeln!(text, "identity: {{ pepper: env:{} }}", caller.pepper)?;
    }
    writeln!(text, "ai:\n  providers:")?;
    for provider in providers {
        match &provider.way {
            Way::Key(variable) => {
                write!(text, "    {}: {{ keys: [{{ secret: env:{variable} }}] }}", provider.name())?;
                let note = "  # ID:SECRET, of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
                writeln!(text, "{}", if variable == AWS_KEY { note } else { "" })?;
            }
            Way::Engine { base_urls, .. } => {
                let urls: Vec<String> =
                    base_urls.iter().map(|(format, url)| format!("{format}: {}", json!(url))).collect();
                writeln!(text, "    {}: {{ base_urls: {{ {} }} }}", provider.name(), urls.join(", "))?;
            }
        }
    }
    let names = names(providers);
    if !names.is_empty() {
        writeln!(text, "  models:")?;
    }
    for (name, target) in names {
        writeln!(text, "    {}: {{ targets: [{{ model: {} }}] }}", json!(name), json!(target))?;
    }
    text.push_str(
        "services:
  models:
    access: authenticated
    filters:
      - api_key: { from: [bearer, { header: x-api-key }, { header: x-goog-api-key }, { query: key }] }
    routes:
      all: { match: { path_prefix: / }, backend: { ai: {} } }
",
    );
    match caller {
        Some(caller) => {
            writeln!(text, "consumers: {{ me: {{ credentials: [{{ api_key: {{ hash: \"{}\" }} }}] }} }}", caller.hash)
        }
        None => writeln!(text, "consumers: {{}}"),
    }
}

/// Names of engines' models, which no catalogue knows: with the engine's name before them, so that they are listed, and
/// alone where nobody else has a model of that name.
fn names(providers: &[Provider]) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for provider in providers {
        let Way::Engine { models, .. } = &provider.way else { continue };
        for model in models {
            let whole = format!("{}/{model}", provider.name());
            if !is_name(&whole) {
                continue;
            }
            let known = providers.iter().any(|other| other.spec.model(model).is_some());
            // What reads as `provider/model` of somebody else stays that.
            let of_other = providers
                .iter()
                .any(|other| model.strip_prefix(other.name()).is_some_and(|rest| rest.starts_with('/')));
            if is_name(model) && !known && !of_other {
                names.entry(model.clone()).or_insert_with(|| whole.clone());
            }
            names.insert(whole.clone(), whole);
        }
    }
    names
}

/// As the schema of `ai.models` has it.
fn is_name(name: &str) -> bool {
    let first = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let byte = |byte: u8| first(byte) || b".:/@-".contains(&byte);
    name.len() <= LONGEST_NAME && name.bytes().next().is_some_and(first) && name.bytes().all(byte)
}
