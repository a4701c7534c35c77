//! The stream that Pingora reads requests from: plain or TLS, with every wait for the client bounded.
//!
//! On the path of every request: a read or write that need not wait costs a few branches more than the socket.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use memchr::{memchr, memchr3};
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::chunks::Chunks;
use super::connection_state::{ConnectionState, Expired, Phase};
use super::deadline::{Alarm, Pace};
use super::flood::FrameWatch;
use super::state::{Ending, Permit};
use super::strict::{Framing, Head, StrictError, head_ended, read_head};
use super::websocket::{Frames, GOING_AWAY};
use crate::error::{Error, Reason};

/// What a request line holds beside its target, and a header beside its name and value.
const HEAD_EXTRA: usize = 1 << 10;

/// Headers that Pingora's parser takes; it would refuse more without a word.
const MOST_HEADERS: usize = 256;

/// Longest target that the `http` crate takes.
const MOST_TARGET: usize = 65534;

/// What an idle connection keeps of the memory that its last request took.
const KEPT: usize = 4096;

/// How long a connection with unread input is kept after an answer that ends it. Closed at once, the kernel would
/// reset it, and the client might lose the answer (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(2);

/// How long a WebSocket is given to end its frame and take the close frame when its time is up.
pub(super) const GOODBYE: Duration = Duration::from_secs(1);

/// How much is read at once where there is no telling how much will come.
const READ: usize = 4096;

/// What has not been read of the body of the request being served.
enum Body {
    Length(u64),
    Chunked(Chunks),
    Ended,
    /// It does not end.
    Broken,
}

impl Body {
    fn of_length(length: u64) -> Body {
        if length == 0 { Body::Ended } else { Body::Length(length) }
    }

    /// The body after the next bytes, and how many of them belong to it.
    fn after(self, bytes: &[u8]) -> Result<(usize, Body), StrictError> {
        Ok(match self {
            Body::Length(left) => {
                let taken = left.min(bytes.len() as u64);
                (taken as usize, Body::of_length(left - taken))
            }
            Body::Chunked(mut chunks) => {
                let taken = chunks.take(bytes)?;
                (taken, if chunks.ended() { Body::Ended } else { Body::Chunked(chunks) })
            }
            body => (0, body),
        })
    }
}

