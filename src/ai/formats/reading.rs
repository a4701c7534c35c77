//! Reading JSON as callers and providers really write it: objects whose unknown members are kept aside, nulls for what is
//! missing, numbers in any form.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::ai::chat::{Failure, FailureKind};

/// Declares an object of a caller's request. Every member may be missing or null; those it does not name are kept in `rest`,
/// so that they can be carried or reported.
macro_rules! wire_object {
    ($(#[$meta:meta])* struct $name:ident<$life:lifetime> { $($key:literal => $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Default)]
        struct $name<$life> {
            $($field: Option<$type>,)*
            rest: serde_json::Map<String, serde_json::Value>,
            borrowed: std::marker::PhantomData<&$life ()>,
        }

        impl<'de: $life, $life> serde::Deserialize<'de> for $name<$life> {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Members<$life>(std::marker::PhantomData<&$life ()>);
                impl<'de: $life, $life> serde::de::Visitor<'de> for Members<$life> {
                    type Value = $name<$life>;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                        let mut object = $name::default();
                        while let Some(key) = map.next_key::<$crate::ai::formats::reading::Text<'de>>()? {
                            match &*key {
                                $($key => object.$field = map.next_value()?,)*
                                _ => {
                                    object.rest.insert(key.into_owned(), map.next_value()?);
                                }
                            }
                        }
                        Ok(object)
                    }
                }
                deserializer.deserialize_map(Members(std::marker::PhantomData))
            }
        }
    };
}
pub(super) use wire_object;

/// A text that is borrowed where it holds no escapes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyText;
        impl<'de> Visitor<'de> for AnyText {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
            fn visit_string<E>(self, text: String) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text)))
            }
        }
        deserializer.deserialize_str(AnyText)
    }
}

impl Text<'_> {
    pub fn into_owned(self) -> String {
        self.0.into_owned()
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// A whole number, perhaps written as `10.0`. Anything else is an error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Whole(pub i64);

impl Whole {
    /// `None` if it is negative.
    pub fn count(self) -> Option<u64> {
        u64::try_from(self.0).ok()
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Number::deserialize(deserializer)? {
            Number(Some(number)) if number.fract() == 0.0 && number.abs() < 9.2e18 => Ok(Whole(number as i64)),
            _ => Err(D::Error::custom("a whole number is expected")),
        }
    }
}

/// How many of something a provider reports: 0 for whatever is no number above it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Count(pub u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A cast to an integer saturates, and makes 0 of what is no number.
        Ok(Count(Number::deserialize(deserializer)?.0.map_or(0, |number| number as u64)))
    }
}

/// Any number; `None` for anything else.
struct Number(Option<f64>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyNumber;
        impl<'de> Visitor<'de> for AnyNumber {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }
            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number(Some(number as f64)))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Number, E> {
                Ok(Number(Some(number as f64)))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Number, E> {
                Ok(Number(Some(number)))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Number, E> {
                Ok(Number(None))
            }
            fn visit_str<E>(self, text: &str) -> Result<Number, E> {
                Ok(Number(text.parse().ok()))
            }
            fn visit_unit<E>(self) -> Result<Number, E> {
                Ok(Number(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Number, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Number(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Number, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Number(None))
            }
        }
        deserializer.deserialize_any(AnyNumber)
    }
}

/// A text, or a list.
#[derive(Debug, Clone, PartialEq)]
pub enum TextOr<'a, T> {
    Text(Text<'a>),
    List(Vec<T>),
}

impl<'de: 'a, 'a, T: Deserialize<'de>> Deserialize<'de> for TextOr<'a, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<'a, T>(std::marker::PhantomData<(&'a (), T)>);
        impl<'de: 'a, 'a, T: Deserialize<'de>> Visitor<'de> for Either<'a, T> {
            type Value = TextOr<'a, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(Text(Cow::Borrowed(text))))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(Text(Cow::Owned(text.to_owned()))))
            }
            fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
                Ok(TextOr::Text(Text(Cow::Owned(text))))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(TextOr::List)
            }
        }
        deserializer.deserialize_any(Either(std::marker::PhantomData))
    }
}

/// A document that some write as JSON inside a text, and others as JSON.
#[derive(Debug, Deserialize)]
pub struct Embedded<'a>(#[serde(borrow)] &'a RawValue);

impl Embedded<'_> {
    /// The document as text; nothing for null.
    pub fn into_text(self) -> String {
        match self.0.get() {
            "null" => String::new(),
            text if text.starts_with('"') => serde_json::from_str(text).unwrap_or_default(),
            document => document.to_owned(),
        }
    }
}

/// A caller's request as `T`. What is wrong is told with its path.
pub fn request<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Failure> {
    // Only whoever is refused pays for knowing the path.
    serde_json::from_slice(body).map_err(|_| explain::<T>(body))
}

/// What is wrong and where. Only whoever is refused pays for knowing the path.
fn explain<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Failure {
    let mut reader = serde_json::Deserializer::from_slice(body);
    match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Err(error) if error.path().iter().next().is_some() => {
            Failure::invalid(error.path().to_string(), error.inner().to_string())
        }
        Err(error) => Failure::new(FailureKind::InvalidRequest, error.inner().to_string()),
        Ok(_) => Failure::new(FailureKind::InvalidRequest, "the body holds more than one JSON document"),
    }
}

/// Whether a member says nothing: callers replay answers with all their empty members.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

/// A text among members that are of any type.
pub fn take_text(members: &mut Map<String, Value>, name: &str) -> Option<String> {
    match members.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}
