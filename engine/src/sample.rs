//! A sample of the rows that are held of a table, and what an aggregate over it would be: before it is registered, without
//! registering it.
//!
//! Rows lie in the order of their primary key, and often that is the order in which they came: the first so many would be
//! the oldest. So the sample is many short runs, from places spread evenly over the keys.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;

use crate::aggregate::Cell;
use crate::change::{RowRef, ValueRef};
use crate::dataflow::block::{Block, Halt, PreAggregate};
use crate::materialization::bucket::BucketCache;
use crate::materialization::{AggregateId, Bucket, Granularity, Plan};
use crate::snapshot::{ReadError, Snapshot};
use crate::source::FollowedTable;
use crate::store::key::{self, Range};
use crate::store::{StoreError, codec, registry};

/// Rows of a run.
const RUN: u64 = 100;

/// What an aggregate would be, as far as a sample shows.
#[derive(Clone, Debug, Default)]
pub struct Preview {
    /// Rows looked at.
    pub rows_sampled: u64,
    /// Rows held of the table, about.
    pub rows: u64,
    /// The sample is all of them, and everything here is exact.
    pub whole: bool,
    /// The levels, finest first.
    pub levels: Vec<LevelSize>,
    /// The cells of the finest level, of the rows looked at.
    pub cells: BTreeMap<(Bucket, Vec<u8>), Cell>,
    /// A row does not fit: the aggregate would halt. Code, what happened, what to do.
    pub misfit: Option<(&'static str, String, &'static str)>,
}

/// How large one level would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelSize {
    /// Its granularity.
    pub granularity: Granularity,
    /// Cells, estimated unless the sample is whole.
    pub cells: u64,
    /// Their keys and values before compression, in bytes.
    pub bytes: u64,
}

