//! Guardrails that others have to be asked about: what they are sent, and what their answer means.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::texts::Place;
use crate::config::Secret;
use crate::config::guardrails::{self as written, OnError, Role, Side};

/// Whoever has to be asked.
pub struct Remote {
    pub who: Who,
    pub timeout: Duration,
    pub on_error: OnError,
    most: usize,
}

pub enum Who {
    /// A provider of the configuration, by its name.
    Moderation {
        provider: Box<str>,
        model: Box<str>,
        categories: Box<[Box<str>]>,
        thresholds: Box<[(Box<str>, f64)]>,
    },
    Webhook {
        url: Box<str>,
        token: Option<Secret>,
    },
}

/// What is asked.
pub struct Question<'q> {
    pub guardrail: &'q str,
    pub on: Side,
    pub model: &'q str,
    pub consumer: Option<&'q str>,
    pub request_id: &'q str,
    pub texts: &'q [(Place, String)],
}

/// What was answered.
#[derive(Debug, PartialEq)]
pub enum Opinion {
    Fine,
    /// What the guardrail looks for is there.
    Found,
    /// These texts are to stand in the place of those that were asked about.
    Replace(Vec<String>),
}

#[derive(Deserialize)]
struct Moderated {
    results: Vec<Result>,
}

#[derive(Deserialize)]
struct Result {
    flagged: bool,
    #[serde(default)]
    categories: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    category_scores: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Hooked {
    action: HookAction,
    reason: Option<String>,
    texts: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum HookAction {
    Allow,
    Block,
    Mask,
}

/// No provider takes more in one question.
const MOST_MODERATED: usize = 1 << 20;

impl Remote {
    pub fn moderation(written: &written::Moderation) -> Remote {
        Remote {
            who: Who::Moderation {
                provider: written.provider.as_str().into(),
                model: written.model.as_str().into(),
                categories: written.categories.iter().map(|name| name.as_str().into()).collect(),
                thresholds: written.thresholds.iter().map(|(name, least)| (name.as_str().into(), *least)).collect(),
            },
            timeout: written.timeout.get(),
            on_error: written.on_error,
            most: MOST_MODERATED,
        }
    }

    pub fn webhook(written: &written::Webhook, token: Option<Secret>) -> Remote {
        Remote {
            who: Who::Webhook { url: written.url.as_str().into(), token },
            timeout: written.timeout.get(),
            on_error: written.on_error,
            most: usize::try_from(written.max_size.get()).unwrap_or(usize::MAX),
        }
    }

    /// The body of the question; an error says why there is none.
    pub fn ask(&self, question: &Question<'_>) -> std::result::Result<Vec<u8>, String> {
        let size: usize = question.texts.iter().map(|(_, text)| text.len()).sum();
        if size > self.most {
            return Err("the texts are longer than may be sent".to_owned());
        }
        let document = match &self.who {
            Who::Moderation { model, .. } => {
                let texts: Vec<&str> = question.texts.iter().map(|(_, text)| text.as_str()).collect();
                json!({ "model": model, "input": texts })
            }
            Who::Webhook { .. } => {
                let text = |(place, text): &(Place, String)| json!({ "role": role(place.role), "text": text });
                json!({
                    "guardrail": question.guardrail,
                    "on": question.on.name(),
                    "model": question.model,
                    "consumer": question.consumer,
                    "request_id": question.request_id,
                    "texts": question.texts.iter().map(text).collect::<Vec<_>>(),
                })
            }
        };
        Ok(document.to_string().into_bytes())
    }

    /// What an answer means; an error says why it cannot be read.
    pub fn opinion(&self, body: &[u8], asked: usize) -> std::result::Result<Opinion, String> {
        match &self.who {
            Who::Moderation { categories, thresholds, .. } => {
                let moderated: Moderated = serde_json::from_slice(body).map_err(|error| error.to_string())?;
                if moderated.results.is_empty() {
                    return Err("it has no results".to_owned());
                }
                let found = moderated.results.iter().any(|result| result.is_against(categories, thresholds));
                Ok(if found { Opinion::Found } else { Opinion::Fine })
            }
            Who::Webhook { .. } => {
                let hooked: Hooked = serde_json::from_slice(body).map_err(|error| error.to_string())?;
                if let Some(reason) = &hooked.reason {
                    log::debug!("a guardrail's webhook says: {reason}");
                }
                match (hooked.action, hooked.texts) {
                    (HookAction::Allow, _) => Ok(Opinion::Fine),
                    (HookAction::Block, _) => Ok(Opinion::Found),
                    (HookAction::Mask, Some(texts)) if texts.len() == asked => Ok(Opinion::Replace(texts)),
                    (HookAction::Mask, _) => {
                        Err("it masks, and does not say one text for each that was sent".to_owned())
                    }
                }
            }
        }
    }
}

impl Result {
    fn is_against(&self, categories: &[Box<str>], thresholds: &[(Box<str>, f64)]) -> bool {
        let score = |name: &str| self.category_scores.get(name).and_then(serde_json::Value::as_f64);
        let flagged = |name: &str| self.categories.get(name).and_then(serde_json::Value::as_bool).unwrap_or_default();
        if thresholds.iter().any(|(name, least)| score(name).is_some_and(|score| score >= *least)) {
            return true;
        }
        let by_threshold = |name: &str| thresholds.iter().any(|(known, _)| **known == *name);
        match categories {
            // The model's own judgement, but for what has a threshold.
            [] if thresholds.is_empty() => self.flagged,
            [] => self.categories.keys().any(|name| !by_threshold(name) && flagged(name)),
            named => named.iter().any(|name| !by_threshold(name) && flagged(name)),
        }
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moderation(categories: &[&str], thresholds: &[(&str, f64)]) -> Remote {
        Remote::moderation(&written::Moderation {
            provider: "openai".into(),
            model: "m".into(),
            categories: categories.iter().map(|name| name.to_string()).collect(),
            thresholds: thresholds.iter().map(|(name, least)| (name.to_string(), *least)).collect(),
            timeout: crate::config::units::Duration::from_secs(1),
            on_error: OnError::Block,
        })
    }

    #[test]
    fn categories_and_thresholds_say_what_counts() {
        let body = br#"{"results":[{"flagged":false},{"flagged":true,"categories":{"violence":true,"hate":false},
            "category_scores":{"violence":0.9,"hate":0.3}}]}"#;
        for (categories, thresholds, found) in [
            (&[][..], &[][..], true),
            (&["violence"], &[], true),
            (&["hate"], &[], false),
            (&[], &[("hate", 0.2)], true),
            (&[], &[("violence", 0.95)], false),
            (&["hate"], &[("hate", 0.4)], false),
        ] {
            let opinion = moderation(categories, thresholds).opinion(body, 2).unwrap();
            assert_eq!(opinion == Opinion::Found, found, "{categories:?} {thresholds:?}");
        }
        assert!(moderation(&[], &[]).opinion(b"{\"results\":[]}", 1).is_err());
        assert!(moderation(&[], &[]).opinion(b"<html>", 1).is_err());
    }

    #[test]
    fn a_webhook_that_masks_has_to_say_every_text() {
        let webhook = Remote {
            who: Who::Webhook { url: "http://x".into(), token: None },
            timeout: Duration::from_secs(1),
            on_error: OnError::Block,
            most: 10,
        };
        assert_eq!(webhook.opinion(br#"{"action":"allow"}"#, 1), Ok(Opinion::Fine));
        assert_eq!(webhook.opinion(br#"{"action":"block","reason":"x"}"#, 1), Ok(Opinion::Found));
        let replace = webhook.opinion(br#"{"action":"mask","texts":["x"]}"#, 1);
        assert_eq!(replace, Ok(Opinion::Replace(vec!["x".into()])));
        assert!(webhook.opinion(br#"{"action":"mask","texts":["x"]}"#, 2).is_err());
        assert!(webhook.opinion(br#"{"action":"maybe"}"#, 1).is_err());
        let texts = [(Place { role: Role::User, tool: false, message: 1 }, "a".repeat(11))];
        let question =
            Question { guardrail: "g", on: Side::Input, model: "m", consumer: None, request_id: "r", texts: &texts };
        assert!(webhook.ask(&question).is_err(), "longer than may be sent");
    }
}
