//! What is published: the newest Snapshot, the two frontiers, and the end. The committer publishes, the durability thread
//! says what is durable, anybody reads, waits and halts; nobody holds anybody up.
//!
//! What a reader may count on hangs on the order of a few lines here. Whoever is told of something finds it: the Snapshot is
//! there before its position is told, the reason before the end is. Whoever waits is woken by both. `tests/schedules`
//! includes this very file, and looks for an order of steps in which that fails.

use std::sync::Arc;
use std::time::Duration;

use crate::boundary::Boundaries;
use crate::change::Lsn;
use crate::engine::Unavailable;
use crate::materialization::Catalog;
use crate::snapshot::{AsOf, Snapshot};
use crate::sync::{ArcSwap, OnceLock, timeout, watch};
use crate::torture::{self, Failpoint};
use crate::watermark::{Flag, Watermark};

/// What is there to be read: one cell, because a catalog and the Snapshot that has it belong together.
pub enum Newest {
    /// What is registered, until this process has committed something that can be read.
    Registered(Arc<Catalog>),
    /// The cells, and what is registered, as of a commit.
    Snapshot(Arc<Snapshot>),
}

/// What is published of one engine.
pub struct Published {
    /// Written by the committer.
    newest: ArcSwap<Newest>,
    /// What is visible; written by the committer.
    applied: watch::Sender<AsOf>,
    /// What survives a crash; written by the durability thread.
    durable: watch::Sender<Lsn>,
    /// The sequence that the store has reached, for those who cannot wait; written by the committer.
    committed: Arc<Watermark>,
    /// The initial snapshot is complete; written by the committer.
    streaming: Flag,
    /// The newest Partitions were scrubbed; written by the scrubber.
    scrubbed: Flag,
    /// Why nothing goes on any more.
    halted: OnceLock<Unavailable>,
    /// The newest Snapshots, while somebody watches; written by the committer.
    pub(crate) boundaries: Boundaries,
}

impl Published {
    /// As the store was found, before anything ran.
    #[must_use]
    pub fn new(stored: AsOf, registered: Catalog, streaming: bool, scrubbed: bool) -> Published {
        Published {
            newest: ArcSwap::new(Arc::new(Newest::Registered(Arc::new(registered)))),
            applied: watch::Sender::new(stored),
            durable: watch::Sender::new(if streaming { stored.lsn } else { Lsn::ZERO }),
            committed: Arc::new(Watermark::new(stored.sequence)),
            streaming: Flag::new(streaming),
            scrubbed: Flag::new(scrubbed),
            halted: OnceLock::new(),
            boundaries: Boundaries::default(),
        }
    }

    /// Shows a commit that is written. `first_end` is the end of its first transaction, or its position.
    pub fn publish(&self, as_of: AsOf, newest: Newest, first_end: Lsn) {
        let snapshot = match &newest {
            Newest::Registered(_) => None,
            Newest::Snapshot(snapshot) => Some(Arc::clone(snapshot)),
        };
        self.newest.store(Arc::new(newest));
        if let Some(snapshot) = &snapshot {
            self.boundaries.note(snapshot, first_end);
            torture::reached(Failpoint::Publishing);
        }
        self.committed.reach(as_of.sequence);
        if snapshot.is_some() {
            self.streaming.raise();
            torture::reached(Failpoint::Publishing);
        }
        self.applied.send_replace(as_of);
    }

    /// Says that everything up to here survives a crash.
    pub fn made_durable(&self, lsn: Lsn) {
        self.durable.send_if_modified(|durable| {
            let newer = lsn > *durable;
            if newer {
                *durable = lsn;
            }
            newer
        });
    }

    /// Says that the newest cells were checked.
    pub fn newest_scrubbed(&self) {
        self.scrubbed.raise();
        self.wake();
    }

    /// Ends everything for good. The first reason stays.
    pub fn halt(&self, reason: Unavailable) {
        let _ = self.halted.set(reason);
        self.wake();
    }

    /// Whoever waits for a commit looks again.
    fn wake(&self) {
        self.applied.send_modify(|_| {});
    }

    /// The newest Snapshot; none before the first commit of this process that can be read.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        match self.newest.load().as_ref() {
            Newest::Registered(_) => None,
            Newest::Snapshot(snapshot) => Some(Arc::clone(snapshot)),
        }
    }

    /// What is registered: that of the newest Snapshot, where there is one.
    #[must_use]
    pub fn catalog(&self) -> Arc<Catalog> {
        match self.newest.load().as_ref() {
            Newest::Registered(catalog) => Arc::clone(catalog),
            Newest::Snapshot(snapshot) => Arc::clone(snapshot.catalog()),
        }
    }

    /// What is visible.
    #[must_use]
    pub fn as_of(&self) -> AsOf {
        *self.applied.borrow()
    }

    /// What is visible and what of it is durable. The latter is read first: read last, it could be ahead.
    #[must_use]
    pub fn frontiers(&self) -> (AsOf, Lsn) {
        let durable = *self.durable.borrow();
        (self.as_of(), durable)
    }

    /// Whether there is anything to read but what a first reading of the tables has brought so far.
    #[must_use]
    pub fn streaming(&self) -> bool {
        self.streaming.is_raised()
    }

    /// Whether the newest cells were checked, where they are to be.
    #[must_use]
    pub fn scrubbed(&self) -> bool {
        self.scrubbed.is_raised()
    }

    /// Why nothing goes on any more.
    #[must_use]
    pub fn halted(&self) -> Option<&Unavailable> {
        self.halted.get()
    }

    /// The sequence that the store has reached.
    #[must_use]
    pub fn committed(&self) -> &Arc<Watermark> {
        &self.committed
    }

    /// Follows what is visible: changes with every commit, and is told of the end.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<AsOf> {
        self.applied.subscribe()
    }

    /// Follows what survives a crash.
    #[must_use]
    pub fn durable(&self) -> watch::Receiver<Lsn> {
        self.durable.subscribe()
    }

    /// Waits until a position is visible. False where it is not within the time, or never will be.
    pub async fn wait_for(&self, lsn: Lsn, patience: Duration) -> bool {
        // The stored position counts once there is a Snapshot of it, and its newest cells were checked.
        let shown = || self.snapshot().is_some() && self.scrubbed();
        self.wait_until(patience, |as_of| as_of.lsn >= lsn && shown()).await
    }

    /// Waits for a commit after this one, for as long as it takes. An error once everything has halted.
    pub async fn newer_than(&self, sequence: u64) -> Result<(), Unavailable> {
        self.next(|as_of| as_of.sequence > sequence).await;
        self.halted().cloned().map_or(Ok(()), Err)
    }

    /// Waits until something holds that commits change. False where it does not within the time, or never will.
    pub async fn wait_until(&self, patience: Duration, holds: impl FnMut(&AsOf) -> bool) -> bool {
        timeout(patience, self.next(holds)).await.unwrap_or(false)
    }

    /// Whether that holds, once it does or everything has ended.
    async fn next(&self, mut holds: impl FnMut(&AsOf) -> bool) -> bool {
        let mut held = false;
        let looked = self
            .applied()
            .wait_for(|as_of| {
                held = holds(as_of);
                held || self.halted().is_some()
            })
            .await
            .is_ok();
        looked && held
    }
}
