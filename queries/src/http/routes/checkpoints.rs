//! `POST /v1/admin/checkpoints`: a backup, written where the server is configured to write backups. A caller chooses its name
//! and nothing else of its path.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use engine::backup::{Backup, name_of_now};

use crate::api::Problem;
use crate::api::checkpoint::CheckpointBody;
use crate::http::authority::StillAllowed;
use crate::http::extract::CheckpointRequest;
use crate::http::state::AppState;

pub(in crate::http) async fn take(
    State(state): State<AppState>,
    StillAllowed(CheckpointRequest { name, hold_log }): StillAllowed<CheckpointRequest>,
) -> Result<Response, Problem> {
    let started = Instant::now();
    let name = name.unwrap_or_else(name_of_now);
    let named = name.clone();
    // Goes on where nobody waits any more: a slot without its backup would keep log for nothing.
    let taking = tokio::spawn(async move { taken(&state, &named, hold_log).await });
    let backup = taking.await.map_err(|error| Problem::new(500, "internal_error", format!("no backup: {error}")))??;
    let body = CheckpointBody::new(&name, &backup, started.elapsed());
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

async fn taken(state: &AppState, name: &str, hold_log: bool) -> Result<Backup, Problem> {
    state.engine.check_backup_name(name)?;
    let upstream = state.upstream.as_ref().filter(|_| hold_log);
    let held = match upstream {
        Some(upstream) => Some(upstream.hold_log(name.to_owned()).await?),
        None if hold_log => {
            return Err(Problem::new(422, "no_postgres", "the source is no Postgres, so it keeps no log for a backup")
                .at("/hold_log"));
        }
        None => None,
    };
    let taken = state.engine.back_up(name, held.clone()).await;
    if let (Err(_), Some(upstream), Some(held)) = (&taken, upstream, held)
        && let Err(error) = upstream.release_log(held.clone()).await
    {
        tracing::error!(slot = held, %error, "the slot of a backup that was not taken is still there");
    }
    Ok(taken?)
}
