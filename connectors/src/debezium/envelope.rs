//! One envelope -> one change.
//!
//! Accepted with and without the `{"schema":…,"payload":…}` wrapper, as value alone or as `{"key":…,"value":…}`. Columns that
//! the description leaves out are not read; a described column that the event lacks is refused, never taken for NULL.
//!
//! Of `before` only the key is used: under the default replica identity Debezium fills the rest with made-up values, and
//! the engine knows the row better.

use engine::change::event::{OldRow, TooLarge};
use engine::change::{Change, Changes, OldImage, RowWriter, TableSchema, ValueRef};
use serde_json::{Map, Value};

use super::column::{self, Semantic};
use super::{Encoding, OtherTables, Refusal};
use crate::json_value::EPOCH_MICROS_AFTER_1970;

type Fields = Map<String, Value>;

/// What one line says.
#[derive(Clone, Debug)]
pub enum Message {
    /// Nothing that concerns rows: tombstones, heartbeats, logical messages, tables left out.
    Nothing,
    /// A transaction's events follow (`provide.transaction.metadata`).
    Begin {
        /// Transaction id.
        transaction: u64,
    },
    /// All of a transaction's events were sent.
    End {
        /// Transaction id.
        transaction: u64,
        /// End of its commit.
        lsn: u64,
        /// Events of each described table, by position among the tables.
        counts: Vec<(usize, u64)>,
    },
    /// The initial snapshot ended with a row of a table that is left out.
    SnapshotEnd {
        /// Position of the snapshot.
        lsn: u64,
    },
    /// A change of one row, or of all rows.
    Event(Event),
}

/// One change, and where it belongs.
#[derive(Clone, Debug)]
pub struct Event {
    /// Position among the described tables.
    pub table: usize,
    /// Where it comes from.
    pub origin: Origin,
    /// Its position in the log; rows written together share one.
    pub lsn: u64,
    /// When it committed, microseconds since 2000-01-01 UTC.
    pub time_us: i64,
    /// Tells events with the same position apart.
    pub identity: u64,
    /// The change itself; exactly one.
    pub changes: Changes,
    /// A row that appears with values that were not sent: the second half of a change of key.
    pub incomplete: bool,
}

impl Event {
    /// Removes one row.
    #[must_use]
    pub fn deletes(&self) -> bool {
        matches!(self.changes.iter().next(), Some(Change::Delete { .. }))
    }
}

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The log.
    Stream {
        /// Transaction id.
        transaction: u64,
        /// End of the commit before, 0 where none was seen.
        commit: u64,
    },
    /// The initial snapshot.
    Snapshot(Mark),
    /// A row read again while the stream goes on.
    Incremental {
        /// End of the commit before, 0 where none was seen.
        commit: u64,
    },
}

/// Which row of the initial snapshot it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Any.
    Some,
    /// The first one of all, or of a table.
    First,
    /// The last one of a table.
    LastOfTable,
    /// The last one of all.
    Last,
}

/// Reads envelopes of described tables.
#[derive(Clone, Debug)]
pub struct Decoder {
    tables: Vec<TableSchema>,
    encoding: Encoding,
}

const NOT_AN_ENVELOPE: &str = "send Debezium's whole envelope: no ExtractNewRecordState transform, format json";
const NOT_POSITIONED: &str = "use Debezium's Postgres connector, 1.6 or newer, with the pgoutput plugin";

impl Decoder {
    /// For these tables.
    #[must_use]
    pub fn new(tables: Vec<TableSchema>, encoding: Encoding) -> Self {
        Decoder { tables, encoding }
    }

    /// The described tables.
    #[must_use]
    pub fn tables(&self) -> &[TableSchema] {
        &self.tables
    }

