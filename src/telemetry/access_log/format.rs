//! How a line of the access log looks.
//!
//! The members of a JSON line, always in this order; those marked `?` are left out when they have no value:
//!
//! `time` (RFC 3339 with milliseconds, when the request was finished), `request_id`, `trace_id?`, `client`, `listener`,
//! `scheme`, `host`, `port`, `method`, `path` and `query?` (as the client sent them), `forwarded_path?` (if another one
//! was forwarded), `protocol`, `status` (0: no answer was sent), `reason?`, `duration` (seconds), `request_bytes`,
//! `response_bytes`, `service?`, `route?`, `consumer?`, `credential?`, `limit?` (that was hit), `cause?` (why credentials
//! or a call were refused, where the caller is not told), `upstream?`, `target?`, `attempts`, `upstream_connect?`, `upstream_first_byte?`
//! (seconds), `ai?` (of a call of a model), `mcp?` (of a message to a server of tools), `referer?`, `user_agent?`, and then the configured `fields`.
//!
//! The members of `ai`: `requested` (the name asked for), `operation`, `format` (the caller's dialect), `stream`, `provider?`, `model?` (the
//! provider's name of it), `key?` (its place in the configuration), `attempts`, `first_token?` (seconds to the first content
//! of a stream), `input_tokens?`, `output_tokens?`, `cache_read_tokens?`, `cache_write_tokens?`, `reasoning_tokens?`, `cost?`
//! (dollars; left out while unknown), `counted?` (the provider told no tokens, and they were counted here), `reserved_tokens?` and
//! `reserved_cost?` (what budgets had set aside), `finish?` (why the answer ended).
//!
//! The members of `mcp`: `method` (of the protocol), `name?` (of the tool, prompt or resource, as callers know it), `server?`
//! (behind it), `error?` (the code of the error it was answered with), `tool_failed?` (true if the tool says that it failed).

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, header};

use crate::config::Problems;
use crate::config::telemetry::{AccessLog as Config, Format as Written};
use crate::telemetry::exchange::{AiCall, McpCall};
use crate::telemetry::redact::Redaction;
use crate::telemetry::{clock, escape};
use crate::variables::{Scope, Template, original_target, protocol, seconds, split_target, write_address};

/// What a line is made from.
pub struct Line<'a> {
    pub scope: Scope<'a>,
    pub at: SystemTime,
    /// Lower-case hexadecimal, if the request is traced.
    pub trace_id: Option<&'a str>,
}

#[derive(Debug)]
pub enum Format {
    /// The further members: the start of each up to its value, and the value.
    Json(Vec<(String, Template)>),
    Combined,
    Template(Template),
}

/// The members of every JSON line, which a configured field cannot have as its name.
const MEMBERS: &[&str] = &[
    "time",
    "request_id",
    "trace_id",
    "client",
    "listener",
    "scheme",
    "host",
    "port",
    "method",
    "path",
    "query",
    "forwarded_path",
    "protocol",
    "status",
    "reason",
    "duration",
    "request_bytes",
    "response_bytes",
    "service",
    "route",
    "consumer",
    "credential",
    "limit",
    "cause",
    "upstream",
    "target",
    "attempts",
    "upstream_connect",
    "upstream_first_byte",
    "ai",
    "mcp",
    "referer",
    "user_agent",
];

impl Format {
    pub fn compile(config: &Config, path: &str, problems: &mut Problems) -> Option<Format> {
        if !config.fields.is_empty() && config.format != Written::Json {
            problems.add(format!("{path}.fields"), "only lines of the format `json` have fields");
        }
        match &config.format {
            Written::Json => {
                let mut fields = Vec::new();
                for (name, text) in &config.fields {
                    let place = format!("{path}.fields.{name}");
                    if MEMBERS.contains(&name.as_str()) {
                        problems.add(&place, format!("every line has a member `{name}` already"));
                    }
                    let mut start = String::from(",\"");
                    escape::json(name.as_bytes(), &mut start);
                    start.push_str("\":\"");
                    fields.extend(template(text, &place, problems).map(|template| (start, template)));
                }
                Some(Format::Json(fields))
            }
            Written::Combined => Some(Format::Combined),
            Written::Template(text) => {
                if text.contains('\n') {
                    problems.add(format!("{path}.format.template"), "a line cannot hold a line break");
                }
                template(text, &format!("{path}.format.template"), problems).map(Format::Template)
            }
        }
    }

    /// Appends the line, without its end. Whatever the request holds, it stays one line.
    pub fn render(&self, line: &Line<'_>, redaction: &Redaction, out: &mut String) {
        match self {
            Format::Json(fields) => json(line, fields, redaction, out),
            Format::Combined => combined(line, redaction, out),
            Format::Template(template) => template.render_log_line(&line.scope, redaction, out),
        }
    }
}

