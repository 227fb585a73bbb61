//! Mistakes, and the answers they get: one clear message that names the remedy, the right exit code or status, and nothing
//! lost. After every mistake at the start the same data directory and database work once it is put right; while mistakes
//! arrive over HTTP, what was registered before keeps answering the same exact totals.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::{Server, serve, tidemark};
use crate::support::sql;

/// Passwords that no message may hold.
const SECRET: &str = "hunter2";
/// How long a mistake may take to be told.
const PATIENCE: Duration = Duration::from_secs(8);

/// What somebody has to put right ends with this, and is not tried again by a supervisor.
const MISTAKE: i32 = 2;
/// What may pass by itself ends with this.
const NOT_NOW: i32 = 4;

/// Runs a command that has to be refused as a mistake: one message with all of these words, soon.
fn refused(mistake: &str, command: &mut Command, words: &[&str]) -> String {
    ends(mistake, command, MISTAKE, words)
}

/// The same with another exit code.
fn ends(mistake: &str, command: &mut Command, code: i32, words: &[&str]) -> String {
    let started = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        said
    });
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if started.elapsed() > PATIENCE => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{mistake}: still running after {PATIENCE:?}: {}", reader.join().unwrap());
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let said = reader.join().unwrap();
    assert_eq!(status.code(), Some(code), "{mistake}: {said}");
    let errors = said.lines().filter(|line| line.starts_with("error:")).count();
    assert_eq!(errors, 1, "{mistake}: not one message: {said}");
    for noise in ["panicked", "RUST_BACKTRACE", SECRET, "Error {", "Os {"] {
        assert!(!said.contains(noise), "{mistake}: {noise} in {said}");
    }
    for word in words {
        assert!(said.contains(word), "{mistake}: nothing of {word:?} in {said}");
    }
    said
}

/// `tidemark serve` on a free port.
fn serve_from(data: &Path, url: &str, tables: &[&str]) -> Command {
    let mut command = serve(data);
    command.args(["--listen", "127.0.0.1:0"]).env("TIDEMARK_POSTGRES", url);
    for table in tables {
        command.args(["--table", table]);
    }
    command
}

const TABLES: &str = "
    CREATE TABLE payments (id bigint PRIMARY KEY, at timestamptz, account text, amount numeric(14,2), rate numeric,
                           extra jsonb, note text);
    INSERT INTO payments
    SELECT i, timestamptz '2024-01-01Z' + i * interval '5 hours', 'ES' || i % 7, i * 0.37, i % 5 * 0.25, '{}', 'n' || i
    FROM generate_series(1, 2000) AS i;
    CREATE TABLE unkeyed (id bigint, amount numeric(14,2));
    CREATE TABLE \"Mixed\" (id bigint PRIMARY KEY);
    CREATE VIEW totals AS SELECT sum(amount) FROM payments;
    CREATE UNLOGGED TABLE scratch (id bigint PRIMARY KEY);
    CREATE TABLE split (id bigint) PARTITION BY RANGE (id);
    CREATE ROLE reader LOGIN;
";

const TABLES_ELSEWHERE: &str = "CREATE TABLE payments (id bigint PRIMARY KEY, at timestamptz, account text,
                                                       amount numeric(14,2))";

/// An aggregate that is right.
fn by_day() -> Value {
    json!({
        "table": "payments", "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
        "dimensions": ["account"], "time": {"column": "at", "granularity": "day"}, "rollups": ["month"],
    })
}

/// The totals of an aggregate over `payments` equal Postgres'.
fn totals_are_exact(database: &Database, server: &Server, name: &str) {
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    let path = format!("/v1/aggregates/{name}/data?granularity=all&group_by=account&min_lsn={lsn}&wait=10s");
    let answer = server.get_ok(&path);
    let answered: Vec<String> = answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| format!("{} {} {}", row["account"].as_str().unwrap(), row["amount"].as_str().unwrap(), row["n"]))
        .collect();
    let query = "SELECT string_agg(concat_ws(' ', account, amount, n), ',' ORDER BY account)
                 FROM (SELECT account, sum(amount) AS amount, count(*) AS n FROM payments GROUP BY 1) AS a";
    assert_eq!(answered.join(","), database.value(query), "{name}");
}

