//! What Tidemark costs the primary: a fast shutdown is not delayed, and no more log is kept than is needed, whatever
//! else the server is busy with.

use std::time::{Duration, Instant};

use connectors::postgres::throwaway::{Stop, ThrowawayPostgres};
use connectors::{ConnectorConfig, PostgresConfig};
use engine::change::Lsn;
use engine::source::{ResumePoint, SourceContext, SourceEvent, SourceStatus};
use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;

use crate::support::embedded::Embedded;
use crate::support::shop::{Shop, TABLES};
use crate::support::sql;

/// What a shutdown may take longer than one without us: generous, the machine may be busy. Stale feedback would make it a
/// minute (the walsender's patience).
const PATIENCE: Duration = Duration::from_secs(3);

const MIB: u64 = 1 << 20;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// How long `pg_ctl stop -m fast` takes; the server is up again afterwards.
fn fast_shutdown(postgres: &mut ThrowawayPostgres, how: &str) -> Duration {
    let began = Instant::now();
    postgres.stop(Stop::Fast);
    let took = began.elapsed();
    println!("fast shutdown, {how}: {took:?}");
    postgres.launch().unwrap();
    took
}

/// A connector whose engine takes the snapshot and nothing after it.
struct Stuck {
    _events: mpsc::Receiver<SourceEvent>,
    _durable: watch::Sender<Lsn>,
    status: watch::Receiver<SourceStatus>,
    connector: tokio::task::JoinHandle<()>,
}

impl Stuck {
    async fn start(url: &str) -> Stuck {
        let config = PostgresConfig::new(url, &TABLES.map(str::to_owned), "stuck").unwrap();
        let (sender, mut events) = mpsc::channel(4);
        let (durable, durable_receiver) = watch::channel(Lsn::ZERO);
        let (status_sender, status) = watch::channel(SourceStatus::default());
        let (context, _commands) = SourceContext::new(ResumePoint::Fresh, sender, durable_receiver, status_sender);
        let connector = tokio::spawn(connectors::run(ConnectorConfig::Postgres(config), context));
        while let Some(event) = events.recv().await {
            if let SourceEvent::SnapshotDone { lsn, .. } = event {
                durable.send_replace(lsn);
                break;
            }
        }
        Stuck { _events: events, _durable: durable, status, connector }
    }
}

#[test]
fn a_fast_shutdown_is_not_delayed() {
    let mut postgres = sql::postgres(&["deadlock_timeout=20ms", "autovacuum=off"]);
    let runtime = runtime();
    let (shop, data) = runtime.block_on(async { (Shop::open(&postgres.url(), 1).await, tempfile::tempdir().unwrap()) });
    let alone = fast_shutdown(&mut postgres, "without Tidemark");
    let tidemark = runtime.block_on(async {
        let tidemark = Embedded::start(data.path(), &postgres.url(), &TABLES, "shutdown", 1).await;
        shop.register(&tidemark).await;
        shop.compare(&tidemark, "before the shutdowns").await;
        tidemark
    });
    let loaded = fast_shutdown(&mut postgres, "under load");
    runtime.block_on(async {
        shop.compare(&tidemark, "after a shutdown under load").await;
        shop.pause().await;
    });
    let idle = fast_shutdown(&mut postgres, "at rest");
    runtime.block_on(async {
        shop.compare(&tidemark, "after a shutdown at rest").await;
        tidemark.stop().await;
    });
    // More than fits into sockets and channels.
    let stuck = runtime.block_on(async {
        let stuck = Stuck::start(&postgres.url()).await;
        let client = sql::connect_again(&postgres.url()).await;
        sql::run(
            &client,
            "INSERT INTO payments (grp, amount, note, at) SELECT 'much', 1, repeat(md5(i::text), 60), '2024-01-01 UTC' FROM generate_series(1, 50000) AS i",
        )
        .await;
        stuck
    });
    let blocked = fast_shutdown(&mut postgres, "with a stuck engine");
    for (took, how) in [(loaded, "under load"), (idle, "at rest"), (blocked, "stuck")] {
        assert!(took < alone + PATIENCE, "{how}: {took:?}, without us {alone:?}");
    }
    runtime.block_on(async {
        assert!(!stuck.connector.is_finished(), "{:?}", *stuck.status.borrow());
        shop.close().await;
    });
}

