//! The payments tables of the LeanXcale guide, over HTTP: one aggregate by month and destination account, rolled up to
//! years, and every question of the guide compared cell by cell with Postgres' own GROUP BY. Then what an answer promises
//! besides its cells, and what becomes of a registration.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use connectors::postgres::throwaway::{Stop, ThrowawayPostgres};
use engine::change::Lsn;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::server::Server;
use crate::support::sql;

/// One of the guide's tables.
#[derive(Clone, Copy)]
struct Variant {
    table: &'static str,
    columns: &'static str,
    /// What amounts are multiples of.
    unit: &'static str,
    /// Times may be NULL.
    null_times: bool,
    /// How answers describe the sum.
    sum_type: &'static str,
}

const PAYMENTS: Variant = Variant {
    table: "payments",
    columns: "pmt_id bigint, pmt_ts timestamp, src_acct varchar, dst_acct varchar, amount double precision,
              PRIMARY KEY (pmt_id)",
    unit: "0.25",
    null_times: true,
    sum_type: "float64",
};

const BY_DATE: Variant = Variant {
    table: "payments_by_date",
    columns: "pmt_id bigint, pmt_ts date, src_acct varchar, dst_acct varchar, amount double precision,
              PRIMARY KEY (pmt_id, pmt_ts)",
    unit: "0.25",
    null_times: false,
    sum_type: "float64",
};

const DECIMAL: Variant = Variant {
    table: "payments_decimal",
    columns: "pmt_id bigint, pmt_ts timestamp, src_acct varchar, dst_acct varchar, amount numeric(14,2),
              PRIMARY KEY (pmt_id)",
    unit: "0.01",
    null_times: true,
    sum_type: "decimal",
};

const HISTORY: u32 = 6_000;
/// The account whose amounts doubles cannot add up.
const ODD: &str = "odd";
/// Everybody's, so that an account's name is text and nothing else.
const AWKWARD: &str = "O'Brien, S.L.: 50% & more";

/// A table in a private Postgres, and the real binary following it.
struct Guide {
    variant: Variant,
    server: Option<Server>,
    client: Client,
    runtime: tokio::runtime::Runtime,
    data: tempfile::TempDir,
    postgres: ThrowawayPostgres,
}

/// A question, in Tidemark's words and in Postgres'.
struct Question {
    /// Parameters but `granularity`.
    parameters: String,
    /// Of `date_trunc`, or `all`.
    granularity: &'static str,
    /// The answer has a row per account.
    grouped: bool,
    /// Bounds, inclusive and exclusive.
    range: Option<(&'static str, &'static str)>,
    /// Further condition.
    condition: String,
    /// Order and limit; where there is none, rows are compared by their key.
    order: &'static str,
}

fn question(granularity: &'static str, grouped: bool) -> Question {
    let parameters = if grouped { "" } else { "&group_by=" };
    Question {
        parameters: parameters.to_owned(),
        granularity,
        grouped,
        range: None,
        condition: "true".to_owned(),
        order: "",
    }
}

impl Question {
    fn within(mut self, from: &'static str, to: &'static str) -> Question {
        self.parameters += &format!("&from={from}&to={to}");
        self.range = Some((from, to));
        self
    }

    fn of_account(mut self, account: &str) -> Question {
        let literal = format!("'{}'", account.replace('\'', "''"));
        self.parameters = self.parameters.replace("&group_by=", "") + &format!("&where=dst_acct:{}", escaped(&literal));
        self.condition = format!("dst_acct = {literal}");
        self.grouped = false;
        self
    }

    /// The ten accounts that received most, ties by name.
    fn top_ten(mut self) -> Question {
        self.parameters += "&group_by=dst_acct&order=-amount&limit=10";
        self.order = "ORDER BY sum(amount) DESC NULLS LAST, bucket, dst_acct LIMIT 10";
        self
    }

    fn asked(&self) -> String {
        format!("granularity={}{}", self.granularity, self.parameters)
    }

