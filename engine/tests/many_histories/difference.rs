//! What is told of a history that differs: its cells, all its changes, and whether they do the same alone. That is found in the
//! log: keys tell the history they are of.

use std::fmt::Write;

use engine::change::event::{OldImage, OldRow, TooLarge};
use engine::change::{Change, Changes, RowRef, TableId, Transaction, Value, ValueRef};
use engine::materialization::group_key;
use engine::source::SourceEvent;

use crate::model::expected::{Expected, definitions};
use crate::session::Session;
use crate::stream::{BEGINNING, KEYS, Stream, tables};
use crate::{compare, config, register};

/// A cell that is not what it should be.
pub struct Difference {
    pub history: i64,
    pub text: String,
}

/// All that differs of the first history that does.
pub fn difference(name: &str, stored: &Expected, expected: &Expected) -> Difference {
    let history_of = |key: &[u8]| match group_key::decode(key).unwrap()[0] {
        Value::Int(history) => history,
        ref other => panic!("{name}: a group of history {other:?}"),
    };
    let keys = stored.keys().chain(expected.keys());
    let differing: Vec<_> = keys.filter(|key| stored.get(*key) != expected.get(*key)).collect();
    let history = differing.iter().map(|(_, _, group)| history_of(group)).min().unwrap();
    let mut text = String::new();
    for key in differing.iter().filter(|(_, _, group)| history_of(group) == history) {
        let ((level, bucket, group), stored, expected) = (key, stored.get(*key), expected.get(*key));
        let group = group_key::decode(group).unwrap();
        writeln!(text, "{name} level {level} bucket {bucket} {group:?}: is {stored:?}, should be {expected:?}")
            .unwrap();
    }
    Difference { history, text }
}

/// The log with nothing in it but the changes of one history.
fn log_of(history: i64, table: TableId, log: &[Transaction]) -> Vec<Transaction> {
    let of_history = |row: RowRef<'_>| match row.columns().next() {
        Some(Ok(ValueRef::Int(id))) => id / KEYS == history,
        other => panic!("{other:?} is no key"),
    };
    let only = |transaction: &Transaction| {
        let mut changes = Changes::default();
        for change in transaction.changes.iter().filter(|change| change.table() == table) {
            let of = match change {
                Change::Insert { new, .. }
                | Change::InsertChecked { new, .. }
                | Change::Update { new, .. }
                | Change::Upsert { new, .. } => of_history(new),
                Change::Delete { old: OldImage::Key(old) | OldImage::Full(old), .. } => of_history(old),
                Change::Delete { .. } => false,
                Change::Truncate { .. } => true,
            };
            if of {
                copy(change, &mut changes);
            }
        }
        Transaction { changes, ..*transaction }
    };
    log.iter().map(only).filter(|transaction| !transaction.changes.is_empty()).collect()
}

fn copy(change: Change<'_>, to: &mut Changes) {
    let written = |to: &mut Changes, row: RowRef<'_>| {
        to.write_row::<TooLarge>(|buffer| {
            buffer.extend_from_slice(row.0);
            Ok(())
        })
        .unwrap()
    };
    let old_of = |to: &mut Changes, old| match old {
        OldImage::Absent => OldRow::Absent,
        OldImage::Key(row) => OldRow::Key(written(to, row)),
        OldImage::Full(row) => OldRow::Full(written(to, row)),
    };
    match change {
        Change::Insert { table, new } | Change::InsertChecked { table, new } => {
            let new = written(to, new);
            to.insert(table, new);
        }
        Change::Update { table, old, new } => {
            let (old, new) = (old_of(to, old), written(to, new));
            to.update(table, old, new);
        }
        Change::Upsert { table, new } => {
            let new = written(to, new);
            to.upsert(table, new);
        }
        Change::Delete { table, old } => {
            let old = old_of(to, old);
            to.delete(table, old);
        }
        Change::Truncate { table } => to.truncate(table),
    }
}

/// Tells the history that differs, and whether it does so alone.
pub async fn explain(stream: &Stream, difference: Difference, what: &str) -> ! {
    let Difference { history, text } = difference;
    let rows = &stream.histories[history as usize].rows;
    let log = log_of(history, rows.table, &stream.log);
    let mut told = String::new();
    for transaction in &log {
        for change in transaction.changes.iter() {
            write!(told, "{} ", transaction.end_lsn).unwrap();
            tell(change, &mut told);
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let session = Session::open(&config(directory.path(), 1, 0), tables(), BEGINNING).await;
    session.send(SourceEvent::SnapshotDone { lsn: BEGINNING, time_us: 0 }).await;
    let table = tables().into_iter().find(|table| table.id == rows.table).unwrap();
    let mut registered = Vec::new();
    for which in 0..definitions("", true).len() {
        registered.push(register(&session, &table, which).await);
    }
    for transaction in &log {
        session.send(SourceEvent::Transaction(transaction.clone())).await;
    }
    session.reached(log.last().map_or(BEGINNING, |transaction| transaction.end_lsn), what).await;
    let alone = match compare(&session, &registered, |_| rows.rows.values(), what).await {
        Ok(_) => "alone it does not differ".to_owned(),
        Err(alone) => format!("alone it differs, too:\n{}", alone.text),
    };
    panic!("{what}, history {history}\n{text}its changes:\n{told}{alone}");
}

fn tell(change: Change<'_>, told: &mut String) {
    let values = |row: RowRef<'_>| format!("{:?}", row.columns().map(Result::unwrap).collect::<Vec<_>>());
    let before = |old| match old {
        OldImage::Absent => String::new(),
        OldImage::Key(row) => format!("key {}", values(row)),
        OldImage::Full(row) => format!("row {}", values(row)),
    };
    match change {
        Change::Insert { new, .. } | Change::InsertChecked { new, .. } => writeln!(told, "insert {}", values(new)),
        Change::Update { old, new, .. } => writeln!(told, "update {} to {}", before(old), values(new)),
        Change::Upsert { new, .. } => writeln!(told, "upsert {}", values(new)),
        Change::Delete { old, .. } => writeln!(told, "delete {}", before(old)),
        Change::Truncate { .. } => writeln!(told, "truncate"),
    }
    .unwrap();
}
