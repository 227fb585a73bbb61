//! `/v1/aggregates/{name}/backfill`: how far an aggregate is filled.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use engine::materialization::AggregateState;
use serde_json::json;

use crate::api::Problem;
use crate::api::description::{Halted, Progress};
use crate::http::extract::Name;
use crate::http::state::AppState;

pub(in crate::http) async fn describe(State(state): State<AppState>, Name(name): Name) -> Result<Response, Problem> {
    let aggregate = state.aggregate(&name)?;
    let progress = state.engine.build_progress(aggregate.id).map(Progress::from);
    let (phase, halted) = match &aggregate.state {
        AggregateState::Building => ("building", None),
        AggregateState::Live => ("done", None),
        AggregateState::Halted { code, message, remedy } => ("halted", Some(Halted { code, message, remedy })),
    };
    let progress = progress.filter(|_| aggregate.state == AggregateState::Building);
    Ok(Json(json!({"name": name, "phase": phase, "progress": progress, "error": halted})).into_response())
}
