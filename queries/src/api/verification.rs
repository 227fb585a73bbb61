//! What a verification found, as it is written down: equal, or each key that differs with both values.

use engine::materialization::{Aggregate, Granularity, group_key};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Problem;
use super::field::Field;
use crate::query::output::outputs;
use crate::query::suggestion::did_you_mean;
use crate::verify::bucket_range::BadRange;
use crate::verify::comparison::{ComparisonError, Values};
use crate::verify::{Against, Difference, Skipped, Tally, Unverified, Verification, Verified};

/// What was found.
#[derive(Debug, Serialize)]
pub struct VerificationBody {
    equal: bool,
    against: Against,
    lsn: String,
    cells: u64,
    differing: u64,
    took_ms: u64,
    aggregates: Vec<VerifiedBody>,
    skipped: Vec<SkippedBody>,
}

#[derive(Debug, Serialize)]
struct VerifiedBody {
    aggregate: String,
    equal: bool,
    levels: Vec<LevelBody>,
    /// The first of each level.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<Value>,
}

#[derive(Debug, Serialize)]
struct LevelBody {
    granularity: Granularity,
    cells: u64,
    differing: u64,
}

#[derive(Debug, Serialize)]
struct SkippedBody {
    aggregate: String,
    code: String,
    message: String,
}

impl From<&Verification> for VerificationBody {
    fn from(found: &Verification) -> Self {
        let tallies = || found.verified.iter().flat_map(|verified| &verified.levels);
        let differing = tallies().map(|tally| tally.differing).sum();
        VerificationBody {
            equal: differing == 0,
            against: found.against,
            lsn: found.lsn.to_string(),
            cells: tallies().map(|tally| tally.cells).sum(),
            differing,
            took_ms: u64::try_from(found.took.as_millis()).unwrap_or(u64::MAX),
            aggregates: found.verified.iter().map(VerifiedBody::from).collect(),
            skipped: found.skipped.iter().map(SkippedBody::from).collect(),
        }
    }
}

impl From<&Verified> for VerifiedBody {
    fn from(verified: &Verified) -> Self {
        let Verified { aggregate, levels } = verified;
        let level = |tally: &Tally| LevelBody {
            granularity: tally.granularity,
            cells: tally.cells,
            differing: tally.differing,
        };
        let differences = levels
            .iter()
            .flat_map(|tally| tally.differences.iter().map(|one| difference(aggregate, tally.granularity, one)));
        VerifiedBody {
            aggregate: aggregate.name.clone(),
            equal: levels.iter().all(|tally| tally.differing == 0),
            levels: levels.iter().map(level).collect(),
            differences: differences.collect(),
        }
    }
}

impl From<&Skipped> for SkippedBody {
    fn from(skipped: &Skipped) -> Self {
        let Skipped { aggregate, code, message } = skipped.clone();
        SkippedBody { aggregate, code, message }
    }
}

fn difference(aggregate: &Aggregate, granularity: Granularity, difference: &Difference) -> Value {
    let plan = &aggregate.plan;
    let mut body = Map::new();
    body.insert("granularity".to_owned(), json!(granularity));
    if granularity != Granularity::All {
        body.insert("time".to_owned(), json!(Field::of_bucket(difference.bucket, &plan.calendar)));
    }
    let values = group_key::decode(&difference.group).unwrap_or_default();
    for (dimension, value) in plan.dimensions.iter().zip(values) {
        let field = Field::of_dimension(value, &dimension.column_type, &plan.calendar);
        body.insert(dimension.name.clone(), json!(field));
    }
    body.insert("stored".to_owned(), side(aggregate, difference.stored.as_ref()));
    body.insert("expected".to_owned(), side(aggregate, difference.expected.as_ref()));
    Value::Object(body)
}

/// Rows and measures of one side; null where there is no such cell.
fn side(aggregate: &Aggregate, values: Option<&Values>) -> Value {
    let Some(values) = values else { return Value::Null };
    let mut body = Map::from_iter([("rows".to_owned(), json!(values.rows))]);
    let outputs = outputs(None, aggregate).unwrap_or_default();
    for (output, value) in outputs.iter().zip(&values.measures) {
        let field = Field::of_measure(*value, output.output_type(&aggregate.plan));
        body.insert(output.name.clone(), json!(field));
    }
    Value::Object(body)
}

impl Problem {
    /// Why nothing was found out; `known` are the names of all aggregates.
    #[must_use]
    pub fn unverified(why: Unverified, known: &[String]) -> Problem {
        let detail = why.to_string();
        match why {
            Unverified::Unavailable(why) => why.into(),
            Unverified::Unknown(name) => Problem::new(404, "unknown_aggregate", detail)
                .hint(did_you_mean(&name, known.iter().map(String::as_str)))
                .at("/aggregate"),
            Unverified::Resting(Skipped { aggregate, code, message }) => {
                Problem::new(503, code, format!("{aggregate} cannot be compared: {message}"))
                    .hint(format!("see /v1/aggregates/{aggregate}"))
                    .retry_after(1)
            }
            Unverified::Range(BadRange::NoTime { which, .. }) => Problem::new(422, "bad_bound", detail)
                .hint("for example 2026, 2026-03, 2026-03-01, an RFC 3339 instant, now or -30d")
                .at(format!("/{which}")),
            Unverified::Range(BadRange::Empty) => {
                Problem::new(422, "empty_range", detail).hint("`from` is inclusive, `to` is exclusive").at("/to")
            }
            Unverified::NoPostgres => Problem::new(422, "no_postgres", detail)
                .hint("compare with the row images that are kept: \"against\": \"rows\"")
                .at("/against"),
            Unverified::NoRowImage(_) => Problem::new(422, "no_row_image", detail)
                .hint("compare with Postgres: \"against\": \"postgres\"")
                .at("/against"),
            Unverified::Source(error) => match error.code {
                "transactions_open" | "cannot_recount" | "no_free_slot" => {
                    Problem::new(503, error.code, error.message).hint(error.remedy).retry_after(5)
                }
                "not_comparable" => Problem::new(422, error.code, error.message).hint(error.remedy),
                _ => error.into(),
            },
            Unverified::Boundary(_) => Problem::new(503, "position_missed", detail).hint("try again").retry_after(1),
            Unverified::Comparison { error: ComparisonError::Read(_), .. }
            | Unverified::Recount { error: engine::recount::RecountError::Read(_), .. } => {
                Problem::new(503, "store_corrupt", detail)
            }
            Unverified::Recount { error: engine::recount::RecountError::TooMany(_), .. } => {
                Problem::new(422, "too_many_cells", detail).hint("give a shorter range: from, to").at("/from")
            }
            Unverified::Comparison { .. } | Unverified::Recount { .. } => Problem::new(422, "not_comparable", detail),
            Unverified::Interrupted => Problem::new(500, "internal_error", detail),
        }
    }
}
