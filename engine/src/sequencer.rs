//! The one order of everything: source events, registrations and fillings become commit groups here, numbered.
//!
//! - A group of a few rows closes at once when hardly anything is in flight, so that an idle system is fast; while the
//!   committer is busy, or rows come in by the hundred, it grows up to a bound: adding up and writing more rows at once
//!   costs less for each. Always at a transaction's end.
//! - At most a few groups are minted and not committed. Past that nothing is taken from any channel, so the connector
//!   stops reading its socket and upstream keeps its log: that is the only queue that may grow. The same while the disk is
//!   nearly full (`free_space`); callers are served then, too.
//! - A registration is a group of its own, so every worker and the committer see it at the same place.
//! - What happens to an aggregate is in `aggregates`, to a table as a whole in `tables`.

mod aggregates;
mod tables;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::change::{Changes, Lsn, TableId, TableSchema, Transaction};
use crate::commit::{Commit, Phase, RegistryChange, ToCommit};
use crate::commit_group::{GroupRows, Position};
use crate::dataflow::block::Filled;
use crate::dataflow::worker::Dataflow;
use crate::dataflow::{Command, Epoch};
use crate::engine::{RegisterError, Registered, Unavailable};
use crate::fill::FillMessage;
use crate::free_space::FreeSpace;
use crate::materialization::condition::quote_table;
use crate::materialization::{Aggregate, AggregateId, AggregateState, Definition, Registration};
use crate::row_image::{Applied, RowImageError, RowImages};
use crate::sequencer::tables::Changeover;
use crate::shared::Shared;
use crate::snapshot::AsOf;
use crate::source::{FollowedTable, Milestone, SourceCommand, SourceError, SourceEvent, SourceIdentity, TableState};
use crate::torture::{self, Bug, Failpoint};

/// Groups minted and not yet committed, at most.
const MAX_IN_FLIGHT: u64 = 8;
/// Groups in flight from which on a group waits for more rows instead of closing at once.
const BUSY_IN_FLIGHT: u64 = 2;
/// Rows from which on a group grows to a bound even though nothing is in flight.
const MANY_ROWS: usize = 500;
/// Rows that close a group.
const MAX_ROWS: usize = 10_000;
/// Bytes that close a group.
const MAX_BYTES: usize = 4 << 20;
/// Age that closes a group.
const MAX_AGE: Duration = Duration::from_millis(10);

/// What a registration does where the name has another definition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnChange {
    /// It is refused.
    #[default]
    Refuse,
    /// As `Rebuild`, and refused where it is over another table or of other dimensions: what is there would be gone, and
    /// something else have its name. And where it would lead to rows, and did not: they hold more than the totals tell.
    Refine,
    /// The next version is built beside the one that answers, and takes its place once it is filled, within one commit.
    Rebuild,
}

/// What callers ask of the engine.
pub enum Request {
    /// Register an aggregate.
    Register {
        /// Its name.
        name: String,
        /// What it is.
        definition: Box<Definition>,
        /// What is done where the name has another definition.
        on_change: OnChange,
        /// What became of it.
        reply: oneshot::Sender<Result<Registered, RegisterError>>,
    },
    /// Drop an aggregate.
    Drop {
        /// Its name.
        name: String,
        /// Whether there was one.
        reply: oneshot::Sender<Result<bool, Unavailable>>,
    },
    /// Build an aggregate anew from the rows, beside the one that answers.
    Rebuild {
        /// Its name.
        name: String,
        /// What became of it.
        reply: oneshot::Sender<Result<Registered, RegisterError>>,
    },
    /// Give up the version that is being built; a first version that has never been filled is dropped.
    Cancel {
        /// Its name.
        name: String,
        /// Whether there was one.
        reply: oneshot::Sender<Result<bool, Unavailable>>,
    },
    /// Halt an aggregate that turned out not to be what was written.
    Halt {
        /// Which.
        aggregate: AggregateId,
        /// Why.
        state: AggregateState,
        /// Answered once that is durable.
        reply: oneshot::Sender<()>,
    },
    /// Commit what was received, make it durable, and end.
    Stop(oneshot::Sender<()>),
}

