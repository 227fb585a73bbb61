//! What an operator does with a shell: `tidemark check`, `--fix`, `tidemark drop-slot`, a second process over a restored
//! directory while the first one hangs; and what they see over HTTP.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::{Server, tidemark};

const TABLES: &str = "
    CREATE TABLE payments (id bigint PRIMARY KEY, account text, amount numeric(14,2));
    INSERT INTO payments SELECT i, 'ES' || i % 7, i * 0.37 FROM generate_series(1, 2000) AS i;
";

/// The remaining words of a command, its exit code, standard output, standard error.
fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn check(url: &str, arguments: &[&str]) -> Command {
    let mut command = tidemark();
    command.arg("check").args(arguments).env("TIDEMARK_POSTGRES", url);
    command
}

/// The checks as a program reads them.
fn checks(url: &str, arguments: &[&str]) -> (Option<i32>, Value) {
    let (code, out, err) = run(check(url, arguments).args(["--output", "json"]));
    let document = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    (code, document)
}

fn codes(document: &Value) -> Vec<String> {
    let checks = document["checks"].as_array().unwrap();
    checks.iter().filter_map(|check| check["code"].as_str().map(str::to_owned)).collect()
}

#[test]
fn checks_name_every_mistake_and_fix_what_can_be_fixed() {
    let database = Database::start(&[], TABLES);
    database.sql(
        "CREATE ROLE tide LOGIN; CREATE SCHEMA shop; CREATE TABLE shop.orders (id bigint PRIMARY KEY, amount int4);
         ALTER TABLE shop.orders REPLICA IDENTITY NOTHING; CREATE TABLE unkeyed (id bigint)",
    );
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let data = data.to_str().unwrap();
    let url = database.url_as("tide");

    // Warnings alone are no failure; nothing is made by looking.
    let (code, out, err) = run(check(&database.postgres.url(), &["--table", "payments"]).current_dir(parent.path()));
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("warning  max_slot_wal_keep_size"), "{out}");
    assert!(out.contains("ALTER SYSTEM SET max_slot_wal_keep_size"), "{out}");
    assert!(out.trim_end().ends_with("ok") && out.contains("0 failed, 1 warning,"), "{out}");
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    // Nor is anything repaired under a name that no source will ever have.
    let (code, out, err) =
        run(check(&url, &["--table", "payments", "--fix-as", &database.postgres.url()]).current_dir(parent.path()));
    assert!(code == Some(2) && out.contains("--data") && !out.contains("unnamed"), "{out}{err}");
    assert_eq!(database.value("SELECT count(*) FROM pg_publication"), "0");
    database.sql("ALTER ROLE tide NOREPLICATION; REVOKE SELECT ON payments FROM tide");
    // Without a table it is about the server.
    assert_eq!(run(check(&database.postgres.url(), &[]).current_dir(parent.path())).0, Some(0));

    let tables = ["--table", "payments,shop.orders", "--data", data];
    let (code, document) = checks(&url, &tables);
    assert_eq!(code, Some(2), "{document}");
    assert_eq!(
        codes(&document),
        ["role_cannot_replicate", "permission_denied", "replica_identity_nothing", "permission_denied"]
    );
    assert_eq!(document["failed"], 4);

    // The role itself may repair nothing: that is said, and nothing is changed.
    let (code, document) = checks(&url, &[&tables[..], &["--fix"]].concat());
    assert_eq!(code, Some(2), "{document}");
    let refused = document["statements"].as_array().unwrap();
    assert!(!refused.is_empty() && refused.iter().all(|statement| statement["refused"].is_string()), "{document}");
    assert_eq!(codes(&document).len(), 4, "{document}");

    // Someone who may, can, and each statement is shown before.
    let mut fixing = check(&url, &tables);
    fixing.args(["--fix-as", &database.postgres.url()]);
    let (code, out, err) = run(&mut fixing);
    assert_eq!(code, Some(0), "{out}{err}");
    let slot = format!(
        "tidemark_{}",
        std::fs::read_to_string(format!("{data}/FORMAT")).unwrap().split(' ').nth(2).unwrap().trim()
    );
    for statement in [
        "ALTER ROLE \"tide\" REPLICATION;",
        "GRANT USAGE ON SCHEMA \"shop\" TO \"tide\";",
        "GRANT SELECT ON \"shop\".\"orders\" TO \"tide\";",
        "ALTER TABLE \"shop\".\"orders\" REPLICA IDENTITY DEFAULT;",
        &format!("CREATE PUBLICATION {slot} FOR TABLE ONLY \"public\".\"payments\", ONLY \"shop\".\"orders\";"),
    ] {
        assert!(out.contains(&format!("running  {statement}")), "nothing of {statement} in {out}");
    }
    assert_eq!(database.value("SELECT count(*) FROM pg_replication_slots"), "0");

    // With that the source starts, under the names that were checked.
    let server = Server::start(Path::new(data), &url, &["payments", "shop.orders"], &[]);
    server.get_ok("/readyz");
    assert_eq!(database.until_read(), slot);
    let (code, document) = checks(&url, &tables);
    assert_eq!(code, Some(0), "{document}");
    let slot_check = document["checks"].as_array().unwrap().iter().find(|check| check["name"] == "slot").unwrap();
    assert!(slot_check["message"].as_str().unwrap().contains("read by tidemark"), "{slot_check}");
    assert!(server.terminate().success());

    // What nobody can decide for you stays failed, and is not tried.
    let (code, document) = checks(&database.postgres.url(), &["--table", "unkeyed", "--fix"]);
    assert_eq!((code, codes(&document)), (Some(2), vec!["missing_primary_key".to_owned()]));
    assert_eq!(document["statements"], json!([]));
    // A mistake of usage is told as one.
    let (code, _, err) = run(tidemark().arg("check"));
    assert!(code == Some(2) && err.contains("TIDEMARK_POSTGRES"), "{err}");
    let (code, document) = checks("postgres://u:hunter2@127.0.0.1:1/db", &["--table", "t"]);
    assert_eq!((code, codes(&document)), (Some(2), vec!["cannot_connect".to_owned()]));
    assert!(!document.to_string().contains("hunter2"));
}

