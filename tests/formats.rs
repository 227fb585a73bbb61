//! One answer in every format: Arrow, read back by its own reader, and NDJSON say what JSON says, value for value, over all
//! types that a table may group by. What Arrow's types cannot hold is refused, and never a NULL.

use std::collections::HashMap;
use std::io::Cursor;

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::StreamReader;
use arrow_schema::{DataType, SchemaRef, TimeUnit};
use chrono::{DateTime, NaiveDate, NaiveDateTime};
use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::{Reply, Server};

const ARROW: &str = "application/vnd.apache.arrow.stream";

/// Every third or so value of each column is NULL.
const PAYMENTS: &str = "
    CREATE TABLE payments (id bigint PRIMARY KEY, at timestamptz, paid boolean, kind text, shop int, rate numeric(6,3),
                           ratio numeric, fine numeric(60,50), weight float8, token uuid, day date, seen timestamp,
                           booked timestamptz, amount numeric(14,2), units bigint, score float8, large numeric(38,0));
    INSERT INTO payments
    SELECT i,
           CASE WHEN i % 41 > 0 THEN timestamptz '2023-11-20 05:00Z' + i * interval '31 hours' END,
           CASE WHEN i % 3 > 0 THEN i % 2 = 0 END,
           CASE WHEN i % 4 > 0 THEN (ARRAY['', 'card', 'say \"hi\", ü'])[i % 3 + 1] END,
           CASE WHEN i % 5 > 0 THEN i % 7 - 3 END,
           CASE WHEN i % 3 > 0 THEN i % 4 * -1.255 END,
           CASE WHEN i % 4 > 0 THEN i % 3 * 0.000125 END,
           CASE WHEN i % 4 > 0 THEN i % 3 * 1e-50 END,
           CASE i % 5 WHEN 0 THEN NULL WHEN 1 THEN 'NaN' WHEN 2 THEN '-Infinity' ELSE i * 0.1 END,
           CASE WHEN i % 2 > 0 THEN md5((i % 9)::text)::uuid END,
           CASE WHEN i % 3 > 0 THEN date '1899-12-30' + i * 400 END,
           CASE WHEN i % 3 > 0 THEN timestamp '1969-12-31 23:59:59.999999' + i % 4 * interval '1 us' END,
           CASE WHEN i % 4 > 0 THEN timestamptz '2024-03-31 00:30Z' + i % 4 * interval '1 hour' END,
           CASE WHEN i % 6 > 0 THEN i * 1.37 - 300 END, i * 3000000000000, i * 0.1, NULL
    FROM generate_series(1, 500) AS i;
    -- One year later than the rest, so that something can be compared.
    UPDATE payments SET at = at + interval '1 year' WHERE id > 250;
    -- More rows than one batch of a stream holds.
    CREATE TABLE accounts (id int PRIMARY KEY, owner text, balance bigint);
    INSERT INTO accounts SELECT i, 'owner ' || i % 1000, i * 1000 FROM generate_series(1, 40000) AS i;
";

fn serving(database: &Database, data: &std::path::Path) -> Server {
    let server = Server::start(data, &database.url(), &["public.payments", "public.accounts"], &[]);
    let measure = |name: &str| json!({"name": name, "sum": name});
    let counted = json!({"name": "amounts", "count": "amount"});
    let measures = [measure("amount"), measure("units"), measure("score"), json!({"name": "n", "count": "*"}), counted];
    let definition = |dimensions: Value| {
        json!({"table": "payments", "measures": measures, "dimensions": dimensions, "rollups": ["month"],
               "time": {"column": "at", "granularity": "day", "time_zone": "Europe/Madrid"}})
    };
    let every =
        ["paid", "kind", "shop", "rate", "ratio", "fine", "weight", "token", "day", "seen", "booked"].as_slice();
    server.register("every", &definition(json!(every)));
    server.register("by_kind", &definition(json!(["kind"])));
    let accounts = json!({"table": "accounts", "measures": [measure("balance")], "dimensions": ["id", "owner"]});
    server.register("accounts", &accounts);
    server.register("large", &json!({"table": "payments", "measures": [measure("large")], "dimensions": ["kind"]}));
    server
}

/// The schema and the batches of a stream.
fn read(bytes: &[u8]) -> (SchemaRef, Vec<RecordBatch>) {
    let reader = StreamReader::try_new(Cursor::new(bytes), None).unwrap();
    let schema = reader.schema();
    (schema, reader.map(Result::unwrap).collect())
}

/// `-12.5` with so many digits after the point, as one integer.
fn mantissa(text: &str, scale: usize) -> i128 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    assert!(fraction.len() <= scale, "{text} has more than {scale} digits after the point");
    format!("{whole}{fraction:0<scale$}").parse().unwrap()
}

