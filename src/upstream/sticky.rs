//! The cookie that keeps a client on its target.

use std::fmt::Write;

use ring::hmac;

use crate::config::Secret;
use crate::config::upstream::{SameSite, Sticky as Config};

/// Names targets in cookies by a keyed hash of their address: the same on every gateway with the same secret, before
/// and after a restart, and no address to read.
#[derive(Debug)]
pub(super) struct Sticky {
    pub(super) cookie: String,
    key: hmac::Key,
    /// What follows the value in `Set-Cookie`.
    attributes: String,
}

impl Sticky {
    /// Without a secret the upstream's name is the key, which only hides the address from a casual look.
    pub(super) fn new(config: &Config, secret: Option<&Secret>, upstream: &str) -> Self {
        let mut attributes = format!("; Path={}; HttpOnly", config.path);
        if let Some(ttl) = config.ttl {
            // Writing to a String cannot fail.
            let _ = write!(attributes, "; Max-Age={}", ttl.get().as_secs().max(1));
        }
        if config.secure {
            attributes.push_str("; Secure");
        }
        attributes.push_str(match config.same_site {
            SameSite::Strict => "; SameSite=Strict",
            SameSite::Lax => "; SameSite=Lax",
            SameSite::None => "; SameSite=None",
        });
        let secret = secret.map_or(upstream, Secret::expose);
        Sticky {
            cookie: config.cookie.clone(),
            key: hmac::Key::new(hmac::HMAC_SHA256, format!("headgate sticky\0{secret}").as_bytes()),
            attributes,
        }
    }

    /// The value that stands for a target: 96 bits in hexadecimal.
    pub(super) fn value_for(&self, upstream: &str, address: &str) -> Box<str> {
        let tag = hmac::sign(&self.key, format!("{upstream}\0{address}").as_bytes());
        tag.as_ref()
            .iter()
            .take(12)
            .fold(String::with_capacity(24), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            })
            .into()
    }

    pub(super) fn set_cookie(&self, value: &str) -> String {
        format!("{}={value}{}", self.cookie, self.attributes)
    }
}

/// The value of a cookie in the value of a `Cookie` header.
pub(super) fn cookie_value<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    header.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then(|| value.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sticky(secret: Option<&str>) -> Sticky {
        let config: Config = serde_json::from_str(r#"{"cookie": "node", "ttl": "1h", "secure": true}"#).unwrap();
        Sticky::new(&config, secret.map(|secret| Secret::new(secret.into())).as_ref(), "orders")
    }

    #[test]
    fn the_value_is_stable_and_depends_on_the_secret() {
        let value = sticky(Some("a")).value_for("orders", "10.0.0.1:80");
        assert_eq!(value, sticky(Some("a")).value_for("orders", "10.0.0.1:80"));
        assert_ne!(value, sticky(Some("b")).value_for("orders", "10.0.0.1:80"));
        assert_ne!(value, sticky(Some("a")).value_for("orders", "10.0.0.2:80"));
        assert_eq!(value.len(), 24);
    }

    #[test]
    fn the_cookie_carries_its_attributes() {
        assert_eq!(sticky(None).set_cookie("abc"), "node=abc; Path=/; HttpOnly; Max-Age=3600; Secure; SameSite=Lax");
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        assert_eq!(cookie_value("a=1; node=\"x=y\"; b", "node"), Some("x=y"));
        assert_eq!(cookie_value("anode=1; nod=2", "node"), None);
    }
}
