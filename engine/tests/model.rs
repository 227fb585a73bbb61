//! Random histories against a naive model: after every few transactions each cell of each aggregate and level equals a
//! recomputation from scratch, for one to three workers, with aggregates registered and dropped in the middle and the
//! engine stopped and opened again. A failure prints its seed; run that one with `TIDEMARK_SEED=...`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use chrono::{DateTime, Datelike, TimeZone, Utc};
use engine::aggregate::Cell;
use engine::change::event::{OldRow, TooLarge};
use engine::change::{
    Changes, Column, ColumnType, Lsn, Numeric, RowWriter, TableId, TableSchema, Transaction, ValueRef,
};
use engine::engine::EngineConfig;
use engine::materialization::{AggregateState, Bucket, Definition, group_key};
use engine::source::{ResumePoint, SourceContext, SourceEvent, SourceIdentity, SourceState};
use engine::store::StoreMemory;
use engine::{Engine, Snapshot};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const TABLE: TableId = TableId(4242);
const DAY_US: i64 = 86_400_000_000;

#[derive(Clone, Debug, PartialEq)]
struct Row {
    id: i64,
    account: Option<String>,
    currency: String,
    /// Cents; `None` is NULL, `Some(None)` is NaN.
    amount: Option<Option<i64>>,
    weight: f64,
    at: Option<i64>,
    settled: Option<bool>,
    note: String,
}

fn schema() -> TableSchema {
    let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
    TableSchema {
        id: TABLE,
        namespace: "public".to_owned(),
        name: "payments".to_owned(),
        columns: vec![
            column("id", ColumnType::Int8),
            column("account", ColumnType::Text),
            column("currency", ColumnType::Char),
            column("amount", ColumnType::Numeric { scale: Some(2) }),
            column("weight", ColumnType::Float8),
            column("at", ColumnType::TimestampTz),
            column("settled", ColumnType::Bool),
            column("note", ColumnType::Text),
        ],
        primary_key: vec![0],
        keeps_row_image: true,
    }
}

impl Row {
    fn random(rng: &mut ChaCha8Rng, id: i64) -> Row {
        let at = match rng.random_range(0..20) {
            0 => None,
            1 => Some(i64::MAX),
            2 => Some(i64::MIN),
            3 => Some(-150_000 * DAY_US),
            // A winter's day: chrono knows no summer time that far ahead.
            4 => Some(engine::materialization::bucket::days_from_civil(200_000, 1, 15) * DAY_US),
            _ => Some(rng.random_range(9_000..9_500) * DAY_US + rng.random_range(0..DAY_US)),
        };
        Row {
            id,
            account: ["a", "b", "", "\0x", "ES91"]
                .choose(rng)
                .map(|v| (*v).to_owned())
                .filter(|_| rng.random_ratio(9, 10)),
            currency: ["EUR", "USD", "JPY"].choose(rng).unwrap().to_string(),
            amount: match rng.random_range(0..12) {
                0 => None,
                1 => Some(None),
                _ => Some(Some(rng.random_range(-100_000..100_000))),
            },
            weight: f64::from(rng.random_range(-1_000i32..1_000)) * 0.1,
            at,
            settled: [None, Some(true), Some(true), Some(false)].choose(rng).copied().unwrap(),
            note: "n".repeat(rng.random_range(0..40)),
        }
    }

    fn write(&self, buffer: &mut Vec<u8>, note_unchanged: bool) -> Result<(), TooLarge> {
        let mut row = RowWriter::new(buffer);
        row.push(ValueRef::Int(self.id));
        row.push(self.account.as_deref().map_or(ValueRef::Null, ValueRef::Text));
        row.push(ValueRef::Text(&self.currency));
        row.push(match self.amount {
            None => ValueRef::Null,
            Some(None) => ValueRef::Numeric(Numeric::NaN),
            Some(Some(cents)) => ValueRef::Numeric(Numeric::Finite { mantissa: i128::from(cents), scale: 2 }),
        });
        row.push(ValueRef::Float(self.weight));
        row.push(self.at.map_or(ValueRef::Null, ValueRef::Timestamp));
        row.push(self.settled.map_or(ValueRef::Null, ValueRef::Bool));
        row.push(if note_unchanged { ValueRef::Unchanged } else { ValueRef::Text(&self.note) });
        Ok(())
    }

    fn write_key(id: i64, buffer: &mut Vec<u8>) -> Result<(), TooLarge> {
        let mut row = RowWriter::new(buffer);
        row.push(ValueRef::Int(id));
        (0..7).for_each(|_| row.push(ValueRef::Null));
        Ok(())
    }
}

