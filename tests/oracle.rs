//! Random histories against a real Postgres: after some of its transactions every cell of every aggregate and level
//! equals Postgres' own `GROUP BY` at the same Lsn, for one and two workers, with aggregates registered and dropped in
//! the middle and Tidemark stopped and started again.
//!
//! A failure prints its seed. `TIDEMARK_SEED=123 cargo test --release oracle` runs that one alone,
//! `TIDEMARK_HISTORIES=5000` more of them.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::materialization::Definition;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tokio_postgres::Client;

use crate::support::cells::{Rows, cells};
use crate::support::embedded::Embedded;
use crate::support::sql;

const HISTORIES: u64 = 500;

/// An aggregate as Tidemark's definition and as SQL.
#[derive(Clone, Debug)]
pub struct Spec {
    dimensions: Vec<&'static str>,
    measures: Vec<&'static str>,
    time: Option<(&'static str, &'static str, &'static str)>,
    rollups: Vec<&'static str>,
    filter: Option<&'static str>,
}

const DIMENSIONS: [&str; 9] = ["account", "currency", "settled", "small", "ref", "day", "fee", "weight", "at_local"];
const MEASURES: [&str; 8] = ["amount", "fee", "weight", "small", "big", "real4", "n", "settled"];
const FILTERS: [&str; 9] = [
    "settled",
    "not settled or account is null",
    "amount > 0 and currency in ('EUR', 'USD')",
    "amount between -50 and 50.5",
    "currency <> 'EUR'",
    "at >= '2024-01-15' and at < timestamp '2024-03-01 12:00:00'",
    "small is not null and (weight < 0 or day > date '2024-02-01')",
    "account = 'a' or account = ''",
    "day <> 'infinity' and at > '-infinity'",
];

impl Spec {
    pub fn random(rng: &mut ChaCha8Rng) -> Spec {
        let count = [0, 1, 1, 2, 3][rng.random_range(0..5)];
        let dimensions = DIMENSIONS.iter().copied().choose_multiple(rng, count);
        let count = rng.random_range(1..4);
        let measures = MEASURES.iter().copied().choose_multiple(rng, count);
        let zone = *["UTC", "Europe/Madrid", "America/New_York", "Asia/Kolkata"].choose(rng).unwrap();
        let time = match rng.random_range(0..8) {
            0 => None,
            1 => Some(("day", *["day", "month", "week"].choose(rng).unwrap(), "UTC")),
            2 => Some(("at_local", *["hour", "day", "month", "PT6H"].choose(rng).unwrap(), "UTC")),
            3 => Some(("at", "PT6H", "UTC")),
            _ => Some(("at", *["hour", "day", "week", "month", "quarter", "year"].choose(rng).unwrap(), zone)),
        };
        let coarser: &[&str] = match time.map_or("none", |time| time.1) {
            "hour" => &["day", "week", "month", "quarter", "year", "all"],
            "day" => &["week", "month", "quarter", "year", "all"],
            "month" => &["quarter", "year", "all"],
            "quarter" => &["year", "all"],
            "week" | "year" => &["all"],
            "PT6H" => &["day", "month", "all"],
            _ => &[],
        };
        let count = rng.random_range(0..3);
        let rollups = coarser.iter().copied().choose_multiple(rng, count);
        let filter = rng.random_bool(0.4).then(|| *FILTERS.choose(rng).unwrap());
        Spec { dimensions, measures, time, rollups, filter }
    }

    pub fn definition(&self, table: &str) -> Definition {
        let measures: Vec<_> = self
            .measures
            .iter()
            .map(|measure| match *measure {
                "n" => json!({"name": "m_n", "count": "*"}),
                "settled" => json!({"name": "m_settled", "count": "settled"}),
                "fee" => json!({"name": "m_fee", "sum": "fee", "scale": 6}),
                other => json!({"name": format!("m_{other}"), "sum": other}),
            })
            .collect();
        let mut definition = json!({
            "table": table, "measures": measures, "dimensions": self.dimensions, "rollups": self.rollups,
        });
        if let Some((column, granularity, zone)) = self.time {
            definition["time"] = json!({"column": column, "granularity": granularity, "time_zone": zone});
        }
        if let Some(filter) = self.filter {
            definition["where"] = json!(filter);
        }
        serde_json::from_value(definition).unwrap()
    }

