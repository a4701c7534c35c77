//! What a provider file says: strict structures without behaviour.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::Deserialize;

use super::model::Model;
use crate::ai::chat::FailureKind;
use crate::ai::formats::Format;
use crate::ai::quirks::Quirk;
pub use crate::config::ai::OnDisconnect;

/// A provider of models. It takes the name of its file.
///
/// ```yaml
/// title: Example
/// base_urls: { openai_chat: https://api.example.com/v1 }
/// key_environment: [EXAMPLE_API_KEY]
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProviderFile {
    /// Its name for people.
    #[schemars(length(min = 1, max = 100))]
    pub title: String,
    /// Where its API is described.
    pub documentation: Option<String>,
    #[serde(default)]
    pub kind: Kind,
    pub base_urls: BaseUrls,
    /// What stands in braces in the base URLs, by name.
    #[serde(default)]
    #[schemars(extend("propertyNames" = { "pattern": "^[a-z][a-z0-9_]{0,31}$", "description": "lower-case, digits, `_`" }))]
    pub variables: BTreeMap<String, Variable>,
    #[serde(default)]
    pub credential: Credential,
    /// The environment variables that usually hold the key, the usual one first: of `aws_sigv4` the key's id, of
    /// `google_oauth` the path of the key's file.
    #[serde(default)]
    pub key_environment: Vec<String>,
    /// Headers that every call carries.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Where it differs from the formats that it speaks.
    #[serde(default)]
    pub quirks: Vec<Quirk>,
    #[serde(default)]
    pub on_disconnect: OnDisconnect,
    /// What its errors mean where their status does not say it. The first that fits holds.
    #[serde(default)]
    pub errors: Vec<ErrorMeaning>,
    /// OpenTelemetry's `gen_ai.provider.name`. Default: the provider's name.
    pub otel_name: Option<String>,
    /// What it serves. Default: chat.
    #[serde(default = "chat")]
    pub operations: Vec<Operation>,
    /// Paths that differ from the usual ones, below the base URL of `openai_chat`, by operation.
    #[serde(default)]
    pub paths: Paths,
    /// How an engine that runs on this machine is found.
    pub probe: Option<Probe>,
    /// Whether models without prices cost nothing, as on a machine of one's own. Default: their cost is unknown.
    #[serde(default)]
    pub free: bool,
    /// Its models, by the provider's names of them. Others may be called too; nothing is known of them.
    #[serde(default)]
    #[schemars(extend("propertyNames" = { "pattern": "^[!-~]{1,256}$", "description": "printable ASCII, at most 256" }))]
    pub models: BTreeMap<String, Model>,
}

/// What sort of provider it is. Of several that have a model, those of the first sort come first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Serves models that it makes.
    Maker,
    /// A cloud that serves models of several makers.
    Cloud,
    /// Serves open models.
    #[default]
    Host,
    /// Passes calls on to others.
    Router,
    /// Software that is run on a machine of one's own.
    Engine,
}

/// Where calls go, by format, without a slash at the end. What follows is up to the format: `/chat/completions`,
/// `/responses`, `/messages`, `/models/…:generateContent`, `/model/…/converse`, `/chat`, `/api/chat`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BaseUrls {
    pub openai_chat: Option<String>,
    pub openai_responses: Option<String>,
    pub anthropic: Option<String>,
    pub gemini: Option<String>,
    pub bedrock: Option<String>,
    pub cohere: Option<String>,
    pub ollama: Option<String>,
}

impl BaseUrls {
    pub fn get(&self, format: Format) -> Option<&str> {
        let url = match format {
            Format::OpenAiChat => &self.openai_chat,
            Format::OpenAiResponses => &self.openai_responses,
            Format::Anthropic => &self.anthropic,
            Format::Gemini => &self.gemini,
            Format::Bedrock => &self.bedrock,
            Format::Cohere => &self.cohere,
            Format::Ollama => &self.ollama,
            Format::OpenAiCompletions => return None,
        };
        url.as_deref()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Format, &str)> {
        Format::all().filter_map(|format| Some((format, self.get(format)?)))
    }
}

