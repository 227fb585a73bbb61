//! What was seen, and what follows it: the order of Debezium's events, and where their transactions end.
//!
//! Events come in commit order, each with its own position in the log (`source.lsn`) and the end of the commit before its
//! transaction (`source.sequence[0]`). Own positions of concurrent transactions overlap and rows written together share
//! one, so an event is placed by transaction id, commit before, own position, and what it does to which row:
//!
//! - of the transaction seen last: new if its position is later, or the same and nothing like it was seen there;
//! - of another one: new if the commit before it lies at or after the end of the transaction seen last;
//! - otherwise it was seen before, and its table knows a later one. If its table does not, events of several tables come
//!   in an order that is not the log's: that is refused, because skipping it would lose it.
//!
//! A transaction's position is one past the later of its last event and the commit before it. That lies after all that
//! committed earlier, and not after its own commit, so positions rise as commits do. Positions before `0/1000000`, which no
//! log has, count what is read of the initial snapshot.
//!
//! A transaction ends with its END marker if a BEGIN marker announced it; otherwise with the first event of the next one,
//! and with the end of the request that brought it. One that goes on in a later request is then visible in parts.

use std::collections::BTreeMap;

use engine::change::Lsn;
use serde::{Deserialize, Serialize};

use super::Refusal;
use super::envelope::{Event, Mark, Message, Origin};

/// The initial snapshot is complete, and nothing followed it yet.
pub const SNAPSHOT_COMPLETE: Lsn = Lsn(0xFF_FFFF);

/// Where a table's events have got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Reached {
    transaction: u64,
    commit: u64,
    lsn: u64,
}

/// A transaction whose end was not seen yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Open {
    /// By a BEGIN marker, so that an END marker follows.
    announced: bool,
    /// Events of each table, those seen before included.
    counts: BTreeMap<usize, u64>,
}

/// What was read of a table in the initial snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct TableRead {
    rows: u64,
    /// Its last row came.
    complete: bool,
}

/// The initial snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SnapshotRead {
    lsn: u64,
    tables: BTreeMap<usize, TableRead>,
    /// Rows say which is the last of their table (Debezium 2.1 and newer).
    marked: bool,
}

/// What was seen so far; small, and stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    position: Lsn,
    transaction: Option<u64>,
    commit: u64,
    lsn: u64,
    /// What happened at `lsn`.
    at_lsn: Vec<u64>,
    open: Option<Open>,
    announced: Option<u64>,
    tables: BTreeMap<usize, Reached>,
    streaming: bool,
    snapshot: Option<SnapshotRead>,
    /// The table whose row the last event removed; a row may appear in its place.
    removed: Option<usize>,
}

/// What is to be done with a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The transaction before ends here, at this position.
    pub ends_before: Option<Lsn>,
    /// The initial snapshot ends before it.
    pub ends_snapshot: bool,
    /// Rows of the initial snapshot so far are void: it begins anew.
    pub restarts_snapshot: bool,
    /// What the message is.
    pub kind: Kind,
    /// The transaction ends with it, at this position.
    pub ends_after: Option<Lsn>,
}

/// What a message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Nothing that concerns rows.
    #[default]
    Nothing,
    /// Seen before.
    Duplicate,
    /// To be applied.
    New,
}

