//! JSON Schema to the subset that Gemini takes (OpenAPI 3.0 without references), and back.
//!
//! What only annotates is left out. What restricts values and has no counterpart is left out and told to the caller: the model
//! may then answer with more than the schema allows, never with less.

use serde_json::{Map, Value, json};

/// Schemas that refer to themselves, or unfold to more than anybody writes, end here.
const DEEPEST: usize = 100;
const MOST_NODES: usize = 10_000;

/// Keywords that say nothing about values.
const ANNOTATIONS: &[&str] = &[
    "$schema",
    "$id",
    "$anchor",
    "$comment",
    "$defs",
    "definitions",
    "examples",
    "readOnly",
    "writeOnly",
    "deprecated",
    // Gemini fills in the properties that are listed, and no others.
    "additionalProperties",
    "unevaluatedProperties",
    // An OpenAPI word that Gemini knows by another way.
    "nullable",
    "propertyOrdering",
];

/// Keywords that are the same.
const SAME: &[&str] = &[
    "title",
    "description",
    "default",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
    "minimum",
    "maximum",
    "pattern",
    "example",
];

/// Writes a schema for Gemini. `lost` is called with keywords that could not be written.
pub fn to_gemini(schema: &Value, lost: &mut dyn FnMut(&str)) -> Value {
    Narrowing { root: schema, nodes: 0, depth: 0, references: Vec::new(), lost }.narrow(schema)
}

struct Narrowing<'s, 'l> {
    root: &'s Value,
    nodes: usize,
    depth: usize,
    /// Those that are being resolved, outermost first.
    references: Vec<&'s str>,
    lost: &'l mut dyn FnMut(&str),
}

