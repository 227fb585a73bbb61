//! What a source tells of whole tables, in orders that Postgres makes seldom and that no server can be made to make at will:
//! the engine is fed by hand here. Whatever comes, a total is right or is not shown, and only the table that is wrong stops.

use std::time::Duration;

use engine::Engine;
use engine::change::event::{OldRow, TooLarge, WrittenRow};
use engine::change::{Changes, Column, ColumnType, Lsn, RowWriter, TableId, TableSchema, Transaction, ValueRef};
use engine::engine::EngineConfig;
use engine::materialization::{AggregateState, Definition};
use engine::source::{
    ResumePoint, SourceContext, SourceError, SourceEvent, SourceIdentity, SourceState, SourceStatus, TableState,
};
use tokio::sync::{mpsc, watch};

use crate::support::cells::cells;

/// A partitioned table and its partitions.
const P: TableId = TableId(50);
const P1: TableId = TableId(51);
const P2: TableId = TableId(52);
/// A table beside it.
const OTHER: TableId = TableId(60);

fn schema(id: TableId, name: &str) -> TableSchema {
    let column = |name: &str| Column { name: name.to_owned(), column_type: ColumnType::Int8 };
    TableSchema {
        id,
        namespace: "public".to_owned(),
        name: name.to_owned(),
        columns: vec![column("id"), column("v")],
        primary_key: vec![0],
        keeps_row_image: true,
    }
}

fn row(changes: &mut Changes, id: i64, v: i64) -> WrittenRow {
    let written = changes.write_row::<TooLarge>(|buffer| {
        let mut row = RowWriter::new(buffer);
        row.push(ValueRef::Int(id));
        row.push(ValueRef::Int(v));
        Ok(())
    });
    written.unwrap()
}

fn inserts(rows: &[(TableId, i64, i64)]) -> Changes {
    let mut changes = Changes::default();
    for (relation, id, v) in rows {
        let new = row(&mut changes, *id, *v);
        changes.insert(*relation, new);
    }
    changes
}

/// Of a row that nobody has told.
fn delete_of_a_stranger(changes: &mut Changes, relation: TableId) {
    let old = row(changes, 1_000_000, 0);
    changes.delete(relation, OldRow::Key(old));
}

/// An engine, and the source that feeds it.
struct Fed {
    engine: Engine,
    events: mpsc::Sender<SourceEvent>,
    /// The engine reads it as long as it runs.
    _status: watch::Sender<SourceStatus>,
    lsn: u64,
}

impl Fed {
    /// A new source with these tables and partitions, of these rows.
    async fn start(
        data: &std::path::Path,
        tables: Vec<TableSchema>,
        partitions: &[(TableId, TableId)],
        rows: &[(TableId, i64, i64)],
    ) -> Fed {
        let (mut fed, resume) = Fed::open(data, tables, 1_000).await;
        assert!(matches!(resume, ResumePoint::Fresh));
        for (table, partition) in partitions {
            fed.send(SourceEvent::PartitionAdded { table: *table, partition: *partition }).await;
        }
        fed.send(SourceEvent::SnapshotRows(inserts(rows))).await;
        fed.send(SourceEvent::SnapshotDone { lsn: Lsn(1_000), time_us: 0 }).await;
        fed.settle().await;
        fed
    }

    async fn open(data: &std::path::Path, tables: Vec<TableSchema>, lsn: u64) -> (Fed, ResumePoint) {
        let (engine, context) = Engine::start(&EngineConfig { workers: 2, ..EngineConfig::new(data) }).unwrap();
        let SourceContext { resume, events, durable: _, status, commands: _ } = context;
        status.send_modify(|status| {
            status.state = SourceState::Live;
            status.upstream_lsn_at_start = Some(Lsn(lsn));
        });
        let fed = Fed { engine, events, _status: status, lsn };
        let identity = SourceIdentity { connector: "hand".to_owned(), ..SourceIdentity::default() };
        fed.send(SourceEvent::Tables { identity, tables }).await;
        (fed, resume)
    }

    async fn restart(self, data: &std::path::Path) -> (Fed, ResumePoint) {
        self.engine.stop().await;
        let lsn = self.lsn;
        drop(self);
        let (mut fed, resume) = Fed::open(data, Vec::new(), lsn).await;
        fed.settle().await;
        (fed, resume)
    }

    async fn send(&self, event: SourceEvent) {
        self.events.send(event).await.unwrap();
    }

