//! Change events in Debezium's format, posted to the real binary and replayed from a file.
//!
//! Random histories (concurrent transactions whose positions overlap, rows written together at one position, changes of
//! key, large values that are not sent, truncates) are written down as Debezium writes them, in each of its encodings, and
//! posted in requests that cut transactions anywhere. Requests are repeated, the sender goes back as a restarted Debezium
//! does, and the binary is killed; after a kill the sender often goes on right after the last answer. At the end every
//! cell equals a naive model's, so nothing was doubled and nothing that was answered is lost. With transaction metadata no
//! answer shows half a transaction.
//!
//! A failure prints its seed: `TIDEMARK_SEED=123 cargo test --release -p tidemark debezium`. `TIDEMARK_HISTORIES=100` runs
//! more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::support::server::{Server, serve};

const HISTORIES: u64 = 10;
const PLACEHOLDER: &str = "__debezium_unavailable_value";
const EVENTS: &str = "/v1/sources/events/events";

/// How the upstream connector is set.
#[derive(Clone, Copy, Debug)]
struct Settings {
    /// `schemas.enable`
    schema: bool,
    /// `decimal.handling.mode=precise`
    precise: bool,
    /// `time.precision.mode`: unit of a timestamp, in nanoseconds.
    unit_ns: i64,
    /// `provide.transaction.metadata`
    metadata: bool,
    /// `REPLICA IDENTITY FULL`
    full: bool,
    /// Key and value in one object.
    keyed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    grp: String,
    cents: i64,
    at_us: i64,
    note: String,
}

/// Lines as they are sent, and the rows at the end.
#[derive(Clone)]
struct History {
    lines: Vec<Value>,
    rows: BTreeMap<i64, Row>,
    settings: Settings,
    rng: ChaCha8Rng,
    transaction: i64,
    commit: Option<i64>,
    log: i64,
    /// When the transaction committed, by a clock that is put back now and then.
    committed_us: i64,
    next_id: i64,
}

/// 2024-01-01, in microseconds since 1970.
const NEW_YEAR_US: i64 = 1_704_067_200_000_000;

fn tables() -> Value {
    json!([{
        "id": 1, "namespace": "public", "name": "payments", "primary_key": [0],
        "columns": [
            {"name": "id", "type": "int8"}, {"name": "grp", "type": "text"},
            {"name": "amount", "type": {"numeric": {"scale": 2}}}, {"name": "at", "type": "timestamp"},
            {"name": "note", "type": "text"},
        ],
    }])
}

impl History {
    fn new(seed: u64, settings: Settings) -> History {
        History {
            lines: Vec::new(),
            rows: BTreeMap::new(),
            settings,
            rng: ChaCha8Rng::seed_from_u64(seed),
            transaction: 700,
            commit: None,
            log: 0x200_0000,
            committed_us: 1_559_033_904_863_123,
            next_id: 1,
        }
    }

    /// Milliseconds are all that `connect` sends.
    fn row(&mut self, grp: &str, cents: i64) -> Row {
        let at_us = NEW_YEAR_US + self.rng.random_range(0..31_536_000_000i64) * 1_000;
        let note = if self.rng.random_bool(0.3) { "long ".repeat(100) } else { "n".to_owned() };
        Row { grp: grp.to_owned(), cents, at_us, note: format!("{note}{}", self.rng.random_range(0..4)) }
    }

    fn amount(&self, cents: i64) -> Value {
        if self.settings.precise {
            let bytes = cents.to_be_bytes();
            let skip = (0..7).take_while(|at| {
                let (byte, next) = (bytes[*at], bytes[at + 1]);
                (byte == 0 && next & 0x80 == 0) || (byte == 0xFF && next & 0x80 != 0)
            });
            json!(base64(&bytes[skip.count()..]))
        } else {
            let sign = if cents < 0 { "-" } else { "" };
            json!(format!("{sign}{}.{:02}", cents.abs() / 100, cents.abs() % 100))
        }
    }