/// The channels into the sequencer.
pub struct Inputs {
    /// From the connector.
    pub events: mpsc::Receiver<SourceEvent>,
    /// From callers.
    pub requests: mpsc::Receiver<Request>,
    /// From the filler.
    pub filled: mpsc::Receiver<FillMessage>,
    /// From the committer: aggregates that halted.
    pub stopped: mpsc::UnboundedReceiver<AggregateId>,
    /// Not into the sequencer but out of it: what the connector is asked for.
    pub commands: mpsc::Sender<SourceCommand>,
}

/// What was stored when the process started.
pub struct Stored {
    /// Where the store is.
    pub position: Position,
    /// The sequence it has reached.
    pub sequence: u64,
    /// Whether the initial snapshot is complete.
    pub streaming: bool,
    /// The tables; empty before the first session of a source.
    pub tables: Vec<Arc<FollowedTable>>,
    /// Upstream; absent before the first session of a source.
    pub identity: Option<SourceIdentity>,
    /// The aggregates, by name; without a plan where there are no tables yet.
    pub aggregates: Vec<Registration>,
    /// The number that the next aggregate gets.
    pub next_aggregate: u32,
    /// What the connector noted last.
    pub notes: Option<String>,
}

#[derive(Default)]
struct Open {
    rows: GroupRows,
    applied: Applied,
    transactions: u64,
    first_end: Option<Lsn>,
    filled: Vec<Filled>,
    filled_index: Vec<Vec<u8>>,
    filled_entirely: Vec<AggregateId>,
    /// From which instant on an aggregate is filled.
    covered: Vec<(AggregateId, i64)>,
    since: Option<Instant>,
    progressed: bool,
    /// It closes as it is, however much more it could take.
    whole: bool,
}

impl Open {
    fn is_empty(&self) -> bool {
        let filled = !(self.filled.is_empty() && self.filled_entirely.is_empty() && self.covered.is_empty());
        self.rows.is_empty() && !filled && !self.progressed
    }

    fn is_full(&self) -> bool {
        self.whole
            || self.rows.signed().len() >= MAX_ROWS
            || self.rows.byte_size() >= MAX_BYTES
            || self.filled.len() >= 2
    }
}

/// Mints commit groups.
pub struct Sequencer {
    shared: Arc<Shared>,
    dataflow: Dataflow,
    committer: Sender<ToCommit>,
    inputs: Inputs,
    committed: watch::Receiver<AsOf>,
    free_space: watch::Receiver<FreeSpace>,
    images: RowImages,
    position: Position,
    sequence: u64,
    phase: Phase,
    tables: BTreeMap<String, Arc<FollowedTable>>,
    identity: Option<SourceIdentity>,
    aggregates: BTreeMap<String, Arc<Aggregate>>,
    unresolved: Vec<Registration>,
    next_aggregate: u32,
    /// No further one is registered beyond this many.
    max_aggregates: usize,
    /// First versions that were registered in this life and have not been filled. Not stored: who gives up another one may
    /// be told no, and what answered once must not go that way.
    never_filled: BTreeSet<AggregateId>,
    /// The group of the last change that a caller asked for; it is durable once that is committed.
    asked_for: u64,
    /// Aggregates over tables without row images that fold what is being read.
    folding: BTreeSet<AggregateId>,
    /// Tables without row images that the connector is to read anew.
    to_read: BTreeSet<TableId>,
    /// Next versions that are filled, with the group that ends it; in the order of those.
    filled_next: VecDeque<(u64, AggregateId)>,
    open: Open,
    events_ended: bool,
}

/// Why the sequencer ends.
enum End {
    /// Asked to.
    Stopped(oneshot::Sender<()>),
    /// Something cannot go on; the reason is in `Shared`.
    Halted,
}

