//! HTTP to an authority: the limits that hold for every such call.

use std::path::{Path, PathBuf};
use std::time;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
pub use reqwest::Url;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use url::form_urlencoded;

use crate::config::units::Duration;
use crate::config::{Problems, Secret};

/// No key set, introspection or token answer comes near it.
const LARGEST_ANSWER: usize = 1 << 20;

/// How an authority is called.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpOptions {
    /// How long one call may take, from connecting to the last byte. Default: 5s.
    pub timeout: Duration,
    /// A PEM file with the certificate authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Lets calls go without TLS to hosts other than this one. Whoever is on the way can then let anybody in.
    pub allow_plain: bool,
}

impl Default for HttpOptions {
    fn default() -> Self {
        HttpOptions { timeout: Duration::from_secs(5), ca: None, allow_plain: false }
    }
}

/// How the gateway proves to an authority who it is (RFC 6749, section 2.3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuthMethod {
    /// `Authorization: Basic`.
    #[default]
    ClientSecretBasic,
    /// In the body of the call.
    ClientSecretPost,
}

/// The gateway's name and secret at an authority.
pub struct ClientAuth {
    pub id: String,
    pub secret: Option<Secret>,
    pub method: ClientAuthMethod,
}

/// A compiled way to call one authority. Calls run in the background, so that they take no worker's time and go on when
/// the request that has asked for them is gone.
#[derive(Clone)]
pub struct Http {
    client: reqwest::Client,
    background: Handle,
    allow_plain: bool,
}

/// A complete answer.
pub struct Reply {
    pub status: u16,
    pub body: Bytes,
}

impl HttpOptions {
    /// Reads an address that was written in the configuration.
    pub fn url(&self, written: &str, path: &str, problems: &mut Problems) -> Option<Url> {
        match Url::parse(written).map_err(|error| error.to_string()).and_then(|url| {
            self.allows(&url)?;
            Ok(url)
        }) {
            Ok(url) => Some(url),
            Err(message) => {
                problems.add(path, format!("this is no address to call: {message}"));
                None
            }
        }
    }

    fn allows(&self, url: &Url) -> Result<(), String> {
        allows(url, self.allow_plain)
    }

    /// The certificates of `ca`; reports those that cannot be used.
    fn authorities(&self, folder: &Path, path: &str, problems: &mut Problems) -> Option<Vec<reqwest::Certificate>> {
        let file = folder.join(self.ca.as_ref()?);
        let path = format!("{path}.ca");
        let read = std::fs::read(&file).map_err(|error| error.to_string());
        match read.and_then(|pem| reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| error.to_string())) {
            Ok(certificates) if !certificates.is_empty() => return Some(certificates),
            Ok(_) => problems.add(path, format!("{} holds no certificate", file.display())),
            Err(error) => problems.add(path, format!("cannot read {}: {error}", file.display())),
        }
        None
    }

    /// Makes the client. `None` after a problem, and where nothing is to be called because filters are only compiled to
    /// be looked at.
    pub fn client(
        &self,
        url: &Url,
        folder: &Path,
        background: Option<&Handle>,
        path: &str,
        problems: &mut Problems,
    ) -> Option<Http> {
        if self.timeout.get().is_zero() || self.timeout.get() > time::Duration::from_secs(60) {
            problems.add(format!("{path}.timeout"), "a call may take up to a minute");
        }
        let authorities = self.authorities(folder, path, problems);
        let background = background?.clone();
        let mut builder = reqwest::Client::builder()
            // A redirect would let whoever answers choose what the gateway calls inside its network.
            .redirect(reqwest::redirect::Policy::none())
            // Nor does the environment choose.
            .no_proxy()
            .referer(false)
            .timeout(self.timeout.get())
            .connect_timeout(self.timeout.get())
            .pool_max_idle_per_host(8)
            .pool_idle_timeout(time::Duration::from_secs(30))
            .user_agent(concat!("headgate/", env!("CARGO_PKG_VERSION")));
        if let Some(authorities) = authorities {
            builder = builder.tls_certs_only(authorities);
        } else if url.scheme() == "http" {
            // A machine need not have certificate authorities to call a neighbour without TLS.
            builder = builder.tls_certs_only([]);
        }
        match builder.build() {
            Ok(client) => Some(Http { client, background, allow_plain: self.allow_plain }),
            Err(error) => {
                problems.add(path, format!("no client can be made: {error}"));
                None
            }
        }
    }

    /// What makes two ways to call alike; a reload keeps what was fetched over the same one.
    pub fn fingerprint(&self, url: &Url, folder: &Path) -> String {
        let ca = self.ca.as_ref().and_then(|file| std::fs::read(folder.join(file)).ok()).unwrap_or_default();
        let digest = ring::digest::digest(&ring::digest::SHA256, &ca);
        format!("{url} {} {} {:?}", self.timeout, self.allow_plain, digest)
    }
}

