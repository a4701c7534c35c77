//! Server-sent events with their ids, by which a stream that broke off can be taken up again.

use memchr::memchr2;

/// One event: a message in `data`, or none in an event that only says where the stream stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    pub id: Option<String>,
    pub data: Vec<u8>,
    /// How long to wait before the stream is taken up again, in milliseconds.
    pub retry: Option<u64>,
}

/// An event, or what has come of one, is longer than is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

/// Finds events in the pieces of a stream (WHATWG HTML, section 9.2).
pub struct Events {
    longest: usize,
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    /// The last byte was a carriage return: a line feed after it belongs to it.
    after_return: bool,
}

impl Events {
    pub fn new(longest: usize) -> Events {
        Events { longest, line: Vec::new(), event: Event::default(), has_data: false, after_return: false }
    }

    /// Takes a piece and calls `each` with the events that are complete with it.
    pub fn push(&mut self, mut bytes: &[u8], each: &mut impl FnMut(Event)) -> Result<(), TooLong> {
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = memchr2(b'\n', b'\r', bytes);
            self.line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
            if self.line.len() + self.event.data.len() > self.longest {
                return Err(TooLong);
            }
            let Some(end) = end else { break };
            self.after_return = bytes[end] == b'\r';
            let line = std::mem::take(&mut self.line);
            self.take_line(&line, each);
            bytes = &bytes[end + 1..];
        }
        Ok(())
    }

    fn take_line(&mut self, line: &[u8], each: &mut impl FnMut(Event)) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) || event.id.is_some() {
                each(event);
            }
            return;
        }
        let (name, value) = match memchr::memchr(b':', line) {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &line[line.len()..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let text = || std::str::from_utf8(value).ok();
        match name {
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push(b'\n');
                }
                self.event.data.extend_from_slice(value);
            }
            // What a header cannot hold could not be sent back.
            b"id" => {
                self.event.id = text()
                    .filter(|id| id.len() <= 1024 && id.bytes().all(|b| (0x20..0x7f).contains(&b)))
                    .map(str::to_owned)
            }
            b"retry" => self.event.retry = text().and_then(|retry| retry.parse().ok()),
            _ => {}
        }
    }
}

impl Event {
    /// Appends the event.
    pub fn write(&self, out: &mut Vec<u8>) {
        if let Some(id) = &self.id {
            out.extend_from_slice(b"id: ");
            out.extend_from_slice(id.as_bytes());
            out.push(b'\n');
        }
        if let Some(retry) = self.retry {
            out.extend_from_slice(format!("retry: {retry}\n").as_bytes());
        }
        if !self.data.is_empty() {
            out.extend_from_slice(b"event: message\n");
        }
        for line in self.data.split(|byte| *byte == b'\n') {
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pieces: &[&[u8]]) -> Vec<Event> {
        let (mut events, mut found) = (Events::new(1000), Vec::new());
        for piece in pieces {
            events.push(piece, &mut |event| found.push(event)).unwrap();
        }
        found
    }

    #[test]
    fn events_are_the_same_wherever_the_stream_is_cut_and_however_lines_end() {
        let unix = ": hello\n\nid: 1\nretry: 500\ndata: \n\nevent: message\nid: a_2\ndata: {\"x\": \"\u{e9}\"}\n\ndata:1\ndata: 2\n\nid: \u{e9}\n\ndata: unfinished";
        let want = [
            Event { id: Some("1".into()), data: Vec::new(), retry: Some(500) },
            Event { id: Some("a_2".into()), data: "{\"x\": \"\u{e9}\"}".into(), retry: None },
            Event { id: None, data: b"1\n2".into(), retry: None },
        ];
        for text in [unix.to_owned(), unix.replace('\n', "\r\n"), unix.replace('\n', "\r")] {
            for cut in 0..=text.len() {
                assert_eq!(
                    found(&[&text.as_bytes()[..cut], &text.as_bytes()[cut..]]),
                    want,
                    "cut at {cut} of {text:?}"
                );
            }
        }
        let mut written = Vec::new();
        want.iter().for_each(|event| event.write(&mut written));
        assert_eq!(found(&[&written]), want, "{}", String::from_utf8_lossy(&written));
    }

    #[test]
    fn an_event_without_an_end_is_given_up() {
        let mut events = Events::new(100);
        let long = [b'x'; 101];
        assert_eq!(events.push(&long, &mut |_| ()), Err(TooLong));
        let mut events = Events::new(100);
        let taken = (0..100).try_for_each(|_| events.push(b"data: 0123456789\n", &mut |_| ()));
        assert_eq!(taken, Err(TooLong));
    }
}
