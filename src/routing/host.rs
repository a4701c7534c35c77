//! The canonical host: one spelling of the authority that a request names.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use crate::error::{Error, Reason};

/// The authority of a request, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host<'a> {
    /// Lower case, without trailing dot and port. An IPv6 address keeps its brackets and has its shortest form.
    pub name: Cow<'a, str>,
    /// `None` if none is written, which means the default port of the scheme.
    pub port: Option<u16>,
}

impl Host<'_> {
    pub fn port_or(&self, default: u16) -> u16 {
        self.port.unwrap_or(default)
    }
}

/// Why an authority is not one host and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the host is empty")]
    Empty,
    #[error("the host is preceded by user information")]
    UserInfo,
    #[error("the host contains an empty label")]
    EmptyLabel,
    #[error("the host, or one of its labels, is too long")]
    TooLong,
    #[error("the host contains a character that no host name has (other alphabets are written as xn-- labels)")]
    BadCharacter,
    #[error("the host is not a valid IPv6 address")]
    BadAddress,
    #[error("the port is not a number between 1 and 65535")]
    BadPort,
}

impl From<HostError> for Error {
    fn from(error: HostError) -> Self {
        Error::with(Reason::BadHost, error.to_string())
    }
}

/// Takes apart and normalises the value of `Host` or `:authority`. Borrows the name if it is canonical already.
///
/// Labels may hold letters, digits, `-` and `_`; an underscore is no host name by RFC 952, but internal names have it.
pub fn normalise(raw: &str) -> Result<Host<'_>, HostError> {
    if raw.contains('@') {
        return Err(HostError::UserInfo);
    }
    if let Some(inner) = raw.strip_prefix('[') {
        let (address, rest) = inner.split_once(']').ok_or(HostError::BadAddress)?;
        let port = match rest.strip_prefix(':') {
            Some(port) => parse_port(port)?,
            None if rest.is_empty() => None,
            None => return Err(HostError::BadAddress),
        };
        let address: Ipv6Addr = address.parse().map_err(|_| HostError::BadAddress)?;
        let name = format!("[{address}]");
        let same = raw.get(..name.len()).filter(|written| *written == name);
        return Ok(Host { name: same.map_or(Cow::Owned(name), Cow::Borrowed), port });
    }
    let (name, port) = match raw.split_once(':') {
        Some((name, port)) => (name, parse_port(port)?),
        None => (raw, None),
    };
    Ok(Host { name: normalise_name(name)?, port })
}

fn normalise_name(written: &str) -> Result<Cow<'_, str>, HostError> {
    let name = written.strip_suffix('.').unwrap_or(written);
    if written.is_empty() {
        return Err(HostError::Empty);
    }
    let (mut upper, mut label) = (false, 0);
    for byte in name.bytes() {
        match byte {
            b'.' if label == 0 => return Err(HostError::EmptyLabel),
            b'.' => label = 0,
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => label += 1,
            b'A'..=b'Z' => {
                upper = true;
                label += 1;
            }
            _ => return Err(HostError::BadCharacter),
        }
        if label > 63 {
            return Err(HostError::TooLong);
        }
    }
    if label == 0 {
        return Err(HostError::EmptyLabel);
    }
    if name.len() > 253 {
        return Err(HostError::TooLong);
    }
    Ok(if upper { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) })
}

/// An empty port is legal and means the default one (RFC 3986, section 3.2.3).
fn parse_port(written: &str) -> Result<Option<u16>, HostError> {
    if written.is_empty() {
        return Ok(None);
    }
    // `parse` alone would take a sign.
    if !written.bytes().all(|b| b.is_ascii_digit()) {
        return Err(HostError::BadPort);
    }
    match written.parse() {
        Ok(0) | Err(_) => Err(HostError::BadPort),
        Ok(port) => Ok(Some(port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_host_becomes_the_same_one() {
        for (raw, name, port) in [
            ("example.com", "example.com", None),
            ("EXAMPLE.com.", "example.com", None),
            ("example.com:", "example.com", None),
            ("example.com.:8080", "example.com", Some(8080)),
            ("my_service:00080", "my_service", Some(80)),
            ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
            ("127.0.0.1:65535", "127.0.0.1", Some(65535)),
            ("[::1]", "[::1]", None),
            ("[0:0:0:0:0:0:0:1]:443", "[::1]", Some(443)),
            ("[2001:DB8::A]", "[2001:db8::a]", None),
        ] {
            let host = normalise(raw).unwrap_or_else(|error| panic!("{raw}: {error}"));
            assert_eq!((&*host.name, host.port), (name, port), "{raw}");
            let again = normalise(&host.name).unwrap();
            assert!(matches!(&again.name, Cow::Borrowed(same) if *same == host.name), "{raw} has two canonical forms");
        }
    }

    #[test]
    fn what_is_not_one_host_is_refused() {
        use HostError::*;
        let long = "a".repeat(64);
        let many = "a.".repeat(127) + "a";
        for (raw, want) in [
            ("", Empty),
            (":80", Empty),
            (".", EmptyLabel),
            ("a..b", EmptyLabel),
            (".a", EmptyLabel),
            ("a..", EmptyLabel),
            ("user@example.com", UserInfo),
            ("example.com:80@evil", UserInfo),
            ("bücher.example", BadCharacter),
            ("a b", BadCharacter),
            ("a/b", BadCharacter),
            ("a%2eb", BadCharacter),
            ("a,b", BadCharacter),
            ("a\0", BadCharacter),
            ("*.example.com", BadCharacter),
            ("a:0", BadPort),
            ("a:65536", BadPort),
            ("a:+80", BadPort),
            ("a:80:80", BadPort),
            ("a:http", BadPort),
            ("::1", BadPort),
            ("[::1", BadAddress),
            ("[::1]x", BadAddress),
            ("[fe80::1%25eth0]", BadAddress),
            ("[127.0.0.1]", BadAddress),
            (&long, TooLong),
            (&many, TooLong),
        ] {
            assert_eq!(normalise(raw), Err(want), "{raw:?}");
        }
    }
}
