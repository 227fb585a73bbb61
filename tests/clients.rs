//! The clients, by their examples: registered, paged and followed as applications do, over a server that is killed and
//! started again in the middle. What they print is what Postgres has; nothing is counted twice and nothing is missed.
//! And by scenes that a made-up server plays (`queries/clients/tests`): what is not Tidemark's, and what is cut or silent.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use queries::api::problem_codes::{SECTIONS, find};
use serde_json::json;

use crate::support::database::Database;
use crate::support::server::Server;

const TABLES: &str = "
    CREATE TABLE payments (id bigserial PRIMARY KEY, currency text NOT NULL, amount numeric(18,2) NOT NULL, created_at timestamptz NOT NULL);
    INSERT INTO payments (currency, amount, created_at)
    SELECT (ARRAY['EUR', 'USD', 'ISK'])[1 + i % 3], 900719925474.99 * (i % 7), timestamptz '2026-01-01Z' + i * interval '5 hours'
    FROM generate_series(1, 600) AS i;";
const ONE_MORE: &str = "INSERT INTO payments (currency, amount, created_at) VALUES ('EUR', 0.01, '2026-03-03Z')";
/// What the examples print of Postgres' own totals.
const EXPECTED: &str = "SELECT string_agg(line, E'\\n') FROM (
    SELECT to_char(date_trunc('month', created_at, 'UTC') AT TIME ZONE 'UTC', 'YYYY-MM-DD') || ' ' || currency || ' ' || sum(amount) || ' ' || count(*) AS line
    FROM payments GROUP BY date_trunc('month', created_at, 'UTC'), currency ORDER BY date_trunc('month', created_at, 'UTC'), currency) AS lines";

/// Rows whose order is easily mistaken: every type of a dimension, with what is no number or no time, and texts whose halves of
/// pairs sort otherwise than they do.
const THINGS: &str = "
    CREATE TABLE things (id bigserial PRIMARY KEY, at timestamptz, word text, exact numeric, whole bigint, real float8, flag boolean,
        tag uuid, day date, clock timestamp, instant timestamptz, amount numeric(30,2), weight float8);
    INSERT INTO things (at, word, exact, whole, real, flag, tag, day, clock, instant, amount, weight)
    SELECT (ARRAY['2026-10-25 00:30Z', '2026-10-25 01:30Z', '-infinity', 'infinity', NULL, '0044-03-15Z BC', '12026-01-01Z'])[1 + i % 7]::timestamptz,
        (ARRAY['a', 'B', 'b', 'ab', '', '\u{1F600}', '\u{FFFD}', '\u{E000}', 'é', NULL, 'a b'])[1 + i % 11],
        (ARRAY['1.5', '1.25', '-3', '-20.5', '0', '1e30', 'NaN', NULL, '100', '99.999'])[1 + i % 10]::numeric,
        (ARRAY[1, 9007199254740993, 9007199254740992, -9007199254740993, NULL, 10, 9])[1 + i % 7],
        (ARRAY['1e-300', '-0.5', 'Infinity', '-Infinity', 'NaN', NULL, '1e21', '7'])[1 + i % 8]::float8,
        (ARRAY[true, false, NULL])[1 + i % 3], md5((i % 9)::text)::uuid,
        (ARRAY['2026-01-01', 'infinity', '-infinity', '0044-03-15 BC', '12026-01-01', NULL])[1 + i % 6]::date,
        (ARRAY['2026-01-01 00:00:00.5', '2026-01-01 00:00:00.25', 'infinity', NULL, '0001-01-01 BC'])[1 + i % 5]::timestamp,
        (ARRAY['2026-01-01 00:00:00.000001Z', '2026-01-01Z', NULL, '-infinity'])[1 + i % 4]::timestamptz,
        (ARRAY[900719925474099312.01, 900719925474099312.02, -5, NULL, 0])[1 + i % 5],
        (ARRAY['NaN', '2.5', '-Infinity', 'Infinity', NULL])[1 + i % 5]::float8
    FROM generate_series(1, 300) AS i;";

