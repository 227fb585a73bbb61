//! The start: open the store, see what it holds, start the threads and wire their channels. Every channel is bounded, or
//! bounded by the number of groups that may be in flight.
//!
//! ```text
//! connector --events(64)--> sequencer --epochs--> workers --write sets--+
//! callers --requests(64)-->     |   ^                                   v
//!                               |   +--chunks(4)-- filler <--views-- committer --> durability
//!                               +----------------commits---------------^
//! ```

use std::sync::{Arc, mpsc as sync_mpsc};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, watch};

use crate::backup;
use crate::change::Lsn;
use crate::commit::{Committer, NumbersGiven, ToCommit};
use crate::commit_group::Position;
use crate::dataflow::apply::WriteSet;
use crate::dataflow::worker::{Dataflow, DataflowConfig, StartError};
use crate::durable::keep_durable;
use crate::engine::{Engine, EngineConfig};
use crate::fill::{self, FillMessage, FillRequest};
use crate::free_space::FreeSpaceWatch;
use crate::materialization::{Aggregate, AggregateId, AggregateState, Bucket, Catalog, ClockReading, Registration};
use crate::published::Published;
use crate::requests::Requests;
use crate::row_image::RowImages;
use crate::scrubber::Scrubber;
use crate::sequencer::{Inputs, Sequencer, Stored};
use crate::shared::Shared;
use crate::snapshot::AsOf;
use crate::source::{Milestone, ResumePoint, SourceCommand, SourceContext, SourceStatus};
use crate::store::registry;
use crate::store::{self, Answered, Batch, Cursor, KeyKind, OpenError, Store, StoreError, cursor, key};
use crate::torture::{self, Bug};

/// Source events between connector and sequencer.
const EVENTS: usize = 64;
/// Requests of callers.
const REQUESTS: usize = 64;
/// Chunks of fillings.
const CHUNKS: usize = 4;

/// The threads of one engine.
pub struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    /// Waits for all of them.
    pub fn join(self) {
        for thread in self.0 {
            let _ = thread.join();
        }
    }
}

/// Everything of an engine that runs, before any of it does: the threads below run them, and a simulation runs them step by step.
pub(crate) struct Parts {
    pub store: Store,
    pub shared: Arc<Shared>,
    pub requests: Requests,
    pub commands: mpsc::Sender<SourceCommand>,
    pub context: SourceContext,
    pub sequencer: Sequencer,
    pub committer: Committer,
    /// To be dropped after the committer: whoever asks then learns that nobody answers.
    pub committing: watch::Sender<()>,
    /// Committed, and to be synced.
    pub dirty_in: sync_mpsc::Sender<Lsn>,
    pub dirty: sync_mpsc::Receiver<Lsn>,
    /// To be filled.
    pub fills: mpsc::UnboundedReceiver<FillRequest>,
    pub filled_in: mpsc::Sender<FillMessage>,
    pub workers: usize,
}

/// Opens the store, sees what it holds, and wires everything; `start_dataflow` starts the workers.
pub(crate) fn assemble(
    config: &EngineConfig,
    start_dataflow: impl FnOnce(DataflowConfig, sync_mpsc::Sender<ToCommit>) -> Result<Dataflow, StartError>,
) -> Result<Parts, OpenError> {
    let store = Store::open(&config.data, config.store_memory)?;
    let (stored, answered) = recover(&store).map_err(|error| store::damaged(&config.data, error))?;
    let resume = match (&stored.identity, stored.streaming) {
        (Some(identity), true) => ResumePoint::Resume {
            lsn: stored.position.lsn,
            identity: identity.clone(),
            tables: stored.tables.iter().map(|table| table.as_ref().clone()).collect(),
            notes: stored.notes.clone(),
            milestone: stored.position.milestone,
        },
        _ => ResumePoint::Fresh,
    };
    let (status, source) = watch::channel(SourceStatus::default());
    let as_of =
        AsOf { lsn: stored.position.lsn, commit_time_us: stored.position.commit_time_us, sequence: stored.sequence };
    let scrubbed = !stored.streaming || config.scrub_cells_per_s == 0;
    let published = Published::new(as_of, stored_catalog(&stored), stored.streaming, scrubbed);
    let shared = Arc::new(Shared::new(published, source, stored.identity.clone().unwrap_or_default()));

    let (events_in, events) = mpsc::channel(EVENTS);
    let (requests_in, requests) = mpsc::channel(REQUESTS);
    let (committing, committer_watched) = watch::channel(());
    let (filled_in, filled) = mpsc::channel(CHUNKS);
    let (stopped_in, stopped) = mpsc::unbounded_channel();
    let (commit_in, commits) = sync_mpsc::channel();
    let (fill_in, fills) = mpsc::unbounded_channel();
    let (dirty_in, dirty) = sync_mpsc::channel();

    let workers = config.workers.max(1);
    let dataflow = start_dataflow(
        DataflowConfig {
            workers,
            store: store.clone(),
            cells_per_worker: config.cells_in_memory / workers,
            committed: Arc::clone(shared.published.committed()),
        },
        commit_in.clone(),
    )
    .map_err(|error| OpenError::cannot_start(error.to_string(), "try again; lower --workers"))?;
    let given = NumbersGiven { next_aggregate: stored.next_aggregate, answered };
    let committer = Committer::new(store.clone(), Arc::clone(&shared), workers, commits, fill_in, stopped_in, given);
    let (context, commands) = SourceContext::new(resume, events_in, shared.published.durable(), status);
    let inputs = Inputs { events, requests, filled, stopped, commands: commands.clone() };
    let images = RowImages::new(store.clone());
    let sequencer =
        Sequencer::new(Arc::clone(&shared), images, dataflow, commit_in, inputs, stored, config.max_aggregates);
    Ok(Parts {
        store,
        shared,
        requests: Requests::new(requests_in, committer_watched),
        commands,
        context,
        sequencer,
        committer,
        committing,
        dirty_in,
        dirty,
        fills,
        filled_in,
        workers,
    })
}

