//! The first rows of any order, and what is left of the others. Bounded: rows that cannot be shown any more are forgotten
//! as soon as twice as many as can are held.

use std::cmp::Ordering;
use std::rc::Rc;

use engine::aggregate::sum::Special;
use engine::aggregate::{Cell, MeasureValue};
use engine::materialization::{Plan, group_key};

use super::allowance::Allowance;
use super::reader::{ReadFailure, Row, RowRef};
use super::size::RowSize;
use crate::query::{AggregateQuery, Cursor, Order, OrderBy};

/// Rows competing for the places of a page.
pub(super) struct Ranking<'q> {
    plan: &'q Plan,
    query: &'q AggregateQuery,
    /// The last row of the page before.
    after: Option<Row>,
    /// Rows with their cells, where the others are asked for.
    held: Vec<(Row, Option<Cell>)>,
    /// Behind it there is no place any more.
    last_place: Option<Row>,
    forgotten: bool,
    others: Option<Cell>,
    whole: Option<Cell>,
    allowance: Rc<Allowance>,
    size: RowSize,
}

/// The rows of a page.
pub(super) struct Ranked {
    /// In order.
    pub(super) rows: Vec<Row>,
    /// What is in none of them.
    pub(super) others: Option<Cell>,
    /// There are more.
    pub(super) truncated: bool,
}

impl<'q> Ranking<'q> {
    pub(super) fn new(plan: &'q Plan, query: &'q AggregateQuery, allowance: Rc<Allowance>, size: RowSize) -> Self {
        let row =
            |cursor: &Cursor| Row { bucket: cursor.bucket, key: cursor.key.clone(), values: cursor.values.clone() };
        Ranking {
            plan,
            query,
            after: query.cursor.as_ref().map(row),
            held: Vec::new(),
            last_place: None,
            forgotten: false,
            others: None,
            whole: query.share.map(|_| plan.zero()),
            allowance,
            size,
        }
    }

    /// A row that is not ranked, but part of the whole.
    pub(super) fn left_out(&mut self, cell: &Cell) {
        merge(&mut self.whole, cell);
        if self.query.others {
            merge(self.others_or_zero(), cell);
        }
    }

    /// A row of the answer.
    pub(super) fn add(&mut self, row: RowRef<'_>, cell: &Cell) -> Result<(), ReadFailure> {
        merge(&mut self.whole, cell);
        let order = &self.query.order;
        if self.after.as_ref().is_some_and(|after| compare(row, after.as_ref(), order) != Ordering::Greater) {
            return Ok(());
        }
        // Most rows of a long list are behind the last place as it stands: they are not even copied.
        if self.last_place.as_ref().is_some_and(|last| compare(row, last.as_ref(), order) == Ordering::Greater) {
            self.forgotten = true;
            if self.query.others {
                merge(self.others_or_zero(), cell);
            }
            return Ok(());
        }
        self.allowance.take(self.size.held(row))?;
        self.held.push((row.to_row(), self.query.others.then(|| cell.clone())));
        if self.held.len() >= self.query.limit.saturating_mul(2).max(128) {
            self.shrink();
        }
        Ok(())
    }

    /// Keeps only rows that have a place.
    fn shrink(&mut self) {
        let places = self.query.limit;
        if self.held.len() <= places {
            return;
        }
        let order = &self.query.order;
        self.held.select_nth_unstable_by(places, |a, b| compare(a.0.as_ref(), b.0.as_ref(), order));
        let forgotten = self.held.split_off(places);
        self.forgotten = true;
        self.allowance.give_back(forgotten.iter().map(|(row, _)| self.size.held(row.as_ref())).sum());
        for (_, cell) in forgotten {
            cell.iter().for_each(|cell| merge(self.others_or_zero(), cell));
        }
        let last = self.held.iter().max_by(|a, b| compare(a.0.as_ref(), b.0.as_ref(), order));
        self.last_place = last.map(|(row, _)| row.clone());
    }

    fn others_or_zero(&mut self) -> &mut Option<Cell> {
        self.others.get_or_insert_with(|| self.plan.zero());
        &mut self.others
    }

    pub(super) fn whole(&self) -> Option<&Cell> {
        self.whole.as_ref()
    }

    pub(super) fn finish(mut self) -> Ranked {
        self.shrink();
        let order = &self.query.order;
        let mut rows: Vec<Row> = self.held.into_iter().map(|(row, _)| row).collect();
        rows.sort_unstable_by(|a, b| compare(a.as_ref(), b.as_ref(), order));
        Ranked { rows, others: self.others.filter(|cell| cell.rows != 0), truncated: self.forgotten }
    }
}

fn merge(into: &mut Option<Cell>, cell: &Cell) {
    if let Some(into) = into {
        // A sum that overflows says so in its accumulator.
        let _ = into.merge(cell.rows, &cell.accumulators);
    }
}

/// The order of an answer's rows; ties are broken by time, then key.
pub(super) fn compare(a: RowRef<'_>, b: RowRef<'_>, order: &[Order]) -> Ordering {
    let asked = order.iter().map(|term| compare_by(a, b, *term)).find(|ordering| ordering.is_ne());
    asked.unwrap_or_else(|| a.bucket.cmp(&b.bucket).then_with(|| a.key.cmp(b.key)))
}

fn compare_by(a: RowRef<'_>, b: RowRef<'_>, term: Order) -> Ordering {
    let direct = |ordering: Ordering| if term.descending { ordering.reverse() } else { ordering };
    match term.by {
        OrderBy::Time => direct(a.bucket.cmp(&b.bucket)),
        OrderBy::Dimension(position) => direct(part(a.key, position).cmp(&part(b.key, position))),
        OrderBy::Measure(position) => match (a.values.get(position), b.values.get(position)) {
            // NULL is last, whichever way: it is no candidate for the first place of anything.
            (Some(MeasureValue::Null) | None, Some(MeasureValue::Null) | None) => Ordering::Equal,
            (Some(MeasureValue::Null) | None, _) => Ordering::Greater,
            (_, Some(MeasureValue::Null) | None) => Ordering::Less,
            (Some(a), Some(b)) => direct(compare_values(*a, *b)),
        },
    }
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