#[test]
fn mistakes_at_the_start_are_told_and_leave_nothing_behind() {
    let database = Database::start(&[], TABLES);
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let url = database.url();
    let socket = database.postgres.socket_directory().display().to_string();
    let right = ["payments"];

    let wrong_urls: [(&str, String, &[&str]); 9] = [
        ("no URL", "payments database".to_owned(), &["postgres://user:password@host:5432/database"]),
        ("another scheme", format!("mysql://u:{SECRET}@h/db"), &["postgres://user:password@host:5432/database"]),
        ("a bad port", format!("postgres://u:{SECRET}@h:54x32/db"), &["postgres://user:password@host:5432/database"]),
        ("an @ in the password", format!("postgres://u:a@{SECRET}@h/db"), &["%40"]),
        (
            "no such database",
            database.postgres.url_of("paymentz"),
            &["\"paymentz\" does not exist", "name an existing database in the URL"],
        ),
        (
            "no such role",
            format!("postgres://nobody:{SECRET}@/postgres?host={socket}"),
            &["\"nobody\"", "check user and password in the URL"],
        ),
        (
            "a role that may not replicate",
            format!("postgres://reader@/postgres?host={socket}"),
            &["ALTER ROLE \"reader\" REPLICATION;"],
        ),
        (
            "verified TLS without an authority",
            format!("postgres://u:{SECRET}@h/db?sslmode=verify-full"),
            &["sslrootcert=FILE or sslrootcert=system", "?sslmode=verify-full&sslrootcert="],
        ),
        (
            "half a certificate",
            format!("postgres://u:{SECRET}@h/db?sslcert=c.pem"),
            &["sslcert and sslkey go together"],
        ),
    ];
    for (mistake, wrong, words) in &wrong_urls {
        refused(mistake, &mut serve_from(&data, wrong, &right), words);
    }
    // Nobody can tell a wrong name from a server that is not up yet.
    let nobody_there: [(&str, String, &[&str]); 3] = [
        (
            "nobody at the port",
            format!("postgres://u:{SECRET}@127.0.0.1:1/db"),
            &["127.0.0.1:1/db", "check that Postgres runs there"],
        ),
        (
            "no such host",
            format!("postgres://u:{SECRET}@no-such-host.invalid/db"),
            &["no-such-host.invalid", "check that Postgres runs there"],
        ),
        (
            "no such socket",
            "postgres://u@/db?host=/nowhere".to_owned(),
            &["/nowhere", "check that Postgres runs there"],
        ),
    ];
    for (mistake, wrong, words) in &nobody_there {
        ends(mistake, &mut serve_from(&data, wrong, &right), NOT_NOW, words);
    }
    for (table, words) in [
        ("paymets", &["public.paymets does not exist", "did you mean public.payments?"][..]),
        ("mixed", &["did you mean public.Mixed?"]),
        ("sales.orders", &["sales.orders does not exist", "check the name"]),
        ("unkeyed", &["no primary key", "ALTER TABLE \"public\".\"unkeyed\" ADD PRIMARY KEY"]),
        ("totals", &["public.totals is a view", "list the tables it reads"]),
        ("scratch", &["unlogged", "ALTER TABLE \"public\".\"scratch\" SET LOGGED;"]),
        ("split", &["no primary key", "ALTER TABLE \"public\".\"split\" ADD PRIMARY KEY"]),
        ("a.b.c", &["\"a.b.c\" is not the name of a table", "write schema.table"]),
        ("payments,payments", &["listed twice", "list each table once"]),
    ] {
        refused(table, &mut serve_from(&data, &url, &[table]), words);
    }
    assert_eq!(database.left_behind(), "0 0");

    // The same directory and database, put right.
    let server = Server::start(&data, &url, &right, &[]);
    assert_eq!(server.put("/v1/aggregates/by_day", &by_day()).0, 202);
    totals_are_exact(&database, &server, "by_day");
    assert_eq!(database.left_behind(), "1 1");

    // Beside it nobody gets in, and it does not notice.
    ends("data in use", &mut serve_from(&data, &url, &right), NOT_NOW, &["in use", "--data"]);
    let other = parent.path().join("other");
    let mut taken = serve(&other);
    taken.args(["--listen", server.address(), "--table", "payments"]).env("TIDEMARK_POSTGRES", &url);
    ends("port taken", &mut taken, NOT_NOW, &[server.address(), "--listen"]);
    database.sql("UPDATE payments SET amount = amount + 1 WHERE id % 3 = 0");
    totals_are_exact(&database, &server, "by_day");
    assert_eq!(database.left_behind(), "1 1");
    assert!(server.terminate().success());

    // A directory in use is not lost by mistakes either.
    refused("no URL any more", &mut serve_from(&data, "postgres://", &right), &["postgres://user:password@host"]);
    database.sql("CREATE DATABASE elsewhere");
    let elsewhere = database.postgres.url_of("elsewhere");
    database.runtime.block_on(async { sql::run(&sql::connect(&elsewhere).await, TABLES_ELSEWHERE).await });
    let server = Server::start(&data, &elsewhere, &right, &[]);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, body) = server.get("/readyz");
        assert_eq!(status, 503, "{body}");
        let said = body.to_string();
        if ["elsewhere", "URL"].iter().all(|word| said.contains(word)) {
            break;
        }
        assert!(Instant::now() < deadline, "another database is not told: {said}");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(server.terminate().success());
    // Another table joins, and those that are stored are still followed.
    let server = Server::start(&data, &url, &["Mixed"], &[]);
    server.get_ok("/readyz");
    totals_are_exact(&database, &server, "by_day");
    let deadline = Instant::now() + PATIENCE;
    let joined = |source: &Value| {
        let tables = source["tables"].as_array().unwrap();
        tables.iter().any(|table| table["name"] == "public.Mixed" && table["state"] == "live")
    };
    while !joined(&server.get("/v1/sources/postgres").1) {
        assert!(Instant::now() < deadline, "the other table did not join");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(server.terminate().success());
}