/// `https` anywhere; `http` to this machine, or where that was allowed.
fn allows(url: &Url, allow_plain: bool) -> Result<(), String> {
    let host = url.host_str().ok_or("it names no host")?;
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    let own = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong into it".into());
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if own || allow_plain => Ok(()),
        "http" => Err("without TLS, whoever is on the way can answer; use https, or say `allow_plain: true`".into()),
        other => Err(format!("`{other}` is neither https nor http")),
    }
}

impl Http {
    /// Where calls and what waits for them run.
    pub fn background(&self) -> &Handle {
        &self.background
    }

    /// Reads an address that an authority has published.
    pub fn published_url(&self, written: &str) -> Option<Url> {
        let url = Url::parse(written).ok()?;
        allows(&url, self.allow_plain).ok().map(|()| url)
    }

    /// Fetches a JSON document. Errors are for the log.
    pub async fn get(&self, url: &Url) -> Result<Reply, String> {
        self.call(self.client.get(url.clone()).header(ACCEPT, "application/json")).await
    }

    /// Sends a form, and who is sending it.
    pub async fn post_form(&self, url: &Url, fields: &[(&str, &str)], auth: &ClientAuth) -> Result<Reply, String> {
        let request = self.client.post(url.clone()).header(ACCEPT, "application/json");
        let request = authenticated(request, fields, auth)?;
        self.call(request.header(CONTENT_TYPE, "application/x-www-form-urlencoded")).await
    }

    async fn call(&self, request: reqwest::RequestBuilder) -> Result<Reply, String> {
        let calling = self.background.spawn(async move {
            let mut response = request.send().await.map_err(described)?;
            let status = response.status().as_u16();
            if response.content_length().is_some_and(|length| length > LARGEST_ANSWER as u64) {
                return Err("the answer is too large".to_owned());
            }
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(described)? {
                if body.len() + chunk.len() > LARGEST_ANSWER {
                    return Err("the answer is too large".to_owned());
                }
                body.extend_from_slice(&chunk);
            }
            Ok(Reply { status, body: body.into() })
        });
        calling.await.unwrap_or_else(|_| Err("the gateway is ending".to_owned()))
    }
}

/// The form with who is sending it, in the way that was agreed.
fn authenticated(
    mut request: reqwest::RequestBuilder,
    fields: &[(&str, &str)],
    auth: &ClientAuth,
) -> Result<reqwest::RequestBuilder, String> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(fields);
    match &auth.secret {
        // RFC 6749, section 2.3.1: both parts are encoded as in a form.
        Some(secret) if auth.method == ClientAuthMethod::ClientSecretBasic => {
            let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            let pair = format!("{}:{}", encoded(&auth.id), encoded(secret.expose()));
            let mut value = http::HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair)))
                .map_err(|error| error.to_string())?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        Some(secret) => drop(form.append_pair("client_id", &auth.id).append_pair("client_secret", secret.expose())),
        None => drop(form.append_pair("client_id", &auth.id)),
    }
    Ok(request.body(form.finish()))
}

/// An error with its causes, without the address, which the caller names.
fn described(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_verified_ways_are_taken_unless_that_is_asked_for() {
        let outcome = |written: &str, allow_plain| {
            let mut problems = Problems::default();
            let options = HttpOptions { allow_plain, ..HttpOptions::default() };
            options.url(written, "here", &mut problems).is_some() && problems.is_empty()
        };
        for url in ["https://login.example.com/keys", "http://127.0.0.1:9/", "http://[::1]/", "http://localhost/"] {
            assert!(outcome(url, false), "{url}");
        }
        assert!(!outcome("http://login.example.com/", false) && outcome("http://login.example.com/", true));
        for url in ["file:///etc/passwd", "ftp://a/", "https://", "keys", "", "https://u:p@a/", "unix:/run/a"] {
            assert!(!outcome(url, true), "{url}");
        }
    }
}
