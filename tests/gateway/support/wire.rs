//! HTTP/1.1 as bytes: strict reading of heads and bodies, shared by the origin and the client.
//!
//! Strict on purpose: what the gateway writes has to satisfy the least tolerant peer. Malformed input is `InvalidData`,
//! an end in the middle `UnexpectedEof`.

use std::io::{self, ErrorKind};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Header fields in the order and spelling received.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of a field.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Whether a comma-separated field lists a word, in any of its lines.
    pub fn lists(&self, name: &str, word: &str) -> bool {
        self.all(name).flat_map(|v| v.split(',')).any(|w| w.trim().eq_ignore_ascii_case(word))
    }
}

#[derive(Debug, Clone)]
pub struct Head {
    /// Every byte up to and including the empty line.
    pub raw: Vec<u8>,
    /// The request line or status line.
    pub start: String,
    pub headers: Headers,
}

/// How a body's end is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Empty,
    Length(usize),
    Chunked,
    UntilClose,
}

pub fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.into())
}

fn cut_off(what: &str) -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, format!("the connection ended within {what}"))
}

/// A connection with what was read from it but not yet consumed.
pub struct Wire<S> {
    pub stream: S,
    buffer: Vec<u8>,
}

impl<S: Stream> Wire<S> {
    pub fn new(stream: S) -> Self {
        Wire { stream, buffer: Vec::new() }
    }

    /// Bytes that arrived and were not asked for yet.
    pub fn surplus(&self) -> &[u8] {
        &self.buffer
    }

    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Reads more; 0 means the peer has ended its side.
    pub async fn fill(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.buffer).await
    }

    /// Takes whatever has arrived, waiting for at least one byte; empty at the end.
    pub async fn some(&mut self) -> io::Result<Vec<u8>> {
        if self.buffer.is_empty() {
            self.fill().await?;
        }
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Reads one head; `None` if the peer ended before its first byte.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if self.buffer.len() > 1 << 20 {
                return Err(invalid("a head of more than 1 MiB"));
            }
            if self.fill().await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(cut_off("a head")) };
            }
        };
        let raw: Vec<u8> = self.buffer.drain(..end).collect();
        parse_head(raw).map(Some)
    }

    /// Reads one body; the second part is the trailer section.
    pub async fn body(&mut self, framing: Framing) -> io::Result<(Vec<u8>, Headers)> {
        match framing {
            Framing::Empty => Ok(Default::default()),
            Framing::Length(length) => Ok((self.exactly(length).await?, Headers::default())),
            Framing::UntilClose => {
                while self.fill().await? > 0 {}
                Ok((std::mem::take(&mut self.buffer), Headers::default()))
            }
            Framing::Chunked => {
                let mut body = Vec::new();
                while let Some(chunk) = self.chunk().await? {
                    body.extend_from_slice(&chunk);
                }
                Ok((body, self.trailers().await?))
            }
        }
    }

    /// Reads one chunk; `None` is the last one, after which the trailers follow.
    pub async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line().await?;
        let size = line.split(';').next().unwrap_or_default();
        if size.is_empty() || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(invalid(format!("chunk size {line:?}")));
        }
        let size = usize::from_str_radix(size, 16).map_err(|_| invalid(format!("chunk size {line:?}")))?;
        if size == 0 {
            return Ok(None);
        }
        let chunk = self.exactly(size).await?;
        if self.exactly(2).await? != b"\r\n" {
            return Err(invalid("a chunk longer than its size"));
        }
        Ok(Some(chunk))
    }

    pub async fn trailers(&mut self) -> io::Result<Headers> {
        let mut trailers = Headers::default();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(trailers);
            }
            trailers.0.push(parse_field(&line)?);
        }
    }

    pub async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            if self.fill().await? == 0 {
                return Err(cut_off(&format!("a body ({} of {length} bytes)", self.buffer.len())));
            }
        }
        Ok(self.buffer.drain(..length).collect())
    }

    async fn line(&mut self) -> io::Result<String> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                break at;
            }
            if self.fill().await? == 0 {
                return Err(cut_off("a line"));
            }
        };
        let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
        String::from_utf8(line).map_err(|_| invalid("a line that is not text"))
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(haystack, needle)
}

fn parse_head(raw: Vec<u8>) -> io::Result<Head> {
    let text = String::from_utf8_lossy(&raw[..raw.len() - 4]).into_owned();
    if text.bytes().any(|b| b == 0) {
        return Err(invalid("NUL in a head"));
    }
    let mut lines = text.split("\r\n");
    let start = lines.next().unwrap_or_default().to_owned();
    if start.contains(['\r', '\n']) {
        return Err(invalid("a bare line ending in the first line"));
    }
    let headers = lines.map(parse_field).collect::<io::Result<Vec<_>>>()?;
    Ok(Head { raw, start, headers: Headers(headers) })
}

fn parse_field(line: &str) -> io::Result<(String, String)> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let (name, value) = line.split_once(':').ok_or_else(|| invalid(format!("no colon in {line:?}")))?;
    if name.is_empty() || !name.bytes().all(token) || value.contains(['\r', '\n']) {
        return Err(invalid(format!("field {line:?}")));
    }
    Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}

/// The framing of a request's body; every ambiguity is an error.
pub fn request_framing(headers: &Headers) -> io::Result<Framing> {
    Ok(explicit_framing(headers)?.unwrap_or(Framing::Empty))
}

/// The framing of an answer's body (RFC 9112, section 6.3).
pub fn answer_framing(method: &str, status: u16, headers: &Headers) -> io::Result<Framing> {
    let explicit = explicit_framing(headers)?;
    if method == "HEAD" || status < 200 || status == 204 || status == 304 {
        return Ok(Framing::Empty);
    }
    Ok(explicit.unwrap_or(Framing::UntilClose))
}

fn explicit_framing(headers: &Headers) -> io::Result<Option<Framing>> {
    let lengths: Vec<&str> = headers.all("content-length").collect();
    let codings: Vec<&str> = headers.all("transfer-encoding").collect();
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Ok(None),
        ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
            length.parse().map(|n| Some(Framing::Length(n))).map_err(|_| invalid("length out of range"))
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Ok(Some(Framing::Chunked)),
        _ => Err(invalid(format!("ambiguous framing: lengths {lengths:?}, codings {codings:?}"))),
    }
}
