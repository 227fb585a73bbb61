//! The contract as an OpenAPI 3.1 document, at `/openapi.json`; `/docs` shows it. `queries/openapi.json` is the approved
//! copy: a change of the contract is a change of that file. Tests hold that no route is missing here and none is made up.

#![allow(clippy::indexing_slicing, reason = "a document made of literals: its objects are objects")]

use serde_json::{Map, Value, json};

use super::router::routes;
use super::schemas::{reference, schema_of, schemas};
use crate::access::Scope;
use crate::query::request::PARAMETERS;

/// Every problem that a group of routes may answer with, by status.
#[derive(Clone, Copy)]
enum Problems {
    /// Asks an aggregate.
    Question,
    /// Takes a body.
    Body,
    /// Names something in the path.
    Named,
    /// Cannot fail but by the server.
    None,
}

impl Problems {
    fn statuses(self) -> &'static [u16] {
        match self {
            Problems::Question => &[400, 404, 409, 410, 422, 429, 503],
            Problems::Body => &[400, 404, 409, 410, 413, 415, 422, 429, 503],
            Problems::Named => &[400, 404, 503],
            Problems::None => &[503],
        }
    }
}

/// Problems of every route: its host is not ours, and a mistake of ours.
const WHATEVER_IS_ASKED: &[u16] = &[421, 500];

struct Operation {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    /// Status, description, media type and schema of what comes back.
    answers: &'static [(u16, &'static str, &'static str, &'static str)],
    problems: Problems,
}

const JSON: &str = "application/json";

