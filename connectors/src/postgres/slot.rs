//! The replication slot: upstream's promise to keep the log for us.
//!
//! Owns the rule that a slot is never recreated behind a stored position: the changes in between would be lost silently;
//! and the rule whose session may be ended: only one that says it is of this slot's own tidemark and does not answer.

use std::fmt;
use std::time::Duration;

use engine::change::Lsn;
use engine::source::{SourceError, SourceState};
use postgres_types::PgLsn;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::Link;
use super::config::{PostgresConfig, quote_identifier};
use super::connect::sql_session;
use super::error::{Failure, START_OVER, source_error, with_slot_named};
use super::held_log;
use super::transport::ReplicationClient;

/// A running tidemark answers at least once a second; a walsender silent for longer belongs to nobody.
const ZOMBIE_SILENCE_S: f64 = 5.0;

/// When it is shown for whom the slot waits, and how often.
const WAITING_SHOWN_AFTER: Duration = Duration::from_secs(1);

/// How long the end of a session of ours may take to free the slot.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);

/// A session ends within a few milliseconds of our saying so.
const RELEASE_POLL: Duration = Duration::from_millis(3);

/// How long a slot stays in use after its tidemark has stopped, at most.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

const POLL: Duration = Duration::from_millis(50);

/// The slot as the server shows it.
#[derive(Clone, Debug)]
pub(super) struct SlotFacts {
    pub(super) plugin: Option<String>,
    database: Option<String>,
    active_pid: Option<i32>,
    confirmed_flush: Lsn,
    lost: bool,
}

pub(super) async fn read(client: &Client, slot: &str) -> Result<Option<SlotFacts>, Failure> {
    let row = client
        .query_opt(
            "SELECT plugin::text, database::text, active_pid, confirmed_flush_lsn, coalesce(wal_status = 'lost', false)
             FROM pg_replication_slots WHERE slot_name = $1",
            &[&slot],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let confirmed: Option<PgLsn> = row.try_get(3)?;
    Ok(Some(SlotFacts {
        plugin: row.try_get(0)?,
        database: row.try_get(1)?,
        active_pid: row.try_get(2)?,
        confirmed_flush: confirmed.map_or(Lsn::ZERO, |lsn| Lsn(lsn.into())),
        lost: row.try_get(4)?,
    }))
}

/// Everything that must hold for the stream after `resume` to be whole; returns what the slot was told to be durable. A slot that
/// is still held by another session is a transient failure.
pub(super) async fn check_resume(client: &Client, config: &PostgresConfig, resume: Lsn) -> Result<Lsn, Failure> {
    let slot = &config.slot;
    let Some(facts) = read(client, slot).await? else {
        return Err(Failure::definite(
            "slot_missing",
            format!("replication slot {slot} does not exist any more: changes after {resume} may be lost"),
            START_OVER,
        ));
    };
    if facts.plugin.as_deref() != Some("pgoutput") || facts.database.as_deref() != Some(config.database.as_str()) {
        return Err(not_ours(slot, &facts));
    }
    if facts.lost {
        return Err(lost(slot));
    }
    if facts.confirmed_flush > resume {
        return Err(overtaken(client, slot, facts.confirmed_flush, resume).await?);
    }
    match facts.active_pid {
        None => Ok(facts.confirmed_flush),
        Some(pid) => {
            terminate_zombie(client, config, pid).await?;
            Err(still_held(slot, pid))
        }
    }
}

/// As after a restore, where a slot that holds the log for the backup is the way on.
async fn overtaken(client: &Client, slot: &str, confirmed: Lsn, resume: Lsn) -> Result<Failure, Failure> {
    let message = format!(
        "replication slot {slot} was consumed up to {confirmed} by someone else; tidemark has stored up to {resume}"
    );
    let remedy = match held_log::reaching(client, slot, resume).await? {
        None => START_OVER.to_owned(),
        Some(held) => format!(
            "slot {held} holds the log from there on: with the tidemark that reads {slot} stopped, have it take that slot's \
             place, then restart tidemark: {} -- or {START_OVER}",
            held_log::taking_the_place(&held, slot).join(" ")
        ),
    };
    Ok(Failure::definite("slot_overtaken", message, remedy))
}

fn still_held(slot: &str, pid: i32) -> Failure {
    Failure::Transient(format!("replication slot {slot} is in use by the session with pid {pid}"))
}

/// How long a session takes to notice that it was left, where it does.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);

/// Waits until a session of ours that we have left has given up the slot. One that decodes a large transaction does not notice
/// that we are gone: it is told to end.
pub(super) async fn until_free(client: &Client, config: &PostgresConfig) -> Result<(), Failure> {
    let slot = &config.slot;
    let left = tokio::time::Instant::now();
    while let Some(pid) = read(client, slot).await?.and_then(|facts| facts.active_pid) {
        match left.elapsed() {
            waited if waited > RELEASE_PATIENCE => return Err(still_held(slot, pid)),
            waited if waited > NOTICED_WITHIN => end_session(client, config, pid).await?,
            _ => {}
        }
        tokio::time::sleep(RELEASE_POLL).await;
    }
    Ok(())
}

/// Ends a session of ours.
async fn end_session(client: &Client, config: &PostgresConfig, pid: i32) -> Result<(), Failure> {
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication
               WHERE pid = $1 AND application_name = $2 AND usename = current_user";
    client.execute(end, &[&pid, &config.application_name()]).await?;
    Ok(())
}

pub(super) fn not_ours(slot: &str, facts: &SlotFacts) -> Failure {
    Failure::definite(
        "slot_not_ours",
        format!(
            "replication slot {slot} exists with plugin {} in database {}, and tidemark did not make it",
            facts.plugin.as_deref().unwrap_or("none (physical)"),
            facts.database.as_deref().unwrap_or("none"),
        ),
        "drop it if nobody needs it, or begin with another data directory, after which the slot is named: --data NEWDIR",
    )
}

pub(super) fn lost(slot: &str) -> Failure {
    Failure::definite(
        "slot_lost",
        format!("Postgres removed log that replication slot {slot} still needed (wal_status = lost)"),
        format!("raise max_slot_wal_keep_size; then {}", START_OVER),
    )
}

/// Ends a walsender that a tidemark of this data directory left behind: its own timeout may be a minute away. A running
/// one has the same name but answers its server, so it is left alone. So is one whose answers this role may not see:
/// `pg_stat_replication` shows them to `pg_read_all_stats` only, and then `state` is NULL too.
async fn terminate_zombie(client: &Client, config: &PostgresConfig, pid: i32) -> Result<(), Failure> {
    let ended = client
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_replication
             WHERE pid = $1 AND application_name = $2 AND usename = current_user AND state IS NOT NULL
               AND extract(epoch FROM clock_timestamp() - coalesce(reply_time, backend_start))::float8 > $3",
            &[&pid, &config.application_name(), &ZOMBIE_SILENCE_S],
        )
        .await?;
    if ended > 0 {
        tracing::warn!(pid, slot = %config.slot, "ended a session of ours that did not answer any more");
    }
    Ok(())
}

