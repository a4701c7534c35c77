//! Identifies people with browsers: they log in at an OpenID provider, and a sealed cookie remembers it.
//!
//! The authorization code flow with PKCE (OpenID Connect Core 1.0, section 3.1; RFC 7636; RFC 9700).

pub mod provider;
mod session;

use std::sync::Arc;
use std::time;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, LOCATION, SET_COOKIE, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use subtle::ConstantTimeEq;
use url::form_urlencoded;

use self::provider::{Client, Failed, Granted, discover};
use self::session::{Cookies, Login, Session, random};
use super::credentials::{Place, Presented, presented, strip_cookies};
use super::flights::Flights;
use super::grants::{ConsumerRule, Grants, WrittenConsumer, WrittenRoles};
use super::jwt::{WrittenAlgorithm, unix_now};
use super::remembered::Remembered;
use super::{Authenticator, Verdict};
use crate::authority::{ClientAuth, ClientAuthMethod, HttpOptions, Refreshed, Url};
use crate::config::SecretRef;
use crate::config::units::Duration;
use crate::error::{Error, Reason};
use crate::filters::filter::{Answer, Compiled, OnResponse, Request, Response};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::identity::{Claims, Credential, Identity};
use crate::variables::cookies;

/// The kind of [`Credential`] that sessions are.
const KIND: &str = "oidc";

/// No scheme is registered for sessions of browsers; RFC 9110, section 15.5.2, wants one named.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Cookie");

/// How long somebody may take to log in, in seconds.
const LOGIN_TIME: i64 = 600;

/// More logins than that at once are forgotten ones.
const MOST_LOGINS: usize = 4;

/// Longer addresses are not come back to.
const LONGEST_RETURN: usize = 1024;

/// How long many requests of one page may come with a cookie that was just replaced, in seconds.
const OVERLAP: i64 = 30;

/// Claims that are about the token, and not about the user.
const PROTOCOL_CLAIMS: [&str; 9] = ["nonce", "at_hash", "c_hash", "s_hash", "iat", "exp", "nbf", "jti", "auth_time"];

/// Lets people log in with a browser at an OpenID provider that has a discovery document. Browsers that ask for a page are
/// sent there and come back to it; everything else is answered 401. What the ID token says is kept in a sealed cookie.
///
/// ```yaml
/// oidc:
///   issuer: https://login.example.com
///   client_id: headgate
///   client_secret: env:OIDC_SECRET
///   redirect_url: https://shop.example.com/oauth2/callback
///   session: { key: env:SESSION_KEY }
/// ```
///
/// The paths of `redirect_url` and `logout` have to lie on routes that have the filter. The provider has to know
/// `redirect_url`. While the provider is down, nobody can log in, and sessions go on until they have to be renewed: then the
/// answer is 503.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The provider: its discovery document lies below it at `/.well-known/openid-configuration`.
    pub issuer: String,
    /// The gateway's name at the provider.
    #[schemars(length(min = 1))]
    pub client_id: String,
    /// What it proves that with. Default: nothing, as a public client.
    pub client_secret: Option<SecretRef>,
    /// How it does that: `client_secret_basic` (default) or `client_secret_post`.
    #[serde(default)]
    pub client_auth: ClientAuthMethod,
    /// Where browsers come back to from the provider: an address of this gateway, whose path the filter answers itself.
    pub redirect_url: String,
    /// The path that ends a session, also at the provider if it knows how. Default: `/oauth2/logout`.
    #[serde(default = "logout")]
    pub logout: String,
    /// The path on which a browser is after that. Default: `/`.
    #[serde(default = "after_logout")]
    pub after_logout: String,
    /// What the provider is asked for. Default: `openid`.
    #[serde(default = "request_scopes")]
    pub request_scopes: Vec<String>,
    /// The algorithms that ID tokens may be signed with. Default: RS256 and ES256.
    #[serde(default = "algorithms")]
    #[schemars(length(min = 1))]
    pub algorithms: Vec<WrittenAlgorithm>,
    /// Of the ID token's claims, those that are kept. Default: all that are about the user.
    #[serde(default)]
    pub claims: Vec<String>,
    /// The session.
    pub session: WrittenSession,
    /// Which consumer a user is. Default: none is needed.
    pub consumer: Option<WrittenConsumer>,
    /// Scopes that callers must have, all of them; others get 403.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Roles that callers must have, one of them; others get 403.
    pub roles: Option<WrittenRoles>,
    /// Time between two looks at what the provider publishes, at least 10 seconds. Default: 10m.
    #[serde(default = "refresh")]
    pub refresh: Duration,
    /// How the provider is called.
    #[serde(default)]
    pub http: HttpOptions,
}

