//! What is read for an answer, and why not something else: the body of `explain`.

use engine::materialization::{Aggregate, Bucket, Calendar, Definition, Granularity};
use serde::Serialize;

use crate::query::instant::format_instant;
use crate::query::{Access, AggregateQuery, NotThis, ReadPlan};

/// A plan with its reasons.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The aggregate that answers.
    pub aggregate: String,
    /// `points`: cells found one by one; `scan`: runs of neighbouring cells.
    pub access: &'static str,
    /// Length of the answer's buckets.
    pub granularity: Granularity,
    /// Zone in which they begin.
    pub time_zone: String,
    /// What is read, in order of time.
    pub ranges: Vec<RangeBody>,
    /// Stores that are asked: everything of one aggregate lies in one.
    pub shards: u32,
    /// Cells in these ranges, by the control totals of their Partitions.
    pub cells_estimated: u64,
    /// Cells that were read; only where the question was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cells_read: Option<u64>,
    /// Rows of the answer; only where the question was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// How long reading took, in microseconds; only where the question was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took_us: Option<u64>,
    /// The stored levels, and what each was good for.
    pub levels: Vec<LevelBody>,
    /// Other aggregates that could have answered, with the cells they would have read.
    pub alternatives: Vec<Alternative>,
    /// Aggregates over the same table that cannot answer.
    pub why_not: Vec<WhyNot>,
}

/// A run of stored cells.
#[derive(Debug, Serialize)]
pub struct RangeBody {
    /// Level that is read.
    pub level: Granularity,
    /// Begin of its first bucket; `-infinity` where there is no first.
    pub from: String,
    /// Begin of its last bucket, which is read too.
    pub to: String,
    /// First key, in hexadecimal.
    pub min_key: String,
    /// Whether the first key itself is read.
    pub min_inclusive: bool,
    /// Key after the last one, in hexadecimal; of a point, the key itself.
    pub max_key: String,
    /// Whether the last key itself is read.
    pub max_inclusive: bool,
}

/// What a stored level was good for.
#[derive(Debug, Serialize)]
pub struct LevelBody {
    /// The level.
    pub level: Granularity,
    /// Whether cells of it are read.
    pub used: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Another aggregate that could have answered.
#[derive(Debug, Serialize)]
pub struct Alternative {
    /// Its name.
    pub aggregate: String,
    /// Cells it would have read.
    pub cells_estimated: u64,
}

/// An aggregate that cannot answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WhyNot {
    /// Its name.
    pub aggregate: String,
    /// Stable name of the reason.
    pub code: String,
    /// The reason.
    pub reason: String,
}

impl From<NotThis> for WhyNot {
    fn from(not: NotThis) -> Self {
        WhyNot { aggregate: not.aggregate, code: not.reason.code.to_owned(), reason: not.reason.detail }
    }
}

/// Why no aggregate answers a question to a table, and what would.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unanswered {
    /// The aggregates there are.
    pub why_not: Vec<WhyNot>,
    /// The smallest definition that would have answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<Definition>,
}

impl Explanation {
    /// Of a plan that was chosen, not yet run.
    #[must_use]
    pub fn of(aggregate: &Aggregate, query: &AggregateQuery, reads: &ReadPlan, cells_estimated: u64) -> Explanation {
        let plan = &aggregate.plan;
        let (access, ranges) = match &reads.access {
            Access::Points { group, points } => {
                let range = |(level, bucket): &(usize, Bucket)| {
                    let key = hex(&engine::snapshot::cell_key(aggregate.id, *level, *bucket, group));
                    range_body(aggregate, *level, (*bucket, *bucket), (key.clone(), key), true)
                };
                ("points", points.iter().filter_map(range).collect())
            }
            Access::Scans(scans) => {
                let range = |scan: &crate::query::LevelScan| {
                    let (min, max) = engine::snapshot::scan_keys(aggregate.id, scan.level, scan.from, scan.to);
                    range_body(aggregate, scan.level, (scan.from, scan.to), (hex(&min), hex(&max)), false)
                };
                ("scan", scans.iter().filter_map(range).collect())
            }
        };
        Explanation {
            aggregate: aggregate.name.clone(),
            access,
            granularity: query.granularity,
            time_zone: query.calendar.zone().name().to_owned(),
            ranges,
            shards: 1,
            cells_estimated,
            cells_read: None,
            rows: None,
            took_us: None,
            levels: plan.levels.iter().map(|level| level_body(*level, query, reads, aggregate)).collect(),
            alternatives: Vec::new(),
            why_not: Vec::new(),
        }
    }
}

fn range_body(
    aggregate: &Aggregate,
    level: usize,
    (from, to): (Bucket, Bucket),
    (min_key, max_key): (String, String),
    max_inclusive: bool,
) -> Option<RangeBody> {
    let level = *aggregate.plan.levels.get(level)?;
    let calendar = &aggregate.plan.calendar;
    // The end of a run is its last instant: shown is the bucket that holds it.
    let last = match to {
        to if to.is_special() || level == Granularity::All => to,
        Bucket(instant) => Bucket(calendar.interval(level, instant).start),
    };
    Some(RangeBody {
        level,
        from: bucket_text(from, level, calendar),
        to: bucket_text(last, level, calendar),
        min_key,
        min_inclusive: true,
        max_key,
        max_inclusive,
    })
}

fn bucket_text(bucket: Bucket, level: Granularity, calendar: &Calendar) -> String {
    match bucket {
        _ if level == Granularity::All => "all".to_owned(),
        Bucket::NEGATIVE_INFINITY => "-infinity".to_owned(),
        Bucket::INFINITY => "infinity".to_owned(),
        Bucket::NULL => "null".to_owned(),
        Bucket(start) => format_instant(start, calendar),
    }
}

fn level_body(level: Granularity, query: &AggregateQuery, reads: &ReadPlan, aggregate: &Aggregate) -> LevelBody {
    let plan = &aggregate.plan;
    if reads.levels.contains(&level) {
        return LevelBody { level, used: true, reason: None };
    }
    let within = crate::query::planner::span(query.from, query.to);
    let reason = match plan.calendar.nests_into(level, &query.calendar, query.granularity, within) {
        Err(error) => error.reason.to_owned(),
        Ok(()) if level == Granularity::All => "it has no range".to_owned(),
        Ok(()) => "no whole bucket of it lies in the range, or a coarser level covers it".to_owned(),
    };
    LevelBody { level, used: false, reason: Some(reason) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
