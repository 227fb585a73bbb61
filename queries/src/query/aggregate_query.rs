//! The question, typed and checked: every name is a position in the aggregate's plan, every time an instant.
//!
//! Unknown parameters are refused, because a misspelt `granularty` that is ignored is a wrong answer.

use std::time::Duration;

use engine::change::{Lsn, Value};
use engine::materialization::{Aggregate, Bucket, Granularity, Plan, group_key};

use super::condition;
use super::currency::refuse_mixing;
use super::cursor::Cursor;
use super::fingerprint::Fingerprint;
use super::instant::{self, Bound};
use super::refusal::QueryError;
use super::suggestion::did_you_mean;

/// Rows of one answer, unless asked otherwise.
pub const DEFAULT_LIMIT: usize = 10_000;
/// Most rows of one answer.
pub const MAX_LIMIT: usize = 100_000;
/// Longest wait for `min_lsn`.
pub const MAX_WAIT: Duration = Duration::from_secs(30);

/// The parameters there are.
const PARAMETERS: [&str; 13] = [
    "from",
    "to",
    "granularity",
    "where",
    "group_by",
    "measures",
    "order",
    "limit",
    "cursor",
    "min_lsn",
    "wait",
    "layout",
    "fill",
];

/// A question to one aggregate.
#[derive(Clone, Debug, PartialEq)]
pub struct AggregateQuery {
    /// First instant inside; `None` where the range has no beginning.
    pub from: Option<i64>,
    /// First instant after; `None` where the range has no end.
    pub to: Option<i64>,
    /// Length of the answer's buckets.
    pub granularity: Granularity,
    /// The value each dimension is fixed to, by position in the plan.
    pub fixed: Vec<Option<Value>>,
    /// Dimensions in the answer, by position in the plan, in the answer's order.
    pub group_by: Vec<usize>,
    /// Measures in the answer, by position in the plan, in the answer's order.
    pub measures: Vec<usize>,
    /// Order of the answer's rows.
    pub order: Order,
    /// Most rows.
    pub limit: usize,
    /// Where this page begins.
    pub cursor: Option<Cursor>,
    /// The answer must show this position.
    pub min_lsn: Option<Lsn>,
    /// How long to wait for it.
    pub wait: Duration,
    /// Shape of the answer.
    pub layout: Layout,
    /// What to answer for buckets without rows.
    pub fill: Fill,
    /// Identifies the question for cursors: what is asked, without which page.
    pub fingerprint: u64,
}

/// What rows are ordered by first; ties are broken by time, then key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderBy {
    /// The bucket.
    Time,
    /// A dimension, by position in `group_by`.
    Dimension(usize),
    /// A measure, by position in `measures`.
    Measure(usize),
}

/// Order of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// By what.
    pub by: OrderBy,
    /// Largest first.
    pub descending: bool,
}

impl Order {
    /// By time, then key: the order in which cells are stored, and the only one that has pages.
    pub const STORED: Order = Order { by: OrderBy::Time, descending: false };
}

/// Shape of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One object per row.
    Rows,
    /// One array per column.
    Columns,
}

/// What to answer for buckets without rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Nothing: they do not appear, as in `GROUP BY`.
    Absent,
    /// A row of zeros.
    Zero,
    /// A row of NULLs.
    Null,
}

impl AggregateQuery {
    /// Reads and checks the parameters of a question. `now_us` is what `now` and `-30d` are relative to.
    pub fn parse(
        parameters: &[(String, String)],
        aggregate: &Aggregate,
        now_us: i64,
    ) -> Result<AggregateQuery, QueryError> {
        check_names(parameters)?;
        let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let plan = &*aggregate.plan;
        let granularity = granularity(get("granularity"), plan)?;
        let fixed = fixed(parameters, plan)?;
        let group_by = group_by(get("group_by"), &fixed, plan)?;
        let measures = measures(get("measures"), plan)?;
        refuse_mixing(plan, &fixed, &group_by, &measures)?;
        let order = order(get("order"), granularity, &group_by, &measures, plan)?;
        let from = bound("from", get("from"), granularity, plan, now_us)?;
        let to = bound("to", get("to"), granularity, plan, now_us)?;
        if from.zip(to).is_some_and(|(from, to)| from >= to) {
            return Err(QueryError::refused("to", "empty_range", "the range ends before it begins")
                .hint("`from` is inclusive, `to` is exclusive"));
        }
        let fingerprint = fingerprint(aggregate, granularity, &fixed, &group_by);
        Ok(AggregateQuery {
            cursor: cursor(get("cursor"), order, fingerprint)?,
            fill: fill(get("fill"), granularity, &group_by, order)?,
            limit: limit(get("limit"))?,
            min_lsn: get("min_lsn")
                .map(|text| text.parse().map_err(|e| QueryError::malformed("min_lsn", format!("{e}"))))
                .transpose()?,
            wait: wait(get("wait"))?,
            layout: match get("layout") {
                None | Some("rows") => Layout::Rows,
                Some("columns") => Layout::Columns,
                Some(_) => return Err(QueryError::malformed("layout", "use rows or columns")),
            },
            from,
            to,
            granularity,
            fixed,
            group_by,
            measures,
            order,
            fingerprint,
        })
    }

