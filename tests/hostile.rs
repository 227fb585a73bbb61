//! Requests that mean harm, names that are statements, and secrets that must not be seen: against the real binary and a real
//! Postgres with a table that every injected statement would drop.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::{Server, serve, tidemark};

/// Secrets that are searched for in everything that is written.
const PASSWORD: &str = "pw-canary-7f3a";

/// Names that end a quotation, begin a statement, or look like something else.
const NAUGHTY: [&str; 16] = [
    "a\"b",
    "\"",
    "\"\"; DROP TABLE sentinel; --",
    "x; DROP TABLE sentinel; --",
    "x'); DROP TABLE sentinel; --",
    "$$; DROP TABLE sentinel; $$",
    "/* x",
    "x */",
    "back\\slash\\",
    "E'\\''",
    "select",
    "sp ace",
    "<script>alert(1)</script>",
    "line\nbreak",
    "ünï©ode",
    "%s%n{}",
];

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Schema and table of a naughty name. A name with a quote in it cannot be followed; its columns can.
fn table_of(name: &str) -> String {
    let name = name.replace('"', "q");
    format!("{}.{}", quoted(&format!("s{name}")), quoted(&name))
}

fn percent(name: &str) -> String {
    name.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Schema, table, key, time, dimension and measure all have the same naughty name (with a number after it where one table
/// needs several); the totals come out right, and the sentinel stands.
#[test]
fn names_that_are_statements_are_names() {
    let database = Database::start(&[], "CREATE TABLE sentinel (id bigint PRIMARY KEY)");
    for name in NAUGHTY {
        let column = |number: usize| quoted(&format!("{name}{number}"));
        let table = table_of(name);
        let schema = table.split('.').next().unwrap();
        database.sql(&format!(
            "CREATE SCHEMA {schema}; CREATE TABLE {table} ({} bigint PRIMARY KEY, {} timestamptz, {} text, {} numeric(12,0));
             INSERT INTO {table} VALUES (1, '2026-01-01Z', 'eur', 10), (2, '2026-01-02Z', 'usd', 5)",
            column(1),
            column(2),
            column(3),
            column(4)
        ));
    }
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.sentinel"], &[]);
    server.get_ok("/readyz");
    for (at, name) in NAUGHTY.into_iter().enumerate() {
        let table = table_of(name);
        let asked = json!({"table": table}).to_string();
        let (status, body) = server.try_post("/v1/sources/postgres/tables", asked.as_bytes()).unwrap();
        assert_eq!(status, 202, "{name:?}: {body}");
        let definition = json!({"table": table.replace('"', ""), "dimensions": [format!("{name}3")],
            "measures": [{"name": "total", "sum": format!("{name}4")}],
            "time": {"column": format!("{name}2"), "granularity": "month"}});
        let path = format!("/v1/aggregates/naughty{at}");
        // It is known once its reading is under way.
        let deadline = Instant::now() + Duration::from_secs(30);
        while let (422, body) = server.put(&path, &definition) {
            assert!(body["code"] == "unknown_table" && Instant::now() < deadline, "{name:?}: {body}");
            std::thread::sleep(Duration::from_millis(10));
        }
        server.get_ok(&format!("{path}/data"));
        let fixed = percent(&format!("{name}3:'eur'"));
        let answer = server.get_ok(&format!("{path}/data?granularity=month&where={fixed}"));
        assert_eq!(answer["data"][0]["total"], "10", "{name:?}: {answer}");
    }
    // What is no table stays none.
    for table in
        ["sentinel; DROP TABLE sentinel", "public.sentinel\"; DROP TABLE sentinel; --", "x' OR '1'='1", "\0", "a.b.c"]
    {
        let (status, body) =
            server.try_post("/v1/sources/postgres/tables", json!({"table": table}).to_string().as_bytes()).unwrap();
        assert_eq!(status, 422, "{table:?}: {body}");
        let definition = json!({"table": table, "measures": [{"name": "n", "count": "*"}]});
        let (status, body) = server.put("/v1/aggregates/none", &definition);
        assert_eq!(status, 422, "{table:?}: {body}");
    }
    let check = tidemark().args(["check", "--postgres", &database.url(), "--data"]).arg(data.path()).output().unwrap();
    assert!(check.status.code().is_some());
    assert_eq!(database.value("SELECT count(*)::text FROM sentinel"), "0", "the sentinel is gone");
}

/// A chain of operators is a tree as deep as it is long, and walking through it would end the stack of a thread, and with it the process.
#[test]
fn a_long_chain_of_conditions_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start_source(data.path(), &["--generator", "1"]);
    let mut definition = json!({"table": "payments", "measures": [{"name": "n", "count": "*"}]});
    server.register("all", &definition);
    let chain = vec!["n = 1"; 10_000].join(" OR ");
    let asked = chain.get(..20_000).unwrap().trim_end_matches(" OR ").replace(' ', "+");
    let (status, problem) = server.get(&format!("/v1/aggregates/all/data?having={asked}"));
    assert_eq!((status, &problem["code"]), (422, &json!("bad_condition")), "{problem}");
    for part in ["having", "filter"] {
        let body = json!({"aggregate": "all", part: chain}).to_string();
        let (status, problem) = server.try_post("/v1/query", body.as_bytes()).unwrap();
        assert_eq!(status, 422, "{part}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("more than 1000 words"), "{part}: {problem}");
    }
    definition["where"] = json!(chain);
    let (status, problem) = server.put("/v1/aggregates/other", &definition);
    assert_eq!((status, &problem["code"]), (422, &json!("bad_filter")), "{problem}");
    let statement = format!("CREATE MATERIALIZED VIEW other AS SELECT count(*) AS n FROM payments WHERE {chain}");
    let content = [("content-type", "application/sql")];
    let reply = server.exchange("PUT", "/v1/aggregates/other", &content, statement.as_bytes()).unwrap();
    assert!(reply.status == 400 && reply.text.contains("malformed_sql"), "{}", reply.text);
    server.get_ok("/v1/aggregates/all/data");
}

#[test]
fn requests_that_are_not_meant_for_us_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start_source(data.path(), &["--generator", "1", "--host", "totals.example.com"]);
    server.get_ok("/readyz");
    let status = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let reply = server.exchange(method, path, headers, b"").unwrap();
        let sent = |name: &str| reply.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(sent("x-content-type-options").as_deref(), Some("nosniff"), "{path}");
        assert!(sent("content-security-policy").unwrap().contains("default-src 'none'"), "{path}");
        assert_eq!(sent("access-control-allow-origin"), None, "{path}");
        reply.status
    };
    for (host, expected) in [("totals.example.com", 200), ("TOTALS.example.com:7171", 200), ("rebound.example", 421)] {
        for path in ["/v1/aggregates", "/", "/metrics", "/healthz"] {
            assert_eq!(status("GET", path, &[("host", host)]), expected, "{host} {path}");
        }
    }
    let own = format!("http://{}", server.address());
    let followed = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
    for (headers, refused) in [
        (&[("origin", "http://evil.example")][..], true),
        (&[("origin", "null")], true),
        (&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], true),
        (&[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")], true),
        (&[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], false),
        (&followed, true),
        (&[("origin", own.as_str()), ("origin", "http://evil.example")], true),
        (&[("origin", own.as_str())], false),
    ] {
        for (method, path) in [("DELETE", "/v1/aggregates/absent"), ("GET", "/v1/aggregates"), ("OPTIONS", "/v1/query")]
        {
            assert_eq!(status(method, path, headers) == 403, refused, "{method} {path} {headers:?}");
        }
    }
    // A link to the page is followed; and what stands before an @ is no host of ours.
    assert_eq!(status("GET", "/", &followed), 200);
    assert_eq!(status("GET", "/v1/aggregates", &[("host", "rebound.example@localhost")]), 400);
    // Nothing is fetched for anybody: no route takes an address.
    assert_eq!(status("POST", "/v1/sources", &[]), 405);
    for table in ["http://169.254.169.254/latest", "postgres://u:p@evil/db", "file:///etc/passwd"] {
        let body = json!({"table": table}).to_string();
        let (status, answer) = server.try_post("/v1/sources/generator/tables", body.as_bytes()).unwrap();
        assert_eq!(status, 422, "{table}: {answer}");
    }
    // No path of a request is one of the disk.
    for path in [
        "/../etc/passwd",
        "/%2e%2e/etc/passwd",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/dashboard.js/../../x",
        "/docs/%00",
        "/v1/aggregates/..%2f..%2fetc%2fpasswd",
        "/dashboard.css%00.html",
        "/static/../Cargo.toml",
    ] {
        let reply = server.exchange("GET", path, &[], b"").unwrap();
        assert!(matches!(reply.status, 400 | 404), "{path}: {}", reply.status);
        assert!(!reply.text.contains("root:") && !reply.text.contains("[workspace]"), "{path}");
    }
    // A head without end is not read for ever.
    let long = "x".repeat(1_000_000);
    let reply = server.exchange("GET", "/healthz", &[("x-long", &long)], b"");
    assert!(reply.as_ref().is_none_or(|reply| reply.status == 431), "{:?}", reply.map(|reply| reply.status));
}

/// A body has room for tens of thousands of names. Compared each with each other they would keep everybody waiting.
#[test]
fn long_lists_are_refused_at_once() {
    let database = Database::start(&[], "CREATE TABLE payments (id bigint PRIMARY KEY, amount numeric(12,2))");
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    server.register("total", &json!({"table": "payments", "measures": [{"name": "n", "count": "*"}]}));
    let many = |name: &dyn Fn(u32) -> String| (0..60_000).map(name).collect::<Vec<_>>();
    for (parameter, question) in [
        ("measures", json!({"aggregate": "total", "measures": many(&|at| format!("n as {at:x}"))})),
        ("measures", json!({"table": "payments", "measures": many(&|at| format!("count({at:x})"))})),
        ("group_by", json!({"aggregate": "total", "group_by": many(&|_| "id".to_owned())})),
        ("where", json!({"aggregate": "total", "where": many(&|_| "id:1".to_owned())})),
        ("where", json!({"aggregate": "total", "where": "id:1,".repeat(60_000)})),
    ] {
        let began = Instant::now();
        let (status, body) = server.try_post("/v1/query", question.to_string().as_bytes()).unwrap();
        assert_eq!((status, body["code"].as_str()), (422, Some("too_many")), "{body}");
        assert_eq!(body["detail"], format!("{parameter}: more than 64 are listed"));
        assert!(began.elapsed() < Duration::from_secs(5), "{parameter}: {:?}", began.elapsed());
    }
}

/// Everything that is written at the most talkative level while good and bad secrets go by.
#[test]
fn no_secret_is_written_anywhere() {
    let database = Database::start(&[], "CREATE TABLE payments (id bigint PRIMARY KEY, amount numeric)");
    database.sql(&format!("CREATE ROLE canary SUPERUSER LOGIN PASSWORD '{PASSWORD}'"));
    let file = database.value("SHOW hba_file");
    database.sql(&format!(
        "COPY (SELECT unnest(ARRAY['local all canary scram-sha-256', 'local all all trust'])) TO '{file}';
         SELECT pg_reload_conf()"
    ));
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens.json");
    let output = tidemark().args(["token", "create", "--scope", "admin", "--tokens"]).arg(&tokens).output().unwrap();
    let token = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let url = database.url_as(&format!("canary:{PASSWORD}"));
    let secrets = [PASSWORD, token.rsplit('_').next().unwrap(), "token-canary", "cookie-canary", "query-canary"];
    let mut written = Vec::new();

    let mut command = serve(&directory.path().join("data"));
    command.env("TIDEMARK_POSTGRES", &url).env("RUST_LOG", "trace").stdout(Stdio::null());
    command.args(["--table", "public.payments", "--log", "json", "--tokens"]).arg(&tokens);
    let server = Server::listen(&mut command);
    let good = format!("Bearer {token}");
    let bearers = [good.as_str(), "Bearer tmk_00000000_token-canary", "Basic token-canary", "token-canary", ""];
    let definition = br#"{"table":"payments","measures":[{"name":"amount","sum":"amount"}]}"#;
    for round in 0..20 {
        for bearer in bearers {
            for (method, path) in [
                ("PUT", "/v1/aggregates/total"),
                ("GET", "/v1/aggregates/total/data?token=query-canary"),
                ("GET", "/v1/sources/postgres"),
                ("GET", "/metrics"),
                ("DELETE", "/v1/aggregates/absent"),
                ("POST", "/v1/query?access_token=query-canary"),
                ("GET", "/readyz"),
                ("GET", "/openapi.json"),
            ] {
                let headers =
                    [("authorization", bearer), ("cookie", "s=cookie-canary"), ("content-type", "application/json")];
                let reply = server.exchange(method, path, &headers, definition).unwrap();
                written.push(format!("{:?} {}", reply.headers, reply.text));
            }
        }
        std::thread::sleep(Duration::from_millis(if round == 0 { 500 } else { 10 }));
    }
    let log = server.log();
    assert!(log.iter().any(|line| line.contains("\"TRACE\"")), "nothing was written at trace level");
    let audited: Vec<Value> = log.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let audited: Vec<&Value> = audited.iter().filter(|line| line["target"] == "audit").collect();
    let id = token.split('_').nth(1).unwrap();
    let is_of = |line: &&&Value| line["fields"]["token"] == id && line["fields"]["method"] == "DELETE";
    assert!(audited.iter().any(|line| is_of(&line) && line["fields"]["status"] == 404), "{audited:?}");
    written.extend(log);
    assert!(server.terminate().success());

    // Mistakes are told without the secrets in them.
    let nowhere = url.replace("canary:", "canary:wrong-");
    let usage: [(&[&str], &str); 4] = [
        (&["check", "--table", "public.payments"], &nowhere),
        (&["check", "--table", "public.payments", "--output", "json"], &url),
        (&["serve", "--table", "public.absent"], &url),
        (&["serve", "--help"], &url),
    ];
    for (arguments, url) in usage {
        let mut command = tidemark();
        command.args(arguments).env("TIDEMARK_POSTGRES", url).env("RUST_LOG", "trace").env("TIDEMARK_TOKEN", &token);
        if arguments[1] != "--help" {
            command.arg("--data").arg(directory.path().join("other"));
        }
        let output = command.output().unwrap();
        written.push(format!(
            "{} {}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let config = directory.path().join("tidemark.toml");
    std::fs::write(&config, format!("tables = \"postgres://u:{PASSWORD}@h/x\"")).unwrap();
    let with_user = format!("http://u:{PASSWORD}@127.0.0.1:1");
    let foreign = format!("http://u:{PASSWORD}@h");
    let config = config.to_str().unwrap();
    for arguments in [
        &["serve", "--config", config][..],
        &["check", "--config", config],
        &["list", "--server", &with_user],
        &["list", "--server", &foreign],
        &["list", "--server", &with_user.replace("http", "ftp")],
    ] {
        let output = tidemark().args(arguments).env("TIDEMARK_TOKEN", &token).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.starts_with("error: "), "{arguments:?}: {said}");
        written.push(said);
    }
    for text in &written {
        for secret in secrets {
            assert!(!text.contains(secret), "{secret} is written: {text}");
        }
    }
}

/// The trail of who did what cannot be turned down with the log.
#[test]
fn administrators_leave_a_trail_in_a_quiet_log() {
    let data = tempfile::tempdir().unwrap();
    let mut command = serve(data.path());
    // It has to say where it serves.
    command.env("RUST_LOG", "error,tidemark=info").args(["--generator", "1", "--log", "json"]);
    let server = Server::listen(&mut command);
    assert_eq!(server.delete("/v1/aggregates/absent%0a%7B%22target%22").unwrap().0, 404);
    assert!(server.get("/v1/aggregates").0 == 200);
    let trail: Vec<Value> = server.log().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let trail: Vec<&Value> = trail.iter().filter(|line| line["target"] == "audit").collect();
    assert_eq!(trail.len(), 1, "{trail:?}");
    assert_eq!(trail[0]["fields"]["token"], "anyone");
    assert!(trail[0]["fields"]["path"].as_str().unwrap().starts_with("/v1/aggregates/absent%0a"));
}
