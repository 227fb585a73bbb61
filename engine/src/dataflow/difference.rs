//! The accumulators as differential's differences, so that the very types that are stored also work in a differential
//! collection: in joins with reference tables, and as the independent implementation that tests compare with.

use differential_dataflow::difference::{Abelian, IsZero, Monoid, Semigroup};

use crate::aggregate::{Accumulator, Cell};

impl IsZero for Cell {
    fn is_zero(&self) -> bool {
        Cell::is_zero(self)
    }
}

impl Semigroup for Cell {
    /// A sum that leaves 128 bits shows as `Accumulator::Overflowed` and stays so.
    fn plus_equals(&mut self, other: &Self) {
        if other.accumulators.is_empty() {
            self.rows = self.rows.saturating_add(other.rows);
        } else {
            self.merge(other.rows, &other.accumulators);
        }
    }
}

impl Monoid for Cell {
    fn zero() -> Self {
        Cell::default()
    }
}

impl Abelian for Cell {
    fn negate(&mut self) {
        self.rows = self.rows.wrapping_neg();
        self.accumulators.iter_mut().for_each(|accumulator| *accumulator = Accumulator::negate(accumulator));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use differential_dataflow::input::Input;
    use proptest::prelude::*;

    use super::*;
    use crate::aggregate::Function;
    use crate::change::{Numeric, ValueRef};

    const FUNCTIONS: [Function; 3] = [Function::CountRows, Function::SumNumeric { scale: 2 }, Function::SumFloat];

    fn cell(cents: i64, weight: f64, sign: i64) -> Cell {
        let mut cell = Cell::zero(FUNCTIONS);
        cell.rows = sign;
        let amount = ValueRef::Numeric(Numeric::Finite { mantissa: i128::from(cents), scale: 2 });
        for ((function, accumulator), value) in
            FUNCTIONS.iter().zip(&mut cell.accumulators).zip([ValueRef::Null, amount, ValueRef::Float(weight)])
        {
            function.accumulate(accumulator, value, sign).unwrap();
        }
        cell
    }

    /// What a differential collection of these rows consolidates to.
    fn by_differential(rows: Vec<(u8, Cell)>) -> BTreeMap<u8, Cell> {
        let consolidated = Arc::new(Mutex::new(BTreeMap::new()));
        let seen = Arc::clone(&consolidated);
        timely::execute_directly(move |worker| {
            let mut input = worker.dataflow::<u64, _, _>(|scope| {
                let (input, groups) = scope.new_collection::<u8, Cell>();
                groups.consolidate().inspect(move |(group, _, cell)| {
                    seen.lock().unwrap().insert(*group, cell.clone());
                });
                input
            });
            for (group, cell) in rows {
                input.update(group, cell);
            }
        });
        Arc::try_unwrap(consolidated).unwrap().into_inner().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The same rows, added by differential and one after the other; negated ones cancel.
        #[test]
        fn a_differential_collection_adds_cells_up(
            rows in prop::collection::vec((0u8..4, -1_000i64..1_000, -8i8..8, any::<bool>()), 0..60),
        ) {
            let mut expected: BTreeMap<u8, Cell> = BTreeMap::new();
            let mut updates = Vec::new();
            for (group, cents, eighths, undone) in rows {
                let row = cell(cents, f64::from(eighths) * 0.1, 1);
                if undone {
                    let mut undo = row.clone();
                    undo.negate();
                    updates.push((group, undo));
                } else {
                    expected.entry(group).or_insert_with(<Cell as Monoid>::zero).plus_equals(&row);
                }
                updates.push((group, row));
            }
            prop_assert_eq!(by_differential(updates), expected);
        }
    }
}