/// Upstream: the table, and the log.
struct Upstream {
    rows: BTreeMap<i64, Row>,
    lsn: u64,
    next_id: i64,
    log: Vec<Transaction>,
}

impl Upstream {
    fn transaction(&mut self, rng: &mut ChaCha8Rng) -> Transaction {
        let mut changes = Changes::default();
        if rng.random_ratio(1, 60) {
            self.rows.clear();
            changes.truncate(TABLE);
        }
        for _ in 0..rng.random_range(0..8) {
            self.change(rng, &mut changes);
        }
        if rng.random_ratio(1, 80) {
            self.rows.clear();
            changes.truncate(TABLE);
        }
        self.lsn += rng.random_range(1..100);
        let transaction = Transaction { end_lsn: Lsn(self.lsn), commit_time_us: self.lsn as i64, changes };
        self.log.push(transaction.clone());
        transaction
    }

    fn change(&mut self, rng: &mut ChaCha8Rng, changes: &mut Changes) {
        let ids: Vec<i64> = self.rows.keys().copied().collect();
        let existing = ids.choose(rng).copied();
        match (rng.random_range(0..10), existing) {
            (0..=4, _) | (_, None) => {
                let row = Row::random(rng, self.next_id);
                self.next_id += 1;
                let new = changes.write_row::<TooLarge>(|b| row.write(b, false)).unwrap();
                changes.insert(TABLE, new);
                self.rows.insert(row.id, row);
            }
            (5..=6, Some(id)) => {
                let keep = rng.random_bool(0.5);
                let mut row = Row::random(rng, id);
                if keep {
                    row.note = self.rows[&id].note.clone();
                }
                let full = rng.random_ratio(1, 3).then(|| self.rows[&id].clone());
                let old = full.map_or(OldRow::Absent, |old| {
                    OldRow::Full(changes.write_row::<TooLarge>(|b| old.write(b, false)).unwrap())
                });
                let new = changes.write_row::<TooLarge>(|b| row.write(b, keep)).unwrap();
                changes.update(TABLE, old, new);
                self.rows.insert(id, row);
            }
            (7, Some(id)) => {
                let keep = rng.random_bool(0.5);
                let mut row = Row::random(rng, self.next_id);
                self.next_id += 1;
                if keep {
                    row.note = self.rows[&id].note.clone();
                }
                let old = changes.write_row::<TooLarge>(|b| Row::write_key(id, b)).unwrap();
                let new = changes.write_row::<TooLarge>(|b| row.write(b, keep)).unwrap();
                changes.update(TABLE, OldRow::Key(old), new);
                self.rows.remove(&id);
                self.rows.insert(row.id, row);
            }
            (_, Some(id)) => {
                let old = changes.write_row::<TooLarge>(|b| Row::write_key(id, b)).unwrap();
                changes.delete(TABLE, OldRow::Key(old));
                self.rows.remove(&id);
            }
        }
    }
}

/// What an aggregate should hold, from scratch.
type Expected = BTreeMap<(usize, i64, Vec<u8>), (i64, String)>;

fn definitions() -> Vec<Definition> {
    let parse = |json: &str| serde_json::from_str(json).unwrap();
    vec![
        parse(
            r#"{"table":"payments","measures":[{"name":"amount","sum":"amount"},{"name":"n","count":"*"},{"name":"v","count":"amount"}],
               "dimensions":["currency"],"time":{"column":"at","granularity":"day","time_zone":"Europe/Madrid"},
               "rollups":["month","year","all"]}"#,
        ),
        parse(
            r#"{"table":"payments","measures":[{"name":"amount","sum":"amount"},{"name":"w","sum":"weight"},{"name":"ids","sum":"id"}],
               "dimensions":["account","currency","settled"],"time":{"column":"at","granularity":"month"},
               "where":"settled = true and (amount > 0 or currency in ('USD'))"}"#,
        ),
        parse(r#"{"table":"payments","measures":[{"name":"w","sum":"weight"}],"dimensions":["amount"]}"#),
        parse(
            r#"{"table":"payments","measures":[{"name":"n","count":"*"}],
               "time":{"column":"at","granularity":"PT6H","origin":"2024-01-01T03:00:00Z"}}"#,
        ),
    ]
}

fn instant(us: i64) -> Option<DateTime<Utc>> {
    Utc.timestamp_micros(us.checked_add(946_684_800_000_000)?).single()
}

