//! The engine as others see it: read a Snapshot, register and drop aggregates, wait for a position, ask how it goes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::backup::{self, Backup, BackupError};
use crate::boundary::BoundaryWatch;
use crate::change::Lsn;
use crate::change::value::EPOCH_UNIX_US;
use crate::free_space::FreeSpace;
use crate::materialization::{Aggregate, AggregateId, Definition, DefinitionError, Registration};
use crate::pipeline::{Threads, yield_to_the_source};
use crate::requests::Requests;
pub use crate::sequencer::OnChange;
use crate::sequencer::{Request, stopped};
use crate::shared::Shared;
use crate::snapshot::{AsOf, Snapshot};
use crate::source::{
    FollowedTable, SourceCommand, SourceContext, SourceError, SourceIdentity, SourceState, SourceStatus,
};
pub use crate::store::StoreMemoryUse;
use crate::store::{OpenError, StoreMemory};

/// How long a registration or a drop waits for a source that has just been started to announce its tables.
const TABLES_WAIT: Duration = Duration::from_secs(5);

/// How long a caller waits for a table that it had read. Mostly it is there at once; a transaction upstream that is older
/// holds it up for as long as that goes on.
const JOIN_WAIT: Duration = Duration::from_secs(2);

/// A handle on the running engine; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    requests: Requests,
    commands: mpsc::Sender<SourceCommand>,
    threads: Arc<Mutex<Option<Threads>>>,
    backups: Arc<Path>,
}

/// Why there is no answer now. Turned into 503 by whoever speaks HTTP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unavailable {
    /// Stable name of the reason: `snapshotting`, `catching_up`, `slot_lost`, ...
    pub code: String,
    /// What is the matter.
    pub message: String,
    /// What to do; may be empty where waiting is all there is to do.
    pub remedy: String,
}

/// Why a table that was asked for is not there.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotJoined {
    /// It comes.
    #[error(transparent)]
    Joining(Unavailable),
    /// It does not: what was found when its turn came.
    #[error(transparent)]
    Refused(SourceError),
}

/// What became of a registration.
#[derive(Clone, Debug)]
pub enum Registered {
    /// It is new, durable, and being filled.
    Created(Arc<Aggregate>),
    /// The same definition was registered already.
    Unchanged(Arc<Aggregate>),
}

/// Why an aggregate was not registered. Nothing changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegisterError {
    /// The name cannot stand in a URL.
    #[error("a name is 1 to 63 letters, digits and underscores, not beginning with a digit")]
    BadName,
    /// The source does not follow such a table.
    #[error("there is no table {table}")]
    UnknownTable {
        /// As asked for.
        table: String,
        /// Those that are followed.
        known: Vec<String>,
    },
    /// The definition does not fit the table.
    #[error(transparent)]
    Invalid(#[from] DefinitionError),
    /// There are as many aggregates as there may be.
    #[error("there are {count} aggregates, and at most {max} may be registered")]
    TooMany {
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// Another definition has this name.
    #[error("another definition is registered under this name; it differs in {}", .differences.join(", "))]
    Conflict {
        /// The one that is registered.
        existing: Arc<Aggregate>,
        /// The fields that differ.
        differences: Vec<&'static str>,
    },
    /// The engine cannot take registrations now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// How far an aggregate is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BuildProgress {
    /// Row images read so far.
    pub rows_done: u64,
    /// Row images to read, estimated.
    pub rows_estimated: u64,
    /// Row images read per second.
    pub rows_per_second: f64,
    /// Seconds left at that rate, where known.
    pub eta_s: Option<f64>,
    /// All rows from this instant on are filled in, microseconds since 2000-01-01 UTC.
    pub covered_from_us: Option<i64>,
}

/// How it goes.
#[derive(Clone, Debug)]
pub struct Status {
    /// What the connector measured.
    pub source: SourceStatus,
    /// Who upstream is; empty before the first session of a source.
    pub identity: SourceIdentity,
    /// Newest position that answers show.
    pub applied_lsn: Lsn,
    /// When that was committed upstream, microseconds since 2000-01-01 UTC.
    pub applied_time_us: i64,
    /// Newest position that survives a crash; what upstream is told.
    pub durable_lsn: Lsn,
    /// How far answers are behind upstream; 0 when everything known to have happened is applied.
    pub lag_ms: u64,
    /// Whether answers can be given; if not, why.
    pub ready: Result<(), Unavailable>,
    /// Space on the disk of the store.
    pub free_space: FreeSpace,
    /// Totals since the process started.
    pub counters: Counters,
}

/// Totals since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Upstream transactions applied.
    pub transactions: u64,
    /// Rows inserted, updated, deleted, and read in the initial snapshot.
    pub inserts: u64,
    /// Updates.
    pub updates: u64,
    /// Deletes.
    pub deletes: u64,
    /// Truncates.
    pub truncates: u64,
    /// Rows of the initial snapshot.
    pub snapshot_rows: u64,
    /// Batches written.
    pub commits: u64,
    /// Cells written.
    pub cells_written: u64,
    /// Cells held in memory by the workers.
    pub cells_cached: u64,
    /// Commit groups minted and not yet written.
    pub in_flight: u64,
    /// Cells added up again and compared with their control totals.
    pub scrubbed_cells: u64,
    /// Times that all of them were.
    pub scrub_passes: u64,
    /// Aggregates that turned out to be damaged, and halted.
    pub damaged_aggregates: u64,
}

