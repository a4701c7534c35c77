//! Every way in which a provider fails, in every caller's dialect and with every provider's format: before the first content
//! somebody else answers, and after it the caller's library is told.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::ports::reserve;
use crate::support::scripted::Scripted;
use crate::support::*;

const SENTENCE: &str = "Hello! This answer comes from a script, the same each time.";

/// Providers by name, with the file that describes each, its format, and the path of its base URL.
const FAMILIES: [(&str, &str, &str, &str); 4] = [
    ("chat", "openai", "openai_chat", "/v1"),
    ("responses", "openai", "openai_responses", "/v1"),
    ("anthropic", "anthropic", "anthropic", "/v1"),
    ("gemini", "gemini", "gemini", "/v1beta"),
];

/// How a caller speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Chat,
    Responses,
    Anthropic,
    Gemini,
}

const DIALECTS: [Dialect; 4] = [Dialect::Chat, Dialect::Responses, Dialect::Anthropic, Dialect::Gemini];

/// What a caller makes of an answer.
#[derive(Debug, Default, PartialEq)]
struct Told {
    text: String,
    /// Answers that have begun.
    begun: usize,
    /// An error that the library of the dialect raises.
    failed: bool,
    /// Whether the library takes the answer for complete.
    complete: bool,
}

impl Dialect {
    fn call(self, model: &str, stream: bool) -> Call {
        let messages = json!([{ "role": "user", "content": "Hi" }]);
        let call =
            |path: &str, body: Value| Call::post(path, body.to_string()).header("content-type", "application/json");
        match self {
            Dialect::Chat => {
                call("/v1/chat/completions", json!({ "model": model, "messages": messages, "stream": stream }))
            }
            Dialect::Responses => call("/v1/responses", json!({ "model": model, "input": "Hi", "stream": stream })),
            Dialect::Anthropic => {
                let body = json!({ "model": model, "max_tokens": 64, "messages": messages, "stream": stream });
                call("/v1/messages", body).header("anthropic-version", "2023-06-01")
            }
            Dialect::Gemini => {
                let method = if stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
                let contents = json!([{ "role": "user", "parts": [{ "text": "Hi" }] }]);
                call(&format!("/v1beta/models/{model}:{method}"), json!({ "contents": contents }))
            }
        }
    }

    /// The text of a whole answer.
    fn whole(self, answer: &Value) -> String {
        let text = match self {
            Dialect::Chat => &answer["choices"][0]["message"]["content"],
            Dialect::Responses => &answer["output"][0]["content"][0]["text"],
            Dialect::Anthropic => &answer["content"][0]["text"],
            Dialect::Gemini => &answer["candidates"][0]["content"]["parts"][0]["text"],
        };
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Reads a stream as the dialect's library does: every event has to be a document, of the name that it is sent under.
    fn stream(self, body: &str) -> Told {
        let mut told = Told::default();
        for event in body.split("\n\n").filter(|event| !event.trim().is_empty()) {
            let name = event.lines().find_map(|line| line.strip_prefix("event: "));
            let data: String = event.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
            if data == "[DONE]" {
                told.complete = true;
                continue;
            }
            let data: Value =
                serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error} in {event:?}\n{body}"));
            if matches!(self, Dialect::Responses | Dialect::Anthropic) {
                assert_eq!(data["type"].as_str(), name, "{event}");
            }
            let kind = data["type"].as_str().unwrap_or_default();
            // Responses tell of an error, and then that they have failed.
            let over = (told.failed && kind != "response.failed") || (told.complete && self != Dialect::Gemini);
            assert!(!over, "{event:?} comes after the end:\n{body}");
            let piece = match self {
                Dialect::Chat => {
                    told.begun += usize::from(data["choices"][0]["delta"]["role"].is_string());
                    &data["choices"][0]["delta"]["content"]
                }
                Dialect::Responses => {
                    told.begun += usize::from(kind == "response.created");
                    told.complete = kind == "response.completed";
                    if kind == "response.output_text.delta" { &data["delta"] } else { &Value::Null }
                }
                Dialect::Anthropic => {
                    told.begun += usize::from(kind == "message_start");
                    told.complete = kind == "message_stop";
                    &data["delta"]["text"]
                }
                Dialect::Gemini => {
                    told.complete |= data["candidates"][0]["finishReason"].is_string();
                    &data["candidates"][0]["content"]["parts"][0]["text"]
                }
            };
            told.text += piece.as_str().unwrap_or_default();
            told.failed |= data["error"].is_object() || kind == "error" || kind == "response.failed";
        }
        if self == Dialect::Gemini {
            told.begun = 1;
        }
        told
    }
}