fn micros(time: &DateTime<impl TimeZone>) -> i64 {
    time.timestamp_micros() - 946_684_800_000_000
}

/// The start of a civil period, by chrono.
fn civil_start(us: i64, zone: chrono_tz::Tz, unit: &str) -> i64 {
    let local = instant(us).unwrap().with_timezone(&zone).date_naive();
    let first = match unit {
        "day" => local,
        "month" => local.with_day(1).unwrap(),
        _ => local.with_ordinal(1).unwrap(),
    };
    micros(&zone.from_local_datetime(&first.and_hms_opt(0, 0, 0).unwrap()).earliest().unwrap())
}

fn expected(which: usize, rows: &BTreeMap<i64, Row>) -> Expected {
    let mut groups: BTreeMap<(usize, i64, Vec<u8>), Vec<&Row>> = BTreeMap::new();
    for row in rows.values() {
        let special = match row.at {
            None => Some(Bucket::NULL.0),
            Some(i64::MAX) => Some(Bucket::INFINITY.0),
            Some(i64::MIN) => Some(Bucket::NEGATIVE_INFINITY.0),
            Some(_) => None,
        };
        let at = row.at.unwrap_or_default();
        let civil = |zone, unit| special.unwrap_or_else(|| civil_start(at, zone, unit));
        let mut key = Vec::new();
        let mut push = |value: ValueRef<'_>| group_key::push(&mut key, value).unwrap();
        let amount = match row.amount {
            None => ValueRef::Null,
            Some(None) => ValueRef::Numeric(Numeric::NaN),
            Some(Some(cents)) => ValueRef::Numeric(Numeric::Finite { mantissa: i128::from(cents), scale: 2 }),
        };
        let buckets: Vec<i64> = match which {
            0 => {
                push(ValueRef::Text(&row.currency));
                let madrid = chrono_tz::Europe::Madrid;
                vec![civil(madrid, "day"), civil(madrid, "month"), civil(madrid, "year"), 0]
            }
            1 => {
                let positive = row.amount.is_some_and(|amount| amount.is_none_or(|cents| cents > 0));
                if row.settled != Some(true) || !(positive || row.currency == "USD") {
                    continue;
                }
                push(row.account.as_deref().map_or(ValueRef::Null, ValueRef::Text));
                push(ValueRef::Text(&row.currency));
                push(ValueRef::Bool(true));
                vec![civil(chrono_tz::UTC, "month")]
            }
            2 => {
                push(amount);
                vec![0]
            }
            _ => {
                let origin = micros(&Utc.with_ymd_and_hms(2024, 1, 1, 3, 0, 0).unwrap());
                vec![special.unwrap_or_else(|| at - (at - origin).rem_euclid(DAY_US / 4))]
            }
        };
        for (level, bucket) in buckets.into_iter().enumerate() {
            groups.entry((level, bucket, key.clone())).or_default().push(row);
        }
    }
    groups.into_iter().map(|(key, rows)| (key, (rows.len() as i64, measures(which, &rows)))).collect()
}

fn measures(which: usize, rows: &[&Row]) -> String {
    let amounts: Vec<Option<i64>> = rows.iter().filter_map(|row| row.amount).collect();
    let amount = if amounts.is_empty() {
        String::new()
    } else if amounts.contains(&None) {
        "NaN".to_owned()
    } else {
        let cents: i64 = amounts.iter().flatten().sum();
        format!("{}{}.{:02}", if cents < 0 { "-" } else { "" }, cents.abs() / 100, cents.abs() % 100)
    };
    // Weights are tenths as doubles: their exact sum, rounded once, by another way of adding.
    let weight = || {
        let (mut sum, mut error) = (0f64, 0f64);
        let mut weights: Vec<f64> = rows.iter().map(|row| row.weight).collect();
        weights.sort_by(|a, b| b.abs().total_cmp(&a.abs()));
        for weight in weights {
            let total = sum + weight;
            error += if sum.abs() >= weight.abs() { (sum - total) + weight } else { (weight - total) + sum };
            sum = total;
        }
        sum + error
    };
    match which {
        0 => format!("{amount}|{}|{}", rows.len(), amounts.len()),
        1 => format!("{amount}|{}|{}", weight(), rows.iter().map(|row| row.id).sum::<i64>()),
        2 => format!("{}", weight()),
        _ => format!("{}", rows.len()),
    }
}

