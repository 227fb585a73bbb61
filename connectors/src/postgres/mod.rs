//! The Postgres source: snapshot once, then the log, forever.
//!
//! A failure is either tried again or final (see `error`). Trying again resumes at the last position handed to the engine
//! in this process, and only ever repeats what the engine knows how to skip. The one thing that cannot be tried again in
//! place is a snapshot whose rows were already sent: its view of the tables is gone for good.

mod catalog;
mod config;
mod connect;
pub(crate) mod copy;
mod error;
mod monitor;
pub(crate) mod pgoutput;
mod preflight;
mod readers;
mod relation;
mod slot;
mod snapshot;
mod stream;
/// A private server for the demo and for tests.
pub mod throwaway;
mod timeline;
mod transaction;
mod transport;
/// The demo's payments.
pub mod workload;

use std::sync::Arc;
use std::time::Duration;

use engine::change::{Lsn, TableSchema};
use engine::source::{ResumePoint, SourceContext, SourceError, SourceEvent, SourceIdentity, SourceState, SourceStatus};
use tokio::sync::{mpsc, oneshot, watch};

pub use config::PostgresConfig;

use catalog::Fingerprint;
use error::{Failure, source_error};
use monitor::Monitor;
use snapshot::Snapshot;
use stream::{Follower, Upstream};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// Reports start-up mistakes. Changes nothing upstream.
pub async fn preflight(config: &PostgresConfig) -> Result<(), SourceError> {
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
    let thread = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::select! {
                () = run_here(config, context) => {}
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
    let SourceContext { resume, events, durable, status, commands: _ } = context;
    let status = Arc::new(status);
    let watched = events.clone();
    let link = Link { events, durable, durable_open: true, status: Arc::clone(&status) };
    let outcome = tokio::select! {
        () = watched.closed() => Failure::Closed,
        failure = drive(&config, resume, link) => failure,
    };
    if let Failure::Definite(error) = outcome {
        tracing::error!(code = error.code, message = %error.message, remedy = %error.remedy, "the Postgres source halted");
        status.send_modify(|status| {
            status.state = SourceState::Halted {
                code: error.code.to_owned(),
                message: error.message.clone(),
                remedy: error.remedy.replace("<slot>", &config.slot),
            };
        });
    }
}

async fn drive(config: &PostgresConfig, resume: ResumePoint, mut link: Link) -> Failure {
    let started = match resume {
        ResumePoint::Fresh => begin_fresh(config, &link).await,
        ResumePoint::Resume { lsn, identity, tables, .. } => {
            begin_resumed(config, lsn, identity, tables.into_iter().map(|table| table.schema).collect())
        }
    };
    match started {
        Ok(started) => follow(config, started, &mut link).await,
        Err(failure) => failure,
    }
}

/// A source whose rows up to `position` are with the engine.
struct Started {
    identity: SourceIdentity,
    tables: Vec<TableSchema>,
    fingerprint: Option<Fingerprint>,
    position: Lsn,
    /// Not told to the engine yet: a resumed source says so only once upstream has passed all checks.
    announced: bool,
    monitor: Option<Monitor>,
}

async fn begin_fresh(config: &PostgresConfig, link: &Link) -> Result<Started, Failure> {
    let mut backoff = Backoff::default();
    let snapshot = loop {
        match Snapshot::open(config).await {
            Ok(snapshot) => break snapshot,
            Err(Failure::Transient(reason)) => backoff.wait(reason, link).await,
            Err(other) => return Err(other),
        }
    };
    let (identity, tables, position) = (snapshot.identity.clone(), snapshot.schemas.clone(), snapshot.lsn);
    let fingerprint = snapshot.fingerprint.clone();
    let monitor = Monitor::start(config.clone(), tables.clone(), fingerprint.clone(), Arc::clone(&link.status));
    link.note_upstream(position);
    link.note_received(position);
    link.send(SourceEvent::Tables { identity: identity.clone(), tables: tables.clone() }).await?;
    snapshot.send(config, link).await.map_err(|failure| match failure {
        Failure::Transient(reason) => Failure::definite(
            "snapshot_interrupted",
            format!("reading the existing rows was interrupted: {reason}"),
            "restart tidemark; it starts the snapshot again",
        ),
        other => other,
    })?;
    Ok(Started { identity, tables, fingerprint: Some(fingerprint), position, announced: true, monitor: Some(monitor) })
}

fn begin_resumed(
    config: &PostgresConfig,
    lsn: Lsn,
    identity: SourceIdentity,
    tables: Vec<TableSchema>,
) -> Result<Started, Failure> {
    let mut stored: Vec<String> = tables.iter().map(TableSchema::qualified_name).collect();
    let mut wanted: Vec<String> = config.tables.iter().map(ToString::to_string).collect();
    stored.sort();
    wanted.sort();
    if identity.connector != "postgres" || identity.slot != config.slot || stored != wanted {
        return Err(source_error(
            "source_changed",
            format!(
                "the data directory belongs to the {} source with slot {} and tables {}, the configuration names slot {} and \
                 tables {}",
                identity.connector,
                identity.slot,
                stored.join(", "),
                config.slot,
                wanted.join(", ")
            ),
            "restore the configuration, or start over with an empty data directory: tidemark serve --data NEWDIR",
        )
        .into());
    }
    Ok(Started { identity, tables, fingerprint: None, position: lsn, announced: false, monitor: None })
}

/// Connects and follows, again and again.
async fn follow(config: &PostgresConfig, started: Started, link: &mut Link) -> Failure {
    let Started { mut identity, tables, mut fingerprint, mut position, mut announced, mut monitor } = started;
    let mut backoff = Backoff::default();
    let mut connections = 0u64;
    loop {
        let timeline = identity.timeline;
        let mut upstream = Upstream { config, identity: &mut identity, tables: &tables, fingerprint: &mut fingerprint };
        let connected = upstream.connect(position, link).await;
        // A new timeline is told to the engine before anything that happened on it.
        announced &= identity.timeline == timeline;
        let failure = match connected {
            Ok(session) => {
                if !announced {
                    let event = SourceEvent::Tables { identity: identity.clone(), tables: tables.clone() };
                    if let Err(failure) = link.send(event).await {
                        return failure;
                    }
                    announced = true;
                }
                if connections > 0 {
                    link.status.send_modify(|status| status.reconnects += 1);
                }
                connections += 1;
                let monitor = match (&mut monitor, &fingerprint) {
                    (Some(monitor), _) => monitor,
                    (empty @ None, Some(baseline)) => empty.insert(Monitor::start(
                        config.clone(),
                        tables.clone(),
                        baseline.clone(),
                        Arc::clone(&link.status),
                    )),
                    (None, None) => return Failure::Closed,
                };
                let mut follower = Follower::new(config, &tables, link, &mut position, session);
                let failure = follower.run(&mut monitor.view).await;
                if follower.fruitful {
                    backoff = Backoff::default();
                }
                failure
            }
            Err(failure) => failure,
        };
        match failure {
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
        self.attempt = self.attempt.saturating_add(1);
        tracing::warn!(%reason, attempt = self.attempt, "Postgres: trying again");
        link.set_state(SourceState::Reconnecting { reason, attempt: self.attempt });
        let longest = FIRST_BACKOFF.saturating_mul(1 << (self.attempt - 1).min(10)).min(LONGEST_BACKOFF);
        tokio::time::sleep(longest.mul_f64(rand::random_range(0.5..=1.0))).await;
    }
}

/// The engine's end of the connector.
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
