//! Operations of an OpenAPI 3.x document, as tools.

use std::collections::BTreeMap;

use http::{HeaderName, Method};
use serde_json::{Map, Value, json};

use super::operation::{Argument, BODY, Body, Encoding, Operation, Place, may_be_argument};

/// How deep and how large the schema of one tool may be once every `$ref` is written out; what is beyond is left open.
const DEEPEST: usize = 24;
const MOST: usize = 4000;

/// An operation as a tool.
#[derive(Debug)]
pub struct Described {
    pub name: String,
    pub title: Option<String>,
    pub description: Option<String>,
    pub operation: Operation,
    pub input: Value,
    pub output: Option<Value>,
}

/// Which operations are wanted.
#[derive(Debug, Default)]
pub struct Wanted<'w> {
    pub operations: &'w [String],
    pub tags: &'w [String],
}

impl Wanted<'_> {
    fn wants(&self, id: &str, tags: &[&str]) -> bool {
        let all = self.operations.is_empty() && self.tags.is_empty();
        all || self.operations.iter().any(|wanted| wanted == id)
            || self.tags.iter().any(|tag| tags.contains(&tag.as_str()))
    }
}

/// A document that has been read.
pub struct Document {
    root: Value,
    /// 3.0, whose schemas are not quite JSON Schema.
    is_3_0: bool,
}

impl Document {
    /// An error says why this is no document of OpenAPI 3.
    pub fn new(root: Value) -> Result<Document, String> {
        let version = root.get("openapi").and_then(Value::as_str).unwrap_or("");
        if !version.starts_with("3.") {
            return Err("this is no document of OpenAPI 3: it has no `openapi: 3…`".to_owned());
        }
        let is_3_0 = version.starts_with("3.0");
        Ok(Document { root, is_3_0 })
    }

