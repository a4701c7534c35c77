//! What a call asks for, by its method and path. Whatever stands before the known end of a path is up to the route.

use http::Method;

use super::catalog;
use super::formats::embeddings::Dialect;
use super::formats::{Format, PathFacts};

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'p> {
    /// An answer of a model, in the dialect of `format`.
    Chat { format: Format, path: PathFacts<'p> },
    /// How many tokens such a call would have, in the dialect of `format`.
    CountTokens { format: Format, path: PathFacts<'p> },
    /// Vectors of texts; of Gemini's dialect the path names the model.
    Embeddings { dialect: Dialect, model: Option<&'p str> },
    /// Another task of a model, in OpenAI's dialect.
    Task(Task),
    /// Something that a provider keeps for its callers, in OpenAI's dialect.
    Stored(Stored<'p>),
    /// Speech both ways, over a WebSocket.
    Realtime,
    /// Anything of a provider, as it is. `path` begins with a slash.
    Passthrough { provider: &'p str, path: &'p str },
    /// The models that there are, as a list in the dialect of `format`.
    Models { format: Format },
    /// One of them.
    Model { format: Format, name: &'p str },
}

/// A task whose call names a model, in its JSON or in a field of its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    Moderation,
    Rerank,
    ImageGeneration,
    ImageEdit,
    ImageVariation,
    Speech,
    Transcription,
    Translation,
}

/// What a provider keeps, and which of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<'p> {
    pub kind: Kind,
    /// From the kind's own segment on, such as `/files/file-1/content`.
    pub path: &'p str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Files,
    Batches,
    /// Answers of the Responses API.
    Responses,
}

/// Ends of paths that are asked for with POST.
const POSTED: [(&str, Posted); 14] = [
    ("/chat/completions", Posted::Chat(Format::OpenAiChat)),
    ("/responses", Posted::Chat(Format::OpenAiResponses)),
    ("/messages/count_tokens", Posted::CountTokens),
    ("/messages", Posted::Chat(Format::Anthropic)),
    ("/completions", Posted::Chat(Format::OpenAiCompletions)),
    ("/embeddings", Posted::Embeddings),
    ("/moderations", Posted::Task(Task::Moderation)),
    ("/rerank", Posted::Task(Task::Rerank)),
    ("/images/generations", Posted::Task(Task::ImageGeneration)),
    ("/images/edits", Posted::Task(Task::ImageEdit)),
    ("/images/variations", Posted::Task(Task::ImageVariation)),
    ("/audio/speech", Posted::Task(Task::Speech)),
    ("/audio/transcriptions", Posted::Task(Task::Transcription)),
    ("/audio/translations", Posted::Task(Task::Translation)),
];

#[derive(Clone, Copy)]
enum Posted {
    Chat(Format),
    CountTokens,
    Embeddings,
    Task(Task),
}

/// Gemini's methods, behind the name of a model.
const METHODS: [(&str, GeminiMethod); 5] = [
    (":generateContent", GeminiMethod::Generate { stream: false }),
    (":streamGenerateContent", GeminiMethod::Generate { stream: true }),
    (":countTokens", GeminiMethod::Count),
    (":embedContent", GeminiMethod::Embed(Dialect::Gemini)),
    (":batchEmbedContents", GeminiMethod::Embed(Dialect::GeminiBatch)),
];

#[derive(Clone, Copy)]
enum GeminiMethod {
    Generate { stream: bool },
    Count,
    Embed(Dialect),
}

/// What stands before the name of a provider and a path of it.
const PASSTHROUGH: &str = "/passthrough/";

impl<'p> Operation<'p> {
    /// `None` if no operation has this method and path. `anthropic` says whether the caller shows itself as Anthropic's by a
    /// header, since its list of models has OpenAI's path.
    pub fn of(method: &Method, path: &'p str, anthropic: bool) -> Option<Operation<'p>> {
        if let Some(found) = passthrough(path) {
            return Some(found);
        }
        if method == Method::POST
            && let Some(found) = posted(path).or_else(|| gemini(path))
        {
            return Some(found);
        }
        if let Some(stored) = Stored::of(method, path) {
            return Some(Operation::Stored(stored));
        }
        if method != Method::GET && method != Method::HEAD {
            return None;
        }
        if method == Method::GET && path.ends_with("/realtime") {
            return Some(Operation::Realtime);
        }
        let format = match path.contains("/v1beta/") {
            true => Format::Gemini,
            false if anthropic => Format::Anthropic,
            false => Format::OpenAiChat,
        };
        if path.ends_with("/models") {
            return Some(Operation::Models { format });
        }
        let (_, name) = path.split_once("/models/")?;
        (!name.is_empty()).then_some(Operation::Model { format, name })
    }

    /// The dialect that the caller is answered in, also when it is refused.
    pub fn format(&self) -> Format {
        match self {
            Operation::Chat { format, .. }
            | Operation::CountTokens { format, .. }
            | Operation::Models { format }
            | Operation::Model { format, .. } => *format,
            Operation::Embeddings { dialect, .. } => dialect.format(),
            Operation::Task(_) | Operation::Stored(_) | Operation::Realtime | Operation::Passthrough { .. } => {
                Format::OpenAiChat
            }
        }
    }

    /// Its name in logs and metrics: OpenTelemetry's `gen_ai.operation.name`, where there is one.
    pub fn name(&self) -> &'static str {
        match self {
            Operation::Chat { format: Format::OpenAiCompletions, .. } => "text_completion",
            Operation::Chat { .. } => "chat",
            Operation::CountTokens { .. } => "count_tokens",
            Operation::Embeddings { .. } => "embeddings",
            Operation::Task(task) => task.name(),
            Operation::Stored(stored) => stored.kind.name(),
            Operation::Realtime => "realtime",
            Operation::Passthrough { .. } => "passthrough",
            Operation::Models { .. } | Operation::Model { .. } => "models",
        }
    }
}

fn passthrough(path: &str) -> Option<Operation<'_>> {
    let (_, rest) = path.split_once(PASSTHROUGH)?;
    let (provider, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    (!provider.is_empty()).then_some(Operation::Passthrough { provider, path })
}

fn posted(path: &str) -> Option<Operation<'_>> {
    let (_, what) = POSTED.iter().find(|(end, _)| path.ends_with(end))?;
    Some(match *what {
        Posted::Chat(format) => Operation::Chat { format, path: PathFacts::default() },
        Posted::CountTokens => Operation::CountTokens { format: Format::Anthropic, path: PathFacts::default() },
        Posted::Embeddings => Operation::Embeddings { dialect: Dialect::OpenAi, model: None },
        Posted::Task(task) => Operation::Task(task),
    })
}

fn gemini(path: &str) -> Option<Operation<'_>> {
    let (before, method) = METHODS.iter().find_map(|(end, method)| Some((path.strip_suffix(end)?, *method)))?;
    // The Vercel AI SDK leaves `models` out where the name has a slash, as `provider/model` does.
    let (_, model) = before.rsplit_once("/models/").or_else(|| before.split_once("/v1beta/"))?;
    let model = Some(model);
    Some(match method {
        GeminiMethod::Generate { stream } => {
            Operation::Chat { format: Format::Gemini, path: PathFacts { model, stream: Some(stream) } }
        }
        GeminiMethod::Count => {
            Operation::CountTokens { format: Format::Gemini, path: PathFacts { model, stream: Some(false) } }
        }
        GeminiMethod::Embed(dialect) => Operation::Embeddings { dialect, model },
    })
}