impl<'s> Narrowing<'s, '_> {
    fn narrow(&mut self, schema: &'s Value) -> Value {
        let mut narrowed = Map::new();
        self.narrow_into(schema, &mut narrowed);
        Value::Object(narrowed)
    }

    fn narrow_into(&mut self, schema: &'s Value, into: &mut Map<String, Value>) {
        self.nodes += 1;
        if self.nodes > MOST_NODES || self.depth > DEEPEST {
            return (self.lost)("$ref");
        }
        self.depth += 1;
        self.take_keywords(schema, into);
        self.depth -= 1;
    }

    fn take_keywords(&mut self, schema: &'s Value, into: &mut Map<String, Value>) {
        let Some(schema) = schema.as_object() else {
            // `true` allows everything, and so does nothing at all.
            if schema == &Value::Bool(false) {
                (self.lost)("false");
            }
            return;
        };
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            self.resolve(reference, into);
        }
        for (keyword, value) in schema {
            match keyword.as_str() {
                "$ref" => {}
                "type" => self.set_type(value, into),
                "format" => self.set_format(schema, value, into),
                "enum" => self.set_enum(value.as_array().map(Vec::as_slice).unwrap_or_default(), keyword, into),
                "const" => self.set_enum(std::slice::from_ref(value), keyword, into),
                "properties" => self.set_properties(value, into),
                "required" => {
                    into.insert("required".into(), value.clone());
                }
                "items" => {
                    let items = self.narrow(value);
                    into.insert("items".into(), items);
                }
                "prefixItems" => {
                    (self.lost)(keyword);
                    if let Some(first) = value.get(0) {
                        let items = self.narrow(first);
                        into.entry("items").or_insert(items);
                    }
                }
                "exclusiveMinimum" | "exclusiveMaximum" => self.set_exclusive(schema, keyword, value, into),
                "allOf" => value.as_array().into_iter().flatten().for_each(|part| self.narrow_into(part, into)),
                "anyOf" | "oneOf" => self.set_alternatives(keyword, value, into),
                same if SAME.contains(&same) => {
                    into.insert(keyword.clone(), value.clone());
                }
                annotation if ANNOTATIONS.contains(&annotation) => {}
                unknown => (self.lost)(unknown),
            }
        }
        if schema.get("nullable") == Some(&Value::Bool(true)) {
            into.insert("nullable".into(), Value::Bool(true));
        }
        if into.contains_key("properties") && into.remove("anyOf").is_some() {
            // Alternatives of what an object has cannot stand beside its properties.
            (self.lost)("anyOf");
        }
        complete(into);
    }

    fn resolve(&mut self, reference: &'s str, into: &mut Map<String, Value>) {
        let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        match target {
            Some(target) if !self.references.contains(&reference) => {
                self.references.push(reference);
                self.narrow_into(target, into);
                self.references.pop();
            }
            // A tree: its branches are any object, one level down.
            Some(_) => {
                (self.lost)("$ref");
                into.insert("type".into(), "OBJECT".into());
            }
            None => (self.lost)("$ref"),
        }
    }

    fn set_type(&mut self, value: &Value, into: &mut Map<String, Value>) {
        let upper = |name: &str| Value::from(name.to_ascii_uppercase());
        match value {
            Value::String(name) if name == "null" => {
                into.insert("nullable".into(), true.into());
            }
            Value::String(name) => {
                into.insert("type".into(), upper(name));
            }
            Value::Array(names) => {
                let mut kinds: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
                let all = kinds.len();
                kinds.retain(|name| *name != "null");
                if kinds.len() < all {
                    into.insert("nullable".into(), true.into());
                }
                match kinds[..] {
                    [] => {}
                    [name] => {
                        into.insert("type".into(), upper(name));
                    }
                    _ => {
                        let kinds = kinds.iter().map(|name| json!({"type": upper(name)})).collect();
                        into.insert("anyOf".into(), Value::Array(kinds));
                    }
                }
            }
            _ => (self.lost)("type"),
        }
    }

    /// Others than these are refused.
    fn set_format(&mut self, schema: &Map<String, Value>, value: &Value, into: &mut Map<String, Value>) {
        let known: &[&str] = match schema.get("type").and_then(Value::as_str) {
            Some("integer" | "INTEGER") => &["int32", "int64"],
            Some("number" | "NUMBER") => &["float", "double"],
            _ => &["date-time", "enum"],
        };
        match value.as_str() {
            Some(format) if known.contains(&format) => {
                into.insert("format".into(), format.into());
            }
            _ => (self.lost)("format"),
        }
    }

    /// Only texts can be enumerated.
    fn set_enum(&mut self, values: &[Value], keyword: &str, into: &mut Map<String, Value>) {
        let texts: Vec<Value> = values.iter().filter(|value| value.is_string()).cloned().collect();
        let nulls = values.iter().filter(|value| value.is_null()).count();
        if texts.len() + nulls < values.len() || texts.is_empty() {
            return (self.lost)(keyword);
        }
        if nulls > 0 {
            into.insert("nullable".into(), true.into());
        }
        into.insert("enum".into(), Value::Array(texts));
        into.entry("type").or_insert("STRING".into());
    }

    fn set_properties(&mut self, value: &'s Value, into: &mut Map<String, Value>) {
        let Some(properties) = value.as_object() else { return (self.lost)("properties") };
        let narrowed: Vec<_> = properties.iter().map(|(name, schema)| (name.clone(), self.narrow(schema))).collect();
        match into.get_mut("properties").and_then(Value::as_object_mut) {
            Some(before) => before.extend(narrowed),
            None => {
                into.insert("properties".into(), Value::Object(narrowed.into_iter().collect()));
            }
        }
    }

    /// Exact for whole numbers; others get the bound itself.
    fn set_exclusive(
        &mut self,
        schema: &Map<String, Value>,
        keyword: &str,
        value: &Value,
        into: &mut Map<String, Value>,
    ) {
        let (name, step) = if keyword == "exclusiveMinimum" { ("minimum", 1) } else { ("maximum", -1) };
        match value.as_i64() {
            Some(bound) if schema.get("type").is_some_and(|kind| kind == "integer") => {
                into.insert(name.into(), bound.saturating_add(step).into());
            }
            _ => {
                (self.lost)(keyword);
                if value.is_number() {
                    into.insert(name.into(), value.clone());
                }
            }
        }
    }

    fn set_alternatives(&mut self, keyword: &str, value: &'s Value, into: &mut Map<String, Value>) {
        let Some(all) = value.as_array() else { return (self.lost)(keyword) };
        let null = |schema: &&Value| schema.get("type").is_some_and(|kind| kind == "null");
        if all.iter().any(|schema| null(&schema)) {
            into.insert("nullable".into(), true.into());
        }
        let rest: Vec<&'s Value> = all.iter().filter(|schema| !null(schema)).collect();
        if let [only] = rest[..] {
            return self.narrow_into(only, into);
        }
        if into.contains_key("anyOf") {
            return (self.lost)(keyword);
        }
        let rest = rest.into_iter().map(|schema| self.narrow(schema)).collect();
        into.insert("anyOf".into(), Value::Array(rest));
    }
}

