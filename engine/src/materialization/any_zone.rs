//! The times of a condition in words that mean the same in every session. Without a zone a time is UTC here; Postgres reads one
//! beside a `timestamptz` in the zone of whoever asks, and turns a `TIMESTAMPTZ` beside a `timestamp` into that zone's clock.

use chrono::DateTime;
use sqlparser::ast::{BinaryOperator, DataType, Expr, TimezoneInfo, Value};

use super::condition;
use super::filter::{clock_reading, column_of, parse_timestamp};
use crate::change::value::EPOCH_UNIX_US;
use crate::change::{ColumnType, TableSchema};

/// The condition as [`condition::write`] has it. `None` for what is no condition.
#[must_use]
pub fn in_any_zone(text: &str, schema: &TableSchema) -> Option<String> {
    let mut expression = condition::read(text).ok()?;
    settle(&mut expression, schema);
    condition::write(&expression).ok()
}

fn settle(expression: &mut Expr, schema: &TableSchema) {
    match expression {
        Expr::Nested(inner) | Expr::UnaryOp { expr: inner, .. } => settle(inner, schema),
        Expr::BinaryOp { left, op: BinaryOperator::And | BinaryOperator::Or, right } => {
            settle(left, schema);
            settle(right, schema);
        }
        Expr::BinaryOp { left, right, .. } => {
            if let Some(column) = type_of(left, schema) {
                constant(right, column);
            } else if let Some(column) = type_of(right, schema) {
                constant(left, column);
            }
        }
        Expr::InList { expr, list, .. } => {
            if let Some(column) = type_of(expr, schema) {
                list.iter_mut().for_each(|value| constant(value, column));
            }
        }
        Expr::Between { expr, low, high, .. } => {
            if let Some(column) = type_of(expr, schema) {
                constant(low, column);
                constant(high, column);
            }
        }
        _ => {}
    }
}

fn type_of<'s>(expression: &Expr, schema: &'s TableSchema) -> Option<&'s ColumnType> {
    let column = column_of(expression, schema).ok().flatten()?;
    schema.columns.get(column).map(|column| &column.column_type)
}

/// A constant beside a column. What says its zone, and has none to lose, stays as it is.
fn constant(expression: &mut Expr, column: &ColumnType) {
    let (text, typed) = match expression {
        Expr::Nested(inner) => return constant(inner, column),
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => (text.clone(), None),
            _ => return,
        },
        Expr::TypedString(typed) => match typed.value.value.clone().into_string() {
            Some(text) => (text, Some(typed.data_type.clone())),
            None => return,
        },
        _ => return,
    };
    let has_zone = matches!(typed, Some(DataType::Timestamp(_, TimezoneInfo::Tz | TimezoneInfo::WithTimeZone)));
    let settled = match column {
        ColumnType::TimestampTz if clock_reading(&text).is_some() => {
            reading(&text).map(|reading| format!("{reading}+00"))
        }
        ColumnType::Timestamp if has_zone => reading(&text),
        _ => return,
    };
    if let Some(text) = settled {
        *expression = Expr::Value(Value::SingleQuotedString(text).with_empty_span());
    }
}

/// What clocks in UTC showed.
fn reading(text: &str) -> Option<String> {
    let instant = parse_timestamp(text)?.checked_add(EPOCH_UNIX_US)?;
    Some(DateTime::from_timestamp_micros(instant)?.format("%Y-%m-%d %H:%M:%S%.f").to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::filter::Filter;
    use super::*;
    use crate::change::{Column, TableId};

    #[test]
    fn a_time_without_zone_is_given_the_one_it_is_read_in() {
        let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
        let schema = TableSchema {
            id: TableId(1),
            namespace: "public".to_owned(),
            name: "payments".to_owned(),
            columns: vec![
                column("at", ColumnType::TimestampTz),
                column("local", ColumnType::Timestamp),
                column("day", ColumnType::Date),
                column("note", ColumnType::Text),
            ],
            primary_key: vec![0],
            keeps_row_image: true,
        };
        for (written, settled) in [
            ("at >= '2026-01-01'", "at >= '2026-01-01 00:00:00+00'"),
            ("'2026-01-01T10:30' > at", "'2026-01-01 10:30:00+00' > at"),
            ("at = ('2026-01-01 10:30:00.25')", "at = '2026-01-01 10:30:00.250+00'"),
            ("at < DATE '2026-01-01' OR NOT (at IS NULL)", "at < '2026-01-01 00:00:00+00' OR NOT (at IS NULL)"),
            ("at < TIMESTAMP '2026-01-01 12:00'", "at < '2026-01-01 12:00:00+00'"),
            ("at < TIMESTAMPTZ '2026-01-01'", "at < '2026-01-01 00:00:00+00'"),
            (
                "payments.at NOT BETWEEN '2026-01-01' AND '2026-02-01 00:00+02'",
                "payments.at NOT BETWEEN '2026-01-01 00:00:00+00' AND '2026-02-01 00:00+02'",
            ),
            ("NOT (at IN ('2026-01-01', 'infinity'))", "NOT (at IN ('2026-01-01 00:00:00+00', 'infinity'))"),
            ("local >= TIMESTAMPTZ '2026-01-01 02:00:00+02'", "local >= '2026-01-01 00:00:00'"),
            // What no session reads otherwise stays as it is.
            ("at >= '2026-01-01T00:00:00Z'", "at >= '2026-01-01T00:00:00Z'"),
            ("at < TIMESTAMPTZ '2026-01-01 00:00:00+01'", "at < TIMESTAMPTZ '2026-01-01 00:00:00+01'"),
            ("local < '2026-01-01' AND day > DATE '2026-01-01'", "local < '2026-01-01' AND day > DATE '2026-01-01'"),
            ("note = '2026-01-01' OR at = NULL", "note = '2026-01-01' OR at = NULL"),
        ] {
            assert_eq!(in_any_zone(written, &schema).as_deref(), Some(settled), "{written}");
            assert_eq!(in_any_zone(settled, &schema).as_deref(), Some(settled), "{written}: it is settled");
            assert_eq!(Filter::parse(settled, &schema).ok(), Filter::parse(written, &schema).ok(), "{written}");
        }
        assert_eq!(in_any_zone("at LIKE 'x'", &schema), None);
    }
}