    /// The query of one level: bucket in microseconds since 1970, dimensions, rows, measures.
    fn sql(&self, table: &str, granularity: &str) -> String {
        let bucket = match self.time {
            _ if granularity == "all" => "0".to_owned(),
            None => "0".to_owned(),
            Some((column, _, zone)) => {
                let start = match (column, granularity) {
                    ("day", unit) => format!("date_trunc('{unit}', day::timestamp)"),
                    (_, "PT6H") => format!("date_bin('6 hours', {column}, '2000-01-01')"),
                    ("at_local", unit) => format!("date_trunc('{unit}', at_local)"),
                    (_, unit) => format!("date_trunc('{unit}', at, '{zone}')"),
                };
                format!("trunc(extract(epoch from {start}) * 1000000)")
            }
        };
        let dimensions: Vec<String> = self
            .dimensions
            .iter()
            .map(|dimension| match *dimension {
                "currency" => "rtrim(currency::text)".to_owned(),
                "fee" => "trim_scale(fee)".to_owned(),
                // Minus zero and zero are one group, shown as zero.
                "weight" => "weight + 0".to_owned(),
                "day" => "CASE WHEN isfinite(day) THEN (day - date '2000-01-01')::text ELSE day::text END".to_owned(),
                "at_local" => "trunc(extract(epoch from at_local) * 1000000)".to_owned(),
                other => other.to_owned(),
            })
            .collect();
        let measures: Vec<String> = self
            .measures
            .iter()
            .map(|measure| match *measure {
                "n" => "count(*)".to_owned(),
                "settled" => "count(settled)".to_owned(),
                "fee" => "round(sum(fee), 6)".to_owned(),
                "real4" => "sum(real4::float8) + 0".to_owned(),
                "weight" => "sum(weight) + 0".to_owned(),
                other => format!("sum({other})"),
            })
            .collect();
        let mut columns = vec![bucket];
        columns.extend(dimensions);
        let group_by: Vec<String> = (1..=columns.len()).map(|n| n.to_string()).collect();
        columns.push("count(*)".to_owned());
        columns.extend(measures);
        let filter = self.filter.map(|filter| format!(" WHERE {filter}")).unwrap_or_default();
        format!("SELECT {} FROM {table}{filter} GROUP BY {}", columns.join(", "), group_by.join(", "))
    }

    fn levels(&self) -> Vec<&'static str> {
        let mut levels = vec![self.time.map_or("all", |time| time.1)];
        levels.extend(&self.rollups);
        levels
    }
}

/// One upstream table and the statements that change it.
pub struct Table {
    pub name: String,
    next_id: i64,
}

