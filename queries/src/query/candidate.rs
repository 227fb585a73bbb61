//! Which aggregate answers a question to a table: every one over it is tried, the cheapest that can is asked, and each
//! other one has a reason.
//!
//! An aggregate answers where it keeps every row that is asked about. Its filter has to follow from the question's: each of
//! its conditions is one of the question's, or is true of every value that the question leaves its column. What the question
//! asks beyond that has to be about dimensions, where it can still be applied.

use std::sync::Arc;

use engine::change::{ColumnType, TableSchema};
use engine::materialization::filter::Filter;
use engine::materialization::{Aggregate, Definition, Granularity, MeasureDefinition, TimeDefinition};

use super::aggregate_query::AggregateQuery;
use super::condition::pairs;
use super::output::needed_measures;
use super::planner::ReadPlan;
use super::refusal::QueryError;
use super::request::{Fixed, QueryRequest};
use super::suggestion::did_you_mean;

/// An aggregate that can answer, and how.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The aggregate.
    pub aggregate: Arc<Aggregate>,
    /// The question to it.
    pub query: AggregateQuery,
    /// What is read for it.
    pub reads: ReadPlan,
}

/// Why an aggregate cannot answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotThis {
    /// Its name.
    pub aggregate: String,
    /// Why.
    pub reason: QueryError,
}

/// Sorts aggregates over a table into those that can answer a question and those that cannot. `restrict` gives what of the question
/// may be asked of one; what is refused of all of them is so however each is restricted.
pub fn candidates<E: From<QueryError>>(
    request: &QueryRequest,
    aggregates: &[Arc<Aggregate>],
    schema: &TableSchema,
    now_us: i64,
    restrict: impl Fn(&Aggregate, &QueryRequest) -> Result<QueryRequest, E>,
) -> Result<(Vec<Candidate>, Vec<NotThis>), E> {
    request.check_lists()?;
    let request = explicit(request)?;
    check_columns(&request, schema)?;
    let asked = request.filter.as_deref().map(|text| table_filter(text, schema)).transpose()?;
    let conjuncts = asked.map(Filter::into_conjuncts).unwrap_or_default();
    let time = time_column(&request, aggregates, schema)?;
    let (mut able, mut unable) = (Vec::new(), Vec::new());
    for aggregate in aggregates {
        match candidate(&restrict(aggregate, &request)?, &conjuncts, time.as_deref(), aggregate, schema, now_us) {
            Ok(candidate) => able.push(candidate),
            Err(reason) => unable.push(NotThis { aggregate: aggregate.name.clone(), reason }),
        }
    }
    Ok((able, unable))
}

