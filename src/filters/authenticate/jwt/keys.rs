//! The keys that an issuer's tokens are verified with, and which of them a token may be verified with.
//!
//! Public keys are made ready once. To decode one for each token, as `jsonwebtoken::crypto::verify` does, costs a fifth of
//! what the check of an RSA signature takes (23.5 µs instead of 18.5).

use std::collections::HashMap;

use aws_lc_rs::signature as schemes;
use aws_lc_rs::signature::{ParsedPublicKey, RsaParameters, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde_json::{Map, Value};

use crate::authority::json;

/// More than any issuer has.
const MOST: usize = 256;

/// A key, ready to verify with.
pub enum Key {
    Shared {
        secret: DecodingKey,
        fits: Vec<Algorithm>,
    },
    /// What it may be used with: of one family always, so that no public key is ever taken for a shared secret (RFC 8725,
    /// section 3.1).
    Public(Vec<(Algorithm, ParsedPublicKey)>),
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
        match self {
            Key::Shared { fits, .. } => fits.contains(&algorithm),
            Key::Public(ready) => ready.iter().any(|(own, _)| *own == algorithm),
        }
    }

    /// Whether `signature`, in base64url, is of this key over the message. It is not where the key is not for the algorithm.
    pub fn has_signed(&self, message: &[u8], signature: &str, algorithm: Algorithm) -> bool {
        match self {
            Key::Shared { secret, fits } => {
                fits.contains(&algorithm)
                    && jsonwebtoken::crypto::verify(signature, message, secret, algorithm) == Ok(true)
            }
            Key::Public(ready) => {
                let key = ready.iter().find(|(own, _)| *own == algorithm).map(|(_, key)| key);
                let signature = URL_SAFE_NO_PAD.decode(signature);
                key.zip(signature.ok()).is_some_and(|(key, signature)| key.verify_sig(message, &signature).is_ok())
            }
        }
    }

    /// A shared secret, with the algorithms that it is long enough for (RFC 7518, section 3.2).
    pub fn of_secret(secret: &[u8]) -> Key {
        let all = [(Algorithm::HS256, 32), (Algorithm::HS384, 48), (Algorithm::HS512, 64)];
        let fits = all.into_iter().filter(|(_, least)| secret.len() >= *least).map(|(algorithm, _)| algorithm);
        Key::Shared { secret: DecodingKey::from_secret(secret), fits: fits.collect() }
    }

    /// A public key in PEM, as `openssl pkey -pubout` writes it.
    pub fn of_pem(pem: &[u8]) -> Result<Key, &'static str> {
        const OTHER: &str = "this is neither an RSA, an EC nor an Ed25519 key";
        let has = |label: &str| memchr::memmem::find(pem, label.as_bytes()).is_some();
        if has("PRIVATE KEY") {
            return Err("this is a private key; the gateway needs the public one, as `openssl pkey -pubout` writes it");
        }
        if !has("-----BEGIN PUBLIC KEY-----") && !has("-----BEGIN RSA PUBLIC KEY-----") {
            return Err("this is not a public key in PEM, as `openssl pkey -pubout` writes it");
        }
        let decoded = DecodingKey::from_ec_pem(pem)
            .or_else(|_| DecodingKey::from_ed_pem(pem))
            .or_else(|_| DecodingKey::from_rsa_pem(pem))
            .map_err(|_| OTHER)?;
        let bytes = decoded.try_get_as_bytes().map_err(|_| OTHER)?;
        let key = match (decoded.family(), bytes.len()) {
            // The numbers of a key of 2048 bits with what DER puts around them.
            (AlgorithmFamily::Rsa, 266..) => Key::of_rsa(|scheme| ParsedPublicKey::new(scheme, bytes).ok()),
            (AlgorithmFamily::Rsa, _) => return Err("an RSA key needs 2048 bits (RFC 7518, section 3.3)"),
            (AlgorithmFamily::Ec, 65) => Key::of_curve(Algorithm::ES256, bytes),
            (AlgorithmFamily::Ec, 97) => Key::of_curve(Algorithm::ES384, bytes),
            (AlgorithmFamily::Ed, 32) => Key::of_curve(Algorithm::EdDSA, bytes),
            _ => return Err("of elliptic curves, only P-256, P-384 and Ed25519 are supported"),
        };
        key.ok_or("this is no key: its numbers do not fit together")
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
        let mut key = match (text("kty")?, text("crv")) {
            ("RSA", _) => {
                let numbers = RsaPublicKeyComponents { n: significant(bytes("n")?), e: significant(bytes("e")?) };
                if numbers.n.len() < 256 {
                    return None;
                }
                Key::of_rsa(|scheme| numbers.to_parsed_public_key(scheme).ok())
            }
            ("EC", Some("P-256")) => Key::of_curve(Algorithm::ES256, &point(bytes("x")?, bytes("y")?, 32)?),
            ("EC", Some("P-384")) => Key::of_curve(Algorithm::ES384, &point(bytes("x")?, bytes("y")?, 48)?),
            ("OKP", Some("Ed25519")) => Key::of_curve(Algorithm::EdDSA, &bytes("x")?),
            _ => None,
        }?;
        if let (Some(only), Key::Public(ready)) = (jwk.get("alg"), &mut key) {
            let only = algorithm(only.as_str()?)?;
            ready.retain(|(algorithm, _)| *algorithm == only);
            if ready.is_empty() {
                return None;
            }
        }
        Some(key)
    }

    fn of_rsa(ready: impl Fn(&'static RsaParameters) -> Option<ParsedPublicKey>) -> Option<Key> {
        let all = [
            (Algorithm::RS256, &schemes::RSA_PKCS1_2048_8192_SHA256),
            (Algorithm::RS384, &schemes::RSA_PKCS1_2048_8192_SHA384),
            (Algorithm::RS512, &schemes::RSA_PKCS1_2048_8192_SHA512),
            (Algorithm::PS256, &schemes::RSA_PSS_2048_8192_SHA256),
            (Algorithm::PS384, &schemes::RSA_PSS_2048_8192_SHA384),
            (Algorithm::PS512, &schemes::RSA_PSS_2048_8192_SHA512),
        ];
        let keys = all.into_iter().map(|(algorithm, scheme)| Some((algorithm, ready(scheme)?)));
        keys.collect::<Option<_>>().map(Key::Public)
    }

    /// A point of the curve that the algorithm is for.
    fn of_curve(algorithm: Algorithm, point: &[u8]) -> Option<Key> {
        let ready = match algorithm {
            Algorithm::ES256 => ParsedPublicKey::new(&schemes::ECDSA_P256_SHA256_FIXED, point),
            Algorithm::ES384 => ParsedPublicKey::new(&schemes::ECDSA_P384_SHA384_FIXED, point),
            Algorithm::EdDSA => ParsedPublicKey::new(&schemes::ED25519, point),
            _ => return None,
        };
        Some(Key::Public(vec![(algorithm, ready.ok()?)]))
    }
}

