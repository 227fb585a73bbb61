//! The one order of everything: source events, registrations and fillings become commit groups here, numbered.
//!
//! - A group of a few rows closes at once when hardly anything is in flight, so that an idle system is fast; while the
//!   committer is busy, or rows come in by the hundred, it grows up to a bound: adding up and writing more rows at once
//!   costs less for each. Always at a transaction's end.
//! - At most a few groups are minted and not committed. Past that nothing is taken from any channel, so the connector
//!   stops reading its socket and upstream keeps its log: that is the only queue that may grow.
//! - A registration is a group of its own, so every worker and the committer see it at the same place.
//! - What happens to a table as a whole is in `tables`.

mod tables;

use std::collections::BTreeMap;
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
use crate::materialization::{Aggregate, AggregateId, AggregateState, Definition, DefinitionError, Plan, plan};
use crate::row_image::{Applied, RowImageError, RowImages};
use crate::shared::Shared;
use crate::source::{FollowedTable, SourceError, SourceEvent, SourceIdentity, TableState};

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

/// What callers ask of the engine.
pub enum Request {
    /// Register an aggregate.
    Register {
        /// Its name.
        name: String,
        /// What it is.
        definition: Box<Definition>,
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
    pub aggregates: Vec<(AggregateId, String, Definition, AggregateState)>,
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
    filled: Vec<Filled>,
    filled_entirely: Vec<AggregateId>,
    since: Option<Instant>,
    progressed: bool,
}

impl Open {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.filled.is_empty() && self.filled_entirely.is_empty() && !self.progressed
    }

    fn is_full(&self) -> bool {
        self.rows.signed().len() >= MAX_ROWS || self.rows.byte_size() >= MAX_BYTES || self.filled.len() >= 2
    }
}

