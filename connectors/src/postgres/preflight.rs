//! Start-up mistakes, each found before anything is created, each with a statement to paste.

use engine::change::TableSchema;
use engine::source::SourceError;
use tokio_postgres::Client;

use super::catalog::{CatalogTable, PublicationState, check_publication, create_publication, resolve_tables};
use super::config::{PostgresConfig, quote_identifier};
use super::connect::{replication_session, sql_session};
use super::error::{Failure, source_error};
use super::slot;

/// Looks at everything that can be known before starting. Changes nothing upstream.
pub(super) async fn preflight(config: &PostgresConfig) -> Result<(), SourceError> {
    check(config).await.map_err(|failure| match failure {
        Failure::Definite(error) => error,
        Failure::Transient(message) => source_error(
            "cannot_connect",
            format!("cannot work with Postgres at {}: {message}", config.display()),
            "check that Postgres runs there and that host, port and network let this machine in",
        ),
        Failure::Closed => source_error("cannot_connect", "the session was closed", "try again"),
    })
}

async fn check(config: &PostgresConfig) -> Result<(), Failure> {
    let client = sql_session(config).await?;
    check_server(&client, config).await?;
    let tables = resolve_tables(&client, &config.tables, &config.user).await?;
    let schemas: Vec<TableSchema> = tables.iter().map(|table| table.schema.clone()).collect();
    if check_publication(&client, &config.publication, &schemas).await? == PublicationState::Missing {
        check_may_publish(&client, config, &tables, &schemas).await?;
    }
    check_capacity(&client, config).await?;
    // Replication sessions have their own lines in pg_hba.conf and are what connection poolers cannot do.
    replication_session(config).await?;
    Ok(())
}

/// What the server and the role must be able to do, also looked at before every new slot.
pub(super) async fn check_server(client: &Client, config: &PostgresConfig) -> Result<(), Failure> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int4, current_setting('wal_level'), pg_is_in_recovery(),
                    current_setting('server_encoding'),
                    coalesce((SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user), false)
                    OR EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'rds_replication' AND pg_has_role(oid, 'MEMBER'))",
            &[],
        )
        .await?;
    let version: i32 = row.try_get(0)?;
    let wal_level: String = row.try_get(1)?;
    let in_recovery: bool = row.try_get(2)?;
    let encoding: String = row.try_get(3)?;
    let may_replicate: bool = row.try_get(4)?;
    if version < 140_000 {
        return Err(Failure::definite(
            "version_too_old",
            format!("the server is Postgres {}; binary logical replication needs 14 or newer", version / 10_000),
            "upgrade Postgres to 14 or newer",
        ));
    }
    if in_recovery {
        return Err(Failure::definite(
            "in_recovery",
            "the server is a standby; slots and publications live on the primary",
            "name the primary in the URL",
        ));
    }
    if wal_level != "logical" {
        return Err(Failure::definite(
            "wal_level_not_logical",
            format!("wal_level is {wal_level}; the log does not hold what logical replication needs"),
            "ALTER SYSTEM SET wal_level = 'logical'; -- then restart Postgres",
        ));
    }
    if encoding != "UTF8" {
        return Err(Failure::definite(
            "encoding_not_utf8",
            format!("the database's encoding is {encoding}"),
            "move the tables to a database with ENCODING 'UTF8'",
        ));
    }
    if !may_replicate {
        let role = quote_identifier(&config.user);
        return Err(Failure::definite(
            "role_cannot_replicate",
            format!("role {role} may not use replication"),
            format!("ALTER ROLE {role} REPLICATION;"),
        ));
    }
    Ok(())
}

async fn check_may_publish(
    client: &Client,
    config: &PostgresConfig,
    tables: &[CatalogTable],
    schemas: &[TableSchema],
) -> Result<(), Failure> {
    let may_create: bool =
        client.query_one("SELECT has_database_privilege(current_database(), 'CREATE')", &[]).await?.try_get(0)?;
    let foreign = tables.iter().find(|table| !table.owned);
    let what = match foreign {
        Some(table) => format!("role {} does not own table {}", config.user, table.schema.qualified_name()),
        None if !may_create => {
            format!("role {} may not create publications in database {}", config.user, config.database)
        }
        None => return Ok(()),
    };
    Err(Failure::definite(
        "publication_not_permitted",
        format!("publication {} does not exist and cannot be created: {what}", config.publication),
        format!("as the tables' owner: {};", create_publication(&config.publication, schemas)),
    ))
}

async fn check_capacity(client: &Client, config: &PostgresConfig) -> Result<(), Failure> {
    if let Some(facts) = slot::read(client, &config.slot).await? {
        if facts.plugin.as_deref() != Some("pgoutput") {
            return Err(slot::not_ours(&config.slot, &facts));
        }
        return Ok(());
    }
    let row = client
        .query_one(
            "SELECT (SELECT count(*) FROM pg_replication_slots), current_setting('max_replication_slots')::int8,
                    (SELECT count(*) FROM pg_stat_replication), current_setting('max_wal_senders')::int8",
            &[],
        )
        .await?;
    for (what, setting, used, limit) in [
        ("replication slots", "max_replication_slots", row.try_get::<_, i64>(0)?, row.try_get::<_, i64>(1)?),
        ("replication sessions", "max_wal_senders", row.try_get::<_, i64>(2)?, row.try_get::<_, i64>(3)?),
    ] {
        if used >= limit {
            return Err(Failure::definite(
                if setting == "max_wal_senders" { "no_free_sender" } else { "no_free_slot" },
                format!("all {limit} {what} of the server are in use"),
                format!(
                    "ALTER SYSTEM SET {setting} = {}; -- then restart Postgres, or drop one that nobody needs",
                    limit + 5
                ),
            ));
        }
    }
    Ok(())
}
