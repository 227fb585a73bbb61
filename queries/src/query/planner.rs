//! Which cells to read: as few as answer the question exactly.
//!
//! A range is covered by whole buckets of the coarsest stored level and, at its edges, by finer ones. Where an edge lies
//! inside a bucket of the finest level the question is refused: that bucket would be counted whole or not at all, and
//! both are wrong.

use engine::materialization::bucket::{Interval, days_from_civil};
use engine::materialization::{Bucket, Calendar, Granularity, Plan};

use super::aggregate_query::AggregateQuery;
use super::instant::format_instant;
use super::refusal::QueryError;

/// Most buckets that are read one by one rather than scanned.
const MAX_POINTS: usize = 1_000;
const DAY_US: i64 = 86_400_000_000;

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

    /// No cell of a bucket that begins before this instant is read; `i64::MIN` where there is no such instant, as where rows
    /// without a time are asked for.
    #[must_use]
    pub fn reads_from(&self) -> i64 {
        // The bucket of everything has no beginning, though it is stored as if it had.
        if self.levels.contains(&Granularity::All) {
            return i64::MIN;
        }
        let begins = |scan: &LevelScan| if scan.to == Bucket::NULL { i64::MIN } else { scan.from.0 };
        let first = match &self.access {
            Access::Points { points, .. } => points.iter().map(|(_, bucket)| bucket.0).min(),
            Access::Scans(scans) => scans.iter().map(begins).min(),
        };
        first.unwrap_or(i64::MAX)
    }
}

/// The instants whose offsets from UTC decide which levels can answer. Where the range has no end, the years since the clocks
/// of the world keep to quarters of an hour, up to the last one whose rules are known.
#[must_use]
pub fn span(from: Option<i64>, to: Option<i64>) -> Interval {
    let first = days_from_civil(1975, 1, 1) * DAY_US;
    let last = days_from_civil(2038, 1, 1) * DAY_US;
    let start = from.unwrap_or_else(|| to.map_or(first, |to| first.min(to.saturating_sub(1))));
    Interval { start, end: to.unwrap_or_else(|| last.max(start.saturating_add(1))) }
}

/// The asked granularity, if some stored one nests in it.
pub fn answerable(
    asked: Granularity,
    calendar: &Calendar,
    within: Interval,
    plan: &Plan,
) -> Result<Granularity, QueryError> {
    let nests = |level: &Granularity| plan.calendar.nests_into(*level, calendar, asked, within);
    if plan.levels.iter().any(|level| nests(level).is_ok()) {
        return Ok(asked);
    }
    let base = plan.levels.first().copied().unwrap_or(Granularity::All);
    let reason = nests(&base).err().map_or_else(String::new, |e| e.to_string());
    let levels = plan.levels.iter().map(Granularity::to_string).collect::<Vec<_>>().join(", ");
    let own = plan.calendar.zone();
    let hint = if calendar.zone() == own {
        format!("this aggregate keeps {levels}")
    } else {
        format!(
            "this aggregate keeps {levels} of {own}; one registered with granularity PT15M answers every time zone, one \
             with hour those whole hours away from {own}"
        )
    };
    Err(QueryError::refused("granularity", "does_not_nest", reason).hint(hint))
}

/// The stored levels that can answer, coarsest first.
fn usable(query: &AggregateQuery, plan: &Plan) -> Vec<(usize, Granularity)> {
    // The bucket `all` also holds rows without a time: it answers only where nothing is excluded.
    let everything = query.from.is_none() && query.to.is_none();
    let within = span(query.from, query.to);
    let nests =
        |level: Granularity| plan.calendar.nests_into(level, &query.calendar, query.granularity, within).is_ok();
    let mut levels: Vec<(usize, Granularity)> = plan
        .levels
        .iter()
        .copied()
        .enumerate()
        .filter(|(_, level)| everything || *level != Granularity::All)
        .filter(|(_, level)| nests(*level))
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
        edge.map_or(Ok(()), |edge| check_aligned(parameter, edge, finest, query, plan))?;
    }
    if coarsest_level == Granularity::All {
        return Ok(vec![LevelScan { level: coarsest, from: Bucket::ALL, to: Bucket::ALL }]);
    }
    // Times that are no instants lie beyond a bound; NULL lies on no side of any.
    let last = if query.from.is_none() { Bucket::NULL } else { Bucket::INFINITY };
    let mut from = query.from;
    let resumed = query.cursor.as_ref().filter(|_| query.granularity != Granularity::All && query.in_stored_order());
    if let Some(cursor) = resumed {
        match cursor.bucket {
            Bucket::NEGATIVE_INFINITY => {}
            bucket if bucket.is_special() => {
                return Ok(vec![LevelScan { level: coarsest, from: bucket, to: last }]);
            }
            // Where the range begins inside the first bucket, that one is named by its own beginning.
            Bucket(start) => from = Some(from.map_or(start, |from| from.max(start))),
        }
    }
    let mut scans = Vec::new();
    cover(&levels, from, query.to, last, plan, &mut scans);
    Ok(scans)
}

