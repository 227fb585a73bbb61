//! One life: engine and connector in this process, told what to do by lines, until it is told to stop, killed, or dies of what
//! it finds. A panic anywhere is such a death; what it says is the verdict.

use std::io::BufRead;
use std::panic::PanicHookInfo;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use engine::Engine;
use engine::change::Lsn;
use engine::engine::Unavailable;
use rustix::process::{Signal, getpid, kill_process};

use crate::bench::SLOT;
use crate::support::embedded::{Embedded, PASSING};
use crate::support::shop::{Reader, TABLES, compare_at, definitions};
use crate::support::sql;

/// Which of the shop's aggregates is registered late, too.
const LATE: &str = "by_day";

/// The status of a process that does not start, or does not go on, and says why.
pub const HALTED: i32 = 3;
/// The last line of a life that does not.
pub const HALTS: &str = "it halts";

/// For the last words.
static ENGINE: OnceLock<Engine> = OnceLock::new();
/// Threads that die at once would speak over one another, and a wrong number end in the words of a halt: the first is the one that counts.
static DYING: Mutex<()> = Mutex::new(());

/// Runs until a line says stop.
pub fn run(data: &Path, url: &str) {
    std::panic::set_hook(Box::new(|panic| {
        let _first = DYING.lock().unwrap_or_else(PoisonError::into_inner);
        eprintln!("{panic}");
        if halts(panic) {
            eprintln!("{HALTS}");
        }
        // An exit would take RocksDB's globals from threads that still use them, which is a death by SIGABRT now and then.
        let _ = kill_process(getpid(), Signal::KILL);
    }));
    println!("pid {}", std::process::id());
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
        let _ = ENGINE.set(tidemark.engine.clone());
        let reader = Reader::start(&tidemark.engine);
        println!("started");
        while let Some(line) = told.recv().await {
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("compare", lsn) => println!("equal {}", compare(&tidemark, url, lsn.parse().unwrap()).await),
                ("stop", _) => break,
                ("register", _) => println!("done register {}", register(&tidemark).await),
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

/// A wrong number is none, whatever else is the matter.
fn halts(panic: &PanicHookInfo) -> bool {
    let of_the_shop = panic.location().is_some_and(|place| place.file().ends_with("shop.rs"));
    let halted = |engine: &Engine| reason_to_halt(engine).is_some();
    !of_the_shop && ENGINE.get().is_none_or(halted)
}

/// Why it does not go on, and never will.
fn reason_to_halt(engine: &Engine) -> Option<Unavailable> {
    engine.status().ready.err().filter(|reason| !PASSING.contains(&reason.code.as_str()))
}

/// Returns how many are new.
async fn register(tidemark: &Embedded) -> u64 {
    let mut new = 0;
    for (name, definition) in definitions() {
        new += u64::from(tidemark.register(name, serde_json::from_value(definition).unwrap()).await);
    }
    new
}

async fn obey(tidemark: &Embedded, command: &str, name: &str) {
    let late = definitions().into_iter().find(|(name, _)| *name == LATE).unwrap().1;
    let engine = &tidemark.engine;
    match command {
        "late" => drop(tidemark.register(name, serde_json::from_value(late).unwrap()).await),
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
        let halted = reason_to_halt(&tidemark.engine);
        assert!(halted.is_none(), "{halted:?}");
        let status = tidemark.engine.status();
        assert!(tokio::time::Instant::now() < deadline, "{lsn} is not reached: {status:?}");
    }
    compare_at(tidemark, &sql::connect(url).await, lsn, "after its last death").await
}
