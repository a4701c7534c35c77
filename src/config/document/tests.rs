use super::*;

fn environment(name: &str) -> Option<String> {
    match name {
        "PORT" => Some("8080".into()),
        "INJECTION" => Some("a\nadmin: {}".into()),
        _ => None,
    }
}

fn read_text(text: &str) -> (Option<Document>, Vec<String>) {
    let mut problems = Problems::default();
    let document = read_str("test.yaml", text, &environment, &mut problems);
    (document, problems.0.iter().map(ToString::to_string).collect())
}

fn value(text: &str) -> Value {
    let (document, problems) = read_text(text);
    assert!(problems.is_empty(), "{text}: {problems:?}");
    document.unwrap().value
}

/// A folder that is gone at the end of the test.
pub(in crate::config) struct Folder(pub PathBuf);

impl Folder {
    pub(in crate::config) fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("headgate-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    pub(in crate::config) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn scalars_follow_yaml_1_2() {
    for (written, expected) in [
        ("true", Value::Bool(true)),
        ("yes", Value::from("yes")),
        ("on", Value::from("on")),
        ("~", Value::Null),
        ("", Value::Null),
        ("12", Value::from(12)),
        ("-12", Value::from(-12)),
        ("0x1f", Value::from(31)),
        ("0o17", Value::from(15)),
        ("012", Value::from("012")),
        ("1.5", Value::from(1.5)),
        ("1e3", Value::from(1000.0)),
        ("1e999", Value::from("1e999")),
        (".inf", Value::from(".inf")),
        ("1_000", Value::from("1_000")),
        ("12:30:45", Value::from("12:30:45")),
        ("10.0.0.1", Value::from("10.0.0.1")),
        ("\"12\"", Value::from("12")),
        ("'true'", Value::from("true")),
        ("5s", Value::from("5s")),
        ("18446744073709551615", Value::from(u64::MAX)),
    ] {
        assert_eq!(value(&format!("key: {written}"))["key"], expected, "{written}");
    }
}

#[test]
fn an_empty_file_is_an_empty_map() {
    for text in ["", "# only a comment\n", "---\n", "~", "\u{feff}"] {
        assert_eq!(value(text), serde_json::json!({}), "{text:?}");
    }
    assert_eq!(value("\u{feff}a: 1\r\nb: 2\r\n"), serde_json::json!({ "a": 1, "b": 2 }), "byte order mark and CRLF");
}

#[test]
fn the_environment_is_substituted_after_parsing() {
    let document = value("port: ${env:PORT}\ntext: \"${env:PORT}\"\nname: ${env:INJECTION}\nid: ${request.id}\n");
    let expected = serde_json::json!({
        "port": 8080, "text": "8080", "name": "a\nadmin: {}", "id": "${request.id}",
    });
    assert_eq!(document, expected, "a plain scalar keeps its type, and a value adds no keys");
}

#[test]
fn what_makes_a_document_ambiguous_is_a_problem_with_its_line() {
    for (text, expected) in [
        ("a: 1\nb: 2\na: 3\n", "test.yaml:3: a: is defined twice; the other definition is at line 1"),
        ("a:\n  b: 1\n  \"b\": 2\n", "test.yaml:3: a.b: is defined twice; the other definition is at line 2"),
        ("a: [{ x: 1, x: 2 }]\n", "test.yaml:1: a[0].x: is defined twice"),
        ("a: &x 1\n", "test.yaml:1: a: anchors"),
        ("a: &x 1\nb: *x\n", "test.yaml:2: b: aliases"),
        ("a:\n  <<: { b: 1 }\n", "test.yaml:2: a: merge keys"),
        ("a: !!str 1\n", "test.yaml:1: a: YAML tags"),
        ("a: !include other.yaml\n", "test.yaml:1: a: YAML tags"),
        ("a: 1\n---\nb: 2\n", "test.yaml:2: (document): only one YAML document"),
        ("[a, b]\n", "test.yaml:1: (document): a configuration is a map"),
        ("just text\n", "test.yaml:1: (document): a configuration is a map"),
        ("a: 1\n: 2\n", "test.yaml:2: (document): a key is missing"),
        ("? [a]\n: 1\n", "test.yaml:1: (document): a key must be plain text"),
        ("${env:PORT}: 1\n", "test.yaml:1: (document): a key cannot come from the environment"),
        ("a:\n- ${env:NONE}\n", "test.yaml:2: a[0]: the environment variable NONE is not set"),
        ("a: 1\n\0b: 2\n", "test.yaml:2: (document): control character 0x00"),
        ("a: \"\u{1b}[2J\"\n", "test.yaml:1: (document): control character 0x1b"),
        ("a:\n\t- b\n", "test.yaml:2:"),
        ("a: [1, 2\n", "test.yaml:2:"),
        ("a: {b: 1\nc: 2\n", "test.yaml:"),
        ("a: 'open\n", "test.yaml:"),
        ("a: b: c\n", "test.yaml:1:"),
    ] {
        let (_, problems) = read_text(text);
        let seen = problems.iter().any(|problem| problem.starts_with(expected));
        assert!(seen, "{text:?} gave {problems:#?} instead of {expected}");
    }
}

#[test]
fn several_mistakes_are_reported_at_once() {
    let (document, problems) = read_text("a: *x\nb: &y 1\nc: !t 1\nd: ${env:NONE}\nd: 1\n");
    assert!(document.is_none(), "an alias to nothing is a syntax error");
    assert_eq!(problems.len(), 1);
    let (document, problems) = read_text("b: &y 1\na: *y\nc: !t 1\nd: ${env:NONE}\nd: 1\n");
    assert!(document.is_some(), "the rest can be checked");
    assert_eq!(problems.len(), 5, "{problems:#?}");
}

#[test]
fn text_that_is_not_utf8_is_a_problem_with_its_line() {
    let folder = Folder::new("utf8");
    let file = folder.write("bad.yaml", b"a: 1\nb: \xff\xfe\n");
    let mut problems = Problems::default();
    assert!(read(&file, &environment, &mut problems).is_none());
    assert_eq!(problems.0[0].source, Some((file.display().to_string(), 2)));
}

#[test]
fn places_are_found_for_values_keys_and_what_is_missing() {
    let text = "services:\n  api.example.com:\n    routes:\n      a: { match: { path: / } }\n    list:\n    - one\n    - two\n";
    let sources = read_text(text).0.unwrap().sources;
    for (path, line) in [
        ("services", 1),
        ("services.api.example.com", 2),
        ("services.api.example.com.routes.a.match.path", 4),
        ("services.api.example.com.list[1]", 7),
        ("services.api.example.com.list[9]", 5),
        ("services.api.example.com.nothing.at.all", 2),
        ("elsewhere", 1),
    ] {
        assert_eq!(sources.locate(path), Some(("test.yaml".into(), line)), "{path}");
    }
}

#[test]
fn files_of_a_folder_are_merged_by_name() {
    let folder = Folder::new("merge");
    folder.write("10-base.yaml", "upstreams:\n  a: { x: 1 }\nfilters:\n- one\n");
    folder.write("20-more.yml", "upstreams:\n  b: { x: 2 }\nfilters:\n- two\n");
    folder.write(".hidden.yaml", "broken: [");
    folder.write("notes.txt", "broken: [");
    let mut problems = Problems::default();
    let document = read(&folder.0, &environment, &mut problems).unwrap();
    assert!(problems.is_empty(), "{problems}");
    let expected = serde_json::json!({ "upstreams": { "a": { "x": 1 }, "b": { "x": 2 } }, "filters": ["one", "two"] });
    assert_eq!(document.value, expected);
    let place = |name: &str, line| Some((folder.0.join(name).display().to_string(), line));
    assert_eq!(document.sources.locate("upstreams.b.x"), place("20-more.yml", 2));
    assert_eq!(document.sources.locate("filters[1]"), place("20-more.yml", 4), "list items keep their own file");
}

#[test]
fn a_resource_in_two_files_is_a_problem_naming_both() {
    let folder = Folder::new("twice");
    let first = folder.write("1.yaml", "upstreams:\n  a: { x: 1 }\nserver:\n  threads: 2\nname: x\n");
    let second = folder.write("2.yaml", "upstreams:\n  a: { x: 1 }\nserver:\n  threads: 2\nname: y\n");
    let mut problems = Problems::default();
    read(&folder.0, &environment, &mut problems);
    let paths: Vec<&str> = problems.0.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["name", "server.threads", "upstreams.a"]);
    for problem in &problems.0 {
        assert!(problem.message.contains(&first.display().to_string()), "{problem}");
        assert_eq!(problem.source.as_ref().unwrap().0, second.display().to_string(), "{problem}");
    }
}

