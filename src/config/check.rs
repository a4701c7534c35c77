//! Compares a document with the schema and reports everything that does not fit, each with its place and the nearest
//! valid word.
//!
//! Not a general JSON Schema validator: it knows the keywords that our structs produce (a test holds them to that), and
//! it reads a choice the way a person does: by the key or word that was written, not by trying every branch.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use regex::Regex;
use serde_json::{Map, Value};

use super::document::{Document, MAX_PROBLEMS, ROOT, Sources, Spot, join};
use super::reference::{SECRET_FORMAT, SecretRef};
use super::schema::ConfigSchema;
use super::{Problem, Problems, nearest, shown, units};

/// Reports every way in which the document does not fit the schema.
pub fn check(document: &Document, schema: &ConfigSchema, problems: &mut Problems) {
    let mut walk =
        Walk { schema, sources: &document.sources, found: std::mem::take(&mut problems.0), patterns: HashMap::new() };
    let root = Place { parent: None, step: Step::Root, spot: document.sources.root() };
    walk.value(&root, &document.value, schema.as_value());
    problems.0 = walk.found;
}

struct Walk<'a> {
    schema: &'a ConfigSchema,
    sources: &'a Sources,
    found: Vec<Problem>,
    patterns: HashMap<&'a str, Option<Regex>>,
}

/// The place in the document that is being looked at; its path is put together only for a problem.
struct Place<'p> {
    parent: Option<&'p Place<'p>>,
    step: Step<'p>,
    spot: &'p Spot,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Root,
    Key(&'p str),
    Item(usize),
}

impl<'p> Place<'p> {
    fn key(&'p self, key: &'p str) -> Place<'p> {
        Place { parent: Some(self), step: Step::Key(key), spot: self.spot.key(key) }
    }

    fn item(&'p self, index: usize) -> Place<'p> {
        Place { parent: Some(self), step: Step::Item(index), spot: self.spot.item(index) }
    }

    fn path(&self) -> String {
        let parent = self.parent.map(Place::path).unwrap_or_default();
        match self.step {
            Step::Root => parent,
            Step::Key(key) => join(&parent, &shown(key)),
            Step::Item(index) => format!("{parent}[{index}]"),
        }
    }
}

impl<'a> Walk<'a> {
    fn value(&mut self, place: &Place<'_>, value: &Value, schema: &'a Value) {
        if place.spot.refused || self.found.len() >= MAX_PROBLEMS {
            return;
        }
        let Value::Object(schema) = schema else {
            if schema == &Value::Bool(false) {
                self.add(place, "nothing may be written here");
            }
            return;
        };
        if let Some(target) = self.target(schema) {
            self.value(place, value, target);
        }
        for part in list(schema, "allOf") {
            self.value(place, value, part);
        }
        for keyword in ["anyOf", "oneOf"] {
            let branches = list(schema, keyword);
            if !branches.is_empty() {
                self.choice(place, value, branches);
            }
        }
        if !types(schema).is_empty() && !types(schema).iter().any(|name| is_type(value, name)) {
            match self.missing_unit(place, value, schema) {
                Some(message) => self.add(place, message),
                None => self.wrong_type(place, value, &types(schema)),
            }
            return;
        }
        self.listed(place, value, schema);
        match value {
            Value::String(text) => self.text(place, text, schema),
            Value::Number(_) => self.number(place, value, schema),
            Value::Array(items) => self.list(place, items, schema),
            Value::Object(entries) if is_one_of(schema) => self.one_of(place, entries, schema),
            Value::Object(entries) => self.map(place, entries, schema),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn target(&self, schema: &Map<String, Value>) -> Option<&'a Value> {
        self.schema.definition(schema.get("$ref")?.as_str()?)
    }

    /// A value with several possible shapes: the words and the one-key maps of an enum, or alternatives of other types.
    fn choice(&mut self, place: &Place<'_>, value: &Value, branches: &'a [Value]) {
        let mut choice = Choice::default();
        self.sort_branches(branches, &mut choice, 0);
        match value {
            Value::String(text) if choice.words.contains(&text.as_str()) => return,
            Value::Object(entries) if !choice.tagged.is_empty() => return self.tagged(place, entries, &choice),
            _ => {}
        }
        let mut fitting: Vec<&Value> =
            choice.others.iter().copied().filter(|branch| self.accepts(branch, value)).collect();
        if let (Value::Object(entries), 2..) = (value, fitting.len()) {
            fitting.sort_by_key(|branch| std::cmp::Reverse(likeness(entries, branch)));
            fitting.truncate(1);
        }
        match (fitting.as_slice(), value) {
            ([], Value::String(text)) if !choice.is_plain() => self.not_a_choice(place, text, &choice),
            ([], _) if choice.is_plain() => {
                let names: Vec<&str> = choice.others.iter().flat_map(|branch| self.accepted_types(branch)).collect();
                self.wrong_type(place, value, &names);
            }
            ([], _) => {
                let message = format!("must be {}, not {}", choice.describe(), self.describe(place, value));
                self.add(place, message);
            }
            ([only], _) => self.value(place, value, only),
            (several, _) => self.any(place, value, several),
        }
    }

    /// Accepts what one of the branches accepts; otherwise says what the first holds against it.
    fn any(&mut self, place: &Place<'_>, value: &Value, branches: &[&'a Value]) {
        let before = self.found.len();
        let mut complaints = None;
        for branch in branches {
            self.value(place, value, branch);
            if self.found.len() == before {
                return;
            }
            let found = self.found.split_off(before);
            complaints.get_or_insert(found);
        }
        self.found.extend(complaints.into_iter().flatten());
    }

