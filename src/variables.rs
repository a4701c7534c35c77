//! The variables that texts of a configuration may hold, in access logs and in filters: `${client.address}`.
//!
//! | variable | value |
//! | --- | --- |
//! | `${request.id}` | the request's id, sent as `X-Request-Id` |
//! | `${request.method}` `${request.protocol}` | `GET`; `HTTP/1.1` or `HTTP/2.0` |
//! | `${request.path}` `${request.query}` `${request.target}` | of the request as it stands, so after a rewrite; the target is path and query |
//! | `${request.original_target}` | path and query as the client sent them |
//! | `${request.header.NAME}` | all values of a header, joined by `, ` |
//! | `${request.query.NAME}` `${request.cookie.NAME}` | the first value of that name, as it was sent |
//! | `${consumer}` `${consumer.team}` `${consumer.label.NAME}` | who calls, once a filter has found out |
//! | `${credential}` `${anonymous}` | kind and id of what it proved that with; `true` if it proved nothing and was let in |
//! | `${claim.NAME}` | what its token says; nested ones with dots, lists joined by `,` |
//! | `${limit}` | the limit that was hit |
//! | `${path.NAME}` | what the `{NAME}` of the route's path matched |
//! | `${client.address}` | the client's IP address, behind trusted proxies |
//! | `${client.certificate.subject}` `${client.certificate.fingerprint}` | of the certificate of the client's connection: its name as in RFC 4514; SHA-256 in hexadecimal |
//! | `${scheme}` `${host}` `${port}` `${listener}` | where the request came in |
//! | `${service}` `${route}` `${upstream}` `${target}` | who answers; the target is the last one tried |
//! | `${attempts}` | attempts made at targets |
//! | `${status}` `${response.header.NAME}` | the answer |
//! | `${reason}` | why the gateway answered itself |
//! | `${request.bytes}` `${response.bytes}` | body bytes |
//! | `${duration}` | seconds since the request was received |
//! | `${upstream.connect}` `${upstream.first_byte}` | seconds of the last attempt |
//! | `${time}` `${time.unix}` | now: RFC 3339 with milliseconds; seconds since 1970 |
//! | `${hostname}` | name of this machine |
//!
//! `$$` is a dollar. What is not known (yet) is empty, or `-` in a log.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};

use crate::config::nearest;
use crate::telemetry::exchange::Exchange;
use crate::telemetry::redact::{self, Redaction};
use crate::telemetry::{clock, escape};

/// What variables take their values from.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    pub exchange: &'a Exchange,
    pub request: &'a RequestHeader,
    pub response: Option<&'a ResponseHeader>,
}

/// A text with variables, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Variable(Variable),
}

/// Declares the variables without a parameter from one list, for parsing and for suggestions.
macro_rules! variables {
    ($($name:ident = $word:literal,)*) => {
        #[derive(Debug, Clone, PartialEq, Eq)]
        enum Variable {
            $($name,)*
            RequestHeader(HeaderName),
            RequestQueryOf(String),
            RequestCookie(String),
            PathCapture(String),
            ResponseHeader(HeaderName),
            ConsumerLabel(String),
            Claim(String),
        }

        const WORDS: &[&str] = &[$($word,)* "hostname"];

        fn word(name: &str) -> Option<Variable> {
            match name {
                $($word => Some(Variable::$name),)*
                _ => None,
            }
        }
    };
}

variables! {
    RequestId = "request.id",
    Method = "request.method",
    Protocol = "request.protocol",
    Path = "request.path",
    Query = "request.query",
    RequestTarget = "request.target",
    OriginalTarget = "request.original_target",
    RequestBytes = "request.bytes",
    ResponseBytes = "response.bytes",
    ClientAddress = "client.address",
    ClientCertificateSubject = "client.certificate.subject",
    ClientCertificateFingerprint = "client.certificate.fingerprint",
    Consumer = "consumer",
    ConsumerTeam = "consumer.team",
    Credential = "credential",
    Anonymous = "anonymous",
    Limit = "limit",
    Scheme = "scheme",
    Host = "host",
    Port = "port",
    Listener = "listener",
    Service = "service",
    Route = "route",
    Upstream = "upstream",
    Target = "target",
    Attempts = "attempts",
    Status = "status",
    Reason = "reason",
    Duration = "duration",
    UpstreamConnect = "upstream.connect",
    UpstreamFirstByte = "upstream.first_byte",
    Time = "time",
    TimeUnix = "time.unix",
}

