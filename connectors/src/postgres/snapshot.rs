//! The rows that were there before: a slot, a snapshot of exactly the slot's position, and a read under that snapshot.
//!
//! The surprise: a TRUNCATE or a rewriting ALTER between slot and first read makes the snapshot see an empty table, and
//! the ALTER is followed by no event at all. A lock taken before the slot would prevent it, and can hang forever: a
//! TRUNCATE that waits for the lock has a transaction id, and the slot waits for every transaction that has one. So the
//! lock comes after the import, and then the catalog as of the snapshot must be the catalog of now, down to the files.
//! If it is not, slot and snapshot are made again.

use engine::change::event::TooLarge;
use engine::change::{Changes, ColumnType, Lsn, RowWriter, TableSchema, ValueRef};
use engine::source::{SourceEvent, SourceIdentity, SourceState};
use futures::{StreamExt, pin_mut};
use tokio_postgres::Client;

use super::Link;
use super::catalog::{
    CatalogTable, Fingerprint, PublicationState, check_publication, create_publication, database_identity, quoted_name,
    resolve_tables,
};
use super::config::PostgresConfig;
use super::connect::{replication_session, sql_session};
use super::error::Failure;
use super::pgoutput::value;
use super::preflight::check_server;
use super::slot;

const BATCH_ROWS: usize = 5_000;
const BATCH_BYTES: usize = 1 << 20;

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
        let created = slot::create(&mut exporter, &client, &config.slot).await?;
        let reader = sql_session(config).await?;
        let import = created.snapshot.replace('\'', "''");
        reader
            .batch_execute(&format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{import}'; SET LOCAL row_security = off"
            ))
            .await?;
        drop(exporter);
        reader.batch_execute(&lock_statement(&visible)).await?;
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
    pub(super) async fn send(self, link: &Link) -> Result<(), Failure> {
        let rows_estimated = self.tables.iter().map(|table| table.rows_estimated).sum();
        let mut rows_done = 0u64;
        link.set_state(SourceState::Snapshotting { rows_done, rows_estimated });
        for table in &self.tables {
            let copy = format!(
                "COPY (SELECT {} FROM ONLY {}) TO STDOUT (FORMAT binary)",
                table.copy_columns.join(", "),
                quoted_name(&table.schema)
            );
            let stream = self.reader.copy_out(&copy).await?;
            pin_mut!(stream);
            let mut rows = CopyRows::new(&table.schema);
            while let Some(chunk) = stream.next().await {
                rows.feed(&chunk?).map_err(|error| error.explain(&table.schema))?;
                if rows.batch.len() >= BATCH_ROWS || rows.batch.byte_size() >= BATCH_BYTES {
                    rows_done += rows.batch.len() as u64;
                    link.send(SourceEvent::SnapshotRows(std::mem::take(&mut rows.batch))).await?;
                    link.set_state(SourceState::Snapshotting { rows_done, rows_estimated });
                }
            }
            if !rows.complete() {
                return Err(Failure::Transient(format!("the rows of {} ended early", table.schema.qualified_name())));
            }
            if !rows.batch.is_empty() {
                rows_done += rows.batch.len() as u64;
                link.send(SourceEvent::SnapshotRows(rows.batch)).await?;
                link.set_state(SourceState::Snapshotting { rows_done, rows_estimated });
            }
        }
        self.reader.batch_execute("COMMIT").await?;
        link.send(SourceEvent::SnapshotDone { lsn: self.lsn, time_us: self.time_us }).await
    }
}

fn schemas_of(tables: &[CatalogTable]) -> Vec<TableSchema> {
    tables.iter().map(|table| table.schema.clone()).collect()
}

fn lock_statement(tables: &[CatalogTable]) -> String {
    let names: Vec<String> = tables.iter().map(|table| quoted_name(&table.schema)).collect();
    format!("LOCK TABLE ONLY {} IN ACCESS SHARE MODE", names.join(", ONLY "))
}

const COPY_SIGNATURE: &[u8; 11] = b"PGCOPY\n\xFF\r\n\0";

/// Parses binary COPY. Postgres sends a row per chunk, but nothing promises it: what is cut off is kept for the next.
struct CopyRows<'t> {
    table: &'t TableSchema,
    carry: Vec<u8>,
    batch: Changes,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Header,
    Rows,
    End,
}

/// Why a row could not be read; plain, because it is made per row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CopyError {
    /// Not all bytes are there yet.
    Incomplete,
    TooLarge,
    Malformed,
    Value(usize),
}

impl From<TooLarge> for CopyError {
    fn from(_: TooLarge) -> Self {
        CopyError::TooLarge
    }
}

impl CopyError {
    fn explain(self, table: &TableSchema) -> Failure {
        let name = table.qualified_name();
        match self {
            CopyError::Value(column) => Failure::definite(
                "unreadable_value",
                format!(
                    "column {} of table {name} holds a value that is none of its type",
                    table.columns.get(column).map_or("?", |column| column.name.as_str())
                ),
                "report this with the column's definition; until then leave the table out of the source",
            ),
            CopyError::TooLarge => Failure::definite(
                "row_too_large",
                format!("a row of table {name} is larger than 4 GiB"),
                "leave the table out of the source",
            ),
            CopyError::Incomplete | CopyError::Malformed => Failure::definite(
                "malformed_snapshot",
                format!("the rows of table {name} did not come in the binary COPY format"),
                "check that nothing between Postgres and tidemark changes the stream, then restart tidemark",
            ),
        }
    }
}