impl Ledger {
    /// A transaction has begun here and not ended.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Position of what has ended.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The initial snapshot is complete.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.streaming
    }

    /// Places the next message.
    pub fn admit(&mut self, message: &Message) -> Result<Verdict, Refusal> {
        match message {
            Message::Nothing => Ok(Verdict::default()),
            Message::Begin { transaction } => {
                self.announced = Some(*transaction);
                if self.transaction == Some(*transaction)
                    && let Some(open) = &mut self.open
                {
                    open.announced = true;
                }
                Ok(Verdict::default())
            }
            Message::End { transaction, lsn, counts } => self.end(*transaction, *lsn, counts),
            Message::SnapshotEnd { lsn } => match &self.snapshot {
                Some(read) if !self.streaming && read.lsn == *lsn => {
                    self.check_tables()?;
                    Ok(Verdict { ends_snapshot: self.leave_snapshot(), ..Verdict::default() })
                }
                _ => Ok(Verdict::default()),
            },
            Message::Event(event) => match event.origin {
                Origin::Snapshot(mark) => self.snapshot(event, mark),
                Origin::Incremental { commit } => {
                    self.check_snapshot()?;
                    let ends_snapshot = self.leave_snapshot();
                    // Rows read again belong to no transaction; they are visible with the next that ends.
                    if event.incomplete {
                        return Err(unavailable(event));
                    }
                    let new = Lsn(commit) >= self.position || !self.has_streamed();
                    self.removed = None;
                    let kind = if new { Kind::New } else { Kind::Duplicate };
                    Ok(Verdict { ends_snapshot, kind, ..Verdict::default() })
                }
                Origin::Stream { transaction, commit } => self.stream(event, transaction, commit),
            },
        }
    }

    /// The initial snapshot is complete. False where it was.
    pub fn leave_snapshot(&mut self) -> bool {
        let leaves = !self.streaming;
        if leaves {
            self.streaming = true;
            self.position = SNAPSHOT_COMPLETE;
        }
        leaves
    }

    /// The request has ended: so has a transaction that no BEGIN marker announced. Its position.
    pub fn end_of_request(&mut self) -> Option<Lsn> {
        if self.open.as_ref().is_some_and(|open| !open.announced) { self.close(None) } else { None }
    }

    /// A position for rows of the snapshot, so that they can be stored before it is complete; `None` where there are no
    /// more.
    pub fn snapshot_part(&mut self) -> Option<Lsn> {
        let next = Lsn(self.position.0.saturating_add(1));
        if self.streaming || next >= SNAPSHOT_COMPLETE {
            return None;
        }
        self.position = next;
        Some(next)
    }

    fn has_streamed(&self) -> bool {
        self.position > SNAPSHOT_COMPLETE
    }

    fn snapshot(&mut self, event: &Event, mark: Mark) -> Result<Verdict, Refusal> {
        if event.incomplete {
            return Err(unavailable(event));
        }
        let lsn = event.lsn;
        let read = self.snapshot.as_ref();
        let came_before = read.is_some_and(|read| read.tables.contains_key(&event.table));
        match read {
            Some(read) if lsn < read.lsn => return Ok(Verdict { kind: Kind::Duplicate, ..Verdict::default() }),
            Some(read) if self.streaming && lsn == read.lsn && came_before => {
                return Ok(Verdict { kind: Kind::Duplicate, ..Verdict::default() });
            }
            Some(read) if self.streaming && lsn > read.lsn => {
                return Err(Refusal::new(
                    "second_snapshot",
                    "/source/snapshot",
                    "the initial snapshot is complete, and a row of a later one came: what changed between the two is not told",
                    "start over with an empty data directory (--data NEWDIR) and let the Debezium connector read its snapshot again",
                ));
            }
            _ if self.streaming => return Err(out_of_order("a row of the initial snapshot came after its end")),
            _ => {}
        }
        let restarts_snapshot = read.is_some_and(|read| lsn > read.lsn);
        if restarts_snapshot {
            self.snapshot = None;
        }
        let read = self.snapshot.get_or_insert_with(|| SnapshotRead { lsn, ..SnapshotRead::default() });
        read.marked |= matches!(mark, Mark::First | Mark::LastOfTable);
        let table = read.tables.entry(event.table).or_default();
        table.rows += 1;
        table.complete |= matches!(mark, Mark::LastOfTable | Mark::Last);
        let mut ends_after = None;
        if mark == Mark::Last {
            self.check_tables()?;
            self.leave_snapshot();
            ends_after = Some(self.position);
        }
        Ok(Verdict { restarts_snapshot, kind: Kind::New, ends_after, ..Verdict::default() })
    }

    /// The end has come: so must the last row of each table. A table's only row may be marked as the first.
    fn check_tables(&self) -> Result<(), Refusal> {
        let incomplete = |read: &SnapshotRead| read.marked && read.tables.values().any(|t| !t.complete && t.rows > 1);
        match &self.snapshot {
            Some(read) if incomplete(read) => Err(out_of_order("the last row of the initial snapshot came before others")),
            _ => Ok(()),
        }
    }

    /// The stream begins: the snapshot must have ended, or never begun.
    fn check_snapshot(&self) -> Result<(), Refusal> {
        if self.streaming || self.snapshot.is_none() {
            return Ok(());
        }
        Err(Refusal::new(
            "snapshot_incomplete",
            "/source/snapshot",
            "an event of the log came, and the last row of the initial snapshot (\"snapshot\":\"last\") did not",
            "send the events of all tables in order; where the last row is not marked, say so with POST ...?snapshot=done",
        ))
    }

    fn stream(&mut self, event: &Event, transaction: u64, commit: u64) -> Result<Verdict, Refusal> {
        let reached = self.tables.get(&event.table).copied();
        if self.transaction == Some(transaction) {
            if let Some(open) = &mut self.open {
                *open.counts.entry(event.table).or_default() += 1;
            }
            let seen = event.lsn < self.lsn || (event.lsn == self.lsn && self.at_lsn.contains(&event.identity));
            if seen {
                let known = reached.is_some_and(|r| r.transaction != transaction || r.lsn >= event.lsn);
                return seen_before(known, event);
            }
            // The second half of a change of key takes from the first what it does not hold itself.
            let replaces = self.open.is_some() && self.removed == Some(event.table) && self.lsn == event.lsn;
            if event.incomplete && !replaces {
                return Err(unavailable(event));
            }
            // After its end was taken for reached: the rest of it is a part of its own.
            self.open.get_or_insert_with(|| Open { announced: self.announced == Some(transaction), ..Open::default() });
            self.advance(event, transaction, self.commit);
            return Ok(Verdict { kind: Kind::New, ..Verdict::default() });
        }
        let end = if self.open.is_some() { self.next_position() } else { self.position };
        if self.streaming && self.transaction.is_some() && Lsn(commit) < end {
            let known = reached.is_some_and(|r| match r.transaction == transaction {
                true => r.lsn >= event.lsn,
                false => r.commit >= commit,
            });
            return seen_before(known, event);
        }
        if event.incomplete {
            return Err(unavailable(event));
        }
        self.check_snapshot()?;
        let ends_snapshot = self.leave_snapshot();
        let ends_before = if self.open.is_some() { self.close(None) } else { None };
        self.open = Some(Open {
            announced: self.announced == Some(transaction),
            counts: BTreeMap::from([(event.table, 1)]),
        });
        self.transaction = Some(transaction);
        self.lsn = 0;
        self.advance(event, transaction, commit);
        Ok(Verdict { ends_before, ends_snapshot, kind: Kind::New, ..Verdict::default() })
    }

    fn advance(&mut self, event: &Event, transaction: u64, commit: u64) {
        if event.lsn > self.lsn {
            self.at_lsn.clear();
        }
        self.at_lsn.push(event.identity);
        self.removed = event.deletes().then_some(event.table);
        self.lsn = event.lsn;
        self.commit = commit;
        self.tables.insert(event.table, Reached { transaction, commit, lsn: event.lsn });
    }

    fn end(&mut self, transaction: u64, lsn: u64, counts: &[(usize, u64)]) -> Result<Verdict, Refusal> {
        let open = match &self.open {
            Some(open) if self.transaction == Some(transaction) => open,
            // Of a transaction that has ended here, or had nothing for us.
            _ => return Ok(Verdict::default()),
        };
        let came = |table| open.counts.get(&table).copied().unwrap_or_default();
        if open.announced
            && let Some((_, announced)) = counts.iter().find(|(table, announced)| came(*table) < *announced)
        {
            return Err(Refusal::new(
                "incomplete_transaction",
                "/data_collections",
                format!("transaction {transaction} had {announced} events of a table, and fewer came"),
                "let nothing between Debezium and here drop events (set skipped.operations=none), and send them again",
            ));
        }
        Ok(Verdict { ends_after: self.close(Some(lsn)), ..Verdict::default() })
    }

    fn next_position(&self) -> Lsn {
        Lsn(self.commit.max(self.lsn).max(self.position.0).saturating_add(1))
    }

    /// Ends the open transaction; `end` is where its commit ends, where that is known.
    fn close(&mut self, end: Option<u64>) -> Option<Lsn> {
        self.open.take()?;
        self.announced = None;
        self.position = self.next_position().max(Lsn(end.unwrap_or_default()));
        Some(self.position)
    }
}

fn seen_before(known: bool, event: &Event) -> Result<Verdict, Refusal> {
    if known {
        return Ok(Verdict { kind: Kind::Duplicate, ..Verdict::default() });
    }
    Err(out_of_order(&format!("the event at {} lies before others that came already, and was never seen", Lsn(event.lsn))))
}

fn out_of_order(reason: &str) -> Refusal {
    let remedy =
        "send the events of all tables in the order of the log: one topic with one partition, one task, no parallel requests";
    Refusal::new("out_of_order", "/source/lsn", reason, remedy)
}

fn unavailable(event: &Event) -> Refusal {
    Refusal::new(
        "unavailable_value",
        "/after",
        format!("the row at {} appears with a large value that was not sent", Lsn(event.lsn)),
        "set provide.transaction.metadata=true in the Debezium connector, so that both halves of a change of key come in \
         one transaction; or ALTER TABLE ... REPLICA IDENTITY FULL",
    )
}
