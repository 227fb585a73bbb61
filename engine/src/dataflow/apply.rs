//! Blocks into cells: adds an epoch's differences to the worker's Partitions, on every level, and says what has to be
//! written. Values are absolute, so writing them twice changes nothing; a difference applied twice is caught at the cell.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::block::{Block, Entry, Halt};
use super::partition::{PartitionId, Partitions};
use super::{Command, Epoch};
use crate::aggregate::Cell;
use crate::materialization::bucket::BucketCache;
use crate::materialization::{Aggregate, AggregateId, Plan};
use crate::store::{codec, key};
use crate::torture::{self, Bug};

/// What one worker has to write for one epoch.
#[derive(Debug, Default)]
pub struct WriteSet {
    /// The epoch.
    pub sequence: u64,
    bytes: Vec<u8>,
    /// End of the key and of the value in `bytes`; no value where the cell no longer exists. An epoch of one transaction may have
    /// more than 4 GiB of them.
    cells: Vec<(usize, usize)>,
    /// By how much control totals change.
    pub controls: Vec<(PartitionId, ControlDelta)>,
    /// Aggregates that cannot be exact any more.
    pub halts: Vec<(AggregateId, Halt)>,
    /// Cells the worker holds in memory.
    pub held: usize,
}

/// By how much a control total changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ControlDelta {
    /// Cells that came into being, less those that ceased to exist.
    pub cells: i64,
    /// The sum of all differences, modulo 2^128.
    pub total: Cell,
}

impl WriteSet {
    /// Keys and values of the cells.
    pub fn cells(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> + '_ {
        let mut start = 0usize;
        self.cells.iter().map(move |&(key_end, value_end)| {
            let key = self.bytes.get(start..key_end).unwrap_or_default();
            let value = self.bytes.get(key_end..value_end).filter(|value| !value.is_empty());
            start = value_end;
            (key, value)
        })
    }

    /// Number of cells.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// True where no cell changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }
}

/// The cells of one worker.
pub struct Apply {
    partitions: Partitions,
    aggregates: HashMap<AggregateId, Applying, FixedState>,
}

struct Applying {
    plan: Arc<Plan>,
    /// Bucket edges of the levels above the base.
    coarser: Vec<BucketCache>,
    halted: bool,
    /// The table was truncated while it was being filled: what is still to come of the filling is void.
    fill_void: bool,
}

/// Cells touched in one epoch.
#[derive(Default)]
struct Touched {
    groups: Vec<u8>,
    cells: Vec<(PartitionId, usize, usize)>,
    controls: HashMap<PartitionId, ControlDelta, FixedState>,
}

impl Apply {
    /// Over a worker's Partitions.
    #[must_use]
    pub fn new(partitions: Partitions) -> Self {
        Apply { partitions, aggregates: HashMap::default() }
    }

    /// Applies one epoch: its commands, its truncates, then the differences.
    pub fn epoch(&mut self, epoch: &Epoch, worker: usize, blocks: &[Block]) -> WriteSet {
        let mut set = WriteSet { sequence: epoch.sequence, ..WriteSet::default() };
        let mut touched = Touched::default();
        epoch.commands.iter().for_each(|command| self.command(command, epoch.sequence));
        self.truncate(epoch);
        for block in blocks {
            self.block(block, epoch.sequence, &mut touched, &mut set);
        }
        for filled in &epoch.filled {
            let void = self.aggregates.get(&filled.aggregate).is_none_or(|applying| applying.fill_void);
            for block in filled.blocks.iter().filter(|block| !void && block.target == worker as u64) {
                self.block(block, epoch.sequence, &mut touched, &mut set);
            }
        }
        self.write(touched, &mut set);
        self.partitions.evict();
        set.held = self.partitions.held();
        set
    }