    fn after(&self, id: i64, row: &Row) -> Value {
        let at = if self.settings.unit_ns >= 1_000 {
            row.at_us / (self.settings.unit_ns / 1_000)
        } else {
            row.at_us * (1_000 / self.settings.unit_ns)
        };
        json!({"id": id, "grp": row.grp, "amount": self.amount(row.cents), "at": at, "note": row.note})
    }

    /// What is said of the row before an update or delete.
    fn before(&self, id: i64, row: &Row) -> Value {
        if self.settings.full {
            self.after(id, row)
        } else {
            // Debezium makes the other columns up.
            json!({"id": id, "grp": "", "amount": self.amount(0), "at": 0, "note": ""})
        }
    }

    fn line(&mut self, op: &str, before: Value, after: Value, lsn: i64, snapshot: &str) -> Value {
        let sequence = json!([self.commit.map(|commit| commit.to_string()), lsn.to_string()]).to_string();
        let id = if after.is_null() { before["id"].clone() } else { after["id"].clone() };
        let at_us = self.committed_us;
        let mut payload = json!({
            "before": before, "after": after, "op": op, "ts_ms": at_us / 1_000 + 17, "transaction": null,
            "source": {
                "version": "3.2.0.Final", "connector": "postgresql", "name": "shop", "db": "shop", "schema": "public",
                "table": "payments", "txId": self.transaction, "lsn": lsn, "sequence": sequence, "xmin": null,
                "snapshot": snapshot, "ts_ms": at_us / 1_000, "ts_us": at_us, "ts_ns": at_us * 1_000,
            },
        });
        if self.settings.metadata && snapshot == "false" {
            payload["transaction"] =
                json!({"id": format!("{}:{lsn}", self.transaction), "total_order": 1, "data_collection_order": 1});
        }
        self.written(payload, json!({"id": id}))
    }

    /// With the wrapper and the key, where they are set.
    fn written(&self, payload: Value, key: Value) -> Value {
        let wrapped = |payload: Value, schema: Value| {
            if self.settings.schema { json!({"schema": schema, "payload": payload}) } else { payload }
        };
        let value = wrapped(payload, self.schema());
        if self.settings.keyed {
            let schema = json!({"type": "struct", "fields": [{"type": "int64", "optional": false, "field": "id"}]});
            json!({"key": wrapped(key, schema), "value": value})
        } else {
            value
        }
    }

    fn schema(&self) -> Value {
        let amount = if self.settings.precise {
            json!({"type": "bytes", "optional": true, "name": "org.apache.kafka.connect.data.Decimal", "version": 1,
                   "parameters": {"scale": "2", "connect.decimal.precision": "14"}, "field": "amount"})
        } else {
            json!({"type": "string", "optional": true, "field": "amount"})
        };
        let name = match self.settings.unit_ns {
            1 => "io.debezium.time.NanoTimestamp",
            1_000 => "io.debezium.time.MicroTimestamp",
            _ => "org.apache.kafka.connect.data.Timestamp",
        };
        let at = json!({"type": "int64", "optional": true, "name": name, "version": 1, "field": "at"});
        let fields = json!([
            {"type": "int64", "optional": false, "field": "id"}, {"type": "string", "optional": true, "field": "grp"},
            amount, at, {"type": "string", "optional": true, "field": "note"},
        ]);
        let row = |field: &str| json!({"type": "struct", "fields": fields, "optional": true, "name": "shop.public.payments.Value", "field": field});
        json!({
            "type": "struct", "name": "shop.public.payments.Envelope", "version": 2,
            "fields": [row("before"), row("after"), {"type": "string", "optional": false, "field": "op"}],
        })
    }

