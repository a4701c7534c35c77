//! What `headgate ai` says to whoever has started it.

use std::fmt::Write;
use std::net::SocketAddr;

use jiff::Timestamp;

use super::found::{Found, Provider, Way};
use super::{KEY, Options};
use crate::ai::catalog::{Catalog, Mode, Model};
use crate::config::{Environment, Secret};

/// Models that are named of each provider.
const SHOWN: usize = 4;

/// Addresses, the caller's key, models, and a call to try.
pub fn summary(options: &Options, found: &Found, key: &Secret) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_summary(&mut text, options, found, key.expose());
    text
}

fn write_summary(text: &mut String, options: &Options, found: &Found, key: &str) -> std::fmt::Result {
    let base = format!("http://{}", reachable(options.address));
    writeln!(text, "Headgate answers calls of models on {base}, for whoever has this key:\n\n  {key}\n")?;
    writeln!(text, "Point a library at it:\n")?;
    writeln!(text, "  OpenAI     OPENAI_BASE_URL={base}/v1  OPENAI_API_KEY={key}")?;
    writeln!(text, "  Anthropic  ANTHROPIC_BASE_URL={base}  ANTHROPIC_API_KEY={key}")?;
    writeln!(text, "  Google     GOOGLE_GEMINI_BASE_URL={base}  GEMINI_API_KEY={key}\n")?;
    writeln!(text, "Each of them calls any of these models, as PROVIDER/MODEL or by the model's name:\n")?;
    let width = found.providers.iter().map(|provider| provider.name().len()).max().unwrap_or_default();
    for provider in &found.providers {
        let name = provider.name();
        let (count, shown) = models(provider);
        let from = match &provider.way {
            Way::Key(variable) => format!("key in {variable}"),
            Way::Engine { address, .. } => format!("runs on {address}"),
        };
        let more = if count > shown.len() { ", …" } else { "" };
        writeln!(text, "  {name:width$}  {count:>3}  {}{more}  ({from})", shown.join(", "))?;
    }
    for note in &found.notes {
        writeln!(text, "\n  {note}")?;
    }
    if let Some(model) = found.providers.iter().find_map(to_try) {
        let body = serde_json::json!({ "model": model, "messages": [{ "role": "user", "content": "Say hello" }] });
        writeln!(text, "\nTry it:\n")?;
        writeln!(
            text,
            "  curl {base}/v1/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \
             -d '{body}'"
        )?;
    }
    if !options.address.ip().is_loopback() {
        writeln!(text, "\nOther machines reach this address, and nothing encrypts what they send.")?;
    }
    writeln!(
        text,
        "\nMetrics and status: http://{}/metrics, /status. Ctrl-C ends it, and the key with it;",
        options.admin
    )?;
    writeln!(
        text,
        "`{KEY}` in the environment keeps the same key. `headgate ai --print-config` prints a configuration to go on from.\n"
    )
}

/// An address that can be called: one that stands for all is called on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], v4.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, v6.port())),
        other => other,
    }
}

/// Why there is nothing to serve, and what to do about it.
pub fn nothing_found(catalog: &Catalog, found: &Found) -> String {
    let mut text = "no provider's key is in the environment, and no engine for models answers on this machine.\n\n\
                    Set one, such as OPENAI_API_KEY, ANTHROPIC_API_KEY or GEMINI_API_KEY, or start an engine such as Ollama, \
                    LM Studio, vLLM or llama.cpp, and run this again."
        .to_owned();
    let _ = write!(text, "\n{} providers are known by their variables, see conf/providers.", catalog.names().count());
    for note in &found.notes {
        let _ = write!(text, "\n\n{note}");
    }
    text
}

/// The variables of the environment that would complete a provider's address.
pub fn missing(provider: &Provider, environment: &Environment) -> String {
    let spec = &provider.spec;
    let unset = spec.variables.iter().filter(|(name, _)| spec.variable_value(name, &|_| None, environment).is_none());
    let usual: Vec<&str> = unset.filter_map(|(_, variable)| Some(variable.environment.first()?.as_str())).collect();
    if usual.is_empty() { String::new() } else { format!("; set {}", usual.join(" or ")) }
}

/// How many models a provider has for chat, and some of them.
fn models(provider: &Provider) -> (usize, Vec<String>) {
    match &provider.way {
        Way::Engine { models, .. } => (models.len(), models.iter().take(SHOWN).cloned().collect()),
        Way::Key(_) => {
            let usable = usable(provider);
            let mut shown: Vec<&Model> = usable.iter().copied().filter(|model| !is_edition(&model.name)).collect();
            shown.sort_by_key(|model| std::cmp::Reverse((model.tools, model.reasoning, model.context)));
            (usable.len(), shown.into_iter().take(SHOWN).map(|model| model.name.clone()).collect())
        }
    }
}

/// Models for chat that the provider still serves.
fn usable(provider: &Provider) -> Vec<&Model> {
    let now = Timestamp::now();
    let served = |model: &&Model| model.deprecated.is_none_or(|day| day.0 > now);
    provider
        .spec
        .models()
        .map(|model| &**model)
        .filter(|model: &&Model| model.mode == Mode::Chat)
        .filter(served)
        .collect()
}

/// Whether a name is that of one edition of a model among others, such as a dated one.
fn is_edition(name: &str) -> bool {
    let digits = name.split(|c: char| !c.is_ascii_digit()).any(|number| number.len() >= 4);
    digits || ["preview", "latest", "search", "audio", "beta", "exp"].iter().any(|word| name.contains(word))
}

/// The model of an engine, or the cheapest of those that a provider is proud of.
fn to_try(provider: &Provider) -> Option<String> {
    let name = match &provider.way {
        Way::Engine { models, .. } => models.first()?.clone(),
        Way::Key(_) => {
            let usable = usable(provider);
            let able = |model: &&&Model| model.tools == Some(true) && !is_edition(&model.name);
            let price = |model: &Model| model.prices.as_ref().and_then(|prices| prices.output);
            let priced = usable.iter().filter(able).filter(|model| model.prices.is_some());
            let cheapest = priced.min_by_key(|model| (price(model).is_none(), price(model)));
            cheapest.or(usable.first())?.name.clone()
        }
    };
    Some(format!("{}/{name}", provider.name()))
}