/// `fromisoformat` as strict as that of Python 3.10, and the times that the server writes.
const OLDEST_PYTHON: &str = r#"
import datetime, re

today = datetime.datetime

class Oldest(today):
    @classmethod
    def fromisoformat(cls, text):
        if re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{3}(\d{3})?)?)?([+-]\d\d:\d\d)?)?", text) is None:
            raise ValueError(text)
        return today.fromisoformat(text)

datetime.datetime = Oldest
from tidemark.answer import typed

def read(text, kind="timestamp"):
    return typed([{"name": "time", "type": kind}], [{"time": text}])[0]["time"]

utc = datetime.timezone.utc
assert read("2026-03-01T00:00:00Z") == today(2026, 3, 1, tzinfo=utc)
assert read("2026-03-01T01:00:00.5+01:00") == today(2026, 3, 1, 0, 0, 0, 500000, tzinfo=utc)
assert read("2026-03-01T00:00:00.123456Z") == today(2026, 3, 1, 0, 0, 0, 123456, tzinfo=utc)
assert read("2026-03-01T00:00:00.1234", "local_timestamp") == today(2026, 3, 1, 0, 0, 0, 123400)
for text in ("infinity", "-infinity", "+012026-01-01T00:00:00Z", "-000043-03-15T00:00:00.5Z"):
    assert read(text) == text, text
"#;

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("queries/clients")
}

/// A running example, and what it prints.
struct Example {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Example {
    fn start(command: &mut Command) -> Example {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let (lines, said) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        Example { child, lines: said }
    }

    /// The next line; `None` at the end.
    fn line(&self) -> Option<String> {
        match self.lines.recv_timeout(Duration::from_secs(60)) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the example says nothing"),
        }
    }

    /// Lines until one that holds this; the last of them.
    fn until(&self, what: &str) -> (Vec<String>, String) {
        let mut before = Vec::new();
        loop {
            let line = self.line().unwrap_or_else(|| panic!("no {what:?} after {before:#?}"));
            if line.contains(what) {
                return (before, line);
            }
            before.push(line);
        }
    }

