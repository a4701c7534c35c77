//! What files of tests/golden cannot say: quirks, interleaved parts, hosts, and input that nobody should send.

use serde_json::{Value, json};

use super::hosted::{Host, adapt};
use super::*;
use crate::ai::chat::{
    ChatEvent, Choice, Effort, FailureKind, Message, OutputFormat, Part, PartKind, Reasoning, Role, Source, Stop,
    Thought, Tool, ToolCall, ToolChoice, ToolResult, Usage,
};
use crate::ai::quirks::Quirk;
use crate::ai::stream::{Frame, event_stream::EXCEPTION};

fn text(text: &str) -> Part {
    Part::Text { text: text.into(), cache: None }
}

fn message(role: Role, parts: Vec<Part>) -> Message {
    Message { role, parts }
}

fn asking() -> ChatRequest {
    ChatRequest {
        model: "claude".into(),
        messages: vec![message(Role::User, vec![text("Hi")])],
        ..ChatRequest::default()
    }
}

fn written(request: &ChatRequest, quirks: &[Quirk]) -> (Value, Vec<String>) {
    let mut dropped = Dropped::default();
    let quirks = quirks.iter().copied().collect();
    let body = Anthropic.encode_request(request, "claude-target", quirks, &mut dropped).unwrap();
    (serde_json::from_slice(&body).unwrap(), dropped.iter().map(str::to_owned).collect())
}

fn call(id: &str, name: &str, arguments: &str) -> Part {
    Part::ToolCall(ToolCall { id: id.into(), name: name.into(), arguments: arguments.into(), ..ToolCall::default() })
}

fn result(id: &str, content: &str) -> Part {
    Part::ToolResult(ToolResult { id: id.into(), content: vec![text(content)], ..ToolResult::default() })
}

#[test]
fn messages_take_turns_and_results_come_first() {
    let request = ChatRequest {
        messages: vec![
            message(Role::System, vec![text("One.")]),
            message(Role::User, vec![text("A")]),
            message(Role::User, vec![text("B"), text("")]),
            message(Role::Assistant, vec![text("")]),
            message(Role::Assistant, vec![call("call.1|x", "f", "{\"b\":1,\"a\":2}"), call("call2", "g", "")]),
            message(Role::User, vec![text("between"), result("call.1|x", "first")]),
            message(Role::System, vec![text("Two.")]),
            message(Role::User, vec![result("call2", "")]),
        ],
        ..asking()
    };
    let (body, dropped) = written(&request, &[]);
    assert_eq!(
        body["messages"],
        json!([
            { "role": "user", "content": [{ "type": "text", "text": "A" }, { "type": "text", "text": "B" }] },
            { "role": "assistant", "content": [
                { "type": "tool_use", "id": "call_1_x", "name": "f", "input": { "b": 1, "a": 2 } },
                { "type": "tool_use", "id": "call2", "name": "g", "input": {} },
            ] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": "call_1_x", "content": "first" },
                { "type": "tool_result", "tool_use_id": "call2" },
                { "type": "text", "text": "between" },
            ] },
        ])
    );
    assert_eq!(body["system"], json!([{ "type": "text", "text": "One." }, { "type": "text", "text": "Two." }]));
    assert_eq!(body["max_tokens"], write_request::ANSWER_TOKENS);
    assert!(dropped.is_empty(), "{dropped:?}");
}

