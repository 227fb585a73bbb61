//! Merges cells into the rows of an answer.
//!
//! Cells come in order of time, so only one bucket of the answer is open at once; in the stored order the reader stops as
//! soon as the page is full. Accumulators are merged, never finished numbers.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use engine::aggregate::accumulator::Accumulator;
use engine::aggregate::sum::Special;
use engine::aggregate::{Cell, Function, MeasureValue};
use engine::materialization::bucket::BucketCache;
use engine::materialization::{Aggregate, Bucket, Plan, group_key};
use engine::snapshot::ReadError;

use super::cells::Cells;
use super::projection::Projection;
use crate::query::aggregate_query::bucket_end;
use crate::query::{Access, AggregateQuery, Cursor, Fill, Order, OrderBy, ReadPlan};

/// Most cells read for one answer.
pub const MAX_CELLS: u64 = 5_000_000;

/// One row of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Start of its bucket, or one of the special ones.
    pub bucket: Bucket,
    /// Values of `group_by`, encoded as in `group_key`.
    pub key: Vec<u8>,
    /// Measures, in the order asked for.
    pub values: Vec<MeasureValue>,
}

/// The rows of an answer, or of one page of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// In the order asked for.
    pub rows: Vec<Row>,
    /// Where the next page begins, in the stored order.
    pub next: Option<Cursor>,
    /// There are more rows than these.
    pub truncated: bool,
    /// Cells looked at.
    pub cells_read: u64,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadFailure {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] ReadError),
    /// It would take more than [`MAX_CELLS`].
    #[error("the answer needs more than {MAX_CELLS} cells")]
    TooWide,
    /// Merged, a sum leaves 128 bits.
    #[error("the sum {0:?} does not fit 128 bits over this range")]
    Overflow(String),
}

/// Reads and merges.
pub fn read(
    cells: &impl Cells,
    aggregate: &Aggregate,
    query: &AggregateQuery,
    reads: &ReadPlan,
) -> Result<Answer, ReadFailure> {
    let mut merging = Merging::new(&aggregate.plan, query, reads);
    match &reads.access {
        Access::Points { group, points } => {
            for (level, bucket) in points {
                let cell = cells.cell(aggregate, *level, *bucket, group)?;
                merging.cells_read += 1;
                if cell.is_some_and(|cell| merging.visit(*bucket, group, &cell).is_break()) {
                    break;
                }
            }
        }
        Access::Scans(scans) => {
            for scan in scans {
                let mut stopped = false;
                cells.scan(aggregate, scan.level, scan.from, scan.to, |bucket, key, cell| {
                    merging.cells_read += 1;
                    let flow = merging.visit(bucket, key, cell);
                    stopped = flow.is_break();
                    flow
                })?;
                if stopped {
                    break;
                }
            }
        }
    }
    merging.finish()
}

/// An answer being put together.
struct Merging<'q> {
    plan: &'q Plan,
    query: &'q AggregateQuery,
    projection: Projection,
    buckets: BucketCache,
    /// Cells are rows already: nothing to merge.
    direct: bool,
    /// The bucket being merged, and its groups so far.
    open: Option<Bucket>,
    groups: BTreeMap<Vec<u8>, Cell>,
    key: Vec<u8>,
    rows: Vec<Row>,
    /// Where the next filled row would be.
    expected: Option<i64>,
    cells_read: u64,
    failure: Option<ReadFailure>,
}

impl<'q> Merging<'q> {
    fn new(plan: &'q Plan, query: &'q AggregateQuery, reads: &ReadPlan) -> Self {
        let projection = Projection::of(query);
        let same_level = reads.levels.iter().all(|level| *level == query.granularity);
        let begins = |instant| plan.calendar.interval(query.granularity, instant).start;
        let expected = match &query.cursor {
            _ if query.fill == Fill::Absent => None,
            Some(cursor) => bucket_end(plan, query.granularity, cursor.bucket).filter(|end| *end != i64::MIN),
            None => query.from.map(begins),
        };
        Merging {
            plan,
            query,
            direct: same_level && projection.keeps_order(),
            projection,
            buckets: BucketCache::new(plan.calendar, query.granularity),
            open: None,
            groups: BTreeMap::new(),
            key: Vec::new(),
            rows: Vec::new(),
            expected,
            cells_read: 0,
            failure: None,
        }
    }

