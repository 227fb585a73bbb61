//! Reads whole tables as of one snapshot, over several sessions at a time, each a range of a table's pages after another.
//!
//! The surprise: two sessions of ours that lock a table one after the other can wait for each other forever. An ALTER that
//! comes between them waits for the first; the second would queue behind the ALTER; and the first waits here, for the
//! second, where Postgres cannot see it. So the caller's session holds all locks, and the readers lock with NOWAIT or stay
//! away; where all of them do, the caller's session reads. Its lock must be held from the plan to the end: VACUUM FULL moves
//! rows to other pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::change::{Changes, TableId, TableSchema};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use super::config::PostgresConfig;
use super::connect::{copy_session, sql_session};
use super::copy::{CopyError, CopyRows};
use super::error::Failure;
use super::transport::{Copied, CopySession};

const BATCH_ROWS: usize = 10_000;
const BATCH_BYTES: usize = 1 << 20;

/// Batches of each reader that wait for the engine, at most.
const WAITING_BATCHES: usize = 2;

/// More ranges than readers, so that all end at about the same time.
const RANGES_PER_READER: u64 = 4;

/// Below this a range is not worth the COPY of its own (512 KiB at the usual page size).
const LEAST_BLOCKS: u64 = 64;

/// A range holds about this many rows at most.
const MOST_ROWS: u64 = 250_000;

/// One relation that holds rows: an ordinary table, or one partition of a partitioned one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// OID of the relation; its rows are told under it.
    pub(super) id: TableId,
    /// `"schema"."name"`.
    pub(super) quoted: String,
}

/// A table to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading<'a> {
    /// The shape of its rows.
    pub(super) schema: &'a TableSchema,
    /// One SQL expression per column of the schema.
    pub(super) copy_columns: &'a [String],
    /// Where its rows are.
    pub(super) parts: &'a [Part],
}

/// A session with a transaction that sees what the exported snapshot saw. The exporter must live until this returns, and
/// not longer.
pub(super) async fn import(config: &PostgresConfig, snapshot: &str) -> Result<Client, Failure> {
    let reader = sql_session(config).await?;
    reader.batch_execute(&begin(snapshot)).await?;
    Ok(reader)
}

/// Without `row_security` off, a policy would hide rows silently; with it, reading them is an error.
fn begin(snapshot: &str) -> String {
    let snapshot = snapshot.replace('\'', "''");
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{snapshot}'; SET LOCAL row_security = off"
    )
}

/// Keeps everyone from altering, truncating or rewriting these relations until the transaction ends. `ONLY`: inheritance
/// children are tables of their own, and partitions are named one by one.
pub(super) fn lock_statement<'a>(quoted: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = quoted.collect();
    format!("LOCK TABLE ONLY {} IN ACCESS SHARE MODE", names.join(", ONLY "))
}

