//! A copy of the source's slot, which keeps upstream's log from where the slot is now: for a backup that is to go on exactly
//! when it is restored, whatever the source itself has acknowledged by then.
//!
//! The copy stands where upstream was last told that everything is durable, so a backup that is taken afterwards is never
//! behind it. The surprise: nobody reads it, so upstream keeps its log, and its dead rows of the catalog, until it is dropped.

use engine::change::Lsn;
use engine::source::SourceError;
use postgres_types::PgLsn;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::config::PostgresConfig;
use super::connect::sql_session;
use super::error::{Failure, no_free_slot, source_error};
use super::slot;

/// Copies the slot under `<slot>_<name>`; returns that name.
pub async fn hold_log(config: &PostgresConfig, name: &str) -> Result<String, SourceError> {
    let held = format!("{}_{name}", config.slot);
    copy(config, &held).await.map(|()| held).map_err(told)
}

/// Drops such a copy; not an error where it is gone already.
pub async fn release_log(config: &PostgresConfig, held: &str) -> Result<(), SourceError> {
    release(config, held).await.map_err(told)
}

async fn copy(config: &PostgresConfig, held: &str) -> Result<(), Failure> {
    let client = sql_session(config).await?;
    let slot = &config.slot;
    if slot::read(&client, slot).await?.is_none() {
        return Err(Failure::definite(
            "slot_missing",
            format!("replication slot {slot} does not exist, so there is no log to hold"),
            "look at GET /v1/sources; take the backup without held log, or once the source is live",
        ));
    }
    let copied = client.query("SELECT slot_name FROM pg_copy_logical_replication_slot($1, $2)", &[slot, &held]).await;
    copied.map(drop).map_err(|error| match error.code() {
        Some(&SqlState::DUPLICATE_OBJECT) => Failure::definite(
            "slot_exists",
            format!("replication slot {held} exists already, perhaps of a backup that was removed"),
            format!("use another name, or drop it: tidemark drop-slot --slot {}", engine::shell::word(held)),
        ),
        Some(&SqlState::CONFIGURATION_LIMIT_EXCEEDED) => Failure::Definite(no_free_slot()),
        Some(_) => Failure::definite(
            "log_not_held",
            format!("slot {slot} cannot be copied: {}", error.as_db_error().map_or("", |error| error.message())),
            "take the backup without held log",
        ),
        None => error.into(),
    })
}

async fn release(config: &PostgresConfig, held: &str) -> Result<(), Failure> {
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
    sql_session(config).await?.execute(drop, &[&held]).await?;
    Ok(())
}

/// A copy of `slot` that still has the log from `resume` on; the one that holds the least before it.
pub(super) async fn reaching(client: &Client, slot: &str, resume: Lsn) -> Result<Option<String>, Failure> {
    let copies = format!("{slot}_");
    let row = client
        .query_opt(
            "SELECT slot_name::text FROM pg_replication_slots
             WHERE left(slot_name::text, length($1)) = $1 AND plugin = 'pgoutput' AND database = current_database()
               AND NOT active AND NOT temporary AND wal_status <> 'lost' AND confirmed_flush_lsn <= $2
             ORDER BY confirmed_flush_lsn DESC LIMIT 1",
            &[&copies, &PgLsn::from(resume.0)],
        )
        .await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

/// The statements by which a copy takes the place of the slot that has moved on. What goes on from there has to be there
/// before the other one is given up. The names may be forged: those of a backup are its file's.
#[must_use]
pub fn taking_the_place(held: &str, slot: &str) -> [String; 2] {
    let (held, slot) = (literal(held), literal(slot));
    [
        format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {slot} \
             AND EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {held} AND wal_status <> 'lost');"
        ),
        format!("SELECT pg_copy_logical_replication_slot({held}, {slot});"),
    ]
}

/// The text as a literal of SQL, whatever the session takes a backslash for.
fn literal(text: &str) -> String {
    let quoted = format!("'{}'", text.replace('\\', r"\\").replace('\'', "''"));
    if text.contains('\\') { format!("E{quoted}") } else { quoted }
}

fn told(failure: Failure) -> SourceError {
    match failure {
        Failure::Definite(error) => error,
        Failure::Transient(message) => source_error(
            "cannot_connect",
            format!("Postgres did not copy the slot: {message}"),
            "see what the message says, and try again",
        ),
        Failure::Closed => source_error("cannot_connect", "the session was closed", "try again"),
    }
}
