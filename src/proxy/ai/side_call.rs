//! A small call beside the one that is being answered: whole, within a time, and of no weight if it fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;

use super::JSON;
use super::attempt::answer_head;
use super::request::GATEWAY;
use crate::ai::endpoint::{Endpoint, show_key};
use crate::ai::formats::Format;
use crate::ai::keys;
use crate::config::Secret;
use crate::proxy::Proxy;
use crate::snapshot::Origin;
use crate::snapshot::ai::Provider;
use crate::upstream::{Moment, Outcome, PickRequest, Timeouts, request_form};

/// The longest answer that is taken.
const LONGEST: usize = 16 << 20;

/// A call that is ready to be made.
pub struct SideCall<'a> {
    origin: &'a Arc<Origin>,
    authority: &'a str,
    head: RequestHeader,
    body: Bytes,
    timeout: Duration,
}

impl<'a> SideCall<'a> {
    /// To a provider, in a path beside those of OpenAI's chat.
    pub fn to_provider(
        provider: &'a Provider,
        path: &str,
        model: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Option<Self> {
        let (endpoint, origin) = provider.speaking(Format::OpenAiChat)?;
        let mut head = head(&endpoint.path(path), body.len())?;
        for (name, value) in &provider.spec.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            head.insert_header(name, HeaderValue::from_str(value).ok()?).ok()?;
        }
        if let Some(key) = keys::choose(&provider.keys, model, &[])
            && !show_key(&mut head, &provider.spec.credential, key.expose())
        {
            return None;
        }
        Some(SideCall { origin, authority: &endpoint.authority, head, body: body.into(), timeout })
    }

    /// To a service of the operator's own.
    pub fn to_service(
        endpoint: &'a Endpoint,
        origin: &'a Arc<Origin>,
        token: Option<&Secret>,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Option<Self> {
        let path = endpoint.path("");
        let mut head = head(if path.is_empty() { "/" } else { &path }, body.len())?;
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).ok()?;
            value.set_sensitive(true);
            head.insert_header(http::header::AUTHORIZATION, value).ok()?;
        }
        Some(SideCall { origin, authority: &endpoint.authority, head, body: body.into(), timeout })
    }

    /// The body of the answer, if it is one; errors are for the log.
    pub async fn make(self, proxy: &Proxy) -> Result<Bytes, String> {
        let timeout = self.timeout;
        match tokio::time::timeout(timeout, self.exchange(proxy)).await {
            Ok(answered) => answered,
            Err(_) => Err(format!("there was no answer within {timeout:?}")),
        }
    }

    async fn exchange(mut self, proxy: &Proxy) -> Result<Bytes, String> {
        let started = Instant::now();
        let picked = self.origin.upstream.pick(&PickRequest::default(), Moment::at(started));
        let mut pick = picked.map_err(|error| error.reason.title().to_owned())?;
        let peer = pick.target().peer(&Timeouts::default());
        let shown = |error: Box<pingora::Error>| error.to_string();
        let (mut http, _) = proxy.connector.get_http_session(&*peer).await.map_err(shown)?;
        request_form(&mut self.head, self.authority, http.as_http2().is_some(), peer.is_tls())
            .map_err(|_| "the request could not be written".to_owned())?;
        http.set_read_timeout(Some(self.timeout));
        http.set_write_timeout(Some(self.timeout));
        http.write_request_header(Box::new(self.head)).await.map_err(shown)?;
        http.write_request_body(self.body, true).await.map_err(shown)?;
        http.finish_request_body().await.map_err(shown)?;
        let status = answer_head(&mut http).await.map_err(shown)?.status;
        let now = Instant::now();
        pick.report(Outcome::Answered { status: status.as_u16(), first_byte: now - started }, Moment::at(now));
        let body = read(&mut http).await?;
        if http.as_http2().is_some() || http.response_done() {
            proxy.connector.release_http_session(http, &*peer, peer.options.idle_timeout).await;
        }
        match status.is_success() {
            true => Ok(body),
            false => Err(format!("it was answered with {status}")),
        }
    }
}

fn head(path: &str, length: usize) -> Option<RequestHeader> {
    let mut head = RequestHeader::build_no_case("POST", path.as_bytes(), Some(8)).ok()?;
    head.insert_header(CONTENT_TYPE, JSON).ok()?;
    head.insert_header(ACCEPT, JSON).ok()?;
    head.insert_header(CONTENT_LENGTH, HeaderValue::from(length)).ok()?;
    head.insert_header(http::header::USER_AGENT, GATEWAY).ok()?;
    Some(head)
}

async fn read(http: &mut HttpSession) -> Result<Bytes, String> {
    let mut whole = BytesMut::new();
    while let Some(piece) = http.read_response_body().await.map_err(|error| error.to_string())? {
        if whole.len() + piece.len() > LONGEST {
            return Err("the answer is too long".to_owned());
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}
