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

/// An end of a range that is no time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no time")]
pub struct BadBound {
    /// `from` or `to`.
    pub which: &'static str,
    /// What stands there.
    pub text: String,
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
    pub fn buckets(&self, calendar: &Calendar, granularity: Granularity) -> Result<Option<BucketRange>, BadBound> {
        if self.from.is_none() && self.to.is_none() {
            return Ok(Some(BucketRange::ALL));
        }
        let from = self.bound("from", self.from.as_deref(), calendar, granularity)?;
        let to = self.bound("to", self.to.as_deref(), calendar, granularity)?;
        if granularity == Granularity::All {
            return Ok(None);
        }
        // As in answers: rows without a time only without both bounds, infinite ones where no bound excludes them.
        let from = from.map_or(Bucket::NEGATIVE_INFINITY, |from| Bucket(from.max(i64::MIN + 1)));
        let to = to.map_or(Bucket::INFINITY, |to| Bucket(to.saturating_sub(1)));
        Ok(Some(BucketRange { from, to }))
    }

    fn bound(
        &self,
        which: &'static str,
        text: Option<&str>,
        calendar: &Calendar,
        granularity: Granularity,
    ) -> Result<Option<i64>, BadBound> {
        let Some(text) = text else { return Ok(None) };
        match parse_bound(text, calendar, self.now_us) {
            Some(Bound::At(us)) => Ok(Some(us)),
            Some(Bound::Ago(us)) => Ok(Some(calendar.interval(granularity, us).start)),
            None => Err(BadBound { which, text: text.chars().take(100).collect() }),
        }
    }
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
