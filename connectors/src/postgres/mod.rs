//! The Postgres source: snapshot once, then the log, forever.
//!
//! A failure is either tried again or final (see `error`). Trying again resumes at the last position handed to the engine
//! in this process, and only ever repeats what the engine knows how to skip. The one thing that cannot be tried again in
//! place is a snapshot whose rows were already sent: its view of the tables is gone for good.

/// Who looks at the demo's payments while nobody writes.
pub mod bookkeeper;
mod catalog;
mod config;
mod connect;
pub(crate) mod copy;
pub(crate) mod dotted_name;
mod error;
mod following;
mod held_log;
mod impasse;
mod inheritance;
mod joiner;
mod joins;
mod monitor;
mod nesting;
mod patience;
pub(crate) mod pgoutput;
mod preflight;
mod readers;
mod recount;
mod relation;
mod retold;
mod signs;
mod slot;
mod snapshot;
mod stream;
mod synchronous;
/// A private server for the demo and for tests.
pub mod throwaway;
mod timeline;
mod transaction;
mod transport;
mod upstream;
/// The demo's payments.
pub mod workload;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::change::Lsn;
use engine::source::{
    FollowedTable, Milestone, ResumePoint, SourceCommand, SourceContext, SourceError, SourceEvent, SourceIdentity,
    SourceState, SourceStatus, TableState,
};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument;

pub use config::{DEFAULT_SNAPSHOT_READERS, PostgresConfig};
pub use held_log::{hold_log, release_log, taking_the_place};
pub use preflight::{Finding, Stage, check, repair};
pub use recount::Recount;
pub use slot::{Dropped, Orphan, drop_slot, unread_slots};

use crate::NotStarted;
use config::TableName;
use error::{Failure, source_error, with_slot_named};
use following::Following;
use impasse::Impasse;
use joins::Joins;
use monitor::Monitor;
use preflight::Lookout;
use snapshot::{MADE_ANEW, Snapshot};
use stream::{Course, Follower};
use upstream::Upstream;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// Reports start-up mistakes. Changes nothing upstream.
pub async fn preflight(config: &PostgresConfig) -> Result<(), NotStarted> {
    preflight::preflight(config).await
}

/// Runs until the engine closes the channel, or until the source cannot go on exactly: then the state is `Halted`.
///
/// On a thread of its own, for the socket's reader and what becomes of its rows: spread over a pool, every row wakes
/// another thread.
pub async fn run(config: PostgresConfig, context: SourceContext) {
    let status = context.status.clone();
    // Whoever drops this future ends the thread too: its end of the channel goes with it.
    let (_wanted, unwanted) = oneshot::channel::<()>();
    // What it logs is of this source, on that thread too.
    let source = tracing::Span::current();
    let thread = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::select! {
                () = run_here(config, context).instrument(source) => {}
                _ = unwanted => {}
            }
        });
        Ok::<(), std::io::Error>(())
    });
    let failed = match thread.await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    status.send_modify(|status| {
        status.state = SourceState::Halted {
            code: "connector_failed".to_owned(),
            message: format!("the Postgres source ended: {failed}"),
            remedy: "restart tidemark; nothing is lost, upstream still holds it".to_owned(),
        };
    });
}

async fn run_here(config: PostgresConfig, context: SourceContext) {
    let SourceContext { resume, events, durable, status, commands } = context;
    let status = Arc::new(status);
    let watched = events.clone();
    let link = Link { events, durable, durable_open: true, status: Arc::clone(&status) };
    let lookout = Lookout::start(&config, &resume, &status);
    let outcome = tokio::select! {
        () = watched.closed() => Failure::Closed,
        failure = drive(&config, resume, link, commands) => failure,
    };
    if let Failure::Definite(error) = outcome {
        let error = with_slot_named(error, &config.slot);
        let lsn = status.borrow().received_lsn;
        tracing::error!(%lsn, code = error.code, reason = %error.message, remedy = %error.remedy, "the Postgres source halted");
        status.send_modify(|status| {
            status.state = SourceState::Halted {
                code: error.code.to_owned(),
                message: error.message.clone(),
                remedy: error.remedy.clone(),
            };
        });
        tokio::select! {
            () = watched.closed() => {}
            () = lookout.look_again() => {}
        }
    }
}

