//! Who calls: consumers, what they are found by, and the identity of one request.
//!
//! [`Directory`] is compiled from a configuration and never changes: a revoked key is gone with the next published
//! snapshot.

pub mod api_key;
pub mod certificate;
mod claims;
mod directory;
pub mod signing_key;

use std::fmt;
use std::sync::Arc;

use http::HeaderValue;
use smallvec::SmallVec;

pub use claims::Claims;
pub use directory::{ApiKeyMatch, BasicAuthEntry, Directory, HmacEntry, limit_key};

use crate::config::consumer::SubscriptionState;

/// An application that calls, compiled. There may be a hundred thousand: what many have alike they share.
pub struct Consumer {
    name: Box<str>,
    /// Stands for the consumer in the keys of limits, as long as the process lives.
    pub key: u64,
    pub team: Option<Arc<Team>>,
    pub profile: Arc<Profile>,
    /// In no order: there are few, and most have one.
    subscriptions: SmallVec<[Subscription; 1]>,
}

/// A team's name, and what stands for it in the keys of limits.
#[derive(Debug, PartialEq, Eq)]
pub struct Team {
    pub name: Box<str>,
    pub key: u64,
}

/// What many consumers have in common.
#[derive(Debug, Default, PartialEq, Eq, Hash, Clone, PartialOrd, Ord)]
pub struct Profile {
    /// Sorted by name.
    pub labels: Vec<(String, String)>,
    pub scopes: Vec<String>,
}

/// A consumer's right to call a service under a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscription {
    pub service: ServiceId,
    pub plan: PlanId,
    pub state: SubscriptionState,
}

/// A service by its place among the services of its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u32);

/// A plan by its place among the plans of its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlanId(pub u32);

impl Consumer {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name as the value of a header. A copy: a value that is shared would be counted in a place of its own, which no
    /// cache holds for a hundred thousand.
    pub fn name_value(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.name).ok()
    }

    /// The subscription to a service, whatever its state.
    pub fn subscription(&self, service: ServiceId) -> Option<&Subscription> {
        self.subscriptions.iter().find(|subscription| subscription.service == service)
    }

    /// The plan of the subscription to a service, if it is approved.
    pub fn approved_plan(&self, service: ServiceId) -> Option<PlanId> {
        let subscription = self.subscription(service)?;
        (subscription.state == SubscriptionState::Approved).then_some(subscription.plan)
    }

    pub fn subscriptions(&self) -> &[Subscription] {
        &self.subscriptions
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.profile.labels.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Consumer({})", self.name())
    }
}

/// Who one request is from, as the filters that authenticate have found it.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// `None` if the credentials are good and belong to no consumer: a token of a user.
    pub consumer: Option<Arc<Consumer>>,
    pub credential: Credential,
    /// What a token or an authority says of the caller.
    pub claims: Option<Arc<Claims>>,
    /// No credentials were presented, and the route lets such callers in.
    pub anonymous: bool,
}

impl Identity {
    pub fn of(consumer: Arc<Consumer>, credential: Credential) -> Self {
        Identity { consumer: Some(consumer), credential, ..Identity::default() }
    }

    /// Whether the caller has a scope, of its own or by its token.
    pub fn has_scope(&self, scope: &str) -> bool {
        let of_consumer = self.consumer.as_ref().is_some_and(|c| c.profile.scopes.iter().any(|own| own == scope));
        of_consumer || self.claims.as_ref().is_some_and(|claims| claims.scopes().any(|given| given == scope))
    }
}

/// Which credential was presented, without any of its secret: `api_key:5f0a93c2`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Credential {
    /// The filter that accepted it; empty if there was none.
    pub kind: &'static str,
    /// Tells credentials of a kind apart, the same on every gateway.
    pub id: u64,
}

impl Credential {
    /// The credential that `name` identifies, which need not be secret.
    pub fn named(kind: &'static str, name: &str) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
        Credential { kind, id: first_word(digest.as_ref()) }
    }
}

impl Credential {
    /// Appends `kind:` and sixteen hexadecimal digits. By hand: formatting takes several times as long, and every line
    /// of a log has one.
    pub fn write(&self, out: &mut String) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        out.push_str(self.kind);
        out.push(':');
        for shift in (0..16).rev() {
            out.push(char::from(DIGITS[(self.id >> (4 * shift) & 0xf) as usize]));
        }
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text);
        f.write_str(&text)
    }
}

/// The first eight bytes as a number; zeros stand for missing ones.
fn first_word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_be_bytes(word)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An identity that has everything, for the tests of whatever shows one.
    pub(crate) fn identity() -> Identity {
        let claims = [("email".to_owned(), "a@example.com".into())].into_iter().collect();
        let profile = Profile { labels: vec![("tier".into(), "paying".into())], scopes: vec!["read".into()] };
        let consumer = Consumer {
            name: "mobile".into(),
            key: 1,
            team: Some(Arc::new(Team { name: "apps".into(), key: 2 })),
            profile: Arc::new(profile),
            subscriptions: SmallVec::new(),
        };
        Identity {
            consumer: Some(Arc::new(consumer)),
            credential: Credential { kind: "api_key", id: 0xff },
            claims: Some(Arc::new(Claims::new(claims))),
            anonymous: true,
        }
    }
}