    fn command(&mut self, command: &Command, sequence: u64) {
        match command {
            Command::Install(aggregate) => self.install(aggregate),
            Command::Remove(id) => {
                self.aggregates.remove(id);
                self.partitions.reset(*id, sequence);
            }
        }
    }

    fn install(&mut self, aggregate: &Aggregate) {
        let plan = Arc::clone(&aggregate.plan);
        let coarser = plan.levels.iter().skip(1).map(|level| BucketCache::new(plan.calendar, *level)).collect();
        self.aggregates.insert(aggregate.id, Applying { plan, coarser, halted: false, fill_void: false });
    }

    fn truncate(&mut self, epoch: &Epoch) {
        for (id, applying) in &mut self.aggregates {
            if epoch.rows.truncated().contains(&applying.plan.table) {
                self.partitions.reset(*id, epoch.sequence);
                applying.fill_void = true;
            }
        }
    }

    fn block(&mut self, block: &Block, sequence: u64, touched: &mut Touched, set: &mut WriteSet) {
        let id = AggregateId(block.aggregate);
        let Some(applying) = self.aggregates.get_mut(&id).filter(|applying| !applying.halted) else { return };
        let result = match block.misfit {
            Some(halt) => Err(halt),
            None => {
                block.iter().try_for_each(|entry| add(&mut self.partitions, id, applying, &entry, sequence, touched))
            }
        };
        if let Err(halt) = result {
            applying.halted = true;
            set.halts.push((id, halt));
        }
    }

    /// Encodes the touched cells as they are now.
    fn write(&mut self, touched: Touched, set: &mut WriteSet) {
        let Touched { groups, cells, mut controls } = touched;
        for (id, start, end) in cells {
            let group = groups.get(start..end).unwrap_or_default();
            let Some(held) = self.partitions.held_cell(id, group) else { continue };
            let existed = held.existed.take().unwrap_or(false);
            held.changed = set.sequence;
            let exists = !held.cell.is_zero() || torture::planted(Bug::KeepsEmptyCells);
            key::push_cell_prefix(&mut set.bytes, id.0, id.1, id.2);
            set.bytes.extend_from_slice(group);
            let key_end = set.bytes.len();
            if exists {
                codec::put_cell(&mut set.bytes, set.sequence, &held.cell);
            } else {
                self.partitions.forget_cell(id, group);
            }
            set.cells.push((key_end, set.bytes.len()));
            if exists != existed
                && let Some(control) = controls.get_mut(&id)
            {
                control.cells += if exists { 1 } else { -1 };
            }
        }
        set.controls.extend(controls);
    }
}

/// Adds one difference to its cell on every level.
fn add(
    partitions: &mut Partitions,
    aggregate: AggregateId,
    applying: &mut Applying,
    entry: &Entry<'_>,
    sequence: u64,
    touched: &mut Touched,
) -> Result<(), Halt> {
    let mut bucket = entry.bucket;
    for level in 0..=applying.coarser.len() {
        if let Some(cache) = level.checked_sub(1).and_then(|coarser| applying.coarser.get_mut(coarser)) {
            bucket = cache.bucket(entry.bucket.0);
            if entry.rows < 0 && torture::planted(Bug::RollsUpInsertsOnly) {
                continue;
            }
        }
        let id = (aggregate, level as u8, bucket);
        let held = partitions.cell(id, entry.group, sequence).map_err(|_| Halt::Unreadable)?;
        if held.existed.is_none() {
            if held.changed >= sequence {
                return Err(Halt::AppliedTwice);
            }
            held.existed = Some(!held.cell.is_zero());
            let start = touched.groups.len();
            touched.groups.extend_from_slice(entry.group);
            touched.cells.push((id, start, touched.groups.len()));
        }
        let fits = held.cell.merge(entry.rows, entry.accumulators);
        let control = touched.controls.entry(id).or_default();
        if !fits || !control.total.merge_modulo(entry.rows, entry.accumulators) {
            return Err(Halt::Overflow);
        }
    }
    Ok(())
}