    /// The group's key where every dimension is fixed.
    #[must_use]
    pub fn whole_key(&self) -> Option<Vec<u8>> {
        let mut key = Vec::new();
        for value in &self.fixed {
            group_key::push(&mut key, value.as_ref()?.as_ref()).ok()?;
        }
        Some(key)
    }
}

fn check_names(parameters: &[(String, String)]) -> Result<(), QueryError> {
    for (index, (name, _)) in parameters.iter().enumerate() {
        if !PARAMETERS.contains(&name.as_str()) {
            let name: String = name.chars().take(64).collect();
            return Err(QueryError::malformed(&name, format!("there is no parameter {name:?}"))
                .code("unknown_parameter")
                .hint(did_you_mean(&name, PARAMETERS)));
        }
        if name != "where" && parameters.iter().take(index).any(|(other, _)| other == name) {
            return Err(QueryError::malformed(name, "it is given twice"));
        }
    }
    Ok(())
}

/// The asked granularity, if some stored one nests in it.
fn granularity(text: Option<&str>, plan: &Plan) -> Result<Granularity, QueryError> {
    let base = plan.levels.first().copied().unwrap_or(Granularity::All);
    let Some(text) = text else { return Ok(base) };
    let asked: Granularity = text.parse().map_err(|e| QueryError::malformed("granularity", format!("{e}")))?;
    if plan.levels.iter().any(|level| plan.calendar.nests(*level, asked).is_ok()) {
        return Ok(asked);
    }
    let reason = plan.calendar.nests(base, asked).err().map_or_else(String::new, |e| e.to_string());
    Err(QueryError::refused("granularity", "does_not_nest", reason)
        .hint(format!("this aggregate keeps {}", list(&plan.levels))))
}

fn list(levels: &[Granularity]) -> String {
    levels.iter().map(Granularity::to_string).collect::<Vec<_>>().join(", ")
}

fn fixed(parameters: &[(String, String)], plan: &Plan) -> Result<Vec<Option<Value>>, QueryError> {
    let mut fixed = vec![None; plan.dimensions.len()];
    for (_, text) in parameters.iter().filter(|(name, _)| name == "where") {
        condition::parse_into(text, &plan.dimensions, &mut fixed)?;
    }
    Ok(fixed)
}

/// Without `group_by`, all dimensions that are not fixed: a fixed one would say the same in every row.
fn group_by(text: Option<&str>, fixed: &[Option<Value>], plan: &Plan) -> Result<Vec<usize>, QueryError> {
    let Some(text) = text else {
        return Ok((0..plan.dimensions.len()).filter(|at| fixed.get(*at).is_none_or(Option::is_none)).collect());
    };
    let names = plan.dimensions.iter().map(|dimension| dimension.name.as_str());
    positions("group_by", "unknown_dimension", text, names)
}

fn measures(text: Option<&str>, plan: &Plan) -> Result<Vec<usize>, QueryError> {
    let Some(text) = text else { return Ok((0..plan.measures.len()).collect()) };
    positions("measures", "unknown_measure", text, plan.measures.iter().map(|measure| measure.name.as_str()))
}

/// The positions of a comma-separated list of names.
fn positions<'n>(
    parameter: &str,
    code: &'static str,
    text: &str,
    known: impl Iterator<Item = &'n str> + Clone,
) -> Result<Vec<usize>, QueryError> {
    let mut positions = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let Some(position) = known.clone().position(|other| other == name) else {
            return Err(QueryError::refused(parameter, code, format!("this aggregate has no {name:?}"))
                .hint(did_you_mean(name, known)));
        };
        if positions.contains(&position) {
            return Err(QueryError::malformed(parameter, format!("{name:?} is given twice")));
        }
        positions.push(position);
    }
    Ok(positions)
}

fn order(
    text: Option<&str>,
    granularity: Granularity,
    group_by: &[usize],
    measures: &[usize],
    plan: &Plan,
) -> Result<Order, QueryError> {
    let Some(text) = text else { return Ok(Order::STORED) };
    let (name, descending) = text.strip_prefix('-').map_or((text, false), |name| (name, true));
    if name == "time" && granularity != Granularity::All {
        return Ok(Order { by: OrderBy::Time, descending });
    }
    let dimensions = group_by.iter().filter_map(|at| plan.dimensions.get(*at)).map(|dimension| dimension.name.as_str());
    let measures = measures.iter().filter_map(|at| plan.measures.get(*at)).map(|measure| measure.name.as_str());
    if let Some(at) = dimensions.clone().position(|other| other == name) {
        return Ok(Order { by: OrderBy::Dimension(at), descending });
    }
    if let Some(at) = measures.clone().position(|other| other == name) {
        return Ok(Order { by: OrderBy::Measure(at), descending });
    }
    Err(QueryError::refused("order", "unknown_order", format!("the answer has no column {name:?} to order by"))
        .hint(did_you_mean(name, std::iter::once("time").chain(dimensions).chain(measures))))
}

