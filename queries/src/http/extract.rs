//! What handlers take from requests, with our problems where it is not there.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use engine::materialization::Definition;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::api::Problem;
use crate::query::suggestion::nearest;

/// The `{name}` of a path.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Name(name)),
            Err(rejection) => Err(Problem::new(400, "bad_path", rejection.body_text())),
        }
    }
}

/// The parameters of a query, in order, as they were given.
pub(super) struct Parameters(pub(super) Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<Vec<(String, String)>>::from_request_parts(parts, state).await {
            Ok(Query(parameters)) => Ok(Parameters(parameters)),
            Err(rejection) => Err(Problem::new(400, "bad_query", rejection.body_text())),
        }
    }
}

/// The definition in a body.
pub(super) struct DefinitionBody(pub(super) Definition);

impl<S: Send + Sync> FromRequest<S> for DefinitionBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        check_content_type(request.headers())?;
        let body = Bytes::from_request(request, state).await.map_err(unreadable)?;
        parse_definition(&body).map(DefinitionBody)
    }
}

/// The table that a source shall follow too.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TableRequest {
    /// As `schema.name`.
    pub(super) table: String,
}

impl<S: Send + Sync> FromRequest<S> for TableRequest {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        check_content_type(request.headers())?;
        let body = Bytes::from_request(request, state).await.map_err(unreadable)?;
        parse(&body, "invalid_table_request")
    }
}

fn unreadable(rejection: BytesRejection) -> Problem {
    match rejection.status().as_u16() {
        413 => Problem::new(413, "body_too_large", "a body may have at most 1 MiB"),
        _ => Problem::new(400, "unreadable_body", rejection.body_text()),
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let content_type = content_type.to_str().unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match media_type.as_str() {
        "application/json" => Ok(()),
        "application/sql" => {
            let detail = "registration by SQL is not available yet";
            Err(Problem::new(415, "sql_not_available", detail).hint("send the definition as application/json"))
        }
        other => {
            Err(Problem::new(415, "unsupported_media_type", format!("a definition cannot be read from {other:?}"))
                .hint("send it with Content-Type: application/json"))
        }
    }
}

fn parse_definition(body: &[u8]) -> Result<Definition, Problem> {
    parse(body, "invalid_definition")
}

/// What a body says in JSON. What is not JSON is malformed (400); what is JSON and says something else is refused (422).
fn parse<T: DeserializeOwned>(body: &[u8], refused: &'static str) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let message = error.to_string();
        if !error.is_data() {
            return Problem::new(400, "malformed_json", message);
        }
        // serde says: unknown field `granularty`, expected one of `column`, `granularity`
        let mut quoted = message.split('`').skip(1).step_by(2);
        let wrong = quoted.next().unwrap_or_default();
        let meant = nearest(wrong, quoted).filter(|_| message.starts_with("unknown field"));
        let hint = meant.map(|meant| format!("did you mean {meant:?}?")).unwrap_or_default();
        Problem::new(422, refused, message).hint(hint)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn malformed_and_misspelt_definitions_are_told_apart() {
        let problem = parse_definition(br#"{"table": }"#).unwrap_err();
        assert_eq!((problem.status, problem.code.as_str()), (400, "malformed_json"));
        assert!(problem.detail.contains("line 1 column"), "{}", problem.detail);

        let misspelt = br#"{"table":"payments","measures":[],"time":{"column":"ts","granularty":"day"}}"#;
        let problem = parse_definition(misspelt).unwrap_err();
        assert_eq!((problem.status, problem.code.as_str()), (422, "invalid_definition"));
        assert_eq!(problem.hint, "did you mean \"granularity\"?");
    }

    #[test]
    fn a_table_to_follow_is_named_and_nothing_else() {
        let request = |body: &[u8]| parse::<TableRequest>(body, "invalid_table_request");
        assert_eq!(request(br#"{"table":"public.orders"}"#).unwrap().table, "public.orders");
        let problem = request(br#"{"tabel":"public.orders"}"#).unwrap_err();
        assert_eq!((problem.status, problem.code.as_str()), (422, "invalid_table_request"));
        assert_eq!(problem.hint, "did you mean \"table\"?");
        assert_eq!(request(br#"{"table":"a","columns":[]}"#).unwrap_err().status, 422);
        assert_eq!(request(b"orders").unwrap_err().status, 400);
    }

    #[test]
    fn only_json_is_read() {
        let check = |content_type: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
            check_content_type(&headers).map_err(|problem| problem.code.clone())
        };
        assert_eq!(check("application/json; charset=utf-8"), Ok(()));
        assert_eq!(check("application/sql"), Err("sql_not_available".to_owned()));
        assert_eq!(check("text/plain"), Err("unsupported_media_type".to_owned()));
    }
}
