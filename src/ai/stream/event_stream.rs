//! `application/vnd.amazon.eventstream`: binary messages of headers and a payload, with two checksums each.
//!
//! A message is its length and that of its headers (four bytes each, big-endian), the CRC-32 of those eight bytes, headers,
//! payload, and the CRC-32 of all before. A header is the length of its name, the name, a type, and a value.

use super::{Deframer, Frame, LONGEST, Unframed};

/// Begins [`Frame::event`] where the message is an exception or an error; the name of it follows. No event is called so.
pub const EXCEPTION: &str = "exception:";

/// The two lengths and their checksum.
const PRELUDE: usize = 12;
/// What a message has beside headers and payload.
const OVERHEAD: usize = PRELUDE + 4;

#[derive(Default)]
pub struct EventStream {
    /// A message that has not ended yet.
    message: Vec<u8>,
    /// After something malformed nothing is known to begin where it seems to.
    broken: Option<Unframed>,
}

impl Deframer for EventStream {
    fn push(&mut self, bytes: &[u8], each: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let outcome = self.take(bytes, each);
        if let Err(broken) = outcome {
            self.broken = Some(broken);
            self.message = Vec::new();
        }
        outcome
    }

    fn finish(&mut self, _: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        match self.broken {
            Some(broken) => Err(broken),
            None if self.message.is_empty() => Ok(()),
            None => Err(Unframed::Malformed),
        }
    }
}

impl EventStream {
    fn take(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        while !self.message.is_empty() && !bytes.is_empty() {
            let wanted = length(&self.message)?.unwrap_or(PRELUDE);
            let (more, rest) = bytes.split_at(bytes.len().min(wanted - self.message.len()));
            self.message.extend_from_slice(more);
            bytes = rest;
            if length(&self.message)? == Some(self.message.len()) {
                read(&self.message, each)?;
                self.message.clear();
            }
        }
        while let Some(length) = length(bytes)? {
            let Some((message, rest)) = bytes.split_at_checked(length) else { break };
            read(message, each)?;
            bytes = rest;
        }
        self.message.extend_from_slice(bytes);
        Ok(())
    }
}

/// The length of the message that begins here, once its prelude is there and holds.
fn length(bytes: &[u8]) -> Result<Option<usize>, Unframed> {
    let Some((prelude, _)) = bytes.split_at_checked(PRELUDE) else { return Ok(None) };
    let (lengths, sum) = prelude.split_at(PRELUDE - 4);
    if crc32fast::hash(lengths) != number(sum)? {
        return Err(Unframed::Malformed);
    }
    let (total, headers) = (number(&lengths[..4])? as usize, number(&lengths[4..])? as usize);
    match total {
        total if total > LONGEST => Err(Unframed::TooLong),
        total if total < OVERHEAD || headers > total - OVERHEAD => Err(Unframed::Malformed),
        total => Ok(Some(total)),
    }
}

/// Reads a message that is whole.
fn read(message: &[u8], each: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
    let (body, sum) = message.split_at_checked(message.len() - 4).ok_or(Unframed::Malformed)?;
    if crc32fast::hash(body) != number(sum)? {
        return Err(Unframed::Malformed);
    }
    let headers = number(&body[4..8])? as usize;
    let (headers, payload) = body[PRELUDE..].split_at_checked(headers).ok_or(Unframed::Malformed)?;
    let headers = Headers::read(headers)?;
    match headers.message_type {
        Some("exception") => exception(headers.exception_type, payload, each),
        // What the service did not expect itself: the message is a header, and the payload is empty.
        Some("error") => exception(headers.error_code, headers.error_message.unwrap_or_default().as_bytes(), each),
        _ => each(Frame { event: headers.event_type, data: payload }),
    }
    Ok(())
}

fn exception(name: Option<&str>, data: &[u8], each: &mut dyn FnMut(Frame<'_>)) {
    let event = [EXCEPTION, name.unwrap_or_default()].concat();
    each(Frame { event: Some(&event), data });
}

/// The headers that say what a message is.
#[derive(Default)]
struct Headers<'m> {
    message_type: Option<&'m str>,
    event_type: Option<&'m str>,
    exception_type: Option<&'m str>,
    error_code: Option<&'m str>,
    error_message: Option<&'m str>,
}

