//! One chat call in a form that belongs to no vendor. Every wire format is read into it and written from it, so that each
//! caller's dialect reaches each provider with one module per format.
//!
//! Where vendors mean the same by different words, the words here are decided once: tokens of input include those read
//! from and written to a cache, tokens of output include reasoning, a tool's results are part of the user's next message.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::formats::Format;

/// What a caller asks of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatRequest {
    pub model: String,
    /// In the caller's order; instructions to the model (system, developer) are among them.
    pub messages: Vec<Message>,
    pub tools: Vec<Tool>,
    pub tool_choice: Option<ToolChoice>,
    /// Whether the model may call several tools at once; `None` leaves it to the model.
    pub parallel_tools: Option<bool>,
    /// The caller knows tools as OpenAI's deprecated `functions` only, and is answered in kind.
    pub legacy_functions: bool,
    pub output: Option<OutputFormat>,
    pub reasoning: Option<Reasoning>,
    /// The most tokens of the answer, reasoning included.
    pub max_tokens: Option<u64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<u64>,
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub seed: Option<i64>,
    /// Texts that end the answer where the model would write them.
    pub stop: Vec<String>,
    /// How many answers; `None` is one.
    pub choices: Option<u32>,
    pub stream: bool,
    /// Whether a streamed answer shall tell its usage, where the caller's dialect leaves that to the caller.
    pub stream_usage: bool,
    /// Who the end user is, for the provider's watch over abuse.
    pub user: Option<String>,
    /// Fields that have no place here, by their names in the caller's dialect; those inside another by their path, such as
    /// `generationConfig.mediaResolution` or `input[3]`.
    pub rest: Map<String, Value>,
    /// The dialect that `rest` is written in. Only a provider that speaks it may be given `rest`; `None` is no one's.
    pub dialect: Option<Format>,
}

impl ChatRequest {
    /// Refuses a call that goes on from what a provider keeps under an id: a provider that does not speak the caller's own
    /// dialect has nothing under it. To be asked before a call of Responses is written in another format.
    pub fn refuse_stored_state(&self) -> Result<(), Failure> {
        if self.dialect != Some(Format::OpenAiResponses) {
            return Ok(());
        }
        let stored = self.rest.iter().find(|(name, value)| match name.as_str() {
            "previous_response_id" | "conversation" | "prompt" => !value.is_null(),
            "store" | "background" => **value == Value::Bool(true),
            name if name.starts_with("input[") => value.get("type").is_some_and(|kind| kind == "item_reference"),
            _ => false,
        });
        match stored {
            Some((name, _)) => {
                let message = format!("The provider of this model keeps no responses, so `{name}` cannot be served.");
                Err(Failure::invalid(name.as_str(), message))
            }
            None => Ok(()),
        }
    }

    /// Whether a field of `rest` asks for nothing, so that leaving it out is no loss.
    pub fn says_nothing(name: &str, value: &Value) -> bool {
        match name {
            _ if value.is_null() => true,
            "store" | "background" => *value == Value::Bool(false),
            "truncation" => value == "disabled",
            "service_tier" => value == "auto" || value == "default",
            "metadata" => value.as_object().is_some_and(Map::is_empty),
            // Thoughts are always sent along.
            "include" => value.as_array().is_some_and(|all| all.iter().all(|one| one == "reasoning.encrypted_content")),
            _ => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub role: Role,
    pub parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions of the application: OpenAI's `system` and `developer`, Anthropic's and Gemini's system texts.
    System,
    /// The user, and the results of tools.
    User,
    Assistant,
}

/// A piece of a message. Pieces of an answer are of the kinds `Text`, `Reasoning`, `ToolCall`, `Refusal`, `Image`, `Audio`.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    Text {
        text: String,
        cache: Option<CacheMark>,
    },
    Image {
        source: Source,
        detail: Option<String>,
        cache: Option<CacheMark>,
    },
    /// A PDF or another document.
    Document {
        source: Source,
        name: Option<String>,
        cache: Option<CacheMark>,
    },
    Audio {
        source: Source,
    },
    Video {
        source: Source,
    },
    ToolCall(ToolCall),
    ToolResult(ToolResult),
    Reasoning(Thought),
    /// What the model says instead of an answer that it refuses.
    Refusal {
        text: String,
    },
}

