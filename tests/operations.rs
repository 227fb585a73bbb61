//! What those who run Tidemark build on: alert rules and the dashboard name only metrics that there are, the supervisor hears of
//! the start and the end, the log tells whose request and which position, and never a value of a row.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::{Server, serve, tidemark};

const TABLES: &str = "
    CREATE TABLE payments (id bigint PRIMARY KEY, currency text, amount numeric(14,2), created_at timestamptz);
    INSERT INTO payments SELECT i, 'EUR', i, '2026-01-01Z'::timestamptz + i * interval '1 hour' FROM generate_series(1, 2000) AS i;
";

fn operations() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(operations().join(name)).unwrap()
}

fn monthly() -> Value {
    json!({"table": "public.payments", "dimensions": ["currency"], "drill_through": true,
           "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
           "time": {"column": "created_at", "granularity": "month"}})
}

/// The labels of each series by the name it has in a query.
type Series = BTreeMap<String, Vec<BTreeMap<String, String>>>;

fn series(text: &str) -> Series {
    let mut series = Series::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name: String = line.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        series
            .entry(name)
            .or_default()
            .push(matchers(line).into_iter().map(|(label, _, value)| (label, value)).collect());
    }
    series
}

/// `label="value"` and `label=~"value"` within the braces that follow a name; routes have braces of their own, in quotes.
fn matchers(text: &str) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    let Some(mut rest) = text.find('{').map(|at| &text[at + 1..]) else { return found };
    while let Some(quote) = rest.find('"') {
        if rest[..quote].contains('}') {
            break;
        }
        let head = rest[..quote].trim_start_matches([',', ' ']);
        let value = rest[quote + 1..].split('"').next().unwrap();
        let label: String = head.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        found.push((label.clone(), head[label.len()..].trim().to_owned(), value.to_owned()));
        rest = &rest[quote + value.len() + 2..];
    }
    found
}

/// Every place where a metric of ours is named, with what follows it.
fn named(text: &str) -> Vec<(&str, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = text.match_indices("tidemark_").map(|(at, _)| at);
    let starts = starts.filter(|at| !text[..*at].ends_with(is_part));
    starts
        .map(|at| {
            let length = text[at..].find(|c| !is_part(c)).unwrap_or(text.len() - at);
            (&text[at..at + length], &text[at + length..])
        })
        .collect()
}

/// Names in the files and not in `/metrics`, or with a label or a value of one that no series has.
fn misspelt(text: &str, series: &Series) -> Vec<String> {
    let mut wrong = BTreeSet::new();
    for (name, rest) in named(text) {
        let Some(there) = series.get(name) else {
            wrong.insert(name.to_owned());
            continue;
        };
        for (label, relation, value) in if rest.starts_with('{') { matchers(rest) } else { Vec::new() } {
            // What a series gets when it is scraped, or when something went wrong.
            let known = label == "instance" || there.iter().any(|labels| labels.contains_key(&label));
            let exists = |value: &str| there.iter().any(|labels| labels.get(&label).is_some_and(|is| is == value));
            if !known || (relation == "=" && !value.contains('$') && label != "instance" && !exists(&value)) {
                wrong.insert(format!("{name}{{{label}{relation}\"{value}\"}}"));
            }
        }
    }
    wrong.into_iter().collect()
}

