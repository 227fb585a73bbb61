//! Random histories against a naive model: after every few transactions each cell of each aggregate and level equals a
//! recomputation from scratch, for one to three workers, with aggregates registered and dropped in the middle and the
//! engine stopped and opened again. A failure prints its seed; run that one with `TIDEMARK_SEED=...`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

#[path = "../../tests/support/model.rs"]
mod model;

use std::collections::BTreeMap;
use std::time::Duration;

use engine::Engine;
use engine::change::Lsn;
use engine::engine::EngineConfig;
use engine::materialization::AggregateState;
use engine::source::{ResumePoint, SourceContext, SourceEvent, SourceIdentity, SourceState};
use engine::store::StoreMemory;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use model::{Row, Upstream, definitions, expected, schema, stored};

fn config(directory: &std::path::Path, workers: usize, cells_in_memory: usize) -> EngineConfig {
    EngineConfig {
        workers,
        cells_in_memory,
        store_memory: StoreMemory { block_cache: 8 << 20, write_buffer: 1 << 20 },
        ..EngineConfig::new(directory)
    }
}

/// Plays one source: announces itself, and keeps the engine's view of upstream up to date.
struct Session {
    engine: Engine,
    context: SourceContext,
}

impl Session {
    async fn open(directory: &std::path::Path, workers: usize, cells: usize, upstream: &Upstream) -> Session {
        let (engine, context) = Engine::start(&config(directory, workers, cells)).unwrap();
        context.status.send_modify(|status| {
            status.state = SourceState::Live;
            status.upstream_lsn_at_start = Some(Lsn(upstream.lsn));
        });
        let identity = SourceIdentity { connector: "model".to_owned(), ..SourceIdentity::default() };
        context.events.send(SourceEvent::Tables { identity, tables: vec![schema()] }).await.unwrap();
        Session { engine, context }
    }

    /// What a source sends first: on a resume what was still on its way and a little more than that, else the rows.
    async fn feed(&self, upstream: &Upstream, durable: Lsn, what: &str) {
        if let ResumePoint::Resume { lsn, .. } = &self.context.resume {
            assert_eq!(*lsn, durable, "{what}");
            let from = upstream.log.partition_point(|transaction| transaction.end_lsn <= *lsn);
            for transaction in &upstream.log[from.saturating_sub(3)..] {
                self.send(SourceEvent::Transaction(transaction.clone())).await;
            }
            return;
        }
        self.send(SourceEvent::SnapshotRows(Upstream::snapshot(upstream.rows.values()))).await;
        self.send(SourceEvent::SnapshotDone { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
    }

    async fn send(&self, event: SourceEvent) {
        self.context.events.send(event).await.unwrap();
    }

    async fn check(&self, upstream: &Upstream, registered: &BTreeMap<String, usize>, what: &str) {
        assert!(
            self.engine.wait_for(Lsn(upstream.lsn), Duration::from_secs(20)).await,
            "{what}: {:?}",
            self.engine.status()
        );
        for (name, which) in registered {
            loop {
                let snapshot = self.engine.snapshot().unwrap();
                match &snapshot.catalog().aggregates[name].state {
                    AggregateState::Live => {
                        assert_eq!(
                            stored(&snapshot, name).unwrap(),
                            expected(*which, &upstream.rows),
                            "{what}: {name} ({which})"
                        );
                        break;
                    }
                    AggregateState::Building => {
                        let mut applied = self.engine.applied();
                        let sequence = snapshot.as_of().sequence;
                        let _ = applied.wait_for(|as_of| as_of.sequence > sequence).await;
                    }
                    state => panic!("{what}: {name}: {state:?}"),
                }
            }
        }
        self.engine.snapshot().unwrap().scrub().unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

async fn history(seed: u64, workers: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let rows = rng.random_range(0..50);
    let mut upstream = Upstream::new(&mut rng, rows);
    // A tiny memory makes cells leave it and come back.
    let cells = *[0, 20, 1_000_000].choose(&mut rng).unwrap();
    let mut session = Session::open(directory.path(), workers, cells, &upstream).await;
    let mut registered = BTreeMap::new();
    let all = definitions();
    session.feed(&upstream, Lsn::ZERO, "start").await;
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
                    session.check(&upstream, &registered, &what).await;
                }
                session.engine.stop().await;
                let durable = *session.context.durable.borrow();
                drop(session);
                session = Session::open(directory.path(), workers, cells, &upstream).await;
                session.feed(&upstream, durable, &what).await;
            }
            _ => {}
        }
        if rng.random_bool(0.7) {
            session.check(&upstream, &registered, &what).await;
        }
    }
    session.check(&upstream, &registered, &format!("seed {seed}, {workers} workers, end")).await;
    session.engine.stop().await;
}

/// Rows of a snapshot in any order, in pieces of any size, with registrations between them, after a try that was given up;
/// the stream's first transactions change rows of it.
async fn snapshot(seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut upstream = Upstream { rows: BTreeMap::new(), lsn: 1_000, next_id: 1, log: Vec::new() };
    for _ in 0..rng.random_range(0..4_000) {
        let row = Row::random(&mut rng, upstream.next_id);
        upstream.next_id += rng.random_range(1..3);
        upstream.rows.insert(row.id, row);
    }
    let mut registered = BTreeMap::new();
    let all = definitions();
    for given_up in [true, false] {
        let what = format!("seed {seed}, given up: {given_up}");
        let session = Session::open(directory.path(), rng.random_range(1..3), 1_000_000, &upstream).await;
        let mut ids: Vec<i64> = upstream.rows.keys().copied().collect();
        if rng.random_bool(0.5) {
            ids.shuffle(&mut rng);
        }
        let mut pieces: Vec<&[i64]> = ids.chunks(rng.random_range(1..1_000)).collect();
        if rng.random_bool(0.5) {
            pieces.shuffle(&mut rng);
        }
        for piece in pieces {
            let rows = Upstream::snapshot(piece.iter().map(|id| &upstream.rows[id]));
            session.send(SourceEvent::SnapshotRows(rows)).await;
            if registered.len() < 6 && rng.random_bool(0.3) {
                let (name, which) = (format!("a{}", registered.len()), rng.random_range(0..all.len()));
                session.engine.register(&name, all[which].clone()).await.unwrap();
                registered.insert(name, which);
            }
        }
        if !given_up {
            session.send(SourceEvent::SnapshotDone { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
            for _ in 0..rng.random_range(0..10) {
                let transaction = upstream.transaction(&mut rng);
                session.send(SourceEvent::Transaction(transaction)).await;
            }
            session.check(&upstream, &registered, &what).await;
        }
        session.engine.stop().await;
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