/// The cookie that remembers a login.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrittenSession {
    /// What cookies are sealed with: at least 32 random bytes, the same on every gateway, as `openssl rand -hex 32` makes.
    pub key: SecretRef,
    /// The cookie's name; with an https `redirect_url`, `__Host-` comes before it. Default: `headgate`.
    #[serde(default = "cookie")]
    #[schemars(regex(pattern = "^[A-Za-z0-9_.-]{1,64}$"))]
    pub cookie: String,
    /// How long a session lasts, up to 30d; so long, too, lives a copy of the cookie that somebody has made before a logout. If the provider gives refresh tokens, it is asked more often whether the session
    /// still holds. Default: 8h.
    #[serde(default = "lifetime")]
    pub lifetime: Duration,
}

fn logout() -> String {
    "/oauth2/logout".into()
}

fn after_logout() -> String {
    "/".into()
}

fn request_scopes() -> Vec<String> {
    vec!["openid".into()]
}

fn algorithms() -> Vec<WrittenAlgorithm> {
    vec![WrittenAlgorithm::RS256, WrittenAlgorithm::ES256]
}

fn cookie() -> String {
    "headgate".into()
}

fn lifetime() -> Duration {
    Duration::from_secs(8 * 3600)
}

fn refresh() -> Duration {
    Duration::from_secs(600)
}

pub struct Oidc {
    callback: String,
    logout: String,
    after_logout: String,
    session_place: [Place; 1],
    sessions: Remembered<Known>,
    desk: Arc<Desk>,
    refreshes: Arc<Flights<Outcome>>,
}

/// What logins and sessions are made with.
struct Desk {
    client: Client,
    cookies: Cookies,
    lifetime: i64,
    claims: Vec<String>,
    consumer: ConsumerRule,
    grants: Grants,
    /// What has come of a session's cookie that was replaced.
    replaced: Remembered<Outcome>,
}

/// A session that was opened.
struct Known {
    identity: Identity,
    sufficient: bool,
}

/// What came of asking the provider about a session.
#[derive(Clone)]
enum Outcome {
    Renewed { session: Session, cookie: HeaderValue },
    Over,
    Unavailable,
}