fn stored(snapshot: &Snapshot, name: &str) -> Expected {
    let aggregate = &snapshot.catalog().aggregates[name];
    let mut cells = Expected::new();
    for level in 0..aggregate.plan.levels.len() {
        snapshot
            .scan(aggregate, level, Bucket(i64::MIN), Bucket(i64::MAX), |bucket, group, cell: &Cell| {
                let shown: Vec<String> = aggregate
                    .plan
                    .measures
                    .iter()
                    .zip(&cell.accumulators)
                    .map(|(measure, accumulator)| measure.function.finish(accumulator).to_string())
                    .collect();
                cells.insert((level, bucket.0, group.to_vec()), (cell.rows, shown.join("|")));
                ControlFlow::Continue(())
            })
            .unwrap();
    }
    cells
}

fn config(directory: &std::path::Path, workers: usize, cells_in_memory: usize) -> EngineConfig {
    EngineConfig {
        workers,
        cells_in_memory,
        store_memory: StoreMemory { block_cache: 8 << 20, write_buffer: 1 << 20 },
        ..EngineConfig::new(directory)
    }
}

/// Plays one source: announces itself, and keeps the engine's view of upstream up to date.
struct Session {
    engine: Engine,
    context: SourceContext,
}

impl Session {
    async fn open(directory: &std::path::Path, workers: usize, cells: usize, upstream: &Upstream) -> Session {
        let (engine, context) = Engine::start(&config(directory, workers, cells)).unwrap();
        context.status.send_modify(|status| {
            status.state = SourceState::Live;
            status.upstream_lsn_at_start = Some(Lsn(upstream.lsn));
        });
        let identity = SourceIdentity { connector: "model".to_owned(), ..SourceIdentity::default() };
        context.events.send(SourceEvent::Tables { identity, tables: vec![schema()] }).await.unwrap();
        Session { engine, context }
    }

