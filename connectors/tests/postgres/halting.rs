//! Where going on would not be exact, it halts with a code.

use std::collections::BTreeMap;

use ::engine::change::Lsn;
use ::engine::source::{ResumePoint, SourceState};
use connectors::PostgresConfig;
use connectors::postgres::throwaway::Stop;
use tokio_postgres::Client;

use crate::engine::{FakeEngine, config};
use crate::payments::{PAYMENTS, free as slot_is_free, lsn, now, wait_for};
use crate::server::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_continued_exactly_halts() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_halt");
    let begin = async |settings: &PostgresConfig| {
        let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
        engine.until(Lsn(1)).await;
        client
            .batch_execute("INSERT INTO payments VALUES ((SELECT coalesce(max(id), 0) + 1 FROM payments), 'm', 1, 's')")
            .await
            .unwrap();
        engine.until(now(&client).await).await;
        engine
    };
    let resume_code = async |resume: ResumePoint| FakeEngine::start(settings.clone(), resume).until_halted().await;
    let free = async || slot_is_free(&client).await;

    let resume = begin(&settings).await.stop().await;
    free().await;
    let ResumePoint::Resume { lsn, identity, tables, notes, milestone } = resume.clone() else { panic!() };
    let with = |change: &dyn Fn(&mut ::engine::source::SourceIdentity)| {
        let mut identity = identity.clone();
        change(&mut identity);
        ResumePoint::Resume { lsn, identity, tables: tables.clone(), notes: notes.clone(), milestone }
    };
    assert_eq!(resume_code(with(&|i| i.system = "1".into())).await, "different_server");
    assert_eq!(resume_code(with(&|i| i.timeline = 9)).await, "timeline_diverged");
    assert_eq!(resume_code(with(&|i| i.database = "postgres/1".into())).await, "different_database");
    assert_eq!(resume_code(with(&|i| i.slot = "other".into())).await, "source_changed");
    let ahead = ResumePoint::Resume {
        lsn: Lsn(lsn.0 + (1 << 40)),
        identity: identity.clone(),
        tables: tables.clone(),
        notes,
        milestone,
    };
    assert_eq!(resume_code(ahead).await, "ahead_of_server");
    client.batch_execute("INSERT INTO payments VALUES (100, 'm', 1, 's')").await.unwrap();
    client.batch_execute("SELECT pg_replication_slot_advance('tidemark_halt', pg_current_wal_lsn())").await.unwrap();
    assert_eq!(resume_code(resume.clone()).await, "slot_overtaken");
    client.batch_execute("SELECT pg_drop_replication_slot('tidemark_halt')").await.unwrap();
    assert_eq!(resume_code(resume).await, "slot_missing");

    // A table taken out of the publication and added again has lost changes without a message.
    let mut engine = begin(&settings).await;
    client
        .batch_execute("ALTER PUBLICATION tidemark_halt DROP TABLE payments; INSERT INTO payments VALUES (200, 'm', 1, 's'); ALTER PUBLICATION tidemark_halt ADD TABLE payments")
        .await
        .unwrap();
    assert_eq!(engine.until_table_halted().await, ("payments".to_owned(), "publication_changed"));
    drop(engine);
    free().await;

    // A column renamed away and another put under its name.
    let mut engine = begin(&settings).await;
    client
        .batch_execute("ALTER TABLE payments RENAME merchant TO merchant_old; ALTER TABLE payments ADD merchant text")
        .await
        .unwrap();
    let (column, what) = engine.until_unusable().await;
    assert!(column == "merchant" && what.contains("renamed to merchant_old"), "{column}: {what}");
    drop(engine);
    free().await;

    // A transaction beyond the limit, whose remedy lifts it.
    let mut engine = begin(&settings.clone().with_max_transaction_bytes(2_000)).await;
    client
        .batch_execute("INSERT INTO payments SELECT i, 's', 1, 'm' FROM generate_series(1000, 1100) i")
        .await
        .unwrap();
    assert_eq!(engine.until_halted().await, "transaction_too_large");
    let SourceState::Halted { message, remedy, .. } = engine.status.borrow().state.clone() else { panic!() };
    assert!(message.contains("more than 2000 bytes") && remedy.contains("--max-transaction"), "{message}: {remedy}");
    drop(engine);
    free().await;

    // The slot of another running tidemark is not taken from it.
    let engine = begin(&settings).await;
    let mut second = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    assert_eq!(second.until_halted().await, "slot_in_use");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_removed_under_the_slot_halts() {
    let server = Server::start(&["max_slot_wal_keep_size=1MB", "max_wal_size=32MB", "min_wal_size=32MB"]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_lost");
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    let resume = engine.stop().await;
    for _ in 0..4 {
        client
            .batch_execute(
                "SELECT pg_logical_emit_message(false, 'x', repeat('y', 1000000)); SELECT pg_switch_wal(); CHECKPOINT",
            )
            .await
            .unwrap();
    }
    assert_eq!(FakeEngine::start(settings, resume).until_halted().await, "slot_lost");
}

/// Damaged files of Postgres' own bookkeeping: the log is there, and nobody can decode it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_that_postgres_cannot_decode_halts() {
    let server = Server::start(&[]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_stuck");
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    // Decoding starts at a checkpoint before the oldest transaction that is open, and with what was written down there, where
    // another one was open then.
    let (first, second) = (server.client().await, server.client().await);
    let restart_lsn = "SELECT restart_lsn FROM pg_replication_slots";
    first.batch_execute("BEGIN; INSERT INTO payments VALUES (-1, 'm', 1, 's')").await.unwrap();
    let began_at = lsn(&client, "pg_current_wal_insert_lsn()").await;
    client.batch_execute("CHECKPOINT").await.unwrap();
    second.batch_execute("BEGIN; INSERT INTO payments VALUES (-2, 'm', 1, 's')").await.unwrap();
    first.batch_execute("COMMIT").await.unwrap();
    let mut id = 0;
    wait_for("decoding would start at the checkpoint", async || {
        id += 1;
        let insert = format!("CHECKPOINT; INSERT INTO payments VALUES ({id}, 'm', 1, 's')");
        client.batch_execute(&insert).await.unwrap();
        engine.until(now(&client).await).await;
        lsn(&client, restart_lsn).await >= began_at
    })
    .await;
    engine.until(now(&client).await).await;
    let resume = engine.stop().await;
    client.batch_execute("INSERT INTO payments VALUES (-3, 'm', 1, 's')").await.unwrap();
    for file in std::fs::read_dir(server.socket_directory().join("data/pg_logical/snapshots")).unwrap() {
        std::fs::write(file.unwrap().path(), "not what was written").unwrap();
    }
    let mut engine = FakeEngine::start(settings, resume);
    assert_eq!(engine.until_halted().await, "log_undecodable");
}

/// The disk of a server is put back to an older image, on the same timeline, and the server goes on past where we were: everything
/// about it is as it was, but for what it did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_put_back_to_an_older_image_halts() {
    // What the slot was told is written down at checkpoints alone.
    let mut server = Server::start(&["checkpoint_timeout=1h"]);
    let client = server.client().await;
    client.batch_execute(PAYMENTS).await.unwrap();
    let settings = config(&server.url(), &["payments"], "tidemark_image");
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    let pay = async |client: &Client, ids: std::ops::Range<i64>| {
        for id in ids {
            client.batch_execute(&format!("INSERT INTO payments VALUES ({id}, 'm', 1, 's')")).await.unwrap();
        }
    };
    pay(&client, 0..10).await;
    engine.until(now(&client).await).await;
    let mut resumed = engine.stop().await;
    server.stop(Stop::Fast);
    server.copy_data("image");

    // A crash alone takes the slot back as well, and loses nothing. Twice, so that it also goes on from what was compared.
    for round in 1..3 {
        server.launch();
        let client = server.client().await;
        let mut engine = FakeEngine::start(settings.clone(), resumed);
        engine.rows = BTreeMap::new();
        pay(&client, round * 10..round * 10 + 10).await;
        engine.until(now(&client).await).await;
        assert_eq!(engine.transactions.len(), 10, "each came once");
        server.stop(Stop::Immediate);
        resumed = engine.stop().await;
    }
    let ResumePoint::Resume { lsn: read_up_to, .. } = resumed else { panic!() };

    server.put_back_data("image");
    server.launch();
    let client = server.client().await;
    let code = async || FakeEngine::start(settings.clone(), resumed.clone()).until_halted().await;
    assert_eq!(code().await, "ahead_of_server");
    let mut id = 1_000;
    while now(&client).await <= read_up_to {
        pay(&client, id..id + 10).await;
        id += 10;
    }
    assert_eq!(code().await, "server_reverted");
    assert_eq!(code().await, "server_reverted", "nothing of it was acknowledged");
}

