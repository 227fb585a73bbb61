//! Which column of the wire is which column of our schema.
//!
//! A RELATION message comes before the first row of a session and after anything that might have changed, often with
//! nothing changed. Columns are matched by name and type. New ones are not ours. One that is missing or retyped holds NULL
//! from here on, and what used it halts; only without the key, or without the means to recognise a row, the table does.

use engine::change::{ColumnType, TableId};
use engine::source::{FollowedTable, SourceError};

use super::catalog::{NONDETERMINISTIC, TypeCatalog};
use super::config::TableName;
use super::error::source_error;
use super::following::read_anew;
use super::pgoutput::RelationMessage;
use super::signs::renamed;

/// How to read the rows of one relation in this session.
#[derive(Debug)]
pub(super) struct BoundTable {
    /// The relation: rows are told under it.
    pub(super) id: TableId,
    /// In schema order.
    pub(super) columns: Vec<BoundColumn>,
}

#[derive(Debug)]
pub(super) struct BoundColumn {
    /// Position in the rows of the wire; `None` where the value is NULL, whatever comes.
    pub(super) wire: Option<usize>,
    pub(super) column_type: ColumnType,
    pub(super) key: bool,
}

/// What a RELATION message means for a table.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) table: BoundTable,
    /// Columns that cannot be read any more, and why.
    pub(super) unusable: Vec<(usize, String)>,
}

/// Matches a RELATION message with the schema rows are stored under. The error is the table's.
pub(super) fn bind(
    message: &RelationMessage<'_>,
    table: &FollowedTable,
    types: &TypeCatalog,
) -> Result<Binding, SourceError> {
    let schema = &table.schema;
    let name = schema.qualified_name();
    let changed = |what: String| source_error("schema_changed", format!("table {name}: {what}"), read_anew(&name));
    let is_partition = message.relation != schema.id.0;
    if !is_partition && (message.namespace, message.name) != (schema.namespace.as_str(), schema.name.as_str()) {
        return Err(renamed(schema, message.namespace, message.name));
    }
    let mut columns = Vec::with_capacity(schema.columns.len());
    let mut unusable = Vec::new();
    for (index, column) in schema.columns.iter().enumerate() {
        let key = schema.primary_key.contains(&index);
        let wire = match find(message, &column.name, &column.column_type, types) {
            Ok(wire) => Some(wire),
            Err(what) if key => return Err(changed(what)),
            Err(what) => {
                unusable.push((index, what));
                None
            }
        };
        let gone = matches!(column.column_type, ColumnType::Gone(_));
        columns.push(BoundColumn { wire: wire.filter(|_| !gone), column_type: column.column_type.clone(), key });
    }
    unusable.retain(|(index, _)| {
        schema.columns.get(*index).is_some_and(|column| !matches!(column.column_type, ColumnType::Gone(_)))
    });
    if !schema.keeps_row_image && message.replica_identity != b'f' {
        let relation = TableName { namespace: message.namespace.to_owned(), name: message.name.to_owned() };
        return Err(source_error(
            "replica_identity_not_full",
            format!("table {name} keeps no row images, and {relation} does not have REPLICA IDENTITY FULL any more"),
            format!("ALTER TABLE {} REPLICA IDENTITY FULL; -- then {}", relation.quoted(), read_anew(&name)),
        ));
    }
    let in_key = |wire: usize| message.columns.get(wire).is_some_and(|column| column.key);
    let identified = match message.replica_identity {
        b'f' => true,
        b'd' | b'i' => {
            columns.iter().all(|bound| bound.wire.is_none_or(|wire| in_key(wire) == bound.key))
                && message.columns.iter().filter(|column| column.key).count() == schema.primary_key.len()
        }
        _ => false,
    };
    if !identified {
        return Err(changed("its replica identity is not the primary key it had".to_owned()));
    }
    Ok(Binding { table: BoundTable { id: TableId(message.relation), columns }, unusable })
}

/// The column's place on the wire, or what became of it.
fn find(message: &RelationMessage<'_>, name: &str, stored: &ColumnType, types: &TypeCatalog) -> Result<usize, String> {
    let found = message.columns.iter().enumerate().find(|(_, wire)| wire.name == name);
    let (wire, found) = found.ok_or_else(|| format!("column {name} was dropped or renamed"))?;
    let now = types.column_type(found.type_oid, found.type_modifier);
    match &now {
        Some(now) if same_type(stored, now) => Ok(wire),
        Some(now) => Err(format!("column {name} was {} and is {}", described(stored), described(now))),
        None => Err(format!("column {name} was {} and is of a type that does not exist any more", described(stored))),
    }
}

/// The collation of a text column is not on the wire.
fn same_type(stored: &ColumnType, wire: &ColumnType) -> bool {
    stored == wire
        || matches!((stored, wire), (ColumnType::Unsupported(name), ColumnType::Text | ColumnType::Char) if name == NONDETERMINISTIC)
}

fn described(column_type: &ColumnType) -> String {
    match column_type {
        ColumnType::Numeric { scale: Some(scale) } => format!("numeric with {scale} digits after the point"),
        other => other.name().to_owned(),
    }
}
