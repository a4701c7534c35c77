//! What a request holds, in words of no dialect.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Value, json};

/// As far as scripts want to know it.
#[derive(Debug, Default)]
pub struct Asked {
    pub system: Vec<String>,
    /// Who speaks, and the pieces of what is said.
    pub turns: Vec<(String, Vec<String>)>,
    /// Name and schema of the arguments.
    pub tools: Vec<(String, Value)>,
    pub choice: Choice,
    pub parallel: bool,
    /// Of the answer; `{}` is any JSON.
    pub schema: Option<Value>,
    pub max_tokens: Option<u64>,
    pub temperature: Option<f64>,
    pub stop: Vec<String>,
    /// What tools have said last.
    pub results: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub enum Choice {
    #[default]
    Auto,
    None,
    Any,
    Tool(String),
}

impl Asked {
    /// The same for the same request, whatever its dialect.
    pub fn told(&self) -> Value {
        json!({
            "system": self.system,
            "turns": self.turns,
            "tools": self.tools.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stop": self.stop,
        })
    }

    /// Takes a piece of a message.
    pub fn add(&mut self, role: &str, piece: String) {
        match self.turns.last_mut() {
            Some((last, pieces)) if last == role => pieces.push(piece),
            _ => self.turns.push((role.to_owned(), vec![piece])),
        }
    }
}

/// An image, document or recording, as its kind, length and checksum.
pub fn shown(media_type: &str, base64: &str) -> String {
    // Google's libraries use the other alphabet.
    match STANDARD.decode(base64).or_else(|_| URL_SAFE.decode(base64)) {
        Ok(bytes) => format!("{media_type} {} bytes {:08x}", bytes.len(), crc32fast::hash(&bytes)),
        Err(error) => format!("{media_type}: {error}"),
    }
}

/// As [`shown`], of a `data:` URL.
pub fn shown_url(url: &str) -> String {
    match url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) {
        Some((media_type, base64)) => shown(media_type, base64),
        None => url.to_owned(),
    }
}

/// Text, or the texts of an array of parts.
pub fn texts(content: &Value) -> Vec<String> {
    match content {
        Value::String(text) => vec![text.clone()],
        Value::Array(parts) => parts.iter().filter_map(|part| Some(part["text"].as_str()?.to_owned())).collect(),
        _ => Vec::new(),
    }
}

/// A text, or a list of them.
pub fn list(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(all) => all.iter().filter_map(|one| Some(one.as_str()?.to_owned())).collect(),
        _ => Vec::new(),
    }
}

/// A member's array, or nothing.
pub fn all<'v>(value: &'v Value, member: &str) -> impl Iterator<Item = &'v Value> + use<'v> {
    value[member].as_array().into_iter().flatten()
}

/// A member's text, or nothing.
pub fn text<'v>(value: &'v Value, member: &str) -> &'v str {
    value[member].as_str().unwrap_or_default()
}
