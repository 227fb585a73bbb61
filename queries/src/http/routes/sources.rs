//! `/v1/sources`: where the source stands. One source per process so far.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::api::Problem;
use crate::api::source::SourceBody;
use crate::http::extract::Name;
use crate::http::state::AppState;
use crate::query::suggestion::did_you_mean;

pub(in crate::http) async fn list(State(state): State<AppState>) -> Response {
    let (status, tables) = (state.engine.status(), state.engine.tables());
    let source = SourceBody::of(&state.source_name, &status, &tables);
    Json(json!({"data": [source], "page": {"next": null}})).into_response()
}

pub(in crate::http) async fn describe(State(state): State<AppState>, Name(name): Name) -> Result<Response, Problem> {
    if *name != *state.source_name {
        return Err(Problem::new(404, "unknown_source", format!("there is no source {name:?}"))
            .hint(did_you_mean(&name, [&*state.source_name])));
    }
    let (status, tables) = (state.engine.status(), state.engine.tables());
    Ok(Json(SourceBody::of(&state.source_name, &status, &tables)).into_response())
}
