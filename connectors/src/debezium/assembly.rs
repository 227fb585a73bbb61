//! Messages -> transactions for the engine. What waits for its transaction's end is held in memory, up to a limit.
//!
//! Rows of the initial snapshot are handed on in parts before it is complete; the source answers nothing until then.

use engine::change::event::{OldRow, TooLarge};
use engine::change::{Change, Changes, Lsn, OldImage, TableId, Transaction};

use super::Refusal;
use super::envelope::{Event, Message};
use super::ledger::{Kind, Ledger};

/// Rows of the initial snapshot that are handed on together.
const SNAPSHOT_PART: usize = 2_000;
/// Memory of a transaction whose end was not seen, in bytes.
const MAX_WAITING: usize = 256 << 20;

/// Puts transactions together.
#[derive(Debug, Default)]
pub struct Assembly {
    ledger: Ledger,
    tables: Vec<TableId>,
    waiting: Vec<Changes>,
    /// The lines that `waiting` came from, where they were given.
    lines: Vec<Box<[u8]>>,
    bytes: usize,
    time_us: i64,
    ended: Vec<Transaction>,
    rows_read: u64,
}

/// How far a request can be taken.
#[derive(Debug)]
pub struct Plan {
    /// That many of its messages.
    pub length: usize,
    /// The message that is refused, and why.
    pub refused: Option<(usize, Refusal)>,
}

impl Assembly {
    /// After what the ledger holds.
    #[must_use]
    pub fn new(tables: Vec<TableId>, ledger: Ledger) -> Self {
        Assembly { ledger, tables, ..Assembly::default() }
    }

    /// The same, to take again what was taken before; [`Assembly::goes_on`] ends that.
    #[must_use]
    pub fn again(tables: Vec<TableId>, mut ledger: Ledger) -> Self {
        ledger.replay(true);
        Assembly::new(tables, ledger)
    }

    /// What follows is new.
    pub fn goes_on(&mut self) {
        self.ledger.replay(false);
    }

    /// What was seen.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Rows of the initial snapshot since the start.
    #[must_use]
    pub fn rows_read(&self) -> u64 {
        self.rows_read
    }

    /// Events that wait for their transaction's end.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Their lines.
    #[must_use]
    pub fn waiting_lines(&self) -> &[Box<[u8]>] {
        &self.lines
    }

    /// What has ended since last asked, in order. One without changes is only a position.
    pub fn take_ended(&mut self) -> Vec<Transaction> {
        std::mem::take(&mut self.ended)
    }

    /// How many of these messages can be taken. Where one is refused, nothing of a transaction that it cuts is; `cut` says
    /// that what follows the last one is refused already.
    #[must_use]
    pub fn plan(&self, messages: &[Message], cut: bool) -> Plan {
        let mut ledger = self.ledger.clone();
        let (mut whole, mut bytes) = (0, self.bytes);
        for (at, message) in messages.iter().enumerate() {
            match ledger.admit(message) {
                Ok(verdict) => {
                    if verdict.ends_before.is_some() {
                        (whole, bytes) = (at, 0);
                    }
                    if let (Message::Event(event), Kind::New) = (message, verdict.kind) {
                        bytes += event.changes.byte_size();
                    }
                    if !ledger.is_open() {
                        (whole, bytes) = (at + 1, 0);
                    }
                }
                Err(refusal) => return Plan { length: whole, refused: Some((at, refusal)) },
            }
            if bytes > MAX_WAITING {
                let refusal = Refusal::new(
                    "transaction_too_large",
                    "",
                    format!("a transaction holds more than {} MiB", MAX_WAITING >> 20),
                    "set provide.transaction.metadata=false in the Debezium connector, so that it is taken in parts",
                );
                return Plan { length: whole, refused: Some((at, refusal)) };
            }
        }
        Plan { length: if cut { whole } else { messages.len() }, refused: None }
    }

