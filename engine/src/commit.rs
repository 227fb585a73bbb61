//! The one write path: everything of the commit groups that every worker has applied, in one batch with the cursor.
//!
//! ```text
//! sequencer --Commit--+
//! worker 0 --WriteSet-+--> group n complete on all workers? --> one sorted batch {rows, cells, control totals, cursor}
//! worker n --WriteSet-+        (several complete groups: one batch)          |
//!                                                   publish the Snapshot <---+---> durability thread: sync, then durable
//! ```
//!
//! - The cursor is always the end of an upstream commit and in the same batch as what it describes.
//! - Visible once written, durable once synced (at the latest 200 ms later), acknowledged upstream only then.
//! - A group that changes the registry or truncates stands alone, so that range deletions see only what is committed.
//! - A failed write ends the engine. It is not retried: after a failed sync the kernel may believe pages are clean.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};

use foldhash::fast::FixedState;
use tokio::sync::{mpsc as async_mpsc, oneshot};

use crate::change::{Lsn, TableId};
use crate::commit_group::{GroupRows, Position};
use crate::dataflow::apply::{ControlDelta, WriteSet};
use crate::dataflow::block::Halt;
use crate::dataflow::partition::PartitionId;
use crate::fill::FillRequest;
use crate::materialization::{Aggregate, AggregateId, AggregateState, Catalog};
use crate::row_image::Applied;
use crate::shared::Shared;
use crate::snapshot::{AsOf, Snapshot};
use crate::source::{FollowedTable, SourceIdentity};
use crate::store::codec::{self, Control};
use crate::store::registry::{self, StoredAggregate};
use crate::store::{Batch, Cursor, KeyKind, Store, StoreError, cursor, key};

/// Most groups in one batch.
const MAX_RUN: usize = 64;
/// Control totals kept in memory before the cache starts over.
const MAX_CONTROLS: usize = 200_000;

/// What the committer is told.
pub enum ToCommit {
    /// A group was minted.
    Commit(Commit),
    /// A worker has applied a group.
    Written(WriteSet),
}

/// One commit group, as far as the committer is concerned.
#[derive(Default)]
pub struct Commit {
    /// Its number.
    pub sequence: u64,
    /// Where it ends.
    pub position: Position,
    /// Its rows.
    pub rows: Arc<GroupRows>,
    /// Where in the life of the source it belongs.
    pub phase: Phase,
    /// Changes of the registry.
    pub registry: Vec<RegistryChange>,
    /// Events in it.
    pub applied: Applied,
    /// Upstream transactions in it.
    pub transactions: u64,
}

/// Where in the life of the source a group belongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Rows of the initial snapshot: need not survive a crash, nothing can be read yet.
    Snapshot,
    /// The end of the initial snapshot.
    SnapshotDone,
    /// The stream.
    #[default]
    Streaming,
}

/// A change of the registry.
pub enum RegistryChange {
    /// Upstream, and its tables.
    Source(SourceIdentity, Vec<Arc<FollowedTable>>),
    /// One table as it is from here on.
    Table(Arc<FollowedTable>),
    /// A table that another one of its name has replaced.
    TableForgotten(TableId),
    /// What the connector wants to be told on a resume.
    Notes(String),
    /// An aggregate as it is from here on; durable before the answer.
    Register {
        /// The aggregate.
        aggregate: Arc<Aggregate>,
        /// Whether it is filled from this commit's rows, where it is `Building`.
        fill: bool,
        /// Who waits for it.
        reply: Option<oneshot::Sender<Arc<Aggregate>>>,
    },
    /// An aggregate goes on under another number, with no cells.
    Replace {
        /// As it was.
        old: Arc<Aggregate>,
        /// As it is.
        new: Arc<Aggregate>,
    },
    /// An aggregate goes away; durable before the answer.
    Drop(Arc<Aggregate>, Option<oneshot::Sender<()>>),
    /// An aggregate is filled.
    Filled(AggregateId),
    /// Answered once everything before is durable.
    Flush(oneshot::Sender<()>),
}

#[derive(Default)]
struct Waiting {
    commit: Option<Commit>,
    sets: Vec<WriteSet>,
}

/// Writes groups in order.
pub struct Committer {
    store: Store,
    shared: Arc<Shared>,
    workers: usize,
    input: Receiver<ToCommit>,
    fill: Sender<FillRequest>,
    stopped: async_mpsc::UnboundedSender<AggregateId>,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    catalog: Catalog,
    controls: HashMap<PartitionId, Control, FixedState>,
    row_counts: HashMap<TableId, i64>,
    next_aggregate: u32,
    /// Aggregates whose control totals the open batch deletes: the store still has them until it is written.
    voided: Vec<AggregateId>,
}

