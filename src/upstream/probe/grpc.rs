//! A target is healthy when its gRPC health service says `SERVING`.
//!
//! The protocol is <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>. Its two messages have one field
//! each, so they are encoded here by hand rather than with generated code.

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Method, header};
use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v2::client::Http2Session;
use pingora::upstreams::peer::HttpPeer;

use super::http::request;
use super::{Connectors, Probe, describe, within};
use crate::upstream::form;

/// A health answer takes 7 bytes; a target that sends more than this is not a health service.
const MAX_ANSWER: usize = 4096;

/// What a [`GrpcProbe`] asks for.
#[derive(Debug, Clone)]
pub struct GrpcProbeSettings {
    /// The service whose health is asked; empty asks for the server as a whole.
    pub service: String,
    /// The `:authority` of the call.
    pub authority: String,
    /// Bounds the whole run, from connecting to the trailers.
    pub timeout: Duration,
}

/// Calls `grpc.health.v1.Health/Check`, over HTTP/2 with TLS or without, as the peer says.
pub struct GrpcProbe {
    request: pingora::http::RequestHeader,
    message: Bytes,
    authority: String,
    timeout: Duration,
    connectors: Arc<Connectors>,
}

impl GrpcProbe {
    /// Refuses an authority that no call can carry.
    pub fn new(settings: GrpcProbeSettings, connectors: Arc<Connectors>) -> Result<Self, String> {
        let mut request = request(Method::POST, "/grpc.health.v1.Health/Check", &settings.authority)?;
        // At most 8 digits are allowed, which is more than a day.
        let timeout = format!("{}m", settings.timeout.as_millis().clamp(1, 99_999_999));
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", &timeout)] {
            request.insert_header(name, value).map_err(|e| describe(&e))?;
        }
        Ok(GrpcProbe {
            request,
            message: encode_request(&settings.service),
            authority: settings.authority,
            timeout: settings.timeout,
            connectors,
        })
    }

    async fn exchange(&self, peer: &HttpPeer) -> Result<(), String> {
        let mut peer = peer.clone();
        peer.options.set_http_version(2, 2);
        let mut session = self.connectors.http_session(&peer).await?;
        let HttpSession::H2(session) = &mut session else {
            return Err("the target does not speak HTTP/2".into());
        };
        let mut request = self.request.clone();
        form::for_http2(&mut request, &self.authority, peer.is_tls())?;
        session.write_request_header(Box::new(request), false).map_err(|e| describe(&e))?;
        session.write_request_body(self.message.clone(), true).await.map_err(|e| describe(&e))?;
        let message = read_answer(session).await?;
        match decode_answer(&message) {
            Some(1) => Ok(()),
            Some(0) => Err("the health service says UNKNOWN".into()),
            Some(2) => Err("the health service says NOT_SERVING".into()),
            Some(3) => Err("the health service says SERVICE_UNKNOWN".into()),
            Some(status) => Err(format!("the health service says {status}, which is no known status")),
            None => Err("the answer is not a HealthCheckResponse".into()),
        }
    }
}

#[async_trait]
impl Probe for GrpcProbe {
    async fn run(&self, peer: &HttpPeer) -> Result<(), String> {
        within(self.timeout, self.exchange(peer)).await
    }
}

/// Reads one unary answer to its end; gives the framed message of a call that ended with status OK.
async fn read_answer(session: &mut Http2Session) -> Result<Vec<u8>, String> {
    session.read_response_header().await.map_err(|e| describe(&e))?;
    let header = session.response_header().ok_or("no answer")?;
    if header.status != 200 {
        return Err(format!("status {}, expected 200", header.status.as_u16()));
    }
    let content_type = header.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |v| v.as_bytes());
    if !content_type.starts_with(b"application/grpc") {
        return Err("the answer is not gRPC".into());
    }
    // A call that failed at once has its status here, and no trailers ("Trailers-Only").
    if header.headers.contains_key("grpc-status") {
        check_grpc_status(&header.headers)?;
    }
    let mut message = Vec::new();
    while let Some(chunk) = session.read_response_body().await.map_err(|e| describe(&e))? {
        if message.len() + chunk.len() > MAX_ANSWER {
            return Err("the answer is too large for a HealthCheckResponse".into());
        }
        message.extend_from_slice(&chunk);
    }
    let trailers = session.read_trailers().await.map_err(|e| describe(&e))?;
    check_grpc_status(&trailers.ok_or("the answer ended without a gRPC status")?)?;
    Ok(message)
}

fn check_grpc_status(headers: &HeaderMap) -> Result<(), String> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    match text("grpc-status") {
        Some("0") => Ok(()),
        Some("5") => Err("the health service does not know this service (gRPC status 5)".into()),
        Some("12") => Err("the target has no health service (gRPC status 12)".into()),
        Some(status) => Err(format!("gRPC status {status}: {}", text("grpc-message").unwrap_or("no message"))),
        None => Err("the answer ended without a gRPC status".into()),
    }
}

/// `HealthCheckRequest { string service = 1; }` in a gRPC frame.
fn encode_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        put_varint(&mut message, service.len());
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    // The name comes from a configuration value, far below 4 GiB.
    frame.put_u32(message.len() as u32);
    frame.put(message);
    frame.freeze()
}

