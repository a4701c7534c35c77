//! The keys that consumers sign requests with, as the gateway knows them: a shared secret, or the public half of a pair.
//!
//! Each key has one algorithm, which its kind decides and no request can choose: a public key is never the secret of an
//! HMAC.

use ring::{hmac, signature};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::config::Secret;

/// Verifies the signatures of one consumer.
pub struct SigningKey(Kind);

enum Kind {
    Secret(hmac::Key),
    Public(&'static str, signature::UnparsedPublicKey<Box<[u8]>>),
}

impl SigningKey {
    /// HMAC with SHA-256.
    pub fn secret(secret: &Secret) -> Result<SigningKey, &'static str> {
        let bytes = secret.expose().as_bytes();
        // RFC 2104, section 3: a key shorter than the hash weakens it.
        if bytes.len() < 32 {
            return Err("a shared secret has at least 32 bytes");
        }
        Ok(SigningKey(Kind::Secret(hmac::Key::new(hmac::HMAC_SHA256, bytes))))
    }

    /// Reads a public key in PEM (`BEGIN PUBLIC KEY`): Ed25519, ECDSA on P-256 or P-384, RSA of at least 2048 bits.
    pub fn public(pem: &str) -> Result<SigningKey, &'static str> {
        const NO_KEY: &str = "this is not a public key in PEM (`-----BEGIN PUBLIC KEY-----`)";
        const OTHER: &str =
            "the key is of another kind than Ed25519, ECDSA on P-256 or P-384, and RSA of 2048 bits or more";
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|_| NO_KEY)?;
        let (_, info) = SubjectPublicKeyInfo::from_der(&der).map_err(|_| NO_KEY)?;
        let bytes = &*info.subject_public_key.data;
        let kind = info.algorithm.algorithm.to_id_string();
        let (name, algorithm): (_, &'static dyn signature::VerificationAlgorithm) = match (kind.as_str(), info.parsed())
        {
            ("1.3.101.112", _) if bytes.len() == 32 => ("ed25519", &signature::ED25519),
            ("1.2.840.10045.2.1", Ok(PublicKey::EC(point))) => match point.key_size() {
                256 => ("ecdsa-p256-sha256", &signature::ECDSA_P256_SHA256_FIXED),
                384 => ("ecdsa-p384-sha384", &signature::ECDSA_P384_SHA384_FIXED),
                _ => return Err(OTHER),
            },
            // Ordinary RSA keys, and those that say they are for PSS only.
            ("1.2.840.113549.1.1.1" | "1.2.840.113549.1.1.10", _)
                if rsa_bits(bytes).is_some_and(|bits| bits >= 2048) =>
            {
                ("rsa-pss-sha512", &signature::RSA_PSS_2048_8192_SHA512)
            }
            _ => return Err(OTHER),
        };
        Ok(SigningKey(Kind::Public(name, signature::UnparsedPublicKey::new(algorithm, bytes.into()))))
    }

    /// Its algorithm by the name in the registry of RFC 9421, section 6.2.
    pub fn algorithm(&self) -> &'static str {
        match &self.0 {
            Kind::Secret(_) => "hmac-sha256",
            Kind::Public(name, _) => name,
        }
    }

    /// Whether the signature is this key's. In constant time where it has to be.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.0 {
            Kind::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            Kind::Public(_, key) => key.verify(message, signature).is_ok(),
        }
    }
}

/// The size of the modulus of an `RSAPublicKey` (RFC 8017, appendix A.1.1).
fn rsa_bits(der: &[u8]) -> Option<usize> {
    let (_, sequence) = x509_parser::der_parser::parse_der(der).ok()?;
    let modulus = sequence.as_sequence().ok()?.first()?.as_slice().ok()?;
    let modulus = modulus.iter().position(|byte| *byte != 0).and_then(|at| modulus.get(at..))?;
    Some(modulus.len() * 8 - modulus.first()?.leading_zeros() as usize)
}

#[cfg(test)]
pub(crate) mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    // RFC 9421, appendix B.1.
    pub(crate) const RSA_PSS: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAr4tmm3r20Wd/PbqvP1s2
