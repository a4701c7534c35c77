//! From an accepted socket to HTTP: caps, PROXY header, TLS handshake, and the end of connections when the process ends.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use async_trait::async_trait;
use log::debug;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::protocols::{ALPN, Stream};
use pingora::server::ShutdownWatch;
use pingora::services::listening::Service;
use tokio_rustls::TlsAcceptor;

use super::connection::{Connection, GOODBYE, Transport};
use super::connection_state::{ConnectionState, Phase};
use super::proxy_header;
use super::state::{Ending, ListenerState, Permit, Settings};
use super::strict::request_line;
use super::tls::{Tls, TlsInfo};
use crate::config::listener::Protocol;
use crate::error::Error;

/// Accepts connections of one listener and hands them to an HTTP application.
pub struct ListenerApp<H> {
    state: Arc<ListenerState>,
    handler: Arc<H>,
    refusals: Arc<dyn Refusals>,
}

/// Answers HTTP/1 clients whose bytes never become a request, so that the application does not see them.
pub trait Refusals: Send + Sync {
    /// Records a refusal and makes the answer, as bytes of HTTP/1. The connection is closed after it.
    fn refuse(&self, refused: &Refused<'_>) -> Vec<u8>;
}

/// What there is to say of bytes that are refused.
pub struct Refused<'a> {
    pub connection: &'a ConnectionState,
    pub error: &'a Error,
    /// Method and target, if a legal request line has come.
    pub request_line: Option<(&'a [u8], &'a [u8])>,
}

/// The Pingora service of a listener.
pub fn service<H: HttpServerApp + Send + Sync + 'static>(
    state: Arc<ListenerState>,
    handler: Arc<H>,
    refusals: Arc<dyn Refusals>,
) -> Service<ListenerApp<H>> {
    let endpoint = state.settings().endpoint();
    let mut service = Service::new(format!("listener {}", state.name()), ListenerApp::new(state, handler, refusals));
    service.add_listener(endpoint);
    service
}

#[async_trait]
impl<H: HttpServerApp + Send + Sync + 'static> ServerApp for ListenerApp<H> {
    async fn process_new(self: &Arc<Self>, stream: Stream, _: &ShutdownWatch) -> Option<Stream> {
        let settings = self.state.settings();
        let permit = match self.state.admit(&settings) {
            Ok(permit) => permit,
            Err(ending) => {
                self.state.counters.count(ending);
                return None;
            }
        };
        // A task of our own, because the one that Pingora made for the connection keeps 9 KiB for a TLS handshake that is
        // never made. It ends here.
        let app = self.clone();
        tokio::spawn(async move {
            // Boxed, so that the room for our own handshake is given back when it is done.
            match Box::pin(app.open(stream, settings, permit)).await {
                Ok((connection, state)) => app.serve(connection, state).await,
                Err(ending) => app.state.counters.count(ending),
            }
        });
        None
    }

    /// Pingora calls it when the listener has stopped accepting, and does not wait for it.
    async fn cleanup(&self) {
        self.state.begin_drain();
        let timeout = self.state.settings().timeouts.drain_timeout;
        if tokio::time::timeout(timeout, self.state.drained()).await.is_err() {
            self.state.cut();
            let _ = tokio::time::timeout(GOODBYE * 3, self.state.drained()).await;
        }
        self.handler.http_cleanup().await;
    }
}

