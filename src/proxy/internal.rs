//! Requests that the gateway makes to itself: with everything that happens to a request of a client, in the same order and
//! by the same code, but over memory.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context as Waker, Poll};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::StatusCode;
use pingora::apps::HttpServerApp;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use pingora::proxy::HttpProxy;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::watch;

use super::Proxy;
use super::forward::MOST_INTERIM;
use crate::listener::ConnectionState;

/// What may be on its way in each direction.
const BUFFER: usize = 64 << 10;

/// Serves requests of the gateway itself. Empty until the gateway it stands for is there.
#[derive(Clone, Default)]
pub struct Internal(Arc<OnceLock<Weak<HttpProxy<Proxy>>>>);

/// The answer to a request.
pub struct Answered {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    TooLong,
    BrokenOff,
}

impl Internal {
    /// Says who serves them.
    pub fn serve_by(&self, gateway: &Arc<HttpProxy<Proxy>>) {
        let _ = self.0.set(Arc::downgrade(gateway));
    }

    /// Makes a request for a client, on the same listener. An answer longer than `most` is given up.
    pub async fn call(
        &self,
        caller: &ConnectionState,
        client: IpAddr,
        head: RequestHeader,
        body: Option<Bytes>,
        most: usize,
    ) -> Result<Answered, Unanswered> {
        let Some(gateway) = self.0.get().and_then(Weak::upgrade) else { return Err(Unanswered::BrokenOff) };
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let pipe = Pipe::new(theirs, Arc::new(caller.internal(client)));
        // Ends when our side of the pipe is dropped, as for a client that leaves.
        tokio::spawn(async move {
            let (_running, shutdown) = watch::channel(false);
            let session = ServerSession::new_http1(Box::new(pipe));
            let served: Pin<Box<dyn Future<Output = _> + Send + '_>> = gateway.process_new_http(session, &shutdown);
            drop(served.await);
        });
        exchange(ours, head, body, most).await
    }
}

async fn exchange(
    pipe: DuplexStream,
    head: RequestHeader,
    body: Option<Bytes>,
    most: usize,
) -> Result<Answered, Unanswered> {
    let broken = |_| Unanswered::BrokenOff;
    let mut http = HttpSession::new(Box::new(pipe));
    http.write_request_header(Box::new(head)).await.map_err(broken)?;
    // A refusal may come before the body is taken, which then cannot be written.
    let written = async {
        if let Some(body) = &body {
            http.write_body(body).await?;
        }
        http.finish_body().await
    };
    let _ = written.await;
    let head = answer_head(&mut http).await.ok_or(Unanswered::BrokenOff)?;
    let mut body = BytesMut::new();
    while let Some(piece) = http.read_body_bytes().await.map_err(broken)? {
        if body.len() + piece.len() > most {
            return Err(Unanswered::TooLong);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Answered { status: head.status, headers: head.headers.clone(), body: body.freeze() })
}

async fn answer_head(http: &mut HttpSession) -> Option<Box<ResponseHeader>> {
    for _ in 0..=MOST_INTERIM {
        let head = http.read_resp_header_parts().await.ok()?;
        if !head.status.is_informational() {
            return Some(head);
        }
    }
    None
}

/// The gateway's side of a request of its own.
struct Pipe {
    io: DuplexStream,
    carrier: Arc<ProxyDigest>,
}

impl Pipe {
    fn new(io: DuplexStream, state: Arc<ConnectionState>) -> Pipe {
        // The header is never looked at.
        let header = Box::new(ResponseHeader::from(http::Response::new(()).into_parts().0));
        Pipe { io, carrier: Arc::new(ProxyDigest::new(header, Some(Box::new(state)))) }
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pipe")
    }
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Waker<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Waker<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Waker<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Waker<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Pipe {
    async fn shutdown(&mut self) {}
}

impl UniqueID for Pipe {
    fn id(&self) -> UniqueIDType {
        -1
    }
}

impl Ssl for Pipe {}

impl GetTimingDigest for Pipe {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Pipe {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.carrier.clone())
    }
}

impl GetSocketDigest for Pipe {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

impl Peek for Pipe {}