#[test]
fn what_anthropic_has_no_word_for_is_named() {
    let request = ChatRequest {
        messages: vec![
            message(Role::User, vec![text("Hi"), Part::Audio { source: Source::Url("https://example.org/a".into()) }]),
            message(
                Role::Assistant,
                vec![
                    Part::Reasoning(Thought { text: "unsigned".into(), ..Thought::default() }),
                    Part::Reasoning(Thought { encrypted: Some("gemini:abc".into()), ..Thought::default() }),
                    text("Yes"),
                ],
            ),
        ],
        temperature: Some(1.5),
        top_p: Some(1.0),
        frequency_penalty: Some(0.5),
        presence_penalty: Some(0.0),
        seed: Some(7),
        choices: Some(2),
        stop: vec!["\n".into(), "END".into()],
        output: Some(OutputFormat::Json),
        tool_choice: Some(ToolChoice::Any),
        rest: serde_json::from_value(json!({ "logit_bias": {}, "tools[0]": {} })).unwrap(),
        ..asking()
    };
    let (body, dropped) = written(&request, &[]);
    assert_eq!(
        dropped,
        [
            "logit_bias",
            "tools[0]",
            "messages[0].audio",
            "messages[1].reasoning",
            "temperature",
            "response_format",
            "frequency_penalty",
            "seed",
            "n",
            "tool_choice",
            "stop"
        ]
    );
    assert_eq!(body["temperature"], 1.0);
    assert_eq!(body["stop_sequences"], json!(["END"]));
    assert_eq!((body.get("top_p"), body.get("tool_choice")), (None, None));
}

fn thinking(effort: Option<Effort>, budget: Option<u64>, max_tokens: Option<u64>) -> ChatRequest {
    ChatRequest { reasoning: Some(Reasoning { effort, budget, shown: None }), max_tokens, ..asking() }
}

#[test]
fn an_effort_becomes_a_budget_that_leaves_an_answer() {
    for (effort, max_tokens, budget, max) in [
        (Effort::Minimal, None, Some(1024), 9024),
        (Effort::High, None, Some(8192), 16192),
        (Effort::Max, None, Some(24000), 32000),
        (Effort::High, Some(20000), Some(8192), 20000),
        (Effort::High, Some(4000), Some(2000), 4000),
        (Effort::Low, Some(1025), Some(1024), 1025),
        (Effort::Low, Some(1024), None, 1024),
    ] {
        let (body, dropped) = written(&thinking(Some(effort), None, max_tokens), &[]);
        assert_eq!(body["thinking"]["budget_tokens"].as_u64(), budget, "{effort:?} {max_tokens:?}");
        assert_eq!(body["max_tokens"], max, "{effort:?} {max_tokens:?}");
        assert_eq!(dropped.is_empty(), budget.is_some(), "what is not done is said");
    }
    for (budget, max_tokens, want) in [(9999, 10000, 9999), (10000, 10000, 5000), (1, 10000, 1024)] {
        let (body, _) = written(&thinking(None, Some(budget), Some(max_tokens)), &[]);
        assert_eq!(body["thinking"], json!({ "type": "enabled", "budget_tokens": want }));
    }
    assert_eq!(written(&thinking(Some(Effort::None), None, None), &[]).0["thinking"], json!({ "type": "disabled" }));
    assert_eq!(written(&thinking(None, None, None), &[]).0["thinking"], json!({ "type": "adaptive" }));
}

#[test]
fn newer_models_take_an_effort_and_no_sampling() {
    let quirks = [Quirk::AdaptiveThinking, Quirk::NoSampling];
    let request = ChatRequest { temperature: Some(0.2), ..thinking(Some(Effort::ExtraHigh), None, None) };
    let (body, dropped) = written(&request, &quirks);
    assert_eq!(
        (&body["thinking"], &body["output_config"]),
        (&json!({ "type": "adaptive" }), &json!({ "effort": "xhigh" }))
    );
    assert_eq!(dropped, ["temperature"]);
    let (body, _) = written(&thinking(None, Some(5000), None), &quirks);
    assert_eq!(body["output_config"], json!({ "effort": "medium" }));
}