/// Reads every row of the tables as of the snapshot of `reader`, whose transaction was begun by [`import`] and has locked
/// all parts ([`lock_statement`]). `emit` gets the rows as inserts under their part's id, in no order, and how many there
/// were so far. Returns the number of rows.
///
/// A failure of one reader fails all: the rows emitted so far are then of no use. `reader` must not be used again then.
pub(super) async fn read_all(
    config: &PostgresConfig,
    reader: &Client,
    tables: &[Reading<'_>],
    mut emit: impl AsyncFnMut(Changes, u64) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let plan = Arc::new(Plan::make(reader, tables, config.snapshot_readers).await?);
    let snapshot: String = reader.query_one("SELECT pg_export_snapshot()", &[]).await?.try_get(0)?;
    let readers = config.snapshot_readers.min(plan.pieces.len());
    let (told, mut heard) = mpsc::channel(WAITING_BATCHES * readers.max(1));
    let (present, mut attendance) = mpsc::channel(readers.max(1));
    for number in 1..=readers {
        let calls = Calls { present: present.clone(), told: told.clone() };
        start_reader(config.clone(), snapshot.clone(), Arc::clone(&plan), calls, number)?;
    }
    drop(present);
    // The first that has its locks will do; none is left to be heard of where all stay away.
    let alone = attendance.recv().await.is_none();
    let planned = plan.pieces.len();
    let reading = async move { if alone { plan.read_alone(reader, &told).await } else { Ok(()) } };
    let emitting = async {
        let (mut rows, mut pieces) = (0u64, 0usize);
        while let Some(said) = heard.recv().await {
            match said {
                Told::Rows(changes) => {
                    rows += changes.len() as u64;
                    emit(changes, rows).await?;
                }
                Told::Read => pieces += 1,
                Told::Failed(failure) => return Err(failure),
            }
        }
        Ok((rows, pieces))
    };
    let ((), (rows, read)) = tokio::try_join!(reading, emitting)?;
    // A reader that ended without a word has left its piece unread.
    if planned != read {
        return Err(Failure::Transient(format!("{} of {planned} parts of the tables were not read", planned - read)));
    }
    Ok(rows)
}

/// What readers tell.
enum Told {
    Rows(Changes),
    /// One piece was read to its end.
    Read,
    Failed(Failure),
}

/// How a reader is heard.
struct Calls {
    /// It has its locks.
    present: mpsc::Sender<()>,
    told: mpsc::Sender<Told>,
}

/// A reader on a thread and a session of its own. It ends when all pieces are taken, or when nobody listens any more.
fn start_reader(
    config: PostgresConfig,
    snapshot: String,
    plan: Arc<Plan>,
    calls: Calls,
    number: usize,
) -> Result<(), Failure> {
    let run = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::warn!(%error, "a snapshot reader stays away"),
        };
        let Calls { present, told } = calls;
        runtime.block_on(async {
            let reading = async {
                let mut session = match join(&config, &snapshot, &plan).await {
                    Ok(session) => session,
                    // It has taken nothing, so the others read what it would have.
                    Err(failure) => {
                        tracing::info!(?failure, "a snapshot reader stays away");
                        return Ok(());
                    }
                };
                // Only the first is waited for.
                let _ = present.try_send(());
                drop(present);
                plan.read(&mut session, &told).await?;
                session.execute("COMMIT").await
            };
            tokio::select! {
                read = reading => {
                    if let Err(failure) = read {
                        let _ = told.send(Told::Failed(failure)).await;
                    }
                }
                () = told.closed() => {}
            }
        });
    };
    let thread = std::thread::Builder::new().name(format!("snapshot-{number}"));
    // What it logs is of the source that it reads for.
    let source = tracing::Span::current();
    thread
        .spawn(move || source.in_scope(run))
        .map(drop)
        .map_err(|error| Failure::Transient(format!("a thread cannot be started: {error}")))
}

/// A reader's session, with all locks.
async fn join(config: &PostgresConfig, snapshot: &str, plan: &Plan) -> Result<CopySession, Failure> {
    let mut session = copy_session(config).await?;
    session.execute(&begin(snapshot)).await?;
    session.execute(&format!("{} NOWAIT", plan.lock)).await?;
    Ok(session)
}

/// Everything that has to be read, in pieces that the readers take one after the other.
struct Plan {
    schemas: Vec<TableSchema>,
    pieces: Vec<Piece>,
    next: AtomicUsize,
    lock: String,
}

/// Rows that one COPY reads.
struct Piece {
    /// Position in the plan's schemas.
    schema: usize,
    part: TableId,
    copy: String,
}

