//! Very many short histories of rows, each told apart by a column and all woven into one stream: what is added up as changes come
//! equals what is added up from the rows, cell by cell, in the middle and at the end of each stream. Some share a table that is
//! truncated now and then; the engine is stopped and opened again, and cells leave its memory and come back.
//!
//! A failure names the seed of its stream (`TIDEMARK_SEED`), and tells the one history that differs: its changes, the
//! cells, and whether it differs also where it is alone. `TIDEMARK_HISTORIES` is for longer runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod difference;
#[path = "../../../tests/support/model.rs"]
mod model;
#[path = "../../../tests/support/session.rs"]
mod session;
mod stream;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use engine::change::{Lsn, TableId, TableSchema};
use engine::engine::EngineConfig;
use engine::source::SourceEvent;
use engine::store::StoreMemory;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use difference::{Difference, difference, explain};
use model::expected::{definitions, expected, stored};
use model::{Row, TABLE};
use session::Session;
use stream::{BEGINNING, HISTORIES_A_STREAM, Stream, tables};

const HISTORIES: usize = 100_000;
/// While one waits for a sync the other has the cores.
const STREAMS_AT_ONCE: usize = 2;

/// An aggregate that is compared.
struct Registered {
    name: String,
    table: TableId,
    /// Of the model's definitions.
    which: usize,
}

async fn register(session: &Session, table: &TableSchema, which: usize) -> Registered {
    let name = format!("{}_{which}", table.name);
    session.engine.register(&name, definitions(&table.name, true)[which].clone()).await.unwrap();
    Registered { name, table: table.id, which }
}

/// Compares every cell of every aggregate; how many there are.
async fn compare<'r, R: Iterator<Item = &'r Row>>(
    session: &Session,
    registered: &[Registered],
    rows_of: impl Fn(TableId) -> R,
    what: &str,
) -> Result<usize, Difference> {
    let mut cells = 0;
    for Registered { name, table, which } in registered {
        let snapshot = session.live(name, what).await;
        let (stored, expected) = (stored(&snapshot, name).unwrap(), expected(*which, true, rows_of(*table)));
        if stored != expected {
            return Err(difference(name, &stored, &expected));
        }
        cells += expected.len();
    }
    session.engine.snapshot().unwrap().scrub().unwrap_or_else(|error| panic!("{what}: {error}"));
    Ok(cells)
}

fn config(directory: &Path, workers: usize, cells_in_memory: usize) -> EngineConfig {
    EngineConfig {
        workers,
        cells_in_memory,
        store_memory: StoreMemory { block_cache: 8 << 20, write_buffer: 4 << 20 },
        ..EngineConfig::new(directory)
    }
}

/// What a run was.
#[derive(Default)]
struct Figures {
    histories: usize,
    changes: usize,
    truncates: usize,
    restarts: usize,
    comparisons: usize,
    cells: usize,
}

async fn run(seed: u64) -> Figures {
    let mut figures = Figures::default();
    let mut stream = Stream::new(seed);
    let mut rng = ChaCha8Rng::seed_from_u64(!seed);
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), rng.random_range(1..=2), *[0, 1_000, 20_000].choose(&mut rng).unwrap());
    let mut session = Session::open(&config, tables(), BEGINNING).await;
    session.send(SourceEvent::SnapshotDone { lsn: BEGINNING, time_us: 0 }).await;
    // Stopped before it has that, it would want the rows once more.
    session.reached(BEGINNING, "start").await;
    let mut registered = Vec::new();
    let mut unregistered: Vec<(TableSchema, usize)> = Vec::new();
    for table in tables() {
        let all = definitions(&table.name, true).len();
        let which = if table.id == TABLE { (0..all).collect() } else { vec![rng.random_range(0..all)] };
        unregistered.extend(which.into_iter().map(|which| (table.clone(), which)));
    }
    while let Some(transaction) = stream.transaction() {
        let what = format!("seed {seed} at {}", transaction.end_lsn);
        if rng.random_ratio(1, 50) {
            session.send(SourceEvent::Transaction(transaction.clone())).await;
        }
        session.send(SourceEvent::Transaction(transaction)).await;
        // The first before anything has happened, the last of them over rows that are there.
        if rng.random_ratio(1, 50)
            && let Some((table, which)) = unregistered.pop()
        {
            registered.push(register(&session, &table, which).await);
        }
        if rng.random_ratio(1, 4_000) {
            let durable = session.stop().await;
            session = Session::open(&config, tables(), Lsn(stream.lsn)).await;
            session.send_again(&stream.log, durable, &what).await;
            figures.restarts += 1;
        }
        if rng.random_ratio(1, 8_000) {
            check(&session, &registered, &stream, &what, &mut figures).await;
        }
    }
    assert!(unregistered.is_empty() && stream.histories.iter().all(|history| history.changes_left == 0));
    check(&session, &registered, &stream, &format!("seed {seed} at its end"), &mut figures).await;
    session.stop().await;
    figures.histories += stream.histories.len();
    figures.changes += stream.log.iter().map(|transaction| transaction.changes.len()).sum::<usize>();
    figures.truncates += stream.truncates;
    figures
}

async fn check(session: &Session, registered: &[Registered], stream: &Stream, what: &str, figures: &mut Figures) {
    session.reached(Lsn(stream.lsn), what).await;
    match compare(session, registered, |table| stream.rows_of(table), what).await {
        Ok(cells) => figures.cells += cells,
        Err(difference) => explain(stream, difference, what).await,
    }
    figures.comparisons += 1;
}

impl Figures {
    fn add(&mut self, other: &Figures) {
        self.histories += other.histories;
        self.changes += other.changes;
        self.truncates += other.truncates;
        self.restarts += other.restarts;
        self.comparisons += other.comparisons;
        self.cells += other.cells;
    }
}

#[test]
fn what_is_added_up_as_changes_come_equals_what_is_added_up_from_the_rows() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let pasted = number("TIDEMARK_SEED");
    let usual = if pasted.is_some() { HISTORIES_A_STREAM } else { HISTORIES };
    let histories = number("TIDEMARK_HISTORIES").map_or(usual, |histories| histories as usize);
    let first = pasted.unwrap_or(0);
    let after = first + histories.div_ceil(HISTORIES_A_STREAM) as u64;
    let began = Instant::now();
    let (next, total) = (AtomicU64::new(first), Mutex::new(Figures::default()));
    std::thread::scope(|scope| {
        for _ in 0..STREAMS_AT_ONCE {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= after {
                        return;
                    }
                    let figures = runtime.block_on(run(seed));
                    total.lock().unwrap().add(&figures);
                }
            });
        }
    });
    let Figures { histories, changes, truncates, restarts, comparisons, cells } = total.into_inner().unwrap();
    println!(
        "{histories} histories, {changes} changes, {truncates} truncates, {restarts} restarts; \
         {cells} cells in {comparisons} comparisons; {:.1?} from seed {first} on",
        began.elapsed()
    );
}