    fn snapshot(&mut self, rows: usize) {
        let lsn = self.log;
        for at in 0..rows {
            // When the row was read, which is after some of what commits next.
            self.committed_us += self.rng.random_range(0..2_000);
            let row = self.row(["a", "b", "c"][at % 3], at as i64 * 7 - 300);
            let id = self.next_id;
            self.next_id += 1;
            let mark = match at {
                _ if at + 1 == rows => "last",
                0 => "first",
                _ => "true",
            };
            let after = self.after(id, &row);
            let line = self.line("r", Value::Null, after, lsn, mark);
            self.lines.push(line);
            self.rows.insert(id, row);
        }
    }

    /// One transaction; its events lie among those of the transactions before.
    fn transact(&mut self) {
        self.transaction += self.rng.random_range(1..3);
        self.committed_us += self.rng.random_range(-1_500_000..3_000_000);
        let before = self.log;
        let end = before + 5_000;
        let mut lsn = before - self.rng.random_range(0..9_000);
        let first = self.lines.len();
        let (mut events, mut begin) = (Vec::new(), None);
        for _ in 0..self.rng.random_range(1..6) {
            lsn = (lsn + self.rng.random_range(40..700)).min(end - 1_000);
            begin.get_or_insert(lsn);
            self.change(lsn, &mut events);
        }
        // Both halves of a transfer: their sum is 0 in every answer that shows whole transactions.
        for cents in [501, -501] {
            lsn += 100;
            let (id, row) = (self.next_id, self.row("transfer", cents));
            self.next_id += 1;
            let after = self.after(id, &row);
            events.push(self.line("c", Value::Null, after, lsn, "false"));
            self.rows.insert(id, row);
        }
        if self.settings.metadata {
            let id = |lsn: i64| json!({"id": format!("{}:{lsn}", self.transaction)});
            let begin = begin.unwrap();
            let payload = json!({"status": "BEGIN", "id": format!("{}:{begin}", self.transaction), "ts_ms": 1, "event_count": null, "data_collections": null});
            self.lines.push(self.written(payload, id(begin)));
            let counts = json!([{"data_collection": "public.payments", "event_count": events.len()}]);
            let payload = json!({"status": "END", "id": format!("{}:{end}", self.transaction), "ts_ms": 1, "event_count": events.len(), "data_collections": counts});
            let last = self.written(payload, id(end));
            self.lines.append(&mut events);
            self.lines.push(last);
        } else {
            self.lines.append(&mut events);
        }
        // What tombstones and heartbeats look like in between.
        if self.settings.keyed && self.rng.random_bool(0.2) {
            self.lines.push(json!({"key": {"id": 1}, "value": null}));
            self.lines.push(json!({"key": {"serverName": "shop"}, "value": {"ts_ms": 1_559_033_904_863i64}}));
        }
        assert!(self.lines.len() > first);
        (self.log, self.commit) = (end, Some(end));
    }

