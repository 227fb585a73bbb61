//! Where the rows that are read first and the stream that follows meet: the slot's Snapshot. Nothing slips between them, nothing
//! comes twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::engine::change::Lsn;
use ::engine::source::{ResumePoint, SourceState};
use connectors::ConnectorConfig;
use tokio_postgres::Client;

use crate::engine::{FakeEngine, config};
use crate::payments::{PAYMENTS, assert_same_payments, ids, now, wait_for};
use crate::server::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_during_the_snapshot_leave_no_gap_and_no_duplicate() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client
        .batch_execute("INSERT INTO payments SELECT i, 'm' || i % 7, i * 0.01, 'new' FROM generate_series(1, 40000) i; ANALYZE payments")
        .await
        .unwrap();
    // A setting of the database that would kill or change sessions which do not pin their own.
    client
        .batch_execute("ALTER DATABASE postgres SET idle_in_transaction_session_timeout = 1; ALTER DATABASE postgres SET DateStyle = 'German'")
        .await
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..4i64 {
        let (client, stop) = (server.client().await, Arc::clone(&stop));
        writers.push(tokio::spawn(async move {
            client.batch_execute("SET idle_in_transaction_session_timeout = 0").await.unwrap();
            let mut n = 0i64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let id = 1_000_000 * (writer + 1) + n;
                let old = 1 + (n * 4 + writer) % 40_000;
                client
                    .batch_execute(&format!(
                        "BEGIN; INSERT INTO payments VALUES ({id}, 'w{writer}', {n}.25, 'new');
                         UPDATE payments SET amount = amount + 1, status = 'x' WHERE id = {old};
                         SAVEPOINT s; INSERT INTO payments VALUES (-{id}, 'never', 1, 'x'); ROLLBACK TO s;
                         DELETE FROM payments WHERE id = {} ; COMMIT;",
                        id - 5
                    ))
                    .await
                    .unwrap();
            }
        }));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut engine = FakeEngine::start(config(&server.url(), &["payments"], "tidemark_snap"), ResumePoint::Fresh);
    let target = loop {
        let at = now(&client).await;
        engine.until(Lsn(1)).await;
        if engine.transactions.len() > 50 {
            stop.store(true, Ordering::Relaxed);
            for writer in writers.drain(..) {
                writer.await.unwrap();
            }
            break now(&client).await;
        }
        engine.until(Lsn(at.0 + 1)).await;
    };
    client.batch_execute("INSERT INTO payments VALUES (0, 'last', 0, 'x')").await.unwrap();
    engine.until(now(&client).await.max(target)).await;
    assert!(engine.snapshot_rows >= 39_000);
    assert_same_payments(&client, &engine).await;
    let status = engine.status.borrow().clone();
    assert_eq!(status.state, SourceState::Live);
    assert!(status.upstream_lsn_at_start.is_some());
    engine.stop().await;
}

/// Postgres cannot decode what was written to a table that was truncated while the slot was made, where the writer began
/// before the slot was consistent and ended after it. Such a slot is made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn table_truncated_while_the_slot_is_made() {
    truncated_while_the_slot_is_made("payments", 1).await;
}

/// Nor can it where nobody follows the table: then the stream begins after all such transactions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_table_truncated_while_the_slot_is_made() {
    truncated_while_the_slot_is_made("staging", 0).await;
}

