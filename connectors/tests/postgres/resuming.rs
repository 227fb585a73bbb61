//! The stream after connections and servers were cut, and what was acknowledged before: nothing is lost, nothing repeated.

use std::time::{Duration, Instant};

use ::engine::change::Lsn;
use ::engine::source::{ResumePoint, SourceState};
use connectors::postgres::throwaway::Stop;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::engine::{FakeEngine, config};
use crate::payments::{PAYMENTS, assert_same_payments, confirmed_flush, ids, now, wait_for};
use crate::server::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_restarts_and_resumes_lose_and_repeat_nothing() {
    let mut server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_cut");
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    let cut = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'tidemark_cut'";
    for round in 0..3i64 {
        let insert = format!(
            "INSERT INTO payments SELECT i, 'm', 1, 's' FROM generate_series({}, {}) i",
            round * 100,
            round * 100 + 99
        );
        client.batch_execute(&insert).await.unwrap();
        if round > 0 {
            client.batch_execute(cut).await.unwrap();
        }
        client
            .batch_execute(&format!("UPDATE payments SET amount = amount + 1 WHERE id < {}", round * 100 + 50))
            .await
            .unwrap();
        engine.until(now(&client).await).await;
        assert_same_payments(&client, &engine).await;
    }
    assert_eq!(engine.status.borrow().reconnects, 2);

    // The server crashes and comes back.
    server.stop(Stop::Immediate);
    wait_for("the connector notices", async || {
        matches!(engine.status.borrow().state, SourceState::Reconnecting { .. })
    })
    .await;
    server.launch();
    let client = server.client().await;
    client.batch_execute("DELETE FROM payments WHERE id % 3 = 0").await.unwrap();
    engine.until(now(&client).await).await;
    assert_same_payments(&client, &engine).await;

    // This process ends, rows are written, the next process resumes at the stored position.
    let rows = engine.rows.clone();
    let resume = engine.stop().await;
    client.batch_execute("INSERT INTO payments VALUES (5000, 'while away', 1, 's')").await.unwrap();
    let before = now(&client).await;
    let mut engine = FakeEngine::start(settings, resume);
    engine.rows = rows;
    engine.until(now(&client).await).await;
    assert_same_payments(&client, &engine).await;
    assert_eq!(engine.transactions.len(), 1, "nothing came twice");
    assert!(engine.status.borrow().upstream_lsn_at_start.unwrap() >= before);

    // A fast shutdown must not wait for us.
    let stopping = Instant::now();
    server.stop(Stop::Fast);
    assert!(stopping.elapsed() < Duration::from_secs(8), "the server waited for us: {:?}", stopping.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_durable_is_acknowledged_and_a_slow_engine_keeps_the_connection() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let mut engine = FakeEngine::start(config(&server.url(), &["payments"], "tidemark_ack"), ResumePoint::Fresh);
    engine.auto_durable = false;
    engine.until(Lsn(1)).await;
    let at_start = confirmed_flush(&client, "tidemark_ack").await;
    client.batch_execute("INSERT INTO payments VALUES (1, 'm', 1, 's')").await.unwrap();
    engine.until(now(&client).await).await;
    let stored = engine.applied;
    client.batch_execute("INSERT INTO payments VALUES (2, 'm', 1, 's')").await.unwrap();
    engine.until(now(&client).await).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(confirmed_flush(&client, "tidemark_ack").await, at_start, "nothing was durable yet");
    engine.durable.send_replace(stored);
    wait_for("the durable position arrives", async || confirmed_flush(&client, "tidemark_ack").await == stored).await;
    assert_eq!(engine.status.borrow().acknowledged_lsn, stored);

    // The engine takes nothing for longer than the walsender's patience (2 s); durable positions still go out.
    let pid = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'tidemark_ack'";
    let before: i32 = client.query_one(pid, &[]).await.unwrap().get(0);
    for batch in 0..40 {
        client
            .batch_execute(&format!(
                "INSERT INTO payments SELECT i, repeat('m', 300), 1, 's' FROM generate_series({}, {}) i",
                1000 + batch * 500,
                1499 + batch * 500
            ))
            .await
            .unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    engine.durable.send_replace(engine.applied);
    let applied = engine.applied;
    wait_for("a durable position goes out while the engine is busy", async || {
        confirmed_flush(&client, "tidemark_ack").await == applied
    })
    .await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let after: i32 = client.query_one(pid, &[]).await.unwrap().get(0);
    assert_eq!(before, after, "the session was kept");
    engine.auto_durable = true;
    engine.until(now(&client).await).await;
    assert_eq!(ids(&client).await.len(), engine.table("payments").len());
    assert_same_payments(&client, &engine).await;
    // Asking for more than was received is not passed on.
    engine.durable.send_replace(Lsn(u64::MAX));
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(confirmed_flush(&client, "tidemark_ack").await <= now(&client).await);
    wait_for("the monitor looks", async || engine.status.borrow().retained_wal_bytes.is_some()).await;
    engine.stop().await;
}

/// Two tables under random work, cut at random, and at the end equal to what SQL says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_work_with_random_cuts() {
    let server = Server::start(&["logical_decoding_work_mem=64kB"]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    client
        .batch_execute("CREATE TABLE other (id int4, part text, body text, PRIMARY KEY (part, id)); ALTER TABLE other ALTER body SET STORAGE EXTERNAL")
        .await
        .unwrap();
    let settings = config(&server.url(), &["payments", "other"], "tidemark_random");
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    let mut random = ChaCha8Rng::seed_from_u64(20_261_121);
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication";
    for round in 0..300 {
        let mut sql = String::from("BEGIN;");
        for _ in 0..random.random_range(1..6) {
            let id = random.random_range(0..40);
            let to = random.random_range(0..40);
            let statement = match random.random_range(0..12) {
                0..3 => format!(
                    "INSERT INTO payments VALUES ({id}, 'm{round}', {to}.5, NULL) ON CONFLICT (id) DO UPDATE SET amount = {to}"
                ),
                3 => format!(
                    "UPDATE payments SET id = {to} WHERE id = {id} AND NOT EXISTS (SELECT 1 FROM payments WHERE id = {to})"
                ),
                4 => format!("DELETE FROM payments WHERE id % 7 = {}", id % 7),
                5 => {
                    format!("DELETE FROM payments WHERE id = {id}; INSERT INTO payments VALUES ({id}, 'again', 7, 's')")
                }
                6 => format!(
                    "SAVEPOINT s; UPDATE payments SET merchant = 'never'; DELETE FROM other; ROLLBACK TO s; UPDATE payments SET status = 's{round}' WHERE id > {id}"
                ),
                7 | 8 => format!(
                    "INSERT INTO other VALUES ({id}, 'p{}', repeat('{}', {})) ON CONFLICT DO NOTHING",
                    to % 3,
                    to % 10,
                    to * 200
                ),
                9 => format!(
                    "UPDATE other SET part = 'q' || id WHERE id = {id} AND NOT EXISTS (SELECT 1 FROM other o WHERE o.id = {id} AND o.part = 'q' || {id})"
                ),
                10 => "UPDATE payments SET amount = amount + 0.01".to_owned(),
                _ if to == 0 => "TRUNCATE payments, other".to_owned(),
                _ => format!(
                    "INSERT INTO payments SELECT i, 'bulk', i, 'b' FROM generate_series({}, {}) i",
                    100 + round * 500,
                    100 + round * 500 + to * 10
                ),
            };
            sql.push_str(&statement);
            sql.push(';');
        }
        sql.push_str(if random.random_range(0..8) == 0 { "ROLLBACK" } else { "COMMIT" });
        if let Err(error) = client.batch_execute(&sql).await {
            // Two rows renamed to one key: the work of this round is void, which is work too.
            assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION), "{sql}: {error:?}");
            client.batch_execute("ROLLBACK").await.unwrap();
        }
        if random.random_range(0..25) == 0 {
            client.execute(cut, &[]).await.unwrap();
        }
        if random.random_range(0..40) == 0 {
            engine.until(now(&client).await).await;
            assert_same_payments(&client, &engine).await;
        }
        if random.random_range(0..100) == 0 {
            let (rows, resume) = (engine.rows.clone(), engine.stop().await);
            engine = FakeEngine::start(settings.clone(), resume);
            engine.rows = rows;
        }
    }
    engine.until(now(&client).await).await;
    assert_same_payments(&client, &engine).await;
    let others = client.query("SELECT id, part, body FROM other", &[]).await.unwrap();
    let mut expected: Vec<Vec<String>> = others
        .iter()
        .map(|row| {
            vec![
                format!("Int({})", row.get::<_, i32>(0)),
                format!("Text({:?})", row.get::<_, &str>(1)),
                format!("Text({:?})", row.get::<_, &str>(2)),
            ]
        })
        .collect();
    expected.sort();
    let mut got = engine.table("other");
    got.sort();
    assert_eq!(got, expected);
    engine.stop().await;
}