    /// Sorts the branches of a choice into words, one-key maps and the rest; nested choices are one choice to a reader.
    fn sort_branches(&self, branches: &'a [Value], choice: &mut Choice<'a>, depth: usize) {
        for branch in branches {
            let schema = self.resolve(branch);
            let Value::Object(object) = schema else { continue };
            if let Some(word) = object.get("const").and_then(Value::as_str) {
                choice.words.push(word);
            } else if let Some(words) = object.get("enum").and_then(Value::as_array) {
                choice.words.extend(words.iter().filter_map(Value::as_str));
            } else if let Some(tag) = tag(object) {
                choice.tagged.push(tag);
            } else if let (Some(Value::Array(nested)), true) =
                (object.get("anyOf").or_else(|| object.get("oneOf")), depth < 8)
            {
                self.sort_branches(nested, choice, depth + 1);
            } else {
                choice.others.push(schema);
            }
        }
    }

    /// Follows `$ref` where nothing else stands beside it that would matter.
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        for _ in 0..8 {
            match schema.as_object().and_then(|object| self.target(object)) {
                Some(target) => schema = target,
                None => break,
            }
        }
        schema
    }

    fn tagged(&mut self, place: &Place<'_>, entries: &Map<String, Value>, choice: &Choice<'a>) {
        let mut known = Vec::new();
        for (key, value) in entries {
            let place = place.key(key);
            match choice.tagged.iter().find(|(tag, _)| tag == key) {
                Some((tag, schema)) => {
                    known.push(*tag);
                    self.value(&place, value, schema);
                }
                None if choice.words.contains(&key.as_str()) => {
                    self.add(&place, format!("takes no settings; write just `{key}`"));
                }
                None => {
                    let names = choice.names();
                    let message = format!("`{}` is not {}", shown(key), one_of(&names));
                    self.suggest(&place, message, nearest(key, names));
                }
            }
        }
        match known.as_slice() {
            [] if entries.is_empty() => self.add(place, format!("must be {}", choice.describe())),
            [] | [_] => {}
            several => self.add(place, format!("only one of {} may stand here", quoted(several))),
        }
    }

    /// A map that names exactly one of its keys, as a filter does.
    fn one_of(&mut self, place: &Place<'_>, entries: &Map<String, Value>, schema: &'a Map<String, Value>) {
        let Some(Value::Object(properties)) = schema.get("properties") else { return };
        let tagged = properties.iter().map(|(name, schema)| (name.as_str(), schema)).collect();
        self.tagged(place, entries, &Choice { tagged, ..Choice::default() });
    }

    fn not_a_choice(&mut self, place: &Place<'_>, word: &str, choice: &Choice<'_>) {
        let message = if choice.tagged.iter().any(|(tag, _)| *tag == word) {
            format!("`{word}` needs its settings: write `{{ {word}: … }}`")
        } else if place.spot.hidden {
            format!("the value from the environment is not {}", choice.describe())
        } else {
            format!("`{}` is not {}", shown(word), choice.describe())
        };
        let suggestion = nearest(word, choice.names()).filter(|near| near != word);
        self.suggest(place, message, suggestion);
    }

    fn accepts(&self, schema: &'a Value, value: &Value) -> bool {
        let types = self.accepted_types(schema);
        types.is_empty() || types.iter().any(|name| is_type(value, name))
    }

    fn accepted_types(&self, schema: &'a Value) -> Vec<&'a str> {
        self.resolve(schema).as_object().map(types).unwrap_or_default()
    }

    fn wrong_type(&mut self, place: &Place<'_>, value: &Value, types: &[&str]) {
        let wanted = types.iter().map(|name| type_name(name)).collect::<Vec<_>>().join(" or ");
        let given = self.describe(place, value);
        match value {
            Value::Null => self.add(place, format!("has no value: write {wanted}, or remove the key")),
            Value::Number(_) | Value::Bool(_) if types.contains(&"string") => {
                self.add(place, format!("must be text, not {given}: put it in quotes"));
            }
            Value::String(text) if types.contains(&"boolean") => {
                let suggestion = match text.to_ascii_lowercase().as_str() {
                    "yes" | "y" | "on" | "true" => Some("true".to_owned()),
                    "no" | "n" | "off" | "false" => Some("false".to_owned()),
                    _ => None,
                };
                self.suggest(place, format!("must be {wanted}, not {given}"), suggestion);
            }
            _ => self.add(place, format!("must be {wanted}, not {given}")),
        }
    }

    /// What is wrong with a bare number where a number with a unit belongs.
    fn missing_unit(&self, place: &Place<'_>, value: &Value, schema: &Map<String, Value>) -> Option<String> {
        let format = schema.get("format")?.as_str()?;
        let number = value.as_number().filter(|_| !place.spot.hidden)?;
        units::check_format(format, &number.to_string()).err()
    }

    /// Tests `const` and `enum`.
    fn listed(&mut self, place: &Place<'_>, value: &Value, schema: &'a Map<String, Value>) {
        let only = schema.get("const").map(std::slice::from_ref);
        let Some(values) = only.or_else(|| schema.get("enum")?.as_array().map(Vec::as_slice)) else { return };
        if values.contains(value) {
            return;
        }
        match value {
            Value::String(text) => {
                let words = values.iter().filter_map(Value::as_str).collect();
                self.not_a_choice(place, text, &Choice { words, ..Choice::default() });
            }
            _ => {
                let values: Vec<String> = values.iter().map(Value::to_string).collect();
                self.add(place, format!("must be one of {}", values.join(", ")));
            }
        }
    }

    fn text(&mut self, place: &Place<'_>, text: &str, schema: &'a Map<String, Value>) {
        let length = text.chars().count() as u64;
        if let Some(least) = bound(schema, "minLength").filter(|least| length < *least) {
            let message =
                if least == 1 { "is empty".to_owned() } else { format!("is shorter than {least} characters") };
            self.add(place, message);
        }
        if let Some(most) = bound(schema, "maxLength").filter(|most| length > *most) {
            self.add(place, format!("is longer than {most} characters"));
        }
        if let Some(Value::String(pattern)) = schema.get("pattern")
            && !self.matches(pattern, text)
        {
            let given = self.describe(place, &Value::String(text.to_owned()));
            self.add(place, format!("{given} does not match {pattern}"));
        }
        if let Some(Value::String(format)) = schema.get("format")
            && let Err(message) = check_format(format, text)
        {
            // The message may repeat the value.
            let hidden = place.spot.hidden && format != SECRET_FORMAT;
            self.add(
                place,
                if hidden { format!("the value from the environment is not a valid {format}") } else { message },
            );
        }
    }

    fn matches(&mut self, pattern: &'a str, text: &str) -> bool {
        let compiled = self.patterns.entry(pattern).or_insert_with(|| Regex::new(pattern).ok());
        compiled.as_ref().is_none_or(|regex| regex.is_match(text))
    }

    fn number(&mut self, place: &Place<'_>, value: &Value, schema: &Map<String, Value>) {
        let number = value.as_f64().unwrap_or_default();
        let limit = |keyword: &str| schema.get(keyword).and_then(Value::as_f64);
        let shown = |keyword: &str| schema.get(keyword).map(Value::to_string).unwrap_or_default();
        if limit("minimum").is_some_and(|least| number < least) {
            self.add(place, format!("must be at least {}", shown("minimum")));
        }
        if limit("maximum").is_some_and(|most| number > most) {
            self.add(place, format!("must be at most {}", shown("maximum")));
        }
        if limit("exclusiveMinimum").is_some_and(|least| number <= least) {
            self.add(place, format!("must be more than {}", shown("exclusiveMinimum")));
        }
        if limit("exclusiveMaximum").is_some_and(|most| number >= most) {
            self.add(place, format!("must be less than {}", shown("exclusiveMaximum")));
        }
    }

    fn list(&mut self, place: &Place<'_>, items: &[Value], schema: &'a Map<String, Value>) {
        self.count(place, items.len(), schema, "minItems", "maxItems");
        let fixed = list(schema, "prefixItems");
        for (index, item) in items.iter().enumerate() {
            if let Some(schema) = fixed.get(index).or_else(|| schema.get("items")) {
                self.value(&place.item(index), item, schema);
            }
        }
        if schema.get("uniqueItems") == Some(&Value::Bool(true)) {
            let mut seen: HashMap<String, usize> = HashMap::new();
            for (index, item) in items.iter().enumerate() {
                if let Some(first) = seen.insert(item.to_string(), index) {
                    self.add(&place.item(index), format!("is the same as item [{first}]"));
                }
            }
        }
    }

    fn map(&mut self, place: &Place<'_>, entries: &Map<String, Value>, schema: &'a Map<String, Value>) {
        self.count(place, entries.len(), schema, "minProperties", "maxProperties");
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object);
        for name in list(schema, "required").iter().filter_map(Value::as_str) {
            if !entries.contains_key(name) {
                self.add(&place.key(name), "is missing");
            }
        }
        for (key, value) in entries {
            let inner = place.key(key);
            if let Some(Value::Object(names)) = schema.get("propertyNames") {
                self.name(&inner, key, names);
            }
            let described = properties.and_then(|properties| properties.get(key));
            match described.or_else(|| self.patterned(key, schema)).or_else(|| schema.get("additionalProperties")) {
                Some(Value::Bool(false)) => self.unknown_key(&inner, key, properties.unwrap_or(&empty)),
                Some(schema) => self.value(&inner, value, schema),
                None => {}
            }
        }
    }

    fn patterned(&mut self, key: &str, schema: &'a Map<String, Value>) -> Option<&'a Value> {
        let patterns = schema.get("patternProperties")?.as_object()?;
        patterns.iter().find(|(pattern, _)| self.matches(pattern, key)).map(|(_, schema)| schema)
    }

    /// Tests a key that the user chose, such as the name of an upstream.
    fn name(&mut self, place: &Place<'_>, key: &str, schema: &'a Map<String, Value>) {
        if let Some(Value::String(pattern)) = schema.get("pattern")
            && !self.matches(pattern, key)
        {
            let allowed = schema.get("description").and_then(Value::as_str).unwrap_or(pattern);
            self.add(place, format!("`{}` is not a valid name: {allowed}", shown(key)));
        }
    }

    fn unknown_key(&mut self, place: &Place<'_>, key: &str, properties: &Map<String, Value>) {
        let suggestion = nearest(key, properties.keys().map(String::as_str));
        let message = match &suggestion {
            Some(_) => "unknown key".to_owned(),
            None if properties.is_empty() => "unknown key; nothing may be written here".to_owned(),
            None => {
                let mut known: Vec<&String> = properties.keys().collect();
                known.sort_unstable();
                format!("unknown key; known here: {}", quoted(&known))
            }
        };
        self.suggest(place, message, suggestion);
    }

    fn count(&mut self, place: &Place<'_>, count: usize, schema: &Map<String, Value>, least: &str, most: &str) {
        let count = count as u64;
        if let Some(least) = bound(schema, least).filter(|least| count < *least) {
            self.add(place, if count == 0 { "is empty".into() } else { format!("needs at least {least} entries") });
        }
        if let Some(most) = bound(schema, most).filter(|most| count > *most) {
            self.add(place, format!("has more than {most} entries"));
        }
    }

    fn describe(&self, place: &Place<'_>, value: &Value) -> String {
        if place.spot.hidden {
            return "the value from the environment".into();
        }
        match value {
            Value::Null => "nothing".into(),
            Value::Bool(_) | Value::Number(_) => format!("`{value}`"),
            Value::String(text) => format!("the text `{}`", shown(text)),
            Value::Array(_) => "a list".into(),
            Value::Object(_) => "a map".into(),
        }
    }

    fn add(&mut self, place: &Place<'_>, message: impl Into<String>) {
        self.suggest(place, message.into(), None);
    }

    fn suggest(&mut self, place: &Place<'_>, message: String, suggestion: Option<String>) {
        if self.found.len() >= MAX_PROBLEMS {
            return;
        }
        let path = if let Step::Root = place.step { ROOT.to_owned() } else { place.path() };
        self.found.push(Problem { path, message, suggestion, source: self.sources.place(place.spot) });
    }
}

