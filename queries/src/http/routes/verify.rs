//! `POST /v1/verify`: cells compared with Postgres at the same position, or with the row images. One at a time: each holds a
//! snapshot open upstream.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::access::Caller;
use crate::api::Problem;
use crate::api::verification::VerificationBody;
use crate::http::authority::StillAllowed;
use crate::http::extract::VerifyRequest;
use crate::http::state::{AppState, now_us};
use crate::verify::{Against, Range, Scope, verify as compare};

pub(in crate::http) async fn verify(
    State(state): State<AppState>,
    caller: Caller,
    StillAllowed(request): StillAllowed<VerifyRequest>,
) -> Result<Response, Problem> {
    let VerifyRequest { aggregate, from, to, against } = request;
    let _turn = Arc::clone(&state.verifying).try_acquire_owned().map_err(|_| {
        Problem::new(429, "verification_running", "another verification is running")
            .hint("wait for its end; one runs at a time")
            .retry_after(5)
    })?;
    let upstream = state.upstream.as_deref();
    let against = against.unwrap_or(if upstream.is_some() { Against::Postgres } else { Against::Rows });
    let scope = Scope { aggregate, range: Range { from, to, now_us: now_us() } };
    let found = compare(&state.engine, upstream, &scope, against).await.map_err(|why| {
        let known: Vec<String> = state.engine.aggregates().iter().map(|aggregate| aggregate.name.clone()).collect();
        Problem::unverified(why, &known)
    })?;
    state.metrics.count_verification(&found);
    // It may have taken an hour.
    state.gate.check(&caller)?;
    let mut response = Json(VerificationBody::from(&found)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(lsn) = HeaderValue::try_from(found.lsn.to_string()) {
        headers.insert("tidemark-lsn", lsn);
    }
    Ok(response)
}
