//! Blocks of content as they are written, in requests and in answers.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

use crate::ai::chat::{self, CacheMark};
use crate::ai::formats::arguments::Arguments;
use crate::ai::tool_ids;

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block<'a> {
    Text {
        text: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<CacheControl>,
    },
    Image {
        source: Source<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<CacheControl>,
    },
    Document {
        source: Source<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        title: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<CacheControl>,
    },
    ToolUse {
        id: Cow<'a, str>,
        name: &'a str,
        input: Arguments<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<CacheControl>,
    },
    ToolResult {
        tool_use_id: Cow<'a, str>,
        #[serde(skip_serializing_if = "Content::is_empty")]
        content: Content<'a>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        is_error: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<CacheControl>,
    },
    Thinking {
        thinking: &'a str,
        signature: &'a str,
    },
    RedactedThinking {
        data: &'a str,
    },
    /// One that the neutral form does not know, as the caller wrote it.
    #[serde(untagged)]
    Carried(&'a Value),
}

/// A list of blocks; a text that stands alone is written as a string, as everybody does.
pub(super) struct Content<'a>(pub Vec<Block<'a>>);

impl Content<'_> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Content<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [Block::Text { text, cache_control: None }] => to.serialize_str(text),
            blocks => to.collect_seq(blocks),
        }
    }
}

#[derive(Clone, Copy, Serialize)]
pub(super) struct CacheControl {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<&'static str>,
}

impl CacheControl {
    pub fn of(mark: Option<CacheMark>) -> Option<CacheControl> {
        mark.map(|mark| CacheControl { kind: "ephemeral", ttl: mark.long.then_some("1h") })
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Source<'a> {
    Base64 { media_type: &'a str, data: &'a str },
    Url { url: &'a str },
    File { file_id: &'a str },
    Text { media_type: &'static str, data: String },
}

impl<'a> Source<'a> {
    pub fn of(source: &'a chat::Source) -> Source<'a> {
        match source {
            chat::Source::Url(url) => Source::Url { url },
            chat::Source::Data { media_type, base64 } => Source::Base64 { media_type, data: base64 },
            chat::Source::File { id } => Source::File { file_id: id },
        }
    }
}

/// An id of letters, digits, `_` and `-`, which is all that Anthropic takes; without what another provider has put into it.
pub(super) fn tool_id(id: &str) -> Cow<'_, str> {
    let id = tool_ids::bare(id);
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
    match id.chars().all(allowed) {
        true => Cow::Borrowed(id),
        false => Cow::Owned(id.chars().map(|letter| if allowed(letter) { letter } else { '_' }).collect()),
    }
}