/// What comes before the parameter of a variable that has one.
const FAMILIES: &[&str] =
    &["request.header.", "request.query.", "request.cookie.", "path.", "response.header.", "consumer.label.", "claim."];

impl Template {
    /// Compiles a text. The error names what is wrong and, where one is near, the variable that was meant.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut template = Template { parts: Vec::new() };
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            template.literal(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                template.literal("$");
                rest = after;
                continue;
            }
            let Some(inside) = rest.strip_prefix('{') else {
                return Err(format!(
                    "`${}` is not a variable; write `${{name}}`, or `$$` for a dollar",
                    start_of(rest)
                ));
            };
            let end = inside.find('}').ok_or_else(|| format!("`${{{}` has no closing brace", start_of(inside)))?;
            template.variable(&inside[..end])?;
            rest = &inside[end + 1..];
        }
        template.literal(rest);
        Ok(template)
    }

    /// True if the text is the same for every request.
    pub fn is_static(&self) -> bool {
        self.as_static().is_some()
    }

    /// The text, if it is the same for every request.
    pub fn as_static(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Whether the text is the consumer's name and nothing else.
    pub fn is_consumer(&self) -> bool {
        self.parts == [Part::Variable(Variable::Consumer)]
    }

    /// The names used as `${path.NAME}`, for comparison with those that a route's path captures.
    pub fn captures(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Variable(Variable::PathCapture(name)) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Appends the text. Values from the request are inserted as they are: whoever uses the result as a header, a path or
    /// a document checks or escapes it. What has no value adds nothing; bytes that are not UTF-8 become U+FFFD.
    pub fn render(&self, scope: &Scope<'_>, out: &mut String) {
        self.write(scope, &mut Raw(out));
    }

    /// Appends the text with every value from the request passed through `escape`, which makes it safe for the document
    /// that the text is; what the configuration wrote stays as it is.
    pub fn render_escaped(&self, scope: &Scope<'_>, escape: fn(&[u8], &mut String), out: &mut String) {
        self.write(scope, &mut Escaped { out, escape });
    }

    /// Appends the text for the inside of a JSON string of a log, without secrets.
    pub fn render_json_escaped(&self, scope: &Scope<'_>, redaction: &Redaction, out: &mut String) {
        self.write(scope, &mut JsonLog { out, redaction });
    }

    /// Appends the text for a line of a log, without secrets; values are escaped as nginx escapes them, absent ones `-`.
    pub fn render_log_line(&self, scope: &Scope<'_>, redaction: &Redaction, out: &mut String) {
        self.write(scope, &mut PlainLog { out, redaction });
    }

    fn literal(&mut self, text: &str) {
        match self.parts.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Literal(last)) => last.push_str(text),
            _ => self.parts.push(Part::Literal(text.to_owned())),
        }
    }

    fn variable(&mut self, name: &str) -> Result<(), String> {
        // The name of the machine does not change while we run.
        if name == "hostname" {
            self.literal(&hostname());
            return Ok(());
        }
        let variable = match word(name) {
            Some(variable) => variable,
            None => with_parameter(name)?,
        };
        self.parts.push(Part::Variable(variable));
        Ok(())
    }

    fn write(&self, scope: &Scope<'_>, sink: &mut impl Sink) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => sink.literal(text),
                Part::Variable(variable) => variable.write(scope, sink),
            }
        }
    }
}

fn with_parameter(name: &str) -> Result<Variable, String> {
    let split = FAMILIES.iter().find_map(|family| Some((*family, name.strip_prefix(family)?)));
    let Some((family, parameter)) = split else { return Err(unknown(name)) };
    if parameter.is_empty() {
        return Err(format!("`${{{name}}}` needs a name after the last dot"));
    }
    let header = || {
        HeaderName::from_bytes(parameter.as_bytes())
            .map_err(|_| format!("`{parameter}` in `${{{name}}}` is not a name that a header can have"))
    };
    Ok(match family {
        "request.header." => Variable::RequestHeader(header()?),
        "response.header." => Variable::ResponseHeader(header()?),
        "request.query." => Variable::RequestQueryOf(parameter.to_owned()),
        "request.cookie." => Variable::RequestCookie(parameter.to_owned()),
        "consumer.label." => Variable::ConsumerLabel(parameter.to_owned()),
        "claim." => Variable::Claim(parameter.to_owned()),
        _ => Variable::PathCapture(parameter.to_owned()),
    })
}