    fn change(&mut self, lsn: i64, events: &mut Vec<Value>) {
        let ids: Vec<i64> = self.rows.iter().filter(|(_, row)| row.grp != "transfer").map(|(id, _)| *id).collect();
        let picked = ids.choose(&mut self.rng).copied();
        match (self.rng.random_range(0..20), picked) {
            (0..=6, _) | (_, None) => {
                // Several rows written together have one position.
                for _ in 0..self.rng.random_range(1..4) {
                    let grp = ["a", "b", "c", "d"][self.rng.random_range(0..4)];
                    let cents = self.rng.random_range(-100_000..10_000_000);
                    let (id, row) = (self.next_id, self.row(grp, cents));
                    self.next_id += 1;
                    let after = self.after(id, &row);
                    events.push(self.line("c", Value::Null, after, lsn, "false"));
                    self.rows.insert(id, row);
                }
            }
            (7..=13, Some(id)) => {
                let old = self.rows[&id].clone();
                let (grp, cents) = (if self.rng.random_bool(0.3) { "d" } else { &old.grp }, old.cents + 117);
                let mut new = self.row(grp, cents);
                let mut after = self.after(id, &new);
                if self.rng.random_bool(0.5) {
                    new.note.clone_from(&old.note);
                    after["note"] =
                        json!(if old.note.len() > 100 && !self.settings.full { PLACEHOLDER } else { &old.note });
                }
                let before = if self.rng.random_bool(0.5) { Value::Null } else { self.before(id, &old) };
                events.push(self.line("u", before, after, lsn, "false"));
                self.rows.insert(id, new);
            }
            (14..=16, Some(id)) => {
                let old = self.rows.remove(&id).unwrap();
                let before = self.before(id, &old);
                events.push(self.line("d", before, Value::Null, lsn, "false"));
            }
            (17..=18, Some(id)) => {
                // A change of key is a delete and a create at one position.
                let old = self.rows.remove(&id).unwrap();
                let before = self.before(id, &old);
                events.push(self.line("d", before, Value::Null, lsn, "false"));
                let (id, mut after) = (self.next_id, self.after(self.next_id, &old));
                self.next_id += 1;
                if self.settings.metadata && !self.settings.full && old.note.len() > 100 {
                    after["note"] = json!(PLACEHOLDER);
                }
                events.push(self.line("c", Value::Null, after, lsn, "false"));
                self.rows.insert(id, old);
            }
            (_, Some(_)) => {
                if self.rng.random_bool(0.1) {
                    let mut line = self.line("t", Value::Null, Value::Null, lsn, "false");
                    for part in ["before", "after"] {
                        let payload = if self.settings.keyed { &mut line["value"] } else { &mut line };
                        let payload = if self.settings.schema { &mut payload["payload"] } else { payload };
                        payload.as_object_mut().unwrap().remove(part);
                    }
                    events.push(line);
                    self.rows.clear();
                }
            }
        }
    }

    /// Cells of a definition that groups by month, group and note.
    fn cells(&self) -> BTreeMap<(String, String, String), (i64, i64)> {
        let mut cells = BTreeMap::new();
        for row in self.rows.values() {
            let at = chrono::DateTime::from_timestamp_micros(row.at_us).unwrap();
            let cell: &mut (i64, i64) =
                cells.entry((at.format("%Y-%m").to_string(), row.grp.clone(), row.note.clone())).or_default();
            cell.0 += row.cents;
            cell.1 += 1;
        }
        cells
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let sextet = (word >> (18 - 6 * at) & 63) as usize;
            text.push(if at <= chunk.len() { char::from(ALPHABET[sextet]) } else { '=' });
        }
    }
    text
}

fn definition() -> Value {
    json!({
        "table": "public.payments", "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
        "dimensions": ["grp", "note"], "time": {"column": "at", "granularity": "month"}, "rollups": ["all"],
    })
}

fn answered_cells(body: &Value) -> BTreeMap<(String, String, String), (i64, i64)> {
    let cell = |row: &Value| {
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        let cents = text("amount").replace('.', "").parse().unwrap();
        ((text("time")[..7].to_owned(), text("grp"), text("note")), (cents, row["n"].as_i64().unwrap()))
    };
    body["data"].as_array().unwrap().iter().map(cell).collect()
}

fn settings(number: u64) -> Settings {
    Settings {
        schema: number % 2 == 1,
        precise: number % 4 < 2,
        // Without a schema block the unit is that of the default.
        unit_ns: if number % 2 == 1 { [1, 1_000, 1_000_000][number as usize / 2 % 3] } else { 1_000 },
        metadata: number % 3 != 1,
        full: number % 5 == 3,
        keyed: number % 5 > 2,
    }
}

fn history(seed: u64, settings: Settings, transactions: usize) -> History {
    let mut history = History::new(seed, settings);
    let rows = history.rng.random_range(1..150);
    history.snapshot(rows);
    for _ in 0..transactions {
        history.transact();
    }
    history
}