impl<'m> Headers<'m> {
    fn read(mut bytes: &'m [u8]) -> Result<Headers<'m>, Unframed> {
        let mut found = Headers::default();
        while !bytes.is_empty() {
            let name_length = take(&mut bytes, 1)?[0] as usize;
            let name = take(&mut bytes, name_length)?;
            let kind = take(&mut bytes, 1)?[0];
            let value = match kind {
                // True and false.
                0 | 1 => &[],
                2 => take(&mut bytes, 1)?,
                3 => take(&mut bytes, 2)?,
                4 => take(&mut bytes, 4)?,
                // A number or a time.
                5 | 8 => take(&mut bytes, 8)?,
                // Bytes or a text.
                6 | 7 => {
                    let length = take(&mut bytes, 2)?;
                    take(&mut bytes, u16::from_be_bytes([length[0], length[1]]) as usize)?
                }
                // A UUID.
                9 => take(&mut bytes, 16)?,
                _ => return Err(Unframed::Malformed),
            };
            let slot = match name {
                b":message-type" => &mut found.message_type,
                b":event-type" => &mut found.event_type,
                b":exception-type" => &mut found.exception_type,
                b":error-code" => &mut found.error_code,
                b":error-message" => &mut found.error_message,
                _ => continue,
            };
            *slot = Some(std::str::from_utf8(value).map_err(|_| Unframed::Malformed)?);
        }
        Ok(found)
    }
}

fn take<'m>(bytes: &mut &'m [u8], count: usize) -> Result<&'m [u8], Unframed> {
    let (taken, rest) = bytes.split_at_checked(count).ok_or(Unframed::Malformed)?;
    *bytes = rest;
    Ok(taken)
}

