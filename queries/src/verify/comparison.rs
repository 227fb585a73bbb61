//! The cells of a level beside what they should be, both in the order of the key: a merge that holds one of each.

use std::iter::Peekable;
use std::ops::ControlFlow;

use engine::Snapshot;
use engine::aggregate::{Cell, MeasureValue};
use engine::materialization::{Aggregate, Bucket, Granularity};
use engine::snapshot::ReadError;

use super::bucket_range::BucketRange;
use super::expected::{Expected, NotACell, finished};

/// Differences that are told; more are counted.
pub const MAX_TOLD: usize = 100;

/// What was compared of one level.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// The level.
    pub granularity: Granularity,
    /// Keys that either side has.
    pub cells: u64,
    /// Keys that are not the same on both.
    pub differing: u64,
    /// The first of them.
    pub differences: Vec<Difference>,
}

/// A key that is not the same on both sides.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Its bucket.
    pub bucket: Bucket,
    /// Its group.
    pub group: Vec<u8>,
    /// What is stored; `None` where nothing is.
    pub stored: Option<Values>,
    /// What should be; `None` where nothing should.
    pub expected: Option<Values>,
}

/// Rows and measures of one side.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// Rows.
    pub rows: i64,
    /// Measures, in the plan's order.
    pub measures: Vec<MeasureValue>,
}

/// Why nothing was compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ComparisonError {
    /// Our cells cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A row is no cell.
    #[error(transparent)]
    Row(#[from] NotACell),
    /// The other side is not in the order of our keys, so nothing can be told from it.
    #[error("the rows to compare with do not come in the order of their keys")]
    Unordered,
}

/// Compares the cells of a level with what is expected of them, in ascending order.
pub fn compare(
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    level: usize,
    range: BucketRange,
    expected: impl Iterator<Item = Result<Expected, NotACell>>,
) -> Result<Tally, ComparisonError> {
    let granularity = aggregate.plan.levels.get(level).copied().unwrap_or(Granularity::All);
    let tally = Tally { granularity, cells: 0, differing: 0, differences: Vec::new() };
    let mut merge = Merge { aggregate, expected: Ascending { rows: expected, last: None }.peekable(), tally };
    let mut failed = None;
    snapshot.scan(aggregate, level, range.from, range.to, |bucket, group, cell| {
        match merge.stored(bucket, group, cell) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    match failed {
        Some(error) => Err(error),
        None => merge.rest(),
    }
}

/// What is expected, checked to be in order.
struct Ascending<I> {
    rows: I,
    last: Option<(Bucket, Vec<u8>)>,
}

impl<I: Iterator<Item = Result<Expected, NotACell>>> Iterator for Ascending<I> {
    type Item = Result<Expected, ComparisonError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = match self.rows.next()? {
            Ok(row) => row,
            Err(error) => return Some(Err(error.into())),
        };
        let key = (row.bucket, row.group.clone());
        if self.last.as_ref().is_some_and(|last| *last >= key) {
            return Some(Err(ComparisonError::Unordered));
        }
        self.last = Some(key);
        Some(Ok(row))
    }
}

struct Merge<'a, I: Iterator> {
    aggregate: &'a Aggregate,
    expected: Peekable<I>,
    tally: Tally,
}

impl<I: Iterator<Item = Result<Expected, ComparisonError>>> Merge<'_, I> {
    /// The next cell of ours.
    fn stored(&mut self, bucket: Bucket, group: &[u8], cell: &Cell) -> Result<(), ComparisonError> {
        let before = |row: &Expected| (row.bucket, row.group.as_slice()) < (bucket, group);
        while let Some(row) = self.expected.next_if(|row| row.as_ref().map_or(true, before)) {
            let row = row?;
            self.differ(row.bucket, row.group.clone(), None, Some(&row));
        }
        let same = |row: &Expected| row.bucket == bucket && row.group == group;
        let row = self.expected.next_if(|row| row.as_ref().is_ok_and(same)).transpose()?;
        match row {
            Some(row) if row.is(cell, &self.aggregate.plan) => self.tally.cells += 1,
            row => self.differ(bucket, group.to_vec(), Some(cell), row.as_ref()),
        }
        Ok(())
    }

    /// What is expected beyond our last cell.
    fn rest(mut self) -> Result<Tally, ComparisonError> {
        while let Some(row) = self.expected.next() {
            let row = row?;
            self.differ(row.bucket, row.group.clone(), None, Some(&row));
        }
        Ok(self.tally)
    }

    fn differ(&mut self, bucket: Bucket, group: Vec<u8>, stored: Option<&Cell>, expected: Option<&Expected>) {
        self.tally.cells += 1;
        self.tally.differing += 1;
        if self.tally.differences.len() < MAX_TOLD {
            let plan = &self.aggregate.plan;
            self.tally.differences.push(Difference {
                bucket,
                group,
                stored: stored.map(|cell| Values { rows: cell.rows, measures: finished(plan, cell).collect() }),
                expected: expected.map(|row| Values {
                    rows: row.rows,
                    measures: row.measures.iter().map(|measure| measure.value).collect(),
                }),
            });
        }
    }
}
