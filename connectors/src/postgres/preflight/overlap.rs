//! Tables of which one is a partition of another: each row of it would count for both.

use std::collections::BTreeMap;

use engine::change::TableId;
use tokio_postgres::Client;

use super::super::catalog::CatalogTable;
use super::super::config::{PostgresConfig, TableName};
use super::super::error::Failure;
use super::super::nesting::{nested, overlap};
use super::finding::Finding;

const NAME: &str = "table_overlaps";

/// Of tables that the configuration names it keeps a source from starting. One that is only in the publication may have halted
/// for this, and is then not followed.
pub(super) async fn look(
    client: &Client,
    config: &PostgresConfig,
    tables: &[CatalogTable],
) -> Result<Vec<Finding>, Failure> {
    let names: BTreeMap<TableId, TableName> =
        tables.iter().map(|table| (table.schema.id, TableName::of(&table.schema))).collect();
    let relations: Vec<TableId> = names.keys().copied().collect();
    let mut findings = Vec::new();
    for (below, above) in nested(client, &relations).await? {
        let (Some(below), Some(above)) = (names.get(&below), names.get(&above)) else { continue };
        let error = overlap(&below.to_string(), &above.to_string());
        let configured = config.tables.contains(below) && config.tables.contains(above);
        findings.push(match configured {
            true => Finding::of(NAME, error),
            false => Finding::warning(NAME, error.message).remedy(error.remedy),
        });
    }
    Ok(findings)
}