    fn visit(&mut self, bucket: Bucket, key: &[u8], cell: &Cell) -> ControlFlow<()> {
        if self.cells_read > MAX_CELLS {
            return self.fail(ReadFailure::TooWide);
        }
        let mut answered = std::mem::take(&mut self.key);
        let flow = match self.projection.apply(key, &mut answered) {
            Some(true) => {
                let bucket = self.buckets.bucket(bucket.0);
                self.add(bucket, &answered, cell)
            }
            Some(false) => ControlFlow::Continue(()),
            None => self.fail(ReadFailure::Store(ReadError("a stored group key is damaged".to_owned()))),
        };
        self.key = answered;
        flow
    }

    fn add(&mut self, bucket: Bucket, key: &[u8], cell: &Cell) -> ControlFlow<()> {
        let done = |cursor: &Cursor| (bucket, key) <= (cursor.bucket, cursor.key.as_slice());
        if self.query.cursor.as_ref().is_some_and(done) {
            return ControlFlow::Continue(());
        }
        if self.direct {
            return self.push(bucket, key.to_vec(), cell);
        }
        if self.open != Some(bucket) {
            self.close_bucket()?;
            self.open = Some(bucket);
        }
        match self.groups.get_mut(key) {
            Some(merged) => {
                // A sum that overflows says so in its accumulator; a count of rows that does is not survivable either way.
                let _ = merged.merge(cell.rows, &cell.accumulators);
            }
            None => {
                self.groups.insert(key.to_vec(), cell.clone());
            }
        }
        ControlFlow::Continue(())
    }

    fn close_bucket(&mut self) -> ControlFlow<()> {
        let Some(bucket) = self.open.take() else { return ControlFlow::Continue(()) };
        for (key, cell) in std::mem::take(&mut self.groups) {
            self.push(bucket, key, &cell)?;
        }
        ControlFlow::Continue(())
    }

    /// Appends a row, after those that are to be filled in before it.
    fn push(&mut self, bucket: Bucket, key: Vec<u8>, cell: &Cell) -> ControlFlow<()> {
        if !bucket.is_special() {
            self.fill_until(bucket.0)?;
            self.expected = bucket_end(self.plan, self.query.granularity, bucket);
        }
        let mut values = Vec::with_capacity(self.query.measures.len());
        for position in &self.query.measures {
            let (Some(measure), Some(accumulator)) =
                (self.plan.measures.get(*position), cell.accumulators.get(*position))
            else {
                return self.fail(ReadFailure::Store(ReadError("a stored cell lacks a measure".to_owned())));
            };
            if *accumulator == Accumulator::Overflowed {
                return self.fail(ReadFailure::Overflow(measure.name.clone()));
            }
            values.push(measure.function.finish(accumulator));
        }
        self.rows.push(Row { bucket, key, values });
        self.check_full()
    }

    /// Fills the buckets from the one expected up to `instant`.
    fn fill_until(&mut self, instant: i64) -> ControlFlow<()> {
        if self.query.fill == Fill::Absent {
            return ControlFlow::Continue(());
        }
        while let Some(start) = self.expected.filter(|start| *start < instant) {
            let values = self.query.measures.iter().filter_map(|at| self.plan.measures.get(*at));
            let values = values.map(|measure| nothing(self.query.fill, measure.function)).collect();
            self.rows.push(Row { bucket: Bucket(start), key: Vec::new(), values });
            self.expected = Some(self.plan.calendar.interval(self.query.granularity, start).end);
            self.check_full()?;
        }
        ControlFlow::Continue(())
    }

