//! Documents in the order of how well they fit a query. Callers speak the form that Cohere and Jina share; providers speak it
//! too, but for Cohere, which takes texts only, and Voyage, which has words of its own.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::Format;
use super::reading::{self, Text, Whole, wire_object};
use super::writing::object;
use crate::ai::chat::{Dropped, Failure, FailureKind};
use crate::ai::quirks::{Quirk, Quirks};

/// How a provider ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As callers do.
    Common,
    Cohere,
    Voyage,
}

impl Form {
    pub fn of(format: Format, quirks: Quirks) -> Form {
        match format {
            Format::Cohere => Form::Cohere,
            _ if quirks.has(Quirk::RerankTopK) => Form::Voyage,
            _ => Form::Common,
        }
    }
}

wire_object! {
    struct WireRequest<'a> {
        "model" => model: Text<'a>,
        "query" => query: Text<'a>,
        "documents" => documents: Vec<Value>,
        "top_n" => top_n: Whole,
        "return_documents" => return_documents: bool,
    }
}

/// What a caller asks for, where it has to be written anew.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    query: String,
    documents: Vec<Value>,
    top_n: Option<i64>,
    return_documents: bool,
    rest: Map<String, Value>,
}

pub fn read_request(body: &[u8]) -> Result<Request, Failure> {
    let wire: WireRequest<'_> = reading::request(body)?;
    let missing = |what: &str| Failure::invalid(what, format!("`{what}` is missing"));
    Ok(Request {
        query: wire.query.ok_or_else(|| missing("query"))?.into_owned(),
        documents: wire.documents.ok_or_else(|| missing("documents"))?,
        top_n: wire.top_n.map(|top_n| top_n.0),
        return_documents: wire.return_documents.unwrap_or(false),
        rest: wire.rest,
    })
}

/// The text of a document, which is one, or an object that holds it.
fn text(document: &Value) -> Option<&str> {
    document.as_str().or_else(|| document.get("text")?.as_str())
}

impl Request {
    /// Whether a provider can be given the call as the caller wrote it.
    pub fn passes(&self, form: Form) -> bool {
        match form {
            Form::Common => true,
            Form::Cohere => !self.return_documents && self.documents.iter().all(Value::is_string),
            Form::Voyage => false,
        }
    }

    pub fn encode(&self, form: Form, model: &str, dropped: &mut Dropped) -> Result<Bytes, Failure> {
        let mut texts = Vec::with_capacity(self.documents.len());
        for (index, document) in self.documents.iter().enumerate() {
            let none =
                || Failure::invalid(format!("documents[{index}]"), "the provider of this model ranks texts only");
            texts.push(text(document).ok_or_else(none)?);
        }
        let mut out = Vec::with_capacity(256);
        object(&mut out, |o| {
            o.set("model", model);
            o.set("query", &self.query);
            o.set("documents", &texts);
            match form {
                Form::Voyage => o.set_some("top_k", &self.top_n),
                _ => o.set_some("top_n", &self.top_n),
            }
            for (name, value) in &self.rest {
                match (form, name.as_str()) {
                    (Form::Cohere, "max_tokens_per_doc" | "priority") | (Form::Voyage, "truncation") => {
                        o.set(name, value);
                    }
                    _ if reading::is_empty(value) => {}
                    _ => dropped.add(name.clone()),
                }
            }
        });
        Ok(out.into())
    }

    /// The answer in the form that callers know, with the documents if they asked for them.
    pub fn answer(&self, body: &[u8], model: &str) -> Result<Vec<u8>, Failure> {
        let unreadable = |error: serde_json::Error| {
            Failure::new(FailureKind::Server, format!("the provider's answer ranks nothing: {error}"))
        };
        let wire: WireAnswer<'_> = serde_json::from_slice(body).map_err(unreadable)?;
        let mut out = Vec::with_capacity(256);
        object(&mut out, |o| {
            match &wire.id {
                Some(id) => o.set("id", &**id),
                None => o.set("id", &super::made_up("rerank-")),
            }
            o.set("model", model);
            o.list("results", |list| {
                for result in wire.results.iter().chain(&wire.data) {
                    list.object(|o| {
                        o.set("index", &result.index);
                        o.raw("relevance_score", result.relevance_score.get());
                        let document = usize::try_from(result.index).ok().and_then(|index| self.documents.get(index));
                        if let (true, Some(text)) = (self.return_documents, document.and_then(text)) {
                            o.object("document", |o| o.set("text", text));
                        }
                    });
                }
            });
            for (name, member) in [("usage", wire.usage), ("meta", wire.meta)] {
                if let Some(member) = member {
                    o.raw(name, member.get());
                }
            }
        });
        Ok(out)
    }
}

#[derive(Deserialize)]
struct WireAnswer<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow, default)]
    results: Vec<WireResult<'a>>,
    /// Voyage.
    #[serde(borrow, default)]
    data: Vec<WireResult<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    meta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WireResult<'a> {
    index: u64,
    #[serde(borrow)]
    relevance_score: &'a RawValue,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(body: &Value) -> Request {
        read_request(body.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn each_provider_is_asked_in_its_own_words() {
        let call = json!({ "model": "m", "query": "q", "documents": ["a", { "text": "b", "lang": "en" }], "top_n": 1,
                           "return_documents": true, "truncation": false, "x": 1 });
        let asked = request(&call);
        let encoded = |form| {
            let mut dropped = Dropped::default();
            let body = asked.encode(form, "n", &mut dropped).unwrap();
            let names: Vec<String> = dropped.iter().map(str::to_owned).collect();
            (serde_json::from_slice::<Value>(&body).unwrap(), names)
        };
        let voyage = json!({ "model": "n", "query": "q", "documents": ["a", "b"], "top_k": 1, "truncation": false });
        assert_eq!(encoded(Form::Voyage), (voyage, vec!["x".to_owned()]));
        let cohere = json!({ "model": "n", "query": "q", "documents": ["a", "b"], "top_n": 1 });
        assert_eq!(encoded(Form::Cohere), (cohere, vec!["truncation".to_owned(), "x".to_owned()]));
        assert!(asked.passes(Form::Common) && !asked.passes(Form::Cohere));
        assert!(request(&json!({ "query": "q", "documents": ["a"] })).passes(Form::Cohere));
        let image = request(&json!({ "query": "q", "documents": [{ "image": "u" }] }));
        assert_eq!(
            image.encode(Form::Cohere, "n", &mut Dropped::default()).unwrap_err().param.as_deref(),
            Some("documents[0]")
        );
    }

    #[test]
    fn an_answer_of_voyage_becomes_the_common_one() {
        let call = json!({ "query": "q", "documents": ["a", { "text": "b" }], "return_documents": true });
        let body = json!({ "object": "list", "data": [{ "index": 1, "relevance_score": 0.75, "document": "b" }],
                           "model": "rerank-2.5", "usage": { "total_tokens": 5 } });
        let answer = request(&call).answer(body.to_string().as_bytes(), "m").unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let result = json!({ "index": 1, "relevance_score": 0.75, "document": { "text": "b" } });
        assert_eq!(answer["results"], json!([result]));
        assert_eq!((&answer["model"], &answer["usage"]["total_tokens"]), (&json!("m"), &json!(5)));
        assert!(request(&call).answer(b"{\"results\":[{}]}", "m").is_err());
    }
}