/// Whether a value of JSON is what Arrow holds at a place.
fn same(json: &Value, array: &dyn Array, at: usize) -> bool {
    if json.is_null() || array.is_null(at) {
        return json.is_null() && array.is_null(at);
    }
    let text = json.as_str().unwrap_or_default();
    match array.data_type() {
        DataType::Boolean => json.as_bool() == Some(array.as_boolean().value(at)),
        DataType::Int64 => json.as_i64() == Some(array.as_primitive::<Int64Type>().value(at)),
        DataType::Float64 => {
            let value = array.as_primitive::<Float64Type>().value(at);
            let number = match text {
                "NaN" => return value.is_nan(),
                "Infinity" => f64::INFINITY,
                "-Infinity" => f64::NEG_INFINITY,
                _ => json.as_f64().unwrap(),
            };
            // serde_json reads doubles to within a digit.
            value == number || (value - number).abs() < value.abs() * 1e-15
        }
        DataType::Decimal128(38, scale) => {
            let value = array.as_primitive::<Decimal128Type>().value(at);
            mantissa(text, usize::try_from(*scale).unwrap()) == value
        }
        DataType::Date32 => {
            let day = text.parse::<NaiveDate>().unwrap();
            let value = array.as_primitive::<Date32Type>().value(at);
            day.signed_duration_since(NaiveDate::default()).num_days() == i64::from(value)
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let value = array.as_primitive::<TimestampMicrosecondType>().value(at);
            let us = match zone {
                Some(_) => DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros(),
                None => text.parse::<NaiveDateTime>().unwrap().and_utc().timestamp_micros(),
            };
            us == value
        }
        DataType::Utf8 => text == array.as_string::<i32>().value(at),
        other => panic!("no column is {other}"),
    }
}

/// Holds an answer as Arrow against the same as JSON: columns, values, position. The schema comes back.
fn compare(question: &str, json: &Value, reply: &Reply) -> SchemaRef {
    assert_eq!((reply.status, reply.headers["content-type"].to_str().unwrap()), (200, ARROW), "{question}");
    let (schema, batches) = read(&reply.bytes);
    let columns = json["columns"].as_array().unwrap();
    let names: Vec<&str> = columns.iter().map(|column| column["name"].as_str().unwrap()).collect();
    assert_eq!(schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>(), names, "{question}");
    let rows = json["data"].as_array().unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), rows.len(), "{question}");
    let mut rows = rows.iter();
    for batch in &batches {
        for (at, row) in rows.by_ref().take(batch.num_rows()).enumerate() {
            for (name, array) in names.iter().zip(batch.columns()) {
                assert!(same(&row[*name], array, at), "{question}: {name} of {row} is {:?}", array.slice(at, 1));
            }
        }
    }
    // Asked one after the other: the position may have moved on, with nothing new in it.
    let said = |key: &str| schema.metadata().get(&format!("tidemark.{key}")).map(String::as_str);
    assert_eq!(said("lsn"), Some(reply.headers["tidemark-lsn"].to_str().unwrap()), "{question}");
    if said("lsn") == json["as_of"]["lsn"].as_str() {
        assert_eq!(said("commit_time"), json["as_of"]["commit_time"].as_str(), "{question}");
    }
    let next = json["page"]["next"].as_str();
    assert_eq!(reply.headers.get("tidemark-next-cursor").map(|next| next.to_str().unwrap()), next, "{question}");
    assert_eq!(schema.metadata().get("tidemark.next_cursor").map(String::as_str), next, "{question}");
    schema
}

fn get(server: &Server, path: &str) -> Reply {
    server.exchange("GET", path, &[], b"").unwrap()
}

