//! What must be the same upstream whenever we come back: server, timeline, database, slot, publication, tables.
//!
//! Owns the rule that a stream is only started where nothing can be missing in it.

use std::time::Duration;

use engine::change::Lsn;
use engine::source::{Milestone, SourceIdentity};
use postgres_types::PgLsn;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;

use super::Link;
use super::catalog::database_identity;
use super::config::PostgresConfig;
use super::connect::{refuse_standby, replication_session, sql_session};
use super::error::{Failure, START_OVER};
use super::following::{Following, Judgement};
use super::retold;
use super::signs::Look;
use super::slot;
use super::synchronous;
use super::timeline::{self, TimelineHistory};
use super::transport::{Positions, ReplicationClient, ServerIdentity};

/// How long START_REPLICATION may take; the server may have to read a lot of log before it answers.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// See the module.
pub(super) struct Upstream<'c> {
    pub(super) config: &'c PostgresConfig,
    /// Its timeline follows the server's through a promotion that loses nothing.
    pub(super) identity: &'c mut SourceIdentity,
    pub(super) following: &'c mut Following,
}

/// A replication session that Postgres accepted and that has passed all checks.
pub(super) struct Session {
    pub(super) client: ReplicationClient,
    /// For looking things up.
    pub(super) sql: Client,
    /// `server_version_num`.
    pub(super) version: i32,
    pub(super) started: Instant,
    pub(super) start: Lsn,
    /// End of upstream's log when it was checked.
    pub(super) upstream: Lsn,
    /// What was seen of the tables, and what it leads to.
    pub(super) look: Look,
    pub(super) judgement: Judgement,
}

/// Starts the stream of a slot, main or temporary.
pub(super) async fn start_stream(
    client: &mut ReplicationClient,
    slot: &str,
    publication: &str,
    positions: Positions,
) -> Result<(), Failure> {
    timeout(START_TIMEOUT, client.start(slot, publication, positions))
        .await
        .map_err(|_| Failure::Transient("START_REPLICATION was not answered".to_owned()))?
}

/// Whether a walsender of this version can miss a table that joins the publication in its life: decoding a transaction that began
/// before makes it remember the table as not published, and nothing tells it otherwise. Mended in 17.5, 16.9, 15.13, 14.18.
pub(super) fn misses_new_members(version: i32) -> bool {
    let minor = version % 10_000;
    match version / 10_000 {
        ..=13 => true,
        14 => minor < 18,
        15 => minor < 13,
        16 => minor < 9,
        17 => minor < 5,
        _ => false,
    }
}

/// Whether a walsender of this version tells a transaction once more that one told before. Before 15 it can remember for its whole
/// life that a table which became a partition was not published; and see [`misses_new_members`].
fn tells_again(version: i32) -> bool {
    version >= 150_000 && !misses_new_members(version)
}

impl Upstream<'_> {
    /// Connects, checks that nothing is missing after `start` and that upstream has what it told before, and starts the stream there.
    pub(super) async fn connect(&mut self, start: Lsn, milestone: Milestone, link: &Link) -> Result<Session, Failure> {
        let config = self.config;
        let sql = sql_session(config).await?;
        refuse_standby(&sql).await?;
        let version: i32 =
            sql.query_one("SELECT current_setting('server_version_num')::int4", &[]).await?.try_get(0)?;
        synchronous::refuse(&sql).await?;
        let upstream: PgLsn = sql.query_one("SELECT pg_current_wal_lsn()", &[]).await?.try_get(0)?;
        let positions = Positions { start, durable: link.durable().min(start) };
        let (mut client, server) = replication_session(config).await?;
        self.check_server(&server, &mut client, start).await?;
        self.check_database(&sql).await?;
        let confirmed = slot::check_resume(&sql, config, start).await?;
        // What the slot has before we began may be what it cannot decode, see `Exported::open`.
        let from = milestone.begins.max(confirmed);
        if from < start {
            let positions = Positions { start: from, durable: confirmed };
            retold::compare(client, config, milestone, positions, start, tells_again(version)).await?;
            slot::until_free(&sql, config).await?;
            let again = replication_session(config).await?;
            if (&again.1.system, again.1.timeline) != (&server.system, server.timeline) {
                return Err(Failure::Transient("another server answers than a moment ago".to_owned()));
            }
            client = again.0;
        }
        slot::keep_on_standbys(&mut client, &sql, config).await?;
        let look = Look::take(&sql, &config.publication, &self.following.ids()).await?;
        let upstream = Lsn(upstream.into());
        link.note_upstream(upstream);
        start_stream(&mut client, &config.slot, &config.publication, positions).await?;
        link.note_acknowledged(positions.durable);
        // Last: nothing may fail between this and telling the engine.
        let judgement = self.following.judge_all(&config.publication, &look, start)?;
        Ok(Session { client, sql, version, started: Instant::now(), start, upstream, look, judgement })
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
            tracing::info!(from = stored, to = server.timeline, lsn = %start, "the server was promoted; nothing read is missing there");
            self.following.forget_looks();
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

    /// Databases are renamed; their OIDs stay.
    async fn check_database(&mut self, sql: &Client) -> Result<(), Failure> {
        let database = database_identity(sql).await?;
        let oid = |identity: &str| identity.rsplit_once('/').map(|(_, oid)| oid.to_owned());
        if oid(&database) == oid(&self.identity.database) {
            self.identity.database = database;
            return Ok(());
        }
        Err(Failure::definite(
            "different_database",
            format!("the database (name/OID) is {database}; the stored totals come from {}", self.identity.database),
            format!("name the original database in the URL; or {}", START_OVER),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::misses_new_members;

    #[test]
    fn the_minors_that_miss_a_table_which_joins() {
        let missing = [140_017, 150_012, 160_008, 170_004, 170_000];
        assert!(missing.into_iter().all(misses_new_members));
        let mended = [140_018, 150_013, 150_018, 160_009, 170_005, 180_000];
        assert!(!mended.into_iter().any(misses_new_members));
    }
}
