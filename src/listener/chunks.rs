//! Strict reading of a chunked request body's framing (RFC 9112, section 7.1), on the bytes as they come.
//!
//! Pingora's parser forgives what a proxy must not: blanks around a chunk size, an empty size, a trailer section that is
//! none. Data is skipped, not looked at, so that only the framing costs anything.

use super::strict::{NAME, StrictError, VALUE, is};

/// Bytes of chunk extensions that are borne before data makes up for them, byte by byte. Nobody has a use for
/// extensions, but every one has to be read.
const EXTENSIONS: u32 = 4096;
/// Bytes that the trailer section may have. It is dropped, whatever it says.
const TRAILERS: u32 = 4096;
/// Digits of 64 bits.
const DIGITS: u8 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In a chunk size, behind this many digits.
    Size(u8),
    Extension,
    /// The line feed that ends a chunk size.
    SizeEnd,
    Data,
    DataReturn,
    DataEnd,
    /// The first byte of a line in the trailer section.
    Line,
    Name,
    Value,
    ValueEnd,
    /// The line feed that ends the body.
    LastEnd,
    End,
}

/// Follows the framing of one chunked body, in whatever pieces it comes.
#[derive(Debug)]
pub(super) struct Chunks {
    at: At,
    /// The chunk size as far as it was read, then what is left of the chunk's data.
    size: u64,
    extensions: u32,
    trailers: u32,
}

impl Chunks {
    pub fn new() -> Self {
        Chunks { at: At::Size(0), size: 0, extensions: EXTENSIONS, trailers: TRAILERS }
    }

    /// Whether the body has been taken to its end.
    pub fn ended(&self) -> bool {
        self.at == At::End
    }

