//! What the cells of a level should be, added up anew from the row images of the same Snapshot. Independent of everything
//! that the dataflow did with the changes: a cell that differs was added up, written or kept wrongly.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::aggregate::Cell;
use crate::change::{RowRef, ValueRef};
use crate::dataflow::block::PreAggregate;
use crate::materialization::bucket::BucketCache;
use crate::materialization::{AggregateId, Bucket, Plan};
use crate::snapshot::{ReadError, Snapshot};
use crate::source::FollowedTable;
use crate::store::{StoreError, key};

/// Entries added up before they go where they belong.
const CHUNK_ENTRIES: usize = 20_000;

/// Cells by bucket and group.
pub type Recounted = BTreeMap<(Bucket, Vec<u8>), Cell>;

/// Why the rows were not added up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecountError {
    /// They cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// There are more cells than may be held in memory.
    #[error("more than {0} cells")]
    TooMany(usize),
    /// A row is none that the aggregate could have taken.
    #[error("{0}")]
    Misfit(String),
}

impl Snapshot {
    /// Adds up all rows of a table for the cells of a level whose bucket lies in `from..=to`; at most `limit` cells.
    pub fn recount(
        &self,
        plan: &Plan,
        table: &FollowedTable,
        level: usize,
        (from, to): (Bucket, Bucket),
        limit: usize,
    ) -> Result<Recounted, RecountError> {
        let Some(granularity) = plan.levels.get(level) else { return Ok(Recounted::new()) };
        let mut counting = Counting {
            plan,
            sums: PreAggregate::new(plan),
            buckets: BucketCache::new(plan.calendar, *granularity),
            range: from..=to,
            limit,
            cells: Recounted::new(),
        };
        for part in table.parts() {
            let mut failed = None;
            self.view()
                .scan(&key::rows(part), |_, row| match counting.add(row) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                })
                .map_err(ReadError::from)?;
            if let Some(error) = failed {
                return Err(error);
            }
        }
        counting.settle()?;
        counting.cells.retain(|_, cell| cell.rows != 0);
        Ok(counting.cells)
    }
}

struct Counting<'p> {
    plan: &'p Plan,
    sums: PreAggregate,
    buckets: BucketCache,
    range: std::ops::RangeInclusive<Bucket>,
    limit: usize,
    cells: Recounted,
}

impl Counting<'_> {
    fn add(&mut self, row: &[u8]) -> Result<(), RecountError> {
        let mut values: Vec<ValueRef<'_>> = Vec::with_capacity(32);
        if RowRef(row).decode_into(&mut values).is_err() {
            return Err(ReadError::from(StoreError::Damaged("row image")).into());
        }
        self.sums.add(self.plan, &values, 1);
        if self.sums.len() >= CHUNK_ENTRIES { self.settle() } else { Ok(()) }
    }

    /// Puts what was added up into the cells.
    fn settle(&mut self) -> Result<(), RecountError> {
        for block in self.sums.take(AggregateId(0), self.plan.measures.len(), 1) {
            if let Some(halt) = block.misfit {
                return Err(RecountError::Misfit(halt.reason().1));
            }
            for entry in block.iter() {
                let bucket = self.buckets.bucket(entry.bucket.0);
                if self.range.contains(&bucket) {
                    let cell = self.cells.entry((bucket, entry.group.to_vec())).or_default();
                    // A sum that overflows says so in its accumulator.
                    let _ = cell.merge(entry.rows, entry.accumulators);
                }
            }
            if self.cells.len() > self.limit {
                return Err(RecountError::TooMany(self.limit));
            }
        }
        Ok(())
    }
}