#[test]
fn a_server_without_logical_replication_is_told_how_to_get_it() {
    let database = Database::start(&["wal_level=replica"], TABLES);
    let data = tempfile::tempdir().unwrap();
    let mut command = serve_from(data.path(), &database.url(), &["payments"]);
    refused("wal_level", &mut command, &["wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'", "restart"]);
    assert_eq!(database.left_behind(), "0 0");
    let full = Database::start(&["max_replication_slots=1"], TABLES);
    full.sql("SELECT pg_create_physical_replication_slot('standby')");
    let mut command = serve_from(data.path(), &full.url(), &["payments"]);
    ends("no free slot", &mut command, NOT_NOW, &["max_replication_slots = 6", "restart"]);
    assert_eq!(full.left_behind(), "1 0");
    // The data directory, twice refused, serves once the server can.
    full.sql("SELECT pg_drop_replication_slot('standby')");
    let server = Server::start(data.path(), &full.url(), &["payments"], &[]);
    assert_eq!(server.put("/v1/aggregates/by_day", &by_day()).0, 202);
    totals_are_exact(&full, &server, "by_day");
}

/// A server that refuses every session with this; ends with the test.
fn refusing(state: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut session in listener.incoming().map_while(Result::ok) {
            // The start-up packet, whatever is in it.
            let _ = session.read(&mut [0; 1024]);
            let fields = format!("SFATAL\0VFATAL\0C{state}\0Mnot now\0\0");
            let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
            let _ = session.write_all(&[&b"E"[..], &length, fields.as_bytes()].concat());
        }
    });
    format!("postgres://u:{SECRET}@127.0.0.1:{port}/db?sslmode=disable")
}

/// What a supervisor tries again, and what it does not: told by what Postgres and the system refuse, not by words.
#[test]
fn what_may_pass_by_itself_ends_with_a_code_of_its_own() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    // Starting up, shutting down, no place for a session, out of memory.
    for state in ["57P03", "57P01", "53300", "53200"] {
        ends(state, &mut serve_from(&data, &refusing(state), &["t"]), NOT_NOW, &[state]);
    }
    for state in ["28P01", "28000", "3D000", "42501"] {
        refused(state, &mut serve_from(&data, &refusing(state), &["t"]), &[state]);
    }
    let mut starved = Command::new("prlimit");
    starved.args(["--nofile=4", env!("CARGO_BIN_EXE_tidemark"), "serve", "--generator", "1", "--data"]).arg(&data);
    ends("no open files", &mut starved, NOT_NOW, &["cannot be started"]);

    // Whether to start over is for somebody to decide.
    let damaged = parent.path().join("damaged");
    let generator = ["--generator", "1"];
    assert!(Server::start_source(&damaged, &generator).terminate().success());
    fs::write(damaged.join("store/CURRENT"), "MANIFEST-000099\n").unwrap();
    let words = ["cannot open the store", "empty directory"];
    refused("damaged", serve(&damaged).args(["--listen", "127.0.0.1:0"]).args(generator), &words);
}

