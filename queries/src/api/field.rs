//! One value of an answer, the same in every format.
//!
//! Sums are text, because JSON's readers make doubles of numbers and cents would be lost; counts are numbers.

use std::fmt::{self, Write};

use engine::aggregate::MeasureValue;
use engine::aggregate::accumulator::write_decimal;
use engine::change::{ColumnType, Numeric, Value};
use engine::materialization::{Bucket, Calendar};
use serde::{Serialize, Serializer};

use crate::query::OutputType;
use crate::query::instant::{format_at_offset, format_date, format_local};

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// Nothing.
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A number without fraction.
    Integer(i64),
    /// A double.
    Float(f64),
    /// An exact decimal: `mantissa * 10^-scale`.
    Decimal {
        /// All digits.
        mantissa: i128,
        /// Digits after the point.
        scale: u16,
    },
    /// A day, from 2000-01-01.
    Date(i32),
    /// An instant, in microseconds since 2000-01-01, as a zone's clock reads it.
    Instant {
        /// The instant.
        us: i64,
        /// Seconds by which that clock is ahead of UTC.
        offset_s: i64,
    },
    /// A clock reading of which no zone is known, in microseconds since 2000-01-01.
    LocalTime(i64),
    /// Text, and what a column's type has no number for: infinite times, decimals that are NaN or infinite.
    Text(String),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Null => Ok(()),
            Field::Bool(v) => write!(f, "{v}"),
            Field::Integer(v) => write!(f, "{v}"),
            Field::Float(v) => MeasureValue::Float(*v).fmt(f),
            Field::Decimal { mantissa, scale } => write_decimal(f, *mantissa, *scale),
            Field::Date(day) => f.write_str(&format_date(i64::from(*day))),
            Field::Instant { us, offset_s } => f.write_str(&format_at_offset(*us, *offset_s)),
            Field::LocalTime(us) => f.write_str(&format_local(*us)),
            Field::Text(text) => f.write_str(text),
        }
    }
}

/// Largest integer up to which a double holds every one.
const MAX_NUMBER: u64 = (1 << 53) - 1;

impl Serialize for Field {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Field::Null => serializer.serialize_none(),
            Field::Bool(v) => serializer.serialize_bool(*v),
            // Beyond it, who reads numbers as doubles takes one value for its neighbour.
            Field::Integer(v) if v.unsigned_abs() <= MAX_NUMBER => serializer.serialize_i64(*v),
            Field::Float(v) if v.is_finite() => serializer.serialize_f64(*v),
            Field::Text(v) => serializer.serialize_str(v),
            other => serializer.collect_str(other),
        }
    }
}

impl Field {
    /// A finished measure.
    #[must_use]
    pub fn of_measure(value: MeasureValue, output_type: OutputType) -> Field {
        match (value, output_type) {
            (MeasureValue::Null, _) => Field::Null,
            (MeasureValue::Integer(v), OutputType::Count) => {
                i64::try_from(v).map_or(Field::Decimal { mantissa: v, scale: 0 }, Field::Integer)
            }
            (MeasureValue::Integer(mantissa), _) => Field::Decimal { mantissa, scale: 0 },
            (MeasureValue::Decimal { mantissa, scale }, _) => Field::Decimal { mantissa, scale },
            (MeasureValue::Float(v), _) => Field::Float(v),
            (MeasureValue::Special(_), _) => Field::Text(value.to_string()),
        }
    }

    /// The time of a row.
    #[must_use]
    pub fn of_bucket(bucket: Bucket, calendar: &Calendar) -> Field {
        match bucket {
            Bucket::NULL => Field::Null,
            Bucket::INFINITY => Field::Text("infinity".to_owned()),
            Bucket::NEGATIVE_INFINITY => Field::Text("-infinity".to_owned()),
            Bucket(start) => Field::of_instant(start, calendar),
        }
    }

    /// A dimension's value. Instants are given in the calendar's zone.
    #[must_use]
    pub fn of_dimension(value: Value, column_type: &ColumnType, calendar: &Calendar) -> Field {
        match value {
            Value::Null => Field::Null,
            Value::Bool(v) => Field::Bool(v),
            Value::Int(v) => Field::Integer(v),
            Value::Float(v) if *column_type == ColumnType::Float4 => Field::Float(of_single(v)),
            Value::Float(v) => Field::Float(v),
            Value::Numeric(v) => Field::of_numeric(v),
            Value::Text(v) => Field::Text(v),
            Value::Uuid(v) => Field::Text(uuid(v)),
            Value::Date(i32::MAX) | Value::Timestamp(i64::MAX) => Field::Text("infinity".to_owned()),
            Value::Date(i32::MIN) | Value::Timestamp(i64::MIN) => Field::Text("-infinity".to_owned()),
            Value::Date(v) => Field::Date(v),
            Value::Timestamp(v) if *column_type == ColumnType::Timestamp => Field::LocalTime(v),
            Value::Timestamp(v) => Field::of_instant(v, calendar),
        }
    }

    fn of_instant(us: i64, calendar: &Calendar) -> Field {
        Field::Instant { us, offset_s: calendar.offset_s(us) }
    }