impl FilterKind for Oidc {
    const NAME: &'static str = "oidc";
    const STAGE: Stage = Stage::Authenticate;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let before = at.problems.0.len();
        let path = at.path;
        for (name, written) in [("logout", &config.logout), ("after_logout", &config.after_logout)] {
            if !is_local(written) {
                at.problems.add(format!("{path}.{name}"), "this is not a path");
            }
        }
        if config.session.lifetime.get() > time::Duration::from_secs(30 * 86400) {
            at.problems.add(format!("{path}.session.lifetime"), "at most 30d");
        }
        if !config.request_scopes.iter().any(|scope| scope == "openid") {
            at.problems.add(format!("{path}.request_scopes"), "without `openid` there is no login");
        }
        let (folder, environment) = (at.around.folder, at.around.environment);
        let key_path = format!("{path}.session.key");
        let key = config.session.key.resolve(folder, environment, &key_path, at.problems);
        if key.as_ref().is_some_and(|key| key.expose().len() < 32) {
            at.problems.add(key_path, "a key has at least 32 bytes; `openssl rand -hex 32` makes one");
        }
        let client = Oidc::client(&config, at)?;
        let bound_to = format!("{} {}", config.issuer, config.client_id);
        let secure = client.redirect_url.scheme() == "https";
        let cookies = Cookies::new(&key?, &bound_to, &config.session.cookie, secure)?;
        let optional = WrittenConsumer { required: false, ..WrittenConsumer::default() };
        let consumer = ConsumerRule::new(config.consumer.as_ref().unwrap_or(&optional), at.directory.clone());
        let filter = Arc::new(Oidc {
            callback: client.redirect_url.path().to_owned(),
            logout: config.logout,
            after_logout: config.after_logout,
            session_place: [Place::Cookie(cookies.session_name().to_owned())],
            sessions: Remembered::new(4096),
            desk: Arc::new(Desk {
                client,
                cookies,
                lifetime: config.session.lifetime.get().as_secs() as i64,
                claims: config.claims,
                consumer,
                grants: Grants::compile(config.scopes, config.roles, at),
                replaced: Remembered::new(1024),
            }),
            refreshes: Flights::new(100),
        });
        if filter.callback == filter.logout {
            at.problems.add(format!("{path}.logout"), "this is where browsers come back to from a login");
        }
        let compiled = Compiled { authenticator: Some(filter.clone()), response: Some(filter), ..Compiled::default() };
        (at.problems.0.len() == before).then_some(compiled)
    }
}

impl Oidc {
    fn client(config: &Config, at: &mut Site<'_>) -> Option<Client> {
        let (path, folder) = (at.path, at.around.folder);
        if config.refresh.get() < time::Duration::from_secs(10) {
            at.problems.add(format!("{path}.refresh"), "at least 10 seconds");
        }
        let secret = config.client_secret.as_ref().and_then(|secret| {
            secret.resolve(folder, at.around.environment, &format!("{path}.client_secret"), at.problems)
        });
        let redirect_url = Url::parse(&config.redirect_url).ok();
        let usable =
            |url: &Url| matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none();
        let redirect_url = redirect_url.filter(usable);
        if redirect_url.is_none() {
            at.problems.add(format!("{path}.redirect_url"), "this is no address of a page without a query");
        }
        let discovery = format!("{}/.well-known/openid-configuration", config.issuer.trim_end_matches('/'));
        let url = config.http.url(&discovery, &format!("{path}.issuer"), at.problems)?;
        let background = at.lasting.background();
        let http = config.http.client(&url, folder, background, &format!("{path}.http"), at.problems);
        let provider: Arc<Refreshed<_>> = match &http {
            None => Arc::default(),
            Some(http) => {
                let key = format!("{} {}", config.http.fingerprint(&url, folder), config.refresh);
                let start = || {
                    let (http, issuer, name) =
                        (http.clone(), config.issuer.clone(), format!("provider {}", config.issuer));
                    let background = http.background().clone();
                    Refreshed::start(name, config.refresh.get(), &background, move || {
                        let (http, issuer, url) = (http.clone(), issuer.clone(), url.clone());
                        async move { discover(&http, &issuer, &url).await }
                    })
                };
                at.lasting.providers.get(key, start)
            }
        };
        Some(Client {
            issuer: config.issuer.clone(),
            auth: ClientAuth { id: config.client_id.clone(), secret, method: config.client_auth },
            redirect_url: redirect_url?,
            algorithms: config.algorithms.iter().map(|algorithm| algorithm.get()).collect(),
            scope: config.request_scopes.join(" "),
            provider,
            http,
        })
    }