fn start(data: &Path, described: &Path, run: u64) -> Server {
    let workers = if run.is_multiple_of(2) { "1" } else { "2" };
    Server::listen(serve(data).arg("--events").arg(described).args(["--workers", workers]))
}

/// What has to be stated of it: some bytes in base64 are digits, too.
fn encoding(settings: Settings) -> Value {
    if settings.precise && !settings.schema { json!({"decimals": "precise"}) } else { json!({}) }
}

/// A new source of the described tables, with an aggregate: its data directory, its description, the server.
fn begin(directory: &Path, settings: Settings) -> (PathBuf, PathBuf, Server) {
    let (data, described) = (directory.join("data"), directory.join("tables.json"));
    std::fs::write(&described, json!({"tables": tables(), "debezium": encoding(settings)}).to_string()).unwrap();
    let server = start(&data, &described, 0);
    assert!(matches!(server.put("/v1/aggregates/monthly", &definition()).0, 201 | 202));
    (data, described, server)
}

fn body(lines: &[Value], array: bool) -> Vec<u8> {
    if array {
        return Value::Array(lines.to_vec()).to_string().into_bytes();
    }
    lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes()
}

/// Posts until it is answered 200; the sum of accepted, duplicate and ignored events is that of the lines.
fn post(server: &Server, lines: &[Value], array: bool) -> Value {
    let (status, answer) =
        server.try_post(EVENTS, &body(lines, array)).unwrap_or_else(|| panic!("{:#?}", server.log()));
    assert_eq!(status, 200, "{answer}");
    let number = |name: &str| answer[name].as_u64().unwrap();
    assert_eq!(number("accepted") + number("duplicates") + number("ignored"), lines.len() as u64, "{answer}");
    answer
}

fn seeds() -> Vec<u64> {
    if let Ok(seed) = std::env::var("TIDEMARK_SEED") {
        return vec![seed.parse().unwrap()];
    }
    let histories = std::env::var("TIDEMARK_HISTORIES").map_or(HISTORIES, |histories| histories.parse().unwrap());
    let base: u64 = rand::random_range(0..1_000_000);
    (0..histories).map(|at| base * 60 + at).collect()
}

/// The amounts of both halves of all transfers; `None` while nothing is answered.
fn transfers(server: &Server) -> Option<i64> {
    let (status, answer) =
        server.try_get("/v1/aggregates/monthly/data?granularity=all&where=grp:transfer&limit=100000")?;
    if status != 200 {
        assert_eq!(status, 503, "{answer}");
        return None;
    }
    let cents = |row: &Value| row["amount"].as_str().unwrap().replace('.', "").parse::<i64>().unwrap();
    Some(answer["data"].as_array().unwrap().iter().map(cents).sum())
}