/// Removes the slot of an attempt that did not finish. It is ours by name; one that is in use is waited for.
pub(super) async fn drop_leftover(client: &Client, config: &PostgresConfig) -> Result<(), Failure> {
    let slot = &config.slot;
    let deadline = tokio::time::Instant::now() + RELEASE_PATIENCE;
    loop {
        let Some(facts) = read(client, slot).await? else { return Ok(()) };
        if facts.plugin.as_deref() != Some("pgoutput") || facts.database.as_deref() != Some(config.database.as_str()) {
            return Err(not_ours(slot, &facts));
        }
        let Some(pid) = facts.active_pid else {
            client.execute("SELECT pg_drop_replication_slot($1)", &[slot]).await?;
            tracing::info!(%slot, "dropped the slot of an earlier attempt");
            return Ok(());
        };
        terminate_zombie(client, config, pid).await?;
        if tokio::time::Instant::now() > deadline {
            return Err(Failure::definite(
                "slot_in_use",
                format!("replication slot {slot} is in use by the session with pid {pid}, perhaps of another tidemark"),
                "stop the other one, or begin with another data directory, after which the slot is named: --data NEWDIR",
            ));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The position of a new slot, and the name of a snapshot of exactly that position. The snapshot can be imported until
/// the session runs another command or ends.
#[derive(Clone, Debug)]
pub(super) struct CreatedSlot {
    pub(super) consistent_point: Lsn,
    pub(super) snapshot: String,
}

/// What kind of slot is made.
#[derive(Clone, Copy)]
pub(super) enum NewSlot<'n> {
    /// The source's own; whom it waits for is the source's state.
    Permanent(&'n Link),
    /// Of this name, and gone with its session; its changes are followed until then.
    Temporary(&'n str),
    /// Of this name, and gone with its session; only its snapshot is read. Whom it waits for is the source's state, too.
    OfSnapshot(&'n str, Option<&'n Link>),
}

impl<'n> NewSlot<'n> {
    /// Whether its changes are decoded.
    pub(super) fn is_followed(self) -> bool {
        !matches!(self, NewSlot::OfSnapshot(..))
    }

    /// One for a snapshot after this one.
    pub(super) fn later(self, name: &'n str) -> NewSlot<'n> {
        NewSlot::OfSnapshot(name, self.link())
    }

    fn link(self) -> Option<&'n Link> {
        match self {
            NewSlot::Permanent(link) => Some(link),
            NewSlot::Temporary(_) => None,
            NewSlot::OfSnapshot(_, link) => link,
        }
    }
}

/// A name for a slot that goes with its session. Another one each time: the one before may not be gone yet.
pub(super) fn passing_name(config: &PostgresConfig, purpose: &str) -> String {
    format!("{:.45}_{purpose}_{:08x}", config.slot, rand::random::<u32>())
}

/// Waits for every transaction that is writing now, without a time limit: that is Postgres' price for a consistent point.
pub(super) async fn create(
    replication: &mut ReplicationClient,
    observer: &Client,
    config: &PostgresConfig,
    new_slot: NewSlot<'_>,
) -> Result<CreatedSlot, Failure> {
    // The spelling that all versions from 14 take; the one in parentheses came with 15.
    let command = match new_slot {
        NewSlot::Temporary(name) | NewSlot::OfSnapshot(name, _) => {
            format!("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT", quote_identifier(name))
        }
        NewSlot::Permanent(_) if config.failover => {
            require_failover_slots(observer).await?;
            let slot = quote_identifier(&config.slot);
            format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput (SNAPSHOT 'export', FAILOVER)")
        }
        NewSlot::Permanent(_) => {
            format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput EXPORT_SNAPSHOT", quote_identifier(&config.slot))
        }
    };
    let creating = replication.simple_query(&command);
    tokio::pin!(creating);
    let rows = loop {
        tokio::select! {
            rows = &mut creating => break rows?,
            () = tokio::time::sleep(WAITING_SHOWN_AFTER) => show_who_is_waited_for(observer, new_slot).await?,
        }
    };
    let field = |index: usize| -> Option<&str> { std::str::from_utf8(rows.first()?.get(index)?.as_deref()?).ok() };
    let created = field(1).and_then(|lsn| lsn.parse().ok()).zip(field(2));
    let (consistent_point, snapshot) =
        created.ok_or_else(|| Failure::Transient("CREATE_REPLICATION_SLOT answered without a snapshot".to_owned()))?;
    Ok(CreatedSlot { consistent_point, snapshot: snapshot.to_owned() })
}

async fn require_failover_slots(client: &Client) -> Result<(), Failure> {
    let version: i32 = client.query_one("SELECT current_setting('server_version_num')::int4", &[]).await?.try_get(0)?;
    if version >= 170_000 {
        return Ok(());
    }
    Err(Failure::definite(
        "failover_slots_unavailable",
        format!("the server is Postgres {}; slots that standbys copy came with 17", version / 10_000),
        "leave failover_slot out, or upgrade Postgres",
    ))
}

/// Makes an existing slot one that standbys copy, where that is wanted and not so yet. The slot must be free.
pub(super) async fn keep_on_standbys(
    replication: &mut ReplicationClient,
    client: &Client,
    config: &PostgresConfig,
) -> Result<(), Failure> {
    if !config.failover {
        return Ok(());
    }
    require_failover_slots(client).await?;
    let slot = &config.slot;
    let copied: bool = client
        .query_one("SELECT failover FROM pg_replication_slots WHERE slot_name = $1", &[slot])
        .await?
        .try_get(0)?;
    if !copied {
        replication.simple_query(&format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", quote_identifier(slot))).await?;
        tracing::info!(%slot, "standbys copy the slot from here on");
    }
    Ok(())
}

async fn show_who_is_waited_for(observer: &Client, new_slot: NewSlot<'_>) -> Result<(), Failure> {
    let Waiting { transactions, oldest_pid, age_s } = who_is_waited_for(observer).await?;
    tracing::info!(transactions, oldest_pid, age_s, "slot creation waits for transactions that were writing before it");
    if let Some(link) = new_slot.link() {
        link.set_state(SourceState::CreatingSlot { waiting_for: transactions, oldest_pid, oldest_age_s: age_s });
    }
    Ok(())
}

/// Transactions that are writing, for whose end a new slot waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) transactions: u64,
    /// Process of the oldest one; 0 where there is none.
    pub(super) oldest_pid: i32,
    /// How long that one has been open.
    pub(super) age_s: u64,
}

pub(super) async fn who_is_waited_for(observer: &Client) -> Result<Waiting, Failure> {
    let row = observer
        .query_one(
            "SELECT count(*), coalesce((array_agg(pid ORDER BY xact_start))[1], 0),
                    coalesce(extract(epoch FROM clock_timestamp() - min(xact_start)), 0)::int8
             FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname IS NOT NULL",
            &[],
        )
        .await?;
    let not_negative = |number: i64| u64::try_from(number).unwrap_or_default();
    Ok(Waiting {
        transactions: not_negative(row.try_get(0)?),
        oldest_pid: row.try_get(1)?,
        age_s: not_negative(row.try_get(2)?),
    })
}

/// A slot of another data directory that nobody reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Its name.
    pub name: String,
    /// Its database.
    pub database: String,
    /// Log that Postgres keeps for it, such as `16 MB`.
    pub retained: String,
    /// Since when nobody reads it, where this version says so.
    pub inactive_since: Option<String>,
}

impl fmt::Display for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of database {} holds {} of log", self.name, self.database, self.retained)?;
        match &self.inactive_since {
            Some(since) => write!(f, ", inactive since {since}"),
            None => Ok(()),
        }
    }
}

/// Slots that are a tidemark's by name, not `ours`, and read by nobody.
pub(super) async fn orphans(client: &Client, ours: &str) -> Result<Vec<Orphan>, Failure> {
    let rows = client
        .query(
            "SELECT s.slot_name::text, coalesce(s.database::text, '?'),
                    coalesce(pg_size_pretty(pg_wal_lsn_diff(
                        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                        s.restart_lsn)), 'none'),
                    to_jsonb(s) ->> 'inactive_since'
             FROM pg_replication_slots s
             WHERE s.slot_name LIKE 'tidemark\\_%' AND s.slot_name <> $1 AND s.plugin = 'pgoutput'
               AND NOT s.active AND NOT s.temporary
             ORDER BY s.slot_name",
            &[&ours],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Orphan {
                name: row.try_get(0)?,
                database: row.try_get(1)?,
                retained: row.try_get(2)?,
                inactive_since: row.try_get(3)?,
            })
        })
        .collect()
}

