//! The algebra of measures: accumulate, retract, merge, finish. Pure: no dataflow, no store, no clock, no panic.
//!
//! ```text
//! accumulate(v) then retract(v) = nothing, exactly, in any order        (also NaN, infinities and doubles)
//! merge is commutative and associative; the zero is neutral
//! finish(merge(a, b)) = what Postgres answers over the rows of both
//! ```
//!
//! What is stored is the accumulator, never the finished number, so months merge into years.

#![deny(clippy::arithmetic_side_effects, clippy::float_arithmetic, clippy::cast_possible_truncation)]

/// One measure's accumulator, of whichever function.
pub mod accumulator;
/// All accumulators of one cell.
pub mod cell;
/// Non-NULL values or rows counted.
pub mod count;
/// Exact sums over doubles.
#[allow(
    clippy::arithmetic_side_effects,
    clippy::float_arithmetic,
    clippy::cast_possible_truncation,
    reason = "words of 32 bits in 64 with room for the carries; overflow-checks hold it at run time"
)]
pub mod float_sum;
/// Exact sums over integers and decimals.
pub mod sum;

pub use accumulator::{Accumulator, Function, MeasureValue, Misfit};
pub use cell::Cell;
