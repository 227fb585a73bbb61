//! The page, in a browser: read as somebody reads it, over the real binary, while payments arrive. The committed bundle is
//! the one that the sources give.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::newest_first;
use crate::support::database::Database;
use crate::support::server::{Server, tidemark};

const PAYMENTS: &str =
    "CREATE TABLE payments (id bigserial PRIMARY KEY, merchant text NOT NULL, currency text NOT NULL,
    amount numeric(18,2) NOT NULL, created_at timestamptz NOT NULL);
    INSERT INTO payments (merchant, currency, amount, created_at)
    SELECT 'shop-' || i % 15, (ARRAY['EUR','USD'])[1 + i % 2], (i % 991) + 0.01 * (i % 100),
           timestamptz '2025-01-01 00:00Z' + i * interval '3 hours' FROM generate_series(1, 5000) i;";

/// Two currencies a row, NULL beside the texts that look like it, times that never come, an hour that comes twice.
const APART: &str = "
    CREATE TABLE fees (id bigserial PRIMARY KEY, currency_code text NOT NULL, iso_currency text NOT NULL, merchant text NOT NULL,
    amount numeric(18,2) NOT NULL, at timestamptz NOT NULL);
    INSERT INTO fees (currency_code, iso_currency, merchant, amount, at)
    SELECT (ARRAY['EUR', 'USD', 'ISK'])[1 + i % 3], (ARRAY['GBP', 'JPY'])[1 + i % 2], 'm' || i % 4, i, timestamptz '2026-01-10Z' + i * interval '20 hours'
    FROM generate_series(1, 120) i;
    CREATE TABLE odd (id bigserial PRIMARY KEY, ccy text, note text, amount numeric(18,2) NOT NULL, at timestamptz);
    INSERT INTO odd (ccy, note, amount, at) VALUES (NULL, 'a', 1, '2026-03-01Z'), ('null', 'a', 10, '2026-03-01Z'), ('NULL', 'a', 100, '2026-03-01Z'),
    (NULL, 'a', 2, '2025-03-01Z'), ('null', 'a', 20, '2025-03-01Z'), ('EUR', NULL, 1000, '2026-03-02Z'), ('EUR', 'null', 2000, '2026-03-02Z'),
    ('EUR', 'NULL', 4000, '2026-03-02Z'), ('EUR', 'x', 5, NULL), ('EUR', 'x', 7, 'infinity'), ('EUR', 'x', 9, '-infinity'), ('EUR', 'x', 8, '2290-01-01Z'),
    ('EUR', 'x', 0.01, '2026-03-03 04:05:06.123456Z'), ('EUR', 'x', 40, now());
    CREATE TABLE clocks (id bigserial PRIMARY KEY, kind text NOT NULL, amount numeric(18,2) NOT NULL, at timestamp NOT NULL, booked timestamptz NOT NULL);
    INSERT INTO clocks (kind, amount, at, booked)
    SELECT 'k', i, at, at AT TIME ZONE 'UTC' FROM generate_series(1, 1200) i, LATERAL (SELECT timestamp '2025-10-20' + i * interval '17 minutes' AS at) AS old
    UNION ALL SELECT 'k', i, at, at AT TIME ZONE 'UTC'
    FROM generate_series(1, 3300) i, LATERAL (SELECT now() AT TIME ZONE 'UTC' - i * interval '97 minutes' AS at) AS recent;";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a script of ours to its end; its output.
fn script(name: &str, argument: &str) -> Result<String, String> {
    let output = Command::new("sh").arg(root().join(name)).arg(argument).output().unwrap();
    let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(told(&output.stdout)) } else { Err(told(&output.stderr)) }
}

fn chromium() -> PathBuf {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let named = |name: &str| std::env::split_paths(&on_path).map(|path| path.join(name)).find(|path| path.exists());
    ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find_map(named)
        .expect("no browser: sh tests/needs.sh")
}

/// Runs a walk through the page of a server. It may run SQL: a line out, the first value back.
fn walk(name: &str, server: &Server, database: Option<&Database>) {
    walk_as("", name, server, database);
}

