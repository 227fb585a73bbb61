//! The port that connectors implement: what a source must send, in which order, and what it may acknowledge.
//!
//! A connector is a task that runs until its channel closes. It is told where to resume and sends [`SourceEvent`]s:
//!
//! ```text
//! fresh:    Tables  PartitionAdded*  SnapshotRows*  SnapshotDone  stream*
//! resumed:  Tables                                                stream*
//!
//! stream:   Transaction | Progress | Notes
//!         | TableBegin  PartitionAdded*  TableRows*  TableDone      one table (again), while the others go on
//!         | PartitionAdded | PartitionGone | ColumnUnusable | TableHalted
//! ```
//!
//! - Transactions come whole, in commit order. One with `end_lsn <=` the resume point may come again after a reconnect;
//!   the engine skips it. Row positions are never compared.
//! - Channels are bounded: a slow engine stops the reading of the socket, and the log stays upstream. Feedback to
//!   upstream must not wait on the channel.
//! - `durable` is the only position that may be acknowledged upstream. It never goes back.
//! - A connector that cannot go on exactly says [`SourceState::Halted`] and sends nothing more. It never guesses. What
//!   concerns one table or one column only halts what depends on it: [`SourceEvent::TableHalted`],
//!   [`SourceEvent::ColumnUnusable`].
//! - Of a table whose schema says `keeps_row_image: false` every update and delete brings the whole old row
//!   (`OldImage::Full`), and there is no `Upsert`; anything less halts the table. Its rows are then kept nowhere, so what is
//!   to be filled from them has them read once more: [`SourceCommand::ReadAnew`]. A connector that does not take that
//!   command never switches row images off.
//! - Between a table's `TableBegin` and `TableDone` its rows come in `TableRows` only, never in a `Transaction`; `TableDone`
//!   says that with them it stands where the last `Transaction` or `Progress` left the source.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::change::{Changes, Lsn, TableId, TableSchema, Transaction};

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
    /// A table begins to be read, for the first time or anew; an older one of the same name and all its rows are gone.
    /// Aggregates over it answer nothing until it is done.
    TableBegin(TableSchema),
    /// Changes of tables that are being read: rows as inserts, then what happened to them since.
    TableRows(Changes),
    /// The table is complete as of the source's position.
    TableDone {
        /// The table.
        table: TableId,
    },
    /// From here on rows under `partition` are rows of `table`, in its columns and with its primary key.
    PartitionAdded {
        /// The partitioned table.
        table: TableId,
        /// The partition that holds rows.
        partition: TableId,
    },
    /// The rows of this partition are no rows of `table` any more.
    PartitionGone {
        /// The partitioned table.
        table: TableId,
        /// The partition.
        partition: TableId,
    },
    /// A column of this position cannot be read any more; it is NULL in every later row. Halts the aggregates that use it.
    ColumnUnusable {
        /// The table.
        table: TableId,
        /// Position in the schema's columns.
        column: usize,
        /// What happened to it.
        reason: SourceError,
    },
    /// The table cannot be followed exactly any more. Halts the aggregates over it; no more of its rows come.
    TableHalted {
        /// The table.
        table: TableId,
        /// What happened to it.
        reason: SourceError,
    },
    /// What the connector wants to be told again on a resume; stored with the position. The engine does not read it.
    Notes(String),
}

/// What callers ask of a running source.
#[derive(Debug)]
pub enum SourceCommand {
    /// Follow one more table, or read one anew that halted.
    ReadTable {
        /// As the user named it.
        table: String,
        /// Whether its row images are kept; `None` leaves it as it was.
        row_image: Option<bool>,
        /// The qualified name once reading has begun, or why it cannot.
        reply: oneshot::Sender<Result<String, SourceError>>,
    },
    /// Read a followed table anew as soon as possible: what is asked by the engine itself, for aggregates that only its rows
    /// can fill. A reading that goes on already does not count.
    ReadAnew {
        /// The table.
        table: TableId,
    },
}

/// Where one table of a source stands; stored with its schema.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TableState {
    /// Its rows are those of the source's position.
    #[default]
    Live,
    /// Being read while the others go on.
    Reading,
    /// Cannot be followed exactly any more; to be read anew.
    Halted {
        /// Stable name of the reason.
        code: String,
        /// What happened.
        message: String,
        /// What to do.
        remedy: String,
    },
}

/// A table as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowedTable {
    /// Its shape.
    #[serde(flatten)]
    pub schema: TableSchema,
    /// The partitions that hold its rows; empty for an ordinary table, which holds them itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<TableId>,
    /// Where it stands.
    #[serde(default)]
    pub standing: TableState,
}

impl FollowedTable {
    /// An ordinary table.
    #[must_use]
    pub fn new(schema: TableSchema, standing: TableState) -> Self {
        FollowedTable { schema, partitions: Vec::new(), standing }
    }

    /// The relations that hold its rows: its partitions, or itself.
    pub fn parts(&self) -> impl Iterator<Item = TableId> + '_ {
        self.partitions.iter().copied().chain(self.partitions.is_empty().then_some(self.schema.id))
    }
}

/// Where upstream is ours to recognise again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceIdentity {
    /// Kind of connector: `postgres`, `events`, `generator`, `replay`.
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

impl SourceIdentity {
    /// Whether a table can be read once more while the source runs: elsewhere there is nobody to ask for its rows.
    #[must_use]
    pub fn reads_anew(&self) -> bool {
        self.connector == "postgres"
    }
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
        tables: Vec<FollowedTable>,
        /// What the connector noted last.
        notes: Option<String>,
        /// What upstream must still have.
        milestone: Milestone,
    },
}

