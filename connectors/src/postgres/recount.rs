//! Postgres asked for its own totals, as of one exact position.
//!
//! A temporary slot exports a snapshot in which are exactly the transactions whose commit ends at or below the slot's
//! position; what is asked in it is true there, while writers go on. The surprise: making the slot waits for every
//! transaction that is writing, and nobody tells the server that we lost patience; so its session is ended.

use std::time::Duration;

use engine::change::{Lsn, TableSchema};
use engine::source::SourceError;
use futures::TryStreamExt;
use tokio::sync::mpsc;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::config::{PostgresConfig, TableName, Wanted};
use super::connect::sql_session;
use super::error::{Failure, no_free_slot, source_error};
use super::slot::{NewSlot, passing_name, who_is_waited_for};
use super::snapshot::Exported;

/// How long transactions that are writing are waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Tables may be altered while the slot is made; then it is made again.
const MAX_ATTEMPTS: usize = 5;

/// A row as text; NULL is `None`.
pub type TextRow = Vec<Option<String>>;

/// Rows that are handed on together.
const BATCH_ROWS: usize = 1_000;

/// A session that sees tables as they were at one position. They cannot be altered or truncated while it lives.
pub struct Recount {
    reader: Client,
    lsn: Lsn,
}

impl Recount {
    /// Waits until every transaction that is writing now has ended, at most 20 s.
    pub async fn open(config: &PostgresConfig, tables: &[TableSchema]) -> Result<Recount, SourceError> {
        let wanted = |table: &TableSchema| config.wanted(TableName::of(table), Some(table.keeps_row_image));
        let wanted: Vec<Wanted> = tables.iter().map(wanted).collect();
        let config = config.clone();
        // Goes on where nobody waits any more: it ends the server's session, which would wait on.
        let opening = tokio::spawn(async move { open(&config, &wanted).await });
        match opening.await {
            Ok(Ok(recount)) => Ok(recount),
            Ok(Err(failure)) => Err(told(failure)),
            Err(error) => Err(told(Failure::Transient(error.to_string()))),
        }
    }

    /// The position.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Asks in the snapshot. The rows go into the channel as text, some at a time, until nobody takes more.
    pub async fn rows(&self, sql: &str, into: mpsc::Sender<Vec<TextRow>>) -> Result<(), SourceError> {
        self.reader.batch_execute("SAVEPOINT statement").await.map_err(|error| told(error.into()))?;
        let read = self.read(sql, &into).await;
        // What Postgres refuses ends the statement, and not the transaction in which others are asked for.
        let undone = self.reader.batch_execute("ROLLBACK TO SAVEPOINT statement; RELEASE SAVEPOINT statement").await;
        match read {
            Err(failure) if undone.is_ok() && is_refused(&failure) => Err(source_error(
                "not_comparable",
                format!("Postgres refuses to recompute the totals: {failure}"),
                "drop the aggregate, and register it without what Postgres refuses",
            )),
            read => read.and(undone.map_err(Failure::from)).map_err(told),
        }
    }

    async fn read(&self, sql: &str, into: &mpsc::Sender<Vec<TextRow>>) -> Result<(), Failure> {
        // Rows come as text only where several statements could be sent at once; Postgres prepares no more than one.
        drop(self.reader.prepare(sql).await?);
        let stream = self.reader.simple_query_raw(sql).await?;
        tokio::pin!(stream);
        let mut batch = Vec::new();
        while let Some(message) = stream.try_next().await? {
            let SimpleQueryMessage::Row(row) = message else { continue };
            batch.push((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect());
            if batch.len() >= BATCH_ROWS && into.send(std::mem::take(&mut batch)).await.is_err() {
                return Ok(());
            }
        }
        // Whoever takes no more has what it needs.
        let _ = into.send(batch).await;
        Ok(())
    }
}

/// Whether a statement was refused for what it says: a constant, or an operator that there is none of. All else may pass, or is
/// not of this aggregate alone.
fn is_refused(failure: &Failure) -> bool {
    failure.is_of_the_words() || matches!(failure, Failure::Definite(error) if error.code == "server_not_understood")
}

async fn open(config: &PostgresConfig, wanted: &[Wanted]) -> Result<Recount, Failure> {
    let client = sql_session(config).await?;
    let mut attempt = 1;
    loop {
        match open_once(config, wanted, &client).await {
            Err(Failure::Transient(reason)) if attempt < MAX_ATTEMPTS => {
                tracing::debug!(%reason, "the snapshot to recount in is made again");
                attempt += 1;
            }
            done => return done,
        }
    }
}

async fn open_once(config: &PostgresConfig, wanted: &[Wanted], client: &Client) -> Result<Recount, Failure> {
    let slot = passing_name(config, "recount");
    let mut never = 0;
    let opening = Exported::open(config, client, wanted, NewSlot::OfSnapshot(&slot, None), &mut never);
    match tokio::time::timeout(PATIENCE, opening).await {
        Ok(exported) => {
            let Exported { reader, lsn, .. } = exported?;
            Ok(Recount { reader, lsn })
        }
        Err(_) => {
            let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1";
            client.execute(end, &[&slot]).await?;
            let waiting = who_is_waited_for(client).await?;
            Err(Failure::definite(
                "transactions_open",
                format!(
                    "an exact snapshot waits for transactions that are writing: {} of them, the oldest, of the session with \
                     pid {}, for {} s",
                    waiting.transactions, waiting.oldest_pid, waiting.age_s
                ),
                format!("have it end, or SELECT pg_terminate_backend({}), then try again", waiting.oldest_pid),
            ))
        }
    }
}

fn told(failure: Failure) -> SourceError {
    match failure {
        Failure::Definite(error) => error,
        failure if failure.is_lack_of_slots() => no_free_slot(),
        Failure::Transient(message) => source_error(
            "cannot_recount",
            format!("Postgres did not recompute the totals: {message}"),
            "see what the message says, and try again",
        ),
        Failure::Closed => source_error("cannot_recount", "the session was closed", "try again"),
    }
}
