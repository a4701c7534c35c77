//! A tool that is an HTTP request: how a call becomes one, and what its answer is to a model.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::config::nearest;

/// The argument that holds the body.
pub const BODY: &str = "body";

/// One tool.
#[derive(Debug, Clone)]
pub struct Operation {
    pub method: Method,
    /// `Host` of the request; `None` if any will do.
    pub host: Option<String>,
    path: Vec<Piece>,
    arguments: Vec<Argument>,
    body: Option<Body>,
}

/// A piece of the path.
#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(String),
    /// One segment or a part of one.
    Segment(String),
    /// All that is left: several segments.
    Rest(String),
}

/// One argument that is not the body.
#[derive(Debug, Clone, PartialEq)]
pub struct Argument {
    /// What callers call it.
    pub name: String,
    pub place: Place,
    pub required: bool,
}

/// Where the request carries an argument.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    Path,
    Query(String),
    Header(HeaderName),
}

/// How the body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body {
    pub encoding: Encoding,
    pub required: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Form,
}

/// A call as a request.
#[derive(Debug, PartialEq)]
pub struct Request {
    pub target: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Option<(&'static str, Bytes)>,
}

/// Headers that arguments may not set: they say who calls, or how the request is framed and passed on.
const NOT_ARGUMENTS: [&str; 19] = [
    "accept",
    "accept-encoding",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "origin",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-request-id",
];

/// Whether an argument may be sent under a header's name.
pub fn may_be_argument(name: &HeaderName) -> bool {
    let name = name.as_str();
    !NOT_ARGUMENTS.contains(&name) && !name.starts_with("x-forwarded-") && !name.starts_with("mcp-")
}

impl Operation {
    /// A path is written with `{name}` for an argument, and `{*name}` at its end for all that is left.
    pub fn new(
        method: Method,
        host: Option<String>,
        path: &str,
        mut arguments: Vec<Argument>,
        body: Option<Body>,
    ) -> Result<Operation, String> {
        let path = pieces(path)?;
        for piece in &path {
            let (Piece::Segment(name) | Piece::Rest(name)) = piece else { continue };
            match arguments.iter_mut().find(|argument| argument.name == *name) {
                Some(argument) if argument.place == Place::Path => argument.required = true,
                Some(_) => return Err(format!("`{name}` stands in the path, and is written to be elsewhere")),
                None => arguments.push(Argument { name: name.clone(), place: Place::Path, required: true }),
            }
        }
        let in_path = |name: &str| {
            path.iter().any(|piece| matches!(piece, Piece::Segment(known) | Piece::Rest(known) if known == name))
        };
        if let Some(stray) = arguments.iter().find(|argument| argument.place == Place::Path && !in_path(&argument.name))
        {
            return Err(format!("the path has no `{{{}}}`", stray.name));
        }
        if body.is_some() && arguments.iter().any(|argument| argument.name == BODY) {
            return Err(format!("the argument `{BODY}` holds the body, so that none can have this name"));
        }
        Ok(Operation { method, host, path, arguments, body })
    }

    /// The JSON Schema of the arguments; `schema` says what is known of each.
    pub fn input_schema(&self, mut schema: impl FnMut(&str) -> Value) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for argument in &self.arguments {
            properties.insert(argument.name.clone(), schema(&argument.name));
            required.extend(argument.required.then(|| argument.name.clone()));
        }
        if let Some(body) = &self.body {
            properties.insert(BODY.to_owned(), schema(BODY));
            required.extend(body.required.then(|| BODY.to_owned()));
        }
        let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        schema
    }