/// Writes log that our tables have no part in.
async fn make_noise(client: &Client, mib: u64) {
    sql::run(
        client,
        "CREATE TABLE IF NOT EXISTS noise (n int, body text); ALTER TABLE noise ALTER body SET STORAGE EXTERNAL",
    )
    .await;
    for n in 0..mib / 10 {
        let rows =
            format!("INSERT INTO noise SELECT {n}, repeat(md5(i::text), 312) FROM generate_series(1, 1000) AS i");
        sql::run(client, &rows).await;
    }
}

async fn retained(tidemark: &Embedded, client: &Client) -> u64 {
    let slot =
        "SELECT (pg_current_wal_lsn() - restart_lsn)::int8 FROM pg_replication_slots WHERE slot_name = 'retention'";
    let upstream: u64 = sql::value(client, slot).await.parse().unwrap();
    let shown = tidemark.engine.status().source.retained_wal_bytes;
    assert!(shown.is_some(), "the status does not say what is retained");
    upstream
}

/// Waits until upstream keeps less than so much for us; returns what it keeps.
async fn retains_less_than(bytes: u64, tidemark: &Embedded, client: &Client, when: &str) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        // Postgres lets go at the next record of what is running, which a checkpoint writes, once we have confirmed it.
        sql::run(client, "CHECKPOINT").await;
        let kept = retained(tidemark, client).await;
        if kept < bytes {
            return kept;
        }
        assert!(Instant::now() < deadline, "{when}: upstream still keeps {} MiB for us", kept / MIB);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn the_log_kept_for_us_stays_small() {
    let postgres = sql::postgres(&["autovacuum=off", "max_prepared_transactions=2"]);
    let data = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let client = sql::connect(&postgres.url()).await;
        sql::run(&client, "CREATE TABLE payments (id int PRIMARY KEY, amount int)").await;
        sql::run(&client, "CREATE DATABASE neighbour").await;
        sql::run(&client, "INSERT INTO payments VALUES (1, 1)").await;
        let neighbour = sql::connect(&postgres.url_of("neighbour")).await;
        let tidemark = Embedded::start(data.path(), &postgres.url(), &["payments"], "retention", 1).await;
        tidemark.at(sql::current_lsn(&client).await).await;

        make_noise(&neighbour, 200).await;
        let other_database = retains_less_than(8 * MIB, &tidemark, &client, "another database is busy").await;
        make_noise(&client, 200).await;
        let other_table = retains_less_than(8 * MIB, &tidemark, &client, "another table is busy").await;

        // What Postgres itself cannot let go of: changes of a transaction that may still commit.
        let open = sql::connect(&postgres.url()).await;
        sql::run(&open, "BEGIN; INSERT INTO payments VALUES (2, 2)").await;
        make_noise(&client, 40).await;
        sql::run(&client, "CHECKPOINT").await;
        let while_open = retained(&tidemark, &client).await;
        assert!(while_open > 32 * MIB, "kept for an open transaction: {while_open}");
        sql::run(&open, "PREPARE TRANSACTION 'later'").await;
        make_noise(&client, 40).await;
        sql::run(&client, "CHECKPOINT").await;
        let while_prepared = retained(&tidemark, &client).await;
        assert!(while_prepared > 64 * MIB, "kept for a prepared transaction: {while_prepared}");
        sql::run(&open, "COMMIT PREPARED 'later'").await;
        let after = retains_less_than(8 * MIB, &tidemark, &client, "after the open transaction").await;
        println!(
            "kept for us in KiB: {} after 200 MiB in another database, {} after 200 MiB in another table, {} while a transaction \
             of ours is open and {} while it is prepared, {} afterwards",
            other_database / 1024,
            other_table / 1024,
            while_open / 1024,
            while_prepared / 1024,
            after / 1024
        );
        tidemark.stop().await;
    });
}
