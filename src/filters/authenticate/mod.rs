//! Who calls: the filters that authenticate, and the step of a chain in which they do it together.

pub mod anonymous;
pub mod api_key;
pub mod basic_auth;
pub mod credentials;
pub mod ext_auth;
mod flights;
pub mod grants;
pub mod hmac;
pub mod introspection;
pub mod jwt;
pub mod mtls;
pub mod oidc;
mod remembered;

use std::sync::Arc;

use async_trait::async_trait;
use http::header::WWW_AUTHENTICATE;
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;

use super::filter::{Answer, Flow, OnRequestPerhaps, Request};
use crate::config::service::{Access, Require};
use crate::error::{Error, Reason};
use crate::identity::Identity;
use crate::variables::{Scope, Template};

/// What a filter that authenticates finds in a request.
pub enum Verdict {
    /// No credentials of its kind.
    Absent,
    Identified(Identity),
    /// Credentials that are no good. What is wrong with them is for the log: callers are told nothing, since what differs
    /// between an unknown and an expired key helps only those who guess.
    Invalid(&'static str),
    /// Good credentials that do not allow this, and the answer to them.
    Forbidden(Error),
    /// No credentials, but a way to get some: a login.
    Invite(Answer),
    /// An authority does not let the request pass, and says so itself.
    Deny(Answer),
    /// The request is for the filter itself, such as the end of a login; nobody else sees it.
    Answer(Answer),
    /// It cannot be found out whether they are good.
    Unavailable(Error),
    /// Only [`Authenticator::authenticate_later`] can tell.
    Wait,
}

/// A filter that finds out who calls.
#[async_trait]
pub trait Authenticator: Send + Sync {
    fn authenticate(&self, request: &mut Request<'_>) -> Verdict;

    /// Called when the other has said [`Verdict::Wait`].
    async fn authenticate_later(&self, request: &mut Request<'_>) -> Verdict {
        self.authenticate(request)
    }

    /// Removes its credentials from the request, which goes on to the origin, whoever has identified the caller.
    fn strip(&self, head: &mut RequestHeader);

    /// What a refusal asks for (RFC 9110, section 11.6.1).
    fn challenge(&self) -> Option<HeaderValue>;

    /// What a refusal of its own credentials asks for.
    fn challenge_to_invalid(&self) -> Option<HeaderValue> {
        self.challenge()
    }

    /// Whether it only steps in when no credentials were presented.
    fn is_fallback(&self) -> bool {
        false
    }
}

/// The headers that tell an origin who calls.
pub type IdentityHeaders = Arc<[(HeaderName, Template)]>;

/// All of a route's filters that authenticate, as one step.
pub struct Gate {
    /// Those that only step in for the others come last.
    authenticators: Box<[Arc<dyn Authenticator>]>,
    /// Whether a caller without credentials may pass.
    optional: bool,
    require: Require,
    headers: IdentityHeaders,
}

impl Gate {
    pub fn new(
        mut authenticators: Vec<Arc<dyn Authenticator>>,
        access: Option<Access>,
        require: Require,
        headers: IdentityHeaders,
    ) -> Self {
        authenticators.sort_by_key(|authenticator| authenticator.is_fallback());
        let optional = access == Some(Access::Open);
        Gate { authenticators: authenticators.into(), optional, require, headers }
    }

    /// Goes on with what the filters have found, the outcomes in their order.
    fn conclude(&self, request: &mut Request<'_>, outcome: Outcome) -> Flow {
        // All of them, also those that nobody asked: what a caller proves its identity with is not for the origin.
        self.authenticators.iter().for_each(|authenticator| authenticator.strip(request.head));
        match outcome {
            Outcome::Identified(identity) => {
                for (name, value) in std::mem::take(&mut request.controls.caller_headers) {
                    let _ = request.head.append_header(name, value);
                }
                request.exchange.identity = Some(identity);
                self.tell_origin(request);
                Flow::Continue
            }
            Outcome::Nobody if self.optional => Flow::Continue,
            Outcome::Nobody => Flow::Refuse(self.refusal(Reason::Unauthenticated, None)),
            Outcome::Invalid(why, whose) => {
                request.exchange.cause = Some(why);
                Flow::Refuse(self.refusal(Reason::InvalidCredentials, whose))
            }
            Outcome::Deny(answer) => {
                request.exchange.cause = Some("the authority denies it");
                Flow::Answer(answer)
            }
            Outcome::Answer(answer) => Flow::Answer(answer),
            Outcome::Invite(answer) if !self.optional => Flow::Answer(answer),
            Outcome::Invite(_) => Flow::Continue,
            Outcome::Forbidden(error) | Outcome::Unavailable(error) => Flow::Refuse(error),
        }
    }

    fn tell_origin(&self, request: &mut Request<'_>) {
        let mut text = String::new();
        for (name, template) in self.headers.iter() {
            let value = match template.is_consumer() {
                true => request.exchange.consumer().and_then(|consumer| consumer.name_value()),
                false => {
                    text.clear();
                    template.render(
                        &Scope { exchange: request.exchange, request: request.head, response: None },
                        &mut text,
                    );
                    // A claim that no header can hold is left out rather than mangled.
                    Some(&text).filter(|text| !text.is_empty()).and_then(|text| HeaderValue::from_str(text).ok())
                }
            };
            if let Some(value) = value {
                let _ = request.head.insert_header(name.clone(), value);
            }
        }
    }

