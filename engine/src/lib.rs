//! The engine: change events in, stored cells out.
//!
//! The modules stand in the order of the flow. `ARCHITECTURE.md` beside this crate has the drawing and the invariants.

/// The algebra of measures.
pub mod aggregate;
/// What happened upstream, as data.
pub mod change;
/// The engine as others see it.
pub mod engine;
/// What a user asked us to keep.
pub mod materialization;
/// What a reader sees.
pub mod snapshot;
/// The port that connectors implement.
pub mod source;

pub use engine::Engine;
pub use snapshot::Snapshot;
