//! Reading and verifying one token (RFC 7519), by the rules of RFC 8725.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::keys::{Key, algorithm};
use crate::authority::json;

/// Longer ones are refused unseen. Whoever has more to say than fits belongs on the other side of an introspection.
pub const LONGEST: usize = 8 << 10;

/// A token that was read, and is not yet believed.
pub struct Token<'t> {
    pub algorithm: Algorithm,
    pub key_id: Option<String>,
    pub kind: Option<String>,
    pub claims: Map<String, Value>,
    signed: &'t [u8],
    signature: &'t str,
}

/// What is wrong with a token, for the log.
pub type Refusal = &'static str;

impl<'t> Token<'t> {
    /// Reads the compact form (RFC 7515, section 3.1). Of the header, only `alg`, `kid` and `typ` matter: keys that a token
    /// brings or points to (`jwk`, `jku`, `x5c`, `x5u`) are those of whoever has written it.
    pub fn read(token: &'t [u8]) -> Result<Token<'t>, Refusal> {
        if token.len() > LONGEST {
            return Err("the token is too long");
        }
        let text = std::str::from_utf8(token).map_err(|_| "this is not a token")?;
        let mut parts = text.split('.');
        let (Some(head), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("this is not a token");
        };
        let object = |part: &str| URL_SAFE_NO_PAD.decode(part).ok().and_then(|text| json::object(&text));
        let head_members = object(head).ok_or("the header of the token cannot be read")?;
        // RFC 7515, section 4.1.11: what has to be understood, and is not.
        if head_members.contains_key("crit") {
            return Err("the token has critical header parameters that are unknown");
        }
        let text_of = |name: &str| match head_members.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err("the header of the token cannot be read"),
        };
        let name = text_of("alg")?.ok_or("the token names no algorithm")?;
        Ok(Token {
            algorithm: algorithm(&name).ok_or("the token's algorithm is not accepted")?,
            key_id: text_of("kid")?,
            kind: text_of("typ")?,
            claims: object(claims).ok_or("the claims of the token cannot be read")?,
            signed: &token[..head.len() + 1 + claims.len()],
            signature,
        })
    }

    /// Whether the signature is of this key.
    pub fn is_signed_by(&self, key: &Key) -> bool {
        key.has_signed(self.signed, self.signature, self.algorithm)
    }

    /// Whether it is of this type; `application/` before it makes no difference (RFC 7515, section 4.1.9).
    pub fn is_of_kind(&self, kind: &str) -> bool {
        let short = |kind: &str| {
            let kind = kind.to_ascii_lowercase();
            kind.strip_prefix("application/").map(str::to_owned).unwrap_or(kind)
        };
        self.kind.as_deref().is_some_and(|own| short(own) == short(kind))
    }

