//! Ids of tool calls that carry a provider's signature through dialects that have no place for one.
//!
//! Gemini wants to see its `thoughtSignature` again when a call is replayed, and callers of other dialects replay nothing but
//! the call's id. So the id of a signed call is `<id>__signature__<signature>`, the signature in the URL-safe alphabet and
//! without padding: every character is one that Anthropic, Bedrock and OpenAI allow in an id. A provider that has not made
//! the signature is given the id without it ([`bare`]), since most refuse ids longer than 64 characters.

const MARK: &str = "__signature__";

/// A new id, as OpenAI's look.
pub fn made_up() -> String {
    super::formats::made_up("call_")
}

/// The id with the signature in it. What is no base64 is left out.
pub fn signed(id: &str, signature: &str) -> String {
    let mut signed = String::with_capacity(id.len() + MARK.len() + signature.len());
    signed.push_str(id);
    signed.push_str(MARK);
    for letter in signature.trim_end_matches('=').chars() {
        match letter {
            '+' => signed.push('-'),
            '/' => signed.push('_'),
            '-' | '_' | '0'..='9' | 'a'..='z' | 'A'..='Z' => signed.push(letter),
            _ => {
                signed.truncate(id.len());
                break;
            }
        }
    }
    signed
}

/// The id without a signature.
pub fn bare(id: &str) -> &str {
    id.split_once(MARK).map_or(id, |(bare, _)| bare)
}

/// The signature in an id, in the usual alphabet of base64, padded.
pub fn signature(id: &str) -> Option<String> {
    let (_, letters) = id.split_once(MARK)?;
    if letters.is_empty() {
        return None;
    }
    let mut signature = String::with_capacity(letters.len() + 2);
    signature.extend(letters.chars().map(|letter| match letter {
        '-' => '+',
        '_' => '/',
        letter => letter,
    }));
    while !signature.len().is_multiple_of(4) {
        signature.push('=');
    }
    Some(signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_comes_out_of_an_id_as_it_went_in() {
        for written in ["CtwBAVSoXO4+/w==", "abc=", "abcd", "A+/B"] {
            let id = signed("call_1", written);
            assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)), "{id}");
            assert_eq!((bare(&id), signature(&id).as_deref()), ("call_1", Some(written)));
        }
    }

    #[test]
    fn an_id_without_a_signature_is_left_alone() {
        assert_eq!((bare("toolu_01A"), signature("toolu_01A")), ("toolu_01A", None));
        assert_eq!(signed("call_1", "not base64!"), "call_1");
        assert_eq!((bare("call_1__signature__"), signature("call_1__signature__")), ("call_1", None));
    }
}
