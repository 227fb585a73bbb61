//! `POST /v1/query`: one or several questions, to aggregates or to tables, all answered at one position; and `explain`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use engine::Snapshot;
use engine::change::{Column, ColumnType, Lsn, TableSchema};
use engine::materialization::{Aggregate, AggregateState};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::access::Caller;
use crate::api::answer::AsOfBody;
use crate::api::explanation::{Alternative, Explanation, Unanswered, WhyNot};
use crate::api::{AnswerView, Problem};
use crate::http::asking::{
    Answered, Asked, ask_at, ask_of, check_covered, find_in, in_turn, look_at_partitions, not_yet_visible, restricted,
    wait_for,
};
use crate::http::extract::{Explain, Name, Parameters, QueryBody};
use crate::http::format::Format;
use crate::http::pages::Pages;
use crate::http::state::{AppState, now_us};
use crate::http::told::{told, told_of};
use crate::query::aggregate_query::{lsn, wait};
use crate::query::candidate::{candidates, smallest_definition, without_scale};
use crate::query::refusal::QueryError;
use crate::query::suggestion::did_you_mean;
use crate::query::{Access, AggregateQuery, QueryRequest, ReadPlan};

/// Questions in one request at most.
const MAX_QUESTIONS: usize = 32;

/// The answers to several questions, each as it was written: read once more they would take many times their length.
#[derive(Serialize)]
struct Several {
    answers: Vec<Box<RawValue>>,
    as_of: AsOfBody,
}

/// A question with what else was considered for it.
struct Considered {
    asked: Asked,
    /// Others that can answer, to be asked where it turns out that the first cannot.
    fallbacks: Vec<Asked>,
    alternatives: Vec<Alternative>,
    why_not: Vec<WhyNot>,
}

pub(in crate::http) async fn query(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    body: QueryBody,
) -> Result<Response, Problem> {
    if !(1..=MAX_QUESTIONS).contains(&body.queries.len()) {
        let detail = format!("a request has 1 to {MAX_QUESTIONS} questions, this one {}", body.queries.len());
        return Err(Problem::new(422, "how_many_questions", detail));
    }
    if body.explain.is_some() && caller.is_pinned() {
        // It counts cells, and names aggregates, of others.
        return Err(Problem::new(403, "token_pinned", "with a token that is pinned, nothing is explained"));
    }
    let snapshot = snapshot_at(&state, &body).await?;
    let newest = snapshot.as_of();
    let (many, short, explain) = (body.many, body.short, body.explain);
    if many && body.queries.iter().any(|request| request.cursor.is_some()) {
        return Err(QueryError::refused("cursor", "cursor_in_many", "pages of one answer are asked for alone").into());
    }
    // Which aggregate over a table is the cheapest is read from the store.
    let named = body.queries.iter().all(|request| request.table.is_none());
    let (with, reader) = (state.clone(), caller.clone());
    // One time for all of them, as one Snapshot.
    let asked_us = now_us();
    let consider_all = move || {
        let considered = body.queries.iter().map(|request| consider(&with, &caller, &snapshot, request, asked_us));
        Ok(considered.collect::<Vec<_>>())
    };
    let considered = in_turn(&state, named && short, consider_all).await?;
    let short = short && considered.iter().flatten().all(|considered| considered.asked.is_short());
    let pages = Arc::clone(&state.pages);
    let (mut response, as_of) = if many {
        let answers = in_turn(&state, short, move || {
            let parts = considered.into_iter().map(|one| match one.and_then(|one| answer(&one, explain, &pages)) {
                Ok(part) => Ok(part),
                Err(problem) => part(&json!({"problem": told(&reader, problem)})),
            });
            parts.collect::<Result<Vec<_>, _>>()
        });
        (Json(Several { answers: answers.await?, as_of: AnswerView::as_of_body(newest) }).into_response(), newest)
    } else {
        let alone = considered.into_iter().next();
        // Alone, a question that fails is a request that fails.
        let considered = alone.unwrap_or_else(|| Err(Problem::new(500, "internal_error", "nothing was asked")))?;
        let format = Format::accepted(&headers);
        // A page is of an earlier one.
        let as_of = considered.asked.snapshot.as_of();
        (in_turn(&state, short, move || respond(&considered, explain, format, &pages)).await?, as_of)
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(value) = HeaderValue::try_from(as_of.lsn.to_string()) {
        headers.insert("tidemark-lsn", value);
    }
    Ok(response)
}

/// `GET /v1/aggregates/{name}/explain`: the plan of a question to one aggregate; `analyze=true` runs it.
pub(in crate::http) async fn explain(
    State(state): State<AppState>,
    caller: Caller,
    Name(name): Name,
    Parameters(mut parameters): Parameters,
) -> Result<Response, Problem> {
    let mut mode = Explain::Plan;
    if let Some(at) = parameters.iter().position(|(name, _)| name == "analyze") {
        mode = match parameters.swap_remove(at).1.as_str() {
            "true" | "" => Explain::Analyze,
            "false" => Explain::Plan,
            _ => return Err(QueryError::malformed("analyze", "use true or false").into()),
        };
    }
    let request = QueryRequest::from_parameters(&parameters)?;
    let asked = ask_at(&state, &caller, &name, &request, now_us()).await?;
    let considered = Considered { asked, fallbacks: Vec::new(), alternatives: Vec::new(), why_not: Vec::new() };
    let part = in_turn(&state, false, move || explanation(&considered, mode)).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], part.get().to_owned()).into_response())
}

