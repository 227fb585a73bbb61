//! What the server and the role must be able to do, whatever the tables.

use engine::source::SourceError;
use tokio_postgres::Client;

use super::super::config::{PostgresConfig, quote_identifier};
use super::super::error::Failure;
use super::super::synchronous;
use super::super::upstream::misses_new_members;
use super::finding::Finding;
use super::provider::Provider;

/// What one look at the server says.
#[derive(Clone, Debug)]
pub(super) struct ServerFacts {
    /// As in `server_version_num`.
    pub(super) version: i32,
    version_text: String,
    wal_level: String,
    pub(super) in_recovery: bool,
    /// `host:port` of the primary, where this is a standby and we may know.
    primary: Option<String>,
    encoding: String,
    pub(super) may_replicate: bool,
    /// Why commits would wait for us, and what repairs that.
    waits_for_us: Option<SourceError>,
    pub(super) provider: Provider,
}

impl ServerFacts {
    pub(super) async fn read(client: &Client) -> Result<Self, Failure> {
        let row = client
            .query_one(
                "SELECT current_setting('server_version_num')::int4, current_setting('server_version'),
                        current_setting('wal_level'), pg_is_in_recovery(), current_setting('server_encoding'),
                        coalesce((SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user), false)
                        OR EXISTS (SELECT 1 FROM pg_roles
                                   WHERE rolname = 'rds_replication' AND pg_has_role(oid, 'MEMBER'))",
                &[],
            )
            .await?;
        let in_recovery: bool = row.try_get(3)?;
        let primary = if in_recovery {
            let receiver = client
                .query_opt(
                    "SELECT sender_host || ':' || sender_port FROM pg_stat_wal_receiver WHERE sender_host IS NOT NULL",
                    &[],
                )
                .await?;
            receiver.map(|row| row.try_get(0)).transpose()?
        } else {
            None
        };
        Ok(ServerFacts {
            version: row.try_get(0)?,
            version_text: row.try_get(1)?,
            wal_level: row.try_get(2)?,
            in_recovery,
            primary,
            encoding: row.try_get(4)?,
            may_replicate: row.try_get(5)?,
            provider: Provider::of(client).await?,
            waits_for_us: synchronous::trouble(client).await?,
        })
    }

    pub(super) fn judge(&self, config: &PostgresConfig) -> Vec<Finding> {
        let mut findings = vec![
            self.judge_version(),
            self.judge_primary(),
            self.judge_wal_level(),
            self.judge_encoding(),
            self.judge_role(config),
            self.judge_synchronous(),
        ];
        findings.extend(config.failover.then(|| self.judge_failover()));
        findings
    }

    fn judge_synchronous(&self) -> Finding {
        const NAME: &str = "synchronous_standby";
        match self.waits_for_us.clone() {
            None => Finding::ok(NAME, "no commit waits for tidemark"),
            Some(error) => Finding::of(NAME, error),
        }
    }

    fn judge_failover(&self) -> Finding {
        if self.version < 170_000 {
            let message =
                format!("failover slots came with Postgres 17; the server is Postgres {}", self.version / 10_000);
            return Finding::failed("failover_slot", "failover_slots_unavailable", message)
                .remedy("leave failover_slot out, or upgrade Postgres");
        }
        Finding::ok("failover_slot", "standbys can copy the slot")
    }

    fn judge_version(&self) -> Finding {
        if self.version < 140_000 {
            let message = format!(
                "the server is Postgres {}; binary logical replication needs 14 or newer",
                self.version / 10_000
            );
            return Finding::failed("server_version", "version_too_old", message)
                .remedy("upgrade Postgres to 14 or newer");
        }
        if misses_new_members(self.version) {
            let message = format!(
                "Postgres {}: its walsenders can miss that a table joined a publication; tidemark reconnects for each that joins",
                self.version_text
            );
            return Finding::warning("server_version", message)
                .remedy("upgrade to the newest minor version: 14.18, 15.13, 16.9, 17.5 or newer");
        }
        Finding::ok("server_version", format!("Postgres {}", self.version_text))
    }

    fn judge_primary(&self) -> Finding {
        if !self.in_recovery {
            return Finding::ok("primary", "the server is a primary");
        }
        let message =
            "the server is a standby; slots and publications live on the primary, and standbys are not supported";
        let remedy = match &self.primary {
            Some(primary) => format!("name the primary in the URL; this standby follows {primary}"),
            None => "name the primary in the URL".to_owned(),
        };
        Finding::failed("primary", "in_recovery", message).remedy(remedy)
    }