#[test]
fn what_cannot_be_read_names_the_file() {
    let folder = Folder::new("unreadable");
    let mut problems = Problems::default();
    assert!(read(&folder.0, &environment, &mut problems).is_none(), "an empty folder is no configuration");
    assert!(read(&folder.0.join("none.yaml"), &environment, &mut problems).is_none());
    assert_eq!(problems.0.len(), 2);
    assert!(problems.0.iter().all(|problem| problem.to_string().contains("unreadable")), "{problems}");
}

#[test]
fn bombs_are_refused_quickly() {
    let laughs: String = (0..40)
        .map(|i| format!("l{i}: &l{i} [{}]\n", format!("*l{}, ", i.max(1) - 1).repeat(if i == 0 { 0 } else { 10 })))
        .collect();
    let most = MAX_BYTES as usize;
    for (name, text) in [
        ("billion laughs", laughs),
        ("deep flow lists", "[".repeat(most - 10)),
        ("deep flow maps", "{a: ".repeat(100_000)),
        ("deep block lists", "- ".repeat(100_000)),
        ("explicit keys", "? ".repeat(100_000)),
        ("deep by indentation", (0..2000).map(|i| format!("{}a:\n", " ".repeat(i))).collect()),
        ("many values", format!("a: [{}]", "1,".repeat(most / 2 - 8))),
        ("many aliases", format!("a: &a 1\nb: [{}]", "*a , ".repeat(100_000))),
        ("larger than allowed", "#".repeat(most + 1)),
        ("anchors", "&a ".repeat(100_000)),
        ("a long key", format!("{}: 1\n[", "k".repeat(most / 2))),
        ("unclosed quote", format!("a: \"{}", "x\n".repeat(100_000))),
    ] {
        let started = std::time::Instant::now();
        let (_, problems) = read_text(&text);
        assert!(!problems.is_empty(), "{name} was accepted");
        assert!(problems.len() <= MAX_PROBLEMS + 1, "{name}");
        assert!(problems.iter().all(|problem| problem.len() < 1000), "{name}: messages stay short");
        // What would never end is what this is about; many tests at once on two cores take their time.
        assert!(started.elapsed().as_secs() < 60, "{name} took {:?}", started.elapsed());
    }
}

#[test]
fn no_mutation_of_a_document_makes_the_reader_panic() {
    let seed = include_str!("../example.yaml");
    let specials = [
        ": ", "- ", "[", "]", "{", "}", "\n", "\n  ", "#", "&a ", "*a", "!t ", "'", "\"", "|", ">", "\t", "?", ",",
        "%", "---\n", "\u{2028}", "${env:", "<<",
    ];
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..1000 {
        let mut text = seed.to_owned();
        for _ in 0..random.usize(1..5) {
            let mut at = random.usize(0..text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            match random.u8(0..3) {
                0 => text.insert_str(at, specials[random.usize(0..specials.len())]),
                1 if text.len() > 8 => drop(text.remove(at)),
                _ => text.truncate(at.max(8)),
            }
        }
        let (document, problems) = read_text(&text);
        assert!(document.is_some() || !problems.is_empty(), "nothing was said about {text:?}");
    }
}
