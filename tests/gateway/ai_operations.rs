//! Calls of models beyond chat: vectors, counts, ranks, images, speech, what providers keep, and anything of them as it is.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::{accept_hdr_async, client_async};

use crate::support::gateway::problems_of;
use crate::support::*;

const KEY: &str = "sk-secret-of-the-gateway";

/// Providers: name, file, format, path of the base URL, where they are.
type Written<'p> = (&'p str, &'p str, &'p str, &'p str, &'p Origin);

fn yaml(providers: &[Written<'_>], more: &str, route: &str) -> String {
    let mut text = format!(
        "
access_log: {{ to: {{ file: '{{{{dir}}}}/access.log' }} }}
services: {{ ai: {{ routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ ai: {route} }} }} }} }} }}
ai:
  max_body: 64KiB
  providers:
"
    );
    for (name, file, format, path, origin) in providers {
        text += &format!(
            "    {name}: {{ provider: {file}, base_urls: {{ {format}: 'http://{}{path}' }}, \
             keys: [{{ secret: env:KEY }}], timeouts: {{ connect: 2s, first_byte: 5s, idle: 5s }} }}\n",
            origin.address
        );
    }
    text + more
}

async fn start(providers: &[Written<'_>], more: &str, route: &str) -> Gateway {
    Gateway::builder(&yaml(providers, more, route)).environment("KEY", KEY).start().await
}

fn json_reply(body: &Value) -> Reply {
    Reply::with(200, &[("Content-Type", "application/json")], body.to_string())
}

fn post(path: &str, body: &Value) -> Call {
    Call::post(path, body.to_string())
        .header("Content-Type", "application/json")
        .header("Authorization", "Bearer sk-of-the-caller")
}

fn body_of(request: &origin::Received) -> Value {
    serde_json::from_slice(&request.body).unwrap_or_else(|error| panic!("{error}: {request:?}"))
}

fn openai(origin: &Origin) -> Written<'_> {
    ("openai", "openai", "openai_chat", "/v1", origin)
}

fn vectors() -> Value {
    json!({ "object": "list", "data": [{ "object": "embedding", "index": 0, "embedding": [0.5, -0.25] }],
            "model": "text-embedding-3-small", "usage": { "prompt_tokens": 1000, "total_tokens": 1000 }, "new": 1 })
}

