//! In which order the rows of a filling are added up: newest first, although they are stored by primary key.
//!
//! ```text
//! rows by key    [run 0][run 1][run 2] ... [run n]        a survey notes the oldest and newest time of each run
//! windows        3: [-inf, t2)   2: [t2, t1)   1: [t1, inf]          1 is folded first, then 2, then 3
//! ```
//!
//! A window reads the runs that may hold a row of it and folds the rows that do. Where keys grow with time, as serial ones and
//! UUIDs of version 7 do, nearly every run belongs to one window and the rows are read twice, once for their times only. Where
//! they do not, or where a few rows in many runs were given another time later, each window would read everything, and the
//! newest rows would come no sooner than all of them do: then there is one window. Which rows a window has is exact; only where it begins is by a sample.

use crate::change::ValueRef;
use crate::materialization::plan::TimePlan;
use crate::materialization::{Bucket, Calendar, Granularity, Plan};
use crate::store::key::Range;

/// Instants that are kept to find out where windows begin.
const SAMPLE: usize = 4_096;
/// Rows from the beginning of each window on, but the last, as one in so many of all.
const NEWEST: [usize; 3] = [64, 16, 4];

/// Rows that follow each other in the order of the keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Their keys.
    pub range: Range,
    rows: u64,
    /// Of the instants that are no special ones, which would be in every run.
    oldest: i64,
    newest: i64,
    /// Whether there are rows without a time or of `-infinity`, and rows of `infinity`.
    undated: bool,
    endless: bool,
}

impl Run {
    /// Rows that nobody has looked at.
    #[must_use]
    pub fn unseen(range: Range) -> Run {
        Run { range, rows: 0, oldest: i64::MIN, newest: i64::MAX, undated: true, endless: true }
    }

    /// No rows yet, of these keys.
    #[must_use]
    pub fn empty(range: Range) -> Run {
        Run { range, rows: 0, oldest: i64::MAX, newest: i64::MIN, undated: false, endless: false }
    }

    /// Rows that were looked at.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }
}

/// Rows by time: from an instant on, and before another one. `infinity` is newest, as in the order of buckets; rows without a
/// time are with the oldest, because no question with a beginning asks for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First instant inside, microseconds since 2000-01-01 UTC; the beginning of a bucket, or `i64::MIN`.
    pub from: i64,
    /// First instant after; `None` where all that is newer is inside.
    pub before: Option<i64>,
}

impl Window {
    /// All rows.
    pub const ALL: Window = Window { from: UNDATED, before: None };

    /// Whether a row of this instant is inside.
    #[must_use]
    pub fn holds(&self, instant: i64) -> bool {
        instant >= self.from && self.before.is_none_or(|before| instant < before)
    }

    /// Whether all rows of a run are inside.
    #[must_use]
    pub fn holds_all(&self, run: &Run) -> bool {
        let oldest = if run.undated { UNDATED } else { run.oldest };
        let newest = if run.endless { ENDLESS } else { run.newest };
        self.holds(oldest) && self.holds(newest)
    }

    /// Whether a run may have rows inside.
    #[must_use]
    pub fn meets(&self, run: &Run) -> bool {
        let dated = run.newest >= self.from && self.before.is_none_or(|before| run.oldest < before);
        dated || (run.undated && self.from == UNDATED) || (run.endless && self.before.is_none())
    }
}

/// What is no instant, and older than all that are.
const UNDATED: i64 = Bucket::NEGATIVE_INFINITY.0;
const ENDLESS: i64 = Bucket::INFINITY.0;

/// The instant by which a row has its window. What is no time at all, the folding will say something about.
#[must_use]
pub fn instant(time: TimePlan, value: Option<ValueRef<'_>>) -> i64 {
    value.and_then(|value| time.instant(value)).filter(|instant| *instant != Bucket::NULL.0).unwrap_or(UNDATED)
}

/// The times of all rows: of each run, and a sample of them.
#[derive(Debug)]
pub struct Survey {
    /// Seen so far, in order of keys.
    pub runs: Vec<Run>,
    sample: Vec<i64>,
    /// One of so many rows is in the sample.
    stride: u64,
    seen: u64,
}

impl Default for Survey {
    fn default() -> Self {
        Survey { runs: Vec::new(), sample: Vec::new(), stride: 1, seen: 0 }
    }
}

impl Survey {
    /// Notes a row of a run.
    pub fn note(&mut self, run: &mut Run, instant: i64) {
        run.rows += 1;
        match instant {
            UNDATED => run.undated = true,
            ENDLESS => run.endless = true,
            _ => {
                run.oldest = run.oldest.min(instant);
                run.newest = run.newest.max(instant);
            }
        }
        if self.seen.is_multiple_of(self.stride) {
            self.sample.push(instant);
        }
        self.seen += 1;
        if self.sample.len() == SAMPLE {
            let mut odd = false;
            self.sample.retain(|_| {
                odd = !odd;
                odd
            });
            self.stride *= 2;
        }
    }

