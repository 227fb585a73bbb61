//! One value of one column, in each of Debezium's encodings.
//!
//! The declared type says what the value is; how it is written says, first, the field's entry in the envelope's `schema`
//! block, then the source's [`Encoding`], then Debezium's defaults. The surprise is `numeric`: bytes in base64 and digits
//! are both strings, and `"1250"` is either. It is told apart by the declared scale where that is certain, and refused
//! where it is not.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::change::{Column, ColumnType, Numeric, RowWriter, ValueRef};
use serde_json::Value;

use super::{DecimalMode, Encoding, TimestampUnit};
use crate::json_value::{
    EPOCH_DAYS_AFTER_1970, EPOCH_MICROS_AFTER_1970, date, numeric, timestamp, timestamp_tz, value,
};

/// How a field is written, as the `schema` block says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Semantic<'a> {
    /// `int64`, `string`, `bytes`, `struct`
    pub kind: Option<&'a str>,
    /// `io.debezium.time.MicroTimestamp`
    pub name: Option<&'a str>,
    /// Parameter `scale` of a decimal.
    pub scale: Option<i64>,
}

/// Why a value cannot be read.
pub(super) struct Wrong {
    pub code: &'static str,
    pub reason: String,
    pub remedy: String,
}

fn wrong(code: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Wrong {
    Wrong { code, reason: reason.into(), remedy: remedy.into() }
}

/// Appends a value to a row. True where it is the placeholder of a value that was not sent.
pub(super) fn push(
    writer: &mut RowWriter<'_>,
    column: &Column,
    json: &Value,
    semantic: Semantic<'_>,
    encoding: &Encoding,
) -> Result<bool, Wrong> {
    if is_placeholder(json, &encoding.unavailable_value) {
        writer.push(ValueRef::Unchanged);
        return Ok(true);
    }
    if json.is_null() {
        writer.push(ValueRef::Null);
        return Ok(false);
    }
    if let Some(name) = semantic.name.filter(|name| name.starts_with("io.debezium.time.Structured")) {
        return Err(wrong(
            "unsupported_encoding",
            format!("column {} is written as {name}", column.name),
            "set time.precision.mode=adaptive in the Debezium connector",
        ));
    }
    let value = match &column.column_type {
        ColumnType::Numeric { scale } => match decimal(column, json, *scale, semantic, encoding)? {
            Some(numeric) => ValueRef::Numeric(numeric),
            // Wider than 128 bits: kept, never interpreted.
            None => {
                writer.push(ValueRef::Opaque(json.to_string().as_bytes()));
                return Ok(false);
            }
        },
        ColumnType::Date => ValueRef::Date(days(json).ok_or_else(|| mismatch(column, json, semantic))?),
        ColumnType::Timestamp => {
            let micros = match json {
                Value::String(text) => timestamp(text.trim_end_matches('Z')),
                _ => ticks(json, Some(timestamp_unit(column, json, semantic, encoding)?)),
            };
            ValueRef::Timestamp(micros.ok_or_else(|| mismatch(column, json, semantic))?)
        }
        ColumnType::TimestampTz => {
            let micros = match json {
                Value::String(text) => timestamp_tz(text),
                _ => ticks(json, unit(semantic.name)),
            };
            ValueRef::Timestamp(micros.ok_or_else(|| mismatch(column, json, semantic))?)
        }
        ColumnType::Unsupported(_) => {
            match json.as_str() {
                Some(text) => writer.push(ValueRef::Opaque(text.as_bytes())),
                None => writer.push(ValueRef::Opaque(json.to_string().as_bytes())),
            }
            return Ok(false);
        }
        plain => value(plain, json).ok_or_else(|| mismatch(column, json, semantic))?,
    };
    writer.push(value);
    Ok(false)
}

fn mismatch(column: &Column, json: &Value, semantic: Semantic<'_>) -> Wrong {
    let mut shown = json.to_string();
    if let Some((end, _)) = shown.char_indices().nth(80) {
        shown.truncate(end);
    }
    let name = semantic.name.map(|name| format!(" ({name})")).unwrap_or_default();
    wrong(
        "value_mismatch",
        format!("column {} is {} and cannot be {shown}{name}", column.name, column.column_type.name()),
        "describe the column with the type it has in Postgres; use Debezium's own converters",
    )
}

/// A string, its bytes in base64, or an array or map of it: Debezium's forms for different types.
fn is_placeholder(json: &Value, placeholder: &str) -> bool {
    match json {
        Value::String(text) => text == placeholder || *text == STANDARD.encode(placeholder),
        Value::Array(items) => {
            matches!(items.as_slice(), [only] if only.is_string() && is_placeholder(only, placeholder))
                || items.iter().map(Value::as_u64).eq(placeholder.bytes().map(|byte| Some(byte.into())))
        }
        Value::Object(fields) => fields.len() == 1 && fields.contains_key(placeholder),
        _ => false,
    }
}

/// Days as Debezium writes `infinity` and `-infinity`: what the JDBC driver's instants are in its calendar.
const INFINITE_DAYS: [(i64, i32); 2] = [(-2_147_472_693, i32::MAX), (-2_147_472_692, i32::MIN)];

fn days(json: &Value) -> Option<i32> {
    if let Some(text) = json.as_str() {
        return date(text.trim_end_matches('Z'));
    }
    let since_1970 = json.as_i64()?;
    if let Some((_, infinite)) = INFINITE_DAYS.iter().find(|(days, _)| *days == since_1970) {
        return Some(*infinite);
    }
    i32::try_from(since_1970.checked_sub(EPOCH_DAYS_AFTER_1970)?)
        .ok()
        .filter(|days| !matches!(*days, i32::MIN | i32::MAX))
}

/// The unit of a number in a `timestamp`. Debezium writes one of up to three digits after the second in milliseconds, others in
/// microseconds, and nothing but the `schema` block says which: where that is missing and nothing is stated, a number is taken for
/// microseconds only where no other unit makes a likelier time of it.
fn timestamp_unit(
    column: &Column,
    json: &Value,
    semantic: Semantic<'_>,
    encoding: &Encoding,
) -> Result<TimestampUnit, Wrong> {
    if let Some(stated) = unit(semantic.name).or(encoding.timestamps) {
        return Ok(stated);
    }
    let is_plain = |ticks: i64| {
        ticks == 0
            || LIKELY_MICROS.contains(&ticks.unsigned_abs()) && !NEVER_IN_MILLIS.contains(&ticks.unsigned_abs())
            || INFINITE_MICROS.iter().any(|(infinite, _)| *infinite == ticks)
    };
    if json.as_i64().is_none_or(is_plain) {
        return Ok(TimestampUnit::Micros);
    }
    Err(wrong(
        "ambiguous_timestamp",
        format!(
            "column {} is {json}: in microseconds that is one time, in milliseconds or nanoseconds another",
            column.name
        ),
        "state \"debezium\":{\"timestamps\":\"millis\"}, \"micros\" or \"nanos\" beside the tables; where a table has timestamps of \
         several units, set time.precision.mode=isostring in the Debezium connector, or have it send schema blocks",
    ))
}

/// In microseconds a time that is neither within a year of 1970, where milliseconds of our days are, nor after the year 9999, where
/// nanoseconds are.
const LIKELY_MICROS: std::ops::Range<u64> = 31_536_000_000_000..253_402_300_800_000_000;
/// The last day of the year 9999 in milliseconds, which is what many write for "never"; in microseconds a day of 1978.
const NEVER_IN_MILLIS: std::ops::Range<u64> = 253_402_214_400_000..253_402_300_800_000;

fn unit(name: Option<&str>) -> Option<TimestampUnit> {
    match name? {
        "io.debezium.time.Timestamp" | "org.apache.kafka.connect.data.Timestamp" => Some(TimestampUnit::Millis),
        "io.debezium.time.MicroTimestamp" => Some(TimestampUnit::Micros),
        "io.debezium.time.NanoTimestamp" => Some(TimestampUnit::Nanos),
        _ => None,
    }
}

/// The JDBC driver's infinities, in microseconds since 1970.
const INFINITE_MICROS: [(i64, i64); 2] =
    [(9_223_372_036_825_200_000, i64::MAX), (-9_223_372_036_832_400_000, i64::MIN)];

/// Microseconds since 2000-01-01. A nanosecond that Postgres cannot have written is no value.
fn ticks(json: &Value, unit: Option<TimestampUnit>) -> Option<i64> {
    let ticks = json.as_i64()?;
    let infinite = |factor: i64| INFINITE_MICROS.iter().find(|(micros, _)| micros / factor == ticks).map(|(_, at)| *at);
    let since_1970 = match unit? {
        TimestampUnit::Millis => match infinite(1_000) {
            Some(at) => return Some(at),
            None => ticks.checked_mul(1_000)?,
        },
        TimestampUnit::Micros => match infinite(1) {
            Some(at) => return Some(at),
            None => ticks,
        },
        TimestampUnit::Nanos if matches!(ticks, i64::MIN | i64::MAX) => return Some(ticks),
        TimestampUnit::Nanos if ticks % 1_000 == 0 => ticks / 1_000,
        TimestampUnit::Nanos => return None,
    };
    since_1970.checked_sub(EPOCH_MICROS_AFTER_1970).filter(|micros| !matches!(*micros, i64::MIN | i64::MAX))
}

/// A decimal; `Ok(None)` where it is a number that does not fit 128 bits.
fn decimal(
    column: &Column,
    json: &Value,
    declared: Option<u16>,
    semantic: Semantic<'_>,
    encoding: &Encoding,
) -> Result<Option<Numeric>, Wrong> {
    let misfit = || mismatch(column, json, semantic);
    match json {
        Value::Number(_) => Err(wrong(
            "inexact_decimal",
            format!("column {} is numeric and written as a JSON number, which may have lost digits", column.name),
            "set decimal.handling.mode=string in the Debezium connector (and decimal.format=BASE64 in Kafka Connect's JsonConverter)",
        )),
        Value::Object(fields) => {
            let scale = fields.get("scale").and_then(Value::as_i64).ok_or_else(misfit)?;
            let bytes = fields.get("value").and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
            finite(&bytes.ok_or_else(misfit)?, scale, declared).map_err(|()| misfit())
        }
        Value::String(text) => match written_as(column, text, declared, semantic, encoding)? {
            DecimalMode::String => match text.as_str() {
                "NAN" => Ok(Some(Numeric::NaN)),
                "POSITIVE_INFINITY" => Ok(Some(Numeric::PositiveInfinity)),
                "NEGATIVE_INFINITY" => Ok(Some(Numeric::NegativeInfinity)),
                _ => match numeric(text, declared) {
                    Some(numeric) => Ok(Some(numeric)),
                    None if is_wide_number(text) && declared.is_none() => Ok(None),
                    None => Err(misfit()),
                },
            },
            DecimalMode::Precise => {
                let bytes = STANDARD.decode(text).map_err(|_| misfit())?;
                let scale = semantic.scale.or(declared.map(i64::from)).ok_or_else(misfit)?;
                finite(&bytes, scale, declared).map_err(|()| misfit())
            }
        },
        _ => Err(misfit()),
    }
}

/// Debezium writes all digits of a declared scale, so digits of a column with decimals hold a point, and base64 never does:
/// unless the column is not declared upstream as it is described here. Without a declared scale bytes come with theirs in a
/// struct, so a string is digits.
fn written_as(
    column: &Column,
    text: &str,
    declared: Option<u16>,
    semantic: Semantic<'_>,
    encoding: &Encoding,
) -> Result<DecimalMode, Wrong> {
    if semantic.name == Some("org.apache.kafka.connect.data.Decimal") {
        return Ok(DecimalMode::Precise);
    }
    if semantic.kind == Some("string") {
        return Ok(DecimalMode::String);
    }
    if let Some(stated) = encoding.decimals {
        return Ok(stated);
    }
    // None of these is base64.
    let words = ["NaN", "NAN", "POSITIVE_INFINITY", "NEGATIVE_INFINITY"];
    if words.contains(&text) {
        return Ok(DecimalMode::String);
    }
    if declared.is_none() || text.starts_with('-') || text.contains('.') {
        return Ok(DecimalMode::String);
    }
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits || (encoding.digits_are_base64 && declared != Some(0)) {
        return Ok(DecimalMode::Precise);
    }
    if !text.len().is_multiple_of(4) {
        return Ok(DecimalMode::String);
    }
    Err(wrong(
        "ambiguous_decimal",
        format!("column {} is {text:?}: as digits that is one number, as base64 another", column.name),
        "state \"debezium\":{\"decimals\":\"string\"} or \"precise\" beside the tables, as the connector's decimal.handling.mode is",
    ))
}

fn is_wide_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.len() > 30 && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// Two's complement, most significant byte first, as Java writes a BigInteger.
fn finite(bytes: &[u8], scale: i64, declared: Option<u16>) -> Result<Option<Numeric>, ()> {
    let (first, _) = bytes.split_first().ok_or(())?;
    let sign = if first & 0x80 == 0 { 0u8 } else { 0xFF };
    let excess = bytes.len().saturating_sub(16);
    let (padding, rest) = bytes.split_at_checked(excess).ok_or(())?;
    let fits = padding.iter().all(|byte| *byte == sign) && rest.first().is_some_and(|byte| (byte ^ sign) & 0x80 == 0);
    if !fits {
        return if declared.is_none() { Ok(None) } else { Err(()) };
    }
    let start = if sign == 0 { 0u128 } else { u128::MAX };
    let mantissa = rest.iter().fold(start, |value, byte| value << 8 | u128::from(*byte)) as i128;
    // A negative scale is a number with zeros at its end.
    let (mantissa, scale) = match u16::try_from(scale) {
        Ok(scale) => (mantissa, scale),
        Err(_) => {
            let zeros = u16::try_from(scale.checked_neg().ok_or(())?).map_err(|_| ())?;
            (Numeric::rescale(mantissa, 0, zeros).ok_or(())?, 0)
        }
    };
    match declared {
        Some(declared) => {
            let mantissa = Numeric::rescale(mantissa, scale, declared).ok_or(())?;
            Ok(Some(Numeric::Finite { mantissa, scale: declared }))
        }
        None => Ok(Some(Numeric::Finite { mantissa, scale })),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use engine::change::RowRef;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(
        column_type: ColumnType,
        json: &Value,
        semantic: Semantic<'_>,
        encoding: &Encoding,
    ) -> Result<String, &'static str> {
        let column = Column { name: "c".to_owned(), column_type };
        let mut buffer = Vec::new();
        push(&mut RowWriter::new(&mut buffer), &column, json, semantic, encoding).map_err(|wrong| wrong.code)?;
        Ok(format!("{:?}", RowRef(&buffer).columns().next().unwrap().unwrap()))
    }

    fn plain(column_type: ColumnType, json: Value) -> Result<String, &'static str> {
        read(column_type, &json, Semantic::default(), &Encoding::default())
    }

    fn named(column_type: ColumnType, kind: &str, name: &str, json: Value) -> Result<String, &'static str> {
        let semantic = Semantic { kind: Some(kind), name: Some(name).filter(|name| !name.is_empty()), scale: Some(2) };
        read(column_type, &json, semantic, &Encoding::default())
    }

    fn finite(mantissa: i128, scale: u16) -> Result<String, &'static str> {
        Ok(format!("{:?}", ValueRef::Numeric(Numeric::Finite { mantissa, scale })))
    }

    const MONEY: ColumnType = ColumnType::Numeric { scale: Some(2) };
    const WHOLE: ColumnType = ColumnType::Numeric { scale: Some(0) };
    const FREE: ColumnType = ColumnType::Numeric { scale: None };

    #[test]
    fn decimals_in_every_mode() {
        // 1250 is 0x04E2, -1250 is 0xFB1E.
        for (column_type, json, expected) in [
            (MONEY, json!("12.50"), finite(1250, 2)),
            (MONEY, json!("-12.50"), finite(-1250, 2)),
            (MONEY, json!("BOI="), finite(1250, 2)),
            (MONEY, json!("+x4="), finite(-1250, 2)),
            // What Postgres writes of a column that is not declared as it is described here; base64 of other bytes, too.
            (MONEY, json!("1250"), Err("ambiguous_decimal")),
            (MONEY, json!("125"), finite(12_500, 2)),
            (MONEY, json!("-1250"), finite(-125_000, 2)),
            (MONEY, json!("AA=="), finite(0, 2)),
            (MONEY, json!("12.505"), Err("value_mismatch")),
            (MONEY, json!(12.5), Err("inexact_decimal")),
            (MONEY, json!(12), Err("inexact_decimal")),
            (MONEY, json!({"scale": 1, "value": "fQ=="}), finite(1250, 2)),
            (MONEY, json!({"scale": 3, "value": "fQ=="}), Err("value_mismatch")),
            (MONEY, json!(""), Err("value_mismatch")),
            (MONEY, json!([]), Err("value_mismatch")),
            (WHOLE, json!("12500"), finite(12_500, 0)),
            (WHOLE, json!("-125"), finite(-125, 0)),
            (WHOLE, json!("BOI="), finite(1250, 0)),
            (WHOLE, json!("1250"), Err("ambiguous_decimal")),
            (FREE, json!("1250"), finite(1250, 0)),
            (FREE, json!("12.5"), finite(125, 1)),
            (FREE, json!({"scale": 3, "value": "BOI="}), finite(1250, 3)),
            (FREE, json!({"scale": -2, "value": "fQ=="}), finite(12_500, 0)),
            (FREE, json!({"scale": 0}), Err("value_mismatch")),
            (FREE, json!("NaN"), Ok("Numeric(NaN)".to_owned())),
            (FREE, json!("POSITIVE_INFINITY"), Ok("Numeric(PositiveInfinity)".to_owned())),
        ] {
            assert_eq!(plain(column_type.clone(), json.clone()), expected, "{column_type:?} {json}");
        }
        // The schema block and the source's settings decide where the value does not.
        assert_eq!(named(WHOLE, "string", "", json!("1250")), finite(1250, 0));
        assert_eq!(named(MONEY, "bytes", "org.apache.kafka.connect.data.Decimal", json!("BOI=")), finite(1250, 2));
        assert_eq!(named(MONEY, "double", "", json!(12.5)), Err("inexact_decimal"));
        let stated = |decimals| Encoding { decimals: Some(decimals), ..Encoding::default() };
        assert_eq!(read(WHOLE, &json!("1250"), Semantic::default(), &stated(DecimalMode::String)), finite(1250, 0));
        assert_eq!(
            read(WHOLE, &json!("1250"), Semantic::default(), &stated(DecimalMode::Precise)),
            finite(-2_658_700, 0)
        );
        // Wider than 128 bits, where the column allows that.
        let wide = STANDARD.encode([0x7F; 17]);
        assert!(plain(FREE, json!({"scale": 0, "value": wide})).unwrap().starts_with("Opaque"));
        assert_eq!(plain(MONEY, json!({"scale": 2, "value": wide})), Err("value_mismatch"));
    }

    #[test]
    fn times_in_every_mode() {
        use ColumnType::{Date, Timestamp, TimestampTz};
        let at = |micros: i64| Ok(format!("Timestamp({micros})"));
        // 2018-06-20T15:13:16.945104
        const AT: i64 = 1_529_507_596_945_104;
        const SINCE_2000: i64 = AT - EPOCH_MICROS_AFTER_1970;
        for (column_type, name, json, expected) in [
            (Timestamp, "io.debezium.time.MicroTimestamp", json!(AT), at(SINCE_2000)),
            (Timestamp, "io.debezium.time.NanoTimestamp", json!(AT * 1_000), at(SINCE_2000)),
            (Timestamp, "io.debezium.time.NanoTimestamp", json!(AT * 1_000 + 1), Err("value_mismatch")),
            (Timestamp, "io.debezium.time.Timestamp", json!(AT / 1_000), at(SINCE_2000 - 104)),
            (Timestamp, "org.apache.kafka.connect.data.Timestamp", json!(AT / 1_000), at(SINCE_2000 - 104)),
            (Timestamp, "io.debezium.time.IsoTimestamp", json!("2018-06-20T15:13:16.945104Z"), at(SINCE_2000)),
            (Timestamp, "io.debezium.time.StructuredTimestamp", json!({"year": 2018}), Err("unsupported_encoding")),
            (Timestamp, "io.debezium.time.MicroTimestamp", json!(9_223_372_036_825_200_000i64), at(i64::MAX)),
            (Timestamp, "io.debezium.time.MicroTimestamp", json!(-9_223_372_036_832_400_000i64), at(i64::MIN)),
            (Timestamp, "io.debezium.time.Timestamp", json!(9_223_372_036_825_200i64), at(i64::MAX)),
            (Timestamp, "io.debezium.time.NanoTimestamp", json!(i64::MIN), at(i64::MIN)),
            (Timestamp, "", json!(AT), at(SINCE_2000)),
            (Timestamp, "", json!(1.5), Err("value_mismatch")),
            (Timestamp, "", json!(0), at(-EPOCH_MICROS_AFTER_1970)),
            (Timestamp, "", json!(9_223_372_036_825_200_000i64), at(i64::MAX)),
            (Timestamp, "", json!(AT / 1_000), Err("ambiguous_timestamp")),
            (Timestamp, "", json!(AT * 1_000), Err("ambiguous_timestamp")),
            // 9999-12-31 in each unit.
            (Timestamp, "", json!(253_402_214_400_000_000i64), at(253_402_214_400_000_000 - EPOCH_MICROS_AFTER_1970)),
            (Timestamp, "", json!(253_402_214_400_000i64), Err("ambiguous_timestamp")),
            (
                TimestampTz,
                "io.debezium.time.ZonedTimestamp",
                json!("2018-06-20T13:13:16.945104Z"),
                at(SINCE_2000 - 7_200_000_000),
            ),
            (
                TimestampTz,
                "io.debezium.time.ZonedTimestamp",
                json!("2018-06-20T15:13:16.945104+02:00"),
                at(SINCE_2000 - 7_200_000_000),
            ),
            (TimestampTz, "io.debezium.time.ZonedTimestamp", json!("infinity"), at(i64::MAX)),
            (TimestampTz, "", json!("2018-06-20T13:13:16Z"), at(SINCE_2000 - 7_200_945_104)),
            (TimestampTz, "", json!("+10000-01-01T00:00:00Z"), at(252_455_616_000_000_000)),
            // Nobody says whether that is seconds.
            (TimestampTz, "", json!(AT), Err("value_mismatch")),
            (Date, "io.debezium.time.Date", json!(10_958), Ok("Date(1)".to_owned())),
            (Date, "org.apache.kafka.connect.data.Date", json!(-1), Ok("Date(-10958)".to_owned())),
            (Date, "io.debezium.time.IsoDate", json!("2000-01-02Z"), Ok("Date(1)".to_owned())),
            (Date, "", json!(-2_147_472_693), Ok(format!("Date({})", i32::MAX))),
            (Date, "", json!(-2_147_472_692), Ok(format!("Date({})", i32::MIN))),
            (Date, "", json!(i64::MAX), Err("value_mismatch")),
        ] {
            assert_eq!(
                named(column_type.clone(), "int64", name, json.clone()),
                expected,
                "{column_type:?} {name} {json}"
            );
        }
        let millis = Encoding { timestamps: Some(TimestampUnit::Millis), ..Encoding::default() };
        assert_eq!(read(Timestamp, &json!(AT / 1_000), Semantic::default(), &millis), at(SINCE_2000 - 104));
        let taken = Encoding::default().as_they_were_taken();
        assert_eq!(
            read(Timestamp, &json!(AT * 1_000), Semantic::default(), &taken),
            at(AT * 1_000 - EPOCH_MICROS_AFTER_1970)
        );
        assert_eq!(read(MONEY, &json!("1250"), Semantic::default(), &taken), finite(-2_658_700, 2));
        assert_eq!(read(WHOLE, &json!("1250"), Semantic::default(), &taken), Err("ambiguous_decimal"));
    }

    #[test]
    fn other_types_and_what_was_not_sent() {
        use ColumnType::{Bool, Char, Float8, Int2, Int8, Text, Unsupported, Uuid};
        let json_type = || Unsupported("jsonb".to_owned());
        for (column_type, json, expected) in [
            (Int2, json!(40_000), Err("value_mismatch")),
            (Int8, json!(7), Ok("Int(7)".to_owned())),
            (Int8, json!("7"), Err("value_mismatch")),
            (Float8, json!(0.1), Ok("Float(0.1)".to_owned())),
            (Float8, json!("NaN"), Ok("Float(NaN)".to_owned())),
            (Bool, json!(true), Ok("Bool(true)".to_owned())),
            (Char, json!("EUR  "), Ok("Text(\"EUR\")".to_owned())),
            (Uuid, json!("no"), Err("value_mismatch")),
            (Text, json!(null), Ok("Null".to_owned())),
            (Text, json!("__debezium_unavailable_value"), Ok("Unchanged".to_owned())),
            (FREE, json!("X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="), Ok("Unchanged".to_owned())),
            (json_type(), json!(["__debezium_unavailable_value"]), Ok("Unchanged".to_owned())),
            (
                json_type(),
                json!({"__debezium_unavailable_value": "__debezium_unavailable_value"}),
                Ok("Unchanged".to_owned()),
            ),
            (json_type(), json!([1, 2]), Ok("Opaque([91, 49, 44, 50, 93])".to_owned())),
        ] {
            assert_eq!(plain(column_type.clone(), json.clone()), expected, "{column_type:?} {json}");
        }
        let bytes: Vec<u8> = "__debezium_unavailable_value".bytes().collect();
        assert_eq!(plain(json_type(), json!(bytes)), Ok("Unchanged".to_owned()));
    }

    proptest! {
        #[test]
        fn precise_decimals_read_back(mantissa in any::<i128>(), padding in 0usize..3, scale in 0u16..5) {
            let mut bytes = vec![if mantissa < 0 { 0xFF } else { 0 }; padding];
            bytes.extend_from_slice(&mantissa.to_be_bytes());
            let json = json!({"scale": scale, "value": STANDARD.encode(bytes)});
            prop_assert_eq!(plain(FREE, json), finite(mantissa, scale));
        }
    }
}