#[tokio::test]
async fn vectors_pass_as_they_are_and_are_metered() {
    let provider = Origin::start(|_| json_reply(&vectors())).await;
    let gateway = start(&[openai(&provider)], "", "{}").await;
    let body = r#"{ "model": "openai/text-embedding-3-small", "input": ["a"], "x_unknown": 1.0 }"#;
    let answer = gateway.call(&Call::post("/v1/embeddings", body)).await;
    assert_eq!((answer.status, answer.text()), (200, vectors().to_string()), "every byte");
    assert_eq!(answer.header("headgate-ai-provider"), Some("openai"));
    let sent = &provider.requests()[0];
    assert_eq!(sent.target, "/v1/embeddings");
    assert_eq!(sent.body, br#"{ "model": "text-embedding-3-small", "input": ["a"], "x_unknown": 1.0 }"#);
    assert_eq!(sent.headers.get("authorization"), Some(format!("Bearer {KEY}").as_str()));
    let line = &gateway.access_log(1).await[0];
    assert_eq!((&line["ai"]["operation"], &line["ai"]["input_tokens"]), (&json!("embeddings"), &json!(1000)));
    assert_eq!(line["ai"]["cost"], json!(0.00002), "{line}");
    let labels = [("model", "text-embedding-3-small"), ("operation", "embeddings")];
    assert_eq!(gateway.metric("headgate_ai_calls_total", &labels).await, 1.0);
    assert_eq!(gateway.metric("headgate_ai_failures_total", &labels).await, 0.0);
}

#[tokio::test]
async fn vectors_of_every_kind_of_provider_reach_openais_callers() {
    let gemini =
        Origin::start(|_| json_reply(&json!({ "embeddings": [{ "values": [0.5] }, { "values": [1] }] }))).await;
    let cohere = Origin::start(|_| {
        json_reply(
            &json!({ "embeddings": { "float": [[0.5], [1]] }, "meta": { "billed_units": { "input_tokens": 9 } } }),
        )
    })
    .await;
    let ollama = Origin::start(|_| json_reply(&json!({ "embeddings": [[0.5], [1]], "prompt_eval_count": 9 }))).await;
    let titan = Origin::start(|request| {
        let first = String::from_utf8_lossy(&request.body).contains("\"a\"");
        json_reply(&json!({ "embedding": [if first { 0.5 } else { 1.0 }], "inputTextTokenCount": 4 }))
    })
    .await;
    let providers = [
        ("g", "gemini", "gemini", "/v1beta", &gemini),
        ("c", "cohere", "cohere", "/v2", &cohere),
        ("o", "ollama", "ollama", "", &ollama),
    ];
    let more = format!(
        "    b: {{ provider: bedrock, base_urls: {{ bedrock: 'http://{}' }}, keys: [{{ secret: env:AWS }}] }}\n",
        titan.address
    );
    let gateway = Gateway::builder(&yaml(&providers, &more, "{}"))
        .environment("KEY", KEY)
        .environment("AWS", "AKIDEXAMPLE:secret")
        .start()
        .await;
    for (model, path, origin, exchanges) in [
        ("g/gemini-embedding-001", "/v1beta/models/gemini-embedding-001:batchEmbedContents", &gemini, 1),
        ("c/embed-v4.0", "/v2/embed", &cohere, 1),
        ("o/nomic-embed-text", "/api/embed", &ollama, 1),
        ("b/amazon.titan-embed-text-v2:0", "/model/amazon.titan-embed-text-v2%3A0/invoke", &titan, 2),
    ] {
        let call = post("/v1/embeddings", &json!({ "model": model, "input": ["a", "b"], "user": "u" }));
        let answer = gateway.call(&call).await;
        assert_eq!(answer.status, 200, "{model}: {}", answer.text());
        let data = &answer.json()["data"];
        assert_eq!((&data[0]["embedding"], &data[1]["embedding"]), (&json!([0.5]), &json!([1.0])), "{model}");
        assert!(answer.json()["usage"]["prompt_tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{model}");
        assert_eq!(answer.header("headgate-ai-dropped"), Some("user"), "{model}");
        assert_eq!(answer.header("headgate-ai-attempts"), Some("1"), "{model}");
        assert_eq!((origin.requests()[0].target.as_str(), origin.count()), (path, exchanges), "{model}");
    }
    let base64 = json!({ "model": "c/embed-v4.0", "input": ["a", "b"], "encoding_format": "base64" });
    assert_eq!(gateway.call(&post("/v1/embeddings", &base64)).await.json()["data"][1]["embedding"], "AACAPw==");
    let chats = gateway.call(&post("/v1/embeddings", &json!({ "model": "nobody/x", "input": "a" }))).await;
    assert_eq!((chats.status, &chats.json()["error"]["code"]), (404, &json!("model_not_found")));
}

#[tokio::test]
async fn geminis_callers_get_vectors_of_gemini_and_of_others() {
    let gemini = Origin::start(|_| json_reply(&json!({ "embedding": { "values": [1] }, "new": 1 }))).await;
    let other = Origin::start(|_| json_reply(&vectors())).await;
    let more = "  models: { mine: { targets: [{ model: g/gemini-embedding-001 }] } }\n";
    let providers = [("g", "gemini", "gemini", "/v1beta", &gemini), openai(&other)];
    let gateway = start(&providers, more, "{}").await;
    let content = json!({ "content": { "parts": [{ "text": "a" }] }, "model": "models/mine" });
    let same = gateway.call(&post("/v1beta/models/mine:embedContent", &content)).await;
    assert_eq!((same.status, &same.json()["new"]), (200, &json!(1)));
    let sent = &gemini.requests()[0];
    assert_eq!(sent.target, "/v1beta/models/gemini-embedding-001:embedContent");
    assert_eq!(body_of(sent)["model"], "models/gemini-embedding-001");
    assert_eq!(sent.headers.get("x-goog-api-key"), Some(KEY));

    let batch = json!({ "requests": [{ "model": "models/x", "content": { "parts": [{ "text": "a" }] } }] });
    let path = "/v1beta/models/openai/text-embedding-3-small:batchEmbedContents";
    let translated = gateway.call(&post(path, &batch)).await;
    assert_eq!(translated.json()["embeddings"], json!([{ "values": [0.5, -0.25] }]), "{}", translated.text());
    assert_eq!(body_of(&other.requests()[0])["input"], "a");
}

#[tokio::test]
async fn vectors_fall_back_and_a_refused_key_is_never_shown() {
    let broken = Origin::start(|_| {
        let error =
            json!({ "error": { "message": format!("Incorrect API key provided: {KEY}"), "code": "invalid_api_key" } });
        Reply::with(401, &[("Content-Type", "application/json")], error.to_string())
    })
    .await;
    let good = Origin::start(|_| json_reply(&vectors())).await;
    let more = "  models: { v: { targets: [{ model: first/text-embedding-3-small }, { model: openai/text-embedding-3-small, priority: 1 }] } }\n";
    let first = ("first", "openai", "openai_chat", "/v1", &broken);
    let gateway = start(&[first, openai(&good)], more, "{}").await;
    let answer = gateway.call(&post("/v1/embeddings", &json!({ "model": "v", "input": "a" }))).await;
    assert_eq!((answer.status, answer.header("headgate-ai-attempts")), (200, Some("2")));
    let alone = gateway.call(&post("/v1/embeddings", &json!({ "model": "first/x", "input": "a" }))).await;
    assert!(alone.status >= 500 && !alone.text().contains("secret"), "{}", alone.text());
}

#[tokio::test]
async fn tokens_are_counted_by_whoever_counts_and_else_estimated() {
    let anthropic = Origin::start(|_| json_reply(&json!({ "input_tokens": 7 }))).await;
    let gemini = Origin::start(|_| json_reply(&json!({ "totalTokens": 8 }))).await;
    let chat = Origin::start(|_| Reply::with(500, &[], "")).await;
    let providers = [
        ("a", "anthropic", "anthropic", "/v1", &anthropic),
        ("g", "gemini", "gemini", "/v1beta", &gemini),
        openai(&chat),
    ];
    let gateway = start(&providers, "", "{}").await;
    let messages = |model: &str| json!({ "model": model, "messages": [{ "role": "user", "content": "Hi there" }] });
    let count =
        |model: &str| post("/v1/messages/count_tokens", &messages(model)).header("anthropic-version", "2023-06-01");
    let same = gateway.call(&count("a/claude-x")).await;
    assert_eq!((same.status, same.json()), (200, json!({ "input_tokens": 7 })));
    assert_eq!(anthropic.requests()[0].target, "/v1/messages/count_tokens");
    let other = gateway.call(&count("g/gemini-x")).await;
    assert_eq!((other.status, other.json()), (200, json!({ "input_tokens": 8 })));
    assert_eq!(gemini.requests()[0].target, "/v1beta/models/gemini-x:countTokens");
    assert_eq!(body_of(&gemini.requests()[0])["generateContentRequest"]["contents"][0]["parts"][0]["text"], "Hi there");
    let estimated = gateway.call(&count("openai/gpt-x")).await;
    assert_eq!((estimated.status, estimated.json()), (200, json!({ "input_tokens": 6 })));
    assert_eq!(estimated.header("headgate-ai-estimated"), Some("true"));
    assert_eq!(chat.count(), 0);

    let contents = json!({ "contents": [{ "role": "user", "parts": [{ "text": "Hi" }] }] });
    let of_gemini = gateway.call(&post("/v1beta/models/a/claude-x:countTokens", &contents)).await;
    assert_eq!((of_gemini.status, of_gemini.json()), (200, json!({ "totalTokens": 7 })), "{}", of_gemini.text());
    let wrong = gateway.call(&post("/v1/messages/count_tokens", &json!({ "model": "openai/x", "messages": 1 }))).await;
    assert_eq!((wrong.status, &wrong.json()["type"]), (400, &json!("error")));
    for line in gateway.access_log(5).await.iter().filter(|line| line["status"] == 200) {
        let ai = &line["ai"];
        assert_eq!(
            (&ai["operation"], &ai["cost"], ai.get("input_tokens")),
            (&json!("count_tokens"), &json!(0.0), None)
        );
    }
}

#[tokio::test]
async fn legacy_completions_pass_where_they_are_and_are_translated_where_they_are_not() {
    let text = json!({ "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "new": 1,
                       "choices": [{ "text": "upon", "index": 0, "logprobs": null, "finish_reason": "stop" }],
                       "usage": { "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3 } });
    let reply = text.clone();
    let engine = Origin::start(move |_| json_reply(&reply)).await;
    let claude = Origin::start(|request| {
        if String::from_utf8_lossy(&request.body).contains("\"stream\":true") {
            let events = [
                json!({ "type": "message_start", "message": { "id": "msg_1", "type": "message", "role": "assistant", "model": "c", "content": [], "stop_reason": null, "stop_sequence": null, "usage": { "input_tokens": 3, "output_tokens": 1 } } }),
                json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
                json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "upon" } }),
                json!({ "type": "content_block_stop", "index": 0 }),
                json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn", "stop_sequence": null }, "usage": { "output_tokens": 2 } }),
                json!({ "type": "message_stop" }),
            ];
            let events: Vec<String> =
                events.iter().map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap())).collect();
            let events: Vec<&str> = events.iter().map(String::as_str).collect();
            return Reply::chunked(&[("Content-Type", "text/event-stream")], &events, &[]);
        }
        json_reply(&json!({ "id": "msg_1", "type": "message", "role": "assistant", "model": "c", "stop_reason": "max_tokens", "stop_sequence": null,
                            "content": [{ "type": "text", "text": "upon" }], "usage": { "input_tokens": 3, "output_tokens": 2 } }))
    })
    .await;
    let providers =
        [("engine", "vllm", "openai_chat", "/v1", &engine), ("a", "anthropic", "anthropic", "/v1", &claude)];
    let gateway = start(&providers, "", "{}").await;
    let ask = |model: &str, more: Value| {
        let mut body = json!({ "model": model, "prompt": "Once", "max_tokens": 5, "best_of": 2 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post("/v1/completions", &body)
    };
    let passed = gateway.call(&ask("engine/llama", json!({}))).await;
    assert_eq!((passed.status, passed.json()), (200, text));
    assert_eq!(engine.requests()[0].target, "/v1/completions");
    assert_eq!(body_of(&engine.requests()[0])["best_of"], 2);

    let whole = gateway.call(&ask("a/claude-x", json!({}))).await;
    let document = whole.json();
    assert_eq!(document["object"], "text_completion", "{}", whole.text());
    assert_eq!(
        (&document["choices"][0]["text"], &document["choices"][0]["finish_reason"]),
        (&json!("upon"), &json!("length"))
    );
    assert_eq!(document["usage"]["total_tokens"], 5);
    assert_eq!(whole.header("headgate-ai-dropped"), Some("best_of"));
    assert_eq!(body_of(&claude.requests()[0])["messages"][0]["role"], "user");

    let streamed = gateway.call(&ask("a/claude-x", json!({ "stream": true }))).await;
    let chunks: Vec<Value> = streamed
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("data: ").filter(|data| *data != "[DONE]"))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let said: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(said, "upon", "{}", streamed.text());
    assert!(streamed.text().ends_with("data: [DONE]\n\n") && chunks.iter().all(|c| c["object"] == "text_completion"));
    let log = gateway.access_log(3).await;
    assert!(log.iter().all(|line| line["ai"]["operation"] == "text_completion"), "{log:?}");
}

#[tokio::test]
async fn ranks_are_the_same_whoever_makes_them() {
    let result = json!({ "index": 1, "relevance_score": 0.9 });
    let (jina, voyage) = (
        json!({ "model": "j", "results": [result], "usage": { "total_tokens": 5 } }),
        json!({ "object": "list", "data": [result], "model": "v", "usage": { "total_tokens": 5 } }),
    );
    let jina = Origin::start(move |_| json_reply(&jina)).await;
    let voyage = Origin::start(move |_| json_reply(&voyage)).await;
    let cohere = Origin::start(|_| {
        json_reply(&json!({ "id": "r", "results": [{ "index": 1, "relevance_score": 0.9 }], "meta": { "billed_units": { "search_units": 1 } } }))
    })
    .await;
    let providers = [
        ("j", "jina", "openai_chat", "/v1", &jina),
        ("v", "voyage", "openai_chat", "/v1", &voyage),
        ("c", "cohere", "cohere", "/v2", &cohere),
    ];
    let gateway = start(&providers, "", "{}").await;
    for (model, origin, path, top) in [
        ("j/jina-reranker-v2", &jina, "/v1/rerank", "top_n"),
        ("v/rerank-2.5", &voyage, "/v1/rerank", "top_k"),
        ("c/rerank-v3.5", &cohere, "/v2/rerank", "top_n"),
    ] {
        let call = json!({ "model": model, "query": "q", "documents": ["a", "b"], "top_n": 1 });
        let answer = gateway.call(&post("/v1/rerank", &call)).await;
        assert_eq!(answer.status, 200, "{model}: {}", answer.text());
        assert_eq!(answer.json()["results"], json!([{ "index": 1, "relevance_score": 0.9 }]), "{model}");
        let sent = &origin.requests()[0];
        assert_eq!((sent.target.as_str(), &body_of(sent)[top]), (path, &json!(1)), "{model}");
    }
    let documents = json!({ "model": "c/rerank-v3.5", "query": "q", "documents": ["a", { "text": "b" }], "return_documents": true });
    let answer = gateway.call(&post("/v1/rerank", &documents)).await;
    assert_eq!(answer.json()["results"][0]["document"]["text"], "b");
    assert_eq!(body_of(&cohere.requests()[1])["documents"], json!(["a", "b"]));
}

#[tokio::test]
async fn a_moderation_needs_no_model_and_images_are_counted() {
    let provider = Origin::start(|request| match request.target.as_str() {
        "/v1/moderations" => json_reply(&json!({ "id": "m", "model": "omni-moderation-latest", "results": [] })),
        _ => json_reply(&json!({ "created": 1, "data": [{ "b64_json": "AA==" }],
                                 "usage": { "input_tokens": 10, "output_tokens": 20, "output_tokens_details": { "image_tokens": 20 } } })),
    })
    .await;
    let gateway = start(&[openai(&provider)], "", "{}").await;
    let moderation = gateway.call(&post("/v1/moderations", &json!({ "input": "text" }))).await;
    assert_eq!((moderation.status, moderation.header("headgate-ai-model")), (200, Some("omni-moderation-latest")));
    let image =
        gateway.call(&post("/v1/images/generations", &json!({ "model": "gpt-image-1", "prompt": "a cat" }))).await;
    assert_eq!((image.status, &image.json()["data"][0]["b64_json"]), (200, &json!("AA==")));
    assert_eq!(provider.requests()[1].target, "/v1/images/generations");
    let log = gateway.access_log(2).await;
    let line = log.iter().find(|line| line["ai"]["operation"] == "image_generation").expect("a line of the image");
    assert_eq!(line["ai"]["output_tokens"], 20);
    assert!(line["ai"]["cost"].as_f64().is_some_and(|cost| cost > 0.0), "{line}");
}

#[tokio::test]
async fn speech_streams_as_it_comes() {
    let (reply, feed) = Reply::fed(
        "HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nSet-Cookie: a=b\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    let reply = std::sync::Mutex::new(Some(reply));
    let provider = Origin::start(move |_| reply.lock().unwrap().take().unwrap()).await;
    let gateway = start(&[openai(&provider)], "", "{}").await;
    let call = post("/v1/audio/speech", &json!({ "model": "openai/tts-1", "input": "Hello", "voice": "alloy" }));
    let mut client = gateway.connect().await;
    client.send(call.bytes()).await.unwrap();
    let (status, headers) = client.head().await.unwrap();
    assert_eq!((status, headers.get("content-type"), headers.get("set-cookie")), (200, Some("audio/mpeg"), None));
    assert!(feed.send(b"3\r\n\xff\xfb\x00\r\n".to_vec()));
    assert_eq!(client.chunk().await.unwrap(), Some(b"\xff\xfb\x00".to_vec()), "before the rest is made");
    assert!(feed.send(b"2\r\n\x01\x02\r\n0\r\n\r\n".to_vec()));
    assert_eq!(client.chunk().await.unwrap(), Some(b"\x01\x02".to_vec()));
    assert_eq!(client.chunk().await.unwrap(), None);
    drop(feed);
    let line = &gateway.access_log(1).await[0];
    assert_eq!(line["ai"]["operation"], "speech");
    // Five letters at 15 dollars for a million.
    assert_eq!(line["ai"]["cost"], json!(0.000075), "{line}");
}

fn form(model: Option<&str>, file: &[u8]) -> Vec<u8> {
    let mut body =
        b"--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\n"
            .to_vec();
    body.extend_from_slice(file);
    body.extend_from_slice(b"\r\n");
    if let Some(model) = model {
        body.extend_from_slice(b"--XX\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n");
        body.extend_from_slice(model.as_bytes());
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--XX--\r\n");
    body
}

#[tokio::test]
async fn the_model_of_a_form_is_replaced_and_its_files_stay_as_they_are() {
    let provider =
        Origin::start(|_| json_reply(&json!({ "text": "hello", "usage": { "type": "duration", "seconds": 60 } })))
            .await;
    let gateway = start(&[openai(&provider)], "", "{}").await;
    let file: Vec<u8> = (0..30_000u32).map(|n| n as u8).collect();
    let call =
        |path: &str, body: Vec<u8>| Call::post(path, body).header("Content-Type", "multipart/form-data; boundary=XX");
    let answer = gateway.call(&call("/v1/audio/transcriptions", form(Some("openai/whisper-1"), &file))).await;
    assert_eq!((answer.status, &answer.json()["text"]), (200, &json!("hello")), "{}", answer.text());
    let sent = &provider.requests()[0];
    assert_eq!(sent.target, "/v1/audio/transcriptions");
    assert!(sent.body == form(Some("whisper-1"), &file), "only the model is another");
    assert_eq!(sent.headers.get("content-type"), Some("multipart/form-data; boundary=XX"));
    // A minute at 0.006 dollars.
    assert_eq!(gateway.access_log(1).await[0]["ai"]["cost"], json!(0.006));

    let without = gateway.call(&call("/v1/audio/translations", form(None, &file))).await;
    assert_eq!((without.status, without.json()["error"]["param"].as_str()), (400, Some("model")));
    let broken = gateway.call(&call("/v1/images/edits", b"--XX\r\nno form".to_vec())).await;
    assert_eq!(broken.status, 400);
    let long = gateway.call(&call("/v1/audio/transcriptions", form(Some("whisper-1"), &vec![0; 70_000]))).await;
    assert_eq!(long.status, 413);
}

#[tokio::test]
async fn a_provider_without_the_task_is_not_asked() {
    let provider = Origin::start(|_| Reply::ok("")).await;
    let groq = ("groq", "groq", "openai_chat", "/v1", &provider);
    let gateway = start(&[groq], "", "{}").await;
    let answer = gateway.call(&post("/v1/images/generations", &json!({ "model": "groq/x", "prompt": "a" }))).await;
    assert_eq!((answer.status, provider.count()), (404, 0), "{}", answer.text());
    assert!(answer.json()["error"]["message"].as_str().is_some_and(|message| message.contains("images")));
}

#[tokio::test]
async fn a_path_of_a_provider_passes_as_it_is_and_is_metered() {
    let provider = Origin::start(|request| {
        let body = json!({ "seen": String::from_utf8_lossy(&request.body), "model": "gpt-4o",
                           "usage": { "prompt_tokens": 1000, "completion_tokens": 100 } });
        let headers = [("Content-Type", "application/json"), ("Set-Cookie", "a=b"), ("openai-organization", "org-1")];
        Reply::with(201, &headers, body.to_string())
    })
    .await;
    let gateway = start(&[openai(&provider)], "", "{ passthrough: [openai] }").await;
    let call = Call::new("PATCH", "/ai/passthrough/openai/v1/vector_stores/a%20b?after=x&key=stolen&limit=2")
        .header("Authorization", "Bearer sk-of-the-caller")
        .header("x-api-key", "sk-of-the-caller")
        .header("Cookie", "session=1")
        .header("OpenAI-Organization", "org-of-the-caller")
        .header("OpenAI-Beta", "assistants=v2")
        .body(r#"{"x":1}"#);
    let answer = gateway.call(&call).await;
    assert_eq!((answer.status, &answer.json()["seen"]), (201, &json!("{\"x\":1}")), "{}", answer.text());
    assert_eq!((answer.header("set-cookie"), answer.header("openai-organization")), (None, None));
    let sent = &provider.requests()[0];
    assert_eq!((sent.method.as_str(), sent.target.as_str()), ("PATCH", "/v1/vector_stores/a%20b?after=x&limit=2"));
    let head = String::from_utf8_lossy(&sent.head).into_owned();
    assert!(!head.contains("of-the-caller") && !head.contains("session=1") && !head.contains("stolen"), "{head}");
    assert_eq!(sent.headers.get("authorization"), Some(format!("Bearer {KEY}").as_str()));
    assert_eq!(sent.headers.get("openai-beta"), Some("assistants=v2"));
    let line = &gateway.access_log(1).await[0];
    let ai = &line["ai"];
    assert_eq!(
        (&ai["operation"], &ai["provider"], &ai["model"]),
        (&json!("passthrough"), &json!("openai"), &json!("gpt-4o"))
    );
    assert_eq!((&ai["input_tokens"], &ai["cost"]), (&json!(1000), &json!(0.0035)), "{line}");
    assert!(!line.to_string().contains("secret"), "{line}");
}

#[tokio::test]
async fn a_stream_passes_event_by_event_and_its_usage_is_read() {
    let (reply, feed) =
        Reply::fed("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    let reply = std::sync::Mutex::new(Some(reply));
    let provider = Origin::start(move |_| reply.lock().unwrap().take().unwrap()).await;
    let gateway = start(&[openai(&provider)], "", "{ passthrough: [openai] }").await;
    let call = post("/passthrough/openai/v1/chat/completions", &json!({ "model": "gpt-4o", "stream": true }));
    let mut client = gateway.connect().await;
    client.send(call.bytes()).await.unwrap();
    assert_eq!(client.head().await.unwrap().0, 200);
    let event = |data: &str| format!("{:x}\r\n{data}\r\n", data.len());
    let first = "data: {\"model\":\"gpt-4o\",\"choices\":[]}\n\n";
    assert!(feed.send(event(first)));
    assert_eq!(client.chunk().await.unwrap().as_deref(), Some(first.as_bytes()), "before the rest is said");
    assert!(feed.send(
        event("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n") + "0\r\n\r\n"
    ));
    assert!(client.chunk().await.unwrap().is_some());
    assert_eq!(client.chunk().await.unwrap(), None);
    drop(feed);
    let ai = &gateway.access_log(1).await[0]["ai"];
    assert_eq!((&ai["model"], &ai["output_tokens"]), (&json!("gpt-4o"), &json!(2)), "{ai}");
}

#[tokio::test]
async fn what_a_route_does_not_list_cannot_be_reached() {
    let provider = Origin::start(|_| Reply::ok("")).await;
    let other = ("other", "openai", "openai_chat", "/team/v1", &provider);
    let gateway = start(&[openai(&provider), other], "", "{ passthrough: [other] }").await;
    for path in [
        "/passthrough/openai/v1/models",
        "/passthrough/nobody/v1/models",
        "/passthrough/other/../../secret",
        "/passthrough/other/..%2f..%2fsecret",
        "/passthrough/other/v1/%2e%2e/%2e%2e/secret",
        "/passthrough/other",
    ] {
        let answer = gateway.get(path).await;
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.status);
    }
    assert_eq!(provider.count(), 0);
    assert_eq!(gateway.get("/passthrough/other/v1/x").await.status, 200);
    assert_eq!(provider.requests()[0].target, "/team/v1/x");

    let closed = start(&[openai(&provider)], "", "{}").await;
    for path in ["/passthrough/openai/v1/models", "/v1/files", "/v1/batches"] {
        assert_eq!(closed.get(path).await.status, 404, "{path}");
    }
    let wrong = yaml(&[openai(&provider)], "", "{ passthrough: [opnai] }");
    let problems = problems_of(&wrong);
    assert!(problems.contains("passthrough[0]") && problems.contains("openai"), "{problems}");
}

#[tokio::test]
async fn a_large_upload_streams_within_its_bounds() {
    let provider = Origin::start(|request| Reply::ok(request.body.len().to_string())).await;
    let gateway = start(&[openai(&provider)], "", "{ passthrough: [openai] }").await;
    let send = |length: usize| Call::post("/passthrough/openai/v1/uploads", vec![7; length]);
    assert_eq!(gateway.call(&send(60_000)).await.text(), "60000");
    assert_eq!(gateway.call(&send(70_000)).await.status, 413);
    let chunked = |count: usize| {
        let head =
            "POST /passthrough/openai/v1/uploads HTTP/1.1\r\nHost: test.example\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunk = [b"2710\r\n".as_slice(), &[7; 10_000], b"\r\n"].concat();
        [head.as_bytes(), &chunk.repeat(count), b"0\r\n\r\n"].concat()
    };
    let mut client = gateway.connect().await;
    client.send(chunked(6)).await.unwrap();
    assert_eq!(client.answer().await.unwrap().text(), "60000");
    let mut client = gateway.connect().await;
    let _ = client.send(chunked(7)).await;
    assert_eq!(client.answer().await.unwrap().status, 413);
    assert!(provider.violations().is_empty(), "{:?}", provider.violations());
}

#[tokio::test]
async fn errors_of_providers_pass_but_not_what_they_say_of_the_key() {
    let provider = Origin::start(|request| match request.path() {
        "/v1/refused" => Reply::with(401, &[], format!("Incorrect API key provided: {KEY}")),
        "/v1/wrong" => Reply::with(422, &[("Content-Type", "application/json")], "{\"error\":{\"message\":\"wrong\"}}"),
        _ => Reply::raw("").reset(),
    })
    .await;
    let gateway = start(&[openai(&provider)], "", "{ passthrough: [openai] }").await;
    let wrong = gateway.get("/passthrough/openai/v1/wrong").await;
    assert_eq!((wrong.status, &wrong.json()["error"]["message"]), (422, &json!("wrong")));
    assert_eq!(gateway.get("/passthrough/openai/v1/reset").await.status, 502);
    let refused = gateway.get("/passthrough/openai/v1/refused").await;
    assert!(refused.status == 502 && !refused.text().contains("secret"), "{}", refused.text());
}

#[tokio::test]
async fn files_and_batches_are_those_of_the_provider_that_is_meant() {
    let first = Origin::start(|_| json_reply(&json!({ "id": "file-1", "object": "file" }))).await;
    let second = Origin::start(|_| Reply::with(200, &[("Content-Type", "application/octet-stream")], b"lines")).await;
    let providers = [openai(&first), ("azure", "groq", "openai_chat", "/openai/v1", &second)];
    let gateway = start(&providers, "", "{ passthrough: [openai, azure] }").await;
    let upload = Call::post("/v1/files", form(None, b"{}")).header("Content-Type", "multipart/form-data; boundary=XX");
    let answer = gateway.call(&upload).await;
    assert_eq!((answer.status, &answer.json()["id"]), (200, &json!("file-1")));
    assert!(first.requests()[0].body == form(None, b"{}"));
    let content = gateway.get("/v1/files/file-1/content?provider=azure").await;
    assert_eq!(content.text(), "lines");
    assert_eq!(second.requests()[0].target, "/openai/v1/files/file-1/content");
    let named = Call::new("DELETE", "/v1/files/file-1").header("headgate-ai-provider", "azure");
    assert_eq!(gateway.call(&named).await.status, 200);
    assert_eq!(second.requests()[1].method, "DELETE");
    let batch = post("/v1/batches", &json!({ "input_file_id": "file-1", "endpoint": "/v1/chat/completions" }));
    assert_eq!(gateway.call(&batch).await.status, 200);
    assert_eq!(gateway.get("/v1/batches?limit=2").await.status, 200);
    assert_eq!(first.requests()[2].target, "/v1/batches?limit=2");
    let unknown = gateway.get("/v1/files?provider=nobody").await;
    assert_eq!(unknown.status, 404);
    // Lines of different connections come in any order.
    let log = gateway.access_log(6).await;
    let of = |method: &str, operation: &str| {
        let is = |line: &&Value| line["method"] == method && line["ai"]["operation"] == operation;
        log.iter().find(is).unwrap_or_else(|| panic!("{method} {operation} in {log:?}"))["ai"].get("cost")
    };
    assert_eq!(of("POST", "files"), Some(&json!(0.0)));
    assert_eq!(of("GET", "batches"), Some(&json!(0.0)));
    assert_eq!(of("POST", "batches"), None, "what it will cost is unknown");
}

#[tokio::test]
async fn stored_responses_are_reached_where_they_are_kept() {
    let kept = json!({ "id": "resp_1", "object": "response", "usage": { "input_tokens": 5, "output_tokens": 5 } });
    let provider = Origin::start(move |_| json_reply(&kept)).await;
    let responses = ("openai", "openai", "openai_responses", "/v1", &provider);
    let gateway = start(&[responses], "", "{}").await;
    for (method, path) in [
        ("GET", "/v1/responses/resp_1?include[]=x"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("GET", "/v1/responses/resp_1/input_items"),
    ] {
        let answer = gateway.call(&Call::new(method, path)).await;
        assert_eq!((answer.status, &answer.json()["id"]), (200, &json!("resp_1")), "{path}");
        let sent = provider.requests().pop().unwrap();
        assert_eq!((sent.method.as_str(), sent.target.as_str()), (method, path));
    }
    for line in gateway.access_log(4).await {
        assert_eq!(
            (&line["ai"]["cost"], line["ai"].get("input_tokens")),
            (&json!(0.0), None),
            "it was paid for before"
        );
    }
    let more = "  models: { mine: { targets: [{ model: chat/x }] } }\n";
    let chat = ("chat", "vllm", "openai_chat", "/v1", &provider);
    let elsewhere = start(&[responses, chat], more, "{ models: [mine] }").await;
    assert_eq!(elsewhere.get("/v1/responses/resp_1").await.status, 404, "of that provider no model may be called");
}

/// A provider of realtime that says what it was asked for, and then returns every message with a usage.
async fn realtime_provider()
-> (std::net::SocketAddr, tokio::sync::mpsc::UnboundedReceiver<(String, Vec<(String, String)>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                #[allow(clippy::result_large_err, reason = "the signature is tungstenite's")]
                let check = |request: &Request, mut response: Response| {
                    let headers = request.headers().iter();
                    let headers =
                        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("").to_owned()));
                    let _ = seen.send((request.uri().to_string(), headers.collect()));
                    if request.headers().contains_key("sec-websocket-protocol") {
                        response.headers_mut().insert("sec-websocket-protocol", "realtime".parse().unwrap());
                    }
                    Ok(response)
                };
                let Ok(mut socket) = accept_hdr_async(tcp, check).await else { return };
                while let Some(Ok(message)) = socket.next().await {
                    if !message.is_text() {
                        continue;
                    }
                    let done = json!({ "type": "response.done", "response": { "usage": { "input_tokens": 10, "output_tokens": 4,
                                       "output_token_details": { "audio_tokens": 3 } } } });
                    if socket.send(message).await.is_err()
                        || socket.send(Message::text(done.to_string())).await.is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    (address, heard)
}

#[tokio::test]
async fn a_realtime_call_is_a_websocket_with_the_gateways_key() {
    let (address, mut heard) = realtime_provider().await;
    let text = yaml(&[], "", "{ passthrough: [openai] }")
        + &format!(
            "    openai: {{ base_urls: {{ openai_chat: 'http://{address}/v1' }}, keys: [{{ secret: env:KEY }}] }}\n"
        );
    let gateway = Gateway::builder(&text).environment("KEY", KEY).start().await;
    for (path, want) in [
        ("/v1/realtime?model=openai/gpt-realtime&intent=x", "/v1/realtime?model=gpt-realtime&intent=x"),
        ("/passthrough/openai/ws/google.BidiGenerateContent?key=stolen", "/ws/google.BidiGenerateContent"),
    ] {
        let tcp = TcpStream::connect(gateway.address("http")).await.unwrap();
        let mut request = format!("ws://test.example{path}").into_client_request().unwrap();
        let protocols = "realtime, openai-insecure-api-key.sk-of-the-caller, openai-beta.realtime-v1";
        request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
        request.headers_mut().insert("authorization", "Bearer sk-of-the-caller".parse().unwrap());
        let (mut socket, answer) = client_async(request, tcp).await.expect("the upgrade is agreed to");
        assert_eq!(answer.headers()["sec-websocket-protocol"], "realtime");
        for _ in 0..2 {
            socket.send(Message::text("{\"type\":\"response.create\"}")).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("{\"type\":\"response.create\"}"));
            assert!(socket.next().await.unwrap().unwrap().into_text().unwrap().contains("response.done"));
        }
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
        let (target, headers) = heard.recv().await.unwrap();
        assert_eq!(target, want);
        let of = |name: &str| headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str());
        assert_eq!(of("authorization"), Some(format!("Bearer {KEY}").as_str()));
        assert_eq!(of("sec-websocket-protocol"), Some("realtime, openai-beta.realtime-v1"));
        assert!(!format!("{headers:?}").contains("of-the-caller"), "{headers:?}");
    }
    let log = gateway.access_log(2).await;
    for operation in ["realtime", "passthrough"] {
        assert!(log.iter().any(|line| line["ai"]["operation"] == operation), "{operation} in {log:?}");
    }
    for line in &log {
        assert_eq!(
            (&line["ai"]["input_tokens"], &line["ai"]["output_tokens"]),
            (&json!(20), &json!(8)),
            "both answers: {line}"
        );
        assert!(!line.to_string().contains("secret"), "{line}");
    }
    assert_eq!(gateway.get("/v1/realtime?model=openai/gpt-realtime").await.status, 400, "no WebSocket is asked for");
}

#[tokio::test]
async fn the_example_gives_a_team_all_of_a_provider_and_others_its_models() {
    let provider = Origin::start(|_| json_reply(&vectors())).await;
    let own = format!("openai: {{ base_urls: {{ openai_chat: 'http://{}/v1' }}, keys", provider.address);
    let gateway = Gateway::start(&gateway::example("ai_passthrough").replace("openai: { keys", &own)).await;
    let key = "Bearer hgk_exampleexampleexampleexample01231XI1lm";
    for (path, status) in [
        ("/team/passthrough/openai/v1/vector_stores", 200),
        ("/team/v1/files", 200),
        ("/team/passthrough/anthropic/v1/models", 404),
        ("/passthrough/openai/v1/vector_stores", 404),
        ("/v1/files", 404),
    ] {
        assert_eq!(gateway.get(path).await.status, 401, "{path} without a key");
        assert_eq!(gateway.call(&Call::get(path).header("Authorization", key)).await.status, status, "{path}");
    }
    assert_eq!(provider.count(), 2);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_made_to_look_whole() {
    let provider = Origin::start(|_| {
        Reply::raw("HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .close()
    })
    .await;
    let gateway = start(&[openai(&provider)], "", "{ passthrough: [openai] }").await;
    for path in ["/passthrough/openai/v1/x", "/v1/audio/speech"] {
        let body = json!({ "model": "openai/tts-1", "input": "Hello" });
        let mut client = gateway.connect().await;
        client.send(post(path, &body).bytes()).await.unwrap();
        assert_eq!(client.head().await.unwrap().0, 200);
        assert_eq!(client.chunk().await.unwrap(), Some(b"abc".to_vec()));
        assert!(client.chunk().await.is_err(), "the end of the body must not be told: {path}");
    }
    for line in gateway.access_log(2).await {
        assert_eq!(line["ai"]["provider"], "openai");
    }
    assert_eq!(gateway.metric("headgate_ai_failures_total", &[("provider", "openai")]).await, 2.0);
}

#[tokio::test]
async fn a_caller_who_leaves_ends_the_providers_work_and_what_was_used_is_kept() {
    let text =
        "data: {\"model\":\"gpt-4o\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n";
    let (reply, feed) = Reply::fed(format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n",
        text.len()
    ));
    let reply = std::sync::Mutex::new(Some(reply));
    let provider = Origin::start(move |_| reply.lock().unwrap().take().unwrap()).await;
    let gateway = start(&[openai(&provider)], "", "{ passthrough: [openai] }").await;
    let mut client = gateway.connect().await;
    client.send(post("/passthrough/openai/v1/chat/completions", &json!({ "stream": true })).bytes()).await.unwrap();
    assert_eq!(client.head().await.unwrap().0, 200);
    assert!(client.chunk().await.unwrap().is_some());
    drop(client);
    assert!(feed.abandoned().await);
    assert_eq!(gateway.access_log(1).await[0]["ai"]["output_tokens"], 2);
}

#[tokio::test]
async fn a_provider_that_refuses_an_upload_early_is_heard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut some = [0; 1024];
            let _ = tcp.read(&mut some).await;
            let _ =
                tcp.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge").await;
            let _ = tcp.shutdown().await;
            // Whatever is still on the way is not read.
            let _ = tcp.read(&mut some).await;
        }
    });
    let text = yaml(&[], "", "{ passthrough: [openai] }").replace("64KiB", "32MiB")
        + &format!(
            "    openai: {{ base_urls: {{ openai_chat: 'http://{address}/v1' }}, keys: [{{ secret: env:KEY }}] }}\n"
        );
    let gateway = Gateway::builder(&text).environment("KEY", KEY).start().await;
    let small = gateway.call(&Call::post("/passthrough/openai/v1/x", "x")).await;
    assert_eq!((small.status, small.text().as_str()), (413, "large"));
    let large = gateway.call(&Call::post("/passthrough/openai/v1/x", vec![7; 20 << 20])).await;
    assert!(matches!(large.status, 413 | 502), "an answer, and not silence: {}", large.status);
}

#[tokio::test]
async fn what_passes_to_amazon_is_signed_as_a_whole() {
    let provider =
        Origin::start(|request| json_reply(&json!({ "seen": String::from_utf8_lossy(&request.body) }))).await;
    let text = yaml(&[], "", "{ passthrough: [bedrock] }")
        + &format!(
            "    bedrock: {{ base_urls: {{ bedrock: 'http://{}' }}, keys: [{{ secret: env:AWS }}] }}\n",
            provider.address
        );
    let gateway = Gateway::builder(&text).environment("AWS", "AKIDEXAMPLE:topsecret").start().await;
    let call = post("/passthrough/bedrock/model/amazon.nova-lite-v1%3A0/invoke", &json!({ "x": 1 }));
    let answer = gateway.call(&call).await;
    assert_eq!((answer.status, &answer.json()["seen"]), (200, &json!("{\"x\":1}")), "{}", answer.text());
    let sent = &provider.requests()[0];
    assert_eq!(sent.target, "/model/amazon.nova-lite-v1%3A0/invoke");
    let authorization = sent.headers.get("authorization").unwrap();
    assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"), "{authorization}");
    assert!(authorization.contains("SignedHeaders=content-type;host;x-amz-date"), "{authorization}");
}
