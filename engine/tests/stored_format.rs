//! What was written by the first binary of a format is read by this one: a data directory of each format lies in
//! `stored_format/`, with the cells that it held then. A change that misreads one needs another number in
//! `engine/src/store/format.rs`, and a way from the old one.
//!
//! `TIDEMARK_APPROVE=1 cargo test --release -p engine --test stored_format` writes one for the current format, where there is none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code)]
#[path = "../../tests/support/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../../tests/support/session.rs"]
mod session;
#[path = "../../tests/support/upstream.rs"]
mod upstream;

use std::fs;
use std::path::{Path, PathBuf};

use engine::change::Lsn;
use engine::engine::EngineConfig;
use engine::materialization::{Definition, Registration};
use engine::source::{ResumePoint, SourceEvent};
use engine::store::format::FORMAT_VERSION;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use model::expected::{definitions, stored};
use model::{TABLE, schema};
use session::Session;
use upstream::Upstream;

const CELLS: &str = "cells.txt";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stored_format")
}

/// Everything that has a value in the store: all kinds of levels and measures, an index of rows.
fn registered() -> Vec<(String, Definition)> {
    let with_rows = r#"{"table":"payments","drill_through":true,"measures":[{"name":"n","count":"*"}],
        "dimensions":["currency"],"time":{"column":"at","granularity":"hour"},"rollups":["month"]}"#;
    let mut all = definitions("payments", false);
    all.push(serde_json::from_str(with_rows).unwrap());
    all.into_iter().enumerate().map(|(number, definition)| (format!("a{number}"), definition)).collect()
}

/// Every cell of every aggregate as text, a line each.
async fn cells(session: &Session) -> String {
    let names: Vec<String> = session.engine.snapshot().unwrap().catalog().aggregates.keys().cloned().collect();
    let mut lines = Vec::new();
    for name in names.iter().filter(|name| Registration::final_name(name).is_none()) {
        for ((level, bucket, group), (rows, measures)) in stored(&*session.live(name, name).await, name).unwrap() {
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
    let config = EngineConfig::new(&data);
    let open = |lsn| Session::open(&config, vec![schema(TABLE, "payments")], Lsn(lsn));
    let session = open(upstream.lsn).await;
    session.send(SourceEvent::SnapshotRows(Upstream::snapshot(upstream.table.rows.values()))).await;
    session.send(SourceEvent::SnapshotDone { lsn: Lsn(upstream.lsn), time_us: 0 }).await;
    for (name, definition) in registered() {
        session.engine.register(&name, definition).await.unwrap();
    }
    session.stop().await;
    let session = open(upstream.lsn).await;
    for _ in 0..20 {
        session.send(SourceEvent::Transaction(upstream.transaction(&mut rng))).await;
    }
    session.reached(Lsn(upstream.lsn), "written").await;
    fs::write(into.join(CELLS), cells(&session).await).unwrap();
    session.stop().await;
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
    // A resumed source has its tables already.
    let session = Session::open(&EngineConfig::new(data.path()), Vec::new(), Lsn::ZERO).await;
    let ResumePoint::Resume { lsn, .. } = session.context.resume else { panic!("nothing is stored") };
    let later = Lsn(lsn.0 + 1);
    session.send(SourceEvent::Progress { lsn: later, time_us: 0 }).await;
    session.reached(later, "read").await;
    assert_eq!(cells(&session).await, was);
    let snapshot = session.engine.snapshot().unwrap();
    snapshot.scrub().unwrap();
    for name in snapshot.catalog().aggregates.keys() {
        session.engine.rebuild(name).await.unwrap();
    }
    drop(snapshot);
    assert_eq!(cells(&session).await, was);
    session.stop().await;
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
