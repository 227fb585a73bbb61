//! What the threads of the engine and its callers share: what is published, and the state around it. Every field has one
//! writer.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use crate::engine::{BuildProgress, Counters, Unavailable};
use crate::free_space::FreeSpace;
use crate::materialization::AggregateId;
use crate::published::Published;
use crate::scrubber::Suspects;
use crate::snapshot::Snapshot;
use crate::source::{SourceIdentity, SourceState, SourceStatus};
use crate::sync::{ArcSwap, AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, watch};
use crate::watermark::Flag;

/// Shared by all handles of one engine.
pub struct Shared {
    /// The newest Snapshot, the frontiers, the end.
    pub published: Arc<Published>,
    /// The upstream position seen at start was reached once.
    pub caught_up: Flag,
    /// Written by the connector.
    pub source: watch::Receiver<SourceStatus>,
    /// Who upstream is; written by the sequencer.
    pub identity: ArcSwap<SourceIdentity>,
    /// Aggregates being filled; written by the filler.
    pub building: Mutex<HashMap<AggregateId, BuildProgress>>,
    /// Aggregates whose filling is held; written by callers.
    pub paused: Mutex<HashSet<AggregateId>>,
    /// Tables that callers had read, by qualified name; those that are not known yet are joining.
    pub asked_for: Mutex<HashSet<String>>,
    /// Aggregates whose reading failed; written by readers.
    pub suspects: Arc<Suspects>,
    /// Space on the disk; written by the thread that looks.
    pub free_space: watch::Sender<FreeSpace>,
    /// A batch waits for space on the disk; written by the committer.
    pub waits_for_space: AtomicBool,
    /// The engine is to end: nothing waits any more; written by callers.
    pub stopping: Flag,
    /// Held while a backup is taken.
    pub backing_up: Mutex<()>,
    /// Totals since the process started.
    pub totals: Totals,
}

/// Totals since the process started.
#[derive(Default)]
#[allow(missing_docs)]
pub struct Totals {
    pub transactions: AtomicU64,
    pub inserts: AtomicU64,
    pub updates: AtomicU64,
    pub deletes: AtomicU64,
    pub truncates: AtomicU64,
    pub snapshot_rows: AtomicU64,
    pub commits: AtomicU64,
    pub cells_written: AtomicU64,
    pub cells_cached: AtomicU64,
    pub minted: AtomicU64,
    pub scrubbed_cells: AtomicU64,
    pub scrub_passes: AtomicU64,
    pub damaged_aggregates: AtomicU64,
}

impl Shared {
    /// Before anything ran.
    #[must_use]
    pub fn new(published: Published, source: watch::Receiver<SourceStatus>, identity: SourceIdentity) -> Self {
        let totals = Totals::default();
        totals.minted.store(published.committed().reached(), Ordering::Relaxed);
        Shared {
            published: Arc::new(published),
            caught_up: Flag::new(false),
            source,
            identity: ArcSwap::new(Arc::new(identity)),
            building: Mutex::default(),
            paused: Mutex::default(),
            asked_for: Mutex::default(),
            suspects: Arc::default(),
            free_space: watch::Sender::default(),
            waits_for_space: AtomicBool::new(false),
            stopping: Flag::new(false),
            backing_up: Mutex::default(),
            totals,
        }
    }

    /// Stops everything for good: reads answer with this from now on. The first reason stays.
    pub fn halt(&self, code: &str, message: impl Into<String>, remedy: &str) {
        let reason = Unavailable { code: code.to_owned(), message: message.into(), remedy: remedy.to_owned() };
        tracing::error!(code, reason = %reason.message, "halted");
        self.published.halt(reason);
    }

    /// The newest Snapshot, or why there is no answer now. Whether there is one is asked first: it may be by a position that
    /// only the newest Snapshot has.
    pub fn snapshot(&self) -> Result<Arc<Snapshot>, Unavailable> {
        self.ready()?;
        self.published.snapshot().ok_or_else(|| Unavailable {
            code: "starting".to_owned(),
            message: "nothing was committed since this process started".to_owned(),
            remedy: "try again in a moment".to_owned(),
        })
    }

    /// Whether answers can be given; if not, why.
    pub fn ready(&self) -> Result<(), Unavailable> {
        if let Some(reason) = self.published.halted() {
            return Err(reason.clone());
        }
        let source = self.source.borrow();
        if let SourceState::Halted { code, message, remedy } = &source.state {
            return Err(Unavailable { code: code.clone(), message: message.clone(), remedy: remedy.clone() });
        }
        let wait = |code: &str, message: String| {
            Err(Unavailable { code: code.to_owned(), message, remedy: "it ends by itself; try again".to_owned() })
        };
        if !self.published.streaming() {
            return match &source.state {
                SourceState::Snapshotting { rows_done, rows_estimated } => {
                    wait("snapshotting", format!("reading the existing rows: {rows_done} of about {rows_estimated}"))
                }
                _ => wait("starting", "the source has not delivered its first snapshot yet".to_owned()),
            };
        }
        if !self.published.scrubbed() {
            return wait("checking_store", "the newest cells are checked before they are shown".to_owned());
        }
        if self.caught_up.is_raised() {
            return Ok(());
        }
        // Readers must never see time go back: what was served before a restart is reached again first.
        let applied = self.published.as_of().lsn;
        if let (SourceState::Snapshotting { rows_done, .. }, None) = (&source.state, source.upstream_lsn_at_start) {
            return wait("snapshotting", format!("taking the existing rows: {rows_done} so far"));
        }
        match source.upstream_lsn_at_start {
            Some(start) if applied >= start => {
                self.caught_up.raise();
                Ok(())
            }
            Some(start) => {
                wait("catching_up", format!("at {applied}, not yet at {start} where upstream stood at start"))
            }
            None => wait("connecting", "the source has not been reached since this process started".to_owned()),
        }
    }

    /// Space on the disk, and whether anything is held for want of it.
    pub fn free_space(&self) -> FreeSpace {
        let space = *self.free_space.borrow();
        FreeSpace { low: space.low || self.waits_for_space.load(Ordering::Acquire), ..space }
    }

    /// Aggregates being filled.
    pub fn building(&self) -> MutexGuard<'_, HashMap<AggregateId, BuildProgress>> {
        self.building.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Aggregates whose filling is held.
    pub fn paused(&self) -> MutexGuard<'_, HashSet<AggregateId>> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tables that callers had read.
    pub fn asked_for(&self) -> MutexGuard<'_, HashSet<String>> {
        self.asked_for.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The totals as of now.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let totals = &self.totals;
        Counters {
            transactions: get(&totals.transactions),
            inserts: get(&totals.inserts),
            updates: get(&totals.updates),
            deletes: get(&totals.deletes),
            truncates: get(&totals.truncates),
            snapshot_rows: get(&totals.snapshot_rows),
            commits: get(&totals.commits),
            cells_written: get(&totals.cells_written),
            cells_cached: get(&totals.cells_cached),
            scrubbed_cells: get(&totals.scrubbed_cells),
            scrub_passes: get(&totals.scrub_passes),
            damaged_aggregates: get(&totals.damaged_aggregates),
            in_flight: get(&totals.minted).saturating_sub(self.published.committed().reached()),
        }
    }
}
