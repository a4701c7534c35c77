//! The canonical path: the one spelling of a request's path that is matched, authorised, logged and forwarded.
//!
//! Runs for every request. A path that is canonical already is scanned once and borrowed.
//!
//! What happens to a path, in this order:
//!
//! 1. Percent-encoded unreserved characters (letters, digits, `-._~`) are decoded; the hex digits of the others become
//!    upper case. Bytes that may not stand in a path unencoded, such as `"`, `{` or those of `é`, are encoded.
//! 2. Repeated slashes become one. Then `.` and `..` segments are resolved.
//! 3. Refused is what two servers could read differently: see [`PathError`].
//!
//! Percent-encoded reserved characters stay as they are: `/a%3Ab` and `/a:b` are two paths (RFC 3986, section 6.2.2.2).

use std::borrow::Cow;

use crate::error::{Error, Reason};

/// What a caller may permit beyond the strict form.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PathMode {
    /// Keeps `%2F` as it is instead of refusing it. It is no separator then, but no dot segment may touch it.
    pub allow_encoded_slash: bool,
}

/// Why a path has no single canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path does not start with a slash")]
    NoLeadingSlash,
    #[error("the path contains a fragment or a query")]
    Delimiter,
    #[error("the path contains a control character or a space")]
    Control,
    #[error("the path contains a backslash")]
    Backslash,
    #[error("the path contains an encoded slash")]
    EncodedSlash,
    #[error("a percent sign in the path is not followed by two hexadecimal digits")]
    MalformedPercent,
    #[error("the path is percent-encoded twice")]
    DoubleEncoding,
    /// Also overlong forms and surrogates.
    #[error("the path is not valid UTF-8")]
    NotUtf8,
    /// As in `/..;/` or `/;/`: some servers drop what follows the `;` and then resolve what is left.
    #[error("the path has a parameter in a dot segment or an empty segment")]
    DotParameter,
    #[error("the path climbs above the root")]
    AboveRoot,
}

impl From<PathError> for Error {
    fn from(error: PathError) -> Self {
        Error::with(Reason::BadPath, error.to_string())
    }
}

/// Brings the path of a request target (without query) into its canonical form.
///
/// Idempotent: the canonical form of a canonical path is that path, borrowed.
pub fn canonical(raw: &[u8], mode: PathMode) -> Result<Cow<'_, str>, PathError> {
    if raw.first() != Some(&b'/') {
        return Err(PathError::NoLeadingSlash);
    }
    if is_plain(raw) {
        return text(raw).map(Cow::Borrowed);
    }
    let mut writer = Writer { raw, same: 0, owned: None };
    writer.push(b'/');
    let mut at = 1;
    loop {
        let start = writer.written().len();
        let next = copy_segment(&mut writer, raw, at, mode)?;
        let last = next == raw.len();
        close_segment(&mut writer, start, last)?;
        if last {
            return writer.finish();
        }
        at = next + 1;
    }
}

/// Whether a canonical path holds an encoded slash, for callers that permit it on some routes only: they canonicalise
/// in the permissive mode, find the route, and refuse what that route does not permit.
pub fn has_encoded_slash(path: &str) -> bool {
    memchr::memmem::find(path.as_bytes(), b"%2F").is_some()
}

/// May stand in a canonical path wherever it likes.
const PLAIN: u8 = 0;
/// Begins something to look at when it follows a slash.
const START: u8 = 1;
/// Needs the long way.
const ODD: u8 = 2;

const CLASS: [u8; 256] = {
    let mut class = [ODD; 256];
    let mut byte = 0;
    while byte < 128 {
        class[byte] = match byte as u8 {
            b'/' | b'.' | b';' => START,
            b if is_path_char(b) => PLAIN,
            _ => ODD,
        };
        byte += 1;
    }
    class
};

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `pchar` of RFC 3986 without the percent sign.
const fn is_path_char(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@')
}

/// True for a canonical path without percent signs and without segments that begin with a dot: nearly every path.
fn is_plain(raw: &[u8]) -> bool {
    let mut after_slash = 0;
    for &byte in raw {
        if CLASS[byte as usize] + after_slash >= ODD {
            return false;
        }
        after_slash = u8::from(byte == b'/');
    }
    true
}

fn text(bytes: &[u8]) -> Result<&str, PathError> {
    std::str::from_utf8(bytes).map_err(|_| PathError::NotUtf8)
}

/// Collects the canonical form, and allocates only when it stops being a prefix of what was received.
struct Writer<'a> {
    raw: &'a [u8],
    /// While nothing is owned: how much of `raw` has been written unchanged.
    same: usize,
    owned: Option<Vec<u8>>,
}

