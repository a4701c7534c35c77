//! Identifies callers by user name and password.
//!
//! On the hot path: a caller who was let in a short while ago costs one keyed digest and one look into a table. What costs
//! more, the slow hash itself, is bounded by [`Passwords`].

mod passwords;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::{AUTHORIZATION, RETRY_AFTER};
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use zeroize::Zeroizing;

pub use passwords::Passwords;

use super::{Authenticator, Verdict};
use crate::config::units;
use crate::error::{Error, Reason};
use crate::filters::filter::{Compiled, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::identity::{BasicAuthEntry, Credential, Directory, Identity};
use passwords::{Digest, Refused, Trial};

/// Longer ones are refused unseen: hashing is to cost the same for whatever is sent.
const LONGEST_USER: usize = 256;
const LONGEST_PASSWORD: usize = 1024;

/// Longest base64 of both.
const LONGEST: usize = (LONGEST_USER + LONGEST_PASSWORD + 3) / 3 * 4;

const WRONG: &str = "the user name or the password is wrong";

/// An argon2id hash of nothing that could be presented, with the parameters of `headgate password hash`: what unknown
/// users are compared with where no consumer has a password.
const DECOY: &str = "$argon2id$v=19$m=19456,t=2,p=1$aGVhZGdhdGUgZGVjb3k$AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// Identifies the consumer by a user name and a password (RFC 7617), which it keeps as an argon2 hash:
/// `headgate password hash` makes one. Hashes are computed aside from other requests, a few at a time; when too many
/// are asked for, callers get 503, or 429 if it is their user name or address that asks for so many. The
/// `Authorization` header is removed before the request goes on.
///
/// ```yaml
/// basic_auth: { realm: orders, remember: 5m }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What browsers show when they ask for the password.
    pub realm: String,
    /// How long the outcome for a user name and password is remembered, under a keyed digest and in memory only. A
    /// changed hash and a removed consumer are noticed at once. `0s` computes the hash for each request.
    pub remember: units::Duration,
    /// Whether the `Authorization` header goes on to the origin.
    pub keep: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { realm: "headgate".into(), remember: units::Duration(Duration::from_secs(300)), keep: false }
    }
}

pub struct BasicAuth {
    challenge: HeaderValue,
    remember: Duration,
    keep: bool,
    /// One hash of each set of parameters in use: unknown users take as long as those who exist.
    decoys: Box<[Arc<str>]>,
    directory: Arc<Directory>,
    passwords: Arc<Passwords>,
}

impl FilterKind for BasicAuth {
    const NAME: &'static str = "basic_auth";
    const STAGE: Stage = Stage::Authenticate;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let realm = config.realm.replace('\\', "\\\\").replace('"', "\\\"");
        // RFC 7617, section 2.1: with `charset`, browsers send UTF-8.
        let challenge = HeaderValue::from_str(&format!("Basic realm=\"{realm}\", charset=\"UTF-8\""));
        if challenge.is_err() {
            at.problems.add(format!("{}.realm", at.path), "a realm is one line of printable ASCII");
        }
        // The text before the salt: `$argon2id$v=19$m=19456,t=2,p=1`.
        let parameters = |hash: &Arc<str>| hash.split('$').take(4).collect::<Vec<_>>().join("$");
        let decoys: BTreeMap<_, _> =
            at.directory.password_hashes().map(|hash| (parameters(hash), hash.clone())).collect();
        let decoys = if decoys.is_empty() { Box::from([Arc::from(DECOY)]) } else { decoys.into_values().collect() };
        Some(Compiled::authenticator(BasicAuth {
            challenge: challenge.ok()?,
            remember: config.remember.get(),
            keep: config.keep,
            decoys,
            directory: at.directory.clone(),
            passwords: at.lasting.passwords.clone(),
        }))
    }
}

impl BasicAuth {
    fn digest(&self, presented: &Presented, entry: Option<&BasicAuthEntry>) -> Digest {
        // The hash is a part of it: a new password or a consumer that is gone makes another digest.
        let hash = entry.map_or("", |entry| &entry.hash);
        let remember = self.remember.as_nanos().to_be_bytes();
        self.passwords.digest(&[presented.user().as_bytes(), presented.password(), hash.as_bytes(), &remember])
    }