#[test]
fn directories_that_are_not_ours_stay_as_they_are() {
    let parent = tempfile::tempdir().unwrap();
    let unused = "postgres://u@127.0.0.1:1/db";
    let newer = parent.path().join("newer");
    fs::create_dir(&newer).unwrap();
    fs::write(newer.join("FORMAT"), "tidemark 2 4f0c93ab\n").unwrap();
    let words = ["format 2", "reads format 1", "use the Tidemark that wrote it", "--data"];
    refused("another format", &mut serve_from(&newer, unused, &["t"]), &words);
    assert_eq!(fs::read_to_string(newer.join("FORMAT")).unwrap(), "tidemark 2 4f0c93ab\n");
    assert_eq!(fs::read_dir(&newer).unwrap().count(), 1);

    let foreign = parent.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "years of work").unwrap();
    let words = ["foreign is not empty", "--data"];
    refused("a foreign directory", &mut serve_from(&foreign, unused, &["t"]), &words);
    assert_eq!(fs::read_to_string(foreign.join("thesis.tex")).unwrap(), "years of work");
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);

    let file = parent.path().join("file");
    fs::write(&file, "x").unwrap();
    for path in [file.join("data"), file.clone(), Path::new("/dev/null/x").to_owned()] {
        let shown = path.display().to_string();
        refused(&shown, &mut serve_from(&path, unused, &["t"]), &[&shown, "--data"]);
    }
    // The same without Postgres, whose slot is named by the directory.
    for path in [&newer, &foreign, &file] {
        let mut command = serve(path);
        refused("generator", command.args(["--listen", "127.0.0.1:0", "--generator", "1"]), &["--data"]);
    }
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
}

#[test]
fn wrong_usage_is_told_before_anything_starts() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let file = parent.path().join("tidemark.toml");
    let with_file = |text: &str| {
        fs::write(&file, text).unwrap();
        let mut command = serve(&data);
        command.arg("--config").arg(&file);
        command
    };
    let with = |arguments: &[&str]| {
        let mut command = serve(&data);
        command.args(arguments);
        command
    };
    refused("unknown flag", &mut with(&["--tabel", "payments"]), &["--tabel", "--table"]);
    refused("unknown command", tidemark().arg("sevre"), &["sevre", "serve"]);
    refused("no source", &mut with(&[]), &["nothing to follow", "TIDEMARK_POSTGRES", "--generator"]);
    refused(
        "no table",
        &mut with(&["--postgres", "postgres://u@h/db"]),
        &["no table to follow", "--table schema.name"],
    );
    let two = ["--postgres", "postgres://u@h/db", "--table", "t", "--generator", "1"];
    refused("two sources", &mut with(&two), &["more than one source"]);
    refused("no address", &mut with(&["--generator", "1", "--listen", "here"]), &["--listen", "here"]);
    refused("open to others", &mut with(&["--generator", "1", "--listen", "0.0.0.0:0"]), &["--insecure-listen"]);
    refused("no workers", &mut with(&["--generator", "1", "--workers", "0"]), &["at least 1"]);
    refused("no size", &mut with(&["--generator", "1", "--memory", "much"]), &["\"much\"", "512MiB"]);

    let password = format!("postgres = 'postgres://u:{SECRET}@h/db'\n");
    let words = ["tidemark.toml", "line 2", "unknown field `worker`", "`workers`"];
    refused("unknown key", &mut with_file(&format!("{password}worker = 3")), &words);
    let words = ["tidemark.toml", "line 1"];
    refused("no TOML", &mut with_file(&format!("postgres = postgres://u:{SECRET}@h/db")), &words);
    refused("a key of another type", &mut with_file(&format!("{password}tables = 3")), &["tidemark.toml", "line 2"]);
    refused("no source in the file", &mut with_file("workers = 1"), &["nothing to follow"]);
    refused("no such file", &mut with(&["--config", "/nowhere/tidemark.toml"]), &["/nowhere/tidemark.toml"]);
    assert!(!data.exists(), "a mistake made a data directory");
    let recording = ["--listen", "127.0.0.1:0", "--replay", "/nowhere/x.jsonl"];
    refused("no such recording", &mut with(&recording), &["/nowhere/x.jsonl"]);

    // Against a server that is not there.
    let nobody = ["list", "--server", "http://127.0.0.1:1"];
    let output = tidemark().args(nobody).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error:") && said.contains("127.0.0.1:1"), "{said}");
}