/// A million cells in ten seconds, at some hundredths of a processor.
pub const DEFAULT_SCRUB_CELLS_PER_S: u64 = 100_000;

/// Each takes its part of every commit: of this many over one table, a change of 2,000 rows is visible some three seconds later.
pub const DEFAULT_MAX_AGGREGATES: usize = 200;

/// Where backups are, in a data directory, unless stated.
pub const BACKUPS: &str = "backups";

/// How to run the engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The data directory.
    pub data: PathBuf,
    /// Worker threads of the dataflow.
    pub workers: usize,
    /// Cells held in memory by all workers together, about; a cell takes some 200 bytes.
    pub cells_in_memory: usize,
    /// Memory of the store.
    pub store_memory: StoreMemory,
    /// Cells added up again in a second, to compare them with their control totals; none where 0.
    pub scrub_cells_per_s: u64,
    /// Aggregates beyond which no further one is registered; those that are there go on.
    pub max_aggregates: usize,
    /// Where backups are written.
    pub backups: PathBuf,
    /// Space on the disk below which nothing is taken from the source; a gibibyte, or less of a small disk, unless stated.
    pub min_free_bytes: Option<u64>,
}

impl EngineConfig {
    /// Defaults for a data directory: one worker, two million cells.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        let data = data.into();
        EngineConfig {
            backups: data.join(BACKUPS),
            data,
            workers: 1,
            cells_in_memory: 2_000_000,
            store_memory: StoreMemory::default(),
            scrub_cells_per_s: DEFAULT_SCRUB_CELLS_PER_S,
            max_aggregates: DEFAULT_MAX_AGGREGATES,
            min_free_bytes: None,
        }
    }
}

impl Engine {
    /// Opens the data directory, starts the threads, and returns what the connector is to be started with.
    pub fn start(config: &EngineConfig) -> Result<(Engine, SourceContext), OpenError> {
        crate::pipeline::start(config)
    }

    /// Without threads where somebody else has it go on.
    pub(crate) fn new(
        shared: Arc<Shared>,
        requests: Requests,
        commands: mpsc::Sender<SourceCommand>,
        threads: Option<Threads>,
        backups: &Path,
    ) -> Engine {
        Engine { shared, requests, commands, threads: Arc::new(Mutex::new(threads)), backups: backups.into() }
    }

    /// The newest Snapshot, or why there is no answer now.
    pub fn snapshot(&self) -> Result<Arc<Snapshot>, Unavailable> {
        self.shared.snapshot()
    }

    /// What the store takes of the memory that it was given; `None` while there is no answer.
    #[must_use]
    pub fn store_memory_use(&self) -> Option<StoreMemoryUse> {
        Some(self.snapshot().ok()?.view().store().memory_use())
    }

    /// Registers an aggregate; returns once it is durable. Filling it goes on in the background.
    pub async fn register(&self, name: &str, definition: Definition) -> Result<Registered, RegisterError> {
        self.register_or(name, definition, OnChange::Refuse).await
    }

    /// As [`Engine::register`], and says what is done where the name has another definition.
    pub async fn register_or(
        &self,
        name: &str,
        definition: Definition,
        on_change: OnChange,
    ) -> Result<Registered, RegisterError> {
        self.wait_for_tables().await;
        let (name, definition) = (name.to_owned(), Box::new(definition));
        self.ask(|reply| Request::Register { name, definition, on_change, reply }).await?
    }

    /// Builds an aggregate anew from the rows, beside the one that answers; returns once that is durable.
    pub async fn rebuild(&self, name: &str) -> Result<Registered, RegisterError> {
        self.ask(|reply| Request::Rebuild { name: name.to_owned(), reply }).await?
    }

