//! Whole lives of engine and connector over a real Postgres that is being written to. Each life is a process of its own and
//! is ended by `kill -9`, or aborts itself at a failpoint; the next one has to have every cell as Postgres' `GROUP BY` has it.
//!
//! ```text
//! torture (this process)                    life (a child, killed again and again)
//!   Postgres of its own                       engine + connector over one data directory
//!   writers: Shop                             reader: every Snapshot, no half transaction, no way back
//!   nemesis, seeded        -- a line in -->   register, late, rebuild, drop, compare, stop
//!   verdict                <-- a line out --  what became of it; or it dies, and says why
//! ```
//!
//! `strace` before a life makes two more nemeses: the power goes (`power_cut`), and single file calls fail (`file_calls`).
//! Two more need no Postgres, and lives of theirs (`script`) are short: every file call fails (`io_sweep`), files are damaged
//! (`corrupt`).
//!
//! A tester that is not tested counts for nothing: `self-test` plants mistakes in the engine (`engine::torture::Bug`) and
//! fails where one is not found. `sweep` fails where a failpoint is never reached.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod bench;
mod bundle;
mod corrupt;
mod damage;
mod disk;
mod file_calls;
mod io_sweep;
mod journal;
mod life;
mod nemesis;
mod performance;
mod power_cut;
mod prepared;
mod process;
mod processor;
mod promises;
mod replay;
mod script;
mod self_test;
mod shim;
mod simulate;
mod sweep;
mod tracer;

/// What the integration tests share, as far as it is needed here.
#[allow(dead_code)]
#[path = "../../support"]
mod support {
    pub mod cells;
    pub mod embedded;
    pub mod model;
    pub mod shop;
    pub mod sql;
    pub mod upstream;
}

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

use bench::Bench;
use io_sweep::{Call, Calls};
use script::Script;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: What,
    /// Choices are repeated with it, though not the timing.
    #[arg(long, global = true)]
    seed: Option<u64>,
    /// Where the directories of a failure are kept.
    #[arg(long, global = true)]
    keep: Option<PathBuf>,
}

#[derive(Subcommand)]
enum What {
    /// Lives that end at random moments.
    Run {
        /// How many.
        #[arg(long, default_value_t = 40)]
        cycles: u64,
    },
    /// Every failpoint: reached, and survived.
    Sweep {
        /// So often each: the first time at the first hit, then at random ones.
        #[arg(long, default_value_t = 2)]
        rounds: u64,
    },
    /// Every planted mistake: found.
    SelfTest {
        /// With so many seeds.
        #[arg(long, default_value_t = 1)]
        seeds: u64,
    },
    /// The power is cut, again and again.
    PowerCut {
        /// So often.
        #[arg(long, default_value_t = CUTS)]
        cuts: u64,
    },
    /// File calls of the store fail.
    FileCalls {
        /// So many.
        #[arg(long, default_value_t = FAILURES)]
        failures: u64,
    },
    /// Lives in one process whose every step is a choice of the seed's, over a simulated slot.
    Simulate {
        /// How many seeds, from the one stated on.
        #[arg(long, default_value_t = SIMULATIONS)]
        seeds: u64,
    },
    /// The beginning of a simulated history, step by step: what a failure says to repeat.
    Tell {
        /// Its seed.
        history: u64,
        /// Steps after which it is brought to its end.
        steps: u64,
    },
    /// Every file call of a life without Postgres fails, or so many of them.
    IoSweep {
        /// So many, drawn.
        #[arg(long, default_value_t = SWEPT)]
        failures: usize,
        /// Every call of every store, in every way.
        #[arg(long, conflicts_with = "again")]
        every: bool,
        /// So often the one that a failure names, STORE:HOW:NTH. Threads make their calls in no order of ours, so it may be another.
        #[arg(long)]
        again: Option<Call>,
    },
    /// A failure of lives over Postgres that was kept is looked at again.
    Replay {
        /// Where it was kept.
        kept: PathBuf,
    },
    /// Files of a stopped store are damaged.
    Corrupt {
        /// So many.
        #[arg(long, default_value_t = DAMAGES)]
        damages: usize,
    },
    /// What the ordinary test run does: all of them, briefly.
    Ci,
    /// One life; started by the others.
    #[command(hide = true)]
    Life {
        /// The data directory.
        data: PathBuf,
        /// Postgres.
        url: String,
    },
    /// Seeds of a simulation; started by the others.
    #[command(hide = true)]
    Simulated {
        /// The first.
        from: u64,
        /// How many.
        seeds: u64,
        /// On which of the processors, from 0.
        processor: usize,
    },
    /// One life without Postgres; started by the others.
    #[command(hide = true)]
    Script(Script),
}

/// In the ordinary run; `crash` has 65 lives more.
const LIVES: u64 = 235;
const CUTS: u64 = 100;
const FAILURES: u64 = 50;
const SWEPT: usize = 500;
const DAMAGES: usize = 400;
const SIMULATIONS: u64 = 20_000;
/// Of those that lives can find; a simulation has to find all of them each time.
const MISTAKES: usize = 3;

