//! Verifies passwords at a bounded cost, and remembers the outcomes for a while.
//!
//! A slow hash is meant to cost much: whoever sends wrong passwords would have the whole machine compute them. So a few
//! threads that give way to those that serve requests do it, one password of a caller after the other; what waits for
//! them is bounded in total, by user name and by address. No outcome is kept with anything of the password: the tables
//! are keyed by digests whose key is this process's own.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use argon2::{Argon2, PasswordHash, PasswordVerifier};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::watch;
use zeroize::Zeroizing;

/// Passwords that may wait to be verified, those that are being verified among them. At the 20 ms of a usual hash the last
/// of them waits for five seconds on one thread.
const MOST_WAITING: usize = 256;
/// For one user name: a caller that has one password is one.
const MOST_OF_A_USER: usize = 8;
/// For one address, or one /64 of IPv6; a proxy that many share is one address too.
const MOST_OF_AN_ADDRESS: usize = 64;

/// Outcomes remembered: those that were right are no more than there are consumers, those that were wrong are what
/// anybody sends.
const MOST_RIGHT: usize = 1 << 17;
const MOST_WRONG: usize = 1 << 13;

/// Of the verifying threads: the scheduler gives them a tenth of what a serving thread can use.
const NICE: libc::c_int = 10;

/// Stands for a user name, a password and the hash it was compared with.
pub type Digest = [u8; 32];

/// A password to be compared with a hash.
pub struct Trial {
    pub digest: Digest,
    /// Stands for the user name.
    pub user: Digest,
    pub client: IpAddr,
    /// In the PHC form.
    pub hash: Arc<str>,
    pub password: Zeroizing<Vec<u8>>,
    /// Not so for an unknown user, whose password is compared only for the time it takes.
    pub can_succeed: bool,
    /// How long the outcome holds.
    pub remember: Duration,
}

/// Why a password was not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    TooMany,
    /// This user name or address has too many passwords waiting.
    TooManyOfThisCaller,
    /// It cannot be computed: no thread, no memory.
    Failed,
}

/// All passwords of a process, whichever filter of whichever configuration verifies them.
pub struct Passwords {
    key: hmac::Key,
    right: Outcomes,
    wrong: Outcomes,
    /// Only taken by callers whose password has to be computed.
    slow: Mutex<Slow>,
    most_threads: usize,
}

/// When each outcome is forgotten.
type Outcomes = papaya::HashMap<Digest, Instant, foldhash::fast::RandomState>;

type Outcome = Result<bool, Refused>;

#[derive(Default)]
struct Slow {
    threads: usize,
    queue: VecDeque<Trial>,
    /// Everything that waits or is being verified: several requests with the same password wait for one outcome.
    pending: HashMap<Digest, watch::Sender<Option<Outcome>>>,
    by_caller: HashMap<Caller, usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Caller {
    User(Digest),
    Address(IpAddr),
}

impl Default for Passwords {
    fn default() -> Self {
        let mut key = [0; 32];
        // Without the system's random numbers nothing that is remembered could be guessed still: it is never shown.
        if SystemRandom::new().fill(&mut key).is_err() {
            fastrand::fill(&mut key);
        }
        Passwords {
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            right: Outcomes::default(),
            wrong: Outcomes::default(),
            slow: Mutex::default(),
            // Memory is bounded by this too: the directory bounds what one hash may take.
            most_threads: thread::available_parallelism().map_or(1, |processors| processors.get() / 2).clamp(1, 8),
        }
    }
}

impl Passwords {
    pub fn digest(&self, parts: &[&[u8]]) -> Digest {
        let mut context = hmac::Context::with_key(&self.key);
        for part in parts {
            // With their lengths: `ab` and `c` are not `a` and `bc`.
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut digest = [0; 32];
        for (to, from) in digest.iter_mut().zip(context.sign().as_ref()) {
            *to = *from;
        }
        digest
    }

    /// Whether the password was right, if that is known.
    pub fn remembered(&self, digest: &Digest, now: Instant) -> Option<bool> {
        let holds = |outcomes: &Outcomes| outcomes.pin().get(digest).is_some_and(|until| now < *until);
        // Right ones first: those are the callers who come again.
        if holds(&self.right) {
            return Some(true);
        }
        holds(&self.wrong).then_some(false)
    }

    /// Compares a password with a hash. Goes on to its end if the caller does not wait for it: it is remembered then.
    pub async fn verify(self: &Arc<Self>, trial: Trial) -> Outcome {
        let mut outcome = self.begin(trial)?;
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.unwrap_or(Err(Refused::Failed)),
            Err(_) => Err(Refused::Failed),
        }
    }

