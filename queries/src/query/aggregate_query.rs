//! The question, typed and checked: every name is a position in the aggregate's plan, every time an instant.

use std::time::Duration;

use engine::change::{Column, ColumnType, Lsn, Value};
use engine::materialization::bucket::{WeekStart, YearStart};
use engine::materialization::filter::{Filter, constant_of};
use engine::materialization::plan::{RESERVED, zone_of};
use engine::materialization::{Aggregate, Bucket, Calendar, Granularity, Plan, group_key};
use serde_json::Value as Json;

use super::comparison::Period;
use super::condition;
use super::currency::refuse_mixing;
use super::cursor::Cursor;
use super::fingerprint::Fingerprint;
use super::having::{Having, answer_schema, as_told};
use super::instant::{self, Bound};
use super::output::{Output, OutputSource, outputs};
use super::planner;
use super::refusal::QueryError;
use super::request::{Fixed, QueryRequest};
use super::suggestion::did_you_mean;

/// Rows of one answer, unless asked otherwise.
pub const DEFAULT_LIMIT: usize = 10_000;
/// Most rows of one answer.
pub const MAX_LIMIT: usize = 100_000;
/// Longest wait for `min_lsn`.
pub const MAX_WAIT: Duration = Duration::from_secs(30);
/// Most rows of the table behind one row of an answer.
const MAX_ROWS_BEHIND: usize = 100;
/// Most columns to order by.
const MAX_ORDER: usize = 8;
/// What stands beside each measure of an answer with a comparison.
pub const COMPARED: [&str; 2] = ["previous", "change"];

/// A question to one aggregate.
#[derive(Clone, Debug, PartialEq)]
pub struct AggregateQuery {
    /// First instant inside; `None` where the range has no beginning.
    pub from: Option<i64>,
    /// First instant after; `None` where the range has no end.
    pub to: Option<i64>,
    /// Length of the answer's buckets.
    pub granularity: Granularity,
    /// Where the answer's buckets begin.
    pub calendar: Calendar,
    /// The value each dimension is fixed to, by position in the plan.
    pub fixed: Vec<Option<Value>>,
    /// A condition over the dimensions, by position in the plan.
    pub condition: Option<Filter>,
    /// Dimensions in the answer, by position in the plan, in the answer's order.
    pub group_by: Vec<usize>,
    /// Measures in the answer, in the answer's order.
    pub outputs: Vec<Output>,
    /// Rows that stay in the answer.
    pub having: Option<Having>,
    /// Order of the answer's rows; empty for the stored one: time, then key. Ties are broken that way too.
    pub order: Vec<Order>,
    /// Most rows.
    pub limit: usize,
    /// One more row that holds everything not shown.
    pub others: bool,
    /// The output, by position, whose part of the whole each row shows.
    pub share: Option<usize>,
    /// So many of the newest rows of the table behind each row.
    pub rows: Option<usize>,
    /// The same range so much earlier, beside each row.
    pub comparison: Option<Period>,
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
    /// When it was asked, microseconds since 2000-01-01 UTC; a page, when its first one was. 0 where the range does not depend on it,
    /// so that the same question has the same cursors.
    pub asked_us: i64,
    /// The asker's token fixes some of it: of what others have, nothing may be told, not even how much it is.
    pub pinned: bool,
}

/// What rows are ordered by first; ties are broken by time, then key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderBy {
    /// The bucket.
    Time,
    /// A dimension, by position in `group_by`.
    Dimension(usize),
    /// A measure, by position in `outputs`.
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
    /// The row before it once more; NULLs before the first.
    Previous,
}

impl AggregateQuery {
    /// Checks a question against an aggregate. `now_us` is what `now` and `-30d` are relative to.
    pub fn resolve(request: &QueryRequest, aggregate: &Aggregate, now_us: i64) -> Result<AggregateQuery, QueryError> {
        let condition = request.filter.as_deref().map(|text| condition_over(text, &aggregate.plan)).transpose()?;
        AggregateQuery::resolve_where(request, condition, aggregate, now_us)
    }

