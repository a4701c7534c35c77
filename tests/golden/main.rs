//! Translation between wire formats, held to files: every case of these folders in every format it can be written in.
//!
//! - `requests/<case>.<caller>.json`, as a caller sends it, becomes `requests/<case>.<caller>/<provider>.json`:
//!   `{"body", "dropped"}` or `{"failure"}`. What cannot even be read becomes `refused.json`. Formats that write the model
//!   into the path are wrapped: `{"model", "stream", "body"}`.
//! - `answers/<case>.<provider>.json`, a whole answer, becomes `answers/<case>.<provider>/<caller>.json`.
//! - `streams/<case>.<provider>.{sse,jsonl,b64}` becomes `streams/<case>.<provider>/<caller>.sse`. `b64` is an AWS event
//!   stream in base64, broken into lines as one likes.
//! - `failures/<case>.<provider>.json`, `{"status", "headers", "body"}`, becomes `failures/<case>.<provider>/<caller>.json`.
//!
//! To add a case, add its file and run with `BLESS=1`, which writes what is expected; then read it. Made-up ids and the
//! present time are made the same on every run (see [`stable`]).

mod expected;
mod stable;
mod stream;

use expected::{Case, Expected};
use headgate::ai::chat::{ChatRequest, Dropped, Failure};
use headgate::ai::formats::{Caller, Format, PathFacts, Provider};
use headgate::ai::quirks::Quirks;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use stable::stable;

/// The provider's name for the model.
const TARGET: &str = "target-model";
const REQUEST_ID: &str = "req-golden";

fn callers() -> impl Iterator<Item = (Format, &'static dyn Caller)> {
    Format::all().filter_map(|format| Some((format, format.caller()?)))
}

fn providers() -> impl Iterator<Item = (Format, &'static dyn Provider)> {
    Format::all().filter_map(|format| Some((format, format.provider()?)))
}

/// What the caller of an answer has asked for.
fn asked(stream: bool) -> ChatRequest {
    ChatRequest { model: "asked-model".into(), stream, stream_usage: stream, ..ChatRequest::default() }
}

#[test]
fn requests_reach_every_provider_as_written_down() {
    let mut expected = Expected::of("requests");
    for case in expected.cases() {
        let Some(caller) = case.format.caller() else { continue };
        let request = match read_request(caller, &case) {
            Ok(request) => request,
            Err(failure) => {
                expected.json(&case, "refused", json!({ "failure": shown(&failure) }));
                continue;
            }
        };
        for (format, provider) in providers() {
            let mut dropped = Dropped::default();
            let found = match provider.encode_request(&request, TARGET, Quirks::default(), &mut dropped) {
                Ok(body) => json!({ "body": document(&case, &body), "dropped": dropped.iter().collect::<Vec<_>>() }),
                Err(failure) => json!({ "failure": shown(&failure) }),
            };
            expected.json(&case, format.name(), found);
        }
    }
    expected.hold();
}

#[test]
fn answers_reach_every_caller_as_written_down() {
    let mut expected = Expected::of("answers");
    for case in expected.cases() {
        let Some(provider) = case.format.provider() else { continue };
        let answer = provider.decode_answer(&case.content);
        for (format, caller) in callers() {
            let mut dropped = Dropped::default();
            let found = match &answer {
                Ok(answer) => {
                    let body = caller.encode_answer(answer, &asked(false), &mut dropped);
                    json!({ "body": document(&case, &body), "dropped": dropped.iter().collect::<Vec<_>>() })
                }
                Err(failure) => refusal(caller, &case, failure),
            };
            expected.json(&case, format.name(), found);
        }
    }
    expected.hold();
}

#[test]
fn streams_reach_every_caller_as_written_down_however_they_are_cut() {
    let mut expected = Expected::of("streams");
    for case in expected.cases() {
        let Some(provider) = case.format.provider() else { continue };
        let bytes = stream::bytes(&case);
        let events = stream::events(provider, &[&bytes]);
        if let Err(wrong) = stream::coherent(&events) {
            expected.problem(&case, format!("{wrong} in {events:#?}"));
        }
        if let Err(wrong) = stream::same_wherever_cut(provider, &bytes, &events) {
            expected.problem(&case, wrong);
        }
        for (format, caller) in callers() {
            let mut encoder = caller.encoder(&asked(true));
            let mut out = Vec::new();
            events.iter().for_each(|event| encoder.encode(event, &mut out));
            expected.text(&case, &format!("{}.sse", format.name()), stable(&text(&out), &text(&bytes)));
        }
    }
    expected.hold();
}

#[test]
fn failures_reach_every_caller_as_written_down() {
    let mut expected = Expected::of("failures");
    for case in expected.cases() {
        let Some(provider) = case.format.provider() else { continue };
        let answer: Value = serde_json::from_slice(&case.content).expect("a failure's case is JSON");
        let status = answer["status"].as_u64().and_then(|status| u16::try_from(status).ok()).expect("a status");
        let mut headers = HeaderMap::new();
        for (name, value) in answer["headers"].as_object().into_iter().flatten() {
            let name: HeaderName = name.parse().expect("a header's name");
            headers.insert(name, HeaderValue::from_str(value.as_str().expect("a text")).expect("a header's value"));
        }
        // A body that is no JSON is written as a text.
        let body = match &answer["body"] {
            Value::String(text) => text.clone(),
            document => document.to_string(),
        };
        let failure = provider.decode_failure(status, &headers, body.as_bytes());
        for (format, caller) in callers() {
            expected.json(&case, format.name(), refusal(caller, &case, &failure));
        }
    }
    expected.hold();
}

fn read_request(caller: &dyn Caller, case: &Case) -> Result<ChatRequest, Failure> {
    if case.format != Format::Gemini {
        return caller.decode_request(&case.content, PathFacts::default());
    }
    let wrapped: Value = serde_json::from_slice(&case.content).expect("the path's facts around the body");
    let path = PathFacts { model: wrapped["model"].as_str(), stream: wrapped["stream"].as_bool() };
    caller.decode_request(wrapped["body"].to_string().as_bytes(), path)
}

fn refusal(caller: &dyn Caller, case: &Case, failure: &Failure) -> Value {
    let body = document(case, &caller.encode_failure(failure, REQUEST_ID));
    json!({ "status": failure.kind.status(), "failure": shown(failure), "body": body })
}

fn shown(failure: &Failure) -> Value {
    json!({
        "kind": format!("{:?}", failure.kind),
        "message": failure.message,
        "code": failure.code,
        "param": failure.param,
    })
}

/// What was written, as JSON. What is not JSON fails the case.
fn document(case: &Case, body: &[u8]) -> Value {
    let written = stable(&text(body), &text(&case.content));
    serde_json::from_str(&written).unwrap_or_else(|error| panic!("{}: {error} in {written}", case.name))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
