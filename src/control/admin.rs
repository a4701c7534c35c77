//! The admin listener: liveness, readiness, status, metrics, reload. It listens on loopback unless told otherwise.

use std::sync::Arc;

use async_trait::async_trait;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Response, StatusCode};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use serde_json::json;

use super::readiness::{Phase, Readiness};
use super::reload::Reloader;

/// What the admin listener shows but does not own.
pub trait Views: Send + Sync {
    /// Members of `/status` beside the phase and the last reload.
    fn status(&self) -> serde_json::Value;
    /// What a consumer, or each one that has used something, has used and has left; `None` if there is no such consumer.
    /// Many come in pages: `after` is the last name of the page before. The use of models is that of the last `days`.
    fn usage(&self, consumer: Option<&str>, after: &str, days: u32) -> Option<serde_json::Value>;
    /// The Prometheus text format.
    fn metrics(&self) -> String;
}

/// Serves the admin listener.
pub struct Admin {
    pub readiness: Arc<Readiness>,
    pub reloader: Arc<Reloader>,
    pub views: Arc<dyn Views>,
    /// Read-only pages may be asked from other machines and under other names.
    pub allow_remote: bool,
}

const INDEX: &str = "headgate admin\n\n\
    GET  /livez    200 while the process runs\n\
    GET  /readyz   200 while it wants traffic, else 503\n\
    GET  /status   revision, last reload, listeners, upstream health (JSON)\n\
    GET  /usage    what consumers have used and have left, and of models by day (JSON);\n\
    \x20              ?consumer=NAME for one, &days=30 for more than today\n\
    GET  /metrics  Prometheus metrics\n\
    POST /reload   load the configuration again; 422 with every problem if it is refused\n";

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let local = session.client_addr().is_none_or(|peer| peer.as_inet().is_none_or(|peer| peer.ip().is_loopback()));
        let head = session.req_header();
        // A page in a browser can reach loopback under a name of its own (DNS rebinding): only names that are ours
        // are answered, and nothing is changed for a page of another origin.
        if !self.allow_remote && !names_this_host(head.headers.get(HOST)) {
            return text(
                StatusCode::FORBIDDEN,
                "the admin listener answers only to localhost and loopback addresses\n",
            );
        }
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/") => text(StatusCode::OK, INDEX),
            (&Method::GET, "/livez") => text(StatusCode::OK, "live\n"),
            (&Method::GET, "/readyz") => match self.readiness.phase() {
                Phase::Ready => text(StatusCode::OK, "ready\n"),
                Phase::Starting => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
                Phase::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            },
            (&Method::GET, "/status") => json(StatusCode::OK, &self.status()),
            (&Method::GET, "/usage") => self.usage(head.uri.query().unwrap_or_default()).await,
            (&Method::GET, "/metrics") => {
                answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.views.metrics().into_bytes())
            }
            (&Method::POST, "/reload") if !local || head.headers.contains_key("origin") => {
                text(StatusCode::FORBIDDEN, "reload is for programs on this host\n")
            }
            (&Method::POST, "/reload") => self.reload().await,
            (_, "/reload") => not_allowed("POST"),
            (_, "/" | "/livez" | "/readyz" | "/status" | "/usage" | "/metrics") => not_allowed("GET"),
            _ => text(StatusCode::NOT_FOUND, "no such page; GET / lists them\n"),
        }
    }
}

impl Admin {
    fn status(&self) -> serde_json::Value {
        let last = self.reloader.last();
        let mut status = self.views.status();
        status["phase"] = match self.readiness.phase() {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Draining => "draining",
        }
        .into();
        status["revision"] = last.revision.into();
        status["pid"] = std::process::id().into();
        status["version"] = env!("CARGO_PKG_VERSION").into();
        status["last_reload"] = json!({
            "at": jiff::Timestamp::try_from(last.at).map(|at| at.to_string()).unwrap_or_default(),
            "successful": last.problems.is_empty(),
            "problems": last.problems.0.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        status
    }

    async fn usage(&self, query: &str) -> Response<Vec<u8>> {
        let parameter = |name: &str| {
            let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            // Names of consumers need no encoding.
            value.map(str::to_owned)
        };
        let (consumer, after) = (parameter("consumer"), parameter("after").unwrap_or_default());
        let days = match parameter("days").map(|days| days.parse()) {
            None => 1,
            Some(Ok(days)) => days,
            Some(Err(_)) => return text(StatusCode::BAD_REQUEST, "`days` is a number\n"),
        };
        let views = self.views.clone();
        // With very many consumers it takes a while, and this thread answers the health checks.
        match tokio::task::spawn_blocking(move || views.usage(consumer.as_deref(), &after, days)).await {
            Ok(Some(usage)) => json(StatusCode::OK, &usage),
            Ok(None) => text(StatusCode::NOT_FOUND, "there is no such consumer\n"),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the usage could not be read\n"),
        }
    }

    async fn reload(&self) -> Response<Vec<u8>> {
        let reloader = self.reloader.clone();
        match tokio::task::spawn_blocking(move || reloader.reload("admin")).await {
            Ok(outcome) if outcome.problems.is_empty() => {
                json(StatusCode::OK, &json!({ "revision": outcome.revision }))
            }
            Ok(outcome) => json(
                StatusCode::UNPROCESSABLE_ENTITY,
                &json!({
                    "revision": outcome.revision,
                    "problems": outcome.problems.0.iter().map(ToString::to_string).collect::<Vec<_>>(),
                }),
            ),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the reload did not finish\n"),
        }
    }
}

/// Whether a `Host` value can only have been written by someone who meant this host.
fn names_this_host(host: Option<&HeaderValue>) -> bool {
    let Some(host) = host.and_then(|host| host.to_str().ok()) else { return true };
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.is_empty()
        || name.eq_ignore_ascii_case("localhost")
        || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn text(status: StatusCode, body: &str) -> Response<Vec<u8>> {
    answer(status, "text/plain; charset=utf-8", body.as_bytes().to_vec())
}

fn json(status: StatusCode, body: &serde_json::Value) -> Response<Vec<u8>> {
    answer(status, "application/json", format!("{body:#}\n").into_bytes())
}

fn not_allowed(allow: &'static str) -> Response<Vec<u8>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

fn answer(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Vec<u8>> {
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_this_host() {
        let names = |host: &'static str| names_this_host(Some(&HeaderValue::from_static(host)));
        for ours in ["localhost", "LOCALHOST:9080", "127.0.0.1:9080", "127.8.8.8", "[::1]:9080", "[::1]"] {
            assert!(names(ours), "{ours}");
        }
        for foreign in ["evil.example", "localhost.evil.example:9080", "10.0.0.1:9080", "[2001:db8::1]:9080"] {
            assert!(!names(foreign), "{foreign}");
        }
    }
}
