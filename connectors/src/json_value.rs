//! JSON -> one value of a column, by the column's declared type: integers and floats as numbers, booleans as booleans,
//! everything else as strings. A `numeric` is never read from a JSON number, which may have lost cents.

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use engine::change::{ColumnType, Numeric, ValueRef};
use serde_json::Value;

/// A value of this type; `None` where the JSON is none.
pub(crate) fn value<'a>(column_type: &ColumnType, json: &'a Value) -> Option<ValueRef<'a>> {
    if json.is_null() {
        return Some(ValueRef::Null);
    }
    Some(match column_type {
        ColumnType::Int2 => ValueRef::Int(i16::try_from(json.as_i64()?).ok()?.into()),
        ColumnType::Int4 => ValueRef::Int(i32::try_from(json.as_i64()?).ok()?.into()),
        ColumnType::Int8 => ValueRef::Int(json.as_i64()?),
        ColumnType::Numeric { scale } => ValueRef::Numeric(numeric(json.as_str()?, *scale)?),
        // As Postgres would hold it: a `real` has 24 bits.
        ColumnType::Float4 => ValueRef::Float((float(json)? as f32).into()),
        ColumnType::Float8 => ValueRef::Float(float(json)?),
        ColumnType::Text => ValueRef::Text(json.as_str()?),
        ColumnType::Char => ValueRef::Text(json.as_str()?.trim_end_matches(' ')),
        ColumnType::Bool => ValueRef::Bool(json.as_bool()?),
        ColumnType::Uuid => ValueRef::Uuid(uuid(json.as_str()?)?),
        ColumnType::Date => ValueRef::Date(date(json.as_str()?)?),
        ColumnType::Timestamp => ValueRef::Timestamp(timestamp(json.as_str()?)?),
        ColumnType::TimestampTz => ValueRef::Timestamp(timestamp_tz(json.as_str()?)?),
        ColumnType::Unsupported(_) => ValueRef::Opaque(json.as_str()?.as_bytes()),
        ColumnType::Gone(_) => ValueRef::Null,
    })
}

/// Digits with at most one point. A declared scale is filled up, as Postgres does; more digits than declared are refused.
pub(crate) fn numeric(text: &str, declared: Option<u16>) -> Option<Numeric> {
    match text {
        "NaN" => return Some(Numeric::NaN),
        "Infinity" | "infinity" => return Some(Numeric::PositiveInfinity),
        "-Infinity" | "-infinity" => return Some(Numeric::NegativeInfinity),
        _ => {}
    }
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut mantissa = 0i128;
    for digit in whole.bytes().chain(fraction.bytes()) {
        let digit = char::from(digit).to_digit(10)?;
        mantissa = mantissa.checked_mul(10)?.checked_add(digit.into())?;
    }
    if whole.is_empty() {
        return None;
    }
    let scale = u16::try_from(fraction.len()).ok()?;
    let mantissa = if negative { -mantissa } else { mantissa };
    match declared {
        Some(declared) => {
            Some(Numeric::Finite { mantissa: Numeric::rescale(mantissa, scale, declared)?, scale: declared })
        }
        None => Some(Numeric::Finite { mantissa, scale }),
    }
}

fn float(json: &Value) -> Option<f64> {
    match json.as_str() {
        Some("NaN") => Some(f64::NAN),
        Some("Infinity" | "infinity") => Some(f64::INFINITY),
        Some("-Infinity" | "-infinity") => Some(f64::NEG_INFINITY),
        Some(_) => None,
        None => json.as_f64(),
    }
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let mut value = 0u128;
    let mut digits = 0;
    for (at, c) in text.bytes().enumerate() {
        if matches!(at, 8 | 13 | 18 | 23) {
            if c != b'-' {
                return None;
            }
        } else {
            value = value << 4 | u128::from(char::from(c).to_digit(16)?);
            digits += 1;
        }
    }
    (digits == 32).then(|| value.to_be_bytes())
}

/// 2000-01-01 in days since 1970.
pub(crate) const EPOCH_DAYS_AFTER_1970: i64 = 10_957;
/// 2000-01-01 in microseconds since 1970.
pub(crate) const EPOCH_MICROS_AFTER_1970: i64 = EPOCH_DAYS_AFTER_1970 * 86_400_000_000;

/// Days since 2000-01-01.
pub(crate) fn date(text: &str) -> Option<i32> {
    match text {
        "infinity" => Some(i32::MAX),
        "-infinity" => Some(i32::MIN),
        _ => {
            let date: NaiveDate = text.parse().ok()?;
            let days = date.signed_duration_since(NaiveDate::default()).num_days();
            i32::try_from(days - EPOCH_DAYS_AFTER_1970).ok()
        }
    }
}

fn infinite(text: &str) -> Option<i64> {
    match text {
        "infinity" => Some(i64::MAX),
        "-infinity" => Some(i64::MIN),
        _ => None,
    }
}

/// Microseconds since 2000-01-01, without zone.
pub(crate) fn timestamp(text: &str) -> Option<i64> {
    infinite(text).or_else(|| {
        let time: NaiveDateTime = text.parse().ok()?;
        time.and_utc().timestamp_micros().checked_sub(EPOCH_MICROS_AFTER_1970)
    })
}

/// Microseconds since 2000-01-01 UTC.
pub(crate) fn timestamp_tz(text: &str) -> Option<i64> {
    infinite(text).or_else(|| {
        // RFC 3339, and years of more than four digits, which it has not.
        let time = DateTime::parse_from_rfc3339(text).or_else(|_| text.parse()).ok()?;
        time.timestamp_micros().checked_sub(EPOCH_MICROS_AFTER_1970)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numerics_read_back(mantissa in -1_000_000_000i64..1_000_000_000, scale in 0u16..9) {
            let unit = 10i64.pow(scale.into());
            let sign = if mantissa < 0 { "-" } else { "" };
            let (whole, fraction) = (mantissa.abs() / unit, mantissa.abs() % unit);
            let text = if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction:0width$}", width = scale.into()) };
            prop_assert_eq!(numeric(&text, None), Some(Numeric::Finite { mantissa: mantissa.into(), scale }));
        }

        /// A parser that is fast and nearly right takes some for their neighbour.
        #[test]
        fn doubles_are_those_that_were_written(
            number in prop_oneof![any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |v| v.is_finite()), -1e9..1e9f64],
        ) {
            let json: Option<Value> = serde_json::from_str(&format!("{number:?}")).ok();
            let read = json.as_ref().and_then(|json| value(&ColumnType::Float8, json));
            prop_assert_eq!(read, Some(ValueRef::Float(number)));
        }
    }
}