impl Sequencer {
    /// Over what was stored.
    pub fn new(
        shared: Arc<Shared>,
        images: RowImages,
        dataflow: Dataflow,
        committer: Sender<ToCommit>,
        inputs: Inputs,
        stored: Stored,
        max_aggregates: usize,
    ) -> Self {
        let committed = shared.published.applied();
        let free_space = shared.free_space.subscribe();
        Sequencer {
            shared,
            dataflow,
            committer,
            inputs,
            committed,
            free_space,
            images,
            position: stored.position,
            sequence: stored.sequence,
            phase: if stored.streaming { Phase::Streaming } else { Phase::Snapshot },
            tables: stored.tables.into_iter().map(|table| (table.schema.qualified_name(), table)).collect(),
            identity: stored.identity,
            aggregates: BTreeMap::new(),
            unresolved: stored.aggregates,
            next_aggregate: stored.next_aggregate,
            max_aggregates,
            never_filled: BTreeSet::new(),
            asked_for: 0,
            folding: BTreeSet::new(),
            to_read: BTreeSet::new(),
            filled_next: VecDeque::new(),
            open: Open::default(),
            events_ended: false,
        }
    }

    /// Runs until asked to stop or until nothing can go on.
    pub async fn run(mut self) {
        if !self.tables.is_empty() {
            self.tables.values().for_each(|table| self.images.add_table(table));
            self.resolve_stored(None);
        }
        let end = loop {
            match self.step().await {
                Ok(()) => {}
                Err(end) => break end,
            }
        };
        if let End::Stopped(reply) = end {
            let flushed = self.flush().await;
            torture::reached(Failpoint::Stopping);
            // Workers and committer end with their inputs; the caller joins them.
            drop(self);
            if flushed {
                let _ = reply.send(());
            }
        }
    }

    async fn step(&mut self) -> Result<(), End> {
        if self.shared.published.halted().is_some() {
            return Err(End::Halted);
        }
        let committed = self.committed.borrow_and_update().sequence;
        self.images.committed(committed);
        let in_flight = self.sequence.saturating_sub(committed);
        let admitted = in_flight < MAX_IN_FLIGHT;
        if admitted && let Some(next) = self.take_filled_next(committed) {
            return self.promote(next);
        }
        if admitted && self.should_close(in_flight) {
            return self.mint_open();
        }
        let takes_more = !self.open.is_full() && !self.free_space.borrow_and_update().low;
        let due = self.open.since.map(|since| since + MAX_AGE);
        let asking = (!self.to_read.is_empty()).then(|| self.inputs.commands.clone());
        tokio::select! {
            biased;
            stopped = self.inputs.stopped.recv() => {
                if let Some(id) = stopped {
                    self.mint_alone(vec![Command::Remove(id)], Vec::new())?;
                }
            }
            request = self.inputs.requests.recv(), if admitted => match request {
                Some(request) => self.request(request)?,
                None => return Err(End::Halted),
            },
            room = room(asking) => match (room, self.to_read.pop_first()) {
                (Some(room), Some(table)) => drop(room.send(SourceCommand::ReadAnew { table })),
                // The source has ended. What waits for rows is found waiting at the next start.
                _ => self.to_read.clear(),
            },
            filled = self.inputs.filled.recv(), if takes_more => {
                if let Some(filled) = filled {
                    self.fill(filled)?;
                }
            }
            event = self.inputs.events.recv(), if takes_more && !self.events_ended => match event {
                Some(event) => self.event(event).await?,
                None => self.events_ended = true,
            },
            changed = self.committed.changed(), if in_flight > 0 => {
                if changed.is_err() {
                    return Err(End::Halted);
                }
            }
            // Its sender is ours too, so this ends with a change only.
            _ = self.free_space.changed() => {}
            () = until(due), if due.is_some() && admitted => {}
        }
        Ok(())
    }

    fn should_close(&self, in_flight: u64) -> bool {
        if self.open.is_empty() {
            return false;
        }
        let old = self.open.since.is_some_and(|since| since.elapsed() >= MAX_AGE);
        let quiet = self.inputs.events.is_empty() && self.inputs.filled.is_empty();
        let few = self.open.rows.signed().len() < MANY_ROWS;
        self.open.is_full() || old || (quiet && few && in_flight < BUSY_IN_FLIGHT)
    }

