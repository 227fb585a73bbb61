//! The contract holds what is answered: each field that a running server writes has a place in its `/openapi.json`, and what is
//! required there is written. `contract.sh` asks everything that the contract allows; this asks what it leaves out.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::Server;

const TABLES: &str = "
    CREATE TABLE payments (id bigint PRIMARY KEY, account text, rate numeric, created_at timestamptz);
    CREATE TABLE orders (id bigint PRIMARY KEY, amount int4);
    INSERT INTO payments SELECT i, 'ES' || i % 7, i * 0.25, '2026-01-01Z'::timestamptz + i * interval '1 hour' FROM generate_series(1, 500) i;
";

/// A server's contract, and what was found wrong with it.
struct Contract {
    document: Value,
    wrong: Vec<String>,
}

impl Contract {
    /// Holds an answer against what is said of its route.
    fn holds(&mut self, (method, path): (&str, &str), (status, body): (u16, Value)) -> Value {
        let responses = &self.document["paths"][path][method]["responses"];
        let content = &responses[status.to_string()]["content"];
        let schema = ["application/json", "application/problem+json"].map(|kind| &content[kind]["schema"]);
        let schema = schema.into_iter().find(|schema| !schema.is_null()).cloned();
        match schema {
            Some(schema) => self.fits(&schema, &body, &format!("{method} {path} {status}")),
            None => self.wrong.push(format!("{method} {path}: {status} is not there: {body}")),
        }
        body
    }

    fn fits(&mut self, schema: &Value, value: &Value, at: &str) {
        let schema = match schema["$ref"].as_str() {
            Some(shape) => self.document.pointer(&shape[1..]).unwrap_or_else(|| panic!("{at}: no {shape}")).clone(),
            None => schema.clone(),
        };
        if let Some(choices) = schema["oneOf"].as_array() {
            let choice = choices.iter().find(|choice| (choice["type"] == "null") == value.is_null());
            return self.fits(choice.unwrap_or_else(|| panic!("{at}: {value}")), value, at);
        }
        if let Some(known) = schema["enum"].as_array()
            && !known.contains(value)
        {
            self.wrong.push(format!("{at}: {value} is none of {known:?}"));
        }
        match value {
            Value::Object(fields) => {
                let Some(properties) = schema["properties"].as_object() else { return };
                for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    if !fields.contains_key(name) {
                        self.wrong.push(format!("{at}: {name} is required and not there"));
                    }
                }
                for (name, field) in fields {
                    match properties.get(name) {
                        Some(schema) => self.fits(schema, field, &format!("{at}/{name}")),
                        None => self.wrong.push(format!("{at}: nothing is said of {name}")),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.fits(&schema["items"], item, at)),
            _ => {
                let kind = match value {
                    Value::String(_) => "string",
                    Value::Bool(_) => "boolean",
                    Value::Null => "null",
                    other if other.is_f64() => "number",
                    _ => "integer",
                };
                let said = &schema["type"];
                let fits = said.is_null()
                    || said == kind
                    || (said == "number" && kind == "integer")
                    || said.as_array().is_some_and(|kinds| {
                        kinds.iter().any(|said| said == kind || (said == "number" && kind == "integer"))
                    });
                if !fits {
                    self.wrong.push(format!("{at}: {value} is no {said}"));
                }
            }
        }
    }
}

fn until(server: &Server, path: &str, holds: impl Fn(&Value) -> bool) -> (u16, Value) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (status, body) = server.get(path);
        if holds(&body) {
            return (status, body);
        }
        assert!(Instant::now() < deadline, "{path}: {status} {body}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_is_answered_has_a_place_in_the_contract() {
    let database = Database::start(&[], TABLES);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &database.url(), &["payments"], &[]);
    let mut contract = Contract { document: server.get_ok("/openapi.json"), wrong: Vec::new() };
    let post = |path: &str, body: &Value| server.try_post(path, body.to_string().as_bytes()).unwrap();
    let total = |scale: u16| {
        json!({"table": "payments", "dimensions": ["account"], "rollups": ["month"], "drill_through": true,
               "measures": [{"name": "rate", "sum": "rate", "scale": scale}, {"name": "n", "count": "*"}],
               "time": {"column": "created_at", "granularity": "day"}})
    };
    const AGGREGATE: &str = "/v1/aggregates/{name}";
    server.register("total", &total(2));
    contract.holds(("put", AGGREGATE), server.put("/v1/aggregates/total", &total(2)));
    contract.holds(("get", AGGREGATE), server.get("/v1/aggregates/total"));
    contract.holds(("get", "/v1/aggregates"), server.get("/v1/aggregates"));
    contract.holds(("get", "/v1/aggregates/{name}/backfill"), server.get("/v1/aggregates/total/backfill"));
    contract.holds(("get", "/v1/aggregates/{name}/data"), server.get("/v1/aggregates/total/data?granularity=month"));
    let explained = server.get("/v1/aggregates/total/explain?granularity=month&analyze=true");
    let explained = contract.holds(("get", "/v1/aggregates/{name}/explain"), explained);
    assert!(explained["took_us"].is_u64(), "{explained}");
    contract.holds(("get", "/v1/aggregates/{name}/rows"), server.get("/v1/aggregates/total/rows?limit=2"));
    contract.holds(("post", "/v1/aggregates:preview"), post("/v1/aggregates:preview?name=total", &total(3)));
    contract.holds(("post", "/v1/verify"), post("/v1/verify", &json!({})));
    for path in ["/healthz", "/readyz"] {
        contract.holds(("get", path), server.get(path));
    }

