//! The provider files that are part of the binary. They are decoded without being checked (a test does that), and only as
//! far as somebody asks: of most providers nothing, of others the head, and of those that are called the models too.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::file::ProviderFile;
use super::model::Model;
use super::provider::ProviderSpec;
use crate::config::{Problems, document};

/// Name and text of each file, in the order of names.
pub const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/providers.rs"));

/// Where the models of a file begin. They are its last part.
const MODELS: &str = "\nmodels:\n";

/// The head of a file and its models.
pub fn split(text: &'static str) -> (&'static str, &'static str) {
    match text.find(MODELS) {
        Some(at) => text.split_at(at + 1),
        None => (text, ""),
    }
}

pub fn provider(name: &str, text: &'static str) -> Option<ProviderSpec> {
    let (head, models) = split(text);
    decode::<ProviderFile>(name, head).map(|file| ProviderSpec::lazy(name, file, models))
}

#[derive(Deserialize)]
struct OnlyModels {
    #[serde(default)]
    models: BTreeMap<String, Model>,
}

pub fn models(name: &str, text: &str) -> BTreeMap<String, Model> {
    decode::<OnlyModels>(name, text).map(|part| part.models).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(name: &str, text: &str) -> Option<T> {
    let mut problems = Problems::default();
    let document = document::read_str(name, text, &|_| None, &mut problems)?;
    match T::deserialize(document.value) {
        Ok(decoded) if problems.is_empty() => Some(decoded),
        Ok(_) => {
            log::error!("the provider file {name} in this binary is broken: {problems}");
            None
        }
        Err(error) => {
            log::error!("the provider file {name} in this binary is broken: {error}");
            None
        }
    }
}

/// The names of models and their aliases, found without decoding: a model is a line, as `scripts/update-catalog` writes it.
pub fn names(models: &'static str) -> impl Iterator<Item = &'static str> {
    models.lines().filter_map(|line| line.strip_prefix("  ")).flat_map(|line| {
        let (name, rest) = match line.strip_prefix('"') {
            Some(quoted) => quoted.split_once("\": ").unwrap_or_default(),
            None => line.split_once(": ").unwrap_or_default(),
        };
        let aliases = rest.split_once("aliases: [").and_then(|(_, rest)| rest.split_once(']')).map(|(list, _)| list);
        let aliases = aliases.into_iter().flat_map(|list| list.split(", ")).map(|alias| alias.trim_matches('"'));
        std::iter::once(name).chain(aliases).filter(|name| !name.is_empty())
    })
}
