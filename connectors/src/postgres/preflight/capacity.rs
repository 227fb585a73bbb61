//! Slots: ours, the free ones, those that other data directories left behind, and how much log they may hold.
//!
//! The surprise: either setting of `max_slot_wal_keep_size` can hurt. Without a limit a stopped tidemark fills the
//! primary's disk; with a small one its slot is lost and everything is read anew. So both are warned of.

use engine::backup::wants_slot;
use tokio_postgres::Client;

use super::super::config::PostgresConfig;
use super::super::error::{Failure, START_OVER};
use super::super::slot::{self, Orphan};
use super::Stage;
use super::finding::Finding;
use super::server::ServerFacts;
use super::setting::Setting;

/// Less than this is used up by an hour of a busy server.
const SMALL_KEEP_MB: i64 = 1_024;

/// Everything about slots.
pub(super) async fn look(
    client: &Client,
    config: &PostgresConfig,
    server: &ServerFacts,
    ours: Option<&OurSlot>,
    stage: Stage,
) -> Result<Vec<Finding>, Failure> {
    let mut findings = vec![match ours {
        Some(slot) => slot.judge(config, stage),
        None => missing(config, stage),
    }];
    if ours.is_none() {
        findings.extend(free_places(client).await?);
    }
    findings.extend(unread(client, config).await?);
    findings.extend(kept_log(client, config, server).await?);
    Ok(findings)
}

fn missing(config: &PostgresConfig, stage: Stage) -> Finding {
    let slot = &config.slot;
    match stage {
        Stage::Fresh => Finding::ok("slot", format!("replication slot {slot} will be made at the start")),
        Stage::Unknown => Finding::ok(
            "slot",
            format!(
                "replication slot {slot} will be made at the start; if the data directory holds totals already, they cannot \
                 be continued without it"
            ),
        ),
        Stage::InUse => {
            let message = format!("replication slot {slot} does not exist any more: changes may be lost");
            Finding::failed("slot", "slot_missing", message).remedy(START_OVER)
        }
    }
}

/// The slot of this source.
#[derive(Clone, Debug)]
pub(super) struct OurSlot {
    ours: bool,
    facts: slot::SlotFacts,
    active_pid: Option<i32>,
    application: Option<String>,
    wal_status: String,
    retained: String,
    invalidation: Option<String>,
}

impl OurSlot {
    pub(super) async fn read(client: &Client, name: &str) -> Result<Option<Self>, Failure> {
        let Some(facts) = slot::read(client, name).await? else { return Ok(None) };
        // Columns that only newer servers have are NULL elsewhere.
        let row = client
            .query_opt(
                "SELECT s.plugin = 'pgoutput' AND s.database = current_database(), s.active_pid, a.application_name,
                        coalesce(s.wal_status, ''),
                        coalesce(pg_size_pretty(pg_wal_lsn_diff(
                            CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                            s.restart_lsn)), 'no'),
                        to_jsonb(s) ->> 'invalidation_reason'
                 FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
                 WHERE s.slot_name = $1",
                &[&name],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(OurSlot {
            ours: row.try_get::<_, Option<bool>>(0)?.unwrap_or(false),
            facts,
            active_pid: row.try_get(1)?,
            application: row.try_get(2)?,
            wal_status: row.try_get(3)?,
            retained: row.try_get(4)?,
            invalidation: row.try_get(5)?,
        }))
    }

    /// A tidemark of this data directory reads from it now.
    pub(super) fn is_followed(&self, config: &PostgresConfig) -> bool {
        self.active_pid.is_some() && self.application.as_deref() == Some(config.application_name().as_str())
    }

    fn judge(&self, config: &PostgresConfig, stage: Stage) -> Finding {
        let name = &config.slot;
        if !self.ours {
            return match slot::not_ours(name, &self.facts) {
                Failure::Definite(error) => Finding::of("slot", error),
                other => Finding::failed("slot", "slot_not_ours", format!("{other:?}")),
            };
        }
        if self.wal_status == "lost" || self.invalidation.is_some() {
            let why = self.invalidation.as_deref().map(|reason| format!(", {reason}")).unwrap_or_default();
            let message =
                format!("Postgres removed log that replication slot {name} still needed (wal_status = lost{why})");
            return match stage {
                Stage::Fresh => Finding::warning("slot", format!("{message}; it will be made anew at the start"))
                    .remedy("raise max_slot_wal_keep_size, so that it lasts longer the next time"),
                Stage::InUse | Stage::Unknown => Finding::failed("slot", "slot_lost", message)
                    .remedy(format!("raise max_slot_wal_keep_size; then {START_OVER}")),
            };
        }
        if let Some(pid) = self.active_pid.filter(|_| !self.is_followed(config)) {
            let who = self.application.as_deref().filter(|name| !name.is_empty()).unwrap_or("a nameless session");
            return Finding::warning(
                "slot",
                format!("replication slot {name} is read by {who} with pid {pid}, not by tidemark"),
            )
            .remedy(format!("SELECT pg_terminate_backend({pid}); -- if nobody needs what it reads"));
        }
        if self.wal_status == "unreserved" {
            let message = format!(
                "replication slot {name} holds {} of log, more than max_slot_wal_keep_size allows: the next checkpoint may \
                 remove it",
                self.retained
            );
            return Finding::warning("slot", message)
                .remedy("start tidemark now so that it catches up, and raise max_slot_wal_keep_size");
        }
        let reader = match self.active_pid {
            Some(pid) => format!("read by tidemark (pid {pid})"),
            None => "not read now".to_owned(),
        };
        Finding::ok(
            "slot",
            format!("replication slot {name} is {reader}, holds {} of log, {}", self.retained, self.wal_status),
        )
    }
}

