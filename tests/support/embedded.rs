//! Tidemark in this process: engine and Postgres connector over a data directory, to be stopped or torn down.

use std::path::Path;
use std::time::Duration;

use connectors::{ConnectorConfig, PostgresConfig};
use engine::change::Lsn;
use engine::engine::{EngineConfig, RegisterError, Registered};
use engine::materialization::{AggregateState, Definition};
use engine::source::ResumePoint;
use engine::{Engine, Snapshot};
use std::sync::Arc;

/// Reasons not to answer that end by themselves.
pub const PASSING: [&str; 5] = ["starting", "snapshotting", "checking_store", "catching_up", "connecting"];

/// Engine and connector.
pub struct Embedded {
    pub engine: Engine,
    connector: tokio::task::JoinHandle<()>,
}

impl Embedded {
    /// Starts over a data directory, on tables of a database.
    pub async fn start(data: &Path, url: &str, tables: &[&str], slot: &str, workers: usize) -> Embedded {
        let config = EngineConfig { workers, ..EngineConfig::new(data) };
        let tables: Vec<String> = tables.iter().map(|table| (*table).to_owned()).collect();
        Self::start_with(&config, PostgresConfig::new(url, &tables, slot).unwrap()).await
    }

    /// Starts with these settings. As the binary does, it looks for mistakes upstream only where the data directory is new.
    pub async fn start_with(config: &EngineConfig, postgres: PostgresConfig) -> Embedded {
        let connector = ConnectorConfig::Postgres(postgres);
        let (engine, context) = Engine::start(config).unwrap_or_else(|error| panic!("{}: {error}", error.code));
        if matches!(context.resume, ResumePoint::Fresh) {
            connectors::preflight(&connector).await.unwrap_or_else(|error| panic!("{error}"));
        }
        Embedded { engine, connector: tokio::spawn(connectors::run(connector, context)) }
    }

    /// The Snapshot at or past a position; fails the test where it is not reached.
    pub async fn at(&self, lsn: Lsn) -> Arc<Snapshot> {
        let reached = self.engine.wait_for(lsn, Duration::from_secs(30)).await;
        assert!(reached, "{lsn} was not reached: {:?}", self.engine.status());
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            match self.engine.snapshot() {
                Ok(snapshot) => return snapshot,
                Err(reason) => {
                    let passes = PASSING.contains(&reason.code.as_str()) && tokio::time::Instant::now() < deadline;
                    assert!(passes, "{reason:?}");
                }
            }
            self.next_commit().await;
        }
    }

    /// Waits until this holds of the tables or aggregates; the monitor looks every two seconds.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Embedded) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(tokio::time::Instant::now() < deadline, "never: {what}: {:?}", self.engine.tables());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Registers, and fails the test where that is refused. Returns whether it is new.
    pub async fn register(&self, name: &str, definition: Definition) -> bool {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            match self.engine.register(name, definition.clone()).await {
                Ok(Registered::Created(_)) => return true,
                Ok(Registered::Unchanged(_)) => return false,
                // The slot of a new source waits for those who write.
                Err(RegisterError::Unavailable(reason)) if reason.code == "starting" => {
                    assert!(
                        tokio::time::Instant::now() < deadline,
                        "{name}: {reason}: {:?}",
                        self.engine.status().source.state
                    );
                }
                Err(error) => panic!("{name}: {error:?}"),
            }
        }
    }

    /// Waits until an aggregate is filled, and returns the Snapshot that says so.
    pub async fn live(&self, name: &str, lsn: Lsn) -> Arc<Snapshot> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(90);
        loop {
            assert!(tokio::time::Instant::now() < deadline, "{name} is never filled: {:?}", self.engine.status());
            let snapshot = self.at(lsn).await;
            match &snapshot.catalog().aggregates.get(name).unwrap_or_else(|| panic!("no aggregate {name}")).state {
                AggregateState::Live => return snapshot,
                AggregateState::Building => self.next_commit().await,
                halted => panic!("{name}: {halted:?}"),
            }
        }
    }

    async fn next_commit(&self) {
        let mut applied = self.engine.applied();
        applied.borrow_and_update();
        // A commit may have slipped in between; then the next look finds it.
        let _ = tokio::time::timeout(Duration::from_millis(200), applied.changed()).await;
    }

    /// Stops as SIGTERM does.
    pub async fn stop(self) {
        self.engine.stop().await;
        let _ = self.connector.await;
    }
}
