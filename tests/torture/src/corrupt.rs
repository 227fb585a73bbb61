//! Files of a stopped store are damaged, one each time, and the next life opens it. It refuses, halts, lets an aggregate say
//! that it is damaged, or is exact and has what was registered; never is a cell wrong.
//!
//! The surprise: a store that has silently lost its newest part is found out by upstream, which has forgotten what was
//! acknowledged. So lives are told how far that is (`slot_overtaken`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::bundle;
use crate::damage::Damage;
use crate::file_calls::documented;
use crate::performance::{End, Ended, Performance};
use crate::prepared::{Prepared, scratch};

/// Stores for one world: so many lives, and whether the last one was not stopped.
const STORES: [(u32, bool); 4] = [(1, false), (2, true), (4, false), (5, true)];
/// Damages for one world.
const OF_A_WORLD: usize = 200;
/// More than there are processors, mostly: a life waits more than it works.
const SIDE_BY_SIDE: usize = 6;
/// Files that hold what is to be right, drawn more often than all others together.
const OF_MUCH_USE: [&str; 3] = ["sst", "log", "MANIFEST"];

/// How the next life took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Nothing was to be seen of it.
    Exact,
    /// Everything that answers is exact; aggregates say that they are damaged.
    Unanswered,
    /// It opened, and halted.
    Halted,
    /// It did not open.
    Refused,
}

const OUTCOMES: [Outcome; 4] = [Outcome::Exact, Outcome::Unanswered, Outcome::Halted, Outcome::Refused];

/// A store, and the same before its last life.
struct Stage {
    store: Prepared,
    before: Prepared,
}

#[derive(Default)]
struct Sum {
    damaged: usize,
    cells: u64,
    of_files: BTreeMap<String, BTreeMap<Outcome, usize>>,
    of_damages: BTreeMap<Damage, BTreeMap<Outcome, usize>>,
    codes: BTreeMap<String, usize>,
    /// The first violation.
    wrong: Option<String>,
}

/// Damages so many files; returns what was wrong with the first life that was.
pub fn run(seed: u64, damages: usize) -> Result<(), String> {
    let began = Instant::now();
    let sum = Mutex::new(Sum::default());
    for first in (0..damages).step_by(OF_A_WORLD) {
        let world = seed.wrapping_add(first as u64);
        let stages = stages(world)?;
        let seeds = Mutex::new(first..damages.min(first + OF_A_WORLD));
        let next = || if sum.lock().unwrap().wrong.is_some() { None } else { seeds.lock().unwrap().next() };
        std::thread::scope(|scope| {
            for _ in 0..SIDE_BY_SIDE {
                scope.spawn(|| {
                    while let Some(number) = next() {
                        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ ((number as u64) << 32));
                        let stage = stages.choose(&mut rng).unwrap();
                        Spoilt::of(stage, &mut rng).judge(stage, number, &sum);
                    }
                });
            }
        });
    }
    let sum = sum.into_inner().unwrap();
    println!("{}", sum.shown(began.elapsed()));
    sum.wrong.map_or(Ok(()), Err)
}

fn stages(world: u64) -> Result<Vec<Stage>, String> {
    let staged = |(lives, unstopped): (u32, bool)| {
        let before = Prepared::new(world).after(lives - 1, false)?;
        Ok(Stage { store: before.after(1, unstopped)?, before })
    };
    STORES.into_iter().map(staged).collect()
}

impl Stage {
    /// What a file was before the last life; where it was not there, another one of its kind that was.
    fn earlier(&self, file: &Path, data: &Path, rng: &mut ChaCha8Rng) -> Option<PathBuf> {
        let before = self.before.data();
        let same = before.join(file.strip_prefix(data).unwrap());
        if same.exists() {
            return Some(same);
        }
        let of_its_kind: Vec<PathBuf> = files(&before).into_iter().filter(|other| kind(other) == kind(file)).collect();
        of_its_kind.choose(rng).cloned()
    }
}

/// A damaged store, opened.
struct Spoilt {
    file: String,
    damage: Damage,
    ended: Ended,
}