#[test]
fn thinking_gives_way_where_anthropic_refuses_it() {
    let tools = vec![Tool { name: "f".into(), ..Tool::default() }];
    let forced = ChatRequest {
        tools: tools.clone(),
        tool_choice: Some(ToolChoice::Tool("f".into())),
        ..thinking(Some(Effort::High), None, None)
    };
    let (body, dropped) = written(&forced, &[]);
    assert_eq!((body.get("thinking"), dropped.as_slice()), (None, &["reasoning".to_owned()][..]));
    assert_eq!(body["tool_choice"], json!({ "type": "tool", "name": "f" }));

    let replayed = |thought: Option<Part>| {
        let parts = thought.into_iter().chain([call("c", "f", "{}")]).collect();
        let turns = [message(Role::Assistant, parts), message(Role::User, vec![result("c", "1")])];
        let messages = asking().messages.into_iter().chain(turns).collect();
        ChatRequest { messages, tools: tools.clone(), ..thinking(Some(Effort::High), None, None) }
    };
    let (body, dropped) = written(&replayed(None), &[]);
    assert_eq!((body.get("thinking"), dropped.as_slice()), (None, &["reasoning".to_owned()][..]));
    let signed = Thought { text: "t".into(), signature: Some("s".into()), encrypted: None };
    assert_eq!(written(&replayed(Some(Part::Reasoning(signed))), &[]).0["thinking"]["type"], "enabled");
    assert!(written(&replayed(None), &[Quirk::AdaptiveThinking]).1.is_empty());

    let warm = ChatRequest {
        temperature: Some(0.5),
        top_k: Some(5),
        top_p: Some(0.5),
        ..thinking(Some(Effort::Low), None, None)
    };
    assert_eq!(written(&warm, &[]).1, ["temperature", "top_p", "top_k"]);
}

#[test]
fn tools_always_have_the_schema_of_an_object() {
    let tool = |parameters| Tool { name: "f".into(), parameters, ..Tool::default() };
    let request = ChatRequest {
        tools: vec![tool(None), tool(Some(json!({ "properties": {} }))), tool(Some(json!({ "type": "object" })))],
        tool_choice: None,
        parallel_tools: Some(false),
        ..asking()
    };
    let (body, _) = written(&request, &[]);
    for (index, want) in [
        json!({ "type": "object", "properties": {} }),
        json!({ "type": "object", "properties": {} }),
        json!({ "type": "object" }),
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(&body["tools"][index]["input_schema"], want);
    }
    assert_eq!(body["tool_choice"], json!({ "type": "auto", "disable_parallel_tool_use": true }));
}

#[test]
fn a_request_of_instructions_alone_is_the_callers_mistake() {
    let request = ChatRequest { messages: vec![message(Role::System, vec![text("x")])], ..asking() };
    let failure =
        Anthropic.encode_request(&request, "m", Quirks::default(), &mut Dropped::default()).expect_err("no message");
    assert_eq!((failure.kind, failure.param.as_deref()), (FailureKind::InvalidRequest, Some("messages")));
}

#[test]
fn hosts_get_the_model_in_the_path_and_a_version_in_the_body() {
    let request = ChatRequest { stream: true, ..asking() };
    let (bedrock, _) = written(&request, &[Quirk::AnthropicOnBedrock]);
    assert_eq!(
        bedrock,
        json!({
            "anthropic_version": "bedrock-2023-05-31",
            "max_tokens": 8000,
            "messages": [{ "role": "user", "content": "Hi" }],
        })
    );
    let (vertex, _) = written(&request, &[Quirk::AnthropicOnVertex]);
    assert_eq!((&vertex["anthropic_version"], &vertex["stream"]), (&json!("vertex-2023-10-16"), &json!(true)));
    assert_eq!(vertex.get("model"), None);
}

#[test]
fn a_callers_own_body_is_adapted_to_a_host_and_otherwise_kept() {
    let body =
        br#"{"model":"claude","z": {"b":1.0,"a":"\u00e9"}, "stream" : true,"anthropic_beta":["one"],"messages":[ ]}"#;
    let adapted = |host| String::from_utf8(adapt(body, host, &["one", " two", ""]).unwrap()).unwrap();
    assert_eq!(
        adapted(Host::Bedrock),
        r#"{"anthropic_version":"bedrock-2023-05-31","anthropic_beta":["one","two"],"z":{"b":1.0,"a":"\u00e9"},"messages":[ ]}"#
    );
    assert_eq!(
        adapted(Host::Vertex),
        r#"{"anthropic_version":"vertex-2023-10-16","z":{"b":1.0,"a":"\u00e9"},"stream":true,"anthropic_beta":["one"],"messages":[ ]}"#
    );
    assert!(adapt(b"[1]", Host::Vertex, &[]).is_err());
}