    /// Gives up what is being built under a name. A first version is dropped with it, where it was registered since the start
    /// and has never been filled. False where there is nothing to give up.
    pub async fn cancel(&self, name: &str) -> Result<bool, Unavailable> {
        self.ask(|reply| Request::Cancel { name: name.to_owned(), reply }).await?
    }

    /// Holds the filling of an aggregate, or lets it go on. Forgotten when the process ends.
    pub fn pause(&self, aggregate: AggregateId, paused: bool) {
        let mut all = self.shared.paused();
        if paused {
            all.insert(aggregate)
        } else {
            all.remove(&aggregate)
        };
    }

    /// Whether the filling of an aggregate is held.
    #[must_use]
    pub fn is_paused(&self, aggregate: AggregateId) -> bool {
        self.shared.paused().contains(&aggregate)
    }

    /// The version of an aggregate that is being built beside the one that answers.
    #[must_use]
    pub fn next_version(&self, name: &str) -> Option<Arc<Aggregate>> {
        self.shared.published.catalog().aggregates.get(&Registration::next_name(name)).cloned()
    }

    /// Drops an aggregate; returns once that is durable. False where there is none.
    pub async fn drop_aggregate(&self, name: &str) -> Result<bool, Unavailable> {
        self.wait_for_tables().await;
        self.ask(|reply| Request::Drop { name: name.to_owned(), reply }).await?
    }

    /// The tables that are followed. Right after the start it waits until the source has said which.
    pub async fn tables_when_known(&self) -> Vec<Arc<FollowedTable>> {
        self.wait_for_tables().await;
        self.tables()
    }

    /// Right after the start the source has not said yet which tables there are.
    async fn wait_for_tables(&self) {
        let known = || !self.shared.published.catalog().tables.is_empty();
        self.shared.published.wait_until(TABLES_WAIT, |_| known()).await;
    }

    /// Follows one more table, or reads one anew that halted, with or without row images (`None`: as before). Returns its
    /// qualified name once reading has begun; how it goes on is to be seen in [`Engine::tables`].
    pub async fn read_table(&self, table: &str, row_image: Option<bool>) -> Result<String, SourceError> {
        let fixed = || SourceError {
            code: "tables_fixed",
            message: "this source does not take further tables while it runs".to_owned(),
            remedy: "only a running Postgres source does".to_owned(),
        };
        let (reply, answer) = oneshot::channel();
        let command = SourceCommand::ReadTable { table: table.to_owned(), row_image, reply };
        self.commands.send(command).await.map_err(|_| fixed())?;
        // One that comes while the source goes away is neither taken nor dropped.
        let name = tokio::select! {
            biased;
            name = answer => name.map_err(|_| fixed())??,
            () = self.commands.closed() => return Err(fixed()),
        };
        self.shared.asked_for().insert(name.clone());
        Ok(name)
    }

    /// Waits a moment for a table whose reading was asked for and has not begun; others are not waited for.
    pub async fn wait_for_join(&self, table: &str) -> Result<(), NotJoined> {
        self.shared.published.wait_until(JOIN_WAIT, |_| self.joining(table).is_ok()).await;
        self.joining(table)
    }

