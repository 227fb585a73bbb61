//! Live answers: a reader that applies every event always has all the money there is, because a transfer is never shown
//! half; one that is cut off and comes back misses nothing; and what cannot go on says so.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::Server;

const ACCOUNTS: i64 = 40;
const MONEY: i64 = ACCOUNTS * 1_000;

/// A live answer being read, and the rows it has led to.
struct Reader {
    lines: BufReader<Box<dyn Read>>,
    rows: BTreeMap<String, Value>,
    last_id: String,
}

/// What came.
#[derive(Debug)]
struct Event {
    name: String,
    data: Value,
}

impl Reader {
    fn open(server: &Server, path: &str, since: Option<&str>) -> Reader {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(60))).build().into();
        let mut request = agent.get(format!("http://{}{path}", server.address()));
        if let Some(since) = since {
            request = request.header("last-event-id", since);
        }
        let response = request.call().unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let lines = BufReader::new(Box::new(response.into_body().into_reader()) as Box<dyn Read>);
        Reader { lines, rows: BTreeMap::new(), last_id: String::new() }
    }

    /// The next event, applied to the rows. `None` at the end.
    fn next(&mut self) -> Option<Event> {
        let (mut name, mut data) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end().split_once(':') {
                Some(("event", rest)) => rest.trim_start().clone_into(&mut name),
                Some(("data", rest)) => data.push_str(rest.trim_start()),
                Some(("id", rest)) => rest.trim_start().clone_into(&mut self.last_id),
                None if !name.is_empty() => break,
                _ => {}
            }
        }
        let data: Value = serde_json::from_str(&data).unwrap();
        self.apply(&name, &data);
        Some(Event { name, data })
    }

    fn apply(&mut self, name: &str, data: &Value) {
        let key = |row: &Value| format!("{} {}", row["time"], row["account"]);
        let rows = |of: &Value| of.as_array().cloned().unwrap_or_default();
        match name {
            "snapshot" => self.rows = rows(&data["data"]).into_iter().map(|row| (key(&row), row)).collect(),
            "change" => {
                for row in rows(&data["delete"]) {
                    assert!(self.rows.remove(&key(&row)).is_some(), "a row goes away that was not there: {row}");
                }
                for row in rows(&data["upsert"]) {
                    assert_ne!(self.rows.get(&key(&row)), Some(&row), "nothing changed: {row}");
                    self.rows.insert(key(&row), row);
                }
            }
            "resync" => self.rows.clear(),
            _ => {}
        }
    }

    fn money(&self) -> i64 {
        self.rows.values().map(|row| row["amount"].as_str().unwrap().parse::<i64>().unwrap()).sum()
    }

    fn balances(&self) -> BTreeMap<i64, i64> {
        let amount = |row: &Value| row["amount"].as_str().unwrap().parse::<i64>().unwrap();
        let mut balances = BTreeMap::new();
        for row in self.rows.values() {
            *balances.entry(row["account"].as_i64().unwrap()).or_default() += amount(row);
        }
        balances
    }

    /// Reads until the rows are those of Postgres; fails where they are not within a minute.
    fn until_equal(&mut self, database: &Database) {
        let expected = balances(database);
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.balances() != expected {
            assert!(Instant::now() < deadline, "{:?}\n{expected:?}", self.balances());
            self.next().expect("the stream ended");
        }
    }
}

fn balances(database: &Database) -> BTreeMap<i64, i64> {
    let text = database.value("SELECT json_object_agg(account, amount)::text FROM (SELECT account, sum(amount) AS amount FROM bookings GROUP BY 1) b");
    let object: BTreeMap<String, i64> = serde_json::from_str(&text).unwrap();
    object.into_iter().map(|(account, amount)| (account.parse().unwrap(), amount)).collect()
}

fn start() -> (Database, Server, tempfile::TempDir) {
    let database = Database::start(
        &[],
        &format!(
            "CREATE TABLE bookings (id bigserial PRIMARY KEY, account int NOT NULL, amount bigint NOT NULL, at timestamptz NOT NULL);
             INSERT INTO bookings (account, amount, at) SELECT i, 1000, '2026-01-15Z' FROM generate_series(1, {ACCOUNTS}) i;"
        ),
    );
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["public.bookings"], &[]);
    register(&server);
    (database, server, data)
}

fn register(server: &Server) {
    let definition = json!({"table": "bookings", "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
        "dimensions": ["account"], "time": {"column": "at", "granularity": "day"}, "rollups": ["month"]});
    server.register("balances", &definition);
}

