//! Answers that are given again: to whom, for how long, and in which form.

use serde_json::json;

use crate::ai::*;
use crate::support::gateway::key_hash;
use crate::support::*;

async fn caching(provider: &Origin, cache: &str, more: &str) -> Gateway {
    let backend = format!("backend: {{ ai: {{ {cache} }} }}");
    let text = yaml(&[("openai", provider, "openai_chat")], more).replace("backend: { ai: {} }", &backend);
    Gateway::builder(&text).environment("KEY", OPENAI_KEY).start().await
}

fn asked(body: &str) -> Call {
    Call::post("/v1/chat/completions", body)
}

fn hi(more: &str) -> Call {
    asked(&format!(r#"{{"model":"openai/gpt-4o","messages":[{{"role":"user","content":"Hi"}}]{more}}}"#))
}

async fn answering() -> Origin {
    Origin::start(|request| match String::from_utf8_lossy(&request.body).contains("\"stream\":true") {
        true => hello_stream(),
        false => json_reply(completion("Hello")),
    })
    .await
}

#[tokio::test]
async fn who_asks_the_same_again_gets_the_same_answer_and_no_provider_is_asked() {
    let provider = answering().await;
    let gateway = caching(&provider, "cache: { scope: shared }", "").await;
    let first = gateway.call(&hi("")).await;
    assert_eq!((first.status, first.header("headgate-ai-cache")), (200, Some("miss")), "{}", first.text());
    let same = r#" { "messages": [ {"content": "Hi", "role": "user"} ], "model": "openai/gpt-4o", "stream": false }"#;
    let second = gateway.call(&asked(same)).await;
    assert_eq!((second.header("headgate-ai-cache"), second.header("age").is_some()), (Some("hit"), true));
    assert_eq!(second.text(), first.text(), "every byte, also of unknown fields");
    assert_eq!((second.header("headgate-ai-provider"), second.header("headgate-ai-attempts")), (Some("openai"), None));
    for other in [r#","temperature":0.5"#, r#","user":"x""#] {
        assert_eq!(gateway.call(&hi(other)).await.header("headgate-ai-cache"), Some("miss"), "{other}");
    }
    assert_eq!(provider.count(), 3);
    let line = &gateway.access_log(4).await[1]["ai"];
    assert_eq!(
        (&line["cache"], &line["cost"], line.get("output_tokens")),
        (&json!("hit"), &json!(0.0), None),
        "{line}"
    );
    assert_eq!(gateway.metric("headgate_ai_cache_lookups_total", &[("result", "hit")]).await, 1.0);
    assert_eq!(gateway.metric("headgate_ai_cache_entries", &[]).await, 3.0);
    let calls = [("provider", "openai"), ("model", "gpt-4o")];
    assert_eq!(gateway.metric("headgate_ai_calls_total", &calls).await, 3.0, "a hit is no call of the provider");
}

#[tokio::test]
async fn a_streamed_answer_serves_who_wants_it_whole_and_the_other_way_round() {
    let provider = answering().await;
    let gateway = caching(&provider, "cache: { scope: shared }", "").await;
    let stream = gateway.call(&hi(r#","stream":true"#)).await;
    assert_eq!((stream.header("headgate-ai-cache"), said(&stream.text()).as_str()), (Some("miss"), "Hello"));
    let whole = gateway.call(&hi("")).await;
    assert_eq!(whole.header("headgate-ai-cache"), Some("hit"));
    let answer = whole.json();
    assert_eq!(
        (&answer["choices"][0]["message"]["content"], &answer["object"]),
        (&json!("Hello"), &json!("chat.completion"))
    );
    let again = gateway.call(&hi(r#","stream":true"#)).await;
    assert_eq!((again.header("headgate-ai-cache"), said(&again.text()).as_str()), (Some("hit"), "Hello"));
    assert!(again.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")));
    assert!(again.text().ends_with("data: [DONE]\n\n") && !again.text().contains("prompt_tokens"), "{}", again.text());
    assert_eq!(provider.count(), 1);
    let other = r#"{"model":"openai/gpt-4o","messages":[{"role":"user","content":"Hello?"}]}"#;
    assert_eq!(gateway.call(&asked(other)).await.header("headgate-ai-cache"), Some("miss"));
    let streamed = gateway.call(&asked(&other.replace("}]}", "}],\"stream\":true}"))).await;
    assert_eq!((streamed.header("headgate-ai-cache"), said(&streamed.text()).as_str()), (Some("hit"), "Hello"));
    let anthropic = r#"{"model":"openai/gpt-4o","max_tokens":9,"messages":[{"role":"user","content":"Hi"}]}"#;
    let call = Call::post("/v1/messages", anthropic);
    assert_eq!(gateway.call(&call).await.header("headgate-ai-cache"), Some("miss"), "another dialect, another call");
    let hit = gateway.call(&call).await;
    assert_eq!((hit.header("headgate-ai-cache"), &hit.json()["type"]), (Some("hit"), &json!("message")));
}

#[tokio::test]
async fn what_a_caller_says_of_caches_holds() {
    let provider = answering().await;
    let gateway = caching(&provider, "cache: { scope: shared }", "").await;
    let with = |directive: &str| hi("").header("Cache-Control", directive);
    let lonely = gateway.call(&with("only-if-cached")).await;
    assert_eq!((lonely.status, provider.count()), (504, 0), "{}", lonely.text());
    for (directive, state, count) in [
        ("no-store", "bypass", 1),
        ("max-age=60", "miss", 2),
        ("max-age=60", "hit", 2),
        ("max-age=0", "miss", 3),
        ("no-cache", "bypass", 4),
        ("only-if-cached", "hit", 4),
    ] {
        let answer = gateway.call(&with(directive)).await;
        let seen = (answer.status, answer.header("headgate-ai-cache"), provider.count());
        assert_eq!(seen, (200, Some(state), count), "{directive}");
    }
}

#[tokio::test]
async fn answers_of_one_tenant_are_not_given_to_another() {
    let provider = answering().await;
    let text = yaml(&[("openai", &provider, "openai_chat")], "")
        .replace("backend: { ai: {} }", "backend: { ai: { cache: {} } }");
    let anonymous = Gateway::builder(&text).environment("KEY", OPENAI_KEY).start().await;
    for _ in 0..2 {
        assert_eq!(anonymous.call(&hi("")).await.header("headgate-ai-cache"), Some("bypass"), "nobody's are nobody's");
    }

    let keys = ["a-key-of-the-first-consumer", "a-key-of-the-second-consumer", "a-key-of-the-third-consumer"];
    let consumers: String = [("a", "red"), ("b", "red"), ("c", "blue")]
        .iter()
        .zip(keys)
        .map(|((name, team), key)| {
            format!("  {name}: {{ team: {team}, credentials: [{{ api_key: {{ hash: '{}' }} }}] }}\n", key_hash(key))
        })
        .collect();
    for (scope, states) in [("consumer", ["miss", "miss", "miss", "hit"]), ("team", ["miss", "hit", "miss", "hit"])] {
        let text = text
            .replace("cache: {}", &format!("cache: {{ scope: {scope} }}"))
            .replace("routes:", "filters: [{ api_key: { from: [bearer] } }], access: authenticated, routes:");
        let text = format!("{text}\nconsumers:\n{consumers}");
        let gateway = Gateway::builder(&text).environment("KEY", OPENAI_KEY).start().await;
        for (key, state) in keys.iter().chain([&keys[0]]).zip(states) {
            let answer = gateway.call(&hi("").header("Authorization", &format!("Bearer {key}"))).await;
            assert_eq!((answer.status, answer.header("headgate-ai-cache")), (200, Some(state)), "{scope}: {key}");
        }
    }
}

#[tokio::test]
async fn only_whole_answers_that_a_guardrail_lets_through_are_kept() {
    let provider = Origin::start(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
        match (body.contains("broken"), body.contains("\"stream\":true")) {
            (true, true) => Reply::raw(format!("{head}{}", chunk(json!({ "content": "Hel" }), None))).close(),
            (true, false) => error_reply(500, &[]),
            (false, true) => hello_stream(),
            (false, false) => json_reply(completion("Hello, jane@example.com")),
        }
    })
    .await;
    let guardrails = "  guardrails: { privacy: { pii: { types: [email] }, action: mask } }\n";
    let gateway = caching(&provider, "cache: { scope: shared }, guardrails: [privacy]", guardrails).await;
    let broken = hi(r#","x":"broken","stream":true"#);
    gateway.call(&broken).await;
    assert_eq!(gateway.call(&broken).await.header("headgate-ai-cache"), Some("miss"));
    let failing = hi(r#","x":"broken""#);
    gateway.call(&failing).await;
    let count = provider.count();
    gateway.call(&failing).await;
    assert!(provider.count() > count, "an error is no answer");
    assert_eq!(gateway.call(&hi("")).await.json()["choices"][0]["message"]["content"], "Hello, [email]");
    let again = gateway.call(&hi(r#","stream":true"#)).await;
    assert_eq!((again.header("headgate-ai-cache"), said(&again.text()).as_str()), (Some("hit"), "Hello, [email]"));
}

#[tokio::test]
async fn a_similar_question_gets_the_answer_that_was_given_and_a_failing_embedding_is_a_miss() {
    let provider = Origin::start(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        if !request.target.ends_with("/embeddings") {
            return json_reply(completion("Hello"));
        }
        let vector = match () {
            _ if body.contains("broken") => return error_reply(500, &[]),
            _ if body.contains("weather") => [1.0, 0.1, 0.0],
            _ => [0.0, 0.2, 1.0],
        };
        json_reply(json!({ "data": [{ "index": 0, "embedding": vector }] }).to_string())
    })
    .await;
    let cache = "cache: { scope: shared, semantic: { model: openai/text-embedding-3-small, threshold: 0.9 } }";
    let gateway = caching(&provider, cache, "").await;
    for (text, more, state) in [
        ("What is the weather?", "", "miss"),
        ("How is the weather today?", "", "semantic"),
        ("How is the weather today?", r#","temperature":1"#, "miss"),
        ("Tell me a joke", "", "miss"),
        ("broken weather", "", "miss"),
        ("What is the weather?", "", "hit"),
    ] {
        let body = format!(r#"{{"model":"openai/gpt-4o","messages":[{{"role":"user","content":"{text}"}}]{more}}}"#);
        let answer = gateway.call(&asked(&body)).await;
        assert_eq!((answer.status, answer.header("headgate-ai-cache")), (200, Some(state)), "{text}{more}");
    }
    let asked = provider.requests().iter().filter(|request| request.target == "/v1/embeddings").count();
    assert_eq!(asked, 5, "not for an exact hit");
    assert_eq!(gateway.metric("headgate_ai_cache_lookups_total", &[("result", "semantic")]).await, 1.0);
}
