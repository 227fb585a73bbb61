//! The dataflow: rows in, write sets out. The only place that names timely and differential-dataflow.
//!
//! ```text
//!            CommitGroup (every worker sees every group, and folds its slice of the rows)
//!                |
//!   worker 0   Fold --+--> Apply ---> WriteSet --+
//!                     x  exchange by group key   +--> committer
//!   worker 1   Fold --+--> Apply ---> WriteSet --+
//! ```
//!
//! - One dataflow per source. Aggregates are data in a registry inside `Fold` and `Apply`, not operators: three hundred
//!   of them cost ten microseconds an epoch, three hundred dataflows a hundred times that.
//! - One epoch is one commit group; its timestamp is the group's sequence. `Apply` holds an epoch's blocks until the
//!   frontier has passed it, so it has every worker's part, and applies epochs in order.
//! - `Fold` adds up within the worker before the exchange: one huge merchant must not pin a worker.
//! - Registering, dropping and truncating ride in the group, so every worker sees them at the same epoch.
//! - Nothing here blocks: admission is bounded upstream by groups minted and not committed.

/// Blocks into cells.
pub mod apply;
/// Pre-aggregated differences on their way between workers.
pub mod block;
/// The accumulators as differential's differences.
pub mod difference;
/// Rows into blocks.
pub mod fold;
/// Cells in memory.
pub mod partition;
/// The operators, put together, and the threads they run on.
pub mod worker;

use std::sync::Arc;

use crate::commit_group::GroupRows;
use crate::materialization::{Aggregate, AggregateId};

/// One epoch as the workers see it.
#[derive(Debug)]
pub struct Epoch {
    /// Its timestamp.
    pub sequence: u64,
    /// Its rows.
    pub rows: Arc<GroupRows>,
    /// Aggregates that begin and end with this epoch, before its rows.
    pub commands: Vec<Command>,
    /// Contributions of rows that existed before an aggregate did.
    pub filled: Vec<block::Filled>,
}

/// A change of the registry.
#[derive(Clone, Debug)]
pub enum Command {
    /// Keep this aggregate from here on.
    Install(Arc<Aggregate>),
    /// Forget this aggregate.
    Remove(AggregateId),
}
