//! What a reader sees: all cells as of one commit. Readers never block the commit, and a Snapshot never shows half a
//! transaction. Everything read through one Snapshot agrees.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::aggregate::Cell;
use crate::change::Lsn;
use crate::materialization::{Aggregate, Bucket, Catalog};

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
}

/// The store could not be read, or what it holds is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReadError(pub String);

impl Snapshot {
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
        _aggregate: &Aggregate,
        _level: usize,
        _bucket: Bucket,
        _group: &[u8],
    ) -> Result<Option<Cell>, ReadError> {
        unimplemented!()
    }

    /// Visits the cells of a level whose bucket lies in `from..=to`, in order of bucket, then group. The cell is only
    /// lent: it is reused for the next one.
    pub fn scan(
        &self,
        _aggregate: &Aggregate,
        _level: usize,
        _from: Bucket,
        _to: Bucket,
        _visit: impl FnMut(Bucket, &[u8], &Cell) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        unimplemented!()
    }
}