#[test]
fn posted_histories_add_up_through_repeats_and_kills() {
    for seed in seeds() {
        let settings = settings(seed % 60);
        println!("seed {seed}: {settings:?}");
        let history = history(seed, settings, 60);
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xDEB);
        let directory = tempfile::tempdir().unwrap();
        let (data, described, mut server) = begin(directory.path(), settings);
        let mut runs = 1;

        let lines = &history.lines;
        let snapshot = lines.iter().position(|line| line.to_string().contains("\"snapshot\":\"last\"")).unwrap();
        let (mut answered, mut sent, mut newest, mut kills) = (0, 0, String::new(), 0);
        while answered < lines.len() {
            // A restarted Debezium goes back to an event it has not noted as sent.
            let from = if rng.random_bool(0.2) { rng.random_range(0..=answered) } else { answered };
            let length = 1 + (rng.random_range(0.0f64..1.0).powi(3) * 80.0) as usize;
            let to = (from + length).min(lines.len());
            let batch = &lines[from..to];
            // What was cut off may have been taken.
            sent = sent.max(to);
            if rng.random_bool(0.12) {
                // Killed while the request is under way, or right after it: only an answer counts.
                let wait = Duration::from_micros(rng.random_range(0..15_000));
                let address = server.address().to_owned();
                let bytes = body(batch, false);
                let sender = std::thread::spawn(move || {
                    let answer = ureq::post(format!("http://{address}{EVENTS}")).send(&bytes[..]);
                    answer.is_ok_and(|answer| answer.status() == 200)
                });
                std::thread::sleep(wait);
                server.kill();
                kills += 1;
                if sender.join().unwrap() {
                    answered = answered.max(to);
                }
                server = start(&data, &described, runs);
                runs += 1;
                continue;
            }
            let answer = post(&server, batch, rng.random_bool(0.2));
            answered = answered.max(to);
            newest = answer["lsn"].as_str().unwrap().to_owned();
            if rng.random_bool(0.1) {
                // A retry of a request whose answer was lost.
                let again = post(&server, batch, false);
                // Until the snapshot is complete its rows replace themselves.
                assert!(answered <= snapshot || again["accepted"] == 0, "seed {seed}: {again}");
            }
            let shown = transfers(&server);
            assert!(sent > snapshot || shown.is_none(), "seed {seed}: answered from half of a snapshot");
            if settings.metadata {
                assert!(shown.is_none_or(|cents| cents == 0), "seed {seed}: half a transaction");
            }
        }
        let path = format!("/v1/aggregates/monthly/data?limit=100000&min_lsn={newest}&wait=20s");
        let expected = history.cells();
        assert_eq!(answered_cells(&server.get_ok(&path)), expected, "seed {seed}");
        // Row images are complete too: a late aggregate is filled from them. And everything once more changes nothing.
        assert!(matches!(server.put("/v1/aggregates/late", &definition()).0, 201 | 202));
        let again = post(&server, lines, false);
        assert_eq!(again["accepted"], 0, "seed {seed}: {again}");
        assert_eq!(answered_cells(&server.get_ok("/v1/aggregates/late/data?limit=100000")), expected, "seed {seed}");
        assert!(server.terminate().success());
        let server = start(&data, &described, runs);
        assert_eq!(answered_cells(&server.get_ok("/v1/aggregates/late/data?limit=100000")), expected, "seed {seed}");
        println!("  {} lines, {kills} kills, {} cells", lines.len(), expected.len());
    }
}

