//! Guardrails: what is looked for in calls and answers, and what is done about it.
//!
//! What can be told from a text alone is found here, in texts that are whole and in texts that come in pieces. What others
//! have to be asked is written and read here ([`remote`]); asking is the proxy's.

mod folded;
mod names;
mod patterns;
mod pii;
mod prompt_injection;
pub mod remote;
mod scanner;
pub mod stream;
pub mod texts;
mod topics;
mod whole;
mod window;
mod words;

use std::sync::Arc;

use serde_json::Value;

use self::names::Names;
use self::patterns::{Patterns, Written};
use self::remote::Remote;
use self::scanner::Scanner;
use self::texts::Place;
use self::topics::Topics;
pub use self::whole::{Checked, check, check_answers, check_model};
use self::words::Words;
use crate::config::Problems;
use crate::config::guardrails::{self as written, Action, Role, Side};
use crate::telemetry::exchange::Verdict;

/// One guardrail, compiled.
pub struct Guardrail {
    pub name: Arc<str>,
    pub action: Action,
    input: bool,
    output: bool,
    roles: Roles,
    tools: bool,
    replace_with: Option<Box<str>>,
    message: Option<Box<str>>,
    test: Test,
}

/// Whose texts are looked at.
#[derive(Debug, Clone, Copy)]
struct Roles {
    system: bool,
    user: bool,
    assistant: bool,
    tool: bool,
}

/// What is looked for.
enum Test {
    Scan(Scanner),
    Schema(Box<jsonschema::Validator>),
    Topics(Topics),
    Models(Names),
    Remote(Remote),
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Action::Block => "block",
            Action::Mask => "mask",
            Action::Log => "log",
        }
    }
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Side::Input => "input",
            Side::Output => "output",
        }
    }
}

impl Guardrail {
    /// Compiles a guardrail; what is wrong is added to `problems`. `token` is that of its webhook.
    pub fn compile(
        name: &str,
        written: &written::Guardrail,
        path: &str,
        problems: &mut Problems,
        token: Option<crate::config::Secret>,
    ) -> Option<Guardrail> {
        let before = problems.0.len();
        let mut tests = Vec::new();
        let mut add = |member: &'static str, test: Result<Test, (String, String)>| match test {
            Ok(test) => tests.push((member, test)),
            Err((place, message)) => {
                problems.add(format!("{path}.{member}{place}"), message);
            }
        };
        let at = |list: &'static str| move |(i, message): (usize, String)| (format!(".{list}[{i}]"), message);
        if let Some(patterns) = &written.patterns {
            let each = patterns.regex.iter().map(|expression| Written { expression, what: None, valid: pii::any });
            let compiled = Patterns::new(&each.collect::<Vec<_>>(), None);
            add("patterns", compiled.map(|found| Test::Scan(Scanner::Patterns(Box::new(found)))).map_err(at("regex")));
        }
        if let Some(keywords) = &written.keywords {
            let compiled = Words::new(keywords.words.iter().map(String::as_str), keywords.whole_words);
            add("keywords", compiled.map(|found| Test::Scan(Scanner::Words(found))).map_err(at("words")));
        }
        if let Some(kinds) = &written.pii {
            let compiled = pii::patterns(&kinds.types);
            add("pii", compiled.map(|found| Test::Scan(Scanner::Patterns(Box::new(found)))).map_err(at("types")));
        }
        if let Some(injection) = &written.prompt_injection {
            let compiled = prompt_injection::patterns(&injection.except);
            add(
                "prompt_injection",
                compiled.map(|found| Test::Scan(Scanner::Patterns(Box::new(found)))).map_err(at("except")),
            );
        }
        if let Some(answer) = &written.json_schema {
            let compiled = jsonschema::validator_for(&answer.schema);
            let compiled = compiled.map(|found| Test::Schema(Box::new(found)));
            add("json_schema", compiled.map_err(|error| (".schema".to_owned(), error.to_string())));
        }
        if let Some(topics) = &written.topics {
            add("topics", Topics::new(topics).map(Test::Topics));
        }
        if let Some(models) = &written.models {
            add("models", Names::new(models).map(Test::Models).map_err(|message| (String::new(), message)));
        }
        if let Some(moderation) = &written.moderation {
            add("moderation", Ok(Test::Remote(Remote::moderation(moderation))));
        }
        if let Some(webhook) = &written.webhook {
            add("webhook", Ok(Test::Remote(Remote::webhook(webhook, token))));
        }
        if tests.len() > 1 {
            let names: Vec<String> = tests.iter().map(|(name, _)| format!("`{name}`")).collect();
            let message = format!("a guardrail looks for one thing: write one for each of {}", names.join(", "));
            problems.add(path, message);
        } else if tests.is_empty() && problems.0.len() == before {
            problems.add(path, "it says nothing to look for, such as `pii: {}` or `keywords: { words: [...] }`");
        }
        let (member, test) = tests.pop()?;
        let (input, output) = sides(written, &test, member, path, problems);
        if written.action == Action::Mask && !test.can_mask() {
            problems.add(format!("{path}.action"), format!("`{member}` finds nothing that could be masked"));
        }
        (problems.0.len() == before).then(|| Guardrail {
            name: name.into(),
            action: written.action,
            input,
            output,
            roles: Roles::of(&written.roles, matches!(member, "prompt_injection" | "topics")),
            tools: written.tools,
            replace_with: written.replace_with.as_deref().map(Into::into),
            message: written.message.as_deref().map(Into::into),
            test,
        })
    }

    pub fn is_on(&self, side: Side) -> bool {
        match side {
            Side::Input => self.input,
            Side::Output => self.output,
        }
    }

    /// What finds it in a text alone.
    fn scanner(&self) -> Option<&Scanner> {
        match &self.test {
            Test::Scan(scanner) => Some(scanner),
            _ => None,
        }
    }

    /// Who has to be asked.
    pub fn remote(&self) -> Option<&Remote> {
        match &self.test {
            Test::Remote(remote) => Some(remote),
            _ => None,
        }
    }

    /// Whether it says something of whole answers only. One that only logs keeps nobody waiting.
    fn wants_whole(&self) -> bool {
        matches!(self.test, Test::Schema(_) | Test::Remote(_))
    }

    /// Whether it looks at a text.
    pub fn looks_at(&self, side: Side, place: Place) -> bool {
        let role = match place.role {
            _ if side == Side::Output => true,
            Role::System => self.roles.system,
            Role::User => self.roles.user,
            Role::Assistant => self.roles.assistant,
            Role::Tool => self.roles.tool,
        };
        role && (self.tools || !place.tool)
    }

    /// Whether a call of this model is against it.
    pub fn refuses_model(&self, model: &str) -> bool {
        matches!(&self.test, Test::Models(names) if !names.allow(model))
    }

    fn is_about_topics(&self) -> bool {
        matches!(self.test, Test::Topics(_))
    }

    fn refuses_topic(&self, newest: &str, all: &str) -> bool {
        matches!(&self.test, Test::Topics(topics) if !topics.allow(newest, all))
    }

    fn refuses_answer(&self, text: &str) -> bool {
        let Test::Schema(schema) = &self.test else { return false };
        serde_json::from_str::<Value>(text).map_or(true, |document| !schema.is_valid(&document))
    }

    fn write_placeholder(&self, what: Option<&'static str>, out: &mut String) {
        match &self.replace_with {
            Some(text) => out.push_str(text),
            None => {
                out.push('[');
                out.push_str(what.unwrap_or(&self.name));
                out.push(']');
            }
        }
    }

    /// What a caller is told whose call is refused.
    pub fn refusal(&self) -> String {
        match &self.message {
            Some(message) => message.to_string(),
            None => format!("The request was refused by the guardrail `{}`.", self.name),
        }
    }

    /// What stands in place of an answer that is withheld, if anything.
    pub fn replacement(&self) -> Option<&str> {
        self.message.as_deref()
    }
}

