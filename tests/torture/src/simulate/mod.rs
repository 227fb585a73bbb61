//! Deterministic simulation: an engine whose every step is a choice of the seed's (`engine::simulation`), over a slot and callers that
//! are simulated too. What one seed did it does again, interleaving included. No Postgres, no clock, no network; the store is the real
//! one, and what a crash leaves of it is in `wreck`.
//!
//! Seeds are shared among processes, one for each processor: what the engine is told of its failpoints is one of a process.

mod done;
mod peek;
mod slot;
mod world;
mod wreck;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use engine::torture::Bug;

use self::done::Done;
use self::world::Limits;
use crate::prepared::scratch;

/// Of so many seeds one is run twice, and has to do the same.
const TWICE: u64 = 25;
/// Seeds after which it is said how far a long run is.
const AT_A_TIME: u64 = 20_000;
/// Seeds within which a planted mistake has to be found, and those that are tried at once.
pub const AT_MOST: u64 = 2_000;
const AT_ONCE: u64 = 20;

/// Runs so many seeds from one on, says now and then what was done; returns what was wrong with the first that was.
pub fn run(from: u64, seeds: u64) -> Result<(), String> {
    let mut all = Done::default();
    for first in (0..seeds).step_by(AT_A_TIME as usize) {
        let end = seeds.min(first + AT_A_TIME);
        all.add(share(from + first, end - first, None)?);
        println!("{end} simulated histories: {all}");
    }
    Ok(())
}

/// Plants a mistake; returns after how many seeds, about, it was found, and what was wrong then.
pub fn find(bug: Bug, from: u64) -> Option<(u64, String)> {
    (0..AT_MOST).step_by(AT_ONCE as usize).find_map(|tried| {
        let wrong = share(from + tried, AT_ONCE, Some(bug)).err()?;
        Some((tried + AT_ONCE, wrong))
    })
}

/// Shares seeds among processes.
fn share(from: u64, seeds: u64, planted: Option<Bug>) -> Result<Done, String> {
    let processes = std::thread::available_parallelism().map_or(1, |count| count.get() as u64).min(seeds.max(1));
    let children: Vec<_> = (0..processes)
        .map(|index| {
            let (first, end) = (from + seeds * index / processes, from + seeds * (index + 1) / processes);
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["simulated", &first.to_string(), &(end - first).to_string(), &index.to_string()]);
            if let Some(bug) = planted {
                command.env("TIDEMARK_PLANTED", format!("{bug:?}"));
            }
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut all = Done::default();
    let mut wrong = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        match said.lines().last().and_then(|line| Done::parse(line.strip_prefix("done ")?)) {
            Some(done) if output.status.success() => all.add(done),
            _ => wrong.push(format!("{said}{}{}", String::from_utf8_lossy(&output.stderr), output.status)),
        }
    }
    wrong.into_iter().next().map_or(Ok(all), Err)
}

/// Runs these seeds in this process; says at the end what was done, or which seed went wrong and how.
pub fn child(from: u64, seeds: u64) -> ExitCode {
    let mut all = Done::default();
    for seed in from..from + seeds {
        let mut done = Done::default();
        let mut outcome = simulate(seed, Limits::NONE, &mut done);
        if outcome.is_ok() && seed % TWICE == 0 {
            let mut again = Done::default();
            outcome = simulate(seed, Limits::NONE, &mut again);
            if outcome.is_ok() && again.trace != done.trace {
                outcome = Err("it does not do the same again".to_owned());
            }
        }
        if let Err(why) = outcome {
            let steps = shrink(seed, done.steps);
            println!("seed {seed}: {why}\nits beginning is enough: torture tell {seed} {steps}");
            return ExitCode::FAILURE;
        }
        all.add(done);
    }
    println!("done {}", all.print());
    ExitCode::SUCCESS
}

/// The fewest steps, about, after which a history that is brought to its end goes wrong.
fn shrink(seed: u64, steps: u64) -> u64 {
    let (mut right, mut wrong) = (0, steps);
    while right + 1 < wrong {
        let middle = right.midpoint(wrong);
        match simulate(seed, Limits { steps: middle, told: false }, &mut Done::default()) {
            Ok(()) => right = middle,
            Err(_) => wrong = middle,
        }
    }
    wrong
}

/// Prints every step of the beginning of a history, and how it ended.
pub fn tell(seed: u64, steps: u64) -> ExitCode {
    let outcome = simulate(seed, Limits { steps, told: true }, &mut Done::default());
    println!("{outcome:?}");
    ExitCode::from(u8::from(outcome.is_err()))
}

fn simulate(seed: u64, limits: Limits, done: &mut Done) -> Result<(), String> {
    let directory = scratch();
    let run = AssertUnwindSafe(|| in_held_time(seed, limits, directory.path(), done));
    std::panic::catch_unwind(run).unwrap_or_else(|_| Err("it panicked".to_owned()))
}

fn in_held_time(seed: u64, limits: Limits, directory: &Path, done: &mut Done) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(world::run(seed, limits, directory, done))
}