impl Table {
    /// The primary key is of another kind in each history.
    pub async fn create(client: &Client, seed: u64) -> Table {
        let name = format!("t{seed}");
        let key = ["id", "ref, id", "id, account_no"][(seed % 3) as usize];
        let identity =
            if seed.is_multiple_of(5) { format!("; ALTER TABLE {name} REPLICA IDENTITY FULL") } else { String::new() };
        sql::run(
            client,
            &format!(
                "CREATE TABLE {name} (note text, id int8 NOT NULL, account text, currency char(3) NOT NULL,
                   amount numeric(12,2), fee numeric, weight float8, real4 float4, small int2, big int8, at timestamptz,
                   at_local timestamp, day date, settled bool, ref uuid NOT NULL, tags jsonb, account_no varchar(10) NOT NULL,
                   PRIMARY KEY ({key})){identity};
                 ALTER TABLE {name} ALTER note SET STORAGE EXTERNAL"
            ),
        )
        .await;
        Table { name, next_id: 1 }
    }

    fn literals(rng: &mut ChaCha8Rng) -> BTreeMap<&'static str, String> {
        let quoted = |text: &str| format!("'{text}'");
        let null = "NULL".to_owned();
        let instant = |rng: &mut ChaCha8Rng| match rng.random_range(0..24) {
            0 => "NULL".to_owned(),
            1 => "'infinity'".to_owned(),
            2 => "'-infinity'".to_owned(),
            3 => "'4000-01-01 00:00:00 BC'".to_owned(),
            4 => "'290000-07-01 00:00:00'".to_owned(),
            5 => "'1850-06-01 00:00:00'".to_owned(),
            6 => "'2099-07-15 12:00:00'".to_owned(),
            7 => "'2024-03-31 00:59:59.999999+00'".to_owned(),
            8 => "'2024-03-31 01:00:00+00'".to_owned(),
            9 => "'2024-10-27 00:30:00+00'".to_owned(),
            _ => format!(
                "'2024-0{}-{:02} {:02}:{:02}:{:02}.{:06}'",
                rng.random_range(1..4),
                rng.random_range(1..29),
                rng.random_range(0..24),
                rng.random_range(0..60),
                rng.random_range(0..60),
                rng.random_range(0..1_000_000)
            ),
        };
        let cents = |rng: &mut ChaCha8Rng| format!("{:.2}", f64::from(rng.random_range(-1_000_000..1_000_000)) / 100.0);
        BTreeMap::from([
            (
                "account",
                if rng.random_ratio(1, 8) {
                    null.clone()
                } else {
                    quoted(["a", "b", "", "ñandú", "x''y"].choose(rng).unwrap())
                },
            ),
            ("currency", quoted(["EUR", "USD", "JP"].choose(rng).unwrap())),
            (
                "amount",
                match rng.random_range(0..14) {
                    0 => null.clone(),
                    1 => quoted("NaN"),
                    2 => "0".to_owned(),
                    _ => cents(rng),
                },
            ),
            (
                "fee",
                match rng.random_range(0..14) {
                    0 => null.clone(),
                    1 => quoted("Infinity"),
                    2 => quoted("-Infinity"),
                    3 => "99999999999999999999.000001".to_owned(),
                    4 => "1.50".to_owned(),
                    5 => "1.5".to_owned(),
                    _ => format!("{}.{:04}", rng.random_range(-3..3), rng.random_range(0..10_000)),
                },
            ),
            // Dyadic, so that Postgres' own sum is exact too.
            (
                "weight",
                match rng.random_range(0..12) {
                    0 => null.clone(),
                    1 => quoted("NaN"),
                    2 => quoted("-0"),
                    _ => (f64::from(rng.random_range(-800..800)) * 0.125).to_string(),
                },
            ),
            ("real4", (f64::from(rng.random_range(-80..80)) * 0.25).to_string()),
            ("small", if rng.random_ratio(1, 6) { null.clone() } else { rng.random_range(-3..3).to_string() }),
            ("big", format!("({}::int8)", rng.random_range(i64::MIN / 4..i64::MAX / 4))),
            ("at", instant(rng)),
            ("at_local", instant(rng).replace("+00", "")),
            (
                "day",
                match rng.random_range(0..10) {
                    0 => null.clone(),
                    1 => quoted("infinity"),
                    2 => quoted("0044-03-15 BC"),
                    _ => format!("'2024-0{}-{:02}'", rng.random_range(1..5), rng.random_range(1..29)),
                },
            ),
            ("settled", (*["NULL", "true", "true", "false"].choose(rng).unwrap()).to_owned()),
            ("tags", quoted(r#"{"k": 1}"#)),
            (
                "note",
                match rng.random_range(0..4) {
                    0 => null,
                    1 => format!("repeat('{}', 2500)", rng.random_range(10..99)),
                    _ => quoted("short"),
                },
            ),
        ])
    }

    fn insert(&mut self, rng: &mut ChaCha8Rng) -> String {
        let rows = rng.random_range(1..5);
        let mut values = Vec::new();
        for _ in 0..rows {
            let literals = Self::literals(rng);
            let (id, row): (i64, Vec<String>) = (self.next_id, literals.into_values().collect());
            self.next_id += 1;
            values.push(format!("({id}, md5('{}')::uuid, 'no{}', {})", id % 7, id % 5, row.join(", ")));
        }
        let columns: Vec<&str> = Self::literals(rng).into_keys().collect();
        format!("INSERT INTO {} (id, ref, account_no, {}) VALUES {}", self.name, columns.join(", "), values.join(", "))
    }

    fn some(&self, rng: &mut ChaCha8Rng) -> String {
        let id = rng.random_range(0..self.next_id);
        match rng.random_range(0..4) {
            0 => format!("id % {} = 0", rng.random_range(2..6)),
            1 => format!("id BETWEEN {id} AND {}", id + 5),
            _ => format!("id = {id}"),
        }
    }

    /// One or more statements for one transaction.
    fn statement(&mut self, rng: &mut ChaCha8Rng) -> String {
        let name = self.name.clone();
        match rng.random_range(0..16) {
            0..=5 => self.insert(rng),
            6..=9 => {
                let literals = Self::literals(rng);
                let count = rng.random_range(1..5);
                let sets: Vec<String> = literals
                    .iter()
                    .choose_multiple(rng, count)
                    .iter()
                    .map(|(column, value)| format!("{column} = {value}"))
                    .collect();
                format!("UPDATE {name} SET {} WHERE {}", sets.join(", "), self.some(rng))
            }
            10 => {
                self.next_id += 1_000;
                let note = if rng.random_bool(0.5) { "" } else { ", note = 'moved'" };
                format!("UPDATE {name} SET id = id + {}{note} WHERE {}", self.next_id, {
                    let at = rng.random_range(0..self.next_id - 1_000);
                    format!("id = {at} OR id = {}", at / 2)
                })
            }
            11..=12 => format!("DELETE FROM {name} WHERE {}", self.some(rng)),
            13 => {
                let at = rng.random_range(0..self.next_id);
                format!(
                    "CREATE TEMP TABLE again ON COMMIT DROP AS SELECT * FROM {name} WHERE id = {at}; DELETE FROM {name} WHERE id = {at};
                     INSERT INTO {name} SELECT * FROM again; DROP TABLE again; UPDATE {name} SET small = 1 WHERE id = {at}"
                )
            }
            14 => format!("UPDATE {name} SET amount = amount, note = note WHERE {}", self.some(rng)),
            _ if rng.random_ratio(1, 4) => format!("TRUNCATE {name}"),
            _ => self.insert(rng),
        }
    }

    pub async fn transaction(&mut self, client: &Client, rng: &mut ChaCha8Rng) {
        let mut script = vec!["BEGIN".to_owned()];
        for _ in 0..rng.random_range(1..5) {
            if rng.random_ratio(1, 6) {
                script.push("SAVEPOINT s".to_owned());
                script.push(self.statement(rng));
                script.push(if rng.random_bool(0.5) { "ROLLBACK TO s" } else { "RELEASE s" }.to_owned());
            } else {
                script.push(self.statement(rng));
            }
        }
        script.push(if rng.random_ratio(1, 8) { "ROLLBACK" } else { "COMMIT" }.to_owned());
        let script = script.join("; ");
        if let Err(error) = client.batch_execute(&script).await {
            // A moved key may meet another: that transaction is then one that was rolled back.
            let unique = error.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION);
            assert!(unique, "{script}: {error:?}");
            sql::run(client, "ROLLBACK").await;
        }
    }
}

