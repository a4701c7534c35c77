//! References out of the configuration: to the environment anywhere, to the environment or a file for secrets.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, Zeroizing};

use super::Problems;

/// Looks up an environment variable; a seam, so that tests need not change the real environment.
pub type Environment<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// The environment of this process.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A secret is a line or a short document, never a large file.
const MAX_SECRET: u64 = 1 << 20;

const NOT_A_REFERENCE: &str =
    "a secret is not written into the configuration; write where it is kept: `env:NAME` or `file:path`";

/// Where a secret is kept: `env:NAME`, or `file:path` with the path relative to the configuration's folder. A secret
/// written out is refused, and never repeated in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef {
    Env(String),
    File(PathBuf),
}

/// The value of a secret. It cannot be displayed, shows as `***` where it is debugged or encoded, and is wiped from
/// memory when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(value: String) -> Self {
        Secret(Zeroizing::new(value))
    }

    /// The value itself, for the one place that sends or compares it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl SecretRef {
    /// The file to read and to watch, if the secret is kept in one.
    pub fn file(&self, folder: &Path) -> Option<PathBuf> {
        match self {
            SecretRef::Env(_) => None,
            SecretRef::File(file) => Some(folder.join(file)),
        }
    }

    /// Fetches the secret; line ends after it are dropped. Missing, unreadable and empty secrets are problems.
    pub fn resolve(
        &self,
        folder: &Path,
        environment: &Environment,
        path: &str,
        problems: &mut Problems,
    ) -> Option<Secret> {
        let fetched = match self {
            SecretRef::Env(name) => {
                environment(name).ok_or_else(|| format!("the environment variable {name} is not set"))
            }
            SecretRef::File(file) => {
                let file = folder.join(file);
                read_secret(&file).map_err(|error| format!("cannot read the secret in {}: {error}", file.display()))
            }
        };
        match fetched {
            Ok(mut value) => {
                value.truncate(value.trim_end_matches(['\r', '\n']).len());
                if value.is_empty() {
                    problems.add(path, format!("the secret in {self} is empty"));
                    return None;
                }
                Some(Secret::new(value))
            }
            Err(message) => {
                problems.add(path, message);
                None
            }
        }
    }
}

fn read_secret(file: &Path) -> std::io::Result<String> {
    let mut value = String::new();
    let outcome = File::open(file)?.take(MAX_SECRET + 1).read_to_string(&mut value);
    if outcome.is_err() || value.len() as u64 > MAX_SECRET {
        value.zeroize();
    }
    match outcome? as u64 {
        length if length > MAX_SECRET => Err(std::io::Error::other("it is larger than 1 MiB")),
        _ => Ok(value),
    }
}

impl FromStr for SecretRef {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("env", name)) if is_variable_name(name) => Ok(SecretRef::Env(name.to_owned())),
            Some(("file", file)) if !file.is_empty() => Ok(SecretRef::File(file.into())),
            _ => Err(NOT_A_REFERENCE),
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretRef::Env(name) => write!(f, "env:{name}"),
            SecretRef::File(file) => write!(f, "file:{}", file.display()),
        }
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for SecretRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The schema format of [`SecretRef`], which `check` knows.
pub(super) const SECRET_FORMAT: &str = "headgate-secret";

impl JsonSchema for SecretRef {
    fn schema_name() -> Cow<'static, str> {
        "SecretRef".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": SECRET_FORMAT, "examples": ["env:NAME", "file:path"] })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// Puts the environment's values in the place of `${env:NAME}` and `${env:NAME:-default}`; `None` if there are none.
///
/// Only the `env:` prefix is looked at: `${request.id}` belongs to the request. `$${env:NAME}` stands for itself. It
/// happens after parsing, so a value can never add keys of its own.
pub(super) fn substitute(text: &str, environment: &Environment) -> Result<Option<String>, String> {
    if !mentions_environment(text) {
        return Ok(None);
    }
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(OPENING) {
        if let Some(before) = rest[..start].strip_suffix('$') {
            result.push_str(before);
            result.push_str(OPENING);
            rest = &rest[start + OPENING.len()..];
            continue;
        }
        result.push_str(&rest[..start]);
        let inner = &rest[start + OPENING.len()..];
        let end = inner.find('}').ok_or("`${env:` is not closed by `}`")?;
        result.push_str(&variable(&inner[..end], environment)?);
        rest = &inner[end + 1..];
    }
    result.push_str(rest);
    Ok(Some(result))
}

const OPENING: &str = "${env:";

pub(super) fn mentions_environment(text: &str) -> bool {
    text.contains(OPENING)
}

/// The value of `NAME` or `NAME:-default`; the default stands in for an empty variable too, as in a shell.
fn variable(written: &str, environment: &Environment) -> Result<String, String> {
    let (name, default) = match written.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (written, None),
    };
    if !is_variable_name(name) {
        return Err(format!("`{}` is not the name of an environment variable", super::shown(name)));
    }
    match (environment(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!(
            "the environment variable {name} is not set; set it, or give a default: `${{env:{name}:-default}}`"
        )),
    }
}

fn is_variable_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    name.len() <= 256
        && name.bytes().next().is_some_and(letter)
        && name.bytes().all(|byte| letter(byte) || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("8080".into()),
            "EMPTY" => Some(String::new()),
            "TOKEN" => Some("hunter2\n".into()),
            _ => None,
        }
    }

    #[test]
    fn only_the_environment_is_substituted() {
        for (written, expected) in [
            ("${env:PORT}", Some("8080")),
            ("0.0.0.0:${env:PORT}", Some("0.0.0.0:8080")),
            ("${env:HOST:-localhost}:${env:PORT}", Some("localhost:8080")),
            ("${env:EMPTY:-x}", Some("x")),
            ("${env:EMPTY}", Some("")),
            ("${env:NONE:-}", Some("")),
            ("$${env:PORT}", Some("${env:PORT}")),
            ("${request.id} $ ${", None),
            ("${request.id} ${env:PORT}", Some("${request.id} 8080")),
        ] {
            assert_eq!(substitute(written, &environment).unwrap().as_deref(), expected, "{written}");
        }
    }

    #[test]
    fn a_broken_reference_is_a_problem() {
        for wrong in ["${env:NONE}", "${env:PORT", "${env:}", "${env:A B}", "${env:$PORT}"] {
            assert!(substitute(wrong, &environment).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_never_prints() {
        let mut problems = Problems::default();
        let reference: SecretRef = "env:TOKEN".parse().unwrap();
        let secret = reference.resolve(Path::new("."), &environment, "token", &mut problems).unwrap();
        assert_eq!(secret.expose(), "hunter2", "the line end is no part of the secret");
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
        assert!(problems.is_empty());
    }

    #[test]
    fn a_secret_that_cannot_be_had_is_a_problem_with_its_path() {
        for reference in ["env:NONE", "env:EMPTY", "file:/nonexistent/secret", "file:/"] {
            let mut problems = Problems::default();
            let reference: SecretRef = reference.parse().unwrap();
            assert!(reference.resolve(Path::new("."), &environment, "here", &mut problems).is_none());
            assert_eq!(problems.0[0].path, "here", "{reference}");
        }
    }

    #[test]
    fn a_secret_written_out_is_refused_and_not_repeated() {
        let error = "hunter2".parse::<SecretRef>().unwrap_err();
        assert!(!error.contains("hunter2"));
        for wrong in ["", "env:", "file:", "env:A-B", "ENV:TOKEN"] {
            assert!(wrong.parse::<SecretRef>().is_err(), "{wrong}");
        }
    }
}