/// A point of a curve, uncompressed.
fn point(x: Vec<u8>, y: Vec<u8>, length: usize) -> Option<Vec<u8>> {
    (x.len() == length && y.len() == length).then(|| [&[4][..], &x, &y].concat())
}

/// A number without the zeros that some issuers put before it, against RFC 7518, section 6.3.1.1.
fn significant(number: Vec<u8>) -> Vec<u8> {
    number.into_iter().skip_while(|byte| *byte == 0).collect()
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
        let ec = |curve: &str, point: &[u8]| {
            let (x, y) = point.split_at(point.len() / 2);
            let kid = format!("{curve} {}", x.len());
            json!({ "kty": "EC", "crv": curve, "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y), "kid": kid })
        };
        let on = |algorithm: &'static rcgen::SignatureAlgorithm| {
            rcgen::KeyPair::generate_for(algorithm).unwrap().public_key_raw().to_vec()
        };
        let (p256, p384) = (on(&rcgen::PKCS_ECDSA_P256_SHA256), on(&rcgen::PKCS_ECDSA_P384_SHA384));
        let ed25519 = on(&rcgen::PKCS_ED25519);
        let keys = read(json!([
            rsa("good"),
            edited("encrypts", "use", json!("enc")),
            edited("signs", "key_ops", json!(["sign"])),
            edited("only", "alg", json!("PS256")),
            edited("other", "alg", json!("RSA-OAEP")),
            edited("short", "n", json!(URL_SAFE_NO_PAD.encode([0xc1; 128]))),
            edited("padded", "n", json!(URL_SAFE_NO_PAD.encode([vec![0; 128], vec![0xc1; 128]].concat()))),
            edited("zeros", "n", json!(URL_SAFE_NO_PAD.encode([vec![0; 1], vec![0xc1; 256]].concat()))),
            json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode([1; 64]), "kid": "secret" }),
            ec("P-256", &p256[1..]),
            ec("P-256", &p256[3..]),
            ec("P-256", &p384[1..]),
            ec("P-384", &p384[1..]),
            ec("P-384", &[1; 96]),
            ec("P-521", &[1; 132]),
            ec("secp256k1", &p256[1..]),
            json!({ "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(&ed25519), "kid": "ed" }),
            json!({ "kty": "OKP", "crv": "Ed448", "x": URL_SAFE_NO_PAD.encode([1; 57]), "kid": "ed448" }),
            json!({ "kty": "RSA", "kid": "empty" }),
            json!("nonsense"),
        ]));
        let keys = keys.unwrap_or_else(|error| panic!("{error}"));
        let mut named: Vec<_> = keys.named.keys().map(|id| &**id).collect();
        named.sort_unstable();
        assert_eq!(named, ["P-256 32", "P-384 48", "ed", "good", "only", "zeros"]);
        assert!(keys.all().all(|key| !key.fits(Algorithm::HS256)));
        assert!(matches!(keys.choose(Some("only"), Algorithm::RS256), Choice::Unfit));
        assert!(matches!(keys.choose(Some("only"), Algorithm::PS256), Choice::Key(_)));
        assert!(matches!(keys.choose(Some("P-256 32"), Algorithm::ES384), Choice::Unfit));
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
