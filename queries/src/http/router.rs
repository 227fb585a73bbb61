//! All routes with what each asks of its caller, and what happens around them.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::{Method, Uri};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;

use super::authority::{Needs, authorize};
use super::layers::{self, Around};
use super::routes::{
    aggregates, backfill, checkpoints, data, docs, events, health, live, metrics, preview, query, rows, sources, verify,
};
use super::state::AppState;
use super::under_way::UnderWay;
use crate::api::Problem;
use crate::api::problem_codes::PROBLEMS_PAGE;
use crate::dashboard;
use crate::query::suggestion::did_you_mean;

/// Longest body of a request.
const MAX_BODY: usize = 1 << 20;

/// One method of one path.
pub(super) struct Route {
    method: MethodFilter,
    pub(super) path: &'static str,
    pub(super) needs: Needs,
    handler: MethodRouter<AppState>,
}

impl Route {
    /// Whether it answers this method, in lower case.
    pub(super) fn answers(&self, method: &str) -> bool {
        let named = [
            ("get", MethodFilter::GET),
            ("put", MethodFilter::PUT),
            ("post", MethodFilter::POST),
            ("delete", MethodFilter::DELETE),
        ];
        named.contains(&(method, self.method))
    }

    fn with_max_body(self, bytes: usize) -> Route {
        Route { handler: self.handler.layer(DefaultBodyLimit::max(bytes)), ..self }
    }
}

fn route<H, T>(method: MethodFilter, path: &'static str, needs: Needs, handler: H) -> Route
where
    H: Handler<T, AppState>,
    T: 'static,
{
    Route { method, path, needs, handler: on(method, handler) }
}

/// Every route. What is not here is not served, but for the page's own files, which hold no data.
pub(super) fn routes() -> Vec<Route> {
    const GET: MethodFilter = MethodFilter::GET;
    const PUT: MethodFilter = MethodFilter::PUT;
    const POST: MethodFilter = MethodFilter::POST;
    const DELETE: MethodFilter = MethodFilter::DELETE;
    use Needs::{Admin, Nothing, ReadAll, ReadPinned, Register};
    vec![
        route(GET, "/v1/aggregates", ReadPinned, aggregates::list),
        route(POST, "/v1/aggregates:preview", Register, preview::preview),
        route(GET, "/v1/aggregates/{name}", ReadPinned, aggregates::describe),
        route(PUT, "/v1/aggregates/{name}", Register, aggregates::register),
        route(DELETE, "/v1/aggregates/{name}", Admin, aggregates::drop_aggregate),
        route(GET, "/v1/aggregates/{name}/data", ReadPinned, data::negotiated),
        route(GET, "/v1/aggregates/{name}/data.json", ReadPinned, data::json),
        route(GET, "/v1/aggregates/{name}/data.ndjson", ReadPinned, data::ndjson),
        route(GET, "/v1/aggregates/{name}/data.csv", ReadPinned, data::csv),
        route(GET, "/v1/aggregates/{name}/data.arrow", ReadPinned, data::arrow),
        route(GET, "/v1/aggregates/{name}/explain", ReadAll, query::explain),
        route(GET, "/v1/aggregates/{name}/rows", ReadPinned, rows::rows),
        route(GET, "/v1/aggregates/{name}/live", ReadPinned, live::live),
        route(POST, "/v1/query", ReadPinned, query::query),
        route(POST, "/v1/verify", Admin, verify::verify),
        route(GET, "/v1/aggregates/{name}/backfill", ReadAll, backfill::describe),
        route(POST, "/v1/aggregates/{name}/backfill:pause", Register, backfill::pause),
        route(POST, "/v1/aggregates/{name}/backfill:resume", Register, backfill::resume),
        route(POST, "/v1/aggregates/{name}/backfill:cancel", Register, backfill::cancel),
        route(POST, "/v1/aggregates/{name}/backfill:rebuild", Register, backfill::rebuild),
        route(GET, "/v1/sources", ReadAll, sources::list),
        route(GET, "/v1/sources/{name}", ReadAll, sources::describe),
        route(POST, "/v1/sources/{name}/tables", Admin, sources::read_table),
        route(POST, "/v1/sources/{name}/events", Admin, events::take).with_max_body(events::MAX_BODY),
        route(POST, "/v1/admin/checkpoints", Admin, checkpoints::take),
        route(GET, "/openapi.json", Nothing, docs::contract),
        route(GET, "/docs", Nothing, docs::page),
        route(GET, "/docs.js", Nothing, docs::script),
        route(GET, PROBLEMS_PAGE, Nothing, docs::problems),
        route(GET, "/healthz", Nothing, health::healthz),
        route(GET, "/readyz", Nothing, health::readyz),
        route(GET, "/metrics", ReadAll, metrics::scrape),
    ]
}

/// Everything that is served.
pub fn router(state: AppState) -> Router {
    let around = Around::new(Arc::clone(&state.metrics), Arc::clone(&state.hosts));
    let page = dashboard::routes(state.teller.clone());
    let under_way = UnderWay::default();
    let routes = routes().into_iter().fold(Router::new(), |router, route| {
        let with = (state.gate.clone(), route.needs, under_way.clone());
        let check = middleware::from_fn_with_state(with, authorize);
        router.route(route.path, route.handler.route_layer(check))
    });
    with_layers(routes.with_state(state).merge(page), around)
}

/// Problems for what is not there, and what happens around every handler.
fn with_layers(routes: Router, around: Around) -> Router {
    routes
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(layers::panicked))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(around, layers::observe))
        // Outermost: problems get their bodies just before.
        .layer(CompressionLayer::new().compress_when(layers::worth_compressing))
}

async fn unknown_route(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    let known = [
        "/v1/aggregates",
        "/v1/query",
        "/v1/verify",
        "/v1/sources",
        "/v1/admin/checkpoints",
        "/openapi.json",
        "/docs",
        "/healthz",
        "/readyz",
        "/metrics",
        "/",
    ];
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
    use axum::routing::{get, put};
    use serde_json::Value;
    use tower::ServiceExt;

    use super::super::metrics::Metrics;
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
        let app = with_layers(routes, Around::new(Arc::new(Metrics::without_engine()), Arc::default()));
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
