//! Changes what is asked of the origin: path, host and query.

use std::collections::BTreeMap;

use http::HeaderValue;
use http::header::HOST;
use http::uri::{PathAndQuery, Uri};
use pingora::http::RequestHeader;
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::error::{Error, Reason, Result};
use crate::filters::filter::{Compiled, Flow, OnRequest, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::routing::path;
use crate::variables::{Scope, Template};

/// Rewrites the forwarded request. Routing and every earlier filter have seen it as it came.
///
/// Path changes apply in the order listed: `strip_prefix`, `regex`, `path`, `add_prefix`. The result is made canonical
/// once more; one that cannot be is answered 400.
///
/// ```yaml
/// rewrite:
///   strip_prefix: /shop
///   add_prefix: /v2
///   host: orders.internal
///   query: { set: { tenant: "${path.tenant}" }, remove: [debug] }
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Takes these leading segments off, where the path has them.
    pub strip_prefix: Option<String>,
    /// Replaces what a regular expression finds in the path.
    pub regex: Option<RegexRewrite>,
    /// Replaces the whole path. May hold variables, such as `/orders/${path.id}`.
    pub path: Option<String>,
    /// Puts these segments in front.
    pub add_prefix: Option<String>,
    /// The host that the origin is asked for. May hold variables.
    pub host: Option<String>,
    pub query: Query,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegexRewrite {
    /// A regular expression in the syntax of the Rust crate `regex`.
    pub pattern: String,
    /// What takes its place; `$1` and `${name}` stand for groups of the pattern.
    pub replacement: String,
}

/// Changes to the query: `remove` first, then `set`, then `add`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Query {
    pub remove: Vec<String>,
    pub set: BTreeMap<String, String>,
    pub add: BTreeMap<String, String>,
}

pub struct Rewrite {
    strip_prefix: Option<String>,
    regex: Option<(Regex, String)>,
    path: Option<Template>,
    add_prefix: Option<String>,
    host: Option<Template>,
    remove: Vec<String>,
    set: Vec<(String, Template)>,
    add: Vec<(String, Template)>,
}

impl FilterKind for Rewrite {
    const NAME: &'static str = "rewrite";
    const STAGE: Stage = Stage::Transform;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let (path, problems) = (at.path, &mut *at.problems);
        let before = problems.0.len();
        let mut template = |text: &String, at: String| {
            Template::parse(text).map_err(|error| problems.add(format!("{path}.{at}"), error)).ok()
        };
        let whole_path = config.path.as_ref().and_then(|text| template(text, "path".into()));
        let host = config.host.as_ref().and_then(|text| template(text, "host".into()));
        let mut pairs = |written: &BTreeMap<String, String>, word: &str| -> Vec<(String, Template)> {
            let one = |(name, text): (&String, &String)| {
                Some((name.clone(), template(text, format!("query.{word}.{name}"))?))
            };
            written.iter().filter_map(one).collect()
        };
        let (set, add) = (pairs(&config.query.set, "set"), pairs(&config.query.add, "add"));
        let regex = config.regex.and_then(|rewrite| {
            match regex::RegexBuilder::new(&rewrite.pattern).size_limit(1 << 20).build() {
                Ok(regex) => Some((regex, rewrite.replacement)),
                Err(error) => {
                    problems.add(format!("{path}.regex.pattern"), format!("not a regular expression: {error}"));
                    None
                }
            }
        });
        let mut prefix = |written: Option<String>, word: &str| {
            if let Some(text) =
                written.as_ref().filter(|text| !text.starts_with('/') || *text == "/" || text.ends_with('/'))
            {
                problems
                    .add(format!("{path}.{word}"), format!("`{text}` must start with a slash and not end with one"));
            }
            written
        };
        let strip_prefix = prefix(config.strip_prefix, "strip_prefix");
        let add_prefix = prefix(config.add_prefix, "add_prefix");
        let filter =
            Rewrite { strip_prefix, regex, path: whole_path, add_prefix, host, remove: config.query.remove, set, add };
        (problems.0.len() == before).then(|| Compiled::on_request(filter))
    }
}

impl OnRequest for Rewrite {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        match self.apply(request) {
            Ok(()) => Flow::Continue,
            Err(error) => Flow::Refuse(error),
        }
    }
}

