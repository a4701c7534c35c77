//! What golden files do not show: both directions in a row, hostile input, providers that send less.

use serde_json::{Value, json};

use super::OpenAiResponses;
use crate::ai::chat::*;
use crate::ai::formats::{Caller, Format, PathFacts, Provider};
use crate::ai::quirks::{Quirk, Quirks};
use crate::ai::stream::Framing;

fn written(request: &ChatRequest, quirks: Quirks) -> (Value, Vec<String>) {
    let mut dropped = Dropped::default();
    let body = OpenAiResponses.encode_request(request, "m", quirks, &mut dropped).unwrap();
    (serde_json::from_slice(&body).unwrap(), dropped.iter().map(str::to_owned).collect())
}

fn read(body: Value) -> Result<ChatRequest, Failure> {
    OpenAiResponses.decode_request(body.to_string().as_bytes(), PathFacts::default())
}

fn decoded(stream: &[Value]) -> Vec<ChatEvent> {
    let (mut decoder, mut events, mut deframer) = (OpenAiResponses.decoder(), Vec::new(), Framing::Sse.deframer());
    for event in stream {
        let event = format!("data: {event}\n\n");
        deframer.push(event.as_bytes(), &mut |frame| decoder.decode(&frame, &mut events)).unwrap();
    }
    decoder.finish(&mut events);
    events
}

fn encoded(events: &[ChatEvent]) -> Vec<Value> {
    let (mut encoder, mut out) = (OpenAiResponses.encoder(&ChatRequest::default()), Vec::new());
    events.iter().for_each(|event| encoder.encode(event, &mut out));
    let (mut found, mut deframer) = (Vec::<Value>::new(), Framing::Sse.deframer());
    let mut each = |frame: crate::ai::stream::Frame<'_>| {
        let event: Value = serde_json::from_slice(frame.data).unwrap();
        assert_eq!(frame.event, event["type"].as_str());
        found.push(event);
    };
    deframer.push(&out, &mut each).unwrap();
    found
}

fn started(part: u32, kind: PartKind) -> ChatEvent {
    ChatEvent::PartStart { part, choice: 0, kind }
}

fn delta(part: u32, text: &str) -> ChatEvent {
    ChatEvent::Delta { part, text: text.into() }
}

fn start() -> ChatEvent {
    ChatEvent::Start { id: "chatcmpl-1".into(), model: "m".into(), created: 7 }
}

#[test]
fn events_are_numbered_without_a_gap_and_items_may_overlap() {
    let call = |id: &str| PartKind::ToolCall { id: id.into(), name: "f".into() };
    let events = encoded(&[
        start(),
        started(0, call("a")),
        started(1, call("b")),
        delta(0, "{"),
        delta(1, "{}"),
        delta(0, "}"),
        ChatEvent::PartEnd { part: 1 },
        ChatEvent::PartEnd { part: 0 },
        ChatEvent::Stop { choice: 0, stop: Stop::ToolUse, stop_sequence: None },
        ChatEvent::End,
    ]);
    let numbers: Vec<u64> = events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    let calls: Vec<_> = (0..2)
        .map(|at| (&last["response"]["output"][at]["call_id"], &last["response"]["output"][at]["arguments"]))
        .collect();
    assert_eq!(calls, [(&json!("a"), &json!("{}")), (&json!("b"), &json!("{}"))], "in the order in which they began");
}

#[test]
fn an_error_event_raises_in_the_official_library_and_ends_the_response() {
    let failure = Failure::new(FailureKind::Overloaded, "busy");
    let events = encoded(&[
        start(),
        started(0, PartKind::Text),
        delta(0, "Hel"),
        ChatEvent::Error(failure.clone()),
        ChatEvent::End,
    ]);
    let kinds: Vec<&str> = events.iter().rev().take(2).filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(kinds, ["response.failed", "error"]);
    let error = &events[events.len() - 2];
    assert!(error["error"].is_object() && error["message"] == "busy", "{error}");
    assert_eq!(encoded(&[ChatEvent::Error(failure)]).len(), 1, "nothing has begun that could fail");
}

#[test]
fn thoughts_of_every_vendor_come_back() {
    for thought in [
        Thought { text: "hm".into(), signature: Some("EqQB+/==".into()), encrypted: None },
        Thought { text: "hm".into(), signature: None, encrypted: Some("gAAAA".into()) },
        Thought { text: String::new(), signature: None, encrypted: Some("gemini:abc".into()) },
    ] {
        let choice = Choice { parts: vec![Part::Reasoning(thought.clone())], stop: Stop::End, stop_sequence: None };
        let answer = ChatAnswer { choices: vec![choice], ..ChatAnswer::default() };
        let shown = OpenAiResponses.encode_answer(&answer, &ChatRequest::default(), &mut Dropped::default());
        let shown: Value = serde_json::from_slice(&shown).unwrap();
        let again = read(json!({"model": "m", "input": shown["output"]})).unwrap();
        assert_eq!(again.messages[0].parts, [Part::Reasoning(thought)]);
    }
}