    /// Reads one line.
    pub fn decode(&self, line: &Value) -> Result<Message, Refusal> {
        let (key, value) = match line.as_object() {
            Some(pair) if pair.contains_key("value") && !pair.contains_key("op") => (pair.get("key"), At::field(line, "value")),
            _ => (None, At::root(line)),
        };
        let wrapped = |fields: &Fields| fields.contains_key("payload") && !fields.contains_key("op");
        let payload = if value.json.as_object().is_some_and(wrapped) { value.child("payload") } else { value.clone() };
        if payload.json.is_null() {
            return Ok(Message::Nothing);
        }
        let envelope = payload.json.as_object().ok_or_else(|| {
            Refusal::new("not_an_envelope", &payload.pointer, "an event is a JSON object", NOT_AN_ENVELOPE)
        })?;
        if envelope.contains_key("status") && envelope.contains_key("id") {
            return self.marker(&payload);
        }
        if envelope.keys().all(|name| matches!(name.as_str(), "ts_ms" | "ts_us" | "ts_ns")) {
            return Ok(Message::Nothing);
        }
        let schema = value.json.get("schema").filter(|schema| schema.is_object());
        self.event(&payload, schema, key)
    }

    /// `{"status":"END","id":"571:53195832","event_count":2,"data_collections":[…]}`
    fn marker(&self, payload: &At<'_>) -> Result<Message, Refusal> {
        let id = payload.child("id");
        let parts = id.json.as_str().and_then(|id| id.split_once(':'));
        let parsed = parts.and_then(|(transaction, lsn)| Some((transaction.parse().ok()?, lsn.parse().ok()?)));
        let (transaction, lsn) = parsed.ok_or_else(|| {
            Refusal::new("bad_position", &id.pointer, "a transaction's id has the form \"571:53195832\"", NOT_POSITIONED)
        })?;
        match payload.json.get("status").and_then(Value::as_str) {
            Some("BEGIN") => Ok(Message::Begin { transaction }),
            Some("END") => {
                let named = payload.json.get("data_collections").and_then(Value::as_array).map(Vec::as_slice);
                let count = |entry: &Value| {
                    let name = entry.get("data_collection")?.as_str()?;
                    let table = self.tables.iter().position(|table| {
                        let ours = table.qualified_name();
                        name.strip_suffix(&ours).is_some_and(|before| before.is_empty() || before.ends_with('.'))
                    })?;
                    Some((table, unsigned(entry.get("event_count")?)?))
                };
                let counts = named.unwrap_or_default().iter().filter_map(count).collect();
                Ok(Message::End { transaction, lsn, counts })
            }
            _ => Err(Refusal::new(
                "not_an_envelope",
                &payload.child("status").pointer,
                "a transaction's status is BEGIN or END",
                NOT_AN_ENVELOPE,
            )),
        }
    }

