//! Writing foreign bytes into a line so that they can neither end it nor be read as something else.

/// Appends the inside of a JSON string. Bytes that are not UTF-8 become U+FFFD.
pub fn json(bytes: &[u8], out: &mut String) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return json_text(text, out);
    }
    for chunk in bytes.utf8_chunks() {
        json_text(chunk.valid(), out);
        if !chunk.invalid().is_empty() {
            out.push('\u{fffd}');
        }
    }
}

fn json_text(mut text: &str, out: &mut String) {
    // DEL is legal in JSON, but some terminals act on it.
    let special = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\' || byte == 0x7f;
    while let Some(at) = text.bytes().position(special) {
        out.push_str(&text[..at]);
        match text.as_bytes()[at] {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            byte => {
                out.push_str("\\u00");
                hex(byte, b"0123456789abcdef", out);
            }
        }
        text = &text[at + 1..];
    }
    out.push_str(text);
}

/// Appends text for an HTML or XML document, inside an element or a quoted attribute.
pub fn html(bytes: &[u8], out: &mut String) {
    for character in String::from_utf8_lossy(bytes).chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
}

/// Appends text for a line of plain text, as nginx does by default: quotes, backslashes, control characters and all
/// bytes above 126 are written as `\xHH`.
pub fn plain(mut bytes: &[u8], out: &mut String) {
    let special = |byte: &u8| !(0x20..0x7f).contains(byte) || *byte == b'"' || *byte == b'\\';
    loop {
        let at = bytes.iter().position(special).unwrap_or(bytes.len());
        // ASCII, so never empty for another reason than being so.
        out.push_str(std::str::from_utf8(&bytes[..at]).unwrap_or_default());
        let Some(byte) = bytes.get(at) else { return };
        out.push_str("\\x");
        hex(*byte, b"0123456789ABCDEF", out);
        bytes = &bytes[at + 1..];
    }
}

fn hex(byte: u8, digits: &[u8; 16], out: &mut String) {
    out.push(digits[usize::from(byte >> 4)] as char);
    out.push(digits[usize::from(byte & 15)] as char);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_make_a_valid_json_string_on_one_line() {
        let hostile: Vec<u8> = (0..=255).chain(*b"\xe2\x82\xac").collect();
        let mut out = String::from("\"");
        json(&hostile, &mut out);
        out.push('"');
        assert!(!out.contains('\n'));
        let back: String = serde_json::from_str(&out).unwrap();
        assert_eq!(back, String::from_utf8_lossy(&hostile));
    }

    #[test]
    fn plain_text_stays_printable_ascii() {
        let mut out = String::new();
        plain(b"a\"b\\c\r\n\x00\xff\x7f", &mut out);
        assert_eq!(out, r"a\x22b\x5Cc\x0D\x0A\x00\xFF\x7F");
    }
}