fn unknown(name: &str) -> String {
    // `request.headers.accept` is compared by its family, since its parameter could be anything.
    let family = name.rfind('.').map(|dot| name.split_at(dot + 1));
    let meant = nearest(name, WORDS.iter().copied()).or_else(|| {
        let (family, parameter) = family?;
        nearest(family, FAMILIES.iter().copied()).map(|known| format!("{known}{parameter}"))
    });
    match meant {
        Some(word) => format!("there is no variable `${{{name}}}` (did you mean `${{{word}}}`?)"),
        None => format!("there is no variable `${{{name}}}`"),
    }
}

/// The first characters of a text, for an error.
fn start_of(text: &str) -> String {
    text.chars().take(16).collect()
}

fn hostname() -> String {
    let name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::fs::read_to_string("/etc/hostname"));
    name.ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// Where a template is written to: what its values have to be made safe for.
trait Sink {
    /// Text from the configuration.
    fn literal(&mut self, text: &str);
    /// Text of our own making, which is safe anywhere.
    fn safe(&mut self, write: impl FnOnce(&mut String));
    /// Foreign bytes.
    fn value(&mut self, bytes: &[u8]);
    fn absent(&mut self);
    /// What must not be shown here.
    fn redaction(&self) -> Option<&Redaction>;

    fn optional(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) if !bytes.is_empty() => self.value(bytes),
            _ => self.absent(),
        }
    }

    fn named(&mut self, name: &[u8], value: Option<&[u8]>) {
        let hidden = value.is_some() && self.redaction().is_some_and(|redaction| redaction.hides(name));
        self.optional(if hidden { Some(redact::HIDDEN) } else { value });
    }

    fn integer(&mut self, value: impl itoa::Integer) {
        self.safe(|out| out.push_str(itoa::Buffer::new().format(value)));
    }

    fn seconds(&mut self, value: Option<Duration>) {
        match value {
            Some(value) => self.safe(|out| seconds(value, out)),
            None => self.absent(),
        }
    }
}

struct Raw<'a>(&'a mut String);

impl Sink for Raw<'_> {
    fn literal(&mut self, text: &str) {
        self.0.push_str(text);
    }
    fn safe(&mut self, write: impl FnOnce(&mut String)) {
        write(self.0);
    }
    fn value(&mut self, bytes: &[u8]) {
        self.0.push_str(&String::from_utf8_lossy(bytes));
    }
    fn absent(&mut self) {}
    fn redaction(&self) -> Option<&Redaction> {
        None
    }
}

struct Escaped<'a> {
    out: &'a mut String,
    escape: fn(&[u8], &mut String),
}

impl Sink for Escaped<'_> {
    fn literal(&mut self, text: &str) {
        self.out.push_str(text);
    }
    fn safe(&mut self, write: impl FnOnce(&mut String)) {
        write(self.out);
    }
    fn value(&mut self, bytes: &[u8]) {
        (self.escape)(bytes, self.out);
    }
    fn absent(&mut self) {}
    fn redaction(&self) -> Option<&Redaction> {
        None
    }
}

struct JsonLog<'a> {
    out: &'a mut String,
    redaction: &'a Redaction,
}

impl Sink for JsonLog<'_> {
    fn literal(&mut self, text: &str) {
        escape::json(text.as_bytes(), self.out);
    }
    fn safe(&mut self, write: impl FnOnce(&mut String)) {
        write(self.out);
    }
    fn value(&mut self, bytes: &[u8]) {
        escape::json(bytes, self.out);
    }
    fn absent(&mut self) {
        self.out.push('-');
    }
    fn redaction(&self) -> Option<&Redaction> {
        Some(self.redaction)
    }
}

struct PlainLog<'a> {
    out: &'a mut String,
    redaction: &'a Redaction,
}

impl Sink for PlainLog<'_> {
    fn literal(&mut self, text: &str) {
        self.out.push_str(text);
    }
    fn safe(&mut self, write: impl FnOnce(&mut String)) {
        write(self.out);
    }
    fn value(&mut self, bytes: &[u8]) {
        escape::plain(bytes, self.out);
    }
    fn absent(&mut self) {
        self.out.push('-');
    }
    fn redaction(&self) -> Option<&Redaction> {
        Some(self.redaction)
    }
}

