//! The texts of a call or of an answer, in whatever dialect, where they stand.
//!
//! A document is walked without its meaning: every text in the members that hold messages is one, but for those that are
//! known to be something else, such as ids and images. So that nothing is overlooked that a provider of tomorrow reads.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::config::guardrails::{Role, Side};

/// No document is deeper: it would not have been read.
const DEEPEST: usize = 128;

/// Where a text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub role: Role,
    /// It is part of what a tool is called with, or has answered.
    pub tool: bool,
    /// Which message it is part of, or which choice of an answer.
    pub message: usize,
}

/// Members of a call that hold what models read.
const INPUT: &[&str] = &[
    "system",
    "instructions",
    "systemInstruction",
    "system_instruction",
    "messages",
    "input",
    "contents",
    "prompt",
    "suffix",
    "prediction",
];
/// Members of an answer that hold what models have written.
const OUTPUT: &[&str] = &["choices", "content", "output", "candidates", "message"];

/// Members that hold no text for people.
const SKIPPED: &[&str] = &[
    "type",
    "role",
    "id",
    "name",
    "model",
    "status",
    "object",
    "format",
    "detail",
    "index",
    "logprobs",
    "signature",
    "encrypted_content",
    "thoughtSignature",
    "thought_signature",
    "tool_call_id",
    "tool_use_id",
    "call_id",
    "item_id",
    "response_id",
    "file_id",
    "file_data",
    "fileUri",
    "file_uri",
    "media_type",
    "mimeType",
    "mime_type",
    "cache_control",
    "finish_reason",
    "finishReason",
    "stop_reason",
    "stop_sequence",
    "native_finish_reason",
    "phase",
];

/// Calls `each` with every text, which it may change.
pub fn walk(document: &mut Value, side: Side, each: &mut dyn FnMut(Place, &mut String)) {
    let Value::Object(members) = document else { return };
    let known = match side {
        Side::Input => INPUT,
        Side::Output => OUTPUT,
    };
    let mut walker = Walker { message: 0, each };
    for name in known {
        let Some(value) = members.get_mut(*name) else { continue };
        let role = match (side, *name) {
            (Side::Output, _) => Role::Assistant,
            (_, "system" | "instructions" | "systemInstruction" | "system_instruction") => Role::System,
            (_, "prediction") => Role::Assistant,
            _ => Role::User,
        };
        match value {
            // One message each.
            Value::Array(messages) => {
                for message in messages {
                    walker.message += 1;
                    walker.value(message, role, false, 0);
                }
            }
            value => {
                walker.message += 1;
                walker.value(value, role, false, 0);
            }
        }
    }
}

/// The texts of one document.
pub fn collect(document: &mut Value, side: Side) -> Vec<(Place, String)> {
    let mut texts = Vec::new();
    walk(document, side, &mut |place, text| texts.push((place, text.clone())));
    texts
}

struct Walker<'w> {
    message: usize,
    each: &'w mut dyn FnMut(Place, &mut String),
}