const OPERATIONS: &[Operation] = &[
    Operation {
        method: "get",
        path: "/v1/aggregates",
        id: "listAggregates",
        summary: "All aggregates with their state",
        answers: &[(200, "The aggregates", JSON, "AggregateList")],
        problems: Problems::None,
    },
    Operation {
        method: "post",
        path: "/v1/aggregates:preview",
        id: "previewAggregate",
        summary: "What a definition would make: SQL, columns, size, a sample, remarks; nothing is created",
        answers: &[(200, "What it would make", JSON, "Preview")],
        problems: Problems::Body,
    },
    Operation {
        method: "get",
        path: "/v1/aggregates/{name}",
        id: "describeAggregate",
        summary: "One aggregate: definition, SQL, columns, state, progress",
        answers: &[(200, "The aggregate", JSON, "Aggregate")],
        problems: Problems::Named,
    },
    Operation {
        method: "put",
        path: "/v1/aggregates/{name}",
        id: "registerAggregate",
        summary: "Register an aggregate; the same definition again changes nothing",
        answers: &[
            (200, "It is registered already", JSON, "Aggregate"),
            (202, "It is being filled", JSON, "Aggregate"),
        ],
        problems: Problems::Body,
    },
    Operation {
        method: "delete",
        path: "/v1/aggregates/{name}",
        id: "dropAggregate",
        summary: "Drop an aggregate",
        answers: &[(204, "It is gone", "", "")],
        problems: Problems::Named,
    },
    Operation {
        method: "get",
        path: "/v1/aggregates/{name}/data",
        id: "getData",
        summary: "Range scan, roll-up, top-k; the format follows Accept",
        answers: &[(200, "The answer", JSON, "Answer"), (304, "The rows are those of the tag", "", "")],
        problems: Problems::Question,
    },
    Operation {
        method: "get",
        path: "/v1/aggregates/{name}/data.json",
        id: "getDataJson",
        summary: "As data, as JSON",
        answers: &[(200, "The answer", JSON, "Answer"), (304, "The rows are those of the tag", "", "")],
        problems: Problems::Question,
    },
    Operation {
        method: "get",
        path: "/v1/aggregates/{name}/data.ndjson",
        id: "getDataNdjson",
        summary: "As data, one JSON object a line",
        answers: &[(200, "The answer", "application/x-ndjson", "Text"), (304, "The rows are those of the tag", "", "")],
        problems: Problems::Question,
    },
    Operation {
        method: "get",
        path: "/v1/aggregates/{name}/data.csv",
        id: "getDataCsv",
        summary: "As data, as CSV; texts that a spreadsheet would run begin with an apostrophe",
        answers: &[(200, "The answer", "text/csv", "Text"), (304, "The rows are those of the tag", "", "")],
        problems: Problems::Question,
    },
    Operation {
        method: "get",
        path: "/v1/aggregates/{name}/data.arrow",
        id: "getDataArrow",
        summary: "As data, as an Apache Arrow stream with typed columns; lsn and commit_time are in its schema's metadata",
        answers: &[
            (200, "The answer", "application/vnd.apache.arrow.stream", "Bytes"),
            (304, "The rows are those of the tag", "", ""),
        ],
        problems: Problems::Question,
    },
    Operation {
        method: "get",
        path: "/v1/aggregates/{name}/explain",
        id: "explainData",
        summary: "What is read for an answer, and why",
        answers: &[(200, "The plan", JSON, "Explanation")],
        problems: Problems::Question,
    },
    Operation {
        method: "get",
        path: "/v1/aggregates/{name}/rows",
        id: "getRows",
        summary: "The rows of the table behind a total, newest first",
        answers: &[(200, "The rows", JSON, "Rows")],
        problems: Problems::Question,
    },
    Operation {
        method: "get",
        path: "/v1/aggregates/{name}/live",
        id: "getLive",
        summary: "An answer and its changes as server-sent events: snapshot, change, progress, resync, error",
        answers: &[(200, "The events", "text/event-stream", "Text")],
        problems: Problems::Body,
    },
    Operation {
        method: "get",
        path: "/v1/aggregates/{name}/backfill",
        id: "getBackfill",
        summary: "How far an aggregate is filled",
        answers: &[(200, "The progress", JSON, "Backfill")],
        problems: Problems::Named,
    },
    Operation {
        method: "post",
        path: "/v1/aggregates/{name}/backfill:pause",
        id: "pauseBackfill",
        summary: "Hold the filling",
        answers: &[(200, "It is held", JSON, "Backfill")],
        problems: Problems::Body,
    },
    Operation {
        method: "post",
        path: "/v1/aggregates/{name}/backfill:resume",
        id: "resumeBackfill",
        summary: "Let the filling go on",
        answers: &[(200, "It goes on", JSON, "Backfill")],
        problems: Problems::Body,
    },
    Operation {
        method: "post",
        path: "/v1/aggregates/{name}/backfill:cancel",
        id: "cancelBackfill",
        summary: "Give up the version that is being built",
        answers: &[(204, "It is given up", "", "")],
        problems: Problems::Body,
    },
    Operation {
        method: "post",
        path: "/v1/aggregates/{name}/backfill:rebuild",
        id: "rebuildBackfill",
        summary: "Build the aggregate anew beside the version that answers",
        answers: &[(200, "It is built already", JSON, "Aggregate"), (202, "It is being built", JSON, "Aggregate")],
        problems: Problems::Body,
    },
    Operation {
        method: "post",
        path: "/v1/query",
        id: "query",
        summary: "One or several questions to aggregates or tables, answered at one position; the format of one follows Accept",
        answers: &[(200, "The answers", JSON, "QueryAnswer")],
        problems: Problems::Body,
    },
    Operation {
        method: "get",
        path: "/v1/sources",
        id: "listSources",
        summary: "The sources with state, lag and slot",
        answers: &[(200, "The sources", JSON, "SourceList")],
        problems: Problems::None,
    },
    Operation {
        method: "get",
        path: "/v1/sources/{name}",
        id: "describeSource",
        summary: "One source with its checks and the statements that repair them",
        answers: &[(200, "The source", JSON, "Source")],
        problems: Problems::Named,
    },
    Operation {
        method: "post",
        path: "/v1/sources/{name}/tables",
        id: "readTable",
        summary: "Follow one more table, or read one anew",
        answers: &[(202, "It is read when its turn comes", JSON, "Table")],
        problems: Problems::Body,
    },
    Operation {
        method: "post",
        path: "/v1/sources/{name}/events",
        id: "postEvents",
        summary: "Debezium change events, as lines of JSON or an array",
        answers: &[(200, "Taken and durable", JSON, "Taken")],
        problems: Problems::Body,
    },
    Operation {
        method: "post",
        path: "/v1/verify",
        id: "verify",
        summary: "Compare cells with Postgres' GROUP BY at the same position, or with the row images",
        answers: &[(200, "Equal, or the keys that differ with both values", JSON, "Verification")],
        problems: Problems::Body,
    },
    Operation {
        method: "post",
        path: "/v1/admin/checkpoints",
        id: "takeCheckpoint",
        summary: "Take a backup, where the server is configured to write them, while everything goes on",
        answers: &[(201, "The backup", JSON, "Checkpoint")],
        problems: Problems::Body,
    },
    Operation {
        method: "get",
        path: "/healthz",
        id: "healthz",
        summary: "The process is alive",
        answers: &[(200, "Alive", JSON, "Health")],
        problems: Problems::None,
    },
    Operation {
        method: "get",
        path: "/readyz",
        id: "readyz",
        summary: "Every aggregate answers at or past the position seen at start",
        answers: &[(200, "Ready", JSON, "Health"), (503, "Not ready, with the reasons", JSON, "Health")],
        problems: Problems::None,
    },
    Operation {
        method: "get",
        path: "/metrics",
        id: "metrics",
        summary: "Prometheus metrics",
        answers: &[(200, "OpenMetrics text", "application/openmetrics-text", "Text")],
        problems: Problems::None,
    },
];

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    let routes = routes();
    for operation in OPERATIONS {
        let scope = routes
            .iter()
            .find(|route| route.path == operation.path && route.answers(operation.method))
            .and_then(|route| route.needs.scope());
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.insert(operation.method.to_owned(), operation_body(operation, scope));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tidemark",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Exact, live totals of a Postgres table. Decimals and sums are JSON strings; times are RFC 3339, `from` inclusive, `to` exclusive. Errors are application/problem+json with a stable `code` and a `hint`; `type` leads to what is said of the code at /docs/problems.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"token": {
                "type": "http",
                "scheme": "bearer",
                "description": "Where the server asks for tokens: one whose scope is the named one or includes it (read, register, admin)",
            }},
        },
    })
}