/// The beginning of a target that has to be replaced: how long it is, and by what.
type Replaced = (usize, &'static [u8]);

/// Refuses what Pingora would refuse itself, without a word to log and metrics.
fn check(head: &Head<'_>) -> Result<Option<Replaced>, Error> {
    if head.headers > MOST_HEADERS {
        return Err(Reason::HeadersTooLarge.into());
    }
    if head.target.len() > MOST_TARGET {
        return Err(Reason::UriTooLong.into());
    }
    if head.host.is_some_and(|host| memchr(b'@', host).is_some()) {
        return Err(Reason::BadHost.into());
    }
    if let Some(at) = memchr3(b'#', b'`', b'"', head.target) {
        check_odd(&head.target[at..], &head.target[..at])?;
    }
    match head.target {
        [b'/', ..] | b"*" if head.method != b"CONNECT" => Ok(None),
        _ => check_authority(head),
    }
}

/// Pingora would cut a fragment off. The `http` crate takes no backtick in a path, where browsers escape it, and no
/// quotation mark in a query, where they do that too.
#[cold]
fn check_odd(rest: &[u8], before: &[u8]) -> Result<(), Error> {
    let path = if memchr(b'?', before).is_some() { 0 } else { memchr(b'?', rest).unwrap_or(rest.len()) };
    let (path, query) = rest.split_at(path);
    let detail = if memchr(b'#', rest).is_some() {
        "the target has a fragment"
    } else if memchr(b'`', path).is_some() {
        "the path has a backtick that is not escaped"
    } else if memchr(b'"', query).is_some() {
        "the query has a quotation mark that is not escaped"
    } else {
        return Ok(());
    };
    Err(Error::with(Reason::BadPath, detail))
}

/// A target that is no path: it must name the host that `Host` names, and tunnels are not offered. Pingora would compare
/// the two byte by byte, so that it is given the path alone.
#[cold]
fn check_authority(head: &Head<'_>) -> Result<Option<Replaced>, Error> {
    if head.method == b"CONNECT" {
        return Err(Reason::MethodNotAllowed.into());
    }
    let other = || Error::with(Reason::BadHost, "the target names another host than Host, or none");
    let (scheme, default_port) = match head.target {
        target if starts_with(target, b"http://") => (7, &b":80"[..]),
        target if starts_with(target, b"https://") => (8, &b":443"[..]),
        _ => return Err(Error::with(Reason::BadPath, "the target is no path")),
    };
    let rest = &head.target[scheme..];
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let authority = &rest[..end];
    if authority.is_empty() || memchr(b'@', authority).is_some() {
        return Err(other());
    }
    // HTTP/1.0 may leave Host out.
    let Some(host) = head.host else { return Ok(None) };
    let without_port = |name: &'_ [u8]| name.strip_suffix(default_port).unwrap_or(name).len();
    let (named, host) = (&authority[..without_port(authority)], &host[..without_port(host)]);
    if !named.eq_ignore_ascii_case(host) {
        return Err(other());
    }
    let path: &[u8] = match &rest[end..] {
        [b'/', ..] => b"",
        // The server itself is asked about (RFC 9112, section 3.2.4).
        [] if head.method == b"OPTIONS" => b"*",
        _ => b"/",
    };
    Ok(Some((scheme + end, path)))
}

fn starts_with(target: &[u8], scheme: &[u8]) -> bool {
    target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
}

/// The bytes themselves.
pub(super) enum Transport {
    Plain(Stream),
    Tls(Box<TlsStream<Stream>>),
    Closed,
}

/// An accepted connection.
pub(super) struct Connection {
    transport: Transport,
    state: Arc<ConnectionState>,
    permit: Option<Permit>,
    id: UniqueIDType,
    alpn: Option<ALPN>,
    tls: Option<Arc<SslDigest>>,
    socket: Option<Arc<SocketDigest>>,
    carrier: Arc<ProxyDigest>,

    alarm: Alarm,
    /// How many requests have been waited for; the fields below are about the last.
    requests: u32,
    /// What came from an HTTP/1 client and has not been handed to Pingora: never more than the beginning of a request, or
    /// the requests that a client sent ahead.
    input: Vec<u8>,
    /// How much of the input has been looked at for a request head.
    seen: usize,
    /// How much of the input belongs to the request being served, and how much of that has been handed over. Pingora
    /// never sees what is behind: the next request is checked like the first.
    request: usize,
    handed: usize,
    body: Body,
    /// When the wait began that `phase` is about; of the header, when the header began.
    since: Option<Instant>,
    /// How much may come of a header before it is complete.
    most_head: usize,
    reading: Pace,
    writing: Pace,
    /// Something was written since the request began.
    answered: bool,
    /// What was written may still lie in a buffer of ours.
    unflushed: bool,
    /// Nothing may be read or written any more.
    dead: bool,
    /// A reset would lose what was written last.
    linger: bool,
    frames: Option<Frames>,
    /// What is left to write of a close frame.
    farewell: Option<&'static [u8]>,
    /// When a WebSocket that is being closed ends without a close frame.
    goodbye_by: Option<Instant>,
    http2: Option<FrameWatch>,
}

/// The error of a read or write that a deadline ended.
fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client's deadline has passed")
}

