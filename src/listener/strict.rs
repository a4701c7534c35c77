//! Strict reading of an HTTP/1 request head, on the bytes as they came.
//!
//! Pingora's parser forgives what a proxy must not: bare line feeds, `Content-Length` beside `Transfer-Encoding`, equal
//! duplicates of either, and an illegal request line, which it repairs. Whoever stands before us may have read such
//! bytes as other requests than we do (RFC 9112, section 11.2). Runs on every request: one pass, no allocation.

use std::fmt;

use memchr::{Memchr, memchr, memchr_iter, memmem};

use crate::error::{Error, Reason};

/// Why bytes are not one unambiguous request. The answer is 400, and the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrictError {
    RequestLine,
    /// HTTP/0.9, or a version that is not `HTTP/1.0` or `HTTP/1.1`.
    Version,
    BareLineFeed,
    BareCarriageReturn,
    Nul,
    FoldedHeader,
    SpaceBeforeColon,
    HeaderName,
    HeaderValue,
    DuplicateHost,
    MissingHost,
    ContentLength,
    TransferEncoding,
    LengthAndTransferEncoding,
    ChunkSize,
    ChunkExtension,
    ChunkEnd,
    Trailer,
}

impl StrictError {
    /// What the client may be told.
    pub fn message(self) -> &'static str {
        match self {
            StrictError::RequestLine => "the request line is not `method target version`",
            StrictError::Version => "the HTTP version is not supported",
            StrictError::BareLineFeed => "a line ends without carriage return",
            StrictError::BareCarriageReturn => "a carriage return stands alone",
            StrictError::Nul => "the header contains a NUL byte",
            StrictError::FoldedHeader => "a header is folded over several lines",
            StrictError::SpaceBeforeColon => "a header name is followed by a space",
            StrictError::HeaderName => "a header name is too long or contains an illegal character",
            StrictError::HeaderValue => "a header value contains a control character",
            StrictError::DuplicateHost => "there is more than one Host",
            StrictError::MissingHost => "there is no Host",
            StrictError::ContentLength => "Content-Length is not one number",
            StrictError::TransferEncoding => "Transfer-Encoding is not exactly `chunked`, once, in HTTP/1.1",
            StrictError::LengthAndTransferEncoding => "Content-Length and Transfer-Encoding are both present",
            StrictError::ChunkSize => "a chunk size is not 1 to 16 hexadecimal digits",
            StrictError::ChunkExtension => "a chunk extension is too long or contains a control character",
            StrictError::ChunkEnd => "a chunk does not end where its size says",
            StrictError::Trailer => "the trailer section is too long or not made of headers",
        }
    }
}

impl fmt::Display for StrictError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for StrictError {}

impl From<StrictError> for Error {
    fn from(error: StrictError) -> Error {
        Error::with(Reason::BadRequest, error.message())
    }
}

pub(super) const NAME: u8 = 1;
pub(super) const VALUE: u8 = 2;
const TARGET: u8 = 4;

/// What each byte may be part of: a field name (RFC 9110, section 5.6.2), a field value (5.5), a request target.
static CLASS: [u8; 256] = {
    let mut table = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        if b.is_ascii_alphanumeric()
            || matches!(b, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
        {
            table[i] |= NAME;
        }
        if b == b'\t' || (b >= 0x20 && b != 0x7f) {
            table[i] |= VALUE;
        }
        // No client writes angle brackets, and the `http` crate takes none.
        if b > 0x20 && b < 0x7f && b != b'<' && b != b'>' {
            table[i] |= TARGET;
        }
        i += 1;
    }
    table
};

pub(super) fn is(byte: u8, class: u8) -> bool {
    CLASS[byte as usize] & class != 0
}

fn all(bytes: &[u8], class: u8) -> bool {
    bytes.iter().all(|b| is(*b, class))
}

/// Longest header name; the `http` crate takes twice as much.
const MOST_NAME: usize = 32 << 10;

/// The end of the last line and the empty line after it.
const END: &[u8] = b"\r\n\r\n";