/// Of a table nothing is a matter of course: without a granularity it is everything, without dimensions one row, and days are
/// those of UTC, whichever aggregate answers.
fn explicit(request: &QueryRequest) -> Result<QueryRequest, QueryError> {
    let measures = request.measures.as_deref().unwrap_or_default();
    if measures.is_empty() || needed_measures(measures).is_none() {
        return Err(QueryError::malformed("measures", "of a table, measures are functions of its columns")
            .hint(r#"for example ["sum(amount)", "count(*)", "avg(amount) as mean"]"#));
    }
    let mut request = request.clone();
    let granularity = request.granularity.get_or_insert_with(|| Granularity::All.to_string());
    if matches!(granularity.parse(), Ok(Granularity::Step(_))) {
        request.origin.get_or_insert_with(|| "2000-01-01T00:00:00Z".to_owned());
    }
    request.time_zone.get_or_insert_with(|| "UTC".to_owned());
    request.group_by.get_or_insert_default();
    Ok(request)
}

/// Refuses a name that is no column of the table: no aggregate could answer, and none can be suggested.
fn check_columns(request: &QueryRequest, schema: &TableSchema) -> Result<(), QueryError> {
    let mut named: Vec<(&str, String)> = Vec::new();
    let measures = needed_measures(request.measures.as_deref().unwrap_or_default()).unwrap_or_default();
    let summed = measures.into_iter().filter_map(|measure| measure.sum.or(measure.count));
    named.extend(summed.filter(|column| column != "*").map(|column| ("measures", column)));
    named.extend(request.group_by.iter().flatten().map(|column| ("group_by", column.clone())));
    let fixed = match &request.fixed {
        None => Vec::new(),
        Some(Fixed::Values(values)) => values.keys().cloned().collect(),
        Some(Fixed::Text(text)) => columns_fixed(text)?,
        Some(Fixed::Texts(texts)) => {
            texts.iter().map(|text| columns_fixed(text)).collect::<Result<Vec<_>, _>>()?.concat()
        }
    };
    named.extend(fixed.into_iter().map(|column| ("where", column)));
    let Some((parameter, wrong)) = named.iter().find(|(_, column)| schema.column_index(column).is_none()) else {
        return Ok(());
    };
    let known = schema.columns.iter().map(|column| column.name.as_str()).filter(|name| !name.is_empty());
    let message = format!("{} has no column {wrong:?}", schema.qualified_name());
    Err(QueryError::refused(parameter, "unknown_column", message).hint(did_you_mean(wrong, known)))
}

fn columns_fixed(text: &str) -> Result<Vec<String>, QueryError> {
    Ok(pairs(text)?.into_iter().map(|(column, _)| column).collect())
}

fn table_filter(text: &str, schema: &TableSchema) -> Result<Filter, QueryError> {
    Filter::parse(text, schema).map_err(|error| {
        QueryError::refused("filter", "bad_condition", error.to_string())
            .hint(format!("a condition over the columns of {}", schema.qualified_name()))
    })
}

fn is_about_time(request: &QueryRequest) -> bool {
    request.from.is_some() || request.to.is_some() || request.granularity.as_deref() != Some("all")
}

/// The column that the question's times are about: the one named, or the only one that there is. Refused where aggregates take one
/// value of it for different instants: the cheapest would decide what the question means.
fn time_column(
    request: &QueryRequest,
    aggregates: &[Arc<Aggregate>],
    schema: &TableSchema,
) -> Result<Option<String>, QueryError> {
    if let Some(named) = request.time.as_ref().filter(|named| schema.column_index(named).is_none()) {
        let known = schema.columns.iter().map(|column| column.name.as_str());
        return Err(QueryError::malformed("time", format!("{} has no column {named:?}", schema.qualified_name()))
            .hint(did_you_mean(named, known)));
    }
    if !is_about_time(request) {
        return Ok(request.time.clone());
    }
    let column = named_or_only(request, aggregates)?;
    let by_column = |time: &&TimeDefinition| Some(&time.column) == column.as_ref();
    let mut readings: Vec<String> = aggregates
        .iter()
        .filter_map(|aggregate| aggregate.definition.time.as_ref())
        .filter(by_column)
        .map(|time| reading(time, schema))
        .collect();
    readings.sort_unstable();
    readings.dedup();
    if readings.len() > 1 {
        return Err(QueryError::malformed("time", "aggregates read this column differently")
            .code("time_ambiguous")
            .hint(format!("ask one of them by its name; they read it as {}", readings.join(", as "))));
    }
    Ok(column)
}

/// How a value of the column is an instant.
fn reading(time: &TimeDefinition, schema: &TableSchema) -> String {
    let column = schema.column_index(&time.column).and_then(|at| schema.columns.get(at));
    let zone = time.assume_time_zone.as_deref().unwrap_or("UTC");
    match (&time.codec, column.map(|column| &column.column_type)) {
        (Some(codec), _) => format!("{codec:?} of {zone}"),
        (None, Some(ColumnType::Timestamp)) => format!("a clock of {zone}"),
        (None, _) => "an instant".to_owned(),
    }
}

fn named_or_only(request: &QueryRequest, aggregates: &[Arc<Aggregate>]) -> Result<Option<String>, QueryError> {
    if request.time.is_some() {
        return Ok(request.time.clone());
    }
    let mut columns: Vec<&str> =
        aggregates.iter().filter_map(|aggregate| Some(aggregate.definition.time.as_ref()?.column.as_str())).collect();
    columns.sort_unstable();
    columns.dedup();
    match columns.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some((*only).to_owned())),
        several => Err(QueryError::malformed("time", "there are aggregates by different time columns")
            .code("time_ambiguous")
            .hint(format!("say which is meant: {}", several.join(", ")))),
    }
}

