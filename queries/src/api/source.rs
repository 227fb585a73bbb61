//! Descriptions of the source: where it stands, and what is wrong with it.

use engine::change::{Lsn, TableSchema};

use engine::engine::{Counters, Status};
use engine::source::{FollowedTable, SourceIdentity, SourceState, SourceStatus, TableState};
use serde::Serialize;
use std::sync::Arc;

/// One source.
#[derive(Debug, Serialize)]
pub struct SourceBody<'a> {
    /// Name in URLs.
    pub name: &'a str,
    /// Connector, server, database and replication slot.
    #[serde(flatten)]
    pub identity: &'a SourceIdentity,
    /// What the connector measured.
    #[serde(flatten)]
    pub status: &'a SourceStatus,
    /// Newest position that answers show.
    pub applied_lsn: Lsn,
    /// Newest position that survives a crash.
    pub durable_lsn: Lsn,
    /// How far answers are behind upstream.
    pub lag_ms: u64,
    /// Whether answers can be given.
    pub ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<Reason>,
    /// The tables it follows.
    pub tables: Vec<TableBody<'a>>,
    /// Totals since the process started.
    pub totals: Totals,
}

/// Why something is not ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Stable name.
    pub code: String,
    /// In words.
    pub message: String,
    /// What to do; may be empty.
    pub remedy: String,
    /// The aggregate concerned, if one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregate: Option<String>,
}

/// One table of a source.
#[derive(Debug, Serialize)]
pub struct TableBody<'a> {
    /// `public.payments`
    pub name: String,
    /// Where it stands.
    #[serde(flatten)]
    pub standing: &'a TableState,
    /// Number of partitions that hold its rows; 0 for an ordinary table.
    pub partitions: usize,
    /// Whether the last row per key is kept here.
    pub row_image: bool,
    /// Its columns.
    pub columns: Vec<TableColumn<'a>>,
}

/// One column of a table.
#[derive(Debug, Serialize)]
pub struct TableColumn<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type, as Postgres users know it.
    #[serde(rename = "type")]
    pub column_type: &'a str,
    /// Whether it is part of the primary key.
    pub primary_key: bool,
}

/// Totals since the process started.
#[derive(Debug, Serialize)]
pub struct Totals {
    /// Upstream transactions applied.
    pub transactions: u64,
    /// Rows inserted.
    pub inserts: u64,
    /// Rows updated.
    pub updates: u64,
    /// Rows deleted.
    pub deletes: u64,
    /// Tables truncated.
    pub truncates: u64,
    /// Rows of the initial snapshot.
    pub snapshot_rows: u64,
}

impl From<Counters> for Totals {
    fn from(counters: Counters) -> Self {
        Totals {
            transactions: counters.transactions,
            inserts: counters.inserts,
            updates: counters.updates,
            deletes: counters.deletes,
            truncates: counters.truncates,
            snapshot_rows: counters.snapshot_rows,
        }
    }
}

impl<'a> SourceBody<'a> {
    /// Describes the source.
    #[must_use]
    pub fn of(name: &'a str, status: &'a Status, tables: &'a [Arc<FollowedTable>]) -> Self {
        let column = |schema: &'a TableSchema, at: usize| {
            schema.columns.get(at).map(|column| TableColumn {
                name: &column.name,
                column_type: column.column_type.name(),
                primary_key: schema.primary_key.contains(&at),
            })
        };
        let table = |table: &'a Arc<FollowedTable>| TableBody {
            name: table.schema.qualified_name(),
            standing: &table.standing,
            partitions: table.partitions.len(),
            row_image: table.schema.keeps_row_image,
            columns: (0..table.schema.columns.len()).filter_map(|at| column(&table.schema, at)).collect(),
        };
        SourceBody {
            name,
            identity: &status.identity,
            status: &status.source,
            applied_lsn: status.applied_lsn,
            durable_lsn: status.durable_lsn,
            lag_ms: status.lag_ms,
            ready: status.ready.is_ok(),
            unavailable: status.ready.as_ref().err().map(|why| Reason {
                code: why.code.clone(),
                message: why.message.clone(),
                remedy: why.remedy.clone(),
                aggregate: None,
            }),
            tables: tables.iter().map(table).collect(),
            totals: status.counters.into(),
        }
    }
}

/// What an answer says about whether it follows upstream: `live` only where it does.
#[must_use]
pub fn freshness(state: &SourceState) -> &'static str {
    match state {
        SourceState::Live => "live",
        SourceState::CatchingUp => "catching_up",
        SourceState::Preflight => "preflight",
        SourceState::CreatingSlot { .. } => "creating_slot",
        SourceState::Snapshotting { .. } => "snapshotting",
        SourceState::DiskLow { .. } => "disk_low",
        SourceState::Reconnecting { .. } => "reconnecting",
        SourceState::Halted { .. } => "halted",
    }
}
