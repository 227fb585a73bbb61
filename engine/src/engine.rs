//! The engine as others see it: read a Snapshot, register and drop aggregates, wait for a position, ask how it goes.

use std::sync::Arc;
use std::time::Duration;

use crate::change::Lsn;
use crate::materialization::{Aggregate, AggregateId, Definition, DefinitionError};
use crate::snapshot::Snapshot;
use crate::source::SourceStatus;

/// A handle on the running engine; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<()>,
}

/// Why there is no answer now. Turned into 503 by whoever speaks HTTP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unavailable {
    /// Stable name of the reason: `snapshotting`, `catching_up`, `slot_lost`, ...
    pub code: String,
    /// What is the matter.
    pub message: String,
    /// What to do; may be empty where waiting is all there is to do.
    pub remedy: String,
}

/// What became of a registration.
#[derive(Clone, Debug)]
pub enum Registered {
    /// It is new, durable, and being filled.
    Created(Arc<Aggregate>),
    /// The same definition was registered already.
    Unchanged(Arc<Aggregate>),
}

/// Why an aggregate was not registered. Nothing changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegisterError {
    /// The name cannot stand in a URL.
    #[error("a name is 1 to 63 letters, digits and underscores, not beginning with a digit")]
    BadName,
    /// The source does not follow such a table.
    #[error("there is no table {table}")]
    UnknownTable {
        /// As asked for.
        table: String,
        /// Those that are followed.
        known: Vec<String>,
    },
    /// The definition does not fit the table.
    #[error(transparent)]
    Invalid(#[from] DefinitionError),
    /// Another definition has this name.
    #[error("another definition is registered under this name; it differs in {}", .differences.join(", "))]
    Conflict {
        /// The one that is registered.
        existing: Arc<Aggregate>,
        /// The fields that differ.
        differences: Vec<&'static str>,
    },
    /// The engine cannot take registrations now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// How far an aggregate is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BuildProgress {
    /// Row images read so far.
    pub rows_done: u64,
    /// Row images to read, estimated.
    pub rows_estimated: u64,
    /// Row images read per second.
    pub rows_per_second: f64,
    /// Seconds left at that rate, where known.
    pub eta_s: Option<f64>,
}

/// How it goes.
#[derive(Clone, Debug)]
pub struct Status {
    /// What the connector measured.
    pub source: SourceStatus,
    /// Kind of connector: `postgres`, `generator`, `replay`.
    pub connector: String,
    /// Newest position that answers show.
    pub applied_lsn: Lsn,
    /// When that was committed upstream, microseconds since 2000-01-01 UTC.
    pub applied_time_us: i64,
    /// Newest position that survives a crash; what upstream is told.
    pub durable_lsn: Lsn,
    /// How far answers are behind upstream; 0 when everything known to have happened is applied.
    pub lag_ms: u64,
    /// Whether answers can be given; if not, why.
    pub ready: Result<(), Unavailable>,
    /// Totals since the process started.
    pub counters: Counters,
}

/// Totals since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Upstream transactions applied.
    pub transactions: u64,
    /// Rows inserted, updated, deleted, and read in the initial snapshot.
    pub inserts: u64,
    /// Updates.
    pub updates: u64,
    /// Deletes.
    pub deletes: u64,
    /// Truncates.
    pub truncates: u64,
    /// Rows of the initial snapshot.
    pub snapshot_rows: u64,
    /// Batches written.
    pub commits: u64,
    /// Cells written.
    pub cells_written: u64,
    /// Cells held in memory by the workers.
    pub cells_cached: u64,
    /// Commit groups minted and not yet written.
    pub in_flight: u64,
}

impl Engine {
    /// The newest Snapshot, or why there is no answer now.
    pub fn snapshot(&self) -> Result<Arc<Snapshot>, Unavailable> {
        unimplemented!()
    }

    /// Registers an aggregate; returns once it is durable. Filling it goes on in the background.
    pub async fn register(&self, _name: &str, _definition: Definition) -> Result<Registered, RegisterError> {
        unimplemented!()
    }

    /// Drops an aggregate; returns once that is durable. False where there is none.
    pub async fn drop_aggregate(&self, _name: &str) -> Result<bool, Unavailable> {
        unimplemented!()
    }

    /// Waits until `lsn` is applied. False where it was not within the timeout.
    pub async fn wait_for(&self, _lsn: Lsn, _timeout: Duration) -> bool {
        unimplemented!()
    }

    /// All aggregates, whatever their state, also while there is no Snapshot to read.
    pub fn aggregates(&self) -> Vec<Arc<Aggregate>> {
        unimplemented!()
    }

    /// The tables that are followed.
    pub fn tables(&self) -> Vec<Arc<crate::change::TableSchema>> {
        unimplemented!()
    }

    /// How far an aggregate is filled, while it is being filled.
    pub fn build_progress(&self, _aggregate: AggregateId) -> Option<BuildProgress> {
        unimplemented!()
    }

    /// How it goes.
    pub fn status(&self) -> Status {
        unimplemented!()
    }
}
