//! From a total to the rows behind it: an index of the row images by group and time, for the aggregates that ask for it.
//!
//! ```text
//! row index  [11] aggregate u32, group tuple, time i64, part u32, primary key   ->   nothing
//! row        [10] part u32, primary key                                        ->   row image
//! ```
//!
//! The surprise: an entry is a hint. Every row that counts has one, written in the same batch as its row image; but an entry
//! may outlive its row (a late registration fills the index from a view while the stream goes on). So whoever reads computes
//! the entry of the row image again, and passes over those that differ. Nothing is missing and nothing is shown wrongly.

use std::ops::ControlFlow;

use crate::change::{RowRef, TableId, ValueRef};
use crate::materialization::group_key::{self, flip_i64};
use crate::materialization::{Aggregate, AggregateId, Bucket, Plan};
use crate::row_image::push_row_key;
use crate::snapshot::{ReadError, Snapshot};
use crate::store::{KeyKind, Range, StoreError, key};

/// Length of the part of an entry before the group.
const PREFIX: usize = 1 + 4;
const TIME: usize = 8;

/// Writes the entry of a row into `into`. False where the row does not count, or cannot name a group (the aggregate halts
/// for that elsewhere).
pub fn encode(into: &mut Vec<u8>, id: AggregateId, plan: &Plan, row: &[ValueRef<'_>], row_key: &[u8]) -> bool {
    into.clear();
    if plan.filter.as_ref().is_some_and(|filter| !filter.accepts(row)) {
        return false;
    }
    key::push_of_aggregate(into, KeyKind::RowIndex, id);
    for dimension in &plan.dimensions {
        let Some(value) = row.get(dimension.column) else { return false };
        if group_key::push(into, *value).is_err() {
            return false;
        }
    }
    let time = match &plan.time {
        None => Some(Bucket::ALL.0),
        Some(time) => row.get(time.column).and_then(|value| time.instant(*value)),
    };
    let Some(time) = time else { return false };
    into.extend_from_slice(&flip_i64(time));
    // The row's own key, without its kind.
    into.extend_from_slice(row_key.get(1..).unwrap_or_default());
    true
}

/// An entry, cut into its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry<'k> {
    group: &'k [u8],
    time: Bucket,
    /// Of the row image, without its kind.
    row: &'k [u8],
}

fn split(stored: &[u8], dimensions: usize) -> Option<Entry<'_>> {
    let rest = stored.get(PREFIX..)?;
    let end = group_key::length_of(rest, dimensions)?;
    let (group, rest) = rest.split_at_checked(end)?;
    let (time, row) = rest.split_first_chunk::<TIME>()?;
    Some(Entry { group, time: Bucket(group_key::unflip_i64(*time)), row })
}

/// The time of an entry; `None` where it is not one.
#[must_use]
pub fn time_of(entry: &[u8], dimensions: usize) -> Option<Bucket> {
    Some(split(entry, dimensions)?.time)
}

/// Which rows are wanted: of groups that begin with these bytes, with a time in `from..to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowsWanted {
    /// The first dimensions of the group, encoded; all of them, or as many as are known.
    pub group_prefix: Vec<u8>,
    /// The prefix is a whole group: rows come newest first, and only as many as are taken are read.
    pub whole_group: bool,
    /// First time inside.
    pub from: Bucket,
    /// Last time inside.
    pub to: Bucket,
    /// The last entry of the page before.
    pub after: Option<Vec<u8>>,
}

/// A row behind a total.
#[derive(Clone, Copy, Debug)]
pub struct RowBehind<'r> {
    /// Its entry, which says where to go on.
    pub entry: &'r [u8],
    /// Its group.
    pub group: &'r [u8],
    /// Its time.
    pub time: Bucket,
    /// Its columns.
    pub row: RowRef<'r>,
}

impl Snapshot {
    /// Visits the rows that an aggregate's cells are made of. Of a whole group newest first, and ties by primary key;
    /// otherwise group by group, oldest first.
    pub fn rows_behind(
        &self,
        aggregate: &Aggregate,
        wanted: &RowsWanted,
        mut visit: impl FnMut(RowBehind<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let dimensions = aggregate.plan.dimensions.len();
        let mut failure = None;
        let mut look = |stored: &[u8]| {
            let Some(entry) = split(stored, dimensions) else {
                failure = Some(StoreError::Damaged("row index"));
                return ControlFlow::Break(());
            };
            if entry.time < wanted.from || entry.time > wanted.to {
                return ControlFlow::Continue(());
            }
            match self.row_of(aggregate, stored, entry, &mut visit) {
                Ok(flow) => flow,
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        let mut from = Vec::with_capacity(PREFIX + wanted.group_prefix.len() + TIME);
        key::push_of_aggregate(&mut from, KeyKind::RowIndex, aggregate.id);
        from.extend_from_slice(&wanted.group_prefix);
        if wanted.whole_group {
            let to = match &wanted.after {
                Some(after) => after.clone(),
                None => Range::prefix([from.as_slice(), &flip_i64(wanted.to.0)].concat()).to,
            };
            from.extend_from_slice(&flip_i64(wanted.from.0));
            self.view().scan_back(&Range { from, to }, |stored, _| look(stored))?;
        } else {
            let mut range = Range::prefix(from);
            if let Some(after) = &wanted.after {
                range.from = [after.as_slice(), &[0]].concat();
            }
            self.view().scan(&range, |stored, _| look(stored))?;
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Shows the row of an entry, if the entry is still that of its row.
    fn row_of(
        &self,
        aggregate: &Aggregate,
        stored: &[u8],
        entry: Entry<'_>,
        visit: &mut impl FnMut(RowBehind<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, StoreError> {
        let mut row_key = vec![KeyKind::Row as u8];
        row_key.extend_from_slice(entry.row);
        let shown = self.view().get_with(&row_key, |image| {
            let mut values = Vec::new();
            let row = RowRef(image);
            if row.decode_into(&mut values).is_err() {
                return None;
            }
            let mut own = Vec::with_capacity(stored.len());
            let counts = encode(&mut own, aggregate.id, &aggregate.plan, &values, &row_key);
            if !counts || own != stored {
                return Some(ControlFlow::Continue(()));
            }
            Some(visit(RowBehind { entry: stored, group: entry.group, time: entry.time, row }))
        })?;
        match shown {
            None => Ok(ControlFlow::Continue(())),
            Some(None) => Err(StoreError::Damaged("row image")),
            Some(Some(flow)) => Ok(flow),
        }
    }
}

/// What rows that appear (sign 1) and go away (sign -1) change in the index of one aggregate: each entry with whether it is
/// put or removed, in the order of the rows; the last word on an entry counts.
pub fn changes<'r>(
    aggregate: &Aggregate,
    primary_key: &[usize],
    rows: impl Iterator<Item = (i8, TableId, RowRef<'r>)>,
    mut change: impl FnMut(&[u8], bool),
) {
    let mut values = Vec::new();
    let (mut row_key, mut entry) = (Vec::new(), Vec::new());
    for (sign, part, row) in rows {
        values.clear();
        let decoded =
            row.decode_into(&mut values).is_ok() && push_row_key(&mut row_key, part, primary_key, row).is_some();
        if decoded && encode(&mut entry, aggregate.id, &aggregate.plan, &values, &row_key) {
            change(&entry, sign > 0);
        }
    }
}
