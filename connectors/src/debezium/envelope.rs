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
    /// When it committed, or when the row of a snapshot was read, by the clock of there: milliseconds since 1970, which
    /// every version of Debezium says. `None` where it does not say.
    pub at_ms: Option<i64>,
    /// The database, where it is said.
    pub database: Option<Box<str>>,
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
            Some(pair) if pair.contains_key("value") && !pair.contains_key("op") => {
                (pair.get("key"), At::field(line, "value"))
            }
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
            Refusal::new(
                "bad_position",
                &id.pointer,
                "a transaction's id has the form \"571:53195832\"",
                NOT_POSITIONED,
            )
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
                    changes.insert_checked(table.id, new);
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
                        format!(
                            "ALTER TABLE {}.{} REPLICA IDENTITY DEFAULT, with a primary key",
                            table.namespace, table.name
                        ),
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
        Ok(Message::Event(Event {
            table: index,
            origin,
            lsn,
            time_us: time(&source),
            at_ms: source.json.get("ts_ms").and_then(Value::as_i64).filter(|at| *at > 0),
            database: source.json.get("db").and_then(Value::as_str).map(Box::from),
            identity,
            changes,
            incomplete,
        }))
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
        Change::Insert { new, .. }
        | Change::InsertChecked { new, .. }
        | Change::Update { new, .. }
        | Change::Upsert { new, .. } => Some(new),
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
        let part =
            envelope.and_then(|fields| fields.iter().find(|field| field.get("field").is_some_and(|name| name == part)));
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use engine::change::{Column, ColumnType, Numeric, TableId};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn customers() -> TableSchema {
        let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
        TableSchema {
            id: TableId(7),
            namespace: "public".to_owned(),
            name: "customers".to_owned(),
            columns: vec![
                column("id", ColumnType::Int4),
                column("first_name", ColumnType::Text),
                column("balance", ColumnType::Numeric { scale: Some(2) }),
                column("since", ColumnType::Timestamp),
            ],
            primary_key: vec![0],
            keeps_row_image: true,
        }
    }

    fn decoder() -> Decoder {
        Decoder::new(vec![customers()], Encoding::default())
    }

    /// As the Postgres connector 3.x with the JSON converter writes an insert.
    fn create() -> Value {
        let field = |kind: &str, name: Option<&str>, field: &str| {
            let mut described = json!({"type": kind, "optional": true, "field": field});
            if let Some(name) = name {
                described["name"] = json!(name);
                described["version"] = json!(1);
            }
            described
        };
        let mut balance = field("bytes", Some("org.apache.kafka.connect.data.Decimal"), "balance");
        balance["parameters"] = json!({"scale": "2", "connect.decimal.precision": "10"});
        let columns = json!([
            {"type": "int32", "optional": false, "default": 0, "field": "id"},
            field("string", None, "first_name"),
            balance,
            field("int64", Some("io.debezium.time.Timestamp"), "since"),
        ]);
        let row = |part: &str| json!({"type": "struct", "fields": columns, "optional": true, "name": "shop.public.customers.Value", "field": part});
        json!({
            "schema": {"type": "struct", "fields": [row("before"), row("after"), field("string", None, "op")], "optional": false,
                       "name": "shop.public.customers.Envelope", "version": 2},
            "payload": {
                "before": null,
                "after": {"id": 1, "first_name": "Anne", "balance": "BOI=", "since": 1_529_507_596_945i64},
                "source": {
                    "version": "3.2.0.Final", "connector": "postgresql", "name": "shop", "ts_ms": 1_559_033_904_863i64,
                    "snapshot": "false", "db": "postgres", "sequence": "[\"24023119\",\"24023128\"]",
                    "ts_us": 1_559_033_904_863_123i64, "ts_ns": 1_559_033_904_863_123_000i64, "schema": "public",
                    "table": "customers", "txId": 555, "lsn": 24_023_128, "xmin": null, "origin": null, "origin_lsn": null,
                },
                "transaction": {"id": "555:24023128", "total_order": 1, "data_collection_order": 1},
                "op": "c", "ts_ms": 1_559_033_904_901i64, "ts_us": 1_559_033_904_901_841i64,
                "ts_ns": 1_559_033_904_901_841_257i64,
            },
        })
    }

    fn event(line: &Value) -> Event {
        match decoder().decode(line) {
            Ok(Message::Event(event)) => event,
            other => panic!("{other:?}"),
        }
    }

    fn refused(line: &Value) -> (&'static str, String) {
        let refusal = decoder().decode(line).unwrap_err();
        assert!(!refusal.reason.is_empty() && !refusal.remedy.is_empty());
        (refusal.code, refusal.pointer)
    }

    fn values(row: engine::change::RowRef<'_>) -> Vec<ValueRef<'_>> {
        row.columns().map(Result::unwrap).collect()
    }

    #[test]
    fn an_insert_with_its_schema() {
        let event = event(&create());
        assert_eq!(event.origin, Origin::Stream { transaction: 555, commit: 24_023_119 });
        assert_eq!((event.lsn, event.table, event.incomplete), (24_023_128, 0, false));
        assert_eq!(event.time_us, 1_559_033_904_863_123 - EPOCH_MICROS_AFTER_1970);
        assert_eq!(event.at_ms, Some(1_559_033_904_863));
        let Some(Change::InsertChecked { table: TableId(7), new }) = event.changes.iter().next() else { panic!() };
        let numeric = ValueRef::Numeric(Numeric::Finite { mantissa: 1250, scale: 2 });
        let since = ValueRef::Timestamp(1_529_507_596_945_000 - EPOCH_MICROS_AFTER_1970);
        assert_eq!(values(new), [ValueRef::Int(1), ValueRef::Text("Anne"), numeric, since]);
    }

    #[test]
    fn the_same_without_schema_and_beside_its_key() {
        let wrapped = create();
        let mut bare = wrapped["payload"].clone();
        // Without the schema block a number is microseconds.
        bare["after"]["since"] = json!(1_529_507_596_945_000i64);
        let rows = |event: &Event| format!("{:?}", event.changes);
        let expected = rows(&event(&wrapped));
        for line in [
            json!({"key": {"id": 1}, "value": bare}),
            json!({"key": {"schema": {}, "payload": {"id": 1}}, "value": wrapped}),
            json!({"payload": bare}),
            bare,
        ] {
            assert_eq!(rows(&event(&line)), expected, "{line}");
        }
    }

    #[test]
    fn updates_and_deletes_use_the_key_and_nothing_else_of_the_row_before() {
        let mut update = create();
        update["payload"]["op"] = json!("u");
        update["payload"]["after"]["first_name"] = json!("__debezium_unavailable_value");
        let absent = event(&update);
        let Some(Change::Update { old: OldImage::Absent, new, .. }) = absent.changes.iter().next() else { panic!() };
        assert_eq!(values(new)[1], ValueRef::Unchanged);
        // Under the default identity the other columns are made up, or left out.
        for before in [json!({"id": 9}), json!({"id": 9, "first_name": "", "balance": "AA==", "since": 0})] {
            update["payload"]["before"] = before;
            let moved = event(&update);
            let Some(Change::Update { old: OldImage::Key(old), .. }) = moved.changes.iter().next() else { panic!() };
            assert_eq!(values(old), [ValueRef::Int(9), ValueRef::Null, ValueRef::Null, ValueRef::Null]);
        }
        let mut delete = update.clone();
        delete["payload"]["op"] = json!("d");
        delete["payload"]["after"] = Value::Null;
        assert!(event(&delete).deletes());
        delete["payload"]["before"] = Value::Null;
        assert_eq!(refused(&delete), ("no_key", "/before".replace("/before", "/payload/before")));
        let beside = event(&json!({"key": {"payload": {"id": 3}}, "value": delete}));
        let Some(Change::Delete { old: OldImage::Key(old), .. }) = beside.changes.iter().next() else { panic!() };
        assert_eq!(values(old)[0], ValueRef::Int(3));
    }

    #[test]
    fn what_concerns_no_row_is_nothing() {
        let mut message = create();
        message["payload"]["op"] = json!("m");
        message["payload"]["source"]["table"] = json!("");
        for line in [
            Value::Null,
            json!({"schema": null, "payload": null}),
            json!({"key": {"id": 1}, "value": null}),
            json!({"ts_ms": 1}),
            json!({"schema": {"type": "struct"}, "payload": {"ts_ms": 1}}),
            message,
        ] {
            assert!(matches!(decoder().decode(&line), Ok(Message::Nothing)), "{line}");
        }
    }

    #[test]
    fn markers_of_transactions() {
        let begin = json!({"status": "BEGIN", "id": "571:53195829", "ts_ms": 1_486_500_577_125i64, "event_count": null, "data_collections": null});
        assert!(matches!(decoder().decode(&begin), Ok(Message::Begin { transaction: 571 })));
        let end = json!({"schema": {}, "payload": {
            "status": "END", "id": "571:53195832", "ts_ms": 1_486_500_577_691i64, "event_count": 3,
            "data_collections": [{"data_collection": "public.customers", "event_count": 2}, {"data_collection": "public.orders", "event_count": 1}],
        }});
        let Ok(Message::End { transaction: 571, lsn: 53_195_832, counts }) = decoder().decode(&end) else { panic!() };
        assert_eq!(counts, [(0, 2)]);
    }

    #[test]
    fn snapshots_in_all_their_spellings() {
        for (spelt, origin) in [
            (json!(true), Origin::Snapshot(Mark::Some)),
            (json!("true"), Origin::Snapshot(Mark::Some)),
            (json!("first"), Origin::Snapshot(Mark::First)),
            (json!("first_in_data_collection"), Origin::Snapshot(Mark::First)),
            (json!("last_in_data_collection"), Origin::Snapshot(Mark::LastOfTable)),
            (json!("last"), Origin::Snapshot(Mark::Last)),
            (json!("incremental"), Origin::Incremental { commit: 24_023_119 }),
            (json!("false"), Origin::Snapshot(Mark::Some)),
        ] {
            let mut line = create();
            line["payload"]["op"] = json!("r");
            line["payload"]["source"]["snapshot"] = spelt.clone();
            let event = event(&line);
            assert_eq!(event.origin, origin, "{spelt}");
            assert!(matches!(event.changes.iter().next(), Some(Change::Upsert { .. })));
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let with = |pointer: &str, json: Value| {
            let mut line = create();
            *line.pointer_mut(pointer).unwrap() = json;
            refused(&line)
        };
        let at = |code, pointer: &str| (code, pointer.to_owned());
        assert_eq!(with("/payload/after/balance", json!(12.5)), at("inexact_decimal", "/payload/after/balance"));
        assert_eq!(with("/payload/after/id", json!("1")), at("value_mismatch", "/payload/after/id"));
        assert_eq!(with("/payload/after/id", json!(null)), at("no_key", "/payload/after/id"));
        assert_eq!(with("/payload/after", json!({"id": 1})), at("missing_column", "/payload/after/first_name"));
        assert_eq!(with("/payload/after", json!(null)), at("no_row", "/payload/after"));
        assert_eq!(with("/payload/op", json!("x")), at("not_an_envelope", "/payload/op"));
        assert_eq!(with("/payload/source/table", json!("orders")), at("unknown_table", "/payload/source/table"));
        assert_eq!(with("/payload/source/connector", json!("mysql")), at("not_postgres", "/payload/source/connector"));
        assert_eq!(with("/payload/source/sequence", json!(null)), at("bad_position", "/payload/source/sequence"));
        assert_eq!(with("/payload/source/sequence", json!("[1")), at("bad_position", "/payload/source/sequence"));
        assert_eq!(with("/payload/source/txId", json!(null)), at("bad_position", "/payload/source/txId"));
        assert_eq!(refused(&json!({"id": 1, "first_name": "Anne"})), at("not_an_envelope", ""));
        assert_eq!(refused(&json!([])), at("not_an_envelope", ""));
        let ignoring = Encoding { other_tables: OtherTables::Ignore, ..Encoding::default() };
        let mut other = create();
        other["payload"]["source"]["table"] = json!("orders");
        assert!(matches!(Decoder::new(vec![customers()], ignoring).decode(&other), Ok(Message::Nothing)));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
            prop::sample::select(vec![
                "c",
                "u",
                "d",
                "r",
                "t",
                "m",
                "last",
                "BEGIN",
                "END",
                "1:2",
                "[\"1\",\"2\"]",
                "AA==",
                "infinity"
            ])
            .prop_map(Value::from),
        ];
        let name = prop::sample::select(vec![
            "payload",
            "schema",
            "key",
            "value",
            "op",
            "source",
            "before",
            "after",
            "id",
            "status",
            "fields",
            "field",
            "name",
            "scale",
            "parameters",
            "sequence",
            "lsn",
            "txId",
            "snapshot",
            "table",
            "data_collections",
            "first_name",
            "balance",
        ]);
        leaf.prop_recursive(4, 48, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((name.clone(), inner), 0..6).prop_map(|fields| Value::Object(
                    fields.into_iter().map(|(name, json)| (name.to_owned(), json)).collect()
                )),
            ]
        })
    }

    /// All places in a value.
    fn places(json: &Value, here: &str, into: &mut Vec<String>) {
        into.push(here.to_owned());
        match json {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, json)| places(json, &format!("{here}/{name}"), into))
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(at, json)| places(json, &format!("{here}/{at}"), into))
            }
            _ => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_json_is_read_or_refused(json in any_json()) {
            let _ = decoder().decode(&json);
        }

        #[test]
        fn any_mutation_of_an_envelope_is_read_or_refused(
            operation in prop::sample::select(vec!["c", "u", "d", "r", "t"]),
            place in any::<prop::sample::Index>(),
            twice in any::<prop::sample::Index>(),
            json in any_json(),
        ) {
            let mut line = create();
            line["payload"]["op"] = serde_json::json!(operation);
            line["payload"]["before"] = serde_json::json!({"id": 1});
            for place in [place, twice] {
                let mut all = Vec::new();
                places(&line, "", &mut all);
                let place: &String = place.get(&all);
                *line.pointer_mut(place).unwrap() = json.clone();
            }
            if let Ok(Message::Event(event)) = decoder().decode(&line) {
                // What is read is a row of the table's shape.
                prop_assert_eq!(event.changes.len(), 1);
                if let Some(Change::InsertChecked { new, .. } | Change::Update { new, .. } | Change::Upsert { new, .. }) = event.changes.iter().next() {
                    prop_assert_eq!(new.columns().filter(Result::is_ok).count(), 4);
                }
            }
        }
    }
}