impl Committer {
    /// Starts after `shared.committed`. `fill` takes aggregates to be filled, `stopped` tells the sequencer of halted ones.
    pub fn new(
        store: Store,
        shared: Arc<Shared>,
        workers: usize,
        input: Receiver<ToCommit>,
        fill: Sender<FillRequest>,
        stopped: async_mpsc::UnboundedSender<AggregateId>,
        next_aggregate: u32,
    ) -> Self {
        let next = shared.committed.load(Ordering::Acquire) + 1;
        let catalog = shared.catalog.load().as_ref().clone();
        Committer {
            store,
            shared,
            workers,
            input,
            fill,
            stopped,
            waiting: BTreeMap::new(),
            next,
            catalog,
            controls: HashMap::default(),
            row_counts: HashMap::new(),
            next_aggregate,
            voided: Vec::new(),
        }
    }

    /// Runs until the sequencer and the workers are gone, or a write fails.
    pub fn run(mut self, dirty: &Sender<Lsn>) {
        while let Ok(message) = self.input.recv() {
            self.stash(message);
            while let Ok(message) = self.input.try_recv() {
                self.stash(message);
            }
            while let Some(run) = self.take_run() {
                if let Err(error) = self.commit(run, dirty) {
                    self.shared.halt(
                        "store_failed",
                        format!("writing failed, nothing after it is shown: {error}"),
                        "see that the disk has space and works, then restart tidemark; nothing is lost, upstream still holds it",
                    );
                    return;
                }
            }
        }
    }

    fn stash(&mut self, message: ToCommit) {
        match message {
            ToCommit::Commit(commit) => {
                let waiting = self.waiting.entry(commit.sequence).or_default();
                waiting.commit = Some(commit);
            }
            ToCommit::Written(set) => self.waiting.entry(set.sequence).or_default().sets.push(set),
        }
    }

    /// The next complete groups that may share a batch.
    fn take_run(&mut self) -> Option<Vec<(Commit, Vec<WriteSet>)>> {
        let mut run = Vec::new();
        while run.len() < MAX_RUN {
            let alone = match self.waiting.get(&self.next) {
                Some(Waiting { commit: Some(commit), sets }) if sets.len() == self.workers => stands_alone(commit),
                _ => break,
            };
            if alone && !run.is_empty() {
                break;
            }
            if let Some(Waiting { commit: Some(commit), sets }) = self.waiting.remove(&self.next) {
                run.push((commit, sets));
            }
            self.next += 1;
            if alone {
                break;
            }
        }
        (!run.is_empty()).then_some(run)
    }

    fn commit(&mut self, mut run: Vec<(Commit, Vec<WriteSet>)>, dirty: &Sender<Lsn>) -> Result<(), StoreError> {
        let Some((last, _)) = run.last() else { return Ok(()) };
        let (sequence, position, phase) = (last.sequence, last.position, last.phase);
        let registry: Vec<RegistryChange> = run.iter_mut().flat_map(|(commit, _)| commit.registry.drain(..)).collect();
        let mut batch = Batch::default();
        for (commit, _) in &run {
            self.truncate(&mut batch, commit.rows.truncated())?;
        }
        self.change_registry(&mut batch, &registry)?;
        self.halt_aggregates(&mut batch, run.iter().flat_map(|(_, sets)| sets))?;
        put_rows_and_cells(&mut batch, &run);
        self.put_controls(&mut batch, sequence, &mut run)?;
        self.put_row_counts(&mut batch, &run)?;
        if phase != Phase::Snapshot {
            Cursor { lsn: position.lsn, commit_time_us: position.commit_time_us, sequence }.put(&mut batch);
        }
        let answered = registry.iter().any(RegistryChange::is_answered);
        self.write(batch, phase, answered || registry.iter().any(RegistryChange::is_of_tables))?;
        self.voided.clear();
        self.publish(sequence, position, phase);
        self.count(&run);
        self.answer(registry);
        if phase != Phase::Snapshot {
            let _ = dirty.send(position.lsn);
        }
        Ok(())
    }

