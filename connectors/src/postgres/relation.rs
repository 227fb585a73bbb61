//! Which column of the wire is which column of our schema.
//!
//! A RELATION message comes before the first row of a session and after anything that might have changed, often with
//! nothing changed. Columns are matched by name and type: new ones are not ours, a missing or retyped one halts, because
//! rows already stored cannot be read under another shape.

use engine::change::{ColumnType, TableId, TableSchema};
use engine::source::SourceError;

use super::catalog::{NONDETERMINISTIC, TypeCatalog};
use super::error::{START_OVER, source_error};
use super::pgoutput::RelationMessage;

/// How to read the rows of one of our tables in this session.
#[derive(Debug)]
pub(super) struct BoundTable {
    pub(super) id: TableId,
    /// In schema order.
    pub(super) columns: Vec<BoundColumn>,
}

#[derive(Debug)]
pub(super) struct BoundColumn {
    /// Position in the rows of the wire.
    pub(super) wire: usize,
    pub(super) column_type: ColumnType,
    pub(super) key: bool,
}

/// Matches a RELATION message with the schema rows are stored under.
pub(super) fn bind(
    message: &RelationMessage<'_>,
    schema: &TableSchema,
    types: &TypeCatalog,
) -> Result<BoundTable, SourceError> {
    let table = schema.qualified_name();
    let changed = |what: String| {
        source_error(
            "schema_changed",
            format!("table {table}: {what}; the rows stored so far do not fit any more"),
            START_OVER,
        )
    };
    if (message.namespace, message.name) != (schema.namespace.as_str(), schema.name.as_str()) {
        return Err(changed(format!("it is now called {}.{}", message.namespace, message.name)));
    }
    let mut columns = Vec::with_capacity(schema.columns.len());
    for (index, column) in schema.columns.iter().enumerate() {
        let found = message.columns.iter().enumerate().find(|(_, wire)| wire.name == column.name);
        let Some((wire, found)) = found else {
            return Err(changed(format!("column {} is gone", column.name)));
        };
        let now = types.column_type(found.type_oid, found.type_modifier);
        if !now.as_ref().is_some_and(|now| same_type(&column.column_type, now)) {
            return Err(changed(format!(
                "column {} was {} and is {}",
                column.name,
                described(&column.column_type),
                now.as_ref().map_or_else(|| "of a type that does not exist any more".to_owned(), described),
            )));
        }
        columns.push(BoundColumn {
            wire,
            column_type: column.column_type.clone(),
            key: schema.primary_key.contains(&index),
        });
    }
    let identified = match message.replica_identity {
        b'f' => true,
        b'd' | b'i' => {
            columns.iter().all(|bound| message.columns.get(bound.wire).is_some_and(|c| c.key == bound.key))
                && message.columns.iter().filter(|c| c.key).count() == schema.primary_key.len()
        }
        _ => false,
    };
    if !identified {
        return Err(changed("its replica identity is not the primary key it had".to_owned()));
    }
    Ok(BoundTable { id: schema.id, columns })
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
