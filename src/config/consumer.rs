//! Who calls: consumers with their credentials and subscriptions, plans, and how an identity is told to origins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::budget::Budget;
use super::filter_entry::FilterEntry;
use super::reference::SecretRef;
use super::units::{Duration, QuotaAmount, Rates, Share, Timestamp};

/// An application that calls.
///
/// ```yaml
/// consumers:
///   mobile:
///     team: apps
///     labels: { tier: paying }
///     credentials:
///       - api_key: { hash: "hmac-sha256:…", expires: 2027-06-30 }
///     subscriptions: { orders: gold }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Consumer {
    /// The team it belongs to. Limits and access lists may go by team.
    pub team: Option<String>,
    /// Words about it that access lists, expressions and logs may use.
    pub labels: BTreeMap<String, String>,
    /// What it may do wherever it calls, whichever credential it presents; tokens may add to it.
    pub scopes: Vec<String>,
    /// What it proves its identity with. Any number: two keys live side by side while one replaces the other.
    pub credentials: Vec<Credential>,
    /// The services it may call that are for subscribers: by the service's name, the plan, or plan and state.
    pub subscriptions: BTreeMap<String, Subscription>,
    /// Filters for its calls, wherever it calls, once a filter has identified it. Each replaces those of the same name on
    /// the gateway, services, routes and its plan. Only filters that come after authentication can stand here.
    pub filters: Vec<FilterEntry>,
    /// What it may use of models, whichever service it calls.
    pub budgets: Vec<Budget>,
}

/// One proof of identity; the filter of the same name accepts it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Credential {
    ApiKey(ApiKey),
    BasicAuth(BasicAuth),
    Jwt(JwtSubject),
    Hmac(Hmac),
    Mtls(Mtls),
}

/// A key, as `headgate key create` made it or `headgate key hash` hashed it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// The key's hash: `hmac-sha256:` and 64 hexadecimal digits, keyed with `identity.pepper`.
    pub hash: String,
    /// From then on the key is refused. Default: never.
    pub expires: Option<Timestamp>,
}

/// A name and a password.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BasicAuth {
    /// Default: the consumer's name.
    pub username: Option<String>,
    /// The password's hash in the PHC form, as `headgate password hash` makes it: `$argon2id$v=19$…`.
    pub hash: String,
}

/// The subject of tokens that are this consumer's.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtSubject {
    /// The value of the claim that the filter reads consumers from, `sub` by default.
    #[schemars(length(min = 1))]
    pub subject: String,
    /// Only tokens of this issuer (`iss`). Default: of any issuer that the filter accepts.
    pub issuer: Option<String>,
}

/// A key that signs requests (RFC 9421): a shared secret, or a pair of which the gateway knows the public half.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hmac {
    /// The `keyid` of its signatures.
    #[schemars(length(min = 1))]
    pub key_id: String,
    /// The shared secret of `hmac-sha256`, at least 32 bytes.
    pub secret: Option<SecretRef>,
    /// The public key in PEM, which decides the algorithm: `ed25519`, `ecdsa-p256-sha256`, `ecdsa-p384-sha384` or
    /// `rsa-pss-sha512`.
    pub public_key: Option<SecretRef>,
}

/// A client certificate that the listener has verified: whatever is written has to agree.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mtls {
    /// The subject's distinguished name (RFC 4514), such as `CN=mobile,O=Example`.
    pub subject: Option<String>,
    /// One of the subject alternative names: a DNS name, an email address, a URI or an IP address.
    pub san: Option<String>,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: Option<String>,
}

/// A consumer's right to call a service: the name of a plan, or more about it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Subscription {
    /// Approved, under this plan.
    Plan(String),
    Full(FullSubscription),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FullSubscription {
    /// The plan of this name.
    pub plan: String,
    /// Where it stands; only an approved one lets calls through.
    #[serde(default)]
    pub state: SubscriptionState,
}

