//! `/v1/aggregates/{name}/backfill`: how far an aggregate is filled, and `:pause`, `:resume`, `:cancel`, `:rebuild` of that.
//!
//! They are about the version that is being built: the next one where there is one, otherwise the first.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use engine::materialization::{Aggregate, AggregateState};
use serde_json::json;

use super::aggregates::{answer, refusal};
use crate::access::Caller;
use crate::api::Problem;
use crate::api::description::{Halted, Progress};
use crate::http::extract::Name;
use crate::http::state::AppState;

pub(in crate::http) async fn describe(State(state): State<AppState>, Name(name): Name) -> Result<Response, Problem> {
    let aggregate = newest(&state, &name)?;
    let progress = state.engine.build_progress(aggregate.id).map(Progress::from);
    let paused = state.engine.is_paused(aggregate.id);
    let (phase, halted) = match &aggregate.state {
        AggregateState::Building if paused => ("paused", None),
        AggregateState::Building => ("building", None),
        AggregateState::Live => ("done", None),
        AggregateState::Halted { code, message, remedy } => ("halted", Some(Halted { code, message, remedy })),
    };
    let progress = progress.filter(|_| aggregate.state == AggregateState::Building);
    let version = aggregate.version;
    let body = json!({"name": name, "version": version, "phase": phase, "progress": progress, "error": halted});
    Ok(Json(body).into_response())
}

pub(in crate::http) async fn pause(State(state): State<AppState>, Name(name): Name) -> Result<Response, Problem> {
    state.engine.pause(building(&state, &name)?.id, true);
    describe(State(state), Name(name)).await
}

pub(in crate::http) async fn resume(State(state): State<AppState>, Name(name): Name) -> Result<Response, Problem> {
    state.engine.pause(building(&state, &name)?.id, false);
    describe(State(state), Name(name)).await
}

/// Gives up the version that is being built, or halted on the way. The one before it goes on answering; a first version that has
/// never been filled is dropped.
pub(in crate::http) async fn cancel(State(state): State<AppState>, Name(name): Name) -> Result<StatusCode, Problem> {
    state.aggregate(&name)?;
    if state.engine.cancel(&name).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    let hint = "given up is what is filled beside another version, or for the first time and since the start; to drop what is there";
    Err(Problem::new(409, "nothing_is_built", format!("there is no version of {name} to give up"))
        .hint(format!("{hint}: DELETE /v1/aggregates/{name}")))
}

/// Builds the aggregate anew from the rows, under the same definition.
pub(in crate::http) async fn rebuild(
    State(state): State<AppState>,
    caller: Caller,
    Name(name): Name,
) -> Result<Response, Problem> {
    state.aggregate(&name)?;
    let rebuilt = state.engine.rebuild(&name).await.map_err(|error| refusal(&name, error))?;
    answer(&state, &caller, &name, &rebuilt, Vec::new())
}

fn newest(state: &AppState, name: &str) -> Result<Arc<Aggregate>, Problem> {
    let aggregate = state.aggregate(name)?;
    Ok(state.engine.next_version(name).unwrap_or(aggregate))
}

fn building(state: &AppState, name: &str) -> Result<Arc<Aggregate>, Problem> {
    let newest = newest(state, name)?;
    if newest.state == AggregateState::Building { Ok(newest) } else { Err(nothing_built(name)) }
}

fn nothing_built(name: &str) -> Problem {
    Problem::new(409, "nothing_is_built", format!("no version of {name} is being filled"))
}