impl Variable {
    fn write(&self, scope: &Scope<'_>, sink: &mut impl Sink) {
        let Scope { exchange, request, response } = *scope;
        match self {
            Variable::RequestId => sink.value(exchange.request_id.as_bytes()),
            Variable::Method => sink.value(request.method.as_str().as_bytes()),
            Variable::Protocol => sink.safe(|out| out.push_str(protocol(request.version))),
            Variable::Path => sink.value(split_target(request.raw_path()).0),
            Variable::Query => {
                let query = split_target(request.raw_path()).1;
                let shown = query.map(|query| match sink.redaction() {
                    Some(redaction) => redaction.query(query),
                    None => query.into(),
                });
                sink.optional(shown.as_deref());
            }
            Variable::RequestTarget => write_url(request.raw_path(), sink),
            Variable::OriginalTarget => write_url(original_target(scope), sink),
            Variable::RequestHeader(name) => write_header(&request.headers, name, sink),
            Variable::RequestQueryOf(name) => {
                let query = split_target(request.raw_path()).1.unwrap_or_default();
                let value = redact::parameters(query).find(|(known, _)| *known == name.as_bytes());
                sink.named(name.as_bytes(), value.and_then(|(_, value)| value));
            }
            Variable::RequestCookie(name) => sink.named(name.as_bytes(), cookie(&request.headers, name)),
            Variable::PathCapture(name) => sink.optional(exchange.captures.get(name).map(str::as_bytes)),
            Variable::ClientAddress => sink.safe(|out| write_address(exchange.client, out)),
            Variable::ClientCertificateSubject => {
                sink.optional(exchange.certificate.as_ref().map(|certificate| certificate.subject.as_bytes()));
            }
            Variable::ClientCertificateFingerprint => match &exchange.certificate {
                Some(certificate) => sink.safe(|out| out.push_str(&certificate.fingerprint_text())),
                None => sink.absent(),
            },
            Variable::Consumer => sink.optional(exchange.consumer().map(|consumer| consumer.name().as_bytes())),
            Variable::ConsumerTeam => {
                let team = exchange.consumer().and_then(|consumer| consumer.team.as_ref());
                sink.optional(team.map(|team| team.name.as_bytes()));
            }
            Variable::ConsumerLabel(name) => {
                sink.optional(exchange.consumer().and_then(|consumer| consumer.label(name)).map(str::as_bytes));
            }
            Variable::Credential => match &exchange.identity {
                Some(identity) if !identity.credential.kind.is_empty() => {
                    sink.safe(|out| identity.credential.write(out));
                }
                _ => sink.absent(),
            },
            Variable::Anonymous => {
                let anonymous = exchange.identity.as_ref().is_some_and(|identity| identity.anonymous);
                sink.optional(anonymous.then_some(b"true"));
            }
            Variable::Limit => sink.optional(exchange.limit.as_ref().map(|limit| limit.as_bytes())),
            Variable::Claim(name) => {
                let claims = exchange.identity.as_ref().and_then(|identity| identity.claims.as_ref());
                sink.named(name.as_bytes(), claims.and_then(|claims| claims.text(name)).as_deref().map(str::as_bytes));
            }
            Variable::Scheme => sink.safe(|out| out.push_str(exchange.scheme.as_str())),
            Variable::Host => sink.optional(Some(exchange.host.as_bytes())),
            Variable::Port => sink.integer(exchange.port),
            Variable::Listener => sink.value(exchange.listener.as_bytes()),
            Variable::Service => sink.optional(exchange.route.as_ref().map(|name| name.service.as_bytes())),
            Variable::Route => sink.optional(exchange.route.as_ref().map(|name| name.route.as_bytes())),
            Variable::Upstream => sink.optional(exchange.upstream.as_ref().map(|name| name.as_bytes())),
            Variable::Target => sink.optional(exchange.target.as_ref().map(|name| name.as_bytes())),
            Variable::Attempts => sink.integer(exchange.attempts),
            Variable::Status => match (exchange.status, response) {
                (0, Some(response)) => sink.integer(response.status.as_u16()),
                (0, None) => sink.absent(),
                (status, _) => sink.integer(status),
            },
            Variable::ResponseHeader(name) => match response {
                Some(response) => write_header(&response.headers, name, sink),
                None => sink.absent(),
            },
            Variable::Reason => sink.optional(exchange.reason.map(|reason| reason.label().as_bytes())),
            Variable::RequestBytes => sink.integer(exchange.request_bytes),
            Variable::ResponseBytes => sink.integer(exchange.response_bytes),
            Variable::Duration => sink.seconds(Some(match exchange.duration {
                Duration::ZERO => exchange.started.elapsed(),
                known => known,
            })),
            Variable::UpstreamConnect => sink.seconds(exchange.upstream_connect),
            Variable::UpstreamFirstByte => sink.seconds(exchange.upstream_first_byte),
            Variable::Time => sink.safe(|out| clock::rfc3339(SystemTime::now(), out)),
            Variable::TimeUnix => {
                sink.integer(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
            }
        }
    }
}

/// The target as the client sent it.
pub(crate) fn original_target<'a>(scope: &Scope<'a>) -> &'a [u8] {
    match &scope.exchange.original_target {
        Some(target) => target.as_bytes(),
        None => scope.request.raw_path(),
    }
}

