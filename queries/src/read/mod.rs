//! Reads the cells of a plan from one Snapshot and merges them into rows. Nothing here knows how answers are written down.

/// What one request may take.
pub mod allowance;
/// The rows behind a total.
pub mod behind;
/// Where cells come from.
pub mod cells;
/// The groups of one bucket being merged.
mod groups;
/// From the groups stored to the groups asked for.
pub mod projection;
/// The first rows of any order.
mod ranking;
/// Merges cells into rows.
pub mod reader;
/// How many bytes rows take.
mod size;

pub use allowance::Allowance;
pub use behind::{Behind, can_follow, rows_behind, rows_of_cell};
pub use cells::{CellMap, Cells};
pub use reader::{Answer, Before, ReadFailure, Row, read};
