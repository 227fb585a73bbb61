//! The shapes of what the contract's requests and answers hold. The surprise: what a shape requires is what every such document has;
//! what it allows besides is all that one may have, which `tests/contract.rs` holds against documents of a running server.

#![allow(clippy::indexing_slicing, reason = "documents made of literals: their objects are objects")]

use engine::materialization::DateCodec;
use serde_json::{Map, Value, json};

use crate::query::request::PARAMETERS;

/// Where a shape is in the document.
pub(super) fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn text() -> Value {
    json!({"type": "string"})
}

fn maybe_text() -> Value {
    json!({"type": ["string", "null"]})
}

fn whole() -> Value {
    json!({"type": "integer"})
}

fn flag() -> Value {
    json!({"type": "boolean"})
}

fn list_of(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn maybe(schema: &str) -> Value {
    json!({"oneOf": [reference(schema), {"type": "null"}]})
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

/// Every shape by its name.
pub(super) fn schemas() -> Value {
    let mut all = Map::new();
    for part in [answers(), aggregates(), sources(), requests()] {
        all.extend(part.as_object().cloned().unwrap_or_default());
    }
    Value::Object(all)
}

fn as_of() -> Value {
    object(&["lsn", "commit_time"], json!({"lsn": text(), "commit_time": text(), "lag_ms": whole(), "state": text()}))
}

fn page() -> Value {
    object(&["next"], json!({"next": maybe_text()}))
}

fn columns() -> Value {
    list_of(object(
        &["name", "type", "role"],
        json!({"name": text(), "type": text(), "role": text(), "granularity": text(), "time_zone": text(), "scale": whole(),
            "currency": flag()}),
    ))
}

fn warnings() -> Value {
    list_of(object(&["code", "message"], json!({"code": text(), "message": text()})))
}

fn rows() -> Value {
    list_of(json!({"type": "object"}))
}

/// What questions are answered with, and problems.
fn answers() -> Value {
    let why_not =
        object(&["aggregate", "code", "reason"], json!({"aggregate": text(), "code": text(), "reason": text()}));
    json!({
        "Text": text(),
        "Bytes": {"description": "Not text"},
        "Problem": object(&["type", "title", "status", "detail", "code", "request_id"], json!({
            "type": text(), "title": text(), "status": whole(), "detail": text(), "code": text(), "hint": text(),
            "request_id": text(),
            "errors": list_of(object(&["detail"], json!({
                "pointer": text(), "parameter": text(), "line": whole(), "column": whole(), "excerpt": text(), "detail": text()}))),
            "taken": reference("Taken"),
            "progress": reference("Progress"),
            "coverage": object(&["from"], json!({"from": text()})),
            "why_not": list_of(reference("WhyNot")),
            "suggestion": reference("Definition"),
        })),
        "Reason": object(&["code", "message", "remedy"], json!({
            "code": text(), "message": text(), "remedy": text(), "aggregate": text()})),
        "Answer": object(&["aggregate", "columns", "data", "as_of", "page", "stats", "warnings"], json!({
            "aggregate": text(), "columns": columns(),
            "data": {"type": ["array", "object"], "description": "Rows, or with layout=columns an array per column"},
            "as_of": as_of(), "page": page(),
            "stats": object(&["cells_read", "served_from"], json!({"cells_read": whole(), "served_from": text()})),
            "warnings": warnings(),
        })),
        "WhyNot": why_not,
        "Explanation": object(
            &["aggregate", "access", "granularity", "time_zone", "ranges", "shards", "cells_estimated", "levels", "alternatives", "why_not"],
            json!({
                "aggregate": text(), "access": {"enum": ["points", "scan"]}, "granularity": text(), "time_zone": text(),
                "ranges": list_of(object(
                    &["level", "from", "to", "min_key", "min_inclusive", "max_key", "max_inclusive"],
                    json!({"level": text(), "from": text(), "to": text(), "min_key": text(), "min_inclusive": flag(),
                        "max_key": text(), "max_inclusive": flag()}),
                )),
                "shards": whole(), "cells_estimated": whole(), "cells_read": whole(), "rows": whole(), "took_us": whole(),
                "levels": list_of(object(&["level", "used"], json!({"level": text(), "used": flag(), "reason": text()}))),
                "alternatives": list_of(object(
                    &["aggregate", "cells_estimated"],
                    json!({"aggregate": text(), "cells_estimated": whole()}),
                )),
                "why_not": list_of(reference("WhyNot")),
            }),
        ),
        "Rows": object(&["aggregate", "table", "columns", "data", "as_of", "page", "warnings"], json!({
            "aggregate": text(), "table": text(), "columns": columns(), "data": rows(), "as_of": as_of(), "page": page(),
            "warnings": warnings(),
        })),
        "QueryAnswer": {"type": "object", "description": "An Answer or an Explanation; of several questions `as_of` and `answers`"},
        "Verification": object(&["equal", "against", "lsn", "cells", "differing", "took_ms", "aggregates", "skipped"], json!({
            "equal": flag(), "against": {"enum": ["postgres", "rows"]}, "lsn": text(), "cells": whole(),
            "differing": whole(), "took_ms": whole(),
            "aggregates": list_of(object(&["aggregate", "equal", "levels"], json!({
                "aggregate": text(), "equal": flag(),
                "levels": list_of(object(&["granularity", "cells", "differing"], json!({
                    "granularity": text(), "cells": whole(), "differing": whole()}))),
                "differences": rows()}))),
            "skipped": list_of(object(&["aggregate", "code", "message"], json!({
                "aggregate": text(), "code": text(), "message": text()}))),
        })),
    })
}

/// What aggregates are, and how far.
fn aggregates() -> Value {
    let state = || json!({"enum": ["building", "live", "halted"]});
    json!({
        "AggregateList": object(&["data", "page"], json!({
            "data": list_of(object(
                &["name", "state", "lag_ms", "table", "levels", "time_zone", "dimensions", "measures", "links"],
                json!({"name": text(), "state": state(), "lag_ms": whole(), "table": text(), "levels": list_of(text()),
                    "time_zone": text(), "dimensions": list_of(text()), "measures": list_of(text()), "links": {"type": "object"}}),
            )),
            "page": page()})),
        "Aggregate": object(&["name", "version", "state", "definition", "columns", "levels", "sql", "warnings", "links"], json!({
            "name": text(), "version": whole(), "state": state(), "halted": reference("Reason"),
            "definition": reference("Definition"), "columns": columns(), "levels": list_of(text()),
            "sql": text(), "warnings": warnings(), "progress": reference("Progress"),
            "next": object(&["version", "state", "definition"], json!({
                "version": whole(), "state": state(), "definition": reference("Definition"),
                "progress": reference("Progress")})),
            "links": {"type": "object"},
        })),
        "Progress": object(&["rows_done", "rows_estimated", "rows_per_second"], json!({
            "rows_done": whole(), "rows_estimated": whole(), "fraction": {"type": ["number", "null"]},
            "rows_per_second": {"type": "number"}, "eta_seconds": {"type": ["number", "null"]},
            "covered_from": {"type": ["string", "null"], "format": "date-time"}})),
        "Backfill": object(&["name", "phase"], json!({
            "name": text(), "version": whole(), "phase": {"enum": ["building", "paused", "done", "halted"]},
            "progress": maybe("Progress"), "error": maybe("Reason")})),
        "Preview": object(&["definition", "sql", "columns", "warnings"], json!({
            "name": text(), "definition": reference("Definition"), "sql": text(), "columns": columns(),
            "size": object(&["rows", "rows_sampled", "exact", "cells", "bytes", "levels"], json!({
                "rows": whole(), "rows_sampled": whole(), "exact": flag(), "cells": whole(), "bytes": whole(),
                "levels": list_of(object(&["granularity", "cells", "bytes"], json!({
                    "granularity": text(), "cells": whole(), "bytes": whole()})))})),
            "sample": object(&["columns", "data"], json!({"columns": columns(), "data": rows()})),
            "registered": object(&["state", "differences"], json!({
                "state": {"enum": ["absent", "same", "different"]}, "differences": list_of(text())})),
            "warnings": warnings(),
        })),
    })
}

/// Where rows come from, and where the process itself stands.
fn sources() -> Value {
    let states =
        ["preflight", "creating_slot", "snapshotting", "catching_up", "live", "disk_low", "reconnecting", "halted"];
    let maybe_whole = || json!({"type": ["integer", "null"]});
    let mut source = object(
        &[
            "name",
            "connector",
            "system",
            "timeline",
            "database",
            "slot",
            "state",
            "received_lsn",
            "acknowledged_lsn",
            "upstream_lsn",
            "upstream_lsn_at_start",
            "retained_wal_bytes",
            "reconnects",
            "checks",
            "applied_lsn",
            "durable_lsn",
            "lag_ms",
            "ready",
            "tables",
            "totals",
        ],
        json!({
            "name": text(), "connector": text(), "system": text(), "timeline": whole(), "database": text(), "slot": text(),
            "state": {"enum": states},
            "received_lsn": text(), "acknowledged_lsn": text(), "upstream_lsn": text(), "upstream_lsn_at_start": maybe_text(),
            "applied_lsn": text(), "durable_lsn": text(), "lag_ms": whole(),
            "retained_wal_bytes": maybe_whole(), "reconnects": whole(),
            "slot_status": object(
                &["wal_status", "restart_lsn", "confirmed_flush_lsn", "spilled_bytes"],
                json!({"wal_status": text(), "safe_wal_bytes": whole(), "restart_lsn": text(), "confirmed_flush_lsn": text(),
                    "spilled_bytes": whole(), "invalidation_reason": text()}),
            ),
            "checks": list_of(object(&["name", "outcome", "message"], json!({
                "name": text(), "outcome": {"enum": ["ok", "warning", "failed"]}, "message": text(), "remedy": text()}))),
            "ready": flag(), "unavailable": reference("Reason"),
            "tables": list_of(reference("SourceTable")),
        }),
    );
    let counted = ["transactions", "inserts", "updates", "deletes", "truncates", "snapshot_rows"];
    let totals: Map<String, Value> = counted.iter().map(|name| ((*name).to_owned(), whole())).collect();
    source["properties"]["totals"] = object(&counted, Value::Object(totals));
    // What the states say of themselves.
    for (name, schema) in [
        ("waiting_for", whole()),
        ("oldest_pid", whole()),
        ("oldest_age_s", whole()),
        ("rows_done", whole()),
        ("rows_estimated", whole()),
        ("free_bytes", whole()),
        ("enough_bytes", whole()),
        ("reason", text()),
        ("attempt", whole()),
        ("code", text()),
        ("message", text()),
        ("remedy", text()),
    ] {
        source["properties"][name] = schema;
    }
    json!({
        "SourceList": object(&["data", "page"], json!({"data": list_of(reference("Source")), "page": page()})),
        "Source": source,
        "SourceTable": object(&["name", "state", "partitions", "row_image", "columns"], json!({
            "name": text(), "state": {"enum": ["live", "reading", "halted"]}, "code": text(), "message": text(), "remedy": text(),
            "partitions": whole(), "row_image": flag(),
            "columns": list_of(object(&["name", "type", "primary_key"], json!({
                "name": text(), "type": text(), "primary_key": flag()})))})),
        "Table": object(&["name", "state", "links"], json!({
            "name": text(), "state": {"enum": ["reading"]}, "links": {"type": "object"}})),
        "Taken": object(&["accepted", "duplicates", "ignored", "waiting", "lsn"], json!({
            "accepted": whole(), "duplicates": whole(), "ignored": whole(), "waiting": whole(), "lsn": text()})),
        "Health": object(&["status"], json!({
            "status": {"enum": ["ok", "ready", "not_ready"]}, "code": text(), "reasons": list_of(reference("Reason"))})),
        "Checkpoint": object(&["name", "path", "lsn", "files", "bytes", "took_ms"], json!({
            "name": text(), "path": text(), "lsn": text(), "commit_time": text(), "taken_at": text(),
            "held_slot": maybe_text(), "aggregates": list_of(text()),
            "files": whole(), "bytes": whole(), "took_ms": whole()})),
    })
}

/// What is sent.
fn requests() -> Value {
    json!({
        "TableRequest": {"type": "object", "required": ["table"], "additionalProperties": false, "properties": {
            "table": text(), "row_image": {"type": ["boolean", "null"]}}},
        "VerifyRequest": {"type": "object", "additionalProperties": false, "properties": {
            "aggregate": maybe_text(), "from": maybe_text(), "to": maybe_text(), "against": {"enum": ["postgres", "rows", null]}}},
        "CheckpointRequest": {"type": "object", "additionalProperties": false, "properties": {
            "name": {"type": ["string", "null"], "pattern": "^[a-z0-9_]{1,40}$"}, "hold_log": flag()}},
        "Definition": definition_schema(),
        "Query": query_schema(),
    })
}

fn definition_schema() -> Value {
    json!({
        "type": "object",
        "required": ["table", "measures"],
        "additionalProperties": false,
        "properties": {
            "table": text(),
            "measures": {"type": "array", "minItems": 1, "items": {
                "type": "object", "required": ["name"], "additionalProperties": false,
                "properties": {"name": text(), "sum": text(), "count": text(), "scale": {"type": "integer", "minimum": 0, "maximum": 30},
                    "where": text()}}},
            "dimensions": {"type": "array", "items": text()},
            "time": {
                "type": "object", "required": ["column", "granularity"], "additionalProperties": false,
                "properties": {"column": text(), "granularity": text(), "time_zone": text(), "assume_time_zone": text(), "origin": text(),
                    "codec": {"enum": DateCodec::ALL.map(DateCodec::name)}}},
            "rollups": {"type": "array", "items": text()},
            "where": text(),
            "drill_through": {"type": "boolean"},
        },
    })
}

/// The parameters of a URL as a body has them: lists where a URL has commas.
fn query_schema() -> Value {
    let lists = ["group_by", "measures", "order"];
    let mut properties: Map<String, Value> = PARAMETERS
        .iter()
        .map(|(name, kind, description)| {
            let mut schema =
                if lists.contains(name) { json!({"type": "array", "items": text()}) } else { schema_of(kind) };
            schema["description"] = json!(description);
            ((*name).to_owned(), schema)
        })
        .collect();
    properties.insert("where".to_owned(), json!({"type": ["object", "string"]}));
    for name in ["aggregate", "table", "time"] {
        properties.insert(name.to_owned(), text());
    }
    let one = json!({"type": "object", "additionalProperties": false, "properties": properties});
    let explain = json!({"enum": ["plan", "analyze", null]});
    let mut alone = one.clone();
    alone["properties"]["explain"] = explain.clone();
    json!({"oneOf": [
        alone,
        {"type": "object", "required": ["queries"], "additionalProperties": false, "properties": {
            "queries": {"type": "array", "minItems": 1, "maxItems": 32, "items": one}, "explain": explain}},
    ]})
}

/// Of a parameter, by the kind that it has in the list of them.
pub(super) fn schema_of(kind: &str) -> Value {
    match kind {
        "number" => json!({"type": "integer", "minimum": 1}),
        "flag" => json!({"type": "boolean"}),
        _ => json!({"type": "string"}),
    }
}
