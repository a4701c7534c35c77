//! Tells browsers which other origins may read answers, and answers their preflight requests.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::Problems;
use crate::config::units::Duration;
use crate::filters::filter::{Answer, Compiled, Flow, OnRequest, OnResponse, Request, Response};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;

/// Cross-origin resource sharing, as the Fetch standard defines it.
///
/// A preflight is answered here with 204, before authentication: it carries no credentials. Answers to other requests
/// of an allowed origin get the headers; a request of any other origin is served without them, so that its page cannot
/// read the answer. What the origin server itself sends of these headers is replaced.
///
/// ```yaml
/// cors:
///   origins: ["https://app.example.com", "https://*.example.org"]
///   methods: [GET, POST]
///   headers: [content-type, authorization]
///   expose: [x-request-id]
///   credentials: true
///   max_age: 1h
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Origins whose pages may read answers: exact (`https://app.example.com`), any subdomain
    /// (`https://*.example.com`), or `*` for all, which excludes `credentials`.
    pub origins: Vec<String>,
    /// Methods that a preflight allows.
    #[serde(default = "default_methods")]
    pub methods: Vec<String>,
    /// Request headers that a preflight allows; `*` allows those it asks for.
    #[serde(default = "any")]
    pub headers: Vec<String>,
    /// Answer headers that a page may read beside the simple ones.
    #[serde(default)]
    pub expose: Vec<String>,
    /// Whether a page may send cookies and read the answer.
    #[serde(default)]
    pub credentials: bool,
    /// How long a browser may remember a preflight.
    #[serde(default = "default_max_age")]
    pub max_age: Duration,
}

fn default_methods() -> Vec<String> {
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"].map(String::from).to_vec()
}

fn any() -> Vec<String> {
    vec!["*".into()]
}

fn default_max_age() -> Duration {
    Duration::from_secs(600)
}

enum Origins {
    Any,
    Listed(Vec<Pattern>),
}

enum Pattern {
    Exact(String),
    /// Scheme with `://`, and the domain with its leading dot.
    Subdomains(String, String),
}

pub struct Cors {
    origins: Origins,
    methods: HeaderValue,
    /// `None` repeats what the preflight asks for.
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
}

impl FilterKind for Cors {
    const NAME: &'static str = "cors";
    const STAGE: Stage = Stage::Guard;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let (path, problems) = (at.path, &mut *at.problems);
        let before = problems.0.len();
        if config.origins.is_empty() {
            problems.add(format!("{path}.origins"), "no origin is named, so no page could read anything");
        }
        let origins = if config.origins.iter().any(|origin| origin == "*") {
            if config.credentials {
                problems.add(
                    format!("{path}.credentials"),
                    "browsers refuse credentials for the origin `*`; name the origins",
                );
            }
            Origins::Any
        } else {
            Origins::Listed(
                config
                    .origins
                    .iter()
                    .enumerate()
                    .filter_map(|(i, origin)| pattern(origin, &format!("{path}.origins[{i}]"), problems))
                    .collect(),
            )
        };
        let headers = (!config.headers.iter().any(|header| header == "*"))
            .then(|| list(&config.headers, &format!("{path}.headers"), problems))
            .flatten();
        let expose =
            (!config.expose.is_empty()).then(|| list(&config.expose, &format!("{path}.expose"), problems)).flatten();
        let methods = list(&config.methods, &format!("{path}.methods"), problems)?;
        let max_age = HeaderValue::from(config.max_age.get().as_secs());
        let filter = Cors { origins, methods, headers, expose, credentials: config.credentials, max_age };
        (problems.0.len() == before).then(|| Compiled::on_both(filter))
    }
}

impl OnRequest for Cors {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        let asked = &request.head.headers;
        let preflight = request.head.method == Method::OPTIONS && asked.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if !preflight || !asked.contains_key(ORIGIN) {
            return Flow::Continue;
        }
        // The headers on the way back are added by `on_response`, as for any other answer.
        let mut headers = Vec::new();
        if self.allowed(asked).is_some() {
            headers.push((ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone()));
            let allow = self.headers.clone().or_else(|| asked.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned());
            headers.extend(allow.map(|value| (ACCESS_CONTROL_ALLOW_HEADERS, value)));
            headers.push((ACCESS_CONTROL_MAX_AGE, self.max_age.clone()));
        }
        Flow::Answer(Answer { status: StatusCode::NO_CONTENT, headers, body: Default::default() })
    }
}

