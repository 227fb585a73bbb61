//! The engine: change events in, stored cells out.
//!
//! The modules stand in the order of the flow. `ARCHITECTURE.md` beside this crate has the drawing and the invariants.

/// What happened upstream, as data.
pub mod change;
/// The port that connectors implement.
pub mod source;
