//! The rows behind a total, newest first. Of one whole group as many are read as are shown; across groups all entries of the
//! range are looked at. There is a limit to that, and to the entries without a row that are passed over in one group.

use std::cell::Cell;
use std::cmp::Reverse;
use std::ops::ControlFlow;

use engine::Snapshot;
use engine::drill::{Looked, RowBehind, RowsWanted};
use engine::materialization::{Aggregate, Bucket, group_key};

use super::allowance::Allowance;
use super::projection::Projection;
use super::reader::{ReadFailure, Row};
use super::size::escaped;
use crate::query::AggregateQuery;

/// Most entries looked at for one page.
pub const MAX_LOOKED_AT: u64 = 200_000;

/// The rows of a page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Behind {
    /// Rows as they are stored, newest first; ties by the entries of the index, backwards.
    pub rows: Vec<Vec<u8>>,
    /// The last one's entry, where there are more.
    pub next: Option<Vec<u8>>,
}

/// Whether a page of this question can have ended with this entry: it is one of the aggregate, and its group is asked for.
#[must_use]
pub fn can_follow(aggregate: &Aggregate, query: &AggregateQuery, entry: &[u8]) -> bool {
    let group = engine::drill::group_of(entry, aggregate);
    group.is_some_and(|group| Projection::of(query).apply(group, &mut Vec::new()) == Some(true))
}

/// The rows behind everything that a question is about.
pub fn rows_behind(
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    query: &AggregateQuery,
    after: Option<Vec<u8>>,
) -> Result<Behind, ReadFailure> {
    let (group_prefix, known) = leading_values(query);
    let (from, to) = times(query.from, query.to);
    let whole_group = known == query.fixed.len() && query.condition.is_none();
    if whole_group {
        let wanted = RowsWanted { group_prefix, whole_group, from, to, after, most: MAX_LOOKED_AT };
        return newest_of_group(snapshot, aggregate, &wanted, query.limit);
    }
    // Of the entries across groups most may be another's. Being refused for them would tell of them: time alone ends the look.
    let most = if query.pinned { u64::MAX } else { MAX_LOOKED_AT };
    let wanted = RowsWanted { group_prefix, whole_group, from, to, after: None, most };
    newest_across_groups(snapshot, aggregate, query, &wanted, after.as_deref())
}

/// The newest rows behind one row of an answer.
pub fn rows_of_cell(
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    query: &AggregateQuery,
    row: &Row,
    limit: usize,
) -> Result<Behind, ReadFailure> {
    let values = group_key::boundaries(&row.key).unwrap_or_default();
    let mut group_prefix = Vec::new();
    for (at, value) in query.fixed.iter().enumerate() {
        let shown = query.group_by.iter().position(|position| *position == at);
        let part = shown.and_then(|at| row.key.get(*values.get(at)?..*values.get(at + 1)?));
        match (value, part) {
            (_, Some(part)) => group_prefix.extend_from_slice(part),
            // Values of conditions are of types that can name a group.
            (Some(value), None) => group_key::push(&mut group_prefix, value.as_ref()).unwrap_or_default(),
            (None, None) => return Ok(Behind::default()),
        }
    }
    let (from, to) = match row.bucket {
        bucket if bucket.is_special() => (bucket, bucket),
        Bucket(start) => {
            let interval = query.calendar.interval(query.granularity, start);
            let everything = query.granularity == engine::materialization::Granularity::All;
            let start = query.from.filter(|from| everything || *from > interval.start);
            let end = query.to.filter(|to| everything || *to < interval.end);
            match everything {
                true => times(start, end),
                false => times(Some(start.unwrap_or(interval.start)), Some(end.unwrap_or(interval.end))),
            }
        }
    };
    let wanted = RowsWanted { group_prefix, whole_group: true, from, to, after: None, most: MAX_LOOKED_AT };
    newest_of_group(snapshot, aggregate, &wanted, limit)
}

/// The times of a range; NULL lies on no side of any bound.
fn times(from: Option<i64>, to: Option<i64>) -> (Bucket, Bucket) {
    let first = from.map_or(Bucket::NEGATIVE_INFINITY, Bucket);
    let last = match (from, to) {
        (_, Some(to)) => Bucket(to - 1),
        (None, None) => Bucket::NULL,
        (Some(_), None) => Bucket::INFINITY,
    };
    (first, last)
}

/// The values of the first dimensions that are fixed, encoded, and how many they are.
fn leading_values(query: &AggregateQuery) -> (Vec<u8>, usize) {
    let mut prefix = Vec::new();
    let mut known = 0;
    for value in query.fixed.iter().map_while(Option::as_ref) {
        if group_key::push(&mut prefix, value.as_ref()).is_err() {
            break;
        }
        known += 1;
    }
    (prefix, known)
}

