//! A text as a reader sees it: without the differences of case, width, accents and spacing, without invisible characters,
//! and with look-alike letters of other scripts as the Latin ones they stand in for.
//!
//! Places in it lead back to places in the text that was written.

use icu_normalizer::DecomposingNormalizerBorrowed;

/// How much is folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folding {
    /// For words and phrases: runs of white space are one space.
    Words,
    /// For whoever hides phrases: everything that is neither letter nor digit, but for what marks of chat templates are made
    /// of, is a space too.
    Phrases,
}

/// A folded text.
#[derive(Debug, Default)]
pub struct Folded {
    pub text: String,
    /// From which place on the original is how far ahead of the folded text: `(folded, original)`, where that changes.
    steps: Vec<(usize, usize)>,
    /// Of the original.
    len: usize,
}

impl Folded {
    pub fn new(text: &str, folding: Folding) -> Folded {
        let mut folder = Folder { out: Folded { len: text.len(), ..Folded::default() }, folding, space: false };
        for (at, c) in text.char_indices() {
            folder.take(at, c);
        }
        folder.out
    }

    /// Where in the original the character at a place begins; at the end, where the original ends.
    pub fn start(&self, place: usize) -> usize {
        if place >= self.text.len() {
            return self.len;
        }
        match self
            .steps
            .partition_point(|(folded, _)| *folded <= place)
            .checked_sub(1)
            .and_then(|at| self.steps.get(at))
        {
            Some((folded, original)) => original + (place - folded),
            None => place,
        }
    }

    /// Where in the original what stands before a place ends. Characters that left nothing behind belong to what is before
    /// them: nothing of a masked text may stay.
    pub fn end(&self, place: usize) -> usize {
        let last = self.text.get(..place).and_then(|before| before.chars().next_back()).map_or(0, char::len_utf8);
        let began = self.start(place.saturating_sub(last));
        // One character may have become several, such as a ligature: it ends where the next one begins.
        let rest = self.text.get(place..).unwrap_or_default();
        let next = rest.char_indices().map(|(at, _)| self.start(place + at)).find(|start| *start > began);
        next.unwrap_or(self.len)
    }
}

struct Folder {
    out: Folded,
    folding: Folding,
    /// The last that was written is a space.
    space: bool,
}

impl Folder {
    fn take(&mut self, at: usize, c: char) {
        if c.is_ascii() {
            return self.put(at, c.to_ascii_lowercase());
        }
        if is_invisible(c) {
            // Letters of tags, which models read and people do not see.
            if let '\u{e0020}'..='\u{e007e}' = c {
                let shown = char::from_u32(c as u32 - 0xe0000).unwrap_or(' ');
                self.put(at, shown.to_ascii_lowercase());
            }
            return;
        }
        let mut bytes = [0; 4];
        let normalizer = DecomposingNormalizerBorrowed::new_nfkd();
        for part in normalizer.normalize_iter(c.encode_utf8(&mut bytes).chars()) {
            if is_accent(part) {
                continue;
            }
            for lower in part.to_lowercase().filter(|lower| !is_accent(*lower)) {
                self.put(at, latin(lower));
            }
        }
    }

    fn put(&mut self, at: usize, c: char) {
        let space = c.is_whitespace() || c.is_control() || (self.folding == Folding::Phrases && !is_kept(c));
        let c = match (space, self.space) {
            (true, true) => return,
            (true, false) => ' ',
            (false, _) => c,
        };
        self.space = space;
        let place = self.out.text.len();
        let expected = match self.out.steps.last() {
            Some((folded, original)) => original + (place - folded),
            None => place,
        };
        if expected != at {
            self.out.steps.push((place, at));
        }
        self.out.text.push(c);
    }
}

/// Letters, digits, the marks that make one Japanese syllable of another, and what marks of chat templates are made of.
fn is_kept(c: char) -> bool {
    c.is_alphanumeric() || "<>[]{}|/:#=$!\u{3099}\u{309a}".contains(c)
}

/// Characters that are not shown (Unicode's `Default_Ignorable_Code_Point`, and tags).
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{feff}'
        | '\u{ffa0}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Combining marks of the Latin, Greek and Cyrillic scripts.
fn is_accent(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{483}'..='\u{489}' | '\u{1ab0}'..='\u{1aff}' | '\u{1dc0}'..='\u{1dff}'
        | '\u{20d0}'..='\u{20ff}' | '\u{fe20}'..='\u{fe2f}')
}

