//! Writes frames as another framing has them, what they mean left alone.

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::{Frame, Framing, json_array, sse};

/// The event of an AWS event stream that wraps one of the format's own.
pub const WRAPPED: &str = "chunk";

/// Writes one stream.
pub struct Reframer {
    into: Framing,
    begun: bool,
    ended: bool,
}

impl Reframer {
    pub fn new(into: Framing) -> Reframer {
        Reframer { into, begun: false, ended: false }
    }

    /// Appends a frame. An event that AWS has wrapped is taken out; one that cannot be is left out, as whoever reads it
    /// finds too.
    pub fn write(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) {
        if frame.event == Some(WRAPPED) {
            if let Some(event) = unwrapped(frame.data) {
                let name = named(&event);
                self.write(&Frame { event: name.as_deref(), data: &event }, out);
            }
            return;
        }
        match self.into {
            Framing::JsonArray => {
                json_array::begin(self.begun, out);
                out.extend_from_slice(frame.data);
            }
            Framing::JsonLines => {
                out.extend_from_slice(frame.data);
                out.push(b'\n');
            }
            // Nobody is sent an event stream of AWS.
            Framing::Sse | Framing::EventStream => sse::write(frame.event, frame.data, out),
        }
        self.begun = true;
    }

    /// Appends what ends the stream, once.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if self.into == Framing::JsonArray && !std::mem::replace(&mut self.ended, true) {
            if !self.begun {
                json_array::begin(false, out);
            }
            out.extend_from_slice(json_array::END);
        }
    }
}

/// What AWS wraps an event of the model's own format into.
#[derive(Deserialize)]
struct Chunk<'e> {
    #[serde(borrow)]
    bytes: Cow<'e, str>,
}

/// The event inside of a frame that is called [`WRAPPED`].
pub fn unwrapped(data: &[u8]) -> Option<Vec<u8>> {
    let chunk: Chunk<'_> = serde_json::from_slice(data).ok()?;
    BASE64_STANDARD.decode(chunk.bytes.as_bytes()).ok()
}

/// The name of an event that says it itself, as those of Anthropic do.
fn named(event: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        r#type: Option<String>,
    }
    let name = serde_json::from_slice::<Named>(event).ok()?.r#type?;
    // It becomes a line of its own.
    name.bytes().all(|byte| byte.is_ascii_graphic()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(into: Framing, frames: &[(Option<&str>, &str)]) -> String {
        let (mut reframer, mut out) = (Reframer::new(into), Vec::new());
        for (event, data) in frames {
            reframer.write(&Frame { event: *event, data: data.as_bytes() }, &mut out);
        }
        reframer.finish(&mut out);
        reframer.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_framing_is_written_and_ended() {
        let frames = [(Some("a"), "{}"), (None, "[1]")];
        assert_eq!(written(Framing::Sse, &frames), "event: a\ndata: {}\n\ndata: [1]\n\n");
        assert_eq!(written(Framing::JsonArray, &frames), "[{},\r\n[1]]");
        assert_eq!(written(Framing::JsonArray, &[]), "[]");
        assert_eq!(written(Framing::JsonLines, &frames), "{}\n[1]\n");
    }

    #[test]
    fn what_aws_has_wrapped_comes_out_under_its_own_name() {
        let wrap = |event: &str| format!(r#"{{"bytes":"{}","p":"abc"}}"#, BASE64_STANDARD.encode(event));
        let (ping, odd) = (wrap(r#"{"type":"ping"}"#), wrap(r#"{"type":"a\nb"}"#));
        let frames = [(Some("chunk"), &*ping), (Some("chunk"), r#"{"bytes":"?"}"#), (Some("chunk"), &*odd)];
        let want = "event: ping\ndata: {\"type\":\"ping\"}\n\ndata: {\"type\":\"a\\nb\"}\n\n";
        assert_eq!(written(Framing::Sse, &frames), want);
    }
}
