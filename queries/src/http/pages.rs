//! Snapshots that answers with further pages were read from, so that all their pages show one position. A Snapshot costs
//! the store old versions of what changes meanwhile: few are kept, and not for long after the last page.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::Snapshot;
use engine::change::Lsn;

/// Snapshots kept at most; the one unused longest goes first.
const MAX_KEPT: usize = 64;
/// How long one is kept after it was last used.
const KEPT: Duration = Duration::from_secs(60);

struct Kept {
    snapshot: Arc<Snapshot>,
    used: Instant,
}

/// The Snapshots of answers that have further pages.
#[derive(Default)]
pub(super) struct Pages(Mutex<Vec<Kept>>);

impl Pages {
    /// Keeps a Snapshot for further pages.
    pub(super) fn keep(&self, snapshot: &Arc<Snapshot>) {
        let sequence = snapshot.as_of().sequence;
        self.with(|kept| {
            if let Some(known) = kept.iter_mut().find(|known| known.snapshot.as_of().sequence == sequence) {
                known.used = Instant::now();
                return;
            }
            if kept.len() >= MAX_KEPT
                && let Some(oldest) = kept.iter().enumerate().min_by_key(|(_, kept)| kept.used).map(|(at, _)| at)
            {
                kept.swap_remove(oldest);
            }
            kept.push(Kept { snapshot: Arc::clone(snapshot), used: Instant::now() });
        });
    }

    /// The Snapshot of a commit: the newest, or one that was kept.
    pub(super) fn get(&self, newest: &Arc<Snapshot>, sequence: u64) -> Option<Arc<Snapshot>> {
        if newest.as_of().sequence == sequence {
            return Some(Arc::clone(newest));
        }
        self.with(|kept| {
            let found = kept.iter_mut().find(|kept| kept.snapshot.as_of().sequence == sequence)?;
            found.used = Instant::now();
            Some(Arc::clone(&found.snapshot))
        })
    }

    /// The Snapshot of a position: the newest, or one that was kept.
    pub(super) fn at(&self, newest: &Arc<Snapshot>, lsn: Lsn) -> Option<Arc<Snapshot>> {
        if newest.as_of().lsn == lsn {
            return Some(Arc::clone(newest));
        }
        self.with(|kept| {
            let at_lsn = kept.iter_mut().filter(|kept| kept.snapshot.as_of().lsn == lsn);
            let found = at_lsn.max_by_key(|kept| kept.snapshot.as_of().sequence)?;
            found.used = Instant::now();
            Some(Arc::clone(&found.snapshot))
        })
    }

    /// Forgets what was not used for a while.
    pub(super) fn forget_old(&self) {
        self.with(|_| ());
    }

    fn with<R>(&self, work: impl FnOnce(&mut Vec<Kept>) -> R) -> R {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| kept.used.elapsed() < KEPT);
        work(&mut kept)
    }
}
