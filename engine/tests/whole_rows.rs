//! A table that keeps no row images, against a naive model: partitions that come, go and are emptied, keys that change,
//! values that are not repeated, registrations at any time, and the engine stopped and opened again in the middle of a
//! reading. The source here does what the port asks: it sends whole old rows, and reads the table anew when told to.
//! A failure prints its seed; run that one with `TIDEMARK_SEED=...`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::time::Duration;

use engine::Engine;
use engine::aggregate::Cell;
use engine::change::event::{OldRow, TooLarge, WrittenRow};
use engine::change::{Changes, Column, ColumnType, Lsn, RowWriter, TableId, TableSchema, Transaction, ValueRef};
use engine::engine::EngineConfig;
use engine::materialization::{AggregateState, Bucket, Definition, group_key};
use engine::source::{
    FollowedTable, ResumePoint, SourceCommand, SourceContext, SourceEvent, SourceIdentity, SourceState, SourceStatus,
    TableState,
};
use engine::store::{StoreMemory, key};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::{mpsc, watch};

const TABLE: TableId = TableId(77);

#[derive(Clone, Debug, PartialEq)]
struct Row {
    part: TableId,
    id: i64,
    kind: String,
    amount: i64,
    note: String,
}

fn schema() -> TableSchema {
    let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
    TableSchema {
        id: TABLE,
        namespace: "public".to_owned(),
        name: "t".to_owned(),
        columns: vec![
            column("id", ColumnType::Int8),
            column("kind", ColumnType::Text),
            column("amount", ColumnType::Int8),
            column("note", ColumnType::Text),
        ],
        primary_key: vec![0],
        keeps_row_image: false,
    }
}

impl Row {
    fn random(rng: &mut ChaCha8Rng, part: TableId, id: i64) -> Row {
        let mut word = |words: &[&str]| words.choose(rng).unwrap().to_string();
        let (kind, note) = (word(&["a", "b", "c"]), word(&["", "long", "longer"]));
        Row { part, id, kind, amount: rng.random_range(-1_000..1_000), note }
    }

    fn write(&self, changes: &mut Changes, note_unchanged: bool) -> WrittenRow {
        changes
            .write_row::<TooLarge>(|buffer| {
                let mut row = RowWriter::new(buffer);
                row.push(ValueRef::Int(self.id));
                row.push(ValueRef::Text(&self.kind));
                row.push(ValueRef::Int(self.amount));
                row.push(if note_unchanged { ValueRef::Unchanged } else { ValueRef::Text(&self.note) });
                Ok(())
            })
            .unwrap()
    }
}

/// What goes on upstream, and where the source is in telling it.
struct Upstream {
    rows: BTreeMap<i64, Row>,
    parts: Vec<TableId>,
    next_part: u32,
    next_id: i64,
    lsn: u64,
    /// Everything since the beginning, for a resume: transactions, and what happened to partitions.
    log: Vec<(Lsn, Logged)>,
    /// Rows of a reading that were not sent yet; `None` where the table is live.
    reading: Option<VecDeque<Row>>,
    wanted: bool,
}

#[derive(Clone)]
enum Logged {
    Transaction(Transaction),
    Added(TableId),
    Gone(TableId),
}

impl Upstream {
    fn change(&mut self, rng: &mut ChaCha8Rng, changes: &mut Changes) {
        let ids: Vec<i64> = self.rows.keys().copied().collect();
        let part = *self.parts.choose(rng).unwrap();
        match (rng.random_range(0..40), ids.choose(rng).copied()) {
            (0, _) => {
                self.rows.retain(|_, row| row.part != part);
                changes.truncate(part);
            }
            (1, _) => {
                // As Postgres tells it: every partition by itself, or the root by its name.
                self.rows.clear();
                match rng.random_bool(0.5) {
                    true => self.parts.iter().for_each(|part| changes.truncate(*part)),
                    false => changes.truncate(TABLE),
                }
            }
            (2..=18, _) | (_, None) => {
                let row = Row::random(rng, part, self.next_id);
                self.next_id += 1;
                let new = row.write(changes, false);
                changes.insert(part, new);
                self.rows.insert(row.id, row);
            }
            (kind, Some(id)) => {
                let before = self.rows.remove(&id).unwrap();
                let old = before.write(changes, false);
                if kind > 33 {
                    return changes.delete(before.part, OldRow::Full(old));
                }
                let moved = kind > 30;
                let keep = rng.random_bool(0.5);
                let mut after = Row::random(rng, before.part, if moved { self.next_id } else { id });
                self.next_id += i64::from(moved);
                if keep {
                    after.note = before.note.clone();
                }
                let new = after.write(changes, keep);
                changes.update(before.part, OldRow::Full(old), new);
                self.rows.insert(after.id, after);
            }
        }
    }
}

