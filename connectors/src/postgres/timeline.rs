//! Timelines: whether a promoted or restored server still has everything that we hold. Pure: the history file comes in as
//! bytes.
//!
//! A new timeline branches off its parent at a switch point. What lies before it is common to both; a position beyond it
//! means transactions that the new primary never had, and totals that hold them would be wrong there. Idle positions
//! count like any other: the engine skips whatever comes at or before its position, so it must lie on the common part.

use engine::change::Lsn;
use engine::source::SourceError;

use super::error::{START_OVER, source_error};

/// Where each ancestor of a timeline was left, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TimelineHistory {
    switches: Vec<(u32, Lsn)>,
}

impl TimelineHistory {
    /// Reads a history file: a line per ancestor with its number, the switch point and a reason. `None` where it is none.
    pub(super) fn parse(file: &[u8]) -> Option<Self> {
        let mut switches = Vec::new();
        for line in String::from_utf8_lossy(file).lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut fields = line.split_whitespace();
            let (timeline, switch) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            switches.push((timeline, switch));
        }
        Some(TimelineHistory { switches })
    }

    /// Where the server's history left a timeline; `None` where it never was on it.
    fn left(&self, timeline: u32) -> Option<Lsn> {
        self.switches.iter().find(|(ancestor, _)| *ancestor == timeline).map(|(_, switch)| *switch)
    }
}

/// Whether what was stored up to `position` on timeline `stored` is part of the history of a server that is on timeline
/// `server` now.
pub(super) fn check(stored: u32, position: Lsn, server: u32, history: &TimelineHistory) -> Result<(), SourceError> {
    if server == stored {
        return Ok(());
    }
    let diverged = |message: String| {
        Err(source_error(
            "timeline_diverged",
            message,
            format!(
                "{START_OVER}; from Postgres 17 on, synchronized_standby_slots on the primary keeps tidemark from reading ahead of \
                 a standby"
            ),
        ))
    };
    match history.left(stored) {
        Some(switch) if position <= switch => Ok(()),
        Some(switch) => diverged(format!(
            "the server left timeline {stored} at {switch} and is on timeline {server} now; tidemark had read up to {position}: what \
             lies between may hold transactions that this server never had"
        )),
        None => diverged(format!(
            "the server is on timeline {server}, which does not come from timeline {stored} of the stored totals"
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;

    const FILE: &[u8] =
        b"# a comment\n1\t0/3000158\tno recovery target specified\n\n2\t1/A0\tat restore point \"before\"\n";

    #[test]
    fn reads_what_postgres_writes() {
        let history = TimelineHistory::parse(FILE).unwrap();
        assert_eq!(history.switches, [(1, Lsn(0x0300_0158)), (2, Lsn(0x1_0000_00A0))]);
        assert_eq!(TimelineHistory::parse(b"").unwrap(), TimelineHistory::default());
        assert_eq!(TimelineHistory::parse(b"1"), None);
        assert_eq!(TimelineHistory::parse(b"one 0/0 x"), None);
        assert_eq!(TimelineHistory::parse(b"1 zero x"), None);
    }

    #[test]
    fn what_the_new_primary_has_goes_on_and_everything_else_halts() {
        let history = TimelineHistory::parse(FILE).unwrap();
        let code =
            |stored, position, server| check(stored, Lsn(position), server, &history).err().map(|error| error.code);
        let diverged = Some("timeline_diverged");
        assert_eq!(code(3, u64::MAX, 3), None, "the same timeline");
        assert_eq!(code(1, 0x0300_0158, 3), None, "exactly at the switch");
        assert_eq!(code(1, 0x0300_0159, 3), diverged, "beyond the switch");
        assert_eq!(code(2, 0x1_0000_00A0, 3), None, "the parent");
        assert_eq!(code(2, 0x1_0000_00A1, 3), diverged);
        assert_eq!(code(4, 1, 3), diverged, "a timeline that the server never was on");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_history_or_none(file in any::<Vec<u8>>()) {
            if let Some(history) = TimelineHistory::parse(&file) {
                for (timeline, switch) in history.switches.clone() {
                    let left = history.left(timeline).unwrap();
                    prop_assert!(left == switch || history.switches.iter().filter(|(t, _)| *t == timeline).count() > 1);
                }
            }
        }
    }
}
