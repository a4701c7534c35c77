//! From the `ai` section to what calls of models run on: providers with their upstreams and keys, and names of models.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::compile::Ground;
use super::{Origin, Snapshot};
use crate::ai::answers::{self, Answers};
use crate::ai::budget::Budgets;
use crate::ai::catalog::{Catalog, Credential, Kind, Mode, Operation, ProviderSpec};
use crate::ai::endpoint::Endpoint;
use crate::ai::formats::Format;
use crate::ai::guardrails::Guardrail;
use crate::ai::keys::{Key, KeyState};
use crate::ai::targets::{Target, TargetState};
use crate::config::ai::{self as written, OnDisconnect, Strategy};
use crate::config::answer_cache::{self, AnswerCache};
use crate::config::units;
use crate::config::upstream::{self, Timeouts};
use crate::config::{Config, Problems};
use crate::limits::Ledger;
use crate::upstream::Upstream;

/// All models that can be called.
pub struct Models {
    providers: BTreeMap<Arc<str>, Provider>,
    virtuals: BTreeMap<Box<str>, Virtual>,
    default_model: Option<Box<str>>,
    /// Where webhooks of guardrails are, by their addresses.
    webhooks: BTreeMap<Box<str>, (Endpoint, Arc<Origin>)>,
    guardrails: BTreeMap<Box<str>, Arc<Guardrail>>,
    /// Answers that were given before.
    pub answers: Arc<Answers>,
    /// Stands for all of the section: what was answered under another one is not given again.
    version: [u8; 32],
    /// Their names, those first that are asked first for a model that several have.
    by_kind: Box<[Arc<str>]>,
    /// See [`Models::names`].
    names: OnceLock<Box<[Name]>>,
    /// What may be used of them; `None` if nothing is limited.
    pub budgets: Option<Arc<Budgets>>,
    /// Where what was used of them is kept.
    pub ledger: Ledger,
    /// The longest body of a call, in bytes.
    pub max_body: u64,
    /// What bodies under way may take together, one permit for each [`UNIT`].
    pub memory: Arc<Semaphore>,
    /// All of that, in bytes.
    size: u64,
}

/// Bytes of memory that one permit of [`Models::memory`] stands for.
pub const UNIT: u64 = 1024;

/// A name that can be called.
pub struct Name {
    pub name: Box<str>,
    /// Whose model it is, for lists.
    pub owner: Arc<str>,
}

/// A provider that is called.
pub struct Provider {
    pub name: Arc<str>,
    pub spec: Arc<ProviderSpec>,
    /// What OpenTelemetry calls it.
    pub otel_name: Arc<str>,
    /// In the order in which they are preferred for calls of other formats.
    endpoints: Box<[(Endpoint, Arc<Origin>)]>,
    pub keys: Box<[Key]>,
    /// What happens with a call whose caller has left.
    pub on_disconnect: OnDisconnect,
}

/// A name for models of providers.
pub struct Virtual {
    pub targets: Box<[Target]>,
    pub strategy: Strategy,
    pub attempts: u32,
    pub first_token: Option<Duration>,
    pub fallback_on_filter: bool,
    pub guardrails: Box<[Arc<Guardrail>]>,
}

/// Who answers calls of one name.
pub enum Resolved<'m> {
    Virtual(&'m Virtual),
    /// A model of a provider, called by its own name.
    Direct(Box<Virtual>),
}

impl Resolved<'_> {
    pub fn get(&self) -> &Virtual {
        match self {
            Resolved::Virtual(found) => found,
            Resolved::Direct(found) => found,
        }
    }
}

/// Calls of a model by its provider's own name may be tried again, with another key.
const ATTEMPTS: u32 = 3;

/// Which format a provider of several is spoken to in, when it does not speak the caller's.
const PREFERRED: [Format; 7] = [
    Format::Anthropic,
    Format::Gemini,
    Format::Bedrock,
    Format::Cohere,
    Format::Ollama,
    Format::OpenAiChat,
    Format::OpenAiResponses,
];

