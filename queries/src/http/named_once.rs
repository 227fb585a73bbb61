//! Objects in JSON, each name in them once. The surprise: JSON lets a name come twice, and most readers keep the last; a condition
//! written twice would be answered for the second alone.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Any value; fails where an object in it, however deep, has a name twice.
pub(super) struct NamedOnce;

impl<'de> Deserialize<'de> for NamedOnce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Walk)
    }
}

struct Walk;

impl<'de> Visitor<'de> for Walk {
    type Value = NamedOnce;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value in JSON")
    }

    fn visit_unit<E>(self) -> Result<NamedOnce, E> {
        Ok(NamedOnce)
    }

    fn visit_bool<E>(self, _: bool) -> Result<NamedOnce, E> {
        Ok(NamedOnce)
    }

    fn visit_i64<E>(self, _: i64) -> Result<NamedOnce, E> {
        Ok(NamedOnce)
    }

    fn visit_u64<E>(self, _: u64) -> Result<NamedOnce, E> {
        Ok(NamedOnce)
    }

    fn visit_f64<E>(self, _: f64) -> Result<NamedOnce, E> {
        Ok(NamedOnce)
    }

    fn visit_str<E>(self, _: &str) -> Result<NamedOnce, E> {
        Ok(NamedOnce)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<NamedOnce, A::Error> {
        while items.next_element::<NamedOnce>()?.is_some() {}
        Ok(NamedOnce)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<NamedOnce, A::Error> {
        let mut names = BTreeSet::new();
        while let Some(name) = fields.next_key::<String>()? {
            fields.next_value::<NamedOnce>()?;
            if let Some(twice) = names.replace(name) {
                return Err(A::Error::custom(format!("duplicate field `{twice}`")));
            }
        }
        Ok(NamedOnce)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::NamedOnce;

    fn read(text: &str) -> Result<(), String> {
        serde_json::from_str::<NamedOnce>(text).map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_comes_once_in_an_object_however_deep() {
        let twice = "duplicate field `a`";
        for text in [r#"{"a":1,"a":1}"#, r#"[{"b":{"a":[],"c":{"a":0},"a":null}}]"#, r#"{"a":"x","\u0061":"y"}"#] {
            assert!(read(text).unwrap_err().starts_with(twice), "{text}");
        }
        for text in [r#"{"a":{"a":-1.5e300},"b":{"a":true}}"#, r#"[{"a":18446744073709551615},{"a":-9}]"#, "null"] {
            assert_eq!(read(text), Ok(()), "{text}");
        }
        assert!(read(r#"{"a":}"#).unwrap_err().contains("expected value"));
    }
}