/// Transfers between accounts, some of which move in time or are taken back, until told to stop.
fn transfers(url: &str, seconds: u64) -> std::thread::JoinHandle<u64> {
    let url = url.to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let deadline = Instant::now() + Duration::from_secs(seconds);
        runtime.block_on(async {
            let client = crate::support::sql::connect(&url).await;
            let mut count = 0u64;
            while Instant::now() < deadline {
                let (from, to, amount) = (1 + count * 7 % 40, 1 + count * 11 % 40, 1 + count % 500);
                let day = 1 + count * 3 % 27;
                let mut transaction = format!(
                    "BEGIN; INSERT INTO bookings (account, amount, at) VALUES ({from}, -{amount}, '2026-02-{day:02}Z'), ({to}, {amount}, '2026-02-{day:02}Z');"
                );
                if count.is_multiple_of(5) {
                    // Both halves of an older transfer go, or move to another month.
                    let pair = 41 + count / 5 * 2;
                    transaction.push_str(&match count % 2 {
                        0 => format!("DELETE FROM bookings WHERE id IN ({pair}, {pair} + 1) AND id > 40 AND amount <> 1000;"),
                        _ => format!("UPDATE bookings SET at = '2026-03-05Z' WHERE id IN ({pair}, {pair} + 1) AND id > 40;"),
                    });
                }
                transaction.push_str("COMMIT;");
                client.batch_execute(&transaction).await.unwrap();
                count += 1;
            }
            count
        })
    })
}

#[test]
fn every_event_shows_whole_transfers_and_the_last_one_what_postgres_has() {
    let (database, server, _data) = start();
    let path = "/v1/aggregates/balances/live?granularity=month&throttle=20ms";
    let mut reader = Reader::open(&server, path, None);
    assert_eq!(reader.next().unwrap().name, "snapshot");
    assert_eq!(reader.money(), MONEY);
    let writer = transfers(&database.url(), 6);
    let (mut changes, mut cuts) = (0, 0);
    while !writer.is_finished() {
        let event = reader.next().expect("the stream ended");
        changes += usize::from(event.name == "change");
        assert_eq!(reader.money(), MONEY, "{event:?}");
        if changes % 20 == 19 && event.name == "change" {
            // Cut off; the rows are kept, as an application would keep them.
            let (rows, last_id) = (std::mem::take(&mut reader.rows), reader.last_id.clone());
            reader = Reader::open(&server, path, Some(&last_id));
            reader.rows = rows;
            let first = reader.next().unwrap();
            assert_ne!(first.name, "snapshot", "the position was kept a moment ago");
            assert_eq!(reader.money(), MONEY, "{first:?}");
            cuts += 1;
        }
    }
    let transfers = writer.join().unwrap();
    reader.until_equal(&database);
    println!("{transfers} transfers, {changes} changes, cut off {cuts} times");
    assert!(changes > 50 && cuts > 2);
}

/// The position alone would not tell: nothing happens upstream meanwhile.
#[test]
fn who_comes_back_to_another_aggregate_of_the_name_begins_anew() {
    let (_database, server, _data) = start();
    let path = "/v1/aggregates/balances/live?granularity=month&throttle=20ms";
    let mut reader = Reader::open(&server, path, None);
    assert_eq!(reader.next().unwrap().name, "snapshot");
    let mut resumed = Reader::open(&server, path, Some(&reader.last_id));
    assert_eq!(resumed.next().unwrap().name, "progress");
    let mut definition = server.get_ok("/v1/aggregates/balances")["definition"].clone();
    definition["where"] = json!("account > 20");
    assert_eq!(server.delete("/v1/aggregates/balances").unwrap().0, 204);
    server.register("balances", &definition);
    let mut again = Reader::open(&server, path, Some(&reader.last_id));
    assert_eq!(again.next().unwrap().name, "snapshot");
    assert_ne!(again.rows, reader.rows);
    // A position alone, as ids once were.
    let (position, _) = reader.last_id.split_once(';').unwrap();
    assert_eq!(Reader::open(&server, path, Some(position)).next().unwrap().name, "snapshot");
}

/// A browser keeps the address it began with, and sends the id of what it had last beside it.
#[test]
fn who_comes_back_with_another_question_begins_anew_and_the_last_id_counts() {
    let (database, server, _data) = start();
    let one = "/v1/aggregates/balances/live?granularity=all&throttle=20ms&where=account:1";
    let mut reader = Reader::open(&server, one, None);
    assert_eq!(reader.next().unwrap().name, "snapshot");
    let first = reader.last_id.clone();
    let all = "/v1/aggregates/balances/live?granularity=all&throttle=20ms&group_by=account";
    assert_eq!(Reader::open(&server, all, Some(&first)).next().unwrap().name, "snapshot");

    database.sql("UPDATE bookings SET amount = amount + 1 WHERE account = 1");
    while reader.next().unwrap().name != "change" {}
    assert_ne!(reader.last_id, first);
    let rows = reader.rows.clone();
    let mut resumed = Reader::open(&server, &format!("{one}&since={first}"), Some(&reader.last_id));
    resumed.rows.clone_from(&rows);
    assert_eq!(resumed.next().unwrap().name, "progress", "it has seen the change");
    let mut resumed = Reader::open(&server, &format!("{one}&since={first}"), None);
    assert_eq!(resumed.next().unwrap().name, "change");
    assert_eq!(resumed.rows, rows);
    // How long to wait for which position is no other question.
    let mut waiting = Reader::open(&server, &format!("{one}&min_lsn=0/1&wait=1s"), Some(&reader.last_id));
    assert_eq!(waiting.next().unwrap().name, "progress");
}

