//! The publication: there and whole, or ours to make. Each thing that is wrong with one is told with the `ALTER` that
//! repairs it, where there is one; else with a new publication.

use engine::change::TableSchema;
use tokio_postgres::Client;

use super::super::catalog::{create_publication, made_whole_and_read, make_whole, quoted_name};
use super::super::config::{PostgresConfig, TableName, quote_identifier};
use super::super::error::{Failure, START_OVER};
use super::super::following::read_anew;
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

/// The tables that a publication names: those that a running source follows, whoever asked for them.
pub(super) async fn members(client: &Client, name: &str) -> Result<Vec<TableName>, Failure> {
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text
             FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
             JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE p.pubname = $1 ORDER BY 1, 2",
            &[&name],
        )
        .await?;
    rows.iter().map(|row| Ok(TableName { namespace: row.try_get(0)?, name: row.try_get(1)? })).collect()
}

/// Looks at the publication for `tables`, of which this role owns those it may publish.
pub(super) async fn look(
    client: &Client,
    config: &PostgresConfig,
    tables: &[TableSchema],
    owned: &[bool],
    stage: Stage,
) -> Result<Vec<Finding>, Failure> {
    if stage == Stage::InUse {
        let facts = PublicationFacts::read(client, &config.publication).await?;
        return in_use(client, config, facts, tables).await;
    }
    match judge(client, config, tables).await? {
        None => Ok(vec![may_publish(client, config, tables, owned).await?]),
        Some(wrong) if wrong.is_empty() => Ok(vec![carries(&config.publication, tables)]),
        Some(wrong) => Ok(wrong),
    }
}

/// What is wrong with a publication that a new slot is to read with; `None` where there is none yet.
pub(super) async fn judge(
    client: &Client,
    config: &PostgresConfig,
    tables: &[TableSchema],
) -> Result<Option<Vec<Finding>>, Failure> {
    let name = &config.publication;
    let Some(facts) = PublicationFacts::read(client, name).await? else { return Ok(None) };
    let anew = |what: &str| {
        let statements = [format!("DROP PUBLICATION {name}"), create_publication(name, tables)];
        Finding::failed(NAME, "publication_mismatch", format!("publication {name} {what}")).statements(&statements)
    };
    if facts.all_tables {
        return Ok(Some(vec![anew("is FOR ALL TABLES")]));
    }
    let mut findings = facts.incomplete(config);
    findings.extend(gaps(client, &facts, tables).await?.into_iter().map(|gap| gap.mend(config)));
    if findings.is_empty() && members(client, name).await?.len() > tables.len() {
        findings.push(anew("carries more tables than this source follows"));
    }
    Ok(Some(findings))
}

/// Of a publication that a slot has been reading with: what was not sent meanwhile is gone, whatever it is made into now; where it
/// is the same one still, reading the tables anew brings it.
async fn in_use(
    client: &Client,
    config: &PostgresConfig,
    facts: Option<PublicationFacts>,
    tables: &[TableSchema],
) -> Result<Vec<Finding>, Failure> {
    let name = &config.publication;
    let changed = |what: &str| {
        let message = format!("publication {name} {what}: changes in between were not sent and cannot be known");
        Finding::failed(NAME, "publication_changed", message)
    };
    let Some(facts) = facts else { return Ok(vec![changed("does not exist any more").remedy(START_OVER)]) };
    if facts.all_tables {
        return Ok(vec![changed("is FOR ALL TABLES").remedy(START_OVER)]);
    }
    if facts.via_root || !facts.whole {
        let finding = changed("leaves out operations, or publishes via the partition root");
        return Ok(vec![finding.repaired_by(vec![make_whole(name)]).remedy(made_whole_and_read(name))]);
    }
    let gaps = gaps(client, &facts, tables).await?;
    if gaps.is_empty() {
        return Ok(vec![carries(name, tables)]);
    }
    Ok(gaps.into_iter().map(|gap| gap.in_use(config)).collect())
}

fn carries(name: &str, tables: &[TableSchema]) -> Finding {
    Finding::ok(NAME, format!("publication {name} carries {}", count(tables)))
}

fn count(tables: &[TableSchema]) -> String {
    match tables {
        [table] => format!("table {}", table.qualified_name()),
        many => format!("all {} tables", many.len()),
    }
}