fn candidate(
    request: &QueryRequest,
    conjuncts: &[Filter],
    time: Option<&str>,
    aggregate: &Arc<Aggregate>,
    schema: &TableSchema,
    now_us: i64,
) -> Result<Candidate, QueryError> {
    if is_about_time(request) {
        check_time(time, aggregate)?;
    }
    let condition = applicable(conjuncts, aggregate, schema)?;
    let query = AggregateQuery::resolve_where(request, condition, aggregate, now_us)?;
    let reads = ReadPlan::choose(&query, &aggregate.plan)?;
    Ok(Candidate { aggregate: Arc::clone(aggregate), query, reads })
}

fn check_time(asked: Option<&str>, aggregate: &Aggregate) -> Result<(), QueryError> {
    match aggregate.definition.time.as_ref().map(|time| time.column.as_str()) {
        Some(own) if Some(own) == asked => Ok(()),
        Some(own) => Err(QueryError::refused("time", "other_time", format!("its time is {own}"))),
        None => Err(QueryError::refused("time", "no_time", "it has no time bucket")),
    }
}

/// What of the question's conditions is left to apply to the aggregate's groups.
fn applicable(conjuncts: &[Filter], aggregate: &Aggregate, schema: &TableSchema) -> Result<Option<Filter>, QueryError> {
    let plan = &aggregate.plan;
    let kept = plan.filter.clone().map(Filter::into_conjuncts).unwrap_or_default();
    if let Some(missing) = kept.iter().find(|own| !conjuncts.iter().any(|asked| implies(asked, own, schema))) {
        let column = names(missing, schema);
        return Err(QueryError::refused(
            "filter",
            "filter_not_implied",
            format!(
                "it keeps only rows where {}; the question does not say so of {column}",
                aggregate.definition.filter.as_deref().unwrap_or_default()
            ),
        ));
    }
    let position = |column: usize| plan.dimensions.iter().position(|dimension| dimension.column == column);
    let mut condition: Option<Filter> = None;
    for asked in conjuncts.iter().filter(|asked| !kept.contains(asked)) {
        let moved = asked.moved(&position).ok_or_else(|| {
            let column = names(asked, schema);
            QueryError::refused(
                "filter",
                "not_a_dimension",
                format!("the condition is about {column}, which it does not keep apart"),
            )
        })?;
        condition = Some(match condition {
            None => moved,
            Some(before) => Filter::And(Box::new(before), Box::new(moved)),
        });
    }
    Ok(condition)
}

/// Whether every row that satisfies `asked` satisfies `own`.
fn implies(asked: &Filter, own: &Filter, schema: &TableSchema) -> bool {
    if asked == own {
        return true;
    }
    let Some((column, values)) = asked.equals() else { return false };
    let mut columns = Vec::new();
    own.columns(&mut columns);
    if columns.iter().any(|other| *other != column) {
        return false;
    }
    let mut row = vec![engine::change::ValueRef::Null; schema.columns.len()];
    values.iter().all(|value| {
        if let Some(slot) = row.get_mut(column) {
            *slot = value.as_ref();
        }
        own.accepts(&row)
    })
}

fn names(filter: &Filter, schema: &TableSchema) -> String {
    let mut columns = Vec::new();
    filter.columns(&mut columns);
    columns.sort_unstable();
    columns.dedup();
    let names = columns.iter().filter_map(|at| schema.columns.get(*at)).map(|column| column.name.as_str());
    names.collect::<Vec<_>>().join(", ")
}