impl Connection {
    pub fn new(transport: Transport, state: Arc<ConnectionState>, permit: Permit, alpn: Option<ALPN>) -> Connection {
        let (id, socket) = match &transport {
            Transport::Plain(stream) => (stream.id(), stream.get_socket_digest()),
            Transport::Tls(stream) => (stream.get_ref().0.id(), stream.get_ref().0.get_socket_digest()),
            Transport::Closed => (-1, None),
        };
        // The header is never looked at.
        let header = Box::new(ResponseHeader::from(http::Response::new(()).into_parts().0));
        let limits = &state.settings().limits;
        Connection {
            transport,
            permit: Some(permit),
            id,
            tls: state.tls.as_ref().map(|tls| Arc::new(tls.digest())),
            alpn,
            socket,
            carrier: Arc::new(ProxyDigest::new(header, Some(Box::new(state.clone())))),
            alarm: Alarm::default(),
            requests: 0,
            input: Vec::new(),
            seen: 0,
            request: 0,
            handed: 0,
            body: Body::Ended,
            since: Some(state.accepted()),
            most_head: (limits.header_size.get() + limits.uri.get()) as usize + HEAD_EXTRA,
            reading: Pace::default(),
            writing: Pace::default(),
            answered: false,
            unflushed: false,
            dead: false,
            linger: false,
            frames: None,
            farewell: None,
            goodbye_by: None,
            http2: (state.phase() == Phase::Http2).then(FrameWatch::default),
            state,
        }
    }

    fn count(&self, ending: Ending) {
        self.state.listener().counters.count(ending);
    }

    /// Waits for the next HTTP/1 request, up to the end of its head; false if the connection ended instead.
    ///
    /// What is returned has one reading, and so has its body, for which [`poll_read`](AsyncRead::poll_read) stops where
    /// it ends. After an error, [`refuse`](Self::refuse) is all that may follow.
    ///
    /// An idle connection waits here, and not in Pingora's session, because the futures that serve a request take some
    /// 20 KiB.
    pub async fn next_request(&mut self) -> Result<bool, Error> {
        if self.handed < self.request || !matches!(self.body, Body::Ended) {
            // What comes next is not the beginning of a request.
            return Ok(false);
        }
        if self.requests > 0 {
            self.since = None;
        }
        self.requests += 1;
        self.forget_request();
        self.reading.reset();
        self.answered = false;
        self.state.next_request();
        poll_fn(|cx| self.poll_head(cx)).await
    }

