//! Sessions: ordinary SQL ones and replication ones, all with the same pinned settings.
//!
//! The surprise: database and role settings reach replication sessions too. A timeout set there would kill the session
//! that holds the exported snapshot, a date style would change values; so every session starts with its own.

use std::time::Duration;

use engine::change::Lsn;
use pgwire_replication::{ReplicationClient, ReplicationConfig};
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

use super::config::{CONNECT_TIMEOUT, PostgresConfig};
use super::error::Failure;

const SESSION_OPTIONS: &str = "-c idle_in_transaction_session_timeout=0 -c statement_timeout=0 -c lock_timeout=0 \
                               -c DateStyle=ISO -c IntervalStyle=postgres -c TimeZone=UTC -c extra_float_digits=1 \
                               -c search_path=pg_catalog";

/// PG 17 has one more timeout; naming it in the options would keep older servers from letting us in.
const LIFT_TRANSACTION_TIMEOUT: &str =
    "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout'";

/// A raised durable position is sent at most this much later.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);

/// Says that we live, so that another tidemark can tell a running one from a left-behind walsender.
const IDLE_STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Messages between socket and assembler; rows may be large, so this is not generous.
const BUFFERED_MESSAGES: usize = 512;

fn options(config: &PostgresConfig) -> String {
    match config.endpoint.get_options() {
        Some(own) => format!("{own} {SESSION_OPTIONS}"),
        None => SESSION_OPTIONS.to_owned(),
    }
}

/// An ordinary session. It ends when the client is dropped.
pub(super) async fn sql_session(config: &PostgresConfig) -> Result<Client, Failure> {
    let mut endpoint = config.endpoint.clone();
    endpoint.application_name(config.application_name()).options(options(config));
    let connected = timeout(CONNECT_TIMEOUT, endpoint.connect(NoTls)).await;
    let (client, connection) = connected.map_err(|_| timed_out(config))??;
    tokio::spawn(async move {
        // The error also reaches the query that waits for it.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "Postgres session ended");
        }
    });
    client.batch_execute(LIFT_TRANSACTION_TIMEOUT).await?;
    Ok(client)
}

fn timed_out(config: &PostgresConfig) -> Failure {
    Failure::Transient(format!("no answer from {} within {} s", config.display(), CONNECT_TIMEOUT.as_secs()))
}

/// Where a replication session reads from, and what it may tell upstream as durable.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Positions {
    pub(super) start: Lsn,
    pub(super) durable: Lsn,
}

/// What a replication session says about the server it reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerIdentity {
    pub(super) system: String,
    pub(super) timeline: u32,
    /// End of the flushed log.
    pub(super) flushed: Lsn,
}

/// A replication session that has authenticated and not started to stream.
pub(super) async fn replication_session(
    config: &PostgresConfig,
    positions: Positions,
) -> Result<(ReplicationClient, ServerIdentity), Failure> {
    let settings = ReplicationConfig::new(
        &config.host,
        &config.user,
        &config.password,
        &config.database,
        &config.slot,
        config.publication.as_str(),
    )
    .with_port(config.port)
    .with_start_lsn(pgwire_replication::Lsn(positions.start.0))
    .with_ack_lsn(pgwire_replication::Lsn(positions.durable.0))
    .with_status_interval(STATUS_INTERVAL)
    .with_wakeup_interval(IDLE_STATUS_INTERVAL)
    .with_buffer_size(BUFFERED_MESSAGES)
    .with_binary(true)
    .with_options(options(config))
    .with_application_name(config.application_name());
    let opening = async {
        let mut client = ReplicationClient::connect_gated(settings).await?;
        let identity = client.identify_system().await?;
        client.simple_query(LIFT_TRANSACTION_TIMEOUT).await?;
        Ok::<_, Failure>((client, identity))
    };
    let (client, identity) = timeout(CONNECT_TIMEOUT, opening).await.map_err(|_| timed_out(config))??;
    let server =
        ServerIdentity { system: identity.system_id, timeline: identity.timeline, flushed: Lsn(identity.xlogpos.0) };
    Ok((client, server))
}