/// Whether a provider's completions take a model. Makers and clouds have them for their oldest models only.
fn completes(spec: &ProviderSpec, model: &str) -> bool {
    let chats = || spec.model(model).is_some_and(|model| model.mode == Mode::Chat);
    !(matches!(spec.kind, Kind::Maker | Kind::Cloud) && chats())
}

impl Models {
    pub fn provider(&self, name: &str) -> Option<&Provider> {
        self.providers.get(name)
    }

    /// All of them, in the order of their names.
    pub fn providers(&self) -> impl Iterator<Item = &Provider> {
        self.providers.values()
    }

    pub fn default_model(&self) -> Option<&str> {
        self.default_model.as_deref()
    }

    pub fn webhook(&self, url: &str) -> Option<&(Endpoint, Arc<Origin>)> {
        self.webhooks.get(url)
    }

    /// Finds who answers calls of a name: a name of the configuration, `provider/model`, or the name of a model that a
    /// provider of the configuration is known to have.
    pub fn resolve(&self, name: &str) -> Option<Resolved<'_>> {
        if let Some(found) = self.virtuals.get(name) {
            return Some(Resolved::Virtual(found));
        }
        let own = name.split_once('/').and_then(|(provider, model)| Some((self.providers.get(provider)?, model)));
        if let Some((provider, model)) = own {
            return Some(Resolved::Direct(Box::new(direct([(provider, model)]))));
        }
        let asked = self.by_kind.iter().filter_map(|provider| self.providers.get(provider));
        // Nobody else could be meant; whether there is such a model the provider knows best.
        let only = self.providers.len() == 1;
        let known = asked.filter(|provider| only || provider.spec.model(name).is_some());
        let found = direct(known.map(|provider| (provider, name)));
        (!found.targets.is_empty()).then(|| Resolved::Direct(Box::new(found)))
    }

    /// Every name that can be called: those of the configuration, and `provider/model`. Made when it is first asked for.
    pub fn names(&self) -> &[Name] {
        self.names.get_or_init(|| {
            let headgate: Arc<str> = "headgate".into();
            let own = self.virtuals.keys().map(|name| Name { name: name.clone(), owner: headgate.clone() });
            let others = self.providers.values().flat_map(|provider| {
                let name = |model: &str| format!("{}/{model}", provider.name).into();
                provider.spec.models().map(move |model| Name { name: name(&model.name), owner: provider.name.clone() })
            });
            own.chain(others).collect()
        })
    }
}

/// Providers that have a model, as targets one after the other.
fn direct<'p>(of: impl IntoIterator<Item = (&'p Provider, &'p str)>) -> Virtual {
    let targets = (0..).zip(of).map(|(priority, (provider, model))| Target {
        provider: provider.name.clone(),
        model: model.into(),
        weight: 1,
        priority,
        price: None,
        state: Arc::default(),
    });
    Virtual {
        targets: targets.collect(),
        strategy: Strategy::InOrder,
        attempts: ATTEMPTS,
        first_token: None,
        fallback_on_filter: false,
        guardrails: Box::default(),
    }
}

impl Provider {
    /// Where it speaks a format.
    pub fn speaking(&self, format: Format) -> Option<(&Endpoint, &Arc<Origin>)> {
        self.endpoints().find(|(endpoint, _)| endpoint.format == format)
    }

    /// All its addresses, the preferred one first.
    pub fn endpoints(&self) -> impl Iterator<Item = (&Endpoint, &Arc<Origin>)> {
        self.endpoints.iter().map(|(endpoint, origin)| (endpoint, origin))
    }

    /// Where a call in a caller's format goes: in the same format if that is spoken there.
    pub fn endpoint(&self, format: Format, model: &str) -> Option<(&Endpoint, &Arc<Origin>)> {
        let known = self.spec.model(model);
        let formats = known.as_ref().map_or(&[][..], |model| &model.formats);
        let mut usable = self
            .endpoints
            .iter()
            .filter(|(endpoint, _)| formats.is_empty() || formats.contains(&endpoint.format))
            .filter(|(endpoint, _)| endpoint.format.provider().is_some());
        if format == Format::OpenAiCompletions && completes(&self.spec, model) {
            let completions = self.speaking(format);
            if completions.is_some() {
                return completions;
            }
        }
        let first = usable.clone().find(|(endpoint, _)| endpoint.format != Format::OpenAiCompletions);
        usable
            .find(|(endpoint, _)| endpoint.format == format && format != Format::OpenAiCompletions)
            .or(first)
            .map(|(endpoint, origin)| (endpoint, origin))
    }
}

