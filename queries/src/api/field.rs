//! One value of an answer, the same in every format.
//!
//! Sums are text, because JSON's readers make doubles of numbers and cents would be lost; counts are numbers.

use std::fmt::Write;

use engine::aggregate::MeasureValue;
use engine::aggregate::accumulator::write_decimal;
use engine::change::{ColumnType, Numeric, Value};
use engine::materialization::{Bucket, Calendar};
use serde::{Serialize, Serializer};

use crate::query::OutputType;
use crate::query::instant::{format_date, format_instant, format_local};

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// Nothing.
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A number without fraction.
    Integer(i64),
    /// A double that is a number.
    Float(f64),
    /// Anything else.
    Text(String),
}

impl Serialize for Field {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Field::Null => serializer.serialize_none(),
            Field::Bool(v) => serializer.serialize_bool(*v),
            Field::Integer(v) => serializer.serialize_i64(*v),
            Field::Float(v) => serializer.serialize_f64(*v),
            Field::Text(v) => serializer.serialize_str(v),
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
                i64::try_from(v).map_or_else(|_| Field::Text(v.to_string()), Field::Integer)
            }
            (MeasureValue::Float(v), _) if v.is_finite() => Field::Float(v),
            (other, _) => Field::Text(other.to_string()),
        }
    }

    /// The time of a row.
    #[must_use]
    pub fn of_bucket(bucket: Bucket, calendar: &Calendar) -> Field {
        match bucket {
            Bucket::NULL => Field::Null,
            Bucket::INFINITY => Field::Text("infinity".to_owned()),
            Bucket::NEGATIVE_INFINITY => Field::Text("-infinity".to_owned()),
            Bucket(start) => Field::Text(format_instant(start, calendar)),
        }
    }

    /// A dimension's value. Instants are given in the calendar's zone.
    #[must_use]
    pub fn of_dimension(value: Value, column_type: &ColumnType, calendar: &Calendar) -> Field {
        Field::Text(match value {
            Value::Null => return Field::Null,
            Value::Bool(v) => return Field::Bool(v),
            Value::Int(v) => return Field::Integer(v),
            Value::Float(v) if v.is_finite() => return Field::Float(v),
            Value::Float(v) => MeasureValue::Float(v).to_string(),
            Value::Numeric(v) => numeric(v),
            Value::Text(v) => v,
            Value::Uuid(v) => uuid(v),
            Value::Date(i32::MAX) | Value::Timestamp(i64::MAX) => "infinity".to_owned(),
            Value::Date(i32::MIN) | Value::Timestamp(i64::MIN) => "-infinity".to_owned(),
            Value::Date(v) => format_date(i64::from(v)),
            Value::Timestamp(v) if *column_type == ColumnType::Timestamp => format_local(v),
            Value::Timestamp(v) => format_instant(v, calendar),
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
            Field::Null => Ok(()),
            Field::Bool(v) => write!(into, "{v}"),
            Field::Integer(v) => write!(into, "{v}"),
            Field::Float(v) => write!(into, "{v}"),
            Field::Text(text) if text.is_empty() || text.contains([',', '"', '\n', '\r']) => {
                write!(into, "\"{}\"", text.replace('"', "\"\""))
            }
            Field::Text(text) => into.write_str(text),
        };
    }
}

fn numeric(value: Numeric) -> String {
    let mut text = String::new();
    match value {
        Numeric::Finite { mantissa, scale } => {
            let _ = write_decimal(&mut text, mantissa, scale);
        }
        Numeric::NaN => text.push_str("NaN"),
        Numeric::PositiveInfinity => text.push_str("Infinity"),
        Numeric::NegativeInfinity => text.push_str("-Infinity"),
    }
    text
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
    use super::*;

    #[test]
    fn sums_are_text_and_counts_are_numbers() {
        let measure = Field::of_measure;
        assert_eq!(measure(MeasureValue::Integer(7), OutputType::Count), Field::Integer(7));
        assert_eq!(measure(MeasureValue::Integer(7), OutputType::Decimal(0)), Field::Text("7".to_owned()));
        let amount = MeasureValue::Decimal { mantissa: -1205, scale: 2 };
        assert_eq!(measure(amount, OutputType::Decimal(2)), Field::Text("-12.05".to_owned()));
        assert_eq!(measure(MeasureValue::Float(0.5), OutputType::Float), Field::Float(0.5));
        assert_eq!(measure(MeasureValue::Float(f64::NAN), OutputType::Float), Field::Text("NaN".to_owned()));
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
        assert_eq!(csv(Field::Text("12.50".to_owned())), "12.50");
    }

    #[test]
    fn dimensions_are_written_as_postgres_users_know_them() {
        let text = |value, column_type| Field::of_dimension(value, &column_type, &Calendar::UTC);
        let expect = |text: &str| Field::Text(text.to_owned());
        let bytes = [0xa0, 0xee, 0xbc, 0x99, 0x9c, 0x0b, 0x4e, 0xf8, 0xbb, 0x6d, 0x6b, 0xb9, 0xbd, 0x38, 0x0a, 0x11];
        assert_eq!(text(Value::Uuid(bytes), ColumnType::Uuid), expect("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"));
        assert_eq!(text(Value::Date(0), ColumnType::Date), expect("2000-01-01"));
        assert_eq!(text(Value::Timestamp(0), ColumnType::Timestamp), expect("2000-01-01T00:00:00"));
        assert_eq!(text(Value::Timestamp(0), ColumnType::TimestampTz), expect("2000-01-01T00:00:00Z"));
        assert_eq!(text(Value::Int(5), ColumnType::Int8), Field::Integer(5));
        assert_eq!(text(Value::Null, ColumnType::Int8), Field::Null);
    }
}
