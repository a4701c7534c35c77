//! Where a request carries a key or a token, and how it is taken out of there.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, COOKIE};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::Problems;
use crate::telemetry::redact::parameters;
use crate::variables::cookies;

/// One place in a request where a key or a token may stand.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WrittenPlace {
    /// `Authorization: Bearer …` (RFC 6750, section 2.1).
    Bearer,
    /// The header of this name.
    Header(String),
    /// The parameter of this name in the query. URLs end up in logs and histories: better a header.
    Query(String),
    /// The cookie of this name.
    Cookie(String),
}

/// The compiled form of a [`WrittenPlace`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Bearer,
    Header(HeaderName),
    Query(String),
    Cookie(String),
}

/// What was found in the places that were looked at.
pub enum Presented<'h> {
    Nothing,
    /// The same in every place that has one.
    One(Cow<'h, [u8]>),
    /// Several that differ: whichever was taken, another reader might take the other.
    Ambiguous,
}

impl Place {
    pub fn compile_all(written: &[WrittenPlace], path: &str, problems: &mut Problems) -> Box<[Place]> {
        let mut places = Vec::with_capacity(written.len());
        for (i, place) in written.iter().enumerate() {
            let named = |name: &str| !name.is_empty() && HeaderName::from_bytes(name.as_bytes()).is_ok();
            match place {
                WrittenPlace::Bearer => places.push(Place::Bearer),
                WrittenPlace::Header(name) => match HeaderName::from_bytes(name.as_bytes()) {
                    // The gateway drops names with an underscore before anybody looks at them.
                    Ok(_) if name.contains('_') => {
                        problems.add(
                            format!("{path}[{i}].header"),
                            "headers with an underscore in their name never arrive",
                        );
                    }
                    Ok(name) => places.push(Place::Header(name)),
                    Err(_) => {
                        problems.add(format!("{path}[{i}].header"), format!("`{name}` is not a name for a header"))
                    }
                },
                WrittenPlace::Query(name) if !name.is_empty() => places.push(Place::Query(name.clone())),
                WrittenPlace::Cookie(name) if named(name) => places.push(Place::Cookie(name.clone())),
                WrittenPlace::Query(_) => problems.add(format!("{path}[{i}].query"), "a parameter needs a name"),
                WrittenPlace::Cookie(name) => {
                    problems.add(format!("{path}[{i}].cookie"), format!("`{name}` is not a name for a cookie"));
                }
            }
        }
        if written.is_empty() {
            problems.add(path, "no place is named, so no credentials could be found");
        }
        places.into()
    }

    /// Removes what stands there.
    pub fn strip(&self, head: &mut RequestHeader) {
        match self {
            Place::Bearer => {
                if head.headers.get_all(AUTHORIZATION).iter().any(|value| bearer(value.as_bytes()).is_some()) {
                    head.remove_header(&AUTHORIZATION);
                }
            }
            Place::Header(name) => {
                if head.headers.contains_key(name) {
                    head.remove_header(name);
                }
            }
            Place::Query(name) => strip_query(head, name),
            Place::Cookie(name) => strip_cookies(head, |known| known == name.as_bytes()),
        }
    }
}

/// Looks into all places.
pub fn presented<'h>(head: &'h RequestHeader, places: &[Place]) -> Presented<'h> {
    let mut found: Option<Cow<'h, [u8]>> = None;
    let mut take = |value: Cow<'h, [u8]>| match &found {
        Some(other) => *other == value,
        None => {
            found = Some(value);
            true
        }
    };
    for place in places {
        let agrees = match place {
            Place::Bearer => {
                let lines = head.headers.get_all(AUTHORIZATION).iter();
                lines.filter_map(|line| bearer(line.as_bytes())).all(|value| take(value.into()))
            }
            Place::Header(name) => head.headers.get_all(name).iter().all(|line| take(line.as_bytes().into())),
            Place::Query(name) => {
                let query = head.uri.query().unwrap_or_default().as_bytes();
                let values = parameters(query).filter(|(known, _)| *decoded(known) == *name.as_bytes());
                values.map(|(_, value)| value.unwrap_or_default()).all(|value| take(decoded(value)))
            }
            Place::Cookie(name) => cookies(&head.headers)
                .filter(|(known, _)| *known == name.as_bytes())
                .all(|(_, value)| take(value.into())),
        };
        if !agrees {
            return Presented::Ambiguous;
        }
    }
    found.map_or(Presented::Nothing, Presented::One)
}

/// The token of a `Bearer` line; the scheme's case does not matter (RFC 9110, section 11.1).
fn bearer(line: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = line.split_at_checked(7)?;
    (scheme.eq_ignore_ascii_case(b"bearer ")).then(|| token.trim_ascii())
}