/// Whether no byte has to be looked at twice: no control byte but the ends of lines, each of two bytes.
///
/// Written without branches, so that it becomes vector instructions: it takes most of the work off the checks by line.
fn is_clean(raw: &[u8]) -> bool {
    let (mut controls, mut returns, mut feeds) = (0u8, 0u32, 0u32);
    for chunk in raw.chunks(128) {
        let (mut r, mut f) = (0u8, 0u8);
        for &b in chunk {
            let (is_r, is_f) = ((b == b'\r') as u8, (b == b'\n') as u8);
            r += is_r;
            f += is_f;
            controls |= (b < 0x20) as u8 & (b != b'\t') as u8 & !(is_r | is_f) | (b == 0x7f) as u8;
        }
        returns += u32::from(r);
        feeds += u32::from(f);
    }
    controls == 0 && returns == feeds
}

/// Where the body of a request ends (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// A request head that has one reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head<'a> {
    /// How many bytes it has, with the empty line at its end.
    pub length: usize,
    pub method: &'a [u8],
    pub target: &'a [u8],
    /// Where in the head the target is.
    pub target_at: usize,
    pub host: Option<&'a [u8]>,
    pub headers: usize,
    pub framing: Framing,
}

/// Reads the request head that the bytes begin with; `None` if it is not complete. Whatever follows it is not looked at.
pub(super) fn read_head(raw: &[u8]) -> Result<Option<Head<'_>>, StrictError> {
    // Nearly always there is a head and nothing else. What follows it need not be clean.
    let clean = if raw.ends_with(END) {
        is_clean(raw)
    } else {
        is_clean(&raw[..memmem::find(raw, END).map_or(raw.len(), |at| at + END.len())])
    };
    // One empty line before a request is left over from clients that end a body with it (RFC 9112, section 2.2).
    let skipped = if raw.starts_with(b"\r\n") { 2 } else { 0 };
    let mut lines = Lines { raw, start: skipped, feeds: memchr_iter(b'\n', &raw[skipped..]), base: skipped };
    let Some(line) = lines.next()? else {
        return incomplete(&raw[skipped..]);
    };
    let (method, target, is_1_0) = split_request_line(line)?;

    let (mut host, mut length, mut chunked, mut headers) = (None, None, false, 0);
    loop {
        let Some(line) = lines.next()? else { return Ok(None) };
        if line.is_empty() {
            break;
        }
        let (name, value) = split_header(line, clean)?;
        headers += 1;
        // The length of the name decides first: nearly every header is settled by one comparison.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                if host.is_some() {
                    return Err(StrictError::DuplicateHost);
                }
                host = Some(value.trim_ascii());
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let number = decimal(value.trim_ascii());
                if length.is_some() || number.is_none() {
                    return Err(StrictError::ContentLength);
                }
                length = number;
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked || is_1_0 || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(StrictError::TransferEncoding);
                }
                chunked = true;
            }
            _ => {}
        }
    }
    if length.is_some() && chunked {
        return Err(StrictError::LengthAndTransferEncoding);
    }
    if host.is_none() && !is_1_0 {
        return Err(StrictError::MissingHost);
    }
    let framing = if chunked { Framing::Chunked } else { Framing::Length(length.unwrap_or(0)) };
    let target_at = skipped + method.len() + 1;
    Ok(Some(Head { length: lines.start, method, target, target_at, host, headers, framing }))
}

/// Whether a head that came in pieces has come to its end, looking only at what is new since `from`.
pub(super) fn head_ended(raw: &[u8], from: usize) -> Result<bool, StrictError> {
    for at in memchr_iter(b'\n', &raw[from..]).map(|at| from + at) {
        if at == 0 || raw[at - 1] != b'\r' {
            return Err(StrictError::BareLineFeed);
        }
        if raw[..=at].ends_with(END) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The method and target of the request line that the bytes begin with, if it is legal.
pub(super) fn request_line(raw: &[u8]) -> Option<(&[u8], &[u8])> {
    let raw = raw.strip_prefix(b"\r\n").unwrap_or(raw);
    let line = raw[..memchr(b'\n', raw)?].strip_suffix(b"\r")?;
    split_request_line(line).ok().map(|(method, target, _)| (method, target))
}

/// Without the end of the first line there may be nothing that a line could begin with: then its end, which may never
/// come, need not be waited for.
#[cold]
fn incomplete(line: &[u8]) -> Result<Option<Head<'_>>, StrictError> {
    let method = span(line, NAME);
    match &line[method..] {
        [] => Ok(None),
        [b' ', ..] if method > 0 => Ok(None),
        b"\r" if line.len() == 1 => Ok(None),
        _ => Err(wrong(line, StrictError::RequestLine)),
    }
}

/// At most 19 digits, which cannot overflow.
fn decimal(digits: &[u8]) -> Option<u64> {
    let valid = (1..=19).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    valid.then(|| digits.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')))
}

/// The lines of a head, each of which must end in CRLF.
struct Lines<'a> {
    raw: &'a [u8],
    start: usize,
    feeds: Memchr<'a>,
    /// Where `feeds` counts from.
    base: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<Option<&'a [u8]>, StrictError> {
        let Some(end) = self.feeds.next().map(|at| self.base + at) else { return Ok(None) };
        let line = self.raw[self.start..end].strip_suffix(b"\r").ok_or(StrictError::BareLineFeed)?;
        self.start = end + 1;
        Ok(Some(line))
    }
}

