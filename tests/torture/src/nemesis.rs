//! Lives that end at random moments: by `kill -9` after a time that is short more often than long, or at a failpoint. What a
//! life does meanwhile is drawn too.

use std::time::Duration;

use engine::torture::{Bug, Failpoint};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use crate::bench::Bench;
use crate::process::{End, Fate, Life};
use crate::support::shop::RESTS;

/// Lives from one initial snapshot to the next.
pub const GENERATION: u64 = 12;
/// Lives after which it is said how far a long run is.
const SAID_AFTER: u64 = 1_000;
/// A life that does not get to its failpoint is killed after this.
const LONGEST: Duration = Duration::from_millis(600);

/// Runs so many lives, each compared with Postgres; returns what was wrong with the first that was.
pub async fn run(bench: &mut Bench, cycles: u64, planted: Option<Bug>) -> Result<(), String> {
    let (mut cells, mut aborted) = (0, 0);
    for cycle in 0..cycles {
        if cycle % SAID_AFTER == 0 && cycle > 0 {
            println!("{cycle} lives so far, {aborted} ended at failpoints; {cells} cells compared");
        }
        if cycle % GENERATION == 0 {
            begin_generation(bench, planted).await;
        }
        let failpoint = failpoint(&mut bench.rng, planted);
        match one(bench, &Fate { planted, failpoint, tracer: None }).await {
            Ok((compared, true)) => (cells, aborted) = (cells + compared, aborted + 1),
            Ok((compared, false)) => cells += compared,
            Err(why) => return Err(format!("life {} of {cycles}, {failpoint:?}: {why}", cycle + 1)),
        }
    }
    // The last death, too, has to be survived.
    let mut life = bench.life(&Fate { planted, ..Fate::default() });
    match bench.begin(&mut life).await {
        Ok(compared) => println!(
            "{cycles} lives, {aborted} ended at failpoints, the others by kill -9; {} cells compared",
            cells + compared
        ),
        Err(end) => return Err(format!("after life {cycles}: {end:?}")),
    }
    Ok(())
}

/// Everything anew, with writers of another pace. Mistakes are looked for where they are likeliest.
pub async fn begin_generation(bench: &mut Bench, planted: Option<Bug>) {
    bench.begin_anew().await;
    let drawn = *RESTS.choose(&mut bench.rng).unwrap();
    if planted.is_none() {
        bench.rest(drawn);
    }
}

/// Where a life aborts, if it does; where a mistake is planted that shows nowhere else, there.
pub fn failpoint(rng: &mut ChaCha8Rng, planted: Option<Bug>) -> Option<(Failpoint, u64)> {
    let drawn = rng
        .random_bool(0.4)
        .then(|| (Failpoint::ALL[rng.random_range(0..Failpoint::ALL.len())], 1 << rng.random_range(0..8)));
    match planted {
        // The only moment at which it shows is short.
        Some(Bug::KeepsHalfAFilling) => Some((Failpoint::Filled, 1)),
        Some(Bug::AcknowledgesReceived) => Some((Failpoint::BatchBuilt, rng.random_range(16..64))),
        // Before that there is nothing to lose, and soon after it a registration syncs everything.
        Some(Bug::AcknowledgesUnsynced) => Some((Failpoint::Acknowledged, rng.random_range(1..6))),
        _ => drawn,
    }
}

/// One life: compared first, which looks at what the one before left. Returns how many cells there were, and whether it ended
/// at its failpoint.
pub async fn one(bench: &mut Bench, fate: &Fate) -> Result<(u64, bool), String> {
    let mut life = bench.life(fate);
    let began = begin(bench, &mut life).await;
    let compared = match began {
        Ok(compared) => compared,
        Err(End::Aborted) => return Ok((0, true)),
        Err(End::Halted(why) | End::Silent(why) | End::Violated(why)) => return Err(why),
    };
    let time = if fate.failpoint.is_some() {
        LONGEST
    } else {
        // Between 1 and 800 ms, evenly over the orders of magnitude.
        Duration::from_secs_f64(0.001 * 800f64.powf(bench.rng.random_range(0.0..1.0)))
    };
    if life.aborts_within(time)? {
        return Ok((compared, true));
    }
    life.kill();
    Ok((compared, false))
}

async fn begin(bench: &mut Bench, life: &mut Life) -> Result<u64, End> {
    let compared = bench.begin(life).await?;
    match bench.rng.random_range(0..5) {
        0 => drop(life.ask("rebuild by_day", "done")?),
        1 => {
            life.ask("late late", "done")?;
            life.ask("drop late", "done")?;
        }
        2 => bench.sql("TRUNCATE payments").await,
        _ => drop(life.ask("late late", "done")?),
    }
    Ok(compared)
}
