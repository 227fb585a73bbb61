//! A life without Postgres: an engine over a source that is the naive model, in a process of its own, for some hundred
//! milliseconds. It opens, is compared, takes transactions, registers, rebuilds, drops, has a backup taken, is compared, stops.
//!
//! The surprise: nobody tells it where the one before ended. The model's whole log follows from the seed, and what the store
//! holds says how far this world has come, and what is done next.
//!
//! What it prints is what its parent holds it to: `performance.rs` reads it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use engine::change::Lsn;
use engine::engine::{EngineConfig, RegisterError, Unavailable};
use engine::materialization::{AggregateState, Definition};
use engine::source::{ResumePoint, SourceContext, SourceEvent, SourceIdentity, SourceState};
use engine::store::StoreMemory;
use engine::{Engine, Snapshot};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::life::HALTED;
use crate::support::embedded::PASSING;
use crate::support::model::expected::{Expected, definitions, expected, stored};
use crate::support::model::{TABLE, schema};
use crate::support::upstream::Upstream;

/// The smallest that the store accepts: some tens of transactions fill it, and a table file is written.
const WRITE_BUFFER: usize = 64 << 10;
/// Of the world's beginning.
const ROWS: usize = 60;
/// How often it is looked whether the engine still goes on.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between the end of an engine and the reason for it.
const REASON_WITHIN: Duration = Duration::from_secs(5);

/// What a life is told.
#[derive(clap::Args, Clone, Debug)]
pub struct Script {
    /// The data directory.
    #[arg(long)]
    pub data: PathBuf,
    /// Of the world, the same for all lives of a directory.
    #[arg(long)]
    pub world: u64,
    /// Upstream keeps its log from here on only.
    #[arg(long, default_value_t = 0)]
    pub acknowledged: u64,
    /// It does not stop in the end: it is gone, with transactions that are not synced.
    #[arg(long)]
    pub unstopped: bool,
}

/// Why it does not go on: a code, and what was said.
struct Halt(String);

impl From<Unavailable> for Halt {
    fn from(reason: Unavailable) -> Halt {
        Halt(format!("{} {}", reason.code, reason.message))
    }
}

/// Runs to its end.
pub fn run(script: &Script) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        // Not by its exit: other threads are in the middle of something.
        std::process::abort();
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match runtime.block_on(perform(script)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Halt(why)) => {
            println!("halted {}", why.replace('\n', " "));
            ExitCode::from(HALTED as u8)
        }
    }
}

async fn perform(script: &Script) -> Result<(), Halt> {
    let (engine, context) =
        Engine::start(&config(script)).map_err(|error| Halt(format!("{} {}", error.code, error.message)))?;
    let performed = perform_over(&engine, context, script).await;
    // One that has halted can still be stopped.
    engine.stop().await;
    performed
}

async fn perform_over(engine: &Engine, context: SourceContext, script: &Script) -> Result<(), Halt> {
    let mut play = Play::begin(engine, context, script)?;
    play.feed().await?;
    play.compare().await?;
    for _ in 0..play.rng.random_range(2..5) {
        for _ in 0..play.rng.random_range(3..14) {
            play.transaction().await?;
        }
        play.ask().await?;
        if play.rng.random_bool(0.3) {
            play.compare().await?;
        }
    }
    if script.unstopped || play.rng.random_ratio(1, 3) {
        play.durable().await?;
    }
    let compared = play.compare().await?;
    if script.unstopped {
        for _ in 0..play.rng.random_range(1..9) {
            play.transaction().await?;
        }
        play.reach().await?;
        println!("exact {compared}");
        std::process::abort();
    }
    play.stop().await?;
    println!("exact {compared}");
    Ok(())
}

fn config(script: &Script) -> EngineConfig {
    let mut rng = ChaCha8Rng::seed_from_u64(script.world);
    EngineConfig {
        workers: rng.random_range(1..3),
        cells_in_memory: *[0, 20, 1_000_000].choose(&mut rng).unwrap(),
        store_memory: StoreMemory { block_cache: 1 << 20, write_buffer: WRITE_BUFFER },
        // A small disk in memory is none of ours to watch.
        min_free_bytes: Some(0),
        ..EngineConfig::new(&script.data)
    }
}

/// The world as of a position, and the dice for what follows.
fn world(seed: u64, lsn: Lsn) -> (Upstream, ChaCha8Rng) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut upstream = Upstream::new(&mut rng, ROWS);
    while upstream.lsn < lsn.0 {
        upstream.transaction(&mut rng);
    }
    (upstream, rng)
}

struct Play {
    engine: Engine,
    context: SourceContext,
    upstream: Upstream,
    /// What upstream commits.
    world: ChaCha8Rng,
    /// What is done to the engine.
    rng: ChaCha8Rng,
}

