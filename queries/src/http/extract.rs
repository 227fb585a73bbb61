//! What handlers take from requests, with our problems where it is not there.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use engine::materialization::Definition;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::asking::{MAX_INLINE_BYTES, in_turn};
use super::named_once::NamedOnce;
use super::state::AppState;
use crate::api::Problem;
use crate::query::QueryRequest;
use crate::query::suggestion::nearest;
use crate::verify::Against;

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

/// Whether a question is answered or explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Explain {
    /// The plan only.
    Plan,
    /// The plan, and what running it took.
    Analyze,
}

/// The questions in a body: one, or a list under `queries`.
#[derive(Debug)]
pub(super) struct QueryBody {
    pub(super) queries: Vec<QueryRequest>,
    /// They came as a list, and are answered as one.
    pub(super) many: bool,
    /// Whether they are understood at once.
    pub(super) short: bool,
    pub(super) explain: Option<Explain>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ManyQueries {
    queries: Vec<QueryRequest>,
    #[serde(default)]
    explain: Option<Explain>,
}

impl FromRequest<AppState> for QueryBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Problem> {
        check_json(request.headers())?;
        let body = Bytes::from_request(request, state).await.map_err(unreadable)?;
        in_turn(state, is_short(&body), move || parse_queries(&body)).await
    }
}

fn is_short(body: &[u8]) -> bool {
    body.len() <= MAX_INLINE_BYTES
}

pub(super) fn parse_queries(body: &[u8]) -> Result<QueryBody, Problem> {
    let mut document: serde_json::Map<String, serde_json::Value> = parse(body, "invalid_query")?;
    if document.contains_key("queries") {
        check_objects(&document, "queries", "invalid_query")?;
        let ManyQueries { queries, explain } = read_as(body, "invalid_query")?;
        return Ok(QueryBody { queries, many: true, short: is_short(body), explain });
    }
    let explain = document.remove("explain").unwrap_or_default();
    let read = |error: serde_json::Error| Problem::new(422, "invalid_query", error.to_string());
    let explain = serde_json::from_value(explain).map_err(read)?;
    // Read once more from text, so that mistakes are told with their place.
    let rest = serde_json::to_vec(&document).map_err(read)?;
    Ok(QueryBody { queries: vec![read_as(&rest, "invalid_query")?], many: false, short: is_short(body), explain })
}

/// The table that a source shall follow too.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TableRequest {
    /// As `schema.name`.
    pub(super) table: String,
    /// Whether its row images are kept; as it was, where nothing is said.
    pub(super) row_image: Option<bool>,
}

impl<S: Send + Sync> FromRequest<S> for TableRequest {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        check_json(request.headers())?;
        let body = Bytes::from_request(request, state).await.map_err(unreadable)?;
        parse(&body, "invalid_table_request")
    }
}

/// What is to be verified, and against whom; everything, where nothing is said.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyRequest {
    pub(super) aggregate: Option<String>,
    pub(super) from: Option<String>,
    pub(super) to: Option<String>,
    /// Postgres, where there is one.
    pub(super) against: Option<Against>,
}

impl<S: Send + Sync> FromRequest<S> for VerifyRequest {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        check_json(request.headers())?;
        let body = Bytes::from_request(request, state).await.map_err(unreadable)?;
        if body.is_empty() { Ok(VerifyRequest::default()) } else { parse(&body, "invalid_verify_request") }
    }
}

/// What a backup is to be like; nothing needs to be said.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckpointRequest {
    /// The time, where none is given.
    pub(super) name: Option<String>,
    /// Whether upstream keeps its log from it on.
    #[serde(default)]
    pub(super) hold_log: bool,
}

impl<S: Send + Sync> FromRequest<S> for CheckpointRequest {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        check_json(request.headers())?;
        let body = Bytes::from_request(request, state).await.map_err(unreadable)?;
        if body.is_empty() { Ok(CheckpointRequest::default()) } else { parse(&body, "invalid_checkpoint_request") }
    }
}

pub(super) fn unreadable(rejection: BytesRejection) -> Problem {
    match rejection.status().as_u16() {
        413 => Problem::new(413, "body_too_large", "a body may have at most 1 MiB"),
        _ => Problem::new(400, "unreadable_body", rejection.body_text()),
    }
}

/// What a body is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MediaType {
    Json,
    Sql,
}

/// What a body is written in: JSON, unless something else is said.
pub(super) fn media_type(headers: &HeaderMap) -> Result<MediaType, Problem> {
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else { return Ok(MediaType::Json) };
    let content_type = content_type.to_str().unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match media_type.as_str() {
        "application/json" => Ok(MediaType::Json),
        "application/sql" => Ok(MediaType::Sql),
        other => Err(Problem::new(415, "unsupported_media_type", format!("a body cannot be read from {other:?}"))
            .hint("say what it is: -H 'Content-Type: application/json', or for a definition in SQL application/sql")),
    }
}