fn number(bytes: &[u8]) -> Result<u32, Unframed> {
    bytes.try_into().map(u32::from_be_bytes).map_err(|_| Unframed::Malformed)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A message with texts as headers.
    pub(crate) fn message(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in headers {
            block.push(name.len() as u8);
            block.extend_from_slice(name.as_bytes());
            block.push(7);
            block.extend_from_slice(&(value.len() as u16).to_be_bytes());
            block.extend_from_slice(value.as_bytes());
        }
        framed(&block, payload)
    }

    fn framed(headers: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut out = ((OVERHEAD + headers.len() + payload.len()) as u32).to_be_bytes().to_vec();
        out.extend_from_slice(&(headers.len() as u32).to_be_bytes());
        out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
        out.extend_from_slice(headers);
        out.extend_from_slice(payload);
        out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
        out
    }

    fn event(name: &str, payload: &str) -> Vec<u8> {
        let headers = [(":event-type", name), (":content-type", "application/json"), (":message-type", "event")];
        message(&headers, payload.as_bytes())
    }

    type Frames = Vec<(Option<String>, String)>;

    fn frames(pieces: &[&[u8]]) -> (Frames, Result<(), Unframed>) {
        let (mut stream, mut found) = (EventStream::default(), Vec::new());
        let mut each = |frame: Frame<'_>| {
            found.push((frame.event.map(str::to_owned), String::from_utf8_lossy(frame.data).into_owned()));
        };
        let mut outcome = Ok(());
        for piece in pieces {
            outcome = outcome.and_then(|()| stream.push(piece, &mut each));
        }
        outcome = outcome.and_then(|()| stream.finish(&mut each));
        (found, outcome)
    }

    #[test]
    fn messages_are_the_same_wherever_the_stream_is_cut() {
        let mut bytes = event("messageStart", "{\"role\":\"assistant\"}");
        bytes.extend(event("contentBlockDelta", "{\"delta\":{\"text\":\"\u{e9}\"}}"));
        bytes.extend(message(
            &[(":exception-type", "throttlingException"), (":message-type", "exception")],
            b"{\"message\":\"slow down\"}",
        ));
        let want = [
            (Some("messageStart".to_owned()), "{\"role\":\"assistant\"}".to_owned()),
            (Some("contentBlockDelta".to_owned()), "{\"delta\":{\"text\":\"\u{e9}\"}}".to_owned()),
            (Some("exception:throttlingException".to_owned()), "{\"message\":\"slow down\"}".to_owned()),
        ];
        for cut in 0..=bytes.len() {
            let (found, outcome) = frames(&[&bytes[..cut], &bytes[cut..]]);
            assert_eq!((found.as_slice(), outcome), (&want[..], Ok(())), "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(frames(&single), (want.to_vec(), Ok(())));
    }

    #[test]
    fn a_published_message_without_headers_and_payload_is_read() {
        // From the test suite of the AWS SDKs: `empty_message`, and `payload_no_headers`.
        let empty = [0, 0, 0, 0x10, 0, 0, 0, 0, 0x05, 0xc2, 0x48, 0xeb, 0x7d, 0x98, 0xc8, 0xff];
        assert_eq!(frames(&[&empty]), (vec![(None, String::new())], Ok(())));
        let mut payload = vec![0, 0, 0, 0x1d, 0, 0, 0, 0, 0xfd, 0x52, 0x8c, 0x5a];
        payload.extend_from_slice(b"{'foo':'bar'}");
        payload.extend_from_slice(&[0xc3, 0x65, 0x39, 0x36]);
        assert_eq!(frames(&[&payload]), (vec![(None, "{'foo':'bar'}".to_owned())], Ok(())));
    }

    #[test]
    fn headers_of_every_type_are_stepped_over() {
        let mut headers = Vec::new();
        for (kind, value) in [
            (0, &b""[..]),
            (1, b""),
            (2, b"1"),
            (3, b"12"),
            (4, b"1234"),
            (5, b"12345678"),
            (6, b"\x00\x02ab"),
            (8, b"12345678"),
            (9, b"0123456789abcdef"),
        ] {
            headers.extend_from_slice(b"\x01x");
            headers.push(kind);
            headers.extend_from_slice(value);
        }
        headers.extend_from_slice(b"\x0b:event-type\x07\x00\x04name");
        assert_eq!(frames(&[&framed(&headers, b"{}")]), (vec![(Some("name".to_owned()), "{}".to_owned())], Ok(())));
        for wrong in [&b"\x01x\x0a"[..], b"\x05x", b"\x01x\x07\x00\x09abc", b"\x01x", b"\x01"] {
            assert_eq!(frames(&[&framed(wrong, b"{}")]).1, Err(Unframed::Malformed), "{wrong:?}");
        }
    }

    #[test]
    fn no_bit_can_be_turned_unseen() {
        let bytes = event("messageStop", "{\"stopReason\":\"end_turn\"}");
        for place in 0..bytes.len() * 8 {
            let mut turned = bytes.clone();
            turned[place / 8] ^= 1 << (place % 8);
            let (found, outcome) = frames(&[&turned]);
            assert_eq!((found.len(), outcome.is_err()), (0, true), "bit {place}");
        }
    }

    #[test]
    fn a_stream_that_is_cut_off_says_so() {
        let bytes = event("messageStop", "{}");
        for end in 1..bytes.len() {
            assert_eq!(frames(&[&bytes[..end]]), (vec![], Err(Unframed::Malformed)), "cut at {end}");
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_refused_before_anything_is_kept() {
        let prelude = |total: u32, headers: u32| {
            let mut out = [total.to_be_bytes(), headers.to_be_bytes()].concat();
            out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
            out
        };
        assert_eq!(frames(&[&prelude(u32::MAX, 0)]).1, Err(Unframed::TooLong));
        for (total, headers) in [(0, 0), (15, 0), (16, 1), (100, u32::MAX)] {
            assert_eq!(frames(&[&prelude(total, headers)]).1, Err(Unframed::Malformed), "{total} {headers}");
        }
    }

    #[test]
    fn after_something_malformed_nothing_is_read() {
        let (mut stream, mut each) = (EventStream::default(), |_: Frame<'_>| panic!("nothing is read"));
        assert_eq!(stream.push(&[0; 16], &mut each), Err(Unframed::Malformed));
        assert_eq!(stream.push(&event("messageStop", "{}"), &mut each), Err(Unframed::Malformed));
        assert_eq!(stream.finish(&mut each), Err(Unframed::Malformed));
    }
}