    /// Takes one message; `line` is given back by [`Assembly::waiting_lines`] while it waits.
    pub fn push(&mut self, message: Message, line: &[u8]) -> Result<Kind, Refusal> {
        let verdict = self.ledger.admit(&message)?;
        if verdict.ends_snapshot {
            self.end(super::ledger::SNAPSHOT_COMPLETE);
        }
        if let Some(position) = verdict.ends_before {
            self.end(position);
        }
        if verdict.restarts_snapshot {
            self.waiting.clear();
            self.lines.clear();
            let mut gone = Changes::default();
            self.tables.iter().for_each(|table| gone.truncate(*table));
            self.waiting.push(gone);
            self.end_snapshot_part();
        }
        if let (Message::Event(event), Kind::New) = (message, verdict.kind) {
            self.hold(event, line);
            if !self.ledger.is_streaming() {
                self.rows_read += 1;
                if self.waiting.len() >= SNAPSHOT_PART {
                    self.end_snapshot_part();
                }
            }
        }
        if let Some(position) = verdict.ends_after {
            self.end(position);
        }
        Ok(verdict.kind)
    }

    /// The request has ended; see [`Ledger::end_of_request`].
    pub fn end_of_request(&mut self) {
        if let Some(position) = self.ledger.end_of_request() {
            self.end(position);
        }
    }

    /// The initial snapshot is complete. False where it was.
    pub fn end_snapshot(&mut self) -> bool {
        let ends = self.ledger.leave_snapshot();
        if ends {
            self.end(super::ledger::SNAPSHOT_COMPLETE);
        }
        ends
    }

    /// Holds an event that the ledger knows already.
    pub fn hold(&mut self, event: Event, line: &[u8]) {
        self.time_us = event.time_us;
        self.bytes += event.changes.byte_size();
        if !line.is_empty() {
            self.lines.push(line.into());
        }
        let removed = if event.incomplete { self.waiting.pop() } else { None };
        match removed.and_then(|removed| replaced(&removed, &event.changes)) {
            Some(update) => self.waiting.push(update),
            None => self.waiting.push(event.changes),
        }
    }

    fn end_snapshot_part(&mut self) {
        if let Some(position) = self.ledger.snapshot_part() {
            self.end(position);
        }
    }

    fn end(&mut self, end_lsn: Lsn) {
        let mut changes = Changes::default();
        for waiting in self.waiting.drain(..) {
            // Together they are within the limit, which is far below the arena's.
            let _ = append(&mut changes, &waiting);
        }
        self.lines.clear();
        self.bytes = 0;
        self.ended.push(Transaction { end_lsn, commit_time_us: self.time_us, changes });
    }
}

/// A row that was removed and appears under another key is an update of its key: large values stay what they were.
fn replaced(removed: &Changes, appeared: &Changes) -> Option<Changes> {
    let (Some(Change::Delete { table, old: OldImage::Key(old) }), Some(Change::InsertChecked { new, .. })) =
        (removed.iter().next(), appeared.iter().next())
    else {
        return None;
    };
    let mut update = Changes::default();
    let old = copy(&mut update, old.0).ok()?;
    let new = copy(&mut update, new.0).ok()?;
    update.update(table, OldRow::Key(old), new);
    Some(update)
}

fn copy(into: &mut Changes, row: &[u8]) -> Result<engine::change::event::WrittenRow, TooLarge> {
    into.write_row(|buffer| {
        buffer.extend_from_slice(row);
        Ok(())
    })
}

fn append(into: &mut Changes, from: &Changes) -> Result<(), TooLarge> {
    for change in from.iter() {
        match change {
            Change::Insert { table, new } => {
                let new = copy(into, new.0)?;
                into.insert(table, new);
            }
            Change::InsertChecked { table, new } => {
                let new = copy(into, new.0)?;
                into.insert_checked(table, new);
            }
            Change::Update { table, old, new } => {
                let old = copy_old(into, old)?;
                let new = copy(into, new.0)?;
                into.update(table, old, new);
            }
            Change::Upsert { table, new } => {
                let new = copy(into, new.0)?;
                into.upsert(table, new);
            }
            Change::Delete { table, old } => {
                let old = copy_old(into, old)?;
                into.delete(table, old);
            }
            Change::Truncate { table } => into.truncate(table),
        }
    }
    Ok(())
}

fn copy_old(into: &mut Changes, old: OldImage<'_>) -> Result<OldRow, TooLarge> {
    Ok(match old {
        OldImage::Absent => OldRow::Absent,
        OldImage::Key(row) => OldRow::Key(copy(into, row.0)?),
        OldImage::Full(row) => OldRow::Full(copy(into, row.0)?),
    })
}