fn template(text: &str, path: &str, problems: &mut Problems) -> Option<Template> {
    Template::parse(text).map_err(|message| problems.add(path, message)).ok()
}

fn json(line: &Line<'_>, fields: &[(String, Template)], redaction: &Redaction, out: &mut String) {
    let Scope { exchange, request, .. } = line.scope;
    let (path, query) = split_target(original_target(&line.scope));
    let (forwarded, _) = split_target(request.raw_path());

    out.push_str("{\"time\":\"");
    clock::rfc3339(line.at, out);
    text(out, "\",\"request_id\":\"", exchange.request_id.as_bytes());
    if let Some(id) = line.trace_id {
        out.push_str("\",\"trace_id\":\"");
        out.push_str(id);
    }
    out.push_str("\",\"client\":\"");
    write_address(exchange.client, out);
    text(out, "\",\"listener\":\"", exchange.listener.as_bytes());
    out.push_str("\",\"scheme\":\"");
    out.push_str(exchange.scheme.as_str());
    text(out, "\",\"host\":\"", exchange.host.as_bytes());
    integer(out, "\",\"port\":", exchange.port);
    text(out, ",\"method\":\"", request.method.as_str().as_bytes());
    text(out, "\",\"path\":\"", path);
    if let Some(query) = query {
        text(out, "\",\"query\":\"", &redaction.query(query));
    }
    if forwarded != path {
        text(out, "\",\"forwarded_path\":\"", forwarded);
    }
    out.push_str("\",\"protocol\":\"");
    out.push_str(protocol(request.version));
    integer(out, "\",\"status\":", exchange.status);
    if let Some(reason) = exchange.reason {
        out.push_str(",\"reason\":\"");
        out.push_str(reason.label());
        out.push('"');
    }
    out.push_str(",\"duration\":");
    seconds(exchange.duration, out);
    integer(out, ",\"request_bytes\":", exchange.request_bytes);
    integer(out, ",\"response_bytes\":", exchange.response_bytes);
    if let Some(name) = &exchange.route {
        text(out, ",\"service\":\"", name.service.as_bytes());
        text(out, "\",\"route\":\"", name.route.as_bytes());
        out.push('"');
    }
    if let Some(identity) = &exchange.identity {
        optional(out, ",\"consumer\":\"", exchange.consumer().map(|consumer| consumer.name().as_bytes()));
        if !identity.credential.kind.is_empty() {
            out.push_str(",\"credential\":\"");
            identity.credential.write(out);
            out.push('"');
        }
    }
    optional(out, ",\"limit\":\"", exchange.limit.as_ref().map(|limit| limit.as_bytes()));
    optional(out, ",\"cause\":\"", exchange.cause.map(str::as_bytes));
    optional(out, ",\"upstream\":\"", exchange.upstream.as_ref().map(|name| name.as_bytes()));
    optional(out, ",\"target\":\"", exchange.target.as_ref().map(|name| name.as_bytes()));
    integer(out, ",\"attempts\":", exchange.attempts);
    optional_seconds(out, ",\"upstream_connect\":", exchange.upstream_connect);
    optional_seconds(out, ",\"upstream_first_byte\":", exchange.upstream_first_byte);
    if let Some(call) = &exchange.ai {
        ai(call, out);
    }
    if let Some(call) = &exchange.mcp {
        mcp(call, out);
    }
    let referer = first_header(&line.scope, &header::REFERER).map(|url| redaction.url(url));
    optional(out, ",\"referer\":\"", referer.as_deref());
    optional(out, ",\"user_agent\":\"", first_header(&line.scope, &header::USER_AGENT));
    for (start, template) in fields {
        out.push_str(start);
        template.render_json_escaped(&line.scope, redaction, out);
        out.push('"');
    }
    out.push('}');
}