/// What a row takes, held and written as JSON: its values, and the name of each column of its table beside them.
fn bytes_of(snapshot: &Snapshot, aggregate: &Aggregate) -> impl Fn(&[u8]) -> usize + use<> {
    const BESIDE_A_NAME: usize = 32;
    let table = snapshot.catalog().tables.get(&aggregate.definition.qualified_table());
    let columns = table.map(|table| table.schema.columns.as_slice()).unwrap_or_default();
    let names: usize = columns.iter().map(|column| escaped(column.name.as_bytes()) + BESIDE_A_NAME).sum();
    move |row| names + row.len() + escaped(row)
}

/// To be asked at every entry; what ended it is left in `stopped`.
fn step(allowance: &Allowance, stopped: &Cell<Result<(), ReadFailure>>) -> impl FnMut() -> ControlFlow<()> {
    move || match allowance.step() {
        Ok(()) => ControlFlow::Continue(()),
        Err(failure) => {
            stopped.set(Err(failure));
            ControlFlow::Break(())
        }
    }
}

fn newest_of_group(
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    wanted: &RowsWanted,
    limit: usize,
) -> Result<Behind, ReadFailure> {
    let (allowance, bytes) = (Allowance::current(), bytes_of(snapshot, aggregate));
    let mut behind = Behind::default();
    let (mut last, mut spent) = (Vec::new(), Ok(()));
    let stopped = Cell::new(Ok(()));
    let looked = snapshot.rows_behind(aggregate, wanted, step(&allowance, &stopped), |found| {
        if behind.rows.len() == limit {
            behind.next = Some(std::mem::take(&mut last));
            return ControlFlow::Break(());
        }
        spent = allowance.take(bytes(found.row.0));
        if spent.is_err() {
            return ControlFlow::Break(());
        }
        found.entry.clone_into(&mut last);
        behind.rows.push(found.row.0.to_vec());
        ControlFlow::Continue(())
    })?;
    stopped.into_inner().and(spent)?;
    if looked == Looked::TooMany {
        return Err(ReadFailure::TooManyRows);
    }
    Ok(behind)
}

/// A row's place: the newest first, ties by entries backwards.
type Place = Reverse<(Bucket, Vec<u8>)>;

fn newest_across_groups(
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    query: &AggregateQuery,
    wanted: &RowsWanted,
    after: Option<&[u8]>,
) -> Result<Behind, ReadFailure> {
    let (allowance, bytes) = (Allowance::current(), bytes_of(snapshot, aggregate));
    let projection = Projection::of(query);
    let dimensions = aggregate.plan.dimensions.len();
    let time_of = |entry: &[u8]| engine::drill::time_of(entry, dimensions);
    let after: Option<Place> = after.and_then(|entry| Some(Reverse((time_of(entry)?, entry.to_vec()))));
    let mut held: Vec<(Place, Vec<u8>)> = Vec::new();
    let mut truncated = false;
    let mut shown = Vec::new();
    let (mut asked_for, mut spent) = (0u64, Ok(()));
    let stopped = Cell::new(Ok(()));
    let looked = snapshot.rows_behind(aggregate, wanted, step(&allowance, &stopped), |found: RowBehind<'_>| {
        let place = Reverse((found.time, found.entry.to_vec()));
        let asked = projection.apply(found.group, &mut shown) == Some(true);
        asked_for += u64::from(asked);
        let has_place = asked && after.as_ref().is_none_or(|after| place > *after);
        if has_place {
            spent = allowance.take(bytes(found.row.0));
            held.push((place, found.row.0.to_vec()));
        }
        if held.len() > 2 * query.limit + 1_024 {
            held.select_nth_unstable(query.limit);
            allowance.give_back(held.iter().skip(query.limit).map(|(_, row)| bytes(row)).sum());
            held.truncate(query.limit);
            truncated = true;
        }
        if spent.is_err() || asked_for > MAX_LOOKED_AT { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    stopped.into_inner().and(spent)?;
    if looked == Looked::TooMany || asked_for > MAX_LOOKED_AT {
        return Err(ReadFailure::TooManyRows);
    }
    held.sort_unstable();
    truncated |= held.len() > query.limit;
    held.truncate(query.limit);
    let next = held.last().filter(|_| truncated).map(|(Reverse((_, entry)), _)| entry.clone());
    Ok(Behind { rows: held.into_iter().map(|(_, row)| row).collect(), next })
}