async fn drive(
    config: &PostgresConfig,
    resume: ResumePoint,
    mut link: Link,
    commands: mpsc::Receiver<SourceCommand>,
) -> Failure {
    let started = match resume {
        ResumePoint::Fresh => begin_fresh(config, &link).await,
        ResumePoint::Resume { lsn, identity, tables, notes, milestone } => {
            begin_resumed(config, (lsn, milestone), identity, tables, notes)
        }
    };
    match started {
        Ok(started) => follow(config, started, &mut link, commands).await,
        Err(failure) => failure,
    }
}

/// A source whose rows up to `position` are with the engine.
struct Started {
    identity: SourceIdentity,
    following: Following,
    joins: Joins,
    position: Lsn,
    milestone: Milestone,
    /// Not told to the engine yet: a resumed source says so only once upstream has passed all checks.
    announced: bool,
}

async fn begin_fresh(config: &PostgresConfig, link: &Link) -> Result<Started, Failure> {
    let (mut backoff, mut anew) = (Backoff::default(), MADE_ANEW);
    let snapshot = loop {
        link.set_state(SourceState::CreatingSlot { waiting_for: 0, oldest_pid: 0, oldest_age_s: 0 });
        match Snapshot::open(config, link, &mut anew).await {
            Ok(snapshot) => break snapshot,
            Err(Failure::Transient(reason)) => backoff.wait(reason, link).await,
            Err(other) => return Err(other),
        }
    };
    let (identity, following, position) = (snapshot.identity.clone(), snapshot.following(), snapshot.lsn());
    link.note_upstream(position);
    link.note_received(position);
    // Shows what upstream keeps for us meanwhile.
    let _monitor = Monitor::start(config.clone(), Vec::new(), Arc::clone(&link.status));
    link.send(announcement(&identity, &following)).await?;
    for table in following.tables() {
        for partition in &table.partitions {
            link.send(SourceEvent::PartitionAdded { table: table.schema.id, partition: *partition }).await?;
        }
    }
    snapshot.send(config, link).await.map_err(|failure| match failure {
        Failure::Transient(reason) => Failure::definite(
            "snapshot_interrupted",
            format!("reading the existing rows was interrupted: {reason}"),
            "restart tidemark; it starts the snapshot again",
        ),
        other => other,
    })?;
    let rows = match link.status.borrow().state {
        SourceState::Snapshotting { rows_done, .. } => rows_done,
        _ => 0,
    };
    tracing::info!(rows, slot = %config.slot, lsn = %position, "the rows that were there are read; changes are followed from here on");
    Ok(Started {
        identity,
        following,
        joins: Joins::default(),
        position,
        milestone: Milestone::begin(position),
        announced: true,
    })
}

fn announcement(identity: &SourceIdentity, following: &Following) -> SourceEvent {
    let tables = following.tables().iter().map(|table| table.schema.clone()).collect();
    SourceEvent::Tables { identity: identity.clone(), tables }
}

/// Tables that the configuration names and the engine does not know join; those it knows are followed, named or not, and read
/// anew where their row images were switched on or off since.
fn begin_resumed(
    config: &PostgresConfig,
    (position, milestone): (Lsn, Milestone),
    identity: SourceIdentity,
    tables: Vec<FollowedTable>,
    notes: Option<String>,
) -> Result<Started, Failure> {
    if identity.connector != "postgres" || identity.slot != config.slot {
        return Err(source_error(
            "source_changed",
            format!(
                "the data directory belongs to the {} source with slot {}, the configuration names slot {}",
                identity.connector, identity.slot, config.slot
            ),
            "restore the configuration, or start over with an empty data directory: tidemark serve --data NEWDIR",
        )
        .into());
    }
    let following = Following::resume(tables, notes.as_deref());
    let mut joins = Joins::default();
    for wanted in config.wanted_tables() {
        let followed = following.by_name(&wanted.name.to_string()).map(|table| table.schema.keeps_row_image);
        if followed.is_some_and(|keeps| keeps != wanted.keeps_row_image) {
            tracing::warn!(table = %wanted.name, keeps_row_image = wanted.keeps_row_image, "row images were switched: the table is read anew");
        }
        if followed != Some(wanted.keeps_row_image) {
            joins.wait_for(wanted);
        }
    }
    for FollowedTable { schema, .. } in following.tables().iter().filter(|table| table.standing == TableState::Reading)
    {
        joins.wait_for(config.wanted(TableName::of(schema), Some(schema.keeps_row_image)));
    }
    Ok(Started { identity, following, joins, position, milestone, announced: false })
}