    /// As [`AggregateQuery::resolve`], with a condition over the plan's dimensions instead of the request's `filter`.
    pub fn resolve_where(
        request: &QueryRequest,
        condition: Option<Filter>,
        aggregate: &Aggregate,
        now_us: i64,
    ) -> Result<AggregateQuery, QueryError> {
        request.check_lists()?;
        let cursor = request.cursor.as_deref().map(|text| Cursor::decode(text).ok_or_else(bad_cursor)).transpose()?;
        let asked_us = cursor.as_ref().map_or(now_us, |(_, cursor)| cursor.asked_us);
        let plan = &*aggregate.plan;
        let calendar = calendar(request, aggregate)?;
        let asked = asked_granularity(request.granularity.as_deref(), plan)?;
        let bound = |parameter: &str, text: Option<&String>| {
            bound(parameter, text.map(String::as_str), asked, plan, &calendar, asked_us)
        };
        let (from, to) = (bound("from", request.from.as_ref())?, bound("to", request.to.as_ref())?);
        if from.zip(to).is_some_and(|(from, to)| from >= to) {
            return Err(QueryError::refused(
                "to",
                "empty_range",
                "the range is empty: it ends where it begins or before",
            )
            .hint("`from` is inclusive, `to` is exclusive"));
        }
        let relative = |text: &String| matches!(instant::parse_bound(text, &calendar, asked_us), Some(Bound::Ago(_)));
        let depends = request.from.iter().chain(&request.to).any(relative);
        let granularity = planner::answerable(asked, &calendar, planner::span(from, to), plan)?;
        let mut fixed = fixed(request, plan)?;
        // What a condition leaves one value of stays in the answer: its columns do not depend on how many values are listed.
        let group_by = group_by(request.group_by.as_deref(), &fixed, plan)?;
        let condition = condition.and_then(|condition| fix_equalities(condition, plan, &mut fixed));
        let outputs = outputs(request.measures.as_deref(), aggregate)?;
        refuse_mixing(plan, &fixed, ("group_by", &group_by), outputs.iter().flat_map(Output::measures))?;
        let order = order(request.order.as_deref(), granularity, &group_by, &outputs, plan)?;
        let having =
            request.having.as_deref().map(|text| Having::parse(text, plan, &group_by, &outputs)).transpose()?;
        let period = |text: &str| Period::of(text, (from, to), granularity, &calendar);
        let comparison = request.compare.as_deref().map(period).transpose()?;
        let fill = fill(request, granularity, &group_by, &order)?;
        if request.others {
            refuse_others(granularity, from.zip(to), &calendar, &order)?;
            refuse_mixing(plan, &fixed, ("others", &[]), outputs.iter().flat_map(Output::measures))?;
        }
        let share = request.share.then(|| shared_output(&order, &outputs)).transpose()?;
        // The whole that it is a part of.
        let shared = share.and_then(|at| outputs.get(at)).into_iter().flat_map(Output::measures);
        refuse_mixing(plan, &fixed, ("share", &[]), shared)?;
        let mut query = AggregateQuery {
            rows: request.rows.map(|rows| rows_per_group(rows, aggregate, &fixed, &group_by)).transpose()?,
            cursor: None,
            fill,
            limit: limit(request.limit)?,
            others: request.others,
            share,
            comparison,
            min_lsn: lsn(request.min_lsn.as_deref())?,
            wait: wait(request.wait.as_deref())?,
            layout: match request.layout.as_deref() {
                None | Some("rows") => Layout::Rows,
                Some("columns") => Layout::Columns,
                Some(_) => return Err(QueryError::malformed("layout", "use rows or columns")),
            },
            from,
            to,
            granularity,
            calendar,
            fixed,
            condition,
            group_by,
            outputs,
            having,
            order,
            fingerprint: 0,
            asked_us: if depends { asked_us } else { 0 },
            pinned: !request.pinned.is_empty(),
        };
        query.refuse_clashes(plan)?;
        query.fingerprint = query.fingerprint_of(aggregate);
        if let Some((question, cursor)) = cursor {
            if question != query.fingerprint || group_key::decode(&cursor.key).is_none() {
                return Err(bad_cursor());
            }
            query.cursor = Some(cursor);
        }
        Ok(query)
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

    /// Refuses an answer with two columns of one name: whoever reads it by names has one of the two.
    fn refuse_clashes(&self, plan: &Plan) -> Result<(), QueryError> {
        let dimensions = self.group_by.iter().filter_map(|at| plan.dimensions.get(*at));
        let mut names: Vec<String> = RESERVED.map(str::to_owned).into();
        names.extend(dimensions.map(|dimension| dimension.name.clone()));
        let outputs = self.outputs.iter().map(|output| ("measures", output.name.clone()));
        let compared = self.outputs.iter().filter(|_| self.comparison.is_some());
        let compared = compared.flat_map(|output| COMPARED.map(|what| ("compare", format!("{}_{what}", output.name))));
        let more = [("share", self.share.is_some()), ("rows", self.rows.is_some())];
        let more = more.into_iter().filter(|(_, asked)| *asked).map(|(name, _)| (name, name.to_owned()));
        for (parameter, name) in outputs.chain(compared).chain(more) {
            if names.contains(&name) {
                return Err(QueryError::malformed(parameter, format!("the answer has a column {name:?} already"))
                    .hint("name the measure otherwise: sum(amount) as total"));
            }
            names.push(name);
        }
        Ok(())
    }

    /// Whether rows come in the order in which cells are stored: time, then key.
    #[must_use]
    pub fn in_stored_order(&self) -> bool {
        self.order.is_empty()
    }

    /// Two questions with the same fingerprint have the same rows under the same keys in the same order.
    fn fingerprint_of(&self, aggregate: &Aggregate) -> u64 {
        let calendar = &self.calendar;
        let mut hash = Fingerprint::default()
            .with(aggregate.id.0.to_be_bytes())
            .with(self.granularity.to_string())
            .with(calendar.zone().name())
            .with(calendar.origin_us().to_be_bytes())
            .with(format!("{:?} {:?}", self.from, self.to))
            .with([calendar.week_start() as u8, calendar.year_start().month()]);
        if self.condition.is_some() || self.having.is_some() || !self.order.is_empty() {
            hash = hash.with(format!("{:?} {:?} {:?}", self.condition, self.having, self.order));
        }
        for value in &self.fixed {
            let mut key = Vec::new();
            if let Some(value) = value {
                // A value that cannot name a group matches none; it was refused when it was read.
                let _ = group_key::push(&mut key, value.as_ref());
            }
            hash = hash.with(key);
        }
        // What rows are ordered or chosen by has to stay; what else is shown of them may change from page to page.
        if !self.order.is_empty() || self.having.is_some() {
            hash = hash.with(format!("{:?}", self.outputs));
        }
        self.group_by.iter().fold(hash, |hash, position| hash.with(position.to_be_bytes())).finish()
    }
}

/// The stored calendar, with what the question says otherwise.
fn calendar(request: &QueryRequest, aggregate: &Aggregate) -> Result<Calendar, QueryError> {
    let mut calendar = aggregate.plan.calendar;
    if let Some(name) = &request.time_zone {
        let zone = zone_of(name).map_err(|unknown| {
            QueryError::malformed("time_zone", unknown.message).code("unknown_time_zone").hint(unknown.hint)
        })?;
        calendar = calendar.with_zone(zone);
    }
    let week_start = match request.week_start.as_deref() {
        None => calendar.week_start(),
        Some("monday") => WeekStart::Monday,
        Some("saturday") => WeekStart::Saturday,
        Some("sunday") => WeekStart::Sunday,
        Some(_) => return Err(QueryError::malformed("week_start", "use monday, saturday or sunday")),
    };
    let year_start = match request.year_start {
        None => calendar.year_start(),
        Some(month) => {
            YearStart::new(month).ok_or_else(|| QueryError::malformed("year_start", "use a month's number, 1 to 12"))?
        }
    };
    if let Some(text) = &request.origin {
        let instant = match instant::parse_bound(text, &calendar, 0) {
            Some(Bound::At(instant)) => instant,
            _ => return Err(QueryError::malformed("origin", "use an instant such as 1970-01-01T00:00:00Z")),
        };
        calendar = calendar.with_origin(instant);
    }
    Ok(calendar.with_starts(week_start, year_start))
}

fn asked_granularity(text: Option<&str>, plan: &Plan) -> Result<Granularity, QueryError> {
    match text {
        None => Ok(plan.levels.first().copied().unwrap_or(Granularity::All)),
        Some(text) => text.parse().map_err(|e| QueryError::malformed("granularity", format!("{e}"))),
    }
}

fn fixed(request: &QueryRequest, plan: &Plan) -> Result<Vec<Option<Value>>, QueryError> {
    let mut fixed = vec![None; plan.dimensions.len()];
    for (name, value) in &request.pinned {
        condition::fix(name, value.as_deref(), &plan.dimensions, &mut fixed)?;
    }
    let texts = match &request.fixed {
        None => &[],
        Some(Fixed::Text(text)) => std::slice::from_ref(text),
        Some(Fixed::Texts(texts)) => texts.as_slice(),
        Some(Fixed::Values(values)) => {
            for (name, value) in values {
                refuse_fraction(name, value, plan)?;
                condition::fix(name, json_text(value)?.as_deref(), &plan.dimensions, &mut fixed)?;
            }
            &[]
        }
    };
    for text in texts {
        condition::parse_into(text, &plan.dimensions, &mut fixed)?;
    }
    Ok(fixed)
}

/// Refuses a JSON number that was read as a double where the dimension is exact: it may be its neighbour by now.
fn refuse_fraction(name: &str, value: &Json, plan: &Plan) -> Result<(), QueryError> {
    let dimension = plan.dimensions.iter().find(|dimension| dimension.name == name);
    let of_doubles = |column_type: &ColumnType| matches!(column_type, ColumnType::Float4 | ColumnType::Float8);
    match dimension {
        Some(dimension) if value.is_f64() && !of_doubles(&dimension.column_type) => {
            Err(QueryError::refused("where", "bad_value", format!("{name} is exact, and a number of JSON is a double"))
                .hint(format!("write it as text: {{\"{name}\": \"12.50\"}}")))
        }
        _ => Ok(()),
    }
}

/// A JSON value as the text of a dimension's value; `None` for null.
fn json_text(value: &Json) -> Result<Option<String>, QueryError> {
    match value {
        Json::Null => Ok(None),
        Json::String(text) => Ok(Some(text.clone())),
        Json::Bool(_) | Json::Number(_) => Ok(Some(value.to_string())),
        Json::Array(_) | Json::Object(_) => {
            Err(QueryError::malformed("where", "a dimension is fixed to one value")
                .hint("use filter for IN and ranges"))
        }
    }
}

/// Reads a condition over the dimensions.
fn condition_over(text: &str, plan: &Plan) -> Result<Filter, QueryError> {
    let columns = plan
        .dimensions
        .iter()
        .map(|dimension| Column { name: dimension.name.clone(), column_type: dimension.column_type.clone() });
    Filter::parse(text, &answer_schema(columns.collect())).map_err(|error| {
        let known: Vec<&str> = plan.dimensions.iter().map(|dimension| dimension.name.as_str()).collect();
        QueryError::refused("filter", "bad_condition", as_told(&error, "a group"))
            .hint(format!("a condition over the dimensions: {}", known.join(", ")))
    })
}

/// Moves what fixes a dimension to one value from a condition to `fixed`, and returns what is left of it: the cells of a
/// fixed group are found without looking at others.
fn fix_equalities(filter: Filter, plan: &Plan, fixed: &mut [Option<Value>]) -> Option<Filter> {
    let mut rest: Option<Filter> = None;
    for conjunct in filter.into_conjuncts() {
        let single = conjunct.equals().and_then(|(at, values)| match values {
            [only] => Some((at, only.clone())),
            _ => None,
        });
        let slot = single.and_then(|(at, value)| {
            let dimension = plan.dimensions.get(at)?;
            let slot = fixed.get_mut(at).filter(|slot| slot.is_none())?;
            // The literal as the column would hold it: groups are found by their bytes.
            let stored = constant_of(&value_text(&value)?, true, &dimension.column_type)?;
            (stored == value).then_some((slot, value))
        });
        match slot {
            Some((slot, value)) => *slot = Some(value),
            None => {
                rest = Some(match rest {
                    None => conjunct,
                    Some(before) => Filter::And(Box::new(before), Box::new(conjunct)),
                });
            }
        }
    }
    rest
}

/// Values whose text is the same whoever writes it.
fn value_text(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text.clone()),
        Value::Int(v) => Some(v.to_string()),
        _ => None,
    }
}

