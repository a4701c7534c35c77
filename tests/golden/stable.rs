//! Makes what is made up the same on every run: ids and the present time.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use regex::{Captures, Regex};

/// A few letters, a dash, and sixteen or more random letters and digits, as `formats::made_up` makes them; a signature in an
/// id stays as it is.
static ID: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#""([a-z]{1,12}[_-])([A-Za-z0-9]{16,})((?:__signature__[A-Za-z0-9_-]*)?)"#).unwrap());
static SECONDS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b\d{10}\b").unwrap());

/// Numbers the ids of `output` that are not from `input`, and sets the clock to 1700000000.
pub fn stable(output: &str, input: &str) -> String {
    let mut seen: Vec<String> = Vec::new();
    let numbered = ID.replace_all(output, |id: &Captures<'_>| {
        if input.contains(&id[2]) {
            return id[0].to_owned();
        }
        let place = seen.iter().position(|known| *known == id[2]).unwrap_or_else(|| {
            seen.push(id[2].to_owned());
            seen.len() - 1
        });
        format!("\"{}made-up-{}", &id[1], place + 1)
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let steady = SECONDS.replace_all(&numbered, |seconds: &Captures<'_>| match seconds[0].parse::<u64>() {
        Ok(seconds) if seconds.abs_diff(now) < 3600 => "1700000000".to_owned(),
        _ => seconds[0].to_owned(),
    });
    steady.into_owned()
}

#[test]
fn made_up_ids_are_numbered_and_given_ones_stay() {
    let id = headgate::ai::formats::made_up("call_");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let output =
        format!(r#"{{"id":"{id}","again":"{id}","given":"chatcmpl-B9MBs8CjcvOU2jLn","created":{now},"n":1741569952}}"#);
    assert_eq!(
        stable(&output, r#"{"id":"chatcmpl-B9MBs8CjcvOU2jLn"}"#),
        r#"{"id":"call_made-up-1","again":"call_made-up-1","given":"chatcmpl-B9MBs8CjcvOU2jLn","created":1700000000,"n":1741569952}"#
    );
}