    pub fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim).and_then(Value::as_str)
    }

    /// Whether it is meant for one of these.
    pub fn is_for(&self, audiences: &[String]) -> bool {
        let meant = |value: &Value| value.as_str().is_some_and(|value| audiences.iter().any(|known| known == value));
        match self.claims.get("aud") {
            Some(Value::Array(list)) => list.iter().all(Value::is_string) && list.iter().any(meant),
            Some(value) => meant(value),
            None => false,
        }
    }

    /// Tests the times; returns the second from which on the token is refused.
    pub fn valid_until(&self, now: i64, leeway: i64) -> Result<i64, Refusal> {
        let time = |claim: &str| match self.claims.get(claim) {
            None => Ok(None),
            Some(Value::Number(time)) => Ok(time.as_f64()),
            Some(_) => Err("a time in the token is no number"),
        };
        // Without an end, a token that leaks is good for ever.
        let expires = time("exp")?.ok_or("the token does not say when it expires")?;
        // Fractions are allowed (RFC 7519, section 2). The cast saturates.
        let until = (expires.ceil() as i64).saturating_add(leeway);
        if now >= until {
            return Err("the token has expired");
        }
        if let Some(begins) = time("nbf")?
            && now < (begins.ceil() as i64).saturating_sub(leeway)
        {
            return Err("the token is not valid yet");
        }
        // A time of issue has to be one; nothing depends on it.
        time("iat")?;
        Ok(until)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::json;

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn b64(text: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(text)
    }

    fn signed(head: &str, claims: &str) -> String {
        let message = format!("{}.{}", b64(head), b64(claims));
        let key = EncodingKey::from_secret(SECRET);
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    }

    fn refusal(token: &str) -> Refusal {
        Token::read(token.as_bytes()).err().unwrap_or("(none)")
    }

    #[test]
    fn what_others_sign_is_read_and_verified() {
        let claims = json!({ "iss": "i", "aud": ["a", "b"], "exp": 100, "nbf": 50.5 });
        let token = jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET)).unwrap();
        let read = Token::read(token.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        assert!(read.is_signed_by(&Key::of_secret(SECRET)));
        assert!(!read.is_signed_by(&Key::of_secret(b"another secret, another secret, an")));
        assert!(read.is_for(&["b".into()]) && !read.is_for(&["c".into()]));
        assert!(read.is_of_kind("jwt") && read.is_of_kind("application/JWT") && !read.is_of_kind("at+jwt"));
        for at in 0..token.len() {
            let mut other = token.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            let good = Token::read(&other).is_ok_and(|token| token.is_signed_by(&Key::of_secret(SECRET)));
            assert!(!good, "changed at {at}");
        }
    }

    #[test]
    fn times_hold_to_the_second_and_leeway_moves_them() {
        let until = |claims: Value, now, leeway| {
            let token = signed(r#"{"alg":"HS256"}"#, &claims.to_string());
            Token::read(token.as_bytes()).and_then(|token| token.valid_until(now, leeway))
        };
        assert_eq!(until(json!({ "exp": 100 }), 99, 0), Ok(100));
        assert_eq!(until(json!({ "exp": 100 }), 100, 0), Err("the token has expired"));
        assert_eq!(until(json!({ "exp": 100 }), 109, 10), Ok(110));
        assert_eq!(until(json!({ "exp": 100 }), 110, 10), Err("the token has expired"));
        assert_eq!(until(json!({ "exp": 99.5 }), 99, 0), Ok(100));
        assert_eq!(until(json!({ "exp": 100, "nbf": 50 }), 49, 0), Err("the token is not valid yet"));
        assert_eq!(until(json!({ "exp": 100, "nbf": 50 }), 50, 0), Ok(100));
        assert_eq!(until(json!({ "exp": 100, "nbf": 50 }), 40, 10), Ok(110));
        assert_eq!(until(json!({ "exp": 100, "nbf": 50 }), 39, 10), Err("the token is not valid yet"));
        assert_eq!(until(json!({ "exp": 1e300 }), 99, 60), Ok(i64::MAX));
        assert_eq!(until(json!({ "exp": -1e300 }), 0, 0), Err("the token has expired"));
        assert_eq!(until(json!({}), 0, 0), Err("the token does not say when it expires"));
        assert_eq!(until(json!({ "exp": null }), 0, 0), Err("a time in the token is no number"));
        for wrong in [json!({ "exp": "100" }), json!({ "exp": 100, "nbf": "0" }), json!({ "exp": 100, "iat": [] })] {
            assert_eq!(until(wrong, 0, 0), Err("a time in the token is no number"));
        }
    }

    #[test]
    fn anything_else_than_one_plain_token_is_refused() {
        let claims = r#"{"exp":100}"#;
        for (token, why) in [
            ("", "not a token"),
            ("a.b", "not a token"),
            ("a.b.c.d", "not a token"),
            ("a.b.c.d.e", "not a token"),
            (&"a".repeat(LONGEST + 1), "too long"),
            (&signed(r#"{"alg":"none"}"#, claims), "not accepted"),
            (&signed(r#"{"alg":"None"}"#, claims), "not accepted"),
            (&signed(r#"{"alg":""}"#, claims), "not accepted"),
            (&signed(r#"{"alg":"hs256"}"#, claims), "not accepted"),
            (&signed(r#"{"alg":["HS256"]}"#, claims), "header"),
            (&signed(r#"{}"#, claims), "no algorithm"),
            (&signed(r#"{"alg":"HS256","alg":"HS256"}"#, claims), "header"),
            (&signed(r#"{"alg":"HS256","kid":7}"#, claims), "header"),
            (&signed(r#"{"alg":"HS256","crit":["exp"],"exp":1}"#, claims), "critical"),
            (&signed(r#"{"alg":"HS256","crit":[]}"#, claims), "critical"),
            (&signed(r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#, claims), "critical"),
            (&signed(r#"{"alg":"HS256"}"#, r#"{"exp":1,"exp":100}"#), "claims"),
            (&signed(r#"{"alg":"HS256"}"#, r#"{"a":{"b":1,"b":2},"exp":100}"#), "claims"),
            (&signed(r#"{"alg":"HS256"}"#, "[]"), "claims"),
            (&signed(r#"{"alg":"HS256"}"#, ""), "claims"),
        ] {
            assert!(refusal(token).contains(why), "{why}: {} for {token}", refusal(token));
        }
        let good = signed(r#"{"alg":"HS256"}"#, claims);
        for token in [good.clone() + "=", good.replace('.', ".="), good.clone() + "\n", " ".to_owned() + &good] {
            let accepted = Token::read(token.as_bytes()).is_ok_and(|token| token.is_signed_by(&Key::of_secret(SECRET)));
            assert!(!accepted, "{token:?}");
        }
    }
}
