//! Reads the cells of a plan from one Snapshot and merges them into rows. Nothing here knows how answers are written down.

/// Where cells come from.
pub mod cells;
/// From the groups stored to the groups asked for.
pub mod projection;
/// Merges cells into rows.
pub mod reader;

pub use cells::Cells;
pub use reader::{Answer, ReadFailure, Row, read};
