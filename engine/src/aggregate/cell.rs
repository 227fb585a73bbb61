//! All accumulators of one (aggregate, level, bucket, group).
//!
//! A cell exists while its row count is not zero: a group with `+5` and `-5` has the sum zero and still has rows, and a
//! group without rows must not appear, as `GROUP BY` would not return it.

use serde::{Deserialize, Serialize};

use super::accumulator::{Accumulator, Function};

/// Rows and accumulators of one group in one bucket; also a difference between two of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cell {
    /// Rows that passed the filter. Negative only in differences and while an aggregate is being filled.
    pub rows: i64,
    /// One per measure. Empty in the neutral element, which fits every aggregate.
    pub accumulators: Vec<Accumulator>,
}

impl Cell {
    /// Nothing accumulated yet, for the given measures.
    #[must_use]
    pub fn zero(functions: impl IntoIterator<Item = Function>) -> Cell {
        Cell { rows: 0, accumulators: functions.into_iter().map(Function::zero).collect() }
    }

    /// Adds another cell of the same measures. Returns false where a sum left 128 bits.
    pub fn merge(&mut self, rows: i64, accumulators: &[Accumulator]) -> bool {
        self.merge_with(rows, accumulators, Accumulator::merge)
    }

    /// Adds a cell of any group to a control total: sums modulo 2^128. Returns false where a count left 64 bits.
    pub fn merge_modulo(&mut self, rows: i64, accumulators: &[Accumulator]) -> bool {
        self.merge_with(rows, accumulators, Accumulator::merge_modulo)
    }

    fn merge_with(
        &mut self,
        rows: i64,
        accumulators: &[Accumulator],
        merge: impl Fn(&mut Accumulator, &Accumulator),
    ) -> bool {
        let Some(total) = self.rows.checked_add(rows) else { return false };
        self.rows = total;
        if self.accumulators.is_empty() {
            self.accumulators = accumulators.to_vec();
        } else {
            self.accumulators.iter_mut().zip(accumulators).for_each(|(a, b)| merge(a, b));
        }
        !self.accumulators.contains(&Accumulator::Overflowed)
    }

    /// True where nothing is left of what was accumulated.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.rows == 0 && self.accumulators.iter().all(Accumulator::is_zero)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::change::{Numeric, ValueRef};

    #[test]
    fn a_control_total_takes_groups_whose_sum_no_cell_could_hold() {
        let function = Function::SumNumeric { scale: 2 };
        let largest = |sign| {
            let mut cell = Cell::zero([function]);
            cell.rows = sign;
            let value = ValueRef::Numeric(Numeric::Finite { mantissa: i128::MAX, scale: 2 });
            cell.accumulators.iter_mut().for_each(|sum| function.accumulate(sum, value, sign).unwrap());
            cell
        };
        let mut total = Cell::default();
        for sign in [1, 1, 1, -1, -1, -1] {
            let group = largest(sign);
            assert!(total.merge_modulo(group.rows, &group.accumulators));
        }
        assert!(total.is_zero());
        let group = largest(1);
        assert!(total.merge(group.rows, &group.accumulators) && !total.merge(group.rows, &group.accumulators));
    }
}
