//! Cells compared with what they should be: with Postgres' own `GROUP BY` at exactly the same position, while everyone goes
//! on writing; or with the row images of the same Snapshot.
//!
//! ```text
//! watch the ends of transactions
//! temporary slot, its exported snapshot -> position L;  our Snapshot of exactly L
//! per aggregate and level:   Postgres' rows, ordered by our key   |
//!                            our cells, in the order of the key   |-> merge: equal, or a key with both values
//! ```
//!
//! Both sides stream, so memory does not grow with the number of cells.

/// The buckets that are compared.
pub mod bucket_range;
/// The merge.
pub mod comparison;
/// What a cell should be.
pub mod expected;
/// A level as a query.
pub mod statement;
/// Who recomputes totals upstream.
pub mod upstream;
/// From what is asked to what was found.
pub mod verification;

pub use bucket_range::Range;
pub use comparison::{Difference, Tally};
pub use upstream::{Recounting, TextRow, Upstream};
pub use verification::{Against, Scope, Skipped, Unverified, Verification, Verified, verify};
