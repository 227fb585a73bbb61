//! The rows that were there before: a slot, a snapshot of exactly the slot's position, and a read under that snapshot.
//!
//! The surprise: a TRUNCATE or a rewriting ALTER between slot and first read makes the snapshot see an empty table, and
//! the ALTER is followed by no event at all. A lock taken before the slot would prevent it, and can hang forever: a
//! TRUNCATE that waits for the lock has a transaction id, and the slot waits for every transaction that has one. So the
//! lock comes after the import, and then the catalog as of the snapshot must be the catalog of now, down to the files.
//! If it is not, slot and snapshot are made again.

use engine::change::{Lsn, TableSchema};
use engine::source::{SourceEvent, SourceIdentity, SourceState};
use tokio_postgres::Client;

use super::Link;
use super::catalog::{
    CatalogTable, Fingerprint, PublicationState, check_publication, create_publication, database_identity, quoted_name,
    resolve_tables,
};
use super::config::PostgresConfig;
use super::connect::{replication_session, sql_session};
use super::error::Failure;
use super::preflight::check_server;
use super::readers::{Part, Reading, import, lock_statement, read_all};
use super::slot;

/// A reader that sees the tables exactly as they were at `lsn`, where the stream begins.
pub(super) struct Snapshot {
    reader: Client,
    tables: Vec<CatalogTable>,
    pub(super) schemas: Vec<TableSchema>,
    pub(super) identity: SourceIdentity,
    pub(super) fingerprint: Fingerprint,
    pub(super) lsn: Lsn,
    time_us: i64,
}

impl Snapshot {
    /// Creates publication and slot and opens the reader. Nothing was sent to the engine yet, so this may be tried again.
    pub(super) async fn open(config: &PostgresConfig) -> Result<Snapshot, Failure> {
        let client = sql_session(config).await?;
        check_server(&client, config).await?;
        slot::drop_leftover(&client, config).await?;
        let visible = resolve_tables(&client, &config.tables, &config.user).await?;
        let schemas = schemas_of(&visible);
        if check_publication(&client, &config.publication, &schemas).await? == PublicationState::Missing {
            client.batch_execute(&create_publication(&config.publication, &schemas)).await?;
        }
        let fingerprint = Fingerprint::read(&client, &config.publication, &schemas).await?;
        let database = database_identity(&client).await?;

        let (mut exporter, server) = replication_session(config).await?;
        let created = slot::create(&mut exporter, &client, config).await?;
        let reader = import(config, &created.snapshot).await?;
        drop(exporter);
        let names: Vec<String> = visible.iter().map(|table| quoted_name(&table.schema)).collect();
        reader.batch_execute(&lock_statement(names.iter().map(String::as_str))).await?;
        let tables = resolve_tables(&reader, &config.tables, &config.user).await?;
        let schemas = schemas_of(&tables);
        let now = resolve_tables(&client, &config.tables, &config.user).await?;
        let unchanged = tables.iter().map(CatalogTable::version).eq(now.iter().map(CatalogTable::version));
        if !unchanged || fingerprint != Fingerprint::read(&client, &config.publication, &schemas).await? {
            return Err(Failure::Transient("a table was altered or truncated while the slot was made".to_owned()));
        }
        let time_us: i64 = reader
            .query_one(
                "SELECT (extract(epoch FROM clock_timestamp() - '2000-01-01 00:00:00+00'::timestamptz) * 1000000)::int8",
                &[],
            )
            .await?
            .try_get(0)?;
        Ok(Snapshot {
            reader,
            tables,
            schemas,
            identity: SourceIdentity {
                connector: "postgres".to_owned(),
                system: server.system,
                timeline: server.timeline,
                database,
                slot: config.slot.clone(),
            },
            fingerprint,
            lsn: created.consistent_point,
            time_us,
        })
    }

    /// Sends every row, then the end of the snapshot.
    pub(super) async fn send(self, config: &PostgresConfig, link: &Link) -> Result<(), Failure> {
        let rows_estimated = self.tables.iter().map(|table| table.rows_estimated).sum();
        link.set_state(SourceState::Snapshotting { rows_done: 0, rows_estimated });
        let part = |schema: &TableSchema| [Part { id: schema.id, quoted: quoted_name(schema) }];
        let parts: Vec<[Part; 1]> = self.schemas.iter().map(part).collect();
        let readings: Vec<Reading<'_>> = self
            .tables
            .iter()
            .zip(&parts)
            .map(|(table, parts)| Reading { schema: &table.schema, copy_columns: &table.copy_columns, parts })
            .collect();
        read_all(config, &self.reader, &readings, async |rows, rows_done| {
            link.send(SourceEvent::SnapshotRows(rows)).await?;
            link.set_state(SourceState::Snapshotting { rows_done, rows_estimated });
            Ok(())
        })
        .await?;
        self.reader.batch_execute("COMMIT").await?;
        link.send(SourceEvent::SnapshotDone { lsn: self.lsn, time_us: self.time_us }).await
    }
}

fn schemas_of(tables: &[CatalogTable]) -> Vec<TableSchema> {
    tables.iter().map(|table| table.schema.clone()).collect()
}