    fn ended_well(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follows_exactly(name: &str, example: &mut Command) {
    let database = Database::start(&[], TABLES);
    let data = tempfile::tempdir().unwrap();
    let start = |address: &str| Server::start_at(address, data.path(), &database.url(), &["public.payments"]);
    let mut server = start("127.0.0.1:0");
    server.get_ok("/readyz");
    let address = server.address().to_owned();
    let mut example = Example::start(example.args([&format!("http://{address}"), name, "640"]));

    let (rows, at) = example.until("at 0/");
    let printed: Vec<String> = rows
        .iter()
        .map(|row| row.split_once('T').map(|(day, rest)| format!("{day} {}", rest.split_once(' ').unwrap().1)).unwrap())
        .collect();
    let expected = database.value(EXPECTED);
    assert!(expected.lines().count() > 6, "{expected}");
    assert_eq!(printed.join("\n"), expected, "{at}");
    assert_eq!(example.until("refused").1, "refused bad_parameter");

    // Twenty that it sees come, a server that dies, twenty that come meanwhile.
    let mut counts = Vec::new();
    let count = |line: &str| line.split(' ').nth(1).unwrap().parse::<u32>().unwrap();
    counts.push(count(&example.until("live").1));
    for _ in 0..20 {
        database.sql(ONE_MORE);
    }
    while counts.last() != Some(&620) {
        counts.push(count(&example.until("live").1));
    }
    server.kill();
    for _ in 0..20 {
        database.sql(ONE_MORE);
    }
    server = start(&address);
    while counts.last() != Some(&640) {
        counts.push(count(&example.until("live").1));
    }
    assert!(counts.is_sorted() && counts.first() == Some(&600), "{counts:?}");
    assert!(example.ended_well(), "the example does not end");
    assert!(server.terminate().success());
}

/// The program ends well, or the test with what it says.
fn succeeds(program: &mut Command) {
    let output = program.env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
}

/// The client does what each scene expects; it is a program that takes the address of who plays them.
fn plays_its_part(client: &mut Command) {
    let fake = Example::start(Command::new("python3").arg(clients().join("tests/fake.py")));
    succeeds(client.arg(fake.line().unwrap()));
}

fn built_typescript() -> tempfile::TempDir {
    let built = tempfile::tempdir().unwrap();
    succeeds(Command::new("sh").arg(clients().join("typescript/build.sh")).arg(built.path()));
    built
}

#[test]
fn typescript() {
    let built = built_typescript();
    follows_exactly("by_typescript", Command::new("node").arg(built.path().join("dist/example/totals.js")));
}

#[test]
fn typescript_plays_its_part() {
    let built = built_typescript();
    plays_its_part(Command::new("node").arg(clients().join("tests/scenes.mjs")).arg(built.path().join("dist")));
}

#[test]
fn python_plays_its_part() {
    plays_its_part(Command::new("python3").arg(clients().join("tests/scenes.py")));
}

#[test]
fn python() {
    follows_exactly(
        "by_python",
        Command::new("python3").arg(clients().join("python/example/totals.py")).env("PYTHONDONTWRITEBYTECODE", "1"),
    );
}

#[test]
fn python_reads_times_as_its_oldest_version_can() {
    succeeds(Command::new("python3").args(["-c", OLDEST_PYTHON]).env("PYTHONPATH", clients().join("python")));
}

#[test]
fn rows_are_kept_in_the_order_of_the_server() {
    let database = Database::start(&[], THINGS);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.things"], &[]);
    server.register(
        "things",
        &json!({"table": "public.things", "time": {"column": "at", "granularity": "hour", "time_zone": "Europe/Madrid"},
                "dimensions": ["word", "exact", "whole", "real", "flag", "tag", "day", "clock", "instant"],
                "measures": [{"name": "amount", "sum": "amount"}, {"name": "weight", "sum": "weight"}, {"name": "n", "count": "*"}]}),
    );
    let address = format!("http://{}", server.address());
    succeeds(Command::new("python3").arg(clients().join("tests/ordered.py")).args([address.as_str(), "things"]));
    let built = built_typescript();
    let script = clients().join("tests/ordered.mjs");
    succeeds(Command::new("node").arg(script).arg(built.path().join("dist")).args([address.as_str(), "things"]));
    assert!(server.terminate().success());
}

/// The codes that a client waits out, as its source lists them.
fn waited_out(source: &str) -> Vec<String> {
    let text = std::fs::read_to_string(clients().join(source)).unwrap();
    let list = text.split_once("PASSING").unwrap().1.split_once("starting").unwrap().1;
    let list = list.split_once(['"', '`']).unwrap().0;
    std::iter::once("starting").chain(list.split_whitespace()).map(str::to_owned).collect()
}

#[test]
fn what_ends_by_itself_is_waited_out_and_nothing_else() {
    let codes = waited_out("python/tidemark/refused.py");
    assert_eq!(codes, waited_out("typescript/src/refused.ts"));
    for code in &codes {
        let problem = find(code).unwrap_or_else(|| panic!("no problem is called {code}"));
        assert!(problem.statuses.iter().any(|status| [409, 422, 503].contains(status)), "{code}");
    }
    let section = |title: &str| SECTIONS.iter().find(|section| section.title == title).unwrap().problems;
    for problem in section("No answer now") {
        assert!(codes.iter().any(|code| code == problem.code), "{} is not waited out", problem.code);
    }
    for problem in section("Halted aggregates and tables") {
        assert!(codes.iter().all(|code| code != problem.code), "{} is waited out", problem.code);
    }
}
