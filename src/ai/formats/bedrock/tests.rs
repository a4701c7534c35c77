//! What depends on the model, and what Converse is strict about.

use serde_json::{Value, json};

use super::*;
use crate::ai::chat::{
    CacheMark, ChatEvent, Effort, Message, Part, Reasoning, Role, Source, Tool, ToolCall, ToolChoice, ToolResult,
};
use crate::ai::quirks::Quirk;
use crate::ai::stream::Frame;

const CLAUDE: &str = "eu.anthropic.claude-sonnet-4-20250514-v1:0";

fn text(text: &str, cache: Option<CacheMark>) -> Part {
    Part::Text { text: text.into(), cache }
}

fn asking(parts: Vec<Part>) -> ChatRequest {
    ChatRequest { messages: vec![Message { role: Role::User, parts }], ..ChatRequest::default() }
}

fn written(request: &ChatRequest, model: &str, quirks: &[Quirk]) -> (Value, Vec<String>) {
    let mut dropped = Dropped::default();
    let body = Bedrock.encode_request(request, model, quirks.iter().copied().collect(), &mut dropped).unwrap();
    (serde_json::from_slice(&body).unwrap(), dropped.iter().map(str::to_owned).collect())
}

#[test]
fn ids_of_models_are_encoded_in_the_path() {
    assert_eq!(path(CLAUDE, Operation::Converse), "/model/eu.anthropic.claude-sonnet-4-20250514-v1%3A0/converse");
    let arn = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-lite-v1:0";
    assert_eq!(
        path(arn, Operation::ConverseStream),
        "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2Fus.amazon.nova-lite-v1%3A0/converse-stream"
    );
}

#[test]
fn the_maker_of_a_model_is_read_from_its_id() {
    for (model, maker) in [
        (CLAUDE, Maker::Anthropic),
        ("anthropic.claude-v2", Maker::Anthropic),
        ("arn:aws:bedrock:us-east-1::foundation-model/us.amazon.nova-lite-v1:0", Maker::Nova),
        ("global.amazon.nova-2-lite-v1:0", Maker::NovaTwo),
        ("openai.gpt-oss-120b-1:0", Maker::OpenAi),
        ("mistral.mistral-large-2407-v1:0", Maker::Mistral),
        ("meta.llama3-70b-instruct-v1:0", Maker::Other),
        ("notanthropic.x", Maker::Other),
    ] {
        assert_eq!(Maker::of(model), maker, "{model}");
    }
}

#[test]
fn thinking_is_said_in_the_words_of_the_models_maker() {
    let request = ChatRequest {
        reasoning: Some(Reasoning { effort: Some(Effort::Max), ..Reasoning::default() }),
        max_tokens: Some(64_000),
        top_k: Some(7),
        ..asking(vec![text("Hi", None)])
    };
    let (claude, dropped) = written(&request, CLAUDE, &[]);
    let budget = json!({ "thinking": { "type": "enabled", "budget_tokens": 24000 } });
    assert_eq!((&claude["additionalModelRequestFields"], dropped.as_slice()), (&budget, &["top_k".to_owned()][..]));
    let (newer, _) = written(&request, CLAUDE, &[Quirk::AdaptiveThinking]);
    assert_eq!(newer["additionalModelRequestFields"], json!({ "thinking": { "type": "adaptive" } }));
    assert_eq!(newer["outputConfig"], json!({ "effort": "max" }));
    let (gpt, dropped) = written(&request, "openai.gpt-oss-20b-1:0", &[]);
    assert_eq!(gpt["additionalModelRequestFields"], json!({ "reasoning_effort": "high" }));
    assert_eq!(dropped, ["top_k"]);
    let (nova, _) = written(&request, "amazon.nova-2-lite-v1:0", &[]);
    assert_eq!(
        nova["additionalModelRequestFields"],
        json!({ "reasoningConfig": { "type": "enabled", "maxReasoningEffort": "high" }, "inferenceConfig": { "topK": 7 } })
    );
    let (llama, dropped) = written(&request, "meta.llama3-70b-instruct-v1:0", &[]);
    assert_eq!((llama.get("additionalModelRequestFields"), dropped.len()), (None, 2));
}

#[test]
fn cache_points_stand_behind_what_they_end_for_models_that_cache() {
    let mark = Some(CacheMark { long: false });
    let request = ChatRequest {
        tools: vec![Tool { name: "f".into(), cache: Some(CacheMark { long: true }), ..Tool::default() }],
        ..asking(vec![text("long", mark), text("short", None)])
    };
    let (body, dropped) = written(&request, CLAUDE, &[]);
    let point = json!({ "cachePoint": { "type": "default" } });
    assert_eq!(body["messages"][0]["content"], json!([{ "text": "long" }, point, { "text": "short" }]));
    assert_eq!(body["toolConfig"]["tools"][1], json!({ "cachePoint": { "type": "default", "ttl": "1h" } }));
    assert!(dropped.is_empty());
    let (body, dropped) = written(&request, "meta.llama3-70b-instruct-v1:0", &[]);
    assert_eq!(body["messages"][0]["content"], json!([{ "text": "long" }, { "text": "short" }]));
    assert_eq!(dropped, ["cache_control"]);
}

