//! The groups of one bucket being merged: keys and accumulators one after the other, because a map of vectors would spend
//! two allocations on each of a hundred thousand groups.

use std::hash::BuildHasher;

use engine::aggregate::{Accumulator, Cell};
use foldhash::fast::FixedState;
use hashbrown::HashTable;

const HASHER: FixedState = FixedState::with_seed(0x7469_6465);

/// Groups with what was merged into each.
#[derive(Default)]
pub(super) struct Groups {
    keys: Vec<u8>,
    /// End of the key in `keys`, and rows.
    entries: Vec<(usize, i64)>,
    accumulators: Vec<Accumulator>,
    index: HashTable<usize>,
}

impl Groups {
    /// Adds a cell to its group.
    pub(super) fn merge(&mut self, key: &[u8], cell: &Cell) {
        let Groups { keys, entries, accumulators, index } = self;
        let hash = HASHER.hash_one(key);
        let found = index.find(hash, |at| key_at(keys, entries, *at) == key).copied();
        let measures = cell.accumulators.len();
        if let Some(at) = found {
            if let Some(entry) = entries.get_mut(at) {
                // A count of rows that leaves 64 bits is not survivable either way.
                entry.1 = entry.1.saturating_add(cell.rows);
            }
            let merged = accumulators.get_mut(at * measures..(at + 1) * measures).unwrap_or_default();
            // A sum that overflows says so in its accumulator.
            merged.iter_mut().zip(&cell.accumulators).for_each(|(merged, other)| merged.merge(other));
            return;
        }
        keys.extend_from_slice(key);
        entries.push((keys.len(), cell.rows));
        accumulators.extend_from_slice(&cell.accumulators);
        index.insert_unique(hash, entries.len() - 1, |at| HASHER.hash_one(key_at(keys, entries, *at)));
    }

    /// Visits all groups and forgets them: in the order of their keys where `sorted`, otherwise in any.
    pub(super) fn drain(&mut self, sorted: bool, mut visit: impl FnMut(&[u8], &Cell) -> bool) {
        let Groups { keys, entries, accumulators, .. } = std::mem::take(self);
        let measures = accumulators.len().checked_div(entries.len()).unwrap_or_default();
        let mut order: Vec<usize> = (0..entries.len()).collect();
        if sorted {
            order.sort_unstable_by(|a, b| key_at(&keys, &entries, *a).cmp(key_at(&keys, &entries, *b)));
        }
        let mut cell = Cell::default();
        for at in order {
            let Some((_, rows)) = entries.get(at) else { continue };
            cell.rows = *rows;
            cell.accumulators.clear();
            let merged = accumulators.get(at * measures..(at + 1) * measures).unwrap_or_default();
            cell.accumulators.extend_from_slice(merged);
            if !visit(key_at(&keys, &entries, at), &cell) {
                return;
            }
        }
    }
}

fn key_at<'k>(keys: &'k [u8], entries: &[(usize, i64)], at: usize) -> &'k [u8] {
    let end = entries.get(at).map_or(0, |entry| entry.0);
    let start = at.checked_sub(1).and_then(|before| entries.get(before)).map_or(0, |entry| entry.0);
    keys.get(start..end).unwrap_or_default()
}
