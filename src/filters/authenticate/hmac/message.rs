//! The text that is signed: RFC 9421, section 2.5, made again from a request.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName};
use pingora::http::RequestHeader;
use sfv::{List, ListEntry, SerializeValue};

use super::input::{Part, Signature, dictionary};
use crate::filters::authenticate::credentials::decoded;
use crate::telemetry::exchange::{Exchange, Scheme};
use crate::telemetry::redact::parameters;

const ABSENT: &str = "the signature covers a field that the request does not have";

/// What of a request can be signed.
pub struct Message<'r> {
    method: &'r str,
    scheme: &'r str,
    authority: String,
    /// Path and query, as HTTP/1 and HTTP/2 send them.
    target: Cow<'r, [u8]>,
    headers: &'r HeaderMap,
}

impl<'r> Message<'r> {
    /// The request as it was matched and will be forwarded.
    pub fn canonical(head: &'r RequestHeader, exchange: &Exchange) -> Message<'r> {
        // Of a proxy that is trusted, or our own.
        let forwarded = head.headers.get("x-forwarded-proto").map(|value| value.as_bytes());
        let scheme = match forwarded {
            Some(b"https") => Scheme::Https,
            Some(b"http") => Scheme::Http,
            _ => exchange.scheme,
        };
        let default = exchange.port == exchange.scheme.default_port() || exchange.port == scheme.default_port();
        let authority = match default {
            true => exchange.host.clone(),
            false => format!("{}:{}", exchange.host, exchange.port),
        };
        Message {
            method: head.method.as_str(),
            scheme: scheme.as_str(),
            authority,
            target: head.raw_path().into(),
            headers: &head.headers,
        }
    }

    /// The request with the target that the client sent, where that is another way to write the same.
    pub fn with_sent_target(self, exchange: &'r Exchange) -> Option<Message<'r>> {
        let target = Cow::Borrowed(exchange.original_target.as_deref()?.as_bytes());
        Some(Message { target, ..self })
    }

    pub fn has_query(&self) -> bool {
        self.target.contains(&b'?')
    }

    /// What the signature has to be of; an error if the request lacks what it covers.
    pub fn base(&self, signature: &Signature) -> Result<Vec<u8>, &'static str> {
        let mut base = Vec::with_capacity(512);
        for component in &signature.components {
            base.extend_from_slice(component.identifier.as_bytes());
            base.extend_from_slice(b": ");
            self.write(&component.part, &mut base)?;
            base.push(b'\n');
        }
        base.extend_from_slice(b"\"@signature-params\": ");
        base.extend_from_slice(signature.params.as_bytes());
        Ok(base)
    }

    fn write(&self, part: &Part, out: &mut Vec<u8>) -> Result<(), &'static str> {
        match part {
            Part::Method => out.extend_from_slice(self.method.as_bytes()),
            Part::Scheme => out.extend_from_slice(self.scheme.as_bytes()),
            Part::Authority => out.extend_from_slice(self.authority.as_bytes()),
            Part::RequestTarget => out.extend_from_slice(&self.target),
            Part::TargetUri => {
                let (path, query) = self.path_and_query();
                for part in [self.scheme.as_bytes(), b"://", self.authority.as_bytes(), path] {
                    out.extend_from_slice(part);
                }
                if let Some(query) = query {
                    out.push(b'?');
                    out.extend_from_slice(query);
                }
            }
            Part::Path => out.extend_from_slice(self.path_and_query().0),
            // A question mark is there also where there is no query (RFC 9421, section 2.2.7).
            Part::Query => {
                out.push(b'?');
                out.extend_from_slice(self.path_and_query().1.unwrap_or_default());
            }
            Part::QueryParam(name) => self.write_query_param(name, out)?,
            Part::Field(name) => {
                for (i, line) in self.lines(name)?.enumerate() {
                    out.extend_from_slice(if i > 0 { b", " } else { b"" });
                    out.extend_from_slice(line);
                }
            }
            Part::Member(name, key) => {
                let mut members = dictionary(self.headers, name).ok_or("a covered field is not a dictionary")?;
                let member: List = vec![members.swap_remove(key).ok_or(ABSENT)?];
                // A member that is true has no value of its own to write.
                let text = member.serialize_value().map_err(|_| "a covered field cannot be written")?;
                out.extend_from_slice(text.as_bytes());
            }
            Part::Binary(name) => {
                for (i, line) in self.lines(name)?.enumerate() {
                    out.extend_from_slice(if i > 0 { b", :" } else { b":" });
                    out.extend_from_slice(STANDARD.encode(line).as_bytes());
                    out.push(b':');
                }
            }
        }
        Ok(())
    }

