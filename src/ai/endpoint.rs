//! Where a provider takes calls of one format, and what a request there looks like.

use http::uri::{Authority, Scheme};
use http::{HeaderName, HeaderValue, Uri};
use pingora::http::RequestHeader;

use super::catalog::Credential;
use super::formats::anthropic::hosted::Host;
use super::formats::{Format, bedrock};
use super::quirks::Quirks;

/// One base URL of a provider, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub format: Format,
    /// As `Host` names it.
    pub authority: String,
    pub https: bool,
    /// What stands before the format's own paths, without a slash at the end.
    prefix: String,
}

impl Endpoint {
    /// Takes a base URL apart; an error says what is wrong with it.
    pub fn parse(format: Format, url: &str) -> Result<Endpoint, String> {
        let uri: Uri = url.parse().map_err(|_| "this is not a URL".to_owned())?;
        let https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err("a URL begins with `https://` or `http://`".to_owned()),
        };
        let authority = uri.authority().ok_or("the URL names no host")?;
        if authority.as_str().contains('@') {
            return Err("credentials do not belong into a URL; write them as `keys`".to_owned());
        }
        if uri.query().is_some() {
            return Err("a base URL has no query".to_owned());
        }
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Ok(Endpoint { format, authority: authority.as_str().to_owned(), https, prefix })
    }

    /// The same address, spoken to in another format.
    pub fn speaking(self, format: Format) -> Endpoint {
        Endpoint { format, ..self }
    }

    /// `host:port`, as targets are written.
    pub fn address(&self) -> String {
        let port = self.authority.parse::<Authority>().ok().and_then(|authority| authority.port_u16());
        match port {
            Some(_) => self.authority.clone(),
            None => format!("{}:{}", self.authority, if self.https { 443 } else { 80 }),
        }
    }

    /// A path below the base URL; it begins with a slash.
    pub fn path(&self, below: &str) -> String {
        format!("{}{below}", self.prefix)
    }

    /// A path below the base URL without the version at its end, such as `/v1`: what is below it is the provider's own.
    /// `None` if it would lead out of there.
    pub fn path_below_root(&self, path: &str) -> Option<String> {
        let root = match self.prefix.rsplit_once('/') {
            Some((root, version)) if is_version(version) => root,
            _ => &self.prefix,
        };
        // What is encoded may be decoded by whoever is behind.
        let plain = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/");
        let leaves = plain.split(['/', '\\']).any(|part| matches!(part, "." | ".."));
        (path.starts_with('/') && !leaves).then(|| format!("{root}{path}"))
    }

    /// The path of a model's method, as Gemini has it.
    pub fn gemini_path(&self, model: &str, method: &str) -> String {
        format!("{}/models/{}:{method}", self.prefix, segments(model))
    }

    /// The path and query of a chat call. `path` is the provider's own, where it differs from the format's.
    pub fn chat_path(&self, model: &str, stream: bool, path: Option<&str>, quirks: Quirks) -> String {
        let prefix = &self.prefix;
        match self.format {
            Format::Anthropic if Host::of(quirks) == Some(Host::Vertex) => {
                let method = if stream { "streamRawPredict" } else { "rawPredict" };
                format!("{prefix}/models/{}:{method}", segments(model))
            }
            Format::Anthropic if Host::of(quirks) == Some(Host::Bedrock) => {
                let operation = if stream { bedrock::Operation::InvokeStream } else { bedrock::Operation::Invoke };
                format!("{prefix}{}", bedrock::path(model, operation))
            }
            Format::OpenAiChat => format!("{prefix}{}", path.unwrap_or("/chat/completions")),
            Format::OpenAiCompletions => format!("{prefix}{}", path.unwrap_or("/completions")),
            Format::OpenAiResponses => format!("{prefix}/responses"),
            Format::Anthropic => format!("{prefix}/messages"),
            Format::Gemini if stream => format!("{prefix}/models/{}:streamGenerateContent?alt=sse", segments(model)),
            Format::Gemini => format!("{prefix}/models/{}:generateContent", segments(model)),
            Format::Bedrock => {
                let operation = if stream { bedrock::Operation::ConverseStream } else { bedrock::Operation::Converse };
                format!("{prefix}{}", bedrock::path(model, operation))
            }
            Format::Cohere => format!("{prefix}/chat"),
            Format::Ollama => format!("{prefix}/api/chat"),
        }
    }
}

/// `v1`, `v1beta`, `v2`: the end of most base URLs.
fn is_version(segment: &str) -> bool {
    let digit = segment.strip_prefix('v').is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_digit()));
    digit && segment.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// A name of a model as one segment of a path.
