//! What each dialect becomes for each provider, and back.

use serde_json::{Value, json};

use super::*;

fn request(dialect: Dialect, body: &Value) -> Request {
    dialect.decode(body.to_string().as_bytes()).unwrap()
}

/// The bodies a provider is sent, and what was left out.
fn sent(dialect: Dialect, body: &Value, format: Format, model: &str) -> (Vec<Value>, Vec<String>) {
    let mut dropped = Dropped::default();
    let bodies = encode(&request(dialect, body), format, model, dialect, &mut dropped).unwrap();
    let bodies = bodies.iter().map(|body| serde_json::from_slice(body).unwrap()).collect();
    (bodies, dropped.iter().map(str::to_owned).collect())
}

fn answered(format: Format, model: &str, bodies: &[Value]) -> Answer {
    let answers: Vec<(HeaderMap, Bytes)> =
        bodies.iter().map(|body| (HeaderMap::new(), Bytes::from(body.to_string()))).collect();
    decode(format, model, &answers, 2).unwrap()
}

#[test]
fn openais_words_become_those_of_each_provider() {
    let call = json!({ "model": "m", "input": ["a", "b"], "dimensions": 2, "user": "u", "input_type": "query" });
    let of = |format, model| sent(Dialect::OpenAi, &call, format, model);
    let part = |text: &str| {
        json!({ "model": "models/g", "content": { "parts": [{ "text": text }] }, "taskType": "RETRIEVAL_QUERY",
                "outputDimensionality": 2 })
    };
    let dropped = vec!["user".to_owned()];
    assert_eq!(of(Format::Gemini, "g"), (vec![json!({ "requests": [part("a"), part("b")] })], dropped.clone()));
    let cohere = json!({ "model": "c", "texts": ["a", "b"], "input_type": "search_query", "embedding_types": ["float"],
                         "output_dimension": 2 });
    assert_eq!(of(Format::Cohere, "c"), (vec![cohere], dropped.clone()));
    let (ollama, also) = of(Format::Ollama, "o");
    assert_eq!(ollama, [json!({ "model": "o", "input": ["a", "b"], "dimensions": 2 })]);
    assert_eq!(also, ["user", "taskType"]);
    let (titan, _) = of(Format::Bedrock, "amazon.titan-embed-text-v2:0");
    let one = |text: &str| json!({ "inputText": text, "dimensions": 2 });
    assert_eq!(titan, [one("a"), one("b")], "one exchange for each text");
    let (old, also) = of(Format::Bedrock, "amazon.titan-embed-text-v1");
    assert_eq!((old.len(), also), (2, vec!["user".to_owned(), "taskType".to_owned(), "dimensions".to_owned()]));
    let (hosted, _) = of(Format::Bedrock, "eu.cohere.embed-v4:0");
    assert_eq!(hosted[0].get("model"), None, "it is in the path");
}

#[test]
fn geminis_words_become_openais() {
    let one = json!({ "model": "models/x", "content": { "parts": [{ "text": "a" }, { "text": "b" }] },
                      "taskType": "CLUSTERING", "outputDimensionality": 2, "title": "t" });
    let (bodies, dropped) = sent(Dialect::Gemini, &one, Format::OpenAiChat, "m");
    assert_eq!(bodies, [json!({ "model": "m", "input": "ab", "dimensions": 2, "encoding_format": "float" })]);
    assert_eq!(dropped, ["title", "taskType"]);
    let batch = json!({ "requests": [{ "content": { "parts": [{ "text": "a" }] } },
                                     { "content": { "parts": [{ "text": "b" }] } }] });
    let (bodies, dropped) = sent(Dialect::GeminiBatch, &batch, Format::OpenAiChat, "m");
    assert_eq!((bodies[0]["input"].clone(), dropped.len()), (json!(["a", "b"]), 0));
    let image = json!({ "content": { "parts": [{ "inlineData": { "mimeType": "image/png", "data": "AA==" } }] } });
    let failure = Dialect::Gemini.decode(image.to_string().as_bytes()).unwrap_err();
    assert_eq!(failure.param.as_deref(), Some("content"));
}

