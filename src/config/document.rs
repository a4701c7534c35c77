//! Turns YAML text into one tree that remembers where everything was written.
//!
//! A configuration is hostile until proven otherwise: what YAML offers beyond plain maps, lists and scalars (aliases,
//! tags, merge keys, several documents) is refused, and size, depth and number of values are bounded.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Number, Value};

use super::reference::{self, Environment};
use super::{Problem, Problems, shown};

/// Bounds on what is read, far above any real configuration: 50,000 routes fit, and 200,000 consumers.
const MAX_BYTES: u64 = 64 << 20;
const MAX_DEPTH: usize = 64;
const MAX_VALUES: usize = 4_000_000;
const MAX_FILES: usize = 1024;

/// Reports more than this help nobody.
pub(super) const MAX_PROBLEMS: usize = 200;

/// A configuration as it was written, before it is known to make sense.
///
/// The tree is JSON's, not `serde_yaml`'s: that one decodes an enum only from a YAML tag (`!http`), never from the map
/// with one key (`http: {}`) that people write.
#[derive(Debug)]
pub struct Document {
    pub value: Value,
    pub sources: Sources,
}

/// Knows the file and line of every value of a [`Document`].
#[derive(Debug, Clone, Default)]
pub struct Sources {
    files: Vec<String>,
    root: Spot,
}

/// Where one value was written; shaped like the tree of values.
#[derive(Debug, Clone, Default)]
pub(super) struct Spot {
    file: usize,
    line: usize,
    /// The value came from the environment and must not be repeated in a message.
    pub(super) hidden: bool,
    /// The value was refused by the reader; nothing more can be said about it.
    pub(super) refused: bool,
    inside: Inside,
}

#[derive(Debug, Clone, Default)]
enum Inside {
    #[default]
    Nothing,
    List(Vec<Spot>),
    Map(BTreeMap<String, Spot>),
}

impl Sources {
    /// File and line of the value at `path`, or of the nearest value around it that was written.
    pub fn locate(&self, path: &str) -> Option<(String, usize)> {
        self.place(self.nearest_spot(path))
    }

    /// Whether the value at `path` came from the environment, so that no message may repeat it.
    pub fn is_hidden(&self, path: &str) -> bool {
        self.nearest_spot(path).hidden
    }

    fn nearest_spot(&self, path: &str) -> &Spot {
        let mut spot = &self.root;
        let mut rest = path;
        loop {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            match spot.step(rest) {
                Some((inner, after)) => (spot, rest) = (inner, after),
                None => return spot,
            }
        }
    }

    /// Fills in file and line where a problem has none yet.
    pub fn place_all(&self, problems: &mut Problems) {
        for problem in problems.0.iter_mut().filter(|problem| problem.source.is_none()) {
            problem.source = self.locate(&problem.path);
        }
    }

    pub(super) fn root(&self) -> &Spot {
        &self.root
    }

    pub(super) fn place(&self, spot: &Spot) -> Option<(String, usize)> {
        self.files.get(spot.file).map(|file| (file.clone(), spot.line))
    }
}

impl Spot {
    pub(super) fn key(&self, key: &str) -> &Spot {
        match &self.inside {
            Inside::Map(map) => map.get(key).unwrap_or(self),
            _ => self,
        }
    }

    pub(super) fn item(&self, index: usize) -> &Spot {
        match &self.inside {
            Inside::List(list) => list.get(index).unwrap_or(self),
            _ => self,
        }
    }

    /// Follows the first step of a path. A key may hold dots itself, so the longest key that fits is taken.
    fn step<'p>(&self, path: &'p str) -> Option<(&Spot, &'p str)> {
        match &self.inside {
            Inside::Nothing => None,
            Inside::List(list) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                Some((list.get(index.parse::<usize>().ok()?)?, rest))
            }
            Inside::Map(map) => map
                .iter()
                .filter_map(|(key, spot)| {
                    let rest = path.strip_prefix(key.as_str())?;
                    (!key.is_empty() && (rest.is_empty() || rest.starts_with(['.', '[']))).then_some((spot, rest))
                })
                .min_by_key(|(_, rest)| rest.len()),
        }
    }
}

