//! The engine: change events in, stored cells out.
//!
//! The modules stand in the order of the flow. `ARCHITECTURE.md` beside this crate has the drawing and the invariants.

/// The algebra of measures.
pub mod aggregate;
/// Copies of a running store, and data directories made of them.
pub mod backup;
/// Snapshots of positions that are known only afterwards.
pub mod boundary;
/// What happened upstream, as data.
pub mod change;
/// The one write path.
pub mod commit;
/// Whole upstream transactions that become visible together.
pub mod commit_group;
/// Rows in, write sets out.
pub mod dataflow;
/// From a total to the rows behind it.
pub mod drill;
/// What survives a crash.
pub mod durable;
/// The engine as others see it.
pub mod engine;
/// Late registrations filled from the row images.
pub mod fill;
/// Space on the disk of the store.
pub mod free_space;
/// What keeps something from starting.
pub mod hindrance;
/// What a user asked us to keep.
pub mod materialization;
/// Threads and channels.
pub mod pipeline;
/// What is visible and what is durable.
pub mod published;
/// Cells added up anew from the row images.
pub mod recount;
/// The callers' way to the sequencer.
pub mod requests;
/// The last known row per primary key.
pub mod row_image;
/// A sample of a table, and what an aggregate over it would be.
pub mod sample;
/// Cells against their control totals.
pub mod scrub;
/// The thread that scrubs.
pub mod scrubber;
/// The one order of everything.
pub mod sequencer;
/// What threads and callers share.
pub mod shared;
/// Commands that are told to people.
pub mod shell;
/// An engine step by step.
#[cfg(feature = "torture")]
pub mod simulation;
/// What a reader sees.
pub mod snapshot;
/// The port that connectors implement.
pub mod source;
/// Bytes on disk.
pub mod store;
/// What threads share with each other is made of.
mod sync;
/// What tests break.
pub mod torture;
/// How far something has come, for other threads.
pub mod watermark;

pub use engine::Engine;
pub use snapshot::Snapshot;
