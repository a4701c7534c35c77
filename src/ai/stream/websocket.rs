//! Messages of a WebSocket (RFC 6455), read as they pass by. Memory is bounded: a longer message is passed over.

/// The longest message that is read.
const LONGEST: usize = 256 << 10;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;

/// Reads what a server sends, without extensions.
#[derive(Default)]
pub struct Messages {
    /// The head of a frame, as far as it has come.
    head: Vec<u8>,
    /// Of the frame's payload, what has not come.
    left: u64,
    masked: Option<[u8; 4]>,
    at: usize,
    /// The message of the frames so far; of one that is too long nothing.
    message: Vec<u8>,
    data: bool,
    last: bool,
    too_long: bool,
    inside: bool,
}

impl Messages {
    /// Takes more bytes and calls `each` with every message that is complete with them.
    pub fn push(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(&[u8])) {
        loop {
            if !self.inside {
                bytes = match self.head(bytes) {
                    Some(rest) => rest,
                    None => return,
                };
            }
            let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (payload, rest) = bytes.split_at(take);
            self.payload(payload);
            self.left -= take as u64;
            bytes = rest;
            if self.left > 0 {
                return;
            }
            self.inside = false;
            if self.data && self.last {
                if !self.too_long {
                    each(&self.message);
                }
                self.message = Vec::new();
                self.too_long = false;
            }
        }
    }

    /// Reads the head of a frame; `None` if it is not complete.
    fn head<'b>(&mut self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let mut rest = bytes;
        loop {
            if let Some(length) = self.head_length()
                && self.head.len() == length
            {
                break;
            }
            let (byte, after) = rest.split_first()?;
            self.head.push(*byte);
            rest = after;
        }
        let head = std::mem::take(&mut self.head);
        let (first, second) = (head.first().copied()?, head.get(1).copied()?);
        let masked = second & 0x80 != 0;
        let mask_at = head.len() - if masked { 4 } else { 0 };
        let extended = head.get(2..mask_at)?;
        self.left = match second & 0x7f {
            126 | 127 => extended.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
            length => u64::from(length),
        };
        self.masked = head.get(mask_at..).and_then(|mask| mask.try_into().ok());
        self.at = 0;
        self.last = first & 0x80 != 0;
        self.data = matches!(first & 0x0f, CONTINUATION | TEXT | BINARY);
        self.inside = true;
        Some(rest)
    }

    /// How long the head is, once that is known.
    fn head_length(&self) -> Option<usize> {
        let second = self.head.get(1)?;
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        Some(2 + extended + if second & 0x80 != 0 { 4 } else { 0 })
    }

    fn payload(&mut self, payload: &[u8]) {
        if !self.data || self.too_long {
            return;
        }
        if self.message.len() + payload.len() > LONGEST {
            self.too_long = true;
            self.message = Vec::new();
            return;
        }
        let start = self.message.len();
        self.message.extend_from_slice(payload);
        if let Some(mask) = self.masked {
            let fresh = self.message.iter_mut().skip(start);
            let mask = mask.iter().cycle().skip(self.at % 4);
            fresh.zip(mask).for_each(|(byte, mask)| *byte ^= mask);
        }
        self.at += payload.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(length as u8),
            length @ 126..65536 => {
                frame.push(126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                frame.push(127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(payload);
        frame
    }

    fn read(bytes: &[u8], piece: usize) -> Vec<usize> {
        let (mut messages, mut read) = (Messages::default(), Vec::new());
        bytes.chunks(piece).for_each(|piece| messages.push(piece, &mut |message| read.push(message.len())));
        read
    }

    #[test]
    fn messages_are_read_however_they_are_cut() {
        let long = vec![b'x'; LONGEST + 1];
        let bytes = [
            frame(0x81, b"one"),
            frame(0x01, b"in "),
            frame(0x89, b"a ping between"),
            frame(0x80, b"two frames"),
            frame(0x82, &[b'y'; 70_000]),
            frame(0x81, &long),
            frame(0x81, b""),
            frame(0x88, b"\x03\xe8"),
        ]
        .concat();
        for piece in [1, 2, 3, 1000, bytes.len()] {
            assert_eq!(read(&bytes, piece), [3, 13, 70_000, 0], "pieces of {piece}");
        }
    }

    #[test]
    fn a_masked_message_is_read_too() {
        let frame = [0x81, 0x85, 1, 2, 3, 4, b'h' ^ 1, b'e' ^ 2, b'l' ^ 3, b'l' ^ 4, b'o' ^ 1];
        for piece in [1, 2, 11] {
            let (mut messages, mut said) = (Messages::default(), Vec::new());
            frame.chunks(piece).for_each(|piece| messages.push(piece, &mut |message| said = message.to_vec()));
            assert_eq!(said, b"hello");
        }
    }
}
