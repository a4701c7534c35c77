//! A call that its provider understands as it is: only what has to change is changed, every other byte stays.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::chat::Failure;

/// What a gateway has to know of a call's body, whatever the dialect, and where it stands.
#[derive(Debug)]
pub struct Head {
    body: Bytes,
    model: Option<(Box<str>, Range<usize>)>,
    pub stream: bool,
    /// The most tokens of the answer, where the body says so: the largest number, if it says several.
    pub max_tokens: Option<u64>,
    /// How many answers are asked for.
    pub choices: u64,
    stream_options: Option<(StreamOptions, Range<usize>)>,
}

#[derive(Deserialize)]
struct Fields<'b> {
    #[serde(borrow, default, deserialize_with = "even_null")]
    model: Option<&'b RawValue>,
    stream: Option<bool>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    max_output_tokens: Option<u64>,
    n: Option<u64>,
    #[serde(rename = "generationConfig", alias = "generation_config")]
    generation: Option<Generation>,
    #[serde(borrow, default, deserialize_with = "even_null")]
    stream_options: Option<&'b RawValue>,
}

/// Gemini's place for parameters.
#[derive(Deserialize)]
struct Generation {
    #[serde(rename = "maxOutputTokens", alias = "max_output_tokens")]
    max_output_tokens: Option<u64>,
    #[serde(rename = "candidateCount", alias = "candidate_count")]
    candidate_count: Option<u64>,
}

/// A field that is there, whatever its value: one that is null has a place too, and must not be written twice.
fn even_null<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// OpenAI's `stream_options`, with fields that are not known here.
#[derive(Debug, Default, Deserialize, serde::Serialize)]
struct StreamOptions {
    include_usage: Option<bool>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

impl Head {
    /// Reads a body. One that names a field twice is refused: provider and gateway could read different ones.
    pub fn read(body: &Bytes) -> Result<Head, Failure> {
        let fields: Fields<'_> = serde_json::from_slice(body)
            .map_err(|error| Failure::invalid("", format!("the body is not a call that can be read: {error}")))?;
        let place = |raw: &RawValue| {
            let start = raw.get().as_ptr() as usize - body.as_ptr() as usize;
            start..start + raw.get().len()
        };
        let model = match fields.model {
            Some(raw) => match Option::<Text<'_>>::deserialize(raw) {
                Ok(text) => Some((text.map_or("".into(), |Text(name)| name.into()), place(raw))),
                Err(_) => return Err(Failure::invalid("model", "`model` is not a text")),
            },
            None => None,
        };
        let stream_options = match fields.stream_options {
            Some(raw) => match Option::<StreamOptions>::deserialize(raw) {
                Ok(options) => Some((options.unwrap_or_default(), place(raw))),
                Err(_) => return Err(Failure::invalid("stream_options", "`stream_options` is not an object")),
            },
            None => None,
        };
        let generation = fields.generation.as_ref();
        // Which of them holds is up to the provider.
        let limits = [
            fields.max_completion_tokens,
            fields.max_output_tokens,
            fields.max_tokens,
            generation.and_then(|generation| generation.max_output_tokens),
        ];
        Ok(Head {
            body: body.clone(),
            model,
            stream: fields.stream.unwrap_or(false),
            max_tokens: limits.into_iter().flatten().max(),
            choices: fields.n.or(generation.and_then(|generation| generation.candidate_count)).unwrap_or(1).max(1),
            stream_options,
        })
    }

    pub fn model(&self) -> Option<&str> {
        self.model.as_ref().map(|(name, _)| &**name).filter(|name| !name.is_empty())
    }

