//! From totals to the payments behind them: the same rows that Postgres finds, newest first, through pages, while payments
//! come, move between groups and months, and go; for aggregates registered before the first row, late under load, and after
//! a restart or a reading anew.

use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::Server;

const TABLE: &str = "CREATE TABLE payments (pmt_id bigint PRIMARY KEY, pmt_ts timestamptz, dst_acct text, amount numeric(12,2), note jsonb)";

fn definition(drill_through: bool) -> Value {
    json!({"table": "payments", "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
        "dimensions": ["dst_acct"], "time": {"column": "pmt_ts", "granularity": "month"}, "rollups": ["year"],
        "where": "amount <> 0", "drill_through": drill_through})
}

/// Payments that come, move and go.
fn change(database: &Database, rng: &mut ChaCha8Rng, next: &mut i64) {
    let mut statements = String::new();
    for _ in 0..rng.random_range(1..30) {
        let id = rng.random_range(0..=*next);
        let account = rng.random_range(0..6);
        let time = match rng.random_range(0..20) {
            0 => "NULL".to_owned(),
            1 => "'infinity'".to_owned(),
            _ => format!("timestamptz '2025-11-20Z' + interval '1 minute' * {}", rng.random_range(0..150_000)),
        };
        statements.push_str(&match rng.random_range(0..10) {
            0 => format!("DELETE FROM payments WHERE pmt_id = {id};"),
            1 => format!("UPDATE payments SET dst_acct = 'a{account}' WHERE pmt_id = {id};"),
            2 => format!("UPDATE payments SET pmt_ts = {time} WHERE pmt_id = {id};"),
            3 => format!("UPDATE payments SET amount = {} WHERE pmt_id = {id};", rng.random_range(-2..3)),
            4 => format!("UPDATE payments SET pmt_id = {} WHERE pmt_id = {id};", *next + 1_000_000 + id),
            _ => {
                *next += 1;
                let amount = rng.random_range(-3..9);
                format!("INSERT INTO payments VALUES ({next}, {time}, 'a{account}', {amount}, '{{\"x\":1}}');")
            }
        });
    }
    // An id may be taken by an earlier move: those statements are left out one by one.
    for statement in statements.split_inclusive(';') {
        let guarded = format!("DO $$ BEGIN {statement} EXCEPTION WHEN unique_violation THEN NULL; END $$;");
        database.sql(&guarded);
    }
}

/// The ids behind a question, page by page.
fn ids(server: &Server, name: &str, question: &str, limit: usize) -> Vec<i64> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let path = format!("/v1/aggregates/{name}/rows?{question}&limit={limit}{cursor}&wait=10s");
        let (status, body) = server.get(&path);
        // The table was read anew between two pages: the cursor is of an aggregate that is gone.
        if status == 400 && body["code"] == "bad_cursor" {
            (ids, cursor) = (Vec::new(), String::new());
            continue;
        }
        if status == 503 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        assert_eq!(status, 200, "{path}: {body}");
        assert_eq!(body["warnings"][0]["code"], "columns_left_out", "{body}");
        let rows = body["data"].as_array().unwrap();
        assert!(rows.len() <= limit);
        ids.extend(rows.iter().map(|row| row["pmt_id"].as_i64().unwrap()));
        match body["page"]["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
}

fn expected(database: &Database, condition: &str) -> Vec<i64> {
    // Newest first, as the index has it: NULL is the last of all times, and ties go by account and id, backwards.
    let query = format!(
        "SELECT coalesce(json_agg(pmt_id ORDER BY pmt_ts DESC NULLS FIRST, dst_acct COLLATE \"C\" DESC, pmt_id DESC), '[]')::text
         FROM payments WHERE amount <> 0 AND {condition}"
    );
    serde_json::from_str(&database.value(&query)).unwrap()
}

fn compare(server: &Server, database: &Database, name: &str, rng: &mut ChaCha8Rng) -> usize {
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    let account = rng.random_range(0..7);
    let month = rng.random_range(1..4);
    let questions = [
        (format!("where=dst_acct:a{account}"), format!("dst_acct = 'a{account}'")),
        (
            format!("where=dst_acct:a{account}&from=2025-12&to=2026-0{month}"),
            format!("dst_acct = 'a{account}' AND pmt_ts >= '2025-12-01Z' AND pmt_ts < '2026-0{month}-01Z'"),
        ),
        (format!("from=2026-0{month}"), format!("pmt_ts >= '2026-0{month}-01Z'")),
        ("filter=dst_acct%20in%20(%27a0%27,%27a3%27)".to_owned(), "dst_acct IN ('a0', 'a3')".to_owned()),
        (String::new(), "true".to_owned()),
    ];
    let mut rows = 0;
    for (question, condition) in questions {
        let found = ids(server, name, &format!("{question}&min_lsn={lsn}"), rng.random_range(3..200));
        assert_eq!(found, expected(database, &condition), "{name}: {question}");
        rows += found.len();
    }
    rows
}