    fn conclude(&self, right: bool, entry: Option<&BasicAuthEntry>) -> Verdict {
        match entry.filter(|_| right) {
            Some(entry) => {
                let credential = Credential::named(BasicAuth::NAME, &entry.hash);
                Verdict::Identified(Identity::of(entry.consumer.clone(), credential))
            }
            None => Verdict::Invalid(WRONG),
        }
    }
}

#[async_trait]
impl Authenticator for BasicAuth {
    fn authenticate(&self, request: &mut Request<'_>) -> Verdict {
        let presented = match Presented::read(request.head) {
            Ok(Some(presented)) => presented,
            Ok(None) => return Verdict::Absent,
            Err(why) => return Verdict::Invalid(why),
        };
        let entry = self.directory.basic_auth(presented.user());
        match self.passwords.remembered(&self.digest(&presented, entry), Instant::now()) {
            Some(right) => self.conclude(right, entry),
            None => Verdict::Wait,
        }
    }

    async fn authenticate_later(&self, request: &mut Request<'_>) -> Verdict {
        let Ok(Some(presented)) = Presented::read(request.head) else { return Verdict::Absent };
        let entry = self.directory.basic_auth(presented.user());
        let user = self.passwords.digest(&[presented.user().as_bytes()]);
        let decoy = self.decoys.get(user[0] as usize % self.decoys.len().max(1));
        let Some(hash) = entry.map(|entry| &entry.hash).or(decoy).cloned() else { return Verdict::Invalid(WRONG) };
        let trial = Trial {
            digest: self.digest(&presented, entry),
            user,
            client: request.exchange.client,
            hash,
            password: Zeroizing::new(presented.password().to_vec()),
            can_succeed: entry.is_some(),
            remember: self.remember,
        };
        match self.passwords.verify(trial).await {
            Ok(right) => self.conclude(right, entry),
            Err(Refused::TooManyOfThisCaller) => {
                Verdict::Unavailable(soon(Error::with(Reason::TooManyRequests, "too many different passwords at once")))
            }
            Err(Refused::TooMany | Refused::Failed) => Verdict::Unavailable(soon(Reason::AuthorityUnavailable.into())),
        }
    }

    fn strip(&self, head: &mut RequestHeader) {
        if !self.keep && head.headers.get_all(AUTHORIZATION).iter().any(|line| basic(line.as_bytes()).is_some()) {
            head.remove_header(&AUTHORIZATION);
        }
    }

    fn challenge(&self) -> Option<HeaderValue> {
        Some(self.challenge.clone())
    }
}

fn soon(error: Error) -> Error {
    error.header(RETRY_AFTER, HeaderValue::from_static("2"))
}

/// A user name and a password as they were sent.
struct Presented {
    both: Zeroizing<Vec<u8>>,
    colon: usize,
}

impl Presented {
    /// `Ok(None)` if the request has no `Authorization` of this scheme.
    fn read(head: &RequestHeader) -> Result<Option<Presented>, &'static str> {
        let mut lines = head.headers.get_all(AUTHORIZATION).iter();
        let (first, second) = (lines.next(), lines.next());
        let token = match (first.and_then(|line| basic(line.as_bytes())), second) {
            (Some(token), None) => token,
            // Whichever was taken, another reader might take the other.
            (Some(_), Some(_)) => return Err("several `Authorization` headers were presented"),
            (None, Some(_)) if head.headers.get_all(AUTHORIZATION).iter().any(|l| basic(l.as_bytes()).is_some()) => {
                return Err("several `Authorization` headers were presented");
            }
            (None, _) => return Ok(None),
        };
        if token.len() > LONGEST {
            return Err("the user name or the password is too long");
        }
        let both = Zeroizing::new(STANDARD.decode(token).map_err(|_| "the credentials are not base64")?);
        // RFC 7617, section 2: the first colon ends the name, and neither part has control characters.
        let colon = memchr::memchr(b':', &both).ok_or("the credentials have no colon")?;
        let text = std::str::from_utf8(&both).map_err(|_| "the credentials are not UTF-8")?;
        if text.chars().any(char::is_control) {
            return Err("the credentials have control characters");
        }
        let presented = Presented { both, colon };
        if presented.user().len() > LONGEST_USER || presented.password().len() > LONGEST_PASSWORD {
            return Err("the user name or the password is too long");
        }
        Ok(Some(presented))
    }

    fn user(&self) -> &str {
        self.both.get(..self.colon).and_then(|user| std::str::from_utf8(user).ok()).unwrap_or_default()
    }

    fn password(&self) -> &[u8] {
        self.both.get(self.colon + 1..).unwrap_or_default()
    }
}

