//! Rows of a table as they are written down: all columns whose values are read here, as the answers write dimensions.

use engine::change::{Column, ColumnType, RowRef, TableSchema, Value, ValueRef};
use engine::materialization::Calendar;
use serde::Serialize;
use serde::ser::{Error, SerializeSeq, Serializer};

use super::answer::Object;
use super::column::ColumnBody;
use super::field::Field;
use super::warning::Warning;
use super::wide_numeric::wide_numeric;

/// Stored rows of a table.
#[derive(Clone, Copy, Debug)]
pub struct TableRows<'a> {
    /// Their table.
    pub schema: &'a TableSchema,
    /// The rows, as they are stored.
    pub rows: &'a [Vec<u8>],
    /// Zone in which instants are written.
    pub calendar: &'a Calendar,
}

impl TableRows<'_> {
    /// The columns.
    #[must_use]
    pub fn columns(&self) -> Vec<ColumnBody> {
        let column = |column: &Column| ColumnBody::of_values(&column.name, &column.column_type, "column");
        self.schema.columns.iter().filter(|column| is_read(column)).map(column).collect()
    }

    fn fields<E: Error>(&self, row: &[u8]) -> Result<Vec<Field>, E> {
        let mut values = Vec::new();
        RowRef(row).decode_into(&mut values).map_err(|_| E::custom("a stored row is damaged"))?;
        let columns = self.schema.columns.iter().zip(values).filter(|(column, _)| is_read(column));
        Ok(columns.map(|(column, value)| self.field(value, &column.column_type)).collect())
    }

    fn field(&self, value: ValueRef<'_>, column_type: &ColumnType) -> Field {
        let value = match value {
            ValueRef::Unchanged | ValueRef::Null => return Field::Null,
            // Of the columns that are read, a numeric.
            ValueRef::Opaque(bytes) => return Field::Text(wide_numeric(bytes)),
            ValueRef::Bool(v) => Value::Bool(v),
            ValueRef::Int(v) => Value::Int(v),
            ValueRef::Float(v) => Value::Float(v),
            ValueRef::Numeric(v) => Value::Numeric(v),
            ValueRef::Text(v) => Value::Text(v.to_owned()),
            ValueRef::Uuid(v) => Value::Uuid(v),
            ValueRef::Date(v) => Value::Date(v),
            ValueRef::Timestamp(v) => Value::Timestamp(v),
        };
        Field::of_dimension(value, column_type, self.calendar)
    }
}

/// Whether values of a column are known; of others `null` would not be told from NULL.
fn is_read(column: &Column) -> bool {
    !matches!(column.column_type, ColumnType::Unsupported(_) | ColumnType::Gone(_))
}

/// Names the columns of a table that its rows are shown without.
#[must_use]
pub fn columns_left_out(schema: &TableSchema) -> Option<Warning> {
    let left_out: Vec<String> = schema
        .columns
        .iter()
        .filter(|column| !is_read(column))
        .map(|column| format!("{} ({})", column.name, column.column_type.name()))
        .collect();
    let message = format!("rows are shown without columns whose values are not read here: {}", left_out.join(", "));
    (!left_out.is_empty()).then(|| Warning::new("columns_left_out", message))
}

impl Serialize for TableRows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let columns = self.columns();
        let mut list = serializer.serialize_seq(Some(self.rows.len()))?;
        for row in self.rows {
            list.serialize_element(&Object { columns: &columns, fields: &self.fields(row)? })?;
        }
        list.end()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine::change::{RowWriter, TableId};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_that_is_not_null_is_not_shown_as_null() {
        let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
        let schema = TableSchema {
            id: TableId(1),
            namespace: "public".to_owned(),
            name: "payments".to_owned(),
            columns: vec![
                column("id", ColumnType::Int8),
                column("note", ColumnType::Unsupported("jsonb".to_owned())),
                column("wide", ColumnType::Numeric { scale: None }),
                column("old", ColumnType::Gone("it was dropped".to_owned())),
                column("fee", ColumnType::Numeric { scale: Some(2) }),
            ],
            primary_key: vec![0],
            keeps_row_image: true,
        };
        let mut row = Vec::new();
        let mut writer = RowWriter::new(&mut row);
        for value in [
            ValueRef::Int(7),
            ValueRef::Opaque(b"{}"),
            ValueRef::Opaque(&[0, 1, 0, 10, 0, 0, 0, 0, 0, 1]),
            ValueRef::Null,
            ValueRef::Null,
        ] {
            writer.push(value);
        }
        let rows = TableRows { schema: &schema, rows: &[row], calendar: &Calendar::UTC };
        let wide = format!("1{}", "0".repeat(40));
        assert_eq!(serde_json::to_value(rows).unwrap(), json!([{"id": 7, "wide": wide, "fee": null}]));
        let names: Vec<String> = rows.columns().into_iter().map(|column| column.name).collect();
        assert_eq!(names, ["id", "wide", "fee"]);
        let warning = columns_left_out(&schema).unwrap();
        assert_eq!(warning.code, "columns_left_out");
        assert!(warning.message.ends_with("note (jsonb), old (gone)"), "{}", warning.message);
    }
}
