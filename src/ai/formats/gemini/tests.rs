//! What golden files do not show: both directions in a row, hostile input, models that differ.

use serde_json::{Value, json};

use super::{GEMINI, GEMINI_ARRAY};
use crate::ai::chat::*;
use crate::ai::formats::{Caller, PathFacts, Provider};
use crate::ai::quirks::Quirks;
use crate::ai::stream::Framing;
use crate::ai::tool_ids;

const SIGNATURE: &str = "CtwBAVSoXO4+/w==";

fn written(request: &ChatRequest, model: &str) -> (Value, Vec<String>) {
    let mut dropped = Dropped::default();
    let body = GEMINI.encode_request(request, model, Quirks::default(), &mut dropped).unwrap();
    (serde_json::from_slice(&body).unwrap(), dropped.iter().map(str::to_owned).collect())
}

fn read(body: Value) -> Result<ChatRequest, Failure> {
    let path = PathFacts { model: Some("gemini-2.5-flash"), stream: Some(false) };
    GEMINI.decode_request(body.to_string().as_bytes(), path)
}

fn asking(parts: Vec<Message>) -> ChatRequest {
    ChatRequest { messages: parts, ..ChatRequest::default() }
}

fn text(text: &str) -> Part {
    Part::Text { text: text.into(), cache: None }
}

fn call(id: &str, name: &str, arguments: &str) -> Part {
    Part::ToolCall(ToolCall { id: id.into(), name: name.into(), arguments: arguments.into(), ..ToolCall::default() })
}

fn result(id: &str, said: &str) -> Part {
    Part::ToolResult(ToolResult { id: id.into(), content: vec![text(said)], ..ToolResult::default() })
}

fn events(chunks: &[&str]) -> Vec<ChatEvent> {
    let (mut decoder, mut events) = (GEMINI.decoder(), Vec::new());
    let mut deframer = Framing::Sse.deframer();
    for chunk in chunks {
        let event = format!("data: {chunk}\n\n");
        deframer.push(event.as_bytes(), &mut |frame| decoder.decode(&frame, &mut events)).unwrap();
    }
    decoder.finish(&mut events);
    events
}

#[test]
fn a_signature_of_a_call_survives_callers_who_replay_only_ids() {
    let answer = json!({"candidates": [{"content": {"role": "model", "parts": [
        {"functionCall": {"name": "now", "args": {}}, "thoughtSignature": SIGNATURE},
    ]}, "finishReason": "STOP"}]});
    let answer = GEMINI.decode_answer(answer.to_string().as_bytes()).unwrap();
    let Part::ToolCall(asked) = &answer.choices[0].parts[0] else { panic!("{answer:?}") };
    assert_eq!(answer.choices[0].stop, Stop::ToolUse);
    // An OpenAI caller sends back the id, the name and the arguments.
    let replayed = asking(vec![
        Message { role: Role::User, parts: vec![text("What time is it?")] },
        Message { role: Role::Assistant, parts: vec![call(&asked.id, "now", "{}")] },
        Message { role: Role::User, parts: vec![result(&asked.id, "noon")] },
    ]);
    let (body, _) = written(&replayed, "gemini-3-pro");
    assert_eq!(body["contents"][1]["parts"][0]["thoughtSignature"], SIGNATURE);
    assert_eq!(body["contents"][2]["parts"][0]["functionResponse"]["name"], "now");
    assert!(!body.to_string().contains(&tool_ids::bare(&asked.id).to_owned()), "Vertex refuses ids: {body}");
}

#[test]
fn the_first_call_of_another_model_is_marked_for_models_that_want_signatures() {
    let request = asking(vec![
        Message { role: Role::User, parts: vec![text("?")] },
        Message { role: Role::Assistant, parts: vec![call("a", "f", ""), call("b", "g", "")] },
        Message { role: Role::User, parts: vec![result("b", "2"), result("a", "1")] },
    ]);
    let (body, _) = written(&request, "gemini-3-flash");
    let parts = &body["contents"][1]["parts"];
    assert_eq!(parts[0]["thoughtSignature"], "skip_thought_signature_validator");
    assert!(parts[1].get("thoughtSignature").is_none());
    let (body, _) = written(&request, "gemini-2.5-flash");
    assert!(body["contents"][1]["parts"][0].get("thoughtSignature").is_none());
    let names: Vec<_> = (0..2).map(|at| &body["contents"][2]["parts"][at]["functionResponse"]["name"]).collect();
    assert_eq!(names, ["f", "g"], "results stand in the order of their calls");
}

#[test]
fn arguments_that_are_no_object_are_kept_as_text() {
    let request = asking(vec![Message {
        role: Role::Assistant,
        parts: vec![call("a", "f", "{\"x\": "), call("b", "f", "{\n\"y\": 1\n}")],
    }]);
    let (body, _) = written(&request, "m");
    assert_eq!(body["contents"][0]["parts"][0]["functionCall"]["args"], json!({"arguments": "{\"x\": "}));
    assert_eq!(body["contents"][0]["parts"][1]["functionCall"]["args"], json!({"y": 1}));
}

