//! Random histories against a naive model: after every few transactions each cell of each aggregate and level equals a
//! recomputation from scratch, for one to three workers, with aggregates registered and dropped in the middle and the
//! engine stopped and opened again. A failure prints its seed; run that one with `TIDEMARK_SEED=...`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

#[path = "../../tests/support/model.rs"]
mod model;
#[path = "../../tests/support/session.rs"]
mod session;
#[path = "../../tests/support/upstream.rs"]
mod upstream;

use std::collections::BTreeMap;
use std::time::Duration;

use engine::change::{Lsn, TableSchema};
use engine::engine::{EngineConfig, OnChange};
use engine::source::{ResumePoint, SourceEvent};
use engine::store::StoreMemory;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use model::expected::{definitions, expected, stored};
use model::{TABLE, schema};
use session::Session;
use upstream::Upstream;

fn config(directory: &std::path::Path, workers: usize, cells_in_memory: usize) -> EngineConfig {
    EngineConfig {
        workers,
        cells_in_memory,
        store_memory: StoreMemory { block_cache: 8 << 20, write_buffer: 1 << 20 },
        ..EngineConfig::new(directory)
    }
}

fn tables() -> Vec<TableSchema> {
    vec![schema(TABLE, "payments")]
}

/// What a source sends first: on a resume what was still on its way and a little more than that, else the rows.
async fn feed(session: &Session, upstream: &Upstream, durable: Lsn, what: &str) {
    if matches!(session.context.resume, ResumePoint::Resume { .. }) {
        return session.send_again(&upstream.log, durable, what).await;
    }
    session.send(SourceEvent::SnapshotRows(Upstream::snapshot(upstream.table.rows.values()))).await;
    session.send(SourceEvent::SnapshotDone { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
}

async fn check(session: &Session, upstream: &Upstream, registered: &BTreeMap<String, usize>, what: &str) {
    session.reached(Lsn(upstream.lsn), what).await;
    for (name, which) in registered {
        let snapshot = session.live(name, what).await;
        let expected = expected(*which, false, upstream.table.rows.values());
        assert_eq!(stored(&snapshot, name).unwrap(), expected, "{what}: {name} ({which})");
    }
    session.engine.snapshot().unwrap().scrub().unwrap_or_else(|error| panic!("{what}: {error}"));
}

async fn history(seed: u64, workers: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let rows = rng.random_range(0..50);
    let mut upstream = Upstream::new(&mut rng, rows);
    // A tiny memory makes cells leave it and come back.
    let cells = *[0, 20, 1_000_000].choose(&mut rng).unwrap();
    let mut session = Session::open(&config(directory.path(), workers, cells), tables(), Lsn(upstream.lsn)).await;
    let mut registered = BTreeMap::new();
    let all = definitions("payments", false);
    feed(&session, &upstream, Lsn::ZERO, "start").await;
    for step in 0..rng.random_range(3..10) {
        let what = format!("seed {seed}, {workers} workers, step {step}");
        for _ in 0..rng.random_range(1..25) {
            let transaction = upstream.transaction(&mut rng);
            let again = rng.random_ratio(1, 10).then(|| transaction.clone());
            session.send(SourceEvent::Transaction(transaction)).await;
            if let Some(again) = again {
                session.send(SourceEvent::Transaction(again)).await;
            }
        }
        match rng.random_range(0..6) {
            0..=2 => {
                let which = rng.random_range(0..all.len());
                let name = format!("a{step}");
                session.engine.register(&name, all[which].clone()).await.unwrap();
                registered.insert(name, which);
            }
            3 => {
                let names: Vec<String> = registered.keys().cloned().collect();
                if let Some(name) = names.choose(&mut rng) {
                    assert!(session.engine.drop_aggregate(name).await.unwrap());
                    registered.remove(name);
                }
            }
            4 => {
                if rng.random_bool(0.5) {
                    check(&session, &upstream, &registered, &what).await;
                }
                let durable = session.stop().await;
                session = Session::open(&config(directory.path(), workers, cells), tables(), Lsn(upstream.lsn)).await;
                feed(&session, &upstream, durable, &what).await;
            }
            _ => {}
        }
        if rng.random_bool(0.7) {
            check(&session, &upstream, &registered, &what).await;
        }
    }
    check(&session, &upstream, &registered, &format!("seed {seed}, {workers} workers, end")).await;
    session.stop().await;
}

/// Rows of a snapshot in any order, in pieces of any size, with registrations between them, after a try that was given up;
/// the stream's first transactions change rows of it.
async fn snapshot(seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut upstream = Upstream::new(&mut rng, 0);
    for _ in 0..rng.random_range(0..4_000) {
        upstream.table.next_id += rng.random_range(0..2);
        upstream.table.add_random(&mut rng);
    }
    let mut registered = BTreeMap::new();
    let all = definitions("payments", false);
    for given_up in [true, false] {
        let what = format!("seed {seed}, given up: {given_up}");
        let config = config(directory.path(), rng.random_range(1..3), 1_000_000);
        let session = Session::open(&config, tables(), Lsn(upstream.lsn)).await;
        let mut ids: Vec<i64> = upstream.table.rows.keys().copied().collect();
        if rng.random_bool(0.5) {
            ids.shuffle(&mut rng);
        }
        let mut pieces: Vec<&[i64]> = ids.chunks(rng.random_range(1..1_000)).collect();
        if rng.random_bool(0.5) {
            pieces.shuffle(&mut rng);
        }
        for piece in pieces {
            let rows = Upstream::snapshot(piece.iter().map(|id| &upstream.table.rows[id]));
            session.send(SourceEvent::SnapshotRows(rows)).await;
            if registered.len() < 6 && rng.random_bool(0.3) {
                // Also another definition under a name that is there.
                let (name, which) =
                    (format!("a{}", rng.random_range(0..=registered.len())), rng.random_range(0..all.len()));
                session.engine.register_or(&name, all[which].clone(), OnChange::Rebuild).await.unwrap();
                registered.insert(name, which);
            }
        }
        if !given_up {
            session.send(SourceEvent::SnapshotDone { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
            for _ in 0..rng.random_range(0..10) {
                let transaction = upstream.transaction(&mut rng);
                session.send(SourceEvent::Transaction(transaction)).await;
            }
            check(&session, &upstream, &registered, &what).await;
        }
        session.stop().await;
        assert!(!directory.path().join("snapshot").exists(), "{what}");
    }
}

#[test]
fn rows_of_a_snapshot_count_once_in_any_order() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let pasted = std::env::var("TIDEMARK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds: Vec<u64> = pasted.map_or_else(|| (0..60).collect(), |seed| vec![seed]);
    runtime.block_on(async {
        for seed in seeds {
            let run = tokio::time::timeout(Duration::from_secs(60), snapshot(seed));
            assert!(run.await.is_ok(), "seed {seed}: no progress for a minute");
        }
    });
}

#[test]
fn every_cell_equals_a_recomputation() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let pasted = std::env::var("TIDEMARK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds: Vec<u64> = pasted.map_or_else(|| (0..60).collect(), |seed| vec![seed]);
    runtime.block_on(async {
        for seed in seeds {
            for workers in 1..=3 {
                let run = tokio::time::timeout(Duration::from_secs(60), history(seed, workers));
                assert!(run.await.is_ok(), "seed {seed}, {workers} workers: no progress for a minute");
            }
        }
    });
}