    async fn event(&mut self, event: SourceEvent) -> Result<(), End> {
        match event {
            SourceEvent::Tables { identity, tables } => self.announce(identity, tables),
            SourceEvent::SnapshotRows(changes) => {
                self.opened();
                for change in changes.iter() {
                    let added = self.images.add_snapshot_row(&mut self.open.rows, change);
                    added.map_err(|error| self.fail(&error))?;
                }
                // The next ones may be from another range of the table, and rows in order are cheaper to write.
                self.open.whole = self.open.rows.signed().len() >= MANY_ROWS;
                Ok(())
            }
            SourceEvent::SnapshotDone { lsn, time_us } => {
                self.mint_open()?;
                self.position = Position { lsn, commit_time_us: time_us, milestone: Milestone::begin(lsn) };
                self.phase = Phase::SnapshotDone;
                self.mint(Vec::new(), Vec::new())?;
                self.phase = Phase::Streaming;
                // Rows can be looked up from here on, and only this commit makes sure that they are in the store.
                self.wait_until_committed().await
            }
            SourceEvent::Transaction(transaction) => self.transaction(&transaction),
            SourceEvent::Progress { lsn, time_us } => {
                self.progress(lsn, time_us, self.position.milestone.told(time_us));
                Ok(())
            }
            SourceEvent::TableBegin(schema) => self.table_begins(schema),
            SourceEvent::TableRows(changes) => self.table_rows(&changes),
            SourceEvent::TableDone { table } => self.table_done(table),
            SourceEvent::PartitionAdded { table, partition } => self.partition_added(table, partition),
            SourceEvent::PartitionGone { table, partition } => self.partition_gone(table, partition),
            SourceEvent::ColumnUnusable { table, column, reason } => self.column_unusable(table, column, &reason),
            SourceEvent::TableHalted { table, reason } => self.table_halted(table, &reason),
            SourceEvent::Notes(notes) => self.mint_alone(Vec::new(), vec![RegistryChange::Notes(notes)]),
        }
    }

    fn transaction(&mut self, transaction: &Transaction) -> Result<(), End> {
        // A reconnect repeats transactions; rows' own positions say nothing.
        if transaction.end_lsn <= self.position.lsn {
            return Ok(());
        }
        torture::reached(Failpoint::TransactionReceived);
        if self.open.transactions > 0 && self.shared.published.boundaries.watched() {
            // It came before somebody watched: the position that is asked for may lie between the two.
            self.mint_open()?;
        }
        let mut partly_truncated = self.partly_truncated(&transaction.changes);
        partly_truncated.retain(|table| table.standing == TableState::Live);
        if !partly_truncated.is_empty() {
            self.suspend_all(&partly_truncated)?;
        }
        self.opened();
        let halted = self.add_changes(&transaction.changes)?;
        self.open.transactions += 1;
        self.open.first_end.get_or_insert(transaction.end_lsn);
        self.open.whole |= self.shared.published.boundaries.watched();
        let milestone = self.position.milestone.after(transaction.end_lsn, transaction.commit_time_us);
        self.progress(transaction.end_lsn, transaction.commit_time_us, milestone);
        if !halted.is_empty() {
            self.halt_tables(halted)?;
        }
        if !partly_truncated.is_empty() {
            self.resume_all(&partly_truncated)?;
        }
        Ok(())
    }

    /// Adds changes to the open group; returns the tables that turned out not to be what upstream has.
    fn add_changes(&mut self, changes: &Changes) -> Result<BTreeMap<TableId, RowImageError>, End> {
        let mut halted: BTreeMap<TableId, RowImageError> = BTreeMap::new();
        for change in changes.iter() {
            if !halted.is_empty() && halted.contains_key(&self.images.table_id(change.table())) {
                continue;
            }
            match self.images.add_change(&mut self.open.rows, change, &mut self.open.applied) {
                Ok(()) => {}
                Err(error @ (RowImageError::Missing(_) | RowImageError::Twice(_) | RowImageError::NotWhole(_))) => {
                    halted.insert(self.images.table_id(change.table()), error);
                }
                Err(error) => return Err(self.fail(&error)),
            }
            if torture::planted(Bug::SplitsTransactions) {
                self.mint_open()?;
            }
        }
        Ok(halted)
    }

