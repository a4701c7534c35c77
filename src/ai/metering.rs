//! What an answer says that it has used, whatever its format: for answers that pass through without being understood otherwise.
//!
//! Memory is bounded: of a stream one event, of a JSON document its end, where usage stands, once it is long.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::catalog::ProviderSpec;
use super::chat::Usage;
use super::cost::{Cost, Used};
use super::formats::reading::Count;
use super::stream::{Deframer, Frame, Framing};

/// A JSON document up to this length is read as a whole.
const LONGEST: usize = 1 << 20;
/// Of a longer one so much of its end is kept.
const END: usize = 16 << 10;

/// Reads an answer as it passes.
pub struct Meter {
    reading: Reading,
    found: Found,
}

enum Reading {
    /// There is nothing to read.
    Nothing,
    Whole(Vec<u8>),
    End(Vec<u8>),
    Stream(Box<dyn Deframer>),
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    pub usage: Option<Usage>,
    pub used: Option<Used>,
    /// As the provider names it.
    pub model: Option<String>,
}

impl Meter {
    /// For an answer of this type. What is neither JSON nor a stream tells nothing.
    pub fn of(content_type: Option<&str>) -> Meter {
        let reading = match content_type {
            None => Reading::Nothing,
            Some(text) => match Framing::of_content_type(text) {
                Some(framing) => Reading::Stream(framing.deframer()),
                None if is_json(text) => Reading::Whole(Vec::new()),
                None => Reading::Nothing,
            },
        };
        Meter { reading, found: Found::default() }
    }

    pub fn push(&mut self, piece: &[u8]) {
        match &mut self.reading {
            Reading::Nothing => {}
            Reading::Whole(whole) if whole.len() + piece.len() <= LONGEST => whole.extend_from_slice(piece),
            Reading::Whole(whole) => {
                let mut end = std::mem::take(whole);
                end.extend_from_slice(piece);
                keep_end(&mut end);
                end.shrink_to(2 * END);
                self.reading = Reading::End(end);
            }
            Reading::End(end) => {
                end.extend_from_slice(piece);
                keep_end(end);
            }
            Reading::Stream(deframer) => {
                let found = &mut self.found;
                if deframer.push(piece, &mut |frame| event(&frame, found)).is_err() {
                    self.reading = Reading::Nothing;
                }
            }
        }
    }

