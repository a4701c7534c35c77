//! What a browser keeps for the gateway between requests: a login that was begun, and a session. Both are cookies that only
//! the gateway can read or make.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::Secret;

/// Browsers keep no cookie of more than 4096 bytes, name and attributes included (RFC 6265, section 6.1).
const LARGEST: usize = 3900;

/// Who is logged in.
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    #[serde(rename = "c")]
    pub claims: Map<String, Value>,
    /// Seconds since 1970 at which it is over.
    #[serde(rename = "e")]
    pub end: i64,
    /// When the provider is asked whether it still holds.
    #[serde(rename = "r")]
    pub recheck: i64,
    /// What it is asked with.
    #[serde(rename = "t", skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
}

/// A login that was begun.
#[derive(Serialize, Deserialize)]
pub struct Login {
    #[serde(rename = "s")]
    pub state: String,
    #[serde(rename = "n")]
    pub nonce: String,
    /// Of PKCE (RFC 7636).
    #[serde(rename = "v")]
    pub verifier: String,
    /// The path and query that were asked for.
    #[serde(rename = "to")]
    pub return_to: String,
    /// Seconds since 1970 at which it is over.
    #[serde(rename = "e")]
    pub end: i64,
}

/// Makes cookies that are of no use to anybody else: encrypted, and good for one purpose only.
pub struct Cookies {
    key: LessSafeKey,
    /// Names of cookies begin with it.
    prefix: String,
    secure: bool,
}

impl Cookies {
    /// `bound_to` says whose cookies they are: those of other providers are not accepted, though the secret be the same.
    pub fn new(secret: &Secret, bound_to: &str, name: &str, secure: bool) -> Option<Self> {
        let derived = Salt::new(HKDF_SHA256, b"headgate oidc cookies").extract(secret.expose().as_bytes());
        let key = UnboundKey::from(derived.expand(&[bound_to.as_bytes()], &CHACHA20_POLY1305).ok()?);
        // A cookie with this prefix cannot come from another host, nor without TLS (RFC 6265bis, section 4.1.3.2).
        let prefix = if secure { format!("__Host-{name}") } else { name.to_owned() };
        Some(Cookies { key: LessSafeKey::new(key), prefix, secure })
    }

    pub fn session_name(&self) -> &str {
        &self.prefix
    }

    /// Each login has a cookie of its own, so that two windows may log in at once.
    pub fn login_name(&self, state: &str) -> String {
        format!("{}_login_{}", self.prefix, state.get(..8).unwrap_or_default())
    }

    pub fn is_login_name(&self, name: &[u8]) -> bool {
        name.strip_prefix(self.prefix.as_bytes()).is_some_and(|rest| rest.starts_with(b"_login_"))
    }

    /// Seals a value; `None` if it does not fit into a cookie.
    pub fn seal<T: Serialize>(&self, name: &str, value: &T) -> Option<String> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut text = serde_json::to_vec(value).ok()?;
        let nonce_value = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce_value, Aad::from(name.as_bytes()), &mut text).ok()?;
        let sealed = URL_SAFE_NO_PAD.encode([&nonce[..], &text].concat());
        (sealed.len() + name.len() <= LARGEST).then_some(sealed)
    }

    /// Opens what was sealed under this name.
    pub fn open<T: DeserializeOwned>(&self, name: &str, sealed: &[u8]) -> Option<T> {
        if sealed.len() > LARGEST {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, text) = bytes.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = text.to_vec();
        let opened = self.key.open_in_place(nonce, Aad::from(name.as_bytes()), &mut text).ok()?;
        serde_json::from_slice(opened).ok()
    }

    /// Seals a session, without what does not fit: then the provider is not asked again, and the session ends as it would
    /// without a refresh token.
    pub fn seal_session(&self, session: &mut Session) -> Option<String> {
        if let Some(sealed) = self.seal(&self.prefix, session) {
            return Some(sealed);
        }
        session.refresh_token.take()?;
        self.seal(&self.prefix, session)
    }

    /// `Set-Cookie`, for so many seconds; none deletes it.
    pub fn set(&self, name: &str, value: &str, seconds: i64) -> Option<HeaderValue> {
        let secure = if self.secure { "; Secure" } else { "" };
        let line = format!("{name}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{secure}", seconds.max(0));
        HeaderValue::from_str(&line).ok()
    }

    pub fn delete(&self, name: &str) -> Option<HeaderValue> {
        self.set(name, "", 0)
    }
}

/// 256 bits that nobody can guess; `None` if the system has no random numbers to give.
pub fn random() -> Option<String> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookies(secret: &str, bound_to: &str) -> Cookies {
        Cookies::new(&Secret::new(secret.into()), bound_to, "session", true).unwrap()
    }

    fn session(claim: &str, token: Option<&str>) -> Session {
        let claims = [("sub".to_owned(), claim.into())].into_iter().collect();
        Session { claims, end: 100, recheck: 50, refresh_token: token.map(str::to_owned) }
    }

    #[test]
    fn a_cookie_opens_for_its_maker_and_its_purpose_only() {
        let ours = cookies("a", "provider");
        let sealed = ours.seal_session(&mut session("u1", Some("token"))).unwrap();
        let opened: Session = ours.open(ours.session_name(), sealed.as_bytes()).unwrap();
        assert_eq!((opened.claims["sub"].as_str(), opened.refresh_token.as_deref()), (Some("u1"), Some("token")));
        assert_ne!(sealed, ours.seal_session(&mut session("u1", Some("token"))).unwrap());
        for (other, name) in [
            (cookies("b", "provider"), ours.session_name().to_owned()),
            (cookies("a", "another provider"), ours.session_name().to_owned()),
            (cookies("a", "provider"), ours.login_name("12345678")),
        ] {
            assert!(other.open::<Session>(&name, sealed.as_bytes()).is_none(), "{name}");
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(ours.open::<Session>(ours.session_name(), &changed).is_none(), "changed at {at}");
            assert!(ours.open::<Session>(ours.session_name(), &sealed.as_bytes()[..at]).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn what_does_not_fit_into_a_cookie_is_left_out_or_refused() {
        let ours = cookies("a", "provider");
        let mut large = session("u1", Some(&"x".repeat(4000)));
        assert!(ours.seal_session(&mut large).is_some() && large.refresh_token.is_none());
        assert!(ours.seal_session(&mut session(&"x".repeat(4000), None)).is_none());
        assert!(ours.seal_session(&mut session(&"x".repeat(4000), Some("t"))).is_none());
    }

    #[test]
    fn cookies_are_for_this_host_and_out_of_reach_of_scripts() {
        let line = cookies("a", "p").set("__Host-session", "v", 60).unwrap();
        assert_eq!(line, "__Host-session=v; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure");
        let plain = Cookies::new(&Secret::new("a".into()), "p", "session", false).unwrap();
        assert_eq!(plain.delete("session").unwrap(), "session=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax");
        assert!(plain.is_login_name(plain.login_name("abcdefghij").as_bytes()) && !plain.is_login_name(b"session"));
    }
}
