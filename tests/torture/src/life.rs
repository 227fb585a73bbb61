//! One life: engine and connector in this process, told what to do by lines, until it is told to stop, killed, or dies of what
//! it finds. A panic anywhere is such a death; what it says is the verdict.

use std::io::BufRead;
use std::path::Path;
use std::time::Duration;

use engine::change::Lsn;
use engine::source::SourceState;

use crate::bench::SLOT;
use crate::support::embedded::Embedded;
use crate::support::shop::{Reader, TABLES, compare_at, definitions};
use crate::support::sql;

/// Which of the shop's aggregates is registered late, too.
const LATE: &str = "by_day";

/// Runs until a line says stop.
pub fn run(data: &Path, url: &str) {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::exit(101);
    }));
    let (lines, mut told) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock().lines();
        while let Some(Ok(line)) = input.next() {
            let _ = lines.send(line);
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let tidemark = Embedded::start(data, url, &TABLES, SLOT, 2).await;
        let reader = Reader::start(&tidemark.engine);
        println!("started");
        while let Some(line) = told.recv().await {
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("compare", lsn) => println!("equal {}", compare(&tidemark, url, lsn.parse().unwrap()).await),
                ("stop", _) => break,
                (command, name) => {
                    obey(&tidemark, command, name).await;
                    println!("done {line}");
                }
            }
        }
        println!("stopped after {} Snapshots", reader.stop().await);
        tidemark.stop().await;
    });
}

async fn obey(tidemark: &Embedded, command: &str, name: &str) {
    let late = definitions().into_iter().find(|(name, _)| *name == LATE).unwrap().1;
    let engine = &tidemark.engine;
    match command {
        "register" => {
            for (name, definition) in definitions() {
                tidemark.register(name, serde_json::from_value(definition).unwrap()).await;
            }
        }
        "late" => tidemark.register(name, serde_json::from_value(late).unwrap()).await,
        "rebuild" => drop(engine.rebuild(name).await.unwrap_or_else(|error| panic!("{name}: {error:?}"))),
        "drop" => {
            assert!(engine.drop_aggregate(name).await.unwrap_or_else(|error| panic!("{name}: {error:?}")), "{name}")
        }
        "live" => drop(tidemark.live(name, Lsn::ZERO).await),
        other => panic!("{other}"),
    }
}

/// With the writers at rest. A source that halts is a failure like any other.
async fn compare(tidemark: &Embedded, url: &str, lsn: Lsn) -> u64 {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !tidemark.engine.wait_for(lsn, Duration::from_millis(200)).await {
        let state = tidemark.engine.status().source.state;
        assert!(!matches!(state, SourceState::Halted { .. }), "{state:?}");
        assert!(tokio::time::Instant::now() < deadline, "{lsn} is not reached: {state:?}");
    }
    compare_at(tidemark, &sql::connect(url).await, lsn, "after its last death").await
}
