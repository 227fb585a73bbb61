//! An aggregate that is being filled, held in the middle: what it answers already is exact while rows change on both sides of
//! its edge, and everything else is refused.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::Server;

const ROWS: u32 = 1_100_000;
const PATH: &str = "/v1/aggregates/late";

/// A table of four years, by keys that grow with time or that do not.
pub fn start(key: &str) -> (Database, Server, tempfile::TempDir) {
    let database = Database::start(
        &[],
        &format!(
            "CREATE TABLE payments (id bigint PRIMARY KEY, acct int, amount numeric(12,2), at timestamptz);
             INSERT INTO payments SELECT {key}, i % 7, (i % 1000) / 100.0,
               CASE WHEN i % 1000 = 1 THEN NULL WHEN i % 1000 = 2 AND i < 50000 THEN 'infinity' WHEN i % 1000 = 3 THEN '-infinity'
                    ELSE timestamptz '2022-01-01Z' + i * interval '112 seconds' END
             FROM generate_series(1, {ROWS}) i;"
        ),
    );
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    // Its answers need the rows of the snapshot, so from here on there is something to fill from.
    server.register("counted", &json!({"table": "payments", "measures": [{"name": "n", "count": "*"}]}));
    (database, server, data)
}

fn definition() -> Value {
    json!({
        "table": "payments", "measures": [{"name": "n", "count": "*"}, {"name": "amount", "sum": "amount"}],
        "dimensions": ["acct"], "time": {"column": "at", "granularity": "day"}, "rollups": ["month", "year"],
    })
}

/// Registers `late` and holds its filling once a part of it answers; returns from when on.
pub fn half_filled(server: &Server) -> String {
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline {
        assert_eq!(server.put(PATH, &definition()).0, 202);
        loop {
            let backfill = server.get_ok(&format!("{PATH}/backfill"));
            if backfill["phase"] == "done" {
                break;
            }
            if backfill["progress"]["covered_from"].is_string() {
                let (status, held) = server.try_post(&format!("{PATH}/backfill:pause"), b"").unwrap();
                if status == 200 && held["phase"] == "paused" {
                    return backfill["progress"]["covered_from"].as_str().unwrap().to_owned();
                }
                break;
            }
        }
        // It was faster than we are.
        assert_eq!(server.delete(PATH).unwrap().0, 204);
    }
    panic!("it was always filled before it could be held");
}

/// Rows that come, change, move over the edge in both directions, and go.
fn change(database: &Database, from: &str) {
    database.sql(&format!(
        "UPDATE payments SET amount = amount + 0.01 WHERE id % 1013 = 5;
         UPDATE payments SET at = '{from}'::timestamptz - interval '3 days' WHERE at > '{from}' AND isfinite(at) AND id % 97 = 1;
         UPDATE payments SET at = '{from}'::timestamptz + interval '3 days' WHERE at < '{from}' AND isfinite(at) AND id % 9973 = 1;
         DELETE FROM payments WHERE id % 4001 = 7;
         INSERT INTO payments SELECT (SELECT least(min(id), 0) FROM payments) - i, i % 7, 0.07, '{from}'::timestamptz + i * interval '1 hour' - interval '5 hours'
         FROM generate_series(1, 10) i;"
    ));
}