/// Only a definition can be said in SQL.
fn check_json(headers: &HeaderMap) -> Result<(), Problem> {
    match media_type(headers)? {
        MediaType::Json => Ok(()),
        MediaType::Sql => Err(Problem::new(415, "unsupported_media_type", "only definitions are read from SQL")
            .hint("send it with Content-Type: application/json")),
    }
}

pub(super) fn parse_definition(body: &[u8]) -> Result<Definition, Problem> {
    const REFUSED: &str = "invalid_definition";
    let document: serde_json::Map<String, serde_json::Value> = parse(body, REFUSED)?;
    check_objects(&document, "measures", REFUSED)?;
    if document.get("time").is_some_and(serde_json::Value::is_array) {
        return Err(Problem::new(422, REFUSED, "time: an object is expected").at("/time"));
    }
    read_as(body, REFUSED)
}

/// Refuses arrays in a list of objects: serde would take their items for fields, in order.
fn check_objects(
    document: &serde_json::Map<String, serde_json::Value>,
    list: &str,
    refused: &'static str,
) -> Result<(), Problem> {
    let items = document.get(list).and_then(serde_json::Value::as_array).map(Vec::as_slice).unwrap_or_default();
    match items.iter().position(|item| !item.is_object()) {
        None => Ok(()),
        Some(at) => {
            Err(Problem::new(422, refused, format!("{list}: an object is expected")).at(format!("/{list}/{at}")))
        }
    }
}

/// What a body says in JSON. What is not JSON is malformed (400); what is JSON and says something else is refused (422).
fn parse<T: DeserializeOwned>(body: &[u8], refused: &'static str) -> Result<T, Problem> {
    let NamedOnce = serde_json::from_slice(body).map_err(|error| unread(&error, refused))?;
    // serde would take the items of an array for fields, in order.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(Problem::new(422, refused, "an object is expected, not an array"));
    }
    read_as(body, refused)
}

/// The same of what was parsed before, of which nothing comes twice.
fn read_as<T: DeserializeOwned>(body: &[u8], refused: &'static str) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| unread(&error, refused))
}

fn unread(error: &serde_json::Error, refused: &'static str) -> Problem {
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
    fn a_name_that_comes_twice_is_refused() {
        for body in [
            r#"{"aggregate":"a","where":{"currency":"EUR","currency":"USD"}}"#,
            r#"{"queries":[{"aggregate":"a","where":{"currency":"EUR","currency":"USD"}}]}"#,
            r#"{"currency":1,"currency":2}"#,
        ] {
            let problem = parse_queries(body.as_bytes()).unwrap_err();
            assert_eq!((problem.status, problem.code.as_str()), (422, "invalid_query"), "{body}");
            assert!(problem.detail.starts_with("duplicate field `currency` at line 1"), "{}", problem.detail);
        }
    }

    #[test]
    fn a_table_to_follow_is_named_and_nothing_else() {
        let request = |body: &[u8]| parse::<TableRequest>(body, "invalid_table_request");
        assert_eq!(request(br#"{"table":"public.orders"}"#).unwrap().table, "public.orders");
        let problem = request(br#"{"tabel":"public.orders"}"#).unwrap_err();
        assert_eq!((problem.status, problem.code.as_str()), (422, "invalid_table_request"));
        assert_eq!(problem.hint, "did you mean \"table\"?");
        assert_eq!(request(br#"{"table":"a","columns":[]}"#).unwrap_err().status, 422);
        assert_eq!(request(br#" ["public.orders", null]"#).unwrap_err().status, 422);
        assert_eq!(request(br#"["public.orders", nul"#).unwrap_err().status, 400);
        assert_eq!(request(b"orders").unwrap_err().status, 400);
    }

    #[test]
    fn what_a_body_is_written_in_is_said_by_its_type() {
        let headers = |content_type: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
            headers
        };
        let read = |content_type| media_type(&headers(content_type)).map_err(|problem| problem.status);
        assert_eq!(read("application/json; charset=utf-8"), Ok(MediaType::Json));
        assert_eq!(read("application/sql"), Ok(MediaType::Sql));
        assert_eq!(read("text/plain"), Err(415));
        assert_eq!(media_type(&HeaderMap::new()), Ok(MediaType::Json));
        assert_eq!(check_json(&headers("application/sql")).map_err(|problem| problem.status), Err(415));
    }
}
