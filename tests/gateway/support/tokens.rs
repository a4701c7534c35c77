//! Issuers of JSON Web Tokens, honest and other ones.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

/// A key that signs tokens.
pub struct Signer {
    pub kid: String,
    pub algorithm: Algorithm,
    key: EncodingKey,
    /// In PEM; empty for a shared secret.
    pub public: String,
}

impl Signer {
    pub fn rsa(kid: &str) -> Self {
        let run = |arguments: &[&str], input: &str| {
            let mut command = Command::new("openssl");
            let command = command.args(arguments).stdin(std::process::Stdio::piped());
            let command = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
            let mut child = command.spawn().expect("openssl; run `scripts/prepare tests`");
            std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), input.as_bytes()).expect("its input");
            String::from_utf8(child.wait_with_output().expect("its end").stdout).expect("PEM")
        };
        let private = run(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "");
        let public = run(&["pkey", "-pubout"], &private);
        let key = EncodingKey::from_rsa_pem(private.as_bytes()).expect("an RSA key");
        Signer { kid: kid.into(), algorithm: Algorithm::RS256, key, public }
    }

    pub fn ec(kid: &str, algorithm: Algorithm) -> Self {
        let kind = match algorithm {
            Algorithm::ES256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            _ => &rcgen::PKCS_ECDSA_P384_SHA384,
        };
        let pair = rcgen::KeyPair::generate_for(kind).expect("an EC key");
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).expect("an EC key");
        Signer { kid: kid.into(), algorithm, key, public: pair.public_key_pem() }
    }

    pub fn ed(kid: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("an Ed25519 key");
        let key = EncodingKey::from_ed_der(&pair.serialize_der());
        Signer { kid: kid.into(), algorithm: Algorithm::EdDSA, key, public: pair.public_key_pem() }
    }

    pub fn secret(kid: &str, secret: &str) -> Self {
        let key = EncodingKey::from_secret(secret.as_bytes());
        Signer { kid: kid.into(), algorithm: Algorithm::HS256, key, public: String::new() }
    }

    pub fn with(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// The public key as its issuer publishes it.
    pub fn jwk(&self) -> Value {
        let mut jwk = match self.algorithm {
            Algorithm::EdDSA => {
                let der = super::tls::public_key_der(&self.public);
                let (_, point) = der.split_at(der.len() - 32);
                json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": URL_SAFE_NO_PAD.encode(point) })
            }
            algorithm => {
                let jwk = Jwk::from_encoding_key(&self.key, algorithm).expect("a public key");
                serde_json::to_value(jwk).expect("JSON")
            }
        };
        jwk["kid"] = json!(self.kid);
        jwk["use"] = json!("sig");
        jwk
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(&json!({ "alg": self.algorithm, "typ": "JWT", "kid": self.kid }), claims)
    }

    /// A token that says this of itself.
    pub fn sign_as(&self, head: &Value, claims: &Value) -> String {
        self.sign_raw(&head.to_string(), &claims.to_string())
    }

    /// Signs whatever it is.
    pub fn sign_raw(&self, head: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm).expect("a signature");
        format!("{message}.{signature}")
    }
}

/// What an issuer publishes.
pub fn jwks(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() }).to_string()
}

/// Seconds since 1970, and so many more.
pub fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    now.as_secs() as i64 + seconds
}

/// Claims of a good token for the consumer `app-7`.
pub fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": "orders", "sub": "app-7", "exp": in_seconds(300) })
}

/// The same with one of them changed; `null` leaves it out.
pub fn claims_with(name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims();
    match value.into() {
        Value::Null => drop(claims.as_object_mut().expect("an object").remove(name)),
        value => claims[name] = value,
    }
    claims
}

/// The `iss` of good tokens.
pub const ISSUER: &str = "https://login.example.com";
