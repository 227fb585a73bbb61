//! Lives in which a file call fails: one write, sync, rename or another of the store's, or all from one on, with EIO or ENOSPC.
//! A life goes on and is exact, or says with a code of the documentation that it cannot, or waits where a disk is full. The
//! next one, whose calls succeed, is exact whatever it was.
//!
//! Only calls on files of the data directory fail, by their names: those that there are, and the next ones the store will
//! give. Calls are counted for each thread. A life that never gets to its failure does not count.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::bench::Bench;
use crate::journal;
use crate::nemesis::GENERATION;
use crate::process::{End, Fate, Life};
use crate::tracer::{Failure, Tracer};

/// Calls that the store makes, those that decide more often.
const CALLS: [&str; 9] =
    ["write", "write", "fdatasync", "fdatasync", "fsync", "openat", "rename", "unlink", "ftruncate"];
/// Files that the store may name while a life lasts.
const AHEAD: u64 = 40;
/// What a life whose disk is full is given to go on.
const WAITS: Duration = Duration::from_secs(12);
/// Codes by which a life may say that it cannot go on.
const PROBLEMS: &str = include_str!("../../../docs/problems.md");

/// How a life took it.
#[derive(Debug)]
enum Outcome {
    Exact,
    Halted,
    Waits,
}

/// Lets so many calls fail; returns what was wrong with the first life that was.
pub async fn run(bench: &mut Bench, failures: u64) -> Result<(), String> {
    let beside = tempfile::tempdir().unwrap();
    let path = beside.path().join("journal");
    let (mut lives, mut failed, mut exact, mut halted) = (0, 0, 0, 0);
    while failed < failures {
        if lives % GENERATION == 0 {
            bench.begin_anew().await;
        }
        lives += 1;
        if lives > 20 * failures {
            return Err(format!("only {failed} calls fail in {lives} lives"));
        }
        let data = bench.data();
        let failure = draw(&mut bench.rng, &data);
        let shown = failure.to_string();
        let full = failure.error == "ENOSPC";
        let tracer = Tracer { journal: path.clone(), failure: Some(failure) };
        let mut life = bench.life(&Fate { tracer: Some(tracer), ..Fate::default() });
        if full {
            life.patience(WAITS);
        }
        let ended = endure(bench, &mut life).await;
        life.kill();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let hit = journal::failures(&text);
        let shown = format!("{shown} ({})", hit.first().unwrap_or(&"never"));
        let hit = !hit.is_empty();
        let outcome = judge(ended, hit, &shown).map_err(|why| format!("life {lives}, {shown}: {why}"))?;
        failed += u64::from(hit);
        match outcome {
            Outcome::Exact => exact += u64::from(hit),
            Outcome::Halted | Outcome::Waits => {
                halted += u64::from(matches!(outcome, Outcome::Halted));
                bench.survives().await.map_err(|end| format!("life {lives}, after {shown}: {end:?}"))?;
            }
        }
    }
    bench.survives().await.map_err(|end| format!("after life {lives}: {end:?}"))?;
    println!(
        "{failed} failed file calls in {lives} lives: {exact} went on exactly, {halted} halted with a code, {} waited for \
         space; all exact afterwards",
        failed - exact - halted
    );
    Ok(())
}

fn draw(rng: &mut ChaCha8Rng, data: &Path) -> Failure {
    Failure {
        call: CALLS[rng.random_range(0..CALLS.len())],
        error: if rng.random_bool(0.7) { "EIO" } else { "ENOSPC" },
        nth: 1 << rng.random_range(0..4),
        sticky: rng.random_bool(0.3),
        paths: paths(data),
    }
}

/// The files of the store, those to come included, and their directories.
fn paths(data: &Path) -> Vec<PathBuf> {
    let store = data.join("store");
    let named = std::fs::read_dir(&store).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let numbers = named.filter_map(|name| {
        let digits: String = name.to_str()?.chars().filter(char::is_ascii_digit).collect();
        // An older information log has the time in its name.
        digits.parse::<u64>().ok().filter(|number| *number < 1_000_000)
    });
    let newest = numbers.max().unwrap_or_default();
    let mut paths = vec![data.to_owned(), store.clone(), store.join("CURRENT")];
    paths.extend(["FORMAT", "FORMAT.new", "ANSWERED", "ANSWERED.new"].map(|name| data.join(name)));
    for number in newest.saturating_sub(AHEAD)..newest + AHEAD {
        for name in ["N.log", "N.sst", "N.dbtmp", "MANIFEST-N"] {
            paths.push(store.join(name.replace('N', &format!("{number:06}"))));
        }
    }
    paths.extend((0..8).map(|number| data.join(format!("snapshot/{number}.sst"))));
    paths
}

/// Everything there is to do, compared before and after.
async fn endure(bench: &mut Bench, life: &mut Life) -> Result<(), End> {
    bench.begin(life).await?;
    match bench.rng.random_range(0..4) {
        0 => drop(life.ask("rebuild by_day", "done")?),
        1 => bench.sql("TRUNCATE payments").await,
        _ => drop(life.ask("late late", "done")?),
    }
    // Two syncs.
    tokio::time::sleep(Duration::from_millis(bench.rng.random_range(0..450))).await;
    bench.compare(life).await?;
    if bench.rng.random_bool(0.3) {
        life.ask("stop", "stopped")?;
    }
    Ok(())
}

fn judge(ended: Result<(), End>, hit: bool, failure: &str) -> Result<Outcome, String> {
    match ended {
        Ok(()) => Ok(Outcome::Exact),
        Err(End::Halted(why)) if hit && documented(&why) => Ok(Outcome::Halted),
        Err(End::Silent(_)) if hit && failure.contains("ENOSPC") => Ok(Outcome::Waits),
        Err(end) => Err(format!("{end:?}")),
    }
}

/// Whether one of its words is a code.
pub fn documented(why: &str) -> bool {
    why.split(|c: char| !c.is_ascii_lowercase() && c != '_')
        .any(|word| word.contains('_') && PROBLEMS.contains(&format!("<a id=\"{word}\">")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_of_the_documentation_are_reasons_to_halt() {
        assert!(documented("exit status: 3: Halted { code: \"store_failed\", message"));
        assert!(!documented("exit status: 3: some_thing else"));
        let halted = |why: &str| judge(Err(End::Halted(why.to_owned())), true, "fsync:error=EIO:when=1");
        assert!(halted("store_failed").is_ok() && halted("no idea").is_err());
    }
}