impl OnResponse for Cors {
    fn on_response(&self, response: &mut Response<'_>) {
        for name in [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_EXPOSE_HEADERS] {
            response.head.remove_header(&name);
        }
        // The answer depends on Origin even when this one is not allowed: a cache must know.
        if matches!(self.origins, Origins::Listed(_)) {
            let _ = response.head.append_header(VARY, HeaderValue::from_static("Origin"));
        }
        let Some(origin) = self.allowed(&response.request.headers) else { return };
        let mut set = |name: HeaderName, value: HeaderValue| {
            let _ = response.head.insert_header(name, value);
        };
        set(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            set(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &self.expose {
            set(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}

impl Cors {
    /// The value of `Access-Control-Allow-Origin` for this request, if its origin is allowed.
    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        match &self.origins {
            Origins::Any => Some(HeaderValue::from_static("*")),
            Origins::Listed(patterns) => {
                let text = origin.to_str().ok()?;
                patterns.iter().any(|pattern| pattern.matches(text)).then(|| origin.clone())
            }
        }
    }
}

impl Pattern {
    fn matches(&self, origin: &str) -> bool {
        match self {
            Pattern::Exact(exact) => origin.eq_ignore_ascii_case(exact),
            Pattern::Subdomains(scheme, domain) => {
                let lower = origin.to_ascii_lowercase();
                lower.strip_prefix(scheme.as_str()).and_then(|host| host.strip_suffix(domain.as_str())).is_some_and(
                    // What the star stands for is labels only: `https://evil.test/.example.com` is not a subdomain.
                    |labels| {
                        !labels.is_empty()
                            && labels.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
                    },
                )
            }
        }
    }
}

fn pattern(origin: &str, path: &str, problems: &mut Problems) -> Option<Pattern> {
    let lower = origin.to_ascii_lowercase();
    let parts = lower.split_once("://").filter(|(_, host)| !host.is_empty() && !host.contains('/'));
    match parts {
        Some((scheme, host)) if host.starts_with("*.") => {
            Some(Pattern::Subdomains(format!("{scheme}://"), host[1..].to_owned()))
        }
        Some((_, host)) if !host.contains('*') => Some(Pattern::Exact(lower)),
        _ => {
            problems.add(path, format!("`{origin}` is not an origin; write scheme and host, such as https://app.example.com, without a path"));
            None
        }
    }
}

fn list(names: &[String], path: &str, problems: &mut Problems) -> Option<HeaderValue> {
    let mut good = true;
    for (i, name) in names.iter().enumerate() {
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            problems.add(format!("{path}[{i}]"), format!("`{name}` is not a name that HTTP allows here"));
            good = false;
        }
    }
    good.then(|| HeaderValue::from_str(&names.join(", ")).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_stands_for_labels_of_the_same_scheme_only() {
        let mut problems = Problems::default();
        let pattern = pattern("https://*.example.com", "origins[0]", &mut problems).unwrap();
        for yes in ["https://a.example.com", "https://A.B.Example.com"] {
            assert!(pattern.matches(yes), "{yes}");
        }
        for no in [
            "https://example.com",
            "http://a.example.com",
            "https://evil.test/.example.com",
            "https://aexample.com",
            "null",
        ] {
            assert!(!pattern.matches(no), "{no}");
        }
    }

    #[test]
    fn credentials_with_any_origin_are_refused() {
        let config: Config = serde_yaml::from_str("{ origins: ['*'], credentials: true }").unwrap();
        let (compiled, problems) = crate::filters::registry::compile_alone::<Cors>(config);
        assert!(compiled.is_none());
        assert!(problems.0[0].path.ends_with("credentials"), "{}", problems.0[0]);
    }
}