/// Reads a file, or every `*.yaml` and `*.yml` file of a directory in the order of their names, into one document.
///
/// Over the files of a directory, maps are merged by name down to the named resources, and lists at the top are joined.
/// The same resource in two files is a problem. Hidden files are skipped. `None` means that the text could not be read
/// as a tree at all; a document may be returned with problems beside it.
pub fn read(path: &Path, environment: &Environment, problems: &mut Problems) -> Option<Document> {
    let paths = match files_of(path) {
        Ok(paths) => paths,
        Err(error) => {
            unreadable(path, &error, problems);
            return None;
        }
    };
    if paths.is_empty() {
        unreadable(path, &"the folder holds no *.yaml or *.yml file", problems);
        return None;
    }
    if paths.len() > MAX_FILES {
        unreadable(path, &format!("the folder holds more than {MAX_FILES} files"), problems);
        return None;
    }

    let mut texts = Vec::with_capacity(paths.len());
    let mut budget = MAX_BYTES;
    for path in &paths {
        match read_text(path, budget) {
            Ok(text) => {
                budget -= text.len() as u64;
                texts.push((path.display().to_string(), text));
            }
            Err(error) => unreadable(path, &error, problems),
        }
    }
    if texts.len() < paths.len() {
        return None;
    }
    parse(texts, environment, problems)
}

/// Reads one text, called `name` in problems.
pub fn read_str(name: &str, text: &str, environment: &Environment, problems: &mut Problems) -> Option<Document> {
    if text.len() as u64 > MAX_BYTES {
        unreadable(Path::new(name), &too_large(), problems);
        return None;
    }
    parse(vec![(name.to_owned(), text.as_bytes().to_vec())], environment, problems)
}

fn parse(texts: Vec<(String, Vec<u8>)>, environment: &Environment, problems: &mut Problems) -> Option<Document> {
    let mut files = Vec::with_capacity(texts.len());
    let mut whole: Option<Node> = None;
    let mut complete = true;
    let mut values = 0;
    for (file, (name, bytes)) in texts.into_iter().enumerate() {
        files.push(name);
        let mut reader = Reader { file, files: &files, environment, problems, stack: Vec::new(), root: None, values };
        let parsed = reader.read(&bytes);
        values = reader.values;
        match (parsed, &mut whole) {
            (Err(Stopped), _) => complete = false,
            (Ok(node), None) => whole = Some(node),
            (Ok(node), Some(whole)) => merge(whole, node, "", &files, problems),
        }
    }
    let (value, root) = whole.filter(|_| complete)?.split();
    Some(Document { value, sources: Sources { files, root } })
}