#[test]
fn the_rows_behind_every_total_are_those_of_postgres() {
    let seed = std::env::var("TIDEMARK_SEED").map_or(11, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let database = Database::start(&[], TABLE);
    let mut next = 0;
    (0..20).for_each(|_| change(&database, &mut rng, &mut next));
    let data = tempfile::tempdir().unwrap();
    let start = || Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    let mut server = start();
    server.register("early", &definition(true));
    let mut rows = 0;
    for round in 0..12 {
        (0..4).for_each(|_| change(&database, &mut rng, &mut next));
        match round {
            3 => server.register("late", &definition(true)),
            6 => {
                assert!(server.terminate().success());
                server = start();
            }
            8 => {
                server.try_post("/v1/sources/postgres/tables", br#"{"table":"public.payments"}"#).unwrap();
            }
            10 => database.sql("TRUNCATE payments"),
            _ => {}
        }
        rows += compare(&server, &database, "early", &mut rng);
        if round >= 3 {
            rows += compare(&server, &database, "late", &mut rng);
        }
    }
    println!("{rows} rows compared");
    assert!(rows > 5_000);
}

#[test]
fn the_top_accounts_and_their_payments_are_one_request() {
    let database = Database::start(
        &[],
        &format!(
            "{TABLE};
             INSERT INTO payments SELECT i, timestamptz '2026-01-01Z' + i * interval '1 minute', 'acct' || (i % 37), i % 500, NULL
             FROM generate_series(1, 20000) i;"
        ),
    );
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    server.register("drilled", &definition(true));
    server.register("plain", &definition(false));
    let question = "granularity=all&order=-amount&limit=10&rows=3";
    let body = server.get_ok(&format!("/v1/aggregates/drilled/data?{question}"));
    let answer: Vec<(String, Vec<i64>)> = body["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let ids = row["rows"].as_array().unwrap().iter().map(|row| row["pmt_id"].as_i64().unwrap());
            (row["dst_acct"].as_str().unwrap().to_owned(), ids.collect())
        })
        .collect();
    let text = database.value(
        "SELECT json_agg(json_build_array(dst_acct, ids) ORDER BY amount DESC, dst_acct)::text FROM (
            SELECT dst_acct, sum(amount) AS amount, (array_agg(pmt_id ORDER BY pmt_ts DESC))[1:3] AS ids
            FROM payments WHERE amount <> 0 GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 10) t",
    );
    assert_eq!(json!(answer), serde_json::from_str::<Value>(&text).unwrap());
    let month = server.get_ok("/v1/aggregates/drilled/data?where=dst_acct:acct5&from=2026-01&to=2026-02&rows=100");
    let newest = month["data"][0]["rows"][0]["pmt_ts"].as_str().unwrap();
    assert!(newest.starts_with("2026-01-14"), "{newest}");
    for (path, code) in [
        ("plain/rows?limit=1", "no_drill_through"),
        ("plain/data?rows=3", "no_drill_through"),
        ("drilled/data?rows=3&group_by=", "rows_of_whole_groups"),
        ("drilled/data?rows=0", "bad_parameter"),
        ("drilled/data?rows=100&limit=101&granularity=all&order=-n", ""),
        ("drilled/rows?granularity=day", "unknown_parameter"),
        ("drilled/rows?cursor=abc", "bad_cursor"),
    ] {
        let (status, problem) = server.get(&format!("/v1/aggregates/{path}"));
        assert_eq!(problem["code"].as_str().unwrap_or_default(), code, "{path}: {status} {problem}");
    }
}

/// While the index is filled from the row images, rows move on: what was filled in for them is no longer true.
#[test]
fn what_moves_while_the_index_is_filled_is_found_where_it_is() {
    let rows = 60_000;
    let database = Database::start(
        &[],
        &format!(
            "{TABLE};
             INSERT INTO payments SELECT i, timestamptz '2026-01-01Z' + i * interval '1 second', 'a' || (i % 6), 1, NULL
             FROM generate_series(1, {rows}) i;"
        ),
    );
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    server.register("plain", &definition(false));
    let url = database.url();
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stop = std::sync::Arc::clone(&done);
    let writer = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = crate::support::sql::connect(&url).await;
            let mut round = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                round += 1;
                let first = round * 7_919 % 60_000;
                let statements = format!(
                    "UPDATE payments SET dst_acct = 'a' || ((pmt_id + {round}) % 6) WHERE pmt_id BETWEEN {first} AND {first} + 60;
                     DELETE FROM payments WHERE pmt_id = {first} + 61;"
                );
                client.batch_execute(&statements).await.unwrap();
            }
            round
        })
    });
    for name in ["first", "second", "third"] {
        server.register(name, &definition(true));
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    println!("{} rounds of changes", writer.join().unwrap());
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    for name in ["first", "second", "third"] {
        for account in 0..6 {
            let found = ids(&server, name, &format!("where=dst_acct:a{account}&min_lsn={lsn}"), 50_000);
            assert!(found == expected(&database, &format!("dst_acct = 'a{account}'")), "{name} a{account}: other rows");
        }
    }
}