impl Play {
    fn begin(engine: &Engine, context: SourceContext, script: &Script) -> Result<Play, Halt> {
        let has: Vec<String> = engine.aggregates().iter().map(|aggregate| aggregate.name.clone()).collect();
        let acknowledged = Lsn(script.acknowledged);
        let at = match &context.resume {
            ResumePoint::Fresh => {
                println!("fresh {}", has.join(" "));
                acknowledged
            }
            ResumePoint::Resume { lsn, .. } => {
                println!("resume {} {}", lsn.0, has.join(" "));
                // As the connector finds it: what was acknowledged is not sent again.
                if *lsn < acknowledged {
                    return Err(Halt(format!("slot_overtaken the store has {lsn} of {acknowledged}")));
                }
                *lsn
            }
        };
        let (upstream, world) = world(script.world, at);
        let resumed = matches!(context.resume, ResumePoint::Resume { .. });
        assert!(!resumed || upstream.lsn == at.0, "resumed at {at}, where no transaction ends");
        let rng = ChaCha8Rng::seed_from_u64(script.world ^ upstream.lsn);
        Self::report_durable(&context);
        Ok(Play { engine: engine.clone(), context, upstream, world, rng })
    }

    /// One line for each position that upstream may be told.
    fn report_durable(context: &SourceContext) {
        let mut durable = context.durable.clone();
        tokio::spawn(async move {
            while durable.changed().await.is_ok() {
                println!("durable {}", durable.borrow_and_update().0);
            }
        });
    }

    /// What a source sends first: on a resume a little of what is there already and what was still on its way, else the rows.
    async fn feed(&mut self) -> Result<(), Halt> {
        let before = self.upstream.log.len();
        let resumed = matches!(self.context.resume, ResumePoint::Resume { .. });
        for _ in 0..self.rng.random_range(0..6) * u32::from(resumed) {
            self.upstream.transaction(&mut self.world);
        }
        let at_start = Lsn(self.upstream.lsn);
        self.context.status.send_modify(|status| {
            status.state = SourceState::Live;
            status.upstream_lsn_at_start = Some(at_start);
        });
        let identity = SourceIdentity { connector: "model".to_owned(), ..SourceIdentity::default() };
        self.send(SourceEvent::Tables { identity, tables: vec![schema(TABLE, "payments")] }).await?;
        if !resumed {
            let rows: Vec<_> = self.upstream.table.rows.values().collect();
            for piece in rows.chunks(25) {
                self.send(SourceEvent::SnapshotRows(Upstream::snapshot(piece.iter().copied()))).await?;
            }
            return self.send(SourceEvent::SnapshotDone { lsn: at_start, time_us: 0 }).await;
        }
        for transaction in &self.upstream.log[before.saturating_sub(3)..] {
            self.send(SourceEvent::Transaction(transaction.clone())).await?;
        }
        Ok(())
    }

    async fn transaction(&mut self) -> Result<(), Halt> {
        let transaction = self.upstream.transaction(&mut self.world);
        if self.rng.random_ratio(1, 10) {
            self.send(SourceEvent::Transaction(transaction.clone())).await?;
        }
        self.send(SourceEvent::Transaction(transaction)).await
    }

