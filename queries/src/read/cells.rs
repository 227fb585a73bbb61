//! Where cells come from: a Snapshot, or a map of few.

use std::collections::BTreeMap;
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

/// Cells in memory, by level, bucket and group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CellMap(pub BTreeMap<(usize, Bucket, Vec<u8>), Cell>);

impl Cells for CellMap {
    fn cell(&self, _: &Aggregate, level: usize, bucket: Bucket, group: &[u8]) -> Result<Option<Cell>, ReadError> {
        Ok(self.0.get(&(level, bucket, group.to_vec())).cloned())
    }

    fn scan(
        &self,
        _: &Aggregate,
        level: usize,
        from: Bucket,
        to: Bucket,
        mut visit: impl FnMut(Bucket, &[u8], &Cell) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let cells = self.0.range((level, from, Vec::new())..);
        for ((_, bucket, group), cell) in cells.take_while(|((l, bucket, _), _)| *l == level && *bucket <= to) {
            if visit(*bucket, group, cell).is_break() {
                break;
            }
        }
        Ok(())
    }
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
