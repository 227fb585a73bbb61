//! Space on the disk of the store. Below a limit nothing is taken from the source any more, so that the disk never fills up
//! because of us: upstream keeps its log, readers go on at the last position, and once there is space again so does the rest.
//!
//! The limit leaves room for what the store does by itself meanwhile: table files are rewritten before the old ones go.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::shared::Shared;

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The limit where none is stated: this, or a part of a small disk.
const DEFAULT_MIN_BYTES: u64 = 1 << 30;
const PART_OF_DISK: u64 = 20;
/// So much of the limit has to be free beyond it before anything goes on: otherwise it would stop again at once.
const PART_OF_LIMIT: u64 = 8;

/// Space on the disk of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreeSpace {
    /// What is free for us.
    pub free_bytes: u64,
    /// What shall stay free; 0 where it is not watched.
    pub min_free_bytes: u64,
    /// Nothing is taken from the source until there is more.
    pub low: bool,
}

impl FreeSpace {
    /// What has to be free before anything is taken again.
    #[must_use]
    pub fn enough_bytes(&self) -> u64 {
        self.min_free_bytes.saturating_add(self.min_free_bytes / PART_OF_LIMIT)
    }

    fn seen(self, free_bytes: u64) -> FreeSpace {
        let enough = if self.low { self.enough_bytes() } else { self.min_free_bytes };
        FreeSpace { free_bytes, low: free_bytes < enough, ..self }
    }
}

/// The thread that looks.
pub struct FreeSpaceWatch {
    /// The engine.
    pub shared: Arc<Shared>,
    /// The data directory.
    pub data: PathBuf,
    /// Disconnected when the engine ends.
    pub running: Receiver<()>,
}

impl FreeSpaceWatch {
    /// Looks for the first time, before anything is taken; `min_free_bytes` is the limit where one is stated.
    pub fn new(shared: Arc<Shared>, data: PathBuf, running: Receiver<()>, min_free_bytes: Option<u64>) -> Self {
        let size_bytes = look(&data).map_or(u64::MAX, |seen| seen.size_bytes);
        let min_free_bytes = min_free_bytes.unwrap_or_else(|| DEFAULT_MIN_BYTES.min(size_bytes / PART_OF_DISK));
        let watch = FreeSpaceWatch { shared, data, running };
        watch.shared.free_space.send_modify(|space| space.min_free_bytes = min_free_bytes);
        watch.note();
        watch
    }

    /// Runs until the engine ends.
    pub fn run(self) {
        while self.running.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            self.note();
        }
    }

    fn note(&self) {
        // What cannot be looked at is judged by what is written to it.
        let Some(disk) = look(&self.data) else { return };
        self.shared.free_space.send_if_modified(|space| {
            let now = space.seen(disk.free_bytes);
            let changed = now.low != space.low;
            *space = now;
            if changed && now.low {
                let FreeSpace { free_bytes, min_free_bytes, .. } = now;
                tracing::warn!(
                    free_bytes,
                    min_free_bytes,
                    "the disk is nearly full: nothing is taken from the source until there is space"
                );
            } else if changed {
                tracing::info!(free_bytes = now.free_bytes, "there is space again: the source goes on");
            }
            changed
        });
    }
}

struct Disk {
    free_bytes: u64,
    size_bytes: u64,
}

fn look(data: &Path) -> Option<Disk> {
    let seen = rustix::fs::statvfs(data).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(seen.f_frsize);
    Some(Disk { free_bytes: bytes(seen.f_bavail), size_bytes: bytes(seen.f_blocks) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_only_with_something_to_spare() {
        let space = FreeSpace { min_free_bytes: 800, ..FreeSpace::default() };
        let low = |space: FreeSpace, free| space.seen(free).low;
        assert!(!low(space, 800) && low(space, 799));
        let space = space.seen(799);
        assert!(low(space, 899) && !low(space, 900));
        assert!(!low(FreeSpace::default(), 0));
    }
}
