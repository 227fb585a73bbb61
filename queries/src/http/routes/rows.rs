//! `/v1/aggregates/{name}/rows`: the rows of the table that a total is made of, newest first.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::materialization::Aggregate;
use serde_json::json;

use crate::access::Caller;
use crate::api::table_rows::TableRows;
use crate::api::{AnswerView, Problem};
use crate::http::asking::{Asked, ask, expired, in_turn};
use crate::http::extract::{Name, Parameters};
use crate::http::pages::Pages;
use crate::http::state::AppState;
use crate::query::{QueryError, QueryRequest};
use crate::read::rows_behind;

/// Rows of one page, unless asked otherwise.
const DEFAULT_LIMIT: usize = 100;
/// The parameters there are: those that say which rows, and which page.
const PARAMETERS: [&str; 9] = ["from", "to", "where", "filter", "time_zone", "limit", "cursor", "min_lsn", "wait"];

pub(in crate::http) async fn rows(
    State(state): State<AppState>,
    caller: Caller,
    Name(name): Name,
    Parameters(mut parameters): Parameters,
) -> Result<Response, Problem> {
    if let Some((wrong, _)) = parameters.iter().find(|(name, _)| !PARAMETERS.contains(&name.as_str())) {
        let wrong: String = wrong.chars().take(64).collect();
        return Err(QueryError::malformed(&wrong, format!("there is no parameter {wrong:?}"))
            .code("unknown_parameter")
            .hint(format!("known: {}", PARAMETERS.join(", ")))
            .into());
    }
    let cursor = parameters.iter().position(|(name, _)| name == "cursor").map(|at| parameters.remove(at).1);
    let mut request = QueryRequest::from_parameters(&parameters)?;
    request.limit.get_or_insert(DEFAULT_LIMIT);
    let mut asked = ask(&state, &caller, &name, &request).await?;
    check_kept(&asked.aggregate)?;
    let after = cursor.map(|text| page(&text, &asked)).transpose()?;
    if let Some((sequence, _)) = &after {
        asked.snapshot = state.pages.get(&asked.snapshot, *sequence).ok_or_else(expired)?;
    }
    let pages = Arc::clone(&state.pages);
    in_turn(&state, false, move || respond(&asked, after.map(|(_, entry)| entry), &pages)).await
}

/// Refuses an aggregate without the index.
pub(in crate::http) fn check_kept(aggregate: &Aggregate) -> Result<(), Problem> {
    if aggregate.definition.drill_through {
        return Ok(());
    }
    let name = &aggregate.name;
    Err(Problem::new(422, "no_drill_through", format!("{name} keeps no index of the rows behind its totals"))
        .hint("register it with \"drill_through\": true"))
}

fn respond(asked: &Asked, after: Option<Vec<u8>>, pages: &Pages) -> Result<Response, Problem> {
    let behind = rows_behind(&asked.snapshot, &asked.aggregate, &asked.query, after).map_err(Problem::from)?;
    let announced = || Problem::new(503, "building", "the table is not announced yet").retry_after(1);
    let table = asked.table().ok_or_else(announced)?;
    let rows = TableRows { schema: &table.schema, rows: &behind.rows, calendar: &asked.query.calendar };
    let as_of = asked.snapshot.as_of();
    if behind.next.is_some() {
        pages.keep(&asked.snapshot);
    }
    let next = behind.next.as_deref().map(|entry| encode(asked, entry));
    let body = json!({
        "aggregate": asked.aggregate.name,
        "table": asked.aggregate.definition.qualified_table(),
        "columns": rows.columns(),
        "data": serde_json::to_value(rows).map_err(|_| Problem::new(500, "internal_error", "the rows cannot be written"))?,
        "as_of": AnswerView::as_of_body(as_of),
        "page": {"next": next},
    });
    let mut response = ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(lsn) = HeaderValue::try_from(as_of.lsn.to_string()) {
        headers.insert("tidemark-lsn", lsn);
    }
    Ok(response)
}

fn encode(asked: &Asked, entry: &[u8]) -> String {
    let head = [asked.query.fingerprint.to_be_bytes(), asked.snapshot.as_of().sequence.to_be_bytes()].concat();
    URL_SAFE_NO_PAD.encode([head.as_slice(), entry].concat())
}

/// The commit that the page before showed, and its last entry.
fn page(text: &str, asked: &Asked) -> Result<(u64, Vec<u8>), Problem> {
    let decoded = URL_SAFE_NO_PAD.decode(text).ok();
    let parts = decoded.as_deref().and_then(|bytes| {
        let (question, rest) = bytes.split_first_chunk::<8>()?;
        let (sequence, entry) = rest.split_first_chunk::<8>()?;
        let own = u64::from_be_bytes(*question) == asked.query.fingerprint;
        own.then(|| (u64::from_be_bytes(*sequence), entry.to_vec()))
    });
    parts.ok_or_else(|| {
        QueryError::malformed("cursor", "the cursor does not belong to this question")
            .code("bad_cursor")
            .hint("take it from `page.next` and change nothing else")
            .into()
    })
}
