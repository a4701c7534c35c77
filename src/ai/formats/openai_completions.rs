//! OpenAI's legacy completions: one text goes on where the prompt ends. Providers that have them are asked in the same words;
//! for others the prompt becomes a user's message.

use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::openai_chat::{OpenAiChat, created_or_now, finish_reason, stop_of, usage};
use super::reading::{self, Count, Text, TextOr, Whole, is_empty, wire_object};
use super::writing::{Object, object};
use super::{Caller, EventDecoder, EventEncoder, Format, PathFacts, Provider, made_up};
use crate::ai::chat::{
    ChatAnswer, ChatEvent, ChatRequest, Choice, Dropped, Failure, FailureKind, Message, Part, PartKind, Role, Usage,
};
use crate::ai::quirks::Quirks;
use crate::ai::stream::{Frame, Framing, sse};

pub struct OpenAiCompletions;

wire_object! {
    struct WireRequest<'a> {
        "model" => model: String,
        "prompt" => prompt: Value,
        "max_tokens" => max_tokens: Whole,
        "temperature" => temperature: f64,
        "top_p" => top_p: f64,
        "n" => n: Whole,
        "stop" => stop: TextOr<'a, String>,
        "stream" => stream: bool,
        "stream_options" => stream_options: Map<String, Value>,
        "presence_penalty" => presence_penalty: f64,
        "frequency_penalty" => frequency_penalty: f64,
        "seed" => seed: Whole,
        "user" => user: String,
    }
}

impl Caller for OpenAiCompletions {
    fn decode_request(&self, body: &[u8], _: PathFacts<'_>) -> Result<ChatRequest, Failure> {
        let wire: WireRequest<'_> = reading::request(body)?;
        let prompt = match wire.prompt {
            Some(Value::String(prompt)) => prompt,
            Some(Value::Array(prompts)) => match prompts.as_slice() {
                [Value::String(prompt)] => prompt.clone(),
                [Value::String(_), ..] => return Err(no_prompt("several prompts in one call")),
                _ => return Err(no_prompt("prompts of tokens")),
            },
            _ => return Err(Failure::invalid("prompt", "`prompt` is missing, or no text")),
        };
        let mut rest = wire.rest;
        rest.retain(|name, value| !says_nothing(name, value));
        let usage = wire.stream_options.as_ref().and_then(|options| options.get("include_usage"));
        Ok(ChatRequest {
            model: wire.model.unwrap_or_default(),
            messages: vec![Message { role: Role::User, parts: vec![Part::Text { text: prompt, cache: None }] }],
            max_tokens: wire.max_tokens.and_then(Whole::count),
            temperature: wire.temperature,
            top_p: wire.top_p,
            frequency_penalty: wire.frequency_penalty.filter(|penalty| *penalty != 0.0),
            presence_penalty: wire.presence_penalty.filter(|penalty| *penalty != 0.0),
            seed: wire.seed.map(|seed| seed.0),
            stop: match wire.stop {
                None => Vec::new(),
                Some(TextOr::Text(text)) => vec![text.into_owned()],
                Some(TextOr::List(texts)) => texts,
            },
            choices: wire.n.and_then(Whole::count).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 1),
            stream: wire.stream.unwrap_or(false),
            stream_usage: usage == Some(&Value::Bool(true)),
            user: wire.user,
            rest,
            dialect: Some(Format::OpenAiCompletions),
            ..ChatRequest::default()
        })
    }

    fn encode_answer(&self, answer: &ChatAnswer, request: &ChatRequest, dropped: &mut Dropped) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        object(&mut out, |o| {
            head(o, &answer.id, if answer.model.is_empty() { &request.model } else { &answer.model }, answer.created);
            o.list("choices", |list| {
                for (index, choice) in answer.choices.iter().enumerate() {
                    let text: String = choice.parts.iter().filter_map(|part| text_of(part, dropped)).collect();
                    list.object(|o| {
                        o.set("text", &text);
                        o.set("index", &index);
                        o.set("logprobs", &None::<u8>);
                        o.set("finish_reason", finish_reason(choice.stop, false, false));
                    });
                }
            });
            if let Some(usage) = &answer.usage {
                usage::write(usage, o);
            }
        });
        out
    }

    fn encoder(&self, request: &ChatRequest) -> Box<dyn EventEncoder> {
        Box::new(Encoder {
            asked: request.model.clone(),
            with_usage: request.stream_usage,
            head: Vec::new(),
            parts: Vec::new(),
            usage: None,
            ended: false,
        })
    }

    fn encode_failure(&self, failure: &Failure, request_id: &str) -> Vec<u8> {
        OpenAiChat.encode_failure(failure, request_id)
    }

    fn framing(&self) -> Framing {
        Framing::Sse
    }
}

