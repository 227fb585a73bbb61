//! Registration in SQL and JSON against a real table: the statements of the LeanXcale guide as they stand there, dates that
//! are integers, measures with filters of their own, previews, and a directory of definitions applied.
//!
//! What a description prints as SQL is run in Postgres and has to give, row by row, what the aggregate answers.

use std::collections::BTreeSet;

use connectors::postgres::throwaway::ThrowawayPostgres;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::database::Database;
use crate::support::server::{Server, tidemark};
use crate::support::sql;

/// No further one is registered; those that are there go on, are built anew, and make room when they are dropped.
#[test]
fn there_are_as_many_aggregates_as_there_may_be() {
    let database = Database::start(&[], "CREATE TABLE payments (id bigint PRIMARY KEY, amount numeric(12,2))");
    let data = tempfile::tempdir().unwrap();
    let start =
        |max: &str| Server::start(data.path(), &database.url(), &["public.payments"], &["--max-aggregates", max]);
    let mut count = json!({"table": "payments", "measures": [{"name": "n", "count": "*"}]});
    let server = start("2");
    server.register("one", &count);
    server.register("two", &count);
    let refused = |server: &Server, name: &str| {
        let (status, body) = server.put(&format!("/v1/aggregates/{name}"), &count);
        assert_eq!((status, body["code"].as_str()), (422, Some("too_many_aggregates")), "{body}");
        assert!(body["hint"].as_str().unwrap().contains("--max-aggregates"), "{body}");
    };
    refused(&server, "three");
    assert_eq!(server.put("/v1/aggregates/one", &count).0, 200);
    assert_eq!(server.delete("/v1/aggregates/two").unwrap().0, 204);
    server.register("three", &count);
    assert!(server.terminate().success());

    let server = start("1");
    for name in ["one", "three"] {
        server.get_ok(&format!("/v1/aggregates/{name}/data"));
    }
    refused(&server, "two");
    count["measures"][0]["name"] = json!("payments");
    let (status, body) = server.put("/v1/aggregates/one?on_change=rebuild", &count);
    assert_eq!(status, 202, "{body}");
}

struct Registry {
    server: Server,
    client: Client,
    runtime: tokio::runtime::Runtime,
    _data: tempfile::TempDir,
    _postgres: ThrowawayPostgres,
}

impl Registry {
    fn start(schema: &str, tables: &[&str]) -> Registry {
        let postgres = sql::postgres(&[]);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(sql::connect(&postgres.url()));
        runtime.block_on(sql::run(&client, &format!("SET TimeZone = 'UTC'; {schema}")));
        let data = tempfile::tempdir().unwrap();
        let server = Server::start(data.path(), &postgres.url(), tables, &[]);
        server.get_ok("/readyz");
        Registry { server, client, runtime, _data: data, _postgres: postgres }
    }

    fn sql(&self, statements: &str) {
        self.runtime.block_on(sql::run(&self.client, statements));
    }

    fn rows(&self, query: &str) -> Vec<Vec<Option<String>>> {
        self.runtime.block_on(sql::rows(&self.client, query))
    }

    fn send(&self, method: &str, path: &str, statement: &str) -> (u16, Value) {
        let headers = [("content-type", "application/sql")];
        let reply = self.server.exchange(method, path, &headers, statement.as_bytes()).unwrap();
        (reply.status, serde_json::from_str(&reply.text).unwrap_or_default())
    }

    fn register(&self, name: &str, statement: &str) -> Value {
        let (status, body) = self.send("PUT", &format!("/v1/aggregates/{name}"), statement);
        assert_eq!(status, 202, "{statement}: {body}");
        body
    }

    fn refuse(&self, name: &str, statement: &str, code: &str) -> Value {
        let (status, body) = self.send("PUT", &format!("/v1/aggregates/{name}"), statement);
        assert_eq!((status, body["code"].as_str()), (422, Some(code)), "{statement}: {body}");
        assert_eq!(self.server.get(&format!("/v1/aggregates/{name}")).0, 404);
        body
    }