    fn event(&self, payload: &At<'_>, schema: Option<&Value>, key: Option<&Value>) -> Result<Message, Refusal> {
        let (op, source) = (payload.child("op"), payload.child("source"));
        let (Some(operation), true) = (op.json.as_str(), source.json.is_object()) else {
            let reason = "an envelope has \"op\" and \"source\"";
            return Err(Refusal::new("not_an_envelope", &payload.pointer, reason, NOT_AN_ENVELOPE));
        };
        if operation == "m" {
            return Ok(Message::Nothing);
        }
        if let Some(other) = source.json.get("connector").and_then(Value::as_str).filter(|name| *name != "postgresql") {
            let pointer = source.child("connector").pointer;
            let reason = format!("positions of {other} cannot be compared with those of Postgres");
            return Err(Refusal::new("not_postgres", pointer, reason, NOT_POSITIONED));
        }
        let name = |part| source.json.get(part).and_then(Value::as_str).unwrap_or_default();
        let (namespace, table) = (name("schema"), name("table"));
        let found = self.tables.iter().position(|known| known.namespace == namespace && known.name == table);
        let Some(index) = found else {
            return match self.encoding.other_tables {
                OtherTables::Ignore => match origin_of(&source)? {
                    read @ Read::Snapshot(Mark::Last) => Ok(Message::SnapshotEnd { lsn: position(&source, read)?.1 }),
                    _ => Ok(Message::Nothing),
                },
                OtherTables::Refuse => Err(Refusal::new(
                    "unknown_table",
                    source.child("table").pointer,
                    format!("table {namespace}.{table} is not described"),
                    "describe it, or leave it out with table.include.list in the Debezium connector, or state \
                     \"debezium\":{\"other_tables\":\"ignore\"} beside the tables",
                )),
            };
        };
        let table = self.tables.get(index).ok_or_else(|| no_such_operation(&op))?;
        let read = match origin_of(&source)? {
            Read::Stream if operation == "r" => Read::Snapshot(Mark::Some),
            read => read,
        };
        let row = Row { table, encoding: &self.encoding, schema, payload };
        let mut changes = Changes::default();
        let mut incomplete = false;
        match operation {
            "c" | "r" => {
                let (new, unavailable) = row.whole(&mut changes)?;
                incomplete = unavailable;
                // In a snapshot and in a repeated one the row may be there already.
                if read == Read::Stream {
                    changes.insert(table.id, new);
                } else {
                    changes.upsert(table.id, new);
                }
            }
            "u" => {
                let before = row.key_of("before", payload.json.get("before"), &mut changes)?;
                let old = before.map_or(OldRow::Absent, OldRow::Key);
                let (new, _) = row.whole(&mut changes)?;
                changes.update(table.id, old, new);
            }
            "d" => {
                let mut old = row.key_of("before", payload.json.get("before"), &mut changes)?;
                if old.is_none() {
                    let key = key.map(|key| key.get("payload").unwrap_or(key));
                    old = row.key_of("key", key, &mut changes)?;
                }
                let old = old.ok_or_else(|| {
                    Refusal::new(
                        "no_key",
                        payload.child("before").pointer,
                        "a delete needs the key of its row in \"before\", or beside the value in \"key\"",
                        format!("ALTER TABLE {}.{} REPLICA IDENTITY DEFAULT, with a primary key", table.namespace, table.name),
                    )
                })?;
                changes.delete(table.id, OldRow::Key(old));
            }
            "t" => changes.truncate(table.id),
            _ => return Err(no_such_operation(&op)),
        }
        let identity = identity(operation, index, table, &changes);
        let (commit, lsn) = position(&source, read)?;
        let origin = match read {
            Read::Stream => {
                let transaction = source.child("txId");
                let id = unsigned(transaction.json).ok_or_else(|| {
                    let reason = "an event of the log has the id of its transaction";
                    Refusal::new("bad_position", transaction.pointer, reason, NOT_POSITIONED)
                })?;
                Origin::Stream { transaction: id, commit }
            }
            Read::Snapshot(mark) => Origin::Snapshot(mark),
            Read::Incremental => Origin::Incremental { commit },
        };
        Ok(Message::Event(Event { table: index, origin, lsn, time_us: time(&source), identity, changes, incomplete }))
    }
}

fn no_such_operation(op: &At<'_>) -> Refusal {
    let reason = "an operation is one of c, r, u, d, t and m";
    Refusal::new("not_an_envelope", &op.pointer, reason, NOT_AN_ENVELOPE)
}

/// A place in the line.
#[derive(Clone)]
struct At<'a> {
    json: &'a Value,
    pointer: String,
}

static NULL: Value = Value::Null;

impl<'a> At<'a> {
    fn root(json: &'a Value) -> Self {
        At { json, pointer: String::new() }
    }

    fn field(json: &'a Value, name: &str) -> Self {
        At::root(json).child(name)
    }

    fn child(&self, name: &str) -> At<'a> {
        let escaped = name.replace('~', "~0").replace('/', "~1");
        At { json: self.json.get(name).unwrap_or(&NULL), pointer: format!("{}/{escaped}", self.pointer) }
    }
}

/// How a row came to be sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    Stream,
    Snapshot(Mark),
    Incremental,
}