/// What may stand at one place, sorted by how a reader recognises it.
#[derive(Default)]
struct Choice<'a> {
    /// Plain words.
    words: Vec<&'a str>,
    /// Maps with one key: the key, and the schema of its value.
    tagged: Vec<(&'a str, &'a Value)>,
    others: Vec<&'a Value>,
}

impl Choice<'_> {
    /// Only types to choose from, no words.
    fn is_plain(&self) -> bool {
        self.words.is_empty() && self.tagged.is_empty()
    }

    fn names(&self) -> Vec<&str> {
        self.words.iter().copied().chain(self.tagged.iter().map(|(tag, _)| *tag)).collect()
    }

    fn describe(&self) -> String {
        let mut parts = Vec::new();
        if !self.words.is_empty() {
            parts.push(one_of(&self.words));
        }
        match self.tagged.as_slice() {
            [] => {}
            [(tag, _)] => parts.push(format!("a map with the key `{tag}`")),
            several => {
                let tags: Vec<&str> = several.iter().map(|(tag, _)| *tag).collect();
                parts.push(format!("a map with {}", one_of(&tags)));
            }
        }
        parts.extend(self.others.iter().filter_map(|schema| schema.as_object()).flat_map(types).map(type_name));
        parts.join(", or ")
    }
}