#[test]
fn answers_of_each_provider_are_read() {
    let want = vec![vec![0.5f32, -0.25], vec![1.0, 0.0]];
    let base64 = "AAAAPwAAgL4=";
    for (format, model, bodies) in [
        (
            Format::OpenAiChat,
            "m",
            vec![json!({ "data": [{ "index": 1, "embedding": [1, 0.0] }, { "index": 0, "embedding": base64 }],
                         "usage": { "prompt_tokens": 7, "total_tokens": 7 } })],
        ),
        (
            Format::Gemini,
            "m",
            vec![json!({ "embeddings": [{ "values": [0.5, -0.25] }, { "values": [1, 0] }],
                         "usageMetadata": { "promptTokenCount": 7 } })],
        ),
        (
            Format::Cohere,
            "m",
            vec![json!({ "embeddings": { "float": [[0.5, -0.25], [1, 0]] }, "texts": [],
                         "meta": { "billed_units": { "input_tokens": 7 } } })],
        ),
        (Format::Ollama, "m", vec![json!({ "embeddings": [[0.5, -0.25], [1, 0]], "prompt_eval_count": 7 })]),
        (
            Format::Bedrock,
            "amazon.titan-embed-text-v2:0",
            vec![
                json!({ "embedding": [0.5, -0.25], "inputTextTokenCount": 3 }),
                json!({ "embedding": [1, 0], "inputTextTokenCount": 4 }),
            ],
        ),
    ] {
        let answer = answered(format, model, &bodies);
        assert_eq!((&answer.vectors, answer.input_tokens), (&want, Some(7)), "{format:?}");
    }
    let few = [(HeaderMap::new(), Bytes::from_static(b"{\"embeddings\":[[1]]}"))];
    assert!(decode(Format::Ollama, "m", &few, 2).is_err(), "one vector for two inputs");
}

#[test]
fn a_caller_gets_floats_or_base64_as_it_asked() {
    let answer = Answer { vectors: vec![vec![0.5, -0.25]], input_tokens: None };
    let read = |body: Vec<u8>| serde_json::from_slice::<Value>(&body).unwrap();
    let asks = |format: &str| request(Dialect::OpenAi, &json!({ "input": "a", "encoding_format": format }));
    let floats = read(Dialect::OpenAi.encode(&answer, &asks("float"), "m", 3));
    let item = json!({ "object": "embedding", "index": 0, "embedding": [0.5, -0.25] });
    let usage = json!({ "prompt_tokens": 3, "total_tokens": 3 });
    assert_eq!(floats, json!({ "object": "list", "data": [item], "model": "m", "usage": usage }));
    let base64 = read(Dialect::OpenAi.encode(&answer, &asks("base64"), "m", 3));
    assert_eq!(base64["data"][0]["embedding"], "AAAAPwAAgL4=");
    let gemini = read(Dialect::GeminiBatch.encode(&answer, &asks("float"), "m", 3));
    assert_eq!(gemini["embeddings"], json!([{ "values": [0.5, -0.25] }]));
}

#[test]
fn what_cannot_be_asked_is_refused() {
    for body in [
        json!({ "input": [] }),
        json!({}),
        json!({ "input": [1, "a"] }),
        json!({ "input": "a", "encoding_format": "hex" }),
        json!({ "input": "a", "dimensions": 0 }),
        json!({ "input": { "a": 1 } }),
    ] {
        assert!(Dialect::OpenAi.decode(body.to_string().as_bytes()).is_err(), "{body}");
    }
    let tokens = request(Dialect::OpenAi, &json!({ "input": [[1, 2], [3]] }));
    assert_eq!(tokens.inputs, [Input::Tokens(vec![1, 2]), Input::Tokens(vec![3])]);
    assert!(encode(&tokens, Format::Cohere, "c", Dialect::OpenAi, &mut Dropped::default()).is_err());
}
