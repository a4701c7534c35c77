//! AWS Signature Version 4: signs a request with an access key, for one region and service.
//!
//! What is signed is the request as it is sent: whoever changes it afterwards breaks it. Paths have to be without `.` and
//! `..` segments, which AWS resolves and this does not.

use std::borrow::Cow;
use std::fmt::Write;

use jiff::Timestamp;
use ring::{digest, hmac};

use crate::config::Secret;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Who signs, and for what.
#[derive(Clone)]
pub struct SigV4 {
    pub access_key_id: String,
    pub secret_access_key: Secret,
    /// Comes with keys that are valid for some hours.
    pub session_token: Option<Secret>,
    pub region: String,
    /// `bedrock` for `bedrock-runtime` too.
    pub service: String,
}

/// A request as it is about to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Unsigned<'r> {
    pub method: &'r str,
    /// Percent-encoded once, as in the request line.
    pub path: &'r str,
    /// Without the question mark; empty if there is none.
    pub query: &'r str,
    /// All headers to sign, in any case and order. `host` is one; `x-amz-date` and `x-amz-security-token` are added.
    pub headers: &'r [(&'r str, &'r str)],
    pub body: &'r [u8],
}

/// Headers to add to the request.
#[derive(Clone)]
pub struct Signed {
    pub authorization: String,
    /// `x-amz-date`
    pub date: String,
    /// `x-amz-security-token`
    pub security_token: Option<Secret>,
}

impl SigV4 {
    /// Signs a request as sent at `now`; AWS takes it for some minutes.
    pub fn sign(&self, request: Unsigned<'_>, now: Timestamp) -> Signed {
        let date = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let day = date.get(..8).unwrap_or_default();
        let mut headers: Vec<(String, Cow<'_, str>)> =
            request.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), trimmed(value))).collect();
        headers.push(("x-amz-date".to_owned(), Cow::Borrowed(&date)));
        if let Some(token) = &self.session_token {
            headers.push(("x-amz-security-token".to_owned(), Cow::Borrowed(token.expose())));
        }
        // Stable: values of one name keep their order.
        headers.sort_by(|(a, _), (b, _)| a.cmp(b));
        let signed_headers = signed_headers(&headers);

        let canonical = canonical_request(&request, &headers, &signed_headers);
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{}", hex(digest(canonical.as_bytes()).as_ref()));
        let signature = hex(mac(&self.signing_key(day), to_sign.as_bytes()).as_ref());
        let authorization = format!(
            "{ALGORITHM} Credential={}/{scope}, SignedHeaders={signed_headers}, Signature={signature}",
            self.access_key_id
        );
        Signed { authorization, security_token: self.session_token.clone(), date }
    }

    fn signing_key(&self, day: &str) -> hmac::Tag {
        let secret = zeroize::Zeroizing::new(format!("AWS4{}", self.secret_access_key.expose()));
        let steps = [day, &self.region, &self.service, "aws4_request"];
        let first = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), steps[0].as_bytes());
        steps[1..].iter().fold(first, |key, step| mac(&key, step.as_bytes()))
    }
}

fn canonical_request(request: &Unsigned<'_>, headers: &[(String, Cow<'_, str>)], signed_headers: &str) -> String {
    let mut out = format!("{}\n", request.method);
    // Once more than it is sent: a model's `:` goes over the wire as `%3A` and is signed as `%253A`.
    match request.path {
        "" => out.push('/'),
        path => path.split_inclusive('/').for_each(|segment| {
            let name = segment.strip_suffix('/');
            percent_encode(name.unwrap_or(segment), &mut out);
            out.extend(name.map(|_| '/'));
        }),
    }
    out.push('\n');
    canonical_query(request.query, &mut out);
    out.push('\n');
    let mut before = "";
    for (name, value) in headers {
        match name == before {
            true => {
                out.pop();
                out.push(',');
            }
            false => {
                out.push_str(name);
                out.push(':');
            }
        }
        out.push_str(value);
        out.push('\n');
        before = name;
    }
    let _ = write!(out, "\n{signed_headers}\n{}", hex(digest(request.body).as_ref()));
    out
}

fn signed_headers(sorted: &[(String, Cow<'_, str>)]) -> String {
    let mut names: Vec<&str> = sorted.iter().map(|(name, _)| &**name).collect();
    names.dedup();
    names.join(";")
}

/// Parameters by name, then by value, each percent-encoded in the one way that AWS does it.
fn canonical_query(query: &str, out: &mut String) {
    let mut parameters: Vec<(String, String)> = query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            (encoded_anew(name), encoded_anew(value))
        })
        .collect();
    parameters.sort();
    for (index, (name, value)) in parameters.iter().enumerate() {
        out.push_str(if index == 0 { "" } else { "&" });
        out.push_str(name);
        out.push('=');
        out.push_str(value);
    }
}

fn encoded_anew(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let Some((first, rest)) = bytes.split_first() {
        let escaped = (*first == b'%').then(|| rest.split_at_checked(2)).flatten();
        let escaped = escaped.and_then(|(digits, rest)| {
            let digits = std::str::from_utf8(digits).ok()?;
            Some((u8::from_str_radix(digits, 16).ok()?, rest))
        });
        let (byte, rest) = escaped.unwrap_or((*first, rest));
        decoded.push(byte);
        bytes = rest;
    }
    let mut out = String::new();
    percent_encode_bytes(&decoded, &mut out);
    out
}