    fn write(&self, batch: Batch, phase: Phase, logged: bool) -> Result<(), StoreError> {
        match phase {
            Phase::Snapshot if !logged => self.store.write_unlogged(batch),
            Phase::SnapshotDone => {
                self.store.flush()?;
                self.store.write(batch)?;
                self.store.sync()
            }
            _ => {
                self.store.write(batch)?;
                if logged { self.store.sync() } else { Ok(()) }
            }
        }
    }

    /// Removes all rows of truncated tables and all cells over them.
    fn truncate(&mut self, batch: &mut Batch, tables: &[TableId]) -> Result<(), StoreError> {
        for table in tables {
            self.store.delete_range(batch, &key::rows(*table))?;
            self.row_counts.insert(*table, 0);
            let over: Vec<AggregateId> = self
                .catalog
                .aggregates
                .values()
                .filter(|aggregate| aggregate.plan.table == *table)
                .map(|aggregate| aggregate.id)
                .collect();
            for id in over {
                self.delete_cells(batch, id)?;
            }
        }
        Ok(())
    }

    fn delete_cells(&mut self, batch: &mut Batch, id: AggregateId) -> Result<(), StoreError> {
        self.controls.retain(|partition, _| partition.0 != id);
        self.voided.push(id);
        self.store.delete_range(batch, &key::of_aggregate(KeyKind::Cell, id))?;
        self.store.delete_range(batch, &key::of_aggregate(KeyKind::Control, id))
    }

    fn change_registry(&mut self, batch: &mut Batch, changes: &[RegistryChange]) -> Result<(), StoreError> {
        for change in changes {
            match change {
                RegistryChange::Source(identity, tables) => {
                    cursor::put_source(batch, identity)?;
                    for table in tables {
                        self.put_table(batch, table)?;
                    }
                }
                RegistryChange::Table(table) => self.put_table(batch, table)?,
                RegistryChange::TableForgotten(id) => batch.delete(&key::table(*id)),
                RegistryChange::Notes(notes) => cursor::put_notes(batch, notes)?,
                RegistryChange::Register { aggregate, .. } => self.put_aggregate(batch, aggregate)?,
                RegistryChange::Replace { old, new } => {
                    self.remove_aggregate(batch, old)?;
                    self.put_aggregate(batch, new)?;
                }
                RegistryChange::Drop(aggregate, _) => {
                    self.remove_aggregate(batch, aggregate)?;
                    self.catalog.aggregates.remove(&aggregate.name);
                }
                RegistryChange::Filled(id) => self.set_state(batch, *id, AggregateState::Live)?,
                RegistryChange::Flush(_) => {}
            }
        }
        Ok(())
    }

    fn put_table(&mut self, batch: &mut Batch, table: &Arc<FollowedTable>) -> Result<(), StoreError> {
        self.catalog.tables.insert(table.schema.qualified_name(), Arc::clone(table));
        registry::put_table(batch, table)
    }

    fn remove_aggregate(&mut self, batch: &mut Batch, aggregate: &Aggregate) -> Result<(), StoreError> {
        batch.delete(&key::aggregate(aggregate.id));
        self.delete_cells(batch, aggregate.id)
    }

    fn put_aggregate(&mut self, batch: &mut Batch, aggregate: &Arc<Aggregate>) -> Result<(), StoreError> {
        self.next_aggregate = self.next_aggregate.max(aggregate.id.0 + 1);
        cursor::put_next_aggregate(batch, self.next_aggregate)?;
        let stored = StoredAggregate {
            id: aggregate.id,
            name: aggregate.name.clone(),
            definition: aggregate.definition.clone(),
            state: aggregate.state.clone(),
        };
        registry::put_aggregate(batch, &stored)?;
        self.catalog.aggregates.insert(aggregate.name.clone(), Arc::clone(aggregate));
        Ok(())
    }

    fn set_state(&mut self, batch: &mut Batch, id: AggregateId, state: AggregateState) -> Result<(), StoreError> {
        let found = self.catalog.aggregates.values().find(|aggregate| aggregate.id == id).cloned();
        match found {
            // A halted aggregate stays so until it is dropped.
            Some(aggregate) if !matches!(aggregate.state, AggregateState::Halted { .. }) => {
                self.put_aggregate(batch, &Arc::new(Aggregate { state, ..aggregate.as_ref().clone() }))
            }
            _ => Ok(()),
        }
    }