impl Plan {
    async fn make(reader: &Client, tables: &[Reading<'_>], readers: usize) -> Result<Plan, Failure> {
        let parts = || tables.iter().flat_map(|table| table.parts);
        let ids: Vec<u32> = parts().map(|part| part.id.0).collect();
        let sizes = reader
            .query(
                "SELECT c.oid, pg_relation_size(c.oid) / current_setting('block_size')::int8,
                        CASE WHEN c.reltuples > 0 AND c.relpages > 0 THEN c.reltuples / c.relpages ELSE 100 END::float8
                 FROM pg_class c WHERE c.oid = ANY($1)",
                &[&ids],
            )
            .await?;
        let mut pieces = Vec::new();
        for (schema, table) in tables.iter().enumerate() {
            for part in table.parts {
                let (mut blocks, mut density) = (0i64, 0f64);
                for row in &sizes {
                    if row.try_get::<_, u32>(0)? == part.id.0 {
                        (blocks, density) = (row.try_get(1)?, row.try_get(2)?);
                    }
                }
                let blocks = u64::try_from(blocks).unwrap_or_default();
                let rows = (blocks as f64 * density) as u64;
                let from = format!("COPY (SELECT {} FROM ONLY {}", table.copy_columns.join(", "), part.quoted);
                for range in ranges(blocks, rows, readers) {
                    let copy = format!("{from}{}) TO STDOUT (FORMAT binary)", range.condition());
                    pieces.push(Piece { schema, part: part.id, copy });
                }
            }
        }
        Ok(Plan {
            schemas: tables.iter().map(|table| table.schema.clone()).collect(),
            pieces,
            next: AtomicUsize::new(0),
            lock: lock_statement(parts().map(|part| part.quoted.as_str())),
        })
    }

    /// The next piece that nobody has taken.
    fn take(&self) -> Option<(&Piece, &TableSchema)> {
        let piece = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed))?;
        Some((piece, self.schemas.get(piece.schema)?))
    }

    /// Reads pieces until all are taken.
    async fn read(&self, session: &mut CopySession, told: &mpsc::Sender<Told>) -> Result<(), Failure> {
        while let Some((piece, schema)) = self.take() {
            session.copy_out(&piece.copy).await?;
            let mut rows = CopyRows::new(schema, piece.part);
            loop {
                match session.next_read()? {
                    Copied::Bytes(bytes) => {
                        rows.feed(session.bytes(bytes)).map_err(|error| explain(error, schema))?;
                        pass_on(&mut rows, told).await?;
                    }
                    Copied::Nothing => session.fill().await?,
                    Copied::End => break,
                }
            }
            finish(rows, schema, told).await?;
        }
        Ok(())
    }

    /// As [`Plan::read`], over the caller's session.
    async fn read_alone(&self, reader: &Client, told: &mpsc::Sender<Told>) -> Result<(), Failure> {
        while let Some((piece, schema)) = self.take() {
            let stream = reader.copy_out(&piece.copy).await?;
            futures::pin_mut!(stream);
            let mut rows = CopyRows::new(schema, piece.part);
            while let Some(chunk) = stream.next().await {
                rows.feed(&chunk?).map_err(|error| explain(error, schema))?;
                pass_on(&mut rows, told).await?;
            }
            finish(rows, schema, told).await?;
        }
        Ok(())
    }
}

/// Tells the rows that were read where there are enough for a batch.
async fn pass_on(rows: &mut CopyRows<'_>, told: &mpsc::Sender<Told>) -> Result<(), Failure> {
    if rows.batch.len() >= BATCH_ROWS || rows.batch.byte_size() >= BATCH_BYTES {
        // The next one will be about as large: growing step by step would copy all its rows once more.
        let next = rows.batch.room_for_another();
        return tell(told, Told::Rows(std::mem::replace(&mut rows.batch, next))).await;
    }
    Ok(())
}

/// Tells the last rows of a piece, and that it was read.
async fn finish(rows: CopyRows<'_>, schema: &TableSchema, told: &mpsc::Sender<Told>) -> Result<(), Failure> {
    if !rows.complete() {
        return Err(Failure::Transient(format!("the rows of {} ended early", schema.qualified_name())));
    }
    if !rows.batch.is_empty() {
        tell(told, Told::Rows(rows.batch)).await?;
    }
    tell(told, Told::Read).await
}

async fn tell(told: &mpsc::Sender<Told>, what: Told) -> Result<(), Failure> {
    told.send(what).await.map_err(|_| Failure::Closed)
}

/// Pages of a relation: from the first, up to and without the second. Both ends may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockRange {
    from: Option<u64>,
    to: Option<u64>,
}

impl BlockRange {
    fn condition(self) -> String {
        match (self.from, self.to) {
            (None, None) => String::new(),
            (None, Some(to)) => format!(" WHERE ctid < '({to},0)'::tid"),
            (Some(from), None) => format!(" WHERE ctid >= '({from},0)'::tid"),
            (Some(from), Some(to)) => format!(" WHERE ctid >= '({from},0)'::tid AND ctid < '({to},0)'::tid"),
        }
    }
}