/// A part of a base URL that differs from user to user. A configuration's value goes before the environment's, and that
/// before the default.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Variable {
    /// The environment variables that usually hold it, the usual one first.
    pub environment: Vec<String>,
    /// May hold other variables in braces. Default: the value has to be given.
    pub default: Option<String>,
    /// Another variable, whose value decides: if it is listed in `values`, that is the value.
    pub by: Option<String>,
    pub values: BTreeMap<String, String>,
}

/// How calls show who pays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Credential {
    /// The key in `Authorization: Bearer`.
    #[default]
    Bearer,
    /// The key in this header.
    Header(String),
    /// The key in this parameter of the query.
    Query(String),
    /// Requests are signed with an AWS key (Signature Version 4).
    AwsSigv4,
    /// A short-lived token of a Google account.
    GoogleOauth,
    None,
}

/// An error of the provider, by its status, its code, or both.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorMeaning {
    #[schemars(range(min = 400, max = 599))]
    pub status: Option<u16>,
    /// As in the error's `code`, `type` or `status`.
    pub code: Option<String>,
    pub kind: FailureKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    Chat,
    Completions,
    Embeddings,
    Images,
    AudioSpeech,
    AudioTranscriptions,
    Moderations,
    Rerank,
    Files,
    Batches,
    Realtime,
}

fn chat() -> Vec<Operation> {
    vec![Operation::Chat]
}

/// A path by operation.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Paths {
    pub chat: Option<String>,
    pub completions: Option<String>,
    pub embeddings: Option<String>,
    pub images: Option<String>,
    pub audio_speech: Option<String>,
    pub audio_transcriptions: Option<String>,
    pub moderations: Option<String>,
    pub rerank: Option<String>,
    pub files: Option<String>,
    pub batches: Option<String>,
    pub realtime: Option<String>,
}

impl Paths {
    pub fn iter(&self) -> impl Iterator<Item = (Operation, &str)> {
        let all = [
            (Operation::Chat, &self.chat),
            (Operation::Completions, &self.completions),
            (Operation::Embeddings, &self.embeddings),
            (Operation::Images, &self.images),
            (Operation::AudioSpeech, &self.audio_speech),
            (Operation::AudioTranscriptions, &self.audio_transcriptions),
            (Operation::Moderations, &self.moderations),
            (Operation::Rerank, &self.rerank),
            (Operation::Files, &self.files),
            (Operation::Batches, &self.batches),
            (Operation::Realtime, &self.realtime),
        ];
        all.into_iter().filter_map(|(operation, path)| Some((operation, path.as_deref()?)))
    }
}

impl Operation {
    /// Its name in provider files, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Chat => "chat",
            Operation::Completions => "completions",
            Operation::Embeddings => "embeddings",
            Operation::Images => "images",
            Operation::AudioSpeech => "audio_speech",
            Operation::AudioTranscriptions => "audio_transcriptions",
            Operation::Moderations => "moderations",
            Operation::Rerank => "rerank",
            Operation::Files => "files",
            Operation::Batches => "batches",
            Operation::Realtime => "realtime",
        }
    }

    /// Its path in OpenAI's API, below the base URL. Rerank is Cohere's and Jina's, which others have taken over. Images,
    /// speech and transcriptions have further paths beside the one here, such as `/images/edits`.
    pub fn usual_path(self) -> &'static str {
        match self {
            Operation::Chat => "/chat/completions",
            Operation::Completions => "/completions",
            Operation::Embeddings => "/embeddings",
            Operation::Images => "/images/generations",
            Operation::AudioSpeech => "/audio/speech",
            Operation::AudioTranscriptions => "/audio/transcriptions",
            Operation::Moderations => "/moderations",
            Operation::Rerank => "/rerank",
            Operation::Files => "/files",
            Operation::Batches => "/batches",
            Operation::Realtime => "/realtime",
        }
    }
}

/// A request without a body that the engine answers with 200.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// An address of this machine, such as `127.0.0.1:11434`.
    #[schemars(with = "String", extend("format" = "socket-address"))]
    pub address: SocketAddr,
    pub path: String,
}
