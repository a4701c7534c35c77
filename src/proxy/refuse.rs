//! Requests that never become one: the listener refuses them before Pingora reads them, and they are answered, counted
//! and logged here like all others, with what is known of them.

use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderMap, Method};
use pingora::http::{RequestHeader, ResponseHeader};

use super::answer::{X_REQUEST_ID, problem};
use super::context::Context;
use super::receive::{request_id, scheme};
use crate::listener::{Refusals, Refused};
use crate::telemetry::{Counted, Telemetry};
use crate::variables::Scope;

/// What stands for the method of a request line that could not be read.
const UNKNOWN: &[u8] = b"-";

/// Answers what a listener refuses.
pub struct Refuse {
    telemetry: Arc<Telemetry>,
}

impl Refuse {
    pub fn new(telemetry: &Arc<Telemetry>) -> Self {
        Refuse { telemetry: telemetry.clone() }
    }
}

impl Refusals for Refuse {
    fn refuse(&self, refused: &Refused<'_>) -> Vec<u8> {
        let (method, target) = refused.request_line.unwrap_or((UNKNOWN, b""));
        // The target may be what is refused.
        let request = RequestHeader::build(method, target, None).or_else(|_| RequestHeader::build(method, b"", None));
        let Ok(request) = request else { return Vec::new() };
        let mut exchange = Context::default().exchange;
        exchange.request_id = request_id(&HeaderMap::new());
        exchange.client = refused.connection.peer;
        exchange.listener = refused.connection.listener().name().clone();
        exchange.scheme = scheme(refused.connection);
        exchange.port = exchange.scheme.default_port();
        exchange.reason = Some(refused.error.reason);
        let observation = self.telemetry.begin(&request);

        let made = problem(refused.error, &exchange.request_id);
        exchange.status = made.status.as_u16();
        let body = if request.method == Method::HEAD { &[] } else { &*made.body };
        exchange.response_bytes = body.len() as u64;
        let Ok(mut head) = ResponseHeader::build(made.status, Some(made.headers.len() + 3)) else { return Vec::new() };
        for (name, value) in made.headers {
            let _ = head.append_header(name, value);
        }
        let _ = head.insert_header(CONTENT_LENGTH, made.body.len());
        let _ = head.insert_header(X_REQUEST_ID, exchange.request_id.clone());
        let _ = head.insert_header(CONNECTION, "close");

        exchange.duration = exchange.started.elapsed();
        let scope = Scope { exchange: &exchange, request: &request, response: Some(&head) };
        self.telemetry.finish(observation, Counted::default(), &scope);
        serialise(&head, body)
    }
}

fn serialise(head: &ResponseHeader, body: &[u8]) -> Vec<u8> {
    let mut answer = Vec::with_capacity(512 + body.len());
    let status = head.status;
    answer.extend_from_slice(
        format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or("")).as_bytes(),
    );
    for (name, value) in &head.headers {
        answer.extend_from_slice(name.as_str().as_bytes());
        answer.extend_from_slice(b": ");
        answer.extend_from_slice(value.as_bytes());
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(b"\r\n");
    answer.extend_from_slice(body);
    answer
}
