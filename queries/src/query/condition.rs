//! `where` of a question: dimensions fixed to one value each, as `currency:EUR,merchant_id:42,note:null`.
//!
//! Values may be quoted (`'it''s, here'`). Quoted `'null'` is the text, bare `null` is NULL. A value that the dimension's
//! type cannot hold is refused: it would match nothing, and nothing looks like an answer.

use engine::change::{ColumnType, Value};
use engine::materialization::filter::constant_of;
use engine::materialization::plan::DimensionPlan;

use super::refusal::QueryError;
use super::request::MAX_LISTED;
use super::suggestion::did_you_mean;

/// Reads one `where` parameter into the values that dimensions are fixed to, by position.
pub fn parse_into(text: &str, dimensions: &[DimensionPlan], fixed: &mut [Option<Value>]) -> Result<(), QueryError> {
    pairs(text)?.iter().try_for_each(|(name, value)| fix(name, value.as_deref(), dimensions, fixed))
}

/// The names and values in one `where` parameter; `None` is NULL.
pub fn pairs(text: &str) -> Result<Vec<(String, Option<String>)>, QueryError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        if pairs.len() == MAX_LISTED {
            return Err(QueryError::too_many("where"));
        }
        let (name, value) = rest.split_once(':').ok_or_else(|| {
            QueryError::malformed("where", format!("{rest:?} is not of the form dimension:value"))
                .hint("for example where=currency:'EUR',merchant_id:42")
        })?;
        let name = name.trim();
        let (value, quoted, after) = take_value(value)?;
        rest = after.trim_start();
        // Bare null is NULL; quoted it is a text.
        let value = Some(value).filter(|value| quoted || !value.eq_ignore_ascii_case("null"));
        pairs.push((name.to_owned(), value));
    }
    Ok(pairs)
}

/// Fixes one dimension to a value as text; `None` is NULL.
pub fn fix(
    name: &str,
    value: Option<&str>,
    dimensions: &[DimensionPlan],
    fixed: &mut [Option<Value>],
) -> Result<(), QueryError> {
    let position = dimensions.iter().position(|dimension| dimension.name == name);
    let found = position.and_then(|at| Some((dimensions.get(at)?, fixed.get_mut(at)?)));
    let Some((dimension, slot)) = found else {
        return Err(QueryError::refused("where", "unknown_dimension", format!("there is no dimension {name:?}"))
            .hint(did_you_mean(name, dimensions.iter().map(|d| d.name.as_str()))));
    };
    let value = value.map_or(Ok(Value::Null), |text| typed(text, dimension))?;
    if slot.as_ref().is_some_and(|other| *other != value) {
        return Err(QueryError::refused("where", "contradiction", format!("{name} cannot have two values at once"))
            .hint("ask twice, or group by it"));
    }
    *slot = Some(value);
    Ok(())
}

/// The value at the beginning, whether it was quoted, and what follows its comma.
fn take_value(text: &str) -> Result<(String, bool, &str), QueryError> {
    let text = text.trim_start();
    let Some(mut quoted) = text.strip_prefix('\'') else {
        let (value, rest) = text.split_once(',').unwrap_or((text, ""));
        return Ok((value.trim_end().to_owned(), false, rest));
    };
    let mut value = String::new();
    loop {
        let Some((part, after)) = quoted.split_once('\'') else {
            return Err(QueryError::malformed("where", "a quote is not closed"));
        };
        value.push_str(part);
        if let Some(again) = after.strip_prefix('\'') {
            value.push('\'');
            quoted = again;
            continue;
        }
        let after = after.trim_start();
        return match after.strip_prefix(',') {
            Some(rest) => Ok((value, true, rest)),
            None if after.is_empty() => Ok((value, true, after)),
            None => Err(QueryError::malformed("where", format!("a comma is missing before {after:?}"))),
        };
    }
}

fn typed(text: &str, dimension: &DimensionPlan) -> Result<Value, QueryError> {
    let integer = matches!(dimension.column_type, ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8);
    // Text needs no quotes here: there is nothing else it could be.
    constant_of(text, true, &dimension.column_type)
        .filter(|value| !integer || matches!(value, Value::Int(_)))
        .ok_or_else(|| {
            let (name, of) = (&dimension.name, dimension.column_type.name());
            QueryError::refused("where", "bad_value", format!("{text:?} is not a value of {name} ({of})"))
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn dimensions() -> Vec<DimensionPlan> {
        [("currency", ColumnType::Text), ("merchant", ColumnType::Int8), ("fee", ColumnType::Numeric { scale: None })]
            .into_iter()
            .enumerate()
            .map(|(column, (name, column_type))| DimensionPlan { name: name.to_owned(), column, column_type })
            .collect()
    }

    fn parse(text: &str) -> Result<Vec<Option<Value>>, QueryError> {
        let mut fixed = vec![None; 3];
        parse_into(text, &dimensions(), &mut fixed).map(|()| fixed)
    }

    #[test]
    fn values_are_bare_or_quoted_and_typed() {
        let text = |v: &str| Some(Value::Text(v.to_owned()));
        assert_eq!(parse("currency:EUR, merchant:42").unwrap(), [text("EUR"), Some(Value::Int(42)), None]);
        assert_eq!(
            parse("currency:'it''s, here',merchant:'7'").unwrap(),
            [text("it's, here"), Some(Value::Int(7)), None]
        );
        assert_eq!(parse("currency:null,merchant:null").unwrap(), [Some(Value::Null), Some(Value::Null), None]);
        assert_eq!(parse("currency:'null'").unwrap(), [text("null"), None, None]);
        assert_eq!(parse("currency:a:b").unwrap(), [text("a:b"), None, None]);
        assert_eq!(parse("").unwrap(), [None, None, None]);
    }

    #[test]
    fn what_could_match_nothing_is_refused() {
        for (wrong, code) in [
            ("merchant:4.5", "bad_value"),
            ("merchant:x", "bad_value"),
            ("fee:x", "bad_value"),
            ("curency:EUR", "unknown_dimension"),
            ("currency:A,currency:B", "contradiction"),
            ("currency", "bad_parameter"),
            ("currency:'A", "bad_parameter"),
            ("currency:'A' merchant:1", "bad_parameter"),
        ] {
            assert_eq!(parse(wrong).unwrap_err().code, code, "{wrong}");
        }
        assert_eq!(parse("curency:EUR").unwrap_err().hint, "did you mean \"currency\"?");
    }
}