impl Rewrite {
    fn apply(&self, request: &mut Request<'_>) -> Result<()> {
        let scope = Scope { exchange: request.exchange, request: request.head, response: None };
        let path = self.new_path(&scope)?;
        let query = self.new_query(&scope);
        let host = match &self.host {
            None => None,
            Some(template) => {
                let mut text = String::new();
                template.render(&scope, &mut text);
                Some(HeaderValue::try_from(text).map_err(|_| Error::new(Reason::BadHost))?)
            }
        };
        set_target(request.head, &path, query.as_deref())?;
        if let Some(host) = host {
            set_host(request.head, host)?;
        }
        Ok(())
    }

    fn new_path(&self, scope: &Scope<'_>) -> Result<String> {
        let mut path = scope.request.uri.path().to_owned();
        if let Some(prefix) = &self.strip_prefix
            && let Some(rest) = path.strip_prefix(prefix.as_str())
            && (rest.is_empty() || rest.starts_with('/'))
        {
            path = rest.to_owned();
        }
        if let Some((regex, replacement)) = &self.regex {
            path = regex.replace_all(&path, replacement.as_str()).into_owned();
        }
        if let Some(template) = &self.path {
            path.clear();
            template.render(scope, &mut path);
        }
        if let Some(prefix) = &self.add_prefix {
            path.insert_str(0, prefix);
        }
        if path.is_empty() {
            path.push('/');
        }
        let encoded = encode(&path, |b| matches!(b, b'/' | b'%' | b':' | b'@') || is_pchar(b));
        match path::canonical(encoded.as_bytes(), Default::default()) {
            Ok(path) => Ok(path.into_owned()),
            Err(_) => Err(Reason::BadPath.into()),
        }
    }

    /// The query to forward; `None` for none.
    fn new_query(&self, scope: &Scope<'_>) -> Option<String> {
        let written = scope.request.uri.query();
        if self.remove.is_empty() && self.set.is_empty() && self.add.is_empty() {
            return written.map(str::to_owned);
        }
        let dropped = |name: &str| self.remove.iter().any(|n| n == name) || self.set.iter().any(|(n, _)| n == name);
        let kept = written
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty() && !dropped(pair.split('=').next().unwrap_or_default()));
        let mut query = kept.collect::<Vec<_>>().join("&");
        for (name, template) in self.set.iter().chain(&self.add) {
            let mut value = String::new();
            template.render(scope, &mut value);
            if !query.is_empty() {
                query.push('&');
            }
            query.push_str(&encode(name, is_unreserved));
            query.push('=');
            query.push_str(&encode(&value, is_unreserved));
        }
        (!query.is_empty()).then_some(query)
    }
}

/// Replaces the target of a request, keeping scheme and authority where HTTP/2 has them.
pub fn set_target(head: &mut RequestHeader, path: &str, query: Option<&str>) -> Result<()> {
    let target = match query {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    let mut parts = head.uri.clone().into_parts();
    parts.path_and_query = Some(target.map_err(|_| Error::new(Reason::BadPath))?);
    head.set_uri(Uri::from_parts(parts).map_err(|_| Error::new(Reason::BadPath))?);
    Ok(())
}

/// Replaces the host of a request, in the header and, where HTTP/2 has one, in the authority.
fn set_host(head: &mut RequestHeader, host: HeaderValue) -> Result<()> {
    let authority = host.to_str().ok().and_then(|text| text.parse::<http::uri::Authority>().ok());
    let Some(authority) = authority else { return Err(Reason::BadHost.into()) };
    if head.uri.authority().is_some() {
        let mut parts = head.uri.clone().into_parts();
        parts.authority = Some(authority);
        head.set_uri(Uri::from_parts(parts).map_err(|_| Error::new(Reason::BadHost))?);
    }
    head.insert_header(HOST, host).map_err(|_| Error::new(Reason::BadHost))
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986, section 3.3, without `:` and `@`.
fn is_pchar(byte: u8) -> bool {
    is_unreserved(byte) || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}

fn encode(text: &str, keep: impl Fn(u8) -> bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if keep(byte) {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
