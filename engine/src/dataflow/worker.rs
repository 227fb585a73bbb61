//! The operators, put together, and the threads they run on.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use timely::communication::WorkerGuards;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::generic::operator::source;
use timely::scheduling::SyncActivator;
use timely::worker::Worker;

use super::Epoch;
use super::apply::{Apply, WriteSet};
use super::block::Block;
use super::fold::Fold;
use super::partition::Partitions;
use crate::store::Store;
use crate::torture::{self, Failpoint};
use crate::watermark::Watermark;

/// Longest time a worker sleeps without looking whether it should stop.
const PARK: Duration = Duration::from_millis(100);

/// What the workers need.
pub struct DataflowConfig {
    /// Number of worker threads; at least one.
    pub workers: usize,
    /// The store that cells are read from.
    pub store: Store,
    /// Cells each worker may hold in memory, about.
    pub cells_per_worker: usize,
    /// The sequence the store has reached.
    pub committed: Arc<Watermark>,
}

/// The running dataflow: epochs go in here, write sets come out of the channel it was started with.
pub struct Dataflow {
    inputs: Vec<(Sender<Arc<Epoch>>, SyncActivator)>,
    /// Joins the workers when dropped; they end once the inputs are gone.
    guards: Option<WorkerGuards<()>>,
}

/// The workers could not be started.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the dataflow workers could not be started: {0}")]
pub struct StartError(String);

impl Dataflow {
    /// Starts the workers. Each sends one [`WriteSet`] per epoch through `emit`, in order.
    pub fn start<F>(config: DataflowConfig, emit: F) -> Result<Dataflow, StartError>
    where
        F: Fn(WriteSet) + Send + Sync + 'static,
    {
        Dataflow::start_driven(config, emit, |worker| {
            while worker.has_dataflows() {
                worker.step_or_park(Some(PARK));
            }
        })
    }

    /// As [`Dataflow::start`], where `drive` has each worker go on, on its thread. What it leaves undone is done at the end.
    pub fn start_driven<F, D>(config: DataflowConfig, emit: F, drive: D) -> Result<Dataflow, StartError>
    where
        F: Fn(WriteSet) + Send + Sync + 'static,
        D: Fn(&mut Worker) + Send + Sync + 'static,
    {
        let workers = config.workers.max(1);
        let mut senders = Vec::new();
        let mut receivers = Vec::new();
        for _ in 0..workers {
            let (sender, receiver) = mpsc::channel();
            senders.push(sender);
            receivers.push(Some(receiver));
        }
        let receivers = Mutex::new(receivers);
        let emit = Arc::new(emit);
        let (ready, activators) = mpsc::channel();
        let guards = timely::execute(timely::Config::process(workers), move |worker| {
            let input = receivers
                .lock()
                .ok()
                .and_then(|mut receivers| receivers.get_mut(worker.index()).and_then(Option::take));
            let Some(input) = input else { return };
            crate::pipeline::yield_to_the_source();
            let partitions =
                Partitions::new(config.store.clone(), config.cells_per_worker, Arc::clone(&config.committed));
            let activator = build(worker, input, Apply::new(partitions), Arc::clone(&emit));
            let _ = ready.send((worker.index(), activator));
            drive(worker);
        })
        .map_err(StartError)?;
        let mut by_worker: Vec<(usize, SyncActivator)> = activators.iter().take(workers).collect();
        by_worker.sort_by_key(|(index, _)| *index);
        let inputs = senders.into_iter().zip(by_worker.into_iter().map(|(_, activator)| activator)).collect();
        Ok(Dataflow { inputs, guards: Some(guards) })
    }

    /// The threads, for whoever ends them: without it they are joined when the dataflow is dropped.
    #[cfg(feature = "torture")]
    pub fn take_guards(&mut self) -> Option<WorkerGuards<()>> {
        self.guards.take()
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.inputs.len()
    }

    /// Hands an epoch to every worker. False where a worker is gone.
    #[must_use]
    pub fn send(&self, epoch: &Arc<Epoch>) -> bool {
        self.inputs
            .iter()
            .all(|(sender, activator)| sender.send(Arc::clone(epoch)).is_ok() && activator.activate().is_ok())
    }
}

impl Drop for Dataflow {
    fn drop(&mut self) {
        // The workers end when their inputs are gone, and joining them before would wait for ever.
        let activators: Vec<SyncActivator> = self.inputs.drain(..).map(|(_, activator)| activator).collect();
        activators.iter().for_each(|activator| {
            let _ = activator.activate();
        });
        drop(self.guards.take());
    }
}

/// Builds the dataflow of one worker and returns what wakes it.
fn build<F>(worker: &mut Worker, input: Receiver<Arc<Epoch>>, mut apply: Apply, emit: Arc<F>) -> SyncActivator
where
    F: Fn(WriteSet) + Send + Sync + 'static,
{
    let (index, peers) = (worker.index(), worker.peers());
    // Epochs this worker has folded and not yet applied. Both operators are of this thread.
    let folded: Rc<RefCell<VecDeque<Arc<Epoch>>>> = Rc::default();
    let mut wake = None;
    worker.dataflow::<u64, _, _>(|scope| {
        let sync_worker = scope.worker();
        let to_apply = Rc::clone(&folded);
        let blocks = source::<_, CapacityContainerBuilder<Vec<Block>>, _, _>(scope, "Fold", |capability, info| {
            wake = Some(sync_worker.sync_activator_for(info.address.to_vec()));
            let mut capability = Some(capability);
            let mut fold = Fold::default();
            move |output| {
                let Some(held) = capability.as_mut() else { return };
                loop {
                    match input.try_recv() {
                        Ok(epoch) => {
                            held.downgrade(&epoch.sequence);
                            let mut blocks = fold.epoch(&epoch, index, peers);
                            let sequence = epoch.sequence;
                            to_apply.borrow_mut().push_back(epoch);
                            output.session(&*held).give_container(&mut blocks);
                            held.downgrade(&(sequence + 1));
                        }
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => {
                            capability = None;
                            break;
                        }
                    }
                }
            }
        });
        blocks.sink(Exchange::new(|block: &Block| block.target), "Apply", {
            let mut stash: BTreeMap<u64, Vec<Block>> = BTreeMap::new();
            move |(input, frontier)| {
                input.for_each(|capability, blocks| {
                    if let Some(sequence) = capability.least() {
                        stash.entry(*sequence).or_default().append(blocks);
                    }
                });
                let mut folded = folded.borrow_mut();
                while folded.front().is_some_and(|epoch| !frontier.less_equal(&epoch.sequence)) {
                    let Some(epoch) = folded.pop_front() else { break };
                    let blocks = stash.remove(&epoch.sequence).unwrap_or_default();
                    let written = apply.epoch(&epoch, index, &blocks);
                    torture::reached(Failpoint::GroupApplied);
                    emit(written);
                }
            }
        });
    });
    match wake {
        Some(wake) => wake,
        None => worker.sync_activator_for(Vec::new()),
    }
}
