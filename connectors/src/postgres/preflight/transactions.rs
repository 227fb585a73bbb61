//! Open transactions: the creation of a slot waits for every one that was writing before, and the log that a slot keeps
//! begins at the oldest. A prepared one that everybody forgot waits for ever.

use tokio_postgres::Client;

use super::super::error::Failure;
use super::Stage;
use super::finding::Finding;

/// How old one must be to be told, where a slot is about to be made.
const FRESH_AGE_S: i64 = 5;

/// And where the slot exists.
const IN_USE_AGE_S: i64 = 600;

pub(super) async fn look(client: &Client, stage: Stage) -> Result<Vec<Finding>, Failure> {
    let (age, why) = match stage {
        Stage::Fresh => (FRESH_AGE_S, "the creation of the slot will wait for it"),
        Stage::InUse | Stage::Unknown => (IN_USE_AGE_S, "Postgres keeps all log since then"),
    };
    Ok(vec![writing(client, age, why).await?, prepared(client, age, why).await?])
}

async fn writing(client: &Client, age: i64, why: &str) -> Result<Finding, Failure> {
    let name = "open_transactions";
    let row = client
        .query_opt(
            "SELECT pid, age, coalesce(usename::text, '?') FROM (
                 SELECT pid, usename, coalesce(extract(epoch FROM clock_timestamp() - xact_start), 0)::int8 AS age
                 FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname IS NOT NULL) AS writers
             WHERE age >= $1 ORDER BY age DESC LIMIT 1",
            &[&age],
        )
        .await?;
    let Some(row) = row else { return Ok(Finding::ok(name, "no transaction has been writing for long")) };
    let (pid, age, user): (i32, i64, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let message = format!("a transaction of {user} with pid {pid} has been writing for {age} s: {why}");
    Ok(Finding::warning(name, message).remedy(format!("SELECT pg_terminate_backend({pid}); -- if it is not wanted")))
}

async fn prepared(client: &Client, age: i64, why: &str) -> Result<Finding, Failure> {
    let name = "prepared_transactions";
    let row = client
        .query_opt(
            "SELECT quote_literal(gid), age, database::text FROM (
                 SELECT gid, database, extract(epoch FROM clock_timestamp() - prepared)::int8 AS age
                 FROM pg_prepared_xacts) AS waiting
             WHERE age >= $1 ORDER BY age DESC LIMIT 1",
            &[&age],
        )
        .await?;
    let Some(row) = row else { return Ok(Finding::ok(name, "no prepared transaction has been waiting for long")) };
    let (gid, age, database): (String, i64, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let message = format!("prepared transaction {gid} of database {database} has been waiting for {age} s: {why}");
    Ok(Finding::warning(name, message).remedy(format!("ROLLBACK PREPARED {gid}; -- or COMMIT PREPARED, as its owner")))
}