/// A model's wish that a tool be called.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToolCall {
    /// Unique within the conversation. Formats without ids make one when they read. It may hold a signature, see
    /// [`tool_ids`](super::tool_ids).
    pub id: String,
    pub name: String,
    /// A JSON document as text, as the model wrote it; empty means `{}`.
    pub arguments: String,
    /// What the provider wants to see again with the call (Gemini's `thoughtSignature`).
    pub signature: Option<String>,
    pub cache: Option<CacheMark>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToolResult {
    /// The [`ToolCall::id`] it answers.
    pub id: String,
    /// The tool's name, where the dialect repeats it; else found by the id in the messages before.
    pub name: Option<String>,
    /// `Text`, `Image` and `Document` parts.
    pub content: Vec<Part>,
    pub is_error: bool,
    pub cache: Option<CacheMark>,
}

/// What the model thought, as far as the provider shows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Thought {
    pub text: String,
    /// Proves to the provider that the text is its own; replayed unchanged.
    pub signature: Option<String>,
    /// The thought in a form that only the provider can read; replayed unchanged. Gemini's begins with `gemini:`.
    pub encrypted: Option<String>,
}

/// The provider may keep the prompt up to this part for the next call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheMark {
    /// Kept for an hour instead of minutes.
    pub long: bool,
}

/// Where the bytes of an image, document or recording are.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// The provider fetches it; the gateway never does.
    Url(String),
    /// Base64, with its media type such as `image/png`.
    Data { media_type: String, base64: String },
    /// Uploaded to the provider before.
    File { id: String },
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON Schema of the arguments; `None` takes none.
    pub parameters: Option<Value>,
    /// Whether the arguments are held to the schema.
    pub strict: Option<bool>,
    pub cache: Option<CacheMark>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    Auto,
    None,
    /// Some tool has to be called.
    Any,
    /// This tool has to be called.
    Tool(String),
}

#[derive(Debug, Clone, PartialEq)]
pub enum OutputFormat {
    /// Any JSON document.
    Json,
    Schema {
        name: String,
        description: Option<String>,
        schema: Value,
        strict: Option<bool>,
    },
}

/// How much the model shall think. At most one of `effort` and `budget` is written by callers; formats derive the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reasoning {
    /// `None` if only a budget was given.
    pub effort: Option<Effort>,
    /// The most tokens of thought.
    pub budget: Option<u64>,
    /// Whether thoughts are shown, as far as the provider does; `None` leaves it to the provider.
    pub shown: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    ExtraHigh,
    Max,
}

/// A whole answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatAnswer {
    pub id: String,
    /// The model as the provider names it.
    pub model: String,
    /// Seconds since 1970; 0 if the provider does not say.
    pub created: i64,
    pub choices: Vec<Choice>,
    /// `None` if the provider did not tell.
    pub usage: Option<Usage>,
    /// What has no place here, by its path in the provider's dialect, such as `choices[0].message.annotations`.
    pub rest: Map<String, Value>,
}

