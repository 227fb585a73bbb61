//! The second frontier: what survives a crash of the machine, and so what upstream may be told.
//!
//! A thread of its own, because a sync takes milliseconds and commits go on meanwhile. What was written when a sync began
//! is durable when it ends; nothing is acknowledged before.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::change::Lsn;
use crate::shared::Shared;
use crate::store::{Store, StoreError};
use crate::torture::{self, Bug, Failpoint};

/// Longest time between a write and its sync.
const SYNC_INTERVAL: Duration = Duration::from_millis(200);
/// How long is waited before it is tried again on a disk that was full.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// Syncs what the committer wrote and then says so, at the latest [`SYNC_INTERVAL`] after the write. Ends with the
/// committer.
pub fn keep_durable(store: &Store, shared: &Shared, dirty: &Receiver<Lsn>) {
    let mut newest: Option<Lsn> = None;
    let mut due = Instant::now();
    loop {
        let message = match newest {
            None => dirty.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => dirty.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        match message {
            Ok(lsn) => {
                if newest.is_none() {
                    due = Instant::now() + SYNC_INTERVAL;
                }
                newest = Some(lsn);
                if Instant::now() < due {
                    continue;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                if let Some(lsn) = newest {
                    sync(store, shared, lsn);
                }
                return;
            }
        }
        if let Some(lsn) = newest.take()
            && !sync(store, shared, lsn)
        {
            return;
        }
    }
}

/// Makes what was written up to here durable, and says so. False where it cannot.
pub fn sync(store: &Store, shared: &Shared, lsn: Lsn) -> bool {
    torture::reached(Failpoint::BeforeSync);
    let synced = if torture::planted(Bug::AcknowledgesUnsynced) { Ok(()) } else { make_durable(store, shared) };
    match synced {
        Ok(()) => {
            shared.published.made_durable(lsn);
            true
        }
        Err(error) => {
            shared.halt(
                "store_failed",
                format!("syncing failed, nothing more is acknowledged: {error}"),
                "see that the disk works, then restart tidemark; nothing is lost, upstream still holds it",
            );
            false
        }
    }
}

/// Makes everything written so far survive a crash of the machine.
///
/// A log that failed is not synced once more: nobody knows what the kernel believes of its pages. What was written is still
/// in memory, so it goes into table files from there, and needs the log no more; where the disk is full, once there is space.
/// Where the store itself will not go on, it refuses that too. While the committer waits for space, nothing is tried: the store
/// replaces its failed log by itself, and writing table files in the middle of that would end it for good.
pub fn make_durable(store: &Store, shared: &Shared) -> Result<(), StoreError> {
    let Err(error) = store.sync() else {
        torture::reached(Failpoint::Synced);
        return Ok(());
    };
    tracing::warn!(%error, "the log cannot be synced: table files are written in its place");
    loop {
        // The committer may be about to say so.
        std::thread::sleep(TRY_AGAIN);
        if shared.waits_for_space.load(Ordering::Acquire) && !shared.stopping.is_raised() {
            continue;
        }
        match store.flush() {
            Err(StoreError::NoSpace(_)) if !shared.stopping.is_raised() => {}
            flushed => return flushed,
        }
    }
}