fn no_prompt(what: &str) -> Failure {
    Failure::invalid("prompt", format!("the provider of this model has chat only, which has no place for {what}"))
}

/// Whether a field asks for what happens anyway.
fn says_nothing(name: &str, value: &Value) -> bool {
    match name {
        _ if is_empty(value) => true,
        "echo" => *value == Value::Bool(false),
        "best_of" => value.as_u64() == Some(1),
        "suffix" => value == "",
        _ => false,
    }
}

/// What a part says in a text.
fn text_of<'p>(part: &'p Part, dropped: &mut Dropped) -> Option<&'p str> {
    match part {
        Part::Text { text, .. } | Part::Refusal { text } => Some(text),
        Part::Reasoning(_) => None,
        _ => {
            dropped.add("choices.text");
            None
        }
    }
}

fn head(o: &mut Object<'_>, id: &str, model: &str, created: i64) {
    match id.is_empty() {
        true => o.set("id", &made_up("cmpl-")),
        false => o.set("id", id),
    }
    o.set("object", "text_completion");
    o.set("created", &created_or_now(created));
    o.set("model", model);
}

struct Encoder {
    asked: String,
    with_usage: bool,
    /// What every chunk begins with.
    head: Vec<u8>,
    /// The choice of each part; `None` of those that have no place in a text.
    parts: Vec<Option<u32>>,
    usage: Option<Usage>,
    ended: bool,
}

impl Encoder {
    fn chunk(&self, choice: u32, text: &str, finish: Option<&str>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b",\"choices\":[");
        object(out, |o| {
            o.set("text", text);
            o.set("index", &choice);
            o.set("logprobs", &None::<u8>);
            o.set("finish_reason", &finish);
        });
        out.extend_from_slice(if self.with_usage { b"],\"usage\":null}\n\n" } else { b"]}\n\n" });
    }

    fn end(&self, out: &mut Vec<u8>) {
        if let Some(usage) = self.usage.as_ref().filter(|_| self.with_usage) {
            out.extend_from_slice(&self.head);
            out.extend_from_slice(b",\"choices\":[],");
            let mut members = Vec::with_capacity(256);
            object(&mut members, |o| usage::write(usage, o));
            out.extend_from_slice(members.get(1..).unwrap_or_default());
            out.extend_from_slice(b"\n\n");
        }
        sse::write(None, b"[DONE]", out);
    }
}

impl EventEncoder for Encoder {
    fn encode(&mut self, event: &ChatEvent, out: &mut Vec<u8>) {
        if self.ended {
            return;
        }
        match event {
            ChatEvent::Start { id, model, created } => {
                self.head.clear();
                self.head.extend_from_slice(b"data: ");
                let model = if model.is_empty() { &self.asked } else { model };
                object(&mut self.head, |o| head(o, id, model, *created));
                // The rest of the chunk goes on where the object ends.
                self.head.pop();
            }
            ChatEvent::PartStart { choice, kind, .. } => {
                self.parts.push(matches!(kind, PartKind::Text | PartKind::Refusal).then_some(*choice));
            }
            ChatEvent::Delta { part, text } => {
                if let Some(Some(choice)) = self.parts.get(*part as usize) {
                    self.chunk(*choice, text, None, out);
                }
            }
            ChatEvent::Stop { choice, stop, .. } => {
                self.chunk(*choice, "", Some(finish_reason(*stop, false, false)), out);
            }
            ChatEvent::Usage(usage) => self.usage.get_or_insert_default().absorb(usage),
            ChatEvent::End => {
                self.ended = true;
                self.end(out);
            }
            ChatEvent::Error(failure) => {
                self.ended = true;
                sse::write(None, &OpenAiChat.encode_failure(failure, ""), out);
            }
            ChatEvent::Signature { .. } | ChatEvent::PartEnd { .. } => {}
        }
    }
}