/// The worst an alert can do is to be silent because of a name.
#[test]
fn alerts_and_the_dashboard_name_metrics_that_there_are() {
    let database = Database::start(&["max_slot_wal_keep_size=1GB"], TABLES);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.payments"], &[]);
    server.register("monthly", &monthly());
    server.get_ok("/v1/aggregates/monthly/data");
    assert_eq!(server.try_post("/v1/verify", b"{}").unwrap().0, 200);
    let deadline = Instant::now() + Duration::from_secs(30);
    let series = loop {
        let (_, text) = server.get("/metrics");
        let text = text.as_str().unwrap().to_owned();
        // What is known of the slot comes with the monitor's first look.
        if text.contains("tidemark_source_slot_safe_wal_bytes") {
            break series(&text);
        }
        assert!(Instant::now() < deadline, "nothing of the slot: {text}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(series.len() > 30, "{:?}", series.keys());
    assert_eq!(misspelt("tidemark_source_up == 0 or tidemark_sorce_up", &series), ["tidemark_sorce_up"]);
    assert_eq!(misspelt("tidemark_source_state{state=\"dead\"}", &series), ["tidemark_source_state{state=\"dead\"}"]);
    assert_eq!(misspelt("tidemark_source_up{sauce=~\".*\"}", &series), ["tidemark_source_up{sauce=~\".*\"}"]);
    for file in ["alerts.yml", "grafana.json", "README.md"] {
        let text = read(file).replace("\\\"", "\"");
        assert!(named(&text).len() >= 5, "{file} names hardly anything");
        assert_eq!(misspelt(&text, &series), [""; 0], "{file}");
    }
    // The tests of the rules make up series of outcomes that have not happened here; their names exist.
    let unknown: Vec<_> = named(&read("alerts.test.yml"))
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !series.contains_key(*name))
        .map(str::to_owned)
        .collect();
    assert_eq!(unknown, [""; 0]);
}

#[test]
fn every_alert_is_explained_and_the_dashboard_can_be_read() {
    let guide = read("README.md");
    let rules = read("alerts.yml");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 15);
    for alert in alerts {
        assert!(guide.contains(&format!("`{alert}`")), "{alert} is not explained");
    }
    let dashboard: Value = serde_json::from_str(&read("grafana.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
        assert!(panel["datasource"]["uid"] == "${datasource}", "{} asks a fixed source", panel["title"]);
        assert!(panel["targets"].as_array().is_some_and(|targets| !targets.is_empty()), "{} is empty", panel["title"]);
    }
}

/// Tokens are made before there is data, or after: where unit and settings put them, neither keeps the other from being made.
#[test]
fn tokens_and_data_of_the_package_have_a_place_each() {
    let unit = read("tidemark.service");
    let settings = read("tidemark.toml");
    let named = |text: &str, before: &str| text.lines().find_map(|line| line.strip_prefix(before)).unwrap().to_owned();
    // In the settings, so that `check`, `drop-slot` and `config show` are told it too; a variable of the unit would win over them.
    let data = named(&settings, "data = ").trim_matches('"').to_owned();
    assert!(!unit.contains("\nEnvironment=TIDEMARK_DATA="), "{unit}");
    let tokens = named(&settings, "# tokens = ").trim_matches('"').to_owned();
    // The unit makes it, for its user alone.
    let state = format!("/var/lib/{}/", named(&unit, "StateDirectory="));
    assert_eq!(named(&unit, "StateDirectoryMode="), "0700");
    let root = tempfile::tempdir().unwrap();
    let within = |path: &str| root.path().join(path.strip_prefix(&state).unwrap());
    let (data, tokens) = (within(&data), within(&tokens));
    let make_tokens = || {
        let mut command = tidemark();
        command.args(["token", "create", "--scope", "admin", "--tokens"]).arg(&tokens);
        assert!(command.output().unwrap().status.success());
    };
    let starts = || {
        let mut command = serve(&data);
        command.args(["--generator", "1", "--tokens"]).arg(&tokens);
        let server = Server::listen(&mut command);
        assert_eq!(server.get("/v1/aggregates").0, 401);
        assert!(server.terminate().success());
    };
    make_tokens();
    starts();
    std::fs::remove_file(&tokens).unwrap();
    make_tokens();
    starts();
    // The guide names the same places.
    let guide = read("README.md");
    assert!(
        guide.contains(" --tokens /var/lib/tidemark/tokens.json ") && guide.contains(" --data /var/lib/tidemark/data")
    );
}

/// What the unit tries again is what the table of exit codes says may pass by itself.
#[test]
fn the_unit_tries_again_all_but_mistakes() {
    let unit = read("tidemark.service");
    let never: Vec<&str> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("RestartPreventExitStatus="))
        .flat_map(str::split_whitespace)
        .collect();
    assert!(unit.contains("\nRestart=on-failure\n") && unit.contains("\nStartLimitIntervalSec=0\n"), "{unit}");
    let guide = read("README.md");
    let table = guide.split("## Exit codes").nth(1).unwrap().split("\n## ").next().unwrap();
    let of_serve: Vec<(&str, &str)> = table
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [code, of, means] = cells.as_slice() else { return None };
            (of.contains("serve") || of.starts_with("all")).then_some((*code, *means))
        })
        .collect();
    let help = tidemark().args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let told = help.split("Exit codes:").nth(1).unwrap();
    let told: Vec<(&str, &str)> = told
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split_once("  "))
        .filter(|(code, _)| !code.is_empty())
        .collect();
    let codes = |told: &[(&str, &str)]| told.iter().map(|(code, _)| (*code).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        (codes(&of_serve), codes(&told)),
        (vec!["0".into(), "1".into(), "2".into(), "4".into()], codes(&of_serve))
    );
    assert_eq!(never, ["2"]);
    let wrong = of_serve.iter().find(|(code, _)| *code == "2").unwrap().1;
    let later = of_serve.iter().find(|(code, _)| *code == "4").unwrap().1;
    assert!(wrong.contains("configuration is wrong") && later.contains("may succeed later"), "{wrong} / {later}");
}

