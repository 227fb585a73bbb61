//! All routes, and what happens around them.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::routing::{get, post};
use axum::{Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;

use super::layers;
use super::metrics::Metrics;
use super::routes::{aggregates, backfill, data, events, health, metrics, sources};
use super::state::AppState;
use crate::api::Problem;
use crate::dashboard;
use crate::query::suggestion::did_you_mean;

/// Longest body of a request.
const MAX_BODY: usize = 1 << 20;

/// Everything that is served.
pub fn router(state: AppState) -> Router {
    let metrics = Arc::clone(&state.metrics);
    let routes = Router::new()
        .route("/v1/aggregates", get(aggregates::list))
        .route(
            "/v1/aggregates/{name}",
            get(aggregates::describe).put(aggregates::register).delete(aggregates::drop_aggregate),
        )
        .route("/v1/aggregates/{name}/data", get(data::negotiated))
        .route("/v1/aggregates/{name}/data.json", get(data::json))
        .route("/v1/aggregates/{name}/data.ndjson", get(data::ndjson))
        .route("/v1/aggregates/{name}/data.csv", get(data::csv))
        .route("/v1/aggregates/{name}/backfill", get(backfill::describe))
        .route("/v1/sources", get(sources::list))
        .route("/v1/sources/{name}", get(sources::describe))
        .route("/v1/sources/{name}/tables", post(sources::read_table))
        .route("/v1/sources/{name}/events", post(events::take).layer(DefaultBodyLimit::max(events::MAX_BODY)))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::scrape))
        .with_state(state)
        .merge(dashboard::routes());
    with_layers(routes, metrics)
}

/// Problems for what is not there, and what happens around every handler.
fn with_layers(routes: Router, metrics: Arc<Metrics>) -> Router {
    routes
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(layers::panicked))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(metrics, layers::observe))
}

async fn unknown_route(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    let known = ["/v1/aggregates", "/v1/sources", "/healthz", "/readyz", "/metrics", "/"];
    Problem::new(404, "unknown_route", format!("there is nothing at {path}")).hint(did_you_mean(&path, known))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    Problem::new(405, "method_not_allowed", format!("{method} is not possible at {path}"))
        .hint("the Allow header names the methods that are")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
    use axum::body::{Body, Bytes, to_bytes};
    use axum::http::{HeaderMap, Request};
    use axum::routing::put;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    async fn boom() -> &'static str {
        panic!("secret")
    }

    async fn refused() -> Problem {
        Problem::new(503, "building", "wait").retry_after(3)
    }

    async fn ask(method: &str, path: &str, body: usize) -> (u16, HeaderMap, Value) {
        let routes = Router::new()
            .route("/things/{name}", get(refused).put(|_: Bytes| async { "taken" }))
            .route("/boom", put(boom));
        let app = with_layers(routes, Arc::new(Metrics::without_engine()));
        let request = Request::builder().method(method).uri(path).header("X-Request-Id", "mine-1");
        let response = app.oneshot(request.body(Body::from(vec![b'x'; body])).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test]
    async fn everything_that_fails_is_a_problem_with_the_callers_id() {
        for (method, path, status, code) in [
            ("GET", "/v1/agregates", 404, "unknown_route"),
            ("DELETE", "/things/a", 405, "method_not_allowed"),
            ("GET", "/things/a", 503, "building"),
            ("PUT", "/boom", 500, "internal_error"),
        ] {
            let (answered, headers, body) = ask(method, path, 0).await;
            assert_eq!((answered, body["code"].as_str()), (status, Some(code)), "{method} {path}: {body}");
            assert_eq!(body["status"], status);
            assert_eq!(body["request_id"], "mine-1");
            assert_eq!(headers["x-request-id"], "mine-1");
            assert_eq!(headers["content-type"], "application/problem+json");
            assert!(!body.to_string().contains("secret"));
        }
        assert_eq!(ask("GET", "/v1/agregates", 0).await.2["hint"], "did you mean \"/v1/aggregates\"?");
        assert_eq!(ask("GET", "/things/a", 0).await.1["retry-after"], "3");
        let allow = ask("DELETE", "/things/a", 0).await.1["allow"].to_str().unwrap().to_owned();
        assert!(allow.contains("GET") && allow.contains("PUT"), "{allow}");
    }

    #[tokio::test]
    async fn bodies_have_a_limit() {
        assert_eq!(ask("PUT", "/things/a", MAX_BODY).await.0, 200);
        assert_eq!(ask("PUT", "/things/a", MAX_BODY + 1).await.0, 413);
    }
}