    /// Whether nothing is to be waited for: the table, by its qualified name, is there, or nobody asked for it.
    pub fn joining(&self, table: &str) -> Result<(), NotJoined> {
        if self.shared.published.catalog().tables.contains_key(table) || !self.shared.asked_for().contains(table) {
            return Ok(());
        }
        match self.shared.source.borrow().refused_tables.get(table) {
            Some(reason) => Err(NotJoined::Refused(reason.clone())),
            None => Err(NotJoined::Joining(Unavailable {
                code: "table_joining".to_owned(),
                message: format!("table {table} is to be followed, and its reading has not begun yet"),
                remedy: "ask again; it begins once tables that were asked for before are read and transactions upstream that are older have ended".to_owned(),
            })),
        }
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Unavailable> {
        self.requests.ask(request).await.ok_or_else(|| self.why_not())
    }

    fn why_not(&self) -> Unavailable {
        self.shared.published.halted().cloned().unwrap_or_else(stopped)
    }

    /// That a backup may have this name, and none has it yet.
    pub fn check_backup_name(&self, name: &str) -> Result<(), BackupError> {
        backup::check_vacant(&self.backups, name)
    }

    /// Takes a backup as of a commit at or after this call, on a thread of its own; everything else goes on. It goes on too
    /// where nobody waits for it any more. `held_slot` is noted in it.
    pub async fn back_up(&self, name: &str, held_slot: Option<String>) -> Result<Backup, BackupError> {
        backup::check_source(&self.shared.identity.load())?;
        let snapshot = self.shared.published.snapshot().ok_or_else(backup::nothing_yet)?;
        let store = snapshot.view().store();
        // Readers' moments are not kept for as long as it takes.
        drop(snapshot);
        let (shared, backups, name) = (Arc::clone(&self.shared), Arc::clone(&self.backups), name.to_owned());
        let (reply, answer) = oneshot::channel();
        let taking = std::thread::Builder::new().name("backup".to_owned()).spawn(move || {
            yield_to_the_source();
            let taken = match shared.backing_up.try_lock() {
                Err(TryLockError::WouldBlock) => Err(BackupError::not_now(
                    "backup_running",
                    "another backup is being taken",
                    "wait for its end; one is taken at a time",
                )),
                Ok(_) | Err(TryLockError::Poisoned(_)) => backup::take(&store, &backups, &name, held_slot),
            };
            // Whoever stops the engine on this answer must find the store closed then, not here, in the middle of the exit.
            drop((store, shared));
            let _ = reply.send(taken);
        });
        let ended = || BackupError::not_now("backup_interrupted", "the backup was not taken", "try again");
        taking.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Waits until `lsn` is applied. False where it was not within the time, or never will be: then there is no Snapshot to
    /// be had either.
    pub async fn wait_for(&self, lsn: Lsn, patience: Duration) -> bool {
        self.shared.published.wait_for(lsn, patience).await
    }

    /// Waits for a commit after this one, for as long as it takes. An error once everything has halted.
    pub async fn newer_than(&self, sequence: u64) -> Result<(), Unavailable> {
        self.shared.published.newer_than(sequence).await
    }

    /// Has Snapshots of transactions' ends kept, to be found by a position that is known only later.
    #[must_use]
    pub fn watch_boundaries(&self) -> BoundaryWatch {
        BoundaryWatch::start(Arc::clone(&self.shared.published))
    }

    /// Follows what is visible: changes with every commit.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<AsOf> {
        self.shared.published.applied()
    }

    /// All aggregates, whatever their state, also while there is no Snapshot to read; without the versions that are built
    /// beside one that answers.
    #[must_use]
    pub fn aggregates(&self) -> Vec<Arc<Aggregate>> {
        let catalog = self.shared.published.catalog();
        catalog.aggregates.values().filter(|aggregate| !aggregate.is_next()).cloned().collect()
    }

    /// The tables that are followed.
    #[must_use]
    pub fn tables(&self) -> Vec<Arc<FollowedTable>> {
        self.shared.published.catalog().tables.values().cloned().collect()
    }

    /// How far an aggregate is filled, while it is being filled.
    #[must_use]
    pub fn build_progress(&self, aggregate: AggregateId) -> Option<BuildProgress> {
        let covered_from_us = self.shared.published.catalog().covered_from.get(&aggregate).copied();
        self.shared.building().get(&aggregate).map(|progress| BuildProgress { covered_from_us, ..*progress })
    }

    /// How it goes.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut source = self.shared.source.borrow().clone();
        let free_space = self.shared.free_space();
        let goes_on =
            matches!(source.state, SourceState::Live | SourceState::CatchingUp | SourceState::Snapshotting { .. });
        if free_space.low && goes_on {
            let (free_bytes, enough_bytes) = (free_space.free_bytes, free_space.enough_bytes());
            source.state = SourceState::DiskLow { free_bytes, enough_bytes };
        }
        let (applied, durable_lsn) = self.shared.published.frontiers();
        let counters = self.shared.counters();
        let behind = counters.in_flight > 0 || applied.lsn < source.received_lsn.max(source.upstream_lsn);
        Status {
            identity: self.shared.identity.load().as_ref().clone(),
            applied_lsn: applied.lsn,
            applied_time_us: applied.commit_time_us,
            durable_lsn,
            lag_ms: if behind { elapsed_ms(applied.commit_time_us) } else { 0 },
            ready: self.shared.ready(),
            source,
            free_space,
            counters,
        }
    }

    /// Commits what was received, makes it durable, and ends all threads. Other handles answer as unavailable from then
    /// on.
    pub async fn stop(&self) {
        self.shared.stopping.raise();
        // Where nobody answers it has ended already.
        let _ = self.requests.ask(Request::Stop).await;
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(threads) = threads {
            let _ = tokio::task::spawn_blocking(move || threads.join()).await;
        }
    }
}

/// Milliseconds since a time in microseconds since 2000-01-01 UTC; 0 where the clocks disagree.
fn elapsed_ms(time_us: i64) -> u64 {
    let now_us = chrono::Utc::now().timestamp_micros().saturating_sub(EPOCH_UNIX_US);
    u64::try_from(now_us.saturating_sub(time_us) / 1_000).unwrap_or_default()
}