impl<'t> CopyRows<'t> {
    fn new(table: &'t TableSchema) -> Self {
        CopyRows { table, carry: Vec::new(), batch: Changes::default(), place: Place::Header }
    }

    fn complete(&self) -> bool {
        self.place == Place::End && self.carry.is_empty()
    }

    fn feed(&mut self, chunk: &[u8]) -> Result<(), CopyError> {
        if self.carry.is_empty() {
            let used = self.parse(chunk)?;
            self.carry.extend_from_slice(chunk.get(used..).unwrap_or_default());
        } else {
            let mut carried = std::mem::take(&mut self.carry);
            carried.extend_from_slice(chunk);
            let used = self.parse(&carried)?;
            carried.drain(..used);
            self.carry = carried;
        }
        Ok(())
    }

    /// Reads all whole rows; returns how many bytes they took.
    fn parse(&mut self, bytes: &[u8]) -> Result<usize, CopyError> {
        let mut rest = bytes;
        loop {
            let mut ahead = rest;
            let step = match self.place {
                Place::Header => header(&mut ahead).map(|()| Place::Rows),
                Place::Rows => self.row(&mut ahead),
                Place::End if rest.is_empty() => Err(CopyError::Incomplete),
                Place::End => Err(CopyError::Malformed),
            };
            match step {
                Ok(place) => {
                    self.place = place;
                    rest = ahead;
                }
                Err(CopyError::Incomplete) => return Ok(bytes.len() - rest.len()),
                Err(error) => return Err(error),
            }
        }
    }

    fn row(&mut self, bytes: &mut &[u8]) -> Result<Place, CopyError> {
        let count = i16::from_be_bytes(take(bytes)?);
        if count == -1 {
            return Ok(Place::End);
        }
        if usize::try_from(count) != Ok(self.table.columns.len()) {
            return Err(CopyError::Malformed);
        }
        let row = self.batch.write_row(|buffer| {
            let mut writer = RowWriter::new(buffer);
            for (index, column) in self.table.columns.iter().enumerate() {
                writer.push(field(bytes, &column.column_type, index)?);
            }
            Ok::<(), CopyError>(())
        })?;
        self.batch.insert(self.table.id, row);
        Ok(Place::Rows)
    }
}

fn header(bytes: &mut &[u8]) -> Result<(), CopyError> {
    if take::<11>(bytes)? != *COPY_SIGNATURE {
        return Err(CopyError::Malformed);
    }
    let _flags = take::<4>(bytes)?;
    let extension = u32::from_be_bytes(take(bytes)?) as usize;
    *bytes = bytes.get(extension..).ok_or(CopyError::Incomplete)?;
    Ok(())
}

fn field<'a>(bytes: &mut &'a [u8], column_type: &ColumnType, index: usize) -> Result<ValueRef<'a>, CopyError> {
    let length = i32::from_be_bytes(take(bytes)?);
    if length == -1 {
        return Ok(ValueRef::Null);
    }
    let length = usize::try_from(length).map_err(|_| CopyError::Malformed)?;
    let (head, tail) = bytes.split_at_checked(length).ok_or(CopyError::Incomplete)?;
    *bytes = tail;
    value::binary(column_type, head).ok_or(CopyError::Value(index))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], CopyError> {
    let (head, tail) = bytes.split_first_chunk::<N>().ok_or(CopyError::Incomplete)?;
    *bytes = tail;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use engine::change::{Change, Column, TableId};
    use proptest::prelude::*;

    use super::*;

    fn table() -> TableSchema {
        let column = |name: &str, column_type| Column { name: name.into(), column_type };
        TableSchema {
            id: TableId(1),
            namespace: "public".into(),
            name: "t".into(),
            columns: vec![column("id", ColumnType::Int4), column("note", ColumnType::Text)],
            primary_key: vec![0],
        }
    }

    fn copy(rows: &[(i32, Option<String>)]) -> Vec<u8> {
        let mut bytes = COPY_SIGNATURE.to_vec();
        bytes.extend([0u8; 8]);
        for (id, note) in rows {
            bytes.extend([0, 2, 0, 0, 0, 4]);
            bytes.extend(id.to_be_bytes());
            match note {
                None => bytes.extend((-1i32).to_be_bytes()),
                Some(note) => {
                    bytes.extend((note.len() as i32).to_be_bytes());
                    bytes.extend(note.as_bytes());
                }
            }
        }
        bytes.extend((-1i16).to_be_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn rows_survive_any_cutting(
            rows in prop::collection::vec((any::<i32>(), proptest::option::of(".{0,20}")), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let bytes = copy(&rows);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let table = table();
            let mut parser = CopyRows::new(&table);
            for window in at.windows(2) {
                parser.feed(&bytes[window[0]..window[1]]).unwrap();
            }
            prop_assert!(parser.complete());
            let mut read = Vec::new();
            for change in parser.batch.iter() {
                let Change::Insert { new, .. } = change else { panic!() };
                let mut values = Vec::new();
                new.decode_into(&mut values).unwrap();
                let (ValueRef::Int(id), note) = (values[0], values[1]) else { panic!() };
                read.push((id as i32, if let ValueRef::Text(note) = note { Some(note.to_owned()) } else { None }));
            }
            prop_assert_eq!(read, rows);
        }

        #[test]
        fn any_bytes_are_rows_or_refused(bytes in any::<Vec<u8>>(), with_header in any::<bool>()) {
            let table = table();
            let mut parser = CopyRows::new(&table);
            if with_header {
                parser.place = Place::Rows;
            }
            let _ = parser.feed(&bytes);
        }
    }
}