/// The smallest definition that answers a question to a table; `None` where no definition could. What a sum needs beyond the
/// question, the scale of a `numeric` that declares none, is as one of these aggregates has it.
#[must_use]
pub fn smallest_definition<'a>(
    request: &QueryRequest,
    schema: &TableSchema,
    aggregates: impl Iterator<Item = &'a Arc<Aggregate>> + Clone,
) -> Option<Definition> {
    let mut dimensions = request.group_by.clone().unwrap_or_default();
    if let Some(Fixed::Values(values)) = &request.fixed {
        dimensions.extend(
            values.keys().filter(|name| !request.group_by.iter().flatten().any(|other| other == *name)).cloned(),
        );
    }
    let known = |name: &String| schema.column_index(name).is_some();
    let granularity = request.granularity.as_deref().map_or(Ok(Granularity::All), str::parse).ok()?;
    let timed = request.from.is_some() || request.to.is_some() || granularity != Granularity::All;
    let times = schema.columns.iter().filter(|column| {
        matches!(column.column_type, ColumnType::Timestamp | ColumnType::TimestampTz | ColumnType::Date)
    });
    let time = request.time.clone().or_else(|| times.map(|column| column.name.clone()).next());
    let time = match (timed, time) {
        (false, _) => None,
        (true, Some(column)) if is_integer(&column, schema) => return None,
        (true, Some(column)) => Some(TimeDefinition {
            column,
            codec: None,
            // A range of everything is cut at days.
            granularity: if granularity == Granularity::All { Granularity::Day } else { granularity },
            time_zone: request.time_zone.clone().unwrap_or_else(|| "UTC".to_owned()),
            assume_time_zone: None,
            origin: None,
        }),
        (true, None) => return None,
    };
    let mut measures = needed_measures(request.measures.as_deref()?)?;
    let over = aggregates.filter(|other| other.definition.qualified_table() == schema.qualified_name());
    let others = over.filter(|other| !other.state.is_halted()).flat_map(|other| &other.definition.measures);
    for measure in measures.iter_mut().filter(|measure| lacks_scale(measure, schema)) {
        measure.scale = others.clone().filter(|other| other.sum == measure.sum).filter_map(|other| other.scale).max();
    }
    dimensions.iter().all(known).then_some(Definition {
        table: schema.qualified_name(),
        measures,
        dimensions,
        time,
        rollups: Vec::new(),
        filter: request.filter.clone(),
        drill_through: false,
    })
}

/// The column of a definition whose sum somebody has to give a scale before it can be registered.
#[must_use]
pub fn without_scale<'d>(definition: &'d Definition, schema: &TableSchema) -> Option<&'d str> {
    let measure = definition.measures.iter().find(|measure| lacks_scale(measure, schema))?;
    measure.sum.as_deref()
}

fn lacks_scale(measure: &MeasureDefinition, schema: &TableSchema) -> bool {
    let column = measure.sum.as_deref().and_then(|sum| schema.column_index(sum)).and_then(|at| schema.columns.get(at));
    let undeclared = column.is_some_and(|column| matches!(column.column_type, ColumnType::Numeric { scale: None }));
    undeclared && measure.scale.is_none()
}