/// The same while nothing of ours happens: everything stored is in the image, and what the image's past has written since
/// lies before the idle position that was reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_image_writes_before_an_idle_position_halts() {
    let mut server = Server::start(&["checkpoint_timeout=1h"]);
    let client = server.client().await;
    client.batch_execute(&format!("{PAYMENTS}; CREATE TABLE noise (text text)")).await.unwrap();
    let noise = "INSERT INTO noise SELECT repeat('y', 1000) FROM generate_series(1, 300)";
    let settings = config(&server.url(), &["payments"], "tidemark_idle");
    let mut engine = FakeEngine::start(settings.clone(), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    client.batch_execute("INSERT INTO payments VALUES (1, 'm', 1, 's')").await.unwrap();
    engine.until(now(&client).await).await;
    let resumed = engine.stop().await;
    server.stop(Stop::Fast);
    server.copy_data("image");

    server.launch();
    let client = server.client().await;
    let mut engine = FakeEngine::start(settings.clone(), resumed);
    client.batch_execute(noise).await.unwrap();
    let idle = now(&client).await;
    engine.until(idle).await;
    assert!(engine.transactions.is_empty());
    server.stop(Stop::Immediate);
    let resumed = engine.stop().await;

    server.put_back_data("image");
    server.launch();
    let client = server.client().await;
    client.batch_execute("INSERT INTO payments VALUES (2, 'm', 1, 's')").await.unwrap();
    assert!(now(&client).await < idle);
    client.batch_execute(noise).await.unwrap();
    let mut engine = FakeEngine::start(settings, resumed);
    assert_eq!(engine.until_halted().await, "server_reverted");
}