    async fn send(&self, event: SourceEvent) -> Result<(), Halt> {
        match self.context.events.send(event).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.reason().await),
        }
    }

    /// One thing that callers ask for.
    async fn ask(&mut self) -> Result<(), Halt> {
        let there: Vec<String> = self.engine.aggregates().iter().map(|aggregate| aggregate.name.clone()).collect();
        let one = there.choose(&mut self.rng).cloned();
        match (self.rng.random_range(0..8), one) {
            (0..=3, _) | (_, None) => {
                let which = self.rng.random_range(0..all().len());
                let name = format!("{}{which}", ["a", "b"].choose(&mut self.rng).unwrap());
                self.register(&name, which).await
            }
            (4, Some(name)) if there.len() > 2 => self.drop_one(&name).await,
            (4 | 5, Some(name)) => self.rebuild(&name).await,
            _ => self.back_up().await,
        }
    }

    async fn register(&self, name: &str, which: usize) -> Result<(), Halt> {
        println!("registering {name}");
        let definition = all().swap_remove(which);
        self.answered(self.engine.register(name, definition).await.map(drop), name, "registered").await
    }

    async fn rebuild(&self, name: &str) -> Result<(), Halt> {
        self.answered(self.engine.rebuild(name).await.map(drop), name, "rebuilt").await
    }

    async fn drop_one(&self, name: &str) -> Result<(), Halt> {
        println!("dropping {name}");
        self.answered(self.engine.drop_aggregate(name).await.map(drop).map_err(Into::into), name, "dropped").await
    }

    async fn answered(&self, answer: Result<(), RegisterError>, name: &str, what: &str) -> Result<(), Halt> {
        match answer {
            Ok(()) => println!("{what} {name}"),
            Err(RegisterError::Unavailable(reason)) if reason.code == "stopping" => return Err(self.reason().await),
            Err(RegisterError::Unavailable(reason)) => {
                self.goes_on()?;
                println!("refused {} {}", reason.code, reason.message);
            }
            Err(error) => panic!("{name} is not {what}: {error:?}"),
        }
        Ok(())
    }

    /// Taken, and thrown away: what is looked at is what becomes of the store.
    async fn back_up(&self) -> Result<(), Halt> {
        let name = format!("at_{}", self.upstream.lsn);
        match self.engine.back_up(&name, None).await {
            Ok(backup) => {
                println!("backed up {}", backup.manifest.lsn);
                let _ = std::fs::remove_dir_all(backup.path);
            }
            Err(error) => println!("refused {} {}", error.code, error.message.replace('\n', " ")),
        }
        self.goes_on()
    }

    /// That it has not halted.
    fn goes_on(&self) -> Result<(), Halt> {
        match self.engine.status().ready {
            Err(reason) if !PASSING.contains(&reason.code.as_str()) => Err(reason.into()),
            _ => Ok(()),
        }
    }

    /// Of an engine that has ended.
    async fn reason(&self) -> Halt {
        let deadline = tokio::time::Instant::now() + REASON_WITHIN;
        while tokio::time::Instant::now() < deadline {
            if let Err(halt) = self.goes_on() {
                return halt;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        panic!("the engine has ended and does not say why: {:?}", self.engine.status());
    }

    /// Waits until everything that was sent is applied.
    async fn reach(&self) -> Result<(), Halt> {
        while !self.engine.wait_for(Lsn(self.upstream.lsn), LOOK_EVERY).await {
            self.goes_on()?;
        }
        self.goes_on()
    }

    /// Waits until everything that was sent is durable.
    async fn durable(&self) -> Result<(), Halt> {
        let mut durable = self.context.durable.clone();
        let all = Lsn(self.upstream.lsn);
        while tokio::time::timeout(LOOK_EVERY, durable.wait_for(|lsn| *lsn >= all)).await.is_err() {
            self.goes_on()?;
        }
        self.goes_on()
    }

    async fn snapshot(&self) -> Result<Arc<Snapshot>, Halt> {
        loop {
            match self.engine.snapshot() {
                Ok(snapshot) => return Ok(snapshot),
                Err(_) => self.goes_on()?,
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Every cell of every aggregate; returns how many there are. An aggregate that says that it is damaged is not wrong.
    async fn compare(&self) -> Result<u64, Halt> {
        self.reach().await?;
        let (mut compared, mut unanswered) = (0, BTreeSet::new());
        for aggregate in self.engine.aggregates() {
            let name = &aggregate.name;
            let which = name[1..].parse().unwrap();
            let snapshot = self.settled(name).await?;
            assert_eq!(snapshot.as_of().lsn.0, self.upstream.lsn, "the position of {name}");
            match &snapshot.catalog().aggregates[name].state {
                AggregateState::Halted { code, message, .. } => {
                    println!("unanswered {code} {name} {message}");
                    unanswered.insert(name.clone());
                }
                _ => match stored(&snapshot, name) {
                    Ok(cells) => {
                        let right = expected(which, false, self.upstream.table.rows.values());
                        assert!(cells == right, "{name} is wrong: {}", difference(&cells, &right));
                        compared += cells.len() as u64;
                    }
                    Err(error) => {
                        println!("unanswered store_corrupt {name} {}", error.0.replace('\n', " "));
                        unanswered.insert(name.clone());
                    }
                },
            }
        }
        if let Err(error) = self.snapshot().await?.scrub() {
            self.goes_on()?;
            assert!(!unanswered.is_empty(), "every cell is right, and they do not add up: {error}");
        }
        Ok(compared)
    }

    /// A Snapshot at which nothing is built under this name. A next version that has halted stays, beside the one that answers.
    async fn settled(&self, name: &str) -> Result<Arc<Snapshot>, Halt> {
        loop {
            let mut applied = self.engine.applied();
            applied.borrow_and_update();
            let snapshot = self.snapshot().await?;
            let building = snapshot.catalog().aggregates[name].state == AggregateState::Building;
            match self.engine.next_version(name).map(|next| next.state.clone()) {
                Some(AggregateState::Halted { code, message, .. }) if !building => {
                    println!("unanswered {code} {name}, the next version: {message}");
                    return Ok(snapshot);
                }
                None if !building => return self.snapshot().await,
                _ => {}
            }
            self.goes_on()?;
            let _ = tokio::time::timeout(LOOK_EVERY, applied.changed()).await;
        }
    }

    /// As SIGTERM does.
    async fn stop(&self) -> Result<(), Halt> {
        self.engine.stop().await;
        self.goes_on()?;
        let durable = self.context.durable.borrow().0;
        assert_eq!(durable, self.upstream.lsn, "stopped, and not all of it is durable");
        println!("durable {durable}");
        Ok(())
    }
}

/// What may be registered.
fn all() -> Vec<Definition> {
    definitions("payments", false)
}

/// The first cells that are not as they should be.
fn difference(cells: &Expected, right: &Expected) -> String {
    let keys: BTreeSet<_> = cells.keys().chain(right.keys()).collect();
    let wrong = keys.into_iter().filter(|key| cells.get(key) != right.get(key));
    let shown = wrong.map(|key| format!("{key:?}: {:?}, and not {:?}", cells.get(key), right.get(key)));
    shown.take(3).collect::<Vec<_>>().join("; ")
}