/// The path, and the query if there is a `?`.
pub(crate) fn split_target(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'?', target) {
        Some(at) => (&target[..at], Some(&target[at + 1..])),
        None => (target, None),
    }
}

pub(crate) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

/// Seconds with six decimals: `0.001234`.
pub(crate) fn seconds(value: Duration, out: &mut String) {
    out.push_str(itoa::Buffer::new().format(value.as_secs()));
    out.push('.');
    let mut buffer = itoa::Buffer::new();
    let micros = buffer.format(value.subsec_micros());
    out.push_str(&"000000"[micros.len()..]);
    out.push_str(micros);
}

pub(crate) fn write_address(address: IpAddr, out: &mut String) {
    match address {
        IpAddr::V4(address) => {
            // Formatting takes three times as long, and every line of a log has one.
            for (i, octet) in address.octets().into_iter().enumerate() {
                if i > 0 {
                    out.push('.');
                }
                out.push_str(itoa::Buffer::new().format(octet));
            }
        }
        // Writing to a String cannot fail.
        IpAddr::V6(address) => _ = write!(out, "{address}"),
    }
}

fn write_url(url: &[u8], sink: &mut impl Sink) {
    let shown = sink.redaction().map(|redaction| redaction.url(url));
    sink.value(shown.as_deref().unwrap_or(url));
}

fn write_header(headers: &HeaderMap, name: &HeaderName, sink: &mut impl Sink) {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return sink.absent() };
    if sink.redaction().is_some_and(|redaction| redaction.hides(name.as_str().as_bytes())) {
        return sink.value(redact::HIDDEN);
    }
    let url = name == header::REFERER || name == header::LOCATION;
    let mut write = |value: &[u8]| if url { write_url(value, sink) } else { sink.value(value) };
    write(first.as_bytes());
    for value in values {
        write(b", ");
        write(value.as_bytes());
    }
}

