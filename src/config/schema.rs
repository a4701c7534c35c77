//! The JSON Schema of the configuration: what `headgate schema` prints for editors, and what `check` tests against.
//! One source for both, made from the structs that decode.

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::filter_entry::FilterEntry;

/// A filter's name and the schema of what is written below it.
#[derive(Clone, Copy)]
pub struct FilterSchema {
    pub name: &'static str,
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

/// The schema (JSON Schema draft 2020-12) of a configuration with a given set of filters.
#[derive(Debug)]
pub struct ConfigSchema(Value);

impl ConfigSchema {
    /// The schema of `T`, in which every filter list accepts `filters`.
    pub fn of<T: JsonSchema>(filters: &[FilterSchema]) -> Self {
        let mut generator = SchemaSettings::draft2020_12().into_generator();
        let mut properties = Map::new();
        for filter in filters {
            properties.insert(filter.name.to_owned(), (filter.schema)(&mut generator).to_value());
        }
        let mut schema = generator.into_root_schema_for::<T>();
        RecursiveTransform(no_null).transform(&mut schema);
        RecursiveTransform(no_unknown_keys).transform(&mut schema);

        let mut root = schema.to_value();
        if let Some(definition) = root.pointer_mut(&format!("/$defs/{}", FilterEntry::schema_name())) {
            *definition = Value::Null;
            let entry = filter_entry(properties, &root);
            root["$defs"][FilterEntry::schema_name().as_ref()] = entry;
        }
        ConfigSchema(root)
    }

    pub fn as_value(&self) -> &Value {
        &self.0
    }

    /// The schema of one definition, for tests of fragments.
    #[cfg(test)]
    pub(super) fn part(&self, mut root: Value) -> Self {
        root["$defs"] = self.0["$defs"].clone();
        ConfigSchema(root)
    }

    /// The part of the schema that `$ref` names.
    pub(super) fn definition(&self, reference: &str) -> Option<&Value> {
        self.0.pointer(reference.strip_prefix('#')?)
    }
}

/// The schema as `headgate schema` prints it.
impl std::fmt::Display for ConfigSchema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

/// A map with one key, the filter's name. A filter without required settings may stand without any: `- cors:`.
fn filter_entry(mut properties: Map<String, Value>, root: &Value) -> Value {
    for config in properties.values_mut() {
        let reference = config.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
        let definition = reference.and_then(|pointer| root.pointer(pointer)).unwrap_or(config);
        if definition.get("type") == Some(&json!("object")) && definition.get("required").is_none() {
            *config = json!({ "anyOf": [config.take(), { "type": "null" }] });
        }
    }
    json!({
        "description": "One filter: its name, and below it its settings.",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
        "minProperties": 1,
        "maxProperties": 1,
    })
}

/// Takes `null` out of what an optional value accepts. A key without a value is most often a forgotten one, and must not
/// quietly switch off what it names (`client_ca:`); whoever wants the default leaves the key away.
fn no_null(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    match object.get_mut("default") {
        Some(Value::Null) => drop(object.remove("default")),
        // Of a struct, the parts without a value are left away as a user would.
        Some(Value::Object(default)) => default.retain(|_, value| !value.is_null()),
        _ => {}
    }
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if types.len() == 1 {
            let only = types.remove(0);
            object.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(values)) = object.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    for keyword in ["anyOf", "oneOf"] {
        let Some(Value::Array(branches)) = object.get_mut(keyword) else { continue };
        branches.retain(|branch| branch.get("type") != Some(&json!("null")));
        if branches.len() == 1
            && let Some(Value::Object(only)) = branches.pop()
        {
            object.remove(keyword);
            for (key, value) in only {
                object.entry(key).or_insert(value);
            }
        }
    }
}

/// Closes every struct, also one whose author forgot `deny_unknown_fields`: nothing is accepted and silently ignored.
fn no_unknown_keys(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    let composed = ["$ref", "allOf", "anyOf", "oneOf"].iter().any(|keyword| object.contains_key(*keyword));
    if object.contains_key("properties") && !composed {
        object.entry("additionalProperties").or_insert(Value::Bool(false));
    }
}
