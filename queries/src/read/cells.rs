//! Where cells come from: a Snapshot, or in tests a map.

use std::ops::ControlFlow;

use engine::Snapshot;
use engine::aggregate::Cell;
use engine::materialization::{Aggregate, Bucket};
use engine::snapshot::ReadError;

/// Cells of aggregates, as [`Snapshot`] has them; see there for the meaning of each.
pub trait Cells {
    /// One cell.
    fn cell(
        &self,
        aggregate: &Aggregate,
        level: usize,
        bucket: Bucket,
        group: &[u8],
    ) -> Result<Option<Cell>, ReadError>;

    /// The cells of a run of buckets, in order of bucket, then group.
    fn scan(
        &self,
        aggregate: &Aggregate,
        level: usize,
        from: Bucket,
        to: Bucket,
        visit: impl FnMut(Bucket, &[u8], &Cell) -> ControlFlow<()>,
    ) -> Result<(), ReadError>;
}

impl Cells for Snapshot {
    fn cell(
        &self,
        aggregate: &Aggregate,
        level: usize,
        bucket: Bucket,
        group: &[u8],
    ) -> Result<Option<Cell>, ReadError> {
        Snapshot::cell(self, aggregate, level, bucket, group)
    }

    fn scan(
        &self,
        aggregate: &Aggregate,
        level: usize,
        from: Bucket,
        to: Bucket,
        visit: impl FnMut(Bucket, &[u8], &Cell) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        Snapshot::scan(self, aggregate, level, from, to, visit)
    }
}
