//! Every consumer of a configuration, and what each is found by.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::path::Path;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::api_key::{Hash, Pepper};
use super::certificate::{CertificateMatch, Certificates, ClientCertificate};
use super::signing_key::SigningKey;
use super::{Consumer, PlanId, Profile, ServiceId, Subscription, Team};
use crate::config::consumer::{self as written, Credential};
use crate::config::{Config, Environment, Problems};

/// Every consumer, by name and by credential. Immutable.
#[derive(Default)]
pub struct Directory {
    consumers: HashMap<Box<str>, Arc<Consumer>, foldhash::fast::RandomState>,
    keys: Keys,
    pepper: Option<Pepper>,
    passwords: HashMap<Box<str>, BasicAuthEntry>,
    subjects: HashMap<Box<str>, Vec<Subject>>,
    signers: HashMap<Box<str>, HmacEntry>,
    certificates: Certificates,
    plans: Box<[Box<str>]>,
    services: Box<[Box<str>]>,
}

/// Who an API key belongs to.
pub struct ApiKeyMatch<'d> {
    pub consumer: &'d Arc<Consumer>,
    pub hash: Hash,
    /// Seconds since 1970 from which on the key is refused.
    pub expires: i64,
}

/// A user name's consumer, and the hash of its password.
pub struct BasicAuthEntry {
    pub consumer: Arc<Consumer>,
    /// In the PHC form.
    pub hash: Arc<str>,
}

/// The issuer of a token's subject, if only its tokens count, and whose they are.
type Subject = (Option<Box<str>>, Arc<Consumer>);

/// A signing key and its consumer.
pub struct HmacEntry {
    pub consumer: Arc<Consumer>,
    pub key: SigningKey,
}

impl Directory {
    /// Compiles the consumers of a configuration; reports every problem and leaves out what has one.
    pub fn compile(config: &Config, folder: &Path, environment: &Environment, problems: &mut Problems) -> Directory {
        let services = config.services.keys().map(String::as_str).zip((0..).map(ServiceId)).collect();
        let plans = config.plans.keys().map(String::as_str).zip((0..).map(PlanId)).collect();
        let (teams, profiles) = (BTreeMap::new(), BTreeSet::new());
        Compiler { config, folder, environment, problems, services, plans, teams, profiles }.compile()
    }

    pub fn consumer(&self, name: &str) -> Option<&Arc<Consumer>> {
        self.consumers.get(name)
    }

    /// In no order.
    pub fn consumers(&self) -> impl Iterator<Item = &Arc<Consumer>> {
        self.consumers.values()
    }

    /// Finds a key's consumer. Unknown and known keys take the same work: one keyed hash, one look into the table.
    pub fn api_key(&self, key: &[u8]) -> Option<ApiKeyMatch<'_>> {
        let hash = self.pepper.as_ref()?.hash(key);
        let (consumer, expires) = self.keys.get(&hash)?;
        Some(ApiKeyMatch { consumer, hash, expires })
    }

    pub fn basic_auth(&self, username: &str) -> Option<&BasicAuthEntry> {
        self.passwords.get(username)
    }

    /// The hashes of all passwords, in no order.
    pub fn password_hashes(&self) -> impl Iterator<Item = &Arc<str>> {
        self.passwords.values().map(|entry| &entry.hash)
    }

    /// The consumer of a token's subject. One that names the issuer goes before one that takes any.
    pub fn jwt_subject(&self, issuer: &str, subject: &str) -> Option<&Arc<Consumer>> {
        let entries = self.subjects.get(subject)?;
        let exact = entries.iter().find(|(known, _)| known.as_deref() == Some(issuer));
        exact.or_else(|| entries.iter().find(|(known, _)| known.is_none())).map(|(_, consumer)| consumer)
    }

    pub fn hmac(&self, key_id: &str) -> Option<&HmacEntry> {
        self.signers.get(key_id)
    }

    /// The consumer of a verified certificate.
    pub fn certificate(&self, certificate: &ClientCertificate) -> Option<&Arc<Consumer>> {
        self.certificates.find(certificate)
    }

    pub fn plan(&self, plan: PlanId) -> &str {
        self.plans.get(plan.0 as usize).map_or("", |name| name)
    }

    pub fn service(&self, service: ServiceId) -> &str {
        self.services.get(service.0 as usize).map_or("", |name| name)
    }

    pub fn service_id(&self, name: &str) -> Option<ServiceId> {
        let at = self.services.binary_search_by(|known| (**known).cmp(name)).ok()?;
        Some(ServiceId(at as u32))
    }
}

/// API keys by the bits of their hashes, which are as good as random: open addressing, at most half full. The slots are
/// apart from the keys, so that those of a hundred thousand stay in a cache, and a key is one line of it.
#[derive(Default)]
struct Keys {
    /// One more than a key's place; 0 is free.
    slots: Box<[u32]>,
    keys: Box<[Key]>,
}

