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
