//! Keeps secrets out of what is logged: which names have secret values, and how a query string is written without them.

use std::borrow::Cow;

/// What is written instead of a secret.
pub const HIDDEN: &[u8] = b"***";

/// Longer names than this are hidden unseen; it bounds the work that a hostile query causes.
const MAX_NAME: usize = 64;

/// Decides what is hidden: a list of common names, and those that the configuration adds.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Redaction {
    extra: Vec<String>,
}

impl Redaction {
    pub fn new(extra: &[String]) -> Self {
        Redaction { extra: extra.iter().map(|name| normal(name.as_bytes())).collect() }
    }

    /// Whether a query parameter, header or cookie of this name has a value to hide. Case, `-` and `_` make no
    /// difference, and percent-encoding of the name does not help it through.
    pub fn hides(&self, name: &[u8]) -> bool {
        let mut buffer = [0; MAX_NAME];
        let Some(buffer) = buffer.get_mut(..name.len()) else { return true };
        let name = normal_in(name, buffer);
        is_secret(name) || self.extra.iter().any(|known| known.as_bytes() == name)
    }

    /// The query with each secret value replaced; borrowed if there is none.
    pub fn query<'a>(&self, query: &'a [u8]) -> Cow<'a, [u8]> {
        let mut out = Vec::new();
        // What has been copied, and where the parameter at hand begins.
        let (mut copied, mut start) = (0, 0);
        for (name, value) in parameters(query) {
            let end = start + name.len() + value.map_or(0, |value| 1 + value.len());
            if value.is_some() && self.hides(name) {
                out.extend_from_slice(&query[copied..=start + name.len()]);
                out.extend_from_slice(HIDDEN);
                copied = end;
            }
            start = end + 1;
        }
        if copied == 0 {
            return Cow::Borrowed(query);
        }
        out.extend_from_slice(&query[copied..]);
        Cow::Owned(out)
    }

    /// A target or URL with the secret values of its query replaced.
    pub fn url<'a>(&self, url: &'a [u8]) -> Cow<'a, [u8]> {
        let Some(at) = memchr::memchr(b'?', url) else { return Cow::Borrowed(url) };
        match self.query(&url[at + 1..]) {
            Cow::Borrowed(_) => Cow::Borrowed(url),
            Cow::Owned(query) => Cow::Owned([&url[..=at], &query].concat()),
        }
    }
}

/// The names whose values are secrets in queries, headers and cookies; in lower case, with `_` for `-`.
fn is_secret(name: &[u8]) -> bool {
    // `access_token`, `X-Api-Key`, `X-Amz-Signature`: the last word decides.
    let last = memchr::memrchr(b'_', name).map_or(name, |at| &name[at + 1..]);
    match last {
        b"apikey" | b"assertion" | b"auth" | b"authorization" | b"credential" | b"credentials" | b"jwt" | b"key"
        | b"passcode" | b"passphrase" | b"passwd" | b"password" | b"pwd" | b"secret" | b"session" | b"sessionid"
        | b"sig" | b"signature" | b"ticket" | b"token" => true,
        b"code" | b"cookie" | b"sid" => last.len() == name.len(),
        _ => matches!(name, b"set_cookie" | b"code_verifier"),
    }
}

/// The parameters of a query as written: the name, and what follows the first `=`. Some servers also split at `;`;
/// here it belongs to the value, so that a secret is hidden with what follows it.
pub fn parameters(query: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    query.split(|byte| *byte == b'&').map(|pair| match memchr::memchr(b'=', pair) {
        Some(at) => (&pair[..at], Some(&pair[at + 1..])),
        None => (pair, None),
    })
}

fn normal(name: &[u8]) -> String {
    let mut buffer = vec![0; name.len()];
    String::from_utf8_lossy(normal_in(name, &mut buffer)).into_owned()
}

/// The name decoded, in lower case, with `_` for `-`.
fn normal_in<'a>(name: &[u8], buffer: &'a mut [u8]) -> &'a [u8] {
    let (mut read, mut written) = (0, 0);
    while let (Some(&byte), Some(place)) = (name.get(read), buffer.get_mut(written)) {
        let decoded = match byte {
            b'%' => name.get(read + 1..read + 3).and_then(decode_hex),
            _ => None,
        };
        read += if decoded.is_some() { 3 } else { 1 };
        *place = match decoded.unwrap_or(byte) {
            b'-' => b'_',
            other => other.to_ascii_lowercase(),
        };
        written += 1;
    }
    &buffer[..written]
}

fn decode_hex(digits: &[u8]) -> Option<u8> {
    let value = |digit: u8| (digit as char).to_digit(16);
    Some((value(digits[0])? * 16 + value(digits[1])?) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_secret_parameters_are_hidden() {
        let redaction = Redaction::new(&["My-Pin".into()]);
        for (query, shown) in [
            ("", ""),
            ("a=1&b=2", "a=1&b=2"),
            ("token", "token"),
            ("a=1&token=abc&b", "a=1&token=***&b"),
            ("Access-Token=x&X-Amz-Signature=y", "Access-Token=***&X-Amz-Signature=***"),
            ("api_key=a=b&code=&&sig=1", "api_key=***&code=***&&sig=***"),
            ("%74oken=abc&tok%65n=d", "%74oken=***&tok%65n=***"),
            ("my_pin=1234&monkey=banana", "my_pin=***&monkey=banana"),
            ("zip_code=1&code=2&a=;token=3", "zip_code=1&code=***&a=;token=3"),
            ("%&%7=1&%zz=2", "%&%7=1&%zz=2"),
        ] {
            assert_eq!(String::from_utf8_lossy(&redaction.query(query.as_bytes())), shown, "{query}");
        }
        assert_eq!(&*redaction.url(b"https://h/p?key=1"), b"https://h/p?key=***");
        assert_eq!(&*redaction.url(b"/p"), b"/p");
    }
}
