//! One seed: an engine whose actors go on one at a time, a slot, callers, a reader and a nemesis, and after all of it an
//! engine that has to come to rest with everything right. All that happens is a choice of the seed's.
//!
//! How often each of them has its turn is drawn for each seed: where the committer hardly ever comes to it, others are seen
//! far ahead of it, and so on.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use engine::boundary::{BoundaryWatch, NoBoundary};
use engine::change::Lsn;
use engine::engine::{EngineConfig, OnChange, RegisterError, Registered};
use engine::materialization::{AggregateState, Definition};
use engine::simulation::{Actor, Simulation};
use engine::store::StoreMemory;
use engine::torture::{self, Failpoint};
use engine::{Engine, Snapshot};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::done::Done;
use super::peek::Peek;
use super::slot::{Connector, Slot};
use super::wreck::{Crash, Wreck};
use crate::support::model::expected::{definitions, expected, stored};
use crate::support::upstream::Upstream;

/// Turns of a life before it is brought to its end.
const TURNS: u32 = 400;
/// Rounds in which everybody has a turn, within which everything has come to rest.
const ROUNDS: u32 = 3_000;
/// Names that callers give to aggregates.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// What a watcher waits for its moment.
const PATIENCE: Duration = Duration::from_secs(2);
/// Reasons for which a reader may be put off.
const PUT_OFF: [&str; 5] = ["starting", "snapshotting", "catching_up", "connecting", "stopping"];

/// Whose turn it is.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Engine(Actor),
    /// Somebody commits upstream.
    Commit,
    /// The connector sends an event.
    Send,
    Acknowledge,
    Reconnect,
    ReadAnew,
    /// A caller asks for something.
    Ask,
    /// Callers look for their answers.
    Answers,
    Read,
    /// Somebody asks for the moment of a position, as a verification does.
    Watch,
    /// Time passes.
    Clock,
    /// The disk is nearly full, or is not any more.
    Space,
}

/// What a caller asked for.
#[derive(Clone, Copy, Debug)]
enum Wish {
    /// This definition, by its number.
    Defined(usize),
    Gone,
    /// That what is being built is given up.
    Cancelled,
}

/// Somebody who watches, in order to ask for a position that nobody has reached yet.
struct Watcher {
    watch: Rc<BoundaryWatch>,
    /// Where upstream was when the watch began.
    began: u64,
    asked: Option<(Lsn, Moment)>,
}

type Moment = Pin<Box<dyn Future<Output = Result<Arc<Snapshot>, NoBoundary>>>>;
type Answer = Pin<Box<dyn Future<Output = Result<bool, String>>>>;

struct Life {
    simulation: Simulation,
    connector: Connector,
    asked: Vec<(&'static str, Wish, Answer)>,
    watcher: Option<Watcher>,
    seen: Lsn,
}

pub struct World<'d> {
    rng: ChaCha8Rng,
    slot: Slot,
    definitions: Vec<Definition>,
    /// What was promised under a name; a name whose caller had no answer is in neither.
    defined: BTreeMap<&'static str, BTreeSet<usize>>,
    gone: BTreeSet<&'static str>,
    config: EngineConfig,
    directory: PathBuf,
    lives: u32,
    wreck: Arc<Mutex<Wreck>>,
    peek: Arc<Mutex<Peek>>,
    low: bool,
    limits: Limits,
    done: &'d mut Done,
}

/// How much of a history is played, and told.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Steps after which it is brought to its end.
    pub steps: u64,
    /// Every step is printed.
    pub told: bool,
}

impl Limits {
    pub const NONE: Limits = Limits { steps: u64::MAX, told: false };
}