/// What the server answers is what Postgres has, for this question and the rows it is about.
fn assert_equal(server: &Server, database: &Database, granularity: &str, from: Option<&str>) {
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    let bound = from.map(|from| format!("&from={from}")).unwrap_or_default();
    let url = format!("{PATH}/data?granularity={granularity}{bound}&limit=100000&min_lsn={lsn}&wait=20s");
    let answered: Vec<Value> = server.get_ok(&url)["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| json!([row["time"], row["acct"], row["n"], row["amount"]]))
        .collect();
    let rows = from.map(|from| format!("WHERE at >= '{from}'")).unwrap_or_default();
    let text = database.value(&format!(
        r#"SELECT json_agg(json_build_array(
             CASE WHEN NOT isfinite(day) THEN day::text ELSE to_char(day, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') END, acct, n, amount)
             ORDER BY day, acct)::text
           FROM (SELECT date_trunc('{granularity}', at AT TIME ZONE 'UTC') AS day, acct, count(*) AS n,
                        sum(amount)::text AS amount FROM payments {rows} GROUP BY 1, 2) t"#
    ));
    let expected: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(expected.len() >= 7 && answered == expected, "{granularity} from {from:?}: other cells than Postgres");
}

fn assert_refused(server: &Server, question: &str, from: &str) {
    let (status, problem) = server.get(&format!("{PATH}/data?{question}"));
    assert_eq!((status, problem["code"].as_str()), (409, Some("not_covered")), "{question}: {problem}");
    assert_eq!(problem["coverage"]["from"].as_str(), Some(from));
}

fn of_the_table(server: &Server, from: &str) -> (u16, Value) {
    let question = json!({"table": "payments", "measures": ["sum(amount)"], "granularity": "day", "from": from});
    server.try_post("/v1/query", question.to_string().as_bytes()).unwrap()
}

#[test]
fn with_keys_that_grow_with_time_what_is_filled_is_exact() {
    let (database, server, data) = start("i");
    // A crash begins anew, and says nothing of what the filling before it had.
    half_filled(&server);
    server.kill();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    assert_equal(&server, &database, "day", None);
    assert_eq!(server.delete(PATH).unwrap().0, 204);
    let from = half_filled(&server);
    assert!(from.as_str() > "2022-12-01", "the newest comes first: {from}");
    for _ in 0..2 {
        change(&database, &from);
        assert_equal(&server, &database, "day", Some(&from));
        // The first whole month after the edge, from the level of months.
        let month = database.value(&format!(
            "SELECT to_char(date_trunc('month', '{from}'::timestamp) + interval '1 month', 'YYYY-MM-DD') || 'T00:00:00Z'"
        ));
        if month.as_str() < "2025-12-02" {
            assert_equal(&server, &database, "month", Some(&month));
        }
    }
    for question in ["", "granularity=all", "granularity=year&from=2025", "from=2022", "from=2025-01-01&to=2025-01-02"]
    {
        assert_refused(&server, question, &from);
    }
    let compared = format!("granularity=day&from={from}&to=2025-12-31&compare=previous");
    assert_refused(&server, &compared, &from);
    assert_eq!(of_the_table(&server, &from).0, 200);
    let (status, problem) = of_the_table(&server, "2022-01-01");
    assert_eq!((status, &problem["why_not"][1]["code"]), (422, &json!("not_covered")), "{problem}");
    let ranked = |from: &str| format!("{PATH}/data?granularity=day&order=-amount&limit=5&from={from}");
    let page = server.get_ok(&ranked(&from))["page"]["next"].as_str().unwrap().to_owned();
    let (status, _) = server.try_post(&format!("{PATH}/backfill:resume"), b"").unwrap();
    assert_eq!(status, 200);
    assert_equal(&server, &database, "day", None);
    // A page shows what was filled when its answer began, whatever has been filled since: it cannot be asked for other times.
    let (status, problem) = server.get(&format!("{}&cursor={page}", ranked("2022-02-01")));
    assert_eq!((status, problem["code"].as_str()), (400, Some("bad_cursor")), "{problem}");
    assert_eq!(server.get_ok(&format!("{}&cursor={page}", ranked(&from)))["data"].as_array().unwrap().len(), 5);
    assert_equal(&server, &database, "month", None);
}

/// There the newest rows could not come sooner than all.
#[test]
fn with_keys_in_no_order_of_time_all_is_filled_at_once() {
    let (database, server, _data) = start(&format!("i::bigint * 7919 % {ROWS}"));
    assert_eq!(server.put(PATH, &definition()).0, 202);
    let mut looks = 0;
    loop {
        let backfill = server.get_ok(&format!("{PATH}/backfill"));
        if backfill["phase"] == "done" {
            break;
        }
        assert!(backfill["progress"]["covered_from"].is_null(), "{backfill}");
        looks += 1;
        if looks % 10 == 0 {
            change(&database, "2024-06-01");
        }
    }
    assert_equal(&server, &database, "day", None);
}