    /// The path of the first server, without a slash at the end.
    pub fn base_path(&self) -> String {
        let url = self.root.pointer("/servers/0/url").and_then(Value::as_str).unwrap_or("");
        let path = match url.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
            None => url,
        };
        let path = path.trim_end_matches('/');
        // A variable in it has no value that would be known.
        if path.contains('{') || !path.starts_with('/') { String::new() } else { path.to_owned() }
    }

    /// The operations that are wanted, with what is wrong with those that cannot be tools.
    pub fn operations(
        &self,
        wanted: &Wanted<'_>,
        base_path: &str,
        host: Option<&str>,
    ) -> (Vec<Described>, Vec<(String, String)>) {
        let (mut described, mut problems) = (Vec::new(), Vec::new());
        let mut found: Vec<&str> = Vec::new();
        for (path, item) in self.root.get("paths").and_then(Value::as_object).into_iter().flatten() {
            let item = self.resolved(item);
            for method in ["get", "put", "post", "delete", "options", "head", "patch"] {
                let Some(operation) = item.get(method).filter(|operation| operation.is_object()) else { continue };
                let id = operation.get("operationId").and_then(Value::as_str);
                let tags = operation.get("tags").and_then(Value::as_array);
                let tags: Vec<&str> = tags.into_iter().flatten().filter_map(Value::as_str).collect();
                let name = id.map_or_else(|| made_name(method, path), usable_name);
                if !wanted.wants(id.unwrap_or(&name), &tags) {
                    continue;
                }
                found.extend(id);
                found.extend(&tags);
                let made = self.describe(name.clone(), method, &format!("{base_path}{path}"), item, operation, host);
                match made {
                    Ok(tool) => described.push(tool),
                    Err(message) => problems.push((name, message)),
                }
            }
        }
        for wanted in wanted.operations.iter().chain(wanted.tags).filter(|wanted| !found.contains(&wanted.as_str())) {
            problems.push((wanted.clone(), "the document has no such operation or tag".to_owned()));
        }
        (described, problems)
    }

    fn describe(
        &self,
        name: String,
        method: &str,
        path: &str,
        item: &Value,
        operation: &Value,
        host: Option<&str>,
    ) -> Result<Described, String> {
        let mut schemas: BTreeMap<String, Value> = BTreeMap::new();
        let mut arguments: Vec<Argument> = Vec::new();
        // An operation's own parameters go before those of its path.
        let lists = [operation, item].map(|of| of.get("parameters").and_then(Value::as_array));
        for parameter in lists.into_iter().flatten().flatten() {
            let parameter = self.resolved(parameter);
            let text = |key: &str| parameter.get(key).and_then(Value::as_str);
            let (Some(wire), Some(place)) = (text("name"), text("in")) else { continue };
            let required = parameter.get("required").and_then(Value::as_bool).unwrap_or(false);
            let place = match place {
                "path" => Place::Path,
                "query" => Place::Query(wire.to_owned()),
                "header" => match HeaderName::from_bytes(wire.as_bytes()) {
                    // Those that say who calls are not for a model to choose.
                    Ok(header) if may_be_argument(&header) => Place::Header(header),
                    _ => continue,
                },
                "cookie" if required => return Err(format!("the cookie `{wire}` cannot be an argument")),
                _ => continue,
            };
            if arguments.iter().any(|known| known.name == wire) {
                continue;
            }
            let mut schema = match parameter.get("schema") {
                Some(schema) => self.schema(schema),
                None => json!({ "type": "string" }),
            };
            if let (Some(description), Some(schema)) = (text("description"), schema.as_object_mut()) {
                schema.entry("description").or_insert_with(|| description.into());
            }
            schemas.insert(wire.to_owned(), schema);
            arguments.push(Argument { name: wire.to_owned(), place, required });
        }
        let body = match operation.get("requestBody").map(|body| self.resolved(body)) {
            None => None,
            Some(body) => Some(self.body(body, &mut schemas)?),
        };
        let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).map_err(|error| error.to_string())?;
        let made = Operation::new(method, host.map(str::to_owned), path, arguments, body)?;
        let input = made.input_schema(|name| schemas.remove(name).unwrap_or_else(|| json!({ "type": "string" })));
        let text = |key: &str| operation.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        Ok(Described {
            name,
            title: text("summary").map(str::to_owned),
            description: text("description").or(text("summary")).map(str::to_owned),
            operation: made,
            input,
            output: self.output(operation),
        })
    }

    fn body(&self, body: &Value, schemas: &mut BTreeMap<String, Value>) -> Result<Body, String> {
        let required = body.get("required").and_then(Value::as_bool).unwrap_or(false);
        let kinds = body.get("content").and_then(Value::as_object);
        let of = |fits: fn(&str) -> bool| {
            kinds.into_iter().flatten().find(|(kind, _)| fits(kind.split(';').next().unwrap_or("").trim()))
        };
        let json = of(|kind| kind == "application/json" || kind.ends_with("+json") || kind == "*/*");
        let form = || of(|kind| kind == "application/x-www-form-urlencoded");
        let (encoding, media) = match (json, form()) {
            (Some((_, media)), _) => (Encoding::Json, media),
            (None, Some((_, media))) => (Encoding::Form, media),
            (None, None) => return Err("its body is neither JSON nor a form".to_owned()),
        };
        schemas.insert(BODY.to_owned(), media.get("schema").map_or_else(|| json!({}), |schema| self.schema(schema)));
        Ok(Body { encoding, required })
    }

    /// The schema of the answer, if it is one that structured content can keep to: an object.
    fn output(&self, operation: &Value) -> Option<Value> {
        let responses = operation.get("responses")?.as_object()?;
        let mut good = responses.iter().filter(|(status, _)| status.starts_with('2'));
        let (Some((_, response)), None) = (good.next(), good.next()) else { return None };
        let content = self.resolved(response).get("content")?.as_object()?;
        let (kind, media) = content.iter().next()?;
        if content.len() > 1 || !kind.starts_with("application/json") {
            return None;
        }
        let schema = self.schema(media.get("schema")?);
        (schema.get("type").and_then(Value::as_str) == Some("object")).then_some(schema)
    }

    /// What a `$ref` within the document stands for.
    fn resolved<'d>(&'d self, mut value: &'d Value) -> &'d Value {
        for _ in 0..DEEPEST {
            let Some(reference) = value.get("$ref").and_then(Value::as_str) else { return value };
            match reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer)) {
                Some(found) => value = found,
                None => return &Value::Null,
            }
        }
        &Value::Null
    }

    /// A schema as JSON Schema, with every reference written out: nobody who gets it has the document.
    fn schema(&self, schema: &Value) -> Value {
        let mut left = MOST;
        self.written_out(schema, DEEPEST, &mut left)
    }

    fn written_out(&self, schema: &Value, depth: usize, left: &mut usize) -> Value {
        if depth == 0 || *left == 0 {
            return json!({});
        }
        *left -= 1;
        match schema {
            Value::Object(members) if members.contains_key("$ref") => {
                let mut found = self.written_out(self.resolved(schema), depth - 1, left);
                // Of 3.1: what stands beside a reference holds too.
                if let Some(found) = found.as_object_mut() {
                    for (key, value) in members.iter().filter(|(key, _)| *key != "$ref") {
                        found.insert(key.clone(), self.written_out(value, depth - 1, left));
                    }
                }
                found
            }
            Value::Object(members) => {
                let mut out = Map::new();
                for (key, value) in members {
                    match key.as_str() {
                        "example" | "xml" | "externalDocs" | "discriminator" | "nullable" => {}
                        // Values, and not schemas.
                        "enum" | "const" | "default" | "examples" | "required" => {
                            out.insert(key.clone(), value.clone());
                        }
                        _ => {
                            out.insert(key.clone(), self.written_out(value, depth - 1, left));
                        }
                    }
                }
                if self.is_3_0 {
                    as_json_schema(members, &mut out);
                }
                Value::Object(out)
            }
            Value::Array(values) => values.iter().map(|value| self.written_out(value, depth - 1, left)).collect(),
            value => value.clone(),
        }
    }
}