struct Session {
    engine: Engine,
    events: mpsc::Sender<SourceEvent>,
    commands: mpsc::Receiver<SourceCommand>,
    /// The engine reads it as long as it runs.
    _status: watch::Sender<SourceStatus>,
}

impl Session {
    async fn open(directory: &std::path::Path, workers: usize, upstream: &mut Upstream) -> Session {
        let config = EngineConfig {
            workers,
            cells_in_memory: 20,
            store_memory: StoreMemory { block_cache: 8 << 20, write_buffer: 1 << 20 },
            ..EngineConfig::new(directory)
        };
        let (engine, context) = Engine::start(&config).unwrap();
        let SourceContext { resume, events, durable: _, status, commands } = context;
        status.send_modify(|status| {
            status.state = SourceState::Live;
            status.upstream_lsn_at_start = Some(Lsn(upstream.lsn));
        });
        let session = Session { engine, events, commands, _status: status };
        let identity = SourceIdentity { connector: "model".to_owned(), ..SourceIdentity::default() };
        session.send(SourceEvent::Tables { identity, tables: vec![schema()] }).await;
        match resume {
            ResumePoint::Fresh => {
                for part in &upstream.parts {
                    session.send(SourceEvent::PartitionAdded { table: TABLE, partition: *part }).await;
                }
                let mut rows = Changes::default();
                for row in upstream.rows.values() {
                    let new = row.write(&mut rows, false);
                    rows.insert(row.part, new);
                }
                session.send(SourceEvent::SnapshotRows(rows)).await;
                session.send(SourceEvent::SnapshotDone { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
            }
            ResumePoint::Resume { lsn, tables, .. } => session.resume(lsn, &tables[0], upstream).await,
        }
        session
    }

    /// A table that was live continues where it is stored; one that was being read is read again.
    async fn resume(&self, lsn: Lsn, stored: &FollowedTable, upstream: &mut Upstream) {
        upstream.reading = None;
        if stored.standing == TableState::Reading {
            self.send(SourceEvent::Progress { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
            return self.begin(upstream).await;
        }
        for (end, logged) in upstream.log.iter().filter(|(end, _)| *end > lsn) {
            assert!(*end > Lsn::ZERO);
            self.send(match logged.clone() {
                Logged::Transaction(transaction) => SourceEvent::Transaction(transaction),
                Logged::Added(partition) => SourceEvent::PartitionAdded { table: TABLE, partition },
                Logged::Gone(partition) => SourceEvent::PartitionGone { table: TABLE, partition },
            })
            .await;
        }
    }

    async fn send(&self, event: SourceEvent) {
        self.events.send(event).await.unwrap();
    }

    async fn begin(&self, upstream: &mut Upstream) {
        upstream.wanted = false;
        upstream.reading = Some(upstream.rows.values().cloned().collect());
        self.send(SourceEvent::TableBegin(schema())).await;
        for part in &upstream.parts {
            self.send(SourceEvent::PartitionAdded { table: TABLE, partition: *part }).await;
        }
    }

    /// One piece of the reading, or its end.
    async fn read_on(&self, upstream: &mut Upstream) {
        let Some(left) = &mut upstream.reading else { return };
        let mut rows = Changes::default();
        for row in left.drain(..left.len().min(7)) {
            let new = row.write(&mut rows, false);
            rows.insert(row.part, new);
        }
        if rows.is_empty() {
            upstream.reading = None;
            return self.send(SourceEvent::TableDone { table: TABLE }).await;
        }
        self.send(SourceEvent::TableRows(rows)).await;
    }

    /// The reading is a snapshot, so what happens meanwhile comes after all of its rows.
    async fn read_all(&self, upstream: &mut Upstream) {
        while upstream.reading.as_ref().is_some_and(|left| !left.is_empty()) {
            self.read_on(upstream).await;
        }
    }

    async fn transaction(&self, rng: &mut ChaCha8Rng, upstream: &mut Upstream) {
        if upstream.reading.is_some() {
            self.read_all(upstream).await;
        }
        let mut changes = Changes::default();
        for _ in 0..rng.random_range(1..8) {
            upstream.change(rng, &mut changes);
        }
        upstream.lsn += rng.random_range(1..100);
        let transaction = Transaction { end_lsn: Lsn(upstream.lsn), commit_time_us: 0, changes };
        upstream.log.push((Lsn(upstream.lsn), Logged::Transaction(transaction.clone())));
        if upstream.reading.is_none() {
            return self.send(SourceEvent::Transaction(transaction)).await;
        }
        self.send(SourceEvent::TableRows(transaction.changes)).await;
        self.send(SourceEvent::Progress { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
    }

    /// A partition comes or goes; not while the table is being read, as connectors begin anew then.
    async fn repartition(&self, rng: &mut ChaCha8Rng, upstream: &mut Upstream) {
        if upstream.reading.is_some() {
            return;
        }
        upstream.lsn += 1;
        let logged = if upstream.parts.len() > 1 && rng.random_bool(0.5) {
            let gone = upstream.parts.swap_remove(rng.random_range(0..upstream.parts.len()));
            upstream.rows.retain(|_, row| row.part != gone);
            self.send(SourceEvent::PartitionGone { table: TABLE, partition: gone }).await;
            Logged::Gone(gone)
        } else {
            let added = TableId(upstream.next_part);
            upstream.next_part += 1;
            upstream.parts.push(added);
            self.send(SourceEvent::PartitionAdded { table: TABLE, partition: added }).await;
            Logged::Added(added)
        };
        upstream.log.push((Lsn(upstream.lsn), logged));
        self.send(SourceEvent::Progress { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
    }

    /// What the engine asks for is begun when nothing else is being read.
    async fn heed(&mut self, upstream: &mut Upstream) {
        while let Ok(SourceCommand::ReadAnew { table }) = self.commands.try_recv() {
            assert_eq!(table, TABLE);
            upstream.wanted = true;
        }
        if upstream.wanted && upstream.reading.is_none() {
            self.begin(upstream).await;
        }
    }

    async fn check(&mut self, upstream: &mut Upstream, registered: &BTreeMap<String, usize>, what: &str) {
        self.send(SourceEvent::Progress { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
        loop {
            self.heed(upstream).await;
            while upstream.reading.is_some() {
                self.read_on(upstream).await;
            }
            assert!(self.engine.wait_for(Lsn(upstream.lsn), Duration::from_secs(20)).await, "{what}");
            let snapshot = self.engine.snapshot().unwrap();
            let state = |name: &String| snapshot.catalog().aggregates[name].state.clone();
            match registered.keys().map(state).find(|state| *state != AggregateState::Live) {
                None => break,
                // The reading that has just ended was not the one that it waits for.
                Some(AggregateState::Building) if upstream.wanted => {}
                Some(AggregateState::Building) => {
                    let mut applied = self.engine.applied();
                    let sequence = snapshot.as_of().sequence;
                    tokio::select! {
                        _ = applied.wait_for(|as_of| as_of.sequence > sequence) => {}
                        command = self.commands.recv() => upstream.wanted |= command.is_some(),
                    }
                }
                Some(state) => panic!("{what}: {state:?}"),
            }
        }
        let snapshot = self.engine.snapshot().unwrap();
        for (name, which) in registered {
            let aggregate = &snapshot.catalog().aggregates[name];
            let mut stored = BTreeMap::new();
            snapshot
                .scan(aggregate, 0, Bucket(i64::MIN), Bucket(i64::MAX), |_, group, cell: &Cell| {
                    let function = aggregate.plan.measures[0].function;
                    let total = function.finish(&cell.accumulators[0]).to_string();
                    stored.insert(group.to_vec(), (cell.rows, total));
                    ControlFlow::Continue(())
                })
                .unwrap();
            assert_eq!(stored, expected(*which, &upstream.rows), "{what}: {name} ({which})");
        }
        snapshot.scrub().unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

fn definitions() -> Vec<Definition> {
    let parse = |json: &str| serde_json::from_str(json).unwrap();
    vec![
        parse(r#"{"table":"t","measures":[{"name":"m","sum":"amount"}],"dimensions":["kind"]}"#),
        parse(r#"{"table":"t","measures":[{"name":"m","count":"*"}],"dimensions":["note"]}"#),
        parse(r#"{"table":"t","measures":[{"name":"m","sum":"id"}],"dimensions":["kind"],"where":"amount > 0"}"#),
    ]
}

fn expected(which: usize, rows: &BTreeMap<i64, Row>) -> BTreeMap<Vec<u8>, (i64, String)> {
    let mut groups: BTreeMap<Vec<u8>, (i64, i64)> = BTreeMap::new();
    for row in rows.values().filter(|row| which != 2 || row.amount > 0) {
        let mut key = Vec::new();
        group_key::push(&mut key, ValueRef::Text(if which == 1 { &row.note } else { &row.kind })).unwrap();
        let group = groups.entry(key).or_default();
        group.0 += 1;
        group.1 += [row.amount, 1, row.id][which];
    }
    groups.into_iter().map(|(key, (rows, total))| (key, (rows, total.to_string()))).collect()
}

async fn history(seed: u64, workers: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut upstream = Upstream {
        rows: BTreeMap::new(),
        parts: vec![TableId(100), TableId(101)],
        next_part: 102,
        next_id: 1,
        lsn: 1_000,
        log: Vec::new(),
        reading: None,
        wanted: false,
    };
    for _ in 0..rng.random_range(0..40) {
        let part = *upstream.parts.choose(&mut rng).unwrap();
        upstream.rows.insert(upstream.next_id, Row::random(&mut rng, part, upstream.next_id));
        upstream.next_id += 1;
    }
    let mut session = Session::open(directory.path(), workers, &mut upstream).await;
    let mut registered = BTreeMap::new();
    for step in 0..rng.random_range(20..60) {
        let what = format!("seed {seed}, {workers} workers, step {step}");
        match rng.random_range(0..20) {
            0..=9 => session.transaction(&mut rng, &mut upstream).await,
            10..=12 => session.read_on(&mut upstream).await,
            13 => session.repartition(&mut rng, &mut upstream).await,
            14 | 15 => {
                let which = rng.random_range(0..definitions().len());
                session.engine.register(&format!("a{step}"), definitions()[which].clone()).await.unwrap();
                registered.insert(format!("a{step}"), which);
            }
            16 => {
                if let Some((name, _)) = registered.pop_first() {
                    assert!(session.engine.drop_aggregate(&name).await.unwrap());
                }
            }
            17 => {
                session.engine.stop().await;
                upstream.wanted = false;
                drop(session);
                session = Session::open(directory.path(), workers, &mut upstream).await;
            }
            _ => session.check(&mut upstream, &registered, &what).await,
        }
        session.heed(&mut upstream).await;
    }
    session.check(&mut upstream, &registered, &format!("seed {seed}, {workers} workers, end")).await;
    session.engine.stop().await;
    drop(session);
    // Nothing of the rows is on disk.
    let store = engine::store::Store::open(directory.path(), StoreMemory::default()).unwrap();
    let mut kept = 0;
    store
        .view()
        .scan(&key::of_kind(key::KeyKind::Row), |_, _| {
            kept += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(kept, 0, "seed {seed}");
}

#[test]
fn without_row_images_every_cell_equals_a_recomputation() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let pasted = std::env::var("TIDEMARK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds: Vec<u64> = pasted.map_or_else(|| (0..60).collect(), |seed| vec![seed]);
    runtime.block_on(async {
        for seed in seeds {
            for workers in 1..=2 {
                let run = tokio::time::timeout(Duration::from_secs(60), history(seed, workers));
                assert!(run.await.is_ok(), "seed {seed}, {workers} workers: no progress for a minute");
            }
        }
    });
}

/// A few rows of one partition.
fn of_one_part(rng: &mut ChaCha8Rng, part: TableId) -> Upstream {
    Upstream {
        rows: (1..40).map(|id| (id, Row::random(rng, part, id))).collect(),
        parts: vec![part],
        next_part: 101,
        next_id: 40,
        lsn: 1_000,
        log: Vec::new(),
        reading: None,
        wanted: false,
    }
}

/// Rows of it were passed over from there on, so its end must not make it live: with row images the aggregates would be filled
/// from too few of them.
async fn halts_while_it_is_read(keeps_row_image: bool) {
    let directory = tempfile::tempdir().unwrap();
    let part = TableId(100);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut upstream = of_one_part(&mut rng, part);
    let mut session = Session::open(directory.path(), 2, &mut upstream).await;
    session.engine.register("a", definitions()[0].clone()).await.unwrap();
    let registered = BTreeMap::from([("a".to_owned(), 0)]);
    session.check(&mut upstream, &registered, "before").await;

    session.send(SourceEvent::TableBegin(TableSchema { keeps_row_image, ..schema() })).await;
    session.send(SourceEvent::PartitionAdded { table: TABLE, partition: part }).await;
    let mut changes = Changes::default();
    let stranger = Row::random(&mut rng, part, 1_000_000).write(&mut changes, false);
    changes.delete(part, OldRow::Key(stranger));
    session.send(SourceEvent::TableRows(changes)).await;
    session.send(SourceEvent::TableDone { table: TABLE }).await;
    upstream.lsn += 1;
    session.send(SourceEvent::Progress { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
    assert!(session.engine.wait_for(Lsn(upstream.lsn), Duration::from_secs(20)).await);
    let snapshot = session.engine.snapshot().unwrap();
    let standing = snapshot.catalog().tables["public.t"].standing.clone();
    assert!(matches!(standing, TableState::Halted { .. }), "{standing:?}");
    let state = snapshot.catalog().aggregates["a"].state.clone();
    assert!(matches!(state, AggregateState::Halted { .. }), "{state:?}");

    // Read anew, it is exact.
    session.begin(&mut upstream).await;
    upstream.lsn += 1;
    session.check(&mut upstream, &registered, "read anew").await;
    session.engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_halts_while_it_is_read_stays_halted() {
    for keeps_row_image in [false, true] {
        halts_while_it_is_read(keeps_row_image).await;
    }
}

async fn until_building(session: &Session, name: &str) {
    let building = AggregateState::Building;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !session.engine.aggregates().iter().any(|aggregate| aggregate.name == name && aggregate.state == building) {
        assert!(tokio::time::Instant::now() < deadline, "{name} is never suspended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// While its table is read, an aggregate that answered is being filled as one that never did; only the latter is given up. After
/// a restart nobody knows which is which, and neither is.
async fn is_given_up_only_before_it_answered(keeps_row_image: bool) {
    let directory = tempfile::tempdir().unwrap();
    let mut upstream = of_one_part(&mut ChaCha8Rng::seed_from_u64(1), TableId(100));
    let mut session = Session::open(directory.path(), 2, &mut upstream).await;
    session.engine.register("old", definitions()[0].clone()).await.unwrap();
    session.check(&mut upstream, &BTreeMap::from([("old".to_owned(), 0)]), "before").await;
    assert!(!session.engine.cancel("old").await.unwrap(), "one that answers was given up");

    session.send(SourceEvent::TableBegin(TableSchema { keeps_row_image, ..schema() })).await;
    until_building(&session, "old").await;
    assert!(!session.engine.cancel("old").await.unwrap(), "one that answered was given up");
    session.engine.register("new", definitions()[1].clone()).await.unwrap();
    assert!(session.engine.cancel("new").await.unwrap(), "one that was never filled was kept");
    session.engine.register("new", definitions()[1].clone()).await.unwrap();
    // Under another number it is still one that was never filled.
    session.send(SourceEvent::TableBegin(TableSchema { keeps_row_image, ..schema() })).await;
    upstream.lsn += 1;
    session.send(SourceEvent::Progress { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
    assert!(session.engine.wait_for(Lsn(upstream.lsn), Duration::from_secs(20)).await);
    assert!(session.engine.cancel("new").await.unwrap(), "one that was never filled was kept");
    session.engine.register("new", definitions()[1].clone()).await.unwrap();
    session.engine.stop().await;
    drop(session);

    let mut session = Session::open(directory.path(), 2, &mut upstream).await;
    for name in ["old", "new"] {
        until_building(&session, name).await;
        assert!(!session.engine.cancel(name).await.unwrap(), "{name} was given up after a restart");
    }
    let both = BTreeMap::from([("old".to_owned(), 0), ("new".to_owned(), 1)]);
    session.check(&mut upstream, &both, "read to the end").await;
    session.engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_answered_once_is_not_given_up() {
    for keeps_row_image in [false, true] {
        is_given_up_only_before_it_answered(keeps_row_image).await;
    }
}
