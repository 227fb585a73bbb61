//! Which cells to read: as few as answer the question exactly.
//!
//! A range is covered by whole buckets of the coarsest stored level and, at its edges, by finer ones. Where an edge lies
//! inside a bucket of the finest level the question is refused: that bucket would be counted whole or not at all, and
//! both are wrong.

use engine::materialization::{Bucket, Granularity, Plan};

use super::aggregate_query::AggregateQuery;
use super::instant::format_instant;
use super::refusal::QueryError;

/// Most buckets that are read one by one rather than scanned.
const MAX_POINTS: usize = 1_000;

/// A run of buckets of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelScan {
    /// Position in the plan's levels.
    pub level: usize,
    /// First bucket.
    pub from: Bucket,
    /// Last bucket, itself included.
    pub to: Bucket,
}

/// How the cells are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// One by one: level and bucket of each, for one group.
    Points {
        /// The group.
        group: Vec<u8>,
        /// In order of time.
        points: Vec<(usize, Bucket)>,
    },
    /// Every group of a run of buckets; runs in order of time.
    Scans(Vec<LevelScan>),
}

/// What to read for a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPlan {
    /// The cells.
    pub access: Access,
    /// The levels they are of, in order of time, each once.
    pub levels: Vec<Granularity>,
}

impl ReadPlan {
    /// Chooses the cells to read for a question.
    pub fn choose(query: &AggregateQuery, plan: &Plan) -> Result<ReadPlan, QueryError> {
        let scans = scans(query, plan)?;
        let mut levels: Vec<Granularity> = Vec::new();
        for scan in &scans {
            levels.extend(plan.levels.get(scan.level).filter(|level| !levels.contains(level)));
        }
        let points = query.whole_key().and_then(|group| Some((group, points(&scans, plan)?)));
        let access = match points {
            Some((group, points)) => Access::Points { group, points },
            None => Access::Scans(scans),
        };
        Ok(ReadPlan { access, levels })
    }
}

/// The stored levels that can answer, coarsest first.
fn usable(query: &AggregateQuery, plan: &Plan) -> Vec<(usize, Granularity)> {
    // The bucket `all` also holds rows without a time: it answers only where nothing is excluded.
    let everything = query.from.is_none() && query.to.is_none();
    let mut levels: Vec<(usize, Granularity)> = plan
        .levels
        .iter()
        .copied()
        .enumerate()
        .filter(|(_, level)| everything || *level != Granularity::All)
        .filter(|(_, level)| plan.calendar.nests(*level, query.granularity).is_ok())
        .collect();
    levels.sort_by_key(|(_, level)| std::cmp::Reverse(about_us(*level)));
    levels
}

/// Usual length of a bucket, to compare granularities by.
fn about_us(granularity: Granularity) -> i64 {
    const HOUR_US: i64 = 3_600_000_000;
    match granularity {
        Granularity::Step(us) => us,
        Granularity::Hour => HOUR_US,
        Granularity::Day => 24 * HOUR_US,
        Granularity::Week => 7 * 24 * HOUR_US,
        Granularity::Month => 30 * 24 * HOUR_US,
        Granularity::Quarter => 91 * 24 * HOUR_US,
        Granularity::Year => 365 * 24 * HOUR_US,
        Granularity::All => i64::MAX,
    }
}

fn scans(query: &AggregateQuery, plan: &Plan) -> Result<Vec<LevelScan>, QueryError> {
    let levels = usable(query, plan);
    let (Some(&(coarsest, coarsest_level)), Some(&(_, finest))) = (levels.first(), levels.last()) else {
        return Err(QueryError::refused("granularity", "does_not_nest", "no stored level can answer it"));
    };
    for (parameter, edge) in [("from", query.from), ("to", query.to)] {
        edge.map_or(Ok(()), |edge| check_aligned(parameter, edge, finest, plan))?;
    }
    if coarsest_level == Granularity::All {
        return Ok(vec![LevelScan { level: coarsest, from: Bucket::ALL, to: Bucket::ALL }]);
    }
    // Times that are no instants lie beyond a bound; NULL lies on no side of any.
    let last = if query.from.is_none() { Bucket::NULL } else { Bucket::INFINITY };
    let mut from = query.from;
    if let Some(cursor) = query.cursor.as_ref().filter(|_| query.granularity != Granularity::All) {
        match cursor.bucket {
            Bucket::NEGATIVE_INFINITY => {}
            bucket if bucket.is_special() => {
                return Ok(vec![LevelScan { level: coarsest, from: bucket, to: last }]);
            }
            Bucket(start) => from = Some(from.map_or(start, |from| from.max(start))),
        }
    }
    let mut scans = Vec::new();
    cover(&levels, from, query.to, last, plan, &mut scans);
    Ok(scans)
}