/// The same of who holds a token.
fn walk_as(token: &str, name: &str, server: &Server, database: Option<&Database>) {
    let tools = script("tests/dashboard/tools.sh", "").unwrap_or_else(|error| panic!("{error}"));
    let mut node = Command::new("node")
        .arg(root().join("tests/dashboard").join(name))
        .env("TOOLS", tools)
        .env("BASE", format!("http://{}", server.address()))
        .env("CHROMIUM", chromium())
        .env("TOKEN", token)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut replies = node.stdin.take().unwrap();
    let mut steps = Vec::new();
    for line in BufReader::new(node.stdout.take().unwrap()).lines().map_while(Result::ok) {
        match (line.split_once(' '), database) {
            (Some(("sql", statement)), Some(database)) if statement.starts_with("SELECT") => {
                writeln!(replies, "{}", json!(database.value(statement))).unwrap();
            }
            (Some(("sql", statement)), Some(database)) => {
                database.sql(statement);
                writeln!(replies, "null").unwrap();
            }
            (Some(("step", step)), _) => steps.push(step.to_owned()),
            _ => println!("{line}"),
        }
    }
    let output = node.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && steps.last().is_some_and(|step| step == "done"), "after {steps:?}: {errors}");
}

fn start() -> (Database, Server, tempfile::TempDir) {
    let database = Database::start(&[], PAYMENTS);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    (database, server, data)
}

#[test]
fn a_reader_walks_from_years_to_payments_and_back() {
    let (database, server, _data) = start();
    let definition = json!({"table": "payments", "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
        "dimensions": ["currency", "merchant"], "time": {"column": "created_at", "granularity": "day"}, "rollups": ["month", "year"],
        "drill_through": true});
    server.register("monthly", &definition);
    let zoned = json!({"table": "payments", "measures": [{"name": "n", "count": "*"}],
        "time": {"column": "created_at", "granularity": "day", "time_zone": "Africa/Cairo"}});
    server.register("cairo", &zoned);
    let steps = json!({"table": "payments", "measures": [{"name": "n", "count": "*"}], "time": {"column": "created_at", "granularity": "PT15M"}});
    server.register("steps", &steps);
    walk("walk.mjs", &server, Some(&database));
}

#[test]
fn what_differs_is_never_shown_as_one() {
    let database = Database::start(&[], APART);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.fees", "public.odd", "public.clocks"], &[]);
    let sum = json!([{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}]);
    let fees = json!({"table": "fees", "measures": sum, "dimensions": ["currency_code", "iso_currency", "merchant"],
        "time": {"column": "at", "granularity": "day"}, "rollups": ["month"]});
    server.register("charges", &fees);
    let odd = json!({"table": "odd", "measures": sum, "dimensions": ["ccy", "note"], "time": {"column": "at", "granularity": "day"},
        "rollups": ["month"], "drill_through": true});
    server.register("odd", &odd);
    let madrid = json!({"table": "clocks", "measures": sum, "time": {"column": "booked", "granularity": "hour", "time_zone": "Europe/Madrid"}});
    server.register("madrid", &madrid);
    let count = json!([{"name": "n", "count": "*"}]);
    for (name, granularity) in [("local", "hour"), ("steps", "PT15M"), ("days", "day")] {
        server.register(
            name,
            &json!({"table": "clocks", "measures": count, "time": {"column": "at", "granularity": granularity}}),
        );
    }
    let read = json!({"table": "clocks", "measures": count,
        "time": {"column": "at", "granularity": "day", "time_zone": "Europe/Madrid", "assume_time_zone": "Europe/Madrid"}});
    server.register("read", &read);
    // Words of SQL within quotes are none; a time without zone is UTC's here, and the session's in Postgres.
    let late = "booked > '2025-10-22 00:00' and kind <> 'x WHERE ( y, z FROM'";
    let settled = json!({"table": "clocks", "measures": [{"name": "n", "count": "*"}, {"name": "late", "count": "*", "where": late}],
        "where": "booked >= '2025-10-21' and kind <> 'a WHERE ( GROUP BY 1'", "time": {"column": "at", "granularity": "month"}});
    server.register("settled", &settled);
    walk("apart.mjs", &server, Some(&database));
}