    /// What a session's cookie says; `Absent` if there is none that holds.
    fn session(&self, head: &RequestHeader) -> Verdict {
        let Presented::One(sealed) = presented(head, &self.session_place) else { return Verdict::Absent };
        let now = unix_now();
        let digest = self.sessions.digest(&sealed);
        if let Some(verdict) = self.sessions.find(&digest, now, |known| self.desk.verdict(known)) {
            return verdict;
        }
        let Some(session) = self.desk.cookies.open::<Session>(self.desk.cookies.session_name(), &sealed) else {
            return Verdict::Absent;
        };
        if now >= session.end {
            return Verdict::Absent;
        }
        if session.refresh_token.is_some() && now >= session.recheck {
            return Verdict::Wait;
        }
        let until = if session.refresh_token.is_some() { session.recheck.min(session.end) } else { session.end };
        match self.desk.known(session.claims) {
            Ok(known) => {
                let verdict = self.desk.verdict(&known);
                self.sessions.remember(digest, known, until, now);
                verdict
            }
            Err(why) => Verdict::Invalid(why),
        }
    }

    /// What comes of a session that the provider has to be asked about.
    async fn renewed(&self, request: &mut Request<'_>) -> Verdict {
        let (digest, session) = {
            let Presented::One(sealed) = presented(request.head, &self.session_place) else { return Verdict::Absent };
            let cookies = &self.desk.cookies;
            let Some(session) = cookies.open::<Session>(cookies.session_name(), &sealed) else {
                return Verdict::Absent;
            };
            (self.desk.replaced.digest(&sealed), session)
        };
        let known = self.desk.replaced.find(&digest, unix_now(), Outcome::clone);
        let outcome = match (known, &self.desk.client.http) {
            (Some(outcome), _) => outcome,
            (None, None) => Outcome::Unavailable,
            (None, Some(http)) => {
                // A page makes many requests at once; a provider that rotates refresh tokens takes each only once.
                let desk = self.desk.clone();
                let ask = move || async move {
                    let outcome = desk.renew(session).await;
                    if !matches!(outcome, Outcome::Unavailable) {
                        let now = unix_now();
                        desk.replaced.remember(digest, outcome.clone(), now + OVERLAP, now);
                    }
                    outcome
                };
                self.refreshes.join(digest, http.background(), ask).await.unwrap_or(Outcome::Unavailable)
            }
        };
        match outcome {
            Outcome::Renewed { session, cookie } => {
                request.controls.cookies.push(cookie);
                match self.desk.known(session.claims) {
                    Ok(known) => self.desk.verdict(&known),
                    Err(why) => Verdict::Invalid(why),
                }
            }
            Outcome::Over => {
                request.controls.cookies.extend(self.desk.cookies.delete(self.desk.cookies.session_name()));
                Verdict::Absent
            }
            Outcome::Unavailable => unavailable(),
        }
    }

    /// Sends a browser to the provider.
    fn invite(&self, head: &RequestHeader) -> Verdict {
        if !is_navigation(head) {
            return Verdict::Absent;
        }
        let client = &self.desk.client;
        let Some(provider) = client.provider.current() else {
            return if client.provider.begins() { Verdict::Wait } else { unavailable() };
        };
        let (Some(state), Some(nonce), Some(verifier)) = (random(), random(), random()) else {
            return Verdict::Unavailable(Error::new(Reason::Internal));
        };
        let asked = head.uri.path_and_query().map_or("/", |target| target.as_str());
        let fits = is_local(asked) && asked.len() <= LONGEST_RETURN;
        let return_to = if fits { asked } else { "/" }.to_owned();
        let login = Login { state, nonce, verifier, return_to, end: unix_now() + LOGIN_TIME };
        let cookies = &self.desk.cookies;
        let name = cookies.login_name(&login.state);
        let set = cookies.seal(&name, &login).and_then(|sealed| cookies.set(&name, &sealed, LOGIN_TIME));
        let mut lines = self.forgotten_logins(head);
        lines.extend(set);
        redirect(client.login_url(&provider.value, &login).as_str(), lines).map_or_else(unavailable, Verdict::Invite)
    }

