//! An answer in words of no dialect, and the trait that dialects write it with.

use bytes::Bytes;
use serde_json::{Value, json};

use super::asked::{Asked, Choice};
use super::example;
use super::script::{Content, Ending, Script, Usage};

/// What the provider says.
pub struct Said<'s> {
    /// As the request names it.
    pub model: &'s str,
    pub parts: Vec<Part>,
    pub ending: Ending,
    pub usage: Option<Usage>,
    /// Whether a stream tells its usage, where the dialect leaves that to the caller.
    pub stream_usage: bool,
}

pub enum Part {
    Thought { pieces: Vec<String>, signature: &'static str },
    Text { pieces: Vec<String> },
    Tool { id: String, name: String, pieces: Vec<String> },
}

impl Part {
    pub fn whole(&self) -> String {
        match self {
            Part::Thought { pieces, .. } | Part::Text { pieces } | Part::Tool { pieces, .. } => pieces.concat(),
        }
    }
}

/// An event of a stream, with its framing.
pub struct Event {
    pub bytes: Vec<u8>,
    /// Whether it holds a piece of the answer, and not only news of it.
    pub content: bool,
}

impl Event {
    pub fn data(document: &Value, content: bool) -> Event {
        Event { bytes: format!("data: {document}\n\n").into_bytes(), content }
    }

    /// With the name that is also in the document.
    pub fn named(document: &Value, content: bool) -> Event {
        let name = document["type"].as_str().unwrap_or_default();
        Event { bytes: format!("event: {name}\ndata: {document}\n\n").into_bytes(), content }
    }
}

/// How a dialect says it.
pub trait Dialect: Sync {
    fn asked(&self, request: &Value) -> Asked;
    fn whole(&self, said: &Said<'_>) -> Value;
    fn stream(&self, said: &Said<'_>) -> Vec<Event>;
    fn error(&self, status: u16, message: &str) -> Value;
    fn error_event(&self, status: u16, message: &str) -> Event;
}

const SENTENCE: &str = "Hello! This answer comes from a script, the same each time.";
const CHARACTERS: &str = "Grüße aus Köln: 你好, 🌍 und ein Gruß – zurück.";
pub const THOUGHT: &str = "The caller wants an answer, so there will be one.";
/// Base64, as providers' are.
pub const SIGNATURE: &str = "c2lnbmF0dXJlIG9mIGEgdGhvdWdodA==";

impl<'s> Said<'s> {
    pub fn of(script: &Script, model: &'s str, asked: Option<&Asked>, stream_usage: bool) -> Said<'s> {
        let mut parts = Vec::new();
        if script.reasoning {
            parts.push(Part::Thought { pieces: words(THOUGHT), signature: SIGNATURE });
        }
        match tools(script, asked) {
            Some(tools) => parts.extend(tools),
            None => parts.push(Part::Text { pieces: text(script, asked) }),
        }
        Said { model, parts, ending: script.ending, usage: script.usage, stream_usage }
    }

    /// Makes text longer, so that an answer has a certain length.
    pub fn lengthen(&mut self, by: usize) {
        if let Some(Part::Text { pieces }) = self.parts.last_mut() {
            pieces.push("x".repeat(by));
        }
    }

    pub fn calls_tools(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Tool { .. }))
    }
}

fn text(script: &Script, asked: Option<&Asked>) -> Vec<String> {
    if let Some(bytes) = script.giant {
        return vec!["x".repeat(bytes)];
    }
    if let Some(count) = script.events {
        return (0..count).map(|n| format!("word {n} ")).collect();
    }
    let (content, asked) = (script.content, asked);
    match (content, asked) {
        (Content::Utf8, _) => words(CHARACTERS),
        (Content::Tools, Some(asked)) if !asked.results.is_empty() => {
            words(&format!("The tools said: {}.", asked.results.join("; ")))
        }
        (Content::Json, asked) => {
            let schema = asked.and_then(|asked| asked.schema.as_ref());
            let document = schema.map_or_else(|| json!({ "answer": 42 }), example::of);
            words(&document.to_string())
        }
        (Content::Echo, Some(asked)) => words(&asked.told().to_string()),
        _ => words(SENTENCE),
    }
}

/// `None` if no tool is to be called.
fn tools(script: &Script, asked: Option<&Asked>) -> Option<Vec<Part>> {
    // Where there is no schema for answers, a tool that has to be called stands in for it.
    let forced = |asked: &&Asked| asked.schema.is_none() && matches!(asked.choice, Choice::Any | Choice::Tool(_));
    let asked = asked.filter(|asked| match script.content {
        Content::Tools => true,
        Content::Json => forced(asked),
        _ => false,
    })?;
    if !asked.results.is_empty() || asked.choice == Choice::None || asked.tools.is_empty() {
        return None;
    }
    let wanted = asked.tools.iter().filter(|(name, _)| match &asked.choice {
        Choice::Tool(only) => name == only,
        _ => true,
    });
    let most = if asked.parallel { usize::MAX } else { 1 };
    let call = |(number, (name, schema)): (usize, &(String, Value))| {
        let arguments = example::of(schema).to_string();
        let pieces = match script.pieces {
            Some(count) => cut(&arguments, count),
            None => cut(&arguments, 3),
        };
        Part::Tool { id: format!("call_{}_{name}", number + 1), name: name.clone(), pieces }
    };
    Some(wanted.take(most).enumerate().map(call).collect())
}

/// Each word with the space before it.
fn words(text: &str) -> Vec<String> {
    text.split_inclusive(' ').map(str::to_owned).collect()
}

/// About as many pieces as asked for, none of them empty.
fn cut(text: &str, count: usize) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    let length = characters.len().div_ceil(count.max(1)).max(1);
    characters.chunks(length).map(|piece| piece.iter().collect()).collect()
}

/// A whole answer or a stream, ready to be sent.
pub struct Prepared {
    pub status: u16,
    pub content_type: &'static str,
    /// One piece for a whole answer; of a stream, one for each event.
    pub pieces: Vec<Bytes>,
    /// How many of them come before what happens midway.
    pub half: usize,
    /// Whether they are sent as chunks, and not with their length.
    pub streamed: bool,
}
