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
//! - A failed write ends the engine. It is not retried: after a failed sync the kernel may believe pages are clean. Except
//!   where the disk is full: the same batch is then written again until it fits. Its values are absolute, so it does no harm
//!   where a part of it did reach the disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::sync::{mpsc as async_mpsc, oneshot};

use crate::change::{Lsn, TableId};
use crate::commit_group::{GroupRows, Position};
use crate::dataflow::apply::{ControlDelta, WriteSet};
use crate::dataflow::block::Halt;
use crate::dataflow::partition::PartitionId;
use crate::drill;
use crate::durable::make_durable;
use crate::fill::FillRequest;
use crate::materialization::{Aggregate, AggregateId, AggregateState, Catalog, Registration};
use crate::published::Newest;
use crate::row_image::Applied;
use crate::shared::Shared;
use crate::snapshot::{AsOf, Snapshot};
use crate::source::{FollowedTable, SourceIdentity};
use crate::store::codec::{self, Control};
use crate::store::registry;
use crate::store::{Answered, Batch, Cursor, KeyKind, RowFiles, Store, StoreError, cursor, key};
use crate::torture::{self, Bug, Failpoint};

/// Most groups in one batch.
const MAX_RUN: usize = 64;
/// How long a batch waits before it is tried again on a disk that was full.
const TRY_AGAIN: Duration = Duration::from_millis(500);
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
    /// Entries of the row index that were filled in.
    pub filled_index: Vec<Vec<u8>>,
    /// Events in it.
    pub applied: Applied,
    /// Upstream transactions in it.
    pub transactions: u64,
    /// Where the first of them ends.
    pub first_end: Option<Lsn>,
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
    /// An aggregate cannot be exact any more; durable before the answer.
    Halted {
        /// Which.
        aggregate: AggregateId,
        /// Why.
        state: AggregateState,
        /// Who waits for it.
        reply: oneshot::Sender<()>,
    },
    /// An aggregate is filled from this instant on, microseconds since 2000-01-01 UTC. Not stored: a restart fills anew.
    Covered(AggregateId, i64),
    /// An aggregate is filled.
    Filled(AggregateId),
    /// The next version of an aggregate is filled: it takes the place of the one before, where there still is one.
    Promote {
        /// The version before.
        old: Option<Arc<Aggregate>>,
        /// Under its final name.
        new: Arc<Aggregate>,
    },
    /// Answered once everything before is durable.
    Flush(oneshot::Sender<()>),
}

#[derive(Default)]
struct Waiting {
    commit: Option<Commit>,
    sets: Vec<WriteSet>,
}

/// Numbers that are given once, as far as they are stored.
pub struct NumbersGiven {
    /// That the next aggregate gets.
    pub next_aggregate: u32,
    /// To callers that were answered.
    pub answered: Answered,
}

/// Writes groups in order.
pub struct Committer {
    store: Store,
    shared: Arc<Shared>,
    workers: usize,
    input: Receiver<ToCommit>,
    fill: async_mpsc::UnboundedSender<FillRequest>,
    stopped: async_mpsc::UnboundedSender<AggregateId>,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    catalog: Catalog,
    controls: HashMap<PartitionId, Control, FixedState>,
    row_counts: HashMap<TableId, i64>,
    given: NumbersGiven,
    /// Aggregates whose control totals the open batch deletes: the store still has them until it is written.
    voided: Vec<AggregateId>,
    /// Where the rows of the initial snapshot go.
    row_files: Option<RowFiles>,
}

