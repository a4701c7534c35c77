//! What golden cases cannot hold: quirks, callers of deprecated functions, hostile input.

use serde_json::{Value, json};

use super::OpenAiChat;
use crate::ai::chat::{
    CacheMark, ChatAnswer, ChatEvent, ChatRequest, Choice, Dropped, FailureKind, Message, Part, PartKind, Role, Source,
    Stop, Thought, ToolCall, ToolResult, Usage,
};
use crate::ai::formats::{Caller, PathFacts, Provider};
use crate::ai::quirks::{Quirk, Quirks};
use crate::ai::stream::Frame;

fn read(body: Value) -> ChatRequest {
    OpenAiChat.decode_request(body.to_string().as_bytes(), PathFacts::default()).unwrap()
}

fn sent(request: &ChatRequest, quirks: &[Quirk]) -> (Value, Vec<String>) {
    let mut dropped = Dropped::default();
    let quirks = quirks.iter().copied().collect::<Quirks>();
    let body = OpenAiChat.encode_request(request, "m", quirks, &mut dropped).unwrap();
    (serde_json::from_slice(&body).unwrap(), dropped.iter().map(str::to_owned).collect())
}

fn everything() -> ChatRequest {
    read(json!({
        "model": "m",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
                {"type": "video_url", "video_url": {"url": "https://example.com/v.mp4"}}]},
            {"role": "assistant", "reasoning_content": "Hm.", "reasoning_details": [
                {"type": "reasoning.text", "text": "Hm.", "signature": "c2ln"}], "tool_calls": [
                {"id": "call_1__signature__c2ln", "type": "function", "function": {"name": "ping", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "call_1__signature__c2ln", "content": "pong"},
        ],
        "tools": [{"type": "function", "function": {"name": "ping"}}],
        "tool_choice": "required", "parallel_tool_calls": false,
        "max_completion_tokens": 10, "top_k": 5, "seed": 1, "user": "u", "stream": true,
        "reasoning_effort": "high",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    }))
}