fn main() -> ExitCode {
    let Arguments { command, seed, keep } = Arguments::parse();
    keep.into_iter().for_each(bundle::keep_in);
    match &command {
        What::Life { data, url } => {
            life::run(data, url);
            return ExitCode::SUCCESS;
        }
        What::Script(script) => return script::run(script),
        What::Simulated { from, seeds, processor } => {
            processor::stay_on(*processor);
            processor::be_last();
            return simulate::child(*from, *seeds);
        }
        What::Tell { history, steps } => return simulate::tell(*history, *steps),
        What::Replay { kept } => return replay::run(kept),
        _ => {}
    }
    let seed = seed.unwrap_or_else(|| chrono::Utc::now().timestamp() as u64);
    println!("seed {seed}");
    let began = Instant::now();
    // Beside one another: lives over Postgres wait a quarter of their time.
    let failures = std::thread::scope(|scope| {
        let without = scope.spawn(|| without_postgres(&command, seed));
        let mut failures = with_postgres(&command, seed);
        failures.extend(without.join().unwrap());
        failures
    });
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    if !failures.is_empty() {
        bundle::note(seed, &failures);
    }
    println!(
        "torture: {} in {:.0} s, seed {seed}",
        if failures.is_empty() { "ok" } else { "FAILED" },
        began.elapsed().as_secs_f64()
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What needs no Postgres; returns everything that was wrong.
fn without_postgres(command: &What, seed: u64) -> Vec<String> {
    let mut failures = Vec::new();
    match *command {
        What::Simulate { seeds } => failures.extend(simulate::run(seed, seeds).err()),
        What::IoSweep { again: Some(call), failures: times, .. } => {
            failures.extend(io_sweep::run(seed, Calls::Again(call, times)).err());
        }
        What::IoSweep { every: true, .. } => failures.extend(io_sweep::run(seed, Calls::Every).err()),
        What::IoSweep { failures: calls, .. } => failures.extend(io_sweep::run(seed, Calls::Drawn(calls)).err()),
        What::Corrupt { damages } => failures.extend(corrupt::run(seed, damages).err()),
        What::SelfTest { .. } => failures.extend(self_test::simulated(seed)),
        What::Ci => {
            failures.extend(simulate::run(seed, SIMULATIONS).err());
            failures.extend(self_test::simulated(seed));
            failures.extend(io_sweep::run(seed, Calls::Drawn(SWEPT)).err());
            failures.extend(corrupt::run(seed, DAMAGES).err());
        }
        _ => {}
    }
    failures
}

/// Returns everything that was wrong.
fn with_postgres(command: &What, seed: u64) -> Vec<String> {
    if matches!(command, What::Simulate { .. } | What::IoSweep { .. } | What::Corrupt { .. }) {
        return Vec::new();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut bench = Bench::open(seed).await;
        let mut failures = Vec::new();
        match *command {
            What::Run { cycles } => failures.extend(nemesis::run(&mut bench, cycles, None).await.err()),
            What::Sweep { rounds } => failures.extend(sweep::run(&mut bench, rounds).await),
            What::SelfTest { seeds } => failures.extend(self_test::run(&mut bench, usize::MAX, seeds).await),
            What::PowerCut { cuts } => failures.extend(cut_power(&mut bench, cuts).await.err()),
            What::FileCalls { failures: calls } => failures.extend(fail_calls(&mut bench, calls).await.err()),
            What::Ci => {
                failures.extend(nemesis::run(&mut bench, LIVES, None).await.err());
                failures.extend(sweep::run(&mut bench, 1).await);
                failures.extend(cut_power(&mut bench, CUTS).await.err());
                failures.extend(fail_calls(&mut bench, FAILURES).await.err());
                failures.extend(self_test::run(&mut bench, MISTAKES, 1).await);
            }
            // Those without Postgres.
            _ => {}
        }
        if failures.is_empty() {
            bench.close().await;
        } else {
            bench.keep();
        }
        failures
    })
}

async fn cut_power(bench: &mut Bench, cuts: u64) -> Result<(), String> {
    match tracer::why_not() {
        Some(why) => println!("skipped: power cuts; nothing can be traced here: {why}"),
        None => power_cut::run(bench, cuts, None).await.map_err(|why| format!("power-cut --cuts {cuts}: {why}"))?,
    }
    Ok(())
}

async fn fail_calls(bench: &mut Bench, failures: u64) -> Result<(), String> {
    match tracer::why_not() {
        Some(why) => println!("skipped: failing file calls; nothing can be traced here: {why}"),
        None => {
            let failed = file_calls::run(bench, failures).await;
            failed.map_err(|why| format!("file-calls --failures {failures}: {why}"))?;
        }
    }
    Ok(())
}
