//! The keys that an issuer's tokens are verified with, and which of them a token may be verified with.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde_json::{Map, Value};

use crate::authority::json;

/// More than any issuer has.
const MOST: usize = 256;

/// A key, ready to verify with.
pub struct Key {
    pub decoding: DecodingKey,
    /// What it may be used with: of one family always, so that no public key is ever taken for a shared secret (RFC 8725,
    /// section 3.1).
    fits: Vec<Algorithm>,
}

/// An issuer's keys. An id is what they are found by and nothing more.
#[derive(Default)]
pub struct Keys {
    named: HashMap<Box<str>, Key>,
    nameless: Vec<Key>,
}

/// The key that a token asks for.
pub enum Choice<'k> {
    Key(&'k Key),
    /// There is none of that name, which a newer set may have.
    Unknown,
    /// The one of that name is for other algorithms.
    Unfit,
    /// The token names none, and several would do.
    Ambiguous,
}

impl Keys {
    pub fn one(id: Option<&str>, key: Key) -> Keys {
        let mut keys = Keys::default();
        keys.add(id, key);
        keys
    }

    /// Adds a key; false if there is one of that name.
    fn add(&mut self, id: Option<&str>, key: Key) -> bool {
        match id {
            Some(id) => self.named.insert(id.into(), key).is_none(),
            None => {
                self.nameless.push(key);
                true
            }
        }
    }

    /// Reads a JWK set (RFC 7517). Keys of other kinds and for other uses are left out, and so are shared secrets: what
    /// is published cannot be secret.
    pub fn read(text: &[u8]) -> Result<Keys, &'static str> {
        let set = json::object(text).ok_or("this is not a JWK set: no JSON object, or one with a member twice")?;
        let list = set.get("keys").and_then(Value::as_array).ok_or("this is not a JWK set: it has no `keys`")?;
        if list.len() > MOST {
            return Err("the JWK set has too many keys");
        }
        let mut keys = Keys::default();
        for jwk in list.iter().filter_map(Value::as_object) {
            let id = match jwk.get("kid") {
                None => None,
                Some(Value::String(id)) => Some(id.as_str()),
                Some(_) => continue,
            };
            if let Some(key) = Key::of_jwk(jwk)
                && !keys.add(id, key)
            {
                return Err("the JWK set has two keys of the same id");
            }
        }
        match keys.named.is_empty() && keys.nameless.is_empty() {
            true => Err("the JWK set has no key that tokens could be verified with"),
            false => Ok(keys),
        }
    }

    pub fn all(&self) -> impl Iterator<Item = &Key> {
        self.named.values().chain(&self.nameless)
    }

    pub fn choose(&self, id: Option<&str>, algorithm: Algorithm) -> Choice<'_> {
        if let Some(key) = id.and_then(|id| self.named.get(id)) {
            return if key.fits(algorithm) { Choice::Key(key) } else { Choice::Unfit };
        }
        // A token that names a key which we have no name for; or one that names none.
        let candidates: &mut dyn Iterator<Item = &Key> = match id {
            Some(_) => &mut self.nameless.iter(),
            None => &mut self.all(),
        };
        let mut fitting = candidates.filter(|key| key.fits(algorithm));
        match (fitting.next(), fitting.next()) {
            (None, _) => Choice::Unknown,
            (Some(key), None) => Choice::Key(key),
            // Trying them all would let callers choose how much work a request is.
            (Some(_), Some(_)) => Choice::Ambiguous,
        }
    }
}

