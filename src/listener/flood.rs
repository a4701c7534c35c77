//! Counts the frames of an HTTP/2 client that cost us work and carry nothing: resets, pings, settings, empty data,
//! endless header continuations.
//!
//! The h2 library answers each of them faithfully. A client whose such frames are far more than its streams and its
//! data explain is flooding us (RFC 9113, section 10.5; CVE-2023-44487, CVE-2024-27316, CVE-2025-8671).

use std::time::{Duration, Instant};

const PREFACE: usize = 24;
const HEADER: usize = 9;

/// Frames of no content that are free in each window.
const FREE: u32 = 1000;
const WINDOW: Duration = Duration::from_secs(10);
/// Most that an honest past can earn for later.
const MOST_EARNED: u32 = 1 << 16;
/// Bytes that explain one more control frame of the client: window updates and pings keep pace with a download.
const BYTES_PER_FRAME: usize = 512;
/// Continuation frames that one header block may have: far more than 64 KiB of headers need.
const CONTINUATIONS: u32 = 16;

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const CONTINUATION: u8 = 9;
}
const END_STREAM: u8 = 1;

/// Follows the frames that come from a client, in whatever pieces.
#[derive(Debug)]
pub(super) struct FrameWatch {
    /// How much of the connection preface has not come.
    preface: usize,
    header: [u8; HEADER],
    have: usize,
    /// How much of the payload has not come.
    payload: usize,
    free: u32,
    window: Option<Instant>,
    /// Control frames explained by what we sent.
    earned: u32,
    /// Requests that no reset has been set against. Two requests explain one reset.
    streams: u32,
    continuations: u32,
}

impl Default for FrameWatch {
    fn default() -> Self {
        FrameWatch {
            preface: PREFACE,
            header: [0; HEADER],
            have: 0,
            payload: 0,
            free: FREE,
            window: None,
            earned: 0,
            streams: 0,
            continuations: 0,
        }
    }
}

impl FrameWatch {
    pub fn preface_received(&self) -> bool {
        self.preface == 0
    }

    /// Takes the next bytes; false if the client floods us.
    pub fn take(&mut self, mut bytes: &[u8]) -> bool {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if self.payload > 0 {
                let n = self.payload.min(bytes.len());
                self.payload -= n;
                bytes = &bytes[n..];
                continue;
            }
            let n = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have == HEADER {
                self.have = 0;
                if !self.frame() {
                    return false;
                }
            }
        }
        true
    }

    /// Bytes were sent to the client.
    pub fn sent(&mut self, bytes: usize) {
        let explained = (bytes / BYTES_PER_FRAME).min(MOST_EARNED as usize) as u32;
        self.earned = (self.earned + explained).min(MOST_EARNED);
    }

    fn frame(&mut self) -> bool {
        let [a, b, c, kind, flags, ..] = self.header;
        self.payload = u32::from_be_bytes([0, a, b, c]) as usize;
        match kind {
            kind::HEADERS => {
                self.continuations = 0;
                self.streams = (self.streams + 1).min(MOST_EARNED);
                true
            }
            kind::DATA if self.payload > 0 || flags & END_STREAM != 0 => true,
            kind::CONTINUATION => {
                self.continuations += 1;
                self.continuations <= CONTINUATIONS && self.charge()
            }
            kind::RST_STREAM if self.streams >= 2 => {
                self.streams -= 2;
                true
            }
            kind::RST_STREAM => self.charge(),
            _ if self.earned > 0 => {
                self.earned -= 1;
                true
            }
            _ => self.charge(),
        }
    }

    /// Takes one of the free frames of this window.
    fn charge(&mut self) -> bool {
        if self.free == 0 {
            let now = Instant::now();
            if self.window.is_some_and(|begun| now.duration_since(begun) < WINDOW) {
                return false;
            }
            self.window = Some(now);
            self.free = FREE;
        } else if self.window.is_none() {
            self.window = Some(Instant::now());
        }
        self.free -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let mut frame = (payload as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        frame.resize(HEADER + payload, 0);
        frame
    }

    fn begun() -> FrameWatch {
        let mut watch = FrameWatch::default();
        assert!(watch.take(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") && watch.preface_received());
        watch
    }

    /// How many rounds of these frames are let through, up to 100,000.
    fn survives(frames: &[Vec<u8>]) -> usize {
        let mut watch = begun();
        let round = frames.concat();
        (0..100_000).take_while(|_| watch.take(&round)).count()
    }

    #[test]
    fn floods_are_seen() {
        const PING: u8 = 6;
        const SETTINGS: u8 = 4;
        for (name, frames) in [
            ("ping", vec![frame(PING, 0, 8)]),
            ("settings", vec![frame(SETTINGS, 0, 6)]),
            ("priority", vec![frame(2, 0, 5)]),
            ("window update", vec![frame(8, 0, 4)]),
            ("empty data", vec![frame(kind::DATA, 0, 0)]),
            ("rapid reset", vec![frame(kind::HEADERS, 5, 20), frame(kind::RST_STREAM, 0, 4)]),
            ("empty continuation", vec![frame(kind::CONTINUATION, 0, 0)]),
            ("continuation", vec![frame(kind::CONTINUATION, 0, 1000)]),
            ("unknown", vec![frame(200, 0, 0)]),
        ] {
            let rounds = survives(&frames);
            assert!(rounds <= 2 * FREE as usize + 1, "{name}: {rounds} rounds");
        }
    }

    #[test]
    fn honest_traffic_passes() {
        let request = frame(kind::HEADERS, 4, 50);
        assert_eq!(survives(&[request.clone(), frame(kind::DATA, 0, 9000), frame(kind::DATA, 1, 0)]), 100_000);
        assert_eq!(survives(&[request.clone(), request, frame(kind::RST_STREAM, 0, 4)]), 100_000, "half are cancelled");
    }

    #[test]
    fn a_download_explains_its_window_updates() {
        let mut watch = begun();
        for _ in 0..100_000 {
            watch.sent(16 << 10);
            assert!(watch.take(&frame(8, 0, 4)) && watch.take(&frame(8, 0, 4)));
        }
    }

    #[test]
    fn frames_are_followed_in_any_pieces() {
        let bytes = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 18), &frame(kind::DATA, 0, 300)].concat();
        for cut in 0..bytes.len() {
            let mut watch = FrameWatch::default();
            assert!(watch.take(&bytes[..cut]) && watch.take(&bytes[cut..]));
            assert_eq!((watch.have, watch.payload, watch.free), (0, 0, FREE - 1), "cut at {cut}");
        }
    }
}
