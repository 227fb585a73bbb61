//! `/v1/aggregates` and `/v1/aggregates/{name}`: register, list, describe, drop.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::engine::{RegisterError, Registered};
use engine::materialization::Aggregate;
use serde_json::json;

use crate::api::Problem;
use crate::api::description::{Description, state_name};
use crate::http::extract::{DefinitionBody, Name};
use crate::http::state::AppState;
use crate::query::suggestion::did_you_mean;

pub(in crate::http) async fn list(State(state): State<AppState>) -> Response {
    let lag_ms = state.engine.status().lag_ms;
    let aggregates = state.engine.aggregates();
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

pub(in crate::http) async fn describe(State(state): State<AppState>, Name(name): Name) -> Result<Response, Problem> {
    Ok(described(&state, &*state.aggregate(&name)?))
}

pub(in crate::http) async fn register(
    State(state): State<AppState>,
    Name(name): Name,
    DefinitionBody(definition): DefinitionBody,
) -> Result<Response, Problem> {
    match state.engine.register(&name, definition).await {
        Ok(Registered::Created(aggregate)) => {
            let location = [(header::LOCATION, format!("/v1/aggregates/{name}"))];
            Ok((StatusCode::ACCEPTED, location, described(&state, &aggregate)).into_response())
        }
        Ok(Registered::Unchanged(aggregate)) => Ok(described(&state, &aggregate)),
        Err(error) => Err(refusal(&name, error)),
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

fn described(state: &AppState, aggregate: &Aggregate) -> Response {
    let table = state.table(&aggregate.plan);
    let progress = state.engine.build_progress(aggregate.id);
    Json(Description::of(aggregate, table.as_ref().map(|table| &table.schema), progress)).into_response()
}

fn refusal(name: &str, error: RegisterError) -> Problem {
    let message = error.to_string();
    match error {
        RegisterError::BadName => Problem::new(422, "bad_name", format!("{name:?}: {message}")),
        RegisterError::UnknownTable { table, known } => Problem::new(422, "unknown_table", message)
            .hint(did_you_mean(&table, known.iter().map(String::as_str)))
            .at("/table"),
        RegisterError::Invalid(error) => error.into(),
        RegisterError::Conflict { differences, .. } => {
            let problem = Problem::new(409, "definition_differs", message)
                .hint(format!("drop it first: DELETE /v1/aggregates/{name}, or register under another name"));
            differences.into_iter().fold(problem, |problem, field| problem.at(format!("/{field}")))
        }
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