    fn halt_aggregates<'a>(
        &mut self,
        batch: &mut Batch,
        sets: impl Iterator<Item = &'a WriteSet>,
    ) -> Result<(), StoreError> {
        for (id, halt) in sets.flat_map(|set| &set.halts) {
            let state = halted_state(*halt);
            tracing::error!(aggregate = id.0, ?state, "aggregate halted");
            self.set_state(batch, *id, state)?;
            let _ = self.stopped.send(*id);
        }
        Ok(())
    }

    fn put_controls(
        &mut self,
        batch: &mut Batch,
        sequence: u64,
        run: &mut [(Commit, Vec<WriteSet>)],
    ) -> Result<(), StoreError> {
        let mut deltas: HashMap<PartitionId, ControlDelta, FixedState> = HashMap::default();
        for (id, delta) in run.iter_mut().flat_map(|(_, sets)| sets).flat_map(|set| set.controls.drain(..)) {
            match deltas.entry(id) {
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(delta);
                }
                std::collections::hash_map::Entry::Occupied(mut entry) => {
                    let sum = entry.get_mut();
                    sum.cells += delta.cells;
                    sum.total.merge(delta.total.rows, &delta.total.accumulators);
                }
            }
        }
        if self.controls.len() > MAX_CONTROLS {
            self.controls.clear();
        }
        let mut value = Vec::new();
        for (id, delta) in deltas {
            let stored = key::control(id.0, id.1, id.2);
            let control = match self.controls.entry(id) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    let void = self.voided.contains(&id.0);
                    let read = if void { None } else { self.store.get_with(&stored, codec::take_control)? };
                    entry.insert(
                        read.map_or(Ok(Control::default()), |read| read.ok_or(StoreError::Damaged("control total")))?,
                    )
                }
            };
            control.cells += delta.cells;
            control.total.merge(delta.total.rows, &delta.total.accumulators);
            if control.cells == 0 && control.total.is_zero() {
                batch.delete(&stored);
            } else {
                value.clear();
                codec::put_control(&mut value, sequence, control);
                batch.put(&stored, &value);
            }
        }
        Ok(())
    }

    fn put_row_counts(&mut self, batch: &mut Batch, run: &[(Commit, Vec<WriteSet>)]) -> Result<(), StoreError> {
        // Looked up once per row: the map's usual hash would cost as much as the rest of the row.
        let mut deltas: HashMap<TableId, i64, FixedState> = HashMap::default();
        for (commit, _) in run {
            commit.rows.truncated().iter().for_each(|table| {
                deltas.entry(*table).or_default();
            });
            for row in commit.rows.signed() {
                *deltas.entry(row.part).or_default() += i64::from(row.sign);
            }
        }
        for (table, delta) in deltas {
            let count = match self.row_counts.entry(table) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(registry::read_row_count(&self.store, table)?)
                }
            };
            *count += delta;
            registry::put_row_count(batch, table, *count);
        }
        Ok(())
    }

    fn publish(&self, sequence: u64, position: Position, phase: Phase) {
        let as_of = AsOf { lsn: position.lsn, commit_time_us: position.commit_time_us, sequence };
        let catalog = Arc::new(self.catalog.clone());
        self.shared.catalog.store(Arc::clone(&catalog));
        self.shared.snapshot.store(Some(Arc::new(Snapshot::new(as_of, catalog, self.store.view()))));
        self.shared.committed.store(sequence, Ordering::Release);
        if phase != Phase::Snapshot {
            self.shared.streaming.store(true, Ordering::Release);
        }
        self.shared.applied.send_replace(as_of);
        self.shared.committed_changed.send_replace(sequence);
    }

    fn count(&self, run: &[(Commit, Vec<WriteSet>)]) {
        let totals = &self.shared.totals;
        let add = |counter: &std::sync::atomic::AtomicU64, n: u64| {
            counter.fetch_add(n, Ordering::Relaxed);
        };
        add(&totals.commits, 1);
        let mut held = 0usize;
        for (commit, sets) in run {
            add(&totals.transactions, commit.transactions);
            add(&totals.inserts, commit.applied.inserts);
            add(&totals.updates, commit.applied.updates);
            add(&totals.deletes, commit.applied.deletes);
            add(&totals.truncates, commit.applied.truncates);
            if commit.phase == Phase::Snapshot {
                add(&totals.snapshot_rows, commit.rows.signed().len() as u64);
            }
            add(&totals.cells_written, sets.iter().map(|set| set.len() as u64).sum());
            held = sets.iter().map(|set| set.held).sum();
        }
        totals.cells_cached.store(held as u64, Ordering::Relaxed);
    }

    fn fill_request(&self, aggregate: &Arc<Aggregate>) -> FillRequest {
        let table = self.catalog.tables.values().find(|table| table.schema.id == aggregate.plan.table);
        let parts: Vec<TableId> = table.map(|table| table.parts().collect()).unwrap_or_default();
        // Only shown as progress: an unreadable count is no reason to fail.
        let count = |part: &TableId| registry::read_row_count(&self.store, *part).unwrap_or_default();
        let rows_estimated = u64::try_from(parts.iter().map(count).sum::<i64>()).unwrap_or_default();
        FillRequest { aggregate: Arc::clone(aggregate), view: self.store.view(), parts, rows_estimated }
    }

    /// Answers those who waited, and has new aggregates filled from exactly this commit's rows.
    fn answer(&self, registry: Vec<RegistryChange>) {
        for change in registry {
            match change {
                RegistryChange::Register { aggregate, fill, reply } => {
                    if fill && aggregate.state == AggregateState::Building {
                        let _ = self.fill.send(self.fill_request(&aggregate));
                    }
                    if let Some(reply) = reply {
                        let _ = reply.send(aggregate);
                    }
                }
                RegistryChange::Drop(_, Some(reply)) | RegistryChange::Flush(reply) => {
                    let _ = reply.send(());
                }
                RegistryChange::Drop(_, None)
                | RegistryChange::Filled(_)
                | RegistryChange::Source(..)
                | RegistryChange::Table(_)
                | RegistryChange::TableForgotten(_)
                | RegistryChange::Notes(_)
                | RegistryChange::Replace { .. } => {}
            }
        }
    }
}