async fn truncated_while_the_slot_is_made(truncated: &str, its_rows: usize) {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client.batch_execute("CREATE TABLE staging (LIKE payments INCLUDING ALL)").await.unwrap();
    let (first, second, writer) = (server.client().await, server.client().await, server.client().await);
    let begin = async |session: &Client, statement: &str| -> String {
        session.batch_execute(&format!("BEGIN; {statement}")).await.unwrap();
        session.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap().get(0)
    };
    let made_or_waits_for = async |xid: &str| -> bool {
        let asked = format!(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE transactionid = '{xid}' AND NOT granted)
                 OR EXISTS (SELECT FROM pg_replication_slots WHERE confirmed_flush_lsn IS NOT NULL)"
        );
        client.query_one(&asked, &[]).await.unwrap().get(0)
    };
    let xid = begin(&first, "").await;
    let mut engine = FakeEngine::start(config(&server.url(), &["payments"], "tidemark_made"), ResumePoint::Fresh);
    wait_for("the slot waits for the first", async || made_or_waits_for(&xid).await).await;
    let xid = begin(&second, "").await;
    client.batch_execute(&format!("TRUNCATE {truncated}")).await.unwrap();
    first.batch_execute("COMMIT").await.unwrap();
    wait_for("the slot waits for the second", async || made_or_waits_for(&xid).await).await;
    let xid = begin(&writer, &format!("INSERT INTO {truncated} VALUES (1, 'm', 1, 's')")).await;
    second.batch_execute("COMMIT").await.unwrap();
    wait_for("the slot is made, or waits for the writer", async || made_or_waits_for(&xid).await).await;
    writer.batch_execute("COMMIT").await.unwrap();
    engine.until(now(&client).await).await;
    let rows = |engine: &FakeEngine| -> usize { engine.rows.values().map(BTreeMap::len).sum() };
    assert_eq!(rows(&engine), its_rows);
    // The catalog that the slot began with is what it decodes by until it is altered once more.
    client
        .batch_execute("INSERT INTO payments VALUES (2, 'm', 1, 's'); INSERT INTO staging VALUES (3, 'm', 1, 's')")
        .await
        .unwrap();
    engine.until(now(&client).await).await;
    assert_eq!(rows(&engine), its_rows + 1);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_slips_between_slot_and_snapshot() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client.batch_execute("CREATE TABLE elsewhere (id int4)").await.unwrap();
    // An open writer holds up the creation of the slot; a TRUNCATE that comes meanwhile must not wait for us forever,
    // nor we for it.
    let truncating = server.client().await;
    client.batch_execute("BEGIN; INSERT INTO elsewhere VALUES (1)").await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_lock");
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    let observer = server.client().await;
    wait_for("the slot's creation waits", async || {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender' AND wait_event_type = 'Lock'";
        observer.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    truncating.batch_execute("TRUNCATE payments").await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    engine.until(now(&client).await).await;
    engine.stop().await;

    // The table is emptied and filled all the time, in one transaction each: never seen empty, never seen mixed.
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let writer = tokio::spawn(async move {
        let mut round = 0;
        while !stopped.load(Ordering::Relaxed) {
            round += 1;
            let fill = format!("INSERT INTO payments SELECT i, 'r{round}', {round}, 's' FROM generate_series(1, 50) i");
            truncating.batch_execute(&format!("BEGIN; TRUNCATE payments; {fill}; COMMIT")).await.unwrap();
            // Longer as time goes on: a machine that is slow gets its chance to make a slot in between.
            tokio::time::sleep(Duration::from_millis(round * 7 % (90 + 2 * round))).await;
        }
    });
    wait_for("the first filling", async || ids(&client).await.len() == 50).await;
    for _ in 0..6 {
        let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
        engine.until(Lsn(1)).await;
        assert_eq!(engine.snapshot_rows, 50);
        engine.until(now(&client).await).await;
        assert_eq!(engine.table("payments").len(), 50);
        engine.stop().await;
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    let mut engine = FakeEngine::start(settings, ResumePoint::Fresh);
    engine.until(now(&client).await).await;
    assert_same_payments(&client, &engine).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_snapshot_halts_and_starts_over() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client
        .batch_execute("INSERT INTO payments SELECT i, repeat('m', 500), 1, 's' FROM generate_series(1, 60000) i")
        .await
        .unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_again");
    let mut engine = FakeEngine::start_any(ConnectorConfig::Postgres(settings.clone()), ResumePoint::Fresh, 1);
    wait_for("the snapshot is being read", async || {
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND application_name LIKE 'tidemark/%'";
        client.execute(kill, &[]).await.unwrap() > 0
    })
    .await;
    assert_eq!(engine.until_halted().await, "snapshot_interrupted");
    let mut engine = FakeEngine::start(settings, ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    assert_eq!(engine.snapshot_rows, 60000);
    assert!(matches!(engine.stop().await, ResumePoint::Resume { .. }));
}
