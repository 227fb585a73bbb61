//! A throwaway Postgres with the settings that these tests need, and sessions on it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use connectors::postgres::throwaway::{Stop, ThrowawayPostgres};
use tokio_postgres::{Client, NoTls};

pub struct Server(ThrowawayPostgres);

impl Server {
    /// Starts with logical replication and a walsender timeout of two seconds; later settings win.
    pub fn start(settings: &[&str]) -> Server {
        let mut all =
            vec!["wal_sender_timeout=2s", "autovacuum=off", "shared_buffers=32MB", "max_replication_slots=10"];
        all.extend(settings);
        Server(ThrowawayPostgres::start(&all).unwrap_or_else(|error| panic!("{error}")))
    }

    pub fn launch(&mut self) {
        self.0.launch().unwrap_or_else(|error| panic!("{error}"));
    }

    pub fn stop(&mut self, how: Stop) {
        self.0.stop(how);
    }

    /// Copies what is on the disk of a stopped server.
    pub fn copy_data(&self, image: &str) {
        copy(&self.0.socket_directory().join("data"), &self.0.socket_directory().join(image));
    }

    /// Puts such a copy in place of what is on the disk of a stopped server.
    pub fn put_back_data(&self, image: &str) {
        let data = self.0.socket_directory().join("data");
        std::fs::remove_dir_all(&data).unwrap();
        copy(&self.0.socket_directory().join(image), &data);
    }

    /// `host all all` becomes scram instead of trust.
    pub async fn require_passwords_over_tcp(&self) {
        self.allow("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n").await;
    }

    /// Puts these rules in place of those of `pg_hba.conf`.
    pub async fn allow(&self, rules: &str) {
        let file = self.0.socket_directory().join("data/pg_hba.conf");
        std::fs::write(&file, rules).unwrap();
        self.client().await.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    pub fn socket_directory(&self) -> &Path {
        self.0.socket_directory()
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.0.program(name)
    }

    pub fn url(&self) -> String {
        self.0.url()
    }

    pub fn url_as(&self, user: &str, database: &str) -> String {
        self.0.url_of(database).replacen("postgres@", &format!("{user}@"), 1)
    }

    pub async fn client(&self) -> Client {
        self.client_of("postgres").await
    }

    pub async fn client_of(&self, database: &str) -> Client {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match tokio_postgres::connect(&self.url_as("postgres", database), NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}
