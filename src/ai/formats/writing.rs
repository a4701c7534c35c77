//! Writes JSON straight into bytes, without a tree in between.

use std::fmt;

use serde::{Serialize, Serializer};

/// An object that is being written.
pub struct Object<'o> {
    out: &'o mut Vec<u8>,
    begun: bool,
}

/// A list that is being written.
pub struct List<'o> {
    out: &'o mut Vec<u8>,
    begun: bool,
}

/// Appends an object of the members that `fill` sets.
pub fn object(out: &mut Vec<u8>, fill: impl FnOnce(&mut Object<'_>)) {
    out.push(b'{');
    fill(&mut Object { out, begun: false });
    out.push(b'}');
}

fn list(out: &mut Vec<u8>, fill: impl FnOnce(&mut List<'_>)) {
    out.push(b'[');
    fill(&mut List { out, begun: false });
    out.push(b']');
}

/// Appends a value. Nothing that is written here can fail: neither memory as a target, nor maps with names other than texts.
fn value<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let _ = serde_json::to_writer(out, value);
}

impl Object<'_> {
    fn name(&mut self, name: &str) -> &mut Vec<u8> {
        if std::mem::replace(&mut self.begun, true) {
            self.out.push(b',');
        }
        value(self.out, name);
        self.out.push(b':');
        self.out
    }

    pub fn set<T: Serialize + ?Sized>(&mut self, name: &str, member: &T) {
        value(self.name(name), member);
    }

    /// Leaves a member out that is `None`.
    pub fn set_some<T: Serialize>(&mut self, name: &str, member: &Option<T>) {
        if let Some(member) = member {
            self.set(name, member);
        }
    }

    /// A member that is JSON already.
    pub fn raw(&mut self, name: &str, json: &str) {
        self.name(name).extend_from_slice(json.as_bytes());
    }

    pub fn object(&mut self, name: &str, fill: impl FnOnce(&mut Object<'_>)) {
        object(self.name(name), fill);
    }

    pub fn list(&mut self, name: &str, fill: impl FnOnce(&mut List<'_>)) {
        list(self.name(name), fill);
    }
}

impl List<'_> {
    pub fn object(&mut self, fill: impl FnOnce(&mut Object<'_>)) {
        if std::mem::replace(&mut self.begun, true) {
            self.out.push(b',');
        }
        object(self.out, fill);
    }
}

/// Texts that are written as one.
pub struct Joined<'t>(pub &'t [&'t str]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|text| f.write_str(text))
    }
}

impl Serialize for Joined<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            [text] => serializer.serialize_str(text),
            _ => serializer.collect_str(self),
        }
    }
}

/// The URL that holds its bytes itself (RFC 2397).
pub fn data_url<'t>(media_type: &'t str, base64: &'t str) -> [&'t str; 4] {
    ["data:", media_type, ";base64,", base64]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_json() {
        let mut out = Vec::new();
        object(&mut out, |o| {
            o.set("te\"xt", "a\n\u{e9}");
            o.set_some("none", &None::<u32>);
            o.set("number", &f64::NAN);
            o.object("empty", |_| {});
            o.list("list", |l| {
                l.object(|_| {});
                l.object(|o| o.raw("raw", "{\"a\":[]}"));
            });
            o.set("joined", &Joined(&data_url("image/png", "\"AA==")));
        });
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"te\"xt":"a\né","number":null,"empty":{},"list":[{},{"raw":{"a":[]}}],"joined":"data:image/png;base64,\"AA=="}"#
        );
    }
}