/// What one route may call.
pub struct AiBackend {
    pub models: Arc<Models>,
    /// `None`: all.
    allowed: Option<HashSet<Box<str>>>,
    default_model: Option<Box<str>>,
    /// Names of providers.
    passthrough: Box<[Box<str>]>,
    pub guardrails: Box<[Arc<Guardrail>]>,
    pub cache: Option<RouteCache>,
}

/// How a route keeps answers.
pub struct RouteCache {
    pub settings: AnswerCache,
    pub semantic: Option<Semantic>,
    /// Stands for all that the configuration says of them.
    pub version: [u8; 32],
}

/// Who compares questions by their meaning, and how.
pub struct Semantic {
    pub provider: Box<str>,
    pub model: Box<str>,
    pub threshold: f32,
    pub timeout: Duration,
}

impl AiBackend {
    /// The providers of which everything may be reached, in the order of the configuration.
    pub fn passthrough(&self) -> impl Iterator<Item = &Provider> {
        self.passthrough.iter().filter_map(|name| self.models.provider(name))
    }

    /// Whether some model of a provider may be called.
    pub fn reaches(&self, provider: &Provider) -> bool {
        let of = |name: &str| {
            let found = self.models.resolve(name);
            found.is_some_and(|found| found.get().targets.iter().any(|target| target.provider == provider.name))
        };
        self.allowed.as_ref().is_none_or(|allowed| allowed.iter().any(|name| of(name)))
    }

    pub fn allows(&self, name: &str) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.contains(name))
    }

    pub fn default_model(&self) -> Option<&str> {
        self.default_model.as_deref().or(self.models.default_model())
    }
}

/// Compiles the `ai` section. Its upstreams are added to `origins`.
pub fn compile(
    config: &Config,
    ground: Ground<'_>,
    previous: Option<&Snapshot>,
    origins: &mut BTreeMap<String, Arc<Origin>>,
    problems: &mut Problems,
) -> Option<Arc<Models>> {
    let written = config.ai.as_ref()?;
    let catalog = Catalog::load(Some(ground.around.folder), problems);
    let before = previous.and_then(|previous| previous.models.as_deref());
    let mut compiler = Compiler { ground, previous, before, catalog: &catalog, origins, problems };
    let providers: BTreeMap<Arc<str>, Provider> = written
        .providers
        .iter()
        .filter_map(|(name, provider)| Some((name.as_str().into(), compiler.provider(name, provider)?)))
        .collect();
    let (guardrails, webhooks) = compiler.guardrails(written, &providers);
    let virtuals: BTreeMap<Box<str>, Virtual> = written
        .models
        .iter()
        .map(|(name, model)| (name.as_str().into(), compiler.model(name, model, written, &providers, &guardrails)))
        .collect();
    let memory = match before {
        // Bodies of calls under way count on.
        Some(before) if before.size == written.memory.get() => before.memory.clone(),
        _ => Arc::new(Semaphore::new((written.memory.get() / UNIT) as usize)),
    };
    let mut by_kind: Vec<&Provider> = providers.values().collect();
    by_kind.sort_by_key(|provider| provider.spec.kind);
    let by_kind = by_kind.into_iter().map(|provider| provider.name.clone()).collect();
    let models = Models {
        providers,
        virtuals,
        webhooks,
        guardrails,
        answers: match before {
            Some(before) if before.answers.size == written.cache_size.get() => before.answers.clone(),
            _ => {
                let answers = Arc::new(Answers::new(written.cache_size.get()));
                ground.metrics.add_source(answers::Report(Arc::downgrade(&answers)));
                answers
            }
        },
        version: digest(&format!("{written:?}")),
        by_kind,
        names: OnceLock::new(),
        default_model: written.default_model.as_deref().map(Into::into),
        budgets: Budgets::compile(config, &ground.lasting.quotas, &ground.lasting.counters, problems),
        ledger: ground.lasting.ledger.clone(),
        max_body: written.max_body.get(),
        memory,
        size: written.memory.get(),
    };
    if let Some(name) = &models.default_model
        && models.resolve(name).is_none()
    {
        unknown_model("ai.default_model", name, &models, problems);
    }
    Some(Arc::new(models))
}