/// A Snapshot that shows every position the questions demand.
async fn snapshot_at(state: &AppState, body: &QueryBody) -> Result<Arc<Snapshot>, Problem> {
    let newest = || state.engine.snapshot().map_err(Problem::from);
    let mut demanded: Option<Lsn> = None;
    let mut patience = Duration::ZERO;
    for request in &body.queries {
        demanded = demanded.max(lsn(request.min_lsn.as_deref())?);
        patience = patience.max(wait(request.wait.as_deref())?);
    }
    let snapshot = newest()?;
    let Some(min_lsn) = demanded.filter(|min_lsn| snapshot.as_of().lsn < *min_lsn) else { return Ok(snapshot) };
    wait_for(state, min_lsn, patience).await?;
    let snapshot = newest()?;
    let visible = snapshot.as_of().lsn;
    if visible < min_lsn { Err(not_yet_visible(min_lsn, visible)) } else { Ok(snapshot) }
}

/// Finds who answers a question.
fn consider(
    state: &AppState,
    caller: &Caller,
    snapshot: &Arc<Snapshot>,
    request: &QueryRequest,
    asked_us: i64,
) -> Result<Considered, Problem> {
    match (&request.aggregate, &request.table) {
        (Some(name), None) => {
            let request = restricted(caller, name, request)?;
            let aggregate = find_in(state, snapshot, name)?;
            let query = AggregateQuery::resolve(&request, &aggregate, asked_us)?;
            let asked = ask_of(state, caller, Arc::clone(snapshot), aggregate, query)?;
            Ok(Considered { asked, fallbacks: Vec::new(), alternatives: Vec::new(), why_not: Vec::new() })
        }
        (None, Some(table)) => cheapest(state, caller, snapshot, (request, asked_us), table),
        _ => Err(QueryError::malformed("aggregate", "a question names an aggregate or a table, one of them").into()),
    }
}