fn check_aligned(parameter: &str, edge: i64, finest: Granularity, plan: &Plan) -> Result<(), QueryError> {
    let interval = plan.calendar.interval(finest, edge);
    if interval.start == edge {
        return Ok(());
    }
    let [before, after] = [interval.start, interval.end].map(|instant| format_instant(instant, &plan.calendar));
    Err(QueryError::refused(
        parameter,
        "range_not_aligned",
        format!("{} lies inside a {finest} bucket, which is the finest kept", format_instant(edge, &plan.calendar)),
    )
    .hint(format!("the nearest edges are {before} and {after} ({})", plan.calendar.zone())))
}

/// Covers `[from, to)` by runs of buckets, in order of time. `levels` are coarsest first, and both ends are edges of the
/// last.
fn cover(
    levels: &[(usize, Granularity)],
    from: Option<i64>,
    to: Option<i64>,
    last: Bucket,
    plan: &Plan,
    into: &mut Vec<LevelScan>,
) {
    if from.zip(to).is_some_and(|(from, to)| from >= to) {
        return;
    }
    let Some((&(level, granularity), finer)) = levels.split_first() else { return };
    let interval = |instant| plan.calendar.interval(granularity, instant);
    let first = from.map(|from| if interval(from).start == from { from } else { interval(from).end });
    let end = to.map(|to| interval(to).start);
    if first.zip(end).is_some_and(|(first, end)| first >= end) {
        return cover(finer, from, to, last, plan, into);
    }
    if first != from {
        cover(finer, from, first, last, plan, into);
    }
    into.push(LevelScan {
        level,
        from: first.map_or(Bucket::NEGATIVE_INFINITY, Bucket),
        to: end.map_or(last, |end| Bucket(end - 1)),
    });
    if end != to {
        cover(finer, end, to, last, plan, into);
    }
}

/// The buckets of all runs, where they are few and known without looking.
fn points(scans: &[LevelScan], plan: &Plan) -> Option<Vec<(usize, Bucket)>> {
    let mut points = Vec::new();
    for scan in scans {
        let granularity = *plan.levels.get(scan.level)?;
        if granularity == Granularity::All {
            points.push((scan.level, Bucket::ALL));
            continue;
        }
        if scan.from.is_special() || scan.to.is_special() {
            return None;
        }
        let mut start = scan.from.0;
        while start <= scan.to.0 {
            if points.len() == MAX_POINTS {
                return None;
            }
            points.push((scan.level, Bucket(start)));
            start = plan.calendar.interval(granularity, start).end;
        }
    }
    Some(points)
}

/// The next coarser granularity that this aggregate can answer, for who asked for too many cells.
#[must_use]
pub fn coarser(granularity: Granularity, plan: &Plan) -> Option<Granularity> {
    use Granularity::{All, Day, Hour, Month, Quarter, Week, Year};
    let base = *plan.levels.first()?;
    let standard = [Hour, Day, Week, Month, Quarter, Year, All];
    let mut longer: Vec<Granularity> = plan.levels.iter().copied().chain(standard).collect();
    longer.retain(|other| about_us(*other) > about_us(granularity) && plan.calendar.nests(base, *other).is_ok());
    // One that is stored first: it is cheaper to read, not only shorter to answer.
    longer.sort_by_key(|other| (!plan.levels.contains(other), about_us(*other)));
    longer.first().copied()
}
