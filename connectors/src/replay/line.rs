//! One line of a recording: JSON -> a transaction, typed by the schema. Errors are sentences about the line; the caller
//! knows which line it is.

use engine::change::event::{OldRow, TooLarge};
use engine::change::{Changes, Column, ColumnType, Lsn, RowWriter, TableSchema, Transaction, ValueRef};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::json_value::{timestamp_tz, value};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    lsn: Lsn,
    time: String,
    changes: Vec<Event>,
}

type Columns = Map<String, Value>;

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum Event {
    Insert { table: String, new: Columns },
    Update { table: String, key: Option<Columns>, old: Option<Columns>, new: Columns },
    Delete { table: String, key: Option<Columns>, old: Option<Columns> },
    Truncate { table: String },
}

/// What a column that the line leaves out stands for.
#[derive(Clone, Copy)]
enum LeftOut {
    Null,
    Unchanged,
    Refused,
}

pub(super) fn transaction(text: &str, tables: &[TableSchema]) -> Result<Transaction, String> {
    let line: Line = serde_json::from_str(text).map_err(|error| format!("not a transaction: {error}"))?;
    let commit_time_us =
        timestamp_tz(&line.time).ok_or_else(|| format!("time {:?} is no time with a zone", line.time))?;
    let mut changes = Changes::default();
    for (number, event) in line.changes.iter().enumerate() {
        apply(event, tables, &mut changes).map_err(|Problem(what)| format!("change {}: {what}", number + 1))?;
    }
    Ok(Transaction { end_lsn: line.lsn, commit_time_us, changes })
}

struct Problem(String);

impl From<TooLarge> for Problem {
    fn from(error: TooLarge) -> Self {
        Problem(error.to_string())
    }
}

fn apply(event: &Event, tables: &[TableSchema], changes: &mut Changes) -> Result<(), Problem> {
    let name = match event {
        Event::Insert { table, .. }
        | Event::Update { table, .. }
        | Event::Delete { table, .. }
        | Event::Truncate { table } => table,
    };
    let table = tables
        .iter()
        .find(|table| table.qualified_name() == *name)
        .ok_or_else(|| Problem(format!("table {name} is not described in the first line")))?;
    match event {
        Event::Insert { new, .. } => {
            let new = row(changes, table, new, LeftOut::Null)?;
            changes.insert_checked(table.id, new);
        }
        Event::Update { key, old, new, .. } => {
            let old = old_row(changes, table, key.as_ref(), old.as_ref())?;
            let new = row(changes, table, new, LeftOut::Unchanged)?;
            changes.update(table.id, old, new);
        }
        Event::Delete { key, old, .. } => match old_row(changes, table, key.as_ref(), old.as_ref())? {
            OldRow::Absent => return Err(Problem("a delete needs its key or its old row".to_owned())),
            old => changes.delete(table.id, old),
        },
        Event::Truncate { .. } => changes.truncate(table.id),
    }
    Ok(())
}

fn old_row(
    changes: &mut Changes,
    table: &TableSchema,
    key: Option<&Columns>,
    old: Option<&Columns>,
) -> Result<OldRow, Problem> {
    match (key, old) {
        (None, None) => Ok(OldRow::Absent),
        (None, Some(old)) => Ok(OldRow::Full(row(changes, table, old, LeftOut::Refused)?)),
        (Some(key), None) => {
            let is_key = |name: &str| table.column_index(name).is_some_and(|index| table.primary_key.contains(&index));
            if let Some(other) = key.keys().find(|name| !is_key(name)) {
                return Err(Problem(format!(
                    "column {other} is not part of the primary key of {}",
                    table.qualified_name()
                )));
            }
            Ok(OldRow::Key(row(changes, table, key, LeftOut::Null)?))
        }
        (Some(_), Some(_)) => Err(Problem("give the key or the old row, not both".to_owned())),
    }
}

fn row(
    changes: &mut Changes,
    table: &TableSchema,
    columns: &Columns,
    left_out: LeftOut,
) -> Result<engine::change::event::WrittenRow, Problem> {
    if let Some(unknown) = columns.keys().find(|name| table.column_index(name).is_none()) {
        return Err(Problem(format!("table {} has no column {unknown}", table.qualified_name())));
    }
    changes.write_row(|buffer| {
        let mut writer = RowWriter::new(buffer);
        for (index, column) in table.columns.iter().enumerate() {
            let in_key = table.primary_key.contains(&index);
            let value = match (columns.get(&column.name), left_out) {
                (Some(Value::Null) | None, _) if in_key => {
                    return Err(Problem(format!("column {} is part of the primary key and has no value", column.name)));
                }
                (Some(json), _) => value(&column.column_type, json).ok_or_else(|| mismatch(column, json))?,
                (None, LeftOut::Null) => ValueRef::Null,
                (None, LeftOut::Unchanged) => ValueRef::Unchanged,
                (None, LeftOut::Refused) => return Err(Problem(format!("the old row lacks column {}", column.name))),
            };
            writer.push(value);
        }
        Ok(())
    })
}