    fn begin(self: &Arc<Self>, trial: Trial) -> Result<watch::Receiver<Option<Outcome>>, Refused> {
        let mut slow = self.slow();
        if let Some(pending) = slow.pending.get(&trial.digest) {
            return Ok(pending.subscribe());
        }
        slow.admit(&trial)?;
        let (sender, receiver) = watch::channel(None);
        slow.pending.insert(trial.digest, sender);
        slow.queue.push_back(trial);
        if slow.threads < self.most_threads {
            slow.threads += 1;
            let passwords = self.clone();
            let started = thread::Builder::new().name("password".into()).spawn(move || passwords.work());
            if started.is_err() {
                slow.threads -= 1;
                if slow.threads == 0 {
                    slow.give_up();
                    return Err(Refused::Failed);
                }
            }
        }
        Ok(receiver)
    }

    /// A thread's life: verifies what waits until nothing does. A thread of its own and not the runtime's, since a thread
    /// that has given way cannot be made equal again.
    fn work(&self) {
        // SAFETY: no memory is involved. On Linux, 0 is the calling thread, and giving way needs no privilege.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
        loop {
            let trial = {
                let mut slow = self.slow();
                let Some(trial) = slow.queue.pop_front() else {
                    slow.threads -= 1;
                    return;
                };
                trial
            };
            // A panic must not take the thread's place with it.
            let outcome = catch_unwind(AssertUnwindSafe(|| compare(&trial))).unwrap_or(Err(Refused::Failed));
            self.remember(&trial, outcome, Instant::now());
            self.slow().finish(&trial, outcome);
        }
    }

    fn remember(&self, trial: &Trial, outcome: Outcome, now: Instant) {
        let (outcomes, most) = match outcome {
            Ok(true) => (&self.right, MOST_RIGHT),
            Ok(false) => (&self.wrong, MOST_WRONG),
            Err(_) => return,
        };
        let Some(until) = now.checked_add(trial.remember).filter(|until| *until > now) else { return };
        let outcomes = outcomes.pin();
        if outcomes.len() >= most {
            outcomes.retain(|_, until| *until > now);
            // Still full: forgetting costs a hash each, keeping would cost memory without a bound.
            if outcomes.len() >= most {
                outcomes.clear();
            }
        }
        outcomes.insert(trial.digest, until);
    }

    fn slow(&self) -> MutexGuard<'_, Slow> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slow {
    /// Counts a trial in, if there is room for it.
    fn admit(&mut self, trial: &Trial) -> Result<(), Refused> {
        if self.pending.len() >= MOST_WAITING {
            return Err(Refused::TooMany);
        }
        let callers = trial.callers();
        let full = |(caller, most): &(Caller, usize)| self.by_caller.get(caller).is_some_and(|count| count >= most);
        if callers.iter().any(full) {
            return Err(Refused::TooManyOfThisCaller);
        }
        for (caller, _) in callers {
            *self.by_caller.entry(caller).or_default() += 1;
        }
        Ok(())
    }

    fn finish(&mut self, trial: &Trial, outcome: Outcome) {
        for (caller, _) in trial.callers() {
            if let Some(count) = self.by_caller.get_mut(&caller) {
                *count -= 1;
                if *count == 0 {
                    self.by_caller.remove(&caller);
                }
            }
        }
        if let Some(pending) = self.pending.remove(&trial.digest) {
            pending.send_replace(Some(outcome));
        }
    }

    /// Nobody is there to verify anything: whoever waits is told by the end of the channel.
    fn give_up(&mut self) {
        self.queue.clear();
        self.pending.clear();
        self.by_caller.clear();
    }
}

impl Trial {
    fn callers(&self) -> [(Caller, usize); 2] {
        // A subscriber has a whole /64 of IPv6.
        let address = match self.client.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
            address => address,
        };
        [(Caller::User(self.user), MOST_OF_A_USER), (Caller::Address(address), MOST_OF_AN_ADDRESS)]
    }
}