fn start() -> ChatEvent {
    ChatEvent::Start { id: "chatcmpl-1".into(), model: "gpt".into(), created: 1 }
}

fn part(part: u32, kind: PartKind) -> ChatEvent {
    ChatEvent::PartStart { part, choice: 0, kind }
}

fn tool(at: u32, id: &str) -> ChatEvent {
    part(at, PartKind::ToolCall { id: id.into(), name: "f".into() })
}

fn delta(part: u32, text: &str) -> ChatEvent {
    ChatEvent::Delta { part, text: text.into() }
}

/// What a caller receives, one line for each event: its name, and what is in it beside its type.
fn streamed(events: &[ChatEvent]) -> Vec<String> {
    let (mut encoder, mut out) = (Anthropic.encoder(&asking()), Vec::new());
    for event in events {
        encoder.encode(event, &mut out);
    }
    let out = String::from_utf8(out).unwrap();
    let lines = out.split("\n\n").filter(|event| !event.is_empty()).map(|event| {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name, "the name is said twice");
        match name {
            "message_start" => {
                format!("start {} {}", data["message"]["model"], data["message"]["usage"]["input_tokens"])
            }
            "content_block_start" => format!("+{} {}", data["index"], data["content_block"]),
            "content_block_delta" => format!("{} {}", data["index"], data["delta"]),
            "content_block_stop" => format!("-{}", data["index"]),
            "message_delta" => format!("{} {}", data["delta"], data["usage"]["output_tokens"]),
            "message_stop" => "stop".to_owned(),
            _ => format!("{name} {}", data["error"]),
        }
    });
    lines.collect()
}

#[test]
fn interleaved_calls_become_blocks_one_after_the_other() {
    let events = [
        start(),
        part(0, PartKind::Text),
        delta(0, "Let me"),
        tool(1, "call_a"),
        delta(1, "{\"x\""),
        tool(2, "call_b"),
        delta(2, "{\"y\":"),
        delta(1, ":1}"),
        delta(0, " see"),
        ChatEvent::PartEnd { part: 0 },
        delta(2, "2}"),
        ChatEvent::PartEnd { part: 2 },
        delta(1, " "),
        ChatEvent::PartEnd { part: 1 },
        ChatEvent::Stop { choice: 0, stop: Stop::ToolUse, stop_sequence: None },
        ChatEvent::Usage(Usage { input: 10, output: 5, ..Usage::default() }),
        ChatEvent::End,
        delta(2, "after the end"),
    ];
    assert_eq!(
        streamed(&events),
        [
            "start \"gpt\" 0",
            "+0 {\"type\":\"text\",\"text\":\"\"}",
            "0 {\"type\":\"text_delta\",\"text\":\"Let me\"}",
            "0 {\"type\":\"text_delta\",\"text\":\" see\"}",
            "-0",
            "+1 {\"type\":\"tool_use\",\"id\":\"call_a\",\"name\":\"f\",\"input\":{}}",
            "1 {\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"x\\\":1}\"}",
            "1 {\"type\":\"input_json_delta\",\"partial_json\":\" \"}",
            "-1",
            "+2 {\"type\":\"tool_use\",\"id\":\"call_b\",\"name\":\"f\",\"input\":{}}",
            "2 {\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"y\\\":2}\"}",
            "-2",
            "{\"stop_reason\":\"tool_use\",\"stop_sequence\":null} 5",
            "stop",
        ]
    );
}

