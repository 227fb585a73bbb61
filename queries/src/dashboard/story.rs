//! The demo's story: something happens upstream, and a total before and after it is held against Postgres' own. Only the
//! demo has a teller; without one the route does not exist.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;

use crate::api::Problem;

/// A step being told; `None` where there is none of that name.
pub type Telling<'a> = Pin<Box<dyn Future<Output = Option<Result<Told, String>>> + Send + 'a>>;

/// Makes things happen upstream, one after the other.
pub trait Teller: Send + Sync {
    /// Tells a step.
    fn tell(&self, step: &str) -> Telling<'_>;
}

/// What happened.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    /// What was done upstream.
    pub statement: String,
    /// The aggregate that was looked at.
    pub aggregate: String,
    /// Whose total.
    pub currency: String,
    /// Of which month, `2026-08`.
    pub month: String,
    /// Before it.
    pub before: Moment,
    /// After it.
    pub after: Moment,
    /// Whether both totals are Postgres' own.
    pub equal: bool,
}

/// A total, as we and as Postgres say it while nobody else writes.
#[derive(Clone, Debug, Serialize)]
pub struct Moment {
    /// The position that our answer shows.
    pub lsn: String,
    /// Our answer.
    pub total: String,
    /// Postgres' `GROUP BY`.
    pub postgres: String,
}

impl Moment {
    /// Whether both say the same, to the last digit.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.total == self.postgres
    }
}

/// The route of the story's steps.
pub(super) fn routes(teller: Arc<dyn Teller>) -> Router {
    let step = async move |Path(step): Path<String>| -> Response {
        match teller.tell(&step).await {
            Some(Ok(told)) => Json(told).into_response(),
            Some(Err(reason)) => Problem::new(503, "story_failed", reason).retry_after(1).into_response(),
            None => Problem::new(404, "unknown_step", format!("the story has no step {step:?}")).into_response(),
        }
    };
    Router::new().route("/demo/steps/{step}", post(step))
}
