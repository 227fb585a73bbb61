//! A backup that was taken, as it is written down; and why one was not.

use std::time::Duration;

use engine::backup::{Backup, BackupError, BackupFault};
use engine::change::Lsn;
use serde::Serialize;

use super::Problem;

/// A backup that was taken.
#[derive(Debug, Serialize)]
pub struct CheckpointBody<'b> {
    name: &'b str,
    /// On the server.
    path: String,
    lsn: Lsn,
    commit_time: &'b str,
    taken_at: &'b str,
    /// Keeps upstream's log from it on, where that was asked for.
    held_slot: Option<&'b str>,
    aggregates: &'b [String],
    files: usize,
    bytes: u64,
    took_ms: u64,
}

impl<'b> CheckpointBody<'b> {
    /// Describes it.
    #[must_use]
    pub fn new(name: &'b str, Backup { path, manifest, bytes }: &'b Backup, took: Duration) -> Self {
        CheckpointBody {
            name,
            path: path.display().to_string(),
            lsn: manifest.lsn,
            commit_time: &manifest.commit_time,
            taken_at: &manifest.taken_at,
            held_slot: manifest.held_slot.as_deref(),
            aggregates: &manifest.aggregates,
            files: manifest.files,
            bytes: *bytes,
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl From<BackupError> for Problem {
    fn from(error: BackupError) -> Self {
        let BackupError { fault, code, message, remedy } = error;
        let (status, again_s) = match (fault, code) {
            (BackupFault::Refused, "backup_exists") => (409, None),
            (BackupFault::Refused | BackupFault::Damaged, _) => (422, None),
            (BackupFault::NotNow, "backup_running") => (429, Some(5)),
            (BackupFault::NotNow, _) => (503, Some(5)),
            (BackupFault::Failed, _) => (503, None),
        };
        let mut problem = Problem::new(status, code, message).hint(remedy);
        problem.retry_after_s = again_s;
        if fault == BackupFault::Refused { problem.at("/name") } else { problem }
    }
}