/// The life of a subscription.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionState {
    Requested,
    #[default]
    Approved,
    Refused,
    Revoked,
}

impl Subscription {
    pub fn plan(&self) -> &str {
        match self {
            Subscription::Plan(plan) => plan,
            Subscription::Full(full) => &full.plan,
        }
    }

    pub fn state(&self) -> SubscriptionState {
        match self {
            Subscription::Plan(_) => SubscriptionState::Approved,
            Subscription::Full(full) => full.state,
        }
    }
}

/// What a subscription allows, counted per consumer and service.
///
/// ```yaml
/// plans:
///   gold: { rate: [200/s, 5000/min], quota: 1000000/month, time_zone: Europe/Berlin }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// Requests in a time, such as `200/s`, or several that hold together.
    pub rate: Option<Rates>,
    /// Requests in a calendar period, such as `1000000/month`.
    pub quota: Option<QuotaAmount>,
    /// From this share of the quota on, callers are warned.
    pub soft: Option<Share>,
    /// Where the quota's periods begin and end: a name of the IANA database. Default: UTC.
    pub time_zone: Option<String>,
    /// Filters for the calls of its subscribers to the service they have subscribed to. Each replaces those of the same
    /// name on the gateway, services and routes. Only filters that come after authentication can stand here. Limits among
    /// them count over all services, unlike `rate` and `quota`.
    pub filters: Vec<FilterEntry>,
    /// What may be used of models.
    pub budgets: Vec<Budget>,
}

/// Where what was used of quotas is kept.
///
/// ```yaml
/// usage: { file: /var/lib/headgate/usage.db, interval: 1s }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Usage {
    /// A SQLite database, made if there is none; in a fleet, only if there is a place for it. Default: `usage.db` in
    /// `$STATE_DIRECTORY`, which systemd sets, else beside the configuration.
    pub file: Option<PathBuf>,
    /// How often what was used is written: the most that a crash can lose.
    pub interval: Duration,
    /// How long the use of models is kept by consumer, model and day, for `/usage` of the admin listener.
    pub keep: Duration,
}

impl Default for Usage {
    fn default() -> Self {
        Usage { file: None, interval: Duration::from_secs(1), keep: Duration::from_secs(400 * 86_400) }
    }
}

impl Usage {
    /// The file, for a configuration that lies in `folder`.
    pub fn file(&self, folder: &Path) -> PathBuf {
        let state = std::env::var_os("STATE_DIRECTORY").filter(|state| !state.is_empty());
        match (&self.file, state) {
            (Some(file), _) => folder.join(file),
            (None, Some(state)) => Path::new(&state).join("usage.db"),
            (None, None) => folder.join("usage.db"),
        }
    }
}

/// How callers are known, and what origins are told of them.
///
/// ```yaml
/// identity:
///   pepper: file:pepper
///   headers: { x-consumer-username: "${consumer}", x-user-email: "${claim.email}" }
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// The secret that keys the hashes of API keys, so that a stolen configuration is of no use to guess them.
    /// `headgate key create` makes the file if there is none. Default: the file `pepper` beside the configuration.
    pub pepper: SecretRef,
    /// Headers that tell origins who calls: each a text with variables, left out when it is empty. Clients can never
    /// send them. Default: `x-consumer-username`, `x-consumer-team`, `x-credential-identifier` and, for the anonymous,
    /// `x-anonymous-consumer`.
    pub headers: BTreeMap<String, String>,
}

impl Default for Identity {
    fn default() -> Self {
        let headers = [
            ("x-consumer-username", "${consumer}"),
            ("x-consumer-team", "${consumer.team}"),
            ("x-credential-identifier", "${credential}"),
            ("x-anonymous-consumer", "${anonymous}"),
        ];
        Identity {
            pepper: SecretRef::File("pepper".into()),
            headers: headers.map(|(name, text)| (name.to_owned(), text.to_owned())).into(),
        }
    }
}
