//! Sessions: whether a replication session gets in at all, and the settings that would end one.
//!
//! The surprise: what answers at the URL may be a connection pooler. Ordinary SQL works through it, replication cannot.

use tokio_postgres::Client;

use super::super::config::{PostgresConfig, quote_identifier};
use super::super::connect::replication_session;
use super::super::error::{Failure, pooler};
use super::finding::Finding;
use super::server::ServerFacts;
use super::setting::Setting;

/// A broken connection stays unnoticed upstream for this long at most, and its slot taken.
const LONG_TIMEOUT_MS: i64 = 300_000;

/// Opens a replication session and closes it again: such sessions have their own lines in pg_hba.conf, their own limit,
/// and are what poolers cannot do.
pub(super) async fn try_replication(config: &PostgresConfig) -> Finding {
    const NAME: &str = "replication_session";
    let refused = match replication_session(config).await {
        Ok(_) => return Finding::ok(NAME, "a replication session gets in"),
        Err(failure) => failure,
    };
    match refused {
        Failure::Definite(error) if error.code == "pooler" => Finding::of(NAME, at_pooler(config, &error.message)),
        // A pooler that takes the wish for replication out of the start-up packet: the replication command is no SQL.
        Failure::Definite(error) if error.code == "server_not_understood" => {
            Finding::of(NAME, at_pooler(config, &error.message))
        }
        Failure::Definite(error) => Finding::of(NAME, error),
        Failure::Transient(said) if said.contains("max_wal_senders") => Finding::failed(NAME, "no_free_sender", said)
            .statements(&["ALTER SYSTEM SET max_wal_senders = 20".to_owned()])
            .then_restart(", or end one that nobody needs")
            .passing(),
        // A guess: it may be over the next time as well.
        Failure::Transient(said) if looks_like_pooler(config) => Finding::of(NAME, at_pooler(config, &said)).passing(),
        Failure::Transient(said) => Finding::failed(
            NAME,
            "cannot_connect",
            format!("ordinary sessions get in at {}, replication sessions do not: {said}", config.display()),
        )
        .remedy("check that nothing between tidemark and Postgres refuses replication sessions")
        .passing(),
        Failure::Closed => closed(NAME),
    }
}

/// The session that a check needs has ended.
pub(super) fn closed(name: &'static str) -> Finding {
    Finding::failed(name, "cannot_connect", "the session was closed").remedy("try again").passing()
}

/// The same error, with the host that is to be named instead where it can be known.
pub(super) fn at_pooler(config: &PostgresConfig, said: &str) -> engine::source::SourceError {
    let mut error = pooler(&format!("{} answers as a connection pooler: {said}", config.display()));
    let host = &config.host;
    if host.contains("-pooler.") {
        error.remedy = format!("use the direct host in the URL: {}", host.replacen("-pooler.", ".", 1));
    } else if host.contains(".pooler.supabase.") {
        error.remedy = "use the direct host in the URL: db.<project>.supabase.co:5432".to_owned();
    }
    error
}

/// Hosts and ports that are poolers' by custom; a reason to suspect one only when replication was refused.
fn looks_like_pooler(config: &PostgresConfig) -> bool {
    config.host.contains("-pooler.") || config.host.contains(".pooler.") || matches!(config.port, 6432 | 6543)
}

/// Settings that reach our sessions.
pub(super) async fn look(
    client: &Client,
    config: &PostgresConfig,
    server: &ServerFacts,
) -> Result<Vec<Finding>, Failure> {
    let mut findings = Vec::new();
    if let Some(setting) = Setting::read(client, "wal_sender_timeout").await? {
        let name = "wal_sender_timeout";
        let change = || setting.change_to("'60s'", config, server.provider, "Postgres' own default");
        findings.push(match setting.value {
            0 => Finding::warning(
                name,
                "wal_sender_timeout is 0: after a network failure Postgres holds the old session, and with it the slot, for ever",
            )
            .remedy(change()),
            ms if ms > LONG_TIMEOUT_MS => Finding::warning(
                name,
                format!(
                    "wal_sender_timeout is {} s: after a network failure Postgres holds the old session, and with it the \
                     slot, for so long",
                    ms / 1_000
                ),
            )
            .remedy(change()),
            ms => Finding::ok(name, format!("Postgres gives a broken session up after {ms} ms")),
        });
    }
    findings.push(pinned_timeouts(client).await?);
    findings.push(statistics(client, config).await?);
    if let Some(setting) = Setting::read(client, "logical_decoding_work_mem").await? {
        let message =
            format!("transactions beyond logical_decoding_work_mem = {} kB go to Postgres' disk first", setting.value);
        findings.push(Finding::ok("logical_decoding_work_mem", message));
    }
    Ok(findings)
}

/// Timeouts of the role or the database would end a snapshot; our sessions start with their own.
async fn pinned_timeouts(client: &Client) -> Result<Finding, Failure> {
    let row = client
        .query_one(
            "SELECT coalesce(string_agg(setting, ', '), '')
             FROM pg_db_role_setting s, unnest(s.setconfig) AS setting
             WHERE s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user))
               AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
               AND split_part(setting, '=', 1) IN ('idle_in_transaction_session_timeout', 'statement_timeout',
                                                   'transaction_timeout', 'lock_timeout', 'idle_session_timeout')",
            &[],
        )
        .await?;
    let found: String = row.try_get(0)?;
    let message = if found.is_empty() {
        "no timeout is set on role or database".to_owned()
    } else {
        format!("role or database set {found}; tidemark's own sessions start with 0 instead")
    };
    Ok(Finding::ok("session_timeouts", message))
}

/// Who may not see when a session last answered cannot tell a left-behind one from a living one.
async fn statistics(client: &Client, config: &PostgresConfig) -> Result<Finding, Failure> {
    let sees: bool =
        client.query_one("SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')", &[]).await?.try_get(0)?;
    if sees {
        return Ok(Finding::ok("statistics", "the role sees which sessions answer"));
    }
    let role = quote_identifier(&config.user);
    let message = format!(
        "role {role} does not see which sessions answer: one of ours that a broken network left behind holds the slot until \
         wal_sender_timeout"
    );
    Ok(Finding::warning("statistics", message).statements(&[format!("GRANT pg_read_all_stats TO {role}")]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn the_direct_host_is_named_where_it_can_be_known() {
        let at = |host: &str| {
            PostgresConfig::new(&format!("postgres://anna:geheim@{host}/d"), &["t".into()], "tidemark_a").unwrap()
        };
        let neon = at("ep-cool-1-pooler.eu.aws.neon.tech");
        assert!(looks_like_pooler(&neon));
        let error = at_pooler(&neon, "no");
        assert_eq!(error.code, "pooler");
        assert_eq!(error.remedy, "use the direct host in the URL: ep-cool-1.eu.aws.neon.tech");
        assert!(looks_like_pooler(&at("db:6543")) && looks_like_pooler(&at("db:6432")));
        assert!(!looks_like_pooler(&at("pooler:5432")));
        assert!(!format!("{:?}", at_pooler(&at("h:6432"), "no")).contains("geheim"));
    }
}