    async fn transaction(&mut self, changes: Changes) {
        self.lsn += 1;
        let end_lsn = Lsn(self.lsn);
        self.send(SourceEvent::Transaction(Transaction { end_lsn, commit_time_us: 0, changes })).await;
    }

    async fn read(&mut self, schema: TableSchema, partitions: &[TableId], rows: &[(TableId, i64, i64)]) {
        let table = schema.id;
        self.send(SourceEvent::TableBegin(schema)).await;
        for partition in partitions {
            self.send(SourceEvent::PartitionAdded { table, partition: *partition }).await;
        }
        self.send(SourceEvent::TableRows(inserts(rows))).await;
        self.send(SourceEvent::TableDone { table }).await;
    }

    /// Everything that was sent is committed.
    async fn settle(&mut self) {
        self.lsn += 1;
        self.send(SourceEvent::Progress { lsn: Lsn(self.lsn), time_us: 0 }).await;
        let reached = self.engine.wait_for(Lsn(self.lsn), Duration::from_secs(20)).await;
        assert!(reached, "the engine stands still: {:?}", self.engine.snapshot().map(|snapshot| snapshot.as_of()));
    }

    async fn register(&self, name: &str, table: &str) {
        let definition = format!(r#"{{"table":"{table}","measures":[{{"name":"m","sum":"v"}}]}}"#);
        let definition: Definition = serde_json::from_str(&definition).unwrap();
        self.engine.register(name, definition).await.unwrap();
    }

    fn state(&self, name: &str) -> AggregateState {
        self.engine.snapshot().unwrap().catalog().aggregates[name].state.clone()
    }

    fn standing(&self, table: &str) -> TableState {
        self.engine.snapshot().unwrap().catalog().tables[table].standing.clone()
    }

    /// Why an aggregate and its table do not go on.
    async fn assert_halted(&mut self, name: &str, table: &str, why: &str, when: &str) {
        self.settle().await;
        // Whatever fills it is over by then.
        self.transaction(Changes::default()).await;
        self.settle().await;
        assert!(matches!(self.standing(table), TableState::Halted { code, .. } if code == why), "{when}");
        let state = self.state(name);
        assert!(matches!(&state, AggregateState::Halted { code, .. } if code == why), "{when}: {state:?}");
    }

    /// The number of rows and the sum, once the aggregate is filled.
    async fn assert_total(&mut self, name: &str, expected: (u64, i64), when: &str) {
        self.settle().await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let snapshot = self.engine.snapshot().unwrap();
            match &snapshot.catalog().aggregates[name].state {
                AggregateState::Live => {
                    let found = cells(&snapshot, name, "all");
                    let row = vec!["0".to_owned(), expected.0.to_string(), expected.1.to_string()];
                    assert_eq!(found.into_iter().collect::<Vec<_>>(), [row], "{name} {when}");
                    snapshot.scrub().unwrap();
                    return;
                }
                AggregateState::Building => {}
                halted => panic!("{name} {when}: {halted:?}"),
            }
            assert!(tokio::time::Instant::now() < deadline, "{name} {when}: it is never filled");
            let newer = self.engine.newer_than(snapshot.as_of().sequence);
            let _ = tokio::time::timeout(Duration::from_millis(200), newer).await;
        }
    }
}

const ROWS: [(TableId, i64, i64); 3] = [(P1, 1, 10), (P1, 2, 20), (P2, 3, 30)];

async fn partitioned(data: &std::path::Path) -> Fed {
    let mut fed = Fed::start(data, vec![schema(P, "p")], &[(P, P1), (P, P2)], &ROWS).await;
    fed.register("a", "p").await;
    fed.assert_total("a", (3, 60), "at first").await;
    fed
}

