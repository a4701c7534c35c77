//! How streamed answers are framed: where one event ends and the next begins, whatever it means.
//!
//! Pieces come in as the network cuts them, and frames come out whole. Memory is bounded: a frame that is longer than
//! [`LONGEST`] ends the stream.

pub mod event_stream;
pub mod json_array;
pub mod json_lines;
pub mod reframe;
pub mod sse;
pub mod websocket;

/// The longest frame. Images come as one event of a few megabytes.
pub const LONGEST: usize = 32 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Server-sent events (WHATWG HTML, section 9.2).
    Sse,
    /// `application/vnd.amazon.eventstream`.
    EventStream,
    /// One JSON document on each line.
    JsonLines,
    /// One JSON array of documents.
    JsonArray,
}

/// One event as it was framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'f> {
    /// The event's name, where the framing has one and the sender gave it. Exceptions of AWS have their own
    /// ([`event_stream::EXCEPTION`]).
    pub event: Option<&'f str>,
    pub data: &'f [u8],
}

/// Why no more frames can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unframed {
    #[error("an event is longer than {} MiB", LONGEST >> 20)]
    TooLong,
    #[error("the stream is not framed as it says")]
    Malformed,
}

/// Finds frames in a stream of bytes.
pub trait Deframer: Send {
    /// Takes more bytes and calls `each` with every frame that is complete with them.
    fn push(&mut self, bytes: &[u8], each: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed>;

    /// The stream is over. A last frame whose end mark is missing counts if it is otherwise whole.
    fn finish(&mut self, each: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed>;
}

impl Framing {
    pub fn deframer(self) -> Box<dyn Deframer> {
        match self {
            Framing::Sse => Box::<sse::Sse>::default(),
            Framing::EventStream => Box::<event_stream::EventStream>::default(),
            Framing::JsonLines => Box::<json_lines::JsonLines>::default(),
            Framing::JsonArray => Box::<json_array::JsonArray>::default(),
        }
    }

    /// What an answer of this type is framed by. The same format is framed in several ways: Anthropic's events come as
    /// server-sent events, and wrapped into an event stream by Bedrock.
    pub fn of_content_type(content_type: &str) -> Option<Framing> {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        [Framing::Sse, Framing::EventStream, Framing::JsonLines]
            .into_iter()
            .find(|framing| essence.eq_ignore_ascii_case(framing.content_type()))
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Framing::Sse => "text/event-stream",
            Framing::EventStream => "application/vnd.amazon.eventstream",
            Framing::JsonLines => "application/x-ndjson",
            Framing::JsonArray => "application/json",
        }
    }
}
