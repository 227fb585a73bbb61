//! Mistakes planted in the engine, each in lives like all others: one that is not found shows that this harness is blind there.

use engine::torture::Bug;

use crate::bench::Bench;
use crate::{nemesis, power_cut, tracer};

/// Lives within which a mistake has to be found.
const LIVES: u64 = 100;

/// Plants every mistake with so many seeds; returns those that were not found.
pub async fn run(bench: &mut Bench, seeds: u64) -> Vec<String> {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
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
            said.replace('\n', " ").chars().take(300).collect::<String>()
        );
    }
    missed
}
