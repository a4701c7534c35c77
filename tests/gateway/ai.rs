//! Calls of models: what providers are sent, what callers get, and what happens when a provider fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::gateway::{example, key_hash, problems_of};
use crate::support::*;

pub(crate) const OPENAI_KEY: &str = "sk-secret-of-the-gateway";

/// Providers by name: where they are, and in which file they are described.
pub(crate) fn yaml(providers: &[(&str, &Origin, &str)], models: &str) -> String {
    let mut text = "
access_log: { to: { file: '{{dir}}/access.log' } }
services: { ai: { routes: { all: { match: { path_prefix: / }, backend: { ai: {} } } } } }
ai:
  providers:
"
    .to_owned();
    for (name, origin, format) in providers {
        let (file, prefix) = if *format == "anthropic" { ("anthropic", "/v1") } else { ("openai", "/v1") };
        text += &format!(
            "    {name}: {{ provider: {file}, base_urls: {{ {format}: 'http://{}{prefix}' }}, \
             keys: [{{ secret: env:KEY }}], timeouts: {{ connect: 2s, first_byte: 5s, idle: 5s }} }}\n",
            origin.address
        );
    }
    text + models
}

pub(crate) async fn start(providers: &[(&str, &Origin, &str)], models: &str) -> Gateway {
    Gateway::builder(&yaml(providers, models)).environment("KEY", OPENAI_KEY).start().await
}

pub(crate) fn completion(text: &str) -> String {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_764_000_000, "model": "gpt-4o-2024-08-06",
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": text, "refusal": null }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100,
                   "prompt_tokens_details": { "cached_tokens": 400 } },
        "a_field_of_tomorrow": { "x": 1 },
    })
    .to_string()
}

pub(crate) fn json_reply(body: impl AsRef<[u8]>) -> Reply {
    Reply::with(200, &[("Content-Type", "application/json")], body)
}

pub(crate) fn error_reply(status: u16, headers: &[(&str, &str)]) -> Reply {
    let body = json!({ "error": { "message": "not now", "type": "server_error", "param": null, "code": null } });
    let headers: Vec<_> = headers.iter().copied().chain([("Content-Type", "application/json")]).collect();
    Reply::with(status, &headers, body.to_string())
}

pub(crate) fn chunk(delta: Value, finish: Option<&str>) -> String {
    let chunk = json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "usage": null,
        "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }],
    });
    format!("data: {chunk}\n\n")
}

pub(crate) const USAGE_CHUNK: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"gpt-4o\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7}}\n\n";

pub(crate) fn stream_of(parts: &[&str]) -> Reply {
    Reply::chunked(&[("Content-Type", "text/event-stream; charset=utf-8")], parts, &[])
}

pub(crate) fn hello_stream() -> Reply {
    let parts = [
        chunk(json!({ "role": "assistant", "content": "" }), None),
        chunk(json!({ "content": "Hel" }), None),
        chunk(json!({ "content": "lo" }), None),
        chunk(json!({}), Some("stop")),
        USAGE_CHUNK.to_owned(),
        "data: [DONE]\n\n".to_owned(),
    ];
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    stream_of(&parts)
}