fn operation_body(operation: &Operation, scope: Option<Scope>) -> Value {
    let mut responses = Map::new();
    for (status, description, media_type, schema) in operation.answers {
        let mut response = json!({"description": description});
        if !media_type.is_empty() {
            response["content"] = json!({*media_type: {"schema": reference(schema)}});
            if matches!((operation.id, status), ("getData" | "query", 200)) {
                response["content"]["application/x-ndjson"] = json!({"schema": reference("Text")});
                response["content"]["text/csv"] = json!({"schema": reference("Text")});
                response["content"]["application/vnd.apache.arrow.stream"] = json!({"schema": reference("Bytes")});
            }
        }
        responses.insert(status.to_string(), response);
    }
    let of_tokens: &[u16] = if scope.is_some() { &[401, 403] } else { &[] };
    for status in operation.problems.statuses().iter().chain(of_tokens).chain(WHATEVER_IS_ASKED) {
        let problem = json!({
            "description": "A problem (RFC 9457)",
            "content": {"application/problem+json": {"schema": reference("Problem")}},
        });
        responses.entry(status.to_string()).or_insert(problem);
    }
    responses.insert(
        "431".to_owned(),
        json!({"description": "The head is too large: said by the connection, without a body"}),
    );
    let mut body = json!({"operationId": operation.id, "summary": operation.summary, "responses": responses});
    if let Some(scope) = scope {
        body["security"] = json!([{"token": [scope.name()]}]);
    }
    let parameters = parameters(operation);
    if !parameters.is_empty() {
        body["parameters"] = Value::Array(parameters);
    }
    if let Some(request) = request_body(operation.id) {
        body["requestBody"] = request;
    }
    body
}

