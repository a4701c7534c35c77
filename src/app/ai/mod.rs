//! `headgate ai`: models of whatever providers there are, without a configuration.
//!
//! What is found on the machine becomes a configuration like any other, which is checked, compiled and served like any other;
//! `--print-config` shows it, to be saved and grown.

mod found;
mod told;
mod written;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use self::found::Found;
use self::written::Caller;
use super::inspect;
use super::run::{self, Serve};
use super::source::{OwnedEnvironment, Source};
use crate::ai::catalog::Catalog;
use crate::config::{Secret, process_environment};
use crate::identity::api_key::{self, Pepper};

pub use self::found::Engines;

/// The caller's key, if whoever starts the gateway wants to choose it.
pub const KEY: &str = "HEADGATE_AI_KEY";
/// Where the configuration finds what keys the key's hash. It lives as long as the process.
const PEPPER: &str = "HEADGATE_AI_PEPPER";

/// What problems name as the configuration's file.
const NAME: &str = "headgate ai";

pub struct Options {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    /// Which engines are looked for.
    pub engines: Engines,
    /// Prints the configuration instead of serving it.
    pub print_config: bool,
}

/// Serves the models that are found until told to stop, or says what is missing.
pub fn run(options: &Options) -> Result<(), String> {
    run::prepare_process();
    let catalog = Catalog::default();
    let pepper = api_key::create_pepper().ok_or("the system has no random numbers to give")?;
    let environment = environment(&pepper);
    let mut found = found::look(&catalog, options, &*environment)?;
    // What a provider lacks beside its key, such as the name of an account, its own configuration says best.
    let Found { providers, notes } = &mut found;
    providers.retain(|provider| {
        let alone = written::document(options, std::slice::from_ref(provider), None);
        match examine(alone, &environment) {
            Ok(()) => true,
            Err(message) => {
                notes.push(format!(
                    "{} is left out: {message}{}",
                    provider.name(),
                    told::missing(provider, &*environment)
                ));
                false
            }
        }
    });
    if found.providers.is_empty() {
        return Err(told::nothing_found(&catalog, &found));
    }
    if options.print_config {
        print!("{}", written::to_be_saved(options, &found.providers));
        return Ok(());
    }
    let key = key(&*environment)?;
    let hash = Pepper::new(&pepper).hash(key.expose().as_bytes());
    let folder = std::env::temp_dir().join(format!("headgate-ai-{}", std::process::id()));
    let caller = Caller { hash, pepper: PEPPER, folder: &folder };
    let text = written::document(options, &found.providers, Some(&caller));
    let source = Source::made(NAME, text, folder.clone(), environment);
    let summary = told::summary(options, &found, &key);
    run::serve(Serve {
        source,
        upgrade: false,
        own_folder: Some(folder),
        opening: Box::new(move || print!("{summary}")),
    })
}

/// The process's environment, and what belongs to this run. Amazon's key is two variables there, and one in a configuration.
fn environment(pepper: &Secret) -> OwnedEnvironment {
    let pepper = pepper.clone();
    Arc::new(move |name| match name {
        PEPPER => Some(pepper.expose().to_owned()),
        found::AWS_KEY => process_environment(name).or_else(|| found::aws_key(&process_environment)),
        _ => process_environment(name),
    })
}

/// What is wrong with a configuration, in a line.
fn examine(text: String, environment: &OwnedEnvironment) -> Result<(), String> {
    let source = Source::made(NAME, text, PathBuf::new(), environment.clone());
    let problems = match source.load() {
        Ok(loaded) => inspect::examine(&loaded, &*source.environment).1,
        Err(problems) => problems,
    };
    problems.0.first().map_or(Ok(()), |problem| Err(problem.message.clone()))
}

fn key(environment: &dyn Fn(&str) -> Option<String>) -> Result<Secret, String> {
    let Some(key) = environment(KEY).filter(|key| !key.is_empty()) else {
        return api_key::create().map(Secret::new).ok_or_else(|| "the system has no random numbers to give".to_owned());
    };
    let fits = (api_key::SHORTEST..=api_key::LONGEST).contains(&key.len())
        && key.bytes().all(|byte| (0x21..0x7f).contains(&byte));
    match fits {
        true => Ok(Secret::new(key)),
        false => Err(format!(
            "{KEY} holds no key: {} to {} printable characters without spaces",
            api_key::SHORTEST,
            api_key::LONGEST
        )),
    }
}