    /// Whether the caller of a stream wants its usage, in OpenAI's dialect.
    pub fn asks_for_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|(options, _)| options.include_usage == Some(true))
    }

    /// The body as the caller sent it.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The body for the provider: with its own name of the model, and asking for usage if that is wanted for metering.
    pub fn passed_on(&self, model: Option<&str>, ask_for_usage: bool) -> Bytes {
        let mut changes: Vec<(Range<usize>, String)> = Vec::new();
        let mut added = String::new();
        let mut put = |name: &str, place: Option<&Range<usize>>, value: String| match place {
            Some(place) => changes.push((place.clone(), value)),
            None => added += &format!("\"{name}\":{value},"),
        };
        if let Some(model) = model
            && self.model() != Some(model)
        {
            put("model", self.model.as_ref().map(|(_, place)| place), serde_json::Value::from(model).to_string());
        }
        if ask_for_usage && !self.asks_for_usage() {
            let (mut options, place) = match &self.stream_options {
                Some((options, place)) => (options.rest.clone(), Some(place)),
                None => Default::default(),
            };
            options.insert("include_usage".to_owned(), true.into());
            put("stream_options", place, serde_json::Value::from(options).to_string());
        }
        if changes.is_empty() && added.is_empty() {
            return self.body.clone();
        }
        changes.sort_by_key(|(place, _)| place.start);
        let mut body = Vec::with_capacity(self.body.len() + 64);
        let mut done = 0;
        if !added.is_empty() {
            // The body is an object, and not an empty one where it says that it streams.
            let brace = self.body.iter().position(|byte| *byte == b'{').map_or(0, |at| at + 1);
            body.extend_from_slice(&self.body[..brace]);
            let empty = self.body[brace..].trim_ascii_start().first() == Some(&b'}');
            body.extend_from_slice(if empty { added.trim_end_matches(',') } else { &added }.as_bytes());
            done = brace;
        }
        for (place, value) in changes {
            body.extend_from_slice(&self.body[done..place.start]);
            body.extend_from_slice(value.as_bytes());
            done = place.end;
        }
        body.extend_from_slice(&self.body[done..]);
        body.into()
    }
}

/// A text, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'t>(#[serde(borrow)] Cow<'t, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(body: &'static str, model: Option<&str>, ask: bool) -> String {
        let whole = Bytes::from_static(body.as_bytes());
        let passed = Head::read(&whole).unwrap().passed_on(model, ask);
        serde_json::from_slice::<serde_json::Value>(&passed).unwrap_or_else(|error| panic!("{passed:?}: {error}"));
        String::from_utf8(passed.to_vec()).unwrap()
    }

    #[test]
    fn only_what_has_to_change_is_changed() {
        let body = r#"{ "messages" : [], "model":"a\u002fb",  "x": 1.0e2 }"#;
        assert_eq!(passed(body, None, false), body);
        assert_eq!(passed(body, Some("a/b"), false), body, "it is that model already");
        assert_eq!(passed(body, Some("c\"d"), false), r#"{ "messages" : [], "model":"c\"d",  "x": 1.0e2 }"#);
        assert_eq!(passed("{}", Some("m"), false), r#"{"model":"m"}"#);
        assert_eq!(passed(r#"{"model": null}"#, Some("m"), false), r#"{"model": "m"}"#);
    }

    #[test]
    fn usage_is_asked_for_where_the_caller_did_not() {
        let options = r#""stream_options":{"include_usage":true}"#;
        assert_eq!(passed(r#"{"stream":true}"#, None, true), format!(r#"{{{options},"stream":true}}"#));
        let asks = r#"{"stream":true,"stream_options":{"include_usage":true,"x":1}}"#;
        assert_eq!(passed(asks, None, true), asks);
        let refuses = r#"{"stream_options":{"include_usage":false,"x":1},"model":"m"}"#;
        let want = r#"{"stream_options":{"x":1,"include_usage":true},"model":"n"}"#;
        assert_eq!(passed(refuses, Some("n"), true), want);
        assert_eq!(passed(r#"{"stream_options":null}"#, None, true).matches("stream_options").count(), 1);
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for body in [
            r#"{"model":"a","model":"b"}"#,
            r#"{"model":1}"#,
            r#"{"model":"a""#,
            r#"[]"#,
            r#"{"stream":"yes"}"#,
            r#"{"stream_options":[]}"#,
            "\u{feff}{}",
            "",
        ] {
            assert!(Head::read(&Bytes::from_static(body.as_bytes())).is_err(), "{body}");
        }
        assert!(Head::read(&Bytes::from_static(b"{\"model\":\"\xff\"}")).is_err(), "no UTF-8");
    }
}