/// The cookies of a request: names and values, over all its `Cookie` lines.
pub(crate) fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let lines = headers.get_all(header::COOKIE).iter().map(|line| line.as_bytes());
    lines.flat_map(|line| line.split(|byte| *byte == b';')).filter_map(|pair| {
        let pair = pair.trim_ascii();
        let at = memchr::memchr(b'=', pair)?;
        Some((&pair[..at], &pair[at + 1..]))
    })
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    cookies(headers).find(|(known, _)| *known == name.as_bytes()).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::error::Reason;
    use crate::telemetry::exchange::tests::{exchange, request, response};

    fn render(text: &str, scope: &Scope<'_>) -> String {
        let mut out = String::new();
        Template::parse(text).unwrap().render(scope, &mut out);
        out
    }

    #[test]
    fn every_variable_has_its_value() {
        let (exchange, request, response) = (exchange(), request(), response());
        let scope = Scope { exchange: &exchange, request: &request, response: Some(&response) };
        for (name, value) in [
            ("request.id", "0197-id"),
            ("request.method", "GET"),
            ("request.protocol", "HTTP/1.1"),
            ("request.path", "/internal/7"),
            ("request.query", "page=2&token=s3cret"),
            ("request.target", "/internal/7?page=2&token=s3cret"),
            ("request.original_target", "/orders/7?page=2&token=s3cret"),
            ("request.header.user-agent", "curl/8"),
            ("request.header.X-Many", "a, b"),
            ("request.query.page", "2"),
            ("request.cookie.theme", "dark"),
            ("path.id", "7"),
            ("client.address", "2001:db8::1"),
            ("consumer", "mobile"),
            ("consumer.team", "apps"),
            ("consumer.label.tier", "paying"),
            ("credential", "api_key:00000000000000ff"),
            ("anonymous", "true"),
            ("claim.email", "a@example.com"),
            ("limit", ""),
            ("scheme", "https"),
            ("host", "api.example.com"),
            ("port", "8443"),
            ("listener", "edge"),
            ("service", "shop"),
            ("route", "list"),
            ("upstream", "orders"),
            ("target", "10.0.0.1:80"),
            ("attempts", "2"),
            ("status", "200"),
            ("reason", "upstream_reset"),
            ("response.header.content-type", "text/plain"),
            ("request.bytes", "12"),
            ("response.bytes", "3456"),
            ("duration", "1.002003"),
            ("upstream.connect", "0.000450"),
            ("upstream.first_byte", "0.250000"),
        ] {
            assert_eq!(render(&format!("${{{name}}}"), &scope), value, "{name}");
        }
        assert_eq!(render("${time}", &scope).len(), 24);
        assert!(render("${time.unix}", &scope).parse::<u64>().unwrap() > 1_700_000_000);
        assert!(!render("${hostname}", &scope).is_empty());
        let tested = 32 + 3;
        assert!(WORDS.len() <= tested, "a new variable needs a line above");
    }

    #[test]
    fn what_is_not_known_is_empty_in_filters_and_a_dash_in_logs() {
        let mut exchange = exchange();
        exchange.route = None;
        exchange.upstream = None;
        exchange.target = None;
        exchange.status = 0;
        exchange.reason = None;
        exchange.upstream_connect = None;
        let request = RequestHeader::build("GET", b"/", None).unwrap();
        let scope = Scope { exchange: &exchange, request: &request, response: None };
        for name in [
            "request.query",
            "request.header.x",
            "request.query.x",
            "request.cookie.x",
            "path.x",
            "service",
            "route",
            "upstream",
            "target",
            "status",
            "reason",
            "response.header.x",
            "upstream.connect",
        ] {
            let text = format!("[${{{name}}}]");
            assert_eq!(render(&text, &scope), "[]", "{name}");
            let mut line = String::new();
            Template::parse(&text).unwrap().render_log_line(&scope, &Redaction::default(), &mut line);
            assert_eq!(line, "[-]", "{name}");
        }
    }

    #[test]
    fn dollars_are_doubled_and_literals_joined() {
        let template = Template::parse("a$$b").unwrap();
        assert_eq!(template.as_static(), Some("a$b"));
        assert!(Template::parse("").unwrap().is_static());
        assert!(!Template::parse("x${status}").unwrap().is_static());
        assert_eq!(Template::parse("${path.a}/${path.b}").unwrap().captures().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_wrong_variable_is_named_with_its_neighbour() {
        for (text, message) in [
            ("${client.adress}", "there is no variable `${client.adress}` (did you mean `${client.address}`?)"),
            (
                "${request.headers.accept}",
                "there is no variable `${request.headers.accept}` (did you mean `${request.header.accept}`?)",
            ),
            ("${zzzzzz}", "there is no variable `${zzzzzz}`"),
            ("${request.header.}", "`${request.header.}` needs a name after the last dot"),
            ("${request.header.a b}", "`a b` in `${request.header.a b}` is not a name that a header can have"),
            ("${env.HOME}", "there is no variable `${env.HOME}`"),
            ("$1", "`$1` is not a variable; write `${name}`, or `$$` for a dollar"),
            ("cost: $", "`$` is not a variable; write `${name}`, or `$$` for a dollar"),
            ("${status", "`${status` has no closing brace"),
        ] {
            assert_eq!(Template::parse(text).unwrap_err(), message);
        }
    }

    #[test]
    fn logs_hide_secrets_and_escape_hostile_bytes() {
        let (mut exchange, mut request) = (exchange(), request());
        exchange.reason = Some(Reason::Forbidden);
        exchange.upstream = Some(Arc::from("o"));
        request.insert_header("authorization", "Bearer s3cret").unwrap();
        request.insert_header("user-agent", http::HeaderValue::from_bytes(b"x\"\\\xff\ty").unwrap()).unwrap();
        request.insert_header("referer", "https://a/b?token=s3cret").unwrap();
        let scope = Scope { exchange: &exchange, request: &request, response: None };
        let text = "${request.header.authorization} ${request.header.user-agent} ${request.target} \
                    ${request.query.token} ${request.cookie.session} ${request.header.referer}";
        let template = Template::parse(text).unwrap();
        let (mut line, mut json) = (String::new(), String::new());
        template.render_log_line(&scope, &Redaction::default(), &mut line);
        template.render_json_escaped(&scope, &Redaction::default(), &mut json);
        assert_eq!(line, r"*** x\x22\x5C\xFF\x09y /internal/7?page=2&token=*** *** *** https://a/b?token=***");
        assert_eq!(json, "*** x\\\"\\\\\u{fffd}\\ty /internal/7?page=2&token=*** *** *** https://a/b?token=***");
    }
}