    /// Deletes the cookies of logins, where there are so many that nobody can be at all of them.
    fn forgotten_logins(&self, head: &RequestHeader) -> Vec<HeaderValue> {
        let ours = cookies(&head.headers).map(|(name, _)| name).filter(|name| self.desk.cookies.is_login_name(name));
        let names: Vec<_> = ours.filter_map(|name| std::str::from_utf8(name).ok()).collect();
        match names.len() > MOST_LOGINS {
            true => names.iter().filter_map(|name| self.desk.cookies.delete(name)).collect(),
            false => Vec::new(),
        }
    }

    /// The end of a login: the browser comes back with a code.
    async fn come_back(&self, head: &RequestHeader) -> Verdict {
        let query = head.uri.query().unwrap_or_default();
        let parameter = |wanted: &str| {
            let mut found = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == wanted);
            let first = found.next().map(|(_, value)| value.into_owned());
            // One that is given twice means nothing.
            first.filter(|_| found.next().is_none())
        };
        let Some((login, name)) = parameter("state").and_then(|state| self.login(head, &state)) else {
            // A page that was loaded again.
            return match self.session(head) {
                Verdict::Identified(_) => redirect("/", Vec::new()).map_or_else(unavailable, Verdict::Answer),
                _ => refuse(Reason::Unauthenticated, "this login was not begun here, or has taken too long"),
            };
        };
        let client = &self.desk.client;
        // RFC 9207: a code of one provider is not taken to another.
        let names_itself = client.provider.current().is_some_and(|provider| provider.value.names_itself);
        if parameter("iss").map_or(names_itself, |issuer| issuer != client.issuer) {
            return refuse(Reason::InvalidCredentials, "the answer is of another provider");
        }
        if parameter("error").is_some() {
            return refuse(Reason::Forbidden, "the provider has not logged anybody in");
        }
        let Some(code) = parameter("code") else {
            return refuse(Reason::BadRequest, "the provider has sent no code");
        };
        let granted = match client.redeem(&code, &login).await {
            Ok(granted) => granted,
            Err(Failed::Refused(why)) => {
                log::warn!("login at {}: {why}", client.issuer);
                return refuse(Reason::InvalidCredentials, "the login could not be verified");
            }
            Err(Failed::Unavailable(why)) => {
                log::warn!("login at {}: {why}", client.issuer);
                return unavailable();
            }
        };
        let cookies = &self.desk.cookies;
        let mut session = self.desk.begin(granted);
        let set = cookies.seal_session(&mut session);
        let Some(set) = set.and_then(|sealed| cookies.set(cookies.session_name(), &sealed, self.desk.lifetime)) else {
            log::error!("the claims of {} fit into no cookie; name those that are needed as `claims`", client.issuer);
            return Verdict::Unavailable(Error::new(Reason::Internal));
        };
        let lines = [Some(set), cookies.delete(&name)].into_iter().flatten().collect();
        redirect(&login.return_to, lines).map_or_else(unavailable, Verdict::Answer)
    }

    /// The login of this state that this very browser has begun, and its cookie's name.
    fn login(&self, head: &RequestHeader, state: &str) -> Option<(Login, String)> {
        let name = self.desk.cookies.login_name(state);
        let Presented::One(sealed) = presented(head, &[Place::Cookie(name.clone())]) else { return None };
        let login: Login = self.desk.cookies.open(&name, &sealed)?;
        let same = bool::from(login.state.as_bytes().ct_eq(state.as_bytes()));
        (same && unix_now() < login.end).then_some((login, name))
    }

    /// The end of a session, here and at the provider.
    fn log_out(&self, head: &RequestHeader) -> Verdict {
        // A page elsewhere has no business in it.
        if head.headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
            return refuse(Reason::Forbidden, "another site has asked for it");
        }
        let cookies = &self.desk.cookies;
        let client = &self.desk.client;
        let provider = client.provider.current();
        let mut home = client.redirect_url.clone();
        home.set_path(&self.after_logout);
        let location = match provider.as_ref().and_then(|provider| provider.value.end_session.clone()) {
            // RP-Initiated Logout 1.0, section 2.
            Some(mut url) => {
                url.query_pairs_mut()
                    .append_pair("client_id", &client.auth.id)
                    .append_pair("post_logout_redirect_uri", home.as_str());
                url.into()
            }
            None => self.after_logout.clone(),
        };
        let lines = cookies.delete(cookies.session_name()).into_iter().collect();
        redirect(&location, lines).map_or_else(unavailable, Verdict::Answer)
    }
}

