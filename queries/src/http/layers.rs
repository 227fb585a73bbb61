//! What happens around every handler: an id, a time limit, metrics, a log line, and the body of problems.

use std::any::Any;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error;
use super::metrics::Metrics;
use crate::api::Problem;

/// Longest time a request may take, reading its body and waiting for `min_lsn` included.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The outermost layer.
pub(super) async fn observe(State(metrics): State<std::sync::Arc<Metrics>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let request_id = request_id(request.headers());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let mut response = match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::new(503, "timeout", "the request took longer than 30 s").retry_after(1).into_response(),
    };
    error::write_body(&mut response, &request_id);
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        headers.insert(REQUEST_ID, value);
    }
    let (status, took) = (response.status().as_u16(), started.elapsed());
    metrics.count_request(&route, &method, status, took);
    if status >= 500 && status != 503 {
        tracing::error!(request_id, route, %method, status, "request failed");
    } else {
        tracing::debug!(request_id, route, %method, status, took_us = took.as_micros() as u64, "request");
    }
    response
}

/// The caller's id where it can stand in a log, otherwise a new one.
fn request_id(headers: &HeaderMap) -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one("process"));
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let usable = |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    given
        .filter(usable)
        .map_or_else(|| format!("{:016x}-{:08x}", *PROCESS, NUMBER.fetch_add(1, Ordering::Relaxed)), str::to_owned)
}

/// The answer where a handler panicked. The message stays in the log: it may hold data.
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or_default();
    tracing::error!(message, "a request handler panicked");
    Problem::new(500, "internal_error", "the request handler failed; its log has the reason").into_response()
}
