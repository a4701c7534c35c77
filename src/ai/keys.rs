//! The keys of one provider: which of them pays for a call, and which have to rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::credentials::sigv4::SigV4;
use crate::config::Secret;

/// A key is left alone for this long after a refusal that says no time of its own.
const RESTS: Duration = Duration::from_secs(5);
/// A key that the provider does not know will not be known a moment later.
const RESTS_UNKNOWN: Duration = Duration::from_secs(60);
/// No provider's word keeps a key from being tried again for longer.
const RESTS_AT_MOST: Duration = Duration::from_secs(600);

/// One key of a provider.
pub struct Key {
    /// What it is called in logs and metrics: its place in the configuration, never part of the key.
    pub name: Arc<str>,
    secret: Secret,
    /// Signs requests, where the provider wants that instead of being shown the key.
    signer: Option<Box<SigV4>>,
    weight: u32,
    /// Empty: for all.
    models: Box<[Box<str>]>,
    state: Arc<KeyState>,
}

/// What is remembered of a key, also over reloads.
#[derive(Debug)]
pub struct KeyState {
    start: Instant,
    /// Milliseconds after `start` until which it rests.
    rests_until: AtomicU64,
}

impl Default for KeyState {
    fn default() -> Self {
        KeyState { start: Instant::now(), rests_until: AtomicU64::new(0) }
    }
}

impl KeyState {
    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    pub fn rests(&self) -> bool {
        self.now() < self.rests_until.load(Ordering::Relaxed)
    }

    /// How long it still rests.
    fn rest(&self) -> Duration {
        Duration::from_millis(self.rests_until.load(Ordering::Relaxed).saturating_sub(self.now()))
    }
}

impl Key {
    pub fn new(name: &str, secret: Secret, weight: u32, models: &[String], state: Arc<KeyState>) -> Key {
        let models = models.iter().map(|model| model.as_str().into()).collect();
        Key { name: name.into(), secret, signer: None, weight, models, state }
    }

    /// The same key, which signs as AWS wants it for `region`. It is written `ID:SECRET`, or `ID:SECRET:TOKEN` with the token of a
    /// session.
    pub fn signing(self, region: &str) -> Result<Key, &'static str> {
        let mut parts = self.secret.expose().splitn(3, ':');
        let (Some(id), Some(secret)) = (parts.next(), parts.next().filter(|secret| !secret.is_empty())) else {
            return Err("write the id and the secret of an AWS access key with a colon between them");
        };
        let signer = SigV4 {
            access_key_id: id.to_owned(),
            secret_access_key: Secret::new(secret.to_owned()),
            session_token: parts.next().map(|token| Secret::new(token.to_owned())),
            region: region.to_owned(),
            service: "bedrock".to_owned(),
        };
        Ok(Key { signer: Some(Box::new(signer)), ..self })
    }

    pub fn signer(&self) -> Option<&SigV4> {
        self.signer.as_deref()
    }

    pub fn expose(&self) -> &str {
        self.secret.expose()
    }

    pub fn state(&self) -> &Arc<KeyState> {
        &self.state
    }

    fn is_for(&self, model: &str) -> bool {
        self.weight > 0 && (self.models.is_empty() || self.models.iter().any(|own| **own == *model))
    }

    /// The provider has refused the key, by this status; it may have said for how long.
    pub fn refused(&self, status: u16, retry_after: Option<Duration>) {
        let usual = if status == 429 { RESTS } else { RESTS_UNKNOWN };
        let rest = retry_after.unwrap_or(usual).min(RESTS_AT_MOST);
        self.state.rests_until.fetch_max(self.state.now() + rest.as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether an answer of this status is about the key.
    pub fn concerns(status: u16) -> bool {
        matches!(status, 401 | 402 | 403 | 429)
    }
}

/// When the first of the keys for a model has rested; `None` if it has none.
pub fn first_rested(keys: &[Key], model: &str) -> Option<Duration> {
    keys.iter().filter(|key| key.is_for(model)).map(|key| key.state.rest()).min()
}

/// Chooses a key for a model by weight, among those that do not rest and are not in `tried`. `None` if there is none.
pub fn choose<'k>(keys: &'k [Key], model: &str, tried: &[Arc<str>]) -> Option<&'k Key> {
    let usable = || keys.iter().filter(|key| key.is_for(model) && !key.state.rests() && !tried.contains(&key.name));
    let total: u32 = usable().map(|key| key.weight).sum();
    let mut left = fastrand::u32(..total.max(1));
    usable().find(|key| {
        let chosen = left < key.weight;
        left = left.wrapping_sub(key.weight);
        chosen
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, weight: u32, models: &[&str]) -> Key {
        let models: Vec<String> = models.iter().map(|model| (*model).to_owned()).collect();
        Key::new(name, Secret::new(format!("sk-{name}")), weight, &models, Arc::default())
    }

    #[test]
    fn keys_share_by_weight_and_models() {
        let keys = [key("a", 3, &[]), key("b", 1, &[]), key("c", 0, &[]), key("d", 100, &["other"])];
        let mut chosen = [0; 2];
        for _ in 0..4000 {
            chosen[usize::from(&*choose(&keys, "m", &[]).unwrap().name == "b")] += 1;
        }
        assert!((2800..3200).contains(&chosen[0]), "{chosen:?}");
        assert_eq!(&*choose(&keys, "m", &["a".into()]).unwrap().name, "b");
        assert!(choose(&keys, "m", &["a".into(), "b".into()]).is_none());
    }

    #[test]
    fn a_refused_key_rests_and_comes_back() {
        let keys = [key("a", 1, &[])];
        keys[0].refused(429, Some(Duration::from_millis(30)));
        assert!(choose(&keys, "m", &[]).is_none());
        let begun = Instant::now();
        while choose(&keys, "m", &[]).is_none() {
            assert!(begun.elapsed() < Duration::from_secs(5));
            std::thread::yield_now();
        }
        assert!(begun.elapsed() >= Duration::from_millis(20));
    }
}
