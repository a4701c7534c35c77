use std::collections::{BTreeSet, HashSet};
use std::fs;

use url::Url;

use super::*;
use crate::ai::chat::{FailureKind, Usage};
use crate::ai::cost::{Cost, Money, Used};
use crate::ai::formats::Format;
use crate::ai::quirks::Quirk;
use crate::config::{Environment, load_str};

fn nothing(_: &str) -> Option<String> {
    None
}

/// What a file says, read as an override is, or its problems as text.
fn checked(name: &str, text: &str) -> Result<ProviderFile, String> {
    let loaded =
        load_str::<ProviderFile>(name, text, &Catalog::schema(), &nothing).map_err(|found| found.to_string())?;
    let mut found = Problems::default();
    verify::verify(&loaded.config, &mut found);
    loaded.sources.place_all(&mut found);
    if found.is_empty() { Ok(loaded.config) } else { Err(found.to_string()) }
}

/// A folder with provider files that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn with(name: &str, files: &[(&str, &str)]) -> Folder {
        let folder = std::env::temp_dir().join(format!("headgate-catalog-{}-{name}", std::process::id()));
        fs::create_dir_all(Catalog::folder(&folder)).unwrap();
        for (file, text) in files {
            fs::write(Catalog::folder(&folder).join(file), text).unwrap();
        }
        Folder(folder)
    }

    fn load(&self) -> (Catalog, Problems) {
        let mut problems = Problems::default();
        let catalog = Catalog::load(Some(&self.0), &mut problems);
        (catalog, problems)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_embedded_file_is_valid_and_its_names_are_its_own() {
    let mut problems = Vec::new();
    let mut titles = BTreeSet::new();
    for (name, text) in embedded::FILES {
        assert!(is_name(name), "{name}");
        match checked(&format!("conf/providers/{name}.yaml"), text) {
            Ok(file) => assert!(titles.insert(file.title.clone()), "two providers are called {}", file.title),
            Err(found) => problems.push(found),
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn there_are_at_least_60_providers_with_1500_models() {
    let catalog = Catalog::default();
    let models: usize = catalog.providers().map(|provider| provider.models().count()).sum();
    assert!(catalog.providers().count() >= 60, "{}", catalog.providers().count());
    assert!(models >= 1500, "{models}");
}

#[test]
fn what_is_decoded_in_parts_is_what_the_whole_file_says() {
    let catalog = Catalog::default();
    for (name, text) in embedded::FILES {
        let whole = checked(name, text).unwrap();
        let provider = catalog.provider(name).unwrap();
        assert_eq!(provider.title, whole.title);
        assert_eq!(provider.models().count(), whole.models.len(), "{name}: `models` has to be the last key");
        let mut names: Vec<&str> = embedded::names(embedded::split(text).1).collect();
        names.sort_unstable();
        let aliases = whole.models.values().flat_map(|model| &model.aliases);
        let mut expected: Vec<&str> = whole.models.keys().chain(aliases).map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(names, expected, "{name}: each model has to be one line");
        for (name, mut model) in whole.models {
            model.name.clone_from(&name);
            assert_eq!(*provider.model(&name).unwrap(), model);
        }
    }
}

#[test]
fn names_are_found_quoted_and_plain_and_aliases_too() {
    let text = "models:\n  a/b: { context: 1, aliases: [c, \"d:1\"] }\n  \"e:2\": {}\n";
    assert_eq!(embedded::names(text).collect::<Vec<_>>(), ["a/b", "c", "d:1", "e:2"]);
}

#[test]
fn embedded_providers_are_called_over_tls_or_on_this_machine() {
    for provider in Catalog::default().providers() {
        for (format, template) in provider.base_urls.iter() {
            let value = |name: &str| {
                let whole = template.starts_with(&format!("{{{name}}}"));
                Some(if whole { "https://given.example.com" } else { "given" }.to_owned())
            };
            let url = provider.base_url(format, &value, &nothing).unwrap().unwrap();
            let url = Url::parse(&url).unwrap();
            let loopback = url.host_str() == Some("127.0.0.1");
            assert_eq!(
                url.scheme(),
                if provider.kind == Kind::Engine { "http" } else { "https" },
                "{}",
                provider.name()
            );
            assert_eq!(loopback, provider.kind == Kind::Engine, "{}", provider.name());
        }
        assert_eq!(provider.probe.is_some(), provider.kind == Kind::Engine, "{}", provider.name());
        let keyless = provider.credential == Credential::None;
        assert_eq!(provider.key_environment.is_empty(), keyless, "{}: a key is usually somewhere", provider.name());
    }
}

#[test]
fn embedded_prices_are_plausible() {
    const DOLLAR: u64 = 1_000_000;
    for provider in Catalog::default().providers() {
        for model in provider.models() {
            let place = format!("{}/{}", provider.name(), model.name);
            let Some(prices) = &model.prices else { continue };
            for price in [prices.input, prices.output, prices.cache_read, prices.cache_write].into_iter().flatten() {
                assert!((1..=1000 * DOLLAR).contains(&price.pico()), "{place}: 0 stands for unknown in the list");
            }
            for price in [prices.image, prices.request, prices.search].into_iter().flatten() {
                assert!(price.pico() <= 5 * 1_000_000 * DOLLAR, "{place}: more than five dollars for one");
            }
            if let (Some(read), Some(input)) = (prices.cache_read, prices.input) {
                assert!(read <= input, "{place}: reading the cache costs more than not using it");
            }
            assert!(*prices != Prices::default(), "{place}: prices that say nothing");
        }
    }
}

#[test]
fn the_providers_that_everybody_asks_for_are_there() {
    let catalog = Catalog::default();
    for name in "openai anthropic gemini vertex bedrock azure azure_ai cohere mistral groq deepseek xai perplexity together \
                 fireworks openrouter deepinfra cerebras sambanova nvidia nebius novita hyperbolic moonshot dashscope zai \
                 minimax volcengine hunyuan ai21 databricks huggingface github_models cloudflare snowflake friendli \
                 featherless lambda ovhcloud scaleway vercel aimlapi heroku digitalocean voyage jina ollama vllm llama_cpp \
                 sglang lm_studio tgi xinference"
        .split_whitespace()
    {
        assert!(catalog.provider(name).is_some(), "{name}");
    }
}

#[test]
fn five_lines_make_a_provider() {
    let text = "title: Example\n\
                base_urls: { openai_chat: https://api.example.com/v1 }\n\
                key_environment: [EXAMPLE_API_KEY]\n\
                models:\n  \
                  example-1: { context: 8192, prices: { input: 1, output: 2 } }\n";
    let folder = Folder::with("five", &[("example.yaml", text)]);
    let (catalog, problems) = folder.load();
    assert!(problems.is_empty(), "{problems}");
    let provider = catalog.provider("example").unwrap();
    assert_eq!(provider.credential, Credential::Bearer);
    assert_eq!(provider.otel_name(), "example");
    assert_eq!(provider.on_disconnect, OnDisconnect::Cancel);
    assert!(provider.serves(Operation::Chat) && !provider.serves(Operation::Embeddings));
    assert_eq!(provider.path(Operation::Chat), "/chat/completions");
    let url = provider.base_url(Format::OpenAiChat, &nothing, &nothing);
    assert_eq!(url, Some(Ok("https://api.example.com/v1".into())));
    assert_eq!(provider.base_url(Format::Anthropic, &nothing, &nothing), None);
    let model = provider.model("example-1").unwrap();
    assert_eq!((model.context, model.mode, &*model.input), (Some(8192), Mode::Chat, &[Modality::Text][..]));
    assert_eq!(catalog.find_model("example-1").len(), 1);
}

/// The first YAML in a source's documentation.
fn documented(source: &str) -> String {
    let block = source.split("/// ```yaml\n").nth(1).and_then(|rest| rest.split("/// ```").next()).unwrap();
    block.lines().map(|line| format!("{}\n", line.trim_start_matches("/// "))).collect()
}

#[test]
fn what_the_documentation_shows_is_accepted() {
    let provider = documented(include_str!("file.rs"));
    checked("documentation", &provider).unwrap();
    let model = documented(include_str!("model.rs"));
    checked("documentation", &format!("{provider}models:\n  {model}")).unwrap();
    let prices = documented(include_str!("price.rs"));
    let file = checked("documentation", &format!("{provider}models:\n  a:\n    {prices}")).unwrap();
    assert_eq!(file.models["a"].prices.as_ref().unwrap().tiers.len(), 1);
}

#[test]
fn a_model_may_be_served_in_fewer_formats_than_its_provider_speaks() {
    let catalog = Catalog::default();
    let formats = |provider: &str, model: &str| {
        let provider = catalog.provider(provider).unwrap();
        provider.formats(provider.model(model).as_deref()).collect::<Vec<_>>()
    };
    assert_eq!(formats("openai", "gpt-4o"), [Format::OpenAiChat, Format::OpenAiResponses]);
    assert_eq!(formats("openai", "gpt-5-pro"), [Format::OpenAiResponses]);
    assert_eq!(formats("vertex", "claude-opus-4-5"), [Format::Anthropic]);
    assert_eq!(formats("vertex", "gemini-2.5-pro"), [Format::Gemini]);
    assert_eq!(formats("openai", "gpt-of-tomorrow"), [Format::OpenAiChat, Format::OpenAiResponses]);
}

#[test]
fn a_file_of_the_same_name_replaces_a_provider_as_a_whole() {
    let text =
        "title: Mine\nbase_urls: { openai_chat: 'http://10.0.0.1:8000/v1' }\nmodels: { gpt-9: { aliases: [nine] } }";
    let folder = Folder::with("replace", &[("openai.yaml", text)]);
    let (catalog, problems) = folder.load();
    assert!(problems.is_empty(), "{problems}");
    let provider = catalog.provider("openai").unwrap();
    assert_eq!((provider.title.as_str(), provider.models().count()), ("Mine", 1));
    assert!(provider.model("gpt-4o").is_none());
    assert_eq!(provider.model("nine").unwrap().name, "gpt-9");
    assert!(catalog.find_model("gpt-4o").iter().all(|found| found.provider.name() != "openai"));
    assert_eq!(catalog.find_model("openai/nine").len(), 1);
    assert!(catalog.provider("anthropic").is_some(), "the others stay");
}

#[test]
fn a_file_that_says_what_the_binary_says_is_no_override() {
    let (name, text) = embedded::FILES[0];
    let file = format!("{name}.yaml");
    let folder = Folder::with("same", &[(&file, text)]);
    let (catalog, problems) = folder.load();
    assert!(problems.is_empty(), "{problems}");
    assert!(matches!(catalog.providers[name], Entry::Embedded { .. }));
}

#[test]
fn a_wrong_file_is_refused_with_every_problem() {
    let text = "title: Example\n\
                base_url: { openai_chat: https://api.example.com/v1 }\n\
                quirks: [max_token]\n\
                models:\n  a: { context: many, prices: { inptu: 1 } }\n";
    let folder = Folder::with("wrong", &[("example.yaml", text), ("Not A Name.yaml", "title: x"), ("empty.yaml", "")]);
    let (catalog, problems) = folder.load();
    assert!(catalog.provider("example").is_none());
    let said = problems.to_string();
    for expected in [
        "example.yaml:2: base_url: unknown key (did you mean `base_urls`?)",
        "base_urls: is missing",
        "example.yaml:3: quirks[0]: `max_token` is not one of",
        "did you mean `max_tokens`?",
        "example.yaml:5: models.a.context: must be a whole number",
        "models.a.prices.inptu: unknown key (did you mean `input`?)",
        "Not A Name.yaml: a provider's name",
        "empty.yaml",
    ] {
        assert!(said.contains(expected), "`{expected}` is not in:\n{said}");
    }
}

#[test]
fn what_does_not_fit_together_is_a_problem() {
    for (lines, expected) in [
        ("base_urls: {}", "base_urls: needs at least one URL"),
        ("base_urls: { openai_chat: 'ftp://a.example.com' }", "must begin with `https://` or `http://`"),
        ("base_urls: { openai_chat: 'https://a.example.com/' }", "must not end with `/`"),
        ("base_urls: { openai_chat: 'https://u:p@a.example.com' }", "must not hold a user name"),
        ("base_urls: { openai_chat: 'https://a.example.com?a=b' }", "must not hold `?`"),
        ("base_urls: { openai_chat: 'https://a.example.com\\\\b' }", "must be ASCII without spaces"),
        ("base_urls: { openai_chat: 'https://{a' }", "`{` is not closed"),
        ("base_urls: { openai_chat: 'https://{a}.com' }", "there is no variable named `a`"),
        ("base_urls: { openai_chat: 'https://a.com' }\nvariables: { a: {} }", "variables.a: is used nowhere"),
        ("base_urls: { openai_chat: 'https://{a}.com' }\nvariables: { a: { values: { b: c } } }", "by: is missing"),
        ("base_urls: { openai_chat: 'https://{a}.com' }\nvariables: { a: { by: b } }", "no other variable named `b`"),
        ("base_urls: { openai_chat: 'https://a.com' }\ncredential: { header: 'a b' }", "is not the name of a header"),
        ("base_urls: { openai_chat: 'https://a.com' }\nheaders: { a: \"\\u0001\" }", "is not the value of a header"),
        ("base_urls: { openai_chat: 'https://a.com' }\nkey_environment: [A-B]", "key_environment[0]"),
        ("base_urls: { openai_chat: 'https://a.com' }\nerrors: [{ kind: timeout }]", "needs a `status` or a `code`"),
        ("base_urls: { openai_chat: 'https://a.com' }\npaths: { chat: chat }", "must begin with `/`"),
        ("base_urls: { openai_chat: 'https://a.com' }\npaths: { rerank: /r }", "is not among the `operations`"),
        ("base_urls: { openai_chat: 'https://a.com' }\nprobe: { address: '10.0.0.1:80', path: / }", "of this machine"),
        ("base_urls: { openai_chat: 'https://a.com' }\nmodels: { a: { formats: [gemini] } }", "no `base_urls.gemini`"),
        ("base_urls: { openai_chat: 'https://a.com' }\nmodels: { a: { aliases: [b] }, b: {} }", "another model's name"),
        (
            "base_urls: { openai_chat: 'https://a.com' }\n\
             models: { a: { prices: { tiers: [{ above: 2 }, { above: 2 }] } } }",
            "tiers[1].above: must be more",
        ),
        ("base_urls: { openai_chat: 'https://a.com' }\nmodels: { a: { prices: { input: -1 } } }", "at least 0"),
        ("base_urls: { openai_chat: 'https://a.com' }\nmodels: { a: { prices: { input: 1e-9 } } }", "too many digits"),
    ] {
        let said = checked("x.yaml", &format!("title: X\n{lines}\n")).expect_err(lines);
        assert!(said.contains(expected), "{lines}\n`{expected}` is not in: {said}");
    }
}

#[test]
fn variables_come_from_the_configuration_the_environment_and_the_file_in_this_order() {
    let catalog = Catalog::default();
    let vertex = catalog.provider("vertex").unwrap();
    let url = |given: &dyn Fn(&str) -> Option<String>, environment: &Environment| {
        vertex.base_url(Format::Gemini, given, environment).unwrap()
    };
    let environment = |name: &str| (name == "GOOGLE_CLOUD_PROJECT").then(|| "p1".to_owned());
    let rest = "publishers/google";
    assert_eq!(
        url(&nothing, &environment).unwrap(),
        format!("https://aiplatform.googleapis.com/v1/projects/p1/locations/global/{rest}")
    );
    let location = |value: &'static str| move |name: &str| (name == "location").then(|| value.to_owned());
    assert_eq!(
        url(&location("europe-west4"), &environment).unwrap(),
        format!("https://europe-west4-aiplatform.googleapis.com/v1/projects/p1/locations/europe-west4/{rest}")
    );
    assert_eq!(
        url(&location("eu"), &environment).unwrap(),
        format!("https://aiplatform.eu.rep.googleapis.com/v1/projects/p1/locations/eu/{rest}")
    );
    assert_eq!(url(&nothing, &nothing), Err("the variable `project` has no value".into()));
    assert!(url(&location("x/../?"), &environment).unwrap_err().contains("must not hold `?`"));

    let azure = catalog.provider("azure").unwrap();
    let environment = |name: &str| (name == "AZURE_OPENAI_ENDPOINT").then(|| "https://a.openai.azure.com/".to_owned());
    let url = azure.base_url(Format::OpenAiChat, &nothing, &environment).unwrap();
    assert_eq!(url.unwrap(), "https://a.openai.azure.com/openai/v1");
}

#[test]
fn variables_in_a_circle_have_no_value() {
    let text = "title: X\nbase_urls: { openai_chat: 'https://{a}.com' }\n\
                variables: { a: { default: '{b}{b}' }, b: { default: '{a}{a}' } }";
    let provider = ProviderSpec::new("x", checked("x.yaml", text).unwrap());
    assert!(provider.base_url(Format::OpenAiChat, &nothing, &nothing).unwrap().is_err());
}

#[test]
fn a_model_is_found_by_its_name_at_makers_first_or_at_one_provider() {
    let catalog = Catalog::default();
    let found = catalog.find_model("gpt-4o");
    assert_eq!(found[0].provider.name(), "openai");
    assert!(found.windows(2).all(|pair| pair[0].provider.kind <= pair[1].provider.kind));
    let found = catalog.find_model("azure/gpt-4o");
    assert_eq!((found[0].provider.name(), found[0].model.name.as_str()), ("azure", "gpt-4o"));
    let found = catalog.find_model("openai/gpt-oss-120b");
    assert!(found.iter().any(|found| found.provider.name() == "groq"), "the whole name is a model's there");
    assert!(catalog.find_model("no-such-model").is_empty());
    assert!(catalog.find_model("nobody/gpt-4o").is_empty());
    assert!(catalog.find_model("").is_empty());
    assert!(catalog.find_model("/").is_empty());
}

#[test]
fn the_cost_of_a_call_is_known_or_unknown_or_nothing_at_all() {
    let catalog = Catalog::default();
    let used = Used::from(Usage { input: 1000, output: 100, cache_read: 400, ..Usage::default() });
    let cost = |provider: &str, model: &str| catalog.provider(provider).unwrap().cost(model, &used);
    // 600 * 2.5 + 400 * 1.25 + 100 * 10 millionths of a dollar.
    assert_eq!(cost("openai", "gpt-4o"), Cost::Known(Money(3_000_000)));
    assert_eq!(cost("openai", "gpt-of-tomorrow"), Cost::Unknown);
    assert_eq!(cost("ollama", "llama3.3"), Cost::Known(Money::ZERO), "it runs on a machine of one's own");
}

#[test]
fn errors_mean_what_the_provider_says() {
    let catalog = Catalog::default();
    let openai = catalog.provider("openai").unwrap();
    assert_eq!(openai.failure_kind(429, Some("insufficient_quota")), Some(FailureKind::QuotaExceeded));
    assert_eq!(openai.failure_kind(429, Some("rate_limit_exceeded")), None);
    assert_eq!(openai.failure_kind(429, None), None);
    let anthropic = catalog.provider("anthropic").unwrap();
    assert_eq!(anthropic.failure_kind(529, None), Some(FailureKind::Overloaded));
}

#[test]
fn quirks_are_of_the_provider_that_has_them() {
    let catalog = Catalog::default();
    assert!(catalog.provider("mistral").unwrap().quirks().has(Quirk::MaxTokens));
    assert!(!catalog.provider("openai").unwrap().quirks().has(Quirk::MaxTokens));
}

/// Most starts need the heads only, and few models: neither may be felt.
#[test]
fn heads_are_read_without_models() {
    let catalog = Catalog::default();
    let keys: HashSet<String> = catalog.providers().flat_map(|provider| provider.key_environment.clone()).collect();
    assert!(keys.contains("OPENAI_API_KEY"));
    assert!(catalog.providers().all(|provider| provider.models.is_empty() && !provider.is_decoded()));
}

#[test]
fn without_a_folder_there_are_the_embedded_ones() {
    let mut problems = Problems::default();
    let catalog = Catalog::load(Some(Path::new("/nonexistent")), &mut problems);
    assert!(problems.is_empty());
    assert_eq!(catalog.names().count(), embedded::FILES.len());
    assert!(Catalog::load(None, &mut problems).provider("openai").is_some());
}