/// What OpenAPI 3.0 says in words of its own.
fn as_json_schema(members: &Map<String, Value>, out: &mut Map<String, Value>) {
    if members.get("nullable") == Some(&Value::Bool(true))
        && let Some(Value::String(kind)) = members.get("type")
    {
        out.insert("type".to_owned(), json!([kind, "null"]));
        if let Some(Value::Array(values)) = out.get_mut("enum")
            && !values.contains(&Value::Null)
        {
            values.push(Value::Null);
        }
    }
    for (exclusive, bound) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
        match members.get(exclusive) {
            Some(Value::Bool(true)) => {
                if let Some(value) = out.remove(bound) {
                    out.insert(exclusive.to_owned(), value);
                }
            }
            Some(Value::Bool(false)) => drop(out.remove(exclusive)),
            _ => {}
        }
    }
}

/// An operation's name in the characters that names of tools have.
fn usable_name(id: &str) -> String {
    let usable = |c: char| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '_' };
    id.chars().take(128).map(usable).collect()
}

/// A name for an operation that has none: `get_orders_id`.
fn made_name(method: &str, path: &str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let name = std::iter::once(method).chain(words).collect::<Vec<_>>().join("_");
    usable_name(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Document {
        Document::new(json!({
            "openapi": "3.0.3",
            "servers": [{ "url": "https://api.example.com/v1/" }],
            "paths": {
                "/pets/{petId}": {
                    "parameters": [{ "$ref": "#/components/parameters/petId" }],
                    "get": {
                        "operationId": "getPet", "tags": ["pets"], "summary": "One pet",
                        "parameters": [
                            { "name": "fields", "in": "query", "description": "Which", "schema": { "type": "array", "items": { "type": "string" } } },
                            { "name": "Authorization", "in": "header", "schema": { "type": "string" } },
                            { "name": "X-Tenant", "in": "header", "required": true, "schema": { "type": "string", "nullable": true } },
                        ],
                        "responses": { "200": { "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Pet" } } } }, "404": {} },
                    },
                    "delete": { "tags": ["admin"], "responses": {} },
                },
                "/pets": { "post": {
                    "operationId": "create pet", "requestBody": { "required": true, "content": {
                        "application/json": { "schema": { "$ref": "#/components/schemas/Pet" } } } },
                    "responses": {},
                } },
                "/photo": { "put": { "operationId": "photo", "requestBody": { "content": { "image/png": {} } } } },
            },
            "components": {
                "parameters": { "petId": { "name": "petId", "in": "path", "required": true, "schema": { "type": "integer", "minimum": 0, "exclusiveMinimum": true } } },
                "schemas": { "Pet": { "type": "object", "properties": {
                    "name": { "type": "string", "example": "Rex" }, "parent": { "$ref": "#/components/schemas/Pet" } } } },
            },
        }))
        .unwrap()
    }

    fn tools(wanted: Wanted<'_>) -> (Vec<Described>, Vec<(String, String)>) {
        let document = document();
        document.operations(&wanted, &document.base_path(), None)
    }

    #[test]
    fn operations_become_tools_with_the_schemas_of_their_arguments() {
        let (tools, problems) = tools(Wanted::default());
        let names: Vec<_> = tools.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(names, ["getPet", "delete_pets_petId", "create_pet"]);
        assert_eq!(problems, [("photo".to_owned(), "its body is neither JSON nor a form".to_owned())]);
        let get = &tools[0];
        let input = &get.input;
        assert_eq!(input["required"], json!(["X-Tenant", "petId"]));
        assert_eq!(input["properties"]["petId"], json!({ "type": "integer", "exclusiveMinimum": 0 }));
        assert_eq!(input["properties"]["X-Tenant"]["type"], json!(["string", "null"]));
        assert_eq!(input["properties"]["fields"]["description"], "Which");
        assert_eq!(input["properties"].get("Authorization"), None, "who calls is not for a model to say");
        assert_eq!(get.output.as_ref().unwrap()["properties"]["name"], json!({ "type": "string" }));
        let call = get.operation.request(Some(&json!({ "petId": 7, "X-Tenant": "a", "fields": ["a", "b"] }))).unwrap();
        assert_eq!(call.target, "/v1/pets/7?fields=a&fields=b");
        assert_eq!(tools[2].input["required"], json!(["body"]));
    }

    #[test]
    fn a_schema_that_holds_itself_ends() {
        let (tools, _) = tools(Wanted::default());
        let text = tools[2].input.to_string();
        assert!(text.len() < 20_000 && text.contains("parent"), "{}", text.len());
    }

    #[test]
    fn operations_are_chosen_by_name_and_tag() {
        let names = |operations: &[&str], tags: &[&str]| {
            let (operations, tags): (Vec<String>, Vec<String>) =
                (operations.iter().map(|s| s.to_string()).collect(), tags.iter().map(|s| s.to_string()).collect());
            let (tools, problems) = tools(Wanted { operations: &operations, tags: &tags });
            (
                tools.into_iter().map(|tool| tool.name).collect::<Vec<_>>(),
                problems.into_iter().map(|(name, _)| name).collect::<Vec<_>>(),
            )
        };
        assert_eq!(names(&["getPet"], &[]), (vec!["getPet".to_owned()], vec![]));
        assert_eq!(names(&[], &["admin"]), (vec!["delete_pets_petId".to_owned()], vec![]));
        assert_eq!(names(&["absent"], &[]), (vec![], vec!["absent".to_owned()]));
    }

    #[test]
    fn what_is_no_document_of_openapi_3_is_refused() {
        for wrong in [json!({}), json!({ "swagger": "2.0" }), json!([]), json!({ "openapi": 3 })] {
            assert!(Document::new(wrong).is_err());
        }
    }
}
