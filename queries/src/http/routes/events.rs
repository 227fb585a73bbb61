//! `POST /v1/sources/{name}/events`: change events of tables that reach us through an existing Debezium.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use engine::source::SourceState;

use crate::api::Problem;
use crate::api::problem::WrongPart;
use crate::http::authority::StillAllowed;
use crate::http::extract::{Name, Parameters};
use crate::http::state::AppState;
use crate::inlet::NotTaken;
use crate::query::suggestion::did_you_mean;

/// Longest body.
pub(in crate::http) const MAX_BODY: usize = 8 << 20;

pub(in crate::http) async fn take(
    State(state): State<AppState>,
    Name(name): Name,
    Parameters(parameters): Parameters,
    StillAllowed(body): StillAllowed<Result<Bytes, BytesRejection>>,
) -> Result<Response, Problem> {
    if *name != *state.source_name {
        return Err(Problem::new(404, "unknown_source", format!("there is no source {name:?}"))
            .hint(did_you_mean(&name, [&*state.source_name])));
    }
    let inlet = state.inlet.as_ref().ok_or_else(|| {
        Problem::new(404, "events_not_taken", format!("the source {name} is not one that events are posted to"))
            .hint("start with: tidemark serve --events TABLES.json")
    })?;
    let snapshot_done = match parameters.as_slice() {
        [] => false,
        [(name, value)] if name == "snapshot" && value == "done" => true,
        _ => {
            return Err(Problem::new(400, "unknown_parameter", "the only parameter is snapshot=done")
                .hint("post events in the body: one JSON object per line, or one array of them"));
        }
    };
    if let SourceState::DiskLow { free_bytes, enough_bytes } = state.engine.status().source.state {
        let detail =
            format!("the disk of the store is nearly full ({free_bytes} bytes are free): nothing more is taken");
        return Err(Problem::new(503, "disk_low", detail)
            .hint(format!("free space until {enough_bytes} bytes are free, and send the events again"))
            .retry_after(5));
    }
    let body = body.map_err(|rejection| match rejection.status().as_u16() {
        413 => Problem::new(413, "body_too_large", format!("a request may have at most {} MiB", MAX_BODY >> 20))
            .hint("send fewer events at once"),
        _ => Problem::new(400, "unreadable_body", rejection.body_text()),
    })?;
    match inlet.post(body.into(), snapshot_done).await {
        Ok(taken) => Ok(Json(taken).into_response()),
        Err(NotTaken::Busy(detail)) => Err(Problem::new(429, "overloaded", detail)
            .hint("send them again, one request after another")
            .retry_after(1)),
        Err(NotTaken::Stopped) => Err(match state.engine.status().ready {
            Err(why) => why.into(),
            Ok(()) => Problem::new(503, "stopping", "the source takes no events any more").retry_after(1),
        }),
        Err(NotTaken::Refused { taken, line, code, pointer, reason, remedy }) => {
            let status = if code == "malformed_json" { 400 } else { 422 };
            let detail = format!("line {line}: {reason}; {} events before it were taken", taken.accepted);
            let mut problem = Problem::new(status, code, detail).hint(remedy);
            problem.taken = Some(taken);
            problem.errors.push(WrongPart {
                pointer: Some(pointer),
                line: Some(line),
                detail: reason,
                ..WrongPart::default()
            });
            Err(problem)
        }
    }
}