fn mismatch(column: &Column, json: &Value) -> Problem {
    let hint = match column.column_type {
        ColumnType::Numeric { .. } if json.is_number() => " (write it as a string, a JSON number may lose digits)",
        _ => "",
    };
    Problem(format!("column {} is {} and cannot be {json}{hint}", column.name, column.column_type.name()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use engine::change::{Change, Numeric, OldImage, TableId};
    use proptest::prelude::*;

    use super::*;

    fn table() -> TableSchema {
        let types = [
            ColumnType::Int8,
            ColumnType::Numeric { scale: Some(2) },
            ColumnType::Float8,
            ColumnType::Text,
            ColumnType::Bool,
            ColumnType::Uuid,
            ColumnType::Date,
            ColumnType::Timestamp,
            ColumnType::TimestampTz,
            ColumnType::Unsupported("json".into()),
        ];
        let columns = types
            .into_iter()
            .enumerate()
            .map(|(index, column_type)| Column { name: format!("c{index}"), column_type })
            .collect();
        TableSchema {
            id: TableId(1),
            namespace: "public".into(),
            name: "t".into(),
            columns,
            primary_key: vec![0],
            keeps_row_image: true,
        }
    }

    fn read(changes: &str) -> Result<Transaction, String> {
        let line = format!(r#"{{"lsn":"0/10","time":"2000-01-01T00:00:01Z","changes":[{changes}]}}"#);
        transaction(&line, &[table()])
    }

    #[test]
    fn values_follow_the_schema() {
        let transaction = read(
            r#"{"op":"insert","table":"public.t","new":{"c0":7,"c1":"-12.5","c2":1.5,"c3":"ä","c4":true,
               "c5":"00112233-4455-6677-8899-aabbccddeeff","c6":"2000-01-02","c7":"2000-01-01T00:00:00.5","c8":"2000-01-01T01:00:00+01:00","c9":"{}"}}"#,
        )
        .unwrap();
        assert_eq!(transaction.commit_time_us, 1_000_000);
        let Some(Change::InsertChecked { new, .. }) = transaction.changes.iter().next() else { panic!() };
        let mut values = Vec::new();
        new.decode_into(&mut values).unwrap();
        assert_eq!(values[0], ValueRef::Int(7));
        assert_eq!(values[1], ValueRef::Numeric(Numeric::Finite { mantissa: -1250, scale: 2 }));
        assert_eq!(values[2..5], [ValueRef::Float(1.5), ValueRef::Text("ä"), ValueRef::Bool(true)]);
        let ValueRef::Uuid(uuid) = values[5] else { panic!() };
        assert_eq!((uuid[0], uuid[15]), (0, 0xff));
        assert_eq!(values[6..9], [ValueRef::Date(1), ValueRef::Timestamp(500_000), ValueRef::Timestamp(0)]);
        assert_eq!(values[9], ValueRef::Opaque(b"{}"));
    }

    #[test]
    fn updates_and_deletes_say_what_they_know() {
        let transaction = read(
            r#"{"op":"update","table":"public.t","new":{"c0":7,"c3":null}},
               {"op":"update","table":"public.t","key":{"c0":7},"new":{"c0":8}},
               {"op":"delete","table":"public.t","key":{"c0":8}}"#,
        )
        .unwrap();
        let changes: Vec<_> = transaction.changes.iter().collect();
        let Change::Update { old: OldImage::Absent, new, .. } = changes[0] else { panic!() };
        let values: Vec<_> = new.columns().map(Result::unwrap).collect();
        assert_eq!((values[2], values[3]), (ValueRef::Unchanged, ValueRef::Null));
        assert!(matches!(changes[1], Change::Update { old: OldImage::Key(_), .. }));
        assert!(matches!(changes[2], Change::Delete { old: OldImage::Key(_), .. }));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (changes, expected) in [
            (r#"{"op":"insert","table":"public.x","new":{}}"#, "change 1: table public.x is not described"),
            (r#"{"op":"insert","table":"public.t","new":{"c0":1,"zz":1}}"#, "has no column zz"),
            (r#"{"op":"insert","table":"public.t","new":{"c1":"1"}}"#, "column c0 is part of the primary key"),
            (r#"{"op":"insert","table":"public.t","new":{"c0":1,"c1":1.5}}"#, "write it as a string"),
            (r#"{"op":"insert","table":"public.t","new":{"c0":1,"c1":"1.234"}}"#, "column c1 is numeric"),
            (r#"{"op":"insert","table":"public.t","new":{"c0":"1"}}"#, "column c0 is bigint"),
            (r#"{"op":"update","table":"public.t","old":{"c0":1},"new":{"c0":1}}"#, "the old row lacks column c1"),
            (
                r#"{"op":"update","table":"public.t","key":{"c0":1,"c1":"1"},"new":{"c0":1}}"#,
                "not part of the primary key",
            ),
            (r#"{"op":"delete","table":"public.t"}"#, "a delete needs its key"),
            (r#"{"op":"upsert","table":"public.t"}"#, "not a transaction: unknown variant `upsert`"),
        ] {
            let error = read(changes).unwrap_err();
            assert!(error.contains(expected), "{changes}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = transaction(&text, &[table()]);
            for json in [Value::String(text.clone())] {
                for column in table().columns {
                    let _ = value(&column.column_type, &json);
                }
            }
        }
    }
}