#[repr(align(64))]
struct Key {
    hash: Hash,
    expires: i64,
    consumer: Arc<Consumer>,
}

impl Keys {
    fn new(keys: Vec<Key>) -> Keys {
        let size = (keys.len() * 2).next_power_of_two();
        let mut slots: Box<[u32]> = vec![0; size].into();
        for (key, place) in keys.iter().zip(1..) {
            let mut at = key.hash.bits() as usize & (size - 1);
            while slots[at] != 0 {
                at = (at + 1) & (size - 1);
            }
            slots[at] = place;
        }
        Keys { slots, keys: keys.into() }
    }

    fn get(&self, hash: &Hash) -> Option<(&Arc<Consumer>, i64)> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = hash.bits() as usize & mask;
        // A keyed hash tells nothing of the key, so comparing may end at the first difference.
        while let Some(place) = self.slots[at].checked_sub(1) {
            let key = self.keys.get(place as usize)?;
            if key.hash == *hash {
                return Some((&key.consumer, key.expires));
            }
            at = (at + 1) & mask;
        }
        None
    }
}

struct Compiler<'a> {
    config: &'a Config,
    folder: &'a Path,
    environment: &'a Environment<'a>,
    problems: &'a mut Problems,
    services: HashMap<&'a str, ServiceId>,
    plans: HashMap<&'a str, PlanId>,
    teams: BTreeMap<&'a str, Arc<Team>>,
    profiles: BTreeSet<Arc<Profile>>,
}

impl<'a> Compiler<'a> {
    fn compile(mut self) -> Directory {
        let config = self.config;
        let mut directory = Directory {
            plans: config.plans.keys().map(|name| name.as_str().into()).collect(),
            services: config.services.keys().map(|name| name.as_str().into()).collect(),
            ..Directory::default()
        };
        directory.consumers.reserve(config.consumers.len());
        let mut keys: Vec<Key> = Vec::new();
        for (name, consumer) in &config.consumers {
            let path = format!("consumers.{name}");
            let compiled = Arc::new(self.consumer(name, consumer, &path));
            for (i, credential) in consumer.credentials.iter().enumerate() {
                let path = format!("{path}.credentials[{i}]");
                self.credential(credential, &compiled, &mut directory, &mut keys, &path);
            }
            directory.consumers.insert(name.as_str().into(), compiled);
        }
        self.no_key_twice(&mut keys);
        if !keys.is_empty() {
            let pepper =
                config.identity.pepper.resolve(self.folder, self.environment, "identity.pepper", self.problems);
            directory.pepper = pepper.as_ref().map(Pepper::new);
        }
        directory.keys = Keys::new(keys);
        directory
    }

    fn consumer(&mut self, name: &str, consumer: &'a written::Consumer, path: &str) -> Consumer {
        let team = consumer.team.as_deref().map(|team| {
            let make = || Arc::new(Team { name: team.into(), key: limit_key(&format!("team:{team}")) });
            self.teams.entry(team).or_insert_with(make).clone()
        });
        let profile = Profile {
            labels: consumer.labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            scopes: consumer.scopes.clone(),
        };
        let profile = self.profiles.get(&profile).cloned().unwrap_or_else(|| {
            let profile = Arc::new(profile);
            self.profiles.insert(profile.clone());
            profile
        });
        let subscriptions = consumer.subscriptions.iter().filter_map(|(service, subscription)| {
            self.subscription(service, subscription, &format!("{path}.subscriptions.{service}"))
        });
        let subscriptions = subscriptions.collect();
        Consumer { name: name.into(), key: limit_key(&format!("consumer:{name}")), team, profile, subscriptions }
    }

    fn subscription(&mut self, service: &str, written: &written::Subscription, path: &str) -> Option<Subscription> {
        let service_id = self.services.get(service).copied();
        if service_id.is_none() {
            self.problems.unknown(path, "service", service, self.config.services.keys().map(String::as_str));
        }
        let plan = self.plans.get(written.plan()).copied();
        if plan.is_none() {
            self.problems.unknown(path, "plan", written.plan(), self.config.plans.keys().map(String::as_str));
        }
        Some(Subscription { service: service_id?, plan: plan?, state: written.state() })
    }