    // Refused: with what would have answered, and with the place in a statement.
    let question = json!({"table": "payments", "measures": ["sum(rate)"], "filter": "id > 3"});
    let refused = contract.holds(("post", "/v1/query"), post("/v1/query", &question));
    assert!(refused["why_not"].is_array(), "{refused}");
    // What is suggested can be registered as it is.
    contract.holds(("put", AGGREGATE), server.put("/v1/aggregates/suggested", &refused["suggestion"]));
    let headers = [("content-type", "application/sql")];
    let reply = server.exchange("PUT", "/v1/aggregates/x", &headers, b"CREATE MATERIALIZED VIEW x AS").unwrap();
    let refused =
        contract.holds(("put", AGGREGATE), (reply.status, serde_json::from_str(&reply.text).unwrap_or_default()));
    assert!(refused["errors"][0]["excerpt"].is_string(), "{refused}");
    let reply = server.exchange("GET", "/v1/aggregates", &[("host", "foreign.example")], b"").unwrap();
    let refused = (reply.status, serde_json::from_str(&reply.text).unwrap_or_default());
    assert_eq!(contract.holds(("get", "/v1/aggregates"), refused)["code"], "unknown_host");

    // The source: while it is well, as a table joins, and halted.
    const SOURCE: &str = "/v1/sources/{name}";
    until(&server, "/v1/sources/postgres", |source| !source["checks"].as_array().is_none_or(Vec::is_empty));
    contract.holds(("get", SOURCE), server.get("/v1/sources/postgres"));
    contract.holds(("get", "/v1/sources"), server.get("/v1/sources"));
    let join = post("/v1/sources/postgres/tables", &json!({"table": "public.orders"}));
    assert_eq!(contract.holds(("post", "/v1/sources/{name}/tables"), join)["state"], "reading");

    // An aggregate that halts, and the version beside it.
    database.sql("INSERT INTO payments VALUES (1000, 'ES1', 0.125, '2026-01-01Z')");
    let halted = until(&server, "/v1/aggregates/total", |found| found["state"] == "halted");
    contract.holds(("get", AGGREGATE), halted);
    contract.holds(("get", "/v1/aggregates/{name}/backfill"), server.get("/v1/aggregates/total/backfill"));
    let again = server.put("/v1/aggregates/total?on_change=rebuild", &total(1));
    contract.holds(("put", AGGREGATE), again);
    let beside = until(&server, "/v1/aggregates/total", |found| found["next"]["state"] == "halted");
    contract.holds(("get", AGGREGATE), beside);

    let slot = database.value("SELECT slot_name FROM pg_replication_slots");
    database.sql(&format!("ALTER PUBLICATION {slot} SET (publish = 'insert')"));
    let halted = until(&server, "/v1/sources/postgres", |source| source["state"] == "halted");
    let halted = contract.holds(("get", SOURCE), halted);
    assert!(halted["remedy"].is_string() && halted["unavailable"]["code"].is_string(), "{halted}");
    contract.holds(("get", "/readyz"), server.get("/readyz"));
    assert!(contract.wrong.is_empty(), "{:#?}", contract.wrong);
    drop(server);

    let data = tempfile::tempdir().unwrap();
    let described = data.path().join("tables.json");
    let tables = json!({"tables": [{"id": 1, "namespace": "public", "name": "t", "primary_key": [0],
                                    "columns": [{"name": "id", "type": "int8"}]}]});
    std::fs::write(&described, tables.to_string()).unwrap();
    let server = Server::start_source(&data.path().join("data"), &["--events", described.to_str().unwrap()]);
    let row = json!({"op": "r", "before": null, "after": {"id": 1}, "ts_ms": 2, "transaction": null,
                     "source": {"connector": "postgresql", "name": "shop", "db": "shop", "schema": "public", "table": "t",
                                "txId": 700, "lsn": 4096, "sequence": "[null,\"4096\"]", "snapshot": "last", "ts_ms": 1}});
    let taken = server.try_post("/v1/sources/events/events?snapshot=done", row.to_string().as_bytes()).unwrap();
    assert_eq!(contract.holds(("post", "/v1/sources/{name}/events"), taken)["accepted"], 1);
    assert!(contract.wrong.is_empty(), "{:#?}", contract.wrong);
}