impl Desk {
    /// A new session.
    fn begin(&self, granted: Granted) -> Session {
        let now = unix_now();
        Session {
            claims: self.kept(granted.claims.unwrap_or_default()),
            end: now + self.lifetime,
            recheck: now.saturating_add(granted.recheck),
            refresh_token: granted.refresh_token,
        }
    }

    /// The claims that a session keeps.
    fn kept(&self, mut claims: Map<String, Value>) -> Map<String, Value> {
        match self.claims.is_empty() {
            true => claims.retain(|name, _| !PROTOCOL_CLAIMS.contains(&name.as_str())),
            false => claims.retain(|name, _| name == "sub" || self.claims.contains(name)),
        }
        claims
    }

    /// Asks the provider about a session.
    async fn renew(&self, mut session: Session) -> Outcome {
        let Some(token) = session.refresh_token.take() else { return Outcome::Over };
        let granted = match self.client.refresh(&token).await {
            Ok(granted) => granted,
            Err(Failed::Refused(why)) => {
                log::info!("session at {}: {why}", self.client.issuer);
                return Outcome::Over;
            }
            Err(Failed::Unavailable(why)) => {
                log::warn!("session at {}: {why}", self.client.issuer);
                return Outcome::Unavailable;
            }
        };
        if let Some(claims) = granted.claims {
            // Core 1.0, section 12.2: a refresh does not make one user another.
            if claims.get("sub") != session.claims.get("sub") {
                log::warn!("session at {}: the refresh token is of another user", self.client.issuer);
                return Outcome::Over;
            }
            session.claims = self.kept(claims);
        }
        session.refresh_token = granted.refresh_token.or(Some(token));
        session.recheck = unix_now().saturating_add(granted.recheck);
        let left = session.end - unix_now();
        let set = self.cookies.seal_session(&mut session);
        match set.and_then(|sealed| self.cookies.set(self.cookies.session_name(), &sealed, left)) {
            Some(cookie) => Outcome::Renewed { session, cookie },
            None => Outcome::Over,
        }
    }

    fn known(&self, claims: Map<String, Value>) -> Result<Known, &'static str> {
        let claims = Claims::new(claims);
        let subject = self.consumer.subject(&claims);
        let user = claims.text("sub").unwrap_or_default();
        let credential = Credential::named(KIND, &format!("{} {user}", self.client.issuer));
        let consumer = self.consumer.find(&self.client.issuer, subject.as_deref())?;
        let identity = Identity { consumer, credential, claims: Some(Arc::new(claims)), anonymous: false };
        let sufficient = self.grants.suffice(&identity);
        Ok(Known { identity, sufficient })
    }

    fn verdict(&self, known: &Known) -> Verdict {
        match known.sufficient {
            true => Verdict::Identified(known.identity.clone()),
            false => Verdict::Forbidden(Error::with(Reason::Forbidden, "the login does not allow this")),
        }
    }
}

/// Whether a text is a path of this host; `//elsewhere` is not.
fn is_local(path: &str) -> bool {
    path.starts_with('/') && !path[1..].starts_with(['/', '\\']) && !path.bytes().any(|byte| byte <= b' ')
}

/// Whether a browser asks for a page that a person looks at: only there a login makes sense.
fn is_navigation(head: &RequestHeader) -> bool {
    let accepts = head
        .headers
        .get_all(ACCEPT)
        .iter()
        .any(|line| memchr::memmem::find(&line.as_bytes().to_ascii_lowercase(), b"text/html").is_some());
    let navigates = head.headers.get("sec-fetch-mode").is_none_or(|mode| mode == "navigate");
    head.method == Method::GET && accepts && navigates
}

