//! Lets browsers call gRPC services: gRPC-Web on this side, gRPC on the origin's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::error::{Error, Reason, Result};
use crate::filters::filter::{BodyTransform, Compiled, Flow, OnRequest, OnResponse, Request, Response, TrailersInBody};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;

/// Translates gRPC-Web, binary and text, to gRPC and back. Requests that are not gRPC-Web pass unchanged.
///
/// The upstream has to speak HTTP/2 (`protocol: h2c`, or `http2` with TLS). Pages of other origins also need the filter
/// `cors`, with `grpc-status` and `grpc-message` in `expose`.
///
/// ```yaml
/// grpc_web: {}
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}

const GRPC_WEB: &str = "application/grpc-web";
const GRPC_WEB_TEXT: &str = "application/grpc-web-text";
const GRPC: &str = "application/grpc";

pub struct GrpcWeb;

impl FilterKind for GrpcWeb {
    const NAME: &'static str = "grpc_web";
    /// Last of all: every earlier filter, and the log, sees what the client sent.
    const STAGE: Stage = Stage::Transform;
    type Config = Config;

    fn compile(_: Config, _: &mut Site<'_>) -> Option<Compiled> {
        Some(Compiled::on_both(GrpcWeb))
    }
}

impl OnRequest for GrpcWeb {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        let Some((text, format)) = grpc_web(request.head) else { return Flow::Continue };
        let head = &mut *request.head;
        let set = |head: &mut RequestHeader, name: HeaderName, value: HeaderValue| {
            let _ = head.insert_header(name, value);
        };
        let Ok(content_type) = HeaderValue::try_from(format!("{GRPC}{format}")) else { return Flow::Continue };
        set(head, CONTENT_TYPE, content_type);
        set(head, TE, HeaderValue::from_static("trailers"));
        head.remove_header(&ACCEPT);
        if text {
            head.remove_header(&CONTENT_LENGTH);
            request.controls.request_body.push(Box::new(FromBase64::default()));
            request.controls.response_body.push(Box::new(ToBase64));
        }
        request.controls.trailers_in_body = Some(Box::new(Trailers { text, format }));
        Flow::Continue
    }
}

impl OnResponse for GrpcWeb {
    fn on_response(&self, response: &mut Response<'_>) {
        let Some(trailers) = &response.controls.trailers_in_body else { return };
        let is_grpc =
            response.head.headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(GRPC.as_bytes()));
        if is_grpc && let Ok(content_type) = HeaderValue::try_from(trailers.content_type()) {
            let _ = response.head.insert_header(CONTENT_TYPE, content_type);
            // The trailers follow the body in it.
            response.head.remove_header(&CONTENT_LENGTH);
        }
    }
}

/// Whether a request is gRPC-Web text, and its message format (`+proto`, or nothing); `None` if it is not gRPC-Web.
fn grpc_web(head: &RequestHeader) -> Option<(bool, String)> {
    if head.method != Method::POST {
        return None;
    }
    let value = head.headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let text = value.starts_with(GRPC_WEB_TEXT);
    let rest = value.strip_prefix(if text { GRPC_WEB_TEXT } else { GRPC_WEB })?;
    let format = rest.split(';').next().unwrap_or_default().trim();
    (format.is_empty() || format.starts_with('+')).then(|| (text, format.to_owned()))
}

/// Decodes base64 that arrives in pieces of any length, possibly padded in between.
#[derive(Default)]
struct FromBase64 {
    /// Fewer than four characters that wait for the rest of their group.
    pending: BytesMut,
}

impl BodyTransform for FromBase64 {
    fn chunk(&mut self, chunk: Bytes, last: bool) -> Result<Bytes> {
        self.pending.extend_from_slice(&chunk);
        let whole = self.pending.len() / 4 * 4;
        if last && whole != self.pending.len() {
            return Err(Error::with(Reason::BadRequest, "the gRPC-Web text body ends inside a base64 group"));
        }
        let mut decoded = Vec::with_capacity(whole / 4 * 3);
        let mut text = &self.pending[..whole];
        while !text.is_empty() {
            // Each padded run stands alone.
            let end = memchr::memchr(b'=', text).map_or(text.len(), |padding| (padding / 4 + 1) * 4);
            let (run, rest) = text.split_at(end);
            STANDARD
                .decode_vec(run, &mut decoded)
                .map_err(|_| Error::with(Reason::BadRequest, "the gRPC-Web text body is not base64"))?;
            text = rest;
        }
        let _ = self.pending.split_to(whole);
        Ok(decoded.into())
    }

    fn restart(&mut self) {
        self.pending.clear();
    }
}

/// Encodes each piece by itself, so that no message waits for the next.
struct ToBase64;

impl BodyTransform for ToBase64 {
    fn chunk(&mut self, chunk: Bytes, _: bool) -> Result<Bytes> {
        Ok(if chunk.is_empty() { chunk } else { STANDARD.encode(chunk).into() })
    }
}

struct Trailers {
    text: bool,
    format: String,
}

impl TrailersInBody for Trailers {
    /// A frame whose first byte has its highest bit set, and that holds the trailers as header lines.
    fn encode(&self, trailers: &HeaderMap) -> Bytes {
        const TRAILER_FRAME: u8 = 0x80;
        let mut lines = Vec::new();
        for (name, value) in trailers {
            lines.extend_from_slice(name.as_str().as_bytes());
            lines.extend_from_slice(b": ");
            lines.extend_from_slice(value.as_bytes());
            lines.extend_from_slice(b"\r\n");
        }
        let mut frame = BytesMut::with_capacity(5 + lines.len());
        frame.put_u8(TRAILER_FRAME);
        frame.put_u32(lines.len() as u32);
        frame.extend_from_slice(&lines);
        if self.text { STANDARD.encode(&frame).into() } else { frame.freeze() }
    }

    fn content_type(&self) -> String {
        format!("{}{}", if self.text { GRPC_WEB_TEXT } else { GRPC_WEB }, self.format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_whatever_the_pieces() {
        let parts: [&[u8]; 3] = [b"first frame", b"2", b"the third one"];
        let text: String = parts.iter().map(|part| STANDARD.encode(part)).collect();
        for size in 1..=text.len() {
            let mut decoder = FromBase64::default();
            let mut decoded = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                decoded.extend(decoder.chunk(Bytes::copy_from_slice(piece), false).unwrap());
            }
            decoded.extend(decoder.chunk(Bytes::new(), true).unwrap());
            assert_eq!(decoded, parts.concat(), "pieces of {size}");
        }
    }

    #[test]
    fn base64_that_is_cut_off_or_wrong_is_refused() {
        assert!(FromBase64::default().chunk(Bytes::from_static(b"AAA"), true).is_err());
        assert!(FromBase64::default().chunk(Bytes::from_static(b"A*AA"), true).is_err());
    }

    #[test]
    fn trailers_become_a_marked_frame() {
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        let frame = Trailers { text: false, format: "+proto".into() }.encode(&trailers);
        assert_eq!(&frame[..], b"\x80\0\0\0\x10grpc-status: 0\r\n");
    }
}
