//! What was written by the first binary of a format is read by this one: a data directory of each format lies in
//! `stored_format/`, with the cells that it held then. A change that misreads one needs another number in
//! `engine/src/store/format.rs`, and a way from the old one.
//!
//! `TIDEMARK_APPROVE=1 cargo test --release -p engine --test stored_format` writes one for the current format, where there is none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code)]
#[path = "../../tests/support/model.rs"]
mod model;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::Engine;
use engine::change::Lsn;
use engine::engine::{EngineConfig, OnChange};
use engine::materialization::AggregateState;
use engine::source::{ResumePoint, SourceContext, SourceEvent, SourceIdentity, SourceState};
use engine::store::format::FORMAT_VERSION;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use model::{Upstream, definitions, schema, stored};

const CELLS: &str = "cells.txt";
const PATIENCE: Duration = Duration::from_secs(30);

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stored_format")
}

/// Everything that has a value in the store: all kinds of levels and measures, an index of rows.
fn registered() -> Vec<(String, engine::materialization::Definition)> {
    let with_rows = r#"{"table":"payments","drill_through":true,"measures":[{"name":"n","count":"*"}],
        "dimensions":["currency"],"time":{"column":"at","granularity":"hour"},"rollups":["month"]}"#;
    let mut all = definitions();
    all.push(serde_json::from_str(with_rows).unwrap());
    all.into_iter().enumerate().map(|(number, definition)| (format!("a{number}"), definition)).collect()
}

/// An engine, and a source that stands at a position.
async fn open(data: &Path, lsn: Lsn) -> (Engine, SourceContext) {
    let (engine, context) = Engine::start(&EngineConfig::new(data)).unwrap();
    context.status.send_modify(|status| {
        status.state = SourceState::Live;
        status.upstream_lsn_at_start = Some(lsn);
    });
    let identity = SourceIdentity { connector: "model".to_owned(), ..SourceIdentity::default() };
    context.events.send(SourceEvent::Tables { identity, tables: vec![schema()] }).await.unwrap();
    (engine, context)
}

/// Every cell of every aggregate as text, a line each.
async fn cells(engine: &Engine) -> String {
    let mut lines = Vec::new();
    for (name, _) in registered() {
        let mut applied = engine.applied();
        let live = || {
            engine.next_version(&name).is_none()
                && engine.snapshot().is_ok_and(|s| s.catalog().aggregates[&name].state == AggregateState::Live)
        };
        tokio::time::timeout(PATIENCE, applied.wait_for(|_| live())).await.unwrap().unwrap();
        for ((level, bucket, group), (rows, measures)) in stored(&engine.snapshot().unwrap(), &name) {
            lines.push(format!("{name} {level} {bucket} {group:?} {rows} {measures}\n"));
        }
    }
    lines.concat()
}

/// Rows of an initial snapshot, registrations, transactions, a restart between: table files and a log.
async fn write(into: &Path) {
    let data = into.join("data");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut upstream = Upstream::new(&mut rng, 40);
    let (engine, context) = open(&data, Lsn(upstream.lsn)).await;
    context.events.send(SourceEvent::SnapshotRows(Upstream::snapshot(upstream.rows.values()))).await.unwrap();
    context.events.send(SourceEvent::SnapshotDone { lsn: Lsn(upstream.lsn), time_us: 0 }).await.unwrap();
    for (name, definition) in registered() {
        engine.register_or(&name, definition, OnChange::Refuse).await.unwrap();
    }
    engine.stop().await;
    drop((engine, context));
    let (engine, context) = open(&data, Lsn(upstream.lsn)).await;
    for _ in 0..20 {
        let transaction = upstream.transaction(&mut rng);
        context.events.send(SourceEvent::Transaction(transaction)).await.unwrap();
    }
    assert!(engine.wait_for(Lsn(upstream.lsn), PATIENCE).await);
    fs::write(into.join(CELLS), cells(&engine).await).unwrap();
    engine.stop().await;
    drop((engine, context));
    // Nothing of these is read.
    for entry in fs::read_dir(data.join("store")).unwrap().map(Result::unwrap) {
        if entry.file_name().to_str().unwrap().starts_with("LO") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

fn copy(from: &Path, into: &Path) {
    fs::create_dir_all(into).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = into.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// It holds what it held, adds up, and its rows give the same cells once more.
async fn read(format: &Path) {
    let data = tempfile::tempdir().unwrap();
    copy(&format.join("data"), data.path());
    let was = fs::read_to_string(format.join(CELLS)).unwrap();
    assert!(was.lines().count() > 50, "{}", was.lines().count());
    let (engine, context) = open(data.path(), Lsn::ZERO).await;
    let ResumePoint::Resume { lsn, .. } = context.resume.clone() else { panic!("nothing is stored") };
    context.events.send(SourceEvent::Progress { lsn: Lsn(lsn.0 + 1), time_us: 0 }).await.unwrap();
    assert!(engine.wait_for(Lsn(lsn.0 + 1), PATIENCE).await, "{:?}", engine.status());
    assert_eq!(cells(&engine).await, was);
    engine.snapshot().unwrap().scrub().unwrap();
    for (name, _) in registered() {
        engine.rebuild(&name).await.unwrap();
    }
    assert_eq!(cells(&engine).await, was);
    engine.stop().await;
}

#[tokio::test]
async fn every_format_is_read() {
    let current = directory().join(FORMAT_VERSION.to_string());
    if !current.exists() && std::env::var("TIDEMARK_APPROVE").is_ok() {
        fs::create_dir_all(&current).unwrap();
        write(&current).await;
    }
    for format in 1..=FORMAT_VERSION {
        read(&directory().join(format.to_string())).await;
    }
}
