//! `tidemark drop-slot`: takes slot and publication of a data directory away, so that Postgres keeps no log for it.

use std::io::Write;

use connectors::PostgresConfig;
use connectors::postgres::{Orphan, drop_slot, unread_slots};
use engine::shell;
use engine::store::format::instance;

use crate::cli::DropSlotArguments;
use crate::config::UpstreamConfig;
use crate::failure::Failure;
use crate::serve::runtime;

/// Drops, and says what is left.
pub fn run(arguments: &DropSlotArguments) -> Result<(), Failure> {
    let upstream = UpstreamConfig::resolve(&arguments.upstream)?;
    let slot = match &arguments.slot {
        Some(slot) => slot.clone(),
        None => match instance(&upstream.data).map_err(usage)? {
            Some(instance) => format!("tidemark_{instance}"),
            None => return Err(nameless(&upstream)?),
        },
    };
    let config = PostgresConfig::server(upstream.url.reveal(), &slot).map_err(usage)?;
    let dropped = runtime()?.block_on(drop_slot(&config, arguments.force)).map_err(usage)?;
    let done = |was_there| if was_there { "dropped" } else { "not there" };
    say(&format!("replication slot {slot}: {}", done(dropped.slot)));
    if let Some(left) = dropped.publication_left {
        return Err(usage(left));
    }
    say(&format!("publication {slot}: {}", done(dropped.publication)));
    for orphan in &dropped.orphans {
        say(&format!("left alone: {}", told(orphan)));
    }
    Ok(())
}

/// Without a directory there is no name: those that could be meant are listed, and none is dropped.
fn nameless(upstream: &UpstreamConfig) -> Result<Failure, Failure> {
    let mut said = format!(
        "{} is no Tidemark data directory, so its slot has no name\n  remedy: give the directory with --data or the slot with --slot",
        upstream.data.display()
    );
    let config = PostgresConfig::server(upstream.url.reveal(), "tidemark").map_err(usage)?;
    match runtime()?.block_on(unread_slots(&config)) {
        Ok(unread) if unread.is_empty() => said.push_str("; Postgres has no slot of a Tidemark that nobody reads"),
        Ok(unread) => unread.iter().for_each(|orphan| said.push_str(&format!("\n  {}", told(orphan)))),
        Err(error) => said.push_str(&format!("\n  those that nobody reads are not known: {}", error.message)),
    }
    Ok(Failure::Usage(said))
}

fn told(orphan: &Orphan) -> String {
    let name = shell::word(&orphan.name);
    format!("slot {orphan}; if its data directory is gone: tidemark drop-slot --slot {name}")
}

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::Usage(error.to_string())
}

/// Nobody is left to hear where standard output is closed.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
