//! An aggregate that gets another definition: the version before answers until the next one is filled, then the next one
//! does, from one commit to the other; held, let go, given up, and killed in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::Server;

const ROWS: u32 = 400_000;
const PATH: &str = "/v1/aggregates/by_day";

fn start() -> (Database, Server, tempfile::TempDir) {
    let database = Database::start(
        &[],
        &format!(
            "CREATE TABLE payments (id bigint PRIMARY KEY, acct int, amount numeric(12,2), at timestamptz);
             INSERT INTO payments SELECT i, i % 50, (i % 1000) / 100.0, timestamptz '2026-01-01Z' + i * interval '10 seconds'
             FROM generate_series(1, {ROWS}) i;"
        ),
    );
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    server.register("by_day", &definition(false));
    (database, server, data)
}

fn definition(with_amount: bool) -> Value {
    let mut measures = vec![json!({"name": "n", "count": "*"})];
    if with_amount {
        measures.push(json!({"name": "amount", "sum": "amount"}));
    }
    json!({"table": "payments", "measures": measures, "dimensions": ["acct"], "time": {"column": "at", "granularity": "day"}})
}

fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn post(server: &Server, what: &str) -> (u16, Value) {
    server.try_post(&format!("{PATH}/backfill:{what}"), b"").unwrap()
}

/// Every cell with both measures, as Postgres has them now.
fn assert_equal(server: &Server, database: &Database) {
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    let body = server.get_ok(&format!("{PATH}/data?limit=100000&min_lsn={lsn}&wait=20s"));
    let answered: Vec<Value> = body["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| json!([row["time"].as_str().unwrap()[..10], row["acct"], row["n"], row["amount"]]))
        .collect();
    let text = database.value(
        "SELECT json_agg(json_build_array(day, acct, n, amount) ORDER BY day, acct)::text FROM (
            SELECT (at AT TIME ZONE 'UTC')::date AS day, acct, count(*) AS n, sum(amount)::text AS amount
            FROM payments GROUP BY 1, 2) t",
    );
    assert!(json!(answered) == serde_json::from_str::<Value>(&text).unwrap(), "other cells than Postgres");
}

#[test]
fn the_version_before_answers_until_the_next_one_does() {
    let (database, server, _data) = start();
    let done = Arc::new(AtomicBool::new(false));
    let (stop, url) = (Arc::clone(&done), database.url());
    let writer = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = crate::support::sql::connect(&url).await;
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let first = round * 7_919 % ROWS;
                client
                    .batch_execute(&format!(
                        "UPDATE payments SET amount = amount + 1, acct = (acct + 1) % 50 WHERE id BETWEEN {first} AND {first} + 50;
                         DELETE FROM payments WHERE id = {first} + 51; INSERT INTO payments VALUES (-{round}, 3, 0.01, '2026-01-03Z');"
                    ))
                    .await
                    .unwrap();
            }
        });
    });
    let (status, refused) = server.put(PATH, &definition(true));
    assert_eq!((status, refused["code"].as_str()), (409, Some("definition_differs")));
    let (status, body) = server.put(&format!("{PATH}?on_change=rebuild"), &definition(true));
    assert_eq!(status, 202, "{body}");
    let mut answers = [0u32; 2];
    loop {
        let body = server.get(&format!("{PATH}/data?granularity=all&group_by="));
        assert_eq!(body.0, 200, "{}", body.1);
        let next = body.1["data"][0].get("amount").is_some();
        assert!(next || answers[1] == 0, "the version before came back");
        answers[usize::from(next)] += 1;
        if answers[1] > 20 {
            break;
        }
    }
    done.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    println!("{} answers of version 1 meanwhile", answers[0]);
    let described = server.get_ok(PATH);
    assert_eq!((described["version"].as_u64(), described.get("next")), (Some(2), None));
    assert_equal(&server, &database);
    assert_eq!(server.put(PATH, &definition(true)).0, 200);
    assert_eq!(server.get_ok("/v1/aggregates")["data"].as_array().unwrap().len(), 1);
    // Once more the same, from the rows.
    assert_eq!(post(&server, "rebuild").0, 202);
    until(|| server.get_ok(PATH)["version"] == 3);
    assert_equal(&server, &database);
}

