//! A filter where it is attached: a name and settings that only the filter understands.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

/// A filter as it was written: a map with its name as the only key, and its settings below. The settings are decoded by
/// the filter itself.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterEntry {
    pub name: String,
    /// `null` if nothing was written.
    pub config: serde_json::Value,
}

impl<'de> Deserialize<'de> for FilterEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl<'de> Visitor<'de> for Written {
            type Value = FilterEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map with the name of one filter as its key")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FilterEntry, A::Error> {
                let Some((name, config)) = map.next_entry()? else {
                    return Err(A::Error::invalid_length(0, &self));
                };
                match map.next_key::<String>()? {
                    None => Ok(FilterEntry { name, config }),
                    Some(_) => Err(A::Error::invalid_length(2, &self)),
                }
            }
        }

        deserializer.deserialize_map(Written)
    }
}

/// A stand-in: which filters there are is known to the registry, and [`ConfigSchema`](super::ConfigSchema) fills it in.
impl JsonSchema for FilterEntry {
    fn schema_name() -> Cow<'static, str> {
        "FilterEntry".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object" })
    }
}
