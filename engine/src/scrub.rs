//! Double entry: the cells of each Partition added up again and compared with the control total that was written beside
//! them. Loss, duplication or damage of a cell shows without asking Postgres, and reading them all has RocksDB check every
//! block's checksum.

use std::ops::ControlFlow;

use crate::aggregate::Cell;
use crate::materialization::{Aggregate, AggregateState, Bucket, Granularity};
use crate::snapshot::Snapshot;
use crate::store::codec::{self, Control};
use crate::store::{StoreError, key};

/// Where the cells of an aggregate are not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The level.
    pub granularity: Granularity,
    /// What is wrong.
    pub what: String,
}

/// Adds up all cells of a Snapshot again and compares with the control totals.
pub fn scrub(snapshot: &Snapshot) -> Result<u64, StoreError> {
    let mut checked = 0u64;
    for aggregate in snapshot.catalog().aggregates.values().filter(|a| a.state == AggregateState::Live) {
        let damage = scrub_aggregate(snapshot, aggregate, None, |cells| {
            checked = checked.saturating_add(cells);
            true
        });
        if let Some(damage) = damage {
            tracing::error!(aggregate = %aggregate.name, level = %damage.granularity, what = %damage.what, "damaged");
            return Err(StoreError::Damaged("control total: the cells of a Partition do not add up to it"));
        }
    }
    Ok(checked)
}

/// The same for one aggregate, of each level only the newest Partitions where `newest` says how many. `pace` is told how many
/// cells each Partition had, and ends it by false.
pub fn scrub_aggregate(
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    newest: Option<usize>,
    mut pace: impl FnMut(u64) -> bool,
) -> Option<Damage> {
    for (level, granularity) in aggregate.plan.levels.iter().enumerate() {
        let scrubbed = scrub_level(snapshot, aggregate, level as u8, newest, &mut pace);
        if let Err(error) = scrubbed {
            return Some(Damage { granularity: *granularity, what: error.to_string() });
        }
    }
    None
}

const UNBALANCED: StoreError = StoreError::Damaged("control total: the cells of a Partition do not add up to it");

fn scrub_level(
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    level: u8,
    newest: Option<usize>,
    pace: &mut impl FnMut(u64) -> bool,
) -> Result<(), StoreError> {
    let (view, last) = (snapshot.view(), Bucket(i64::MAX));
    // Where the next Partition may begin: what lies before it belongs to none.
    let mut from =
        Some(newest.map_or(Ok(Bucket(i64::MIN)), |count| first_of_newest(snapshot, aggregate, level, count))?);
    let all = key::controls(aggregate.id, level, from.unwrap_or(last), last);
    let mut outcome = Ok(());
    let mut ended = false;
    view.scan(&all, |stored, value| {
        let control = key::split_cell(stored).zip(codec::take_control(value));
        let (Some(((_, _, bucket, _), control)), Some(first)) = (control, from) else {
            outcome = Err(UNBALANCED);
            return ControlFlow::Break(());
        };
        outcome = sum(snapshot, aggregate, level, (first, bucket)).and_then(|(sum, buckets)| {
            let alone = buckets.is_none_or(|first| first == bucket);
            if alone && sum == control { Ok(()) } else { Err(UNBALANCED) }
        });
        from = bucket.0.checked_add(1).map(Bucket);
        ended = !pace(u64::try_from(control.cells).unwrap_or_default());
        if outcome.is_err() || ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    outcome?;
    match from.filter(|_| !ended) {
        // Beyond the last Partition there must be nothing.
        Some(from) => sum(snapshot, aggregate, level, (from, last))?.1.map_or(Ok(()), |_| Err(UNBALANCED)),
        None => Ok(()),
    }
}

/// The cells of a run of buckets added up, and the first bucket that has any.
fn sum(
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    level: u8,
    (from, to): (Bucket, Bucket),
) -> Result<(Control, Option<Bucket>), StoreError> {
    let mut sum = Control::default();
    let (mut first, mut damaged) = (None, false);
    let mut cell = Cell::default();
    snapshot.view().scan(&key::cells(aggregate.id, level, from, to), |stored, value| {
        let parts = key::split_cell(stored).zip(codec::take_cell(value, &mut cell));
        let Some(((_, _, bucket, _), _)) = parts.filter(|_| cell.rows > 0) else {
            damaged = true;
            return ControlFlow::Break(());
        };
        first.get_or_insert(bucket);
        sum.cells += 1;
        sum.total.merge_modulo(cell.rows, &cell.accumulators);
        ControlFlow::Continue(())
    })?;
    if damaged { Err(StoreError::Damaged("cell")) } else { Ok((sum, first)) }
}

/// The bucket with which the newest so many Partitions begin.
fn first_of_newest(snapshot: &Snapshot, aggregate: &Aggregate, level: u8, count: usize) -> Result<Bucket, StoreError> {
    let (mut seen, mut first) = (0, Bucket(i64::MIN));
    let all = key::controls(aggregate.id, level, Bucket(i64::MIN), Bucket(i64::MAX));
    snapshot.view().scan_back(&all, |stored, _| {
        first = key::split_cell(stored).map_or(first, |(_, _, bucket, _)| bucket);
        seen += 1;
        if seen == count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(if seen < count { Bucket(i64::MIN) } else { first })
}
