//! Where changes come from. One module per connector, all behind the engine's port [`engine::source`].

mod acknowledge;
/// Change events in Debezium's format.
pub mod debezium;
/// Change events that are posted.
pub mod events;
#[cfg(test)]
mod fuzzing;
/// Made-up payments, the same for the same seed.
pub mod generator;
mod json_value;
/// A Postgres database: snapshot, then logical replication.
pub mod postgres;
/// Change events recorded in a file.
pub mod replay;
/// The description of tables where no catalog can be asked.
pub mod tables;

pub use events::EventsConfig;
pub use generator::GeneratorConfig;
pub use postgres::PostgresConfig;
pub use replay::ReplayConfig;

use engine::hindrance::Hindrance;
use engine::source::{SourceContext, SourceError};

/// A source and its settings.
#[derive(Clone, Debug)]
pub enum ConnectorConfig {
    /// Follow tables of a Postgres database.
    Postgres(PostgresConfig),
    /// Make payments up.
    Generator(GeneratorConfig),
    /// Read recorded events from a file.
    Replay(ReplayConfig),
    /// Take events that are posted.
    Events(EventsConfig),
}

impl ConnectorConfig {
    /// The source's name, in `/v1/sources`, metrics and the log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            ConnectorConfig::Postgres(_) => "postgres",
            ConnectorConfig::Generator(_) => "generator",
            ConnectorConfig::Replay(_) => "replay",
            ConnectorConfig::Events(_) => "events",
        }
    }
}

/// Why a source cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct NotStarted {
    /// What is wrong, and what to do.
    pub error: SourceError,
    /// Whether trying again may be enough.
    pub hindrance: Hindrance,
}

/// What somebody has to mend.
impl From<SourceError> for NotStarted {
    fn from(error: SourceError) -> Self {
        NotStarted { error, hindrance: Hindrance::Standing }
    }
}

/// Finds start-up mistakes before anything starts.
pub async fn preflight(config: &ConnectorConfig) -> Result<(), NotStarted> {
    match config {
        ConnectorConfig::Postgres(config) => postgres::preflight(config).await,
        ConnectorConfig::Generator(_) | ConnectorConfig::Events(_) => Ok(()),
        ConnectorConfig::Replay(config) => Ok(replay::preflight(config)?),
    }
}

/// Runs the source until the engine closes the event channel or the source halts; the status then says why.
pub async fn run(config: ConnectorConfig, context: SourceContext) {
    match config {
        ConnectorConfig::Postgres(config) => postgres::run(config, context).await,
        ConnectorConfig::Generator(config) => generator::run(config, context).await,
        ConnectorConfig::Replay(config) => replay::run(config, context).await,
        ConnectorConfig::Events(config) => events::run(config, context).await,
    }
}