    /// In the open group itself: what it already holds of such a table must not be folded.
    fn halt_tables(&mut self, halted: BTreeMap<TableId, RowImageError>) -> Result<(), End> {
        let (mut commands, mut registry) = (Vec::new(), Vec::new());
        for (id, error) in halted {
            let Some(table) = self.table_of(id) else { continue };
            let read_anew = self.read_anew(&table.schema.qualified_name());
            let (code, remedy) = match error {
                RowImageError::NotWhole(_) => {
                    let table = quote_table(&table.schema);
                    (
                        "replica_identity_not_full",
                        format!("ALTER TABLE {table} REPLICA IDENTITY FULL; then {read_anew}"),
                    )
                }
                RowImageError::Twice(_) => ("row_is_there", read_anew),
                _ => ("row_image_missing", read_anew),
            };
            let reason = SourceError { code, message: error.to_string(), remedy };
            let change = self.halt_table(&table, &reason);
            commands.extend(change.commands);
            registry.extend(change.registry);
        }
        self.mint(commands, registry)
    }

    /// Rows of tables that are being read; the source's position stays.
    fn table_rows(&mut self, changes: &Changes) -> Result<(), End> {
        // With row images nothing is folded before the table is done.
        let mut partly_truncated = self.partly_truncated(changes);
        partly_truncated.retain(|table| !table.schema.keeps_row_image);
        if !partly_truncated.is_empty() {
            self.suspend_all(&partly_truncated)?;
        }
        self.opened();
        let before = self.open.applied;
        let halted = self.add_changes(changes)?;
        // They are no events of the stream.
        self.open.applied = before;
        if !halted.is_empty() {
            self.halt_tables(halted)?;
        }
        // One that halted on the way is read anew once somebody says so.
        let reading = |table: &TableSchema| self.standing(table.id) == Some(&TableState::Reading);
        let to_read: Vec<TableId> =
            partly_truncated.iter().filter(|table| reading(&table.schema)).map(|table| table.schema.id).collect();
        self.to_read.extend(to_read);
        Ok(())
    }

    fn progress(&mut self, lsn: Lsn, time_us: i64, milestone: Milestone) {
        if lsn > self.position.lsn && self.phase == Phase::Streaming {
            self.opened();
            self.open.progressed = true;
            self.position = Position { lsn, commit_time_us: time_us, milestone };
            if torture::planted(Bug::AcknowledgesReceived) {
                self.shared.published.made_durable(lsn);
            }
        }
    }

    fn opened(&mut self) {
        self.open.since.get_or_insert_with(Instant::now);
    }

    fn fill(&mut self, message: FillMessage) -> Result<(), End> {
        self.opened();
        match message {
            FillMessage::Chunk(filled, entries) => {
                self.open.filled.push(filled);
                self.open.filled_index.extend(entries);
            }
            FillMessage::Covered(id, from) => self.open.covered.push((id, from)),
            FillMessage::Done(id) => {
                torture::reached(Failpoint::Filled);
                self.open.filled_entirely.push(id);
            }
            FillMessage::Failed(aggregate, error) => return self.cannot_fill(&aggregate, &error),
        }
        Ok(())
    }

    /// Stops for good: what the open group holds is not complete, so it is never minted.
    fn fail(&self, error: &RowImageError) -> End {
        let (code, remedy) = match error {
            RowImageError::Missing(_)
            | RowImageError::Twice(_)
            | RowImageError::NotWhole(_)
            | RowImageError::Malformed(_)
            | RowImageError::UnknownTable(_) => {
                ("malformed_row", "start over with an empty data directory (--data NEWDIR); please report it")
            }
            RowImageError::TooLarge(_) => (
                "transaction_too_large",
                "split the transaction upstream, or start over with an empty data directory after it",
            ),
            RowImageError::Store(_) => ("store_failed", "check the disk, then restart tidemark"),
        };
        self.shared.halt(code, error.to_string(), remedy);
        End::Halted
    }

    /// First event of a session. A new source brings its tables; a resumed one has the stored tables already.
    fn announce(&mut self, identity: SourceIdentity, tables: Vec<TableSchema>) -> Result<(), End> {
        self.shared.identity.store(Arc::new(identity.clone()));
        if self.identity.as_ref() == Some(&identity) && !self.tables.is_empty() {
            return Ok(());
        }
        self.mint_open()?;
        for table in tables {
            let table = Arc::new(FollowedTable::new(table, TableState::Live));
            self.images.add_table(&table);
            self.tables.entry(table.schema.qualified_name()).or_insert(table);
        }
        self.identity = Some(identity.clone());
        let change = RegistryChange::Source(identity, self.tables.values().cloned().collect());
        self.resolve_stored(Some(change));
        Ok(())
    }

