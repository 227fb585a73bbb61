//! The buckets that are compared: those that begin in a range of time, of each level.
//!
//! A level is never compared in part of a bucket, so the range needs no edges; the level `all` has no beginning and is
//! compared only where there is no range.

use engine::materialization::{Bucket, Calendar, Granularity};

use crate::query::instant::{Bound, parse_bound};

/// A range of time as it was asked for; read in each aggregate's own time zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Inclusive.
    pub from: Option<String>,
    /// Exclusive.
    pub to: Option<String>,
    /// What `now` is, in microseconds since 2000-01-01 UTC.
    pub now_us: i64,
}

/// A range that nothing can be compared in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    /// An end of it is no time.
    #[error("{text:?} is no time")]
    NoTime {
        /// `from` or `to`.
        which: &'static str,
        /// What stands there.
        text: String,
    },
    /// Nothing begins in it, and nothing would be equal to nothing.
    #[error("the range is empty: it ends where it begins or before")]
    Empty,
}

/// Buckets of a level, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketRange {
    /// The first.
    pub from: Bucket,
    /// The last.
    pub to: Bucket,
}

impl Range {
    /// The buckets of a level; `None` where the level has none that begin.
    pub fn buckets(&self, calendar: &Calendar, granularity: Granularity) -> Result<Option<BucketRange>, BadRange> {
        if self.from.is_none() && self.to.is_none() {
            return Ok(Some(BucketRange::ALL));
        }
        let from = self.bound("from", self.from.as_deref(), calendar)?;
        let to = self.bound("to", self.to.as_deref(), calendar)?;
        // As they were written: of a level with long buckets both may well be of the same one.
        if from.zip(to).is_some_and(|(from, to)| instant(from) >= instant(to)) {
            return Err(BadRange::Empty);
        }
        let begins = |bound| match bound {
            Bound::At(us) => us,
            Bound::Ago(us) => calendar.interval(granularity, us).start,
        };
        let (from, to) = (from.map(begins), to.map(begins));
        if granularity == Granularity::All {
            return Ok(None);
        }
        // As in answers: rows without a time only without both bounds, infinite ones where no bound excludes them.
        let from = from.map_or(Bucket::NEGATIVE_INFINITY, |from| Bucket(from.max(i64::MIN + 1)));
        let to = to.map_or(Bucket::INFINITY, |to| Bucket(to.saturating_sub(1)));
        Ok(Some(BucketRange { from, to }))
    }

    fn bound(&self, which: &'static str, text: Option<&str>, calendar: &Calendar) -> Result<Option<Bound>, BadRange> {
        let Some(text) = text else { return Ok(None) };
        let bound = parse_bound(text, calendar, self.now_us);
        bound.map(Some).ok_or_else(|| BadRange::NoTime { which, text: text.chars().take(100).collect() })
    }
}

fn instant(bound: Bound) -> i64 {
    let (Bound::At(us) | Bound::Ago(us)) = bound;
    us
}

impl BucketRange {
    /// All of a level.
    pub const ALL: BucketRange = BucketRange { from: Bucket(i64::MIN), to: Bucket(i64::MAX) };

    /// Whether nothing is left out.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == BucketRange::ALL
    }

    /// The first instant, where there is one.
    #[must_use]
    pub fn first_instant(&self) -> Option<i64> {
        Some(self.from.0).filter(|_| !self.from.is_special())
    }

    /// The last instant at which a bucket may begin, where there is one.
    #[must_use]
    pub fn last_instant(&self) -> Option<i64> {
        Some(self.to.0).filter(|_| !self.to.is_special())
    }
}
