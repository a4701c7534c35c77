//! Messages of JSON-RPC 2.0, as the protocol narrows them, and names that lead an answer back to the server it is for.

use std::borrow::Cow;

use serde_json::{Value, json};

pub const PARSE_ERROR: i64 = -32700;
pub const INVALID_REQUEST: i64 = -32600;
pub const METHOD_NOT_FOUND: i64 = -32601;
pub const INVALID_PARAMS: i64 = -32602;
pub const INTERNAL: i64 = -32603;
/// There is no such session any more.
pub const SESSION_NOT_FOUND: i64 = -32001;
pub const RESOURCE_NOT_FOUND: i64 = -32002;
/// A filter for the tool refuses the call.
pub const REFUSED: i64 = -32003;
/// The caller has given the request up.
pub const CANCELLED: i64 = -32004;
/// Of revision 2026-07-28; its data names the revisions that are spoken.
pub const UNSUPPORTED_VERSION: i64 = -32022;

/// An error that a request is answered with.
#[derive(Debug, Clone, PartialEq)]
pub struct RpcError {
    pub code: i64,
    pub message: Cow<'static, str>,
    pub data: Option<Value>,
}

impl RpcError {
    pub fn new(code: i64, message: impl Into<Cow<'static, str>>) -> RpcError {
        RpcError { code, message: message.into(), data: None }
    }

    /// As the answer to a request; `null` where there is none that it could be for.
    pub fn answer(&self, id: &Value) -> Value {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let Some(data) = &self.data {
            error["data"] = data.clone();
        }
        json!({ "jsonrpc": "2.0", "id": id, "error": error })
    }
}

/// The answer to a request.
pub fn answer(id: &Value, result: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "result": result })
}

/// What one message is.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    Request { id: Value, method: String },
    Notification { method: String },
    Response { id: Value },
}

/// Tells what a message is; an error says why it is none.
pub fn classify(message: &Value) -> Result<Message, RpcError> {
    let wrong = |why: &'static str| Err(RpcError::new(INVALID_REQUEST, why));
    let Some(members) = message.as_object() else { return wrong("a message is an object") };
    if members.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return wrong("`jsonrpc` is not \"2.0\"");
    }
    if members.get("params").is_some_and(|params| !params.is_object()) {
        return wrong("`params` is no object");
    }
    let id = match members.get("id") {
        None => None,
        Some(id) if id.is_string() || id.is_i64() || id.is_u64() => Some(id.clone()),
        Some(_) => return wrong("`id` is neither a text nor a whole number"),
    };
    match (members.get("method"), id) {
        (Some(Value::String(method)), Some(id)) => Ok(Message::Request { id, method: method.clone() }),
        (Some(Value::String(method)), None) => Ok(Message::Notification { method: method.clone() }),
        (Some(_), _) => wrong("`method` is no text"),
        (None, Some(id)) if members.contains_key("result") != members.contains_key("error") => {
            Ok(Message::Response { id })
        }
        (None, _) => wrong("the message is neither a request nor a notification nor a response"),
    }
}

/// A name of a server's, such as the id of a request of its, as callers see it: servers do not know of each other, and may
/// give the same names.
pub fn of_server(server: &str, name: &Value) -> String {
    format!("{server}:{name}")
}

/// Takes a name of [`of_server`] apart.
pub fn from_server(name: &str) -> Option<(&str, Value)> {
    // No name of a server has a colon.
    let (server, name) = name.split_once(':')?;
    let name: Value = serde_json::from_str(name).ok()?;
    (name.is_string() || name.is_number()).then_some((server, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        let of = |value: Value| classify(&value).map_err(|error| error.code);
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
        assert_eq!(of(request), Ok(Message::Request { id: json!(1), method: "ping".into() }));
        let notification = json!({ "jsonrpc": "2.0", "method": "notifications/initialized", "params": {} });
        assert_eq!(of(notification), Ok(Message::Notification { method: "notifications/initialized".into() }));
        let response = json!({ "jsonrpc": "2.0", "id": "a", "result": {} });
        assert_eq!(of(response), Ok(Message::Response { id: json!("a") }));
        for wrong in [
            json!([]),
            json!("ping"),
            json!({ "id": 1, "method": "ping" }),
            json!({ "jsonrpc": "2.0", "id": null, "method": "ping" }),
            json!({ "jsonrpc": "2.0", "id": 1.5, "method": "ping" }),
            json!({ "jsonrpc": "2.0", "id": 1, "method": 7 }),
            json!({ "jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1] }),
            json!({ "jsonrpc": "2.0", "id": 1 }),
            json!({ "jsonrpc": "2.0", "id": 1, "result": {}, "error": {} }),
        ] {
            assert_eq!(of(wrong.clone()), Err(INVALID_REQUEST), "{wrong}");
        }
    }

    #[test]
    fn a_servers_name_comes_back_as_it_was() {
        for name in [json!(0), json!(-7), json!("a:b"), json!("")] {
            let seen = of_server("github", &name);
            assert_eq!(from_server(&seen), Some(("github", name)));
        }
        for wrong in ["github", "github:", "github:{}", "github:null", "github:x"] {
            assert_eq!(from_server(wrong), None, "{wrong}");
        }
    }
}
