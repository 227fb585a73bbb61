//! Following the log: one replication session from its checks to its end.
//!
//! The surprise: acknowledging must go on while the engine takes nothing. So every wait for the engine also watches the
//! durable position, and lets the transport keep telling Postgres that we live.

use std::time::Duration;

use engine::change::{Lsn, TableSchema};
use engine::source::{SourceEvent, SourceIdentity, SourceState};
use futures::FutureExt;
use postgres_types::PgLsn;
use tokio::sync::watch;
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;

use super::Link;
use super::catalog::{Fingerprint, PublicationState, TypeCatalog, check_publication, database_identity};
use super::config::PostgresConfig;
use super::connect::{replication_session, sql_session};
use super::error::{Failure, START_OVER, source_error};
use super::monitor::{View, drifted};
use super::pgoutput::RelationMessage;
use super::relation;
use super::slot;
use super::timeline::{self, TimelineHistory};
use super::transaction::{Applied, Assembler, Limits};
use super::transport::{Event, Positions, ReplicationClient, ServerIdentity};

/// Idle positions are sent at most this often: a busy neighbour table makes thousands a second.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(20);

/// How long START_REPLICATION may take; the server may have to read a lot of log before it answers.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Silence of stream and monitor together that means the network swallows our packets.
const SILENCE: Duration = Duration::from_secs(60);

/// How long upstream may show no session on our slot before ours counts as cut.
const DETACHED: Duration = Duration::from_secs(6);

/// What must be the same upstream whenever we come back.
pub(super) struct Upstream<'c> {
    pub(super) config: &'c PostgresConfig,
    /// Its timeline follows the server's through a promotion that loses nothing.
    pub(super) identity: &'c mut SourceIdentity,
    pub(super) tables: &'c [TableSchema],
    /// `None` before the first connection of a resumed source.
    pub(super) fingerprint: &'c mut Option<Fingerprint>,
}

/// Events taken in one go at most, before the durable position and the monitor are looked at again.
const MAX_DRAINED: usize = 8_192;

/// A replication session that Postgres accepted and that has passed all checks.
pub(super) struct Session {
    client: ReplicationClient,
    /// For looking up types.
    sql: Client,
    started: Instant,
    start: Lsn,
}

impl Upstream<'_> {
    /// Connects, checks that nothing is missing after `start`, and starts the stream there.
    pub(super) async fn connect(&mut self, start: Lsn, link: &Link) -> Result<Session, Failure> {
        let config = self.config;
        let sql = sql_session(config).await?;
        let row = sql.query_one("SELECT pg_is_in_recovery()", &[]).await?;
        if row.try_get(0)? {
            return Err(Failure::Transient("the server is a standby or still recovering".to_owned()));
        }
        let upstream: PgLsn = sql.query_one("SELECT pg_current_wal_lsn()", &[]).await?.try_get(0)?;
        let positions = Positions { start, durable: link.durable().min(start) };
        let (mut client, server) = replication_session(config).await?;
        self.check_server(&server, &mut client, start).await?;
        self.check_database(&sql).await?;
        slot::check_resume(&sql, config, start).await?;
        slot::keep_on_standbys(&mut client, &sql, config).await?;
        self.check_published(&sql).await?;
        link.note_upstream(Lsn(upstream.into()));
        timeout(START_TIMEOUT, client.start(&config.slot, &config.publication, positions))
            .await
            .map_err(|_| Failure::Transient("START_REPLICATION was not answered".to_owned()))??;
        link.note_acknowledged(positions.durable);
        Ok(Session { client, sql, started: Instant::now(), start })
    }

    async fn check_server(
        &mut self,
        server: &ServerIdentity,
        client: &mut ReplicationClient,
        start: Lsn,
    ) -> Result<(), Failure> {
        if server.system != self.identity.system {
            return Err(Failure::definite(
                "different_server",
                format!(
                    "the server's system identifier is {}; the stored totals come from {}",
                    server.system, self.identity.system
                ),
                format!("name the original server in the URL; or {}", START_OVER),
            ));
        }
        let stored = self.identity.timeline;
        if server.timeline != stored {
            // The first timeline has no history file.
            let history = if server.timeline > 1 {
                let file = client.timeline_history(server.timeline).await?;
                TimelineHistory::parse(file.as_bytes()).ok_or_else(|| {
                    Failure::Transient(format!("the history of timeline {} cannot be read", server.timeline))
                })?
            } else {
                TimelineHistory::default()
            };
            timeline::check(stored, start, server.timeline, &history)?;
            tracing::info!(from = stored, to = server.timeline, %start, "the server was promoted; nothing read is missing there");
        }
        if start > server.flushed {
            return Err(Failure::definite(
                "ahead_of_server",
                format!("tidemark has read up to {start}, but the server's log ends at {}", server.flushed),
                START_OVER,
            ));
        }
        self.identity.timeline = server.timeline;
        Ok(())
    }

    async fn check_database(&self, sql: &Client) -> Result<(), Failure> {
        let database = database_identity(sql).await?;
        if database == self.identity.database {
            return Ok(());
        }
        Err(Failure::definite(
            "different_database",
            format!("the database (name/OID) is {database}; the stored totals come from {}", self.identity.database),
            format!("name the original database in the URL; or {}", START_OVER),
        ))
    }

    /// The publication is whole and, as far as this process can know, never was anything else.
    async fn check_published(&mut self, sql: &Client) -> Result<(), Failure> {
        let config = self.config;
        let changed = |what: &str| {
            source_error(
                "publication_changed",
                format!("{what}: changes in between were not sent and cannot be known"),
                START_OVER,
            )
        };
        match check_publication(sql, &config.publication, self.tables).await {
            Ok(PublicationState::Ready) => {}
            Ok(PublicationState::Missing) => {
                return Err(changed(&format!("publication {} does not exist any more", config.publication)).into());
            }
            Err(Failure::Definite(error)) => return Err(changed(&error.message).into()),
            Err(other) => return Err(other),
        }
        let now = Fingerprint::read(sql, &config.publication, self.tables).await?;
        let drift = match self.fingerprint {
            Some(before) => before.drift_to(&now),
            None => now.key_drift(self.tables),
        };
        if let Some(drift) = drift {
            return Err(drifted(config, &drift).into());
        }
        self.fingerprint.get_or_insert(now);
        Ok(())
    }
}

