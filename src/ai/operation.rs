//! What a call asks for, by its method and path. Whatever stands before the known end of a path is up to the route.

use http::Method;

use super::formats::{Format, PathFacts};

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'p> {
    /// An answer of a model, in the dialect of `format`.
    Chat { format: Format, path: PathFacts<'p> },
    /// The models that there are, as a list in the dialect of `format`.
    Models { format: Format },
    /// One of them.
    Model { format: Format, name: &'p str },
}

/// Ends of paths that are asked for with POST.
const POSTED: [(&str, Format); 3] = [
    ("/chat/completions", Format::OpenAiChat),
    ("/responses", Format::OpenAiResponses),
    ("/messages", Format::Anthropic),
];

/// Gemini's methods, behind the name of a model.
const GENERATE: &str = ":generateContent";
const STREAM: &str = ":streamGenerateContent";

impl<'p> Operation<'p> {
    /// `None` if no operation has this method and path. `anthropic` says whether the caller shows itself as Anthropic's by a
    /// header, since its list of models has OpenAI's path.
    pub fn of(method: &Method, path: &'p str, anthropic: bool) -> Option<Operation<'p>> {
        if method == Method::POST {
            if let Some((_, format)) = POSTED.iter().find(|(end, _)| path.ends_with(end)) {
                return Some(Operation::Chat { format: *format, path: PathFacts::default() });
            }
            let (before, stream) = match path.strip_suffix(GENERATE) {
                Some(before) => (before, false),
                None => (path.strip_suffix(STREAM)?, true),
            };
            let (_, model) = before.rsplit_once("/models/")?;
            let path = PathFacts { model: Some(model), stream: Some(stream) };
            return Some(Operation::Chat { format: Format::Gemini, path });
        }
        if method != Method::GET && method != Method::HEAD {
            return None;
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

    /// The dialect that the caller is answered in.
    pub fn format(&self) -> Format {
        match self {
            Operation::Chat { format, .. } | Operation::Models { format } | Operation::Model { format, .. } => *format,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_path_says_what_is_asked_for() {
        let chat = |format, model, stream| Some(Operation::Chat { format, path: PathFacts { model, stream } });
        for (method, path, anthropic, want) in [
            (Method::POST, "/v1/chat/completions", false, chat(Format::OpenAiChat, None, None)),
            (Method::POST, "/ai/openai/v1/chat/completions", false, chat(Format::OpenAiChat, None, None)),
            (Method::POST, "/v1/responses", false, chat(Format::OpenAiResponses, None, None)),
            (Method::POST, "/v1/messages", true, chat(Format::Anthropic, None, None)),
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
}