#[test]
fn what_is_built_can_be_held_given_up_and_survives_a_kill() {
    let (database, server, data) = start();
    assert_eq!(post(&server, "pause").1["code"], "nothing_is_built");
    let rebuild = |server: &Server| {
        assert_eq!(server.put(&format!("{PATH}?on_change=rebuild"), &definition(true)).0, 202);
        post(server, "pause")
    };
    let (status, held) = rebuild(&server);
    assert_eq!((status, held["phase"].as_str(), held["version"].as_u64()), (200, Some("paused"), Some(2)));
    // Another one is filled meanwhile, and what is held stays where it is.
    server.register("other", &definition(true));
    until(|| !server.get_ok(&format!("{PATH}/backfill"))["progress"].is_null());
    let before = server.get_ok(&format!("{PATH}/backfill"));
    database.sql("INSERT INTO payments VALUES (0, 1, 5, '2026-01-02Z')");
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    server.get_ok(&format!("{PATH}/data?limit=1&min_lsn={lsn}&wait=20s"));
    assert_eq!(server.get_ok(&format!("{PATH}/backfill")), before);
    assert!(before["progress"]["rows_done"].as_u64().unwrap() < u64::from(ROWS), "{before}");
    assert_eq!(post(&server, "cancel").0, 204);
    let described = server.get_ok(PATH);
    assert_eq!(
        (described["version"].as_u64(), described["state"].as_str(), described.get("next")),
        (Some(1), Some("live"), None)
    );
    rebuild(&server);
    server.kill();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    until(|| server.get_ok(PATH)["version"] == 2);
    assert_equal(&server, &database);
    assert_eq!(post(&server, "resume").1["code"], "nothing_is_built");
}

/// A next version that cannot be exact never takes the place of one that is.
#[test]
fn a_next_version_that_halts_leaves_the_one_before() {
    let database = Database::start(
        &[],
        "CREATE TABLE payments (id bigint PRIMARY KEY, acct int, amount numeric, at timestamptz);
         INSERT INTO payments SELECT i, i % 50, i * 0.001, timestamptz '2026-01-01Z' + i * interval '10 seconds'
         FROM generate_series(1, 60000) i;",
    );
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    server.register("by_day", &definition(false));
    // Amounts have three digits after the point: two are not enough, and rounding would be wrong.
    let mut cents = definition(true);
    cents["measures"][1]["scale"] = json!(2);
    assert_eq!(server.put(&format!("{PATH}?on_change=rebuild"), &cents).0, 202);
    until(|| server.get_ok(PATH)["next"]["state"] == "halted");
    // What the filling still had to say came after that; this row and its commit come later still.
    database.sql("INSERT INTO payments VALUES (0, 1, 5, '2026-01-02Z')");
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    let answer = server.get_ok(&format!("{PATH}/data?granularity=all&group_by=&min_lsn={lsn}&wait=20s"));
    assert_eq!(answer["data"][0]["n"], 60_001, "{answer}");
    let described = server.get_ok(PATH);
    assert_eq!((described["version"].as_u64(), described["state"].as_str()), (Some(1), Some("live")), "{described}");
    assert_eq!(server.get_ok(&format!("{PATH}/backfill"))["error"]["code"], "scale_exceeded");
    assert_eq!(post(&server, "cancel").0, 204);
    assert_eq!(server.get_ok(PATH).get("next"), None);
    cents["measures"][1]["scale"] = json!(3);
    assert_eq!(server.put(&format!("{PATH}?on_change=rebuild"), &cents).0, 202);
    until(|| server.get_ok(PATH)["version"] == 2);
    assert_equal(&server, &database);
}
