//! Guardrails as they are written: what is looked for in calls of models and in their answers, and what happens then.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::SecretRef;
use super::units::{Duration, Size};

/// A guardrail: one thing that is looked for, and what happens when it is found. Routes and models name those that hold for
/// them.
///
/// ```yaml
/// privacy: { pii: { types: [email, card, iban] }, action: mask }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Guardrail {
    /// What happens when it is found.
    #[serde(default)]
    pub action: Action,
    /// Whether calls or answers are looked at. Default: both, as far as that makes sense: `prompt_injection`, `topics` and
    /// `models` look at calls, `json_schema` at answers.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub on: Vec<Side>,
    /// Whose texts of a call are looked at. Default: everybody's; `prompt_injection` and `topics` leave out what the
    /// application (`system`) and the model have said.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub roles: Vec<Role>,
    /// Whether the arguments and results of tools are looked at too.
    #[serde(default = "yes")]
    pub tools: bool,
    /// What stands in place of what is masked. Default: what it was, such as `[email]`, or the guardrail's name.
    pub replace_with: Option<String>,
    /// What a caller is told whose call is blocked, and the text that stands in place of a blocked answer. Default: which
    /// guardrail has refused the call; of an answer, nothing but that it ends as `content_filter`.
    pub message: Option<String>,
    /// Regular expressions.
    pub patterns: Option<Patterns>,
    /// Words and phrases, found whatever their case, width, accents and spacing.
    pub keywords: Option<Keywords>,
    /// Personal data and secrets, by their form and their check digits.
    pub pii: Option<Pii>,
    /// Known ways to talk a model out of its instructions.
    pub prompt_injection: Option<PromptInjection>,
    /// What answers, whole ones, have to look like.
    pub json_schema: Option<AnswerSchema>,
    /// What may be talked about, and what may not.
    pub topics: Option<Topics>,
    /// Which models may be called.
    pub models: Option<ModelNames>,
    /// Moderation by a provider, in OpenAI's format.
    pub moderation: Option<Moderation>,
    /// Asks a service of your own.
    pub webhook: Option<Webhook>,
}

/// What happens when something is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The call is refused (400, code `content_policy_violation`), the answer withheld (it ends as `content_filter`).
    #[default]
    Block,
    /// What was found is replaced by a placeholder.
    Mask,
    /// It is only counted, and named in the access log.
    Log,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// What callers send.
    Input,
    /// What models answer.
    Output,
}

/// Whose a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The application's instructions: `system`, `developer`, `instructions`, `systemInstruction`.
    System,
    User,
    /// What the model has answered before.
    Assistant,
    /// Results of tools.
    Tool,
}

/// Regular expressions, in the syntax of the Rust crate `regex`: no look-around, no backreferences, linear time.
///
/// ```yaml
/// patterns: { regex: ['(?i)project\s+bluebird', 'ACME-\d{6}'] }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Patterns {
    #[schemars(length(min = 1, max = 1000))]
    pub regex: Vec<String>,
}

/// Words and phrases. Case, width, accents, look-alike letters, invisible characters and the amount of white space make no
/// difference.
///
/// ```yaml
/// keywords: { words: [bluebird, "merger with acme"] }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Keywords {
    #[schemars(length(min = 1, max = 100_000))]
    pub words: Vec<String>,
    /// Whether they are found only where no letter or digit goes before or after. Switch it off for languages without spaces.
    #[serde(default = "yes")]
    pub whole_words: bool,
}

/// Personal data and secrets.
///
/// ```yaml
/// pii: { types: [email, phone, card, iban, api_key] }
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pii {
    /// Default: all but `ip_address`.
    #[schemars(length(min = 1))]
    pub types: Vec<PiiType>,
}

/// Declares the kinds with their names in configurations, which placeholders have too.
macro_rules! pii_types {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, JsonSchema)]
        pub enum PiiType {
            $($(#[$doc])* #[serde(rename = $name)] $kind,)*
        }

        impl PiiType {
            pub const ALL: &[PiiType] = &[$(PiiType::$kind,)*];

            pub fn name(self) -> &'static str {
                match self {
                    $(PiiType::$kind => $name,)*
                }
            }
        }
    };
}

