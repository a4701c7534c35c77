//! Models behind one name: which target takes a call, and what happens when it cannot.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::ai::*;
use crate::support::*;

/// A message of an AWS event stream.
fn aws_message(headers: &[(&str, &str)], payload: &str) -> Vec<u8> {
    let mut fields = Vec::new();
    for (name, value) in headers {
        fields.push(name.len() as u8);
        fields.extend_from_slice(name.as_bytes());
        fields.push(7);
        fields.extend_from_slice(&(value.len() as u16).to_be_bytes());
        fields.extend_from_slice(value.as_bytes());
    }
    let total = (16 + fields.len() + payload.len()) as u32;
    let mut message = [total.to_be_bytes(), (fields.len() as u32).to_be_bytes()].concat();
    let sum = crc32fast::hash(&message);
    message.extend_from_slice(&sum.to_be_bytes());
    message.extend_from_slice(&fields);
    message.extend_from_slice(payload.as_bytes());
    let sum = crc32fast::hash(&message);
    message.extend_from_slice(&sum.to_be_bytes());
    message
}

fn aws_event(name: &str, payload: &str) -> Vec<u8> {
    aws_message(&[(":message-type", "event"), (":event-type", name)], payload)
}

#[tokio::test]
async fn an_anthropic_caller_gets_server_sent_events_also_of_a_host_that_frames_them_for_aws() {
    let wrapped = |event: &str| {
        let payload = json!({ "bytes": BASE64_STANDARD.encode(event), "p": "abcd" }).to_string();
        aws_event("chunk", &payload)
    };
    let (sender, mut feeds) = tokio::sync::mpsc::unbounded_channel();
    let provider = Origin::start(move |_| {
        let (reply, feed) = Reply::fed(
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\nConnection: close\r\n\r\n",
        );
        let _ = sender.send(feed);
        reply.close()
    })
    .await;
    let file = "
title: Claude on Bedrock
base_urls: { anthropic: 'https://bedrock-runtime.eu-west-1.amazonaws.com' }
credential: bearer
quirks: [anthropic_on_bedrock]
";
    let yaml = format!(
        "
services: {{ ai: {{ routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ ai: {{}} }} }} }} }} }}
ai:
  providers:
    claude: {{ base_urls: {{ anthropic: 'http://{}' }}, keys: [{{ secret: env:KEY }}] }}
",
        provider.address
    );
    let builder = Gateway::builder(&yaml).environment("KEY", OPENAI_KEY);
    std::fs::create_dir(builder.directory().join("providers")).unwrap();
    std::fs::write(builder.directory().join("providers/claude.yaml"), file).unwrap();
    let gateway = builder.start().await;
    let body = json!({ "model": "claude/anthropic.claude-x", "max_tokens": 50, "stream": true,
                       "messages": [{ "role": "user", "content": "Hi" }] });
    let call = Call::post("/v1/messages", body.to_string()).header("Anthropic-Version", "2023-06-01");
    let sent = async {
        let feed = feeds.recv().await.unwrap();
        ANTHROPIC_STREAM.iter().for_each(|(_, event)| assert!(feed.send(wrapped(event))));
    };
    let (answer, ()) = tokio::join!(gateway.call(&call), sent);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"), "{}", answer.text());
    let through = ANTHROPIC_STREAM.iter().take_while(|(event, _)| *event != "message_stop");
    let mut want: String = through.map(|(event, data)| format!("event: {event}\ndata: {data}\n\n")).collect();
    want += "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    assert_eq!(answer.text(), want, "every event as it was, framed anew");
    let target = &provider.requests()[0].target;
    assert!(target.ends_with("/invoke-with-response-stream"), "{target}");

    let mut client = gateway.connect().await;
    client.send(call.bytes()).await.unwrap();
    let feed = feeds.recv().await.unwrap();
    ANTHROPIC_STREAM[..5].iter().for_each(|(_, event)| assert!(feed.send(wrapped(event))));
    assert_eq!(client.head().await.unwrap().0, 200);
    let exception = [(":message-type", "exception"), (":exception-type", "throttlingException")];
    feed.send(aws_message(&exception, r#"{"message":"too many"}"#));
    let mut broken = String::new();
    while let Some(chunk) = client.chunk().await.unwrap() {
        broken += &String::from_utf8(chunk).unwrap();
    }
    let last = broken.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("event: error\ndata: {\"type\":\"error\""), "in words that the caller knows: {broken}");
    assert!(!broken.contains("exception:"), "{broken}");
}

#[tokio::test]
async fn a_gemini_caller_who_asks_for_an_array_gets_one_of_a_provider_that_sends_events() {
    let event = |text: &str, finish: bool| {
        let mut candidate = json!({ "content": { "role": "model", "parts": [{ "text": text }] }, "index": 0, "x": 1 });
        if finish {
            candidate["finishReason"] = "STOP".into();
        }
        json!({ "candidates": [candidate], "usageMetadata": { "promptTokenCount": 3, "candidatesTokenCount": 2 } })
    };
    let (first, second) = (event("Hel", false), event("lo", true));
    let events = [format!("data: {first}\r\n\r\n"), format!("data: {second}\r\n\r\n")];
    let provider = Origin::start(move |_| stream_of(&[&events[0], &events[1]])).await;
    let yaml = yaml(&[("gemini", &provider, "gemini")], "").replace("provider: openai", "provider: gemini");
    let gateway = Gateway::builder(&yaml).environment("KEY", OPENAI_KEY).start().await;
    let body = json!({ "contents": [{ "role": "user", "parts": [{ "text": "Hi" }] }] }).to_string();
    let call = |end: &str| Call::post(&format!("/v1beta/models/gemini/g-1:streamGenerateContent{end}"), &body);
    let array = gateway.call(&call("")).await;
    assert_eq!(array.header("content-type"), Some("application/json"));
    assert_eq!(array.json(), json!([first, second]), "with what the gateway does not know");
    let events = gateway.call(&call("?alt=sse")).await.text();
    assert!(events.starts_with("data: {") && events.contains("\"x\":1"), "{events}");
}

#[tokio::test]
async fn a_model_all_of_whose_keys_rest_says_when_to_ask_again() {
    let limited =
        json!({ "error": { "message": "slow down", "type": "rate_limit_error", "param": null, "code": null } });
    let headers = [("Retry-After", "40"), ("Content-Type", "application/json")];
    let provider = Origin::start(move |_| Reply::with(429, &headers, limited.to_string())).await;
    let gateway = start(&[("openai", &provider, "openai_chat")], "").await;
    assert_eq!(gateway.call(&ask("openai/gpt-4o", "")).await.status, 429);
    let resting = gateway.call(&ask("openai/gpt-4o", "")).await;
    assert_eq!((resting.status, provider.count()), (503, 1), "{}", resting.text());
    let after: u64 = resting.header("retry-after").expect("when to ask again").parse().unwrap();
    assert!((1..=40).contains(&after), "{after}");
    let message: Value = resting.json();
    assert!(message["error"]["message"].is_string(), "{message}");
}
