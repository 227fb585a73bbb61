//! `POST /v1/aggregates:preview`: what a definition would make, in JSON or in SQL, and what should be known before it is
//! registered. Nothing is created.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use engine::Snapshot;
use engine::aggregate::Cell;
use engine::materialization::plan::is_name;
use engine::materialization::{Aggregate, AggregateId, AggregateState, Bucket, Plan};
use engine::sample::Preview;
use engine::snapshot::ReadError;
use serde_json::{Value, json};

use crate::access::Caller;
use crate::api::column::columns;
use crate::api::preview::{PreviewBody, RegisteredBody, SizeBody};
use crate::api::{AnswerView, Problem, Warning, lint};
use crate::http::asking::in_turn;
use crate::http::authority::StillAllowed;
use crate::http::extract::Parameters;
use crate::http::registering::Wanted;
use crate::http::state::{AppState, now_us};
use crate::query::output::outputs;
use crate::query::{AggregateQuery, QueryRequest, ReadPlan};
use crate::read::{CellMap, read};
use crate::sql::create_statement;

/// Rows looked at.
const SAMPLE_ROWS: u64 = 20_000;
/// Rows of the sample answer.
const ANSWER_ROWS: usize = 20;

pub(in crate::http) async fn preview(
    State(state): State<AppState>,
    caller: Caller,
    Parameters(parameters): Parameters,
    StillAllowed(wanted): StillAllowed<Wanted>,
) -> Result<Response, Problem> {
    let name = name(&parameters, &wanted)?;
    let Some(table) = wanted.table().cloned() else { return Err(wanted.unknown_table(&state)) };
    let definition = wanted.definition.canonical();
    let plan = Plan::resolve(&definition, &table.schema).map_err(|error| wanted.invalid(&state, error))?;
    let existing = name.as_ref().and_then(|name| state.engine.aggregates().into_iter().find(|a| a.name == *name));
    let registered = name.as_ref().map(|_| RegisteredBody::of(existing.as_deref(), &definition, &table.schema));
    let aggregate = Arc::new(Aggregate {
        id: AggregateId(0),
        version: 1,
        name: name.clone().unwrap_or_else(|| "preview".to_owned()),
        definition,
        plan: Arc::new(plan),
        state: AggregateState::Live,
    });
    let mut warnings = lint::warnings(&aggregate.definition, &aggregate.plan, Some(&table.schema));
    warnings.extend(wanted.warnings());
    let (size, sample) = match state.engine.snapshot() {
        Err(why) => {
            warnings.push(Warning::new("no_sample", format!("rows cannot be looked at now: {}", why.message)));
            (None, None)
        }
        Ok(snapshot) => {
            let (looked, table) = (Arc::clone(&aggregate), Arc::clone(&table));
            let (preview, answer) = in_turn(&state, false, move || {
                let preview = snapshot.preview(&looked.plan, &table, SAMPLE_ROWS).map_err(unreadable)?;
                let answer = sample_answer(&snapshot, &looked, &preview)?;
                Ok((preview, answer))
            })
            .await?;
            warnings.extend(preview.misfit.as_ref().map(|(code, message, remedy)| {
                Warning::new("would_halt", format!("it would halt with {code}: {message}; {remedy}"))
            }));
            (Some(SizeBody::from(&preview)), Some(answer))
        }
    };
    let plan = &aggregate.plan;
    let base = plan.levels.first().copied().unwrap_or(engine::materialization::Granularity::All);
    let dimensions: Vec<usize> = (0..plan.dimensions.len()).collect();
    let body = PreviewBody {
        name: name.as_deref(),
        sql: create_statement(&aggregate.name, &aggregate.definition, Some(&table.schema)),
        columns: columns(plan, (base, &plan.calendar), &dimensions, &outputs(None, &aggregate)?),
        definition: &aggregate.definition,
        size,
        sample,
        registered,
        warnings,
    };
    // It waited for its turn.
    state.gate.check(&caller)?;
    Ok(Json(body).into_response())
}

/// The name that the statement or the parameter `name` says.
fn name(parameters: &[(String, String)], wanted: &Wanted) -> Result<Option<String>, Problem> {
    let mut name = wanted.registration.as_ref().map(|registration| registration.name.clone());
    for (parameter, value) in parameters {
        if parameter != "name" {
            return Err(Problem::new(400, "unknown_parameter", format!("there is no parameter {parameter:?}"))
                .hint("a preview takes `name` only"));
        }
        wanted.check_name(value)?;
        name = Some(value.clone());
    }
    match &name {
        Some(wrong) if !is_name(wrong) => {
            let message = engine::engine::RegisterError::BadName.to_string();
            Err(Problem::new(422, "bad_name", format!("{wrong:?}: {message}")))
        }
        _ => Ok(name),
    }
}

fn unreadable(error: ReadError) -> Problem {
    Problem::new(503, "store_failed", error.to_string())
}

/// An answer over the rows looked at: the newest buckets first.
fn sample_answer(snapshot: &Snapshot, aggregate: &Aggregate, preview: &Preview) -> Result<Value, Problem> {
    let timed = aggregate.plan.time.is_some();
    let request = QueryRequest {
        order: timed.then(|| vec!["-time".to_owned()]),
        limit: Some(ANSWER_ROWS),
        ..QueryRequest::default()
    };
    let query = AggregateQuery::resolve(&request, aggregate, now_us())?;
    let reads = ReadPlan::choose(&query, &aggregate.plan)?;
    let as_of = snapshot.as_of();
    let finest = |((bucket, group), cell): (&(Bucket, Vec<u8>), &Cell)| ((0, *bucket, group.clone()), cell.clone());
    let cells = CellMap(preview.cells.iter().map(finest).collect());
    let answer = read(&cells, aggregate, &query, &reads, as_of.sequence)?;
    let view = AnswerView {
        aggregate,
        query: &query,
        reads: &reads,
        answer: &answer,
        before: None,
        behind: None,
        as_of,
        lag_ms: 0,
        state: "live",
        warnings: Vec::new(),
    };
    let internal = |error: serde_json::Error| Problem::new(500, "internal_error", error.to_string());
    let mut body = serde_json::to_value(view.body()).map_err(internal)?;
    let mut part = |name: &str| body.get_mut(name).map(Value::take).unwrap_or_default();
    let (mut columns, mut rows) = (part("columns"), part("data"));
    // No bucket of a sample is complete: it holds the rows that were looked at.
    if let Some(columns) = columns.as_array_mut() {
        columns.retain(|column| column.get("role").is_none_or(|role| role != "flag"));
    }
    for row in rows.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        row.remove("complete");
    }
    Ok(json!({"columns": columns, "data": rows}))
}
