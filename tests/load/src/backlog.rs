//! A backlog: transactions that were written while nobody read, and two slots that stand before it.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use connectors::postgres::throwaway::ThrowawayPostgres;
use tokio_postgres::Client;

use crate::Scale;
use crate::process::{Walsender, timed};
use crate::{payments, sql};

const BLOCK: i64 = 50_000;
const ROWS_PER_TRANSACTION: i64 = 1_000;
const UPDATES_PER_BLOCK: i64 = 5_000;
const DELETES_PER_BLOCK: i64 = 1_000;

/// A copy of the slot as it stands before the backlog.
const KEPT: &str = "load_kept";
/// The copy that `pg_recvlogical` reads.
const REFERENCE: &str = "load_reference";

/// What was written.
#[derive(Debug)]
pub struct Backlog {
    database: String,
    /// Of the connector; its publication is named the same.
    pub slot: String,
    /// Rows inserted, updated and deleted.
    pub changes: i64,
    /// Transactions.
    pub transactions: i64,
    /// Where it ends; one more transaction follows, so that every reader sees that it is there.
    pub end: String,
    /// What it is, for a remark.
    pub description: String,
}

/// One reading of it.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// From the start of the process.
    pub wall: f64,
    /// Of the process.
    pub cpu: f64,
    /// Of upstream's process.
    pub walsender_cpu: f64,
}

impl Backlog {
    /// Writes it into a table of [`payments`] that holds the preloaded rows, behind a slot.
    pub async fn write(client: &Client, database: &str, slot: &str, scale: Scale) -> anyhow::Result<Self> {
        sql::copy_slot(client, slot, KEPT).await?;
        let begin = sql::position(&sql::end_of_log(client).await?)?;
        let transactions = write(client, scale).await?;
        let end = sql::end_of_log(client).await?;
        let log_bytes = sql::position(&end)? - begin;
        let last = scale.preloaded_rows + Self::inserts(scale) + 1;
        payments::insert(client, last, last).await?;
        Ok(Backlog {
            database: database.to_owned(),
            slot: slot.to_owned(),
            changes: scale.drain_blocks * (BLOCK + UPDATES_PER_BLOCK + DELETES_PER_BLOCK),
            transactions,
            end,
            description: format!(
                "{} inserts, {} updates, {} deletes in {transactions} transactions, {} MiB of log; {} rows before",
                Self::inserts(scale),
                scale.drain_blocks * UPDATES_PER_BLOCK,
                scale.drain_blocks * DELETES_PER_BLOCK,
                log_bytes >> 20,
                scale.preloaded_rows
            ),
        })
    }

    /// How many rows it inserts.
    pub fn inserts(scale: Scale) -> i64 {
        scale.drain_blocks * BLOCK
    }

    /// Puts the slot before the backlog again.
    pub async fn rewind(&self, client: &Client) -> anyhow::Result<()> {
        sql::drop_slot(client, &self.slot).await?;
        sql::copy_slot(client, KEPT, &self.slot).await
    }

    /// Lets `pg_recvlogical` throw it away.
    pub async fn reference(&self, postgres: &ThrowawayPostgres, client: &Client) -> anyhow::Result<Reading> {
        sql::copy_slot(client, KEPT, REFERENCE).await?;
        let walsender = Walsender::watch(&postgres.url_of(&self.database), REFERENCE).await?;
        let mut command = Command::new(postgres.program("pg_recvlogical"));
        command.args(["-U", "postgres", "-d", &self.database, "-S", REFERENCE, "--start", "--no-loop"]);
        command.args([Path::new("-f"), Path::new("/dev/null"), Path::new("-h"), postgres.socket_directory()]);
        let publication = format!("publication_names={}", self.slot);
        command.args(["-o", "proto_version=1", "-o", "binary=true", "-o", &publication, "--endpos", &self.end]);
        let (wall, cpu, _) = timed(&mut command).await?;
        let walsender_cpu = walsender.end();
        let decoded = format!("SELECT total_txns FROM pg_stat_replication_slots WHERE slot_name = '{REFERENCE}'");
        let decoded: i64 = sql::value(client, &decoded).await?.parse()?;
        ensure!(decoded >= self.transactions, "pg_recvlogical saw {decoded} of {} transactions", self.transactions);
        sql::drop_slot(client, REFERENCE).await?;
        Ok(Reading { wall, cpu, walsender_cpu })
    }

    /// Drops the slots.
    pub async fn end(&self, client: &Client) -> anyhow::Result<()> {
        sql::drop_slot(client, &self.slot).await?;
        sql::drop_slot(client, KEPT).await
    }
}

/// The number of transactions.
async fn write(client: &Client, scale: Scale) -> anyhow::Result<i64> {
    let mut transactions = 0;
    for block in 0..scale.drain_blocks {
        let first = scale.preloaded_rows + block * BLOCK + 1;
        for start in (first..first + BLOCK).step_by(ROWS_PER_TRANSACTION as usize) {
            payments::insert(client, start, start + ROWS_PER_TRANSACTION - 1).await?;
            transactions += 1;
        }
        // One row in fifty each: of some earlier block to change, of this one to delete.
        let earlier = scale.preloaded_rows + (block * 7 % (block + 1)) * BLOCK;
        let every = BLOCK / ROWS_PER_TRANSACTION;
        let ids = |from: i64, offset: i64| {
            format!("id IN (SELECT generate_series({}, {}, {every}))", from + 1 + offset, from + BLOCK)
        };
        for offset in 0..UPDATES_PER_BLOCK / ROWS_PER_TRANSACTION {
            let which = ids(earlier, offset * 7);
            sql::run(client, &format!("UPDATE payments SET amount = amount + 0.37, status = 'changed' WHERE {which}"))
                .await?;
            transactions += 1;
        }
        for _ in 0..DELETES_PER_BLOCK / ROWS_PER_TRANSACTION {
            sql::run(client, &format!("DELETE FROM payments WHERE {}", ids(first - 1, every - 1))).await?;
            transactions += 1;
        }
    }
    Ok(transactions)
}