    /// The request that a call is. An error is for the model, which may do better next time.
    pub fn request(&self, arguments: Option<&Value>) -> Result<Request, String> {
        let none = Map::new();
        let given = match arguments {
            None | Some(Value::Null) => &none,
            Some(Value::Object(given)) => given,
            Some(_) => return Err("the arguments are no object".to_owned()),
        };
        let names = || self.arguments.iter().map(|argument| argument.name.as_str()).chain(self.body.map(|_| BODY));
        if let Some(unknown) = given.keys().find(|name| !names().any(|known| known == *name)) {
            let shown: String = unknown.chars().take(64).collect();
            let hint = nearest(unknown, names()).map(|known| format!("; did you mean `{known}`?"));
            return Err(format!("there is no argument `{shown}`{}", hint.unwrap_or_default()));
        }
        let value = |name: &str| given.get(name).filter(|value| !value.is_null());
        let missing = self.arguments.iter().find(|argument| argument.required && value(&argument.name).is_none());
        if let Some(missing) = missing {
            return Err(format!("the argument `{}` is missing", missing.name));
        }
        let mut target = self.path_of(&value)?;
        let mut headers = Vec::new();
        for argument in &self.arguments {
            let Some(value) = value(&argument.name) else { continue };
            match &argument.place {
                Place::Path => {}
                Place::Query(name) => {
                    for text in texts(&argument.name, value)? {
                        target.push(if target.contains('?') { '&' } else { '?' });
                        escape(name, &mut target);
                        target.push('=');
                        escape(&text, &mut target);
                    }
                }
                Place::Header(name) => {
                    let text = texts(&argument.name, value)?.join(",");
                    let value = HeaderValue::from_str(&text).map_err(|_| {
                        format!("the argument `{}` has characters that no header may hold", argument.name)
                    })?;
                    headers.push((name.clone(), value));
                }
            }
        }
        let body = match (&self.body, value(BODY)) {
            (None, _) => None,
            (Some(body), None) if body.required => return Err(format!("the argument `{BODY}` is missing")),
            (Some(_), None) => None,
            (Some(Body { encoding: Encoding::Json, .. }), Some(value)) => {
                Some(("application/json", Bytes::from(value.to_string())))
            }
            (Some(Body { encoding: Encoding::Form, .. }), Some(value)) => {
                Some(("application/x-www-form-urlencoded", form(value)?.into()))
            }
        };
        Ok(Request { target, headers, body })
    }

    fn path_of<'v>(&self, value: &impl Fn(&str) -> Option<&'v Value>) -> Result<String, String> {
        let mut path = String::new();
        for piece in &self.path {
            match piece {
                Piece::Text(text) => path += text,
                Piece::Segment(name) => {
                    let text =
                        value(name).and_then(scalar).ok_or_else(|| format!("the argument `{name}` is no text"))?;
                    if text.is_empty() || text.contains(['/', '\\']) {
                        return Err(format!("the argument `{name}` is no segment of a path"));
                    }
                    escape(&text, &mut path);
                }
                Piece::Rest(name) => {
                    let text =
                        value(name).and_then(scalar).ok_or_else(|| format!("the argument `{name}` is no text"))?;
                    for (i, segment) in text.split('/').enumerate() {
                        path += if i > 0 { "/" } else { "" };
                        escape(segment, &mut path);
                    }
                }
            }
        }
        // Nothing may lead out of the place that the tool is for.
        match path.split('/').any(|segment| matches!(segment, "." | "..")) || path[1..].contains("//") {
            true => Err("the arguments make no path that can be called".to_owned()),
            false => Ok(path),
        }
    }
}