    /// Takes the next bytes of the body and says how many belong to it: all, unless it ends among them.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, StrictError> {
        let mut i = 0;
        while i < bytes.len() && self.at != At::End {
            if self.at == At::Data {
                let n = self.size.min((bytes.len() - i) as u64);
                self.size -= n;
                self.extensions = self.extensions.saturating_add(n.min(u64::from(EXTENSIONS)) as u32).min(EXTENSIONS);
                i += n as usize;
                if self.size == 0 {
                    self.at = At::DataReturn;
                }
                continue;
            }
            self.at = self.step(bytes[i])?;
            i += 1;
        }
        Ok(i)
    }

    /// Takes one byte of framing.
    fn step(&mut self, byte: u8) -> Result<At, StrictError> {
        Ok(match (self.at, byte) {
            (At::Size(digits), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let value = match byte {
                    b'0'..=b'9' => byte - b'0',
                    letter => (letter | 0x20) - b'a' + 10,
                };
                // A size that does not fit into 63 bits is as good as one that does not fit into 64.
                if digits == DIGITS || self.size >= 1 << 59 {
                    return Err(StrictError::ChunkSize);
                }
                self.size = self.size << 4 | u64::from(value);
                At::Size(digits + 1)
            }
            (At::Size(1..), b'\r') | (At::Extension, b'\r') => At::SizeEnd,
            (At::Size(1..), b';') => self.extension()?,
            (At::Size(_), _) => return Err(StrictError::ChunkSize),
            (At::Extension, byte) if is(byte, VALUE) => self.extension()?,
            (At::Extension, _) => return Err(StrictError::ChunkExtension),
            (At::SizeEnd, b'\n') if self.size > 0 => At::Data,
            (At::SizeEnd, b'\n') => At::Line,
            (At::SizeEnd, _) => return Err(StrictError::BareCarriageReturn),
            (At::DataReturn, b'\r') => At::DataEnd,
            (At::DataEnd, b'\n') => At::Size(0),
            (At::DataReturn | At::DataEnd, _) => return Err(StrictError::ChunkEnd),

            (At::Line, b'\r') => At::LastEnd,
            (At::LastEnd, b'\n') => At::End,
            (At::Line | At::Name, byte) if is(byte, NAME) => self.trailer(At::Name)?,
            (At::Name, b':') => self.trailer(At::Value)?,
            (At::Value, byte) if is(byte, VALUE) => self.trailer(At::Value)?,
            (At::Value, b'\r') => self.trailer(At::ValueEnd)?,
            (At::ValueEnd, b'\n') => self.trailer(At::Line)?,
            _ => return Err(StrictError::Trailer),
        })
    }

    fn extension(&mut self) -> Result<At, StrictError> {
        self.extensions = self.extensions.checked_sub(1).ok_or(StrictError::ChunkExtension)?;
        Ok(At::Extension)
    }

    fn trailer(&mut self, next: At) -> Result<At, StrictError> {
        self.trailers = self.trailers.checked_sub(1).ok_or(StrictError::Trailer)?;
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much of the text is the body; `None` if it does not end.
    fn read(pieces: &[&[u8]]) -> Result<Option<usize>, StrictError> {
        let (mut chunks, mut taken) = (Chunks::new(), 0);
        for piece in pieces {
            let n = chunks.take(piece)?;
            assert!(n == piece.len() || chunks.ended());
            taken += n;
            if chunks.ended() {
                return Ok(Some(taken));
            }
        }
        Ok(None)
    }

    /// The verdict must be the same however the bytes are cut: once at every place, and into single bytes.
    fn check(text: &str) -> Result<Option<usize>, StrictError> {
        let bytes = text.as_bytes();
        let whole = read(&[bytes]);
        for cut in 0..=bytes.len() {
            assert_eq!(read(&[&bytes[..cut], &bytes[cut..]]), whole, "{text:?} cut at {cut}");
        }
        assert_eq!(read(&bytes.chunks(1).collect::<Vec<_>>()), whole, "{text:?} byte by byte");
        whole
    }

    #[test]
    fn legal_bodies_end_where_they_should() {
        for body in [
            "0\r\n\r\n",
            "000\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "2\r\n\r\n\r\n3\r\n0\r\n\r\n0\r\n\r\n",
            "0000000000000005\r\nhello\r\n0\r\n\r\n",
            "A\r\n0123456789\r\na;x=\"y; z\"\t;é\r\n0123456789\r\n0;last\r\n\r\n",
            "0\r\nX-Sum: 1\r\nEmpty:\r\nfoo_bar:baz é\t\r\n\r\n",
        ] {
            assert_eq!(check(body), Ok(Some(body.len())), "{body:?}");
            let followed = format!("{body}GET / HTTP/1.1\r\n\r\n");
            assert_eq!(check(&followed), Ok(Some(body.len())), "what follows is not the body's: {body:?}");
            for end in (0..body.len()).filter(|end| body.is_char_boundary(*end)) {
                assert_eq!(check(&body[..end]), Ok(None), "{body:?} up to {end}");
            }
        }
    }

    #[test]
    fn ambiguous_bodies_are_refused() {
        use StrictError::*;
        for (body, error) in [
            ("\r\nhello\r\n0\r\n\r\n", ChunkSize),
            (" 5\r\nhello", ChunkSize),
            ("5 \r\nhello", ChunkSize),
            ("5\t\r\nhello", ChunkSize),
            ("5 ;x\r\nhello", ChunkSize),
            ("+5\r\nhello", ChunkSize),
            ("-5\r\nhello", ChunkSize),
            ("0x5\r\nhello", ChunkSize),
            ("0_5\r\nhello", ChunkSize),
            ("5h\r\nhello", ChunkSize),
            ("5,\r\nhello", ChunkSize),
            ("5\nhello", ChunkSize),
            (";x\r\nhello", ChunkSize),
            ("5\0\r\nhello", ChunkSize),
            ("00000000000000005\r\nhello", ChunkSize),
            ("8000000000000000\r\nhello", ChunkSize),
            ("ffffffffffffffff\r\nhello", ChunkSize),
            ("5\rhello", BareCarriageReturn),
            ("5\r\r\nhello", BareCarriageReturn),
            ("5;x\ny\r\nhello", ChunkExtension),
            ("5;x\0\r\nhello", ChunkExtension),
            ("5;x\x7f\r\nhello", ChunkExtension),
            ("5;x\ry\r\nhello", BareCarriageReturn),
            ("5\r\nhello!\r\n0\r\n\r\n", ChunkEnd),
            ("5\r\nhell\r\n0\r\n\r\n", ChunkEnd),
            ("5\r\nhello\n0\r\n\r\n", ChunkEnd),
            ("5\r\nhello\r0\r\n\r\n", ChunkEnd),
            ("5\r\nhelloxx0\r\n\r\n", ChunkEnd),
            ("0\n\r\n", ChunkSize),
            ("0\r\n\n", Trailer),
            ("0\r\n\rX", Trailer),
            ("0\r\nno colon\r\n\r\n", Trailer),
            ("0\r\nX : y\r\n\r\n", Trailer),
            ("0\r\nX\r\n\r\n", Trailer),
            ("0\r\n: y\r\n\r\n", Trailer),
            ("0\r\n X: y\r\n\r\n", Trailer),
            ("0\r\nX: y\r\n z\r\n\r\n", Trailer),
            ("0\r\nX: y\r\n\tz\r\n\r\n", Trailer),
            ("0\r\nX: y\n\r\n", Trailer),
            ("0\r\nX: y\rz\r\n\r\n", Trailer),
            ("0\r\nX: \0\r\n\r\n", Trailer),
            ("0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Trailer),
        ] {
            assert_eq!(check(body), Err(error), "{body:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let long = "x".repeat(EXTENSIONS as usize);
        assert_eq!(read(&[format!("1;{long}\r\n").as_bytes()]), Err(StrictError::ChunkExtension));
        // Many short ones are one long one, unless there is data.
        let (ext, data) = (";x".repeat(50), "d".repeat(0x64));
        let poor = format!("1;{ext}\r\nd\r\n").repeat(100);
        assert_eq!(read(&[poor.as_bytes()]), Err(StrictError::ChunkExtension));
        let rich = format!("64{ext}\r\n{data}\r\n").repeat(10_000);
        assert_eq!(read(&[rich.as_bytes()]), Ok(None));
        let trailers = "X: y\r\n".repeat(1000);
        assert_eq!(read(&[format!("0\r\n{trailers}\r\n").as_bytes()]), Err(StrictError::Trailer));
    }

    #[test]
    fn no_byte_anywhere_panics() {
        let body = b"5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n";
        for place in 0..body.len() {
            for byte in 0..=255u8 {
                let mut changed = body.to_vec();
                changed[place] = byte;
                let _ = read(&[&changed]);
            }
        }
    }
}
