//! The publication: there and whole, or ours to make. Each thing that is wrong with one is told with the `ALTER` that
//! repairs it; what only a new one repairs is left to `check_publication`, which has the last word.

use engine::change::TableSchema;
use tokio_postgres::Client;

use super::super::catalog::{PublicationState, check_publication, create_publication, quoted_name};
use super::super::config::PostgresConfig;
use super::super::error::Failure;
use super::Stage;
use super::finding::Finding;

const NAME: &str = "publication";

/// An existing publication.
#[derive(Clone, Debug)]
struct PublicationFacts {
    oid: u32,
    all_tables: bool,
    whole: bool,
    via_root: bool,
}

impl PublicationFacts {
    async fn read(client: &Client, name: &str) -> Result<Option<Self>, Failure> {
        let row = client
            .query_opt(
                "SELECT oid, puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot
                 FROM pg_publication WHERE pubname = $1",
                &[&name],
            )
            .await?;
        row.map(|row| {
            Ok(PublicationFacts {
                oid: row.try_get(0)?,
                all_tables: row.try_get(1)?,
                whole: row.try_get(2)?,
                via_root: row.try_get(3)?,
            })
        })
        .transpose()
    }
}

/// Whether it publishes stored generated columns (18 and newer).
pub(super) async fn publishes_generated(client: &Client, name: &str) -> Result<bool, Failure> {
    let row = client
        .query_opt(
            "SELECT coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false) FROM pg_publication p WHERE pubname = $1",
            &[&name],
        )
        .await?;
    row.map_or(Ok(false), |row| Ok(row.try_get(0)?))
}

/// Looks at the publication for `tables`, of which this role owns those it may publish.
pub(super) async fn look(
    client: &Client,
    config: &PostgresConfig,
    tables: &[TableSchema],
    owned: &[bool],
    stage: Stage,
) -> Result<Vec<Finding>, Failure> {
    let name = &config.publication;
    let Some(facts) = PublicationFacts::read(client, name).await? else {
        return Ok(vec![may_publish(client, config, tables, owned).await?]);
    };
    let mut findings = Vec::new();
    if !facts.all_tables {
        findings = mend(client, config, &facts, tables).await?;
    }
    if findings.is_empty() {
        findings.push(match check_publication(client, name, tables).await {
            Ok(PublicationState::Ready) => Finding::ok(NAME, format!("publication {name} carries {}", count(tables))),
            Ok(PublicationState::Missing) => may_publish(client, config, tables, owned).await?,
            Err(Failure::Definite(error)) => Finding::of(NAME, error),
            Err(other) => return Err(other),
        });
    }
    if stage == Stage::InUse {
        // What was not sent meanwhile is gone, whatever the publication is made into now.
        for finding in findings.iter_mut().filter(|finding| finding.is_failed()) {
            finding.repair.clear();
            finding.check.message.push_str("; changes in between were not sent and cannot be known");
            finding.check.remedy.push_str(" -- then start over with an empty data directory");
        }
    }
    Ok(findings)
}

fn count(tables: &[TableSchema]) -> String {
    match tables {
        [table] => format!("table {}", table.qualified_name()),
        many => format!("all {} tables", many.len()),
    }
}

/// What an `ALTER PUBLICATION` repairs.
async fn mend(
    client: &Client,
    config: &PostgresConfig,
    facts: &PublicationFacts,
    tables: &[TableSchema],
) -> Result<Vec<Finding>, Failure> {
    let name = &config.publication;
    let wrong = |what: String, statements: Vec<String>| {
        Finding::failed(NAME, "publication_mismatch", format!("publication {name} {what}")).repaired_by(statements)
    };
    let mut findings = Vec::new();
    if !facts.whole {
        findings.push(wrong(
            "leaves out inserts, updates, deletes or truncates".to_owned(),
            vec![format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')")],
        ));
    }
    if facts.via_root {
        findings.push(wrong(
            "publishes via the partition root, where truncating a partition is not told".to_owned(),
            vec![format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = false)")],
        ));
    }
    let oids: Vec<u32> = tables.iter().map(|table| table.id.0).collect();
    // Members by name, by their schema, or as partitions of a member. The columns of row filters and column lists exist
    // since 15; asking 14 for them by name would fail.
    let rows = client
        .query(
            "SELECT t.oid,
                    r.prrelid IS NOT NULL OR EXISTS (
                        SELECT 1 FROM pg_publication p JOIN pg_publication_tables m ON m.pubname = p.pubname
                        JOIN pg_namespace n ON n.nspname = m.schemaname
                        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = m.tablename
                        WHERE p.oid = $1 AND c.oid = t.oid),
                    coalesce(to_jsonb(r) ->> 'prqual' IS NOT NULL, false),
                    coalesce(to_jsonb(r) ->> 'prattrs' IS NOT NULL, false)
             FROM unnest($2::oid[]) AS t(oid)
             LEFT JOIN pg_publication_rel r ON r.prpubid = $1 AND r.prrelid = t.oid",
            &[&facts.oid, &oids],
        )
        .await?;
    for row in rows {
        let oid: u32 = row.try_get(0)?;
        let (carried, filtered, narrowed): (bool, bool, bool) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let Some(table) = tables.iter().find(|table| table.id.0 == oid) else { continue };
        let (shown, quoted) = (table.qualified_name(), quoted_name(table));
        if !carried {
            findings.push(wrong(
                format!("does not carry table {shown}"),
                vec![format!("ALTER PUBLICATION {name} ADD TABLE ONLY {quoted}")],
            ));
        } else if filtered || narrowed {
            let what = match (filtered, narrowed) {
                (true, true) => "a row filter and a column list",
                (true, false) => "a row filter",
                _ => "a column list",
            };
            findings.push(wrong(
                format!("has {what} on table {shown}"),
                vec![
                    format!("ALTER PUBLICATION {name} DROP TABLE ONLY {quoted}"),
                    format!("ALTER PUBLICATION {name} ADD TABLE ONLY {quoted}"),
                ],
            ));
        }
    }
    Ok(findings)
}

/// It is not there yet: may we make it?
async fn may_publish(
    client: &Client,
    config: &PostgresConfig,
    tables: &[TableSchema],
    owned: &[bool],
) -> Result<Finding, Failure> {
    let name = &config.publication;
    let may_create: bool =
        client.query_one("SELECT has_database_privilege(current_database(), 'CREATE')", &[]).await?.try_get(0)?;
    let foreign = tables.iter().zip(owned).find(|(_, owned)| !**owned);
    let what = match foreign {
        Some((table, _)) => format!("role {} does not own table {}", config.user, table.qualified_name()),
        None if !may_create => {
            format!("role {} may not create publications in database {}", config.user, config.database)
        }
        None => return Ok(Finding::ok(NAME, format!("publication {name} will be made at the start"))),
    };
    let statement = create_publication(name, tables);
    let finding = Finding::failed(
        NAME,
        "publication_not_permitted",
        format!("publication {name} does not exist and cannot be created: {what}"),
    )
    .repaired_by(vec![statement.clone()]);
    Ok(finding.remedy(format!("{statement}; -- as the tables' owner")))
}
