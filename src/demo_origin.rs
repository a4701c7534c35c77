//! A small origin to try the gateway with: it answers every request with what it received, as JSON.

use std::net::SocketAddr;

use async_trait::async_trait;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;

/// Bodies beyond this are counted, not kept.
const ECHOED_BODY: usize = 4096;

struct DemoOrigin {
    name: String,
}

/// Serves until the process is stopped. Fails if the address cannot be listened on.
pub fn run(address: SocketAddr, name: String) -> Result<(), String> {
    // Pingora would panic much later; a newcomer deserves a sentence.
    std::net::TcpListener::bind(address).map_err(|error| {
        format!("cannot listen on {address}: {error}; stop what uses it, or choose another with --address")
    })?;
    println!("demo origin {name} answers on http://{address}");
    let mut server =
        Server::new_with_opt_and_conf(None, ServerConf { grace_period_seconds: Some(0), ..Default::default() });
    let mut service = Service::new(format!("demo origin {name}"), DemoOrigin { name });
    service.add_tcp(&address.to_string());
    server.add_service(service);
    server.run_forever()
}

#[async_trait]
impl ServeHttp for DemoOrigin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let (mut body, mut length) = (Vec::new(), 0);
        while let Ok(Some(chunk)) = session.read_request_body().await {
            length += chunk.len();
            let room = ECHOED_BODY - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
        let head = session.req_header();
        let headers: serde_json::Map<_, _> = head
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
            .collect();
        let document = serde_json::json!({
            "origin": self.name,
            "method": head.method.as_str(),
            "target": head.uri.path_and_query().map_or("/", |target| target.as_str()),
            "headers": headers,
            "body_bytes": length,
            "body": String::from_utf8_lossy(&body),
        });
        let mut text = format!("{document:#}").into_bytes();
        text.push(b'\n');

        let mut response = Response::new(text);
        let status = if head.uri.path() == "/fail" { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        *response.status_mut() = status;
        let length = HeaderValue::from(response.body().len());
        response.headers_mut().insert(CONTENT_LENGTH, length);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}
