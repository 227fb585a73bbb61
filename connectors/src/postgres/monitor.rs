//! A second pair of eyes: an ordinary session that looks every two seconds at what the stream does not tell. How far
//! upstream is, how much log it keeps for us, whether it still considers us connected, and whether publication or
//! columns were changed behind the stream's back.

use std::sync::Arc;
use std::time::Duration;

use engine::change::{Lsn, TableSchema};
use engine::source::{SourceError, SourceStatus};
use postgres_types::PgLsn;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;

use super::catalog::{Drift, Fingerprint};
use super::config::{CONNECT_TIMEOUT, PostgresConfig};
use super::connect::sql_session;
use super::error::{Failure, START_OVER, source_error};
use super::slot;

const INTERVAL: Duration = Duration::from_secs(2);

/// What the monitor has to say to the stream.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// The source must stop.
    pub(super) verdict: Option<SourceError>,
    /// When the last look succeeded.
    pub(super) seen_at: Instant,
    /// Since when upstream has shown no session on our slot.
    pub(super) slot_idle_since: Option<Instant>,
    /// Since when upstream lets nobody in because it is going down.
    pub(super) ending_since: Option<Instant>,
}

impl View {
    fn new() -> View {
        View { verdict: None, seen_at: Instant::now(), slot_idle_since: None, ending_since: None }
    }
}

/// Pends until upstream has been going down for `grace` with the session that began at `started`. Postgres waits for its
/// walsenders to send everything and be told that it is stored; an engine that is far behind would hold it up.
pub(super) async fn ended(view: &mut watch::Receiver<View>, started: Instant, grace: Duration) {
    let ending = view.wait_for(|view| view.ending_since.is_some_and(|since| since > started)).await.is_ok();
    if !ending {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(grace).await;
}

/// Looks for as long as the handle lives.
pub(super) struct Monitor {
    pub(super) view: watch::Receiver<View>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Monitor {
    pub(super) fn start(
        config: PostgresConfig,
        tables: Vec<TableSchema>,
        baseline: Fingerprint,
        status: Arc<watch::Sender<SourceStatus>>,
    ) -> Monitor {
        let (sender, view) = watch::channel(View::new());
        let watcher = Watcher { config, tables, baseline, status, view: sender };
        Monitor { view, task: tokio::spawn(watcher.watch()) }
    }
}

struct Watcher {
    config: PostgresConfig,
    tables: Vec<TableSchema>,
    baseline: Fingerprint,
    status: Arc<watch::Sender<SourceStatus>>,
    view: watch::Sender<View>,
}

impl Watcher {
    async fn watch(self) {
        let mut session: Option<Client> = None;
        loop {
            let known = session.is_some();
            match timeout(CONNECT_TIMEOUT, self.look(&mut session)).await {
                Ok(Ok(())) => {}
                Ok(Err(Failure::Definite(error))) if error.code == "slot_lost" || error.code.ends_with("_changed") => {
                    self.view.send_modify(|view| view.verdict = Some(error));
                    return;
                }
                // The stream meets the same trouble and reports it; here it only means to look again.
                Ok(Err(failure)) => {
                    tracing::debug!(?failure, "the monitor could not look");
                    session = None;
                    if failure.lets_nobody_in() {
                        self.view.send_modify(|view| view.ending_since = view.ending_since.or(Some(Instant::now())));
                    }
                    // Why a session ended is told to the one that comes next.
                    if known {
                        continue;
                    }
                }
                Err(_) => session = None,
            }
            rest(session.as_ref()).await;
        }
    }

    async fn look(&self, session: &mut Option<Client>) -> Result<(), Failure> {
        let client = match session {
            Some(client) => client,
            None => session.insert(sql_session(&self.config).await?),
        };
        let row = client
            .query_one(
                "SELECT pg_current_wal_lsn(), pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::int8,
                        coalesce(s.wal_status = 'lost', false), coalesce(s.active, false)
                 FROM (SELECT 1) AS one LEFT JOIN pg_replication_slots s ON s.slot_name = $1",
                &[&self.config.slot],
            )
            .await?;
        let upstream: PgLsn = row.try_get(0)?;
        let retained: Option<i64> = row.try_get(1)?;
        let lost: bool = row.try_get(2)?;
        let active: bool = row.try_get(3)?;
        self.status.send_modify(|status| {
            status.upstream_lsn = status.upstream_lsn.max(Lsn(upstream.into()));
            status.retained_wal_bytes = retained.map(|bytes| bytes.max(0).unsigned_abs());
        });
        self.view.send_modify(|view| {
            view.seen_at = Instant::now();
            view.ending_since = None;
            view.slot_idle_since = if active { None } else { view.slot_idle_since.or(Some(view.seen_at)) };
        });
        if lost {
            return Err(slot::lost(&self.config.slot));
        }
        let now = Fingerprint::read(client, &self.config.publication, &self.tables).await?;
        self.baseline.drift_to(&now).map_or(Ok(()), |drift| Err(drifted(&self.config, &drift).into()))
    }
}

/// Waits for the next look. A session that ends may mean that the server goes down: then that is the next look.
async fn rest(session: Option<&Client>) {
    let next = Instant::now() + INTERVAL;
    while Instant::now() < next && session.is_none_or(|session| !session.is_closed()) {
        tokio::time::sleep(INTERVAL / 20).await;
    }
}

/// How a change that the stream does not tell is reported.
pub(super) fn drifted(config: &PostgresConfig, drift: &Drift) -> SourceError {
    match drift {
        Drift::Publication(what) => source_error(
            "publication_changed",
            format!("publication {} {what}: changes in between were not sent and cannot be known", config.publication),
            START_OVER,
        ),
        Drift::Table(what) => {
            source_error("schema_changed", format!("{what} is gone, or is another one now"), START_OVER)
        }
    }
}
