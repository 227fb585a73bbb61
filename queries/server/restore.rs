//! `tidemark restore`: a new data directory from a backup, and what has to be done upstream so that it goes on.

use engine::backup::{Manifest, restore};

use crate::cli::RestoreArguments;
use crate::failure::Failure;
use crate::output::say;

/// Restores, and says how to go on.
pub fn run(arguments: &RestoreArguments) -> Result<(), Failure> {
    let RestoreArguments { backup, data } = arguments;
    let manifest = restore(backup, data)?;
    let Manifest { lsn, commit_time, aggregates, .. } = &manifest;
    say(&format!("{}: as of {lsn}, committed {commit_time}, {} aggregates", data.display(), aggregates.len()))?;
    upstream(&manifest).iter().try_for_each(|line| say(line))
}

/// What has to be so upstream; a line each.
fn upstream(Manifest { lsn, source, held_slot, .. }: &Manifest) -> Vec<String> {
    let slot = &source.slot;
    match held_slot {
        _ if source.connector != "postgres" => Vec::new(),
        Some(held) => vec![
            format!("Slot {held} keeps the log from there on. With the Tidemark of the original stopped, have it take the place of"),
            "the directory's own slot, then serve with --data and the settings as before:".to_owned(),
            format!("  SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}';"),
            format!("  SELECT pg_copy_logical_replication_slot('{held}', '{slot}');"),
            format!("{held} itself keeps log until it is dropped: tidemark drop-slot --slot {held}"),
        ],
        None => vec![
            format!("No log was held for it. It goes on where slot {slot} has not moved past {lsn}: where the original ran on after"),
            "the backup it has, and the source halts with slot_overtaken. Then only an empty directory helps; the next backup".to_owned(),
            "can be taken with --hold-log.".to_owned(),
        ],
    }
}
