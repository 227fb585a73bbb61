//! Sessions: ordinary SQL ones and replication ones, all with the same pinned settings.
//!
//! The surprise: database and role settings reach replication sessions too. A timeout set there would kill the session
//! that holds the exported snapshot, a date style would change values; so every session starts with its own.

use tokio::time::timeout;
use tokio_postgres::Client;

use super::config::{CONNECT_TIMEOUT, PostgresConfig};
use super::error::Failure;
use super::transport::{CopySession, Established, ReplicationClient, ServerIdentity, Socket};

const SESSION_OPTIONS: &str = "-c idle_in_transaction_session_timeout=0 -c statement_timeout=0 -c lock_timeout=0 \
                               -c idle_session_timeout=0 -c default_transaction_read_only=off \
                               -c standard_conforming_strings=on \
                               -c DateStyle=ISO,MDY -c IntervalStyle=postgres -c TimeZone=UTC -c extra_float_digits=1 \
                               -c bytea_output=hex \
                               -c search_path=pg_catalog";

/// PG 17 has one more timeout; naming it in the options would keep older servers from letting us in.
const LIFT_TRANSACTION_TIMEOUT: &str =
    "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout'";

fn options(config: &PostgresConfig) -> String {
    match config.endpoint.get_options() {
        Some(own) => format!("{own} {SESSION_OPTIONS}"),
        None => SESSION_OPTIONS.to_owned(),
    }
}

/// An ordinary session. It ends when the client is dropped.
pub(super) async fn sql_session(config: &PostgresConfig) -> Result<Client, Failure> {
    let opening = async {
        let socket = Socket::open(config).await?;
        let mut endpoint = config.endpoint.clone();
        endpoint.application_name(config.application_name()).options(options(config));
        let (client, connection) = endpoint.connect_raw(socket, Established).await?;
        tokio::spawn(async move {
            // The error also reaches the query that waits for it.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "Postgres session ended");
            }
        });
        client.batch_execute(LIFT_TRANSACTION_TIMEOUT).await?;
        Ok(client)
    };
    timeout(CONNECT_TIMEOUT, opening).await.map_err(|_| timed_out(config))?
}

fn timed_out(config: &PostgresConfig) -> Failure {
    Failure::Transient(format!("no answer from {} within {} s", config.display(), CONNECT_TIMEOUT.as_secs()))
}

/// Fails where the server is no primary, or not yet one again.
pub(super) async fn refuse_standby(client: &Client) -> Result<(), Failure> {
    match client.query_one("SELECT pg_is_in_recovery()", &[]).await?.try_get(0)? {
        true => Err(Failure::Transient("the server is a standby or still recovering".to_owned())),
        false => Ok(()),
    }
}

/// A session to copy rows out.
pub(super) async fn copy_session(config: &PostgresConfig) -> Result<CopySession, Failure> {
    let opening = async {
        let mut session = CopySession::connect(config, &options(config), &config.application_name()).await?;
        session.execute(LIFT_TRANSACTION_TIMEOUT).await?;
        Ok(session)
    };
    timeout(CONNECT_TIMEOUT, opening).await.map_err(|_| timed_out(config))?
}

/// A replication session that has authenticated and not started to stream.
pub(super) async fn replication_session(
    config: &PostgresConfig,
) -> Result<(ReplicationClient, ServerIdentity), Failure> {
    let opening = async {
        let mut client = ReplicationClient::connect(config, &options(config), &config.application_name()).await?;
        let identity = client.identify_system().await?;
        client.simple_query(LIFT_TRANSACTION_TIMEOUT).await?;
        Ok((client, identity))
    };
    timeout(CONNECT_TIMEOUT, opening).await.map_err(|_| timed_out(config))?
}