    /// The answer is over, or has broken off.
    pub fn finish(mut self) -> Found {
        match std::mem::replace(&mut self.reading, Reading::Nothing) {
            Reading::Nothing => {}
            Reading::Whole(whole) => document(&whole, &mut self.found),
            Reading::End(end) => from_end(&end, &mut self.found),
            Reading::Stream(mut deframer) => {
                let found = &mut self.found;
                let _ = deframer.finish(&mut |frame| event(&frame, found));
            }
        }
        self.found
    }
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

fn keep_end(bytes: &mut Vec<u8>) {
    // Not on every piece: moving costs.
    if bytes.len() > 2 * END {
        bytes.drain(..bytes.len() - END);
    }
}

fn event(frame: &Frame<'_>, found: &mut Found) {
    // Most events of a stream say nothing of usage, and need not be parsed to know it.
    let says = |word: &[u8]| memchr::memmem::find(frame.data, word).is_some();
    if says(b"sage") || says(b"eval_count") || says(b"billed_units") || (found.model.is_none() && says(b"odel")) {
        document(frame.data, found);
    }
}

/// Reads a JSON document: an answer, or an event.
pub fn document(json: &[u8], found: &mut Found) {
    let Ok(wire) = serde_json::from_slice::<Envelope<'_>>(json) else { return };
    wire.read(found);
}

/// Usage stands at the end of long answers, behind their data.
fn from_end(end: &[u8], found: &mut Found) {
    for name in [&b"\"usage\""[..], b"\"usageMetadata\"", b"\"meta\""] {
        let Some(at) = memchr::memmem::rfind(end, name) else { continue };
        let Some(rest) = end.get(at..) else { continue };
        // The member, with whatever follows it, as an object of its own.
        let object: Vec<u8> = [b"{", rest].concat();
        let mut documents = serde_json::Deserializer::from_slice(&object).into_iter::<Envelope<'_>>();
        if let Some(Ok(wire)) = documents.next() {
            return wire.read(found);
        }
    }
}

/// Wherever formats say what was used.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Envelope<'a> {
    #[serde(borrow)]
    model: Option<Perhaps<Cow<'a, str>>>,
    #[serde(rename = "modelVersion", borrow)]
    model_version: Option<Perhaps<Cow<'a, str>>>,
    usage: Option<Perhaps<Box<WireUsage>>>,
    #[serde(rename = "usageMetadata")]
    usage_metadata: Option<Perhaps<GeminiUsage>>,
    meta: Option<Perhaps<CohereMeta>>,
    metadata: Option<Perhaps<BedrockMetadata>>,
    /// Ollama.
    prompt_eval_count: Option<Count>,
    eval_count: Option<Count>,
    /// Titan.
    #[serde(rename = "inputTextTokenCount")]
    input_text_token_count: Option<Count>,
    /// Images that were made; also vectors, which say `index`.
    data: Option<Images>,
    /// Of the Responses API and of realtime, inside of events.
    response: Option<Perhaps<Inner>>,
    /// Anthropic's `message_start`.
    message: Option<Perhaps<Inner>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Inner {
    model: Option<Perhaps<String>>,
    usage: Option<Perhaps<Box<WireUsage>>>,
}

/// What is looked for, or something else by that name, which is as good as nothing.
#[derive(Deserialize)]
#[serde(untagged)]
enum Perhaps<T> {
    Is(T),
    Not(IgnoredAny),
}

impl<T> Perhaps<T> {
    fn get(self) -> Option<T> {
        match self {
            Perhaps::Is(found) => Some(found),
            Perhaps::Not(_) => None,
        }
    }
}

/// OpenAI's words of chat and of Responses, Anthropic's and Bedrock's.
#[derive(Default, Deserialize)]
#[serde(default)]
struct WireUsage {
    prompt_tokens: Option<Count>,
    completion_tokens: Option<Count>,
    input_tokens: Option<Count>,
    output_tokens: Option<Count>,
    total_tokens: Option<Count>,
    #[serde(rename = "inputTokens")]
    camel_input: Option<Count>,
    #[serde(rename = "outputTokens")]
    camel_output: Option<Count>,
    cache_read_input_tokens: Option<Count>,
    cache_creation_input_tokens: Option<Count>,
    #[serde(alias = "input_tokens_details", alias = "input_token_details")]
    prompt_tokens_details: Option<Details>,
    #[serde(alias = "output_tokens_details", alias = "output_token_details")]
    completion_tokens_details: Option<Details>,
    /// Of a recording that was heard.
    seconds: Option<f64>,
    tokens: Option<CohereUnits>,
    billed_units: Option<CohereUnits>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Option<Count>,
    reasoning_tokens: Option<Count>,
    audio_tokens: Option<Count>,
    image_tokens: Option<Count>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct GeminiUsage {
    prompt_token_count: Option<Count>,
    candidates_token_count: Option<Count>,
    /// Of the Live API.
    response_token_count: Option<Count>,
    thoughts_token_count: Option<Count>,
    cached_content_token_count: Option<Count>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CohereMeta {
    billed_units: Option<CohereUnits>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CohereUnits {
    input_tokens: Option<Count>,
    output_tokens: Option<Count>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BedrockMetadata {
    usage: Option<Perhaps<Box<WireUsage>>>,
}

/// `data`, if it is a list of images; they are counted without being held.
#[derive(Default)]
struct Images(u64);

impl<'de> Deserialize<'de> for Images {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Image {
            #[serde(rename = "b64_json", alias = "url")]
            _image: IgnoredAny,
        }
        let items = Perhaps::<Vec<Perhaps<Image>>>::deserialize(from)?.get().unwrap_or_default();
        let images = items.iter().filter(|item| matches!(item, Perhaps::Is(_))).count();
        Ok(Images(images as u64))
    }
}

impl Envelope<'_> {
    fn read(self, found: &mut Found) {
        let inner = [self.response, self.message].into_iter().flatten().filter_map(Perhaps::get);
        for inner in inner {
            take(inner.usage, found);
            found.model = inner.model.and_then(Perhaps::get).or(found.model.take());
        }
        take(self.usage, found);
        take(self.metadata.and_then(Perhaps::get).and_then(|metadata| metadata.usage), found);
        if let Some(gemini) = self.usage_metadata.and_then(Perhaps::get) {
            add(gemini.read(), found);
        }
        let meta = self.meta.and_then(Perhaps::get);
        if let Some(units) = meta.and_then(|meta| meta.billed_units).and_then(|units| units.read()) {
            add(units, found);
        }
        if let Some(input) = self.prompt_eval_count.or(self.input_text_token_count) {
            add(
                Usage { input: input.0, output: self.eval_count.map_or(0, |count| count.0), ..Usage::default() },
                found,
            );
        }
        if let Some(Images(images @ 1..)) = self.data {
            found.used.get_or_insert_default().images = images;
        }
        let model = self.model.or(self.model_version).and_then(Perhaps::get);
        found.model = model.map(Cow::into_owned).or(found.model.take());
    }
}

fn take(usage: Option<Perhaps<Box<WireUsage>>>, found: &mut Found) {
    let Some(wire) = usage.and_then(Perhaps::get) else { return };
    if let Some(seconds) = wire.seconds.filter(|seconds| seconds.is_finite() && *seconds > 0.0) {
        found.used.get_or_insert_default().milliseconds = (seconds * 1000.0) as u64;
    }
    let images = |details: &Option<Details>| {
        details.as_ref().and_then(|details| details.image_tokens).map_or(0, |count| count.0)
    };
    let (input, output) = (images(&wire.prompt_tokens_details), images(&wire.completion_tokens_details));
    if input > 0 || output > 0 {
        let used = found.used.get_or_insert_default();
        (used.image_input, used.image_output) = (input, output);
    }
    if let Some(usage) = wire.read() {
        add(usage, found);
    }
}

fn add(usage: Usage, found: &mut Found) {
    found.usage.get_or_insert_default().absorb(&usage);
}

impl WireUsage {
    fn read(&self) -> Option<Usage> {
        let units = self.billed_units.as_ref().or(self.tokens.as_ref()).and_then(CohereUnits::read);
        let input = self.prompt_tokens.or(self.input_tokens).or(self.camel_input);
        let output = self.completion_tokens.or(self.output_tokens).or(self.camel_output);
        if input.is_none() && output.is_none() && units.is_some() {
            return units;
        }
        // Rerankers tell a total only.
        let input = input.or(self.total_tokens.filter(|_| output.is_none()));
        if input.is_none() && output.is_none() {
            return None;
        }
        let of = |details: &Option<Details>, what: fn(&Details) -> Option<Count>| {
            details.as_ref().and_then(what).map_or(0, |count| count.0)
        };
        let count = |count: Option<Count>| count.map_or(0, |count| count.0);
        let (read, written) = (count(self.cache_read_input_tokens), count(self.cache_creation_input_tokens));
        Some(Usage {
            // Anthropic counts what its cache holds beside the rest.
            input: count(input).saturating_add(read).saturating_add(written),
            output: count(output),
            cache_read: read.max(of(&self.prompt_tokens_details, |details| details.cached_tokens)),
            cache_write: written,
            reasoning: of(&self.completion_tokens_details, |details| details.reasoning_tokens),
            audio_input: of(&self.prompt_tokens_details, |details| details.audio_tokens),
            audio_output: of(&self.completion_tokens_details, |details| details.audio_tokens),
            ..Usage::default()
        })
    }
}

impl GeminiUsage {
    fn read(&self) -> Usage {
        let count = |count: Option<Count>| count.map_or(0, |count| count.0);
        let thoughts = count(self.thoughts_token_count);
        Usage {
            input: count(self.prompt_token_count),
            output: count(self.candidates_token_count.or(self.response_token_count)).saturating_add(thoughts),
            cache_read: count(self.cached_content_token_count),
            reasoning: thoughts,
            ..Usage::default()
        }
    }
}

impl CohereUnits {
    fn read(&self) -> Option<Usage> {
        let count = |count: Option<Count>| count.map_or(0, |count| count.0);
        (self.input_tokens.is_some() || self.output_tokens.is_some()).then(|| Usage {
            input: count(self.input_tokens),
            output: count(self.output_tokens),
            ..Usage::default()
        })
    }
}

impl Found {
    /// What was used in all, if anything is known of it.
    pub fn used(&self) -> Option<Used> {
        match (self.usage, self.used) {
            (None, None) => None,
            (tokens, others) => Some(Used { tokens: tokens.unwrap_or_default(), ..others.unwrap_or_default() }),
        }
    }

    /// What it costs at a provider. What is not known is not zero.
    pub fn cost(&self, spec: &ProviderSpec, model: &str) -> Cost {
        match self.used() {
            Some(used) => spec.cost(model, &used),
            None => Cost::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content_type: &str, body: &str, piece: usize) -> Found {
        let mut meter = Meter::of(Some(content_type));
        body.as_bytes().chunks(piece).for_each(|piece| meter.push(piece));
        meter.finish()
    }

    fn tokens(found: &Found) -> (u64, u64, u64) {
        let usage = found.usage.unwrap_or_default();
        (usage.input, usage.output, usage.cache_read)
    }

    #[test]
    fn every_known_format_tells_its_usage() {
        for (body, want) in [
            (
                r#"{"model":"m","usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":3}}}"#,
                (9, 4, 3),
            ),
            (
                r#"{"model":"m","usage":{"input_tokens":9,"output_tokens":4,"input_tokens_details":{"cached_tokens":3}}}"#,
                (9, 4, 3),
            ),
            (
                r#"{"model":"m","usage":{"input_tokens":4,"output_tokens":4,"cache_read_input_tokens":3,"cache_creation_input_tokens":2}}"#,
                (9, 4, 3),
            ),
            (
                r#"{"modelVersion":"m","usageMetadata":{"promptTokenCount":9,"candidatesTokenCount":3,"thoughtsTokenCount":1,"cachedContentTokenCount":3}}"#,
                (9, 4, 3),
            ),
            (r#"{"model":"m","usage":{"inputTokens":9,"outputTokens":4}}"#, (9, 4, 0)),
            (
                r#"{"model":"m","usage":{"billed_units":{"input_tokens":9,"output_tokens":4},"tokens":{"input_tokens":11}}}"#,
                (9, 4, 0),
            ),
            (r#"{"model":"m","meta":{"billed_units":{"input_tokens":9}}}"#, (9, 0, 0)),
            (r#"{"model":"m","prompt_eval_count":9,"eval_count":4}"#, (9, 4, 0)),
            (r#"{"model":"m","usage":{"total_tokens":9}}"#, (9, 0, 0)),
            (r#"{"model":"m","response":{"usage":{"input_tokens":9,"output_tokens":4}}}"#, (9, 4, 0)),
        ] {
            let found = read("application/json; charset=utf-8", body, 7);
            assert_eq!((tokens(&found), found.model.as_deref()), (want, Some("m")), "{body}");
        }
    }

    #[test]
    fn a_stream_tells_it_event_by_event() {
        let anthropic = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"m\",\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n\
            event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":4}}\n\n";
        let openai = "data: {\"model\":\"m\",\"choices\":[],\"usage\":null}\n\n\
            data: {\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4}}\n\ndata: [DONE]\n\n";
        for body in [anthropic, openai] {
            for piece in [1, 13, 4096] {
                let found = read("text/event-stream", body, piece);
                assert_eq!((tokens(&found), found.model.as_deref()), ((9, 4, 0), Some("m")), "{body}");
            }
        }
    }

    #[test]
    fn of_a_long_answer_the_end_is_enough_and_little_is_kept() {
        let long = format!(
            r#"{{"data":[{{"embedding":[{}1]}}],"model":"m","usage":{{"prompt_tokens":9,"total_tokens":9}}}}"#,
            "0.12345,".repeat(400_000)
        );
        let mut meter = Meter::of(Some("application/json"));
        for piece in long.as_bytes().chunks(10_000) {
            meter.push(piece);
            let held = match &meter.reading {
                Reading::Whole(held) | Reading::End(held) => held.capacity(),
                _ => 0,
            };
            assert!(held <= 3 << 20, "{held} bytes are held");
        }
        assert_eq!(tokens(&meter.finish()), (9, 0, 0));
    }

    #[test]
    fn images_and_seconds_are_counted_where_there_are_no_tokens() {
        let images = read("application/json", r#"{"created":1,"data":[{"url":"u"},{"b64_json":"AA=="}]}"#, 9);
        assert_eq!(images.used().map(|used| used.images), Some(2));
        let speech = read("application/json", r#"{"text":"hello","usage":{"type":"duration","seconds":2.5}}"#, 9);
        assert_eq!(speech.used().map(|used| used.milliseconds), Some(2500));
        let tokens = r#"{"data":[{"b64_json":""}],"usage":{"input_tokens":5,"output_tokens":7,"output_tokens_details":{"image_tokens":7}}}"#;
        let used = read("application/json", tokens, 9).used().unwrap_or_default();
        assert_eq!((used.tokens.output, used.image_output), (7, 7));
    }

    #[test]
    fn what_tells_nothing_is_unknown() {
        for (kind, body) in [
            ("application/json", "{\"usage\":null}"),
            ("application/json", "{\"usage\":\"much\",\"model\":5,\"data\":7,\"meta\":{}}"),
            ("application/json", "not json"),
            ("audio/mpeg", "{\"usage\":{\"prompt_tokens\":9}}"),
            ("text/event-stream", "data: garbage usage\n\n"),
        ] {
            assert_eq!(read(kind, body, 5), Found::default(), "{body}");
        }
    }
}
