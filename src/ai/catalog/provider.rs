//! A provider of the catalogue, as the rest of the gateway asks for it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use super::embedded;
use super::file::{Operation, ProviderFile};
use super::model::Model;
use super::template;
use crate::ai::chat::FailureKind;
use crate::ai::cost::{self, Cost, Money, Used};
use crate::ai::formats::Format;
use crate::ai::quirks::Quirks;
use crate::config::Environment;

/// A provider: what its file says, and its models, which are decoded when they are first asked for.
#[derive(Debug)]
pub struct ProviderSpec {
    name: String,
    file: ProviderFile,
    /// The models' part of an embedded file.
    text: &'static str,
    models: OnceLock<Models>,
}

#[derive(Debug, Default)]
struct Models {
    by_name: BTreeMap<String, Arc<Model>>,
    aliases: HashMap<String, Arc<Model>>,
}

/// More variables than this are not followed: they refer to each other in a circle.
const MOST_STEPS: usize = 8;

impl ProviderSpec {
    /// Of a file that was read as a whole.
    pub(super) fn new(name: &str, mut file: ProviderFile) -> ProviderSpec {
        let models = Models::new(std::mem::take(&mut file.models));
        ProviderSpec { name: name.to_owned(), file, text: "", models: OnceLock::from(models) }
    }

    /// Of an embedded file whose models are yet to be decoded.
    pub(super) fn lazy(name: &str, file: ProviderFile, models: &'static str) -> ProviderSpec {
        ProviderSpec { name: name.to_owned(), file, text: models, models: OnceLock::new() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// OpenTelemetry's `gen_ai.provider.name`.
    pub fn otel_name(&self) -> &str {
        self.file.otel_name.as_deref().unwrap_or(&self.name)
    }

    pub fn quirks(&self) -> Quirks {
        self.file.quirks.iter().copied().collect()
    }

    /// The formats in which a model is served, or those of the provider if nothing is known of the model.
    pub fn formats<'s>(&'s self, model: Option<&'s Model>) -> impl Iterator<Item = Format> + 's {
        let own = model.map_or(&[][..], |model| &model.formats);
        self.file
            .base_urls
            .iter()
            .map(|(format, _)| format)
            .filter(move |format| own.is_empty() || own.contains(format))
    }

    pub fn serves(&self, operation: Operation) -> bool {
        self.file.operations.contains(&operation)
    }

    /// The path of an operation below the base URL of `openai_chat`.
    pub fn path(&self, operation: Operation) -> &str {
        let own = self.file.paths.iter().find(|(other, _)| *other == operation);
        own.map_or(operation.usual_path(), |(_, path)| path)
    }

    /// Where calls of a format go; `None` if it does not speak it. `given` is what the configuration says of variables.
    pub fn base_url(
        &self,
        format: Format,
        given: &dyn Fn(&str) -> Option<String>,
        environment: &Environment,
    ) -> Option<Result<String, String>> {
        let text = self.file.base_urls.get(format)?;
        let filled = template::fill(text, &|name| self.variable(name, given, environment, MOST_STEPS));
        Some(filled.and_then(|url| match template::check_url(&url) {
            Ok(()) => Ok(url),
            Err(message) => Err(format!("`{url}` {message}")),
        }))
    }

    /// What a variable of the base URLs stands for; `None` if it has no value.
    pub fn variable_value(
        &self,
        name: &str,
        given: &dyn Fn(&str) -> Option<String>,
        environment: &Environment,
    ) -> Option<String> {
        self.variable(name, given, environment, MOST_STEPS)
    }

    fn variable(
        &self,
        name: &str,
        given: &dyn Fn(&str) -> Option<String>,
        environment: &Environment,
        steps: usize,
    ) -> Option<String> {
        let steps = steps.checked_sub(1)?;
        let variable = self.file.variables.get(name)?;
        let set = |name: &String| environment(name).filter(|value| !value.is_empty());
        if let Some(value) = given(name).or_else(|| variable.environment.iter().find_map(set)) {
            // Whole URLs are often written with a slash at the end.
            return Some(value.trim_end_matches('/').to_owned());
        }
        let inner = |name: &str| self.variable(name, given, environment, steps);
        if let Some(value) = variable.by.as_deref().and_then(inner).and_then(|key| variable.values.get(&key)) {
            return Some(value.clone());
        }
        template::fill(variable.default.as_deref()?, &inner).ok()
    }

    /// What an error means by the provider's own list; `None` leaves it to the status.
    pub fn failure_kind(&self, status: u16, code: Option<&str>) -> Option<FailureKind> {
        let fits = |own: &&super::file::ErrorMeaning| {
            own.status.is_none_or(|own| own == status) && own.code.as_deref().is_none_or(|own| Some(own) == code)
        };
        self.file.errors.iter().find(fits).map(|own| own.kind)
    }

    /// A model by the provider's name of it, or by an alias.
    pub fn model(&self, name: &str) -> Option<Arc<Model>> {
        let models = self.decoded();
        models.by_name.get(name).or_else(|| models.aliases.get(name)).cloned()
    }

    /// Its models, in the order of their names.
    pub fn models(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.decoded().by_name.values()
    }

    /// What a call of a model costs.
    pub fn cost(&self, model: &str, used: &Used) -> Cost {
        let model = self.model(model);
        match model.as_ref().and_then(|model| model.prices.as_ref()) {
            Some(prices) => cost::cost(used, prices),
            None if self.file.free => Cost::Known(Money::ZERO),
            None => Cost::Unknown,
        }
    }

    #[cfg(test)]
    pub(super) fn is_decoded(&self) -> bool {
        self.models.get().is_some()
    }

    fn decoded(&self) -> &Models {
        self.models.get_or_init(|| Models::new(embedded::models(&self.name, self.text)))
    }
}

impl Models {
    fn new(written: BTreeMap<String, Model>) -> Models {
        let mut models = Models::default();
        for (name, mut model) in written {
            model.name.clone_from(&name);
            let model = Arc::new(model);
            models.aliases.extend(model.aliases.iter().map(|alias| (alias.clone(), model.clone())));
            models.by_name.insert(name, model);
        }
        models
    }
}

/// What the file says; its `models` are empty here: see [`ProviderSpec::models`].
impl Deref for ProviderSpec {
    type Target = ProviderFile;

    fn deref(&self) -> &ProviderFile {
        &self.file
    }
}