impl<H: HttpServerApp + Send + Sync + 'static> ListenerApp<H> {
    pub fn new(state: Arc<ListenerState>, handler: Arc<H>, refusals: Arc<dyn Refusals>) -> Self {
        ListenerApp { state, handler, refusals }
    }

    /// Makes an accepted socket ready for HTTP.
    async fn open(
        &self,
        mut stream: Stream,
        settings: Arc<Settings>,
        mut permit: Permit,
    ) -> Result<(Box<Connection>, Arc<ConnectionState>), Ending> {
        let accepted = Instant::now();
        let mut peer = peer_address(&stream);
        if settings.proxy_protocol && proxy_header::expected_from(peer, &settings.trusted_proxies) {
            let read = proxy_header::read(&mut stream);
            let named = tokio::time::timeout(settings.timeouts.handshake, read).await;
            match named {
                Ok(Ok(named)) => peer = named.or(peer),
                Ok(Err(e)) => {
                    debug!("no PROXY header from {peer:?}: {e}");
                    return Err(Ending::ProxyHeader);
                }
                Err(_) => return Err(Ending::HandshakeTimeout),
            }
        }
        if let Some(peer) = peer {
            permit.count_for(peer, &settings)?;
        }
        let (transport, tls, alpn) = match settings.tls.clone() {
            Some(tls) => handshake(stream, &tls, &settings, peer).await?,
            // Pingora looks for the HTTP/2 preface with a read that has no deadline; told the protocol, it does not.
            None => (Transport::Plain(stream), None, settings.h2c().then_some(ALPN::H2)),
        };
        let phase = if alpn == Some(ALPN::H2) { Phase::Http2 } else { Phase::Waiting };
        let peer = peer.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        // The header is given its time from here on; the handshake had its own.
        let begun = if tls.is_some() { Instant::now() } else { accepted };
        let state = Arc::new(ConnectionState::new(peer, tls, self.state.clone(), settings, begun, phase));
        Ok((Box::new(Connection::new(transport, state.clone(), permit, alpn)), state))
    }

    /// Serves a connection until it ends, or until the drain ends it.
    async fn serve(&self, connection: Box<Connection>, state: Arc<ConnectionState>) {
        let shutdown = self.state.shutdown_watch();
        let cut = if state.phase() == Phase::Http2 {
            let http2 = Arc::new(Http2::new(self.handler.clone(), state.settings()));
            self.until_cut(pin!(http2.process_new(connection, &shutdown))).await
        } else {
            let limit = state.settings().limits.requests_per_connection;
            let mut work = pin!(self.serve_http1(connection, limit, &shutdown));
            let cut = self.until_cut(work.as_mut()).await;
            if cut && state.phase() == Phase::Upgraded {
                state.close();
                let _ = tokio::time::timeout(GOODBYE * 2, work).await;
            }
            cut
        };
        if cut {
            self.state.counters.count(Ending::Drained);
        }
    }

    /// Serves the requests of an HTTP/1 connection one after the other, as Pingora's `process_new` does, but waits for
    /// each outside of Pingora. Requests that a client sends ahead are kept in the connection: Pingora's own pipelining
    /// stays off.
    async fn serve_http1(&self, mut connection: Box<Connection>, limit: Option<u32>, shutdown: &ShutdownWatch) {
        let mut kept = None;
        loop {
            match connection.next_request().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.refuse(connection, &error).await,
            }
            let served = {
                let mut session = ServerSession::new_http1(connection);
                match kept.take() {
                    Some(settings) => HttpPersistentSettings::apply_to_session(settings, &mut session),
                    None => {
                        // 0 is without a timer of Pingora's: the deadlines are ours.
                        session.set_keepalive(if *shutdown.borrow() { None } else { Some(0) });
                        // The first request is none of the reuses.
                        session.set_keepalive_reuses_remaining(limit.map(|limit| limit.saturating_sub(1)));
                    }
                }
                self.handler.process_new_http(session, shutdown)
            };
            let Some((stream, settings)) = served.await.map(ReusedHttpStream::consume) else { return };
            let Ok(same) = stream.into_any().downcast::<Connection>() else { return };
            (connection, kept) = (same, settings);
        }
    }

    async fn refuse(&self, mut connection: Box<Connection>, error: &Error) {
        let request_line = request_line(connection.input());
        let answer = self.refusals.refuse(&Refused { connection: connection.state(), error, request_line });
        connection.refuse(&answer).await;
    }

    /// Runs `work` to its end, or until the listener cuts its connections; true if it did. Every stage of a drain wakes
    /// the work, so that its reads look at their deadlines again.
    ///
    /// On the path of every wake-up: waiting for the stage is registered once, not each time, because all connections
    /// share the lock behind it.
    async fn until_cut(&self, mut work: impl Future + Unpin) -> bool {
        let mut changed = pin!(self.state.stage_changed());
        let mut registered_at = None;
        poll_fn(|cx| {
            let stage = self.state.stage();
            if registered_at != Some(stage) {
                registered_at = Some(stage);
                changed.set(self.state.stage_changed());
                let missed = changed.as_mut().poll(cx).is_ready() || self.state.stage() != stage;
                if missed {
                    cx.waker().wake_by_ref();
                }
            }
            if self.state.is_cut() {
                return Poll::Ready(true);
            }
            Pin::new(&mut work).poll(cx).map(|_| false)
        })
        .await
    }
}

/// The handler of one HTTP/2 connection: the application, with the options that the listener has now.
struct Http2<H> {
    handler: Arc<H>,
    server: HttpServerOptions,
    h2: H2Options,
}

impl<H> Http2<H> {
    fn new(handler: Arc<H>, settings: &Settings) -> Self {
        Http2 { handler, server: settings.server_options(), h2: settings.h2_options() }
    }
}

impl<H: HttpServerApp + Send + Sync + 'static> HttpServerApp for Http2<H> {
    // Written out, not `async`: the application's future is passed on without another box around it.
    fn process_new_http<'a, 'b, 'c>(
        self: &'a Arc<Self>,
        session: ServerSession,
        shutdown: &'b ShutdownWatch,
    ) -> Pin<Box<dyn Future<Output = Option<ReusedHttpStream>> + Send + 'c>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.handler.process_new_http(session, shutdown)
    }

    fn h2_options(&self) -> Option<H2Options> {
        Some(self.h2.clone())
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.server)
    }
}

/// The peer's address; `None` for a Unix socket.
fn peer_address(stream: &Stream) -> Option<IpAddr> {
    let digest = stream.get_socket_digest()?;
    Some(digest.peer_addr()?.as_inet()?.ip().to_canonical())
}

type Secured = (Transport, Option<TlsInfo>, Option<ALPN>);

async fn handshake(stream: Stream, tls: &Tls, settings: &Settings, peer: Option<IpAddr>) -> Result<Secured, Ending> {
    let accept = TlsAcceptor::from(tls.server.clone()).accept(stream);
    let stream = match tokio::time::timeout(settings.timeouts.handshake, accept).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => {
            debug!("TLS handshake with {peer:?} failed: {e}");
            return Err(Ending::HandshakeFailed);
        }
        Err(_) => return Err(Ending::HandshakeTimeout),
    };
    let connection = stream.get_ref().1;
    let alpn = match connection.alpn_protocol() {
        Some(b"h2") => Some(ALPN::H2),
        Some(b"http/1.1") => Some(ALPN::H1),
        // A client that does not negotiate speaks HTTP/1.
        _ if settings.speaks(Protocol::Http1) => None,
        _ => return Err(Ending::HandshakeFailed),
    };
    let info = TlsInfo::of(connection, tls.names.clone());
    Ok((Transport::Tls(Box::new(stream)), Some(info), alpn))
}