impl PublicationFacts {
    /// Operations and events that it leaves out, each with the `ALTER` that repairs it.
    fn incomplete(&self, config: &PostgresConfig) -> Vec<Finding> {
        let name = &config.publication;
        let mut findings = Vec::new();
        if !self.whole {
            findings.push(mismatch(
                format!("publication {name} leaves out inserts, updates, deletes or truncates"),
                vec![format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')")],
            ));
        }
        if self.via_root {
            findings.push(mismatch(
                format!(
                    "publication {name} publishes via the partition root, where truncating a partition is not told"
                ),
                vec![format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = false)")],
            ));
        }
        findings
    }
}

fn mismatch(message: String, statements: Vec<String>) -> Finding {
    Finding::failed(NAME, "publication_mismatch", message).repaired_by(statements)
}

/// A table that a publication does not carry, or not whole.
struct Gap<'t> {
    table: &'t TableSchema,
    /// `a row filter`, where it is carried in part.
    part: Option<&'static str>,
}

impl Gap<'_> {
    fn message(&self, config: &PostgresConfig) -> String {
        let (name, table) = (&config.publication, self.table.qualified_name());
        match self.part {
            Some(part) => format!("publication {name} has {part} on table {table}"),
            None => format!("publication {name} does not carry table {table}"),
        }
    }

    fn statements(&self, config: &PostgresConfig) -> Vec<String> {
        let (name, table) = (&config.publication, quoted_name(self.table));
        let mut statements = vec![format!("ALTER PUBLICATION {name} ADD TABLE ONLY {table}")];
        if self.part.is_some() {
            statements.insert(0, format!("ALTER PUBLICATION {name} DROP TABLE ONLY {table}"));
        }
        statements
    }

    fn mend(&self, config: &PostgresConfig) -> Finding {
        mismatch(self.message(config), self.statements(config))
    }

    fn in_use(&self, config: &PostgresConfig) -> Finding {
        let table = self.table.qualified_name();
        if self.part.is_some() {
            let message = format!("{}: changes in between were not sent and cannot be known", self.message(config));
            let finding = Finding::failed(NAME, "publication_changed", message).statements(&self.statements(config));
            let remedy = format!("{} -- then {}", finding.check.remedy, read_anew(&table));
            return finding.remedy(remedy);
        }
        let message =
            format!("{} (yet): it is added when it joins, and halts where it was followed", self.message(config));
        Finding::warning(NAME, message).remedy(read_anew(&table))
    }
}

async fn gaps<'t>(
    client: &Client,
    facts: &PublicationFacts,
    tables: &'t [TableSchema],
) -> Result<Vec<Gap<'t>>, Failure> {
    let oids: Vec<u32> = tables.iter().map(|table| table.id.0).collect();
    // Row filters and column lists exist since 15; asking 14 for them by name would fail.
    let rows = client
        .query(
            "SELECT r.prrelid, coalesce(to_jsonb(r) ->> 'prqual' IS NOT NULL, false),
                    coalesce(to_jsonb(r) ->> 'prattrs' IS NOT NULL, false)
             FROM pg_publication_rel r WHERE r.prpubid = $1 AND r.prrelid = ANY($2)",
            &[&facts.oid, &oids],
        )
        .await?;
    let mut carried: Vec<(u32, bool, bool)> = Vec::with_capacity(rows.len());
    for row in rows {
        carried.push((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    }
    let gap = |table: &'t TableSchema| {
        let part = match carried.iter().find(|(oid, ..)| *oid == table.id.0) {
            None => None,
            Some((_, true, true)) => Some("a row filter and a column list"),
            Some((_, true, false)) => Some("a row filter"),
            Some((_, false, true)) => Some("a column list"),
            Some((_, false, false)) => return None,
        };
        Some(Gap { table, part })
    };
    Ok(tables.iter().filter_map(gap).collect())
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
    let refused = |what: String| {
        let message = format!("publication {name} does not exist and cannot be created: {what}");
        Finding::failed(NAME, "publication_not_permitted", message)
    };
    if let Some((table, _)) = tables.iter().zip(owned).find(|(_, owned)| !**owned) {
        let statement = create_publication(name, tables);
        let remedy = format!("{statement}; -- as a superuser, or as the tables' owner who may CREATE on the database");
        let finding = refused(format!("role {} does not own table {}", config.user, table.qualified_name()));
        return Ok(finding.repaired_by(vec![statement]).remedy(remedy));
    }
    if may_create {
        return Ok(Finding::ok(NAME, format!("publication {name} will be made at the start")));
    }
    // Owning the tables is not enough, so the owner could not make it either.
    let grant = format!(
        "GRANT CREATE ON DATABASE {} TO {}",
        quote_identifier(&config.database),
        quote_identifier(&config.user)
    );
    let what = format!("role {} may not CREATE in database {}", config.user, config.database);
    let remedy = format!("{grant}; -- or, as a superuser: {};", create_publication(name, tables));
    Ok(refused(what).repaired_by(vec![grant]).remedy(remedy))
}