#[test]
fn recorded_histories_add_up() {
    for seed in seeds() {
        let settings = settings(seed % 60);
        println!("seed {seed}: {settings:?}");
        let history = history(seed, settings, 40);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("recording.ndjson");
        let mut text = format!("{}\n", json!({"tables": tables(), "debezium": encoding(settings)}));
        // The end of a recording may stand in it twice.
        let repeated = history.lines.len() - history.lines.len() / 5;
        for line in history.lines.iter().chain(&history.lines[repeated..]) {
            text.push_str(&format!("{line}\n"));
        }
        std::fs::write(&file, text).unwrap();
        let data = directory.path().join("data");
        let server = Server::listen(serve(&data).arg("--replay").arg(&file));
        assert!(matches!(server.put("/v1/aggregates/monthly", &definition()).0, 201 | 202));
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let cells = answered_cells(&server.get_ok("/v1/aggregates/monthly/data?limit=100000"));
            if cells == history.cells() {
                break;
            }
            assert!(Instant::now() < deadline, "seed {seed}: {cells:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_with_its_place_and_leaves_no_half_transaction() {
    let settings =
        Settings { schema: false, precise: false, unit_ns: 1_000, metadata: false, full: false, keyed: false };
    let mut history = history(1, settings, 0);
    let directory = tempfile::tempdir().unwrap();
    let (data, described, server) = begin(directory.path(), settings);
    post(&server, &history.lines, false);
    let snapshot = history.lines.len();
    history.transact();
    let second = history.lines.len();
    history.transact();
    let mut lines = history.lines[snapshot..].to_vec();
    let last = lines.len() - 1;
    lines[last]["after"]["amount"] = json!(5.01);
    let (status, problem) = server.try_post(EVENTS, &body(&lines, false)).unwrap();
    assert_eq!((status, problem["code"].as_str()), (422, Some("inexact_decimal")), "{problem}");
    assert_eq!(problem["errors"][0]["line"], last + 1);
    assert_eq!(problem["errors"][0]["pointer"], "/after/amount");
    assert!(problem["hint"].as_str().unwrap().contains("decimal.handling.mode"), "{problem}");
    // The transaction before it was complete and is taken, its own is not.
    assert_eq!(problem["taken"]["accepted"], second - snapshot, "{problem}");
    let answer = post(&server, &history.lines[snapshot..], true);
    assert_eq!(answer["duplicates"], second - snapshot, "{answer}");
    let path = format!("/v1/aggregates/monthly/data?limit=100000&min_lsn={}&wait=20s", answer["lsn"].as_str().unwrap());
    assert_eq!(answered_cells(&server.get_ok(&path)), history.cells());

    for (change, status, code) in [
        (json!({"schema": "public", "table": "refunds"}), 422, "unknown_table"),
        (json!({"connector": "mysql"}), 422, "not_postgres"),
        (json!({"sequence": null}), 422, "bad_position"),
    ] {
        let mut line = history.lines[second].clone();
        line["source"].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let (answered, problem) = server.try_post(EVENTS, &body(&[line], false)).unwrap();
        assert_eq!((answered, problem["code"].as_str()), (status, Some(code)), "{problem}");
    }
    for (text, status, code) in [("{\"op\":", 400, "malformed_json"), ("{\"id\":1}", 422, "not_an_envelope")] {
        let (answered, problem) = server.try_post(EVENTS, text.as_bytes()).unwrap();
        assert_eq!((answered, problem["code"].as_str()), (status, Some(code)), "{problem}");
    }
    let (answered, problem) = server.try_post(EVENTS, &vec![b' '; 9 << 20]).unwrap();
    assert_eq!((answered, problem["code"].as_str()), (413, Some("body_too_large")), "{problem}");
    assert_eq!(server.try_post("/v1/sources/postgres/events", b"").unwrap().0, 404);
    assert_eq!(answered_cells(&server.get_ok(&path)), history.cells());

    // Another description is another source; without its journal the data is not complete.
    assert!(server.terminate().success());
    let mut other = tables();
    other[0]["name"] = json!("orders");
    let others = directory.path().join("others.json");
    std::fs::write(&others, json!({"tables": other}).to_string()).unwrap();
    assert_eq!(halted(&start(&data, &others, 0)), "source_changed");
    std::fs::rename(data.join("events"), directory.path().join("away")).unwrap();
    assert_eq!(halted(&start(&data, &described, 0)), "journal_damaged");
    std::fs::remove_dir_all(data.join("events")).unwrap();
    std::fs::rename(directory.path().join("away"), data.join("events")).unwrap();
    let server = start(&data, &described, 1);
    assert_eq!(answered_cells(&server.get_ok("/v1/aggregates/monthly/data?limit=100000")), history.cells());
}

#[test]
fn a_promoted_standby_that_lacked_transactions_halts_the_source() {
    let settings =
        Settings { schema: false, precise: false, unit_ns: 1_000, metadata: false, full: false, keyed: false };
    let mut history = history(3, settings, 5);
    let mut promoted = history.clone();
    (0..3).for_each(|_| history.transact());
    let directory = tempfile::tempdir().unwrap();
    let (data, described, server) = begin(directory.path(), settings);
    post(&server, &history.lines, false);
    post(&server, &history.lines, false);
    // What Debezium sends again is known. Then comes what the standby did instead of the last three.
    let known = promoted.lines.len() - 4;
    promoted.committed_us = history.committed_us + 60_000_000;
    promoted.rng = ChaCha8Rng::seed_from_u64(4);
    promoted.transact();
    let (status, problem) = server.try_post(EVENTS, &body(&promoted.lines[known..], false)).unwrap();
    assert_eq!((status, problem["code"].as_str()), (422, Some("events_diverged")), "{problem}");
    assert_eq!((&problem["errors"][0]["line"], &problem["taken"]["accepted"]), (&json!(5), &json!(0)), "{problem}");
    assert!(problem["hint"].as_str().unwrap().contains("--data"), "{problem}");
    // Which of the totals are still true, nobody tells; nor does the next start.
    assert_eq!(halted(&server), "events_diverged");
    let path = "/v1/aggregates/monthly/data?limit=100000";
    assert_eq!(server.get(path).0, 503);
    assert!(server.terminate().success());
    let server = start(&data, &described, 1);
    assert_eq!(halted(&server), "events_diverged");
    assert_eq!(server.get(path).0, 503);
    let (status, problem) = server.try_post(EVENTS, &body(&history.lines, false)).unwrap();
    assert_eq!((status, problem["code"].as_str()), (503, Some("events_diverged")), "{problem}");
}

/// What a TRUNCATE that is not told (`skipped.operations=t`, the connector's default) leads to, or an event that was dropped.
#[test]
fn a_row_that_appears_where_one_is_already_halts_its_table() {
    let settings =
        Settings { schema: false, precise: false, unit_ns: 1_000, metadata: false, full: false, keyed: false };
    let mut history = history(5, settings, 0);
    let directory = tempfile::tempdir().unwrap();
    let (_, _, server) = begin(directory.path(), settings);
    let (id, row) = history.rows.first_key_value().map(|(id, row)| (*id, row.clone())).unwrap();
    let after = history.after(id, &row);
    history.transaction += 1;
    let (commit, lsn) = (history.log, history.log + 0x100);
    history.commit = Some(commit);
    let again = history.line("c", Value::Null, after, lsn, "false");
    post(&server, &history.lines, false);
    assert_eq!(answered_cells(&server.get_ok("/v1/aggregates/monthly/data?limit=100000")), history.cells());
    let lsn = post(&server, &[again], false)["lsn"].as_str().unwrap().to_owned();
    let (status, problem) = server.get(&format!("/v1/aggregates/monthly/data?min_lsn={lsn}&wait=20s"));
    assert_eq!((status, problem["code"].as_str()), (503, Some("row_is_there")), "{problem}");
    assert!(problem["hint"].as_str().unwrap().contains("--data NEWDIR"), "{problem}");
    // Nobody can be asked for the rows, and that is said at once.
    let headers = [("content-type", "application/json")];
    let asked = Instant::now();
    let reply =
        server.exchange("POST", "/v1/sources/events/tables", &headers, br#"{"table":"public.payments"}"#).unwrap();
    assert!(reply.status == 422 && reply.text.contains("tables_fixed"), "{}", reply.text);
    assert!(asked.elapsed() < Duration::from_secs(20));
    // What is refused is to be seen by others than who sent it.
    let mut wrong = history.lines[0].clone();
    wrong["after"]["id"] = json!("a secret");
    assert_eq!(server.try_post(EVENTS, &body(&[wrong], false)).unwrap().0, 422);
    let source = server.get_ok("/v1/sources/events");
    assert_eq!(source["checks"][0]["outcome"], "failed", "{source}");
    assert!(source["checks"][0]["message"].as_str().unwrap().contains("value_mismatch"), "{source}");
    assert!(!source.to_string().contains("a secret"), "{source}");
    assert!(!server.log().concat().contains("a secret"));
}

/// The code of a halted source.
fn halted(server: &Server) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (_, source) = server.get("/v1/sources/events");
        if source["state"] == "halted" {
            return source["code"].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < deadline, "{source}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
