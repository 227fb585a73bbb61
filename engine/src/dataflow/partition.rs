//! Cells in memory: a bounded write-back cache of many small maps, one per Partition. A single giant map would stall for
//! hundreds of milliseconds whenever it grows.
//!
//! A cell here is ahead of the store by the epochs that are applied and not yet committed. Only Partitions without such
//! cells may be forgotten; what is forgotten is read from the store again.

use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use hashbrown::hash_map::{Entry, EntryRef};

use crate::aggregate::Cell;
use crate::materialization::{AggregateId, Bucket};
use crate::store::{Store, StoreError, codec, key};
use crate::torture::{self, Bug};
use crate::watermark::Watermark;

type Map<K, V> = HashMap<K, V, FixedState>;

/// Which Partition.
pub type PartitionId = (AggregateId, u8, Bucket);

/// One cell and the epoch that last changed it.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Its accumulators.
    pub cell: Cell,
    /// Epoch that last changed it; 0 for never.
    pub changed: u64,
    /// While the current epoch touches it: whether it existed before.
    pub existed: Option<bool>,
}

#[derive(Default)]
struct Partition {
    cells: Map<Vec<u8>, Held>,
    /// All cells that exist are in memory: what is not here is not in the store either.
    complete: bool,
    /// Epoch that last touched it.
    touched: u64,
}

/// The Partitions of one worker.
pub struct Partitions {
    store: Store,
    partitions: Map<PartitionId, Partition>,
    /// Partitions whose last cell was forgotten. Where buckets come and go they would stay for ever, each with the room of all the
    /// cells that it ever had.
    emptied: Vec<PartitionId>,
    held: usize,
    budget: usize,
    committed: Arc<Watermark>,
    /// Aggregates whose cells in the store are void since this epoch, until it is committed.
    void: Map<AggregateId, u64>,
    scratch: Vec<u8>,
}

impl Partitions {
    /// Nothing in memory; at most about `budget` cells will be. `committed` is the sequence the store has reached.
    #[must_use]
    pub fn new(store: Store, budget: usize, committed: Arc<Watermark>) -> Self {
        Partitions {
            store,
            partitions: Map::default(),
            emptied: Vec::new(),
            held: 0,
            budget,
            committed,
            void: Map::default(),
            scratch: Vec::new(),
        }
    }

    /// Number of cells in memory.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// A cell, read from the store where it is not in memory; an empty one where it does not exist.
    pub fn cell(&mut self, id: PartitionId, group: &[u8], epoch: u64) -> Result<&mut Held, StoreError> {
        let Partitions { store, partitions, held, committed, void, scratch, .. } = self;
        let is_void = void.get(&id.0).is_some_and(|since| *since > committed.reached());
        let partition = match partitions.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let complete = is_void || store.is_empty(&key::cells(id.0, id.1, id.2, id.2))?;
                entry.insert(Partition { complete, ..Partition::default() })
            }
        };
        partition.touched = epoch;
        let vacant = match partition.cells.entry_ref(group) {
            EntryRef::Occupied(entry) => return Ok(entry.into_mut()),
            EntryRef::Vacant(entry) => entry,
        };
        let mut fresh = Held::default();
        if !partition.complete && !is_void {
            scratch.clear();
            key::push_cell_prefix(scratch, id.0, id.1, id.2);
            scratch.extend_from_slice(group);
            let read = store.get_with(scratch, |value| codec::take_cell(value, &mut fresh.cell))?;
            if let Some(sequence) = read {
                fresh.changed = sequence.ok_or(StoreError::Damaged("cell"))?;
            }
        }
        *held += 1;
        Ok(vacant.insert(fresh))
    }

    /// A cell that is in memory.
    pub fn held_cell(&mut self, id: PartitionId, group: &[u8]) -> Option<&mut Held> {
        self.partitions.get_mut(&id)?.cells.get_mut(group)
    }

    /// Forgets a cell that no longer exists, where its Partition is wholly in memory and so knows that.
    pub fn forget_cell(&mut self, id: PartitionId, group: &[u8]) {
        if let Some(partition) = self.partitions.get_mut(&id)
            && partition.complete
            && partition.cells.remove(group).is_some()
        {
            self.held -= 1;
            if partition.cells.is_empty() {
                self.emptied.push(id);
            }
        }
    }

    /// All cells of an aggregate are void from this epoch on.
    pub fn reset(&mut self, aggregate: AggregateId, epoch: u64) {
        let held = &mut self.held;
        self.partitions.retain(|id, partition| {
            let keep = id.0 != aggregate;
            if !keep {
                *held -= partition.cells.len();
            }
            keep
        });
        self.void.insert(aggregate, epoch);
    }

    /// Forgets Partitions without cells, and the least recently touched ones while more cells are in memory than the budget allows.
    pub fn evict(&mut self) {
        let committed = self.committed.reached();
        self.void.retain(|_, since| *since > committed);
        self.forget_emptied(committed);
        if self.held <= self.budget {
            return;
        }
        let mut idle: Vec<(u64, PartitionId)> = self
            .partitions
            .iter()
            .filter(|(_, partition)| partition.touched <= committed || torture::planted(Bug::EvictsUncommitted))
            .map(|(id, partition)| (partition.touched, *id))
            .collect();
        idle.sort_unstable();
        for (_, id) in idle {
            if self.held <= self.budget / 4 * 3 {
                break;
            }
            if let Some(partition) = self.partitions.remove(&id) {
                self.held -= partition.cells.len();
            }
        }
    }

    /// Those whose deletions the store does not have yet stay: it would give the cells back.
    fn forget_emptied(&mut self, committed: u64) {
        let Partitions { partitions, emptied, .. } = self;
        emptied.retain(|id| {
            let Some(partition) = partitions.get(id).filter(|partition| partition.cells.is_empty()) else {
                return false;
            };
            let early = partition.touched > committed;
            if !early {
                partitions.remove(id);
            }
            early
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::store::StoreMemory;

    #[test]
    fn a_partition_without_cells_is_forgotten_once_the_store_knows() {
        let directory = tempfile::tempdir().unwrap();
        let memory = StoreMemory { block_cache: 1 << 20, write_buffer: 1 << 20 };
        let committed = Arc::new(Watermark::new(0));
        let mut partitions =
            Partitions::new(Store::open(directory.path(), memory).unwrap(), 1_000_000, Arc::clone(&committed));
        let id = |bucket| (AggregateId(1), 0, Bucket(bucket));
        for bucket in 0..3 {
            for group in 0..10_u8 {
                partitions.cell(id(bucket), &[group], 1).unwrap();
            }
        }
        let forget = |partitions: &mut Partitions, bucket, groups: u8| {
            (0..groups).for_each(|group| partitions.forget_cell(id(bucket), &[group]));
        };
        forget(&mut partitions, 0, 10);
        forget(&mut partitions, 1, 10);
        forget(&mut partitions, 2, 9);
        partitions.evict();
        assert_eq!((partitions.partitions.len(), partitions.held()), (3, 1), "the store may still have the cells");
        // A bucket that was empty for a moment.
        partitions.cell(id(1), &[7], 2).unwrap();
        committed.reach(2);
        partitions.evict();
        assert_eq!((partitions.partitions.len(), partitions.held()), (2, 2));
        assert!(partitions.held_cell(id(1), &[7]).is_some() && partitions.held_cell(id(2), &[9]).is_some());
        assert!(partitions.emptied.is_empty());
    }
}