impl ChatAnswer {
    /// All that the model has said, in its answers, thoughts and calls of tools.
    pub fn texts(&self) -> String {
        let mut texts = String::new();
        for part in self.choices.iter().flat_map(|choice| &choice.parts) {
            match part {
                Part::Text { text, .. } | Part::Refusal { text } => texts.push_str(text),
                Part::Reasoning(thought) => texts.push_str(&thought.text),
                Part::ToolCall(call) => texts.extend([call.name.as_str(), call.arguments.as_str()]),
                _ => {}
            }
        }
        texts
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub parts: Vec<Part>,
    pub stop: Stop,
    /// The text of [`ChatRequest::stop`] that ended it.
    pub stop_sequence: Option<String>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stop {
    /// It was complete, or a stop text came.
    #[default]
    End,
    MaxTokens,
    /// Input and answer together have filled the model's context.
    ContextFull,
    /// Tools are to be called.
    ToolUse,
    /// The provider's filter, or the model, refused to go on. Gemini's RECITATION is one: the text is withheld.
    Filtered,
    /// The provider paused a long turn, and wants the answer back to go on.
    Paused,
    /// The model wrote a call that cannot be read.
    Malformed,
}

/// Tokens of one call, as billed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// All tokens of the prompt, those of `cache_read` and `cache_write` included.
    pub input: u64,
    /// All tokens of the answer, those of `reasoning` included.
    pub output: u64,
    pub cache_read: u64,
    /// Written to the provider's cache, those of `cache_write_long` included.
    pub cache_write: u64,
    pub cache_write_long: u64,
    pub reasoning: u64,
    /// Of `input`, tokens of audio.
    pub audio_input: u64,
    /// Of `output`, tokens of audio.
    pub audio_output: u64,
}

impl Usage {
    /// Takes what a later report of the same call says: field by field the larger.
    pub fn absorb(&mut self, later: &Usage) {
        self.input = self.input.max(later.input);
        self.output = self.output.max(later.output);
        self.cache_read = self.cache_read.max(later.cache_read);
        self.cache_write = self.cache_write.max(later.cache_write);
        self.cache_write_long = self.cache_write_long.max(later.cache_write_long);
        self.reasoning = self.reasoning.max(later.reasoning);
        self.audio_input = self.audio_input.max(later.audio_input);
        self.audio_output = self.audio_output.max(later.audio_output);
    }
}

/// A step of a streamed answer. A decoder emits `Start` once and first, opens a part before its deltas, and ends with `End` or
/// `Error`; parts may overlap, as OpenAI's tool calls do.
#[derive(Debug, Clone, PartialEq)]
pub enum ChatEvent {
    Start {
        id: String,
        model: String,
        created: i64,
    },
    /// `part` counts from 0 over the whole answer.
    PartStart {
        part: u32,
        choice: u32,
        kind: PartKind,
    },
    /// More of a part's text; of a tool call, of its arguments.
    Delta {
        part: u32,
        text: String,
    },
    /// The signature of a thought or of a tool call.
    Signature {
        part: u32,
        signature: String,
    },
    PartEnd {
        part: u32,
    },
    /// A choice is complete.
    Stop {
        choice: u32,
        stop: Stop,
        stop_sequence: Option<String>,
    },
    /// What is known so far; a later one replaces an earlier one field by field where it is larger.
    Usage(Usage),
    End,
    Error(Failure),
}

#[derive(Debug, Clone, PartialEq)]
pub enum PartKind {
    Text,
    Refusal,
    Reasoning,
    /// A thought that only the provider can read, whole.
    Encrypted(String),
    ToolCall {
        id: String,
        name: String,
    },
    Image {
        media_type: String,
    },
    Audio {
        media_type: String,
    },
}

/// Why a provider did not answer, or what a caller did wrong, in words that every dialect has a place for.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub kind: FailureKind,
    /// For the caller. Never holds a key or the provider's address.
    pub message: String,
    /// The provider's own code, such as `context_length_exceeded`.
    pub code: Option<String>,
    /// The field that is wrong.
    pub param: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    InvalidRequest,
    /// The prompt does not fit into the model's context.
    ContextLength,
    /// The prompt was refused by a filter.
    ContentFilter,
    Authentication,
    Permission,
    NotFound,
    TooLarge,
    RateLimited,
    /// A budget is used up; asking again soon does not help.
    QuotaExceeded,
    Overloaded,
    Timeout,
    /// The provider failed, or what it sent cannot be read.
    Server,
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), code: None, param: None }
    }

    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Failure {
        Failure { param: Some(param.into()), ..Failure::new(FailureKind::InvalidRequest, message) }
    }
}

impl FailureKind {
    /// The status that a caller is answered with.
    pub fn status(self) -> u16 {
        match self {
            FailureKind::InvalidRequest | FailureKind::ContextLength | FailureKind::ContentFilter => 400,
            FailureKind::Authentication => 401,
            FailureKind::Permission => 403,
            FailureKind::NotFound => 404,
            FailureKind::TooLarge => 413,
            FailureKind::RateLimited | FailureKind::QuotaExceeded => 429,
            FailureKind::Server => 502,
            FailureKind::Overloaded => 503,
            FailureKind::Timeout => 504,
        }
    }

    /// What a status means where nothing else is known.
    pub fn of_status(status: u16) -> FailureKind {
        match status {
            401 => FailureKind::Authentication,
            402 => FailureKind::QuotaExceeded,
            403 => FailureKind::Permission,
            404 => FailureKind::NotFound,
            408 | 504 => FailureKind::Timeout,
            413 => FailureKind::TooLarge,
            429 => FailureKind::RateLimited,
            503 | 529 => FailureKind::Overloaded,
            400..=499 => FailureKind::InvalidRequest,
            _ => FailureKind::Server,
        }
    }
}

/// Names of what could not be carried into another format, for the `headgate-ai-dropped` header: paths in the caller's
/// request such as `frequency_penalty` or `messages[2].audio`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Dropped(Vec<Cow<'static, str>>);

impl Dropped {
    /// Notes a field once.
    pub fn add(&mut self, field: impl Into<Cow<'static, str>>) {
        let field = field.into();
        if !self.0.contains(&field) {
            self.0.push(field);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|field| &**field)
    }
}