fn compare(trial: &Trial) -> Outcome {
    let hash = PasswordHash::new(&trial.hash).map_err(|_| Refused::Failed)?;
    match Argon2::default().verify_password(&trial.password, &hash) {
        Ok(()) => Ok(trial.can_succeed),
        Err(argon2::password_hash::Error::PasswordInvalid) => Ok(false),
        Err(_) => Err(Refused::Failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cheapest hash there is.
    fn hash(password: &str) -> Arc<str> {
        use argon2::PasswordHasher;
        let cheap = argon2::Params::new(8, 1, 1, None).unwrap();
        Argon2::from(cheap).hash_password(password.as_bytes()).unwrap().to_string().into()
    }

    fn trial(passwords: &Passwords, user: &str, password: &str, hash: &Arc<str>, client: &str) -> Trial {
        Trial {
            digest: passwords.digest(&[user.as_bytes(), password.as_bytes(), hash.as_bytes()]),
            user: passwords.digest(&[user.as_bytes()]),
            client: client.parse().unwrap(),
            hash: hash.clone(),
            password: Zeroizing::new(password.as_bytes().to_vec()),
            can_succeed: true,
            remember: Duration::from_secs(60),
        }
    }

    #[tokio::test]
    async fn an_outcome_is_remembered_for_its_time_and_under_its_own_digest() {
        let (passwords, hash) = (Arc::new(Passwords::default()), hash("right"));
        let [right, wrong] = ["right", "wrong"].map(|password| trial(&passwords, "u", password, &hash, "127.0.0.1"));
        let (right_digest, wrong_digest) = (right.digest, wrong.digest);
        let now = Instant::now();
        assert_eq!(passwords.remembered(&right_digest, now), None);
        assert_eq!((passwords.verify(right).await, passwords.verify(wrong).await), (Ok(true), Ok(false)));
        assert_eq!(passwords.remembered(&right_digest, now), Some(true));
        assert_eq!(passwords.remembered(&wrong_digest, now), Some(false));
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(
            (passwords.remembered(&right_digest, later), passwords.remembered(&wrong_digest, later)),
            (None, None)
        );
        assert_ne!(passwords.digest(&[b"ab", b"c"]), passwords.digest(&[b"a", b"bc"]));
        assert_ne!(right_digest, Passwords::default().digest(&[b"u", b"right", hash.as_bytes()]), "keyed per process");
        let mut unknown = trial(&passwords, "nobody", "right", &hash, "127.0.0.1");
        unknown.can_succeed = false;
        assert_eq!(passwords.verify(unknown).await, Ok(false), "an unknown user's decoy never lets anybody in");
        let mut broken = trial(&passwords, "u", "x", &"$argon2id$broken".into(), "127.0.0.1");
        broken.remember = Duration::ZERO;
        assert_eq!(passwords.verify(broken).await, Err(Refused::Failed));
    }

    #[test]
    fn what_waits_is_bounded_in_total_and_by_caller() {
        let (passwords, hash) = (Passwords::default(), Arc::from("unused"));
        let mut slow = Slow::default();
        let mut admit = |user: usize, password: usize, client: &str| {
            let trial = trial(&passwords, &user.to_string(), &password.to_string(), &hash, client);
            let admitted = slow.admit(&trial);
            if admitted.is_ok() {
                slow.pending.insert(trial.digest, watch::channel(None).0);
            }
            (admitted, trial)
        };
        for password in 0..MOST_OF_A_USER {
            assert_eq!(admit(0, password, &format!("10.0.0.{password}")).0, Ok(()));
        }
        assert_eq!(admit(0, 100, "10.0.1.1").0, Err(Refused::TooManyOfThisCaller), "one user from many addresses");
        for user in 1..=MOST_OF_AN_ADDRESS {
            assert_eq!(admit(user, 0, &format!("2001:db8::{user}")).0, Ok(()));
        }
        let (refused, _) = admit(1000, 0, "2001:db8::ffff");
        assert_eq!(refused, Err(Refused::TooManyOfThisCaller), "many users from one /64");
        let mut last = None;
        for user in 2000..2000 + MOST_WAITING - MOST_OF_A_USER - MOST_OF_AN_ADDRESS {
            let (admitted, trial) = admit(user, 0, &format!("10.1.{}.1", user % 250));
            assert_eq!(admitted, Ok(()));
            last = Some(trial);
        }
        assert_eq!(admit(5000, 0, "192.0.2.1").0, Err(Refused::TooMany));
        slow.finish(&last.unwrap(), Ok(false));
        assert_eq!(slow.pending.len(), MOST_WAITING - 1);
        assert!(slow.by_caller.values().all(|count| *count > 0), "who has nothing waiting takes no room");
    }

    #[test]
    fn wrong_passwords_cannot_fill_the_memory_nor_push_out_right_ones() {
        let (passwords, hash) = (Passwords::default(), Arc::from("unused"));
        let now = Instant::now();
        let right = trial(&passwords, "u", "right", &hash, "127.0.0.1");
        passwords.remember(&right, Ok(true), now);
        for attempt in 0..3 * MOST_WRONG {
            passwords.remember(&trial(&passwords, "u", &attempt.to_string(), &hash, "127.0.0.1"), Ok(false), now);
        }
        assert!(passwords.wrong.pin().len() <= MOST_WRONG);
        assert_eq!(passwords.remembered(&right.digest, now), Some(true));
    }

    #[tokio::test]
    async fn the_same_password_is_computed_once_for_all_who_wait() {
        let (passwords, hash) = (Arc::new(Passwords::default()), hash("right"));
        let many = (0..200).map(|_| {
            let (passwords, hash) = (passwords.clone(), hash.clone());
            async move { passwords.verify(trial(&passwords, "u", "right", &hash, "127.0.0.1")).await }
        });
        let outcomes = futures_util::future::join_all(many).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Ok(true)), "{outcomes:?}");
        assert!(passwords.slow().pending.is_empty() && passwords.slow().by_caller.is_empty());
    }
}
