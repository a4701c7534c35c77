//! Which names of models are allowed, with `*` for anything.

use crate::config::guardrails::ModelNames;

pub struct Names {
    allow: Box<[Box<str>]>,
    deny: Box<[Box<str>]>,
}

impl Names {
    pub fn new(written: &ModelNames) -> Result<Names, String> {
        if written.allow.is_empty() && written.deny.is_empty() {
            return Err("it names no model; write `allow` or `deny`".to_owned());
        }
        let all = |names: &[String]| names.iter().map(|name| name.as_str().into()).collect();
        Ok(Names { allow: all(&written.allow), deny: all(&written.deny) })
    }

    pub fn allow(&self, model: &str) -> bool {
        let any = |names: &[Box<str>]| names.iter().any(|name| matches(name, model));
        !any(&self.deny) && (self.allow.is_empty() || any(&self.allow))
    }
}

/// Whether a name is what a pattern says: in time that grows with both, whatever they are.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name, want) in [
            ("openai/gpt-5", "openai/gpt-5", true),
            ("openai/gpt-5", "openai/gpt-5-mini", false),
            ("openai/gpt-5*", "openai/gpt-5-mini", true),
            ("*-preview", "a-preview", true),
            ("*-preview", "a-preview-2", false),
            ("*gpt*mini*", "openai/gpt-5-mini", true),
            ("a*a", "a", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        }
        let names = ModelNames { allow: vec!["openai/*".into()], deny: vec!["*-pro".into()] };
        let names = Names::new(&names).unwrap();
        assert!(names.allow("openai/gpt-5") && !names.allow("openai/gpt-5-pro") && !names.allow("gemini/x"));
        assert!(Names::new(&ModelNames::default()).is_err());
    }
}