    /// Time, account, sum, count, complete.
    fn sql(&self, table: &str, commit_time: &str) -> String {
        let (granularity, condition, order) = (self.granularity, &self.condition, self.order);
        // As Postgres writes a whole date.
        let date = |text: &str| format!("timestamp '{text}{}'", &"-01-01"[text.len().saturating_sub(4)..]);
        let bounds = self.range.map(|(from, to)| (date(from), date(to)));
        let range =
            bounds.as_ref().map_or("true".to_owned(), |(from, to)| format!("pmt_ts >= {from} AND pmt_ts < {to}"));
        let inside =
            bounds.map_or("true".to_owned(), |(from, to)| format!("bucket >= {from} AND bucket + {{length}} <= {to}"));
        let length = match granularity {
            "quarter" => "interval '3 months'".to_owned(),
            other => format!("interval '1 {other}'"),
        };
        let now = format!("timestamptz '{commit_time}' AT TIME ZONE 'UTC'");
        let (bucket, time, complete) = match granularity {
            "all" => ("NULL::timestamp".to_owned(), "NULL".to_owned(), "NULL".to_owned()),
            _ => (
                format!("date_trunc('{granularity}', pmt_ts::timestamp)"),
                "CASE WHEN isfinite(bucket) THEN to_char(bucket, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') ELSE bucket::text END"
                    .to_owned(),
                format!("coalesce(bucket + {{length}} <= {now} AND {inside}, false)"),
            ),
        };
        let complete = complete.replace("{length}", &length);
        let (account, by) = if self.grouped { ("dst_acct", "bucket, dst_acct") } else { ("NULL", "bucket") };
        format!(
            "SELECT {time}, {account}, sum(amount), count(*), {complete}
             FROM (SELECT {bucket} AS bucket, dst_acct, amount FROM {table} WHERE {condition} AND {range}) AS payments
             GROUP BY {by} {order}"
        )
    }
}

/// One row of an answer: its key, and everything else in words.
type Cell = ((Option<String>, Option<String>), (Option<String>, String, Option<bool>));

/// Sums as text; a double as Rust writes it, so that equal doubles are equal text.
fn normal(sum: Option<&str>, double: bool) -> Option<String> {
    let sum = sum?;
    Some(if double { (sum.parse::<f64>().unwrap() + 0.0).to_string() } else { sum.to_owned() })
}

/// Everything but letters and digits percent-encoded.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

impl Guide {
    /// A table with its history, and Tidemark over it.
    fn start(variant: Variant) -> Guide {
        let postgres = sql::postgres(&[]);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(sql::connect(&postgres.url()));
        let data = tempfile::tempdir().unwrap();
        let mut guide = Guide { variant, server: None, client, runtime, data, postgres };
        guide.sql(&format!("CREATE TABLE {} ({})", variant.table, variant.columns));
        guide.insert(1, HISTORY);
        guide.insert_edges();
        guide.restart();
        guide
    }

