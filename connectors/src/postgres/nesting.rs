//! Which relations are partitions of which tables, as the catalog has it now: a row counts for one followed table only.

use engine::change::TableId;
use tokio_postgres::Client;

use super::config::TableName;
use super::error::{Failure, source_error};

/// Pairs of these relations of which the first is a partition of the second, directly or not.
pub(super) async fn nested(client: &Client, relations: &[TableId]) -> Result<Vec<(TableId, TableId)>, Failure> {
    let oids: Vec<u32> = relations.iter().map(|relation| relation.0).collect();
    let rows = client
        .query(
            "SELECT below.oid, above.relid::oid
             FROM unnest($1::oid[]) AS below(oid), pg_partition_ancestors(below.oid) AS above(relid)
             WHERE above.relid::oid <> below.oid AND above.relid::oid = ANY($1)",
            &[&oids],
        )
        .await?;
    rows.iter().map(|row| Ok((TableId(row.try_get(0)?), TableId(row.try_get(1)?)))).collect()
}

/// The relation of a name, where there is one.
pub(super) async fn relation_of(client: &Client, name: &TableName) -> Result<Option<TableId>, Failure> {
    let row = client
        .query_opt(
            "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relname = $2",
            &[&name.namespace, &name.name],
        )
        .await?;
    row.map(|row| Ok(TableId(row.try_get(0)?))).transpose()
}

/// Why two tables cannot both be followed.
pub(super) fn overlap(below: &str, above: &str) -> engine::source::SourceError {
    source_error(
        "table_overlaps",
        format!("table {below} is a partition of table {above}: its rows would count for both"),
        format!(
            "follow one of the two: leave {below} out, whose rows are among those of {above}, or leave {above} out; a data directory \
             that follows one of them already keeps it: to change over, begin with an empty one (--data NEWDIR)"
        ),
    )
}