    /// `invalid`: whose credentials were no good.
    fn refusal(&self, reason: Reason, invalid: Option<usize>) -> Error {
        let challenge = |(i, authenticator): (usize, &Arc<dyn Authenticator>)| match invalid == Some(i) {
            true => authenticator.challenge_to_invalid(),
            false => authenticator.challenge(),
        };
        let challenges = self.authenticators.iter().enumerate().filter_map(challenge);
        challenges.fold(Error::new(reason), |error, challenge| error.header(WWW_AUTHENTICATE, challenge))
    }
}

/// What all filters together have found.
enum Outcome {
    Identified(Identity),
    Nobody,
    /// Why, and by whom, counted among the authenticators.
    Invalid(&'static str, Option<usize>),
    Forbidden(Error),
    Invite(Answer),
    Deny(Answer),
    Answer(Answer),
    Unavailable(Error),
}

/// Puts verdicts together as they come.
struct Tally {
    require: Require,
    found: Option<Identity>,
    /// It was found by a filter that only steps in for the others.
    by_fallback: bool,
    missing: bool,
    invalid: Option<(&'static str, Option<usize>)>,
    forbidden: Option<Error>,
    answer: Option<Answer>,
    invite: Option<Answer>,
    deny: Option<Answer>,
    unavailable: Option<Error>,
}

impl Tally {
    fn new(require: Require) -> Self {
        Tally {
            require,
            found: None,
            by_fallback: false,
            missing: false,
            invalid: None,
            forbidden: None,
            answer: None,
            invite: None,
            deny: None,
            unavailable: None,
        }
    }

    /// Whether the authenticator has anything to say, after what was found so far.
    fn wants(&self, authenticator: &dyn Authenticator) -> bool {
        // Whoever presents bad credentials is not anonymous: the caller would not learn that they are bad.
        let refused = self.invalid.is_some() || self.forbidden.is_some() || self.deny.is_some();
        let presented = self.found.is_some() || refused;
        !authenticator.is_fallback() || !(presented || self.unavailable.is_some())
    }

    /// Takes the verdict of the authenticator with this number; true once nothing can change the outcome any more.
    fn add(&mut self, whose: usize, authenticator: &dyn Authenticator, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Identified(identity) => {
                self.by_fallback |= authenticator.is_fallback();
                match &mut self.found {
                    None => self.found = Some(identity),
                    Some(found) => {
                        if !merge(found, identity) {
                            self.invalid = Some(("the credentials are of different consumers", None));
                        }
                    }
                }
                return self.require == Require::Any;
            }
            Verdict::Absent | Verdict::Wait => self.missing = true,
            Verdict::Invalid(why) => self.invalid = self.invalid.or(Some((why, Some(whose)))),
            Verdict::Forbidden(error) => self.forbidden = self.forbidden.take().or(Some(error)),
            Verdict::Answer(answer) => {
                self.answer = Some(answer);
                return true;
            }
            Verdict::Invite(answer) => {
                self.missing = true;
                self.invite.get_or_insert(answer);
            }
            Verdict::Deny(answer) => {
                self.deny.get_or_insert(answer);
            }
            Verdict::Unavailable(error) => self.unavailable = self.unavailable.take().or(Some(error)),
        }
        false
    }

    fn outcome(self) -> Outcome {
        if let Some(answer) = self.answer {
            return Outcome::Answer(answer);
        }
        // A fallback was only asked because nothing at all was presented: nothing of it can be incomplete.
        let denied = self.forbidden.is_some() || self.deny.is_some();
        let refused = self.invalid.is_some() || denied || self.unavailable.is_some();
        let complete = self.require == Require::Any || self.by_fallback || !(self.missing || refused);
        let answered = self.deny.map(Outcome::Deny).or(self.invite.map(Outcome::Invite));
        match (self.found, self.unavailable, self.invalid, self.forbidden, answered) {
            (Some(identity), ..) if complete => Outcome::Identified(identity),
            (_, Some(error), ..) => Outcome::Unavailable(error),
            (_, _, Some((why, whose)), ..) => Outcome::Invalid(why, whose),
            (_, _, _, Some(error), _) => Outcome::Forbidden(error),
            (_, _, _, _, Some(answer)) => answer,
            // With `all`, one kind of credentials alone is as good as bad ones.
            (Some(_), ..) => Outcome::Invalid("not all of the credentials that are required were presented", None),
            (None, None, None, None, None) => Outcome::Nobody,
        }
    }
}

/// Adds what a second filter knows of the caller; false if they do not agree on who it is.
fn merge(found: &mut Identity, other: Identity) -> bool {
    if let (Some(one), Some(two)) = (&found.consumer, &other.consumer)
        && one.key != two.key
    {
        return false;
    }
    if found.anonymous {
        // Somebody was only let in, and now is known.
        (found.anonymous, found.credential) = (other.anonymous, other.credential);
    }
    found.consumer = found.consumer.take().or(other.consumer);
    found.claims = found.claims.take().or(other.claims);
    true
}

#[async_trait]
impl OnRequestPerhaps for Gate {
    fn on_request(&self, request: &mut Request<'_>) -> Option<Flow> {
        let mut tally = Tally::new(self.require);
        for (i, authenticator) in self.authenticators.iter().enumerate() {
            if !tally.wants(&**authenticator) {
                continue;
            }
            let verdict = authenticator.authenticate(request);
            if matches!(verdict, Verdict::Wait) {
                return None;
            }
            if tally.add(i, &**authenticator, verdict) {
                break;
            }
        }
        Some(self.conclude(request, tally.outcome()))
    }

    async fn wait(&self, request: &mut Request<'_>) -> Flow {
        let mut tally = Tally::new(self.require);
        for (i, authenticator) in self.authenticators.iter().enumerate() {
            if !tally.wants(&**authenticator) {
                continue;
            }
            let verdict = match authenticator.authenticate(request) {
                Verdict::Wait => authenticator.authenticate_later(request).await,
                verdict => verdict,
            };
            if tally.add(i, &**authenticator, verdict) {
                break;
            }
        }
        self.conclude(request, tally.outcome())
    }
}