#[test]
fn who_does_not_read_gets_the_difference_and_costs_nothing() {
    let (database, server, _data) = start();
    let path = "/v1/aggregates/balances/live?throttle=20ms";
    let mut reader = Reader::open(&server, path, None);
    assert_eq!(reader.next().unwrap().name, "snapshot");
    let before = server.peak_memory();
    let transfers = transfers(&database.url(), 4).join().unwrap();
    let mut events = 0;
    let expected = balances(&database);
    while reader.balances() != expected {
        reader.next().expect("the stream ended");
        assert_eq!(reader.money(), MONEY);
        events += 1;
    }
    let grown = server.peak_memory().saturating_sub(before) >> 20;
    println!("{transfers} transfers in {events} events; {grown} MiB more");
    assert!(events < transfers && grown < 200);
}

#[test]
fn built_anew_it_begins_anew_and_dropped_it_ends() {
    let (database, server, _data) = start();
    let mut reader = Reader::open(&server, "/v1/aggregates/balances/live", None);
    assert_eq!(reader.next().unwrap().name, "snapshot");
    let (status, _) = server.try_post("/v1/sources/postgres/tables", br#"{"table":"public.bookings"}"#).unwrap();
    assert!(matches!(status, 200 | 202), "{status}");
    let mut names = Vec::new();
    while names.last().is_none_or(|name| name != "snapshot") {
        names.push(reader.next().unwrap().name);
    }
    assert_eq!(names.iter().filter(|name| *name != "progress").collect::<Vec<_>>(), ["resync", "snapshot"]);
    reader.until_equal(&database);
    // A position of another process is not known any more: everything comes again.
    let mut other = Reader::open(&server, "/v1/aggregates/balances/live", Some("0/1"));
    assert_eq!(other.next().unwrap().name, "snapshot");
    server.delete("/v1/aggregates/balances");
    database.sql("INSERT INTO bookings (account, amount, at) VALUES (1, 0, now())");
    let last = std::iter::from_fn(|| reader.next()).last().unwrap();
    assert_eq!((last.name.as_str(), last.data["code"].as_str()), ("error", Some("unknown_aggregate")));
    for (question, code) in
        [("share=true", "not_live"), ("throttle=1ms", "bad_parameter"), ("limit=20000", "bad_parameter")]
    {
        let (status, problem) = server.get(&format!("/v1/aggregates/balances/live?{question}"));
        assert!(matches!(status, 400 | 422), "{question}: {problem}");
        assert_eq!(problem["code"], code, "{question}");
    }
}

/// An answer that grows beyond its limit does not go on with a part of it.
#[test]
fn one_that_grows_too_wide_ends() {
    let (database, server, _data) = start();
    let mut reader = Reader::open(&server, "/v1/aggregates/balances/live?granularity=month&limit=40", None);
    assert_eq!(reader.next().unwrap().name, "snapshot");
    assert_eq!(reader.rows.len(), 40);
    database.sql("INSERT INTO bookings (account, amount, at) VALUES (99, 7, '2026-01-20Z')");
    let last = std::iter::from_fn(|| reader.next()).last().unwrap();
    assert_eq!((last.name.as_str(), last.data["code"].as_str()), ("error", Some("live_too_wide")));
}

#[test]
fn a_server_that_stops_ends_its_live_answers() {
    let (_database, server, _data) = start();
    let mut reader = Reader::open(&server, "/v1/aggregates/balances/live", None);
    assert_eq!(reader.next().unwrap().name, "snapshot");
    let started = Instant::now();
    assert!(server.terminate().success());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(reader.next().is_none());
}

/// Nothing newer will ever come: whoever waits for it is told why, and not only when patience or a heartbeat is due.
#[test]
fn where_nothing_goes_on_any_more_it_ends_with_the_reason() {
    let (_database, server, data) = start();
    let mut reader = Reader::open(&server, "/v1/aggregates/balances/live", None);
    assert_eq!(reader.next().unwrap().name, "snapshot");
    let code = |(status, problem): (u16, Value)| (status, problem["code"].as_str().unwrap_or_default().to_owned());
    let lost = (503, "store_failed".to_owned());
    let url = format!("http://{}/v1/aggregates/balances/data?min_lsn=FFFF/0&wait=20s", server.address());
    let began = Instant::now();
    let waiting = std::thread::spawn(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut response = agent.get(&url).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_json().unwrap())
    });
    std::fs::rename(data.path().join("store"), data.path().join("elsewhere")).unwrap();
    // An answer has to survive a crash: it is the first that cannot be given.
    let late = json!({"table": "bookings", "measures": [{"name": "n", "count": "*"}]});
    assert_eq!(code(server.put("/v1/aggregates/late", &late)), lost);
    let last = std::iter::from_fn(|| reader.next()).last().unwrap();
    assert_eq!((last.name.as_str(), last.data["code"].as_str()), ("error", Some("store_failed")));
    assert_eq!(code(waiting.join().unwrap()), lost);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
