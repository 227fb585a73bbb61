//! The rows that were there before: a slot, a snapshot of exactly the slot's position, and a read under that snapshot.
//!
//! The surprise: a TRUNCATE or a rewriting ALTER between slot and first read makes the snapshot see an empty table, and
//! the ALTER is followed by no event at all. A lock taken before the slot would prevent it, and can hang forever: a
//! TRUNCATE that waits for the lock has a transaction id, and the slot waits for every transaction that has one. So the
//! lock comes after the import, and then the catalog as of the snapshot must be the catalog of now, down to the files.
//! If it is not, slot and snapshot are made again.

use engine::change::{Changes, Lsn, TableId, TableSchema};
use engine::source::{SourceEvent, SourceIdentity, SourceState, TableState};
use tokio_postgres::Client;

use super::Link;
use super::catalog::{CatalogTable, create_publication, database_identity, quoted_name, resolve_tables};
use super::config::{PostgresConfig, Wanted};
use super::connect::{replication_session, sql_session};
use super::error::Failure;
use super::following::Following;
use super::preflight::{check_publication, check_server};
use super::readers::{Reading, import, lock_statement, read_all};
use super::signs::Look;
use super::slot::{self, CreatedSlot, NewSlot};
use super::transport::{ReplicationClient, ServerIdentity};

/// How often a slot is made anew for a table that changed in the making.
pub(super) const MADE_ANEW: u32 = 3;

/// A reader that sees tables exactly as they were at `lsn`, where the new slot begins.
pub(super) struct Exported {
    pub(super) reader: Client,
    pub(super) tables: Vec<CatalogTable>,
    pub(super) look: Look,
    pub(super) lsn: Lsn,
    pub(super) server: ServerIdentity,
    /// The session that made the slot.
    pub(super) replication: ReplicationClient,
}

impl Exported {
    /// Makes the slot and opens the reader. Transient where a table changed between the two.
    ///
    /// Where one changed while the slot was made, that is to be made anew, `anew` times at most: one like it can lack the change
    /// for ever, also for transactions that begin after it. A table that changes all the time is then read as of a later slot,
    /// which is gone afterwards, and the changes are followed from there: Postgres decodes a transaction that begins before a slot
    /// is consistent and ends after it by a catalog that lacks what was committed earlier in the making (`DecodeXactOp` passes over
    /// commits until `SNAPBUILD_FULL_SNAPSHOT`). After TRUNCATE such a slot fails for ever, "could not map filenode"; after ALTER its rows
    /// have the old shape. All such transactions have ended when the later slot is made. Where only tables changed that are not
    /// followed, as they do all the time somewhere, the later slot is made at once: of those, too, it cannot decode a row, and one
    /// is enough.
    pub(super) async fn open(
        config: &PostgresConfig,
        client: &Client,
        wanted: &[Wanted],
        new_slot: NewSlot<'_>,
        anew: &mut u32,
    ) -> Result<Exported, Failure> {
        let (mut replication, server) = replication_session(config).await?;
        let before = Catalog::read(client, config, wanted).await?;
        let created = slot::create(&mut replication, client, config, new_slot).await?;
        let mut view = View::open(config, client, wanted, &created, &before).await?;
        let ours_changed = !before.equals(&view.catalog);
        if new_slot.is_followed() && (ours_changed || before.files != view.catalog.files) {
            if let Some(left) = anew.checked_sub(1).filter(|_| ours_changed) {
                *anew = left;
                return Err(Failure::Transient("a table was altered or truncated while the slot was made".to_owned()));
            }
            tracing::info!("a table was altered or truncated while the slot was made: rows are read as of a later one");
            // Whoever waits for its locks is waited for by the later slot.
            view.reader.batch_execute("ROLLBACK").await?;
            let (mut later, _) = replication_session(config).await?;
            let name = slot::passing_name(config, "later");
            let created = slot::create(&mut later, client, config, new_slot.later(&name)).await?;
            view = View::open(config, client, wanted, &created, &view.catalog).await?;
        }
        let View { reader, catalog: Catalog { tables, look, .. }, lsn } = view;
        Ok(Exported { reader, tables, look, lsn, server, replication })
    }

    /// Reads every row; `emit` gets them with the number of rows so far. Consumes the reader's transaction.
    pub(super) async fn read(
        &self,
        config: &PostgresConfig,
        emit: impl AsyncFnMut(Changes, u64) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let readings: Vec<Reading<'_>> = self.tables.iter().map(CatalogTable::reading).collect();
        read_all(config, &self.reader, &readings, emit).await?;
        Ok(self.reader.batch_execute("COMMIT").await?)
    }

    pub(super) fn rows_estimated(&self) -> u64 {
        self.tables.iter().map(|table| table.rows_estimated).sum()
    }
}

/// What the catalog says about tables at one moment.
struct Catalog {
    tables: Vec<CatalogTable>,
    look: Look,
    /// Tells apart which files hold the rows of all tables of the database.
    files: String,
}

/// A hash of the files of every table that is in the log, TOAST tables and materialized views included.
const FILES: &str = "
    SELECT coalesce(encode(sha256(convert_to(string_agg(oid || ' ' || relfilenode, ',' ORDER BY oid), 'UTF8')), 'hex'), '')
    FROM pg_class WHERE relpersistence = 'p' AND relkind IN ('r', 't', 'm') AND oid >= 16384";

