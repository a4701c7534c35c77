//! The catalogue of providers and their models: files of data, part of the binary, each replaceable by a file beside the
//! configuration.

mod embedded;
pub mod file;
pub mod model;
pub mod price;
mod provider;
mod template;
mod verify;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

pub use file::{Credential, Kind, OnDisconnect, Operation, ProviderFile};
pub use model::{Modality, Mode, Model};
pub use price::Prices;
pub use provider::ProviderSpec;

use crate::config::{self, ConfigSchema, Problems, document, process_environment};

/// All providers that a configuration may name.
#[derive(Debug)]
pub struct Catalog {
    providers: BTreeMap<String, Entry>,
    /// Who has a model, by names and aliases; made when it is first asked for.
    index: OnceLock<HashMap<&'static str, Vec<&'static str>>>,
}

#[derive(Debug)]
enum Entry {
    Embedded { text: &'static str, spec: OnceLock<Option<Arc<ProviderSpec>>> },
    Written(Arc<ProviderSpec>),
}

/// A model, and a provider that has it.
#[derive(Debug, Clone)]
pub struct Found {
    pub provider: Arc<ProviderSpec>,
    pub model: Arc<Model>,
}

impl Default for Catalog {
    /// The providers of the binary.
    fn default() -> Self {
        let entry =
            |(name, text): &(&str, &'static str)| ((*name).to_owned(), Entry::Embedded { text, spec: OnceLock::new() });
        Catalog { providers: embedded::FILES.iter().map(entry).collect(), index: OnceLock::new() }
    }
}

impl Catalog {
    /// The providers of the binary and those of the files in `providers` below the configuration's folder. A file replaces
    /// the provider of its name as a whole, or adds one. A file with problems is left out.
    pub fn load(folder: Option<&Path>, problems: &mut Problems) -> Catalog {
        let mut catalog = Catalog::default();
        if let Some(folder) = folder.map(Catalog::folder).filter(|folder| folder.is_dir()) {
            catalog.read_folder(&folder, problems);
        }
        catalog
    }

    /// Where provider files of a configuration lie.
    pub fn folder(configuration: &Path) -> PathBuf {
        configuration.join("providers")
    }

    /// The schema of a provider file, for editors and for checking.
    pub fn schema() -> ConfigSchema {
        ConfigSchema::of::<ProviderFile>(&[])
    }

    fn read_folder(&mut self, folder: &Path, problems: &mut Problems) {
        let files = match document::files_of(folder) {
            Ok(files) => files,
            Err(error) => return problems.add(folder.display().to_string(), format!("cannot be read: {error}")),
        };
        let schema = Catalog::schema();
        for file in files.into_iter().filter(|file| !is_embedded(file)) {
            if let Some(spec) = read(&file, &schema, problems) {
                let name = spec.name().to_owned();
                if let Some(Entry::Written(_)) = self.providers.insert(name, Entry::Written(Arc::new(spec))) {
                    problems.add(file.display().to_string(), "is the second file of this provider");
                }
            }
        }
    }

    /// A provider by its name.
    pub fn provider(&self, name: &str) -> Option<Arc<ProviderSpec>> {
        match self.providers.get_key_value(name)? {
            (_, Entry::Written(spec)) => Some(spec.clone()),
            (name, Entry::Embedded { text, spec }) => {
                spec.get_or_init(|| embedded::provider(name, text).map(Arc::new)).clone()
            }
        }
    }

    /// All providers, in the order of their names. Their models are not decoded by this.
    pub fn providers(&self) -> impl Iterator<Item = Arc<ProviderSpec>> {
        self.names().filter_map(|name| self.provider(name))
    }

    /// The names of all providers, which costs nothing.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.providers.keys().map(String::as_str)
    }

    /// Who has a model of this name: makers before clouds, hosts and routers, and then by name. `provider/model` is one
    /// provider's, which comes first; others may have a model whose whole name that is.
    pub fn find_model(&self, name: &str) -> Vec<Found> {
        let mut found = Vec::new();
        if let Some((provider, model)) = name.split_once('/') {
            found.extend(self.provider(provider).and_then(|provider| offer(provider, model)));
        }
        let mut others: Vec<Found> = self.providers_of(name).filter_map(|provider| offer(provider, name)).collect();
        others.sort_by_key(|found| found.provider.kind);
        found.extend(others);
        found
    }

    /// The providers that have a model of this whole name, in the order of their names.
    fn providers_of<'c>(&'c self, model: &'c str) -> impl Iterator<Item = Arc<ProviderSpec>> + 'c {
        let index = self.index.get_or_init(|| self.make_index());
        let embedded = index.get(model).map(Vec::as_slice).unwrap_or_default();
        self.providers.iter().filter_map(move |(name, entry)| match entry {
            Entry::Embedded { .. } => embedded.contains(&name.as_str()).then(|| self.provider(name)).flatten(),
            Entry::Written(spec) => Some(spec.clone()),
        })
    }

    fn make_index(&self) -> HashMap<&'static str, Vec<&'static str>> {
        let mut index: HashMap<_, Vec<_>> = HashMap::new();
        for (provider, text) in embedded::FILES {
            for model in embedded::names(embedded::split(text).1) {
                index.entry(model).or_default().push(*provider);
            }
        }
        index
    }
}

fn offer(provider: Arc<ProviderSpec>, model: &str) -> Option<Found> {
    let model = provider.model(model)?;
    Some(Found { provider, model })
}

/// Whether a file says what the binary says anyway: the sources' own folder, or that of the image, lies beside the
/// configuration. Reading it as an override would decode all of it at the start.
fn is_embedded(file: &Path) -> bool {
    let name = file.file_stem().and_then(|name| name.to_str());
    let embedded = embedded::FILES.iter().find(|(other, _)| name == Some(other)).map(|(_, text)| text);
    let length = || std::fs::metadata(file).map(|file| file.len()).ok();
    embedded.is_some_and(|text| {
        length() == Some(text.len() as u64) && std::fs::read(file).is_ok_and(|bytes| bytes == text.as_bytes())
    })
}

fn read(file: &Path, schema: &ConfigSchema, problems: &mut Problems) -> Option<ProviderSpec> {
    let place = file.display().to_string();
    let Some(name) = file.file_stem().and_then(|name| name.to_str()).filter(|name| is_name(name)) else {
        problems
            .add(place, "a provider's name, and so that of its file, has lower-case letters, digits, `_`, `-` and `.`");
        return None;
    };
    match config::load::<ProviderFile>(file, schema, &process_environment) {
        Ok(loaded) => {
            let mut found = Problems::default();
            verify::verify(&loaded.config, &mut found);
            loaded.sources.place_all(&mut found);
            let fine = found.is_empty();
            problems.0.append(&mut found.0);
            fine.then(|| ProviderSpec::new(name, loaded.config))
        }
        Err(mut found) => {
            problems.0.append(&mut found.0);
            None
        }
    }
}

/// It stands before `/` in names of models, in paths, and as a label of metrics.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.".contains(&byte);
    name.len() <= 64 && name.starts_with(|first: char| first.is_ascii_alphanumeric()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests;