/// The Latin letter that a letter, in lower case, is made to look like. Words of other scripts stay words: what they are
/// compared with is folded in the same way.
fn latin(c: char) -> char {
    match c {
        // Cyrillic
        'а' => 'a',
        'в' => 'b',
        'с' => 'c',
        'ԁ' => 'd',
        'е' | 'ҽ' | 'ё' => 'e',
        'һ' | 'н' => 'h',
        'і' | 'ї' | 'ӏ' => 'i',
        'ј' => 'j',
        'к' | 'қ' => 'k',
        'м' => 'm',
        'о' | 'ө' => 'o',
        'р' => 'p',
        'ԛ' => 'q',
        'ѕ' => 's',
        'т' => 't',
        'ѵ' => 'v',
        'ԝ' => 'w',
        'х' | 'ҳ' => 'x',
        'у' | 'ү' => 'y',
        // Greek
        'α' => 'a',
        'β' => 'b',
        'ϲ' | 'ς' => 'c',
        'ε' => 'e',
        'η' => 'n',
        'ι' => 'i',
        'κ' => 'k',
        'μ' => 'm',
        'ν' => 'v',
        'ο' => 'o',
        'ρ' => 'p',
        'τ' => 't',
        'υ' => 'u',
        'χ' => 'x',
        'γ' => 'y',
        'ζ' => 'z',
        // Armenian, and letters of phonetic alphabets
        'օ' => 'o',
        'ս' => 'u',
        'ո' => 'n',
        'հ' => 'h',
        'ı' | 'ɩ' | 'ɪ' => 'i',
        'ɑ' => 'a',
        'ɡ' => 'g',
        'ø' => 'o',
        'ł' => 'l',
        'đ' => 'd',
        'ß' => 's',
        'ᴀ' => 'a',
        'ᴄ' => 'c',
        'ᴅ' => 'd',
        'ᴇ' => 'e',
        'ɢ' => 'g',
        'ʜ' => 'h',
        'ᴊ' => 'j',
        'ᴋ' => 'k',
        'ʟ' => 'l',
        'ᴍ' => 'm',
        'ɴ' => 'n',
        'ᴏ' => 'o',
        'ᴘ' => 'p',
        'ʀ' => 'r',
        'ꜱ' => 's',
        'ᴛ' => 't',
        'ᴜ' => 'u',
        'ᴠ' => 'v',
        'ᴡ' => 'w',
        'ʏ' => 'y',
        'ᴢ' => 'z',
        '‐' | '‑' | '‒' | '–' | '—' | '−' => '-',
        '’' | '‘' | 'ʼ' | '′' => '\'',
        '“' | '”' | '«' | '»' => '"',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> String {
        Folded::new(text, Folding::Words).text
    }

    #[test]
    fn what_looks_alike_is_alike() {
        for text in [
            "Ignore  Me",
            "ignore\u{a0}\t\nme",
            "i\u{200b}g\u{ad}nore me",
            "ｉｇｎｏｒｅ　ｍｅ",
            "іgnоrе mе",
            "𝐢𝐠𝐧𝐨𝐫𝐞 𝓶𝓮",
            "ígnörê mé",
            "ⓘⓖⓝⓞⓡⓔ ⓜⓔ",
            "ɪɢɴᴏʀᴇ ᴍᴇ",
            "ignore\u{e0020}\u{e006d}\u{e0065}",
        ] {
            assert_eq!(words(text), "ignore me", "{text:?}");
        }
        assert_eq!(Folded::new("Ignore--all...*THE* rules", Folding::Phrases).text, "ignore all the rules");
        assert_eq!(Folded::new("<|im_start|>", Folding::Phrases).text, "<|im start|>");
    }

    #[test]
    fn places_lead_back_to_what_was_written() {
        let text = "a\u{200b}b   ｃd é\u{301}x ﬁn";
        let folded = Folded::new(text, Folding::Words);
        assert_eq!(folded.text, "ab cd ex fin");
        let of = |from: usize, to: usize| &text[folded.start(from)..folded.end(to)];
        assert_eq!(of(0, 2), "a\u{200b}b");
        assert_eq!(of(3, 5), "ｃd");
        assert_eq!(of(6, 8), "é\u{301}x");
        assert_eq!(of(9, 12), "ﬁn");
        assert_eq!(of(9, 10), "ﬁ", "not half of it");
        assert_eq!((folded.start(12), folded.end(12)), (text.len(), text.len()));
        for place in (0..=folded.text.len()).filter(|place| folded.text.is_char_boundary(*place)) {
            assert!(text.is_char_boundary(folded.start(place)), "{place}");
        }
    }
}
