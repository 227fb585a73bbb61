//! What the threads of the engine share, in very many orders of their steps: the engine's own files, over locks and atomics
//! that a scheduler of shuttle takes one at a time, drawn at random or with few changes of thread at the worst places (PCT).
//!
//! `TIDEMARK_SCHEDULES` of each check, 10,000 unless stated. A failure prints its schedule; that one is tried again with
//! `TIDEMARK_SCHEDULE=... cargo test --release -p schedules NAME`. The mistakes of `build.rs` are found by the same checks.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod checks;
mod snapshot;

// What the files below name of the engine and do not share.
use ::engine::{change, engine, free_space, materialization, scrubber, source, torture};
use schedules as sync;

#[path = "../../../../engine/src/boundary.rs"]
mod boundary;
#[path = "../../../../engine/src/published.rs"]
mod published;
#[path = "../../../../engine/src/shared.rs"]
mod shared;
#[path = "../../../../engine/src/watermark.rs"]
mod watermark;

#[allow(clippy::all, unused_imports)]
mod mistakes {
    use super::*;

    include!(concat!(env!("OUT_DIR"), "/mistakes.rs"));
}

use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// Schedules of each check.
const SCHEDULES: usize = 10_000;
/// How often as many are tried to find a mistake. One search finds each, as the engine is now.
const SEARCHES: u64 = 10;
/// Changes of thread that PCT places. A mistake between two threads needs one or two.
const CHANGES: usize = 3;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Tries so many schedules, half of them of each kind; counts those that it has begun, for where it panics.
fn try_schedules(schedules: usize, seed: u64, begun: &Arc<AtomicUsize>, check: fn()) {
    let random = RandomScheduler::new_from_seed(seed, schedules / 2);
    let placed = PctScheduler::new_from_seed(seed, CHANGES, schedules - schedules / 2);
    let counted = |begun: Arc<AtomicUsize>| {
        move || {
            begun.fetch_add(1, Ordering::Relaxed);
            check();
        }
    };
    Runner::new(random, Config::default()).run(counted(Arc::clone(begun)));
    Runner::new(placed, Config::default()).run(counted(Arc::clone(begun)));
}

fn explore(name: &str, check: fn()) {
    if let Ok(schedule) = std::env::var("TIDEMARK_SCHEDULE") {
        return shuttle::replay(check, &schedule);
    }
    let seed = number("TIDEMARK_SEED").unwrap_or_else(|| RandomState::new().hash_one(name));
    let schedules = number("TIDEMARK_SCHEDULES").map_or(SCHEDULES, |schedules| schedules as usize);
    let (started, begun) = (Instant::now(), Arc::default());
    println!("{name}: seed {seed}");
    try_schedules(schedules, seed, &begun, check);
    println!("{} schedules in {:.1} s", begun.load(Ordering::Relaxed), started.elapsed().as_secs_f64());
}

#[test]
fn whoever_is_told_finds_it() {
    explore("whoever_is_told_finds_it", checks::whoever_is_told_finds_it);
}

#[test]
fn whoever_waits_is_woken() {
    explore("whoever_waits_is_woken", checks::whoever_waits_is_woken);
}

#[test]
fn a_live_answer_misses_nothing() {
    explore("a_live_answer_misses_nothing", checks::a_live_answer_misses_nothing);
}

#[test]
fn whoever_learns_of_the_end_learns_why() {
    explore("whoever_learns_of_the_end_learns_why", checks::whoever_learns_of_the_end_learns_why);
}

#[test]
fn whoever_watches_finds_the_boundary() {
    explore("whoever_watches_finds_the_boundary", checks::whoever_watches_finds_the_boundary);
}

#[test]
fn after_a_start_nobody_is_taken_back() {
    explore("after_a_start_nobody_is_taken_back", checks::after_a_start_nobody_is_taken_back);
}

#[test]
fn every_planted_mistake_is_found() {
    let mut missed = Vec::new();
    for (name, check, mistaken) in mistakes::ALL {
        let begun = Arc::default();
        let search = || (0..SEARCHES).for_each(|seed| try_schedules(SCHEDULES, seed, &begun, mistaken));
        match catch_unwind(AssertUnwindSafe(search)) {
            Err(_) => println!("found: {name} by {check}, after {}", begun.load(Ordering::Relaxed)),
            Ok(()) => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