#[test]
fn every_format_says_the_same() {
    let database = Database::start(&[], PAYMENTS);
    let data = tempfile::tempdir().unwrap();
    let server = serving(&database, data.path());
    let mut rows = 0;
    for (aggregate, question) in [
        ("every", ""),
        ("every", "granularity=month"),
        ("every", "granularity=day&from=2024-03&to=2024-05"),
        ("every", "granularity=all&where=kind:card"),
        ("every", "granularity=month&time_zone=Europe/Madrid&limit=7"),
        ("every", "granularity=all&group_by=rate,ratio,fine"),
        ("by_kind", "granularity=year&measures=avg(amount),sum(amount) as total,count(*)&group_by="),
        ("by_kind", "granularity=all&order=-amount&limit=1&others=true&share=true"),
        ("by_kind", "granularity=month&from=2024&to=2026&compare=P1Y&measures=amount,score,n"),
        ("by_kind", "granularity=month&from=2023&to=2027&group_by=&fill=zero"),
        ("by_kind", "granularity=month&from=2023&to=2027&group_by=&fill=null"),
        ("by_kind", "granularity=month&from=1990&to=1991"),
        ("by_kind", "granularity=all&layout=rows&having=n > 1000"),
        ("accounts", "limit=100000"),
    ] {
        let question = question.replace(' ', "%20").replace('>', "%3E");
        let path = format!("/v1/aggregates/{aggregate}/data");
        let json = server.get_ok(&format!("{path}?{question}"));
        let arrow = get(&server, &format!("{path}.arrow?{question}"));
        let schema = compare(&question, &json, &arrow);
        let accepted = server.exchange("GET", &format!("{path}?{question}"), &[("accept", ARROW)], b"").unwrap();
        compare(&question, &json, &accepted);
        let lines = get(&server, &format!("{path}.ndjson?{question}")).text;
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(&lines, json["data"].as_array().unwrap(), "{question}");
        rows += lines.len();
        let types: HashMap<&str, String> =
            schema.fields().iter().map(|field| (field.name().as_str(), field.data_type().to_string())).collect();
        for (name, data_type) in [
            ("time", "Timestamp(µs, \"Europe/Madrid\")"),
            ("paid", "Boolean"),
            ("kind", "Utf8"),
            ("shop", "Int64"),
            ("rate", "Decimal128(38, 3)"),
            // Digits after the point that nobody declared, and more than there are.
            ("ratio", "Utf8"),
            ("fine", "Utf8"),
            ("weight", "Float64"),
            ("token", "Utf8"),
            ("day", "Date32"),
            ("seen", "Timestamp(µs)"),
            ("booked", "Timestamp(µs, \"Europe/Madrid\")"),
            ("amount", "Decimal128(38, 2)"),
            ("units", "Decimal128(38, 0)"),
            ("avg_amount", "Decimal128(38, 8)"),
            ("share", "Decimal128(38, 6)"),
            ("score", "Float64"),
            ("n", "Int64"),
            ("complete", "Boolean"),
        ] {
            assert_eq!(types.get(name).map_or(data_type, String::as_str), data_type, "{name} of {question}");
        }
    }
    assert!(rows > 41_000, "{rows} rows were compared");

    // A question to the table, and the next page of one.
    let post = |body: &Value, accept: &str| {
        let headers = [("content-type", "application/json"), ("accept", accept)];
        server.exchange("POST", "/v1/query", &headers, body.to_string().as_bytes()).unwrap()
    };
    let mut question = json!({"table": "payments", "measures": ["sum(amount)", "count(*)"], "group_by": ["kind"],
                              "granularity": "month", "time_zone": "Europe/Madrid", "limit": 20});
    loop {
        let json: Value = serde_json::from_str(&post(&question, "application/json").text).unwrap();
        compare("of the table", &json, &post(&question, ARROW));
        let Some(next) = json["page"]["next"].as_str() else { break };
        question["cursor"] = json!(next);
    }
    assert!(question["cursor"].is_string(), "there was one page only");
    let csv = post(&json!({"aggregate": "by_kind", "granularity": "all"}), "text/csv");
    assert!(csv.text.starts_with("kind,amount,units,score,n,amounts\r\n"), "{}", csv.text);
    // Several questions, and an explanation, are JSON whatever is accepted.
    let several = post(&json!({"queries": [{"aggregate": "by_kind"}]}), ARROW);
    assert_eq!((several.status, several.headers["content-type"].to_str().unwrap()), (200, "application/json"));
}

#[test]
fn what_arrow_cannot_hold_is_refused() {
    let database = Database::start(&[], PAYMENTS);
    let data = tempfile::tempdir().unwrap();
    let server = serving(&database, data.path());
    let mut id = 1_000;
    let mut insert = |columns: &str, values: &str| {
        id += 1;
        database.sql(&format!("INSERT INTO payments (id, {columns}) VALUES ({id}, {values})"));
        format!("min_lsn={}&wait=10s", database.value("SELECT pg_current_wal_lsn()"))
    };
    for (columns, values, aggregate, question, without) in [
        ("at", "'infinity'", "by_kind", "granularity=month", "to=2030"),
        ("at", "'-infinity'", "by_kind", "granularity=month", "from=2020"),
        ("at", "'294260-01-01'", "by_kind", "granularity=month", "to=2030"),
        ("at, amount, kind", "'2024-01-01', 'NaN', 'x'", "by_kind", "granularity=all", "where=kind:card"),
        (
            "at, kind, day",
            "'2024-01-01', 'd', 'infinity'",
            "every",
            "granularity=all&group_by=kind,day",
            "where=kind:card",
        ),
        // The largest decimal of 38 digits, and one more.
        ("kind, large", "'full', '99999999999999999999999999999999999999'", "large", "where=kind:'full'", ""),
        ("kind, large", "'full', 1", "large", "", "where=kind:card"),
    ] {
        let seen = insert(columns, values);
        let path = |more: &str| format!("/v1/aggregates/{aggregate}/data.arrow?{question}&{more}&{seen}");
        let refused = get(&server, &path(""));
        if without.is_empty() {
            assert_eq!(refused.status, 200, "{values}: {}", refused.text);
            let (_, batches) = read(&refused.bytes);
            let largest = batches[0].column_by_name("large").unwrap().as_primitive::<Decimal128Type>().value(0);
            assert_eq!(largest, 10i128.pow(38) - 1);
            continue;
        }
        let problem: Value = serde_json::from_str(&refused.text).unwrap();
        assert_eq!((refused.status, problem["code"].as_str()), (422, Some("not_in_arrow")), "{values}: {problem}");
        assert_eq!(server.get_ok(&path("").replace(".arrow", ".json"))["aggregate"], aggregate);
        let rest = get(&server, &path(without));
        assert_eq!(rest.status, 200, "{values} {without}: {}", rest.text);
        database.sql("DELETE FROM payments WHERE id > 1000 AND large IS NULL");
    }
}
