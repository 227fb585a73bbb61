//! An engine without a will of its own: nothing of it goes on unless it is told to, one step of one actor at a time. The same
//! code as the threads of `pipeline` run, over the same store; time is tokio's, which a test can hold.
//!
//! Whoever chooses the steps by a seed can have every interleaving of the actors again. Workers have threads, because the
//! dataflow library wants them, but go on only while everybody waits for them.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::watch;

use crate::change::Lsn;
use crate::commit::Committer;
use crate::dataflow::worker::Dataflow;
use crate::durable;
use crate::engine::{Engine, EngineConfig};
use crate::fill;
use crate::pipeline::{Parts, assemble, hand_over};
use crate::shared::Shared;
use crate::source::SourceContext;
use crate::store::{OpenError, Store};

/// Who may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Takes what came in until it would wait.
    Sequencer,
    /// One step of this worker's operators.
    Worker(usize),
    /// One batch.
    Committer,
    /// Takes notice of what is written.
    DurabilityNotes,
    /// Syncs what it took notice of.
    DurabilitySyncs,
    /// Goes on until all fillings would wait.
    Filler,
}

type Running = Pin<Box<dyn Future<Output = ()>>>;

/// A worker's thread, from outside.
struct Stepper {
    go: Sender<()>,
    done: Receiver<()>,
}

/// An engine, step by step. Dropping it is the end of its threads, and no orderly one: what is in its store stays as it is.
pub struct Simulation {
    /// What callers see of it.
    pub engine: Engine,
    store: Store,
    shared: Arc<Shared>,
    sequencer: Option<Running>,
    filler: Option<Running>,
    /// With what tells callers of its end, which is dropped after it.
    committer: Option<(Committer, watch::Sender<()>)>,
    dirty_in: Sender<Lsn>,
    dirty: Receiver<Lsn>,
    noted: Option<Lsn>,
    steppers: Vec<Stepper>,
    guards: Option<Box<dyn std::any::Any>>,
}

impl Simulation {
    /// As [`Engine::start`]. Nothing scrubs, and nobody looks at the space on the disk.
    pub fn start(config: &EngineConfig) -> Result<(Simulation, SourceContext), OpenError> {
        let config = EngineConfig { scrub_cells_per_s: 0, ..config.clone() };
        let mut steppers = Vec::new();
        let mut of_workers = Vec::new();
        for _ in 0..config.workers.max(1) {
            let ((go, gone), (did, done)) = (channel::<()>(), channel::<()>());
            steppers.push(Stepper { go, done });
            of_workers.push(Some((gone, did)));
        }
        let of_workers = Mutex::new(of_workers);
        let mut guards = None;
        let parts = assemble(&config, |dataflow, written| {
            let mut dataflow = Dataflow::start_driven(dataflow, hand_over(written), move |worker| {
                let mut all = of_workers.lock().unwrap_or_else(PoisonError::into_inner);
                let Some((gone, did)) = all.get_mut(worker.index()).and_then(Option::take) else { return };
                drop(all);
                while gone.recv().is_ok() {
                    worker.step();
                    let _ = did.send(());
                }
            })?;
            guards = dataflow.take_guards();
            Ok(dataflow)
        })?;
        let Parts { store, shared, requests, commands, context, sequencer, committer, committing, workers, .. } = parts;
        let engine = Engine::new(Arc::clone(&shared), requests, commands, None, &config.backups);
        let (fills, filled_in, fill_shared) = (parts.fills, parts.filled_in, Arc::clone(&shared));
        let filler = async move { fill::run(fills, &filled_in, &fill_shared, workers).await };
        let simulation = Simulation {
            engine,
            store,
            shared,
            sequencer: Some(Box::pin(sequencer.run())),
            filler: Some(Box::pin(filler)),
            committer: Some((committer, committing)),
            dirty_in: parts.dirty_in,
            dirty: parts.dirty,
            noted: None,
            steppers,
            guards: guards.map(|guards| Box::new(guards) as Box<dyn std::any::Any>),
        };
        Ok((simulation, context))
    }

    /// All actors.
    #[must_use]
    pub fn actors(&self) -> Vec<Actor> {
        let workers = (0..self.steppers.len()).map(Actor::Worker);
        [Actor::Sequencer, Actor::Committer, Actor::DurabilityNotes, Actor::DurabilitySyncs, Actor::Filler]
            .into_iter()
            .chain(workers)
            .collect()
    }

    /// Has one of them go on, in a runtime whose time is tokio's.
    pub fn step(&mut self, actor: Actor) {
        match actor {
            Actor::Sequencer => go_on(&mut self.sequencer),
            Actor::Filler => go_on(&mut self.filler),
            Actor::Worker(index) => {
                if let Some(stepper) = self.steppers.get(index)
                    && stepper.go.send(()).is_ok()
                {
                    let _ = stepper.done.recv();
                }
            }
            Actor::Committer => {
                if let Some((committer, _)) = &mut self.committer
                    && !committer.step(&self.dirty_in)
                {
                    self.committer = None;
                }
            }
            Actor::DurabilityNotes => self.noted = self.dirty.try_iter().last().or(self.noted),
            Actor::DurabilitySyncs => {
                if let Some(lsn) = self.noted.take() {
                    durable::sync(&self.store, &self.shared, lsn);
                }
            }
        }
    }

    /// Says that the disk is nearly full, or is not any more.
    pub fn hold_for_space(&self, low: bool) {
        self.shared.free_space.send_modify(|space| space.low = low);
    }

    /// Whether nothing that was committed waits to be synced.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        let (applied, durable) = self.shared.published.frontiers();
        self.noted.is_none() && durable >= applied.lsn
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        self.shared.stopping.raise();
        // The workers' inputs go with the sequencer; then they end by themselves, once nobody holds them.
        (self.sequencer, self.filler, self.committer) = (None, None, None);
        self.steppers.clear();
        drop(self.guards.take());
    }
}

/// Until it waits. Nobody has to be woken: whoever waits is asked again.
fn go_on(running: &mut Option<Running>) {
    if let Some(future) = running
        && let Poll::Ready(()) = future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    {
        *running = None;
    }
}