    /// What a source sends first: on a resume what was still on its way and a little more than that, else the rows.
    async fn feed(&self, upstream: &Upstream, durable: Lsn, what: &str) {
        if let ResumePoint::Resume { lsn, .. } = &self.context.resume {
            assert_eq!(*lsn, durable, "{what}");
            let from = upstream.log.partition_point(|transaction| transaction.end_lsn <= *lsn);
            for transaction in &upstream.log[from.saturating_sub(3)..] {
                self.send(SourceEvent::Transaction(transaction.clone())).await;
            }
            return;
        }
        let mut rows = Changes::default();
        for row in upstream.rows.values() {
            let written = rows.write_row::<TooLarge>(|b| row.write(b, false)).unwrap();
            rows.insert(TABLE, written);
        }
        self.send(SourceEvent::SnapshotRows(rows)).await;
        self.send(SourceEvent::SnapshotDone { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
    }

    async fn send(&self, event: SourceEvent) {
        self.context.events.send(event).await.unwrap();
    }

    async fn check(&self, upstream: &Upstream, registered: &BTreeMap<String, usize>, what: &str) {
        assert!(
            self.engine.wait_for(Lsn(upstream.lsn), Duration::from_secs(20)).await,
            "{what}: {:?}",
            self.engine.status()
        );
        for (name, which) in registered {
            loop {
                let snapshot = self.engine.snapshot().unwrap();
                match &snapshot.catalog().aggregates[name].state {
                    AggregateState::Live => {
                        assert_eq!(
                            stored(&snapshot, name),
                            expected(*which, &upstream.rows),
                            "{what}: {name} ({which})"
                        );
                        break;
                    }
                    AggregateState::Building => {
                        let mut applied = self.engine.applied();
                        let sequence = snapshot.as_of().sequence;
                        let _ = applied.wait_for(|as_of| as_of.sequence > sequence).await;
                    }
                    state => panic!("{what}: {name}: {state:?}"),
                }
            }
        }
        self.engine.snapshot().unwrap().scrub().unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

async fn history(seed: u64, workers: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut upstream = Upstream { rows: BTreeMap::new(), lsn: 1_000, next_id: 1, log: Vec::new() };
    for _ in 0..rng.random_range(0..50) {
        let row = Row::random(&mut rng, upstream.next_id);
        upstream.next_id += 1;
        upstream.rows.insert(row.id, row);
    }
    // A tiny memory makes cells leave it and come back.
    let cells = *[0, 20, 1_000_000].choose(&mut rng).unwrap();
    let mut session = Session::open(directory.path(), workers, cells, &upstream).await;
    let mut registered = BTreeMap::new();
    let all = definitions();
    session.feed(&upstream, Lsn::ZERO, "start").await;
    for step in 0..rng.random_range(3..10) {
        let what = format!("seed {seed}, {workers} workers, step {step}");
        for _ in 0..rng.random_range(1..25) {
            let transaction = upstream.transaction(&mut rng);
            let again = rng.random_ratio(1, 10).then(|| transaction.clone());
            session.send(SourceEvent::Transaction(transaction)).await;
            if let Some(again) = again {
                session.send(SourceEvent::Transaction(again)).await;
            }
        }
        match rng.random_range(0..6) {
            0..=2 => {
                let which = rng.random_range(0..all.len());
                let name = format!("a{step}");
                session.engine.register(&name, all[which].clone()).await.unwrap();
                registered.insert(name, which);
            }
            3 => {
                let names: Vec<String> = registered.keys().cloned().collect();
                if let Some(name) = names.choose(&mut rng) {
                    assert!(session.engine.drop_aggregate(name).await.unwrap());
                    registered.remove(name);
                }
            }
            4 => {
                if rng.random_bool(0.5) {
                    session.check(&upstream, &registered, &what).await;
                }
                session.engine.stop().await;
                let durable = *session.context.durable.borrow();
                drop(session);
                session = Session::open(directory.path(), workers, cells, &upstream).await;
                session.feed(&upstream, durable, &what).await;
            }
            _ => {}
        }
        if rng.random_bool(0.7) {
            session.check(&upstream, &registered, &what).await;
        }
    }
    session.check(&upstream, &registered, &format!("seed {seed}, {workers} workers, end")).await;
    session.engine.stop().await;
}

/// Rows of a snapshot in any order, in pieces of any size, with registrations between them, after a try that was given up;
/// the stream's first transactions change rows of it.
async fn snapshot(seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut upstream = Upstream { rows: BTreeMap::new(), lsn: 1_000, next_id: 1, log: Vec::new() };
    for _ in 0..rng.random_range(0..4_000) {
        let row = Row::random(&mut rng, upstream.next_id);
        upstream.next_id += rng.random_range(1..3);
        upstream.rows.insert(row.id, row);
    }
    let mut registered = BTreeMap::new();
    let all = definitions();
    for given_up in [true, false] {
        let what = format!("seed {seed}, given up: {given_up}");
        let session = Session::open(directory.path(), rng.random_range(1..3), 1_000_000, &upstream).await;
        let mut ids: Vec<i64> = upstream.rows.keys().copied().collect();
        if rng.random_bool(0.5) {
            ids.shuffle(&mut rng);
        }
        let mut pieces: Vec<&[i64]> = ids.chunks(rng.random_range(1..1_000)).collect();
        if rng.random_bool(0.5) {
            pieces.shuffle(&mut rng);
        }
        for piece in pieces {
            let mut rows = Changes::default();
            for id in piece {
                let written = rows.write_row::<TooLarge>(|b| upstream.rows[id].write(b, false)).unwrap();
                rows.insert(TABLE, written);
            }
            session.send(SourceEvent::SnapshotRows(rows)).await;
            if registered.len() < 6 && rng.random_bool(0.3) {
                let (name, which) = (format!("a{}", registered.len()), rng.random_range(0..all.len()));
                session.engine.register(&name, all[which].clone()).await.unwrap();
                registered.insert(name, which);
            }
        }
        if !given_up {
            session.send(SourceEvent::SnapshotDone { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
            for _ in 0..rng.random_range(0..10) {
                let transaction = upstream.transaction(&mut rng);
                session.send(SourceEvent::Transaction(transaction)).await;
            }
            session.check(&upstream, &registered, &what).await;
        }
        session.engine.stop().await;
        assert!(!directory.path().join("snapshot").exists(), "{what}");
    }
}

#[test]
fn rows_of_a_snapshot_count_once_in_any_order() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let pasted = std::env::var("TIDEMARK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds: Vec<u64> = pasted.map_or_else(|| (0..60).collect(), |seed| vec![seed]);
    runtime.block_on(async {
        for seed in seeds {
            let run = tokio::time::timeout(Duration::from_secs(60), snapshot(seed));
            assert!(run.await.is_ok(), "seed {seed}: no progress for a minute");
        }
    });
}

#[test]
fn every_cell_equals_a_recomputation() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let pasted = std::env::var("TIDEMARK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds: Vec<u64> = pasted.map_or_else(|| (0..60).collect(), |seed| vec![seed]);
    runtime.block_on(async {
        for seed in seeds {
            for workers in 1..=3 {
                let run = tokio::time::timeout(Duration::from_secs(60), history(seed, workers));
                assert!(run.await.is_ok(), "seed {seed}, {workers} workers: no progress for a minute");
            }
        }
    });
}