+QEtvpuRaV8Yq40gjUR8y2Rjxa6dpG2GXHbPfvMs8ct+Lh1GH45x28Rw3Ry53mm+
oAXjyQ86OnDkZ5N8lYbggD4O3w6M6pAvLkhk95AndTrifbIFPNU8PPMO7OyrFAHq
gDsznjPFmTOtCEcN2Z1FpWgchwuYLPL+Wokqltd11nqqzi+bJ9cvSKADYdUAAN5W
Utzdpiy6LbTgSxP7ociU4Tn0g5I6aDZJ7A8Lzo0KSyZYoA485mqcO0GVAdVw9lq4
aOT9v6d+nb4bnNkQVklLQ3fVAvJm+xdDOp9LCNCN48V2pnDOkFV6+U9nV5oyc6XI
2wIDAQAB
-----END PUBLIC KEY-----";
    pub(crate) const P256: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqIVYZVLCrPZHGHjP17CTW0/+D9Lf
w0EkjqF7xB4FivAxzic30tMM4GF+hR6Dxh71Z50VGGdldkkDXZCnTNnoXQ==
-----END PUBLIC KEY-----";
    pub(crate) const ED25519: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=
-----END PUBLIC KEY-----";
    const SECRET: &str = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";

    /// The shared secret, which is bytes that no text could be.
    pub(crate) fn shared_secret() -> SigningKey {
        SigningKey(Kind::Secret(hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(SECRET).unwrap())))
    }

    #[test]
    fn the_key_decides_its_algorithm_and_weak_or_other_keys_are_none() {
        for (pem, algorithm) in [(RSA_PSS, "rsa-pss-sha512"), (P256, "ecdsa-p256-sha256"), (ED25519, "ed25519")] {
            assert_eq!(SigningKey::public(pem).ok().map(|key| key.algorithm()), Some(algorithm));
            assert!(SigningKey::public(&pem.replace("PUBLIC", "PRIVATE")).is_err());
            assert!(SigningKey::public(&pem[..pem.len() / 2]).is_err());
        }
        // A P-521 key, and an RSA key of 1024 bits.
        for other in [
            "MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQAENmlMz54xtJ6R5aNg7W7gu4lfKBm
BlWiPEdqY1fORd7t/TNnZQjvxvDEaD8sd+INiJPZsnPPmVBCyJhcwlWL/Z0BE1kJ
Ey655+m/RoeBvBE59VBK/8c+dd/ohfZ2pYqja3X5m+LD47xTfL9JuwzIfLHwksh4
U90XSKtkqe0TXp6L7wM=",
            "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDFVJgnD0IkiwM/Z5IICIp9Op5n
4CgeagcN3ZzmUT/Sn7c+le3iMDZ23Pq6CjqOKil0+h4PyJR+QC0kNwYI49fnsHEq
D9jcwMbvR+FjYVCBZznidwWk6I2/FdHWyBqBM3+i1ge41T1MxHZfUKAaEBNidj5D
LyjF6vfEUa7bdo7CHQIDAQAB",
        ] {
            let pem = format!("-----BEGIN PUBLIC KEY-----\n{other}\n-----END PUBLIC KEY-----");
            assert!(SigningKey::public(&pem).is_err(), "{other}");
        }
        assert!(SigningKey::secret(&Secret::new("x".repeat(31))).is_err());
    }

    #[test]
    fn an_ecdsa_signature_of_the_rfc_is_verified() {
        // RFC 9421, appendix B.2.4, which signs a response.
        let base = "\"@status\": 200\n\"content-type\": application/json\n\"content-digest\": sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:\n\"content-length\": 23\n\"@signature-params\": (\"@status\" \"content-type\" \"content-digest\" \"content-length\");created=1618884473;keyid=\"test-key-ecc-p256\"";
        let signature = "wNmSUAhwb5LxtOtOpNa6W5xj067m5hFrj0XQ4fvpaCLx0NKocgPquLgyahnzDnDAUy5eCdlYUEkLIj+32oiasw==";
        let signature = STANDARD.decode(signature).unwrap();
        let key = SigningKey::public(P256).ok().unwrap();
        assert!(key.verify(base.as_bytes(), &signature));
        assert!(!key.verify(base.replace("200", "201").as_bytes(), &signature));
        // RFC 9421, section 3.3.4: both halves as they are, not as DER.
        assert!(!key.verify(base.as_bytes(), &signature[1..]) && !key.verify(base.as_bytes(), &[]));
        assert!(!key.verify(base.as_bytes(), &[0; 64]));
    }
}
