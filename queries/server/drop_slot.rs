//! `tidemark drop-slot`: takes slot and publication of a data directory away, so that Postgres keeps no log for it.

use std::io::Write;

use connectors::PostgresConfig;
use connectors::postgres::drop_slot;
use engine::shell;
use engine::store::format::instance;

use crate::cli::DropSlotArguments;
use crate::config::UpstreamConfig;
use crate::failure::Failure;
use crate::serve::runtime;

/// Drops, and says what is left.
pub fn run(arguments: &DropSlotArguments) -> Result<(), Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
    let upstream = UpstreamConfig::resolve(&arguments.upstream)?;
    let slot = match &arguments.slot {
        Some(slot) => slot.clone(),
        None => match instance(&upstream.data).map_err(|error| usage(&error))? {
            Some(instance) => format!("tidemark_{instance}"),
            None => {
                return Err(Failure::Usage(format!(
                    "{} is no Tidemark data directory, so its slot has no name\n  remedy: give the directory with --data or \
                     the slot with --slot; `tidemark check` lists slots that nobody reads",
                    upstream.data.display()
                )));
            }
        },
    };
    let config = PostgresConfig::server(upstream.url.reveal(), &slot).map_err(|error| usage(&error))?;
    let dropped = runtime()?.block_on(drop_slot(&config, arguments.force)).map_err(|error| usage(&error))?;
    let done = |was_there| if was_there { "dropped" } else { "not there" };
    say(&format!("replication slot {slot}: {}", done(dropped.slot)));
    say(&format!("publication {slot}: {}", done(dropped.publication)));
    for orphan in &dropped.orphans {
        say(&format!(
            "left alone: slot {orphan}; if its data directory is gone: tidemark drop-slot --slot {}",
            shell::word(&orphan.name)
        ));
    }
    Ok(())
}

/// Nobody is left to hear where standard output is closed.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