fn origin_of(source: &At<'_>) -> Result<Read, Refusal> {
    let snapshot = source.child("snapshot");
    match snapshot.json {
        Value::Null | Value::Bool(false) => Ok(Read::Stream),
        Value::Bool(true) => Ok(Read::Snapshot(Mark::Some)),
        other => match other.as_str() {
            Some("false") => Ok(Read::Stream),
            Some("true") => Ok(Read::Snapshot(Mark::Some)),
            Some("first" | "first_in_data_collection") => Ok(Read::Snapshot(Mark::First)),
            Some("last_in_data_collection") => Ok(Read::Snapshot(Mark::LastOfTable)),
            Some("last") => Ok(Read::Snapshot(Mark::Last)),
            Some("incremental") => Ok(Read::Incremental),
            _ => {
                let reason = "a snapshot is one of true, first, last, last_in_data_collection, incremental and false";
                Err(Refusal::new("bad_position", snapshot.pointer, reason, NOT_POSITIONED))
            }
        },
    }
}

/// End of the commit before (0 where none was seen) and the event's own position.
fn position(source: &At<'_>, read: Read) -> Result<(u64, u64), Refusal> {
    let sequence = source.child("sequence");
    let bad = |pointer: &str, reason: &str| Refusal::new("bad_position", pointer, reason, NOT_POSITIONED);
    let parsed: Option<Vec<Value>> = match sequence.json {
        Value::String(text) => serde_json::from_str(text).ok(),
        Value::Array(items) => Some(items.clone()),
        _ => None,
    };
    let snapshot = read != Read::Stream;
    let Some([commit, event]) = parsed.as_deref() else {
        // Rows of a snapshot are not ordered by position.
        return match unsigned(source.child("lsn").json) {
            Some(lsn) if snapshot && sequence.json.is_null() => Ok((0, lsn)),
            _ => Err(bad(&sequence.pointer, "an event has its \"sequence\": [\"24023119\",\"24023128\"]")),
        };
    };
    let half = |part: &Value| if part.is_null() { Some(0) } else { unsigned(part) };
    let commit = half(commit).ok_or_else(|| bad(&sequence.pointer, "a position is a number"))?;
    let lsn = source.child("lsn");
    let own = unsigned(lsn.json).or_else(|| unsigned(event));
    match own {
        Some(own) => Ok((commit, own)),
        None if snapshot => Ok((commit, 0)),
        None => Err(bad(&lsn.pointer, "an event of the log has its position in \"lsn\"")),
    }
}

/// A number, also where a converter made it a string.
fn unsigned(json: &Value) -> Option<u64> {
    json.as_u64().or_else(|| json.as_str()?.parse().ok())
}

fn time(source: &At<'_>) -> i64 {
    let number = |name| source.json.get(name).and_then(Value::as_i64);
    let micros = number("ts_us").or_else(|| number("ts_ms")?.checked_mul(1_000));
    micros.and_then(|micros| micros.checked_sub(EPOCH_MICROS_AFTER_1970)).unwrap_or_default()
}

/// Same for the same operation on the same row, in every version and process (FNV-1a): it is stored.
fn identity(operation: &str, index: usize, table: &TableSchema, changes: &Changes) -> u64 {
    let row = changes.iter().next().and_then(|change| match change {
        Change::Insert { new, .. } | Change::Update { new, .. } | Change::Upsert { new, .. } => Some(new),
        Change::Delete { old: OldImage::Key(old) | OldImage::Full(old), .. } => Some(old),
        Change::Delete { .. } | Change::Truncate { .. } => None,
    });
    let mut key = Vec::new();
    if let Some(row) = row {
        let mut writer = RowWriter::new(&mut key);
        for (at, value) in row.columns().enumerate() {
            if table.primary_key.contains(&at) {
                writer.push(value.unwrap_or(ValueRef::Null));
            }
        }
    }
    let bytes = operation.bytes().chain((index as u64).to_le_bytes()).chain(key);
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// Writes rows of one event.
struct Row<'a> {
    table: &'a TableSchema,
    encoding: &'a Encoding,
    schema: Option<&'a Value>,
    payload: &'a At<'a>,
}

type Written = engine::change::event::WrittenRow;

/// Lets rows fail with a refusal.
struct Failed(Refusal);

impl From<TooLarge> for Failed {
    fn from(error: TooLarge) -> Self {
        let remedy = "send smaller rows, or leave the large column out of the description";
        Failed(Refusal::new("row_too_large", "", error.to_string(), remedy))
    }
}

