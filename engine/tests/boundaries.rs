//! Somebody begins to watch for the Snapshot of a position while a commit group is open that holds a transaction already: the
//! position may lie right behind that one, so the next one must not join it. Groups of many rows stay open for some
//! milliseconds, which is where the watch begins here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

#[path = "../../tests/support/model.rs"]
#[allow(dead_code)]
mod model;
#[path = "../../tests/support/session.rs"]
#[allow(dead_code)]
mod session;
#[path = "../../tests/support/upstream.rs"]
#[allow(dead_code)]
mod upstream;

use std::time::Duration;

use engine::change::{Lsn, Transaction};
use engine::engine::EngineConfig;
use engine::source::SourceEvent;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use model::{TABLE, schema};
use session::Session;
use upstream::Upstream;

const TIMES: usize = 40;
/// More than closes a group that has nothing else to wait for.
const ROWS: usize = 600;
const PATIENCE: Duration = Duration::from_secs(60);

/// So many new rows, a hundred positions after the last transaction.
fn transaction(upstream: &mut Upstream, rng: &mut ChaCha8Rng, rows: usize) -> Transaction {
    upstream.table.rows.clear();
    for _ in 0..rows {
        upstream.table.add_random(rng);
    }
    upstream.lsn += 100;
    let changes = Upstream::snapshot(upstream.table.rows.values());
    Transaction { end_lsn: Lsn(upstream.lsn), commit_time_us: 0, changes }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_right_behind_an_open_group_has_its_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut upstream = Upstream::new(&mut rng, 0);
    let start = Lsn(upstream.lsn);
    let session = Session::open(&EngineConfig::new(directory.path()), vec![schema(TABLE, "payments")], start).await;
    session.send(SourceEvent::SnapshotDone { lsn: start, time_us: 0 }).await;
    session.reached(start, "start").await;
    for time in 0..TIMES {
        let before = transaction(&mut upstream, &mut rng, ROWS);
        let passed = before.end_lsn;
        session.send(SourceEvent::Transaction(before)).await;
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..5_000))).await;
        let watch = session.engine.watch_boundaries();
        for _ in 0..2 {
            session.send(SourceEvent::Transaction(transaction(&mut upstream, &mut rng, 1))).await;
        }
        let found = watch.at(Lsn(passed.0 + 50), PATIENCE).await;
        assert_eq!(found.map(|snapshot| snapshot.as_of().lsn), Ok(passed), "time {time}");
    }
    session.stop().await;
}