impl<'p> Stored<'p> {
    fn of(method: &Method, path: &'p str) -> Option<Stored<'p>> {
        let kinds = [("/files", Kind::Files), ("/batches", Kind::Batches), ("/responses", Kind::Responses)];
        // The kind's segment is the last one, or the second or third from the end.
        let (at, kind) = path.rmatch_indices('/').take(3).find_map(|(at, _)| {
            let rest = path.get(at..)?;
            let named =
                |name: &str| rest.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            kinds.iter().find(|(name, _)| named(name)).map(|(_, kind)| (at, *kind))
        })?;
        // Anthropic's batches are another thing.
        if path.get(..at)?.ends_with("/messages") {
            return None;
        }
        let path = path.get(at..)?;
        let mut segments = path.split('/').skip(2);
        let (id, what) = (segments.next(), segments.next());
        let (get, post, delete) = (method == Method::GET, method == Method::POST, method == Method::DELETE);
        let known = match (kind, id, what) {
            (_, Some(""), _) => false,
            (Kind::Files, None, _) | (Kind::Batches, None, _) => get || post,
            (Kind::Files, Some(_), None) | (Kind::Responses, Some(_), None) => get || delete,
            (Kind::Batches, Some(_), None) => get,
            (Kind::Files, Some(_), Some("content")) | (Kind::Responses, Some(_), Some("input_items")) => get,
            (Kind::Batches | Kind::Responses, Some(_), Some("cancel")) => post,
            _ => false,
        };
        known.then_some(Stored { kind, path })
    }
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Files => "files",
            Kind::Batches => "batches",
            Kind::Responses => "responses",
        }
    }
}