/// The files that make up the configuration at `path`.
pub fn files_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let hidden = file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && !hidden && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn read_text(path: &Path, budget: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(budget + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > budget {
        return Err(io::Error::other(too_large()));
    }
    Ok(bytes)
}

fn too_large() -> String {
    format!("the configuration is larger than {} MiB", MAX_BYTES >> 20)
}

fn unreadable(path: &Path, reason: &dyn std::fmt::Display, problems: &mut Problems) {
    let message = format!("cannot read the configuration: {reason}");
    problems.0.push(Problem {
        path: ROOT.into(),
        message,
        suggestion: None,
        source: Some((path.display().to_string(), 0)),
    });
}

/// What a problem with the document as a whole calls its place.
pub(super) const ROOT: &str = "(document)";

/// A value with its place, while files are still being merged.
struct Node {
    file: usize,
    line: usize,
    hidden: bool,
    refused: bool,
    kind: Kind,
}

enum Kind {
    Scalar(Value),
    List(Vec<Node>),
    Map(BTreeMap<String, Node>),
}

impl Node {
    fn new(file: usize, line: usize, kind: Kind) -> Self {
        Node { file, line, hidden: false, refused: false, kind }
    }

    /// Takes the values and their places apart.
    fn split(self) -> (Value, Spot) {
        let (value, inside) = match self.kind {
            Kind::Scalar(value) => (value, Inside::Nothing),
            Kind::List(nodes) => {
                let (values, spots) = nodes.into_iter().map(Node::split).unzip();
                (Value::Array(values), Inside::List(spots))
            }
            Kind::Map(nodes) => {
                let mut values = serde_json::Map::new();
                let mut spots = BTreeMap::new();
                for (key, node) in nodes {
                    let (value, spot) = node.split();
                    values.insert(key.clone(), value);
                    spots.insert(key, spot);
                }
                (Value::Object(values), Inside::Map(spots))
            }
        };
        (value, Spot { file: self.file, line: self.line, hidden: self.hidden, refused: self.refused, inside })
    }
}

/// Adds what a further file says. `path` is empty at the top, where maps and lists are joined; one level down, a name
/// that exists already is a problem.
fn merge(into: &mut Node, from: Node, path: &str, files: &[String], problems: &mut Problems) {
    let top = path.is_empty();
    match (&mut into.kind, from.kind) {
        (Kind::Map(map), Kind::Map(more)) => {
            for (key, node) in more {
                let path = join(path, &key);
                match map.get_mut(&key) {
                    None => drop(map.insert(key, node)),
                    Some(existing) if top => merge(existing, node, &path, files, problems),
                    Some(existing) => defined_twice(&path, existing, &node, files, problems),
                }
            }
        }
        (Kind::List(list), Kind::List(more)) => list.extend(more),
        (_, kind) => defined_twice(path, into, &Node { kind, ..from }, files, problems),
    }
}

fn defined_twice(path: &str, first: &Node, second: &Node, files: &[String], problems: &mut Problems) {
    problems.0.push(Problem {
        path: path.to_owned(),
        message: format!("is defined twice; the other definition is at {}:{}", files[first.file], first.line),
        suggestion: None,
        source: Some((files[second.file].clone(), second.line)),
    });
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Reading this file any further makes no sense; the problem is reported.
struct Stopped;

/// Builds the tree of one file from the parser's events.
struct Reader<'a> {
    file: usize,
    files: &'a [String],
    environment: &'a Environment<'a>,
    problems: &'a mut Problems,
    /// The maps and lists around the current event, outermost first.
    stack: Vec<Frame>,
    root: Option<Node>,
    /// How many values were read so far, over all files.
    values: usize,
}

/// A map or list that is not closed yet.
struct Frame {
    line: usize,
    kind: FrameKind,
}

enum FrameKind {
    List(Vec<Node>),
    Map { entries: BTreeMap<String, Node>, lines: HashMap<String, usize>, key: Option<Key> },
}

/// A key whose value is yet to come.
struct Key {
    name: String,
    line: usize,
    /// The value is read, for its problems, and dropped.
    unwanted: bool,
}

impl Reader<'_> {
    /// The map that the text holds; an empty text is an empty map.
    fn read(&mut self, bytes: &[u8]) -> Result<Node, Stopped> {
        let text = self.decode(bytes)?;
        let mut documents = 0;
        for event in Parser::new_from_str(text) {
            let (event, span) = match event {
                Ok(event) => event,
                Err(error) => return Err(self.stop(error.marker().line(), error.info())),
            };
            if self.problems.0.len() >= MAX_PROBLEMS {
                return Err(Stopped);
            }
            if matches!(event, Event::DocumentStart(_)) {
                documents += 1;
                if documents > 1 {
                    return Err(self.stop(span.start.line(), "only one YAML document per file is accepted; split it"));
                }
            }
            self.take(event, span)?;
        }
        if !self.stack.is_empty() {
            return Err(self.stop(0, "the document ends in the middle of a value"));
        }
        match self.root.take() {
            None => Ok(Node::new(self.file, 1, Kind::Map(BTreeMap::new()))),
            Some(Node { kind: Kind::Scalar(Value::Null), refused: false, .. }) => {
                Ok(Node::new(self.file, 1, Kind::Map(BTreeMap::new())))
            }
            Some(node) if matches!(node.kind, Kind::Map(_)) => Ok(node),
            Some(node) => {
                Err(self.stop(node.line, "a configuration is a map, with keys such as `listeners` and `upstreams`"))
            }
        }
    }

    /// Refuses what is not text, and the characters that editors hide: the parser would take a NUL for the end.
    fn decode<'t>(&mut self, bytes: &'t [u8]) -> Result<&'t str, Stopped> {
        let line_at = |offset: usize| bytes[..offset].iter().filter(|byte| **byte == b'\n').count() + 1;
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => return Err(self.stop(line_at(error.valid_up_to()), "the file is not UTF-8 text")),
        };
        let control = |byte: &u8| (*byte < 0x20 && !b"\t\n\r".contains(byte)) || *byte == 0x7f;
        if let Some(offset) = bytes.iter().position(control) {
            return Err(self.stop(line_at(offset), &format!("control character 0x{:02x} in the text", bytes[offset])));
        }
        Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Stopped> {
        let line = span.start.line();
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if self.wants_key() {
                    return self.start_entry(&text, style, line);
                }
                let special = self.refuse_specials(anchor, tag.is_some(), line);
                let mut node = self.scalar(&text, style, line);
                node.refused |= special;
                self.put(node)
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_specials(anchor, tag.is_some(), line);
                self.open(line, FrameKind::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_specials(anchor, tag.is_some(), line);
                self.open(line, FrameKind::Map { entries: BTreeMap::new(), lines: HashMap::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(_) if self.wants_key() => Err(self.stop(line, "a key must be plain text")),
            Event::Alias(_) => {
                self.add(line, "aliases (`*name`) are not accepted: write the value out");
                let mut node = Node::new(self.file, line, Kind::Scalar(Value::Null));
                node.refused = true;
                self.put(node)
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
        }
    }

    fn wants_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame { kind: FrameKind::Map { key: None, .. }, .. }))
    }

    fn start_entry(&mut self, text: &str, style: ScalarStyle, line: usize) -> Result<(), Stopped> {
        let mut unwanted = false;
        if text.is_empty() {
            self.add(line, "a key is missing before `:`");
            unwanted = true;
        } else if text == "<<" && style == ScalarStyle::Plain {
            self.add(line, "merge keys (`<<`) are not accepted: write the values out");
            unwanted = true;
        } else if reference::mentions_environment(text) {
            self.add(line, "a key cannot come from the environment");
            unwanted = true;
        }
        let Some(Frame { kind: FrameKind::Map { lines, key, .. }, .. }) = self.stack.last_mut() else {
            return Ok(());
        };
        let earlier = if unwanted { None } else { lines.insert(text.to_owned(), line) };
        *key = Some(Key { name: text.to_owned(), line, unwanted: unwanted || earlier.is_some() });
        if let Some(earlier) = earlier {
            self.add(line, &format!("is defined twice; the other definition is at line {earlier}"));
        }
        Ok(())
    }

    /// True if the value carries something that cannot be honoured.
    fn refuse_specials(&mut self, anchor: usize, tagged: bool, line: usize) -> bool {
        if anchor != 0 {
            self.add(line, "anchors (`&name`) are not accepted: write the value out where it is needed");
        }
        if tagged {
            self.add(line, "YAML tags (`!name`) are not accepted");
        }
        anchor != 0 || tagged
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, line: usize) -> Node {
        let mut node = Node::new(self.file, line, Kind::Scalar(Value::Null));
        let substituted = match reference::substitute(text, self.environment) {
            Ok(substituted) => substituted,
            Err(message) => {
                self.add(line, &message);
                node.refused = true;
                return node;
            }
        };
        node.hidden = substituted.is_some();
        let text = substituted.unwrap_or_else(|| text.to_owned());
        node.kind = Kind::Scalar(if style == ScalarStyle::Plain { plain(text) } else { Value::String(text) });
        node
    }

    fn open(&mut self, line: usize, kind: FrameKind) -> Result<(), Stopped> {
        if self.wants_key() {
            return Err(self.stop(line, "a key must be plain text"));
        }
        if self.stack.len() >= MAX_DEPTH {
            return Err(self.stop(line, &format!("values are nested more than {MAX_DEPTH} deep")));
        }
        self.stack.push(Frame { line, kind });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Stopped> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let kind = match frame.kind {
            FrameKind::List(nodes) => Kind::List(nodes),
            FrameKind::Map { entries, .. } => Kind::Map(entries),
        };
        self.put(Node::new(self.file, frame.line, kind))
    }

    /// Puts a complete value where it belongs.
    fn put(&mut self, mut node: Node) -> Result<(), Stopped> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(self.stop(node.line, &format!("the configuration holds more than {MAX_VALUES} values")));
        }
        match self.stack.last_mut().map(|frame| &mut frame.kind) {
            None => self.root = Some(node),
            Some(FrameKind::List(nodes)) => nodes.push(node),
            Some(FrameKind::Map { entries, key, .. }) => {
                if let Some(key) = key.take().filter(|key| !key.unwanted) {
                    // People look for the line of the key.
                    node.line = key.line;
                    entries.insert(key.name, node);
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, line: usize, message: &str) {
        let mut path = String::new();
        for frame in &self.stack {
            match &frame.kind {
                FrameKind::List(nodes) => path.push_str(&format!("[{}]", nodes.len())),
                FrameKind::Map { key: Some(key), .. } => path = join(&path, &shown(&key.name)),
                FrameKind::Map { key: None, .. } => {}
            }
        }
        if path.is_empty() {
            path = ROOT.into();
        }
        self.problems.0.push(Problem {
            path,
            message: message.to_owned(),
            suggestion: None,
            source: Some((self.files[self.file].clone(), line.max(1))),
        });
    }

    fn stop(&mut self, line: usize, message: &str) -> Stopped {
        self.add(line, message);
        Stopped
    }
}

/// The value of an unquoted scalar, by YAML 1.2: `yes`, `on` and `012` are text. Numbers that no finite number can hold
/// are text too, so that they are refused where a number belongs.
fn plain(text: String) -> Value {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    match number(&text) {
        Some(number) => Value::Number(number),
        None => Value::String(text),
    }
}

fn number(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let first = digits.bytes().next()?;
    if !first.is_ascii_digit() && first != b'.' {
        return None;
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with('+')).map(Number::from);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return u64::from_str_radix(octal, 8).ok().filter(|_| !octal.starts_with('+')).map(Number::from);
    }
    if digits.len() > 1 && first == b'0' && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if let Ok(number) = text.parse::<u64>() {
        return Some(number.into());
    }
    if let Ok(number) = text.parse::<i64>() {
        return Some(number.into());
    }
    Number::from_f64(text.parse::<f64>().ok()?)
}

#[cfg(test)]
pub(super) mod tests;