/// Compiles the backend of a route.
pub fn backend(
    route: &written::AiRoute,
    models: Option<&Arc<Models>>,
    path: &str,
    problems: &mut Problems,
) -> Option<AiBackend> {
    let Some(models) = models else {
        problems.add(path, "there are no models: write the section `ai` with a provider");
        return None;
    };
    for (i, name) in route.models.iter().enumerate() {
        if models.resolve(name).is_none() {
            unknown_model(&format!("{path}.models[{i}]"), name, models, problems);
        }
    }
    if let Some(name) = &route.default_model
        && models.resolve(name).is_none()
    {
        unknown_model(&format!("{path}.default_model"), name, models, problems);
    }
    for (i, name) in route.passthrough.iter().enumerate().filter(|(_, name)| models.provider(name).is_none()) {
        problems.unknown(
            format!("{path}.passthrough[{i}]"),
            "provider",
            name,
            models.providers.keys().map(|name| &**name),
        );
    }
    let allowed = route.models.iter().map(|name| name.as_str().into()).collect::<HashSet<Box<str>>>();
    Some(AiBackend {
        models: models.clone(),
        allowed: (!allowed.is_empty()).then_some(allowed),
        default_model: route.default_model.as_deref().map(Into::into),
        passthrough: route.passthrough.iter().map(|name| name.as_str().into()).collect(),
        guardrails: named(&route.guardrails, &models.guardrails, path, problems),
        cache: route.cache.clone().map(|settings| RouteCache {
            semantic: settings.semantic.as_ref().and_then(|semantic| {
                self::semantic(semantic, models, &format!("{path}.cache.semantic.model"), problems)
            }),
            settings,
            version: digest(&format!("{:?}{route:?}", models.version)),
        }),
    })
}

fn semantic(
    written: &answer_cache::Semantic,
    models: &Models,
    path: &str,
    problems: &mut Problems,
) -> Option<Semantic> {
    let Some((provider, model)) = written.model.split_once('/').filter(|(_, model)| !model.is_empty()) else {
        problems.add(path, "write the provider before the model, as in `openai/text-embedding-3-small`");
        return None;
    };
    match models.provider(provider) {
        None => problems.unknown(path, "provider", provider, models.providers.keys().map(|known| &**known)),
        Some(found) if found.speaking(Format::OpenAiChat).is_none() => {
            problems.add(path, "this provider has no address of the format `openai_chat`");
        }
        Some(_) => {}
    }
    let (threshold, timeout) = (written.threshold as f32, written.timeout.get());
    Some(Semantic { provider: provider.into(), model: model.into(), threshold, timeout })
}

fn digest(text: &str) -> [u8; 32] {
    let mut digest = [0; 32];
    let made = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.iter_mut().zip(made.as_ref()).for_each(|(to, from)| *to = *from);
    digest
}

/// The guardrails of these names.
fn named(
    names: &[String],
    guardrails: &BTreeMap<Box<str>, Arc<Guardrail>>,
    path: &str,
    problems: &mut Problems,
) -> Box<[Arc<Guardrail>]> {
    let mut found = Vec::new();
    for (i, name) in names.iter().enumerate() {
        match guardrails.get(name.as_str()) {
            Some(guardrail) => found.push(guardrail.clone()),
            // One that is written but did not compile has its own problems.
            None if problems.0.iter().any(|problem| problem.path.starts_with(&format!("ai.guardrails.{name}"))) => {}
            None => {
                let place = format!("{path}.guardrails[{i}]");
                problems.unknown(place, "guardrail", name, guardrails.keys().map(|known| &**known));
            }
        }
    }
    found.into()
}