impl Task {
    fn name(self) -> &'static str {
        match self {
            Task::Moderation => "moderation",
            Task::Rerank => "rerank",
            Task::ImageGeneration => "image_generation",
            Task::ImageEdit => "image_edit",
            Task::ImageVariation => "image_variation",
            Task::Speech => "speech",
            Task::Transcription => "transcription",
            Task::Translation => "translation",
        }
    }

    /// What a provider has to serve for it.
    pub fn wants(self) -> catalog::Operation {
        match self {
            Task::Moderation => catalog::Operation::Moderations,
            Task::Rerank => catalog::Operation::Rerank,
            Task::ImageGeneration | Task::ImageEdit | Task::ImageVariation => catalog::Operation::Images,
            Task::Speech => catalog::Operation::AudioSpeech,
            Task::Transcription | Task::Translation => catalog::Operation::AudioTranscriptions,
        }
    }

    /// The path below a provider's base URL; `None` is that of [`Task::wants`], which a provider may have elsewhere.
    pub fn path(self) -> Option<&'static str> {
        match self {
            Task::ImageEdit => Some("/images/edits"),
            Task::ImageVariation => Some("/images/variations"),
            Task::Translation => Some("/audio/translations"),
            _ => None,
        }
    }

    /// The model of calls that name none, which OpenAI allows for some tasks.
    pub fn usual_model(self) -> Option<&'static str> {
        match self {
            Task::Moderation => Some("omni-moderation-latest"),
            Task::ImageVariation => Some("dall-e-2"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_path_says_what_is_asked_for() {
        let chat = |format, model, stream| Some(Operation::Chat { format, path: PathFacts { model, stream } });
        let task = |task| Some(Operation::Task(task));
        for (method, path, anthropic, want) in [
            (Method::POST, "/v1/chat/completions", false, chat(Format::OpenAiChat, None, None)),
            (Method::POST, "/ai/openai/v1/chat/completions", false, chat(Format::OpenAiChat, None, None)),
            (Method::POST, "/v1/completions", false, chat(Format::OpenAiCompletions, None, None)),
            (Method::POST, "/v1/responses", false, chat(Format::OpenAiResponses, None, None)),
            (Method::POST, "/v1/messages", true, chat(Format::Anthropic, None, None)),
            (
                Method::POST,
                "/v1/messages/count_tokens",
                true,
                Some(Operation::CountTokens { format: Format::Anthropic, path: PathFacts::default() }),
            ),
            (
                Method::POST,
                "/v1beta/models/anthropic/claude:generateContent",
                false,
                chat(Format::Gemini, Some("anthropic/claude"), Some(false)),
            ),
            (
                Method::POST,
                "/v1beta/models/g:streamGenerateContent",
                false,
                chat(Format::Gemini, Some("g"), Some(true)),
            ),
            (
                Method::POST,
                "/v1beta/models/g:batchEmbedContents",
                false,
                Some(Operation::Embeddings { dialect: Dialect::GeminiBatch, model: Some("g") }),
            ),
            (
                Method::POST,
                "/v1/embeddings",
                false,
                Some(Operation::Embeddings { dialect: Dialect::OpenAi, model: None }),
            ),
            (Method::POST, "/v2/rerank", false, task(Task::Rerank)),
            (Method::POST, "/v1/images/edits", false, task(Task::ImageEdit)),
            (Method::POST, "/v1/audio/speech", false, task(Task::Speech)),
            (Method::GET, "/v1/realtime", false, Some(Operation::Realtime)),
            (
                Method::POST,
                "/v1beta/anthropic/claude:streamGenerateContent",
                false,
                chat(Format::Gemini, Some("anthropic/claude"), Some(true)),
            ),
            (Method::POST, "/v1/anthropic/claude:generateContent", false, None),
            (Method::GET, "/v1/models", false, Some(Operation::Models { format: Format::OpenAiChat })),
            (Method::GET, "/v1/models", true, Some(Operation::Models { format: Format::Anthropic })),
            (Method::GET, "/v1beta/models", false, Some(Operation::Models { format: Format::Gemini })),
            (
                Method::GET,
                "/v1/models/openai/gpt-5",
                false,
                Some(Operation::Model { format: Format::OpenAiChat, name: "openai/gpt-5" }),
            ),
            (Method::GET, "/v1/chat/completions", false, None),
            (Method::DELETE, "/v1/models/x", false, None),
            (Method::POST, "/v1/other", false, None),
        ] {
            assert_eq!(Operation::of(&method, path, anthropic), want, "{method} {path}");
        }
    }

    #[test]
    fn what_providers_keep_is_told_by_kind_and_id() {
        for (method, path, want) in [
            (Method::POST, "/v1/files", Some((Kind::Files, "/files"))),
            (Method::GET, "/v1/files", Some((Kind::Files, "/files"))),
            (Method::GET, "/v1/files/file-1", Some((Kind::Files, "/files/file-1"))),
            (Method::GET, "/v1/files/file-1/content", Some((Kind::Files, "/files/file-1/content"))),
            (Method::DELETE, "/v1/files/file-1", Some((Kind::Files, "/files/file-1"))),
            (Method::POST, "/v1/batches/b/cancel", Some((Kind::Batches, "/batches/b/cancel"))),
            (Method::GET, "/v1/responses/resp_1", Some((Kind::Responses, "/responses/resp_1"))),
            (Method::GET, "/v1/responses/r/input_items", Some((Kind::Responses, "/responses/r/input_items"))),
            (Method::POST, "/v1/responses/r/cancel", Some((Kind::Responses, "/responses/r/cancel"))),
            (Method::GET, "/v1/responses", None),
            (Method::GET, "/v1/files/", None),
            (Method::DELETE, "/v1/files", None),
            (Method::POST, "/v1/files/file-1", None),
            (Method::PUT, "/v1/batches/b", None),
            (Method::POST, "/v1/messages/batches", None),
            (Method::GET, "/v1/files/a/b/c", None),
            (Method::GET, "/v1/profiles/a", None),
        ] {
            let found = Operation::of(&method, path, false);
            let want = want.map(|(kind, path)| Operation::Stored(Stored { kind, path }));
            assert_eq!(found, want, "{method} {path}");
        }
    }

    #[test]
    fn a_path_of_a_provider_goes_before_all_others() {
        let found = Operation::of(&Method::PATCH, "/ai/passthrough/openai/v1/chat/completions", false);
        let want = Operation::Passthrough { provider: "openai", path: "/v1/chat/completions" };
        assert_eq!(found, Some(want));
        let bare = Operation::of(&Method::GET, "/passthrough/openai", false);
        assert_eq!(bare, Some(Operation::Passthrough { provider: "openai", path: "" }));
        assert_eq!(Operation::of(&Method::GET, "/passthrough/", false), None);
    }
}
