//! How far the store is and where its content comes from: singletons under the `meta` kind.
//!
//! The cursor is written in the same batch as the cells it describes, and only once the initial snapshot is complete. A
//! store without one holds nothing that can be trusted and is filled anew.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Batch, Store, StoreError, key, log};
use crate::change::Lsn;
use crate::source::{Milestone, SourceIdentity};

/// The position up to which everything is in the store; always the end of an upstream commit or an idle position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Everything that committed upstream up to here is in the cells, nothing after.
    pub lsn: Lsn,
    /// When that was, microseconds since 2000-01-01 UTC.
    pub commit_time_us: i64,
    /// Number of the commit that wrote it; never falls.
    pub sequence: u64,
}

const CURSOR: &str = "cursor";
const SOURCE: &str = "source";
const MILESTONE: &str = "milestone";
const NOTES: &str = "source_notes";
const NEXT_AGGREGATE: &str = "next_aggregate";

impl Cursor {
    /// Reads it; `None` where no initial snapshot was completed.
    pub fn read(store: &Store) -> Result<Option<Cursor>, StoreError> {
        let Some(bytes) = store.get(&key::meta(CURSOR))? else { return Ok(None) };
        let parts = bytes.as_chunks::<8>();
        match parts {
            ([lsn, time, sequence], []) => Ok(Some(Cursor {
                lsn: Lsn(u64::from_be_bytes(*lsn)),
                commit_time_us: i64::from_be_bytes(*time),
                sequence: u64::from_be_bytes(*sequence),
            })),
            _ => Err(StoreError::Damaged("cursor")),
        }
    }

    /// Reads that of a data directory which another process may be using. `None` also where there is no store, or none that this
    /// user can read: then nothing is known.
    #[must_use]
    pub fn read_beside(data: &Path) -> Option<Cursor> {
        let path = data.join("store");
        // Where there is none RocksDB makes its directory, whatever it is told.
        if !path.join("CURRENT").is_file() {
            return None;
        }
        // Of what a power cut left RocksDB would read for ever.
        log::mend(&path).ok()?;
        Cursor::read(&Store::open_read_only(&path).ok()?).ok()?
    }

    /// Adds it to a batch.
    pub fn put(&self, batch: &mut Batch) {
        let bytes = [self.lsn.0.to_be_bytes(), self.commit_time_us.to_be_bytes(), self.sequence.to_be_bytes()];
        batch.put(&key::meta(CURSOR), bytes.as_flattened());
    }
}

/// Who upstream is; `None` in a new store.
pub fn read_source(store: &Store) -> Result<Option<SourceIdentity>, StoreError> {
    read_json(store, SOURCE)
}

/// Adds who upstream is to a batch.
pub fn put_source(batch: &mut Batch, identity: &SourceIdentity) -> Result<(), StoreError> {
    put_json(batch, SOURCE, identity)
}

/// What upstream has at the cursor; `None` in stores from before that was kept.
pub fn read_milestone(store: &Store) -> Result<Option<Milestone>, StoreError> {
    let Some(bytes) = store.get(&key::meta(MILESTONE))? else { return Ok(None) };
    match bytes.as_chunks::<8>() {
        ([begins, end_lsn, commit_time, latest], []) => Ok(Some(Milestone {
            begins: Lsn(u64::from_be_bytes(*begins)),
            end_lsn: Lsn(u64::from_be_bytes(*end_lsn)),
            commit_time_us: i64::from_be_bytes(*commit_time),
            latest_us: i64::from_be_bytes(*latest),
        })),
        _ => Err(StoreError::Damaged(MILESTONE)),
    }
}

/// Adds what upstream has at the cursor to the cursor's batch.
pub fn put_milestone(batch: &mut Batch, milestone: Milestone) {
    let Milestone { begins, end_lsn, commit_time_us, latest_us } = milestone;
    let bytes =
        [begins.0.to_be_bytes(), end_lsn.0.to_be_bytes(), commit_time_us.to_be_bytes(), latest_us.to_be_bytes()];
    batch.put(&key::meta(MILESTONE), bytes.as_flattened());
}

/// What the connector noted last.
pub fn read_notes(store: &Store) -> Result<Option<String>, StoreError> {
    read_json(store, NOTES)
}

/// Adds what the connector notes to a batch.
pub fn put_notes(batch: &mut Batch, notes: &str) -> Result<(), StoreError> {
    put_json(batch, NOTES, &notes)
}

/// The number that the next aggregate gets.
pub fn read_next_aggregate(store: &Store) -> Result<u32, StoreError> {
    Ok(read_json(store, NEXT_AGGREGATE)?.unwrap_or(1))
}

/// Adds the number that the next aggregate gets to a batch.
pub fn put_next_aggregate(batch: &mut Batch, next: u32) -> Result<(), StoreError> {
    put_json(batch, NEXT_AGGREGATE, &next)
}

fn read_json<T: for<'de> Deserialize<'de>>(store: &Store, name: &'static str) -> Result<Option<T>, StoreError> {
    match store.get(&key::meta(name))? {
        Some(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|_| StoreError::Damaged(name)),
        None => Ok(None),
    }
}

fn put_json<T: Serialize>(batch: &mut Batch, name: &'static str, value: &T) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(value).map_err(|_| StoreError::Damaged(name))?;
    batch.put(&key::meta(name), &bytes);
    Ok(())
}