/// A definition with one thing changed.
fn but(change: impl Fn(&mut Value)) -> Vec<u8> {
    let mut definition = by_day();
    change(&mut definition);
    definition.to_string().into_bytes()
}

#[test]
fn mistakes_over_http_are_told_and_disturb_nobody() {
    let database = Database::start(&[], TABLES);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["payments", "Mixed"], &[]);
    assert_eq!(server.put("/v1/aggregates/by_day", &by_day()).0, 202);
    totals_are_exact(&database, &server, "by_day");
    let set = |pointer: &'static str, value: Value| {
        move |definition: &mut Value| *definition.pointer_mut(pointer).unwrap() = value.clone()
    };
    let add = |parent: &'static str, key: &'static str, value: Value| {
        move |definition: &mut Value| {
            let object = definition.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            object.insert(key.to_owned(), value.clone());
        }
    };
    // Body; status, code, pointer, what detail and hint say.
    type Case = (Vec<u8>, u16, &'static str, Option<&'static str>, &'static [&'static str]);
    let cases: Vec<Case> = vec![
        (b"{\"table\": \"payments\",\n \"measures\": }".to_vec(), 400, "malformed_json", None, &["line 2", "column"]),
        (b"{\"table\": \"payments\"".to_vec(), 400, "malformed_json", None, &["line 1"]),
        (Vec::new(), 400, "malformed_json", None, &[]),
        (b"\xff\xfe{}".to_vec(), 400, "malformed_json", None, &["line 1"]),
        (b"[1, 2]".to_vec(), 422, "invalid_definition", None, &[]),
        (b"{\"measures\": []}".to_vec(), 422, "invalid_definition", None, &["table"]),
        (but(add("", "dimension", json!([]))), 422, "invalid_definition", None, &["did you mean \"dimensions\"?"]),
        (but(add("/time", "granularty", json!("day"))), 422, "invalid_definition", None, &["\"granularity\"?"]),
        (but(add("/measures/0", "summ", json!("x"))), 422, "invalid_definition", None, &["\"sum\"?"]),
        (but(add("", "colour", json!("red"))), 422, "invalid_definition", None, &["colour", "table", "dimensions"]),
        (but(set("/time/granularity", json!("fortnight"))), 422, "invalid_definition", None, &["fortnight"]),
        (but(set("/measures", json!("amount"))), 422, "invalid_definition", None, &["line 1"]),
        (but(set("/measures", json!([]))), 422, "no_measures", Some("/measures"), &["at least one", "count"]),
        (
            but(set("/dimensions/0", json!("acount"))),
            422,
            "unknown_column",
            Some("/dimensions/0"),
            &["\"acount\"", "public.payments", "account, amount, rate, extra, note"],
        ),
        (but(set("/time/column", json!("when"))), 422, "unknown_column", Some("/time/column"), &["id, at, account"]),
        (but(set("/measures/0/sum", json!("amont"))), 422, "unknown_column", Some("/measures/0/sum"), &["amount"]),
        (
            but(set("/dimensions/0", json!("extra"))),
            422,
            "unsupported_type",
            Some("/dimensions/0"),
            &["jsonb", "public.payments.extra", "numeric"],
        ),
        (but(set("/measures/1/count", json!("extra"))), 422, "unsupported_type", Some("/measures/1/count"), &["jsonb"]),
        (but(set("/measures/0/sum", json!("note"))), 422, "not_a_number", Some("/measures/0/sum"), &["note", "text"]),
        (but(set("/measures/0/sum", json!("rate"))), 422, "scale_needed", Some("/measures/0/scale"), &["\"scale\": 2"]),
        (but(add("/measures/0", "scale", json!(31))), 422, "scale_too_large", Some("/measures/0/scale"), &["30"]),
        (but(add("/measures/1", "scale", json!(2))), 422, "scale_without_sum", Some("/measures/1/scale"), &[]),
        (but(add("/measures/1", "sum", json!("amount"))), 422, "not_a_measure", Some("/measures/1"), &["exactly one"]),
        (
            but(set("/measures/1/name", json!("amount"))),
            422,
            "duplicate_name",
            Some("/measures/1/name"),
            &["\"amount\""],
        ),
        (but(set("/measures/1/name", json!("time"))), 422, "duplicate_name", Some("/measures/1/name"), &["reserved"]),
        (but(set("/measures/1/name", json!("n n"))), 422, "bad_name", Some("/measures/1/name"), &["letters"]),
        (but(set("/time/column", json!("account"))), 422, "not_a_time", Some("/time/column"), &["account", "text"]),
        (
            but(add("/time", "time_zone", json!("Madrid"))),
            422,
            "unknown_time_zone",
            Some("/time/time_zone"),
            &["Europe/Madrid"],
        ),
        (
            but(add("/time", "assume_time_zone", json!("UTC"))),
            422,
            "zone_known",
            Some("/time/assume_time_zone"),
            &["timestamptz"],
        ),
        (but(set("/rollups/0", json!("hour"))), 422, "does_not_nest", Some("/rollups/0"), &["hour", "day"]),
        (but(set("/rollups", json!(["week", "day"]))), 422, "duplicate_rollup", Some("/rollups/1"), &["day"]),
        (
            but(|definition| {
                definition["time"]["granularity"] = json!("week");
                definition["rollups"] = json!(["month"]);
            }),
            422,
            "does_not_nest",
            Some("/rollups/0"),
            &["week", "month"],
        ),
        (but(add("", "where", json!("acount = 'ES1'"))), 422, "bad_filter", Some("/where"), &["acount"]),
        (but(add("", "where", json!("account = "))), 422, "bad_filter", Some("/where"), &[]),
        (but(add("", "where", json!("amount > 'much'"))), 422, "bad_filter", Some("/where"), &["much"]),
        (but(add("", "where", json!("random() > 0.5"))), 422, "bad_filter", Some("/where"), &[]),
        (but(add("", "where", json!("true; DROP TABLE payments"))), 422, "bad_filter", Some("/where"), &[]),
        (but(add("", "where", json!("extra IS NULL"))), 422, "unsupported_type", Some("/where"), &["jsonb"]),
        (
            but(set("/table", json!("payment"))),
            422,
            "unknown_table",
            Some("/table"),
            &["public.payment", "did you mean \"public.payments\"?"],
        ),
        (
            but(set("/table", json!("orders"))),
            422,
            "unknown_table",
            Some("/table"),
            &["public.payments", "public.Mixed"],
        ),
        // Not followed by this source, though it is in the database.
        (but(set("/table", json!("unkeyed"))), 422, "unknown_table", Some("/table"), &["public.payments"]),
    ];
    for (body, status, code, pointer, words) in cases {
        let shown = String::from_utf8_lossy(&body).into_owned();
        let (answered, problem) = server.try_put("/v1/aggregates/wrong", &body).unwrap();
        assert_eq!((answered, problem["code"].as_str()), (status, Some(code)), "{shown}: {problem}");
        assert_eq!(problem["errors"][0]["pointer"].as_str(), pointer, "{shown}: {problem}");
        let said = format!("{} {}", problem["detail"].as_str().unwrap(), problem["hint"].as_str().unwrap_or_default());
        for word in words {
            assert!(said.contains(word), "{shown}: nothing of {word:?} in {problem}");
        }
        assert_eq!(server.get("/v1/aggregates/wrong").0, 404, "{shown}: registered in part");
    }
    database.sql("UPDATE payments SET account = 'ES3' WHERE id % 11 = 0");
    totals_are_exact(&database, &server, "by_day");

    for name in ["1st", "by-day", "by%20day", "a%2Fb", "%C3%B1", &"x".repeat(64)] {
        let (status, problem) = server.put(&format!("/v1/aggregates/{name}"), &by_day());
        assert_eq!((status, problem["code"].as_str()), (422, Some("bad_name")), "{name}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("letters, digits and underscores"), "{name}: {problem}");
    }

    let json = [("content-type", "application/json")];
    let definition = by_day().to_string();
    type Request<'r> = (&'r str, &'r str, &'r [(&'r str, &'r str)], &'r [u8], u16, &'r str, &'r [&'r str]);
    let requests: [Request<'_>; 13] = [
        (
            "PUT",
            "/v1/aggregates/x",
            &[("content-type", "application/sql")],
            b"SELECT 1",
            422,
            "not_an_aggregate",
            &["CREATE MATERIALIZED VIEW"],
        ),
        (
            "PUT",
            "/v1/aggregates/x",
            &[("content-type", "application/sql")],
            b"SELEKT 1",
            400,
            "malformed_sql",
            &["CREATE MATERIALIZED VIEW"],
        ),
        (
            "PUT",
            "/v1/aggregates/x",
            &[("content-type", "text/yaml")],
            b"a: b",
            415,
            "unsupported_media_type",
            &["application/json"],
        ),
        ("POST", "/v1/aggregates/x", &json, definition.as_bytes(), 405, "method_not_allowed", &["Allow"]),
        ("PATCH", "/v1/aggregates", &json, b"{}", 405, "method_not_allowed", &["Allow"]),
        ("DELETE", "/v1/aggregates/by_day/data", &json, b"", 405, "method_not_allowed", &["Allow"]),
        ("POST", "/healthz", &json, b"", 405, "method_not_allowed", &["Allow"]),
        ("GET", "/v1/agregates", &json, b"", 404, "unknown_route", &["did you mean \"/v1/aggregates\"?"]),
        ("GET", "/nothing/here", &json, b"", 404, "unknown_route", &["/nothing/here", "/v1/aggregates"]),
        ("GET", "/v1/aggregates/by_dya", &json, b"", 404, "unknown_aggregate", &["did you mean \"by_day\"?"]),
        ("GET", "/v1/aggregates/by_dya/data", &json, b"", 404, "unknown_aggregate", &["did you mean \"by_day\"?"]),
        ("DELETE", "/v1/aggregates/by_dya", &json, b"", 404, "unknown_aggregate", &["did you mean \"by_day\"?"]),
        ("GET", "/v1/sources/postgre", &json, b"", 404, "unknown_source", &["did you mean \"postgres\"?"]),
    ];
    for (method, path, headers, body, status, code, words) in requests {
        let reply = server.exchange(method, path, headers, body).unwrap();
        let problem: Value = serde_json::from_str(&reply.text).unwrap();
        assert_eq!((reply.status, problem["code"].as_str()), (status, Some(code)), "{method} {path}: {problem}");
        assert_eq!(reply.headers["content-type"], "application/problem+json", "{method} {path}");
        assert_eq!(reply.headers.contains_key("allow"), status == 405, "{method} {path}: {:?}", reply.headers);
        for word in words {
            assert!(reply.text.replace("\\\"", "\"").contains(word), "{method} {path}: no {word:?} in {problem}");
        }
    }
    // Larger than is read: by its announced length, so that not all of it has to be sent.
    let (status, problem) = server.try_put("/v1/aggregates/x", &vec![b' '; (1 << 20) + 1]).unwrap();
    assert_eq!((status, problem["code"].as_str()), (413, Some("body_too_large")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("1 MiB"), "{problem}");

    database.sql("DELETE FROM payments WHERE id % 13 = 0");
    totals_are_exact(&database, &server, "by_day");
    assert_eq!(server.get("/v1/aggregates").1["data"].as_array().unwrap().len(), 1);
    assert_eq!(server.get("/readyz").0, 200);
    let log = server.log();
    let errors: Vec<&String> = log.iter().filter(|line| line.contains("ERROR") || line.contains("panic")).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    assert!(server.terminate().success());
}