/// State of one session while it runs.
pub(super) struct Follower<'s> {
    link: &'s mut Link,
    /// Highest position handed to the engine; outlives the session.
    handed_over: &'s mut Lsn,
    client: ReplicationClient,
    sql: Client,
    assembler: Assembler,
    types: TypeCatalog,
    /// Highest position received in this session: never acknowledged beyond.
    received: Lsn,
    /// Idle position that waits for its turn.
    idle: Option<(Lsn, i64)>,
    next_progress: Instant,
    started: Instant,
    heard_at: Instant,
    /// Something came in: the connection works, and the next failure is the first again.
    pub(super) fruitful: bool,
}

impl<'s> Follower<'s> {
    pub(super) fn new(
        config: &'s PostgresConfig,
        tables: &[TableSchema],
        link: &'s mut Link,
        handed_over: &'s mut Lsn,
        session: Session,
    ) -> Self {
        let limits = Limits { bytes: config.max_transaction_bytes, rows: config.max_transaction_rows };
        Follower {
            link,
            handed_over,
            client: session.client,
            sql: session.sql,
            assembler: Assembler::new(tables.to_vec(), limits),
            types: TypeCatalog::default(),
            received: session.start,
            idle: None,
            next_progress: session.started,
            started: session.started,
            heard_at: session.started,
            fruitful: false,
        }
    }

    /// Runs until something fails.
    pub(super) async fn run(&mut self, view: &mut watch::Receiver<View>) -> Failure {
        self.link.set_state(SourceState::Live);
        loop {
            if let Err(failure) = self.step(view).await {
                return failure;
            }
            if let Err(failure) = self.drain().await {
                return failure;
            }
        }
    }

    /// Takes what has arrived already, without looking at anything else for each row.
    async fn drain(&mut self) -> Result<(), Failure> {
        for _ in 0..MAX_DRAINED {
            let Some(event) = unconstrained(self.client.receive()).now_or_never() else { break };
            self.take(event?).await?;
        }
        Ok(())
    }

    async fn step(&mut self, view: &mut watch::Receiver<View>) -> Result<(), Failure> {
        let idle_due = self.idle.is_some() && !self.assembler.is_open();
        tokio::select! {
            event = self.client.receive() => {
                self.heard_at = Instant::now();
                self.fruitful = true;
                self.take(event?).await
            }
            durable = self.link.durable_changed() => {
                acknowledge(&mut self.client, self.link, durable, self.received);
                Ok(())
            }
            () = tokio::time::sleep_until(self.next_progress), if idle_due => self.send_idle().await,
            Ok(()) = view.changed() => {
                let view = view.borrow_and_update().clone();
                self.heed(view)
            }
        }
    }

