//! Holds a body to its `Content-Digest` (RFC 9530) as it streams by: its end goes on only once it is known to be right, so
//! that no origin ever has a whole body that is not the one that was signed.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName};
use ring::digest::{Algorithm, Context, SHA256, SHA512};

use super::input::dictionary;
use super::message::bytes_of;
use crate::error::{Error, Reason, Result};
use crate::filters::filter::BodyTransform;

pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// Those that RFC 9530, section 7.2, calls active. Others say nothing, however many there are.
const ALGORITHMS: [(&str, &Algorithm); 2] = [("sha-256", &SHA256), ("sha-512", &SHA512)];

/// What the body has to be.
#[derive(Clone)]
pub struct Expected(Vec<(&'static Algorithm, Vec<u8>)>);

impl Expected {
    /// Reads the header; all of its digests that are known have to be right.
    pub fn read(headers: &HeaderMap) -> std::result::Result<Expected, &'static str> {
        let members = dictionary(headers, &CONTENT_DIGEST).ok_or("`Content-Digest` is not a dictionary")?;
        let mut expected = Vec::new();
        for (name, algorithm) in ALGORITHMS {
            if let Some(member) = members.get(name) {
                let digest = bytes_of(member).ok_or("a digest is not bytes")?;
                expected.push((algorithm, digest.to_vec()));
            }
        }
        if expected.is_empty() {
            return Err("there is no `Content-Digest` with sha-256 or sha-512");
        }
        Ok(Expected(expected))
    }

    /// Whether a request without a body is what was signed.
    pub fn is_of_nothing(&self) -> bool {
        self.0.iter().all(|(algorithm, digest)| ring::digest::digest(algorithm, &[]).as_ref() == digest)
    }

    pub fn check(self) -> Check {
        Check { running: self.begin(), expected: self, held: Bytes::new() }
    }

    fn begin(&self) -> Vec<Context> {
        self.0.iter().map(|(algorithm, _)| Context::new(algorithm)).collect()
    }
}

/// A body on its way.
pub struct Check {
    expected: Expected,
    running: Vec<Context>,
    /// The last chunk that is not empty.
    held: Bytes,
}

impl BodyTransform for Check {
    fn chunk(&mut self, chunk: Bytes, last: bool) -> Result<Bytes> {
        self.running.iter_mut().for_each(|context| context.update(&chunk));
        if !last {
            return Ok(if chunk.is_empty() { Bytes::new() } else { std::mem::replace(&mut self.held, chunk) });
        }
        let digests = std::mem::take(&mut self.running).into_iter().map(Context::finish);
        if !digests.zip(&self.expected.0).all(|(digest, (_, expected))| digest.as_ref() == expected) {
            return Err(Error::with(Reason::BadRequest, "the body is not the one of `Content-Digest`"));
        }
        let held = std::mem::take(&mut self.held);
        if held.is_empty() || chunk.is_empty() {
            return Ok(if held.is_empty() { chunk } else { held });
        }
        let mut whole = BytesMut::with_capacity(held.len() + chunk.len());
        whole.extend_from_slice(&held);
        whole.extend_from_slice(&chunk);
        Ok(whole.freeze())
    }

    fn restart(&mut self) {
        (self.running, self.held) = (self.expected.begin(), Bytes::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(value: &str) -> std::result::Result<Expected, &'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_DIGEST, value.parse().unwrap());
        Expected::read(&headers)
    }

    /// RFC 9530, appendix D, and RFC 9421, appendix B.2: of `{"hello": "world"}`.
    const BODY: &[u8] = br#"{"hello": "world"}"#;
    const SHA_512: &str =
        "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";
    const SHA_256: &str = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:";

    /// Sends a body in pieces; what has gone on before its end, and the end.
    fn stream(check: &mut Check, pieces: &[&[u8]]) -> (Vec<u8>, Result<Bytes>) {
        let mut before = Vec::new();
        let (last, first) = pieces.split_last().unwrap();
        for piece in first {
            before.extend_from_slice(&check.chunk(Bytes::copy_from_slice(piece), false).unwrap());
        }
        let end = check.chunk(Bytes::copy_from_slice(last), true);
        (before, end)
    }

    #[test]
    fn a_body_is_never_complete_before_it_is_known_to_be_right() {
        for header in [SHA_512, SHA_256, &format!("{SHA_256}, {SHA_512}"), &format!("md5=:AA==:, {SHA_256}")] {
            let mut check = expected(header).unwrap().check();
            for at in 0..=BODY.len() {
                for pieces in
                    [&[&BODY[..at], &BODY[at..]][..], &[&BODY[..at], b"", &BODY[at..], b""], &[BODY, b""], &[BODY]]
                {
                    let (mut sent, end) = stream(&mut check, pieces);
                    assert!(sent.len() < BODY.len(), "{pieces:?}");
                    sent.extend_from_slice(&end.unwrap());
                    assert_eq!(sent, BODY);
                    check.restart();
                }
                let mut wrong = BODY.to_vec();
                wrong.insert(at, b'x');
                let (sent, end) = stream(&mut check, &[&wrong[..at], &wrong[at..], b""]);
                assert!(sent.len() < wrong.len() && end.is_err());
                check.restart();
            }
            assert!(stream(&mut check, &[b"", b""]).1.is_err(), "nothing in a body's stead");
        }
        let both = format!("{SHA_256}, sha-512=:AAAA:");
        assert!(stream(&mut expected(&both).unwrap().check(), &[BODY]).1.is_err(), "each digest has to be right");
    }

    #[test]
    fn headers_without_a_digest_that_counts_are_refused() {
        for header in
            ["", "sha-256", "sha-256=x", "sha-256=(:AA==:)", "md5=:AA==:", "sha=:AA==:", "SHA-256=:AA==:", "sha-256=:A"]
        {
            assert!(expected(header).is_err(), "{header}");
        }
        assert!(expected("sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:").unwrap().is_of_nothing());
        assert!(!expected(SHA_256).unwrap().is_of_nothing());
    }
}