/// What [`drop_slot`] found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// There was a slot, and it is gone.
    pub slot: bool,
    /// There was a publication, and it is gone.
    pub publication: bool,
    /// Why the publication is still there, where it is. The slot is gone all the same.
    pub publication_left: Option<SourceError>,
    /// Slots of other data directories that nobody reads; they are still there.
    pub orphans: Vec<Orphan>,
}

/// Removes slot and publication of a source that is not wanted any more; not an error where they are gone already.
///
/// A slot in use is waited for, as one whose tidemark has just stopped is free a moment later; after that it is refused
/// with `slot_in_use`, or with `force` taken from whoever reads it.
pub async fn drop_slot(config: &PostgresConfig, force: bool) -> Result<Dropped, SourceError> {
    drop_all(config, force).await.map_err(|failure| told(failure, config))
}

/// Slots of tidemarks that nobody reads, whose ever they are.
pub async fn unread_slots(config: &PostgresConfig) -> Result<Vec<Orphan>, SourceError> {
    let looked = async { orphans(&sql_session(config).await?, "").await };
    looked.await.map_err(|failure: Failure| told(failure, config))
}

fn told(failure: Failure, config: &PostgresConfig) -> SourceError {
    match failure {
        Failure::Definite(error) => with_slot_named(error, &config.slot),
        Failure::Transient(message) => source_error(
            "cannot_connect",
            format!("cannot work with Postgres at {}: {message}", config.display()),
            "check that Postgres runs there, and try again",
        ),
        Failure::Closed => source_error("cannot_connect", "the session was closed", "try again"),
    }
}

