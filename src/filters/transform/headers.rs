//! Sets, adds and removes headers of requests and answers.

use std::collections::BTreeMap;

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::Problems;
use crate::filters::filter::{Compiled, Flow, OnRequest, OnResponse, Request, Response};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::variables::{Scope, Template};

/// Changes headers: `remove` first, then `set` (replaces), then `add` (keeps what is there).
///
/// Values may hold variables, such as `${client.address}` or `${path.id}`. A value that comes out empty, or that HTTP
/// does not allow in a header, is not set. Headers that frame the message or name its host cannot be changed here.
///
/// ```yaml
/// headers:
///   request:
///     set: { x-customer: "${path.customer}" }
///     remove: [cookie]
///   response:
///     set: { strict-transport-security: max-age=31536000 }
///     remove: [server, x-powered-by]
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// On the request that is forwarded.
    pub request: Changes,
    /// On the answer that is sent to the client, whoever made it.
    pub response: Changes,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    /// Replaces every value of the header.
    pub set: BTreeMap<String, String>,
    /// Adds a value beside those that are there.
    pub add: BTreeMap<String, String>,
    /// Removes every value of the header.
    pub remove: Vec<String>,
}

#[derive(Default)]
struct Edits {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, Value)>,
    add: Vec<(HeaderName, Value)>,
}

enum Value {
    Fixed(HeaderValue),
    Rendered(Template),
}

pub struct Headers {
    request: Edits,
    response: Edits,
}

impl FilterKind for Headers {
    const NAME: &'static str = "headers";
    const STAGE: Stage = Stage::Transform;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let (path, problems) = (at.path, &mut *at.problems);
        let before = problems.0.len();
        let request = Edits::compile(&config.request, &format!("{path}.request"), problems);
        let response = Edits::compile(&config.response, &format!("{path}.response"), problems);
        if problems.0.len() > before {
            return None;
        }
        match (request.is_empty(), response.is_empty()) {
            (true, true) => {
                problems.add(path, "nothing is set, added or removed, so this filter would do nothing");
                None
            }
            (false, true) => Some(Compiled::on_request(Headers { request, response })),
            (true, false) => Some(Compiled::on_response(Headers { request, response })),
            (false, false) => Some(Compiled::on_both(Headers { request, response })),
        }
    }
}

impl OnRequest for Headers {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        let head = &mut *request.head;
        for name in &self.request.remove {
            head.remove_header(name);
        }
        for (name, value) in &self.request.set {
            let scope = Scope { exchange: request.exchange, request: head, response: None };
            if let Some(value) = value.of(&scope) {
                let _ = head.insert_header(name.clone(), value);
            }
        }
        for (name, value) in &self.request.add {
            let scope = Scope { exchange: request.exchange, request: head, response: None };
            if let Some(value) = value.of(&scope) {
                let _ = head.append_header(name.clone(), value);
            }
        }
        Flow::Continue
    }
}

impl OnResponse for Headers {
    fn on_response(&self, response: &mut Response<'_>) {
        let head = &mut *response.head;
        for name in &self.response.remove {
            head.remove_header(name);
        }
        for (name, value) in &self.response.set {
            let scope = Scope { exchange: response.exchange, request: response.request, response: Some(head) };
            if let Some(value) = value.of(&scope) {
                let _ = head.insert_header(name.clone(), value);
            }
        }
        for (name, value) in &self.response.add {
            let scope = Scope { exchange: response.exchange, request: response.request, response: Some(head) };
            if let Some(value) = value.of(&scope) {
                let _ = head.append_header(name.clone(), value);
            }
        }
    }
}

impl Edits {
    fn compile(changes: &Changes, path: &str, problems: &mut Problems) -> Edits {
        let mut edits = Edits::default();
        for (i, name) in changes.remove.iter().enumerate() {
            edits.remove.extend(header_name(name, &format!("{path}.remove[{i}]"), problems));
        }
        for (written, compiled, word) in [(&changes.set, &mut edits.set, "set"), (&changes.add, &mut edits.add, "add")]
        {
            for (name, value) in written {
                let path = format!("{path}.{word}.{name}");
                let name = header_name(name, &path, problems);
                let value = Value::compile(value, &path, problems);
                compiled.extend(name.zip(value));
            }
        }
        edits
    }

    fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

impl Value {
    fn compile(text: &str, path: &str, problems: &mut Problems) -> Option<Value> {
        let template = Template::parse(text).map_err(|error| problems.add(path, error)).ok()?;
        let Some(fixed) = template.as_static() else { return Some(Value::Rendered(template)) };
        match HeaderValue::from_str(fixed) {
            Ok(value) => Some(Value::Fixed(value)),
            Err(_) => {
                problems.add(path, "the value has a character that HTTP does not allow in a header");
                None
            }
        }
    }

    fn of(&self, scope: &Scope<'_>) -> Option<HeaderValue> {
        match self {
            Value::Fixed(value) => Some(value.clone()),
            Value::Rendered(template) => {
                let mut text = String::with_capacity(64);
                template.render(scope, &mut text);
                // Whatever a client put into a variable cannot start another header: such a value is not one.
                HeaderValue::try_from(text).ok().filter(|value| !value.is_empty())
            }
        }
    }
}

fn header_name(name: &str, path: &str, problems: &mut Problems) -> Option<HeaderName> {
    const FRAMING: [HeaderName; 7] = [CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if FRAMING.contains(&name) => {
            let remedy = if name == HOST { "; the filter `rewrite` changes the host" } else { "" };
            problems.add(path, format!("`{name}` belongs to the gateway and cannot be changed here{remedy}"));
            None
        }
        Ok(name) => Some(name),
        Err(_) => {
            problems.add(path, format!("`{name}` is not a header name"));
            None
        }
    }
}
