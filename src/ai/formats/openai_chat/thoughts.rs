//! Thoughts in messages. OpenAI has no place for them; others agree on `reasoning_content` or `reasoning` for their text,
//! and on `reasoning_details` (OpenRouter) or `thinking_blocks` (LiteLLM) for their signatures.

use serde::Deserialize;

use super::super::reading::Text;
use super::super::writing::List;
use crate::ai::chat::Thought;

/// An entry of either list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Detail<'a> {
    #[serde(borrow)]
    pub text: Option<Text<'a>>,
    #[serde(borrow)]
    pub thinking: Option<Text<'a>>,
    #[serde(borrow)]
    pub summary: Option<Text<'a>>,
    #[serde(borrow)]
    pub signature: Option<Text<'a>>,
    #[serde(borrow)]
    pub data: Option<Text<'a>>,
}

impl<'a> Detail<'a> {
    /// The text, by whatever name.
    pub fn words(&mut self) -> Option<Text<'a>> {
        self.text.take().or(self.thinking.take()).or(self.summary.take()).filter(|text| !text.is_empty())
    }

    pub fn proof(&mut self) -> Option<Text<'a>> {
        self.signature.take().filter(|text| !text.is_empty())
    }

    /// What only the provider can read.
    pub fn sealed(&mut self) -> Option<Text<'a>> {
        self.data.take().filter(|text| !text.is_empty())
    }
}

/// The thoughts of a message from its details and from its plain text, which repeats what the details say.
pub fn read(details: Vec<Detail<'_>>, plain: Option<String>) -> Vec<Thought> {
    let mut thoughts: Vec<Thought> = Vec::new();
    for mut detail in details {
        let (text, signature) = (detail.words().map(Text::into_owned), detail.proof().map(Text::into_owned));
        if let Some(data) = detail.sealed() {
            thoughts.push(Thought { encrypted: Some(data.into_owned()), ..Thought::default() });
        }
        match (text, thoughts.last_mut()) {
            (Some(text), _) => thoughts.push(Thought { text, signature, encrypted: None }),
            // Streams send the signature after the text.
            (None, Some(last)) if last.encrypted.is_none() && last.signature.is_none() => last.signature = signature,
            (None, _) if signature.is_some() => thoughts.push(Thought { signature, ..Thought::default() }),
            (None, _) => {}
        }
    }
    let said = thoughts.iter().any(|thought| !thought.text.is_empty());
    if let Some(plain) = plain.filter(|text| !text.is_empty() && !said) {
        match thoughts.iter_mut().find(|thought| thought.encrypted.is_none()) {
            Some(signed) => signed.text = plain,
            None => thoughts.insert(0, Thought { text: plain, ..Thought::default() }),
        }
    }
    thoughts
}

/// Whether the plain text alone does not say everything.
pub fn has_proof(thought: &Thought) -> bool {
    thought.signature.is_some() || thought.encrypted.is_some()
}

/// Writes an entry of `reasoning_details`.
pub fn write(thought: &Thought, index: usize, list: &mut List<'_>) {
    if let Some(data) = &thought.encrypted {
        return list.object(|o| {
            o.set("type", "reasoning.encrypted");
            o.set("data", data);
            o.set("index", &index);
        });
    }
    list.object(|o| {
        o.set("type", "reasoning.text");
        o.set("text", &thought.text);
        o.set_some("signature", &thought.signature);
        o.set("index", &index);
    });
}