struct Run<'a> {
    client: &'a Client,
    seed: u64,
    compared: &'a mut u64,
}

impl Run<'_> {
    async fn compare(&mut self, tidemark: &Embedded, table: &Table, registered: &BTreeMap<String, Spec>, step: usize) {
        let lsn = sql::current_lsn(self.client).await;
        for (name, spec) in registered {
            let snapshot = tidemark.live(name, lsn).await;
            for level in spec.levels() {
                let query = spec.sql(&table.name, level);
                let expected: Rows = sql::rows(self.client, &query)
                    .await
                    .into_iter()
                    .map(|row| row.into_iter().map(|value| value.unwrap_or_else(|| "NULL".to_owned())).collect())
                    .collect();
                let actual = cells(&snapshot, name, level);
                let extra: Vec<_> = actual.difference(&expected).collect();
                let missing: Vec<_> = expected.difference(&actual).collect();
                assert!(
                    extra.is_empty() && missing.is_empty(),
                    "seed {}, step {step}, {name} by {level} at {lsn}\n{spec:?}\n{query}\nTidemark has {extra:?}\nPostgres has {missing:?}",
                    self.seed
                );
                *self.compared += expected.len() as u64;
            }
        }
        let snapshot = tidemark.at(lsn).await;
        snapshot.scrub().unwrap_or_else(|error| panic!("seed {}, step {step}: {error}", self.seed));
    }

    async fn history(&mut self, url: &str) {
        let seed = self.seed;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let workers = 1 + (seed % 2) as usize;
        let mut table = Table::create(self.client, seed).await;
        for _ in 0..rng.random_range(0..4) {
            table.transaction(self.client, &mut rng).await;
        }
        let data = tempfile::tempdir().unwrap();
        let slot = format!("oracle_{seed}");
        let name_of_table = table.name.clone();
        let mut tidemark = Embedded::start(data.path(), url, &[&name_of_table], &slot, workers).await;
        let mut registered: BTreeMap<String, Spec> = BTreeMap::new();
        for step in 0..rng.random_range(3..8) {
            for _ in 0..rng.random_range(0..6) {
                table.transaction(self.client, &mut rng).await;
            }
            match rng.random_range(0..8) {
                0..=3 => {
                    let spec = Spec::random(&mut rng);
                    tidemark.register(&format!("a{step}"), spec.definition(&name_of_table)).await;
                    registered.insert(format!("a{step}"), spec);
                }
                4 => {
                    if let Some(name) = registered.keys().choose(&mut rng).cloned() {
                        assert!(tidemark.engine.drop_aggregate(&name).await.unwrap());
                        registered.remove(&name);
                    }
                }
                5 => {
                    tidemark.stop().await;
                    tidemark = Embedded::start(data.path(), url, &[&name_of_table], &slot, 3 - workers).await;
                }
                _ => {}
            }
            if rng.random_bool(0.6) {
                self.compare(&tidemark, &table, &registered, step).await;
            }
        }
        self.compare(&tidemark, &table, &registered, 99).await;
        tidemark.stop().await;
        sql::drop_slot(self.client, &slot).await;
        sql::run(self.client, &format!("DROP PUBLICATION {slot}; DROP TABLE {name_of_table}")).await;
    }
}