fn bound(
    parameter: &str,
    text: Option<&str>,
    granularity: Granularity,
    plan: &Plan,
    now_us: i64,
) -> Result<Option<i64>, QueryError> {
    let Some(text) = text else { return Ok(None) };
    if plan.time.is_none() {
        return Err(QueryError::refused(parameter, "no_time", "this aggregate has no time bucket"));
    }
    let bound = instant::parse_bound(text, &plan.calendar, now_us).ok_or_else(|| {
        let text: String = text.chars().take(64).collect();
        QueryError::malformed(parameter, format!("{text:?} is not a time"))
            .hint("use 2026, 2026-03, 2026-03-01, 2026-03-01T00:00:00Z, now or -30d")
    })?;
    let snapped = match bound {
        Bound::At(instant) => instant,
        Bound::Ago(instant) => {
            // `all` has no edges: the base's are the finest that can be answered.
            let by = match granularity {
                Granularity::All => plan.levels.first().copied().unwrap_or(Granularity::All),
                other => other,
            };
            let interval = plan.calendar.interval(by, instant);
            if parameter == "to" && interval.start != instant { interval.end } else { interval.start }
        }
    };
    Ok(Some(snapped))
}

fn cursor(text: Option<&str>, order: Order, fingerprint: u64) -> Result<Option<Cursor>, QueryError> {
    let Some(text) = text else { return Ok(None) };
    if order != Order::STORED {
        return Err(QueryError::refused("cursor", "cursor_with_order", "only answers ordered by time have pages")
            .hint("leave `order` out, or raise `limit`"));
    }
    let cursor = Cursor::decode(text, fingerprint).filter(|cursor| group_key::decode(&cursor.key).is_some());
    cursor.map(Some).ok_or_else(|| {
        QueryError::malformed("cursor", "the cursor does not belong to this question")
            .code("bad_cursor")
            .hint("take it from `page.next` and change nothing but `from`, `to`, `measures` and `limit`")
    })
}

fn fill(text: Option<&str>, granularity: Granularity, group_by: &[usize], order: Order) -> Result<Fill, QueryError> {
    let fill = match text {
        None | Some("none") => return Ok(Fill::Absent),
        Some("zero") => Fill::Zero,
        Some("null") => Fill::Null,
        Some(_) => return Err(QueryError::malformed("fill", "use none, zero or null")),
    };
    if !group_by.is_empty() || granularity == Granularity::All || order != Order::STORED {
        return Err(QueryError::refused("fill", "fill_without_series", "only a series over time can be filled")
            .hint("ask with group_by= (empty), a granularity other than all, and no order"));
    }
    Ok(fill)
}

fn limit(text: Option<&str>) -> Result<usize, QueryError> {
    let Some(text) = text else { return Ok(DEFAULT_LIMIT) };
    match text.parse() {
        Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        _ => Err(QueryError::malformed("limit", format!("use a number from 1 to {MAX_LIMIT}"))
            .hint("longer answers come in pages: follow page.next")),
    }
}

/// `2s`, `500ms`.
fn wait(text: Option<&str>) -> Result<Duration, QueryError> {
    let Some(text) = text else { return Ok(Duration::ZERO) };
    let milliseconds = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(digits), _) => digits.parse::<u64>().ok(),
        (None, Some(digits)) => digits.parse::<u64>().ok().and_then(|seconds| seconds.checked_mul(1_000)),
        (None, None) => text.parse::<u64>().ok().filter(|none| *none == 0),
    };
    milliseconds
        .map(Duration::from_millis)
        .filter(|wait| *wait <= MAX_WAIT)
        .ok_or_else(|| QueryError::malformed("wait", "use a time such as 500ms or 2s, at most 30s"))
}

/// Two questions with the same fingerprint have the same rows under the same keys in the same order.
fn fingerprint(aggregate: &Aggregate, granularity: Granularity, fixed: &[Option<Value>], group_by: &[usize]) -> u64 {
    let mut hash = Fingerprint::default().with(aggregate.id.0.to_be_bytes()).with(granularity.to_string());
    for value in fixed {
        let mut key = Vec::new();
        if let Some(value) = value {
            // A value that cannot name a group matches none; it was refused when it was read.
            let _ = group_key::push(&mut key, value.as_ref());
        }
        hash = hash.with(key);
    }
    group_by.iter().fold(hash, |hash, position| hash.with(position.to_be_bytes())).finish()
}