    fn judge_wal_level(&self) -> Finding {
        if self.wal_level == "logical" {
            return Finding::ok("wal_level", "wal_level is logical");
        }
        let message = format!("wal_level is {}; the log does not hold what logical replication needs", self.wal_level);
        let failed = Finding::failed("wal_level", "wal_level_not_logical", message);
        match self.provider.logical_wal() {
            Some(switch) => failed.remedy(switch),
            None => failed.repaired_by(vec!["ALTER SYSTEM SET wal_level = 'logical'".to_owned()]).then_restart(""),
        }
    }

    fn judge_encoding(&self) -> Finding {
        if self.encoding == "UTF8" {
            return Finding::ok("encoding", "the database's encoding is UTF8");
        }
        let message = format!("the database's encoding is {}", self.encoding);
        Finding::failed("encoding", "encoding_not_utf8", message)
            .remedy("move the tables to a database with ENCODING 'UTF8'")
    }

    fn judge_role(&self, config: &PostgresConfig) -> Finding {
        let role = quote_identifier(&config.user);
        if self.may_replicate {
            return Finding::ok("replication_role", format!("role {role} may use replication"));
        }
        let grant = match self.provider {
            Provider::Rds => format!("GRANT rds_replication TO {role}"),
            _ => format!("ALTER ROLE {role} REPLICATION"),
        };
        Finding::failed("replication_role", "role_cannot_replicate", format!("role {role} may not use replication"))
            .repaired_by(vec![grant])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use engine::source::CheckOutcome;

    use super::super::finding::first_failure;
    use super::*;

    fn facts() -> ServerFacts {
        ServerFacts {
            version: 150_020,
            version_text: "15.20".into(),
            wal_level: "logical".into(),
            in_recovery: false,
            primary: None,
            encoding: "UTF8".into(),
            may_replicate: true,
            waits_for_us: None,
            provider: Provider::Owner,
        }
    }

    fn failure(facts: &ServerFacts) -> (&'static str, String) {
        let config = PostgresConfig::new("postgres://anna@h/d", &["t".into()], "tidemark_a").unwrap();
        first_failure(&facts.judge(&config)).map_or(("", String::new()), |error| (error.code, error.remedy))
    }

    #[test]
    fn what_no_test_server_is_can_be_told_too() {
        assert_eq!(failure(&facts()).0, "");
        let failover =
            PostgresConfig::new("postgres://anna@h/d", &["t".into()], "tidemark_a").unwrap().with_failover(true);
        assert_eq!(first_failure(&facts().judge(&failover)).unwrap().code, "failover_slots_unavailable");
        assert_eq!(first_failure(&ServerFacts { version: 170_001, ..facts() }.judge(&failover)), None);
        assert_eq!(failure(&ServerFacts { version: 130_012, ..facts() }).0, "version_too_old");
        let judged = |version| ServerFacts { version, ..facts() }.judge_version().check.outcome;
        assert_eq!((judged(150_012), judged(150_013)), (CheckOutcome::Warning, CheckOutcome::Ok));
        let standby = ServerFacts { in_recovery: true, primary: Some("db1:5432".into()), ..facts() };
        assert_eq!(
            failure(&standby),
            ("in_recovery", "name the primary in the URL; this standby follows db1:5432".into())
        );
    }

    #[test]
    fn hosted_servers_have_their_own_switches() {
        let remedy = |provider| failure(&ServerFacts { wal_level: "replica".into(), provider, ..facts() }).1;
        assert!(remedy(Provider::Rds).contains("rds.logical_replication = 1"));
        assert!(remedy(Provider::CloudSql).contains("cloudsql.logical_decoding"));
        assert!(remedy(Provider::Azure).contains("LOGICAL"));
        assert!(remedy(Provider::Owner).starts_with("ALTER SYSTEM SET wal_level = 'logical'; -- then restart"));
        let role = |provider| failure(&ServerFacts { may_replicate: false, provider, ..facts() }).1;
        assert_eq!(role(Provider::Rds), "GRANT rds_replication TO \"anna\";");
        assert_eq!(role(Provider::Azure), "ALTER ROLE \"anna\" REPLICATION;");
    }
}
