//! The algebra of measures: accumulate, retract, merge, finish. Pure: no dataflow, no store, no clock, no panic.
//!
//! ```text
//! accumulate(v) then retract(v) = nothing, exactly, in any order        (also NaN, infinities and doubles)
//! merge is commutative and associative; the zero is neutral
//! finish(merge(a, b)) = what Postgres answers over the rows of both
//! ```
//!
//! What is stored is the accumulator, never the finished number, so months merge into years.

/// One measure's accumulator, of whichever function.
pub mod accumulator;
/// All accumulators of one cell.
pub mod cell;
/// Non-NULL values or rows counted.
pub mod count;
/// Exact sums over doubles.
pub mod float_sum;
/// Exact sums over integers and decimals.
pub mod sum;

pub use accumulator::{Accumulator, Function, MeasureValue, Misfit};
pub use cell::Cell;
