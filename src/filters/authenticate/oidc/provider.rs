//! The OpenID provider: what it publishes, and what it says of a user.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value};
use subtle::ConstantTimeEq;

use super::session::Login;
use crate::authority::{ClientAuth, Http, Refreshed, Reply, Url, Version, json};
use crate::filters::authenticate::jwt::keys::{Choice, Keys};
use crate::filters::authenticate::jwt::token::Token;
use crate::filters::authenticate::jwt::unix_now;

/// How far the provider's clock may be from ours, in seconds.
const LEEWAY: i64 = 30;

/// Without a word of the provider, it is asked again after five minutes.
const RECHECK: i64 = 300;

/// What a provider publishes (OpenID Connect Discovery 1.0, section 3), with its keys.
pub struct Provider {
    pub authorization: Url,
    pub token: Url,
    pub end_session: Option<Url>,
    /// Whether every answer names the provider (RFC 9207).
    pub names_itself: bool,
    keys: Keys,
}

/// What came of asking the provider. Reasons are for the log.
pub enum Failed {
    /// It says no.
    Refused(String),
    /// It says nothing that could be understood.
    Unavailable(String),
}

/// What the provider has given for a login or a refresh token.
#[derive(Clone)]
pub struct Granted {
    /// Of the ID token; a refresh may come without one.
    pub claims: Option<Map<String, Value>>,
    pub refresh_token: Option<String>,
    /// Seconds after which to ask again.
    pub recheck: i64,
}

/// The gateway as a client of a provider.
pub struct Client {
    pub issuer: String,
    pub auth: ClientAuth,
    pub redirect_url: Url,
    pub algorithms: Vec<Algorithm>,
    pub scope: String,
    pub provider: Arc<Refreshed<Provider>>,
    /// `None` where filters are only compiled to be looked at.
    pub http: Option<Http>,
}

/// Fetches what a provider publishes.
pub async fn discover(http: &Http, issuer: &str, url: &Url) -> Result<(Vec<u8>, Provider), String> {
    let fetch = async |url: &Url| match http.get(url).await? {
        Reply { status: 200, body } => Ok(body),
        reply => Err(format!("the answer of {url} is {}", reply.status)),
    };
    let published = fetch(url).await?;
    let members = json::object(&published).ok_or("the discovery document is no JSON object")?;
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    // Discovery, section 4.3: whoever publishes under this address speaks for this issuer only.
    if text("issuer") != Some(issuer) {
        return Err(format!("the discovery document is of another issuer: {:?}", text("issuer").unwrap_or_default()));
    }
    let address = |name: &str| {
        let url = text(name).and_then(|written| http.published_url(written));
        url.ok_or_else(|| format!("the discovery document has no usable `{name}`"))
    };
    let keys = fetch(&address("jwks_uri")?).await?;
    let provider = Provider {
        authorization: address("authorization_endpoint")?,
        token: address("token_endpoint")?,
        end_session: address("end_session_endpoint").ok(),
        names_itself: members.get("authorization_response_iss_parameter_supported") == Some(&Value::Bool(true)),
        keys: Keys::read(&keys)?,
    };
    Ok(([&published[..], &keys].concat(), provider))
}