/// The key and inner schema of an externally tagged variant: a closed map with one key, which is required.
fn tag(schema: &Map<String, Value>) -> Option<(&str, &Value)> {
    let properties = schema.get("properties")?.as_object()?;
    let (name, inner) = properties.iter().next()?;
    let required = schema.get("required")?.as_array()?;
    let closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
    (properties.len() == 1 && required.len() == 1 && closed).then_some((name, inner))
}

fn is_one_of(schema: &Map<String, Value>) -> bool {
    bound(schema, "minProperties") == Some(1) && bound(schema, "maxProperties") == Some(1)
}

/// How much a map looks like a branch: a matching constant (`type: x`) counts most, then shared keys.
fn likeness(entries: &Map<String, Value>, branch: &Value) -> usize {
    let Some(properties) = branch.get("properties").and_then(Value::as_object) else { return 0 };
    let score = |(key, value): (&String, &Value)| match properties.get(key) {
        Some(schema) if schema.get("const") == Some(value) => 1000,
        Some(_) => 1,
        None => 0,
    };
    entries.iter().map(score).sum()
}

fn list<'v>(schema: &'v Map<String, Value>, keyword: &str) -> &'v [Value] {
    schema.get(keyword).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn bound(schema: &Map<String, Value>, keyword: &str) -> Option<u64> {
    schema.get(keyword)?.as_u64()
}