    /// The lines of a field without the spaces around them; the listener refuses folded ones.
    fn lines(&self, name: &HeaderName) -> Result<impl Iterator<Item = &[u8]>, &'static str> {
        let mut lines = self.headers.get_all(name).iter().map(|line| line.as_bytes().trim_ascii()).peekable();
        if lines.peek().is_none() {
            return Err(ABSENT);
        }
        Ok(lines)
    }

    fn path_and_query(&self) -> (&[u8], Option<&[u8]>) {
        // An absolute target names scheme and authority first.
        let target = match memchr::memmem::find(&self.target, b"://") {
            Some(at) if !self.target.starts_with(b"/") => {
                let rest = self.target.get(at + 3..).unwrap_or_default();
                let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
                rest.get(end..).unwrap_or_default()
            }
            _ => &*self.target,
        };
        let (path, query) = match memchr::memchr(b'?', target) {
            Some(at) => (target.get(..at).unwrap_or_default(), target.get(at + 1..)),
            None => (target, None),
        };
        (if path.is_empty() { b"/" } else { path }, query)
    }

    /// RFC 9421, section 2.2.8: one that is there twice cannot be signed.
    fn write_query_param(&self, name: &str, out: &mut Vec<u8>) -> Result<(), &'static str> {
        let query = self.path_and_query().1.unwrap_or_default();
        let mut named = parameters(query).filter(|(known, _)| encoded(&decoded(known)) == name.as_bytes());
        match (named.next(), named.next()) {
            (Some((_, value)), None) => {
                out.extend(encoded(&decoded(value.unwrap_or_default())));
                Ok(())
            }
            (Some(_), Some(_)) => Err("the signature covers a parameter that the query has twice"),
            (None, _) => Err("the signature covers a parameter that the query does not have"),
        }
    }
}

/// The percent-encode set of `application/x-www-form-urlencoded`, where a space is `%20`.
fn encoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        match byte {
            b'*' | b'-' | b'.' | b'_' => out.push(*byte),
            byte if byte.is_ascii_alphanumeric() => out.push(*byte),
            byte => out.extend(format!("%{byte:02X}").bytes()),
        }
    }
    out
}