#[test]
fn a_stream_is_whole_however_little_was_said_of_it() {
    assert_eq!(
        streamed(&[ChatEvent::End]),
        ["start \"claude\" 0", "{\"stop_reason\":\"end_turn\",\"stop_sequence\":null} 0", "stop"]
    );
    let signed = [
        start(),
        ChatEvent::Usage(Usage { input: 12, cache_read: 2, ..Usage::default() }),
        part(0, PartKind::Reasoning),
        delta(0, ""),
        ChatEvent::Signature { part: 0, signature: "ab".into() },
        ChatEvent::Signature { part: 0, signature: "cd".into() },
        delta(0, "hm"),
        part(1, PartKind::Image { media_type: "image/png".into() }),
        delta(1, "iVBO"),
        ChatEvent::PartStart { part: 2, choice: 1, kind: PartKind::Text },
        delta(2, "another answer"),
        tool(3, ""),
        ChatEvent::Stop { choice: 0, stop: Stop::End, stop_sequence: None },
        ChatEvent::End,
    ];
    let lines = streamed(&signed);
    assert_eq!(
        lines[..5],
        [
            "start \"gpt\" 10",
            "+0 {\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}",
            "0 {\"type\":\"thinking_delta\",\"thinking\":\"hm\"}",
            "0 {\"type\":\"signature_delta\",\"signature\":\"abcd\"}",
            "-0",
        ]
    );
    assert!(lines[5].starts_with("+1 {\"type\":\"tool_use\",\"id\":\"toolu_"), "an id is made up: {}", lines[5]);
    assert_eq!(lines[6..], ["-1", "{\"stop_reason\":\"tool_use\",\"stop_sequence\":null} 0", "stop"]);
}

#[test]
fn an_error_ends_the_stream_without_a_stop() {
    let failure = Failure::new(FailureKind::Overloaded, "Overloaded");
    let events = [start(), part(0, PartKind::Text), delta(0, "Once"), ChatEvent::Error(failure), ChatEvent::End];
    let lines = streamed(&events);
    assert_eq!(lines.last().unwrap(), "error {\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}");
    assert_eq!(lines.len(), 4);
}

#[test]
fn parts_that_wait_do_not_wait_without_bound() {
    let (mut encoder, mut out) = (Anthropic.encoder(&asking()), Vec::new());
    encoder.encode(&part(0, PartKind::Text), &mut out);
    encoder.encode(&tool(1, "a"), &mut out);
    let piece = delta(1, &"x".repeat(1 << 20));
    for _ in 0..40 {
        encoder.encode(&piece, &mut out);
    }
    assert!(String::from_utf8(out).unwrap().contains("event: error"));
}

