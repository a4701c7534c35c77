//! One issuer of tokens: what it is known by, and where its keys are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time;

use jsonwebtoken::Algorithm;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::keys::{Key, Keys};
use crate::authority::{HttpOptions, Refreshed};
use crate::config::units::Duration;
use crate::config::{Problems, SecretRef};
use crate::filters::registry::Site;

/// An issuer whose tokens are accepted. Its keys are one of `jwks_url`, `jwks`, `public_key` and `secret`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrittenIssuer {
    /// The `iss` of its tokens, exactly.
    #[schemars(length(min = 1))]
    pub issuer: String,
    /// A token names one of these in `aud`: tokens that the issuer gives out for others are not for us.
    #[schemars(length(min = 1))]
    pub audiences: Vec<String>,
    /// The algorithms that tokens may be signed with; what a token says of itself never adds to them.
    #[schemars(length(min = 1))]
    pub algorithms: Vec<WrittenAlgorithm>,
    /// Where the issuer publishes its keys (RFC 7517). They are fetched in the background, every `refresh` and when a token
    /// names an unknown one, and stay in use while the issuer is down.
    pub jwks_url: Option<String>,
    /// A file with keys in that form.
    pub jwks: Option<PathBuf>,
    /// A PEM file with its public key.
    pub public_key: Option<PathBuf>,
    /// The secret that it shares with the gateway, for HS256, HS384 and HS512: at least 32, 48 and 64 bytes.
    pub secret: Option<SecretRef>,
    /// The id of `public_key` or `secret`; tokens that name another are refused. Default: any.
    pub key_id: Option<String>,
    /// Time between two fetches of `jwks_url`, at least 10 seconds. Default: 10m.
    #[serde(default = "refresh")]
    pub refresh: Duration,
    /// How `jwks_url` is called.
    #[serde(default)]
    pub http: HttpOptions,
}

pub fn refresh() -> Duration {
    Duration::from_secs(600)
}

/// A signature algorithm (RFC 7518, section 3.1; RFC 8037). `none` is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum WrittenAlgorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

impl WrittenAlgorithm {
    pub fn get(self) -> Algorithm {
        match self {
            WrittenAlgorithm::HS256 => Algorithm::HS256,
            WrittenAlgorithm::HS384 => Algorithm::HS384,
            WrittenAlgorithm::HS512 => Algorithm::HS512,
            WrittenAlgorithm::RS256 => Algorithm::RS256,
            WrittenAlgorithm::RS384 => Algorithm::RS384,
            WrittenAlgorithm::RS512 => Algorithm::RS512,
            WrittenAlgorithm::PS256 => Algorithm::PS256,
            WrittenAlgorithm::PS384 => Algorithm::PS384,
            WrittenAlgorithm::PS512 => Algorithm::PS512,
            WrittenAlgorithm::ES256 => Algorithm::ES256,
            WrittenAlgorithm::ES384 => Algorithm::ES384,
            WrittenAlgorithm::EdDSA => Algorithm::EdDSA,
        }
    }
}

/// The compiled form.
pub struct Issuer {
    pub name: String,
    pub audiences: Vec<String>,
    pub algorithms: Vec<Algorithm>,
    pub keys: Source,
}

/// Where keys come from.
pub enum Source {
    Written(Keys),
    Published(Arc<Refreshed<Keys>>),
}

impl Source {
    /// Changes when the keys do.
    pub fn revision(&self) -> u64 {
        match self {
            Source::Written(_) => 0,
            Source::Published(keys) => keys.revision(),
        }
    }
}

impl Issuer {
    pub fn compile(written: &WrittenIssuer, path: &str, at: &mut Site<'_>) -> Option<Issuer> {
        let algorithms: Vec<_> = written.algorithms.iter().map(|algorithm| algorithm.get()).collect();
        let keys = Issuer::keys(written, path, at)?;
        if let Source::Written(keys) = &keys
            && let Some(unfit) = written.algorithms.iter().find(|known| !keys.all().any(|key| key.fits(known.get())))
        {
            let message = format!("no key of this issuer can be used with {unfit:?}");
            at.problems.add(format!("{path}.algorithms"), message);
        }
        Some(Issuer { name: written.issuer.clone(), audiences: written.audiences.clone(), algorithms, keys })
    }