#[test]
fn a_reader_registers_an_aggregate_and_sees_it_fill() {
    let (database, server, _data) = start();
    walk("register.mjs", &server, Some(&database));
}

/// Who holds a pinned token is told nothing of the source, and sees the aggregates that are there.
#[test]
fn a_reader_with_a_part_of_the_data_sees_it() {
    let database = Database::start(&[], PAYMENTS);
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens.json");
    let create = |more: &[&str]| {
        let output = tidemark().args(["token", "create", "--tokens"]).arg(&tokens).args(more).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let admin = create(&["--scope", "admin"]);
    let pinned = create(&["--scope", "read", "--pin", "monthly=currency:EUR"]);
    let more = ["--tokens", tokens.to_str().unwrap()];
    let server = Server::start(&directory.path().join("data"), &database.url(), &["public.payments"], &more);
    let definition = json!({"table": "payments", "measures": [{"name": "amount", "sum": "amount"}], "dimensions": ["currency"],
        "time": {"column": "created_at", "granularity": "month"}});
    let bearer = format!("Bearer {admin}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let deadline = Instant::now() + Duration::from_secs(60);
    for (method, path) in [("PUT", "/v1/aggregates/monthly"), ("GET", "/v1/aggregates/monthly/data")] {
        loop {
            let reply = server.exchange(method, path, &headers, definition.to_string().as_bytes()).unwrap();
            if matches!(reply.status, 200 | 202) {
                break;
            }
            assert!(Instant::now() < deadline, "{path}: {}", reply.text);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    walk_as(&pinned, "pinned.mjs", &server, Some(&database));
}

/// Held half-filled: what answers already is shown, and filling goes on or is given up.
#[test]
fn a_reader_holds_a_filling_and_gives_it_up() {
    let (database, server, _data) = newest_first::start("i");
    newest_first::half_filled(&server);
    walk("filling.mjs", &server, Some(&database));
    assert_eq!(server.get("/v1/aggregates/late").0, 404, "it was given up");
}

/// What the demo offers does not exist elsewhere; there, each step's totals are Postgres' own.
#[test]
fn the_demo_tells_its_story_and_nobody_else_does() {
    let (_database, server, _data) = start();
    assert_eq!(server.try_post("/demo/steps/refund", b"").unwrap().0, 404);
    let page = server.exchange("GET", "/", &[], b"").unwrap();
    assert!(
        page.text.contains("<html lang")
            && page.headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'")
    );

    let demo = Server::demo();
    let deadline = Instant::now() + Duration::from_secs(60);
    while demo.get("/v1/aggregates/payments_daily").0 == 404 {
        assert!(Instant::now() < deadline, "the demo registers nothing: {:#?}", demo.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(demo.exchange("GET", "/", &[], b"").unwrap().text.contains("data-mode=\"demo\""));
    for (step, change) in
        [("refund", Some(-4990)), ("correction", Some(1000)), ("kill", None), ("correction", Some(1000))]
    {
        let (status, told) = demo.try_post(&format!("/demo/steps/{step}"), b"").unwrap();
        assert_eq!((status, &told["equal"]), (200, &json!(true)), "{step}: {told}");
        let cents = |moment: &str| told[moment]["total"].as_str().unwrap().replace('.', "").parse::<i64>().unwrap();
        assert!(change.is_none_or(|change| cents("after") - cents("before") == change), "{step}: {told}");
    }
    assert_eq!(demo.try_post("/demo/steps/flood", b"").unwrap().0, 404);
    walk("story.mjs", &demo, None);
}

/// Where node is too old to build it, the script says that it was not checked.
#[test]
fn the_committed_bundle_is_what_the_sources_give() {
    assert!(Path::new(&root().join("queries/dashboard/dist/index.html")).exists());
    println!("{}", script("queries/dashboard/build.sh", "--check").unwrap_or_else(|error| panic!("{error}")));
}
