//! Merges cells into the rows of an answer.
//!
//! Cells come in order of time, so only one bucket of the answer is open at once; in the stored order the reader stops as
//! soon as the page is full. Accumulators are merged, never finished numbers.

use std::ops::ControlFlow;
use std::rc::Rc;

use engine::aggregate::{Cell, Function, MeasureValue};
use engine::materialization::bucket::BucketCache;
use engine::materialization::{Aggregate, Bucket, Granularity, Plan, group_key};
use engine::snapshot::ReadError;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::allowance::{Allowance, MAX_BYTES, MAX_CELLS};
use super::behind::MAX_LOOKED_AT;
use super::cells::Cells;
use super::groups::Groups;
use super::projection::Projection;
use super::ranking::Ranking;
use super::size::RowSize;
use crate::query::aggregate_query::bucket_end;
use crate::query::instant::format_instant;
use crate::query::output::NoValue;
use crate::query::process::this_process;
use crate::query::{Access, AggregateQuery, Cursor, Fill, Output, OutputSource, ReadPlan};

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

/// A row that is looked at: most have no place in an answer that is ordered.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowRef<'r> {
    pub(super) bucket: Bucket,
    pub(super) key: &'r [u8],
    pub(super) values: &'r [MeasureValue],
}

impl RowRef<'_> {
    pub(super) fn to_row(self) -> Row {
        Row { bucket: self.bucket, key: self.key.to_vec(), values: self.values.to_vec() }
    }
}

impl Row {
    pub(super) fn as_ref(&self) -> RowRef<'_> {
        RowRef { bucket: self.bucket, key: &self.key, values: &self.values }
    }
}

/// The rows of an answer, or of one page of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// In the order asked for.
    pub rows: Vec<Row>,
    /// Everything that is in no row, where it was asked for and there is any.
    pub others: Option<Vec<MeasureValue>>,
    /// Everything, where shares of it were asked for.
    pub whole: Option<Vec<MeasureValue>>,
    /// Where the next page begins.
    pub next: Option<Cursor>,
    /// There are more rows than these.
    pub truncated: bool,
    /// Cells looked at; of a pinned asker's question, those that are asked for.
    pub cells_read: u64,
}

/// For each row of an answer the measures of the same group so much earlier; `None` where it was not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Before(pub Vec<Option<Vec<MeasureValue>>>);

impl Before {
    /// Finds each row's counterpart in the answer to the earlier range; no two have the same. `earlier` says in which bucket that is.
    #[must_use]
    pub fn join(answer: &Answer, then: Answer, earlier: impl Fn(Bucket) -> Option<Bucket>) -> Before {
        let mut known: HashMap<(Bucket, Vec<u8>), Vec<MeasureValue>, FixedState> = HashMap::default();
        known.extend(then.rows.into_iter().map(|row| ((row.bucket, row.key), row.values)));
        let counterpart = |row: &Row| known.remove(&(earlier(row.bucket)?, row.key.clone()));
        Before(answer.rows.iter().map(counterpart).collect())
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadFailure {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] ReadError),
    /// It would take more than [`MAX_CELLS`].
    #[error("the request needs more than {MAX_CELLS} cells")]
    TooWide,
    /// It would take more than [`MAX_BYTES`].
    #[error("the request would be answered with more than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    /// The time of the request is over, or nobody waits for its answer.
    #[error("the request took longer than its time limit")]
    OutOfTime,
    /// Finding the newest rows would take looking at too many.
    #[error("more than {MAX_LOOKED_AT} rows lie in the range")]
    TooManyRows,
    /// Merged, a sum leaves 128 bits.
    #[error("the measure {0:?} does not fit 128 bits over this range")]
    Overflow(String),
    /// A stored bucket lies in two of the answer's.
    #[error("the stored {level} at {at} lies in two buckets of {zone}, whose clock was no whole {level}s away then")]
    Straddles {
        /// The stored granularity.
        level: Granularity,
        /// When the bucket begins.
        at: String,
        /// The zone asked for.
        zone: String,
    },
}

