//! One measure's accumulator, of whichever function. The list of measures is [`Function`].

use std::fmt;

use serde::{Deserialize, Serialize};

use super::count::Count;
use super::float_sum::FloatSum;
use super::sum::{Special, Sum};
use crate::change::{Numeric, ValueRef};
use crate::torture::{self, Bug};

/// What is computed over which column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Function {
    /// `COUNT(*)`
    CountRows,
    /// `COUNT(column)`: values that are not NULL.
    CountValues,
    /// `SUM` of an integer column.
    SumInteger,
    /// `SUM` of a `numeric` column at a scale.
    SumNumeric {
        /// Digits after the point.
        scale: u16,
    },
    /// `SUM` of a `real` or `double precision` column.
    SumFloat,
}

/// Why a value cannot be accumulated. The aggregate then halts: it is never wrapped, rounded or left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The value, or the sum, needs more than 128 bits at the measure's scale.
    #[error("a value or a sum does not fit 128 bits")]
    Overflow,
    /// The value has more digits than 128 bits hold.
    #[error("a value has more than 38 digits")]
    Wide,
    /// The value has more digits after the point than the measure keeps.
    #[error("a value has more digits after the point than the measure's scale")]
    Scale,
    /// The value is not of the column's type.
    #[error("a value is not of the column's type")]
    Type,
}

/// What is kept for one measure of one cell. Ordered because differential sorts what it consolidates; the order has no
/// meaning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Accumulator {
    /// For both counts.
    Count(Count),
    /// For integers and decimals.
    Sum(Sum),
    /// For doubles.
    FloatSum(Box<FloatSum>),
    /// A sum left 128 bits. Absorbs everything; whoever stores it halts the aggregate instead.
    Overflowed,
}

impl Function {
    /// Nothing accumulated yet.
    #[must_use]
    pub fn zero(self) -> Accumulator {
        match self {
            Function::CountRows | Function::CountValues => Accumulator::Count(Count::default()),
            Function::SumInteger | Function::SumNumeric { .. } => Accumulator::Sum(Sum::default()),
            Function::SumFloat => Accumulator::FloatSum(Box::default()),
        }
    }

    /// Adds (`sign` 1) or removes (`sign` -1) one row's value. NULL counts for `COUNT(*)` only.
    #[inline]
    pub fn accumulate(self, into: &mut Accumulator, value: ValueRef<'_>, sign: i64) -> Result<(), Misfit> {
        match (into, self) {
            (Accumulator::Count(count), Function::CountRows) => {
                count.0 = count.0.checked_add(sign).ok_or(Misfit::Overflow)?;
                Ok(())
            }
            (_, _) if matches!(value, ValueRef::Null) => Ok(()),
            (Accumulator::Count(count), Function::CountValues) => {
                count.0 = count.0.checked_add(sign).ok_or(Misfit::Overflow)?;
                Ok(())
            }
            (Accumulator::Sum(sum), Function::SumInteger) => match value {
                ValueRef::Int(v) => sum.add_finite(i128::from(v), sign).ok_or(Misfit::Overflow),
                _ => Err(Misfit::Type),
            },
            (Accumulator::Sum(sum), Function::SumNumeric { scale }) => accumulate_numeric(sum, value, scale, sign),
            (Accumulator::FloatSum(sum), Function::SumFloat) => match value {
                ValueRef::Float(v) => sum.add(v, sign).ok_or(Misfit::Overflow),
                _ => Err(Misfit::Type),
            },
            (Accumulator::Overflowed, _) => Err(Misfit::Overflow),
            _ => Err(Misfit::Type),
        }
    }

