//! `/v1/sources`: where the source stands. One source per process so far.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use engine::source::TableState;
use serde_json::json;

use crate::api::Problem;
use crate::api::source::SourceBody;
use crate::http::authority::StillAllowed;
use crate::http::extract::{Name, TableRequest};
use crate::http::state::AppState;
use crate::query::suggestion::did_you_mean;

pub(in crate::http) async fn list(State(state): State<AppState>) -> Response {
    let (status, tables) = (state.engine.status(), state.engine.tables());
    let source = SourceBody::of(&state.source_name, &status, &tables);
    Json(json!({"data": [source], "page": {"next": null}})).into_response()
}

pub(in crate::http) async fn describe(State(state): State<AppState>, Name(name): Name) -> Result<Response, Problem> {
    known(&state, &name)?;
    let (status, tables) = (state.engine.status(), state.engine.tables());
    Ok(Json(SourceBody::of(&state.source_name, &status, &tables)).into_response())
}

/// Follows one more table, or reads one anew, whatever its standing. Answered once it is sure to be read: it begins when its turn
/// comes, so what is known of the table is from before.
pub(in crate::http) async fn read_table(
    State(state): State<AppState>,
    Name(name): Name,
    StillAllowed(request): StillAllowed<TableRequest>,
) -> Result<Response, Problem> {
    known(&state, &name)?;
    let read = state.engine.read_table(&request.table, request.row_image).await;
    let table = read.map_err(|error| Problem::from(error).at("/table"))?;
    let mut body = json!(TableState::Reading);
    if let Some(body) = body.as_object_mut() {
        body.insert("name".to_owned(), json!(table));
        body.insert("links".to_owned(), json!({"source": format!("/v1/sources/{name}")}));
    }
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}

fn known(state: &AppState, name: &str) -> Result<(), Problem> {
    if *name == *state.source_name {
        return Ok(());
    }
    Err(Problem::new(404, "unknown_source", format!("there is no source {name:?}"))
        .hint(did_you_mean(name, [&*state.source_name])))
}