impl RegistryChange {
    /// It must not stay behind where the rows of an initial snapshot, which are not logged, do.
    fn is_of_tables(&self) -> bool {
        matches!(self, RegistryChange::Source(..) | RegistryChange::Table(_))
    }

    /// Somebody is told that it is done, so it must survive a crash first.
    fn is_answered(&self) -> bool {
        match self {
            RegistryChange::Register { reply, .. } => reply.is_some(),
            RegistryChange::Drop(_, reply) => reply.is_some(),
            RegistryChange::Flush(_) => true,
            _ => false,
        }
    }
}

fn stands_alone(commit: &Commit) -> bool {
    !commit.registry.is_empty() || !commit.rows.truncated().is_empty() || commit.phase == Phase::SnapshotDone
}

/// Puts row images and cells in key order, the last write of each key: sorted batches cost half.
fn put_rows_and_cells(batch: &mut Batch, run: &[(Commit, Vec<WriteSet>)]) {
    let mut entries: Vec<(&[u8], Option<&[u8]>)> = Vec::new();
    for (commit, sets) in run {
        entries.extend(commit.rows.writes());
        entries.extend(sets.iter().flat_map(WriteSet::cells));
    }
    // Stable: among equal keys the later group's write stays last.
    entries.sort_by(|a, b| a.0.cmp(b.0));
    let mut entries = entries.into_iter().peekable();
    while let Some((key, value)) = entries.next() {
        if entries.peek().is_some_and(|next| next.0 == key) {
            continue;
        }
        match value {
            Some(value) => batch.put(key, value),
            None => batch.delete(key),
        }
    }
}

fn halted_state(halt: Halt) -> AggregateState {
    let (code, message, remedy) = match halt {
        Halt::Overflow => (
            "sum_overflow",
            "a value or a sum does not fit 128 bits",
            "drop the aggregate; register it with a smaller scale or more dimensions",
        ),
        Halt::Scale => (
            "scale_exceeded",
            "a value has more digits after the point than the measure keeps, and rounding it would be wrong",
            "drop the aggregate and register it with a larger \"scale\"",
        ),
        Halt::Type => (
            "value_misfit",
            "a value is not of its column's type",
            "drop the aggregate and register it again; if it recurs, report it",
        ),
        Halt::GroupTooLong => (
            "group_too_long",
            "the dimensions of a row take more than 1,024 bytes",
            "drop the aggregate and register it without the long column",
        ),
        Halt::AppliedTwice => (
            "applied_twice",
            "a cell was about to take the same difference twice",
            "drop the aggregate and register it again; please report it",
        ),
        Halt::Unreadable => (
            "store_unreadable",
            "a cell could not be read from the store",
            "check the disk; then start over with an empty data directory",
        ),
    };
    AggregateState::Halted { code: code.to_owned(), message: message.to_owned(), remedy: remedy.to_owned() }
}