/// Mints commit groups.
pub struct Sequencer {
    shared: Arc<Shared>,
    dataflow: Dataflow,
    committer: Sender<ToCommit>,
    inputs: Inputs,
    committed: watch::Receiver<u64>,
    images: RowImages,
    position: Position,
    sequence: u64,
    phase: Phase,
    tables: BTreeMap<String, Arc<FollowedTable>>,
    identity: Option<SourceIdentity>,
    aggregates: BTreeMap<String, Arc<Aggregate>>,
    unresolved: Vec<(AggregateId, String, Definition, AggregateState)>,
    next_aggregate: u32,
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
    ) -> Self {
        let committed = shared.committed_changed.subscribe();
        Sequencer {
            shared,
            dataflow,
            committer,
            inputs,
            committed,
            images,
            position: stored.position,
            sequence: stored.sequence,
            phase: if stored.streaming { Phase::Streaming } else { Phase::Snapshot },
            tables: stored.tables.into_iter().map(|table| (table.schema.qualified_name(), table)).collect(),
            identity: stored.identity,
            aggregates: BTreeMap::new(),
            unresolved: stored.aggregates,
            next_aggregate: stored.next_aggregate,
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
            // Workers and committer end with their inputs; the caller joins them.
            drop(self);
            if flushed {
                let _ = reply.send(());
            }
        }
    }

    fn in_flight(&self) -> u64 {
        self.sequence.saturating_sub(*self.committed.borrow())
    }

    async fn step(&mut self) -> Result<(), End> {
        if self.shared.halted.load().is_some() {
            return Err(End::Halted);
        }
        self.images.committed(*self.committed.borrow_and_update());
        let in_flight = self.in_flight();
        let admitted = in_flight < MAX_IN_FLIGHT;
        if admitted && self.should_close(in_flight) {
            return self.mint_open();
        }
        let takes_more = !self.open.is_full();
        let due = self.open.since.map(|since| since + MAX_AGE);
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
            filled = self.inputs.filled.recv(), if takes_more => {
                if let Some(filled) = filled {
                    self.fill(filled);
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
                Ok(())
            }
            SourceEvent::SnapshotDone { lsn, time_us } => {
                self.mint_open()?;
                self.wait_until_committed().await?;
                self.position = Position { lsn, commit_time_us: time_us };
                self.phase = Phase::SnapshotDone;
                self.mint(Vec::new(), Vec::new())?;
                self.phase = Phase::Streaming;
                Ok(())
            }
            SourceEvent::Transaction(transaction) => self.transaction(&transaction),
            SourceEvent::Progress { lsn, time_us } => {
                self.progress(lsn, time_us);
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
        let partly_truncated = self.partly_truncated(transaction);
        if !partly_truncated.is_empty() {
            self.suspend_all(&partly_truncated)?;
        }
        self.opened();
        let halted = self.add_changes(&transaction.changes)?;
        self.open.transactions += 1;
        self.progress(transaction.end_lsn, transaction.commit_time_us);
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
                Err(error @ RowImageError::Missing(_)) => {
                    halted.insert(self.images.table_id(change.table()), error);
                }
                Err(error) => return Err(self.fail(&error)),
            }
        }
        Ok(halted)
    }

    /// In the open group itself: what it already holds of such a table must not be folded.
    fn halt_tables(&mut self, halted: BTreeMap<TableId, RowImageError>) -> Result<(), End> {
        let (mut commands, mut registry) = (Vec::new(), Vec::new());
        for (id, error) in halted {
            let Some(table) = self.table_of(id) else { continue };
            let reason = SourceError {
                code: "row_image_missing",
                message: error.to_string(),
                remedy: format!(
                    "have the table read anew: POST /v1/sources/{{name}}/tables {{\"table\":\"{}\"}}; please report it",
                    table.schema.qualified_name()
                ),
            };
            let change = self.halt_table(&table, &reason);
            commands.extend(change.commands);
            registry.extend(change.registry);
        }
        self.mint(commands, registry)
    }

    /// Rows of tables that are being read; the source's position stays.
    fn table_rows(&mut self, changes: &Changes) -> Result<(), End> {
        self.opened();
        let before = self.open.applied;
        let halted = self.add_changes(changes)?;
        // They are no events of the stream.
        self.open.applied = before;
        if halted.is_empty() { Ok(()) } else { self.halt_tables(halted) }
    }

    fn progress(&mut self, lsn: Lsn, time_us: i64) {
        if lsn > self.position.lsn && self.phase == Phase::Streaming {
            self.opened();
            self.open.progressed = true;
            self.position = Position { lsn, commit_time_us: time_us };
        }
    }

    fn opened(&mut self) {
        self.open.since.get_or_insert_with(Instant::now);
    }

    fn fill(&mut self, message: FillMessage) {
        self.opened();
        match message {
            FillMessage::Chunk(filled) => self.open.filled.push(filled),
            FillMessage::Done(id) => self.open.filled_entirely.push(id),
        }
    }

    /// Stops for good: what the open group holds is not complete, so it is never minted.
    fn fail(&self, error: &RowImageError) -> End {
        let (code, remedy) = match error {
            RowImageError::Missing(_) | RowImageError::Malformed(_) | RowImageError::UnknownTable(_) => {
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

    /// Installs the aggregates that were stored, now that their tables are known.
    fn resolve_stored(&mut self, tables: Option<RegistryChange>) {
        let mut commands = Vec::new();
        let mut registry: Vec<RegistryChange> = tables.into_iter().collect();
        for (id, name, definition, state) in std::mem::take(&mut self.unresolved) {
            let mut aggregate = Aggregate::restore(id, name.clone(), definition, state, &self.tables);
            if aggregate.state == AggregateState::Building && self.phase == Phase::Snapshot {
                // Before the first row of a new source everything is complete as it is.
                aggregate.state = AggregateState::Live;
            }
            let aggregate = Arc::new(aggregate);
            // The aggregates of a table that is being read wait for its end.
            let complete = self.is_complete(&aggregate.definition.qualified_table());
            if complete && !matches!(aggregate.state, AggregateState::Halted { .. }) {
                commands.push(Command::Install(Arc::clone(&aggregate)));
            }
            registry.push(RegistryChange::Register { aggregate: Arc::clone(&aggregate), fill: complete, reply: None });
            self.aggregates.insert(name, aggregate);
        }
        // Also where there is nothing to install: the first commit is what publishes a Snapshot.
        let _ = self.mint(commands, registry);
    }

    fn request(&mut self, request: Request) -> Result<(), End> {
        match request {
            Request::Register { name, definition, reply } => self.register(name, *definition, reply),
            Request::Drop { name, reply } => self.drop_aggregate(&name, reply),
            Request::Stop(reply) => Err(End::Stopped(reply)),
        }
    }

    fn register(
        &mut self,
        name: String,
        definition: Definition,
        reply: oneshot::Sender<Result<Registered, RegisterError>>,
    ) -> Result<(), End> {
        let plan = match self.check(&name, &definition) {
            Ok(Some(plan)) => plan,
            Ok(None) => {
                let existing = self.shared.catalog.load().aggregates.get(&name).cloned();
                let existing = existing.or_else(|| self.aggregates.get(&name).cloned());
                if let Some(existing) = existing {
                    let _ = reply.send(Ok(Registered::Unchanged(existing)));
                }
                return Ok(());
            }
            Err(error) => {
                let _ = reply.send(Err(error));
                return Ok(());
            }
        };
        let aggregate = Arc::new(Aggregate {
            id: AggregateId(self.next_aggregate),
            name: name.clone(),
            definition,
            plan: Arc::new(plan),
            state: AggregateState::Building,
        });
        self.next_aggregate += 1;
        self.aggregates.insert(name, Arc::clone(&aggregate));
        let (done, committed) = oneshot::channel();
        let complete = self.is_complete(&aggregate.definition.qualified_table());
        let install = complete.then(|| Command::Install(Arc::clone(&aggregate)));
        self.mint_alone(
            install.into_iter().collect(),
            vec![RegistryChange::Register { aggregate, fill: complete, reply: Some(done) }],
        )?;
        tokio::spawn(async move {
            let answer = match committed.await {
                Ok(aggregate) => Ok(Registered::Created(aggregate)),
                Err(_) => Err(RegisterError::Unavailable(stopped())),
            };
            let _ = reply.send(answer);
        });
        Ok(())
    }

    /// The plan of a new aggregate; `None` where the same one is registered already.
    fn check(&self, name: &str, definition: &Definition) -> Result<Option<Plan>, RegisterError> {
        if !plan::is_name(name) {
            return Err(RegisterError::BadName);
        }
        if self.tables.is_empty() {
            return Err(RegisterError::Unavailable(not_announced()));
        }
        if let Some(existing) = self.aggregates.get(name) {
            let differences = existing.definition.differences(definition);
            return match differences.is_empty() {
                true => Ok(None),
                false => Err(RegisterError::Conflict { existing: Arc::clone(existing), differences }),
            };
        }
        let table = definition.qualified_table();
        let Some(followed) = self.tables.get(&table) else {
            return Err(RegisterError::UnknownTable { table, known: self.tables.keys().cloned().collect() });
        };
        if let TableState::Halted { code, message, remedy } = &followed.standing {
            let (code, message, remedy) = (code.clone(), message.clone(), remedy.clone());
            return Err(RegisterError::Unavailable(Unavailable { code, message, remedy }));
        }
        Plan::resolve(definition, &followed.schema)
            .map(Some)
            .map_err(|error: DefinitionError| RegisterError::Invalid(error))
    }

    /// Whether the row images of a table are those of the source's position.
    fn is_complete(&self, table: &str) -> bool {
        self.tables.get(table).is_some_and(|table| table.standing == TableState::Live)
    }

    fn drop_aggregate(&mut self, name: &str, reply: oneshot::Sender<Result<bool, Unavailable>>) -> Result<(), End> {
        let Some(aggregate) = self.aggregates.remove(name) else {
            // Stored, and not installed before the tables are known.
            let waits = self.unresolved.iter().any(|(_, stored, _, _)| stored == name);
            let _ = reply.send(if waits { Err(not_announced()) } else { Ok(false) });
            return Ok(());
        };
        let (done, committed) = oneshot::channel();
        self.mint_alone(vec![Command::Remove(aggregate.id)], vec![RegistryChange::Drop(aggregate, Some(done))])?;
        tokio::spawn(async move {
            let _ = reply.send(committed.await.map(|()| true).map_err(|_| stopped()));
        });
        Ok(())
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
        let filled: Vec<AggregateId> = std::mem::take(&mut self.open.filled_entirely);
        let registry = filled.into_iter().map(RegistryChange::Filled).collect();
        self.mint(Vec::new(), registry)
    }

    /// Mints the open group, with these commands before its rows.
    fn mint(&mut self, commands: Vec<Command>, registry: Vec<RegistryChange>) -> Result<(), End> {
        let open = std::mem::take(&mut self.open);
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
            applied: open.applied,
            transactions: open.transactions,
        };
        let epoch = Arc::new(Epoch { sequence: self.sequence, rows, commands, filled: open.filled });
        let sent = self.committer.send(ToCommit::Commit(commit)).is_ok() && self.dataflow.send(&epoch);
        if sent { Ok(()) } else { Err(End::Halted) }
    }

    async fn wait_until_committed(&mut self) -> Result<(), End> {
        let sequence = self.sequence;
        self.committed.wait_for(|committed| *committed >= sequence).await.map_err(|_| End::Halted)?;
        self.images.committed(sequence);
        Ok(())
    }

    /// Commits the open group and makes everything durable.
    async fn flush(&mut self) -> bool {
        let (done, durable) = oneshot::channel();
        self.mint_alone(Vec::new(), vec![RegistryChange::Flush(done)]).is_ok() && durable.await.is_ok()
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn not_announced() -> Unavailable {
    Unavailable {
        code: "starting".to_owned(),
        message: "the source has not announced its tables yet".to_owned(),
        remedy: "try again in a moment".to_owned(),
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
