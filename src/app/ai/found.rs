//! What this machine has: keys of providers in the environment, and engines that answer on loopback.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::Options;
use crate::ai::catalog::{Catalog, Credential, Kind, ProviderSpec};
use crate::config::{Environment, nearest};

/// Amazon's key as a configuration takes it: `ID:SECRET`, or `ID:SECRET:TOKEN`.
pub const AWS_KEY: &str = "AWS_KEY";

/// An engine that is there answers on loopback at once.
const CONNECT: Duration = Duration::from_millis(300);
const ANSWER: Duration = Duration::from_secs(2);
/// A list of models beyond this is not read.
const LONGEST: usize = 4 << 20;
const MOST_MODELS: usize = 500;

/// Engines that are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engines {
    /// All that are known, where they usually are.
    Usual,
    /// These, elsewhere if an address is given.
    Only(BTreeMap<String, Option<SocketAddr>>),
}

/// A provider that can be called.
pub struct Provider {
    pub spec: Arc<ProviderSpec>,
    pub way: Way,
}

/// How it was found.
pub enum Way {
    /// By this variable, which holds its key.
    Key(String),
    /// It answers there, and has these models.
    Engine { address: SocketAddr, base_urls: Vec<(&'static str, String)>, models: Vec<String> },
}

impl Provider {
    pub fn name(&self) -> &str {
        self.spec.name()
    }
}

pub struct Found {
    pub providers: Vec<Provider>,
    /// What was seen and cannot be used, and why.
    pub notes: Vec<String>,
}

impl Engines {
    /// Reads a list of `NAME` and `NAME=ADDRESS`; `none` alone is none.
    pub fn read(list: &[String]) -> Result<Engines, String> {
        if list.is_empty() {
            return Ok(Engines::Usual);
        }
        let mut engines = BTreeMap::new();
        for entry in list.iter().filter(|entry| *entry != "none") {
            let (name, address) = match entry.split_once('=') {
                None => (entry.as_str(), None),
                Some((name, address)) => {
                    let read = address.parse::<SocketAddr>();
                    (name, Some(read.map_err(|_| format!("`{address}` is no address such as 127.0.0.1:11434"))?))
                }
            };
            if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
                return Err(format!(
                    "engines are looked for on this machine only, and {address} is another; save what `--print-config` \
                     prints and give the engine its `base_urls` there"
                ));
            }
            engines.insert(name.to_owned(), address);
        }
        Ok(Engines::Only(engines))
    }

    /// Where to look for an engine; `None` if nowhere.
    fn address(&self, spec: &ProviderSpec) -> Option<SocketAddr> {
        let usual = spec.probe.as_ref().map(|probe| probe.address);
        match self {
            Engines::Usual => usual,
            Engines::Only(wanted) => wanted.get(spec.name())?.or(usual),
        }
    }
}

/// Looks at the environment and at loopback. The error is for whoever has started it.
pub fn look(catalog: &Catalog, options: &Options, environment: &Environment) -> Result<Found, String> {
    let specs: Vec<Arc<ProviderSpec>> = catalog.providers().collect();
    if let Engines::Only(wanted) = &options.engines {
        let known: Vec<&str> = specs.iter().filter(|spec| spec.probe.is_some()).map(|spec| spec.name()).collect();
        if let Some(unknown) = wanted.keys().find(|name| !known.contains(&name.as_str())) {
            let hint = nearest(unknown, known.iter().copied())
                .map_or_else(|| format!("there are: {}", known.join(", ")), |name| format!("did you mean {name}?"));
            return Err(format!("there is no engine named {unknown}; {hint}"));
        }
    }
    let by_key = specs.iter().filter_map(|spec| {
        let variable = key_variable(spec, environment)?;
        Some(Provider { spec: spec.clone(), way: Way::Key(variable) })
    });
    let mut providers: Vec<Provider> = by_key.collect();
    providers.sort_by_key(|provider| provider.spec.kind);
    providers.extend(engines(&specs, options)?);
    Ok(Found { providers, notes: Vec::new() })
}

/// The variable that holds a provider's key, if one does.
fn key_variable(spec: &ProviderSpec, environment: &Environment) -> Option<String> {
    let set = |name: &&String| environment(name).is_some_and(|value| !value.trim().is_empty());
    let variable = spec.key_environment.iter().find(set)?;
    match spec.credential {
        Credential::AwsSigv4 => environment(AWS_KEY).map(|_| AWS_KEY.to_owned()),
        Credential::None => None,
        _ => Some(variable.clone()),
    }
}

/// Amazon's variables as one.
pub fn aws_key(environment: &Environment) -> Option<String> {
    let given = |name: &str| environment(name).filter(|value| !value.is_empty());
    let key = format!("{}:{}", given("AWS_ACCESS_KEY_ID")?, given("AWS_SECRET_ACCESS_KEY")?);
    Some(given("AWS_SESSION_TOKEN").map_or_else(|| key.clone(), |token| format!("{key}:{token}")))
}

/// The engines that answer, all asked at the same time.
fn engines(specs: &[Arc<ProviderSpec>], options: &Options) -> Result<Vec<Provider>, String> {
    let wanted: Vec<(&Arc<ProviderSpec>, SocketAddr)> = specs
        .iter()
        .filter_map(|spec| Some((spec, options.engines.address(spec)?)))
        // Where this gateway is going to listen nobody else can be.
        .filter(|(_, address)| *address != options.address && *address != options.admin)
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        // Loopback has no TLS.
        .tls_certs_only([])
        .connect_timeout(CONNECT)
        .timeout(ANSWER)
        .build()
        .map_err(|error| format!("no client can be made to look for engines: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot look for engines: {error}"))?;
    let asked = wanted.into_iter().map(|(spec, address)| engine(&client, spec, address));
    let mut found: Vec<Provider> =
        runtime.block_on(futures_util::future::join_all(asked)).into_iter().flatten().collect();
    // Several engines have the same port, and some answer what others are asked.
    let mut taken = Vec::new();
    found.retain(|provider| match &provider.way {
        Way::Engine { address, .. } => {
            let first = !taken.contains(address);
            taken.push(*address);
            first
        }
        Way::Key(_) => true,
    });
    Ok(found)
}

#[derive(Deserialize)]
struct ModelList {
    data: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
}

/// One engine, if it is there: it answers its own path, and lists its models as OpenAI does.
async fn engine(client: &reqwest::Client, spec: &Arc<ProviderSpec>, address: SocketAddr) -> Option<Provider> {
    let probe = spec.probe.as_ref().filter(|_| spec.kind == Kind::Engine)?;
    let answer = client.get(format!("http://{address}{}", probe.path)).send().await.ok()?;
    if answer.status() != reqwest::StatusCode::OK {
        return None;
    }
    let base_urls: Vec<(&'static str, String)> =
        spec.base_urls.iter().filter_map(|(format, url)| Some((format.name(), at(url, address)?))).collect();
    let (_, base) = base_urls.iter().find(|(format, _)| *format == "openai_chat")?;
    let listed = read(client.get(format!("{base}/models")).send().await.ok()?).await?;
    let list: ModelList = serde_json::from_slice(&listed).ok()?;
    let models: Vec<String> = list.data.into_iter().map(|model| model.id).take(MOST_MODELS).collect();
    Some(Provider { spec: spec.clone(), way: Way::Engine { address, base_urls, models } })
}

/// A base URL at another address.
fn at(url: &str, address: SocketAddr) -> Option<String> {
    let mut url = Url::parse(url).ok()?;
    url.set_ip_host(address.ip()).ok()?;
    url.set_port(Some(address.port())).ok()?;
    Some(url.as_str().trim_end_matches('/').to_owned())
}

/// A body within bounds.
async fn read(mut answer: reqwest::Response) -> Option<Vec<u8>> {
    if !answer.status().is_success() {
        return None;
    }
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.ok()? {
        if body.len() + piece.len() > LONGEST {
            return None;
        }
        body.extend_from_slice(&piece);
    }
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(engines: &[&str]) -> Options {
        let list: Vec<String> = engines.iter().map(|entry| (*entry).to_owned()).collect();
        let engines = Engines::read(&list).unwrap();
        let address = |text: &str| text.parse().unwrap();
        Options { address: address("127.0.0.1:1"), admin: address("127.0.0.1:2"), engines, print_config: false }
    }

    #[test]
    fn keys_are_found_by_their_usual_variables_and_makers_come_first() {
        let set = |name: &str| match name {
            "OPENROUTER_API_KEY" | "GOOGLE_API_KEY" | "OPENAI_API_KEY" => Some("k".to_owned()),
            "ANTHROPIC_API_KEY" => Some("  ".to_owned()),
            _ => None,
        };
        let found = look(&Catalog::default(), &options(&["none"]), &set).unwrap();
        let found: Vec<_> = found
            .providers
            .iter()
            .map(|provider| match &provider.way {
                Way::Key(variable) => (provider.name(), variable.as_str()),
                Way::Engine { .. } => panic!("no engine was asked for"),
            })
            .collect();
        let expected =
            [("gemini", "GOOGLE_API_KEY"), ("openai", "OPENAI_API_KEY"), ("openrouter", "OPENROUTER_API_KEY")];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_variables_of_amazon_are_one_key() {
        let set = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some("AK".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("s".to_owned()),
            _ => None,
        };
        assert_eq!(aws_key(&set).as_deref(), Some("AK:s"));
        let with_token = |name: &str| if name == "AWS_SESSION_TOKEN" { Some("t".to_owned()) } else { set(name) };
        assert_eq!(aws_key(&with_token).as_deref(), Some("AK:s:t"));
        assert_eq!(aws_key(&|_| None), None);
    }

    #[test]
    fn engines_are_looked_for_on_this_machine_only() {
        let read = |entry: &str| Engines::read(&[entry.to_owned()]);
        assert!(read("ollama=10.0.0.1:11434").unwrap_err().contains("this machine only"));
        assert!(read("ollama=somewhere").is_err());
        assert!(read("ollama=[::1]:11434").is_ok() && read("none").is_ok());
        let unknown = look(&Catalog::default(), &options(&["olama"]), &|_| None);
        assert!(unknown.err().unwrap().contains("ollama"));
    }

    #[test]
    fn a_base_url_moves_with_its_engine() {
        let address = |text: &str| text.parse().unwrap();
        assert_eq!(at("http://127.0.0.1:11434", address("127.0.0.1:7")).as_deref(), Some("http://127.0.0.1:7"));
        assert_eq!(at("http://127.0.0.1:8000/api/v1", address("[::1]:7")).as_deref(), Some("http://[::1]:7/api/v1"));
    }
}
