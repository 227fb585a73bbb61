//! `/healthz`: the process lives. `/readyz`: answers are at or past the position upstream had when this process first
//! looked; earlier ones could be older than answers given before a restart.
//!
//! An aggregate that is still being filled holds readiness back only until the process was ready once: registering one
//! more must not take a serving process out of rotation. One that halted never does: the others are exact.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::engine::Status;
use engine::materialization::{Aggregate, AggregateState};
use serde_json::json;

use crate::access::{Caller, Scope};
use crate::api::source::Reason;
use crate::http::state::AppState;

pub(in crate::http) async fn healthz() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

pub(in crate::http) async fn readyz(State(state): State<AppState>, caller: Caller) -> Response {
    let mut reasons = reasons(&state.engine.status(), &state.engine.aggregates());
    if state.was_ready.load(Ordering::Relaxed) {
        reasons.retain(|reason| reason.aggregate.is_none());
    }
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    let Some(first) = reasons.first() else {
        state.was_ready.store(true, Ordering::Relaxed);
        return (no_store, Json(json!({"status": "ready"}))).into_response();
    };
    let mut body = json!({"status": "not_ready", "code": first.code});
    // They name aggregates and tables.
    if let Some(body) = body.as_object_mut().filter(|_| caller.may(Scope::Read) && !caller.is_pinned()) {
        body.insert("reasons".to_owned(), json!(reasons));
    }
    let body = Json(body);
    (StatusCode::SERVICE_UNAVAILABLE, no_store, body).into_response()
}

/// Everything that keeps us from being ready, the weightiest first.
fn reasons(status: &Status, aggregates: &[Arc<Aggregate>]) -> Vec<Reason> {
    let reason = |code: &str, message: String, remedy: &str| Reason {
        code: code.to_owned(),
        message,
        remedy: remedy.to_owned(),
        aggregate: None,
    };
    let mut reasons = Vec::new();
    if let Err(why) = &status.ready {
        reasons.push(reason(&why.code, why.message.clone(), &why.remedy));
    }
    if let Some(start) = status.source.upstream_lsn_at_start.filter(|start| status.applied_lsn < *start) {
        let message = format!("{} is applied, {start} was upstream's position at start", status.applied_lsn);
        if reasons.is_empty() {
            reasons.push(reason("catching_up", message, ""));
        }
    }
    for aggregate in aggregates {
        let of_aggregate = match &aggregate.state {
            AggregateState::Live | AggregateState::Halted { .. } => continue,
            AggregateState::Building => reason("building", format!("{} is being filled", aggregate.name), ""),
        };
        reasons.push(Reason { aggregate: Some(aggregate.name.clone()), ..of_aggregate });
    }
    reasons
}

#[cfg(test)]
mod tests {
    use engine::change::Lsn;
    use engine::engine::{Counters, Unavailable};
    use engine::free_space::FreeSpace;
    use engine::source::{SourceIdentity, SourceStatus};

    use super::*;

    fn status(applied: u64, ready: Result<(), Unavailable>) -> Status {
        Status {
            source: SourceStatus { upstream_lsn_at_start: Some(Lsn(50)), ..SourceStatus::default() },
            identity: SourceIdentity::default(),
            applied_lsn: Lsn(applied),
            applied_time_us: 0,
            durable_lsn: Lsn::ZERO,
            lag_ms: 0,
            ready,
            free_space: FreeSpace::default(),
            counters: Counters::default(),
        }
    }

    #[test]
    fn ready_means_at_or_past_the_position_at_start() {
        let codes = |status: &Status| reasons(status, &[]).into_iter().map(|r| r.code).collect::<Vec<_>>();
        assert_eq!(codes(&status(49, Ok(()))), ["catching_up"]);
        assert!(codes(&status(50, Ok(()))).is_empty());
        let lost = Unavailable { code: "slot_lost".to_owned(), message: String::new(), remedy: String::new() };
        assert_eq!(codes(&status(49, Err(lost))), ["slot_lost"]);
    }
}
