//! Reads what senders of JSON vary although they mean the same: `null` for absent, floats and texts for whole numbers, one
//! thing where a list is meant. For `#[serde(deserialize_with)]` on fields that default.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::ai::chat::Failure;

/// A text, borrowed where it holds no escapes.
pub fn text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cow<'de, str>>, D::Error> {
    struct Text;
    impl<'de> Visitor<'de> for Text {
        type Value = Option<Cow<'de, str>>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }
        fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
            Ok(Some(Cow::Borrowed(text)))
        }
        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Some(Cow::Owned(text.to_owned())))
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    from.deserialize_any(Text)
}

/// A JSON value as it is written; `null` is absent.
pub fn raw<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cow<'de, RawValue>>, D::Error> {
    let raw = <&'de RawValue>::deserialize(from)?;
    Ok((raw.get() != "null").then_some(Cow::Borrowed(raw)))
}

/// A whole number.
pub fn integer<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    Ok(real(from)?.map(|number| number as i64))
}

/// A whole number that is not negative.
pub fn count<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    match real(from)? {
        Some(number) if number < 0.0 => Err(D::Error::custom("a number below zero")),
        number => Ok(number.map(|number| number as u64)),
    }
}

/// A number. Whole numbers up to 2^53 are exact, and nobody has more tokens.
pub fn real<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    struct Real;
    impl Visitor<'_> for Real {
        type Value = Option<f64>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number")
        }
        fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
            Ok(Some(number as f64))
        }
        fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
            Ok(Some(number as f64))
        }
        fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
            Ok(Some(number))
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(Some(number)),
                _ => Err(E::custom("a text that is no number")),
            }
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    from.deserialize_any(Real)
}

/// A value; `null` is the default one.
pub fn default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A list; one object that stands alone is a list of one, as Google's JSON takes it.
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    struct List<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(items))
        }
        fn visit_map<A: MapAccess<'de>>(self, item: A) -> Result<Self::Value, A::Error> {
            Ok(vec![T::deserialize(MapAccessDeserializer::new(item))?])
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }
    }
    from.deserialize_any(List(PhantomData))
}

/// Reads the body of a caller's request. What cannot be read is found a second time, with its path, which costs only those
/// who are wrong.
pub fn request<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        let again = serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_slice(body));
        let (path, message) = match again {
            Err(error) => (error.path().to_string(), error.into_inner().to_string()),
            Ok(_) => (".".to_owned(), error.to_string()),
        };
        match path.as_str() {
            "." => Failure::new(
                crate::ai::chat::FailureKind::InvalidRequest,
                format!("The body cannot be read: {message}"),
            ),
            _ => Failure::invalid(path.clone(), format!("`{path}` cannot be read: {message}")),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize, Default, Debug, PartialEq)]
    #[serde(default)]
    struct Thing<'t> {
        #[serde(borrow, deserialize_with = "text")]
        text: Option<Cow<'t, str>>,
        #[serde(deserialize_with = "count")]
        count: Option<u64>,
        #[serde(deserialize_with = "integer")]
        integer: Option<i64>,
        #[serde(deserialize_with = "list")]
        list: Vec<Thing<'t>>,
        #[serde(deserialize_with = "default")]
        flag: bool,
    }

    fn read(text: &str) -> Result<Thing<'_>, Failure> {
        request(text.as_bytes())
    }

    #[test]
    fn numbers_are_read_however_they_are_written() {
        for text in ["7", "7.0", "\"7\"", "7e0"] {
            let body = format!("{{\"count\":{text},\"integer\":{text}}}");
            let thing = read(&body).unwrap();
            assert_eq!((thing.count, thing.integer), (Some(7), Some(7)), "{text}");
        }
        assert!(read("{\"count\":-1}").is_err());
        assert!(read("{\"count\":\"many\"}").is_err());
        assert_eq!(read("{\"integer\":1e300}").unwrap().integer, Some(i64::MAX));
    }

    #[test]
    fn null_is_absent_and_one_is_a_list_of_one() {
        let nulls = "{\"text\":null,\"count\":null,\"integer\":null,\"list\":null,\"flag\":null}";
        assert_eq!(read(nulls).unwrap(), Thing::default());
        let one = read("{\"list\":{\"text\":\"a\"}}").unwrap();
        assert_eq!(one, read("{\"list\":[{\"text\":\"a\"}]}").unwrap());
    }

    #[test]
    fn what_cannot_be_read_is_named_by_its_path() {
        let failure = read("{\"list\":[{},{\"text\":7}]}").unwrap_err();
        assert_eq!(failure.param.as_deref(), Some("list[1].text"));
        assert!(read("{\"list\":[").unwrap_err().message.contains("EOF"));
        assert!(read("\u{1}").unwrap_err().param.is_none());
    }
}
