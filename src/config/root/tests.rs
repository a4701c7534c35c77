use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::config::{Backend, FilterSchema, check, document, load_str, server};

const EXAMPLE: &str = include_str!("../example.yaml");

/// Stands for the settings of a filter, which `config` knows nothing about.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[allow(dead_code, reason = "only the schema is used")]
struct Networks {
    allow: Vec<String>,
    deny: Vec<String>,
}

fn schema() -> ConfigSchema {
    let filter = |name| FilterSchema { name, schema: |generator| generator.subschema_for::<Networks>() };
    ConfigSchema::of::<Config>(&[filter("ip_restriction"), filter("cors")])
}

fn none(_: &str) -> Option<String> {
    None
}

fn load_text(text: &str, schema: &ConfigSchema) -> Result<Loaded<Config>, Problems> {
    load_str("example.yaml", text, schema, &none)
}

/// Breaks a promise of the reader if a text is neither accepted nor refused with place and line.
fn assert_answered(text: &str, outcome: &Result<Loaded<Config>, Problems>) {
    let Err(problems) = outcome else { return };
    assert!(!problems.is_empty(), "refused without a reason: {text}");
    for problem in &problems.0 {
        assert!(!problem.path.is_empty(), "without a path: {problem:?} for\n{text}");
        assert!(problem.source.is_some(), "without a line: {problem:?} for\n{text}");
    }
}

#[test]
fn the_example_is_accepted_and_decoded() {
    let loaded = load_text(EXAMPLE, &schema()).unwrap_or_else(|problems| panic!("{problems}"));
    let orders = &loaded.config.services["orders"];
    assert_eq!(orders.routes.len(), 5);
    assert_eq!(orders.routes["list"].backend, Backend::Upstream("orders".into()));
    assert_eq!(loaded.config.filters[0].name, "ip_restriction");
    assert_eq!(loaded.config.server.threads, server::Threads::Count(2));
    assert_eq!(loaded.config.admin, Admin::default());
    assert_eq!(loaded.sources.locate("services.orders.routes.new.backend.split.targets[1].weight").unwrap().1, 77);
}

#[test]
fn a_truncated_configuration_is_accepted_or_refused_with_a_place() {
    let schema = schema();
    let ends = EXAMPLE.match_indices('\n').map(|(at, _)| at).chain((0..EXAMPLE.len()).step_by(11));
    for end in ends.filter(|end| EXAMPLE.is_char_boundary(*end)) {
        let text = &EXAMPLE[..end];
        assert_answered(text, &load_text(text, &schema));
    }
}

#[test]
fn a_value_of_another_type_is_refused_at_its_place() {
    let schema = schema();
    let whole = document::read_str("e", EXAMPLE, &none, &mut Problems::default()).unwrap().value;
    let mut swapped = 0;
    for pointer in pointers(&whole) {
        for other in [json!(null), json!(-1), json!(1.5), json!(true), json!(["x"]), json!({ "x": 1 }), json!("\u{7}")]
        {
            let mut broken = whole.clone();
            let place = broken.pointer_mut(&pointer).unwrap();
            if std::mem::discriminant(place) == std::mem::discriminant(&other) {
                continue;
            }
            *place = other.clone();
            let text = broken.to_string();
            let outcome = load_text(&text, &schema);
            assert_answered(&text, &outcome);
            // Inside a free document everything is welcome.
            let free = pointer.contains("/json") || (other.is_null() && pointer.ends_with("/ip_restriction"));
            assert!(free || outcome.is_err(), "{pointer} = {other} was accepted");
            swapped += 1;
        }
    }
    assert!(swapped > 800, "only {swapped} documents");
}

#[test]
fn an_unknown_key_is_refused_in_every_map() {
    let schema = schema();
    let whole = document::read_str("e", EXAMPLE, &none, &mut Problems::default()).unwrap().value;
    // Names are the user's own here; what stands below them is checked as any other map.
    let free = ["/json", "/headers", "/header", "/cookie", "/fields"];
    for pointer in pointers(&whole).into_iter().chain([String::new()]) {
        let mut broken = whole.clone();
        let Some(Value::Object(map)) = broken.pointer_mut(&pointer) else { continue };
        map.insert("unknwon".into(), json!("x"));
        let outcome = load_text(&broken.to_string(), &schema);
        assert_answered(&pointer, &outcome);
        let free = free.iter().any(|end| pointer.ends_with(end)) || pointer.contains("/json/");
        assert!(free || outcome.is_err(), "an unknown key in {pointer} was accepted");
    }
}

