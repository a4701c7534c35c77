//! Server-sent events, as the WHATWG HTML standard (section 9.2) frames them.

use memchr::memchr2;

use super::{Deframer, Frame, LONGEST, Unframed};

/// Reads events. Comments, `id` and `retry` are skipped, every kind of line end is taken.
#[derive(Default)]
pub struct Sse {
    /// A line that has not ended yet.
    line: Vec<u8>,
    /// Of the event that has not ended yet.
    event: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a carriage return: a line feed after it belongs to it.
    after_return: bool,
    begun: bool,
}

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

impl Deframer for Sse {
    fn push(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = memchr2(b'\n', b'\r', bytes) else {
                self.line.extend_from_slice(bytes);
                break;
            };
            self.after_return = bytes[end] == b'\r';
            match self.line.is_empty() {
                true => self.take_line(&bytes[..end], each),
                false => {
                    let mut line = std::mem::take(&mut self.line);
                    line.extend_from_slice(&bytes[..end]);
                    self.take_line(&line, each);
                    line.clear();
                    self.line = line;
                }
            }
            bytes = &bytes[end + 1..];
        }
        match self.line.len() + self.data.len() > LONGEST {
            true => Err(Unframed::TooLong),
            false => Ok(()),
        }
    }

    fn finish(&mut self, each: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.take_line(&line, each);
        }
        self.dispatch(each);
        Ok(())
    }
}

impl Sse {
    fn take_line(&mut self, mut line: &[u8], each: &mut dyn FnMut(Frame<'_>)) {
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch(each);
        }
        let (name, value) = match memchr::memchr(b':', line) {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &line[line.len()..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"event" => {
                self.event.clear();
                self.event.extend_from_slice(value);
            }
            _ => {}
        }
    }

    fn dispatch(&mut self, each: &mut dyn FnMut(Frame<'_>)) {
        if std::mem::take(&mut self.has_data) {
            let event = std::str::from_utf8(&self.event).ok().filter(|event| !event.is_empty());
            each(Frame { event, data: &self.data });
        }
        self.event.clear();
        self.data.clear();
    }
}

/// Appends an event. `data` is one line, as JSON documents are.
pub fn write(event: Option<&str>, data: &[u8], out: &mut Vec<u8>) {
    if let Some(event) = event {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(event.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(pieces: &[&[u8]]) -> Vec<(Option<String>, String)> {
        let (mut sse, mut found) = (Sse::default(), Vec::new());
        let mut each = |frame: Frame<'_>| {
            found.push((frame.event.map(str::to_owned), String::from_utf8_lossy(frame.data).into_owned()));
        };
        for piece in pieces {
            sse.push(piece, &mut each).unwrap();
        }
        sse.finish(&mut each).unwrap();
        found
    }

    #[test]
    fn events_are_the_same_wherever_the_stream_is_cut_and_however_lines_end() {
        let unix = "\u{feff}: hello\n\nevent: a\ndata: {\"x\": \"\u{e9}\"}\nid: 7\n\ndata:1\ndata: 2\ndata\n\nevent: alone\n\ndata: [DONE]";
        let want = [
            (Some("a".to_owned()), "{\"x\": \"\u{e9}\"}".to_owned()),
            (None, "1\n2\n".to_owned()),
            (None, "[DONE]".to_owned()),
        ];
        for text in [unix.to_owned(), unix.replace('\n', "\r\n"), unix.replace('\n', "\r")] {
            let bytes = text.as_bytes();
            for cut in 0..=bytes.len() {
                assert_eq!(frames(&[&bytes[..cut], &bytes[cut..]]), want, "cut at {cut} of {text:?}");
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(frames(&single), want);
        }
    }

    #[test]
    fn an_event_without_an_end_is_given_up() {
        let mut sse = Sse::default();
        let piece = vec![b'x'; 1 << 20];
        let mut pushed = 0;
        while sse.push(&piece, &mut |_| panic!("there is no event")).is_ok() {
            pushed += piece.len();
        }
        assert!(pushed <= LONGEST, "{pushed}");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut out = Vec::new();
        write(Some("message_start"), b"{}", &mut out);
        write(None, b"[DONE]", &mut out);
        assert_eq!(out, b"event: message_start\ndata: {}\n\ndata: [DONE]\n\n");
        assert_eq!(frames(&[&out]), [(Some("message_start".into()), "{}".into()), (None, "[DONE]".into())]);
    }
}
