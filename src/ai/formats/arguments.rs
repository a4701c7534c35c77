//! The arguments of a tool call for formats that write them as a JSON object: models write them as text, and not always as
//! they should.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

/// Writes [`ToolCall::arguments`](crate::ai::chat::ToolCall::arguments) as an object. Nothing is `{}`. What is no JSON object
/// goes into the member `arguments` of one, as text: nothing is lost, and the provider reads on.
pub struct Arguments<'a>(pub &'a str);

impl Serialize for Arguments<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let text = self.0.trim_ascii();
        if text.is_empty() {
            return to.serialize_map(Some(0))?.end();
        }
        if text.starts_with('{')
            && let Ok(object) = serde_json::from_str::<&RawValue>(text)
        {
            return object.serialize(to);
        }
        let mut map = to.serialize_map(Some(1))?;
        map.serialize_entry("arguments", self.0)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_an_object_whatever_the_model_wrote() {
        for (text, want) in [
            ("", "{}"),
            (" \n", "{}"),
            ("{\"b\": 1, \"a\": 2}", "{\"b\": 1, \"a\": 2}"),
            ("{\"city\":\"Par", "{\"arguments\":\"{\\\"city\\\":\\\"Par\"}"),
            ("[1]", "{\"arguments\":\"[1]\"}"),
            ("null", "{\"arguments\":\"null\"}"),
        ] {
            assert_eq!(serde_json::to_string(&Arguments(text)).unwrap(), want, "{text:?}");
        }
        let deep = "{\"a\":".repeat(100_000) + "1" + &"}".repeat(100_000);
        assert_eq!(serde_json::to_string(&Arguments(&deep)).unwrap(), deep, "nesting costs no stack");
    }
}
