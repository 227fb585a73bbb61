//! Every failpoint: a life that does everything there is to do aborts at it, and the next one has every cell. A failpoint that
//! no life reaches is a failure: it tests nothing.

use engine::torture::Failpoint;
use rand::Rng;

use crate::bench::Bench;
use crate::process::{End, Fate, Life};

/// Goes through all failpoints so many times; returns what was wrong.
pub async fn run(bench: &mut Bench, rounds: u64) -> Vec<String> {
    let mut failures = Vec::new();
    let mut reached = 0;
    for round in 0..rounds {
        for point in Failpoint::ALL {
            let nth = if round == 0 { 1 } else { bench.rng.random_range(2..12) };
            bench.begin_anew().await;
            let mut life = bench.life(&Fate { failpoint: Some((point, nth)), ..Fate::default() });
            match everything(bench, &mut life).await {
                Err(End::Aborted) => reached += 1,
                Err(End::Halted(why) | End::Silent(why) | End::Violated(why)) => {
                    note(&mut failures, format!("{point:?}:{nth}: {why}"));
                }
                Ok(()) if round == 0 => note(&mut failures, format!("{point:?} is never reached")),
                Ok(()) => {}
            }
            drop(life);
            if let Err(end) = bench.survives().await {
                note(&mut failures, format!("after {point:?}:{nth}: {end:?}"));
            }
        }
        println!(
            "{} failpoints, {} times: {reached} deaths at them, {} failures",
            Failpoint::ALL.len(),
            round + 1,
            failures.len()
        );
    }
    failures
}

/// Said at once: a long run may be ended by hand.
fn note(failures: &mut Vec<String>, failure: String) {
    println!("{failure}");
    failures.push(failure);
}

async fn everything(bench: &mut Bench, life: &mut Life) -> Result<(), End> {
    bench.begin(life).await?;
    life.ask("late late", "done")?;
    life.ask("live late", "done")?;
    life.ask("rebuild late", "done")?;
    bench.compare(life).await?;
    bench.sql("TRUNCATE payments").await;
    bench.compare(life).await?;
    life.ask("drop late", "done")?;
    bench.acknowledged(life).await?;
    life.ask("stop", "stopped")?;
    // It makes everything durable before it ends.
    match life.hears("nothing more") {
        Err(End::Violated(why)) if why.starts_with("exit status: 0") => Ok(()),
        ended => ended.map(drop),
    }
}