/// Runs a seed in a directory that is its own.
pub async fn run(seed: u64, limits: Limits, directory: &Path, done: &mut Done) -> Result<(), String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rows = rng.random_range(0..40);
    let mut upstream = Upstream::new(&mut rng, rows);
    upstream.table.full_identity = rng.random_ratio(1, 3);
    let slot = Slot::new(upstream);
    let config = EngineConfig {
        workers: rng.random_range(1..=3),
        cells_in_memory: *[0, 20, 1_000_000].choose(&mut rng).unwrap(),
        store_memory: StoreMemory { block_cache: 1 << 20, write_buffer: 1 << 20 },
        ..EngineConfig::new(directory)
    };
    let wreck = Arc::new(Mutex::new(Wreck::new(directory.to_owned(), directory.to_owned())));
    let peek = Arc::<Mutex<Peek>>::default();
    let (told, looks) = (Arc::clone(&wreck), Arc::clone(&peek));
    torture::witness(move |point| {
        lock(&looks).look();
        lock(&told).reached(point);
    });
    let (defined, gone) = (BTreeMap::new(), BTreeSet::new());
    let directory = directory.to_owned();
    let mut world = World {
        rng,
        slot,
        definitions: definitions("payments", false),
        defined,
        gone,
        config,
        directory,
        lives: 0,
        wreck,
        peek,
        low: false,
        limits,
        done,
    };
    let outcome = world.run().await;
    // The witness is a process's: what it holds of the engine would keep the store open after its directory is gone.
    lock(&world.peek).close();
    outcome
}