impl Client {
    /// Where a browser is sent to log in.
    pub fn login_url(&self, provider: &Provider, login: &Login) -> Url {
        let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, login.verifier.as_bytes()));
        let mut url = provider.authorization.clone();
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.auth.id)
            .append_pair("redirect_uri", self.redirect_url.as_str())
            .append_pair("scope", &self.scope)
            .append_pair("state", &login.state)
            .append_pair("nonce", &login.nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        url
    }

    /// Exchanges the code of a login.
    pub async fn redeem(&self, code: &str, login: &Login) -> Result<Granted, Failed> {
        let fields = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", self.redirect_url.as_str()),
            ("code_verifier", &login.verifier),
        ];
        let granted = self.grant(&fields, Some(&login.nonce)).await?;
        match granted.claims.is_some() {
            true => Ok(granted),
            false => Err(Failed::Unavailable("the provider has given no ID token".into())),
        }
    }

    /// Asks whether a session still holds.
    pub async fn refresh(&self, refresh_token: &str) -> Result<Granted, Failed> {
        self.grant(&[("grant_type", "refresh_token"), ("refresh_token", refresh_token)], None).await
    }

    async fn grant(&self, fields: &[(&str, &str)], nonce: Option<&str>) -> Result<Granted, Failed> {
        let provider = self.provider.current();
        let (Some(http), Some(provider)) = (&self.http, provider) else {
            return Err(Failed::Unavailable("what the provider publishes could not be fetched yet".into()));
        };
        let url = &provider.value.token;
        let reply = http.post_form(url, fields, &self.auth).await.map_err(Failed::Unavailable)?;
        let said = json::object(&reply.body);
        match (reply.status, said) {
            (200, Some(said)) => self.understand(&provider, &said, nonce).await,
            // RFC 6749, section 5.2: of its errors, these say something of the code or the token, the others of us.
            (400, Some(said)) if said.get("error").is_some_and(|error| error == "invalid_grant") => {
                Err(Failed::Refused("the provider does not accept the code or the refresh token".into()))
            }
            (status, said) => {
                let error = said.as_ref().and_then(|said| said.get("error")).and_then(Value::as_str);
                Err(Failed::Unavailable(format!("the answer of {url} is {status} {:?}", error.unwrap_or_default())))
            }
        }
    }

    async fn understand(
        &self,
        provider: &Version<Provider>,
        said: &Map<String, Value>,
        nonce: Option<&str>,
    ) -> Result<Granted, Failed> {
        let text = |name: &str| said.get(name).and_then(Value::as_str);
        let claims = match text("id_token") {
            None => None,
            Some(token) => {
                Some(self.verified(provider, token, nonce).await.map_err(|why| Failed::Refused(why.into()))?)
            }
        };
        let claims = claims.map(|mut claims| {
            // What was granted, where the ID token does not say it.
            if let (None, Some(scope)) = (claims.get("scope"), text("scope")) {
                claims.insert("scope".into(), scope.into());
            }
            claims
        });
        let recheck = said.get("expires_in").and_then(Value::as_i64).unwrap_or(RECHECK);
        Ok(Granted { claims, refresh_token: text("refresh_token").map(str::to_owned), recheck: recheck.max(1) })
    }

    /// Verifies an ID token (OpenID Connect Core 1.0, section 3.1.3.7).
    async fn verified(
        &self,
        provider: &Version<Provider>,
        token: &str,
        nonce: Option<&str>,
    ) -> Result<Map<String, Value>, &'static str> {
        let token = Token::read(token.as_bytes())?;
        if !self.algorithms.contains(&token.algorithm) {
            return Err("the ID token's algorithm is not accepted");
        }
        if !is_signed(&token, &provider.value.keys)? {
            // Its keys may be new.
            if self.provider.ask() {
                self.provider.settled(Duration::from_secs(5)).await;
            }
            let newer = self.provider.current().ok_or("the ID token is signed with an unknown key")?;
            if !is_signed(&token, &newer.value.keys)? {
                return Err("the ID token is signed with an unknown key");
            }
        }
        if token.text("iss") != Some(&self.issuer) {
            return Err("the ID token is of another issuer");
        }
        let ours = std::slice::from_ref(&self.auth.id);
        let several = token.claims.get("aud").and_then(Value::as_array).is_some_and(|list| list.len() > 1);
        let authorized = token.claims.get("azp");
        if !token.is_for(ours) || (several && authorized.is_none()) || authorized.is_some_and(|azp| *azp != ours[0]) {
            return Err("the ID token is for another client");
        }
        token.valid_until(unix_now(), LEEWAY)?;
        let same = |nonce: &str| token.text("nonce").is_some_and(|own| own.as_bytes().ct_eq(nonce.as_bytes()).into());
        if !nonce.is_none_or(same) {
            return Err("the ID token belongs to another login");
        }
        match token.text("sub") {
            Some(subject) if !subject.is_empty() => Ok(token.claims),
            _ => Err("the ID token does not say who it is about"),
        }
    }
}

/// Whether a token is signed by one of the keys; false if they lack the one it names.
fn is_signed(token: &Token<'_>, keys: &Keys) -> Result<bool, &'static str> {
    match keys.choose(token.key_id.as_deref(), token.algorithm) {
        Choice::Key(key) if token.is_signed_by(key) => Ok(true),
        Choice::Unknown => Ok(false),
        Choice::Key(_) | Choice::Unfit | Choice::Ambiguous => Err("the ID token's signature is wrong"),
    }
}