impl Key {
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        self.fits.contains(&algorithm)
    }

    /// A shared secret, with the algorithms that it is long enough for (RFC 7518, section 3.2).
    pub fn of_secret(secret: &[u8]) -> Key {
        let all = [(Algorithm::HS256, 32), (Algorithm::HS384, 48), (Algorithm::HS512, 64)];
        let fits = all.into_iter().filter(|(_, least)| secret.len() >= *least).map(|(algorithm, _)| algorithm);
        Key { decoding: DecodingKey::from_secret(secret), fits: fits.collect() }
    }

    /// A public key in PEM, as `openssl pkey -pubout` writes it.
    pub fn of_pem(pem: &[u8]) -> Result<Key, &'static str> {
        let has = |label: &str| memchr::memmem::find(pem, label.as_bytes()).is_some();
        if has("PRIVATE KEY") {
            return Err("this is a private key; the gateway needs the public one, as `openssl pkey -pubout` writes it");
        }
        if !has("-----BEGIN PUBLIC KEY-----") && !has("-----BEGIN RSA PUBLIC KEY-----") {
            return Err("this is not a public key in PEM, as `openssl pkey -pubout` writes it");
        }
        let decoding = DecodingKey::from_ec_pem(pem)
            .or_else(|_| DecodingKey::from_ed_pem(pem))
            .or_else(|_| DecodingKey::from_rsa_pem(pem))
            .map_err(|_| "this is neither an RSA, an EC nor an Ed25519 key")?;
        let length = decoding.try_get_as_bytes().map_or(0, <[u8]>::len);
        let fits = match (decoding.family(), length) {
            // The numbers of a key of 2048 bits with what DER puts around them.
            (AlgorithmFamily::Rsa, 266..) => rsa(),
            (AlgorithmFamily::Rsa, _) => return Err("an RSA key needs 2048 bits (RFC 7518, section 3.3)"),
            (AlgorithmFamily::Ec, 65) => vec![Algorithm::ES256],
            (AlgorithmFamily::Ec, 97) => vec![Algorithm::ES384],
            (AlgorithmFamily::Ed, 32) => vec![Algorithm::EdDSA],
            _ => return Err("of elliptic curves, only P-256, P-384 and Ed25519 are supported"),
        };
        Ok(Key { decoding, fits })
    }

    /// A key of a set; `None` if it is of no use here.
    fn of_jwk(jwk: &Map<String, Value>) -> Option<Key> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        if jwk.get("use").is_some_and(|usage| usage != "sig") {
            return None;
        }
        if let Some(operations) = jwk.get("key_ops") {
            operations.as_array()?.iter().find(|operation| *operation == "verify")?;
        }
        let (decoding, mut fits) = match (text("kty")?, text("crv")) {
            ("RSA", _) => {
                let modulus = bytes("n")?;
                let significant = modulus.iter().skip_while(|byte| **byte == 0).count();
                if significant < 256 {
                    return None;
                }
                (DecodingKey::from_rsa_raw_components(&modulus, &bytes("e")?), rsa())
            }
            ("EC", Some("P-256")) => (point(bytes("x")?, bytes("y")?, 32)?, vec![Algorithm::ES256]),
            ("EC", Some("P-384")) => (point(bytes("x")?, bytes("y")?, 48)?, vec![Algorithm::ES384]),
            ("OKP", Some("Ed25519")) => {
                let x = bytes("x").filter(|x| x.len() == 32)?;
                (DecodingKey::from_ed_der(&x), vec![Algorithm::EdDSA])
            }
            _ => return None,
        };
        if let Some(only) = jwk.get("alg") {
            let only = algorithm(only.as_str()?)?;
            fits.retain(|algorithm| *algorithm == only);
        }
        (!fits.is_empty()).then_some(Key { decoding, fits })
    }
}

fn rsa() -> Vec<Algorithm> {
    use Algorithm::*;
    vec![RS256, RS384, RS512, PS256, PS384, PS512]
}

/// A point of a curve, uncompressed.
fn point(x: Vec<u8>, y: Vec<u8>, length: usize) -> Option<DecodingKey> {
    (x.len() == length && y.len() == length).then(|| DecodingKey::from_ec_der(&[&[4][..], &x, &y].concat()))
}

