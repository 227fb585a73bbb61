//! The description of tables where no catalog can be asked: the first line of a recording, the file of `--events`.

use engine::change::TableSchema;
use engine::source::FollowedTable;
use serde::Deserialize;

use crate::debezium::Encoding;
use crate::postgres::dotted_name;

/// Tables, and how their change events are written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableFile {
    /// The tables; at least one, each with a primary key.
    pub tables: Vec<TableSchema>,
    /// How Debezium writes their events; in a recording its presence says that the lines are Debezium's.
    #[serde(default)]
    pub debezium: Option<Encoding>,
}

impl TableFile {
    /// Reads the description from JSON.
    pub fn parse(text: &str) -> Result<TableFile, String> {
        let file: TableFile =
            serde_json::from_str(text).map_err(|error| format!("not a description of tables: {error}"))?;
        file.checked()
    }

    /// Checks a description that was read elsewhere.
    pub fn checked(self) -> Result<TableFile, String> {
        check(&self.tables)?;
        Ok(self)
    }
}

/// Whether the stored tables are those described, in whatever order.
pub(crate) fn are_described(stored: &[FollowedTable], described: &[TableSchema]) -> bool {
    stored.len() == described.len() && stored.iter().all(|table| described.contains(&table.schema))
}

fn check(tables: &[TableSchema]) -> Result<(), String> {
    for (index, table) in tables.iter().enumerate() {
        let name = table.qualified_name();
        if let Some((what, remedy)) = dotted_name::refused(&table.namespace, &table.name) {
            return Err(format!("{what}; in Postgres: {remedy}"));
        }
        if table.primary_key.is_empty() || table.primary_key.iter().any(|&column| column >= table.columns.len()) {
            return Err(format!("table {name} has no primary key, or one that names no column"));
        }
        let twice = tables.iter().take(index).any(|other| other.id == table.id || other.qualified_name() == name);
        if twice {
            return Err(format!("table {name} has the id or the name of another table"));
        }
    }
    if tables.is_empty() { Err("no table is described".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine::change::{Column, ColumnType, TableId};

    use super::*;

    fn table() -> TableSchema {
        let columns = vec![Column { name: "id".into(), column_type: ColumnType::Int8 }];
        TableSchema {
            id: TableId(1),
            namespace: "public".into(),
            name: "t".into(),
            columns,
            primary_key: vec![0],
            keeps_row_image: true,
        }
    }

    #[test]
    fn descriptions_are_checked() {
        let tables = |text: &str| TableFile::parse(text).map(|file| file.tables);
        assert!(tables(r#"{"tables":[]}"#).is_err());
        let mut keyless = table();
        keyless.primary_key = vec![99];
        assert!(tables(&serde_json::json!({ "tables": [keyless] }).to_string()).is_err());
        assert!(tables(&serde_json::json!({ "tables": [table(), table()] }).to_string()).is_err());
        let dotted = TableSchema { namespace: "x.y".into(), ..table() };
        let refused = tables(&serde_json::json!({ "tables": [dotted] }).to_string()).unwrap_err();
        assert!(refused.contains("ALTER SCHEMA \"x.y\" RENAME TO \"x_y\";"), "{refused}");
        assert_eq!(tables(&serde_json::json!({ "tables": [table()] }).to_string()).unwrap(), [table()]);
    }
}
