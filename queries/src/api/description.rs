//! Descriptions of aggregates: what was asked for, what it means, how far it is.

use engine::change::TableSchema;
use engine::engine::BuildProgress;
use engine::materialization::{Aggregate, AggregateState, Calendar, Definition, Granularity};
use serde::Serialize;

use super::column::{ColumnBody, columns};
use super::lint;
use super::warning::Warning;
use crate::query::instant::format_instant;
use crate::query::output::outputs;
use crate::sql;

/// One aggregate, in full.
#[derive(Debug, Serialize)]
pub struct Description<'a> {
    /// Name in URLs.
    pub name: &'a str,
    /// Definitions under one name are numbered.
    pub version: u32,
    /// `building`, `live` or `halted`.
    pub state: &'static str,
    /// Why it is halted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub halted: Option<Halted<'a>>,
    /// As it was registered.
    pub definition: &'a Definition,
    /// Columns of an answer that asks for nothing in particular.
    pub columns: Vec<ColumnBody>,
    /// The granularities kept, finest first.
    pub levels: Vec<Granularity>,
    /// The definition as SQL.
    pub sql: String,
    /// Remarks.
    pub warnings: Vec<Warning>,
    /// While it is being filled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The version that is being built beside this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<NextVersion<'a>>,
    /// Where to go from here.
    pub links: Links,
}

/// A version that takes the place of the one before once it is filled.
#[derive(Debug, Serialize)]
pub struct NextVersion<'a> {
    /// Its number.
    pub version: u32,
    /// `building` or `halted`.
    pub state: &'static str,
    /// As it was registered.
    pub definition: &'a Definition,
    /// How far it is filled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// Why an aggregate is halted.
#[derive(Debug, Serialize)]
pub struct Halted<'a> {
    /// Stable name of the reason.
    pub code: &'a str,
    /// What happened.
    pub message: &'a str,
    /// What to do.
    pub remedy: &'a str,
}

/// URLs of one aggregate.
#[derive(Debug, Serialize)]
pub struct Links {
    /// This description.
    #[serde(rename = "self")]
    pub own: String,
    /// Its answers.
    pub data: String,
    /// How far it is filled.
    pub backfill: String,
}

/// How far an aggregate is filled.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// Rows read so far.
    pub rows_done: u64,
    /// Rows to read, estimated.
    pub rows_estimated: u64,
    /// Of 1, where the estimate allows to say.
    pub fraction: Option<f64>,
    /// Rows read per second.
    pub rows_per_second: f64,
    /// Seconds left at that rate.
    pub eta_seconds: Option<f64>,
    /// Questions about times from this instant on are answered already, RFC 3339.
    pub covered_from: Option<String>,
}

impl From<BuildProgress> for Progress {
    fn from(progress: BuildProgress) -> Self {
        let fraction = (progress.rows_estimated > 0)
            .then(|| (progress.rows_done as f64 / progress.rows_estimated as f64).min(1.0));
        Progress {
            rows_done: progress.rows_done,
            rows_estimated: progress.rows_estimated,
            fraction,
            rows_per_second: progress.rows_per_second,
            eta_seconds: progress.eta_s,
            covered_from: progress.covered_from_us.map(|from| format_instant(from, &Calendar::UTC)),
        }
    }
}

/// The name of a state.
#[must_use]
pub fn state_name(state: &AggregateState) -> &'static str {
    match state {
        AggregateState::Building => "building",
        AggregateState::Live => "live",
        AggregateState::Halted { .. } => "halted",
    }
}

impl<'a> Description<'a> {
    /// Describes an aggregate; `schema` is that of its table.
    #[must_use]
    pub fn of(aggregate: &'a Aggregate, schema: Option<&TableSchema>, progress: Option<BuildProgress>) -> Self {
        let plan = &aggregate.plan;
        let base = plan.levels.first().copied().unwrap_or(Granularity::All);
        let dimensions: Vec<usize> = (0..plan.dimensions.len()).collect();
        let own = format!("/v1/aggregates/{}", aggregate.name);
        Description {
            name: &aggregate.name,
            version: aggregate.version,
            next: None,
            state: state_name(&aggregate.state),
            halted: match &aggregate.state {
                AggregateState::Halted { code, message, remedy } => Some(Halted { code, message, remedy }),
                _ => None,
            },
            definition: &aggregate.definition,
            columns: columns(plan, (base, &plan.calendar), &dimensions, &outputs(None, aggregate).unwrap_or_default()),
            levels: plan.levels.clone(),
            sql: sql::create_statement(&aggregate.name, &aggregate.definition, schema),
            warnings: lint::warnings(&aggregate.definition, plan, schema),
            progress: progress.filter(|_| aggregate.state == AggregateState::Building).map(Progress::from),
            links: Links { data: format!("{own}/data"), backfill: format!("{own}/backfill"), own },
        }
    }
}