impl Committer {
    /// Starts after what is committed. `fill` takes aggregates to be filled, `stopped` tells the sequencer of halted ones.
    pub fn new(
        store: Store,
        shared: Arc<Shared>,
        workers: usize,
        input: Receiver<ToCommit>,
        fill: async_mpsc::UnboundedSender<FillRequest>,
        stopped: async_mpsc::UnboundedSender<AggregateId>,
        given: NumbersGiven,
    ) -> Self {
        let next = shared.published.committed().reached() + 1;
        let catalog = shared.published.catalog().as_ref().clone();
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
            given,
            voided: Vec::new(),
            row_files: None,
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
                if !self.commit_or_halt(run, dirty) {
                    return;
                }
            }
        }
    }

    /// What [`Committer::run`] does with what is there, one batch at most. False where a write failed.
    #[cfg(feature = "torture")]
    pub fn step(&mut self, dirty: &Sender<Lsn>) -> bool {
        while let Ok(message) = self.input.try_recv() {
            self.stash(message);
        }
        self.take_run().is_none_or(|run| self.commit_or_halt(run, dirty))
    }

    fn commit_or_halt(&mut self, run: Vec<(Commit, Vec<WriteSet>)>, dirty: &Sender<Lsn>) -> bool {
        // Whoever waits for an answer learns of its end only after the reason is there.
        let mut registry = Vec::new();
        let Err(error) = self.commit(run, &mut registry, dirty) else { return true };
        self.shared.halt(
            "store_failed",
            format!("writing failed, nothing after it is shown: {error}"),
            "see that the disk has space and works, then restart tidemark; nothing is lost, upstream still holds it",
        );
        false
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
        // Whoever looks for the end of a transaction needs a Snapshot of each.
        let longest = if self.shared.published.boundaries.watched() { 1 } else { MAX_RUN };
        while run.len() < longest {
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

    fn commit(
        &mut self,
        mut run: Vec<(Commit, Vec<WriteSet>)>,
        registry: &mut Vec<RegistryChange>,
        dirty: &Sender<Lsn>,
    ) -> Result<(), StoreError> {
        let Some((last, _)) = run.last() else { return Ok(()) };
        let (sequence, position, phase) = (last.sequence, last.position, last.phase);
        registry.extend(run.iter_mut().flat_map(|(commit, _)| commit.registry.drain(..)));
        let mut batch = Batch::default();
        for (commit, _) in &run {
            self.truncate(&mut batch, commit.rows.truncated())?;
        }
        self.change_registry(&mut batch, registry)?;
        self.halt_aggregates(&mut batch, &run)?;
        if phase == Phase::Snapshot {
            self.add_to_files(&run)?;
        }
        if phase != Phase::Snapshot || !registry.is_empty() {
            // The end of the snapshot, and also what is filled from this commit's view, needs all rows in the store.
            self.row_files.take().map_or(Ok(()), RowFiles::finish)?;
        }
        put_sorted(&mut batch, &run, phase != Phase::Snapshot);
        self.put_row_index(&mut batch, &run);
        self.put_controls(&mut batch, sequence, &mut run)?;
        self.put_row_counts(&mut batch, &run)?;
        if phase != Phase::Snapshot {
            Cursor { lsn: position.lsn, commit_time_us: position.commit_time_us, sequence }.put(&mut batch);
            cursor::put_milestone(&mut batch, position.milestone);
        }
        if torture::planted(Bug::AcknowledgesReceived) && phase == Phase::Streaming {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        torture::reached(Failpoint::BatchBuilt);
        if phase == Phase::SnapshotDone {
            torture::reached(Failpoint::SnapshotTakenIn);
        }
        if torture::planted(Bug::CursorAhead) && phase == Phase::Streaming {
            let mut ahead = Batch::default();
            Cursor { lsn: position.lsn, commit_time_us: position.commit_time_us, sequence }.put(&mut ahead);
            self.store.write(ahead)?;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        if torture::planted(Bug::PublishesTooEarly) && phase == Phase::Streaming {
            self.publish(sequence, position, phase, None);
        }
        let answered = registry.iter().any(RegistryChange::is_answered) && !torture::planted(Bug::AnswersUnsynced);
        // From the end of the initial snapshot on there is something to lose, whether anybody asked for it or not.
        let counted = answered || phase == Phase::SnapshotDone;
        if counted {
            self.given.answered.next(&mut batch);
        }
        self.write(batch, phase, answered || registry.iter().any(RegistryChange::is_of_tables))?;
        if counted {
            self.given.answered.note(&self.store);
        }
        torture::reached(Failpoint::BatchWritten);
        self.voided.clear();
        let first_end = run.iter().find_map(|(commit, _)| commit.first_end);
        if !torture::planted(Bug::PublishesTooEarly) || phase != Phase::Streaming {
            self.publish(sequence, position, phase, first_end);
        }
        torture::reached(Failpoint::Published);
        self.count(&run);
        self.answer(std::mem::take(registry));
        if phase != Phase::Snapshot {
            let _ = dirty.send(position.lsn);
        }
        Ok(())
    }

    fn add_to_files(&mut self, run: &[(Commit, Vec<WriteSet>)]) -> Result<(), StoreError> {
        for (commit, _) in run.iter().filter(|(commit, _)| !commit.rows.is_empty()) {
            let files = match &mut self.row_files {
                Some(files) => files,
                none => none.insert(RowFiles::start(self.store.clone())?),
            };
            files.add(&commit.rows)?;
        }
        Ok(())
    }

    fn write(&self, batch: Batch, phase: Phase, logged: bool) -> Result<(), StoreError> {
        match phase {
            Phase::Snapshot if !logged => self.until_it_fits(batch, Store::write_unlogged),
            Phase::SnapshotDone => {
                self.store.flush()?;
                self.until_it_fits(batch, Store::write)?;
                make_durable(&self.store, &self.shared)
            }
            _ => {
                self.until_it_fits(batch, Store::write)?;
                if logged { make_durable(&self.store, &self.shared) } else { Ok(()) }
            }
        }
    }

    /// Writes a batch, where the disk is full as soon as it is not. Readers go on at the Snapshot before it meanwhile, and
    /// the sequencer soon mints no more.
    fn until_it_fits(
        &self,
        mut batch: Batch,
        write: impl Fn(&Store, Batch) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        loop {
            let again = batch.copy();
            let written = write(&self.store, batch);
            let waits = matches!(written, Err(StoreError::NoSpace(_))) && !self.shared.stopping.is_raised();
            if self.shared.waits_for_space.swap(waits, Ordering::AcqRel) != waits {
                match &written {
                    Err(error) => tracing::warn!(%error, "the disk is full: what is to be written waits for space"),
                    Ok(()) => tracing::info!("there is space again: what waited is written"),
                }
            }
            if !waits {
                return written;
            }
            std::thread::sleep(TRY_AGAIN);
            batch = again;
        }
    }

    /// Removes all rows of truncated tables and all cells over them.
    fn truncate(&mut self, batch: &mut Batch, tables: &[TableId]) -> Result<(), StoreError> {
        for table in tables {
            torture::reached(Failpoint::Truncating);
            self.store.delete_range(batch, &key::rows(*table))?;
            self.row_counts.insert(*table, 0);
            let over: Vec<AggregateId> = self
                .catalog
                .aggregates
                .values()
                .filter(|aggregate| aggregate.plan.table == *table && !torture::planted(Bug::KeepsTruncated))
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
        self.store.delete_range(batch, &key::of_aggregate(KeyKind::RowIndex, id))?;
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
                    torture::reached(Failpoint::Dropping);
                    self.remove_aggregate(batch, aggregate)?;
                    self.catalog.aggregates.remove(&aggregate.name);
                }
                RegistryChange::Promote { old, new } => {
                    torture::reached(Failpoint::Promoting);
                    old.iter().try_for_each(|old| self.remove_aggregate(batch, old))?;
                    self.catalog.covered_from.remove(&new.id);
                    let next = self.catalog.aggregates.remove(&Registration::next_name(&new.name));
                    // A row of the groups since the filling's end may have halted it.
                    let halted = next.map(|next| next.state.clone()).filter(AggregateState::is_halted);
                    let state = halted.unwrap_or(AggregateState::Live);
                    self.put_aggregate(batch, &Arc::new(Aggregate { state, ..new.as_ref().clone() }))?;
                }
                RegistryChange::Covered(id, from) => {
                    // Unless it was dropped meanwhile.
                    if self.catalog.aggregates.values().any(|aggregate| aggregate.id == *id) {
                        self.catalog.covered_from.insert(*id, *from);
                    }
                }
                RegistryChange::Filled(id) => {
                    self.catalog.covered_from.remove(id);
                    self.set_state(batch, *id, AggregateState::Live)?;
                }
                RegistryChange::Halted { aggregate, state, .. } => self.set_state(batch, *aggregate, state.clone())?,
                RegistryChange::Flush(_) => {}
            }
        }
        Ok(())
    }

    fn put_table(&mut self, batch: &mut Batch, table: &Arc<FollowedTable>) -> Result<(), StoreError> {
        // It may have had another name; its record is by its number.
        self.catalog.tables.retain(|_, known| known.schema.id != table.schema.id);
        self.catalog.tables.insert(table.schema.qualified_name(), Arc::clone(table));
        registry::put_table(batch, table)
    }

    fn remove_aggregate(&mut self, batch: &mut Batch, aggregate: &Aggregate) -> Result<(), StoreError> {
        self.catalog.covered_from.remove(&aggregate.id);
        batch.delete(&key::aggregate(aggregate.id));
        self.delete_cells(batch, aggregate.id)
    }

    fn put_aggregate(&mut self, batch: &mut Batch, aggregate: &Arc<Aggregate>) -> Result<(), StoreError> {
        self.given.next_aggregate = self.given.next_aggregate.max(aggregate.id.0 + 1);
        cursor::put_next_aggregate(batch, self.given.next_aggregate)?;
        registry::put_aggregate(batch, &aggregate.registration())?;
        self.catalog.aggregates.insert(aggregate.name.clone(), Arc::clone(aggregate));
        Ok(())
    }

    fn set_state(&mut self, batch: &mut Batch, id: AggregateId, state: AggregateState) -> Result<(), StoreError> {
        let found = self.catalog.aggregates.values().find(|aggregate| aggregate.id == id).cloned();
        match found {
            // A halted aggregate stays so until it is dropped.
            Some(aggregate) if !aggregate.state.is_halted() => {
                self.put_aggregate(batch, &Arc::new(Aggregate { state, ..aggregate.as_ref().clone() }))
            }
            _ => Ok(()),
        }
    }

    fn halt_aggregates(&mut self, batch: &mut Batch, run: &[(Commit, Vec<WriteSet>)]) -> Result<(), StoreError> {
        for (commit, sets) in run {
            for (id, halt) in sets.iter().flat_map(|set| &set.halts) {
                let (code, _, remedy) = halt.reason();
                let name =
                    self.catalog.aggregates.values().find(|aggregate| aggregate.id == *id).map(|found| &found.name);
                // Not the message: it may name the value of a row, which is for those who may read the aggregate.
                tracing::error!(aggregate = name, lsn = %commit.position.lsn, code, remedy, "aggregate halted");
                self.set_state(batch, *id, halted_state(*halt))?;
                let _ = self.stopped.send(*id);
            }
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
                    sum.total.merge_modulo(delta.total.rows, &delta.total.accumulators);
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
                    let read = if void { Ok(None) } else { self.store.get_with(&stored, codec::take_control) };
                    let Ok(None | Some(Some(_))) = read else {
                        // It stays as it is, so the scrubber finds it and halts this aggregate alone.
                        self.shared.suspects.note(id.0);
                        continue;
                    };
                    entry.insert(read.ok().flatten().flatten().unwrap_or_default())
                }
            };
            control.cells += delta.cells;
            control.total.merge_modulo(delta.total.rows, &delta.total.accumulators);
            if control.cells == 0 && control.total.is_zero() {
                batch.delete(&stored);
                // Where buckets come and go the cache would fill with those that went. One that comes back is read again, and
                // this batch is in the store by then.
                self.controls.remove(&id);
            } else {
                value.clear();
                codec::put_control(&mut value, sequence, control);
                batch.put(&stored, &value);
            }
        }
        Ok(())
    }

    /// Entries of rows that appear and go away, for the aggregates that keep the index.
    fn put_row_index(&self, batch: &mut Batch, run: &[(Commit, Vec<WriteSet>)]) {
        let indexed: Vec<&Arc<Aggregate>> = self
            .catalog
            .aggregates
            .values()
            .filter(|aggregate| aggregate.definition.drill_through && !aggregate.state.is_halted())
            .collect();
        if indexed.is_empty() {
            return;
        }
        let ids: Vec<AggregateId> = indexed.iter().map(|aggregate| aggregate.id).collect();
        for (commit, _) in run {
            // Before the stream's: what the stream says of a row is newer. Of a dropped aggregate nobody would remove them.
            let belongs = |entry: &&Vec<u8>| key::aggregate_of(entry).is_some_and(|id| ids.contains(&id));
            commit.filled_index.iter().filter(belongs).for_each(|entry| batch.put(entry, &[]));
            for aggregate in &indexed {
                let table = self.catalog.tables.values().find(|table| table.schema.id == aggregate.plan.table);
                let Some(table) = table else { continue };
                let signed = commit.rows.signed().iter().filter(|row| row.table == table.schema.id);
                let rows = signed.map(|row| (row.sign, row.part, commit.rows.row(row)));
                drill::changes(aggregate, &table.schema.primary_key, rows, |entry, put| {
                    if put { batch.put(entry, &[]) } else { batch.delete(entry) }
                });
            }
        }
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

    fn publish(&self, sequence: u64, position: Position, phase: Phase, first_end: Option<Lsn>) {
        let as_of = AsOf { lsn: position.lsn, commit_time_us: position.commit_time_us, sequence };
        let catalog = Arc::new(self.catalog.clone());
        let newest = match phase {
            // While a view exists, rows of the initial snapshot could not be taken in as if they had always been there.
            Phase::Snapshot => Newest::Registered(catalog),
            Phase::SnapshotDone | Phase::Streaming => {
                let suspects = Arc::clone(&self.shared.suspects);
                Newest::Snapshot(Arc::new(Snapshot::new(as_of, catalog, self.store.view(), suspects)))
            }
        };
        self.shared.published.publish(as_of, newest, first_end.unwrap_or(position.lsn));
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
        FillRequest { aggregate: Arc::clone(aggregate), view: Arc::new(self.store.view()), parts, rows_estimated }
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
                        torture::reached(Failpoint::Registered);
                        let _ = reply.send(aggregate);
                    }
                }
                RegistryChange::Drop(_, Some(reply))
                | RegistryChange::Halted { reply, .. }
                | RegistryChange::Flush(reply) => {
                    let _ = reply.send(());
                }
                RegistryChange::Drop(_, None)
                | RegistryChange::Covered(..)
                | RegistryChange::Filled(_)
                | RegistryChange::Source(..)
                | RegistryChange::Table(_)
                | RegistryChange::TableForgotten(_)
                | RegistryChange::Notes(_)
                | RegistryChange::Promote { .. }
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
            RegistryChange::Flush(_) | RegistryChange::Halted { .. } => true,
            _ => false,
        }
    }
}

fn stands_alone(commit: &Commit) -> bool {
    !commit.registry.is_empty() || !commit.rows.truncated().is_empty() || commit.phase == Phase::SnapshotDone
}

/// Puts cells, and row images where asked for, in key order, the last write of each key: sorted batches cost half.
fn put_sorted(batch: &mut Batch, run: &[(Commit, Vec<WriteSet>)], with_rows: bool) {
    let mut entries: Vec<(&[u8], Option<&[u8]>)> = Vec::new();
    for (commit, sets) in run {
        if with_rows {
            entries.extend(commit.rows.writes());
        }
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
    let (code, message, remedy) = halt.reason();
    AggregateState::Halted { code: code.to_owned(), message, remedy: remedy.to_owned() }
}
