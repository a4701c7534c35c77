//! The texts of a call's body, whatever its dialect.

use serde_json::Value;

/// What a picture or a recording counts as, where nobody knows its size: about as much as a large picture.
const MEDIA: u64 = 1600;

/// A value of Base64 that is longer is a picture or a recording, and no text.
const LONGEST_WORD: usize = 1024;

/// What a message or a part of one costs beside its text.
const AROUND: u64 = 4;

/// Adds up the tokens of all texts of a body; `None` if it cannot be read.
pub fn prompt(body: &[u8], mut count: impl FnMut(&str) -> u64) -> Option<u64> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let Value::Object(fields) = body else { return None };
    let all = fields.iter().filter(|(name, _)| name.as_str() != "model").map(|(_, value)| value);
    Some(all.fold(0, |sum: u64, value| sum.saturating_add(tokens(value, &mut count))))
}

/// The reader bounds the depth.
fn tokens(value: &Value, count: &mut impl FnMut(&str) -> u64) -> u64 {
    match value {
        Value::String(text) if is_media(text) => MEDIA,
        Value::String(text) => count(text),
        Value::Array(items) => items.iter().fold(0, |sum: u64, item| sum.saturating_add(tokens(item, count))),
        Value::Object(fields) => fields.iter().fold(AROUND, |sum, (name, value)| {
            // Names of a dialect are not sent to the model, and those of a caller's schema are.
            let name = if value.is_object() { count(name) } else { 1 };
            sum.saturating_add(name).saturating_add(tokens(value, count))
        }),
        Value::Number(_) | Value::Bool(_) => 1,
        Value::Null => 0,
    }
}

/// Whether a text is the Base64 of something, or refers to it.
fn is_media(text: &str) -> bool {
    if text.starts_with("data:") {
        return true;
    }
    let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(byte);
    // Words have spaces between them; a look at the beginning is enough to tell.
    text.len() > LONGEST_WORD && text.as_bytes().iter().take(LONGEST_WORD).all(base64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_count_wherever_they_are_and_pictures_do_not_by_their_length() {
        let picture = "iVBORw0KGgo".repeat(10_000);
        let body = serde_json::json!({
            "model": "a very long name of a model that is not sent",
            "system": "12345678",
            "messages": [{ "role": "user", "content": [
                { "type": "text", "text": "12345678" },
                { "type": "image", "source": { "type": "base64", "data": picture } },
                { "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{picture}") } },
            ] }],
        });
        let tokens = prompt(body.to_string().as_bytes(), |text| text.len() as u64).unwrap();
        assert!((2 * MEDIA..2 * MEDIA + 200).contains(&tokens), "{tokens}");
        assert_eq!(prompt(b"[]", |_| 1), None);
        assert_eq!(prompt(b"{", |_| 1), None);
    }
}