    fn restart(&mut self) {
        self.server = Some(Server::start(self.data.path(), &self.postgres.url(), &[self.variant.table], &[]));
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    fn sql(&self, statements: &str) {
        self.runtime.block_on(sql::run(&self.client, statements));
    }

    fn rows(&self, query: &str) -> Vec<Vec<Option<String>>> {
        self.runtime.block_on(sql::rows(&self.client, query))
    }

    fn value(&self, query: &str) -> String {
        self.runtime.block_on(sql::value(&self.client, query))
    }

    /// Payments from 2020 to 2026, the same ones each time.
    fn insert(&self, from: u32, to: u32) {
        let Variant { table, unit, .. } = self.variant;
        let awkward = AWKWARD.replace('\'', "''");
        self.sql(&format!(
            "INSERT INTO {table}
             SELECT i, timestamp '2020-01-01' + (i * 104417213 % 220924800) * interval '1 second', 'ES' || i % 11,
                    CASE i % 97 WHEN 0 THEN '{awkward}' WHEN 1 THEN '' WHEN 2 THEN 'Łódź 資金' WHEN 3 THEN NULL
                                ELSE 'ES' || lpad((i * 31 % 40)::text, 2, '0') END,
                    CASE WHEN i % 89 <> 0 THEN (i * 7919 % 400003 - 150000) * {unit} END
             FROM generate_series({from}::bigint, {to}) AS i"
        ));
    }

    /// The first and last instants of buckets, leap days, no time, no amount, no end.
    fn insert_edges(&self) {
        let Variant { table, unit, null_times, .. } = self.variant;
        let mut times = vec![
            "2020-01-01 00:00:00",
            "2020-12-31 23:59:59.999999",
            "2021-01-01 00:00:00",
            "2022-12-31 23:59:59.999999",
            "2023-01-01 00:00:00",
            "2024-02-29 12:00:00",
            "2024-12-31 23:59:59.999999",
            "2025-01-01 00:00:00",
            "2026-12-31 23:59:59.999999",
            "infinity",
        ];
        let rows = times.iter().enumerate();
        let mut rows: Vec<String> = rows.map(|(at, time)| format!("({at}, '{time}', 'edge', {unit} * {at})")).collect();
        times.push("2022-07-01 00:00:00");
        rows.push("(20, '2022-07-01 00:00:00', 'no amount', NULL)".to_owned());
        if null_times {
            rows.push(format!("(21, NULL, 'edge', {unit}), (22, NULL, NULL, NULL)"));
        }
        self.sql(&format!(
            "INSERT INTO {table} (pmt_id, pmt_ts, dst_acct, amount)
             SELECT 9000000 + id, time::timestamp, account, amount FROM (VALUES {}) AS edges (id, time, account, amount)",
            rows.join(", ")
        ));
    }

    /// What an application does to such a table.
    fn write(&self, round: u32) {
        let Variant { table, unit, .. } = self.variant;
        let first = 100_000 * round;
        self.sql(&format!("BEGIN; UPDATE {table} SET amount = amount + {unit} * 3 WHERE pmt_id % 17 = {round}"));
        self.insert(first, first + 500);
        self.sql("COMMIT");
        for statement in [
            format!(
                "UPDATE {table} SET dst_acct = 'ES07' WHERE pmt_id % 23 = {round} AND dst_acct IS DISTINCT FROM '{ODD}'"
            ),
            format!("UPDATE {table} SET pmt_ts = pmt_ts + interval '40 days' WHERE pmt_id % 29 = {round}"),
            format!("UPDATE {table} SET src_acct = 'nobody asks' WHERE pmt_id % 31 = {round}"),
            format!("UPDATE {table} SET pmt_id = pmt_id + 10000000 WHERE pmt_id % 37 = {round}"),
            format!("UPDATE {table} SET amount = NULL WHERE pmt_id % 101 = {round}"),
            format!("DELETE FROM {table} WHERE pmt_id % 13 = {round}"),
            format!("BEGIN; DELETE FROM {table}; ROLLBACK"),
            format!(
                "BEGIN; INSERT INTO {table} VALUES (5, '2021-05-05', 'a', 'gone', 1) ON CONFLICT DO NOTHING;
                 DELETE FROM {table} WHERE dst_acct = 'gone'; COMMIT"
            ),
        ] {
            self.sql(&statement);
        }
    }

    /// The path of the aggregate.
    fn path(&self) -> String {
        format!("/v1/aggregates/{}_by_month", self.variant.table)
    }

    fn definition(&self) -> Value {
        json!({
            "table": self.variant.table,
            "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}],
            "dimensions": ["dst_acct"],
            "time": {"column": "pmt_ts", "granularity": "month"},
            "rollups": ["year"],
        })
    }

    fn register(&self) {
        let (status, body) = self.server().put(&self.path(), &self.definition());
        assert_eq!(status, 202, "{body}");
        assert!(matches!(body["state"].as_str(), Some("building" | "live")), "{body}");
    }

    fn lsn(&self) -> Lsn {
        self.value("SELECT pg_current_wal_lsn()").parse().unwrap()
    }

    /// An answer that shows everything written so far.
    fn ask(&self, parameters: &str) -> Value {
        let lsn = self.lsn();
        let body = self.server().get_ok(&format!("{}/data?{parameters}&min_lsn={lsn}&wait=10s", self.path()));
        let as_of: Lsn = body["as_of"]["lsn"].as_str().unwrap().parse().unwrap();
        assert!(as_of >= lsn, "{parameters}: asked for {lsn}: {}", body["as_of"]);
        // Between the snapshot and the stream there is a moment in which an answer is no worse, but says that it does not
        // follow upstream just now.
        let warned = body["warnings"].as_array().unwrap().iter().any(|one| one["code"] == "source_not_streaming");
        assert_eq!(warned, body["as_of"]["state"] != "live", "{parameters}: {} {}", body["as_of"], body["warnings"]);
        body
    }

    /// As [`Guide::ask`], as CSV: serde_json reads doubles to within a digit, CSV is read as text.
    fn ask_csv(&self, parameters: &str) -> Vec<Vec<String>> {
        let path = format!("{}/data.csv?{parameters}&min_lsn={}&wait=10s", self.path(), self.lsn());
        let Value::String(text) = self.server().get_ok(&path) else { panic!("{path} is not CSV") };
        text.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect()
    }

    fn doubles(&self) -> bool {
        self.variant.sum_type == "float64"
    }

    fn cell(&self, question: &Question, row: &Value) -> Cell {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let row = row.as_object().unwrap();
        let timed = question.granularity != "all";
        let names: Vec<&str> = row.keys().map(String::as_str).collect();
        let mut expected = vec!["amount", "n"];
        expected.extend(question.grouped.then_some("dst_acct"));
        expected.extend(["time", "complete"].into_iter().filter(|_| timed));
        expected.sort_unstable();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected, "{}", question.asked());
        let sum = match &row["amount"] {
            Value::Null => None,
            Value::Number(double) => {
                assert!(self.doubles(), "a decimal is not a string: {row:?}");
                normal(Some(&double.to_string()), true)
            }
            Value::String(decimal) => {
                assert!(!self.doubles(), "a double is not a number: {row:?}");
                normal(Some(decimal), false)
            }
            other => panic!("a sum of {other}"),
        };
        let key = (row.get("time").and_then(text), row.get("dst_acct").and_then(text));
        (key, (sum, row["n"].as_u64().unwrap().to_string(), row.get("complete").map(|flag| flag.as_bool().unwrap())))
    }