impl Provider for OpenAiCompletions {
    /// Only callers of completions are passed on to providers of them; who chats has providers of chat.
    fn encode_request(&self, _: &ChatRequest, _: &str, _: Quirks, _: &mut Dropped) -> Result<Vec<u8>, Failure> {
        Err(Failure::new(FailureKind::NotFound, "this model has completions only"))
    }

    fn decode_answer(&self, body: &[u8]) -> Result<ChatAnswer, Failure> {
        let wire = match serde_json::from_slice::<WireAnswer<'_>>(body) {
            Ok(wire) if wire.error.is_none() && wire.choices.is_some() => wire,
            // It finds the words for whatever else was sent.
            _ => return OpenAiChat.decode_answer(body),
        };
        let choice = |choice: WireChoice<'_>| {
            let text = choice.text.map(Text::into_owned).unwrap_or_default();
            let stop = stop_of(choice.finish_reason.as_deref().unwrap_or_default(), false, false);
            Choice { parts: vec![Part::Text { text, cache: None }], stop, stop_sequence: None }
        };
        Ok(ChatAnswer {
            id: wire.id.map(Text::into_owned).unwrap_or_default(),
            model: wire.model.map(Text::into_owned).unwrap_or_default(),
            choices: wire.choices.unwrap_or_default().into_iter().map(choice).collect(),
            usage: wire.usage.map(|usage| usage.read()),
            ..ChatAnswer::default()
        })
    }

    fn decoder(&self) -> Box<dyn EventDecoder> {
        Box::<Decoder>::default()
    }

    fn decode_failure(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> Failure {
        OpenAiChat.decode_failure(status, headers, body)
    }

    fn framing(&self) -> Framing {
        Framing::Sse
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireAnswer<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    model: Option<Text<'a>>,
    created: Option<Count>,
    #[serde(borrow)]
    choices: Option<Vec<WireChoice<'a>>>,
    usage: Option<usage::WireUsage>,
    error: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireChoice<'a> {
    index: Count,
    #[serde(borrow)]
    text: Option<Text<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Text<'a>>,
}

/// More choices than this are not a model's doing.
const MOST_CHOICES: u64 = 1024;

/// Reads a provider's stream. Each choice is one part.
#[derive(Default)]
struct Decoder {
    started: bool,
    ended: bool,
    /// In the order of their parts.
    choices: Vec<(u32, bool)>,
}

impl EventDecoder for Decoder {
    fn decode(&mut self, frame: &Frame<'_>, events: &mut Vec<ChatEvent>) {
        let data = frame.data.trim_ascii();
        if self.ended || data.is_empty() {
            return;
        }
        if data == b"[DONE]" {
            self.ended = true;
            return events.push(ChatEvent::End);
        }
        match serde_json::from_slice::<WireAnswer<'_>>(data) {
            Ok(chunk) => self.chunk(chunk, events),
            Err(_) => self.fail("the provider's stream holds an event that cannot be read", events),
        }
    }

    fn finish(&mut self, events: &mut Vec<ChatEvent>) {
        if self.ended {
            return;
        }
        match !self.choices.is_empty() && self.choices.iter().all(|(_, stopped)| *stopped) {
            true => events.push(ChatEvent::End),
            false => self.fail("the provider's stream broke off", events),
        }
        self.ended = true;
    }
}

impl Decoder {
    fn chunk(&mut self, chunk: WireAnswer<'_>, events: &mut Vec<ChatEvent>) {
        if let Some(error) = chunk.error.filter(|error| !is_empty(error)) {
            self.ended = true;
            return events.push(ChatEvent::Error(super::openai_chat::failure_inside(&error)));
        }
        if !std::mem::replace(&mut self.started, true) {
            events.push(ChatEvent::Start {
                id: chunk.id.map(Text::into_owned).unwrap_or_default(),
                model: chunk.model.map(Text::into_owned).unwrap_or_default(),
                created: chunk.created.map_or(0, |created| i64::try_from(created.0).unwrap_or_default()),
            });
        }
        for choice in chunk.choices.unwrap_or_default() {
            let index = u32::try_from(choice.index.0.min(MOST_CHOICES)).unwrap_or_default();
            let known = self.choices.iter().position(|(own, _)| *own == index);
            let part = known.unwrap_or_else(|| {
                self.choices.push((index, false));
                let part = self.choices.len() - 1;
                events.push(ChatEvent::PartStart { part: part as u32, choice: index, kind: PartKind::Text });
                part
            });
            if let Some(text) = choice.text.filter(|text| !text.is_empty()) {
                events.push(ChatEvent::Delta { part: part as u32, text: text.into_owned() });
            }
            if let (Some(word), Some((_, stopped))) = (choice.finish_reason, self.choices.get_mut(part))
                && !std::mem::replace(stopped, true)
            {
                events.push(ChatEvent::PartEnd { part: part as u32 });
                events.push(ChatEvent::Stop { choice: index, stop: stop_of(&word, false, false), stop_sequence: None });
            }
        }
        if let Some(usage) = chunk.usage {
            events.push(ChatEvent::Usage(usage.read()));
        }
    }

