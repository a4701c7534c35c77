//! What a provider says went wrong, made fit for callers: short, and without the gateway's own credentials.

use crate::ai::chat::FailureKind;

/// The longest message that is passed on, in bytes.
const LONGEST: usize = 2_000;

/// The message for a caller. That the provider did not take the gateway's key is no business of callers, and such messages
/// repeat parts of keys.
pub fn fit(kind: FailureKind, message: &str) -> String {
    match kind {
        FailureKind::Authentication => return "The provider did not accept the gateway's credentials.".to_owned(),
        _ if message.trim().is_empty() => return plain(kind).to_owned(),
        _ => {}
    }
    let end = (0..=LONGEST.min(message.len())).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
    let message = &message[..end];
    match message.contains("AIza") || message.contains("sk-") {
        true => without_keys(message),
        false => message.to_owned(),
    }
}

fn without_keys(message: &str) -> String {
    let key = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '*' | '.');
    let mut fit = String::with_capacity(message.len());
    let mut rest = message;
    while !rest.is_empty() {
        let word = rest.find(|letter| !key(letter)).unwrap_or(rest.len());
        match rest[..word].starts_with("AIza") || rest[..word].starts_with("sk-") {
            true => fit.push_str("[redacted]"),
            false => fit.push_str(&rest[..word]),
        }
        rest = &rest[word..];
        let gap = rest.find(key).unwrap_or(rest.len());
        fit.push_str(&rest[..gap]);
        rest = &rest[gap..];
    }
    fit
}

fn plain(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::InvalidRequest => "The provider refused the request.",
        FailureKind::ContextLength => "The prompt does not fit into the model's context.",
        FailureKind::ContentFilter => "The provider's filter refused the prompt.",
        FailureKind::Authentication => "The provider did not accept the gateway's credentials.",
        FailureKind::Permission => "The provider does not permit this.",
        FailureKind::NotFound => "The provider does not know this model.",
        FailureKind::TooLarge => "The request is too large for the provider.",
        FailureKind::RateLimited => "The provider's rate limit is reached.",
        FailureKind::QuotaExceeded => "The provider's quota is used up.",
        FailureKind::Overloaded => "The provider is overloaded.",
        FailureKind::Timeout => "The provider took too long.",
        FailureKind::Server => "The provider failed.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_repeated_to_callers() {
        let said = "Requests from consumer 'api_key:AIzaSyD-secret_1' are blocked, not task-7.";
        let fit_one = fit(FailureKind::Permission, said);
        assert_eq!(fit_one, "Requests from consumer 'api_key:[redacted]' are blocked, not task-7.");
        let said = "Incorrect API key provided: sk-proj-****abcd.";
        assert!(!fit(FailureKind::Authentication, said).contains("abcd"));
    }

    #[test]
    fn a_message_is_never_empty_nor_endless() {
        assert_eq!(fit(FailureKind::Overloaded, " "), "The provider is overloaded.");
        assert!(fit(FailureKind::Server, &"\u{e9}".repeat(5_000)).len() <= LONGEST);
    }
}
