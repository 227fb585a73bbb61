//! Snapshots of positions that are known only afterwards: whoever compares with upstream learns which position upstream's
//! snapshot has when the stream is past it already.
//!
//! While somebody watches, every transaction is a commit of its own and the newest Snapshots are kept. The surprise: a
//! Snapshot is that of a position not because it is the newest below it, but because the first transaction of the very next
//! commit ends beyond it; so the next one has to be known too.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::change::Lsn;
use crate::published::Published;
use crate::snapshot::{AsOf, Snapshot};
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering};

/// Snapshots kept. Upstream says its position milliseconds after it, in which not so many transactions happen.
const MAX_KEPT: usize = 1_024;

/// The newest Snapshots, while somebody watches.
#[derive(Default)]
pub struct Boundaries {
    /// Changes only while `kept` is locked: what is kept is what somebody watches for.
    watchers: AtomicUsize,
    kept: Mutex<VecDeque<Boundary>>,
}

struct Boundary {
    snapshot: Arc<Snapshot>,
    /// End of the first transaction of the commit that published it; the commit's position where it has none.
    first_end: Lsn,
}

/// Why there is no Snapshot of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBoundary {
    /// The stream did not come that far.
    #[error("the stream did not reach {0} in time")]
    NotReached(Lsn),
    /// It was not kept, or lies within a commit.
    #[error("no Snapshot of {0} was kept")]
    Missed(Lsn),
}

impl Boundaries {
    /// Whether every transaction is to be a commit of its own.
    pub fn watched(&self) -> bool {
        self.watchers.load(Ordering::SeqCst) > 0
    }

    /// Keeps a Snapshot that was just published, where somebody watches.
    pub fn note(&self, snapshot: &Arc<Snapshot>, first_end: Lsn) {
        // Every commit takes the lock. Asked before, the last watcher could go, and this one would be kept for nobody.
        let mut kept = self.kept();
        if self.watched() {
            // The watcher may have found it already.
            if kept.back().is_none_or(|last| last.sequence() < snapshot.as_of().sequence) {
                kept.push_back(Boundary { snapshot: Arc::clone(snapshot), first_end });
            }
            while kept.len() > MAX_KEPT {
                kept.pop_front();
            }
        }
    }

    /// The Snapshot of a position: `None` where what follows is not known yet.
    fn find(&self, lsn: Lsn) -> Option<Result<Arc<Snapshot>, NoBoundary>> {
        let kept = self.kept();
        let missed = Some(Err(NoBoundary::Missed(lsn)));
        let Some(at) = kept.iter().rposition(|boundary| boundary.snapshot.as_of().lsn <= lsn) else {
            return if kept.is_empty() { None } else { missed };
        };
        let boundary = kept.get(at)?;
        if boundary.snapshot.as_of().lsn == lsn {
            return Some(Ok(Arc::clone(&boundary.snapshot)));
        }
        let next = kept.get(at + 1)?;
        if next.sequence() == boundary.sequence() + 1 && next.first_end > lsn {
            return Some(Ok(Arc::clone(&boundary.snapshot)));
        }
        missed
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Boundary>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Boundary {
    fn sequence(&self) -> u64 {
        self.snapshot.as_of().sequence
    }
}

/// Has Snapshots of transactions' ends kept until it is dropped.
pub struct BoundaryWatch(Arc<Published>);

impl BoundaryWatch {
    pub(crate) fn start(published: Arc<Published>) -> BoundaryWatch {
        let mut kept = published.boundaries.kept();
        published.boundaries.watchers.fetch_add(1, Ordering::SeqCst);
        // Read under the lock: what is published after it is noted after this.
        if kept.is_empty()
            && let Some(newest) = published.snapshot()
        {
            let first_end = newest.as_of().lsn;
            kept.push_back(Boundary { snapshot: newest, first_end });
        }
        drop(kept);
        BoundaryWatch(published)
    }

    /// The Snapshot in which is everything that was committed upstream up to a position, and nothing after. The position
    /// must be one that upstream had not reached when the watch began.
    pub async fn at(&self, lsn: Lsn, patience: Duration) -> Result<Arc<Snapshot>, NoBoundary> {
        let mut found = None;
        let look = |_: &AsOf| {
            found = self.0.boundaries.find(lsn);
            found.is_some()
        };
        self.0.wait_until(patience, look).await;
        found.unwrap_or(Err(NoBoundary::NotReached(lsn)))
    }
}

impl Drop for BoundaryWatch {
    fn drop(&mut self) {
        let mut kept = self.0.boundaries.kept();
        if self.0.boundaries.watchers.fetch_sub(1, Ordering::SeqCst) == 1 {
            kept.clear();
        }
    }
}
