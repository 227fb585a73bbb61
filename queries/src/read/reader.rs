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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use engine::change::{Numeric, Value, ValueRef};
    use proptest::prelude::*;

    use super::*;
    use crate::query::QueryError;
    use crate::query::fixture::{aggregate, daily, daily_in, parse};

    const DAY_US: i64 = 86_400_000_000;

    /// Cells as the engine would keep them, by level, bucket and group.
    #[derive(Default)]
    struct Stored(BTreeMap<(usize, Bucket, Vec<u8>), Cell>);

    impl Cells for Stored {
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
            for ((_, bucket, key), cell) in cells.take_while(|((l, bucket, _), _)| *l == level && *bucket <= to) {
                if visit(*bucket, key, cell).is_break() {
                    break;
                }
            }
            Ok(())
        }
    }

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

    fn stored(payments: &[Payment], plan: &Plan) -> Stored {
        let mut stored = Stored::default();
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
                let bucket = BucketCache::new(plan.calendar, query.granularity).bucket(payment.time);
                let group = key(&query.group_by.iter().map(|at| &values[*at]).collect::<Vec<_>>());
                payment.add_to(groups.entry((bucket, group)).or_insert_with(|| plan.zero()), plan);
            }
        }
        let finish = |cell: &Cell| {
            query.measures.iter().map(|at| plan.measures[*at].function.finish(&cell.accumulators[*at])).collect()
        };
        groups
            .iter()
            .map(|((bucket, key), cell)| Row { bucket: *bucket, key: key.clone(), values: finish(cell) })
            .collect()
    }

    fn ask(stored: &Stored, aggregate: &Aggregate, question: &str) -> Result<(AggregateQuery, Answer), QueryError> {
        let query = parse(question, aggregate)?;
        let reads = ReadPlan::choose(&query, &aggregate.plan)?;
        let answer = read(stored, aggregate, &query, &reads).unwrap();
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
        ) {
            let aggregate = daily();
            let stored = stored(&payments, &aggregate.plan);
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
            prop_assert_eq!(rows, naive(&payments, &query, &aggregate.plan), "{}", question);
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
            rows.sort_by(|a, b| compare(a, b, query.order));
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
    }

    #[test]
    fn a_sum_that_does_not_fit_is_refused_and_others_are_not() {
        let aggregate = daily();
        let payments = [pay(1, i128::MAX, None, 0), pay(1, 1, None, 1)];
        let stored = stored_days(&payments, &aggregate.plan);
        let answer = |question: &str| {
            let query = parse(question, &aggregate).unwrap();
            read(&stored, &aggregate, &query, &ReadPlan::choose(&query, &aggregate.plan).unwrap())
        };
        let range = "granularity=week&from=2000-01-01&to=2000-01-03";
        assert_eq!(answer(range), Err(ReadFailure::Overflow("amount".to_owned())));
        assert!(answer(&format!("{range}&measures=n")).is_ok());
    }

    /// The base level only: its cells fit where the rollups' do not.
    fn stored_days(payments: &[Payment], plan: &Plan) -> Stored {
        let mut days = plan.clone();
        days.levels.truncate(1);
        stored(payments, &days)
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