/// Encodes all but unreserved characters (RFC 3986, section 2.3), as the one segment of a path.
pub fn percent_encode(text: &str, out: &mut String) {
    percent_encode_bytes(text.as_bytes(), out);
}

fn percent_encode_bytes(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(*byte as char),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
}

/// A header's value without spaces around it, and with one where there are several.
fn trimmed(value: &str) -> Cow<'_, str> {
    let value = value.trim();
    match value.contains("  ") {
        true => Cow::Owned(value.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")),
        false => Cow::Borrowed(value),
    }
}

fn digest(bytes: &[u8]) -> digest::Digest {
    digest::digest(&digest::SHA256, bytes)
}

fn mac(key: &hmac::Tag, bytes: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()), bytes)
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| DIGITS[digit as usize] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and the moment of AWS's published test suite.
    fn signer(region: &str, service: &str, token: Option<&str>) -> SigV4 {
        SigV4 {
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into()),
            session_token: token.map(|token| Secret::new(token.into())),
            region: region.into(),
            service: service.into(),
        }
    }

    fn signature(signed: &Signed) -> &str {
        signed.authorization.rsplit('=').next().unwrap()
    }

    fn sign(signer: &SigV4, request: Unsigned<'_>) -> Signed {
        signer.sign(request, "2015-08-30T12:36:00Z".parse().unwrap())
    }

    const HOST: (&str, &str) = ("Host", "example.amazonaws.com");
    const GET: Unsigned<'_> = Unsigned { method: "GET", path: "/", query: "", headers: &[HOST], body: b"" };

    #[test]
    fn the_published_vectors_are_signed_as_published() {
        let service = signer("us-east-1", "service", None);
        let vanilla = sign(&service, GET);
        assert_eq!(
            vanilla.authorization,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
        assert_eq!(vanilla.date, "20150830T123600Z");
        let cases = [
            (
                "get-vanilla-query-order-key-case",
                Unsigned { query: "Param2=value2&Param1=value1", ..GET },
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "get-header-value-order",
                Unsigned {
                    headers: &[
                        HOST,
                        ("My-Header1", "value4"),
                        ("My-Header1", "value1"),
                        ("My-Header1", "value3"),
                        ("My-Header1", "value2"),
                    ],
                    ..GET
                },
                "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01",
            ),
            (
                "post-vanilla",
                Unsigned { method: "POST", ..GET },
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "post-x-www-form-urlencoded",
                Unsigned {
                    method: "POST",
                    headers: &[("Content-Type", "application/x-www-form-urlencoded"), HOST],
                    body: b"Param1=value1",
                    ..GET
                },
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
        ];
        for (name, request, want) in cases {
            assert_eq!(signature(&sign(&service, request)), want, "{name}");
        }
        let iam = Unsigned {
            query: "Action=ListUsers&Version=2010-05-08",
            headers: &[
                ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
                ("host", "iam.amazonaws.com"),
            ],
            ..GET
        };
        let want = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";
        assert_eq!(signature(&sign(&signer("us-east-1", "iam", None), iam)), want, "the example of the IAM guide");
    }

    #[test]
    fn model_ids_are_encoded_twice_and_session_tokens_signed() {
        // What botocore signs for the same requests.
        let claude = Unsigned {
            method: "POST",
            path: "/model/anthropic.claude-3-5-sonnet-20240620-v1%3A0/converse",
            query: "",
            headers: &[("Content-Type", "application/json"), ("Host", "bedrock-runtime.eu-west-1.amazonaws.com")],
            body: b"{\"messages\":[]}",
        };
        let signed = sign(&signer("eu-west-1", "bedrock", Some("AQoDYXdzEPT//////////wEXAMPLEtoken==")), claude);
        assert_eq!(signature(&signed), "c4e9fceb54e32ece03842c22b285fe9dc4938d0a738bf9362775cc1aad32ba83");
        assert!(signed.authorization.contains("SignedHeaders=content-type;host;x-amz-date;x-amz-security-token,"));
        assert_eq!(signed.security_token.unwrap().expose(), "AQoDYXdzEPT//////////wEXAMPLEtoken==");

        let mut path = "/model/".to_owned();
        percent_encode("arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123", &mut path);
        path.push_str("/converse-stream");
        let profile = Unsigned {
            path: &path,
            headers: &[("content-type", "application/json"), ("host", "bedrock-runtime.us-east-1.amazonaws.com")],
            body: b"{}",
            ..claude
        };
        let signed = sign(&signer("us-east-1", "bedrock", None), profile);
        assert_eq!(signature(&signed), "f20bf69eb9c7b310892c45cd92d9a7e0fb670b330e116769d87af6ef59bd2720");
    }

    #[test]
    fn paths_queries_and_headers_are_brought_into_one_form() {
        let request = Unsigned {
            path: "/a/b%20c/",
            query: "q=%2f&flag&A=%7e&q=%zz",
            headers: &[HOST, ("My-Header", "  a   b  ")],
            ..GET
        };
        let headers = [("host".to_owned(), Cow::Borrowed("h")), ("my-header".to_owned(), trimmed("  a   b  "))];
        let canonical = canonical_request(&request, &headers, &signed_headers(&headers));
        let (head, _) = canonical.rsplit_once('\n').unwrap();
        assert_eq!(head, "GET\n/a/b%2520c/\nA=~&flag=&q=%25zz&q=%2F\nhost:h\nmy-header:a b\n\nhost;my-header");
    }
}