#[test]
fn a_provider_is_given_only_what_its_quirks_let_it_take() {
    let request = everything();
    let (body, dropped) = sent(&request, &[]);
    assert_eq!(
        dropped,
        ["messages[1].cache_control", "messages[1].content[1]", "messages[2].reasoning", "top_k"],
        "no place without a quirk: {body}"
    );
    assert_eq!(body["messages"][2]["tool_calls"][0]["id"], "call_1", "a signature is not its maker's here");
    assert_eq!(body["messages"][3]["tool_call_id"], "call_1");

    use Quirk::*;
    let (body, dropped) = sent(
        &request,
        &[
            MaxTokens,
            NoStreamOptions,
            NoParallelToolCalls,
            NoRequiredTool,
            NoJsonSchema,
            NoReasoningEffort,
            StringContent,
            ShortToolIds,
            RandomSeed,
            NoUser,
        ],
    );
    for gone in ["max_completion_tokens", "stream_options", "tool_choice", "reasoning_effort", "seed", "user"] {
        assert_eq!(body.get(gone), None, "{gone} of {body}");
    }
    assert_eq!(body["max_tokens"], 10);
    assert_eq!(body["random_seed"], 1);
    assert_eq!(body["messages"][0]["content"], "a\nb");
    assert_eq!(body["response_format"], json!({"type": "json_object"}));
    let id = body["messages"][2]["tool_calls"][0]["id"].as_str().unwrap();
    assert!(id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
    assert_eq!(body["messages"][3]["tool_call_id"], id, "a call and its result keep together");
    for named in ["tool_choice", "parallel_tool_calls", "response_format.json_schema", "reasoning_effort", "user"] {
        assert!(dropped.iter().any(|field| field == named), "{named} in {dropped:?}");
    }

    let (body, dropped) = sent(&request, &[CacheControl, VideoParts, ReasoningDetails, ThoughtSignatures, TopK]);
    assert_eq!(dropped, [""; 0], "{body}");
    assert_eq!(body["messages"][1]["content"][0]["cache_control"], json!({"type": "ephemeral", "ttl": "1h"}));
    assert_eq!(body["messages"][1]["content"][1]["video_url"]["url"], "https://example.com/v.mp4");
    assert_eq!(
        body["messages"][2]["reasoning_details"],
        json!([{"type": "reasoning.text", "text": "Hm.", "signature": "c2ln", "index": 0}])
    );
    assert_eq!(body["messages"][2]["tool_calls"][0]["extra_content"]["google"]["thought_signature"], "c2ln");
    assert_eq!(body["reasoning"], json!({"effort": "high"}));
    assert_eq!(body["top_k"], 5);

    let (body, dropped) = sent(&request, &[ReasoningContent]);
    assert_eq!(body["messages"][2]["reasoning_content"], "Hm.");
    assert!(dropped.iter().any(|field| field == "messages[2].reasoning.signature"), "{dropped:?}");
}

#[test]
fn an_image_that_a_tool_returned_follows_in_the_users_message_and_long_ids_are_shortened() {
    let id = "toolu_".to_owned() + &"x".repeat(60);
    let shown = Part::Image {
        source: Source::Data { media_type: "image/png".into(), base64: "AAAA".into() },
        detail: None,
        cache: None,
    };
    let request = ChatRequest {
        messages: vec![
            Message {
                role: Role::Assistant,
                parts: vec![Part::ToolCall(ToolCall { id: id.clone(), name: "look".into(), ..ToolCall::default() })],
            },
            Message {
                role: Role::User,
                parts: vec![
                    Part::ToolResult(ToolResult {
                        id,
                        content: vec![Part::Text { text: "seen".into(), cache: None }, shown],
                        is_error: true,
                        cache: Some(CacheMark::default()),
                        ..ToolResult::default()
                    }),
                    Part::Text { text: "And?".into(), cache: None },
                ],
            },
        ],
        ..ChatRequest::default()
    };
    let (body, dropped) = sent(&request, &[]);
    let roles: Vec<&Value> = body["messages"].as_array().unwrap().iter().map(|message| &message["role"]).collect();
    assert_eq!(roles, ["assistant", "tool", "user"]);
    assert_eq!(body["messages"][1]["content"], "seen");
    assert_eq!(body["messages"][2]["content"][0]["image_url"]["url"], "data:image/png;base64,AAAA");
    assert_eq!(body["messages"][2]["content"][1]["text"], "And?");
    let id = body["messages"][1]["tool_call_id"].as_str().unwrap();
    assert!(id.len() <= 40 && body["messages"][0]["tool_calls"][0]["id"] == id, "{body}");
    assert_eq!(dropped, ["messages[1].cache_control", "messages[1].is_error"]);
}

#[test]
fn a_caller_of_functions_is_answered_with_a_function_call() {
    let request =
        read(json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "functions": [{"name": "f"}]}));
    assert!(request.legacy_functions);
    assert_eq!(request.parallel_tools, Some(false), "there is room for one call");
    let call = |name: &str| Part::ToolCall(ToolCall { id: "1".into(), name: name.into(), ..ToolCall::default() });
    let choice = Choice { parts: vec![call("f"), call("g")], stop: Stop::ToolUse, stop_sequence: None };
    let mut dropped = Dropped::default();
    let answer = ChatAnswer { choices: vec![choice], ..ChatAnswer::default() };
    let body: Value = serde_json::from_slice(&OpenAiChat.encode_answer(&answer, &request, &mut dropped)).unwrap();
    let choice = &body["choices"][0];
    assert_eq!(choice["message"]["function_call"], json!({"name": "f", "arguments": "{}"}));
    assert_eq!((&choice["finish_reason"], choice["message"].get("tool_calls")), (&json!("function_call"), None));
    assert!(!dropped.is_empty(), "the second call is named as lost");

    let kind = PartKind::ToolCall { id: "1".into(), name: "f".into() };
    let text = streamed(
        &request,
        &[
            ChatEvent::Start { id: "x".into(), model: "m".into(), created: 1 },
            ChatEvent::PartStart { part: 0, choice: 0, kind },
            ChatEvent::Delta { part: 0, text: "{}".into() },
            ChatEvent::PartEnd { part: 0 },
            ChatEvent::Stop { choice: 0, stop: Stop::ToolUse, stop_sequence: None },
            ChatEvent::Usage(Usage { input: 1, output: 1, ..Usage::default() }),
            ChatEvent::End,
        ],
    );
    assert!(text.contains(r#""delta":{"function_call":{"name":"f","arguments":""}}"#), "{text}");
    assert!(text.contains(r#""finish_reason":"function_call""#) && text.ends_with("data: [DONE]\n\n"), "{text}");
    assert!(!text.contains("usage"), "who has not asked for usage is not told: {text}");
}

fn streamed(request: &ChatRequest, events: &[ChatEvent]) -> String {
    let (mut encoder, mut out) = (OpenAiChat.encoder(request), Vec::new());
    events.iter().for_each(|event| encoder.encode(event, &mut out));
    String::from_utf8(out).unwrap()
}

#[test]
fn nothing_follows_an_error() {
    let failure = crate::ai::chat::Failure::new(FailureKind::Overloaded, "busy");
    let text = streamed(&ChatRequest::default(), &[ChatEvent::Error(failure), ChatEvent::End]);
    assert_eq!(
        text,
        "data: {\"error\":{\"message\":\"busy\",\"type\":\"overloaded_error\",\"param\":null,\"code\":null}}\n\n"
    );
}

#[test]
fn thoughts_come_back_with_their_signatures_however_they_were_replayed() {
    let thought = Thought { text: "Hm.".into(), signature: Some("c2ln".into()), encrypted: None };
    for replayed in [
        json!({"reasoning_details": [{"type": "reasoning.text", "text": "Hm.", "signature": "c2ln"}]}),
        // As our own stream adds up: the text apart from its signature.
        json!({"reasoning_content": "Hm.", "reasoning_details": [{"type": "reasoning.text", "signature": "c2ln"}]}),
        json!({"reasoning": "Hm.", "reasoning_details": [{"text": "Hm."}, {"signature": "c2ln", "text": ""}]}),
        json!({"thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}]}),
    ] {
        let mut message = json!({"role": "assistant", "content": "Yes"});
        message.as_object_mut().unwrap().extend(replayed.as_object().unwrap().clone());
        let request = read(json!({"model": "m", "messages": [{"role": "user", "content": "?"}, message]}));
        let want = [Part::Reasoning(thought.clone()), Part::Text { text: "Yes".into(), cache: None }];
        assert_eq!(request.messages[1].parts, want, "{replayed}");
    }
}

#[test]
fn what_is_wrong_with_a_request_is_told_with_its_path() {
    let refused = |body: &str| OpenAiChat.decode_request(body.as_bytes(), PathFacts::default()).unwrap_err();
    for (body, param) in [
        (
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":7}]}]}"#,
            "messages[0].content[0].text",
        ),
        (r#"{"model":"m","messages":[{"role":"robot","content":"x"}]}"#, "messages[0].role"),
        (r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#, "messages[0].content[0]"),
        (
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png,x"}}]}]}"#,
            "messages[0].content[0]",
        ),
        (r#"{"model":"m","messages":[{"role":"tool","content":"x"}]}"#, "messages[0].tool_call_id"),
        (r#"{"model":"m","messages":[]}"#, "messages"),
        (r#"{"model":"m","messages":"x"}"#, "messages"),
        (r#"{"model":"m","max_tokens":1.5}"#, "max_tokens"),
        (r#"{"model":"m","max_tokens":-1}"#, "max_tokens"),
        (r#"{"model":"m","messages":[{"role":"user","content":"x"}],"tool_choice":"perhaps"}"#, "tool_choice"),
    ] {
        let failure = refused(body);
        assert_eq!(
            (failure.kind, failure.param.as_deref()),
            (FailureKind::InvalidRequest, Some(param)),
            "{body}: {}",
            failure.message
        );
    }
    for body in
        ["", "{", "[]", "null", "{} {}", "\u{0}", &"[".repeat(100_000), &format!(r#"{{"x":{}"#, "[".repeat(100_000))]
    {
        assert_eq!(refused(body).kind, FailureKind::InvalidRequest, "{}", &body[..body.len().min(20)]);
    }
    assert!(OpenAiChat.decode_request(b"{\"model\":\"\xff\xfe\"}", PathFacts::default()).is_err());
}

/// Every prefix and every single-byte change of a valid document, none of which may do more than fail.
fn harm(document: &str, mut each: impl FnMut(&[u8])) {
    let bytes = document.as_bytes();
    for cut in 0..bytes.len() {
        each(&bytes[..cut]);
    }
    for at in 0..bytes.len() {
        for byte in [b'"', b'0', b'{', b'[', b',', b'n', 0xff] {
            let mut changed = bytes.to_vec();
            changed[at] = byte;
            each(&changed);
        }
    }
}

#[test]
fn no_input_does_more_than_fail() {
    let request = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"1","content":"r"}],"tool_choice":{"type":"function","function":{"name":"f"}},"response_format":{"type":"json_schema","json_schema":{"name":"n"}},"stop":["a"],"n":1}"#;
    harm(request, |body| {
        let _ = OpenAiChat.decode_request(body, PathFacts::default());
    });
    let answer = r#"{"id":"1","created":1,"choices":[{"message":{"content":"a","tool_calls":[{"index":0,"function":{"name":"f","arguments":{"a":1}}}],"reasoning_details":[{"text":"x"}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":1e999,"completion_tokens":-1},"error":null}"#;
    harm(answer, |body| {
        let _ = OpenAiChat.decode_answer(body);
        let _ = OpenAiChat.decode_failure(500, &http::HeaderMap::new(), body);
    });
    let chunk = r#"{"id":"1","choices":[{"index":0,"delta":{"content":"a","tool_calls":[{"index":0,"id":"1","function":{"name":"f","arguments":"{}"}}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}"#;
    harm(chunk, |data| {
        let (mut decoder, mut events) = (OpenAiChat.decoder(), Vec::new());
        decoder.decode(&Frame { event: None, data }, &mut events);
        decoder.finish(&mut events);
        assert!(matches!(events.last(), Some(ChatEvent::End | ChatEvent::Error(_))), "{events:?}");
    });
}

#[test]
fn a_stream_of_endless_calls_is_given_up() {
    let (mut decoder, mut events) = (OpenAiChat.decoder(), Vec::new());
    for index in 0..100_000 {
        let data = format!(
            r#"{{"choices":[{{"delta":{{"tool_calls":[{{"index":{index},"id":"{index}","function":{{"name":"f"}}}}]}}}}]}}"#
        );
        decoder.decode(&Frame { event: None, data: data.as_bytes() }, &mut events);
    }
    assert!(matches!(events.last(), Some(ChatEvent::Error(_))) && events.len() < 2000, "{}", events.len());
}

#[test]
fn members_keep_their_order_from_caller_to_provider() {
    let body = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"z":{},"a":{},"m":{}}}}}]}"#;
    let request = OpenAiChat.decode_request(body.as_bytes(), PathFacts::default()).unwrap();
    let sent = OpenAiChat.encode_request(&request, "m", Quirks::default(), &mut Dropped::default()).unwrap();
    assert_eq!(String::from_utf8(sent).unwrap(), body);
}