fn segment(name: &str) -> String {
    escaped(name, |byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}

/// A text as the value of a parameter of a query.
pub fn query_value(text: &str) -> String {
    segment(text)
}

/// A name that may stand for several segments, such as `publishers/x/models/y`.
fn segments(name: &str) -> String {
    escaped(name, |byte| byte.is_ascii_alphanumeric() || b"-._~/@".contains(&byte))
}

fn escaped(text: &str, plain: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match plain(byte) {
            true => out.push(char::from(byte)),
            false => out += &format!("%{byte:02X}"),
        }
    }
    // Nothing in a name may lead out of its place.
    if out.split('/').any(|part| matches!(part, "." | "..")) { out.replace('.', "%2E") } else { out }
}

/// Puts a key where the provider looks for it. False if the header would not be legal.
pub fn show_key(head: &mut RequestHeader, credential: &Credential, key: &str) -> bool {
    let secret = |text: &str| {
        let mut value = HeaderValue::from_str(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    };
    let shown = match credential {
        Credential::Bearer => secret(&format!("Bearer {key}")).map(|value| (http::header::AUTHORIZATION, value)),
        Credential::Header(name) => {
            HeaderName::from_bytes(name.as_bytes()).ok().and_then(|name| Some((name, secret(key)?)))
        }
        Credential::Query(name) => {
            let joint = if head.uri.query().is_some() { '&' } else { '?' };
            let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
            let target = format!("{target}{joint}{name}={}", segment(key));
            let Ok(uri) = target.parse::<Uri>() else { return false };
            head.set_uri(uri);
            return true;
        }
        Credential::AwsSigv4 | Credential::GoogleOauth => None,
        Credential::None => return true,
    };
    shown.is_some_and(|(name, value)| head.insert_header(name, value).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_taken_apart() {
        let endpoint = Endpoint::parse(Format::OpenAiChat, "https://api.example.com/openai/v1/").unwrap();
        assert_eq!(endpoint.address(), "api.example.com:443");
        assert_eq!(endpoint.chat_path("m", true, None, Quirks::default()), "/openai/v1/chat/completions");
        let local = Endpoint::parse(Format::Ollama, "http://127.0.0.1:11434").unwrap();
        assert_eq!((local.address().as_str(), local.https), ("127.0.0.1:11434", false));
        assert_eq!(local.chat_path("m", false, None, Quirks::default()), "/api/chat");
        for wrong in ["api.example.com", "ftp://a/", "https://user:pw@a/", "https://a/?k=1", "https://"] {
            assert!(Endpoint::parse(Format::OpenAiChat, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_models_name_stays_in_its_place_of_the_path() {
        let bedrock = Endpoint::parse(Format::Bedrock, "https://bedrock.example").unwrap();
        let name = "arn:aws:bedrock:eu:1:profile/a?b#c";
        assert_eq!(
            bedrock.chat_path(name, true, None, Quirks::default()),
            "/model/arn%3Aaws%3Abedrock%3Aeu%3A1%3Aprofile%2Fa%3Fb%23c/converse-stream"
        );
        let gemini = Endpoint::parse(Format::Gemini, "https://g.example/v1beta").unwrap();
        assert_eq!(
            gemini.chat_path("tuned/x y", false, None, Quirks::default()),
            "/v1beta/models/tuned/x%20y:generateContent"
        );
        assert!(!gemini.chat_path("../../secret", false, None, Quirks::default()).contains(".."));
    }

    #[test]
    fn a_raw_path_stays_below_the_base_without_its_version() {
        for (base, path, want) in [
            ("https://api.openai.com/v1", "/v1/vector_stores", Some("/v1/vector_stores")),
            ("https://g.example/v1beta", "/ws/a.b.C", Some("/ws/a.b.C")),
            ("https://host.example/team/openai/v1/", "/v1/models", Some("/team/openai/v1/models")),
            ("https://host.example/openai", "/x", Some("/openai/x")),
            ("https://host.example/a/v1", "/../b", None),
            ("https://host.example/a/v1", "/v1/%2e%2E/b", None),
            ("https://host.example/a/v1", "/v1/..%2fb", None),
            ("https://host.example/a/v1", "/..%5Cb", None),
            ("https://host.example/a/v1", "@evil.example/", None),
            ("https://host.example/a/v1", "", None),
        ] {
            let endpoint = Endpoint::parse(Format::OpenAiChat, base).unwrap();
            assert_eq!(endpoint.path_below_root(path).as_deref(), want, "{base} {path}");
        }
    }

    #[test]
    fn a_key_is_shown_where_the_provider_looks_and_is_not_printed() {
        let mut head = RequestHeader::build("POST", b"/v1/x?alt=sse", None).unwrap();
        assert!(show_key(&mut head, &Credential::Query("key".into()), "s3/cret"));
        assert_eq!(head.uri.to_string(), "/v1/x?alt=sse&key=s3%2Fcret");
        assert!(show_key(&mut head, &Credential::Header("x-api-key".into()), "s3cret"));
        assert!(show_key(&mut head, &Credential::Bearer, "s3cret"));
        assert_eq!(head.headers["authorization"], "Bearer s3cret");
        assert!(!format!("{:?}", head.headers).contains("s3cret"));
        assert!(!show_key(&mut head, &Credential::Bearer, "line\nbreak"));
    }
}
