//! What a reader sees: all cells as of one commit. Readers never block the commit, and a Snapshot never shows half a
//! transaction. Everything read through one Snapshot agrees.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::aggregate::Cell;
use crate::change::Lsn;
use crate::materialization::{Aggregate, AggregateId, Bucket, Catalog};
use crate::scrubber::Suspects;
use crate::store::{StoreError, View, codec, key};

/// The position and time up to which something is true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AsOf {
    /// Everything that committed upstream up to here is included, nothing after.
    pub lsn: Lsn,
    /// When that was, microseconds since 2000-01-01 UTC.
    pub commit_time_us: i64,
    /// Number of the commit in this store; grows by at least one with every visible change.
    pub sequence: u64,
}

/// All cells as of one commit.
pub struct Snapshot {
    as_of: AsOf,
    catalog: Arc<Catalog>,
    view: View,
    suspects: Arc<Suspects>,
}

/// The store could not be read, or what it holds is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReadError(pub String);

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        ReadError(error.to_string())
    }
}

/// The key of a cell in the store; for people who look at plans.
#[must_use]
pub fn cell_key(aggregate: AggregateId, level: usize, bucket: Bucket, group: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(key::CELL_PREFIX + group.len());
    key::push_cell_prefix(&mut stored, aggregate, level as u8, bucket);
    stored.extend_from_slice(group);
    stored
}

/// The first key of a scan and the first one after it; for people who look at plans.
#[must_use]
pub fn scan_keys(aggregate: AggregateId, level: usize, from: Bucket, to: Bucket) -> (Vec<u8>, Vec<u8>) {
    let range = key::cells(aggregate, level as u8, from, to);
    (range.from, range.to)
}

impl Snapshot {
    pub(crate) fn new(as_of: AsOf, catalog: Arc<Catalog>, view: View, suspects: Arc<Suspects>) -> Self {
        Snapshot { as_of, catalog, view, suspects }
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// What it is true of.
    #[must_use]
    pub fn as_of(&self) -> AsOf {
        self.as_of
    }

    /// The aggregates as of it.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// One cell: of a level (position in `plan.levels`), bucket and group (see `materialization::group_key`).
    pub fn cell(
        &self,
        aggregate: &Aggregate,
        level: usize,
        bucket: Bucket,
        group: &[u8],
    ) -> Result<Option<Cell>, ReadError> {
        let stored = cell_key(aggregate.id, level, bucket, group);
        let mut cell = Cell::default();
        let read = self.view.get_with(&stored, |value| codec::take_cell(value, &mut cell).is_some());
        match read.map_err(|error| self.failed(aggregate, error))? {
            None => Ok(None),
            Some(true) => Ok(Some(cell)),
            Some(false) => Err(self.failed(aggregate, StoreError::Damaged("cell"))),
        }
    }

    /// What cannot be read is scrubbed next.
    fn failed(&self, aggregate: &Aggregate, error: StoreError) -> ReadError {
        self.suspects.note(aggregate.id);
        error.into()
    }

    /// Visits the cells of a level whose bucket lies in `from..=to`, in order of bucket, then group. The cell is only
    /// lent: it is reused for the next one.
    pub fn scan(
        &self,
        aggregate: &Aggregate,
        level: usize,
        from: Bucket,
        to: Bucket,
        mut visit: impl FnMut(Bucket, &[u8], &Cell) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        if from > to {
            return Ok(());
        }
        let mut cell = Cell::default();
        let mut damaged = false;
        let scanned = self.view.scan(&key::cells(aggregate.id, level as u8, from, to), |stored, value| {
            match key::split_cell(stored).zip(codec::take_cell(value, &mut cell)) {
                Some(((_, _, bucket, group), _)) => visit(bucket, group, &cell),
                None => {
                    damaged = true;
                    ControlFlow::Break(())
                }
            }
        });
        scanned.map_err(|error| self.failed(aggregate, error))?;
        if damaged { Err(self.failed(aggregate, StoreError::Damaged("cell"))) } else { Ok(()) }
    }

    /// Visits the Partitions of a level whose bucket lies in `from..=to`, in order: bucket, number of cells, and the number of
    /// the commit that last changed one.
    pub fn partitions(
        &self,
        aggregate: &Aggregate,
        level: usize,
        from: Bucket,
        to: Bucket,
        mut visit: impl FnMut(Bucket, u64, u64) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        if from > to {
            return Ok(());
        }
        let mut damaged = false;
        let scanned =
            self.view.scan(&key::controls(aggregate.id, level as u8, from, to), |stored, value| match key::split_cell(
                stored,
            )
            .zip(codec::take_control_head(value))
            {
                Some(((_, _, bucket, _), (cells, sequence))) => {
                    visit(bucket, u64::try_from(cells).unwrap_or_default(), sequence)
                }
                None => {
                    damaged = true;
                    ControlFlow::Break(())
                }
            });
        scanned.map_err(|error| self.failed(aggregate, error))?;
        if damaged { Err(self.failed(aggregate, StoreError::Damaged("control total"))) } else { Ok(()) }
    }

    /// Adds up all cells again and compares with the control totals kept beside them; returns the number of cells.
    pub fn scrub(&self) -> Result<u64, ReadError> {
        Ok(crate::scrub::scrub(self)?)
    }
}
