//! `tidemark restore`: a new data directory from a backup, and what has to be done upstream so that it goes on.

use connectors::postgres::taking_the_place;
use engine::backup::{Manifest, restore};
use engine::shell;

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

/// What has to be so upstream; a line each. Whoever wrote the backup chose the names, and people paste the lines.
fn upstream(Manifest { lsn, source, held_slot, .. }: &Manifest) -> Vec<String> {
    let own = source.slot.escape_debug();
    match held_slot {
        _ if source.connector != "postgres" => Vec::new(),
        Some(held) => {
            let [drop, copy] = taking_the_place(held, &source.slot);
            let word = shell::word(held);
            let held = held.escape_debug();
            vec![
                format!("Slot {held} keeps the log from there on. With the Tidemark of the original stopped, have it take the place of"),
                "the directory's own slot, then serve with --data and the settings as before:".to_owned(),
                format!("  {drop}"),
                format!("  {copy}"),
                format!("{held} itself keeps log until it is dropped: tidemark drop-slot --slot {word}"),
            ]
        }
        None => vec![
            format!("No log was held for it. It goes on where slot {own} has not moved past {lsn}: where the original ran on after"),
            "the backup it has, and the source halts with slot_overtaken. Then only an empty directory helps; the next backup".to_owned(),
            "can be taken with --hold-log.".to_owned(),
        ],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told(slot: &str, held: Option<&str>) -> Vec<String> {
        let manifest = serde_json::json!({
            "layout": 1, "format": 1, "version": "", "instance": "", "lsn": "0/7", "commit_time": "", "taken_at": "",
            "source": {"connector": "postgres", "system": "", "timeline": 1, "database": "", "slot": slot},
            "held_slot": held, "aggregates": [], "files": 1,
        });
        upstream(&serde_json::from_value(manifest).unwrap())
    }

    #[test]
    fn a_forged_name_is_a_literal_and_a_word() {
        let lines = told("tidemark_1", Some("tidemark_1_b"));
        assert!(lines.contains(&"  SELECT pg_copy_logical_replication_slot('tidemark_1_b', 'tidemark_1');".to_owned()));
        assert!(lines.last().unwrap().ends_with("tidemark drop-slot --slot tidemark_1_b"));
        let lines = told("x'; DROP TABLE t; --", Some("y\\'\n  SELECT 1; $(z)"));
        assert!(lines.iter().any(|line| line.contains("slot_name = 'x''; DROP TABLE t; --' AND EXISTS")), "{lines:?}");
        let copy = "  SELECT pg_copy_logical_replication_slot(E'y\\\\''\n  SELECT 1; $(z)', 'x''; DROP TABLE t; --');";
        assert!(lines.contains(&copy.to_owned()), "{lines:?}");
        assert!(lines.last().unwrap().ends_with("--slot 'y\\'\\''\n  SELECT 1; $(z)'"), "{lines:?}");
        let breaks = |lines: &[String]| lines.iter().filter(|line| line.contains('\n')).count();
        assert_eq!((breaks(&lines), breaks(&told("a\nb", None))), (3, 0));
    }
}