#[test]
fn every_cell_equals_group_by_at_the_same_lsn() {
    histories(0);
}

/// As many more, beside the others: one Postgres and one history at a time leave processors idle.
#[test]
fn every_cell_equals_group_by_at_the_same_lsn_once_more() {
    histories(1);
}

/// One half of them.
fn histories(half: u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (from, count) = match number("TIDEMARK_SEED") {
        Some(seed) => (seed, 1),
        None => {
            let now = chrono::Utc::now().timestamp() as u64;
            (now % 1_000_000 * 1_000, number("TIDEMARK_HISTORIES").unwrap_or(HISTORIES))
        }
    };
    let seeds: Vec<u64> = (from..from + count).filter(|seed| seed % 2 == half).collect();
    if seeds.is_empty() {
        return;
    }
    println!("seeds {} to {}", seeds[0], seeds[seeds.len() - 1]);
    let server = sql::postgres(&["autovacuum=off"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut compared = 0;
    runtime.block_on(async {
        let client = sql::connect(&server.url()).await;
        for (nth, seed) in seeds.iter().enumerate() {
            if nth > 0 && nth % 500 == 0 {
                println!("{nth} histories so far");
            }
            if nth % 100 == 99 {
                // Of thousands of tables that came and went, the catalogs keep rows that every statement looks at.
                sql::run(&client, "VACUUM").await;
            }
            let mut run = Run { client: &client, seed: *seed, compared: &mut compared };
            let ended = tokio::time::timeout(Duration::from_secs(120), run.history(&server.url())).await;
            assert!(ended.is_ok(), "seed {seed}: no end within two minutes");
        }
    });
    println!("{} histories, {compared} cells compared", seeds.len());
    assert!(seeds.len() == 1 || compared > 1_000, "hardly anything was compared: {compared}");
}
