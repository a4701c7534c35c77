//! A text that comes in pieces: what is certain is let through, what may be the beginning of something is held back.

use std::sync::Arc;

use super::Guardrail;
use super::scanner::Found;
use crate::config::guardrails::Action;

/// What is held back of one text, at most. Longer things than that are found if they are so before their beginning is let
/// through.
pub const MOST_HELD: usize = 8 << 10;
/// What was let through last is kept to look back at.
const CONTEXT: usize = 4;

/// Places in one text, of several guardrails.
#[derive(Default)]
pub struct Hits(Vec<(usize, Found)>);

impl Hits {
    /// Everything that begins at `from` or later, by place.
    pub fn find(guardrails: &[Arc<Guardrail>], text: &str, from: usize) -> Hits {
        let mut hits = Vec::new();
        for (i, guardrail) in guardrails.iter().enumerate() {
            if let Some(scanner) = guardrail.scanner() {
                scanner.find(text, from, &mut |found| hits.push((i, found)));
            }
        }
        hits.sort_by_key(|(_, found)| (found.start, std::cmp::Reverse(found.end)));
        Hits(hits)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which guardrails have found something, once each, with how much.
    pub fn by_guardrail(&self, note: &mut dyn FnMut(usize, u32)) {
        for (i, _) in &self.0 {
            note(*i, 1);
        }
    }

    /// The first that blocks.
    pub fn blocking(&self, guardrails: &[Arc<Guardrail>]) -> Option<usize> {
        let blocks = |i: &usize| guardrails.get(*i).is_some_and(|guardrail| guardrail.action == Action::Block);
        self.0.iter().map(|(i, _)| *i).find(blocks)
    }

    /// Appends a part of the text with placeholders for what is masked.
    pub fn mask(&self, guardrails: &[Arc<Guardrail>], text: &str, from: usize, to: usize, out: &mut String) {
        let mut done = from;
        for (i, found) in &self.0 {
            let Some(guardrail) = guardrails.get(*i).filter(|guardrail| guardrail.action == Action::Mask) else {
                continue;
            };
            if found.end <= done {
                continue;
            }
            // What overlaps is covered by the first one's placeholder.
            if found.start >= done {
                out.push_str(text.get(done..found.start).unwrap_or_default());
                guardrail.write_placeholder(found.what, out);
            }
            done = found.end;
        }
        out.push_str(text.get(done..to).unwrap_or_default());
    }
}

/// One text of a stream.
#[derive(Default)]
pub struct Window {
    /// What was let through last, and what is held back.
    text: String,
    context: usize,
}

impl Window {
    /// Takes more of the text, and appends to `out` what may be let through. `Err` says which guardrail blocks it.
    pub fn push(
        &mut self,
        more: &str,
        last: bool,
        guardrails: &[Arc<Guardrail>],
        out: &mut String,
        note: &mut dyn FnMut(usize, u32),
    ) -> Result<(), usize> {
        self.text.push_str(more);
        let hits = Hits::find(guardrails, &self.text, self.context);
        let certain = match last {
            true => self.text.len(),
            false => self.certain(&hits, guardrails),
        };
        let (decided, open): (Vec<_>, Vec<_>) = hits.0.into_iter().partition(|(_, found)| found.end <= certain);
        // Not before it is decided: what looks like something now may turn out to be a part of something else.
        drop(open);
        let hits = Hits(decided);
        if let Some(blocking) = hits.blocking(guardrails) {
            note(blocking, 1);
            return Err(blocking);
        }
        hits.by_guardrail(note);
        hits.mask(guardrails, &self.text, self.context, certain, out);
        let mut keep = certain.saturating_sub(CONTEXT);
        while !self.text.is_char_boundary(keep) {
            keep -= 1;
        }
        self.text.drain(..keep);
        self.context = certain - keep;
        Ok(())
    }