/// Reads and merges. `sequence` is the commit that the cells are of.
pub fn read(
    cells: &impl Cells,
    aggregate: &Aggregate,
    query: &AggregateQuery,
    reads: &ReadPlan,
    sequence: u64,
) -> Result<Answer, ReadFailure> {
    let mut merging = Merging::new(&aggregate.plan, query, reads);
    merging.allowance.check()?;
    match &reads.access {
        Access::Points { group, points } => {
            for (level, bucket) in points {
                merging.begin_level(*level);
                let flow = match cells.cell(aggregate, *level, *bucket, group)? {
                    Some(cell) => merging.visit(*bucket, group, &cell),
                    None => merging.count(),
                };
                if flow.is_break() {
                    break;
                }
            }
        }
        Access::Scans(scans) => {
            for scan in scans {
                merging.begin_level(scan.level);
                let mut stopped = false;
                cells.scan(aggregate, scan.level, scan.from, scan.to, |bucket, key, cell| {
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
    merging.finish(sequence)
}

/// Whether stored buckets lie within those of the answer, looked at once for each.
struct Straddling {
    level: Granularity,
    stored: BucketCache,
    last: Bucket,
}

/// An answer being put together.
struct Merging<'q> {
    plan: &'q Plan,
    query: &'q AggregateQuery,
    projection: Projection,
    buckets: BucketCache,
    /// Where stored buckets could lie in two of the answer's.
    straddling: Option<Straddling>,
    /// Cells are rows already: nothing to merge.
    direct: bool,
    /// The bucket being merged, and its groups so far.
    open: Option<Bucket>,
    groups: Groups,
    key: Vec<u8>,
    /// Measures of the row being looked at.
    values: Vec<MeasureValue>,
    /// In the stored order.
    rows: Vec<Row>,
    /// In any other.
    ranking: Ranking<'q>,
    /// Where the next filled row would be.
    expected: Option<i64>,
    cells_read: u64,
    allowance: Rc<Allowance>,
    size: RowSize,
    failure: Option<ReadFailure>,
}

impl<'q> Merging<'q> {
    fn new(plan: &'q Plan, query: &'q AggregateQuery, reads: &ReadPlan) -> Self {
        let projection = Projection::of(query);
        let same_level =
            plan.calendar == query.calendar && reads.levels.iter().all(|level| *level == query.granularity);
        let begins = |instant| query.calendar.interval(query.granularity, instant).start;
        let first = query.from.map(begins);
        let expected = match &query.cursor {
            _ if query.fill == Fill::Absent => None,
            // A cursor is anybody's to write, also one from before the range.
            Some(cursor) => bucket_end(&query.calendar, query.granularity, cursor.bucket)
                .map(|end| first.map_or(end, |first| first.max(end)))
                .filter(|begin| *begin != i64::MIN),
            None => first,
        };
        let (allowance, size) = (Allowance::current(), RowSize::of(plan, query));
        Merging {
            plan,
            query,
            direct: same_level && projection.keeps_order(),
            projection,
            buckets: BucketCache::new(query.calendar, query.granularity),
            straddling: None,
            open: None,
            groups: Groups::default(),
            key: Vec::new(),
            values: Vec::new(),
            rows: Vec::new(),
            ranking: Ranking::new(plan, query, Rc::clone(&allowance), size),
            expected,
            cells_read: 0,
            allowance,
            size,
            failure: None,
        }
    }

    /// The next cells are of this level.
    fn begin_level(&mut self, level: usize) {
        let Some(level) = self.plan.levels.get(level).copied() else { return };
        // In the own calendar the planner has proved it; `all` holds everything.
        let certain = self.plan.calendar == self.query.calendar
            && self.plan.calendar.nests(level, self.query.granularity).is_ok();
        if certain || level == Granularity::All || self.query.granularity == Granularity::All {
            self.straddling = None;
        } else if self.straddling.as_ref().is_none_or(|straddling| straddling.level != level) {
            let stored = BucketCache::new(self.plan.calendar, level);
            self.straddling = Some(Straddling { level, stored, last: Bucket::NULL });
        }
    }

    fn check_straddling(&mut self, bucket: Bucket) -> ControlFlow<()> {
        let Some(straddling) = &mut self.straddling else { return ControlFlow::Continue(()) };
        if straddling.last == bucket || bucket.is_special() {
            return ControlFlow::Continue(());
        }
        straddling.last = bucket;
        let (inner, outer) = (straddling.stored.interval(bucket.0), self.buckets.interval(bucket.0));
        if inner.end <= outer.end {
            return ControlFlow::Continue(());
        }
        let failure = ReadFailure::Straddles {
            level: straddling.level,
            at: format_instant(bucket.0, &self.plan.calendar),
            zone: self.query.calendar.zone().name().to_owned(),
        };
        self.fail(failure)
    }

    fn visit(&mut self, bucket: Bucket, key: &[u8], cell: &Cell) -> ControlFlow<()> {
        self.or_fail(self.allowance.step())?;
        let mut answered = std::mem::take(&mut self.key);
        let asked = self.projection.apply(key, &mut answered);
        // What is another's must not be counted for a pinned asker: a figure, or being refused, would tell of it.
        if asked == Some(true) || !self.query.pinned {
            self.count()?;
        }
        let flow = match asked {
            Some(true) => self.visit_asked(bucket, &answered, cell),
            Some(false) => ControlFlow::Continue(()),
            None => self.fail(damaged("a stored group key is damaged")),
        };
        self.key = answered;
        flow
    }

    fn count(&mut self) -> ControlFlow<()> {
        self.cells_read += 1;
        self.or_fail(self.allowance.take_cell())
    }

    fn visit_asked(&mut self, stored: Bucket, key: &[u8], cell: &Cell) -> ControlFlow<()> {
        // Whatever led to it, more rows were taken from it than it had.
        if cell.rows < 0 {
            return self.fail(damaged("a stored cell counts fewer than no rows"));
        }
        self.check_straddling(stored)?;
        let bucket = self.buckets.bucket(stored.0);
        self.add(bucket, key, cell)
    }

    fn add(&mut self, bucket: Bucket, key: &[u8], cell: &Cell) -> ControlFlow<()> {
        let done = |cursor: &Cursor| (bucket, key) <= (cursor.bucket, cursor.key.as_slice());
        if self.query.in_stored_order() && self.query.cursor.as_ref().is_some_and(done) {
            return ControlFlow::Continue(());
        }
        if self.direct {
            return self.push(bucket, key, cell);
        }
        if self.open != Some(bucket) {
            self.close_bucket()?;
            self.open = Some(bucket);
        }
        self.groups.merge(key, cell);
        ControlFlow::Continue(())
    }

    fn close_bucket(&mut self) -> ControlFlow<()> {
        let Some(bucket) = self.open.take() else { return ControlFlow::Continue(()) };
        let mut groups = std::mem::take(&mut self.groups);
        let mut flow = ControlFlow::Continue(());
        groups.drain(self.query.in_stored_order(), |key, cell| {
            flow = self.push(bucket, key, cell);
            flow.is_continue()
        });
        flow
    }

    /// Takes a row, after those that are to be filled in before it.
    fn push(&mut self, bucket: Bucket, key: &[u8], cell: &Cell) -> ControlFlow<()> {
        if !bucket.is_special() && self.query.fill != Fill::Absent {
            self.fill_until(bucket.0)?;
            self.expected = bucket_end(&self.query.calendar, self.query.granularity, bucket);
        }
        let mut values = std::mem::take(&mut self.values);
        let flow = self.place(bucket, key, cell, &mut values);
        self.values = values;
        flow
    }

    /// Gives a row its place, if it has one.
    fn place(&mut self, bucket: Bucket, key: &[u8], cell: &Cell, values: &mut Vec<MeasureValue>) -> ControlFlow<()> {
        self.or_fail(self.allowance.step())?;
        if let Err(failure) = finish_into(values, self.plan, self.query, cell) {
            return self.fail(failure);
        }
        if let Some(having) = &self.query.having {
            let Some(group) = group_key::decode(key) else {
                return self.fail(damaged("a stored group key is damaged"));
            };
            if !having.accepts(&group, values) {
                self.ranking.left_out(cell);
                return ControlFlow::Continue(());
            }
        }
        let row = RowRef { bucket, key, values };
        if self.query.in_stored_order() {
            self.or_fail(self.allowance.take(self.size.held(row)))?;
            self.rows.push(row.to_row());
            return self.check_full();
        }
        let added = self.ranking.add(row, cell);
        self.or_fail(added)
    }

    /// Fills the buckets from the one expected up to `instant`.
    fn fill_until(&mut self, instant: i64) -> ControlFlow<()> {
        if self.query.fill == Fill::Absent {
            return ControlFlow::Continue(());
        }
        while let Some(start) = self.expected.filter(|start| *start < instant) {
            let values = match (self.query.fill, self.rows.last()) {
                (Fill::Previous, Some(before)) => before.values.clone(),
                (fill, _) => self.query.outputs.iter().map(|output| nothing(fill, self.plan, output)).collect(),
            };
            let row = Row { bucket: Bucket(start), key: Vec::new(), values };
            self.or_fail(self.allowance.step().and_then(|()| self.allowance.take(self.size.held(row.as_ref()))))?;
            self.rows.push(row);
            self.expected = Some(self.query.calendar.interval(self.query.granularity, start).end);
            self.check_full()?;
        }
        ControlFlow::Continue(())
    }

    /// In the stored order one row more than asked for is enough: it shows that there is a next page.
    fn check_full(&self) -> ControlFlow<()> {
        if self.rows.len() > self.query.limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn fail(&mut self, failure: ReadFailure) -> ControlFlow<()> {
        self.failure.get_or_insert(failure);
        ControlFlow::Break(())
    }

    fn or_fail(&mut self, spent: Result<(), ReadFailure>) -> ControlFlow<()> {
        spent.map_or_else(|failure| self.fail(failure), ControlFlow::Continue)
    }

    fn finish(mut self, sequence: u64) -> Result<Answer, ReadFailure> {
        if self.failure.is_none() && self.close_bucket().is_continue() {
            let _ = self.query.to.map(|to| self.fill_until(to));
        }
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let (plan, query) = (self.plan, self.query);
        let whole = self.ranking.whole().map(|cell| finished(plan, query, cell)).transpose()?;
        let mut answer = Answer { cells_read: self.cells_read, whole, ..Answer::default() };
        if query.in_stored_order() {
            answer.truncated = self.rows.len() > query.limit;
            self.rows.truncate(query.limit);
            answer.rows = self.rows;
        } else {
            let ranked = self.ranking.finish();
            answer.others = ranked.others.map(|cell| finished(plan, query, &cell)).transpose()?;
            answer.truncated = ranked.truncated;
            answer.rows = ranked.rows;
        }
        for row in &answer.rows {
            self.allowance.step()?;
            self.allowance.take(self.size.written(row.as_ref()))?;
        }
        let last = answer.rows.last().filter(|_| answer.truncated);
        answer.next = last.map(|row| Cursor {
            process: this_process(),
            sequence,
            asked_us: query.asked_us,
            bucket: row.bucket,
            key: row.key.clone(),
            values: if query.in_stored_order() { Vec::new() } else { row.values.clone() },
        });
        Ok(answer)
    }
}

fn damaged(what: &str) -> ReadFailure {
    ReadFailure::Store(ReadError(what.to_owned()))
}

/// The measures of a cell, as the answer shows them.
fn finished(plan: &Plan, query: &AggregateQuery, cell: &Cell) -> Result<Vec<MeasureValue>, ReadFailure> {
    let mut values = Vec::with_capacity(query.outputs.len());
    finish_into(&mut values, plan, query, cell).map(|()| values)
}

fn finish_into(
    values: &mut Vec<MeasureValue>,
    plan: &Plan,
    query: &AggregateQuery,
    cell: &Cell,
) -> Result<(), ReadFailure> {
    values.clear();
    for output in &query.outputs {
        values.push(output.finish(plan, cell).map_err(|error| match error {
            NoValue::Overflow => ReadFailure::Overflow(output.name.clone()),
            NoValue::Damaged => damaged("a stored cell lacks a measure"),
        })?);
    }
    Ok(())
}

/// What a measure is over no rows.
fn nothing(fill: Fill, plan: &Plan, output: &Output) -> MeasureValue {
    let OutputSource::Stored(at) = output.source else { return MeasureValue::Null };
    match (fill, plan.measures.get(at).map(|measure| measure.function)) {
        (Fill::Zero, Some(Function::SumNumeric { scale })) => MeasureValue::Decimal { mantissa: 0, scale },
        (Fill::Zero, Some(Function::SumFloat)) => MeasureValue::Float(0.0),
        (Fill::Zero, _) => MeasureValue::Integer(0),
        _ => MeasureValue::Null,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use engine::change::{Numeric, Value, ValueRef};
    use proptest::prelude::*;

    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::super::allowance::Waiting;
    use super::super::cells::CellMap;
    use super::super::ranking::compare;
    use super::*;
    use crate::query::fixture::{aggregate, daily, daily_in, parse};
    use crate::query::{QueryError, QueryRequest};

    const DAY_US: i64 = 86_400_000_000;

    #[derive(Clone, Debug)]
    struct Payment {
        country: Value,
        merchant: i64,
        cents: i128,
        units: Option<i64>,
        time: i64,
    }

    impl Payment {
        fn add_to(&self, cell: &mut Cell, plan: &Plan) {
            let amount = ValueRef::Numeric(Numeric::Finite { mantissa: self.cents, scale: 2 });
            let units = self.units.map_or(ValueRef::Null, ValueRef::Int);
            cell.rows += 1;
            for ((measure, accumulator), value) in
                plan.measures.iter().zip(&mut cell.accumulators).zip([amount, units, ValueRef::Null])
            {
                measure.function.accumulate(accumulator, value, 1).unwrap();
            }
        }

        fn dimensions(&self) -> [Value; 2] {
            [self.country.clone(), Value::Int(self.merchant)]
        }
    }

    fn key(values: &[&Value]) -> Vec<u8> {
        let mut key = Vec::new();
        values.iter().for_each(|value| group_key::push(&mut key, value.as_ref()).unwrap());
        key
    }

    /// Cells as the engine would keep them.
    fn stored(payments: &[Payment], plan: &Plan) -> CellMap {
        let mut stored = CellMap::default();
        for payment in payments {
            for (level, granularity) in plan.levels.iter().enumerate() {
                let bucket = BucketCache::new(plan.calendar, *granularity).bucket(payment.time);
                let group = key(&payment.dimensions().iter().collect::<Vec<_>>());
                payment.add_to(stored.0.entry((level, bucket, group)).or_insert_with(|| plan.zero()), plan);
            }
        }
        stored
    }

    /// The rows as `GROUP BY` over the payments would give them, without levels, cells or keys' bytes cut.
    fn naive(payments: &[Payment], query: &AggregateQuery, plan: &Plan) -> Vec<Row> {
        let mut groups: BTreeMap<(Bucket, Vec<u8>), Cell> = BTreeMap::new();
        for payment in payments {
            let inside = match Bucket(payment.time) {
                Bucket::NULL => query.from.is_none() && query.to.is_none(),
                _ => query.from.is_none_or(|from| from <= payment.time) && query.to.is_none_or(|to| payment.time < to),
            };
            let values = payment.dimensions();
            let wanted =
                query.fixed.iter().zip(&values).all(|(fixed, value)| fixed.as_ref().is_none_or(|f| f == value));
            if inside && wanted {
                let bucket = BucketCache::new(query.calendar, query.granularity).bucket(payment.time);
                let group = key(&query.group_by.iter().map(|at| &values[*at]).collect::<Vec<_>>());
                payment.add_to(groups.entry((bucket, group)).or_insert_with(|| plan.zero()), plan);
            }
        }
        let finish = |cell: &Cell| query.outputs.iter().map(|output| output.finish(plan, cell).unwrap()).collect();
        groups
            .iter()
            .map(|((bucket, key), cell)| Row { bucket: *bucket, key: key.clone(), values: finish(cell) })
            .collect()
    }

    fn ask(stored: &CellMap, aggregate: &Aggregate, question: &str) -> Result<(AggregateQuery, Answer), QueryError> {
        let query = parse(question, aggregate)?;
        let reads = ReadPlan::choose(&query, &aggregate.plan)?;
        let answer = read(stored, aggregate, &query, &reads, 1).unwrap();
        Ok((query, answer))
    }

    fn payment() -> impl Strategy<Value = Payment> {
        let country = prop_oneof![
            Just(Value::Null),
            prop::sample::select(vec!["EUR", "USD", ""]).prop_map(|text| Value::Text(text.to_owned())),
        ];
        let special = vec![Bucket::NULL.0, Bucket::INFINITY.0, Bucket::NEGATIVE_INFINITY.0];
        let time = prop_oneof![8 => -800 * DAY_US..800 * DAY_US, 1 => prop::sample::select(special)];
        (country, 0i64..4, -500i128..500, prop::option::of(-5i64..5), time)
            .prop_map(|(country, merchant, cents, units, time)| Payment { country, merchant, cents, units, time })
    }

    fn question() -> impl Strategy<Value = String> {
        let edge = |name: &'static str| {
            prop_oneof![
                Just(String::new()),
                (1998i32..2003, 1u32..13, 1u32..29).prop_map(move |(y, m, d)| format!("&{name}={y}-{m:02}-{d:02}")),
                (1998i32..2003).prop_map(move |y| format!("&{name}={y}")),
            ]
        };
        let granularity = prop::sample::select(vec!["day", "week", "month", "quarter", "year", "all"]);
        let filter = prop::sample::select(vec![
            "",
            "&where=country:EUR",
            "&where=merchant:2",
            "&where=country:EUR,merchant:1",
            "&where=country:null",
            "&where=country:'',merchant:3",
        ]);
        let group_by = prop::sample::select(vec!["", "&group_by=", "&group_by=merchant", "&group_by=merchant,country"]);
        let measures = prop::sample::select(vec!["", "&measures=n", "&measures=units,amount"]);
        (granularity, edge("from"), edge("to"), filter, group_by, measures).prop_map(
            |(granularity, from, to, filter, group_by, measures)| {
                format!("granularity={granularity}{from}{to}{filter}{group_by}{measures}")
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        #[test]
        fn answers_are_what_group_by_would_give(
            payments in prop::collection::vec(payment(), 0..60), question in question(),
            zone in prop::sample::select(vec!["UTC", "Europe/Madrid", "America/St_Johns"]),
        ) {
            let aggregate = daily_in(zone);
            let stored = stored(&payments, &aggregate.plan);
            let Ok((query, answer)) = ask(&stored, &aggregate, &question) else { return Ok(()) };
            prop_assert_eq!(&answer.rows, &naive(&payments, &query, &aggregate.plan), "{}", question);
            prop_assert!(!answer.truncated && answer.next.is_none());
        }

        #[test]
        fn pages_put_together_are_the_whole(
            payments in prop::collection::vec(payment(), 0..60), question in question(), limit in 1usize..7,
            order in prop::sample::select(vec!["", "&order=-n", "&order=n,-time", "&order=-time"]),
        ) {
            let aggregate = daily();
            let stored = stored(&payments, &aggregate.plan);
            let question = format!("{question}{order}");
            let Ok((query, _)) = ask(&stored, &aggregate, &question) else { return Ok(()) };
            let (mut rows, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = format!("{question}&limit={limit}{cursor}");
                let (query, answer) = ask(&stored, &aggregate, &page).unwrap();
                prop_assert!(answer.rows.len() <= limit);
                rows.extend(answer.rows);
                let Some(next) = answer.next else { break };
                cursor = format!("&cursor={}", next.encode(query.fingerprint));
            }
            let mut whole = naive(&payments, &query, &aggregate.plan);
            whole.sort_by(|a, b| compare(a.as_ref(), b.as_ref(), &query.order));
            prop_assert_eq!(rows, whole, "{}", question);
        }

        /// Quarter-hours answer every zone; what is refused is refused whole.
        #[test]
        fn any_zone_is_answered_from_quarter_hours(
            payments in prop::collection::vec(payment(), 0..60), question in question(),
            zone in prop::sample::select(vec![
                "Asia/Kathmandu", "Australia/Lord_Howe", "Africa/Casablanca", "America/St_Johns", "Pacific/Apia",
                "Asia/Beirut", "America/New_York", "UTC",
            ]),
            starts in prop::sample::select(vec!["", "&week_start=sunday", "&year_start=4", "&week_start=saturday&year_start=11"]),
        ) {
            let quarters = aggregate(r#""time":{"column":"ts","granularity":"PT15M"},"rollups":["hour","day","month"],"#);
            let stored = stored(&payments, &quarters.plan);
            let question = format!("{question}&time_zone={zone}{starts}");
            let (query, answer) = match ask(&stored, &quarters, &question) {
                Err(error) if error.code == "empty_range" => return Ok(()),
                other => other.unwrap(),
            };
            prop_assert_eq!(&answer.rows, &naive(&payments, &query, &quarters.plan), "{}", question);
        }

        /// Shown rows and others are everything, whatever `having` leaves out; shares are of everything.
        #[test]
        fn nothing_is_lost_between_the_first_and_the_others(
            payments in prop::collection::vec(payment(), 0..60), limit in 1usize..9,
            having in prop::sample::select(vec!["", "&having=n > 2", "&having=units >= 0 and not merchant in (1, 2)"]),
        ) {
            let aggregate = daily();
            let stored = stored(&payments, &aggregate.plan);
            let question = |more: &str| format!("granularity=all&measures=n,units{more}");
            let text = question(&format!("&order=-n&others=true&share=true&limit={limit}{having}"));
            let (_, answer) = ask(&stored, &aggregate, &text).unwrap();
            let (_, all) = ask(&stored, &aggregate, &question("&group_by=")).unwrap();
            let number = |value: MeasureValue| match value {
                MeasureValue::Integer(v) => v,
                _ => 0,
            };
            for at in [0, 1] {
                let of = |values: &[MeasureValue]| number(values[at]);
                let shown: i128 = answer.rows.iter().map(|row| of(&row.values)).sum();
                let others = answer.others.as_deref().map_or(0, of);
                prop_assert_eq!(shown + others, all.rows.first().map_or(0, |row| of(&row.values)));
                prop_assert_eq!(answer.whole.as_deref().map(of), Some(shown + others));
            }
            let kept = |row: &Row| match having {
                "" => true,
                "&having=n > 2" => number(row.values[0]) > 2,
                _ => {
                    let merchant = group_key::decode(&row.key).unwrap()[1].clone();
                    let units = row.values[1] != MeasureValue::Null && number(row.values[1]) >= 0;
                    units && ![Value::Int(1), Value::Int(2)].contains(&merchant)
                }
            };
            let (query, rows) = ask(&stored, &aggregate, &question("&order=-n")).unwrap();
            let expected: Vec<Row> = rows.rows.into_iter().filter(kept).take(limit).collect();
            prop_assert_eq!(answer.rows, expected, "{:?}", query);
        }

        #[test]
        fn a_condition_keeps_the_groups_it_accepts(payments in prop::collection::vec(payment(), 0..60)) {
            let aggregate = daily();
            let stored = stored(&payments, &aggregate.plan);
            let answer = |more: &str| ask(&stored, &aggregate, &format!("granularity=month{more}")).unwrap().1.rows;
            let kept = answer("&filter=merchant > 1 and country is not null");
            let expected: Vec<Row> = answer("").into_iter().filter(|row| {
                let values = group_key::decode(&row.key).unwrap();
                values[0] != Value::Null && matches!(values[1], Value::Int(m) if m > 1)
            }).collect();
            prop_assert_eq!(kept, expected);
            let fixed = answer("&filter=merchant = 1 and country = 'EUR'&group_by=country,merchant");
            prop_assert_eq!(fixed, answer("&where=merchant:1,country:EUR&group_by=country,merchant"));
        }

        #[test]
        fn the_first_by_a_measure_are_the_first_of_all(
            payments in prop::collection::vec(payment(), 0..60), limit in 1usize..9, descending in any::<bool>(),
            by in prop::sample::select(vec!["units", "amount", "n", "merchant", "country", "time"]),
        ) {
            let aggregate = daily();
            let stored = stored(&payments, &aggregate.plan);
            let sign = if descending { "-" } else { "" };
            let question = format!("granularity=year&order={sign}{by}&limit={limit}");
            let (query, answer) = ask(&stored, &aggregate, &question).unwrap();
            let mut rows = naive(&payments, &query, &aggregate.plan);
            rows.sort_by(|a, b| compare(a.as_ref(), b.as_ref(), &query.order));
            prop_assert_eq!(answer.truncated, rows.len() > limit);
            rows.truncate(limit);
            prop_assert_eq!(answer.rows, rows);
        }
    }

    fn pay(merchant: i64, cents: i128, units: Option<i64>, day: i64) -> Payment {
        Payment { country: Value::Text("EUR".to_owned()), merchant, cents, units, time: day * DAY_US }
    }

    #[test]
    fn the_largest_come_first_and_null_is_last_either_way() {
        let aggregate = daily();
        let payments = [pay(1, 0, None, 0), pay(2, 0, Some(5), 0), pay(3, 0, Some(7), 0), pay(0, 0, Some(5), 0)];
        let merchants = |question: &str| {
            let (_, answer) = ask(&stored(&payments, &aggregate.plan), &aggregate, question).unwrap();
            answer.rows.iter().map(|row| group_key::decode(&row.key).unwrap().remove(0)).collect::<Vec<_>>()
        };
        let ints = |values: [i64; 4]| values.map(Value::Int).to_vec();
        assert_eq!(merchants("granularity=all&group_by=merchant&order=-units"), ints([3, 0, 2, 1]));
        assert_eq!(merchants("granularity=all&group_by=merchant&order=units"), ints([0, 2, 3, 1]));
    }

    #[test]
    fn a_series_can_be_filled_and_paged() {
        let aggregate = daily();
        let stored = stored(&[pay(1, 150, Some(1), 1), pay(1, 250, Some(1), 4)], &aggregate.plan);
        let counts = |question: &str| {
            let (query, answer) = ask(&stored, &aggregate, question).unwrap();
            let counts: Vec<_> = answer
                .rows
                .iter()
                .map(|row| {
                    assert!(row.values.len() == 1 && row.key.is_empty());
                    (row.bucket.0 / DAY_US, row.values[0].to_string())
                })
                .collect();
            (counts, answer.next.map(|next| next.encode(query.fingerprint)))
        };
        let row = |day: i64, text: &str| (day, text.to_owned());
        let range = "from=2000-01-01&to=2000-01-07&group_by=&measures=amount";
        let zeros = [row(0, "0.00"), row(1, "1.50"), row(2, "0.00"), row(3, "0.00"), row(4, "2.50"), row(5, "0.00")];
        assert_eq!(counts(&format!("{range}&fill=zero")), (zeros.to_vec(), None));
        assert_eq!(counts(&format!("{range}&fill=null")).0[0], row(0, ""));
        assert_eq!(counts("group_by=&measures=n&fill=zero").0, [row(1, "1"), row(2, "0"), row(3, "0"), row(4, "1")]);
        let (mut pages, mut cursor) = (Vec::new(), String::new());
        loop {
            let (rows, next) = counts(&format!("{range}&fill=zero&limit=2{cursor}"));
            pages.extend(rows);
            let Some(next) = next else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(pages, zeros);
        // A cursor is anybody's to write.
        let (query, _) = ask(&stored, &aggregate, &format!("{range}&fill=zero")).unwrap();
        for before in [-3 * DAY_US, i64::MIN + 1, i64::MIN + DAY_US] {
            let (bucket, key, values) = (Bucket(before), Vec::new(), Vec::new());
            let written =
                Cursor { process: 1, sequence: 1, asked_us: 0, bucket, key, values }.encode(query.fingerprint);
            assert_eq!(counts(&format!("{range}&fill=zero&cursor={written}")).0, zeros, "{before}");
        }
    }

    #[test]
    fn a_series_can_carry_its_last_value_on() {
        let aggregate = daily();
        let stored = stored(&[pay(1, 150, Some(1), 1), pay(1, 250, Some(1), 4)], &aggregate.plan);
        let question = "from=2000-01-01&to=2000-01-07&group_by=&measures=amount&fill=previous";
        let (_, answer) = ask(&stored, &aggregate, question).unwrap();
        let texts: Vec<String> = answer.rows.iter().map(|row| row.values[0].to_string()).collect();
        assert_eq!(texts, ["", "1.50", "1.50", "1.50", "2.50", "2.50"]);
    }

    #[test]
    fn rows_find_their_counterparts() {
        let row = |day: i64, merchant: u8, n| Row {
            bucket: Bucket(day * DAY_US),
            key: vec![merchant],
            values: vec![MeasureValue::Integer(n)],
        };
        let answer = |rows| Answer { rows, ..Answer::default() };
        let now = answer(vec![row(31, 1, 5), row(31, 2, 6), row(32, 1, 7)]);
        let then = answer(vec![row(0, 1, 3), row(1, 2, 4)]);
        let before =
            Before::join(&now, then, |bucket| (bucket.0 < 32 * DAY_US).then(|| Bucket(bucket.0 - 31 * DAY_US)));
        assert_eq!(before.0, [Some(vec![MeasureValue::Integer(3)]), None, None]);
    }

    /// Before 1920 the clock of Kathmandu was 5:41:16 ahead of UTC: no quarter-hour bucket ends there.
    #[test]
    fn a_stored_bucket_in_two_of_the_answers_is_refused() {
        let quarters = aggregate(r#""time":{"column":"ts","granularity":"PT15M"},"#);
        let old = pay(1, 5, None, -36_525);
        // 18:15 to 18:30 UTC holds the midnight of then.
        let midnight = Payment { time: old.time + 18 * 3_600_000_000 + 18 * 60_000_000, ..old.clone() };
        let answer = |payment: &Payment| {
            let query = parse("granularity=day&time_zone=Asia/Kathmandu", &quarters).unwrap();
            let reads = ReadPlan::choose(&query, &quarters.plan).unwrap();
            read(&stored(std::slice::from_ref(payment), &quarters.plan), &quarters, &query, &reads, 1)
        };
        assert!(matches!(answer(&midnight), Err(ReadFailure::Straddles { .. })));
        assert_eq!(answer(&old).unwrap().rows.len(), 1);
    }

    #[test]
    fn a_sum_that_does_not_fit_is_refused_and_others_are_not() {
        let aggregate = daily();
        let payments = [pay(1, i128::MAX, None, 0), pay(1, 1, None, 1)];
        let stored = stored_days(&payments, &aggregate.plan);
        let answer = |question: &str| {
            let query = parse(question, &aggregate).unwrap();
            read(&stored, &aggregate, &query, &ReadPlan::choose(&query, &aggregate.plan).unwrap(), 1)
        };
        let range = "granularity=week&from=2000-01-01&to=2000-01-03";
        assert_eq!(answer(range), Err(ReadFailure::Overflow("amount".to_owned())));
        assert!(answer(&format!("{range}&measures=n")).is_ok());
    }

    /// The base level only: its cells fit where the rollups' do not.
    fn stored_days(payments: &[Payment], plan: &Plan) -> CellMap {
        let mut days = plan.clone();
        days.levels.truncate(1);
        stored(payments, &days)
    }

    #[test]
    fn a_cell_of_fewer_than_no_rows_is_not_shown() {
        let aggregate = daily();
        let mut stored = stored(&[pay(1, 150, Some(1), 1), pay(1, 250, Some(1), 4)], &aggregate.plan);
        stored.0.values_mut().take(1).for_each(|cell| cell.rows = -1);
        let query = parse("group_by=", &aggregate).unwrap();
        let reads = ReadPlan::choose(&query, &aggregate.plan).unwrap();
        let failure = read(&stored, &aggregate, &query, &reads, 1).unwrap_err();
        assert!(matches!(failure, ReadFailure::Store(_)), "{failure}");
    }

    /// Cells somebody waits for.
    const PATIENCE: u64 = 5_000;

    /// Cells without end.
    struct Endless {
        group: Vec<u8>,
        cell: Cell,
        waiting: RefCell<Option<Waiting>>,
        visited: RefCell<u64>,
    }

    impl Cells for Endless {
        fn cell(&self, _: &Aggregate, _: usize, _: Bucket, _: &[u8]) -> Result<Option<Cell>, ReadError> {
            Ok(None)
        }

        fn scan(
            &self,
            _: &Aggregate,
            _: usize,
            _: Bucket,
            _: Bucket,
            mut visit: impl FnMut(Bucket, &[u8], &Cell) -> ControlFlow<()>,
        ) -> Result<(), ReadError> {
            while visit(Bucket(0), &self.group, &self.cell).is_continue() {
                *self.visited.borrow_mut() += 1;
                if *self.visited.borrow() == PATIENCE {
                    drop(self.waiting.take());
                }
            }
            Ok(())
        }
    }

    #[test]
    fn nothing_more_is_read_once_nobody_waits() {
        let aggregate = daily();
        for question in ["granularity=day", "granularity=month&order=-n", "granularity=year&filter=merchant > 7"] {
            let allowance = Allowance::default();
            let endless = Endless {
                group: key(&[&Value::Null, &Value::Int(1)]),
                cell: aggregate.plan.zero(),
                waiting: RefCell::new(Some(allowance.while_waited_for())),
                visited: RefCell::new(0),
            };
            let query = parse(question, &aggregate).unwrap();
            let reads = ReadPlan::choose(&query, &aggregate.plan).unwrap();
            let answer = allowance.spend(|| read(&endless, &aggregate, &query, &reads, 1));
            assert_eq!(answer, Err(ReadFailure::OutOfTime), "{question}");
            let visited = endless.visited.take();
            assert!((PATIENCE..PATIENCE + 2_000).contains(&visited), "{question}: {visited}");
        }
    }

    #[test]
    fn an_answer_is_refused_before_it_is_larger_than_it_may_be() {
        let aggregate = daily();
        let payments: Vec<Payment> = (0..1_000).map(|merchant| pay(merchant, 1, Some(merchant), 0)).collect();
        let stored = stored(&payments, &aggregate.plan);
        let rows = |left: usize, question: &str| {
            let query = parse(question, &aggregate).unwrap();
            let reads = ReadPlan::choose(&query, &aggregate.plan).unwrap();
            Allowance::default().spend(|| {
                Allowance::current().take(MAX_BYTES - left).unwrap();
                read(&stored, &aggregate, &query, &reads, 1).map(|answer| answer.rows.len())
            })
        };
        assert_eq!(rows(1_000_000, "granularity=all"), Ok(1_000));
        // As rows it would fit, but not as text.
        assert_eq!(rows(300_000, "granularity=all"), Err(ReadFailure::TooLarge));
        let long_names: String = (0..20).map(|at| format!("n as {at:0>100},")).collect();
        assert_eq!(rows(1_000_000, &format!("granularity=all&measures={long_names}")), Err(ReadFailure::TooLarge));
        let filled = "from=2000-01-01&to=2002&group_by=&fill=zero";
        assert_eq!((rows(1_000_000, filled), rows(50_000, filled)), (Ok(731), Err(ReadFailure::TooLarge)));
        // Each row is the first for a while, and is forgotten.
        assert_eq!(rows(100_000, "granularity=all&order=-units&limit=1"), Ok(1));
    }

    #[test]
    fn what_others_have_is_not_counted_for_who_is_pinned() {
        let aggregate = daily();
        let payments: Vec<Payment> = (0..4).map(|merchant| pay(merchant, 1, None, 0)).collect();
        let stored = stored(&payments, &aggregate.plan);
        let answer = |merchant: &str, pinned: bool| {
            let mut request = QueryRequest { group_by: Some(Vec::new()), ..QueryRequest::default() };
            match pinned {
                true => request.pinned = vec![("merchant".to_owned(), Some(merchant.to_owned()))],
                false => request.filter = Some(format!("merchant = {merchant}")),
            }
            let query = AggregateQuery::resolve(&request, &aggregate, 0).unwrap();
            let reads = ReadPlan::choose(&query, &aggregate.plan).unwrap();
            read(&stored, &aggregate, &query, &reads, 1).map(|answer| (answer.rows.len(), answer.cells_read))
        };
        assert_eq!((answer("2", true), answer("2", false)), (Ok((1, 1)), Ok((1, 4))));
        assert_eq!((answer("9", true), answer("9", false)), (Ok((0, 0)), Ok((0, 4))));
        // Nor is anybody refused for them.
        Allowance::default().spend(|| {
            let spent = Allowance::current();
            (0..MAX_CELLS).for_each(|_| spent.take_cell().unwrap());
            assert_eq!((answer("9", true), answer("9", false)), (Ok((0, 0)), Err(ReadFailure::TooWide)));
        });
    }

    #[test]
    fn an_aggregate_without_time_answers_one_row_a_group() {
        let total = aggregate("");
        let (_, answer) = ask(&stored(&[pay(1, 5, None, 0), pay(1, 6, None, 99)], &total.plan), &total, "").unwrap();
        assert_eq!(answer.rows.len(), 1);
        assert_eq!(answer.rows[0].values[0].to_string(), "0.11");
        assert_eq!(answer.cells_read, 1);
    }
}