impl Spoilt {
    fn of(stage: &Stage, rng: &mut ChaCha8Rng) -> Spoilt {
        let copy = scratch();
        let data = copy.path().join("data");
        stage.store.copy_to(&data);
        let mut kinds: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        files(&data).into_iter().for_each(|file| kinds.entry(kind(&file)).or_default().push(file));
        loop {
            let often = rng.random_bool(0.75);
            let which: Vec<&String> =
                kinds.keys().filter(|kind| OF_MUCH_USE.contains(&kind.as_str()) == often).collect();
            let Some(which) = which.choose(rng) else { continue };
            let file = kinds[*which].choose(rng).unwrap();
            let damage = *Damage::ALL.choose(rng).unwrap();
            let before = stage.earlier(file, &data, rng);
            if damage.apply(file, before.as_deref(), rng).unwrap() {
                let ended = Performance::of(&data, stage.store.world, &stage.store.promises).run();
                if outcome(&ended).is_err() {
                    bundle::keep("before", &stage.store.data());
                    bundle::keep("data", &data);
                }
                return Spoilt { file: (*which).clone(), damage, ended };
            }
        }
    }

    fn judge(self, stage: &Stage, number: usize, sum: &Mutex<Sum>) {
        let mut sum = sum.lock().unwrap();
        match outcome(&self.ended) {
            Ok((outcome, codes)) => {
                sum.damaged += 1;
                sum.cells += self.ended.cells();
                *sum.of_files.entry(self.file).or_default().entry(outcome).or_default() += 1;
                *sum.of_damages.entry(self.damage).or_default().entry(outcome).or_default() += 1;
                codes.into_iter().for_each(|code| *sum.codes.entry(code).or_default() += 1);
            }
            Err(why) => {
                let store = format!("world {}, {} lives", stage.store.world, stage.store.lives);
                sum.wrong.get_or_insert(format!("damage {number}, {:?} of {}, {store}: {why}", self.damage, self.file));
            }
        }
    }
}

fn outcome(ended: &Ended) -> Result<(Outcome, BTreeSet<String>), String> {
    let mut codes: BTreeSet<String> = ended.refused().map(str::to_owned).collect();
    let opened = ended.lines.iter().any(|line| line.starts_with("resume") || line.starts_with("fresh"));
    let outcome = match &ended.end {
        End::Exact if ended.broken.is_some() => return Err(format!("{ended:?}")),
        End::Exact if codes.is_empty() => Outcome::Exact,
        End::Exact => Outcome::Unanswered,
        End::Halted(why) => {
            codes.extend(why.split(' ').next().map(str::to_owned));
            if opened { Outcome::Halted } else { Outcome::Refused }
        }
        _ => return Err(format!("{ended:?}")),
    };
    if codes.iter().all(|code| documented(code)) { Ok((outcome, codes)) } else { Err(format!("{ended:?}")) }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect();
    files.sort();
    files
}

/// The same for all files of one use.
fn kind(file: &Path) -> String {
    let name = file.file_name().unwrap().to_string_lossy();
    let extension = file.extension().filter(|_| name.starts_with(|c: char| c.is_ascii_digit()));
    extension.map_or_else(
        || name.split(|c: char| !c.is_ascii_uppercase()).next().unwrap().to_owned(),
        |extension| extension.to_string_lossy().into_owned(),
    )
}

impl Sum {
    fn shown(&self, took: Duration) -> String {
        let counts = |of: &BTreeMap<Outcome, usize>| {
            let shown: Vec<String> = of.iter().map(|(outcome, count)| format!("{count} {outcome:?}")).collect();
            shown.join(", ")
        };
        let of = |outcome: Outcome| self.of_damages.values().filter_map(|of| of.get(&outcome)).sum::<usize>();
        let all: BTreeMap<Outcome, usize> = OUTCOMES.into_iter().map(|outcome| (outcome, of(outcome))).collect();
        let mut text = format!(
            "{} damaged files in {:.0} s: {}; {} cells compared, none wrong",
            self.damaged,
            took.as_secs_f64(),
            counts(&all),
            self.cells
        );
        self.of_damages.iter().for_each(|(damage, of)| text.push_str(&format!("\n  {damage:?}: {}", counts(of))));
        self.of_files.iter().for_each(|(file, of)| text.push_str(&format!("\n  {file}: {}", counts(of))));
        text + &format!("\n  codes: {:?}", self.codes)
    }
}