impl Walker<'_> {
    fn value(&mut self, value: &mut Value, role: Role, tool: bool, depth: usize) {
        match value {
            Value::String(text) if !text.is_empty() => {
                let place = Place { role, tool, message: self.message };
                (self.each)(place, text);
            }
            Value::Array(items) if depth < DEEPEST => {
                items.iter_mut().for_each(|item| self.value(item, role, tool, depth + 1));
            }
            Value::Object(members) if depth < DEEPEST => self.members(members, role, tool, depth),
            _ => {}
        }
    }

    fn members(&mut self, members: &mut Map<String, Value>, role: Role, tool: bool, depth: usize) {
        let kind = members.get("type").and_then(Value::as_str);
        // Only a message has a role: a part of one that says `system` is the user's all the same.
        let said = members.get("role").and_then(Value::as_str).filter(|_| depth == 0);
        let role = match (said, kind) {
            (Some("system" | "developer"), _) => Role::System,
            (Some("assistant" | "model"), _) => Role::Assistant,
            (Some("tool" | "function"), _) => Role::Tool,
            (Some("user"), _) => Role::User,
            (_, Some("function_call_output" | "custom_tool_call_output" | "tool_result")) => Role::Tool,
            (_, Some("function_call" | "custom_tool_call" | "reasoning")) if depth == 0 => Role::Assistant,
            _ => role,
        };
        let tool = tool || role == Role::Tool;
        // A document of plain text has its text where others have their bytes.
        let plain = kind == Some("text");
        // Signed thoughts are replayed as they were, or the provider refuses them.
        let signed = members.contains_key("signature");
        for (name, value) in members.iter_mut() {
            match name.as_str() {
                name if SKIPPED.contains(&name) => {}
                "data" if !plain => {}
                "thinking" if signed => {}
                // Addresses are texts too, but for those that are the bytes themselves.
                "url" | "image_url" | "uri" if is_data_url(value) => {}
                "arguments" => self.embedded(value, role, depth),
                // What a tool is called with, or answers, is its own affair: there is nothing in it that is not looked at.
                "input" | "args" if depth > 0 => self.leaves(value, role, depth + 1),
                "response" if tool => self.leaves(value, role, depth + 1),
                "functionResponse" | "function_response" => self.value(value, Role::Tool, true, depth + 1),
                "tool_calls" | "function_call" | "functionCall" => self.value(value, role, true, depth + 1),
                _ => self.value(value, role, tool, depth + 1),
            }
        }
    }

    /// A document inside of a text: its own texts are looked at, not how they are escaped.
    fn embedded(&mut self, value: &mut Value, role: Role, depth: usize) {
        let Value::String(text) = value else { return self.value(value, role, true, depth + 1) };
        match serde_json::from_str::<Value>(text) {
            Ok(mut inner @ (Value::Object(_) | Value::Array(_))) => {
                let before = inner.clone();
                self.leaves(&mut inner, role, depth + 1);
                if inner != before {
                    *text = inner.to_string();
                }
            }
            _ => self.value(value, role, true, depth + 1),
        }
    }

    /// Every text, whatever the name of its member.
    fn leaves(&mut self, value: &mut Value, role: Role, depth: usize) {
        match value {
            Value::Array(items) if depth < DEEPEST => {
                items.iter_mut().for_each(|item| self.leaves(item, role, depth + 1))
            }
            Value::Object(members) if depth < DEEPEST => {
                members.values_mut().for_each(|member| self.leaves(member, role, depth + 1));
            }
            value => self.value(value, role, true, depth),
        }
    }
}

fn is_data_url(value: &Value) -> bool {
    let text = value.as_str().or_else(|| value.get("url")?.as_str());
    text.is_some_and(|text| text.starts_with("data:"))
}

/// Looks at the arguments of one call of a tool, and returns them if they were changed.
pub fn arguments(text: &str, each: &mut dyn FnMut(&mut String)) -> Option<String> {
    let mut value = Value::String(text.to_owned());
    let mut walker = Walker { message: 0, each: &mut |_, text| each(text) };
    walker.embedded(&mut value, Role::Assistant, 0);
    match value {
        Value::String(after) if after != text => Some(after),
        _ => None,
    }
}

