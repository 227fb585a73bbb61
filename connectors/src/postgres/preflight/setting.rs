//! A setting of the server, and the statement that really changes it: what a role or database overrides is not changed by
//! `ALTER SYSTEM`, nor is what stands on the server's command line.

use tokio_postgres::Client;

use super::super::config::{PostgresConfig, quote_identifier};
use super::super::error::Failure;
use super::provider::Provider;

/// A number among the settings, as it holds for sessions like ours.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    name: String,
    /// In the setting's own unit.
    pub(super) value: i64,
    /// Where it comes from, in `pg_settings`' words.
    source: String,
}

impl Setting {
    /// Absent where this version has no such setting.
    pub(super) async fn read(client: &Client, name: &str) -> Result<Option<Self>, Failure> {
        let row = client.query_opt("SELECT setting::int8, source FROM pg_settings WHERE name = $1", &[&name]).await?;
        row.map(|row| Ok(Setting { name: name.to_owned(), value: row.try_get(0)?, source: row.try_get(1)? }))
            .transpose()
    }

    /// The statements that change it, and why that value.
    pub(super) fn change_to(&self, value: &str, config: &PostgresConfig, provider: Provider, why: &str) -> String {
        let name = &self.name;
        let (role, database) = (quote_identifier(&config.user), quote_identifier(&config.database));
        match self.source.as_str() {
            "database" => format!("ALTER DATABASE {database} RESET {name};"),
            "user" => format!("ALTER ROLE {role} RESET {name};"),
            "database user" => format!("ALTER ROLE {role} IN DATABASE {database} RESET {name};"),
            "command line" => format!("the server was started with -c {name}=...: change it there to {value} ({why})"),
            _ if provider.has_console() => format!("set {name} to {value} in the provider's console ({why})"),
            _ => format!("ALTER SYSTEM SET {name} = {value}; SELECT pg_reload_conf(); -- {why}"),
        }
    }
}