impl Catalog {
    async fn read(client: &Client, config: &PostgresConfig, wanted: &[Wanted]) -> Result<Catalog, Failure> {
        let tables = resolve_tables(client, config, wanted).await?;
        let ids: Vec<TableId> = tables.iter().map(|table| table.schema.id).collect();
        let look = Look::take(client, &config.publication, &ids).await?;
        let files = client.query_one(FILES, &[]).await?.try_get(0)?;
        Ok(Catalog { tables, look, files })
    }

    /// Whether nothing was altered, truncated or written anew in between.
    fn equals(&self, other: &Catalog) -> bool {
        self.tables.iter().map(CatalogTable::version).eq(other.tables.iter().map(CatalogTable::version))
            && (&self.look.publication, &self.look.tables) == (&other.look.publication, &other.look.tables)
    }
}

/// The tables as they were when a slot became consistent.
struct View {
    reader: Client,
    catalog: Catalog,
    lsn: Lsn,
}

impl View {
    /// Imports the slot's snapshot and locks what was there before; between slot and lock nothing else may take time.
    async fn open(
        config: &PostgresConfig,
        client: &Client,
        wanted: &[Wanted],
        created: &CreatedSlot,
        before: &Catalog,
    ) -> Result<View, Failure> {
        let to_lock = relations(&before.tables);
        let reader = import(config, &created.snapshot).await?;
        reader.batch_execute(&lock_statement(to_lock.iter().map(String::as_str))).await?;
        let then = Catalog::read(&reader, config, wanted).await?;
        let now = Catalog::read(client, config, wanted).await?;
        if !then.equals(&now) || relations(&then.tables) != to_lock {
            return Err(Failure::Transient("a table was altered or truncated while the slot was made".to_owned()));
        }
        let catalog = Catalog { tables: then.tables, look: now.look, files: then.files };
        Ok(View { reader, catalog, lsn: created.consistent_point })
    }
}

/// The tables and what holds their rows, as SQL names them.
fn relations(tables: &[CatalogTable]) -> Vec<String> {
    let mut relations: Vec<String> = tables.iter().map(|table| quoted_name(&table.schema)).collect();
    relations.extend(tables.iter().flat_map(|table| &table.parts).map(|part| part.quoted.clone()));
    relations.sort();
    relations.dedup();
    relations
}

/// The initial snapshot of a source.
pub(super) struct Snapshot {
    exported: Exported,
    pub(super) identity: SourceIdentity,
    time_us: i64,
}

impl Snapshot {
    /// Creates publication and slot and opens the reader. Nothing was sent to the engine yet, so this may be tried again.
    pub(super) async fn open(config: &PostgresConfig, link: &Link, anew: &mut u32) -> Result<Snapshot, Failure> {
        let client = sql_session(config).await?;
        check_server(&client, config).await?;
        slot::drop_leftover(&client, config).await?;
        let wanted = config.wanted_tables();
        let tables = resolve_tables(&client, config, &wanted).await?;
        let schemas: Vec<TableSchema> = tables.into_iter().map(|table| table.schema).collect();
        if !check_publication(&client, config, &schemas).await? {
            client.batch_execute(&create_publication(&config.publication, &schemas)).await?;
        }
        let database = database_identity(&client).await?;
        let exported = Exported::open(config, &client, &wanted, NewSlot::Permanent(link), anew).await?;
        let time_us: i64 = exported
            .reader
            .query_one(
                "SELECT (extract(epoch FROM clock_timestamp() - '2000-01-01 00:00:00+00'::timestamptz) * 1000000)::int8",
                &[],
            )
            .await?
            .try_get(0)?;
        let identity = SourceIdentity {
            connector: "postgres".to_owned(),
            system: exported.server.system.clone(),
            timeline: exported.server.timeline,
            database,
            slot: config.slot.clone(),
        };
        Ok(Snapshot { exported, identity, time_us })
    }

    /// Where the stream begins.
    pub(super) fn lsn(&self) -> Lsn {
        self.exported.lsn
    }

    /// The tables as they are to be followed.
    pub(super) fn following(&self) -> Following {
        let mut following = Following::default();
        for table in &self.exported.tables {
            following.put(table.followed(TableState::Live), &self.exported.look);
        }
        following.note_publication(&self.exported.look);
        following
    }

    /// Sends every row, then the end of the snapshot.
    pub(super) async fn send(self, config: &PostgresConfig, link: &Link) -> Result<(), Failure> {
        let rows_estimated = self.exported.rows_estimated();
        link.set_state(SourceState::Snapshotting { rows_done: 0, rows_estimated });
        let emit = async |rows, rows_done| {
            link.send(SourceEvent::SnapshotRows(rows)).await?;
            link.set_state(SourceState::Snapshotting { rows_done, rows_estimated });
            Ok(())
        };
        self.exported.read(config, emit).await?;
        link.send(SourceEvent::SnapshotDone { lsn: self.exported.lsn, time_us: self.time_us }).await
    }
}
