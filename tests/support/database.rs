//! A private Postgres for tests that run the real binary and wait for it without a runtime of their own.

use std::time::{Duration, Instant};

use connectors::postgres::throwaway::ThrowawayPostgres;
use tokio_postgres::Client;

use crate::support::sql;

/// A private Postgres and a session.
pub struct Database {
    client: Client,
    pub runtime: tokio::runtime::Runtime,
    pub postgres: ThrowawayPostgres,
}

impl Database {
    /// Starts one with these settings and runs these statements.
    pub fn start(settings: &[&str], statements: &str) -> Database {
        let postgres = sql::postgres(settings);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(sql::connect(&postgres.url()));
        let database = Database { client, runtime, postgres };
        database.sql(statements);
        database
    }

    /// The URL of its superuser.
    pub fn url(&self) -> String {
        self.postgres.url()
    }

    /// The URL of another role.
    pub fn url_as(&self, user: &str) -> String {
        self.url().replacen("postgres@", &format!("{user}@"), 1)
    }

    /// Statements without a result.
    pub fn sql(&self, statements: &str) {
        self.runtime.block_on(sql::run(&self.client, statements));
    }

    /// The one value of a query.
    pub fn value(&self, query: &str) -> String {
        self.runtime.block_on(sql::value(&self.client, query))
    }

    /// Slots and publications left on the server.
    pub fn left_behind(&self) -> String {
        self.value("SELECT (SELECT count(*) FROM pg_replication_slots) || ' ' || (SELECT count(*) FROM pg_publication)")
    }

    /// Waits until a session reads a slot; returns its name.
    pub fn until_read(&self) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let slot =
                self.value("SELECT coalesce(string_agg(slot_name, ','), '') FROM pg_replication_slots WHERE active");
            if !slot.is_empty() {
                return slot;
            }
            assert!(Instant::now() < deadline, "nobody reads a slot");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