    fn request(&mut self, request: Request) -> Result<(), End> {
        match request {
            Request::Register { name, definition, on_change, reply } => {
                self.register(name, *definition, on_change, reply)
            }
            Request::Rebuild { name, reply } => self.rebuild(&name, reply),
            Request::Cancel { name, reply } => self.cancel(&name, reply),
            Request::Drop { name, reply } => self.drop_aggregate(&name, reply),
            Request::Halt { aggregate, state, reply } => self
                .mint_alone(vec![Command::Remove(aggregate)], vec![RegistryChange::Halted { aggregate, state, reply }]),
            Request::Stop(reply) => Err(End::Stopped(reply)),
        }
    }

    /// A group of its own, after the open one.
    fn mint_alone(&mut self, commands: Vec<Command>, registry: Vec<RegistryChange>) -> Result<(), End> {
        self.mint_open()?;
        self.mint(commands, registry)
    }

    fn mint_open(&mut self) -> Result<(), End> {
        if self.open.is_empty() {
            self.open.since = None;
            return Ok(());
        }
        self.mint(Vec::new(), Vec::new())
    }

    /// Mints the open group, with these commands before its rows. What was filled in it comes before these changes: they may
    /// be about the same aggregates.
    fn mint(&mut self, mut commands: Vec<Command>, mut registry: Vec<RegistryChange>) -> Result<(), End> {
        let mut open = std::mem::take(&mut self.open);
        let mut change = Changeover::default();
        let covered = std::mem::take(&mut open.covered);
        change.registry.extend(covered.into_iter().map(|(id, from)| RegistryChange::Covered(id, from)));
        let filled = std::mem::take(&mut open.filled_entirely);
        filled.into_iter().for_each(|id| self.filled(id, &mut change));
        commands.splice(0..0, change.commands);
        registry.splice(0..0, change.registry);
        self.sequence += 1;
        self.shared.totals.minted.store(self.sequence, Ordering::Relaxed);
        let rows = Arc::new(open.rows);
        self.images.minted(self.sequence, Arc::clone(&rows));
        let commit = Commit {
            sequence: self.sequence,
            position: self.position,
            rows: Arc::clone(&rows),
            phase: self.phase,
            registry,
            filled_index: open.filled_index,
            applied: open.applied,
            transactions: open.transactions,
            first_end: open.first_end,
        };
        let epoch = Arc::new(Epoch { sequence: self.sequence, rows, commands, filled: open.filled });
        let sent = self.committer.send(ToCommit::Commit(commit)).is_ok() && self.dataflow.send(&epoch);
        torture::reached(Failpoint::GroupMinted);
        if sent { Ok(()) } else { Err(End::Halted) }
    }

    async fn wait_until_committed(&mut self) -> Result<(), End> {
        let sequence = self.sequence;
        let over = |as_of: &AsOf| as_of.sequence >= sequence || self.shared.published.halted().is_some();
        let committed = self.committed.wait_for(over).await.map_err(|_| End::Halted)?.sequence;
        if committed < sequence {
            return Err(End::Halted);
        }
        self.images.committed(sequence);
        Ok(())
    }

    /// Commits the open group and makes everything durable.
    async fn flush(&mut self) -> bool {
        let (done, durable) = oneshot::channel();
        self.mint_alone(Vec::new(), vec![RegistryChange::Flush(done)]).is_ok() && durable.await.is_ok()
    }
}

/// Room for one command to the connector; `None` where it takes no more. Pends where there is nothing to ask.
async fn room(asking: Option<mpsc::Sender<SourceCommand>>) -> Option<mpsc::OwnedPermit<SourceCommand>> {
    match asking {
        Some(commands) => commands.reserve_owned().await.ok(),
        None => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The engine is going down.
#[must_use]
pub fn stopped() -> Unavailable {
    Unavailable {
        code: "stopping".to_owned(),
        message: "the engine has stopped".to_owned(),
        remedy: "see the log; restart tidemark".to_owned(),
    }
}