    /// Compares an aggregate with its own SQL, run in Postgres; returns the number of rows.
    fn compare(&self, name: &str) -> usize {
        let lsn = self.runtime.block_on(sql::value(&self.client, "SELECT pg_current_wal_lsn()"));
        let described = self.server.get_ok(&format!("/v1/aggregates/{name}"));
        let statement = described["sql"].as_str().unwrap();
        let answer = self.server.get_ok(&format!("/v1/aggregates/{name}/data?min_lsn={lsn}&wait=10s"));
        let columns = answer["columns"].as_array().unwrap();
        let columns: Vec<&Value> = columns.iter().filter(|column| column["role"] != "flag").collect();
        let text = |column: &Value, value: &Value| match (column["role"].as_str(), value) {
            (_, Value::Null) => None,
            (Some("time"), Value::String(time)) => {
                Some(chrono::DateTime::parse_from_rfc3339(time).unwrap().timestamp().to_string())
            }
            (_, Value::String(text)) => Some(text.clone()),
            (_, number) if column["type"] == "float64" => Some(number.as_f64().unwrap().to_string()),
            (_, other) => Some(other.to_string()),
        };
        let answered: BTreeSet<Vec<Option<String>>> = answer["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| columns.iter().map(|column| text(column, &row[column["name"].as_str().unwrap()])).collect())
            .collect();
        let wanted: Vec<String> = columns
            .iter()
            .map(|column| match column["role"].as_str() {
                Some("time") => "trunc(extract(epoch from q.time))::bigint".to_owned(),
                _ => format!("q.\"{}\"", column["name"].as_str().unwrap()),
            })
            .collect();
        let select = statement[statement.find(" AS SELECT ").unwrap() + 4..].trim_end_matches(';');
        let query = format!("SELECT {} FROM ({select}) AS q", wanted.join(", "));
        let expected: BTreeSet<Vec<Option<String>>> = self.rows(&query).into_iter().collect();
        assert!(!expected.is_empty(), "{name}");
        let differ: Vec<_> = answered.symmetric_difference(&expected).take(6).collect();
        assert!(differ.is_empty(), "{name}: {statement}\n{differ:#?}");
        // What is printed is the same registration.
        let (status, body) = self.send("PUT", &format!("/v1/aggregates/{name}"), statement);
        assert_eq!(status, 200, "{statement}: {body}");
        expected.len()
    }
}

/// Whoever pastes what a description prints has a zone of their own; the totals are those of the server all the same, and what is
/// registered again with it is the same.
#[test]
fn what_is_printed_gives_the_same_in_every_zone() {
    let registry = Registry::start(
        "CREATE TABLE payments (id bigint PRIMARY KEY, at timestamptz, local timestamp, amount numeric(14,2));
         INSERT INTO payments SELECT i, t, t AT TIME ZONE 'UTC', i FROM (
           SELECT i, timestamptz '2025-12-30Z' + i * interval '1 hour' AS t FROM generate_series(1, 200) AS i) AS rows;",
        &["public.payments"],
    );
    let statement =
        "CREATE MATERIALIZED VIEW sold AS SELECT date_trunc('month', at, 'UTC') AS time, sum(amount) AS amount,
        count(*) FILTER (WHERE at < timestamp '2026-01-02 12:00') AS early,
        count(*) FILTER (WHERE local >= timestamptz '2026-01-01 00:00:00+02') AS late
        FROM payments WHERE at >= '2026-01-01' AND at NOT IN (date '2026-01-03') GROUP BY 1";
    registry.register("sold", statement);
    for zone in ["UTC", "Asia/Tokyo", "America/New_York"] {
        registry.sql(&format!("SET TimeZone = '{zone}'"));
        assert_eq!(registry.compare("sold"), 1, "{zone}");
    }
    let (status, body) = registry.send("PUT", "/v1/aggregates/sold", statement);
    assert_eq!(status, 200, "as it was written first: {body}");
    let (status, preview) = registry.send("POST", "/v1/aggregates:preview?name=sold", statement);
    assert_eq!((status, &preview["registered"]["state"]), (200, &json!("same")), "{preview}");
}

const PAYMENTS: &str = "src_acct varchar, dst_acct varchar, amount double precision, PRIMARY KEY (pmt_id";

/// Sections 1.4 and 1.7. Two of its statements do not say what the text around them means; they are told so, with the
/// statement that does.
#[test]
fn the_guides_statements() {
    let rows = |table: &str, time: &str| {
        format!(
            "INSERT INTO {table} SELECT i, {time}, 'ES' || i % 7, 'ES' || i % 5, (i * 7919 % 40003) * 0.25
             FROM (SELECT i, timestamp '2021-11-20' + i * interval '7 hours 13 minutes' AS t FROM generate_series(1, 3000) AS i) AS s;"
        )
    };
    let registry = Registry::start(
        &format!(
            "CREATE TABLE payments5 (pmt_id bigint, pmt_ts timestamp, {PAYMENTS}));
             CREATE TABLE payments1 (pmt_id bigint, pmt_ts timestamp, {PAYMENTS}, pmt_ts));
             CREATE TABLE payments2 (pmt_id bigint, pmt_ts date, {PAYMENTS}, pmt_ts));
             CREATE TABLE payments3 (pmt_id bigint, pmt_ts bigint, {PAYMENTS}, pmt_ts));
             {} {} {} {}",
            rows("payments5", "t"),
            rows("payments1", "t"),
            rows("payments2", "t::date"),
            rows("payments3", "to_char(t, 'DDMMYY')::bigint")
        ),
        &["payments1", "payments2", "payments3", "payments5"],
    );
    let body = registry.register(
        "payments5_oa",
        "CREATE ONLINE AGGREGATE PAYMENTS5_OA AS SUM(amount) AS amount FROM payments5
GROUP BY EXTRACT(YEAR FROM pmt_ts) AS y,
EXTRACT(MONTH FROM pmt_ts) AS m,
dst_acct;",
    );
    let codes = |body: &Value| {
        let warnings = body["warnings"].as_array().unwrap();
        warnings.iter().map(|warning| warning["code"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(codes(&body), ["timezone_assumed", "sum_of_doubles", "time_is_one_column"]);
    assert!(registry.compare("payments5_oa") > 100);

    let body = registry.register(
        "payments1_oa",
        "CREATE ONLINE AGGREGATE PAYMENTS1_OA AS SUM(amount), COUNT(*) FROM PAYMENTS1
GROUP BY CTUMBLE(pmt_ts, INTERVAL '1' day, TIMESTAMP '1970-01-01 00:00:00') AS pmt_day
PARTITION BY DIMENSION pmt_day EVERY INTERVAL '1' month;",
    );
    assert!(codes(&body).contains(&"partition_not_needed".to_owned()), "{body}");
    assert!(registry.compare("payments1_oa") > 800);
    let months = registry.server.get_ok("/v1/aggregates/payments1_oa/data?granularity=month");
    assert_eq!(months["data"].as_array().unwrap().len(), 31);

    let by_month = "CREATE ONLINE AGGREGATE PAYMENTS2_OA AS SUM(amount), COUNT(*)
FROM PAYMENTS2
GROUP BY EXTRACT(MONTH FROM pmt_ts) AS pmt_month;";
    let body = registry.refuse("payments2_oa", by_month, "month_of_year");
    assert_eq!(body["errors"][0]["line"], 3, "{body}");
    let excerpt = body["errors"][0]["excerpt"].as_str().unwrap();
    assert_eq!(excerpt, "GROUP BY EXTRACT(MONTH FROM pmt_ts) AS pmt_month;\n         ^", "{body}");
    assert!(body["hint"].as_str().unwrap().contains("date_trunc('month', pmt_ts)"), "{body}");
    registry.register("payments2_oa", &by_month.replace("EXTRACT(MONTH FROM pmt_ts)", "date_trunc('month', pmt_ts)"));
    assert_eq!(registry.compare("payments2_oa"), 31);

    // The day would stay and the year go: this is not a month of dates as DDMMYY.
    let encoded = "CREATE ONLINE AGGREGATE PAYMENTS3_OA AS SUM(amount), COUNT(*) FROM PAYMENTS3
GROUP BY pmt_ts - mod(pmt_ts, 100) AS pmt_month";
    let body = registry.refuse("payments3_oa", encoded, "codec_needed");
    assert!(body["hint"].as_str().unwrap().contains("ddmmyy (2021-11-2"), "{body}");
    let body = registry.refuse("payments3_oa", &format!("{encoded} WITH (codec = 'ddmmyy')"), "month_of_year");
    let hint = body["hint"].as_str().unwrap();
    let repaired = hint.strip_prefix("write ").unwrap();
    registry.register("payments3_oa", &encoded.replace("pmt_ts - mod(pmt_ts, 100)", repaired));
    assert_eq!(registry.compare("payments3_oa"), 31);

    // They follow the table.
    for table in ["payments1", "payments2", "payments3", "payments5"] {
        registry.sql(&format!(
            "UPDATE {table} SET amount = amount + 1, dst_acct = 'ES9' WHERE pmt_id % 3 = 0; DELETE FROM {table} WHERE pmt_id % 7 = 0"
        ));
        registry.compare(&format!("{table}_oa"));
    }
}

/// Each codec against Postgres' reading of the same numbers, with filters of measures, while the table changes.
#[test]
fn integers_that_are_dates_and_measures_with_filters() {
    let registry = Registry::start(
        "CREATE TABLE t (id bigint PRIMARY KEY, ymd int, ymd6 int, dmy int, ym int, es bigint, ems bigint, eus bigint,
           status text, amount numeric(12,2), fee numeric);
         CREATE FUNCTION fill(a int, b int) RETURNS void LANGUAGE sql AS $$
           INSERT INTO t SELECT i, to_char(at, 'YYYYMMDD')::int, to_char(at, 'YYMMDD')::int, to_char(at, 'DDMMYY')::int,
             to_char(at, 'YYYYMM')::int, extract(epoch from at), extract(epoch from at) * 1000, extract(epoch from at) * 1000000,
             (ARRAY['settled', 'failed', NULL])[1 + i % 3], (i * 7919 % 100003) / 100.0, i * 0.001
           FROM (SELECT i, timestamp '1999-12-20 00:00' + i * interval '31 hours' AS at FROM generate_series(a, b) AS i) AS s $$;
         SELECT fill(1, 2000)",
        &["t"],
    );
    let measures = "sum(amount) AS amount, count(*) AS n, sum(amount) FILTER (WHERE status = 'settled') AS settled,
                    count(*) FILTER (WHERE status <> 'settled' OR amount > 500) AS odd, count(status) FILTER (WHERE amount <= 10) AS few,
                    sum(fee::numeric(38,3)) AS fee";
    let times = [
        ("ymd", "date_trunc('month', ymd)", "codec = 'yyyymmdd'"),
        ("ymd6", "date_trunc('week', ymd6)", "codec = 'yymmdd'"),
        ("dmy", "date_trunc('day', dmy)", "codec = 'ddmmyy', rollups = 'month,year'"),
        ("ym", "date_trunc('quarter', ym)", "codec = 'yyyymm'"),
        ("es", "date_trunc('day', es)", "codec = 'epoch_s', timezone = 'Europe/Madrid'"),
        ("ems", "date_trunc('month', ems)", "codec = 'epoch_ms', timezone = 'America/New_York'"),
        ("eus", "date_bin('6 hours', eus, timestamptz '2000-01-01 01:00:00+00')", "codec = 'epoch_us'"),
        ("whole", "date_trunc('year', to_timestamp(es), 'UTC')", "rollups = 'all'"),
    ];
    for (name, time, options) in times {
        registry.register(
            name,
            &format!(
                "CREATE MATERIALIZED VIEW {name} WITH ({options}) AS SELECT {time} AS b, {measures} FROM t WHERE amount <> 3 GROUP BY b"
            ),
        );
    }
    registry.register("total", &format!("CREATE ONLINE AGGREGATE total AS {measures} FROM t"));
    let all = || times.iter().map(|(name, ..)| *name).chain(["total"]);
    assert!(all().map(|name| registry.compare(name)).sum::<usize>() > 3_000);
    registry.sql("BEGIN; SELECT fill(2001, 2300); UPDATE t SET status = 'settled' WHERE id % 5 = 0; DELETE FROM t WHERE id % 11 = 0; COMMIT");
    registry.sql("UPDATE t SET status = NULL, amount = -amount WHERE id % 13 = 0; UPDATE t SET ymd = NULL, es = NULL WHERE id % 17 = 0");
    registry.sql("UPDATE t SET ymd = ymd + 1 WHERE id % 19 = 0 AND ymd % 100 < 28");
    assert!(all().map(|name| registry.compare(name)).sum::<usize>() > 3_000);

    // A question to the table is not answered from a measure that leaves rows out.
    let asked = json!({"table": "t", "measures": ["sum(amount)"], "filter": "amount <> 3"});
    let answer = registry.server.try_post("/v1/query", asked.to_string().as_bytes()).unwrap();
    assert_eq!(answer.0, 200, "{}", answer.1);
    let sum = registry.rows("SELECT sum(amount) FROM t WHERE amount <> 3").remove(0).remove(0);
    assert_eq!(answer.1["data"][0]["sum_amount"].as_str(), sum.as_deref(), "{}", answer.1);

    // What is no date is in no bucket: that aggregate says so and stops, the others go on.
    registry.sql("INSERT INTO t (id, ymd, amount) VALUES (9001, 20261399, 1)");
    let lsn = registry.runtime.block_on(sql::value(&registry.client, "SELECT pg_current_wal_lsn()"));
    registry.server.get_ok(&format!("/v1/aggregates/total/data?min_lsn={lsn}&wait=10s"));
    let (status, body) = registry.server.get("/v1/aggregates/ymd/data");
    assert_eq!((status, body["code"].as_str()), (503, Some("time_misfit")), "{body}");
    assert!(body["detail"].as_str().unwrap().contains("20261399"), "{body}");
    assert!(all().filter(|name| *name != "ymd").map(|name| registry.compare(name)).sum::<usize>() > 3_000);
}

#[test]
fn a_preview_creates_nothing_and_an_applied_directory_is_what_there_is() {
    let registry = Registry::start(
        "CREATE TABLE pay (id bigint PRIMARY KEY, at timestamptz NOT NULL, ymd int, currency text, amount numeric(12,2));
         INSERT INTO pay SELECT i, timestamptz '2020-01-01 UTC' + i * interval '1 hour', 20260100 + i % 40, 'C' || i % 3, i
           FROM generate_series(1, 50000) AS i",
        &["pay"],
    );
    let statement = "CREATE MATERIALIZED VIEW daily WITH (rollups = 'month') AS
      SELECT date_trunc('day', at), sum(amount) AS amount, count(*) AS n FROM pay GROUP BY 1";
    let (status, body) = registry.send("POST", "/v1/aggregates:preview", statement);
    assert_eq!(status, 200, "{body}");
    assert_eq!((&body["name"], &body["registered"]["state"]), (&json!("daily"), &json!("absent")), "{body}");
    assert_eq!(body["warnings"][0]["code"], "sum_across_currencies", "{body}");
    assert_eq!((&body["size"]["rows"], &body["size"]["exact"]), (&json!(50_000), &json!(false)), "{body}");
    let cells = |level: usize| body["size"]["levels"][level]["cells"].as_u64().unwrap();
    let days =
        registry.rows("SELECT count(DISTINCT at::date) FROM pay").remove(0).remove(0).unwrap().parse::<u64>().unwrap();
    assert!(cells(0) > days / 2 && cells(0) < days * 2, "{days} days: {}", body["size"]);
    assert!((60..80).contains(&cells(1)), "{}", body["size"]);
    assert_eq!(body["sample"]["data"].as_array().unwrap().len(), 20, "{body}");
    assert!(!body["sample"].to_string().contains("complete"), "{}", body["sample"]);
    // Newest first, of the rows that were looked at.
    assert!(body["sample"]["data"][0]["time"].as_str().unwrap().starts_with("2025-"), "{}", body["sample"]);
    assert_eq!(registry.server.get("/v1/aggregates").1["data"], json!([]));
    // The same in JSON, where numbers are not the dates they are said to be.
    let wrong = json!({"table": "pay", "measures": [{"name": "n", "count": "*"}],
        "time": {"column": "ymd", "granularity": "month", "codec": "yyyymmdd"}});
    let (status, body) = registry.server.try_post("/v1/aggregates:preview", wrong.to_string().as_bytes()).unwrap();
    assert_eq!((status, &body["warnings"][0]["code"]), (200, &json!("would_halt")), "{body}");
    let (status, body) = registry.send("POST", "/v1/aggregates:preview?name=other", statement);
    assert_eq!((status, body["code"].as_str()), (422, Some("name_differs")), "{body}");
    // A mistake in a column is found in the statement.
    let (status, body) = registry.send("PUT", "/v1/aggregates/daily", &statement.replace("sum(amount)", "sum(amuont)"));
    assert_eq!((status, body["code"].as_str()), (422, Some("unknown_column")), "{body}");
    assert_eq!((&body["errors"][0]["line"], &body["errors"][0]["column"]), (&json!(2), &json!(37)), "{body}");

    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("daily.sql", statement);
    write("by_currency.json", r#"{"table":"pay","measures":[{"name":"n","count":"*"}],"dimensions":["currency"]}"#);
    let url = format!("http://{}", registry.server.address());
    let apply = |more: &[&str]| {
        let output =
            tidemark().args(["apply", "--server", &url, "-f"]).arg(directory.path()).args(more).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let line = |outcome: &str, name: &str| format!("{outcome:<16} {name}\n");
    let dry = apply(&["--dry-run"]);
    assert_eq!(
        (dry.0, dry.1),
        (0, line("would be created", "by_currency") + &line("would be created", "daily")),
        "{}",
        dry.2
    );
    assert_eq!(registry.server.get("/v1/aggregates").1["data"], json!([]));
    let done = apply(&[]);
    assert_eq!((done.0, done.1), (0, line("created", "by_currency") + &line("created", "daily")), "{}", done.2);
    let again = apply(&["--prune"]);
    assert_eq!((again.0, again.1), (0, line("unchanged", "by_currency") + &line("unchanged", "daily")), "{}", again.2);
    registry.compare("daily");

    // One that differs is left alone, and keeps anything from being pruned; one that is gone is pruned.
    registry.register("stray", "CREATE ONLINE AGGREGATE stray AS COUNT(*) FROM pay");
    write("daily.sql", &statement.replace("count(*) AS n", "count(*) AS rows_"));
    let differs = apply(&["--prune"]);
    assert_eq!(differs.0, 2, "{differs:?}");
    assert!(
        differs.1.contains("differs          daily: another definition") && differs.2.contains("nothing was pruned"),
        "{differs:?}"
    );
    let dry = apply(&["--dry-run"]);
    assert!(dry.0 == 2 && dry.1.contains("daily: it differs in measures"), "{dry:?}");
    let (status, body) = registry.send(
        "PUT",
        "/v1/aggregates/daily",
        &statement.replace("VIEW daily", "VIEW IF NOT EXISTS daily").replace("AS n", "AS m"),
    );
    assert_eq!((status, body["definition"]["measures"][1]["name"].as_str()), (200, Some("n")), "{body}");
    let (status, body) = registry.send("PUT", "/v1/aggregates/daily", &statement.replace("AS n", "AS m"));
    assert_eq!((status, &body["errors"][0]["pointer"]), (409, &json!("/measures")), "{body}");
    write("daily.sql", "CREATE MATERIALIZED VIEW daily AS SELECT sum(amount) FORM pay");
    let broken = apply(&["--prune"]);
    assert!(broken.0 == 2 && broken.1.contains("(line 1, column 59)"), "{broken:?}");
    write("daily.sql", statement);
    std::fs::remove_file(directory.path().join("by_currency.json")).unwrap();
    let pruned = apply(&["--prune"]);
    let expected = line("unchanged", "daily") + &line("pruned", "by_currency") + &line("pruned", "stray");
    assert_eq!((pruned.0, pruned.1), (0, expected), "{}", pruned.2);
    let left = registry.server.get("/v1/aggregates").1;
    assert_eq!(left["data"].as_array().unwrap().len(), 1, "{left}");
    let empty = tempfile::tempdir().unwrap();
    let nothing = tidemark().args(["apply", "--prune", "--server", &url, "-f"]).arg(empty.path()).output().unwrap();
    assert_eq!(nothing.status.code(), Some(2));
    assert_eq!(registry.server.get("/v1/aggregates").1["data"].as_array().unwrap().len(), 1);
}

/// A table that was asked for is no mistake of whoever registers over it, however long Postgres keeps it waiting.
#[test]
fn a_table_that_joins_is_waited_for() {
    let registry = Registry::start(
        "CREATE TABLE t (id int8 PRIMARY KEY, at timestamptz); CREATE TABLE u (id int8 PRIMARY KEY, at timestamptz);
         CREATE TABLE gone (id int8 PRIMARY KEY); INSERT INTO u VALUES (1, '2026-01-01Z')",
        &["t"],
    );
    let ask = |table: &str| {
        let body = json!({"table": table}).to_string();
        let (status, body) = registry.server.try_post("/v1/sources/postgres/tables", body.as_bytes()).unwrap();
        assert_eq!(status, 202, "{body}");
    };
    let monthly = "CREATE MATERIALIZED VIEW over_u AS SELECT date_trunc('month', at, 'UTC') AS m, count(*) AS n FROM u GROUP BY 1";
    registry.refuse("over_u", monthly, "unknown_table");

    // An older transaction goes on: its reading cannot begin.
    let older = registry.runtime.block_on(sql::connect(registry._postgres.url().as_str()));
    registry.runtime.block_on(sql::run(&older, "BEGIN; INSERT INTO t VALUES (1, '2026-01-01Z')"));
    ask("public.u");
    ask("public.gone");
    for (method, path) in [("PUT", "/v1/aggregates/over_u"), ("POST", "/v1/aggregates:preview")] {
        let reply =
            registry.server.exchange(method, path, &[("content-type", "application/sql")], monthly.as_bytes()).unwrap();
        assert!(reply.status == 503 && reply.text.contains("table_joining"), "{}", reply.text);
        assert_eq!(reply.headers["retry-after"], "1", "{}", reply.text);
    }
    let question = json!({"table": "u", "measures": ["count(*)"]}).to_string();
    let (status, body) = registry.server.try_post("/v1/query", question.as_bytes()).unwrap();
    assert_eq!((status, body["code"].as_str()), (503, Some("table_joining")), "{body}");
    // Only that table is waited for.
    registry.register("over_t", "CREATE MATERIALIZED VIEW over_t AS SELECT count(*) AS n FROM t");

    registry.sql("DROP TABLE gone");
    registry.runtime.block_on(sql::run(&older, "COMMIT"));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let until = |statement: &str, path: &str, awaited: u16| loop {
        let (status, body) = registry.send("PUT", path, statement);
        if status == awaited {
            return body;
        }
        assert_eq!((status, body["code"].as_str()), (503, Some("table_joining")), "{body}");
        assert!(std::time::Instant::now() < deadline, "{body}");
    };
    until(monthly, "/v1/aggregates/over_u", 202);
    assert_eq!(registry.compare("over_u"), 1);
    // One that cannot join any more says why, in place of being waited for.
    let over_gone = "CREATE MATERIALIZED VIEW over_gone AS SELECT count(*) AS n FROM gone";
    let refused = until(over_gone, "/v1/aggregates/over_gone", 422);
    assert_eq!(refused["code"], "table_missing", "{refused}");
}