#[test]
fn effort_is_a_level_for_new_models_and_a_budget_for_older_ones() {
    let asked = |effort| ChatRequest {
        reasoning: Some(Reasoning { effort: Some(effort), ..Reasoning::default() }),
        ..asking(vec![Message { role: Role::User, parts: vec![text("?")] }])
    };
    let thinking = |effort, model: &str| written(&asked(effort), model).0["generationConfig"]["thinkingConfig"].clone();
    assert_eq!(thinking(Effort::Max, "gemini-3-pro-preview"), json!({"thinkingLevel": "HIGH"}));
    assert_eq!(thinking(Effort::None, "gemini-3-pro-preview"), json!({"thinkingLevel": "LOW"}));
    assert_eq!(thinking(Effort::Minimal, "models/gemini-3.5-flash"), json!({"thinkingLevel": "MINIMAL"}));
    assert_eq!(thinking(Effort::None, "gemini-2.5-flash"), json!({"thinkingBudget": 0}));
    assert_eq!(thinking(Effort::Medium, "gemini-2.5-pro"), json!({"thinkingBudget": 8192}));
}

#[test]
fn what_gemini_cannot_carry_is_named() {
    let request = ChatRequest {
        seed: Some(i64::MAX),
        parallel_tools: Some(false),
        user: Some("u".into()),
        rest: [("logit_bias".to_owned(), json!({})), ("nothing".to_owned(), Value::Null)].into_iter().collect(),
        ..asking(vec![Message {
            role: Role::User,
            parts: vec![
                Part::Text { text: "?".into(), cache: Some(CacheMark::default()) },
                Part::Image { source: Source::File { id: "file-abc".into() }, detail: None, cache: None },
            ],
        }])
    };
    let (_, dropped) = written(&request, "m");
    let want = ["cache_control", "messages[0].content[1]", "parallel_tool_calls", "seed", "logit_bias", "user"];
    assert_eq!(dropped, want);
}

#[test]
fn thoughts_of_other_vendors_come_back_through_a_gemini_caller() {
    let thought = Thought { text: "hm".into(), signature: Some("EqQBCgIYAhIM+/==".into()), encrypted: None };
    let answer = ChatAnswer {
        choices: vec![Choice {
            parts: vec![Part::Reasoning(thought.clone()), text("yes")],
            stop: Stop::End,
            stop_sequence: None,
        }],
        ..ChatAnswer::default()
    };
    let shown = GEMINI.encode_answer(&answer, &ChatRequest::default(), &mut Dropped::default());
    let shown: Value = serde_json::from_slice(&shown).unwrap();
    let again =
        read(json!({"contents": [shown["candidates"][0]["content"], {"role": "user", "parts": [{"text": "?"}]}]}));
    assert_eq!(again.unwrap().messages[0].parts, [Part::Reasoning(thought), text("yes")]);
}

#[test]
fn results_without_ids_belong_to_calls_by_name_then_by_place() {
    let request = read(json!({"contents": [
        {"role": "model", "parts": [{"functionCall": {"name": "f"}}, {"functionCall": {"name": "g"}}, {"functionCall": {"id": "x", "name": "h"}}]},
        {"role": "user", "parts": [
            {"functionResponse": {"id": "x", "name": "h", "response": {}}},
            {"functionResponse": {"name": "g", "response": {"output": "G"}}},
            {"functionResponse": {"name": "renamed", "response": {"a": 1}}},
            {"functionResponse": {"name": "none", "response": null}},
        ]},
    ]}));
    let request = request.unwrap();
    let ids: Vec<&str> = request
        .messages
        .iter()
        .flat_map(|message| &message.parts)
        .map(|part| match part {
            Part::ToolCall(call) => call.id.as_str(),
            Part::ToolResult(result) => result.id.as_str(),
            part => panic!("{part:?}"),
        })
        .collect();
    assert_eq!(ids, ["call_1", "call_2", "x", "x", "call_2", "call_1", "call_3"]);
}