/// A document in which no object has a member twice: of two, the gateway might look at one and the provider read the other.
pub struct Unambiguous(pub Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON document")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(Unambiguous(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(list.into())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
                let mut object = Map::new();
                while let Some((name, Unambiguous(value))) = members.next_entry::<String, _>()? {
                    if object.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("`{name}` stands there twice")));
                    }
                    object.insert(name, value);
                }
                Ok(object.into())
            }
        }

        from.deserialize_any(Any).map(Unambiguous)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(mut document: Value, side: Side) -> Vec<(Role, bool, String)> {
        collect(&mut document, side).into_iter().map(|(place, text)| (place.role, place.tool, text)).collect()
    }

    #[test]
    fn every_text_of_a_call_is_found_in_every_dialect() {
        let openai = json!({ "model": "m", "user": "u", "tools": [{ "function": { "description": "d" } }], "messages": [
            { "role": "developer", "content": "a" },
            { "role": "user", "name": "n", "content": [
                { "type": "text", "text": "b" },
                { "type": "image_url", "image_url": { "url": "data:image/png;base64,AAAA" } },
                { "type": "image_url", "image_url": { "url": "https://x/?c" } },
                { "type": "of_tomorrow", "role": "system", "words": "d" },
            ] },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"id\":\"e\\u0040\",\"n\":1}" } },
            ] },
            { "role": "tool", "tool_call_id": "1", "content": "f" },
        ] });
        let of = |role, tool, text: &str| (role, tool, text.to_owned());
        assert_eq!(
            texts(openai, Side::Input),
            [
                of(Role::System, false, "a"),
                of(Role::User, false, "b"),
                of(Role::User, false, "https://x/?c"),
                of(Role::User, false, "d"),
                of(Role::Assistant, true, "e@"),
                of(Role::Tool, true, "f"),
            ]
        );
        let anthropic = json!({ "system": [{ "type": "text", "text": "a" }], "messages": [
            { "role": "user", "content": "b" },
            { "role": "assistant", "content": [
                { "type": "thinking", "thinking": "signed", "signature": "s" },
                { "type": "tool_use", "id": "1", "name": "f", "input": { "name": "c" } },
            ] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": "1", "content": [{ "type": "text", "text": "d" }] },
                { "type": "document", "source": { "type": "text", "media_type": "text/plain", "data": "e" } },
                { "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "AAAA" } },
            ] },
        ] });
        assert_eq!(
            texts(anthropic, Side::Input),
            [
                of(Role::System, false, "a"),
                of(Role::User, false, "b"),
                of(Role::Assistant, true, "c"),
                of(Role::Tool, true, "d"),
                of(Role::User, false, "e"),
            ]
        );
        let responses = json!({ "instructions": "a", "input": [
            { "role": "user", "content": [{ "type": "input_text", "text": "b" }] },
            { "type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"x\":\"c\"}" },
            { "type": "function_call_output", "call_id": "1", "output": "d" },
        ] });
        assert_eq!(
            texts(responses, Side::Input),
            [
                of(Role::System, false, "a"),
                of(Role::User, false, "b"),
                of(Role::Assistant, true, "c"),
                of(Role::Tool, true, "d"),
            ]
        );
        let gemini = json!({ "systemInstruction": { "parts": [{ "text": "a" }] }, "contents": [
            { "role": "user", "parts": [{ "text": "b" }, { "inlineData": { "mimeType": "image/png", "data": "AAAA" } }] },
            { "role": "model", "parts": [{ "functionCall": { "name": "f", "args": { "x": "c" } } }] },
            { "role": "user", "parts": [{ "functionResponse": { "name": "f", "response": { "y": "d" } } }] },
        ] });
        assert_eq!(
            texts(gemini, Side::Input),
            [
                of(Role::System, false, "a"),
                of(Role::User, false, "b"),
                of(Role::Assistant, true, "c"),
                of(Role::Tool, true, "d"),
            ]
        );
        assert_eq!(texts(json!({ "input": "a" }), Side::Input), [of(Role::User, false, "a")]);
    }

    #[test]
    fn texts_of_answers_can_be_changed_and_the_rest_stays() {
        let mut answer = json!({ "id": "x", "choices": [{ "index": 0, "finish_reason": "stop", "message": {
            "role": "assistant", "content": "x", "tool_calls": [{ "id": "x", "function": { "name": "x", "arguments": "{\"a\": \"x\"}" } }],
        } }] });
        walk(&mut answer, Side::Output, &mut |_, text| *text = text.replace('x', "\"y\""));
        let want = json!({ "id": "x", "choices": [{ "index": 0, "finish_reason": "stop", "message": {
            "role": "assistant", "content": "\"y\"", "tool_calls": [{ "id": "x", "function": { "name": "x", "arguments": "{\"a\":\"\\\"y\\\"\"}" } }],
        } }] });
        assert_eq!(answer, want);
    }

    #[test]
    fn a_member_that_stands_there_twice_is_refused() {
        assert!(serde_json::from_str::<Unambiguous>(r#"{"a":[{"b":1,"b":2}]}"#).is_err());
        let text = r#"{"z":[1,-2,0.5,null,true,"t",{}],"a":{"z":18446744073709551615}}"#;
        assert_eq!(
            serde_json::from_str::<Unambiguous>(text).map(|found| found.0.to_string()).ok().as_deref(),
            Some(text)
        );
    }
}