impl Snapshot {
    /// Visits at most about `limit` rows of a table, spread over its keys, each with the number of its run. Returns how
    /// many, and whether they were all.
    pub fn sample(
        &self,
        table: &FollowedTable,
        limit: u64,
        mut visit: impl FnMut(usize, &[ValueRef<'_>]),
    ) -> Result<(u64, bool), ReadError> {
        let (mut seen, mut whole, mut number) = (0, true, 0);
        let parts: Vec<_> = table.parts().collect();
        for (at, part) in parts.iter().enumerate() {
            let runs = runs(&key::rows(*part), self.view().edges(&key::rows(*part))?, limit / parts.len() as u64 / RUN);
            let share = (limit - limit.min(seen)) / (parts.len() - at) as u64;
            let mut left = share;
            for (done, run) in runs.iter().enumerate() {
                // What one run leaves, because its rows are fewer, the next ones may take.
                let most = (left / (runs.len() - done) as u64).max(1);
                let (mut taken, mut damaged) = (0, false);
                self.view().scan(run, |_, row| {
                    if taken == most {
                        whole = false;
                        return ControlFlow::Break(());
                    }
                    let mut values: Vec<ValueRef<'_>> = Vec::with_capacity(32);
                    damaged = RowRef(row).decode_into(&mut values).is_err();
                    if damaged {
                        return ControlFlow::Break(());
                    }
                    visit(number, &values);
                    taken += 1;
                    ControlFlow::Continue(())
                })?;
                if damaged {
                    return Err(StoreError::Damaged("row image").into());
                }
                number += 1;
                seen += taken;
                left = left.saturating_sub(taken);
            }
        }
        Ok((seen, whole))
    }

    /// Rows held of a table, as counted with every commit.
    pub fn row_count(&self, table: &FollowedTable) -> Result<u64, ReadError> {
        let mut rows = 0u64;
        for part in table.parts() {
            let count = registry::row_count_as_of(self.view(), part)?;
            rows = rows.saturating_add(u64::try_from(count).unwrap_or_default());
        }
        Ok(rows)
    }

    /// What an aggregate would be, from a sample of at most about `limit` rows.
    pub fn preview(&self, plan: &Plan, table: &FollowedTable, limit: u64) -> Result<Preview, ReadError> {
        let mut sums = PreAggregate::new(plan);
        let mut preview = Preview::default();
        let mut spreads: Vec<Spread> = plan.levels.iter().map(|level| Spread::new(*level, plan)).collect();
        let mut current = 0;
        let mut end_run = |run: usize, sums: &mut PreAggregate| {
            for block in sums.take(AggregateId(0), plan.measures.len(), 1) {
                preview.misfit = preview.misfit.take().or(block.misfit.map(Halt::reason));
                preview.add(&block);
                spreads.iter_mut().for_each(|spread| spread.add(&block, run));
            }
        };
        let (rows_sampled, whole) = self.sample(table, limit, |run, row| {
            if run != current {
                end_run(current, &mut sums);
                current = run;
            }
            sums.add(plan, row, 1);
        })?;
        end_run(current, &mut sums);
        (preview.rows_sampled, preview.whole) = (rows_sampled, whole);
        preview.rows = if whole { rows_sampled } else { self.row_count(table)?.max(rows_sampled) };
        let fraction = rows_sampled as f64 / preview.rows.max(1) as f64;
        let each = preview.bytes_of_a_cell();
        let size = |spread: &Spread| {
            let cells = spread.cells(fraction);
            LevelSize { granularity: spread.granularity, cells, bytes: cells.saturating_mul(each) }
        };
        preview.levels = spreads.iter().map(size).collect();
        Ok(preview)
    }
}

impl Preview {
    fn add(&mut self, block: &Block) {
        for entry in block.iter() {
            let cell = self.cells.entry((entry.bucket, entry.group.to_vec())).or_default();
            // A sum that overflows says so in its accumulator.
            let _ = cell.merge(entry.rows, entry.accumulators);
        }
    }

    /// Key and value of a cell, on average.
    fn bytes_of_a_cell(&self) -> u64 {
        let mut bytes = 0usize;
        let mut value = Vec::new();
        for ((_, group), cell) in &self.cells {
            value.clear();
            codec::put_cell(&mut value, self.rows, cell);
            bytes += key::CELL_PREFIX + group.len() + value.len();
        }
        bytes.checked_div(self.cells.len()).unwrap_or_default() as u64
    }
}

/// In how many runs the cells of a level were found.
struct Spread {
    granularity: Granularity,
    buckets: BucketCache,
    /// The last run of each cell, and how many there were.
    runs: HashMap<(Bucket, Vec<u8>), (usize, u64)>,
}

impl Spread {
    fn new(granularity: Granularity, plan: &Plan) -> Self {
        Spread { granularity, buckets: BucketCache::new(plan.calendar, granularity), runs: HashMap::new() }
    }

    fn add(&mut self, block: &Block, run: usize) {
        for entry in block.iter() {
            let bucket = self.buckets.bucket(entry.bucket.0);
            let (last, runs) = self.runs.entry((bucket, entry.group.to_vec())).or_default();
            if *runs == 0 || *last != run {
                (*last, *runs) = (run, *runs + 1);
            }
        }
    }

    /// How many cells there are, where so much of all rows was looked at.
    fn cells(&self, fraction: f64) -> u64 {
        let once = self.runs.values().filter(|(_, runs)| *runs == 1).count() as u64;
        let found = self.runs.values().map(|(_, runs)| runs).sum();
        distinct(found, self.runs.len() as u64, once, fraction)
    }
}

/// How many cells there are, where `distinct` were found `found` times, each at most once in a run, and `once` of them in one
/// run only: the estimator Duj1 of Haas and Stokes (1998), which Postgres' ANALYZE uses, over runs instead of rows, because
/// neighbouring rows are alike.
fn distinct(found: u64, distinct: u64, once: u64, fraction: f64) -> u64 {
    if fraction >= 1.0 || found == 0 {
        return distinct;
    }
    let [n, d, f] = [found, distinct, once].map(|count| count as f64);
    let most = (n / fraction).round() as u64;
    ((n * d / (n - f + f * fraction)).round() as u64).clamp(distinct, most.max(distinct))
}

/// The ranges in which runs of rows begin: together the whole range, cut at places spread evenly between its first and last
/// key, read as fractions.
pub(crate) fn runs(range: &Range, edges: Option<[Vec<u8>; 2]>, count: u64) -> Vec<Range> {
    let Some([first, last]) = edges else { return Vec::new() };
    let common = first.iter().zip(&last).take_while(|(a, b)| a == b).count();
    let digits = |key: &[u8]| {
        let mut digits = [0u8; 8];
        digits.iter_mut().zip(key.iter().skip(common)).for_each(|(to, from)| *to = *from);
        u64::from_be_bytes(digits)
    };
    let (low, high) = (digits(&first), digits(&last));
    let count = count.max(1);
    let between = |at: u64| {
        let step = u128::from(high.saturating_sub(low)) * u128::from(at) / u128::from(count);
        low.saturating_add(u64::try_from(step).unwrap_or(u64::MAX))
    };
    // Between keys that are alike there is no place to cut.
    let places: BTreeSet<u64> = (1..count).map(between).filter(|place| *place > low).collect();
    let mut ranges = Vec::new();
    let mut from = range.from.clone();
    for place in places {
        let mut to = first.get(..common).unwrap_or_default().to_vec();
        to.extend_from_slice(&place.to_be_bytes());
        if to > from && to < range.to {
            ranges.push(Range { from: std::mem::replace(&mut from, to.clone()), to });
        }
    }
    ranges.push(Range { from, to: range.to.clone() });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_whole_range_cut_evenly() {
        let range = Range { from: vec![7], to: vec![8] };
        let key = |id: u32| [&[7u8, 0x80][..], &id.to_be_bytes()].concat();
        let cut = runs(&range, Some([key(1_000), key(2_000)]), 4);
        assert_eq!(cut.len(), 4);
        assert_eq!(cut.first().map(|run| &run.from), Some(&range.from));
        assert_eq!(cut.last().map(|run| &run.to), Some(&range.to));
        assert!(cut.windows(2).all(|pair| matches!(pair, [a, b] if a.to == b.from && a.from < a.to)));
        for (run, id) in cut.iter().zip([1_000, 1_250, 1_500, 1_750]) {
            assert!(run.from <= key(id + 1) && key(id + 240) < run.to, "{run:?}");
        }
        assert_eq!(runs(&range, Some([key(5), key(5)]), 100).len(), 1);
        assert!(runs(&range, None, 4).is_empty());
    }

    #[test]
    fn cells_that_were_not_seen() {
        assert_eq!(distinct(100, 10, 0, 1.0), 10, "all rows are known");
        assert_eq!(distinct(1_000, 40, 0, 0.001), 40, "every cell came again");
        assert_eq!(distinct(1_000, 1_000, 1_000, 0.001), 1_000_000, "no cell came again");
        assert_eq!(distinct(0, 0, 0, 0.5), 0);
        let some = distinct(1_000, 500, 250, 0.001);
        assert!((600..800).contains(&some), "{some}");
    }
}