fn truncate(relation: TableId) -> Changes {
    let mut changes = Changes::default();
    changes.truncate(relation);
    changes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halted_table_stays_so_whatever_comes_of_its_partitions() {
    let halts = |order: &str| {
        let mut changes = Changes::default();
        if order == "after a truncate" {
            changes.truncate(P2);
        }
        delete_of_a_stranger(&mut changes, P1);
        if order == "before a truncate" {
            changes.truncate(P2);
        }
        changes
    };
    for then in ["PartitionGone", "Truncate", "TableHalted, Truncate", "after a truncate", "before a truncate"] {
        let data = tempfile::tempdir().unwrap();
        let mut fed = partitioned(data.path()).await;
        let mut code = "row_image_missing";
        match then {
            "PartitionGone" => {
                fed.transaction(halts("")).await;
                fed.assert_halted("a", "public.p", code, "at first").await;
                fed.send(SourceEvent::PartitionGone { table: P, partition: P2 }).await;
            }
            "Truncate" => {
                fed.transaction(halts("")).await;
                fed.transaction(truncate(P2)).await;
            }
            // The connector halts it in the middle of a transaction.
            "TableHalted, Truncate" => {
                code = "schema_changed";
                let reason = SourceError { code, message: "another key".to_owned(), remedy: "read it".to_owned() };
                fed.send(SourceEvent::TableHalted { table: P, reason }).await;
                fed.transaction(truncate(P2)).await;
            }
            order => fed.transaction(halts(order)).await,
        }
        fed.transaction(inserts(&[(P1, 9, 9)])).await;
        fed.assert_halted("a", "public.p", code, then).await;
        let (mut fed, _) = fed.restart(data.path()).await;
        fed.assert_halted("a", "public.p", code, &format!("{then}, a restart")).await;
        fed.read(schema(P, "p"), &[P1], &[(P1, 1, 10), (P1, 9, 9)]).await;
        fed.assert_total("a", (2, 19), "read anew").await;
        fed.engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_goes_while_its_table_is_read_fills_nothing() {
    let data = tempfile::tempdir().unwrap();
    let mut fed = partitioned(data.path()).await;
    fed.send(SourceEvent::TableBegin(schema(P, "p"))).await;
    for partition in [P1, P2] {
        fed.send(SourceEvent::PartitionAdded { table: P, partition }).await;
    }
    fed.send(SourceEvent::TableRows(inserts(&ROWS[..1]))).await;
    fed.send(SourceEvent::PartitionGone { table: P, partition: P2 }).await;
    fed.settle().await;
    fed.transaction(Changes::default()).await;
    fed.settle().await;
    assert_eq!(fed.state("a"), AggregateState::Building);
    fed.send(SourceEvent::TableRows(inserts(&ROWS[1..2]))).await;
    fed.send(SourceEvent::TableDone { table: P }).await;
    fed.assert_total("a", (2, 30), "read").await;
    fed.engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_halts_takes_no_others_filling_with_it() {
    const HALTING: u32 = 300;
    const BETWEEN: u32 = 200;
    let data = tempfile::tempdir().unwrap();
    let mut tables = vec![schema(OTHER, "other"), schema(P, "busy")];
    tables.extend((0..HALTING).map(|n| schema(TableId(1_000 + n), &format!("t{n}"))));
    let mut fed = Fed::start(data.path(), tables, &[], &[(OTHER, 1, 10), (OTHER, 2, 20)]).await;
    // One after the other, with so much in between that groups stay open: the end of a filling comes into one of them.
    let events = fed.events.clone();
    let first = fed.lsn + 1;
    let halting = tokio::spawn(async move {
        for n in 0..HALTING * BETWEEN {
            let mut changes = inserts(&[(P, i64::from(n), 1)]);
            if n % BETWEEN == 0 {
                delete_of_a_stranger(&mut changes, TableId(1_000 + n / BETWEEN));
            }
            let transaction = Transaction { end_lsn: Lsn(first + u64::from(n)), commit_time_us: 0, changes };
            events.send(SourceEvent::Transaction(transaction)).await.unwrap();
        }
    });
    let mut names = Vec::new();
    while !halting.is_finished() && names.len() < 100 {
        let batch: Vec<String> = (0..6).map(|n| format!("a{}", names.len() + n)).collect();
        let one = |n: usize| fed.register(&batch[n], "other");
        tokio::join!(one(0), one(1), one(2), one(3), one(4), one(5));
        names.extend(batch);
    }
    halting.await.unwrap();
    fed.lsn = first + u64::from(HALTING * BETWEEN);
    println!("{} were filled meanwhile", names.len());
    for name in names {
        fed.assert_total(&name, (2, 30), "while tables halted").await;
    }
    fed.engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relation_is_of_one_table_and_the_other_halts() {
    let data = tempfile::tempdir().unwrap();
    let rows = [(P1, 1, 10), (P2, 2, 20), (OTHER, 3, 30)];
    let tables = vec![schema(P, "p"), schema(OTHER, "other")];
    let mut fed = Fed::start(data.path(), tables, &[(P, P1), (P, P2)], &rows).await;
    for (name, table) in [("p", "p"), ("other", "other")] {
        fed.register(name, table).await;
    }
    // A table that was followed by itself.
    fed.send(SourceEvent::PartitionAdded { table: P, partition: OTHER }).await;
    fed.transaction(inserts(&[(OTHER, 4, 40)])).await;
    fed.assert_halted("other", "public.other", "schema_changed", "attached").await;
    fed.assert_total("p", (3, 70), "attached").await;
    let (mut fed, _) = fed.restart(data.path()).await;
    fed.transaction(inserts(&[(OTHER, 5, 50)])).await;
    fed.assert_halted("other", "public.other", "schema_changed", "a restart").await;
    fed.assert_total("p", (4, 120), "a restart").await;
    // Its own again.
    fed.send(SourceEvent::PartitionGone { table: P, partition: OTHER }).await;
    fed.read(schema(OTHER, "other"), &[], &[(OTHER, 5, 50)]).await;
    fed.assert_total("p", (2, 30), "detached").await;
    fed.assert_total("other", (1, 50), "detached").await;
    fed.engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_moves_takes_nothing_with_it_when_its_old_table_hears_of_it() {
    let data = tempfile::tempdir().unwrap();
    let cold_part = TableId(61);
    let rows = [(P1, 1, 10), (P2, 2, 20), (cold_part, 3, 30)];
    let tables = vec![schema(P, "hot"), schema(OTHER, "cold")];
    let partitions = [(P, P1), (P, P2), (OTHER, cold_part)];
    let mut fed = Fed::start(data.path(), tables, &partitions, &rows).await;
    for name in ["hot", "cold"] {
        fed.register(name, name).await;
    }
    fed.read(schema(OTHER, "cold"), &[cold_part, P2], &[(cold_part, 3, 30), (P2, 2, 20)]).await;
    fed.assert_halted("hot", "public.hot", "schema_changed", "moved").await;
    fed.send(SourceEvent::PartitionGone { table: P, partition: P2 }).await;
    fed.transaction(inserts(&[(P2, 4, 40)])).await;
    fed.assert_total("cold", (3, 90), "the old table heard of it").await;
    let (mut fed, _) = fed.restart(data.path()).await;
    fed.read(schema(P, "hot"), &[P1], &[(P1, 1, 10)]).await;
    fed.transaction(inserts(&[(P2, 5, 50), (P1, 6, 60)])).await;
    fed.assert_total("cold", (4, 140), "the old table was read anew").await;
    fed.assert_total("hot", (2, 70), "read anew").await;
    fed.engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_under_another_name_is_one_table() {
    let data = tempfile::tempdir().unwrap();
    let mut fed = Fed::start(data.path(), vec![schema(OTHER, "payments")], &[], &[(OTHER, 1, 10)]).await;
    fed.register("old", "payments").await;
    fed.assert_total("old", (1, 10), "at first").await;
    let reason = SourceError { code: "schema_changed", message: "renamed".to_owned(), remedy: "read it".to_owned() };
    fed.send(SourceEvent::TableHalted { table: OTHER, reason }).await;
    fed.read(schema(OTHER, "payments_v1"), &[], &[(OTHER, 1, 10), (OTHER, 2, 20)]).await;
    fed.settle().await;
    fed.register("new", "payments_v1").await;
    for when in ["read under its new name", "a restart"] {
        fed.transaction(inserts(&[(OTHER, fed.lsn as i64, 0)])).await;
        let rows = if when == "a restart" { 4 } else { 3 };
        fed.assert_total("new", (rows, 30), when).await;
        assert_eq!(fed.standing("public.payments_v1"), TableState::Live, "{when}");
        assert_eq!(fed.engine.tables().len(), 1, "{when}");
        let AggregateState::Halted { code, message, remedy } = fed.state("old") else { panic!("{when}") };
        assert_eq!(code, "schema_changed", "{when}");
        assert!(message.contains("is called public.payments_v1 now") && remedy.contains("register it"), "{message}");
        let resume;
        (fed, resume) = fed.restart(data.path()).await;
        let ResumePoint::Resume { tables, .. } = resume else { panic!("{when}") };
        assert_eq!(tables.len(), 1, "{when}");
    }
    // Named back, everything is as it was.
    fed.read(schema(OTHER, "payments"), &[], &[(OTHER, 1, 10)]).await;
    fed.assert_total("old", (1, 10), "named back").await;
    fed.engine.stop().await;
}
