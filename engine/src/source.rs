//! The port that connectors implement: what a source must send, in which order, and what it may acknowledge.
//!
//! A connector is a task that runs until its channel closes. It is told where to resume and sends [`SourceEvent`]s:
//!
//! ```text
//! fresh:    Tables  SnapshotRows*  SnapshotDone  ( Transaction | Progress )*
//! resumed:  Tables                               ( Transaction | Progress )*
//! ```
//!
//! - Transactions come whole, in commit order. One with `end_lsn <=` the resume point may come again after a reconnect;
//!   the engine skips it. Row positions are never compared.
//! - Channels are bounded: a slow engine stops the reading of the socket, and the log stays upstream. Feedback to
//!   upstream must not wait on the channel.
//! - `durable` is the only position that may be acknowledged upstream. It never goes back.
//! - A connector that cannot go on exactly says [`SourceState::Halted`] and sends nothing more. It never guesses.

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::change::{Changes, Lsn, TableSchema, Transaction};

/// What a connector sends to the engine.
#[derive(Debug)]
pub enum SourceEvent {
    /// First event of every session of the source: the tables, in full. On a resume the schemas must equal the stored
    /// ones in every used respect; the connector got them in [`ResumePoint::Resume`].
    Tables {
        /// Who upstream is; stored, and handed back on resume so that another server is noticed.
        identity: SourceIdentity,
        /// The tables this source follows.
        tables: Vec<TableSchema>,
    },
    /// Rows that existed at the snapshot's position, as inserts, in any order.
    SnapshotRows(Changes),
    /// All rows of the snapshot were sent; the stream continues after `lsn`.
    SnapshotDone {
        /// The consistent point of the snapshot.
        lsn: Lsn,
        /// When it was taken, microseconds since 2000-01-01 UTC.
        time_us: i64,
    },
    /// One upstream commit.
    Transaction(Transaction),
    /// Nothing more happened up to `lsn`: upstream decoded its log that far with no change to our tables. Sent only while
    /// no transaction is open.
    Progress {
        /// The position reached.
        lsn: Lsn,
        /// Upstream's clock then, microseconds since 2000-01-01 UTC.
        time_us: i64,
    },
}

/// Where upstream is ours to recognise again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceIdentity {
    /// Kind of connector: `postgres`, `generator`, `replay`.
    pub connector: String,
    /// Postgres' system identifier, the generator's seed, the replayed file's name.
    pub system: String,
    /// Timeline, where there is one.
    pub timeline: u32,
    /// Database name and OID, where there is one.
    pub database: String,
    /// Replication slot, where there is one.
    pub slot: String,
}

/// Where the engine stands when it starts a connector.
#[derive(Clone, Debug)]
pub enum ResumePoint {
    /// Nothing is stored, or an initial snapshot did not finish: leftovers upstream (the slot) are to be replaced.
    Fresh,
    /// Everything up to `lsn` is stored durably.
    Resume {
        /// The `end_lsn` of the last stored transaction, or a later idle position.
        lsn: Lsn,
        /// Who upstream was.
        identity: SourceIdentity,
        /// The tables as stored.
        tables: Vec<TableSchema>,
    },
}

/// What a connector is doing; shown in `/v1/sources`, `/readyz` and `/metrics`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SourceState {
    /// Looking at upstream, creating the slot.
    Starting,
    /// Reading the rows that existed before.
    Snapshotting {
        /// Rows read so far.
        rows_done: u64,
        /// Rows expected, by upstream's statistics; 0 where unknown.
        rows_estimated: u64,
    },
    /// Following the log.
    Streaming,
    /// The connection failed; trying again.
    Reconnecting {
        /// What failed.
        reason: String,
        /// Attempts so far.
        attempt: u32,
    },
    /// Cannot go on exactly. Reads answer 503.
    Halted {
        /// Stable name of the reason, such as `slot_lost`.
        code: String,
        /// What happened, with the names involved.
        message: String,
        /// The statement or command that repairs it.
        remedy: String,
    },
}

/// Measured by the connector, read by status and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    /// What it is doing.
    #[serde(flatten)]
    pub state: SourceState,
    /// Newest position received.
    pub received_lsn: Lsn,
    /// Newest position told upstream as durable.
    pub acknowledged_lsn: Lsn,
    /// End of upstream's log when last looked at.
    pub upstream_lsn: Lsn,
    /// End of upstream's log when this process first connected: nothing is served before it is reached.
    pub upstream_lsn_at_start: Option<Lsn>,
    /// Bytes of log that upstream keeps for us, where known.
    pub retained_wal_bytes: Option<u64>,
    /// Reconnects since start.
    pub reconnects: u64,
}

impl Default for SourceStatus {
    fn default() -> Self {
        SourceStatus {
            state: SourceState::Starting,
            received_lsn: Lsn::ZERO,
            acknowledged_lsn: Lsn::ZERO,
            upstream_lsn: Lsn::ZERO,
            upstream_lsn_at_start: None,
            retained_wal_bytes: None,
            reconnects: 0,
        }
    }
}

/// The ends of the channels a connector is given.
#[derive(Debug)]
pub struct SourceContext {
    /// Where to resume.
    pub resume: ResumePoint,
    /// Where events go. Bounded; closed when the engine stops, and then the connector ends too.
    pub events: mpsc::Sender<SourceEvent>,
    /// The position that may be acknowledged upstream.
    pub durable: watch::Receiver<Lsn>,
    /// What to show. The connector is the only writer.
    pub status: watch::Sender<SourceStatus>,
}

/// Why a source could not be started or had to stop; the message names the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}\n  remedy: {remedy}")]
pub struct SourceError {
    /// Stable name of the reason.
    pub code: &'static str,
    /// What is wrong and where.
    pub message: String,
    /// The statement or command that repairs it.
    pub remedy: String,
}
