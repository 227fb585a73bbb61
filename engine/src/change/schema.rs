//! The shape of an upstream table, as the connector found it. Stored beside the row images, because their columns are
//! positional: a row image means nothing without the schema it was written under.

use serde::{Deserialize, Serialize};

/// Identifies a table within its source; for Postgres the relation's OID, so that a table dropped and created again
/// under the same name is another table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableId(pub u32);

/// What can be computed with a column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// 16-bit integer
    Int2,
    /// 32-bit integer
    Int4,
    /// 64-bit integer
    Int8,
    /// Exact decimal; `scale` is `None` where the column declares none.
    Numeric {
        /// Digits after the point, where declared.
        scale: Option<u16>,
    },
    /// 32-bit float
    Float4,
    /// 64-bit float
    Float8,
    /// `text`, `varchar`
    Text,
    /// `char(n)`. Its padding means nothing in SQL, so connectors leave it out: values come trimmed of trailing blanks.
    Char,
    /// `boolean`
    Bool,
    /// `uuid`
    Uuid,
    /// `date`
    Date,
    /// `timestamp without time zone`
    Timestamp,
    /// `timestamp with time zone`
    TimestampTz,
    /// May exist, may not be used. Holds the upstream name of the type.
    Unsupported(String),
    /// It was dropped, renamed or retyped upstream while the table was followed; NULL in every row since. Holds what
    /// happened.
    Gone(String),
}

impl ColumnType {
    /// The name a Postgres user knows.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            ColumnType::Int2 => "smallint",
            ColumnType::Int4 => "integer",
            ColumnType::Int8 => "bigint",
            ColumnType::Numeric { .. } => "numeric",
            ColumnType::Float4 => "real",
            ColumnType::Float8 => "double precision",
            ColumnType::Text => "text",
            ColumnType::Char => "char(n)",
            ColumnType::Bool => "boolean",
            ColumnType::Uuid => "uuid",
            ColumnType::Date => "date",
            ColumnType::Timestamp => "timestamp",
            ColumnType::TimestampTz => "timestamptz",
            ColumnType::Unsupported(name) => name,
            ColumnType::Gone(_) => "gone",
        }
    }
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Name as in the catalog, unquoted.
    pub name: String,
    /// What it holds.
    #[serde(rename = "type")]
    pub column_type: ColumnType,
}

/// One upstream table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// Identity within the source.
    pub id: TableId,
    /// Schema (`public`).
    pub namespace: String,
    /// Name within the schema.
    pub name: String,
    /// Columns in the order of every encoded row of this table.
    pub columns: Vec<Column>,
    /// Positions in `columns` of the primary key, in key order. Never empty.
    pub primary_key: Vec<usize>,
    /// Whether the last row per key is kept here. Where it is not, every update and delete brings its whole old row (see
    /// [`crate::source`]).
    #[serde(default = "kept", skip_serializing_if = "is_kept")]
    pub keeps_row_image: bool,
}

fn kept() -> bool {
    true
}

fn is_kept(keeps_row_image: &bool) -> bool {
    *keeps_row_image
}

impl TableSchema {
    /// `public.payments`. One table's only, because connectors refuse a part with a dot in it.
    #[must_use]
    pub fn qualified_name(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }

    /// Position of a column by its exact name. One without a name is hidden, and nobody finds it.
    #[must_use]
    pub fn column_index(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name).filter(|_| !name.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_without_a_name_is_not_found() {
        let column = |name: &str| Column { name: name.to_owned(), column_type: ColumnType::Int8 };
        let schema = TableSchema {
            id: TableId(1),
            namespace: "public".to_owned(),
            name: "payments".to_owned(),
            columns: vec![column(""), column("id")],
            primary_key: vec![1],
            keeps_row_image: true,
        };
        assert_eq!((schema.column_index("id"), schema.column_index("")), (Some(1), None));
    }
}