    /// The windows of an aggregate, newest first; one where several would cost more than they are worth. Each begins with a bucket of its base level; together they hold every row
    /// once.
    #[must_use]
    pub fn windows(&self, plan: &Plan) -> Vec<Window> {
        let base = plan.levels.first().copied().unwrap_or(Granularity::All);
        if plan.time.is_none() || base == Granularity::All {
            return vec![Window::ALL];
        }
        let windows = self.cut(&plan.calendar, base);
        let read: u64 = windows
            .iter()
            .map(|window| self.runs.iter().filter(|run| window.meets(run)).map(|run| run.rows).sum::<u64>())
            .sum();
        if read <= self.seen.saturating_mul(2) { windows } else { vec![Window::ALL] }
    }

    fn cut(&self, calendar: &Calendar, base: Granularity) -> Vec<Window> {
        // Rows without an instant say nothing about where a window should begin.
        let mut instants: Vec<i64> = self.sample.clone();
        instants.retain(|instant| ![UNDATED, ENDLESS].contains(instant));
        instants.sort_unstable();
        let mut windows = Vec::new();
        let mut before = None;
        for part in NEWEST {
            let at = instants.len() - instants.len() / part;
            let Some(from) = instants.get(at).map(|instant| calendar.interval(base, *instant).start) else { continue };
            if before.is_none_or(|before| from < before) && instants.first().is_some_and(|first| from > *first) {
                windows.push(Window { from, before });
                before = Some(from);
            }
        }
        windows.push(Window { from: UNDATED, before });
        windows
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;
    fn plan(granularity: &str) -> Plan {
        let time = Some(TimePlan { column: 0, assumed: None, codec: None });
        Plan { time, levels: vec![granularity.parse().unwrap()], ..Plan::unresolved() }
    }

    fn survey(instants: &[i64], rows_of_run: usize) -> Survey {
        let mut survey = Survey::default();
        for run in instants.chunks(rows_of_run) {
            let mut noted = Run::empty(Range::prefix(vec![1]));
            run.iter().for_each(|instant| survey.note(&mut noted, *instant));
            survey.runs.push(noted);
        }
        survey
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_window_and_its_run_is_read(
            instants in prop::collection::vec(
                prop_oneof![
                    8 => 0i64..2_000_000_000_000_000,
                    1 => prop::sample::select(vec![UNDATED, ENDLESS]),
                ],
                0..3_000,
            ),
            sorted in any::<bool>(),
            granularity in prop::sample::select(vec!["PT15M", "day", "month", "year", "all"]),
        ) {
            let mut instants = instants;
            if sorted {
                instants.sort_unstable();
            }
            let survey = survey(&instants, 50);
            let plan = plan(granularity);
            let windows = survey.windows(&plan);
            for (run, instants) in survey.runs.iter().zip(instants.chunks(50)) {
                for instant in instants {
                    let holding: Vec<&Window> = windows.iter().filter(|window| window.holds(*instant)).collect();
                    prop_assert_eq!(holding.len(), 1);
                    prop_assert!(holding.iter().all(|window| window.meets(run)));
                    prop_assert!(windows.iter().all(|window| window.holds(*instant) || !window.holds_all(run)));
                }
            }
            // Each goes on where the newer one begins, and begins with a bucket.
            prop_assert!(windows.windows(2).all(|pair| pair[1].before == Some(pair[0].from) && pair[1].from < pair[0].from));
            let begins = |from: i64| from == UNDATED || plan.calendar.interval(plan.levels[0], from).start == from;
            prop_assert!(windows.iter().all(|window| begins(window.from)));
        }
    }

    #[test]
    fn keys_that_grow_with_time_are_read_about_once_and_others_just_once() {
        let grows: Vec<i64> = (0..100_000).map(|row| row * 60_000_000).collect();
        let scattered: Vec<i64> = (0..100_000).map(|row| row * 7_919 % 100_000 * 60_000_000).collect();
        // One without a time in each run.
        let undated: Vec<i64> =
            grows.iter().map(|time| if time % 30_000_000_000 == 0 { UNDATED } else { *time }).collect();
        let read = |instants: &[i64]| {
            let survey = survey(instants, 1_000);
            let windows = survey.windows(&plan("day"));
            let read: usize =
                windows.iter().map(|window| survey.runs.iter().filter(|run| window.meets(run)).count()).sum();
            (windows.len(), read)
        };
        assert_eq!(read(&grows), (4, 103));
        assert_eq!(read(&undated), (4, 128));
        assert_eq!(read(&scattered), (1, 100));
    }
}