/// What workers do with what they wrote.
pub(crate) fn hand_over(committer: sync_mpsc::Sender<ToCommit>) -> impl Fn(WriteSet) + Send + Sync + 'static {
    move |set| {
        let _ = committer.send(ToCommit::Written(set));
    }
}

/// Starts everything; see [`Engine::start`].
pub fn start(config: &EngineConfig) -> Result<(Engine, SourceContext), OpenError> {
    let parts = assemble(config, |dataflow, written| Dataflow::start(dataflow, hand_over(written)))?;
    // The store is ours alone from here on: nobody else is taking one.
    backup::remove_leftovers(&config.data, &config.backups);
    let Parts { store, shared, requests, commands, context, sequencer, committer, committing, workers, .. } = parts;
    let (dirty_in, dirty, fills, filled_in) = (parts.dirty_in, parts.dirty, parts.fills, parts.filled_in);

    let mut threads = Vec::new();
    let mut spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new()
            .name(format!("tidemark-{name}"))
            .spawn(|| {
                yield_to_the_source();
                run();
            })
            .map(|thread| threads.push(thread))
            .map_err(|error| OpenError::cannot_start(format!("no thread: {error}"), "raise the limit of threads"))
    };
    spawn(
        "commit",
        Box::new(move || {
            committer.run(&dirty_in);
            drop(committing);
        }),
    )?;
    let durable_shared = Arc::clone(&shared);
    spawn("durable", Box::new(move || keep_durable(&store, &durable_shared, &dirty)))?;
    let (runtime, fill_shared) = (one_thread()?, Arc::clone(&shared));
    spawn("fill", Box::new(move || runtime.block_on(fill::run(fills, &filled_in, &fill_shared, workers))))?;
    let runtime = one_thread()?;
    // Disconnected when the sequencer ends.
    let (running_in, running) = sync_mpsc::channel::<()>();
    let (watched_in, watched) = sync_mpsc::channel::<()>();
    let space = FreeSpaceWatch::new(Arc::clone(&shared), config.data.clone(), watched, config.min_free_bytes);
    spawn(
        "sequence",
        Box::new(move || {
            runtime.block_on(sequencer.run());
            drop((running_in, watched_in));
        }),
    )?;
    spawn("space", Box::new(move || space.run()))?;
    if config.scrub_cells_per_s > 0 {
        let (shared, requests) = (Arc::clone(&shared), requests.downgrade());
        let scrubber = Scrubber { shared, requests, running, cells_per_s: config.scrub_cells_per_s };
        spawn("scrub", Box::new(move || scrubber.run()))?;
    }

    Ok((Engine::new(shared, requests, commands, Some(Threads(threads)), &config.backups), context))
}

/// What runs the futures of one thread.
fn one_thread() -> Result<tokio::runtime::Runtime, OpenError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| OpenError::cannot_start(format!("no runtime: {error}"), "raise the limit of open files"))
}

/// Gives the calling engine thread less weight than the connector's. Between Postgres and us lies a socket buffer of a few
/// hundred rows: whenever the thread that reads it waits for a processor, Postgres waits too. The engine's own queues are
/// longer.
pub(crate) fn yield_to_the_source() {
    /// Weight falls by a tenth with each step; 5 is a third.
    const NICE: i32 = 5;
    // Where it is not allowed, everything still works.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "no lower priority for the engine's threads");
    }
}

