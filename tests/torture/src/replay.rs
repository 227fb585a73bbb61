//! A failure that was kept, looked at again: Postgres as after a crash, its slot where it was, and a life over the data directory as
//! the failing one left it. What is wrong in the store is wrong again, each time; what was wrong in memory only is not.

use std::path::Path;
use std::process::{Command, ExitCode};

use connectors::postgres::throwaway::ThrowawayPostgres;

use crate::bench::SETTINGS;
use crate::process::{End, Fate, Life};
use crate::support::sql;

/// Compares every cell with Postgres; both are copied first.
pub fn run(kept: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match runtime.block_on(compare(kept)) {
        Ok(equal) => {
            println!("{equal} cells: right now");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn compare(kept: &Path) -> Result<String, String> {
    let [data, cluster] = ["data", "postgres/data"].map(|part| kept.join(part));
    if !data.is_dir() || !cluster.is_dir() {
        return Err(format!(
            "{} has no data and postgres/data; what was found without Postgres, io-sweep --again and tell look at again",
            kept.display()
        ));
    }
    let postgres = ThrowawayPostgres::over_copy_of(&cluster, &SETTINGS).map_err(|error| error.to_string())?;
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("data");
    let copied = Command::new("cp").arg("-a").arg(&data).arg(&copy).status().unwrap();
    assert!(copied.success(), "{} cannot be copied", data.display());
    let lsn = sql::current_lsn(&sql::connect(&postgres.url()).await).await;
    let mut life = Life::start(&copy, &postgres.url(), Fate::default());
    let compared = life.hears("started").and_then(|_| life.ask(&format!("compare {lsn}"), "equal"));
    compared.map_err(|end| match end {
        End::Aborted => "it aborted".to_owned(),
        End::Halted(why) | End::Silent(why) | End::Violated(why) => why,
    })
}