    fn of_numeric(value: Numeric) -> Field {
        Field::Text(match value {
            Numeric::Finite { mantissa, scale } => return Field::Decimal { mantissa, scale },
            Numeric::NaN => "NaN".to_owned(),
            Numeric::PositiveInfinity => "Infinity".to_owned(),
            Numeric::NegativeInfinity => "-Infinity".to_owned(),
        })
    }

    /// The same for a spreadsheet: a text that it would run as a formula begins with an apostrophe (OWASP, "CSV injection").
    #[must_use]
    pub fn defused(self) -> Field {
        match self {
            Field::Text(text) if text.starts_with(['=', '+', '-', '@', '\t', '\r']) => Field::Text(format!("'{text}")),
            other => other,
        }
    }

    /// Appends it as a field of CSV (RFC 4180); NULL is nothing at all, the empty text is quoted.
    pub fn write_csv(&self, into: &mut String) {
        // Writing to a String cannot fail.
        let _ = match self {
            Field::Text(text) if text.is_empty() || text.contains([',', '"', '\n', '\r']) => {
                write!(into, "\"{}\"", text.replace('"', "\"\""))
            }
            other => write!(into, "{other}"),
        };
    }
}

/// The double that is written as Postgres writes a `real`: 5.8 and not 5.800000190734863, which is the same to who reads it as one.
fn of_single(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

fn uuid(bytes: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn json(field: &Field) -> serde_json::Value {
        serde_json::to_value(field).unwrap()
    }

    #[test]
    fn sums_are_text_and_counts_are_numbers() {
        let measure = |value, output_type| json(&Field::of_measure(value, output_type));
        assert_eq!(measure(MeasureValue::Integer(7), OutputType::Count), json!(7));
        assert_eq!(measure(MeasureValue::Integer(7), OutputType::Decimal(0)), json!("7"));
        let amount = MeasureValue::Decimal { mantissa: -1205, scale: 2 };
        assert_eq!(measure(amount, OutputType::Decimal(2)), json!("-12.05"));
        assert_eq!(measure(MeasureValue::Float(0.5), OutputType::Float), json!(0.5));
        assert_eq!(measure(MeasureValue::Float(f64::NAN), OutputType::Float), json!("NaN"));
        assert_eq!(measure(MeasureValue::Float(f64::NEG_INFINITY), OutputType::Float), json!("-Infinity"));
    }

    #[test]
    fn a_real_is_written_as_postgres_writes_it() {
        let real = |text: &str| Value::Float(f64::from(text.parse::<f32>().unwrap()));
        for text in ["5.8", "-0.1", "16777216", "3.4028235e38", "1e-45", "NaN"] {
            let field = Field::of_dimension(real(text), &ColumnType::Float4, &Calendar::UTC);
            let written: f64 = field.to_string().parse().unwrap();
            assert!(written.to_string() == text.parse::<f64>().unwrap().to_string(), "{text}: {field}");
        }
        let double = Field::of_dimension(real("5.8"), &ColumnType::Float8, &Calendar::UTC);
        assert_eq!(double, Field::Float(5.800000190734863));
    }

    #[test]
    fn csv_quotes_only_what_needs_it_and_tells_null_from_empty() {
        let csv = |field: Field| {
            let mut text = String::new();
            field.write_csv(&mut text);
            text
        };
        assert_eq!(csv(Field::Null), "");
        assert_eq!(csv(Field::Text(String::new())), "\"\"");
        assert_eq!(csv(Field::Text("say \"hi\", you".to_owned())), "\"say \"\"hi\"\", you\"");
        assert_eq!(csv(Field::Decimal { mantissa: 1250, scale: 2 }), "12.50");
    }

    #[test]
    fn a_text_that_a_spreadsheet_would_run_is_defused_and_a_number_is_not() {
        let text = |text: &str| Field::Text(text.to_owned());
        for formula in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"] {
            assert_eq!(text(formula).defused(), text(&format!("'{formula}")));
        }
        for harmless in ["", "a=1", " =1", "1-1"] {
            assert_eq!(text(harmless).defused(), text(harmless));
        }
        let number = Field::Decimal { mantissa: -5, scale: 2 };
        assert_eq!(number.clone().defused(), number);
    }

    #[test]
    fn dimensions_are_written_as_postgres_users_know_them() {
        let text = |value, column_type| json(&Field::of_dimension(value, &column_type, &Calendar::UTC));
        let bytes = [0xa0, 0xee, 0xbc, 0x99, 0x9c, 0x0b, 0x4e, 0xf8, 0xbb, 0x6d, 0x6b, 0xb9, 0xbd, 0x38, 0x0a, 0x11];
        assert_eq!(text(Value::Uuid(bytes), ColumnType::Uuid), json!("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"));
        assert_eq!(text(Value::Date(0), ColumnType::Date), json!("2000-01-01"));
        assert_eq!(text(Value::Date(i32::MIN), ColumnType::Date), json!("-infinity"));
        assert_eq!(text(Value::Timestamp(0), ColumnType::Timestamp), json!("2000-01-01T00:00:00"));
        assert_eq!(text(Value::Timestamp(0), ColumnType::TimestampTz), json!("2000-01-01T00:00:00Z"));
        assert_eq!(text(Value::Int(5), ColumnType::Int8), json!(5));
        assert_eq!(text(Value::Null, ColumnType::Int8), json!(null));
    }
}