#[test]
fn a_key_written_twice_is_refused_on_every_line() {
    let schema = schema();
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let mut doubled = lines.clone();
        doubled.insert(at + 1, line);
        let text = doubled.join("\n");
        let outcome = load_text(&text, &schema);
        assert_answered(&text, &outcome);
        let harmless = line.starts_with('#') || line.trim_start().starts_with("- ");
        assert!(harmless || outcome.is_err(), "line {} twice was accepted: {line}", at + 1);
    }
}

#[test]
fn a_misspelt_filter_is_refused_with_its_neighbour() {
    let text = EXAMPLE.replace("  - ip_restriction:\n", "  - ip_restricton:\n");
    let problems = load_text(&text, &schema()).unwrap_err();
    assert_eq!(problems.0.len(), 1, "{problems}");
    assert_eq!(problems.0[0].suggestion.as_deref(), Some("ip_restriction"));
    assert_eq!(problems.0[0].path, "filters[0].ip_restricton");
}

#[test]
fn a_filter_has_exactly_one_name() {
    for (filter, accepted) in [
        ("{ cors: {} }", true),
        ("{ cors: }", true),
        ("{ cors: {}, ip_restriction: {} }", false),
        ("{}", false),
        ("cors", false),
        ("{ cors: [] }", false),
        ("{ cors: { alow: [] } }", false),
    ] {
        let text = format!("listeners: {{ a: {{ address: \"0.0.0.0:1\" }} }}\nfilters: [{filter}]\n");
        let outcome = load_text(&text, &schema());
        assert_answered(&text, &outcome);
        assert_eq!(outcome.is_ok(), accepted, "{filter}: {outcome:?}");
    }
}

#[test]
fn a_name_that_is_no_name_is_refused() {
    for name in ["\"a b\"", "\"\"", "a/b", "-x", "\"é\"", &"x".repeat(129)] {
        let text = format!("listeners: {{ a: {{ address: \"0.0.0.0:1\" }} }}\nupstreams: {{ {name}: {{}} }}\n");
        assert!(load_text(&text, &schema()).is_err(), "{name}");
    }
}

#[test]
fn a_decode_error_behind_the_check_has_a_place_too() {
    #[derive(Debug, Deserialize, JsonSchema)]
    struct Root {
        #[allow(dead_code, reason = "decoding is what is tested")]
        inner: Vec<Inner>,
    }
    #[derive(Debug, Deserialize, JsonSchema)]
    struct Inner {
        #[allow(dead_code, reason = "decoding is what is tested")]
        address: std::net::SocketAddr,
    }
    let schema = ConfigSchema::of::<Root>(&[]);
    let problems =
        load_str::<Root>("t", "inner:\n- address: 1.2.3.4:1\n- address: nowhere\n", &schema, &none).unwrap_err();
    assert_eq!(problems.0[0].path, "inner[1].address");
    assert_eq!(problems.0[0].source, Some(("t".into(), 3)));

    let environment = |_: &str| Some("hunter2".to_owned());
    let hidden = load_str::<Root>("t", "inner: [{ address: \"${env:PASSWORD}\" }]\n", &schema, &environment);
    assert!(!hidden.unwrap_err().to_string().contains("hunter2"));
}

#[test]
fn the_schema_uses_only_what_the_check_understands() {
    let known = [
        "$schema",
        "$defs",
        "$ref",
        "title",
        "description",
        "default",
        "examples",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "uniqueItems",
        "enum",
        "const",
        "anyOf",
        "oneOf",
        "allOf",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minLength",
        "maxLength",
        "pattern",
    ];
    fn walk(schema: &Value, known: &[&str]) {
        let Value::Object(object) = schema else { return };
        for (keyword, value) in object {
            assert!(known.contains(&keyword.as_str()), "`check` knows nothing of {keyword}: {schema}");
            match (keyword.as_str(), value) {
                ("properties" | "patternProperties" | "$defs", Value::Object(schemas)) => {
                    schemas.values().for_each(|schema| walk(schema, known));
                }
                ("anyOf" | "oneOf" | "allOf" | "prefixItems", Value::Array(schemas)) => {
                    schemas.iter().for_each(|schema| walk(schema, known));
                }
                ("items" | "additionalProperties" | "propertyNames", schema) => walk(schema, known),
                ("pattern", Value::String(pattern)) => drop(regex::Regex::new(pattern).unwrap()),
                _ => {}
            }
        }
    }
    walk(schema().as_value(), &known);
}