    /// The number to show.
    #[must_use]
    pub fn finish(self, accumulator: &Accumulator) -> MeasureValue {
        match accumulator {
            Accumulator::Count(count) => MeasureValue::Integer(i128::from(count.0)),
            Accumulator::Sum(sum) if sum.values == 0 => MeasureValue::Null,
            Accumulator::Sum(sum) => match (sum.specials.as_ref().and_then(|s| s.finish()), self) {
                (Some(special), _) => MeasureValue::Special(special),
                (None, Function::SumNumeric { scale }) => MeasureValue::Decimal { mantissa: sum.finite, scale },
                (None, _) => MeasureValue::Integer(sum.finite),
            },
            Accumulator::FloatSum(sum) if sum.values == 0 => MeasureValue::Null,
            Accumulator::FloatSum(sum) => MeasureValue::Float(sum.finish()),
            Accumulator::Overflowed => MeasureValue::Null,
        }
    }
}

fn accumulate_numeric(sum: &mut Sum, value: ValueRef<'_>, scale: u16, sign: i64) -> Result<(), Misfit> {
    let special = match value {
        ValueRef::Numeric(Numeric::Finite { mantissa, scale: from }) => {
            let value = if from == scale {
                mantissa
            } else {
                let misfit = if from > scale { Misfit::Scale } else { Misfit::Overflow };
                Numeric::rescale(mantissa, from, scale).ok_or(misfit)?
            };
            return sum.add_finite(value, sign).ok_or(Misfit::Overflow);
        }
        ValueRef::Numeric(Numeric::NaN) => Special::NaN,
        ValueRef::Numeric(Numeric::PositiveInfinity) => Special::Positive,
        ValueRef::Numeric(Numeric::NegativeInfinity) => Special::Negative,
        ValueRef::Opaque(_) => return Err(Misfit::Wide),
        _ => return Err(Misfit::Type),
    };
    sum.add_special(special, sign).ok_or(Misfit::Overflow)
}

impl Accumulator {
    /// Adds another accumulator of the same function. A sum that leaves 128 bits becomes `Overflowed` and stays so.
    pub fn merge(&mut self, other: &Accumulator) {
        let fits = match (&mut *self, other) {
            (Accumulator::Count(a), Accumulator::Count(b)) => a.merge(*b).map(|sum| *a = sum),
            (Accumulator::Sum(a), Accumulator::Sum(b)) => {
                let fits = a.merge(b);
                if torture::planted(Bug::AddsDoubles) {
                    a.finite = torture::through_a_double(a.finite);
                }
                fits
            }
            (Accumulator::FloatSum(a), Accumulator::FloatSum(b)) => a.merge(b),
            _ => None,
        };
        if fits.is_none() {
            *self = Accumulator::Overflowed;
        }
    }

    /// The same modulo 2^128, for control totals: the sum over many groups leaves 128 bits where none of theirs does.
    pub fn merge_modulo(&mut self, other: &Accumulator) {
        match (&mut *self, other) {
            (Accumulator::Sum(a), Accumulator::Sum(b)) => {
                if a.merge_modulo(b).is_none() {
                    *self = Accumulator::Overflowed;
                }
            }
            _ => self.merge(other),
        }
    }

    /// True where nothing is left of what was accumulated.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        match self {
            Accumulator::Count(count) => count.0 == 0,
            Accumulator::Sum(sum) => sum.is_zero(),
            Accumulator::FloatSum(sum) => sum.is_zero(),
            Accumulator::Overflowed => false,
        }
    }

    /// The additive inverse.
    #[must_use]
    pub fn negate(&self) -> Accumulator {
        match self {
            Accumulator::Count(count) => count.0.checked_neg().map(|v| Accumulator::Count(Count(v))),
            Accumulator::Sum(sum) => sum.negate().map(Accumulator::Sum),
            Accumulator::FloatSum(sum) => Some(Accumulator::FloatSum(Box::new(sum.negate()))),
            Accumulator::Overflowed => None,
        }
        .unwrap_or(Accumulator::Overflowed)
    }
}