#[test]
fn tools_are_there_wherever_messages_speak_of_them() {
    let call = ToolCall { id: "c1".into(), name: "f".into(), ..ToolCall::default() };
    let result = ToolResult { id: "c1".into(), is_error: true, ..ToolResult::default() };
    let mut request = asking(vec![text("Hi", None)]);
    request.messages.push(Message { role: Role::Assistant, parts: vec![Part::ToolCall(call)] });
    request.messages.push(Message { role: Role::User, parts: vec![text("so?", None), Part::ToolResult(result)] });
    let (body, _) = written(&request, CLAUDE, &[]);
    let schema = json!({ "json": { "type": "object", "properties": {} } });
    assert_eq!(body["toolConfig"], json!({ "tools": [{ "toolSpec": { "name": "f", "inputSchema": schema } }] }));
    assert_eq!(
        body["messages"][2]["content"],
        json!([
            { "toolResult": { "toolUseId": "c1", "content": [{ "text": " " }], "status": "error" } },
            { "text": "so?" },
        ])
    );
    request.tool_choice = Some(ToolChoice::None);
    assert_eq!(written(&request, CLAUDE, &[]).1, ["tool_choice"], "it cannot be said here");
    let none = ChatRequest {
        tools: vec![Tool { name: "f".into(), ..Tool::default() }],
        tool_choice: Some(ToolChoice::None),
        ..asking(vec![text("Hi", None)])
    };
    assert_eq!(written(&none, CLAUDE, &[]).0.get("toolConfig"), None);
}

#[test]
fn long_ids_of_calls_are_cut_and_still_tell_calls_apart() {
    let id = |letter: &str| format!("{}{letter}", "x".repeat(80));
    let call = |letter: &str| Part::ToolCall(ToolCall { id: id(letter), name: "f".into(), ..ToolCall::default() });
    let result = |letter: &str| Part::ToolResult(ToolResult { id: id(letter), ..ToolResult::default() });
    let mut request = asking(vec![text("Hi", None)]);
    request.messages.push(Message { role: Role::Assistant, parts: vec![call("a"), call("b")] });
    request.messages.push(Message { role: Role::User, parts: vec![result("a"), result("b")] });
    let (body, _) = written(&request, CLAUDE, &[]);
    let called = |index: usize| body["messages"][1]["content"][index]["toolUse"]["toolUseId"].as_str().unwrap();
    let answered = |index: usize| body["messages"][2]["content"][index]["toolResult"]["toolUseId"].as_str().unwrap();
    assert_eq!((called(0), called(1)), (answered(0), answered(1)));
    assert_ne!(called(0), called(1));
    assert_eq!(called(0).len(), 64);
}

#[test]
fn documents_have_names_that_bedrock_takes_each_once() {
    let document = |name: Option<&str>| Part::Document {
        source: Source::Data { media_type: "application/pdf".into(), base64: "JVBERi0=".into() },
        name: name.map(str::to_owned),
        cache: None,
    };
    let parts = vec![
        document(Some("Übersicht_2024 (final).pdf")),
        document(None),
        document(None),
        document(Some("document 2")),
        document(Some("…")),
    ];
    let (body, _) = written(&asking(parts), CLAUDE, &[]);
    let content = body["messages"][0]["content"].as_array().unwrap();
    let names: Vec<&str> = content.iter().map(|block| block["document"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bersicht 2024 (final)", "document", "document 2", "document 2 2", "document 3"]);
}

#[test]
fn nothing_a_provider_sends_makes_it_panic() {
    let answer = include_bytes!("../../../../tests/golden/answers/thinking-tools.bedrock.json");
    for at in 0..answer.len() {
        for byte in [b'"', b'{', b'7', 0xff] {
            let mut changed = answer.to_vec();
            changed[at] = byte;
            let _ = Bedrock.decode_answer(&changed);
            let _ = Bedrock.decode_failure(500, &HeaderMap::new(), &changed);
        }
        let _ = Bedrock.decode_answer(&answer[..at]);
    }
    for event in
        ["messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata"]
    {
        for data in ["null", "{}", "[]", "{\"delta\":7}", "{\"delta\":{\"text\":\"x\"}}", "{\"start\":{}}", "\u{1}"] {
            let (mut decoder, mut events) = (Bedrock.decoder(), Vec::new());
            for _ in 0..2 {
                decoder.decode(&Frame { event: Some(event), data: data.as_bytes() }, &mut events);
            }
            decoder.finish(&mut events);
            assert!(matches!(events.last(), Some(ChatEvent::End | ChatEvent::Error(_))), "{event} {data}: {events:?}");
        }
    }
}
