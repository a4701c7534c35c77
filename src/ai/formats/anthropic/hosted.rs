//! Anthropic's format as others host it: the model is in the path, and a version in the body.
//!
//! Bedrock (`/model/{id}/invoke`, `/invoke-with-response-stream`) has the choice of streaming in the path too, and wraps the
//! events of a stream into an event stream; Vertex (`:rawPredict`, `:streamRawPredict`) leaves both as they are.

use std::borrow::Cow;
use std::fmt;

use http::HeaderMap;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::ai::chat::Failure;
use crate::ai::formats::{bedrock, tolerant};
use crate::ai::quirks::{Quirk, Quirks};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    Bedrock,
    Vertex,
}

impl Host {
    /// `None` for Anthropic itself.
    pub fn of(quirks: Quirks) -> Option<Host> {
        match quirks {
            quirks if quirks.has(Quirk::AnthropicOnBedrock) => Some(Host::Bedrock),
            quirks if quirks.has(Quirk::AnthropicOnVertex) => Some(Host::Vertex),
            _ => None,
        }
    }

    pub(super) fn version(self) -> &'static str {
        match self {
            Host::Bedrock => "bedrock-2023-05-31",
            Host::Vertex => "vertex-2023-10-16",
        }
    }
}

/// Makes an Anthropic caller's body one for the host, everything else in it as it was. `betas` are those of the caller's
/// `anthropic-beta` header; Bedrock wants them in the body, Vertex in the header still.
pub fn adapt(body: &[u8], host: Host, betas: &[&str]) -> Result<Vec<u8>, Failure> {
    let mut members: Members<'_> = tolerant::request(body)?;
    let own = |name: &str| match name {
        "model" | "anthropic_version" => true,
        "stream" => host == Host::Bedrock,
        _ => false,
    };
    members.0.retain(|(name, _)| !own(name));
    let mut all_betas: Vec<Cow<'_, str>> = Vec::new();
    if host == Host::Bedrock {
        members.0.retain(|(name, value)| match &**name {
            "anthropic_beta" => {
                all_betas.extend(serde_json::from_str::<Vec<Cow<'_, str>>>(value.get()).unwrap_or_default());
                false
            }
            _ => true,
        });
        for beta in betas.iter().map(|beta| beta.trim()).filter(|beta| !beta.is_empty()) {
            if !all_betas.iter().any(|known| known == beta) {
                all_betas.push(Cow::Borrowed(beta));
            }
        }
    }
    let mut out = Vec::with_capacity(body.len() + 64);
    out.extend_from_slice(b"{\"anthropic_version\":");
    append(&host.version(), &mut out);
    if !all_betas.is_empty() {
        out.extend_from_slice(b",\"anthropic_beta\":");
        append(&all_betas, &mut out);
    }
    for (name, value) in &members.0 {
        out.push(b',');
        append(name, &mut out);
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    out.push(b'}');
    Ok(out)
}

fn append(value: &impl Serialize, out: &mut Vec<u8>) {
    // Texts can always be written, and memory takes everything.
    let _ = serde_json::to_writer(out, value);
}

/// The members of an object, in order, unparsed.
struct Members<'b>(Vec<(Cow<'b, str>, &'b RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    members.push((member.0.0, member.1));
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Object)
    }
}

#[derive(Deserialize)]
struct Name<'b>(#[serde(borrow)] Cow<'b, str>);

/// What a host says in its own words, before a request reaches the model.
pub(super) fn failure(status: u16, headers: &HeaderMap, body: &[u8]) -> Failure {
    bedrock::failure(status, headers, body)
}
