//! Statements that wait for a lock, for a moment only: who waits for a lock holds up whoever comes after, and here the whole stream.

use std::time::Duration;

use tokio_postgres::Client;

use super::error::Failure;

/// Runs `work` in a transaction of its own that gives up where a lock is not to be had soon; see [`Failure::is_locked_out`].
pub(super) async fn with_patience<T>(
    client: &Client,
    patience: Duration,
    work: impl AsyncFnOnce() -> Result<T, tokio_postgres::Error>,
) -> Result<T, Failure> {
    client.batch_execute(&format!("BEGIN; SET LOCAL lock_timeout = {}", patience.as_millis())).await?;
    match work().await {
        Ok(done) => {
            client.batch_execute("COMMIT").await?;
            Ok(done)
        }
        Err(error) => {
            client.batch_execute("ROLLBACK").await?;
            Err(error.into())
        }
    }
}
