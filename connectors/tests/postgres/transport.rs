//! What the replication session does with a real server: rows of any size, and a server that wants to end.

use std::time::{Duration, Instant};

use ::engine::change::Lsn;
use ::engine::source::{ResumePoint, SourceState};
use connectors::postgres::throwaway::Stop;

use super::engine::{FakeEngine, config};
use super::payments::{PAYMENTS, assert_same_payments, now, wait_for};
use super::server::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_row_passes_and_one_beyond_the_limit_halts() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_large").with_message_limit(40 << 20);
    let mut engine = FakeEngine::start(settings, ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    client
        .batch_execute(
            "INSERT INTO payments VALUES (1, 'before', 1, 's'); INSERT INTO payments VALUES (2, repeat('x', 39000000), 1, 's');
             UPDATE payments SET amount = 2 WHERE id = 2; INSERT INTO payments VALUES (3, 'after', 1, 's')",
        )
        .await
        .unwrap();
    engine.until(now(&client).await).await;
    assert_same_payments(&client, &engine).await;
    client.batch_execute("INSERT INTO payments VALUES (4, repeat('x', 42000000), 1, 's')").await.unwrap();
    assert_eq!(engine.until_halted().await, "row_too_large");
    let SourceState::Halted { message, .. } = engine.status.borrow().state.clone() else { panic!() };
    assert!(message.contains("public.payments") && message.contains("41943040"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_shutdown_is_not_delayed() {
    let mut server = Server::start(&["wal_sender_timeout=60s"]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let mut engine = FakeEngine::start(config(&server.url(), &["payments"], "tidemark_fast"), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    for round in 0..3 {
        let client = server.client().await;
        client
            .batch_execute(&format!(
                "INSERT INTO payments SELECT i, 'm', 1, 's' FROM generate_series({}, {}) i",
                round * 20_000,
                round * 20_000 + 19_999
            ))
            .await
            .unwrap();
        drop(client);
        // The server waits until we have told it that everything it sent is durable here; that is asked for on the way.
        let stopping = std::thread::spawn(move || {
            let began = Instant::now();
            server.stop(Stop::Fast);
            (server, began.elapsed())
        });
        wait_for("the server has gone", async || {
            engine.take_what_came(usize::MAX);
            matches!(engine.status.borrow().state, SourceState::Reconnecting { .. })
        })
        .await;
        let (stopped, took) = stopping.join().unwrap();
        server = stopped;
        eprintln!("fast shutdown {round}: {took:?}");
        assert!(took < Duration::from_secs(2), "the server waited {took:?} for us");
        server.launch();
    }
    let client = server.client().await;
    engine.until(now(&client).await).await;
    assert_same_payments(&client, &engine).await;
    engine.stop().await;
}
