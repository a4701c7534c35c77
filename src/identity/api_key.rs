//! API keys: how they are made, how they look, and the keyed hash that is kept of them.
//!
//! A key is `hgk_`, 32 random characters (190 bits) and a checksum of 6, all of `0-9A-Za-z`. The prefix and the checksum
//! (CRC-32 in base 62) let a scanner that finds one in a repository know it for certain without asking anybody; they do
//! not matter to the gateway, which looks up whatever it is shown.

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use super::Credential;
use super::first_word;
use crate::config::Secret;

pub const PREFIX: &str = "hgk_";
const RANDOM: usize = 32;
const CHECKSUM: usize = 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// How a hash is written in a configuration.
const WRITTEN: &str = "hmac-sha256:";

/// Longer ones are refused unseen; tokens of other gateways fit.
pub const LONGEST: usize = 512;

/// A shorter key could be guessed; only keys from elsewhere may be as short.
pub const SHORTEST: usize = 16;

/// The kind of [`Credential`] that keys are.
pub const KIND: &str = "api_key";

/// Makes a key from the system's random numbers; `None` if it has none to give.
pub fn create() -> Option<String> {
    let random = SystemRandom::new();
    let mut key = String::from(PREFIX);
    while key.len() < PREFIX.len() + RANDOM {
        let mut bytes = [0; 64];
        random.fill(&mut bytes).ok()?;
        // 248 is the largest multiple of 62 in a byte: what lies above would make some characters likelier.
        let fair = bytes.iter().filter(|byte| **byte < 248).map(|byte| char::from(ALPHABET[usize::from(byte % 62)]));
        key.extend(fair.take(PREFIX.len() + RANDOM - key.len()));
    }
    key.push_str(&checksum(&key));
    Some(key)
}

/// Whether a text is a key of ours, as a scanner decides it.
pub fn is_well_formed(text: &str) -> bool {
    let alphanumeric = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    text.len() == PREFIX.len() + RANDOM + CHECKSUM
        && text.strip_prefix(PREFIX).is_some_and(alphanumeric)
        && text.split_at_checked(PREFIX.len() + RANDOM).is_some_and(|(key, sum)| checksum(key) == sum)
}

fn checksum(key: &str) -> String {
    let mut left = crc32fast::hash(key.as_bytes());
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(left % 62) as usize];
        left /= 62;
    }
    digits.map(char::from).iter().collect()
}

/// The keyed hash of a key. Whoever reads it learns nothing of the key without the pepper.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Reads `hmac-sha256:` and 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Hash> {
        let digits = text.strip_prefix(WRITTEN)?.as_bytes();
        let mut hash = [0; 32];
        if digits.len() != 2 * hash.len() {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Hash(hash))
    }

    pub fn credential(&self) -> Credential {
        Credential { kind: KIND, id: first_word(&self.0) }
    }

    /// The bits a table is indexed by. Nobody can choose them without knowing the pepper.
    pub(super) fn bits(&self) -> u64 {
        first_word(&self.0[8..])
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(WRITTEN)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What keys the hashes of a configuration.
pub struct Pepper(hmac::Key);

impl Pepper {
    pub fn new(secret: &Secret) -> Self {
        Pepper(hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes()))
    }

    pub fn hash(&self, key: &[u8]) -> Hash {
        let tag = hmac::sign(&self.0, key);
        let mut hash = Hash([0; 32]);
        for (to, from) in hash.0.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        hash
    }
}

/// A new pepper: 256 random bits in hexadecimal.
pub fn create_pepper() -> Option<Secret> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(Secret::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_recognised_and_a_slip_in_it_too() {
        let key = create().unwrap();
        assert!(is_well_formed(&key), "{key}");
        assert_ne!(key, create().unwrap());
        for at in 0..key.len() {
            let mut bytes = key.clone().into_bytes();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            let slip = String::from_utf8(bytes).unwrap();
            assert!(!is_well_formed(&slip), "{slip} differs at {at}");
        }
        for other in ["", "hgk_", "sk-0123456789", &key[1..], &format!("{key}0"), &"é".repeat(21)] {
            assert!(!is_well_formed(other), "{other}");
        }
    }

    #[test]
    fn a_hash_depends_on_key_and_pepper_and_reads_as_it_was_written() {
        let pepper = |secret: &str| Pepper::new(&Secret::new(secret.to_owned()));
        let hash = pepper("a").hash(b"key");
        assert!(hash == pepper("a").hash(b"key"));
        assert!(hash != pepper("a").hash(b"kez") && hash != pepper("b").hash(b"key"));
        assert!(Hash::parse(&hash.to_string()) == Some(hash));
        // RFC 4231, test case 2.
        let known = pepper("Jefe").hash(b"what do ya want for nothing?").to_string();
        assert_eq!(known, "hmac-sha256:5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        for wrong in ["", "hmac-sha256:", "sha256:00", &known[..70], &format!("{known}0"), &known.replace('5', "+")] {
            assert!(Hash::parse(wrong).is_none(), "{wrong}");
        }
    }
}