    fn keys(written: &WrittenIssuer, path: &str, at: &mut Site<'_>) -> Option<Source> {
        let folder = at.around.folder;
        let of_file =
            |file: &Path, name: &str, problems: &mut Problems, read: &dyn Fn(&[u8]) -> Result<Keys, &'static str>| {
                let file = folder.join(file);
                let text = std::fs::read(&file).map_err(|error| error.to_string());
                let keys = text.and_then(|text| read(&text).map_err(str::to_owned));
                keys.map_err(|error| problems.add(format!("{path}.{name}"), format!("{}: {error}", file.display())))
                    .ok()
            };
        let id = written.key_id.as_deref();
        if id.is_some() && written.public_key.is_none() && written.secret.is_none() {
            at.problems
                .add(format!("{path}.key_id"), "belongs to `public_key` or `secret`; sets have ids of their own");
        }
        match (&written.jwks_url, &written.jwks, &written.public_key, &written.secret) {
            (Some(url), None, None, None) => Issuer::published(written, url, path, at).map(Source::Published),
            (None, Some(file), None, None) => of_file(file, "jwks", at.problems, &Keys::read).map(Source::Written),
            (None, None, Some(file), None) => {
                let read = |pem: &[u8]| Key::of_pem(pem).map(|key| Keys::one(id, key));
                of_file(file, "public_key", at.problems, &read).map(Source::Written)
            }
            (None, None, None, Some(secret)) => {
                let path = format!("{path}.secret");
                let secret = secret.resolve(folder, at.around.environment, &path, at.problems)?;
                let secret = secret.expose().as_bytes();
                if secret.starts_with(b"-----BEGIN") {
                    at.problems.add(path, "this is a key in PEM and no shared secret; write it as `public_key`");
                    return None;
                }
                Some(Source::Written(Keys::one(id, Key::of_secret(secret))))
            }
            _ => {
                at.problems.add(path, "an issuer has one of `jwks_url`, `jwks`, `public_key` and `secret`");
                None
            }
        }
    }

    fn published(written: &WrittenIssuer, url: &str, path: &str, at: &mut Site<'_>) -> Option<Arc<Refreshed<Keys>>> {
        // Keys that everybody can read are no shared secrets.
        if let Some(hmac) = written.algorithms.iter().find(|known| format!("{known:?}").starts_with("HS")) {
            at.problems
                .add(format!("{path}.algorithms"), format!("{hmac:?} needs a `secret`; published keys are none"));
        }
        if written.refresh.get() < time::Duration::from_secs(10) {
            at.problems.add(format!("{path}.refresh"), "at least 10 seconds");
        }
        let folder = at.around.folder;
        let url = written.http.url(url, &format!("{path}.jwks_url"), at.problems)?;
        let background = at.lasting.background();
        let http = written.http.client(&url, folder, background, &format!("{path}.http"), at.problems);
        let Some(http) = http else { return Some(Arc::default()) };
        let key = format!("{} {}", written.http.fingerprint(&url, folder), written.refresh);
        let start = || {
            let background = http.background().clone();
            let name = format!("keys of {}", written.issuer);
            Refreshed::start(name, written.refresh.get(), &background, move || {
                let (http, url) = (http.clone(), url.clone());
                async move {
                    let reply = http.get(&url).await?;
                    if reply.status != 200 {
                        return Err(format!("the answer is {}", reply.status));
                    }
                    let keys = Keys::read(&reply.body)?;
                    Ok((reply.body.to_vec(), keys))
                }
            })
        };
        Some(at.lasting.key_sets.get(key, start))
    }
}