    /// Gives back the room of the request that has been served.
    fn forget_request(&mut self) {
        if self.request == self.input.len() {
            self.input.clear();
            self.input.shrink_to(KEPT);
        } else {
            self.input.drain(..self.request);
        }
        (self.seen, self.request, self.handed) = (0, 0, 0);
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        loop {
            if self.input.len() > self.seen && self.examine()? {
                return Poll::Ready(Ok(true));
            }
            if self.dead {
                return Poll::Ready(Ok(false));
            }
            let mut space = [MaybeUninit::uninit(); READ];
            let mut buf = ReadBuf::uninit(&mut space);
            match Pin::new(&mut self.transport).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => self.input.extend_from_slice(buf.filled()),
                Poll::Ready(_) => return Poll::Ready(Ok(false)),
                Poll::Pending => {
                    let ended = ready!(self.wait_for_client(cx));
                    return Poll::Ready(if ended.is_ok() { Ok(false) } else { Err(Reason::RequestTimeout.into()) });
                }
            }
        }
    }

    /// Looks at what has come of a request; true if its head is complete. Runs for every request, and nearly always only
    /// once.
    fn examine(&mut self) -> Result<bool, Error> {
        if self.state.phase() == Phase::Waiting && !matches!(*self.input, [b'\r'] | [b'\r', b'\n']) {
            self.state.header_begun();
            // The first header is given the time since the start of the connection.
            if self.requests > 1 {
                self.since = None;
            }
        }
        let before = std::mem::replace(&mut self.seen, self.input.len());
        // A head that comes in pieces is read when it is complete; reading it each time would be a client's way to keep
        // us busy.
        if (before == 0 || head_ended(&self.input, before)?)
            && let Some(head) = read_head(&self.input)?
        {
            let replaced = check(&head)?;
            let (target, mut length, framing) = (head.target_at, head.length, head.framing);
            if let Some((old, new)) = replaced {
                self.input.splice(target..target + old, new.iter().copied());
                length = length - old + new.len();
            }
            let rest = &self.input[length..];
            let (taken, body) = match framing {
                Framing::Length(length) => Body::of_length(length).after(rest)?,
                Framing::Chunked => Body::Chunked(Chunks::new()).after(rest)?,
            };
            (self.request, self.body) = (length + taken, body);
            self.state.header_received(!matches!(self.body, Body::Ended));
            return Ok(true);
        }
        if self.input.len() > self.most_head {
            self.count(Ending::HeaderTooLarge);
            return Err(Reason::HeadersTooLarge.into());
        }
        Ok(false)
    }

    pub fn state(&self) -> &ConnectionState {
        &self.state
    }

    /// What has come of a request that is refused.
    pub fn input(&self) -> &[u8] {
        &self.input
    }

    /// Answers what is no request, and ends the connection.
    pub async fn refuse(&mut self, answer: &[u8]) {
        let written = async {
            AsyncWriteExt::write_all(self, answer).await?;
            AsyncWriteExt::flush(self).await
        };
        self.linger = written.await.is_ok();
        self.dead = true;
    }

    /// Bytes came from the client.
    fn received(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.state.phase() {
            Phase::Upgraded => self.since = None,
            Phase::Http2 => {
                if let Some(watch) = &mut self.http2
                    && !watch.take(bytes)
                {
                    self.count(Ending::Flood);
                    self.dead = true;
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "more HTTP/2 control frames than streams explain",
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Hands over what has been read, up to a place in the input.
    fn hand_over(&mut self, end: usize, buf: &mut ReadBuf<'_>) {
        let n = (end - self.handed).min(buf.remaining());
        buf.put_slice(&self.input[self.handed..self.handed + n]);
        self.handed += n;
    }

    /// Reads what is missing of a request body, and not a byte more.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.transport).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
            Poll::Pending => return self.wait_for_client(cx),
        }
        let bytes = &buf.filled()[before..];
        let timeouts = &self.state.settings().timeouts;
        self.reading.moved(bytes.len(), Instant::now, timeouts.body, timeouts.min_rate);
        let taken = match std::mem::replace(&mut self.body, Body::Broken).after(bytes) {
            Ok((taken, body)) => {
                self.body = body;
                taken
            }
            Err(error) => {
                buf.set_filled(before);
                self.state.expire(Expired::Malformed);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        };
        if matches!(self.body, Body::Ended) {
            self.state.body_received();
            self.forget_request();
            self.input.extend_from_slice(&bytes[taken..]);
            buf.set_filled(before + taken);
        }
        Poll::Ready(Ok(()))
    }

    /// The request is complete, and Pingora reads to learn that the client has left. What comes instead is kept for
    /// later; nothing more is read then, so that a client cannot fill our memory.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing more is ready to be written, or we would not be asked to read: a head whose body takes its time must
        // not wait for it in the buffer.
        if self.unflushed
            && let Poll::Ready(flushed) = Pin::new(&mut self.transport).poll_flush(cx)
        {
            self.unflushed = false;
            flushed?;
        }
        if self.input.len() == self.request {
            let mut space = [MaybeUninit::uninit(); READ];
            let mut early = ReadBuf::uninit(&mut space);
            match Pin::new(&mut self.transport).poll_read(cx, &mut early) {
                Poll::Ready(Ok(())) if early.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => self.input.extend_from_slice(early.filled()),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {}
            }
        }
        self.wait_for_client(cx)
    }

    /// The client has sent nothing. Pending until it does, or until it is too late.
    fn wait_for_client(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let phase = self.state.phase();
        let timeouts = &self.state.settings().timeouts;
        let deadline = match phase {
            Phase::Waiting => {
                let since = *self.since.get_or_insert_with(Instant::now);
                let patience = if self.requests > 1 { timeouts.keep_alive } else { timeouts.header };
                let deadline = since + patience;
                Some(match self.state.listener().drain_started() {
                    // A client about to use the connection has this long to do it.
                    Some(drain) => deadline.min(since.max(drain) + timeouts.drain_idle),
                    None => deadline,
                })
            }
            Phase::Header => Some(*self.since.get_or_insert_with(Instant::now) + timeouts.header),
            Phase::Body => Some(self.reading.waiting(Instant::now, timeouts.body)),
            Phase::Answering => None,
            // The origin has this long to end the frame it is in, and the client to take it.
            Phase::Upgraded if self.state.closing() => {
                Some(*self.goodbye_by.get_or_insert_with(|| Instant::now() + GOODBYE))
            }
            Phase::Upgraded => Some(*self.since.get_or_insert_with(Instant::now) + timeouts.upgraded),
            Phase::Http2 => {
                let begun = self.http2.as_ref().is_none_or(FrameWatch::preface_received);
                (!begun).then(|| self.state.accepted() + timeouts.header)
            }
        };
        let Some(deadline) = deadline else { return Poll::Pending };
        ready!(self.alarm.poll(cx, deadline));
        match phase {
            Phase::Waiting => {
                let ending = if self.requests > 1 { Ending::KeepAliveTimeout } else { Ending::HeaderTimeout };
                self.count(if self.state.draining() { Ending::Drained } else { ending });
                self.dead = true;
                // As if the client had left: there is no request to answer.
                return Poll::Ready(Ok(()));
            }
            // Whoever waited for the request answers it.
            Phase::Header => self.count(Ending::HeaderTimeout),
            Phase::Body => {
                self.count(Ending::BodyTimeout);
                self.state.expire(Expired::Body);
            }
            Phase::Upgraded if self.state.closing() => {
                self.dead = true;
                return Poll::Ready(Ok(()));
            }
            Phase::Upgraded => {
                self.count(Ending::UpgradedTimeout);
                // Both sides learn of it: Pingora closes the origin when the client seems to have left.
                self.state.close();
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Phase::Http2 | Phase::Answering => {
                self.count(Ending::HeaderTimeout);
                self.dead = true;
            }
        }
        Poll::Ready(Err(too_late()))
    }

    /// The client takes nothing. Pending until it does, or until it is too late.
    fn wait_for_reader<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let deadline = self.writing.waiting(Instant::now, self.state.settings().timeouts.write);
        ready!(self.alarm.poll(cx, deadline));
        self.count(Ending::WriteTimeout);
        self.state.expire(Expired::Write);
        self.dead = true;
        Poll::Ready(Err(too_late()))
    }

    fn wrote(&mut self, bytes: usize) {
        self.answered |= bytes > 0;
        self.unflushed = bytes > 0;
        let timeouts = &self.state.settings().timeouts;
        self.writing.moved(bytes, Instant::now, timeouts.write, timeouts.min_rate);
        if let Some(watch) = &mut self.http2 {
            watch.sent(bytes);
        } else if self.frames.is_some() {
            self.since = None;
        }
    }

    /// Ends a WebSocket: writes a close frame where one may stand, then lets the client seem to have left.
    fn say_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.farewell.is_none() {
            if !self.frames.as_ref().is_some_and(Frames::at_boundary) {
                // `poll_write` stops at the next boundary and wakes this read.
                return Poll::Pending;
            }
            self.begin_farewell(cx);
        }
        while let Some(left) = self.farewell.filter(|left| !left.is_empty()) {
            match ready!(Pin::new(&mut self.transport).poll_write(cx, left)) {
                Ok(0) | Err(_) => break,
                Ok(n) => self.farewell = Some(&left[n..]),
            }
        }
        let flushed = ready!(Pin::new(&mut self.transport).poll_flush(cx));
        self.linger = flushed.is_ok();
        self.dead = true;
        Poll::Ready(Ok(()))
    }

    /// From here on nothing but the close frame goes out; the next read writes it.
    fn begin_farewell(&mut self, cx: &mut Context<'_>) {
        self.farewell = Some(GOING_AWAY);
        cx.waker().wake_by_ref();
    }

    fn ending(&self) -> bool {
        self.state.closing() && self.state.phase() == Phase::Upgraded
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.handed < this.request {
            this.hand_over(this.request, buf);
            return Poll::Ready(Ok(()));
        }
        if this.dead {
            return Poll::Ready(Ok(()));
        }
        if this.ending() && this.say_goodbye(cx)?.is_ready() {
            return Poll::Ready(Ok(()));
        }
        let read = match this.state.phase() {
            Phase::Body => this.poll_body(cx, buf),
            Phase::Answering => this.poll_idle(cx),
            // What came behind the request for an upgrade is the client's first word in the new protocol.
            Phase::Upgraded if this.handed < this.input.len() => {
                this.hand_over(this.input.len(), buf);
                return Poll::Ready(Ok(()));
            }
            _ => {
                let before = buf.filled().len();
                match Pin::new(&mut this.transport).poll_read(cx, buf) {
                    Poll::Ready(Ok(())) => Poll::Ready(this.received(&buf.filled()[before..])),
                    Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
                    Poll::Pending => this.wait_for_client(cx),
                }
            }
        };
        match read {
            // Every request is framed, so that a missing close_notify can hide nothing.
            Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            read => read,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.dead {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if this.farewell.is_some() {
            // Nothing may follow a close frame.
            return Poll::Ready(Ok(buf.len()));
        }
        let mut buf = buf;
        if this.state.phase() == Phase::Upgraded {
            let frames = this.frames.get_or_insert_with(Frames::new);
            if this.state.closing() {
                if frames.at_boundary() {
                    this.begin_farewell(cx);
                    return Poll::Ready(Ok(buf.len()));
                }
                buf = &buf[..frames.until_boundary(buf).unwrap_or(buf.len())];
            }
        }
        match Pin::new(&mut this.transport).poll_write(cx, buf) {
            Poll::Ready(Ok(n)) => {
                this.wrote(n);
                if let Some(frames) = &mut this.frames {
                    frames.take(&buf[..n]);
                    if this.state.closing() && frames.at_boundary() {
                        this.begin_farewell(cx);
                    }
                }
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) => {
                this.dead = true;
                Poll::Ready(Err(e))
            }
            Poll::Pending => this.wait_for_reader(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.dead || this.state.phase() == Phase::Upgraded {
            let first = bufs.iter().find(|b| !b.is_empty()).map_or(&[][..], |b| b);
            return Pin::new(this).poll_write(cx, first);
        }
        match Pin::new(&mut this.transport).poll_write_vectored(cx, bufs) {
            Poll::Ready(Ok(n)) => {
                this.wrote(n);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) => {
                this.dead = true;
                Poll::Ready(Err(e))
            }
            Poll::Pending => this.wait_for_reader(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.dead {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match Pin::new(&mut this.transport).poll_flush(cx) {
            Poll::Ready(result) => {
                this.wrote(0);
                Poll::Ready(result)
            }
            Poll::Pending => this.wait_for_reader(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.transport).poll_shutdown(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending if this.dead => Poll::Ready(Err(too_late())),
            Poll::Pending => this.wait_for_reader(cx),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let more = self.input.len() > self.request || self.state.phase() == Phase::Body;
        let unread = self.answered && !self.dead && more;
        if !(self.linger || unread) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let transport = std::mem::replace(&mut self.transport, Transport::Closed);
        let permit = self.permit.take();
        runtime.spawn(async move {
            let _ = tokio::time::timeout(LINGER, linger(transport)).await;
            drop(permit);
        });
    }
}

/// Says that nothing more comes, and reads what the client still sends, to no end.
async fn linger(mut transport: Transport) {
    let _ = poll_fn(|cx| Pin::new(&mut transport).poll_shutdown(cx)).await;
    let mut waste = [0; 4096];
    while matches!(transport.read(&mut waste).await, Ok(n) if n > 0) {}
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).field("peer", &self.state.peer).finish_non_exhaustive()
    }
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        self.id
    }
}

impl Ssl for Connection {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.tls.clone()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.alpn.clone()
    }
}

impl GetTimingDigest for Connection {
    /// Nothing reads it, and Pingora asks for it once per request: an empty vector does not allocate.
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.carrier.clone())
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.socket.clone()
    }
}

impl Peek for Connection {}

macro_rules! forward {
    ($self:ident, $closed:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Transport::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Transport::Tls(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Transport::Closed => $closed,
        }
    };
}

fn closed<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        forward!(self, closed(), stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self, closed(), stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(self, closed(), stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
            Transport::Closed => false,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, closed(), stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, closed(), stream => stream.poll_shutdown(cx))
    }
}