/// The families, a provider that is away and one without the TLS that it is called with; and for every fault of each a
/// model that goes on to a backup.
async fn gateway(provider: &Scripted, faults: &[&str]) -> Gateway {
    let away = reserve();
    let mut yaml = "
services: { ai: { routes: { all: { match: { path_prefix: / }, backend: { ai: {} } } } } }
ai:
  providers:
"
    .to_owned();
    let mut add = |name: &str, file: &str, format: &str, url: &str, impatient: bool| {
        // Stalls are waited for, so the time limit is short; the backup has all the time it needs.
        let timeouts = if impatient { ", timeouts: { connect: 5s, first_byte: 1500ms, idle: 1500ms }" } else { "" };
        yaml += &format!(
            "    {name}: {{ provider: {file}, base_urls: {{ {format}: '{url}' }}, keys: [{{ secret: env:KEY }}]{timeouts} }}\n"
        );
    };
    for (name, file, format, path) in FAMILIES {
        add(name, file, format, &format!("http://{}{path}", provider.address), true);
    }
    add("backup", "openai", "openai_chat", &format!("http://{}/v1", provider.address), false);
    add("away", "openai", "openai_chat", &format!("http://{}/v1", away.address), true);
    add("no_tls", "openai", "openai_chat", &format!("https://{}/v1", provider.address), true);
    yaml += "  models:\n";
    let mut first: Vec<String> = vec!["away/plain".into(), "no_tls/plain".into()];
    first.extend(FAMILIES.iter().flat_map(|(name, ..)| faults.iter().map(move |fault| format!("{name}/{fault}"))));
    for model in first {
        yaml += &format!(
            "    '{}': {{ targets: [{{ model: '{model}' }}, {{ model: backup/plain, priority: 1 }}], first_token: 3s }}\n",
            model.replace('/', ":")
        );
    }
    Gateway::builder(&yaml).environment("KEY", "sk-of-the-gateway").start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_content_somebody_else_answers_and_the_caller_sees_one_answer() {
    const FAULTS: [&str; 16] = [
        "status-429.retry-after-0",
        "status-500",
        "status-503",
        "status-529",
        "garbage-first",
        "error-first",
        "empty",
        "stall",
        "stall-first",
        "close",
        "close-first",
        "reset",
        "reset-first",
        "endless-first",
        "wrong-type.garbage-first",
        "invalid-utf8.close-first",
    ];
    let provider = Scripted::start().await;
    let gateway = gateway(&provider, &FAULTS).await;
    let families = FAMILIES.iter().flat_map(|(name, ..)| FAULTS.iter().map(move |fault| format!("{name}:{fault}")));
    let models: Vec<String> = families.chain(["away:plain".to_owned(), "no_tls:plain".to_owned()]).collect();
    let calls = models.iter().flat_map(|model| {
        DIALECTS.iter().flat_map(move |dialect| [false, true].map(move |stream| (model.clone(), *dialect, stream)))
    });
    let calls: Vec<_> = calls.collect();
    // Side by side, since stalls are waited for, but no more than a machine that is busy can take.
    for some in calls.chunks(64) {
        let answers = some.iter().map(|(model, dialect, stream)| {
            let (gateway, call) = (&gateway, dialect.call(model, *stream));
            async move { gateway.call(&call).await }
        });
        for ((model, dialect, stream), answer) in some.iter().zip(join_all(answers).await) {
            let place = format!("{model} in {dialect:?}, streamed: {stream}: {}", answer.text());
            assert_eq!((answer.status, answer.header("headgate-ai-provider")), (200, Some("backup")), "{place}");
            let text = match stream {
                false => dialect.whole(&answer.json()),
                true => {
                    let told = dialect.stream(&answer.text());
                    assert_eq!((told.begun, told.failed, told.complete), (1, false, true), "{place}");
                    told.text
                }
            };
            assert_eq!(text, SENTENCE, "{place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_first_content_the_stream_ends_with_an_error_of_the_callers_dialect() {
    const FAULTS: [&str; 6] = [
        "error-midway",
        "garbage-midway",
        "close-midway",
        "reset-midway",
        "stall-midway",
        "plain.separate.close-midway",
    ];
    let provider = Scripted::start().await;
    let gateway = gateway(&provider, &FAULTS).await;
    let calls = FAMILIES.iter().flat_map(|(family, ..)| {
        FAULTS
            .iter()
            .flat_map(move |fault| DIALECTS.map(move |dialect| (format!("{family}:{fault}"), *family, dialect)))
    });
    let calls: Vec<_> = calls.collect();
    for some in calls.chunks(48) {
        let answers = some.iter().map(|(model, _, dialect)| {
            let (gateway, call) = (&gateway, dialect.call(model, true));
            async move { gateway.call(&call).await }
        });
        for ((model, family, dialect), answer) in some.iter().zip(join_all(answers).await) {
            let place = format!("{model} in {dialect:?}: {}", answer.text());
            assert_eq!((answer.status, answer.header("headgate-ai-provider")), (200, Some(*family)), "{place}");
            let told = dialect.stream(&answer.text());
            assert_eq!((told.begun, told.failed, told.complete), (1, true, false), "{place}");
            assert!(!told.text.is_empty() && SENTENCE.starts_with(&told.text), "{place}");
        }
    }
}

#[tokio::test]
async fn an_event_that_breaks_off_within_itself_is_taken_back() {
    let chunk = |text: &str| {
        let delta = json!({ "choices": [{ "index": 0, "delta": { "role": "assistant", "content": text } }] });
        format!("data: {delta}\n\n")
    };
    let (whole, half) = (chunk("Hello"), "data: {\"choices\":[{\"index\":0,\"delta\":{\"cont");
    let broken = Origin::start(move |_| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        let piece = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        Reply::raw(head).then(piece(&whole)).then(piece(half)).close()
    })
    .await;
    let yaml = "
services: { ai: { routes: { all: { match: { path_prefix: / }, backend: { ai: {} } } } } }
ai: { providers: { openai: { base_urls: { openai_chat: 'http://{{origin}}/v1' }, keys: [{ secret: env:KEY }] } } }
";
    let gateway = Gateway::builder(yaml).origin(&broken).environment("KEY", "sk-of-the-gateway").start().await;
    for more in ["", r#","stream_options":{"include_usage":true}"#] {
        let body = format!(r#"{{"model":"openai/x","stream":true,"messages":[]{more}}}"#);
        let answer = gateway.call(&Call::post("/v1/chat/completions", body)).await;
        let told = Dialect::Chat.stream(&answer.text());
        assert_eq!((told.text.as_str(), told.failed, told.complete), ("Hello", true, false), "{}", answer.text());
    }
}

#[tokio::test]
async fn what_is_only_odd_is_understood() {
    const ODD: [&str; 5] = ["utf8.split-1", "plain.no-usage", "plain.separate", "giant-2", "events-2000"];
    let provider = Scripted::start().await;
    let gateway = gateway(&provider, &ODD).await;
    for (family, ..) in FAMILIES {
        for dialect in DIALECTS {
            for odd in ODD {
                let answer = gateway.call(&dialect.call(&format!("{family}:{odd}"), true)).await;
                assert_eq!(answer.header("headgate-ai-provider"), Some(family), "{odd} of {family} in {dialect:?}");
                let told = dialect.stream(&answer.text());
                assert_eq!(
                    (told.begun, told.failed, told.complete),
                    (1, false, true),
                    "{odd} of {family} in {dialect:?}"
                );
                match odd {
                    "utf8.split-1" => assert_eq!(told.text, "Grüße aus Köln: 你好, 🌍 und ein Gruß – zurück."),
                    "giant-2" => assert_eq!(told.text.len(), 2 << 20),
                    "events-2000" => assert!(told.text.ends_with("word 1999 ")),
                    _ => assert_eq!(told.text, SENTENCE),
                }
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_never_ends_ends_with_its_caller() {
    let provider = Scripted::start().await;
    let gateway = gateway(&provider, &["endless"]).await;
    for (family, ..) in FAMILIES {
        for dialect in DIALECTS {
            let mut caller = gateway.connect().await;
            caller.send(dialect.call(&format!("{family}:endless"), true).bytes()).await.unwrap();
            assert_eq!(caller.head().await.unwrap().0, 200);
            for _ in 0..20 {
                assert!(caller.chunk().await.unwrap().is_some());
            }
        }
    }
    // The callers are gone; what the provider still writes, nobody reads.
    assert!(gateway.metric_becomes("headgate_requests_in_flight", &[], |count| count == 0.0).await, "calls go on");
}
