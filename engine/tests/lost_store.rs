//! The store's directory is taken away under the running engine, so that nothing can be made durable any more. Whoever waits for
//! a registration then learns why there is none, never only that the engine has stopped: the reason is there before the
//! answer's end is. The caller here looks without pause, so that it sees what a moment in between would show. Whoever waits for
//! a position or for something newer learns it at once, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

#[path = "../../tests/support/model.rs"]
#[allow(dead_code)]
mod model;
#[path = "../../tests/support/session.rs"]
#[allow(dead_code)]
mod session;

use std::fs;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use engine::change::Lsn;
use engine::engine::{EngineConfig, RegisterError};
use engine::source::SourceEvent;
use engine::store::StoreMemory;

use model::expected::definitions;
use model::{TABLE, schema};
use session::Session;

/// The moment is short: it is not met every time.
const TIMES: usize = 12;
const PATIENCE: Duration = Duration::from_secs(60);

fn without_pause<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let began = Instant::now();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "no answer");
        std::hint::spin_loop();
    }
}

fn code_of_a_registration_on_a_lost_store(runtime: &tokio::runtime::Runtime) -> String {
    let directory = tempfile::tempdir().unwrap();
    let config = EngineConfig {
        store_memory: StoreMemory { block_cache: 1 << 20, write_buffer: 1 << 20 },
        ..EngineConfig::new(directory.path())
    };
    let session = runtime.block_on(async {
        let session = Session::open(&config, vec![schema(TABLE, "payments")], Lsn(1)).await;
        session.send(SourceEvent::SnapshotDone { lsn: Lsn(1), time_us: 0 }).await;
        session.reached(Lsn(1), "start").await;
        session
    });
    fs::rename(directory.path().join("store"), directory.path().join("elsewhere")).unwrap();
    let engine = session.engine.clone();
    let waiting = runtime.spawn(async move {
        let began = Instant::now();
        assert!(!engine.wait_for(Lsn(u64::MAX), PATIENCE).await);
        assert!(began.elapsed() < PATIENCE / 2, "nobody woke who waited for a position");
        engine.newer_than(u64::MAX).await.unwrap_err()
    });
    let _guard = runtime.enter();
    let answer = without_pause(session.engine.register("late", definitions("payments", false)[0].clone()));
    let told = runtime.block_on(waiting).unwrap();
    runtime.block_on(session.stop());
    match answer {
        Err(RegisterError::Unavailable(reason)) => {
            assert_eq!(reason, told);
            reason.code
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn whoever_waits_for_a_registration_learns_why_there_is_none() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for _ in 0..TIMES {
        assert_eq!(code_of_a_registration_on_a_lost_store(&runtime), "store_failed");
    }
}