    /// Up to where nothing that comes can change what was found.
    fn certain(&self, hits: &Hits, guardrails: &[Arc<Guardrail>]) -> usize {
        let len = self.text.len();
        let least = len.saturating_sub(MOST_HELD).max(self.context);
        let scanners = guardrails.iter().filter_map(|guardrail| guardrail.scanner());
        let open = scanners.map(|scanner| scanner.open(&self.text, self.context)).min();
        let mut certain = open.unwrap_or(len);
        // What ends at the end may go on; what reaches over the border is decided as a whole.
        loop {
            let over = hits.0.iter().map(|(_, found)| found).filter(|found| {
                found.start < certain && (found.end > certain || (found.end == certain && certain == len))
            });
            match over.map(|found| found.start).min() {
                Some(start) => certain = start,
                None => break,
            }
        }
        match certain < least {
            // It has been waited for long enough: what is there is decided as it is.
            true => len,
            false => certain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{guardrail, guardrails};
    use super::*;

    fn through(yaml: &[&str], pieces: &[&str]) -> Result<(String, Vec<String>), usize> {
        let own = guardrails(yaml);
        let (mut window, mut whole, mut steps) = (Window::default(), String::new(), Vec::new());
        for (i, piece) in pieces.iter().chain([&""]).enumerate() {
            let mut out = String::new();
            window.push(piece, i == pieces.len(), &own, &mut out, &mut |_, _| {})?;
            whole += &out;
            steps.push(out);
        }
        Ok((whole, steps))
    }

    const PII: &str = "{ pii: { types: [email, card] }, action: mask }";
    const WORDS: &str = "{ keywords: { words: [blue bird, 'naïve'] }, action: mask, replace_with: '[x]' }";

    #[test]
    fn wherever_a_text_is_cut_the_same_is_masked() {
        let text =
            "Ask jane.doe@example.com, or pay 4111 1111 1111 1111 for a Blue  Bird that is na\u{ef}ve. Bluebell!";
        let want = "Ask [email], or pay [card] for a [x] that is [x]. Bluebell!";
        let bounds: Vec<usize> = (0..=text.len()).filter(|at| text.is_char_boundary(*at)).collect();
        for cut in &bounds {
            let (whole, _) = through(&[PII, WORDS], &[&text[..*cut], &text[*cut..]]).unwrap();
            assert_eq!(whole, want, "cut at {cut}");
        }
        let single: Vec<&str> = bounds.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        assert_eq!(through(&[PII, WORDS], &single).unwrap().0, want);
    }

    #[test]
    fn what_cannot_become_anything_is_not_held_back() {
        let (_, steps) = through(&[WORDS], &["Hello wor", "ld, blue", " sky"]).unwrap();
        assert_eq!(steps, ["Hello wor", "ld, ", "blue sky", ""]);
        let (_, steps) = through(&[PII], &["Hello, ", "world. ", "Bye."]).unwrap();
        assert_eq!(steps.concat(), "Hello, world. Bye.");
        assert_eq!(&steps[..2], ["Hello, ", "world. "]);
    }

    #[test]
    fn nothing_of_what_is_blocked_gets_out() {
        let block = "{ patterns: { regex: ['secret-[0-9]+'] } }";
        let own = [guardrail(block)];
        let (mut window, mut out) = (Window::default(), String::new());
        for piece in ["the sec", "ret", "-", "12"] {
            window.push(piece, false, &own, &mut out, &mut |_, _| {}).unwrap();
        }
        assert_eq!(out, "the ");
        assert_eq!(window.push(" is", false, &own, &mut out, &mut |_, _| {}), Err(0));
        assert_eq!(out, "the ");
    }

    #[test]
    fn what_is_held_back_is_bounded() {
        let own = [guardrail(PII)];
        let (mut window, mut out) = (Window::default(), String::new());
        let mut pushed = 0;
        for _ in 0..100 {
            window.push(&"x".repeat(1000), false, &own, &mut out, &mut |_, _| {}).unwrap();
            pushed += 1000;
            assert!(pushed - out.len() <= MOST_HELD + 1000, "{pushed} {}", out.len());
        }
    }
}
