//! Tokens that were verified, so that each is verified once.
//!
//! This is on the path of every request: a look costs one hash of the token and one read of a slot, and takes no lock. The
//! table belongs to one compiled filter, so that nothing outlives a reload, and has a fixed size.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use ring::digest::{Context, SHA256};
use ring::rand::{SecureRandom, SystemRandom};

use crate::identity::Identity;

/// How many slots a token may be in.
const WAYS: usize = 4;

/// The whole hash of a token.
pub type Digest = [u8; 32];

/// What was found out about a token.
pub struct Verified {
    digest: Digest,
    /// The second from which on the token is refused.
    pub until: i64,
    /// Which issuer it is from, and the revision of the keys it was verified with.
    pub issuer: usize,
    pub revision: u64,
    pub identity: Identity,
    /// Whether it may be used here; it is a good token in any case.
    pub sufficient: bool,
}

impl Verified {
    pub fn new(digest: Digest, until: i64, issuer: usize, revision: u64, identity: Identity, sufficient: bool) -> Self {
        Verified { digest, until, issuer, revision, identity, sufficient }
    }
}

/// A table of [`Verified`] tokens; when it is full, newer ones take the place of others.
pub struct Remembered {
    /// A hash that has taken in a random key already. Nobody can then aim at a slot.
    keyed: Context,
    /// A power of two, or zero.
    size: usize,
    /// Made when the first token is remembered: a filter may stand on a thousand routes.
    slots: OnceLock<Box<[ArcSwapOption<Verified>]>>,
}

impl Remembered {
    /// Remembers about as many tokens as that.
    pub fn new(tokens: usize) -> Self {
        let mut keyed = Context::new(&SHA256);
        // One whole block, so that it costs nothing for each token.
        let mut key = [0u8; 64];
        // Without random numbers slots could be aimed at, which costs their owners a verification and nothing else.
        let _ = SystemRandom::new().fill(&mut key);
        keyed.update(&key);
        let size = if tokens == 0 { 0 } else { tokens.next_power_of_two().max(WAYS) };
        Remembered { keyed, size, slots: OnceLock::new() }
    }

    pub fn digest(&self, token: &[u8]) -> Digest {
        let mut context = self.keyed.clone();
        context.update(token);
        let mut digest = [0; 32];
        for (to, from) in digest.iter_mut().zip(context.finish().as_ref()) {
            *to = *from;
        }
        digest
    }

    /// Hands what is known of a token to `use_it`.
    pub fn find<R>(&self, digest: &Digest, use_it: impl FnOnce(&Verified) -> R) -> Option<R> {
        for slot in self.ways(self.slots.get()?, digest) {
            if let Some(found) = &*slot.load()
                && found.digest == *digest
            {
                return Some(use_it(found));
            }
        }
        None
    }

    pub fn remember(&self, verified: Verified, now: i64) {
        if self.size == 0 {
            return;
        }
        let slots = self.slots.get_or_init(|| std::iter::repeat_with(ArcSwapOption::empty).take(self.size).collect());
        let digest = verified.digest;
        let ways = self.ways(slots, &digest);
        let replaceable = |slot: &&ArcSwapOption<Verified>| {
            slot.load().as_ref().is_none_or(|other| other.digest == digest || other.until <= now)
        };
        if let Some(slot) = ways.iter().find(replaceable).or_else(|| ways.get(fastrand::usize(..WAYS))) {
            slot.store(Some(Arc::new(verified)));
        }
    }

    fn ways<'s>(&self, slots: &'s [ArcSwapOption<Verified>], digest: &Digest) -> &'s [ArcSwapOption<Verified>] {
        let word = digest.iter().take(8).fold(0usize, |word, byte| word << 8 | usize::from(*byte));
        let first = word & self.size.wrapping_sub(1) & !(WAYS - 1);
        slots.get(first..first + WAYS).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(table: &Remembered, token: &str, until: i64) -> Verified {
        Verified::new(table.digest(token.as_bytes()), until, 0, 1, Identity::default(), true)
    }

    fn knows(table: &Remembered, token: &str) -> bool {
        table.find(&table.digest(token.as_bytes()), |_| ()).is_some()
    }

    #[test]
    fn a_token_is_found_again_and_no_other_one_is() {
        let table = Remembered::new(1000);
        assert!(!knows(&table, "a"));
        table.remember(verified(&table, "a", 10), 0);
        assert!(knows(&table, "a") && !knows(&table, "b") && !knows(&table, ""));
        assert_ne!(table.digest(b"a"), Remembered::new(1000).digest(b"a"), "each table has a key of its own");
    }

    #[test]
    fn the_table_never_grows_and_what_has_expired_goes_first() {
        let table = Remembered::new(4);
        for n in 0..1000 {
            table.remember(verified(&table, &n.to_string(), 10), 0);
        }
        assert_eq!(table.slots.get().unwrap().len(), 4);
        assert_eq!((0..1000).filter(|n| knows(&table, &n.to_string())).count(), 4);
        assert!(knows(&table, "999"));
        table.remember(verified(&table, "late", 20), 10);
        table.remember(verified(&table, "later", 20), 10);
        assert!(knows(&table, "late") && knows(&table, "later"));
        let none = Remembered::new(0);
        none.remember(verified(&none, "a", 10), 0);
        assert!(!knows(&none, "a"));
    }

    #[test]
    #[ignore = "a measurement: cargo test --release -- --ignored --nocapture remembered"]
    fn measure_a_look() {
        let table = Remembered::new(16384);
        let tokens: Vec<String> = (0..1000).map(|n| format!("{n:04}{}", "x".repeat(796))).collect();
        tokens.iter().for_each(|token| table.remember(verified(&table, token, 10), 0));
        let started = std::time::Instant::now();
        let mut found = 0usize;
        for _ in 0..1000 {
            for token in &tokens {
                let digest = table.digest(token.as_bytes());
                found += usize::from(table.find(&digest, |known| known.identity.clone()).is_some());
            }
        }
        println!("{:?} for each of {found} looks at tokens of 800 bytes", started.elapsed() / 1_000_000);
    }
}