#[test]
fn arguments_that_only_come_when_they_are_done_are_taken_once() {
    let item = json!({"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": ""});
    let mut whole = item.clone();
    whole["arguments"] = "{\"a\":1}".into();
    let completed = json!({"type": "response.completed", "response": {"status": "completed", "output": [whole]}});
    let added = json!({"type": "response.output_item.added", "output_index": 0, "item": item});
    let arguments =
        json!({"type": "response.function_call_arguments.done", "output_index": 0, "arguments": "{\"a\":1}"});
    let done = json!({"type": "response.output_item.done", "output_index": 0, "item": whole});
    for stream in [
        vec![added.clone(), arguments.clone(), done.clone(), completed.clone()],
        vec![added.clone(), done.clone(), completed.clone()],
        vec![done.clone(), completed.clone()],
        vec![added.clone(), completed.clone()],
        vec![completed.clone()],
    ] {
        let events = decoded(&stream);
        let texts: Vec<&str> = events
            .iter()
            .filter_map(|event| match event {
                ChatEvent::Delta { text, .. } => Some(text.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(texts, ["{\"a\":1}"], "{stream:?}");
        assert!(events.contains(&ChatEvent::Stop { choice: 0, stop: Stop::ToolUse, stop_sequence: None }));
        assert_eq!(events.last(), Some(&ChatEvent::End));
    }
}

#[test]
fn stored_state_is_refused_for_providers_that_keep_none() {
    for (field, value) in [
        ("previous_response_id", json!("resp_1")),
        ("conversation", json!({"id": "c"})),
        ("background", json!(true)),
        ("store", json!(true)),
    ] {
        let request = read(json!({"model": "m", "input": "?", field: value})).unwrap();
        assert_eq!(request.refuse_stored_state().unwrap_err().param.as_deref(), Some(field));
        assert_eq!(written(&request, Quirks::default()).0[field], value, "its own kind of provider gets it");
    }
    let request =
        read(json!({"model": "m", "input": "?", "store": false, "background": false, "conversation": null})).unwrap();
    assert!(request.refuse_stored_state().is_ok());
}

#[test]
fn shared_fields_of_chat_completions_are_carried_and_others_named() {
    let rest = json!({"metadata": {"a": "b"}, "verbosity": "low", "logit_bias": {}, "service_tier": "flex"});
    let request = ChatRequest {
        dialect: Some(Format::OpenAiChat),
        rest: rest.as_object().unwrap().clone(),
        messages: vec![Message { role: Role::User, parts: vec![Part::Text { text: "?".into(), cache: None }] }],
        stop: vec!["END".into()],
        choices: Some(2),
        ..ChatRequest::default()
    };
    let (body, dropped) = written(&request, Quirks::default());
    assert_eq!(
        (&body["metadata"]["a"], &body["text"]["verbosity"], &body["service_tier"]),
        (&json!("b"), &json!("low"), &json!("flex"))
    );
    assert_eq!(body["store"], false);
    assert_eq!(dropped, ["logit_bias", "stop", "n"]);
}

#[test]
fn quirks_are_honoured() {
    let request = read(json!({
        "model": "m", "input": [{"role": "user", "content": "?"}, {"role": "developer", "content": "!"}], "parallel_tool_calls": true,
        "tools": [{"type": "function", "name": "f", "parameters": {}}], "tool_choice": "required", "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "s", "schema": {}}},
    })).unwrap();
    let quirks = [
        Quirk::NoDeveloperRole,
        Quirk::NoParallelToolCalls,
        Quirk::NoRequiredTool,
        Quirk::NoReasoningEffort,
        Quirk::NoJsonSchema,
    ];
    let (body, dropped) = written(&request, quirks.into_iter().collect());
    assert_eq!(body["input"][1]["role"], "system");
    assert_eq!(body["text"]["format"]["type"], "json_object");
    assert_eq!(dropped, ["parallel_tool_calls", "tool_choice", "response_format.schema", "reasoning_effort"]);
}

#[test]
fn hostile_input_is_a_failure_and_nothing_worse() {
    let deep = format!("{{\"model\":\"m\",\"input\":{}{},\"output\":7}}", "[".repeat(100_000), "]".repeat(100_000));
    for body in [
        &b""[..],
        b"null",
        b"7",
        b"{\"model\":7,\"output\":7}",
        b"\xff",
        b"{\"model\":\"m\",\"input\":[7],\"output\":{\"a\":\"\xff\"}}",
        deep.as_bytes(),
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert!(OpenAiResponses.decode_request(body, PathFacts::default()).is_err(), "{shown}");
        let _ = OpenAiResponses.decode_answer(body);
        OpenAiResponses.decode_failure(500, &http::HeaderMap::new(), body);
        let (mut decoder, mut events) = (OpenAiResponses.decoder(), Vec::new());
        decoder.decode(&crate::ai::stream::Frame { event: None, data: body }, &mut events);
        decoder.finish(&mut events);
        assert!(matches!(events.last(), Some(ChatEvent::Error(_))), "{shown}");
    }
    let endless: Vec<ChatEvent> = {
        let (mut decoder, mut events) = (OpenAiResponses.decoder(), Vec::new());
        for index in 0..20_000 {
            let event = json!({"type": "response.output_text.delta", "output_index": index, "delta": "x"}).to_string();
            decoder.decode(&crate::ai::stream::Frame { event: None, data: event.as_bytes() }, &mut events);
        }
        events
    };
    assert!(endless.iter().filter(|event| matches!(event, ChatEvent::PartStart { .. })).count() <= 10_000);
}