/// Sends the browser elsewhere; `None` if the address cannot be written.
fn redirect(location: &str, cookies: Vec<HeaderValue>) -> Option<Answer> {
    let mut headers: Vec<(HeaderName, HeaderValue)> =
        vec![(LOCATION, HeaderValue::from_str(location).ok()?), (CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    headers.extend(cookies.into_iter().map(|line| (SET_COOKIE, line)));
    Some(Answer { status: StatusCode::FOUND, headers, body: Bytes::new() })
}

fn refuse(reason: Reason, detail: &'static str) -> Verdict {
    let mut error = Error::with(reason, detail).header(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if reason.status() == StatusCode::UNAUTHORIZED {
        error = error.header(WWW_AUTHENTICATE, CHALLENGE);
    }
    Verdict::Forbidden(error)
}

fn unavailable() -> Verdict {
    Verdict::Unavailable(Error::new(Reason::AuthorityUnavailable))
}

#[async_trait]
impl Authenticator for Oidc {
    fn authenticate(&self, request: &mut Request<'_>) -> Verdict {
        let path = request.head.uri.path();
        if path == self.callback {
            return Verdict::Wait;
        }
        if path == self.logout {
            return self.log_out(request.head);
        }
        match self.session(request.head) {
            Verdict::Absent => self.invite(request.head),
            verdict => verdict,
        }
    }

    async fn authenticate_later(&self, request: &mut Request<'_>) -> Verdict {
        if request.head.uri.path() == self.callback {
            return self.come_back(request.head).await;
        }
        let verdict = match self.session(request.head) {
            Verdict::Wait => self.renewed(request).await,
            verdict => verdict,
        };
        if !matches!(verdict, Verdict::Absent) {
            return verdict;
        }
        match self.invite(request.head) {
            Verdict::Wait => {
                self.desk.client.provider.settled(time::Duration::from_secs(1)).await;
                match self.invite(request.head) {
                    Verdict::Wait => unavailable(),
                    verdict => verdict,
                }
            }
            verdict => verdict,
        }
    }

    fn strip(&self, head: &mut RequestHeader) {
        let ours = &self.desk.cookies;
        strip_cookies(head, |name| name == ours.session_name().as_bytes() || ours.is_login_name(name));
    }

    fn challenge(&self) -> Option<HeaderValue> {
        Some(CHALLENGE)
    }
}

impl OnResponse for Oidc {
    fn on_response(&self, response: &mut Response<'_>) {
        for line in response.controls.cookies.drain(..) {
            let _ = response.head.append_header(SET_COOKIE, line);
            // What is set for one is not for others.
            let _ = response.head.insert_header(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_another_host() {
        for path in ["/", "/a?b=c", "/a//b", "/?to=//evil"] {
            assert!(is_local(path), "{path}");
        }
        for path in ["", "a", "//evil", "/\\evil", "https://evil", "/a b", "/\tevil", "/\n"] {
            assert!(!is_local(path), "{path:?}");
        }
    }

    #[test]
    fn only_pages_lead_to_a_login() {
        let is = |method: &str, headers: &[(&'static str, &'static str)]| {
            let mut head = RequestHeader::build(method, b"/", None).unwrap();
            for (name, value) in headers {
                head.append_header(*name, *value).unwrap();
            }
            is_navigation(&head)
        };
        let page = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
        assert!(is("GET", &[page]) && is("GET", &[page, ("sec-fetch-mode", "navigate")]));
        assert!(!is("GET", &[]) && !is("GET", &[("accept", "*/*")]) && !is("GET", &[("accept", "application/json")]));
        assert!(!is("POST", &[page]) && !is("GET", &[page, ("sec-fetch-mode", "cors")]));
    }
}