    /// Compares the answer to one question with Postgres', cell by cell; returns how many cells there were.
    fn compare(&self, question: &Question) -> usize {
        let asked = question.asked();
        let body = self.ask(&asked);
        let sum_column = body["columns"].as_array().unwrap().iter().find(|column| column["name"] == "amount").unwrap();
        assert_eq!(
            (sum_column["type"].as_str(), &sum_column["role"]),
            (Some(self.variant.sum_type), &json!("measure"))
        );
        if !self.doubles() {
            assert_eq!(sum_column["scale"], 2, "{sum_column}");
        }
        assert!(body["page"]["next"].is_null() || asked.contains("limit="), "{asked}");
        let answered: Vec<Cell> = body["data"].as_array().unwrap().iter().map(|row| self.cell(question, row)).collect();
        let query = question.sql(self.variant.table, body["as_of"]["commit_time"].as_str().unwrap());
        let expected: Vec<Cell> = self
            .rows(&query)
            .into_iter()
            .map(|row| {
                let sum = normal(row[2].as_deref(), self.doubles());
                let complete = row[4].as_ref().map(|flag| flag == "t");
                ((row[0].clone(), row[1].clone()), (sum, row[3].clone().unwrap(), complete))
            })
            .collect();
        let table = self.variant.table;
        if !question.order.is_empty() {
            assert_eq!(answered, expected, "{table} {asked}");
            return expected.len();
        }
        let by_key = |cells: Vec<Cell>| {
            let count = cells.len();
            let map: BTreeMap<_, _> = cells.into_iter().collect();
            assert_eq!(map.len(), count, "{table} {asked}: a row twice");
            map
        };
        let (answered, expected) = (by_key(answered), by_key(expected));
        for (key, cell) in &expected {
            assert_eq!(answered.get(key), Some(cell), "{table} {asked}: {key:?}");
        }
        let more: Vec<_> = answered.iter().filter(|(key, _)| !expected.contains_key(key)).collect();
        assert!(more.is_empty(), "{table} {asked}: rows that Postgres does not have: {more:?}");
        expected.len()
    }

    /// Every question of the guide; returns how many cells were compared.
    fn compare_all(&self) -> usize {
        let questions = [
            question("month", true),
            question("month", false),
            question("quarter", true),
            question("year", true),
            question("year", false),
            question("all", true),
            question("all", false),
            question("month", true).within("2023", "2025"),
            question("year", true).within("2023", "2025"),
            question("year", false).within("2023", "2025"),
            question("all", false).within("2023", "2025"),
            question("year", true).within("2022-11", "2025-03"),
            question("month", false).of_account("ES07"),
            question("year", false).of_account(AWKWARD).within("2020", "2027"),
            question("month", false).of_account("").within("2020", "2027"),
            question("all", false).of_account("Łódź 資金"),
            question("month", true).within("2024-03", "2024-04").top_ten(),
            question("year", true).within("2025", "2026").top_ten(),
            question("all", true).top_ten(),
        ];
        let cells = questions.iter().map(|question| {
            let cells = self.compare(question);
            let top = !question.order.is_empty();
            assert!(if top { cells == 10 } else { cells > 0 }, "{}: {cells} rows", question.asked());
            cells
        });
        cells.sum()
    }