/// Connects and follows, again and again.
async fn follow(
    config: &PostgresConfig,
    started: Started,
    link: &mut Link,
    commands: mpsc::Receiver<SourceCommand>,
) -> Failure {
    let Started { mut identity, following, joins, position, milestone, mut announced } = started;
    let mut course = Course {
        handed_over: position,
        milestone,
        following,
        joins,
        outbox: VecDeque::new(),
        commands,
        commands_ended: false,
    };
    let mut backoff = Backoff::default();
    let mut impasse = Impasse::default();
    let mut monitor = None;
    let mut connections = 0u64;
    loop {
        let timeline = identity.timeline;
        let mut upstream = Upstream { config, identity: &mut identity, following: &mut course.following };
        let connected = upstream.connect(course.handed_over, course.milestone, link).await;
        // A new timeline is told to the engine before anything that happened on it.
        announced &= identity.timeline == timeline;
        let failure = match connected {
            Ok(session) => {
                if !announced {
                    if let Err(failure) = link.send(announcement(&identity, &course.following)).await {
                        return failure;
                    }
                    announced = true;
                    tracing::info!(slot = %config.slot, lsn = %course.handed_over, "changes are followed");
                }
                if connections > 0 {
                    link.status.send_modify(|status| status.reconnects += 1);
                }
                connections += 1;
                let monitor = monitor.get_or_insert_with(|| {
                    Monitor::start(config.clone(), course.following.ids(), Arc::clone(&link.status))
                });
                let (mut follower, look, judgement) = Follower::new(config, link, &mut course, monitor, session);
                let failure = follower.run(look, judgement).await;
                if follower.fruitful {
                    backoff = Backoff::default();
                }
                failure
            }
            Err(failure) => failure,
        };
        match impasse.judge(failure, course.handed_over, Instant::now()) {
            Failure::Transient(reason) => backoff.wait(reason, link).await,
            other => return other,
        }
    }
}

/// Jittered and exponential, without an end: an outage is not ours to judge.
#[derive(Default)]
struct Backoff {
    attempt: u32,
}

impl Backoff {
    async fn wait(&mut self, reason: String, link: &Link) {
        tracing::warn!(%reason, attempt = self.attempt + 1, "Postgres: trying again");
        link.set_state(SourceState::Reconnecting { reason, attempt: self.attempt + 1 });
        self.pause().await;
    }

    async fn pause(&mut self) {
        self.attempt = self.attempt.saturating_add(1);
        let longest = FIRST_BACKOFF.saturating_mul(1 << (self.attempt - 1).min(10)).min(LONGEST_BACKOFF);
        tokio::time::sleep(longest.mul_f64(rand::random_range(0.5..=1.0))).await;
    }
}

/// The engine's end of the connector.
#[derive(Clone)]
struct Link {
    events: mpsc::Sender<SourceEvent>,
    durable: watch::Receiver<Lsn>,
    /// The engine still tells what is durable.
    durable_open: bool,
    status: Arc<watch::Sender<SourceStatus>>,
}

impl Link {
    async fn send(&self, event: SourceEvent) -> Result<(), Failure> {
        self.events.send(event).await.map_err(|_| Failure::Closed)
    }

    fn set_state(&self, state: SourceState) {
        self.status.send_modify(|status| status.state = state);
    }

    /// A table that was to join cannot, or may try again.
    fn note_refusal(&self, table: &str, refusal: Option<SourceError>) {
        self.status.send_modify(|status| match refusal {
            Some(error) => drop(status.refused_tables.insert(table.to_owned(), error)),
            None => drop(status.refused_tables.remove(table)),
        });
    }

    fn durable(&self) -> Lsn {
        *self.durable.borrow()
    }

    /// The next durable position. Pends forever once the engine tells no more.
    async fn durable_changed(&mut self) -> Lsn {
        if !self.durable_open || self.durable.changed().await.is_err() {
            self.durable_open = false;
            return std::future::pending().await;
        }
        *self.durable.borrow_and_update()
    }

    /// Positions change with every transaction: readers look when they want to, nobody is woken.
    fn note_received(&self, lsn: Lsn) {
        self.status.send_if_modified(|status| {
            status.received_lsn = status.received_lsn.max(lsn);
            false
        });
    }

    fn note_acknowledged(&self, lsn: Lsn) {
        self.status.send_if_modified(|status| {
            status.acknowledged_lsn = status.acknowledged_lsn.max(lsn);
            false
        });
    }

    /// The end of upstream's log as found on connecting; the first one is what has to be reached before serving.
    fn note_upstream(&self, lsn: Lsn) {
        self.status.send_modify(|status| {
            status.upstream_lsn = status.upstream_lsn.max(lsn);
            status.upstream_lsn_at_start.get_or_insert(lsn);
        });
    }
}