/// Splits `method target version`; true for HTTP/1.0.
fn split_request_line(line: &[u8]) -> Result<(&[u8], &[u8], bool), StrictError> {
    let method = span(line, NAME);
    let Some((b' ', rest)) = line[method..].split_first() else {
        return Err(wrong(line, StrictError::RequestLine));
    };
    let target = span(rest, TARGET);
    if method == 0 || target == 0 {
        return Err(wrong(line, StrictError::RequestLine));
    }
    let is_1_0 = match &rest[target..] {
        b" HTTP/1.1" => false,
        b" HTTP/1.0" => true,
        // Two words are a request of HTTP/0.9.
        b"" => return Err(StrictError::Version),
        other if other.starts_with(b" HTTP/") && all(&other[1..], TARGET) => return Err(StrictError::Version),
        _ => return Err(wrong(line, StrictError::RequestLine)),
    };
    Ok((&line[..method], &rest[..target], is_1_0))
}

/// How many bytes at the start are of a class.
fn span(bytes: &[u8], class: u8) -> usize {
    bytes.iter().position(|b| CLASS[*b as usize] & class == 0).unwrap_or(bytes.len())
}

/// Splits a header line into its name and its value, white space around the value included.
fn split_header(line: &[u8], clean: bool) -> Result<(&[u8], &[u8]), StrictError> {
    let end = span(line, NAME);
    let (name, value) = match &line[end..] {
        [b':', value @ ..] if (1..=MOST_NAME).contains(&end) => (&line[..end], value),
        rest => return Err(wrong_name(line, rest)),
    };
    if !clean && !all(value, VALUE) {
        return Err(wrong(value, StrictError::HeaderValue));
    }
    Ok((name, value))
}

#[cold]
fn wrong_name(line: &[u8], rest: &[u8]) -> StrictError {
    let blanks = rest.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    match (blanks, rest.get(blanks)) {
        (1.., _) if rest.len() == line.len() => StrictError::FoldedHeader,
        (1.., Some(b':')) => StrictError::SpaceBeforeColon,
        _ => wrong(line, StrictError::HeaderName),
    }
}

