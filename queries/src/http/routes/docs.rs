//! `/openapi.json` and the page that shows it.

use axum::Json;
use axum::response::{IntoResponse, Response};

use crate::dashboard::file;
use crate::http::openapi;

pub(in crate::http) async fn contract() -> Response {
    Json(openapi::document()).into_response()
}

pub(in crate::http) async fn page() -> Response {
    file("text/html; charset=utf-8", include_str!("../docs.html"))
}

pub(in crate::http) async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("../docs.js"))
}