fn unknown_model(path: &str, name: &str, models: &Models, problems: &mut Problems) {
    problems.unknown(path, "model", name, models.names().iter().map(|known| &*known.name));
}

struct Compiler<'c> {
    ground: Ground<'c>,
    previous: Option<&'c Snapshot>,
    before: Option<&'c Models>,
    catalog: &'c Catalog,
    origins: &'c mut BTreeMap<String, Arc<Origin>>,
    problems: &'c mut Problems,
}

impl Compiler<'_> {
    fn provider(&mut self, name: &str, written: &written::Provider) -> Option<Provider> {
        let path = format!("ai.providers.{name}");
        let file = written.provider.as_deref().unwrap_or(name);
        let Some(spec) = self.catalog.provider(file) else {
            let place = if written.provider.is_some() { format!("{path}.provider") } else { path };
            self.problems.unknown(place, "provider", file, self.catalog.names());
            return None;
        };
        for variable in written.variables.keys().filter(|variable| !spec.variables.contains_key(*variable)) {
            let place = format!("{path}.variables.{variable}");
            self.problems.unknown(place, "variable", variable, spec.variables.keys().map(String::as_str));
        }
        if spec.credential == Credential::GoogleOauth {
            let message = "this provider wants tokens of a Google account, which this version cannot get; use `gemini` with a key";
            self.problems.add(&path, message);
            return None;
        }
        // Models are decoded when they are first asked for: now, and not by the first call.
        let _ = spec.models().next();
        let endpoints = self.endpoints(name, written, &spec, &path);
        let name: Arc<str> = name.into();
        let keys = self.keys(&name, written, &spec, &path);
        if keys.is_empty() && spec.credential != Credential::None && written.keys.is_empty() {
            let usual = match spec.key_environment.first() {
                Some(usual) => format!(", such as `keys: [{{ secret: env:{usual} }}]`"),
                None => String::new(),
            };
            self.problems.add(&path, format!("{} wants a key{usual}", spec.title));
        }
        let otel_name = spec.otel_name().into();
        let on_disconnect = written.on_disconnect.unwrap_or(spec.on_disconnect);
        Some(Provider { name, spec, otel_name, endpoints, keys, on_disconnect })
    }

    fn endpoints(
        &mut self,
        name: &str,
        written: &written::Provider,
        spec: &ProviderSpec,
        path: &str,
    ) -> Box<[(Endpoint, Arc<Origin>)]> {
        let mut endpoints = Vec::new();
        let mut completions = None;
        let mut used = BTreeSet::new();
        for format in PREFERRED {
            let own = written.base_urls.get(format.name()).map(|url| Ok(url.clone()));
            used.extend(own.is_some().then_some(format.name()));
            // Whoever writes addresses means these and no others.
            let theirs = || {
                let given = |variable: &str| written.variables.get(variable).cloned();
                spec.base_url(format, &given, self.ground.around.environment)
            };
            let url = own.or_else(|| if written.base_urls.is_empty() { theirs() } else { None });
            match url.map(|url| url.and_then(|url| Endpoint::parse(format, &url))) {
                None => {}
                Some(Err(message)) => self.problems.add(format!("{path}.base_urls.{}", format.name()), message),
                Some(Ok(endpoint)) => {
                    let origin = self.origin(name, &endpoint, written, path);
                    if let (Format::OpenAiChat, Some(origin)) = (format, &origin)
                        && spec.serves(Operation::Completions)
                    {
                        let endpoint = endpoint.clone().speaking(Format::OpenAiCompletions);
                        completions = Some((endpoint, origin.clone()));
                    }
                    endpoints.extend(origin.map(|origin| (endpoint, origin)));
                }
            }
        }
        for unknown in written.base_urls.keys().filter(|format| !used.contains(format.as_str())) {
            let place = format!("{path}.base_urls.{unknown}");
            self.problems.unknown(place, "format", unknown, Format::all().map(Format::name));
        }
        endpoints.extend(completions);
        endpoints.into()
    }

    /// The upstream of an endpoint; those at the same address share it.
    fn origin(
        &mut self,
        provider: &str,
        endpoint: &Endpoint,
        written: &written::Provider,
        path: &str,
    ) -> Option<Arc<Origin>> {
        // No name of the configuration has a colon.
        let scheme = if endpoint.https { "https" } else { "http" };
        let name = format!("ai:{provider}:{scheme}:{}", endpoint.address());
        if let Some(origin) = self.origins.get(&name) {
            return Some(origin.clone());
        }
        let upstream = upstream_of(endpoint, written);
        let before = self.previous.and_then(|previous| previous.origins.get(&name)).map(|origin| &origin.upstream);
        let upstream = Upstream::compile(&name, &upstream, before, self.ground.around, path, self.problems)?;
        let metrics = self.ground.metrics.upstream(upstream.name());
        let origin = Arc::new(Origin { upstream, metrics });
        self.origins.insert(name, origin.clone());
        Some(origin)
    }

    /// The region that a provider's variables say.
    fn region(&self, written: &written::Provider, spec: &ProviderSpec) -> String {
        let given = |name: &str| written.variables.get(name).cloned();
        let value = spec.variable_value("region", &given, self.ground.around.environment);
        value.unwrap_or_else(|| "us-east-1".to_owned())
    }

    fn keys(&mut self, name: &Arc<str>, written: &written::Provider, spec: &ProviderSpec, path: &str) -> Box<[Key]> {
        let known: HashMap<&str, &Arc<KeyState>> = self
            .before
            .and_then(|before| before.provider(name))
            .map(|provider| provider.keys.iter().map(|key| (&*key.name, key.state())).collect())
            .unwrap_or_default();
        let mut keys = Vec::new();
        for (i, key) in written.keys.iter().enumerate() {
            let place = format!("{path}.keys[{i}].secret");
            let around = self.ground.around;
            let Some(secret) = key.secret.resolve(around.folder, around.environment, &place, self.problems) else {
                continue;
            };
            if secret.expose().bytes().any(|byte| !(0x21..0x7f).contains(&byte))
                && !matches!(spec.credential, Credential::AwsSigv4 | Credential::GoogleOauth)
            {
                self.problems.add(&place, "the key has characters that no header may hold");
                continue;
            }
            let called = format!("{name}[{i}]");
            let state = known.get(called.as_str()).map(|state| (*state).clone()).unwrap_or_default();
            let key = Key::new(&called, secret, key.weight, &key.models, state);
            match spec.credential {
                Credential::AwsSigv4 => match key.signing(&self.region(written, spec)) {
                    Ok(key) => keys.push(key),
                    Err(message) => self.problems.add(&place, message),
                },
                _ => keys.push(key),
            }
        }
        keys.into()
    }

    fn guardrails(&mut self, written: &written::Ai, providers: &BTreeMap<Arc<str>, Provider>) -> Guardrails {
        let (mut guardrails, mut webhooks) = Guardrails::default();
        for (name, guardrail) in &written.guardrails {
            let path = format!("ai.guardrails.{name}");
            let around = self.ground.around;
            let mut token = None;
            if let Some(webhook) = &guardrail.webhook {
                let place = format!("{path}.webhook");
                let secret = webhook.token.as_ref().and_then(|token| {
                    let place = format!("{place}.token");
                    token.resolve(around.folder, around.environment, &place, self.problems)
                });
                token = secret;
                match Endpoint::parse(Format::OpenAiChat, &webhook.url) {
                    Ok(endpoint) => {
                        let timeouts =
                            Timeouts { first_byte: webhook.timeout, idle: webhook.timeout, ..Timeouts::default() };
                        let written = written::Provider { timeouts: Some(timeouts), ..written::Provider::default() };
                        let origin = self.origin(&format!("guardrail:{name}"), &endpoint, &written, &place);
                        webhooks.extend(origin.map(|origin| (webhook.url.as_str().into(), (endpoint, origin))));
                    }
                    Err(message) => self.problems.add(format!("{place}.url"), message),
                }
            }
            if let Some(moderation) = &guardrail.moderation {
                let place = format!("{path}.moderation.provider");
                match providers.get(moderation.provider.as_str()) {
                    Some(provider) if provider.speaking(Format::OpenAiChat).is_some() => {}
                    Some(_) => self.problems.add(place, "this provider has no address of the format `openai_chat`"),
                    None if written.providers.contains_key(&moderation.provider) => {}
                    None => {
                        let known = written.providers.keys().map(String::as_str);
                        self.problems.unknown(place, "provider", &moderation.provider, known);
                    }
                }
            }
            let compiled = Guardrail::compile(name, guardrail, &path, self.problems, token);
            guardrails.extend(compiled.map(|guardrail| (name.as_str().into(), Arc::new(guardrail))));
        }
        (guardrails, webhooks)
    }

    fn model(
        &mut self,
        name: &str,
        written: &written::VirtualModel,
        ai: &written::Ai,
        providers: &BTreeMap<Arc<str>, Provider>,
        guardrails: &BTreeMap<Box<str>, Arc<Guardrail>>,
    ) -> Virtual {
        let path = format!("ai.models.{name}");
        let before = self.before.and_then(|before| before.virtuals.get(name));
        let mut targets = Vec::new();
        for (i, target) in written.targets.iter().enumerate() {
            let place = format!("{path}.targets[{i}].model");
            let Some((provider, model)) = target.model.split_once('/').filter(|(_, model)| !model.is_empty()) else {
                self.problems.add(place, "write the provider before the model, as in `openai/gpt-5`");
                continue;
            };
            let Some(found) = providers.get(provider) else {
                // One that is written but did not compile has its own problems.
                if !ai.providers.contains_key(provider) {
                    self.problems.unknown(place, "provider", provider, ai.providers.keys().map(String::as_str));
                }
                continue;
            };
            let known = before.and_then(|before| {
                before.targets.iter().find(|known| *known.provider == *provider && *known.model == *model)
            });
            let state: Arc<TargetState> = known.map(|known| known.state.clone()).unwrap_or_default();
            targets.push(Target {
                provider: found.name.clone(),
                model: model.into(),
                weight: target.weight,
                priority: target.priority,
                price: price(&found.spec, model),
                state,
            });
        }
        if written.targets.iter().all(|target| target.weight == 0) {
            self.problems.add(format!("{path}.targets"), "all weights are 0, so no call could be sent anywhere");
        }
        Virtual {
            targets: targets.into(),
            strategy: written.strategy,
            attempts: written.attempts,
            first_token: written.first_token.map(units::Duration::get),
            fallback_on_filter: written.fallback_on_filter,
            guardrails: named(&written.guardrails, guardrails, &path, self.problems),
        }
    }
}