impl World<'_> {
    async fn run(&mut self) -> Result<(), String> {
        let mut life = self.begin()?;
        for _ in 0..self.rng.random_range(1..=3) {
            life = match self.live(life).await? {
                Some(life) => self.stop(life).await?,
                None => self.begin()?,
            };
        }
        self.come_to_rest(&mut life).await
    }

    /// Starts an engine over what the last one left.
    fn begin(&mut self) -> Result<Life, String> {
        let (directory, next) = (self.data(self.lives), self.data(self.lives + 1));
        self.config.data.clone_from(&directory);
        self.config.backups = directory.join("backups");
        *lock(&self.wreck) = Wreck::new(directory, next);
        self.low = false;
        let (simulation, context) = Simulation::start(&self.config).map_err(|error| error.to_string())?;
        lock(&self.peek).at(simulation.engine.clone());
        let connector = Connector::begin(&mut self.slot, context, &mut self.rng)?;
        Ok(Life { simulation, connector, asked: Vec::new(), watcher: None, seen: Lsn::ZERO })
    }

    fn data(&self, life: u32) -> PathBuf {
        self.directory.join(life.to_string())
    }

    /// A life until it crashes, or long enough.
    async fn live(&mut self, mut life: Life) -> Result<Option<Life>, String> {
        if self.rng.random_ratio(3, 4) {
            let crash = self.draw_crash();
            lock(&self.wreck).arm(crash);
        }
        let turns = self.turns(&life.simulation);
        let until_pause = self.rng.random_range(0..TURNS);
        for number in 0..TURNS {
            if self.done.steps >= self.limits.steps {
                break;
            }
            let (turn, _) = *turns.choose_weighted(&mut self.rng, |(_, weight)| *weight).unwrap();
            self.take(turn, &mut life).await?;
            if number == until_pause {
                lock(&self.wreck).pause();
            }
            let crash = lock(&self.wreck).happened;
            if let Some(crash) = crash {
                self.crashed(crash, life);
                return Ok(None);
            }
        }
        Ok(Some(life))
    }

    fn draw_crash(&mut self) -> Crash {
        let at = self.rng.random_bool(0.7).then(|| {
            let point = *Failpoint::ALL.choose(&mut self.rng).unwrap();
            (point, self.rng.random_range(0..6))
        });
        let kept =
            self.rng.random_bool(0.5).then(|| *[0.0, 0.5, self.rng.random::<f64>()].choose(&mut self.rng).unwrap());
        Crash { at, kept }
    }

    /// Everybody, and how often they have their turn.
    fn turns(&mut self, simulation: &Simulation) -> Vec<(Turn, u32)> {
        let actors = simulation.actors().into_iter().map(Turn::Engine);
        let often = [Turn::Commit, Turn::Send, Turn::Send, Turn::Answers, Turn::Clock, Turn::Acknowledge, Turn::Read];
        let mut turns: Vec<(Turn, u32)> =
            actors.chain(often).map(|turn| (turn, *[4, 20, 20, 60].choose(&mut self.rng).unwrap())).collect();
        turns.extend([(Turn::Ask, 12), (Turn::Watch, 6), (Turn::Reconnect, 2), (Turn::ReadAnew, 1), (Turn::Space, 1)]);
        turns
    }

    async fn take(&mut self, turn: Turn, life: &mut Life) -> Result<(), String> {
        self.done.steps += 1;
        if self.limits.told {
            let status = life.simulation.engine.status();
            println!(
                "{} {turn:?}, applied {}, upstream {}",
                self.done.steps,
                status.applied_lsn,
                Lsn(self.slot.upstream.lsn)
            );
        }
        match turn {
            Turn::Engine(actor) => life.simulation.step(actor),
            Turn::Commit => self.slot.commit(&mut self.rng),
            Turn::Send => life.connector.step(&mut self.slot, &mut self.rng),
            Turn::Acknowledge => life.connector.acknowledge(&mut self.slot),
            Turn::Reconnect => life.connector.reconnect(&mut self.slot, &mut self.rng),
            Turn::ReadAnew => life.connector.read_anew(&self.slot, &mut self.rng),
            Turn::Ask => self.ask(life),
            Turn::Answers => self.answers(life)?,
            Turn::Read => self.read(life)?,
            Turn::Watch => self.watch(life),
            Turn::Clock => tokio::time::advance(Duration::from_millis(self.rng.random_range(1..15))).await,
            Turn::Space => {
                self.low = !self.low && self.rng.random_bool(0.5);
                life.simulation.hold_for_space(self.low);
            }
        }
        // What the sequencer spawned has its turn too.
        tokio::task::yield_now().await;
        self.trace(life);
        lock(&self.peek).verdict()
    }

    fn trace(&mut self, life: &Life) {
        let status = life.simulation.engine.status();
        for part in
            [status.applied_lsn.0, status.durable_lsn.0, status.counters.in_flight, self.rng.get_word_pos() as u64]
        {
            self.done.trace = (self.done.trace.rotate_left(5) ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
    }

    /// A caller has one wish at a time for a name.
    fn ask(&mut self, life: &mut Life) {
        let free = |name: &&&str| life.asked.iter().all(|(asked, ..)| *asked != **name);
        let free: Vec<&'static str> = NAMES.iter().filter(free).copied().collect();
        let Some(name) = free.choose(&mut self.rng).copied() else { return };
        let engine = life.simulation.engine.clone();
        let wish = match self.rng.random_range(0..8) {
            0 => Wish::Gone,
            1 => Wish::Cancelled,
            _ => Wish::Defined(self.rng.random_range(0..self.definitions.len())),
        };
        let answer: Answer = match wish {
            Wish::Gone => Box::pin(async move { engine.drop_aggregate(name).await.map_err(|why| why.code) }),
            Wish::Cancelled => Box::pin(async move { engine.cancel(name).await.map_err(|why| why.code) }),
            Wish::Defined(number) => {
                let definition = self.definitions[number].clone();
                Box::pin(async move { register(&engine, name, definition).await })
            }
        };
        if self.limits.told {
            println!("  {name}: {wish:?}");
        }
        life.asked.push((name, wish, answer));
        // Until there is an answer nobody knows.
        if let Wish::Defined(number) = wish {
            self.gone.remove(name);
            // The version before goes on until the new one is filled.
            if let Some(possible) = self.defined.get_mut(name) {
                possible.insert(number);
            }
        } else {
            self.defined.remove(name);
            self.gone.remove(name);
        }
    }

    fn answers(&mut self, life: &mut Life) -> Result<(), String> {
        let mut still = Vec::new();
        for (name, wish, mut answer) in life.asked.drain(..) {
            match (answer.as_mut().poll(&mut Context::from_waker(Waker::noop())), wish) {
                (Poll::Pending, _) => still.push((name, wish, answer)),
                (Poll::Ready(Ok(_)), Wish::Defined(number)) => {
                    self.defined.entry(name).or_default().insert(number);
                }
                (Poll::Ready(Ok(_)), Wish::Gone) => {
                    self.gone.insert(name);
                }
                (Poll::Ready(Ok(_)), Wish::Cancelled) => {}
                (Poll::Ready(Err(code)), _) if PUT_OFF.contains(&code.as_str()) => {}
                (Poll::Ready(Err(code)), _) => return Err(format!("{wish:?} under {name}: {code}")),
            }
        }
        life.asked = still;
        self.moment(life)
    }

    /// Begins to watch, or asks for a position that was reached since.
    fn watch(&mut self, life: &mut Life) {
        let upstream = self.slot.upstream.lsn;
        match &mut life.watcher {
            None => {
                let watch = Rc::new(life.simulation.engine.watch_boundaries());
                life.watcher = Some(Watcher { watch, began: upstream, asked: None });
            }
            Some(Watcher { watch, began, asked: asked @ None }) if upstream > *began => {
                let lsn = Lsn(self.rng.random_range(*began + 1..=upstream));
                let watch = Rc::clone(watch);
                *asked = Some((lsn, Box::pin(async move { watch.at(lsn, PATIENCE).await })));
            }
            Some(_) => {}
        }
    }

    /// The Snapshot of a position has what upstream had there.
    fn moment(&mut self, life: &mut Life) -> Result<(), String> {
        let Some(Watcher { asked: Some((lsn, moment)), .. }) = &mut life.watcher else { return Ok(()) };
        let lsn = *lsn;
        let Poll::Ready(found) = moment.as_mut().poll(&mut Context::from_waker(Waker::noop())) else { return Ok(()) };
        life.watcher = None;
        // Missed where the table was read meanwhile: then it has no moment but its end.
        let Ok(snapshot) = found else { return Ok(()) };
        self.done.moments += 1;
        self.compare(&snapshot, lsn)
    }

    /// A reader sees whole transactions, never goes back, and finds every cell right.
    fn read(&mut self, life: &mut Life) -> Result<(), String> {
        let snapshot = match life.simulation.engine.snapshot() {
            Ok(snapshot) => snapshot,
            Err(why) if PUT_OFF.contains(&why.code.as_str()) => return Ok(()),
            Err(why) => return Err(format!("a reader is told {why:?}")),
        };
        let lsn = snapshot.as_of().lsn;
        if lsn < life.seen {
            return Err(format!("a reader at {} is taken back to {lsn}", life.seen));
        }
        life.seen = lsn;
        self.compare(&snapshot, lsn)
    }

    fn compare(&mut self, snapshot: &Snapshot, lsn: Lsn) -> Result<(), String> {
        let rows = self.slot.rows_at(lsn);
        for aggregate in snapshot.catalog().aggregates.values() {
            let name = &aggregate.name;
            match &aggregate.state {
                AggregateState::Live => {
                    let number = self.number(&aggregate.definition)?;
                    let is = stored(snapshot, name).map_err(|error| format!("{name} at {lsn}: {error}"))?;
                    let should = expected(number, false, rows.values());
                    if is != should {
                        return Err(format!("{name} ({number}) at {lsn}: {is:?}\nshould be {should:?}"));
                    }
                    self.done.cells += is.len() as u64;
                }
                AggregateState::Building => {}
                state => return Err(format!("{name} at {lsn}: {state:?}")),
            }
        }
        snapshot.scrub().map(drop).map_err(|error| format!("scrub at {lsn}: {error}"))
    }

    fn number(&self, definition: &Definition) -> Result<usize, String> {
        let known = self.definitions.iter().position(|known| known.differences(definition, None).is_empty());
        known.ok_or_else(|| format!("nobody asked for {definition:?}"))
    }

    /// The end of a life that nobody prepared. Nobody may hold its engine any more: RocksDB waits a second where a compaction
    /// finds its directory gone.
    fn crashed(&mut self, crash: Crash, life: Life) {
        if self.limits.told {
            println!("  {crash:?}");
        }
        self.done.crashes += 1;
        self.done.at_failpoints += u64::from(crash.at.is_some());
        self.done.power_cuts += u64::from(crash.kept.is_some());
        lock(&self.peek).close();
        drop(life);
        let _ = std::fs::remove_dir_all(self.data(self.lives));
        self.lives += 1;
    }

    /// An end in good order: all that was to be seen is durable, and the next life begins there.
    async fn stop(&mut self, mut life: Life) -> Result<Life, String> {
        let engine = life.simulation.engine.clone();
        let mut stop = Box::pin(async move { engine.stop().await });
        let mut rounds = 0;
        while stop.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            life.simulation.actors().into_iter().for_each(|actor| life.simulation.step(actor));
            tokio::task::yield_now().await;
            rounds += 1;
            let crash = lock(&self.wreck).happened;
            if let Some(crash) = crash {
                drop(stop);
                self.crashed(crash, life);
                return self.begin();
            }
            if rounds > ROUNDS {
                return Err("it does not stop".to_owned());
            }
        }
        life.connector.acknowledge(&mut self.slot);
        self.answers(&mut life)?;
        self.done.restarts += 1;
        lock(&self.peek).close();
        drop((stop, life));
        self.begin()
    }

    /// Everybody has a turn until nothing is left to be done; then everything that was promised is there, and right.
    async fn come_to_rest(&mut self, life: &mut Life) -> Result<(), String> {
        *lock(&self.wreck) = Wreck::new(self.data(self.lives), self.data(self.lives + 1));
        life.simulation.hold_for_space(false);
        let actors: Vec<Turn> = life.simulation.actors().into_iter().map(Turn::Engine).collect();
        for _ in 0..ROUNDS {
            for turn in actors.iter().copied().chain([Turn::Send, Turn::Acknowledge, Turn::Answers, Turn::Clock]) {
                self.take(turn, life).await?;
            }
            if self.rests(life) {
                self.read(life)?;
                return self.kept(life);
            }
        }
        let status = life.simulation.engine.status();
        let asked: Vec<_> = life.asked.iter().map(|(name, wish, _)| (name, wish)).collect();
        let catalog = life.simulation.engine.snapshot().map(|snapshot| Arc::clone(snapshot.catalog()));
        let states: Option<Vec<_>> = catalog.ok().map(|catalog| {
            catalog.aggregates.values().map(|one| (one.name.clone(), one.id, one.state.clone())).collect()
        });
        let upstream_lsn = self.slot.upstream.lsn;
        Err(format!(
            "it does not come to rest: {status:?}, asked {asked:?}, upstream {upstream_lsn}, aggregates {states:?}"
        ))
    }

    fn rests(&self, life: &Life) -> bool {
        let engine = &life.simulation.engine;
        let Ok(snapshot) = engine.snapshot() else { return false };
        let building = snapshot.catalog().aggregates.values().any(|one| one.state == AggregateState::Building);
        life.asked.is_empty()
            && life.watcher.as_ref().is_none_or(|watcher| watcher.asked.is_none())
            && life.connector.is_done(&self.slot)
            && life.simulation.is_durable()
            && snapshot.as_of().lsn >= Lsn(self.slot.upstream.lsn)
            && !building
            && engine.status().counters.in_flight == 0
    }

    fn kept(&self, life: &Life) -> Result<(), String> {
        let snapshot = life.simulation.engine.snapshot().map_err(|why| format!("{why:?}"))?;
        let aggregates = &snapshot.catalog().aggregates;
        for (name, possible) in &self.defined {
            let Some(aggregate) = aggregates.get(*name) else {
                return Err(format!("{name} was promised, and is gone"));
            };
            let number = self.number(&aggregate.definition)?;
            if !possible.contains(&number) {
                let all: Vec<_> = aggregates.values().map(|one| (&one.name, one.id, one.version, &one.state)).collect();
                return Err(format!("{name} is {number}, and was promised as one of {possible:?}; there are {all:?}"));
            }
        }
        match self.gone.iter().find(|name| aggregates.contains_key(**name)) {
            Some(name) => Err(format!("{name} was dropped, and is there")),
            None => Ok(()),
        }
    }
}

async fn register(engine: &Engine, name: &str, definition: Definition) -> Result<bool, String> {
    match engine.register_or(name, definition, OnChange::Rebuild).await {
        Ok(Registered::Created(_)) => Ok(true),
        Ok(Registered::Unchanged(_)) => Ok(false),
        Err(RegisterError::Unavailable(why)) => Err(why.code),
        Err(error) => Err(error.to_string()),
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
