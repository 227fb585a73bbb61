//! A copy of the source's slot, which keeps upstream's log from where the slot is now: for a backup that is to go on exactly
//! when it is restored, whatever the source itself has acknowledged by then.
//!
//! The copy stands where upstream was last told that everything is durable, so a backup that is taken afterwards is never
//! behind it. The surprise: nobody reads it, so upstream keeps its log, and its dead rows of the catalog, until it is dropped.

use engine::source::SourceError;
use tokio_postgres::error::SqlState;

use super::config::PostgresConfig;
use super::connect::sql_session;
use super::error::{Failure, source_error};
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
        Some(&SqlState::CONFIGURATION_LIMIT_EXCEEDED) => Failure::definite(
            "no_free_slot",
            format!("all replication slots are in use: {error}"),
            "drop one that nobody needs, or raise max_replication_slots and restart Postgres",
        ),
        Some(_) => Failure::definite(
            "log_not_held",
            format!("slot {slot} cannot be copied: {error}"),
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
