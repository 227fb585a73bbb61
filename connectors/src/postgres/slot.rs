//! The replication slot: upstream's promise to keep the log for us.
//!
//! Owns the rule that a slot is never recreated behind a stored position: the changes in between would be lost silently.

use std::time::Duration;

use engine::change::Lsn;
use postgres_types::PgLsn;
use tokio_postgres::Client;

use super::config::{PostgresConfig, quote_identifier};
use super::connect::APPLICATION_NAME;
use super::error::{Failure, START_OVER};
use super::transport::ReplicationClient;

/// A running tidemark answers at least once a second; a walsender silent for longer belongs to nobody.
const ZOMBIE_SILENCE_S: f64 = 5.0;

/// How long the end of a session of ours may take to free the slot.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);

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

/// Everything that must hold for the stream after `resume` to be whole. A slot that is still held by another session is
/// a transient failure.
pub(super) async fn check_resume(client: &Client, config: &PostgresConfig, resume: Lsn) -> Result<(), Failure> {
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
        return Err(Failure::definite(
            "slot_overtaken",
            format!(
                "replication slot {slot} was consumed up to {} by someone else; tidemark has stored up to {resume}",
                facts.confirmed_flush
            ),
            START_OVER,
        ));
    }
    match facts.active_pid {
        None => Ok(()),
        Some(pid) => {
            terminate_zombie(client, pid).await?;
            Err(Failure::Transient(format!("replication slot {slot} is in use by the session with pid {pid}")))
        }
    }
}

pub(super) fn not_ours(slot: &str, facts: &SlotFacts) -> Failure {
    Failure::definite(
        "slot_not_ours",
        format!(
            "replication slot {slot} exists with plugin {} in database {}, and tidemark did not make it",
            facts.plugin.as_deref().unwrap_or("none (physical)"),
            facts.database.as_deref().unwrap_or("none"),
        ),
        "give the source another slot name",
    )
}

pub(super) fn lost(slot: &str) -> Failure {
    Failure::definite(
        "slot_lost",
        format!("Postgres removed log that replication slot {slot} still needed (wal_status = lost)"),
        format!("raise max_slot_wal_keep_size; then {}", START_OVER),
    )
}

/// Ends a walsender of ours that nobody reads any more: its own timeout may be a minute away. Another running tidemark
/// has the same application name but answers its server, so it is left alone.
async fn terminate_zombie(client: &Client, pid: i32) -> Result<(), Failure> {
    client
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_replication
             WHERE pid = $1 AND application_name = $2 AND usename = current_user
               AND extract(epoch FROM clock_timestamp() - coalesce(reply_time, backend_start))::float8 > $3",
            &[&pid, &APPLICATION_NAME, &ZOMBIE_SILENCE_S],
        )
        .await?;
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
        terminate_zombie(client, pid).await?;
        if tokio::time::Instant::now() > deadline {
            return Err(Failure::definite(
                "slot_in_use",
                format!("replication slot {slot} is in use by the session with pid {pid}, perhaps of another tidemark"),
                "stop the other one, or give this source another slot name",
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

/// Waits for every transaction that is writing now, without a time limit: that is Postgres' price for a consistent point.
pub(super) async fn create(
    replication: &mut ReplicationClient,
    observer: &Client,
    config: &PostgresConfig,
) -> Result<CreatedSlot, Failure> {
    let slot = quote_identifier(&config.slot);
    let command = if config.failover {
        require_failover_slots(observer).await?;
        format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput (SNAPSHOT 'export', FAILOVER)")
    } else {
        // The spelling that all versions from 14 take; the one in parentheses came with 15.
        format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput EXPORT_SNAPSHOT")
    };
    let creating = replication.simple_query(&command);
    tokio::pin!(creating);
    let rows = loop {
        tokio::select! {
            rows = &mut creating => break rows?,
            () = tokio::time::sleep(Duration::from_secs(5)) => tell_who_is_waited_for(observer).await?,
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
        replication.simple_query(&format!("ALTER_REPLICATION_SLOT {slot} (FAILOVER true)")).await?;
        tracing::info!(%slot, "standbys copy the slot from here on");
    }
    Ok(())
}

async fn tell_who_is_waited_for(observer: &Client) -> Result<(), Failure> {
    let row = observer
        .query_one(
            "SELECT count(*), coalesce((array_agg(pid ORDER BY xact_start))[1], 0)
             FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname IS NOT NULL",
            &[],
        )
        .await?;
    let (transactions, oldest_pid): (i64, i32) = (row.try_get(0)?, row.try_get(1)?);
    tracing::info!(transactions, oldest_pid, "slot creation waits for transactions that were writing before it");
    Ok(())
}
