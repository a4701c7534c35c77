//! Which of the questions that were asked before is most like another, by their embeddings.
//!
//! Questions are compared only with those that are the same in all but what the user has said last: same tenant, model,
//! instructions, history and parameters.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use moka::sync::Cache;
use serde::Deserialize;
use serde_json::Value;

use super::key::Key;
use crate::ai::guardrails::texts;
use crate::config::guardrails::{Role, Side};

/// Questions that are alike but for what was said last; the oldest go first.
const MOST_ALIKE: usize = 10_000;
/// No model's embeddings have more.
const MOST_DIMENSIONS: usize = 16_384;

/// The embedding of a question, of length 1.
pub struct Vector(Box<[f32]>);

/// All questions that are remembered.
pub struct Similar {
    alike: Cache<Key, Arc<Mutex<Questions>>>,
}

#[derive(Default)]
struct Questions(VecDeque<(Vector, Key)>);

#[derive(Deserialize)]
struct Embeddings {
    data: Vec<Embedding>,
}

#[derive(Deserialize)]
struct Embedding {
    embedding: Vec<f32>,
}

impl Vector {
    /// Reads an answer in the format of OpenAI's `/embeddings`. An error says why it cannot be used.
    pub fn read(body: &[u8]) -> Result<Vector, String> {
        let Embeddings { data } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let values = data.into_iter().next().map(|first| first.embedding).unwrap_or_default();
        let length = values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt();
        if values.len() > MOST_DIMENSIONS || !length.is_finite() || length <= 0.0 {
            return Err("it holds no embedding that could be compared".to_owned());
        }
        Ok(Vector(values.iter().map(|value| (f64::from(*value) / length) as f32).collect()))
    }

    /// The cosine of the angle between two. Those of different models are not alike.
    fn cosine(&self, other: &Vector) -> f32 {
        if self.0.len() != other.0.len() {
            return -1.0;
        }
        // Eight sums side by side, which the compiler makes one instruction of.
        let mut sums = [0f32; 8];
        let (ours, theirs) = (self.0.chunks_exact(8), other.0.chunks_exact(8));
        let rest: f32 = ours.remainder().iter().zip(theirs.remainder()).map(|(a, b)| a * b).sum();
        for (a, b) in ours.zip(theirs) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum += a * b;
            }
        }
        sums.iter().sum::<f32>() + rest
    }
}

impl Similar {
    /// Bounded by bytes of embeddings.
    pub fn new(size: u64) -> Similar {
        let weigh = |_: &Key, questions: &Arc<Mutex<Questions>>| {
            let questions = questions.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes: usize = questions.0.iter().map(|(vector, _)| vector.0.len() * 4 + 96).sum();
            u32::try_from(bytes + 128).unwrap_or(u32::MAX)
        };
        Similar { alike: Cache::builder().max_capacity(size).weigher(weigh).build() }
    }

    /// Keys of the answers to questions that are at least so similar, the most similar first.
    pub fn find(&self, alike: &Key, vector: &Vector, threshold: f32) -> Vec<Key> {
        let Some(questions) = self.alike.get(alike) else { return Vec::new() };
        let questions = questions.lock().unwrap_or_else(PoisonError::into_inner);
        let near = questions.0.iter().map(|(other, key)| (vector.cosine(other), *key));
        let mut near: Vec<_> = near.filter(|(cosine, _)| *cosine >= threshold).collect();
        near.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        // Answers may be gone meanwhile: a few are tried.
        near.into_iter().take(8).map(|(_, key)| key).collect()
    }

    pub fn remember(&self, alike: Key, vector: Vector, key: Key) {
        let questions = self.alike.get_with(alike, Arc::default);
        {
            let mut questions = questions.lock().unwrap_or_else(PoisonError::into_inner);
            questions.0.retain(|(_, known)| *known != key);
            if questions.0.len() >= MOST_ALIKE {
                questions.0.pop_front();
            }
            questions.0.push_back((vector, key));
        }
        // It weighs more now.
        self.alike.insert(alike, questions);
    }
}

/// Takes what the user has said last out of a call, and returns it; `None` if nothing was said.
pub fn take_newest(call: &mut Value) -> Option<String> {
    let said = texts::collect(call, Side::Input);
    let newest = said.iter().rfind(|(place, _)| place.role == Role::User && !place.tool)?.0.message;
    // Only if it was the last word: a question between answers of tools is not the one that is being answered.
    if said.last().is_some_and(|(place, _)| place.message != newest) {
        return None;
    }
    let mut taken = String::new();
    texts::walk(call, Side::Input, &mut |place, text| {
        if place.message == newest && place.role == Role::User {
            if !taken.is_empty() {
                taken.push('\n');
            }
            taken += text;
            text.clear();
        }
    });
    Some(taken)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vector(values: &[f32]) -> Vector {
        let body = json!({ "data": [{ "embedding": values }] }).to_string();
        Vector::read(body.as_bytes()).unwrap()
    }

    #[test]
    fn the_most_similar_question_is_found_among_those_that_are_alike() {
        let similar = Similar::new(1 << 20);
        let (alike, other) = (Key([1; 32]), Key([2; 32]));
        let long = |first: f32| (0..19).map(|i| if i == 0 { first } else { 1.0 }).collect::<Vec<f32>>();
        similar.remember(alike, vector(&long(1.0)), Key([10; 32]));
        similar.remember(alike, vector(&long(9.0)), Key([11; 32]));
        similar.remember(other, vector(&long(9.1)), Key([12; 32]));
        assert_eq!(similar.find(&alike, &vector(&long(9.1)), 0.99), [Key([11; 32])]);
        assert_eq!(similar.find(&alike, &vector(&long(9.1)), 0.1).len(), 2);
        assert_eq!(similar.find(&alike, &vector(&[1.0; 3]), 0.1), [], "of another model");
        assert!((vector(&[3.0, 4.0]).cosine(&vector(&[6.0, 8.0])) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let similar = Similar::new(100_000);
        for n in 0..=255u8 {
            similar.remember(Key([n; 32]), vector(&[1.0; 1000]), Key([n; 32]));
        }
        similar.alike.run_pending_tasks();
        assert!(similar.alike.weighted_size() <= 100_000, "{}", similar.alike.weighted_size());
    }

    #[test]
    fn an_embedding_that_is_none_is_refused() {
        for body in
            ["{}", "{\"data\":[]}", "{\"data\":[{\"embedding\":[0,0]}]}", "{\"data\":[{\"embedding\":[\"x\"]}]}"]
        {
            assert!(Vector::read(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn what_was_said_last_is_taken_out_and_the_rest_stays() {
        let mut call = json!({ "messages": [
            { "role": "system", "content": "a" },
            { "role": "user", "content": "b" },
            { "role": "assistant", "content": "c" },
            { "role": "user", "content": [{ "type": "text", "text": "d" }, { "type": "text", "text": "e" }] },
        ] });
        assert_eq!(take_newest(&mut call).as_deref(), Some("d\ne"));
        assert_eq!(
            call["messages"][3],
            json!({ "role": "user", "content": [{ "type": "text", "text": "" }, { "type": "text", "text": "" }] })
        );
        assert_eq!(call["messages"][1]["content"], "b");
        let mut tools = json!({ "messages": [{ "role": "user", "content": "b" }, { "role": "tool", "content": "x" }] });
        assert_eq!(take_newest(&mut tools), None);
    }
}
