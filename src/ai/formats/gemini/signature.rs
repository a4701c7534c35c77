//! How proofs and secret thoughts of other vendors travel with Gemini callers, and Gemini's with others.
//!
//! Gemini signs parts: calls, texts, thoughts. The signature of a call is [`ToolCall::signature`](crate::ai::chat::ToolCall); that of
//! another part is a thought that only Gemini can read, `gemini:<signature>`, after the part it signs or with the thought it
//! signs. The other way, a caller's library decodes `thoughtSignature` as base64 and writes it anew in another alphabet, so
//! what is not Gemini's own is wrapped: base64 of `headgate:signature:<signature>` or `headgate:encrypted:<thought>`.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};

use crate::ai::chat::Thought;

/// What the encrypted thoughts of Gemini begin with.
pub const OWN: &str = "gemini:";

const SIGNATURE: &str = "headgate:signature:";
const ENCRYPTED: &str = "headgate:encrypted:";
/// Base64 of `headgate:`, in every alphabet.
const WRAPPED: &str = "aGVhZGdhdGU6";

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The `thoughtSignature` that a Gemini caller is shown with a thought.
pub fn for_caller<'t>(signature: Option<&'t str>, encrypted: Option<&'t str>) -> Option<Cow<'t, str>> {
    match (signature, encrypted) {
        (_, Some(encrypted)) => Some(match encrypted.strip_prefix(OWN) {
            Some(own) => Cow::Borrowed(own),
            None => Cow::Owned(STANDARD.encode([ENCRYPTED, encrypted].concat())),
        }),
        (Some(signature), None) => Some(Cow::Owned(STANDARD.encode([SIGNATURE, signature].concat()))),
        (None, None) => None,
    }
}

/// The thought that a `thoughtSignature` proves or is.
pub fn thought(text: String, signature: Option<&str>) -> Thought {
    let Some(signature) = signature else { return Thought { text, ..Thought::default() } };
    if let Some(wrapped) = unwrap(signature) {
        if let Some(signature) = wrapped.strip_prefix(SIGNATURE) {
            return Thought { text, signature: Some(signature.to_owned()), encrypted: None };
        }
        if let Some(encrypted) = wrapped.strip_prefix(ENCRYPTED) {
            return Thought { text, signature: None, encrypted: Some(encrypted.to_owned()) };
        }
    }
    Thought { text, signature: None, encrypted: Some([OWN, signature].concat()) }
}

fn unwrap(signature: &str) -> Option<String> {
    if !signature.starts_with(WRAPPED) {
        return None;
    }
    let url_safe: String = signature
        .chars()
        .map(|letter| match letter {
            '+' => '-',
            '/' => '_',
            letter => letter,
        })
        .collect();
    String::from_utf8(LENIENT.decode(url_safe).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_of_others_survive_a_library_that_writes_base64_anew() {
        let signed = Thought { text: "t".into(), signature: Some("a+/~?>=".into()), encrypted: None };
        let secret = Thought { text: "t".into(), signature: None, encrypted: Some("gAAAA~~~???>>>".into()) };
        let own = Thought { text: "t".into(), signature: None, encrypted: Some("gemini:Ct+/w==".into()) };
        for one in [signed, secret, own] {
            let shown = for_caller(one.signature.as_deref(), one.encrypted.as_deref()).unwrap();
            assert_eq!(thought("t".into(), Some(&shown)), one);
            if shown.starts_with(WRAPPED) {
                let anew = shown.replace('+', "-").replace('/', "_");
                assert_eq!(thought("t".into(), Some(anew.trim_end_matches('='))), one);
            }
        }
    }
}