fn types(schema: &Map<String, Value>) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn is_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    }
}

fn type_name(name: &str) -> String {
    match name {
        "null" => "nothing",
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "text",
        "array" => "a list",
        "object" => "a map",
        other => other,
    }
    .to_owned()
}

/// Tests a text against the formats of our units and references, and those of addresses.
fn check_format(format: &str, text: &str) -> Result<(), String> {
    let address = |ok: bool, kind: &str| if ok { Ok(()) } else { Err(format!("`{}` is not {kind}", shown(text))) };
    match format {
        SECRET_FORMAT => text.parse::<SecretRef>().map(drop).map_err(str::to_owned),
        "ip" => address(text.parse::<IpAddr>().is_ok(), "an IP address"),
        "ipv4" => address(text.parse::<Ipv4Addr>().is_ok(), "an IPv4 address"),
        "ipv6" => address(text.parse::<Ipv6Addr>().is_ok(), "an IPv6 address"),
        "socket-address" => {
            address(text.parse::<SocketAddr>().is_ok(), "an IP address and port, such as 127.0.0.1:9080")
        }
        unit => units::check_format(unit, text),
    }
}

fn one_of(words: &[&str]) -> String {
    if words.len() == 1 { quoted(words) } else { format!("one of {}", quoted(words)) }
}

/// `a`, `b` and so on; a long list is cut.
fn quoted<T: AsRef<str>>(words: &[T]) -> String {
    const MOST: usize = 24;
    let mut parts: Vec<Cow<str>> = words.iter().take(MOST).map(|word| format!("`{}`", word.as_ref()).into()).collect();
    if words.len() > MOST {
        parts.push("…".into());
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests;