    fn terminate(&mut self) {
        let status = self.server.take().unwrap().terminate();
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

/// The exactly rounded sum. A double of ours times 2^62 is whole, and the conversion of an `i128` rounds once.
fn exact_sum(amounts: impl Iterator<Item = f64>) -> f64 {
    let scale = 2f64.powi(62);
    let whole = |amount: f64| {
        assert_eq!((amount * scale).fract(), 0.0, "{amount}");
        (amount * scale) as i128
    };
    amounts.map(whole).sum::<i128>() as f64 / scale
}

impl Guide {
    /// Amounts that doubles cannot add up: each sum must be the exact one, rounded once.
    fn compare_odd(&self, step: &str) {
        let table = self.variant.table;
        for (granularity, grouped) in [("month", false), ("year", false), ("all", false), ("month", true)] {
            let cut = |text: &str| match granularity {
                "month" => text[..7].to_owned(),
                "year" => text[..4].to_owned(),
                _ => String::new(),
            };
            // With `grouped` the account's own sums, without the sums of everybody.
            let (parameters, condition) = if grouped {
                (format!("&where=dst_acct:{ODD}"), format!("dst_acct = '{ODD}'"))
            } else {
                ("&group_by=".to_owned(), "true".to_owned())
            };
            let mut amounts: BTreeMap<String, Vec<f64>> = BTreeMap::new();
            let condition = format!("{condition} AND isfinite(pmt_ts) AND pmt_ts < '2027-01-01'");
            for row in self.rows(&format!("SELECT pmt_ts, amount FROM {table} WHERE {condition}")) {
                let bucket = amounts.entry(cut(row[0].as_ref().unwrap())).or_default();
                bucket.extend(row[1].as_ref().map(|amount| amount.parse::<f64>().unwrap()));
            }
            let expected: BTreeMap<String, f64> =
                amounts.into_iter().map(|(bucket, amounts)| (bucket, exact_sum(amounts.into_iter()))).collect();
            let asked = format!("granularity={granularity}&from=2020&to=2027{parameters}&measures=amount");
            let answered: BTreeMap<String, f64> = self
                .ask_csv(&asked)
                .into_iter()
                .map(|row| match granularity {
                    "all" => (String::new(), row[0].parse().unwrap()),
                    _ => (cut(&row[0]), row[1].parse().unwrap()),
                })
                .collect();
            assert_eq!(answered, expected, "{table}, {step}: {asked}");
        }
    }

    /// An account with cents as doubles and with amounts that swallow them.
    fn odd_account(&self) {
        let table = self.variant.table;
        self.sql(&format!(
            "INSERT INTO {table}
             SELECT 8000000 + i, date '2024-01-15' + (i / 60)::int * 31, 'ES1', '{ODD}',
                    (ARRAY[0.1, 0.1, 1e16, 0.1, 0.3, -0.7, 1e16, 2.2, -1e16, 0.001]::float8[])[1 + i % 10]
             FROM generate_series(0, 239) AS i"
        ));
        // The test would prove nothing if adding one after the other gave the same.
        let naive = self.value(&format!("SELECT sum(amount) FROM {table} WHERE dst_acct = '{ODD}'"));
        let amounts = self.rows(&format!("SELECT amount FROM {table} WHERE dst_acct = '{ODD}'"));
        let exact = exact_sum(amounts.iter().map(|row| row[0].as_ref().unwrap().parse().unwrap()));
        assert_ne!(naive.parse::<f64>().unwrap(), exact);
        self.compare_odd("as inserted");
        self.sql(&format!(
            "UPDATE {table} SET amount = amount / 3
             WHERE dst_acct = '{ODD}' AND pmt_id % 7 = 0 AND abs(amount) BETWEEN 0.09 AND 1e15"
        ));
        self.compare_odd("after updates");
        // What is left after the large amounts went is what the cents alone add up to.
        self.sql(&format!("DELETE FROM {table} WHERE dst_acct = '{ODD}' AND abs(amount) > 1e15"));
        self.compare_odd("after the large amounts went");
    }
}

fn as_in_the_guide(variant: Variant) {
    let started = Instant::now();
    let mut guide = Guide::start(variant);
    guide.register();
    // While it is being filled.
    guide.write(1);
    let mut cells = guide.compare_all();
    guide.write(2);
    cells += guide.compare_all();
    if guide.doubles() {
        guide.odd_account();
    }
    guide.terminate();
    guide.write(3);
    guide.restart();
    if guide.doubles() {
        guide.compare_odd("after a restart");
        guide.sql(&format!("DELETE FROM {} WHERE dst_acct = '{ODD}'", variant.table));
    }
    cells += guide.compare_all();
    assert_eq!(guide.ask("granularity=year")["as_of"]["state"], "live");
    println!("{}: {cells} cells equal, {:?}", variant.table, started.elapsed());
}

#[test]
fn payments_with_doubles() {
    as_in_the_guide(PAYMENTS);
}

#[test]
fn payments_by_date() {
    as_in_the_guide(BY_DATE);
}

#[test]
fn payments_with_decimals() {
    as_in_the_guide(DECIMAL);
}

/// Status and body of a problem, which names its code and is told as one.
fn problem(guide: &Guide, path: &str) -> (u16, Value, Duration) {
    let asked = Instant::now();
    let reply = guide.server().exchange("GET", path, &[], b"").unwrap();
    let took = asked.elapsed();
    assert_eq!(reply.headers["content-type"], "application/problem+json", "{path}: {}", reply.text);
    let body: Value = serde_json::from_str(&reply.text).unwrap();
    assert_eq!(body["status"], reply.status, "{body}");
    assert!(!body["request_id"].as_str().unwrap().is_empty(), "{body}");
    if reply.status == 503 {
        assert!(reply.headers.contains_key("retry-after"), "{body}");
    }
    (reply.status, body, took)
}

#[test]
fn what_an_answer_promises() {
    let guide = Guide::start(DECIMAL);
    guide.register();
    let data = format!("{}/data", guide.path());

    // Pages give the rows of the whole.
    let whole = guide.ask("granularity=month");
    let whole = whole["data"].as_array().unwrap();
    let mut paged = Vec::new();
    let mut cursor = String::new();
    let mut pages = 0;
    loop {
        let page = guide.ask(&format!("granularity=month&limit=700{cursor}"));
        paged.extend(page["data"].as_array().unwrap().iter().cloned());
        pages += 1;
        match page["page"]["next"].as_str() {
            Some(next) => {
                assert_eq!(page["data"].as_array().unwrap().len(), 700);
                cursor = format!("&cursor={next}");
            }
            None => break,
        }
    }
    assert_eq!(pages, whole.len().div_ceil(700));
    assert!(pages > 2);
    assert_eq!(&paged, whole);
    // A cursor belongs to its question.
    let (status, body, _) = problem(&guide, &format!("{data}?granularity=year{cursor}"));
    assert_eq!((status, body["code"].as_str()), (400, Some("bad_cursor")), "{body}");

    // An answer that did not change is not sent again; one that did is.
    let question = format!("{data}?granularity=year&group_by=");
    let first = guide.server().exchange("GET", &question, &[], b"").unwrap();
    let tag = first.headers["etag"].to_str().unwrap().to_owned();
    assert!(first.headers.contains_key("tidemark-lsn") && first.headers.contains_key("tidemark-lag-ms"));
    let again = guide.server().exchange("GET", &question, &[("if-none-match", &tag)], b"").unwrap();
    assert_eq!((again.status, again.text.as_str()), (304, ""));
    assert_eq!(again.headers["etag"].to_str().unwrap(), tag);
    let page = guide.ask("granularity=month&limit=700");
    // Where there are further pages, what was kept leads to those of its commit, which may be gone: another commit's is another
    // answer, also where its rows are the same.
    let tagged = |rest: &str, known: &str| {
        let question = format!("{data}?granularity=month&to=2089{rest}");
        let reply = guide.server().exchange("GET", &question, &[("if-none-match", known)], b"").unwrap();
        (reply.status, reply.headers["etag"].to_str().unwrap().to_owned())
    };
    let (in_pages, whole_one) = (tagged("&limit=700", "").1, tagged("&group_by=", "").1);
    assert_eq!((tagged("&limit=700", &in_pages).0, tagged("&group_by=", &whole_one).0), (304, 304));
    guide.sql("INSERT INTO payments_decimal VALUES (1000000000, '2090-01-01', 'late', 'late', 0)");
    guide.ask("granularity=all");
    assert_eq!((tagged("&limit=700", &in_pages).0, tagged("&group_by=", &whole_one).0), (200, 304));
    guide.sql("DELETE FROM payments_decimal WHERE pmt_id = 1000000000");
    guide.sql("UPDATE payments_decimal SET amount = amount + 1 WHERE pmt_id = 1");
    let newest = guide.ask("granularity=all");
    // A page says of which position it is, also where only a header can, and is refused to who wants a later one.
    let next = &page["page"]["next"];
    let asked =
        json!({"aggregate": guide.path().rsplit('/').next(), "granularity": "month", "limit": 700, "cursor": next});
    let headers = [("content-type", "application/json"), ("accept", "text/csv")];
    let reply = guide.server().exchange("POST", "/v1/query", &headers, asked.to_string().as_bytes()).unwrap();
    assert_eq!((reply.status, reply.headers["tidemark-lsn"].to_str().ok()), (200, page["as_of"]["lsn"].as_str()));
    let (next, lsn) = (next.as_str().unwrap(), newest["as_of"]["lsn"].as_str().unwrap());
    let later = format!("{data}?granularity=month&limit=700&cursor={next}&min_lsn={lsn}");
    let (status, body, _) = problem(&guide, &later);
    assert_eq!((status, body["code"].as_str()), (410, Some("page_expired")), "{body}");
    let changed = guide.server().exchange("GET", &question, &[("if-none-match", &tag)], b"").unwrap();
    assert_eq!(changed.status, 200);
    assert_ne!(changed.text, first.text);
    assert_ne!(changed.headers["etag"].to_str().unwrap(), tag);

    // What would be inexact or was not meant is refused, with the way out.
    for (parameters, status, code, hint) in [
        ("granularity=week", 422, "does_not_nest", "month, year"),
        ("from=2024-03-05&to=2024-05", 422, "range_not_aligned", "2024-03-01T00:00:00Z and 2024-04-01T00:00:00Z"),
        ("to=2024-03-05T12:00:00Z", 422, "range_not_aligned", "2024-04-01T00:00:00Z"),
        ("granularty=year", 400, "unknown_parameter", "did you mean \"granularity\"?"),
        ("granularity=yearly", 400, "bad_parameter", ""),
        ("from=2025&to=2023", 422, "empty_range", "exclusive"),
        ("from=yesterday", 400, "bad_parameter", "2026-03-01"),
        ("where=dst_act:ES01", 422, "unknown_dimension", "did you mean \"dst_acct\"?"),
        ("group_by=src_acct", 422, "unknown_dimension", "dst_acct"),
        ("measures=amonut", 422, "unknown_measure", "did you mean \"amount\"?"),
        ("order=-amuont", 422, "unknown_order", "did you mean \"amount\"?"),
        ("limit=0", 400, "bad_parameter", "page.next"),
        ("limit=10&limit=20", 400, "bad_parameter", ""),
        ("min_lsn=12", 400, "bad_parameter", ""),
        ("wait=forever", 400, "bad_parameter", ""),
        ("min_lsn=FFFFFFFF/0&wait=100ms", 503, "not_yet_visible", "wait="),
        ("min_lsn=FFFFFFFF/0", 503, "not_yet_visible", "wait="),
    ] {
        let (answered, body, took) = problem(&guide, &format!("{data}?{parameters}"));
        assert_eq!((answered, body["code"].as_str()), (status, Some(code)), "{parameters}: {body}");
        assert!(body["hint"].as_str().unwrap_or_default().contains(hint), "{parameters}: {body}");
        assert!(took < Duration::from_secs(3), "{parameters}: {took:?}");
        if status != 503 {
            let parameter = parameters.split('=').next();
            let named = body["errors"][0]["parameter"].as_str();
            assert!(named == parameter || code == "empty_range", "{parameters}: {body}");
        }
        if parameters.contains("wait=100ms") {
            assert!(took >= Duration::from_millis(100), "it did not wait: {took:?}");
        }
    }
    guide.compare_all();
}

#[test]
fn what_becomes_of_a_registration() {
    let mut guide = Guide::start(DECIMAL);
    guide.register();
    let path = guide.path();
    guide.compare(&question("year", true));
    let (status, body) = guide.server().put(&path, &guide.definition());
    assert_eq!(status, 200, "{body}");
    // The schema is the default one: the same definition in other words.
    let mut qualified = guide.definition();
    qualified["table"] = json!("public.payments_decimal");
    assert_eq!(guide.server().put(&path, &qualified).0, 200);

    let mut different = guide.definition();
    different["measures"][0]["name"] = json!("total");
    different["rollups"] = json!(["year", "all"]);
    let (status, body) = guide.server().put(&path, &different);
    assert_eq!((status, body["code"].as_str()), (409, Some("definition_differs")), "{body}");
    let pointers: Vec<&str> =
        body["errors"].as_array().unwrap().iter().map(|part| part["pointer"].as_str().unwrap()).collect();
    assert_eq!(pointers, ["/measures", "/rollups"], "{body}");
    assert!(body["detail"].as_str().unwrap().contains("measures, rollups"), "{body}");
    assert!(body["hint"].as_str().unwrap().contains("DELETE"), "{body}");

    let (status, list) = guide.server().get("/v1/aggregates");
    let names: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!((status, names), (200, vec!["payments_decimal_by_month"]));
    assert_eq!(
        (list["data"][0]["levels"].clone(), &list["data"][0]["state"]),
        (json!(["month", "year"]), &json!("live"))
    );
    let (status, described) = guide.server().get(&path);
    assert_eq!((status, &described["state"]), (200, &json!("live")), "{described}");
    assert_eq!(described["definition"]["dimensions"], json!(["dst_acct"]), "{described}");
    assert_eq!(described["definition"]["measures"], guide.definition()["measures"], "{described}");
    let statement = described["sql"].as_str().unwrap();
    assert!(statement.contains("date_trunc('month'") && statement.contains("dst_acct"), "{statement}");
    assert_eq!(described["links"]["data"], format!("{path}/data"));

    // It is still there after a restart, and answers the same.
    let asked = "granularity=year";
    let before = guide.ask(asked)["data"].clone();
    guide.terminate();
    guide.restart();
    let ready = Instant::now();
    guide.server().get_ok("/readyz");
    assert!(ready.elapsed() < Duration::from_secs(10));
    assert_eq!(guide.server().put(&path, &guide.definition()).0, 200);
    assert_eq!(guide.ask(asked)["data"], before);
    guide.compare_all();

    let (status, _) = guide.server().delete(&path).unwrap();
    assert_eq!(status, 204);
    for gone in [path.clone(), format!("{path}/data?granularity=year")] {
        let (status, body, _) = problem(&guide, &gone);
        assert_eq!((status, body["code"].as_str()), (404, Some("unknown_aggregate")), "{gone}: {body}");
    }
    assert_eq!(guide.server().delete(&path).unwrap().0, 404);
    assert_eq!(guide.server().get("/v1/aggregates").1["data"], json!([]));

    // Dropped stays dropped; the name is free for another definition.
    guide.terminate();
    guide.restart();
    assert_eq!(guide.server().get(&path).0, 404);
    let (status, body) = guide.server().put(&path, &different);
    assert_eq!(status, 202, "{body}");
    let total = guide.ask("granularity=all&group_by=")["data"][0].clone();
    let expected = guide.rows("SELECT sum(amount), count(*) FROM payments_decimal").remove(0);
    assert_eq!(total["total"].as_str(), expected[0].as_deref());
    assert_eq!(total["n"].to_string(), expected[1].clone().unwrap());
    guide.terminate();
}

/// What is registered stays known, whoever is away: "no such aggregate" would send its users to register it again.
#[test]
fn a_registration_is_known_while_postgres_is_away() {
    let mut guide = Guide::start(DECIMAL);
    guide.register();
    let path = guide.path();
    assert_eq!(guide.server().put("/v1/aggregates/another", &guide.definition()).0, 202);
    let before = guide.ask("granularity=year")["data"].clone();
    // Also in the first moments, which are too short to be met each time.
    let mut different = guide.definition();
    different["dimensions"] = json!([]);
    for time in 0..12 {
        guide.terminate();
        guide.restart();
        match time % 3 {
            0 => drop(guide.server().get_ok(&format!("{path}/data?granularity=year"))),
            1 => assert_eq!(guide.server().put(&path, &guide.definition()).0, 200),
            _ => assert_eq!(guide.server().put(&path, &different).0, 409),
        }
    }
    guide.terminate();
    guide.postgres.stop(Stop::Fast);
    guide.restart();
    let mut wrong = Vec::new();
    let mut expect = |what: &str, good: &[u16], (status, body): (u16, Value)| {
        if !good.contains(&status) {
            wrong.push(format!("{what}: {status} {body}"));
        }
        status
    };
    let server = guide.server();
    expect("data", &[503], server.get(&format!("{path}/data?granularity=year")));
    expect("describe", &[200, 503], server.get(&path));
    let (status, list) = server.get("/v1/aggregates");
    let listed = list["data"].as_array().map(Vec::len);
    expect("list", &[200, 503], (if listed == Some(0) { 404 } else { status }, list));
    expect("register the same again", &[200, 503], server.put(&path, &guide.definition()));
    let dropped = expect("drop another", &[204, 503], server.delete("/v1/aggregates/another").unwrap());
    assert!(wrong.is_empty(), "while Postgres is away: {wrong:#?}");
    assert_eq!(guide.server().get("/readyz").0, 503);
    assert_eq!(guide.server().get("/healthz").0, 200);
    guide.postgres.launch().unwrap();
    guide.client = guide.runtime.block_on(sql::connect(&guide.postgres.url()));
    guide.write(1);
    guide.server().get_ok("/readyz");
    guide.compare_all();
    assert_ne!(guide.ask("granularity=year")["data"], before);
    assert_eq!(guide.server().get("/v1/aggregates/another").0, if dropped == 204 { 404 } else { 200 });
    guide.terminate();
}