/// A part of a query as forms write it: percent-encoding and `+` for a space. Borrowed where nothing is encoded.
pub(crate) fn decoded(part: &[u8]) -> Cow<'_, [u8]> {
    if !part.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return part.into();
    }
    let mut out = Vec::with_capacity(part.len());
    let mut at = 0;
    while let Some(&byte) = part.get(at) {
        let digits = part.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        let encoded = digits.filter(|_| byte == b'%').and_then(|pair| u8::from_str_radix(pair, 16).ok());
        at += if encoded.is_some() { 3 } else { 1 };
        out.push(encoded.unwrap_or(if byte == b'+' { b' ' } else { byte }));
    }
    out.into()
}

fn strip_query(head: &mut RequestHeader, name: &str) {
    let Some(query) = head.uri.query() else { return };
    let is_other = |pair: &&str| {
        let known = pair.split('=').next().unwrap_or_default();
        *decoded(known.as_bytes()) != *name.as_bytes()
    };
    if query.split('&').all(|pair| is_other(&pair)) {
        return;
    }
    let left: Vec<&str> = query.split('&').filter(is_other).collect();
    let target = match left.is_empty() {
        true => head.uri.path().to_owned(),
        false => format!("{}?{}", head.uri.path(), left.join("&")),
    };
    let mut parts = head.uri.clone().into_parts();
    // A part of a valid target is one.
    parts.path_and_query = PathAndQuery::try_from(target).ok();
    if let Ok(uri) = http::Uri::from_parts(parts) {
        head.set_uri(uri);
    }
}

/// Removes the cookies whose names are meant.
pub fn strip_cookies(head: &mut RequestHeader, meant: impl Fn(&[u8]) -> bool) {
    if cookies(&head.headers).all(|(known, _)| !meant(known)) {
        return;
    }
    let left: Vec<Vec<u8>> = cookies(&head.headers)
        .filter(|(known, _)| !meant(known))
        .map(|(known, value)| [known, b"=", value].concat())
        .collect();
    head.remove_header(&COOKIE);
    if let (false, Ok(line)) = (left.is_empty(), HeaderValue::from_bytes(&left.join(&b"; "[..]))) {
        let _ = head.insert_header(COOKIE, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(target: &str, headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut head = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        for (name, value) in headers {
            head.append_header(*name, *value).unwrap();
        }
        head
    }

    fn places() -> [Place; 4] {
        [
            Place::Bearer,
            Place::Header(HeaderName::from_static("x-api-key")),
            Place::Query("api_key".into()),
            Place::Cookie("key".into()),
        ]
    }

    #[test]
    fn a_key_is_found_in_each_place_and_two_that_differ_are_none() {
        let found = |target: &str, headers: &[(&'static str, &str)]| match presented(&head(target, headers), &places())
        {
            Presented::Nothing => "nothing".to_owned(),
            Presented::Ambiguous => "ambiguous".to_owned(),
            Presented::One(value) => String::from_utf8_lossy(&value).into_owned(),
        };
        assert_eq!(found("/", &[]), "nothing");
        assert_eq!(found("/", &[("authorization", "Bearer k")]), "k");
        assert_eq!(found("/", &[("authorization", "bEARER  k")]), "k");
        assert_eq!(found("/", &[("authorization", "Basic k")]), "nothing");
        assert_eq!(found("/", &[("x-api-key", "k")]), "k");
        assert_eq!(found("/?a=1&api_key=k", &[]), "k");
        assert_eq!(found("/?api%5Fkey=a%2Bb+c", &[]), "a+b c");
        assert_eq!(found("/?api_key", &[]), "");
        assert_eq!(found("/", &[("cookie", "a=b; key=k")]), "k");
        assert_eq!(found("/", &[("x-api-key", "k"), ("x-api-key", "k")]), "k", "twice the same is no doubt");
        assert_eq!(found("/", &[("x-api-key", "k"), ("x-api-key", "l")]), "ambiguous");
        assert_eq!(found("/?api_key=l", &[("x-api-key", "k")]), "ambiguous");
        assert_eq!(found("/?api_key=k&api_key=l", &[]), "ambiguous");
        assert_eq!(found("/", &[("cookie", "key=k; key=l")]), "ambiguous");
    }

    #[test]
    fn what_is_stripped_is_gone_and_the_rest_stays() {
        let mut head = head(
            "/p?a=1&api_key=k&b&api%5Fkey=l",
            &[("authorization", "Bearer k"), ("x-api-key", "k"), ("cookie", "a=b; key=k"), ("cookie", "c=d")],
        );
        places().iter().for_each(|place| place.strip(&mut head));
        assert_eq!(head.uri, "/p?a=1&b");
        assert_eq!(head.raw_path(), b"/p?a=1&b");
        assert_eq!(head.headers.get(COOKIE).unwrap(), "a=b; c=d");
        assert!(!head.headers.contains_key(AUTHORIZATION) && !head.headers.contains_key("x-api-key"));
        let mut basic = self::head("/?api_key=k", &[("authorization", "Basic k"), ("cookie", "key=k")]);
        places().iter().for_each(|place| place.strip(&mut basic));
        assert_eq!((basic.uri.to_string().as_str(), basic.headers.len()), ("/", 1), "{basic:?}");
    }
}
