//! A second pair of eyes: an ordinary session that looks every two seconds at what the stream does not tell. How far
//! upstream is, how much log it keeps for us, whether it still considers us connected, and the signs of publication and
//! tables. It judges nothing but a lost slot: the follower knows what the stream has told meanwhile.

use std::sync::Arc;
use std::time::Duration;

use engine::change::{Lsn, TableId};
use engine::source::{SlotStatus, SourceError, SourceStatus};
use postgres_types::PgLsn;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;
use tracing::Instrument;

use super::config::{CONNECT_TIMEOUT, PostgresConfig};
use super::connect::sql_session;
use super::error::Failure;
use super::signs::Look;
use super::slot;
use super::synchronous;

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
    /// What was seen of publication and tables.
    pub(super) look: Arc<Look>,
    /// Why the stream must end: commits would wait for it.
    pub(super) waited_for: Option<String>,
    /// Since when upstream lets nobody in because it is going down.
    pub(super) ending_since: Option<Instant>,
}

impl View {
    fn new() -> View {
        View {
            verdict: None,
            seen_at: Instant::now(),
            slot_idle_since: None,
            waited_for: None,
            ending_since: None,
            look: Arc::default(),
        }
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
    /// The tables to look at.
    pub(super) tables: watch::Sender<Vec<TableId>>,
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
        tables: Vec<TableId>,
        status: Arc<watch::Sender<SourceStatus>>,
    ) -> Monitor {
        let (sender, view) = watch::channel(View::new());
        let (tables, watched) = watch::channel(tables);
        let watcher = Watcher { config, tables: watched, status, view: sender };
        Monitor { view, tables, task: tokio::spawn(watcher.watch().in_current_span()) }
    }
}

struct Watcher {
    config: PostgresConfig,
    tables: watch::Receiver<Vec<TableId>>,
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
                Ok(Err(Failure::Definite(error))) if error.code == "slot_lost" => {
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
        // Some columns came with later versions; asking by name would fail on earlier ones.
        let row = client
            .query_one(
                "SELECT pg_current_wal_lsn(), pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::int8,
                        coalesce(s.wal_status = 'lost', false), coalesce(s.active, false), s.slot_name IS NOT NULL,
                        coalesce(s.wal_status, ''), s.safe_wal_size, s.restart_lsn, s.confirmed_flush_lsn,
                        coalesce((SELECT t.spill_bytes FROM pg_stat_replication_slots t WHERE t.slot_name = s.slot_name), 0),
                        to_jsonb(s) ->> 'invalidation_reason'
                 FROM (SELECT 1) AS one LEFT JOIN pg_replication_slots s ON s.slot_name = $1",
                &[&self.config.slot],
            )
            .await?;
        let upstream: PgLsn = row.try_get(0)?;
        let retained: Option<i64> = row.try_get(1)?;
        let lost: bool = row.try_get(2)?;
        let active: bool = row.try_get(3)?;
        let there: bool = row.try_get(4)?;
        let position = |index: usize| -> Result<Lsn, Failure> {
            Ok(row.try_get::<_, Option<PgLsn>>(index)?.map_or(Lsn::ZERO, |lsn| Lsn(lsn.into())))
        };
        let slot_status = SlotStatus {
            wal_status: row.try_get(5)?,
            safe_wal_bytes: row.try_get(6)?,
            restart_lsn: position(7)?,
            confirmed_flush_lsn: position(8)?,
            spilled_bytes: row.try_get(9)?,
            invalidation_reason: row.try_get(10)?,
        };
        self.status.send_modify(|status| {
            status.upstream_lsn = status.upstream_lsn.max(Lsn(upstream.into()));
            status.retained_wal_bytes = retained.map(|bytes| bytes.max(0).unsigned_abs());
            status.slot_status = there.then_some(slot_status);
        });
        let waited_for = synchronous::trouble(client).await?.map(|trouble| trouble.to_string());
        let tables = self.tables.borrow().clone();
        let look = Arc::new(Look::take(client, &self.config.publication, &tables).await?);
        self.view.send_modify(|view| {
            view.look = look;
            view.waited_for = waited_for;
            view.seen_at = Instant::now();
            view.ending_since = None;
            view.slot_idle_since = if active { None } else { view.slot_idle_since.or(Some(view.seen_at)) };
        });
        if lost { Err(slot::lost(&self.config.slot)) } else { Ok(()) }
    }
}

/// Waits for the next look. A session that ends may mean that the server goes down: then that is the next look.
async fn rest(session: Option<&Client>) {
    let next = Instant::now() + INTERVAL;
    while Instant::now() < next && session.is_none_or(|session| !session.is_closed()) {
        tokio::time::sleep(INTERVAL / 20).await;
    }
}