async fn drop_all(config: &PostgresConfig, force: bool) -> Result<Dropped, Failure> {
    if !config.slot.starts_with("tidemark") {
        return Err(Failure::definite(
            "slot_not_ours",
            format!("replication slot {} is none of tidemark's by its name", config.slot),
            format!("if nobody needs it: SELECT pg_drop_replication_slot('{}');", config.slot),
        ));
    }
    let client = sql_session(config).await?;
    let slot = drop_waiting(&client, config, force).await?;
    // The slot is what costs Postgres its disk: that it is gone is told, whatever becomes of the rest.
    let (publication, publication_left) = match drop_publication(&client, &config.publication).await {
        Ok(there) => (there, None),
        Err(failure) => (false, Some(told(failure, config))),
    };
    let orphans = match publication_left {
        None => orphans(&client, &config.slot).await?,
        Some(_) => Vec::new(),
    };
    Ok(Dropped { slot, publication, publication_left, orphans })
}

/// False where there is none.
async fn drop_publication(client: &Client, name: &str) -> Result<bool, Failure> {
    let there = client.query_opt("SELECT 1 FROM pg_publication WHERE pubname = $1", &[&name]).await?.is_some();
    if !there {
        return Ok(false);
    }
    match client.batch_execute(&format!("DROP PUBLICATION IF EXISTS {name}")).await {
        Ok(()) => Ok(true),
        // Somebody else made it, for a role that may not.
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Err(Failure::definite(
            "permission_denied",
            format!("publication {name} belongs to somebody else and is still there; it keeps no log"),
            format!("as the publication's owner: DROP PUBLICATION {name};"),
        )),
        Err(error) => Err(error.into()),
    }
}

