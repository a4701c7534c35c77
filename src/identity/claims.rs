//! What a token or an authority says of a caller.

use serde_json::{Map, Value};

/// The claims of a verified token (RFC 7519), of an introspection (RFC 7662) or of a login.
#[derive(Debug, Default, PartialEq)]
pub struct Claims(Map<String, Value>);

impl Claims {
    pub fn new(claims: Map<String, Value>) -> Self {
        Claims(claims)
    }

    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// A claim by its name, or by a path of names with dots: `realm_access.roles`. A name that holds the dots itself goes
    /// first, as with `https://example.com/roles`.
    pub fn get(&self, path: &str) -> Option<&Value> {
        fn step<'v>(map: &'v Map<String, Value>, path: &str) -> Option<&'v Value> {
            if let Some(value) = map.get(path) {
                return Some(value);
            }
            let (name, rest) = path.split_once('.')?;
            step(map.get(name)?.as_object()?, rest)
        }
        step(&self.0, path)
    }

    /// A claim as a text: strings as they are, numbers and truth values as JSON writes them, lists joined by `,`. Objects
    /// have none.
    pub fn text(&self, path: &str) -> Option<String> {
        text(self.get(path)?)
    }

    /// The values of a claim that is a list, or a text with spaces in between.
    pub fn words(&self, path: &str) -> impl Iterator<Item = &str> {
        let value = self.get(path);
        let list = value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let text = value.and_then(Value::as_str).unwrap_or_default().split_ascii_whitespace();
        list.chain(text)
    }

    /// What the token may be used for: `scope` (RFC 8693, section 4.2) and `scp`, which some issuers write.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.words("scope").chain(self.words("scp"))
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Array(items) => Some(items.iter().filter_map(text).collect::<Vec<_>>().join(",")),
        Value::Null | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_found_by_name_and_by_path() {
        let Value::Object(map) = json!({
            "sub": "u1", "n": 7, "ok": true, "aud": ["a", "b"], "scope": "read write", "scp": ["admin"],
            "realm": { "roles": ["x"], "a.b": 1 }, "https://example.com/role": "boss",
        }) else {
            unreachable!()
        };
        let claims = Claims::new(map);
        for (path, expected) in [
            ("sub", Some("u1")),
            ("n", Some("7")),
            ("ok", Some("true")),
            ("aud", Some("a,b")),
            ("realm.roles", Some("x")),
            ("realm.a.b", Some("1")),
            ("https://example.com/role", Some("boss")),
            ("realm", None),
            ("realm.none", None),
            ("sub.x", None),
            ("", None),
        ] {
            assert_eq!(claims.text(path).as_deref(), expected, "{path}");
        }
        assert_eq!(claims.scopes().collect::<Vec<_>>(), ["read", "write", "admin"]);
    }
}