#[test]
fn the_schema_is_for_editors_with_help_and_defaults() {
    let schema = schema();
    let schema = schema.as_value();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema["$defs"]["FilterEntry"]["properties"].as_object().unwrap().len(), 2);
    assert_eq!(schema["$defs"]["Admin"]["properties"]["address"]["default"], "127.0.0.1:9080");
    assert!(schema["$defs"]["Drain"]["properties"]["delay"]["description"].is_string());
}

#[test]
fn a_large_configuration_loads_fast() {
    let mut text = String::from("listeners: { a: { address: \"0.0.0.0:1\" } }\nservices:\n  s:\n    routes:\n");
    for i in 0..1000 {
        text.push_str(&format!(
            "      r{i}:\n        match: {{ host: h{i}.example.com, path: \"/a/{{id}}\", methods: [GET] }}\n        \
             filters:\n          - ip_restriction: {{ deny: [10.6.6.6] }}\n        backend: {{ upstream: u }}\n",
        ));
    }
    let schema = schema();
    let started = Instant::now();
    let outcome = load_text(&text, &schema);
    let took = started.elapsed();
    assert!(outcome.is_ok_and(|loaded| loaded.config.services["s"].routes.len() == 1000));
    assert!(took.as_secs() < 3, "took {took:?} even without optimisation");
}

#[test]
fn the_yaml_in_the_documentation_is_accepted() {
    let schema = schema();
    let definitions = schema.as_value()["$defs"].as_object().unwrap();
    // An example shows a thing as it is, under its key, or under a name of the user's.
    let whole = json!({ "$ref": "#/$defs/Config" });
    let mut shapes = vec![whole, json!({ "$ref": "#/$defs/FilterEntry" })];
    for (name, definition) in definitions {
        let reference = json!({ "$ref": format!("#/$defs/{name}") });
        shapes.push(json!({ "type": "object", "additionalProperties": reference }));
        shapes.push(reference);
        let Some(properties) = definition.get("properties").and_then(Value::as_object) else { continue };
        for (key, inner) in properties {
            shapes.push(json!({ "properties": { key: inner }, "required": [key], "additionalProperties": false }));
        }
    }
    for (key, inner) in schema.as_value()["properties"].as_object().unwrap() {
        shapes.push(json!({ "properties": { key: inner }, "required": [key], "additionalProperties": false }));
    }
    let shapes: Vec<ConfigSchema> = shapes.into_iter().map(|shape| schema.part(shape)).collect();

    let mut examples = 0;
    for (name, definition) in definitions {
        let description = definition.get("description").and_then(Value::as_str).unwrap_or_default();
        for example in description.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            let mut problems = Problems::default();
            let document = document::read_str(name, example, &none, &mut problems);
            let document = document.unwrap_or_else(|| panic!("{problems}"));
            assert!(problems.is_empty(), "{problems}");
            let accepted = shapes.iter().any(|shape| {
                let mut problems = Problems::default();
                check::check(&document, shape, &mut problems);
                problems.is_empty()
            });
            assert!(accepted, "the example of {name} is not accepted:\n{example}");
            examples += 1;
        }
    }
    assert!(examples > 5, "only {examples} examples found");
}

/// JSON pointers to every value of a tree.
fn pointers(value: &Value) -> Vec<String> {
    let children: Vec<(String, &Value)> = match value {
        Value::Array(items) => items.iter().enumerate().map(|(i, item)| (i.to_string(), item)).collect(),
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        _ => Vec::new(),
    };
    let mut all = Vec::new();
    for (key, child) in children {
        let pointer = format!("/{key}");
        all.extend(pointers(child).into_iter().map(|inner| format!("{pointer}{inner}")));
        all.push(pointer);
    }
    all
}
