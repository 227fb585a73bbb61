//! The body of a request -> its events: JSON values one after another (NDJSON), or one array of them.

use serde_json::Value;

/// One event of a body.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The line it begins on, or its place in the array; from 1.
    pub line: usize,
    /// JSON pointer to it in the body: its place in the array, or nothing.
    pub pointer: String,
    /// The event.
    pub json: Value,
}

/// What is no JSON, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

/// The events before the first thing that is no JSON.
pub fn items(body: &[u8]) -> (Vec<Item>, Option<Malformed>) {
    let mut items = Vec::new();
    let mut stream = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    let (mut line, mut counted) = (1, 0);
    let mut line_at = |offset: usize| {
        let new = body.get(counted..offset).unwrap_or_default();
        line += new.iter().filter(|byte| **byte == b'\n').count();
        counted = counted.max(offset);
        line
    };
    loop {
        let blank = body.get(stream.byte_offset()..).unwrap_or_default().iter().take_while(|b| b.is_ascii_whitespace());
        let begins = stream.byte_offset() + blank.count();
        match stream.next() {
            None => return (items, None),
            Some(Ok(Value::Array(all))) if items.is_empty() => {
                let item = |(at, json)| Item { line: at + 1, pointer: format!("/{at}"), json };
                items.extend(all.into_iter().enumerate().map(item));
            }
            Some(Ok(json)) => items.push(Item { line: line_at(begins), pointer: String::new(), json }),
            Some(Err(error)) => {
                // The parser counts from the beginning of the body.
                return (items, Some(Malformed { line: error.line(), reason: error.to_string() }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_and_arrays_are_counted_from_one() {
        let (all, malformed) = items(b"{\"a\":1}\n\n{\n\"b\":2}\nnull\n");
        let lines: Vec<_> = all.iter().map(|item| (item.line, item.json.clone())).collect();
        assert_eq!(lines, [(1, json!({"a": 1})), (3, json!({"b": 2})), (5, Value::Null)]);
        assert_eq!(malformed, None);

        let (all, _) = items(b"\n[{\"a\":1},\n{\"b\":2}]");
        let places: Vec<_> = all.iter().map(|item| (item.line, item.pointer.as_str())).collect();
        assert_eq!(places, [(1, "/0"), (2, "/1")]);

        let (all, malformed) = items(b"{\"a\":1}\n{\"b\":\n");
        assert_eq!((all.len(), malformed.unwrap().line), (1, 3));
        assert_eq!(items(b" \n"), (vec![], None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in any::<Vec<u8>>()) {
            let _ = items(&body);
        }
    }
}
