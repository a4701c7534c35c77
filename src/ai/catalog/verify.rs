//! Finds what is wrong with a provider file that its schema cannot see.

use std::collections::BTreeSet;

use http::{HeaderName, HeaderValue};

use super::file::{Credential, ProviderFile};
use super::model::Model;
use super::template;
use crate::config::Problems;

/// Reports everything that does not fit together.
pub fn verify(file: &ProviderFile, problems: &mut Problems) {
    base_urls(file, problems);
    variables(file, problems);
    credential(file, problems);
    headers(file, problems);
    errors(file, problems);
    paths(file, problems);
    for (name, model) in &file.models {
        self::model(&format!("models.{name}"), model, file, problems);
    }
    names(file, problems);
}

fn base_urls(file: &ProviderFile, problems: &mut Problems) {
    if file.base_urls.iter().next().is_none() {
        problems.add("base_urls", "needs at least one URL, such as `openai_chat: https://api.example.com/v1`");
    }
    for (format, url) in file.base_urls.iter() {
        let path = format!("base_urls.{}", format.name());
        // Any value will do to see the shape; one that stands for a whole beginning is a URL.
        let stand_in = |name: &str| {
            Some(if url.starts_with(&format!("{{{name}}}")) { "https://example.com".into() } else { "x".into() })
        };
        match template::fill(url, &stand_in) {
            Err(message) => problems.add(path, message),
            Ok(filled) => {
                if let Err(message) = template::check_url(&filled) {
                    problems.add(path, message);
                }
            }
        }
    }
}

fn variables(file: &ProviderFile, problems: &mut Problems) {
    let declared = || file.variables.keys().map(String::as_str);
    let mut used = BTreeSet::new();
    let mut texts: Vec<(String, &str)> = Vec::new();
    texts.extend(file.base_urls.iter().map(|(format, url)| (format!("base_urls.{}", format.name()), url)));
    for (name, variable) in &file.variables {
        texts.extend(variable.default.as_deref().map(|text| (format!("variables.{name}.default"), text)));
        for (key, _) in variable.values.iter().filter(|(_, value)| value.contains(['{', '}'])) {
            problems.add(format!("variables.{name}.values.{key}"), "must be plain text, without braces");
        }
        environment_names(&format!("variables.{name}.environment"), &variable.environment, problems);
        match &variable.by {
            Some(other) if !file.variables.contains_key(other) || other == name => {
                problems.unknown(format!("variables.{name}.by"), "other variable", other, declared());
            }
            Some(other) => {
                used.insert(other.as_str());
            }
            None if !variable.values.is_empty() => {
                problems.add(format!("variables.{name}.by"), "is missing: name the variable that `values` go by");
            }
            None => {}
        }
    }
    for (path, text) in &texts {
        for name in template::names(text) {
            if !file.variables.contains_key(name) {
                problems.unknown(path.clone(), "variable", name, declared());
            }
            used.insert(name);
        }
    }
    for name in declared().filter(|name| !used.contains(name)) {
        problems.add(format!("variables.{name}"), "is used nowhere");
    }
}

fn credential(file: &ProviderFile, problems: &mut Problems) {
    match &file.credential {
        Credential::Header(name) if HeaderName::try_from(name).is_err() => {
            problems.add("credential.header", format!("`{name}` is not the name of a header"));
        }
        Credential::Query(name) if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) => {
            problems.add("credential.query", "is not the name of a parameter");
        }
        _ => {}
    }
    environment_names("key_environment", &file.key_environment, problems);
}

fn environment_names(path: &str, names: &[String], problems: &mut Problems) {
    for (index, name) in names.iter().enumerate() {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || !name.bytes().all(letter) {
            problems.add(format!("{path}[{index}]"), format!("`{name}` is not the name of an environment variable"));
        }
    }
}

fn headers(file: &ProviderFile, problems: &mut Problems) {
    for (name, value) in &file.headers {
        let path = format!("headers.{name}");
        if HeaderName::try_from(name).is_err() {
            problems.add(path, "is not the name of a header");
        } else if HeaderValue::try_from(value).is_err() {
            problems.add(path, "is not the value of a header");
        }
    }
}

fn errors(file: &ProviderFile, problems: &mut Problems) {
    for (index, error) in file.errors.iter().enumerate() {
        if error.status.is_none() && error.code.is_none() {
            problems.add(format!("errors[{index}]"), "needs a `status` or a `code`");
        }
    }
}

fn paths(file: &ProviderFile, problems: &mut Problems) {
    let paths = file.paths.iter().map(|(operation, path)| (format!("paths.{}", operation.name()), path));
    let probe = file.probe.iter().map(|probe| ("probe.path".to_owned(), probe.path.as_str()));
    for (place, path) in paths.chain(probe) {
        let plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if !path.starts_with('/') || !plain {
            problems.add(place, "must begin with `/`, and be ASCII without spaces");
        }
    }
    for (operation, _) in file.paths.iter().filter(|(operation, _)| !file.operations.contains(operation)) {
        problems.add(format!("paths.{}", operation.name()), "is not among the `operations`");
    }
    if let Some(probe) = &file.probe
        && !probe.address.ip().is_loopback()
    {
        problems.add("probe.address", "must be an address of this machine, such as 127.0.0.1:11434");
    }
}

fn model(path: &str, model: &Model, file: &ProviderFile, problems: &mut Problems) {
    for (index, format) in model.formats.iter().enumerate() {
        if file.base_urls.get(*format).is_none() {
            problems.add(format!("{path}.formats[{index}]"), format!("there is no `base_urls.{}`", format.name()));
        }
    }
    let tiers = model.prices.iter().flat_map(|prices| &prices.tiers);
    let mut before = 0;
    for (index, tier) in tiers.enumerate() {
        if tier.above <= before {
            problems.add(format!("{path}.prices.tiers[{index}].above"), "must be more than that of the tier before");
        }
        before = tier.above;
    }
}

/// A name stands for one model.
fn names(file: &ProviderFile, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for (name, model) in &file.models {
        for (index, alias) in model.aliases.iter().enumerate() {
            if file.models.contains_key(alias) || !seen.insert(alias) {
                problems
                    .add(format!("models.{name}.aliases[{index}]"), format!("`{alias}` is another model's name too"));
            }
        }
    }
}