/// What Gemini refuses to see missing, or to see beside something else.
fn complete(schema: &mut Map<String, Value>) {
    if schema.contains_key("properties") {
        schema.entry("type").or_insert("OBJECT".into());
    }
    if schema.contains_key("items") {
        schema.entry("type").or_insert("ARRAY".into());
    }
    if schema.get("type").is_some_and(|kind| kind == "ARRAY") {
        schema.entry("items").or_insert(json!({"type": "STRING"}));
    }
    if let Some(Value::Array(mut required)) = schema.remove("required") {
        let properties = schema.get("properties").and_then(Value::as_object);
        required.retain(|name| {
            name.as_str().zip(properties).is_some_and(|(name, properties)| properties.contains_key(name))
        });
        if !required.is_empty() {
            schema.insert("required".into(), Value::Array(required));
        }
    }
    if let Some(Value::Array(mut all)) = schema.remove("anyOf") {
        // It has to stand alone, so what is said of all is said of the first, or of each.
        let nullable = schema.remove("nullable");
        let description = schema.remove("description");
        schema.clear();
        for alternative in all.iter_mut().filter_map(Value::as_object_mut) {
            if let Some(nullable) = &nullable {
                alternative.insert("nullable".into(), nullable.clone());
            }
        }
        if let (Some(description), Some(first)) = (description, all.first_mut().and_then(Value::as_object_mut)) {
            first.entry("description").or_insert(description);
        }
        schema.insert("anyOf".into(), Value::Array(all));
    }
}

/// Reads a schema of Gemini as JSON Schema: names of types in lower case, `nullable` as a type, numbers as numbers.
pub fn from_gemini(schema: &Value) -> Value {
    let Some(schema) = schema.as_object() else { return schema.clone() };
    let mut read = Map::new();
    let mut nullable = false;
    for (keyword, value) in schema {
        match keyword.as_str() {
            "type" => match value.as_str() {
                Some("TYPE_UNSPECIFIED") => {}
                Some(kind) => {
                    read.insert("type".into(), kind.to_ascii_lowercase().into());
                }
                None => {
                    read.insert("type".into(), value.clone());
                }
            },
            "nullable" => nullable = value.as_bool().unwrap_or(false),
            "format" if value == "enum" => {}
            "propertyOrdering" | "property_ordering" => {}
            "properties" => {
                let properties = value.as_object().into_iter().flatten();
                let properties = properties.map(|(name, schema)| (name.clone(), from_gemini(schema)));
                read.insert("properties".into(), Value::Object(properties.collect()));
            }
            "items" => {
                read.insert("items".into(), from_gemini(value));
            }
            "anyOf" | "any_of" => {
                let all = value.as_array().into_iter().flatten().map(from_gemini);
                read.insert("anyOf".into(), Value::Array(all.collect()));
            }
            _ => {
                let number = value.as_str().filter(|_| counts(keyword)).and_then(|text| text.parse::<u64>().ok());
                let value = number.map_or_else(|| value.clone(), Value::from);
                read.insert(camel(keyword), value);
            }
        }
    }
    if nullable {
        match read.get_mut("type") {
            Some(kind) => *kind = json!([kind.take(), "null"]),
            None => {
                if let Some(all) = read.get_mut("anyOf").and_then(Value::as_array_mut) {
                    all.push(json!({"type": "null"}));
                }
            }
        }
        if let Some(values) = read.get_mut("enum").and_then(Value::as_array_mut) {
            values.push(Value::Null);
        }
    }
    Value::Object(read)
}

/// Whether the value is a 64-bit number, which Google's JSON writes as a text.
fn counts(keyword: &str) -> bool {
    const COUNTS: &[&str] = &["Items", "Length", "Properties", "_items", "_length", "_properties"];
    COUNTS.iter().any(|end| keyword.ends_with(end))
}