impl<'a> Writer<'a> {
    fn written(&self) -> &[u8] {
        self.owned.as_deref().unwrap_or(&self.raw[..self.same])
    }

    fn push(&mut self, byte: u8) {
        match &mut self.owned {
            Some(owned) => owned.push(byte),
            None if self.raw.get(self.same) == Some(&byte) => self.same += 1,
            None => {
                let mut owned = Vec::with_capacity(self.raw.len() + 8);
                owned.extend_from_slice(&self.raw[..self.same]);
                owned.push(byte);
                self.owned = Some(owned);
            }
        }
    }

    fn push_encoded(&mut self, byte: u8) {
        const HEX: &[u8; 16] = b"0123456789ABCDEF";
        self.push(b'%');
        self.push(HEX[usize::from(byte >> 4)]);
        self.push(HEX[usize::from(byte & 15)]);
    }

    fn truncate(&mut self, len: usize) {
        match &mut self.owned {
            Some(owned) => owned.truncate(len),
            None => self.same = len,
        }
    }

    fn finish(self) -> Result<Cow<'a, str>, PathError> {
        match self.owned {
            Some(owned) => String::from_utf8(owned).map(Cow::Owned).map_err(|_| PathError::NotUtf8),
            None => text(&self.raw[..self.same]).map(Cow::Borrowed),
        }
    }
}

/// Writes the segment that begins at `at`; returns where it ends, at a slash or at the end of the path.
fn copy_segment(writer: &mut Writer<'_>, raw: &[u8], mut at: usize, mode: PathMode) -> Result<usize, PathError> {
    while at < raw.len() && raw[at] != b'/' {
        let (byte, encoded, next) = read(raw, at)?;
        at = next;
        match byte {
            0x00..=0x1f | 0x7f => return Err(PathError::Control),
            b'\\' => return Err(PathError::Backslash),
            b'/' if !mode.allow_encoded_slash => return Err(PathError::EncodedSlash),
            b' ' if !encoded => return Err(PathError::Control),
            b'?' | b'#' if !encoded => return Err(PathError::Delimiter),
            0x80.. => at = copy_wide(writer, raw, byte, at)?,
            _ if is_unreserved(byte) || !encoded && is_path_char(byte) => writer.push(byte),
            _ => writer.push_encoded(byte),
        }
    }
    Ok(at)
}

/// One byte of the path, whether it was percent-encoded, and where the next one begins.
fn read(raw: &[u8], at: usize) -> Result<(u8, bool, usize), PathError> {
    if raw[at] != b'%' {
        return Ok((raw[at], false, at + 1));
    }
    let digit = |at: usize| raw.get(at).and_then(|&b| char::from(b).to_digit(16));
    match (digit(at + 1), digit(at + 2)) {
        (Some(high), Some(low)) => Ok(((high << 4 | low) as u8, true, at + 3)),
        _ => Err(PathError::MalformedPercent),
    }
}

/// Writes one character beyond ASCII, whose first byte has been read; its bytes may be encoded or not.
fn copy_wide(writer: &mut Writer<'_>, raw: &[u8], first: u8, mut at: usize) -> Result<usize, PathError> {
    let len = match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return Err(PathError::NotUtf8),
    };
    let mut bytes = [first; 4];
    for byte in &mut bytes[1..len] {
        if at >= raw.len() {
            return Err(PathError::NotUtf8);
        }
        (*byte, _, at) = read(raw, at)?;
    }
    if text(&bytes[..len])?.chars().any(char::is_control) {
        return Err(PathError::Control);
    }
    bytes[..len].iter().for_each(|&byte| writer.push_encoded(byte));
    Ok(at)
}

/// Decides on the segment written since `start`: keeps it, drops it, or drops the one before it too.
fn close_segment(writer: &mut Writer<'_>, start: usize, last: bool) -> Result<(), PathError> {
    let segment = &writer.written()[start..];
    if segment.windows(5).any(|w| w.starts_with(b"%25") && w[3].is_ascii_hexdigit() && w[4].is_ascii_hexdigit()) {
        return Err(PathError::DoubleEncoding);
    }
    let name = without_parameters(segment);
    if name.len() < segment.len() && (is_dots(name) || name.is_empty() && !last) {
        return Err(PathError::DotParameter);
    }
    // Some systems drop spaces at the end of a name, and find a dot segment.
    let trimmed = without_spaces(name);
    if trimmed.len() < name.len() && is_dots(trimmed) {
        return Err(PathError::DotParameter);
    }
    // Only present when permitted; a server that decodes it must not find a dot segment beside it.
    let mut rest = segment;
    while let Some(slash) = memchr::memmem::find(rest, b"%2F") {
        let next = &rest[slash + 3..];
        let beside = &next[..memchr::memmem::find(next, b"%2F").unwrap_or(next.len())];
        if is_dots(without_parameters(&rest[..slash])) || is_dots(without_parameters(beside)) {
            return Err(PathError::EncodedSlash);
        }
        rest = next;
    }
    match segment {
        b".." => {
            let before = start.checked_sub(1).and_then(|end| memchr::memrchr(b'/', &writer.written()[..end]));
            writer.truncate(before.ok_or(PathError::AboveRoot)? + 1);
        }
        b"." => writer.truncate(start),
        b"" => {}
        _ if !last => writer.push(b'/'),
        _ => {}
    }
    Ok(())
}

fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

fn without_spaces(mut name: &[u8]) -> &[u8] {
    while let Some(shorter) = name.strip_suffix(b"%20") {
        name = shorter;
    }
    name
}

/// The segment up to its first `;`, encoded or not.
fn without_parameters(segment: &[u8]) -> &[u8] {
    let plain = memchr::memchr(b';', segment).unwrap_or(segment.len());
    let encoded = memchr::memmem::find(segment, b"%3B").unwrap_or(segment.len());
    &segment[..plain.min(encoded)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: PathMode = PathMode { allow_encoded_slash: false };
    const SLASHES: PathMode = PathMode { allow_encoded_slash: true };

    fn strict(raw: &str) -> Result<Cow<'_, str>, PathError> {
        canonical(raw.as_bytes(), STRICT)
    }

    #[test]
    fn canonical_paths_are_borrowed_and_unchanged() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a/b.c/d",
            "/v1/models/x:generate",
            "/a;v=1/b",
            "/;jsessionid=1",
            "/a%20b",
            "/caf%C3%A9",
            "/.well-known/x",
            "/...",
            "/a..b/..c",
            "/100%25",
            "/a%3Ab@!$&'()*+,=",
            "/%F0%9F%98%80",
        ] {
            let got = strict(path).unwrap();
            assert_eq!(got, path);
            assert!(matches!(got, Cow::Borrowed(_)), "{path} was copied");
        }
    }

    #[test]
    fn every_spelling_of_a_path_becomes_the_same_one() {
        for (raw, want) in [
            ("/%61bc", "/abc"),
            ("/%7Euser/%2D%5f", "/~user/-_"),
            ("/a%c3%a9", "/a%C3%A9"),
            ("/aé", "/a%C3%A9"),
            ("/a{b}|c", "/a%7Bb%7D%7Cc"),
            ("/a%7bb%7d%7cc", "/a%7Bb%7D%7Cc"),
            ("//a///b//", "/a/b/"),
            ("/a/./b/.", "/a/b/"),
            ("/a/b/..", "/a/"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/%2e/b", "/b"),
            ("/a//../b", "/b"),
            ("/a/b/../../c", "/c"),
            ("/./a", "/a"),
            ("//", "/"),
        ] {
            assert_eq!(strict(raw).as_deref(), Ok(want), "{raw}");
        }
    }

    #[test]
    fn what_two_servers_could_read_differently_is_refused() {
        use PathError::*;
        for (raw, want) in [
            ("", NoLeadingSlash),
            ("*", NoLeadingSlash),
            ("a/b", NoLeadingSlash),
            ("http://h/a", NoLeadingSlash),
            ("/a%2fb", EncodedSlash),
            ("/a%2Fb", EncodedSlash),
            ("/..%2fadmin", EncodedSlash),
            ("/a%5cb", Backslash),
            ("/a\\b", Backslash),
            ("/..\\admin", Backslash),
            ("/a%00", Control),
            ("/a\0", Control),
            ("/a%0d%0ab", Control),
            ("/a\tb", Control),
            ("/a%7f", Control),
            ("/a b", Control),
            ("/a%c2%85", Control),
            ("/%252e%252e/admin", DoubleEncoding),
            ("/%25%32%65", DoubleEncoding),
            ("/%252f", DoubleEncoding),
            ("/%2525", DoubleEncoding),
            ("/%252e/../x", DoubleEncoding),
            ("/a/..;/admin", DotParameter),
            ("/a/..;v=1", DotParameter),
            ("/a/..%20/admin", DotParameter),
            ("/a/.%20%20;x/admin", DotParameter),
            ("/a/.;/admin", DotParameter),
            ("/a/..%3b/admin", DotParameter),
            ("/a/%2e%2e;/admin", DotParameter),
            ("/;/admin", DotParameter),
            ("/a/;x/admin", DotParameter),
            ("/%c0%af", NotUtf8),
            ("/%c0%ae%c0%ae/", NotUtf8),
            ("/%e0%80%af", NotUtf8),
            ("/%f0%80%80%af", NotUtf8),
            ("/%ed%a0%80", NotUtf8),
            ("/%ff", NotUtf8),
            ("/%e2%82", NotUtf8),
            ("/%c3/%a9", NotUtf8),
            ("/..", AboveRoot),
            ("/../a", AboveRoot),
            ("/a/../../b", AboveRoot),
            ("//../a", AboveRoot),
            ("/%2e%2e/a", AboveRoot),
            ("/a#b", Delimiter),
            ("/a?b", Delimiter),
            ("/%", MalformedPercent),
            ("/%4", MalformedPercent),
            ("/%zz", MalformedPercent),
            ("/%u002e", MalformedPercent),
            ("/%+2", MalformedPercent),
        ] {
            assert_eq!(strict(raw), Err(want), "{raw:?}");
        }
        assert_eq!(canonical(b"/a\xc3", STRICT), Err(NotUtf8));
    }

    #[test]
    fn an_encoded_slash_that_is_permitted_is_no_separator_and_hides_no_dots() {
        let permitted = |raw: &'static str| canonical(raw.as_bytes(), SLASHES);
        assert_eq!(permitted("/projects/group%2fname").as_deref(), Ok("/projects/group%2Fname"));
        assert_eq!(permitted("/x/http%3A%2F%2Fh%2Fp").as_deref(), Ok("/x/http%3A%2F%2Fh%2Fp"));
        assert!(has_encoded_slash("/projects/group%2Fname"));
        for raw in ["/a%2f..", "/..%2fa", "/a%2f.%2fb", "/a%2f..%2fb", "/a%2f..;x", "/%2e%2e%2f", "/a%2f%2e%2e/b"] {
            assert!(permitted(raw).is_err(), "{raw}");
        }
    }

    /// What an origin makes of a path: decodes it once, and resolves it.
    fn as_an_origin_reads_it(path: &str) -> Vec<u8> {
        let bytes = path.as_bytes();
        let (mut decoded, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let (byte, _, next) = read(bytes, at).unwrap_or((bytes[at], false, at + 1));
            decoded.push(byte);
            at = next;
        }
        let mut kept: Vec<&[u8]> = Vec::new();
        for segment in decoded.split(|&b| b == b'/' || b == b'\\') {
            let name = segment.split(|&b| b == b';').next().unwrap_or_default();
            match name {
                b"" | b"." => {}
                b".." => drop(kept.pop()),
                name => kept.push(name),
            }
        }
        kept.join(&b'/')
    }

    #[test]
    fn the_canonical_form_is_final_and_an_origin_finds_nothing_more_in_it() {
        const PIECES: &[&str] = &[
            "/", "//", "/./", "/../", "/..", "..", ".", "%2e", "%2E", "%2f", "%5c", "\\", ";", "%3b", "%25", "%32",
            "%65", "2e", "2f", "%00", "a", "admin", "%61dmin", "%41", "é", "%c3", "%a9", "%c0", "%ae", "{", "%7b", " ",
            "%20", ":", "%3a", "+", "%", "%2", "~", "%7e", "#", "?", "public", "/public/", "/admin",
        ];
        let seed =
            std::env::var("HEADGATE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
        println!("seed {seed}; repeat with HEADGATE_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut accepted = 0;
        for _ in 0..40_000 {
            let raw: String = (0..random.usize(0..9)).map(|_| PIECES[random.usize(..PIECES.len())]).collect();
            let raw = format!("/{raw}");
            for mode in [STRICT, SLASHES] {
                let Ok(once) = canonical(raw.as_bytes(), mode) else { continue };
                accepted += 1;
                let twice = canonical(once.as_bytes(), mode);
                assert_eq!(twice.as_deref(), Ok(&*once), "seed {seed}: {raw:?} has two canonical forms");
                assert!(matches!(twice, Ok(Cow::Borrowed(_))), "seed {seed}: {once:?} was copied");
                assert!(once.bytes().all(|b| b == b'/' || b == b'%' || is_path_char(b)), "seed {seed}: {once:?}");
                if mode == STRICT {
                    let read = as_an_origin_reads_it(&once);
                    let segments = once.split('/').filter(|s| !without_parameters(s.as_bytes()).is_empty()).count();
                    let found = if read.is_empty() { 0 } else { read.split(|&b| b == b'/').count() };
                    assert_eq!(found, segments, "seed {seed}: an origin reads {once:?} differently");
                }
            }
        }
        assert!(accepted > 1000, "only {accepted} variants were accepted; the test shows nothing");
    }
}