    /// In the stored order one row more than asked for is enough: it shows that there is a next page.
    fn check_full(&self) -> ControlFlow<()> {
        let full = self.query.order == Order::STORED && self.rows.len() > self.query.limit;
        if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn fail(&mut self, failure: ReadFailure) -> ControlFlow<()> {
        self.failure.get_or_insert(failure);
        ControlFlow::Break(())
    }

    fn finish(mut self) -> Result<Answer, ReadFailure> {
        if self.failure.is_none() && self.close_bucket().is_continue() {
            let _ = self.query.to.map(|to| self.fill_until(to));
        }
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let (order, mut rows) = (self.query.order, self.rows);
        if order != Order::STORED {
            rows.sort_by(|a, b| compare(a, b, order));
        }
        let truncated = rows.len() > self.query.limit;
        rows.truncate(self.query.limit);
        let last = rows.last().filter(|_| truncated && order == Order::STORED);
        let next = last.map(|row| Cursor { bucket: row.bucket, key: row.key.clone() });
        Ok(Answer { rows, next, truncated, cells_read: self.cells_read })
    }
}

/// What a measure is over no rows.
fn nothing(fill: Fill, function: Function) -> MeasureValue {
    match (fill, function) {
        (Fill::Zero, Function::SumNumeric { scale }) => MeasureValue::Decimal { mantissa: 0, scale },
        (Fill::Zero, Function::SumFloat) => MeasureValue::Float(0.0),
        (Fill::Zero, _) => MeasureValue::Integer(0),
        _ => MeasureValue::Null,
    }
}

fn compare(a: &Row, b: &Row, order: Order) -> Ordering {
    let direct = |ordering: Ordering| if order.descending { ordering.reverse() } else { ordering };
    let first = match order.by {
        OrderBy::Time => direct(a.bucket.cmp(&b.bucket)),
        OrderBy::Dimension(position) => direct(part(&a.key, position).cmp(&part(&b.key, position))),
        OrderBy::Measure(position) => match (a.values.get(position), b.values.get(position)) {
            // NULL is last, whichever way: it is no candidate for the first place of anything.
            (Some(MeasureValue::Null) | None, Some(MeasureValue::Null) | None) => Ordering::Equal,
            (Some(MeasureValue::Null) | None, _) => Ordering::Greater,
            (_, Some(MeasureValue::Null) | None) => Ordering::Less,
            (Some(a), Some(b)) => direct(compare_values(*a, *b)),
        },
    };
    first.then_with(|| a.bucket.cmp(&b.bucket)).then_with(|| a.key.cmp(&b.key))
}

fn part(key: &[u8], position: usize) -> Option<&[u8]> {
    let edges = group_key::boundaries(key)?;
    key.get(*edges.get(position)?..*edges.get(position + 1)?)
}

/// Of two finished values of one measure: `-Infinity`, numbers, `Infinity`, `NaN`, as in Postgres.
fn compare_values(a: MeasureValue, b: MeasureValue) -> Ordering {
    match (a, b) {
        (MeasureValue::Integer(a), MeasureValue::Integer(b)) => a.cmp(&b),
        (MeasureValue::Decimal { mantissa: a, .. }, MeasureValue::Decimal { mantissa: b, .. }) => a.cmp(&b),
        (MeasureValue::Float(a), MeasureValue::Float(b)) => a.partial_cmp(&b).unwrap_or(a.is_nan().cmp(&b.is_nan())),
        _ => rank(a).cmp(&rank(b)),
    }
}

fn rank(value: MeasureValue) -> u8 {
    match value {
        MeasureValue::Special(Special::Negative) => 0,
        MeasureValue::Special(Special::Positive) => 2,
        MeasureValue::Special(Special::NaN) => 3,
        _ => 1,
    }
}