/// A finished measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MeasureValue {
    /// SQL NULL: the sum of no values.
    Null,
    /// A count, or a sum of integers.
    Integer(i128),
    /// A sum of decimals: `mantissa * 10^-scale`.
    Decimal {
        /// All digits.
        mantissa: i128,
        /// Digits after the point.
        scale: u16,
    },
    /// A sum of doubles.
    Float(f64),
    /// A sum of decimals that is not a number.
    Special(Special),
}

/// As Postgres prints it: `-12.50`, `NaN`, `Infinity`; NULL prints as nothing.
impl fmt::Display for MeasureValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            MeasureValue::Null => Ok(()),
            MeasureValue::Integer(v) => write!(f, "{v}"),
            MeasureValue::Decimal { mantissa, scale } => write_decimal(f, mantissa, scale),
            MeasureValue::Float(v) if v.is_nan() => f.write_str("NaN"),
            MeasureValue::Float(f64::INFINITY) | MeasureValue::Special(Special::Positive) => f.write_str("Infinity"),
            MeasureValue::Float(f64::NEG_INFINITY) | MeasureValue::Special(Special::Negative) => {
                f.write_str("-Infinity")
            }
            MeasureValue::Float(v) => write!(f, "{v}"),
            MeasureValue::Special(Special::NaN) => f.write_str("NaN"),
        }
    }
}

/// Writes `mantissa * 10^-scale` with exactly `scale` digits after the point.
pub fn write_decimal(f: &mut impl fmt::Write, mantissa: i128, scale: u16) -> fmt::Result {
    let scale = usize::from(scale);
    if mantissa < 0 {
        f.write_char('-')?;
    }
    let digits = mantissa.unsigned_abs().to_string();
    match digits.len().checked_sub(scale).filter(|whole| *whole > 0) {
        Some(whole) => {
            let (whole, fraction) = digits.split_at(whole);
            f.write_str(whole)?;
            if scale > 0 { write!(f, ".{fraction}") } else { Ok(()) }
        }
        None => write!(f, "0.{digits:0>scale$}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn decimals_print_with_their_scale() {
        for (mantissa, scale, text) in
            [(0, 0, "0"), (0, 2, "0.00"), (-5, 2, "-0.05"), (12_345, 2, "123.45"), (-100, 2, "-1.00"), (7, 0, "7")]
        {
            assert_eq!(MeasureValue::Decimal { mantissa, scale }.to_string(), text);
        }
    }

    #[test]
    fn a_sum_of_nulls_is_null_and_nan_can_be_taken_back() {
        let function = Function::SumNumeric { scale: 2 };
        let mut sum = function.zero();
        function.accumulate(&mut sum, ValueRef::Null, 1).unwrap();
        assert_eq!(function.finish(&sum), MeasureValue::Null);
        let amount = ValueRef::Numeric(Numeric::Finite { mantissa: 125, scale: 1 });
        let nan = ValueRef::Numeric(Numeric::NaN);
        function.accumulate(&mut sum, amount, 1).unwrap();
        function.accumulate(&mut sum, nan, 1).unwrap();
        assert_eq!(function.finish(&sum).to_string(), "NaN");
        function.accumulate(&mut sum, nan, -1).unwrap();
        assert_eq!(function.finish(&sum).to_string(), "12.50");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let function = Function::SumNumeric { scale: 2 };
        let mut sum = function.zero();
        let value = |mantissa, scale| ValueRef::Numeric(Numeric::Finite { mantissa, scale });
        assert_eq!(function.accumulate(&mut sum, value(1_234, 3), 1), Err(Misfit::Scale));
        assert_eq!(function.accumulate(&mut sum, value(1_230, 3), 1), Ok(()));
        assert_eq!(function.accumulate(&mut sum, value(i128::MAX, 0), 1), Err(Misfit::Overflow));
        let mut full = Accumulator::Sum(Sum { finite: i128::MAX, values: 1, specials: None });
        full.merge(&sum);
        assert_eq!(full, Accumulator::Overflowed);
    }
}
