//! What makes two calls the same.

use ring::digest::{Context, SHA256};
use serde_json::Value;

/// A digest of everything that can change an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(pub [u8; 32]);

/// Members of a call that say how its answer is sent, not what it says.
const HOW: [&str; 2] = ["stream", "stream_options"];

impl Key {
    /// `about` is what is not in the body: whose answers they are, the route, the model, the dialect.
    pub fn of(about: &[&[u8]], body: &Value) -> Key {
        let mut context = Context::new(&SHA256);
        for part in about {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut canonical = Vec::with_capacity(1024);
        match body {
            Value::Object(members) => {
                let members = members.iter().filter(|(name, _)| !HOW.contains(&name.as_str()));
                write_members(members, &mut canonical);
            }
            other => write(other, &mut canonical),
        }
        context.update(&canonical);
        let mut key = [0; 32];
        key.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Key(key)
    }
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Array(items) => {
            out.push(b'[');
            for item in items {
                write(item, out);
                out.push(b',');
            }
            out.push(b']');
        }
        Value::Object(members) => write_members(members.iter(), out),
        // `1` and `1.0` are the same number.
        Value::Number(number) => match number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 1e15) {
            Some(float) => out.extend_from_slice(format!("{float}").as_bytes()),
            None => out.extend_from_slice(number.to_string().as_bytes()),
        },
        other => {
            let _ = serde_json::to_writer(out, other);
        }
    }
}

fn write_members<'v>(members: impl Iterator<Item = (&'v String, &'v Value)>, out: &mut Vec<u8>) {
    let mut members: Vec<_> = members.collect();
    members.sort_unstable_by_key(|(name, _)| *name);
    out.push(b'{');
    for (name, value) in members {
        let _ = serde_json::to_writer(&mut *out, name);
        out.push(b':');
        write(value, out);
        out.push(b',');
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(about: &[&str], body: &str) -> Key {
        let about: Vec<&[u8]> = about.iter().map(|part| part.as_bytes()).collect();
        Key::of(&about, &serde_json::from_str(body).unwrap())
    }

    #[test]
    fn order_space_and_streaming_make_no_difference_and_everything_else_does() {
        let one = key(&["a"], r#"{"model":"m","n":1,"x":{"a":[1.0,"t"],"b":null}}"#);
        let same =
            r#" { "x": {"b": null, "a": [1, "t"]}, "stream": true, "n": 1.0, "stream_options": {}, "model": "m" }"#;
        assert_eq!(one, key(&["a"], same));
        for (about, body) in [
            (&["b"][..], r#"{"model":"m","n":1,"x":{"a":[1,"t"],"b":null}}"#),
            (&["a", ""], r#"{"model":"m","n":1,"x":{"a":[1,"t"],"b":null}}"#),
            (&["a"], r#"{"model":"m","n":1,"x":{"a":["t",1],"b":null}}"#),
            (&["a"], r#"{"model":"m","n":1,"x":{"a":[1,"t"]}}"#),
            (&["a"], r#"{"model":"m","n":1,"x":{"a":[1,"t"],"b":null,"stream":true}}"#),
            (&["a"], r#"{"model":"m","n":1.5,"x":{"a":[1,"t"],"b":null}}"#),
        ] {
            assert_ne!(one, key(about, body), "{about:?} {body}");
        }
        assert_ne!(key(&["a", "b"], "{}"), key(&["ab"], "{}"));
    }
}