fn check_aligned(
    parameter: &str,
    edge: i64,
    finest: Granularity,
    query: &AggregateQuery,
    plan: &Plan,
) -> Result<(), QueryError> {
    let interval = plan.calendar.interval(finest, edge);
    if interval.start == edge {
        return Ok(());
    }
    let calendar = &query.calendar;
    let [before, after] = [interval.start, interval.end].map(|instant| format_instant(instant, calendar));
    Err(QueryError::refused(
        parameter,
        "range_not_aligned",
        format!("{} lies inside a {finest} bucket, which is the finest kept", format_instant(edge, calendar)),
    )
    .hint(format!("the nearest edges are {before} and {after} ({})", calendar.zone())))
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
pub fn coarser(query: &AggregateQuery, plan: &Plan) -> Option<Granularity> {
    use Granularity::{All, Day, Hour, Month, Quarter, Week, Year};
    let within = span(query.from, query.to);
    let answers = |asked: Granularity| {
        plan.levels.iter().any(|level| plan.calendar.nests_into(*level, &query.calendar, asked, within).is_ok())
    };
    let standard = [Hour, Day, Week, Month, Quarter, Year, All];
    let mut longer: Vec<Granularity> = plan.levels.iter().copied().chain(standard).collect();
    longer.retain(|other| about_us(*other) > about_us(query.granularity) && answers(*other));
    // One that is stored first: it is cheaper to read, not only shorter to answer.
    longer.sort_by_key(|other| (!plan.levels.contains(other), about_us(*other)));
    longer.first().copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
    use proptest::prelude::*;

    use super::*;
    use crate::query::fixture::{aggregate, daily, daily_in, parse};

    fn plan(question: &str) -> Result<ReadPlan, QueryError> {
        let aggregate = daily();
        ReadPlan::choose(&parse(question, &aggregate)?, &aggregate.plan)
    }

    /// The runs as `level from..to`, in the words of the levels.
    fn scans(question: &str) -> Vec<String> {
        let aggregate = daily();
        let date = |bucket: Bucket| match bucket {
            Bucket::NEGATIVE_INFINITY => "-infinity".to_owned(),
            Bucket::INFINITY => "infinity".to_owned(),
            Bucket::NULL => "null".to_owned(),
            // The run's end is the last instant inside.
            Bucket(us) => {
                format_instant(us.div_euclid(1_000_000) * 1_000_000, &aggregate.plan.calendar)[..10].to_owned()
            }
        };
        match plan(question).unwrap().access {
            Access::Scans(scans) => scans
                .iter()
                .map(|s| format!("{} {}..={}", aggregate.plan.levels[s.level], date(s.from), date(s.to)))
                .collect(),
            Access::Points { points, .. } => vec![format!("{} points", points.len())],
        }
    }

    #[test]
    fn the_coarsest_level_that_fits_is_read() {
        assert_eq!(scans("granularity=year&from=2020&to=2027"), ["year 2020-01-01..=2026-12-31"]);
        assert_eq!(scans("granularity=month&from=2020&to=2027"), ["month 2020-01-01..=2026-12-31"]);
        assert_eq!(scans("granularity=quarter&from=2020&to=2027"), ["month 2020-01-01..=2026-12-31"]);
        assert_eq!(scans("granularity=week&from=2020&to=2027"), ["day 2020-01-01..=2026-12-31"]);
        assert_eq!(scans("granularity=all&from=2020&to=2027"), ["year 2020-01-01..=2026-12-31"]);
        assert_eq!(scans("from=2020&to=2027"), ["day 2020-01-01..=2026-12-31"]);
    }

    #[test]
    fn ragged_edges_are_read_from_finer_levels() {
        assert_eq!(
            scans("granularity=year&from=2019-11-15&to=2022-02-03"),
            [
                "day 2019-11-15..=2019-11-30",
                "month 2019-12-01..=2019-12-31",
                "year 2020-01-01..=2021-12-31",
                "month 2022-01-01..=2022-01-31",
                "day 2022-02-01..=2022-02-02",
            ]
        );
        assert_eq!(scans("granularity=all&from=2026-03-05&to=2026-03-09"), ["day 2026-03-05..=2026-03-08"]);
    }

    #[test]
    fn times_that_are_no_instants_are_beyond_bounds() {
        assert_eq!(scans("granularity=year"), ["year -infinity..=null"]);
        assert_eq!(scans("granularity=year&from=2026"), ["year 2026-01-01..=infinity"]);
        assert_eq!(scans("granularity=year&to=2026"), ["year -infinity..=2025-12-31"]);
    }

    #[test]
    fn one_group_in_few_buckets_is_read_point_by_point() {
        let one = "where=country:EUR,merchant:5";
        assert_eq!(scans(&format!("{one}&granularity=year&from=2020&to=2027")), ["7 points"]);
        assert_eq!(scans(&format!("{one}&from=2020&to=2027")), ["day 2020-01-01..=2026-12-31"]);
        assert_eq!(scans(&format!("{one}&granularity=year&from=2020")), ["year 2020-01-01..=infinity"]);
        assert_eq!(scans("where=country:EUR&granularity=year&from=2020&to=2027"), ["year 2020-01-01..=2026-12-31"]);
    }

    #[test]
    fn half_a_bucket_is_refused_with_its_edges() {
        let error = plan("from=2026-03-01T05:00:00Z&to=2026-04").unwrap_err();
        assert_eq!((error.code, error.parameter.as_str()), ("range_not_aligned", "from"));
        assert_eq!(error.hint, "the nearest edges are 2026-03-01T00:00:00Z and 2026-03-02T00:00:00Z (UTC)");
        let madrid = daily_in("Europe/Madrid");
        let error = ReadPlan::choose(&parse("to=2026-03-01T00:00:00Z", &madrid).unwrap(), &madrid.plan).unwrap_err();
        assert_eq!(
            error.hint,
            "the nearest edges are 2026-03-01T00:00:00+01:00 and 2026-03-02T00:00:00+01:00 (Europe/Madrid)"
        );
    }

    #[test]
    fn the_bucket_of_everything_answers_only_everything() {
        let plan = |question: &str| {
            let total = aggregate(r#""time":{"column":"ts","granularity":"day"},"rollups":["all"],"#);
            ReadPlan::choose(&parse(question, &total).unwrap(), &total.plan).unwrap().levels
        };
        assert_eq!(plan("granularity=all"), [Granularity::All]);
        assert_eq!(plan("granularity=all&from=2026"), [Granularity::Day]);
    }

    #[test]
    fn who_asks_for_too_much_is_told_what_is_cheaper() {
        let coarser = |granularity: &str| {
            let query = parse(&format!("granularity={granularity}"), &daily()).unwrap();
            coarser(&query, &daily().plan)
        };
        assert_eq!(coarser("day"), Some(Granularity::Month));
        assert_eq!(coarser("month"), Some(Granularity::Year));
        assert_eq!(coarser("year"), Some(Granularity::All));
        assert_eq!(coarser("all"), None);
    }

    proptest! {
        /// Every day of the range lies in exactly one bucket that is read, and nothing else does.
        #[test]
        fn runs_cover_the_range_once(
            from in -3_000i64..3_000, length in 1i64..2_000, zone in prop::sample::select(vec!["UTC", "Asia/Beirut"]),
            granularity in prop::sample::select(vec!["day", "week", "month", "quarter", "year", "all"]),
        ) {
            let aggregate = daily_in(zone);
            let calendar = aggregate.plan.calendar;
            let edge = |day: i64| calendar.instant_of_local(day * 86_400_000_000);
            let text = |day| format_instant(edge(day), &calendar);
            let question = format!("granularity={granularity}&from={}&to={}", text(from), text(from + length));
            let read = ReadPlan::choose(&parse(&question, &aggregate).unwrap(), &aggregate.plan).unwrap();
            let Access::Scans(scans) = read.access else { panic!("no group is fixed") };
            for day in from - 400..from + length + 400 {
                let inside = scans.iter().filter(|scan| {
                    let start = calendar.interval(aggregate.plan.levels[scan.level], edge(day)).start;
                    scan.from.0 <= start && start <= scan.to.0
                });
                let expected = usize::from((from..from + length).contains(&day));
                prop_assert_eq!(inside.count(), expected, "day {} of {}: {:?}", day, question, scans);
            }
            prop_assert!(scans.windows(2).all(|pair| pair[0].to < pair[1].from));
        }
    }
}