#[test]
fn a_stream_without_sse_is_one_array_of_the_same_answers() {
    let all = events(&[
        r#"{"candidates":[{"content":{"parts":[{"text":"Hi"}]}}],"responseId":"r","modelVersion":"m"}"#,
        r#"{"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":1}}"#,
    ]);
    let write = |caller: &dyn Caller, all: &[ChatEvent]| {
        let (mut encoder, mut out) = (caller.encoder(&ChatRequest::default()), Vec::new());
        all.iter().for_each(|event| encoder.encode(event, &mut out));
        let (mut frames, mut deframer) = (Vec::<Value>::new(), caller.framing().deframer());
        let mut each = |frame: crate::ai::stream::Frame<'_>| frames.push(serde_json::from_slice(frame.data).unwrap());
        deframer.push(&out, &mut each).unwrap();
        deframer.finish(&mut each).unwrap();
        (frames, out)
    };
    let (array, out) = write(&GEMINI_ARRAY, &all);
    assert_eq!(array, write(&GEMINI, &all).0);
    let whole: Vec<Value> = serde_json::from_slice(&out).unwrap();
    assert_eq!(whole, array);
    let failure = ChatEvent::Error(Failure::new(FailureKind::Overloaded, "busy"));
    let (failed, out) = write(&GEMINI_ARRAY, &[failure]);
    assert_eq!(failed[0]["error"]["status"], "UNAVAILABLE");
    assert!(serde_json::from_slice::<Vec<Value>>(&out).is_ok());
}

#[test]
fn hostile_answers_are_failures_and_nothing_worse() {
    let deep = format!("{{\"candidates\":[{{\"content\":{}{}}}]}}", "[".repeat(100_000), "]".repeat(100_000));
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"[[]]".to_vec(),
        b"{\"candidates\":7}".to_vec(),
        b"\xff\xfe".to_vec(),
        b"{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"\xff\"}]}}]}".to_vec(),
        deep.into_bytes(),
        b"{\"error\":7}".to_vec(),
        b"{\"error\":{\"code\":\"x\"}}".to_vec(),
        b"{\"candidates\":[{\"index\":-1}]}".to_vec(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert!(GEMINI.decode_answer(&body).is_err(), "{shown}");
        GEMINI.decode_failure(500, &http::HeaderMap::new(), &body);
        let (mut decoder, mut events) = (GEMINI.decoder(), Vec::new());
        decoder.decode(&crate::ai::stream::Frame { event: None, data: &body }, &mut events);
        decoder.finish(&mut events);
        assert!(matches!(events.last(), Some(ChatEvent::Error(_))), "{shown}");
        assert!(GEMINI.decode_request(&body, PathFacts { model: Some("m"), stream: None }).is_err(), "{shown}");
    }
}

#[test]
fn paths_of_partial_arguments_cannot_build_giants() {
    let piece = |path: &str| {
        format!(
            r#"{{"candidates":[{{"content":{{"parts":[{{"functionCall":{{"name":"f","partialArgs":[{{"jsonPath":"{path}","numberValue":1}}]}}}}]}},"finishReason":"STOP"}}]}}"#
        )
    };
    for path in ["$[4000000000]", &"$.a".repeat(1_000), "$..", "$.a[", "$[x]", ""] {
        let all = events(&[&piece(path)]);
        assert_eq!(all.last(), Some(&ChatEvent::End), "{path}");
    }
}

#[test]
fn an_array_is_not_grown_by_a_candidate_of_a_high_number() {
    let all = events(&[r#"{"candidates":[{"index":4000000000,"finishReason":"STOP"}]}"#]);
    assert!(matches!(all.last(), Some(ChatEvent::Error(_))), "{all:?}");
}

/// `cargo test --release --lib gemini -- --ignored --nocapture` prints how long translations take.
#[test]
#[ignore = "measures"]
fn a_request_and_an_event_are_translated_in_microseconds() {
    let body = json!({"contents": [{"role": "user", "parts": [{"text": "x".repeat(1_200)}]}], "generationConfig": {"temperature": 0.5}});
    let body = body.to_string().into_bytes();
    let path = PathFacts { model: Some("m"), stream: Some(true) };
    let time = |name: &str, work: &mut dyn FnMut()| {
        let begun = std::time::Instant::now();
        (0..20_000).for_each(|_| work());
        println!("{name}: {:?}", begun.elapsed() / 20_000);
    };
    time("read a request", &mut || drop(GEMINI.decode_request(&body, path)));
    let request = GEMINI.decode_request(&body, path).unwrap();
    time("write a request", &mut || {
        drop(GEMINI.encode_request(&request, "m", Quirks::default(), &mut Dropped::default()))
    });
    let event = br#"{"candidates":[{"content":{"parts":[{"text":"some words"}],"role":"model"},"index":0}],"usageMetadata":{"promptTokenCount":11,"totalTokenCount":11},"modelVersion":"gemini-2.5-flash","responseId":"mAitaLmkHPPlz7IPvtfUqQ4"}"#;
    let (mut decoder, mut encoder, mut events, mut out) =
        (GEMINI.decoder(), GEMINI.encoder(&request), Vec::new(), Vec::new());
    time("read and write an event", &mut || {
        events.clear();
        out.clear();
        decoder.decode(&crate::ai::stream::Frame { event: None, data: event }, &mut events);
        events.iter().for_each(|event| encoder.encode(event, &mut out));
    });
}
