//! The vocabularies of OpenAI's models.

use tiktoken_rs::tokenizer::{Tokenizer, get_tokenizer};

/// The vocabulary of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vocabulary(Tokenizer);

/// Texts are counted in pieces of this length: a piece without a space takes its length's square. Where a word is cut, one
/// token becomes two.
const PIECE: usize = 2048;

impl Vocabulary {
    /// By a provider's name of the model, with or without what hosts put before it; `None` if it is not OpenAI's.
    pub fn of(model: &str) -> Option<Vocabulary> {
        let name = model.rsplit('/').next().unwrap_or(model);
        get_tokenizer(name).map(Vocabulary)
    }

    /// The tokens of a text. Of what is beyond `most` bytes as many as before for its length. It takes a while.
    pub fn count(self, text: &str, most: usize) -> u64 {
        let end = boundary(text, most);
        let mut rest = &text[..end];
        let mut tokens = 0;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(boundary(rest, PIECE));
            tokens += self.count_piece(piece);
            rest = after;
        }
        match end {
            0 => 0,
            _ => u64::try_from(u128::from(tokens) * text.len() as u128 / end as u128).unwrap_or(u64::MAX),
        }
    }

    fn count_piece(self, piece: &str) -> u64 {
        let vocabulary = match self.0 {
            Tokenizer::O200kBase | Tokenizer::O200kHarmony => tiktoken_rs::o200k_base_singleton(),
            Tokenizer::Cl100kBase => tiktoken_rs::cl100k_base_singleton(),
            Tokenizer::P50kBase => tiktoken_rs::p50k_base_singleton(),
            Tokenizer::P50kEdit => tiktoken_rs::p50k_edit_singleton(),
            Tokenizer::R50kBase | Tokenizer::Gpt2 => tiktoken_rs::r50k_base_singleton(),
        };
        vocabulary.encode_ordinary(piece).len() as u64
    }
}

/// The last place at or before `most` where a text can be cut; never 0 unless the text is empty.
fn boundary(text: &str, most: usize) -> usize {
    if text.len() <= most {
        return text.len();
    }
    // A character has at most four bytes.
    (0..=most).rev().take(4).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
}