/// Guardrails by their names, and where their webhooks are.
type Guardrails = (BTreeMap<Box<str>, Arc<Guardrail>>, BTreeMap<Box<str>, (Endpoint, Arc<Origin>)>);

/// A usual call, to compare prices by.
fn price(spec: &ProviderSpec, model: &str) -> Option<u64> {
    use crate::ai::chat::Usage;
    use crate::ai::cost::{Cost, Used};
    let usage = Usage { input: 1_000_000, output: 250_000, ..Usage::default() };
    match spec.cost(model, &Used::from(usage)) {
        Cost::Known(money) => Some(money.nanos()),
        Cost::Unknown => None,
    }
}

/// Models think: answers are waited for longer than those of other origins.
const FIRST_BYTE: units::Duration = units::Duration::from_secs(600);
const IDLE: units::Duration = units::Duration::from_secs(120);

fn upstream_of(endpoint: &Endpoint, written: &written::Provider) -> upstream::Upstream {
    let usual = Timeouts { first_byte: FIRST_BYTE, idle: IDLE, ..Timeouts::default() };
    let timeouts = written.timeouts.clone().unwrap_or(usual);
    let tls = endpoint.https.then(|| written.tls.clone().unwrap_or_default());
    upstream::Upstream::of_address(endpoint.address(), timeouts, tls)
}
