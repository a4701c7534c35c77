//! What may be talked about, by words.

use super::words::Words;
use crate::config::guardrails;

pub struct Topics {
    /// `None`: anything that is not denied.
    allow: Option<Words>,
    deny: Option<Words>,
}

impl Topics {
    /// An error says where what is wrong.
    pub fn new(written: &guardrails::Topics) -> Result<Topics, (String, String)> {
        if written.allow.is_empty() && written.deny.is_empty() {
            return Err((String::new(), "it names no topic; write `allow` or `deny`".to_owned()));
        }
        let compile = |list: &str, topics: &std::collections::BTreeMap<String, Vec<String>>| {
            for (name, words) in topics {
                if words.is_empty() {
                    return Err((format!(".{list}.{name}"), "a topic is known by its words".to_owned()));
                }
                let own = Words::new(words.iter().map(String::as_str), true);
                own.map_err(|(i, message)| (format!(".{list}.{name}[{i}]"), message))?;
            }
            let all = topics.values().flatten().map(String::as_str);
            let words = Words::new(all, true).map_err(|(_, message)| (format!(".{list}"), message))?;
            Ok((!topics.is_empty()).then_some(words))
        };
        Ok(Topics { allow: compile("allow", &written.allow)?, deny: compile("deny", &written.deny)? })
    }

    /// Whether a conversation may go on whose newest text is `newest`.
    pub fn allow(&self, newest: &str, all: &str) -> bool {
        self.deny.as_ref().is_none_or(|deny| !deny.contains(all))
            && self.allow.as_ref().is_none_or(|allow| allow.contains(newest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_needs_an_allowed_topic_and_none_that_is_denied() {
        let of = |topic: &str, words: &[&str]| {
            std::collections::BTreeMap::from([(topic.to_owned(), words.iter().map(|word| word.to_string()).collect())])
        };
        let written =
            guardrails::Topics { allow: of("billing", &["invoice", "refund"]), deny: of("law", &["lawsuit"]) };
        let topics = Topics::new(&written).unwrap_or_else(|(_, error)| panic!("{error}"));
        assert!(topics.allow("Where is my REFUND?", ""));
        assert!(!topics.allow("Tell me a joke", "refund"));
        assert!(!topics.allow("An invoice", "A lawsuit about an invoice"));
        let empty = guardrails::Topics { deny: of("law", &[]), ..Default::default() };
        assert!(Topics::new(&empty).is_err_and(|(place, _)| place == ".deny.law"));
    }
}