/// The aggregate over a table that answers with the fewest cells.
fn cheapest(
    state: &AppState,
    caller: &Caller,
    snapshot: &Arc<Snapshot>,
    (request, asked_us): (&QueryRequest, i64),
    table: &str,
) -> Result<Considered, Problem> {
    let catalog = snapshot.catalog();
    let qualified = if table.contains('.') { table.to_owned() } else { format!("public.{table}") };
    let visible = catalog.aggregates.values().filter(|other| !other.is_next() && caller.sees(&other.name));
    let mut over: Vec<Arc<Aggregate>> = visible.cloned().collect();
    over.retain(|other| other.definition.qualified_table() == qualified);
    let schema = catalog.tables.get(&qualified).map(|table| &table.schema);
    // A pinned token hears of the tables of its aggregates only.
    let Some(schema) = schema.filter(|_| !(over.is_empty() && caller.is_pinned())) else {
        if !caller.is_pinned() {
            state.engine.joining(&qualified)?;
        }
        let problem = Problem::new(422, "unknown_table", format!("there is no table {table}"));
        let known = catalog.tables.keys().filter(|_| !caller.is_pinned()).map(String::as_str);
        return Err(problem.hint(did_you_mean(&qualified, known)));
    };
    let seen = caller.is_pinned().then(|| as_seen(schema, &over));
    let schema = seen.as_ref().unwrap_or(schema);
    let (answering, resting): (Vec<_>, Vec<_>) =
        over.into_iter().partition(|other| catalog.answers_from(other).is_some());
    // Each is asked what the caller may ask of it.
    let (able, unable) = candidates(request, &answering, schema, asked_us, |aggregate, request| {
        restricted(caller, &aggregate.name, request)
    })?;
    let mut why_not: Vec<WhyNot> = unable.into_iter().map(WhyNot::from).collect();
    why_not.extend(resting.into_iter().map(|aggregate| resting_reason(&told_of(caller, aggregate))));
    let mut ranked = Vec::new();
    for candidate in able {
        if let Err(problem) = check_covered(state, snapshot, &candidate.aggregate, &candidate.reads) {
            let aggregate = candidate.aggregate.name.clone();
            why_not.push(WhyNot { aggregate, code: problem.code.clone(), reason: problem.detail.clone() });
            continue;
        }
        let cells = estimate(snapshot, &candidate.aggregate, &candidate.reads)?;
        ranked.push((cells, candidate.aggregate.plan.dimensions.len(), candidate));
    }
    ranked.sort_by(|a, b| (a.0, a.1, &a.2.aggregate.name).cmp(&(b.0, b.1, &b.2.aggregate.name)));
    let alternatives = ranked
        .iter()
        .skip(1)
        .map(|(cells, _, other)| Alternative { aggregate: other.aggregate.name.clone(), cells_estimated: *cells })
        .collect();
    let asked =
        ranked.into_iter().map(|(_, _, able)| ask_of(state, caller, Arc::clone(snapshot), able.aggregate, able.query));
    let mut asked = asked.collect::<Result<Vec<_>, _>>()?.into_iter();
    let Some(best) = asked.next() else {
        let mut problem =
            Problem::new(422, "no_aggregate_answers", format!("no aggregate over {qualified} answers this question"))
                .hint("register the definition in `suggestion`, or ask what the aggregates keep");
        let mut suggestion = smallest_definition(request, schema, catalog.aggregates.values());
        if let Some(column) = suggestion.as_ref().and_then(|definition| without_scale(definition, schema)) {
            problem.hint = format!(
                "register the definition in `suggestion` with the \"scale\" that the sum of {column} is to have, or ask what the \
                 aggregates keep"
            );
        }
        if caller.is_pinned() {
            // Who is pinned registers nothing.
            suggestion = None;
            problem.hint = "ask what the aggregates keep".to_owned();
        }
        problem.unanswered = Some(Unanswered { why_not, suggestion });
        return Err(problem);
    };
    Ok(Considered { asked: best, fallbacks: asked.collect(), alternatives, why_not })
}

/// The table as somebody knows it who sees these aggregates only. Columns that none of them is about keep their places and lose
/// name and type, so that no condition tells whether there are such.
fn as_seen(schema: &TableSchema, seen: &[Arc<Aggregate>]) -> TableSchema {
    let mut known = Vec::new();
    for plan in seen.iter().map(|aggregate| &aggregate.plan) {
        known.extend(plan.dimensions.iter().map(|dimension| dimension.column));
        known.extend(plan.measures.iter().filter_map(|measure| measure.column));
        known.extend(plan.time.map(|time| time.column));
        let of_measures = plan.measures.iter().filter_map(|measure| measure.filter.as_ref());
        plan.filter.iter().chain(of_measures).for_each(|filter| filter.columns(&mut known));
    }
    let hidden = || Column { name: String::new(), column_type: ColumnType::Unsupported(String::new()) };
    let columns = schema.columns.iter().enumerate();
    let columns = columns.map(|(at, column)| if known.contains(&at) { column.clone() } else { hidden() });
    TableSchema { columns: columns.collect(), ..schema.clone() }
}