/// An algorithm by its registered name. There is no `none` among them.
pub fn algorithm(name: &str) -> Option<Algorithm> {
    // RFC 9864 gives what `EdDSA` means with this curve a name of its own.
    if name == "Ed25519" {
        return Some(Algorithm::EdDSA);
    }
    name.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rsa(kid: &str) -> Value {
        let n = URL_SAFE_NO_PAD.encode([0xc1; 256]);
        json!({ "kty": "RSA", "n": n, "e": "AQAB", "kid": kid })
    }

    fn edited(kid: &str, name: &str, value: Value) -> Value {
        let mut jwk = rsa(kid);
        jwk[name] = value;
        jwk
    }

    fn read(keys: Value) -> Result<Keys, &'static str> {
        Keys::read(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn keys_for_other_uses_and_shared_secrets_are_left_out() {
        let ec = |curve: &str, length: usize| {
            let half = URL_SAFE_NO_PAD.encode(vec![1; length]);
            json!({ "kty": "EC", "crv": curve, "x": half, "y": half, "kid": format!("{curve}{length}") })
        };
        let keys = read(json!([
            rsa("good"),
            edited("encrypts", "use", json!("enc")),
            edited("signs", "key_ops", json!(["sign"])),
            edited("only", "alg", json!("PS256")),
            edited("other", "alg", json!("RSA-OAEP")),
            edited("short", "n", json!(URL_SAFE_NO_PAD.encode([0xc1; 128]))),
            edited("padded", "n", json!(URL_SAFE_NO_PAD.encode([vec![0; 128], vec![0xc1; 128]].concat()))),
            json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode([1; 64]), "kid": "secret" }),
            ec("P-256", 32),
            ec("P-256", 31),
            ec("P-384", 48),
            ec("P-521", 66),
            ec("secp256k1", 32),
            json!({ "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode([1; 32]), "kid": "ed" }),
            json!({ "kty": "OKP", "crv": "Ed448", "x": URL_SAFE_NO_PAD.encode([1; 57]), "kid": "ed448" }),
            json!({ "kty": "RSA", "kid": "empty" }),
            json!("nonsense"),
        ]));
        let keys = keys.unwrap_or_else(|error| panic!("{error}"));
        let mut named: Vec<_> = keys.named.keys().map(|id| &**id).collect();
        named.sort_unstable();
        assert_eq!(named, ["P-25632", "P-38448", "ed", "good", "only"]);
        assert!(keys.all().all(|key| !key.fits(Algorithm::HS256)));
        assert!(matches!(keys.choose(Some("only"), Algorithm::RS256), Choice::Unfit));
        assert!(matches!(keys.choose(Some("only"), Algorithm::PS256), Choice::Key(_)));
        assert!(matches!(keys.choose(Some("P-25632"), Algorithm::ES384), Choice::Unfit));
    }

    #[test]
    fn sets_that_are_none_or_ambiguous_are_refused() {
        assert!(read(json!([rsa("a"), rsa("a")])).is_err_and(|error| error.contains("same id")));
        for text in ["", "{}", "[]", "<html>", r#"{"keys":{}}"#, r#"{"keys":[]}"#, r#"{"keys":[],"keys":[]}"#] {
            assert!(Keys::read(text.as_bytes()).is_err(), "{text}");
        }
        assert!(read(json!(vec![rsa("a"); 257])).is_err_and(|error| error.contains("too many")));
    }

    #[test]
    fn a_token_without_key_id_is_verified_only_where_one_key_can_be_meant() {
        let keys = read(json!([rsa("a"), edited("b", "alg", json!("PS256"))])).ok().unwrap();
        assert!(matches!(keys.choose(None, Algorithm::PS256), Choice::Ambiguous));
        assert!(matches!(keys.choose(None, Algorithm::RS256), Choice::Key(_)));
        assert!(matches!(keys.choose(None, Algorithm::ES256), Choice::Unknown));
        assert!(matches!(keys.choose(Some("c"), Algorithm::RS256), Choice::Unknown));
    }
}