fn parameters(operation: &Operation) -> Vec<Value> {
    let mut parameters = Vec::new();
    if operation.path.contains("{name}") {
        parameters.push(
            json!({"name": "name", "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}),
        );
    }
    let query = |name: &str, schema: Value, description: &str| json!({"name": name, "in": "query", "schema": schema, "description": description});
    let question = |parameters: &mut Vec<Value>, only: &dyn Fn(&str) -> bool| {
        let chosen = PARAMETERS.iter().filter(|(name, _, _)| only(name));
        parameters.extend(chosen.map(|(name, schema, description)| query(name, schema_of(schema), description)));
    };
    match operation.id {
        "getData" | "getDataJson" | "getDataNdjson" | "getDataCsv" | "getDataArrow" => {
            question(&mut parameters, &|_| true)
        }
        "registerAggregate" => {
            let rule = json!({"type": "string", "enum": ["refuse", "rebuild"]});
            parameters.push(query("on_change", rule, "What is done where the name has another definition"));
        }
        "previewAggregate" => {
            parameters.push(query("name", json!({"type": "string"}), "Compares with what is registered under it"));
        }
        "explainData" => {
            question(&mut parameters, &|_| true);
            parameters.push(query("analyze", json!({"type": "boolean"}), "Run it, and say what it took"));
        }
        "getRows" => question(&mut parameters, &|name| {
            ["from", "to", "where", "filter", "time_zone", "limit", "cursor", "min_lsn", "wait"].contains(&name)
        }),
        "getLive" => {
            let unfit = ["cursor", "others", "share", "compare", "layout", "rows"];
            question(&mut parameters, &|name| !unfit.contains(&name));
            parameters.push(query("throttle", json!({"type": "string"}), "Pause between two changes: 20ms to 10s"));
            parameters.push(query(
                "since",
                json!({"type": "string"}),
                "The id of the event to resume from, as Last-Event-ID",
            ));
        }
        "postEvents" => {
            parameters.push(query(
                "snapshot",
                json!({"type": "string", "enum": ["done"]}),
                "The initial rows are complete",
            ));
        }
        _ => {}
    }
    parameters
}

fn request_body(operation: &str) -> Option<Value> {
    let json_of = |schema: &str| json!({"required": true, "content": {JSON: {"schema": reference(schema)}}});
    match operation {
        "registerAggregate" | "previewAggregate" => Some(json!({"required": true, "content": {
            JSON: {"schema": reference("Definition")},
            "application/sql": {"schema": reference("Text")}}})),
        "query" => Some(json_of("Query")),
        "readTable" => Some(json_of("TableRequest")),
        "takeCheckpoint" => {
            Some(json!({"required": false, "content": {JSON: {"schema": reference("CheckpointRequest")}}}))
        }
        "verify" => Some(json!({"required": false, "content": {JSON: {"schema": reference("VerifyRequest")}}})),
        "postEvents" => Some(json!({"required": true, "content": {
            "application/x-ndjson": {"schema": reference("Text")}, JSON: {"schema": {}}}})),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::router::Route;
    use super::*;
    use crate::api::problem_codes::PROBLEMS_PAGE;

    /// `TIDEMARK_APPROVE=1 cargo test -p queries openapi` writes the copy anew.
    #[test]
    fn the_contract_is_the_approved_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let now = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os("TIDEMARK_APPROVE").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let approved = std::fs::read_to_string(path).unwrap_or_default();
        assert!(now == approved, "the contract changed: look at it, then approve it as described above this test");
    }

    #[test]
    fn every_route_is_documented() {
        let served = routes();
        assert!(served.len() > 15);
        let own = ["/openapi.json", "/docs", "/docs.js", PROBLEMS_PAGE];
        for route in served.iter().filter(|route| !own.contains(&route.path)) {
            let documents = |operation: &Operation| operation.path == route.path && route.answers(operation.method);
            assert!(OPERATIONS.iter().any(documents), "{} is not documented", route.path);
        }
        for operation in OPERATIONS {
            let serves = |route: &Route| operation.path == route.path && route.answers(operation.method);
            assert!(served.iter().any(serves), "{} {} is not served", operation.method, operation.path);
        }
    }
}