fn camel(keyword: &str) -> String {
    let mut words = keyword.split('_').filter(|word| !word.is_empty());
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
    }
    camel
}

#[cfg(test)]
mod tests {
    use super::*;

    fn narrowed(schema: Value) -> (Value, Vec<String>) {
        let mut lost = Vec::new();
        let narrowed = to_gemini(&schema, &mut |keyword| lost.push(keyword.to_owned()));
        (narrowed, lost)
    }

    #[test]
    fn a_schema_of_objects_loses_only_what_says_nothing() {
        let (schema, lost) = narrowed(json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "additionalProperties": false,
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "unit": {"type": ["string", "null"], "enum": ["c", "f", null]},
                "days": {"type": "integer", "exclusiveMinimum": 0, "format": "int32"},
                "tags": {"type": "array"},
            },
            "required": ["city", "ghost"],
        }));
        let want = json!({
            "type": "OBJECT",
            "properties": {
                "city": {"type": "STRING", "description": "Where"},
                "unit": {"type": "STRING", "nullable": true, "enum": ["c", "f"]},
                "days": {"type": "INTEGER", "minimum": 1, "format": "int32"},
                "tags": {"type": "ARRAY", "items": {"type": "STRING"}},
            },
            "required": ["city"],
        });
        assert_eq!(schema, want);
        assert!(lost.is_empty(), "{lost:?}");
    }

    #[test]
    fn references_are_resolved_and_a_tree_ends() {
        let (schema, lost) = narrowed(json!({
            "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "name": {"const": "n"}}}},
            "$ref": "#/$defs/node",
        }));
        let want = json!({"type": "OBJECT", "properties": {"next": {"type": "OBJECT"}, "name": {"type": "STRING", "enum": ["n"]}}});
        assert_eq!(schema, want);
        assert_eq!(lost, ["$ref"]);
        assert_eq!(narrowed(json!({"$ref": "https://example.com/s"})), (json!({}), vec!["$ref".to_owned()]));
    }

    #[test]
    fn alternatives_stand_alone_and_null_is_no_alternative() {
        let (schema, lost) =
            narrowed(json!({"description": "d", "anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]}));
        let want = json!({"anyOf": [
            {"type": "STRING", "nullable": true, "description": "d"}, {"type": "NUMBER", "nullable": true},
        ]});
        assert_eq!(schema, want);
        assert!(lost.is_empty(), "{lost:?}");
        let (schema, _) = narrowed(json!({"oneOf": [{"type": "string"}, {"type": "null"}]}));
        assert_eq!(schema, json!({"type": "STRING", "nullable": true}));
    }

    #[test]
    fn what_restricts_and_cannot_be_written_is_told() {
        let (schema, lost) = narrowed(json!({"type": "integer", "enum": [1, 2], "not": {"const": 1}}));
        assert_eq!(schema, json!({"type": "INTEGER"}));
        assert_eq!(lost, ["enum", "not"]);
    }

    #[test]
    fn references_that_multiply_end() {
        let mut definitions = Map::new();
        for level in 0..40 {
            let next = json!({"$ref": format!("#/$defs/l{}", level + 1)});
            let properties: Map<String, Value> = (0..10).map(|n| (format!("p{n}"), next.clone())).collect();
            definitions.insert(format!("l{level}"), json!({"type": "object", "properties": properties}));
        }
        definitions.insert("l40".into(), json!({"type": "string"}));
        let (_, lost) = narrowed(json!({"$defs": definitions, "$ref": "#/$defs/l0"}));
        assert!(lost.contains(&"$ref".to_owned()));
    }

    #[test]
    fn a_schema_of_gemini_reads_as_json_schema() {
        let schema = from_gemini(&json!({
            "type": "OBJECT", "propertyOrdering": ["a"],
            "properties": {"a": {"type": "STRING", "format": "enum", "enum": ["x"], "nullable": true}, "b": {"type": "ARRAY", "min_items": "2", "items": {"any_of": [{"type": "NUMBER"}]}}},
        }));
        let want = json!({"type": "object", "properties": {
            "a": {"type": ["string", "null"], "enum": ["x", null]},
            "b": {"type": "array", "minItems": 2, "items": {"anyOf": [{"type": "number"}]}},
        }});
        assert_eq!(schema, want);
    }
}
