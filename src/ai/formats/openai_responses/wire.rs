//! The JSON of items, which requests and answers share: read loosely, written strictly.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::SIGNATURE;
use crate::ai::chat::{Thought, Usage};
use crate::ai::formats::tolerant;

/// A text, or a list in its place.
#[derive(Debug)]
pub enum TextOr<'w, T> {
    Text(Cow<'w, str>),
    List(Vec<T>),
}

impl<T> Default for TextOr<'_, T> {
    fn default() -> Self {
        TextOr::List(Vec::new())
    }
}

impl<'de: 'w, 'w, T: Deserialize<'de>> Deserialize<'de> for TextOr<'w, T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either<'w, T>(PhantomData<(&'w (), T)>);
        impl<'de: 'w, 'w, T: Deserialize<'de>> Visitor<'de> for Either<'w, T> {
            type Value = TextOr<'w, T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(Cow::Owned(text.to_owned())))
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(TextOr::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(items)).map(TextOr::List)
            }
        }
        from.deserialize_any(Either(PhantomData))
    }
}

/// An item of any type: those of its fields that any known type has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Item<'w> {
    #[serde(borrow, rename = "type", deserialize_with = "tolerant::text")]
    pub kind: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub role: Option<Cow<'w, str>>,
    #[serde(borrow)]
    pub content: TextOr<'w, Content<'w>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub id: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub call_id: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub name: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::raw")]
    pub arguments: Option<Cow<'w, RawValue>>,
    #[serde(borrow)]
    pub output: TextOr<'w, Content<'w>>,
    #[serde(borrow, deserialize_with = "tolerant::list")]
    pub summary: Vec<Content<'w>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub encrypted_content: Option<Cow<'w, str>>,
    /// Of an image that was made.
    #[serde(borrow, deserialize_with = "tolerant::raw")]
    pub result: Option<Cow<'w, RawValue>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub output_format: Option<Cow<'w, str>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Content<'w> {
    #[serde(borrow, rename = "type", deserialize_with = "tolerant::text")]
    pub kind: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub text: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub refusal: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub image_url: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub detail: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub file_id: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub file_data: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub file_url: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub filename: Option<Cow<'w, str>>,
    #[serde(borrow)]
    pub input_audio: Option<Audio<'w>>,
    pub prompt_cache_breakpoint: Option<Breakpoint>,
    pub annotations: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Audio<'w> {
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub data: Option<Cow<'w, str>>,
    #[serde(borrow, deserialize_with = "tolerant::text")]
    pub format: Option<Cow<'w, str>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Breakpoint {
    pub ttl: Option<String>,
}

impl Item<'_> {
    /// Its type; a message may go without.
    pub fn kind(&self) -> &str {
        match (self.kind.as_deref(), &self.role) {
            (Some(kind), _) => kind,
            (None, Some(_)) => "message",
            (None, None) => "",
        }
    }

    /// The arguments of a call as text. They are a JSON string that holds a document; some write the document.
    pub fn arguments(&self) -> String {
        let Some(arguments) = &self.arguments else { return String::new() };
        match serde_json::from_str::<String>(arguments.get()) {
            Ok(text) => text,
            Err(_) => arguments.get().to_owned(),
        }
    }

    /// The thought that an item of reasoning is.
    pub fn thought(self) -> Thought {
        let texts = |contents: &[Content<'_>]| {
            let texts: Vec<&str> = contents.iter().filter_map(|content| content.text.as_deref()).collect();
            texts.join(BETWEEN_THOUGHTS)
        };
        let text = match (texts(&self.summary), &self.content) {
            (summary, TextOr::List(contents)) if summary.is_empty() => texts(contents),
            (summary, _) => summary,
        };
        match self.encrypted_content.as_deref() {
            None | Some("") => Thought { text, ..Thought::default() },
            Some(content) => match content.strip_prefix(SIGNATURE) {
                Some(signature) => Thought { text, signature: Some(signature.to_owned()), encrypted: None },
                None => Thought { text, signature: None, encrypted: Some(content.to_owned()) },
            },
        }
    }
}

/// Between the texts of one summary, which are one thought.
pub const BETWEEN_THOUGHTS: &str = "\n\n";

/// The `encrypted_content` of a thought.
pub fn encrypted_content(signature: Option<&str>, encrypted: Option<&str>) -> Option<String> {
    match (signature, encrypted) {
        (_, Some(encrypted)) => Some(encrypted.to_owned()),
        (Some(signature), None) => Some([SIGNATURE, signature].concat()),
        (None, None) => None,
    }
}

/// An item of an answer, and with it of a request that replays it.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutItem<'w> {
    Message {
        id: &'w str,
        status: &'static str,
        role: &'static str,
        content: Vec<OutContent<'w>>,
    },
    FunctionCall {
        id: &'w str,
        status: &'static str,
        call_id: &'w str,
        name: &'w str,
        arguments: &'w str,
    },
    Reasoning {
        id: &'w str,
        summary: Vec<OutContent<'w>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        encrypted_content: Option<String>,
    },
    ImageGenerationCall {
        id: &'w str,
        status: &'static str,
        result: Option<&'w str>,
    },
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutContent<'w> {
    OutputText { annotations: [(); 0], logprobs: [(); 0], text: &'w str },
    Refusal { refusal: &'w str },
    SummaryText { text: &'w str },
}

impl<'w> OutContent<'w> {
    pub fn text(text: &'w str) -> OutContent<'w> {
        OutContent::OutputText { annotations: [], logprobs: [], text }
    }
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct WrittenUsage {
    #[serde(deserialize_with = "tolerant::integer")]
    input_tokens: Option<i64>,
    #[serde(deserialize_with = "tolerant::default")]
    input_tokens_details: InputDetails,
    #[serde(deserialize_with = "tolerant::integer")]
    output_tokens: Option<i64>,
    #[serde(deserialize_with = "tolerant::default")]
    output_tokens_details: OutputDetails,
    #[serde(deserialize_with = "tolerant::integer")]
    total_tokens: Option<i64>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
struct InputDetails {
    #[serde(deserialize_with = "tolerant::integer")]
    cached_tokens: Option<i64>,
    #[serde(deserialize_with = "tolerant::integer")]
    cache_write_tokens: Option<i64>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
struct OutputDetails {
    #[serde(deserialize_with = "tolerant::integer")]
    reasoning_tokens: Option<i64>,
}

impl From<&WrittenUsage> for Usage {
    fn from(told: &WrittenUsage) -> Usage {
        let count = |tokens: Option<i64>| tokens.unwrap_or(0).max(0) as u64;
        Usage {
            input: count(told.input_tokens),
            output: count(told.output_tokens),
            cache_read: count(told.input_tokens_details.cached_tokens),
            cache_write: count(told.input_tokens_details.cache_write_tokens),
            reasoning: count(told.output_tokens_details.reasoning_tokens),
            ..Usage::default()
        }
    }
}

impl From<&Usage> for WrittenUsage {
    fn from(usage: &Usage) -> WrittenUsage {
        let tokens = |count: u64| Some(i64::try_from(count).unwrap_or(i64::MAX));
        WrittenUsage {
            input_tokens: tokens(usage.input),
            input_tokens_details: InputDetails {
                cached_tokens: tokens(usage.cache_read),
                cache_write_tokens: tokens(usage.cache_write),
            },
            output_tokens: tokens(usage.output),
            output_tokens_details: OutputDetails { reasoning_tokens: tokens(usage.reasoning) },
            total_tokens: tokens(usage.input.saturating_add(usage.output)),
        }
    }
}