/// When the bucket of an answer's row ends; `None` where it never does.
#[must_use]
pub fn bucket_end(plan: &Plan, granularity: Granularity, bucket: Bucket) -> Option<i64> {
    match bucket {
        Bucket::NEGATIVE_INFINITY => Some(i64::MIN),
        bucket if bucket.is_special() || granularity == Granularity::All => None,
        Bucket(start) => Some(plan.calendar.interval(granularity, start).end),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::query::fixture::{aggregate, daily, daily_in, parse};

    #[test]
    fn defaults_ask_for_everything_at_the_base() {
        let query = parse("", &daily()).unwrap();
        assert_eq!((query.from, query.to, query.granularity), (None, None, Granularity::Day));
        assert_eq!((query.group_by.as_slice(), query.measures.as_slice()), (&[0, 1][..], &[0, 1, 2][..]));
        assert_eq!((query.order, query.limit, query.fill), (Order::STORED, DEFAULT_LIMIT, Fill::Absent));
    }

    #[test]
    fn a_fixed_dimension_is_not_repeated_in_every_row_unless_asked_for() {
        assert_eq!(parse("where=country:EUR", &daily()).unwrap().group_by, [1]);
        assert_eq!(parse("where=country:EUR&group_by=country", &daily()).unwrap().group_by, [0]);
        assert_eq!(parse("group_by=", &daily()).unwrap().group_by, [0; 0]);
        assert_eq!(parse("group_by=merchant,country", &daily()).unwrap().group_by, [1, 0]);
        assert_eq!(parse("where=country:EUR&where=merchant:5", &daily()).unwrap().group_by, [0; 0]);
    }

    #[test]
    fn relative_bounds_move_outward_to_edges() {
        // Now is 2000-01-01T00:00:00Z, in Madrid one o'clock.
        let query = parse("from=-1h&to=now&granularity=month", &daily()).unwrap();
        assert_eq!((query.from, query.to), (Some(-31 * 86_400_000_000), Some(0)));
        let query = parse("from=now&to=now", &daily_in("Europe/Madrid")).unwrap();
        assert_eq!((query.from, query.to), (Some(-3_600_000_000), Some(82_800_000_000)));
    }

    #[test]
    fn what_cannot_be_answered_says_why() {
        let timeless = aggregate("");
        for (question, code, hint) in [
            ("granularty=day", "unknown_parameter", "did you mean \"granularity\"?"),
            ("from=2026&from=2027", "bad_parameter", ""),
            ("from=yesterday", "bad_parameter", "use 2026, 2026-03"),
            ("from=2027&to=2026", "empty_range", "`from` is inclusive"),
            ("granularity=hour", "does_not_nest", "this aggregate keeps day, month, year"),
            ("granularity=P10D", "does_not_nest", "this aggregate keeps"),
            ("granularity=fortnight", "bad_parameter", ""),
            ("measures=amont", "unknown_measure", "did you mean \"amount\"?"),
            ("group_by=country,contry", "unknown_dimension", "did you mean \"country\"?"),
            ("group_by=country,country", "bad_parameter", ""),
            ("order=-fee", "unknown_order", ""),
            ("group_by=&order=merchant", "unknown_order", ""),
            ("limit=0", "bad_parameter", "longer answers"),
            ("limit=100001", "bad_parameter", "longer answers"),
            ("cursor=00&order=-amount", "cursor_with_order", "leave `order` out"),
            ("cursor=00", "bad_cursor", "take it from"),
            ("fill=zero", "fill_without_series", "ask with group_by="),
            ("min_lsn=5", "bad_parameter", ""),
            ("wait=31s", "bad_parameter", ""),
            ("wait=2", "bad_parameter", ""),
            ("layout=table", "bad_parameter", ""),
        ] {
            let error = parse(question, &daily()).unwrap_err();
            assert_eq!(error.code, code, "{question}: {error}");
            assert!(error.hint.starts_with(hint), "{question}: {}", error.hint);
        }
        assert_eq!(parse("from=2026", &timeless).unwrap_err().code, "no_time");
    }

    #[test]
    fn cursors_belong_to_the_rows_they_came_from() {
        let query = parse("where=country:EUR", &daily()).unwrap();
        let cursor = Cursor { bucket: Bucket(0), key: vec![] }.encode(query.fingerprint);
        assert!(parse(&format!("where=country:EUR&cursor={cursor}&limit=5&measures=n"), &daily()).is_ok());
        for other in ["where=country:USD", "granularity=month", "group_by=merchant,country"] {
            assert_eq!(parse(&format!("{other}&cursor={cursor}"), &daily()).unwrap_err().code, "bad_cursor", "{other}");
        }
    }
}