pub(crate) fn ask(model: &str, more: &str) -> Call {
    let body =
        format!(r#"{{ "model": "{model}", "messages": [{{"role":"user","content":"Hi"}}], "x_unknown": 1.0{more} }}"#);
    Call::post("/v1/chat/completions", body)
        .header("Content-Type", "application/json")
        .header("Authorization", "Bearer sk-of-the-caller")
}

/// The texts of all deltas of a stream in OpenAI's dialect.
pub(crate) fn said(stream: &str) -> String {
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let chunks = data.map(|data| serde_json::from_str::<Value>(data).unwrap_or_else(|error| panic!("{data}: {error}")));
    chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_call_passes_as_it_is_but_for_the_model_and_the_key() {
    let provider = Origin::start(|_| json_reply(completion("Hello"))).await;
    let gateway = start(&[("openai", &provider, "openai_chat")], "").await;
    let answer = gateway.call(&ask("openai/gpt-4o", "")).await;
    assert_eq!((answer.status, answer.text()), (200, completion("Hello")), "every byte, also of unknown fields");
    assert_eq!(answer.header("headgate-ai-provider"), Some("openai"));
    assert_eq!(answer.header("headgate-ai-model"), Some("gpt-4o"));
    assert_eq!(answer.header("headgate-ai-attempts"), Some("1"));
    assert_eq!(answer.header("headgate-ai-dropped"), None);
    let sent = &provider.requests()[0];
    assert_eq!((sent.method.as_str(), sent.target.as_str()), ("POST", "/v1/chat/completions"));
    let body = String::from_utf8(sent.body.clone()).unwrap();
    assert_eq!(body, r#"{ "model": "gpt-4o", "messages": [{"role":"user","content":"Hi"}], "x_unknown": 1.0 }"#);
    let head = String::from_utf8_lossy(&sent.head).into_owned();
    assert!(head.contains(&format!("Bearer {OPENAI_KEY}")) && !head.contains("sk-of-the-caller"), "{head}");

    let line = &gateway.access_log(1).await[0];
    let ai = &line["ai"];
    assert_eq!(ai["requested"], "openai/gpt-4o");
    assert_eq!((&ai["provider"], &ai["model"]), (&json!("openai"), &json!("gpt-4o")));
    assert_eq!(
        (&ai["input_tokens"], &ai["output_tokens"], &ai["cache_read_tokens"]),
        (&json!(1000), &json!(100), &json!(400))
    );
    assert_eq!(ai["finish"], "stop");
    // 600 at 2.50, 400 at 1.25 and 100 at 10 dollars for a million.
    assert_eq!(ai["cost"], json!(0.003), "{ai}");
    assert!(!line.to_string().contains("secret"), "{line}");

    let labels = [("provider", "openai"), ("model", "gpt-4o")];
    assert_eq!(gateway.metric("headgate_ai_calls_total", &labels).await, 1.0);
    assert_eq!(gateway.metric("headgate_ai_cost_dollars_total", &labels).await, 0.003);
    let tokens = |kind| [("provider", "openai"), ("model", "gpt-4o"), ("type", kind)];
    assert_eq!(gateway.metric("headgate_ai_tokens_total", &tokens("input")).await, 1000.0);
    assert_eq!(gateway.metric("headgate_ai_tokens_total", &tokens("cache_read")).await, 400.0);
}

#[tokio::test]
async fn names_of_models_that_callers_make_up_are_no_labels_of_metrics() {
    let provider = Origin::start(|_| {
        let error =
            json!({ "message": "none", "type": "invalid_request_error", "param": null, "code": "model_not_found" });
        Reply::with(404, &[("Content-Type", "application/json")], json!({ "error": error }).to_string())
    })
    .await;
    let gateway = start(&[("openai", &provider, "openai_chat")], "").await;
    for n in 0..3 {
        assert_eq!(gateway.call(&ask(&format!("openai/made-up-{n}"), "")).await.status, 404);
    }
    let metrics = gateway.metrics().await;
    assert!(!metrics.keys().any(|series| series.contains("made-up")), "{metrics:?}");
    assert_eq!(gateway.metric("headgate_ai_failures_total", &[("provider", "openai"), ("model", "other")]).await, 3.0);
}

#[tokio::test]
async fn a_call_whose_price_is_unknown_is_counted_as_such_and_not_as_free() {
    let provider = Origin::start(|_| json_reply(completion("Hello"))).await;
    let gateway = start(&[("openai", &provider, "openai_chat")], "").await;
    assert_eq!(gateway.call(&ask("openai/a-model-of-tomorrow", "")).await.status, 200);
    let line = &gateway.access_log(1).await[0];
    assert_eq!((line["ai"].get("cost"), &line["ai"]["output_tokens"]), (None, &json!(100)));
    let labels = [("provider", "openai"), ("model", "a-model-of-tomorrow")];
    assert_eq!(gateway.metric("headgate_ai_unpriced_calls_total", &labels).await, 1.0);
}

#[tokio::test]
async fn a_stream_passes_and_the_usage_that_only_the_gateway_asked_for_is_not_in_it() {
    let provider = Origin::start(|_| hello_stream()).await;
    let gateway = start(&[("openai", &provider, "openai_chat")], "").await;
    let answer = gateway.call(&ask("openai/gpt-4o", r#","stream":true"#)).await;
    assert_eq!((answer.status, said(&answer.text()).as_str()), (200, "Hello"));
    assert!(answer.header("content-type").unwrap().starts_with("text/event-stream"));
    assert!(
        answer.text().ends_with("data: [DONE]\n\n") && !answer.text().contains("prompt_tokens"),
        "{}",
        answer.text()
    );
    assert!(
        String::from_utf8_lossy(&provider.requests()[0].body).contains(r#""stream_options":{"include_usage":true}"#)
    );

    let asks = gateway.call(&ask("openai/gpt-4o", r#","stream":true,"stream_options":{"include_usage":true}"#)).await;
    assert!(asks.text().contains(USAGE_CHUNK), "{}", asks.text());
    for line in gateway.access_log(2).await {
        assert_eq!((&line["ai"]["input_tokens"], &line["ai"]["output_tokens"]), (&json!(5), &json!(2)), "{line}");
        assert!(line["ai"]["first_token"].as_f64().is_some(), "{line}");
    }
}

#[tokio::test]
async fn a_failing_provider_is_followed_by_the_next_and_the_caller_sees_one_answer() {
    let bad = [
        Reply::with(500, &[], "oops"),
        error_reply(429, &[("Retry-After", "1")]),
        error_reply(503, &[]),
        error_reply(529, &[]),
        json_reply("{ not json"),
        json_reply(r#"{"error":{"message":"inside a 200","type":"server_error","param":null,"code":null}}"#),
        Reply::with(200, &[("Content-Type", "text/html")], "<html>"),
        Reply::raw(""),
    ];
    let count = bad.len();
    let script = std::sync::Mutex::new(bad.into_iter());
    let broken = Origin::start(move |_| script.lock().unwrap().next().unwrap_or_else(|| Reply::raw("").reset())).await;
    let good = Origin::start(|_| json_reply(completion("Hello"))).await;
    let models = "
  models: { smart: { targets: [{ model: first/gpt-4o }, { model: second/gpt-4o-mini, priority: 1 }] } }
";
    let providers = [("first", &broken, "openai_chat"), ("second", &good, "openai_chat")];
    // A refused key rests for a second: as many keys as there are failures.
    let keys = vec!["{ secret: env:KEY }"; count].join(", ");
    let text = yaml(&providers, models).replace("keys: [{ secret: env:KEY }]", &format!("keys: [{keys}]"));
    let gateway = Gateway::builder(&text).environment("KEY", OPENAI_KEY).start().await;
    for n in 0..=count {
        let answer = gateway.call(&ask("smart", "")).await;
        assert_eq!((answer.status, answer.header("headgate-ai-provider")), (200, Some("second")), "failure {n}");
        assert_eq!(answer.json()["choices"][0]["message"]["content"], "Hello");
    }
    assert_eq!(good.count(), count + 1);
}

#[tokio::test]
async fn a_stream_that_fails_before_its_first_content_is_followed_by_another() {
    let beginnings = [
        stream_of(&[
            "data: {\"error\":{\"message\":\"overloaded\",\"type\":\"server_error\",\"code\":null,\"param\":null}}\n\n",
        ]),
        stream_of(&[&chunk(json!({ "role": "assistant", "content": "" }), None)]),
        stream_of(&["data: [DONE]\n\n"]),
        stream_of(&["data: {garbage\n\n"]),
        json_reply(completion("not streamed")),
    ];
    let count = beginnings.len();
    let script = std::sync::Mutex::new(beginnings.into_iter());
    let broken = Origin::start(move |_| script.lock().unwrap().next().unwrap()).await;
    let good = Origin::start(|_| hello_stream()).await;
    let models = "
  models: { smart: { targets: [{ model: first/gpt-4o }, { model: second/gpt-4o, priority: 1 }] } }
";
    let gateway = start(&[("first", &broken, "openai_chat"), ("second", &good, "openai_chat")], models).await;
    for n in 0..count {
        let answer = gateway.call(&ask("smart", r#","stream":true"#)).await;
        assert_eq!((answer.status, said(&answer.text()).as_str()), (200, "Hello"), "beginning {n}: {}", answer.text());
        assert_eq!(answer.text().matches("[DONE]").count(), 1);
    }
}

#[tokio::test]
async fn a_first_content_that_does_not_come_in_time_is_followed_by_another() {
    let slow = Origin::start(|_| {
        let (reply, feed) = Reply::fed("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: thinking\n\n");
        // Held open by the test's end of it.
        std::mem::forget(feed);
        reply
    })
    .await;
    let good = Origin::start(|_| hello_stream()).await;
    let models = "
  models: { smart: { targets: [{ model: first/gpt-4o }, { model: second/gpt-4o, priority: 1 }], first_token: 100ms } }
";
    let gateway = start(&[("first", &slow, "openai_chat"), ("second", &good, "openai_chat")], models).await;
    let answer = gateway.call(&ask("smart", r#","stream":true"#)).await;
    assert_eq!((answer.status, said(&answer.text()).as_str()), (200, "Hello"));
    assert_eq!(answer.header("headgate-ai-attempts"), Some("2"));
}

#[tokio::test]
async fn a_stream_that_breaks_after_its_first_content_ends_with_an_error_and_is_not_begun_anew() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let text = chunk(json!({ "role": "assistant", "content": "Hel" }), None);
    let piece = format!("{head}{:x}\r\n{text}\r\n", text.len());
    let broken = Origin::start(move |_| Reply::raw(&piece).close()).await;
    let good = Origin::start(|_| hello_stream()).await;
    let models = "
  models: { smart: { targets: [{ model: first/gpt-4o }, { model: second/gpt-4o, priority: 1 }] } }
";
    let gateway = start(&[("first", &broken, "openai_chat"), ("second", &good, "openai_chat")], models).await;
    let answer = gateway.call(&ask("smart", r#","stream":true"#)).await;
    assert_eq!(answer.status, 200);
    let text = answer.text();
    let last = text.lines().filter_map(|line| line.strip_prefix("data: ")).next_back().unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert!(last["error"]["message"].is_string(), "{text}");
    assert!(text.contains("Hel") && !text.contains("lo\"") && !text.contains("\"stop\""), "{text}");
    assert_eq!(good.count(), 0);
}

#[tokio::test]
async fn what_the_caller_did_wrong_is_tried_nowhere_else_and_told_in_its_dialect() {
    let refuses = Origin::start(|_| {
        let body = json!({ "error": { "message": "bad tool", "type": "invalid_request_error", "param": "tools", "code": null } });
        Reply::with(400, &[("Content-Type", "application/json")], body.to_string())
    })
    .await;
    let other = Origin::start(|_| json_reply(completion("Hello"))).await;
    let models = "
  models: { smart: { targets: [{ model: first/gpt-4o }, { model: second/gpt-4o, priority: 1 }] } }
";
    let gateway = start(&[("first", &refuses, "openai_chat"), ("second", &other, "openai_chat")], models).await;
    let answer = gateway.call(&ask("smart", "")).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["message"], "bad tool");
    assert_eq!(answer.json()["error"]["param"], "tools");
    assert_eq!(other.count(), 0);

    let unknown = gateway.call(&ask("nobody/knows", "")).await;
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (404, &json!("model_not_found")));
    let garbage = gateway.call(&Call::post("/v1/chat/completions", "{")).await;
    assert_eq!((garbage.status, garbage.json()["error"]["type"].as_str()), (400, Some("invalid_request_error")));
    let elsewhere = gateway.get("/v1/else").await;
    assert_eq!((elsewhere.status, elsewhere.problem().as_deref()), (404, Some("route_not_found")));
}

#[tokio::test]
async fn a_refused_key_rests_and_is_never_shown() {
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    let provider = Origin::start(move |request| {
        seen.fetch_add(1, Ordering::Relaxed);
        match request.headers.get("authorization").is_some_and(|value| value.ends_with("bad")) {
            true => {
                let message = "Incorrect API key provided: sk-bad";
                let body = json!({ "error": { "message": message, "type": "invalid_request_error", "param": null, "code": "invalid_api_key" } });
                Reply::with(401, &[("Content-Type", "application/json")], body.to_string())
            }
            false => json_reply(completion("Hello")),
        }
    })
    .await;
    let one = yaml(&[("openai", &provider, "openai_chat")], "");
    let both =
        one.replace("keys: [{ secret: env:KEY }]", "keys: [{ secret: env:BAD, weight: 10000 }, { secret: env:KEY }]");
    let gateway = Gateway::builder(&both).environment("KEY", OPENAI_KEY).environment("BAD", "sk-bad").start().await;
    for _ in 0..5 {
        assert_eq!(gateway.call(&ask("openai/gpt-4o", "")).await.status, 200);
    }
    assert_eq!(calls.load(Ordering::Relaxed), 6, "the bad key was tried once");

    let only_bad = one.replace("env:KEY", "env:BAD");
    let gateway = Gateway::builder(&only_bad).environment("BAD", "sk-bad").start().await;
    let answer = gateway.call(&ask("openai/gpt-4o", "")).await;
    assert_eq!(answer.status, 502, "it is not the caller's key: {}", answer.text());
    assert!(!answer.text().contains("sk-bad") && !gateway.logged().contains("sk-bad"));
}

#[tokio::test]
async fn refusals_of_filters_speak_the_callers_dialect() {
    let provider = Origin::start(|_| json_reply(completion("Hello"))).await;
    let key = "hgk_exampleexampleexampleexample01231XI1lm";
    let text = yaml(&[("openai", &provider, "openai_chat")], "").replace(
        "services: { ai: {",
        "services: { ai: { access: authenticated, filters: [{ api_key: { from: [bearer, { header: x-api-key }] } }, { rate_limit: { rate: 2/h, by: consumer } }],",
    );
    let text =
        format!("{text}\nconsumers: {{ app: {{ credentials: [{{ api_key: {{ hash: '{}' }} }}] }} }}\n", key_hash(key));
    let gateway = Gateway::builder(&text).environment("KEY", OPENAI_KEY).start().await;
    let stranger = gateway.call(&Call::post("/v1/chat/completions", "{}")).await;
    assert_eq!(stranger.status, 401);
    assert!(stranger.json()["error"]["message"].is_string(), "{}", stranger.text());
    let call = || {
        Call::post("/v1/chat/completions", r#"{"model":"openai/gpt-4o","messages":[]}"#)
            .header("Authorization", &format!("Bearer {key}"))
    };
    assert_eq!(gateway.call(&call()).await.status, 200);
    assert_eq!(gateway.call(&call()).await.status, 200);
    let limited = gateway.call(&call()).await;
    assert_eq!(limited.status, 429);
    assert!(limited.header("retry-after").is_some());
    assert!(limited.json()["error"]["message"].is_string(), "{}", limited.text());
    let head = String::from_utf8_lossy(&provider.requests()[0].head).into_owned();
    assert!(!head.contains(key), "{head}");
}

#[tokio::test]
async fn a_caller_who_leaves_ends_the_providers_work() {
    let (sender, mut feeds) = tokio::sync::mpsc::unbounded_channel();
    let provider = Origin::start(move |_| {
        let (reply, feed) = Reply::fed("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
        feed.send(chunk(json!({ "role": "assistant", "content": "Hel" }), None));
        let _ = sender.send(feed);
        reply
    })
    .await;
    let gateway = start(&[("openai", &provider, "openai_chat")], "").await;
    let mut client = gateway.connect().await;
    client.send(ask("openai/gpt-4o", r#","stream":true"#).bytes()).await.unwrap();
    assert_eq!(client.head().await.unwrap().0, 200);
    assert!(client.chunk().await.unwrap().is_some());
    let feed = feeds.recv().await.unwrap();
    drop(client);
    assert!(feed.abandoned().await, "the provider goes on writing for nobody");
    assert_eq!(gateway.access_log(1).await[0]["reason"], "client_closed");
}

#[tokio::test]
async fn the_models_that_may_be_called_are_listed_and_no_others_answer() {
    let provider = Origin::start(|_| json_reply(completion("Hello"))).await;
    let models = "
  models: { smart: { targets: [{ model: openai/gpt-4o }] }, hidden: { targets: [{ model: openai/gpt-4o }] } }
";
    let text = yaml(&[("openai", &provider, "openai_chat")], models)
        .replace("backend: { ai: {} }", "backend: { ai: { models: [smart], default_model: smart } }");
    let gateway = Gateway::builder(&text).environment("KEY", OPENAI_KEY).start().await;
    let list = gateway.get("/v1/models").await.json();
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1));
    assert_eq!(list["data"][0]["id"], "smart");
    let anthropic = gateway.call(&Call::get("/v1/models").header("Anthropic-Version", "2023-06-01")).await.json();
    assert_eq!((&anthropic["data"][0]["type"], &anthropic["has_more"]), (&json!("model"), &json!(false)));
    assert_eq!(gateway.get("/v1/models/smart").await.status, 200);
    assert_eq!(gateway.get("/v1/models/hidden").await.status, 404);
    assert_eq!(gateway.call(&ask("hidden", "")).await.status, 404);
    assert_eq!(gateway.call(&ask("openai/gpt-4o", "")).await.status, 404, "not even by its own name");
    let unnamed = Call::post("/v1/chat/completions", r#"{"messages":[]}"#);
    assert_eq!(gateway.call(&unnamed).await.status, 200, "the default");
}

#[tokio::test]
async fn a_body_that_is_too_long_or_too_slow_is_refused() {
    let provider = Origin::start(|_| json_reply(completion("Hello"))).await;
    let text = yaml(&[("openai", &provider, "openai_chat")], "  max_body: 64KiB\n  memory: 96KiB\n");
    let gateway = Gateway::builder(&text).environment("KEY", OPENAI_KEY).start().await;
    let long = Call::post("/v1/chat/completions", vec![b' '; 70 << 10]);
    assert_eq!(gateway.call(&long).await.status, 413);
    // One body that does not end holds its memory; another then finds none. Whichever comes first, so that it may take a few.
    let unending = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 61440\r\n\r\n{";
    let slow = tokio::sync::Mutex::new(Vec::new());
    let body = format!(r#"{{"model":"openai/gpt-4o","messages":[],"pad":"{}"}}"#, "x".repeat(50 << 10));
    let second = Call::post("/v1/chat/completions", body);
    let full = || async {
        let mut client = gateway.connect().await;
        client.send(unending).await.unwrap();
        slow.lock().await.push(client);
        gateway.call(&second).await.status == 503
    };
    assert!(eventually(PATIENCE, full).await, "there is memory for both");
    let before = provider.count();
    assert_eq!(gateway.call(&second).await.status, 503, "nothing has given it back");
    assert_eq!(provider.count(), before);
    drop(slow);
    let free = || async { gateway.call(&ask("openai/gpt-4o", "")).await.status == 200 };
    assert!(eventually(PATIENCE, free).await);
}

pub(crate) fn anthropic_message() -> String {
    json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5",
        "content": [
            { "type": "text", "text": "Let me look." },
            { "type": "tool_use", "id": "toolu_1", "name": "weather", "input": { "city": "Paris" } },
        ],
        "stop_reason": "tool_use", "stop_sequence": null,
        "usage": { "input_tokens": 10, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 0, "output_tokens": 7 },
    })
    .to_string()
}

pub(crate) const ANTHROPIC_STREAM: [(&str, &str); 9] = [
    (
        "message_start",
        r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"c","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":10,"output_tokens":1}}}"#,
    ),
    ("ping", r#"{"type":"ping"}"#),
    (
        "content_block_start",
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"toolu_1","name":"weather","input":{}}}"#,
    ),
    (
        "content_block_delta",
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\"city\":"}}"#,
    ),
    (
        "content_block_delta",
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"\"Paris\"}"}}"#,
    ),
    ("content_block_stop", r#"{"type":"content_block_stop","index":0}"#),
    (
        "message_delta",
        r#"{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":7}}"#,
    ),
    ("message_stop", r#"{"type":"message_stop"}"#),
    ("ping", r#"{"type":"ping"}"#),
];

#[tokio::test]
async fn an_openai_caller_reaches_anthropic_and_sees_a_call_of_a_tool_in_its_own_words() {
    let provider = Origin::start(|request| {
        let streams = String::from_utf8_lossy(&request.body).contains("\"stream\":true");
        let events: Vec<String> =
            ANTHROPIC_STREAM.iter().map(|(event, data)| format!("event: {event}\ndata: {data}\n\n")).collect();
        match streams {
            true => stream_of(&events.iter().map(String::as_str).collect::<Vec<_>>()),
            false => json_reply(anthropic_message()),
        }
    })
    .await;
    let gateway = start(&[("anthropic", &provider, "anthropic")], "").await;
    let tools = r#","tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}],"frequency_penalty":0.5"#;
    let answer = gateway.call(&ask("anthropic/claude-sonnet-4-5", tools)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let message = &answer.json()["choices"][0];
    assert_eq!(message["finish_reason"], "tool_calls");
    assert_eq!(message["message"]["content"], "Let me look.");
    let call = &message["message"]["tool_calls"][0];
    assert_eq!((&call["id"], &call["function"]["name"]), (&json!("toolu_1"), &json!("weather")));
    assert_eq!(call["function"]["arguments"], r#"{"city":"Paris"}"#);
    let usage = &answer.json()["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"]),
        (&json!(15), &json!(7)),
        "with those of the cache"
    );
    let dropped = answer.header("headgate-ai-dropped").unwrap_or_default();
    assert!(dropped.contains("frequency_penalty") && dropped.contains("x_unknown"), "{dropped}");
    let sent = &provider.requests()[0];
    assert_eq!(sent.target, "/v1/messages");
    assert_eq!(sent.headers.get("x-api-key"), Some(OPENAI_KEY));
    assert_eq!(sent.headers.get("anthropic-version"), Some("2023-06-01"));
    let body: Value = serde_json::from_slice(&sent.body).unwrap();
    assert!(body["max_tokens"].as_u64().is_some() && body["tools"][0]["input_schema"].is_object(), "{body}");

    let streamed = gateway.call(&ask("anthropic/claude-sonnet-4-5", &format!(r#"{tools},"stream":true"#))).await;
    assert_eq!(streamed.status, 200, "{}", streamed.text());
    let text = streamed.text();
    let chunks: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let arguments: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str())
        .collect();
    assert_eq!(arguments, r#"{"city":"Paris"}"#);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let log = gateway.access_log(2).await;
    assert_eq!((&log[1]["ai"]["input_tokens"], &log[1]["ai"]["output_tokens"]), (&json!(10), &json!(7)));
}

#[tokio::test]
async fn callers_of_every_dialect_reach_an_openai_provider_and_are_answered_in_theirs() {
    let provider = Origin::start(|request| match String::from_utf8_lossy(&request.body).contains("\"stream\":true") {
        true => hello_stream(),
        false => json_reply(completion("Hello")),
    })
    .await;
    let gateway = start(&[("openai", &provider, "openai_chat")], "").await;
    let anthropic = |stream: bool| {
        let body = json!({ "model": "openai/gpt-4o", "max_tokens": 50, "stream": stream,
                           "messages": [{ "role": "user", "content": "Hi" }] });
        Call::post("/v1/messages", body.to_string()).header("Anthropic-Version", "2023-06-01")
    };
    let answer = gateway.call(&anthropic(false)).await.json();
    assert_eq!((&answer["type"], &answer["content"][0]["text"]), (&json!("message"), &json!("Hello")), "{answer}");
    assert_eq!((&answer["stop_reason"], &answer["usage"]["input_tokens"]), (&json!("end_turn"), &json!(600)));
    let text = gateway.call(&anthropic(true)).await.text();
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names.first().zip(names.last()), Some((&"message_start", &"message_stop")), "{text}");

    let gemini = |method: &str| {
        let body = json!({ "contents": [{ "role": "user", "parts": [{ "text": "Hi" }] }] });
        Call::post(&format!("/v1beta/models/openai/gpt-4o:{method}"), body.to_string())
    };
    let answer = gateway.call(&gemini("generateContent")).await.json();
    assert_eq!(answer["candidates"][0]["content"]["parts"][0]["text"], "Hello", "{answer}");
    let events = gateway.call(&gemini("streamGenerateContent?alt=sse")).await.text();
    assert!(events.starts_with("data: {") && !events.contains("[DONE]"), "{events}");
    let array: Value = gateway.call(&gemini("streamGenerateContent")).await.json();
    assert!(array.as_array().is_some_and(|parts| parts.len() > 1), "{array}");

    let body = json!({ "model": "openai/gpt-4o", "input": "Hi", "stream": true }).to_string();
    let text = gateway.call(&Call::post("/v1/responses", body)).await.text();
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names.first().zip(names.last()), Some((&"response.created", &"response.completed")), "{text}");
    let stored = json!({ "model": "openai/gpt-4o", "input": "Hi", "previous_response_id": "resp_1" }).to_string();
    let refused = gateway.call(&Call::post("/v1/responses", stored)).await;
    assert_eq!(refused.status, 400, "nobody has stored it: {}", refused.text());

    let garbage = gateway.call(&Call::post("/v1/messages", "{")).await;
    assert_eq!((garbage.status, &garbage.json()["type"]), (400, &json!("error")));
    assert_eq!(garbage.json()["error"]["type"], "invalid_request_error");
}

#[tokio::test]
async fn the_example_asks_for_a_key_and_falls_back_from_the_first_target_to_the_second() {
    let anthropic = Origin::start(|_| error_reply(529, &[])).await;
    let openai = Origin::start(|_| json_reply(completion("Hello"))).await;
    let text = example("ai")
        .replace(
            "openai: { keys",
            &format!("openai: {{ base_urls: {{ openai_chat: 'http://{}/v1' }}, keys", openai.address),
        )
        .replace(
            "anthropic: { keys",
            &format!("anthropic: {{ base_urls: {{ anthropic: 'http://{}/v1' }}, keys", anthropic.address),
        );
    let gateway = Gateway::start(&text).await;
    let body = r#"{"messages":[{"role":"user","content":"Hi"}]}"#;
    let stranger = gateway.call(&Call::post("/v1/chat/completions", body)).await;
    assert_eq!(stranger.status, 401);
    let known =
        Call::post("/v1/chat/completions", body).header("X-Api-Key", "hgk_exampleexampleexampleexample01231XI1lm");
    let answer = gateway.call(&known).await;
    assert_eq!((answer.status, answer.header("headgate-ai-provider")), (200, Some("openai")), "{}", answer.text());
    assert_eq!((anthropic.count(), openai.count()), (1, 1));
}

#[tokio::test]
async fn what_is_wrong_with_the_section_is_told_with_its_place() {
    let text = "
services: { ai: { routes: { all: { match: { path_prefix: / }, backend: { ai: { models: [smrt] } } } } } }
ai:
  providers:
    opnai: { keys: [{ secret: env:PATH }] }
    openai: {}
    groq: { keys: [{ secret: env:NOT_SET_ANYWHERE }], base_urls: { openai_chat: 'ftp://x' } }
  models: { smart: { targets: [{ model: gpt-5 }, { model: nobody/x }] } }
";
    let problems = problems_of(text);
    for part in [
        "ai.providers.opnai: ",
        "did you mean `openai`?",
        "ai.providers.openai: ",
        "OPENAI_API_KEY",
        "ai.providers.groq.keys[0].secret: ",
        "ai.providers.groq.base_urls.openai_chat: ",
        "ai.models.smart.targets[0].model: ",
        "ai.models.smart.targets[1].model: ",
        "backend.ai.models[0]: ",
        "did you mean `smart`?",
    ] {
        assert!(problems.contains(part), "{part}\n{problems}");
    }
}