impl Row<'_> {
    /// `after`, and whether values of it were not sent.
    fn whole(&self, changes: &mut Changes) -> Result<(Written, bool), Refusal> {
        let after = self.payload.child("after");
        let columns = after.json.as_object().ok_or_else(|| {
            Refusal::new("no_row", &after.pointer, "the event has no row after the change", NOT_AN_ENVELOPE)
        })?;
        let fields = self.fields("after");
        let mut unavailable = false;
        let written = changes.write_row(|buffer| {
            let mut writer = RowWriter::new(buffer);
            for at in 0..self.table.columns.len() {
                unavailable |= self.column(&mut writer, &after, columns, fields, at).map_err(Failed)?;
            }
            Ok(())
        });
        written.map(|row| (row, unavailable)).map_err(|Failed(refusal)| refusal)
    }

    /// The key's columns of an object, the others NULL; `None` where it does not hold all of them.
    fn key_of(&self, part: &str, object: Option<&Value>, changes: &mut Changes) -> Result<Option<Written>, Refusal> {
        let Some(columns) = object.and_then(Value::as_object) else { return Ok(None) };
        let name = |at: &usize| self.table.columns.get(*at).map(|column| column.name.as_str());
        let held = |at: &usize| name(at).and_then(|name| columns.get(name)).is_some_and(|json| !json.is_null());
        if !self.table.primary_key.iter().all(held) {
            return Ok(None);
        }
        let here = At { json: object.unwrap_or(&NULL), pointer: self.payload.child(part).pointer };
        let fields = self.fields(part);
        let written = changes.write_row(|buffer| {
            let mut writer = RowWriter::new(buffer);
            for at in 0..self.table.columns.len() {
                if self.table.primary_key.contains(&at) {
                    self.column(&mut writer, &here, columns, fields, at).map_err(Failed)?;
                } else {
                    writer.push(ValueRef::Null);
                }
            }
            Ok(())
        });
        written.map(Some).map_err(|Failed(refusal)| refusal)
    }

    fn column(
        &self,
        writer: &mut RowWriter<'_>,
        row: &At<'_>,
        columns: &Fields,
        fields: &[Value],
        at: usize,
    ) -> Result<bool, Refusal> {
        let Some(column) = self.table.columns.get(at) else { return Ok(false) };
        let pointer = || row.child(&column.name).pointer;
        let Some(json) = columns.get(&column.name) else {
            return Err(Refusal::new(
                "missing_column",
                pointer(),
                format!("the event has no column {} of {}", column.name, self.table.qualified_name()),
                "describe the columns that the table has; leave none of them out with column.exclude.list",
            ));
        };
        let unavailable = column::push(writer, column, json, semantic(fields, &column.name), self.encoding)
            .map_err(|wrong| Refusal::new(wrong.code, pointer(), wrong.reason, wrong.remedy))?;
        if self.table.primary_key.contains(&at) && (json.is_null() || unavailable) {
            let reason = format!("column {} is part of the primary key and has no value", column.name);
            return Err(Refusal::new("no_key", pointer(), reason, "describe the primary key that the table has"));
        }
        Ok(unavailable)
    }

    /// The fields that the `schema` block says `before` or `after` has; empty where there is none.
    fn fields(&self, part: &str) -> &[Value] {
        let envelope = self.schema.and_then(|schema| schema.get("fields")).and_then(Value::as_array);
        let part = envelope.and_then(|fields| fields.iter().find(|field| field.get("field").is_some_and(|name| name == part)));
        part.and_then(|part| part.get("fields")).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }
}

fn semantic<'a>(fields: &'a [Value], column: &str) -> Semantic<'a> {
    let Some(field) = fields.iter().find(|field| field.get("field").is_some_and(|name| name == column)) else {
        return Semantic::default();
    };
    let text = |name| field.get(name).and_then(Value::as_str);
    let scale = field.get("parameters").and_then(|parameters| parameters.get("scale"));
    let scale = scale.and_then(|scale| scale.as_i64().or_else(|| scale.as_str()?.parse().ok()));
    Semantic { kind: text("type"), name: text("name"), scale }
}