    fn heed(&self, view: View) -> Result<(), Failure> {
        if let Some(verdict) = view.verdict {
            return Err(verdict.into());
        }
        if view.slot_idle_since.is_some_and(|since| since > self.started && since.elapsed() > DETACHED) {
            return Err(Failure::Transient("Postgres has no session on our slot any more".to_owned()));
        }
        if self.heard_at.elapsed() > SILENCE && view.seen_at.elapsed() > SILENCE {
            return Err(Failure::Transient("Postgres has not answered for a minute".to_owned()));
        }
        Ok(())
    }

    async fn take(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Begin => {
                self.assembler.begin();
                Ok(())
            }
            Event::Change { position, body } => match self.assembler.apply(self.client.bytes(body), position)? {
                Applied::Done => Ok(()),
                Applied::Relation(index, message) => {
                    Self::bind(&mut self.assembler, &mut self.types, &self.sql, index, &message).await
                }
            },
            Event::Commit { end_lsn, commit_time_us } => self.commit(end_lsn, commit_time_us).await,
            Event::KeepAlive { position, time_us } => {
                if !self.assembler.is_open() && position > *self.handed_over {
                    self.idle = Some((position, time_us));
                    if self.next_progress <= self.heard_at {
                        return self.send_idle().await;
                    }
                }
                Ok(())
            }
            Event::TooLarge { position, bytes, limit, relation } => {
                Err(self.assembler.row_too_large(position, bytes, limit, relation).into())
            }
        }
    }

    /// Not of `self`: the message lies in the session's buffer.
    async fn bind(
        assembler: &mut Assembler,
        types: &mut TypeCatalog,
        sql: &Client,
        index: usize,
        message: &RelationMessage<'_>,
    ) -> Result<(), Failure> {
        let oids: Vec<u32> = message.columns.iter().map(|column| column.type_oid).collect();
        types.learn(sql, &oids).await?;
        let Some(schema) = assembler.table(index) else { return Ok(()) };
        let bound = relation::bind(message, schema, types)?;
        assembler.bind(index, bound);
        Ok(())
    }

    async fn commit(&mut self, end_lsn: Lsn, commit_time_us: i64) -> Result<(), Failure> {
        let transaction = self.assembler.commit(end_lsn, commit_time_us);
        if end_lsn <= *self.handed_over {
            return Ok(());
        }
        if transaction.changes.is_empty() {
            self.idle = Some((end_lsn, commit_time_us));
            return if self.next_progress <= self.heard_at { self.send_idle().await } else { Ok(()) };
        }
        self.idle = None;
        self.hand_over(end_lsn, SourceEvent::Transaction(transaction)).await
    }

    async fn send_idle(&mut self) -> Result<(), Failure> {
        self.next_progress = Instant::now() + PROGRESS_INTERVAL;
        match self.idle.take() {
            Some((lsn, time_us)) => self.hand_over(lsn, SourceEvent::Progress { lsn, time_us }).await,
            None => Ok(()),
        }
    }

    /// Waits for the engine to take the event, and acknowledges meanwhile.
    async fn hand_over(&mut self, position: Lsn, event: SourceEvent) -> Result<(), Failure> {
        // Received is received, whether or not the engine has taken it: only durable positions are acknowledged.
        self.received = self.received.max(position);
        self.link.note_received(self.received);
        let events = self.link.events.clone();
        let sending = events.send(event);
        tokio::pin!(sending);
        loop {
            tokio::select! {
                sent = &mut sending => {
                    sent.map_err(|_| Failure::Closed)?;
                    *self.handed_over = position;
                    return Ok(());
                }
                durable = self.link.durable_changed() => {
                    acknowledge(&mut self.client, self.link, durable, self.received);
                }
                failure = self.client.attend() => return Err(failure),
            }
        }
    }
}

/// Tells upstream what is durable, and never more than it sent: Postgres would believe a position it never reached and
/// skip transactions up to it.
fn acknowledge(client: &mut ReplicationClient, link: &Link, durable: Lsn, received: Lsn) {
    let position = durable.min(received);
    client.acknowledge(position);
    link.note_acknowledged(position);
}