fn pieces(path: &str) -> Result<Vec<Piece>, String> {
    if !path.starts_with('/') {
        return Err("a path begins with a slash".to_owned());
    }
    let mut pieces = Vec::new();
    let mut rest = path;
    while let Some((text, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or("a `{` of the path has no `}`")?;
        if !text.is_empty() {
            pieces.push(Piece::Text(text.to_owned()));
        }
        match name.strip_prefix('*') {
            Some(name) if after.is_empty() && !name.is_empty() => pieces.push(Piece::Rest(name.to_owned())),
            Some(_) => return Err(format!("`{{{name}}}` can only stand at the end of a path")),
            None if name.is_empty() => return Err("`{}` has no name".to_owned()),
            None => pieces.push(Piece::Segment(name.to_owned())),
        }
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    let text = |piece: &Piece| match piece {
        Piece::Text(text) => text.bytes().all(|byte| (0x21..0x7f).contains(&byte) && !b"?#\\".contains(&byte)),
        _ => true,
    };
    match pieces.iter().all(text) {
        true => Ok(pieces),
        false => Err("the path has characters that no path may hold".to_owned()),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A value, or each of a list of values.
fn texts(name: &str, value: &Value) -> Result<Vec<String>, String> {
    let wrong = || format!("the argument `{name}` is neither a text, a number or a truth value, nor a list of them");
    match value {
        Value::Array(values) => values.iter().map(|value| scalar(value).ok_or_else(wrong)).collect(),
        value => Ok(vec![scalar(value).ok_or_else(wrong)?]),
    }
}

fn form(value: &Value) -> Result<String, String> {
    let Some(fields) = value.as_object() else { return Err(format!("the argument `{BODY}` is no object")) };
    let mut out = String::new();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        for text in texts(name, value)? {
            out += if out.is_empty() { "" } else { "&" };
            escape(name, &mut out);
            out.push('=');
            escape(&text, &mut out);
        }
    }
    Ok(out)
}

/// Escapes all that is not unreserved (RFC 3986, section 2.3).
fn escape(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            true => out.push(char::from(byte)),
            false => *out += &format!("%{byte:02X}"),
        }
    }
}

/// What an HTTP answer is to a model.
pub fn result(status: StatusCode, content_type: Option<&str>, location: Option<&str>, body: &[u8]) -> Value {
    let essence = content_type.unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let is_json = essence == "application/json" || essence.ends_with("+json");
    let document: Option<Value> = is_json.then(|| serde_json::from_slice(body).ok()).flatten();
    let content = match (std::str::from_utf8(body), essence.split('/').next()) {
        (Ok(""), _) => json!({ "type": "text", "text": line(status, location) }),
        (_, Some(kind @ ("image" | "audio"))) if essence != "image/svg+xml" => {
            json!({ "type": kind, "data": STANDARD.encode(body), "mimeType": essence })
        }
        (Ok(text), _) => json!({ "type": "text", "text": text }),
        (Err(_), _) => {
            let mime = if essence.is_empty() { "application/octet-stream" } else { &essence };
            json!({ "type": "resource", "resource": {
                "uri": "headgate:answer", "mimeType": mime, "blob": STANDARD.encode(body),
            } })
        }
    };
    if !status.is_success() {
        // The status first: it is what a model can do something about.
        let mut contents = vec![json!({ "type": "text", "text": line(status, location) })];
        if !body.is_empty() {
            contents.push(content);
        }
        return json!({ "content": contents, "isError": true });
    }
    let mut result = json!({ "content": [content] });
    if let Some(document) = document.filter(Value::is_object) {
        result["structuredContent"] = document;
    }
    result
}

/// A call that could not be made, or came to nothing.
pub fn error(text: &str) -> Value {
    json!({ "content": [{ "type": "text", "text": text }], "isError": true })
}

fn line(status: StatusCode, location: Option<&str>) -> String {
    let reason = status.canonical_reason().unwrap_or("");
    match location.filter(|_| status.is_redirection()) {
        Some(location) => format!("HTTP {} {reason}: {location}", status.as_u16()),
        None => format!("HTTP {} {reason}", status.as_u16()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argument(name: &str, place: Place) -> Argument {
        Argument { name: name.into(), place, required: false }
    }

    fn orders() -> Operation {
        let arguments = vec![
            argument("expand", Place::Query("expand[]".into())),
            argument("tenant", Place::Header(HeaderName::from_static("x-tenant"))),
        ];
        let body = Some(Body { encoding: Encoding::Json, required: false });
        Operation::new(Method::POST, None, "/orders/{id}.json", arguments, body).unwrap()
    }

    #[test]
    fn arguments_go_where_they_belong() {
        let arguments = json!({ "id": "a b&?#%", "expand": ["x&y", 2], "tenant": "acme", "body": { "n": 1.0 } });
        let request = orders().request(Some(&arguments)).unwrap();
        assert_eq!(request.target, "/orders/a%20b%26%3F%23%25.json?expand%5B%5D=x%26y&expand%5B%5D=2");
        assert_eq!(request.headers, [(HeaderName::from_static("x-tenant"), HeaderValue::from_static("acme"))]);
        assert_eq!(request.body, Some(("application/json", Bytes::from_static(b"{\"n\":1.0}"))));
        let fewest = orders().request(Some(&json!({ "id": 7 }))).unwrap();
        assert_eq!((fewest.target.as_str(), fewest.body), ("/orders/7.json", None));
    }

    #[test]
    fn an_argument_cannot_leave_its_place() {
        let rest = Operation::new(Method::GET, None, "/files/{*path}", vec![], None).unwrap();
        assert_eq!(rest.request(Some(&json!({ "path": "a/b c" }))).unwrap().target, "/files/a/b%20c");
        for path in ["..", "a/../../b", "./x", "/etc", "a//b", "."] {
            assert!(rest.request(Some(&json!({ "path": path }))).is_err(), "{path}");
        }
        let one = Operation::new(Method::GET, None, "/orders/{id}", vec![], None).unwrap();
        for id in [json!(""), json!("a/b"), json!(".."), json!("."), json!("a\\b"), json!([1]), json!({}), Value::Null]
        {
            assert!(one.request(Some(&json!({ "id": id }))).is_err(), "{id}");
        }
        let escaped = one.request(Some(&json!({ "id": "%2e%2e" }))).unwrap();
        assert_eq!(escaped.target, "/orders/%252e%252e", "what looks escaped is escaped again");
    }

    #[test]
    fn a_wrong_call_says_what_is_wrong() {
        let said = |arguments: Value| orders().request(Some(&arguments)).unwrap_err();
        assert_eq!(said(json!({})), "the argument `id` is missing");
        assert_eq!(said(json!({ "id": "1", "expnd": 1 })), "there is no argument `expnd`; did you mean `expand`?");
        assert!(said(json!({ "id": "1", "tenant": "a\r\nx: y" })).contains("no header"));
        assert!(said(json!({ "id": "1", "expand": { "a": 1 } })).contains("neither"));
        assert!(said(json!([1])).contains("no object"));
    }

    #[test]
    fn a_schema_says_what_a_call_needs() {
        let schema = orders().input_schema(|name| json!({ "type": "string", "title": name }));
        assert_eq!(schema["required"], json!(["id"]));
        assert_eq!(schema["additionalProperties"], false);
        let names: Vec<_> = schema["properties"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(names, ["expand", "tenant", "id", "body"]);
    }

    #[test]
    fn paths_that_fit_nothing_are_refused() {
        let made = |path: &str, arguments| Operation::new(Method::GET, None, path, arguments, None).map(drop);
        for path in ["orders", "/a{", "/a/{}", "/a/{*x}/b", "/a?b", "/a b"] {
            assert!(made(path, vec![]).is_err(), "{path}");
        }
        assert!(made("/a", vec![argument("x", Place::Path)]).is_err());
        assert!(made("/{x}", vec![argument("x", Place::Query("x".into()))]).is_err());
    }

    #[test]
    fn answers_become_content() {
        let object = result(StatusCode::OK, Some("application/json; charset=utf-8"), None, b"{\"a\": 1}");
        assert_eq!(
            object,
            json!({ "content": [{ "type": "text", "text": "{\"a\": 1}" }], "structuredContent": { "a": 1 } })
        );
        let list = result(StatusCode::OK, Some("application/json"), None, b"[1]");
        assert_eq!(list, json!({ "content": [{ "type": "text", "text": "[1]" }] }), "structured content is an object");
        let image = result(StatusCode::OK, Some("image/png"), None, b"\x89PNG");
        assert_eq!(image["content"][0], json!({ "type": "image", "data": "iVBORw==", "mimeType": "image/png" }));
        let binary = result(StatusCode::OK, None, None, b"\xff\x00");
        assert_eq!(binary["content"][0]["resource"]["blob"], "/wA=");
        let empty = result(StatusCode::NO_CONTENT, None, None, b"");
        assert_eq!(empty, json!({ "content": [{ "type": "text", "text": "HTTP 204 No Content" }] }));
        let refused = result(StatusCode::FORBIDDEN, Some("application/problem+json"), None, b"{\"title\":\"no\"}");
        assert_eq!(refused["isError"], true);
        assert_eq!(refused["content"][0]["text"], "HTTP 403 Forbidden");
        assert_eq!(refused["content"][1]["text"], "{\"title\":\"no\"}");
        assert_eq!(refused.get("structuredContent"), None, "the schema of answers is not for errors");
        let moved = result(StatusCode::FOUND, None, Some("/x"), b"");
        assert_eq!(moved["content"][0]["text"], "HTTP 302 Found: /x");
    }
}
