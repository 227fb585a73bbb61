//! The thread that scrubs: the newest Partitions before anything is served, as many as half a second is enough for, then
//! everything, slowly, over and over; and at once the aggregates whose reading failed. A damaged aggregate halts with the way to
//! build it anew; the others go on.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::materialization::{Aggregate, AggregateId, AggregateState};
use crate::scrub::{Damage, scrub_aggregate};
use crate::sequencer::Request;
use crate::shared::Shared;

/// Partitions of each level that are scrubbed before anything is served: of every aggregate the newest, then some more.
const NEWEST: [usize; 2] = [1, 16];
/// How long everybody waits for that at most: millions of cells take longer, and are scrubbed with all others.
const BEFORE_SERVING: Duration = Duration::from_millis(500);
/// Pause between two passes.
const BETWEEN_PASSES: Duration = Duration::from_secs(3_600);
/// How often it is looked whether the reading of an aggregate failed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks for the answer that a damaged aggregate is halted.
const ANSWER_PAUSE: Duration = Duration::from_millis(20);

/// Aggregates whose reading failed.
#[derive(Default)]
pub struct Suspects(Mutex<BTreeSet<AggregateId>>);

impl Suspects {
    /// The reading of this one failed.
    pub fn note(&self, aggregate: AggregateId) {
        self.lock().insert(aggregate);
    }

    fn take(&self) -> BTreeSet<AggregateId> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<AggregateId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine has ended.
struct Ended;

/// What of an aggregate is scrubbed.
#[derive(Clone, Copy)]
enum Extent {
    /// The newest Partitions of each level, until then.
    Newest {
        count: usize,
        until: Instant,
    },
    All,
}

impl Extent {
    fn newest(self) -> Option<usize> {
        match self {
            Extent::Newest { count, .. } => Some(count),
            Extent::All => None,
        }
    }
}

/// What the thread works with.
pub struct Scrubber {
    /// The engine.
    pub shared: Arc<Shared>,
    /// To halt aggregates. Weak: an engine whose handles are gone ends.
    pub requests: mpsc::WeakSender<Request>,
    /// Disconnected when the engine ends.
    pub running: Receiver<()>,
    /// Cells scrubbed in a second, about.
    pub cells_per_s: u64,
}

impl Scrubber {
    /// Runs until the engine ends.
    pub fn run(self) {
        // Ending in the middle is nothing to tell anyone.
        let _ = self.run_to_the_end();
    }

    fn run_to_the_end(&self) -> Result<(), Ended> {
        self.until_published()?;
        let until = Instant::now() + BEFORE_SERVING;
        for count in NEWEST {
            for aggregate in self.live().iter().take_while(|_| Instant::now() < until) {
                self.check(aggregate, Extent::Newest { count, until })?;
            }
        }
        self.shared.published.newest_scrubbed();
        loop {
            for aggregate in self.live() {
                self.check(&aggregate, Extent::All)?;
                self.check_suspects()?;
            }
            self.shared.totals.scrub_passes.fetch_add(1, Ordering::Relaxed);
            let mut left = BETWEEN_PASSES;
            while !left.is_zero() {
                self.pause(LOOK_EVERY)?;
                self.check_suspects()?;
                left = left.saturating_sub(LOOK_EVERY);
            }
        }
    }

    /// The first commit of this process publishes a Snapshot.
    fn until_published(&self) -> Result<(), Ended> {
        while self.shared.published.snapshot().is_none() {
            self.pause(Duration::from_millis(5))?;
        }
        Ok(())
    }

    fn live(&self) -> Vec<Arc<Aggregate>> {
        let catalog = self.shared.published.catalog();
        catalog.aggregates.values().filter(|aggregate| aggregate.state == AggregateState::Live).cloned().collect()
    }

    fn check_suspects(&self) -> Result<(), Ended> {
        let suspects = self.shared.suspects.take();
        if suspects.is_empty() {
            return Ok(());
        }
        let live = self.live();
        live.iter()
            .filter(|aggregate| suspects.contains(&aggregate.id))
            .try_for_each(|one| self.check(one, Extent::All))
    }

    /// Scrubs an aggregate as of now, and halts it where it is damaged.
    fn check(&self, aggregate: &Aggregate, extent: Extent) -> Result<(), Ended> {
        let Some(snapshot) = self.shared.published.snapshot() else { return Ok(()) };
        let current = snapshot.catalog().aggregates.get(&aggregate.name);
        let live = |one: &&Arc<Aggregate>| one.id == aggregate.id && one.state == AggregateState::Live;
        let Some(current) = current.filter(live) else { return Ok(()) };
        let mut ended = false;
        let damage = scrub_aggregate(&snapshot, current, extent.newest(), |cells| {
            self.shared.totals.scrubbed_cells.fetch_add(cells, Ordering::Relaxed);
            match extent {
                // Before anything is served there is nobody to be gentle to.
                Extent::Newest { until, .. } => Instant::now() < until,
                Extent::All => {
                    let pause = Duration::from_micros(cells.saturating_mul(1_000_000) / self.cells_per_s.max(1));
                    ended = self.pause(pause).is_err();
                    !ended
                }
            }
        });
        match damage {
            _ if ended => Err(Ended),
            None => Ok(()),
            Some(damage) => self.halt(current, &damage),
        }
    }

    fn halt(&self, aggregate: &Aggregate, damage: &Damage) -> Result<(), Ended> {
        let name = &aggregate.name;
        tracing::error!(aggregate = %name, level = %damage.granularity, what = %damage.what, "the stored cells are damaged");
        self.shared.totals.damaged_aggregates.fetch_add(1, Ordering::Relaxed);
        let state = AggregateState::Halted {
            code: "store_corrupt".to_owned(),
            message: format!("what is stored of it by {} is damaged: {}", damage.granularity, damage.what),
            remedy: format!("have it built anew from the rows: POST /v1/aggregates/{name}/backfill:rebuild"),
        };
        let (done, mut halted) = oneshot::channel();
        let request = Request::Halt { aggregate: aggregate.id, state, reply: done };
        self.requests.upgrade().ok_or(Ended)?.blocking_send(request).map_err(|_| Ended)?;
        // Not the answer alone: one that nobody gives would keep this thread, and who joins it, for ever.
        loop {
            match halted.try_recv() {
                Ok(()) => return Ok(()),
                Err(oneshot::error::TryRecvError::Closed) => return Err(Ended),
                Err(oneshot::error::TryRecvError::Empty) => self.pause(ANSWER_PAUSE)?,
            }
        }
    }

    fn pause(&self, time: Duration) -> Result<(), Ended> {
        match self.running.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(Ended),
        }
    }
}