/// The token of a `Basic` line; the scheme's case does not matter (RFC 9110, section 11.1).
fn basic(line: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = line.split_at_checked(5)?;
    let separated = token.is_empty() || token.starts_with(b" ");
    (scheme.eq_ignore_ascii_case(b"basic") && separated).then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&[u8]]) -> String {
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        for line in lines {
            head.append_header(AUTHORIZATION, HeaderValue::from_bytes(line).unwrap()).unwrap();
        }
        match Presented::read(&head) {
            Ok(None) => "absent".to_owned(),
            Ok(Some(presented)) => format!("{}|{}", presented.user(), String::from_utf8_lossy(presented.password())),
            Err(why) => why.to_owned(),
        }
    }

    #[test]
    fn only_one_well_formed_pair_is_read() {
        let encoded = |both: &[u8]| format!("Basic {}", STANDARD.encode(both)).into_bytes();
        assert_eq!(read(&[]), "absent");
        assert_eq!(read(&[b"Bearer abc"]), "absent");
        assert_eq!(read(&[b"Basics YTpi"]), "absent");
        // RFC 7617, sections 2 and 2.1.
        assert_eq!(read(&[b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="]), "Aladdin|open sesame");
        assert_eq!(read(&[b"bASIC   dGVzdDoxMjPCow=="]), "test|123\u{a3}");
        assert_eq!(read(&[&encoded(b"a:b:c")]), "a|b:c");
        assert_eq!(read(&[&encoded(b":p")]), "|p");
        for (hostile, why) in [
            (b"Basic".to_vec(), "no colon"),
            (b"Basic ***".to_vec(), "not base64"),
            (b"Basic YTpi YTpi".to_vec(), "not base64"),
            (b"Basic YTpiYw".to_vec(), "not base64"),
            (b"Basic YTpiY\xff==".to_vec(), "not base64"),
            (encoded(b"user"), "no colon"),
            (encoded(b"a:\0"), "control"),
            (encoded(b"a\0:b"), "control"),
            (encoded(b"a:b\x7f"), "control"),
            (encoded(b"a:\r\nb"), "control"),
            (encoded(b"a:\xff\xfe"), "UTF-8"),
            (encoded(&[&b"a:"[..], &[b'p'; 1025]].concat()), "too long"),
            (encoded(&[&[b'u'; 257][..], b":p"].concat()), "too long"),
            ([&b"Basic "[..], &[b'A'; 100_000]].concat(), "too long"),
        ] {
            let said = read(&[&hostile]);
            assert!(said.contains(why), "{:?}: {said}", String::from_utf8_lossy(&hostile));
        }
        assert!(read(&[b"Basic YTpi", b"Basic YTpi"]).contains("several"));
        assert!(read(&[b"Bearer x", b"Basic YTpi"]).contains("several"));
        assert_eq!(read(&[&encoded(&[&b"a:"[..], &[b'p'; 1024]].concat())]).len(), 1026);
    }

    #[test]
    fn the_decoy_is_a_hash_that_can_be_computed() {
        use argon2::PasswordVerifier;
        let hash = argon2::PasswordHash::new(DECOY).unwrap();
        let error = argon2::Argon2::default().verify_password(b"x", &hash).unwrap_err();
        assert!(matches!(error, argon2::password_hash::Error::PasswordInvalid), "{error}");
    }
}
