//! Who runs the server: the hosted ones have their own switches in place of ordinary settings and attributes. Recognised
//! by settings and roles that only they have.

use tokio_postgres::Client;

use super::super::error::Failure;

/// Who runs the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    /// Its owner, as far as we can tell.
    Owner,
    /// Amazon RDS or Aurora.
    Rds,
    /// Google Cloud SQL or AlloyDB.
    CloudSql,
    /// Azure Database for PostgreSQL.
    Azure,
    /// Neon.
    Neon,
    /// Supabase.
    Supabase,
}

impl Provider {
    pub(super) async fn of(client: &Client) -> Result<Self, Failure> {
        let row = client
            .query_one(
                "SELECT CASE
                     WHEN current_setting('rds.logical_replication', true) IS NOT NULL
                          OR EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'rds_superuser') THEN 'rds'
                     WHEN current_setting('cloudsql.logical_decoding', true) IS NOT NULL
                          OR EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'cloudsqlsuperuser') THEN 'cloudsql'
                     WHEN current_setting('azure.extensions', true) IS NOT NULL
                          OR EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'azure_pg_admin') THEN 'azure'
                     WHEN EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'neon_superuser') THEN 'neon'
                     WHEN EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'supabase_admin') THEN 'supabase'
                     ELSE '' END",
                &[],
            )
            .await?;
        let name: String = row.try_get(0)?;
        Ok(match name.as_str() {
            "rds" => Provider::Rds,
            "cloudsql" => Provider::CloudSql,
            "azure" => Provider::Azure,
            "neon" => Provider::Neon,
            "supabase" => Provider::Supabase,
            _ => Provider::Owner,
        })
    }

    /// How to get `wal_level = logical` where `ALTER SYSTEM` is not the way.
    pub(super) fn logical_wal(self) -> Option<&'static str> {
        match self {
            Provider::Owner | Provider::Supabase => None,
            Provider::Rds => Some(
                "set rds.logical_replication = 1 in the parameter group of the instance or cluster, then reboot the writer",
            ),
            Provider::CloudSql => {
                Some("set the flag cloudsql.logical_decoding = on of the instance, which restarts it")
            }
            Provider::Azure => Some("set the server parameter wal_level to LOGICAL, then restart the server"),
            Provider::Neon => Some("enable logical replication in the settings of the project"),
        }
    }

    /// Settings are changed in a console, not by `ALTER SYSTEM`.
    pub(super) fn has_console(self) -> bool {
        self != Provider::Owner
    }
}
