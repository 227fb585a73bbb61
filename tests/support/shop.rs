//! A shop under load, and what must be true of it whatever happens to the network and the server: payments that come,
//! change, move and go (large values, changed keys, savepoints, truncation), and accounts between which money is moved in
//! transactions over several tables.
//!
//! The writers survive everything, as applications do: a failed transaction is forgotten, a lost session opened again.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::aggregate::MeasureValue;
use engine::change::Lsn;
use engine::materialization::{AggregateState, Bucket};
use engine::{Engine, Snapshot};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::cells::{Rows, cells};
use super::embedded::Embedded;
use super::sql;

/// The tables of the shop.
pub const TABLES: [&str; 3] = ["payments", "accounts", "transfers"];

const ROWS: u32 = 5_000;
const ACCOUNTS: i32 = 100;
const OPENING_BALANCE: i128 = 1_000;
const WRITERS: u64 = 4;
/// What a writer rests after a transaction: from a stream that is always behind, which it is where nobody says otherwise, to one
/// where each transaction is met alone.
pub const RESTS: [Duration; 3] = [Duration::from_micros(500), Duration::from_millis(10), Duration::from_millis(60)];

/// An aggregate over the shop, and Postgres' query for each of its levels.
struct Shape {
    name: &'static str,
    definition: Value,
    levels: Vec<(&'static str, String)>,
}

fn shapes() -> Vec<Shape> {
    let time = |unit: &str| match unit {
        "all" => "0".to_owned(),
        unit => format!("trunc(extract(epoch from date_trunc('{unit}', at, 'UTC')) * 1000000)"),
    };
    vec![
        Shape {
            name: "by_day",
            definition: json!({
                "table": "payments", "measures": [{"name": "amount", "sum": "amount"}, {"name": "notes", "count": "note"}],
                "dimensions": ["grp"], "time": {"column": "at", "granularity": "day"}, "rollups": ["month", "all"],
            }),
            levels: ["day", "month", "all"]
                .map(|unit| {
                    let bucket = time(unit);
                    (
                        unit,
                        format!("SELECT {bucket}, grp, count(*), sum(amount), count(note) FROM payments GROUP BY 1, 2"),
                    )
                })
                .to_vec(),
        },
        Shape {
            name: "by_hour",
            definition: json!({
                "table": "payments", "measures": [{"name": "amount", "sum": "amount"}], "dimensions": [],
                "time": {"column": "at", "granularity": "hour"}, "where": "grp <> 'g1' and amount > -50",
            }),
            levels: vec![(
                "hour",
                format!(
                    "SELECT {}, count(*), sum(amount) FROM payments WHERE grp <> 'g1' AND amount > -50 GROUP BY 1",
                    time("hour")
                ),
            )],
        },
        Shape {
            name: "weights",
            definition: json!({
                "table": "payments", "measures": [{"name": "weight", "sum": "weight"}], "dimensions": ["grp", "status"],
            }),
            levels: vec![(
                "all",
                "SELECT 0, grp, status, count(*), sum(weight) FROM payments GROUP BY 2, 3".to_owned(),
            )],
        },
        Shape {
            name: "balances",
            definition: json!({
                "table": "accounts", "measures": [{"name": "balance", "sum": "balance"}, {"name": "moved", "sum": "moved"}],
                "dimensions": ["id"],
            }),
            levels: vec![(
                "all",
                "SELECT 0, id, count(*), sum(balance), sum(moved) FROM accounts GROUP BY 2".to_owned(),
            )],
        },
        Shape {
            name: "transferred",
            definition: json!({
                "table": "transfers", "measures": [{"name": "amount", "sum": "amount"}], "dimensions": ["payer"],
                "time": {"column": "at", "granularity": "hour"}, "rollups": ["all"],
            }),
            levels: ["hour", "all"]
                .map(|unit| {
                    (unit, format!("SELECT {}, payer, count(*), sum(amount) FROM transfers GROUP BY 1, 2", time(unit)))
                })
                .to_vec(),
        },
    ]
}

/// The aggregates over the shop, by name.
pub fn definitions() -> Vec<(&'static str, Value)> {
    shapes().into_iter().map(|shape| (shape.name, shape.definition)).collect()
}

#[derive(Default)]
struct Signals {
    url: Mutex<String>,
    stop: AtomicBool,
    pause: AtomicBool,
    rest_us: AtomicU64,
    resting: AtomicU64,
    committed: AtomicU64,
}

/// The tables, and the sessions that write to them.
pub struct Shop {
    signals: Arc<Signals>,
    writers: Vec<JoinHandle<()>>,
}

impl Shop {
    /// Creates the tables and starts to write.
    pub async fn open(url: &str, seed: u64) -> Shop {
        let client = sql::connect(url).await;
        sql::run(
            &client,
            &format!(
                "CREATE TABLE payments (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, grp text NOT NULL,
                   amount numeric(14,2), weight float8, status text, note text, at timestamptz NOT NULL);
                 ALTER TABLE payments ALTER note SET STORAGE EXTERNAL;
                 CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL, moved bigint NOT NULL);
                 CREATE TABLE transfers (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), payer int, payee int, amount bigint,
                   at timestamptz NOT NULL);
                 INSERT INTO payments (grp, amount, weight, status, at)
                   SELECT 'g' || i % 5, (i % 9973) / 100.0, (i % 8) * 0.125, 's' || i % 3, timestamptz '2024-01-01 UTC' + interval '7 minutes' * i
                   FROM generate_series(1, {ROWS}) AS i;
                 INSERT INTO accounts SELECT id, {OPENING_BALANCE}, 0 FROM generate_series(1, {ACCOUNTS}) AS id"
            ),
        )
        .await;
        let rest_us = AtomicU64::new(RESTS[0].as_micros() as u64);
        let signals = Arc::new(Signals { url: Mutex::new(url.to_owned()), rest_us, ..Signals::default() });
        let writers = (0..WRITERS).map(|n| tokio::spawn(write(Arc::clone(&signals), seed.wrapping_add(n)))).collect();
        Shop { signals, writers }
    }

    /// Registers the aggregates.
    pub async fn register(&self, tidemark: &Embedded) {
        for shape in shapes() {
            tidemark.register(shape.name, serde_json::from_value(shape.definition).unwrap()).await;
        }
    }

    /// From here on the writers write to another server.
    pub fn move_to(&self, url: &str) {
        *self.signals.url.lock().unwrap() = url.to_owned();
    }

    /// Transactions that were committed, as far as the writers know.
    pub fn committed(&self) -> u64 {
        self.signals.committed.load(Ordering::SeqCst)
    }

    /// Lets the writers rest between two transactions.
    pub async fn pause(&self) {
        self.signals.pause.store(true, Ordering::SeqCst);
        while self.signals.resting.load(Ordering::SeqCst) < WRITERS {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Lets the writers go on.
    pub fn go_on(&self) {
        self.signals.pause.store(false, Ordering::SeqCst);
    }

    /// Compares every cell of every aggregate and level with Postgres' `GROUP BY` at one position, with the writers at rest.
    /// Returns how many there were.
    pub async fn compare(&self, tidemark: &Embedded, when: &str) -> u64 {
        self.pause().await;
        let url = self.signals.url.lock().unwrap().clone();
        let client = sql::connect_again(&url).await;
        let lsn = sql::current_lsn(&client).await;
        let compared = compare_at(tidemark, &client, lsn, when).await;
        self.go_on();
        compared
    }

    /// What each writer rests after a transaction from here on. The less, the more of them share a commit of ours.
    pub fn rest(&self, time: Duration) {
        self.signals.rest_us.store(time.as_micros() as u64, Ordering::SeqCst);
    }

    /// Ends the writers.
    pub async fn close(self) {
        self.signals.stop.store(true, Ordering::SeqCst);
        for writer in self.writers {
            writer.await.unwrap();
        }
    }
}

/// Compares every cell with what Postgres has now, where nothing has been written since a position. Returns how many there were.
pub async fn compare_at(tidemark: &Embedded, client: &Client, lsn: Lsn, when: &str) -> u64 {
    let mut compared = 0;
    for shape in shapes() {
        let snapshot = tidemark.live(shape.name, lsn).await;
        for (level, query) in &shape.levels {
            let expected: Rows = sql::rows(client, query)
                .await
                .into_iter()
                .map(|row| row.into_iter().map(|value| value.unwrap_or_else(|| "NULL".to_owned())).collect())
                .collect();
            let actual = cells(&snapshot, shape.name, level);
            let extra: Vec<_> = actual.difference(&expected).take(5).collect();
            let missing: Vec<_> = expected.difference(&actual).take(5).collect();
            assert!(
                extra.is_empty() && missing.is_empty(),
                "{when}: {} by {level} at {lsn}: Tidemark has {extra:?}, Postgres has {missing:?}",
                shape.name
            );
            compared += expected.len() as u64;
        }
    }
    tidemark.at(lsn).await.scrub().unwrap_or_else(|error| panic!("{when}: {error}"));
    compared
}

async fn write(signals: Arc<Signals>, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut session = None;
    while !signals.stop.load(Ordering::SeqCst) {
        if signals.pause.load(Ordering::SeqCst) {
            signals.resting.fetch_add(1, Ordering::SeqCst);
            while signals.pause.load(Ordering::SeqCst) && !signals.stop.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            signals.resting.fetch_sub(1, Ordering::SeqCst);
        }
        let url = signals.url.lock().unwrap().clone();
        let client = match &session {
            Some((of, client)) if *of == url => client,
            _ => match sql::try_connect(&url).await {
                Ok(client) => &session.insert((url, client)).1,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
        };
        match client.batch_execute(&transaction(&mut rng)).await {
            Ok(()) => {
                signals.committed.fetch_add(1, Ordering::SeqCst);
            }
            // Deadlocks and keys that meet are part of the work; sessions end with their server.
            Err(_) if client.batch_execute("ROLLBACK").await.is_err() => session = None,
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_micros(signals.rest_us.load(Ordering::SeqCst))).await;
    }
}

fn transaction(rng: &mut ChaCha8Rng) -> String {
    // Two tables at once, and transfers do not become more and more.
    if rng.random_ratio(1, 2_000) {
        return "BEGIN; TRUNCATE transfers; UPDATE accounts SET moved = 0; COMMIT".to_owned();
    }
    let mut script = vec!["BEGIN".to_owned()];
    for _ in 0..rng.random_range(1..4) {
        if rng.random_ratio(1, 8) {
            script.push("SAVEPOINT s".to_owned());
            script.push(statement(rng));
            script.push(if rng.random_bool(0.6) { "ROLLBACK TO s" } else { "RELEASE s" }.to_owned());
        } else {
            script.push(statement(rng));
        }
    }
    script.push(if rng.random_ratio(1, 12) { "ROLLBACK" } else { "COMMIT" }.to_owned());
    script.join("; ")
}

fn statement(rng: &mut ChaCha8Rng) -> String {
    let cents = rng.random_range(-20_000..100_000);
    let amount = format!("({cents} / 100.0)::numeric(14,2)");
    let at = format!("timestamptz '2024-01-01 UTC' + interval '1 hour' * {}", rng.random_range(0..1_500));
    let id = rng.random_range(1..2 * ROWS);
    let note = match rng.random_range(0..4) {
        0 => "NULL".to_owned(),
        1 => format!("repeat(md5('{id}'), {})", rng.random_range(70..400)),
        _ => "'short'".to_owned(),
    };
    match rng.random_range(0..400) {
        0 => "TRUNCATE payments".to_owned(),
        1..=120 => {
            let (payer, payee, amount) =
                (rng.random_range(1..=ACCOUNTS), rng.random_range(1..=ACCOUNTS), rng.random_range(1..100));
            format!(
                "UPDATE accounts SET balance = balance - {amount}, moved = moved + {amount} WHERE id = {payer};
                 UPDATE accounts SET balance = balance + {amount} WHERE id = {payee};
                 INSERT INTO transfers (payer, payee, amount, at) VALUES ({payer}, {payee}, {amount}, {at})"
            )
        }
        121..=220 => format!(
            "INSERT INTO payments (grp, amount, weight, status, note, at) SELECT 'g' || (i + {id}) % 7, {amount}, i * 0.25, 's1', {note}, {at}
               FROM generate_series(1, {}) AS i",
            rng.random_range(1..6)
        ),
        221..=280 => format!("UPDATE payments SET amount = amount + 1.01, at = {at} WHERE id BETWEEN {id} AND {id} + 3"),
        281..=310 => format!("UPDATE payments SET note = {note}, status = NULL WHERE id = {id}"),
        311..=340 => format!("UPDATE payments SET grp = 'g' || {} WHERE id BETWEEN {id} AND {id} + 20", id % 7),
        341..=360 => format!("UPDATE payments SET id = id + 10000000 WHERE id = {id}"),
        361..=390 => format!("DELETE FROM payments WHERE id BETWEEN {id} AND {id} + 2"),
        391..=395 => format!(
            "INSERT INTO payments (grp, amount, weight, status, at) SELECT 'bulk', i, 0.5, 's2', {at} FROM generate_series(1, {}) AS i",
            rng.random_range(100..3_000)
        ),
        396 => "DELETE FROM payments WHERE grp = 'bulk'".to_owned(),
        _ => "UPDATE payments SET amount = amount".to_owned(),
    }
}

/// Looks at every Snapshot it can get while things break: the position never goes back, no transfer is half visible.
pub struct Reader {
    engine: Arc<Mutex<Option<Engine>>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Reader {
    /// Starts to look.
    pub fn start(engine: &Engine) -> Reader {
        let engine = Arc::new(Mutex::new(Some(engine.clone())));
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(read(Arc::clone(&engine), Arc::clone(&stop)));
        Reader { engine, stop, task }
    }

    /// Looks at this engine from here on, and at none meanwhile.
    pub fn look_at(&self, engine: Option<&Engine>) {
        *self.engine.lock().unwrap() = engine.cloned();
    }

    /// Returns how many Snapshots were looked at.
    pub async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.unwrap()
    }
}

async fn read(engine: Arc<Mutex<Option<Engine>>>, stop: Arc<AtomicBool>) -> u64 {
    let (mut newest, mut seen) = (Lsn::ZERO, 0);
    while !stop.load(Ordering::SeqCst) {
        let current = engine.lock().unwrap().clone();
        if let Some(snapshot) = current.and_then(|engine| engine.snapshot().ok()) {
            let lsn = snapshot.as_of().lsn;
            assert!(lsn >= newest, "time went back from {newest} to {lsn}");
            if lsn > newest && is_live(&snapshot) {
                let balance = total(&snapshot, "balances", 0);
                assert_eq!(balance, OPENING_BALANCE * i128::from(ACCOUNTS), "half a transfer at {lsn}");
                let (moved, transferred) = (total(&snapshot, "balances", 1), total(&snapshot, "transferred", 0));
                assert_eq!(moved, transferred, "half a transaction over two tables at {lsn}");
                seen += 1;
            }
            newest = lsn;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    seen
}

fn is_live(snapshot: &Snapshot) -> bool {
    let live = |name| snapshot.catalog().aggregates.get(name).is_some_and(|a| a.state == AggregateState::Live);
    live("balances") && live("transferred")
}

/// One measure summed over everything.
fn total(snapshot: &Snapshot, name: &str, measure: usize) -> i128 {
    let aggregate = &snapshot.catalog().aggregates[name];
    let level = aggregate.plan.levels.iter().position(|level| level.to_string() == "all").unwrap();
    let mut total = 0;
    snapshot
        .scan(aggregate, level, Bucket(i64::MIN), Bucket(i64::MAX), |_, _, cell| {
            let function = &aggregate.plan.measures[measure].function;
            let MeasureValue::Integer(sum) = function.finish(&cell.accumulators[measure]) else { panic!("{name}") };
            total += sum;
            ControlFlow::Continue(())
        })
        .unwrap();
    total
}