/// Ranges that cover all pages once, of about the same size. The last one is open: pages may be added meanwhile, though
/// none of their rows is in the snapshot.
fn ranges(blocks: u64, rows: u64, readers: usize) -> Vec<BlockRange> {
    let wanted = (RANGES_PER_READER * readers as u64).max(rows.div_ceil(MOST_ROWS));
    let count = if readers <= 1 { 1 } else { wanted.min(blocks / LEAST_BLOCKS).max(1) };
    let edge = |at: u64| (at > 0 && at < count).then(|| at * blocks / count);
    (0..count).map(|at| BlockRange { from: edge(at), to: edge(at + 1) }).collect()
}

fn explain(error: CopyError, table: &TableSchema) -> Failure {
    let name = table.qualified_name();
    match error {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use std::time::Duration;

    use engine::change::{Change, Column, ColumnType, ValueRef};
    use proptest::prelude::*;

    use super::super::throwaway::ThrowawayPostgres;
    use super::*;

    #[test]
    fn small_tables_are_one_range_and_large_ones_many() {
        let whole = BlockRange { from: None, to: None };
        assert_eq!(ranges(0, 0, 2), [whole]);
        assert_eq!(ranges(LEAST_BLOCKS * 2 - 1, 10_000, 2), [whole]);
        assert_eq!(ranges(1_000_000, 100_000_000, 1), [whole]);
        assert_eq!(ranges(10_000, 500_000, 2).len(), 8);
        assert_eq!(ranges(1_000_000, 100_000_000, 2).len(), 400);
        let conditions: Vec<String> = ranges(200, 10_000, 2).into_iter().map(BlockRange::condition).collect();
        let expected = [
            " WHERE ctid < '(66,0)'::tid",
            " WHERE ctid >= '(66,0)'::tid AND ctid < '(133,0)'::tid",
            " WHERE ctid >= '(133,0)'::tid",
        ];
        assert_eq!(conditions, expected);
    }

    fn schema(id: u32, columns: &[(&str, ColumnType)]) -> TableSchema {
        let columns = columns.iter().map(|(name, t)| Column { name: (*name).into(), column_type: t.clone() }).collect();
        TableSchema {
            id: TableId(id),
            namespace: "public".into(),
            name: "t".into(),
            columns,
            primary_key: vec![0],
            keeps_row_image: true,
        }
    }

    struct Fixture {
        server: ThrowawayPostgres,
        admin: Client,
        config: PostgresConfig,
    }

    impl Fixture {
        async fn start(sql: &str) -> Fixture {
            let server = ThrowawayPostgres::start(&["autovacuum=off"]).unwrap();
            let config = PostgresConfig::new(&server.url(), &["t".into()], "s").unwrap();
            let admin = sql_session(&config).await.unwrap();
            admin.batch_execute(&format!("SET search_path = public; {sql}")).await.unwrap();
            Fixture { server, admin, config }
        }

        async fn oid(&self, name: &str) -> u32 {
            self.admin.query_one("SELECT $1::text::regclass::oid", &[&name]).await.unwrap().get(0)
        }

        /// A locked reader of now.
        async fn reader(&self, config: &PostgresConfig, names: &[&str]) -> Client {
            let exporter = sql_session(&self.config).await.unwrap();
            exporter.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
            let snapshot: String = exporter.query_one("SELECT pg_export_snapshot()", &[]).await.unwrap().get(0);
            let reader = import(config, &snapshot).await.unwrap();
            reader.batch_execute(&lock_statement(names.iter().copied())).await.unwrap();
            reader
        }
    }

    async fn read_ids(config: &PostgresConfig, reader: &Client, readings: &[Reading<'_>]) -> Vec<(u32, i64)> {
        let (mut ids, mut told) = (Vec::new(), 0);
        let rows = read_all(config, reader, readings, async |changes, rows| {
            told += changes.len() as u64;
            assert_eq!(told, rows);
            for change in changes.iter() {
                let Change::Insert { table, new } = change else { panic!() };
                let Some(Ok(ValueRef::Int(id))) = new.columns().next() else { panic!() };
                ids.push((table.0, id));
            }
            Ok(())
        });
        assert_eq!(rows.await.unwrap(), ids.len() as u64);
        ids.sort_unstable();
        ids
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_row_is_read_once_by_any_number_of_readers() {
        // Dead rows, moved rows, holes at the end, nothing at all, and one row of many megabytes.
        let fixture = Fixture::start(
            "CREATE TABLE t (id int8, body text); CREATE TABLE empty (id int8, body text); CREATE TABLE huge (id int8, body text);
             INSERT INTO t SELECT i, repeat('x', i % 700) FROM generate_series(1, 30000) i;
             DELETE FROM t WHERE id % 3 = 0 OR id > 25000; UPDATE t SET body = body || 'y' WHERE id % 5 = 0;
             INSERT INTO t SELECT i, 'late' FROM generate_series(40001, 40100) i;
             ALTER TABLE huge ALTER body SET STORAGE EXTERNAL; INSERT INTO huge VALUES (7, repeat('h', 20000000));",
        )
        .await;
        let columns = ["id".to_owned(), "body".to_owned()];
        let names = ["public.t", "public.empty", "public.huge"];
        let mut schemas = Vec::new();
        for name in names {
            schemas.push(schema(fixture.oid(name).await, &[("id", ColumnType::Int8), ("body", ColumnType::Text)]));
        }
        let part = |schema: &TableSchema, name: &str| [Part { id: schema.id, quoted: name.to_owned() }];
        let parts: Vec<_> = schemas.iter().zip(names).map(|(schema, name)| part(schema, name)).collect();
        let readings: Vec<Reading<'_>> = schemas
            .iter()
            .zip(&parts)
            .map(|(schema, parts)| Reading { schema, copy_columns: &columns, parts })
            .collect();
        let mut expected: Vec<(u32, i64)> = (1..=25000).filter(|i| i % 3 != 0).map(|i| (schemas[0].id.0, i)).collect();
        expected.extend((40001..=40100).map(|i| (schemas[0].id.0, i)));
        expected.push((schemas[2].id.0, 7));

        for (readers, pieces) in [(1, 3), (2, 8 + 2), (5, 14 + 2)] {
            let config = fixture.config.clone().with_snapshot_readers(readers).unwrap();
            let reader = fixture.reader(&config, &names).await;
            let plan = Plan::make(&reader, &readings, readers).await.unwrap();
            assert!((pieces - 2..=pieces + 6).contains(&plan.pieces.len()), "{readers}: {}", plan.pieces.len());
            // None of this is in the snapshot.
            let later = "BEGIN; UPDATE public.t SET body = 'z' || body; INSERT INTO public.t VALUES (-1, 'new');
                         DELETE FROM public.t WHERE id % 7 = 0; INSERT INTO public.empty VALUES (1, 'now'); ROLLBACK";
            let writer = sql_session(&fixture.config).await.unwrap();
            let (ids, wrote) = tokio::join!(read_ids(&config, &reader, &readings), writer.batch_execute(later));
            wrote.unwrap();
            assert_eq!(ids.len(), expected.len());
            assert_eq!(ids, expected, "{readers} readers");
        }
        drop(fixture.server);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn rows_of_partitions_are_told_under_them_in_the_order_of_the_root() {
        let fixture = Fixture::start(
            "CREATE TABLE t (id int8, body text) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10);
             CREATE TABLE t2 (gone int4, body text, id int8); ALTER TABLE t2 DROP gone; ALTER TABLE t ATTACH PARTITION t2 FOR VALUES FROM (10) TO (20);
             INSERT INTO t SELECT i, 'b' FROM generate_series(0, 19) i;",
        )
        .await;
        let (one, two) = (fixture.oid("public.t1").await, fixture.oid("public.t2").await);
        let schema = schema(fixture.oid("public.t").await, &[("id", ColumnType::Int8), ("body", ColumnType::Text)]);
        let part = |id, name: &str| Part { id: TableId(id), quoted: name.to_owned() };
        let parts = [part(one, "public.t1"), part(two, "public.t2")];
        let columns = ["id".to_owned(), "body".to_owned()];
        let reader = fixture.reader(&fixture.config, &["public.t1", "public.t2"]).await;
        let readings = [Reading { schema: &schema, copy_columns: &columns, parts: &parts }];
        let mut expected: Vec<(u32, i64)> = (0..20).map(|i| (if i < 10 { one } else { two }, i)).collect();
        expected.sort_unstable();
        assert_eq!(read_ids(&fixture.config, &reader, &readings).await, expected);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_alter_that_waits_for_the_first_reader_does_not_stop_the_others() {
        let fixture = Fixture::start(
            "CREATE TABLE t (id int8, body text); INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i",
        )
        .await;
        let config = fixture.config.clone().with_snapshot_readers(4).unwrap();
        let schema = schema(fixture.oid("public.t").await, &[("id", ColumnType::Int8)]);
        let parts = [Part { id: schema.id, quoted: "public.t".to_owned() }];
        let readings = [Reading { schema: &schema, copy_columns: &["id".to_owned()], parts: &parts }];
        let reader = fixture.reader(&config, &["public.t"]).await;
        let altering = sql_session(&config).await.unwrap();
        let altered = tokio::spawn(async move { altering.batch_execute("ALTER TABLE public.t ADD c int4").await });
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'";
        while fixture.admin.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let read = tokio::time::timeout(Duration::from_secs(20), read_ids(&config, &reader, &readings)).await;
        assert_eq!(read.expect("readers wait for each other").len(), 20000);
        drop(reader);
        altered.await.unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_policy_is_an_error_and_a_lost_reader_fails_all() {
        let fixture = Fixture::start(
            "CREATE TABLE t (id int8, body text); INSERT INTO t SELECT i, repeat('x', 900) FROM generate_series(1, 40000) i;
             CREATE ROLE plain LOGIN; GRANT SELECT ON t TO plain; ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        )
        .await;
        let schema = schema(fixture.oid("public.t").await, &[("id", ColumnType::Int8), ("body", ColumnType::Text)]);
        let parts = [Part { id: schema.id, quoted: "public.t".to_owned() }];
        let columns = ["id".to_owned(), "body".to_owned()];
        let readings = [Reading { schema: &schema, copy_columns: &columns, parts: &parts }];

        let url = fixture.server.url().replacen("postgres@", "plain@", 1);
        let plain = PostgresConfig::new(&url, &["t".into()], "s").unwrap();
        let reader = fixture.reader(&plain, &["public.t"]).await;
        let failure = read_all(&plain, &reader, &readings, async |_, _| Ok(())).await.unwrap_err();
        let Failure::Definite(error) = failure else { panic!("{failure:?}") };
        assert!(error.code == "permission_denied" && error.message.contains("row-level security"), "{error}");

        // A helper is cut while it reads.
        let config = fixture.config.clone().with_snapshot_readers(3).unwrap();
        let reader = fixture.reader(&config, &["public.t"]).await;
        let pid: i32 = reader.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE query LIKE 'COPY%' AND state = 'active' AND usename = 'postgres' AND pid <> $1";
        let mut cuts = 0;
        let failure = read_all(&config, &reader, &readings, async |_, _| {
            while cuts == 0 {
                cuts = fixture.admin.execute(cut, &[&pid]).await.unwrap();
            }
            Ok(())
        });
        let failure = failure.await.unwrap_err();
        assert!(matches!(failure, Failure::Transient(_)), "{failure:?}");
    }

    proptest! {
        #[test]
        fn ranges_cover_every_block_once(blocks in 0u64..u64::from(u32::MAX), rows in 0u64..1 << 40, readers in 1usize..17) {
            let ranges = ranges(blocks, rows, readers);
            prop_assert_eq!(ranges[0].from, None);
            prop_assert_eq!(ranges[ranges.len() - 1].to, None);
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].to.is_some() && pair[0].to == pair[1].from);
                prop_assert!(pair[0].from.unwrap_or(0) + LEAST_BLOCKS <= pair[0].to.unwrap());
            }
            prop_assert!(ranges.len() == 1 || ranges[ranges.len() - 1].from.unwrap() + LEAST_BLOCKS <= blocks);
        }
    }
}
