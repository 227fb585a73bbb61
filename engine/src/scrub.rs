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

/// Cells after which whoever paces it is asked again: a Partition may have millions.
const STRETCH: u64 = 10_000;

/// The same for one aggregate, of each level only the newest Partitions where `newest` says how many. `pace` is told every now
/// and then how many cells were read since the last time, and ends it by false.
pub fn scrub_aggregate(
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    newest: Option<usize>,
    mut pace: impl FnMut(u64) -> bool,
) -> Option<Damage> {
    for (level, granularity) in aggregate.plan.levels.iter().enumerate() {
        match scrub_level(snapshot, aggregate, level as u8, newest, &mut pace) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => return Some(Damage { granularity: *granularity, what: error.to_string() }),
        }
    }
    None
}

const UNBALANCED: StoreError = StoreError::Damaged("control total: the cells of a Partition do not add up to it");

/// Whether it is to go on.
fn scrub_level(
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    level: u8,
    newest: Option<usize>,
    pace: &mut impl FnMut(u64) -> bool,
) -> Result<bool, StoreError> {
    let (view, last) = (snapshot.view(), Bucket(i64::MAX));
    // Where the next Partition may begin: what lies before it belongs to none.
    let mut from =
        Some(newest.map_or(Ok(Bucket(i64::MIN)), |count| first_of_newest(snapshot, aggregate, level, count))?);
    let all = key::controls(aggregate.id, level, from.unwrap_or(last), last);
    // Whether all was right so far, and it is to go on.
    let mut outcome = Ok(true);
    view.scan(&all, |stored, value| {
        let control = key::split_cell(stored).zip(codec::take_control(value));
        let (Some(((_, _, bucket, _), control)), Some(first)) = (control, from) else {
            outcome = Err(UNBALANCED);
            return ControlFlow::Break(());
        };
        outcome = sum(snapshot, aggregate, level, (first, bucket), pace).and_then(|sum| {
            let Some((sum, buckets)) = sum else { return Ok(false) };
            let alone = buckets.is_none_or(|first| first == bucket);
            if alone && sum == control { Ok(true) } else { Err(UNBALANCED) }
        });
        from = bucket.0.checked_add(1).map(Bucket);
        if matches!(outcome, Ok(true)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    match from.filter(|_| outcome.as_ref().is_ok_and(|goes_on| *goes_on)) {
        // Beyond the last Partition there must be nothing.
        Some(from) => match sum(snapshot, aggregate, level, (from, last), pace)? {
            Some((_, Some(_))) => Err(UNBALANCED),
            beyond => Ok(beyond.is_some()),
        },
        None => outcome,
    }
}

/// The cells of a run of buckets added up, and the first bucket that has any; nothing where `pace` ended it.
fn sum(
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    level: u8,
    (from, to): (Bucket, Bucket),
    pace: &mut impl FnMut(u64) -> bool,
) -> Result<Option<(Control, Option<Bucket>)>, StoreError> {
    let mut sum = Control::default();
    let (mut first, mut damaged, mut ended) = (None, false, false);
    let mut stretch = 0;
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
        stretch += 1;
        if stretch == STRETCH {
            stretch = 0;
            ended = !pace(STRETCH);
        }
        if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if damaged {
        return Err(StoreError::Damaged("cell"));
    }
    Ok((!ended && pace(stretch)).then_some((sum, first)))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::materialization::{AggregateId, Catalog, Plan};
    use crate::snapshot::{AsOf, cell_key};
    use crate::store::{Batch, Store, StoreMemory};

    /// Two Partitions of so many cells each, and one cell too few in the newer one where it `lacks` one.
    fn snapshot(lacks: bool) -> (Snapshot, Aggregate, tempfile::TempDir) {
        const CELLS: u64 = 3 * STRETCH;
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), StoreMemory { block_cache: 1 << 20, write_buffer: 1 << 20 }).unwrap();
        let id = AggregateId(1);
        let (mut batch, mut value) = (Batch::default(), Vec::new());
        for bucket in [Bucket(0), Bucket(1)] {
            let mut control = Control::default();
            for group in 0..CELLS {
                let cell = Cell { rows: 2, accumulators: Vec::new() };
                control.cells += 1;
                control.total.merge_modulo(cell.rows, &cell.accumulators);
                value.clear();
                codec::put_cell(&mut value, 1, &cell);
                if !(lacks && bucket.0 == 1 && group == 5) {
                    batch.put(&cell_key(id, 0, bucket, &group.to_be_bytes()), &value);
                }
            }
            value.clear();
            codec::put_control(&mut value, 1, &control);
            batch.put(&key::control(id, 0, bucket), &value);
        }
        store.write(batch).unwrap();
        let definition = serde_json::from_value(json!({"table": "payments", "measures": []})).unwrap();
        let plan = Arc::new(Plan::unresolved());
        let (name, state) = ("a".to_owned(), AggregateState::Live);
        let aggregate = Aggregate { id, name, version: 1, definition, plan, state };
        let snapshot = Snapshot::new(AsOf::default(), Arc::new(Catalog::default()), store.view(), Arc::default());
        (snapshot, aggregate, directory)
    }

    #[test]
    fn it_ends_anywhere_and_calls_nothing_damaged_that_it_did_not_read() {
        for newest in [None, Some(1), Some(2)] {
            let (right, aggregate, _directory) = snapshot(false);
            let (wrong, ..) = snapshot(true);
            let run = |snapshot: &Snapshot, stretches: usize| {
                let mut left = stretches;
                let found = scrub_aggregate(snapshot, &aggregate, newest, |cells| {
                    assert!(cells <= STRETCH);
                    left = left.saturating_sub(1);
                    left > 0
                });
                (found.is_some(), left)
            };
            let whole = 100 - run(&right, 100).1;
            assert!(whole > 3, "{whole} stretches");
            for stretches in 1..=whole {
                assert!(!run(&right, stretches).0, "ended after {stretches} of {whole}, newest {newest:?}");
            }
            assert!(run(&wrong, whole).0 && !run(&wrong, 1).0, "newest {newest:?}");
        }
    }
}
