//! `/metrics`, in OpenMetrics' text form.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::api::Problem;
use crate::http::state::AppState;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(in crate::http) async fn scrape(State(state): State<AppState>) -> Result<Response, Problem> {
    let text = state.metrics.encode().map_err(|_| Problem::new(500, "internal_error", "metrics cannot be written"))?;
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response())
}
