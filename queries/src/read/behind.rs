//! The rows behind a total, newest first. Of one whole group as many are read as are shown; across groups all entries of the
//! range are looked at, and there is a limit to that.

use std::cmp::Reverse;
use std::ops::ControlFlow;

use engine::Snapshot;
use engine::drill::{RowBehind, RowsWanted};
use engine::materialization::{Aggregate, Bucket, group_key};

use super::projection::Projection;
use super::reader::{ReadFailure, Row};
use crate::query::AggregateQuery;

/// Most rows looked at to find the newest across groups.
pub const MAX_LOOKED_AT: u64 = 200_000;

/// The rows of a page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Behind {
    /// Rows as they are stored, newest first; ties by the entries of the index, backwards.
    pub rows: Vec<Vec<u8>>,
    /// The last one's entry, where there are more.
    pub next: Option<Vec<u8>>,
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
        let wanted = RowsWanted { group_prefix, whole_group, from, to, after };
        return newest_of_group(snapshot, aggregate, &wanted, query.limit);
    }
    let wanted = RowsWanted { group_prefix, whole_group, from, to, after: None };
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
    newest_of_group(snapshot, aggregate, &RowsWanted { group_prefix, whole_group: true, from, to, after: None }, limit)
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

fn newest_of_group(
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    wanted: &RowsWanted,
    limit: usize,
) -> Result<Behind, ReadFailure> {
    let mut behind = Behind::default();
    let mut last = Vec::new();
    snapshot.rows_behind(aggregate, wanted, |found| {
        if behind.rows.len() == limit {
            behind.next = Some(std::mem::take(&mut last));
            return ControlFlow::Break(());
        }
        found.entry.clone_into(&mut last);
        behind.rows.push(found.row.0.to_vec());
        ControlFlow::Continue(())
    })?;
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
    let projection = Projection::of(query);
    let dimensions = aggregate.plan.dimensions.len();
    let time_of = |entry: &[u8]| engine::drill::time_of(entry, dimensions);
    let after: Option<Place> = after.and_then(|entry| Some(Reverse((time_of(entry)?, entry.to_vec()))));
    let mut held: Vec<(Place, Vec<u8>)> = Vec::new();
    let mut looked_at = 0u64;
    let mut truncated = false;
    let mut shown = Vec::new();
    snapshot.rows_behind(aggregate, wanted, |found: RowBehind<'_>| {
        looked_at += 1;
        if looked_at > MAX_LOOKED_AT {
            return ControlFlow::Break(());
        }
        let place = Reverse((found.time, found.entry.to_vec()));
        let asked = projection.apply(found.group, &mut shown) == Some(true);
        if asked && after.as_ref().is_none_or(|after| place > *after) {
            held.push((place, found.row.0.to_vec()));
        }
        if held.len() > 2 * query.limit + 1_024 {
            held.select_nth_unstable(query.limit);
            held.truncate(query.limit);
            truncated = true;
        }
        ControlFlow::Continue(())
    })?;
    if looked_at > MAX_LOOKED_AT {
        return Err(ReadFailure::TooManyRows);
    }
    held.sort_unstable();
    truncated |= held.len() > query.limit;
    held.truncate(query.limit);
    let next = held.last().filter(|_| truncated).map(|(Reverse((_, entry)), _)| entry.clone());
    Ok(Behind { rows: held.into_iter().map(|(_, row)| row).collect(), next })
}