fn put_varint(out: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// The status in a framed `HealthCheckResponse { ServingStatus status = 1; }`; unknown fields are skipped, as
/// protobuf demands, and an absent status is 0. `None` if it is not one uncompressed message.
fn decode_answer(frame: &[u8]) -> Option<u64> {
    let (head, mut message) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..5].try_into().ok()?);
    if head[0] != 0 || length as usize != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let key = take_varint(&mut message)?;
        match key & 7 {
            0 => {
                let value = take_varint(&mut message)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(take_varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use ::http::Response;
    use tokio::net::TcpListener;

    use super::*;

    /// How the fake health service ends a call.
    #[derive(Clone, Copy)]
    enum Answer {
        Status(u8),
        GrpcStatus(&'static str),
        NoTrailers,
        Flood,
        Silence,
        Http404,
    }

    async fn health_service(answer: Answer) -> HttpPeer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HttpPeer::new(listener.local_addr().unwrap(), false, String::new());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(socket).await.unwrap();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(serve(request, respond, answer));
                    }
                });
            }
        });
        peer
    }

    async fn serve(
        request: ::http::Request<h2::RecvStream>,
        mut respond: h2::server::SendResponse<Bytes>,
        answer: Answer,
    ) {
        let (head, mut body) = request.into_parts();
        assert_eq!(head.uri, "http://orders.internal/grpc.health.v1.Health/Check");
        assert_eq!(head.headers["te"], "trailers");
        assert_eq!(head.headers["grpc-timeout"], "1000m");
        let mut message = Vec::new();
        while let Some(chunk) = body.data().await {
            message.extend_from_slice(&chunk.unwrap());
        }
        assert_eq!(message, b"\0\0\0\0\x08\x0a\x06orders");

        let head = || Response::builder().header("content-type", "application/grpc");
        let trailers = |status| HeaderMap::from_iter([("grpc-status".parse().unwrap(), status)]);
        let ok = trailers("0".parse().unwrap());
        match answer {
            Answer::Status(status) => {
                let mut stream = respond.send_response(head().body(()).unwrap(), false).unwrap();
                stream.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]), false).unwrap();
                stream.send_trailers(ok).unwrap();
            }
            Answer::GrpcStatus(status) => {
                let head = head().header("grpc-status", status).header("grpc-message", "busy");
                respond.send_response(head.body(()).unwrap(), true).unwrap();
            }
            Answer::NoTrailers => {
                let mut stream = respond.send_response(head().body(()).unwrap(), false).unwrap();
                stream.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), true).unwrap();
            }
            Answer::Flood => {
                let mut stream = respond.send_response(head().body(()).unwrap(), false).unwrap();
                stream.send_data(Bytes::from(vec![0; 60_000]), false).unwrap();
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            Answer::Silence => tokio::time::sleep(Duration::from_secs(5)).await,
            Answer::Http404 => {
                respond.send_response(Response::builder().status(404).body(()).unwrap(), true).unwrap();
            }
        }
    }

    async fn run(peer: &HttpPeer) -> Result<(), String> {
        let settings = GrpcProbeSettings {
            service: "orders".into(),
            authority: "orders.internal".into(),
            timeout: Duration::from_secs(1),
        };
        GrpcProbe::new(settings, Arc::new(Connectors::new())).unwrap().run(peer).await
    }

    #[tokio::test]
    async fn only_serving_is_healthy() {
        assert_eq!(run(&health_service(Answer::Status(1)).await).await, Ok(()));
        for (status, word) in [(0, "UNKNOWN"), (2, "NOT_SERVING"), (3, "SERVICE_UNKNOWN"), (9, "no known status")] {
            let error = run(&health_service(Answer::Status(status)).await).await.unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[tokio::test]
    async fn a_failed_call_is_unhealthy_whatever_its_shape() {
        for (answer, words) in [
            (Answer::GrpcStatus("12"), "has no health service"),
            (Answer::GrpcStatus("5"), "does not know this service"),
            (Answer::GrpcStatus("14"), "gRPC status 14: busy"),
            (Answer::NoTrailers, "ended without a gRPC status"),
            (Answer::Flood, "too large"),
            (Answer::Silence, "timed out after 1s"),
            (Answer::Http404, "status 404, expected 200"),
        ] {
            let error = run(&health_service(answer).await).await.unwrap_err();
            assert!(error.contains(words), "{error:?} should say {words:?}");
        }
    }

    #[tokio::test]
    async fn a_target_that_speaks_http1_is_unhealthy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HttpPeer::new(listener.local_addr().unwrap(), false, String::new());
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        });
        let error = run(&peer).await.unwrap_err();
        assert!(error.starts_with("HTTP/2 failed") || error.starts_with("reading the answer failed"), "{error}");
    }

    #[test]
    fn answers_are_decoded_strictly_but_unknown_fields_are_skipped() {
        assert_eq!(decode_answer(&[0, 0, 0, 0, 0]), Some(0), "an absent status is the default");
        assert_eq!(decode_answer(b"\0\0\0\0\x10\x12\x03abc\x19\0\0\0\0\0\0\0\0\x08\x02"), Some(2));
        for wrong in [
            &b""[..],
            b"\0\0\0\0",
            b"\0\0\0\0\x02\x08",
            b"\0\0\0\0\x01\x08",
            b"\x01\0\0\0\x02\x08\x01",
            b"\0\0\0\0\x02\x0b\x01",
            b"\0\0\0\0\x02\x0a\x7f",
            b"\0\0\0\0\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(decode_answer(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_long_service_name_has_a_two_byte_length() {
        let frame = encode_request(&"s".repeat(300));
        assert_eq!(&frame[..8], b"\0\0\0\x01\x2f\x0a\xac\x02");
        assert_eq!(encode_request(""), &b"\0\0\0\0\0"[..]);
    }
}