/// The most telling error for bytes that are already known to be wrong.
#[cold]
fn wrong(bytes: &[u8], otherwise: StrictError) -> StrictError {
    if memchr(0, bytes).is_some() {
        StrictError::Nul
    } else if memchr(b'\r', bytes).is_some() {
        StrictError::BareCarriageReturn
    } else {
        otherwise
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use StrictError::*;

    /// Whether the text is one complete head.
    fn check(text: &str) -> Result<bool, StrictError> {
        let head = read_head(text.as_bytes())?;
        Ok(head.is_some_and(|head| head.length == text.len()))
    }

    #[test]
    fn legal_heads_pass() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "POST /x?y=%20 HTTP/1.1\r\nhost: a\r\ncontent-length: 12\r\n\r\n",
            "POST / HTTP/1.1\r\nHOST:a\r\nTransfer-Encoding: Chunked \r\n\r\n",
            "M-SEARCH * HTTP/1.1\r\nHost: \r\nX_y!#$%&'*+-.^`|~: v\t\u{e9}\r\nEmpty:\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "GET /{\"\\^`|} HTTP/1.1\r\nHost: a\r\nHosts: b\r\nHosts: c\r\n\r\n",
        ] {
            assert_eq!(check(head), Ok(true), "{head:?}");
        }
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        for (head, error) in [
            ("GET / HTTP/1.1\nHost: a\n\n", BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", BareLineFeed),
            ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n", BareCarriageReturn),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\r\n\r\n", BareCarriageReturn),
            ("GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", BareCarriageReturn),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", Nul),
            ("GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n", Nul),
            ("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", Nul),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", FoldedHeader),
            ("GET / HTTP/1.1\r\nHost: a\r\n\tX: a\r\n\r\n", FoldedHeader),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", FoldedHeader),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", SpaceBeforeColon),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length\t: 3\r\n\r\n", SpaceBeforeColon),
            ("GET / HTTP/1.1\r\nHost: a\r\nX\u{b}: a\r\n\r\n", HeaderName),
            ("GET / HTTP/1.1\r\nHost: a\r\nX Y: a\r\n\r\n", HeaderName),
            ("GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n", HeaderName),
            ("GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", HeaderName),
            ("GET / HTTP/1.1\r\nHost: a\r\nX\u{e9}: a\r\n\r\n", HeaderName),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\u{b}b\r\n\r\n", HeaderValue),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\u{7f}b\r\n\r\n", HeaderValue),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", DuplicateHost),
            ("GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n", DuplicateHost),
            ("GET / HTTP/1.1\r\nX: a\r\n\r\n", MissingHost),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3 3\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", TransferEncoding),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", TransferEncoding),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", TransferEncoding),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", TransferEncoding),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", TransferEncoding),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
                TransferEncoding,
            ),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", TransferEncoding),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                LengthAndTransferEncoding,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
                LengthAndTransferEncoding,
            ),
            ("GET /\r\n\r\n", Version),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Version),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Version),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", RequestLine),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("GET / HTTP/1.1 x\r\nHost: a\r\n\r\n", RequestLine),
            ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("GET /<x> HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            (" / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("GET / http/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("\x16\x03\x01", RequestLine),
            ("(", RequestLine),
        ] {
            assert_eq!(check(head), Err(error), "{head:?}");
        }
    }

    #[test]
    fn a_head_is_read_whatever_follows_it() {
        for (head, framing, headers) in [
            ("GET /a HTTP/1.1\r\nHost: x\r\n\r\n", Framing::Length(0), 1),
            ("\r\nPUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 007\r\n\r\n", Framing::Length(7), 2),
            ("POST /a HTTP/1.1\r\nHost:  x \r\nX: y\r\nTransfer-Encoding: CHUNKED\r\n\r\n", Framing::Chunked, 3),
        ] {
            for rest in ["", "0\r\n\r\n", "\0\n\x7f", "GET / HTTP/1.1\r\nHost: b\r\n\r\n", "\r\n"] {
                let text = format!("{head}{rest}");
                let read = read_head(text.as_bytes()).unwrap().unwrap();
                assert_eq!((read.length, read.framing, read.headers), (head.len(), framing, headers), "{text:?}");
                assert_eq!((read.target, read.host), (&b"/a"[..], Some(&b"x"[..])), "{text:?}");
                assert_eq!(request_line(text.as_bytes()), Some((read.method, read.target)));
            }
        }
        assert_eq!(request_line(b"GET / x\r\n"), None);
        assert_eq!(request_line(b"GET / HTTP/1.1"), None);
    }

    #[test]
    fn a_cut_head_is_incomplete_and_its_end_is_found_in_any_pieces() {
        let head = b"\r\nPOST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nX: y\r\n\r\n";
        for end in 0..head.len() {
            assert_eq!(read_head(&head[..end]), Ok(None), "{end}");
            assert_eq!(head_ended(&head[..end], 0), Ok(false), "{end}");
            assert_eq!(head_ended(head, end), Ok(true), "{end}");
        }
        assert_eq!(head_ended(b"GET / HTTP/1.1\r\nX\n", 16), Err(BareLineFeed));
        assert_eq!(head_ended(b"GET / HTTP/1.1\r\n\n", 16), Err(BareLineFeed));
        // Every byte at every place: a verdict, never a panic.
        for place in 0..head.len() {
            for byte in 0..=255u8 {
                let mut changed = head.to_vec();
                changed[place] = byte;
                let _ = read_head(&changed);
                let _ = head_ended(&changed, place);
            }
        }
    }
}