#[test]
fn a_restart_is_asked_for_where_only_that_helps() {
    let database = Database::start(&["wal_level=replica"], TABLES);
    let (code, out, err) = run(&mut check(&database.postgres.url(), &["--table", "payments", "--fix"]));
    assert_eq!(code, Some(2), "{out}{err}");
    assert!(out.contains("running  ALTER SYSTEM SET wal_level = 'logical';"), "{out}");
    assert!(out.contains("restart Postgres") && err.contains("1 check failed"), "{out}{err}");
    assert_eq!(database.value("SELECT setting FROM pg_file_settings WHERE name = 'wal_level'"), "logical");
}

#[test]
fn slots_are_dropped_by_their_directory_or_by_name() {
    let database = Database::start(&[], TABLES);
    database.sql("SELECT pg_create_logical_replication_slot('tidemark_0ld', 'pgoutput')");
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let url = database.postgres.url();
    let drop_slot = |arguments: &[&str]| {
        let mut command = tidemark();
        command.arg("drop-slot").args(arguments).env("TIDEMARK_POSTGRES", &url).env("TIDEMARK_DATA", &data);
        run(&mut command)
    };
    let (code, _, err) = drop_slot(&[]);
    assert!(code == Some(2) && err.contains("no Tidemark data directory") && err.contains("--slot"), "{err}");
    assert!(err.contains("tidemark drop-slot --slot tidemark_0ld"), "{err}");
    assert!(!data.exists());

    let server = Server::start(&data, &url, &["payments"], &[]);
    server.get_ok("/readyz");
    let (code, out, err) = drop_slot(&[]);
    assert!(code == Some(2) && err.contains("is in use by tidemark/tidemark_"), "{out}{err}");
    assert!(err.contains("stop that tidemark first") && err.contains("--force"), "{err}");
    server.get_ok("/readyz");
    assert!(server.terminate().success());

    let (code, out, err) = drop_slot(&[]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out.matches(": dropped").count(), 2, "{out}");
    assert!(out.contains("left alone: slot tidemark_0ld of database postgres holds"), "{out}");
    assert!(out.contains("tidemark drop-slot --slot tidemark_0ld"), "{out}");
    assert_eq!(database.value("SELECT count(*) FROM pg_publication"), "0");
    let (code, out, _) = drop_slot(&[]);
    assert!(code == Some(0) && out.matches(": not there").count() == 2, "{out}");
    // The totals that are there cannot go on without it, which `serve` would find too late to ask for something else.
    let arguments = ["--table", "payments", "--data", data.to_str().unwrap()];
    let (code, document) = checks(&url, &arguments);
    assert_eq!(code, Some(2), "{document}");
    assert!(codes(&document).contains(&"slot_missing".to_owned()), "{document}");
    // Where a first start was refused there are none yet.
    let refused = parent.path().join("refused");
    let mut serve = tidemark();
    serve.args(["serve", "--listen", "127.0.0.1:0", "--postgres", &url, "--table", "nowhere", "--data"]).arg(&refused);
    assert_eq!(run(&mut serve).0, Some(2));
    assert!(refused.join("store").is_dir());
    let (code, document) = checks(&url, &["--table", "payments", "--data", refused.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{document}");
    assert_eq!(drop_slot(&["--slot", "tidemark_0ld"]).0, Some(0));
    assert_eq!(database.value("SELECT count(*) FROM pg_replication_slots"), "0");
}

#[test]
fn the_source_shows_its_checks_tables_and_metrics() {
    let database = Database::start(&[], TABLES);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.postgres.url(), &["payments"], &[]);
    server.get_ok("/readyz");
    let deadline = Instant::now() + Duration::from_secs(10);
    let source = loop {
        let (_, source) = server.get("/v1/sources/postgres");
        if source["checks"].as_array().is_some_and(|checks| !checks.is_empty()) {
            break source;
        }
        assert!(Instant::now() < deadline, "no checks: {source}");
        std::thread::sleep(Duration::from_millis(10));
    };
    let checks = source["checks"].as_array().unwrap();
    assert_eq!(checks[0]["outcome"], "warning", "{source}");
    assert_eq!(checks[0]["name"], "max_slot_wal_keep_size", "{source}");
    assert!(checks[0]["remedy"].as_str().unwrap().starts_with("ALTER SYSTEM"), "{source}");
    let level = checks.iter().find(|check| check["name"] == "wal_level").unwrap();
    assert_eq!(*level, json!({"name": "wal_level", "outcome": "ok", "message": "wal_level is logical"}));
    assert_eq!(source["tables"][0]["name"], "public.payments", "{source}");
    assert_eq!(source["tables"][0]["state"], "live", "{source}");

    let metrics = server.exchange("GET", "/metrics", &[], &[]).unwrap().text;
    for line in [
        "tidemark_source_checks{source=\"postgres\",outcome=\"failed\"} 0",
        "tidemark_source_checks{source=\"postgres\",outcome=\"warning\"} 1",
        "tidemark_source_state{source=\"postgres\",state=\"halted\"} 0",
        "tidemark_source_reconnects_total{source=\"postgres\"} 0",
    ] {
        assert!(metrics.contains(line), "nothing of {line} in {metrics}");
    }

    let ask = |path: &str, body: &str| {
        let headers = [("content-type", "application/json")];
        let reply = server.exchange("POST", path, &headers, body.as_bytes()).unwrap();
        (reply.status, serde_json::from_str::<Value>(&reply.text).unwrap())
    };
    let (status, problem) = ask("/v1/sources/postgress/tables", r#"{"table":"public.orders"}"#);
    assert_eq!((status, &problem["code"]), (404, &json!("unknown_source")), "{problem}");
    let (status, problem) = ask("/v1/sources/postgres/tables", r#"{"tabel":"public.orders"}"#);
    assert_eq!((status, &problem["hint"]), (422, &json!("did you mean \"table\"?")), "{problem}");
    let (status, problem) = ask("/v1/sources/postgres/tables", "orders");
    assert_eq!((status, &problem["code"]), (400, &json!("malformed_json")), "{problem}");
    let headers = [("content-type", "text/plain")];
    let reply = server.exchange("POST", "/v1/sources/postgres/tables", &headers, b"orders").unwrap();
    assert_eq!(reply.status, 415, "{}", reply.text);
    assert_eq!(server.get("/v1/sources/postgres/tables").0, 405);
    assert!(server.terminate().success());

    // Made-up payments have no other table to follow.
    let made_up = tempfile::tempdir().unwrap();
    let server = Server::start_source(made_up.path(), &["--generator", "1"]);
    let body = br#"{"table":"public.orders"}"#;
    let reply = server.exchange("POST", "/v1/sources/generator/tables", &[("content-type", "application/json")], body);
    let reply = reply.unwrap();
    let problem: Value = serde_json::from_str(&reply.text).unwrap();
    assert_eq!((reply.status, &problem["code"]), (422, &json!("tables_fixed")), "{problem}");
    assert_eq!(problem["errors"][0]["pointer"], "/table", "{problem}");
}

#[test]
fn a_table_joins_a_running_source_and_is_checked_with_the_others() {
    let database = Database::start(&[], TABLES);
    database.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, amount int4); INSERT INTO orders SELECT i, i FROM generate_series(1, 500) i;
         CREATE TABLE unkeyed (id bigint)",
    );
    let data = tempfile::tempdir().unwrap();
    let url = database.postgres.url();
    let server = Server::start(data.path(), &url, &["payments"], &[]);
    server.get_ok("/readyz");
    database.until_read();
    let join = |table: &str| {
        let body = json!({"table": table}).to_string();
        let headers = [("content-type", "application/json")];
        let reply = server.exchange("POST", "/v1/sources/postgres/tables", &headers, body.as_bytes()).unwrap();
        (reply.status, serde_json::from_str::<Value>(&reply.text).unwrap())
    };
    let until = |state: &str| {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let (_, source) = server.get("/v1/sources/postgres");
            let orders = source["tables"].as_array().unwrap().iter().find(|table| table["name"] == "public.orders");
            if orders.is_some_and(|orders| orders["state"] == state) {
                return;
            }
            assert!(Instant::now() < deadline, "orders is not {state}: {source}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    for (table, code, words) in [
        ("unkeyed", "missing_primary_key", "ADD PRIMARY KEY"),
        ("ordres", "table_missing", "did you mean public.orders?"),
    ] {
        let (status, problem) = join(table);
        assert_eq!((status, &problem["code"]), (422, &json!(code)), "{problem}");
        assert!(problem["hint"].as_str().unwrap().contains(words), "{problem}");
    }
    let members = "SELECT count(*) FROM pg_publication_tables";
    assert_eq!(database.value(members), "1", "what cannot be followed is not published");

    let (status, answer) = join("orders");
    assert_eq!((status, &answer["name"]), (202, &json!("public.orders")), "{answer}");
    assert_eq!(answer["state"], "reading", "{answer}");
    until("live");
    let arguments = ["--table", "payments", "--data", data.path().to_str().unwrap()];
    let publication = || {
        let (code, document) = checks(&url, &arguments);
        let checks = document["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["name"] == "publication").unwrap().clone();
        (code, found["outcome"].as_str().unwrap().to_owned(), found)
    };
    let (code, outcome, found) = publication();
    assert_eq!((code, outcome.as_str()), (Some(0), "ok"), "{found}");
    assert!(found["message"].as_str().unwrap().contains("all 2 tables"), "{found}");

    // One that is taken out of the publication halts alone, and comes back by the same request.
    let slot = database.value("SELECT slot_name FROM pg_replication_slots");
    database.sql(&format!("ALTER PUBLICATION {slot} DROP TABLE orders; INSERT INTO orders VALUES (1000, 1)"));
    until("halted");
    let (status, answer) = join("orders");
    assert_eq!((status, &answer["state"], &answer["code"]), (202, &json!("reading"), &Value::Null), "{answer}");
    until("live");
    let definition = json!({"table": "orders", "measures": [{"name": "amount", "sum": "amount"}]});
    assert_eq!(server.put("/v1/aggregates/orders", &definition).0, 202);
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    let answer = server.get_ok(&format!("/v1/aggregates/orders/data?min_lsn={lsn}&wait=10s"));
    assert_eq!(answer["data"][0]["amount"], database.value("SELECT sum(amount) FROM orders"), "{answer}");

    // Whatever it was, it is read: what is said is not what it was.
    assert_eq!(join("orders").1["state"], "reading");

    // Changed as a whole, it is told what makes it whole again.
    database.sql(&format!("ALTER PUBLICATION {slot} SET (publish = 'insert')"));
    let (code, outcome, found) = publication();
    assert_eq!((code, outcome.as_str(), &found["code"]), (Some(2), "failed", &json!("publication_changed")), "{found}");
    assert!(found["remedy"].as_str().unwrap().contains("restart tidemark: it reads the tables anew"), "{found}");
    let (code, _) = checks(&url, &[&arguments[..], &["--fix"]].concat());
    assert_eq!(code, Some(0));
}

/// A copy of a data directory, as a restored backup is one.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn a_process_that_hangs_loses_its_slot_to_the_one_that_takes_its_place() {
    let database = Database::start(&["wal_sender_timeout=10min"], TABLES);
    let parent = tempfile::tempdir().unwrap();
    let (hung, fresh) = (parent.path().join("hung"), parent.path().join("fresh"));
    let url = database.postgres.url();
    let total = |server: &Server| {
        let lsn = database.value("SELECT pg_current_wal_lsn()");
        let path = format!("/v1/aggregates/total/data?group_by=&min_lsn={lsn}&wait=20s");
        server.get_ok(&path)["data"][0]["amount"].as_str().unwrap().to_owned()
    };
    let expected = || database.value("SELECT sum(amount) FROM payments");
    let first = Server::start(&hung, &url, &["payments"], &[]);
    let definition =
        json!({"table": "payments", "measures": [{"name": "amount", "sum": "amount"}], "dimensions": ["account"]});
    assert_eq!(first.put("/v1/aggregates/total", &definition).0, 202);
    assert_eq!(total(&first), expected());
    let reader = "SELECT active_pid FROM pg_replication_slots";
    let before = database.value(reader);

    first.hang();
    copy(&hung, &fresh);
    database.sql("UPDATE payments SET amount = amount + 1 WHERE id % 3 = 0; DELETE FROM payments WHERE id % 50 = 0");
    let second = Server::start(&fresh, &url, &["payments"], &[]);
    assert_eq!(total(&second), expected());
    let taken = database.value(reader);
    assert_ne!(taken, before);

    // It comes back, and does not take the slot from one that answers.
    first.signal(Signal::CONT);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (_, source) = first.get("/v1/sources/postgres");
        // It waits for the slot, or sees that it was read on without it.
        let waits = source["state"] == "reconnecting" && source["reason"].as_str().unwrap().contains("is in use");
        if waits || source["code"] == "slot_overtaken" {
            break;
        }
        assert!(Instant::now() < deadline, "{source}");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Longer than a session may be silent before it counts as left behind.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(database.value(reader), taken);
    database.sql("INSERT INTO payments VALUES (90000, 'ES1', 12.34)");
    assert_eq!(total(&second), expected());
    assert!(second.terminate().success());
}
