//! A document that fits a JSON Schema.

use serde_json::{Map, Value, json};

/// Schemas may refer to themselves.
const DEEPEST: usize = 16;

/// The same document for the same schema.
pub fn of(schema: &Value) -> Value {
    fits(schema, schema, 0)
}

fn fits(schema: &Value, root: &Value, depth: usize) -> Value {
    if depth > DEEPEST {
        return Value::Null;
    }
    if let Some(path) = schema["$ref"].as_str().and_then(|path| path.strip_prefix('#')) {
        return root.pointer(path).map_or(Value::Null, |schema| fits(schema, root, depth + 1));
    }
    if let Some(constant) = schema.get("const") {
        return constant.clone();
    }
    if let Some(first) = schema["enum"].as_array().and_then(|all| all.first()) {
        return first.clone();
    }
    for choice in ["anyOf", "oneOf", "allOf"] {
        if let Some(first) = schema[choice].as_array().and_then(|all| all.first()) {
            return fits(first, root, depth + 1);
        }
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.first().and_then(Value::as_str),
        kind => kind.as_str(),
    };
    // Gemini writes types in capitals.
    match kind.map(str::to_ascii_lowercase).as_deref() {
        Some("string") => json!("Berlin"),
        Some("integer") => json!(7),
        Some("number") => json!(1.5),
        Some("boolean") => json!(true),
        Some("array") => json!([fits(&schema["items"], root, depth + 1)]),
        Some("null") => Value::Null,
        _ => {
            let members = schema["properties"].as_object().into_iter().flatten();
            let members = members.map(|(name, schema)| (name.clone(), fits(schema, root, depth + 1)));
            Value::Object(members.collect::<Map<_, _>>())
        }
    }
}
