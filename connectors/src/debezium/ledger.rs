//! What was seen, and what follows it: the order of Debezium's events, and where their transactions end.
//!
//! Events come in commit order, each with its own position in the log (`source.lsn`) and the end of the commit before its
//! transaction (`source.sequence[0]`). Own positions of concurrent transactions overlap and rows written together share
//! one, so an event is placed by transaction id, commit before, own position, and what it does to which row:
//!
//! - of the transaction seen last: new if its position is later, or the same and nothing like it was seen there;
//! - of another one: new if the commit before it lies at or after the end of the transaction seen last;
//! - where Debezium does not know that commit (it was begun anew): new if its own position lies there;
//! - otherwise it was seen before, and its table knows a later one. If its table does not, events of several tables come
//!   in an order that is not the log's: that is refused, because skipping it would lose it.
//!
//! A transaction's position is one past the later of its last event and the commit before it. That lies after all that
//! committed earlier, and not after its own commit, so positions rise as commits do. Positions before `0/1000000`, which no
//! log has, count what is read of the initial snapshot.
//!
//! Nothing says which server an event is from. So where a position was reached before, its time is looked at: Debezium says
//! when the transaction committed (of a snapshot's row: when it was read), and says the same whenever it sends the event
//! again. A repeated event is then not later than the latest that was taken, whatever the clock there did. One that is later
//! has never been here, at a position that others had: a promoted standby lacked them, or it is another server. The same
//! holds for another time of the very transaction that was seen last. What this server's log has behind that is not told by
//! any event, so the source ends ([`DIVERGED`]).
//!
//! A transaction ends with its END marker if a BEGIN marker announced it; otherwise with the first event of the next one,
//! and with the end of the request that brought it. One that goes on in a later request is then visible in parts. An END
//! marker says how many events there were, and whatever was lost on the way is missed there at the latest: also where all of
//! a transaction was, or its BEGIN marker. Where no markers are sent, nobody can miss anything.

use std::collections::BTreeMap;

use engine::change::Lsn;
use serde::{Deserialize, Serialize};

use super::Refusal;
use super::envelope::{Event, Mark, Message, Origin};

/// The initial snapshot is complete, and nothing followed it yet.
pub const SNAPSHOT_COMPLETE: Lsn = Lsn(0xFF_FFFF);

/// Code of the refusal that ends the source: the log has another history than what was taken from it.
pub const DIVERGED: &str = "events_diverged";

/// The remedy of that.
pub const READ_ANEW: &str = "start over with an empty data directory and a new snapshot of the Debezium connector: tidemark serve --data NEWDIR";

/// Transactions that were announced and have not ended, at most.
const MAX_ANNOUNCED: usize = 32;

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
    /// Events of each table; each counts once, however often it was sent.
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