/// Whether a time by this column needs a codec that only its owner knows.
fn is_integer(column: &str, schema: &TableSchema) -> bool {
    let column_type =
        schema.column_index(column).and_then(|at| schema.columns.get(at)).map(|column| &column.column_type);
    matches!(column_type, Some(ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine::materialization::{AggregateId, AggregateState, Plan};

    use super::*;
    use crate::query::fixture::schema;
    use crate::query::request::MAX_LISTED;

    fn registered(name: &str, rest: &str) -> Arc<Aggregate> {
        let text = format!(r#"{{"table":"payments",{rest}}}"#);
        let definition: Definition = serde_json::from_str(&text).unwrap();
        let plan = Arc::new(Plan::resolve(&definition, &schema()).unwrap());
        Arc::new(Aggregate {
            id: AggregateId(1),
            name: name.to_owned(),
            version: 1,
            definition,
            plan,
            state: AggregateState::Live,
        })
    }

    #[test]
    fn a_column_that_is_read_by_two_clocks_has_no_cheapest_reading() {
        let visits = |name: &str, zone: &str| {
            let rest = format!(
                r#""measures":[{{"name":"n","count":"*"}}],"time":{{"column":"at","granularity":"hour","assume_time_zone":"{zone}"}}"#
            );
            let definition: Definition = serde_json::from_str(&format!(r#"{{"table":"visits",{rest}}}"#)).unwrap();
            let plan = Arc::new(Plan::resolve(&definition, &clocks()).unwrap());
            Arc::new(Aggregate {
                definition,
                plan,
                ..registered(name, r#""measures":[{"name":"n","count":"*"}]"#).as_ref().clone()
            })
        };
        let ask = |granularity: &str, aggregates: &[Arc<Aggregate>]| {
            let (measures, granularity) = (Some(vec!["count(*)".to_owned()]), Some(granularity.to_owned()));
            let request = QueryRequest { measures, granularity, ..QueryRequest::default() };
            candidates(&request, aggregates, &clocks(), 0).map(|(able, _)| able.len()).map_err(|error| error.code)
        };
        let (utc, madrid) = (visits("utc", "UTC"), visits("madrid", "Europe/Madrid"));
        assert_eq!(ask("day", &[Arc::clone(&utc), Arc::clone(&madrid)]), Err("time_ambiguous"));
        assert_eq!(ask("all", &[Arc::clone(&utc), Arc::clone(&madrid)]), Ok(2));
        let (measures, time) = (Some(vec!["count(*)".to_owned()]), Some("att".to_owned()));
        let misspelt = QueryRequest { measures, time, ..QueryRequest::default() };
        let error = candidates(&misspelt, &[Arc::clone(&utc)], &clocks(), 0).map(|(able, _)| able.len()).unwrap_err();
        assert_eq!((error.code, error.hint.as_str()), ("bad_parameter", "did you mean \"at\"?"));
        assert_eq!(ask("day", &[Arc::clone(&utc), utc]), Ok(2));
    }

    /// A table whose time has no zone.
    fn clocks() -> TableSchema {
        let mut schema = schema();
        schema.name = "visits".to_owned();
        for column in schema.columns.iter_mut().filter(|column| column.name == "ts") {
            (column.name, column.column_type) = ("at".to_owned(), ColumnType::Timestamp);
        }
        schema
    }

    fn candidates(
        request: &QueryRequest,
        aggregates: &[Arc<Aggregate>],
        schema: &TableSchema,
        now_us: i64,
    ) -> Result<(Vec<Candidate>, Vec<NotThis>), QueryError> {
        super::candidates(request, aggregates, schema, now_us, |_, request| Ok(request.clone()))
    }

    fn some() -> Vec<Arc<Aggregate>> {
        let measures = r#""measures":[{"name":"total","sum":"units"},{"name":"filled","count":"units"}]"#;
        let by = |granularity: &str| format!(r#""time":{{"column":"ts","granularity":"{granularity}"}}"#);
        vec![
            registered("monthly", &format!(r#"{measures},"dimensions":["country","merchant"],{}"#, by("month"))),
            registered("spain", &format!(r#"{measures},"where":"country = 'ES'",{}"#, by("day"))),
            registered("large", &format!(r#"{measures},"where":"merchant > 10","dimensions":["merchant"]"#)),
        ]
    }

    fn ask(request: &str) -> (Vec<String>, Vec<(String, &'static str)>) {
        let request: QueryRequest = serde_json::from_str(request).unwrap();
        let (able, unable) = candidates(&request, &some(), &schema(), 0).unwrap();
        let able = able.into_iter().map(|candidate| candidate.aggregate.name.clone()).collect();
        (able, unable.into_iter().map(|not| (not.aggregate, not.reason.code)).collect())
    }

    #[test]
    fn filters_have_to_follow_and_the_rest_has_to_be_about_dimensions() {
        let no = |aggregate: &str, code| (aggregate.to_owned(), code);
        let sum = r#""measures":["sum(units)"]"#;
        assert_eq!(
            ask(&format!("{{{sum}}}")),
            (vec!["monthly".to_owned()], vec![no("spain", "filter_not_implied"), no("large", "filter_not_implied")])
        );
        assert_eq!(
            ask(&format!(r#"{{{sum},"filter":"country = 'ES'"}}"#)),
            (vec!["monthly".to_owned(), "spain".to_owned()], vec![no("large", "filter_not_implied")])
        );
        assert_eq!(
            ask(&format!(r#"{{{sum},"filter":"merchant in (11, 12)"}}"#)),
            (vec!["monthly".to_owned(), "large".to_owned()], vec![no("spain", "filter_not_implied")])
        );
        assert_eq!(
            ask(&format!(r#"{{{sum},"filter":"merchant in (10, 12)"}}"#)).1,
            [no("spain", "filter_not_implied"), no("large", "filter_not_implied")]
        );
        assert_eq!(
            ask(&format!(r#"{{{sum},"filter":"country = 'ES' and units > 3"}}"#)).1,
            [no("monthly", "not_a_dimension"), no("spain", "not_a_dimension"), no("large", "filter_not_implied")]
        );
    }

    #[test]
    fn measures_dimensions_and_buckets_have_to_be_kept() {
        let code = |request: &str, aggregate: &str| {
            let found = ask(request).1.into_iter().find(|(name, _)| name == aggregate);
            found.map(|(_, code)| code)
        };
        let avg = r#""measures":["avg(units)"]"#;
        assert_eq!(code(&format!("{{{avg}}}"), "monthly"), None);
        assert_eq!(code(r#"{"measures":["count(*)"]}"#, "monthly"), Some("measure_not_kept"));
        assert_eq!(code(&format!(r#"{{{avg},"granularity":"day"}}"#), "monthly"), Some("does_not_nest"));
        assert_eq!(code(&format!(r#"{{{avg},"group_by":["units"]}}"#), "monthly"), Some("unknown_dimension"));
        assert_eq!(
            code(&format!(r#"{{{avg},"granularity":"year","filter":"merchant = 11"}}"#), "large"),
            Some("no_time")
        );
        assert_eq!(code(&format!(r#"{{{avg},"from":"2026-01-15"}}"#), "monthly"), Some("range_not_aligned"));
    }

    #[test]
    fn a_name_that_is_no_column_is_told_the_nearest() {
        for question in [
            r#""measures":["sum(unts)"]"#,
            r#""measures":["count(*)"],"group_by":["unts"]"#,
            r#""measures":["count(*)"],"where":{"unts":5}"#,
            r#""measures":["count(*)"],"where":"unts:5""#,
        ] {
            let request: QueryRequest = serde_json::from_str(&format!("{{{question}}}")).unwrap();
            let refused = candidates(&request, &some(), &schema(), 0).map(|(able, _)| able.len()).unwrap_err();
            assert_eq!(
                (refused.code, refused.hint.as_str()),
                ("unknown_column", "did you mean \"units\"?"),
                "{question}"
            );
        }
    }

    #[test]
    fn days_do_not_depend_on_who_answers() {
        let count = r#""measures":[{"name":"n","count":"*"}]"#;
        let over = [
            registered(
                "madrid",
                &format!(r#"{count},"time":{{"column":"ts","granularity":"day","time_zone":"Europe/Madrid"}}"#),
            ),
            registered(
                "steps",
                &format!(r#"{count},"time":{{"column":"ts","granularity":"PT6H","origin":"2000-01-01T01:00:00Z"}}"#),
            ),
            registered("utc", &format!(r#"{count},"time":{{"column":"ts","granularity":"PT15M"}}"#)),
        ];
        let able = |more: &str| {
            let request: QueryRequest =
                serde_json::from_str(&format!(r#"{{"measures":["count(*)"],{more}}}"#)).unwrap();
            let (able, _) = candidates(&request, &over, &schema(), 0).unwrap();
            able.iter().map(|one| one.aggregate.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(able(r#""granularity":"day""#), ["utc"]);
        assert_eq!(able(r#""granularity":"day","time_zone":"Europe/Madrid""#), ["madrid", "utc"]);
        assert_eq!(able(r#""granularity":"PT6H""#), ["utc"]);
        assert_eq!(able(r#""granularity":"PT1H""#), ["utc"]);
        assert_eq!(able(r#""granularity":"PT6H","origin":"2000-01-01T01:00:00Z""#), ["steps", "utc"]);
    }

    #[test]
    fn the_definition_suggested_answers_the_question() {
        for request in [
            r#"{"measures":["avg(amount) as mean","count(*)"],"group_by":["country"],"granularity":"week","filter":"units > 3"}"#,
            r#"{"measures":["sum(units)"],"from":"2026-01-15","where":{"merchant":5},"time_zone":"Europe/Madrid"}"#,
            r#"{"measures":["count(units)"]}"#,
        ] {
            let request: QueryRequest = serde_json::from_str(request).unwrap();
            let definition = smallest_definition(&request, &schema(), [].iter()).unwrap();
            let plan = Arc::new(Plan::resolve(&definition, &schema()).unwrap());
            let new = Aggregate {
                id: AggregateId(1),
                name: "new".to_owned(),
                version: 1,
                definition,
                plan,
                state: AggregateState::Live,
            };
            let (able, unable) = candidates(&request, &[Arc::new(new)], &schema(), 0).unwrap();
            assert_eq!((able.len(), unable), (1, Vec::new()));
        }
    }

    #[test]
    fn a_sum_is_suggested_at_the_scale_that_is_kept_or_said_to_need_one() {
        let mut undeclared = schema();
        for column in undeclared.columns.iter_mut().filter(|column| column.name == "amount") {
            column.column_type = ColumnType::Numeric { scale: None };
        }
        let kept = |name: &str, scale: u16| {
            let rest = format!(r#""measures":[{{"name":"a","sum":"amount","scale":{scale}}}]"#);
            registered(name, &rest)
        };
        let request: QueryRequest =
            serde_json::from_str(r#"{"measures":["avg(amount)","sum(units)"],"filter":"id > 3"}"#).unwrap();
        let suggested = |others: &[Arc<Aggregate>]| smallest_definition(&request, &undeclared, others.iter()).unwrap();
        let unknown = suggested(&[]);
        assert_eq!(without_scale(&unknown, &undeclared), Some("amount"));
        let known = suggested(&[
            kept("cents", 2),
            kept("mills", 3),
            registered("n", r#""measures":[{"name":"n","count":"*"}]"#),
        ]);
        assert_eq!(
            (known.measures.first().and_then(|sum| sum.scale), without_scale(&known, &undeclared)),
            (Some(3), None)
        );
        assert!(Plan::resolve(&known, &undeclared).is_ok());
    }

    #[test]
    fn what_is_asked_of_a_table_is_explicit() {
        let error = |request: &str| {
            let request: QueryRequest = serde_json::from_str(request).unwrap();
            candidates(&request, &some(), &schema(), 0).map(|_| ()).unwrap_err().code
        };
        assert_eq!(error("{}"), "bad_parameter");
        assert_eq!(error(r#"{"measures":["total"]}"#), "bad_parameter");
        assert_eq!(error(r#"{"measures":["count(*)"],"filter":"nothing = 1"}"#), "bad_condition");
        let columns: Vec<String> = (0..=MAX_LISTED).map(|at| format!("count(c{at})")).collect();
        assert_eq!(error(&serde_json::json!({"measures": columns}).to_string()), "too_many");
    }
}
