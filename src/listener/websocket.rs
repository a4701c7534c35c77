//! Follows the frames that go to a WebSocket client, to find a place where a close frame may stand.

/// Close with status 1001, going away (RFC 6455, sections 5.5.1 and 7.4.1).
pub(super) const GOING_AWAY: &[u8] = &[0x88, 0x02, 0x03, 0xe9];

/// Takes the bytes that are written to a client, from the head of the 101 answer on, in whatever pieces.
#[derive(Debug, Clone)]
pub(super) enum Frames {
    /// In the head of the answer; how much of its end, CRLF CRLF, has been seen.
    Head(u8),
    /// In the header of a frame.
    Header { bytes: [u8; 10], have: u8 },
    /// This much of a payload is left.
    Payload(u64),
}

const FRAME: Frames = Frames::Header { bytes: [0; 10], have: 0 };

impl Frames {
    pub fn new() -> Self {
        Frames::Head(0)
    }

    pub fn at_boundary(&self) -> bool {
        matches!(self, Frames::Header { have: 0, .. })
    }

    pub fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = self.step(bytes);
            bytes = &bytes[n..];
        }
    }

    /// How many of these bytes go before the first place between two frames.
    pub fn until_boundary(&self, bytes: &[u8]) -> Option<usize> {
        let mut frames = self.clone();
        let mut taken = 0;
        while taken < bytes.len() {
            taken += frames.step(&bytes[taken..]);
            if frames.at_boundary() {
                return Some(taken);
            }
        }
        None
    }

    /// Takes at least one byte and at most up to the end of a frame.
    fn step(&mut self, bytes: &[u8]) -> usize {
        match self {
            Frames::Head(seen) => {
                *seen = match (*seen, bytes[0]) {
                    (0 | 2, b'\r') | (1 | 3, b'\n') => *seen + 1,
                    (_, b'\r') => 1,
                    _ => 0,
                };
                if *seen == 4 {
                    *self = FRAME;
                }
                1
            }
            Frames::Header { bytes: header, have } => {
                header[*have as usize] = bytes[0];
                *have += 1;
                if let Some(payload) = payload_length(&header[..*have as usize]) {
                    *self = if payload == 0 { FRAME } else { Frames::Payload(payload) };
                }
                1
            }
            Frames::Payload(left) => {
                let n = (*left).min(bytes.len() as u64);
                *left -= n;
                if *left == 0 {
                    *self = FRAME;
                }
                n as usize
            }
        }
    }
}

/// The length of what follows a frame header, the mask included; `None` if the header is not complete.
fn payload_length(header: &[u8]) -> Option<u64> {
    let second = *header.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let length = match second & 0x7f {
        126 => u64::from(u16::from_be_bytes(header.get(2..4)?.try_into().ok()?)),
        127 => u64::from_be_bytes(header.get(2..10)?.try_into().ok()?),
        short => u64::from(short),
    };
    Some(length.saturating_add(mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\nX: \r\r\n\r\n".to_vec();
        let mut boundaries = vec![bytes.len()];
        let mut frame = |header: &[u8], payload: usize| {
            bytes.extend_from_slice(header);
            bytes.extend(std::iter::repeat_n(0x81, payload));
            boundaries.push(bytes.len());
        };
        frame(&[0x81, 5], 5);
        frame(&[0x89, 0], 0);
        frame(&[0x82, 126, 0x01, 0x00], 256);
        frame(&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0], 65536);
        frame(&[0x81, 0x83], 4 + 3);
        (bytes, boundaries)
    }

    #[test]
    fn frame_boundaries_are_found_byte_by_byte() {
        let (bytes, boundaries) = stream();
        let mut frames = Frames::new();
        for (i, byte) in bytes.iter().enumerate() {
            frames.take(&[*byte]);
            assert_eq!(frames.at_boundary(), boundaries.contains(&(i + 1)), "after {} bytes", i + 1);
        }
    }

    #[test]
    fn the_next_boundary_in_a_piece_is_found() {
        let (bytes, boundaries) = stream();
        let mut frames = Frames::new();
        let mut at = 0;
        for boundary in &boundaries {
            let next = frames.until_boundary(&bytes[at..]).unwrap();
            assert_eq!(at + next, *boundary);
            assert_eq!(frames.until_boundary(&bytes[at..boundary - 1]), None);
            frames.take(&bytes[at..*boundary]);
            at = *boundary;
        }
    }
}
