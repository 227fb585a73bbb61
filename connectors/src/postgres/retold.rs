//! Whether the log of the server is still the one that we have read: what lies between the slot and our position is told once more,
//! and compared with the milestone that is stored with the position.
//!
//! The surprise: a server that was put back to an older image of its disk crashes into that image's past, on the same timeline, with
//! the same name and the same slot, and goes through the same positions again. But its slot is as old as the image, and so stands
//! before our position: what it sends from there is its own history, and not ours.
//!
//! ```text
//!            slot           milestone        position
//!   ours  ----C----t----t----T--------------------P----
//!   put back  C----x----y-------y--------y--------P----    T is not there, or something younger than P is before P
//! ```
//!
//! Also after a crash of a server that lost nothing its slot may stand further back: it is written down at checkpoints. Then
//! everything is there. Nothing of what is told once more is taken, and none of it is acknowledged.

use engine::change::Lsn;
use engine::source::{Milestone, SourceError};

use super::config::PostgresConfig;
use super::error::{Failure, START_OVER, source_error};
use super::transaction::Assembler;
use super::transport::{Event, Positions, ReplicationClient};
use super::upstream::start_stream;

/// What is still to be found between the slot and our position.
#[derive(Clone, Copy, Debug)]
struct Retold {
    milestone: Milestone,
    /// Up to which everything is stored.
    position: Lsn,
    /// The milestone lies behind the slot, and was not told yet.
    missing: bool,
}

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing yet.
    Open,
    /// The log is the one that we have read.
    Same,
    /// It is not.
    Other,
}

impl Retold {
    /// `conclusive` where upstream tells every transaction once more that it told before.
    fn new(milestone: Milestone, from: Lsn, position: Lsn, conclusive: bool) -> Self {
        Retold { milestone, position, missing: conclusive && milestone.end_lsn > from }
    }

    fn transaction(&mut self, end_lsn: Lsn, commit_time_us: i64) -> Verdict {
        let Milestone { end_lsn: known, commit_time_us: known_us, latest_us, .. } = self.milestone;
        if end_lsn == known {
            self.missing &= commit_time_us != known_us;
        }
        if end_lsn <= self.position && commit_time_us > latest_us {
            return Verdict::Other;
        }
        self.reached(end_lsn)
    }

    /// Every transaction that ends at or before this has been told.
    fn reached(&self, lsn: Lsn) -> Verdict {
        match (self.missing && lsn >= self.milestone.end_lsn, lsn >= self.position) {
            (true, _) => Verdict::Other,
            (false, true) => Verdict::Same,
            (false, false) => Verdict::Open,
        }
    }
}

/// Has the slot tell what it has from `positions.start` to `position`; fails where that is not what was read. The session is of no
/// use afterwards.
pub(super) async fn compare(
    mut client: ReplicationClient,
    config: &PostgresConfig,
    milestone: Milestone,
    positions: Positions,
    position: Lsn,
    conclusive: bool,
) -> Result<(), Failure> {
    let mut retold = Retold::new(milestone, positions.start, position, conclusive);
    start_stream(&mut client, &config.slot, &config.publication, positions).await?;
    loop {
        let (at, verdict) = match client.receive().await? {
            Event::Begin { .. } | Event::Change { .. } => continue,
            Event::Commit { end_lsn, commit_time_us } => (end_lsn, retold.transaction(end_lsn, commit_time_us)),
            Event::KeepAlive { position, .. } => (position, retold.reached(position)),
            Event::TooLarge { position, bytes, limit, relation } => {
                return Err(Assembler::new(config).row_too_large(position, bytes, limit, relation).into());
            }
        };
        match verdict {
            Verdict::Open => {}
            Verdict::Same => return Ok(()),
            Verdict::Other => return Err(reverted(&retold, at).into()),
        }
    }
}

fn reverted(retold: &Retold, at: Lsn) -> SourceError {
    let Retold { milestone, position, missing } = retold;
    let found = if *missing {
        format!("the transaction that ended at {} is not in the server's log any more", milestone.end_lsn)
    } else {
        format!("the server's log has a transaction at {at} that committed later than anything up to {position}")
    };
    source_error(
        "server_reverted",
        format!(
            "tidemark has read up to {position}, and {found}: the server was put back to an older state, and has gone on from there"
        ),
        START_OVER,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILESTONE: Milestone = Milestone { begins: Lsn(10), end_lsn: Lsn(50), commit_time_us: 500, latest_us: 900 };

    /// What is told first that is not open.
    fn told(from: u64, conclusive: bool, events: &[(u64, Option<i64>)]) -> Verdict {
        let mut retold = Retold::new(MILESTONE, Lsn(from), Lsn(80), conclusive);
        let verdicts = events.iter().map(|(lsn, time)| match time {
            Some(time) => retold.transaction(Lsn(*lsn), *time),
            None => retold.reached(Lsn(*lsn)),
        });
        verdicts.into_iter().find(|verdict| *verdict != Verdict::Open).unwrap_or(Verdict::Open)
    }

    #[test]
    fn the_same_log_is_the_same_wherever_the_slot_stands() {
        for (confirmed, events) in [
            (10, &[(20, Some(300)), (40, None), (50, Some(500)), (60, None), (80, None)][..]),
            (10, &[(50, Some(500)), (70, Some(890)), (90, Some(2_000))]),
            (50, &[(60, None), (85, None)]),
            (60, &[(75, Some(900)), (80, None)]),
            // A clock that was put back, and commits that are not in the order of their times.
            (10, &[(20, Some(899)), (50, Some(500)), (80, Some(400))]),
        ] {
            assert_eq!(told(confirmed, true, events), Verdict::Same, "{confirmed} {events:?}");
        }
        assert_eq!(told(10, true, &[(20, Some(300)), (50, Some(500)), (79, None)]), Verdict::Open);
    }

    #[test]
    fn another_log_is_told_at_its_first_difference() {
        for (confirmed, events) in [
            // The milestone is not there: passed by a transaction, by a position, by the end.
            (10, &[(20, Some(300)), (55, Some(600))][..]),
            (10, &[(50, None)]),
            (10, &[(90, Some(1_000))]),
            // Another one is in its place.
            (10, &[(50, Some(501))]),
            // It is, but something young is where everything was read.
            (10, &[(50, Some(500)), (70, Some(901))]),
            (60, &[(80, Some(901))]),
        ] {
            assert_eq!(told(confirmed, true, events), Verdict::Other, "{confirmed} {events:?}");
        }
    }

    #[test]
    fn a_server_that_may_leave_out_what_it_told_before_is_judged_by_what_it_tells() {
        assert_eq!(told(10, false, &[(20, Some(300)), (90, Some(2_000))]), Verdict::Same);
        assert_eq!(told(10, false, &[(70, Some(901))]), Verdict::Other);
    }
}