#[test]
fn the_supervisor_hears_of_the_start_and_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("notify");
    let supervisor = UnixDatagram::bind(&socket).unwrap();
    supervisor.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let heard = || {
        let mut buffer = [0; 512];
        let length = supervisor.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut command = serve(&directory.path().join("data"));
    command.args(["--generator", "1"]).env("NOTIFY_SOCKET", &socket);
    let server = Server::listen(&mut command);
    let started = heard();
    assert!(started.starts_with("READY=1\nSTATUS=serving on http://127.0.0.1:"), "{started}");
    assert_eq!(server.get("/healthz").0, 200);
    assert!(server.terminate().success());
    assert!(heard().starts_with("STOPPING=1"));

    // A supervisor that is gone is no reason not to serve.
    let mut command = serve(&directory.path().join("data"));
    command.args(["--generator", "1"]).env("NOTIFY_SOCKET", "/nowhere/notify");
    let server = Server::listen(&mut command);
    assert_eq!(server.get("/healthz").0, 200);
    assert!(server.terminate().success());
}

/// Text and digits that stand in rows and nowhere else.
const TEXT: &str = "rowcanary-text";
const NUMBER: &str = "8675309117";

/// Rows that are read, streamed, asked for, and that cannot be followed: at the most talkative level nothing of them is written.
#[test]
fn no_value_of_a_row_is_written_to_the_log() {
    let database = Database::start(
        &[],
        &format!(
            "
        CREATE TABLE payments (id bigint PRIMARY KEY, currency text, amount numeric(14,2), created_at timestamptz);
        CREATE TABLE dated (id bigint PRIMARY KEY, day bigint, amount numeric, note text);
        CREATE TABLE large (id bigint PRIMARY KEY, note text);
        INSERT INTO payments VALUES ({NUMBER}, '{TEXT}', {NUMBER}.25, '2026-01-01Z');
        INSERT INTO dated VALUES ({NUMBER}, 20260101, 1, '{TEXT}')"
        ),
    );
    let data = tempfile::tempdir().unwrap();
    let mut command = serve(data.path());
    command.env("TIDEMARK_POSTGRES", database.url()).env("RUST_LOG", "trace");
    command.args(["--table", "public.payments,public.dated,public.large", "--log", "json", "--max-row", "1MiB"]);
    let server = Server::listen(&mut command);
    server.register("monthly", &monthly());
    let of_dates = json!({"table": "public.dated", "measures": [{"name": "n", "count": "*"}], "dimensions": ["note"],
        "time": {"column": "day", "codec": "yyyymmdd", "granularity": "month"}});
    server.register("by_date", &of_dates);
    let sums = json!({"table": "public.dated", "measures": [{"name": "s", "sum": "amount", "scale": 2}]});
    server.register("sums", &sums);
    database.sql(&format!(
        "
        INSERT INTO payments VALUES (2, '{TEXT}2', {NUMBER}, '2026-02-01Z');
        UPDATE payments SET amount = {NUMBER}.75 WHERE id = 2; DELETE FROM payments WHERE id = {NUMBER}"
    ));
    let at = database.value("SELECT pg_current_wal_lsn()");
    let with_id = |path: &str, body: &[u8]| {
        let headers = [("x-request-id", "mine-7"), ("content-type", "application/json")];
        server.exchange(if body.is_empty() { "GET" } else { "POST" }, path, &headers, body).unwrap()
    };
    let path = "/v1/aggregates/monthly";
    let seen = with_id(&format!("{path}/data?min_lsn={at}&wait=20s&where=currency:{TEXT}2"), b"");
    assert!(seen.text.contains(NUMBER) && seen.headers["x-request-id"] == "mine-7", "{}", seen.text);
    assert!(with_id(&format!("{path}/rows?where=currency:{TEXT}2"), b"").text.contains(NUMBER));
    for what in ["data.csv", "explain", "data?granularity=decade"] {
        let joint = if what.contains('?') { '&' } else { '?' };
        with_id(&format!("{path}/{what}{joint}where=currency:{TEXT}&having=amount%3E{NUMBER}"), b"");
    }
    let asked = json!({"aggregate": "monthly", "where": {"currency": TEXT}, "filter": format!("currency <> '{TEXT}'")});
    with_id("/v1/query", asked.to_string().as_bytes());
    with_id("/v1/query", format!("{{\"aggregate\": \"{TEXT}").as_bytes());
    assert_eq!(with_id("/v1/verify", b"{}").status, 200);

    // The trail of who did what is of a request, too.
    let headers = [("x-request-id", "mine-8"), ("content-type", "application/json")];
    assert_eq!(server.exchange("PUT", path, &headers, monthly().to_string().as_bytes()).unwrap().status, 200);

    // A date that is none, a value that does not fit, a row that is too large: they halt with a code.
    database.sql(&format!("INSERT INTO dated VALUES (3, {NUMBER}, 1, '{TEXT}')"));
    database.sql(&format!("INSERT INTO dated VALUES (4, 20260101, 0.{NUMBER}, '{TEXT}')"));
    let mut written = server.log();
    let mut until = |word: &str| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !written.iter().any(|line| line.contains(word)) {
            assert!(Instant::now() < deadline, "nothing of {word}");
            std::thread::sleep(Duration::from_millis(20));
            written.extend(server.log());
        }
    };
    until("time_misfit");
    until("scale_exceeded");
    let (_, described) = server.get("/v1/aggregates/by_date");
    assert!(described["halted"]["message"].as_str().unwrap().contains(NUMBER), "who may read it is told: {described}");
    database.sql(&format!("INSERT INTO large VALUES ({NUMBER}, repeat('{TEXT}', 200000))"));
    until("row_too_large");
    assert!(server.terminate().success());
    let lines: Vec<Value> = written.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(lines.iter().any(|line| line["level"] == "TRACE"), "nothing was written at trace level");
    for line in &written {
        assert!(!line.contains(TEXT) && !line.contains(NUMBER), "{line}");
        // A reader keeps one of two values of a key, and which one is its own choice.
        let ours = ["engine", "connectors", "queries", "tidemark"].iter();
        let ours = ours.map(|name| format!("\"target\":\"{name}")).any(|target| line.contains(&target));
        assert!(!ours || line.matches("\"message\":").count() <= 1, "{line}");
    }

    // Whose request, which aggregate, which source, which position.
    let of = |pointer: &str, value: &str| lines.iter().any(|line| line.pointer(pointer).is_some_and(|is| is == value));
    let audited = lines.iter().find(|line| line["span"]["request_id"] == "mine-8").unwrap();
    assert_eq!((&audited["target"], &audited["span"]["aggregate"]), (&json!("audit"), &json!("monthly")), "{audited}");
    assert!(of("/fields/request_id", "mine-7"), "requests have no line of their own");
    let halted = lines.iter().find(|line| line["fields"]["message"] == "aggregate halted").unwrap();
    assert!(halted["fields"]["lsn"].as_str().is_some_and(|lsn| lsn.contains('/')), "{halted}");
    assert!(["by_date", "sums"].contains(&halted["fields"]["aggregate"].as_str().unwrap()), "{halted}");
    let halted = lines.iter().find(|line| line["fields"]["code"] == "row_too_large").unwrap();
    assert_eq!(halted["span"]["source"], "postgres", "{halted}");
    assert!(halted["fields"]["lsn"].is_string(), "{halted}");
}
