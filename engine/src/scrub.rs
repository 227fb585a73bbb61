//! Double entry: all cells added up again and compared with the control totals that were written beside them. Loss,
//! duplication or damage of a cell shows without asking Postgres.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::aggregate::Cell;
use crate::materialization::AggregateState;
use crate::snapshot::Snapshot;
use crate::store::codec::{self, Control};
use crate::store::{KeyKind, StoreError, key};

/// Adds up all cells of a Snapshot again and compares with the control totals.
pub fn scrub(snapshot: &Snapshot) -> Result<u64, StoreError> {
    let mut checked = 0u64;
    for aggregate in snapshot.catalog().aggregates.values().filter(|a| a.state == AggregateState::Live) {
        let mut sums: BTreeMap<Vec<u8>, Control> = BTreeMap::new();
        let mut damaged = false;
        let mut cell = Cell::default();
        snapshot.view().scan(&key::of_aggregate(KeyKind::Cell, aggregate.id), |stored, value| {
            let parts = key::split_cell(stored).zip(codec::take_cell(value, &mut cell));
            let Some(((id, level, bucket, _), _)) = parts.filter(|_| cell.rows > 0) else {
                damaged = true;
                return ControlFlow::Break(());
            };
            let sum = sums.entry(key::control(id, level, bucket)).or_default();
            sum.cells += 1;
            sum.total.merge(cell.rows, &cell.accumulators);
            checked += 1;
            ControlFlow::Continue(())
        })?;
        let mut controls: BTreeMap<Vec<u8>, Control> = BTreeMap::new();
        snapshot.view().scan(&key::of_aggregate(KeyKind::Control, aggregate.id), |stored, value| {
            match codec::take_control(value) {
                Some(control) => {
                    controls.insert(stored.to_vec(), control);
                    ControlFlow::Continue(())
                }
                None => {
                    damaged = true;
                    ControlFlow::Break(())
                }
            }
        })?;
        if damaged || sums != controls {
            return Err(StoreError::Damaged("control total: the cells of a Partition do not add up to it"));
        }
    }
    Ok(checked)
}