/// The call of a model.
fn ai(call: &AiCall, out: &mut String) {
    let optional_integer = |out: &mut String, start: &str, value: Option<u64>| {
        if let Some(value) = value {
            integer(out, start, value);
        }
    };
    let name = |name: &Arc<str>| (!name.is_empty()).then(|| name.clone());
    out.push_str(",\"ai\":{\"requested\":\"");
    escape::json(call.requested.as_bytes(), out);
    out.push_str("\",\"operation\":\"");
    out.push_str(call.operation);
    out.push_str("\",\"format\":\"");
    out.push_str(call.format);
    out.push_str(if call.stream { "\",\"stream\":true" } else { "\",\"stream\":false" });
    optional(out, ",\"provider\":\"", name(&call.provider).as_ref().map(|name| name.as_bytes()));
    optional(out, ",\"model\":\"", name(&call.model).as_ref().map(|name| name.as_bytes()));
    optional(out, ",\"key\":\"", call.key.as_ref().map(|name| name.as_bytes()));
    integer(out, ",\"attempts\":", call.attempts);
    optional_seconds(out, ",\"first_token\":", call.first_token);
    optional_integer(out, ",\"input_tokens\":", call.tokens.map(|tokens| tokens.input));
    optional_integer(out, ",\"output_tokens\":", call.tokens.map(|tokens| tokens.output));
    optional_integer(out, ",\"cache_read_tokens\":", call.tokens.map(|tokens| tokens.cache_read));
    optional_integer(out, ",\"cache_write_tokens\":", call.tokens.map(|tokens| tokens.cache_write));
    optional_integer(out, ",\"reasoning_tokens\":", call.tokens.map(|tokens| tokens.reasoning));
    if let Some(nanos) = call.cost {
        let _ = write!(out, ",\"cost\":{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    }
    if call.counted {
        out.push_str(",\"counted\":true");
    }
    optional_integer(out, ",\"reserved_tokens\":", call.reserved.map(|(tokens, _)| tokens));
    if let Some((_, Some(nanos))) = call.reserved {
        let _ = write!(out, ",\"reserved_cost\":{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    }
    optional(out, ",\"finish\":\"", call.finish.map(str::as_bytes));
    optional(out, ",\"cache\":\"", call.cache.map(str::as_bytes));
    for (i, verdict) in call.guardrails.iter().enumerate() {
        out.push_str(if i == 0 { ",\"guardrails\":[{\"name\":\"" } else { ",{\"name\":\"" });
        escape::json(verdict.guardrail.as_bytes(), out);
        let _ = write!(out, "\",\"on\":\"{}\",\"action\":\"{}\"", verdict.on, verdict.action);
        integer(out, ",\"count\":", verdict.count);
        out.push_str(if i + 1 == call.guardrails.len() { "}]" } else { "}" });
    }
    out.push('}');
}

/// The message to a server of tools.
fn mcp(call: &McpCall, out: &mut String) {
    text(out, ",\"mcp\":{\"method\":\"", call.method.as_bytes());
    out.push('"');
    optional(out, ",\"name\":\"", call.name.as_ref().map(|name| name.as_bytes()));
    optional(out, ",\"server\":\"", call.server.as_ref().map(|name| name.as_bytes()));
    if let Some(code) = call.error {
        integer(out, ",\"error\":", code);
    }
    if call.tool_failed {
        out.push_str(",\"tool_failed\":true");
    }
    out.push('}');
}

/// `$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent"` of nginx.
fn combined(line: &Line<'_>, redaction: &Redaction, out: &mut String) {
    let Scope { exchange, request, .. } = line.scope;
    write_address(exchange.client, out);
    out.push_str(" - ");
    out.push_str(exchange.consumer().map_or("-", |consumer| consumer.name()));
    out.push_str(" [");
    clock::common_log(line.at, out);
    out.push_str("] \"");
    escape::plain(request.method.as_str().as_bytes(), out);
    out.push(' ');
    escape::plain(&redaction.url(original_target(&line.scope)), out);
    out.push(' ');
    out.push_str(protocol(request.version));
    integer(out, "\" ", exchange.status);
    integer(out, " ", exchange.response_bytes);
    for (name, url) in [(&header::REFERER, true), (&header::USER_AGENT, false)] {
        out.push_str(" \"");
        match first_header(&line.scope, name) {
            Some(value) if url => escape::plain(&redaction.url(value), out),
            Some(value) => escape::plain(value, out),
            None => out.push('-'),
        }
        out.push('"');
    }
}

fn first_header<'a>(scope: &Scope<'a>, name: &HeaderName) -> Option<&'a [u8]> {
    scope.request.headers.get(name).map(|value| value.as_bytes())
}

/// Appends the start of a JSON member and its text; the closing quote comes with what follows.
fn text(out: &mut String, start: &str, value: &[u8]) {
    out.push_str(start);
    escape::json(value, out);
}

fn integer(out: &mut String, start: &str, value: impl itoa::Integer) {
    out.push_str(start);
    out.push_str(itoa::Buffer::new().format(value));
}

fn optional(out: &mut String, start: &str, value: Option<&[u8]>) {
    if let Some(value) = value {
        text(out, start, value);
        out.push('"');
    }
}

fn optional_seconds(out: &mut String, start: &str, value: Option<Duration>) {
    if let Some(value) = value {
        out.push_str(start);
        seconds(value, out);
    }
}
