//! The real binary under load, killed with `kill -9` at random moments: during the initial snapshot, while an aggregate
//! is being filled, and in between. Nothing may be lost and nothing doubled: after the kills every cell equals Postgres'
//! `GROUP BY`. While it runs, no answer shows half a transaction, and no answer is older than one given before a kill.
//!
//! A failure prints its seed; `TIDEMARK_SEED=123 cargo test --release crash` repeats the choices, though not the timing.
//! `TIDEMARK_KILLS=1000` kills more often.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::change::Lsn;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::server::Server;
use crate::support::sql;

const SNAPSHOT_KILLS: u32 = 12;
const KILLS: u32 = 48;
const ROWS_BEFORE: u32 = 400_000;
const WRITERS: u64 = 3;

/// Definitions, and the query of each of their levels.
struct Shape {
    definition: Value,
    levels: Vec<(&'static str, String)>,
}

fn shapes() -> Vec<Shape> {
    let time = |unit: &str| {
        format!("to_char(date_trunc('{unit}', at, 'UTC') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')")
    };
    vec![
        Shape {
            definition: json!({
                "table": "payments", "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
                "dimensions": ["grp"], "time": {"column": "at", "granularity": "day"}, "rollups": ["month", "year"],
            }),
            levels: ["day", "month", "year"]
                .map(|unit| {
                    (unit, format!("SELECT {}, grp, sum(amount), count(*) FROM payments GROUP BY 1, 2", time(unit)))
                })
                .to_vec(),
        },
        Shape {
            definition: json!({
                "table": "payments", "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
                "time": {"column": "at", "granularity": "hour"}, "rollups": ["all"], "where": "grp <> 'g1' and amount > -50",
            }),
            levels: vec![(
                "hour",
                format!(
                    "SELECT {}, sum(amount), count(*) FROM payments WHERE grp <> 'g1' AND amount > -50 GROUP BY 1",
                    time("hour")
                ),
            )],
        },
        Shape {
            definition: json!({
                "table": "payments", "measures": [{"name": "amount", "sum": "amount"}, {"name": "w", "sum": "weight"}],
                "dimensions": ["grp", "id_mod"],
            }),
            levels: vec![(
                "all",
                "SELECT NULL, grp, id_mod, sum(amount), sum(weight) FROM payments GROUP BY 2, 3".to_owned(),
            )],
        },
    ]
}

/// Writes until told to stop; pauses while told to.
async fn write(url: String, seed: u64, stop: Arc<AtomicBool>, pause: Arc<AtomicBool>, idle: Arc<AtomicU64>) {
    let client = sql::connect(&url).await;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut paused = false;
    while !stop.load(Ordering::SeqCst) {
        if pause.load(Ordering::SeqCst) {
            if !paused {
                paused = true;
                idle.fetch_add(1, Ordering::SeqCst);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        }
        if paused {
            paused = false;
            idle.fetch_sub(1, Ordering::SeqCst);
        }
        let cents = rng.random_range(1..100_000);
        let amount = format!("{}.{:02}", cents / 100, cents % 100);
        let at = format!("timestamptz '2024-01-01 UTC' + interval '1 hour' * {}", rng.random_range(0..8_000));
        let id = rng.random_range(1..ROWS_BEFORE);
        let statement = match rng.random_range(0..10) {
            // Both halves of a transfer in one transaction, in groups of their own: their sum is 0 in every answer.
            0..=3 => format!(
                "INSERT INTO payments (grp, amount, weight, at) VALUES ('transfer', {amount}, 0.5, {at}), ('transfer', -{amount}, 0.25, {at})"
            ),
            4..=5 => {
                format!("UPDATE payments SET amount = amount + 1.01, at = {at} WHERE id = {id} AND grp <> 'transfer'")
            }
            6 => format!(
                "UPDATE payments SET grp = 'g' || {} WHERE id BETWEEN {id} AND {id} + 20 AND grp <> 'transfer'",
                id % 7
            ),
            7 => format!("DELETE FROM payments WHERE id = {id} AND grp <> 'transfer'"),
            8 => format!("UPDATE payments SET id = id + 10000000, id_mod = 9 WHERE id = {id} AND grp <> 'transfer'"),
            _ => format!(
                "BEGIN; INSERT INTO payments (grp, amount, weight, at) VALUES ('g0', {amount}, 1, {at}); ROLLBACK"
            ),
        };
        if client.batch_execute(&statement).await.is_err() {
            let _ = client.batch_execute("ROLLBACK").await;
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

struct Torture {
    rng: ChaCha8Rng,
    seed: u64,
    url: String,
    data: tempfile::TempDir,
    client: Client,
    pause: Arc<AtomicBool>,
    idle: Arc<AtomicU64>,
    /// Acknowledged registrations, by name.
    registered: BTreeMap<String, usize>,
    /// Registrations and drops that were killed before an answer came.
    unknown: BTreeMap<String, usize>,
    next_name: u32,
    newest: Lsn,
    kills: u32,
    answers: u64,
    killed_while_building: u32,
}

impl Torture {
    fn start(&self) -> Server {
        let workers = if self.kills.is_multiple_of(2) { "1" } else { "2" };
        Server::start(self.data.path(), &self.url, &["payments"], &["--workers", workers])
    }

    /// Milliseconds, as many short as long.
    fn moment(&mut self, longest_ms: f64) -> Duration {
        Duration::from_secs_f64(longest_ms.powf(self.rng.random_range(0.0..1.0)) / 1_000.0)
    }

    fn kill(&mut self, server: Server) {
        server.kill();
        self.kills += 1;
    }

    /// Looks at answers until a moment has come.
    fn watch(&mut self, server: &Server, until: Instant) {
        while Instant::now() < until {
            let Some((name, which)) = self.registered.iter().choose(&mut self.rng).map(|(n, w)| (n.clone(), *w)) else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let path = format!("/v1/aggregates/{name}/data?limit=100000&granularity=all");
            let Some((status, body)) = server.try_get(&path) else { continue };
            match status {
                200 => self.check_answer(which, &body),
                503 => {}
                _ => panic!("seed {}: {path}: {status} {body}", self.seed),
            }
        }
    }

    fn check_answer(&mut self, which: usize, body: &Value) {
        let lsn: Lsn = body["as_of"]["lsn"].as_str().unwrap().parse().unwrap();
        assert!(lsn >= self.newest, "seed {}: time went back from {} to {lsn}", self.seed, self.newest);
        self.newest = lsn;
        self.answers += 1;
        if which != 1 {
            let cents = |text: &str| text.replace('.', "").parse::<i128>().unwrap();
            let transfers: i128 = body["data"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|row| row["grp"] == "transfer")
                .map(|row| cents(row["amount"].as_str().unwrap()))
                .sum();
            assert_eq!(transfers, 0, "seed {}: half a transaction at {lsn}", self.seed);
        }
    }

    /// Registers or drops something; the answer may never come.
    fn change_registry(&mut self, server: &Server) {
        if self.registered.len() >= 5 || (self.registered.len() > 2 && self.rng.random_bool(0.4)) {
            let name = self.registered.keys().choose(&mut self.rng).unwrap().clone();
            let which = self.registered.remove(&name).unwrap();
            match server.delete(&format!("/v1/aggregates/{name}")) {
                Some((204, _)) => {}
                other => {
                    assert!(other.as_ref().is_none_or(|(status, _)| *status == 503), "{other:?}");
                    self.unknown.insert(name, which);
                }
            }
            return;
        }
        let which = self.rng.random_range(0..shapes().len());
        let name = format!("a{}", self.next_name);
        self.next_name += 1;
        let body = shapes()[which].definition.to_string();
        match server.try_put(&format!("/v1/aggregates/{name}"), body.as_bytes()) {
            Some((202, _)) => {
                self.registered.insert(name, which);
            }
            other => {
                assert!(other.as_ref().is_none_or(|(status, _)| *status == 503), "{other:?}");
                self.unknown.insert(name, which);
            }
        }
    }

    /// What was acknowledged is there; what was not is there as a whole or not at all.
    fn settle(&mut self, server: &Server) {
        let listed = server.get_ok("/v1/aggregates");
        let names: Vec<String> =
            listed["data"].as_array().unwrap().iter().map(|a| a["name"].as_str().unwrap().to_owned()).collect();
        for name in self.registered.keys() {
            assert!(names.contains(name), "seed {}: {name} was acknowledged and is gone: {names:?}", self.seed);
        }
        for (name, which) in std::mem::take(&mut self.unknown) {
            if names.contains(&name) {
                self.registered.insert(name, which);
            }
        }
        for name in &names {
            assert!(self.registered.contains_key(name), "seed {}: {name} was dropped and is back", self.seed);
        }
    }

    /// Every cell of every aggregate and level against Postgres, with the writers at rest.
    async fn compare(&mut self, server: &Server) {
        self.pause.store(true, Ordering::SeqCst);
        while self.idle.load(Ordering::SeqCst) < WRITERS {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.settle(server);
        let lsn = sql::current_lsn(&self.client).await;
        for (name, which) in self.registered.clone() {
            let shape = shapes().swap_remove(which);
            for (level, query) in shape.levels {
                let path =
                    format!("/v1/aggregates/{name}/data?granularity={level}&limit=100000&min_lsn={lsn}&wait=20s");
                let body = server.get_ok(&path);
                self.check_answer(which, &body);
                let mut actual: Vec<Vec<String>> =
                    body["data"].as_array().unwrap().iter().map(|row| shown(row, which, level)).collect();
                let mut expected: Vec<Vec<String>> = sql::rows(&self.client, &query)
                    .await
                    .into_iter()
                    .map(|row| row.into_iter().flatten().collect())
                    .collect();
                actual.sort();
                expected.sort();
                let extra: Vec<_> = actual.iter().filter(|row| expected.binary_search(row).is_err()).take(5).collect();
                let missing: Vec<_> =
                    expected.iter().filter(|row| actual.binary_search(row).is_err()).take(5).collect();
                assert!(
                    extra.is_empty() && missing.is_empty() && actual.len() == expected.len(),
                    "seed {}, after {} kills, {name} by {level} at {lsn}: Tidemark has {extra:?}, Postgres has {missing:?}",
                    self.seed,
                    self.kills
                );
                assert!(!expected.is_empty());
            }
        }
        self.pause.store(false, Ordering::SeqCst);
    }
}

/// The values of a row, as the query returns them; NULLs left out.
fn shown(row: &Value, which: usize, level: &str) -> Vec<String> {
    let columns: &[&str] = match which {
        0 => &["time", "grp", "amount", "n"],
        1 => &["time", "amount", "n"],
        _ => &["grp", "id_mod", "amount", "w"],
    };
    columns
        .iter()
        .filter(|column| level != "all" || **column != "time")
        .map(|column| match &row[*column] {
            Value::String(text) => text.clone(),
            Value::Number(number) => number
                .as_f64()
                .filter(|v| v.fract() != 0.0)
                .map_or_else(|| format!("{}", number.as_f64().unwrap()), |v| v.to_string()),
            other => other.to_string(),
        })
        .collect()
}

/// Bytes of table files; of the store, and of those that are on their way into it.
fn table_files(data: &Path) -> (u64, u64) {
    let bytes = |directory: &str| {
        let files = std::fs::read_dir(data.join(directory)).into_iter().flatten().flatten();
        let tables = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "sst"));
        tables.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    };
    (bytes("store"), bytes("snapshot"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_killed_with_rows_already_stored_leaves_nothing() {
    const ROWS: u32 = 600_000;
    const TRIES: u32 = 30;
    let postgres = sql::postgres(&[]);
    let client = sql::connect(&postgres.url()).await;
    sql::run(
        &client,
        &format!(
            "CREATE TABLE payments (id bigint PRIMARY KEY, grp text NOT NULL, amount numeric(14,2), at timestamptz, note text);
             INSERT INTO payments SELECT i, 'g' || i % 5, (i % 9973) / 100.0,
               timestamptz '2024-01-01 UTC' + interval '1 minute' * (i % 400000), md5(i::text) FROM generate_series(1, {ROWS}) AS i"
        ),
    )
    .await;
    let definition = json!({
        "table": "payments", "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
        "dimensions": ["grp"], "time": {"column": "at", "granularity": "day"}, "rollups": ["all"],
    });
    let expected = sql::rows(&client, "SELECT grp, sum(amount), count(*) FROM payments GROUP BY 1 ORDER BY 1").await;
    let undisturbed = tempfile::tempdir().unwrap();
    let server = Server::start(undisturbed.path(), &postgres.url(), &["payments"], &[]);
    server.get_ok("/readyz");
    drop(server);
    let (usual, _) = table_files(undisturbed.path());

    let data = tempfile::tempdir().unwrap();
    let mut killed = 0;
    for attempt in 0..TRIES {
        let server = Server::start(data.path(), &postgres.url(), &["payments"], &[]);
        // A registration has what was read so far taken into the store.
        let body = definition.to_string();
        let (status, said) = server.try_put(&format!("/v1/aggregates/a{attempt}"), body.as_bytes()).unwrap();
        assert_eq!(status, 202, "{said}");
        let ready = loop {
            let (stored, coming) = table_files(data.path());
            let ready = server.get("/readyz").0 == 200;
            if ready || (stored > 0 && coming > 0) {
                break ready;
            }
        };
        server.kill();
        if ready {
            break;
        }
        killed += 1;
        if killed == 5 {
            break;
        }
    }
    println!("{killed} kills with rows of the snapshot in the store and on their way");
    assert!(killed > 0, "the snapshot was over too soon");
    let server = Server::start(data.path(), &postgres.url(), &["payments"], &[]);
    server.get_ok("/readyz");
    for attempt in 0..killed {
        let rows = server.get_ok(&format!("/v1/aggregates/a{attempt}/data?granularity=all"));
        let row = |row: &Value| {
            vec![
                row["grp"].as_str().unwrap().to_owned(),
                row["amount"].as_str().unwrap().to_owned(),
                row["n"].to_string(),
            ]
        };
        let mut answered: Vec<Vec<String>> = rows["data"].as_array().unwrap().iter().map(row).collect();
        answered.sort();
        let expected: Vec<Vec<String>> = expected.iter().map(|row| row.iter().flatten().cloned().collect()).collect();
        assert_eq!(answered, expected, "a{attempt}");
    }
    assert_eq!(server.terminate().code(), Some(0));
    let (stored, coming) = table_files(data.path());
    assert!(stored < usual + usual / 3, "{stored} bytes where {usual} are usual");
    assert!(coming == 0 && !data.path().join("snapshot").exists());
}

#[test]
fn nothing_is_lost_and_nothing_doubled() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("TIDEMARK_SEED").unwrap_or_else(|| chrono::Utc::now().timestamp() as u64);
    let kills = number("TIDEMARK_KILLS").map_or(KILLS, |kills| kills as u32);
    println!("seed {seed}");
    let postgres = sql::postgres(&[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = sql::connect(&postgres.url()).await;
        sql::run(
            &client,
            &format!(
                "CREATE TABLE payments (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, grp text NOT NULL,
                   amount numeric(14,2), weight float8, id_mod int DEFAULT 0, at timestamptz NOT NULL);
                 INSERT INTO payments (grp, amount, weight, id_mod, at)
                   SELECT 'g' || i % 5, (i % 9973) / 100.0, (i % 8) * 0.125, i % 6, timestamptz '2024-01-01 UTC' + interval '1 minute' * (i % 400000)
                   FROM generate_series(1, {ROWS_BEFORE}) AS i"
            ),
        )
        .await;
        let (stop, pause, idle) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| tokio::spawn(write(postgres.url(), seed + n, Arc::clone(&stop), Arc::clone(&pause), Arc::clone(&idle))))
            .collect();
        let mut torture = Torture {
            rng: ChaCha8Rng::seed_from_u64(seed),
            seed,
            url: postgres.url(),
            data: tempfile::tempdir().unwrap(),
            client,
            pause,
            idle,
            registered: BTreeMap::new(),
            unknown: BTreeMap::new(),
            next_name: 1,
            newest: Lsn::ZERO,
            kills: 0,
            answers: 0,
            killed_while_building: 0,
        };
        // During the initial snapshot, with and without aggregates registered meanwhile.
        for _ in 0..SNAPSHOT_KILLS {
            let server = torture.start();
            if torture.rng.random_bool(0.5) {
                torture.change_registry(&server);
            }
            let moment = torture.moment(400.0);
            std::thread::sleep(moment);
            torture.kill(server);
        }
        let server = torture.start();
        server.get_ok("/readyz");
        torture.compare(&server).await;
        torture.kill(server);
        // Under load, half of them right after a registration.
        for kill in 0..kills {
            let server = torture.start();
            if torture.rng.random_bool(0.7) {
                server.get_ok("/readyz");
                torture.settle(&server);
            }
            let mut moment = torture.moment(900.0);
            if torture.rng.random_bool(0.5) {
                torture.change_registry(&server);
                moment = torture.moment(120.0);
                torture.killed_while_building += 1;
            }
            torture.watch(&server, Instant::now() + moment);
            torture.kill(server);
            if kill % 12 == 11 {
                let server = torture.start();
                server.get_ok("/readyz");
                torture.compare(&server).await;
                torture.kill(server);
            }
        }
        let server = torture.start();
        server.get_ok("/readyz");
        torture.compare(&server).await;
        assert_eq!(server.terminate().code(), Some(0), "SIGTERM is not a failure");
        let server = torture.start();
        torture.compare(&server).await;
        drop(server);
        stop.store(true, Ordering::SeqCst);
        for writer in writers {
            writer.await.unwrap();
        }
        println!(
            "{} kills ({SNAPSHOT_KILLS} in the initial snapshot, {} soon after a registration), {} answers consistent",
            torture.kills, torture.killed_while_building, torture.answers
        );
        assert!(torture.answers > 50, "hardly any answers were looked at: {}", torture.answers);
    });
}
