//! `verify`: every cell equals Postgres at one position while nobody stops writing, over and over; and a cell that was
//! altered is found with both values, also where the control totals agree with it.
//!
//! `TIDEMARK_VERIFICATIONS=500 cargo test --release verify` compares that often.

use std::collections::BTreeSet;
use std::process::Command;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::oracle::{Spec, Table};
use crate::support::database::Database;
use crate::support::server::{Server, tidemark};
use crate::support::shop::{self, Shop};
use crate::support::sql;
use crate::support::tamper::{Tamper, add_one};

const VERIFICATIONS: usize = 20;

fn verify(server: &Server, request: &Value) -> Value {
    let (status, found) = server.try_post("/v1/verify", request.to_string().as_bytes()).unwrap();
    assert_eq!(status, 200, "{request}: {found}");
    found
}

/// What is wrong with a request.
fn refusal(server: &Server, request: &Value) -> (u16, String) {
    let (status, problem) = server.try_post("/v1/verify", request.to_string().as_bytes()).unwrap();
    (status, problem["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn every_cell_equals_postgres_while_everyone_writes() {
    let comparisons =
        std::env::var("TIDEMARK_VERIFICATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(VERIFICATIONS);
    let postgres = sql::postgres(&[]);
    let data = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let shop = runtime.block_on(Shop::open(&postgres.url(), 7));
    let server = Server::start(data.path(), &postgres.url(), &shop::TABLES, &[]);
    for (name, definition) in shop::definitions() {
        server.register(name, &definition);
    }
    let odd = json!({
        "table": "payments", "dimensions": ["status", "weight"], "where": "amount > -100 or amount is null",
        "measures": [{"name": "w", "sum": "weight"}, {"name": "late", "count": "*", "where": "status = 's1'"}],
        "time": {"column": "at", "granularity": "hour", "time_zone": "America/New_York"}, "rollups": ["week", "year"],
    });
    server.register("odd", &odd);
    let (mut positions, mut cells) = (BTreeSet::new(), 0);
    for number in 0..comparisons {
        let before = shop.committed();
        let found = verify(&server, &json!({}));
        assert_eq!((&found["equal"], &found["against"]), (&json!(true), &json!("postgres")), "{number}: {found}");
        assert_eq!(found["skipped"], json!([]), "{number}: {found}");
        assert!(shop.committed() > before, "nobody wrote during comparison {number}");
        positions.insert(found["lsn"].as_str().unwrap().to_owned());
        cells += found["cells"].as_u64().unwrap();
    }
    assert_eq!(positions.len(), comparisons, "the position did not move");
    // The accounts alone: payments may have been truncated.
    assert!(cells > comparisons as u64 * 100, "hardly anything was compared: {cells}");
    // Nothing is equal to nothing.
    for against in ["postgres", "rows"] {
        for (from, to) in [("2026", "2025"), ("2024-02", "2024-02"), ("now", "-1d")] {
            let request = json!({"aggregate": "by_day", "from": from, "to": to, "against": against});
            assert_eq!(refusal(&server, &request), (422, "empty_range".to_owned()), "{request}");
        }
    }
    for request in [
        json!({"aggregate": "by_day", "from": "2024-02", "to": "2024-03"}),
        json!({"aggregate": "by_day", "from": "2024-02", "to": "2024-03", "against": "rows"}),
        json!({"aggregate": "odd", "from": "2024-02-05T00:00:00-05:00"}),
        json!({"against": "rows"}),
    ] {
        let found = verify(&server, &request);
        assert_eq!(found["equal"], true, "{request}: {found}");
    }
    println!("{comparisons} comparisons, {cells} cells, {} transactions meanwhile", shop.committed());
    runtime.block_on(async {
        shop.close().await;
        let client = sql::connect(&postgres.url()).await;
        let left = "SELECT count(*) FROM pg_replication_slots WHERE temporary";
        assert_eq!(sql::value(&client, left).await, "0", "a slot was left behind");
    });
}

/// Everything that a table can hold, grouped and summed in every way that the oracle knows.
#[test]
fn odd_values_are_the_same_to_both() {
    let seed = std::env::var("TIDEMARK_SEED").map_or(20_261_125, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let database = Database::start(&[], "");
    let url = database.url();
    let mut table = database.runtime.block_on(async { Table::create(&sql::connect(&url).await, seed).await });
    let write = |table: &mut Table, rng: &mut ChaCha8Rng, transactions: usize| {
        database.runtime.block_on(async {
            let client = sql::connect(&url).await;
            for _ in 0..transactions {
                table.transaction(&client, rng).await;
            }
        });
    };
    write(&mut table, &mut rng, 30);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &url, &[&table.name], &[]);
    for number in 0..40 {
        let definition = Spec::random(&mut rng).definition(&table.name);
        server.register(&format!("a{number}"), &serde_json::to_value(definition).unwrap());
    }
    let mut cells = 0;
    for _ in 0..5 {
        write(&mut table, &mut rng, 10);
        for request in [json!({}), json!({"against": "rows"})] {
            let found = verify(&server, &request);
            assert_eq!(found["equal"], true, "seed {seed}: {found}");
            cells += found["cells"].as_u64().unwrap();
        }
    }
    assert!(cells > 1_000, "seed {seed}: hardly anything was compared: {cells}");
}

/// What a role or a database has set for its sessions changes no cell: not while the table is read, not in the stream, and not in
/// the recount, whose values come as text.
#[test]
fn what_sessions_are_given_by_default_changes_no_cell() {
    let seed = 20_261_131;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let database = Database::start(&[], "CREATE ROLE tide SUPERUSER LOGIN");
    let mut table =
        database.runtime.block_on(async { Table::create(&sql::connect(&database.url()).await, seed).await });
    // Its session began before the defaults changed, so what is written is the same.
    let writing = database.runtime.block_on(sql::connect(&database.url()));
    let mut write = |table: &mut Table| {
        database.runtime.block_on(async {
            for _ in 0..20 {
                table.transaction(&writing, &mut rng).await;
            }
        });
    };
    write(&mut table);
    let mut definitions = ChaCha8Rng::seed_from_u64(seed);
    let definitions: Vec<Value> = (0..30)
        .map(|_| serde_json::to_value(Spec::random(&mut definitions).definition(&table.name)).unwrap())
        .collect();
    let name = table.name.clone();
    let tables = [name.as_str()];
    let start = |data: &std::path::Path| {
        let server = Server::start(data, &database.url_as("tide"), &tables, &[]);
        for (number, definition) in definitions.iter().enumerate() {
            server.register(&format!("a{number}"), definition);
        }
        server
    };
    let (plain, odd) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let before = start(plain.path());
    let answers = |server: &Server, at: &str| -> Vec<Value> {
        let answer = |number| server.get_ok(&format!("/v1/aggregates/a{number}/data?min_lsn={at}&wait=20s"));
        (0..definitions.len()).map(|number| answer(number)["data"].take()).collect()
    };
    answers(&before, &database.value("SELECT pg_current_wal_lsn()"));
    for whose in ["ROLE tide", "DATABASE postgres"] {
        for setting in [
            "DateStyle = 'SQL, DMY'",
            "IntervalStyle = 'sql_standard'",
            "TimeZone = 'Asia/Kolkata'",
            "extra_float_digits = -15",
            "bytea_output = 'escape'",
            "standard_conforming_strings = off",
            "client_encoding = 'LATIN1'",
        ] {
            database.sql(&format!("ALTER {whose} SET {setting}"));
        }
    }
    // One that was running, one that reads the table under them, and one that goes on under them.
    let after = start(odd.path());
    write(&mut table);
    let at = database.value("SELECT pg_current_wal_lsn()");
    let expected = answers(&before, &at);
    assert_eq!(answers(&after, &at), expected);
    assert!(before.terminate().success());
    let again = Server::start(plain.path(), &database.url_as("tide"), &tables, &[]);
    write(&mut table);
    let at = database.value("SELECT pg_current_wal_lsn()");
    let expected = answers(&again, &at);
    assert!(expected.iter().any(|rows| rows.as_array().is_some_and(|rows| rows.len() > 3)), "{expected:?}");
    assert_eq!(answers(&after, &at), expected);
    for server in [&again, &after] {
        let found = verify(server, &json!({}));
        assert_eq!((&found["equal"], &found["skipped"]), (&json!(true), &json!([])), "{found}");
    }
}

/// Postgres knows the labels of an enum, and refuses others.
#[test]
fn one_that_postgres_refuses_is_skipped_and_the_others_are_compared() {
    let database = Database::start(
        &[],
        "CREATE TYPE mood AS ENUM ('fine');
         CREATE TABLE payments (id bigint PRIMARY KEY, mood mood, amount numeric(14,2));
         INSERT INTO payments SELECT i, 'fine', i * 0.37 FROM generate_series(1, 90) AS i",
    );
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["payments"], &["--verify-every", "1s"]);
    let total = |filter: &str| json!({"table": "payments", "measures": [{"name": "n", "count": "*"}], "where": filter});
    server.register("all", &total("id > 0"));
    server.register("none", &total("mood = 'lost'"));
    server.register("some", &total("mood = 'fine'"));
    let found = verify(&server, &json!({}));
    let compared: Vec<&Value> = found["aggregates"].as_array().unwrap().iter().map(|one| &one["aggregate"]).collect();
    assert_eq!((compared, &found["equal"]), (vec![&json!("all"), &json!("some")], &json!(true)), "{found}");
    let skipped = &found["skipped"][0];
    assert_eq!((&skipped["aggregate"], &skipped["code"]), (&json!("none"), &json!("not_comparable")), "{found}");
    let message = skipped["message"].as_str().unwrap();
    assert!(message.contains("invalid input value for enum public.mood"), "{message}");
    let (code, out, err) = command(&server, &[]);
    assert!(code == Some(0) && err.contains("1 of 3 aggregates were not compared"), "{code:?} {out}{err}");
    assert_eq!(refusal(&server, &json!({"aggregate": "none"})), (422, "not_comparable".to_owned()));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let metrics = server.exchange("GET", "/metrics", &[], &[]).unwrap().text;
        let counted = metrics.lines().find_map(|line| line.strip_prefix("tidemark_verified_skipped_aggregates_total "));
        // Two were asked for; the third nobody.
        if counted.unwrap().parse::<f64>().unwrap() > 2.0 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{metrics}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

fn command(server: &Server, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command: Command = tidemark();
    command.arg("verify").args(arguments).args(["--server", &format!("http://{}", server.address())]);
    let output = command.stderr(std::process::Stdio::piped()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn an_altered_cell_is_found_with_both_values() {
    let database = Database::start(
        &[],
        "CREATE TABLE payments (id bigint PRIMARY KEY, account text, amount numeric(14,2), at timestamptz);
         INSERT INTO payments SELECT i, 'ES' || i % 3, i * 0.37, timestamptz '2026-01-15 UTC' + interval '1 day' * (i % 90)
           FROM generate_series(1, 900) AS i",
    );
    let data = tempfile::tempdir().unwrap();
    let start = || Server::start(data.path(), &database.url(), &["payments"], &[]);
    let server = start();
    let monthly = json!({
        "table": "payments", "dimensions": ["account"], "rollups": ["year"],
        "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
        "time": {"column": "at", "granularity": "month"},
    });
    server.register("monthly", &monthly);
    server.register("other", &json!({"table": "payments", "measures": [{"name": "n", "count": "*"}]}));
    let (code, out, err) = command(&server, &[]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("equal    monthly") && out.contains("12 cells by month"), "{out}");
    assert!(server.terminate().success());

    // One cent more, and the control total of its Partition with it: nothing here could tell.
    let tamper = Tamper::open(data.path());
    let (stored, mut cell) = tamper.cells(1).swap_remove(1);
    add_one(&mut cell, 0);
    tamper.put_in_balance(&stored, &cell);
    drop(tamper);
    let server = start();
    server.get_ok("/readyz");
    let (code, out, err) = command(&server, &["monthly"]);
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(err.contains("1 of 15 cells differ"), "{err}");
    let sum = database
        .value("SELECT sum(amount) FROM payments WHERE account = 'ES1' AND at >= '2026-01-01Z' AND at < '2026-02-01Z'");
    assert!(out.contains(&format!("\"amount\":\"{sum}\"")), "{sum} is not in {out}");
    assert!(out.contains(r#""granularity":"month","time":"2026-01-01T00:00:00Z"}"#), "{out}");
    for request in [json!({"aggregate": "monthly"}), json!({"aggregate": "monthly", "against": "rows"})] {
        let found = verify(&server, &request);
        let differences = found["aggregates"][0]["differences"].as_array().unwrap();
        assert_eq!((&found["equal"], &found["differing"], differences.len()), (&json!(false), &json!(1), 1), "{found}");
        assert_eq!(differences[0]["expected"]["amount"], sum.as_str(), "{found}");
        assert_ne!(differences[0]["stored"]["amount"], sum.as_str(), "{found}");
        assert_eq!(differences[0]["stored"]["rows"], differences[0]["expected"]["rows"]);
    }
    let found = verify(&server, &json!({"aggregate": "monthly", "from": "2026-02"}));
    assert_eq!((&found["equal"], &found["cells"]), (&json!(true), &json!(9)), "{found}");
    assert_eq!(verify(&server, &json!({"aggregate": "other"}))["equal"], true);

    assert_eq!(refusal(&server, &json!({"aggregate": "montly"})), (404, "unknown_aggregate".to_owned()));
    assert_eq!(refusal(&server, &json!({"from": "yesterday"})), (422, "bad_bound".to_owned()));
    assert_eq!(refusal(&server, &json!({"agregate": "monthly"})), (422, "invalid_verify_request".to_owned()));
    assert_eq!(command(&server, &["montly"]).0, Some(2));
    let address = server.address().to_owned();
    assert!(server.terminate().success());
    let dead = tidemark().args(["verify", "--server", &format!("http://{address}")]).output().unwrap();
    assert_eq!(dead.status.code(), Some(3));
}

/// What is sent to Postgres is written anew: no text ends its literal, and a condition means the same to both.
#[test]
fn conditions_mean_the_same_to_postgres_and_say_no_more() {
    const EVIL: &str = r"x\'') HAVING count(*) > 0) AS g ORDER BY 1; COMMIT; DROP TABLE public.sentinel; --";
    let texts = ["it's", "it''s", r"x\", r"x\'", r"x\''", "", r"\\", r"x\') OR (true"];
    let quoted = texts.map(|text| format!("'{}'", text.replace('\'', "''")));
    let database = Database::start(
        &[],
        &format!(
            "CREATE TABLE sentinel (id int);
             CREATE TABLE payments (id bigint PRIMARY KEY, account text, f4 real, d date, t timestamp, tz timestamptz);
             INSERT INTO payments SELECT i, a, (i * 0.1)::real, day, day + time '10:00', (day + time '10:00') AT TIME ZONE 'UTC'
               FROM unnest(ARRAY[{}]) WITH ORDINALITY AS t(a, i), LATERAL (SELECT date '2026-01-01' + i::int AS day) AS g;
             INSERT INTO payments SELECT 90 + i, d, i, d::date, d::timestamp, d::timestamptz
               FROM unnest(ARRAY['infinity', '-infinity']) WITH ORDINALITY AS t(d, i)",
            quoted.join(", ")
        ),
    );
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["payments"], &[]);
    database.sql("SET TIME ZONE 'UTC'");
    let mut conditions: Vec<String> = quoted.iter().map(|text| format!("account = {text}")).collect();
    conditions.push(format!("account IN ({})", quoted.join(", ")));
    conditions.push(format!("NOT (account = {}) AND f4 IS NOT NULL", quoted.join(" OR account = ")));
    conditions.push(format!("account = '{EVIL}' OR account = ''"));
    conditions.extend(
        [
            "f4 = 0.1",
            "f4 = '0.1'",
            "f4 IN (0.1, '0.2', 0.3)",
            "f4 IN (0.1)",
            "f4 NOT IN (-0.1, 0.5)",
            "f4 BETWEEN 0.1 AND 0.3",
            "d = '2026-01-02'",
            "d > DATE '2026-01-03' AND t <= TIMESTAMP '2026-01-05 10:00'",
            "t = TIMESTAMPTZ '2026-01-02 12:00:00+02'",
            "tz BETWEEN '2026-01-02T12:00:00+02:00' AND TIMESTAMP '2026-01-04 10:00'",
            "d = 'infinity'",
            "d <> DATE 'infinity' AND d > '-infinity'",
            "t = 'infinity' OR t <= TIMESTAMP '-infinity'",
            "tz IN ('infinity', '-infinity')",
        ]
        .map(str::to_owned),
    );
    for (number, condition) in conditions.iter().enumerate() {
        let expected = database.value(&format!("SELECT count(*) FROM payments WHERE {condition}"));
        let measure = json!({"name": "kept", "count": "*", "where": condition});
        let definition = json!({"table": "payments", "measures": [{"name": "n", "count": "*"}, measure]});
        server.register(&format!("json{number}"), &definition);
        let statement = format!(
            "CREATE MATERIALIZED VIEW sql{number} AS SELECT count(*) AS n, count(*) FILTER (WHERE {condition}) AS kept FROM payments"
        );
        let path = format!("/v1/aggregates/sql{number}");
        let reply = server.exchange("PUT", &path, &[("content-type", "application/sql")], statement.as_bytes());
        let reply = reply.unwrap();
        assert!(reply.status < 300, "{condition}: {}", reply.text);
        server.get_ok("/readyz");
        for name in ["json", "sql"] {
            let path = format!("/v1/aggregates/{name}{number}");
            let printed = server.get_ok(&path)["sql"].as_str().unwrap().to_owned();
            let select = printed.trim_end_matches(';').split_once(" AS SELECT").unwrap().1;
            let printed_says = database.value(&format!("SELECT kept FROM (SELECT{select}) AS p"));
            assert_eq!(printed_says, expected, "{condition}: {printed}");
            let answered = server.get_ok(&format!("{path}/data?measures=kept"));
            assert_eq!(answered["data"][0]["kept"].to_string().trim_matches('"'), expected, "{condition}: {answered}");
        }
    }
    let found = verify(&server, &json!({}));
    assert_eq!((&found["equal"], &found["skipped"]), (&json!(true), &json!([])), "{found}");
    assert_eq!(database.value("SELECT count(*) FROM sentinel"), "0");
    for refused in [
        "t = '2026-01-02 12:00:00+02'",
        "t = TIMESTAMP '2026-01-02 12:00:00+02'",
        "d = TIMESTAMP '2026-01-02 10:00'",
        "d = '2026-01-02 10:00'",
        "d = '10-01-05'",
        "tz <= '2026-12-31 23:59:59.9999999Z'",
        "account = E'x'",
    ] {
        let definition = json!({"table": "payments", "measures": [{"name": "n", "count": "*"}], "where": refused});
        let (status, problem) = server.put("/v1/aggregates/refused", &definition);
        assert_eq!((status, &problem["code"]), (422, &json!("bad_filter")), "{refused}: {problem}");
    }
}

#[test]
fn a_source_without_postgres_is_compared_with_its_rows() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start_source(data.path(), &["--generator", "5"]);
    let definition = json!({
        "table": "payments", "measures": [{"name": "amount", "sum": "amount"}], "dimensions": ["currency"],
        "time": {"column": "created_at", "granularity": "day"}, "rollups": ["month"],
    });
    server.register("daily", &definition);
    assert_eq!(refusal(&server, &json!({"against": "postgres"})), (422, "no_postgres".to_owned()));
    let found = verify(&server, &json!({}));
    assert_eq!((&found["equal"], &found["against"]), (&json!(true), &json!("rows")), "{found}");
    assert!(found["cells"].as_u64().unwrap() > 10, "{found}");
}

/// Neither a copy of the source's slot nor one to recount in can be made, which both say as it is.
#[test]
fn a_server_without_a_free_slot_is_told() {
    let database = Database::start(&["max_replication_slots=1"], "CREATE TABLE t (id int8 PRIMARY KEY, v int8)");
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["t"], &[]);
    server.register("total", &json!({"table": "t", "measures": [{"name": "v", "sum": "v"}]}));
    for (path, body, status) in [("/v1/verify", "{}", 503), ("/v1/admin/checkpoints", "{\"hold_log\":true}", 422)] {
        let (found, problem) = server.try_post(path, body.as_bytes()).unwrap();
        assert_eq!((found, &problem["code"]), (status, &json!("no_free_slot")), "{path}: {problem}");
        assert_eq!(problem["detail"], "all replication slots of the server are in use", "{path}: {problem}");
        assert!(problem["hint"].as_str().unwrap().contains("max_replication_slots"), "{path}: {problem}");
    }
    assert!(server.terminate().success());
}
