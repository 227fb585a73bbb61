//! Mistakes planted in the engine, in simulations and in lives like all others: one that is not found shows that this harness is
//! blind there.

use engine::torture::Bug;
use rand::seq::IndexedRandom;

use crate::bench::Bench;
use crate::{nemesis, power_cut, simulate, tracer};

/// Lives within which a mistake has to be found.
const LIVES: u64 = 100;

/// Mistakes that a simulation alone is asked to find: in lives the moments at which they show are too rare.
const SIMULATED_ONLY: [Bug; 3] = [Bug::AnswersUnsynced, Bug::FillsFromNow, Bug::EvictsUncommitted];

/// Plants every mistake in simulations; returns those that were not found.
pub fn simulated(from: u64) -> Vec<String> {
    let found = |bug: &Bug| match simulate::find(*bug, from) {
        None => Some(format!("{bug:?} is not found in {} simulated histories", simulate::AT_MOST)),
        Some((seeds, said)) => {
            println!("{bug:?}: found within {seeds} simulated histories; {}", brief(&said));
            None
        }
    };
    Bug::ALL.iter().filter_map(found).collect()
}

/// Plants so many mistakes, drawn from those that lives can find, with so many seeds; returns those that were not found.
pub async fn run(bench: &mut Bench, mistakes: usize, seeds: u64) -> Vec<String> {
    let mut missed = Vec::new();
    let findable: Vec<Bug> = Bug::ALL.into_iter().filter(|bug| !SIMULATED_ONLY.contains(bug)).collect();
    let drawn: Vec<Bug> = findable.choose_multiple(&mut bench.rng, mistakes).copied().collect();
    for bug in drawn {
        // Whatever the kernel was given survives a kill.
        let by_power = bug == Bug::AcknowledgesUnsynced;
        if by_power && let Some(why) = tracer::why_not() {
            println!("skipped: {bug:?}; nothing can be traced here: {why}");
            continue;
        }
        let mut found_after: Vec<u64> = Vec::new();
        let mut said = String::new();
        for _ in 0..seeds {
            let lived = if by_power {
                power_cut::run(bench, LIVES, Some(bug)).await
            } else {
                nemesis::run(bench, LIVES, Some(bug)).await
            };
            match lived {
                Ok(()) => missed.push(format!("{bug:?} is not found in {LIVES} lives")),
                Err(why) => {
                    found_after.extend(
                        why.split(' ').filter_map(|word| word.trim_end_matches(':').parse::<u64>().ok()).next(),
                    );
                    said = why;
                }
            }
        }
        found_after.sort_unstable();
        let lives = found_after.get(found_after.len() / 2).copied().unwrap_or_default();
        println!(
            "{bug:?}: found in {} of {seeds}, after {lives} {}; {}",
            found_after.len(),
            if by_power { "cuts" } else { "lives" },
            brief(&said)
        );
    }
    missed
}

fn brief(said: &str) -> String {
    said.replace('\n', " ").chars().take(300).collect()
}