fn resting_reason(aggregate: &Aggregate) -> WhyNot {
    let (code, reason) = match &aggregate.state {
        AggregateState::Halted { code, message, .. } => (code.as_str(), format!("it is halted: {message}")),
        _ => ("building", "it is being filled".to_owned()),
    };
    WhyNot { aggregate: aggregate.name.clone(), code: code.to_owned(), reason }
}

/// Cells that a plan reads at most.
fn estimate(snapshot: &Snapshot, aggregate: &Aggregate, reads: &ReadPlan) -> Result<u64, Problem> {
    match &reads.access {
        Access::Points { points, .. } => Ok(points.len() as u64),
        Access::Scans(scans) => {
            let mut cells = 0u64;
            let visit = |_, in_partition: u64, _| cells = cells.saturating_add(in_partition);
            look_at_partitions(snapshot, aggregate, scans, visit)?;
            Ok(cells)
        }
    }
}

/// The answer to the only question of a request.
fn respond(
    considered: &Considered,
    explain: Option<Explain>,
    format: Format,
    pages: &Pages,
) -> Result<Response, Problem> {
    if let Some(mode) = explain {
        let explanation = explanation(considered, mode)?;
        return Ok(
            ([(header::CONTENT_TYPE, Format::Json.content_type())], explanation.get().to_owned()).into_response()
        );
    }
    format.check(&considered.asked.query)?;
    let (asked, answered) = considered.answer()?;
    if answered.answer.next.is_some() {
        asked.keep(pages);
    }
    let view = asked.view(&answered);
    let mut response = ([(header::CONTENT_TYPE, format.content_type())], format.write(&view)?).into_response();
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
    if let Some(Ok(next)) = view.next().map(HeaderValue::try_from) {
        headers.insert("tidemark-next-cursor", next);
    }
    Ok(response)
}

/// The answer to one of several questions.
fn answer(considered: &Considered, explain: Option<Explain>, pages: &Pages) -> Result<Box<RawValue>, Problem> {
    if let Some(mode) = explain {
        return explanation(considered, mode);
    }
    Format::Json.check(&considered.asked.query)?;
    let (asked, answered) = considered.answer()?;
    if answered.answer.next.is_some() {
        asked.keep(pages);
    }
    part(&asked.view(&answered).body())
}

impl Considered {
    /// The answer of the first that has one. Only the cells tell whether a bucket of another time zone lies in two of the
    /// answer's; then the next aggregate is asked.
    fn answer(&self) -> Result<(&Asked, Answered), Problem> {
        let mut refused = None;
        for asked in std::iter::once(&self.asked).chain(&self.fallbacks) {
            match asked.answer() {
                Ok(answered) => return Ok((asked, answered)),
                Err(problem) if problem.code == "does_not_nest" => refused.get_or_insert(problem),
                Err(problem) => return Err(problem),
            };
        }
        Err(refused.unwrap_or_else(|| Problem::new(500, "internal_error", "nobody was asked")))
    }
}

fn explanation(considered: &Considered, mode: Explain) -> Result<Box<RawValue>, Problem> {
    let started = Instant::now();
    let analyzed = if mode == Explain::Analyze { Some(considered.answer()?) } else { None };
    let took = started.elapsed();
    let asked = analyzed.as_ref().map_or(&considered.asked, |(asked, _)| *asked);
    let cells = estimate(&asked.snapshot, &asked.aggregate, &asked.reads)?;
    let mut explanation = Explanation::of(&asked.aggregate, &asked.query, &asked.reads, cells);
    if let Some((_, answered)) = analyzed {
        explanation.took_us = Some(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        explanation.cells_read = Some(answered.answer.cells_read);
        explanation.rows = Some(answered.answer.rows.len() as u64);
    }
    let alternatives = considered.alternatives.iter();
    explanation.alternatives = alternatives
        .map(|other| Alternative { aggregate: other.aggregate.clone(), cells_estimated: other.cells_estimated })
        .collect();
    explanation.why_not.clone_from(&considered.why_not);
    part(&explanation)
}

fn part(body: &impl Serialize) -> Result<Box<RawValue>, Problem> {
    serde_json::value::to_raw_value(body)
        .map_err(|_| Problem::new(500, "internal_error", "the answer cannot be written"))
}