/// What is registered, before the first commit publishes it: nobody may be told that it does not exist.
fn stored_catalog(stored: &Stored) -> Catalog {
    let tables = stored.tables.iter().map(|table| (table.schema.qualified_name(), Arc::clone(table))).collect();
    let aggregates = stored
        .aggregates
        .iter()
        .cloned()
        .map(|stored| (stored.name.clone(), Arc::new(Aggregate::restore(stored, &tables))))
        .collect();
    Catalog { aggregates, tables, ..Catalog::default() }
}

/// Reads what the store holds, and clears away what an earlier process left unfinished.
fn recover(store: &Store) -> Result<(Stored, Answered), StoreError> {
    // Before anything is removed that an unfinished beginning would have left.
    let mut answered = Answered::read(store)?;
    let stored_cursor = Cursor::read(store)?;
    let mut next_aggregate = cursor::read_next_aggregate(store)?;
    let mut aggregates = registry::read_aggregates(store)?;
    let mut batch = Batch::default();
    if stored_cursor.is_none() {
        // An initial snapshot that did not finish starts over.
        let mut ranges = [KeyKind::Row, KeyKind::RowIndex, KeyKind::Cell, KeyKind::Control, KeyKind::Table]
            .map(key::of_kind)
            .to_vec();
        ranges.push(key::Range::prefix(key::meta("rows/")));
        store.clear(&ranges)?;
    } else {
        restart_fillings(store, &mut batch, &mut aggregates, &mut next_aggregate)?;
    }
    if !batch.is_empty() {
        store.write(batch)?;
        store.sync()?;
    }
    let at = stored_cursor.unwrap_or_default();
    let stored = Stored {
        position: Position {
            lsn: at.lsn,
            commit_time_us: at.commit_time_us,
            // Stores from before it was kept have none: nothing is known of what was told, and comparing begins here.
            milestone: cursor::read_milestone(store)?.unwrap_or_else(|| Milestone::begin(at.lsn)),
        },
        sequence: at.sequence,
        streaming: stored_cursor.is_some(),
        tables: registry::read_tables(store)?.into_iter().map(Arc::new).collect(),
        identity: if stored_cursor.is_some() { cursor::read_source(store)? } else { None },
        aggregates,
        next_aggregate,
        notes: cursor::read_notes(store)?,
    };
    answered.catch_up(store)?;
    Ok((stored, answered))
}

/// An aggregate that was being filled begins anew under another number, so that nothing of the first try can count. So does a next
/// version that is stored as live: nobody would put it in its place. So does one whose cells a Tidemark of before filled by another
/// reading of its clock: until it is filled it answers nothing.
fn restart_fillings(
    store: &Store,
    batch: &mut Batch,
    aggregates: &mut [Registration],
    next_aggregate: &mut u32,
) -> Result<(), StoreError> {
    for aggregate in aggregates.iter_mut() {
        let read_otherwise = is_read_otherwise(store, aggregate)?;
        let unfinished = match aggregate.state {
            AggregateState::Building => true,
            AggregateState::Live => read_otherwise || Registration::final_name(&aggregate.name).is_some(),
            AggregateState::Halted { .. } => false,
        };
        if !unfinished {
            continue;
        }
        if torture::planted(Bug::KeepsHalfAFilling) {
            aggregate.state = AggregateState::Live;
            registry::put_aggregate(batch, aggregate)?;
            continue;
        }
        if read_otherwise {
            tracing::warn!(aggregate = %aggregate.name, "filled anew: its clock is now read as Postgres reads it");
        }
        aggregate.state = AggregateState::Building;
        aggregate.clock_reading = ClockReading::Postgres;
        batch.delete(&key::aggregate(aggregate.id));
        for kind in [KeyKind::RowIndex, KeyKind::Cell, KeyKind::Control] {
            store.delete_range(batch, &key::of_aggregate(kind, aggregate.id))?;
        }
        aggregate.id = AggregateId(*next_aggregate);
        *next_aggregate += 1;
        registry::put_aggregate(batch, aggregate)?;
        cursor::put_next_aggregate(batch, *next_aggregate)?;
    }
    Ok(())
}

/// Whether it has cells that rows are read into otherwise now.
fn is_read_otherwise(store: &Store, aggregate: &Registration) -> Result<bool, StoreError> {
    let Some(from) = aggregate.read_otherwise_from() else { return Ok(false) };
    let last = Bucket(Bucket::INFINITY.0 - 1);
    Ok(!store.is_empty(&key::cells(aggregate.id, 0, from, last))?)
}

/// Makes a panic of an engine thread end the process. A worker that panics otherwise leaves its peers alive with a frozen
/// frontier; everything is safe on disk and a restart continues.
pub fn abort_on_engine_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let thread = std::thread::current();
        if thread.name().is_some_and(|name| name.starts_with("tidemark-") || name.starts_with("timely")) {
            std::process::abort();
        }
    }));
}