/// The bytes of a dictionary's member, if it is a sequence of bytes.
pub fn bytes_of(entry: &ListEntry) -> Option<&[u8]> {
    match entry {
        ListEntry::Item(item) => item.bare_item.as_byte_seq().map(Vec::as_slice),
        ListEntry::InnerList(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::input::{SIGNATURE, SIGNATURE_INPUT, read};
    use super::*;
    use crate::identity::signing_key::{SigningKey, tests as keys};
    use crate::telemetry::exchange::tests::exchange;

    /// The request of RFC 9421, appendix B.2.
    fn request() -> (RequestHeader, Exchange) {
        let mut head = RequestHeader::build("POST", b"/foo?param=Value&Pet=dog", None).unwrap();
        for (name, value) in [
            ("host", "example.com"),
            ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
            ("content-type", "application/json"),
            (
                "content-digest",
                "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:",
            ),
            ("content-length", "18"),
        ] {
            head.insert_header(name, value).unwrap();
        }
        let exchange = Exchange { host: "example.com".into(), port: 443, original_target: None, ..exchange() };
        (head, exchange)
    }

    fn signature(input: &str, bytes: &str) -> Signature {
        let mut headers = HeaderMap::new();
        headers.insert(SIGNATURE_INPUT, format!("s={input}").parse().unwrap());
        headers.insert(SIGNATURE, format!("s=:{bytes}:").parse().unwrap());
        read(&headers).unwrap().unwrap().remove(0).unwrap()
    }

    #[test]
    fn the_signatures_of_the_rfc_are_verified() {
        let public = |pem| SigningKey::public(pem).ok().unwrap();
        for (key, input, bytes) in [
            // Appendix B.2.1, B.2.2, B.2.3: RSA-PSS.
            (
                public(keys::RSA_PSS),
                r#"();created=1618884473;keyid="test-key-rsa-pss";nonce="b3k2pp5k7z-50gnwp.yemd""#,
                "d2pmTvmbncD3xQm8E9ZV2828BjQWGgiwAaw5bAkgibUopemLJcWDy/lkbbHAve4cRAtx31Iq786U7it++wgGxbtRxf8Udx7zFZsckzXaJMkA7ChG52eSkFxykJeNqsrWH5S+oxNFlD4dzVuwe8DhTSja8xxbR/Z2cOGdCbzR72rgFWhzx2VjBqJzsPLMIQKhO4DGezXehhWwE56YCE+O6c0mKZsfxVrogUvA4HELjVKWmAvtl6UnCh8jYzuVG5WSb/QEVPnP5TmcAnLH1g+s++v6d4s8m0gCw1fV5/SITLq9mhho8K3+7EPYTU8IU1bLhdxO5Nyt8C8ssinQ98Xw9Q==",
            ),
            (
                public(keys::RSA_PSS),
                r#"("@authority" "content-digest" "@query-param";name="Pet");created=1618884473;keyid="test-key-rsa-pss";tag="header-example""#,
                "LjbtqUbfmvjj5C5kr1Ugj4PmLYvx9wVjZvD9GsTT4F7GrcQEdJzgI9qHxICagShLRiLMlAJjtq6N4CDfKtjvuJyE5qH7KT8UCMkSowOB4+ECxCmT8rtAmj/0PIXxi0A0nxKyB09RNrCQibbUjsLS/2YyFYXEu4TRJQzRw1rLEuEfY17SARYhpTlaqwZVtR8NV7+4UKkjqpcAoFqWFQh62s7Cl+H2fjBSpqfZUJcsIk4N6wiKYd4je2U/lankenQ99PZfB4jY3I5rSV2DSBVkSFsURIjYErOs0tFTQosMTAoxk//0RoKUqiYY8Bh0aaUEb0rQl3/XaVe4bXTugEjHSw==",
            ),
            (
                public(keys::RSA_PSS),
                r#"("date" "@method" "@path" "@query" "@authority" "content-type" "content-digest" "content-length");created=1618884473;keyid="test-key-rsa-pss""#,
                "bbN8oArOxYoyylQQUU6QYwrTuaxLwjAC9fbY2F6SVWvh0yBiMIRGOnMYwZ/5MR6fb0Kh1rIRASVxFkeGt683+qRpRRU5p2voTp768ZrCUb38K0fUxN0O0iC59DzYx8DFll5GmydPxSmme9v6ULbMFkl+V5B1TP/yPViV7KsLNmvKiLJH1pFkh/aYA2HXXZzNBXmIkoQoLd7YfW91kE9o/CCoC1xMy7JA1ipwvKvfrs65ldmlu9bpG6A9BmzhuzF8Eim5f8ui9eH8LZH896+QIF61ka39VBrohr9iyMUJpvRX2Zbhl5ZJzSRxpJyoEZAFL2FUo5fTIztsDZKEgM4cUA==",
            ),
            // Appendix B.2.5: HMAC.
            (
                keys::shared_secret(),
                r#"("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret""#,
                "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=",
            ),
            // Appendix B.2.6: Ed25519.
            (
                public(keys::ED25519),
                r#"("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519""#,
                "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==",
            ),
        ] {
            let (head, exchange) = request();
            let signature = signature(input, bytes);
            let base = Message::canonical(&head, &exchange).base(&signature).unwrap();
            assert!(key.verify(&base, &signature.bytes), "{input}:\n{}", String::from_utf8_lossy(&base));
            assert!(!key.verify(&base[1..], &signature.bytes));
            assert!(!key.verify(&base, &signature.bytes[1..]));
        }
    }

    /// What is written for one component.
    fn value(head: &RequestHeader, exchange: &Exchange, component: &str) -> Result<String, &'static str> {
        let signature = signature(&format!("({component});keyid=\"k\""), "AA==");
        let base = Message::canonical(head, exchange).base(&signature)?;
        let line = String::from_utf8(base).unwrap().lines().next().unwrap().to_owned();
        Ok(line.strip_prefix(&format!("{component}: ")).unwrap_or(&line).to_owned())
    }

    #[test]
    fn components_have_the_values_of_the_rfc() {
        let (mut head, mut exchange) = request();
        for (component, expected) in [
            (r#""@method""#, "POST"),
            (r#""@target-uri""#, "https://example.com/foo?param=Value&Pet=dog"),
            (r#""@authority""#, "example.com"),
            (r#""@scheme""#, "https"),
            (r#""@request-target""#, "/foo?param=Value&Pet=dog"),
            (r#""@path""#, "/foo"),
            (r#""@query""#, "?param=Value&Pet=dog"),
            (r#""@query-param";name="param""#, "Value"),
        ] {
            assert_eq!(value(&head, &exchange, component).as_deref(), Ok(expected), "{component}");
        }
        // Section 2.1: lines are joined, without the spaces around them; 2.1.2 members; 2.1.3 lines as bytes.
        for (name, line) in [
            ("cache-control", "max-age=60"),
            ("cache-control", "    must-revalidate"),
            ("x-empty", ""),
            ("example-dict", "a=1, b=2;x=1;y=2, c=(a b c), d"),
        ] {
            head.append_header(name, line).unwrap();
        }
        for (component, expected) in [
            (r#""cache-control""#, "max-age=60, must-revalidate"),
            (r#""x-empty""#, ""),
            (r#""example-dict";key="a""#, "1"),
            (r#""example-dict";key="b""#, "2;x=1;y=2"),
            (r#""example-dict";key="c""#, "(a b c)"),
            (r#""example-dict";key="d""#, "?1"),
            (r#""cache-control";bs"#, ":bWF4LWFnZT02MA==:, :bXVzdC1yZXZhbGlkYXRl:"),
        ] {
            assert_eq!(value(&head, &exchange, component).as_deref(), Ok(expected), "{component}");
        }
        for absent in
            [r#""x-none""#, r#""x-none";bs"#, r#""x-none";key="a""#, r#""example-dict";key="e""#, r#""date";key="a""#]
        {
            assert!(value(&head, &exchange, absent).is_err(), "{absent}");
        }
        // Section 2.2.8.
        let target = b"/parameters?var=this%20is%20a%20big%0Amultiline%20value&bar=with+plus+whitespace&fa%C3%A7ade%22%3A%20=something&two=1&two=2&none";
        head.set_raw_path(target).unwrap();
        for (component, expected) in [
            (r#""@query-param";name="var""#, Ok("this%20is%20a%20big%0Amultiline%20value")),
            (r#""@query-param";name="bar""#, Ok("with%20plus%20whitespace")),
            (r#""@query-param";name="fa%C3%A7ade%22%3A%20""#, Ok("something")),
            (r#""@query-param";name="none""#, Ok("")),
            (r#""@query-param";name="two""#, Err("the signature covers a parameter that the query has twice")),
            (r#""@query-param";name="x""#, Err("the signature covers a parameter that the query does not have")),
        ] {
            assert_eq!(value(&head, &exchange, component).as_deref(), expected.as_ref().copied(), "{component}");
        }
        head.set_raw_path(b"/a").unwrap();
        assert_eq!(value(&head, &exchange, r#""@query""#).as_deref(), Ok("?"));
        exchange.port = 8443;
        assert_eq!(value(&head, &exchange, r#""@authority""#).as_deref(), Ok("example.com:8443"));
        assert_eq!(value(&head, &exchange, r#""@target-uri""#).as_deref(), Ok("https://example.com:8443/a"));
        // Behind a proxy that ends TLS.
        (exchange.scheme, exchange.port) = (Scheme::Http, 80);
        head.insert_header("x-forwarded-proto", "https").unwrap();
        assert_eq!(value(&head, &exchange, r#""@target-uri""#).as_deref(), Ok("https://example.com/a"));
    }

    #[test]
    fn a_target_may_be_signed_as_it_wwith_sent_target() {
        let (head, mut exchange) = request();
        assert!(Message::canonical(&head, &exchange).with_sent_target(&exchange).is_none());
        for (original, path, query) in [
            ("/a/%7Ex?q", "/a/%7Ex", "?q"),
            ("http://example.com/%7Ex", "/%7Ex", "?"),
            ("http://example.com?q", "/", "?q"),
            ("/x?u=http://a/b", "/x", "?u=http://a/b"),
        ] {
            exchange.original_target = Some(original.into());
            let message = Message::canonical(&head, &exchange).with_sent_target(&exchange).unwrap();
            let signature = signature(r#"("@path" "@query" "@request-target");keyid="k""#, "AA==");
            let base = String::from_utf8(message.base(&signature).unwrap()).unwrap();
            let lines: Vec<_> = base.lines().collect();
            assert_eq!(lines[0], format!("\"@path\": {path}"));
            assert_eq!(lines[1], format!("\"@query\": {query}"));
            assert_eq!(lines[2], format!("\"@request-target\": {original}"));
        }
    }
}