#[test]
fn answers_of_other_dialects_are_whole_messages() {
    let answer = ChatAnswer {
        choices: vec![Choice {
            parts: vec![
                Part::Reasoning(Thought { text: "unsigned".into(), ..Thought::default() }),
                text(""),
                call("", "f", "not json"),
            ],
            stop: Stop::End,
            stop_sequence: None,
        }],
        ..ChatAnswer::default()
    };
    let body = Anthropic.encode_answer(&answer, &asking(), &mut Dropped::default());
    let mut body: Value = serde_json::from_slice(&body).unwrap();
    assert!(body["id"].take().as_str().unwrap().starts_with("msg_"));
    assert!(body["content"][1]["id"].take().as_str().unwrap().starts_with("toolu_"));
    assert_eq!(
        body,
        json!({
            "id": null, "type": "message", "role": "assistant", "model": "claude",
            "content": [
                { "type": "thinking", "thinking": "unsigned", "signature": "" },
                { "type": "tool_use", "id": null, "name": "f", "input": { "arguments": "not json" } },
            ],
            "stop_reason": "tool_use", "stop_sequence": null,
            "usage": { "input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0 },
        })
    );
}

fn decoded(frames: &[(Option<&str>, &str)]) -> Vec<ChatEvent> {
    let (mut decoder, mut events) = (Anthropic.decoder(), Vec::new());
    for (event, data) in frames {
        decoder.decode(&Frame { event: *event, data: data.as_bytes() }, &mut events);
    }
    decoder.finish(&mut events);
    events
}

#[test]
fn events_that_bedrock_has_wrapped_are_read_too() {
    use base64::Engine;
    let wrap =
        |event: &str| json!({ "bytes": base64::prelude::BASE64_STANDARD.encode(event), "p": "abcd" }).to_string();
    let bare = [
        r#"{"type":"message_start","message":{"id":"msg_bdrk_1","model":"claude","usage":{"input_tokens":3}}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}"#,
        r#"{"type":"content_block_stop","index":0}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}"#,
        r#"{"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":3}}"#,
    ];
    let wrapped: Vec<String> = bare.iter().map(|event| wrap(event)).collect();
    let frames: Vec<(Option<&str>, &str)> = wrapped.iter().map(|data| (Some("chunk"), data.as_str())).collect();
    let plain: Vec<(Option<&str>, &str)> = bare.iter().map(|data| (None, *data)).collect();
    assert_eq!(decoded(&frames), decoded(&plain));
    assert_eq!(decoded(&frames).last(), Some(&ChatEvent::End));

    let exception = [EXCEPTION, "throttlingException"].concat();
    let events = decoded(&[(Some(&exception), "{\"message\":\"slow down\"}")]);
    assert!(matches!(&events[..], [ChatEvent::Error(failure)] if failure.kind == FailureKind::RateLimited));
    assert!(matches!(&decoded(&[(Some("chunk"), "{\"bytes\":\"!\"}")])[..], [ChatEvent::Error(_)]));
}

#[test]
fn a_stream_of_blocks_that_never_stop_is_bounded() {
    let starts: Vec<String> = (0..5000)
        .map(|index| {
            format!(r#"{{"type":"content_block_start","index":{index},"content_block":{{"type":"text","text":""}}}}"#)
        })
        .collect();
    let frames: Vec<(Option<&str>, &str)> = starts.iter().map(|data| (None, data.as_str())).collect();
    let events = decoded(&frames);
    let ends = events.iter().filter(|event| matches!(event, ChatEvent::PartEnd { .. })).count();
    assert!(ends >= 4700, "{ends}: the oldest are closed");
}

#[test]
fn nothing_a_caller_or_a_provider_sends_makes_it_panic() {
    let request = include_bytes!("../../../../tests/golden/requests/media.anthropic.json");
    let answer = include_bytes!("../../../../tests/golden/answers/thinking-tools.anthropic.json");
    let read = |body: &[u8]| {
        if let Ok(request) = Anthropic.decode_request(body, PathFacts::default()) {
            let _ = Anthropic.encode_request(&request, "m", Quirks::default(), &mut Dropped::default());
        }
        let _ = Anthropic.decode_answer(body);
        let _ = Anthropic.decode_failure(400, &HeaderMap::new(), body);
        let (mut decoder, mut events) = (Anthropic.decoder(), Vec::new());
        decoder.decode(&Frame { event: Some("chunk"), data: body }, &mut events);
        decoder.decode(&Frame { event: None, data: body }, &mut events);
        decoder.finish(&mut events);
    };
    for body in [&request[..], &answer[..]] {
        for at in 0..body.len() {
            read(&body[..at]);
            for byte in [b'"', b'{', b'7', 0xff] {
                let mut changed = body.to_vec();
                changed[at] = byte;
                read(&changed);
            }
        }
    }
    for open in [
        "[",
        "{\"messages\":[",
        "{\"a\":",
        "{\"type\":\"message\",\"content\":[{\"type\":\"tool_use\",\"input\":{\"a\":",
    ] {
        read(open.repeat(50_000).as_bytes());
    }
    for wrong in [
        "null",
        "7",
        "\"x\"",
        "[]",
        "{}",
        "{\"type\":7}",
        "{\"error\":\"x\"}",
        "{\"content\":null,\"usage\":{\"input_tokens\":-1}}",
    ] {
        read(wrong.as_bytes());
    }
}