    fn credential(
        &mut self,
        credential: &Credential,
        consumer: &Arc<Consumer>,
        directory: &mut Directory,
        keys: &mut Vec<Key>,
        path: &str,
    ) {
        match credential {
            Credential::ApiKey(key) => {
                let Some(hash) = Hash::parse(&key.hash) else {
                    let message = "this is not a hash of `headgate key create` or `headgate key hash`";
                    return self.problems.add(format!("{path}.api_key.hash"), message);
                };
                let expires = key.expires.map_or(i64::MAX, |at| at.0.as_second());
                keys.push(Key { hash, expires, consumer: consumer.clone() });
            }
            Credential::BasicAuth(basic) => {
                let username = basic.username.as_deref().unwrap_or(consumer.name());
                // RFC 7617, section 2: the first colon ends the name.
                if username.is_empty() || username.contains(':') {
                    self.problems
                        .add(format!("{path}.basic_auth.username"), "a user name is not empty and has no colon");
                }
                if let Err(message) = check_password_hash(&basic.hash) {
                    self.problems.add(format!("{path}.basic_auth.hash"), message);
                }
                let entry = BasicAuthEntry { consumer: consumer.clone(), hash: basic.hash.as_str().into() };
                if let Some(other) = directory.passwords.insert(username.into(), entry) {
                    let message = format!("`{}` has the user name `{username}` too", other.consumer.name());
                    self.problems.add(format!("{path}.basic_auth"), message);
                }
            }
            Credential::Jwt(jwt) => {
                let entries = directory.subjects.entry(jwt.subject.as_str().into()).or_default();
                let issuer = jwt.issuer.as_deref();
                if let Some((_, other)) = entries.iter().find(|(known, _)| known.as_deref() == issuer) {
                    let message = format!("`{}` has this subject too", other.name());
                    self.problems.add(format!("{path}.jwt.subject"), message);
                }
                entries.push((issuer.map(Into::into), consumer.clone()));
            }
            Credential::Hmac(hmac) => {
                let Some(key) = self.signing_key(hmac, &format!("{path}.hmac")) else { return };
                let entry = HmacEntry { consumer: consumer.clone(), key };
                if let Some(other) = directory.signers.insert(hmac.key_id.as_str().into(), entry) {
                    let message = format!("`{}` has this key id too", other.consumer.name());
                    self.problems.add(format!("{path}.hmac.key_id"), message);
                }
            }
            Credential::Mtls(mtls) => match CertificateMatch::compile(mtls) {
                Ok(wanted) => {
                    if let Some(other) = directory.certificates.add(wanted, consumer) {
                        let message = format!("`{}` is known by the same certificates", other.name());
                        self.problems.add(format!("{path}.mtls"), message);
                    }
                }
                Err(message) => self.problems.add(format!("{path}.mtls"), message),
            },
        }
    }

    fn signing_key(&mut self, hmac: &written::Hmac, path: &str) -> Option<SigningKey> {
        let (place, reference) = match (&hmac.secret, &hmac.public_key) {
            (Some(secret), None) => (format!("{path}.secret"), secret),
            (None, Some(key)) => (format!("{path}.public_key"), key),
            _ => {
                self.problems.add(path, "write either `secret` or `public_key`");
                return None;
            }
        };
        let text = reference.resolve(self.folder, self.environment, &place, self.problems)?;
        let key = if hmac.secret.is_some() { SigningKey::secret(&text) } else { SigningKey::public(text.expose()) };
        key.map_err(|message| self.problems.add(place, message)).ok()
    }

    /// One key cannot stand for two callers, nor be revoked for one while it lives on at the other.
    fn no_key_twice(&mut self, keys: &mut Vec<Key>) {
        keys.sort_by_key(|key| key.hash);
        for pair in keys.windows(2).filter(|pair| pair[0].hash == pair[1].hash) {
            let (first, second) = (pair[0].consumer.name(), pair[1].consumer.name());
            self.problems.add(format!("consumers.{second}.credentials"), format!("`{first}` has the same API key"));
        }
        keys.dedup_by(|a, b| a.hash == b.hash);
    }
}

/// The most that one password may cost to verify, in KiB and in KiB written: a hash from elsewhere must not take what a
/// machine that serves requests cannot give. OWASP recommends 19 MiB in two passes.
const MOST_MEMORY: u32 = 256 << 10;
const MOST_WORK: u64 = 1 << 20;

/// What is written in a hash's place may be the password itself: no message repeats it.
fn check_password_hash(text: &str) -> Result<(), &'static str> {
    let hash = argon2::PasswordHash::new(text).ok();
    let hash = hash.filter(|hash| hash.algorithm.as_str().starts_with("argon2") && hash.hash.is_some());
    let parameters = hash.as_ref().and_then(|hash| argon2::Params::try_from(hash).ok());
    let Some(parameters) = parameters else {
        return Err("this is not an argon2 hash; `headgate password hash` makes one");
    };
    let work = u64::from(parameters.m_cost()) * u64::from(parameters.t_cost());
    if parameters.m_cost() > MOST_MEMORY || work > MOST_WORK || parameters.p_cost() > 16 {
        return Err(
            "verifying this hash would take more than 256 MiB (m), 1 GiB in all passes (m times t) or 16 lanes (p)",
        );
    }
    Ok(())
}

/// Stands for a caller, in words such as `consumer:mobile`, in the keys of limits. The same in every snapshot of a
/// process, so that counters go on by name; nobody who calls can choose it.
pub fn limit_key(words: &str) -> u64 {
    FixedState::with_seed(process_seed()).hash_one(words)
}

fn process_seed() -> u64 {
    static SEED: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *SEED.get_or_init(|| fastrand::u64(..))
}