/// Registers the sum of `rate` with so many digits after the point; what has the name already, of another number, is replaced.
fn rates(server: &Server, name: &str, scale: u16) {
    let definition = json!({
        "table": "payments", "dimensions": ["account"],
        "measures": [{"name": "amount", "sum": "rate", "scale": scale}, {"name": "n", "count": "*"}],
    });
    let (status, body) = server.put(&format!("/v1/aggregates/{name}?on_change=rebuild"), &definition);
    assert_eq!(status, 202, "{body}");
}

/// Waits until an aggregate is halted because a value does not fit, and looks at everything that says so.
fn scale_is_exceeded(server: &Server, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let problem = loop {
        let (status, body) = server.get(&format!("/v1/aggregates/{name}/data?granularity=all"));
        if status == 503 && body["code"] != "building" {
            break body;
        }
        assert!(Instant::now() < deadline, "{name} is not halted: {status} {body}");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(problem["code"], "scale_exceeded", "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains(name), "{problem}");
    let remedy = problem["hint"].as_str().unwrap();
    assert!(remedy.contains("larger \"scale\": PUT with ?on_change=rebuild"), "{problem}");
    let (status, described) = server.get(&format!("/v1/aggregates/{name}"));
    assert_eq!((status, &described["state"]), (200, &json!("halted")), "{described}");
    assert_eq!(described["halted"]["code"], "scale_exceeded", "{described}");
    let (_, list) = server.get("/v1/aggregates");
    let listed = list["data"].as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap();
    assert_eq!(listed["state"], "halted", "{list}");
    // The others are exact: the process stays in rotation.
    let (status, ready) = server.get("/readyz");
    assert_eq!(status, 200, "{ready}");
}

#[test]
fn a_value_that_does_not_fit_halts_its_aggregate_alone() {
    let database = Database::start(&[], TABLES);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["payments"], &[]);
    assert_eq!(server.put("/v1/aggregates/by_day", &by_day()).0, 202);
    rates(&server, "rates", 2);
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    let total = |server: &Server, name: &str, lsn: &str| {
        let path = format!("/v1/aggregates/{name}/data?group_by=&min_lsn={lsn}&wait=10s");
        server.get_ok(&path)["data"][0]["amount"].as_str().unwrap().to_owned()
    };
    assert_eq!(total(&server, "rates", &lsn), database.value("SELECT sum(rate)::numeric(30,2) FROM payments"));
    totals_are_exact(&database, &server, "by_day");
    // Zeros at the end are no digits.
    database.sql("UPDATE payments SET rate = 1.2500 WHERE id = 6");
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    assert_eq!(total(&server, "rates", &lsn), database.value("SELECT sum(rate)::numeric(30,2) FROM payments"));

    database.sql("INSERT INTO payments VALUES (90001, now(), 'ES1', 10.01, 0.125)");
    totals_are_exact(&database, &server, "by_day");
    scale_is_exceeded(&server, "rates");
    // The row goes: what it did to the sum is not known any more, so the aggregate stays halted.
    database
        .sql("DELETE FROM payments WHERE id = 90001; INSERT INTO payments VALUES (90002, now(), 'ES1', 10.01, 0.0625)");
    totals_are_exact(&database, &server, "by_day");
    scale_is_exceeded(&server, "rates");

    // One that does not fit from the beginning.
    rates(&server, "short", 3);
    scale_is_exceeded(&server, "short");
    totals_are_exact(&database, &server, "by_day");

    // Over a restart as well.
    assert!(server.terminate().success());
    let server = Server::start(data.path(), &database.url(), &["payments"], &[]);
    totals_are_exact(&database, &server, "by_day");
    scale_is_exceeded(&server, "rates");

    // The remedy is one.
    assert_eq!(server.delete("/v1/aggregates/short").unwrap().0, 204);
    rates(&server, "rates", 4);
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.get_ok("/v1/aggregates/rates")["state"] != "live" {
        assert!(Instant::now() < deadline, "{}", server.get_ok("/v1/aggregates/rates"));
        std::thread::sleep(Duration::from_millis(5));
    }
    let lsn = database.value("SELECT pg_current_wal_lsn()");
    assert_eq!(total(&server, "rates", &lsn), database.value("SELECT sum(rate)::numeric(30,4) FROM payments"));
    server.get_ok("/readyz");
    totals_are_exact(&database, &server, "by_day");
    assert!(server.terminate().success());
}
