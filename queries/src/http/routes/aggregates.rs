//! `/v1/aggregates` and `/v1/aggregates/{name}`: register, list, describe, drop.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::engine::{OnChange, RegisterError, Registered};
use engine::materialization::Aggregate;
use serde_json::json;

use crate::access::{Caller, Scope};
use crate::api::description::{Description, NextVersion, Progress, state_name};
use crate::api::{Problem, Warning};
use crate::http::authority::StillAllowed;
use crate::http::extract::{Name, Parameters};
use crate::http::registering::Wanted;
use crate::http::state::AppState;
use crate::http::told::{told_of, told_progress};
use crate::query::QueryError;
use crate::query::suggestion::did_you_mean;

pub(in crate::http) async fn list(State(state): State<AppState>, caller: Caller) -> Response {
    let lag_ms = state.engine.status().lag_ms;
    let mut aggregates = state.engine.aggregates();
    aggregates.retain(|aggregate| caller.sees(&aggregate.name));
    let entry = |aggregate: &Aggregate| {
        let plan = &aggregate.plan;
        json!({
            "name": aggregate.name,
            "state": state_name(&aggregate.state),
            "lag_ms": lag_ms,
            "table": aggregate.definition.qualified_table(),
            "levels": plan.levels,
            "time_zone": plan.calendar.zone().name(),
            "dimensions": plan.dimensions.iter().map(|dimension| &dimension.name).collect::<Vec<_>>(),
            "measures": plan.measures.iter().map(|measure| &measure.name).collect::<Vec<_>>(),
            "links": {"self": format!("/v1/aggregates/{}", aggregate.name)},
        })
    };
    let data: Vec<_> = aggregates.iter().map(|aggregate| entry(aggregate)).collect();
    Json(json!({"data": data, "page": {"next": null}})).into_response()
}

pub(in crate::http) async fn describe(
    State(state): State<AppState>,
    caller: Caller,
    Name(name): Name,
) -> Result<Response, Problem> {
    Ok(described(&state, &caller, &told_of(&caller, state.aggregate_for(&caller, &name)?), Vec::new()))
}

pub(in crate::http) async fn register(
    State(state): State<AppState>,
    caller: Caller,
    Name(name): Name,
    Parameters(parameters): Parameters,
    StillAllowed(wanted): StillAllowed<Wanted>,
) -> Result<Response, Problem> {
    let on_change = match on_change(&parameters)? {
        OnChange::Rebuild if !caller.may(Scope::Admin) => OnChange::Refine,
        other => other,
    };
    wanted.check_name(&name)?;
    match state.engine.register_or(&name, wanted.definition.clone(), on_change).await {
        Ok(registered) => answer(&state, &caller, &name, &registered, wanted.warnings()),
        Err(RegisterError::Conflict { differences, .. }) if on_change == OnChange::Refine => {
            Err(would_be_another(&caller, &name, &differences))
        }
        Err(RegisterError::Conflict { differences, .. }) if wanted.leaves_existing() => {
            let message =
                format!("{name} is there already and was left as it is; it differs in {}", differences.join(", "));
            Ok(described(&state, &caller, &*state.aggregate(&name)?, vec![Warning::new("exists_and_differs", message)]))
        }
        Err(error) => Err(wanted.refusal(&state, &name, error)),
    }
}

/// What is there would be gone once the new one is filled, as if it had been dropped; or it would show rows, with every column, to
/// who is pinned to its totals. That is for who may drop.
fn would_be_another(caller: &Caller, name: &str, differences: &[&str]) -> Problem {
    let (differences, id) = (differences.join(", "), caller.id());
    let detail = format!(
        "it differs in {differences}: to put another table or other dimensions in the place of {name}, or to open the rows behind its \
         totals with drill_through, takes the scope admin, and token {id} lacks it"
    );
    Problem::new(403, "scope_missing", detail).hint("register it under another name, or with a token of scope admin")
}

/// What became of a registration or a rebuilding.
pub(super) fn answer(
    state: &AppState,
    caller: &Caller,
    name: &str,
    registered: &Registered,
    warnings: Vec<Warning>,
) -> Result<Response, Problem> {
    let description = described(state, caller, &*state.aggregate(name)?, warnings);
    Ok(match registered {
        Registered::Created(_) => {
            let location = [(header::LOCATION, format!("/v1/aggregates/{name}"))];
            (StatusCode::ACCEPTED, location, description).into_response()
        }
        Registered::Unchanged(_) => description,
    })
}

fn on_change(parameters: &[(String, String)]) -> Result<OnChange, Problem> {
    match parameters {
        [] => Ok(OnChange::Refuse),
        [(name, value)] if name == "on_change" => match value.as_str() {
            "refuse" => Ok(OnChange::Refuse),
            "rebuild" => Ok(OnChange::Rebuild),
            _ => Err(QueryError::malformed("on_change", "use refuse or rebuild").into()),
        },
        [(name, _), ..] => {
            Err(QueryError::malformed(name, "the only parameter is on_change").code("unknown_parameter").into())
        }
    }
}

pub(in crate::http) async fn drop_aggregate(
    State(state): State<AppState>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    if state.engine.drop_aggregate(&name).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    state.aggregate(&name).and(Err(Problem::new(404, "unknown_aggregate", format!("{name} was dropped already"))))
}

fn described(state: &AppState, caller: &Caller, aggregate: &Aggregate, warnings: Vec<Warning>) -> Response {
    let table = state.table(&aggregate.plan);
    let progress_of = |id| told_progress(caller, state.engine.build_progress(id));
    let progress = progress_of(aggregate.id);
    let mut description = Description::of(aggregate, table.as_ref().map(|table| &table.schema), progress);
    let next = state.engine.next_version(&aggregate.name);
    description.next = next.as_ref().map(|next| {
        let progress = progress_of(next.id).map(Progress::from);
        NextVersion { version: next.version, state: state_name(&next.state), definition: &next.definition, progress }
    });
    description.warnings.extend(warnings);
    Json(description).into_response()
}

pub(in crate::http) fn refusal(name: &str, error: RegisterError) -> Problem {
    let message = error.to_string();
    match error {
        RegisterError::BadName => Problem::new(422, "bad_name", format!("{name:?}: {message}")),
        RegisterError::UnknownTable { table, known } => Problem::new(422, "unknown_table", message)
            .hint(did_you_mean(&table, known.iter().map(String::as_str)))
            .at("/table"),
        RegisterError::Invalid(error) => error.into(),
        RegisterError::Conflict { differences, .. } => {
            let problem = Problem::new(409, "definition_differs", message)
                .hint(format!("?on_change=rebuild builds the new one beside it and swaps when it is filled; or drop it: DELETE /v1/aggregates/{name}"));
            differences.into_iter().fold(problem, |problem, field| problem.at(format!("/{field}")))
        }
        RegisterError::TooMany { .. } => Problem::new(422, "too_many_aggregates", message).hint(
            "drop one that nobody asks: DELETE /v1/aggregates/NAME; or start with --max-aggregates N, where changes may take longer to be visible",
        ),
        RegisterError::Unavailable(why) => why.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_table_is_pointed_at() {
        let error = RegisterError::UnknownTable {
            table: "public.payment".to_owned(),
            known: vec!["public.payments".to_owned()],
        };
        let problem = refusal("monthly", error);
        assert_eq!((problem.status, problem.code.as_str()), (422, "unknown_table"));
        assert_eq!(problem.hint, "did you mean \"public.payments\"?");
        assert_eq!(problem.errors.first().and_then(|part| part.pointer.as_deref()), Some("/table"));
    }
}
