//! The k-th file call of a life fails: one life for each k, or for some drawn by the seed. It goes on and is exact, or says with
//! a code of the documentation that it cannot, or waits where the disk is full, or is gone where that was what happened; and
//! the next life, whose calls succeed, is exact and keeps everything that was promised.
//!
//! Lives are those of `script.rs`, each over a copy of one of a few stores: the first, one that was stopped, one that was not,
//! one that has files to merge. The threads of a life make their calls in no order of ours: the k-th is another one each time.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::bundle;
use crate::file_calls::documented;
use crate::performance::{End, Ended, PATIENCE, Performance};
use crate::prepared::{Prepared, scratch};
use crate::promises::Promises;
use crate::shim::{Failure, How, Shim};

/// Stores that lives are over: so many lives after the one before, and whether the last one was not stopped.
const STORES: [(u32, bool); 4] = [(0, false), (1, false), (2, true), (6, false)];
/// Failures for one world.
const OF_A_WORLD: usize = 500;
/// More than there are processors, mostly: a life waits more than it works.
const SIDE_BY_SIDE: usize = 6;
/// What a life whose disk is full is given to go on.
const WAITS: Duration = Duration::from_secs(2);

/// Which calls fail.
#[derive(Clone, Copy, Debug)]
pub enum Calls {
    /// So many, drawn.
    Drawn(usize),
    /// Every one, in every way.
    Every,
    /// This one, so often.
    Again(Call, usize),
}

/// One that failed, as the report of a sweep names it: `2:ErrorForGood:217`.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    store: usize,
    failure: Failure,
}

impl FromStr for Call {
    type Err = String;

    fn from_str(text: &str) -> Result<Call, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [store, how, nth] = parts[..] else { return Err("write it as STORE:HOW:NTH".to_owned()) };
        let known = How::ALL.into_iter().find(|known| format!("{known:?}") == how);
        let how = known.ok_or_else(|| format!("{how} is none of {:?}", How::ALL))?;
        let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
        let store = number(store)? as usize;
        let of_stores = || format!("stores are 0 to {}", STORES.len() - 1);
        STORES.get(store).ok_or_else(of_stores)?;
        Ok(Call { store, failure: Failure { how, nth: number(nth)? } })
    }
}

/// How a life took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Exact,
    Halted,
    Aborted,
    Waits,
    /// It halted, and the next one says that everything has to start over.
    StartsOver,
}

/// A store, and which calls there are in a life over it.
struct Stage {
    store: Prepared,
    counted: [u64; 3],
}

/// What became of all of them.
#[derive(Default)]
struct Sum {
    lives: usize,
    failed: usize,
    cells: u64,
    outcomes: BTreeMap<(String, Outcome), usize>,
    codes: BTreeMap<String, usize>,
    /// The first violation.
    wrong: Option<String>,
}

/// Lets calls fail; returns what was wrong with the first life that was.
pub fn run(seed: u64, calls: Calls) -> Result<(), String> {
    let shim = match Shim::compile() {
        Ok(shim) => shim,
        Err(why) => {
            println!("skipped: sweep of file calls; the shim cannot be compiled here: {why}");
            return Ok(());
        }
    };
    let began = Instant::now();
    let sum = Mutex::new(Sum::default());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    match calls {
        Calls::Every => {
            let stages = stages(&shim, seed)?;
            let every = How::ALL.into_iter().flat_map(|how| {
                let over = stages.iter().enumerate();
                over.flat_map(move |(at, stage)| {
                    (1..=stage.counted[how.class()]).map(move |nth| (at, Failure { how, nth }))
                })
            });
            sweep(&shim, &stages, every, usize::MAX, &sum);
        }
        Calls::Again(Call { store, failure }, times) => {
            let stages = stages(&shim, seed)?;
            sweep(&shim, &stages, std::iter::repeat_n((store, failure), times), usize::MAX, &sum);
        }
        Calls::Drawn(failures) => {
            for first in (0..failures).step_by(OF_A_WORLD) {
                let stages = stages(&shim, seed.wrapping_add(first as u64))?;
                let drawn = std::iter::repeat_with(|| draw(&mut rng, &stages));
                sweep(&shim, &stages, drawn, failures.min(first + OF_A_WORLD), &sum);
            }
        }
    }
    let sum = sum.into_inner().unwrap();
    println!("{}", sum.shown(began.elapsed()));
    sum.wrong.map_or(Ok(()), Err)
}

fn stages(shim: &Shim, world: u64) -> Result<Vec<Stage>, String> {
    let mut stages: Vec<Stage> = Vec::new();
    for (lives, unstopped) in STORES {
        let store = match stages.last() {
            None => Prepared::new(world).after(lives, unstopped)?,
            Some(last) => last.store.after(lives, unstopped)?,
        };
        let copy = scratch();
        let data = copy.path().join("data");
        store.copy_to(&data);
        let counting = Failure { how: How::Error, nth: 0 };
        let clean = Performance { failure: Some((shim, counting)), ..Performance::of(&data, world, &store.promises) };
        let ended = clean.run();
        let Ended { end: End::Exact, broken: None, tally: Some(tally), .. } = &ended else {
            return Err(format!("world {world}: {ended:?}"));
        };
        stages.push(Stage { store, counted: tally.counted });
    }
    Ok(stages)
}

fn draw(rng: &mut ChaCha8Rng, stages: &[Stage]) -> (usize, Failure) {
    let at = rng.random_range(0..stages.len());
    let how = *How::ALL.choose(rng).unwrap();
    (at, Failure { how, nth: rng.random_range(1..=stages[at].counted[how.class()]) })
}