/// Adds a verdict to those that there are.
pub fn note(verdicts: &mut Vec<Verdict>, guardrail: &Guardrail, on: Side, action: &'static str, count: u32) {
    let known = verdicts.iter_mut().find(|known| {
        Arc::ptr_eq(&known.guardrail, &guardrail.name) && known.on == on.name() && known.action == action
    });
    match known {
        Some(known) => known.count = known.count.saturating_add(count),
        None => verdicts.push(Verdict { guardrail: guardrail.name.clone(), on: on.name(), action, count }),
    }
}

impl Test {
    fn can_mask(&self) -> bool {
        match self {
            Test::Scan(_) => true,
            // A webhook says itself what it masks.
            Test::Remote(_) | Test::Schema(_) | Test::Topics(_) | Test::Models(_) => false,
        }
    }
}

impl Roles {
    fn of(written: &[Role], of_strangers: bool) -> Roles {
        let has = |role| written.contains(&role);
        match written {
            [] => Roles { system: !of_strangers, user: true, assistant: !of_strangers, tool: true },
            _ => Roles {
                system: has(Role::System),
                user: has(Role::User),
                assistant: has(Role::Assistant),
                tool: has(Role::Tool),
            },
        }
    }
}

/// Whether calls and answers are looked at.
fn sides(written: &written::Guardrail, test: &Test, member: &str, path: &str, problems: &mut Problems) -> (bool, bool) {
    let can = match test {
        Test::Scan(_) | Test::Remote(_) => (true, true),
        Test::Schema(_) => (false, true),
        Test::Topics(_) | Test::Models(_) => (true, false),
    };
    if written.on.is_empty() {
        return if member == "prompt_injection" { (true, false) } else { can };
    }
    let (input, output) = (written.on.contains(&Side::Input), written.on.contains(&Side::Output));
    if (input && !can.0) || (output && !can.1) {
        let only = if can.0 { "calls: `on: [input]`" } else { "answers: `on: [output]`" };
        problems.add(format!("{path}.on"), format!("`{member}` looks only at {only}"));
    }
    (input, output)
}

#[cfg(test)]
pub(super) mod tests;