/// What is known of when things committed. Ledgers of earlier versions know nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Times {
    /// What was taken before this position is not counted in `newest_ms`.
    from: Lsn,
    newest_ms: i64,
    /// Of the transaction seen last.
    last_ms: Option<i64>,
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
    /// Events of the transaction seen last, by table, where it was taken for ended without its END marker.
    #[serde(default)]
    ended: Option<BTreeMap<usize, u64>>,
    /// Transactions whose BEGIN marker came and whose end did not.
    announced: Vec<u64>,
    tables: BTreeMap<usize, Reached>,
    streaming: bool,
    snapshot: Option<SnapshotRead>,
    /// The table whose row the last event removed; a row may appear in its place.
    removed: Option<usize>,
    #[serde(default)]
    times: Option<Times>,
    /// When the latest row of the initial snapshot was read, those of an interrupted one included.
    #[serde(default)]
    read_ms: Option<i64>,
    /// The database that all of it is of.
    #[serde(default)]
    database: Option<Box<str>>,
    /// What is admitted was taken before, perhaps when transactions were not missed in all cases.
    #[serde(skip)]
    replaying: bool,
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

    /// Whether what is admitted was taken before: then it is not asked whether transactions are whole.
    pub fn replay(&mut self, replaying: bool) {
        self.replaying = replaying;
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
                self.announce(*transaction);
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
            Message::Event(event) => self.event(event),
        }
    }

    fn event(&mut self, event: &Event) -> Result<Verdict, Refusal> {
        self.check_database(event)?;
        match event.origin {
            Origin::Snapshot(mark) => self.snapshot(event, mark),
            Origin::Incremental { commit } => {
                self.check_snapshot()?;
                let ends_snapshot = self.leave_snapshot();
                // Rows read again belong to no transaction; they are visible with the next that ends.
                if event.incomplete {
                    return Err(unavailable(event));
                }
                let new = follows(event, commit, self.position) || !self.has_streamed();
                self.removed = None;
                let kind = if new { Kind::New } else { Kind::Duplicate };
                Ok(Verdict { ends_snapshot, kind, ..Verdict::default() })
            }
            Origin::Stream { transaction, commit } => self.stream(event, transaction, commit),
        }
    }

    /// Positions of two databases may be of two servers, and their tables have the same names.
    fn check_database(&mut self, event: &Event) -> Result<(), Refusal> {
        match (&self.database, &event.database) {
            (Some(ours), Some(other)) if ours != other => Err(Refusal::new(
                "other_database",
                "/source/db",
                format!("the event is of database {other}, and what was taken is of {ours}"),
                "post the events of one database only; for another one, or where it was renamed, start over with an empty \
                 data directory and a new snapshot: tidemark serve --data NEWDIR",
            )),
            (None, Some(first)) => {
                self.database = Some(first.clone());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn announce(&mut self, transaction: u64) {
        if !self.announced.contains(&transaction) {
            // Those of long ago have ended without a marker.
            if self.announced.len() >= MAX_ANNOUNCED {
                self.announced.remove(0);
            }
            self.announced.push(transaction);
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
        let came_any = read.is_some();
        match read {
            Some(read) if lsn < read.lsn => {
                // Of an earlier snapshot, which was interrupted; on one server a later one does not lie before it.
                return match (event.at_ms, self.read_ms) {
                    (Some(at), Some(latest)) if at > latest => Err(diverged(event, at, latest)),
                    _ => Ok(Verdict { kind: Kind::Duplicate, ..Verdict::default() }),
                };
            }
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
        // A ledger of an earlier version may have rows whose times it does not know.
        if self.read_ms.is_some() || !came_any {
            self.read_ms = self.read_ms.max(event.at_ms);
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
            Some(read) if incomplete(read) => {
                Err(out_of_order("the last row of the initial snapshot came before others"))
            }
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
            let last = self.times.and_then(|times| times.last_ms);
            if let (Some(at), Some(last)) = (event.at_ms, last)
                && at != last
            {
                return Err(diverged(event, at, last));
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
            let announced = self.announced.contains(&transaction);
            let before = self.ended.take().unwrap_or_default();
            let open = self.open.get_or_insert(Open { announced, counts: before });
            *open.counts.entry(event.table).or_default() += 1;
            self.note_time(event);
            self.advance(event, transaction, self.commit);
            return Ok(Verdict { kind: Kind::New, ..Verdict::default() });
        }
        let end = if self.open.is_some() { self.next_position() } else { self.position };
        if self.streaming && self.transaction.is_some() && !follows(event, commit, end) {
            let known = reached.is_some_and(|r| match r.transaction == transaction {
                true => r.lsn >= event.lsn,
                false => r.commit >= commit,
            });
            if let (true, Some(at), Some(times)) = (known, event.at_ms, self.times)
                && at > times.newest_ms
                && follows(event, commit, times.from)
            {
                return Err(diverged(event, at, times.newest_ms));
            }
            return seen_before(known, event);
        }
        if event.incomplete {
            return Err(unavailable(event));
        }
        self.check_snapshot()?;
        if let (Some(Open { announced: true, .. }), Some(open), false) = (&self.open, self.transaction, self.replaying)
        {
            return Err(incomplete(
                "/source/txId",
                format!("transaction {open} has not ended, and an event of {transaction} came"),
            ));
        }
        let ends_snapshot = self.leave_snapshot();
        let ends_before = if self.open.is_some() { self.close(None) } else { None };
        self.ended = None;
        self.open =
            Some(Open { announced: self.announced.contains(&transaction), counts: BTreeMap::from([(event.table, 1)]) });
        self.note_time(event);
        self.transaction = Some(transaction);
        self.lsn = 0;
        self.advance(event, transaction, commit);
        Ok(Verdict { ends_before, ends_snapshot, kind: Kind::New, ..Verdict::default() })
    }

    /// Before the event is taken.
    fn note_time(&mut self, event: &Event) {
        let from = if self.transaction.is_some() { self.next_position() } else { Lsn::ZERO };
        match (&mut self.times, event.at_ms) {
            (Some(times), Some(at)) => {
                times.newest_ms = times.newest_ms.max(at);
                times.last_ms = Some(at);
            }
            (Some(times), None) => times.last_ms = None,
            (None, Some(at)) => self.times = Some(Times { from, newest_ms: at, last_ms: Some(at) }),
            (None, None) => {}
        }
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
        let is_last = self.transaction == Some(transaction);
        let nothing = BTreeMap::new();
        let known = match &self.open {
            Some(open) if is_last => Some(&open.counts),
            _ if is_last => self.ended.as_ref(),
            // Of one that lies behind everything that was seen, no event came. What was before the first of all is not known.
            _ if self.transaction.is_some() && lsn > self.position.0.max(self.commit).max(self.lsn) => Some(&nothing),
            _ => None,
        };
        let came = |table| known.and_then(|known| known.get(&table)).copied().unwrap_or_default();
        if known.is_some()
            && !self.replaying
            && let Some((_, announced)) = counts.iter().find(|(table, announced)| came(*table) < *announced)
        {
            let reason = format!("transaction {transaction} had {announced} events of a table, and fewer came");
            return Err(incomplete("/data_collections", reason));
        }
        self.announced.retain(|announced| *announced != transaction);
        let ends_after = if is_last { self.close(Some(lsn)) } else { None };
        Ok(Verdict { ends_after, ..Verdict::default() })
    }

    fn next_position(&self) -> Lsn {
        Lsn(self.commit.max(self.lsn).max(self.position.0).saturating_add(1))
    }

    /// Ends the open transaction; `end` is where its commit ends, where that is known.
    fn close(&mut self, end: Option<u64>) -> Option<Lsn> {
        let open = self.open.take()?;
        self.ended = end.is_none().then_some(open.counts);
        self.announced.retain(|announced| Some(*announced) != self.transaction);
        self.position = self.next_position().max(Lsn(end.unwrap_or_default()));
        Some(self.position)
    }
}

/// Whether nothing up to this position can have been the event. `commit` is the end of the commit before it, 0 where that is not
/// known: then it can only be told of one that itself lies behind.
fn follows(event: &Event, commit: u64, end: Lsn) -> bool {
    Lsn(commit) >= end || (commit == 0 && Lsn(event.lsn) >= end)
}

fn incomplete(pointer: &str, reason: String) -> Refusal {
    let remedy = "let nothing between Debezium and here drop events (set skipped.operations=none), and leave markers on \
                  (provide.transaction.metadata=true), and send them again from the transaction's beginning; one that is missing from its middle cannot be taken any more: then start over with an \
                  empty data directory and a new snapshot";
    Refusal::new("incomplete_transaction", pointer, reason, remedy)
}

fn seen_before(known: bool, event: &Event) -> Result<Verdict, Refusal> {
    if known {
        return Ok(Verdict { kind: Kind::Duplicate, ..Verdict::default() });
    }
    Err(out_of_order(&format!(
        "the event at {} lies before others that came already, and was never seen",
        Lsn(event.lsn)
    )))
}

fn out_of_order(reason: &str) -> Refusal {
    let remedy = "send the events of all tables in the order of the log: one topic with one partition, one task, no parallel requests";
    Refusal::new("out_of_order", "/source/lsn", reason, remedy)
}

fn diverged(event: &Event, at_ms: i64, known_ms: i64) -> Refusal {
    let time = |ms| {
        let time = chrono::DateTime::from_timestamp_millis(ms).unwrap_or_default();
        time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
    };
    let reason = format!(
        "the event at {} is of {}, at a position that was reached by {}: it is another server's, or one that lost transactions",
        Lsn(event.lsn),
        time(at_ms),
        time(known_ms),
    );
    Refusal::new(DIVERGED, "/source/ts_ms", reason, READ_ANEW)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use engine::change::event::OldRow;
    use engine::change::{Changes, TableId};
    use proptest::prelude::*;

    use super::*;

    fn event(table: usize, origin: Origin, lsn: u64, identity: u64) -> Message {
        let mut changes = Changes::default();
        changes.truncate(TableId(1));
        Message::Event(Event {
            table,
            origin,
            lsn,
            time_us: 0,
            at_ms: None,
            database: None,
            identity,
            changes,
            incomplete: false,
        })
    }

    /// At this time.
    fn at(at_ms: i64, message: Message) -> Message {
        let Message::Event(event) = message else { panic!() };
        Message::Event(Event { at_ms: Some(at_ms), ..event })
    }

    /// An event of transaction `transaction`, after a commit that ended at `commit`.
    fn of(transaction: u64, commit: u64, lsn: u64) -> Message {
        event(0, Origin::Stream { transaction, commit }, lsn, lsn)
    }

    fn snapshot(table: usize, lsn: u64, mark: Mark) -> Message {
        event(table, Origin::Snapshot(mark), lsn, 0)
    }

    fn kind(ledger: &mut Ledger, message: &Message) -> Kind {
        ledger.admit(message).unwrap_or_else(|refusal| panic!("{refusal}")).kind
    }

    fn code(ledger: &mut Ledger, message: &Message) -> &'static str {
        ledger.admit(message).unwrap_err().code
    }

    /// A log's beginning: positions of a real one are larger than any of the snapshot's.
    const LOG: u64 = 0x100_0000;

    #[test]
    fn positions_overlap_and_commits_do_not() {
        let mut ledger = Ledger::default();
        // 2 commits at 40 and is told first, though 1 began before it and commits at 50.
        assert_eq!(kind(&mut ledger, &of(2, LOG, LOG + 20)), Kind::New);
        let verdict = ledger.admit(&of(1, LOG + 40, LOG + 10)).unwrap();
        assert_eq!((verdict.kind, verdict.ends_before), (Kind::New, Some(Lsn(LOG + 21))));
        assert_eq!(kind(&mut ledger, &of(1, LOG + 40, LOG + 30)), Kind::New);
        assert_eq!(ledger.end_of_request(), Some(Lsn(LOG + 41)));
        // All of it again, then what follows.
        for message in [of(2, LOG, LOG + 20), of(1, LOG + 40, LOG + 10), of(1, LOG + 40, LOG + 30)] {
            assert_eq!(kind(&mut ledger, &message), Kind::Duplicate);
        }
        assert_eq!(kind(&mut ledger, &of(3, LOG + 50, LOG + 45)), Kind::New);
        assert_eq!(ledger.end_of_request(), Some(Lsn(LOG + 51)));
    }

    #[test]
    fn rows_written_together_share_a_position() {
        let at = |identity| event(0, Origin::Stream { transaction: 5, commit: LOG }, LOG + 9, identity);
        let mut ledger = Ledger::default();
        assert_eq!(kind(&mut ledger, &at(1)), Kind::New);
        assert_eq!(kind(&mut ledger, &at(2)), Kind::New);
        // The request ends in the middle of them, and Debezium goes back to the second.
        let first = ledger.end_of_request().unwrap();
        assert_eq!(kind(&mut ledger, &at(2)), Kind::Duplicate);
        assert_eq!(kind(&mut ledger, &at(3)), Kind::New);
        assert!(ledger.end_of_request().unwrap() > first);
        assert_eq!(kind(&mut ledger, &at(1)), Kind::Duplicate);
    }

    #[test]
    fn a_connector_begun_anew_may_not_know_the_commit_before() {
        let mut ledger = Ledger::default();
        assert_eq!(kind(&mut ledger, &of(5, LOG, LOG + 1)), Kind::New);
        ledger.end_of_request();
        assert_eq!(kind(&mut ledger, &of(5, 0, LOG + 1)), Kind::Duplicate);
        assert_eq!(kind(&mut ledger, &of(6, 0, LOG + 9)), Kind::New);
        assert_eq!(kind(&mut ledger, &event(0, Origin::Incremental { commit: 0 }, LOG + 20, 1)), Kind::New);
        ledger.end_of_request();
        assert_eq!(kind(&mut ledger, &event(0, Origin::Incremental { commit: 0 }, LOG + 2, 1)), Kind::Duplicate);
        assert_eq!(kind(&mut ledger, &of(6, 0, LOG + 9)), Kind::Duplicate);
        assert_eq!(kind(&mut ledger, &of(7, LOG + 10, LOG + 11)), Kind::New);
    }

    #[test]
    fn a_restart_may_forget_the_commit_before_the_first_transaction() {
        let mut ledger = Ledger::default();
        assert_eq!(kind(&mut ledger, &of(5, 0, LOG + 1)), Kind::New);
        assert_eq!(kind(&mut ledger, &of(5, 0, LOG + 2)), Kind::New);
        ledger.end_of_request();
        assert_eq!(kind(&mut ledger, &of(5, LOG + 1, LOG + 2)), Kind::Duplicate);
        assert_eq!(kind(&mut ledger, &of(5, LOG + 1, LOG + 3)), Kind::New);
        ledger.end_of_request();
        assert_eq!(kind(&mut ledger, &of(6, LOG + 9, LOG + 4)), Kind::New);
        ledger.end_of_request();
        assert_eq!(kind(&mut ledger, &of(5, LOG + 1, LOG + 3)), Kind::Duplicate);
    }

    #[test]
    fn what_was_never_seen_is_not_taken_for_a_repetition() {
        let mut ledger = Ledger::default();
        let table = |table, transaction, commit, lsn| event(table, Origin::Stream { transaction, commit }, lsn, lsn);
        kind(&mut ledger, &table(0, 1, LOG, LOG + 1));
        kind(&mut ledger, &table(0, 2, LOG + 10, LOG + 11));
        // Two topics: the other table's events of both transactions come late.
        assert_eq!(code(&mut ledger, &table(1, 1, LOG, LOG + 2)), "out_of_order");
        assert_eq!(kind(&mut ledger, &table(0, 2, LOG + 10, LOG + 13)), Kind::New);
        assert_eq!(code(&mut ledger, &table(1, 2, LOG + 10, LOG + 12)), "out_of_order");
        // The rest of a transaction, of a table that has seen some of it.
        assert_eq!(kind(&mut ledger, &table(2, 3, LOG + 20, LOG + 21)), Kind::New);
        assert_eq!(code(&mut ledger, &table(0, 2, LOG + 10, LOG + 14)), "out_of_order");
        assert_eq!(kind(&mut ledger, &table(0, 2, LOG + 10, LOG + 13)), Kind::Duplicate);
    }

    #[test]
    fn markers_say_where_a_transaction_ends() {
        let mut ledger = Ledger::default();
        let end = |counts: &[(usize, u64)]| Message::End { transaction: 5, lsn: LOG + 99, counts: counts.to_vec() };
        kind(&mut ledger, &Message::Begin { transaction: 5 });
        kind(&mut ledger, &of(5, LOG, LOG + 1));
        assert_eq!(ledger.end_of_request(), None);
        assert!(ledger.is_open());
        kind(&mut ledger, &of(5, LOG, LOG + 2));
        assert_eq!(code(&mut ledger, &end(&[(0, 3)])), "incomplete_transaction");
        // A repeated one counts once.
        kind(&mut ledger, &Message::Begin { transaction: 5 });
        assert_eq!(kind(&mut ledger, &of(5, LOG, LOG + 2)), Kind::Duplicate);
        assert_eq!(code(&mut ledger, &end(&[(0, 3)])), "incomplete_transaction");
        // Another one does not end it, and what is missing at its end can still come.
        assert_eq!(code(&mut ledger, &of(6, LOG + 99, LOG + 120)), "incomplete_transaction");
        assert_eq!(kind(&mut ledger, &of(5, LOG, LOG + 3)), Kind::New);
        let verdict = ledger.admit(&end(&[(0, 3)])).unwrap();
        assert_eq!(verdict.ends_after, Some(Lsn(LOG + 99)));
        assert_eq!(kind(&mut ledger, &of(6, LOG + 99, LOG + 50)), Kind::New);
        assert_eq!(ledger.end_of_request(), Some(Lsn(LOG + 100)));
        assert_eq!(ledger.admit(&end(&[])).unwrap(), Verdict::default());
        // An earlier transaction that is sent again does not make the next one's marker forgotten.
        kind(&mut ledger, &Message::Begin { transaction: 7 });
        kind(&mut ledger, &Message::Begin { transaction: 6 });
        kind(&mut ledger, &of(7, LOG + 199, LOG + 150));
        assert_eq!(ledger.end_of_request(), None);
    }

    #[test]
    fn an_end_misses_what_was_lost_also_where_nothing_announced_it() {
        let end = |transaction, lsn, count| Message::End { transaction, lsn, counts: vec![(0, count)] };
        let mut ledger = Ledger::default();
        // Before the first event of all nobody knows what there was.
        assert_eq!(ledger.admit(&end(4, LOG + 9, 7)), Ok(Verdict::default()));
        // Its BEGIN marker is lost, and one of its events; the request ended, too.
        assert_eq!(kind(&mut ledger, &of(5, LOG + 9, LOG + 10)), Kind::New);
        ledger.end_of_request();
        assert_eq!(code(&mut ledger, &end(5, LOG + 20, 2)), "incomplete_transaction");
        assert_eq!(kind(&mut ledger, &of(5, LOG + 9, LOG + 11)), Kind::New);
        ledger.end_of_request();
        assert_eq!(ledger.admit(&end(5, LOG + 20, 2)), Ok(Verdict::default()));
        // All of it is lost.
        kind(&mut ledger, &Message::Begin { transaction: 6 });
        assert_eq!(code(&mut ledger, &end(6, LOG + 40, 1)), "incomplete_transaction");
        assert_eq!(ledger.admit(&end(6, LOG + 40, 0)), Ok(Verdict::default()));
        // What was told before is told again.
        assert_eq!(kind(&mut ledger, &of(7, LOG + 40, LOG + 50)), Kind::New);
        ledger.end_of_request();
        assert_eq!(kind(&mut ledger, &of(5, LOG + 9, LOG + 10)), Kind::Duplicate);
        assert_eq!(ledger.admit(&end(5, LOG + 20, 2)), Ok(Verdict::default()));
    }

    #[test]
    fn a_snapshot_is_read_once() {
        let mut ledger = Ledger::default();
        kind(&mut ledger, &snapshot(0, LOG, Mark::First));
        assert_eq!(ledger.snapshot_part(), Some(Lsn(1)));
        // Its only row may be marked as the first, and the end as that of another table.
        kind(&mut ledger, &snapshot(1, LOG, Mark::Some));
        assert_eq!(code(&mut ledger, &of(1, LOG, LOG + 1)), "snapshot_incomplete");
        assert!(!ledger.is_streaming());
        // Interrupted: Debezium reads it again, later in the log.
        assert!(ledger.admit(&snapshot(0, LOG + 10, Mark::First)).unwrap().restarts_snapshot);
        assert_eq!(kind(&mut ledger, &snapshot(1, LOG, Mark::Some)), Kind::Duplicate);
        kind(&mut ledger, &snapshot(0, LOG + 10, Mark::LastOfTable));
        let last = ledger.admit(&snapshot(1, LOG + 10, Mark::Last)).unwrap();
        assert_eq!((last.kind, last.ends_after), (Kind::New, Some(SNAPSHOT_COMPLETE)));
        assert_eq!(kind(&mut ledger, &snapshot(1, LOG + 10, Mark::Last)), Kind::Duplicate);
        assert_eq!(code(&mut ledger, &snapshot(2, LOG + 10, Mark::Some)), "out_of_order");
        kind(&mut ledger, &of(1, LOG + 10, LOG + 11));
        assert_eq!(kind(&mut ledger, &snapshot(0, LOG + 10, Mark::First)), Kind::Duplicate);
        assert_eq!(code(&mut ledger, &snapshot(0, LOG + 99, Mark::First)), "second_snapshot");

        // Tables in topics of their own: the end overtakes the rows of another table.
        let mut ledger = Ledger::default();
        kind(&mut ledger, &snapshot(0, LOG, Mark::First));
        kind(&mut ledger, &snapshot(0, LOG, Mark::Some));
        assert_eq!(code(&mut ledger, &snapshot(1, LOG, Mark::Last)), "out_of_order");
    }

    #[test]
    fn rows_read_again_belong_to_no_transaction() {
        let again = |commit| event(0, Origin::Incremental { commit }, LOG + 5, 1);
        let mut ledger = Ledger::default();
        kind(&mut ledger, &of(1, LOG, LOG + 1));
        ledger.end_of_request();
        assert_eq!(kind(&mut ledger, &again(LOG + 10)), Kind::New);
        assert_eq!(ledger.end_of_request(), None);
        kind(&mut ledger, &of(2, LOG + 10, LOG + 11));
        ledger.end_of_request();
        assert_eq!(kind(&mut ledger, &again(LOG + 10)), Kind::Duplicate);
    }

    #[test]
    fn a_row_that_lacks_values_needs_the_one_it_replaces() {
        let change = |removes: bool, lsn| {
            let Message::Event(mut event) = of(1, LOG, lsn) else { panic!() };
            if removes {
                event.changes = Changes::default();
                let row = event.changes.write_row(|_| Ok::<(), engine::change::event::TooLarge>(())).unwrap();
                event.changes.delete(TableId(1), OldRow::Key(row));
            } else {
                event.identity = 7;
                event.incomplete = true;
            }
            Message::Event(event)
        };
        let mut ledger = Ledger::default();
        assert_eq!(code(&mut ledger, &change(false, LOG + 1)), "unavailable_value");
        assert_eq!(kind(&mut ledger, &change(true, LOG + 1)), Kind::New);
        assert_eq!(code(&mut ledger.clone(), &change(false, LOG + 2)), "unavailable_value");
        let mut apart = ledger.clone();
        apart.end_of_request();
        assert_eq!(code(&mut apart, &change(false, LOG + 1)), "unavailable_value");
        assert_eq!(kind(&mut ledger, &change(false, LOG + 1)), Kind::New);
    }

    #[test]
    fn what_committed_after_all_that_came_is_no_repetition() {
        let mut ledger = Ledger::default();
        // The clock goes back between the two.
        assert_eq!(kind(&mut ledger, &at(70, of(5, LOG, LOG + 1))), Kind::New);
        assert_eq!(kind(&mut ledger, &at(50, of(6, LOG + 9, LOG + 10))), Kind::New);
        ledger.end_of_request();
        for repeated in [at(70, of(5, LOG, LOG + 1)), at(50, of(6, LOG + 9, LOG + 10)), of(5, LOG, LOG + 1)] {
            assert_eq!(kind(&mut ledger, &repeated), Kind::Duplicate);
        }
        // A standby that lacked the second is promoted, and its next transaction has the same id.
        assert_eq!(code(&mut ledger.clone(), &at(80, of(6, LOG + 9, LOG + 10))), DIVERGED);
        assert_eq!(code(&mut ledger.clone(), &at(80, of(6, LOG + 40, LOG + 50))), DIVERGED);
        assert_eq!(code(&mut ledger.clone(), &at(71, of(7, LOG + 9, LOG + 12))), DIVERGED);
        assert_eq!(code(&mut ledger.clone(), &at(71, of(7, LOG - 9, LOG - 8))), DIVERGED);
        assert_eq!(kind(&mut ledger.clone(), &at(71, of(7, LOG + 40, LOG + 12))), Kind::New);
        // Rows that are read again have the time of their reading.
        let again = at(99, event(0, Origin::Incremental { commit: LOG }, LOG + 5, 1));
        assert_eq!(kind(&mut ledger, &again), Kind::Duplicate);
        // It still counts as what it was.
        assert_eq!(code(&mut ledger, &at(71, of(7, LOG - 9, LOG - 8))), DIVERGED);
    }

    #[test]
    fn of_what_came_before_times_were_kept_nothing_is_said() {
        let mut ledger = Ledger::default();
        kind(&mut ledger, &of(5, LOG, LOG + 1));
        kind(&mut ledger, &at(20, of(6, LOG + 9, LOG + 10)));
        ledger.end_of_request();
        assert_eq!(kind(&mut ledger, &at(30, of(5, LOG, LOG + 1))), Kind::Duplicate);
        kind(&mut ledger, &at(25, of(7, LOG + 19, LOG + 20)));
        assert_eq!(code(&mut ledger, &at(30, of(8, LOG + 9, LOG + 10))), DIVERGED);
        // A ledger as it was stored then.
        let mut stored = serde_json::to_value(&ledger).unwrap();
        ["times", "read_ms", "database"].iter().for_each(|field| drop(stored.as_object_mut().unwrap().remove(*field)));
        let mut ledger: Ledger = serde_json::from_value(stored).unwrap();
        assert_eq!(kind(&mut ledger, &at(30, of(8, LOG + 9, LOG + 10))), Kind::Duplicate);
    }

    #[test]
    fn a_snapshot_that_was_read_later_does_not_lie_before() {
        let mut ledger = Ledger::default();
        kind(&mut ledger, &at(50, snapshot(0, LOG, Mark::First)));
        kind(&mut ledger, &at(40, snapshot(0, LOG + 10, Mark::First)));
        assert_eq!(kind(&mut ledger, &at(50, snapshot(0, LOG, Mark::First))), Kind::Duplicate);
        kind(&mut ledger, &at(41, snapshot(0, LOG + 10, Mark::Last)));
        assert_eq!(kind(&mut ledger, &at(50, snapshot(0, LOG, Mark::First))), Kind::Duplicate);
        assert_eq!(code(&mut ledger, &at(51, snapshot(0, LOG, Mark::First))), DIVERGED);
    }

    #[test]
    fn another_database_is_another_log() {
        let of = |database: Option<&str>, lsn| {
            let Message::Event(event) = of(5, LOG, lsn) else { panic!() };
            Message::Event(Event { database: database.map(Box::from), ..event })
        };
        let mut ledger = Ledger::default();
        assert_eq!(kind(&mut ledger, &of(None, LOG + 1)), Kind::New);
        assert_eq!(kind(&mut ledger, &of(Some("shop"), LOG + 2)), Kind::New);
        assert_eq!(code(&mut ledger, &of(Some("staging"), LOG + 3)), "other_database");
        assert_eq!(kind(&mut ledger, &of(Some("shop"), LOG + 3)), Kind::New);
        assert_eq!(kind(&mut ledger, &of(None, LOG + 4)), Kind::New);
    }

    /// What a transaction is: how far before the commit of the one before it begins, what its clock did, and its events.
    type Made = (u64, i64, Vec<(u64, usize)>);

    fn transactions(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Made>> {
        let events = prop::collection::vec((0u64..3, 0usize..2), 1..5);
        prop::collection::vec((0u64..80, -30i64..60, events), length)
    }

    /// A log that goes on behind `end`, where a transaction `number` committed at `ms`: events at rising positions, some of
    /// them before the commit of the one before.
    fn go_on(all: &[Made], mut end: u64, mut number: u64, mut ms: i64) -> Vec<(u64, i64, Vec<Message>)> {
        let made = all.iter().map(|(overlap, clock, events)| {
            let (commit, mut lsn) = (if end == LOG { 0 } else { end }, end - overlap);
            // Their ids say nothing of their order.
            number -= 1;
            ms += clock;
            let mut messages = Vec::new();
            for (place, (step, table)) in events.iter().enumerate() {
                lsn += step;
                let origin = Origin::Stream { transaction: number, commit };
                messages.push(at(ms, event(*table, origin, lsn, place as u64)));
            }
            end = end.max(lsn) + 40;
            (end, ms, messages)
        });
        made.collect()
    }

    fn log() -> impl Strategy<Value = Vec<Message>> {
        let messages = |all: Vec<Made>| go_on(&all, LOG, 900, 1_000).into_iter().flat_map(|(.., messages)| messages);
        transactions(1..12).prop_map(move |all| messages(all).collect())
    }

    proptest! {
        /// A standby that lacks the last transactions is promoted, and its log goes on in its own way. Nothing of it that
        /// lies where others did is taken for them.
        #[test]
        fn nothing_of_another_history_is_taken_for_a_repetition(
            old in transactions(2..9), new in transactions(1..5), from in any::<prop::sample::Index>(), gap in 0u64..200,
        ) {
            let mut ledger = Ledger::default();
            let old = go_on(&old, LOG, 900, 1_000);
            for message in old.iter().flat_map(|(.., messages)| messages) {
                prop_assert_eq!(ledger.admit(message).unwrap().kind, Kind::New);
            }
            ledger.end_of_request();
            let kept = from.index(old.len() - 1);
            // It is promoted after all of that, and from there on its clock goes on.
            let latest = old.iter().map(|(_, ms, _)| *ms).max().unwrap_or_default();
            let new: Vec<Made> = new.into_iter().map(|(overlap, clock, events)| (overlap, clock.abs() + 1, events)).collect();
            let again = old[..=kept].iter().map(|(.., messages)| (false, messages.clone()));
            let other = go_on(&new, old[kept].0 + gap, 899 - kept as u64, latest);
            let other = other.into_iter().map(|(.., messages)| (true, messages));
            'all: for (is_other, messages) in again.chain(other) {
                for message in messages {
                    match ledger.admit(&message) {
                        Ok(verdict) => prop_assert_eq!(verdict.kind == Kind::New, is_other),
                        Err(refusal) => {
                            prop_assert!(is_other && matches!(refusal.code, DIVERGED | "out_of_order"), "{}", refusal);
                            break 'all;
                        }
                    }
                }
            }
        }

        /// However requests cut the log, and from wherever it is sent again: each event is new once.
        #[test]
        fn every_event_counts_once(messages in log(), sends in prop::collection::vec((any::<prop::sample::Index>(), 1usize..12), 0..40)) {
            let mut ledger = Ledger::default();
            let (mut taken, mut position) = (0, Lsn::ZERO);
            let whole = (0..messages.len()).map(|from| (from, 1));
            let sends: Vec<(usize, usize)> = sends.iter().map(|(at, length)| (at.index(messages.len()), *length)).chain(whole).collect();
            for (from, length) in sends {
                // The sender may go back, and never leaves anything out.
                let from = from.min(taken);
                for (at, message) in messages.iter().enumerate().skip(from).take(length) {
                    let verdict = ledger.admit(message).unwrap();
                    prop_assert_eq!(verdict.kind == Kind::New, at == taken, "{} of {}", at, taken);
                    taken = taken.max(at + 1);
                    for ended in [verdict.ends_before, verdict.ends_after].into_iter().flatten() {
                        prop_assert!(ended > position);
                        position = ended;
                    }
                }
                if let Some(ended) = ledger.end_of_request() {
                    prop_assert!(ended > position);
                    position = ended;
                }
                // A restart reads it back.
                ledger = serde_json::from_slice(&serde_json::to_vec(&ledger).unwrap()).unwrap();
            }
            prop_assert_eq!(taken, messages.len());
        }
    }
}