/// Lives side by side, until the failures are exhausted or enough.
fn sweep(
    shim: &Shim,
    stages: &[Stage],
    failures: impl Iterator<Item = (usize, Failure)> + Send,
    enough: usize,
    sum: &Mutex<Sum>,
) {
    let failures = Mutex::new(failures);
    let next = || {
        let over = |sum: &Sum| sum.failed >= enough || sum.wrong.is_some();
        if over(&sum.lock().unwrap()) { None } else { failures.lock().unwrap().next() }
    };
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                while let Some((at, failure)) = next() {
                    let tried = survive(shim, &stages[at].store, failure);
                    sum.lock().unwrap().add(at, failure, tried);
                }
            });
        }
    });
}

/// What a life with a failure and the one after it came to.
struct Survived {
    /// The call, where it was met.
    failed: Option<String>,
    outcome: Outcome,
    codes: Vec<String>,
    cells: u64,
}

fn survive(shim: &Shim, store: &Prepared, failure: Failure) -> Result<Survived, String> {
    let copy = scratch();
    let data = copy.path().join("data");
    store.copy_to(&data);
    survive_in(&data, shim, store, failure).inspect_err(|_| {
        bundle::keep("before", &store.data());
        bundle::keep("data", &data);
    })
}

fn survive_in(data: &Path, shim: &Shim, store: &Prepared, failure: Failure) -> Result<Survived, String> {
    let mut promises = store.promises.clone();
    let patience = if failure.how.is_no_space() { WAITS } else { PATIENCE };
    let spoilt =
        Performance { failure: Some((shim, failure)), patience, ..Performance::of(data, store.world, &promises) };
    let ended = spoilt.run();
    let failed = ended.tally.as_ref().and_then(|tally| tally.failed.clone());
    let (outcome, codes) = judge(&ended, failed.is_some(), failure.how).map_err(|why| format!("{failed:?}: {why}"))?;
    ended.add_to(&mut promises);
    let after = Performance::of(data, store.world, &promises).run();
    if starts_over(&promises, failed.as_deref(), &after) {
        return Ok(Survived { failed, outcome: Outcome::StartsOver, codes, cells: 0 });
    }
    let clean = after.end == End::Exact && after.broken.is_none() && after.refused().next().is_none();
    if !clean {
        return Err(format!("{failed:?}, {outcome:?} {codes:?}, and the next: {after:?}\n  after: {ended:?}"));
    }
    Ok(Survived { failed, outcome, codes, cells: ended.cells() + after.cells() })
}

/// What is known, and honest: rows of an initial snapshot are taken in as files, and where the manifest's sync fails then, RocksDB
/// removes the file and leaves its entry. Nothing was acknowledged yet, and the next start refuses.
fn starts_over(promises: &Promises, failed: Option<&str>, after: &Ended) -> bool {
    let of_manifest = failed.is_some_and(|call| call.contains("sync") && call.contains("MANIFEST"));
    let refuses = matches!(&after.end, End::Halted(why) if why.starts_with("data_damaged"));
    promises.durable == 0 && of_manifest && refuses
}

fn judge(ended: &Ended, failed: bool, how: How) -> Result<(Outcome, Vec<String>), String> {
    if let Some(broken) = &ended.broken {
        return Err(broken.clone());
    }
    let refused: Vec<String> = ended.refused().map(str::to_owned).collect();
    let unknown = |code: &String| !failed || !documented(code);
    if refused.iter().any(unknown) {
        return Err(format!("refused: {ended:?}"));
    }
    match &ended.end {
        End::Exact => Ok((Outcome::Exact, refused)),
        End::Halted(why) if failed && documented(why.split(' ').next().unwrap()) => {
            Ok((Outcome::Halted, vec![why.split(' ').next().unwrap().to_owned()]))
        }
        End::Aborted => Ok((Outcome::Aborted, Vec::new())),
        End::Silent if failed && how.is_no_space() => Ok((Outcome::Waits, Vec::new())),
        _ => Err(format!("{ended:?}")),
    }
}

impl Sum {
    fn add(&mut self, store: usize, failure: Failure, tried: Result<Survived, String>) {
        self.lives += 1;
        match tried {
            Ok(Survived { failed, outcome, codes, cells }) => {
                self.cells += cells;
                if failed.is_some() {
                    self.failed += 1;
                    *self.outcomes.entry((format!("{:?}", failure.how), outcome)).or_default() += 1;
                    codes.into_iter().for_each(|code| *self.codes.entry(code).or_default() += 1);
                }
            }
            Err(why) => drop(self.wrong.get_or_insert(format!("{store}:{:?}:{}: {why}", failure.how, failure.nth))),
        }
    }

    fn shown(&self, took: Duration) -> String {
        let of = |outcome: Outcome| {
            self.outcomes.iter().filter(|((_, one), _)| *one == outcome).map(|(_, n)| n).sum::<usize>()
        };
        let mut text = format!(
            "{} failed file calls in {} lives, each followed by one without, in {:.0} s: {} went on exactly, {} halted with a \
             code, {} were ended in the call, {} waited for space, {} have to start over; {} cells compared",
            self.failed,
            self.lives,
            took.as_secs_f64(),
            of(Outcome::Exact),
            of(Outcome::Halted),
            of(Outcome::Aborted),
            of(Outcome::Waits),
            of(Outcome::StartsOver),
            self.cells
        );
        for how in How::ALL.map(|how| format!("{how:?}")) {
            let outcomes = self.outcomes.iter().filter(|((one, _), _)| *one == how);
            let shown: Vec<String> = outcomes.map(|((_, outcome), count)| format!("{count} {outcome:?}")).collect();
            text.push_str(&format!("\n  {how}: {}", shown.join(", ")));
        }
        text + &format!("\n  codes: {:?}", self.codes)
    }
}