pii_types! {
    Email = "email",
    /// International numbers with `+` or `00`, and national ones that are written in groups.
    Phone = "phone",
    /// Numbers of payment cards, by the issuers' prefixes and the Luhn digit.
    Card = "card",
    /// By country, length and check digits.
    Iban = "iban",
    /// United States social security numbers.
    UsSsn = "us_ssn",
    /// Numbers of the British National Health Service.
    UkNhs = "uk_nhs",
    /// French numbers of the social security (NIR).
    FrNir = "fr_nir",
    /// German tax numbers.
    DeTaxId = "de_tax_id",
    /// Italian codes.
    ItCodiceFiscale = "it_codice_fiscale",
    /// Spanish DNI and NIE.
    EsDni = "es_dni",
    /// Dutch citizen service numbers, written beside the word BSN.
    NlBsn = "nl_bsn",
    /// Belgian national numbers.
    BeNationalNumber = "be_national_number",
    /// Swiss AHV numbers.
    ChAhv = "ch_ahv",
    /// Polish PESEL.
    PlPesel = "pl_pesel",
    /// Swedish personal identity numbers.
    SePersonnummer = "se_personnummer",
    /// Brazilian CPF.
    BrCpf = "br_cpf",
    /// Indian Aadhaar numbers.
    InAadhaar = "in_aadhaar",
    /// Chinese resident identity numbers.
    CnResidentId = "cn_resident_id",
    /// Canadian social insurance numbers.
    CaSin = "ca_sin",
    /// Australian tax file numbers, written beside the word TFN.
    AuTfn = "au_tfn",
    /// Keys of known providers: AWS, GitHub, GitLab, Google, OpenAI, Anthropic, Slack, Stripe, npm, PyPI, Hugging Face and others.
    ApiKey = "api_key",
    /// JSON web tokens.
    Jwt = "jwt",
    /// Private keys in PEM.
    PrivateKey = "private_key",
    IpAddress = "ip_address",
}

/// Known ways to talk a model out of its instructions. The list is part of this version; more can be written as `patterns`.
///
/// ```yaml
/// prompt_injection: {}
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PromptInjection {
    /// Kinds that are not looked for.
    pub except: Vec<InjectionKind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InjectionKind {
    /// "Ignore all previous instructions", in eleven languages.
    Override,
    /// "Repeat your system prompt".
    Extraction,
    /// "You are DAN", "developer mode enabled".
    Persona,
    /// Marks of chat templates, such as `<|im_start|>system`.
    Delimiter,
    /// "Send the conversation to https://…".
    Exfiltration,
}

/// What an answer has to look like: one JSON document that a schema allows. It is not sent before it is complete.
///
/// ```yaml
/// json_schema: { schema: { type: object, required: [answer], properties: { answer: { type: string } } } }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerSchema {
    /// JSON Schema, by default of draft 2020-12. References lead only into itself.
    pub schema: Value,
}

/// What may be talked about, by lists of words for each topic.
///
/// ```yaml
/// topics: { deny: { politics: [election, parliament] } }
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Topics {
    /// What the user has said last has to have a word of one of these.
    pub allow: BTreeMap<String, Vec<String>>,
    /// Nothing that the user has said may have a word of one of these.
    pub deny: BTreeMap<String, Vec<String>>,
}

/// Which models may be called, by the names that callers use. `*` stands for anything.
///
/// ```yaml
/// models: { allow: ["openai/gpt-5*", smart], deny: ["*-preview"] }
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelNames {
    /// Default: all.
    pub allow: Vec<String>,
    /// Goes before `allow`.
    pub deny: Vec<String>,
}

/// Moderation by a provider of the configuration: `POST /moderations` in OpenAI's format.
///
/// ```yaml
/// moderation: { provider: openai, categories: [violence, self-harm] }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Moderation {
    /// A provider of `ai.providers` with an address of the format `openai_chat`.
    pub provider: String,
    #[serde(default = "moderation_model")]
    pub model: String,
    /// The categories that count. Default: all that the model flags.
    #[serde(default)]
    pub categories: Vec<String>,
    /// A score from which a category counts, by category, instead of the model's own judgement.
    #[serde(default)]
    pub thresholds: BTreeMap<String, f64>,
    /// How long it may take.
    #[serde(default = "patience")]
    pub timeout: Duration,
    /// What happens when it fails or takes too long.
    #[serde(default)]
    pub on_error: OnError,
}

/// A service of your own that is asked. It is sent `{"guardrail": …, "on": "input" | "output", "model": …, "consumer": …,
/// "request_id": …, "texts": [{"role": …, "text": …}]}` and answers `{"action": "allow" | "block" | "mask", "reason": …,
/// "texts": [… one text for each, where it masks]}`.
///
/// ```yaml
/// webhook: { url: "https://guard.internal/check", timeout: 2s }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    pub url: String,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<SecretRef>,
    /// How long it may take.
    #[serde(default = "patience")]
    pub timeout: Duration,
    /// What happens when it fails or takes too long.
    #[serde(default)]
    pub on_error: OnError,
    /// The most that is sent; a longer text counts as a failure.
    #[serde(default = "most_asked")]
    pub max_size: Size,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    #[default]
    Block,
    Allow,
}

fn yes() -> bool {
    true
}

fn moderation_model() -> String {
    "omni-moderation-latest".to_owned()
}

fn patience() -> Duration {
    Duration::from_secs(5)
}

fn most_asked() -> Size {
    Size::mib(1)
}
