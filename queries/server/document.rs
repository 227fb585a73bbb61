//! What a server's document says, read for people.

use serde_json::Value;

use crate::failure::Failure;

/// The document of an answer.
pub fn parse(text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::Failed(format!("the answer cannot be read: {error}")))
}

/// The entries of a list; none where there is no list.
pub fn list<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// A field as people read it; nothing where it is not there or NULL.
pub fn field(value: &Value, name: &str) -> String {
    value.get(name).map_or_else(String::new, plain)
}

/// The entries of a list of plain values, in one line.
pub fn joined(value: &Value, name: &str) -> String {
    list(value, name).map(plain).collect::<Vec<_>>().join(", ")
}

/// A value as people read it.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