/// A new slot needs a place, and so does the session that reads it.
async fn free_places(client: &Client) -> Result<Vec<Finding>, Failure> {
    let row = client
        .query_one(
            "SELECT (SELECT count(*) FROM pg_replication_slots), current_setting('max_replication_slots')::int8,
                    (SELECT count(*) FROM pg_stat_replication), current_setting('max_wal_senders')::int8",
            &[],
        )
        .await?;
    let places = [
        ("free_slots", "no_free_slot", "replication slots", "max_replication_slots", row.try_get(0)?, row.try_get(1)?),
        ("free_senders", "no_free_sender", "replication sessions", "max_wal_senders", row.try_get(2)?, row.try_get(3)?),
    ];
    let judge = |(name, code, what, setting, used, limit): (_, _, &str, &str, i64, i64)| {
        if used < limit {
            return Finding::ok(name, format!("{used} of {limit} {what} are in use"));
        }
        Finding::failed(name, code, format!("all {limit} {what} of the server are in use"))
            .repaired_by(vec![format!("ALTER SYSTEM SET {setting} = {}", limit + 5)])
            .then_restart(", or drop one that nobody needs")
            // Those of others end, too: a copy of a table holds one for as long as it takes.
            .passing()
    };
    Ok(places.map(judge).to_vec())
}

/// Slots that nobody reads keep log for ever: those that other data directories left behind, and those that hold log for backups.
async fn unread(client: &Client, config: &PostgresConfig) -> Result<Vec<Finding>, Failure> {
    let ours = format!("{}_", config.slot);
    let orphans = slot::orphans(client, &config.slot).await?;
    let (held, orphans): (Vec<Orphan>, Vec<Orphan>) =
        orphans.into_iter().partition(|orphan| orphan.name.starts_with(&ours));
    let mut findings = vec![held_log(config, &ours, held).await];
    findings.extend(left_behind(&orphans));
    Ok(findings)
}

fn left_behind(orphans: &[Orphan]) -> Option<Finding> {
    if orphans.is_empty() {
        return None;
    }
    let message = format!("slots of other data directories that nobody reads: {}", shown(orphans));
    let remedy = format!("where the data directory is gone: {}", drop_commands(orphans));
    Some(Finding::warning("slots_left_behind", message).remedy(remedy))
}

/// A backup that was cut short leaves its slot, and so does one that is removed. One that was carried away needs it still, which
/// nobody can see from here.
async fn held_log(config: &PostgresConfig, ours: &str, held: Vec<Orphan>) -> Finding {
    const NAME: &str = "held_log";
    let (wanted, unwanted) = with_backup(config, ours, held).await;
    if unwanted.is_empty() {
        return match wanted.is_empty() {
            true => Finding::ok(NAME, "no slot holds log for a backup"),
            false => Finding::ok(NAME, format!("slots hold log for backups that are there: {}", shown(&wanted))),
        };
    }
    let place = config.backups.as_deref().map(|backups| format!(" in {}", backups.display())).unwrap_or_default();
    let message = format!(
        "slots hold log for backups that are not{place}, cut short, removed or carried away: {}",
        shown(&unwanted)
    );
    let remedy = format!("unless such a backup is kept elsewhere and is to be restored: {}", drop_commands(&unwanted));
    Finding::warning(NAME, message).remedy(remedy)
}

/// Those whose backup is there, and the others. Our own disk is looked at, which may not answer.
async fn with_backup(config: &PostgresConfig, ours: &str, held: Vec<Orphan>) -> (Vec<Orphan>, Vec<Orphan>) {
    let Some(backups) = config.backups.clone() else { return (Vec::new(), held) };
    let ours = ours.to_owned();
    let has_backup =
        move |slot: &Orphan| wants_slot(&backups, slot.name.strip_prefix(&ours).unwrap_or_default(), &slot.name);
    // It ends otherwise only with the runtime.
    tokio::task::spawn_blocking(move || held.into_iter().partition(has_backup)).await.unwrap_or_default()
}

fn shown(slots: &[Orphan]) -> String {
    slots.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn drop_commands(slots: &[Orphan]) -> String {
    let command = |slot: &Orphan| format!("tidemark drop-slot --slot {}", engine::shell::word(&slot.name));
    slots.iter().map(command).collect::<Vec<_>>().join("; ")
}

async fn kept_log(client: &Client, config: &PostgresConfig, server: &ServerFacts) -> Result<Vec<Finding>, Failure> {
    let Some(setting) = Setting::read(client, "max_slot_wal_keep_size").await? else { return Ok(Vec::new()) };
    let name = "max_slot_wal_keep_size";
    let finding = match setting.value {
        limit if limit < 0 => Finding::warning(
            name,
            "max_slot_wal_keep_size is -1: while tidemark is stopped, its slot keeps log until the primary's disk is full",
        )
        .remedy(setting.change_to("'50GB'", config, server.provider, "as much as the disk can spare")),
        limit if limit < SMALL_KEEP_MB => Finding::warning(
            name,
            format!(
                "max_slot_wal_keep_size is {limit} MB: a stop that outlasts so much log loses the slot, and everything is \
                 read anew"
            ),
        )
        .remedy(setting.change_to("'50GB'", config, server.provider, "as much as the disk can spare")),
        limit => Finding::ok(name, format!("a stopped tidemark keeps at most {limit} MB of log")),
    };
    Ok(vec![finding])
}