/// Without `group_by`, all dimensions that `where` does not fix: a fixed one would say the same in every row.
fn group_by(asked: Option<&[String]>, fixed: &[Option<Value>], plan: &Plan) -> Result<Vec<usize>, QueryError> {
    let Some(asked) = asked else {
        return Ok((0..plan.dimensions.len()).filter(|at| fixed.get(*at).is_none_or(Option::is_none)).collect());
    };
    let names = plan.dimensions.iter().map(|dimension| dimension.name.as_str());
    positions("group_by", "unknown_dimension", asked, names)
}

/// The positions of names.
fn positions<'n>(
    parameter: &str,
    code: &'static str,
    asked: &[String],
    known: impl Iterator<Item = &'n str> + Clone,
) -> Result<Vec<usize>, QueryError> {
    let mut positions = Vec::new();
    for name in asked {
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
    asked: Option<&[String]>,
    granularity: Granularity,
    group_by: &[usize],
    outputs: &[Output],
    plan: &Plan,
) -> Result<Vec<Order>, QueryError> {
    let asked = asked.unwrap_or_default();
    if asked.len() > MAX_ORDER {
        return Err(QueryError::malformed("order", format!("at most {MAX_ORDER} columns")));
    }
    let mut order: Vec<Order> = Vec::new();
    for text in asked {
        let term = order_term(text, granularity, group_by, outputs, plan)?;
        if order.iter().any(|other| other.by == term.by) {
            return Err(QueryError::malformed("order", format!("{text:?} is given twice")));
        }
        order.push(term);
    }
    // Time, then key: that is how cells are stored.
    let stored = matches!(order.as_slice(), [Order { by: OrderBy::Time, descending: false }]);
    Ok(if stored { Vec::new() } else { order })
}

fn order_term(
    text: &str,
    granularity: Granularity,
    group_by: &[usize],
    outputs: &[Output],
    plan: &Plan,
) -> Result<Order, QueryError> {
    let (name, descending) = text.strip_prefix('-').map_or((text, false), |name| (name, true));
    if name == "time" && granularity != Granularity::All {
        return Ok(Order { by: OrderBy::Time, descending });
    }
    let dimensions = group_by.iter().filter_map(|at| plan.dimensions.get(*at)).map(|dimension| dimension.name.as_str());
    let measures = outputs.iter().map(|output| output.name.as_str());
    if let Some(at) = dimensions.clone().position(|other| other == name) {
        return Ok(Order { by: OrderBy::Dimension(at), descending });
    }
    if let Some(at) = measures.clone().position(|other| other == name) {
        return Ok(Order { by: OrderBy::Measure(at), descending });
    }
    Err(QueryError::refused("order", "unknown_order", format!("the answer has no column {name:?} to order by"))
        .hint(did_you_mean(name, std::iter::once("time").chain(dimensions).chain(measures))))
}

/// The measure that shares are of: the first one ordered by.
fn shared_output(order: &[Order], outputs: &[Output]) -> Result<usize, QueryError> {
    let candidate = order.iter().find_map(|order| match order.by {
        OrderBy::Measure(at) => Some(at),
        _ => None,
    });
    let additive = |at: &usize| outputs.get(*at).is_some_and(|output| matches!(output.source, OutputSource::Stored(_)));
    candidate.filter(additive).ok_or_else(|| {
        QueryError::refused("share", "share_of_what", "a share is of a sum or a count")
            .hint("order by the measure meant: order=-amount")
    })
}

/// How many rows are shown behind each of the answer's, which has to be a whole group: its rows lie together.
fn rows_per_group(
    asked: usize,
    aggregate: &Aggregate,
    fixed: &[Option<Value>],
    group_by: &[usize],
) -> Result<usize, QueryError> {
    if !(1..=MAX_ROWS_BEHIND).contains(&asked) {
        return Err(QueryError::malformed("rows", format!("use a number from 1 to {MAX_ROWS_BEHIND}")));
    }
    if !aggregate.definition.drill_through {
        let detail = format!("{} keeps no index of the rows behind its totals", aggregate.name);
        return Err(
            QueryError::refused("rows", "no_drill_through", detail).hint("register it with \"drill_through\": true")
        );
    }
    let open = fixed.iter().enumerate().find(|(at, value)| value.is_none() && !group_by.contains(at));
    match open.and_then(|(at, _)| aggregate.plan.dimensions.get(at)) {
        None => Ok(asked),
        Some(open) => {
            Err(QueryError::refused("rows", "rows_of_whole_groups", format!("rows of all {} are mixed", open.name))
                .hint(format!("add {0} to group_by, or fix it: where={0}:...", open.name)))
        }
    }
}

/// The rest in one row has no time of its own: the answer may have one bucket only.
fn refuse_others(
    granularity: Granularity,
    range: Option<(i64, i64)>,
    calendar: &Calendar,
    order: &[Order],
) -> Result<(), QueryError> {
    let one_bucket = granularity == Granularity::All
        || range.is_some_and(|(from, to)| to <= calendar.interval(granularity, from).end);
    if one_bucket && !order.is_empty() {
        return Ok(());
    }
    Err(QueryError::refused("others", "others_of_what", "others are the rest of one ordered list")
        .hint("ask with order=-amount, and granularity=all or a range of one bucket"))
}

/// Four digits, two and two.
fn is_written_as_a_day(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00"
}

fn bound(
    parameter: &str,
    text: Option<&str>,
    granularity: Granularity,
    plan: &Plan,
    calendar: &Calendar,
    now_us: i64,
) -> Result<Option<i64>, QueryError> {
    let Some(text) = text else { return Ok(None) };
    if plan.time.is_none() {
        return Err(QueryError::refused(parameter, "no_time", "this aggregate has no time bucket"));
    }
    let bound = instant::parse_bound(text, calendar, now_us).ok_or_else(|| {
        let text: String = text.chars().take(64).collect();
        let what = if is_written_as_a_day(&text) { "is no day of the calendar" } else { "is not a time" };
        QueryError::malformed(parameter, format!("{text:?} {what}"))
            .hint("use 2026, 2026-03, 2026-03-01, 2026-03-01T00:00:00Z, now or -30d")
    })?;
    let snapped = match bound {
        Bound::At(instant) => instant,
        Bound::Ago(instant) => {
            // `all` has no edges: the base's are the finest that can be answered.
            let (by, calendar) = match granularity {
                Granularity::All => (plan.levels.first().copied().unwrap_or(Granularity::All), &plan.calendar),
                other => (other, calendar),
            };
            let interval = calendar.interval(by, instant);
            if parameter == "to" && interval.start != instant { interval.end } else { interval.start }
        }
    };
    Ok(Some(snapped))
}

fn bad_cursor() -> QueryError {
    QueryError::malformed("cursor", "the cursor does not belong to this question")
        .code("bad_cursor")
        .hint("take it from `page.next` and change nothing but `limit`")
}

fn fill(
    request: &QueryRequest,
    granularity: Granularity,
    group_by: &[usize],
    order: &[Order],
) -> Result<Fill, QueryError> {
    let fill = match request.fill.as_deref() {
        None | Some("none") => return Ok(Fill::Absent),
        Some("zero") => Fill::Zero,
        Some("null") => Fill::Null,
        Some("previous") => Fill::Previous,
        Some(_) => return Err(QueryError::malformed("fill", "use none, zero, null or previous")),
    };
    let series = group_by.is_empty() && granularity != Granularity::All && order.is_empty();
    if !series || request.having.is_some() || (fill == Fill::Previous && request.cursor.is_some()) {
        return Err(QueryError::refused("fill", "fill_without_series", "only a series over time can be filled")
            .hint("ask with group_by= (empty), a granularity other than all, and neither order nor having; fill=previous on one page"));
    }
    Ok(fill)
}

fn limit(asked: Option<usize>) -> Result<usize, QueryError> {
    match asked.unwrap_or(DEFAULT_LIMIT) {
        limit if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        _ => Err(QueryError::malformed("limit", format!("use a number from 1 to {MAX_LIMIT}"))
            .hint("longer answers come in pages: follow page.next")),
    }
}

/// `0/16B6C50`, as Postgres writes it.
pub fn lsn(text: Option<&str>) -> Result<Option<Lsn>, QueryError> {
    text.map(|text| text.parse().map_err(|e| QueryError::malformed("min_lsn", format!("{e}")))).transpose()
}

/// How long to wait for a position; not at all unless asked.
pub fn wait(text: Option<&str>) -> Result<Duration, QueryError> {
    let Some(text) = text else { return Ok(Duration::ZERO) };
    duration(text)
        .filter(|wait| *wait <= MAX_WAIT)
        .ok_or_else(|| QueryError::malformed("wait", "use a time such as 500ms or 2s, at most 30s"))
}

/// Reads `2s`, `500ms`, `0`.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let milliseconds = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(digits), _) => digits.parse::<u64>().ok(),
        (None, Some(digits)) => digits.parse::<u64>().ok().and_then(|seconds| seconds.checked_mul(1_000)),
        (None, None) => text.parse::<u64>().ok().filter(|none| *none == 0),
    };
    milliseconds.map(Duration::from_millis)
}