/// What a server must still have that we have read from. One that was put back to an older image of itself goes through the same
/// positions again, with other transactions at them, and nothing else about it need be different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Milestone {
    /// From here on transactions were taken from upstream; earlier ones were in the rows that were there.
    pub begins: Lsn,
    /// End of the last transaction that changed our tables; zero before the first.
    pub end_lsn: Lsn,
    /// When that committed, microseconds since 2000-01-01 UTC.
    pub commit_time_us: i64,
    /// The latest time that upstream told so far: whatever ended by then committed no later, also where its clock was put back.
    pub latest_us: i64,
}

impl Default for Milestone {
    fn default() -> Self {
        Milestone::begin(Lsn::ZERO)
    }
}

impl Milestone {
    /// Before anything was told.
    #[must_use]
    pub fn begin(at: Lsn) -> Self {
        Milestone { begins: at, end_lsn: Lsn::ZERO, commit_time_us: 0, latest_us: i64::MIN }
    }

    /// After a transaction that changed our tables.
    #[must_use]
    pub fn after(self, end_lsn: Lsn, commit_time_us: i64) -> Self {
        Milestone { end_lsn, commit_time_us, ..self.told(commit_time_us) }
    }

    /// After upstream told a time.
    #[must_use]
    pub fn told(self, time_us: i64) -> Self {
        Milestone { latest_us: self.latest_us.max(time_us), ..self }
    }
}

/// One thing that must be so upstream, and whether it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable name, such as `wal_level`.
    pub name: &'static str,
    /// How it stands.
    pub outcome: CheckOutcome,
    /// What was found, with the names involved.
    pub message: String,
    /// The statement or command that repairs it; empty where there is nothing to repair.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// As it should be.
    Ok,
    /// Works, but is likely to cause trouble.
    Warning,
    /// Must be repaired before the source can run.
    Failed,
}

/// What upstream keeps for us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SlotStatus {
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: String,
    /// Bytes that can be written before the slot may be lost; absent where there is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safe_wal_bytes: Option<i64>,
    /// Oldest position that upstream keeps for us.
    pub restart_lsn: Lsn,
    /// What upstream believes we have stored.
    pub confirmed_flush_lsn: Lsn,
    /// Bytes of large transactions that upstream wrote to its disk for us.
    pub spilled_bytes: i64,
    /// Why upstream gave the slot up, where it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invalidation_reason: Option<String>,
}

/// What a connector is doing; shown in `/v1/sources`, `/readyz` and `/metrics`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SourceState {
    /// Looking at upstream.
    Preflight,
    /// Creating the slot; upstream waits for the transactions that were writing before.
    CreatingSlot {
        /// Transactions it waits for.
        waiting_for: u64,
        /// Process of the oldest one upstream; 0 where there is none.
        oldest_pid: i32,
        /// How long that one has been open.
        oldest_age_s: u64,
    },
    /// Reading the rows that existed before.
    Snapshotting {
        /// Rows read so far.
        rows_done: u64,
        /// Rows expected, by upstream's statistics; 0 where unknown.
        rows_estimated: u64,
    },
    /// Following the log, not yet where upstream stood on connecting.
    CatchingUp,
    /// Following the log.
    Live,
    /// Connected, and held by us: the disk of the store is nearly full. Said by the engine, of a source that would go on.
    DiskLow {
        /// What is free.
        free_bytes: u64,
        /// What has to be free before it goes on.
        enough_bytes: u64,
    },
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
    /// The slot as upstream shows it, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot_status: Option<SlotStatus>,
    /// What was last found upstream, the failed ones first.
    pub checks: Vec<Check>,
    /// Tables that were to join and cannot, by qualified name: what was found when their turn came.
    #[serde(skip)]
    pub refused_tables: BTreeMap<String, SourceError>,
}

impl Default for SourceStatus {
    fn default() -> Self {
        SourceStatus {
            state: SourceState::Preflight,
            received_lsn: Lsn::ZERO,
            acknowledged_lsn: Lsn::ZERO,
            upstream_lsn: Lsn::ZERO,
            upstream_lsn_at_start: None,
            retained_wal_bytes: None,
            reconnects: 0,
            slot_status: None,
            checks: Vec::new(),
            refused_tables: BTreeMap::new(),
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
    /// What callers ask while it runs.
    pub commands: mpsc::Receiver<SourceCommand>,
}

impl SourceContext {
    /// The connector's ends; the second part is the caller's end of the commands.
    #[must_use]
    pub fn new(
        resume: ResumePoint,
        events: mpsc::Sender<SourceEvent>,
        durable: watch::Receiver<Lsn>,
        status: watch::Sender<SourceStatus>,
    ) -> (Self, mpsc::Sender<SourceCommand>) {
        let (ask, commands) = mpsc::channel(COMMANDS);
        (SourceContext { resume, events, durable, status, commands }, ask)
    }
}

impl ResumePoint {
    /// Everything up to `lsn` is stored, of tables that are all live, and nothing was noted.
    #[must_use]
    pub fn live(lsn: Lsn, identity: SourceIdentity, tables: Vec<TableSchema>) -> Self {
        let tables = tables.into_iter().map(|schema| FollowedTable::new(schema, TableState::Live)).collect();
        ResumePoint::Resume { lsn, identity, tables, notes: None, milestone: Milestone::begin(lsn) }
    }
}

/// Commands waiting for the connector.
const COMMANDS: usize = 16;

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
