//! Rows of a table as they are written down: all columns, as the answers write dimensions.

use engine::change::{Column, ColumnType, RowRef, TableSchema, Value, ValueRef};
use engine::materialization::Calendar;
use serde::Serialize;
use serde::ser::{Error, SerializeSeq, Serializer};

use super::answer::Object;
use super::column::ColumnBody;
use super::field::Field;

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
        self.schema.columns.iter().map(column).collect()
    }

    fn fields<E: Error>(&self, row: &[u8]) -> Result<Vec<Field>, E> {
        let mut values = Vec::new();
        RowRef(row).decode_into(&mut values).map_err(|_| E::custom("a stored row is damaged"))?;
        let types = self.schema.columns.iter().map(|column| &column.column_type);
        Ok(types.zip(values).map(|(column_type, value)| self.field(value, column_type)).collect())
    }

    fn field(&self, value: ValueRef<'_>, column_type: &ColumnType) -> Field {
        let value = match value {
            // Of a type that we only pass on, or a column that is no more.
            ValueRef::Opaque(_) | ValueRef::Unchanged | ValueRef::Null => return Field::Null,
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