/// When the bucket of an answer's row ends; `None` where it never does.
#[must_use]
pub fn bucket_end(calendar: &Calendar, granularity: Granularity, bucket: Bucket) -> Option<i64> {
    match bucket {
        Bucket::NEGATIVE_INFINITY => Some(i64::MIN),
        bucket if bucket.is_special() || granularity == Granularity::All => None,
        Bucket(start) => Some(calendar.interval(granularity, start).end),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::query::fixture::{aggregate, daily, daily_in, parse};
    use crate::query::request::MAX_LISTED;

    #[test]
    fn defaults_ask_for_everything_at_the_base() {
        let query = parse("", &daily()).unwrap();
        assert_eq!((query.from, query.to, query.granularity), (None, None, Granularity::Day));
        assert_eq!(query.group_by, [0, 1]);
        assert_eq!(query.outputs.iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["amount", "units", "n"]);
        assert_eq!((query.order, query.limit, query.fill), (Vec::new(), DEFAULT_LIMIT, Fill::Absent));
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
            ("from=2026&to=2026", "empty_range", "`from` is inclusive"),
            ("granularity=hour", "does_not_nest", "this aggregate keeps day, month, year"),
            ("granularity=PT6H", "does_not_nest", "this aggregate keeps"),
            ("granularity=fortnight", "bad_parameter", ""),
            ("measures=amont", "unknown_measure", "did you mean \"amount\"?"),
            ("group_by=country,contry", "unknown_dimension", "did you mean \"country\"?"),
            ("group_by=country,country", "bad_parameter", ""),
            ("order=-fee", "unknown_order", ""),
            ("group_by=&order=merchant", "unknown_order", ""),
            ("limit=0", "bad_parameter", "longer answers"),
            ("limit=100001", "bad_parameter", "longer answers"),
            ("order=amount,-amount", "bad_parameter", ""),
            ("having=amont > 3", "bad_condition", "a condition over the answer's columns"),
            ("filter=amount > 3", "bad_condition", "a condition over the dimensions: country, merchant"),
            ("time_zone=Mars", "unknown_time_zone", "for example"),
            ("time_zone=Europe/Madrid", "does_not_nest", "this aggregate keeps"),
            ("week_start=friday", "bad_parameter", ""),
            ("year_start=13", "bad_parameter", ""),
            ("others=true&order=-amount", "others_of_what", "ask with order"),
            ("others=true&granularity=all", "others_of_what", "ask with order"),
            ("share=true", "share_of_what", "order by the measure"),
            ("others=maybe", "bad_parameter", ""),
            ("compare=previous", "compare_needs_range", "give from and to"),
            ("compare=P1Y&from=2026&to=2027&granularity=week", "compare_misfit", "use P1W or P52W"),
            ("measures=n as country", "bad_parameter", "name the measure otherwise"),
            ("measures=n as others", "bad_parameter", "name the measure otherwise"),
            (
                "measures=n,units as n_change&compare=P1Y&from=2026&to=2027",
                "bad_parameter",
                "name the measure otherwise",
            ),
            (
                "measures=n as share&order=-share&share=true&group_by=merchant",
                "bad_parameter",
                "name the measure otherwise",
            ),
            ("time_zone=CET", "unknown_time_zone", "name a city's"),
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
        for (question, said) in [
            ("having=amont > 3", "the answer has no column amont"),
            ("filter=amount > 3", "a group has no column amount"),
        ] {
            let error = parse(question, &daily()).unwrap_err().to_string();
            assert!(error.contains(said), "{question}: {error}");
        }
    }

    #[test]
    fn an_exact_dimension_is_fixed_by_text_and_not_by_a_double() {
        let fixed = |json: &str, aggregate: &Aggregate| {
            let request: QueryRequest = serde_json::from_str(&format!(r#"{{"where":{json}}}"#)).unwrap();
            AggregateQuery::resolve(&request, aggregate, 0).map(|query| query.fixed).map_err(|error| error.code)
        };
        assert_eq!(fixed(r#"{"merchant":42}"#, &daily()), Ok(vec![None, Some(Value::Int(42))]));
        assert_eq!(fixed(r#"{"merchant":9007199254740993.0}"#, &daily()), Err("bad_value"));
        assert_eq!(fixed(r#"{"merchant":98765432109876543210}"#, &daily()), Err("bad_value"));
    }

    #[test]
    fn the_columns_of_an_answer_do_not_depend_on_how_many_values_a_condition_leaves() {
        for filter in ["country = 'ES'", "country IN ('ES')", "country IN ('ES', 'FR')"] {
            let query = parse_filter(filter);
            assert_eq!(query.group_by, [0, 1], "{filter}");
        }
        assert_eq!(parse_filter("country IN ('ES')").fixed, [Some(Value::Text("ES".to_owned())), None]);
    }

    fn parse_filter(filter: &str) -> AggregateQuery {
        let request = QueryRequest { filter: Some(filter.to_owned()), ..QueryRequest::default() };
        AggregateQuery::resolve(&request, &daily(), 0).unwrap()
    }

    #[test]
    fn long_lists_are_refused() {
        let list = |one: &str, count: usize| vec![one; count].join(",");
        let measures = |count: usize| (0..count).map(|at| format!("n as n{at},")).collect::<String>();
        let most = parse(&format!("measures={}", measures(MAX_LISTED)), &daily()).unwrap();
        assert_eq!(most.outputs.len(), MAX_LISTED);
        assert!(parse(&format!("where={}", list("country:EUR", MAX_LISTED)), &daily()).is_ok());
        for (parameter, longer) in [
            ("measures", measures(MAX_LISTED + 1)),
            ("group_by", list("country", MAX_LISTED + 1)),
            ("where", list("country:EUR", MAX_LISTED + 1)),
        ] {
            let error = parse(&format!("{parameter}={longer}"), &daily()).unwrap_err();
            assert_eq!((error.code, error.parameter.as_str()), ("too_many", parameter), "{error}");
            assert_eq!(error.detail, "more than 64 are listed");
        }
        // Repeated in the URL, or an object in a body.
        let repeated = list("where=country:EUR", MAX_LISTED + 1).replace(',', "&");
        assert_eq!(parse(&repeated, &daily()).unwrap_err().code, "too_many");
        let object: serde_json::Map<String, Json> = (0..=MAX_LISTED).map(|at| (format!("d{at}"), Json::Null)).collect();
        let request = QueryRequest { fixed: Some(Fixed::Values(object)), ..QueryRequest::default() };
        assert_eq!(AggregateQuery::resolve(&request, &daily(), 0).unwrap_err().code, "too_many");
    }

    #[test]
    fn a_day_that_the_calendar_lacks_is_told_from_what_is_no_time() {
        for (question, detail) in [
            ("from=2026-02-29", r#""2026-02-29" is no day of the calendar"#),
            ("to=2026-13-01", r#""2026-13-01" is no day of the calendar"#),
            ("from=2026-2-29", r#""2026-2-29" is not a time"#),
            ("from=yesterday", r#""yesterday" is not a time"#),
        ] {
            let error = parse(question, &daily()).unwrap_err();
            assert_eq!((error.code, error.detail.as_str()), ("bad_parameter", detail));
        }
        assert!(parse("from=2028-02-29", &daily()).is_ok());
    }

    #[test]
    fn cursors_belong_to_the_rows_they_came_from() {
        let query = parse("where=country:EUR", &daily()).unwrap();
        let (bucket, key, values) = (Bucket(0), vec![], vec![]);
        let cursor = Cursor { process: 1, sequence: 1, asked_us: 0, bucket, key, values }.encode(query.fingerprint);
        assert!(parse(&format!("where=country:EUR&cursor={cursor}&limit=5&measures=n"), &daily()).is_ok());
        for other in [
            "where=country:USD",
            "granularity=month",
            "group_by=merchant,country",
            "order=-n",
            "week_start=sunday",
            "from=2026",
        ] {
            assert_eq!(parse(&format!("{other}&cursor={cursor}"), &daily()).unwrap_err().code, "bad_cursor", "{other}");
        }
    }

    #[test]
    fn all_pages_are_of_the_range_of_the_first() {
        const DAY_US: i64 = 86_400_000_000;
        let ask = |cursor: Option<String>, now_us: i64| {
            let (from, cursor) = (Some("-7d".to_owned()), cursor);
            AggregateQuery::resolve(&QueryRequest { from, cursor, ..QueryRequest::default() }, &daily(), now_us)
        };
        let first = ask(None, 100 * DAY_US - 1).unwrap();
        let (bucket, key, values) = (Bucket(95 * DAY_US), vec![], vec![]);
        let page = Cursor { process: 1, sequence: 1, asked_us: first.asked_us, bucket, key, values };
        let next = ask(Some(page.encode(first.fingerprint)), 100 * DAY_US + 1).unwrap();
        assert_eq!((next.from, next.asked_us), (Some(92 * DAY_US), 100 * DAY_US - 1));
        assert_eq!(ask(None, 100 * DAY_US + 1).unwrap().from, Some(93 * DAY_US));
    }
}