    fn fail(&mut self, why: &str, events: &mut Vec<ChatEvent>) {
        self.ended = true;
        events.push(ChatEvent::Error(Failure::new(FailureKind::Server, why)));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ai::chat::Stop;

    fn read(body: &Value) -> Result<ChatRequest, Failure> {
        OpenAiCompletions.decode_request(body.to_string().as_bytes(), PathFacts::default())
    }

    #[test]
    fn a_prompt_becomes_a_message_and_what_chat_has_no_place_for_is_kept_to_be_named() {
        let call = json!({ "model": "m", "prompt": ["Once"], "max_tokens": 5, "stop": "\n", "echo": false, "best_of": 1,
                           "suffix": null, "logprobs": 3, "presence_penalty": 0 });
        let request = read(&call).unwrap();
        assert_eq!(request.messages[0].parts, [Part::Text { text: "Once".into(), cache: None }]);
        assert_eq!((request.max_tokens, request.stop, request.presence_penalty), (Some(5), vec!["\n".into()], None));
        assert_eq!(request.rest.keys().collect::<Vec<_>>(), ["logprobs"]);
        for prompt in [json!(["a", "b"]), json!([1, 2]), json!([[1]]), json!(null), json!({})] {
            let failure = read(&json!({ "model": "m", "prompt": prompt })).unwrap_err();
            assert_eq!(failure.param.as_deref(), Some("prompt"), "{prompt}");
        }
    }

    #[test]
    fn a_stream_is_read_as_it_is_written() {
        let events = [
            ChatEvent::Start { id: "cmpl-1".into(), model: "m".into(), created: 7 },
            ChatEvent::PartStart { part: 0, choice: 0, kind: PartKind::Text },
            ChatEvent::Delta { part: 0, text: "a\"b".into() },
            ChatEvent::PartEnd { part: 0 },
            ChatEvent::Stop { choice: 0, stop: Stop::MaxTokens, stop_sequence: None },
            ChatEvent::Usage(Usage { input: 3, output: 2, ..Usage::default() }),
            ChatEvent::End,
        ];
        let request = ChatRequest { stream_usage: true, ..ChatRequest::default() };
        let (mut encoder, mut out) = (OpenAiCompletions.encoder(&request), Vec::new());
        events.iter().for_each(|event| encoder.encode(event, &mut out));
        let (mut decoder, mut back) = (OpenAiCompletions.decoder(), Vec::new());
        let mut deframer = Framing::Sse.deframer();
        deframer.push(&out, &mut |frame| decoder.decode(&frame, &mut back)).unwrap();
        assert_eq!(back, events, "{}", String::from_utf8_lossy(&out));
    }

    #[test]
    fn a_stream_that_breaks_off_ends_with_an_error() {
        let (mut decoder, mut events) = (OpenAiCompletions.decoder(), Vec::new());
        let frame = Frame { event: None, data: br#"{"choices":[{"index":0,"text":"a","finish_reason":null}]}"# };
        decoder.decode(&frame, &mut events);
        decoder.finish(&mut events);
        assert!(matches!(events.last(), Some(ChatEvent::Error(_))), "{events:?}");
        let (mut decoder, mut events) = (OpenAiCompletions.decoder(), Vec::new());
        decoder.decode(&Frame { event: None, data: b"{\"error\":{\"message\":\"no\"}}" }, &mut events);
        assert!(matches!(events.as_slice(), [ChatEvent::Error(_)]), "{events:?}");
    }
}