/// False where there is no slot.
async fn drop_waiting(client: &Client, config: &PostgresConfig, force: bool) -> Result<bool, Failure> {
    let slot = &config.slot;
    let deadline = tokio::time::Instant::now() + if force { RELEASE_PATIENCE } else { STOP_PATIENCE };
    loop {
        let Some(facts) = read(client, slot).await? else { return Ok(false) };
        if facts.plugin.as_deref() != Some("pgoutput") || facts.database.as_deref() != Some(config.database.as_str()) {
            return Err(not_ours(slot, &facts));
        }
        if force && let Some(pid) = facts.active_pid {
            // Waits for its end, so that the reader is not back before we are.
            client.execute("SELECT pg_terminate_backend($1, 1000)", &[&pid]).await?;
        }
        let user = match facts.active_pid {
            None => other_session(client, config).await?,
            reader => reader,
        };
        if let Some(pid) = user.filter(|_| !force) {
            if tokio::time::Instant::now() > deadline {
                return Err(in_use(client, slot, pid).await?);
            }
            tokio::time::sleep(POLL).await;
            continue;
        }
        match client.execute("SELECT pg_drop_replication_slot($1)", &[slot]).await {
            Ok(_) => return Ok(true),
            // Taken by someone, or gone, since we looked.
            Err(error) if matches!(error.code(), Some(&SqlState::OBJECT_IN_USE | &SqlState::UNDEFINED_OBJECT)) => {
                if tokio::time::Instant::now() > deadline {
                    return Err(error.into());
                }
                tokio::time::sleep(POLL).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A session of a tidemark of this data directory, which reads its snapshot or is about to come back for the slot.
async fn other_session(client: &Client, config: &PostgresConfig) -> Result<Option<i32>, Failure> {
    let row = client
        .query_opt(
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND pid <> pg_backend_pid() ORDER BY 1 LIMIT 1",
            &[&config.application_name()],
        )
        .await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

async fn in_use(client: &Client, slot: &str, pid: i32) -> Result<Failure, Failure> {
    let row = client
        .query_opt(
            "SELECT application_name, coalesce(' from ' || host(client_addr), '') FROM pg_stat_activity WHERE pid = $1",
            &[&pid],
        )
        .await?;
    let (who, whence): (String, String) = match row {
        Some(row) => (row.try_get(0)?, row.try_get(1)?),
        None => (String::new(), String::new()),
    };
    let who = if who.is_empty() { "a nameless session".to_owned() } else { who };
    Ok(Failure::definite(
        "slot_in_use",
        format!("replication slot {slot} is in use by {who} with pid {pid}{whence}"),
        // By its name: the same command without it drops the slot of whichever directory it is pasted into.
        format!(
            "stop that tidemark first, or drop the slot all the same: tidemark drop-slot --slot {} --force",
            engine::shell::word(slot)
        ),
    ))
}
